//! What a request asks for: its path resolved as upstream's `RequestInfo` does, and its query with bounds.
//!
//! Pure text processing on hostile input: no registry, no storage. Errors carry upstream's wording.

use std::borrow::Cow;

use http::Method;
use scaleup_api::selector::{FieldSelector, LabelSelector};

use crate::error::{ApiError, FieldError};
use crate::registry::Verb;

/// Longest path that is looked at.
const MAX_PATH_BYTES: usize = 4_096;
/// Longest query that is looked at.
const MAX_QUERY_BYTES: usize = 128 * 1024;
/// Most query parameters.
const MAX_QUERY_PARAMETERS: usize = 128;
/// Longest `fieldManager`, as upstream.
const MAX_FIELD_MANAGER_BYTES: usize = 128;
/// Largest page of a list; larger limits are served as this one with a continue token.
pub const MAX_LIMIT: usize = 100_000;

/// A path below `/api/{version}` or `/apis/{group}/{version}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcePath {
    /// API group; empty for core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Plural.
    pub resource: String,
    /// Namespace; empty for cluster scope and all namespaces.
    pub namespace: String,
    /// Name; empty for collections.
    pub name: String,
    /// Subresource.
    pub subresource: Option<String>,
    /// Whether the deprecated `/watch/` prefix was there.
    pub watch: bool,
}

/// What a path is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A resource, perhaps of a kind that does not exist.
    Resource(ResourcePath),
    /// Anything else: health, discovery, metrics.
    NonResource,
    /// Nothing that can exist (encoded slashes, dot segments, NUL, endless).
    Malformed,
}

/// Resolves a request path (still percent-encoded).
pub fn resolve(path: &str) -> Target {
    if path.len() > MAX_PATH_BYTES {
        return Target::Malformed;
    }
    let trimmed = path.strip_prefix('/').unwrap_or(path);
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    let mut segments: Vec<Cow<'_, str>> = Vec::with_capacity(8);
    for raw in trimmed.split('/') {
        match decode_segment(raw) {
            Some(segment) => segments.push(segment),
            None if trimmed.is_empty() => return Target::NonResource,
            None => return Target::Malformed,
        }
    }
    let parts: Vec<&str> = segments.iter().map(AsRef::as_ref).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Target::NonResource,
    };
    resource_path(group, version, rest).map_or(Target::Malformed, Target::Resource)
}

fn resource_path(group: &str, version: &str, rest: &[&str]) -> Option<ResourcePath> {
    let (watch, rest) = match rest {
        ["watch", tail @ ..] if !tail.is_empty() => (true, tail),
        _ => (false, rest),
    };
    let mut out = ResourcePath { group: group.into(), version: version.into(), watch, ..ResourcePath::default() };
    let rest = match rest {
        // The namespace itself, and its subresources; anything longer is something in the namespace.
        ["namespaces"] | ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => rest,
        ["namespaces", namespace, tail @ ..] => {
            out.namespace = (*namespace).into();
            tail
        }
        _ => rest,
    };
    match rest {
        [resource] => out.resource = (*resource).into(),
        [resource, name] => (out.resource, out.name) = ((*resource).into(), (*name).into()),
        [resource, name, subresource] => {
            (out.resource, out.name) = ((*resource).into(), (*name).into());
            out.subresource = Some((*subresource).into());
        }
        // proxy-like subresources with a path of their own do not exist here.
        _ => return None,
    }
    Some(out)
}

/// Percent-decodes one segment; `None` for what must not be in one.
fn decode_segment(raw: &str) -> Option<Cow<'_, str>> {
    let decoded = if raw.contains('%') { Cow::Owned(percent_decode(raw, false)?) } else { Cow::Borrowed(raw) };
    let bad = decoded.is_empty()
        || decoded == "."
        || decoded == ".."
        || decoded.contains(['/', '\\'])
        || decoded.chars().any(char::is_control);
    (!bad).then_some(decoded)
}

