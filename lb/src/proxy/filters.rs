//! What the filters of a rule, and of the share chosen in it, make of a request and its response.
//!
//! Pure, and the same for all protocols. A protocol goes through these steps:
//!
//! 1. [`Filters::answer`]: a redirect or a preflight answer; nothing is forwarded then.
//! 2. [`Filters::rewrite`]: another host or path. The query stays.
//! 3. [`Filters::request_edits`]: while the new head is written, a field of the old one passes unless [`Edits::drops`] it;
//!    [`Edits::added`] follow.
//! 4. [`Filters::response_fields`] before the request's head is forgotten, then for the response's head
//!    [`Filters::response_edits`] with them, likewise.
//!
//! Edits cannot touch what frames or routes a message ([`is_protected`]), whatever a plan says.

use std::borrow::Cow;

use http::StatusCode;

use super::fields::{Field, elements, kind};
use crate::route::{Head, Rule, Weighted};
use crate::snapshot::routes::{CorsPlan, Filter, HeaderEdits, PathMatch, PathRewrite, RedirectPlan};

/// Fields that we add to a message: name in lower case and value.
pub(crate) type Fields = Vec<(&'static str, String)>;

/// Where a request arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Over TLS.
    pub https: bool,
    /// The listener's port.
    pub port: u16,
}

/// An answer without body that a filter gives itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    pub status: StatusCode,
    pub fields: Fields,
}

/// What [`Filters::rewrite`] changes; `None`: as received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rewritten<'r> {
    pub host: Option<&'r str>,
    /// Without query.
    pub path: Option<Cow<'r, str>>,
}

/// The filters that apply to a request, in order: the rule's, then its share's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filters<'r> {
    lists: [&'r [Filter]; 2],
}

impl<'r> Filters<'r> {
    /// Of a rule before a share is chosen.
    pub fn of_rule(rule: &'r Rule) -> Self {
        Self { lists: [&rule.filters, &[]] }
    }

    pub fn of_share(rule: &'r Rule, share: &'r Weighted) -> Self {
        Self { lists: [&rule.filters, &share.filters] }
    }

    /// Nothing is to be done.
    pub fn is_empty(self) -> bool {
        self.lists.iter().all(|list| list.is_empty())
    }

    fn all(self) -> impl Iterator<Item = &'r Filter> {
        self.lists.into_iter().flatten()
    }

    /// The answer to a request that is not forwarded. `matched` is the rule's path.
    pub fn answer(self, head: &impl Head, matched: &PathMatch, place: Place) -> Option<Ready> {
        self.all().find_map(|filter| match filter {
            Filter::Redirect(plan) => Some(redirect(plan, head, matched, place)),
            Filter::Cors(plan) => preflight(plan, head),
            _ => None,
        })
    }

    /// The new host and path. `matched` is the rule's path.
    pub fn rewrite(self, head: &impl Head, matched: &PathMatch) -> Rewritten<'r> {
        let mut new = Rewritten::default();
        for filter in self.all() {
            if let Filter::Rewrite { hostname, path } = filter {
                new.host = hostname.as_deref().or(new.host);
                if let Some(rewrite) = path {
                    new.path = Some(rewrite_path(rewrite, head.path(), matched));
                }
            }
        }
        new
    }

    pub fn request_edits(self) -> Edits<'r> {
        Edits { lists: self.lists, response: false, own: &[], session: None }
    }

    /// `own` are fields of ours ([`Filters::response_fields`] and others), which replace an endpoint's.
    pub fn response_edits(self, own: &'r [(&'static str, String)]) -> Edits<'r> {
        Edits { lists: self.lists, response: true, own, session: None }
    }

    /// CORS fields for the response to a request (Fetch standard §3.2.3).
    pub fn response_fields(self, head: &impl Head) -> Fields {
        let mut fields = Fields::new();
        for filter in self.all() {
            if let Filter::Cors(plan) = filter
                && let Some(origin) = head.header("origin")
                && allow_origin(plan, &origin, &mut fields)
                && !plan.expose.is_empty()
            {
                fields.push(("access-control-expose-headers", plan.expose.join(", ")));
            }
        }
        fields
    }
}

/// Changes to the fields of one message.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Edits<'r> {
    lists: [&'r [Filter]; 2],
    response: bool,
    own: &'r [(&'static str, String)],
    session: Option<(&'r str, &'r str)>,
}

