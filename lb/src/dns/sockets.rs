//! The sockets of cluster DNS, two per address: a predecessor's are served on, so that a hand-over loses no query.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use socket2::{Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

use crate::sockets::Sockets;

/// Both sockets of one address.
pub(super) struct Pair {
    pub udp: UdpSocket,
    pub tcp: TcpListener,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct DnsSockets {
    /// By address.
    pub kept: Sockets<SocketAddr>,
    /// Whether what the first complete snapshot asks for has been opened.
    settled: watch::Sender<bool>,
}

impl Default for DnsSockets {
    fn default() -> Self {
        Self { kept: Sockets::default(), settled: watch::channel(false).0 }
    }
}

impl DnsSockets {
    /// Copies of all sockets in use.
    pub fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        Ok(self.kept.copies()?.into_iter().flat_map(|(_, sockets)| sockets).collect())
    }

    /// Keeps a predecessor's sockets until they are wanted. What is no bound socket is closed.
    pub fn adopt(&self, sockets: Vec<OwnedFd>) {
        let addressed = sockets.into_iter().filter_map(|socket| {
            let socket = Socket::from(socket);
            let addr = socket.local_addr().ok()?.as_socket()?;
            Some((addr, vec![socket.into()]))
        });
        self.kept.adopt(addressed);
    }

    /// Both sockets of `addr`: a predecessor's as far as there are any, else new ones.
    pub(super) async fn open(&self, addr: SocketAddr) -> io::Result<Pair> {
        let (mut udp, mut tcp) = (None, None);
        for socket in self.kept.take_adopted(addr).into_iter().flatten().map(Socket::from) {
            match socket.r#type()? {
                Type::DGRAM => udp = Some(socket),
                Type::STREAM => tcp = Some(socket),
                _ => {}
            }
        }
        let tcp = match tcp {
            Some(socket) => TcpListener::from_std(socket.into())?,
            None => TcpListener::bind(addr).await?,
        };
        let udp = match udp {
            Some(socket) => UdpSocket::from_std(socket.into())?,
            None => UdpSocket::bind(addr).await?,
        };
        self.kept.opened(addr, [udp.as_fd(), tcp.as_fd()])?;
        Ok(Pair { udp, tcp })
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
        // An address that nobody else binds ports of.
        let probe = std::net::UdpSocket::bind("127.53.0.1:0").unwrap();
        let addr = probe.local_addr().unwrap();
        drop(probe);
        let before = old.open(addr).await.unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"query", addr).await.unwrap();
        let _connection = TcpStream::connect(addr).await.unwrap();
        new.adopt(old.copies().unwrap());
        assert!(new.kept.has_adopted());
        old.kept.closed(addr);
        drop(before);
        let after = new.open(addr).await.unwrap();
        assert!(!new.kept.has_adopted());
        let mut buffer = [0; 16];
        assert_eq!(after.udp.recv_from(&mut buffer).await.unwrap().0, 5);
        after.tcp.accept().await.unwrap();
        assert_eq!(new.copies().unwrap().len(), 2);
        new.adopt(vec![std::fs::File::open("/dev/null").unwrap().into()]);
        assert!(!new.kept.has_adopted(), "no socket at all");
    }
}
