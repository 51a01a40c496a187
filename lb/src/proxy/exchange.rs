//! One request and its response between a client and an endpoint: sending, waiting, relaying. Never chooses endpoints.
//!
//! Everything happens in the client connection's task, so a request costs no wake-up beyond those of its two sockets.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::io::AsyncWrite;

use super::buffer::{Buffer, LARGE, SMALL, Stock};
use super::chunked::{Chunked, LAST_CHUNK, Output, write_chunk};
use super::filters::Edits;
use super::io::{Source, send, send_both};
use super::record::Record;
use super::request::{Framing, Request};
use super::response::{self, Hop, MAX_INFORMATIONAL, Response};

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
    /// It responded with this status, which is worth another attempt; nothing of it was passed on.
    Status {
        code: u16,
        /// All of the response is there and dropped: the connection can be used again.
        reusable: bool,
    },
    /// The client's body is not what its head says.
    BadBody,
    /// The client's body is larger than allowed.
    TooLarge,
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
pub(crate) struct ClientSide<'a, R, W> {
    pub reader: &'a mut R,
    pub writer: &'a mut W,
    pub input: &'a mut Buffer,
    /// Where the response's head is written.
    pub reply: &'a mut Vec<u8>,
}

/// The endpoint's side.
pub(crate) struct EndpointSide<'a, R, W> {
    pub reader: R,
    pub writer: W,
    pub input: &'a mut Buffer,
    pub large: &'a mut bool,
}

/// A bounded copy of a request's body, as it was sent.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    pub bytes: Vec<u8>,
    /// All of the body is there.
    pub complete: bool,
    /// There was more than [`MAX_COPIED_BYTES`].
    pub overflowed: bool,
}

/// Largest body that is copied.
pub(crate) const MAX_COPIED_BYTES: usize = 64 * 1024;

impl Copied {
    /// More of the body.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.overflowed || self.bytes.len() + bytes.len() > MAX_COPIED_BYTES {
            self.overflowed = true;
            self.bytes = Vec::new();
        } else {
            self.bytes.extend_from_slice(bytes);
        }
    }
}

/// What an exchange is about.
pub(crate) struct Job<'a> {
    pub request: &'a Request,
    /// The request's head as the endpoint gets it.
    pub head: &'a [u8],
    /// The head was sent already; the request has no body.
    pub asked: bool,
    /// Close the client's connection afterwards.
    pub close: bool,
    pub date: fn() -> String,
    pub header_timeout: Option<Duration>,
    pub stock: &'a Stock,
    /// Changes to the response's head.
    pub edits: Edits<'a>,
    /// Largest body of the request in payload bytes.
    pub max_body_bytes: u64,
    /// Whether a response with this status is dropped because the request is sent again.
    pub again: Option<&'a dyn Fn(u16) -> bool>,
    /// Where the body goes, too.
    pub copy: Option<&'a RefCell<Copied>>,
    /// Set while a response of class 1xx is on its way to the client: what ends the exchange then leaves half a message behind.
    pub torn: &'a Cell<bool>,
    pub patience: Patience<'a>,
}

/// How long a client may keep us waiting in the middle of a message: until the deadline that its connection's timer looks at.
#[derive(Clone, Copy)]
pub(crate) struct Patience<'a> {
    pub deadline: &'a Cell<Option<Instant>>,
    pub longest: Duration,
}

impl Patience<'_> {
    /// Runs `work`, in which the client has to do its part.
    async fn bound<T>(self, work: impl Future<Output = T>) -> T {
        self.deadline.set(Some(Instant::now() + self.longest));
        let result = work.await;
        self.deadline.set(None);
        result
    }
}

