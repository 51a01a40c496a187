//! What k8s-openapi's schemas leave out, as upstream's types declare it (`k8s.io/api` 1.33): patch strategies and merge keys,
//! list and map types, enums and defaults. One row per field, by upstream's type name.
//!
//! Strategic merge, OpenAPI and (through both) kubectl read this table; a test holds every row against the real schemas.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::{custom, roots};

/// What a field's type does not say. Empty strings and lists say nothing.
#[derive(Clone, Copy, Debug)]
pub struct Extra {
    /// JSON name of the field; empty for the type itself.
    pub field: &'static str,
    /// `x-kubernetes-patch-strategy` has `merge`.
    pub merge: bool,
    /// `x-kubernetes-patch-strategy` has `retainKeys`.
    pub retain_keys: bool,
    /// `x-kubernetes-patch-merge-key`
    pub merge_key: &'static str,
    /// `x-kubernetes-list-type`: `atomic`, `set` or `map`.
    pub list_type: &'static str,
    /// `x-kubernetes-list-map-keys`
    pub map_keys: &'static [&'static str],
    /// `x-kubernetes-map-type`: `atomic`.
    pub map_type: &'static str,
    /// `enum`, of the field or of its items.
    pub values: &'static [&'static str],
    /// `default`, as JSON.
    pub default: &'static str,
}

pub(super) const fn field(field: &'static str) -> Extra {
    Extra {
        field,
        merge: false,
        retain_keys: false,
        merge_key: "",
        list_type: "",
        map_keys: &[],
        map_type: "",
        values: &[],
        default: "",
    }
}

/// A list that is replaced whole.
pub(super) const fn atomic(name: &'static str) -> Extra {
    field(name).list_type("atomic")
}

/// A list without duplicates.
pub(super) const fn set(name: &'static str) -> Extra {
    field(name).list_type("set")
}

/// A list merged by a key that is also its map key.
pub(super) const fn by_key(name: &'static str, key: &'static str) -> Extra {
    Extra { merge: true, merge_key: key, list_type: "map", ..field(name) }
}

/// The type itself is replaced whole by server-side apply.
const WHOLE_TYPE: Extra = field("").atomic_map();

impl Extra {
    const fn list_type(self, list_type: &'static str) -> Self {
        Self { list_type, ..self }
    }
    pub(super) const fn map_keys(self, map_keys: &'static [&'static str]) -> Self {
        Self { map_keys, list_type: "map", ..self }
    }
    const fn atomic_map(self) -> Self {
        Self { map_type: "atomic", ..self }
    }
    const fn merged(self) -> Self {
        Self { merge: true, ..self }
    }
    const fn retain_keys(self) -> Self {
        Self { retain_keys: true, ..self }
    }
    pub(super) const fn values(self, values: &'static [&'static str]) -> Self {
        Self { values, ..self }
    }
    pub(super) const fn or(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    /// `x-kubernetes-list-map-keys`, which default to the merge key.
    pub fn list_map_keys(&self) -> Vec<&'static str> {
        match self.list_type {
            "map" if self.map_keys.is_empty() => vec![self.merge_key],
            _ => self.map_keys.to_vec(),
        }
    }

    fn apply(&self, schema: &mut Map<String, Value>) {
        let strategy = match (self.merge, self.retain_keys) {
            (true, true) => "merge,retainKeys",
            (true, false) => "merge",
            (false, true) => "retainKeys",
            (false, false) => "",
        };
        let texts = [
            ("x-kubernetes-patch-strategy", strategy),
            ("x-kubernetes-patch-merge-key", self.merge_key),
            ("x-kubernetes-list-type", self.list_type),
            ("x-kubernetes-map-type", self.map_type),
        ];
        for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            schema.insert(key.into(), text.into());
        }
        let keys = self.list_map_keys();
        if !keys.is_empty() {
            schema.insert("x-kubernetes-list-map-keys".into(), keys.into());
        }
        if let Ok(default) = serde_json::from_str::<Value>(self.default) {
            schema.insert("default".into(), default);
        }
        if !self.values.is_empty() {
            let target = match schema.get_mut("items").and_then(Value::as_object_mut) {
                Some(items) => items,
                None => schema,
            };
            target.insert("enum".into(), self.values.into());
        }
    }
}

