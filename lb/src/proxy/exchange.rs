//! One request and its response between a client and an endpoint: sending, waiting, relaying. Never chooses endpoints.
//!
//! Everything happens in the client connection's task, so a request costs no wake-up beyond those of its two sockets.

use std::io::IoSlice;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::buffer::{Buffer, LARGE, SMALL, Stock};
use super::chunked::{Chunked, LAST_CHUNK, Output, write_chunk};
use super::record::Record;
use super::request::{Framing, Request};
use super::response::{self, Hop, Response};

/// Responses of class 1xx before the real one.
const MAX_INFORMATIONAL: u32 = 8;
/// Body bytes copied behind a head so that both leave in one piece; more go as a second one.
const INLINE_BYTES: usize = 4 * 1024;
/// A response body of up to this many bytes is passed on only when all of it is there, as nginx's buffering does.
const WHOLE_BYTES: u64 = 8 * 1024;

/// Why an exchange ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broke {
    /// Nothing was sent to the endpoint.
    Unsent,
    /// The endpoint closed before any byte of a response.
    Endpoint,
    /// It sent something else than a response.
    Malformed,
    /// It did not respond in time.
    Timeout,
    /// The client's body is not what its head says.
    BadBody,
    /// The client went away.
    Client,
    /// The response has begun and cannot be completed.
    Midway,
}

/// How an exchange ended that delivered its response.
pub(crate) struct Done {
    pub response: Response,
    /// The whole request was sent.
    pub sent_all: bool,
}

/// The client's side while a request is served.
pub(crate) struct ClientSide<'a, 's> {
    pub reader: &'a mut ReadHalf<'s>,
    pub writer: &'a mut WriteHalf<'s>,
    pub input: &'a mut Buffer,
    /// Where the response's head is written.
    pub reply: &'a mut Vec<u8>,
}

/// The endpoint's side.
pub(crate) struct EndpointSide<'a, 's> {
    pub reader: ReadHalf<'s>,
    pub writer: WriteHalf<'s>,
    pub input: &'a mut Buffer,
    pub large: &'a mut bool,
}

/// What an exchange is about.
pub(crate) struct Job<'a> {
    pub request: &'a Request,
    /// The request's head as the endpoint gets it.
    pub head: &'a [u8],
    /// Close the client's connection afterwards.
    pub close: bool,
    /// Header fields, each with its line end, that the response gets beside its own.
    pub add: &'a [u8],
    pub date: fn() -> String,
    pub header_timeout: Option<Duration>,
    pub stock: &'a Stock,
}

impl Job<'_> {
    /// Sends the request and relays the response, both at once if it comes early. A 101 is left to the caller from its
    /// head on.
    pub async fn run(
        &self,
        client: ClientSide<'_, '_>,
        mut endpoint: EndpointSide<'_, '_>,
        record: &Record,
    ) -> Result<Done, Broke> {
        let ClientSide { reader, writer, input, reply } = client;
        let mut upload = Upload::new(self.request.framing);
        upload.begin(self.head, input, &mut endpoint.writer, record).await?;
        let mut download = Download { job: self, reader: endpoint.reader, input: endpoint.input, writer, reply };
        let size = if *endpoint.large { LARGE } else { SMALL };
        if !upload.done {
            let mut rest = pin!(upload.run(&mut *reader, &mut *input, &mut endpoint.writer, record, self.stock));
            let early = tokio::select! {
                biased;
                filled = download.input.fill(&mut download.reader, self.stock, size) => Some(filled),
                sent = &mut rest => match sent {
                    // An endpoint that stops taking the body may have said why.
                    Ok(()) | Err(Broke::Endpoint) => None,
                    Err(broke) => return Err(broke),
                },
            };
            if let Some(filled) = early {
                if !filled.is_ok_and(|read| read > 0) {
                    return Err(Broke::Endpoint);
                }
                let respond = download.run(true, size, None, record, endpoint.large);
                let mut respond = pin!(respond);
                let mut sent_all = false;
                let response = tokio::select! {
                    biased;
                    response = &mut respond => response,
                    sent = &mut rest => {
                        sent_all = sent.is_ok();
                        respond.await
                    }
                };
                return response.map(|response| Done { response, sent_all });
            }
        }
        let sent_all = upload.done;
        let watch = Some(Watch { reader, input });
        let response = download.run(!sent_all, size, watch, record, endpoint.large).await?;
        Ok(Done { response, sent_all })
    }
}

/// The request's body on its way.
struct Upload {
    chunked: Option<Chunked>,
    /// Bytes left of a body with a length.
    left: u64,
    done: bool,
}

impl Upload {
    fn new(framing: Framing) -> Self {
        let left = if let Framing::Length(length) = framing { length } else { 0 };
        let chunked = (framing == Framing::Chunked).then(|| Chunked::new(Output::Chunked));
        Self { done: chunked.is_none() && left == 0, chunked, left }
    }

