//! One attempt at an HTTP/1.1 endpoint for a request of an HTTP/2 client.

use std::cell::Cell;
use std::pin::Pin;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use h2::SendStream;
use http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::Broke;
use super::arena::Arena;
use super::forward::Job;
use super::response::{self, Parsed};
use super::stream::{Body, Reply, Stream};
use super::transfer::{both, send};
use crate::proxy::chunked::{Chunked, LAST_CHUNK, Output, write_chunk};
use crate::proxy::fields::{kind, write};
use crate::proxy::request::Framing;
use crate::proxy::response::MAX_INFORMATIONAL;

/// A response body of up to this many bytes is passed on only when all of it is there, so that another endpoint can answer if
/// this one ends in the middle.
const WHOLE_BYTES: u64 = 8 * 1024;
/// Body bytes written behind a head in one piece.
const INLINE_BYTES: usize = 16 * 1024;

/// Sends the request over a connection and relays the response. Whether the connection can be used again.
pub(super) async fn exchange(
    stream: &mut Stream,
    job: &Job<'_>,
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
) -> Result<bool, Broke> {
    let uploaded = Cell::new(false);
    let (mut body, reply) = stream.split(job);
    let mut download = Download::new(job, &mut reader, BytesMut::new());
    let upload = async {
        let sent = upload(&mut body, job, &mut writer).await;
        uploaded.set(true);
        sent
    };
    let (reusable, sent_all) = both(upload, download.run(&reply, &uploaded)).await?;
    Ok(reusable && sent_all && download.pending.is_empty())
}

async fn upload(body: &mut Body<'_>, job: &Job<'_>, writer: &mut (impl AsyncWrite + Unpin)) -> Result<(), Broke> {
    let mut out = Vec::with_capacity(512);
    job.write_http1(None, &mut out);
    let framing = job.head.framing;
    let mut left = if let Framing::Length(length) = framing { length } else { 0 };
    let mut head_sent = false;
    loop {
        if framing == Framing::None {
            break;
        }
        let next = if head_sent {
            body.next().await
        } else {
            match body.next().now_or_never() {
                Some(next) => next,
                None => {
                    write_head(writer, &out).await?;
                    out.clear();
                    head_sent = true;
                    continue;
                }
            }
        };
        let Some(data) = next? else { break };
        if framing == Framing::Chunked {
            write_chunk(&data, &mut out);
        } else if data.len() as u64 > left {
            return Err(Broke::BadBody);
        } else {
            left -= data.len() as u64;
            out.extend_from_slice(&data);
        }
        if head_sent {
            writer.write_all(&out).await.map_err(|_| Broke::Endpoint)?;
            out.clear();
        } else if out.len() >= INLINE_BYTES {
            write_head(writer, &out).await?;
            out.clear();
            head_sent = true;
        }
        body.pass(data.len());
    }
    if left > 0 {
        // The crate finds this out itself; nothing may depend on it.
        return Err(Broke::BadBody);
    }
    if framing == Framing::Chunked {
        write_trailers(body, &mut out).await?;
    }
    if head_sent { writer.write_all(&out).await.map_err(|_| Broke::Endpoint) } else { write_head(writer, &out).await }
}

