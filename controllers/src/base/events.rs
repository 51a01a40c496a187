//! Events about objects, as upstream's controllers write them: `core/v1` with source, count and first/last timestamps,
//! so that every kubectl shows age, count and origin; repeated ones are counted, floods are cut off.
//!
//! kube-runtime's recorder is not used because it counts events of different messages as one.
//! Publishing never waits: events are advice, and dropping one is better than holding up a controller.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::calls::{self, Error};

/// Events waiting to be written; more are dropped.
const QUEUE_LEN: usize = 1_000;
/// Events remembered for counting repetitions (upstream's `maxLruCacheEntries`).
const MAX_REMEMBERED: usize = 4_096;
/// An event that recurs after this time is a new one.
const REMEMBER_FOR: Duration = Duration::from_secs(600);
/// Events that one source may write about one object at once (upstream's `defaultSpamBurst`).
const SPAM_BURST: f64 = 25.0;
/// And then one in five minutes (upstream's `defaultSpamQPS`).
const SPAM_REFILL_PER_SECOND: f64 = 1.0 / 300.0;
/// Upstream's limit on `message`.
const MAX_MESSAGE_BYTES: usize = 1_024;

/// `type` of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Nothing is wrong.
    Normal,
    /// Something needs attention.
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        }
    }
}

/// One event to write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Note {
    component: &'static str,
    kind: String,
    api_version: String,
    namespace: String,
    name: String,
    uid: String,
    severity: Severity,
    reason: String,
    message: String,
}

/// Writes events for one component (`deployment-controller`). Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    component: &'static str,
    sender: mpsc::Sender<Note>,
}

impl Recorder {
    /// A recorder for another component over the same queue.
    pub fn for_component(&self, component: &'static str) -> Self {
        Self { component, sender: self.sender.clone() }
    }

    /// Notes that something happened to `object`.
    pub fn event<K: Resource<DynamicType = ()>>(&self, object: &K, severity: Severity, reason: &str, message: String) {
        self.event_about(object.object_ref(&()), severity, reason, message);
    }

    /// Notes that something happened to the object that `about` names.
    pub fn event_about(&self, about: ObjectReference, severity: Severity, reason: &str, mut message: String) {
        let mut end = message.len().min(MAX_MESSAGE_BYTES);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        let note = Note {
            component: self.component,
            kind: about.kind.unwrap_or_default(),
            api_version: about.api_version.unwrap_or_default(),
            namespace: about.namespace.unwrap_or_default(),
            name: about.name.unwrap_or_default(),
            uid: about.uid.unwrap_or_default(),
            severity,
            reason: reason.to_owned(),
            message,
        };
        if self.sender.try_send(note).is_err() {
            debug!(reason, "event dropped: too many are waiting");
        }
    }
}

/// What is remembered of an event that was written.
#[derive(Clone, Debug)]
struct Written {
    name: String,
    count: i32,
    last: Instant,
}

/// What to do with a note.
#[derive(Debug, PartialEq)]
enum Op {
    Create,
    Count { name: String, count: i32 },
    Drop,
}

/// Counts repetitions and cuts off floods. Pure but for the clock handed in.
#[derive(Default)]
struct Correlator {
    written: HashMap<Note, Written>,
    /// (component, UID) → tokens left, as of.
    buckets: HashMap<(&'static str, String), (f64, Instant)>,
}

impl Correlator {
    fn decide(&mut self, note: &Note, now: Instant) -> Op {
        if self.written.len() >= MAX_REMEMBERED {
            self.written.retain(|_, w| now - w.last < REMEMBER_FOR);
            if self.written.len() >= MAX_REMEMBERED {
                self.written.clear();
            }
        }
        if self.buckets.len() >= MAX_REMEMBERED {
            self.buckets.clear();
        }
        let bucket = self.buckets.entry((note.component, note.uid.clone())).or_insert((SPAM_BURST, now));
        let refilled = (bucket.0 + (now - bucket.1).as_secs_f64() * SPAM_REFILL_PER_SECOND).min(SPAM_BURST);
        *bucket = (refilled, now);
        if refilled < 1.0 {
            return Op::Drop;
        }
        bucket.0 -= 1.0;
        match self.written.get(note) {
            Some(w) if now - w.last < REMEMBER_FOR => {
                Op::Count { name: w.name.clone(), count: w.count.saturating_add(1) }
            }
            _ => Op::Create,
        }
    }

