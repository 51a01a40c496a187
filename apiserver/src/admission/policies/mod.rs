//! Admission by plugins: `ClusterWasmPlugin`s and `WasmPlugin`s of the world `admission` allow, deny or change writes.
//!
//! The last step of both halves of the chain, as upstream's webhooks. Mutating: each plugin in order; if one changed the object, the
//! built-in steps run again, and those plugins that saw an older state are asked once more (upstream's `reinvocationPolicy: IfNeeded`).
//! Validating: each plugin about exactly what would be stored; the first one that denies decides. What happens when a plugin gives no
//! answer is up to its failure policy. It never loads plugins: it looks their slots up.

mod binding;
mod call;
mod patched;

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use scaleup_plugins::admission::{Answer, Denial, Phase, Verdict};
use scaleup_plugins::{Decided, Failure, OnFailure, Registry as Plugins};
use serde_json::json;
use tokio::sync::Semaphore;

use self::binding::{Bound, Index};
use self::call::operation;
use super::Attributes;
use crate::error::{ApiError, Cause, Details};
use crate::registry::Resource;

/// Calls of all plugins at a time.
const MAX_CALLS: usize = 32;
/// Prefixes of the audit annotations, as upstream's `mutation.webhook.admission.k8s.io/round_0_index_0`.
const MUTATION: &str = "mutation.plugin.policy.scaleup.dev";
const VALIDATION: &str = "validation.plugin.policy.scaleup.dev";
/// Values of the metric's label `decision`, and of the annotations' field.
const DECISIONS: [&str; 5] = ["allow", "deny", "patch", "failed_open", "refused"];
/// Values of the label `type`, as of the chain's own metric.
const TYPES: [&str; 2] = ["admit", "validate"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    plugin: String,
    r#type: &'static str,
    decision: &'static str,
}

/// See the module.
pub struct Policies {
    plugins: Arc<Plugins>,
    index: ArcSwap<Index>,
    compiling: Mutex<()>,
    calls: Arc<Semaphore>,
    decisions: Family<Labels, Counter>,
}

/// Plugins that may be asked about a write, and what they have seen of it.
pub(super) struct Round {
    index: Arc<Index>,
    /// The versions of the object's kind.
    rows: Vec<Arc<Resource>>,
    /// Which state of the object each plugin decided on last.
    seen: Vec<Option<u32>>,
    /// Number of the object's present state.
    state: u32,
    number: u32,
}

impl Round {
    /// Whether the object has changed since a plugin saw it first.
    pub fn has_changed(&self) -> bool {
        self.state > 0
    }

    /// The round after the built-in steps ran again.
    pub fn again(&mut self, changed: bool) {
        self.state += u32::from(changed);
        self.number += 1;
    }
}

impl Policies {
    /// Whose plugins are in this registry.
    pub fn new(plugins: Arc<Plugins>) -> Self {
        Self {
            plugins,
            index: ArcSwap::default(),
            compiling: Mutex::new(()),
            calls: Arc::new(Semaphore::new(MAX_CALLS)),
            decisions: Family::default(),
        }
    }

