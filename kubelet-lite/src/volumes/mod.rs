//! A pod's volumes on this machine: `<root>/<pod uid>/volumes/<kind>/<name>`.
//!
//! Everything here can be done again at any time: setting up what is set up changes nothing, and what an agent that was
//! killed left behind is found by its path. Never touches what a `hostPath` names, beyond creating it where asked.

pub mod atomic;
pub mod content;
mod subpath;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container as SpecContainer, EmptyDirVolumeSource, HostPathVolumeSource, Pod, Volume};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use scaleup_api::Quantity;

use crate::pod::env;
use crate::pod::view;
use crate::runtime::Mount;
use content::{Fetcher, World};

/// Host paths of a pod's volumes by name.
pub type Prepared = BTreeMap<String, PathBuf>;

/// Why a volume cannot be set up: `MountVolume.SetUp failed for volume "v" : …`.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {message}")]
pub struct VolumeError {
    /// Volume name.
    pub volume: String,
    /// Upstream's text.
    pub message: String,
}

/// Sets volumes up, refreshes them and takes them down.
pub struct Volumes {
    root: PathBuf,
    /// Reads what volumes are made of.
    pub fetcher: Arc<Fetcher>,
}

/// How a volume is kept.
enum Place {
    /// Files that the agent writes; `true` in memory only.
    Files(bool),
    Empty(EmptyDirVolumeSource),
    Host(HostPathVolumeSource),
    Unsupported,
}

fn place(volume: &Volume) -> (&'static str, Place) {
    if volume.config_map.is_some() {
        ("kubernetes.io~configmap", Place::Files(false))
    } else if volume.secret.is_some() {
        ("kubernetes.io~secret", Place::Files(true))
    } else if volume.downward_api.is_some() {
        ("kubernetes.io~downward-api", Place::Files(false))
    } else if volume.projected.is_some() {
        ("kubernetes.io~projected", Place::Files(true))
    } else if let Some(source) = &volume.empty_dir {
        ("kubernetes.io~empty-dir", Place::Empty(source.clone()))
    } else if let Some(source) = &volume.host_path {
        ("kubernetes.io~host-path", Place::Host(source.clone()))
    } else {
        ("", Place::Unsupported)
    }
}

/// Whether the API may change what the volume shows while the pod runs.
pub fn changes(volume: &Volume) -> bool {
    matches!(place(volume).1, Place::Files(_))
}

impl Volumes {
    /// Below `root`, which only the agent writes.
    pub fn new(root: PathBuf, fetcher: Arc<Fetcher>) -> Self {
        Self { root, fetcher }
    }

