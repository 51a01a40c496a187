//! `metav1.Table`.

use serde_json::{Value, json};

use crate::registry::Resource;

/// The `includeObject` query parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// No object in rows.
    None,
    /// `PartialObjectMetadata` in rows.
    #[default]
    Metadata,
    /// The whole object in rows.
    Object,
}

impl IncludeObject {
    /// From the query parameter; empty is the default, unknown is `None`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// A `Table`.
pub fn render<'a>(
    resource: &Resource,
    items: impl Iterator<Item = &'a Value>,
    list_meta: Value,
    include: IncludeObject,
    with_headers: bool,
) -> Value {
    let _ = (resource, items.count(), list_meta, include, with_headers);
    json!({})
}
