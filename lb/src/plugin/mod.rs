//! Plugins of the world `routing` in the path of requests: what they are asked, and what becomes of what they say.
//!
//! | bound to | it chooses among the endpoints of |
//! |---|---|
//! | a route (HTTPRoute, GRPCRoute, Ingress) | all backends of the rule, whatever their weights |
//! | a Service | that Service, for each request that goes to it |
//! | a Gateway | the backend that weights chose, unless its Service has a plugin of its own |
//!
//! It is asked once per attempt, on the thread that serves: for the first one when the request's head is there, before limits and queues, and
//! for a retry or a rival only about the endpoints of the backend that the request has gone to.
//!
//! Health keeps its say: a pick of an endpoint that is not well, or that failed this request already, counts as a pick of its backend
//! ([`Ruling::Overruled`]): the built-in policy chooses there, which uses such endpoints only when nothing else is left or when so few are
//! well that it panics. Limits and weights do not bind a plugin, and what it says goes before a client's session.
//!
//! A binding never takes effect before its module is there: see [`crate::hub`]. Without a decision, the plugin's failure policy says whether the
//! built-in policy decides or the request is refused.

mod ask;
mod counts;
mod view;

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use scaleup_plugins::Slot;
use tokio_util::sync::CancellationToken;

pub(crate) use ask::{Asked, Desk, Refused, choose};
pub(crate) use counts::{Counts, GenerationTotals};

use crate::backend::Backend;
use crate::balance::geo::Geo;
use crate::hub::Hub;
use crate::policy::PluginRef;
use view::View;

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    /// The endpoint that it picked.
    Pick,
    /// An endpoint of the backend that it picked: the endpoint itself is not well, or failed this request already.
    Overruled,
    /// It left the choice to the built-in policy.
    Default,
    /// It refused the request.
    Reject,
    /// It gave no decision; the built-in policy decided.
    Failed,
    /// It gave no decision; the request was refused.
    Refused,
}

impl Ruling {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [Self::Pick, Self::Overruled, Self::Default, Self::Reject, Self::Failed, Self::Refused];

    /// As metrics, log and spans name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pick => "pick",
            Self::Overruled => "overruled",
            Self::Default => "default",
            Self::Reject => "reject",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// What is told of a request's latest decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// `namespace/name`, or `name` of a ClusterWasmPlugin.
    pub plugin: Arc<str>,
    pub ruling: Ruling,
    /// Of the plugin; `None` if none gave a decision.
    pub generation: Option<u64>,
}

/// A plugin in place.
#[derive(Debug)]
pub(crate) struct Binding {
    /// What a policy asks for.
    pub wanted: Arc<PluginRef>,
    /// Where the plugin is, or will be.
    pub slot: Arc<Slot>,
    pub counts: Arc<Counts>,
    geo: Arc<Geo>,
    /// The endpoints as they were last asked about.
    view: ArcSwapOption<View>,
}

impl Binding {
    pub fn new(wanted: Arc<PluginRef>, slot: Arc<Slot>, counts: Arc<Counts>, geo: Arc<Geo>) -> Self {
        Self { wanted, slot, counts, geo, view: ArcSwapOption::empty() }
    }

    /// The view of these backends, made anew when one of them was replaced.
    fn view(&self, backends: &[Option<Arc<Backend>>]) -> Arc<View> {
        if let Some(view) = self.view.load().as_ref().filter(|view| view.is_of(backends)) {
            return view.clone();
        }
        let view = Arc::new(View::new(backends));
        self.view.store(Some(view.clone()));
        view
    }
}

/// Puts bindings in place when the modules that they wait for are there, until `shutdown`.
pub(crate) async fn follow(hub: Arc<Hub>, shutdown: CancellationToken) {
    let mut changes = hub.plugins().changes();
    loop {
        hub.rebind();
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests;
