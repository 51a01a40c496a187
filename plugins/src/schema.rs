//! Whether a configuration satisfies the JSON Schema that a component exports.
//!
//! The keywords of JSON Schema 2020-12 that describe plain data; a schema with any other that would restrict is refused, because what it asks
//! for would silently not hold. Both sides are somebody's: work is bounded, patterns match in linear time, nothing is fetched.

use regex::RegexBuilder;
use serde_json::{Map, Value};

use crate::module::Module;

/// Schemas looked at, all branches together.
const MAX_STEPS: usize = 100_000;
/// Nesting of schemas, references among them.
const MAX_DEPTH: usize = 64;
/// Memory of a compiled pattern.
const MAX_PATTERN_BYTES: usize = 1 << 20;
/// Keywords that only say something.
const ANNOTATIONS: [&str; 14] = [
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "examples",
    "example",
    "format",
    "deprecated",
    "readOnly",
    "writeOnly",
];

impl Module {
    /// Whether the component takes this configuration. One without a schema takes any.
    ///
    /// # Errors
    /// Where it does not fit, or what is wrong with the schema.
    pub fn check_config(&self, config: &Value) -> Result<(), String> {
        match self.metadata.config_schema.as_str() {
            "" => Ok(()),
            schema => check(schema, config),
        }
    }
}

/// Checks `value` against a schema in JSON.
///
/// # Errors
/// Where it does not fit, or what is wrong with the schema.
pub fn check(schema: &str, value: &Value) -> Result<(), String> {
    let root: Value =
        serde_json::from_str(schema).map_err(|error| format!("the exported schema is not JSON: {error}"))?;
    let mut check = Check { root: &root, steps: 0 };
    match check.fits(&root, value, "", 0) {
        Ok(()) => Ok(()),
        Err(Miss::Value(why)) => Err(why),
        Err(Miss::Schema(why)) => Err(format!("the exported schema cannot be used: {why}")),
    }
}

/// Why it does not fit.
enum Miss {
    /// The value's fault: another branch may fit.
    Value(String),
    /// The schema's.
    Schema(String),
}

struct Check<'a> {
    root: &'a Value,
    steps: usize,
}

fn miss(at: &str, why: impl std::fmt::Display) -> Miss {
    Miss::Value(format!("config{at} {why}"))
}

fn broken(keyword: &str) -> Miss {
    Miss::Schema(format!("its {keyword} is not what JSON Schema wants there"))
}

fn is_of(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        _ => false,
    }
}

impl<'a> Check<'a> {
    fn fits(&mut self, schema: &'a Value, value: &Value, at: &str, depth: usize) -> Result<(), Miss> {
        self.steps += 1;
        if self.steps > MAX_STEPS || depth > MAX_DEPTH {
            return Err(Miss::Schema("it is too deep or takes too long to check".into()));
        }
        let schema = match schema {
            Value::Bool(true) => return Ok(()),
            Value::Bool(false) => return Err(miss(at, "is not allowed")),
            Value::Object(schema) => schema,
            _ => return Err(Miss::Schema("a schema is an object or a boolean".into())),
        };
        for (keyword, wanted) in schema {
            self.keyword(schema, keyword, wanted, value, at, depth)?;
        }
        Ok(())
    }

