//! `NamespaceLifecycle`: nothing is created in a namespace that is missing or terminating; three namespaces stay forever.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Attributes, Plugin, text};
use crate::cache::{Cached, Reader};
use crate::error::{ApiError, Cause, Details, GroupResource};
use crate::registry::Storage;

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) struct NamespaceLifecycle;

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    async fn mutate(&self, server: &Arc<crate::Server>, attributes: &mut Attributes<'_>) -> Result<(), ApiError> {
        if !concerned(attributes) {
            return Ok(());
        }
        // Almost always the cache says yes; only a refusal must be right to the last write.
        if check(attributes, server.caches.get("", "namespaces", "", attributes.namespace).as_deref()).is_ok() {
            return Ok(());
        }
        let namespace = server.get_stored("", "namespaces", "", attributes.namespace).await?;
        check(attributes, namespace.as_deref())
    }

    async fn validate(&self, _: &Arc<crate::Server>, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        let immortal = attributes.is("", "namespaces") && attributes.deletes() && IMMORTAL.contains(&attributes.name);
        if immortal { Err(attributes.forbidden("this namespace may not be deleted")) } else { Ok(()) }
    }
}

/// Creates and updates of stored objects in a namespace.
fn concerned(attributes: &Attributes<'_>) -> bool {
    !attributes.namespace.is_empty()
        && attributes.resource.namespaced()
        && !attributes.deletes()
        && !matches!(attributes.resource.storage, Storage::Virtual(_))
}

fn terminating(namespace: &Cached) -> bool {
    match namespace.field("status.phase") {
        Some(phase) => phase == "Terminating",
        None => text(&namespace.value(), &["status", "phase"]) == "Terminating",
    }
}

fn check(attributes: &Attributes<'_>, namespace: Option<&Cached>) -> Result<(), ApiError> {
    let name = attributes.namespace;
    let Some(namespace) = namespace else {
        let gr = GroupResource { group: String::new(), resource: "namespaces".into() };
        return Err(ApiError::not_found(&gr, name));
    };
    // A subresource is written to an object that is there already.
    let creates = attributes.creates() && attributes.subresource.is_none();
    if !creates || !terminating(namespace) {
        return Ok(());
    }
    let mut error = attributes
        .forbidden(format_args!("unable to create new content in namespace {name} because it is being terminated"));
    let mut details: Details = error.details.take().map(|d| *d).unwrap_or_default();
    details.causes.push(Cause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {name} is being terminated"),
        field: "metadata.namespace".into(),
    });
    error.details = Some(Box::new(details));
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;
    use serde_json::{Value, json};

    fn pod() -> Value {
        json!({"metadata": {"name": "p", "namespace": "web"}})
    }

    #[test]
    fn content_needs_a_living_namespace() {
        let namespace = |phase: &str| {
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "web"}, "status": {"phase": phase}});
            Cached::from_value(&object, 1, &[]).unwrap()
        };
        let (active, terminating) = (namespace("Active"), namespace("Terminating"));
        let create = || Write::create("", "Pod", "pods", pod());
        assert!(create().with(|a| check(a, Some(&active))).is_ok());
        let missing = create().with(|a| check(a, None)).unwrap_err();
        assert_eq!((missing.code.as_u16(), missing.message.as_str()), (404, r#"namespaces "web" not found"#));
        let refused = create().with(|a| check(a, Some(&terminating))).unwrap_err();
        assert_eq!(
            (refused.code.as_u16(), refused.message.as_str()),
            (
                403,
                r#"pods "p" is forbidden: unable to create new content in namespace web because it is being terminated"#
            )
        );
        assert_eq!(refused.details.unwrap().causes[0].reason, "NamespaceTerminating");
        assert!(Write::update("", "Pod", "pods", pod(), pod()).with(|a| check(a, Some(&terminating))).is_ok());
        assert!(create().sub("eviction").with(|a| check(a, Some(&terminating))).is_ok());
    }

    #[test]
    fn only_writes_of_content_are_looked_at() {
        assert!(Write::create("", "Pod", "pods", pod()).with(|a| concerned(a)));
        assert!(!Write::delete("", "Pod", "pods", pod()).with(|a| concerned(a)));
        assert!(
            !Write::create("", "Namespace", "namespaces", json!({"metadata": {"name": "x"}})).with(|a| concerned(a))
        );
    }
}
