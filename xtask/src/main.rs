//! `cargo run -p xtask -- tidy`: the house rules that a machine can check. `-- protobuf-table`: see [`protobuf`].
//!
//! Each rule is a row of [`RULES`]; it reads files as text and says what is wrong where. It never changes a file.

mod protobuf;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Past this a file must say on top that it is a table or one state machine.
const MAX_LINES: usize = 600;
/// Phrases that excuse a longer file, in its first lines.
const LONG_FILE_EXCUSES: [&str; 2] = ["table", "state machine"];

struct File {
    path: PathBuf,
    text: String,
}

type Rule = fn(&File, &mut Vec<String>);

const RULES: &[(&str, Rule)] = &[
    ("module doc", module_doc),
    ("length", length),
    ("unfinished", unfinished),
    ("whitespace", whitespace),
    ("dependency direction", direction),
    ("versions in the workspace", versions),
];

fn rust(file: &File) -> bool {
    file.path.extension().is_some_and(|e| e == "rs")
}

fn module_doc(file: &File, out: &mut Vec<String>) {
    if rust(file) && !file.text.trim_start().starts_with("//!") {
        out.push("starts without a `//!` that says what it does and never does".into());
    }
}

fn length(file: &File, out: &mut Vec<String>) {
    let lines = file.text.lines().count();
    let head = file.text.lines().take(20).collect::<Vec<_>>().join("\n").to_lowercase();
    if rust(file) && lines > MAX_LINES && !LONG_FILE_EXCUSES.iter().any(|e| head.contains(e)) {
        out.push(format!("has {lines} lines; split it, or say on top that it is a table or one state machine"));
    }
}

fn unfinished(file: &File, out: &mut Vec<String>) {
    if !rust(file) || file.path.starts_with("xtask") {
        return;
    }
    const MARKS: [&str; 6] = ["TODO", "FIXME", "todo!(", "unimplemented!(", "dbg!(", "#[ignore"];
    for (number, line) in file.text.lines().enumerate() {
        if let Some(mark) = MARKS.iter().find(|m| line.contains(**m)) {
            out.push(format!("line {}: {mark}", number + 1));
        }
    }
}

fn whitespace(file: &File, out: &mut Vec<String>) {
    for (number, line) in file.text.lines().enumerate() {
        if line.ends_with([' ', '\t']) && file.path.extension().is_none_or(|e| e != "md") {
            out.push(format!("line {}: trailing white space", number + 1));
        }
    }
    if !file.text.is_empty() && !file.text.ends_with('\n') {
        out.push("does not end with a newline".into());
    }
}

/// Who may depend on whom: crate folder, and the crates of ours that its `[dependencies]` may name.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("store", &["scaleup-api"]),
    ("plugins", &[]),
    ("plugins/loader", &["scaleup-api", "scaleup-plugins"]),
    ("apiserver", &["scaleup-api", "scaleup-plugins", "scaleup-store"]),
    ("controllers", &["scaleup-api", "scaleup-plugins"]),
    ("scheduler", &["scaleup-api", "scaleup-plugins"]),
    ("kubelet-lite", &["scaleup-api"]),
    ("lb", &["scaleup-api", "scaleup-plugins"]),
];

fn direction(file: &File, out: &mut Vec<String>) {
    if file.path.file_name().is_none_or(|n| n != "Cargo.toml") {
        return;
    }
    let folder = file.path.parent().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    let Some((_, allowed)) = MAY_DEPEND_ON.iter().find(|(name, _)| *name == folder) else { return };
    let mut section = "";
    for line in file.text.lines() {
        if line.starts_with('[') {
            section = line;
        }
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        if section == "[dependencies]" && name.starts_with("scaleup") && !allowed.contains(&name) {
            out.push(format!("depends on {name}; {folder} may only depend on {allowed:?}"));
        }
    }
}

fn versions(file: &File, out: &mut Vec<String>) {
    // Packages that stand outside the workspace have no root to look to.
    let nested = file.path.components().count() > 1 && !file.text.lines().any(|line| line == "[workspace]");
    if !nested || file.path.file_name().is_none_or(|n| n != "Cargo.toml") {
        return;
    }
    let mut section = "";
    for (number, line) in file.text.lines().enumerate() {
        if line.starts_with('[') {
            section = line;
        } else if section.contains("dependencies") && line.contains('=') && !line.contains("workspace = true") {
            out.push(format!("line {}: versions live in the root's [workspace.dependencies]", number + 1));
        }
    }
}

fn tracked(root: &Path) -> Result<Vec<File>> {
    let listed = std::process::Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("git ls-files")?;
    let mut files = Vec::new();
    for name in String::from_utf8_lossy(&listed.stdout).split_terminator('\0') {
        let checked =
            name.ends_with(".rs") || name.ends_with(".toml") || name.ends_with(".yaml") || name.ends_with(".md");
        if checked && let Ok(text) = std::fs::read_to_string(root.join(name)) {
            files.push(File { path: name.into(), text });
        }
    }
    if files.is_empty() {
        bail!("no files found; is this a git checkout?");
    }
    Ok(files)
}

fn tidy(root: &Path) -> Result<()> {
    let files = tracked(root)?;
    let mut count = 0;
    for file in &files {
        for (name, rule) in RULES {
            let mut found = Vec::new();
            rule(file, &mut found);
            for what in found {
                count += 1;
                println!("{}: {name}: {what}", file.path.display());
            }
        }
    }
    for wanted in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"] {
        if !root.join(wanted).is_file() {
            count += 1;
            println!("{wanted} is missing");
        }
    }
    if count > 0 {
        bail!("{count} to mend");
    }
    println!("tidy: {} files, nothing to mend", files.len());
    Ok(())
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace root")?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => tidy(root),
        ["protobuf-table", old, new] => protobuf::run(root, Path::new(old), Path::new(new)),
        _ => bail!("expected `tidy` or `protobuf-table OLD NEW`, got {args:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str, expected: &[&str]) {
        let file = File { path: path.into(), text: text.into() };
        let mut found = Vec::new();
        for (name, rule) in RULES {
            let mut out = Vec::new();
            rule(&file, &mut out);
            found.extend(out.iter().map(|_| *name));
        }
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn rules_find_what_they_look_for() {
        check("a/src/lib.rs", "//! Doc.\nfn f() {}\n", &[]);
        check("a/src/lib.rs", "fn f() {}\n", &["module doc"]);
        check("a/src/lib.rs", "//! Doc.\n// TODO\n", &["unfinished"]);
        check("a/src/lib.rs", &format!("//! Doc.\n{}", "\n".repeat(700)), &["length"]);
        check("a/src/lib.rs", &format!("//! One table.\n{}", "\n".repeat(700)), &[]);
        check("a/src/lib.rs", "//! Doc. \n//! x", &["whitespace", "whitespace"]);
        check("lb/Cargo.toml", "[dependencies]\nscaleup-store.workspace = true\n", &["dependency direction"]);
        check("lb/Cargo.toml", "[dependencies]\nserde = \"1\"\n", &["versions in the workspace"]);
    }
}
