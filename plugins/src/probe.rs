//! Golden examples: decisions that a component brings with it, and whether it takes them as it says.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::call::{Question, Route};
use crate::difference::differences;
use crate::host::alone;
use crate::imports::{Shared, State};
use crate::instance::Instance;
use crate::metadata::Example;
use crate::module::Module;
use crate::{Case, Class, Failure, Host, Limits};

/// Why an example does not hold.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ExampleError {
    /// Its input, configuration or expectation is not what it should be.
    #[error("its {part} cannot be read: {why}")]
    Unreadable {
        /// `input`, `config` or `expected`.
        part: &'static str,
        /// Why.
        why: String,
    },
    /// There is no answer.
    #[error("{0}")]
    Failed(Failure),
    /// There is another answer.
    #[error("it answers {answer}, which differs from what is expected at {path}")]
    Differs {
        /// JSON pointer (RFC 6901) of the first difference; empty for the whole.
        path: String,
        /// The answer.
        answer: Value,
    },
}

impl Host {
    /// Runs one example in a fresh instance: what the answer is, in JSON. Blocks.
    ///
    /// # Errors
    /// If the input cannot be read, or there is no answer.
    pub fn answer(&self, module: &Module, config: &str, input: &str, limits: &Limits) -> Result<Value, ExampleError> {
        let case = Case::read(module.world(), input).map_err(|why| ExampleError::Unreadable { part: "input", why })?;
        self.answer_to(module, config, &case, State::new(limits), limits)
    }

    /// The answer to a case in a fresh instance with this state, in JSON. Blocks. For replay, too.
    ///
    /// # Errors
    /// If the configuration is no JSON, or there is no answer.
    pub fn answer_to(
        &self,
        module: &Module,
        config: &str,
        case: &Case,
        state: State,
        limits: &Limits,
    ) -> Result<Value, ExampleError> {
        serde_json::from_str::<Value>(config).map_err(|error| unreadable("config", &error))?;
        let one = One { host: self, module, shared: alone(config, state), limits };
        match case {
            Case::Routing(input, topology) => one.ask(&Route(input, topology)),
            Case::Admission(input) => one.ask(&**input),
            Case::Scheduling(input) => one.ask(&**input),
            Case::Scaling(input) => one.ask(&**input),
            Case::Pricing(input) => one.ask(&**input),
        }
    }

    /// Whether an example holds. Blocks.
    ///
    /// # Errors
    /// See [`ExampleError`].
    pub fn probe(&self, module: &Module, example: &Example, limits: &Limits) -> Result<(), ExampleError> {
        let expected: Value = read("expected", &example.expected)?;
        let answer = self.answer(module, &example.config, &example.input, limits)?;
        match differences(&expected, &answer).into_iter().next() {
            Some(first) => Err(ExampleError::Differs { path: first.path, answer }),
            None => Ok(()),
        }
    }
}

struct One<'a> {
    host: &'a Host,
    module: &'a Module,
    shared: Arc<Shared>,
    limits: &'a Limits,
}

impl One<'_> {
    fn ask<Q: Question>(&self, question: &Q) -> Result<Value, ExampleError> {
        let _clock = self.host.clock();
        let answer = Instance::start(self.module, &self.shared, self.limits)
            .and_then(|mut instance| instance.ask(question, self.limits))
            .map_err(ExampleError::Failed)?;
        let unspeakable = |error: serde_json::Error| Failure::new(Class::InvalidOutput, error.to_string());
        serde_json::to_value(&answer).map_err(|error| ExampleError::Failed(unspeakable(error)))
    }
}

fn unreadable(part: &'static str, error: &serde_json::Error) -> ExampleError {
    ExampleError::Unreadable { part, why: error.to_string() }
}

fn read<T: DeserializeOwned>(part: &'static str, text: &str) -> Result<T, ExampleError> {
    serde_json::from_str(text).map_err(|error| unreadable(part, &error))
}
