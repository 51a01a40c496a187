//! PROXY protocol, versions 1 and 2: the header by which a proxy tells whom it speaks for
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).
//!
//! [`parse`] and [`Header`] are pure. [`accept`] takes the header off a connection and leaves every byte after it
//! unread; it never guesses: a connection that must bring a header and brings none, or a wrong one, is to be closed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::own::Ends;

/// Longest wait for a complete header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest version 1 header, line end included (§2.1).
const MAX_V1: usize = 107;
/// What a version 2 header begins with (§2.2).
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length of the rest.
const V2_FIXED: usize = 16;
/// Longest version 2 header that is accepted, with its TLVs; the protocol allows 64 KiB, real ones stay below 1 KiB.
const MAX_V2: usize = 4096;
/// Longest header written: version 1 with two IPv6 addresses.
const MAX_WRITTEN: usize = MAX_V1;

/// Why a connection has no usable header.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    /// Its source is not one whose header is believed.
    #[error("the source is not a trusted proxy")]
    Untrusted,
    /// No complete header in time.
    #[error("no PROXY protocol header within {} s", HEADER_TIMEOUT.as_secs())]
    Timeout,
    /// It does not begin with a header, or with one that breaks the rules.
    #[error("the PROXY protocol header is malformed")]
    Malformed,
    /// The connection broke.
    #[error("reading the PROXY protocol header failed")]
    Io(#[source] io::Error),
}

/// What the beginning of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// Part of a header; all of it, and at least one byte more.
    Partial,
    /// A header of `length` bytes. `client` is absent when the proxy speaks for itself (`LOCAL`) or did not say
    /// (`UNKNOWN`, `UNSPEC`).
    Complete {
        /// Bytes that belong to the header.
        length: usize,
        /// Who connected to the proxy.
        client: Option<SocketAddr>,
    },
    /// Something else.
    Malformed,
}

/// What `bytes`, the first ones of a connection, are. Pure.
pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let begins = |prefix: &[u8]| prefix.iter().zip(bytes).all(|(a, b)| a == b);
    if begins(&V2_SIGNATURE) {
        parse_v2(bytes)
    } else if begins(b"PROXY ") {
        parse_v1(bytes)
    } else {
        Parsed::Malformed
    }
}

fn parse_v1(bytes: &[u8]) -> Parsed {
    let within = &bytes[..bytes.len().min(MAX_V1)];
    let Some(end) = within.iter().position(|byte| *byte == b'\n') else {
        return if within.len() == MAX_V1 { Parsed::Malformed } else { Parsed::Partial };
    };
    let Some(line) = within[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok()) else {
        return Parsed::Malformed;
    };
    let client = match line.split(' ').collect::<Vec<_>>()[..] {
        // What follows UNKNOWN must be ignored.
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", "TCP4", from, to, from_port, to_port] => {
            match (v1_end::<Ipv4Addr>(from, from_port), v1_end::<Ipv4Addr>(to, to_port)) {
                (Some(client), Some(_)) => Some(client),
                _ => return Parsed::Malformed,
            }
        }
        ["PROXY", "TCP6", from, to, from_port, to_port] => {
            match (v1_end::<Ipv6Addr>(from, from_port), v1_end::<Ipv6Addr>(to, to_port)) {
                (Some(client), Some(_)) => Some(client),
                _ => return Parsed::Malformed,
            }
        }
        _ => return Parsed::Malformed,
    };
    Parsed::Complete { length: end + 1, client }
}

/// An address of the family `A` and a port without sign or leading zero.
fn v1_end<A: std::str::FromStr + Into<IpAddr>>(ip: &str, port: &str) -> Option<SocketAddr> {
    let plain = port.bytes().all(|byte| byte.is_ascii_digit()) && (port == "0" || !port.starts_with('0'));
    let port = port.parse().ok().filter(|_| plain)?;
    Some(SocketAddr::new(ip.parse::<A>().ok()?.into(), port))
}

fn parse_v2(bytes: &[u8]) -> Parsed {
    let Some(fixed) = bytes.first_chunk::<V2_FIXED>() else { return Parsed::Partial };
    let [.., version_command, family_transport, high, low] = *fixed;
    let length = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    if version_command >> 4 != 2 || length > MAX_V2 {
        return Parsed::Malformed;
    }
    let Some(addresses) = bytes.get(V2_FIXED..length) else { return Parsed::Partial };
    let client = match (version_command & 0xf, family_transport) {
        // LOCAL: the proxy itself, e.g. its health check; the addresses are to be ignored.
        (0, _) => None,
        (1, 0x11 | 0x12) => match addresses.first_chunk::<12>() {
            Some([a, b, c, d, _, _, _, _, high, low, _, _]) => {
                Some(SocketAddr::new(Ipv4Addr::new(*a, *b, *c, *d).into(), u16::from_be_bytes([*high, *low])))
            }
            None => return Parsed::Malformed,
        },
        (1, 0x21 | 0x22) => match addresses.first_chunk::<36>() {
            Some(block) => {
                let (ip, ports) = (block.first_chunk::<16>(), &block[32..]);
                let Some(ip) = ip else { return Parsed::Malformed };
                Some(SocketAddr::new(Ipv6Addr::from(*ip).into(), u16::from_be_bytes([ports[0], ports[1]])))
            }
            None => return Parsed::Malformed,
        },
        // Unspecified, and Unix sockets, which have no address of use here.
        (1, 0x00 | 0x31 | 0x32) => None,
        _ => return Parsed::Malformed,
    };
    Parsed::Complete { length, client }
}

