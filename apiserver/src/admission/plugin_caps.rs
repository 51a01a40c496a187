//! `PluginCaps`: what the WasmPlugins of a namespace may use at most, as an annotation of the namespace says.
//!
//! Works like upstream's LimitRange: a limit that is absent is filled in where the world's default is above the cap, one that asks for more
//! is refused, and plugins that are there already are left alone until they are written again. Namespaces are written by
//! administrators, so a tenant cannot raise its own caps; a ClusterWasmPlugin has none but the host's.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use scaleup_api::plugin::{AskedLimits, PluginLimits, parse_limits};
use scaleup_plugins::{Limits, World};
use serde_json::Value;

use super::{Attributes, Plugin, text};
use crate::cache::Reader;
use crate::error::ApiError;

/// Annotation of a Namespace: a JSON object with the fields of `spec.limits` of a WasmPlugin.
const ANNOTATION: &str = "policy.scaleup.dev/plugin-caps";

pub(super) struct PluginCaps;

/// A limit as a number that can be compared: bytes, nanoseconds or a count.
struct Limit {
    /// Its name in JSON.
    field: &'static str,
    asked: fn(&AskedLimits) -> Option<u64>,
    default: fn(&Limits) -> u64,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

const LIMITS: [Limit; 10] = [
    Limit { field: "memory", asked: |asked| asked.memory_bytes, default: |limits| limits.memory_bytes },
    Limit {
        field: "tableElements",
        asked: |asked| asked.table_elements,
        default: |limits| limits.table_elements.into(),
    },
    Limit { field: "moduleSize", asked: |asked| asked.module_bytes, default: |limits| limits.module_bytes as u64 },
    Limit { field: "time", asked: |asked| asked.time.map(nanos), default: |limits| nanos(limits.time) },
    Limit { field: "fuel", asked: |asked| asked.fuel, default: |limits| limits.fuel },
    Limit { field: "output", asked: |asked| asked.output_bytes, default: |limits| limits.output_bytes as u64 },
    Limit {
        field: "compileTime",
        asked: |asked| asked.compile_time.map(nanos),
        default: |limits| nanos(limits.compile_cpu),
    },
    Limit {
        field: "compileMemory",
        asked: |asked| asked.compile_memory_bytes,
        default: |limits| limits.compile_memory_bytes,
    },
    Limit { field: "stateEntries", asked: |asked| asked.state_entries, default: |limits| limits.state_entries as u64 },
    Limit { field: "stateSize", asked: |asked| asked.state_bytes, default: |limits| limits.state_bytes as u64 },
];

#[async_trait]
impl Plugin for PluginCaps {
    fn name(&self) -> &'static str {
        "PluginCaps"
    }
    async fn mutate(&self, server: &Arc<crate::Server>, attributes: &mut Attributes<'_>) -> Result<(), ApiError> {
        mutate(&*server.caches, attributes)
    }
    async fn validate(&self, server: &Arc<crate::Server>, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        validate(&*server.caches, attributes)
    }
}

/// What an annotation says: as it is written, and as numbers.
fn parse(annotation: &str) -> Result<(Value, AskedLimits), String> {
    let value: Value = serde_json::from_str(annotation).map_err(|error| error.to_string())?;
    let fields = value.as_object().ok_or("it must be a JSON object")?;
    if let Some(unknown) = fields.keys().find(|field| LIMITS.iter().all(|limit| limit.field != **field)) {
        return Err(format!("{unknown:?} is not a field of spec.limits of a WasmPlugin"));
    }
    let caps: PluginLimits = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
    let wrong = |errors: Vec<(&str, String)>| {
        errors.iter().map(|(field, why)| format!("{field}: {why}")).collect::<Vec<_>>().join(", ")
    };
    let numbers = parse_limits(&caps).map_err(wrong)?;
    Ok((value, numbers))
}

/// The caps of a namespace, if it has any.
fn caps(caches: &dyn Reader, attributes: &Attributes<'_>) -> Result<Option<(Value, AskedLimits)>, ApiError> {
    let Some(namespace) = caches.get("", "namespaces", "", attributes.namespace) else { return Ok(None) };
    let namespace = namespace.value();
    match text(&namespace, &["metadata", "annotations", ANNOTATION]) {
        "" => Ok(None),
        annotation => parse(annotation).map(Some).map_err(|why| {
            attributes.forbidden(format_args!("the annotation {ANNOTATION} of its namespace cannot be read: {why}"))
        }),
    }
}

fn concerns(attributes: &Attributes<'_>) -> bool {
    attributes.is("policy.scaleup.dev", "wasmplugins")
        && !attributes.deletes()
        && attributes.object["spec"].is_object()
        && attributes.object["metadata"]["deletionTimestamp"].is_null()
}

fn mutate(caches: &dyn Reader, attributes: &mut Attributes<'_>) -> Result<(), ApiError> {
    if !concerns(attributes) {
        return Ok(());
    }
    let (Some((written, caps)), Ok(world)) =
        (caps(caches, attributes)?, text(attributes.object, &["spec", "world"]).parse::<World>())
    else {
        return Ok(());
    };
    let (default, limits) = (Limits::of(world), &mut attributes.object["spec"]["limits"]);
    for limit in &LIMITS {
        // A world whose instructions are not counted has no default that could be lowered.
        let default = Some((limit.default)(&default)).filter(|default| *default != u64::MAX);
        let lowered = (limit.asked)(&caps).zip(default).is_some_and(|(cap, default)| cap < default);
        if lowered && limits[limit.field].is_null() && (limits.is_null() || limits.is_object()) {
            limits[limit.field] = written[limit.field].clone();
        }
    }
    Ok(())
}

