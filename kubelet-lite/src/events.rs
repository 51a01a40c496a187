//! Events of the agent (`client-go/tools/record`): core/v1, counted instead of repeated, never in anybody's way.
//!
//! kube's own recorder counts by reason and keeps the first message; the agent reports several messages under one reason
//! (`Failed`, `Unhealthy`), which would be lost. Events are written by one task from a bounded queue: when the API is away
//! or somebody floods, events are dropped, not pods delayed.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;

use crate::clock::{Clock, between};
use crate::pod::status::time;
use crate::pod::view;

/// Events waiting to be written.
const QUEUE: usize = 256;
/// Distinct events remembered for counting.
const REMEMBERED: usize = 1024;
/// An event older than this starts a new count.
const COUNT_WINDOW: Duration = Duration::from_secs(600);
/// Longest message the API takes.
const MAX_MESSAGE: usize = 1024;
/// An object may send this many events at once…
const BURST: f64 = 25.0;
/// …and regains one in this many seconds (upstream's spam filter).
const REFILL_S: f64 = 300.0;

/// Whether something went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `Normal`
    Normal,
    /// `Warning`
    Warning,
}

#[derive(Clone, Debug, PartialEq)]
struct Note {
    about: ObjectReference,
    kind: Kind,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

/// Takes events; cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Note>,
    clock: Clock,
}

impl Recorder {
    /// Starts the writing task, which ends with the last recorder.
    pub fn start(client: kube::Client, node_name: &str, clock: Clock) -> Self {
        let (queue, notes) = mpsc::channel(QUEUE);
        tokio::spawn(write(client, node_name.to_owned(), notes));
        Self { queue, clock }
    }

    /// About a pod, or with `container` about a part of it.
    pub fn pod(
        &self,
        pod: &Pod,
        container: Option<&str>,
        kind: Kind,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: container.map(|c| view::field_path(pod, c)),
        };
        self.send(about, kind, reason, message.into());
    }

    /// About the node.
    pub fn node(&self, node: &Node, kind: Kind, reason: &'static str, message: impl Into<String>) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: node.metadata.name.clone(),
            // As upstream: the node's events name it as its own UID.
            uid: node.metadata.name.clone(),
            ..ObjectReference::default()
        };
        self.send(about, kind, reason, message.into());
    }

    fn send(&self, about: ObjectReference, kind: Kind, reason: &'static str, mut message: String) {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        let note = Note { about, kind, reason, message, at: self.clock.now() };
        if let Err(error) = self.queue.try_send(note) {
            tracing::debug!(%error, "event dropped");
        }
    }
}

/// What makes two notes the same event.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    field: String,
    warning: bool,
    reason: &'static str,
    message: String,
}

impl Key {
    fn of(note: &Note) -> Self {
        Self {
            uid: note.about.uid.clone().unwrap_or_default(),
            field: note.about.field_path.clone().unwrap_or_default(),
            warning: note.kind == Kind::Warning,
            reason: note.reason,
            message: note.message.clone(),
        }
    }
}

struct Seen {
    name: String,
    count: i32,
    last: Timestamp,
}

/// Counts repetitions and holds back floods.
#[derive(Default)]
struct Correlator {
    seen: HashMap<Key, Seen>,
    order: VecDeque<Key>,
    tokens: HashMap<String, (f64, Timestamp)>,
}

/// What to do with a note.
#[derive(Debug, PartialEq)]
enum Verdict {
    Create { name: String },
    Count { name: String, count: i32 },
    Drop,
}

