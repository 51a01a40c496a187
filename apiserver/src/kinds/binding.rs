//! The pods/binding subresource.

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::{Request, Response};

use crate::error::ApiError;
use crate::handler::{Resolved, SubresourceHandler};

/// pods/binding.
pub struct BindingHandler;

#[async_trait]
impl SubresourceHandler for BindingHandler {
    async fn handle(
        &self,
        _server: &Arc<crate::Server>,
        _resolved: Resolved,
        _request: Request<Body>,
    ) -> Result<Response<Body>, ApiError> {
        Err(ApiError::no_such_path())
    }
}
