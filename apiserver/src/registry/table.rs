//! The built-in rows. Adding a kind is adding a row here and its rules in `kinds/`.
//!
//! The order is the order of discovery: the core group first, then groups as upstream prefers them.

use std::borrow::Cow;
use std::sync::Arc;

use scaleup_api::kind::Object;

use super::{
    ALL_VERBS, AnyRules, Column, Registry, Resource, Rules, Scope, SelectableField, Storage, Subresource,
    SubresourceKind, Text, Typed, Verb,
};
use crate::auth::{reviews, token_request};
use crate::handler::{SubresourceHandler, VirtualCreate};
use crate::kinds;
use crate::kinds::custom::{CustomRules, in_version_of};
use crate::present::columns;
use crate::streaming;

/// Every built-in kind.
pub fn builtin() -> Registry {
    let mut rows = core();
    rows.extend(apps());
    rows.extend(events_coordination_discovery_scheduling());
    rows.extend(networking());
    rows.extend(rbac());
    rows.extend(reviews());
    rows.extend(gateway());
    rows.extend(traffic());
    rows.extend(policy());
    Registry::new(rows)
}

const fn text(text: &'static str) -> Text {
    Cow::Borrowed(text)
}

const ALL: &[Text] = &[text("all")];
const GATEWAY_API: &[Text] = &[text("gateway-api")];

/// A row with nothing special about it; the functions below change what is.
fn row(group: &'static str, kind: &'static str, plural: &'static str, rules: impl Rules) -> Resource {
    let rules: Arc<dyn AnyRules> = Arc::new(Typed(rules));
    Resource {
        group: group.into(),
        version: "v1".into(),
        kind: kind.into(),
        plural: plural.into(),
        singular: kind.to_lowercase().into(),
        short_names: Cow::Borrowed(&[]),
        categories: Cow::Borrowed(&[]),
        scope: Scope::Namespaced,
        verbs: ALL_VERBS,
        subresources: Vec::new(),
        storage: Storage::Own,
        selectable: &[],
        columns: columns::DEFAULT,
        has_generation: false,
        has_status: false,
        rules,
        hooks: None,
    }
}

impl Resource {
    fn short(mut self, names: &'static [Text]) -> Self {
        self.short_names = Cow::Borrowed(names);
        self
    }
    fn in_all(mut self) -> Self {
        self.categories = Cow::Borrowed(ALL);
        self
    }
    fn version(mut self, version: &'static str) -> Self {
        self.version = version.into();
        self
    }
    /// Another version of a row of the same name, which is stored in the version of `Stored`.
    fn version_of<Stored: Object, Served: Object>(self) -> Self {
        Self {
            version: Served::VERSION.into(),
            storage: Storage::Alias {
                of: (Stored::GROUP, Stored::URL_PATH_SEGMENT),
                to_stored: in_version_of::<Stored>,
                from_stored: in_version_of::<Served>,
            },
            ..self
        }
    }
    fn cluster(mut self) -> Self {
        self.scope = Scope::Cluster;
        self
    }
    fn columns(mut self, columns: &'static [Column]) -> Self {
        self.columns = columns;
        self
    }
    fn selectable(mut self, fields: &'static [SelectableField]) -> Self {
        self.selectable = fields;
        self
    }
    fn generation(mut self) -> Self {
        self.has_generation = true;
        self
    }
    fn status(mut self) -> Self {
        self.has_status = true;
        self.sub(part("status", SubresourceKind::Status))
    }
    fn sub(mut self, subresource: Subresource) -> Self {
        self.subresources.push(subresource);
        self
    }
}

const READ_WRITE: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];
const CREATE: &[Verb] = &[Verb::Create];
const CONNECT: &[Verb] = &[Verb::Create, Verb::Get];
const GET: &[Verb] = &[Verb::Get];

fn part(name: &'static str, kind: SubresourceKind) -> Subresource {
    Subresource { name, verbs: READ_WRITE, gvk: None, kind }
}

fn scale() -> Subresource {
    Subresource { gvk: Some(("autoscaling", "v1", "Scale")), ..part("scale", SubresourceKind::Scale) }
}

