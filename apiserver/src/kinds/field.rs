//! Paths into an object and the small checks that every kind repeats (`k8s.io/apimachinery/pkg/util/validation/field`).
//!
//! A [`Path`] lives on the stack and is only rendered when there is a mistake to report, so validating a good object
//! allocates nothing for paths.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use scaleup_api::names;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::FieldError;

/// Mistakes found so far.
pub(super) type Errors = Vec<FieldError>;

/// Upstream's text for a changed field that may not change.
pub(super) const IMMUTABLE: &str = "field is immutable";
/// Upstream's text for a negative number.
pub(super) const NEGATIVE: &str = "must be greater than or equal to 0";
/// `validation.InclusiveRangeError(1, 65535)`
pub(super) const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";
/// Transport protocols of a port.
pub(super) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// Total size of all annotations.
const MAX_ANNOTATION_BYTES: usize = 256 * 1024;
/// How many changed fields [`changed_fields`] names.
const MAX_CHANGES_NAMED: usize = 8;

#[derive(Clone, Copy)]
enum Segment<'a> {
    Root(&'a str),
    Child(&'a str),
    Index(usize),
    Key(&'a str),
}

/// A field's path in upstream's notation: `spec.containers[0].name`, `data[key]`.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: Segment<'a>,
}

impl<'a> Path<'a> {
    /// The start; may hold dots.
    pub fn new(root: &'a str) -> Self {
        Self { parent: None, segment: Segment::Root(root) }
    }
    /// A member.
    pub fn child<'b>(&'b self, name: &'b str) -> Path<'b> {
        Path { parent: Some(self), segment: Segment::Child(name) }
    }
    /// An element of a list.
    pub fn index(&self, index: usize) -> Path<'_> {
        Path { parent: Some(self), segment: Segment::Index(index) }
    }
    /// An entry of a map.
    pub fn key<'b>(&'b self, key: &'b str) -> Path<'b> {
        Path { parent: Some(self), segment: Segment::Key(key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.segment {
            Segment::Root(name) => f.write_str(name),
            Segment::Child(name) => write!(f, ".{name}"),
            Segment::Index(i) => write!(f, "[{i}]"),
            Segment::Key(key) => write!(f, "[{key}]"),
        }
    }
}

impl From<Path<'_>> for String {
    fn from(path: Path<'_>) -> Self {
        path.to_string()
    }
}

impl From<&Path<'_>> for String {
    fn from(path: &Path<'_>) -> Self {
        path.to_string()
    }
}

/// The text of an optional string; upstream does not tell absent from empty.
pub(super) fn text(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or_default()
}

/// Whether an optional flag is set and true.
pub(super) fn flag(value: Option<bool>) -> bool {
    value.unwrap_or(false)
}

/// The items of an optional list.
pub(super) fn list<T>(value: &Option<Vec<T>>) -> &[T] {
    value.as_deref().unwrap_or_default()
}

/// `Invalid value` with the format's message, if `value` does not have the format.
pub(super) fn format(errors: &mut Errors, path: &Path<'_>, value: &str, check: fn(&str) -> Result<(), String>) {
    if let Err(message) = check(value) {
        errors.push(FieldError::invalid(path, value, message));
    }
}

/// As [`format`], but `Required value` if empty.
pub(super) fn required_format(
    errors: &mut Errors,
    path: &Path<'_>,
    value: &str,
    check: fn(&str) -> Result<(), String>,
) {
    if value.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        format(errors, path, value, check);
    }
}

/// `Required value` if empty.
pub(super) fn required(errors: &mut Errors, path: &Path<'_>, value: &str) {
    if value.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
}

/// `Required value` if empty, `Unsupported value` if not in `allowed`.
pub(super) fn one_of(errors: &mut Errors, path: &Path<'_>, value: &str, allowed: &[&str]) {
    if value.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !allowed.contains(&value) {
        errors.push(FieldError::not_supported(path, value, allowed));
    }
}

