//! Where two answers differ, in JSON.

use serde::Serialize;
use serde_json::Value;

/// Differences that are listed; there may be more.
pub const MAX_DIFFERENCES: usize = 64;

/// A place where an answer is not what is expected.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// JSON pointer (RFC 6901); empty for the whole.
    pub path: String,
    /// What is expected there.
    pub expected: Value,
    /// What is there.
    pub found: Value,
}

/// All places, up to [`MAX_DIFFERENCES`]. Keys that are not expected are not compared; an absent key is null.
pub fn differences(expected: &Value, found: &Value) -> Vec<Difference> {
    let mut all = Vec::new();
    walk(expected, found, &mut String::new(), &mut all);
    all
}

fn walk(expected: &Value, found: &Value, path: &mut String, all: &mut Vec<Difference>) {
    let length = path.len();
    let mut below = |key: &str, expected: &Value, found: &Value| {
        path.push('/');
        path.push_str(&key.replace('~', "~0").replace('/', "~1"));
        walk(expected, found, path, all);
        path.truncate(length);
    };
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            expected.iter().for_each(|(key, value)| below(key, value, found.get(key).unwrap_or(&Value::Null)));
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            let pairs = expected.iter().zip(found).enumerate();
            pairs.for_each(|(at, (expected, found))| below(&at.to_string(), expected, found));
        }
        _ if expected != found && all.len() < MAX_DIFFERENCES => {
            all.push(Difference { path: path.clone(), expected: expected.clone(), found: found.clone() });
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_found() {
        let check = |expected: Value, found: Value, paths: &[&str]| {
            let all = differences(&expected, &found);
            assert_eq!(all.iter().map(|one| one.path.as_str()).collect::<Vec<_>>(), paths, "{expected} {found}");
        };
        check(json!("default"), json!("default"), &[]);
        check(json!({"pick": 1}), json!({"pick": 2}), &["/pick"]);
        check(json!({"verdict": "allow"}), json!({"verdict": "allow", "patch": null, "warnings": []}), &[]);
        check(json!({"patch": null}), json!({}), &[]);
        check(json!({"a/b": [1, {"c": 2}], "d": 1}), json!({"a/b": [1, {"c": 3}], "d": 2}), &["/a~1b/1/c", "/d"]);
        check(json!([1]), json!([1, 2]), &[""]);
        assert_eq!(differences(&json!(vec![1; 100]), &json!(vec![2; 100])).len(), MAX_DIFFERENCES);
    }
}
