//! Which built-in types have a schema: one row per kind that is served, plus the types that operations exchange.

use k8s_openapi::api::{
    apps, authentication, authorization, autoscaling, coordination, core, discovery, events, networking, policy, rbac,
    scheduling,
};
use k8s_openapi::apimachinery::pkg::apis::meta;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::{custom, table};

/// Where references point: OpenAPI v3's place, which v2 rewrites.
pub const REF_PREFIX: &str = "#/components/schemas/";

/// A kind and the type it decodes to.
pub struct Root {
    /// API group; empty for core.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Whether there is a list kind of it.
    pub listed: bool,
    name: fn() -> std::borrow::Cow<'static, str>,
    generate: fn(&mut SchemaGenerator) -> Schema,
}

impl Root {
    /// Upstream's name of the type: `io.k8s.api.core.v1.Pod`.
    pub fn type_name(&self) -> String {
        (self.name)().into_owned()
    }
}

pub(super) const fn root<T: JsonSchema>(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    listed: bool,
) -> Root {
    Root { group, version, kind, listed, name: T::schema_name, generate: |g| g.subschema_for::<T>() }
}

/// The kinds that are built in upstream: they have a protobuf encoding and strategic merge. [`custom::ROOTS`] have neither.
pub const ROOTS: &[Root] = &[
    root::<core::v1::Binding>("", "v1", "Binding", false),
    root::<core::v1::ConfigMap>("", "v1", "ConfigMap", true),
    root::<core::v1::Endpoints>("", "v1", "Endpoints", true),
    root::<core::v1::Event>("", "v1", "Event", true),
    root::<core::v1::Namespace>("", "v1", "Namespace", true),
    root::<core::v1::Node>("", "v1", "Node", true),
    root::<core::v1::Pod>("", "v1", "Pod", true),
    root::<core::v1::Secret>("", "v1", "Secret", true),
    root::<core::v1::Service>("", "v1", "Service", true),
    root::<core::v1::ServiceAccount>("", "v1", "ServiceAccount", true),
    root::<apps::v1::Deployment>("apps", "v1", "Deployment", true),
    root::<apps::v1::ReplicaSet>("apps", "v1", "ReplicaSet", true),
    root::<authentication::v1::SelfSubjectReview>("authentication.k8s.io", "v1", "SelfSubjectReview", false),
    root::<authentication::v1::TokenRequest>("authentication.k8s.io", "v1", "TokenRequest", false),
    root::<authentication::v1::TokenReview>("authentication.k8s.io", "v1", "TokenReview", false),
    root::<authorization::v1::LocalSubjectAccessReview>(
        "authorization.k8s.io",
        "v1",
        "LocalSubjectAccessReview",
        false,
    ),
    root::<authorization::v1::SelfSubjectAccessReview>("authorization.k8s.io", "v1", "SelfSubjectAccessReview", false),
    root::<authorization::v1::SelfSubjectRulesReview>("authorization.k8s.io", "v1", "SelfSubjectRulesReview", false),
    root::<authorization::v1::SubjectAccessReview>("authorization.k8s.io", "v1", "SubjectAccessReview", false),
    root::<autoscaling::v1::Scale>("autoscaling", "v1", "Scale", false),
    root::<coordination::v1::Lease>("coordination.k8s.io", "v1", "Lease", true),
    root::<discovery::v1::EndpointSlice>("discovery.k8s.io", "v1", "EndpointSlice", true),
    root::<events::v1::Event>("events.k8s.io", "v1", "Event", true),
    root::<networking::v1::Ingress>("networking.k8s.io", "v1", "Ingress", true),
    root::<networking::v1::IngressClass>("networking.k8s.io", "v1", "IngressClass", true),
    root::<policy::v1::Eviction>("policy", "v1", "Eviction", false),
    root::<rbac::v1::ClusterRole>("rbac.authorization.k8s.io", "v1", "ClusterRole", true),
    root::<rbac::v1::ClusterRoleBinding>("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", true),
    root::<rbac::v1::Role>("rbac.authorization.k8s.io", "v1", "Role", true),
    root::<rbac::v1::RoleBinding>("rbac.authorization.k8s.io", "v1", "RoleBinding", true),
    root::<scheduling::v1::PriorityClass>("scheduling.k8s.io", "v1", "PriorityClass", true),
];

/// The row of a kind, custom ones included.
pub fn find_any(group: &str, version: &str, kind: &str) -> Option<&'static Root> {
    all().find(|r| r.kind == kind && r.group == group && r.version == version)
}

/// Every row, custom ones included.
pub fn all() -> impl Iterator<Item = &'static Root> {
    ROOTS.iter().chain(custom::ROOTS)
}

/// The row of a kind that is built in upstream.
pub fn find(group: &str, version: &str, kind: &str) -> Option<&'static Root> {
    ROOTS.iter().find(|r| r.kind == kind && r.group == group && r.version == version)
}

/// Schemas by type name of everything that `roots` and the common types (`Status`, `DeleteOptions`, …) reach. References
/// start with [`REF_PREFIX`] and may have a `description` beside them; extensions, enums and defaults are filled in.
///
/// Made anew on each call, a few milliseconds and megabytes: keep what is made of it, not it.
pub fn definitions<'a>(roots: impl Iterator<Item = &'a Root>) -> Map<String, Value> {
    let settings = SchemaSettings::openapi3().with(|s| {
        s.transforms.clear();
        s.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut lists = Vec::new();
    for root in roots {
        (root.generate)(&mut generator);
        if root.listed {
            lists.push(root);
        }
    }
    generator.subschema_for::<meta::v1::DeleteOptions>();
    generator.subschema_for::<meta::v1::ListMeta>();
    generator.subschema_for::<meta::v1::Patch>();
    generator.subschema_for::<meta::v1::Status>();
    generator.subschema_for::<meta::v1::WatchEvent<Value>>();
    let mut definitions = generator.take_definitions(false);
    definitions.iter_mut().for_each(|(name, schema)| custom::plain(name, schema));
    for root in lists {
        definitions.insert(format!("{}List", root.type_name()), list_schema(root));
    }
    for (name, schema) in &mut definitions {
        table::complete(name, schema);
    }
    definitions
}

/// k8s-openapi has one generic list; upstream has one per kind.
fn list_schema(root: &Root) -> Value {
    let kind = root.kind;
    let text = |description: &str| json!({"description": description, "type": "string"});
    let list_meta = meta::v1::ListMeta::schema_name();
    json!({
        "description": format!("{kind}List is a list of {kind} objects."),
        "type": "object",
        "properties": {
            "apiVersion": text("APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources"),
            "items": {
                "description": format!("Items is the list of {kind} objects."), "type": "array",
                "items": {"$ref": format!("{REF_PREFIX}{}", root.type_name())},
            },
            "kind": text("Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"),
            "metadata": {
                "$ref": format!("{REF_PREFIX}{list_meta}"),
                "description": "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
            },
        },
        "required": ["items"],
    })
}
