//! Policies that decide about writes and pods, as their users see them: real kubectl against components written as WebAssembly text.

mod admission;
mod scheduling;

use anyhow::Result;
use libtest_mimic::Trial;
use scaleup_tests::cluster::Cluster;
use serde_json::Value;

use crate::Cx;
use crate::plugins::decides;

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    [admission::tests(cx), scheduling::tests(cx)].into_iter().flatten().collect()
}

/// Applies a plugin as its author does, and waits until it decides.
async fn activate(cluster: &Cluster, plugin: &Value) -> Result<()> {
    cluster.kubectl().apply(&plugin.to_string()).await?;
    let text = |field: &str| plugin["metadata"][field].as_str().unwrap_or_default();
    decides(&cluster.api()?, text("namespace"), text("name"), None).await.map(drop)
}
