//! Plugins: every field is checked.

use scaleup_api::plugin::{ClusterWasmPlugin, WasmPlugin};
use serde_json::json;

use super::super::custom::CustomRules;
use super::super::field::test::*;
use super::*;
use crate::registry::{AnyRules, RuleContext, Typed};

const RULES: fn() -> CustomRules<WasmPlugin> = CustomRules::new;
const SUM: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// The messages begin with these, in this order.
#[track_caller]
fn begin(result: Result<serde_json::Value, Vec<String>>, expected: &[&str]) {
    let messages = result.err().unwrap_or_default();
    let same = messages.iter().zip(expected).all(|(message, start)| message.starts_with(&format!("spec.{start}")));
    assert!(same && messages.len() == expected.len(), "{messages:#?} instead of {expected:#?}");
}

/// A plugin whose specification is this gives exactly these messages.
#[track_caller]
fn check(spec: &str, expected: &[&str]) {
    begin(create(RULES(), &format!("{{metadata: {{name: a}}, spec: {{{spec}}}}}")), expected);
}

#[track_caller]
fn routing(spec: &str, expected: &[&str]) {
    check(&format!("world: routing, {spec}"), expected);
}

#[test]
fn everything_at_once_is_accepted_and_kept() {
    let spec = format!(
        "world: admission, source: {{oci: {{reference: 'r.example:5000/a/b:1', pullSecret: {{name: s}}, plainHttp: true}}}}, sha256: {SUM}, \
         config: {{a: [1, null, {{b: x}}]}}, limits: {{memory: 16Mi, time: 20ms, fuel: 1000}}, failurePolicy: {{trap: BuiltIn}}, \
         rollout: {{shadow: {{duration: 1m, decisions: 10, maxDifferencePercent: 5}}, canary: [{{percent: 10}}, {{percent: 50, decisions: 5}}]}}, \
         admission: {{rules: [{{operations: [CREATE], apiGroups: [''], resources: [pods]}}], namespaceSelector: {{matchLabels: {{a: b}}}}}}, \
         recording: {{samplePercent: 10, plainHeaders: [x-user]}}"
    );
    let stored = create(RULES(), &format!("{{metadata: {{name: a}}, spec: {{{spec}}}}}")).expect("valid");
    assert_eq!(stored["spec"]["config"], json!({"a": [1, null, {"b": "x"}]}));
    let policy = &stored["spec"]["failurePolicy"];
    assert_eq!((&policy["trap"], &policy["fetch"]), (&json!("BuiltIn"), &json!("Refuse")));
    assert_eq!(stored["spec"]["rollout"]["maxErrorPercent"], 1);
    let stored =
        create(RULES(), "{metadata: {name: a}, spec: {world: routing, source: {inline: AAAA}}}").expect("valid");
    assert_eq!(stored["spec"]["failurePolicy"]["fetch"], "BuiltIn");
}

#[test]
fn sources() {
    routing("source: {inline: AAAA}", &[]);
    routing("source: {}", &["source: Required value"]);
    routing("source: {inline: AAAA, configMapRef: {name: a, key: b}}", &["source: Forbidden"]);
    routing("source: {inline: '*'}", &["source.inline: Invalid value"]);
    routing("source: {inline: ''}", &["source.inline: Required value"]);
    routing(&format!("source: {{inline: {}}}", "A".repeat(1_400_000)), &["source.inline: Too long"]);
    routing(
        "source: {configMapRef: {name: A_, key: '..'}}",
        &["source.configMapRef.name: Invalid value", "source.configMapRef.key: Invalid value"],
    );
    routing("source: {secretRef: {name: a, key: b, namespace: c}}", &["source.secretRef.namespace: Forbidden"]);
    routing("source: {blob: abc}", &["source.blob: Invalid value"]);
    routing(&format!("source: {{blob: {SUM}}}"), &[]);
    routing(&format!("source: {{blob: {SUM}}}, sha256: {}", SUM.replace('0', "1")), &["source.blob: Invalid value"]);
    routing("source: {https: {url: 'https://a/b'}}", &["sha256: Required value"]);
    routing("source: {oci: {reference: 'a/b:1'}}", &["sha256: Required value"]);
    for bad in ["http://a/b", "https://", "https://u@a/b", "https://a/b#c", "a"] {
        routing(&format!("source: {{https: {{url: '{bad}'}}}}, sha256: {SUM}"), &["source.https.url: Invalid value"]);
    }
    let ca = format!("source: {{https: {{url: 'https://a/b', caBundle: x}}}}, sha256: {SUM}");
    routing(&ca, &["source.https.caBundle: Invalid value"]);
    routing("source: {inline: AAAA}, sha256: AB", &["sha256: Invalid value"]);
    routing(
        "source: {inline: AAAA}, signature: {publicKey: AAAA, value: ''}",
        &["signature.publicKey: Invalid value", "signature.value: Required value"],
    );
}

