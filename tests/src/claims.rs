//! Numbers that nobody else on this machine gets meanwhile: ports, ranges of addresses. No other test, no other process of tests or
//! benchmarks, and not the kernel, which gives ports from `ip_local_port_range` to whoever connects.
//!
//! A number is had by the lock on its file. The kernel takes the lock back when the process ends, however it ends.

use std::fs::{File, TryLockError};
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// Ports for tests: below what the kernel gives away by itself (32768 and more) and below Kubernetes' node ports (30000 and more).
pub const PORTS: Range<u32> = 20_000..29_900;

/// A number that is ours while this lives.
#[derive(Debug)]
pub struct Claim {
    /// The number.
    pub number: u32,
    _lock: File,
}

impl Claim {
    /// Any of the `numbers` of a kind that is free and that `is_usable`; an error if there is none.
    pub fn any(kind: &str, numbers: Range<u32>, is_usable: impl Fn(u32) -> bool) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = std::env::temp_dir().join("scaleup-test-claims");
        std::fs::create_dir_all(&dir)?;
        // Each begins somewhere else, so that what was given back rests before it is had again.
        let count = numbers.end - numbers.start;
        let begin = std::process::id().wrapping_mul(769).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        for step in 0..count {
            let number = numbers.start + begin.wrapping_add(step) % count;
            let lock = File::options().create(true).append(true).open(dir.join(format!("{kind}-{number}")))?;
            match lock.try_lock() {
                Ok(()) if is_usable(number) => return Ok(Self { number, _lock: lock }),
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Err(io::Error::other(format!("all {count} numbers of the kind {kind} are in use")))
    }
}

/// A port (TCP and UDP) on which nobody listens, on any address: ours as long as this process lives.
pub fn free_port() -> io::Result<u16> {
    static OURS: Mutex<Vec<Claim>> = Mutex::new(Vec::new());
    let claim = Claim::any("port", PORTS, |port| u16::try_from(port).is_ok_and(is_unused))?;
    let port = u16::try_from(claim.number).map_err(io::Error::other)?;
    OURS.lock().map_err(|_| io::Error::other("a test panicked while it claimed a port"))?.push(claim);
    Ok(port)
}

/// A loopback address that nobody else has as long as this process lives: on it, every port is free.
pub fn own_address() -> io::Result<Ipv4Addr> {
    /// The network that this process has, and its addresses so far.
    static OURS: Mutex<Option<(Claim, u8)>> = Mutex::new(None);
    let mut ours = OURS.lock().map_err(|_| io::Error::other("a test panicked while it claimed an address"))?;
    let (claim, last) = match ours.take() {
        Some((claim, last)) if last < 254 => (claim, last + 1),
        full => {
            // Networks that are full stay ours, too.
            std::mem::forget(full);
            (Claim::any("loopback", 0..20_000, |_| true)?, 1)
        }
    };
    let [_, _, high, low] = claim.number.to_be_bytes();
    *ours = Some((claim, last));
    Ok(Ipv4Addr::new(127, 100 + high, low, last))
}

/// A process that outlived its test may still listen.
fn is_unused(port: u16) -> bool {
    let all = (Ipv4Addr::UNSPECIFIED, port);
    TcpListener::bind(all).is_ok() && UdpSocket::bind(all).is_ok()
}
