//! The ClientHello of a TLS connection, looked at without taking a byte of it (RFC 8446 §4.1.2, RFC 6066 §3).
//!
//! [`parse`] is pure. [`peek`] waits for a complete message and leaves it unread, so that whoever gets the connection
//! sees it whole. Nothing here decrypts or checks more than finding the name and the protocols needs.

use std::io;
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Largest ClientHello (its handshake header included); post-quantum key shares make about 2 KiB.
const MAX_HELLO: usize = 16 * 1024;
/// Room for it cut into small records.
const MAX_PEEK: usize = MAX_HELLO + 64 * RECORD_HEADER;
/// First look: nearly every ClientHello fits.
const FIRST_PEEK: usize = 4096;
const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
/// `ContentType.handshake`
const CONTENT_HANDSHAKE: u8 = 22;
/// `HandshakeType.client_hello`
const CLIENT_HELLO: u8 = 1;
/// `server_name`
const EXTENSION_SERVER_NAME: u16 = 0;
/// `application_layer_protocol_negotiation`
const EXTENSION_ALPN: u16 = 16;
/// Longest host name (RFC 1035 §2.3.4).
const MAX_NAME: usize = 253;
/// Protocols looked at; more are ignored.
const MAX_PROTOCOLS: usize = 32;

/// Why there is no ClientHello.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelloError {
    /// It is not TLS, or breaks its rules, or is too long.
    #[error("the connection does not begin with a TLS ClientHello")]
    Malformed,
    /// It was not complete in time.
    #[error("no complete TLS ClientHello in time")]
    Timeout,
    /// The connection broke.
    #[error("reading the TLS ClientHello failed")]
    Io(#[source] io::Error),
}

/// What is of interest in a ClientHello.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientHello {
    /// `server_name` in lower case, without trailing dot; `None` if the client sent none.
    pub server_name: Option<String>,
    /// ALPN protocols in the client's order; empty if it sent none.
    pub alpn: Vec<Vec<u8>>,
}

/// Waits for the ClientHello of `stream` for at most `timeout`; all bytes stay unread.
pub(crate) async fn peek(stream: &TcpStream, timeout: Duration) -> Result<ClientHello, HelloError> {
    tokio::time::timeout(timeout, wait(stream)).await.map_err(|_| HelloError::Timeout)?
}

async fn wait(stream: &TcpStream) -> Result<ClientHello, HelloError> {
    let mut bytes = vec![0; FIRST_PEEK];
    let mut known = 0;
    loop {
        let ready = stream.ready(Interest::READABLE).await.map_err(HelloError::Io)?;
        // Saying "would block" when nothing new is there makes the next round wait for more instead of spinning.
        let look = || match recv(stream, &mut bytes[..], RecvFlags::PEEK) {
            Ok((_, seen)) if seen > known => Ok(seen),
            Ok((_, 0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        };
        match stream.try_io(Interest::READABLE, look) {
            Ok(seen) => known = seen,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !ready.is_read_closed() => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(HelloError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            Err(error) => return Err(HelloError::Io(error)),
        }
        match parse(&bytes[..known])? {
            Some(hello) => return Ok(hello),
            None if known == bytes.len() && known < MAX_PEEK => bytes.resize((known * 2).min(MAX_PEEK), 0),
            None if known == bytes.len() => return Err(HelloError::Malformed),
            None => {}
        }
    }
}

/// The ClientHello that `bytes` begin with; `None` if more bytes are needed. Pure.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<ClientHello>, HelloError> {
    // Most clients send one record, which is read where it is.
    let mut records = Records { rest: bytes };
    let Some(first) = records.next()? else { return Ok(None) };
    match message(first)? {
        Some(body) => hello(body).map(Some),
        None => {
            let mut joined = first.to_vec();
            while let Some(fragment) = records.next()? {
                joined.extend_from_slice(fragment);
                if let Some(body) = message(&joined)? {
                    return hello(body).map(Some);
                }
            }
            Ok(None)
        }
    }
}

/// Payloads of the complete handshake records.
struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    fn next(&mut self) -> Result<Option<&'a [u8]>, HelloError> {
        let rest = self.rest;
        // What is there of the header must be right, so that what is not TLS is not waited for.
        let content = rest.first().is_none_or(|content| *content == CONTENT_HANDSHAKE);
        let version = rest.get(1).is_none_or(|major| *major == 3);
        if !content || !version {
            return Err(HelloError::Malformed);
        }
        let Some([_, _, _, high, low]) = rest.first_chunk::<RECORD_HEADER>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        // Empty handshake records are forbidden (RFC 8446 §5.1), longer ones than 2^14 bytes, too.
        if length == 0 || length > MAX_HELLO {
            return Err(HelloError::Malformed);
        }
        let Some(payload) = rest.get(RECORD_HEADER..RECORD_HEADER + length) else { return Ok(None) };
        self.rest = &rest[RECORD_HEADER + length..];
        Ok(Some(payload))
    }
}

