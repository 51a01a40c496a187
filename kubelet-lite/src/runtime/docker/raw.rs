//! Log, exec, attach and event streams over a connection of their own.
//!
//! Docker multiplexes standard output and error in frames (8 bytes of header: stream, three zeros, big-endian length) unless
//! the process has a terminal, in which case bytes come as they are. Which of the two it is, is known from the container or
//! the request, never guessed. Frames are passed on piece by piece: a frame's length is the container's word, and nothing is
//! ever allocated by it.

use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker;
use bytes::{Buf, Bytes, BytesMut};
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, BodyStream, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::codec::{FramedRead, LinesCodec};

use super::super::{
    Event, ExecSpec, LogOptions, OutputStream, Result, RuntimeError, Session, SessionControl, StdStream, labels,
};
use super::convert;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 32 * 1024;
/// Longest event; it carries all labels of its container.
const MAX_EVENT_BYTES: usize = 1024 * 1024;
/// Bound on connecting and on the answer's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Error texts of the daemon are cut here.
const MAX_ERROR_BYTES: usize = 16 * 1024;
/// How long the daemon may take to record an exit code after the output has ended.
const EXIT_CODE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between looks at the exit code.
const EXIT_CODE_POLL: Duration = Duration::from_millis(10);

/// The daemon and the API version agreed with it.
pub struct Endpoint {
    socket: String,
    version: String,
}

impl Endpoint {
    /// `version` is e.g. `1.41`.
    pub fn new(socket: String, version: String) -> Self {
        Self { socket, version }
    }

    /// Output of a container's log.
    pub async fn logs(&self, id: &str, options: &LogOptions, tty: bool) -> Result<OutputStream> {
        let mut path = format!("/containers/{id}/logs?stdout=1&stderr=1");
        if options.follow {
            path.push_str("&follow=1");
        }
        if options.timestamps {
            path.push_str("&timestamps=1");
        }
        if let Some(lines) = options.tail {
            path.push_str(&format!("&tail={lines}"));
        }
        if let Some(since) = options.since {
            path.push_str(&format!("&since={}.{:09}", since.as_second(), since.subsec_nanosecond().max(0)));
        }
        let response = self.send(self.request(Method::GET, &path, None, false)?).await?;
        Ok(demultiplex(body_reader(response.into_body()), tty))
    }

