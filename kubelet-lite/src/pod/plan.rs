//! What to do next for a pod: `plan(pod, observed, facts, now)` → operations. Pure; upstream's `computePodActions`.
//!
//! ```text
//! no sandbox ──► volumes, image ‖ sandbox ──► init containers, one by one ──► containers
//!      ▲                                        (sidecars stay)                  │ exit: by policy, with backoff
//!      └───────────── sandbox gone ◄─────────────────────────────────────────────┘ all ended: wind down
//! ```
//! Never decides about deletion (see [`super::terminate`]) and never does I/O.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as SpecContainer, Pod};

use super::backoff::go_seconds;
use super::facts::{Facts, Hook, ImageFact, Step, StopReason};
use super::view::{self, Observed};
use crate::runtime::{Container, Exit};

/// Dead containers kept per name beside the newest, for `kubectl logs --previous`.
const KEPT_DEAD: usize = 1;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Put the volumes in place.
    SetUpVolumes,
    /// Have the container's image on this machine.
    EnsureImage(String),
    /// Make and start a sandbox.
    RunSandbox {
        /// Counts sandboxes.
        attempt: u32,
    },
    /// Make and start a container.
    Start {
        /// Name.
        container: String,
        /// Restart count.
        attempt: u32,
    },
    /// Stop a container, with its `preStop` hook.
    Stop {
        /// Runtime id.
        id: String,
        /// Name.
        container: String,
        /// Why.
        why: StopReason,
    },
    /// Stop the sandbox; every container has ended.
    StopSandbox(String),
    /// Remove something dead.
    Remove(String),
}

/// Why a container does not run (`state.waiting`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Upstream's reason.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What [`plan`] decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order.
    pub ops: Vec<Op>,
    /// Containers that should run but cannot yet.
    pub waiting: BTreeMap<String, Waiting>,
    /// Plan again then at the latest.
    pub wake: Option<Timestamp>,
    /// No container will ever run again.
    pub finished: bool,
}

/// Decides.
pub fn plan(pod: &Pod, observed: &Observed, facts: &Facts, now: Timestamp) -> Plan {
    let mut planner = Planner { pod, observed, facts, now, out: Plan::default() };
    planner.sweep();
    if facts.ended.is_some() || view::has_ended(pod) || planner.containers_finished() || planner.init_failed() {
        planner.wind_down();
    } else if let Some(sandbox) = &observed.sandbox {
        planner.with_sandbox(sandbox);
    } else {
        planner.without_sandbox();
    }
    planner.out
}

struct Planner<'a> {
    pod: &'a Pod,
    observed: &'a Observed,
    facts: &'a Facts,
    now: Timestamp,
    out: Plan,
}

/// Whether a container that ended that way is started again.
fn restarts(policy: &str, exit: &Exit) -> bool {
    match policy {
        "Always" => true,
        "OnFailure" => exit.code != 0,
        _ => false,
    }
}

