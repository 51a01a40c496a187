//! Store keys, and what a store's or the cache's failure is to a client.

use scaleup_store::Error;
use tracing::error;

use crate::cache::{CacheError, ROOT, object_key};
use crate::error::{ApiError, Cause, Details, GroupResource};
use crate::registry::Resource;

/// Upstream's `OptimisticLockErrorMsg`.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";
/// Largest stored object, as etcd's default request limit.
pub const MAX_OBJECT_BYTES: usize = 3 << 19;

/// `/registry/{group or core}/{plural}/{namespace}/{name}`
pub fn store_key(group: &str, plural: &str, namespace: &str, name: &str) -> String {
    let group = if group.is_empty() { "core" } else { group };
    format!("{ROOT}{group}/{plural}/{}", object_key(namespace, name))
}

/// The store key of an object of the row.
pub fn key_of(row: &Resource, namespace: &str, name: &str) -> String {
    let (group, plural) = row.stored_as();
    store_key(group, plural, namespace, name)
}

/// A failed store operation on one object.
pub fn store_error(gr: &GroupResource, name: &str, cause: Error) -> ApiError {
    match cause {
        Error::Exists => ApiError::already_exists(gr, name),
        Error::Conflict(None) => ApiError::not_found(gr, name),
        Error::Conflict(Some(_)) => ApiError::conflict(gr, name, MODIFIED),
        Error::NoSpace => ApiError::unavailable("the store's disk is full: nothing was written; free space and retry"),
        Error::Unavailable(why) => ApiError::unavailable(format!("the store is unavailable: {why}")),
        Error::Compacted { .. } => ApiError::expired("the resource version is too old: list again"),
        Error::Future { requested, current } => too_large(requested, current),
        other => {
            let source = std::error::Error::source(&other).map(ToString::to_string).unwrap_or_default();
            error!(cause = %other, %source, "the store failed");
            ApiError::internal("the store failed; see the server's log")
        }
    }
}

/// A read that the cache could not answer.
pub fn cache_error(cause: CacheError) -> ApiError {
    match cause {
        CacheError::NotReady => {
            let mut error = ApiError::too_many_requests("storage is (re)initializing", 1);
            error.code = http::StatusCode::SERVICE_UNAVAILABLE;
            error.reason = "ServiceUnavailable";
            error
        }
        CacheError::TooLarge { requested, current } => too_large(requested, current),
        CacheError::Store(cause) => store_error(&GroupResource::default(), "", cause),
    }
}

/// Upstream's `NewTooLargeResourceVersionError`: reflectors list again when they see its cause.
pub fn too_large(requested: u64, current: u64) -> ApiError {
    let mut error = ApiError::timeout(format!("Too large resource version: {requested}, current: {current}"));
    let cause = Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    };
    error.details = Some(Box::new(Details { causes: vec![cause], retry_after_s: 1, ..Details::default() }));
    error
}

/// 413 for an object that grew too large to be stored.
pub fn check_size(bytes: usize) -> Result<(), ApiError> {
    if bytes <= MAX_OBJECT_BYTES { Ok(()) } else { Err(ApiError::too_large(MAX_OBJECT_BYTES)) }
}
