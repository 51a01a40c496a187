//! Events.

use crate::registry::{Rules, SelectableField};
use k8s_openapi::api::{core::v1::Event as CoreEvent, events::v1::Event};

/// Rules of core Events.
pub struct CoreEventRules;

impl Rules for CoreEventRules {
    type Object = CoreEvent;
}
/// Rules of events.k8s.io Events.
pub struct EventRules;

impl Rules for EventRules {
    type Object = Event;
}

/// What field selectors may name.
pub const SELECTABLE: &[SelectableField] = &[];

/// From events.k8s.io to the stored core form.
pub fn to_stored(value: serde_json::Value) -> serde_json::Value {
    value
}

/// From the stored core form to events.k8s.io.
pub fn from_stored(value: serde_json::Value) -> serde_json::Value {
    value
}
