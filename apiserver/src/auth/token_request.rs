//! `serviceaccounts/token`: issues a token for an account (`kubectl create token`, pods' projected volumes).
//!
//! The token may be bound to a pod, secret or node, and dies with it. Agents get tokens only for pods bound to their node:
//! the `NodeRestriction` plugin sees the request before anything is signed.

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest};
use serde_json::{Value, json};

use super::pki::timestamp;
use super::tokens::{Bound, DEFAULT_LIFETIME_S, MIN_LIFETIME_S, Subject};
use crate::admission;
use crate::cache::Cached;
use crate::error::{ApiError, FieldError, GroupResource};
use crate::handler::{Resolved, SubresourceHandler};
use crate::registry::Verb;

/// Longest lifetime that is not an error; what is granted is less ([`super::tokens::MAX_LIFETIME_S`]).
const MAX_REQUEST_S: i64 = 1 << 32;
/// Audiences that one token may be for.
const MAX_AUDIENCES: usize = 16;
/// Longest audience.
const MAX_AUDIENCE_BYTES: usize = 1024;

/// Issues tokens.
pub struct TokenRequestHandler;

#[async_trait]
impl SubresourceHandler for TokenRequestHandler {
    async fn handle(
        &self,
        server: &Arc<crate::Server>,
        resolved: Resolved,
        request: Request<Body>,
    ) -> Result<Response<Body>, ApiError> {
        let dry_run = request.uri().query().is_some_and(|q| q.split('&').any(|p| p == "dryRun=All"));
        let mut object = server.read_object(&resolved, request).await?;
        let account = stored(server, "serviceaccounts", &resolved.namespace, &resolved.name).await?;
        admit(server, &resolved, &mut object, dry_run).await?;
        // What clients send as status is empty, with a null time that the type does not take.
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
        }
        let mut review: TokenRequest =
            serde_json::from_value(object).map_err(|e| ApiError::bad_request(e.to_string()))?;
        let (audiences, lifetime_s) = validate(&review, server.tokens.api_audiences())?;
        let subject = subject(server, &resolved, &account, review.spec.bound_object_ref.as_ref()).await?;
        let (token, expires_s) = server.tokens.issue(subject, &audiences, lifetime_s).map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "token cannot be signed");
            ApiError::internal("the token cannot be signed")
        })?;
        review.spec.audiences = audiences;
        review.spec.expiration_seconds = Some(lifetime_s);
        answer(&resolved, &review, &token, expires_s)
    }
}

async fn admit(
    server: &Arc<crate::Server>,
    resolved: &Resolved,
    object: &mut Value,
    dry_run: bool,
) -> Result<(), ApiError> {
    let mut warnings = Vec::new();
    let mut attributes = admission::Attributes {
        resource: &resolved.resource,
        subresource: Some("token"),
        verb: Verb::Create,
        namespace: &resolved.namespace,
        name: &resolved.name,
        user: &resolved.user,
        object,
        old: None,
        dry_run,
        warnings: &mut warnings,
        notes: &resolved.notes,
    };
    server.admission.mutate(server, &mut attributes).await?;
    server.admission.validate(server, &attributes).await
}

fn group_resource(plural: &str) -> GroupResource {
    GroupResource { group: String::new(), resource: plural.into() }
}

async fn stored(
    server: &Arc<crate::Server>,
    plural: &str,
    namespace: &str,
    name: &str,
) -> Result<Arc<Cached>, ApiError> {
    let found = server.get_stored("", plural, namespace, name).await?;
    found.ok_or_else(|| ApiError::not_found(&group_resource(plural), name))
}

/// Audiences and lifetime to grant; upstream's `ValidateTokenRequest`.
fn validate(review: &TokenRequest, default_audiences: &[String]) -> Result<(Vec<String>, i64), ApiError> {
    let mut errors = Vec::new();
    let lifetime_s = review.spec.expiration_seconds.unwrap_or(DEFAULT_LIFETIME_S);
    if lifetime_s < MIN_LIFETIME_S {
        let why = "may not specify a duration less than 10 minutes";
        errors.push(FieldError::invalid("spec.expirationSeconds", lifetime_s, why));
    }
    if lifetime_s > MAX_REQUEST_S {
        let why = "may not specify a duration larger than 2^32 seconds";
        errors.push(FieldError::invalid("spec.expirationSeconds", lifetime_s, why));
    }
    let asked = &review.spec.audiences;
    if asked.len() > MAX_AUDIENCES {
        errors.push(FieldError::too_many("spec.audiences", asked.len(), MAX_AUDIENCES));
    }
    for (i, audience) in asked.iter().enumerate().take(MAX_AUDIENCES) {
        if audience.len() > MAX_AUDIENCE_BYTES {
            errors.push(FieldError::too_long(format!("spec.audiences[{i}]"), MAX_AUDIENCE_BYTES));
        }
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", "", &errors));
    }
    let audiences = if asked.is_empty() { default_audiences } else { asked };
    Ok((audiences.to_vec(), lifetime_s))
}

