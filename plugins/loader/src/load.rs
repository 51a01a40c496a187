//! One slot: which generations it is to hold, and putting them in.

use std::sync::Arc;

use scaleup_api::plugin::{PluginVersion, WasmPluginStatus};
use scaleup_plugins::{
    Class, CompileError, Generation, Generations, HostError, PluginKey, Registry, Rollout, Setup, Slot, State, World,
};

use crate::convert::{failure_policy, limits, recording};
use crate::host::LazyHost;
use crate::modules::{self, ModuleError};
use crate::watch::Plugin;

/// Why a slot is not as it should be. Worth another try, always.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No bytes.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// No host, or its compiler does not run.
    #[error("the plugin host cannot be used")]
    Host(#[from] HostError),
    /// It compiled elsewhere, but not here.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// It does not start.
    #[error("it does not start: {0}")]
    Start(scaleup_plugins::Failure),
    /// The machine's fault.
    #[error("it could not be started: {0}")]
    Thread(String),
    /// A version of another world, or one that was just taken out.
    #[error("it could not be put in: {0}")]
    Refused(String),
}

impl LoadError {
    /// For failure policies.
    pub fn class(&self) -> Class {
        match self {
            Self::Compile(error) if !matches!(error, CompileError::Compiler(_)) => Class::Compile,
            Self::Start(_) | Self::Refused(_) => Class::Compile,
            _ => Class::Fetch,
        }
    }

    /// With its cause.
    pub fn message(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) if !self.to_string().contains(&cause.to_string()) => format!("{self}: {cause}"),
            _ => self.to_string(),
        }
    }
}

/// Loads for one process.
pub struct Slots {
    pub client: kube::Client,
    pub host: Arc<LazyHost>,
    pub registry: Arc<Registry>,
}

/// What the status says of why there is no version.
fn why_absent(status: &WasmPluginStatus) -> (Class, String) {
    let failed = status.conditions.iter().find(|condition| condition.status == "False");
    let Some(failed) = failed else { return (Class::Fetch, "no version of it has been loaded yet".into()) };
    let class = if failed.type_ == "Fetched" { Class::Fetch } else { Class::Compile };
    (class, format!("{}: {}", failed.reason, failed.message))
}

impl Slots {
    /// Makes the slot what the plugin's status says. What is in it stays in it until what is to follow is ready.
    pub async fn load(&self, plugin: &Plugin, world: World) -> Result<(), LoadError> {
        let slot = self.registry.slot(&plugin.key, world);
        let before = (slot.is_known(), slot.policy.is_absent());
        slot.set_known(true);
        slot.set_recording(plugin.spec.recording.as_ref().map(recording));
        let result = self.fill(plugin, world, &slot).await;
        if let Err(error) = &result
            && slot.policy.is_absent()
        {
            slot.policy.set_absent(error.class(), &error.message());
        }
        if before != (true, slot.policy.is_absent()) {
            self.registry.announce();
        }
        result
    }

    async fn fill(&self, plugin: &Plugin, world: World, slot: &Slot) -> Result<(), LoadError> {
        let status = &plugin.status;
        let policy = status.active.as_ref().map_or(&plugin.spec.failure_policy, |active| &active.failure_policy);
        slot.set_failure(failure_policy(world, policy.as_ref()));
        let Some(wanted) = &status.active else {
            let (class, message) = why_absent(status);
            if slot.policy.is_absent() {
                slot.policy.set_absent(class, &message);
            } else {
                slot.policy.clear(class, &message);
            }
            return Ok(());
        };
        let present = slot.policy.generations();
        let is_tripped = |number: i64| present.tripped.as_ref().is_some_and(|tripped| is(tripped, number));
        // What keeps failing here stays out, until another version comes.
        let active = match &present.active {
            Some(active) if is_tripped(wanted.number) => active.clone(),
            _ => self.generation(plugin, world, wanted, &present).await?,
        };
        let mut previous = None;
        if let Some(version) = status.previous.as_ref().filter(|before| !is(&active, before.number)) {
            // It is only for when the active one keeps failing: the slot is in order without.
            match self.generation(plugin, world, version, &present).await {
                Ok(generation) => previous = Some(generation),
                Err(error) => tracing::debug!(plugin = %plugin.key, %error, "the previous version is not loaded"),
            }
        }
        let mut candidate = Ok(None);
        if let Some(version) = status.candidate.as_ref().filter(|candidate| !is_tripped(candidate.number)) {
            let rollout = rollout(version);
            candidate = self.generation(plugin, world, version, &present).await.map(|one| Some((one, rollout)));
        }
        let (candidate, failed) = match candidate {
            Ok(candidate) => (candidate, None),
            Err(error) => (None, Some(error)),
        };
        let done = slot.policy.arrange(active, candidate, previous);
        done.map_err(|wrong| LoadError::Refused(wrong.to_string()))?;
        let tried = status.candidate.as_ref().map(|candidate| candidate.number);
        if present.tripped.is_some() && !is_tripped(wanted.number) && !tried.is_some_and(is_tripped) {
            slot.policy.forget_tripped();
        }
        failed.map_or(Ok(()), Err)
    }

