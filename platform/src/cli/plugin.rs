//! Options of `scaleup plugin …`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use scaleup_plugins::World;

use super::{ApplyArgs, NameArgs, OutputFormat, PushArgs, UserArgs, duration};

/// `scaleup plugin …`
#[derive(Subcommand, Debug, Clone)]
pub enum PluginTool {
    /// Makes a directory with a plugin that works: source, WIT, configuration schema and golden examples.
    New(NewArgs),
    /// Builds a plugin's directory into build/NAME.wasm with the language's own tools.
    Build(BuildArgs),
    /// Says whether a module could be used: its world, type, limits, schema and golden examples.
    Validate(ValidateArgs),
    /// Runs golden examples: those in the component, and those in files. Exit code 1 if one does not hold.
    Test(TestArgs),
    /// Measures decisions: how many per second, how long one takes, and how long starting takes.
    Bench(BenchArgs),
    /// Prints the decisions of a plugin that were recorded where the API server runs, one JSON object per line.
    Records(RecordsArgs),
    /// Takes recorded decisions again and prints what would have changed. Exit code 0: nothing, 1: something, 2: it could not be found out.
    Replay(ReplayArgs),
    /// Uploads a module and prints its SHA-256, for `spec.source.blob`.
    Push(PushArgs),
    /// Uploads a module and creates or changes the plugin in a manifest so that it uses it.
    Apply(ApplyArgs),
    /// Goes back to the version that decided before, at once.
    Rollback(NameArgs),
    /// Says which versions of a plugin decide and are tried, where, and how they do.
    Status(NameArgs),
}

/// What a plugin is written in.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// With the SDK.
    Rust,
    /// With componentize-qjs.
    Javascript,
    /// With componentize-py.
    Python,
    /// With clang and wasi-libc.
    C,
}

/// `scaleup plugin new`
#[derive(Args, Debug, Clone)]
pub struct NewArgs {
    /// Name: 1 to 63 characters of a-z, 0-9 and -, beginning with a letter. The directory that is made has this name.
    #[arg(value_parser = plugin_name)]
    pub name: String,
    /// What it is written in.
    #[arg(long, value_name = "LANGUAGE", default_value = "rust")]
    pub lang: Language,
    /// Which decision it takes: routing, admission, scheduling, scaling or pricing.
    #[arg(long, value_name = "WORLD", default_value = "routing")]
    pub world: World,
    /// Where the directory is made.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
}

/// `scaleup plugin build`
#[derive(Args, Debug, Clone)]
pub struct BuildArgs {
    /// The plugin's directory.
    #[arg(default_value = ".")]
    pub dir: PathBuf,
}

/// `scaleup plugin test`
#[derive(Args, Debug, Clone)]
pub struct TestArgs {
    /// A plugin's directory that was built, or a module.
    #[arg(default_value = ".")]
    pub path: PathBuf,
    /// Directory with further examples (*.json); that of the plugin's directory by default.
    #[arg(long, value_name = "DIR")]
    pub examples: Option<PathBuf>,
    /// How it looks.
    #[arg(short, long, default_value = "table")]
    pub output: OutputFormat,
}

/// `scaleup plugin bench`
#[derive(Args, Debug, Clone)]
pub struct BenchArgs {
    /// The module.
    pub file: PathBuf,
    /// Input of the decisions (JSON); the component's golden examples by default.
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Configuration (JSON) for --input.
    #[arg(long, value_name = "FILE", requires = "input")]
    pub with_config: Option<PathBuf>,
    /// How long each input is measured.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub duration: Duration,
    /// How it looks.
    #[arg(short, long, default_value = "table")]
    pub output: OutputFormat,
}

/// `scaleup plugin records`
#[derive(Args, Debug, Clone)]
pub struct RecordsArgs {
    /// The plugin's name.
    pub name: String,
    /// Namespace of a WasmPlugin; without, it is a ClusterWasmPlugin.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    #[command(flatten)]
    pub user: UserArgs,
}

/// `scaleup plugin replay`
#[derive(Args, Debug, Clone)]
pub struct ReplayArgs {
    /// The module.
    pub file: PathBuf,
    /// Recorded decisions, one JSON object per line (`scaleup plugin records`); - is standard input.
    #[arg(long, value_name = "FILE|-")]
    pub records: PathBuf,
    /// Configuration (JSON) in place of the recorded one.
    #[arg(long, value_name = "FILE")]
    pub with_config: Option<PathBuf>,
    /// How it looks.
    #[arg(short, long, default_value = "table")]
    pub output: OutputFormat,
}

fn plugin_name(text: &str) -> Result<String, String> {
    let usable = (1..=63).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !text.ends_with('-');
    if usable {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 63 characters of a-z, 0-9 and -, from a letter to a letter or digit".to_owned())
    }
}

/// `scaleup plugin validate`
#[derive(Args, Debug, Clone)]
pub struct ValidateArgs {
    /// The module: a component, or a core module with bindings for scaleup:policy.
    pub file: PathBuf,
    /// World that it must be of; any by default.
    #[arg(long, value_name = "WORLD")]
    pub world: Option<World>,
    /// Configuration (JSON) that it must take.
    #[arg(long, value_name = "FILE")]
    pub with_config: Option<PathBuf>,
    /// The plugin in YAML, a WasmPlugin or ClusterWasmPlugin: its world, configuration and limits.
    #[arg(short = 'f', long, value_name = "FILE", conflicts_with_all = ["world", "with_config"])]
    pub manifest: Option<PathBuf>,
    /// How it looks.
    #[arg(short, long, default_value = "table")]
    pub output: OutputFormat,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_objects_and_crates() {
        assert_eq!(plugin_name("sticky-canary2"), Ok("sticky-canary2".into()));
        for bad in ["", "2a", "-a", "a-", "A", "a_b", "a/b", "..", &"a".repeat(64)] {
            assert!(plugin_name(bad).is_err(), "{bad}");
        }
    }
}
