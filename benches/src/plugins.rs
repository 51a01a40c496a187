//! WebAssembly policies: what a decision costs, what starting costs, what five hundred of them weigh.
//!
//! Components are written as WebAssembly text, so this is the price of the host; a guest's own language comes on top.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use scaleup_plugins::routing::{Decision, Endpoint, Header, Topology};
use scaleup_plugins::testing::{Guest, least_in_flight};
use scaleup_plugins::{
    Compiler, Generation, Host, HostOptions, Limits, PluginKey, Policy, Pool, Registry, SUBCOMMAND, Setup, World,
    admission, routing, scheduling,
};
use scaleup_scheduler::cache::Cache;
use scaleup_scheduler::node::NodeFacts;
use scaleup_scheduler::pod::PodInfo;
use scaleup_scheduler::policies::{self, Moment, Policies};
use scaleup_tests::cluster::binary;
use serde_json::{Value, json};

use crate::figure::{print, quantile_ms, rss_mib};

/// Threads that serve.
const THREADS: usize = 2;

struct Bench {
    host: Host,
    _cache: tempfile::TempDir,
    calls: usize,
}

/// Everything.
pub async fn all(quick: bool) -> Result<()> {
    let cache = tempfile::tempdir()?;
    let compiler = Compiler { program: binary(), arguments: vec![SUBCOMMAND.into()] };
    let options = HostOptions { cache: cache.path().join("code"), compiler, threads: THREADS, pool: Pool::default() };
    let bench = Bench { host: Host::start(options)?, _cache: cache, calls: if quick { 2_000 } else { 200_000 } };
    bench.routing().await?;
    bench.fresh().await?;
    bench.admission().await?;
    bench.scheduling().await?;
    bench.reload(if quick { 10 } else { 100 }).await?;
    bench.memory(if quick { 20 } else { 500 }).await
}

impl Bench {
    async fn generation(&self, guest: &Guest, world: World, number: u64) -> Result<Arc<Generation>> {
        let limits = Limits { time: Duration::from_secs(5), ..Limits::of(world) };
        let module = self.host.compile(world, &guest.component(), &limits).await?;
        let setup = Setup { plugin: "bench/p".into(), number, config: "{}".into(), limits, state: None };
        Ok(Generation::new(&self.host, module, setup)?)
    }

    async fn policy(&self, guest: &Guest, world: World) -> Result<Policy> {
        let policy = Policy::new("bench/p", world);
        policy.publish(self.generation(guest, world, 1).await?)?;
        Ok(policy)
    }

    /// Times each call and prints the median and the 99th percentile in microseconds.
    fn time(&self, name: &str, calls: usize, mut call: impl FnMut() -> Result<()>) -> Result<()> {
        (0..calls / 10).try_for_each(|_| call())?;
        let mut took = Vec::with_capacity(calls);
        for _ in 0..calls {
            let began = Instant::now();
            call()?;
            took.push(began.elapsed());
        }
        took.sort_unstable();
        for (quantile, label) in [(0.5, "p50"), (0.99, "p99")] {
            print(&format!("plugin_{name}_{label}"), quantile_ms(&took, quantile) * 1e3, "us");
        }
        Ok(())
    }