    fn keyword(
        &mut self,
        schema: &'a Map<String, Value>,
        keyword: &str,
        wanted: &'a Value,
        value: &Value,
        at: &str,
        depth: usize,
    ) -> Result<(), Miss> {
        match keyword {
            "$ref" => {
                let target = wanted.as_str().and_then(|text| text.strip_prefix('#'));
                let target = target.and_then(|pointer| self.root.pointer(pointer));
                self.fits(target.ok_or_else(|| Miss::Schema(format!("there is no {wanted}")))?, value, at, depth + 1)
            }
            "type" => {
                let kinds = match wanted {
                    Value::Array(kinds) => kinds.as_slice(),
                    one => std::slice::from_ref(one),
                };
                let fits = kinds.iter().filter_map(Value::as_str).any(|kind| is_of(kind, value));
                if fits { Ok(()) } else { Err(miss(at, format!("must be of type {wanted}"))) }
            }
            "enum" => {
                let allowed = wanted.as_array().ok_or_else(|| broken(keyword))?;
                if allowed.contains(value) { Ok(()) } else { Err(miss(at, format!("must be one of {wanted}"))) }
            }
            "const" if value == wanted => Ok(()),
            "const" => Err(miss(at, format!("must be {wanted}"))),
            "allOf" | "anyOf" | "oneOf" | "not" => self.combined(keyword, wanted, value, at, depth),
            "properties" | "required" | "additionalProperties" | "minProperties" | "maxProperties" => match value {
                Value::Object(members) => self.object(schema, keyword, wanted, members, at, depth),
                _ => Ok(()),
            },
            "items" | "minItems" | "maxItems" | "uniqueItems" => match value {
                Value::Array(items) => self.array(keyword, wanted, items, at, depth),
                _ => Ok(()),
            },
            "minLength" | "maxLength" | "pattern" => {
                value.as_str().map_or(Ok(()), |text| string(keyword, wanted, text, at))
            }
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" => {
                value.as_f64().map_or(Ok(()), |number| numeric(keyword, wanted, number, at))
            }
            other if ANNOTATIONS.contains(&other) => Ok(()),
            other => Err(Miss::Schema(format!("the keyword {other:?} is not supported"))),
        }
    }

    fn combined(
        &mut self,
        keyword: &str,
        wanted: &'a Value,
        value: &Value,
        at: &str,
        depth: usize,
    ) -> Result<(), Miss> {
        let branches = match wanted {
            Value::Array(branches) if keyword != "not" => branches.as_slice(),
            one if keyword == "not" => std::slice::from_ref(one),
            _ => return Err(broken(keyword)),
        };
        let (mut fitting, mut why) = (0, None);
        for branch in branches {
            match self.fits(branch, value, at, depth + 1) {
                Ok(()) => fitting += 1,
                Err(Miss::Value(text)) => why = why.or(Some(text)),
                Err(schema) => return Err(schema),
            }
        }
        let good = match keyword {
            "allOf" => fitting == branches.len(),
            "anyOf" => fitting > 0,
            "oneOf" => fitting == 1,
            _ => fitting == 0,
        };
        match (good, why) {
            (true, _) => Ok(()),
            (false, Some(why)) if keyword != "not" && fitting == 0 => Err(Miss::Value(why)),
            (false, _) => Err(miss(at, format!("does not satisfy the schema's {keyword}"))),
        }
    }

    fn object(
        &mut self,
        schema: &'a Map<String, Value>,
        keyword: &str,
        wanted: &'a Value,
        members: &Map<String, Value>,
        at: &str,
        depth: usize,
    ) -> Result<(), Miss> {
        let known = schema.get("properties").and_then(Value::as_object);
        match keyword {
            "properties" => {
                for (name, schema) in wanted.as_object().ok_or_else(|| broken(keyword))? {
                    if let Some(member) = members.get(name) {
                        self.fits(schema, member, &format!("{at}.{name}"), depth + 1)?;
                    }
                }
                Ok(())
            }
            "required" => {
                let mut names = wanted.as_array().ok_or_else(|| broken(keyword))?.iter().filter_map(Value::as_str);
                names.try_for_each(|name| match members.contains_key(name) {
                    true => Ok(()),
                    false => Err(miss(&format!("{at}.{name}"), "is required")),
                })
            }
            "additionalProperties" => {
                for (name, member) in members {
                    if known.is_none_or(|known| !known.contains_key(name)) {
                        self.fits(wanted, member, &format!("{at}.{name}"), depth + 1)?;
                    }
                }
                Ok(())
            }
            _ => size(keyword, wanted, members.len(), "members", at),
        }
    }

    fn array(&mut self, keyword: &str, wanted: &'a Value, items: &[Value], at: &str, depth: usize) -> Result<(), Miss> {
        match keyword {
            "items" => {
                for (i, item) in items.iter().enumerate() {
                    self.fits(wanted, item, &format!("{at}[{i}]"), depth + 1)?;
                }
                Ok(())
            }
            "uniqueItems" => {
                self.steps = self.steps.saturating_add(items.len().saturating_mul(items.len()) / 2);
                if self.steps > MAX_STEPS {
                    return Err(miss(at, "has too many items to be checked"));
                }
                let twice = items.iter().enumerate().any(|(i, item)| items[..i].contains(item));
                if twice && wanted == &Value::Bool(true) { Err(miss(at, "must not have equal items")) } else { Ok(()) }
            }
            _ => size(keyword, wanted, items.len(), "items", at),
        }
    }
}

