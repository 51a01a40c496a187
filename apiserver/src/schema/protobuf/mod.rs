//! Bodies in Kubernetes' protobuf (`application/vnd.kubernetes.protobuf`), which kubectl ≥ 1.32 and client-go's typed clients
//! send: from the wire to the JSON that the same client would have sent.
//!
//! Field names and shapes come from the schemas, numbers from one table ([`fields`]). Nothing is dropped silently: fields of
//! releases newer than the schemas become unknown JSON fields, which `fieldValidation` reports, and any other number that is
//! not known and not zero is an error. Answers are never protobuf; every such client accepts JSON.

mod fields;
mod wire;

use std::fmt;

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
/// Most values of an object: more than the largest one that can be stored has, were it a list of `{}`.
const MAX_VALUES: usize = 500_000;
/// The first second of the year 1, Go's zero time.
const FIRST_SECOND: i64 = -62_135_596_800;

/// Why a body is refused.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Another format.
    #[error("the body is not in Kubernetes' protobuf envelope")]
    NotKubernetes,
    /// The envelope's contents are compressed or not protobuf.
    #[error("the protobuf envelope holds {0:?}, which cannot be read: send it plain")]
    Contents(String),
    /// The envelope names a kind without a schema.
    #[error("no kind {kind:?} is registered for version {api_version:?} in protobuf: send JSON")]
    Kind {
        /// As in the envelope.
        api_version: String,
        /// As in the envelope.
        kind: String,
    },
    /// Something is wrong at a place.
    #[error(transparent)]
    At(At),
}

/// What is wrong where.
#[derive(Debug, PartialEq, thiserror::Error)]
pub struct At {
    /// Outermost last.
    path: Vec<String>,
    why: Why,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.path.iter().rev().enumerate() {
            let dot = if i == 0 || name.starts_with('[') { "" } else { "." };
            write!(f, "{dot}{name}")?;
        }
        write!(f, "{}{}", if self.path.is_empty() { "" } else { ": " }, self.why)
    }
}

impl From<Why> for At {
    fn from(why: Why) -> Self {
        Self { path: Vec::new(), why }
    }
}

impl At {
    fn under(mut self, name: impl Into<String>) -> Self {
        self.path.push(name.into());
        self
    }
}

/// Why a field is refused.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Why {
    /// The bytes end within a field, or are no fields at all.
    #[error("the protobuf message is malformed or truncated")]
    Malformed,
    /// A field has another wire type than its schema's.
    #[error("the protobuf wire type is wrong")]
    WrongType,
    /// Text that is not UTF-8.
    #[error("the text is not valid UTF-8")]
    NotText,
    /// JSON has no such value.
    #[error("the value is not valid: {0}")]
    BadValue(&'static str),
    /// A number that no release up to the table's has.
    #[error("{of} has no field number {number} here: send JSON")]
    UnknownField {
        /// Type name.
        of: String,
        /// On the wire.
        number: u32,
    },
    /// Too many messages within messages.
    #[error("the protobuf message is nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// Too many fields, items and entries.
    #[error("the protobuf message has more than {MAX_VALUES} values")]
    TooMany,
}

/// Decodes a body: a magic number, then `runtime.Unknown` (type, raw bytes, encoding, content type), in it the object's own
/// message. `apiVersion` and `kind` are the envelope's.
pub fn decode(body: &[u8]) -> Result<Value, Error> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Error::NotKubernetes)?;
    let Envelope { api_version, kind, raw } = Envelope::read(envelope)?;
    let Some(node) = root(api_version, kind) else {
        return Err(Error::Kind { api_version: api_version.to_owned(), kind: kind.to_owned() });
    };
    let mut object = Map::new();
    Decoder { values_left: MAX_VALUES }.fill(&mut object, node, node.full_name(), raw, 0).map_err(Error::At)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

#[derive(Default)]
struct Envelope<'a> {
    api_version: &'a str,
    kind: &'a str,
    raw: &'a [u8],
}

impl<'a> Envelope<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Error> {
        let at = |why: Why| Error::At(At::from(why));
        let mut out = Self::default();
        for field in Fields::new(bytes) {
            let (number, value) = field.map_err(at)?;
            match number {
                1 => {
                    for field in Fields::new(value.bytes().map_err(at)?) {
                        match field.map_err(at)? {
                            (1, value) => out.api_version = value.text().map_err(at)?,
                            (2, value) => out.kind = value.text().map_err(at)?,
                            (number, value) => known_or_zero("TypeMeta", number, value).map_err(at)?,
                        }
                    }
                }
                2 => out.raw = value.bytes().map_err(at)?,
                // The encoding; nothing but plain is in use.
                3 => match value.text().map_err(at)? {
                    "" => {}
                    other => return Err(Error::Contents(other.to_owned())),
                },
                4 => match value.text().map_err(at)? {
                    "" | "application/vnd.kubernetes.protobuf" => {}
                    other => return Err(Error::Contents(other.to_owned())),
                },
                _ => known_or_zero("runtime.Unknown", number, value).map_err(at)?,
            }
        }
        Ok(out)
    }
}

