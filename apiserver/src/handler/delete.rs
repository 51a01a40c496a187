//! DELETE and deletecollection: preconditions, grace periods, finalizers, propagation.
//!
//! Deleting is a decision ([`plan`], pure) and its execution. An object with finalizers, or of a kind with grace periods,
//! is first marked; it goes when the mark's time is up and nothing holds it any more.
//! Upstream: `registry/generic/registry/store.go`, `registry/rest/delete.go`.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::{Request, Response, StatusCode};
use scaleup_store::Error;
use serde_json::{Value, json};

use super::metadata::{self, FOREGROUND, ORPHAN};
use super::storage::{MODIFIED, cache_error, key_of, store_error};
use super::write::{admit, with_version};
use super::{Context, body, read, served};
use crate::cache::{Cached, EventType, object_key};
use crate::error::{ApiError, FieldError};
use crate::registry::{Resource, Verb};
use crate::request::{ListOptions, Query, parse_dry_run};

/// How often a deletion that loses a race is decided again.
const MAX_ATTEMPTS: usize = 10;
/// Deletions of one deletecollection that run at a time.
const COLLECTION_CONCURRENCY: usize = 16;
/// Longest grace period: a year.
const MAX_GRACE_S: i64 = 365 * 24 * 3600;

/// `propagationPolicy`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// `Orphan`
    Orphan,
    /// `Background`
    Background,
    /// `Foreground`
    Foreground,
}

/// `metav1.DeleteOptions`, checked.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// `gracePeriodSeconds`
    pub grace_s: Option<i64>,
    /// `propagationPolicy`, or what `orphanDependents` says.
    pub propagation: Option<Propagation>,
    /// `preconditions.uid`
    pub uid: Option<String>,
    /// `preconditions.resourceVersion`
    pub version: Option<String>,
    /// `dryRun=All`
    pub dry_run: bool,
}

impl DeleteOptions {
    /// From the body if there is one, else from the query.
    fn parse(cx: &Context, bytes: &[u8]) -> Result<Self, ApiError> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Self::from_value(&query_options(&cx.query)?);
        }
        let parsed = body::parse(&cx.headers, bytes, "DeleteOptions")?;
        let value = parsed.value;
        if !value.is_object() {
            return Err(ApiError::bad_request("the body must be a DeleteOptions object"));
        }
        if !matches!(value["kind"].as_str(), None | Some("" | "DeleteOptions")) {
            let kind = value["kind"].as_str().unwrap_or_default();
            return Err(ApiError::bad_request(format!("{kind} cannot be handled as a DeleteOptions")));
        }
        let mut options = Self::from_value(&value)?;
        let mut errors = Vec::new();
        options.dry_run |= parse_dry_run(cx.query.all("dryRun"), &mut errors);
        if errors.is_empty() { Ok(options) } else { Err(invalid(&errors)) }
    }

    fn from_value(value: &Value) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        let orphan = match &value["orphanDependents"] {
            Value::Null => None,
            Value::Bool(orphan) => Some(*orphan),
            other => return Err(wrong_type("orphanDependents", other)),
        };
        let policy = match &value["propagationPolicy"] {
            Value::Null => None,
            Value::String(text) => Some(text.as_str()),
            other => return Err(wrong_type("propagationPolicy", other)),
        };
        if let (Some(_), Some(policy)) = (orphan, policy) {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid("propagationPolicy", policy, detail));
        }
        let propagation = match policy {
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                let supported = ["Foreground", "Background", "Orphan", "nil"];
                errors.push(FieldError::not_supported("propagationPolicy", other, &supported));
                None
            }
            None => orphan.map(|orphan| if orphan { Propagation::Orphan } else { Propagation::Background }),
        };
        let dry_run = value["dryRun"].as_array().into_iter().flatten().map(|v| v.as_str().unwrap_or("?"));
        let dry_run = parse_dry_run(dry_run, &mut errors);
        let precondition = |field: &str| match &value["preconditions"][field] {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            other => Err(wrong_type(field, other)),
        };
        let grace_s = match &value["gracePeriodSeconds"] {
            Value::Null => None,
            // Upstream turns a negative period into one second.
            number => match number.as_i64() {
                Some(seconds) => Some(if seconds < 0 { 1 } else { seconds.min(MAX_GRACE_S) }),
                None => return Err(wrong_type("gracePeriodSeconds", number)),
            },
        };
        if !errors.is_empty() {
            return Err(invalid(&errors));
        }
        Ok(Self { grace_s, propagation, uid: precondition("uid")?, version: precondition("resourceVersion")?, dry_run })
    }
}

