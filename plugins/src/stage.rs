//! Whether a module could be used: what the controllers ask before a version gets into any status, and `scaleup plugin validate` without them.

use serde_json::{Map, Value};

use crate::{CompileError, Host, Limits, Module};

/// What speaks against a module: its own fault, or that of its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// `Compiled` or `Probed`: the condition of a plugin that is not met.
    pub condition: &'static str,
    /// The condition's reason.
    pub reason: &'static str,
    /// The condition's message.
    pub message: String,
}

/// Why a version is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStaged {
    /// No use to try again.
    #[error("{}", .0.message)]
    Rejected(Rejection),
    /// This machine's fault: try again.
    #[error("{0}")]
    Retry(String),
}

impl From<CompileError> for NotStaged {
    fn from(error: CompileError) -> Self {
        let reason = match &error {
            CompileError::TooLarge { .. } => "TooLarge",
            CompileError::Invalid(_) => "InvalidModule",
            CompileError::WrongWorld { .. } => "WrongWorld",
            CompileError::TooExpensive { .. } => "TooExpensive",
            CompileError::Limits(_) => "LimitsExceeded",
            CompileError::Start(_) => "StartFailed",
            CompileError::Compiler(cause) => return Self::Retry(format!("{error}: {cause}")),
        };
        Self::Rejected(Rejection { condition: "Compiled", reason, message: error.to_string() })
    }
}

/// The configuration of a plugin whose specification has none.
pub fn no_config() -> Value {
    Value::Object(Map::new())
}

impl Host {
    /// What speaks against a module that compiles: the configuration does not satisfy the schema that it exports (not looked at if `None`), or it
    /// does not answer one of its golden examples as it says. Each is found when it is asked for. Blocks.
    pub fn rejections<'a>(
        &'a self,
        module: &'a Module,
        config: Option<&'a Value>,
        limits: &'a Limits,
    ) -> impl Iterator<Item = Rejection> + 'a {
        let rejected = |reason, message| Rejection { condition: "Probed", reason, message };
        let config = config
            .into_iter()
            .filter_map(move |config| module.check_config(config).err().map(|why| rejected("ConfigInvalid", why)));
        let examples = module.metadata().examples.iter().filter_map(move |example| {
            let failed = self.probe(module, example, limits).err()?;
            let name = &example.name;
            Some(rejected("ExampleFailed", format!("its example {name:?} does not hold: {failed}")))
        });
        config.chain(examples)
    }
}