/// The body of the handshake message that `bytes` begin with, if complete.
fn message(bytes: &[u8]) -> Result<Option<&[u8]>, HelloError> {
    if bytes.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(HelloError::Malformed);
    }
    let Some([_, a, b, c]) = bytes.first_chunk::<HANDSHAKE_HEADER>() else { return Ok(None) };
    let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
    if length > MAX_HELLO - HANDSHAKE_HEADER {
        return Err(HelloError::Malformed);
    }
    Ok(bytes.get(HANDSHAKE_HEADER..HANDSHAKE_HEADER + length))
}

/// Takes what is read off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }
    fn u8(&mut self) -> Result<usize, HelloError> {
        Ok(usize::from(self.take(1)?[0]))
    }
    fn u16(&mut self) -> Result<u16, HelloError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }
    /// A vector with a length of one byte.
    fn short(&mut self) -> Result<Reader<'a>, HelloError> {
        let length = self.u8()?;
        self.take(length).map(Reader)
    }
    /// A vector with a length of two bytes.
    fn long(&mut self) -> Result<Reader<'a>, HelloError> {
        let length = self.u16()?;
        self.take(length.into()).map(Reader)
    }
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn hello(body: &[u8]) -> Result<ClientHello, HelloError> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?; // legacy_version, random
    reader.short()?; // legacy_session_id
    reader.long()?; // cipher_suites
    reader.short()?; // legacy_compression_methods
    let mut found = ClientHello::default();
    if reader.is_empty() {
        return Ok(found);
    }
    let mut extensions = reader.long()?;
    if !reader.is_empty() {
        return Err(HelloError::Malformed);
    }
    let (mut name_seen, mut alpn_seen) = (false, false);
    while !extensions.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.long()?;
        // An extension may come once only (RFC 8446 §4.2); two names would let us and the endpoint see different ones.
        match kind {
            EXTENSION_SERVER_NAME if std::mem::replace(&mut name_seen, true) => return Err(HelloError::Malformed),
            EXTENSION_ALPN if std::mem::replace(&mut alpn_seen, true) => return Err(HelloError::Malformed),
            EXTENSION_SERVER_NAME => found.server_name = server_name(data)?,
            EXTENSION_ALPN => found.alpn = protocols(data)?,
            _ => {}
        }
    }
    Ok(found)
}

/// The one `host_name` of the list; other types of name do not exist.
fn server_name(mut data: Reader<'_>) -> Result<Option<String>, HelloError> {
    let mut list = data.long()?;
    if !data.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut name = None;
    while !list.is_empty() {
        let kind = list.u8()?;
        let value = list.long()?.0;
        if kind != 0 {
            continue;
        }
        if name.is_some() {
            return Err(HelloError::Malformed);
        }
        name = Some(host_name(value)?);
    }
    Ok(name)
}

fn host_name(bytes: &[u8]) -> Result<String, HelloError> {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let bytes = bytes.strip_suffix(b".").unwrap_or(bytes);
    if bytes.is_empty() || bytes.len() > MAX_NAME || !bytes.iter().all(allowed) {
        return Err(HelloError::Malformed);
    }
    Ok(bytes.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect())
}

