//! CREATE, and UPDATE in all its forms: of an object, of its status or finalizers, by a whole body or by a patch.
//!
//! One pipeline: mutate → prepare metadata → allocate (hooks) → default and validate → admit → store. An update is a
//! compare-and-swap on the revision it was computed from; a write that names no revision is computed again when it loses.
//! Server-side apply will be one more [`Source`].

use std::sync::Arc;

use bytes::Bytes;
use scaleup_store::{Error, KeyValue, Revision};
use serde_json::Value;

use super::storage::{MODIFIED, cache_error, check_size, key_of, store_error};
use super::{Context, delete, metadata, read, served};
use crate::admission;
use crate::cache::{Cached, EventType, encode, object_key};
use crate::error::{ApiError, FieldError};
use crate::handler::patch::Patch;
use crate::registry::{Resource, RuleContext, Verb};
use crate::request::{WriteOptions, parse_version};

/// How often an unconditional write that loses a race is computed again, as upstream's patch handler.
const MAX_ATTEMPTS: usize = 10;
/// How many generated names are tried, as upstream.
const MAX_GENERATED_NAMES: usize = 8;

/// What of an object a request may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but status.
    Whole,
    /// Only status.
    Status,
    /// Only a namespace's `spec.finalizers`.
    Finalize,
    /// Only `spec.replicas`.
    Replicas,
}

impl Part {
    fn subresource(self) -> Option<&'static str> {
        match self {
            Self::Whole => None,
            Self::Status => Some("status"),
            Self::Finalize => Some("finalize"),
            Self::Replicas => Some("scale"),
        }
    }
}

/// Where the new state comes from.
pub enum Source {
    /// A whole object, decoded and defaulted.
    Object(Value),
    /// A patch of the present object.
    Patch(Patch),
    /// The present object with this many replicas, if it is at the revision (if one is given).
    Replicas(i64, Option<String>),
}

/// A finished write.
#[derive(Debug)]
pub struct Written {
    /// What is stored now, with its resource version.
    pub json: Bytes,
    /// Its revision.
    pub revision: Revision,
}

/// Refuses a body whose name or namespace is not the path's.
pub fn check_identity(cx: &Context, object: &Value) -> Result<(), ApiError> {
    let (name, wanted) = (metadata::text(object, "name"), cx.resolved.name.as_str());
    if name.is_empty() {
        let message =
            format!("the name of the object ({wanted} based on URL) was undeterminable: name must be provided");
        return Err(ApiError::bad_request(message));
    }
    if name != wanted {
        let message = format!("the name of the object ({name}) does not match the name on the URL ({wanted})");
        return Err(ApiError::bad_request(message));
    }
    let (namespace, wanted) = (metadata::text(object, "namespace"), cx.resolved.namespace.as_str());
    if cx.resolved.resource.namespaced() && !namespace.is_empty() && namespace != wanted {
        let message =
            format!("the namespace of the object ({namespace}) does not match the namespace on the request ({wanted})");
        return Err(ApiError::bad_request(message));
    }
    Ok(())
}