    fn remember(&mut self, note: Note, name: String, count: i32, now: Instant) {
        self.written.insert(note, Written { name, count, last: now });
    }
}

/// The queue and the task that empties it.
pub struct Writer {
    client: Client,
    receiver: mpsc::Receiver<Note>,
}

/// A recorder and the writer that must run for it.
pub fn channel(client: Client) -> (Recorder, Writer) {
    let (sender, receiver) = mpsc::channel(QUEUE_LEN);
    (Recorder { component: "controllers", sender }, Writer { client, receiver })
}

impl Writer {
    /// Writes events until `shutdown`. One that cannot be written is dropped.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut correlator = Correlator::default();
        loop {
            let note = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                note = self.receiver.recv() => match note {
                    Some(note) => note,
                    None => return,
                },
            };
            if let Err(e) = self.write(&mut correlator, note).await {
                debug!(error = %e, "event not written");
            }
        }
    }

    async fn write(&self, correlator: &mut Correlator, note: Note) -> Result<(), Error> {
        let now = Instant::now();
        let namespace = if note.namespace.is_empty() { "default" } else { &note.namespace };
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        match correlator.decide(&note, now) {
            Op::Drop => Ok(()),
            Op::Count { name, count } => {
                let patch = json!({"count": count, "lastTimestamp": scaleup_api::time::now()});
                match calls::merge("patch Event", &api, &name, &patch).await {
                    Err(e) if e.is_not_found() => self.create(correlator, &api, note, now).await,
                    Err(e) => Err(e),
                    Ok(_) => {
                        correlator.remember(note, name, count, now);
                        Ok(())
                    }
                }
            }
            Op::Create => self.create(correlator, &api, note, now).await,
        }
    }

    async fn create(&self, c: &mut Correlator, api: &Api<Event>, note: Note, now: Instant) -> Result<(), Error> {
        let event = event_of(&note);
        let name = event.metadata.name.clone().unwrap_or_default();
        calls::create("create Event", api, &name, &event).await?;
        c.remember(note, name, 1, now);
        Ok(())
    }
}

fn event_of(note: &Note) -> Event {
    let now = scaleup_api::time::now();
    let nanos = scaleup_api::time::now_micro().0.as_nanosecond();
    let namespace = if note.namespace.is_empty() { "default".to_owned() } else { note.namespace.clone() };
    Event {
        metadata: ObjectMeta {
            // As upstream names them, with a random part because our clock has microseconds only.
            name: Some(super::names::generate(&format!("{}.{nanos:x}", note.name))),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(note.api_version.clone()),
            kind: Some(note.kind.clone()),
            namespace: Some(note.namespace.clone()).filter(|n| !n.is_empty()),
            name: Some(note.name.clone()),
            uid: Some(note.uid.clone()).filter(|u| !u.is_empty()),
            ..ObjectReference::default()
        },
        reason: Some(note.reason.clone()),
        message: Some(note.message.clone()),
        type_: Some(note.severity.as_str().into()),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        source: Some(EventSource { component: Some(note.component.into()), host: None }),
        reporting_component: Some(note.component.into()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(uid: &str, message: &str) -> Note {
        Note {
            component: "replicaset-controller",
            kind: "ReplicaSet".into(),
            api_version: "apps/v1".into(),
            namespace: "web".into(),
            name: "a".into(),
            uid: uid.into(),
            severity: Severity::Normal,
            reason: "SuccessfulCreate".into(),
            message: message.into(),
        }
    }

    #[test]
    fn repetitions_are_counted_and_floods_cut_off() {
        let mut c = Correlator::default();
        let (now, n) = (Instant::now(), note("1", "Created pod: a"));
        assert_eq!(c.decide(&n, now), Op::Create);
        c.remember(n.clone(), "e".into(), 1, now);
        assert_eq!(c.decide(&n, now), Op::Count { name: "e".into(), count: 2 });
        assert_eq!(c.decide(&note("1", "Created pod: b"), now), Op::Create, "another message is another event");
        assert_eq!(c.decide(&n, now + REMEMBER_FOR), Op::Create);
        for _ in 0..30 {
            c.decide(&n, now + REMEMBER_FOR);
        }
        assert_eq!(c.decide(&n, now + REMEMBER_FOR), Op::Drop);
        assert_eq!(c.decide(&note("2", "x"), now), Op::Create, "another object has its own budget");
    }

    #[test]
    fn events_look_like_upstreams() {
        let e = event_of(&note("1", "Created pod: b"));
        assert_eq!(e.metadata.namespace.as_deref(), Some("web"));
        assert!(e.metadata.name.unwrap().starts_with("a."));
        assert_eq!(e.involved_object.kind.as_deref(), Some("ReplicaSet"));
        assert_eq!(e.source.unwrap().component.as_deref(), Some("replicaset-controller"));
        assert_eq!((e.count, e.type_.as_deref()), (Some(1), Some("Normal")));
    }
}
