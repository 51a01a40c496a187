//! The compact form of the schemas that patches walk: about a thousand fields, no descriptions.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use super::roots::{REF_PREFIX, ROOTS, definitions, find};
use super::table::{self, Extra};

type TypeId = u16;

/// What a single JSON value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    Text,
    Integer,
    Boolean,
    Number,
    /// Base64 in JSON.
    Bytes,
    Quantity,
    IntOrString,
    /// RFC 3339 in whole seconds.
    Time,
    /// RFC 3339 in microseconds.
    MicroTime,
}

#[derive(Debug)]
enum Shape {
    Scalar(Scalar),
    /// Any JSON object (`FieldsV1`, `RawExtension`).
    Opaque,
    Object(TypeId),
    List(Box<Shape>),
    Map(Box<Shape>),
}

#[derive(Debug)]
struct Field {
    name: Box<str>,
    shape: Shape,
    extra: Option<&'static Extra>,
}

#[derive(Debug)]
struct Type {
    name: Box<str>,
    /// By name.
    fields: Box<[Field]>,
}

/// Every type that a built-in kind reaches.
#[derive(Debug)]
struct Graph {
    /// By name.
    types: Vec<Type>,
    /// A shape per type, so that a whole object can be pointed to like any field.
    objects: Vec<Shape>,
}

static GRAPH: LazyLock<Graph> = LazyLock::new(Graph::build);

/// A place in an object of a known kind.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    shape: &'static Shape,
}

/// The shape of a place.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A single value.
    Scalar(Scalar),
    /// Any JSON object.
    Opaque,
    /// An object with known fields.
    Object,
    /// A list of such items.
    List(Node),
    /// A map from text to such values.
    Map(Node),
}

/// What a schema says about a field.
#[derive(Clone, Copy, Debug)]
pub enum Lookup {
    /// The field's place and how it merges; `None` for the ordinary way.
    Known(Node, Option<&'static Extra>),
    /// The type has no such field.
    Unknown,
    /// Nothing is known about what is below.
    Opaque,
}

impl Node {
    /// The place of a whole object; `None` for kinds without a built-in schema.
    pub fn of_kind(group: &str, version: &str, kind: &str) -> Option<Self> {
        Self::of_type(&find(group, version, kind)?.type_name())
    }

    /// The place of an object of a type, by upstream's name (`io.k8s.api.core.v1.Pod`).
    pub fn of_type(type_name: &str) -> Option<Self> {
        let id = GRAPH.types.binary_search_by(|t| t.name.as_ref().cmp(type_name)).ok()?;
        GRAPH.objects.get(id).map(|shape| Self { shape })
    }

    /// What is here.
    pub fn kind(self) -> Kind {
        match self.shape {
            Shape::Scalar(scalar) => Kind::Scalar(*scalar),
            Shape::Opaque => Kind::Opaque,
            Shape::Object(_) => Kind::Object,
            Shape::List(item) => Kind::List(Self { shape: item }),
            Shape::Map(value) => Kind::Map(Self { shape: value }),
        }
    }

    /// A field of an object, or the value under any key of a map.
    pub fn field(self, name: &str) -> Lookup {
        match self.shape {
            Shape::Object(id) => {
                let Some(of) = GRAPH.types.get(usize::from(*id)) else { return Lookup::Opaque };
                match of.fields.binary_search_by(|f| f.name.as_ref().cmp(name)) {
                    Ok(i) => Lookup::Known(Self { shape: &of.fields[i].shape }, of.fields[i].extra),
                    Err(_) => Lookup::Unknown,
                }
            }
            Shape::Map(value) => Lookup::Known(Self { shape: value }, None),
            Shape::Scalar(_) | Shape::List(_) => Lookup::Unknown,
            Shape::Opaque => Lookup::Opaque,
        }
    }

    /// The items of a list.
    pub fn item(self) -> Option<Self> {
        match self.shape {
            Shape::List(item) => Some(Self { shape: item }),
            _ => None,
        }
    }

    /// Upstream's name of the type (`io.k8s.api.core.v1.Container`); empty if it is not an object.
    pub fn full_name(self) -> &'static str {
        match self.shape {
            Shape::Object(id) => GRAPH.types.get(usize::from(*id)).map_or("", |t| t.name.as_ref()),
            _ => "",
        }
    }

    /// Upstream's Go name of the type (`Container`), for messages.
    pub fn type_name(self) -> &'static str {
        match self.shape {
            Shape::Object(_) => self.full_name().rsplit('.').next().unwrap_or_default(),
            Shape::Scalar(_) => "scalar",
            Shape::Opaque => "object",
            Shape::List(_) => "list",
            Shape::Map(_) => "map",
        }
    }
}

