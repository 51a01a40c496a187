//! API calls as controllers make them: bounded in time, errors that name what was tried. Never retries.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A call that takes longer has failed; whether the server did it is unknown.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a reconcile did not finish. The work queue retries it with backoff.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API answered with an error, or could not be reached.
    #[error("cannot {what} {object}")]
    Api {
        /// Verb and kind, e.g. `create Pod`.
        what: &'static str,
        /// Namespace and name.
        object: String,
        /// The client's error.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer within [`CALL_TIMEOUT`].
    #[error("cannot {what} {object}: no answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout {
        /// Verb and kind.
        what: &'static str,
        /// Namespace and name.
        object: String,
    },
    /// Several calls of one reconcile failed.
    #[error("{failed} of {total} calls failed")]
    Several {
        /// How many failed.
        failed: usize,
        /// Of how many.
        total: usize,
        /// The first failure.
        #[source]
        source: Box<Error>,
    },
    /// The object cannot be handled as it is; a change of it will wake the controller again.
    #[error("{object}: {message}")]
    Unusable {
        /// Namespace and name.
        object: String,
        /// What is wrong with it.
        message: String,
    },
    /// What is cached is older than what this controller has written; the watch will catch up.
    #[error("{object}: waiting for the watch to catch up")]
    Stale {
        /// Namespace and name.
        object: String,
    },
    /// Discovery did not answer completely, so that nothing may be concluded from what is missing.
    #[error("discovery is incomplete: {message}")]
    Discovery {
        /// Failed groups.
        message: String,
    },
}

impl Error {
    /// The server's `Status`, if it answered.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Error::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Error::Several { source, .. } => source.status(),
            _ => None,
        }
    }
    /// HTTP 404.
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(|s| s.code == 404)
    }
    /// HTTP 409 that is not `AlreadyExists`.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(|s| s.code == 409 && s.reason != "AlreadyExists")
    }
    /// HTTP 409, reason `AlreadyExists`.
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(|s| s.reason == "AlreadyExists")
    }
    /// Whether the server refused (4xx): it certainly did not do what was asked.
    pub fn is_refusal(&self) -> bool {
        self.status().is_some_and(|s| (400..500).contains(&s.code))
    }
    /// Whether the namespace is being deleted, so that nothing can be created in it any more.
    pub fn is_namespace_terminating(&self) -> bool {
        const CAUSE: &str = "NamespaceTerminating";
        self.status().is_some_and(|s| {
            s.details.iter().flat_map(|d| &d.causes).any(|c| c.reason == CAUSE)
                || (s.code == 403 && s.message.contains("because it is being terminated"))
        })
    }
    /// What a user should read in an event or condition: the server's message, or the error and its cause.
    pub fn user_message(&self) -> String {
        match (self.status(), self) {
            (Some(status), _) => status.message.clone(),
            (None, Error::Api { source, .. }) => format!("{self}: {source}"),
            (None, _) => self.to_string(),
        }
    }
}

/// Runs one API call under [`CALL_TIMEOUT`]; `what` is verb and kind.
pub async fn call<T>(
    what: &'static str,
    object: impl Display,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(CALL_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) => Err(Error::Api { what, object: object.to_string(), source: Box::new(e) }),
        Err(_) => Err(Error::Timeout { what, object: object.to_string() }),
    }
}

/// Creates an object.
pub async fn create<K>(what: &'static str, api: &Api<K>, name: &str, object: &K) -> Result<K, Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug + Serialize,
{
    call(what, name, api.create(&PostParams::default(), object)).await
}

/// Replaces an object, if it is still at the resource version that `object` carries.
pub async fn replace<K>(what: &'static str, api: &Api<K>, name: &str, object: &K) -> Result<K, Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug + Serialize,
{
    call(what, name, api.replace(name, &PostParams::default(), object)).await
}

/// Replaces an object's status, if it is still at the resource version that `object` carries.
pub async fn replace_status<K>(what: &'static str, api: &Api<K>, name: &str, object: &K) -> Result<K, Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug + Serialize,
{
    call(what, name, api.replace_status(name, &PostParams::default(), object)).await
}

/// Applies a JSON merge patch.
pub async fn merge<K>(what: &'static str, api: &Api<K>, name: &str, patch: &Value) -> Result<K, Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    call(what, name, api.patch(name, &PatchParams::default(), &Patch::Merge(patch))).await
}

/// Applies a JSON merge patch to the status.
pub async fn merge_status<K>(what: &'static str, api: &Api<K>, name: &str, patch: &Value) -> Result<K, Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    call(what, name, api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))).await
}

/// `Ok` when the object was not there any more, as deletions and patches of vanished objects want it.
pub fn gone_is_fine<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(e) if !e.is_not_found() => Err(e),
        _ => Ok(()),
    }
}

/// Folds the results of concurrent calls into one.
pub fn all<T>(results: Vec<Result<T, Error>>) -> Result<(), Error> {
    let total = results.len();
    let mut failures: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        failed => Err(Error::Several { failed, total, source: Box::new(failures.remove(0)) }),
    }
}

/// Delete exactly this object, not a later one of the same name.
pub fn delete_uid(uid: &str) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16, reason: &str, message: &str) -> Error {
        let status = Status { code, reason: reason.into(), message: message.into(), ..Status::default() };
        Error::Api { what: "create Pod", object: "a/b".into(), source: Box::new(kube::Error::Api(Box::new(status))) }
    }

    #[test]
    fn errors_are_told_apart() {
        assert!(api(404, "NotFound", "").is_not_found());
        assert!(api(409, "Conflict", "").is_conflict());
        assert!(!api(409, "AlreadyExists", "").is_conflict());
        assert!(api(409, "AlreadyExists", "").is_already_exists());
        assert!(api(422, "Invalid", "").is_refusal());
        assert!(!api(503, "ServiceUnavailable", "").is_refusal());
        assert!(!Error::Timeout { what: "get Pod", object: "a/b".into() }.is_refusal());
        let text = "unable to create new content in namespace a because it is being terminated";
        assert!(api(403, "Forbidden", text).is_namespace_terminating());
        assert!(!api(403, "Forbidden", "no").is_namespace_terminating());
    }

    #[test]
    fn several_failures_become_one() {
        assert!(all::<()>(vec![Ok(()), Ok(())]).is_ok());
        let one = all(vec![Ok(()), Err(api(404, "NotFound", ""))]).unwrap_err();
        assert!(matches!(one, Error::Api { .. }));
        let two = all::<()>(vec![Err(api(500, "", "")), Err(api(404, "", ""))]).unwrap_err();
        assert_eq!(two.to_string(), "2 of 2 calls failed");
    }
}
