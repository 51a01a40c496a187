//! `serviceaccounts/token`.

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::{Request, Response};

use crate::error::ApiError;
use crate::handler::{Resolved, SubresourceHandler};

/// Issues tokens.
pub struct TokenRequestHandler;

#[async_trait]
impl SubresourceHandler for TokenRequestHandler {
    async fn handle(
        &self,
        _: &Arc<crate::Server>,
        _: Resolved,
        _: Request<Body>,
    ) -> Result<Response<Body>, ApiError> {
        Err(ApiError::unavailable("not ready"))
    }
}