/// The rows of a type.
pub fn rows(type_name: &str) -> &'static [Extra] {
    static BY_TYPE: LazyLock<HashMap<&'static str, &'static [Extra]>> =
        LazyLock::new(|| TABLE.iter().chain(custom::TABLE).copied().collect());
    BY_TYPE.get(type_name).copied().unwrap_or_default()
}

/// Adds to a schema of k8s-openapi what the table has about it, and the kind's group, version and kind.
pub fn complete(type_name: &str, schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    for row in rows(type_name) {
        let target = match row.field {
            "" => Some(&mut *schema),
            name => property(schema, name),
        };
        if let Some(target) = target {
            row.apply(target);
        }
    }
    // k8s-openapi requires some fields that upstream defaults.
    let defaulted = |name: &Value| rows(type_name).iter().any(|r| name == r.field && !r.default.is_empty());
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| !defaulted(name));
        if required.is_empty() {
            schema.remove("required");
        }
    }
    let kinds: Vec<Value> = kinds(type_name);
    if !kinds.is_empty() {
        schema.insert("x-kubernetes-group-version-kind".into(), kinds.into());
    }
}

fn property<'a>(schema: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Map<String, Value>> {
    schema.get_mut("properties")?.get_mut(name)?.as_object_mut()
}

fn kinds(type_name: &str) -> Vec<Value> {
    let gvk =
        |group: &str, version: &str, kind: &str| serde_json::json!({"group": group, "version": version, "kind": kind});
    match type_name.strip_prefix("io.k8s.apimachinery.pkg.apis.meta.v1.") {
        Some(kind @ ("DeleteOptions" | "Status" | "WatchEvent")) => return vec![gvk("", "v1", kind)],
        Some(_) => return Vec::new(),
        None => {}
    }
    let of_root = |root: &super::roots::Root| {
        let name = root.type_name();
        let rest = type_name.strip_prefix(name.as_str())?;
        let kind = match rest {
            "" => root.kind.to_owned(),
            "List" if root.listed => format!("{}List", root.kind),
            _ => return None,
        };
        Some(gvk(root.group, root.version, &kind))
    };
    roots::all().filter_map(of_root).collect()
}

