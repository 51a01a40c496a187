//! The world `scaling`: how many replicas a workload has.

pub use crate::bindings::scaling::scaleup::policy::scaling_types::{Answer, Input, Metric, Sample};

/// Says how many replicas a workload should have.
pub trait Scaler: 'static {
    /// What the plugin's configuration is; [`crate::NoConfig`] for none.
    type Config: serde::de::DeserializeOwned;

    /// Called once per instance, and an instance answers once.
    fn new(config: Self::Config) -> Self;

    /// Called for each round of the autoscaler. Limit by default: 500 million instructions, 2 s.
    fn scale(&self, input: Input) -> Answer;
}

impl Input {
    /// Position of a metric in `metrics`.
    pub fn metric(&self, name: &str) -> Option<u32> {
        self.metrics.iter().position(|metric| metric.name == name).map(|at| at as u32)
    }

    /// Measurements of a metric, oldest first.
    pub fn samples_of(&self, metric: u32) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.metric == metric)
    }

    /// The number in force that is nearest to this one: from `min` to `max`.
    pub fn within(&self, replicas: u32) -> u32 {
        replicas.min(self.max).max(self.min)
    }
}

impl Answer {
    /// So many replicas; `reason` appears in the autoscaler's status.
    pub fn replicas(replicas: u32, reason: impl Into<String>) -> Self {
        Self { replicas: Some(replicas), reason: reason.into() }
    }

    /// What the built-in autoscaler proposes.
    pub fn proposed() -> Self {
        Self { replicas: None, reason: String::new() }
    }
}
