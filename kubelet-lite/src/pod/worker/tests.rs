//! A worker over the scripted runtime and a small API, on a paused clock: whole lives of pods in milliseconds.

use std::time::Duration;

use scaleup_api::subnet::Subnet;
use serde_json::{Value, json};

use super::*;
use crate::agent::{Config, Hollow, PodNetwork};
use crate::clock::Clock;
use crate::runtime::fake::{FakeRuntime, Script};
use crate::runtime::{ContainerRuntime, ContainerSpec};
use crate::testing::api::Api as FakeApi;

struct Bench {
    api: FakeApi,
    runtime: FakeRuntime,
    agent: Arc<Agent>,
    known: Known,
    worker: tokio::task::JoinHandle<()>,
}

const POD: &str = "/api/v1/namespaces/ns/pods/p";

impl Bench {
    /// A pod of that spec begins to live; `director` says how its containers behave.
    fn start(spec: Value, director: impl Fn(&ContainerSpec) -> Script + Send + Sync + 'static) -> Self {
        let clock = Clock::following_tokio();
        let runtime = FakeRuntime::new(clock, Box::new(director));
        Self::with_runtime(spec, runtime, clock)
    }

    fn with_runtime(spec: Value, runtime: FakeRuntime, clock: Clock) -> Self {
        let api = FakeApi::default();
        let pod = api.put(
            POD,
            json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "p", "namespace": "ns", "uid": "u1" }, "spec": spec }),
        );
        let mut config = Config::new("n1", [10, 0, 0, 9].into(), "/nonexistent");
        config.hollow = Some(Hollow { cpus: 4, memory_bytes: 1 << 30 });
        config.clock = clock;
        let (services, _writer) = kube::runtime::reflector::store();
        let agent = Agent::new(config, api.client(), Arc::new(runtime.clone()), services, Default::default());
        let gateway = [10, 200, 0, 1].into();
        agent.network.send_replace(Some(PodNetwork {
            name: "net".into(),
            cidr: Subnet::parse("10.200.0.0/24").unwrap(),
            gateway,
        }));
        let agent = Arc::new(agent);
        let (known, worker) = Self::spawn(&agent, pod);
        Self { api, runtime, agent, known, worker }
    }

    fn spawn(agent: &Arc<Agent>, pod: Value) -> (Known, tokio::task::JoinHandle<()>) {
        let known = Known::new(Arc::new(serde_json::from_value(pod).unwrap()));
        agent.pods.lock().insert("u1".into(), known.clone());
        let worker = tokio::spawn(Worker::new(agent.clone(), known.clone()).run());
        // What the manager does on the runtime's events.
        let (poke, runtime) = (known.poke.clone(), agent.runtime.clone());
        tokio::spawn(async move {
            let mut events = runtime.events().await.unwrap();
            while let Some(Ok(_)) = futures::StreamExt::next(&mut events).await {
                poke.notify_one();
            }
        });
        (known, worker)
    }

    fn status(&self) -> Value {
        self.api.get(POD).map(|p| p["status"].clone()).unwrap_or_default()
    }

    /// What `kubectl get pod` would show: phase, and of each container its state's reason (or `running`).
    fn summary(&self) -> String {
        let status = self.status();
        let mut out = vec![status["phase"].as_str().unwrap_or("-").to_owned()];
        for list in ["initContainerStatuses", "containerStatuses"] {
            for container in status[list].as_array().into_iter().flatten() {
                let state = container["state"].as_object().unwrap();
                let (kind, detail) = state.iter().next().unwrap();
                let text = detail["reason"].as_str().unwrap_or(kind);
                out.push(format!("{}={text}", container["name"].as_str().unwrap()));
            }
        }
        out.join(" ")
    }

    async fn until(&self, want: impl Fn(&Self) -> bool) {
        for _ in 0..100_000 {
            if want(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never came: now {} {}", self.summary(), self.status());
    }

    async fn until_summary(&self, want: &str) {
        self.until(|b| b.summary() == want).await;
    }

    fn condition(&self, kind: &str) -> String {
        let status = self.status();
        let all = status["conditions"].as_array().cloned().unwrap_or_default();
        let found = all.iter().find(|c| c["type"] == kind);
        found.map_or_else(String::new, |c| c["status"].as_str().unwrap_or_default().to_owned())
    }

    fn restarts(&self) -> i64 {
        self.status()["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(-1)
    }

    /// Marks the pod as being deleted, as `kubectl delete` does.
    fn delete(&self, grace_s: i64) {
        let mut pod = self.api.get(POD).unwrap();
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace_s);
        let pod = self.api.put(POD, pod);
        self.known.latest.offer(Arc::new(serde_json::from_value(pod).unwrap()));
        self.known.poke.notify_one();
    }

    async fn running_id(&self, name: &str) -> String {
        let all = self.runtime.pod("u1").await.unwrap();
        all.into_iter().find(|c| c.name == name && c.is_running()).unwrap().id
    }
}

fn steady(_: &ContainerSpec) -> Script {
    Script { ready_after: Some(Duration::ZERO), ..Script::default() }
}

fn one(extra: Value) -> Value {
    let mut container = json!({ "name": "c", "image": "i:1" });
    for (name, value) in extra.as_object().unwrap() {
        container[name] = value.clone();
    }
    json!({ "containers": [container] })
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_goes() {
    let bench = Bench::start(one(json!({})), steady);
    bench.until(|b| b.condition("Ready") == "True").await;
    let status = bench.status();
    assert_eq!((bench.summary().as_str(), status["podIP"].as_str()), ("Running c=running", Some("10.200.0.1")));
    assert_eq!(status["hostIP"], "10.0.0.9");
    assert!(status["containerStatuses"][0]["containerID"].as_str().unwrap().starts_with("fake://"));
    for kind in ["PodReadyToStartContainers", "Initialized", "ContainersReady"] {
        assert_eq!(bench.condition(kind), "True", "{kind}");
    }
    bench.delete(30);
    bench.until(|b| b.api.get(POD).is_none()).await;
    bench.until(|b| b.worker.is_finished()).await;
    assert_eq!(bench.runtime.list().await.unwrap(), Vec::new(), "nothing is left");
    assert_eq!(bench.api.events("Killing"), ["Stopping container c"]);
    assert_eq!(bench.api.events("Started"), ["Started container c"]);
}

#[tokio::test(start_paused = true)]
async fn crashes_back_off_ten_twenty_forty_seconds() {
    let crash = |_: &ContainerSpec| Script { run_for: Some(Duration::from_secs(1)), exit_code: 3, ..Script::default() };
    let bench = Bench::start(one(json!({})), crash);
    let began = tokio::time::Instant::now();
    let mut at = Vec::new();
    for count in 1..=4 {
        bench.until(|b| b.restarts() == count).await;
        at.push(began.elapsed().as_secs());
    }
    // One second of life each; the first restart is immediate.
    let gaps: Vec<u64> = at.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(at[0] <= 3, "{at:?}");
    for (gap, delay) in gaps.iter().zip([10, 20, 40]) {
        assert!((delay..=delay + 4).contains(gap), "{gaps:?}");
    }
    bench.until_summary("Running c=CrashLoopBackOff").await;
    let last = &bench.status()["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((last["exitCode"].as_i64(), last["reason"].as_str()), (Some(3), Some("Error")));
    assert!(bench.api.events("BackOff")[0].starts_with("Back-off restarting failed container c in pod p_ns(u1)"));
    let kept = bench.runtime.pod("u1").await.unwrap().len();
    assert!(kept <= 3, "a sandbox and two generations, not {kept}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_image_backs_off_and_recovers() {
    let clock = Clock::following_tokio();
    let runtime = FakeRuntime::new(clock, Box::new(steady));
    runtime.miss_image("i:1");
    let bench = Bench::with_runtime(one(json!({})), runtime, clock);
    bench.until_summary("Pending c=ErrImagePull").await;
    bench.until_summary("Pending c=ImagePullBackOff").await;
    assert!(bench.api.events("Failed").contains(&"Error: ImagePullBackOff".to_owned()));
    assert_eq!(bench.api.events("BackOff"), ["Back-off pulling image \"i:1\""]);
    bench.runtime.publish_image("i:1");
    bench.until_summary("Running c=running").await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_must_not_be_pulled_is_said_to_be_missing() {
    let clock = Clock::following_tokio();
    let runtime = FakeRuntime::new(clock, Box::new(steady));
    runtime.forget_image("i:1");
    let bench = Bench::with_runtime(one(json!({ "imagePullPolicy": "Never" })), runtime, clock);
    bench.until_summary("Pending c=ErrImageNeverPull").await;
    assert_eq!(bench.runtime.pulls(), []);
}

#[tokio::test(start_paused = true)]
async fn probes_decide_about_readiness_and_life() {
    let probe = json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 2, "failureThreshold": 2 });
    let bench = Bench::start(one(json!({ "readinessProbe": probe, "livenessProbe": probe })), |_| Script {
        ready_after: Some(Duration::from_secs(1)),
        ..Script::default()
    });
    bench.until_summary("Running c=running").await;
    assert_eq!(bench.condition("Ready"), "False");
    bench.until(|b| b.condition("Ready") == "True").await;
    let id = bench.running_id("c").await;
    bench.runtime.set_ready(&id, false);
    bench.until(|b| b.condition("Ready") == "False").await;
    bench.until(|b| b.restarts() == 1).await;
    assert!(bench.api.events("Unhealthy").iter().any(|t| t.starts_with("Liveness probe failed: dial tcp")));
    assert_eq!(bench.api.events("Killing"), ["Container c failed liveness probe, will be restarted"]);
    bench.until(|b| b.condition("Ready") == "True").await;
}

#[tokio::test(start_paused = true)]
async fn a_startup_probe_holds_the_others_back() {
    let probe =
        |failures: u32| json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 1, "failureThreshold": failures });
    let spec = one(json!({ "startupProbe": probe(20), "livenessProbe": probe(1) }));
    let bench = Bench::start(spec, |_| Script { ready_after: Some(Duration::from_secs(10)), ..Script::default() });
    bench.until(|b| b.condition("Ready") == "True").await;
    assert_eq!(bench.restarts(), 0, "liveness must not have been asked before");
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_in_order_and_sidecars_stay() {
    let spec = json!({ "restartPolicy": "Never",
        "initContainers": [{ "name": "a", "image": "i:1" }, { "name": "s", "image": "i:1", "restartPolicy": "Always" },
                           { "name": "b", "image": "i:1" }],
        "containers": [{ "name": "c", "image": "i:1" }] });
    let bench = Bench::start(spec, |spec| Script {
        run_for: (spec.name != "s").then_some(Duration::from_secs(5)),
        ..Script::default()
    });
    bench.until_summary("Pending a=running s=PodInitializing b=PodInitializing c=PodInitializing").await;
    assert_eq!(bench.condition("Initialized"), "False");
    bench.until_summary("Pending a=Completed s=running b=running c=PodInitializing").await;
    bench.until_summary("Running a=Completed s=running b=Completed c=running").await;
    assert_eq!(bench.condition("Initialized"), "True");
    bench.until(|b| b.summary().starts_with("Succeeded a=Completed s=")).await;
    assert_eq!(bench.condition("Ready"), "False");
    bench.until(|b| b.summary() == "Succeeded a=Completed s=Error b=Completed c=Completed").await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let spec = json!({ "restartPolicy": "Never", "initContainers": [{ "name": "a", "image": "i:1" }],
                       "containers": [{ "name": "c", "image": "i:1" }] });
    let bench =
        Bench::start(spec, |_| Script { run_for: Some(Duration::from_secs(1)), exit_code: 1, ..Script::default() });
    bench.until(|b| b.status()["phase"] == "Failed").await;
    assert_eq!(bench.summary(), "Failed a=Error c=PodInitializing");
}

#[tokio::test(start_paused = true)]
async fn policies_decide_how_a_pod_ends() {
    for (policy, code, want) in [("Never", 0, "Succeeded"), ("Never", 1, "Failed"), ("OnFailure", 0, "Succeeded")] {
        let mut spec = one(json!({}));
        spec["restartPolicy"] = json!(policy);
        let script = move |_: &ContainerSpec| Script {
            run_for: Some(Duration::from_secs(1)),
            exit_code: code,
            ..Script::default()
        };
        let bench = Bench::start(spec, script);
        bench.until(|b| b.status()["phase"] == want).await;
        assert_eq!(bench.restarts(), 0, "{policy} {code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_worker_finds_what_runs_and_restarts_nothing() {
    let probe = json!({ "tcpSocket": { "port": 80 } });
    let bench = Bench::start(one(json!({ "readinessProbe": probe })), steady);
    bench.until(|b| b.condition("Ready") == "True").await;
    let before = bench.running_id("c").await;
    bench.worker.abort();
    let (known, worker) = Bench::spawn(&bench.agent, bench.api.get(POD).unwrap());
    let again =
        Bench { api: bench.api.clone(), runtime: bench.runtime.clone(), agent: bench.agent.clone(), known, worker };
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(again.condition("Ready"), "True", "an agent's restart takes no pod out of service");
    }
    assert_eq!((again.running_id("c").await, again.restarts()), (before, 0));
    assert_eq!(again.runtime.removed(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_lost_sandbox_is_made_again() {
    let bench = Bench::start(one(json!({})), steady);
    bench.until_summary("Running c=running").await;
    let sandbox = bench.runtime.list().await.unwrap().into_iter().find(|l| l.name.is_empty()).unwrap();
    bench.runtime.kill(&sandbox.id);
    bench.until(|b| b.restarts() == 1 && b.condition("Ready") == "True").await;
    assert_eq!(bench.api.events("SandboxChanged").len(), 1);
    assert_ne!(bench.status()["podIP"], "10.200.0.1", "a new sandbox has a new address");
}

#[tokio::test(start_paused = true)]
async fn grace_is_given_and_can_be_shortened() {
    let stubborn = |_: &ContainerSpec| Script { ignores_stop: true, ..Script::default() };
    let took = |bench: Bench, shorten: bool| async move {
        bench.until_summary("Running c=running").await;
        let began = tokio::time::Instant::now();
        bench.delete(100);
        if shorten {
            tokio::time::sleep(Duration::from_secs(3)).await;
            bench.delete(5);
        }
        bench.until(|b| b.api.get(POD).is_none()).await;
        began.elapsed().as_secs()
    };
    let whole = took(Bench::start(one(json!({})), stubborn), false).await;
    assert!((100..=110).contains(&whole), "{whole}");
    let short = took(Bench::start(one(json!({})), stubborn), true).await;
    assert!((5..=12).contains(&short), "{short}");
}

#[tokio::test(start_paused = true)]
async fn an_absent_runtime_is_waited_for() {
    let bench = Bench::start(one(json!({})), steady);
    bench.until_summary("Running c=running").await;
    let before = bench.running_id("c").await;
    bench.runtime.set_away(true);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.summary(), "Running c=running", "nothing is claimed that is not known");
    bench.runtime.set_away(false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((bench.running_id("c").await, bench.restarts()), (before, 0));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_a_pod() {
    let mut spec = one(json!({}));
    spec["activeDeadlineSeconds"] = json!(20);
    let bench = Bench::start(spec, steady);
    bench.until_summary("Running c=running").await;
    bench.until(|b| b.status()["phase"] == "Failed").await;
    assert_eq!(bench.status()["reason"], "DeadlineExceeded");
    bench.until(|b| b.summary() == "Failed c=Error").await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_post_start_hook_stops_the_container() {
    let hook = json!({ "postStart": { "exec": { "command": ["x"] } } });
    let bench = Bench::start(one(json!({ "lifecycle": hook })), |spec| Script {
        exec: ("no".into(), if spec.attempt == 0 { 1 } else { 0 }),
        ..Script::default()
    });
    bench.until(|b| b.restarts() == 1 && b.condition("Ready") == "True").await;
    assert_eq!(bench.api.events("FailedPostStartHook"), ["PostStartHook failed: no"]);
}

#[tokio::test(start_paused = true)]
async fn conditions_of_others_are_kept() {
    let bench = Bench::start(
        json!({ "containers": [{ "name": "c", "image": "i:1" }], "readinessGates": [{ "conditionType": "x/gate" }] }),
        steady,
    );
    bench.until_summary("Running c=running").await;
    assert_eq!((bench.condition("ContainersReady").as_str(), bench.condition("Ready").as_str()), ("True", "False"));
    let mut pod = bench.api.get(POD).unwrap();
    let gate = json!({ "type": "x/gate", "status": "True" });
    pod["status"]["conditions"].as_array_mut().unwrap().push(gate);
    let pod = bench.api.put(POD, pod);
    bench.known.latest.offer(Arc::new(serde_json::from_value(pod).unwrap()));
    bench.known.poke.notify_one();
    bench.until(|b| b.condition("Ready") == "True").await;
    assert_eq!(bench.condition("x/gate"), "True");
}