impl Job<'_> {
    /// Sends the request and relays the response, both at once if it comes early. A 101 is left to the caller from its
    /// head on.
    pub async fn run<CR: Source, CW: AsyncWrite + Unpin, ER: Source, EW: AsyncWrite + Unpin>(
        &self,
        client: ClientSide<'_, CR, CW>,
        mut endpoint: EndpointSide<'_, ER, EW>,
        record: &Record,
    ) -> Result<Done, Broke> {
        let ClientSide { reader, writer, input, reply } = client;
        let mut upload = Upload::new(self);
        if !self.asked {
            upload.begin(input, &mut endpoint.writer, record).await?;
        }
        let mut download = Download { job: self, reader: endpoint.reader, input: endpoint.input, writer, reply };
        let size = if *endpoint.large { LARGE } else { SMALL };
        if !upload.done {
            let mut rest = pin!(upload.run(&mut *reader, &mut *input, &mut endpoint.writer, record));
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
                let respond = download.run(true, size, None::<Watch<'_, CR>>, record, endpoint.large);
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
struct Upload<'a> {
    job: &'a Job<'a>,
    chunked: Option<Chunked>,
    /// Bytes left of a body with a length.
    left: u64,
    /// Payload bytes that a chunked body may still have.
    allowed: u64,
    done: bool,
}

impl<'a> Upload<'a> {
    fn new(job: &'a Job<'a>) -> Self {
        let left = if let Framing::Length(length) = job.request.framing { length } else { 0 };
        let chunked = (job.request.framing == Framing::Chunked).then(|| Chunked::new(Output::Chunked));
        Self { done: chunked.is_none() && left == 0, chunked, left, allowed: job.max_body_bytes, job }
    }

    /// Sends the head with what has come of the body already.
    async fn begin<W: AsyncWrite + Unpin>(
        &mut self,
        input: &mut Buffer,
        writer: &mut W,
        record: &Record,
    ) -> Result<(), Broke> {
        let ready = clamp(self.left, input.bytes().len());
        send_both(writer, self.job.head, &input.bytes()[..ready])
            .await
            .map_err(|sent| if sent == 0 { Broke::Unsent } else { Broke::Endpoint })?;
        if ready > 0 {
            self.took(ready, input, record);
        }
        Ok(())
    }

    /// Sends the rest.
    async fn run<R: Source, W: AsyncWrite + Unpin>(
        &mut self,
        reader: &mut R,
        input: &mut Buffer,
        writer: &mut W,
        record: &Record,
    ) -> Result<(), Broke> {
        let mut out = Vec::new();
        while !self.done {
            if input.is_empty() {
                let filled = self.job.patience.bound(input.fill(reader, self.job.stock, LARGE)).await;
                if !filled.is_ok_and(|read| read > 0) {
                    return Err(Broke::Client);
                }
            }
            if let Some(chunked) = &mut self.chunked {
                out.clear();
                let step = chunked.decode(input.bytes(), &mut out).map_err(|_| Broke::BadBody)?;
                self.allowed = self.allowed.checked_sub(step.payload as u64).ok_or(Broke::TooLarge)?;
                input.consume(step.used);
                record.received(step.payload as u64);
                send(writer, &out).await.map_err(|_| Broke::Endpoint)?;
                self.done = step.done;
                self.copied(&out);
            } else {
                let ready = clamp(self.left, input.bytes().len());
                send(writer, &input.bytes()[..ready]).await.map_err(|_| Broke::Endpoint)?;
                self.took(ready, input, record);
            }
        }
        Ok(())
    }

    fn took(&mut self, bytes: usize, input: &mut Buffer, record: &Record) {
        self.left -= bytes as u64;
        self.done = self.left == 0;
        self.copied(&input.bytes()[..bytes]);
        input.consume(bytes);
        record.received(bytes as u64);
    }

    fn copied(&self, bytes: &[u8]) {
        if let Some(copy) = self.job.copy {
            let mut copy = copy.borrow_mut();
            copy.push(bytes);
            copy.complete = self.done;
        }
    }
}

/// The client's connection while nothing is expected from it but that it stays.
struct Watch<'a, R> {
    reader: &'a mut R,
    input: &'a mut Buffer,
}

/// The response on its way.
struct Download<'a, R, W> {
    job: &'a Job<'a>,
    reader: R,
    input: &'a mut Buffer,
    writer: &'a mut W,
    reply: &'a mut Vec<u8>,
}

