//! One question to one plugin: off the threads that serve, a bounded number at a time, for a bounded time.
//!
//! What a failure means is the caller's to say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use scaleup_plugins::admission::{Answer, Input, Label, MAX_OBJECT_BYTES, Operation, Phase, User};
use scaleup_plugins::{Class, Decided, Failure};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::binding::Bound;
use crate::admission::Attributes;
use crate::cache::Reader;

/// Longest wait for an answer, the wait for a turn included; as upstream's default for webhooks.
const TIMEOUT: Duration = Duration::from_secs(10);

fn json(value: &Value) -> Option<String> {
    value.is_object().then(|| value.to_string())
}

/// Everything that plugins are told about a write.
pub(super) fn input(attributes: &Attributes<'_>, phase: Phase, caches: &dyn Reader) -> Input {
    let (row, user) = (attributes.resource, attributes.user);
    let namespace = match attributes.namespace {
        "" => None,
        name => caches.get("", "namespaces", "", name),
    };
    let labels = namespace.iter().flat_map(|namespace| namespace.labels.iter());
    Input {
        phase,
        operation: super::operation(attributes).0,
        group: row.group.to_string(),
        version: row.version.to_string(),
        kind: row.kind.to_string(),
        resource: row.plural.to_string(),
        subresource: attributes.subresource.unwrap_or_default().to_owned(),
        namespace: attributes.namespace.to_owned(),
        name: attributes.name.to_owned(),
        namespace_labels: labels.map(|(key, value)| Label { key: key.into(), value: value.into() }).collect(),
        tenant: None,
        user: User { name: user.name.clone(), uid: user.uid.clone(), groups: user.groups.clone() },
        dry_run: attributes.dry_run,
        object: json(attributes.object),
        old_object: attributes.old.and_then(json),
        time_ms: u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0),
    }
}

/// The operation, and as rules and metrics spell it.
pub(super) fn operation(attributes: &Attributes<'_>) -> (Operation, &'static str) {
    if attributes.creates() {
        (Operation::Create, "CREATE")
    } else if attributes.deletes() {
        (Operation::Delete, "DELETE")
    } else {
        (Operation::Update, "UPDATE")
    }
}

fn failure(class: Class, message: impl Into<Arc<str>>) -> Failure {
    Failure { class, message: message.into(), skipped: true }
}

/// Asks a plugin. `all` are the turns that all plugins share.
pub(super) async fn ask(bound: &Bound, all: &Arc<Semaphore>, input: Arc<Input>) -> Result<Decided<Answer>, Failure> {
    let bytes = [&input.object, &input.old_object].into_iter().flatten().map(String::len).sum::<usize>();
    if bytes > MAX_OBJECT_BYTES {
        let why =
            format!("the object and the old one have {bytes} bytes, at most {MAX_OBJECT_BYTES} can be decided about");
        return Err(failure(Class::InvalidOutput, why));
    }
    let answer = async {
        // One's own turn first: whoever waits for it must not hold a turn of all.
        let own = bound.turns.clone().acquire_owned().await;
        let shared = all.clone().acquire_owned().await;
        let slot = bound.slot.clone();
        // The turns go along: they are over when the call is, not when nobody waits for it any more.
        tokio::task::spawn_blocking(move || {
            let _turns = (own, shared);
            slot.policy.admit(&input, Instant::now())
        })
        .await
    };
    match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(failure(Class::Trap, "the call did not end; see the server's log")),
        Err(_) => Err(failure(Class::Timeout, format!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}