    /// Registers `scaleup_admission_decisions`.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Writes that an admission plugin decided about, by half of the chain and decision";
        registry.register("scaleup_admission_decisions", help, self.decisions.clone());
    }

    fn index(&self, server: &crate::Server) -> Arc<Index> {
        let stamp = binding::stamp(&*server.caches);
        let index = self.index.load_full();
        if index.stamp == stamp {
            return index;
        }
        let _compiling = self.compiling.lock();
        let before = self.index.load_full();
        if before.stamp == stamp {
            return before;
        }
        let index = Arc::new(Index::compile(stamp, &*server.caches, &self.plugins, &before));
        for gone in before.bound.iter().filter(|known| index.bound.iter().all(|bound| bound.key != known.key)) {
            for (r#type, decision) in TYPES.iter().flat_map(|t| DECISIONS.map(|decision| (t, decision))) {
                self.decisions.remove(&Labels { plugin: gone.key.to_string(), r#type, decision });
            }
        }
        self.index.store(index.clone());
        index
    }

    /// `None` if no plugin will be asked.
    pub(super) fn round(&self, server: &crate::Server, attributes: &Attributes<'_>) -> Option<Round> {
        let index = self.index(server);
        if index.bound.is_empty() || binding::is_exempt(attributes) {
            return None;
        }
        let rows = binding::versions(attributes.resource, &server.registry.load());
        Some(Round { seen: vec![None; index.bound.len()], index, rows, state: 0, number: 0 })
    }

    /// Lets plugins change the object, those that have not decided on its present state.
    pub(super) async fn mutate(
        &self,
        server: &Arc<crate::Server>,
        attributes: &mut Attributes<'_>,
        round: &mut Round,
    ) -> Result<(), ApiError> {
        let index = round.index.clone();
        let (mut input, mut count) = (None, 0);
        for (at, bound) in index.bound.iter().enumerate() {
            let outdated = round.seen[at].is_some_and(|seen| seen < round.state);
            let due = if round.number == 0 { true } else { outdated };
            if !due || !bound.concerns(attributes, &round.rows, &*server.caches) {
                continue;
            }
            let asked =
                input.get_or_insert_with(|| Arc::new(call::input(attributes, Phase::Mutate, &*server.caches))).clone();
            let key = format!("{MUTATION}/round_{}_index_{count}", round.number);
            let note = Note { policies: self, bound, half: 0, key };
            count += 1;
            if self.mutate_by(&note, attributes, asked).await? {
                round.state += 1;
                input = None;
            }
            round.seen[at] = Some(round.state);
        }
        Ok(())
    }

    /// Whether the plugin changed the object.
    async fn mutate_by(
        &self,
        note: &Note<'_>,
        attributes: &mut Attributes<'_>,
        input: Arc<scaleup_plugins::admission::Input>,
    ) -> Result<bool, ApiError> {
        let decided = match call::ask(note.bound, &self.calls, input).await {
            Ok(decided) => decided,
            Err(failure) => return note.failed(attributes, &failure).map(|()| false),
        };
        note.verdict(attributes, &decided)?;
        let Some(patch) = &decided.answer.patch else {
            note.write(attributes, "allow", json!({"generation": decided.generation, "mutated": false}));
            return Ok(false);
        };
        match patched::apply(&note.bound.key, attributes, patch) {
            Ok(Some(object)) => {
                *attributes.object = object;
                note.write(attributes, "patch", json!({"generation": decided.generation, "mutated": true}));
                Ok(true)
            }
            Ok(None) => {
                note.write(attributes, "allow", json!({"generation": decided.generation, "mutated": false}));
                Ok(false)
            }
            Err(why) => {
                let failure = note.bound.slot.policy.unusable(decided.generation, &why, Instant::now());
                note.failed(attributes, &failure).map(|()| false)
            }
        }
    }

    /// Lets plugins refuse.
    pub(super) async fn validate(
        &self,
        server: &Arc<crate::Server>,
        attributes: &Attributes<'_>,
        round: &Round,
    ) -> Result<(), ApiError> {
        let (mut input, mut count) = (None, 0);
        for bound in &round.index.bound {
            if !bound.concerns(attributes, &round.rows, &*server.caches) {
                continue;
            }
            let asked = input
                .get_or_insert_with(|| Arc::new(call::input(attributes, Phase::Validate, &*server.caches)))
                .clone();
            let note = Note { policies: self, bound, half: 1, key: format!("{VALIDATION}/index_{count}") };
            count += 1;
            match call::ask(bound, &self.calls, asked).await {
                Ok(decided) => {
                    note.verdict(attributes, &decided)?;
                    note.write(attributes, "allow", json!({"generation": decided.generation}));
                }
                Err(failure) => note.failed(attributes, &failure)?,
            }
        }
        Ok(())
    }
}

/// Where it is told what came of a question.
struct Note<'a> {
    policies: &'a Policies,
    bound: &'a Bound,
    /// Position in [`TYPES`].
    half: usize,
    /// Key of the annotation.
    key: String,
}

impl Note<'_> {
    fn write(&self, attributes: &Attributes<'_>, decision: &'static str, mut more: serde_json::Value) {
        let plugin = self.bound.key.to_string();
        more["plugin"] = plugin.as_str().into();
        more["decision"] = decision.into();
        attributes.notes.annotate(self.key.clone(), more.to_string());
        let labels = Labels { plugin, r#type: TYPES[self.half], decision };
        self.policies.decisions.get_or_create(&labels).inc();
    }

    /// Passes warnings on; an error if the plugin denies the write.
    fn verdict(&self, attributes: &Attributes<'_>, decided: &Decided<Answer>) -> Result<(), ApiError> {
        decided.answer.warnings.iter().for_each(|warning| attributes.notes.warn(&printable(warning)));
        let Verdict::Deny(denial) = &decided.answer.verdict else { return Ok(()) };
        self.write(attributes, "deny", json!({"generation": decided.generation}));
        Err(denied(self.bound, attributes, denial))
    }

    /// An error if the failure policy refuses the write.
    fn failed(&self, attributes: &Attributes<'_>, failure: &Failure) -> Result<(), ApiError> {
        let (plugin, class) = (self.bound.key.to_string(), failure.class.name());
        let open = self.bound.slot.failure().on(failure.class) == OnFailure::BuiltIn;
        let decision = if open { "failed_open" } else { "refused" };
        self.write(attributes, decision, json!({"class": class}));
        if !failure.skipped {
            tracing::warn!(plugin, class, %failure, decision, "an admission plugin gave no answer");
        }
        if open {
            return Ok(());
        }
        Err(ApiError::internal(format_args!("failed calling admission plugin {plugin:?}: {class}: {failure}")))
    }
}

/// A terminal may be at the other end.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// As upstream refuses for a webhook.
fn denied(bound: &Bound, attributes: &Attributes<'_>, denial: &Denial) -> ApiError {
    let why =
        format!("admission plugin {:?} denied the request: {}", bound.key.to_string(), printable(&denial.message));
    let cause = |cause: &scaleup_plugins::admission::Cause| Cause {
        reason: printable(&cause.reason),
        message: printable(&cause.message),
        field: printable(&cause.field),
    };
    let mut error = ApiError::forbidden(&attributes.resource.group_resource(), attributes.name, "");
    error.message = why;
    let mut details: Details = error.details.take().map(|details| *details).unwrap_or_default();
    details.causes = denial.causes.iter().map(cause).collect();
    error.details = Some(Box::new(details));
    error
}
