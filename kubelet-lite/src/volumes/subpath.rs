//! `subPath` mounts: a place inside a volume, found without following anybody's links out of it
//! (`volume/util/subpath/subpath_linux.go`).
//!
//! A container may change its volume while another is started, so a path checked once cannot be trusted. The path is walked
//! with `O_NOFOLLOW` from the volume's root, and what was opened, not the path, is bind-mounted where the runtime takes it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind_recursive, unmount};

const OPEN: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Binds `volume/subpath` at `target`, creating missing directories of the former. `target` must be in a directory that only
/// the agent writes.
pub fn bind(volume: &Path, subpath: &str, target: &Path) -> io::Result<()> {
    let found = open_inside(volume, subpath)?;
    let is_dir = rustix::fs::FileType::from_raw_mode(rustix::fs::statat(&found, "", AtFlags::EMPTY_PATH)?.st_mode)
        == rustix::fs::FileType::Directory;
    // A bind of an earlier start may still be there.
    while unmount(target, UnmountFlags::DETACH).is_ok() {}
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match (is_dir, std::fs::symlink_metadata(target)) {
        (true, Err(_)) => std::fs::create_dir(target)?,
        (false, Err(_)) => drop(std::fs::File::create(target)?),
        (true, Ok(meta)) if !meta.is_dir() => {
            std::fs::remove_file(target)?;
            std::fs::create_dir(target)?;
        }
        (false, Ok(meta)) if meta.is_dir() => {
            std::fs::remove_dir(target)?;
            drop(std::fs::File::create(target)?);
        }
        _ => {}
    }
    mount_bind_recursive(format!("/proc/self/fd/{}", found.as_raw_fd()), target)?;
    Ok(())
}

/// Opens a place inside `root`. Links are resolved once, must stay inside, and the result is walked without any.
fn open_inside(root: &Path, subpath: &str) -> io::Result<OwnedFd> {
    let escapes = || io::Error::new(io::ErrorKind::PermissionDenied, format!("subPath {subpath:?} leaves its volume"));
    let wanted = Path::new(subpath);
    if !wanted.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(escapes());
    }
    let root = root.canonicalize()?;
    let relative = match root.join(wanted).canonicalize() {
        Ok(resolved) => resolved.strip_prefix(&root).map_err(|_| escapes())?.to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => wanted.to_owned(),
        Err(error) => return Err(error),
    };
    let mut at = rustix::fs::openat(CWD, &root, OPEN | OFlags::DIRECTORY, Mode::empty())?;
    // New directories are as open as the volume, whatever the agent's umask.
    let mode = Mode::from_raw_mode(rustix::fs::statat(&at, "", AtFlags::EMPTY_PATH)?.st_mode);
    for component in relative.components() {
        let Component::Normal(name) = component else { continue };
        at = match rustix::fs::openat(&at, name, OPEN, Mode::empty()) {
            Err(Errno::NOENT) => make_dir_at(&at, name, mode)?,
            other => other?,
        };
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::statat(&at, "", AtFlags::EMPTY_PATH)?.st_mode);
        if kind == rustix::fs::FileType::Symlink {
            return Err(escapes());
        }
    }
    Ok(at)
}

/// Makes a directory and opens it, also if somebody else was faster.
fn make_dir_at(parent: &OwnedFd, name: &OsStr, mode: Mode) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, mode) {
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
        Ok(()) => {
            // Through what was opened, which cannot have been swapped for a link.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::fchmod(rustix::fs::openat(parent, name, flags, Mode::empty())?, mode)?;
        }
    }
    Ok(rustix::fs::openat(parent, name, OPEN | OFlags::DIRECTORY, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn links_out_of_the_volume_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        std::fs::create_dir(&volume).unwrap();
        std::fs::set_permissions(&volume, std::fs::Permissions::from_mode(0o2777)).unwrap();
        std::fs::create_dir(volume.join("real")).unwrap();
        symlink("/etc", volume.join("out")).unwrap();
        symlink("real", volume.join("in")).unwrap();
        symlink("/nowhere/at/all", volume.join("dangling")).unwrap();
        assert!(open_inside(&volume, "real").is_ok());
        assert!(open_inside(&volume, "in").is_ok(), "links inside are fine");
        assert!(open_inside(&volume, "new/deep").is_ok(), "missing directories are made");
        let mode = |path: &str| std::fs::metadata(volume.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode("new/deep"), 0o2777, "as the volume, not as the umask says");
        for bad in ["out", "out/passwd", "../x", "/etc", "dangling"] {
            assert!(open_inside(&volume, bad).is_err(), "{bad}");
        }
    }
}
