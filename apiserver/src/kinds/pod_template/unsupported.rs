//! What the node agent and the scheduler do not do yet. A field that would be ignored is refused instead, with a reason
//! that says what to use; upstream's own checks are in the sibling modules.
//!
//! Support for something is announced by deleting its line here.

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, PodSpec, Volume, VolumeMount};

use super::super::field::{self, Errors, Path};
use super::Holder;
use crate::error::FieldError;

const NO_CLAIMS: &str = "persistent volumes are not supported yet; use emptyDir or hostPath";
const NO_NETWORK_DISKS: &str = "this kind of volume is not supported; use emptyDir or hostPath";
const NO_WINDOWS: &str = "Windows containers are not supported";
const NO_DEVICES: &str = "dynamic resource allocation is not supported yet; use resources.limits";
const NO_SELINUX: &str = "SELinux labels are not supported yet; remove the field";
const NO_APPARMOR: &str = "AppArmor profiles other than RuntimeDefault are not supported yet; remove the field";

/// Refuses every field that is set; each entry is (name, whether it is set, what to do).
fn refuse(path: &Path<'_>, fields: &[(&str, bool, &str)], errors: &mut Errors) {
    for (name, _, why) in fields.iter().filter(|(_, set, _)| *set) {
        errors.push(FieldError::forbidden(path.child(name), *why));
    }
}

/// Fields of a pod spec.
pub fn spec(path: &Path<'_>, spec: &PodSpec, holder: Holder, errors: &mut Errors) {
    let ephemeral = match holder {
        Holder::Pod => "cannot be set on create",
        Holder::Template => "ephemeral containers not allowed in pod template",
    };
    let windows = spec.os.as_ref().is_some_and(|os| os.name == "windows");
    refuse(
        path,
        &[
            ("ephemeralContainers", !field::list(&spec.ephemeral_containers).is_empty(), ephemeral),
            ("resourceClaims", !field::list(&spec.resource_claims).is_empty(), NO_DEVICES),
            (
                "resources",
                spec.resources.is_some(),
                "pod-level resources are not supported yet; set the resources of each container",
            ),
            (
                "runtimeClassName",
                spec.runtime_class_name.is_some(),
                "runtime classes are not supported yet; remove the field to use the default runtime",
            ),
            (
                "overhead",
                spec.overhead.as_ref().is_some_and(|o| !o.is_empty()),
                "pod overhead comes from runtime classes, which are not supported yet",
            ),
            ("hostUsers", spec.host_users == Some(false), "user namespaces are not supported yet; remove the field"),
            ("os", windows, NO_WINDOWS),
            (
                "setHostnameAsFQDN",
                field::flag(spec.set_hostname_as_fqdn),
                "fully qualified host names are not supported yet; remove the field",
            ),
        ],
        errors,
    );
    let Some(context) = &spec.security_context else { return };
    refuse(
        &path.child("securityContext"),
        &[
            ("windowsOptions", context.windows_options.is_some(), NO_WINDOWS),
            ("seLinuxOptions", context.se_linux_options.is_some(), NO_SELINUX),
            ("seLinuxChangePolicy", context.se_linux_change_policy.is_some(), NO_SELINUX),
            ("appArmorProfile", is_special(context.app_armor_profile.as_ref()), NO_APPARMOR),
            (
                "sysctls",
                !field::list(&context.sysctls).is_empty(),
                "sysctls are not supported yet; set them on the node",
            ),
            (
                "supplementalGroupsPolicy",
                context.supplemental_groups_policy.as_deref() == Some("Strict"),
                "only Merge is supported yet; remove the field",
            ),
        ],
        errors,
    );
}

/// Fields of a container.
pub fn container(path: &Path<'_>, container: &Container, errors: &mut Errors) {
    let no_block = "block devices are not supported; use volumeMounts";
    refuse(path, &[("volumeDevices", !field::list(&container.volume_devices).is_empty(), no_block)], errors);
    let claims = container.resources.as_ref().is_some_and(|r| !field::list(&r.claims).is_empty());
    refuse(&path.child("resources"), &[("claims", claims, NO_DEVICES)], errors);
    let no_grpc = "gRPC probes are not supported yet; use httpGet, tcpSocket or exec";
    for (name, probe) in [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ] {
        let grpc = probe.as_ref().is_some_and(|p| p.grpc.is_some());
        refuse(&path.child(name), &[("grpc", grpc, no_grpc)], errors);
    }
    if let Some(lifecycle) = &container.lifecycle {
        let at = path.child("lifecycle");
        let no_signal = "custom stop signals are not supported yet; set STOPSIGNAL in the image";
        refuse(&at, &[("stopSignal", lifecycle.stop_signal.is_some(), no_signal)], errors);
        for (name, hook) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
            let tcp = hook.as_ref().is_some_and(|h| h.tcp_socket.is_some());
            let no_tcp = "tcpSocket hooks are not supported by Kubernetes; use httpGet or exec";
            refuse(&at.child(name), &[("tcpSocket", tcp, no_tcp)], errors);
        }
    }
    if let Some(context) = &container.security_context {
        refuse(
            &path.child("securityContext"),
            &[
                ("windowsOptions", context.windows_options.is_some(), NO_WINDOWS),
                ("seLinuxOptions", context.se_linux_options.is_some(), NO_SELINUX),
                ("appArmorProfile", is_special(context.app_armor_profile.as_ref()), NO_APPARMOR),
            ],
            errors,
        );
    }
    mounts(&path.child("volumeMounts"), field::list(&container.volume_mounts), errors);
}

