//! OpenAPI 2.0 (Swagger): one document for everything.

use serde_json::{Map, Value, json};

use super::paths::{self, Answer, Body, META, Operation, Parameter, Path};
use super::v3::{code_text, roots_of};
use super::{TITLE, VERSION, each_below, group_versions};
use crate::present::discovery;
use crate::registry::{Registry, Resource};
use crate::schema::roots::{self, REF_PREFIX};

/// Where references point here.
const DEFINITIONS: &str = "#/definitions/";

/// The document.
pub fn document(registry: &Registry) -> Value {
    let mut all_paths = Map::new();
    for (group, version) in group_versions(registry) {
        let (base, tag) = (super::base_path(group, version), paths::tag(group, version));
        for row in discovery::rows_of(registry, group, version) {
            all_paths.extend(paths::of_row(&base, row).iter().map(|p| (p.path.clone(), path_item(p, &tag))));
        }
    }
    let rows: Vec<&Resource> = registry.rows().iter().map(AsRef::as_ref).collect();
    let definitions: Map<String, Value> = roots::definitions(roots_of(&rows).into_iter())
        .into_iter()
        .map(|(name, definition)| (name.clone(), schema(&name, definition)))
        .collect();
    json!({
        "swagger": "2.0",
        "info": {"title": TITLE, "version": VERSION},
        "paths": all_paths,
        "definitions": definitions,
    })
}

fn reference(type_name: &str) -> Value {
    json!({"$ref": format!("{DEFINITIONS}{type_name}")})
}

/// References point elsewhere than in v3 and may have neighbours; what may be a number or a string is a string.
fn schema(name: &str, mut schema: Value) -> Value {
    if let Some(map) = schema.as_object_mut()
        && map.remove("x-kubernetes-int-or-string").is_some()
    {
        map.insert("type".into(), "string".into());
        if name.ends_with(".IntOrString") {
            map.insert("format".into(), "int-or-string".into());
        }
    }
    move_references(&mut schema);
    schema
}

fn move_references(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    if let Some(target) = map.get_mut("$ref") {
        *target = target.as_str().unwrap_or_default().replacen(REF_PREFIX, DEFINITIONS, 1).into();
    }
    each_below(map, move_references);
}

fn path_item(path: &Path, tag: &str) -> Value {
    paths::item(path, |o| operation(o, tag), parameter)
}

fn parameter(parameter: &Parameter, place: &str) -> Value {
    let mut out = json!({
        "name": parameter.name, "in": place, "description": parameter.description, "type": parameter.kind,
        "uniqueItems": true,
    });
    if place == "path" {
        out["required"] = true.into();
    }
    out
}

fn operation(operation: &Operation, tag: &str) -> Value {
    let (group, version, kind) = &operation.kind;
    let consumes: &[&str] = match operation.body {
        Body::Patch(types) => types,
        _ => &["*/*"],
    };
    let produces: &[&str] = match operation.answer {
        Answer::Text => &["*/*"],
        Answer::List(_) => &["application/json", "application/yaml", "application/json;stream=watch"],
        Answer::Object(_) | Answer::AnyObject => &["application/json", "application/yaml"],
    };
    let mut parameters: Vec<Value> = body_parameter(&operation.body).into_iter().collect();
    parameters.extend(operation.query.iter().map(|p| parameter(p, "query")));
    json!({
        "tags": [tag],
        "description": operation.description,
        "operationId": operation.id,
        "consumes": consumes,
        "produces": produces,
        "schemes": ["https"],
        "parameters": parameters,
        "responses": responses(operation),
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    })
}

fn body_parameter(body: &Body) -> Option<Value> {
    let (schema, required) = match body {
        Body::None => return None,
        Body::Object(name) => (reference(name), true),
        Body::AnyObject => (json!({"type": "object"}), true),
        Body::DeleteOptions => (reference(&format!("{META}DeleteOptions")), false),
        Body::Patch(_) => (reference(&format!("{META}Patch")), true),
    };
    let mut out = json!({"name": "body", "in": "body", "schema": schema});
    if required {
        out["required"] = true.into();
    }
    Some(out)
}

fn responses(operation: &Operation) -> Value {
    let schema = match &operation.answer {
        Answer::Text => json!({"type": "string"}),
        Answer::Object(name) | Answer::List(Some(name)) => reference(name),
        Answer::AnyObject | Answer::List(None) => json!({"type": "object"}),
    };
    let mut out = Map::new();
    for code in operation.codes {
        out.insert(code.to_string(), json!({"description": code_text(*code), "schema": schema}));
    }
    out.insert("401".into(), json!({"description": code_text(401)}));
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::present::fixtures::registry;

    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|v| references(v, found));
            }
            Value::Array(items) => items.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document(&registry());
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 100);
        for target in found {
            let name = target.strip_prefix(DEFINITIONS).unwrap();
            assert!(document["definitions"][name].is_object(), "{name}");
        }
    }

    #[test]
    fn references_keep_their_description() {
        let document = document(&registry());
        let spec = &document["definitions"]["io.k8s.api.core.v1.Pod"]["properties"]["spec"];
        assert_eq!(spec["$ref"], "#/definitions/io.k8s.api.core.v1.PodSpec");
        assert!(spec["description"].is_string());
        let definition = |name: &str| &document["definitions"][name];
        assert_eq!(definition("io.k8s.apimachinery.pkg.api.resource.Quantity")["type"], "string");
        let either = definition("io.k8s.apimachinery.pkg.util.intstr.IntOrString");
        assert_eq!((&either["type"], &either["format"]), (&json!("string"), &json!("int-or-string")));
        assert!(either.get("x-kubernetes-int-or-string").is_none());
        let path = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
        assert_eq!(path["patch"]["parameters"][0]["in"], "body");
        assert_eq!(path["patch"]["x-kubernetes-group-version-kind"]["kind"], "Deployment");
    }
}
