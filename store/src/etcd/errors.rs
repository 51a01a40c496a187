//! What etcd's errors mean for a caller of the seam.

use crate::{Error, MAX_ENTRY_BYTES, Revision};

/// gRPC status codes that etcd uses (<https://grpc.io/docs/guides/status-codes>).
const CANCELLED: i32 = 1;
const INVALID_ARGUMENT: i32 = 3;
const DEADLINE_EXCEEDED: i32 = 4;
const RESOURCE_EXHAUSTED: i32 = 8;
const OUT_OF_RANGE: i32 = 11;
const UNAVAILABLE: i32 = 14;

/// An error of etcd, sorted.
#[derive(Debug)]
pub(super) enum Meaning {
    /// `ErrCompacted`
    Compacted,
    /// `ErrFutureRev`
    Future,
    /// `ErrNoSpace`: the backend's quota is used up.
    NoSpace,
    /// `ErrRequestTooLarge`
    TooLarge,
    /// Connection, leader or timeout; it may pass.
    Unavailable(String),
    /// Anything else.
    Other(etcd_client::Error),
}

/// Sorts an error. etcd's messages are part of its API (`rpctypes`).
pub(super) fn meaning(error: etcd_client::Error) -> Meaning {
    let etcd_client::Error::GRpcStatus(status) = &error else {
        return match error {
            etcd_client::Error::IoError(_)
            | etcd_client::Error::TransportError(_)
            | etcd_client::Error::WatchError(_) => Meaning::Unavailable(error.to_string()),
            other => Meaning::Other(other),
        };
    };
    let says = |text: &str| status.message().contains(text);
    match i32::from(status.code()) {
        OUT_OF_RANGE if says("compacted") => Meaning::Compacted,
        OUT_OF_RANGE if says("future") => Meaning::Future,
        RESOURCE_EXHAUSTED if says("database space exceeded") => Meaning::NoSpace,
        INVALID_ARGUMENT if says("request is too large") => Meaning::TooLarge,
        CANCELLED | DEADLINE_EXCEEDED | RESOURCE_EXHAUSTED | UNAVAILABLE => {
            Meaning::Unavailable(status.message().to_owned())
        }
        _ => Meaning::Other(error),
    }
}

impl Meaning {
    /// For the seam; `requested` and `current` are revisions, where they matter.
    pub(super) fn into_error(self, requested: Revision, current: Revision) -> Error {
        match self {
            // Etcd does not say what the oldest one is; this much is certain.
            Meaning::Compacted => Error::Compacted { requested, oldest: requested.saturating_add(1) },
            Meaning::Future => Error::Future { requested, current },
            Meaning::NoSpace => Error::NoSpace,
            Meaning::TooLarge => Error::TooLarge { size: MAX_ENTRY_BYTES, limit: MAX_ENTRY_BYTES },
            Meaning::Unavailable(why) => Error::Unavailable(why),
            Meaning::Other(error) => Error::Engine(Box::new(error)),
        }
    }
}