fn protocols(mut data: Reader<'_>) -> Result<Vec<Vec<u8>>, HelloError> {
    let mut list = data.long()?;
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let name = list.short()?.0;
        if name.is_empty() {
            return Err(HelloError::Malformed);
        }
        if protocols.len() < MAX_PROTOCOLS {
            protocols.push(name.to_vec());
        }
    }
    Ok(protocols)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn vector(width: usize, bytes: &[u8]) -> Vec<u8> {
        let length = (bytes.len() as u32).to_be_bytes();
        [&length[4 - width..], bytes].concat()
    }

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vector(2, data)].concat()
    }

    fn name(text: &str) -> Vec<u8> {
        extension(0, &vector(2, &[&[0][..], &vector(2, text.as_bytes())].concat()))
    }

    fn message(extensions: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend(vector(1, &[9; 32]));
        body.extend(vector(2, &[0x13, 0x01]));
        body.extend(vector(1, &[0]));
        body.extend(extensions.map(|extensions| vector(2, extensions)).unwrap_or_default());
        [&[1][..], &vector(3, &body)].concat()
    }

    /// A ClientHello in records of at most `size` bytes.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [&[22, 3, 1][..], &vector(2, part)].concat()).collect()
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: Option<&str>) {
        let hello = parse(bytes).expect("well-formed").expect("complete");
        assert_eq!(hello.server_name.as_deref(), expected);
    }

    #[test]
    fn names_and_protocols_are_found() {
        let alpn = extension(16, &vector(2, &[vector(1, b"h2"), vector(1, b"http/1.1")].concat()));
        let all = [extension(43, &[2, 3, 4]), name("Shop.Example."), alpn].concat();
        let hello = parse(&records(&message(Some(&all)), 20_000)).expect("well-formed").expect("complete");
        assert_eq!(hello.server_name.as_deref(), Some("shop.example"));
        assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        check(&records(&message(None), 20_000), None);
        check(&records(&message(Some(&[])), 20_000), None);
    }

    #[test]
    fn fragments_are_joined_and_parts_are_waited_for() {
        let message = message(Some(&[name("a.example"), extension(51, &[5; 1200])].concat()));
        for size in [1, 3, 100, 20_000] {
            let bytes = records(&message, size);
            check(&bytes, Some("a.example"));
            let trailing = [&bytes[..], b"\x14\x03\x03\0\x01\x01"].concat();
            check(&trailing, Some("a.example"));
            for cut in (0..bytes.len()).step_by(if size == 1 { 7 } else { 1 }) {
                assert_eq!(parse(&bytes[..cut]).expect("so far so good"), None, "{size} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_refused_at_once() {
        let refused = |bytes: &[u8]| assert!(matches!(parse(bytes), Err(HelloError::Malformed)), "{bytes:?}");
        refused(b"GET / HTTP/1.1\r\n");
        refused(&[22, 2]);
        refused(&[22, 3, 1, 0, 0]);
        refused(&[22, 3, 1, 0xff, 0xff]);
        refused(&[22, 3, 1, 0, 4, 2, 0, 0, 0]);
        refused(&[22, 3, 1, 0, 4, 1, 1, 0, 0]);
        let two = [name("a.example"), name("b.example")].concat();
        refused(&records(&message(Some(&two)), 20_000));
        for bad in ["", "a b", "a\0b", "ä.example", &"x".repeat(254)] {
            refused(&records(&message(Some(&name(bad))), 20_000));
        }
        // Every message cut short inside its own lengths.
        let good = message(Some(&name("a.example")));
        for cut in 38..good.len() - 1 {
            let body = &good[4..cut];
            let short = [&[1][..], &vector(3, body)].concat();
            let short = records(&short, 20_000);
            // The end of the compression methods is an end without extensions.
            assert!(!matches!(parse(&short), Ok(Some(ClientHello { server_name: Some(_), .. }))), "{cut}");
        }
    }

    #[tokio::test]
    async fn looking_takes_nothing_and_waits_for_the_rest() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let mut client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        let (mut server, _) = listener.accept().await.expect("the connection");
        let bytes = records(&message(Some(&[name("a.example"), extension(51, &[5; 9000])].concat())), 4000);
        let send = async {
            for part in bytes.chunks(3500) {
                client.write_all(part).await.expect("sent");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let patience = Duration::from_secs(20);
        let ((), hello) = tokio::join!(send, peek(&server, patience));
        assert_eq!(hello.expect("a hello").server_name.as_deref(), Some("a.example"));
        let mut seen = vec![0; bytes.len()];
        server.read_exact(&mut seen).await.expect("everything");
        assert_eq!(seen, bytes);
        // A part, and then the end.
        client.write_all(&bytes[..100]).await.expect("sent");
        assert!(matches!(peek(&server, Duration::from_millis(50)).await, Err(HelloError::Timeout)));
        drop(client);
        assert!(matches!(peek(&server, patience).await, Err(HelloError::Io(_))));
    }
}
