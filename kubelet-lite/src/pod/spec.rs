//! From a pod's spec to what the runtime is asked for. Pure: environment, volumes and image are resolved before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container as SpecContainer, Pod, SeccompProfile};
use scaleup_api::Quantity;
use sha2::{Digest, Sha256};

use super::env::{self, EnvError};
use super::view;
use crate::runtime::{
    ContainerSpec, HostPort, Image, Mount, PidMode, Resources, SandboxNetwork, SandboxSpec, Security,
};

/// CFS period, µs.
const CPU_PERIOD_US: i64 = 100_000;
/// Smallest CFS quota the kernel takes, µs.
const MIN_CPU_QUOTA_US: i64 = 1_000;
/// Bounds of cgroup v1's cpu.shares.
const MIN_CPU_SHARES: i64 = 2;
const MAX_CPU_SHARES: i64 = 262_144;
/// `oom_score_adj` by quality of service (`qos/policy.go`).
const OOM_GUARANTEED: i64 = -997;
const OOM_BEST_EFFORT: i64 = 1000;
/// Docker refuses memory limits below this.
const MIN_MEMORY_BYTES: i64 = 6 * 1024 * 1024;
/// Where a container writes why it ended, unless told otherwise.
const DEFAULT_TERMINATION_PATH: &str = "/dev/termination-log";
/// Longest host name.
const MAX_HOSTNAME: usize = 63;

/// Hash of what a running container cannot change: its name and image (`HashContainer`).
pub fn hash(container: &SpecContainer) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    let digest = Sha256::digest(format!("{}\0{image}", container.name).as_bytes());
    digest.iter().take(8).fold(String::new(), |out, byte| out + &format!("{byte:02x}"))
}

/// The pod's host name: `spec.hostname` or its name, cut to what a host name may be.
pub fn hostname(pod: &Pod) -> String {
    let name = view::spec(pod).hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or(view::name(pod));
    let cut = &name[..name.floor_char_boundary(MAX_HOSTNAME)];
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// What to ask for a pod's sandbox.
pub fn sandbox(pod: &Pod, network: &str, attempt: u32) -> SandboxSpec {
    let spec = view::spec(pod);
    let on_host = spec.host_network == Some(true);
    let ports = if on_host { Vec::new() } else { host_ports(pod) };
    SandboxSpec {
        pod: view::pod_ref(pod),
        attempt,
        hostname: hostname(pod),
        network: if on_host { SandboxNetwork::Host } else { SandboxNetwork::Pod(network.into()) },
        ports,
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let port = |p: &k8s_openapi::api::core::v1::ContainerPort| {
        let host_port = p.host_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)?;
        Some(HostPort {
            container_port: u16::try_from(p.container_port).ok()?,
            host_port,
            host_ip: p.host_ip.clone().unwrap_or_default(),
            protocol: p.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
        })
    };
    view::all_containers(pod).flat_map(|c| c.ports.iter().flatten()).filter_map(port).collect()
}

/// Files of a container on the host that are not volumes.
pub struct Files {
    /// `/etc/hosts`, unless the image's or the host's is used.
    pub hosts: Option<PathBuf>,
    /// `/etc/resolv.conf`, unless the runtime's is used.
    pub resolv: Option<PathBuf>,
    /// Where it writes why it ended.
    pub termination: Option<PathBuf>,
}

/// What [`container`] needs beside the pod.
pub struct Parts<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its container.
    pub container: &'a SpecContainer,
    /// Restart count.
    pub attempt: u32,
    /// Sandbox to join.
    pub sandbox_id: &'a str,
    /// Its image.
    pub image: &'a Image,
    /// Its variables.
    pub env: &'a BTreeMap<String, String>,
    /// Its volume mounts.
    pub mounts: Vec<Mount>,
    /// Its other files.
    pub files: &'a Files,
    /// Memory of the machine, for the OOM score of burstable pods.
    pub machine_memory_bytes: i64,
    /// Where seccomp profiles named `localhostProfile` are.
    pub seccomp_profile: Option<String>,
}