/// As [`one_of`], for a field that may be absent.
pub(super) fn optional_one_of(errors: &mut Errors, path: &Path<'_>, value: &Option<String>, allowed: &[&str]) {
    if let Some(value) = value
        && !allowed.contains(&value.as_str())
    {
        errors.push(FieldError::not_supported(path, value.as_str(), allowed));
    }
}

/// Not below zero, if set.
pub(super) fn non_negative(errors: &mut Errors, path: &Path<'_>, value: Option<impl Into<i64>>) {
    if let Some(value) = value.map(Into::into)
        && value < 0
    {
        errors.push(FieldError::invalid(path, value, NEGATIVE));
    }
}

/// 1 to 65535.
pub(super) fn port(errors: &mut Errors, path: &Path<'_>, value: i32) {
    if !(1..=65535).contains(&value) {
        errors.push(FieldError::invalid(path, value, PORT_RANGE));
    }
}

/// A port number or the name of a port.
pub(super) fn port_or_name(errors: &mut Errors, path: &Path<'_>, value: &IntOrString) {
    match value {
        IntOrString::Int(number) => port(errors, path, *number),
        IntOrString::String(name) => format(errors, path, name, names::port_name),
    }
}

/// An address that traffic can go to: not unspecified, loopback, link-local (`ValidateNonSpecialIP`).
pub(super) fn non_special_ip(errors: &mut Errors, path: &Path<'_>, value: &str) {
    use std::net::IpAddr;
    let Ok(ip) = value.parse::<IpAddr>() else { return };
    let mut refuse = |why: String| errors.push(FieldError::invalid(path, value, why));
    if ip.is_unspecified() {
        refuse(format!("may not be unspecified ({value})"));
    }
    if ip.is_loopback() {
        refuse("may not be in the loopback range (127.0.0.0/8, ::1/128)".into());
    }
    let (link_local, link_local_multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    if link_local {
        refuse("may not be in the link-local range (169.254.0.0/16, fe80::/10)".into());
    }
    if link_local_multicast {
        refuse("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into());
    }
}

/// `address/bits` with the bits in range.
pub(super) fn cidr(value: &str) -> Result<(), String> {
    let parsed = value.split_once('/').and_then(|(ip, bits)| {
        let ip: std::net::IpAddr = ip.parse().ok()?;
        let bits: u8 = bits.parse().ok()?;
        Some(bits <= if ip.is_ipv4() { 32 } else { 128 })
    });
    match parsed {
        Some(true) => Ok(()),
        _ => Err("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".into()),
    }
}

/// Label keys and values (`ValidateLabels`).
pub(super) fn labels(errors: &mut Errors, path: &Path<'_>, labels: Option<&BTreeMap<String, String>>) {
    for (key, value) in labels.into_iter().flatten() {
        format(errors, path, key, names::qualified_name);
        format(errors, path, value, names::label_value);
    }
}

/// Annotation keys and their total size (`ValidateAnnotations`).
pub(super) fn annotations(errors: &mut Errors, path: &Path<'_>, annotations: Option<&BTreeMap<String, String>>) {
    let mut bytes = 0;
    for (key, value) in annotations.into_iter().flatten() {
        if let Err(message) = names::qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid(path, key.as_str(), message));
        }
        bytes += key.len() + value.len();
    }
    if bytes > MAX_ANNOTATION_BYTES {
        errors.push(FieldError::too_long(path, MAX_ANNOTATION_BYTES));
    }
}

