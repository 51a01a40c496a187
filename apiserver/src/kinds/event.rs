//! Events in both of their groups: stored as core/v1, served as events.k8s.io/v1, too.

use k8s_openapi::api::core::v1::Event as CoreEvent;
use k8s_openapi::api::events::v1::Event;
use scaleup_api::names;
use serde_json::{Map, Value};

use super::field::{self, Errors, Path};
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules, SelectableField};

const MAX_CHARS: usize = 128;
const MAX_NOTE_CHARS: usize = 1024;
const NAMESPACE_MISMATCH: &str = "does not match event.namespace";

/// What differs in name between the groups: (core/v1, events.k8s.io/v1).
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// What field selectors may name.
pub const SELECTABLE: &[SelectableField] = &[
    SelectableField { path: "involvedObject.kind", get: |e| field::text_at(e, "/involvedObject/kind") },
    SelectableField { path: "involvedObject.namespace", get: |e| field::text_at(e, "/involvedObject/namespace") },
    SelectableField { path: "involvedObject.name", get: |e| field::text_at(e, "/involvedObject/name") },
    SelectableField { path: "involvedObject.uid", get: |e| field::text_at(e, "/involvedObject/uid") },
    SelectableField { path: "involvedObject.apiVersion", get: |e| field::text_at(e, "/involvedObject/apiVersion") },
    SelectableField {
        path: "involvedObject.resourceVersion",
        get: |e| field::text_at(e, "/involvedObject/resourceVersion"),
    },
    SelectableField { path: "involvedObject.fieldPath", get: |e| field::text_at(e, "/involvedObject/fieldPath") },
    SelectableField { path: "reason", get: |e| field::text_at(e, "/reason") },
    SelectableField { path: "reportingComponent", get: |e| field::text_at(e, "/reportingComponent") },
    SelectableField { path: "source", get: source },
    SelectableField { path: "type", get: |e| field::text_at(e, "/type") },
];

/// What field selectors may name in events.k8s.io. The getters read the stored form, which is core/v1.
pub const EVENTS_SELECTABLE: &[SelectableField] = &[
    SelectableField { path: "regarding.kind", get: |e| field::text_at(e, "/involvedObject/kind") },
    SelectableField { path: "regarding.namespace", get: |e| field::text_at(e, "/involvedObject/namespace") },
    SelectableField { path: "regarding.name", get: |e| field::text_at(e, "/involvedObject/name") },
    SelectableField { path: "regarding.uid", get: |e| field::text_at(e, "/involvedObject/uid") },
    SelectableField { path: "regarding.apiVersion", get: |e| field::text_at(e, "/involvedObject/apiVersion") },
    SelectableField {
        path: "regarding.resourceVersion",
        get: |e| field::text_at(e, "/involvedObject/resourceVersion"),
    },
    SelectableField { path: "regarding.fieldPath", get: |e| field::text_at(e, "/involvedObject/fieldPath") },
    SelectableField { path: "reason", get: |e| field::text_at(e, "/reason") },
    SelectableField { path: "reportingController", get: |e| field::text_at(e, "/reportingComponent") },
    SelectableField { path: "type", get: |e| field::text_at(e, "/type") },
];

fn source(event: &Value) -> String {
    let component = field::text_at(event, "/source/component");
    if component.is_empty() { field::text_at(event, "/reportingComponent") } else { component }
}

/// From events.k8s.io/v1 to core/v1, the stored form. Nothing is lost: fields either are in both or are renamed.
pub fn to_stored(value: Value) -> Value {
    renamed(value, "v1", |(core, events)| (*events, *core))
}

/// From core/v1 to events.k8s.io/v1.
pub fn from_stored(value: Value) -> Value {
    renamed(value, "events.k8s.io/v1", |(core, events)| (*core, *events))
}

fn renamed(
    value: Value,
    api_version: &str,
    direction: fn(&(&'static str, &'static str)) -> (&'static str, &'static str),
) -> Value {
    let Value::Object(fields) = value else { return value };
    let mut out: Map<String, Value> = fields
        .into_iter()
        .map(|(key, value)| match RENAMED.iter().map(direction).find(|(from, _)| *from == key) {
            Some((_, to)) => (to.to_owned(), value),
            None => (key, value),
        })
        .collect();
    if out.contains_key("apiVersion") {
        out.insert("apiVersion".into(), api_version.into());
    }
    Value::Object(out)
}

/// Rules of core/v1 Events: old ones are barely checked, for compatibility.
pub struct CoreEventRules;

