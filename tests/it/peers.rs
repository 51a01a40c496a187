//! Pods of two nodes reach each other. The nodes are network namespaces of this machine, each with an agent, a load balancer and a
//! Docker daemon of its own; `scripts/two-nodes` sets them up, checks, and cleans up.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use scaleup_tests::cluster::{binary, root};
use scaleup_tests::docker::demo_image;

use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![cx, "peers", pods_of_two_nodes_reach_each_other]
}

async fn pods_of_two_nodes_reach_each_other(_: Cx) -> Result<()> {
    demo_image("v1")?;
    let mut script = tokio::process::Command::new(root().join("scripts/two-nodes"));
    let output = script.arg(binary()).output().await?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{text}");
    ensure!(text.contains("also after a daemon was started again"), "{text}");
    Ok(())
}
