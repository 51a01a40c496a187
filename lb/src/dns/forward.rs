//! Asks the machine's resolvers about names outside the cluster.
//!
//! Packets pass through unchanged but for their id, so that what we do not know (DNSSEC, new types) works. A reply
//! counts only from the asked address, with our random id and the same question (RFC 5452). A resolver that fails or
//! refuses is followed by the next one. Never asks ourselves.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::cache::{Cache, Question, Turn, readdress};
use super::stats::DnsStats;

/// Longest wait for one resolver's reply.
const TRY_TIMEOUT: Duration = Duration::from_millis(1500);
/// Rounds over all resolvers.
const ROUNDS: usize = 2;
/// Resolvers used at most, as in libc.
const MAX_RESOLVERS: usize = 3;
/// Questions asked at once; more fail at once instead of piling up.
const MAX_CONCURRENT: usize = 512;
/// How often the list of resolvers is read again.
const RELOAD: Duration = Duration::from_secs(30);
/// Largest list read, in bytes.
const MAX_RESOLV_CONF: usize = 64 * 1024;
/// Largest UDP reply.
const MAX_REPLY: usize = 4096;
const DNS_PORT: u16 = 53;

/// How the client asked, and how it is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// Knows the machine's resolvers.
#[derive(Debug)]
pub(super) struct Forwarder {
    resolv_conf: PathBuf,
    resolvers: Mutex<(Option<Instant>, Vec<SocketAddr>)>,
    own: Mutex<Vec<SocketAddr>>,
    slots: Semaphore,
    cache: Cache,
    stats: DnsStats,
}

/// What goes back to a client.
pub(super) enum Reply {
    /// As it came, but for its id.
    Packet(Vec<u8>),
    /// Kept from an earlier question.
    Message(Box<Message>),
}

impl Forwarder {
    pub fn new(resolv_conf: PathBuf, stats: DnsStats) -> Self {
        Self {
            resolv_conf,
            resolvers: Mutex::default(),
            own: Mutex::default(),
            slots: Semaphore::new(MAX_CONCURRENT),
            cache: Cache::default(),
            stats,
        }
    }

    /// The answer to `packet` (which is `request`, encoded): kept, being asked for, or asked for now.
    pub async fn answer(&self, packet: &[u8], request: &Message, transport: Transport) -> Option<Reply> {
        let question = Question::of(request)?;
        if let Some(kept) = self.cache.get(&question, request, Instant::now()) {
            self.stats.cached.inc();
            return Some(Reply::Message(Box::new(kept)));
        }
        match self.cache.turn(&question, transport) {
            Turn::Wait(mut asked) => {
                // Whoever asked is bounded in time; one that vanished leaves the question to us.
                if let Ok(reply) = asked.wait_for(Option::is_some).await.map(|reply| reply.clone().flatten()) {
                    self.stats.cached.inc();
                    let message = Message::from_vec(&reply?).ok()?;
                    return Some(Reply::Message(Box::new(readdress(&message, request, 0))));
                }
                self.forward(packet, request, transport).await.map(Reply::Packet)
            }
            Turn::Ask(sender) => {
                let reply = self.forward(packet, request, transport).await;
                if let Some(reply) = &reply {
                    self.cache.put(question.clone(), reply, Instant::now());
                }
                self.cache.done(&question, transport, sender, reply.clone().map(Into::into));
                reply.map(Reply::Packet)
            }
        }
    }

    /// The addresses we answer on: never asked.
    pub fn set_own_addresses(&self, own: Vec<SocketAddr>) {
        *self.own.lock() = own;
    }

