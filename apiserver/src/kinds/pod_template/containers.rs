//! Containers and init containers (`validateContainers`, `validateInitContainers`).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerResizePolicy, EnvFromSource, EnvVar, EnvVarSource, ObjectFieldSelector, PodSpec,
    ResourceFieldSelector, Volume, VolumeMount,
};
use scaleup_api::names;

use super::super::field::{self, Errors, Path};
use super::{probes, resources, security, unsupported, volumes};
use crate::error::FieldError;

/// Pod fields that environment variables may hold.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Container amounts that environment variables and downward files may hold.
const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
/// Divisors of bytes.
const BYTE_DIVISORS: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const MESSAGE_POLICIES: &[&str] = &["File", "FallbackToLogsOnError"];

/// What every container of a pod is checked against.
struct Scope<'a> {
    volumes: BTreeMap<&'a str, &'a Volume>,
    restart_policy: &'a str,
    grace_period_s: Option<i64>,
}

/// Both lists of a spec.
pub fn validate(path: &Path<'_>, spec: &PodSpec, errors: &mut Errors) {
    let scope = Scope {
        volumes: field::list(&spec.volumes).iter().map(|v| (v.name.as_str(), v)).collect(),
        restart_policy: field::text(&spec.restart_policy),
        grace_period_s: spec.termination_grace_period_seconds,
    };
    let mut seen = BTreeSet::new();
    let mut ports = BTreeSet::new();
    let at = path.child("containers");
    if spec.containers.is_empty() {
        errors.push(FieldError::required(at, ""));
    }
    for (i, container) in spec.containers.iter().enumerate() {
        let at = at.index(i);
        validate_common(&at, container, &scope, errors);
        unique(&at, container, &mut seen, errors);
        probes::validate(&at, container, scope.grace_period_s, errors);
        if container.restart_policy.is_some() {
            let why = "may not be set for non-init containers";
            errors.push(FieldError::forbidden(at.child("restartPolicy"), why));
        }
        host_ports(&at, container, &mut ports, errors);
    }
    let at = path.child("initContainers");
    for (i, container) in field::list(&spec.init_containers).iter().enumerate() {
        let at = at.index(i);
        validate_common(&at, container, &scope, errors);
        unique(&at, container, &mut seen, errors);
        // Init containers run one by one, so each is looked at alone.
        host_ports(&at, container, &mut BTreeSet::new(), errors);
        field::optional_one_of(errors, &at.child("restartPolicy"), &container.restart_policy, &["Always"]);
        if container.restart_policy.as_deref() == Some("Always") {
            probes::validate(&at, container, scope.grace_period_s, errors);
        } else {
            probes::forbid(&at, container, errors);
        }
    }
}

fn unique<'a>(at: &Path<'_>, container: &'a Container, seen: &mut BTreeSet<&'a str>, errors: &mut Errors) {
    if !container.name.is_empty() && !seen.insert(&container.name) {
        errors.push(FieldError::duplicate(at.child("name"), container.name.as_str()));
    }
}

fn host_ports<'a>(
    at: &Path<'_>,
    container: &'a Container,
    seen: &mut BTreeSet<(&'a str, &'a str, i32)>,
    errors: &mut Errors,
) {
    let at = at.child("ports");
    for (i, port) in field::list(&container.ports).iter().enumerate() {
        let number = port.host_port.unwrap_or(0);
        let (protocol, ip) = (field::text(&port.protocol), field::text(&port.host_ip));
        if number != 0 && !seen.insert((protocol, ip, number)) {
            let value = format!("{protocol}/{ip}/{number}");
            errors.push(FieldError::duplicate(at.index(i).child("hostPort"), value));
        }
    }
}

/// `validateContainerCommon`
fn validate_common(path: &Path<'_>, container: &Container, scope: &Scope<'_>, errors: &mut Errors) {
    field::required_format(errors, &path.child("name"), &container.name, names::dns1123_label);
    field::required(errors, &path.child("image"), field::text(&container.image));
    let policy = field::text(&container.termination_message_policy);
    field::one_of(errors, &path.child("terminationMessagePolicy"), policy, MESSAGE_POLICIES);
    validate_ports(&path.child("ports"), field::list(&container.ports), errors);
    validate_env(&path.child("env"), field::list(&container.env), errors);
    validate_env_from(&path.child("envFrom"), field::list(&container.env_from), errors);
    validate_mounts(&path.child("volumeMounts"), field::list(&container.volume_mounts), container, scope, errors);
    let pull = field::text(&container.image_pull_policy);
    field::one_of(errors, &path.child("imagePullPolicy"), pull, PULL_POLICIES);
    if let Some(requirements) = &container.resources {
        resources::validate(&path.child("resources"), requirements, errors);
    }
    let resize = field::list(&container.resize_policy);
    validate_resize(&path.child("resizePolicy"), resize, scope.restart_policy, errors);
    if let Some(context) = &container.security_context {
        security::validate_container(&path.child("securityContext"), context, errors);
    }
    unsupported::container(path, container, errors);
}

