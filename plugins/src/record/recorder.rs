//! Keeps the latest decisions of a sample, bounded in number and in bytes.

use std::collections::VecDeque;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;

use super::{Outcome, Record, redact};
use crate::generation::Generation;
use crate::imports::Read;
use crate::{Case, Digest, Failure};

/// Most records of one plugin in one process.
pub const MAX_RECORDS: usize = 10_000;
/// Most bytes of them.
const MAX_BYTES: usize = 16 << 20;

/// Which decisions are recorded: `spec.recording`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Share of decisions, 1 to 100.
    pub percent: u8,
    /// Latest records that are kept; at most [`MAX_RECORDS`].
    pub records: usize,
    /// Names in lower case of request headers whose values are kept as they are.
    pub plain_headers: Box<[Box<str>]>,
}

/// A decision, not yet in JSON: that is for whoever reads it.
#[derive(Debug)]
struct Kept {
    generation: u64,
    digest: Digest,
    config: Arc<str>,
    time_ms: u64,
    case: Case,
    reads: Vec<Read>,
    answer: Result<Value, Failure>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Inner {
    recording: Option<Arc<Recording>>,
    kept: VecDeque<Kept>,
    bytes: usize,
    /// Number of the next record: all there have ever been are counted.
    next: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    /// 0 for off.
    percent: AtomicU8,
    turn: AtomicU64,
    keys: RandomState,
    inner: Mutex<Inner>,
}

/// Spreads a counter (splitmix64), so that no rhythm of decisions meets one of the sample.
fn spread(turn: u64) -> u64 {
    let mut z = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Recorder {
    /// Whether this decision is one of the sample.
    pub fn wants(&self) -> bool {
        let percent = self.percent.load(Relaxed);
        percent > 0 && spread(self.turn.fetch_add(1, Relaxed)) % 100 < u64::from(percent)
    }

    pub fn set(&self, recording: Option<Recording>) {
        let mut inner = self.inner.lock();
        if inner.recording.as_deref() == recording.as_ref() {
            return;
        }
        self.percent.store(recording.as_ref().map_or(0, |recording| recording.percent.clamp(1, 100)), Relaxed);
        *inner = Inner { recording: recording.map(Arc::new), next: inner.next, ..Inner::default() };
    }

    /// Keeps a decision without personal data.
    pub fn keep<A: Serialize>(
        &self,
        generation: &Generation,
        mut case: Case,
        reads: Vec<Read>,
        result: &Result<A, Failure>,
    ) {
        let Some(recording) = self.inner.lock().recording.clone() else { return };
        redact::input(&mut case, &recording.plain_headers, &self.keys);
        let answer = match result {
            Ok(answer) => match serde_json::to_value(answer) {
                Ok(mut answer) => {
                    redact::answer(&case, &mut answer);
                    Ok(answer)
                }
                Err(_) => return,
            },
            Err(failure) => Err(failure.clone()),
        };
        let read = |(key, value): &Read| key.len() + value.as_ref().map_or(0, |value| value.len());
        let answer_bytes = answer.as_ref().map_or(0, |answer| answer.to_string().len());
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let kept = Kept {
            generation: generation.number(),
            digest: generation.module().digest(),
            config: generation.config().clone(),
            time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            bytes: size_of::<Kept>() + case.bytes() + answer_bytes + reads.iter().map(read).sum::<usize>(),
            case,
            reads,
            answer,
        };
        let mut inner = self.inner.lock();
        inner.bytes += kept.bytes;
        inner.next += 1;
        inner.kept.push_back(kept);
        while inner.kept.len() > recording.records.clamp(1, MAX_RECORDS) || inner.bytes > MAX_BYTES {
            let Some(oldest) = inner.kept.pop_front() else { break };
            inner.bytes -= oldest.bytes;
        }
    }

    /// All that is kept, oldest first.
    pub fn records(&self, plugin: &str) -> Vec<Record> {
        self.inner.lock().kept.iter().filter_map(|kept| kept.record(plugin)).collect()
    }

    /// What is kept from a number on, oldest first and at most so many, each with the number after its own.
    pub fn since(&self, plugin: &str, number: u64, most: usize) -> Vec<(u64, Record)> {
        let inner = self.inner.lock();
        let first = inner.next - inner.kept.len() as u64;
        let skipped = usize::try_from(number.saturating_sub(first)).unwrap_or(usize::MAX);
        let kept = inner.kept.iter().zip(first + 1..).skip(skipped).take(most);
        kept.filter_map(|(kept, after)| Some((after, kept.record(plugin)?))).collect()
    }
}

impl Kept {
    fn record(&self, plugin: &str) -> Option<Record> {
        let value = |value: &Arc<[u8]>| STANDARD.encode(value);
        Some(Record {
            world: self.case.world(),
            plugin: plugin.to_owned(),
            generation: self.generation,
            digest: self.digest.to_string(),
            time_ms: self.time_ms,
            config: serde_json::from_str(&self.config).ok()?,
            input: self.case.json().ok()?,
            state: self.reads.iter().map(|(key, read)| (key.to_string(), read.as_ref().map(value))).collect(),
            outcome: match &self.answer {
                Ok(answer) => Outcome::Answer(answer.clone()),
                Err(failure) => {
                    Outcome::Failure { class: failure.class.name().into(), message: failure.message.to_string() }
                }
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_has_its_share() {
        let recorder = Recorder::default();
        assert!((0..1000).all(|_| !recorder.wants()), "off");
        recorder.set(Some(Recording { percent: 10, records: 10, plain_headers: Box::default() }));
        let share = (0..10_000).filter(|_| recorder.wants()).count();
        assert!((900..1100).contains(&share), "{share}");
        recorder.set(Some(Recording { percent: 100, records: 10, plain_headers: Box::default() }));
        assert!((0..1000).all(|_| recorder.wants()));
        recorder.set(None);
        assert!((0..1000).all(|_| !recorder.wants()));
    }
}
