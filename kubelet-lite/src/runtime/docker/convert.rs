//! Between the seam's types and Docker's. Pure: nothing here talks to the daemon.

use std::collections::HashMap;

use bollard::auth::DockerCredentials;
use bollard::errors::Error as BollardError;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum, ContainerStatsResponse, ContainerSummary,
    ContainerSummaryStateEnum, HostConfig, HostConfigLogConfig, ImageInspect, ImageSummary, Mount, MountType,
    PortBinding,
};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::super::{
    Container, ContainerSpec, Exit, Image, Kind, Listed, Network, PidMode, PodRef, RegistryAuth, RuntimeError,
    SandboxNetwork, SandboxSpec, State, Stats, labels,
};
use super::kind_of;

/// Rotation of container logs, as upstream's `containerLogMaxSize` and `containerLogMaxFiles`.
const LOG_MAX_SIZE: &str = "10m";
const LOG_MAX_FILES: &str = "5";

/// Weight of the program that only holds an address.
const SANDBOX_CPU_SHARES: i64 = 2;

/// Exit code of a container that could not be started, as CRI runtimes report it (`StartError`).
const START_ERROR_CODE: i32 = 128;

/// Sorts the daemon's refusals into the seam's errors.
pub fn refusal(code: u16, message: String) -> RuntimeError {
    match code {
        404 => RuntimeError::NotFound(message),
        409 => RuntimeError::Conflict(message),
        _ => RuntimeError::Refused(message),
    }
}

/// bollard's errors as the seam's.
pub fn error(error: BollardError, socket: &str) -> RuntimeError {
    match error {
        BollardError::DockerResponseServerError { status_code, message } => refusal(status_code, message),
        BollardError::DockerStreamError { error } => RuntimeError::Refused(error),
        BollardError::RequestTimeoutError => RuntimeError::Timeout(super::CALL_TIMEOUT),
        other @ (BollardError::SocketNotFoundError(_)
        | BollardError::HyperLegacyError { .. }
        | BollardError::HyperResponseError { .. }
        | BollardError::IOError { .. }) => {
            RuntimeError::Unavailable { endpoint: socket.to_owned(), source: other.into() }
        }
        other => RuntimeError::Refused(other.to_string()),
    }
}

/// `k8s_POD_name_namespace_uid_attempt`, as dockershim named sandboxes.
pub fn sandbox_name(spec: &SandboxSpec) -> String {
    name_of("POD", &spec.pod, spec.attempt)
}

/// `k8s_container_name_namespace_uid_attempt`
pub fn container_name(spec: &ContainerSpec) -> String {
    name_of(&spec.name, &spec.pod, spec.attempt)
}

fn name_of(what: &str, pod: &PodRef, attempt: u32) -> String {
    format!("k8s_{what}_{}_{}_{}_{attempt}", pod.name, pod.namespace, pod.uid)
}

