//! The world `pricing`: what usage costs.

pub use crate::bindings::pricing::scaleup::policy::pricing_types::{Answer, Charge, Decimal, Input, Label, Usage};

/// Units of `nanos` in one unit.
const NANOS: i128 = 1_000_000_000;

/// Says what usage costs.
pub trait Pricer: 'static {
    /// What the plugin's configuration is; [`crate::NoConfig`] for none.
    type Config: serde::de::DeserializeOwned;

    /// Called once per instance, and an instance answers once.
    fn new(config: Self::Config) -> Self;

    /// Called for each batch of usage. Limit by default: 500 million instructions, 2 s.
    fn price(&self, input: Input) -> Answer;
}

impl Decimal {
    /// In billionths, exact.
    pub fn nanos(self) -> i128 {
        i128::from(self.units) * NANOS + i128::from(self.nanos)
    }

    /// From billionths; `None` if it is too large.
    pub fn from_nanos(nanos: i128) -> Option<Self> {
        let (units, rest) = (nanos / NANOS, nanos % NANOS);
        Some(Self { units: units.try_into().ok()?, nanos: rest.try_into().ok()? })
    }

    /// The product, with its digits below a billionth cut off; `None` if it is too large.
    pub fn times(self, other: Self) -> Option<Self> {
        Self::from_nanos(self.nanos().checked_mul(other.nanos())? / NANOS)
    }
}

impl Usage {
    /// Value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|label| label.key == key).map(|label| label.value.as_str())
    }
}
