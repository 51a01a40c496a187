//! `DefaultIngressClass`: an Ingress that names no class gets the one that is marked as default.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Attributes, Plugin, text};
use crate::cache::Reader;
use crate::error::ApiError;
use crate::kinds::ingress::{CLASS_ANNOTATION, DEFAULT_CLASS_ANNOTATION};

const GROUP: &str = "networking.k8s.io";

pub(super) struct DefaultIngressClass;

#[async_trait]
impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }
    async fn mutate(&self, server: &Arc<crate::Server>, attributes: &mut Attributes<'_>) -> Result<(), ApiError> {
        if attributes.is(GROUP, "ingresses") && attributes.creates() && attributes.object["spec"].is_object() {
            assign(&*server.caches, attributes);
        }
        Ok(())
    }
}

/// Of several defaults the youngest counts, then the first by name, as upstream picks.
fn assign(caches: &dyn Reader, attributes: &mut Attributes<'_>) {
    let annotated = !attributes.object["metadata"]["annotations"][CLASS_ANNOTATION].is_null();
    if annotated || !attributes.object["spec"]["ingressClassName"].is_null() {
        return;
    }
    let classes = caches.list(GROUP, "ingressclasses", None);
    let defaults = classes.iter().map(|c| c.value());
    let defaults = defaults.filter(|c| text(c, &["metadata", "annotations", DEFAULT_CLASS_ANNOTATION]) == "true");
    let key = |c: &serde_json::Value| {
        let created = text(c, &["metadata", "creationTimestamp"]).to_owned();
        (std::cmp::Reverse(created), text(c, &["metadata", "name"]).to_owned())
    };
    if let Some((_, name)) = defaults.map(|c| key(&c)).min() {
        attributes.object["spec"]["ingressClassName"] = name.into();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::testing::Write;
    use super::*;
    use crate::auth::testing::MapReader;

    fn class(name: &str, default: &str, created: &str) -> (&'static str, &'static str, Value) {
        let metadata =
            json!({"name": name, "creationTimestamp": created, "annotations": {DEFAULT_CLASS_ANNOTATION: default}});
        (GROUP, "ingressclasses", json!({"metadata": metadata}))
    }

    #[test]
    fn the_default_class_is_filled_in() {
        let old = class("a", "true", "2024-01-01T00:00:00Z");
        let other = class("b", "false", "2024-03-01T00:00:00Z");
        let check = |classes: &[(&str, &str, Value)], object: Value, expected: Value| {
            let reader = MapReader::new(classes);
            let mut write = Write::create(GROUP, "Ingress", "ingresses", object);
            write.with(|a| assign(&*reader, a));
            assert_eq!(write.object["spec"]["ingressClassName"], expected);
        };
        let plain = json!({"metadata": {"name": "i", "namespace": "n"}, "spec": {}});
        check(&[], plain.clone(), Value::Null);
        check(&[old.clone(), other.clone()], plain.clone(), json!("a"));
        let newer = class("c", "true", "2024-02-01T00:00:00Z");
        check(&[old.clone(), other, newer], plain, json!("c"));
        let named = json!({"metadata": {"name": "i", "namespace": "n"}, "spec": {"ingressClassName": "x"}});
        check(std::slice::from_ref(&old), named, json!("x"));
        let annotated = json!({"metadata": {"annotations": {CLASS_ANNOTATION: "x"}}, "spec": {}});
        check(&[old], annotated, Value::Null);
    }
}