impl Graph {
    fn build() -> Self {
        let definitions = definitions(ROOTS.iter());
        let ids: HashMap<&str, TypeId> =
            (0..=TypeId::MAX).zip(&definitions).map(|(id, (name, _))| (name.as_str(), id)).collect();
        let types: Vec<Type> =
            definitions.iter().map(|(name, schema)| Type::read(name, schema, &definitions, &ids)).collect();
        let objects = (0..=TypeId::MAX).take(types.len()).map(Shape::Object).collect();
        Self { types, objects }
    }
}

impl Type {
    fn read(
        name: &str,
        schema: &Value,
        definitions: &serde_json::Map<String, Value>,
        ids: &HashMap<&str, TypeId>,
    ) -> Self {
        let rows = table::rows(name);
        let properties = schema.get("properties").and_then(Value::as_object);
        let mut fields: Vec<Field> = properties
            .into_iter()
            .flatten()
            .map(|(field, schema)| Field {
                name: field.as_str().into(),
                shape: Shape::read(schema, definitions, ids),
                extra: rows.iter().find(|r| r.field == field),
            })
            .collect();
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        Self { name: name.into(), fields: fields.into() }
    }
}

impl Shape {
    fn read(schema: &Value, definitions: &serde_json::Map<String, Value>, ids: &HashMap<&str, TypeId>) -> Self {
        if let Some(target) = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(REF_PREFIX)) {
            return match (ids.get(target), definitions.get(target)) {
                (Some(id), Some(of)) if of.get("properties").is_some() => Self::Object(*id),
                (_, Some(of)) if of.get("type").is_some_and(|t| t == "object") => Self::Opaque,
                _ => Self::Scalar(match target.rsplit('.').next() {
                    Some("Quantity") => Scalar::Quantity,
                    Some("IntOrString") => Scalar::IntOrString,
                    Some("Time") => Scalar::Time,
                    Some("MicroTime") => Scalar::MicroTime,
                    _ => Scalar::Text,
                }),
            };
        }
        if let Some(items) = schema.get("items") {
            return Self::List(Box::new(Self::read(items, definitions, ids)));
        }
        if let Some(values) = schema.get("additionalProperties") {
            return Self::Map(Box::new(Self::read(values, definitions, ids)));
        }
        let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or_default();
        match (text("type"), text("format")) {
            ("object", _) => Self::Opaque,
            ("integer", _) => Self::Scalar(Scalar::Integer),
            ("boolean", _) => Self::Scalar(Scalar::Boolean),
            ("number", _) => Self::Scalar(Scalar::Number),
            (_, "byte") => Self::Scalar(Scalar::Bytes),
            _ => Self::Scalar(Scalar::Text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(kind: (&str, &str, &str), path: &[&str]) -> Option<(Node, Option<&'static Extra>)> {
        let mut at = (Node::of_kind(kind.0, kind.1, kind.2)?, None);
        for name in path {
            at = match (at.0.item(), *name) {
                (Some(item), "*") => (item, None),
                (_, name) => match at.0.field(name) {
                    Lookup::Known(node, extra) => (node, extra),
                    Lookup::Unknown | Lookup::Opaque => return None,
                },
            };
        }
        Some(at)
    }

    #[test]
    fn paths_lead_to_types_and_merge_keys() {
        let check = |path: &[&str], type_name: &str, merge_key: &str| {
            let (node, extra) = walk(("apps", "v1", "Deployment"), path).unwrap_or_else(|| panic!("{path:?}"));
            assert_eq!(node.type_name(), type_name, "{path:?}");
            assert_eq!(extra.map_or("", |e| e.merge_key), merge_key, "{path:?}");
        };
        let pod = ["spec", "template", "spec"];
        let below = |more: &[&'static str]| [&pod[..], more].concat();
        check(&[], "Deployment", "");
        check(&pod, "PodSpec", "");
        check(&below(&["containers"]), "list", "name");
        check(&below(&["containers", "*"]), "Container", "");
        check(&below(&["containers", "*", "ports"]), "list", "containerPort");
        check(&below(&["containers", "*", "resources", "limits"]), "map", "");
        check(&below(&["containers", "*", "resources", "limits", "cpu"]), "scalar", "");
        check(&["metadata", "labels"], "map", "");
        check(&["metadata", "finalizers"], "list", "");
        check(&["metadata", "ownerReferences"], "list", "uid");
        check(&["spec", "strategy", "rollingUpdate", "maxSurge"], "scalar", "");
        check(&["metadata", "managedFields", "*", "fieldsV1"], "object", "");
        assert!(walk(("apps", "v1", "Deployment"), &["spec", "nope"]).is_none());
        assert!(walk(("apps", "v1", "Deployment"), &["metadata", "managedFields", "*", "fieldsV1", "f:x"]).is_none());
    }

    #[test]
    fn every_root_has_a_place() {
        for root in ROOTS {
            let node = Node::of_kind(root.group, root.version, root.kind);
            assert_eq!(node.map(Node::type_name), Some(root.kind));
        }
        assert!(Node::of_kind("example.com", "v1", "Widget").is_none());
    }
}
