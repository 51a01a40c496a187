//! Printing figures, percentiles, and what a process used.

use std::time::Duration;

use anyhow::{Context, Result};

/// Linux counts CPU time in these per second (`USER_HZ`, fixed in the ABI).
const TICKS_PER_S: f64 = 100.0;

/// Prints one figure.
pub fn print(name: &str, value: f64, unit: &str) {
    println!("{name} {} {unit}", short(value));
}

/// Prints one figure beside a peer's.
pub fn against(name: &str, value: f64, unit: &str, peer: &str, peer_value: f64) {
    let ratio = if peer_value > 0.0 { value / peer_value } else { f64::NAN };
    println!("{name} {} {unit} ({peer} {}, ratio {ratio:.2})", short(value), short(peer_value));
}

fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// The `q` quantile (0..1) in milliseconds; 0 if there is nothing.
pub fn quantile_ms(sorted: &[Duration], q: f64) -> f64 {
    let index = ((sorted.len() as f64) * q) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).map_or(0.0, |d| d.as_secs_f64() * 1e3)
}

/// CPU seconds (user and system) that a process and its reaped children used so far.
pub fn cpu_s(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
    let tick = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).context("stat");
    Ok((tick(11)? + tick(12)?) / TICKS_PER_S)
}

/// CPU seconds of several processes.
pub fn cpu_of(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|p| cpu_s(*p)).sum()
}

/// Resident memory of a process in MiB.
pub fn rss_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("VmRSS")?.parse()?;
    Ok(kib / 1024.0)
}
