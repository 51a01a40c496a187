//! Bodies in Kubernetes' protobuf (`application/vnd.kubernetes.protobuf`), which kubectl ≥ 1.32 and client-go's typed clients
//! send: from the wire to the JSON that the same client would have sent.
//!
//! Field names and shapes come from the schemas, numbers from one table ([`fields`]). Nothing is dropped silently: a field that is
//! not known here and not zero is an error. Answers are never protobuf; every such client accepts JSON.

mod fields;
mod wire;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Number, Value};

use self::fields::Entry;
use self::wire::{Fields, Wire};
use super::graph::{Kind, Lookup, Node, Scalar};
use super::roots;

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Nesting of messages; the deepest type of a built-in kind is at half of it.
const MAX_DEPTH: usize = 40;

/// Why a body is refused.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Another format.
    #[error("the body is not in Kubernetes' protobuf envelope")]
    NotKubernetes,
    /// The envelope's contents are compressed or not protobuf.
    #[error("the envelope holds {0:?}")]
    Contents(String),
    /// The envelope names a kind without a schema.
    #[error("no kind {kind:?} is registered for version {api_version:?}: send JSON")]
    Kind {
        /// As in the envelope.
        api_version: String,
        /// As in the envelope.
        kind: String,
    },
    /// The bytes end within a field, or are no fields at all.
    #[error("the protobuf message is malformed")]
    Malformed,
    /// A field has another wire type than its schema's.
    #[error("field {0:?} has the wrong wire type")]
    WrongType(String),
    /// Neither this server's schema nor JSON's limits know what to do with it.
    #[error("field {0:?} has no valid value")]
    BadValue(String),
    /// A newer client's field.
    #[error("{of} has no field number {number}: send JSON")]
    UnknownField {
        /// Type name.
        of: String,
        /// On the wire.
        number: u32,
    },
    /// Too many messages within messages.
    #[error("the protobuf message is nested too deeply")]
    TooDeep,
}

/// Decodes a body: a magic number, then `runtime.Unknown` (type, raw bytes), then the object's own message.
pub fn decode(body: &[u8]) -> Result<Value, Error> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Error::NotKubernetes)?;
    let (mut api_version, mut kind, mut raw): (String, String, &[u8]) = (String::new(), String::new(), &[]);
    for field in Fields::new(envelope) {
        let (number, value) = field?;
        match number {
            1 => {
                for field in Fields::new(value.bytes("typeMeta")?) {
                    match field? {
                        (1, value) => api_version = value.text("apiVersion")?,
                        (2, value) => kind = value.text("kind")?,
                        _ => {}
                    }
                }
            }
            2 => raw = value.bytes("raw")?,
            _ => match value.text("contentType")?.as_str() {
                "" | "application/vnd.kubernetes.protobuf" => {}
                other => return Err(Error::Contents(other.to_owned())),
            },
        }
    }
    let Some(node) = root(&api_version, &kind) else { return Err(Error::Kind { api_version, kind }) };
    let mut object = object(node, raw, 0)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

fn root(api_version: &str, kind: &str) -> Option<Node> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    if kind == "DeleteOptions" {
        // Clients send it in the version of whatever they delete.
        return Node::of_type("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions");
    }
    roots::find(group, version, kind).and_then(|root| Node::of_type(&root.type_name()))
}

fn object(node: Node, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, Error> {
    let mut out = Map::new();
    fill(&mut out, node, node.full_name(), bytes, depth)?;
    Ok(out)
}

/// Reads the message `type_name` into the object `node`; the two differ for embedded structs.
fn fill(out: &mut Map<String, Value>, node: Node, type_name: &str, bytes: &[u8], depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::TooDeep);
    }
    for field in Fields::new(bytes) {
        let (number, value) = field?;
        match fields::find(type_name, number) {
            Some(Entry::Embedded(inner)) => fill(out, node, inner, value.bytes(inner)?, depth + 1)?,
            Some(Entry::Field { name, pointer }) => {
                let Lookup::Known(child, _) = node.field(name) else { return Err(unknown(type_name, number)) };
                set(out, name, child, value, *pointer, depth)?;
            }
            None if value.is_zero() => {}
            None => return Err(unknown(type_name, number)),
        }
    }
    Ok(())
}

fn unknown(type_name: &str, number: u32) -> Error {
    Error::UnknownField { of: type_name.to_owned(), number }
}

