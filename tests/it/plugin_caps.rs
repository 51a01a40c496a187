//! Caps on what the plugins of a namespace may use, as an administrator sets them and its users meet them.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use scaleup_plugins::World;
use scaleup_plugins::testing::Guest;
use scaleup_tests::eventually;
use serde_json::{Value, json};

use crate::plugins::manifest;
use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![cx, "plugin_caps", plugins_stay_within_the_caps_of_their_namespace]
}

async fn plugins_stay_within_the_caps_of_their_namespace(cx: Cx) -> Result<()> {
    const NAMESPACE: &str = "plugin-caps";
    let kubectl = cx.fake().await?.kubectl();
    kubectl.namespace(NAMESPACE).await?;
    let caps = r#"policy.scaleup.dev/plugin-caps={"memory":"256Ki","time":"10ms"}"#;
    kubectl.ok_args(&["annotate", "namespace", NAMESPACE, caps], "").await?;
    let refused = kubectl
        .run(&[
            "annotate",
            "--overwrite",
            "namespace",
            NAMESPACE,
            r#"policy.scaleup.dev/plugin-caps={"memory":"lots"}"#,
        ])
        .await?;
    ensure!(refused.code != 0 && refused.stderr.contains("plugin-caps cannot be read: memory"), "{}", refused.stderr);

    let module = |pages| Guest::new(World::Routing, "(i32.const 1024)").pages(pages).component();
    let plugin = |name: &str, pages, more: Value| manifest(NAMESPACE, name, World::Routing, &module(pages), &more);
    let greedy = plugin("greedy", 1, json!({"limits": {"time": "11ms"}})).to_string();
    let refused = kubectl.run_with(&["apply", "-f", "-"], &greedy).await?;
    let words = r#"spec.limits.time is "11ms", and at most "10ms" in this namespace"#;
    ensure!(refused.code != 0 && refused.stderr.contains(words), "{}", refused.stderr);

    // One page is 64 KiB: what is not asked for is what the namespace may have.
    kubectl.apply(&plugin("small", 2, json!({})).to_string()).await?;
    kubectl.apply(&plugin("large", 8, json!({})).to_string()).await?;
    for (name, condition, reason) in [("small", "Active", "Active"), ("large", "Compiled", "LimitsExceeded")] {
        eventually("its status says what the cap made of it", || async {
            let text = kubectl.ok(&format!("-n {NAMESPACE} get wasmplugin {name} -o json")).await?;
            let found: Value = serde_json::from_str(&text)?;
            ensure!(found["spec"]["limits"] == json!({"memory": "256Ki"}), "{}", found["spec"]["limits"]);
            let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
            ensure!(
                conditions.iter().any(|c| c["type"] == condition && c["reason"] == reason),
                "{name}: {conditions:?}"
            );
            Ok(Some(()))
        })
        .await?;
    }
    Ok(())
}