    /// Sends the head with what has come of the body already.
    async fn begin(
        &mut self,
        head: &[u8],
        input: &mut Buffer,
        writer: &mut WriteHalf<'_>,
        record: &Record,
    ) -> Result<(), Broke> {
        let ready = clamp(self.left, input.bytes().len());
        write_both(writer, head, &input.bytes()[..ready])
            .await
            .map_err(|sent| if sent == 0 { Broke::Unsent } else { Broke::Endpoint })?;
        if ready > 0 {
            self.took(ready, input, record);
        }
        Ok(())
    }

    /// Sends the rest.
    async fn run(
        &mut self,
        reader: &mut ReadHalf<'_>,
        input: &mut Buffer,
        writer: &mut WriteHalf<'_>,
        record: &Record,
        stock: &Stock,
    ) -> Result<(), Broke> {
        let mut out = Vec::new();
        while !self.done {
            if input.is_empty() && !input.fill(reader, stock, LARGE).await.is_ok_and(|read| read > 0) {
                return Err(Broke::Client);
            }
            if let Some(chunked) = &mut self.chunked {
                out.clear();
                let step = chunked.decode(input.bytes(), &mut out).map_err(|_| Broke::BadBody)?;
                input.consume(step.used);
                record.received(step.payload as u64);
                writer.write_all(&out).await.map_err(|_| Broke::Endpoint)?;
                self.done = step.done;
            } else {
                let ready = clamp(self.left, input.bytes().len());
                writer.write_all(&input.bytes()[..ready]).await.map_err(|_| Broke::Endpoint)?;
                self.took(ready, input, record);
            }
        }
        Ok(())
    }

    fn took(&mut self, bytes: usize, input: &mut Buffer, record: &Record) {
        input.consume(bytes);
        record.received(bytes as u64);
        self.left -= bytes as u64;
        self.done = self.left == 0;
    }
}

/// The client's connection while nothing is expected from it but that it stays.
struct Watch<'a, 's> {
    reader: &'a mut ReadHalf<'s>,
    input: &'a mut Buffer,
}

/// The response on its way.
struct Download<'a, 'e, 'c> {
    job: &'a Job<'a>,
    reader: ReadHalf<'e>,
    input: &'a mut Buffer,
    writer: &'a mut WriteHalf<'c>,
    reply: &'a mut Vec<u8>,
}

