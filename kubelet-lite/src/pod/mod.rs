//! Pods: what they should be ([`plan`]), what they are ([`view`], [`status`]), and the worker that makes them so.

pub mod backoff;
pub mod dns;
pub mod env;
pub mod facts;
pub mod handler;
pub mod images;
pub mod plan;
pub mod probe;
pub mod publish;
pub mod spec;
pub mod start;
pub mod status;
pub mod stop;
pub mod view;
pub mod worker;
