//! GET and LIST, with upstream's resource version semantics.
//!
//! Unset is consistent: the cache is waited for until it has everything that was written before the request. `0` is any
//! state. `N` is not older than, or exactly, that revision; a state that the cache has moved past is read from the
//! store's history. <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>

use std::sync::Arc;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Response, StatusCode};
use scaleup_store::{Error, ListRequest, Revision};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::list_body::ListBody;
use super::storage::{cache_error, store_error};
use super::{Context, served};
use crate::cache::{CacheError, Cached, EventType, KeyRange, ResourceCache, Snapshot, object_key};
use crate::error::ApiError;
use crate::negotiate::View;
use crate::present::{partial, table};
use crate::registry::Resource;
use crate::request::{ListOptions, VersionMatch, parse_version};

/// Objects read from the store's history at a time.
const HISTORY_PAGE: usize = 500;
/// Version marker of continue tokens, as upstream's.
const TOKEN_VERSION: &str = "meta.k8s.io/v1";
/// Longest continue token.
const MAX_TOKEN_BYTES: usize = 4_096;

/// The cache of the row that stores this row's objects.
pub fn cache_of<'c>(cx: &'c Context, row: &Resource) -> Result<&'c Arc<ResourceCache>, ApiError> {
    let (group, plural) = row.stored_as();
    cx.server.caches.resource(group, plural).ok_or_else(ApiError::no_such_path)
}

/// One object.
pub async fn get(cx: &Context) -> Result<Response<Body>, ApiError> {
    let row = &cx.resolved.resource;
    match cx.query.get("resourceVersion") {
        "" => cx.server.caches.catch_up().await,
        text => cx.server.caches.wait_for(parse_version(text)?).await,
    }
    .map_err(cache_error)?;
    let cached = existing(cx, row)?;
    served::object(cx, StatusCode::OK, cached.json.clone())
}

/// The object that the path names, in the cache's present state.
pub fn existing(cx: &Context, row: &Resource) -> Result<Arc<Cached>, ApiError> {
    let key = object_key(&cx.resolved.namespace, &cx.resolved.name);
    cache_of(cx, row)?.get(&key).ok_or_else(|| ApiError::not_found(&row.group_resource(), &cx.resolved.name))
}

/// A collection.
pub async fn list(cx: &Context) -> Result<Response<Body>, ApiError> {
    let options = ListOptions::parse(&cx.query, false)?;
    let found = select(cx, &options).await?;
    respond(cx, &options, found)
}

/// Refuses field selectors that the kind does not have.
pub fn check_fields(row: &Resource, options: &ListOptions) -> Result<(), ApiError> {
    for requirement in options.fields.requirements() {
        let path = requirement.path.as_str();
        let known =
            matches!(path, "metadata.name" | "metadata.namespace") || row.selectable.iter().any(|f| f.path == path);
        if !known {
            return Err(ApiError::bad_request(format!("field label not supported: {path}")));
        }
    }
    Ok(())
}

/// Whether selectors select an object.
pub fn matches(options: &ListOptions, object: &Cached) -> bool {
    options.fields.matches(|path| object.field(path)) && options.labels.matches_by(|key| object.labels.get(key))
}

