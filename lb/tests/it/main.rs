//! The load balancer on real sockets of the loopback interface, without Kubernetes: snapshots are published by hand.
//! Every test has a loopback address of its own, so all run at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod announced;
mod api;
mod balance;
#[path = "../../../tests/src/claims.rs"]
mod claims;
mod conformance;
mod dns;
mod filters;
mod h2_copies;
mod h2_floods;
mod h2_frames;
mod h2_grpc;
mod h2_policies;
mod h2_requests;
mod h2_smuggling;
mod h2_support;
mod h2_tls;
mod h2_websockets;
mod http;
mod interim;
mod limits;
mod mmdb;
mod nft;
mod policies;
mod proxied;
mod routed;
mod scripted;
mod seen;
mod session;
mod smuggling;
mod support;
mod tcp;
mod tls;
mod udp;
mod upgrade;