impl Rules for CoreEventRules {
    type Object = CoreEvent;

    fn validate(&self, object: &CoreEvent, cx: &RuleContext<'_>, errors: &mut Errors) {
        validate_legacy(object, cx.namespace, errors);
    }
}

/// Rules of events.k8s.io/v1 Events: what upstream calls strict.
pub struct EventRules;

impl Rules for EventRules {
    type Object = Event;

    fn validate(&self, object: &Event, cx: &RuleContext<'_>, errors: &mut Errors) {
        validate_legacy(&core_form(object), cx.namespace, errors);
    }

    fn validate_update(&self, object: &Event, old: &Event, _: &RuleContext<'_>, errors: &mut Errors) {
        if !field::same(&object.series, &old.series) {
            validate_series(object, errors);
        }
        let (new, old) = (field::value_of(object), field::value_of(old));
        let fields = [
            "regarding",
            "reason",
            "note",
            "deprecatedSource",
            "deprecatedFirstTimestamp",
            "deprecatedLastTimestamp",
            "deprecatedCount",
            "type",
            "eventTime",
            "action",
            "related",
            "reportingController",
            "reportingInstance",
        ];
        for name in fields {
            // Upstream reports its internal field names, which are core's but for the controller.
            let shown = match RENAMED.iter().find(|(_, events)| *events == name) {
                Some((_, "reportingController")) | None => name,
                Some((core, _)) => core,
            };
            field::immutable(errors, &Path::new(shown), &new[name], &old[name]);
        }
    }

    /// Strict on create only, as upstream; an update sees the stored fields, which may be older than the rules.
    fn validate_create(&self, object: &Event, _: &RuleContext<'_>, errors: &mut Errors) {
        validate_series(object, errors);
        if object.event_time.is_none() {
            errors.push(FieldError::required("eventTime", ""));
        }
        let kind = field::text(&object.type_);
        if !matches!(kind, "Normal" | "Warning") {
            errors.push(FieldError::invalid("type", "", format!("has invalid value: {kind}")));
        }
        let source = object.deprecated_source.as_ref();
        let has_source =
            source.is_some_and(|s| !field::text(&s.component).is_empty() || !field::text(&s.host).is_empty());
        for (name, set) in [
            ("firstTimestamp", object.deprecated_first_timestamp.is_some()),
            ("lastTimestamp", object.deprecated_last_timestamp.is_some()),
            ("count", object.deprecated_count.is_some_and(|c| c != 0)),
            ("source", has_source),
        ] {
            if set {
                errors.push(FieldError::invalid(name, "", "needs to be unset"));
            }
        }
    }
}

fn core_form(event: &Event) -> CoreEvent {
    CoreEvent {
        action: event.action.clone(),
        event_time: event.event_time.clone(),
        involved_object: event.regarding.clone().unwrap_or_default(),
        message: event.note.clone(),
        metadata: event.metadata.clone(),
        reason: event.reason.clone(),
        reporting_component: event.reporting_controller.clone(),
        reporting_instance: event.reporting_instance.clone(),
        ..CoreEvent::default()
    }
}

fn validate_series(event: &Event, errors: &mut Errors) {
    if event.series.as_ref().is_some_and(|s| s.count < 2) {
        errors.push(FieldError::invalid("series.count", "", "should be at least 2"));
    }
}

