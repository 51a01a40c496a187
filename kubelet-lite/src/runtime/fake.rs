//! A runtime without processes: containers follow a script.
//!
//! For tests, and for hollow nodes by the thousand in one process: a container that does nothing costs one map entry and no
//! task. It never touches disk or network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast;

use super::{
    Container, ContainerRuntime, ContainerSpec, Event, ExecSpec, Exit, Image, Io, Kind, Listed, LogOptions, Network,
    OutputStream, PodRef, RegistryAuth, Result, RuntimeError, SandboxSpec, Session, SessionControl, State, Stats,
    StdStream, Version,
};
use crate::clock::{Clock, after};

/// Events a slow reader may fall behind by; it relists after a gap.
const EVENT_BUFFER: usize = 1024;
/// Bytes in flight in a fake connection.
const PIPE_BYTES: usize = 4096;

/// How one container behaves.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// How long [`ContainerRuntime::start`] takes.
    pub start_delay: Duration,
    /// Fails to start with this text.
    pub start_error: Option<String>,
    /// Ends by itself after this; `None` runs until stopped.
    pub run_for: Option<Duration>,
    /// Code it ends with by itself.
    pub exit_code: i32,
    /// Ends as if out of memory.
    pub oom_killed: bool,
    /// Takes connections (probes) from this long after its start; `None` never.
    pub ready_after: Option<Duration>,
    /// Does not end on the stop signal, only when killed.
    pub ignores_stop: bool,
    /// What it prints when started.
    pub output: Vec<(StdStreamName, String)>,
    /// What an exec prints and returns.
    pub exec: (String, i32),
}

/// Standard stream in a [`Script`].
pub type StdStreamName = StdStream;

/// Chooses a script for a container.
pub type Director = Box<dyn Fn(&ContainerSpec) -> Script + Send + Sync>;

struct Entry {
    container: Container,
    script: Script,
    printed: Vec<(StdStream, String)>,
}

#[derive(Default)]
struct World {
    serial: u64,
    away: bool,
    entries: BTreeMap<String, Entry>,
    networks: Vec<Network>,
    missing_images: BTreeSet<String>,
    unpulled_images: BTreeSet<String>,
    pulls: Vec<(String, bool)>,
    specs: BTreeMap<String, ContainerSpec>,
    removed: Vec<String>,
}

struct Inner {
    clock: Clock,
    director: Director,
    world: Mutex<World>,
    events: broadcast::Sender<Event>,
    base: u32,
}

/// The fake. Clones share one world.
#[derive(Clone)]
pub struct FakeRuntime(Arc<Inner>);

impl FakeRuntime {
    /// With a director; pods get addresses from 10.200.0.1 on.
    pub fn new(clock: Clock, director: Director) -> Self {
        let base = u32::from(Ipv4Addr::new(10, 200, 0, 0));
        let events = broadcast::channel(EVENT_BUFFER).0;
        Self(Arc::new(Inner { clock, director, world: Mutex::default(), events, base }))
    }

    /// Every container runs until stopped and takes connections at once.
    pub fn steady(clock: Clock) -> Self {
        Self::new(clock, Box::new(|_| Script { ready_after: Some(Duration::ZERO), ..Script::default() }))
    }

