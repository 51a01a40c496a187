//! Printer columns of the built-in kinds, as `k8s.io/kubernetes/pkg/printers/internalversion` defines them.
//!
//! This file is the table; [`cells`] and [`pod`] compute what stands in it. A cell reads the object as served and never
//! fails: what is absent prints as upstream prints it.

mod cells;
mod plugin;
mod pod;
mod traffic;

use serde_json::Value;

use crate::registry::Column;

const NAME_HELP: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
const AGE_HELP: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const CONTAINERS_HELP: &str = "Names of each container in the template.";
const IMAGES_HELP: &str = "Images referenced by each container in the template.";

const fn column(name: &'static str, kind: &'static str, help: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column { name, kind, format: "", description: help, priority: 0, cell }
}

const fn wide(name: &'static str, kind: &'static str, help: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column { name, kind, format: "", description: help, priority: 1, cell }
}

const NAME: Column =
    Column { name: "Name", kind: "string", format: "name", description: NAME_HELP, priority: 0, cell: cells::name };
const AGE: Column = column("Age", "string", AGE_HELP, cells::age);
/// As custom resources have it.
const CREATED: Column = column("Age", "date", AGE_HELP, cells::age);
const CREATED_AT: Column = column("Created At", "date", AGE_HELP, cells::created_at);

/// Kinds without columns of their own: upstream's default table.
pub const DEFAULT: &[Column] = &[NAME, CREATED_AT];

/// `pods`
pub const PODS: &[Column] = &[
    NAME,
    column("Ready", "string", "The aggregate readiness state of this pod for accepting traffic.", pod::ready),
    column("Status", "string", "The aggregate status of the containers in this pod.", pod::status),
    column(
        "Restarts",
        "string",
        "The number of times the containers in this pod have been restarted and when the last container in this pod has \
         restarted.",
        pod::restarts,
    ),
    AGE,
    wide("IP", "string", "podIP address allocated to the pod.", pod::ip),
    wide("Node", "string", "The node this pod is scheduled to.", pod::node),
    wide("Nominated Node", "string", "The node that preemption made room on for this pod.", pod::nominated_node),
    wide("Readiness Gates", "string", "Readiness gates that are true, of all.", pod::readiness_gates),
];

/// `deployments`
pub const DEPLOYMENTS: &[Column] = &[
    NAME,
    column("Ready", "string", "Number of the pod with ready state", cells::deployment_ready),
    column(
        "Up-to-date",
        "string",
        "Total number of non-terminating pods targeted by this deployment that have the desired template spec.",
        cells::updated_replicas,
    ),
    column(
        "Available",
        "string",
        "Total number of available non-terminating pods (ready for at least minReadySeconds) targeted by this deployment.",
        cells::available_replicas,
    ),
    AGE,
    wide("Containers", "string", CONTAINERS_HELP, cells::container_names),
    wide("Images", "string", IMAGES_HELP, cells::container_images),
    wide("Selector", "string", "Label selector for pods.", cells::label_selector),
];

/// `replicasets`
pub const REPLICASETS: &[Column] = &[
    NAME,
    column("Desired", "integer", "Number of desired pods.", cells::desired_replicas),
    column("Current", "integer", "Most recently observed number of non-terminating pods.", cells::current_replicas),
    column("Ready", "integer", "Number of non-terminating pods with a Ready Condition.", cells::ready_replicas),
    AGE,
    wide("Containers", "string", CONTAINERS_HELP, cells::container_names),
    wide("Images", "string", IMAGES_HELP, cells::container_images),
    wide(
        "Selector",
        "string",
        "Label query over pods that should match the replica count.",
        cells::label_selector_or_none,
    ),
];

