//! What is to be done about a request, from its head alone: which rule, which share, which answer of our own. No I/O.
//!
//! This is where the head is read for the last time: what is needed later ([`Forward`]) is taken from it here, and the head for
//! the endpoint is written. A request to a Service's own port without policies costs no memory.

use std::borrow::Cow;
use std::sync::Arc;

use http::StatusCode;

use super::filters::{Fields, Filters, Place, Rewritten};
use super::held::Held;
use super::request::{self, Framing, Request};
use super::site::{Site, Target};
use crate::backend::Backend;
use crate::balance::affinity;
use crate::balance::session::{Chosen, Session};
use crate::plugin::{self, Asked, Desk};
use crate::route::{Head as _, HttpTable, Rule};

/// A request goes to an endpoint of `backend`.
pub(crate) struct Forward {
    pub request: Request,
    pub rule: Arc<Rule>,
    /// Index in the rule's backends.
    pub share: usize,
    pub backend: Arc<Backend>,
    /// See [`crate::balance::Choice`].
    pub hash: Option<u64>,
    /// The client's session, if the rule keeps any.
    pub session: Option<Box<Session>>,
    /// What a plugin says about it.
    pub asked: Option<Asked>,
    /// Fields for the response's head.
    pub own: Fields,
    /// The head, when a policy looks at it later.
    pub held: Option<Box<Held>>,
}

/// A request is answered here.
pub(crate) struct Local {
    pub request: Request,
    pub rule: Option<Arc<Rule>>,
    pub status: StatusCode,
    pub text: Cow<'static, str>,
    pub fields: Fields,
    /// The connection is of no use for more requests.
    pub close: bool,
}

impl Local {
    fn new(request: Request, status: StatusCode, text: impl Into<Cow<'static, str>>) -> Box<Self> {
        Box::new(Self { request, rule: None, status, text: text.into(), fields: Fields::new(), close: false })
    }

    /// Likewise, for the last request of a connection.
    fn last(request: Request, status: StatusCode, text: impl Into<Cow<'static, str>>) -> Box<Self> {
        let mut answer = Self::new(request, status, text);
        answer.close = true;
        answer
    }
}

/// Decides about the request `head`, which came to `table` of `site` over a connection to `target`, and writes the head for the endpoint
/// to `out`. Plugins are asked at `desk`.
#[inline]
pub(crate) fn decide(
    target: &Target,
    site: &Site,
    table: &HttpTable,
    head: &request::Head<'_>,
    (desk, out): (&Desk, &mut Vec<u8>),
) -> Result<Forward, Box<Local>> {
    if target.is_tls() && !target.allows(site, head.host()) {
        let text = "421: this connection was opened for another host\n";
        return Err(Local::last(head.summary(), StatusCode::MISDIRECTED_REQUEST, text));
    }
    if let Some(answer) = table.challenge(head.path()) {
        return Err(Local::new(head.summary(), StatusCode::OK, answer.to_string()));
    }
    let Some(rule) = table.find(head) else {
        return Err(Local::new(head.summary(), StatusCode::NOT_FOUND, "404: no route matches this request\n"));
    };
    let place = Place { https: target.is_tls(), port: table.port() };
    forward(rule, place, head, (desk, out)).map_err(|mut answer| {
        answer.rule = Some(rule.clone());
        answer
    })
}

#[inline]
fn forward(
    rule: &Arc<Rule>,
    place: Place,
    head: &request::Head<'_>,
    (desk, out): (&Desk, &mut Vec<u8>),
) -> Result<Forward, Box<Local>> {
    let filtered = |filters: Filters<'_>| match filters.answer(head, &rule.path, place) {
        Some(ready) => {
            let mut answer = Local::new(head.summary(), ready.status, "");
            answer.fields = ready.fields;
            Err(answer)
        }
        None => Ok(()),
    };
    if !rule.filters.is_empty() {
        filtered(Filters::of_rule(rule))?;
    }
    let (Chosen { share, backend, session }, asked) = plugin::choose(rule, head, place.https, desk);
    let Some((share, backend)) = share.zip(backend) else {
        let text = "500: the route has no valid backend for this request\n";
        return Err(Local::new(head.summary(), StatusCode::INTERNAL_SERVER_ERROR, text));
    };
    let filters = Filters::of_share(rule, &rule.backends[share]);
    if !rule.backends[share].filters.is_empty() {
        filtered(filters)?;
    }
    if let (Some(max), Framing::Length(length)) = (rule.policy.max_body_bytes, head.framing())
        && length > max
    {
        let text = format!("413: the request's body is larger than {max} bytes\n");
        return Err(Local::last(head.summary(), StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    let (rewritten, mut own) = if filters.is_empty() {
        (Rewritten::default(), Fields::new())
    } else {
        (filters.rewrite(head, &rule.path), filters.response_fields(head))
    };
    let service = &backend.service;
    let fallback_host = || format!("{}.{}", service.name, service.namespace);
    let request = head.write(&rewritten, filters.request_edits(), fallback_host, out);
    let affinity = affinity::of(&backend, head, place.https, rand::random);
    if let Some(cookie) = affinity.set_cookie {
        own.push(("set-cookie", cookie));
    }
    let held = needs_head(rule, &backend).then(|| Box::new(Held::of(head)));
    Ok(Forward { request, rule: rule.clone(), share, backend, hash: affinity.hash, session, asked, own, held })
}

/// Whether [`crate::balance::enter`] looks at heads.
fn needs_head(rule: &Rule, backend: &Backend) -> bool {
    !rule.policy.rate_limits.is_empty() || backend.policy.queue.is_some()
}
