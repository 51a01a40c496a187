//! What a client is given to come back to its endpoint: a keyed hash that stands for the endpoint, and for sessions that end by time when
//! it began and was used last, sealed. Pure.
//!
//! The key is the Service's UID, which all load balancers know and clients do not: a token means the same to all of them, and after a
//! restart, and nothing has to be stored. It names no address, and nobody can make one for an endpoint that was not theirs.
//! Whoever may read Services of the API can, and gains what the API tells them anyway.

use std::net::SocketAddr;
use std::time::Duration;

use sha2::{Digest, Sha256};

/// Stands for an endpoint.
pub(crate) type Tag = [u8; 16];
/// Proves that times are ours.
type Seal = [u8; 8];

/// SHA-256's block, in bytes.
const BLOCK: usize = 64;

/// A Service port's key.
#[derive(Clone, Debug)]
pub(crate) struct Key([u8; 32]);

/// A token that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub tag: Tag,
    pub times: Option<Times>,
}

/// When a session began and was used last, in Unix seconds, with the seal that came along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    began: u32,
    used: u32,
    seal: Seal,
}

impl Key {
    /// Of a port of the Service with this UID.
    pub fn new(uid: &str, port: u16) -> Self {
        Self(Sha256::digest(format!("scaleup session {uid} {port}")).into())
    }

    /// What stands for an endpoint.
    pub fn tag(&self, endpoint: SocketAddr) -> Tag {
        let mac = self.hmac(format!("endpoint {endpoint}").as_bytes());
        std::array::from_fn(|at| mac[at])
    }

    fn seal(&self, tag: &Tag, began: u32, used: u32) -> Seal {
        let mut text = b"times ".to_vec();
        text.extend_from_slice(tag);
        text.extend_from_slice(&began.to_be_bytes());
        text.extend_from_slice(&used.to_be_bytes());
        let mac = self.hmac(&text);
        std::array::from_fn(|at| mac[at])
    }

    /// RFC 2104; the key is shorter than a block.
    fn hmac(&self, text: &[u8]) -> [u8; 32] {
        let pad = |with: u8| -> [u8; BLOCK] { std::array::from_fn(|at| self.0.get(at).unwrap_or(&0) ^ with) };
        let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
        Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
    }
}

impl Token {
    /// For an endpoint; the session does not end by time.
    pub fn untimed(tag: Tag) -> Self {
        Self { tag, times: None }
    }

    /// For an endpoint, with Unix seconds.
    pub fn timed(key: &Key, tag: Tag, began: u32, used: u32) -> Self {
        Self { tag, times: Some(Times { began, used, seal: key.seal(&tag, began, used) }) }
    }

    /// From what a client sent. Nothing of it is believed yet.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        let bytes = bytes.get_mut(..text.len() / 2).filter(|bytes| matches!(bytes.len(), 16 | 32))?;
        if !text.len().is_multiple_of(2) {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = digit(digits[0])? << 4 | digit(digits[1])?;
        }
        let (tag, rest) = bytes.split_first_chunk()?;
        let times = match (rest.first_chunk(), rest.get(4..).and_then(<[u8]>::first_chunk), rest.last_chunk()) {
            (Some(began), Some(used), Some(seal)) if rest.len() == 16 => {
                Some(Times { began: u32::from_be_bytes(*began), used: u32::from_be_bytes(*used), seal: *seal })
            }
            _ => None,
        };
        Some(Self { tag: *tag, times })
    }

    /// As a client gets it.
    pub fn text(&self) -> String {
        let mut text = hex(&self.tag);
        if let Some(times) = &self.times {
            text.push_str(&format!("{:08x}{:08x}{}", times.began, times.used, hex(&times.seal)));
        }
        text
    }

    /// When the session began and was used last; `None` if the times are not there or not ours.
    pub fn times(&self, key: &Key) -> Option<(u32, u32)> {
        let times = self.times.as_ref()?;
        let expected = key.seal(&self.tag, times.began, times.used);
        // In the same time wherever they differ.
        let differs = expected.iter().zip(times.seal).fold(0, |all, (a, b)| all | (a ^ b));
        (differs == 0).then_some((times.began, times.used))
    }
}

/// Whether a session with these times is over at `now`.
pub(crate) fn is_over((began, used): (u32, u32), now: u32, absolute: Option<Duration>, idle: Option<Duration>) -> bool {
    let longer = |since: u32, limit: Option<Duration>| {
        // The clocks of load balancers differ a little: a time to come is now.
        limit.is_some_and(|limit| u64::from(now.saturating_sub(since)) >= limit.as_secs().max(1))
    };
    longer(began, absolute) || longer(used, idle)
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn hmac_is_that_of_the_rfc() {
        // RFC 4231, test case 2 ("Jefe"), whose key is padded with zeros to a block as a longer one would be.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let mac = Key(key).hmac(b"what do ya want for nothing?");
        assert_eq!(hex(&mac), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn a_tag_is_of_one_endpoint_and_one_service_port() {
        let tags = [
            Key::new("u1", 80).tag(addr("10.0.0.1:80")),
            Key::new("u1", 80).tag(addr("10.0.0.2:80")),
            Key::new("u1", 81).tag(addr("10.0.0.1:80")),
            Key::new("u2", 80).tag(addr("10.0.0.1:80")),
        ];
        assert_eq!(tags.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        assert_eq!(tags[0], Key::new("u1", 80).tag(addr("10.0.0.1:80")), "the same in every load balancer");
    }

    #[test]
    fn tokens_are_read_as_they_were_written() {
        let key = Key::new("u", 80);
        let tag = key.tag(addr("10.0.0.1:80"));
        for token in [Token::untimed(tag), Token::timed(&key, tag, 7, 4_000_000_000)] {
            assert_eq!(Token::parse(&token.text()), Some(token));
        }
        assert_eq!(Token::timed(&key, tag, 7, 9).times(&key), Some((7, 9)));
        assert_eq!(Token::untimed(tag).times(&key), None);
    }

    #[test]
    fn what_is_no_token_is_none() {
        let key = Key::new("u", 80);
        let text = Token::timed(&key, key.tag(addr("10.0.0.1:80")), 7, 9).text();
        assert_eq!(text.len(), 64);
        let long = "0".repeat(1 << 20);
        for bad in
            ["", "0", &text[..63], &text[..62], &text[..34], &text.to_uppercase(), &long, &text.replace('0', "g"), "é"]
        {
            assert_eq!(Token::parse(bad), None, "{} bytes", bad.len());
        }
        // Times that somebody changed are not believed, nor those of another Service.
        let mut forged = text.clone().into_bytes();
        forged[39] = if forged[39] == b'f' { b'e' } else { b'f' };
        let forged = Token::parse(std::str::from_utf8(&forged).expect("ASCII")).expect("well formed");
        assert_eq!(forged.times(&key), None);
        assert_eq!(Token::parse(&text).expect("a token").times(&Key::new("v", 80)), None);
    }

    #[test]
    fn sessions_end_by_time() {
        let seconds = |n| Some(Duration::from_secs(n));
        assert!(!is_over((100, 150), 159, seconds(60), seconds(10)));
        assert!(is_over((100, 150), 160, seconds(60), None), "absolute");
        assert!(is_over((100, 150), 160, None, seconds(10)), "idle");
        assert!(!is_over((100, 150), 1_000_000, None, None));
        assert!(!is_over((200, 200), 150, seconds(1), seconds(1)), "another clock is ahead");
    }
}