/// `services`
pub const SERVICES: &[Column] = &[
    NAME,
    column("Type", "string", "How the Service is exposed.", cells::service_type),
    column("Cluster-IP", "string", "IP address of the service inside the cluster.", cells::cluster_ip),
    column("External-IP", "string", "Addresses at which the service is reached from outside.", cells::external_ip),
    column("Port(s)", "string", "The list of ports that are exposed by this service.", cells::service_ports),
    AGE,
    wide("Selector", "string", "Labels of the pods that traffic is routed to.", cells::service_selector),
];

/// `endpoints`
pub const ENDPOINTS: &[Column] = &[
    NAME,
    column("Endpoints", "string", "The set of all endpoints is the union of all subsets.", cells::endpoints),
    AGE,
];

/// `endpointslices`
pub const ENDPOINTSLICES: &[Column] = &[
    NAME,
    column("AddressType", "string", "Type of address carried by this EndpointSlice.", cells::address_type),
    column("Ports", "string", "Ports exposed by each endpoint in this slice.", cells::slice_ports),
    column("Endpoints", "string", "Endpoints is a list of unique endpoints in this slice.", cells::slice_endpoints),
    AGE,
];

/// `configmaps`
pub const CONFIGMAPS: &[Column] =
    &[NAME, column("Data", "string", "How many keys the config map has.", cells::config_map_keys), AGE];

/// `secrets`
pub const SECRETS: &[Column] = &[
    NAME,
    column("Type", "string", "Used to facilitate programmatic handling of secret data.", cells::object_type),
    column("Data", "string", "How many keys the secret has.", cells::secret_keys),
    AGE,
];

/// `serviceaccounts`
pub const SERVICEACCOUNTS: &[Column] =
    &[NAME, column("Secrets", "string", "How many secrets pods of this account may mount.", cells::secrets), AGE];

/// `events`, in both groups.
pub const EVENTS: &[Column] = &[
    column("Last Seen", "string", "When this event was most recently seen.", cells::event_last_seen),
    column("Type", "string", "Type of this event (Normal, Warning).", cells::object_type),
    column("Reason", "string", "Why this event happened, in one word.", cells::event_reason),
    column("Object", "string", "The object that this event is about.", cells::event_object),
    wide("Subobject", "string", "The part of the object that this event is about.", cells::event_subobject),
    wide("Source", "string", "The component that reported this event.", cells::event_source),
    column("Message", "string", "What happened.", cells::event_message),
    wide("First Seen", "string", "When this event was first recorded.", cells::event_first_seen),
    wide("Count", "string", "How many times this event has occurred.", cells::event_count),
    Column { priority: 1, ..NAME },
];

/// `namespaces`
pub const NAMESPACES: &[Column] = &[NAME, column("Status", "string", "The status of the namespace", cells::phase), AGE];

/// `nodes`
pub const NODES: &[Column] = &[
    NAME,
    column("Status", "string", "The status of the node", cells::node_status),
    column("Roles", "string", "The roles of the node", cells::node_roles),
    AGE,
    column("Version", "string", "Kubelet Version reported by the node.", cells::kubelet_version),
    wide("Internal-IP", "string", "The node's address inside the cluster.", cells::internal_ip),
    wide("External-IP", "string", "The node's address outside of the cluster.", cells::node_external_ip),
    wide("OS-Image", "string", "OS Image reported by the node from /etc/os-release.", cells::os_image),
    wide("Kernel-Version", "string", "Kernel Version reported by the node from 'uname -r'.", cells::kernel_version),
    wide("Container-Runtime", "string", "Container runtime and its version.", cells::container_runtime),
];

/// `leases`
pub const LEASES: &[Column] =
    &[NAME, column("Holder", "string", "The identity of the holder of the lease.", cells::lease_holder), AGE];

/// `priorityclasses`
pub const PRIORITYCLASSES: &[Column] = &[
    NAME,
    column("Value", "integer", "The priority that pods of this class get.", cells::priority_value),
    column("Global-Default", "boolean", "Whether pods without a class get this one.", cells::global_default),
    AGE,
    column("PreemptionPolicy", "string", "Whether pods of this class preempt others.", cells::preemption_policy),
];