impl Correlator {
    fn judge(&mut self, note: &Note) -> Verdict {
        if !self.admit(note) {
            return Verdict::Drop;
        }
        let key = Key::of(note);
        if let Some(seen) = self.seen.get_mut(&key)
            && between(seen.last, note.at) < COUNT_WINDOW
        {
            seen.count = seen.count.saturating_add(1);
            seen.last = note.at;
            return Verdict::Count { name: seen.name.clone(), count: seen.count };
        }
        let name = event_name(note);
        let fresh = Seen { name: name.clone(), count: 1, last: note.at };
        if self.seen.insert(key.clone(), fresh).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.seen.remove(&oldest);
            }
        }
        Verdict::Create { name }
    }

    fn admit(&mut self, note: &Note) -> bool {
        if self.tokens.len() > REMEMBERED {
            self.tokens.clear();
        }
        let uid = note.about.uid.clone().unwrap_or_default();
        let (tokens, since) = self.tokens.entry(uid).or_insert((BURST, note.at));
        *tokens = (*tokens + between(*since, note.at).as_secs_f64() / REFILL_S).min(BURST);
        *since = note.at;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }

    /// The event is gone from the API: the next one starts anew.
    fn forget(&mut self, note: &Note) {
        self.seen.remove(&Key::of(note));
    }
}

fn event_name(note: &Note) -> String {
    let nanos = note.at.as_nanosecond().unsigned_abs();
    format!("{}.{nanos:x}{:04x}", note.about.name.as_deref().unwrap_or_default(), rand::random::<u16>())
}

async fn write(client: kube::Client, node_name: String, mut notes: mpsc::Receiver<Note>) {
    let mut correlator = Correlator::default();
    while let Some(note) = notes.recv().await {
        let namespace = note.about.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        let outcome = match correlator.judge(&note) {
            Verdict::Drop => continue,
            Verdict::Create { name } => {
                api.create(&PostParams::default(), &event(&note, name, &node_name)).await.map(drop)
            }
            Verdict::Count { name, count } => {
                let patch = json!({ "count": count, "lastTimestamp": time(note.at) });
                match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => {
                        correlator.forget(&note);
                        api.create(&PostParams::default(), &event(&note, event_name(&note), &node_name)).await.map(drop)
                    }
                    other => other.map(drop),
                }
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, reason = note.reason, "event not written");
        }
    }
}

fn event(note: &Note, name: String, node_name: &str) -> Event {
    let at = time(note.at);
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(note.about.namespace.clone().unwrap_or_else(|| "default".into())),
            ..ObjectMeta::default()
        },
        involved_object: note.about.clone(),
        reason: Some(note.reason.into()),
        message: Some(note.message.clone()),
        type_: Some(if note.kind == Kind::Warning { "Warning" } else { "Normal" }.into()),
        count: Some(1),
        first_timestamp: Some(at.clone()),
        last_timestamp: Some(at),
        source: Some(EventSource { component: Some("kubelet".into()), host: Some(node_name.into()) }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node_name.into()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(message: &str, at: i64) -> Note {
        Note {
            about: ObjectReference { uid: Some("u".into()), name: Some("p".into()), ..ObjectReference::default() },
            kind: Kind::Warning,
            reason: "Failed",
            message: message.into(),
            at: Timestamp::from_second(1_000_000 + at).unwrap(),
        }
    }

    #[test]
    fn repetitions_are_counted_per_message() {
        let mut correlator = Correlator::default();
        let Verdict::Create { name } = correlator.judge(&note("a", 0)) else { panic!("first is created") };
        assert_eq!(correlator.judge(&note("a", 1)), Verdict::Count { name, count: 2 });
        assert!(matches!(correlator.judge(&note("b", 2)), Verdict::Create { .. }), "another message is another event");
        assert!(matches!(correlator.judge(&note("a", 2000)), Verdict::Create { .. }), "old counts end");
    }

    #[test]
    fn floods_are_dropped_and_memory_is_bounded() {
        let mut correlator = Correlator::default();
        let created = (0..100).filter(|i| correlator.judge(&note(&i.to_string(), 0)) != Verdict::Drop).count();
        assert_eq!(created, 25);
        assert!(matches!(correlator.judge(&note("later", 301)), Verdict::Create { .. }));
        assert!(correlator.order.len() <= REMEMBERED && correlator.seen.len() <= REMEMBERED);
    }
}
