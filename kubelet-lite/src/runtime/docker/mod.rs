//! Docker by its HTTP API on a unix socket, version negotiated (1.41, Docker 20.10, and newer).
//!
//! Connects at first use and again whenever it must: the daemon may be absent, stopped or restarted at any time, which is an
//! [`RuntimeError::Unavailable`] and nothing worse. Request and response calls go through bollard; log, exec,
//! attach and event streams through [`raw`]: bollard guesses from a chunk's first byte whether a stream is a terminal's, and
//! subscribes to events only when the first is asked for.

mod convert;
mod pause;
mod raw;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use bollard::errors::Error as BollardError;
use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use bollard::query_parameters as query;
use bollard::{API_DEFAULT_VERSION, Docker};
use futures::stream::{BoxStream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{
    Container, ContainerRuntime, ContainerSpec, Event, ExecSpec, Image, Io, Kind, Listed, LogOptions, Network,
    OutputStream, PodRef, RegistryAuth, Result, RuntimeError, SandboxSpec, Session, Stats, Version, labels,
};

/// Bound on every ordinary call. A loaded daemon takes seconds; a dead one refuses at once.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Slack on top of the grace period of a stop, for the kill itself.
const STOP_SLACK: Duration = Duration::from_secs(30);

/// Pulls may be silent while a large layer is unpacked, but their first answer comes soon.
const PULL_TIMEOUT: Duration = Duration::from_secs(300);

/// Bound on connecting a probe or hook to a pod; their own timeouts are shorter.
const DIAL_TIMEOUT: Duration = Duration::from_secs(60);

/// Containers made or started at a time. The daemon does not get faster beyond a few, and a call must end in its time even
/// when a hundred pods come at once: the rest waits here, where no clock runs.
const PARALLEL_STARTS: usize = 8;

/// Attempts to find a free container name before giving up.
const NAME_ATTEMPTS: u32 = 5;

/// Where Docker listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// Docker on this machine.
pub struct DockerRuntime {
    socket: String,
    instance: String,
    connected: Mutex<Option<Docker>>,
    starts: Semaphore,
}

impl DockerRuntime {
    /// Over the daemon at `socket` (a path). `instance` names this agent: it sees only containers that carry it as a label,
    /// so that several agents can share one daemon.
    pub fn new(socket: impl Into<String>, instance: impl Into<String>) -> Self {
        let starts = Semaphore::new(PARALLEL_STARTS);
        Self { socket: socket.into(), instance: instance.into(), connected: Mutex::new(None), starts }
    }

    /// The socket that `DOCKER_HOST` (`unix://…`) names, or the default.
    pub fn socket_from_host(docker_host: Option<&str>) -> String {
        docker_host.and_then(|host| host.strip_prefix("unix://")).unwrap_or(DEFAULT_SOCKET).to_owned()
    }

    async fn client(&self) -> Result<Docker> {
        if let Some(docker) = self.connected.lock().clone() {
            return Ok(docker);
        }
        let docker = Docker::connect_with_unix(&self.socket, CALL_TIMEOUT.as_secs(), API_DEFAULT_VERSION)
            .map_err(|e| self.error(e))?
            .with_request_modifier(url_safe_auth);
        let docker = docker.negotiate_version().await.map_err(|e| self.error(e))?;
        *self.connected.lock() = Some(docker.clone());
        Ok(docker)
    }

    /// Maps an error; one that says the daemon is away also drops the connection, so that the next call negotiates anew.
    fn error(&self, error: BollardError) -> RuntimeError {
        let error = convert::error(error, &self.socket);
        if error.is_unavailable() {
            *self.connected.lock() = None;
        }
        error
    }

    fn own_filter(&self) -> String {
        format!("{}={}", labels::INSTANCE, self.instance)
    }

    async fn list_labelled(&self, more: Option<String>) -> Result<Vec<bollard::models::ContainerSummary>> {
        let docker = self.client().await?;
        let mut wanted = vec![self.own_filter()];
        wanted.extend(more);
        let filters = HashMap::from([("label".to_owned(), wanted)]);
        let options = query::ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        docker.list_containers(Some(options)).await.map_err(|e| self.error(e))
    }

    async fn inspect(&self, id: &str) -> Result<Container> {
        let docker = self.client().await?;
        let answer =
            docker.inspect_container(id, None::<query::InspectContainerOptions>).await.map_err(|e| self.error(e))?;
        convert::container(answer).ok_or_else(|| RuntimeError::NotFound(format!("container {id} is not a pod's")))
    }

    /// Creates under `name`; where a container of a lost request has the name already, under a name with a random end.
    async fn create_named(&self, name: &str, body: bollard::models::ContainerCreateBody) -> Result<String> {
        let docker = self.client().await?;
        let mut candidate = name.to_owned();
        for _ in 0..NAME_ATTEMPTS {
            let options = query::CreateContainerOptions { name: Some(candidate.clone()), ..Default::default() };
            match docker.create_container(Some(options), body.clone()).await.map_err(|e| self.error(e)) {
                Err(RuntimeError::Conflict(_)) => candidate = format!("{name}_{:08x}", rand::random::<u32>()),
                other => return other.map(|created| created.id),
            }
        }
        Err(RuntimeError::Conflict(format!("no free container name like {name}")))
    }

    async fn try_run_sandbox(&self, spec: &SandboxSpec, image: &str) -> Result<Container> {
        let docker = self.client().await?;
        let body = convert::sandbox_body(spec, image, &self.instance);
        let id = self.create_named(&convert::sandbox_name(spec), body).await?;
        let started =
            docker.start_container(&id, None::<query::StartContainerOptions>).await.map_err(|e| self.error(e));
        if let Err(error) = started {
            // A sandbox that never ran is of no use to anybody; a later relist finds it if this fails too.
            if let Err(leftover) = self.remove(&id).await {
                tracing::debug!(%id, error = %leftover, "a sandbox that did not start is left over");
            }
            return Err(error);
        }
        self.inspect(&id).await
    }

    async fn import_pause(&self) -> Result<String> {
        let program = pause::program().ok_or_else(|| {
            RuntimeError::Refused(format!("no pause program for {}; name one with pause_image", std::env::consts::ARCH))
        })?;
        let docker = self.client().await?;
        let options = query::CreateImageOptions {
            from_src: Some("-".into()),
            repo: Some(pause::REPOSITORY.into()),
            tag: Some(pause::TAG.into()),
            ..Default::default()
        };
        let body = bollard::body_full(pause::tar(&program).into());
        let mut progress = Box::pin(docker.create_image(Some(options), Some(body), None));
        while let Some(step) = progress.next().await {
            step.map_err(|e| self.error(e))?;
        }
        Ok(format!("{}:{}", pause::REPOSITORY, pause::TAG))
    }

    async fn raw(&self) -> Result<raw::Endpoint> {
        let version = self.client().await?.client_version();
        Ok(raw::Endpoint::new(self.socket.clone(), version.to_string()))
    }
}

/// bollard encodes credentials with `+` and `/`; the daemon expects the URL-safe alphabet.
fn url_safe_auth(mut request: bollard::BollardRequest) -> bollard::BollardRequest {
    const HEADER: &str = "x-registry-auth";
    if let Some(value) = request.headers().get(HEADER).and_then(|v| v.to_str().ok())
        && let Ok(fixed) = http::HeaderValue::from_str(&value.replace('+', "-").replace('/', "_"))
    {
        request.headers_mut().insert(HEADER, fixed);
    }
    request
}

#[async_trait]
impl ContainerRuntime for DockerRuntime {
    async fn version(&self) -> Result<Version> {
        let docker = self.client().await?;
        let version = docker.version().await.map_err(|e| self.error(e))?;
        Ok(Version { name: "docker".into(), version: version.version.unwrap_or_default() })
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>> {
        let docker = self.client().await?;
        match docker.inspect_image(reference).await.map_err(|e| self.error(e)) {
            Ok(found) => Ok(Some(convert::image(found))),
            Err(RuntimeError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn images(&self) -> Result<Vec<Image>> {
        let docker = self.client().await?;
        let all = docker.list_images(None::<query::ListImagesOptions>).await.map_err(|e| self.error(e))?;
        Ok(all.into_iter().map(convert::image_summary).collect())
    }

    async fn pull(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<Image> {
        let docker = self.client().await?.with_timeout(PULL_TIMEOUT);
        let (name, tag) = convert::split_reference(reference);
        let options = query::CreateImageOptions { from_image: Some(name), tag: Some(tag), ..Default::default() };
        let mut progress = Box::pin(docker.create_image(Some(options), None, auth.map(convert::credentials)));
        while let Some(step) = progress.next().await {
            step.map_err(|e| self.error(e))?;
        }
        self.image(reference)
            .await?
            .ok_or_else(|| RuntimeError::NotFound(format!("image {reference} is not there after it was pulled")))
    }

    async fn networks(&self) -> Result<Vec<Network>> {
        let docker = self.client().await?;
        let all = docker.list_networks(None::<query::ListNetworksOptions>).await.map_err(|e| self.error(e))?;
        Ok(all.into_iter().map(convert::network).collect())
    }

    async fn create_network(&self, name: &str, subnet: &str, gateway: Ipv4Addr) -> Result<()> {
        let docker = self.client().await?;
        let version = self.version().await?.version;
        let address_range =
            IpamConfig { subnet: Some(subnet.into()), gateway: Some(gateway.to_string()), ..Default::default() };
        let request = NetworkCreateRequest {
            name: name.into(),
            driver: Some("bridge".into()),
            ipam: Some(Ipam { config: Some(vec![address_range]), ..Default::default() }),
            labels: Some(HashMap::from([(labels::INSTANCE.into(), self.instance.clone())])),
            options: Some(convert::network_options(name, &version)),
            ..Default::default()
        };
        match docker.create_network(request).await.map_err(|e| self.error(e)) {
            Ok(_) => Ok(()),
            // 403 and 500 with these words, depending on the version.
            Err(RuntimeError::Refused(text)) if text.contains("overlap") || text.contains("already in use") => {
                Err(RuntimeError::Conflict(text))
            }
            Err(error) => Err(error),
        }
    }

    async fn remove_network(&self, name: &str) -> Result<()> {
        let docker = self.client().await?;
        match docker.remove_network(name).await.map_err(|e| self.error(e)) {
            Err(RuntimeError::NotFound(_)) => Ok(()),
            other => other,
        }
    }

    async fn run_sandbox(&self, spec: &SandboxSpec) -> Result<Container> {
        let _turn = self.starts.acquire().await;
        let image = format!("{}:{}", pause::REPOSITORY, pause::TAG);
        match self.try_run_sandbox(spec, &image).await {
            Err(RuntimeError::NotFound(_)) => {
                let imported = self.import_pause().await?;
                self.try_run_sandbox(spec, &imported).await
            }
            other => other,
        }
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String> {
        let _turn = self.starts.acquire().await;
        self.create_named(&convert::container_name(spec), convert::container_body(spec, &self.instance)).await
    }

    async fn start(&self, id: &str) -> Result<()> {
        let _turn = self.starts.acquire().await;
        let docker = self.client().await?;
        docker.start_container(id, None::<query::StartContainerOptions>).await.map_err(|e| self.error(e))
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<()> {
        let docker = self.client().await?.with_timeout(grace + STOP_SLACK);
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = query::StopContainerOptions { t: Some(seconds), ..Default::default() };
        match docker.stop_container(id, Some(options)).await.map_err(|e| self.error(e)) {
            Err(RuntimeError::NotFound(_)) => Ok(()),
            other => other,
        }
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let docker = self.client().await?;
        let options = query::RemoveContainerOptions { force: true, v: true, ..Default::default() };
        match docker.remove_container(id, Some(options)).await.map_err(|e| self.error(e)) {
            // 409 is "removal is already in progress": somebody else is at it.
            Err(RuntimeError::NotFound(_) | RuntimeError::Conflict(_)) => Ok(()),
            other => other,
        }
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        Ok(self.list_labelled(None).await?.into_iter().filter_map(convert::listed).collect())
    }

    async fn pod(&self, uid: &str) -> Result<Vec<Container>> {
        let found = self.list_labelled(Some(format!("{}={uid}", labels::POD_UID))).await?;
        let inspections = found.iter().filter_map(|c| c.id.as_deref()).map(|id| self.inspect(id));
        let mut out = Vec::with_capacity(found.len());
        for inspection in futures::future::join_all(inspections).await {
            match inspection {
                Ok(container) => out.push(container),
                Err(RuntimeError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(out)
    }

    async fn events(&self) -> Result<BoxStream<'static, Result<Event>>> {
        let filters = serde_json::json!({
            "type": ["container"], "event": ["start", "die", "destroy", "oom"], "label": [self.own_filter()],
        });
        self.raw().await?.events(&filters).await
    }

    async fn logs(&self, id: &str, options: &LogOptions) -> Result<OutputStream> {
        let tty = self.inspect(id).await?.tty;
        self.raw().await?.logs(id, options, tty).await
    }

    async fn exec(&self, id: &str, spec: &ExecSpec) -> Result<Session> {
        let docker = self.client().await?;
        let options = bollard::exec::CreateExecOptions {
            attach_stdin: Some(spec.stdin),
            attach_stdout: Some(spec.stdout),
            attach_stderr: Some(spec.stderr && !spec.tty),
            tty: Some(spec.tty),
            cmd: Some(spec.command.clone()),
            ..Default::default()
        };
        let exec_id = docker.create_exec(id, options).await.map_err(|e| self.error(e))?.id;
        let endpoint = self.raw().await?;
        let control = raw::Control::exec(docker, self.socket.clone(), exec_id.clone());
        endpoint.start_exec(&exec_id, spec, control).await
    }

    async fn attach(&self, id: &str, spec: &ExecSpec) -> Result<Session> {
        let docker = self.client().await?;
        let tty = self.inspect(id).await?.tty;
        let control = raw::Control::container(docker, self.socket.clone(), id.to_owned());
        self.raw().await?.attach(id, spec, tty, control).await
    }

    async fn stats(&self, id: &str) -> Result<Stats> {
        let docker = self.client().await?;
        let options = query::StatsOptions { stream: false, one_shot: true };
        let mut answers = Box::pin(docker.stats(id, Some(options)));
        let first = tokio::time::timeout(CALL_TIMEOUT, answers.next())
            .await
            .map_err(|_| RuntimeError::Timeout(CALL_TIMEOUT))?;
        match first {
            Some(answer) => Ok(convert::stats(&answer.map_err(|e| self.error(e))?)),
            None => Err(RuntimeError::NotFound(format!("container {id} has no counters"))),
        }
    }

    async fn dial(&self, _pod: &PodRef, address: SocketAddr) -> std::io::Result<Box<dyn Io>> {
        let connected = tokio::time::timeout(DIAL_TIMEOUT, tokio::net::TcpStream::connect(address)).await;
        Ok(Box::new(connected.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??))
    }
}

/// Kind of a container by its label.
fn kind_of(label: Option<&String>) -> Option<Kind> {
    match label.map(String::as_str) {
        Some("podsandbox") => Some(Kind::Sandbox),
        Some("container") => Some(Kind::Container),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_comes_from_docker_host() {
        assert_eq!(DockerRuntime::socket_from_host(None), DEFAULT_SOCKET);
        assert_eq!(DockerRuntime::socket_from_host(Some("unix:///run/d.sock")), "/run/d.sock");
        assert_eq!(DockerRuntime::socket_from_host(Some("tcp://10.0.0.1:2375")), DEFAULT_SOCKET);
    }

    #[tokio::test]
    async fn an_absent_daemon_is_unavailable_and_says_what_to_do() {
        let runtime = DockerRuntime::new("/nonexistent/docker.sock", "test");
        let error = runtime.version().await.unwrap_err();
        assert!(error.is_unavailable());
        assert!(error.to_string().contains("systemctl start docker"), "{error}");
    }
}