fn set(
    out: &mut Map<String, Value>,
    name: &str,
    node: Node,
    value: Wire<'_>,
    pointer: bool,
    depth: usize,
) -> Result<(), Error> {
    match node.kind() {
        Kind::List(item) => {
            let list = out.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(list) = list else { return Err(Error::BadValue(name.to_owned())) };
            match (item.kind(), value) {
                (Kind::Scalar(Scalar::Integer), Wire::Bytes(packed)) => {
                    for number in wire::packed(packed) {
                        list.push(signed(number?));
                    }
                }
                _ => list.push(single(name, item, value, depth)?),
            }
        }
        Kind::Map(of) => {
            let (mut key, mut entry) = (String::new(), None);
            for field in Fields::new(value.bytes(name)?) {
                match field? {
                    (1, value) => key = value.text(name)?,
                    (2, value) => entry = Some(single(name, of, value, depth)?),
                    _ => return Err(Error::Malformed),
                }
            }
            let entry = match entry {
                Some(entry) => entry,
                None => single(name, of, Wire::Bytes(&[]), depth)?,
            };
            let map = out.entry(name).or_insert_with(|| Value::Object(Map::new()));
            map.as_object_mut().ok_or_else(|| Error::BadValue(name.to_owned()))?.insert(key, entry);
        }
        _ => {
            let value = single(name, node, value, depth)?;
            if !value.is_null() && (pointer || !is_zero(&value)) {
                out.insert(name.to_owned(), value);
            }
        }
    }
    Ok(())
}

/// What Go's JSON leaves out of a plain field.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(flag) => !flag,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(_) | Value::Null => false,
    }
}

fn signed(varint: u64) -> Value {
    varint.cast_signed().into()
}

/// One value that is neither a list nor a map (but for lists in maps, which upstream wraps in a message).
fn single(name: &str, node: Node, value: Wire<'_>, depth: usize) -> Result<Value, Error> {
    let bad = || Error::BadValue(name.to_owned());
    Ok(match node.kind() {
        Kind::Object => Value::Object(object(node, value.bytes(name)?, depth + 1)?),
        Kind::Opaque => match only_field(value.bytes(name)?, name)? {
            [] => Value::Null,
            json => serde_json::from_slice(json).map_err(|_| bad())?,
        },
        Kind::List(item) => {
            let mut list = Vec::new();
            for field in Fields::new(value.bytes(name)?) {
                list.push(single(name, item, field?.1, depth)?);
            }
            Value::Array(list)
        }
        Kind::Map(_) => return Err(bad()),
        Kind::Scalar(scalar) => match scalar {
            Scalar::Text => value.text(name)?.into(),
            Scalar::Integer => signed(value.varint(name)?),
            Scalar::Boolean => (value.varint(name)? != 0).into(),
            Scalar::Number => Number::from_f64(value.double(name)?).map(Value::Number).ok_or_else(bad)?,
            Scalar::Bytes => BASE64_STANDARD.encode(value.bytes(name)?).into(),
            Scalar::Quantity => match Wire::Bytes(only_field(value.bytes(name)?, name)?).text(name)? {
                text if text.is_empty() => "0".into(),
                text => text.into(),
            },
            Scalar::IntOrString => int_or_string(value.bytes(name)?, name)?,
            Scalar::Time => time(value.bytes(name)?, name, 0)?,
            Scalar::MicroTime => time(value.bytes(name)?, name, 6)?,
        },
    })
}

/// Field 1 of a message that has no other: `Quantity`, `FieldsV1`, `RawExtension`.
fn only_field<'a>(message: &'a [u8], name: &str) -> Result<&'a [u8], Error> {
    let mut out: &[u8] = &[];
    for field in Fields::new(message) {
        match field? {
            (1, value) => out = value.bytes(name)?,
            _ => return Err(Error::BadValue(name.to_owned())),
        }
    }
    Ok(out)
}

fn int_or_string(message: &[u8], name: &str) -> Result<Value, Error> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for field in Fields::new(message) {
        match field? {
            (1, value) => is_text = value.varint(name)? != 0,
            (2, value) => number = value.varint(name)?,
            (3, value) => text = value.text(name)?,
            _ => return Err(Error::BadValue(name.to_owned())),
        }
    }
    Ok(if is_text { text.into() } else { signed(number) })
}

/// Seconds and nanoseconds since 1970; an empty message is Go's zero time, which JSON leaves out.
fn time(message: &[u8], name: &str, digits: usize) -> Result<Value, Error> {
    let bad = || Error::BadValue(name.to_owned());
    if message.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields::new(message) {
        match field? {
            (1, value) => seconds = value.varint(name)?.cast_signed(),
            (2, value) => nanos = i32::try_from(value.varint(name)?).map_err(|_| bad())?,
            _ => return Err(bad()),
        }
    }
    let time = Timestamp::new(seconds, nanos).map_err(|_| bad())?;
    Ok(format!("{time:.digits$}").into())
}

#[cfg(test)]
mod tests;