    async fn routing(&self) -> Result<()> {
        let policy = self.policy(&least_in_flight(), World::Routing).await?;
        let topology = Arc::new(Topology::default());
        for endpoints in [3, 16, 256] {
            let input = request(endpoints);
            self.time(&format!("route_{endpoints}"), self.calls, || {
                let decided = policy.route(black_box(&input), &topology, 0, Instant::now())?;
                ensure!(decided.answer == Decision::Pick(endpoints - 1), "{decided:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Instantiate, call, drop: on one thread, and on two at once.
    async fn fresh(&self) -> Result<()> {
        let policy = self.policy(&Guest::new(World::Admission, "(i32.const 1024)"), World::Admission).await?;
        let input = admission::Input::default();
        let calls = self.calls / 4;
        let run = || (0..calls).try_for_each(|_| policy.admit(black_box(&input), Instant::now()).map(drop));
        self.time("instantiate_call_drop", calls, || Ok(policy.admit(black_box(&input), Instant::now()).map(drop)?))?;
        let began = Instant::now();
        std::thread::scope(|scope| -> Result<()> {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(run)).collect();
            for thread in threads {
                thread.join().ok().context("a thread panicked")??;
            }
            Ok(())
        })?;
        let each = began.elapsed().as_secs_f64() * 1e6 / calls as f64;
        print("plugin_instantiate_call_drop_two_threads", each, "us");
        Ok(())
    }

    async fn admission(&self) -> Result<()> {
        // Adds up all bytes of the object.
        let guest = Guest::new(
            World::Admission,
            "(local $at i32) (local $end i32) (local $sum i32)
             (local.set $at (i32.load offset=112 (local.get $in)))
             (local.set $end (i32.add (local.get $at) (i32.load offset=116 (local.get $in))))
             (loop $l
               (local.set $sum (i32.add (local.get $sum) (i32.load8_u (local.get $at))))
               (br_if $l (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1))) (local.get $end))))
             (i32.store (i32.const 2048) (local.get $sum))
             (i32.const 1024)",
        );
        let policy = self.policy(&guest, World::Admission).await?;
        let pod = pod();
        let input = admission::Input { object: Some(pod.to_string()), kind: "Pod".into(), ..Default::default() };
        self.time("admit_4KiB", self.calls / 4, || {
            let decided = policy.admit(black_box(&input), Instant::now())?;
            ensure!(decided.answer.verdict == admission::Verdict::Allow, "{decided:?}");
            Ok(())
        })?;
        // As the API server does it: the object is written down, and the call is made beside the threads that serve.
        let (policy, handle) = (Arc::new(policy), tokio::runtime::Handle::current());
        self.time("admit_4KiB_from_a_task", self.calls / 4, || {
            let (policy, object) = (policy.clone(), Some(black_box(&pod).to_string()));
            let input = admission::Input { object, kind: "Pod".into(), ..Default::default() };
            let call = tokio::task::spawn_blocking(move || policy.admit(&input, Instant::now()));
            let decided = tokio::task::block_in_place(|| handle.block_on(call))??;
            ensure!(decided.answer.verdict == admission::Verdict::Allow, "{decided:?}");
            Ok(())
        })
    }

    async fn scheduling(&self) -> Result<()> {
        // Scores each node by how little of its CPU is used: used * 100 / offered.
        let guest = Guest::new(
            World::Scheduling,
            "(local $n i32) (local $at i32) (local $out i32) (local $end i32)
             (local.set $at (i32.load offset=72 (local.get $in)))
             (local.set $n (i32.load offset=76 (local.get $in)))
             (local.set $end (i32.add (local.get $at) (i32.mul (local.get $n) (i32.const 64))))
             (local.set $out (call $alloc (i32.shl (local.get $n) (i32.const 2))))
             (i32.store (i32.const 1024) (local.get $out))
             (i32.store offset=4 (i32.const 1024) (local.get $n))
             (block $done (loop $l
               (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
               (i32.store (local.get $out)
                 (i32.wrap_i64 (i64.div_s (i64.mul (i64.load offset=8 (local.get $at)) (i64.const 100)) (i64.load (local.get $at)))))
               (local.set $out (i32.add (local.get $out) (i32.const 4)))
               (local.set $at (i32.add (local.get $at) (i32.const 64)))
               (br $l)))
             (i32.const 1024)",
        )
        .extra(
            "(func $alloc (param i32) (result i32) (local $at i32)
               (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
               (global.set $heap (i32.add (local.get $at) (local.get 0)))
               (local.get $at))",
        )
        .pages(8);
        let policy = self.policy(&guest, World::Scheduling).await?;
        let node = |i: i64| scheduling::Node { milli_cpu: 8000, milli_cpu_used: i * 8, ..Default::default() };
        let input = scheduling::Input { nodes: (0..1000).map(node).collect(), ..Default::default() };
        self.time("place_1000_nodes", self.calls / 20, || {
            let decided = policy.place(black_box(&input), 0, Instant::now())?;
            ensure!(decided.answer.verdicts.last() == Some(&99), "{:?}", decided.answer.verdicts.last());
            Ok(())
        })?;
        self.judge(policy)
    }

    /// As the scheduler does it: nodes are flattened, the plugin is asked, scores are weighted.
    fn judge(&self, policy: Policy) -> Result<()> {
        let registry = Arc::new(Registry::default());
        let key = PluginKey::cluster("bench");
        let active = policy.generations().active.clone().context("it is there")?;
        registry.slot(&key, World::Scheduling).policy.publish(active)?;
        let mut policies = Policies::new(registry);
        let binding = json!({"schedulerNames": ["bench"], "nodeLabels": ["topology.kubernetes.io/zone"]});
        let spec = json!({"world": "scheduling", "source": {}, "scheduling": binding});
        policies.put(key, &serde_json::from_value(spec)?);
        let mut cache = Cache::default();
        for i in 0..1000 {
            let allocatable = json!({"cpu": "8", "memory": "32Gi", "pods": "110", "example.com/gpu": "4"});
            let labels = json!({"topology.kubernetes.io/zone": format!("zone-{}", i % 3)});
            let node = json!({"metadata": {"name": format!("n{i}"), "labels": labels}, "status": {"allocatable": allocatable}});
            cache.put_node(NodeFacts::from(&serde_json::from_value::<Node>(node)?));
        }
        let mut pod: Pod = serde_json::from_value(pod())?;
        pod.spec.get_or_insert_default().scheduler_name = Some("bench".into());
        let (pod, asked) = (PodInfo::from(&pod), Moment { now: Instant::now(), time_ms: 0, random: 1 });
        let bound = policies.for_pod(&pod, &cache);
        ensure!(bound.len() == 1, "the plugin is not bound");
        self.time("judge_1000_nodes", self.calls / 20, || {
            let judged = policies::judge(&bound, black_box(&pod), &cache, cache.present(), asked);
            ensure!(judged.is_ok_and(|judged| judged.nodes.len() == 1000), "nodes are missing");
            Ok(())
        })
    }

    /// From compiled to in force.
    async fn reload(&self, times: u64) -> Result<()> {
        let policy = self.policy(&least_in_flight(), World::Routing).await?;
        let (input, topology) = (request(16), Arc::new(Topology::default()));
        let mut took = Vec::new();
        for number in 2..times + 2 {
            let limits = Limits { time: Duration::from_secs(5), ..Limits::of(World::Routing) };
            let module = policy.generations().active.as_ref().context("it is there")?.module().clone();
            let began = Instant::now();
            let setup = Setup { plugin: "bench/p".into(), number, config: "{}".into(), limits, state: None };
            policy.publish(Generation::new(&self.host, module, setup)?)?;
            ensure!(policy.route(&input, &topology, 0, Instant::now())?.generation == number, "an old one decided");
            took.push(began.elapsed());
        }
        took.sort_unstable();
        print("plugin_reload_to_effect_p99", quantile_ms(&took, 0.99), "ms");
        Ok(())
    }

    /// Modules that all differ, each with an instance per thread.
    async fn memory(&self, count: u64) -> Result<()> {
        let before = rss_mib(std::process::id())?;
        let (mut kept, mut took) = (Vec::new(), Vec::new());
        for i in 0..count {
            let guest = least_in_flight().extra(&format!("(func (result i64) (i64.const {i}))"));
            let began = Instant::now();
            let policy = self.policy(&guest, World::Routing).await?;
            took.push(began.elapsed());
            policy.route(&request(16), &Arc::new(Topology::default()), 0, Instant::now())?;
            kept.push(policy);
        }
        took.sort_unstable();
        print("plugin_compile_to_active_p50", quantile_ms(&took, 0.5), "ms");
        let each = (rss_mib(std::process::id())? - before) * 1024.0 / count as f64;
        print("plugin_memory_each", each, "KiB");
        print(&format!("plugin_memory_{count}_plugins"), each * count as f64 / 1024.0, "MiB");
        Ok(())
    }
}

/// A pod of 4 KiB.
fn pod() -> Value {
    let variable = |i: u32| json!({"name": format!("SETTING_{i}"), "value": "a value of a usual length"});
    let container = |name: &str| {
        json!({"name": name, "image": format!("registry.example.com/shop/{name}:v1.2.3"),
            "env": (0..32).map(variable).collect::<Vec<_>>(),
            "resources": {"requests": {"cpu": "500m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}}})
    };
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-5d9c7b", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [container("web"), container("proxy")]}})
}

/// A request with a header; the last of its endpoints is the least busy.
fn request(endpoints: u32) -> routing::Input {
    let endpoint = |i| Endpoint { key: u64::from(i), in_flight: 1000 - i, latency_us: 800.0, ..Endpoint::default() };
    let header = Header { name: "x-user".into(), value: "4711".into() };
    let request = routing::Request {
        host: "shop.example.com".into(),
        path: "/api/v1/carts/4711".into(),
        headers: vec![header],
        ..Default::default()
    };
    routing::Input { request, endpoints: (0..endpoints).map(endpoint).collect(), ..Default::default() }
}
