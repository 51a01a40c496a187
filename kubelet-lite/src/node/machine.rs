//! Measures the machine: capacity, pressure, identity. The only place that reads `/proc` and `/sys`.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;
use scaleup_api::Quantity;

use crate::agent::{Amounts, Config};
use crate::runtime::Version;

/// Memory kept from pods, as upstream's default hard eviction threshold.
const RESERVED_MEMORY_BYTES: u64 = 100 * 1024 * 1024;
/// A filesystem with less than this part free is under pressure, in percent.
const MIN_DISK_FREE_PERCENT: u64 = 5;
/// A machine with less than this part of its process ids free is under pressure, in percent.
const MIN_PIDS_FREE_PERCENT: u64 = 5;
/// The version of Kubernetes whose kubelet this behaves like.
pub const KUBELET_VERSION: &str = concat!("v1.33.0+scaleup-", env!("CARGO_PKG_VERSION"));

/// What a look at the machine found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Memory that can be had without swapping, bytes.
    pub memory_available: u64,
    /// Whether that is too little.
    pub memory: bool,
    /// Whether the disk is too full.
    pub disk: bool,
    /// Whether process ids run out.
    pub pids: bool,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// A value of `/proc/meminfo`, bytes.
fn meminfo(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    let kib: u64 = line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    kib.saturating_mul(1024)
}

