//! A Kubernetes-compatible API server over the store seam.

pub mod admission;
pub mod cache;
pub mod error;
pub mod handler;
pub mod registry;
pub mod user;

/// Everything a request may need; built once, shared by all connections.
pub struct Server {}
