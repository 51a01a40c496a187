//! The store's file: opened, locked and handed to redb as a [`StorageBackend`].
//!
//! The lock is a file of its own beside the data (`<file>.lock`), held as long as the store is open: it also covers the
//! moment of creation and outlives redb's handle, which is replaced when redb gives up after an I/O error.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::StorageBackend;

use crate::{Error, Result};

/// Objects include Secrets: nobody else on the machine reads them.
const FILE_MODE: u32 = 0o600;

/// Proof that no other process has the store open.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// `path` with `suffix` appended to its last component.
pub(super) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(super) fn open_error(path: &Path, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace,
        _ => Error::Open { path: path.display().to_string(), source },
    }
}

impl Lock {
    pub(super) fn acquire(path: &Path) -> Result<Self> {
        let lock_path = sibling(path, ".lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(&lock_path)
            .map_err(|source| open_error(path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path: path.display().to_string() }),
            Err(TryLockError::Error(source)) => Err(open_error(path, source)),
        }
    }
}

/// A plain file, synced with `fdatasync`. It keeps the lock for as long as any redb handle can still write.
#[derive(Debug)]
pub(super) struct FileStorage {
    file: File,
    _lock: Option<Lock>,
}

impl FileStorage {
    pub(super) fn open(path: &Path, lock: Lock) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { file, _lock: Some(lock) })
    }

    /// An empty file in place of whatever is there, under a name that nobody opens.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(FILE_MODE);
        Ok(Self { file: options.open(path)?, _lock: None })
    }
}

impl StorageBackend for FileStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
}

/// One storage for several redb handles in turn; closing a handle leaves it open.
#[derive(Clone, Debug)]
pub(super) struct Shared(pub(super) Arc<dyn StorageBackend>);

impl StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

/// Makes a file that was written under another name appear at `path` as a whole or not at all.
pub(super) fn publish_file(from: &Path, path: &Path) -> io::Result<()> {
    File::open(from)?.sync_all()?;
    std::fs::rename(from, path)?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}