fn custom(name: &'static str, verbs: &'static [Verb], handler: impl SubresourceHandler) -> Subresource {
    Subresource { name, verbs, gvk: None, kind: SubresourceKind::Custom(Arc::new(handler)) }
}

fn core() -> Vec<Resource> {
    let finalize = Subresource { verbs: &[Verb::Update], ..part("finalize", SubresourceKind::Finalize) };
    let binding =
        Subresource { gvk: Some(("", "v1", "Binding")), ..custom("binding", CREATE, kinds::binding::BindingHandler) };
    let eviction = Subresource {
        gvk: Some(("policy", "v1", "Eviction")),
        ..custom("eviction", CREATE, kinds::eviction::EvictionHandler)
    };
    let token = Subresource {
        gvk: Some(("authentication.k8s.io", "v1", "TokenRequest")),
        ..custom("token", CREATE, token_request::TokenRequestHandler)
    };
    vec![
        row("", "ConfigMap", "configmaps", kinds::configmap::ConfigMapRules)
            .short(const { &[text("cm")] })
            .columns(columns::CONFIGMAPS),
        row("", "Endpoints", "endpoints", kinds::endpoints::EndpointsRules)
            .short(const { &[text("ep")] })
            .columns(columns::ENDPOINTS),
        row("", "Event", "events", kinds::event::CoreEventRules)
            .short(const { &[text("ev")] })
            .columns(columns::EVENTS)
            .selectable(kinds::event::SELECTABLE),
        row("", "Namespace", "namespaces", kinds::namespace::NamespaceRules)
            .short(const { &[text("ns")] })
            .cluster()
            .columns(columns::NAMESPACES)
            .selectable(kinds::namespace::SELECTABLE)
            .status()
            .sub(finalize),
        row("", "Node", "nodes", kinds::node::NodeRules)
            .short(const { &[text("no")] })
            .cluster()
            .columns(columns::NODES)
            .selectable(kinds::node::SELECTABLE)
            .status(),
        row("", "Pod", "pods", kinds::pod::PodRules)
            .short(const { &[text("po")] })
            .in_all()
            .columns(columns::PODS)
            .selectable(kinds::pod::SELECTABLE)
            .status()
            .sub(custom("attach", CONNECT, streaming::AttachHandler))
            .sub(binding)
            .sub(eviction)
            .sub(custom("exec", CONNECT, streaming::ExecHandler))
            .sub(custom("log", GET, streaming::LogHandler)),
        row("", "Secret", "secrets", kinds::secret::SecretRules)
            .columns(columns::SECRETS)
            .selectable(kinds::secret::SELECTABLE),
        Resource {
            hooks: Some(Arc::new(kinds::service::ServiceHooks)),
            ..row("", "Service", "services", kinds::service::ServiceRules)
                .short(const { &[text("svc")] })
                .in_all()
                .columns(columns::SERVICES)
                .selectable(kinds::service::SELECTABLE)
                .status()
        },
        row("", "ServiceAccount", "serviceaccounts", kinds::serviceaccount::ServiceAccountRules)
            .short(const { &[text("sa")] })
            .columns(columns::SERVICEACCOUNTS)
            .sub(token),
    ]
}

fn apps() -> Vec<Resource> {
    vec![
        row("apps", "Deployment", "deployments", kinds::deployment::DeploymentRules)
            .short(const { &[text("deploy")] })
            .in_all()
            .columns(columns::DEPLOYMENTS)
            .generation()
            .status()
            .sub(scale()),
        row("apps", "ReplicaSet", "replicasets", kinds::replicaset::ReplicaSetRules)
            .short(const { &[text("rs")] })
            .in_all()
            .columns(columns::REPLICASETS)
            .selectable(kinds::replicaset::SELECTABLE)
            .generation()
            .status()
            .sub(scale()),
    ]
}