    /// Changes from now on: subscribed when this returns. `filters` as the API documents them.
    pub async fn events(&self, filters: &serde_json::Value) -> Result<BoxStream<'static, Result<Event>>> {
        let path = format!("/events?filters={}", percent_encode(&filters.to_string()));
        let response = self.send(self.request(Method::GET, &path, None, false)?).await?;
        let lines = LinesCodec::new_with_max_length(MAX_EVENT_BYTES);
        let events = FramedRead::new(body_reader(response.into_body()), lines).filter_map(|line| {
            let event = match line {
                Ok(line) => pod_of_event(&line).map(|pod_uid| Ok(Event { pod_uid })),
                Err(error) => Some(Err(RuntimeError::Stream(error.into()))),
            };
            futures::future::ready(event)
        });
        Ok(events.boxed())
    }

    /// Starts a created exec and connects to it.
    pub async fn start_exec(&self, exec_id: &str, spec: &ExecSpec, control: Control) -> Result<Session> {
        let body = json!({ "Detach": false, "Tty": spec.tty });
        let request = self.request(Method::POST, &format!("/exec/{exec_id}/start"), Some(&body), true)?;
        self.session(request, spec, spec.tty, control).await
    }

    /// Connects to a container's own streams.
    pub async fn attach(&self, id: &str, spec: &ExecSpec, tty: bool, control: Control) -> Result<Session> {
        let flag = |name: &str, on: bool| if on { format!("&{name}=1") } else { String::new() };
        let path = format!(
            "/containers/{id}/attach?stream=1{}{}{}",
            flag("stdin", spec.stdin),
            flag("stdout", spec.stdout),
            flag("stderr", spec.stderr && !tty)
        );
        self.session(self.request(Method::POST, &path, None, true)?, spec, tty, control).await
    }

    async fn session(
        &self,
        request: Request<Full<Bytes>>,
        spec: &ExecSpec,
        tty: bool,
        control: Control,
    ) -> Result<Session> {
        let response = self.send(request).await?;
        let upgraded = hyper::upgrade::on(response).await.map_err(|e| RuntimeError::Stream(e.into()))?;
        let (read, write) = tokio::io::split(TokioIo::new(upgraded));
        let input: Option<Box<dyn tokio::io::AsyncWrite + Send + Unpin>> =
            if spec.stdin { Some(Box::new(write)) } else { None };
        Ok(Session { output: demultiplex(read, tty), input, control: Box::new(control) })
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
        upgrade: bool,
    ) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/v{}{path}", self.version))
            .header(http::header::HOST, "docker")
            .header(http::header::CONTENT_TYPE, "application/json");
        if upgrade {
            request = request.header(http::header::CONNECTION, "Upgrade").header(http::header::UPGRADE, "tcp");
        }
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        request.body(Full::new(bytes)).map_err(|e| RuntimeError::Refused(e.to_string()))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<http::Response<Incoming>> {
        let answer = async {
            let unavailable =
                |e: std::io::Error| RuntimeError::Unavailable { endpoint: self.socket.clone(), source: e.into() };
            let stream = tokio::net::UnixStream::connect(&self.socket).await.map_err(unavailable)?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|e| RuntimeError::Stream(e.into()))?;
            tokio::spawn(async move {
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(%error, "stream to docker ended");
                }
            });
            sender.send_request(request).await.map_err(|e| RuntimeError::Stream(e.into()))
        };
        let response =
            tokio::time::timeout(HEAD_TIMEOUT, answer).await.map_err(|_| RuntimeError::Timeout(HEAD_TIMEOUT))??;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = Limited::new(response.into_body(), MAX_ERROR_BYTES).collect().await;
        let text = body.map(|b| b.to_bytes()).unwrap_or_default();
        let message = serde_json::from_slice::<serde_json::Value>(&text)
            .ok()
            .and_then(|v| v.get("message")?.as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&text).into_owned());
        Err(convert::refusal(status.as_u16(), message))
    }
}

fn body_reader(body: Incoming) -> impl AsyncRead + Send + Unpin + 'static {
    let chunks = BodyStream::new(body)
        .try_filter_map(|frame| futures::future::ready(Ok(frame.into_data().ok())))
        .map_err(std::io::Error::other);
    tokio_util::io::StreamReader::new(chunks.boxed())
}

fn pod_of_event(line: &str) -> Option<String> {
    let event: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(event.get("Actor")?.get("Attributes")?.get(labels::POD_UID)?.as_str()?.to_owned())
}

fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

/// Splits what the daemon sends into pieces of standard output and error.
struct Demultiplexer {
    tty: bool,
    /// Stream and bytes left of the frame we are in.
    frame: Option<(StdStream, usize)>,
}

impl Demultiplexer {
    /// Bytes of a frame's header.
    const HEADER: usize = 8;

    /// The next piece in `buffer`, if it holds one.
    fn next(&mut self, buffer: &mut BytesMut) -> Option<(StdStream, Bytes)> {
        if self.tty {
            return (!buffer.is_empty()).then(|| (StdStream::Out, buffer.split().freeze()));
        }
        loop {
            if let Some((stream, left)) = self.frame {
                if buffer.is_empty() && left > 0 {
                    return None;
                }
                let piece = buffer.split_to(left.min(buffer.len())).freeze();
                self.frame = (left > piece.len()).then_some((stream, left - piece.len()));
                if !piece.is_empty() {
                    return Some((stream, piece));
                }
            }
            if buffer.len() < Self::HEADER {
                return None;
            }
            let stream = if buffer[0] == 2 { StdStream::Err } else { StdStream::Out };
            let length = u32::from_be_bytes([buffer[4], buffer[5], buffer[6], buffer[7]]);
            buffer.advance(Self::HEADER);
            self.frame = Some((stream, length as usize));
        }
    }
}