/// What to ask for a container.
pub fn container(parts: Parts<'_>) -> Result<ContainerSpec, EnvError> {
    let Parts { pod, container, env, .. } = &parts;
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| env::expand(text, |name| env.get(name).cloned())).collect()
    };
    let spec = view::spec(pod);
    let mut mounts = parts.mounts.clone();
    let targets: Vec<String> = mounts.iter().map(|m| m.target.trim_end_matches('/').to_owned()).collect();
    let mut file = |source: &Option<PathBuf>, target: &str| {
        if let Some(source) = source
            && !targets.iter().any(|t| t == target)
        {
            mounts.push(Mount { source: source.clone(), target: target.into(), read_only: false });
        }
    };
    file(&parts.files.hosts, "/etc/hosts");
    file(&parts.files.resolv, "/etc/resolv.conf");
    file(&parts.files.termination, termination_path(container));
    Ok(ContainerSpec {
        pod: view::pod_ref(pod),
        name: container.name.clone(),
        attempt: parts.attempt,
        hash: hash(container),
        sandbox_id: parts.sandbox_id.into(),
        image: parts.image.id.clone(),
        image_name: container.image.clone().unwrap_or_default(),
        command: expand(&container.command),
        args: expand(&container.args),
        env: env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts,
        resources: resources(pod, container, parts.machine_memory_bytes),
        security: security(pod, container, parts.image, parts.seccomp_profile.clone())?,
        pid: match (spec.host_pid, spec.share_process_namespace) {
            (Some(true), _) => PidMode::Host,
            (_, Some(true)) => PidMode::Pod,
            _ => PidMode::Container,
        },
        host_ipc: spec.host_ipc == Some(true),
        tty: container.tty == Some(true),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
    })
}

/// `terminationMessagePath`
pub fn termination_path(container: &SpecContainer) -> &str {
    container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or(DEFAULT_TERMINATION_PATH)
}

fn amount(container: &SpecContainer, limits: bool, name: &str) -> Option<Quantity> {
    let resources = container.resources.as_ref()?;
    let map = if limits { resources.limits.as_ref() } else { resources.requests.as_ref() };
    Quantity::try_from(map?.get(name)?).ok()
}

fn resources(pod: &Pod, container: &SpecContainer, machine_memory_bytes: i64) -> Resources {
    let cpu_limit = amount(container, true, "cpu").filter(|q| !q.is_zero());
    let memory_limit = amount(container, true, "memory").filter(|q| !q.is_zero());
    // A limit without a request is the request too.
    let cpu_request = amount(container, false, "cpu").or(cpu_limit);
    let memory_request = amount(container, false, "memory").or(memory_limit);
    let shares = cpu_request.map_or(0, |q| q.milli_value().saturating_mul(1024) / 1000);
    Resources {
        cpu_shares: shares.clamp(MIN_CPU_SHARES, MAX_CPU_SHARES),
        cpu_quota_us: cpu_limit
            .map_or(0, |q| (q.milli_value().saturating_mul(CPU_PERIOD_US) / 1000).max(MIN_CPU_QUOTA_US)),
        cpu_period_us: if cpu_limit.is_some() { CPU_PERIOD_US } else { 0 },
        memory_bytes: memory_limit.map_or(0, |q| q.value().max(MIN_MEMORY_BYTES)),
        oom_score_adj: oom_score(pod, memory_request, machine_memory_bytes),
    }
}

/// `GetContainerOOMScoreAdjust`: the more of the machine a container asked for, the later it is killed.
fn oom_score(pod: &Pod, memory_request: Option<Quantity>, machine_memory_bytes: i64) -> i64 {
    match qos(pod) {
        Qos::Guaranteed => OOM_GUARANTEED,
        Qos::BestEffort => OOM_BEST_EFFORT,
        Qos::Burstable => {
            let request = memory_request.map_or(0, |q| q.value());
            let score = 1000 - request.saturating_mul(1000) / machine_memory_bytes.max(1);
            score.clamp(1000 + OOM_GUARANTEED, OOM_BEST_EFFORT - 1)
        }
    }
}

/// Quality of service (`qos.ComputePodQOS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

