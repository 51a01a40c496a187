//! Modules that are no good, and modules that are but misbehave.

use anyhow::{Result, ensure};
use scaleup_plugins::World;
use scaleup_plugins::testing::Guest;
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

fn no_good() -> Vec<NoGood> {
    let good = allow().component();
    let half = good[..good.len() / 2].to_vec();
    let example = [["e", "{}", r#"{"group": "x"}"#, r#"{"verdict": {"deny": {"message": "no"}}}"#]];
    let strict = allow().metadata(r#"{"type": "object", "required": ["tier"]}"#, &[]).component();
    let other = Guest::new(World::Pricing, "(i32.const 1024)").component();
    vec![
        ("text", b"#!/bin/sh\nrm -rf /\n".to_vec(), json!({}), "Compiled", "InvalidModule", "no WebAssembly"),
        ("truncated", half, json!({}), "Compiled", "InvalidModule", "not a WebAssembly component"),
        ("digest", good.clone(), json!({"sha256": "0".repeat(64)}), "Verified", "DigestMismatch", "SHA-256"),
        ("world", other, json!({}), "Compiled", "WrongWorld", "admission"),
        ("export", allow().without("examples").core(), json!({}), "Compiled", "InvalidModule", "examples"),
        ("bomb", bomb(), json!({"limits": {"compileTime": "1s"}}), "Compiled", "TooExpensive", "compiling takes more"),
        ("memory", allow().pages(2_000).component(), json!({}), "Compiled", "LimitsExceeded", "memory"),
        ("size", good, json!({"limits": {"moduleSize": "100"}}), "Fetched", "FetchFailed", "at most 100"),
        ("config", strict, json!({"config": {}}), "Probed", "ConfigInvalid", "config.tier is required"),
        ("example", allow().metadata("", &example).component(), json!({}), "Probed", "ExampleFailed", "\"e\""),
    ]
}

pub async fn modules_that_are_no_good_say_so(cx: Cx) -> Result<()> {
    let lab = Lab::new(cx.fake().await?, "plugins-no-good").await?;
    lab.apply("good", &deny("no, thanks").component(), &json!({})).await?;
    lab.decides("good", 1).await?;
    let all = no_good();
    for (name, module, more, ..) in &all {
        lab.apply(name, module, more).await?;
    }
    for (name, _, _, kind, reason, message) in &all {
        let status = lab
            .until(name, "its status says what is wrong", |status| {
                condition(status, kind).0 == "False" && status["holders"].is_object()
            })
            .await?;
        let found = condition(&status, kind);
        ensure!(found.1 == *reason && found.2.contains(message), "{name}: {found:?}");
        ensure!(condition(&status, "Active").1 == "NoVersion", "{name}: {status:#}");
        // Admission fails closed unless it is told otherwise.
        let answer = lab.ask(name).await?;
        ensure!(answer.status == 500, "{name}: {} {}", answer.status, answer.text);
    }
    // What its author wants instead is done.
    let (name, module, ..) = &all[0];
    lab.apply(name, module, &json!({"failurePolicy": {"compile": "BuiltIn"}})).await?;
    scaleup_tests::eventually("the failure policy is followed", || async {
        Ok(lab.ask(name).await?.status.is_success().then_some(()))
    })
    .await?;
    // Another plugin, and writes that nobody asked to decide about, are untouched.
    let answer = lab.ask("good").await?;
    ensure!(answer.status == 403 && answer.message().contains("no, thanks"), "{}", answer.text);
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
    ensure!(lab.ask("good").await?.message().contains("no, thanks"));
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

pub async fn plugins_that_misbehave_hurt_nobody_else(cx: Cx) -> Result<()> {
    let lab = Lab::new(cx.fake().await?, "plugins-misbehaving").await?;
    lab.apply("good", &deny("no, thanks").component(), &json!({})).await?;
    let all = misbehaving();
    for (name, guest, _) in &all {
        lab.apply(name, &guest.component(), &json!({"limits": {"time": "200ms"}})).await?;
    }
    let flood = admission(
        "(local $i i32)
         (loop $l
           (call $log (i32.const 0) (i32.const 2048) (i32.const 5))
           (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 5000))))
         (i32.const 1024)",
    )
    .imports(r#"(import "scaleup:policy/logging@0.1.0" "log" (func $log (param i32 i32 i32)))"#)
    .extra(r#"(data (i32.const 2048) "hello")"#);
    lab.apply("flood", &flood.component(), &json!({})).await?;
    for name in all.iter().map(|(name, ..)| *name).chain(["good", "flood"]) {
        lab.decides(name, 1).await?;
    }
    for (name, _, class) in &all {
        for _ in 0..3 {
            let answer = lab.ask(name).await?;
            ensure!(answer.status == 500, "{name}: {} {}", answer.status, answer.text);
            let good = lab.ask("good").await?;
            ensure!(good.status == 403 && good.message().contains("no, thanks"), "beside {name}: {}", good.text);
        }
        let status =
            lab.until(name, "its failures are counted", |status| status["totals"]["errors"].is_object()).await?;
        ensure!(status["totals"]["errors"][class].as_u64() > Some(0), "{name}: {status:#}");
    }
    ensure!(lab.ask("flood").await?.status.is_success());
    // The one whose failures are none of the writer's business.
    let (_, guest, _) = &all[0];
    lab.apply("trap", &guest.component(), &json!({"failurePolicy": {"trap": "BuiltIn"}})).await?;
    scaleup_tests::eventually("the failure policy is followed", || async {
        Ok(lab.ask("trap").await?.status.is_success().then_some(()))
    })
    .await
}
