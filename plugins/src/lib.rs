//! Policies as WebAssembly components: the platform's decisions, replaced by sandboxed code that a user brings.
//!
//! `wit/` is the interface (package `scaleup:policy`): one world per decision. This crate loads components and calls them. It never reads
//! objects, fetches modules or decides when a version is good enough: that is up to the controllers; nor what a decision means: that is
//! up to the load balancer, the API server, the scheduler, the autoscaler and billing.
//!
//! ```text
//! bytes ─Host::compile→ Module ─Generation::new(config, limits)→ Generation ─Policy::stage, publish→ Policy ─route, admit, …→ decision
//!        (child process)  one per digest                          counts, warm instances            the slot that others hold
//! ```
//!
//! # For those who decide
//! Hold an `Arc<Policy>` and call the method of your world: [`Policy::route`], [`Policy::admit`], [`Policy::place`], [`Policy::scale`],
//! [`Policy::price`]. Inputs and answers are plain types ([`routing`], [`admission`], [`scheduling`], [`scaling`], [`pricing`]); answers are
//! checked (a picked endpoint exists, a patch is not too long). Calls block for at most the limit's time: routing and scheduling are made
//! to be called on the thread that serves; call the others on a thread that may block. On a [`Failure`] ask [`FailurePolicy::on`] with its
//! [`Class`]: the built-in decision, or refuse.
//!
//! # For those who load
//! One [`Host`] per process. [`Host::compile`] takes bytes and a [`World`] and gives a [`Module`], or says what is wrong with the bytes.
//! [`Module::config_schema`] and [`Module::examples`] are what the component says of itself; [`Host::probe`] runs the examples. A
//! [`Generation`] is a module with configuration, limits and state. [`Policy::stage`] puts it in as a candidate (in the shadow, or for a
//! share of decisions), [`Policy::publish`] makes it the one that decides, [`Policy::roll_back`] takes the one before. Until there is a
//! generation, decisions fail with the class that was last given to [`Policy::set_absent`], so that a policy that fails closed does so from the
//! beginning.
//!
//! A [`Registry`] is where both sides meet: [`Registry::slot`] gives the [`Slot`] of a plugin's name, loaded or not.
//!
//! # For replay
//! [`Slot::set_recording`] keeps a sample of decisions, without personal data; [`Slot::records`] gives them. [`Host::replay`] asks a component
//! again what a [`Record`] says was asked.

mod bindings;
mod breaker;
mod call;
mod case;
mod check;
mod clock;
mod compile;
mod detect;
mod difference;
mod encode;
mod engine;
mod error;
mod generation;
mod host;
mod imports;
mod instance;
mod limits;
mod metrics;
mod module;
mod policy;
mod probe;
mod record;
mod registry;
mod schema;
mod stage;
mod stats;
mod world;

pub mod admission;
pub mod metadata;
pub mod pricing;
pub mod routing;
pub mod scaling;
pub mod scheduling;
#[cfg(feature = "testing")]
pub mod testing;

pub use breaker::BreakerState;
pub use case::Case;
pub use compile::{Compiler, SUBCOMMAND, child::main as compile_child};
pub use detect::world_of;
pub use difference::{Difference, MAX_DIFFERENCES, differences};
pub use encode::component;
pub use engine::Pool;
pub use error::{Class, CompileError, Failure, FailurePolicy, OnFailure};
pub use generation::{Generation, Setup};
pub use host::{Host, HostError, HostOptions};
pub use imports::State;
pub use limits::{
    Limits, MAX_CORE_INSTANCES, MAX_MEMORIES, MAX_MEMORY_BYTES, MAX_MODULE_BYTES, MAX_TABLE_ELEMENTS, MAX_TABLES,
    STACK_BYTES,
};
pub use metrics::Metrics;
pub use module::{Digest, Module};
pub use policy::{Decided, Generations, Policy, Rollout, WrongWorld};
pub use probe::ExampleError;
pub use record::{MAX_RECORDS, Outcome, Record, RecordError, Recording};
pub use registry::{PluginKey, Registry, Slot};
pub use schema::check as check_config;
pub use stage::{NotStaged, Rejection, no_config};
pub use stats::{Histogram, Statistics};
pub use world::{Mode, VERSION, World};
