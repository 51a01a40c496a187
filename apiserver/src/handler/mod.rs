//! The generic handler: resolve → authenticate → authorize → decode → mutate → default → validate → store → render.

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::{Request, Response};
use serde_json::Value;

use crate::error::ApiError;
use crate::registry::{Resource, Verb};
use crate::user::UserInfo;

/// A request that was resolved to a row, authenticated and authorized.
#[derive(Clone)]
pub struct Resolved {
    /// The row.
    pub resource: Arc<Resource>,
    /// Verb as RBAC sees it.
    pub verb: Verb,
    /// Namespace; empty for cluster scope or all namespaces.
    pub namespace: String,
    /// Object name; empty for collections.
    pub name: String,
    /// Subresource, if the path named one.
    pub subresource: Option<String>,
    /// Who asks.
    pub user: Arc<UserInfo>,
}

/// A subresource with behaviour of its own (`pods/binding`, `pods/log`, `serviceaccounts/token`).
#[async_trait]
pub trait SubresourceHandler: Send + Sync + 'static {
    /// Answers the request; authorization for `resource/subresource` is done. Bodies must be read with [`crate::Server::read_body`].
    async fn handle(
        &self,
        server: &Arc<crate::Server>,
        resolved: Resolved,
        request: Request<Body>,
    ) -> Result<Response<Body>, ApiError>;
}

/// A kind that is only computed (`SelfSubjectAccessReview`, `TokenReview`).
#[async_trait]
pub trait VirtualCreate: Send + Sync + 'static {
    /// The answer to `create`; `object` is decoded and defaulted.
    async fn create(&self, server: &Arc<crate::Server>, resolved: &Resolved, object: Value) -> Result<Value, ApiError>;
}

/// Stateful steps around writes of a kind (cluster IP and node port allocation).
#[async_trait]
pub trait WriteHooks: Send + Sync + 'static {
    /// Before validation of a create (`old` is `None`) or update: allocates into `object`. With `dry_run` nothing may be kept.
    async fn before_write(
        &self,
        server: &Arc<crate::Server>,
        object: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<(), ApiError>;
    /// After the write: `new` is what is stored now (`None`: deleted, or the write failed and never happened), `old` what was
    /// stored before, `attempted` what `before_write` produced. Releases what neither holds.
    async fn after_write(
        &self,
        server: &Arc<crate::Server>,
        attempted: Option<&Value>,
        old: Option<&Value>,
        new: Option<&Value>,
    );
}