/// A header ready to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    bytes: [u8; MAX_WRITTEN],
    length: usize,
}

impl Header {
    /// Of a connection from `client` to `server`, in version 1 or 2 (anything else is 2).
    pub fn new(version: u8, client: SocketAddr, server: SocketAddr) -> Self {
        let (from, to) = (client.ip().to_canonical(), server.ip().to_canonical());
        let mut header = Self { bytes: [0; MAX_WRITTEN], length: 0 };
        let ports = [client.port(), server.port()];
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) if version == 1 => header.line("TCP4", from.into(), to.into(), ports),
            _ if version == 1 => header.line("TCP6", mapped(from).into(), mapped(to).into(), ports),
            (IpAddr::V4(from), IpAddr::V4(to)) => header.block(0x11, &[from.octets(), to.octets()], ports),
            _ => header.block(0x21, &[mapped(from).octets(), mapped(to).octets()], ports),
        }
        header
    }

    /// What goes first on the connection.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn push(&mut self, bytes: &[u8]) {
        // The longest header fits, so nothing is ever cut.
        if let Some(room) = self.bytes.get_mut(self.length..self.length + bytes.len()) {
            room.copy_from_slice(bytes);
            self.length += bytes.len();
        }
    }

    fn line(&mut self, family: &str, from: IpAddr, to: IpAddr, [from_port, to_port]: [u16; 2]) {
        let line = format!("PROXY {family} {from} {to} {from_port} {to_port}\r\n");
        self.push(line.as_bytes());
    }

    fn block<const N: usize>(&mut self, family: u8, addresses: &[[u8; N]; 2], ports: [u16; 2]) {
        self.push(&V2_SIGNATURE);
        // Version 2, command PROXY.
        self.push(&[0x21, family, 0, (2 * N + 4) as u8]);
        addresses.iter().for_each(|address| self.push(address));
        ports.iter().for_each(|port| self.push(&port.to_be_bytes()));
    }
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// Whether `ip` is in one of the networks (address and prefix length).
fn is_trusted(sources: &[(IpAddr, u8)], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    sources.iter().any(|(network, length)| match (network.to_canonical(), ip) {
        (IpAddr::V4(network), IpAddr::V4(ip)) => {
            let mask = u32::MAX.checked_shl(32u32.saturating_sub((*length).into())).unwrap_or(0);
            network.to_bits() & mask == ip.to_bits() & mask
        }
        (IpAddr::V6(network), IpAddr::V6(ip)) => {
            let mask = u128::MAX.checked_shl(128u32.saturating_sub((*length).into())).unwrap_or(0);
            network.to_bits() & mask == ip.to_bits() & mask
        }
        _ => false,
    })
}

/// Takes the header off a connection from `peer` that must bring one; the client's address, which is `peer` when the
/// header names nobody. Bytes after the header stay unread.
pub(crate) async fn accept(
    stream: &mut TcpStream,
    peer: SocketAddr,
    trusted: &[(IpAddr, u8)],
) -> Result<SocketAddr, ProxyError> {
    if !is_trusted(trusted, peer.ip()) {
        return Err(ProxyError::Untrusted);
    }
    let client = tokio::time::timeout(HEADER_TIMEOUT, read(stream)).await.map_err(|_| ProxyError::Timeout)??;
    Ok(client.unwrap_or(peer))
}