/// Whether a profile is anything but what every container gets.
fn is_special(profile: Option<&AppArmorProfile>) -> bool {
    profile.is_some_and(|p| p.type_ != "RuntimeDefault")
}

fn mounts(path: &Path<'_>, mounts: &[VolumeMount], errors: &mut Errors) {
    let no_propagation = "mount propagation is not supported yet; remove the field";
    let no_recursive = "recursive read-only mounts are not supported yet; use IfPossible or remove the field";
    for (i, mount) in mounts.iter().enumerate() {
        let propagates = matches!(mount.mount_propagation.as_deref(), Some("Bidirectional" | "HostToContainer"));
        let recursive = mount.recursive_read_only.as_deref() == Some("Enabled");
        refuse(
            &path.index(i),
            &[("mountPropagation", propagates, no_propagation), ("recursiveReadOnly", recursive, no_recursive)],
            errors,
        );
    }
}

/// Volume sources that are not mounted; answers their names, for the count of sources.
pub fn volume(path: &Path<'_>, volume: &Volume, errors: &mut Errors) -> Vec<&'static str> {
    let no_image = "image volumes are not supported yet; use an init container and emptyDir";
    let no_git = "gitRepo volumes are not supported; clone into an emptyDir with an init container";
    let given: Vec<(&str, bool, &str)> = vec![
        ("persistentVolumeClaim", volume.persistent_volume_claim.is_some(), NO_CLAIMS),
        ("ephemeral", volume.ephemeral.is_some(), NO_CLAIMS),
        ("csi", volume.csi.is_some(), NO_CLAIMS),
        ("image", volume.image.is_some(), no_image),
        ("gitRepo", volume.git_repo.is_some(), no_git),
        ("nfs", volume.nfs.is_some(), NO_NETWORK_DISKS),
        ("iscsi", volume.iscsi.is_some(), NO_NETWORK_DISKS),
        ("fc", volume.fc.is_some(), NO_NETWORK_DISKS),
        ("flexVolume", volume.flex_volume.is_some(), NO_NETWORK_DISKS),
        ("cephfs", volume.cephfs.is_some(), NO_NETWORK_DISKS),
        ("rbd", volume.rbd.is_some(), NO_NETWORK_DISKS),
        ("glusterfs", volume.glusterfs.is_some(), NO_NETWORK_DISKS),
        ("awsElasticBlockStore", volume.aws_elastic_block_store.is_some(), NO_NETWORK_DISKS),
        ("gcePersistentDisk", volume.gce_persistent_disk.is_some(), NO_NETWORK_DISKS),
        ("azureDisk", volume.azure_disk.is_some(), NO_NETWORK_DISKS),
        ("azureFile", volume.azure_file.is_some(), NO_NETWORK_DISKS),
        ("cinder", volume.cinder.is_some(), NO_NETWORK_DISKS),
        ("flocker", volume.flocker.is_some(), NO_NETWORK_DISKS),
        ("photonPersistentDisk", volume.photon_persistent_disk.is_some(), NO_NETWORK_DISKS),
        ("portworxVolume", volume.portworx_volume.is_some(), NO_NETWORK_DISKS),
        ("quobyte", volume.quobyte.is_some(), NO_NETWORK_DISKS),
        ("scaleIO", volume.scale_io.is_some(), NO_NETWORK_DISKS),
        ("storageos", volume.storageos.is_some(), NO_NETWORK_DISKS),
        ("vsphereVolume", volume.vsphere_volume.is_some(), NO_NETWORK_DISKS),
    ];
    refuse(path, &given, errors);
    given.into_iter().filter_map(|(name, set, _)| set.then_some(name)).collect()
}

/// A projection of a cluster trust bundle.
pub fn trust_bundle(path: &Path<'_>, errors: &mut Errors) {
    let why = "cluster trust bundles are not supported yet; use a configMap";
    errors.push(FieldError::forbidden(path, why));
}