    /// Makes the whole runtime unreachable, or reachable again.
    pub fn set_away(&self, away: bool) {
        self.0.world.lock().away = away;
        if away {
            // Nothing changed, but readers of events notice that the world is gone when they relist.
            self.notify("");
        }
    }
    /// An image that no registry has.
    pub fn miss_image(&self, reference: &str) {
        self.0.world.lock().missing_images.insert(reference.to_owned());
    }
    /// The registry has it after all.
    pub fn publish_image(&self, reference: &str) {
        self.0.world.lock().missing_images.remove(reference);
    }
    /// An image that is not here yet but can be pulled.
    pub fn forget_image(&self, reference: &str) {
        self.0.world.lock().unpulled_images.insert(reference.to_owned());
    }
    /// References pulled so far, and whether with credentials.
    pub fn pulls(&self) -> Vec<(String, bool)> {
        self.0.world.lock().pulls.clone()
    }
    /// The spec a container was made from.
    pub fn spec_of(&self, id: &str) -> Option<ContainerSpec> {
        self.0.world.lock().specs.get(id).cloned()
    }
    /// Ids removed so far.
    pub fn removed(&self) -> Vec<String> {
        self.0.world.lock().removed.clone()
    }
    /// Kills a container from outside, as `docker kill` does.
    pub fn kill(&self, id: &str) {
        self.finish(id, None, 137, false);
    }
    /// Changes how a container takes connections from now on.
    pub fn set_ready(&self, id: &str, ready: bool) {
        if let Some(entry) = self.0.world.lock().entries.get_mut(id) {
            entry.script.ready_after = ready.then_some(Duration::ZERO);
        }
    }

    fn notify(&self, pod_uid: &str) {
        // No reader is fine: the agent relists when it subscribes.
        let _unread = self.0.events.send(Event { pod_uid: pod_uid.to_owned() });
    }

    fn here(&self) -> Result<parking_lot::MutexGuard<'_, World>> {
        let world = self.0.world.lock();
        if world.away {
            return Err(RuntimeError::Unavailable { endpoint: "fake".into(), source: "away".into() });
        }
        Ok(world)
    }

    fn check_here(&self) -> Result<()> {
        self.here().map(drop)
    }

    /// Ends a running container; with `started` only the run that began then.
    fn finish(&self, id: &str, started: Option<jiff::Timestamp>, code: i32, oom_killed: bool) {
        let mut world = self.0.world.lock();
        let Some(entry) = world.entries.get_mut(id) else { return };
        let other_run = started.is_some() && entry.container.started_at != started;
        if !entry.container.is_running() || other_run {
            return;
        }
        let at = self.0.clock.now();
        entry.container.state = State::Exited(Exit { code, oom_killed, start_error: String::new(), at });
        let uid = entry.container.pod.uid.clone();
        drop(world);
        self.notify(&uid);
    }
}

fn no_such(id: &str) -> RuntimeError {
    RuntimeError::NotFound(format!("No such container: {id}"))
}

fn fake_image(reference: &str) -> Image {
    Image { id: format!("sha256:fake-{reference}"), tags: vec![reference.to_owned()], ..Image::default() }
}