fn validate(caches: &dyn Reader, attributes: &Attributes<'_>) -> Result<(), ApiError> {
    if attributes.is("", "namespaces") && !attributes.deletes() {
        let annotation = text(attributes.object, &["metadata", "annotations", ANNOTATION]);
        let unchanged =
            attributes.old.is_some_and(|old| text(old, &["metadata", "annotations", ANNOTATION]) == annotation);
        return match annotation {
            "" => Ok(()),
            _ if unchanged => Ok(()),
            annotation => parse(annotation)
                .map(drop)
                .map_err(|why| attributes.forbidden(format_args!("the annotation {ANNOTATION} cannot be read: {why}"))),
        };
    }
    if !concerns(attributes) {
        return Ok(());
    }
    let Some((written, caps)) = caps(caches, attributes)? else { return Ok(()) };
    let asked = serde_json::from_value::<PluginLimits>(attributes.object["spec"]["limits"].clone());
    let asked = asked.ok().and_then(|asked| parse_limits(&asked).ok()).unwrap_or_default();
    let above = |limit: &&Limit| (limit.asked)(&caps).is_some_and(|cap| (limit.asked)(&asked).is_some_and(|n| n > cap));
    let field = |limit: &Limit| {
        let (asked, cap) = (&attributes.object["spec"]["limits"][limit.field], &written[limit.field]);
        format!("spec.limits.{} is {asked}, and at most {cap} in this namespace", limit.field)
    };
    let exceeded: Vec<String> = LIMITS.iter().filter(above).map(field).collect();
    if exceeded.is_empty() { Ok(()) } else { Err(attributes.forbidden(exceeded.join(", "))) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::Write;
    use super::*;
    use crate::auth::testing::MapReader;

    fn caches(caps: &str) -> Arc<MapReader> {
        let metadata = json!({"name": "web", "annotations": {ANNOTATION: caps}});
        MapReader::new(&[("", "namespaces", json!({"metadata": metadata}))])
    }

    fn plugin(world: &str, limits: Value) -> Write {
        let spec = json!({"world": world, "source": {}, "limits": limits});
        let object = json!({"metadata": {"name": "p", "namespace": "web"}, "spec": spec});
        Write::create("policy.scaleup.dev", "WasmPlugin", "wasmplugins", object)
    }

    fn write(caps: &str, mut write: Write) -> Result<Value, String> {
        let caches = caches(caps);
        write.with(|attributes| {
            mutate(&*caches, attributes).and_then(|()| validate(&*caches, attributes)).map_err(|error| error.message)
        })?;
        Ok(write.object["spec"]["limits"].clone())
    }

    #[test]
    fn defaults_are_lowered_and_no_more_is_given() {
        let caps = r#"{"memory": "32Mi", "time": "1s", "fuel": 1000}"#;
        // The default time of routing is below the cap, and its instructions are not counted.
        assert_eq!(write(caps, plugin("routing", Value::Null)), Ok(json!({"memory": "32Mi"})));
        let both = json!({"memory": "32Mi", "fuel": 1000});
        assert_eq!(write(caps, plugin("admission", json!({}))), Ok(both));
        let less = json!({"memory": "16Mi", "time": "500ms", "fuel": 10});
        assert_eq!(write(caps, plugin("admission", less.clone())), Ok(less));
        let refused = write(caps, plugin("admission", json!({"memory": "33Mi", "time": "1001ms"}))).unwrap_err();
        let expected = r#"wasmplugins.policy.scaleup.dev "p" is forbidden: spec.limits.memory is "33Mi", and at most "32Mi" in this namespace, spec.limits.time is "1001ms", and at most "1s" in this namespace"#;
        assert_eq!(refused, expected);
        assert_eq!(write("", plugin("routing", Value::Null)), Ok(Value::Null));
    }

    #[test]
    fn a_plugin_that_ends_is_left_alone() {
        let mut ends = plugin("routing", json!({"memory": "64Mi"}));
        ends.object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(write(r#"{"memory": "1Mi"}"#, ends), Ok(json!({"memory": "64Mi"})));
    }

    #[test]
    fn caps_that_cannot_be_read_are_refused() {
        let check = |caps: &str, part: &str| {
            let namespace = json!({"metadata": {"name": "new", "annotations": {ANNOTATION: caps}}});
            let refused = write("", Write::create("", "Namespace", "namespaces", namespace.clone())).unwrap_err();
            assert!(refused.contains(part), "{refused}");
            // Who changes something else is not held up by it.
            assert!(write("", Write::update("", "Namespace", "namespaces", namespace.clone(), namespace)).is_ok());
        };
        check("1", "must be a JSON object");
        check("{", "EOF");
        check(r#"{"cpu": 1}"#, r#""cpu" is not a field"#);
        check(
            r#"{"memory": "1Ti", "time": "x"}"#,
            "memory: must be between 1 and 268435456 bytes, inclusive, time: must be",
        );
        assert!(write("{", plugin("routing", Value::Null)).unwrap_err().contains("its namespace cannot be read"));
    }
}