fn wrong_type(field: &str, value: &Value) -> ApiError {
    ApiError::bad_request(format!("DeleteOptions cannot be handled: {field} has the wrong type: {value}"))
}

fn invalid(errors: &[FieldError]) -> ApiError {
    ApiError::invalid("meta.k8s.io", "DeleteOptions", "", errors)
}

fn query_options(query: &Query) -> Result<Value, ApiError> {
    let mut out = json!({"dryRun": query.all("dryRun").collect::<Vec<_>>()});
    if let Some(seconds) = query.int("gracePeriodSeconds")? {
        out["gracePeriodSeconds"] = seconds.into();
    }
    if query.has("orphanDependents") {
        out["orphanDependents"] = query.flag("orphanDependents").into();
    }
    if !query.get("propagationPolicy").is_empty() {
        out["propagationPolicy"] = query.get("propagationPolicy").into();
    }
    Ok(out)
}

/// What a deletion does to an object.
#[derive(Debug, PartialEq)]
enum Plan {
    /// It goes at once.
    Remove,
    /// It is marked, and goes later.
    Mark(Box<Value>),
    /// It is marked already, and this request changes nothing.
    Keep,
}

/// Decides. `object` is in the row's version.
fn plan(row: &Resource, object: &Value, options: &DeleteOptions) -> Plan {
    let mut marked = object.clone();
    let pending_s = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
    let mut graceful = None;
    if metadata::is_deleting(object) {
        match (pending_s, options.grace_s) {
            // Only a shorter period may be asked for while the first one runs.
            (Some(pending), Some(asked)) if asked < pending => {
                shorten(&mut marked, asked - pending);
                graceful = Some(asked);
            }
            (Some(pending), _) if pending > 0 => return Plan::Keep,
            _ => {}
        }
    } else if let Some(period) = row.rules.grace_period_s(object, options.grace_s) {
        graceful = Some(period);
        mark(row, &mut marked, period);
    }
    metadata::set_finalizers(&mut marked, &gc_finalizers(object, options));
    let held = !metadata::finalizers(&marked).is_empty() || row.rules.is_held(&marked);
    match (graceful, held) {
        (Some(period), false) if period > 0 => Plan::Mark(Box::new(set_period(marked, period))),
        (Some(period), true) => Plan::Mark(Box::new(set_period(marked, period))),
        (_, false) => Plan::Remove,
        (None, true) => {
            if !metadata::is_deleting(&marked) {
                mark(row, &mut marked, 0);
                marked = row.rules.begin_deletion(marked);
            }
            if pending_s.is_none() {
                marked = set_period(marked, 0);
            }
            if marked == *object { Plan::Keep } else { Plan::Mark(Box::new(marked)) }
        }
    }
}

fn mark(row: &Resource, object: &mut Value, period_s: i64) {
    let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
    metadata::of(object).insert("deletionTimestamp".into(), metadata::timestamp(period_s));
    if row.has_generation && generation > 0 {
        metadata::of(object).insert("generation".into(), (generation + 1).into());
    }
}

fn set_period(mut object: Value, period_s: i64) -> Value {
    metadata::of(&mut object).insert("deletionGracePeriodSeconds".into(), period_s.into());
    object
}

/// Moves the deletion timestamp by a (negative) number of seconds.
fn shorten(object: &mut Value, by_s: i64) {
    use k8s_openapi::jiff::{SignedDuration, Timestamp};
    let at = metadata::text(object, "deletionTimestamp").parse::<Timestamp>().ok();
    let sooner = at.and_then(|at| at.checked_add(SignedDuration::from_secs(by_s)).ok());
    let shown = sooner.map(|at| json!(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at)));
    metadata::of(object).insert("deletionTimestamp".into(), shown.unwrap_or_else(|| metadata::timestamp(0)));
}

