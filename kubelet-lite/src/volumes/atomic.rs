//! Files that change together (`volume/util/atomic_writer.go`).
//!
//! The files live in a directory of their own, `..data` points at it, and what a container sees are links through `..data`:
//! one rename swaps them all. A container never sees half an update, and an unchanged set writes nothing.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path};

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// Files by path relative to the volume.
pub type Files = BTreeMap<String, File>;

/// Longest path within a volume.
const MAX_PATH: usize = 255;
/// Read permission for owner and group, which a group of the pod's (`fsGroup`) gets.
const GROUP_READ: u32 = 0o440;

/// Whether a path may name a file in a volume: relative, no `..`, not starting with `..`, not too long.
pub fn valid_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= MAX_PATH
        && !path.starts_with("..")
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}

/// Makes `dir` show exactly `files`; whether anything was written. Paths must be [`valid_path`]s.
pub fn write(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    let current = std::fs::read_link(dir.join("..data")).ok().map(|link| dir.join(link));
    if current.as_ref().is_some_and(|at| shows(at, files)) {
        return Ok(false);
    }
    let fresh_name = format!("..{:016x}", rand::random::<u64>());
    let fresh = dir.join(&fresh_name);
    std::fs::create_dir(&fresh)?;
    permit(&fresh, 0o755, group)?;
    for (path, file) in files {
        if let Some(parent) = Path::new(path).parent() {
            std::fs::create_dir_all(fresh.join(parent))?;
        }
        let target = fresh.join(path);
        std::fs::write(&target, &file.data)?;
        let mode = if group.is_some() { file.mode | GROUP_READ } else { file.mode };
        permit(&target, mode & 0o777, group)?;
    }
    let swap = dir.join("..data_tmp");
    remove_if_there(&swap)?;
    symlink(&fresh_name, &swap)?;
    std::fs::rename(&swap, dir.join("..data"))?;
    link_names(dir, files)?;
    if let Some(old) = current {
        std::fs::remove_dir_all(old)?;
    }
    Ok(true)
}

fn permit(path: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    if group.is_some() {
        chown(path, None, group)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Whether the directory holds exactly these files.
fn shows(at: &Path, files: &Files) -> bool {
    let same = |(path, file): (&String, &File)| std::fs::read(at.join(path)).is_ok_and(|data| data == file.data);
    files.iter().all(same) && count_files(at).is_ok_and(|n| n == files.len())
}

fn count_files(dir: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { count_files(&entry.path())? } else { 1 };
    }
    Ok(count)
}

/// One link per first path segment, and none for what is gone.
fn link_names(dir: &Path, files: &Files) -> io::Result<()> {
    let names: std::collections::BTreeSet<&str> =
        files.keys().filter_map(|path| path.split('/').find(|s| !s.is_empty())).collect();
    for name in &names {
        let link = dir.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(name), &link)?;
        }
    }
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        if !text.starts_with("..") && !names.contains(text.as_ref()) {
            remove_if_there(&dir.join(&name))?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter().map(|(p, d)| ((*p).to_owned(), File { data: d.as_bytes().to_vec(), mode: 0o640 })).collect()
    }

    #[test]
    fn updates_swap_everything_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).ok();
        assert!(write(dir.path(), &files(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!((read("a").as_deref(), read("d/b").as_deref()), (Some("1"), Some("2")));
        let mode = std::fs::metadata(dir.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert!(!write(dir.path(), &files(&[("a", "1"), ("d/b", "2")]), None).unwrap(), "unchanged");
        let before = std::fs::read_link(dir.path().join("..data")).unwrap();
        assert!(write(dir.path(), &files(&[("a", "3"), ("c", "4")]), None).unwrap());
        assert_eq!((read("a").as_deref(), read("d/b"), read("c").as_deref()), (Some("3"), None, Some("4")));
        assert!(!dir.path().join(before).exists(), "the old generation is gone");
        assert!(!dir.path().join("d").is_symlink());
    }

    #[test]
    fn paths_stay_inside() {
        for good in ["a", "a/b", "a..b", ".hidden"] {
            assert!(valid_path(good), "{good}");
        }
        for bad in ["", "/a", "../a", "a/../b", "..data", "a/./../b", &"x".repeat(256)] {
            assert!(!valid_path(bad), "{bad}");
        }
    }
}
