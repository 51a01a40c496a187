//! Whether a version could be used: what the controllers ask before it gets into any status.

use scaleup_api::plugin::PluginLimits;
use scaleup_plugins::{NotStaged, World, no_config};
use serde_json::Value;

use crate::convert::limits;
use crate::host::LazyHost;

/// Type-checks and compiles a module, checks the configuration against the schema that it exports, and runs its golden examples.
///
/// # Errors
/// See [`NotStaged`].
pub async fn stage(
    host: &LazyHost,
    world: World,
    bytes: &[u8],
    config: Option<&Value>,
    asked: Option<&PluginLimits>,
) -> Result<(), NotStaged> {
    let retry = |error: &dyn std::error::Error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        NotStaged::Retry(format!("{error}{cause}"))
    };
    let host = host.get().await.map_err(|error| retry(&error))?.clone();
    let limits = limits(world, asked);
    let module = host.compile(world, bytes, &limits).await?;
    let config = config.cloned().unwrap_or_else(no_config);
    let probe = tokio::task::spawn_blocking(move || host.rejections(&module, Some(&config), &limits).next());
    probe.await.map_err(|error| retry(&error))?.map_or(Ok(()), |rejection| Err(NotStaged::Rejected(rejection)))
}
