//! `metav1.Table`: what `kubectl get` prints.
//!
//! The server computes every cell, of wide columns too; a client picks columns by priority.

use serde_json::{Value, json};

use super::partial;
use crate::registry::{Column, Resource};

/// The `includeObject` query parameter: what a row carries beside its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// From the query parameter; empty is the default, anything unknown is `None`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// A `Table` of `items`. `list_meta` is the list's metadata (for a single object: its `resourceVersion`). Without headers
/// (`columnDefinitions` is null) it is what watch events after the first carry.
pub fn render<'a>(
    resource: &Resource,
    items: impl Iterator<Item = &'a Value>,
    list_meta: Value,
    include: IncludeObject,
    with_headers: bool,
) -> Value {
    let columns = resource.columns;
    let headers = if with_headers { columns.iter().map(header).collect() } else { Value::Null };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta,
        "columnDefinitions": headers,
        "rows": items.map(|item| row(columns, item, include)).collect::<Value>(),
    })
}

fn header(column: &Column) -> Value {
    json!({
        "name": column.name, "type": column.kind, "format": column.format,
        "description": column.description, "priority": column.priority,
    })
}

fn row(columns: &[Column], item: &Value, include: IncludeObject) -> Value {
    let cells = columns.iter().map(|c| (c.cell)(item)).collect::<Value>();
    match include {
        IncludeObject::None => json!({"cells": cells}),
        IncludeObject::Metadata => json!({"cells": cells, "object": partial::object(item)}),
        IncludeObject::Object => json!({"cells": cells, "object": item}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::present::columns;
    use crate::present::fixtures::resource;

    #[test]
    fn rows_carry_what_was_asked_for() {
        let mut row = resource("", "v1", "ConfigMap", "configmaps");
        row.columns = columns::CONFIGMAPS;
        let item = json!({"metadata": {"name": "a"}, "data": {"k": "v"}});
        let table =
            |include, headers| render(&row, [&item].into_iter(), json!({"resourceVersion": "5"}), include, headers);
        let full = table(IncludeObject::Object, true);
        assert_eq!(full["kind"], "Table");
        assert_eq!(full["metadata"]["resourceVersion"], "5");
        assert_eq!(full["columnDefinitions"][0]["format"], "name");
        assert_eq!(full["rows"][0]["cells"], json!(["a", 1, "<unknown>"]));
        assert_eq!(full["rows"][0]["object"], item);
        let metadata = table(IncludeObject::Metadata, false);
        assert!(metadata["columnDefinitions"].is_null());
        assert_eq!(metadata["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert!(table(IncludeObject::None, true)["rows"][0].get("object").is_none());
    }

    #[test]
    fn every_column_set_has_one_name() {
        let sets = [
            columns::DEFAULT,
            columns::PODS,
            columns::DEPLOYMENTS,
            columns::REPLICASETS,
            columns::SERVICES,
            columns::ENDPOINTS,
            columns::ENDPOINTSLICES,
            columns::CONFIGMAPS,
            columns::SECRETS,
            columns::SERVICEACCOUNTS,
            columns::EVENTS,
            columns::NAMESPACES,
            columns::NODES,
            columns::LEASES,
            columns::PRIORITYCLASSES,
            columns::INGRESSES,
            columns::INGRESSCLASSES,
            columns::GATEWAYCLASSES,
            columns::GATEWAYS,
            columns::HOSTNAME_ROUTES,
            columns::ONLY_AGE,
            columns::TRAFFICPOLICIES,
            columns::WASMPLUGINS,
            columns::WASMMODULES,
            columns::ROLES,
            columns::CLUSTERROLES,
            columns::ROLEBINDINGS,
            columns::CLUSTERROLEBINDINGS,
        ];
        for set in sets {
            assert_eq!(set.iter().filter(|c| c.format == "name").count(), 1);
            for column in set {
                // No cell may panic on an object that is not what it expects.
                (column.cell)(&Value::Null);
                (column.cell)(&json!({"metadata": 1, "spec": [], "status": "x"}));
            }
        }
    }

    #[test]
    fn include_object_is_strict() {
        assert_eq!(IncludeObject::parse(""), Some(IncludeObject::Metadata));
        assert_eq!(IncludeObject::parse("Object"), Some(IncludeObject::Object));
        assert_eq!(IncludeObject::parse("object"), None);
    }
}