/// The last chunk with the client's trailers.
async fn write_trailers(body: &mut Body<'_>, out: &mut Vec<u8>) -> Result<(), Broke> {
    let Some(trailers) = body.trailers().await? else {
        out.extend_from_slice(LAST_CHUNK);
        return Ok(());
    };
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.iter().filter(|(name, _)| kind(name.as_str()).is_none()) {
        write(out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Writes all; tells apart whether the endpoint can have seen any of it.
pub(super) async fn write_head(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), Broke> {
    let mut sent = 0;
    while sent < bytes.len() {
        match std::future::poll_fn(|cx| Pin::new(&mut *writer).poll_write(cx, &bytes[sent..])).await {
            Ok(written @ 1..) => sent += written,
            _ if sent == 0 => return Err(Broke::Unsent),
            _ => return Err(Broke::Endpoint),
        }
    }
    writer.flush().await.map_err(|_| Broke::Endpoint)
}

/// The response on its way.
pub(super) struct Download<'a, R> {
    job: &'a Job<'a>,
    reader: &'a mut R,
    /// Received and not yet passed on.
    pub pending: BytesMut,
    arena: &'a Arena,
}

impl<'a, R: AsyncRead + Unpin> Download<'a, R> {
    pub fn new(job: &'a Job<'a>, reader: &'a mut R, pending: BytesMut) -> Self {
        Self { job, reader, pending, arena: &job.record.worker.h2.arena }
    }

    async fn run(&mut self, reply: &Reply<'_>, uploaded: &Cell<bool>) -> Result<bool, Broke> {
        let head = reply.wait(self.job, uploaded, self.head(Some(reply))).await?;
        self.relay(reply, head).await
    }

    /// Passes the response on. Whether the connection can be used again as far as the response is concerned.
    pub async fn relay(&mut self, reply: &Reply<'_>, head: Parsed) -> Result<bool, Broke> {
        let Parsed { response, framing, reusable, .. } = head;
        self.job.judge(reply, &response)?;
        let length = match framing {
            Framing::None => {
                reply.head(self.job, response, true)?;
                return Ok(reusable);
            }
            Framing::Length(length) => length,
            Framing::Chunked | Framing::Close => {
                let mut client = reply.head(self.job, response, false)?;
                self.open_ended(framing, &mut client).await?;
                return Ok(reusable);
            }
        };
        if length <= WHOLE_BYTES {
            while (self.pending.len() as u64) < length {
                if self.arena.read(self.reader, &mut self.pending).await.unwrap_or(0) == 0 {
                    return Err(Broke::Endpoint);
                }
            }
        }
        let mut client = reply.head(self.job, response, false)?;
        self.sized(length, &mut client).await?;
        Ok(reusable)
    }

    /// Waits for the head; passes those of class 1xx on to `reply` (or nobody) that come before. A 101 is the head of what asked for it.
    pub async fn head(&mut self, reply: Option<&Reply<'_>>) -> Result<Parsed, Broke> {
        let is_head = self.job.head.method == Method::HEAD;
        let mut informational = 0;
        loop {
            let parsed = if self.pending.is_empty() {
                None
            } else {
                response::parse(&mut self.pending, is_head).map_err(|_| Broke::Malformed)?
            };
            if let Some(parsed) = parsed {
                let status = parsed.response.status();
                let switched = status == StatusCode::SWITCHING_PROTOCOLS;
                if !status.is_informational() || (switched && self.job.head.websocket) {
                    return Ok(parsed);
                }
                informational += 1;
                if switched || informational > MAX_INFORMATIONAL {
                    return Err(Broke::Malformed);
                }
                if let Some(reply) = reply {
                    reply.interim(self.job, parsed.response);
                }
            } else if self.arena.read(self.reader, &mut self.pending).await.unwrap_or(0) == 0 {
                return Err(if self.pending.is_empty() { Broke::Endpoint } else { Broke::Malformed });
            }
        }
    }

    /// Reads from the endpoint, 0 bytes if it is gone; notices when the client cancels meanwhile.
    pub async fn fill(&mut self, client: &mut SendStream<Bytes>) -> Result<usize, Broke> {
        std::future::poll_fn(|cx| {
            if let Poll::Ready(read) = self.arena.poll_read(self.reader, &mut self.pending, cx) {
                return Poll::Ready(Ok(read.unwrap_or(0)));
            }
            client.poll_reset(cx).map(|_| Err(Broke::Client))
        })
        .await
    }

    pub async fn pass(&self, client: &mut SendStream<Bytes>, data: Bytes, end: bool) -> Result<(), Broke> {
        let length = data.len() as u64;
        send(client, data, end, self.job.patience()).await.map_err(|_| Broke::Client)?;
        self.job.record.sent(length);
        Ok(())
    }

    async fn sized(&mut self, length: u64, client: &mut SendStream<Bytes>) -> Result<(), Broke> {
        let mut left = length;
        loop {
            let ready = usize::try_from(left).unwrap_or(usize::MAX).min(self.pending.len());
            let data = self.pending.split_to(ready).freeze();
            left -= ready as u64;
            self.pass(client, data, left == 0).await?;
            if left == 0 {
                return Ok(());
            }
            if self.fill(client).await? == 0 {
                return Err(Broke::Midway);
            }
        }
    }

    /// A body that is chunked or ends with the endpoint's connection.
    async fn open_ended(&mut self, framing: Framing, client: &mut SendStream<Bytes>) -> Result<(), Broke> {
        let mut chunked = (framing == Framing::Chunked).then(|| Chunked::new(Output::Plain));
        loop {
            let (data, done) = match &mut chunked {
                Some(chunked) => {
                    let mut out = Vec::new();
                    let step = chunked.decode(&self.pending, &mut out).map_err(|_| Broke::Midway)?;
                    let _ = self.pending.split_to(step.used);
                    (Bytes::from(out), step.done)
                }
                None => (self.pending.split().freeze(), false),
            };
            let trailers = chunked.as_ref().filter(|_| done).and_then(|chunked| response::trailers(chunked.trailer()));
            self.pass(client, data, done && trailers.is_none()).await?;
            if let Some(trailers) = trailers {
                return client.send_trailers(trailers).map_err(|_| Broke::Client);
            }
            if done {
                return Ok(());
            }
            if self.fill(client).await? == 0 {
                if chunked.is_some() {
                    return Err(Broke::Midway);
                }
                return self.pass(client, Bytes::new(), true).await;
            }
        }
    }
}
