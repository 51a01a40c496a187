//! A UDP socket that answers from the address it was asked at.
//!
//! A socket bound to all addresses would let the kernel choose the source of an answer by the route back; on a machine
//! with several addresses clients would drop what comes from another one than they asked. Such a socket is told the
//! destination of each datagram (`IP_PKTINFO`, `IPV6_PKTINFO`) and sends from there. Knows nothing of sessions.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Room for the control message of one datagram (32 bytes with IPv6).
const CONTROL_BYTES: usize = 128;

/// See the module.
#[derive(Debug)]
pub(crate) struct Datagrams {
    socket: UdpSocket,
    /// Bound to all addresses; the control messages' buffer.
    everywhere: Option<RefCell<Box<[u8]>>>,
}

/// Where a datagram came from and which of our addresses it was sent to (if the socket has several).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Path {
    pub peer: SocketAddr,
    pub local: Option<IpAddr>,
}

impl Datagrams {
    /// Takes over a socket that does not block.
    pub fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let addr = socket.local_addr()?;
        let everywhere = addr.ip().is_unspecified();
        if everywhere && addr.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        } else if everywhere {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        let everywhere = everywhere.then(|| RefCell::new(vec![0; CONTROL_BYTES].into()));
        Ok(Self { socket: UdpSocket::from_std(socket)?, everywhere })
    }

    /// Resolves when a datagram may be there.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// The next datagram; longer ones than `buffer` are cut.
    pub fn try_recv(&self, buffer: &mut [u8]) -> io::Result<(usize, Path)> {
        let Some(control) = &self.everywhere else {
            let (length, peer) = self.socket.try_recv_from(buffer)?;
            return Ok((length, Path { peer, local: None }));
        };
        self.socket.try_io(Interest::READABLE, || {
            let mut control = control.borrow_mut();
            let mut parts = [IoSliceMut::new(buffer)];
            let flags = MsgFlags::MSG_DONTWAIT;
            let message = recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
            let peer = message.address.as_ref().and_then(to_std).ok_or(io::ErrorKind::InvalidData)?;
            let local = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    Some(IpAddr::from(u32::from_be(info.ipi_addr.s_addr).to_be_bytes()))
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
                _ => None,
            });
            Ok((message.bytes, Path { peer, local }))
        })
    }

    /// Sends `bytes` back along `path`. Whether there is room is the kernel's answer: readiness is not waited for.
    pub fn try_send(&self, bytes: &[u8], path: Path) -> io::Result<()> {
        let Some(local) = path.local else {
            return SockRef::from(&self.socket).send_to(bytes, &path.peer.into()).map(|_| ());
        };
        let parts = [IoSlice::new(bytes)];
        let (fd, flags, to) = (self.socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT, SockaddrStorage::from(path.peer));
        let sent = match local {
            IpAddr::V4(ip) => {
                let addr = libc::in_addr { s_addr: u32::from_be_bytes(ip.octets()).to_be() };
                let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: addr, ipi_addr: addr };
                sendmsg(fd, &parts, &[ControlMessage::Ipv4PacketInfo(&info)], flags, Some(&to))
            }
            IpAddr::V6(ip) => {
                let ipi6_addr = libc::in6_addr { s6_addr: ip.octets() };
                let ipi6_ifindex = match path.peer {
                    SocketAddr::V6(peer) => peer.scope_id(),
                    SocketAddr::V4(_) => 0,
                };
                let info = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex };
                sendmsg(fd, &parts, &[ControlMessage::Ipv6PacketInfo(&info)], flags, Some(&to))
            }
        };
        Ok(sent.map(|_| ())?)
    }
}

fn to_std(addr: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = addr.as_sockaddr_in().map(|addr| SocketAddr::V4(SocketAddrV4::from(*addr)));
    v4.or_else(|| addr.as_sockaddr_in6().map(|addr| SocketAddr::V6(SocketAddrV6::from(*addr))))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(bind: &str, ask: &str) {
        let std = std::net::UdpSocket::bind(bind).expect("a socket");
        std.set_nonblocking(true).expect("an option");
        let port = std.local_addr().expect("an address").port();
        let socket = Datagrams::new(std).expect("a socket");
        let target = SocketAddr::new(ask.parse().expect("an address"), port);
        let any = if target.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        let client = UdpSocket::bind(any).await.expect("a socket");
        // Connected: answers from anywhere else are dropped.
        client.connect(target).await.expect("a route");
        client.send(b"hello").await.expect("sent");
        let mut buffer = [0; 16];
        let (length, path) = loop {
            socket.readable().await.expect("readable");
            match socket.try_recv(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => break other.expect("a datagram"),
            }
        };
        assert_eq!((&buffer[..length], path.peer), (&b"hello"[..], client.local_addr().expect("an address")));
        socket.try_send(b"world", path).expect("sent");
        let patience = std::time::Duration::from_secs(20);
        let length =
            tokio::time::timeout(patience, client.recv(&mut buffer)).await.expect("in time").expect("an answer");
        assert_eq!(&buffer[..length], b"world");
    }

    #[tokio::test]
    async fn answers_come_from_the_address_that_was_asked() {
        check("0.0.0.0:0", "127.0.0.77").await;
        check("127.0.0.78:0", "127.0.0.78").await;
        if std::net::UdpSocket::bind("[::1]:0").is_ok() {
            check("[::]:0", "::1").await;
        }
    }
}
