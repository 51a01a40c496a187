//! Admission: the chain that may change or refuse a write after authorization, before storage.
//!
//! Mutating steps run on the decoded object before it is defaulted again and validated; validating steps run on exactly
//! what will be stored (and on deletions). Plugins are stateless: what they need to know, they read from the cache.
//! Users' own plugins ([`policies`]) come last in both halves.

mod component_restriction;
mod default_ingress_class;
mod default_toleration_seconds;
mod namespace_lifecycle;
mod node_restriction;
mod notes;
mod owner_references;
mod plugin_caps;
mod policies;
mod priority;
mod rbac_escalation;
mod service_account;
mod taint_nodes;
#[cfg(test)]
mod testing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use serde_json::Value;

pub use self::notes::Notes;
pub use self::policies::Policies;
use crate::error::ApiError;
use crate::registry::{Resource, Verb};
use crate::user::UserInfo;

/// How long one plugin may take over one write; the request fails with a timeout after that.
pub const PLUGIN_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// Warnings to send with the answer, if the write succeeds.
    pub warnings: &'a mut Vec<String>,
    /// For the answer, whatever it is, and the audit log.
    pub notes: &'a Notes,
}

impl Attributes<'_> {
    /// Whether the write is to this kind itself, not to a subresource.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.subresource.is_none() && self.is_kind(group, plural)
    }
    /// Whether the write is to this kind or one of its subresources.
    pub fn is_kind(&self, group: &str, plural: &str) -> bool {
        self.resource.plural == plural && self.resource.group == group
    }
    /// Whether it is a create.
    pub fn creates(&self) -> bool {
        self.verb == Verb::Create
    }
    /// Whether it is an update or patch.
    pub fn updates(&self) -> bool {
        matches!(self.verb, Verb::Update | Verb::Patch)
    }
    /// Whether it deletes.
    pub fn deletes(&self) -> bool {
        matches!(self.verb, Verb::Delete | Verb::DeleteCollection)
    }

    /// `admission.NewForbidden`: 403 naming the object as far as it has a name.
    pub fn forbidden(&self, why: impl std::fmt::Display) -> ApiError {
        let meta = |field| text(self.object, &["metadata", field]);
        let name = [self.name, meta("name"), meta("generateName")].into_iter().find(|n| !n.is_empty());
        ApiError::forbidden(&self.resource.group_resource(), name.unwrap_or("Unknown"), why)
    }
}

/// The string at a path of fields; empty if there is none.
pub(crate) fn text<'v>(value: &'v Value, path: &[&str]) -> &'v str {
    path.iter().try_fold(value, |v, field| v.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// The list at a path of fields; empty if there is none.
pub(crate) fn list<'v>(value: &'v Value, path: &[&str]) -> &'v [Value] {
    let found = path.iter().try_fold(value, |v, field| v.get(field)).and_then(Value::as_array);
    found.map(Vec::as_slice).unwrap_or_default()
}

/// Appends to the list in a field, which may be absent or null.
pub(crate) fn push(object: &mut Value, field: &str, item: Value) {
    match object[field].as_array_mut() {
        Some(list) => list.push(item),
        None => object[field] = Value::Array(vec![item]),
    }
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

/// Name of users' plugins in metrics, all together.
const USERS: &str = "WasmPlugin";

/// Upstream's buckets.
const BUCKETS_S: [f64; 7] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0];

/// `type` is `admit` for the mutating half and `validate` for the other, as upstream labels them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    name: &'static str,
    operation: &'static str,
    rejected: bool,
    r#type: &'static str,
}

/// The plugins in order, and what they cost.
pub struct Chain {
    plugins: Vec<Box<dyn Plugin>>,
    policies: Policies,
    durations: Family<StepLabels, Histogram>,
}

impl Chain {
    /// In this order.
    pub fn new(plugins: Vec<Box<dyn Plugin>>, policies: Policies) -> Self {
        Self { plugins, policies, durations: Family::new_with_constructor(|| Histogram::new(BUCKETS_S)) }
    }

