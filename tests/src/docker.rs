//! Docker as a person sees it, the command line; and what an instance leaves on the machine.

use std::path::Path;
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

/// Ids of the node's containers, in order.
pub fn containers_of(node: &str, all: bool) -> Result<Vec<String>> {
    // The label is `INSTANCE.NODE`; the instance is the agent's own choice.
    let format = "{{.ID}} {{.Label \"scaleup.dev/instance\"}}";
    let mut args = vec!["ps", "--no-trunc", "--filter", "label=scaleup.dev/instance", "--format", format];
    if all {
        args.push("-a");
    }
    let listed = docker(&args)?;
    let own = |line: &str| {
        let (id, owner) = line.split_once(' ')?;
        (owner.split_once('.')?.1 == node).then(|| id.to_owned())
    };
    let mut ids: Vec<String> = listed.lines().filter_map(own).collect();
    ids.sort();
    Ok(ids)
}

/// Removes the node's nftables table: it outlives the platform on purpose, so that pods go on without it.
pub fn remove_table(node: &str) {
    let _ = Command::new("nft").args(["delete", "table", "ip", &format!("scaleup-{node}")]).output();
}

/// Removes everything that a node's agent and load balancer made on this machine.
pub fn remove_node(node: &str) {
    remove_table(node);
    for id in containers_of(node, true).unwrap_or_default() {
        let _ = docker(&["rm", "-f", &id]);
    }
    let suffix = format!("-{node}");
    for name in docker(&["network", "ls", "--format", "{{.Name}}"]).unwrap_or_default().lines() {
        if name.starts_with("scaleup-") && name.ends_with(&suffix) {
            let _ = docker(&["network", "rm", name]);
        }
    }
}

/// Unmounts what is mounted below `dir`, the innermost first: Secret volumes are in memory, and stay so that pods go on.
pub fn remove_mounts(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for target in mounts_below(&mounts, dir) {
        let _ = Command::new("umount").arg("--lazy").arg(target).output();
    }
}

/// Where something is mounted below `dir` by the text of `/proc/self/mounts`, innermost first.
fn mounts_below<'a>(mounts: &'a str, dir: &Path) -> Vec<&'a str> {
    let mut found: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|target| Path::new(target) != dir && Path::new(target).starts_with(dir))
        .collect();
    found.sort_by_key(|target| std::cmp::Reverse(target.len()));
    found
}

/// Runs a script that builds an image, once per process.
fn built(image: &str, script: &str, argument: &str) -> Result<String> {
    static BUILT: OnceLock<std::sync::Mutex<Vec<String>>> = OnceLock::new();
    let mut built = BUILT.get_or_init(Default::default).lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
    if !built.iter().any(|b| b == image) {
        let output = Command::new(crate::cluster::root().join(script)).arg(argument).output()?;
        if !output.status.success() {
            bail!("building {image}: {}", String::from_utf8_lossy(&output.stderr));
        }
        built.push(image.to_owned());
    }
    Ok(image.to_owned())
}

/// The demo image under a tag.
pub fn demo_image(tag: &str) -> Result<String> {
    built(&format!("scaleup-demo/web:{tag}"), "examples/web/build-image", tag)
}

/// An image with curl and getent, which resolve names as programs do.
pub fn tools_image() -> Result<String> {
    built("scaleup-test/tools:v1", "tests/images/build-tools", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_one_instance_are_told_from_others() {
        let mounts = "proc /proc proc rw 0 0\ntmpfs /tmp/a/node/pods/1/s tmpfs rw 0 0\ntmpfs /tmp/ab/x tmpfs rw 0 0\n\
                      tmpfs /tmp/a/node/pods/1/s/inner tmpfs rw 0 0\ntmpfs /tmp/a tmpfs rw 0 0\n";
        let expected = ["/tmp/a/node/pods/1/s/inner", "/tmp/a/node/pods/1/s"];
        assert_eq!(mounts_below(mounts, Path::new("/tmp/a")), expected);
    }
}
