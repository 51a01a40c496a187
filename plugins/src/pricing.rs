//! Input and answer of the world `pricing`, by value; `wit/pricing.wit` says what the fields mean.

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};

pub use crate::admission::Label;
use crate::check::{at_most, text};

/// Most usages of one call.
pub const MAX_USAGE: usize = 4096;
/// Most charges of an answer.
pub const MAX_CHARGES: usize = 8192;
/// A decimal's `nanos` are less than this.
const NANOS: i32 = 1_000_000_000;

/// `units` + `nanos` / 10⁹; both have the same sign, or are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower, Lift)]
#[component(record)]
#[serde(deny_unknown_fields, default)]
pub struct Decimal {
    pub units: i64,
    pub nanos: i32,
}

impl Decimal {
    /// The number in billionths.
    pub fn as_nanos(self) -> i128 {
        i128::from(self.units) * i128::from(NANOS) + i128::from(self.nanos)
    }

    /// Whether the two parts fit together.
    pub fn is_normal(self) -> bool {
        (1 - NANOS..NANOS).contains(&self.nanos) && i64::from(self.nanos.signum()) * self.units.signum() >= 0
    }
}

/// An amount of something that was used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Usage {
    pub meter: String,
    pub unit: String,
    pub quantity: Decimal,
    pub before: Decimal,
    #[component(name = "start-ms")]
    pub start_ms: u64,
    #[component(name = "end-ms")]
    pub end_ms: u64,
    pub labels: Vec<Label>,
}

/// Everything a decision may depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Input {
    pub tenant: String,
    pub currency: String,
    #[component(name = "period-start-ms")]
    pub period_start_ms: u64,
    #[component(name = "period-end-ms")]
    pub period_end_ms: u64,
    pub usage: Vec<Usage>,
}

/// What something costs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lift)]
#[component(record)]
#[serde(deny_unknown_fields)]
pub struct Charge {
    /// Position in [`Input::usage`].
    pub usage: u32,
    pub amount: Decimal,
    pub description: String,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lift)]
#[component(record)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// In the order of usage.
    pub charges: Vec<Charge>,
}

impl Answer {
    /// Whether this is an answer to a call with so many usages.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, usages: usize) -> Result<(), String> {
        at_most("charges", self.charges.len(), MAX_CHARGES)?;
        let mut last = 0;
        for charge in &self.charges {
            if charge.usage as usize >= usages {
                return Err(format!("charges usage {} of {usages}", charge.usage));
            }
            if charge.usage < last {
                return Err(format!("charges usage {} after {last}", charge.usage));
            }
            last = charge.usage;
            if !charge.amount.is_normal() {
                return Err(format!("the amount {:?} is not a decimal", charge.amount));
            }
            text("a charge's description", &charge.description, 0, 128)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_checked() {
        let check = |charges: &[(u32, i64, i32)], expected: Result<(), &str>| {
            let charge = |(usage, units, nanos): &(u32, i64, i32)| Charge {
                usage: *usage,
                amount: Decimal { units: *units, nanos: *nanos },
                description: String::new(),
            };
            let answer = Answer { charges: charges.iter().map(charge).collect() };
            assert_eq!(answer.check(2), expected.map_err(str::to_owned), "{answer:?}");
        };
        check(&[], Ok(()));
        check(&[(0, 1, 1), (1, -1, -999_999_999), (1, 0, -1)], Ok(()));
        check(&[(2, 1, 0)], Err("charges usage 2 of 2"));
        check(&[(1, 1, 0), (0, 1, 0)], Err("charges usage 0 after 1"));
        check(&[(0, 1, -1)], Err("the amount Decimal { units: 1, nanos: -1 } is not a decimal"));
        check(&[(0, 0, NANOS)], Err("the amount Decimal { units: 0, nanos: 1000000000 } is not a decimal"));
    }
}
