//! Key and certificate files: private, written atomically, one writer at a time.
//!
//! This is the only place of the identity layer that touches the disk. It knows nothing of what is in the files.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::PkiError;

/// Mode of files with keys.
const PRIVATE_FILE: u32 = 0o600;
/// Mode of the directory.
const PRIVATE_DIR: u32 = 0o700;
/// No key, certificate or kubeconfig is larger.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// `PkiError::Io` with the path and what was tried.
pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::Io { action, path, source }
}

/// Creates `dir` (and its parents) if absent and makes it private.
pub(crate) fn private_dir(dir: &Path) -> Result<(), PkiError> {
    DirBuilder::new().recursive(true).mode(PRIVATE_DIR).create(dir).map_err(io("create", dir))?;
    tighten(dir, PRIVATE_DIR)
}

/// Takes permissions away from group and others, if they have any.
fn tighten(path: &Path, mode: u32) -> Result<(), PkiError> {
    let now = std::fs::metadata(path).map_err(io("examine", path))?.permissions().mode() & 0o777;
    if now & 0o077 != 0 {
        tracing::warn!(path = %path.display(), mode = format!("{now:o}"), "key material was open to others, now it is not");
        std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io("restrict", path))?;
    }
    Ok(())
}

/// Held while files are created; released on drop, and by the kernel if the process dies.
pub(crate) struct Lock(#[allow(dead_code, reason = "the lock lives as long as the descriptor")] File);

/// Waits until no other process creates files in `dir`.
pub(crate) fn lock(dir: &Path) -> Result<Lock, PkiError> {
    let path = dir.join(".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(PRIVATE_FILE)
        .open(&path)
        .map_err(io("open", &path))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|e| io("lock", &path)(e.into()))?;
    Ok(Lock(file))
}

/// The file's text, or `None` if there is no such file. A file with a key is made private first.
pub(crate) fn read(path: &Path, private: bool) -> Result<Option<String>, PkiError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io("open", path)(e)),
    };
    if private {
        tighten(path, PRIVATE_FILE)?;
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(io("read", path))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| PkiError::Damaged { path: path.to_owned(), detail: "it is not text".into() })?;
    Ok(Some(text))
}

/// Replaces `path` by a private file with `text`; after a crash there is the old file or the new one, never a part.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), PkiError> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let temp: PathBuf = dir.join(format!(".{file_name}.{}", uuid::Uuid::new_v4().simple()));
    let written = write_synced(&temp, text).and_then(|()| std::fs::rename(&temp, path));
    if let Err(e) = written {
        // Best effort: the temporary file is of no use to anybody.
        let _ = std::fs::remove_file(&temp);
        return Err(io("write", path)(e));
    }
    File::open(dir).and_then(|d| d.sync_all()).map_err(io("sync", dir))
}

fn write_synced(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create_new(true).write(true).mode(PRIVATE_FILE).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn files_are_private_and_replaced_whole() {
        let dir = std::env::temp_dir().join(format!("pki-files-{}", uuid::Uuid::new_v4()));
        private_dir(&dir).unwrap();
        assert_eq!(mode(&dir), 0o700);
        let path = dir.join("a.key");
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(read(&path, true).unwrap().as_deref(), Some("two"));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "no temporary file is left");
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        read(&path, true).unwrap();
        assert_eq!(mode(&path), 0o600, "an open key file is closed");
        assert_eq!(read(&dir.join("absent"), true).unwrap(), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
