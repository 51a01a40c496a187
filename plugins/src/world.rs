//! The five worlds, as a value.

use serde::{Deserialize, Serialize};

/// Version of the WIT package.
pub const VERSION: &str = "0.1.0";

/// Which decision a component takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum World {
    /// Which endpoint gets a request.
    Routing,
    /// Whether a write to the API goes through, and how.
    Admission,
    /// Which nodes a pod may go to, and how good they are.
    Scheduling,
    /// How many replicas a workload has.
    Scaling,
    /// What usage costs.
    Pricing,
}

/// How calls are limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// One instance per thread answers again and again and is stopped when its time is up.
    Warm,
    /// Each call has a fresh instance, whose instructions are counted; time is limited besides.
    Fresh,
}

impl World {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Routing, Self::Admission, Self::Scheduling, Self::Scaling, Self::Pricing];

    /// As in WIT and in `spec.world`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Routing => "routing",
            Self::Admission => "admission",
            Self::Scheduling => "scheduling",
            Self::Scaling => "scaling",
            Self::Pricing => "pricing",
        }
    }

    /// The interface with the decision, that a component of this world exports.
    pub const fn interface(self) -> &'static str {
        match self {
            Self::Routing => "router",
            Self::Admission => "admitter",
            Self::Scheduling => "placer",
            Self::Scaling => "scaler",
            Self::Pricing => "pricer",
        }
    }

    /// How its calls are limited.
    pub const fn mode(self) -> Mode {
        match self {
            Self::Routing | Self::Scheduling => Mode::Warm,
            Self::Admission | Self::Scaling | Self::Pricing => Mode::Fresh,
        }
    }
}

impl std::fmt::Display for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for World {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|world| world.name() == text);
        found.ok_or_else(|| format!("unknown world {text:?}; one of: routing, admission, scheduling, scaling, pricing"))
    }
}