    /// The pod's directory.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join(uid)
    }

    /// Pods that have a directory.
    pub fn pods(&self) -> io::Result<Vec<String>> {
        match std::fs::read_dir(&self.root) {
            Ok(entries) => entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Puts all volumes of a pod in place, or brings them up to date.
    pub async fn set_up(self: &Arc<Self>, world: &World<'_>) -> Result<Prepared, VolumeError> {
        let mut prepared = Prepared::new();
        for volume in view::spec(world.pod).volumes.as_deref().unwrap_or_default() {
            let fail = |message: String| VolumeError { volume: volume.name.clone(), message };
            let files = self.fetcher.files(volume, world).await.map_err(fail)?;
            let group = view::spec(world.pod).security_context.as_ref().and_then(|s| s.fs_group);
            let group = group.and_then(|g| u32::try_from(g).ok());
            let (kind, how) = place(volume);
            let dir = self.pod_dir(view::uid(world.pod)).join("volumes").join(kind).join(&volume.name);
            let path = tokio::task::spawn_blocking(move || install(&how, &dir, files.as_ref(), group))
                .await
                .map_err(|e| fail(e.to_string()))?
                .map_err(|e| fail(e.to_string()))?;
            prepared.insert(volume.name.clone(), path);
        }
        Ok(prepared)
    }

    /// The container's mounts, `subPath`s bound.
    pub fn mounts(
        &self,
        pod: &Pod,
        container: &SpecContainer,
        env: &BTreeMap<String, String>,
        prepared: &Prepared,
    ) -> Result<Vec<Mount>, String> {
        let mut out = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let base = prepared.get(&mount.name).ok_or_else(|| format!("volume {:?} is not set up", mount.name))?;
            let expression = mount.sub_path_expr.as_deref().filter(|e| !e.is_empty());
            let expanded = expression.map(|e| env::expand(e, |name| env.get(name).cloned()));
            let subpath = expanded.as_deref().or(mount.sub_path.as_deref()).filter(|s| !s.is_empty());
            let source = match subpath {
                None => base.clone(),
                Some(subpath) => {
                    let at = self.pod_dir(view::uid(pod)).join("subpaths").join(&mount.name);
                    let target = at.join(&container.name).join(index.to_string());
                    subpath::bind(base, subpath, &target)
                        .map_err(|e| format!("failed to prepare subPath for volumeMount {:?}: {e}", mount.name))?;
                    target
                }
            };
            let read_only = mount.read_only == Some(true);
            // A container's working directory may be relative to nothing else than its root.
            let target = if mount.mount_path.starts_with('/') {
                mount.mount_path.clone()
            } else {
                format!("/{}", mount.mount_path)
            };
            out.push(Mount { source, target, read_only });
        }
        Ok(out)
    }

    /// Unmounts and removes everything of a pod.
    pub fn tear_down(&self, uid: &str) -> io::Result<()> {
        self.fetcher.forget(uid);
        if uid.is_empty() || uid.contains('/') || uid.starts_with('.') {
            return Ok(());
        }
        let dir = self.pod_dir(uid);
        for point in mount_points_below(&dir) {
            unmount(&point, UnmountFlags::DETACH)?;
        }
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Mount points below a directory, deepest first, from `/proc/self/mountinfo` (its fifth field, octal-escaped).
fn mount_points_below(dir: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(|escaped| {
        PathBuf::from(
            escaped.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"),
        )
    });
    let mut below: Vec<PathBuf> = points.filter(|p| p.starts_with(dir)).collect();
    below.reverse();
    below
}

fn install(how: &Place, dir: &Path, files: Option<&atomic::Files>, group: Option<u32>) -> io::Result<PathBuf> {
    match how {
        Place::Files(in_memory) => {
            make_dir(dir)?;
            if *in_memory {
                in_memory_dir(dir, None)?;
            }
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
            if let Some(files) = files {
                atomic::write(dir, files, group)?;
            }
            Ok(dir.to_owned())
        }
        Place::Empty(source) => {
            make_dir(dir)?;
            if source.medium.as_deref() == Some("Memory") {
                let limit = source.size_limit.as_ref().and_then(|q| Quantity::try_from(q).ok());
                in_memory_dir(dir, limit.map(|q| q.value()).filter(|bytes| *bytes > 0))?;
            }
            chown(dir, None, group)?;
            let mode = if group.is_some() { 0o2777 } else { 0o777 };
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))?;
            Ok(dir.to_owned())
        }
        Place::Host(source) => host_path(source),
        Place::Unsupported => Err(io::Error::other(
            "this kind of volume is not supported here; use configMap, secret, emptyDir, hostPath, downwardAPI or projected",
        )),
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

/// Mounts a tmpfs unless one is there.
fn in_memory_dir(dir: &Path, limit_bytes: Option<i64>) -> io::Result<()> {
    if mount_points_below(dir).iter().any(|p| p == dir) {
        return Ok(());
    }
    let size = limit_bytes.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
    let options = CString::new(format!("mode=0755{size}")).map_err(io::Error::other)?;
    match mount("tmpfs", dir, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str()) {
        Ok(()) => Ok(()),
        // Without the right to mount (not root), secrets stay in a directory that only this user reads.
        Err(rustix::io::Errno::PERM) if limit_bytes.is_none() => {
            tracing::warn!(dir = %dir.display(), "may not mount tmpfs; this volume is kept on disk");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Checks, or creates, what `hostPath.type` says (`host_path.go`).
fn host_path(source: &HostPathVolumeSource) -> io::Result<PathBuf> {
    let path = PathBuf::from(&source.path);
    let wrong =
        |what: &str| Err(io::Error::other(format!("hostPath type check failed: {} is not {what}", source.path)));
    let kind = || std::fs::metadata(&path).ok().map(|m| m.file_type());
    match source.type_.as_deref().unwrap_or_default() {
        // Without a type too: Docker mounts only what exists, and upstream's runtimes create a directory then.
        "" | "DirectoryOrCreate" if kind().is_none() => make_dir(&path)?,
        "FileOrCreate" if kind().is_none() => {
            std::fs::File::create(&path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
        }
        "Directory" | "DirectoryOrCreate" if !kind().is_some_and(|k| k.is_dir()) => return wrong("a directory"),
        "File" | "FileOrCreate" if !kind().is_some_and(|k| k.is_file()) => return wrong("a file"),
        "Socket" if !kind().is_some_and(|k| k.is_socket()) => return wrong("a socket file"),
        "CharDevice" if !kind().is_some_and(|k| k.is_char_device()) => return wrong("a character device"),
        "BlockDevice" if !kind().is_some_and(|k| k.is_block_device()) => return wrong("a block device"),
        _ => {}
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_path_types_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "").unwrap();
        let check = |path: &Path, kind: &str, good: bool| {
            let source = HostPathVolumeSource { path: path.display().to_string(), type_: Some(kind.into()) };
            assert_eq!(host_path(&source).is_ok(), good, "{} {kind}", path.display());
        };
        check(dir.path(), "Directory", true);
        check(&file, "Directory", false);
        check(&file, "File", true);
        check(&file, "DirectoryOrCreate", false);
        check(dir.path(), "Socket", false);
        check(&dir.path().join("made/deep"), "DirectoryOrCreate", true);
        assert!(dir.path().join("made/deep").is_dir());
        check(&dir.path().join("made/f"), "FileOrCreate", true);
        check(&dir.path().join("absent"), "Directory", false);
    }

    #[test]
    fn an_empty_dir_survives_a_second_setup_and_goes_with_the_pod() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("uid/volumes/kubernetes.io~empty-dir/v");
        let how = Place::Empty(EmptyDirVolumeSource { medium: Some("Memory".into()), size_limit: None });
        if install(&how, &at, None, None).is_err() {
            return; // not root: nothing to say
        }
        std::fs::write(at.join("kept"), "x").unwrap();
        install(&how, &at, None, None).unwrap();
        assert!(at.join("kept").exists());
        for point in mount_points_below(dir.path()) {
            unmount(&point, UnmountFlags::DETACH).unwrap();
        }
        assert!(!at.join("kept").exists(), "it was in memory");
    }
}
