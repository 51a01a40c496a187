//! Cells of plugins and modules.

use serde_json::Value;

use super::cells::{array, at, integer, or, text};

/// Digits of a digest that are shown.
const SHOWN_DIGITS: usize = 12;

/// `spec.world`
pub fn world(object: &Value) -> Value {
    text(object, &["spec", "world"]).into()
}

/// Beginning of `status.active.digest`.
pub fn digest(object: &Value) -> Value {
    let digest = text(object, &["status", "active", "digest"]);
    or(digest.get(..SHOWN_DIGITS).unwrap_or(digest), "<none>").into()
}

/// `Shadow`, `Canary 10%` or `Active`; why there is no such version, if the newest one is not used.
pub fn phase(object: &Value) -> Value {
    let candidate = text(object, &["status", "candidate", "phase"]);
    if candidate == "Canary" {
        return format!("Canary {}%", integer(object, &["status", "candidate", "percent"])).into();
    }
    let failed = array(object, &["status", "conditions"]).iter().find(|c| c["status"] == "False");
    let rejected = or(text(object, &["status", "latest", "rejected"]), failed.map_or("", |c| text(c, &["reason"])));
    or(candidate, or(rejected, or(text(object, &["status", "active", "phase"]), "Pending"))).into()
}

/// `status.totals.decisions`
pub fn decisions(object: &Value) -> Value {
    integer(object, &["status", "totals", "decisions"]).into()
}

/// Sum of `status.totals.errors`.
pub fn errors(object: &Value) -> Value {
    let classes = at(object, &["status", "totals", "errors"]).and_then(Value::as_object);
    let counts = classes.into_iter().flatten().filter_map(|(_, count)| count.as_i64());
    counts.fold(0_i64, i64::saturating_add).into()
}

/// `status.active.number`
pub fn version(object: &Value) -> Value {
    integer(object, &["status", "active", "number"]).into()
}

/// `status.size`
pub fn size(object: &Value) -> Value {
    at(object, &["status", "size"]).cloned().unwrap_or_default()
}

/// `spec.origin`
pub fn origin(object: &Value) -> Value {
    text(object, &["spec", "origin"]).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells() {
        let active = json!({"number": 3, "phase": "Active", "digest": "0123456789abcdef"});
        let mut plugin =
            json!({"status": {"active": active, "totals": {"decisions": 9, "errors": {"trap": 2, "timeout": 1}}}});
        assert_eq!((digest(&plugin), phase(&plugin)), ("0123456789ab".into(), "Active".into()));
        assert_eq!((decisions(&plugin), errors(&plugin), version(&plugin)), (9.into(), 3.into(), 3.into()));
        plugin["status"]["conditions"] = json!([{"type": "Compiled", "status": "False", "reason": "WrongWorld"}]);
        assert_eq!(phase(&plugin), "WrongWorld");
        plugin["status"]["candidate"] = json!({"phase": "Canary", "percent": 10});
        assert_eq!(phase(&plugin), "Canary 10%");
        assert_eq!((phase(&json!({})), digest(&json!({}))), ("Pending".into(), "<none>".into()));
    }
}
