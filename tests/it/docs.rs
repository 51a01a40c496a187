//! The user's guides, run as they stand: manifests are applied, commands are typed, and what they print is compared.
//!
//! A block ```` ```yaml ```` is applied. In a block ```` ```console ````, a line after `$ ` is typed into bash; the lines below it must
//! be in what it prints, in this order, `…` standing for anything; a line that is only `…` skips lines. Since things take a moment to
//! happen, a command is typed again until it prints that. Blocks ```` ```sh ```` are for people (preparations that the test makes itself).

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use scaleup_tests::cluster::{Cluster, Options, binary, free_port, root};
use scaleup_tests::docker::demo_image;
use scaleup_tests::eventually;

use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![cx, "docs", load_balancing]
}

/// A piece of a guide.
#[derive(Debug, PartialEq)]
enum Step {
    Apply(String),
    Type { command: String, prints: Vec<String> },
}

fn steps(guide: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = guide.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        match kind {
            "yaml" => steps.push(Step::Apply(block.join("\n"))),
            "console" => {
                for line in block {
                    match (line.strip_prefix("$ "), steps.last_mut()) {
                        (Some(command), _) => {
                            steps.push(Step::Type { command: command.to_owned(), prints: Vec::new() });
                        }
                        (None, Some(Step::Type { prints, .. })) => prints.push(line.to_owned()),
                        (None, _) => {}
                    }
                }
            }
            _ => {}
        }
    }
    steps
}

/// Whether `line` is `pattern` with something for each `…`; white space counts as one blank.
fn matches(pattern: &str, line: &str) -> bool {
    let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (pattern, line) = (squeezed(pattern), squeezed(line));
    let mut rest = line.as_str();
    let parts: Vec<&str> = pattern.split('…').map(str::trim).collect();
    let last = parts.len() - 1;
    for (i, part) in parts.iter().enumerate() {
        let at = match i {
            0 if !rest.starts_with(part) => return false,
            0 => 0,
            _ if i == last && rest.ends_with(part) => rest.len() - part.len(),
            _ => match rest.find(part) {
                Some(at) => at,
                None => return false,
            },
        };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty() || pattern.ends_with('…')
}

fn printed(expected: &[String], output: &str) -> bool {
    let mut lines = output.lines();
    let mut skip = false;
    for pattern in expected {
        if pattern.trim() == "…" {
            skip = true;
            continue;
        }
        let found = if skip {
            lines.any(|line| matches(pattern, line))
        } else {
            lines.next().is_some_and(|line| matches(pattern, line))
        };
        if !found {
            return false;
        }
        skip = false;
    }
    true
}

async fn bash(cluster: &Cluster, dir: &Path, preamble: &str, command: &str) -> Result<String> {
    let mut bash = tokio::process::Command::new("bash");
    bash.arg("-c").arg(format!("{preamble}\n{command}")).current_dir(dir).kill_on_drop(true);
    bash.env("KUBECONFIG", cluster.kubeconfig()).env("HOME", dir.join("home")).stdin(Stdio::null());
    let output =
        tokio::time::timeout(std::time::Duration::from_secs(90), bash.output()).await.context(command.to_owned())??;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

async fn load_balancing(_: Cx) -> Result<()> {
    demo_image("v1")?;
    demo_image("v2")?;
    let (http, https) = (free_port()?, free_port()?);
    let ports = ["--lb-http-port", &http.to_string(), "--lb-https-port", &https.to_string()].map(str::to_owned);
    let options = Options { runtime: "docker", extra: ports.to_vec(), ..Options::default() };
    let cluster = Cluster::start(options).await?;
    let kubectl = cluster.kubectl();
    let mut guide = std::fs::read_to_string(root().join("docs/load-balancing.md"))?;
    // Others on this machine may have the ports of the guide.
    for port in ["8088", "8090", "8091", "8443", "9000"] {
        guide = guide.replace(port, &free_port()?.to_string());
    }
    let dir = tempfile::tempdir()?;
    let preamble = format!(
        r#"scaleup() {{ {scaleup} "$@"; }}
kubectl() {{ {kubectl} "$@"; }}
lb() {{
  local to=::127.0.0.1:
  case "$*" in
    *https://*:[0-9]*) ;;
    *https://*) to=::127.0.0.1:{https} ;;
    *http://*:[0-9]*) ;;
    *) to=::127.0.0.1:{http} ;;
  esac
  curl -s --max-time 10 --connect-to $to "$@"
}}"#,
        scaleup = binary().display(),
        kubectl = root().join(".tools/kubectl-new").display(),
    );
    let (mut applied, mut typed) = (0, 0);
    for step in steps(&guide) {
        match step {
            Step::Apply(manifest) => {
                kubectl.apply(&manifest).await.with_context(|| manifest.clone())?;
                applied += 1;
            }
            Step::Type { command, prints } => {
                let last = std::sync::Mutex::new(String::new());
                let outcome = eventually(&command, || async {
                    // Whoever follows the guide has Ingresses on the ports that need not be named.
                    let output = bash(&cluster, dir.path(), &preamble, &command).await?;
                    let output = output.replace(&format!(":{https}/"), "/");
                    let good = printed(&prints, &output);
                    if let Ok(mut last) = last.lock() {
                        *last = output;
                    }
                    Ok(good.then_some(()))
                });
                outcome.await.with_context(|| {
                    let last = last.lock().map(|last| last.clone()).unwrap_or_default();
                    format!("$ {command}\nprinted:\n{last}\ninstead of:\n{}", prints.join("\n"))
                })?;
                typed += 1;
            }
        }
    }
    println!("docs/load-balancing.md: {applied} manifests applied, {typed} commands typed");
    ensure!(applied >= 10 && typed >= 25, "the guide's blocks were not found");
    ensure!(matches("a … c", "a  b c") && !matches("a … c", "a b d") && matches("…", "x"), "the comparison itself");
    ensure!(!matches("404", "500") && !matches("ab", "abc") && matches("v1-…", "v1-x y"), "the comparison itself");
    Ok(())
}
