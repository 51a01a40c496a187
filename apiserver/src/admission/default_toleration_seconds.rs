//! `DefaultTolerationSeconds`: pods stay 300 s on a node that is not ready or unreachable, unless they say otherwise.

use std::sync::Arc;

use async_trait::async_trait;
use scaleup_api::well_known::{TAINT_NOT_READY, TAINT_UNREACHABLE};
use serde_json::{Value, json};

use super::{Attributes, Plugin, list, push, text};
use crate::error::ApiError;

/// Upstream's default of both `--default-*-toleration-seconds` flags.
const SECONDS: i64 = 300;

pub(super) struct DefaultTolerationSeconds;

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }
    async fn mutate(&self, _: &Arc<crate::Server>, attributes: &mut Attributes<'_>) -> Result<(), ApiError> {
        if attributes.is("", "pods") && !attributes.deletes() && attributes.object["spec"].is_object() {
            add(&mut attributes.object["spec"]);
        }
        Ok(())
    }
}

fn add(spec: &mut Value) {
    for taint in [TAINT_NOT_READY, TAINT_UNREACHABLE] {
        let tolerates = |t: &Value| {
            matches!(text(t, &["key"]), key if key.is_empty() || key == taint)
                && matches!(text(t, &["effect"]), "" | "NoExecute")
        };
        if !list(spec, &["tolerations"]).iter().any(tolerates) {
            let toleration =
                json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS});
            push(spec, "tolerations", toleration);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_added() {
        let check = |tolerations: Value, expected: &[&str]| {
            let mut spec = json!({"tolerations": tolerations});
            let before = list(&spec, &["tolerations"]).len();
            add(&mut spec);
            let added: Vec<&str> =
                list(&spec, &["tolerations"])[before..].iter().map(|t| t["key"].as_str().unwrap()).collect();
            assert_eq!(added, expected, "{tolerations}");
            let once = spec.clone();
            add(&mut spec);
            assert_eq!(spec, once, "again changes nothing");
        };
        check(Value::Null, &[TAINT_NOT_READY, TAINT_UNREACHABLE]);
        check(json!([{"operator": "Exists"}]), &[]);
        check(json!([{"key": TAINT_NOT_READY, "operator": "Exists", "effect": "NoExecute"}]), &[TAINT_UNREACHABLE]);
        check(
            json!([{"key": TAINT_UNREACHABLE, "operator": "Exists", "effect": "NoSchedule"}]),
            &[TAINT_NOT_READY, TAINT_UNREACHABLE],
        );
        check(json!([{"operator": "Exists", "effect": "NoExecute"}]), &[]);
    }
}