impl Planner<'_> {
    /// Leftovers that no decision depends on.
    fn sweep(&mut self) {
        for container in &self.observed.unstarted {
            self.out.ops.push(Op::Remove(container.id.clone()));
        }
        for generations in self.observed.containers.values() {
            let dead = generations.iter().skip(1).filter(|c| !c.is_running());
            self.out.ops.extend(dead.skip(KEPT_DEAD).map(|c| Op::Remove(c.id.clone())));
            // Two running containers of one name cannot be ours on purpose; the older one goes.
            for extra in generations.iter().skip(1).filter(|c| c.is_running()) {
                self.stop(extra, StopReason::Changed);
            }
        }
        for sandbox in &self.observed.old_sandboxes {
            let in_use = self.observed.running().any(|c| c.sandbox_id == sandbox.id);
            // The newest one's number must survive until there is a newer one.
            let newest = self.observed.next_sandbox_attempt() == sandbox.attempt + 1 && self.observed.sandbox.is_none();
            if !in_use && !newest {
                self.out.ops.push(Op::Remove(sandbox.id.clone()));
            }
        }
    }

    fn stop(&mut self, container: &Container, why: StopReason) {
        if !self.facts.stopping.contains(&container.id) {
            self.out.ops.push(Op::Stop { id: container.id.clone(), container: container.name.clone(), why });
        }
    }

    fn wake(&mut self, at: Timestamp) {
        self.out.wake = Some(self.out.wake.map_or(at, |w| w.min(at)));
    }

    fn wait(&mut self, container: &str, reason: &'static str, message: impl Into<String>) {
        self.out.waiting.insert(container.into(), Waiting { reason, message: message.into() });
    }

    /// All containers have ended and none is to be started again.
    fn containers_finished(&self) -> bool {
        let policy = view::restart_policy(self.pod);
        policy != "Always"
            && view::containers(self.pod).iter().all(|c| {
                let newest = self.observed.newest(&c.name);
                newest.and_then(Container::exit).is_some_and(|exit| !restarts(policy, exit) && !self.is_stale(c))
            })
    }

    /// The container was made from another image than the spec names now.
    fn is_stale(&self, container: &SpecContainer) -> bool {
        let newest = self.observed.newest(&container.name);
        newest.is_some_and(|c| !c.hash.is_empty() && c.hash != super::spec::hash(container))
    }

    /// An init container has failed and is not started again.
    fn init_failed(&self) -> bool {
        let failed = |c: &SpecContainer| {
            let exit = self.observed.newest(&c.name).and_then(Container::exit);
            !view::is_sidecar(c) && exit.is_some_and(|e| e.code != 0)
        };
        view::restart_policy(self.pod) == "Never"
            && !self.any_container_ran()
            && view::init_containers(self.pod).iter().any(failed)
    }

    fn any_container_ran(&self) -> bool {
        view::containers(self.pod).iter().any(|c| self.observed.newest(&c.name).is_some())
    }

    /// The pod has ended: stop what still runs, sidecars last, then the sandbox.
    fn wind_down(&mut self) {
        self.out.finished = true;
        self.default_waiting();
        let sidecars: Vec<&str> = view::init_containers(self.pod).iter().map(|c| c.name.as_str()).collect();
        let (last, first): (Vec<&Container>, Vec<&Container>) =
            self.observed.running().partition(|c| sidecars.contains(&c.name.as_str()));
        if !first.is_empty() {
            first.into_iter().for_each(|c| self.stop(c, StopReason::PodEnded));
        } else if !last.is_empty() {
            last.into_iter().for_each(|c| self.stop(c, StopReason::PodEnded));
        } else if let Some(sandbox) = &self.observed.sandbox
            && !self.facts.stopping.contains(&sandbox.id)
        {
            self.out.ops.push(Op::StopSandbox(sandbox.id.clone()));
        }
    }

    fn without_sandbox(&mut self) {
        let orphans: Vec<&Container> = self.observed.running().collect();
        if !orphans.is_empty() {
            orphans.into_iter().for_each(|c| self.stop(c, StopReason::SandboxGone));
            return;
        }
        if view::restart_policy(self.pod) == "Never" && self.any_container_ran() {
            self.out.finished = true;
            return;
        }
        self.volumes();
        // What is started first; its image is fetched while the sandbox is made.
        let first = match view::init_containers(self.pod).first() {
            Some(init) => std::slice::from_ref(init),
            None => view::containers(self.pod),
        };
        for container in first {
            self.image_ready(container);
        }
        self.default_waiting();
        match &self.facts.sandbox {
            Some(failure) if self.now < failure.retry_at => self.wake(failure.retry_at),
            _ => self.out.ops.push(Op::RunSandbox { attempt: self.observed.next_sandbox_attempt() }),
        }
    }

    fn with_sandbox(&mut self, sandbox: &Container) {
        if self.init_done(sandbox) {
            for container in view::containers(self.pod) {
                self.drive(container, view::restart_policy(self.pod));
            }
        }
        self.default_waiting();
    }

    /// Walks the init containers in order and starts what is next; whether all are through.
    fn init_done(&mut self, sandbox: &Container) -> bool {
        let here = |name: &str| self.observed.newest(name).is_some_and(|c| c.sandbox_id == sandbox.id);
        let past_init = view::containers(self.pod).iter().any(|c| here(&c.name));
        for container in view::init_containers(self.pod) {
            let newest = self.observed.newest(&container.name).filter(|c| c.sandbox_id == sandbox.id);
            if view::is_sidecar(container) {
                self.drive(container, "Always");
                let started = newest.is_some_and(|c| c.is_running() && self.facts.is_started(&c.id));
                if !started && !past_init {
                    return false;
                }
                continue;
            }
            if past_init || newest.and_then(Container::exit).is_some_and(|e| e.code == 0) {
                continue;
            }
            match newest {
                // From an earlier sandbox or never: everything runs again in a new sandbox, as upstream.
                None => self.start(container),
                Some(_) => self.drive(container, "OnFailure"),
            }
            return false;
        }
        true
    }

    /// One container: starts it, starts it again, or stops it.
    fn drive(&mut self, container: &SpecContainer, policy: &str) {
        let Some(newest) = self.observed.newest(&container.name) else { return self.start(container) };
        if self.facts.stopping.contains(&newest.id) {
            return;
        }
        match newest.exit() {
            None => {
                let health = self.facts.health.get(&newest.id);
                if let Some(why) = health.and_then(|h| h.doomed.clone()) {
                    self.stop(newest, why);
                } else if self.is_stale(container) && health.is_none_or(|h| h.post_start == Hook::Done) {
                    self.stop(newest, StopReason::Changed);
                }
            }
            Some(exit) if restarts(policy, exit) || self.is_stale(container) => self.restart(container, exit),
            Some(_) => {}
        }
    }

    fn restart(&mut self, container: &SpecContainer, exit: &Exit) {
        let backoff = self.facts.restarts.get(&container.name);
        if let Some((backoff, until)) = backoff.and_then(|b| Some((b, b.wait_until(exit.at, self.now)?))) {
            let message = format!(
                "back-off {} restarting failed container={} pod={}",
                go_seconds(backoff.delay),
                container.name,
                view::described(self.pod)
            );
            self.wait(&container.name, "CrashLoopBackOff", message);
            self.wake(until);
            return;
        }
        self.start(container);
    }

    /// Starts a container if everything it needs is there, else sees to what is missing.
    fn start(&mut self, container: &SpecContainer) {
        let volumes = self.volumes();
        let image = self.image_ready(container);
        if let Some(failure) = self.facts.create.get(&container.name).filter(|f| self.now < f.retry_at) {
            let (reason, message) = (failure.reason, failure.message.clone());
            self.wake(failure.retry_at);
            self.wait(&container.name, reason, message);
            return;
        }
        if volumes && image {
            let attempt = self.next_attempt(&container.name);
            self.out.ops.push(Op::Start { container: container.name.clone(), attempt });
        }
    }

    /// One more than the runtime or the API remembers.
    fn next_attempt(&self, name: &str) -> u32 {
        if let Some(newest) = self.observed.newest(name) {
            return newest.attempt.saturating_add(1);
        }
        let reported = super::status::reported(self.pod, name);
        reported
            .filter(|s| s.container_id.is_some())
            .and_then(|s| u32::try_from(s.restart_count).ok())
            .map_or(0, |count| count.saturating_add(1))
    }

    fn volumes(&mut self) -> bool {
        match &self.facts.volumes {
            Step::Done => return true,
            Step::Running => {}
            Step::Failed(failure) if self.now < failure.retry_at => self.wake(failure.retry_at),
            Step::Idle | Step::Failed(_) => {
                if !self.out.ops.contains(&Op::SetUpVolumes) {
                    self.out.ops.push(Op::SetUpVolumes);
                }
            }
        }
        false
    }

    fn image_ready(&mut self, container: &SpecContainer) -> bool {
        match self.facts.images.get(&container.name) {
            Some(ImageFact::Ready(_)) => return true,
            Some(ImageFact::Pulling) => {}
            Some(ImageFact::Failed(failure)) => {
                let (reason, message, retry_at) = (failure.reason, failure.message.clone(), failure.retry_at);
                self.wait(&container.name, reason, message);
                if self.now < retry_at {
                    self.wake(retry_at);
                } else {
                    self.out.ops.push(Op::EnsureImage(container.name.clone()));
                }
            }
            None => self.out.ops.push(Op::EnsureImage(container.name.clone())),
        }
        false
    }

    /// Containers that never ran wait for a reason even if nothing is wrong.
    fn default_waiting(&mut self) {
        let initializing = !view::init_containers(self.pod).is_empty() && !self.any_container_ran();
        for container in view::all_containers(self.pod) {
            if self.observed.newest(&container.name).is_none() && !self.out.waiting.contains_key(&container.name) {
                let reason = if initializing { "PodInitializing" } else { "ContainerCreating" };
                self.wait(&container.name, reason, "");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::facts::{Failure, Health};
    use crate::runtime::{Image, Kind, PodRef, State};
    use serde_json::json;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})).unwrap()
    }

    fn two() -> Pod {
        pod(json!({"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}))
    }

    fn item(pod: &Pod, id: &str, name: &str, attempt: u32, state: State) -> Container {
        Container {
            id: id.into(),
            kind: if name.is_empty() { Kind::Sandbox } else { Kind::Container },
            pod: PodRef::default(),
            name: name.into(),
            attempt,
            hash: view::container(pod, name).map(crate::pod::spec::hash).unwrap_or_default(),
            sandbox_id: if name.is_empty() { String::new() } else { "s".into() },
            state,
            created_at: at(i64::from(attempt)),
            started_at: Some(at(0)),
            image: String::new(),
            image_id: String::new(),
            address: None,
            tty: false,
        }
    }

    fn exited(code: i32, seconds: i64) -> State {
        State::Exited(Exit { code, at: at(seconds), ..Exit::default() })
    }

    fn ready_facts(names: &[&str]) -> Facts {
        let image = |n: &&str| ((*n).to_owned(), ImageFact::Ready(Image::default()));
        Facts { volumes: Step::Done, images: names.iter().map(image).collect(), ..Facts::default() }
    }

    fn check(pod: &Pod, all: Vec<Container>, facts: &Facts, want: &[Op]) -> Plan {
        let got = plan(pod, &Observed::new(all), facts, at(100));
        assert_eq!(got.ops, want);
        got
    }

    fn start(name: &str, attempt: u32) -> Op {
        Op::Start { container: name.into(), attempt }
    }

    fn stop(id: &str, name: &str, why: StopReason) -> Op {
        Op::Stop { id: id.into(), container: name.into(), why }
    }

    #[test]
    fn a_new_pod_gets_everything_at_once() {
        let pod = two();
        let ops =
            [Op::SetUpVolumes, Op::EnsureImage("a".into()), Op::EnsureImage("b".into()), Op::RunSandbox { attempt: 0 }];
        let got = check(&pod, vec![], &Facts::default(), &ops);
        assert_eq!(got.waiting["a"].reason, "ContainerCreating");
        let sandbox = item(&pod, "s", "", 0, State::Running);
        check(&pod, vec![sandbox], &ready_facts(&["a", "b"]), &[start("a", 0), start("b", 0)]);
    }

    #[test]
    fn what_is_missing_is_waited_for() {
        let pod = two();
        let sandbox = || item(&pod, "s", "", 0, State::Running);
        let mut facts = ready_facts(&["a"]);
        facts.images.insert("b".into(), ImageFact::Pulling);
        check(&pod, vec![sandbox()], &facts, &[start("a", 0)]);
        let failure = Failure { reason: "ErrImagePull", message: "no".into(), retry_at: at(110), attempts: 0 };
        facts.images.insert("b".into(), ImageFact::Failed(failure.clone()));
        let got = check(&pod, vec![sandbox()], &facts, &[start("a", 0)]);
        assert_eq!((got.waiting["b"].reason, got.wake), ("ErrImagePull", Some(at(110))));
        facts.volumes = Step::Failed(Failure { retry_at: at(105), ..failure });
        let got = check(&pod, vec![sandbox()], &facts, &[]);
        assert_eq!(got.wake, Some(at(105)));
    }

    #[test]
    fn nothing_is_done_to_what_is_well() {
        let pod = two();
        let all = vec![
            item(&pod, "s", "", 0, State::Running),
            item(&pod, "1", "a", 0, State::Running),
            item(&pod, "2", "b", 3, State::Running),
        ];
        let got = check(&pod, all, &Facts::default(), &[]);
        assert_eq!((got.wake, got.waiting.len(), got.finished), (None, 0, false));
    }

    #[test]
    fn sick_and_outdated_containers_are_stopped_once() {
        let pod = two();
        let mut old = item(&pod, "2", "b", 0, State::Running);
        old.hash = "other".into();
        let all = || vec![item(&pod, "s", "", 0, State::Running), item(&pod, "1", "a", 0, State::Running), old.clone()];
        let mut facts = Facts::default();
        let health = Health {
            name: "a".into(),
            started: true,
            ready: true,
            post_start: Hook::Done,
            doomed: Some(StopReason::Liveness),
            doom_grace_s: None,
        };
        facts.health.insert("1".into(), health);
        check(&pod, all(), &facts, &[stop("1", "a", StopReason::Liveness), stop("2", "b", StopReason::Changed)]);
        facts.stopping.extend(["1".to_owned(), "2".to_owned()]);
        check(&pod, all(), &facts, &[]);
    }

    #[test]
    fn ended_containers_restart_by_policy_and_backoff() {
        let mut pod = two();
        let all = |pod: &Pod, code| {
            vec![
                item(pod, "s", "", 0, State::Running),
                item(pod, "1", "a", 4, exited(code, 90)),
                item(pod, "2", "b", 0, State::Running),
            ]
        };
        let mut facts = ready_facts(&["a"]);
        check(&pod, all(&pod, 0), &facts, &[start("a", 5)]);
        let backoff = crate::pod::backoff::Backoff::next(None, at(80), at(85));
        facts.restarts.insert("a".into(), crate::pod::backoff::Backoff::next(Some(backoff), at(88), at(89)));
        let got = check(&pod, all(&pod, 0), &facts, &[]);
        assert_eq!((got.waiting["a"].reason, got.wake), ("CrashLoopBackOff", Some(at(110))));
        assert_eq!(got.waiting["a"].message, "back-off 20s restarting failed container=a pod=p_n(u)");
        facts.restarts.clear();
        for (policy, code, restarts) in
            [("OnFailure", 0, false), ("OnFailure", 1, true), ("Never", 1, false), ("Never", 0, false)]
        {
            pod.spec.as_mut().unwrap().restart_policy = Some(policy.into());
            let want = if restarts { vec![start("a", 5)] } else { vec![] };
            check(&pod, all(&pod, code), &facts, &want);
        }
    }

    #[test]
    fn a_finished_pod_is_wound_down() {
        let pod = pod(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}],
            "initContainers": [{"name": "s1", "image": "i", "restartPolicy": "Always"}]}));
        let sandbox = || item(&pod, "s", "", 0, State::Running);
        let done = || item(&pod, "1", "a", 0, exited(0, 50));
        let sidecar = |state| item(&pod, "2", "s1", 0, state);
        let got = check(
            &pod,
            vec![sandbox(), done(), sidecar(State::Running)],
            &Facts::default(),
            &[stop("2", "s1", StopReason::PodEnded)],
        );
        assert!(got.finished);
        check(
            &pod,
            vec![sandbox(), done(), sidecar(exited(143, 60))],
            &Facts::default(),
            &[Op::StopSandbox("s".into())],
        );
        let gone = item(&pod, "s", "", 0, exited(0, 70));
        check(&pod, vec![gone, done(), sidecar(exited(143, 60))], &Facts::default(), &[]);
    }

    #[test]
    fn leftovers_are_swept() {
        let pod = two();
        let all = vec![
            item(&pod, "s", "", 1, State::Running),
            item(&pod, "old", "", 0, exited(0, 1)),
            item(&pod, "1", "a", 3, State::Running),
            item(&pod, "dead1", "a", 2, exited(1, 1)),
            item(&pod, "dead2", "a", 1, exited(1, 1)),
            item(&pod, "half", "a", 4, State::Created),
            item(&pod, "2", "b", 0, State::Running),
        ];
        let removed = ["half", "dead2", "old"].map(|id| Op::Remove(id.into()));
        check(&pod, all, &Facts::default(), &removed);
    }

    #[test]
    fn a_lost_sandbox_takes_its_containers_along() {
        let pod = two();
        let dead = || item(&pod, "s", "", 2, exited(0, 1));
        let all = vec![dead(), item(&pod, "1", "a", 0, State::Running), item(&pod, "2", "b", 0, exited(1, 1))];
        check(&pod, all, &Facts::default(), &[stop("1", "a", StopReason::SandboxGone)]);
        let all = vec![dead(), item(&pod, "1", "a", 0, exited(137, 1)), item(&pod, "2", "b", 0, exited(1, 1))];
        check(&pod, all, &ready_facts(&["a", "b"]), &[Op::RunSandbox { attempt: 3 }]);
    }

    #[test]
    fn counts_go_on_where_the_api_left_them() {
        let mut pod = two();
        pod.status = serde_json::from_value(json!({"containerStatuses": [
            {"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 6, "containerID": "docker://gone"}]}))
        .unwrap();
        let sandbox = item(&pod, "s", "", 0, State::Running);
        check(&pod, vec![sandbox], &ready_facts(&["a", "b"]), &[start("a", 7), start("b", 0)]);
    }
}