fn bytes(value: u64) -> Quantity {
    Quantity::from_bytes(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Capacity and what of it pods may ask for.
pub fn amounts(config: &Config) -> Amounts {
    let (cpus, memory, disk) = match config.hollow {
        Some(hollow) => (u64::from(hollow.cpus), hollow.memory_bytes, 100 << 30),
        None => {
            let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
            (cpus, meminfo(&read("/proc/meminfo"), "MemTotal"), disk_of(&config.data_dir).map_or(0, |d| d.total))
        }
    };
    let map = |memory: u64, disk: u64| {
        BTreeMap::from([
            ("cpu".to_owned(), Quantity::from_value(i64::try_from(cpus).unwrap_or(i64::MAX))),
            ("memory".to_owned(), bytes(memory)),
            ("ephemeral-storage".to_owned(), bytes(disk)),
            ("pods".to_owned(), Quantity::from_value(i64::from(config.max_pods))),
        ])
    };
    Amounts {
        capacity: map(memory, disk),
        allocatable: map(memory.saturating_sub(RESERVED_MEMORY_BYTES), disk / 100 * (100 - MIN_DISK_FREE_PERCENT)),
    }
}

struct Disk {
    total: u64,
    available: u64,
    inodes: u64,
    inodes_free: u64,
}

/// The filesystem a path is on, or its nearest parent that exists.
fn disk_of(path: &Path) -> Option<Disk> {
    let existing = path.ancestors().find(|p| p.exists())?;
    let found = rustix::fs::statvfs(existing).ok()?;
    Some(Disk {
        total: found.f_blocks.saturating_mul(found.f_frsize),
        available: found.f_bavail.saturating_mul(found.f_frsize),
        inodes: found.f_files,
        inodes_free: found.f_favail,
    })
}

/// Looks at the machine now.
pub fn pressure(config: &Config) -> Pressure {
    if config.hollow.is_some() {
        return Pressure::default();
    }
    let memory_available = meminfo(&read("/proc/meminfo"), "MemAvailable");
    let scarce = |free: u64, of: u64, percent: u64| of > 0 && free < of / 100 * percent;
    let disk = disk_of(&config.data_dir).is_some_and(|d| {
        scarce(d.available, d.total, MIN_DISK_FREE_PERCENT) || scarce(d.inodes_free, d.inodes, MIN_DISK_FREE_PERCENT)
    });
    let pid_max: u64 = read("/proc/sys/kernel/pid_max").parse().unwrap_or(0);
    // "0.1 0.2 0.3 running/total last-pid"
    let tasks: u64 = read("/proc/loadavg")
        .split_whitespace()
        .nth(3)
        .and_then(|field| field.split_once('/')?.1.parse().ok())
        .unwrap_or(0);
    Pressure {
        memory_available,
        memory: memory_available > 0 && memory_available < RESERVED_MEMORY_BYTES,
        disk,
        pids: scarce(pid_max.saturating_sub(tasks), pid_max, MIN_PIDS_FREE_PERCENT),
    }
}

/// `nodeInfo`
pub fn system_info(config: &Config, runtime: Option<&Version>) -> NodeSystemInfo {
    let runtime = runtime.map(|v| format!("{}://{}", v.name, v.version)).unwrap_or_default();
    let base = NodeSystemInfo {
        architecture: architecture().into(),
        operating_system: "linux".into(),
        container_runtime_version: runtime,
        kubelet_version: KUBELET_VERSION.into(),
        ..NodeSystemInfo::default()
    };
    if config.hollow.is_some() {
        return NodeSystemInfo { os_image: "hollow".into(), ..base };
    }
    NodeSystemInfo {
        machine_id: read("/etc/machine-id"),
        system_uuid: read("/sys/class/dmi/id/product_uuid"),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        os_image: os_release(&read("/etc/os-release")),
        ..base
    }
}

/// `PRETTY_NAME` of os-release(5).
fn os_release(text: &str) -> String {
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// The architecture as Go (and so Kubernetes) names it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Counters of the whole machine: CPU seconds used and memory working set, for `/metrics/resource`.
pub fn usage() -> (f64, u64) {
    let stat = read("/proc/stat");
    // "cpu user nice system idle iowait irq softirq steal …", in ticks of 1/100 s.
    let fields: Vec<u64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    let busy: u64 =
        fields.iter().enumerate().filter(|(i, _)| !matches!(i, 3 | 4 | 8 | 9)).map(|(_, ticks)| ticks).sum();
    let memory = read("/proc/meminfo");
    let used = meminfo(&memory, "MemTotal").saturating_sub(meminfo(&memory, "MemAvailable"));
    #[allow(clippy::cast_precision_loss, reason = "a gauge")]
    let seconds = busy as f64 / 100.0;
    (seconds, used)
}

/// IPv4 networks that the machine has routes to, from `/proc/net/route` (little-endian hexadecimal), as CIDRs.
pub fn routes() -> Vec<String> {
    parse_routes(&read("/proc/net/route"))
}

fn parse_routes(text: &str) -> Vec<String> {
    let address = |hex: &str| u32::from_str_radix(hex, 16).ok().map(|n| std::net::Ipv4Addr::from(n.swap_bytes()));
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (destination, mask) = (address(fields.get(1)?)?, address(fields.get(7)?)?);
        let bits = u32::from(mask).leading_ones();
        (bits > 0).then(|| format!("{destination}/{bits}"))
    };
    text.lines().skip(1).filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        assert_eq!(meminfo("MemTotal:       2048 kB\nMemAvailable: 1 kB\n", "MemTotal"), 2048 * 1024);
        assert_eq!(meminfo("", "MemTotal"), 0);
        assert_eq!(os_release("ID=debian\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                      eth0\t00000000\t010200C0\t3\t0\t0\t0\t00000000\ndocker0\t000011AC\t0\t1\t0\t0\t0\t0000FFFF\n";
        assert_eq!(parse_routes(routes), ["172.17.0.0/16"]);
    }

    #[test]
    fn this_machine_has_something() {
        let config = Config::new("n", [127, 0, 0, 1].into(), std::env::temp_dir());
        let amounts = amounts(&config);
        assert!(amounts.capacity["memory"] > amounts.allocatable["memory"]);
        assert!(amounts.capacity["cpu"] >= Quantity::from_value(1));
        assert!(pressure(&config).memory_available > 0);
    }
}
