//! What is taken out of a decision before it is kept: values of headers that are not named in the plugin's `spec.recording`, the last part of
//! the client's address, and the values of Secrets.

use std::hash::{BuildHasher, RandomState};

use serde_json::Value;

use crate::routing::Address;
use crate::{Case, admission, routing};

/// Annotation in which kubectl keeps the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Takes it out of an input. `keys` makes equal values equal, in this process alone.
pub(super) fn input(case: &mut Case, plain_headers: &[Box<str>], keys: &RandomState) {
    match case {
        Case::Routing(input, _) => request(&mut input.request, plain_headers, keys),
        Case::Admission(input) if is_secret(input) => {
            for object in [&mut input.object, &mut input.old_object].into_iter().flatten() {
                *object = secret(object);
            }
        }
        _ => {}
    }
}

/// Takes it out of an answer to this input.
pub(super) fn answer(case: &Case, answer: &mut Value) {
    let Case::Admission(input) = case else { return };
    let Some(patch) = answer.get_mut("patch").filter(|patch| is_secret(input) && patch.is_string()) else { return };
    let operations = patch.as_str().and_then(|text| serde_json::from_str::<Vec<Value>>(text).ok());
    let without = operations.map(|mut operations| {
        for operation in operations.iter_mut().filter_map(Value::as_object_mut) {
            operation.remove("value");
        }
        Value::from(operations).to_string()
    });
    *patch = without.unwrap_or_default().into();
}

fn request(request: &mut routing::Request, plain_headers: &[Box<str>], keys: &RandomState) {
    for header in &mut request.headers {
        if !plain_headers.iter().any(|plain| **plain == *header.name) {
            header.value = format!("hashed:{:016x}", keys.hash_one(&header.value));
        }
    }
    request.client = match request.client {
        Address::V4((a, b, c, _)) => Address::V4((a, b, c, 0)),
        Address::V6((a, b, c, ..)) => Address::V6((a, b, c, 0, 0, 0, 0, 0)),
    };
}

fn is_secret(input: &admission::Input) -> bool {
    input.group.is_empty() && input.resource == "secrets"
}

/// With empty values.
fn secret(object: &str) -> String {
    let Ok(mut object) = serde_json::from_str::<Value>(object) else { return "{}".into() };
    for field in ["data", "stringData"] {
        if let Some(values) = object.get_mut(field).and_then(Value::as_object_mut) {
            values.values_mut().for_each(|value| *value = "".into());
        }
    }
    if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    object.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::World;

    fn redacted(world: World, case: &Value) -> Value {
        let mut case = Case::read(world, &case.to_string()).unwrap();
        input(&mut case, &["x-canary".into()], &RandomState::new());
        case.json().unwrap()
    }

    #[test]
    fn headers_are_hashed_and_addresses_are_cut() {
        let header = |name: &str, value: &str| json!({"name": name, "value": value});
        let headers = [header("x-user", "ann"), header("x-canary", "always"), header("x-also", "ann")];
        let after = redacted(World::Routing, &json!({"request": {"client": "203.0.113.9", "headers": headers}}));
        assert_eq!(after["request"]["client"], "203.0.113.0");
        let values = &after["request"]["headers"];
        assert_eq!(values[1], header("x-canary", "always"));
        assert!(values[0]["value"].as_str().unwrap().starts_with("hashed:"));
        assert_eq!(values[0]["value"], values[2]["value"], "equal values stay equal");
        let after = redacted(World::Routing, &json!({"request": {"client": "2001:db8:1:2:3::4"}}));
        assert_eq!(after["request"]["client"], "2001:db8:1::");
    }

    #[test]
    fn secrets_lose_their_values() {
        let object = json!({
            "metadata": {"name": "s", "annotations": {LAST_APPLIED: "{\"data\":\"geheim\"}", "a": "b"}},
            "data": {"password": "Z2VoZWlt"}, "stringData": {"token": "geheim"},
        });
        let write = json!({"resource": "secrets", "object": object.to_string(), "oldObject": object.to_string()});
        let after = redacted(World::Admission, &write);
        assert!(!after.to_string().contains("geheim") && !after.to_string().contains("Z2Vo"), "{after}");
        assert!(after["object"].as_str().unwrap().contains("password"));
        let other = json!({"resource": "configmaps", "object": object.to_string()});
        assert_eq!(redacted(World::Admission, &other)["object"], other["object"]);

        let case = Case::read(World::Admission, &write.to_string()).unwrap();
        let mut patched = json!({"verdict": "allow", "patch": r#"[{"op":"add","path":"/data/a","value":"geheim"}]"#});
        answer(&case, &mut patched);
        assert_eq!(patched["patch"], r#"[{"op":"add","path":"/data/a"}]"#);
    }
}
