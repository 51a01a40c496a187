//! UDP and TCP sockets of cluster DNS (RFC 1035 §4.2, RFC 7766). Every packet is hostile: bounded, never a panic.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::Name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::forward::{Forwarder, Reply, Transport};
use super::sockets::Pair;
use super::stats::DnsStats;
use super::zone::{Outcome, UDP_PAYLOAD, Zone, response_to};
use crate::hub::Hub;

/// Largest UDP query read; longer ones are cut and then refused.
const MAX_UDP_QUERY: usize = 4096;
/// UDP payload without EDNS (RFC 1035 §4.2.1).
const MIN_UDP_PAYLOAD: u16 = 512;
/// TCP connections served at once; more wait in the backlog.
const MAX_TCP_CONNECTIONS: usize = 128;
/// A TCP connection is closed after this long without a query.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// The same once we are to end: clients that ask again at once are still answered.
const TCP_LAST: Duration = Duration::from_millis(500);
/// Pause after a socket error, so that a persistent one does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(50);
/// Length of the fixed header.
const HEADER: usize = 12;

/// What answering needs.
pub(super) struct Context {
    pub zone: Arc<Zone>,
    pub hub: Arc<Hub>,
    pub forwarder: Arc<Forwarder>,
    pub stats: DnsStats,
}

/// Serves until `stop`, then finishes what it has begun: what others answer, and what connections have sent.
pub(super) async fn serve(sockets: Pair, context: Arc<Context>, stop: CancellationToken) {
    let begun = TaskTracker::new();
    let udp = serve_udp(Arc::new(sockets.udp), context.clone(), &begun, &stop);
    tokio::join!(udp, serve_tcp(sockets.tcp, context, &begun, &stop));
    begun.close();
    begun.wait().await;
}

async fn serve_udp(socket: Arc<UdpSocket>, context: Arc<Context>, begun: &TaskTracker, stop: &CancellationToken) {
    let mut buffer = vec![0; MAX_UDP_QUERY];
    loop {
        let received = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, peer) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receiving a DNS query failed");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        match decide(&context, &buffer[..length]) {
            Decision::Silence => {}
            Decision::Reply(message, limit) => {
                if let Some(bytes) = encode(&message, limit) {
                    // A client that is gone is not our problem.
                    let _ = socket.send_to(&bytes, peer).await;
                }
            }
            Decision::Ask(ask) => {
                let (socket, context) = (socket.clone(), context.clone());
                begun.spawn(async move {
                    if let Some(bytes) = context.resolve(*ask, Transport::Udp).await {
                        let _ = socket.send_to(&bytes, peer).await;
                    }
                });
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, context: Arc<Context>, begun: &TaskTracker, stop: &CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_TCP_CONNECTIONS));
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let slot = slots.clone().acquire_owned().await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>((slot, listener.accept().await?.0))
        };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((slot, stream)) => {
                let (context, stop) = (context.clone(), stop.clone());
                begun.spawn(async move {
                    if let Err(error) = serve_stream(stream, &context, &stop).await {
                        tracing::trace!(%error, "DNS connection ended");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accepting a DNS connection failed");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
}

async fn serve_stream(mut stream: TcpStream, context: &Context, stop: &CancellationToken) -> std::io::Result<()> {
    let mut query = Vec::new();
    loop {
        // How long a client may be silent depends on whether we are to end.
        let mut first = [0];
        tokio::select! {
            ready = tokio::time::timeout(TCP_IDLE, stream.peek(&mut first)) => ready??,
            () = async { stop.cancelled().await; tokio::time::sleep(TCP_LAST).await } => return Ok(()),
        };
        let read = async {
            let length = stream.read_u16().await?;
            query.resize(usize::from(length), 0);
            stream.read_exact(&mut query).await
        };
        tokio::time::timeout(TCP_IDLE, read).await??;
        let reply = match decide(context, &query) {
            Decision::Silence => None,
            Decision::Reply(message, _) => encode(&message, u16::MAX),
            Decision::Ask(ask) => context.resolve(*ask, Transport::Tcp).await,
        };
        let Some(reply) = reply else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(std::io::Error::other)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        tokio::time::timeout(TCP_IDLE, stream.write_all(&framed)).await??;
    }
}

/// What to do with a packet.
enum Decision {
    Silence,
    /// Send the message, within this many bytes over UDP.
    Reply(Box<Message>, u16),
    /// Ask another resolver first.
    Ask(Box<Ask>),
}

/// A question for another resolver.
struct Ask {
    /// The packet as received.
    packet: Vec<u8>,
    /// The same, read.
    request: Message,
    limit: u16,
    /// Set when our own answer is an alias that leads outside.
    alias: Option<(Box<Message>, Name)>,
}

fn decide(context: &Context, packet: &[u8]) -> Decision {
    context.stats.queries.inc();
    let request = match Message::from_vec(packet) {
        Ok(request) => request,
        Err(_) => return malformed(packet),
    };
    let limit = request.edns.as_ref().map_or(MIN_UDP_PAYLOAD, |edns| edns.max_payload());
    let limit = limit.clamp(MIN_UDP_PAYLOAD, UDP_PAYLOAD);
    let alias = match context.zone.answer(&request, &context.hub.snapshot()) {
        Outcome::Answer(message) => {
            context.stats.answered.inc();
            if message.metadata.response_code == ResponseCode::NXDomain {
                context.stats.nxdomain.inc();
            }
            return Decision::Reply(message, limit);
        }
        Outcome::Drop => return Decision::Silence,
        Outcome::Forward => None,
        Outcome::Chase { partial, target } => Some((partial, target)),
    };
    Decision::Ask(Box::new(Ask { packet: packet.to_vec(), request, limit, alias }))
}

/// FORMERR for what looks like a query at least; silence for the rest, so that nobody can make us answer answers.
fn malformed(packet: &[u8]) -> Decision {
    let is_query = packet.len() >= HEADER && packet[2] & 0x80 == 0;
    if !is_query {
        return Decision::Silence;
    }
    let id = u16::from_be_bytes([packet[0], packet[1]]);
    let message = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    Decision::Reply(Box::new(message), MIN_UDP_PAYLOAD)
}

/// The message in at most `limit` bytes: without records and with the truncation flag if it is longer.
fn encode(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let bytes = message.to_vec().ok()?;
    if bytes.len() <= usize::from(limit) {
        return Some(bytes);
    }
    message.truncate().to_vec().ok()
}

impl Context {
    /// Asks other resolvers; SERVFAIL when none answers.
    async fn resolve(&self, ask: Ask, transport: Transport) -> Option<Vec<u8>> {
        let limit = if transport == Transport::Tcp { u16::MAX } else { ask.limit };
        let Some((mut partial, target)) = ask.alias else {
            match self.forwarder.answer(&ask.packet, &ask.request, transport).await {
                Some(Reply::Packet(packet)) => return Some(packet),
                Some(Reply::Message(message)) => return encode(&message, limit),
                None => {}
            }
            let mut failure = response_to(&ask.request);
            failure.metadata.response_code = ResponseCode::ServFail;
            return encode(&failure, limit);
        };
        let kind = ask.request.queries.first()?.query_type();
        match self.forwarder.resolve(target, kind).await {
            Some(message) => {
                partial.add_answers(message.answers.iter().cloned());
                // What the alias leads to decides (RFC 6604 §3).
                partial.metadata.response_code = message.metadata.response_code;
                if message.answers.is_empty() {
                    partial.add_authorities(message.authorities.iter().cloned());
                }
            }
            None => partial.metadata.response_code = ResponseCode::ServFail,
        }
        encode(&partial, limit)
    }
}