/// Puts the path's namespace into a new object.
fn place(cx: &Context, object: &mut Value) -> Result<(), ApiError> {
    let namespace = metadata::text(object, "namespace").to_owned();
    let wanted = cx.resolved.namespace.as_str();
    if cx.resolved.resource.namespaced() {
        if !namespace.is_empty() && namespace != wanted {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        metadata::of(object).insert("namespace".into(), wanted.into());
    }
    Ok(())
}

fn invalid(row: &Resource, name: &str, errors: &[FieldError]) -> ApiError {
    ApiError::invalid(&row.group, &row.kind, name, errors)
}

/// Defaults and validates the object of a computed kind.
pub fn check_virtual(cx: &mut Context, mut object: Value) -> Result<Value, ApiError> {
    let row = cx.resolved.resource.clone();
    place(cx, &mut object)?;
    let rules = RuleContext { namespace: &cx.resolved.namespace, subresource: None };
    row.rules.create(object, &rules).map_err(|errors| invalid(&row, "", &errors))
}

/// Creates an object that is decoded and defaulted.
pub async fn create(cx: &mut Context, mut object: Value, options: &WriteOptions) -> Result<Written, ApiError> {
    place(cx, &mut object)?;
    if !matches!(metadata::text(&object, "resourceVersion"), "" | "0") {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    mutate(cx, None, &mut object, None, options.dry_run).await?;
    let base = metadata::text(&object, "generateName").to_owned();
    let generated = metadata::text(&object, "name").is_empty() && !base.is_empty();
    let mut attempt = 1;
    loop {
        // Only a generated name is ever tried again.
        let mut candidate = if generated { object.clone() } else { std::mem::take(&mut object) };
        if generated {
            metadata::of(&mut candidate).insert("name".into(), metadata::generated_name(&base).into());
        }
        match create_once(cx, candidate, options).await {
            Err(error) if generated && error.reason == "AlreadyExists" && attempt < MAX_GENERATED_NAMES => attempt += 1,
            result => return result,
        }
    }
}

async fn create_once(cx: &mut Context, mut object: Value, options: &WriteOptions) -> Result<Written, ApiError> {
    let row = cx.resolved.resource.clone();
    metadata::prepare_create(&row, &mut object);
    if let Some(hooks) = &row.hooks {
        hooks.before_write(&cx.server, &mut object, None, options.dry_run).await?;
    }
    let attempted = row.hooks.as_ref().map(|_| object.clone());
    let result = store_new(cx, &row, object, options).await;
    if let Some(hooks) = row.hooks.as_ref().filter(|_| !options.dry_run) {
        let new = result.as_ref().ok().map(|(_, object)| object);
        hooks.after_write(&cx.server, attempted.as_ref(), None, new).await;
    }
    result.map(|(written, _)| written)
}

async fn store_new(
    cx: &mut Context,
    row: &Resource,
    object: Value,
    options: &WriteOptions,
) -> Result<(Written, Value), ApiError> {
    let name = metadata::text(&object, "name").to_owned();
    let mut errors = Vec::new();
    metadata::validate(row, &object, &mut errors);
    let rules = RuleContext { namespace: &cx.resolved.namespace, subresource: None };
    let mut object = match row.rules.create(object, &rules) {
        Ok(object) if errors.is_empty() => object,
        Ok(_) => return Err(invalid(row, &name, &errors)),
        Err(more) => {
            errors.extend(more);
            return Err(invalid(row, &name, &errors));
        }
    };
    cx.warnings.extend(row.rules.warnings(&object));
    admit(cx, None, &mut object, None, options.dry_run, Verb::Create).await?;
    let stored = served::to_stored(row, &object);
    check_size(stored.len())?;
    let (namespace, gr) = (cx.resolved.namespace.clone(), row.group_resource());
    if options.dry_run {
        cx.server.caches.catch_up().await.map_err(cache_error)?;
        if read::cache_of(cx, row)?.get(&object_key(&namespace, &name)).is_some() {
            return Err(ApiError::already_exists(&gr, &name));
        }
        return Ok((Written { json: Bytes::from(stored), revision: 0 }, object));
    }
    let stored = Bytes::from(stored);
    let created = cx.server.store.create(&key_of(row, &namespace, &name), stored.clone()).await;
    let revision = created.map_err(|cause| store_error(&gr, &name, cause))?;
    cx.server.caches.note_written(revision);
    Ok((Written { json: with_version(&stored, revision), revision }, object))
}

/// Stored bytes with their revision in place.
pub fn with_version(stored: &[u8], revision: Revision) -> Bytes {
    match encode::metadata_at(stored) {
        Some(at) => {
            let spliced = encode::splice(EventType::Modified, stored, at, revision);
            spliced.frame.slice(spliced.json)
        }
        None => Bytes::copy_from_slice(stored),
    }
}

async fn mutate(
    cx: &mut Context,
    part: Option<&str>,
    object: &mut Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<(), ApiError> {
    let name = metadata::text(old.unwrap_or(object), "name").to_owned();
    let mut warnings = std::mem::take(&mut cx.warnings);
    let mut attributes = admission::Attributes {
        resource: &cx.resolved.resource,
        subresource: part,
        verb: cx.resolved.verb,
        namespace: &cx.resolved.namespace,
        name: &name,
        user: &cx.resolved.user,
        object,
        old,
        dry_run,
        warnings: &mut warnings,
        notes: &cx.resolved.notes,
    };
    let result = cx.server.admission.mutate(&cx.server, &mut attributes).await;
    cx.warnings = warnings;
    result
}

/// The validating half of admission.
pub async fn admit(
    cx: &mut Context,
    part: Option<&str>,
    object: &mut Value,
    old: Option<&Value>,
    dry_run: bool,
    verb: Verb,
) -> Result<(), ApiError> {
    let name = metadata::text(old.unwrap_or(object), "name").to_owned();
    let mut warnings = std::mem::take(&mut cx.warnings);
    let attributes = admission::Attributes {
        resource: &cx.resolved.resource,
        subresource: part,
        verb,
        namespace: &cx.resolved.namespace,
        name: &name,
        user: &cx.resolved.user,
        object,
        old,
        dry_run,
        warnings: &mut warnings,
        notes: &cx.resolved.notes,
    };
    let result = cx.server.admission.validate(&cx.server, &attributes).await;
    cx.warnings = warnings;
    result
}

/// How one attempt at an update ended.
enum Attempt {
    Done(Written),
    /// Somebody else was faster; this is what is stored now.
    Lost(KeyValue),
}

/// Updates the object that the path names.
pub async fn update(cx: &mut Context, part: Part, options: &WriteOptions, source: Source) -> Result<Written, ApiError> {
    let row = cx.resolved.resource.clone();
    cx.server.caches.catch_up().await.map_err(cache_error)?;
    let mut existing = read::existing(cx, &row)?;
    let warnings = cx.warnings.len();
    for _ in 0..MAX_ATTEMPTS {
        cx.warnings.truncate(warnings);
        let old = served::value(&row, &existing);
        let object = propose(cx, &row, &source, &old, options)?;
        let conditional = check_preconditions(&row, &object, &old)?;
        match attempt(cx, part, options, &existing, old, object).await? {
            Attempt::Done(written) => return Ok(written),
            Attempt::Lost(_) if conditional => break,
            Attempt::Lost(now) => existing = Arc::new(decode_stored(cx, &row, &now)?),
        }
    }
    Err(ApiError::conflict(&row.group_resource(), &cx.resolved.name, MODIFIED))
}

fn decode_stored(cx: &Context, row: &Resource, kv: &KeyValue) -> Result<Cached, ApiError> {
    let cache = read::cache_of(cx, row)?;
    let key = object_key(&cx.resolved.namespace, &cx.resolved.name);
    Cached::from_stored(&key, &kv.value, kv.mod_revision, cache.selectable(), EventType::Modified)
        .map_err(ApiError::internal)
}

/// The new object as the client wants it, decoded and defaulted.
fn propose(
    cx: &mut Context,
    row: &Resource,
    source: &Source,
    old: &Value,
    options: &WriteOptions,
) -> Result<Value, ApiError> {
    match source {
        Source::Object(object) => Ok(object.clone()),
        Source::Replicas(replicas, version) => {
            let mut object = old.clone();
            object["spec"]["replicas"] = (*replicas).into();
            match version {
                Some(version) => metadata::of(&mut object).insert("resourceVersion".into(), version.as_str().into()),
                None => metadata::of(&mut object).remove("resourceVersion"),
            };
            Ok(object)
        }
        Source::Patch(patch) => {
            let before = metadata::text(old, "resourceVersion").to_owned();
            let mut patched = patch.apply(row, old)?;
            // A patch that does not touch the version is unconditional.
            if patched["metadata"]["resourceVersion"] == before.as_str() && !patch.names_version() {
                metadata::of(&mut patched).remove("resourceVersion");
            }
            let parsed = super::body::Parsed { value: patched, duplicates: Vec::new() };
            let object = super::body::decode(row, parsed, options.validation, &mut cx.warnings)?;
            check_identity(cx, &object)?;
            Ok(object)
        }
    }
}

/// Checks UID and resource version; whether the write names a version.
fn check_preconditions(row: &Resource, object: &Value, old: &Value) -> Result<bool, ApiError> {
    let conflict = |why: String| Err(ApiError::conflict(&row.group_resource(), metadata::text(old, "name"), why));
    let (uid, current) = (metadata::text(object, "uid"), metadata::text(old, "uid"));
    if !uid.is_empty() && uid != current {
        return conflict(format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {current}"));
    }
    match metadata::text(object, "resourceVersion") {
        "" | "0" => Ok(false),
        version if version == metadata::text(old, "resourceVersion") => Ok(true),
        version => {
            parse_version(version)?;
            conflict(MODIFIED.into())
        }
    }
}

async fn attempt(
    cx: &mut Context,
    part: Part,
    options: &WriteOptions,
    existing: &Arc<Cached>,
    old: Value,
    mut object: Value,
) -> Result<Attempt, ApiError> {
    let row = cx.resolved.resource.clone();
    keep_other_parts(&row, part, &mut object, &old);
    metadata::prepare_update(&mut object, &old);
    mutate(cx, part.subresource(), &mut object, Some(&old), options.dry_run).await?;
    if let Some(hooks) = row.hooks.as_ref().filter(|_| part == Part::Whole) {
        hooks.before_write(&cx.server, &mut object, Some(&old), options.dry_run).await?;
    }
    let hooked = row.hooks.clone().filter(|_| part == Part::Whole && !options.dry_run);
    let attempted = hooked.as_ref().map(|_| object.clone());
    let result = store_change(cx, &row, part, options, existing, &old, object).await;
    if let Some(hooks) = hooked {
        // What is stored now if this write did not happen is, as far as we know, the old object.
        let new = match &result {
            Ok((Attempt::Done(_), new)) => new.as_ref(),
            _ => Some(&old),
        };
        hooks.after_write(&cx.server, attempted.as_ref(), Some(&old), new).await;
    }
    result.map(|(attempt, _)| attempt)
}

/// Takes from the old object what this part of it may not write.
fn keep_other_parts(row: &Resource, part: Part, object: &mut Value, old: &Value) {
    let copy = |object: &mut Value, field: &str| match (old.get(field), object.as_object_mut()) {
        (Some(value), Some(map)) => {
            map.insert(field.to_owned(), value.clone());
        }
        (None, Some(map)) => {
            map.remove(field);
        }
        _ => {}
    };
    match part {
        Part::Whole if row.has_status => copy(object, "status"),
        Part::Whole => {}
        Part::Replicas => {}
        Part::Status => {
            let status = object.get("status").cloned();
            *object = old.clone();
            if let Some(map) = object.as_object_mut() {
                match status {
                    Some(status) => map.insert("status".into(), status),
                    None => map.remove("status"),
                };
            }
        }
        Part::Finalize => {
            let finalizers = object["spec"]["finalizers"].take();
            *object = old.clone();
            object["spec"]["finalizers"] = finalizers;
        }
    }
}

/// Validates, admits and stores; with the object that is stored then (`None`: it is gone).
async fn store_change(
    cx: &mut Context,
    row: &Resource,
    part: Part,
    options: &WriteOptions,
    existing: &Arc<Cached>,
    old: &Value,
    object: Value,
) -> Result<(Attempt, Option<Value>), ApiError> {
    let rules = RuleContext { namespace: &cx.resolved.namespace, subresource: part.subresource() };
    let mut errors = Vec::new();
    metadata::validate(row, &object, &mut errors);
    metadata::validate_update(&object, old, &mut errors);
    let mut object = match row.rules.update(object, old, &rules) {
        Ok(object) if errors.is_empty() => object,
        Ok(_) => return Err(invalid(row, &cx.resolved.name, &errors)),
        Err(more) => {
            errors.extend(more);
            return Err(invalid(row, &cx.resolved.name, &errors));
        }
    };
    if part == Part::Whole {
        cx.warnings.extend(row.rules.warnings(&object));
    }
    if row.has_generation && part != Part::Status && metadata::spec_changed(&object, old) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        metadata::of(&mut object).insert("generation".into(), generation.into());
    }
    let verb = cx.resolved.verb;
    admit(cx, part.subresource(), &mut object, Some(old), options.dry_run, verb).await?;
    if delete::is_finished(row, &object, old) {
        return finish_deletion(cx, row, options, existing, object).await;
    }
    let unchanged = Written { json: existing.json.clone(), revision: existing.revision };
    if object == *old {
        return Ok((Attempt::Done(unchanged), Some(object)));
    }
    let stored = Bytes::from(served::to_stored(row, &object));
    check_size(stored.len())?;
    if options.dry_run {
        let json = with_version(&stored, existing.revision);
        return Ok((Attempt::Done(Written { json, revision: existing.revision }), Some(object)));
    }
    let key = key_of(row, &cx.resolved.namespace, &cx.resolved.name);
    match cx.server.store.update(&key, stored.clone(), existing.revision).await {
        Ok(revision) => {
            cx.server.caches.note_written(revision);
            Ok((Attempt::Done(Written { json: with_version(&stored, revision), revision }), Some(object)))
        }
        Err(Error::Conflict(Some(now))) => Ok((Attempt::Lost(now), None)),
        Err(cause) => Err(store_error(&row.group_resource(), &cx.resolved.name, cause)),
    }
}

/// The last finalizer went: the object goes too.
async fn finish_deletion(
    cx: &mut Context,
    row: &Resource,
    options: &WriteOptions,
    existing: &Arc<Cached>,
    object: Value,
) -> Result<(Attempt, Option<Value>), ApiError> {
    let stored = served::to_stored(row, &object);
    let json = with_version(&stored, existing.revision);
    if options.dry_run {
        return Ok((Attempt::Done(Written { json, revision: existing.revision }), None));
    }
    let key = key_of(row, &cx.resolved.namespace, &cx.resolved.name);
    match cx.server.store.delete(&key, existing.revision).await {
        Ok(revision) => {
            cx.server.caches.note_written(revision);
            Ok((Attempt::Done(Written { json, revision }), None))
        }
        Err(Error::Conflict(Some(now))) => Ok((Attempt::Lost(now), None)),
        Err(cause) => Err(store_error(&row.group_resource(), &cx.resolved.name, cause)),
    }
}