fn validate_ports(path: &Path<'_>, ports: &[ContainerPort], errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = path.index(i);
        let name = field::text(&port.name);
        if !name.is_empty() {
            if let Err(why) = names::port_name(name) {
                errors.push(FieldError::invalid(at.child("name"), name, why));
            } else if !seen.insert(name) {
                errors.push(FieldError::duplicate(at.child("name"), name));
            }
        }
        if port.container_port == 0 {
            errors.push(FieldError::required(at.child("containerPort"), ""));
        } else {
            field::port(errors, &at.child("containerPort"), port.container_port);
        }
        if let Some(number) = port.host_port.filter(|p| *p != 0) {
            field::port(errors, &at.child("hostPort"), number);
        }
        // Upstream leaves this to the node, where it fails late.
        if let Some(ip) = port.host_ip.as_deref().filter(|ip| !ip.is_empty()) {
            field::format(errors, &at.child("hostIP"), ip, names::ip);
        }
        field::one_of(errors, &at.child("protocol"), field::text(&port.protocol), field::PROTOCOLS);
    }
}

fn validate_env(path: &Path<'_>, variables: &[EnvVar], errors: &mut Errors) {
    for (i, variable) in variables.iter().enumerate() {
        let at = path.index(i);
        field::required_format(errors, &at.child("name"), &variable.name, names::env_var_name);
        if let Some(source) = &variable.value_from {
            validate_env_source(&at.child("valueFrom"), source, field::text(&variable.value), errors);
        }
    }
}

fn validate_env_source(path: &Path<'_>, source: &EnvVarSource, value: &str, errors: &mut Errors) {
    let mut sources = 0;
    if let Some(selector) = &source.field_ref {
        sources += 1;
        field_selector(&path.child("fieldRef"), selector, ENV_FIELDS, errors);
    }
    if let Some(selector) = &source.resource_field_ref {
        sources += 1;
        resource_selector(&path.child("resourceFieldRef"), selector, false, errors);
    }
    if let Some(selector) = &source.config_map_key_ref {
        sources += 1;
        key_selector(&path.child("configMapKeyRef"), &selector.name, &selector.key, errors);
    }
    if let Some(selector) = &source.secret_key_ref {
        sources += 1;
        key_selector(&path.child("secretKeyRef"), &selector.name, &selector.key, errors);
    }
    let why = if sources == 0 {
        "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
    } else if !value.is_empty() {
        "may not be specified when `value` is not empty"
    } else if sources > 1 {
        "may not have more than one field specified at a time"
    } else {
        return;
    };
    errors.push(FieldError::invalid(path, "", why));
}

fn key_selector(path: &Path<'_>, name: &str, key: &str, errors: &mut Errors) {
    field::format(errors, &path.child("name"), name, names::dns1123_subdomain);
    field::required_format(errors, &path.child("key"), key, names::config_key);
}

/// `validateObjectFieldSelector`: one of `fields`, or a label or annotation by key.
pub fn field_selector(path: &Path<'_>, selector: &ObjectFieldSelector, fields: &[&str], errors: &mut Errors) {
    let version = field::text(&selector.api_version);
    let label = selector.field_path.as_str();
    if version.is_empty() {
        errors.push(FieldError::required(path.child("apiVersion"), ""));
        return;
    }
    if label.is_empty() {
        errors.push(FieldError::required(path.child("fieldPath"), ""));
        return;
    }
    if version != "v1" {
        let why = format!("error converting fieldPath: unsupported pod version: {version}");
        errors.push(FieldError::invalid(path.child("fieldPath"), label, why));
        return;
    }
    let subscript = label.strip_suffix("']").and_then(|l| l.split_once("['"));
    match subscript {
        Some(("metadata.annotations", key)) => {
            field::format(errors, path, &key.to_lowercase(), names::qualified_name);
        }
        Some(("metadata.labels", key)) => field::format(errors, path, key, names::qualified_name),
        Some((other, _)) => errors.push(FieldError::invalid(path, other, "does not support subscript")),
        None if !fields.contains(&label) => {
            errors.push(FieldError::not_supported(path.child("fieldPath"), label, fields));
        }
        None => {}
    }
}