/// What newer clients write into plain fields that they leave alone says nothing and may be skipped.
fn known_or_zero(of: &str, number: u32, value: Wire<'_>) -> Result<(), Why> {
    if value.is_zero() { Ok(()) } else { Err(Why::UnknownField { of: of.to_owned(), number }) }
}

fn root(api_version: &str, kind: &str) -> Option<Node> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    if kind == "DeleteOptions" {
        // Clients send it in the version of whatever they delete.
        return Node::of_type("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions");
    }
    roots::find(group, version, kind).and_then(|root| Node::of_type(&root.type_name()))
}

struct Decoder {
    values_left: usize,
}

impl Decoder {
    fn count(&mut self) -> Result<(), Why> {
        self.values_left = self.values_left.checked_sub(1).ok_or(Why::TooMany)?;
        Ok(())
    }

    /// Reads the message `type_name` into the object `node`; the two differ for embedded structs.
    fn fill(
        &mut self,
        out: &mut Map<String, Value>,
        node: Node,
        type_name: &str,
        bytes: &[u8],
        depth: usize,
    ) -> Result<(), At> {
        if depth > MAX_DEPTH {
            return Err(Why::TooDeep.into());
        }
        for field in Fields::new(bytes) {
            let (number, value) = field?;
            match fields::find(type_name, number) {
                Some(Entry::Embedded(inner)) => self.fill(out, node, inner, value.bytes()?, depth + 1)?,
                Some(Entry::Field { name, pointer }) => {
                    let Lookup::Known(child, _) = node.field(name) else {
                        return Err(Why::UnknownField { of: type_name.to_owned(), number }.into());
                    };
                    self.set(out, name, child, value, *pointer, depth)?;
                }
                // Its shape is not known here; JSON's decoder will find it to be unknown by its name.
                Some(Entry::Newer(name)) if !value.is_zero() => {
                    self.count()?;
                    out.insert((*name).to_owned(), Value::Null);
                }
                Some(Entry::Newer(_)) => {}
                None => known_or_zero(type_name, number, value)?,
            }
        }
        Ok(())
    }

    /// Sets a field. As protobuf wants it, lists and maps grow, messages merge, and of single values the last one counts.
    fn set(
        &mut self,
        out: &mut Map<String, Value>,
        name: &str,
        node: Node,
        value: Wire<'_>,
        pointer: bool,
        depth: usize,
    ) -> Result<(), At> {
        match node.kind() {
            Kind::List(item) => {
                let list = out.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = list else { return Err(At::from(Why::Malformed).under(name)) };
                self.grow(list, item, value, depth).map_err(|e| e.under(format!("[{}]", list.len())).under(name))
            }
            Kind::Map(of) => {
                let map = out.entry(name).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(map) = map else { return Err(At::from(Why::Malformed).under(name)) };
                let (key, value) = self.entry(of, value, depth).map_err(|e| e.under(name))?;
                map.insert(key, value);
                Ok(())
            }
            Kind::Object => {
                self.count()?;
                let mut inner = match out.remove(name) {
                    Some(Value::Object(inner)) => inner,
                    _ => Map::new(),
                };
                let bytes = value.bytes().map_err(|why| At::from(why).under(name))?;
                self.fill(&mut inner, node, node.full_name(), bytes, depth + 1).map_err(|e| e.under(name))?;
                // Also if it is empty: Go's JSON leaves out no struct.
                out.insert(name.to_owned(), Value::Object(inner));
                Ok(())
            }
            Kind::Scalar(_) | Kind::Opaque => {
                let value = self.single(node, value, depth).map_err(|e| e.under(name))?;
                if !pointer && is_zero(&value) {
                    out.remove(name);
                } else {
                    out.insert(name.to_owned(), value);
                }
                Ok(())
            }
        }
    }

    fn grow(&mut self, list: &mut Vec<Value>, item: Node, value: Wire<'_>, depth: usize) -> Result<(), At> {
        match (item.kind(), value) {
            (Kind::Scalar(Scalar::Integer), Wire::Bytes(packed)) => {
                for number in wire::packed(packed) {
                    self.count()?;
                    list.push(signed(number?));
                }
            }
            _ => list.push(self.single(item, value, depth)?),
        }
        Ok(())
    }

