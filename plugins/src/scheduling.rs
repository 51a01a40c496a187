//! Input and answer of the world `scheduling`, by value; `wit/scheduling.wit` says what the fields mean.

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};

pub use crate::admission::Label;
use crate::check::{at_most, text};

/// Most nodes of one call.
pub const MAX_NODES: usize = 5000;
/// Most extended resources.
pub const MAX_RESOURCES: usize = 16;
/// Most selected labels.
pub const MAX_LABEL_KEYS: usize = 16;
/// Most reasons of an answer.
pub const MAX_REASONS: usize = 16;
/// Best score.
pub const MAX_SCORE: i32 = 100;

/// The pod that needs a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub labels: Vec<Label>,
    pub priority: i32,
    #[component(name = "milli-cpu")]
    pub milli_cpu: i64,
    #[component(name = "memory-bytes")]
    pub memory_bytes: i64,
    #[component(name = "ephemeral-bytes")]
    pub ephemeral_bytes: i64,
    /// A column for each of [`Input::resources`].
    pub resources: Vec<i64>,
    pub images: Vec<String>,
}

/// A node that the built-in filters accept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Node {
    #[component(name = "milli-cpu")]
    pub milli_cpu: i64,
    #[component(name = "milli-cpu-used")]
    pub milli_cpu_used: i64,
    #[component(name = "memory-bytes")]
    pub memory_bytes: i64,
    #[component(name = "memory-bytes-used")]
    pub memory_bytes_used: i64,
    #[component(name = "ephemeral-bytes")]
    pub ephemeral_bytes: i64,
    #[component(name = "ephemeral-bytes-used")]
    pub ephemeral_bytes_used: i64,
    pub pods: u32,
    #[component(name = "pods-used")]
    pub pods_used: u32,
    #[component(name = "images-present")]
    pub images_present: u32,
}

/// Everything a decision may depend on. Tables are in row-major order, a row for each node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Input {
    pub pod: Pod,
    /// At most [`MAX_NODES`].
    pub nodes: Vec<Node>,
    pub resources: Vec<String>,
    pub offered: Vec<i64>,
    pub used: Vec<i64>,
    #[component(name = "label-keys")]
    pub label_keys: Vec<String>,
    /// The first one is empty.
    #[component(name = "label-values")]
    pub label_values: Vec<String>,
    pub labels: Vec<u32>,
    pub random: u64,
    /// Milliseconds since 1970-01-01 UTC.
    #[component(name = "time-ms")]
    pub time_ms: u64,
}

impl Input {
    /// Whether the tables have the sizes that they must have.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        let (nodes, resources, keys) = (self.nodes.len(), self.resources.len(), self.label_keys.len());
        at_most("nodes", nodes, MAX_NODES)?;
        at_most("resources", resources, MAX_RESOURCES)?;
        at_most("label keys", keys, MAX_LABEL_KEYS)?;
        let sizes = [
            ("pod.resources", self.pod.resources.len(), resources),
            ("offered", self.offered.len(), nodes * resources),
            ("used", self.used.len(), nodes * resources),
            ("labels", self.labels.len(), nodes * keys),
        ];
        if let Some((name, found, wanted)) = sizes.iter().find(|(_, found, wanted)| found != wanted) {
            return Err(format!("{name} has {found} entries instead of {wanted}"));
        }
        match self.labels.iter().find(|label| **label as usize >= self.label_values.len()) {
            Some(label) => {
                Err(format!("labels has the entry {label}, and there are {} values", self.label_values.len()))
            }
            None => Ok(()),
        }
    }
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lift)]
#[component(record)]
#[serde(deny_unknown_fields, default)]
pub struct Answer {
    /// For each node 0 to [`MAX_SCORE`], or -1 for the first reason, -2 for the second and so on.
    pub verdicts: Vec<i32>,
    pub reasons: Vec<String>,
}

impl Answer {
    /// Whether this is an answer to a call with so many nodes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, nodes: usize) -> Result<(), String> {
        if self.verdicts.len() != nodes {
            return Err(format!("{} verdicts for {nodes} nodes", self.verdicts.len()));
        }
        at_most("reasons", self.reasons.len(), MAX_REASONS)?;
        self.reasons.iter().try_for_each(|reason| text("a reason", reason, 1, 128))?;
        let least = -(self.reasons.len() as i32);
        match self.verdicts.iter().find(|verdict| !(least..=MAX_SCORE).contains(verdict)) {
            Some(verdict) => Err(format!("verdict {verdict} is not between {least} and {MAX_SCORE}")),
            None => Ok(()),
        }
    }

    /// Why the node at this position is rejected; `None` if it is not.
    pub fn rejection(&self, node: usize) -> Option<&str> {
        let verdict = *self.verdicts.get(node)?;
        let reason = usize::try_from(-1 - i64::from(verdict)).ok()?;
        self.reasons.get(reason).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_checked() {
        let check = |verdicts: &[i32], reasons: &[&str], expected: Result<(), &str>| {
            let reasons = reasons.iter().map(|reason| (*reason).to_owned()).collect();
            let answer = Answer { verdicts: verdicts.to_vec(), reasons };
            assert_eq!(answer.check(2), expected.map_err(str::to_owned), "{answer:?}");
        };
        check(&[0, 100], &[], Ok(()));
        check(&[-1, -2], &["a", "b"], Ok(()));
        check(&[0], &[], Err("1 verdicts for 2 nodes"));
        check(&[0, 101], &[], Err("verdict 101 is not between 0 and 100"));
        check(&[0, -2], &["a"], Err("verdict -2 is not between -1 and 100"));
        check(&[0, i32::MIN], &["a"], Err("verdict -2147483648 is not between -1 and 100"));
        check(&[0, 0], &[""], Err("a reason has 0 bytes, not 1 to 128"));
        let answer = Answer { verdicts: vec![-2, 5], reasons: vec!["a".into(), "b".into()] };
        assert_eq!((answer.rejection(0), answer.rejection(1), answer.rejection(2)), (Some("b"), None, None));
    }

    #[test]
    fn tables_have_a_row_for_each_node() {
        let mut input = Input {
            nodes: vec![Node::default(); 2],
            label_keys: vec!["zone".into()],
            label_values: vec![String::new(), "a".into()],
            labels: vec![0, 1],
            ..Input::default()
        };
        assert_eq!(input.check(), Ok(()));
        input.labels[0] = 2;
        assert_eq!(input.check(), Err("labels has the entry 2, and there are 2 values".into()));
        input.labels.pop();
        assert_eq!(input.check(), Err("labels has 1 entries instead of 2".into()));
    }
}