/// A device name (15 bytes at most) for a network: `su-` and 8 hex digits of its name's hash.
pub fn bridge_name(network: &str) -> String {
    let hash = Sha256::digest(network.as_bytes());
    format!("su-{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3])
}

/// First major version of Docker that drops what comes to containers' own addresses from outside their bridge, in netfilter's raw
/// table, where nothing behind it can let it through again.
const FILTERS_DIRECT_ACCESS: u32 = 28;

/// Options of a pod network, for a daemon of that version (`28.0.4`; one that cannot be read is an old one).
pub fn network_options(name: &str, version: &str) -> HashMap<String, String> {
    let option = |name: &str, value: &str| (format!("com.docker.network.bridge.{name}"), value.to_owned());
    let mut options = HashMap::from([
        option("name", &bridge_name(name)),
        option("enable_icc", "true"),
        option("enable_ip_masquerade", "true"),
    ]);
    let major: Option<u32> = version.trim_start_matches('v').split('.').next().and_then(|major| major.parse().ok());
    if major.is_some_and(|major| major >= FILTERS_DIRECT_ACCESS) {
        // Pods reach each other across nodes, and load balancers reach pods, by pods' own addresses.
        options.extend([option("gateway_mode_ipv4", "nat-unprotected")]);
    }
    options
}

fn pod_labels(pod: &PodRef, kind: Kind, instance: &str) -> HashMap<String, String> {
    let kind = match kind {
        Kind::Sandbox => "podsandbox",
        Kind::Container => "container",
    };
    HashMap::from([
        (labels::POD_UID.to_owned(), pod.uid.clone()),
        (labels::POD_NAME.to_owned(), pod.name.clone()),
        (labels::POD_NAMESPACE.to_owned(), pod.namespace.clone()),
        (labels::TYPE.to_owned(), kind.to_owned()),
        (labels::INSTANCE.to_owned(), instance.to_owned()),
    ])
}

fn log_config() -> HostConfigLogConfig {
    HostConfigLogConfig {
        typ: Some("json-file".into()),
        config: Some(HashMap::from([
            ("max-size".into(), LOG_MAX_SIZE.into()),
            ("max-file".into(), LOG_MAX_FILES.into()),
        ])),
    }
}

/// What to create for a sandbox.
pub fn sandbox_body(spec: &SandboxSpec, image: &str, instance: &str) -> ContainerCreateBody {
    let mut labels = pod_labels(&spec.pod, Kind::Sandbox, instance);
    labels.insert(labels::RESTART_COUNT.into(), spec.attempt.to_string());
    labels.insert(labels::CONTAINER_NAME.into(), "POD".into());
    let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    for port in &spec.ports {
        let key = format!("{}/{}", port.container_port, port.protocol);
        let binding = PortBinding { host_ip: Some(port.host_ip.clone()), host_port: Some(port.host_port.to_string()) };
        bindings.entry(key).or_default().get_or_insert_default().push(binding);
    }
    let (network_mode, hostname) = match &spec.network {
        SandboxNetwork::Pod(name) => (name.clone(), Some(spec.hostname.clone())),
        SandboxNetwork::Host => ("host".into(), None),
    };
    let ports: Vec<String> = bindings.keys().cloned().collect();
    ContainerCreateBody {
        image: Some(image.into()),
        hostname,
        cmd: Some(vec!["/pause".into()]),
        labels: Some(labels),
        exposed_ports: (!ports.is_empty()).then_some(ports),
        host_config: Some(HostConfig {
            network_mode: Some(network_mode),
            port_bindings: (!bindings.is_empty()).then_some(bindings),
            ipc_mode: Some(if spec.host_ipc { "host" } else { "shareable" }.into()),
            pid_mode: spec.host_pid.then(|| "host".into()),
            cpu_shares: Some(SANDBOX_CPU_SHARES),
            readonly_rootfs: Some(true),
            log_config: Some(HostConfigLogConfig { typ: Some("none".into()), config: None }),
            security_opt: Some(vec!["no-new-privileges".into()]),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What to create for a container.
pub fn container_body(spec: &ContainerSpec, instance: &str) -> ContainerCreateBody {
    let mut labels = pod_labels(&spec.pod, Kind::Container, instance);
    labels.insert(labels::CONTAINER_NAME.into(), spec.name.clone());
    labels.insert(labels::RESTART_COUNT.into(), spec.attempt.to_string());
    labels.insert(labels::HASH.into(), spec.hash.clone());
    labels.insert(labels::SANDBOX.into(), spec.sandbox_id.clone());
    labels.insert(labels::IMAGE.into(), spec.image_name.clone());
    let some_unless_empty = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        user: Some(spec.security.user.clone()),
        env: Some(spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        entrypoint: some_unless_empty(&spec.command),
        cmd: some_unless_empty(&spec.args),
        working_dir: Some(spec.working_dir.clone()),
        labels: Some(labels),
        tty: Some(spec.tty),
        open_stdin: Some(spec.stdin),
        stdin_once: Some(spec.stdin_once),
        // Probes are the pod's; an image's own HEALTHCHECK would only cost.
        healthcheck: Some(bollard::models::HealthConfig { test: Some(vec!["NONE".into()]), ..Default::default() }),
        host_config: Some(host_config(spec)),
        ..Default::default()
    }
}

fn host_config(spec: &ContainerSpec) -> HostConfig {
    let sandbox = format!("container:{}", spec.sandbox_id);
    let set = |value: i64| (value != 0).then_some(value);
    let mut security_opt = Vec::new();
    if spec.security.no_new_privileges {
        security_opt.push("no-new-privileges".to_owned());
    }
    if let Some(profile) = &spec.security.seccomp {
        security_opt.push(format!("seccomp={profile}"));
    }
    let bind = |m: &super::super::Mount| Mount {
        typ: Some(MountType::BIND),
        source: Some(m.source.display().to_string()),
        target: Some(m.target.clone()),
        read_only: Some(m.read_only),
        ..Default::default()
    };
    HostConfig {
        network_mode: Some(sandbox.clone()),
        ipc_mode: Some(if spec.host_ipc { "host".into() } else { sandbox.clone() }),
        pid_mode: match spec.pid {
            PidMode::Container => None,
            PidMode::Pod => Some(sandbox),
            PidMode::Host => Some("host".into()),
        },
        mounts: Some(spec.mounts.iter().map(bind).collect()),
        cpu_shares: set(spec.resources.cpu_shares),
        cpu_quota: set(spec.resources.cpu_quota_us),
        cpu_period: set(spec.resources.cpu_period_us),
        memory: set(spec.resources.memory_bytes),
        // Without swap a limit means what it says.
        memory_swap: set(spec.resources.memory_bytes),
        oom_score_adj: Some(spec.resources.oom_score_adj),
        privileged: Some(spec.security.privileged),
        cap_add: Some(spec.security.cap_add.clone()),
        cap_drop: Some(spec.security.cap_drop.clone()),
        readonly_rootfs: Some(spec.security.read_only_root),
        group_add: Some(spec.security.groups.iter().map(ToString::to_string).collect()),
        security_opt: Some(security_opt),
        log_config: Some(log_config()),
        ..Default::default()
    }
}

fn time(text: Option<&str>) -> Option<Timestamp> {
    // Docker's "never" is year 1.
    text?.parse::<Timestamp>().ok().filter(|t| t.as_second() > 0)
}

/// An inspected container; `None` if it carries none of our labels.
pub fn container(answer: ContainerInspectResponse) -> Option<Container> {
    let config = answer.config?;
    let mut labels = config.labels.unwrap_or_default();
    let kind = kind_of(labels.get(labels::TYPE))?;
    let pod = take_pod(&mut labels)?;
    let state = answer.state?;
    let created_at = time(answer.created.as_deref()).unwrap_or(Timestamp::UNIX_EPOCH);
    let start_error = state.error.clone().unwrap_or_default();
    let exit_code = i32::try_from(state.exit_code.unwrap_or(0)).unwrap_or(i32::MAX);
    let started_at = time(state.started_at.as_deref());
    let mut address = None;
    if kind == Kind::Sandbox {
        let networks = answer.network_settings.and_then(|n| n.networks).unwrap_or_default();
        address = networks.values().filter_map(|n| n.ip_address.as_deref()).find_map(|ip| ip.parse().ok());
    }
    let state = match state.status {
        Some(ContainerStateStatusEnum::CREATED) if start_error.is_empty() => State::Created,
        Some(ContainerStateStatusEnum::CREATED) => {
            State::Exited(Exit { code: START_ERROR_CODE, oom_killed: false, start_error, at: created_at })
        }
        _ if state.running == Some(true) => State::Running,
        _ => State::Exited(Exit {
            code: exit_code,
            oom_killed: state.oom_killed == Some(true),
            start_error: if started_at.is_some() { String::new() } else { start_error },
            at: time(state.finished_at.as_deref()).unwrap_or(created_at),
        }),
    };
    Some(Container {
        id: answer.id?,
        kind,
        pod,
        name: if kind == Kind::Sandbox {
            String::new()
        } else {
            labels.remove(labels::CONTAINER_NAME).unwrap_or_default()
        },
        attempt: labels.get(labels::RESTART_COUNT).and_then(|n| n.parse().ok()).unwrap_or(0),
        hash: labels.remove(labels::HASH).unwrap_or_default(),
        sandbox_id: labels.remove(labels::SANDBOX).unwrap_or_default(),
        state,
        created_at,
        started_at,
        image: labels.remove(labels::IMAGE).unwrap_or_default(),
        image_id: answer.image.unwrap_or_default(),
        address,
        tty: config.tty == Some(true),
    })
}

fn take_pod(labels: &mut HashMap<String, String>) -> Option<PodRef> {
    Some(PodRef {
        uid: labels.remove(labels::POD_UID)?,
        name: labels.remove(labels::POD_NAME)?,
        namespace: labels.remove(labels::POD_NAMESPACE)?,
    })
}

/// A line of the list.
pub fn listed(summary: ContainerSummary) -> Option<Listed> {
    let mut labels = summary.labels.unwrap_or_default();
    let kind = kind_of(labels.get(labels::TYPE))?;
    let running = matches!(
        summary.state,
        Some(
            ContainerSummaryStateEnum::RUNNING
                | ContainerSummaryStateEnum::PAUSED
                | ContainerSummaryStateEnum::RESTARTING
        )
    );
    let name = match kind {
        Kind::Sandbox => String::new(),
        Kind::Container => labels.remove(labels::CONTAINER_NAME).unwrap_or_default(),
    };
    Some(Listed { id: summary.id?, kind, pod: take_pod(&mut labels)?, name, running })
}

/// An inspected image.
pub fn image(found: ImageInspect) -> Image {
    Image {
        id: found.id.unwrap_or_default(),
        tags: found.repo_tags.unwrap_or_default(),
        digests: found.repo_digests.unwrap_or_default(),
        size_bytes: u64::try_from(found.size.unwrap_or(0)).unwrap_or(0),
        user: found.config.and_then(|c| c.user).unwrap_or_default(),
    }
}

/// A listed image.
pub fn image_summary(found: ImageSummary) -> Image {
    let named = |list: Vec<String>| list.into_iter().filter(|n| !n.starts_with("<none>")).collect();
    Image {
        id: found.id,
        tags: named(found.repo_tags),
        digests: named(found.repo_digests),
        size_bytes: u64::try_from(found.size).unwrap_or(0),
        user: String::new(),
    }
}

/// A network.
pub fn network(found: bollard::models::Network) -> Network {
    let ranges = found.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
    Network {
        name: found.name.unwrap_or_default(),
        gateway: ranges.iter().filter_map(|r| r.gateway.as_deref()).find_map(|g| g.parse().ok()),
        subnets: ranges.into_iter().filter_map(|r| r.subnet).collect(),
        labels: found.labels.unwrap_or_default().into_iter().collect(),
    }
}

/// Repository and tag (or digest) of an image name; the tag defaults to `latest`.
pub fn split_reference(reference: &str) -> (String, String) {
    if let Some((name, digest)) = reference.split_once('@') {
        return (name.to_owned(), digest.to_owned());
    }
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name.to_owned(), tag.to_owned()),
        _ => (reference.to_owned(), "latest".to_owned()),
    }
}

/// Credentials as the daemon takes them.
pub fn credentials(auth: &RegistryAuth) -> DockerCredentials {
    let set = |text: &String| (!text.is_empty()).then(|| text.clone());
    DockerCredentials {
        username: set(&auth.username),
        password: set(&auth.password),
        identitytoken: set(&auth.identity_token),
        serveraddress: set(&auth.server),
        ..Default::default()
    }
}

/// Counters. The working set is usage without the page cache that can be dropped, as cAdvisor counts it.
pub fn stats(answer: &ContainerStatsResponse) -> Stats {
    let cpu = answer.cpu_stats.as_ref().and_then(|c| c.cpu_usage.as_ref()).and_then(|u| u.total_usage);
    let memory = answer.memory_stats.as_ref();
    let usage = memory.and_then(|m| m.usage).unwrap_or(0);
    // cgroup v2 calls it inactive_file, v1 total_inactive_file.
    let inactive = memory
        .and_then(|m| m.stats.as_ref())
        .and_then(|s| s.get("total_inactive_file").or_else(|| s.get("inactive_file")))
        .copied()
        .unwrap_or(0);
    let networks = answer.networks.iter().flat_map(HashMap::values);
    let (rx_bytes, tx_bytes) =
        networks.fold((0u64, 0u64), |(rx, tx), n| (rx + n.rx_bytes.unwrap_or(0), tx + n.tx_bytes.unwrap_or(0)));
    Stats {
        cpu_ns: cpu.unwrap_or(0),
        memory_working_set_bytes: usage.saturating_sub(inactive),
        memory_usage_bytes: usage,
        rx_bytes,
        tx_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_reached_directly_whatever_the_daemon_filters() {
        const MODE: &str = "com.docker.network.bridge.gateway_mode_ipv4";
        for (version, mode) in [
            ("20.10.24+dfsg1", None),
            ("27.5.1", None),
            ("28.0.0", Some("nat-unprotected")),
            ("v28.3.2-rd", Some("nat-unprotected")),
            ("100.1", Some("nat-unprotected")),
            ("", None),
            ("library-import", None),
        ] {
            let options = network_options("net", version);
            assert_eq!(options.get(MODE).map(String::as_str), mode, "{version}");
            assert_eq!(options["com.docker.network.bridge.name"], bridge_name("net"));
        }
    }

    #[test]
    fn image_names_are_split() {
        let check = |text: &str, name: &str, tag: &str| {
            assert_eq!(split_reference(text), (name.to_owned(), tag.to_owned()), "{text}");
        };
        check("nginx", "nginx", "latest");
        check("nginx:1.25", "nginx", "1.25");
        check("localhost:5000/a/b", "localhost:5000/a/b", "latest");
        check("localhost:5000/a/b:v1", "localhost:5000/a/b", "v1");
        check("a@sha256:00", "a", "sha256:00");
    }

    #[test]
    fn bridge_names_fit_a_device_name() {
        assert!(bridge_name("scaleup-a-very-long-network-name").len() <= 15);
        assert_ne!(bridge_name("a"), bridge_name("b"));
    }

    #[test]
    fn host_ports_are_published_on_the_sandbox() {
        let spec = SandboxSpec {
            pod: PodRef { uid: "u".into(), name: "p".into(), namespace: "n".into() },
            attempt: 1,
            hostname: "p".into(),
            network: SandboxNetwork::Pod("net".into()),
            ports: vec![super::super::super::HostPort {
                container_port: 80,
                host_port: 8080,
                host_ip: String::new(),
                protocol: "tcp".into(),
            }],
            host_pid: false,
            host_ipc: false,
        };
        assert_eq!(sandbox_name(&spec), "k8s_POD_p_n_u_1");
        let body = sandbox_body(&spec, "pause", "i");
        let host = body.host_config.unwrap();
        let bindings = host.port_bindings.unwrap();
        assert_eq!(bindings["80/tcp"].as_ref().unwrap()[0].host_port.as_deref(), Some("8080"));
        assert_eq!(host.network_mode.as_deref(), Some("net"));
    }

    #[test]
    fn a_container_that_could_not_start_counts_as_exited() {
        let answer: ContainerInspectResponse = serde_json::from_value(serde_json::json!({
            "Id": "x", "Created": "2026-01-02T03:04:05.5Z", "Image": "sha256:1",
            "State": {"Status": "created", "Running": false, "ExitCode": 127, "Error": "exec: no such file",
                      "StartedAt": "0001-01-01T00:00:00Z", "FinishedAt": "0001-01-01T00:00:00Z"},
            "Config": {"Labels": {"io.kubernetes.pod.uid": "u", "io.kubernetes.pod.name": "p",
                "io.kubernetes.pod.namespace": "n", "io.kubernetes.docker.type": "container",
                "io.kubernetes.container.name": "c", "io.kubernetes.container.restartCount": "3"}}
        }))
        .unwrap();
        let got = container(answer).unwrap();
        assert_eq!((got.name.as_str(), got.attempt, got.started_at), ("c", 3, None));
        let exit = got.exit().unwrap();
        assert_eq!((exit.code, exit.start_error.as_str()), (128, "exec: no such file"));
    }
}