    /// The reply of the first resolver that gives one to `packet` (which is `request`, encoded).
    async fn forward(&self, packet: &[u8], request: &Message, transport: Transport) -> Option<Vec<u8>> {
        let query = request.queries.first()?;
        let _slot = self.slots.try_acquire().ok()?;
        self.stats.forwarded.inc();
        let mut refused = None;
        let resolvers = self.resolvers().await;
        for resolver in std::iter::repeat_n(&resolvers, ROUNDS).flatten() {
            let asked = tokio::time::timeout(TRY_TIMEOUT, ask(*resolver, packet, query, transport)).await;
            match asked {
                Ok(Ok(mut reply)) => {
                    reply[..2].copy_from_slice(&request.metadata.id.to_be_bytes());
                    if !is_refusal(&reply) {
                        return Some(reply);
                    }
                    tracing::debug!(%resolver, "resolver refused or failed");
                    refused = Some(reply);
                }
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "resolver failed"),
                Err(_) => tracing::debug!(%resolver, "resolver did not answer in time"),
            }
        }
        self.stats.failed.inc();
        // When nobody knows better, what one said is better than silence.
        refused
    }

    /// Looks `name` up; the whole reply.
    pub async fn resolve(&self, name: Name, kind: RecordType) -> Option<Message> {
        let mut request = Message::query();
        request.metadata.recursion_desired = true;
        request.add_query(Query::query(name, kind));
        let packet = request.to_vec().ok()?;
        match self.answer(&packet, &request, Transport::Tcp).await? {
            Reply::Packet(reply) => Message::from_vec(&reply).ok(),
            Reply::Message(message) => Some(*message),
        }
    }

    async fn resolvers(&self) -> Vec<SocketAddr> {
        let fresh = {
            let known = self.resolvers.lock();
            known.0.is_some_and(|read| read.elapsed() < RELOAD).then(|| known.1.clone())
        };
        let known = match fresh {
            Some(known) => known,
            None => {
                let text = tokio::fs::read(&self.resolv_conf).await.unwrap_or_default();
                let text = String::from_utf8_lossy(&text[..text.len().min(MAX_RESOLV_CONF)]).into_owned();
                let parsed = parse(&text);
                *self.resolvers.lock() = (Some(Instant::now()), parsed.clone());
                parsed
            }
        };
        let own = self.own.lock();
        known.into_iter().filter(|resolver| !own.contains(resolver)).take(MAX_RESOLVERS).collect()
    }
}

/// Whether another resolver may know better: SERVFAIL, NOTIMP or REFUSED in a reply's header.
fn is_refusal(reply: &[u8]) -> bool {
    let code = reply.get(3).map_or(0, |flags| flags & 0xf);
    let low = |code: ResponseCode| code.low();
    [ResponseCode::ServFail, ResponseCode::NotImp, ResponseCode::Refused].map(low).contains(&code)
}

/// The `nameserver` lines of a resolv.conf.
fn parse(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // `address:port` is an extension that tests use.
        let ip = address.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT));
        ip.or_else(|_| address.parse::<SocketAddr>()).ok()
    };
    text.lines().filter_map(address).collect()
}

async fn ask(resolver: SocketAddr, packet: &[u8], query: &Query, transport: Transport) -> std::io::Result<Vec<u8>> {
    let id: u16 = rand::random();
    let mut packet = packet.to_vec();
    packet[..2].copy_from_slice(&id.to_be_bytes());
    match transport {
        Transport::Udp => ask_udp(resolver, &packet, id, query).await,
        Transport::Tcp => ask_tcp(resolver, &packet, id, query).await,
    }
}

async fn ask_udp(resolver: SocketAddr, packet: &[u8], id: u16, query: &Query) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if resolver.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    // Connected: the kernel drops packets from anybody else.
    socket.connect(resolver).await?;
    socket.send(packet).await?;
    let mut reply = vec![0; MAX_REPLY];
    loop {
        let length = socket.recv(&mut reply).await?;
        if is_reply(&reply[..length], id, query) {
            reply.truncate(length);
            return Ok(reply);
        }
    }
}

async fn ask_tcp(resolver: SocketAddr, packet: &[u8], id: u16, query: &Query) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(packet.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), packet].concat()).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await?;
    if is_reply(&reply, id, query) { Ok(reply) } else { Err(std::io::Error::other("not a reply to the question")) }
}

fn is_reply(packet: &[u8], id: u16, query: &Query) -> bool {
    Message::from_vec(packet).is_ok_and(|reply| {
        let same = |asked: &Query| {
            asked.name() == query.name()
                && asked.query_type() == query.query_type()
                && asked.query_class() == query.query_class()
        };
        reply.metadata.id == id
            && reply.metadata.message_type == MessageType::Response
            && (reply.queries.is_empty() || reply.queries.iter().all(same))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_like_libc_does() {
        let text = "# x\nsearch a b\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # c\nnameserver bad\nnameserver";
        let expected: Vec<SocketAddr> =
            ["192.0.2.1:53", "[2001:db8::1]:53"].iter().map(|a| a.parse().expect("an address")).collect();
        assert_eq!(parse(text), expected);
    }
}
