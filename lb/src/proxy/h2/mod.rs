//! HTTP/2 (RFC 9113) towards clients and towards endpoints, on the `h2` crate: frames, HPACK and flow control are its work.
//!
//! ```text
//! server ── a client's connection: accept, limits, drain
//!   └ forward ── one request: route, filters, choice, retries, timeouts
//!       ├ http1 ── with an HTTP/1.1 endpoint (translation both ways)
//!       ├ http2 ── with an HTTP/2 endpoint, over a connection of `upstream`
//!       ├ hedge ── with whichever of several endpoints answers first
//!       └ websocket ── a tunnel through an endpoint
//! bridge ── an HTTP/1.1 client's request, or a tunnel, with an HTTP/2 endpoint
//! ```
//!
//! Everything that a peer sends is bounded: by the crate where it counts (below and in [`server_settings`]), by
//! [`meter`] where it does not. Bodies stream both ways; a receiver that does not take them stops the sender, because
//! window is given back only for what was passed on. Nothing here is shared between threads.
//!
//! | attack | bound |
//! |---|---|
//! | rapid reset (CVE-2023-44487) | [`meter`]; streams reset before we saw them: [`MAX_PENDING_RESETS`] |
//! | MadeYouReset (CVE-2025-8671) | [`MAX_LOCAL_RESETS`] |
//! | CONTINUATION flood, HPACK bomb | the crate: frames per header block, decoded bytes ([`MAX_FIELD_OVERHEAD`]) |
//! | empty DATA | the crate, and [`meter`] |
//! | SETTINGS, PING, PRIORITY, unknown frames, window updates | [`meter`] |
//! | zero windows | `ProxyConfig::send_timeout`, [`SEND_BUFFER_BYTES`] |

mod answer;
mod arena;
pub(crate) mod bridge;
mod copies;
mod filters;
mod forward;
mod gather;
mod head;
mod hedge;
mod http1;
mod http2;
mod meter;
mod response;
mod server;
mod stream;
mod transfer;
pub(crate) mod upstream;
mod websocket;

use std::time::Duration;

use crate::config::ProxyConfig;
pub(crate) use arena::Arena;
pub(crate) use server::serve;

/// What a thread's HTTP/2 connections share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Connections to endpoints.
    pub pool: upstream::Pool,
    /// Memory that bodies and heads of endpoints are read into.
    pub arena: Arena,
    /// Memory that writes are gathered in.
    spare: gather::Spare,
}

/// How an HTTP/2 connection with prior knowledge begins (RFC 9113 §3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Streams that a client may have open on a connection.
const MAX_STREAMS: u32 = 128;
/// Bytes that a client may send on a stream before we passed any on; bounds what is buffered for one.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Likewise for all streams of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Bytes of a response kept per stream while the client's window or socket does not take them.
const SEND_BUFFER_BYTES: usize = 128 * 1024;
/// Streams remembered after we reset them, and for how long: late frames of theirs are ignored (RFC 9113 §5.1).
const RESET_STREAMS: usize = 128;
const RESET_STREAM_TIME: Duration = Duration::from_secs(2);
/// Streams that a client reset before they were accepted.
const MAX_PENDING_RESETS: usize = 32;
/// Streams that we had to reset for a client's protocol errors, in a connection's life. Refused streams count, too: a client may open
/// some too many before it has read our limit.
const MAX_LOCAL_RESETS: usize = 512;
/// What RFC 9113 §6.5.2 counts per field beside its name and value.
const MAX_FIELD_OVERHEAD: usize = 32;

/// What we ask of clients.
fn server_settings(config: &ProxyConfig) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(max_header_list(config))
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .reset_stream_duration(RESET_STREAM_TIME)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        // RFC 8441 §3
        .enable_connect_protocol();
    builder
}

/// The configured limit on header bytes as HTTP/2 counts them.
fn max_header_list(config: &ProxyConfig) -> u32 {
    let bytes = config.max_header_bytes.saturating_add(config.max_header_count.saturating_mul(MAX_FIELD_OVERHEAD));
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Why an attempt at an endpoint, or all of a request, ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broke {
    /// The endpoint saw nothing of it.
    Unsent,
    /// The endpoint closed before a response.
    Endpoint,
    /// It sent something else than a response.
    Malformed,
    /// It did not respond in time.
    Timeout,
    /// It responded with a status that is worth another attempt; nothing of it was passed on.
    Status(u16),
    /// The client's body is not what its head says.
    BadBody,
    /// The body is larger than allowed.
    TooLarge,
    /// The client went away or cancelled the request.
    Client,
    /// The response has begun and cannot be completed.
    Midway,
}
