//! Whether what a token is bound to still exists, asked of the cache on every request (upstream's `Validator.Validate`).

use serde::Deserialize;

use super::{Bound, LEEWAY_S, TokenError, Verified};
use crate::cache::{Cached, Reader};

/// The pod as it was seen last: its revision, and when it will be gone (Unix seconds). Saves parsing it again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PodSeen {
    revision: u64,
    deletion_s: Option<i64>,
}

#[derive(Deserialize, Default)]
struct Meta {
    #[serde(default, rename = "deletionTimestamp")]
    deletion_timestamp: Option<String>,
}

#[derive(Deserialize, Default)]
struct Object {
    #[serde(default)]
    metadata: Meta,
}

/// `metadata.deletionTimestamp` in Unix seconds.
fn deletion_s(object: &Cached) -> Option<i64> {
    let parsed: Object = serde_json::from_slice(&object.json).unwrap_or_default();
    let text = parsed.metadata.deletion_timestamp?;
    Some(text.parse::<k8s_openapi::jiff::Timestamp>().map_or(0, |t| t.as_second()))
}

/// Refuses a token whose account, pod, secret or node is gone, is another one by now, or is past its deletion.
pub fn check(verified: &Verified, caches: &dyn Reader, now: i64) -> Result<(), TokenError> {
    let subject = &verified.subject;
    let namespace = &subject.namespace;
    let same = |plural: &str, namespace: &str, bound: &Bound| {
        caches.get("", plural, namespace, &bound.name).filter(|found| found.uid == bound.uid)
    };
    same("serviceaccounts", namespace, &subject.serviceaccount).ok_or(TokenError::Gone("service account"))?;
    if let Some(pod) = &subject.pod {
        let found = same("pods", namespace, pod).ok_or(TokenError::Gone("pod"))?;
        let mut seen = verified.pod_seen.lock();
        if seen.revision != found.revision {
            *seen = PodSeen { revision: found.revision, deletion_s: deletion_s(&found) };
        }
        // The deletion timestamp includes the grace period, in which the pod may still need the API.
        if seen.deletion_s.is_some_and(|at| at + LEEWAY_S < now) {
            return Err(TokenError::Gone("pod"));
        }
    }
    if let Some(secret) = &subject.secret {
        same("secrets", namespace, secret).ok_or(TokenError::Gone("secret"))?;
    }
    // With a pod the node is only told, not a bond.
    if let (Some(node), None) = (&subject.node, &subject.pod) {
        same("nodes", "", node).ok_or(TokenError::Gone("node"))?;
    }
    Ok(())
}