fn size(keyword: &str, wanted: &Value, actual: usize, of: &str, at: &str) -> Result<(), Miss> {
    let bound = wanted.as_u64().ok_or_else(|| broken(keyword))?;
    let (least, actual) = (keyword.starts_with("min"), actual as u64);
    match least {
        true if actual < bound => Err(miss(at, format!("must have at least {bound} {of}"))),
        false if actual > bound => Err(miss(at, format!("must have at most {bound} {of}"))),
        _ => Ok(()),
    }
}

fn string(keyword: &str, wanted: &Value, text: &str, at: &str) -> Result<(), Miss> {
    if keyword != "pattern" {
        return size(keyword, wanted, text.chars().count(), "characters", at);
    }
    let pattern = wanted.as_str().ok_or_else(|| broken(keyword))?;
    let compiled = RegexBuilder::new(pattern).size_limit(MAX_PATTERN_BYTES).build();
    let compiled = compiled.map_err(|_| Miss::Schema(format!("the pattern {pattern:?} cannot be used")))?;
    if compiled.is_match(text) { Ok(()) } else { Err(miss(at, format!("must match {pattern:?}"))) }
}

fn numeric(keyword: &str, wanted: &Value, number: f64, at: &str) -> Result<(), Miss> {
    let bound = wanted.as_f64().ok_or_else(|| broken(keyword))?;
    let (good, why) = match keyword {
        "minimum" => (number >= bound, "at least"),
        "maximum" => (number <= bound, "at most"),
        "exclusiveMinimum" => (number > bound, "more than"),
        "exclusiveMaximum" => (number < bound, "less than"),
        _ => (bound > 0.0 && (number / bound).fract() == 0.0, "a multiple of"),
    };
    if good { Ok(()) } else { Err(miss(at, format!("must be {why} {wanted}"))) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn misses(schema: Value, value: Value, why: &str) {
        let found = check(&schema.to_string(), &value).unwrap_err();
        assert!(found.contains(why), "{found}");
    }

    #[test]
    fn plain_data_is_checked() {
        let schema = json!({"$schema": "x", "title": "T", "type": "object", "required": ["percent"], "additionalProperties": false,
        "$defs": {"name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 4}},
        "properties": {
            "percent": {"type": "integer", "minimum": 0, "maximum": 100},
            "names": {"type": "array", "items": {"$ref": "#/$defs/name"}, "uniqueItems": true, "maxItems": 3},
            "mode": {"enum": ["a", "b"]},
            "either": {"oneOf": [{"type": "string"}, {"type": "null"}]},
        }});
        let good = json!({"percent": 5, "names": ["a", "bc"], "mode": "a", "either": null});
        assert_eq!(check(&schema.to_string(), &good), Ok(()));
        for (value, why) in [
            (json!([]), "config must be of type \"object\""),
            (json!({}), "config.percent is required"),
            (json!({"percent": 101}), "config.percent must be at most 100"),
            (json!({"percent": 1.5}), "config.percent must be of type"),
            (json!({"percent": 1, "x": 1}), "config.x is not allowed"),
            (json!({"percent": 1, "names": ["a", "B"]}), "config.names[1] must match"),
            (json!({"percent": 1, "names": ["a", "a"]}), "equal items"),
            (json!({"percent": 1, "names": ["abcde"]}), "at most 4 characters"),
            (json!({"percent": 1, "mode": "c"}), "config.mode must be one of"),
            (json!({"percent": 1, "either": 3}), "config.either must be of type"),
        ] {
            misses(schema.clone(), value, why);
        }
    }

    #[test]
    fn hostile_schemas_are_refused() {
        assert!(check("{", &json!({})).unwrap_err().contains("not JSON"));
        misses(json!({"$ref": "#"}), json!({}), "too deep");
        misses(json!({"$ref": "https://example.com/a"}), json!({}), "there is no");
        misses(json!({"if": {}}), json!({}), "\"if\" is not supported");
        misses(json!({"pattern": "("}), json!("a"), "cannot be used");
        misses(json!({"pattern": "((a{1000}){1000}){1000}"}), json!("a"), "cannot be used");
        let twice =
            json!({"$defs": {"x": {"allOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/x"}]}}, "$ref": "#/$defs/x"});
        misses(twice, json!({}), "too");
    }
}
