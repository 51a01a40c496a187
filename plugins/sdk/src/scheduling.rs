//! The world `scheduling`: which nodes a pod may go to, and how good they are.

pub use crate::bindings::scheduling::scaleup::policy::scheduling_types::{Answer, Input, Label, Node, Pod};

/// Best score.
pub const MAX_SCORE: i32 = 100;

/// Filters and scores the nodes for a pod.
pub trait Placer: 'static {
    /// What the plugin's configuration is; [`crate::NoConfig`] for none.
    type Config: serde::de::DeserializeOwned;

    /// Called once per instance. What it keeps besides the configuration is a cache: an instance may be thrown away at any time.
    fn new(config: Self::Config) -> Self;

    /// Called for each pod that the plugin is bound to. Time limit by default: 50 ms.
    fn place(&self, input: Input) -> Answer;
}

impl Input {
    /// Position of an extended resource in `resources`.
    pub fn resource(&self, name: &str) -> Option<usize> {
        self.resources.iter().position(|resource| resource == name)
    }

    /// What a node offers of an extended resource, and how much of it is requested there already.
    pub fn extended(&self, node: usize, resource: usize) -> (i64, i64) {
        let at = node * self.resources.len() + resource;
        let of = |table: &[i64]| table.get(at).copied().unwrap_or(0);
        (of(&self.offered), of(&self.used))
    }

    /// Position of a label that the binding selects in `label_keys`.
    pub fn label_key(&self, key: &str) -> Option<usize> {
        self.label_keys.iter().position(|label| label == key)
    }

    /// Value of a node's label; empty if it has none.
    pub fn label(&self, node: usize, key: usize) -> &str {
        let value = self.labels.get(node * self.label_keys.len() + key).copied().unwrap_or(0);
        self.label_values.get(value as usize).map_or("", String::as_str)
    }
}

impl Answer {
    /// From a score (0 to 100, cut at both ends) or the reason for a rejection of each node, in order. At most 16 different reasons.
    pub fn of<'a>(verdicts: impl IntoIterator<Item = Result<i32, &'a str>>) -> Self {
        let mut reasons: Vec<String> = Vec::new();
        let mut number = |reason: &str| {
            let known = reasons.iter().position(|known| known == reason);
            let at = known.unwrap_or_else(|| {
                reasons.push(reason.to_owned());
                reasons.len() - 1
            });
            -1 - at as i32
        };
        let verdict = |verdict: Result<i32, &str>| match verdict {
            Ok(score) => score.clamp(0, MAX_SCORE),
            Err(reason) => number(reason),
        };
        let verdicts = verdicts.into_iter().map(verdict).collect();
        Self { verdicts, reasons }
    }
}