    /// The version's generation: the one that is in the slot already, or a new one.
    async fn generation(
        &self,
        plugin: &Plugin,
        world: World,
        version: &PluginVersion,
        present: &Generations,
    ) -> Result<Arc<Generation>, LoadError> {
        let candidate = present.candidate.as_ref().map(|(candidate, _)| candidate);
        let mut there = present.active.iter().chain(candidate).chain(&present.previous).chain(&present.tripped);
        if let Some(found) =
            there.find(|one| is(one, version.number) && one.module().digest().to_string() == version.digest)
        {
            return Ok(found.clone());
        }
        let host = self.host.get().await?.clone();
        let limits = limits(world, version.limits.as_ref());
        let bytes = modules::fetch(&self.client, plugin.modules(), &version.digest).await?;
        let module = host.compile(world, &bytes, &limits).await?;
        drop(bytes);
        let setup = Setup {
            plugin: plugin.key.to_string().into(),
            number: version.number.unsigned_abs(),
            config: version.config.as_ref().map_or_else(|| "{}".to_owned(), ToString::to_string).into(),
            state: inherited(plugin, version, present, &limits),
            limits,
        };
        // Its instances run for the first time.
        let started = tokio::task::spawn_blocking(move || Generation::new(&host, module, setup)).await;
        started.map_err(|error| LoadError::Thread(error.to_string()))?.map_err(LoadError::Start)
    }

    /// The plugin is gone.
    pub fn unload(&self, key: &PluginKey, world: World) {
        let slot = self.registry.slot(key, world);
        let was_known = slot.is_known();
        slot.set_known(false);
        slot.set_recording(None);
        slot.policy.clear(Class::Fetch, "there is no such plugin");
        drop(slot);
        self.registry.prune();
        if was_known {
            self.registry.announce();
        }
    }
}

fn is(generation: &Generation, number: i64) -> bool {
    generation.number() == number.unsigned_abs()
}

/// A version that takes over at once goes on with the state of the one that it replaces; one that is tried must not touch it.
fn inherited(
    plugin: &Plugin,
    version: &PluginVersion,
    present: &Generations,
    limits: &scaleup_plugins::Limits,
) -> Option<Arc<State>> {
    let takes_over = plugin.status.active.as_ref().is_some_and(|active| active.number == version.number);
    let active = present.active.as_ref().filter(|_| takes_over)?;
    let had = active.limits();
    let same = (had.state_entries, had.state_bytes) == (limits.state_entries, limits.state_bytes);
    same.then(|| active.state().clone())
}

fn rollout(version: &PluginVersion) -> Rollout {
    match version.percent.and_then(|percent| u8::try_from(percent).ok()) {
        Some(percent) if version.phase == "Canary" => Rollout::Canary(percent.min(100)),
        _ => Rollout::Shadow,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    #[test]
    fn the_status_says_why_there_is_none() {
        let mut status = WasmPluginStatus::default();
        assert_eq!(why_absent(&status).0, Class::Fetch);
        let condition = |kind: &str| Condition {
            type_: kind.into(),
            status: "False".into(),
            reason: "Because".into(),
            message: "of this".into(),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            observed_generation: None,
        };
        status.conditions = vec![condition("Fetched")];
        assert_eq!(why_absent(&status), (Class::Fetch, "Because: of this".into()));
        status.conditions = vec![condition("Verified")];
        assert_eq!(why_absent(&status).0, Class::Compile);
    }

    #[test]
    fn phases_are_rollouts() {
        let version = |phase: &str, percent| PluginVersion { phase: phase.into(), percent, ..PluginVersion::default() };
        assert_eq!(rollout(&version("Canary", Some(20))), Rollout::Canary(20));
        assert_eq!(rollout(&version("Shadow", None)), Rollout::Shadow);
    }
}