    /// Registers `apiserver_admission_controller_admission_duration_seconds` and what users' plugins count.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "apiserver_admission_controller_admission_duration_seconds",
            "Time of an admission plugin for one write",
            self.durations.clone(),
        );
        self.policies.register(registry);
    }

    /// The default plugins, in upstream's order, and those of users.
    pub fn standard(users: Arc<scaleup_plugins::Registry>) -> Self {
        let plugins: Vec<Box<dyn Plugin>> = vec![
            Box::new(namespace_lifecycle::NamespaceLifecycle),
            Box::new(service_account::ServiceAccount),
            Box::new(node_restriction::NodeRestriction),
            Box::new(component_restriction::ComponentRestriction),
            Box::new(taint_nodes::TaintNodesByCondition),
            Box::new(priority::Priority),
            Box::new(default_toleration_seconds::DefaultTolerationSeconds),
            Box::new(plugin_caps::PluginCaps),
            Box::new(default_ingress_class::DefaultIngressClass),
            Box::new(owner_references::OwnerReferencesPermissionEnforcement),
            Box::new(rbac_escalation::RbacEscalation),
        ];
        Self::new(plugins, Policies::new(users))
    }

    /// Lets every plugin change the object.
    pub async fn mutate(&self, server: &Arc<crate::Server>, attributes: &mut Attributes<'_>) -> Result<(), ApiError> {
        self.mutate_built_in(server, attributes).await?;
        let Some(mut round) = self.policies.round(server, attributes) else { return Ok(()) };
        let (started, verb) = (Instant::now(), attributes.verb);
        let result = self.mutate_by_users(server, attributes, &mut round).await;
        self.note(USERS, "admit", verb, started, result.is_err());
        result
    }

    async fn mutate_by_users(
        &self,
        server: &Arc<crate::Server>,
        attributes: &mut Attributes<'_>,
        round: &mut policies::Round,
    ) -> Result<(), ApiError> {
        self.policies.mutate(server, attributes, round).await?;
        if !round.has_changed() {
            return Ok(());
        }
        let before = attributes.object.clone();
        self.mutate_built_in(server, attributes).await?;
        round.again(before != *attributes.object);
        self.policies.mutate(server, attributes, round).await
    }

    async fn mutate_built_in(
        &self,
        server: &Arc<crate::Server>,
        attributes: &mut Attributes<'_>,
    ) -> Result<(), ApiError> {
        for plugin in &self.plugins {
            let (started, verb) = (Instant::now(), attributes.verb);
            let result = bounded(PLUGIN_TIMEOUT, plugin.name(), plugin.mutate(server, attributes)).await;
            self.note(plugin.name(), "admit", verb, started, result.is_err());
            result?;
        }
        Ok(())
    }

    /// Lets every plugin refuse.
    pub async fn validate(&self, server: &Arc<crate::Server>, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        for plugin in &self.plugins {
            let started = Instant::now();
            let result = bounded(PLUGIN_TIMEOUT, plugin.name(), plugin.validate(server, attributes)).await;
            self.note(plugin.name(), "validate", attributes.verb, started, result.is_err());
            result?;
        }
        let started = Instant::now();
        if let Some(asked) = self.policies.round(server, attributes) {
            let result = self.policies.validate(server, attributes, &asked).await;
            self.note(USERS, "validate", attributes.verb, started, result.is_err());
            result?;
        }
        Ok(())
    }

    fn note(&self, name: &'static str, r#type: &'static str, verb: Verb, started: Instant, rejected: bool) {
        let operation = match verb {
            Verb::Create => "CREATE",
            Verb::Delete | Verb::DeleteCollection => "DELETE",
            _ => "UPDATE",
        };
        let labels = StepLabels { name, operation, rejected, r#type };
        self.durations.get_or_create(&labels).observe(started.elapsed().as_secs_f64());
    }
}

async fn bounded(
    limit: Duration,
    name: &str,
    step: impl Future<Output = Result<(), ApiError>>,
) -> Result<(), ApiError> {
    tokio::time::timeout(limit, step).await.unwrap_or_else(|_| {
        Err(ApiError::timeout(format_args!("admission plugin {name:?} failed to complete in time")))
    })
}

#[cfg(test)]
mod tests {
    use super::testing::Write;
    use super::*;
    use serde_json::json;

    #[test]
    fn refusals_name_the_object_as_far_as_possible() {
        let check = |object: Value, expected: &str| {
            let message = Write::create("", "Pod", "pods", object).with(|a| a.forbidden("no")).message;
            assert_eq!(message, expected);
        };
        check(json!({"metadata": {"name": "w"}}), r#"pods "w" is forbidden: no"#);
        check(json!({"metadata": {"generateName": "w-"}}), r#"pods "w-" is forbidden: no"#);
        check(json!({}), r#"pods "Unknown" is forbidden: no"#);
    }

    #[test]
    fn steps_are_counted_under_upstreams_name() {
        let (chain, mut registry) = (Chain::new(Vec::new(), Policies::new(Arc::default())), Registry::default());
        chain.register(&mut registry);
        chain.note("Priority", "admit", Verb::Create, Instant::now(), false);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let labels = r#"name="Priority",operation="CREATE",rejected="false",type="admit""#;
        assert!(text.contains(&format!("admission_duration_seconds_count{{{labels}}} 1")), "{text}");
    }

    #[tokio::test]
    async fn a_stuck_plugin_is_a_timeout() {
        let error = bounded(Duration::from_millis(1), "Stuck", std::future::pending()).await.unwrap_err();
        assert_eq!((error.code.as_u16(), error.reason), (504, "Timeout"));
        assert!(error.message.contains("\"Stuck\""));
    }
}