impl<'r> Edits<'r> {
    /// With the field that tells a client its session, too.
    pub fn with_session(self, field: Option<&'r (&'r str, String)>) -> Self {
        Self { session: field.map(|(name, value)| (*name, &**value)), ..self }
    }

    /// Nothing is changed. May be wrong for filters of other kinds, which costs time only.
    pub fn is_empty(self) -> bool {
        self.own.is_empty() && self.session.is_none() && self.lists.iter().all(|list| list.is_empty())
    }

    fn all(self) -> impl DoubleEndedIterator<Item = &'r HeaderEdits> + Clone {
        self.lists.into_iter().flatten().filter_map(move |filter| match filter {
            Filter::RequestHeaders(edits) if !self.response => Some(edits),
            Filter::ResponseHeaders(edits) if self.response => Some(edits),
            _ => None,
        })
    }

    /// The message's own field `name` (in any case) does not pass.
    pub fn drops(self, name: &str) -> bool {
        if self.is_empty() {
            return false;
        }
        let ours = |known: &str| known.eq_ignore_ascii_case(name) && !is_joined(known);
        self.own.iter().map(|(known, _)| *known).chain(self.session.map(|(known, _)| known)).any(ours)
            || (!is_protected(name) && self.all().any(|edits| replaces(edits, name)))
    }

    /// Fields to write after those that passed.
    pub fn added(self) -> impl Iterator<Item = (&'r str, &'r str)> {
        let edits = self.all().enumerate().flat_map(move |(at, edits)| {
            let gone = move |name: &str| {
                edits.remove.iter().any(|removed| removed.eq_ignore_ascii_case(name))
                    || self.all().skip(at + 1).any(|later| replaces(later, name))
                    || is_protected(name)
            };
            edits.set.iter().chain(&edits.add).filter(move |(name, _)| !gone(name))
        });
        let edits = edits.map(|(name, value)| (&**name, &**value)).filter(|(_, value)| is_value(value));
        edits.chain(self.own.iter().map(|(name, value)| (*name, &**value))).chain(self.session)
    }
}

/// Fields that both we and an endpoint may send.
fn is_joined(name: &str) -> bool {
    matches!(name, "set-cookie" | "vary")
}

fn replaces(edits: &HeaderEdits, name: &str) -> bool {
    edits.set.iter().map(|(set, _)| set).chain(&edits.remove).any(|known| known.eq_ignore_ascii_case(name))
}

/// Fields that edits cannot touch: they frame the message, choose its receiver or end at this hop (RFC 9110 §7.6.1).
pub(crate) fn is_protected(name: &str) -> bool {
    match kind(name) {
        Some(Field::Forwarded | Field::ForwardedFor | Field::ForwardedHost | Field::ForwardedProto) => false,
        Some(_) => true,
        None => name.is_empty() || name.eq_ignore_ascii_case("trailer") || !name.bytes().all(is_token_byte),
    }
}

/// RFC 9110 §5.6.2
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A value that stays on its line.
fn is_value(value: &str) -> bool {
    value.bytes().all(|byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}

/// `path` with the matched prefix replaced (Gateway API, `HTTPPathModifier.replacePrefixMatch`) or all of it.
fn rewrite_path<'r>(rewrite: &'r PathRewrite, path: &str, matched: &PathMatch) -> Cow<'r, str> {
    let replacement = match rewrite {
        PathRewrite::Full(path) => return slashed(path),
        PathRewrite::Prefix(replacement) => replacement,
    };
    let rest = match matched {
        PathMatch::Prefix(prefix) => path.get(prefix.trim_end_matches('/').len()..).unwrap_or_default(),
        // Nothing of the path is left beside what matched.
        PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::AnyService(_) => "",
    };
    if rest.is_empty() {
        return slashed(replacement);
    }
    Cow::Owned(format!("{}{rest}", replacement.trim_end_matches('/')))
}

/// Paths are never empty.
fn slashed(path: &str) -> Cow<'_, str> {
    if path.starts_with('/') { Cow::Borrowed(path) } else { Cow::Owned(format!("/{path}")) }
}