impl Download<'_, '_, '_> {
    async fn run(
        mut self,
        close: bool,
        size: usize,
        mut watch: Option<Watch<'_, '_>>,
        record: &Record,
        large: &mut bool,
    ) -> Result<Response, Broke> {
        let timeout = self.job.header_timeout;
        let head = self.head(close, size, &mut watch);
        let response = match timeout {
            None => head.await?,
            Some(timeout) => tokio::time::timeout(timeout, head).await.map_err(|_| Broke::Timeout)??,
        };
        if let Framing::Length(length) = response.framing
            && length <= WHOLE_BYTES
        {
            self.gather(length, &mut watch).await?;
        }
        record.responded(response.status);
        if !self.job.add.is_empty() {
            self.reply.truncate(self.reply.len().saturating_sub(b"\r\n".len()));
            self.reply.extend_from_slice(self.job.add);
            self.reply.extend_from_slice(b"\r\n");
        }
        record.answered(response.status);
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let payload = match response.framing {
            Framing::None => {
                self.writer.write_all(self.reply).await.map_err(|_| Broke::Client)?;
                0
            }
            Framing::Length(length) => {
                self.sized(length, &mut watch, record).await?;
                length
            }
            Framing::Chunked | Framing::Close => self.open_ended(response.framing, &mut watch, record).await?,
        };
        *large = payload > SMALL as u64;
        Ok(response)
    }

    /// Waits for the head, past those of class 1xx.
    async fn head(&mut self, close: bool, size: usize, watch: &mut Option<Watch<'_, '_>>) -> Result<Response, Broke> {
        let hop = Hop { request: self.job.request, close: self.job.close || close, date: self.job.date };
        let mut informational = 0;
        loop {
            let parsed = match self.input.bytes() {
                [] => None,
                bytes => response::parse(bytes, hop, self.reply).map_err(|_| Broke::Malformed)?,
            };
            if let Some(response) = parsed {
                self.input.consume(response.length);
                if !response.is_interim() {
                    return Ok(response);
                }
                informational += 1;
                if informational > MAX_INFORMATIONAL {
                    return Err(Broke::Malformed);
                }
            } else if self.fill(size, watch).await? == 0 {
                return Err(if self.input.is_empty() { Broke::Endpoint } else { Broke::Malformed });
            }
        }
    }

    /// Reads from the endpoint, 0 bytes if it is gone; notices when the client leaves meanwhile.
    async fn fill(&mut self, size: usize, watch: &mut Option<Watch<'_, '_>>) -> Result<usize, Broke> {
        let stock = self.job.stock;
        std::future::poll_fn(|cx| {
            if let Poll::Ready(read) = self.input.poll_fill(&mut self.reader, stock, size, cx) {
                return Poll::Ready(Ok(read.unwrap_or(0)));
            }
            if let Some(Watch { reader, input }) = watch
                && input.is_empty()
                && let Poll::Ready(read) = input.poll_fill(reader, stock, SMALL, cx)
                && read.unwrap_or(0) == 0
            {
                return Poll::Ready(Err(Broke::Client));
            }
            Poll::Pending
        })
        .await
    }

    /// Waits for the whole of a short body before anything of the response is passed on, so that another endpoint can answer
    /// if this one ends in the middle.
    async fn gather(&mut self, length: u64, watch: &mut Option<Watch<'_, '_>>) -> Result<(), Broke> {
        while clamp(length, self.input.bytes().len()) as u64 != length {
            if self.fill(SMALL, watch).await? == 0 {
                return Err(Broke::Endpoint);
            }
        }
        Ok(())
    }

    /// A body with a length: bytes pass as they are.
    async fn sized(&mut self, length: u64, watch: &mut Option<Watch<'_, '_>>, record: &Record) -> Result<(), Broke> {
        let ready = clamp(length, self.input.bytes().len());
        let part = &self.input.bytes()[..ready];
        let written = if ready <= INLINE_BYTES {
            self.reply.extend_from_slice(part);
            self.writer.write_all(self.reply).await.map_err(drop)
        } else {
            write_both(self.writer, self.reply, part).await.map_err(drop)
        };
        written.map_err(|()| Broke::Client)?;
        self.input.consume(ready);
        record.sent(ready as u64);
        let mut left = length - ready as u64;
        while left > 0 {
            let size = if left > SMALL as u64 { LARGE } else { SMALL };
            if self.fill(size, watch).await? == 0 {
                return Err(Broke::Midway);
            }
            let ready = clamp(left, self.input.bytes().len());
            self.writer.write_all(&self.input.bytes()[..ready]).await.map_err(|_| Broke::Client)?;
            self.input.consume(ready);
            record.sent(ready as u64);
            left -= ready as u64;
        }
        Ok(())
    }

    /// A body that is chunked or ends with the endpoint's connection; its payload bytes.
    async fn open_ended(
        &mut self,
        framing: Framing,
        watch: &mut Option<Watch<'_, '_>>,
        record: &Record,
    ) -> Result<u64, Broke> {
        let output = if self.job.request.http10 { Output::Plain } else { Output::Chunked };
        let mut chunked = (framing == Framing::Chunked).then(|| Chunked::new(output));
        let mut total = 0;
        loop {
            let (payload, mut done) = match &mut chunked {
                Some(chunked) => {
                    let step = chunked.decode(self.input.bytes(), self.reply).map_err(|_| Broke::Midway)?;
                    self.input.consume(step.used);
                    (step.payload, step.done)
                }
                None => {
                    let bytes = self.input.bytes();
                    match output {
                        Output::Chunked => write_chunk(bytes, self.reply),
                        Output::Plain => self.reply.extend_from_slice(bytes),
                    }
                    let payload = bytes.len();
                    self.input.consume(payload);
                    (payload, false)
                }
            };
            record.sent(payload as u64);
            total += payload as u64;
            self.writer.write_all(self.reply).await.map_err(|_| Broke::Client)?;
            self.reply.clear();
            if !done && self.fill(LARGE, watch).await? == 0 {
                if chunked.is_some() {
                    return Err(Broke::Midway);
                }
                if output == Output::Chunked {
                    self.writer.write_all(LAST_CHUNK).await.map_err(|_| Broke::Client)?;
                }
                done = true;
            }
            if done {
                return Ok(total);
            }
        }
    }
}

/// The smaller of what is left and what is there.
fn clamp(left: u64, there: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(there)
}

/// Writes both pieces, in one call if the socket takes them; on failure the bytes that were written.
async fn write_both(writer: &mut WriteHalf<'_>, first: &[u8], second: &[u8]) -> Result<(), usize> {
    let (mut sent, all) = (0, first.len() + second.len());
    while sent < all {
        let written = std::future::poll_fn(|cx| {
            let (first, second) = (first.get(sent..).unwrap_or(&[]), &second[sent.saturating_sub(first.len())..]);
            if second.is_empty() {
                Pin::new(&mut *writer).poll_write(cx, first)
            } else {
                Pin::new(&mut *writer).poll_write_vectored(cx, &[IoSlice::new(first), IoSlice::new(second)])
            }
        });
        match written.await {
            Ok(written @ 1..) => sent += written,
            Ok(0) | Err(_) => return Err(sent),
        }
    }
    Ok(())
}