    /// A map's entry: a message of a key and a value, of which either may be left out if empty.
    fn entry(&mut self, of: Node, message: Wire<'_>, depth: usize) -> Result<(String, Value), At> {
        let (mut key, mut wire) = ("", None);
        for field in Fields::new(message.bytes()?) {
            match field? {
                (1, value) => key = value.text()?,
                (2, value) => wire = Some(value),
                (number, value) => known_or_zero("a map's entry", number, value)?,
            }
        }
        let value = self.single(of, wire.unwrap_or(Wire::Bytes(&[])), depth).map_err(|e| e.under(key))?;
        Ok((key.to_owned(), value))
    }

    /// One value that is neither a list nor a map (but for lists in maps, which upstream wraps in a message).
    fn single(&mut self, node: Node, value: Wire<'_>, depth: usize) -> Result<Value, At> {
        self.count()?;
        Ok(match node.kind() {
            Kind::Object => {
                let mut out = Map::new();
                self.fill(&mut out, node, node.full_name(), value.bytes()?, depth + 1)?;
                Value::Object(out)
            }
            Kind::Opaque => match only_field(value.bytes()?)? {
                [] => Value::Null,
                json => serde_json::from_slice(json).map_err(|_| Why::BadValue("it is not JSON"))?,
            },
            Kind::List(item) => {
                let mut list = Vec::new();
                for field in Fields::new(value.bytes()?) {
                    match field? {
                        (1, value) => self.grow(&mut list, item, value, depth)?,
                        (number, value) => known_or_zero("a list in a map", number, value)?,
                    }
                }
                Value::Array(list)
            }
            Kind::Map(_) => return Err(Why::BadValue("no type has a map there").into()),
            Kind::Scalar(scalar) => scalar_value(scalar, value)?,
        })
    }
}

fn scalar_value(scalar: Scalar, value: Wire<'_>) -> Result<Value, Why> {
    Ok(match scalar {
        Scalar::Text => value.text()?.into(),
        Scalar::Integer => signed(value.varint()?),
        Scalar::Boolean => (value.varint()? != 0).into(),
        Scalar::Number => {
            let number = Number::from_f64(value.double()?);
            number.map(Value::Number).ok_or(Why::BadValue("numbers must be finite"))?
        }
        Scalar::Bytes => BASE64_STANDARD.encode(value.bytes()?).into(),
        Scalar::Quantity => match Wire::Bytes(only_field(value.bytes()?)?).text()? {
            "" => "0".into(),
            text => text.into(),
        },
        Scalar::IntOrString => int_or_string(value.bytes()?)?,
        Scalar::Time => time(value.bytes()?, 0)?,
        Scalar::MicroTime => time(value.bytes()?, 6)?,
    })
}

/// What Go's JSON leaves out of a plain field.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(flag) => !flag,
        Value::Object(_) | Value::Array(_) | Value::Null => false,
    }
}

fn signed(varint: u64) -> Value {
    varint.cast_signed().into()
}

/// Field 1 of a message that has no other: `Quantity`, `FieldsV1`, `RawExtension`.
fn only_field(message: &[u8]) -> Result<&[u8], Why> {
    let mut out: &[u8] = &[];
    for field in Fields::new(message) {
        match field? {
            (1, value) => out = value.bytes()?,
            (number, value) => known_or_zero("it", number, value)?,
        }
    }
    Ok(out)
}

/// `IntOrString`: which of the two it is, and both.
fn int_or_string(message: &[u8]) -> Result<Value, Why> {
    let (mut kind, mut number, mut text) = (0, 0, "");
    for field in Fields::new(message) {
        match field? {
            (1, value) => kind = value.varint()?,
            (2, value) => number = value.varint()?,
            (3, value) => text = value.text()?,
            (number, value) => known_or_zero("IntOrString", number, value)?,
        }
    }
    match kind {
        0 => Ok(signed(number)),
        1 => Ok(text.into()),
        _ => Err(Why::BadValue("it is neither an integer nor text")),
    }
}

/// Seconds and nanoseconds since 1970, `digits` of the latter; Go's zero time, an empty message, is null as in JSON.
fn time(message: &[u8], digits: usize) -> Result<Value, Why> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields::new(message) {
        match field? {
            (1, value) => seconds = value.varint()?.cast_signed(),
            (2, value) => nanos = value.varint()?.cast_signed(),
            (number, value) => known_or_zero("Timestamp", number, value)?,
        }
    }
    if message.is_empty() || (seconds, nanos) == (FIRST_SECOND, 0) {
        return Ok(Value::Null);
    }
    // Times in whole seconds ignore the rest, as upstream reads them.
    let in_range = seconds >= FIRST_SECOND && (0..1_000_000_000).contains(&nanos);
    let nanos = if digits == 0 { 0 } else { i32::try_from(nanos).unwrap_or(-1) };
    match Timestamp::new(seconds, nanos).ok().filter(|_| in_range) {
        Some(time) => Ok(format!("{time:.digits$}").into()),
        None => Err(Why::BadValue("it is no time of the years 1 to 9999")),
    }
}

#[cfg(test)]
pub mod tests;
