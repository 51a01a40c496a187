//! Deployment.

use crate::registry::Rules;
use k8s_openapi::api::apps::v1::Deployment;

/// Rules of Deployments.
pub struct DeploymentRules;

impl Rules for DeploymentRules {
    type Object = Deployment;
}
