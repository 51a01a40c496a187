//! `scaleup plugin build`: runs the tools of a plugin's language and makes a component of what they give. It fetches and installs nothing; what is
//! missing is named.

mod bindings;
mod cargo;
mod tool;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, anyhow, bail};
use scaleup_plugins::Digest;

use self::tool::{find, run as run_tool};
use super::{local, project::Project, templates};
use crate::cli::{BuildArgs, Language};
use crate::user::print;

/// Largest schema and examples.
const MAX_METADATA_BYTES: usize = 2 << 20;

pub fn run(args: &BuildArgs) -> Result<ExitCode> {
    let project = Project::open(&args.dir)?;
    let folder = project.directory.join("build");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let built = match project.language {
        Language::Rust => cargo::build(&project),
        Language::Javascript => javascript(&project),
        Language::Python => python(&project),
        Language::C => c(&project),
    };
    let module = built.map_err(|error| anyhow!("{error:#}\n{}", templates::install(project.language)))?;
    let component = scaleup_plugins::component(module).map_err(anyhow::Error::msg)?;
    let output = project.output();
    std::fs::write(&output, &component).with_context(|| format!("cannot write {}", output.display()))?;
    print(&format!("{}: {} bytes, sha256 {}", output.display(), component.len(), Digest::of(&component)))?;
    Ok(ExitCode::SUCCESS)
}

/// The schema and the golden examples, which build puts into the component; both are JSON.
fn metadata(project: &Project) -> Result<(String, Vec<scaleup_plugins::metadata::Example>)> {
    let schema = local::read(&project.directory.join("schema.json"), MAX_METADATA_BYTES)?;
    let schema = String::from_utf8(schema).context("schema.json is no text")?;
    serde_json::from_str::<serde_json::Value>(&schema).context("schema.json is no JSON")?;
    let golden = project.directory.join("examples/golden.json");
    let examples = super::examples::parse(&local::read(&golden, MAX_METADATA_BYTES)?)
        .with_context(|| format!("{} holds no golden examples", golden.display()))?;
    Ok((schema, examples))
}

/// As JSON whose keys are those of the WIT.
fn metadata_json(project: &Project) -> Result<(String, String)> {
    let (schema, examples) = metadata(project)?;
    Ok((serde_json::to_string(&schema)?, serde_json::to_string(&examples)?))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn javascript(project: &Project) -> Result<Vec<u8>> {
    let (schema, examples) = metadata_json(project)?;
    let module = format!("export const metadata = {{ configSchema: () => {schema}, examples: () => ({examples}) }};\n");
    write(&project.directory.join("build/metadata.js"), &module)?;
    let output = project.directory.join("build/javascript.wasm");
    let mut command = Command::new(find(&project.directory, "componentize-qjs")?);
    command.arg("--wit").arg(project.directory.join("wit")).args(["--world", project.world.name()]);
    command.arg("--js").arg(project.directory.join("plugin.js")).arg("--module-root").arg(&project.directory);
    // Without asynchronous calls and WASI, which the host does not offer.
    command.args(["--sync", "--stub-wasi", "--opt-size", "--output"]).arg(&output);
    run_tool(&mut command)?;
    local::read(&output, scaleup_plugins::MAX_MODULE_BYTES)
}

fn python(project: &Project) -> Result<Vec<u8>> {
    let (schema, examples) = metadata_json(project)?;
    // A JSON text of a JSON text is a Python text, too: what JSON escapes, Python reads.
    let golden = serde_json::to_string(&examples)?;
    let module = format!(
        "import json\n\nfrom wit_world import exports\nfrom wit_world.imports.metadata_types import Example\n\nSCHEMA = {schema}\nEXAMPLES = \
         json.loads({golden})\n\n\nclass Metadata(exports.Metadata):\n    def config_schema(self):\n        return SCHEMA\n\n    def examples(self):\n        return \
         [Example(one[\"name\"], one[\"config\"], one[\"input\"], one[\"expected\"]) for one in EXAMPLES]\n"
    );
    write(&project.directory.join("build/golden.py"), &module)?;
    let output = std::path::absolute(project.directory.join("build/python.wasm"))?;
    let mut command = Command::new(find(&project.directory, "componentize-py")?);
    command.arg("--wit-path").arg(project.directory.join("wit")).args([
        "--world",
        project.world.name(),
        "componentize",
        "app",
    ]);
    command.arg("--python-path").arg(&project.directory).arg("--python-path").arg(project.directory.join("build"));
    command.arg("--stub-wasi").arg("--output").arg(&output);
    run_tool(&mut command)?;
    local::read(&output, scaleup_plugins::MAX_MODULE_BYTES)
}

fn c(project: &Project) -> Result<Vec<u8>> {
    let (schema, examples) = metadata(project)?;
    let bindings = project.directory.join("build/bindings");
    std::fs::create_dir_all(&bindings).with_context(|| format!("cannot make {}", bindings.display()))?;
    bindings::write(project, &bindings)?;
    write(&bindings.join("metadata.c"), &bindings::metadata(project.world, &schema, &examples))?;
    let mut sources: Vec<std::path::PathBuf> = Vec::new();
    for folder in [&project.directory, &bindings] {
        for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "c" || extension == "o") {
                sources.push(path);
            }
        }
    }
    sources.sort();
    let output = project.directory.join("build/c.wasm");
    let mut command = Command::new(find(&project.directory, "clang")?);
    command.args(["--target=wasm32-wasi", "-mexec-model=reactor", "-O2", "-Wall", "-I"]).arg(&bindings);
    command.args(&sources).arg("-o").arg(&output);
    run_tool(&mut command)?;
    if !output.is_file() {
        bail!("clang wrote no {}", output.display());
    }
    local::read(&output, scaleup_plugins::MAX_MODULE_BYTES)
}