fn redirect(plan: &RedirectPlan, head: &impl Head, matched: &PathMatch, place: Place) -> Ready {
    let scheme = plan.scheme.as_deref().unwrap_or(if place.https { "https" } else { "http" });
    let well_known = if scheme == "https" { 443 } else { 80 };
    let port = plan.port.unwrap_or(if plan.scheme.is_some() { well_known } else { place.port });
    let host = plan.hostname.as_deref().unwrap_or(head.host());
    let path = plan.path.as_ref().map(|rewrite| rewrite_path(rewrite, head.path(), matched));
    let mut location = format!("{scheme}://{host}");
    if port != well_known && port != 0 {
        location.push_str(&format!(":{port}"));
    }
    push_escaped(path.as_deref().unwrap_or(head.path()), &mut location);
    if let Some(query) = head.query() {
        location.push('?');
        push_escaped(query, &mut location);
    }
    let status = StatusCode::from_u16(plan.status).ok().filter(StatusCode::is_redirection).unwrap_or(StatusCode::FOUND);
    Ready { status, fields: vec![("location", location)] }
}

/// Appends `text` with everything escaped that is not visible ASCII.
fn push_escaped(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_graphic() {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// The answer to a preflight request; `None` if it is not one.
fn preflight(plan: &CorsPlan, head: &impl Head) -> Option<Ready> {
    if head.method() != "OPTIONS" {
        return None;
    }
    let (origin, method) = (head.header("origin")?, head.header("access-control-request-method")?);
    let mut fields = Fields::new();
    if allow_origin(plan, &origin, &mut fields) {
        let asked = head.header("access-control-request-headers");
        if let Some(methods) = list_or(&plan.methods, Some(&method), plan.credentials) {
            fields.push(("access-control-allow-methods", methods));
        }
        if let Some(headers) = list_or(&plan.headers, asked.as_deref(), plan.credentials) {
            fields.push(("access-control-allow-headers", headers));
        }
        if plan.max_age_s > 0 {
            fields.push(("access-control-max-age", plan.max_age_s.to_string()));
        }
    }
    // Without the fields a browser gives up, which is what an origin that is not allowed should see.
    Some(Ready { status: StatusCode::NO_CONTENT, fields })
}

/// A configured list as sent. `*` means nothing in an answer with credentials (Fetch §3.2.5), so it becomes what was asked for.
fn list_or(configured: &[std::sync::Arc<str>], asked: Option<&str>, credentials: bool) -> Option<String> {
    if configured.iter().any(|name| **name == *"*") {
        let all = if credentials { asked? } else { "*" };
        // Only names come back, whatever was asked.
        let names = elements(all.as_bytes()).filter(|name| !name.is_empty() && name.iter().all(|b| is_token_byte(*b)));
        let names: Vec<&str> = names.filter_map(|name| std::str::from_utf8(name).ok()).collect();
        return (!names.is_empty()).then(|| names.join(", "));
    }
    (!configured.is_empty()).then(|| configured.join(", "))
}

/// Adds what allows `origin`, if it is allowed.
fn allow_origin(plan: &CorsPlan, origin: &str, fields: &mut Fields) -> bool {
    if !plan.origins.iter().any(|pattern| origin_matches(pattern, origin)) {
        return false;
    }
    let any = plan.origins.iter().any(|pattern| **pattern == *"*");
    if any && !plan.credentials {
        fields.push(("access-control-allow-origin", "*".to_owned()));
    } else {
        fields.push(("access-control-allow-origin", origin.to_owned()));
        fields.push(("vary", "Origin".to_owned()));
    }
    if plan.credentials {
        fields.push(("access-control-allow-credentials", "true".to_owned()));
    }
    true
}

/// `*`, an origin, or one with a star for one or more labels (`https://*.example`). Hostile origins cannot smuggle anything: a star
/// stands for characters of host names only.
fn origin_matches(pattern: &str, origin: &str) -> bool {
    if !is_value(origin) || origin.contains([' ', ',']) {
        return false;
    }
    match pattern.split_once('*') {
        _ if pattern == "*" => true,
        None => pattern.eq_ignore_ascii_case(origin),
        Some((before, after)) => {
            let middle = origin.len().checked_sub(before.len() + after.len()).filter(|length| *length > 0);
            let parts = middle.and_then(|length| {
                let (start, rest) = origin.split_at_checked(before.len())?;
                let (middle, end) = rest.split_at_checked(length)?;
                Some((start, middle, end))
            });
            parts.is_some_and(|(start, middle, end)| {
                start.eq_ignore_ascii_case(before)
                    && end.eq_ignore_ascii_case(after)
                    && middle.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
            })
        }
    }
}

#[cfg(test)]
mod tests;
