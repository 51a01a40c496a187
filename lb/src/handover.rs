//! Listening sockets handed from one process to its successor, so that an upgrade refuses no connection: both hold the same sockets,
//! and with them the same queues of connections, until the predecessor has drained.
//!
//! Sockets travel over a Unix stream as `SCM_RIGHTS`, each message with a header of [`HEADER`] bytes. Who may connect is decided by the
//! permissions of the socket's file. What happens before and after is the platform's.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::snapshot::Protocol;
use crate::snapshot::routes::HostPort;

/// Sockets in one message; Linux allows 253.
const MAX_PER_MESSAGE: usize = 64;
/// Sockets accepted in one hand-over.
const MAX_SOCKETS: usize = 65_536;
/// Version, protocol, port (big endian), number of sockets that come with it.
const HEADER: usize = 5;
const VERSION: u8 = 1;
/// Number of bytes that announce the end.
const END: [u8; HEADER] = [VERSION, 0, 0, 0, 0];

/// The sockets of one port of the host, one per proxy thread of the predecessor.
#[derive(Debug)]
pub struct Listening {
    /// The port.
    pub port: HostPort,
    /// Listening (TCP) or bound (UDP).
    pub sockets: Vec<OwnedFd>,
}

/// Sends the sockets; the caller keeps its own.
pub fn send(stream: &UnixStream, listeners: &[Listening]) -> io::Result<()> {
    for listener in listeners {
        for sockets in listener.sockets.chunks(MAX_PER_MESSAGE) {
            let [high, low] = listener.port.port.to_be_bytes();
            let protocol = if listener.port.protocol == Protocol::Udp { 2 } else { 1 };
            // MAX_PER_MESSAGE fits a byte.
            let header = [VERSION, protocol, high, low, u8::try_from(sockets.len()).unwrap_or(0)];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PER_MESSAGE))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let borrowed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            if !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
                return Err(io::Error::other("the control message does not fit"));
            }
            send_all(stream, &header, &mut control)?;
        }
    }
    send_all(stream, &END, &mut SendAncillaryBuffer::default())
}

fn send_all(stream: &UnixStream, header: &[u8], control: &mut SendAncillaryBuffer<'_, '_, '_>) -> io::Result<()> {
    // A stream takes so few bytes whole, or none.
    let sent = sendmsg(stream, &[IoSlice::new(header)], control, SendFlags::NOSIGNAL)?;
    if sent == header.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives what [`send`] sends.
pub fn receive(stream: &UnixStream) -> io::Result<Vec<Listening>> {
    let mut listeners: Vec<Listening> = Vec::new();
    let mut total = 0;
    loop {
        let mut header = [0; HEADER];
        let sockets = receive_one(stream, &mut header)?;
        let [version, protocol, high, low, count] = header;
        if version != VERSION || usize::from(count) != sockets.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the other process speaks another version"));
        }
        let protocol = match protocol {
            0 => return Ok(listeners),
            1 => Protocol::Tcp,
            2 => Protocol::Udp,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a socket of an unknown kind")),
        };
        total += sockets.len();
        if total > MAX_SOCKETS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more sockets than can be taken over"));
        }
        let port = HostPort { port: u16::from_be_bytes([high, low]), protocol };
        match listeners.last_mut().filter(|last| last.port == port) {
            Some(last) => last.sockets.extend(sockets),
            None => listeners.push(Listening { port, sockets }),
        }
    }
}

/// One header and the sockets that come with it.
fn receive_one(stream: &UnixStream, header: &mut [u8; HEADER]) -> io::Result<Vec<OwnedFd>> {
    let mut sockets = Vec::new();
    let mut at = 0;
    while at < HEADER {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PER_MESSAGE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut part = [IoSliceMut::new(&mut header[at..])];
        let received = recvmsg(stream, &mut part, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                sockets.extend(received);
            }
        }
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at += received.bytes;
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn tcp(port: u16) -> HostPort {
        HostPort { port, protocol: Protocol::Tcp }
    }

    #[test]
    fn a_connection_that_waits_in_the_queue_is_served_by_the_successor() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let addr = listener.local_addr().expect("an address");
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let many: Vec<OwnedFd> = (0..100).map(|_| udp.try_clone().expect("a copy").into()).collect();
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut client = TcpStream::connect(addr).expect("a connection that nobody accepts yet");
        client.write_all(b"hello").expect("sent");
        send(
            &ours,
            &[
                Listening { port: tcp(80), sockets: vec![listener.into()] },
                Listening { port: HostPort { port: 53, protocol: Protocol::Udp }, sockets: many },
            ],
        )
        .expect("sent");
        let taken = receive(&theirs).expect("received");
        assert_eq!(
            taken.iter().map(|l| (l.port, l.sockets.len())).collect::<Vec<_>>(),
            [(tcp(80), 1), (HostPort { port: 53, protocol: Protocol::Udp }, 100)]
        );
        let socket = taken.into_iter().next().and_then(|l| l.sockets.into_iter().next()).expect("the socket");
        let (mut accepted, _) = TcpListener::from(socket).accept().expect("the waiting connection");
        let mut text = [0; 5];
        accepted.read_exact(&mut text).expect("what it sent");
        assert_eq!(&text, b"hello");
    }

    #[test]
    fn strangers_and_broken_ends_are_errors() {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        ours.write_all(b"GET / HTTP/1.1\r\n").expect("sent");
        assert_eq!(receive(&theirs).expect_err("another protocol").kind(), io::ErrorKind::InvalidData);
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        ours.write_all(&[VERSION, 1]).expect("sent");
        drop(ours);
        assert_eq!(receive(&theirs).expect_err("the end").kind(), io::ErrorKind::UnexpectedEof);
    }
}
