//! `SetDefaults_PodSpec`, `SetDefaults_Container`, `SetDefaults_Probe` and their siblings (`pkg/apis/core/v1/defaults.go`).

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, HTTPGetAction, LifecycleHandler, ObjectFieldSelector, Pod, PodSpec,
    PodTemplateSpec, Probe, ResourceFieldSelector, Volume, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::super::field;
use super::resources;

/// Mode of files in volumes made from objects: 0644.
const VOLUME_FILE_MODE: i32 = 0o644;
const TERMINATION_GRACE_PERIOD_S: i64 = 30;
const TOKEN_EXPIRATION_S: i64 = 3600;

fn fill(value: &mut Option<String>, default: &str) {
    if value.as_deref().is_none_or(str::is_empty) {
        *value = Some(default.into());
    }
}

/// Defaults of a template.
pub fn template(template: &mut PodTemplateSpec) {
    template.metadata.get_or_insert_default();
    if let Some(spec) = &mut template.spec {
        pod_spec(spec);
    }
}

/// Defaults of a Pod: the spec's, and what upstream only fills in Pods (requests from limits, host ports of the host
/// network, service links).
pub fn pod(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    pod_spec(spec);
    let host_network = field::flag(spec.host_network);
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        resources::requests_from_limits(container);
        if host_network {
            for port in container.ports.iter_mut().flatten().filter(|p| p.host_port.unwrap_or(0) == 0) {
                port.host_port = Some(port.container_port);
            }
        }
    }
    spec.enable_service_links.get_or_insert(true);
}

fn pod_spec(spec: &mut PodSpec) {
    fill(&mut spec.dns_policy, "ClusterFirst");
    fill(&mut spec.restart_policy, "Always");
    fill(&mut spec.scheduler_name, "default-scheduler");
    spec.security_context.get_or_insert_default();
    spec.termination_grace_period_seconds.get_or_insert(TERMINATION_GRACE_PERIOD_S);
    // Two spellings of one field; upstream's conversion keeps them in step, the newer one wins.
    let account = [&spec.service_account_name, &spec.service_account]
        .into_iter()
        .flatten()
        .find(|name| !name.is_empty())
        .cloned();
    spec.service_account.clone_from(&account);
    spec.service_account_name = account;
    resources::canonical(&mut spec.overhead);
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        self::container(container);
    }
    spec.volumes.iter_mut().flatten().for_each(volume);
}

fn container(container: &mut Container) {
    if field::text(&container.image_pull_policy).is_empty() {
        let policy = if is_latest(field::text(&container.image)) { "Always" } else { "IfNotPresent" };
        container.image_pull_policy = Some(policy.into());
    }
    fill(&mut container.termination_message_path, "/dev/termination-log");
    fill(&mut container.termination_message_policy, "File");
    for port in container.ports.iter_mut().flatten() {
        fill(&mut port.protocol, "TCP");
    }
    for source in container.env.iter_mut().flatten().filter_map(|e| e.value_from.as_mut()) {
        source.field_ref.iter_mut().for_each(field_selector);
        source.resource_field_ref.iter_mut().for_each(resource_selector);
    }
    let requirements = container.resources.get_or_insert_default();
    resources::canonical(&mut requirements.limits);
    resources::canonical(&mut requirements.requests);
    for slot in [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe] {
        slot.iter_mut().for_each(probe);
    }
    if let Some(lifecycle) = &mut container.lifecycle {
        lifecycle.post_start.iter_mut().for_each(handler);
        lifecycle.pre_stop.iter_mut().for_each(handler);
    }
}

/// Whether an image reference means the tag `latest`: neither tag nor digest, or that tag (`parsers.ParseImageName`).
fn is_latest(image: &str) -> bool {
    if image.is_empty() || image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn probe(probe: &mut Probe) {
    // Upstream fills zeros, too: its fields are not pointers.
    for (slot, default) in [
        (&mut probe.timeout_seconds, 1),
        (&mut probe.period_seconds, 10),
        (&mut probe.success_threshold, 1),
        (&mut probe.failure_threshold, 3),
    ] {
        if slot.unwrap_or(0) == 0 {
            *slot = Some(default);
        }
    }
    probe.http_get.iter_mut().for_each(http_get);
}

fn handler(handler: &mut LifecycleHandler) {
    handler.http_get.iter_mut().for_each(http_get);
}

fn http_get(action: &mut HTTPGetAction) {
    fill(&mut action.path, "/");
    fill(&mut action.scheme, "HTTP");
}

fn field_selector(selector: &mut ObjectFieldSelector) {
    fill(&mut selector.api_version, "v1");
}

fn resource_selector(selector: &mut ResourceFieldSelector) {
    let divisor = selector.divisor.get_or_insert_with(|| Quantity("0".into()));
    resources::canonical_one(divisor);
}

fn downward_file(file: &mut DownwardAPIVolumeFile) {
    file.field_ref.iter_mut().for_each(field_selector);
    file.resource_field_ref.iter_mut().for_each(resource_selector);
}

fn volume(volume: &mut Volume) {
    let bare = Volume { name: volume.name.clone(), ..Volume::default() };
    if *volume == bare {
        volume.empty_dir = Some(Default::default());
    }
    if let Some(source) = &mut volume.empty_dir
        && let Some(limit) = &mut source.size_limit
    {
        resources::canonical_one(limit);
    }
    if let Some(source) = &mut volume.secret {
        source.default_mode.get_or_insert(VOLUME_FILE_MODE);
    }
    if let Some(source) = &mut volume.config_map {
        source.default_mode.get_or_insert(VOLUME_FILE_MODE);
    }
    if let Some(source) = &mut volume.downward_api {
        source.default_mode.get_or_insert(VOLUME_FILE_MODE);
        source.items.iter_mut().flatten().for_each(downward_file);
    }
    if let Some(source) = &mut volume.host_path {
        source.type_.get_or_insert_default();
    }
    if let Some(source) = &mut volume.projected {
        source.default_mode.get_or_insert(VOLUME_FILE_MODE);
        source.sources.iter_mut().flatten().for_each(projection);
    }
}

fn projection(source: &mut VolumeProjection) {
    if let Some(token) = &mut source.service_account_token {
        token.expiration_seconds.get_or_insert(TOKEN_EXPIRATION_S);
    }
    if let Some(downward) = &mut source.downward_api {
        downward.items.iter_mut().flatten().for_each(downward_file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_floating_tag_is_latest() {
        for (image, expected) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("registry:5000/a/nginx", true),
            ("registry:5000/a/nginx:latest", true),
            ("nginx:1.2", false),
            ("registry:5000/a/nginx:1", false),
            ("nginx@sha256:0000", false),
            ("nginx:latest@sha256:0000", false),
            ("", false),
        ] {
            assert_eq!(is_latest(image), expected, "{image}");
        }
    }
}
