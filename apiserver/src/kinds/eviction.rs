//! `pods/eviction` (policy/v1): a deletion that disruption budgets may hold up. There are no budgets yet, so none does.

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::{Request, Response, StatusCode};
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

use super::field;
use super::posted::{Posted, read};
use crate::error::{ApiError, FieldError};
use crate::handler::delete::{self, DeleteOptions, Propagation};
use crate::handler::{Context, Resolved, SubresourceHandler};
use crate::registry::Verb;

/// Evicts pods.
pub struct EvictionHandler;

#[async_trait]
impl SubresourceHandler for EvictionHandler {
    async fn handle(
        &self,
        server: &Arc<crate::Server>,
        resolved: Resolved,
        request: Request<Body>,
    ) -> Result<Response<Body>, ApiError> {
        let posted: Posted<Eviction> = read(server, &resolved, request).await?;
        let mut options = options(posted.object.delete_options.as_ref())?;
        options.dry_run |= posted.dry_run;
        let pod = Resolved { verb: Verb::Delete, subresource: None, ..resolved.clone() };
        delete::delete_object(&mut Context::internal(server, pod), &options).await?;
        posted.answer(server, resolved, StatusCode::CREATED)
    }
}

/// The options of the deletion, as DELETE would take them.
fn options(given: Option<&meta::DeleteOptions>) -> Result<DeleteOptions, ApiError> {
    let Some(given) = given else { return Ok(DeleteOptions::default()) };
    let mut errors = Vec::new();
    let propagation = match (given.propagation_policy.as_deref(), given.orphan_dependents) {
        (Some(policy), Some(_)) => {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid("deleteOptions.propagationPolicy", policy, why));
            None
        }
        (Some("Orphan"), None) | (None, Some(true)) => Some(Propagation::Orphan),
        (Some("Background"), None) | (None, Some(false)) => Some(Propagation::Background),
        (Some("Foreground"), None) => Some(Propagation::Foreground),
        (Some(other), None) => {
            let policies = &["Foreground", "Background", "Orphan", "nil"];
            errors.push(FieldError::not_supported("deleteOptions.propagationPolicy", other, policies));
            None
        }
        (None, None) => None,
    };
    let dry_run = field::list(&given.dry_run);
    if let Some(other) = dry_run.iter().find(|d| *d != "All") {
        errors.push(FieldError::not_supported("deleteOptions.dryRun", other.as_str(), &["All"]));
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid("policy", "Eviction", "", &errors));
    }
    let preconditions = given.preconditions.as_ref();
    Ok(DeleteOptions {
        // As for DELETE: a negative period is one second.
        grace_s: given.grace_period_seconds.map(|s| if s < 0 { 1 } else { s }),
        propagation,
        uid: preconditions.and_then(|p| p.uid.clone()),
        version: preconditions.and_then(|p| p.resource_version.clone()),
        dry_run: !dry_run.is_empty(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::field::test::yaml;
    use super::*;

    fn parse(text: &str) -> Result<DeleteOptions, String> {
        let given: meta::DeleteOptions = serde_json::from_value(yaml(text)).expect("test options decode");
        options(Some(&given)).map_err(|e| e.message)
    }

    #[test]
    fn options_are_passed_on() {
        let got =
            parse("{gracePeriodSeconds: 5, dryRun: [All], propagationPolicy: Foreground, preconditions: {uid: u}}");
        let got = got.expect("valid");
        assert_eq!((got.grace_s, got.dry_run, got.uid.as_deref()), (Some(5), true, Some("u")));
        assert_eq!(got.propagation, Some(Propagation::Foreground));
        assert_eq!(parse("{gracePeriodSeconds: -5}").expect("valid").grace_s, Some(1));
        assert_eq!(parse("{orphanDependents: true}").expect("valid").propagation, Some(Propagation::Orphan));
        assert_eq!(
            parse("{propagationPolicy: Later, dryRun: [Some]}").expect_err("refused"),
            "Eviction.policy \"\" is invalid: [deleteOptions.propagationPolicy: Unsupported value: \"Later\": supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\", deleteOptions.dryRun: Unsupported value: \"Some\": supported values: \"All\"]"
        );
        assert!(parse("{propagationPolicy: Orphan, orphanDependents: true}").is_err());
    }
}
