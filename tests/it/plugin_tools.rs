//! `scaleup plugin new|build|test|validate|bench|replay` as an author types them: plugins in four languages are built from source and decide, and the
//! samples do what their golden examples say.
//!
//! What is expensive is kept in `target/plugins`: Rust's standard library for WebAssembly, and compiled components by their digest.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use scaleup_plugins::World;
use scaleup_plugins::testing::Guest;
use scaleup_tests::cluster::{binary, root};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::{Cx, trials};

/// One at a time: they share directories and would only fight for cores.
static TURN: Mutex<()> = Mutex::const_new(());

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![
        cx,
        "plugin_tools",
        rust_and_replay,
        c_in_every_world,
        javascript,
        python,
        samples,
        configurations_are_checked,
        mistakes_are_named
    ]
}

/// What a command did.
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl Done {
    /// What it printed, if it ended with this code.
    fn expect(self, code: i32) -> Result<String> {
        ensure!(self.code == code, "exit code {} instead of {code}\n{}\n{}", self.code, self.out, self.err);
        Ok(self.out)
    }

    fn json(self, code: i32) -> Result<Value> {
        let out = self.expect(code)?;
        serde_json::from_str(&out).with_context(|| out)
    }
}

/// What is kept from one run to the next.
fn kept() -> Result<PathBuf> {
    Ok(binary().parent().and_then(Path::parent).context("target")?.join("plugins"))
}

/// An empty directory, the same one each time: cargo keeps what it built by its path.
fn work(name: &str) -> Result<PathBuf> {
    let directory = kept()?.join("work").join(name);
    if directory.exists() {
        std::fs::remove_dir_all(&directory)?;
    }
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// `scaleup plugin …`, with the tools that `scripts/setup test` installs.
async fn plugin(directory: &Path, args: &[&str]) -> Result<Done> {
    let tools = root().join(".tools/plugins");
    let kept = kept()?;
    let own = [tools.join("node_modules/.bin"), tools.join("python/bin")];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path)))?;
    let output = tokio::process::Command::new(binary())
        .arg("plugin")
        .args(args)
        .current_dir(directory)
        .env("PATH", path)
        .env("PYTHONPATH", tools.join("python"))
        .env("CARGO_TARGET_DIR", kept.join("cargo"))
        .env("XDG_CACHE_HOME", kept.join("compiled"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Done { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) })
}

/// Makes, builds, validates and calls a plugin; its directory.
async fn from_source(base: &Path, language: &str, world: &str) -> Result<PathBuf> {
    let name = format!("{language}-{world}");
    plugin(base, &["new", &name, "--lang", language, "--world", world]).await?.expect(0)?;
    let directory = base.join(&name);
    let began = Instant::now();
    plugin(&directory, &["build"]).await?.expect(0)?;
    let module = format!("build/{name}.wasm");
    let report = plugin(&directory, &["validate", &module, "-o", "json"]).await?.json(0)?;
    ensure!(report["world"] == world && report["problems"] == json!([]), "{report}");
    ensure!(report["schema"] == true && report["sha256"].as_str().is_some_and(|digest| digest.len() == 64), "{report}");
    let examples = report["examples"].as_u64().unwrap_or(0);
    ensure!(examples >= 1, "{report}");
    // Those in the component, and the same ones in the file.
    let outcomes = plugin(&directory, &["test", "-o", "json"]).await?.json(0)?;
    let outcomes = outcomes.as_array().context("a list")?;
    ensure!(outcomes.len() as u64 == 2 * examples && outcomes.iter().all(|one| one["ok"] == true), "{outcomes:?}");
    println!("{name}: built and tested in {:?}, {} bytes", began.elapsed(), report["size"]);
    Ok(directory)
}

/// A recorded routing decision.
fn record(in_flight: [u32; 3], outcome: (&str, Value)) -> String {
    let endpoints: Vec<Value> = in_flight.iter().map(|n| json!({"inFlight": n})).collect();
    let mut record = json!({
        "world": "routing", "plugin": "shop/p", "generation": 1, "digest": "00", "timeMs": 1, "config": {},
        "input": {"endpoints": endpoints},
    });
    record[outcome.0] = outcome.1;
    format!("{record}\n")
}