fn events_coordination_discovery_scheduling() -> Vec<Resource> {
    let aliased = Storage::Alias {
        of: ("", "events"),
        to_stored: kinds::event::to_stored,
        from_stored: kinds::event::from_stored,
    };
    vec![
        Resource {
            storage: aliased,
            ..row("events.k8s.io", "Event", "events", kinds::event::EventRules)
                .short(const { &[text("ev")] })
                .columns(columns::EVENTS)
                .selectable(kinds::event::EVENTS_SELECTABLE)
        },
        row("coordination.k8s.io", "Lease", "leases", kinds::lease::LeaseRules).columns(columns::LEASES),
        row("discovery.k8s.io", "EndpointSlice", "endpointslices", kinds::endpointslice::EndpointSliceRules)
            .columns(columns::ENDPOINTSLICES)
            .generation(),
        row("scheduling.k8s.io", "PriorityClass", "priorityclasses", kinds::priorityclass::PriorityClassRules)
            .short(const { &[text("pc")] })
            .cluster()
            .columns(columns::PRIORITYCLASSES)
            .generation(),
    ]
}

fn networking() -> Vec<Resource> {
    let group = "networking.k8s.io";
    vec![
        row(group, "Ingress", "ingresses", kinds::ingress::IngressRules)
            .short(const { &[text("ing")] })
            .columns(columns::INGRESSES)
            .generation()
            .status(),
        row(group, "IngressClass", "ingressclasses", kinds::ingress::IngressClassRules)
            .cluster()
            .columns(columns::INGRESSCLASSES)
            .generation(),
    ]
}

/// A row of a kind that `scaleup-api` declares.
fn custom_row<T>() -> Resource
where
    CustomRules<T>: Rules,
    T: Object,
{
    row(T::GROUP, T::KIND, T::URL_PATH_SEGMENT, CustomRules::<T>::new()).version(T::VERSION).generation()
}

fn gateway() -> Vec<Resource> {
    use scaleup_api::gateway::{self as api, v1, v1alpha3, v1beta1};
    fn gateway_row<T>() -> Resource
    where
        CustomRules<T>: Rules,
        T: Object,
    {
        Resource { categories: Cow::Borrowed(GATEWAY_API), ..custom_row::<T>() }.columns(columns::ONLY_AGE)
    }
    const GC: &[Text] = &[text("gc")];
    const GTW: &[Text] = &[text("gtw")];
    const GRANT: &[Text] = &[text("refgrant")];
    vec![
        gateway_row::<api::BackendTLSPolicy>().short(const { &[text("btlspolicy")] }).status(),
        gateway_row::<api::GatewayClass>().short(GC).cluster().columns(columns::GATEWAYCLASSES).status(),
        gateway_row::<v1beta1::GatewayClass>()
            .short(GC)
            .cluster()
            .columns(columns::GATEWAYCLASSES)
            .status()
            .version_of::<api::GatewayClass, v1beta1::GatewayClass>(),
        gateway_row::<api::Gateway>().short(GTW).columns(columns::GATEWAYS).status(),
        gateway_row::<v1beta1::Gateway>()
            .short(GTW)
            .columns(columns::GATEWAYS)
            .status()
            .version_of::<api::Gateway, v1beta1::Gateway>(),
        gateway_row::<api::GRPCRoute>().columns(columns::HOSTNAME_ROUTES).status(),
        gateway_row::<api::HTTPRoute>().columns(columns::HOSTNAME_ROUTES).status(),
        gateway_row::<v1beta1::HTTPRoute>()
            .columns(columns::HOSTNAME_ROUTES)
            .status()
            .version_of::<api::HTTPRoute, v1beta1::HTTPRoute>(),
        gateway_row::<api::ReferenceGrant>().short(GRANT),
        gateway_row::<v1::ReferenceGrant>().short(GRANT).version_of::<api::ReferenceGrant, v1::ReferenceGrant>(),
        gateway_row::<api::TCPRoute>().status(),
        gateway_row::<api::TLSRoute>().status(),
        gateway_row::<v1alpha3::TLSRoute>().status().version_of::<api::TLSRoute, v1alpha3::TLSRoute>(),
        gateway_row::<v1::TLSRoute>().status().version_of::<api::TLSRoute, v1::TLSRoute>(),
        gateway_row::<api::UDPRoute>().status(),
    ]
}