/// The finalizers with the garbage collector's as the options want them.
fn gc_finalizers(object: &Value, options: &DeleteOptions) -> Vec<String> {
    let before = metadata::finalizers(object);
    let had = |name: &str| before.iter().any(|f| f == name);
    let (orphan, foreground) = match options.propagation {
        Some(Propagation::Orphan) => (true, false),
        Some(Propagation::Background) => (false, false),
        Some(Propagation::Foreground) => (false, true),
        None => (had(ORPHAN), had(FOREGROUND)),
    };
    if (orphan, foreground) == (had(ORPHAN), had(FOREGROUND)) {
        return before;
    }
    let mut after: Vec<String> = before.into_iter().filter(|f| f != ORPHAN && f != FOREGROUND).collect();
    after.extend(orphan.then(|| ORPHAN.to_owned()));
    after.extend(foreground.then(|| FOREGROUND.to_owned()));
    after
}

/// Whether an update leaves a marked object with nothing that holds it: then it goes with that update.
pub fn is_finished(row: &Resource, object: &Value, old: &Value) -> bool {
    let waiting = old["metadata"]["deletionGracePeriodSeconds"].as_i64().is_some_and(|s| s > 0);
    metadata::is_deleting(old) && !waiting && metadata::finalizers(object).is_empty() && !row.rules.is_held(object)
}

/// What a deletion left.
pub enum Deleted {
    /// The object is gone; its last state.
    Removed(Arc<Cached>),
    /// It is marked; its state now, as stored bytes with the version.
    Marked(Bytes),
}

/// DELETE of one object.
pub async fn delete(cx: &mut Context, request: Request<Body>) -> Result<Response<Body>, ApiError> {
    let bytes = cx.server.read_body(request).await?;
    let options = DeleteOptions::parse(cx, &bytes)?;
    match delete_object(cx, &options).await? {
        Deleted::Marked(json) => served::object(cx, StatusCode::OK, json),
        Deleted::Removed(last) if cx.resolved.resource.rules.grace_period_s(&last.value(), None).is_some() => {
            served::object(cx, StatusCode::OK, last.json.clone())
        }
        Deleted::Removed(last) => {
            let row = &cx.resolved.resource;
            let mut details = json!({"name": last.name, "kind": row.plural, "uid": last.uid});
            if !row.group.is_empty() {
                details["group"] = row.group.as_ref().into();
            }
            let status =
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
            served::other(cx, StatusCode::OK, &status)
        }
    }
}

/// Deletes the object that `cx` names. Also for subresources that delete (eviction).
pub async fn delete_object(cx: &mut Context, options: &DeleteOptions) -> Result<Deleted, ApiError> {
    let row = cx.resolved.resource.clone();
    cx.server.caches.catch_up().await.map_err(cache_error)?;
    let mut existing = read::existing(cx, &row)?;
    for _ in 0..MAX_ATTEMPTS {
        check_preconditions(&row, &existing, options)?;
        let old = served::value(&row, &existing);
        admit(cx, None, &mut Value::Null, Some(&old), options.dry_run, Verb::Delete).await?;
        let planned = plan(&row, &old, options);
        match apply(cx, &row, planned, &existing, &old, options).await {
            Err(Error::Conflict(Some(now))) => {
                let cache = read::cache_of(cx, &row)?;
                let key = object_key(&cx.resolved.namespace, &cx.resolved.name);
                let now =
                    Cached::from_stored(&key, &now.value, now.mod_revision, cache.selectable(), EventType::Modified);
                existing = Arc::new(now.map_err(ApiError::internal)?);
            }
            result => return result.map_err(|cause| store_error(&row.group_resource(), &cx.resolved.name, cause)),
        }
    }
    Err(ApiError::conflict(&row.group_resource(), &cx.resolved.name, MODIFIED))
}