async fn rust_and_replay(_: Cx) -> Result<()> {
    let _turn = TURN.lock().await;
    let base = work("rust")?;
    let directory = from_source(&base, "rust", "routing").await?;
    let module = "build/rust-routing.wasm";
    let figures = plugin(&directory, &["bench", module, "--duration", "1s", "-o", "json"]).await?.json(0)?;
    ensure!(figures["inputs"][0]["perSecond"].as_f64().is_some_and(|rate| rate > 1000.0), "{figures}");

    // A golden example that does not hold is shown with what differs.
    let wrong = json!({"name": "wrong", "input": {"endpoints": [{}]}, "expected": {"pick": 1}});
    std::fs::write(directory.join("examples/wrong.json"), wrong.to_string())?;
    let shown = plugin(&directory, &["test"]).await?.expect(1)?;
    ensure!(shown.contains("FAIL  wrong.json: wrong") && shown.contains("/pick: expected 1, is 0"), "{shown}");

    // Of 30 decisions three were other ones: found, and no others.
    let pick = |at: u32| ("answer", json!({"pick": at}));
    let mut lines: Vec<String> = (0..30_u32).map(|n| record([n, n + 1, n + 2], pick(0))).collect();
    lines[6] = record([5, 1, 9], pick(0));
    lines[13] = record([1, 1, 9], ("answer", json!("default")));
    lines[29] = record([1, 2, 3], ("failure", json!({"class": "timeout", "message": "its time is up"})));
    std::fs::write(directory.join("records.jsonl"), lines.concat())?;
    let replay = ["replay", module, "--records", "records.jsonl", "-o", "json"];
    let report = plugin(&directory, &replay).await?.json(1)?;
    let changed = report["changed"].as_array().context("a list")?;
    let found: Vec<(u64, &Value)> =
        changed.iter().map(|one| (one["line"].as_u64().unwrap_or(0), &one["replayed"])).collect();
    let (zero, one) = (json!({"pick": 0}), json!({"pick": 1}));
    ensure!(found == [(7, &one), (14, &zero), (30, &zero)], "{report}");
    ensure!(report["records"] == 30 && report["unchanged"] == 27, "{report}");

    // With another configuration exactly those decisions change that it is about: from 10 requests under way on there is no endpoint.
    let equal: String = (0..30_u32).map(|n| record([n, n + 1, n + 2], pick(0))).collect();
    std::fs::write(directory.join("records.jsonl"), &equal)?;
    plugin(&directory, &replay).await?.expect(0)?;
    std::fs::write(directory.join("config.json"), json!({"maxInFlight": 10}).to_string())?;
    let report = plugin(&directory, &[&replay[..], &["--with-config", "config.json"]].concat()).await?.json(1)?;
    let changed: Vec<u64> =
        report["changed"].as_array().context("a list")?.iter().filter_map(|one| one["line"].as_u64()).collect();
    ensure!(changed == (11..=30).collect::<Vec<u64>>(), "{changed:?}");
    let shown = plugin(&directory, &["replay", module, "--records", "records.jsonl", "--with-config", "config.json"])
        .await?
        .expect(1)?;
    ensure!(shown.contains("30 records: 10 unchanged, 20 changed, 0 unusable"), "{shown}");

    // What is no record is told apart from what has changed.
    std::fs::write(directory.join("records.jsonl"), equal + "nonsense\n")?;
    let report = plugin(&directory, &replay).await?.json(2)?;
    ensure!(report["unusable"][0][0] == 31 && report["unchanged"] == 30, "{report}");
    Ok(())
}

async fn c_in_every_world(_: Cx) -> Result<()> {
    let _turn = TURN.lock().await;
    let base = work("c")?;
    for world in ["routing", "admission", "scheduling", "scaling", "pricing"] {
        from_source(&base, "c", world).await.context(world)?;
    }
    Ok(())
}

async fn javascript(_: Cx) -> Result<()> {
    let _turn = TURN.lock().await;
    let base = work("javascript")?;
    from_source(&base, "javascript", "routing").await.map(drop)
}

async fn python(_: Cx) -> Result<()> {
    let _turn = TURN.lock().await;
    let base = work("python")?;
    from_source(&base, "python", "admission").await.map(drop)
}

async fn samples(_: Cx) -> Result<()> {
    let _turn = TURN.lock().await;
    let samples = root().join("plugins/samples");
    for name in ["bin-packing", "cost-aware", "geo-nearest", "gpu-affinity", "sticky-canary", "tenant-tiers"] {
        let directory = samples.join(name);
        plugin(&directory, &["build"]).await?.expect(0).context(name)?;
        plugin(&directory, &["test"]).await?.expect(0).context(name)?;
    }
    Ok(())
}

