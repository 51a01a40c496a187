//! Binds one socket per proxy thread to the same port.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, Socket, TcpKeepalive, Type};

use crate::snapshot::Protocol;

/// Connections the kernel completes while threads are busy.
pub(crate) const BACKLOG: i32 = 4096;
/// Silence after which a peer is probed, and the pause between probes.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Datagrams, in bytes, that the kernel keeps while threads are busy (it may allow less).
const DATAGRAM_BUFFER: usize = 4 * 1024 * 1024;

/// Finds out about peers that vanished without a word.
pub(crate) fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL)
}

/// Why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// Another process has it.
    #[error("the port is in use by another program")]
    InUse,
    /// Ports below `net.ipv4.ip_unprivileged_port_start` need privileges.
    #[error("binding the port is not permitted")]
    Denied,
    /// The bind address does not exist on this machine (yet).
    #[error("the bind address does not exist on this machine")]
    NoAddress,
    /// Anything else.
    #[error("binding failed")]
    Other(#[source] std::io::Error),
}

impl From<std::io::Error> for BindError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::AddrInUse => Self::InUse,
            ErrorKind::PermissionDenied => Self::Denied,
            ErrorKind::AddrNotAvailable => Self::NoAddress,
            _ => Self::Other(error),
        }
    }
}

/// A socket that clients can reach.
#[derive(Debug)]
pub(crate) enum Bound {
    /// Listens for connections.
    Tcp(TcpListener),
    /// Receives datagrams.
    Udp(UdpSocket),
}

/// `count` sockets of `protocol` on `addr` with `SO_REUSEPORT`.
///
/// A first socket without that option finds out whether somebody else has the port: with it, a second instance on the
/// machine would silently share the traffic.
pub(crate) fn bind(addr: SocketAddr, protocol: Protocol, count: usize) -> Result<Vec<Bound>, BindError> {
    drop(socket(addr, protocol, false)?);
    (0..count).map(|_| listen(addr, protocol)).collect()
}

fn listen(addr: SocketAddr, protocol: Protocol) -> Result<Bound, BindError> {
    let socket = socket(addr, protocol, true)?;
    if protocol == Protocol::Udp {
        // Less than wished for only means that bursts are dropped earlier.
        let _ = socket.set_recv_buffer_size(DATAGRAM_BUFFER);
        return Ok(Bound::Udp(socket.into()));
    }
    // Linux hands these on to the connections, which therefore cost no calls of their own.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())?;
    socket.listen(BACKLOG)?;
    Ok(Bound::Tcp(socket.into()))
}

/// `count` sockets on `addr`: those that a predecessor has handed over, and more if it had fewer. Of more than `count` the rest is closed,
/// as if the predecessor had closed it.
pub(crate) fn adopt(
    addr: SocketAddr,
    protocol: Protocol,
    count: usize,
    adopted: Vec<OwnedFd>,
) -> Result<Vec<Bound>, BindError> {
    let mut sockets: Vec<Bound> = adopted
        .into_iter()
        .take(count)
        .map(|socket| match protocol {
            Protocol::Tcp => Bound::Tcp(socket.into()),
            Protocol::Udp => Bound::Udp(socket.into()),
        })
        .collect();
    while sockets.len() < count {
        sockets.push(listen(addr, protocol)?);
    }
    Ok(sockets)
}

fn socket(addr: SocketAddr, protocol: Protocol, reuse_port: bool) -> Result<Socket, BindError> {
    let (kind, ip_protocol) = match protocol {
        Protocol::Tcp => (Type::STREAM, socket2::Protocol::TCP),
        Protocol::Udp => (Type::DGRAM, socket2::Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(addr), kind, Some(ip_protocol))?;
    // Connections of a predecessor in TIME_WAIT do not count as a conflict. For UDP the option would mean sharing.
    socket.set_reuse_address(protocol == Protocol::Tcp)?;
    socket.set_reuse_port(reuse_port)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_a_conflict_even_when_it_would_share() {
        let free: SocketAddr = "127.53.0.3:0".parse().expect("an address");
        let check = |taken: SocketAddr, protocol: Protocol, holder: Box<dyn std::any::Any>| {
            assert!(matches!(bind(taken, protocol, 2), Err(BindError::InUse)));
            drop(holder);
            let ours = bind(taken, protocol, 3).expect("three sockets on one port");
            assert_eq!(ours.len(), 3);
            assert!(matches!(bind(taken, protocol, 1), Err(BindError::InUse)));
        };
        let first = TcpListener::bind(free).expect("a listener");
        check(first.local_addr().expect("an address"), Protocol::Tcp, Box::new(first));
        let first = UdpSocket::bind(free).expect("a socket");
        check(first.local_addr().expect("an address"), Protocol::Udp, Box::new(first));
    }

    #[test]
    fn connections_inherit_the_options_of_their_listener() {
        let free = TcpListener::bind("127.53.0.4:0").expect("a listener").local_addr().expect("an address");
        let ours = bind(free, Protocol::Tcp, 1).expect("a socket");
        let [Bound::Tcp(listener)] = &ours[..] else { panic!("one listener") };
        let _client = std::net::TcpStream::connect(free).expect("a connection");
        // The connection is complete, so accepting does not block although the listener would not wait.
        let (accepted, _) = listener.accept().expect("the connection");
        let socket = socket2::SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().expect("an option") && socket.keepalive().expect("an option"));
        assert_eq!(socket.tcp_keepalive_time().expect("an option"), KEEPALIVE_TIME);
    }

    #[test]
    fn a_foreign_address_is_told_apart() {
        // Of a range that no machine has (RFC 5737), other than the one that example networks like to use.
        let result = bind("198.51.100.77:80".parse().expect("an address"), Protocol::Tcp, 1);
        assert!(matches!(result, Err(BindError::NoAddress)), "{result:?}");
    }
}