fn check_preconditions(row: &Resource, existing: &Cached, options: &DeleteOptions) -> Result<(), ApiError> {
    let conflict = |why: String| Err(ApiError::conflict(&row.group_resource(), &existing.name, why));
    if let Some(uid) = options.uid.as_ref().filter(|uid| **uid != existing.uid) {
        let current = &existing.uid;
        return conflict(format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {current}"));
    }
    let current = existing.revision.to_string();
    if let Some(version) = options.version.as_ref().filter(|version| **version != current) {
        return conflict(format!(
            "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {current}"
        ));
    }
    Ok(())
}

async fn apply(
    cx: &Context,
    row: &Resource,
    plan: Plan,
    existing: &Arc<Cached>,
    old: &Value,
    options: &DeleteOptions,
) -> Result<Deleted, Error> {
    let key = key_of(row, &cx.resolved.namespace, &cx.resolved.name);
    match plan {
        Plan::Keep => Ok(Deleted::Marked(existing.json.clone())),
        Plan::Remove => {
            if !options.dry_run {
                let revision = cx.server.store.delete(&key, existing.revision).await?;
                cx.server.caches.note_written(revision);
                if let Some(hooks) = &row.hooks {
                    hooks.after_write(&cx.server, None, Some(old), None).await;
                }
            }
            Ok(Deleted::Removed(existing.clone()))
        }
        Plan::Mark(object) => {
            let stored = Bytes::from(served::to_stored(row, &object));
            let revision = if options.dry_run {
                existing.revision
            } else {
                cx.server.store.update(&key, stored.clone(), existing.revision).await?
            };
            cx.server.caches.note_written(revision);
            Ok(Deleted::Marked(with_version(&stored, revision)))
        }
    }
}

/// Deletes everything that the selectors select; answers with the list of what was selected.
pub async fn delete_collection(cx: &mut Context, request: Request<Body>) -> Result<Response<Body>, ApiError> {
    let bytes = cx.server.read_body(request).await?;
    let options = DeleteOptions::parse(cx, &bytes)?;
    let selection = ListOptions::parse(&cx.query, false)?;
    let found = read::select(cx, &selection).await?;
    let each = found.items.iter().map(|object| {
        let mut one = cx.for_object(object);
        let options = &options;
        async move {
            match delete_object(&mut one, options).await {
                // Somebody else deleted it first: that is what was wanted.
                Err(error) if error.reason == "NotFound" => Ok(()),
                result => result.map(|_| ()),
            }
        }
    });
    let deletions: Vec<_> = each.collect();
    stream::iter(deletions).buffer_unordered(COLLECTION_CONCURRENCY).try_collect::<Vec<()>>().await?;
    read::respond(cx, &selection, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(value: Value) -> Result<DeleteOptions, ApiError> {
        DeleteOptions::from_value(&value)
    }

    #[test]
    fn delete_options_are_checked() {
        let ok = options(json!({"gracePeriodSeconds": -5, "propagationPolicy": "Foreground", "dryRun": ["All"],
            "preconditions": {"uid": "u", "resourceVersion": "3"}}))
        .unwrap();
        assert_eq!((ok.grace_s, ok.propagation, ok.dry_run), (Some(1), Some(Propagation::Foreground), true));
        assert_eq!((ok.uid.as_deref(), ok.version.as_deref()), (Some("u"), Some("3")));
        assert_eq!(options(json!({"orphanDependents": true})).unwrap().propagation, Some(Propagation::Orphan));
        for (bad, code) in [
            (json!({"propagationPolicy": "Maybe"}), 422),
            (json!({"propagationPolicy": "Orphan", "orphanDependents": true}), 422),
            (json!({"dryRun": ["Some"]}), 422),
            (json!({"gracePeriodSeconds": "x"}), 400),
            (json!({"preconditions": {"uid": 7}}), 400),
        ] {
            assert_eq!(options(bad.clone()).unwrap_err().code, code, "{bad}");
        }
    }

    #[test]
    fn propagation_sets_and_clears_finalizers() {
        let check = |before: &[&str], policy: Option<Propagation>, after: &[&str]| {
            let object = json!({"metadata": {"finalizers": before}});
            let options = DeleteOptions { propagation: policy, ..DeleteOptions::default() };
            assert_eq!(gc_finalizers(&object, &options), after, "{before:?} {policy:?}");
        };
        check(&[], None, &[]);
        check(&["x/y"], Some(Propagation::Foreground), &["x/y", FOREGROUND]);
        check(&[FOREGROUND], Some(Propagation::Background), &[]);
        check(&[FOREGROUND], Some(Propagation::Orphan), &[ORPHAN]);
        check(&[ORPHAN, "x/y"], None, &[ORPHAN, "x/y"]);
    }
}
