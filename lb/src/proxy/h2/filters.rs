//! What [`crate::proxy::filters`] decides, applied to heads as this module has them.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};

use super::answer::Answer;
use super::head::Head;
use crate::proxy::filters::{Edits, Fields, Filters, Place};
use crate::route::{Head as _, Rule};

/// The answer to a request that is not forwarded.
pub(super) fn answer(filters: Filters<'_>, head: &Head, rule: &Rule, place: Place) -> Option<Answer> {
    let ready = filters.answer(head, &rule.path, place)?;
    let mut fields = HeaderMap::new();
    for (name, value) in ready.fields {
        if let Ok(value) = HeaderValue::from_str(&value) {
            fields.append(HeaderName::from_static(name), value);
        }
    }
    Some(Answer { status: ready.status, text: String::new(), retry_after: None, fields })
}

/// Changes a request on its way. What would make no valid head is left as it was.
pub(super) fn request(filters: Filters<'_>, head: &mut Head, rule: &Rule) {
    let new = filters.rewrite(head, &rule.path);
    let host = new.host.and_then(|host| Authority::try_from(host).ok());
    let path = new.path.map(|path| match head.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.into_owned(),
    });
    if let Some(path) = path.and_then(|path| PathAndQuery::try_from(path).ok()) {
        head.path = path;
    }
    if let Some(host) = host {
        head.set_authority(host);
    }
    edit(filters.request_edits(), &mut head.fields);
}

/// Changes a response on its way; `own` are fields of ours.
pub(super) fn response(filters: Filters<'_>, own: &Fields, fields: &mut HeaderMap) {
    if !filters.is_empty() || !own.is_empty() {
        edit(filters.response_edits(own), fields);
    }
}

fn edit(edits: Edits<'_>, fields: &mut HeaderMap) {
    let dropped: Vec<HeaderName> = fields.keys().filter(|name| edits.drops(name.as_str())).cloned().collect();
    for name in dropped {
        fields.remove(name);
    }
    for (name, value) in edits.added() {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            fields.append(name, value);
        }
    }
}
