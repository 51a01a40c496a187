//! The load balancer on real sockets of the loopback interface, without Kubernetes: snapshots are published by hand.
//! Every test has a loopback address of its own, so all run at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod api;
mod dns;
mod http;
mod nft;
mod seen;
mod smuggling;
mod support;
mod tcp;
mod upgrade;
