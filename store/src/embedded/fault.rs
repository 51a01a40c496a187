//! What can go wrong inside the embedded store, and what the seam calls it.

use std::any::Any;
use std::io::ErrorKind;

use crate::Error;

/// An engine's failure before it is known what it means for the caller.
#[derive(Debug)]
pub(super) enum Fault {
    /// redb failed.
    Engine(redb::Error),
    /// The data makes no sense, or redb panicked on it (its pages are trusted once open verified them).
    Damaged(String),
    /// Not a fault of the engine: the caller's request cannot be served.
    Refused(Error),
}

pub(super) type Inner<T> = Result<T, Fault>;

impl Fault {
    pub(super) fn damaged(detail: String) -> Self {
        Self::Damaged(detail)
    }

    /// From `catch_unwind`.
    pub(super) fn panicked(payload: &(dyn Any + Send)) -> Self {
        let message = payload
            .downcast_ref::<&str>()
            .map(|message| (*message).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        Self::Damaged(format!("the engine gave up on it: {message}"))
    }

    /// Whether the engine refuses everything until it is reopened, although the file may be fine.
    pub(super) fn needs_reopen(&self) -> bool {
        match self {
            Fault::Engine(redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed) => true,
            // "Allocator state was discarded by a failed … commit; reopen the database to repair it."
            Fault::Engine(redb::Error::Corrupted(message)) => message.contains("reopen the database"),
            _ => false,
        }
    }

    /// For the seam. `path` names the file in messages.
    pub(super) fn into_error(self, path: &str) -> Error {
        let corrupt = |detail: String| Error::Corrupt { path: path.to_owned(), detail };
        match self {
            Fault::Refused(error) => error,
            Fault::Damaged(detail) => corrupt(detail),
            Fault::Engine(error) => match error {
                redb::Error::Io(error) => io_error(error, path),
                redb::Error::Corrupted(detail) => corrupt(detail),
                redb::Error::DatabaseAlreadyOpen => Error::Locked { path: path.to_owned() },
                redb::Error::UpgradeRequired(found) => {
                    Error::Format { path: path.to_owned(), found: found.into(), supported: super::layout::FORMAT }
                }
                redb::Error::PreviousIo | redb::Error::DatabaseClosed => {
                    Error::Unavailable("the store is being reopened after an I/O error".to_owned())
                }
                error @ (redb::Error::TableDoesNotExist(_)
                | redb::Error::TableTypeMismatch { .. }
                | redb::Error::TypeDefinitionChanged { .. }
                | redb::Error::TableIsMultimap(_)) => corrupt(error.to_string()),
                error => Error::Engine(Box::new(error)),
            },
        }
    }
}

/// An I/O error of the file at `path`.
pub(super) fn io_error(error: std::io::Error, path: &str) -> Error {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::NoSpace,
        // redb's word for "not a database" and for pages beyond the end of the file.
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
            Error::Corrupt { path: path.to_owned(), detail: error.to_string() }
        }
        _ => Error::Engine(Box::new(error)),
    }
}

macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for Fault {
            fn from(error: redb::$error) -> Self {
                Self::Engine(error.into())
            }
        }
    )*};
}

from_redb!(StorageError, TableError, TransactionError, CommitError, DatabaseError, CompactionError);

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}