/// `ingresses`
pub const INGRESSES: &[Column] = &[
    NAME,
    column("Class", "string", "The class of load balancer that serves it.", traffic::ingress_class),
    column("Hosts", "string", "Hosts that its rules are for.", traffic::ingress_hosts),
    column("Address", "string", "Addresses at which it is reached.", traffic::ingress_address),
    column("Ports", "string", "Ports that are opened for it.", traffic::ingress_ports),
    AGE,
];

/// `ingressclasses`
pub const INGRESSCLASSES: &[Column] = &[
    NAME,
    column("Controller", "string", "The controller that serves Ingresses of the class.", traffic::class_controller),
    column("Parameters", "string", "An object with parameters of the controller.", traffic::class_parameters),
    AGE,
];

const CONTROLLER: &str = "The controller that serves Gateways of the class.";

/// `gatewayclasses`
pub const GATEWAYCLASSES: &[Column] = &[
    NAME,
    column("Controller", "string", CONTROLLER, traffic::gateway_controller),
    column("Accepted", "string", "Whether the controller serves the class.", traffic::accepted),
    CREATED,
    wide("Description", "string", "What the class is for.", traffic::description),
];

/// `gateways`
pub const GATEWAYS: &[Column] = &[
    NAME,
    column("Class", "string", "The GatewayClass.", traffic::gateway_class),
    column("Address", "string", "Addresses at which it is reached.", traffic::gateway_address),
    column("Programmed", "string", "Whether it is in effect.", traffic::programmed),
    CREATED,
];

/// `httproutes`, `grpcroutes`
pub const HOSTNAME_ROUTES: &[Column] =
    &[NAME, column("Hostnames", "string", "Host names that the route is for.", traffic::hostnames), CREATED];

/// The other kinds of the Gateway API.
pub const ONLY_AGE: &[Column] = &[NAME, CREATED];

/// `trafficpolicies`
pub const TRAFFICPOLICIES: &[Column] = &[
    NAME,
    column("Targets", "string", "What the policy applies to.", traffic::policy_targets),
    column("Algorithm", "string", "How an endpoint is chosen.", traffic::policy_algorithm),
    column("Accepted", "string", "Whether the policy is in effect at all its targets.", traffic::policy_accepted),
    CREATED,
];

/// `wasmplugins` and `clusterwasmplugins`
pub const WASMPLUGINS: &[Column] = &[
    NAME,
    column("World", "string", "Which decision it takes.", plugin::world),
    column("Digest", "string", "Beginning of the SHA-256 of the module that decides.", plugin::digest),
    column("Phase", "string", "How far the newest version has come.", plugin::phase),
    column("Decisions", "integer", "Decisions of the version that decides.", plugin::decisions),
    column("Errors", "integer", "Those of them that failed.", plugin::errors),
    CREATED,
    wide("Version", "integer", "Number of the version that decides.", plugin::version),
];

/// `wasmmodules`
pub const WASMMODULES: &[Column] = &[
    NAME,
    column("Size", "integer", "Bytes of the content; empty until it is there.", plugin::size),
    column("Origin", "string", "Whether it was uploaded or fetched.", plugin::origin),
    CREATED,
];

/// `roles`
pub const ROLES: &[Column] = DEFAULT;
/// `clusterroles`
pub const CLUSTERROLES: &[Column] = DEFAULT;

/// `rolebindings`
pub const ROLEBINDINGS: &[Column] = &[
    NAME,
    column("Role", "string", "The role that is granted.", cells::role_ref),
    AGE,
    wide("Users", "string", "Users in the roleBinding", cells::bound_users),
    wide("Groups", "string", "Groups in the roleBinding", cells::bound_groups),
    wide("ServiceAccounts", "string", "ServiceAccounts in the roleBinding", cells::bound_service_accounts),
];
/// `clusterrolebindings`
pub const CLUSTERROLEBINDINGS: &[Column] = ROLEBINDINGS;
