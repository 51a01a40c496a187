//! Docker as a person sees it: the command line.

use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// Runs `docker ARGS`; standard output, trimmed.
pub fn docker(args: &[&str]) -> Result<String> {
    let output = Command::new("docker").args(args).output().context("docker")?;
    if !output.status.success() {
        bail!("docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Ids of the node's containers.
pub fn containers_of(node: &str, all: bool) -> Result<Vec<String>> {
    let filter = format!("label=scaleup.dev/instance=default.{node}");
    let mut args = vec!["ps", "-q", "--no-trunc", "--filter", &filter];
    if all {
        args.push("-a");
    }
    Ok(docker(&args)?.lines().map(str::to_owned).collect())
}

/// Removes everything that a node's agent made in Docker.
pub fn remove_node(node: &str) {
    for id in containers_of(node, true).unwrap_or_default() {
        let _ = docker(&["rm", "-f", &id]);
    }
    let filter = format!("label=scaleup.dev/instance=default.{node}");
    for id in docker(&["network", "ls", "-q", "--filter", &filter]).unwrap_or_default().lines() {
        let _ = docker(&["network", "rm", id]);
    }
}

/// Builds the demo image under a tag, once per process.
pub fn demo_image(tag: &str) -> Result<String> {
    static BUILT: OnceLock<std::sync::Mutex<Vec<String>>> = OnceLock::new();
    let image = format!("scaleup-demo/web:{tag}");
    let mut built = BUILT.get_or_init(Default::default).lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
    if !built.contains(&image) {
        let script = crate::cluster::root().join("examples/web/build-image");
        let output = Command::new(script).arg(tag).output()?;
        if !output.status.success() {
            bail!("building {image}: {}", String::from_utf8_lossy(&output.stderr));
        }
        built.push(image.clone());
    }
    Ok(image)
}
