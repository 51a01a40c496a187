//! Access, rules, token and self reviews.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use crate::error::ApiError;
use crate::handler::{Resolved, VirtualCreate};

macro_rules! reviewer {
    ($name:ident) => {
        /// Reviewer.
        pub struct $name;
        #[async_trait]
        impl VirtualCreate for $name {
            async fn create(&self, _: &Arc<crate::Server>, _: &Resolved, object: Value) -> Result<Value, ApiError> {
                Ok(object)
            }
        }
    };
}
reviewer!(SelfSubjectAccessReviewer);
reviewer!(SubjectAccessReviewer);
reviewer!(LocalSubjectAccessReviewer);
reviewer!(SelfSubjectRulesReviewer);
reviewer!(TokenReviewer);
reviewer!(SelfSubjectReviewer);
