//! Golden examples in files: a JSON object, or an array of them, with `name`, `config`, `input` and `expected`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use scaleup_plugins::metadata::Example;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::local;

/// Largest file.
const MAX_FILE_BYTES: usize = 16 << 20;
/// Most files of a directory.
const MAX_FILES: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    name: String,
    config: Option<Box<RawValue>>,
    input: Box<RawValue>,
    expected: Box<RawValue>,
}

/// All of a file.
pub fn parse(text: &[u8]) -> serde_json::Result<Vec<Example>> {
    let golden: Vec<Golden> = match text.trim_ascii_start().first() {
        Some(b'[') => serde_json::from_slice(text)?,
        _ => vec![serde_json::from_slice(text)?],
    };
    let example = |golden: Golden| Example {
        name: golden.name,
        config: golden.config.map_or_else(|| "{}".to_owned(), |config| config.get().to_owned()),
        input: golden.input.get().to_owned(),
        expected: golden.expected.get().to_owned(),
    };
    Ok(golden.into_iter().map(example).collect())
}

/// The examples of all `*.json` files of a directory by file name.
pub fn of_directory(directory: &Path) -> Result<Vec<(String, Vec<Example>)>> {
    let cannot = || format!("cannot read {}", directory.display());
    let entries = std::fs::read_dir(directory).with_context(cannot)?;
    let paths: std::io::Result<Vec<PathBuf>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.with_context(cannot)?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    if paths.len() > MAX_FILES {
        bail!("{} has more than {MAX_FILES} examples", directory.display());
    }
    let read = |path: PathBuf| {
        let examples = parse(&local::read(&path, MAX_FILE_BYTES)?)
            .with_context(|| format!("{} holds no golden examples", path.display()))?;
        Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), examples))
    };
    paths.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_or_many_in_a_file() {
        let one = br#" {"name": "a", "input": {"x": 1}, "expected": "default"}"#;
        let many = [b"[".as_slice(), one, b"]"].concat();
        let wanted = Example {
            name: "a".into(),
            config: "{}".into(),
            input: r#"{"x": 1}"#.into(),
            expected: r#""default""#.into(),
        };
        assert_eq!(parse(one).unwrap(), std::slice::from_ref(&wanted));
        assert_eq!(parse(&many).unwrap(), [wanted]);
        assert!(parse(br#"{"name": "a", "input": {}, "expected": 1, "more": 1}"#).is_err());
        assert!(parse(b"").is_err());
    }
}
