//! A plugin's object in a file.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::local;

/// Largest manifest.
const MAX_MANIFEST_BYTES: usize = 2 << 20;

/// A WasmPlugin or a ClusterWasmPlugin.
pub struct Manifest {
    /// The whole of it.
    pub object: Value,
    /// Its kind is ClusterWasmPlugin.
    pub cluster: bool,
    /// `spec`
    pub spec: Value,
}

/// Reads YAML or JSON.
pub fn read(path: &Path) -> Result<Manifest> {
    let text = String::from_utf8(local::read(path, MAX_MANIFEST_BYTES)?).context("the manifest is not UTF-8")?;
    let object: Value = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
    let cluster = match object["kind"].as_str().unwrap_or_default() {
        "WasmPlugin" => false,
        "ClusterWasmPlugin" => true,
        kind => bail!("{}: expected a WasmPlugin or a ClusterWasmPlugin, found {kind:?}", path.display()),
    };
    let spec = object["spec"].clone();
    if !spec.is_object() {
        bail!("{}: the manifest has no spec", path.display());
    }
    Ok(Manifest { object, cluster, spec })
}
