//! Names that several parts must spell alike (`k8s.io/api`, `well_known_labels.go`), and our own under `scaleup.dev`.

/// Node label and topology key: host name.
pub const LABEL_HOSTNAME: &str = "kubernetes.io/hostname";
/// Node label: operating system.
pub const LABEL_OS: &str = "kubernetes.io/os";
/// Node label: CPU architecture.
pub const LABEL_ARCH: &str = "kubernetes.io/arch";
/// Node label and topology key: zone.
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// Node label and topology key: region.
pub const LABEL_REGION: &str = "topology.kubernetes.io/region";
/// EndpointSlice label: its Service.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// EndpointSlice label: who manages it.
pub const LABEL_MANAGED_BY_SLICE: &str = "endpointslice.kubernetes.io/managed-by";
/// Namespace label: its own name.
pub const LABEL_NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// ReplicaSet and Pod label of a Deployment's template.
pub const LABEL_POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// Taint of a node whose Ready condition is False.
pub const TAINT_NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Taint of a node whose Ready condition is Unknown.
pub const TAINT_UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Taint of a cordoned node.
pub const TAINT_UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Finalizer behind `propagationPolicy: Foreground`.
pub const FINALIZER_FOREGROUND: &str = "foregroundDeletion";
/// Finalizer behind `propagationPolicy: Orphan`.
pub const FINALIZER_ORPHAN: &str = "orphan";
/// `spec.finalizers` entry of every namespace.
pub const FINALIZER_KUBERNETES: &str = "kubernetes";

/// Namespace of node leases.
pub const NAMESPACE_NODE_LEASE: &str = "kube-node-lease";
/// Namespace of the system.
pub const NAMESPACE_SYSTEM: &str = "kube-system";

/// Node annotation: the address of the pod bridge, where cluster DNS answers.
pub const ANNOTATION_POD_GATEWAY: &str = "scaleup.dev/pod-gateway";
/// Service annotation: the plugin that chooses among its endpoints, by the name of a WasmPlugin of its namespace, or
/// `ClusterWasmPlugin/name`. A TrafficPolicy's `policyRef` goes before it.
pub const ANNOTATION_ROUTING_POLICY: &str = "traffic.scaleup.dev/policy";
/// Node annotation: a pod subnet (CIDR) that is free on the node's machine and that it asks for; gone once it has one.
pub const ANNOTATION_WANTED_POD_CIDR: &str = "scaleup.dev/wanted-pod-cidr";
/// Default cluster domain.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// ConfigMap in `kube-system` with the answers to ACME challenges: token → key authorization.
pub const CONFIG_MAP_ACME_CHALLENGES: &str = "scaleup-acme-challenges";