async fn configurations_are_checked(_: Cx) -> Result<()> {
    let base = work("configurations")?;
    let schema = json!({"type": "object", "required": ["tier"], "properties": {"tier": {"enum": ["gold", "tin"]}}});
    let guest = Guest::new(World::Admission, "(i32.const 1024)").metadata(&schema.to_string(), &[]);
    std::fs::write(base.join("m.wasm"), guest.component())?;
    let report = plugin(&base, &["validate", "m.wasm", "-o", "json"]).await?.json(0)?;
    ensure!(report["schema"] == true && report["config"] == false && report["problems"] == json!([]), "{report}");
    // By itself, and in a manifest, where it is {} if there is none.
    let missing = json!(["ConfigInvalid: config.tier is required"]);
    for (config, code) in [(json!({"tier": "gold"}), 0), (json!({"tier": "iron"}), 1), (json!({}), 1)] {
        std::fs::write(base.join("config.json"), config.to_string())?;
        let given = plugin(&base, &["validate", "m.wasm", "--with-config", "config.json", "-o", "json"]);
        let given = given.await?.json(code)?;
        let spec = json!({"world": "admission", "config": config});
        let manifest = json!({"apiVersion": "policy.scaleup.dev/v1", "kind": "WasmPlugin", "metadata": {"name": "p"}, "spec": spec});
        std::fs::write(base.join("p.yaml"), manifest.to_string())?;
        let named = plugin(&base, &["validate", "m.wasm", "-f", "p.yaml", "-o", "json"]).await?.json(code)?;
        ensure!(given == named && given["config"] == true, "{given}, {named}");
        let problems = given["problems"].as_array().context("a list")?;
        ensure!(problems.len() == usize::from(code == 1), "{given}");
        ensure!(config != json!({}) || given["problems"] == missing, "{given}");
    }
    let manifest = |spec: &str| format!("apiVersion: policy.scaleup.dev/v1\nkind: ClusterWasmPlugin\nspec: {spec}\n");
    for (manifest, words) in [
        (manifest("{world: admission}"), "ConfigInvalid: config.tier is required"),
        (manifest("{world: routing, config: {tier: tin}}"), "not a component of the world routing"),
        (manifest("{world: dns}"), "dns"),
        (manifest("{world: admission, config: {tier: tin}, limits: {memory: 1Ki}}"), "does not fit its limits"),
        (manifest("{world: admission, limits: {memory: much}}"), "spec.limits.memory"),
        ("kind: ConfigMap".to_owned(), "expected a WasmPlugin or a ClusterWasmPlugin"),
        (manifest("no"), "the manifest has no spec"),
    ] {
        std::fs::write(base.join("p.yaml"), &manifest)?;
        let done = plugin(&base, &["validate", "m.wasm", "-f", "p.yaml"]).await?;
        ensure!(done.code == 1 && (done.out + &done.err).contains(words), "{manifest}: {}", done.err);
    }
    std::fs::write(base.join("config.json"), "{")?;
    let no = plugin(&base, &["validate", "m.wasm", "--with-config", "config.json"]).await?;
    ensure!(no.code == 1 && no.err.contains("config.json is no JSON"), "{}", no.err);
    Ok(())
}

async fn mistakes_are_named(_: Cx) -> Result<()> {
    let base = work("mistakes")?;
    let no = plugin(&base, &["build"]).await?;
    ensure!(no.code == 1 && no.err.contains("scaleup plugin new"), "{}", no.err);
    std::fs::write(base.join("a.wasm"), "#!/bin/sh")?;
    let no = plugin(&base, &["validate", "a.wasm"]).await?;
    ensure!(no.code == 1 && no.err.contains("these bytes are no WebAssembly"), "{}", no.err);
    plugin(&base, &["new", "p", "--lang", "c"]).await?.expect(0)?;
    let no = plugin(&base, &["test", "p"]).await?;
    ensure!(no.code == 1 && no.err.contains("scaleup plugin build p"), "{}", no.err);
    std::fs::write(base.join("p/schema.json"), "{")?;
    let no = plugin(&base, &["build", "p"]).await?;
    ensure!(no.code == 1 && no.err.contains("schema.json is no JSON"), "{}", no.err);
    let no = plugin(&base, &["replay", "a.wasm", "--records", "nowhere"]).await?;
    ensure!(no.code == 2 && no.err.contains("nowhere"), "{}", no.err);
    Ok(())
}