#[async_trait]
impl ContainerRuntime for FakeRuntime {
    async fn version(&self) -> Result<Version> {
        self.check_here()?;
        Ok(Version { name: "fake".into(), version: "1.0".into() })
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>> {
        let world = self.here()?;
        let here = !world.missing_images.contains(reference) && !world.unpulled_images.contains(reference);
        Ok(here.then(|| fake_image(reference)))
    }

    async fn images(&self) -> Result<Vec<Image>> {
        self.check_here()?;
        Ok(Vec::new())
    }

    async fn pull(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<Image> {
        let mut world = self.here()?;
        world.pulls.push((reference.to_owned(), auth.is_some()));
        if world.missing_images.contains(reference) {
            return Err(RuntimeError::NotFound(format!("manifest for {reference} not found: manifest unknown")));
        }
        world.unpulled_images.remove(reference);
        Ok(fake_image(reference))
    }

    async fn networks(&self) -> Result<Vec<Network>> {
        Ok(self.here()?.networks.clone())
    }

    async fn create_network(&self, name: &str, subnet: &str, gateway: Ipv4Addr) -> Result<()> {
        let mut world = self.here()?;
        if world.networks.iter().any(|n| n.name == name || n.subnets.iter().any(|s| s == subnet)) {
            return Err(RuntimeError::Conflict(format!("network {name} or subnet {subnet} is taken")));
        }
        world.networks.push(Network {
            name: name.into(),
            subnets: vec![subnet.into()],
            gateway: Some(gateway),
            labels: BTreeMap::new(),
        });
        Ok(())
    }

    async fn remove_network(&self, name: &str) -> Result<()> {
        self.here()?.networks.retain(|n| n.name != name);
        Ok(())
    }

    async fn run_sandbox(&self, spec: &SandboxSpec) -> Result<Container> {
        let mut world = self.here()?;
        world.serial += 1;
        let serial = world.serial;
        let now = self.0.clock.now();
        let offset = u32::try_from(serial).unwrap_or(u32::MAX) & 0x00ff_ffff;
        let on_host = spec.network == super::SandboxNetwork::Host;
        let container = Container {
            id: format!("fake-{serial:08}"),
            kind: Kind::Sandbox,
            pod: spec.pod.clone(),
            name: String::new(),
            attempt: spec.attempt,
            hash: String::new(),
            sandbox_id: String::new(),
            state: State::Running,
            created_at: now,
            started_at: Some(now),
            image: String::new(),
            image_id: String::new(),
            address: (!on_host).then(|| IpAddr::V4(Ipv4Addr::from(self.0.base.saturating_add(offset)))),
            tty: false,
        };
        let entry = Entry { container: container.clone(), script: Script::default(), printed: Vec::new() };
        world.entries.insert(container.id.clone(), entry);
        Ok(container)
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String> {
        let script = (self.0.director)(spec);
        let mut world = self.here()?;
        world.serial += 1;
        let id = format!("fake-{:08}", world.serial);
        let container = Container {
            id: id.clone(),
            kind: Kind::Container,
            pod: spec.pod.clone(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            hash: spec.hash.clone(),
            sandbox_id: spec.sandbox_id.clone(),
            state: State::Created,
            created_at: self.0.clock.now(),
            started_at: None,
            image: spec.image_name.clone(),
            image_id: spec.image.clone(),
            address: None,
            tty: spec.tty,
        };
        world.entries.insert(id.clone(), Entry { container, script, printed: Vec::new() });
        world.specs.insert(id.clone(), spec.clone());
        Ok(id)
    }

    async fn start(&self, id: &str) -> Result<()> {
        let script = self.here()?.entries.get(id).ok_or_else(|| no_such(id))?.script.clone();
        if !script.start_delay.is_zero() {
            tokio::time::sleep(script.start_delay).await;
        }
        let now = self.0.clock.now();
        let uid = {
            let mut world = self.here()?;
            let entry = world.entries.get_mut(id).ok_or_else(|| no_such(id))?;
            if let Some(text) = script.start_error {
                let exit = Exit { code: 128, oom_killed: false, start_error: text.clone(), at: now };
                entry.container.state = State::Exited(exit);
                return Err(RuntimeError::Refused(text));
            }
            entry.container.state = State::Running;
            entry.container.started_at = Some(now);
            entry.printed.extend(script.output);
            entry.container.pod.uid.clone()
        };
        self.notify(&uid);
        if let Some(run_for) = script.run_for {
            let (this, id) = (self.clone(), id.to_owned());
            tokio::spawn(async move {
                tokio::time::sleep(run_for).await;
                this.finish(&id, Some(now), script.exit_code, script.oom_killed);
            });
        }
        Ok(())
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<()> {
        let stubborn = match self.here()?.entries.get(id) {
            Some(entry) if entry.container.is_running() => entry.script.ignores_stop,
            _ => return Ok(()),
        };
        if stubborn {
            tokio::time::sleep(grace).await;
        }
        self.finish(id, None, if stubborn { 137 } else { 143 }, false);
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let gone = {
            let mut world = self.here()?;
            let gone = world.entries.remove(id);
            if gone.is_some() {
                world.specs.remove(id);
                world.removed.push(id.to_owned());
            }
            gone
        };
        if let Some(entry) = gone {
            self.notify(&entry.container.pod.uid);
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let world = self.here()?;
        let line = |e: &Entry| Listed {
            id: e.container.id.clone(),
            kind: e.container.kind,
            pod: e.container.pod.clone(),
            name: e.container.name.clone(),
            running: e.container.is_running(),
        };
        Ok(world.entries.values().map(line).collect())
    }

    async fn pod(&self, uid: &str) -> Result<Vec<Container>> {
        let world = self.here()?;
        Ok(world.entries.values().filter(|e| e.container.pod.uid == uid).map(|e| e.container.clone()).collect())
    }

    async fn events(&self) -> Result<BoxStream<'static, Result<Event>>> {
        self.check_here()?;
        let receiver = self.0.events.subscribe();
        let stream = futures::stream::unfold(receiver, |mut receiver| async move {
            let event = receiver.recv().await.map_err(|e| RuntimeError::Stream(e.into()));
            (!matches!(&event, Ok(e) if e.pod_uid.is_empty())).then_some((event, receiver))
        });
        Ok(stream.boxed())
    }

    async fn logs(&self, id: &str, options: &LogOptions) -> Result<OutputStream> {
        let world = self.here()?;
        let entry = world.entries.get(id).ok_or_else(|| no_such(id))?;
        let skip = match options.tail {
            Some(n) => entry.printed.len().saturating_sub(usize::try_from(n).unwrap_or(usize::MAX)),
            None => 0,
        };
        let stamp = options.timestamps.then(|| format!("{} ", entry.container.started_at.unwrap_or_default()));
        let lines: Vec<_> = entry.printed[skip..]
            .iter()
            .map(|(stream, text)| Ok((*stream, Bytes::from(format!("{}{text}", stamp.as_deref().unwrap_or_default())))))
            .collect();
        Ok(futures::stream::iter(lines).boxed())
    }

    async fn exec(&self, id: &str, spec: &ExecSpec) -> Result<Session> {
        let world = self.here()?;
        let entry = world.entries.get(id).ok_or_else(|| no_such(id))?;
        if !entry.container.is_running() {
            return Err(RuntimeError::Conflict(format!("Container {id} is not running")));
        }
        let (text, code) = entry.script.exec.clone();
        let output = futures::stream::iter([Ok((StdStream::Out, Bytes::from(text)))]).boxed();
        let input: Option<Box<dyn tokio::io::AsyncWrite + Send + Unpin>> =
            if spec.stdin { Some(Box::new(tokio::io::sink())) } else { None };
        Ok(Session { output, input, control: Box::new(Code(code)) })
    }

    async fn attach(&self, id: &str, spec: &ExecSpec) -> Result<Session> {
        self.exec(id, spec).await
    }

    async fn stats(&self, id: &str) -> Result<Stats> {
        let world = self.here()?;
        let entry = world.entries.get(id).ok_or_else(|| no_such(id))?;
        let age = entry.container.started_at.map(|at| crate::clock::between(at, self.0.clock.now()));
        let cpu_ns = u64::try_from(age.unwrap_or_default().as_nanos() / 100).unwrap_or(u64::MAX);
        Ok(Stats { cpu_ns, memory_working_set_bytes: 1 << 20, memory_usage_bytes: 1 << 20, rx_bytes: 0, tx_bytes: 0 })
    }

    async fn dial(&self, pod: &PodRef, _address: SocketAddr) -> std::io::Result<Box<dyn Io>> {
        let now = self.0.clock.now();
        let takes = |e: &Entry| {
            let started = e.container.started_at.unwrap_or(jiff::Timestamp::MAX);
            e.container.kind == Kind::Container
                && e.container.pod.uid == pod.uid
                && e.container.is_running()
                && e.script.ready_after.is_some_and(|delay| now >= after(started, delay))
        };
        if !self.0.world.lock().entries.values().any(takes) {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        let (near, mut far) = tokio::io::duplex(PIPE_BYTES);
        tokio::spawn(async move {
            let mut head = [0u8; PIPE_BYTES];
            if far.read(&mut head).await.is_ok_and(|n| n > 0) {
                // The prober may hang up first.
                let _gone = far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        });
        Ok(Box::new(near))
    }
}

struct Code(i32);

#[async_trait]
impl SessionControl for Code {
    async fn resize(&self, _width: u16, _height: u16) -> Result<()> {
        Ok(())
    }
    async fn exit_code(&self) -> Result<Option<i32>> {
        Ok(Some(self.0))
    }
}
