//! The binary's command line: what it prints, what it refuses, and how it says so.

#![allow(clippy::unwrap_used, reason = "test code: a failure here is the test's")]

use std::path::Path;
use std::process::{Command, Output};

fn scaleup(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scaleup"));
    command.args(args).envs(env.iter().copied()).env_remove("SCALEUP_CONFIG");
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn refused(args: &[&str], env: &[(&str, &str)], says: &[&str]) {
    let output = scaleup(args, env);
    let text = text(&output);
    assert!(!output.status.success(), "{args:?}: {text}");
    for part in says {
        assert!(text.contains(part), "{args:?} does not say {part:?}: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn help_and_version() {
    assert!(text(&scaleup(&["--version"], &[])).starts_with("scaleup 0."));
    let help = text(&scaleup(&["up", "--help"], &[]));
    for option in ["--data-dir", "--listen", "--store", "--runtime", "--node-name", "--stop-pods", "SCALEUP_LISTEN"] {
        assert!(help.contains(option), "{option}");
    }
}

#[test]
fn mistakes_are_named() {
    refused(&[], &[], &["Usage"]);
    refused(&["fly"], &[], &["fly"]);
    refused(&["up", "--listen", "nowhere"], &[], &["--listen"]);
    refused(&["up"], &[("SCALEUP_STORE", "redis")], &["--store", "etcd://"]);
    refused(&["scheduler"], &[], &["--kubeconfig"]);
    refused(&["scheduler", "--kubeconfig", "/no/such/file"], &[], &["/no/such/file", "scaleup kubeconfig"]);
}

#[test]
fn configuration_file_names_its_mistakes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("scaleup.yaml");
    let check = |content: &str, says: &str| {
        std::fs::write(&file, content).unwrap();
        refused(&["--config", &file.display().to_string(), "up"], &[], &[&file.display().to_string(), says]);
    };
    check("no-such-option: 1\n", "no-such-option");
    check("[1, 2]\n", "mapping");
    check(&"x".repeat(2 << 20), "larger than");
    std::fs::write(&file, "listen: nowhere\n").unwrap();
    refused(&["--config", &file.display().to_string(), "up"], &[], &["--listen"]);
}

#[test]
fn kubeconfig_needs_the_authority() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display().to_string();
    refused(&["kubeconfig", "--data-dir", &data, "--server", "https://h:1", "lb"], &[], &["holds no CA", "--data-dir"]);
    assert!(!Path::new(&data).join("pki").exists(), "nothing is made by asking");
}
