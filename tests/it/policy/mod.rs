//! Policies that decide about writes and pods, as their users see them: real kubectl against components written as WebAssembly text.

mod admission;
mod scheduling;

use anyhow::{Context, Result};
use libtest_mimic::Trial;
use scaleup_tests::kubectl::Kubectl;
use serde_json::Value;

use crate::Cx;

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    [admission::tests(cx), scheduling::tests(cx)].into_iter().flatten().collect()
}

/// Applies a plugin and waits until it decides.
async fn activate(kubectl: &Kubectl, plugin: &Value) -> Result<()> {
    kubectl.apply(&plugin.to_string()).await?;
    let text = |path: &str| plugin.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let (kind, name) = (text("/kind").to_lowercase(), text("/metadata/name"));
    let place = match text("/metadata/namespace") {
        "" => String::new(),
        namespace => format!("-n {namespace} "),
    };
    let waited = kubectl.ok(&format!("{place}wait --for=condition=Active --timeout=60s {kind}/{name}")).await;
    if waited.is_err() {
        let status = kubectl.ok(&format!("{place}get {kind}/{name} -o jsonpath={{.status}}")).await;
        waited.with_context(|| format!("{kind} {name}: {}", status.unwrap_or_default()))?;
    }
    Ok(())
}