/// A label selector's keys, operators and values (`ValidateLabelSelector`).
pub(super) fn label_selector(errors: &mut Errors, path: &Path<'_>, selector: Option<&LabelSelector>) {
    let Some(selector) = selector else { return };
    labels(errors, &path.child("matchLabels"), selector.match_labels.as_ref());
    let expressions = path.child("matchExpressions");
    for (i, expression) in list(&selector.match_expressions).iter().enumerate() {
        let at = expressions.index(i);
        let values_at = at.child("values");
        let values = list(&expression.values);
        match expression.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(FieldError::required(values_at, "must be specified when `operator` is 'In' or 'NotIn'"))
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                values_at,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errors.push(FieldError::invalid(at.child("operator"), other, "not a valid selector operator"));
            }
        }
        format(errors, &at.child("key"), &expression.key, names::qualified_name);
        for (i, value) in values.iter().enumerate() {
            format(errors, &values_at.index(i), value, names::label_value);
        }
    }
}

/// Whether a selector asks for nothing, that is matches everything.
pub(super) fn selector_is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty) && list(&selector.match_expressions).is_empty()
}

/// `field is immutable`, if `new` and `old` mean different things.
pub(super) fn immutable<T: Serialize + PartialEq>(errors: &mut Errors, path: &Path<'_>, new: &T, old: &T) {
    if !same(new, old) {
        errors.push(FieldError::invalid(path, value_of(new), IMMUTABLE));
    }
}

/// The JSON form, for an error's value.
pub(super) fn value_of<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// `apiequality.Semantic.DeepEqual`: absent and empty are the same.
pub(super) fn same<T: Serialize + PartialEq>(a: &T, b: &T) -> bool {
    a == b || pruned(value_of(a)) == pruned(value_of(b))
}

/// The paths at which two objects differ, absent and empty being the same; at most [`MAX_CHANGES_NAMED`].
pub(super) fn changed_fields<T: Serialize>(root: &str, new: &T, old: &T) -> Vec<String> {
    let mut out = Vec::new();
    diff(root.to_owned(), &pruned(value_of(new)), &pruned(value_of(old)), &mut out);
    out
}

fn diff(path: String, a: &Value, b: &Value, out: &mut Vec<String>) {
    if out.len() >= MAX_CHANGES_NAMED || a == b {
        return;
    }
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let (left, right) = (a.get(key), b.get(key));
                diff(format!("{path}.{key}"), left.unwrap_or(&Value::Null), right.unwrap_or(&Value::Null), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (left, right)) in a.iter().zip(b).enumerate() {
                diff(format!("{path}[{i}]"), left, right, out);
            }
        }
        _ => out.push(path),
    }
}