/// `legacyValidateEvent`: events with an `eventTime` are of the new style and complete.
fn validate_legacy(event: &CoreEvent, namespace: &str, errors: &mut Errors) {
    let involved = field::text(&event.involved_object.namespace);
    let mismatch = if event.event_time.is_some() {
        involved.is_empty() && !matches!(namespace, "default" | "kube-system")
    } else if involved.is_empty() {
        !matches!(namespace, "" | "default")
    } else {
        namespace != involved
    };
    if mismatch {
        errors.push(FieldError::invalid("involvedObject.namespace", involved, NAMESPACE_MISMATCH));
    }
    if event.event_time.is_none() {
        return;
    }
    let controller = field::text(&event.reporting_component);
    if controller.is_empty() {
        errors.push(FieldError::required("reportingController", ""));
    }
    field::format(errors, &Path::new("reportingController"), controller, names::qualified_name);
    for (name, value) in
        [("reportingInstance", &event.reporting_instance), ("action", &event.action), ("reason", &event.reason)]
    {
        let value = field::text(value);
        field::required(errors, &Path::new(name), value);
        if value.len() > MAX_CHARS {
            errors.push(FieldError::invalid(name, "", format!("can have at most {MAX_CHARS} characters")));
        }
    }
    if field::text(&event.message).len() > MAX_NOTE_CHARS {
        errors.push(FieldError::invalid("message", "", format!("can have at most {MAX_NOTE_CHARS} characters")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::field::test::*;
    use super::*;

    const NEW_STYLE: &str = "{metadata: {name: a.1}, regarding: {kind: Pod, name: a, namespace: default}, eventTime: '2024-01-01T00:00:00.000000Z', type: Normal, reason: Started, action: Starting, note: hi, reportingController: kubelet, reportingInstance: n1}";

    #[test]
    fn nothing_is_lost_between_the_groups() {
        let core = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "a"}, "involvedObject": {"name": "x"},
            "related": {"name": "y"}, "message": "m", "reason": "r", "type": "Normal", "action": "a",
            "source": {"component": "c"}, "firstTimestamp": "t1", "lastTimestamp": "t2", "count": 3,
            "eventTime": null, "series": {"count": 2}, "reportingComponent": "c", "reportingInstance": "i",
        });
        let events = from_stored(core.clone());
        assert_eq!(
            events,
            json!({
                "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "a"},
                "regarding": {"name": "x"}, "related": {"name": "y"}, "note": "m", "reason": "r", "type": "Normal",
                "action": "a", "deprecatedSource": {"component": "c"}, "deprecatedFirstTimestamp": "t1",
                "deprecatedLastTimestamp": "t2", "deprecatedCount": 3, "eventTime": null, "series": {"count": 2},
                "reportingController": "c", "reportingInstance": "i",
            })
        );
        assert_eq!(to_stored(events), core);
    }

    #[test]
    fn selectors_read_the_stored_form() {
        let stored = to_stored(yaml(NEW_STYLE));
        let get = |fields: &[SelectableField], path: &str| {
            fields.iter().find(|f| f.path == path).map(|f| (f.get)(&stored)).expect("selectable")
        };
        assert_eq!(get(SELECTABLE, "involvedObject.name"), "a");
        assert_eq!(get(SELECTABLE, "source"), "kubelet");
        assert_eq!(get(EVENTS_SELECTABLE, "regarding.kind"), "Pod");
        assert_eq!(get(EVENTS_SELECTABLE, "reportingController"), "kubelet");
    }

    #[test]
    fn core_events_are_barely_checked() {
        let old_style =
            "{metadata: {name: a}, involvedObject: {namespace: default, name: x}, count: 1, source: {component: c}}";
        assert!(create(CoreEventRules, old_style).is_ok());
        let mismatch = "involvedObject.namespace: Invalid value: \"other\": does not match event.namespace";
        refused(CoreEventRules, &old_style.replace("namespace: default", "namespace: other"), &[mismatch]);
        refused(
            CoreEventRules,
            "{metadata: {name: a}, involvedObject: {namespace: default}, eventTime: '2024-01-01T00:00:00.000000Z'}",
            &[
                "reportingController: Required value",
                "reportingController: Invalid value: \"\": name part must be non-empty",
                "reportingInstance: Required value",
                "action: Required value",
                "reason: Required value",
            ],
        );
        assert!(create(CoreEventRules, "{metadata: {name: a}, involvedObject: {}, count: many}").is_err());
    }

    #[test]
    fn new_events_are_checked_strictly() {
        assert_eq!(create(EventRules, NEW_STYLE).err(), None);
        let strict = NEW_STYLE.replace("type: Normal", "type: Odd, deprecatedCount: 1, deprecatedSource: {host: h}, series: {count: 1, lastObservedTime: '2024-01-01T00:00:00.000000Z'}");
        refused(
            EventRules,
            &strict.replace("reason: Started", &format!("reason: {}", "x".repeat(129))),
            &[
                "type: Invalid value: \"\": has invalid value: Odd",
                "count: Invalid value: \"\": needs to be unset",
                "source: Invalid value: \"\": needs to be unset",
                "series.count: Invalid value: \"\": should be at least 2",
                "reason: Invalid value: \"\": can have at most 128 characters",
            ],
        );
        same_messages(
            update(|| EventRules, NEW_STYLE, &NEW_STYLE.replace("note: hi", "note: ho").replace("kubelet", "other")),
            &[
                "message: Invalid value: \"ho\": field is immutable",
                "reportingController: Invalid value: \"other\": field is immutable",
            ],
        );
    }
}