fn percent_decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digit = |b: Option<u8>| char::from(b?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            b'+' if plus_is_space => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

/// The verb of a request on a resource.
pub fn verb(method: &Method, path: &ResourcePath, query: &Query) -> Option<Verb> {
    let named = !path.name.is_empty();
    match *method {
        Method::GET | Method::HEAD if path.subresource.is_some() => Some(Verb::Get),
        Method::GET | Method::HEAD if path.watch || (!named && query.flag("watch")) => Some(Verb::Watch),
        Method::GET | Method::HEAD if named => Some(Verb::Get),
        Method::GET | Method::HEAD => Some(Verb::List),
        Method::POST => Some(Verb::Create),
        Method::PUT => Some(Verb::Update),
        Method::PATCH => Some(Verb::Patch),
        Method::DELETE if named => Some(Verb::Delete),
        Method::DELETE => Some(Verb::DeleteCollection),
        _ => None,
    }
}

/// Decoded query parameters in order.
#[derive(Clone, Debug, Default)]
pub struct Query {
    parameters: Vec<(String, String)>,
}

impl Query {
    /// From the raw query.
    pub fn parse(raw: Option<&str>) -> Result<Self, ApiError> {
        let Some(raw) = raw.filter(|r| !r.is_empty()) else { return Ok(Self::default()) };
        if raw.len() > MAX_QUERY_BYTES {
            return Err(ApiError::bad_request(format!("the query is longer than {MAX_QUERY_BYTES} bytes")));
        }
        let mut parameters = Vec::new();
        for pair in raw.split('&').filter(|p| !p.is_empty()) {
            if parameters.len() == MAX_QUERY_PARAMETERS {
                let message = format!("the query has more than {MAX_QUERY_PARAMETERS} parameters");
                return Err(ApiError::bad_request(message));
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &str| {
                percent_decode(text, true)
                    .ok_or_else(|| ApiError::bad_request(format!("invalid URL escape in the query: {pair:?}")))
            };
            parameters.push((decode(key)?, decode(value)?));
        }
        Ok(Self { parameters })
    }

    /// First value of a parameter; empty if absent.
    pub fn get(&self, key: &str) -> &str {
        self.parameters.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str()).unwrap_or_default()
    }

    /// Whether the parameter is there.
    pub fn has(&self, key: &str) -> bool {
        self.parameters.iter().any(|(k, _)| k == key)
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.parameters.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A boolean as upstream converts it: present and neither `0` nor `false`.
    pub fn flag(&self, key: &str) -> bool {
        self.has(key) && !matches!(self.get(key), "0" | "false")
    }

    /// An integer; `None` if absent or empty.
    pub fn int(&self, key: &str) -> Result<Option<i64>, ApiError> {
        match self.get(key) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|e: std::num::ParseIntError| {
                let why = match e.kind() {
                    std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => "value out of range",
                    _ => "invalid syntax",
                };
                ApiError::bad_request(format!("{key}: strconv.ParseInt: parsing {text:?}: {why}"))
            }),
        }
    }
}

/// `resourceVersionMatch`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionMatch {
    /// `Exact`
    Exact,
    /// `NotOlderThan`
    NotOlderThan,
}