#[rustfmt::skip]
const TABLE: &[(&str, &[Extra])] = &[
    ("io.k8s.api.apps.v1.DeploymentSpec", &[
        field("strategy").retain_keys(),
    ]),
    ("io.k8s.api.apps.v1.DeploymentStatus", &[
        by_key("conditions", "type"),
    ]),
    ("io.k8s.api.apps.v1.DeploymentStrategy", &[
        field("type").values(&["Recreate", "RollingUpdate"]),
    ]),
    ("io.k8s.api.apps.v1.ReplicaSetStatus", &[
        by_key("conditions", "type"),
    ]),
    ("io.k8s.api.authentication.v1.TokenRequestSpec", &[
        atomic("audiences"),
    ]),
    ("io.k8s.api.authentication.v1.TokenReviewSpec", &[
        atomic("audiences"),
    ]),
    ("io.k8s.api.authentication.v1.TokenReviewStatus", &[
        atomic("audiences"),
    ]),
    ("io.k8s.api.authentication.v1.UserInfo", &[
        atomic("groups"),
    ]),
    ("io.k8s.api.authorization.v1.FieldSelectorAttributes", &[
        atomic("requirements"),
    ]),
    ("io.k8s.api.authorization.v1.LabelSelectorAttributes", &[
        atomic("requirements"),
    ]),
    ("io.k8s.api.authorization.v1.NonResourceRule", &[
        atomic("nonResourceURLs"),
        atomic("verbs"),
    ]),
    ("io.k8s.api.authorization.v1.ResourceRule", &[
        atomic("apiGroups"),
        atomic("resourceNames"),
        atomic("resources"),
        atomic("verbs"),
    ]),
    ("io.k8s.api.authorization.v1.SubjectAccessReviewSpec", &[
        atomic("groups"),
    ]),
    ("io.k8s.api.authorization.v1.SubjectRulesReviewStatus", &[
        atomic("nonResourceRules"),
        atomic("resourceRules"),
    ]),
    ("io.k8s.api.core.v1.AppArmorProfile", &[
        field("type").values(&["Localhost", "RuntimeDefault", "Unconfined"]),
    ]),
    ("io.k8s.api.core.v1.AzureDiskVolumeSource", &[
        field("cachingMode").values(&["None", "ReadOnly", "ReadWrite"]).or(r#""ReadWrite""#),
        field("fsType").or(r#""ext4""#),
        field("kind").values(&["Dedicated", "Managed", "Shared"]).or(r#""Shared""#),
        field("readOnly").or("false"),
    ]),
    ("io.k8s.api.core.v1.Capabilities", &[
        atomic("add"),
        atomic("drop"),
    ]),
    ("io.k8s.api.core.v1.CephFSVolumeSource", &[
        atomic("monitors"),
    ]),
    ("io.k8s.api.core.v1.ConfigMapEnvSource", &[
        field("name").or(r#""""#),
    ]),
    ("io.k8s.api.core.v1.ConfigMapKeySelector", &[
        WHOLE_TYPE,
        field("name").or(r#""""#),
    ]),
    ("io.k8s.api.core.v1.ConfigMapProjection", &[
        atomic("items"),
        field("name").or(r#""""#),
    ]),
    ("io.k8s.api.core.v1.ConfigMapVolumeSource", &[
        atomic("items"),
        field("name").or(r#""""#),
    ]),
    ("io.k8s.api.core.v1.Container", &[
        atomic("args"),
        atomic("command"),
        by_key("env", "name"),
        atomic("envFrom"),
        field("imagePullPolicy").values(&["Always", "IfNotPresent", "Never"]),
        by_key("ports", "containerPort").map_keys(&["containerPort", "protocol"]),
        atomic("resizePolicy"),
        field("terminationMessagePolicy").values(&["FallbackToLogsOnError", "File"]),
        by_key("volumeDevices", "devicePath"),
        by_key("volumeMounts", "mountPath"),
    ]),
    ("io.k8s.api.core.v1.ContainerImage", &[
        atomic("names"),
    ]),
    ("io.k8s.api.core.v1.ContainerPort", &[
        field("protocol").values(&["SCTP", "TCP", "UDP"]).or(r#""TCP""#),
    ]),
    ("io.k8s.api.core.v1.ContainerStatus", &[
        by_key("allocatedResourcesStatus", "name"),
        by_key("volumeMounts", "mountPath"),
    ]),
    ("io.k8s.api.core.v1.DownwardAPIProjection", &[
        atomic("items"),
    ]),
    ("io.k8s.api.core.v1.DownwardAPIVolumeSource", &[
        atomic("items"),
    ]),
    ("io.k8s.api.core.v1.EndpointAddress", &[
        WHOLE_TYPE,
    ]),
    ("io.k8s.api.core.v1.EndpointPort", &[
        WHOLE_TYPE,
        field("protocol").values(&["SCTP", "TCP", "UDP"]),
    ]),
    ("io.k8s.api.core.v1.EndpointSubset", &[
        atomic("addresses"),
        atomic("notReadyAddresses"),
        atomic("ports"),
    ]),
    ("io.k8s.api.core.v1.Endpoints", &[
        atomic("subsets"),
    ]),
    ("io.k8s.api.core.v1.EphemeralContainer", &[
        atomic("args"),
        atomic("command"),
        by_key("env", "name"),
        atomic("envFrom"),
        field("imagePullPolicy").values(&["Always", "IfNotPresent", "Never"]),
        by_key("ports", "containerPort").map_keys(&["containerPort", "protocol"]),
        atomic("resizePolicy"),
        field("terminationMessagePolicy").values(&["FallbackToLogsOnError", "File"]),
        by_key("volumeDevices", "devicePath"),
        by_key("volumeMounts", "mountPath"),
    ]),
    ("io.k8s.api.core.v1.ExecAction", &[
        atomic("command"),
    ]),
    ("io.k8s.api.core.v1.FCVolumeSource", &[
        atomic("targetWWNs"),
        atomic("wwids"),
    ]),
    ("io.k8s.api.core.v1.GRPCAction", &[
        field("service").or(r#""""#),
    ]),
    ("io.k8s.api.core.v1.HTTPGetAction", &[
        atomic("httpHeaders"),
        field("scheme").values(&["HTTP", "HTTPS"]),
    ]),
    ("io.k8s.api.core.v1.HostAlias", &[
        atomic("hostnames"),
    ]),
    ("io.k8s.api.core.v1.HostPathVolumeSource", &[
        field("type").values(&["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"]),
    ]),
    ("io.k8s.api.core.v1.ISCSIVolumeSource", &[
        field("iscsiInterface").or(r#""default""#),
        atomic("portals"),
    ]),
    ("io.k8s.api.core.v1.ImageVolumeSource", &[
        field("pullPolicy").values(&["Always", "IfNotPresent", "Never"]),
    ]),
    ("io.k8s.api.core.v1.LinuxContainerUser", &[
        atomic("supplementalGroups"),
    ]),
    ("io.k8s.api.core.v1.LoadBalancerIngress", &[
        atomic("ports"),
    ]),
    ("io.k8s.api.core.v1.LoadBalancerStatus", &[
        atomic("ingress"),
    ]),
    ("io.k8s.api.core.v1.LocalObjectReference", &[
        WHOLE_TYPE,
        field("name").or(r#""""#),
    ]),
    ("io.k8s.api.core.v1.NamespaceSpec", &[
        atomic("finalizers"),
    ]),
    ("io.k8s.api.core.v1.NamespaceStatus", &[
        by_key("conditions", "type"),
        field("phase").values(&["Active", "Terminating"]),
    ]),
    ("io.k8s.api.core.v1.NodeAffinity", &[
        atomic("preferredDuringSchedulingIgnoredDuringExecution"),
    ]),
    ("io.k8s.api.core.v1.NodeSelector", &[
        WHOLE_TYPE,
        atomic("nodeSelectorTerms"),
    ]),
    ("io.k8s.api.core.v1.NodeSelectorRequirement", &[
        field("operator").values(&["DoesNotExist", "Exists", "Gt", "In", "Lt", "NotIn"]),
        atomic("values"),
    ]),
    ("io.k8s.api.core.v1.NodeSelectorTerm", &[
        WHOLE_TYPE,
        atomic("matchExpressions"),
        atomic("matchFields"),
    ]),
    ("io.k8s.api.core.v1.NodeSpec", &[
        set("podCIDRs").merged(),
        atomic("taints"),
    ]),
    ("io.k8s.api.core.v1.NodeStatus", &[
        by_key("addresses", "type"),
        by_key("conditions", "type"),
        atomic("images"),
        field("phase").values(&["Pending", "Running", "Terminated"]),
        atomic("runtimeHandlers"),
        atomic("volumesAttached"),
        atomic("volumesInUse"),
    ]),
    ("io.k8s.api.core.v1.ObjectFieldSelector", &[
        WHOLE_TYPE,
    ]),
    ("io.k8s.api.core.v1.ObjectReference", &[
        WHOLE_TYPE,
    ]),
    ("io.k8s.api.core.v1.PersistentVolumeClaimSpec", &[
        atomic("accessModes").values(&["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]),
        field("volumeMode").values(&["Block", "Filesystem"]),
    ]),
    ("io.k8s.api.core.v1.PodAffinity", &[
        atomic("preferredDuringSchedulingIgnoredDuringExecution"),
        atomic("requiredDuringSchedulingIgnoredDuringExecution"),
    ]),
    ("io.k8s.api.core.v1.PodAffinityTerm", &[
        atomic("matchLabelKeys"),
        atomic("mismatchLabelKeys"),
        atomic("namespaces"),
    ]),
    ("io.k8s.api.core.v1.PodAntiAffinity", &[
        atomic("preferredDuringSchedulingIgnoredDuringExecution"),
        atomic("requiredDuringSchedulingIgnoredDuringExecution"),
    ]),
    ("io.k8s.api.core.v1.PodDNSConfig", &[
        atomic("nameservers"),
        atomic("options"),
        atomic("searches"),
    ]),
    ("io.k8s.api.core.v1.PodSecurityContext", &[
        field("fsGroupChangePolicy").values(&["Always", "OnRootMismatch"]),
        atomic("supplementalGroups"),
        field("supplementalGroupsPolicy").values(&["Merge", "Strict"]),
        atomic("sysctls"),
    ]),
    ("io.k8s.api.core.v1.PodSpec", &[
        by_key("containers", "name"),
        field("dnsPolicy").values(&["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]),
        by_key("ephemeralContainers", "name"),
        by_key("hostAliases", "ip"),
        by_key("imagePullSecrets", "name"),
        by_key("initContainers", "name"),
        field("nodeSelector").atomic_map(),
        field("preemptionPolicy").values(&["Never", "PreemptLowerPriority"]),
        atomic("readinessGates"),
        by_key("resourceClaims", "name").retain_keys(),
        field("restartPolicy").values(&["Always", "Never", "OnFailure"]),
        by_key("schedulingGates", "name"),
        atomic("tolerations"),
        by_key("topologySpreadConstraints", "topologyKey").map_keys(&["topologyKey", "whenUnsatisfiable"]),
        by_key("volumes", "name").retain_keys(),
    ]),
    ("io.k8s.api.core.v1.PodStatus", &[
        by_key("conditions", "type"),
        atomic("containerStatuses"),
        atomic("ephemeralContainerStatuses"),
        by_key("hostIPs", "ip").list_type("atomic"),
        atomic("initContainerStatuses"),
        field("phase").values(&["Failed", "Pending", "Running", "Succeeded", "Unknown"]),
        by_key("podIPs", "ip"),
        field("qosClass").values(&["BestEffort", "Burstable", "Guaranteed"]),
        by_key("resourceClaimStatuses", "name").retain_keys(),
    ]),
    ("io.k8s.api.core.v1.PortStatus", &[
        field("protocol").values(&["SCTP", "TCP", "UDP"]),
    ]),
    ("io.k8s.api.core.v1.ProjectedVolumeSource", &[
        atomic("sources"),
    ]),
    ("io.k8s.api.core.v1.RBDVolumeSource", &[
        field("keyring").or(r#""/etc/ceph/keyring""#),
        atomic("monitors"),
        field("pool").or(r#""rbd""#),
        field("user").or(r#""admin""#),
    ]),
    ("io.k8s.api.core.v1.ResourceFieldSelector", &[
        WHOLE_TYPE,
    ]),
    ("io.k8s.api.core.v1.ResourceRequirements", &[
        field("claims").map_keys(&["name"]),
    ]),
    ("io.k8s.api.core.v1.ResourceStatus", &[
        field("resources").map_keys(&["resourceID"]),
    ]),
    ("io.k8s.api.core.v1.ScaleIOVolumeSource", &[
        field("fsType").or(r#""xfs""#),
        field("storageMode").or(r#""ThinProvisioned""#),
    ]),
    ("io.k8s.api.core.v1.SeccompProfile", &[
        field("type").values(&["Localhost", "RuntimeDefault", "Unconfined"]),
    ]),
    ("io.k8s.api.core.v1.SecretEnvSource", &[
        field("name").or(r#""""#),
    ]),
    ("io.k8s.api.core.v1.SecretKeySelector", &[
        WHOLE_TYPE,
        field("name").or(r#""""#),
    ]),
    ("io.k8s.api.core.v1.SecretProjection", &[
        atomic("items"),
        field("name").or(r#""""#),
    ]),
    ("io.k8s.api.core.v1.SecretVolumeSource", &[
        atomic("items"),
    ]),
    ("io.k8s.api.core.v1.SecurityContext", &[
        field("procMount").values(&["Default", "Unmasked"]),
    ]),
    ("io.k8s.api.core.v1.ServiceAccount", &[
        atomic("imagePullSecrets"),
        by_key("secrets", "name"),
    ]),
    ("io.k8s.api.core.v1.ServicePort", &[
        field("protocol").values(&["SCTP", "TCP", "UDP"]).or(r#""TCP""#),
    ]),
    ("io.k8s.api.core.v1.ServiceSpec", &[
        atomic("clusterIPs"),
        atomic("externalIPs"),
        field("externalTrafficPolicy").values(&["Cluster", "Local"]),
        field("internalTrafficPolicy").values(&["Cluster", "Local"]),
        atomic("ipFamilies").values(&["", "IPv4", "IPv6"]),
        field("ipFamilyPolicy").values(&["PreferDualStack", "RequireDualStack", "SingleStack"]),
        atomic("loadBalancerSourceRanges"),
        by_key("ports", "port").map_keys(&["port", "protocol"]),
        field("selector").atomic_map(),
        field("sessionAffinity").values(&["ClientIP", "None"]),
        field("type").values(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]),
    ]),
    ("io.k8s.api.core.v1.ServiceStatus", &[
        by_key("conditions", "type"),
    ]),
    ("io.k8s.api.core.v1.Taint", &[
        field("effect").values(&["NoExecute", "NoSchedule", "PreferNoSchedule"]),
    ]),
    ("io.k8s.api.core.v1.Toleration", &[
        field("effect").values(&["NoExecute", "NoSchedule", "PreferNoSchedule"]),
        field("operator").values(&["Equal", "Exists"]),
    ]),
    ("io.k8s.api.core.v1.TopologySpreadConstraint", &[
        atomic("matchLabelKeys"),
        field("nodeAffinityPolicy").values(&["Honor", "Ignore"]),
        field("nodeTaintsPolicy").values(&["Honor", "Ignore"]),
        field("whenUnsatisfiable").values(&["DoNotSchedule", "ScheduleAnyway"]),
    ]),
    ("io.k8s.api.core.v1.TypedLocalObjectReference", &[
        WHOLE_TYPE,
    ]),
    ("io.k8s.api.core.v1.VolumeMount", &[
        field("mountPropagation").values(&["Bidirectional", "HostToContainer", "None"]),
    ]),
    ("io.k8s.api.discovery.v1.Endpoint", &[
        set("addresses"),
    ]),
    ("io.k8s.api.discovery.v1.EndpointHints", &[
        atomic("forNodes"),
        atomic("forZones"),
    ]),
    ("io.k8s.api.discovery.v1.EndpointPort", &[
        WHOLE_TYPE,
        field("protocol").values(&["SCTP", "TCP", "UDP"]),
    ]),
    ("io.k8s.api.discovery.v1.EndpointSlice", &[
        field("addressType").values(&["FQDN", "IPv4", "IPv6"]),
        atomic("endpoints"),
        atomic("ports"),
    ]),
    ("io.k8s.api.networking.v1.HTTPIngressPath", &[
        field("pathType").values(&["Exact", "ImplementationSpecific", "Prefix"]),
    ]),
    ("io.k8s.api.networking.v1.HTTPIngressRuleValue", &[
        atomic("paths"),
    ]),
    ("io.k8s.api.networking.v1.IngressLoadBalancerIngress", &[
        atomic("ports"),
    ]),
    ("io.k8s.api.networking.v1.IngressLoadBalancerStatus", &[
        atomic("ingress"),
    ]),
    ("io.k8s.api.networking.v1.IngressSpec", &[
        atomic("rules"),
        atomic("tls"),
    ]),
    ("io.k8s.api.networking.v1.IngressTLS", &[
        atomic("hosts"),
    ]),
    ("io.k8s.api.networking.v1.ServiceBackendPort", &[
        WHOLE_TYPE,
    ]),
    ("io.k8s.api.rbac.v1.AggregationRule", &[
        atomic("clusterRoleSelectors"),
    ]),
    ("io.k8s.api.rbac.v1.ClusterRole", &[
        atomic("rules"),
    ]),
    ("io.k8s.api.rbac.v1.ClusterRoleBinding", &[
        atomic("subjects"),
    ]),
    ("io.k8s.api.rbac.v1.PolicyRule", &[
        atomic("apiGroups"),
        atomic("nonResourceURLs"),
        atomic("resourceNames"),
        atomic("resources"),
        atomic("verbs"),
    ]),
    ("io.k8s.api.rbac.v1.Role", &[
        atomic("rules"),
    ]),
    ("io.k8s.api.rbac.v1.RoleBinding", &[
        atomic("subjects"),
    ]),
    ("io.k8s.api.rbac.v1.RoleRef", &[
        WHOLE_TYPE,
    ]),
    ("io.k8s.api.rbac.v1.Subject", &[
        WHOLE_TYPE,
    ]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions", &[
        atomic("dryRun"),
    ]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldSelectorRequirement", &[
        atomic("values"),
    ]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector", &[
        WHOLE_TYPE,
        atomic("matchExpressions"),
    ]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelectorRequirement", &[
        atomic("values"),
    ]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", &[
        set("finalizers").merged(),
        atomic("managedFields"),
        by_key("ownerReferences", "uid"),
    ]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference", &[
        WHOLE_TYPE,
    ]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.StatusDetails", &[
        atomic("causes"),
    ]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::roots::{all, definitions};

    #[test]
    fn every_row_names_a_real_field() {
        let all = definitions(all());
        for (type_name, rows) in TABLE.iter().chain(custom::TABLE) {
            let schema = all.get(*type_name).unwrap_or_else(|| panic!("{type_name} is not reachable"));
            for row in *rows {
                let field = &schema["properties"][row.field];
                let what = format!("{type_name}.{}", row.field);
                assert!(row.field.is_empty() || field.is_object(), "{what} does not exist");
                assert_eq!(!row.list_type.is_empty(), field["type"] == "array", "{what} and its list type");
                assert!(row.default.is_empty() || serde_json::from_str::<Value>(row.default).is_ok(), "{what}");
                let item = field["items"]["$ref"].as_str().and_then(|r| all.get(r.rsplit_once('/').unwrap().1));
                for key in row.list_map_keys() {
                    assert!(item.unwrap()["properties"][key].is_object(), "{what} has no key {key}");
                }
                assert!(!row.merge || row.merge_key.is_empty() == item.is_none(), "{what} and its merge key");
                assert!(!row.merge || !type_name.contains("gateway"), "{what}: custom kinds have no strategic merge");
            }
        }
    }

    #[test]
    fn schemas_carry_what_the_table_says() {
        let all = definitions(all());
        let field = |kind: &str, name: &str| all[&format!("io.k8s.api.{kind}")]["properties"][name].clone();
        let containers = field("core.v1.PodSpec", "containers");
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(containers["x-kubernetes-list-map-keys"], serde_json::json!(["name"]));
        assert_eq!(field("core.v1.PodSpec", "volumes")["x-kubernetes-patch-strategy"], "merge,retainKeys");
        assert_eq!(field("core.v1.PodSpec", "tolerations")["x-kubernetes-list-type"], "atomic");
        let ports = field("core.v1.Container", "ports");
        assert_eq!(ports["x-kubernetes-list-map-keys"], serde_json::json!(["containerPort", "protocol"]));
        assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
        assert_eq!(field("apps.v1.DeploymentSpec", "strategy")["x-kubernetes-patch-strategy"], "retainKeys");
        let protocol = field("core.v1.ContainerPort", "protocol");
        assert_eq!(protocol["default"], "TCP");
        assert_eq!(protocol["enum"], serde_json::json!(["SCTP", "TCP", "UDP"]));
        let selector = &all["io.k8s.api.core.v1.ConfigMapKeySelector"];
        assert_eq!(selector["required"], serde_json::json!(["key"]), "what has a default is not required");
        assert_eq!(
            all["io.k8s.api.core.v1.EphemeralContainer"]["properties"]["env"]["x-kubernetes-patch-merge-key"],
            "name"
        );
        let kind = |name: &str| all[name]["x-kubernetes-group-version-kind"][0]["kind"].clone();
        assert_eq!(kind("io.k8s.api.apps.v1.DeploymentList"), "DeploymentList");
        assert_eq!(kind("io.k8s.api.core.v1.Pod"), "Pod");
        assert!(kind("io.k8s.api.core.v1.PodSpec").is_null());
    }
}
