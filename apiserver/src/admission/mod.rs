//! Admission: the chain that may change or refuse a write after authorization, before storage.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use crate::error::ApiError;
use crate::registry::{Resource, Verb};
use crate::user::UserInfo;

/// A write under admission (`admission.k8s.io` AdmissionRequest).
pub struct Attributes<'a> {
    /// The row.
    pub resource: &'a Resource,
    /// Subresource, if any.
    pub subresource: Option<&'a str>,
    /// Create, Update, Patch (seen as Update by plugins), Delete.
    pub verb: Verb,
    /// Namespace; empty for cluster scope.
    pub namespace: &'a str,
    /// Name; may be empty on create with `generateName`.
    pub name: &'a str,
    /// Who asks.
    pub user: &'a UserInfo,
    /// The new object, decoded and defaulted; `Null` on delete.
    pub object: &'a mut Value,
    /// The stored object, on update and delete.
    pub old: Option<&'a Value>,
    /// Nothing will be stored.
    pub dry_run: bool,
    /// Warnings to send with the answer.
    pub warnings: &'a mut Vec<String>,
}

/// One step of the chain.
#[async_trait]
pub trait Plugin: Send + Sync + 'static {
    /// Name as it appears in messages and metrics, e.g. `NodeRestriction`.
    fn name(&self) -> &'static str;
    /// May change `object`.
    async fn mutate(&self, server: &Arc<crate::Server>, attributes: &mut Attributes<'_>) -> Result<(), ApiError> {
        let _ = (server, attributes);
        Ok(())
    }
    /// May only refuse. Runs after defaults were filled again and validation passed.
    async fn validate(&self, server: &Arc<crate::Server>, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        let _ = (server, attributes);
        Ok(())
    }
}

/// The plugins in order.
pub struct Chain {
    plugins: Vec<Box<dyn Plugin>>,
}

impl Chain {
    /// In this order.
    pub fn new(plugins: Vec<Box<dyn Plugin>>) -> Self {
        Self { plugins }
    }
    /// The default plugins.
    pub fn standard() -> Self {
        Self::new(Vec::new())
    }
    /// Lets every plugin change the object.
    pub async fn mutate(&self, server: &Arc<crate::Server>, attributes: &mut Attributes<'_>) -> Result<(), ApiError> {
        for plugin in &self.plugins {
            plugin.mutate(server, attributes).await?;
        }
        Ok(())
    }
    /// Lets every plugin refuse.
    pub async fn validate(&self, server: &Arc<crate::Server>, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        for plugin in &self.plugins {
            plugin.validate(server, attributes).await?;
        }
        Ok(())
    }
}
