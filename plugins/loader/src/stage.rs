//! Whether a version could be used: what the controllers ask before it gets into any status.

use scaleup_api::plugin::PluginLimits;
use scaleup_plugins::{CompileError, World};
use serde_json::Value;

use crate::convert::limits;
use crate::host::LazyHost;

/// Why a version is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// `Compiled` or `Probed`: the condition that is not met.
    pub condition: &'static str,
    /// The condition's reason.
    pub reason: &'static str,
    /// The condition's message.
    pub message: String,
}

/// Why there is no answer, or which.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The version's fault: no use to try again.
    #[error("{}", .0.message)]
    Rejected(Rejection),
    /// This machine's: try again.
    #[error("{0}")]
    Retry(String),
}

fn compiled(error: CompileError) -> StageError {
    let reason = match &error {
        CompileError::TooLarge { .. } => "TooLarge",
        CompileError::Invalid(_) => "InvalidModule",
        CompileError::WrongWorld { .. } => "WrongWorld",
        CompileError::TooExpensive { .. } => "TooExpensive",
        CompileError::Limits(_) => "LimitsExceeded",
        CompileError::Start(_) => "StartFailed",
        CompileError::Compiler(cause) => return StageError::Retry(format!("{error}: {cause}")),
    };
    StageError::Rejected(Rejection { condition: "Compiled", reason, message: error.to_string() })
}

/// Type-checks and compiles a module, checks the configuration against the schema that it exports, and runs its golden examples.
///
/// # Errors
/// See [`StageError`].
pub async fn stage(
    host: &LazyHost,
    world: World,
    bytes: &[u8],
    config: Option<&Value>,
    asked: Option<&PluginLimits>,
) -> Result<(), StageError> {
    let retry = |error: &dyn std::error::Error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        StageError::Retry(format!("{error}{cause}"))
    };
    let host = host.get().await.map_err(|error| retry(&error))?.clone();
    let limits = limits(world, asked);
    let module = host.compile(world, bytes, &limits).await.map_err(compiled)?;
    let config = config.cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    let probe = tokio::task::spawn_blocking(move || {
        let rejected = |reason, message| Rejection { condition: "Probed", reason, message };
        module.check_config(&config).map_err(|why| rejected("ConfigInvalid", why))?;
        for example in &module.metadata().examples {
            let failed =
                |error| rejected("ExampleFailed", format!("its example {:?} does not hold: {error}", example.name));
            host.probe(&module, example, &limits).map_err(failed)?;
        }
        Ok(())
    });
    probe.await.map_err(|error| retry(&error))?.map_err(StageError::Rejected)
}
