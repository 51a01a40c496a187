//! The load balancer on real sockets of the loopback interface, without Kubernetes: snapshots are published by hand.
//! Every test has a loopback address of its own, so all run at once.

mod dns;
mod http;
mod nft;
mod smuggling;
mod support;
mod tcp;
mod upgrade;
