//! What goes wrong on a first run, found before anything starts, each with what to do about it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock, statvfs};

/// Below this much free space nothing is started: the store could not acknowledge a write for long.
const MIN_FREE_BYTES: u64 = 32 << 20;
/// A clock before this (2025-01-01) was never set.
const EARLIEST_CLOCK_S: u64 = 1_735_689_600;
/// A clock that went back by more than this since the last run is worth a warning.
const CLOCK_SLACK: Duration = Duration::from_secs(3600);

/// The data directory, ours alone for as long as this lives.
pub struct DataDir {
    _lock: File,
}

impl DataDir {
    /// Creates the directory if need be, and locks it.
    pub fn open(dir: &Path) -> Result<Self> {
        let shown = dir.display();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| {
            format!(
                "cannot create the data directory {shown}; choose another with --data-dir, or make its parent writable"
            )
        })?;
        let path = dir.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| {
            format!("the data directory {shown} is not writable; make it so, or choose another with --data-dir")
        })?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _ = (&lock).take(32).read_to_string(&mut pid);
            let pid = pid.trim();
            let who = if pid.is_empty() { String::new() } else { format!(" (process {pid})") };
            bail!(
                "the data directory {shown} is in use by another scaleup{who}; stop that one, or choose another directory with --data-dir"
            );
        }
        let free = statvfs(dir).map(|s| s.f_bavail.saturating_mul(s.f_frsize)).unwrap_or(u64::MAX);
        if free < MIN_FREE_BYTES {
            bail!(
                "the disk of the data directory {shown} is full: {} MiB are free, {} are needed; free some space, or choose another disk with --data-dir",
                free >> 20,
                MIN_FREE_BYTES >> 20
            );
        }
        let written =
            lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}", std::process::id()));
        written.with_context(|| format!("cannot write to the data directory {shown}"))?;
        Ok(Self { _lock: lock })
    }
}

/// Refuses a clock that was never set; warns about one that went back since the last start.
pub fn check_clock(dir: &Path) -> Result<()> {
    let now = SystemTime::now();
    if now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() < EARLIEST_CLOCK_S {
        bail!(
            "this machine's clock is far off (before 2025): certificates and tokens would not work; set it (timedatectl set-ntp true, or date -s) and start again"
        );
    }
    let marker = dir.join("lock");
    let last =
        std::fs::metadata(dir.join("kubeconfig")).or_else(|_| std::fs::metadata(marker)).and_then(|m| m.modified());
    if let Ok(last) = last
        && let Ok(back) = last.duration_since(now)
        && back > CLOCK_SLACK
    {
        tracing::warn!(
            "this machine's clock went back by {} minutes since the last start: tokens may seem to come from the future; check it with timedatectl",
            back.as_secs() / 60
        );
    }
    Ok(())
}

/// Under sudo, gives the data directory and the kubeconfig to the person who called it, whose kubectl reads them.
pub fn give_to_caller(dir: &Path, kubeconfig: &Path) {
    let id = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let (Some(user), Some(group)) = (id("SUDO_UID"), id("SUDO_GID")) else { return };
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for path in [dir, kubeconfig] {
        if let Err(error) = std::os::unix::fs::lchown(path, Some(user), Some(group)) {
            tracing::warn!(%error, "cannot give {} to user {user}", path.display());
        }
    }
}

/// Binds the API's port.
pub async fn bind(listen: SocketAddr) -> Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(listen).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "port {} is taken by another program (find it with: ss -ltnp 'sport = :{}'); stop that one, or choose another port with --listen",
            listen.port(),
            listen.port()
        ),
        std::io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("not allowed to listen on {listen}; choose a port above 1023 with --listen, or run as root")
        }
        std::io::ErrorKind::AddrNotAvailable => {
            anyhow::anyhow!("{} is not an address of this machine; see `ip address`, and choose one with --listen", listen.ip())
        }
        _ => anyhow::Error::new(e).context(format!("cannot listen on {listen}")),
    })
}

/// The address other machines would reach this one under: the source address of the default route. No packet is sent.
pub fn primary_address() -> IpAddr {
    let found = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|s| {
        // TEST-NET-3: connecting a datagram socket only looks the route up.
        s.connect((Ipv4Addr::new(203, 0, 113, 1), 9))?;
        s.local_addr()
    });
    found.map(|a| a.ip()).ok().filter(|ip| !ip.is_unspecified()).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// The host's name as a node name: lower case, and only what a DNS subdomain may hold.
pub fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let clean: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let clean = clean.trim_matches(['-', '.']);
    if scaleup_api::names::dns1123_subdomain(clean).is_ok() { clean.to_owned() } else { "node".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner() {
        let dir = std::env::temp_dir().join(format!("scaleup-preflight-{}", std::process::id()));
        let first = DataDir::open(&dir).unwrap();
        let second = DataDir::open(&dir).err().unwrap().to_string();
        assert!(second.contains(&format!("process {}", std::process::id())), "{second}");
        drop(first);
        DataDir::open(&dir).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let e = format!("{:#}", DataDir::open(Path::new("/proc/nowhere")).err().unwrap());
        assert!(e.contains("/proc/nowhere") && e.contains("--data-dir"), "{e}");
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let e = bind(taken.local_addr().unwrap()).await.unwrap_err().to_string();
        assert!(e.contains("is taken") && e.contains("--listen"), "{e}");
    }
}
