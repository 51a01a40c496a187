//! What a component says of itself.

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift};

use crate::check::{at_most, text};

/// Longest schema.
pub const MAX_SCHEMA_BYTES: usize = 64 << 10;
/// Most examples.
pub const MAX_EXAMPLES: usize = 64;
/// Most bytes of all examples.
pub const MAX_EXAMPLES_BYTES: usize = 1 << 20;

/// A decision and what is expected of it; all but the name are JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lift)]
#[component(record)]
#[serde(deny_unknown_fields)]
pub struct Example {
    pub name: String,
    pub config: String,
    pub input: String,
    pub expected: String,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// JSON Schema of the configuration; empty if the component has none.
    pub config_schema: String,
    /// Golden examples.
    pub examples: Vec<Example>,
}

impl Metadata {
    /// Whether it keeps the bounds.
    pub(crate) fn check(&self) -> Result<(), String> {
        text("the configuration's schema", &self.config_schema, 0, MAX_SCHEMA_BYTES)?;
        at_most("examples", self.examples.len(), MAX_EXAMPLES)?;
        self.examples.iter().try_for_each(|example| text("an example's name", &example.name, 1, 63))?;
        let bytes = |example: &Example| example.config.len() + example.input.len() + example.expected.len();
        at_most("bytes of examples", self.examples.iter().map(bytes).sum(), MAX_EXAMPLES_BYTES)
    }
}
