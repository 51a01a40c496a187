//! The sockets of cluster DNS, kept beside the tasks that serve them: for a successor, and from a predecessor, so that a
//! hand-over loses no query. Both processes read the same sockets meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;
use socket2::{Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

/// Both sockets of one address.
pub(super) struct Pair {
    pub udp: UdpSocket,
    pub tcp: TcpListener,
}

/// A predecessor's sockets of one address; one may be missing.
#[derive(Debug, Default)]
struct Adopted {
    udp: Option<Socket>,
    tcp: Option<Socket>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct DnsSockets {
    /// Copies of those in use.
    open: Mutex<BTreeMap<SocketAddr, Vec<OwnedFd>>>,
    /// Of a predecessor, until somebody wants them.
    adopted: Mutex<BTreeMap<SocketAddr, Adopted>>,
    handed_over: AtomicBool,
    /// Whether what the first complete snapshot asks for has been opened.
    settled: watch::Sender<bool>,
}

impl Default for DnsSockets {
    fn default() -> Self {
        Self {
            open: Mutex::default(),
            adopted: Mutex::default(),
            handed_over: AtomicBool::new(false),
            settled: watch::channel(false).0,
        }
    }
}

impl DnsSockets {
    /// Copies of all sockets in use.
    pub fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        self.open.lock().values().flatten().map(OwnedFd::try_clone).collect()
    }

    /// Keeps a predecessor's sockets until they are wanted. What is no bound socket is closed.
    pub fn adopt(&self, sockets: Vec<OwnedFd>) {
        let mut adopted = self.adopted.lock();
        for socket in sockets.into_iter().map(Socket::from) {
            let addr = socket.local_addr().ok().and_then(|addr| addr.as_socket());
            let (Some(addr), Ok(kind)) = (addr, socket.r#type()) else { continue };
            let entry = adopted.entry(addr).or_default();
            match kind {
                Type::DGRAM => entry.udp = Some(socket),
                Type::STREAM => entry.tcp = Some(socket),
                _ => {}
            }
        }
    }

    /// Whether there is anything of a predecessor that nobody has wanted yet.
    pub fn has_adopted(&self) -> bool {
        !self.adopted.lock().is_empty()
    }

    /// Closes what is left of a predecessor's.
    pub fn drop_adopted(&self) {
        self.adopted.lock().clear();
    }

    /// Both sockets of `addr`: a predecessor's as far as there are any, else new ones.
    pub(super) async fn open(&self, addr: SocketAddr) -> io::Result<Pair> {
        let Adopted { udp, tcp } = self.adopted.lock().remove(&addr).unwrap_or_default();
        let tcp = match tcp {
            Some(socket) => TcpListener::from_std(socket.into())?,
            None => TcpListener::bind(addr).await?,
        };
        let udp = match udp {
            Some(socket) => UdpSocket::from_std(socket.into())?,
            None => UdpSocket::bind(addr).await?,
        };
        let copies = vec![udp.as_fd().try_clone_to_owned()?, tcp.as_fd().try_clone_to_owned()?];
        self.open.lock().insert(addr, copies);
        Ok(Pair { udp, tcp })
    }

    /// Closes the copies of an address that is served no more.
    pub fn closed(&self, addr: SocketAddr) {
        self.open.lock().remove(&addr);
    }

    /// Notes that a successor reads these sockets now.
    pub fn hand_over(&self) {
        self.handed_over.store(true, Relaxed);
    }

    /// Whether it does.
    pub fn are_handed_over(&self) -> bool {
        self.handed_over.load(Relaxed)
    }

    /// Notes that everything has been opened that the first complete snapshot asks for.
    pub fn settle(&self) {
        self.settled.send_replace(true);
    }

    /// Waits for it.
    pub async fn settled(&self) {
        // The sender lives as long as `self`.
        let _ = self.settled.subscribe().wait_for(|settled| *settled).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_successor_reads_what_was_sent_before() {
        let (old, new) = (DnsSockets::default(), DnsSockets::default());
        let probe = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = probe.local_addr().unwrap();
        drop(probe);
        let before = old.open(addr).await.unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"query", addr).await.unwrap();
        let _connection = TcpStream::connect(addr).await.unwrap();
        new.adopt(old.copies().unwrap());
        assert!(new.has_adopted());
        old.closed(addr);
        drop(before);
        let after = new.open(addr).await.unwrap();
        assert!(!new.has_adopted());
        let mut buffer = [0; 16];
        assert_eq!(after.udp.recv_from(&mut buffer).await.unwrap().0, 5);
        after.tcp.accept().await.unwrap();
        assert_eq!(new.copies().unwrap().len(), 2);
        new.adopt(vec![std::fs::File::open("/dev/null").unwrap().into()]);
        assert!(!new.has_adopted(), "no socket at all");
    }
}