fn qos(pod: &Pod) -> Qos {
    let (mut any, mut guaranteed) = (false, true);
    for container in view::all_containers(pod) {
        for name in ["cpu", "memory"] {
            let limit = amount(container, true, name).filter(|q| !q.is_zero());
            let request = amount(container, false, name).filter(|q| !q.is_zero()).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// Whether the profile is one the agent must read from its disk, and which.
pub fn local_seccomp<'a>(pod: &'a Pod, container: &'a SpecContainer) -> Option<&'a str> {
    let profile = seccomp(pod, container)?;
    (profile.type_ == "Localhost").then_some(profile.localhost_profile.as_deref()).flatten()
}

fn seccomp<'a>(pod: &'a Pod, container: &'a SpecContainer) -> Option<&'a SeccompProfile> {
    let own = container.security_context.as_ref().and_then(|s| s.seccomp_profile.as_ref());
    own.or_else(|| view::spec(pod).security_context.as_ref()?.seccomp_profile.as_ref())
}

fn security(
    pod: &Pod,
    container: &SpecContainer,
    image: &Image,
    local_profile: Option<String>,
) -> Result<Security, EnvError> {
    let of_pod = view::spec(pod).security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let user = own.run_as_user.or(of_pod.run_as_user);
    let group = own.run_as_group.or(of_pod.run_as_group);
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        check_non_root(container, user, &image.user, pod)?;
    }
    let user = match (user, group) {
        (Some(user), Some(group)) => format!("{user}:{group}"),
        (Some(user), None) => user.to_string(),
        (None, Some(group)) => {
            let base = image.user.split(':').next().filter(|u| !u.is_empty()).unwrap_or("0");
            format!("{base}:{group}")
        }
        (None, None) => String::new(),
    };
    let mut groups = of_pod.supplemental_groups.unwrap_or_default();
    groups.extend(of_pod.fs_group);
    let privileged = own.privileged == Some(true);
    let capabilities = own.capabilities.unwrap_or_default();
    let seccomp = match seccomp(pod, container).map(|p| p.type_.as_str()) {
        Some("RuntimeDefault") => None,
        Some("Localhost") => local_profile,
        // Unset is unconfined upstream, but Docker's default profile is the safer one and what its users expect.
        None => None,
        Some(_) => Some("unconfined".to_owned()),
    };
    Ok(Security {
        user,
        groups,
        privileged,
        cap_add: capabilities.add.unwrap_or_default(),
        cap_drop: capabilities.drop.unwrap_or_default(),
        read_only_root: own.read_only_root_filesystem == Some(true),
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !privileged,
        seccomp,
    })
}

/// `verifyRunAsNonRoot`
fn check_non_root(container: &SpecContainer, user: Option<i64>, image_user: &str, pod: &Pod) -> Result<(), EnvError> {
    let place = format!("(pod: {:?}, container: {})", view::described(pod), container.name);
    let image_name = image_user.split(':').next().unwrap_or_default();
    match (user, image_name.parse::<u64>()) {
        (Some(0), _) => Err(EnvError(format!("container's runAsUser breaks non-root policy {place}"))),
        (Some(_), _) => Ok(()),
        (None, Ok(uid)) if uid != 0 => Ok(()),
        (None, Err(_)) if !image_name.is_empty() && image_name != "root" => Err(EnvError(format!(
            "container has runAsNonRoot and image has non-numeric user ({image_name}), cannot verify user is non-root {place}"
        ))),
        _ => Err(EnvError(format!("container has runAsNonRoot and image will run as root {place}"))),
    }
}

/// Where a seccomp profile named in a pod is; `None` if the name leaves the directory.
pub fn seccomp_path(root: &Path, name: &str) -> Option<PathBuf> {
    let relative = Path::new(name);
    let inside = relative.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    (inside && !name.is_empty()).then(|| root.join("seccomp").join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})).unwrap()
    }

    fn build(pod: &Pod, image_user: &str) -> Result<ContainerSpec, EnvError> {
        let image = Image { id: "sha256:1".into(), user: image_user.into(), ..Image::default() };
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        let files = Files { hosts: Some("/h".into()), resolv: None, termination: Some("/t".into()) };
        container(Parts {
            pod,
            container: &view::containers(pod)[0],
            attempt: 0,
            sandbox_id: "s",
            image: &image,
            env: &env,
            mounts: Vec::new(),
            files: &files,
            machine_memory_bytes: 1 << 30,
            seccomp_profile: None,
        })
    }

    #[test]
    fn requests_and_limits_become_shares_quota_and_score() {
        let check = |resources: serde_json::Value, want: (i64, i64, i64, i64)| {
            let pod = pod(json!({"containers": [{"name": "c", "resources": resources}]}));
            let got = build(&pod, "").unwrap().resources;
            assert_eq!((got.cpu_shares, got.cpu_quota_us, got.memory_bytes, got.oom_score_adj), want, "{resources}");
        };
        check(json!({}), (2, 0, 0, 1000));
        check(json!({"requests": {"cpu": "500m"}}), (512, 0, 0, 999));
        check(json!({"limits": {"cpu": "250m"}}), (256, 25_000, 0, 999));
        check(json!({"requests": {"memory": "512Mi"}}), (2, 0, 0, 500));
        check(json!({"limits": {"cpu": "1", "memory": "64Mi"}}), (1024, 100_000, 64 << 20, -997));
        check(json!({"limits": {"memory": "1Mi"}}), (2, 0, 6 << 20, 999));
    }

    #[test]
    fn command_and_arguments_are_expanded() {
        let pod = pod(json!({"containers": [{"name": "c", "command": ["sh", "$(A)"], "args": ["$$(A)", "$(B)"]}]}));
        let got = build(&pod, "").unwrap();
        assert_eq!(got.command, ["sh", "1"]);
        assert_eq!(got.args, ["$(A)", "$(B)"]);
        assert!(got.mounts.iter().any(|m| m.target == "/dev/termination-log"));
    }

    #[test]
    fn non_root_is_checked() {
        let check = |context: serde_json::Value, image_user: &str, want: Option<&str>| {
            let pod = pod(json!({"containers": [{"name": "c", "securityContext": context}]}));
            let got = build(&pod, image_user).err().map(|e| e.0);
            assert_eq!(got.as_deref().map(|e| e.split(" (").next().unwrap()), want, "{context} {image_user}");
        };
        check(json!({"runAsNonRoot": true}), "", Some("container has runAsNonRoot and image will run as root"));
        check(json!({"runAsNonRoot": true}), "1000", None);
        check(json!({"runAsNonRoot": true}), "web", Some("container has runAsNonRoot and image has non-numeric user"));
        check(json!({"runAsNonRoot": true, "runAsUser": 5}), "", None);
        check(
            json!({"runAsNonRoot": true, "runAsUser": 0}),
            "1000",
            Some("container's runAsUser breaks non-root policy"),
        );
        check(json!({}), "", None);
    }

    #[test]
    fn users_and_groups_are_merged() {
        let pod = pod(json!({
            "securityContext": {"runAsUser": 7, "fsGroup": 9, "supplementalGroups": [8]},
            "containers": [{"name": "c", "securityContext": {"runAsGroup": 6, "allowPrivilegeEscalation": false}}]
        }));
        let got = build(&pod, "").unwrap().security;
        assert_eq!((got.user.as_str(), got.groups.as_slice(), got.no_new_privileges), ("7:6", [8, 9].as_slice(), true));
    }

    #[test]
    fn host_names_fit() {
        let check = |spec: serde_json::Value, want: &str| assert_eq!(hostname(&pod(spec)), want);
        check(json!({"containers": []}), "p");
        check(json!({"hostname": "h", "containers": []}), "h");
        check(json!({"hostname": format!("{}-x", "a".repeat(62)), "containers": []}), &"a".repeat(62));
    }

    #[test]
    fn seccomp_profiles_stay_in_their_directory() {
        assert!(seccomp_path(Path::new("/d"), "a/b.json").is_some());
        assert!(seccomp_path(Path::new("/d"), "../x").is_none());
        assert!(seccomp_path(Path::new("/d"), "/etc/x").is_none());
    }
}