/// The objects that the options ask for, at one revision.
pub async fn select(cx: &Context, options: &ListOptions) -> Result<Snapshot, ApiError> {
    let row = &cx.resolved.resource;
    check_fields(row, options)?;
    let token = Token::decode(&options.continue_token)?;
    let namespace = cx.resolved.namespace.as_str();
    let start_after = token.as_ref().map(|t| t.start_after.as_str()).unwrap_or_default();
    let range = KeyRange { namespace, start_after, limit: options.limit };
    let cache = cache_of(cx, row)?;
    let exact = match (&token, options.version, options.version_match) {
        (Some(token), _, _) => Some(token.revision),
        (None, Some(version), Some(VersionMatch::Exact)) => Some(version),
        // Upstream's legacy rule: a limited list at a version is at exactly that version.
        (None, Some(version), None) if options.limit > 0 && version > 0 => Some(version),
        _ => None,
    };
    let wait = |result: Result<(), CacheError>| result.map_err(cache_error);
    if let Some(revision) = exact {
        wait(cx.server.caches.wait_for(revision).await)?;
        if let Some(snapshot) = cache.snapshot_at(range, revision, &|o| matches(options, o)) {
            return Ok(snapshot);
        }
        return history(cx, cache, range, revision, options, token.is_some()).await;
    }
    match options.version {
        None => wait(cx.server.caches.catch_up().await)?,
        Some(version) => wait(cx.server.caches.wait_for(version).await)?,
    }
    let progress = cx.server.caches.progress();
    if let Some(name) = options.single_name().filter(|_| !row.namespaced() || !namespace.is_empty()) {
        let object = cache.get(&object_key(namespace, name)).filter(|o| matches(options, o));
        let revision = object.as_ref().map_or(progress, |o| o.revision.max(progress));
        return Ok(Snapshot { items: object.into_iter().collect(), revision, remaining: 0 });
    }
    if options.fields.is_empty() && options.labels.is_everything() {
        return Ok(cache.snapshot(range, progress, &|_| true));
    }
    Ok(cache.snapshot(range, progress, &|o| matches(options, o)))
}

/// A page as of a revision that the cache has moved past.
async fn history(
    cx: &Context,
    cache: &ResourceCache,
    range: KeyRange<'_>,
    revision: Revision,
    options: &ListOptions,
    continued: bool,
) -> Result<Snapshot, ApiError> {
    let mut prefix = cache.prefix().to_owned();
    if !range.namespace.is_empty() {
        prefix.push_str(range.namespace);
        prefix.push('/');
    }
    let unlimited = range.limit == 0;
    let limit = if unlimited { usize::MAX } else { range.limit };
    let mut after = (!range.start_after.is_empty()).then(|| format!("{}{}", cache.prefix(), range.start_after));
    let mut out = Snapshot { items: Vec::new(), revision, remaining: 0 };
    loop {
        let request =
            ListRequest { prefix: &prefix, start_after: after.as_deref(), limit: HISTORY_PAGE, at: Some(revision) };
        let page = cx.server.store.list(request).await.map_err(|cause| match cause {
            Error::Compacted { .. } => expired(revision, continued),
            other => store_error(&cx.resolved.resource.group_resource(), "", other),
        })?;
        for (i, kv) in page.items.iter().enumerate() {
            let key = kv.key.strip_prefix(cache.prefix()).unwrap_or(&kv.key);
            let object = Cached::from_stored(key, &kv.value, kv.mod_revision, cache.selectable(), EventType::Added)
                .map_err(ApiError::internal)?;
            if !matches(options, &object) {
                continue;
            }
            if out.items.len() == limit {
                out.remaining = page.remaining + (page.items.len() - i) as u64;
                return Ok(out);
            }
            out.items.push(Arc::new(object));
        }
        after = page.items.last().map(|kv| kv.key.clone());
        if page.remaining == 0 || page.items.is_empty() {
            return Ok(out);
        }
    }
}

fn expired(revision: Revision, continued: bool) -> ApiError {
    if continued {
        return ApiError::expired(
            "The provided continue parameter is too old to display a consistent list result. You must start a new list \
             without the continue parameter.",
        );
    }
    ApiError::expired(format!("The resourceVersion for the provided list is too old: {revision}."))
}

/// Where the next page starts, and at which revision.
#[derive(Debug, PartialEq, Eq)]
struct Token {
    revision: Revision,
    start_after: String,
}

#[derive(Serialize, Deserialize)]
struct TokenJson {
    v: String,
    rv: i64,
    start: String,
}

