//! A host per test, and inputs.

use std::sync::Arc;
use std::time::Instant;

use libtest_mimic::{Failed, Trial};
use scaleup_plugins::routing::{Decision, Endpoint, Input, Topology};
use scaleup_plugins::{
    CompileError, Compiler, Failure, Generation, Host, HostOptions, Limits, Module, Policy, Pool, Setup, World,
};

use scaleup_plugins::testing::Guest;

/// A host with a cache of its own.
pub struct Lab {
    pub host: Host,
    pub cache: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

/// Threads that a lab's host is told of.
pub const THREADS: usize = 2;

impl Lab {
    pub fn new() -> Self {
        Self::at(tempfile::tempdir().expect("a directory"))
    }

    pub fn at(cache: tempfile::TempDir) -> Self {
        let options = HostOptions {
            cache: cache.path().join("code"),
            compiler: Compiler::this_program().expect("this program"),
            threads: THREADS,
            pool: Pool { components: 64, core_instances: 512, memories: 64, tables: 256 },
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("tokio");
        Self { host: Host::start(options).expect("a host"), cache, runtime }
    }

    pub fn compile(&self, world: World, source: &[u8], limits: &Limits) -> Result<Arc<Module>, CompileError> {
        self.runtime.block_on(self.host.compile(world, source, limits))
    }

    /// Compiles, with limits that no test must hit by chance on a busy machine.
    pub fn module(&self, world: World, guest: &Guest) -> Arc<Module> {
        self.compile(world, &guest.component(), &generous(world))
            .unwrap_or_else(|error| panic!("{error}: {:?}", guest.text()))
    }

    pub fn generation(&self, module: &Arc<Module>, number: u64, limits: Limits) -> Result<Arc<Generation>, Failure> {
        let setup = Setup { plugin: "shop/p".into(), number, config: "{}".into(), limits, state: None };
        Generation::new(&self.host, module.clone(), setup)
    }

    /// A policy with one active generation.
    pub fn policy(&self, world: World, guest: &Guest) -> Policy {
        self.policy_within(world, guest, generous(world))
    }

    pub fn policy_within(&self, world: World, guest: &Guest, limits: Limits) -> Policy {
        let policy = Policy::new("shop/p", world);
        let module = self.module(world, guest);
        policy.publish(self.generation(&module, 1, limits).expect("it starts")).expect("the world is right");
        policy
    }
}

/// The defaults with much time.
pub fn generous(world: World) -> Limits {
    Limits { time: std::time::Duration::from_secs(10), ..Limits::of(world) }
}

/// A request with endpoints that have so many requests in flight.
pub fn request(in_flight: &[u32]) -> Input {
    let endpoint = |in_flight: &u32| Endpoint { in_flight: *in_flight, ..Endpoint::default() };
    let mut input = Input { endpoints: in_flight.iter().map(endpoint).collect(), ..Input::default() };
    (input.request.host, input.request.path) = ("shop.example".into(), "/cart".into());
    input
}

/// Routes a request to three endpoints.
pub fn route(policy: &Policy) -> Result<Decision, Failure> {
    let decided = policy.route(&request(&[3, 1, 2]), &Arc::new(Topology::default()), 0, Instant::now());
    decided.map(|decided| decided.answer)
}

/// A test of that name.
pub fn trial(name: &'static str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok::<(), Failed>(())
    })
}
