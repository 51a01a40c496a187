//! Recorded decisions: a bounded sample of what was asked and answered, in a form that can be asked again.
//!
//! A record is one JSON object, written on a line of its own. Personal data is taken out before anything is kept (see [`redact`]); a decision that
//! is not sampled costs one relaxed load.

mod recorder;
mod redact;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::imports::State;
use crate::{Case, ExampleError, Host, Limits, Module, World};
pub(crate) use recorder::Recorder;
pub use recorder::{MAX_RECORDS, Recording};

/// A decision that was taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    pub world: World,
    /// `namespace/name`
    pub plugin: String,
    /// Which version decided.
    pub generation: u64,
    /// SHA-256 of its module, in hexadecimal.
    pub digest: String,
    /// When; milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// Its configuration.
    pub config: Value,
    /// The world's input, as golden examples have it.
    pub input: Value,
    /// What the call read of the state: base64 by key, null for what was not there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub state: BTreeMap<String, Option<String>>,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a decision ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The world's answer.
    Answer(Value),
    /// There was none.
    Failure {
        /// `trap`, `timeout` or `invalid_output`
        class: String,
        /// For people.
        message: String,
    },
}

/// Why a record cannot be taken again.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RecordError {
    /// It is one of another world than the module.
    #[error("it is one of the world {0}")]
    World(World),
    /// Its input, configuration or state is not what it should be.
    #[error("its {part} cannot be read: {why}")]
    Unreadable {
        /// `input`, `config` or `state`.
        part: &'static str,
        /// Why.
        why: String,
    },
}

impl Record {
    /// On one line.
    ///
    /// # Errors
    /// Never for records of a [`crate::Slot`].
    pub fn line(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    fn state(&self) -> Result<State, RecordError> {
        let unreadable = |why: String| RecordError::Unreadable { part: "state", why };
        let state = State::new(&Limits::MOST);
        for (key, value) in &self.state {
            let Some(value) = value else { continue };
            let value = STANDARD.decode(value).map_err(|error| unreadable(format!("{key:?}: {error}")))?;
            state.set(key, value).map_err(|refusal| unreadable(format!("{key:?}: {refusal:?}")))?;
        }
        Ok(state)
    }
}

impl Host {
    /// How a component decides what is recorded, with this configuration in place of the recorded one. Blocks.
    ///
    /// # Errors
    /// If the record or the configuration cannot be used.
    pub fn replay(
        &self,
        module: &Module,
        record: &Record,
        config: Option<&str>,
        limits: &Limits,
    ) -> Result<Outcome, RecordError> {
        if record.world != module.world() {
            return Err(RecordError::World(record.world));
        }
        let unreadable = |part, why| RecordError::Unreadable { part, why };
        let case = Case::read(record.world, &record.input.to_string()).map_err(|why| unreadable("input", why))?;
        let own = record.config.to_string();
        let answer = self.answer_to(module, config.unwrap_or(&own), &case, record.state()?, limits);
        match answer {
            Ok(mut answer) => {
                redact::answer(&case, &mut answer);
                Ok(Outcome::Answer(answer))
            }
            Err(ExampleError::Failed(failure)) => {
                Ok(Outcome::Failure { class: failure.class.name().into(), message: failure.message.to_string() })
            }
            Err(other) => Err(unreadable("config", other.to_string())),
        }
    }
}

impl Outcome {
    /// What counts when two are compared: the answer, or the class of the failure.
    pub fn compared(&self) -> Value {
        match self {
            Self::Answer(answer) => answer.clone(),
            Self::Failure { class, .. } => serde_json::json!({ "failure": class }),
        }
    }
}