/// What the token is bound to, checked against the store: objects a client names must be there and the ones it means.
async fn subject(
    server: &Arc<crate::Server>,
    resolved: &Resolved,
    account: &Cached,
    reference: Option<&BoundObjectReference>,
) -> Result<Subject, ApiError> {
    let mut subject = Subject {
        namespace: resolved.namespace.clone(),
        node: None,
        pod: None,
        secret: None,
        serviceaccount: Bound { name: account.name.clone(), uid: account.uid.clone() },
    };
    let Some(reference) = reference else { return Ok(subject) };
    let name = reference.name.as_deref().unwrap_or_default();
    let kind = (reference.api_version.as_deref().unwrap_or_default(), reference.kind.as_deref().unwrap_or_default());
    let plural = match kind {
        ("v1", "Pod") => "pods",
        ("v1", "Secret") => "secrets",
        ("v1", "Node") => "nodes",
        _ => {
            // Go prints a core kind as `/v1, Kind=Pod`.
            let slash = if kind.0.contains('/') { "" } else { "/" };
            let text = format!("cannot bind token to object of type {slash}{}, Kind={}", kind.0, kind.1);
            return Err(ApiError::bad_request(text));
        }
    };
    let namespace = if plural == "nodes" { "" } else { &resolved.namespace };
    let found = stored(server, plural, namespace, name).await?;
    let wanted = reference.uid.as_deref().unwrap_or_default();
    if !wanted.is_empty() && wanted != found.uid {
        let why = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have \
             been deleted and then recreated"
        );
        return Err(ApiError::conflict(&group_resource(plural), name, why));
    }
    let bound = Bound { name: found.name.clone(), uid: found.uid.clone() };
    match plural {
        "pods" => {
            let pod = found.value();
            let of_pod = |field: &str| pod["spec"][field].as_str().unwrap_or_default().to_owned();
            if of_pod("serviceAccountName") != account.name {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    account.name
                )));
            }
            let node = of_pod("nodeName");
            if !node.is_empty() {
                let uid = server.get_stored("", "nodes", "", &node).await?.map(|n| n.uid.clone()).unwrap_or_default();
                subject.node = Some(Bound { name: node, uid });
            }
            subject.pod = Some(bound);
        }
        "secrets" => subject.secret = Some(bound),
        _ => subject.node = Some(bound),
    }
    Ok(subject)
}

fn answer(resolved: &Resolved, review: &TokenRequest, token: &str, expires_s: i64) -> Result<Response<Body>, ApiError> {
    let body = json!({
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {
            "name": resolved.name, "namespace": resolved.namespace, "creationTimestamp": scaleup_api::time::now(),
        },
        "spec": review.spec,
        "status": {"token": token, "expirationTimestamp": timestamp(expires_s).to_string()},
    });
    let response = Response::builder().status(StatusCode::CREATED).header(CONTENT_TYPE, "application/json");
    response.body(Body::from(body.to_string())).map_err(ApiError::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_bounded_and_defaulted() {
        fn check(spec: Value, expected: Result<(usize, i64), &str>) {
            let review: TokenRequest = serde_json::from_value(json!({"spec": spec})).unwrap();
            match (validate(&review, &["api".into()]), expected) {
                (Ok((audiences, lifetime)), Ok(expected)) => assert_eq!((audiences.len(), lifetime), expected),
                (Err(error), Err(text)) => {
                    assert_eq!(error.code.as_u16(), 422);
                    assert!(error.message.contains(text), "{}", error.message);
                }
                (got, expected) => panic!("{spec}: {got:?} instead of {expected:?}"),
            }
        }
        check(json!({"audiences": []}), Ok((1, 3600)));
        check(json!({"audiences": ["a", "b"], "expirationSeconds": 600}), Ok((2, 600)));
        check(
            json!({"audiences": [], "expirationSeconds": 599}),
            Err("may not specify a duration less than 10 minutes"),
        );
        check(json!({"audiences": [], "expirationSeconds": -1}), Err("spec.expirationSeconds: Invalid value: -1"));
        check(json!({"audiences": [], "expirationSeconds": i64::MAX}), Err("larger than 2^32 seconds"));
        check(json!({"audiences": vec!["a"; 17]}), Err("Too many"));
        check(json!({"audiences": ["a".repeat(2000)]}), Err("Too long"));
    }
}