/// `validateContainerResourceFieldSelector`; files must name the container.
pub fn resource_selector(path: &Path<'_>, selector: &ResourceFieldSelector, file: bool, errors: &mut Errors) {
    let name = selector.resource.as_str();
    let huge = name.starts_with("requests.hugepages-") || name.starts_with("limits.hugepages-");
    if file && field::text(&selector.container_name).is_empty() {
        errors.push(FieldError::required(path.child("containerName"), ""));
    } else if name.is_empty() {
        errors.push(FieldError::required(path.child("resource"), ""));
    } else if !RESOURCE_FIELDS.contains(&name) && !huge {
        errors.push(FieldError::not_supported(path.child("resource"), name, RESOURCE_FIELDS));
    }
    let divisor = selector.divisor.as_ref().map_or("0", |d| d.0.as_str());
    let (allowed, kind) = match name {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"][..], "cpu"),
        "limits.memory" | "requests.memory" => (BYTE_DIVISORS, "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (BYTE_DIVISORS, "local ephemeral storage"),
        _ if huge => (BYTE_DIVISORS, "hugepages"),
        _ => return,
    };
    if divisor != "0" && !allowed.contains(&divisor) {
        let values = if kind == "cpu" { "1m and 1".to_owned() } else { allowed.join(", ") };
        let why = format!("only divisor's values {values} are supported with the {kind} resource");
        errors.push(FieldError::invalid(path.child("divisor"), name, why));
    }
}

fn validate_env_from(path: &Path<'_>, sources: &[EnvFromSource], errors: &mut Errors) {
    for (i, source) in sources.iter().enumerate() {
        let at = path.index(i);
        if let Some(prefix) = source.prefix.as_deref().filter(|p| !p.is_empty()) {
            field::format(errors, &at.child("prefix"), prefix, names::env_var_name);
        }
        let config = source.config_map_ref.as_ref().map(|r| ("configMapRef", r.name.as_str()));
        let secret = source.secret_ref.as_ref().map(|r| ("secretRef", r.name.as_str()));
        for (kind, name) in [config, secret].into_iter().flatten() {
            let at = at.child(kind);
            field::required_format(errors, &at.child("name"), name, names::dns1123_subdomain);
        }
        match (config, secret) {
            (None, None) => {
                errors.push(FieldError::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"));
            }
            (Some(_), Some(_)) => {
                errors.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"));
            }
            _ => {}
        }
    }
}

fn validate_mounts(
    path: &Path<'_>,
    mounts: &[VolumeMount],
    container: &Container,
    scope: &Scope<'_>,
    errors: &mut Errors,
) {
    let mut seen = BTreeSet::new();
    for (i, mount) in mounts.iter().enumerate() {
        let at = path.index(i);
        field::required(errors, &at.child("name"), &mount.name);
        if !scope.volumes.contains_key(mount.name.as_str()) {
            errors.push(FieldError::not_found(at.child("name"), mount.name.as_str()));
        }
        field::required(errors, &at.child("mountPath"), &mount.mount_path);
        if !seen.insert(&mount.mount_path) {
            errors.push(FieldError::invalid(at.child("mountPath"), mount.mount_path.as_str(), "must be unique"));
        }
        let (sub_path, expression) = (field::text(&mount.sub_path), field::text(&mount.sub_path_expr));
        if !sub_path.is_empty() {
            volumes::local_descending_path(&path.child("subPath"), sub_path, errors);
        }
        if !expression.is_empty() {
            if !sub_path.is_empty() {
                let why = "subPathExpr and subPath are mutually exclusive";
                errors.push(FieldError::invalid(at.child("subPathExpr"), expression, why));
            }
            volumes::local_descending_path(&path.child("subPathExpr"), expression, errors);
        }
        validate_propagation(&path.child("mountPropagation"), mount, container, errors);
        validate_recursive_read_only(&path.child("recursiveReadOnly"), mount, errors);
    }
}

fn validate_propagation(path: &Path<'_>, mount: &VolumeMount, container: &Container, errors: &mut Errors) {
    let modes = &["Bidirectional", "HostToContainer", "None"];
    field::optional_one_of(errors, path, &mount.mount_propagation, modes);
    let privileged = container.security_context.as_ref().is_some_and(|c| field::flag(c.privileged));
    if mount.mount_propagation.as_deref() == Some("Bidirectional") && !privileged {
        let why = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(FieldError::forbidden(path, why));
    }
}

fn validate_recursive_read_only(path: &Path<'_>, mount: &VolumeMount, errors: &mut Errors) {
    let modes = &["Disabled", "IfPossible", "Enabled"];
    field::optional_one_of(errors, path, &mount.recursive_read_only, modes);
    let wanted = matches!(mount.recursive_read_only.as_deref(), Some("IfPossible" | "Enabled"));
    if wanted && !field::flag(mount.read_only) {
        errors.push(FieldError::forbidden(path, "may only be specified when readOnly is true"));
    }
    if wanted && !matches!(mount.mount_propagation.as_deref(), None | Some("None")) {
        let why = "may only be specified when mountPropagation is None or not specified";
        errors.push(FieldError::forbidden(path, why));
    }
}

fn validate_resize(path: &Path<'_>, policies: &[ContainerResizePolicy], pod_restart: &str, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, policy) in policies.iter().enumerate() {
        if !seen.insert(&policy.resource_name) {
            errors.push(FieldError::duplicate(path.index(i), policy.resource_name.as_str()));
        }
        field::one_of(errors, path, &policy.resource_name, &["cpu", "memory"]);
        field::one_of(errors, path, &policy.restart_policy, &["NotRequired", "RestartContainer"]);
        if pod_restart == "Never" && policy.restart_policy != "NotRequired" {
            let why = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.push(FieldError::invalid(path, policy.restart_policy.as_str(), why));
        }
    }
}
