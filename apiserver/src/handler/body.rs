//! Bodies: hostile bytes to a decoded, defaulted object, with unknown and duplicate fields reported.

use std::fmt;

use http::HeaderMap;
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::ApiError;
use crate::negotiate::{BodyFormat, body_format};
use crate::registry::Resource;
use crate::request::FieldValidation;
use crate::schema::protobuf;

/// Deepest nesting of a body. Upstream's limit for JSON is far higher, but no kind nests half as deep.
const MAX_DEPTH: usize = 100;
/// Most duplicate or unknown fields that are reported.
const MAX_REPORTED_FIELDS: usize = 64;
/// How much of an unreadable body an error quotes, as upstream.
const QUOTED_BYTES: usize = 30;

/// A body that is valid JSON or YAML.
#[derive(Debug)]
pub struct Parsed {
    /// The document; of duplicate keys the last one counts.
    pub value: Value,
    /// Paths of keys that occur twice.
    pub duplicates: Vec<String>,
}

/// Parses a body by its content type.
pub fn parse(headers: &HeaderMap, bytes: &[u8], kind: &str) -> Result<Parsed, ApiError> {
    let format = body_format(headers)?;
    parse_as(format, bytes).map_err(|e| {
        if format == BodyFormat::Protobuf {
            return ApiError::bad_request(format!("the object provided cannot be read (must be of type {kind}): {e}"));
        }
        let quoted = String::from_utf8_lossy(&bytes[..bytes.len().min(QUOTED_BYTES)]).into_owned();
        let dots = if bytes.len() > QUOTED_BYTES { " ..." } else { "" };
        ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; \
             {} parse error: {e} ({quoted:?}{dots})",
            if format == BodyFormat::Json { "json" } else { "yaml" },
        ))
    })
}

fn parse_as(format: BodyFormat, bytes: &[u8]) -> Result<Parsed, String> {
    let mut duplicates = Vec::new();
    let seed = Tracked { path: String::new(), depth: 0, duplicates: &mut duplicates };
    let value = match format {
        BodyFormat::Json => {
            let mut json = serde_json::Deserializer::from_slice(bytes);
            let value = seed.deserialize(&mut json).map_err(|e| e.to_string())?;
            json.end().map_err(|e| e.to_string())?;
            value
        }
        BodyFormat::Yaml => {
            let options = serde_saphyr::options! {
                duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
                strict_booleans: true,
            };
            serde_saphyr::with_deserializer_from_slice_with_options(bytes, options, |yaml| seed.deserialize(yaml))
                .map_err(|e| e.to_string())?
        }
        BodyFormat::Protobuf => protobuf::decode(bytes).map_err(|e| e.to_string())?,
    };
    Ok(Parsed { value, duplicates })
}

/// Builds a `Value` and notes keys that occur twice.
struct Tracked<'a> {
    path: String,
    depth: usize,
    duplicates: &'a mut Vec<String>,
}

impl Tracked<'_> {
    fn below(&mut self, path: String) -> Tracked<'_> {
        Tracked { path, depth: self.depth + 1, duplicates: self.duplicates }
    }
}