fn pruned(value: Value) -> Value {
    let empty = |v: &Value| match v {
        Value::Null => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::String(s) => s.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    match value {
        Value::Object(map) => {
            Value::Object(map.into_iter().map(|(k, v)| (k, pruned(v))).filter(|(_, v)| !empty(v)).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(pruned).collect()),
        other => other,
    }
}

/// An integer or percentage as an error's value.
pub(super) fn int_or_string(value: &IntOrString) -> Value {
    match value {
        IntOrString::Int(number) => json!(number),
        IntOrString::String(text) => json!(text),
    }
}

/// A string member deep in a JSON object, empty if absent (selectable fields).
pub(super) fn text_at(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(flag)) => flag.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
pub(super) mod test {
    //! Table-driven checks of rules.

    use serde_json::Value;

    use crate::registry::{AnyRules, RuleContext, Rules, Typed};

    /// Context of a test: namespace `default`, no subresource.
    pub fn cx() -> RuleContext<'static> {
        RuleContext { namespace: "default", ..RuleContext::default() }
    }

    /// Decodes YAML.
    pub fn yaml(text: &str) -> Value {
        let options = serde_saphyr::options! { strict_booleans: true };
        serde_saphyr::from_str_with_options(text, options).expect("test yaml parses")
    }

    /// Creates from YAML: the stored object or the messages.
    pub fn create<R: Rules>(rules: R, text: &str) -> Result<Value, Vec<String>> {
        let rules = Typed(rules);
        let decoded = rules.decode(yaml(text)).map_err(|e| vec![e])?;
        rules.create(decoded.object, &cx()).map_err(|e| e.iter().map(ToString::to_string).collect())
    }

    /// Creates `old`, then updates to `new`.
    pub fn update<R: Rules>(rules: impl Fn() -> R, old: &str, new: &str) -> Result<Value, Vec<String>> {
        let old = create(rules(), old).expect("the old object is valid");
        update_stored(rules(), &old, yaml(new))
    }

    /// Updates a stored object.
    pub fn update_stored<R: Rules>(rules: R, old: &Value, new: Value) -> Result<Value, Vec<String>> {
        let rules = Typed(rules);
        let decoded = rules.decode(new).map_err(|e| vec![e])?;
        rules.update(decoded.object, old, &cx()).map_err(|e| e.iter().map(ToString::to_string).collect())
    }

    /// Every key of `part` is in `whole` with the same value; lists must have the same length.
    #[track_caller]
    pub fn contains(whole: &Value, part: &Value) {
        fn go(path: String, whole: &Value, part: &Value) {
            match (whole, part) {
                (Value::Object(w), Value::Object(p)) => {
                    for (key, value) in p {
                        let path = format!("{path}.{key}");
                        go(path.clone(), w.get(key).unwrap_or_else(|| panic!("{path} is absent")), value);
                    }
                }
                (Value::Array(w), Value::Array(p)) => {
                    assert_eq!(w.len(), p.len(), "{path}");
                    w.iter().zip(p).enumerate().for_each(|(i, (w, p))| go(format!("{path}[{i}]"), w, p));
                }
                _ => assert_eq!(whole, part, "{path}"),
            }
        }
        go(String::new(), whole, part);
    }

    /// Creating from `text` gives exactly these messages, in any order.
    #[track_caller]
    pub fn refused<R: Rules>(rules: R, text: &str, expected: &[&str]) {
        same_messages(create(rules, text), expected);
    }

    /// The messages are exactly these, in any order.
    #[track_caller]
    pub fn same_messages(result: Result<Value, Vec<String>>, expected: &[&str]) {
        let mut got = result.expect_err("accepted what must be refused");
        let mut expected: Vec<String> = expected.iter().map(|s| (*s).to_owned()).collect();
        got.sort();
        expected.sort();
        assert_eq!(got, expected);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_render_as_upstream_writes_them() {
        let root = Path::new("spec");
        let containers = root.child("containers");
        let first = containers.index(0);
        let env = first.child("limits");
        assert_eq!(env.key("cpu").to_string(), "spec.containers[0].limits[cpu]");
    }

    #[test]
    fn absent_and_empty_are_the_same() {
        assert!(same(&json!({"a": 1, "b": [], "c": {"d": ""}}), &json!({"a": 1})));
        assert!(!same(&json!({"a": 1, "b": false}), &json!({"a": 1})));
        let changed = changed_fields("spec", &json!({"a": [{"b": 1}], "x": 1}), &json!({"a": [{"b": 2}]}));
        assert_eq!(changed, ["spec.a[0].b", "spec.x"]);
    }

    #[test]
    fn special_addresses_are_refused() {
        for (ip, count) in [
            ("10.0.0.1", 0),
            ("2001:db8::1", 0),
            ("0.0.0.0", 1),
            ("127.0.0.1", 1),
            ("::1", 1),
            ("169.254.1.1", 1),
            ("fe80::1", 1),
            ("224.0.0.1", 1),
            ("ff02::1", 1),
        ] {
            let mut errors = Vec::new();
            non_special_ip(&mut errors, &Path::new("ip"), ip);
            assert_eq!(errors.len(), count, "{ip}: {errors:?}");
        }
    }

    #[test]
    fn cidrs() {
        for good in ["10.0.0.0/8", "::/0", "1.2.3.4/32"] {
            assert_eq!(cidr(good), Ok(()), "{good}");
        }
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0/8", "/"] {
            assert!(cidr(bad).is_err(), "{bad}");
        }
    }
}
