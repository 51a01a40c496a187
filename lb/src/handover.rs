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
/// Version, kind, port (big endian), number of sockets that come with it.
const HEADER: usize = 5;
const VERSION: u8 = 1;
/// Kinds of messages: the end, sockets of one port of the proxy, sockets of DNS.
const END: u8 = 0;
const TCP: u8 = 1;
const UDP: u8 = 2;
const DNS: u8 = 3;
/// The last message.
const FINAL: [u8; HEADER] = [VERSION, END, 0, 0, 0];

/// All that a process hands over.
#[derive(Debug, Default)]
pub struct Handed {
    /// Of the proxy.
    pub listening: Vec<Listening>,
    /// Of cluster DNS: listening (TCP) or bound (UDP), each to an address that says what it is for.
    pub dns: Vec<OwnedFd>,
}

/// The sockets of one port of the host, one per proxy thread of the predecessor.
#[derive(Debug)]
pub struct Listening {
    /// The port.
    pub port: HostPort,
    /// Listening (TCP) or bound (UDP).
    pub sockets: Vec<OwnedFd>,
}

/// Sends the sockets; the caller keeps its own.
pub fn send(stream: &UnixStream, handed: &Handed) -> io::Result<()> {
    for listener in &handed.listening {
        let kind = if listener.port.protocol == Protocol::Udp { UDP } else { TCP };
        send_sockets(stream, kind, listener.port.port, &listener.sockets)?;
    }
    send_sockets(stream, DNS, 0, &handed.dns)?;
    send_all(stream, &FINAL, &mut SendAncillaryBuffer::default())
}

fn send_sockets(stream: &UnixStream, kind: u8, port: u16, sockets: &[OwnedFd]) -> io::Result<()> {
    for sockets in sockets.chunks(MAX_PER_MESSAGE) {
        let [high, low] = port.to_be_bytes();
        // MAX_PER_MESSAGE fits a byte.
        let header = [VERSION, kind, high, low, u8::try_from(sockets.len()).unwrap_or(0)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PER_MESSAGE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let borrowed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        if !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(io::Error::other("the control message does not fit"));
        }
        send_all(stream, &header, &mut control)?;
    }
    Ok(())
}

fn send_all(stream: &UnixStream, header: &[u8], control: &mut SendAncillaryBuffer<'_, '_, '_>) -> io::Result<()> {
    // A stream takes so few bytes whole, or none.
    let sent = sendmsg(stream, &[IoSlice::new(header)], control, SendFlags::NOSIGNAL)?;
    if sent == header.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives what [`send`] sends.
pub fn receive(stream: &UnixStream) -> io::Result<Handed> {
    let mut handed = Handed::default();
    let mut total = 0;
    loop {
        let mut header = [0; HEADER];
        let sockets = receive_one(stream, &mut header)?;
        let [version, kind, high, low, count] = header;
        if version != VERSION || usize::from(count) != sockets.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the other process speaks another version"));
        }
        total += sockets.len();
        if total > MAX_SOCKETS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more sockets than can be taken over"));
        }
        let protocol = match kind {
            END => return Ok(handed),
            DNS => {
                handed.dns.extend(sockets);
                continue;
            }
            TCP => Protocol::Tcp,
            UDP => Protocol::Udp,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a socket of an unknown kind")),
        };
        let port = HostPort { port: u16::from_be_bytes([high, low]), protocol };
        match handed.listening.last_mut().filter(|last| last.port == port) {
            Some(last) => last.sockets.extend(sockets),
            None => handed.listening.push(Listening { port, sockets }),
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
        let dns = vec![udp.try_clone().expect("a copy").into()];
        let listening = vec![
            Listening { port: tcp(80), sockets: vec![listener.into()] },
            Listening { port: HostPort { port: 53, protocol: Protocol::Udp }, sockets: many },
        ];
        send(&ours, &Handed { listening, dns }).expect("sent");
        let Handed { listening: taken, dns } = receive(&theirs).expect("received");
        assert_eq!(dns.len(), 1);
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
