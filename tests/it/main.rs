//! Every integration test, in one binary: `cargo test -p scaleup-tests [FILTER]`.
//!
//! Tests drive the real `scaleup` with real kubectl, Docker and etcd. Most share one instance on Docker and one on the fake
//! runtime, each in a namespace of its own; what needs an instance to itself starts one.

mod acme;
mod api;
mod bad_input;
mod controllers;
mod docs;
mod drill;
mod first_run;
mod gateway_api;
mod handover;
mod identity;
mod lb;
mod node;
mod path;
mod peers;
mod plugin_caps;
mod plugin_tools;
mod plugins;
mod policy;
mod roles;
mod routing;
mod traffic;

use std::future::Future;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use scaleup_tests::cluster::{Cluster, Options};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

/// Tests mostly wait: more of them than cores run at once.
const DEFAULT_THREADS: usize = 6;

/// What tests share; instances start on first use.
pub struct Shared {
    runtime: Runtime,
    fake: OnceCell<Cluster>,
    docker: OnceCell<Cluster>,
}

/// Handle to what tests share.
pub type Cx = Arc<Shared>;

impl Shared {
    /// An instance whose pods only seem to run.
    pub async fn fake(&self) -> Result<&Cluster> {
        self.fake.get_or_try_init(|| Cluster::start(Options::default())).await
    }
    /// An instance on real Docker.
    pub async fn docker(&self) -> Result<&Cluster> {
        self.docker.get_or_try_init(|| Cluster::start(Options { runtime: "docker", ..Options::default() })).await
    }
}

/// A test from an async function.
pub fn trial<F, Fut>(cx: &Cx, name: &str, test: F) -> Trial
where
    F: FnOnce(Cx) -> Fut + Send + 'static,
    Fut: Future<Output = Result<()>>,
{
    let cx = cx.clone();
    Trial::test(name, move || {
        let shared = cx.clone();
        cx.runtime.block_on(test(shared)).map_err(|e| Failed::from(format!("{e:#}")))
    })
}

/// `trials![cx, module, a, b]`: tests `module::a` and `module::b`.
#[macro_export]
macro_rules! trials {
    ($cx:expr, $module:literal, $($name:ident),* $(,)?) => {
        vec![$($crate::trial($cx, concat!($module, "::", stringify!($name)), $name)),*]
    };
}

fn main() -> Result<()> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(DEFAULT_THREADS);
    let runtime = Runtime::new()?;
    let cx: Cx = Arc::new(Shared { runtime, fake: OnceCell::new(), docker: OnceCell::new() });
    let mut tests = Vec::new();
    tests.extend(acme::tests(&cx));
    tests.extend(api::tests(&cx));
    tests.extend(bad_input::tests(&cx));
    tests.extend(controllers::tests(&cx));
    tests.extend(docs::tests(&cx));
    tests.extend(drill::tests(&cx));
    tests.extend(first_run::tests(&cx));
    tests.extend(gateway_api::tests(&cx));
    tests.extend(identity::tests(&cx));
    tests.extend(lb::tests(&cx));
    tests.extend(node::tests(&cx));
    tests.extend(path::tests(&cx));
    tests.extend(peers::tests(&cx));
    tests.extend(policy::tests(&cx));
    tests.extend(plugin_caps::tests(&cx));
    tests.extend(plugin_tools::tests(&cx));
    tests.extend(plugins::tests(&cx));
    tests.extend(roles::tests(&cx));
    tests.extend(routing::tests(&cx));
    tests.extend(traffic::tests(&cx));
    tests.extend(handover::tests(&cx));
    let conclusion = libtest_mimic::run(&arguments, tests);
    // The instances stop here, whatever the tests did.
    drop(cx);
    conclusion.exit()
}
