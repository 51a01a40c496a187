//! Input and answer of the world `scaling`, by value; `wit/scaling.wit` says what the fields mean.

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};

use crate::check::text;

/// Most metrics of one call.
pub const MAX_METRICS: usize = 32;
/// Most samples of one call.
pub const MAX_SAMPLES: usize = 4096;

/// A metric of the workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(deny_unknown_fields, default)]
pub struct Metric {
    pub name: String,
    pub unit: String,
    pub target: Option<f64>,
}

/// A measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Sample {
    /// Position in [`Input::metrics`].
    pub metric: u32,
    #[component(name = "time-ms")]
    pub time_ms: u64,
    pub value: f64,
}

/// Everything a decision may depend on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Input {
    pub namespace: String,
    pub name: String,
    pub kind: String,
    pub replicas: u32,
    pub ready: u32,
    pub min: u32,
    pub max: u32,
    #[component(name = "changed-ms")]
    pub changed_ms: Option<u64>,
    pub proposed: u32,
    pub metrics: Vec<Metric>,
    /// Oldest first.
    pub samples: Vec<Sample>,
    #[component(name = "time-ms")]
    pub time_ms: u64,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lift)]
#[component(record)]
#[serde(deny_unknown_fields, default)]
pub struct Answer {
    /// `None`: as proposed.
    pub replicas: Option<u32>,
    pub reason: String,
}

impl Answer {
    /// Whether this is an answer to that input.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, input: &Input) -> Result<(), String> {
        text("the reason", &self.reason, 0, 256)?;
        match self.replicas {
            Some(replicas) if !(input.min..=input.max).contains(&replicas) => {
                Err(format!("{replicas} replicas are not between {} and {}", input.min, input.max))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_checked() {
        let check = |replicas, reason: &str, expected: Result<(), &str>| {
            let input = Input { min: 1, max: 3, ..Input::default() };
            let answer = Answer { replicas, reason: reason.into() };
            assert_eq!(answer.check(&input), expected.map_err(str::to_owned), "{answer:?}");
        };
        check(None, "", Ok(()));
        check(Some(3), "busy", Ok(()));
        check(Some(0), "", Err("0 replicas are not between 1 and 3"));
        check(Some(4), "", Err("4 replicas are not between 1 and 3"));
        check(None, &"x".repeat(257), Err("the reason has 257 bytes, not 0 to 256"));
    }
}