impl Token {
    fn decode(text: &str) -> Result<Option<Self>, ApiError> {
        if text.is_empty() {
            return Ok(None);
        }
        let bad =
            |why: &str| ApiError::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
        if text.len() > MAX_TOKEN_BYTES {
            return Err(bad("it is too long"));
        }
        let bare = text.trim_end_matches('=');
        let bytes =
            URL_SAFE_NO_PAD.decode(bare).or_else(|_| STANDARD_NO_PAD.decode(bare)).map_err(|e| bad(&e.to_string()))?;
        let token: TokenJson = serde_json::from_slice(&bytes).map_err(|e| bad(&e.to_string()))?;
        if token.v != TOKEN_VERSION {
            return Err(bad("server does not recognize this encoded version"));
        }
        let revision = u64::try_from(token.rv).ok().filter(|r| *r > 0);
        let revision =
            revision.ok_or_else(|| bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"))?;
        let start_after = token.start.trim_end_matches('\0').to_owned();
        if start_after.is_empty() {
            return Err(bad("encoded start key empty (version meta.k8s.io/v1)"));
        }
        Ok(Some(Self { revision, start_after }))
    }

    fn encode(&self) -> Result<String, ApiError> {
        let rv = i64::try_from(self.revision).map_err(ApiError::internal)?;
        let token = TokenJson { v: TOKEN_VERSION.into(), rv, start: format!("{}\0", self.start_after) };
        Ok(URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).map_err(ApiError::internal)?))
    }
}

/// `metav1.ListMeta`
fn list_meta(options: &ListOptions, found: &Snapshot) -> Result<Map<String, Value>, ApiError> {
    let mut meta = Map::new();
    meta.insert("resourceVersion".into(), found.revision.to_string().into());
    if let Some(last) = found.items.last().filter(|_| found.remaining > 0) {
        let token = Token { revision: found.revision, start_after: last.key().to_owned() };
        meta.insert("continue".into(), token.encode()?.into());
        // As upstream: a count that selectors may make wrong is not given.
        if options.labels.is_everything() && options.fields.is_empty() {
            meta.insert("remainingItemCount".into(), found.remaining.into());
        }
    }
    Ok(meta)
}

/// The list in the form that the client wants.
pub fn respond(cx: &Context, options: &ListOptions, found: Snapshot) -> Result<Response<Body>, ApiError> {
    let row = &cx.resolved.resource;
    let meta = Value::Object(list_meta(options, &found)?);
    if served::is_ready(row, cx.accepted) {
        let head =
            format!(r#"{{"kind":"{}List","apiVersion":"{}","metadata":{meta},"items":["#, row.kind, row.api_version());
        let body = ListBody::new(Bytes::from(head), found.items, Bytes::from_static(b"]}\n"));
        return Ok(served::respond(cx, StatusCode::OK, Body::new(body)));
    }
    let items: Vec<Value> = found.items.iter().map(|o| served::value(row, o)).collect();
    let list = match cx.accepted.view {
        View::Table => table::render(row, items.iter(), meta, served::include(cx)?, true),
        View::Partial => partial::list(items.iter(), meta),
        View::Object => json!({
            "kind": format!("{}List", row.kind), "apiVersion": row.api_version(), "metadata": meta, "items": items,
        }),
    };
    served::other(cx, StatusCode::OK, &list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_bad_ones_are_refused() {
        let token = Token { revision: 7, start_after: "ns/web".into() };
        let text = token.encode().unwrap();
        assert_eq!(Token::decode(&text).unwrap(), Some(token));
        assert_eq!(Token::decode("").unwrap(), None);
        let json = |s: &str| URL_SAFE_NO_PAD.encode(s);
        for bad in [
            "%%%".to_owned(),
            json("{"),
            json(r#"{"v":"v0","rv":1,"start":"a"}"#),
            json(r#"{"v":"meta.k8s.io/v1","rv":0,"start":"a"}"#),
            json(r#"{"v":"meta.k8s.io/v1","rv":-1,"start":"a"}"#),
            json(r#"{"v":"meta.k8s.io/v1","rv":1,"start":""}"#),
            "a".repeat(MAX_TOKEN_BYTES + 1),
        ] {
            assert_eq!(Token::decode(&bad).unwrap_err().code, 400, "{bad}");
        }
    }
}