impl<R: Source, W: AsyncWrite + Unpin> Download<'_, R, W> {
    async fn run<C: Source>(
        mut self,
        close: bool,
        size: usize,
        mut watch: Option<Watch<'_, C>>,
        record: &Record,
        large: &mut bool,
    ) -> Result<Response, Broke> {
        let timeout = self.job.header_timeout;
        let head = self.head(close, size, &mut watch);
        let response = match timeout {
            None => head.await?,
            Some(timeout) => tokio::time::timeout(timeout, head).await.map_err(|_| Broke::Timeout)??,
        };
        record.responded(response.status);
        if let Framing::Length(length) = response.framing
            && length <= WHOLE_BYTES
        {
            self.gather(length, &mut watch, record).await?;
        }
        if let Some(again) = self.job.again
            && again(response.status.as_u16())
        {
            let reusable = self.skip(response.framing) && response.reusable;
            return Err(Broke::Status { code: response.status.as_u16(), reusable });
        }
        record.responded(response.status);
        record.answered(response.status);
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let payload = match response.framing {
            Framing::None => {
                send(self.writer, self.reply).await.map_err(|_| Broke::Client)?;
                0
            }
            Framing::Length(length) => {
                self.sized(length, &mut watch, record).await?;
                length
            }
            Framing::Chunked | Framing::Close => {
                record.goes_on();
                self.open_ended(response.framing, &mut watch, record).await?
            }
        };
        *large = payload > SMALL as u64;
        Ok(response)
    }

    /// Waits for the head; passes those of class 1xx on that come before.
    async fn head<C: Source>(
        &mut self,
        close: bool,
        size: usize,
        watch: &mut Option<Watch<'_, C>>,
    ) -> Result<Response, Broke> {
        let job = self.job;
        let hop = Hop { request: job.request, close: job.close || close, date: job.date, edits: job.edits };
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
                if !self.reply.is_empty() {
                    job.torn.set(true);
                    job.patience.bound(send(self.writer, self.reply)).await.map_err(|_| Broke::Client)?;
                    job.torn.set(false);
                }
            } else if self.fill(size, watch).await? == 0 {
                return Err(if self.input.is_empty() { Broke::Endpoint } else { Broke::Malformed });
            }
        }
    }

    /// Reads from the endpoint, 0 bytes if it is gone; notices when the client leaves meanwhile.
    async fn fill<C: Source>(&mut self, size: usize, watch: &mut Option<Watch<'_, C>>) -> Result<usize, Broke> {
        let stock = self.job.stock;
        std::future::poll_fn(|cx| {
            if let Poll::Ready(read) = self.input.poll_fill(&mut self.reader, stock, size, cx) {
                return Poll::Ready(Ok(read.unwrap_or(0)));
            }
            if let Some(Watch { reader, input }) = watch
                && input.is_empty()
                && let Poll::Ready(read) = input.poll_fill(*reader, stock, SMALL, cx)
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
    async fn gather<C: Source>(
        &mut self,
        length: u64,
        watch: &mut Option<Watch<'_, C>>,
        record: &Record,
    ) -> Result<(), Broke> {
        while clamp(length, self.input.bytes().len()) as u64 != length {
            record.goes_on();
            if self.fill(SMALL, watch).await? == 0 {
                return Err(Broke::Endpoint);
            }
        }
        Ok(())
    }

    /// Drops a body that has arrived; whether all of it has. What has not is not waited for.
    fn skip(&mut self, framing: Framing) -> bool {
        let there = self.input.bytes().len();
        match framing {
            Framing::None => true,
            Framing::Length(length) => {
                self.input.consume(clamp(length, there));
                length <= there as u64
            }
            Framing::Chunked => {
                let mut scratch = Vec::new();
                let step = Chunked::new(Output::Plain).decode(self.input.bytes(), &mut scratch);
                let step = step.unwrap_or_default();
                self.input.consume(step.used);
                step.done
            }
            Framing::Close => false,
        }
    }

    /// Passes bytes of the middle of a response on; a client that does not take them is not waited for.
    async fn pass(&mut self, bytes: Piece) -> Result<(), Broke> {
        let bytes = match bytes {
            Piece::Input(length) => &self.input.bytes()[..length],
            Piece::Reply => self.reply,
        };
        self.job.patience.bound(send(self.writer, bytes)).await.map_err(|_| Broke::Client)
    }

    /// A body with a length: bytes pass as they are.
    async fn sized<C: Source>(
        &mut self,
        length: u64,
        watch: &mut Option<Watch<'_, C>>,
        record: &Record,
    ) -> Result<(), Broke> {
        let ready = clamp(length, self.input.bytes().len());
        let part = &self.input.bytes()[..ready];
        let written = if ready <= INLINE_BYTES {
            self.reply.extend_from_slice(part);
            send(self.writer, self.reply).await.map_err(drop)
        } else {
            self.job.patience.bound(send_both(self.writer, self.reply, part)).await.map_err(drop)
        };
        written.map_err(|()| Broke::Client)?;
        self.input.consume(ready);
        record.sent(ready as u64);
        let mut left = length - ready as u64;
        if left > 0 {
            record.goes_on();
        }
        while left > 0 {
            let size = if left > SMALL as u64 { LARGE } else { SMALL };
            if self.fill(size, watch).await? == 0 {
                return Err(Broke::Midway);
            }
            let ready = clamp(left, self.input.bytes().len());
            self.pass(Piece::Input(ready)).await?;
            self.input.consume(ready);
            record.sent(ready as u64);
            left -= ready as u64;
        }
        Ok(())
    }

    /// A body that is chunked or ends with the endpoint's connection; its payload bytes.
    async fn open_ended<C: Source>(
        &mut self,
        framing: Framing,
        watch: &mut Option<Watch<'_, C>>,
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
            self.pass(Piece::Reply).await?;
            self.reply.clear();
            if !done && self.fill(LARGE, watch).await? == 0 {
                if chunked.is_some() {
                    return Err(Broke::Midway);
                }
                if output == Output::Chunked {
                    send(self.writer, LAST_CHUNK).await.map_err(|_| Broke::Client)?;
                }
                done = true;
            }
            if done {
                return Ok(total);
            }
        }
    }
}

/// What is passed on.
#[derive(Clone, Copy)]
enum Piece {
    /// So many bytes of the input.
    Input(usize),
    /// The reply.
    Reply,
}

/// The smaller of what is left and what is there.
fn clamp(left: u64, there: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(there)
}
