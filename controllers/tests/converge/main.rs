//! The controllers against the real API server in one process, over a memory store: what users do, and what comes of
//! it.
//!
//! Pods run on a scripted node ([`world::run_node`]); nothing here needs Docker, a scheduler or a network.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod cleanup;
mod election;
mod faults;
mod nodes;
mod rollout;
mod world;