/// `metav1.ListOptions`, checked.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// `labelSelector`
    pub labels: LabelSelector,
    /// `fieldSelector`
    pub fields: FieldSelector,
    /// Page size; 0 is no limit.
    pub limit: usize,
    /// `continue`; empty is the first page.
    pub continue_token: String,
    /// `resourceVersion`; `None` is unset.
    pub version: Option<u64>,
    /// `resourceVersionMatch`
    pub version_match: Option<VersionMatch>,
    /// `timeoutSeconds`
    pub timeout_s: Option<u64>,
    /// `allowWatchBookmarks`
    pub bookmarks: bool,
    /// `sendInitialEvents`
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    /// Of a list, watch or deletecollection.
    pub fn parse(query: &Query, watch: bool) -> Result<Self, ApiError> {
        let bad = |what: &str, e: &dyn std::fmt::Display| ApiError::bad_request(format!("unable to parse {what}: {e}"));
        let labels =
            LabelSelector::parse(query.get("labelSelector")).map_err(|e| ApiError::bad_request(e.to_string()))?;
        let fields = FieldSelector::parse(query.get("fieldSelector")).map_err(|e| bad("fieldSelector", &e))?;
        let version = match query.get("resourceVersion") {
            "" => None,
            text => Some(parse_version(text)?),
        };
        let send_initial_events = query.has("sendInitialEvents").then(|| query.flag("sendInitialEvents"));
        let mut out = Self {
            labels,
            fields,
            limit: usize::try_from(query.int("limit")?.unwrap_or(0).max(0)).unwrap_or(MAX_LIMIT).min(MAX_LIMIT),
            continue_token: query.get("continue").to_owned(),
            version,
            version_match: None,
            timeout_s: query.int("timeoutSeconds")?.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0),
            bookmarks: query.flag("allowWatchBookmarks"),
            send_initial_events,
        };
        out.check_match(query.get("resourceVersionMatch"), watch)?;
        Ok(out)
    }

    /// Upstream's `ValidateListOptions`.
    fn check_match(&mut self, text: &str, watch: bool) -> Result<(), ApiError> {
        let field = "resourceVersionMatch";
        let mut errors = Vec::new();
        let mut forbid = |field: &str, why: &str| errors.push(FieldError::forbidden(field, why));
        if self.send_initial_events.is_some() && !watch {
            forbid("sendInitialEvents", "sendInitialEvents is forbidden for list");
        }
        if self.send_initial_events.is_some() && watch && text != "NotOlderThan" {
            forbid(field, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        }
        if !text.is_empty() {
            if watch && self.send_initial_events.is_none() {
                forbid(field, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
            }
            if !watch && self.version.is_none() {
                forbid(field, "resourceVersionMatch is forbidden unless resourceVersion is provided");
            }
            if !self.continue_token.is_empty() {
                forbid(field, "resourceVersionMatch is forbidden when continue is provided");
            }
            if text == "Exact" && self.version == Some(0) {
                forbid(field, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
            }
        }
        self.version_match = match text {
            "" => None,
            "Exact" => Some(VersionMatch::Exact),
            "NotOlderThan" => Some(VersionMatch::NotOlderThan),
            other => {
                errors.push(FieldError::not_supported(field, other, &["Exact", "NotOlderThan", ""]));
                None
            }
        };
        if !errors.is_empty() {
            return Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", &errors));
        }
        if !self.continue_token.is_empty() && self.version.is_some_and(|v| v != 0) {
            return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
        }
        Ok(())
    }

    /// The single object that the field selector names, if it does.
    pub fn single_name(&self) -> Option<&str> {
        let named = |r: &&scaleup_api::selector::FieldRequirement| r.path == "metadata.name" && !r.negate;
        self.fields.requirements().iter().find(named).map(|r| r.value.as_str())
    }
}

/// A resource version in a request.
pub fn parse_version(text: &str) -> Result<u64, ApiError> {
    text.parse().map_err(|_| {
        let message =
            format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax");
        ApiError::bad_request(message)
    })
}

/// `fieldValidation`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Unknown and duplicate fields are dropped silently.
    Ignore,
    /// They are dropped with a warning.
    #[default]
    Warn,
    /// They are refused.
    Strict,
}

/// `CreateOptions`, `UpdateOptions`, `PatchOptions`, checked.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// `dryRun=All`
    pub dry_run: bool,
    /// `fieldValidation`
    pub validation: FieldValidation,
    /// `fieldManager`; kept for server-side apply.
    pub manager: String,
}

impl WriteOptions {
    /// From the query; `kind` is the options' kind for messages.
    pub fn parse(query: &Query, kind: &str) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        let dry_run = parse_dry_run(query.all("dryRun"), &mut errors);
        let validation = match query.get("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                errors.push(FieldError::not_supported("fieldValidation", other, &["", "Ignore", "Strict", "Warn"]));
                FieldValidation::Warn
            }
        };
        let manager = query.get("fieldManager");
        if manager.len() > MAX_FIELD_MANAGER_BYTES {
            errors.push(FieldError::too_long("fieldManager", MAX_FIELD_MANAGER_BYTES));
        }
        if manager.chars().any(char::is_control) {
            errors.push(FieldError::invalid("fieldManager", manager, "should only contain printable characters"));
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid("meta.k8s.io", kind, "", &errors));
        }
        Ok(Self { dry_run, validation, manager: manager.to_owned() })
    }
}

