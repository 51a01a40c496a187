//! `TaintNodesByCondition`: a new node takes no pods until the node lifecycle controller has seen it ready.

use std::sync::Arc;

use async_trait::async_trait;
use scaleup_api::well_known::TAINT_NOT_READY;
use serde_json::{Value, json};

use super::{Attributes, Plugin, list, push, text};
use crate::error::ApiError;

pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }
    async fn mutate(&self, _: &Arc<crate::Server>, attributes: &mut Attributes<'_>) -> Result<(), ApiError> {
        if attributes.is("", "nodes") && attributes.creates() {
            taint(attributes.object);
        }
        Ok(())
    }
}

fn taint(node: &mut Value) {
    let there = |t: &Value| text(t, &["key"]) == TAINT_NOT_READY && text(t, &["effect"]) == "NoSchedule";
    if !list(node, &["spec", "taints"]).iter().any(there) {
        if !node["spec"].is_object() {
            node["spec"] = json!({});
        }
        push(&mut node["spec"], "taints", json!({"key": TAINT_NOT_READY, "effect": "NoSchedule"}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_nodes_are_tainted_once() {
        let wanted = json!({"key": TAINT_NOT_READY, "effect": "NoSchedule"});
        let other = json!({"key": "gpu", "effect": "NoSchedule"});
        for (before, after) in [
            (json!({}), json!([wanted])),
            (json!({"spec": {"taints": null}}), json!([wanted])),
            (json!({"spec": {"taints": [other]}}), json!([other, wanted])),
            (json!({"spec": {"taints": [wanted]}}), json!([wanted])),
        ] {
            let mut node = before;
            taint(&mut node);
            assert_eq!(node["spec"]["taints"], after);
        }
    }
}