#[test]
fn worlds_and_bindings() {
    check("source: {inline: AAAA}", &["world: Required value"]);
    check("world: walking, source: {inline: AAAA}", &["world: Unsupported value"]);
    check("world: admission, source: {inline: AAAA}", &["admission: Required value"]);
    check("world: scheduling, source: {inline: AAAA}", &[]);
    routing(
        "source: {inline: AAAA}, admission: {rules: []}",
        &["admission: Forbidden", "admission.rules: Required value"],
    );
    check(
        "world: scheduling, source: {inline: AAAA}, scheduling: {schedulerNames: [a], weight: 0, nodeLabels: [zone, 'no key']}",
        &[
            "scheduling.weight: Invalid value",
            "scheduling.schedulerNames: Forbidden",
            "scheduling.nodeLabels[1]: Invalid value",
        ],
    );
    check(
        "world: admission, source: {inline: AAAA}, admission: {rules: [{operations: [READ], apiGroups: ['*', a], resources: ['']}]}",
        &[
            "admission.rules[0].operations[0]: Unsupported value",
            "admission.rules[0].apiGroups[0]: Invalid value",
            "admission.rules[0].resources[0]: Required value",
        ],
    );
}

#[test]
fn numbers() {
    routing(
        "source: {inline: AAAA}, limits: {memory: 1Gi, time: x}",
        &["limits.memory: Invalid value", "limits.time: Invalid value"],
    );
    routing("source: {inline: AAAA}, failurePolicy: {trap: Maybe}", &["failurePolicy.trap: Unsupported value"]);
    routing(
        "source: {inline: AAAA}, rollout: {maxErrorPercent: 101, shadow: {duration: x, decisions: -1}, canary: [{percent: 20}, {percent: 20}, {percent: 100}]}",
        &[
            "rollout.shadow.duration: Invalid value",
            "rollout.shadow.decisions: Invalid value",
            "rollout.maxErrorPercent: Invalid value",
            "rollout.canary[1].percent: Invalid value",
            "rollout.canary[2].percent: Invalid value",
        ],
    );
    routing(
        "source: {inline: AAAA}, recording: {samplePercent: 0, maxRecords: 10001, plainHeaders: ['a b']}",
        &[
            "recording.samplePercent: Invalid value",
            "recording.maxRecords: Invalid value",
            "recording.plainHeaders[0]: Invalid value",
        ],
    );
    routing(&format!("source: {{inline: AAAA}}, config: {}", "x".repeat(70_000)), &["config: Too long"]);
}

#[test]
fn the_world_stays() {
    let text = |world: &str| format!("{{metadata: {{name: a}}, spec: {{world: {world}, source: {{inline: AAAA}}}}}}");
    begin(update(RULES, &text("routing"), &text("pricing")), &["world: Invalid value"]);
}

#[test]
fn cluster_plugins_say_where_things_are() {
    let rules = Typed(CustomRules::<ClusterWasmPlugin>::new());
    let cx = RuleContext { namespace: "", subresource: None };
    let create = |spec: &str| {
        let object = rules.decode(yaml(&format!("{{metadata: {{name: a}}, spec: {{{spec}}}}}"))).unwrap().object;
        rules.create(object, &cx).map_err(|errors| errors.iter().map(FieldError::body).collect::<Vec<_>>().join("\n"))
    };
    assert!(create("world: routing, source: {secretRef: {name: a, key: b}}").unwrap_err().contains("Required value"));
    create("world: routing, source: {secretRef: {name: a, key: b, namespace: c}}").expect("valid");
    assert!(create("world: scheduling, source: {inline: AAAA}").is_err());
    create("world: scheduling, source: {inline: AAAA}, scheduling: {schedulerNames: [gpu]}").expect("valid");
}