async fn read(stream: &mut TcpStream) -> Result<Option<SocketAddr>, ProxyError> {
    let mut bytes = [0; MAX_V2];
    let mut taken = 0;
    loop {
        // Looks first: what follows the header belongs to somebody else. Everything of a part of a header belongs to
        // it, so it is taken and the next look waits for new bytes.
        let seen = stream.peek(&mut bytes[taken..]).await.map_err(ProxyError::Io)?;
        if seen == 0 {
            return Err(ProxyError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let parsed = parse(&bytes[..taken + seen]);
        let upto = match parsed {
            Parsed::Partial => taken + seen,
            Parsed::Complete { length, .. } => length,
            Parsed::Malformed => return Err(ProxyError::Malformed),
        };
        stream.read_exact(&mut bytes[taken..upto]).await.map_err(ProxyError::Io)?;
        taken = upto;
        if let Parsed::Complete { client, .. } = parsed {
            return Ok(client);
        }
    }
}

/// Sends the header of version `version` over a new connection to an endpoint: for which client's connection it is.
pub(crate) async fn send(stream: &mut TcpStream, version: u8, ends: &Ends) -> io::Result<()> {
    stream.write_all(Header::new(version, ends.client, ends.server).bytes()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [&V2_SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let pairs = [("192.0.2.1:1000", "198.51.100.2:80"), ("[2001:db8::1]:65535", "[2001:db8::2]:443")];
        for (client, server) in pairs {
            for version in [1, 2] {
                let header = Header::new(version, addr(client), addr(server));
                let mut bytes = header.bytes().to_vec();
                let length = bytes.len();
                for cut in 0..length {
                    assert_eq!(parse(&bytes[..cut]), Parsed::Partial, "{client} version {version} cut at {cut}");
                }
                bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
                assert_eq!(parse(&bytes), Parsed::Complete { length, client: Some(addr(client)) });
            }
        }
        let mixed = Header::new(1, addr("192.0.2.1:5"), addr("[2001:db8::2]:6"));
        assert_eq!(mixed.bytes(), b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 5 6\r\n");
        let long = "[1111:2222:3333:4444:5555:6666:7777:8888]:65535";
        assert!(Header::new(1, addr(long), addr(long)).bytes().ends_with(b" 65535 65535\r\n"));
    }

    #[test]
    fn version_1_is_strict() {
        let check = |text: &str, expected: Parsed| assert_eq!(parse(text.as_bytes()), expected, "{text:?}");
        check(
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nx",
            Parsed::Complete { length: 36, client: Some(addr("192.0.2.1:1")) },
        );
        check("PROXY UNKNOWN\r\n", Parsed::Complete { length: 15, client: None });
        check("PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", Parsed::Complete { length: 43, client: None });
        for bad in [
            "GET / HTTP/1.1\r\n",
            "proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            "PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
            "PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
            "PROXY TCP4 ::1 ::2 1 2\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY\r\n",
        ] {
            check(bad, Parsed::Malformed);
        }
        check(&format!("PROXY UNKNOWN {}", "x".repeat(MAX_V1)), Parsed::Malformed);
    }

    #[test]
    fn version_2_is_strict_and_skips_what_it_does_not_know() {
        let v4 = [192, 0, 2, 1, 192, 0, 2, 2, 0, 7, 0, 8];
        let client = Some(addr("192.0.2.1:7"));
        let check = |bytes: Vec<u8>, expected: Option<Option<SocketAddr>>| {
            let length = bytes.len();
            let expected = expected.map_or(Parsed::Malformed, |client| Parsed::Complete { length, client });
            assert_eq!(parse(&bytes), expected, "{bytes:?}");
        };
        check(v2(0x21, 0x11, &v4), Some(client));
        // Type-length-values follow the addresses.
        check(v2(0x21, 0x11, &[&v4[..], &[0x04, 0, 3, 1, 2, 3]].concat()), Some(client));
        check(v2(0x20, 0x11, &v4), Some(None));
        check(v2(0x20, 0x00, &[]), Some(None));
        check(v2(0x21, 0x00, &[]), Some(None));
        check(v2(0x21, 0x31, &[0; 216]), Some(None));
        check(v2(0x21, 0x11, &v4[..11]), None);
        check(v2(0x21, 0x21, &v4), None);
        check(v2(0x22, 0x11, &v4), None);
        check(v2(0x11, 0x11, &v4), None);
        check(v2(0x21, 0x13, &v4), None);
        check(v2(0x21, 0x11, &vec![0; MAX_V2]), None);
    }

    #[test]
    fn trust_is_by_network() {
        let sources =
            [(addr("192.0.2.0:0").ip(), 24), (addr("[2001:db8::]:0").ip(), 32), (addr("10.0.0.1:0").ip(), 32)];
        let check = |ip: &str, expected| assert_eq!(is_trusted(&sources, addr(ip).ip()), expected, "{ip}");
        check("192.0.2.77:1", true);
        check("192.0.3.1:1", false);
        check("[::ffff:192.0.2.5]:1", true);
        check("[2001:db8:ffff::1]:1", true);
        check("[2001:db9::1]:1", false);
        check("10.0.0.1:1", true);
        check("10.0.0.2:1", false);
        assert!(is_trusted(&[(addr("0.0.0.0:0").ip(), 0)], addr("203.0.113.9:1").ip()));
    }
}
