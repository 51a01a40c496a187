//! OpenAPI 3.0: one document per group version.

use serde_json::{Map, Value, json};

use super::paths::{self, Answer, Body, META, Operation, Parameter, Path};
use super::{TITLE, VERSION, each_below};
use crate::present::discovery;
use crate::registry::Resource;
use crate::schema::roots::{self, REF_PREFIX, Root};

/// The document of rows that are all served below `base`.
pub fn document(base: &str, rows: &[&Resource]) -> Value {
    let tag = rows.first().map_or_else(String::new, |r| paths::tag(&r.group, &r.version));
    let all = rows.iter().flat_map(|row| paths::of_row(base, row));
    let paths: Map<String, Value> = all.map(|p| (p.path.clone(), path_item(&p, &tag))).collect();
    let schemas: Map<String, Value> = roots::definitions(roots_of(rows).into_iter())
        .into_iter()
        .map(|(name, s)| (name.clone(), schema(&name, s)))
        .collect();
    json!({
        "openapi": "3.0.0",
        "info": {"title": TITLE, "version": VERSION},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

/// The types that rows and their subresources exchange.
pub fn roots_of(rows: &[&Resource]) -> Vec<&'static Root> {
    let own = rows.iter().map(|r| (r.group.as_ref(), r.version.as_ref(), r.kind.as_ref()));
    let of_subresources = rows.iter().flat_map(|r| r.subresources.iter().map(|s| discovery::response_kind(r, s)));
    let mut all: Vec<&Root> = own.chain(of_subresources).filter_map(|(g, v, k)| roots::find_any(g, v, k)).collect();
    all.sort_by_key(|r| (r.group, r.version, r.kind));
    all.dedup_by_key(|r| (r.group, r.version, r.kind));
    all
}

fn reference(type_name: &str) -> Value {
    json!({"$ref": format!("{REF_PREFIX}{type_name}")})
}

fn any_object() -> Value {
    json!({"type": "object"})
}

// ---- schemas ----

/// From k8s-openapi's form: numbers and strings at once are `oneOf`, and a reference with something beside it is `allOf`.
fn schema(name: &str, mut schema: Value) -> Value {
    match (name.rsplit('.').next(), schema.as_object_mut()) {
        (Some("Quantity"), Some(map)) => one_of(map, &["string", "number"]),
        (Some("IntOrString"), Some(map)) => {
            map.insert("format".into(), "int-or-string".into());
            one_of(map, &["integer", "string"]);
        }
        _ => wrap_references(&mut schema),
    }
    schema
}

fn one_of(schema: &mut Map<String, Value>, types: &[&str]) {
    schema.remove("x-kubernetes-int-or-string");
    schema.insert("oneOf".into(), types.iter().map(|t| json!({"type": t})).collect());
}

fn wrap_references(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    if map.len() > 1
        && let Some(target) = map.remove("$ref")
    {
        map.insert("allOf".into(), json!([{"$ref": target}]));
    }
    each_below(map, wrap_references);
}

// ---- paths ----

fn path_item(path: &Path, tag: &str) -> Value {
    paths::item(path, |o| operation(o, tag), parameter)
}

fn parameter(parameter: &Parameter, place: &str) -> Value {
    let mut out = json!({
        "name": parameter.name, "in": place, "description": parameter.description,
        "schema": {"type": parameter.kind, "uniqueItems": true},
    });
    if place == "path" {
        out["required"] = true.into();
    }
    out
}

fn operation(operation: &Operation, tag: &str) -> Value {
    let (group, version, kind) = &operation.kind;
    let mut out = json!({
        "tags": [tag],
        "description": operation.description,
        "operationId": operation.id,
        "responses": responses(operation),
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    });
    if !operation.query.is_empty() {
        out["parameters"] = operation.query.iter().map(|p| parameter(p, "query")).collect();
    }
    if let Some(body) = request_body(&operation.body) {
        out["requestBody"] = body;
    }
    out
}

fn request_body(body: &Body) -> Option<Value> {
    let content = |types: &[&str], schema: &Value| -> Value {
        types.iter().map(|t| ((*t).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
    };
    let any = |schema: Value| content(&["*/*"], &schema);
    Some(match body {
        Body::None => return None,
        Body::Object(name) => json!({"content": any(reference(name)), "required": true}),
        Body::AnyObject => json!({"content": any(any_object()), "required": true}),
        Body::DeleteOptions => json!({"content": any(reference(&format!("{META}DeleteOptions")))}),
        Body::Patch(types) => {
            json!({"content": content(types, &reference(&format!("{META}Patch"))), "required": true})
        }
    })
}

fn responses(operation: &Operation) -> Value {
    let (types, schema): (&[&str], Value) = match &operation.answer {
        Answer::Text => (&["*/*"], json!({"type": "string"})),
        Answer::Object(name) => (&["application/json", "application/yaml"], reference(name)),
        Answer::AnyObject => (&["application/json", "application/yaml"], any_object()),
        Answer::List(name) => (
            &["application/json", "application/json;stream=watch", "application/yaml"],
            name.as_deref().map_or_else(any_object, reference),
        ),
    };
    let content: Map<String, Value> = types.iter().map(|t| ((*t).to_owned(), json!({"schema": schema}))).collect();
    let mut out = Map::new();
    for code in operation.codes {
        out.insert(code.to_string(), json!({"description": code_text(*code), "content": content}));
    }
    out.insert("401".into(), json!({"description": code_text(401)}));
    Value::Object(out)
}

/// The standard phrase.
pub fn code_text(code: u16) -> &'static str {
    match code {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        _ => "Unauthorized",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::present::fixtures::registry;

    fn core() -> Value {
        let registry = registry();
        document("api/v1", &discovery::rows_of(&registry, "", "v1"))
    }

    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                assert!(map.get("$ref").is_none() || map.len() == 1, "{value} has something beside $ref");
                map.values().for_each(|v| references(v, found));
            }
            Value::Array(items) => items.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = core();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 100);
        for target in found {
            let name = target.strip_prefix(REF_PREFIX).unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }

    #[test]
    fn schemas_have_upstreams_form() {
        let document = core();
        let schemas = &document["components"]["schemas"];
        let pod = &schemas["io.k8s.api.core.v1.Pod"];
        assert_eq!(pod["x-kubernetes-group-version-kind"], json!([{"group": "", "version": "v1", "kind": "Pod"}]));
        let spec = &pod["properties"]["spec"];
        assert_eq!(spec["allOf"], json!([{"$ref": "#/components/schemas/io.k8s.api.core.v1.PodSpec"}]));
        assert!(spec["description"].is_string());
        let quantity = &schemas["io.k8s.apimachinery.pkg.api.resource.Quantity"];
        assert_eq!(quantity["oneOf"], json!([{"type": "string"}, {"type": "number"}]));
        let either = &schemas["io.k8s.apimachinery.pkg.util.intstr.IntOrString"];
        assert_eq!(either["format"], "int-or-string");
        assert!(schemas["io.k8s.api.core.v1.PodList"]["properties"]["items"].is_object());
        assert!(schemas["io.k8s.api.apps.v1.Deployment"].is_null(), "another group's type is in the document");
    }

    #[test]
    fn operations_tell_kind_and_action() {
        let document = core();
        let list = &document["paths"]["/api/v1/namespaces/{namespace}/pods"]["get"];
        assert_eq!(list["x-kubernetes-action"], "list");
        assert_eq!(list["x-kubernetes-group-version-kind"]["kind"], "Pod");
        assert!(list["responses"]["200"]["content"]["application/json;stream=watch"].is_object());
        let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
        let names: Vec<&Value> = patch["parameters"].as_array().unwrap().iter().map(|p| &p["name"]).collect();
        assert!(names.contains(&&json!("fieldValidation")) && names.contains(&&json!("dryRun")));
        let parameters = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["parameters"];
        assert_eq!(
            parameters[0],
            json!({"name": "name", "in": "path", "required": true,
            "description": "name of the object", "schema": {"type": "string", "uniqueItems": true}})
        );
    }
}
