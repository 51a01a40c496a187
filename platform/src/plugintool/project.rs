//! A plugin's directory: made by `scaleup plugin new`, described by its `plugin.yaml`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use scaleup_plugins::World;
use serde::{Deserialize, Serialize};

use super::{local, templates};
use crate::cli::{Language, NewArgs};
use crate::user::print;

/// Its description.
const MANIFEST: &str = "plugin.yaml";
/// Largest description.
const MAX_MANIFEST_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    name: String,
    world: World,
    language: Language,
}

/// See the module.
#[derive(Debug)]
pub struct Project {
    pub directory: PathBuf,
    pub name: String,
    pub world: World,
    pub language: Language,
}

impl Project {
    /// Reads its description.
    pub fn open(directory: &Path) -> Result<Self> {
        let path = directory.join(MANIFEST);
        let text = local::read(&path, MAX_MANIFEST_BYTES)
            .context("this is not a plugin's directory: `scaleup plugin new` makes one")?;
        let manifest: Manifest = serde_saphyr::from_str(&String::from_utf8_lossy(&text))
            .with_context(|| format!("{} must have name, world and language", path.display()))?;
        if manifest.name.is_empty() || manifest.name.contains(['/', '\\']) || manifest.name.starts_with('.') {
            bail!("{}: the name {:?} cannot be one of a file", path.display(), manifest.name);
        }
        let Manifest { name, world, language } = manifest;
        Ok(Self { directory: directory.to_owned(), name, world, language })
    }

    /// Where the component is written to.
    pub fn output(&self) -> PathBuf {
        self.directory.join("build").join(format!("{}.wasm", self.name))
    }

    /// The component, if it was built.
    pub fn built(&self) -> Result<PathBuf> {
        let output = self.output();
        if !output.is_file() {
            bail!("{} is not there: run `scaleup plugin build {}` first", output.display(), self.directory.display());
        }
        Ok(output)
    }
}

/// `scaleup plugin new`
pub fn create(args: &NewArgs) -> Result<ExitCode> {
    let directory = args.dir.join(&args.name);
    if directory.exists() {
        bail!("{} is there already", directory.display());
    }
    for (path, text) in files(args)? {
        let path = directory.join(path);
        let folder = path.parent().unwrap_or(&directory);
        let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, text));
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    let shown = directory.display();
    print(&format!(
        "made {shown}\n\n  scaleup plugin build {shown}\n  scaleup plugin test {shown}\n\n{}",
        templates::install(args.lang)
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Paths in the directory, and texts.
fn files(args: &NewArgs) -> Result<Vec<(String, String)>> {
    let (language, world) = (args.lang, args.world);
    let (source, decision) = templates::source(language, world);
    let fill = |text: &str| {
        text.replace("{{name}}", &args.name)
            .replace("{{world}}", world.name())
            .replace("{{source}}", source)
            .replace("{{install}}", templates::install(language))
    };
    let manifest = Manifest { name: args.name.clone(), world, language };
    let mut files = vec![
        (MANIFEST.to_owned(), serde_saphyr::to_string(&manifest)?),
        (source.to_owned(), decision.to_owned()),
        ("schema.json".to_owned(), templates::schema(language, world).to_owned()),
        ("examples/golden.json".to_owned(), templates::golden(world).to_owned()),
    ];
    files.extend(templates::COMMON.iter().map(|(path, text)| ((*path).to_owned(), fill(text))));
    let below = |folder: &str, table: &[templates::File]| -> Vec<(String, String)> {
        table.iter().map(|(path, text)| (format!("{folder}/{path}"), (*text).to_owned())).collect()
    };
    files.extend(below("wit", templates::WIT));
    if language == Language::Rust {
        files.push(("Cargo.toml".to_owned(), fill(templates::CARGO)));
        files.extend(below("sdk", templates::SDK));
        files.extend(below("sdk/wit", templates::WIT));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_language_has_every_world() {
        for language in Language::value_variants() {
            for world in World::ALL {
                let dir = tempfile::tempdir().unwrap();
                let args = NewArgs { name: "my-plugin".into(), lang: *language, world, dir: dir.path().into() };
                create(&args).unwrap();
                let project = Project::open(&dir.path().join("my-plugin")).unwrap();
                assert_eq!((project.name.as_str(), project.world, project.language), ("my-plugin", world, *language));
                assert!(project.built().unwrap_err().to_string().contains("scaleup plugin build"));
                for entry in std::fs::read_dir(&project.directory).unwrap() {
                    let path = entry.unwrap().path();
                    let text = if path.is_file() { std::fs::read_to_string(&path).unwrap() } else { String::new() };
                    assert!(!text.contains("{{"), "{}", path.display());
                }
                assert!(create(&args).unwrap_err().to_string().contains("is there already"));
            }
        }
    }

    #[test]
    fn names_stay_in_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MANIFEST), "name: ../x\nworld: routing\nlanguage: c\n").unwrap();
        assert!(Project::open(dir.path()).is_err());
    }
}