/// `dryRun`: nothing, or `All`.
pub fn parse_dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut Vec<FieldError>) -> bool {
    let mut dry_run = false;
    for value in values.filter(|v| !v.is_empty()) {
        if value != "All" {
            errors.push(FieldError::not_supported("dryRun", value, &["All"]));
        }
        dry_run = true;
    }
    dry_run
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expected: Option<(&str, &str, &str, &str, &str, &str)>) {
        let found = match resolve(path) {
            Target::Resource(p) => Some(p),
            _ => None,
        };
        let found = found.as_ref().map(|p| {
            let sub = p.subresource.as_deref().unwrap_or("");
            (p.group.as_str(), p.version.as_str(), p.namespace.as_str(), p.resource.as_str(), p.name.as_str(), sub)
        });
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn paths() {
        check("/api/v1/pods", Some(("", "v1", "", "pods", "", "")));
        check("/api/v1/pods/", Some(("", "v1", "", "pods", "", "")));
        check("/api/v1/namespaces", Some(("", "v1", "", "namespaces", "", "")));
        check("/api/v1/namespaces/a", Some(("", "v1", "", "namespaces", "a", "")));
        check("/api/v1/namespaces/a/finalize", Some(("", "v1", "", "namespaces", "a", "finalize")));
        check("/api/v1/namespaces/a/pods", Some(("", "v1", "a", "pods", "", "")));
        check("/api/v1/namespaces/a/pods/b", Some(("", "v1", "a", "pods", "b", "")));
        check("/api/v1/namespaces/a/pods/b/log", Some(("", "v1", "a", "pods", "b", "log")));
        check(
            "/apis/apps/v1/namespaces/a/deployments/b/status",
            Some(("apps", "v1", "a", "deployments", "b", "status")),
        );
        check("/apis/g/v1/roles/system%3Anode", Some(("g", "v1", "", "roles", "system:node", "")));
        for other in ["/", "", "/api", "/api/v1", "/apis/apps", "/apis/apps/v1", "/livez", "/version/"] {
            assert_eq!(resolve(other), Target::NonResource, "{other}");
        }
    }

    #[test]
    fn hostile_paths() {
        for path in [
            "/api/v1//pods",
            "/api/v1/namespaces/../pods",
            "/api/v1/namespaces/%2e%2e/secrets/x",
            "/api/v1/namespaces/a%2Fb/pods",
            "/api/v1/namespaces/a/pods/%00",
            "/api/v1/namespaces/a/pods/%zz",
            "/api/v1/namespaces/a/pods/%ff",
            "/api/v1/namespaces/a/pods/b%5Cc",
            "/api/v1/namespaces/a/pods/b/log/c/d",
        ] {
            assert_eq!(resolve(path), Target::Malformed, "{path}");
        }
        assert_eq!(resolve(&format!("/api/v1/{}", "a".repeat(MAX_PATH_BYTES))), Target::Malformed);
    }

    #[test]
    fn verbs() {
        let query = |q: &str| Query::parse(Some(q)).unwrap();
        let path = |p: &str| match resolve(p) {
            Target::Resource(p) => p,
            other => panic!("{other:?}"),
        };
        let check =
            |m: Method, p: &str, q: &str, v: Verb| assert_eq!(verb(&m, &path(p), &query(q)), Some(v), "{p}?{q}");
        check(Method::GET, "/api/v1/pods", "", Verb::List);
        check(Method::GET, "/api/v1/pods", "watch=true", Verb::Watch);
        check(Method::GET, "/api/v1/pods", "watch=0", Verb::List);
        check(Method::GET, "/api/v1/watch/pods", "", Verb::Watch);
        check(Method::GET, "/api/v1/nodes/a", "", Verb::Get);
        check(Method::DELETE, "/api/v1/nodes", "", Verb::DeleteCollection);
        check(Method::DELETE, "/api/v1/nodes/a", "", Verb::Delete);
    }

    fn refused(query: &str, watch: bool) -> String {
        ListOptions::parse(&Query::parse(Some(query)).unwrap(), watch).unwrap_err().message
    }

    #[test]
    fn list_options_are_checked() {
        assert_eq!(refused("limit=x", false), "limit: strconv.ParseInt: parsing \"x\": invalid syntax");
        assert!(refused("resourceVersion=-1", false).contains("Invalid value: \"-1\""));
        assert!(refused("resourceVersionMatch=Exact", false).contains("forbidden unless resourceVersion is provided"));
        assert!(
            refused("resourceVersionMatch=Maybe&resourceVersion=1", false).contains("Unsupported value: \"Maybe\"")
        );
        assert!(
            refused("resourceVersionMatch=Exact&resourceVersion=0", false).contains("forbidden for resourceVersion")
        );
        assert!(refused("resourceVersionMatch=NotOlderThan", true).contains("forbidden for watch"));
        assert!(refused("sendInitialEvents=true", true).contains("requires setting resourceVersionMatch"));
        assert!(refused("sendInitialEvents=true", false).contains("forbidden for list"));
        assert!(refused("continue=a&resourceVersion=5", false).contains("not allowed when using continue"));
        assert!(refused("labelSelector=a%20b", false).contains("unable to parse requirement"));
        assert!(Query::parse(Some("a=%g1")).is_err());
    }

    #[test]
    fn write_options_are_checked() {
        let parse = |q: &str| WriteOptions::parse(&Query::parse(Some(q)).unwrap(), "CreateOptions");
        assert!(parse("dryRun=All").unwrap().dry_run);
        assert!(parse("dryRun=Some").unwrap_err().message.contains("Unsupported value: \"Some\""));
        assert!(parse("fieldValidation=x").is_err());
        assert_eq!(parse("fieldValidation=Strict").unwrap().validation, FieldValidation::Strict);
        assert!(parse(&format!("fieldManager={}", "a".repeat(129))).unwrap_err().message.contains("Too long"));
    }
}
