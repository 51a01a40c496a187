//! Golden examples: decisions that a component brings with it, and whether it takes them as it says.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::call::{Question, Route};
use crate::host::unused;
use crate::instance::Instance;
use crate::metadata::Example;
use crate::module::Module;
use crate::routing::Case;
use crate::{Class, Failure, Host, Limits, World, admission, pricing, scaling, scheduling};

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
    /// Runs one example in a fresh instance: what the answer is, in JSON. Blocks. For replay, too.
    ///
    /// # Errors
    /// If the input cannot be read, or there is no answer.
    pub fn answer(&self, module: &Module, config: &str, input: &str, limits: &Limits) -> Result<Value, ExampleError> {
        serde_json::from_str::<Value>(config).map_err(|error| unreadable("config", &error))?;
        let one = One { host: self, module, config, limits };
        match module.world() {
            World::Routing => {
                let case: Case = read("input", input)?;
                one.ask(&Route(&case.input, &Arc::new(case.topology)))
            }
            World::Admission => one.ask(&read::<admission::Input>("input", input)?),
            World::Scheduling => {
                let input: scheduling::Input = read("input", input)?;
                input.check().map_err(|why| ExampleError::Unreadable { part: "input", why })?;
                one.ask(&input)
            }
            World::Scaling => one.ask(&read::<scaling::Input>("input", input)?),
            World::Pricing => one.ask(&read::<pricing::Input>("input", input)?),
        }
    }

    /// Whether an example holds. Blocks.
    ///
    /// # Errors
    /// See [`ExampleError`].
    pub fn probe(&self, module: &Module, example: &Example, limits: &Limits) -> Result<(), ExampleError> {
        let expected: Value = read("expected", &example.expected)?;
        let answer = self.answer(module, &example.config, &example.input, limits)?;
        match difference(&expected, &answer, &mut String::new()) {
            Some(path) => Err(ExampleError::Differs { path, answer }),
            None => Ok(()),
        }
    }
}

struct One<'a> {
    host: &'a Host,
    module: &'a Module,
    config: &'a str,
    limits: &'a Limits,
}

impl One<'_> {
    fn ask<Q: Question<Answer: Serialize>>(&self, question: &Q) -> Result<Value, ExampleError> {
        let _clock = self.host.clock();
        let shared = unused(self.limits, self.config);
        let answer = Instance::start(self.module, &shared, self.limits)
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

/// Where an answer is not what is expected. Keys that are not expected are not compared; an absent key is null.
fn difference(expected: &Value, answer: &Value, path: &mut String) -> Option<String> {
    let length = path.len();
    let mut below = |key: &str, expected: &Value, answer: &Value| {
        path.push('/');
        path.push_str(&key.replace('~', "~0").replace('/', "~1"));
        let found = difference(expected, answer, path);
        path.truncate(length);
        found
    };
    match (expected, answer) {
        (Value::Object(expected), Value::Object(answer)) => {
            expected.iter().find_map(|(key, value)| below(key, value, answer.get(key).unwrap_or(&Value::Null)))
        }
        (Value::Array(expected), Value::Array(answer)) if expected.len() == answer.len() => {
            let mut pairs = expected.iter().zip(answer).enumerate();
            pairs.find_map(|(at, (expected, answer))| below(&at.to_string(), expected, answer))
        }
        _ => (expected != answer).then(|| path.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_found() {
        let check = |expected: Value, answer: Value, found: Option<&str>| {
            assert_eq!(difference(&expected, &answer, &mut String::new()).as_deref(), found, "{expected} {answer}");
        };
        check(json!("default"), json!("default"), None);
        check(json!({"pick": 1}), json!({"pick": 2}), Some("/pick"));
        check(json!({"verdict": "allow"}), json!({"verdict": "allow", "patch": null, "warnings": []}), None);
        check(json!({"patch": null}), json!({}), None);
        check(json!({"a/b": [1, {"c": 2}]}), json!({"a/b": [1, {"c": 3}]}), Some("/a~1b/1/c"));
        check(json!([1]), json!([1, 2]), Some(""));
    }
}