fn demultiplex(reader: impl AsyncRead + Send + Unpin + 'static, tty: bool) -> OutputStream {
    let state = (reader, BytesMut::new(), Demultiplexer { tty, frame: None });
    futures::stream::try_unfold(state, |(mut reader, mut buffer, mut frames)| async move {
        loop {
            if let Some(piece) = frames.next(&mut buffer) {
                return Ok(Some((piece, (reader, buffer, frames))));
            }
            buffer.reserve(CHUNK_BYTES);
            if reader.read_buf(&mut buffer).await.map_err(|e| RuntimeError::Stream(e.into()))? == 0 {
                return Ok(None);
            }
        }
    })
    .boxed()
}

/// What a session belongs to.
enum Subject {
    Exec(String),
    Container(String),
}

/// Size and exit code, by ordinary calls.
pub struct Control {
    docker: Docker,
    socket: String,
    subject: Subject,
}

impl Control {
    /// Of an exec.
    pub fn exec(docker: Docker, socket: String, id: String) -> Self {
        Self { docker, socket, subject: Subject::Exec(id) }
    }
    /// Of a container.
    pub fn container(docker: Docker, socket: String, id: String) -> Self {
        Self { docker, socket, subject: Subject::Container(id) }
    }

    /// The code, or `None` while the process runs.
    async fn code_now(&self) -> Result<Option<i32>> {
        let code = match &self.subject {
            Subject::Exec(id) => {
                let answer = self.docker.inspect_exec(id).await.map_err(|e| convert::error(e, &self.socket))?;
                if answer.running == Some(true) { None } else { answer.exit_code }
            }
            Subject::Container(id) => {
                let answer = self
                    .docker
                    .inspect_container(id, None::<bollard::query_parameters::InspectContainerOptions>)
                    .await
                    .map_err(|e| convert::error(e, &self.socket))?;
                answer.state.filter(|s| s.running != Some(true)).and_then(|s| s.exit_code)
            }
        };
        Ok(code.map(|c| i32::try_from(c).unwrap_or(i32::MAX)))
    }
}

#[async_trait]
impl SessionControl for Control {
    async fn resize(&self, width: u16, height: u16) -> Result<()> {
        let outcome = match &self.subject {
            Subject::Exec(id) => self.docker.resize_exec(id, bollard::exec::ResizeExecOptions { width, height }).await,
            Subject::Container(id) => {
                let options =
                    bollard::query_parameters::ResizeContainerTTYOptions { w: width.into(), h: height.into() };
                self.docker.resize_container_tty(id, options).await
            }
        };
        outcome.map_err(|e| convert::error(e, &self.socket))
    }

    async fn exit_code(&self) -> Result<Option<i32>> {
        let deadline = tokio::time::Instant::now() + EXIT_CODE_TIMEOUT;
        loop {
            match self.code_now().await {
                Ok(None) if tokio::time::Instant::now() < deadline => tokio::time::sleep(EXIT_CODE_POLL).await,
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tty: bool, chunks: &[&[u8]], want: &[(StdStream, &[u8])]) {
        let mut frames = Demultiplexer { tty, frame: None };
        let mut buffer = BytesMut::new();
        let mut got = Vec::new();
        for chunk in chunks {
            buffer.extend_from_slice(chunk);
            while let Some((stream, piece)) = frames.next(&mut buffer) {
                got.push((stream, piece.to_vec()));
            }
        }
        let want: Vec<_> = want.iter().map(|(s, b)| (*s, b.to_vec())).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn frames_are_split_and_passed_on_piecewise() {
        check(false, &[b"\x01\0\0\0\0\0\0\x02hi"], &[(StdStream::Out, b"hi")]);
        check(
            false,
            &[b"\x02\0\0\0\0\0", b"\0\x04ab", b"cd\x01\0\0\0\0\0\0\x01x"],
            &[(StdStream::Err, b"ab"), (StdStream::Err, b"cd"), (StdStream::Out, b"x")],
        );
        check(false, &[b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x01y"], &[(StdStream::Out, b"y")]);
        // A length of 4 GiB allocates nothing and passes on what there is.
        check(false, &[b"\x01\0\0\0\xff\xff\xff\xffz"], &[(StdStream::Out, b"z")]);
    }

    #[test]
    fn a_terminals_bytes_are_never_taken_for_headers() {
        check(true, &[b"\x01\0\0\0\0\0\0\x09rest"], &[(StdStream::Out, b"\x01\0\0\0\0\0\0\x09rest")]);
    }
}
