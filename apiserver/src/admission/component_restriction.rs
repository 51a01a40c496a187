//! `ComponentRestriction`: the EndpointSlices that a load balancer or scheduler writes say where platform components are, and
//! nothing else. Ours; RBAC cannot tell them from those of the system's Services, which traffic follows.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::{Attributes, Plugin, text};
use crate::auth::lb::LB_USER;
use crate::error::ApiError;

/// Users that are held to it. Controllers write the slices of all Services.
const USERS: [&str; 2] = [LB_USER, "system:kube-scheduler"];
/// Labels that such a slice carries, and what their values begin with.
const LABELS: [(&str, &str); 3] = [
    ("app.kubernetes.io/part-of", "scaleup"),
    ("endpointslice.kubernetes.io/managed-by", "platform.scaleup.dev"),
    // A Service of the user's that is called so, in kube-system, has asked for it.
    ("kubernetes.io/service-name", "scaleup-"),
];

pub(super) struct ComponentRestriction;

#[async_trait]
impl Plugin for ComponentRestriction {
    fn name(&self) -> &'static str {
        "ComponentRestriction"
    }
    async fn validate(&self, _: &Arc<crate::Server>, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        check(attributes)
    }
}

fn check(a: &Attributes<'_>) -> Result<(), ApiError> {
    if !a.is_kind("discovery.k8s.io", "endpointslices") || !USERS.contains(&a.user.name.as_str()) {
        return Ok(());
    }
    let new = (!a.deletes()).then_some(&*a.object);
    if new.into_iter().chain(a.old).all(is_component) {
        return Ok(());
    }
    Err(a.forbidden(format_args!(
        "{} can only write EndpointSlices of platform components, which carry the labels {}",
        a.user.name,
        LABELS.map(|(name, _)| name).join(", ")
    )))
}

fn is_component(slice: &Value) -> bool {
    LABELS.iter().all(|(label, begin)| text(slice, &["metadata", "labels", label]).starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;
    use crate::auth::testing::user;
    use serde_json::json;

    fn slice(service: &str, manager: &str) -> Value {
        json!({"metadata": {"name": "s", "namespace": "kube-system", "labels": {
            "app.kubernetes.io/part-of": "scaleup", "endpointslice.kubernetes.io/managed-by": manager,
            "kubernetes.io/service-name": service,
        }}})
    }

    #[track_caller]
    fn ask(by: &str, mut write: Write, allowed: bool) {
        write = write.by(user(by, &[]));
        assert_eq!(write.with(|a| check(a)).is_ok(), allowed);
    }

    #[test]
    fn a_load_balancer_writes_about_components_only() {
        let own = || slice("scaleup-lb", "platform.scaleup.dev");
        let dns = || slice("kube-dns", "endpointslice-controller.k8s.io");
        let create = |object| Write::create("discovery.k8s.io", "EndpointSlice", "endpointslices", object);
        let update = |old, new| Write::update("discovery.k8s.io", "EndpointSlice", "endpointslices", old, new);
        for by in USERS {
            ask(by, create(own()), true);
            ask(by, update(own(), own()), true);
            ask(by, create(dns()), false);
            ask(by, create(slice("kube-dns", "platform.scaleup.dev")), false);
            ask(by, update(dns(), own()), false);
            ask(by, update(own(), dns()), false);
            ask(by, create(json!({"metadata": {"name": "s"}})), false);
        }
        ask("system:kube-controller-manager", create(dns()), true);
        ask(LB_USER, Write::create("", "Service", "services", dns()), true);
    }
}
