//! Conditions as the Gateway API writes them. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::references::Fault;

/// Longest message, in bytes (the API allows 32,768).
const MAX_MESSAGE_BYTES: usize = 2048;

/// Makes conditions of one object: those that do not change keep the time of their last transition.
pub(super) struct Conditions<'a> {
    current: &'a [Condition],
    generation: i64,
    now: Timestamp,
    made: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    pub fn new(current: &'a [Condition], generation: i64, now: Timestamp) -> Self {
        Self { current, generation, now, made: Vec::new() }
    }

    /// What the condition says now.
    pub fn current(&self, type_: &str) -> Option<&'a Condition> {
        self.current.iter().find(|condition| condition.type_ == type_)
    }

    /// The version of the object's spec that they tell of.
    pub fn generation(&self) -> i64 {
        self.generation
    }

    /// Adds one.
    pub fn add(&mut self, type_: &str, status: bool, reason: &str, message: &str) {
        let status = if status { "True" } else { "False" };
        let known = self.current(type_).filter(|condition| condition.status == status);
        let mut end = message.len().min(MAX_MESSAGE_BYTES);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        self.made.push(Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message[..end].to_owned(),
            observed_generation: Some(self.generation),
            last_transition_time: known.map_or(Time(self.now), |known| known.last_transition_time.clone()),
        });
    }

    /// True with `reason`, or false with what is wrong.
    pub fn unless(&mut self, type_: &str, reason: &str, fault: Option<&Fault>) {
        match fault {
            Some(fault) => self.add(type_, false, fault.reason, &fault.message),
            None => self.add(type_, true, reason, ""),
        }
    }

    /// Those that were made. Conditions of other types stay.
    pub fn finish(self, ours: &[&str]) -> Vec<Condition> {
        let mut all = self.made;
        all.extend(self.current.iter().filter(|condition| !ours.contains(&&*condition.type_)).cloned());
        all
    }
}