fn traffic() -> Vec<Resource> {
    vec![
        custom_row::<scaleup_api::traffic::TrafficPolicy>()
            .short(const { &[text("tp")] })
            .columns(columns::TRAFFICPOLICIES)
            .status(),
    ]
}

fn policy() -> Vec<Resource> {
    use kinds::plugin::content::{ContentHandler, ContentHooks};
    use scaleup_api::plugin::{ClusterWasmPlugin, WasmModule, WasmPlugin};
    const GET_PUT: &[Verb] = &[Verb::Get, Verb::Update];
    vec![
        custom_row::<ClusterWasmPlugin>()
            .short(const { &[text("cwp")] })
            .cluster()
            .columns(columns::WASMPLUGINS)
            .status(),
        Resource {
            hooks: Some(Arc::new(ContentHooks)),
            ..custom_row::<WasmModule>().columns(columns::WASMMODULES).status().sub(custom(
                "content",
                GET_PUT,
                ContentHandler,
            ))
        },
        custom_row::<WasmPlugin>().short(const { &[text("wp")] }).columns(columns::WASMPLUGINS).status(),
    ]
}

fn rbac() -> Vec<Resource> {
    let group = "rbac.authorization.k8s.io";
    vec![
        row(group, "ClusterRoleBinding", "clusterrolebindings", kinds::rbac::ClusterRoleBindingRules)
            .cluster()
            .columns(columns::CLUSTERROLEBINDINGS),
        row(group, "ClusterRole", "clusterroles", kinds::rbac::ClusterRoleRules)
            .cluster()
            .columns(columns::CLUSTERROLES),
        row(group, "RoleBinding", "rolebindings", kinds::rbac::RoleBindingRules).columns(columns::ROLEBINDINGS),
        row(group, "Role", "roles", kinds::rbac::RoleRules).columns(columns::ROLES),
    ]
}

fn reviews() -> Vec<Resource> {
    fn review(
        group: &'static str,
        kind: &'static str,
        plural: &'static str,
        rules: impl Rules,
        by: impl VirtualCreate,
    ) -> Resource {
        Resource { verbs: CREATE, storage: Storage::Virtual(Arc::new(by)), ..row(group, kind, plural, rules).cluster() }
    }
    use kinds::review as rules;
    let (authn, authz) = ("authentication.k8s.io", "authorization.k8s.io");
    let local = review(
        authz,
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        rules::LocalSubjectAccessReviewRules,
        reviews::LocalSubjectAccessReviewer,
    );
    vec![
        review(
            authn,
            "SelfSubjectReview",
            "selfsubjectreviews",
            rules::SelfSubjectReviewRules,
            reviews::SelfSubjectReviewer,
        ),
        review(authn, "TokenReview", "tokenreviews", rules::TokenReviewRules, reviews::TokenReviewer),
        Resource { scope: Scope::Namespaced, ..local },
        review(
            authz,
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
            rules::SelfSubjectAccessReviewRules,
            reviews::SelfSubjectAccessReviewer,
        ),
        review(
            authz,
            "SelfSubjectRulesReview",
            "selfsubjectrulesreviews",
            rules::SelfSubjectRulesReviewRules,
            reviews::SelfSubjectRulesReviewer,
        ),
        review(
            authz,
            "SubjectAccessReview",
            "subjectaccessreviews",
            rules::SubjectAccessReviewRules,
            reviews::SubjectAccessReviewer,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_consistent() {
        let registry = builtin();
        for row in registry.rows() {
            let same = |r: &&Arc<Resource>| r.group == row.group && r.version == row.version && r.plural == row.plural;
            assert_eq!(registry.rows().iter().filter(same).count(), 1, "{} twice", row.plural);
            assert_eq!(row.has_status, row.subresource("status").is_some(), "{}", row.plural);
            if !matches!(row.storage, Storage::Virtual(_)) {
                let (group, plural) = row.stored_as();
                assert!(registry.stored(group, plural).is_some(), "{} is stored nowhere", row.plural);
                assert!(row.columns.len() > 1, "{}", row.plural);
            }
        }
    }
}