impl<'de> DeserializeSeed<'de> for Tracked<'_> {
    type Value = Value;
    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.depth > MAX_DEPTH {
            return Err(de::Error::custom(format!("exceeded max depth of {MAX_DEPTH}")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tracked<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("numbers must be finite"))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(value) = {
            let path = format!("{}[{}]", self.path, out.len());
            seq.next_element_seed(self.below(path))?
        } {
            out.push(value);
        }
        Ok(Value::Array(out))
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = if self.path.is_empty() { key.clone() } else { format!("{}.{key}", self.path) };
            if out.contains_key(&key) && self.duplicates.len() < MAX_REPORTED_FIELDS {
                self.duplicates.push(path.clone());
            }
            let value = map.next_value_seed(self.below(path))?;
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

/// Checks that a body is of the row's kind (both may be left out) and fills both in.
pub fn check_kind(row: &Resource, value: &mut Value) -> Result<(), ApiError> {
    let Some(object) = value.as_object_mut() else {
        let message =
            format!("the object provided is unrecognized (must be of type {}): the body must be an object", row.kind);
        return Err(ApiError::bad_request(message));
    };
    let expected = row.api_version();
    for (field, wanted) in [("apiVersion", expected.as_str()), ("kind", &row.kind)] {
        match object.get(field) {
            None | Some(Value::Null) => {
                object.insert(field.to_owned(), wanted.into());
            }
            Some(Value::String(text)) if text.is_empty() => {
                object.insert(field.to_owned(), wanted.into());
            }
            Some(Value::String(text)) if text == wanted => {}
            Some(Value::String(text)) if field == "apiVersion" => {
                return Err(ApiError::bad_request(format!(
                    "the API version in the data ({text}) does not match the expected API version ({wanted})"
                )));
            }
            Some(Value::String(text)) => {
                return Err(ApiError::bad_request(format!(
                    "{text} in version {:?} cannot be handled as a {wanted}: converting ({text}) to ({wanted}): \
                     unknown conversion",
                    row.version
                )));
            }
            Some(_) => return Err(ApiError::bad_request(format!("{field} must be a string"))),
        }
    }
    Ok(())
}

/// Decodes, prunes and defaults an object of the row's kind.
pub fn decode(
    row: &Resource,
    parsed: Parsed,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let Parsed { mut value, duplicates } = parsed;
    check_kind(row, &mut value)?;
    let refuse = |why: String| {
        let (kind, version) = (&row.kind, &row.version);
        ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
    };
    let mut decoded = row.rules.decode(value).map_err(&refuse)?;
    decoded.unknown_fields.truncate(MAX_REPORTED_FIELDS);
    let duplicates = duplicates.iter().map(|f| format!("duplicate field {f:?}"));
    let unknown = decoded.unknown_fields.iter().map(|f| format!("unknown field {f:?}"));
    let found: Vec<String> = duplicates.chain(unknown).collect();
    match validation {
        FieldValidation::Strict if !found.is_empty() => {
            return Err(refuse(format!("strict decoding error: {}", found.join(", "))));
        }
        FieldValidation::Warn => warnings.extend(found),
        _ => {}
    }
    Ok(decoded.object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_keys_are_found_in_json_and_yaml() {
        let json = parse_as(BodyFormat::Json, br#"{"a":{"b":1,"b":2},"c":[{"d":1,"d":1}]}"#).unwrap();
        assert_eq!(json.duplicates, ["a.b", "c[0].d"]);
        assert_eq!(json.value["a"]["b"], 2);
        let yaml = parse_as(BodyFormat::Yaml, b"a: 1\na: 2\n").unwrap();
        assert_eq!((yaml.duplicates, yaml.value), (vec!["a".to_owned()], serde_json::json!({"a": 2})));
        let yaml = parse_as(BodyFormat::Yaml, b"a:\n  b: 1\n  c: [y, 2, true, null]\n").unwrap();
        assert_eq!(yaml.value, serde_json::json!({"a": {"b": 1, "c": ["y", 2, true, null]}}));
    }

    #[test]
    fn hostile_bodies_are_refused() {
        let deep = format!("{}1{}", "[".repeat(120), "]".repeat(120));
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned()
            + &(0..12)
                .fold(("a".to_owned(), String::new()), |(last, out), i| {
                    let refs = vec![format!("*{last}"); 9].join(",");
                    (format!("b{i}"), format!("{out}b{i}: &b{i} [{refs}]\n"))
                })
                .1;
        for (format, text) in [
            (BodyFormat::Json, ""),
            (BodyFormat::Json, "{"),
            (BodyFormat::Json, "{} {}"),
            (BodyFormat::Json, deep.as_str()),
            (BodyFormat::Yaml, "a: [b"),
            (BodyFormat::Yaml, "a: .nan"),
            (BodyFormat::Yaml, deep.as_str()),
            (BodyFormat::Yaml, bomb.as_str()),
        ] {
            assert!(parse_as(format, text.as_bytes()).is_err(), "{format:?} {:.40}", text);
        }
    }
}
