//! OpenAPI v2 as client-go reads it: gnostic's `openapi.v2.Document` (`openapiv2/OpenAPIv2.proto`).
//!
//! Only the messages and fields that [`super::v2`] fills are declared; field numbers are gnostic's. Every message of the
//! document that is not declared here would be lost, so a test decodes the whole of it and compares.

use bytes::Bytes;
use prost::{Message, Oneof};
use serde_json::{Map, Value};

#[derive(Clone, PartialEq, Message)]
struct Document {
    #[prost(string, tag = "1")]
    swagger: String,
    #[prost(message, optional, tag = "2")]
    info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    paths: Option<Paths>,
    #[prost(message, optional, tag = "9")]
    definitions: Option<Schemas>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Paths {
    #[prost(message, repeated, tag = "2")]
    path: Vec<NamedPathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedPathItem {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<PathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct PathItem {
    #[prost(message, optional, tag = "2")]
    get: Option<Operation>,
    #[prost(message, optional, tag = "3")]
    put: Option<Operation>,
    #[prost(message, optional, tag = "4")]
    post: Option<Operation>,
    #[prost(message, optional, tag = "5")]
    delete: Option<Operation>,
    #[prost(message, optional, tag = "8")]
    patch: Option<Operation>,
    #[prost(message, repeated, tag = "9")]
    parameters: Vec<ParametersItem>,
}

#[derive(Clone, PartialEq, Message)]
struct Operation {
    #[prost(string, repeated, tag = "1")]
    tags: Vec<String>,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, tag = "5")]
    operation_id: String,
    #[prost(string, repeated, tag = "6")]
    produces: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    consumes: Vec<String>,
    #[prost(message, repeated, tag = "8")]
    parameters: Vec<ParametersItem>,
    #[prost(message, optional, tag = "9")]
    responses: Option<Responses>,
    #[prost(string, repeated, tag = "10")]
    schemes: Vec<String>,
    #[prost(message, repeated, tag = "13")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct ParametersItem {
    #[prost(message, optional, tag = "1")]
    parameter: Option<Parameter>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(oneof = "ParameterKind", tags = "1, 2")]
    kind: Option<ParameterKind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum ParameterKind {
    #[prost(message, tag = "1")]
    Body(Box<BodyParameter>),
    #[prost(message, tag = "2")]
    NonBody(NonBodyParameter),
}

#[derive(Clone, PartialEq, Message)]
struct BodyParameter {
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    place: String,
    #[prost(bool, tag = "4")]
    required: bool,
    #[prost(message, optional, tag = "5")]
    schema: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NonBodyParameter {
    #[prost(oneof = "NonBodyKind", tags = "3, 4")]
    kind: Option<NonBodyKind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum NonBodyKind {
    #[prost(message, tag = "3")]
    Query(QueryParameter),
    #[prost(message, tag = "4")]
    Path(PathParameter),
}

#[derive(Clone, PartialEq, Message)]
struct QueryParameter {
    #[prost(string, tag = "2")]
    place: String,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "6")]
    kind: String,
    #[prost(bool, tag = "20")]
    unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PathParameter {
    #[prost(bool, tag = "1")]
    required: bool,
    #[prost(string, tag = "2")]
    place: String,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "5")]
    kind: String,
    #[prost(bool, tag = "19")]
    unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Responses {
    #[prost(message, repeated, tag = "1")]
    response_code: Vec<NamedResponse>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedResponse {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<ResponseValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ResponseValue {
    #[prost(message, optional, tag = "1")]
    response: Option<Response>,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(string, tag = "1")]
    description: String,
    #[prost(message, optional, tag = "2")]
    schema: Option<SchemaItem>,
}

/// Also `AdditionalPropertiesItem`: the schema is the first field of both.
#[derive(Clone, PartialEq, Message)]
struct SchemaItem {
    #[prost(message, optional, boxed, tag = "1")]
    schema: Option<Box<Schema>>,
}

/// `Definitions` and `Properties`.
#[derive(Clone, PartialEq, Message)]
struct Schemas {
    #[prost(message, repeated, tag = "1")]
    additional_properties: Vec<NamedSchema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedSchema {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct Schema {
    #[prost(string, tag = "1")]
    reference: String,
    #[prost(string, tag = "2")]
    format: String,
    #[prost(string, tag = "4")]
    description: String,
    #[prost(message, optional, tag = "5")]
    default: Option<Any>,
    #[prost(string, repeated, tag = "19")]
    required: Vec<String>,
    #[prost(message, repeated, tag = "20")]
    values: Vec<Any>,
    #[prost(message, optional, tag = "21")]
    additional_properties: Option<SchemaItem>,
    #[prost(message, optional, tag = "22")]
    kind: Option<Strings>,
    #[prost(message, optional, tag = "23")]
    items: Option<Items>,
    #[prost(message, optional, tag = "25")]
    properties: Option<Schemas>,
    #[prost(message, repeated, tag = "31")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct Strings {
    #[prost(string, repeated, tag = "1")]
    value: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Items {
    #[prost(message, repeated, tag = "1")]
    schema: Vec<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedAny {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Any>,
}

/// Any value, as YAML; JSON is YAML.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "2")]
    yaml: String,
}

/// Encodes the JSON form of a v2 document.
pub fn encode(document: &Value) -> Bytes {
    Document {
        swagger: text(document, "swagger"),
        info: document.get("info").map(|i| Info { title: text(i, "title"), version: text(i, "version") }),
        paths: Some(Paths { path: entries(document, "paths").map(|(n, v)| named_path(n, v)).collect() }),
        definitions: schemas(document, "definitions"),
    }
    .encode_to_vec()
    .into()
}

// ---- from JSON ----

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or_default()
}

fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn texts(value: &Value, key: &str) -> Vec<String> {
    items(value, key).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn entries<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    value.get(key).and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

fn any(value: &Value) -> Any {
    Any { yaml: value.to_string() }
}

fn extensions(value: &Value) -> Vec<NamedAny> {
    let of = value.as_object().into_iter().flat_map(Map::iter).filter(|(name, _)| name.starts_with("x-"));
    of.map(|(name, value)| NamedAny { name: name.clone(), value: Some(any(value)) }).collect()
}

fn named_path(name: &str, item: &Value) -> NamedPathItem {
    let method = |name: &str| item.get(name).map(operation);
    let value = PathItem {
        get: method("get"),
        put: method("put"),
        post: method("post"),
        delete: method("delete"),
        patch: method("patch"),
        parameters: parameters(item),
    };
    NamedPathItem { name: name.to_owned(), value: Some(value) }
}

fn operation(value: &Value) -> Operation {
    Operation {
        tags: texts(value, "tags"),
        description: text(value, "description"),
        operation_id: text(value, "operationId"),
        produces: texts(value, "produces"),
        consumes: texts(value, "consumes"),
        parameters: parameters(value),
        responses: Some(Responses {
            response_code: entries(value, "responses").map(|(c, r)| response(c, r)).collect(),
        }),
        schemes: texts(value, "schemes"),
        vendor_extension: extensions(value),
    }
}

fn parameters(value: &Value) -> Vec<ParametersItem> {
    let item = |p: &Value| ParametersItem { parameter: Some(Parameter { kind: Some(parameter(p)) }) };
    items(value, "parameters").iter().map(item).collect()
}

fn parameter(value: &Value) -> ParameterKind {
    let (name, place, description) = (text(value, "name"), text(value, "in"), text(value, "description"));
    let (kind, unique_items) = (text(value, "type"), flag(value, "uniqueItems"));
    match place.as_str() {
        "body" => ParameterKind::Body(Box::new(BodyParameter {
            name,
            place,
            required: flag(value, "required"),
            schema: value.get("schema").map(schema),
        })),
        "path" => ParameterKind::NonBody(NonBodyParameter {
            kind: Some(NonBodyKind::Path(PathParameter {
                required: true,
                place,
                description,
                name,
                kind,
                unique_items,
            })),
        }),
        _ => ParameterKind::NonBody(NonBodyParameter {
            kind: Some(NonBodyKind::Query(QueryParameter { place, description, name, kind, unique_items })),
        }),
    }
}

fn response(code: &str, value: &Value) -> NamedResponse {
    let schema = value.get("schema").map(|s| SchemaItem { schema: Some(Box::new(schema(s))) });
    let response = Response { description: text(value, "description"), schema };
    NamedResponse { name: code.to_owned(), value: Some(ResponseValue { response: Some(response) }) }
}

fn schemas(value: &Value, key: &str) -> Option<Schemas> {
    value.get(key)?;
    let named = |(name, value): (&String, &Value)| NamedSchema { name: name.clone(), value: Some(schema(value)) };
    Some(Schemas { additional_properties: entries(value, key).map(named).collect() })
}

fn schema(value: &Value) -> Schema {
    Schema {
        reference: text(value, "$ref"),
        format: text(value, "format"),
        description: text(value, "description"),
        default: value.get("default").map(any),
        required: texts(value, "required"),
        values: items(value, "enum").iter().map(any).collect(),
        additional_properties: value
            .get("additionalProperties")
            .map(|s| SchemaItem { schema: Some(Box::new(schema(s))) }),
        kind: value.get("type").and_then(Value::as_str).map(|t| Strings { value: vec![t.to_owned()] }),
        items: value.get("items").map(|s| Items { schema: vec![schema(s)] }),
        properties: schemas(value, "properties"),
        vendor_extension: extensions(value),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::present::fixtures::registry;
    use crate::present::openapi::v2;

    /// Back to JSON, from what a client would read.
    fn schema_json(schema: &Schema) -> Value {
        let mut out = Map::new();
        let mut put = |key: &str, value: Value| {
            if !matches!(&value, Value::Null) && value != "" && value != json!([]) {
                out.insert(key.to_owned(), value);
            }
        };
        let yaml = |any: &Any| serde_json::from_str::<Value>(&any.yaml).unwrap();
        let many = |s: &Schemas| -> Value {
            s.additional_properties
                .iter()
                .map(|n| (n.name.clone(), schema_json(n.value.as_ref().unwrap())))
                .collect::<Map<_, _>>()
                .into()
        };
        put("$ref", schema.reference.as_str().into());
        put("format", schema.format.as_str().into());
        put("description", schema.description.as_str().into());
        put("default", schema.default.as_ref().map_or(Value::Null, yaml));
        put("required", schema.required.clone().into());
        put("enum", schema.values.iter().map(yaml).collect());
        let below = schema.additional_properties.as_ref().and_then(|a| a.schema.as_ref());
        put("additionalProperties", below.map_or(Value::Null, |s| schema_json(s)));
        put("type", schema.kind.as_ref().map_or(Value::Null, |k| k.value[0].as_str().into()));
        put("items", schema.items.as_ref().map_or(Value::Null, |i| schema_json(&i.schema[0])));
        put("properties", schema.properties.as_ref().map_or(Value::Null, many));
        for extension in &schema.vendor_extension {
            put(&extension.name, yaml(extension.value.as_ref().unwrap()));
        }
        Value::Object(out)
    }

    #[test]
    fn nothing_of_the_schemas_is_lost() {
        let mut json = v2::document(&registry());
        let decoded = Document::decode(encode(&json)).unwrap();
        assert_eq!(decoded.swagger, "2.0");
        let definitions = decoded.definitions.unwrap().additional_properties;
        assert_eq!(definitions.len(), json["definitions"].as_object().unwrap().len());
        for definition in &definitions {
            let mut want = json["definitions"][&definition.name].take();
            // A default of "" is "" in YAML too: the one value that the comparison above takes for absent.
            drop_empty_defaults(&mut want);
            assert_eq!(schema_json(definition.value.as_ref().unwrap()), want, "{}", definition.name);
        }
    }

    fn drop_empty_defaults(schema: &mut Value) {
        for property in schema["properties"].as_object_mut().into_iter().flat_map(Map::values_mut) {
            if property["default"] == "" {
                property.as_object_mut().unwrap().remove("default");
            }
        }
        if schema["properties"].is_null() {
            schema.as_object_mut().unwrap().remove("properties");
        }
    }

    #[test]
    fn operations_survive() {
        let json = v2::document(&registry());
        let decoded = Document::decode(encode(&json)).unwrap();
        let paths = decoded.paths.unwrap().path;
        assert_eq!(paths.len(), json["paths"].as_object().unwrap().len());
        let path = paths.iter().find(|p| p.name == "/api/v1/namespaces/{namespace}/pods/{name}").unwrap();
        let item = path.value.as_ref().unwrap();
        assert_eq!(item.parameters.len(), 3);
        let patch = item.patch.as_ref().unwrap();
        assert_eq!(patch.operation_id, "patchCoreV1NamespacedPod");
        let queries: Vec<&str> = patch
            .parameters
            .iter()
            .filter_map(|p| match p.parameter.as_ref()?.kind.as_ref()? {
                ParameterKind::NonBody(NonBodyParameter { kind: Some(NonBodyKind::Query(q)) }) => Some(q.name.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(queries, ["dryRun", "fieldManager", "fieldValidation", "force"]);
        let kind = patch.vendor_extension.iter().find(|e| e.name == "x-kubernetes-group-version-kind").unwrap();
        let kind: Value = serde_json::from_str(&kind.value.as_ref().unwrap().yaml).unwrap();
        assert_eq!(kind, json!({"group": "", "version": "v1", "kind": "Pod"}));
        let codes: Vec<&str> =
            patch.responses.as_ref().unwrap().response_code.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(codes, ["200", "201", "401"]);
    }
}
