//! A Kubernetes-compatible API server over the store seam.
//!
//! One table of kinds ([`registry`]) and one generic handler ([`handler`]) serve every resource; the watch cache
//! ([`cache`]) answers reads with bytes that are ready to send; [`server`] is HTTP, TLS and assembly. Nothing here runs
//! controllers or talks to nodes, except that [`streaming`] tunnels logs, exec and port-forward to a node's agent.

pub mod admission;
pub mod audit;
pub mod auth;
pub mod bootstrap;
pub mod cache;
pub mod error;
pub mod handler;
pub mod kinds;
pub mod metrics;
pub mod negotiate;
pub mod patch;
pub mod present;
pub mod registry;
pub mod request;
pub mod schema;
pub mod server;
pub mod streaming;
#[cfg(test)]
mod testing;
pub mod user;

pub use server::{ApiServer, Server, ServerConfig};
