//! Modules that are no good, and modules that are but misbehave.

use anyhow::{Context, Result, ensure};
use scaleup_plugins::World;
use scaleup_plugins::testing::Guest;
use scaleup_tests::eventually;
use serde_json::{Value, json};

use super::{Lab, admission, allow, condition, deny, trap};
use crate::Cx;

/// A name, a module, more of the specification, the condition that is not met, its reason and a part of its message.
type NoGood = (&'static str, Vec<u8>, Value, &'static str, &'static str, &'static str);

/// Thousands of lines of arithmetic: too much for a second of compiling.
fn bomb() -> Vec<u8> {
    let body =
        "(local.set $in (i32.add (i32.mul (local.get $in) (local.get $in)) (i32.rotl (local.get $in) (i32.const 7))))
        (if (i32.and (local.get $in) (i32.const 1)) (then (local.set $in (i32.sub (i32.const 3) (local.get $in)))))\n"
            .repeat(20_000);
    admission(&format!("{body} (i32.const 1024)")).core()
}

/// A component with a section of exports after its own: its first instance once more under each of these names.
fn with_exports(guest: &Guest, names: impl ExactSizeIterator<Item = String>) -> Vec<u8> {
    let unsigned = |mut n: usize| {
        let mut bytes = Vec::new();
        while n >= 0x80 {
            bytes.push((n & 0x7f) as u8 | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    };
    let mut section = unsigned(names.len());
    for name in names {
        section.push(0);
        section.extend(unsigned(name.len()));
        section.extend(name.into_bytes());
        // An instance, number 0, without a type of its own.
        section.extend([5, 0, 0]);
    }
    [guest.component(), vec![11], unsigned(section.len()), section].concat()
}

fn no_good() -> Vec<NoGood> {
    let good = allow().component();
    let half = good[..good.len() / 2].to_vec();
    let example = [["e", "{}", r#"{"group": "x"}"#, r#"{"verdict": {"deny": {"message": "no"}}}"#]];
    let strict = allow().metadata(r#"{"type": "object", "required": ["tier"]}"#, &[]).component();
    let many = with_exports(&allow(), (0..50_000).map(|i| format!("e{i}")));
    let long_name = with_exports(&allow(), std::iter::once("e".repeat(200_000)));
    let other = Guest::new(World::Pricing, "(i32.const 1024)").component();
    vec![
        ("text", b"#!/bin/sh\nrm -rf /\n".to_vec(), json!({}), "Compiled", "InvalidModule", "no WebAssembly"),
        ("truncated", half, json!({}), "Compiled", "InvalidModule", "not a WebAssembly component"),
        ("digest", good.clone(), json!({"sha256": "0".repeat(64)}), "Verified", "DigestMismatch", "SHA-256"),
        ("world", other, json!({}), "Compiled", "WrongWorld", "admission"),
        ("export", allow().without("examples").core(), json!({}), "Compiled", "InvalidModule", "examples"),
        ("bomb", bomb(), json!({"limits": {"compileTime": "1s"}}), "Compiled", "TooExpensive", "compiling takes more"),
        ("exports", many, json!({}), "Compiled", "InvalidModule", "exceeds limit"),
        ("name", long_name, json!({}), "Compiled", "InvalidModule", "not a WebAssembly component"),
        ("memory", allow().pages(2_000).component(), json!({}), "Compiled", "LimitsExceeded", "memory"),
        ("size", good, json!({"limits": {"moduleSize": "100"}}), "Fetched", "FetchFailed", "at most 100"),
        ("config", strict, json!({"config": {}}), "Probed", "ConfigInvalid", "config.tier is required"),
        ("example", allow().metadata("", &example).component(), json!({}), "Probed", "ExampleFailed", "\"e\""),
    ]
}

pub async fn modules_that_are_no_good_say_so(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let lab = Lab::new(cluster, "plugins-no-good").await?;
    let process = cluster.pid();
    lab.apply("good", &deny("no, thanks").component(), &json!({})).await?;
    lab.decides("good", 1).await?;
    let all = no_good();
    let open = |name: &str| format!("{name}-open");
    for (name, module, more, ..) in &all {
        lab.apply(name, module, more).await?;
        let mut more = more.clone();
        more["failurePolicy"] = json!({"fetch": "BuiltIn", "compile": "BuiltIn"});
        lab.apply(&open(name), module, &more).await?;
    }
    for (name, _, _, kind, reason, message) in &all {
        for name in [(*name).to_owned(), open(name)] {
            let status = lab
                .until(&name, "its status says what is wrong", |status| {
                    condition(status, kind).0 == "False" && status["holders"].is_object()
                })
                .await?;
            let found = condition(&status, kind);
            ensure!(found.1 == *reason && found.2.contains(message), "{name}: {found:?}");
            ensure!(condition(&status, "Active").1 == "NoVersion", "{name}: {status:#}");
        }
        // Admission fails closed unless it is told otherwise.
        let answer = lab.ask(name).await?;
        ensure!(answer.status == 500, "{name}: {} {}", answer.status, answer.text);
        eventually("the failure policy is followed", || async {
            Ok(lab.ask(&open(name)).await?.status.is_success().then_some(()))
        })
        .await?;
        well(&lab).await.with_context(|| format!("beside {name}"))?;
    }
    // Writes that nobody asked to decide about are untouched.
    ensure!(lab.ask("nobody").await?.status.is_success());
    // A good version after a bad one.
    lab.apply("truncated", &allow().component(), &json!({})).await?;
    lab.decides("truncated", 1).await?;
    ensure!(lab.ask("truncated").await?.status.is_success());
    // A bad version after a good one never decides.
    lab.apply("good", b"junk", &json!({})).await?;
    let status =
        lab.until("good", "the bad version is refused", |status| condition(status, "Compiled").0 == "False").await?;
    ensure!(condition(&status, "Active").1 == "PreviousVersion", "{status:#}");
    well(&lab).await?;
    ensure!(cluster.pid() == process && lab.api.get("/readyz").await?.status.is_success(), "the host is not well");
    Ok(())
}

/// Whether the plugin `good` still decides.
async fn well(lab: &Lab<'_>) -> Result<()> {
    let good = lab.ask("good").await?;
    ensure!(good.status == 403 && good.message().contains("no, thanks"), "{} {}", good.status, good.text);
    Ok(())
}

/// A name, a module and the class of its failure.
fn misbehaving() -> Vec<(&'static str, Guest, &'static str)> {
    let text = |at: &str, length: &str| {
        format!(
            "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store (i32.const 1028) (i32.const {at}))
             (i32.store (i32.const 1032) (i32.const {length})) (i32.const 1024)"
        )
    };
    vec![
        ("trap", trap(), "trap"),
        ("loop", admission("(loop $l (br $l)) unreachable"), "timeout"),
        (
            "recursion",
            admission("(call $deep (local.get $in))")
                .extra("(func $deep (param i32) (result i32) (i32.add (call $deep (local.get 0)) (i32.const 1)))"),
            "trap",
        ),
        (
            "growth",
            admission("(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable"),
            "trap",
        ),
        (
            "tables",
            admission(
                "(loop $l (br_if $l (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1)))) unreachable",
            )
            .extra("(table $t 1 funcref)"),
            "trap",
        ),
        ("utf8", admission(&text("2048", "2")).extra("(data (i32.const 2048) \"\\ff\\fe\")"), "invalid_output"),
        ("range", admission(&text("2147483647", "10")), "invalid_output"),
        ("variant", admission("(i32.store8 (i32.const 1024) (i32.const 9)) (i32.const 1024)"), "invalid_output"),
        ("oversized", admission(&text("65536", "1900000")).pages(32), "invalid_output"),
    ]
}

/// A name, a module that takes what it can get and decides all the same, and more of the specification.
fn greedy() -> Vec<(&'static str, Vec<u8>, Value)> {
    let flood = admission(
        "(local $i i32)
         (loop $l
           (call $log (i32.const 1) (i32.const 2048) (i32.const 5))
           (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 5000))))
         (i32.const 1024)",
    )
    .imports(r#"(import "scaleup:policy/logging@0.1.0" "log" (func $log (param i32 i32 i32)))"#)
    .extra(r#"(data (i32.const 2048) "hello")"#);
    // Grows by 1 MiB until that fails, and then allows.
    let fills = admission("(loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (i32.const 1024)");
    let exports: String =
        (0..5_000).map(|i| format!("(func (export \"e{i}\") (param i32) (result i32) unreachable)\n")).collect();
    vec![
        ("flood", flood.component(), json!({})),
        ("fills", fills.component(), json!({"limits": {"memory": "8Mi"}})),
        ("exports", with_exports(&allow(), (0..500).map(|i| format!("e{i}"))), json!({})),
        ("core-exports", allow().extra(&exports).core(), json!({})),
    ]
}

pub async fn plugins_that_misbehave_hurt_nobody_else(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let lab = Lab::new(cluster, "plugins-misbehaving").await?;
    let process = cluster.pid();
    lab.apply("good", &deny("no, thanks").component(), &json!({})).await?;
    let (all, greedy) = (misbehaving(), greedy());
    let open = |name: &str| format!("{name}-open");
    for (name, guest, class) in &all {
        let field: &str = if *class == "invalid_output" { "invalidOutput" } else { class };
        let limits = json!({"time": "200ms"});
        lab.apply(name, &guest.component(), &json!({"limits": limits})).await?;
        let more = json!({"limits": limits, "failurePolicy": {field: "BuiltIn"}});
        lab.apply(&open(name), &guest.component(), &more).await?;
    }
    for (name, module, more) in &greedy {
        lab.apply(name, module, more).await?;
    }
    let names = all.iter().map(|(name, ..)| *name).chain(greedy.iter().map(|(name, ..)| *name)).chain(["good"]);
    for name in names.map(str::to_owned).chain(all.iter().map(|(name, ..)| open(name))) {
        lab.decides(&name, 1).await?;
    }
    for (name, _, class) in &all {
        for _ in 0..3 {
            let answer = lab.ask(name).await?;
            ensure!(answer.status == 500 && answer.message().contains(class), "{name}: {}", answer.text);
            let answer = lab.ask(&open(name)).await?;
            ensure!(answer.status.is_success(), "{name}: {} {}", answer.status, answer.text);
            well(&lab).await.with_context(|| format!("beside {name}"))?;
        }
        for name in [(*name).to_owned(), open(name)] {
            let status =
                lab.until(&name, "its failures are counted", |status| status["totals"]["errors"].is_object()).await?;
            ensure!(status["totals"]["errors"][class].as_u64() > Some(0), "{name}: {status:#}");
        }
    }
    // Six failures within seconds, and no version to go back to.
    let status =
        lab.until("trap-open", "it is given a rest", |status| condition(status, "Active").1 == "Failing").await?;
    let (state, _, message) = condition(&status, "Active");
    ensure!(state == "True" && message.contains("version 1 decides, but it keeps failing at "), "{message}");
    for (name, ..) in &greedy {
        let answer = lab.ask(name).await?;
        ensure!(answer.status.is_success(), "{name}: {} {}", answer.status, answer.text);
        well(&lab).await.with_context(|| format!("beside {name}"))?;
    }
    let status = lab.until("fills", "its memory is told", |status| status["totals"]["memoryBytes"].is_u64()).await?;
    let bytes = status["totals"]["memoryBytes"].as_u64().unwrap_or(0);
    ensure!(bytes > 7 << 20 && bytes <= 8 << 20, "{status:#}");
    let metrics = lab.api.get("/metrics").await?.text;
    let lines = |result: &str| {
        let name = format!("scaleup_plugin_log_lines_total{{plugin=\"{}/flood\",result=\"{result}\"}} ", lab.namespace);
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok())
    };
    let (written, dropped) = (lines("written").context("no figure")?, lines("dropped").context("no figure")?);
    ensure!(written >= 100 && dropped > 10 * written, "{written} lines were written, {dropped} dropped");
    ensure!(cluster.pid() == process && lab.api.get("/readyz").await?.status.is_success(), "the host is not well");
    Ok(())
}

/// Traps in every third call. Instances come and go: the calls are counted in the plugin's state.
fn traps_every_third_call() -> Guest {
    admission(
        "(local $length i32)
         (call $get (i32.const 2048) (i32.const 1) (i32.const 2064))
         (if (i32.load8_u (i32.const 2064)) (then (local.set $length (i32.load offset=8 (i32.const 2064)))))
         (call $set (i32.const 2048) (i32.const 1) (i32.const 2048) (i32.add (local.get $length) (i32.const 1)) (i32.const 2096))
         (if (i32.eq (i32.rem_u (local.get $length) (i32.const 3)) (i32.const 2)) (then unreachable))
         (i32.const 1024)",
    )
    .imports(
        r#"(import "scaleup:policy/state@0.1.0" "get" (func $get (param i32 i32 i32)))
           (import "scaleup:policy/state@0.1.0" "set" (func $set (param i32 i32 i32 i32 i32)))"#,
    )
    .extra(r#"(data (i32.const 2048) "k")"#)
}

pub async fn a_trap_now_and_then_costs_those_writes_alone(cx: Cx) -> Result<()> {
    let lab = Lab::new(cx.fake().await?, "plugins-nth").await?;
    let module = traps_every_third_call().component();
    lab.apply("good", &deny("no, thanks").component(), &json!({})).await?;
    lab.apply("closed", &module, &json!({})).await?;
    lab.apply("open", &module, &json!({"failurePolicy": {"trap": "BuiltIn"}})).await?;
    for name in ["good", "closed", "open"] {
        lab.decides(name, 1).await?;
    }
    // A write is asked about twice: to change it, and to judge it. Fewer failures than those after which it is given a rest.
    let mut refused = 0;
    for turn in 0..8 {
        let answer = lab.ask("closed").await?;
        match answer.status.as_u16() {
            201 => {}
            500 if answer.message().contains("trap") => refused += 1,
            other => anyhow::bail!("turn {turn}: {other} {}", answer.text),
        }
        ensure!(lab.ask("open").await?.status.is_success(), "turn {turn}");
        well(&lab).await?;
    }
    ensure!((2..=5).contains(&refused), "{refused} of 8 writes were refused");
    for name in ["closed", "open"] {
        let status = lab.until(name, "its failures are counted", |status| {
            status["totals"]["errors"]["trap"].as_u64() >= Some(2) && status["totals"]["decisions"].as_u64() >= Some(12)
        });
        let status = status.await?;
        let totals = &status["totals"];
        ensure!(name == "open" || totals["errors"]["trap"] == refused, "{refused} refusals: {totals}");
    }
    Ok(())
}
