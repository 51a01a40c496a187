//! HTTP/1.1: one client connection, request by request (RFC 9112).
//!
//! Retries: an endpoint that cannot be connected to is replaced by the next one. A request whose connection closed
//! before any byte of a response is sent again when nothing of it was sent, or when it is idempotent and has no body.
//! Nothing else is ever sent twice.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, request};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::body::{Meter, Record, RequestBody, ResponseBody};
use super::check::{self, Client, Reject};
use super::drain::{Drain, Phase};
use super::guard::{Guarded, Verdict};
use super::pool::Upstream;
use super::tunnel;
use super::worker::Worker;
use crate::backend::{Backend, BackendCell, EndpointState, Tried};
use crate::stats::add;

/// Attempts per request, stale pooled connections included.
const MAX_ATTEMPTS: u32 = 8;
/// Largest buffer hyper keeps per client connection in bytes: what a slow reader or writer can make us hold.
const MAX_BUFFER: usize = 128 * 1024;

/// A client connection.
struct Conn {
    worker: Rc<Worker>,
    cell: Arc<BackendCell>,
    drain: Rc<Drain>,
    peer: IpAddr,
    client: Client,
    verdict: Verdict,
    /// Requests seen so far.
    requests: Cell<u64>,
    /// Header fields of the request in flight, kept to send it again; reused, so that keeping them allocates nothing.
    kept: RefCell<Vec<(HeaderName, HeaderValue)>>,
}

/// Serves a client connection until either side closes it or the listener's drain ends it.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    stream: TcpStream,
    peer: SocketAddr,
    cell: Arc<BackendCell>,
    drain: Rc<Drain>,
) {
    let config = worker.config.clone();
    let verdict = Verdict::default();
    let io = TokioIo::new(Guarded::new(stream, verdict.clone()));
    let ip = peer.ip().to_canonical();
    let conn = Rc::new(Conn {
        cell,
        drain: drain.clone(),
        peer: ip,
        client: client(ip, config.trust_forwarded_headers),
        verdict,
        requests: Cell::new(0),
        kept: RefCell::default(),
        worker,
    });
    let service = service_fn(move |request| {
        let conn = conn.clone();
        async move { Ok::<_, Infallible>(handle(&conn, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_read_timeout)
        .max_headers(config.max_header_count)
        .max_header_size(config.max_header_bytes)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let (mut draining, mut aborting) = (pin!(drain.reached(Phase::Draining)), pin!(drain.reached(Phase::Aborting)));
    let (mut registered, mut graceful) = (false, false);
    std::future::poll_fn(|cx| {
        // Polled once to register this task, then only when there is news: a request costs one comparison here.
        if !registered || drain.phase() != Phase::Serving {
            registered = true;
            if !graceful && draining.as_mut().poll(cx).is_ready() {
                graceful = true;
                connection.as_mut().graceful_shutdown();
            }
            if aborting.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
        }
        connection.as_mut().poll(cx).map(|result| {
            if let Err(error) = result {
                tracing::trace!(%error, %peer, "client connection ended");
            }
        })
    })
    .await;
}

fn client(ip: IpAddr, trusted: bool) -> Client {
    let text = ip.to_string();
    let node = if ip.is_ipv6() { format!("\"[{text}]\"") } else { text.clone() };
    let address = HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("unknown"));
    Client { address, node, trusted }
}

async fn handle(conn: &Rc<Conn>, mut request: Request<Incoming>) -> Response<ResponseBody> {
    let number = conn.requests.get() + 1;
    conn.requests.set(number);
    let backend = conn.cell.load_full();
    let record = Record::start(conn.worker.clone(), backend.clone());
    let config = &conn.worker.config;
    if conn.verdict.refuses(number) {
        let reason = "the request's framing is ambiguous";
        return refuse(Reject { status: StatusCode::BAD_REQUEST, reason }, record);
    }
    let upgrade = check::wants_upgrade(request.headers()) && request.body().is_end_stream();
    let on_upgrade = upgrade.then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    if let Err(reject) = check::check_request(&head, config.max_uri_bytes) {
        return refuse(reject, record);
    }
    let fallback_host = if head.headers.contains_key(header::HOST) { None } else { service_host(&backend) };
    head.extensions.clear();
    check::to_upstream(&mut head, &conn.client, upgrade, fallback_host.as_ref().unwrap_or(&EMPTY));
    let mut response = forward(conn, head, body, on_upgrade, record).await;
    if number >= config.max_requests_per_connection || conn.drain.phase() != Phase::Serving {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

static EMPTY: HeaderValue = HeaderValue::from_static("");

/// A Host for HTTP/1.0 requests without one.
fn service_host(backend: &Backend) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("{}.{}", backend.service.name, backend.service.namespace)).ok()
}

/// Why a request could not be answered by any endpoint.
#[derive(Clone, Copy)]
enum Failure {
    NoEndpoints,
    Unreachable,
    ConnectTimeout,
    Broken,
    Malformed,
    ResponseTimeout,
}

impl Failure {
    fn status_and_text(self) -> (StatusCode, &'static str) {
        match self {
            Self::NoEndpoints => (StatusCode::SERVICE_UNAVAILABLE, "has no ready endpoints"),
            Self::Unreachable => (StatusCode::BAD_GATEWAY, "has endpoints, but none accepted a connection"),
            Self::ConnectTimeout => (StatusCode::GATEWAY_TIMEOUT, "has endpoints, but connecting timed out"),
            Self::Broken => (StatusCode::BAD_GATEWAY, "closed the connection before it responded"),
            Self::Malformed => (StatusCode::BAD_GATEWAY, "sent a response that is not valid HTTP/1.1"),
            Self::ResponseTimeout => (StatusCode::GATEWAY_TIMEOUT, "did not respond in time"),
        }
    }
}

/// Sends the request to an endpoint, or another, and returns the response.
async fn forward(
    conn: &Conn,
    head: request::Parts,
    body: Incoming,
    on_upgrade: Option<OnUpgrade>,
    mut record: Record,
) -> Response<ResponseBody> {
    let thread = conn.worker.index;
    let backend = record.backend.clone();
    let stats = backend.stats.shard(thread);
    let replay = Replay::keep(conn, &head, &body);
    let body = if body.is_end_stream() {
        RequestBody::Empty
    } else {
        RequestBody::Stream { body, meter: Meter { backend: backend.clone(), endpoint: None, thread } }
    };
    let mut request = Request::from_parts(head, body);
    let mut tried = Tried::default();
    let mut failure = Failure::NoEndpoints;
    for attempt in 0..MAX_ATTEMPTS {
        let Some((index, endpoint)) = backend.pick(conn.peer, tried) else { break };
        if attempt > 0 {
            add(&stats.retries, 1);
        }
        let (mut upstream, pooled) = match checkout(conn, &backend, endpoint).await {
            Ok(found) => found,
            Err(error) => {
                failure = error;
                tried.insert(index);
                continue;
            }
        };
        record.sent_to(endpoint);
        request.body_mut().assign(endpoint);
        let error = match exchange(conn, &mut upstream, request).await {
            Ok(response) => return respond(conn, response, upstream, on_upgrade, record),
            Err(error) => error,
        };
        if pooled {
            // It was closed while idle, and so perhaps were the others; the endpoint itself may be well.
            conn.worker.pool.borrow_mut().forget(endpoint);
        } else {
            tried.insert(index);
        }
        request = match (error, &replay) {
            (ExchangeFailure::Unsent(unsent), _) => *unsent,
            (ExchangeFailure::Failed(Failure::Broken), Some(replay)) => replay.request(conn),
            (ExchangeFailure::Failed(error), _) => return fail(error, record),
        };
        failure = Failure::Broken;
    }
    fail(failure, record)
}

/// A connection to `endpoint` and whether it comes from the pool.
async fn checkout(
    conn: &Conn,
    backend: &Backend,
    endpoint: &Arc<EndpointState>,
) -> Result<(Box<Upstream>, bool), Failure> {
    let stats = backend.stats.shard(conn.worker.index);
    let pooled = conn.worker.pool.borrow_mut().take(endpoint);
    if let Some(upstream) = pooled {
        add(&stats.upstream_reused, 1);
        return Ok((upstream, true));
    }
    match Upstream::connect(endpoint, conn.worker.config.connect_timeout).await {
        Ok(upstream) => {
            endpoint.mark_healthy();
            add(&stats.upstream_opened, 1);
            Ok((upstream, false))
        }
        Err(error) => {
            endpoint.mark_suspect();
            add(&stats.connect_failures, 1);
            tracing::debug!(service = %backend.service, endpoint = %endpoint.addr, %error, "endpoint is unreachable");
            Err(match error {
                super::pool::ConnectError::Timeout => Failure::ConnectTimeout,
                _ => Failure::Unreachable,
            })
        }
    }
}

enum ExchangeFailure {
    /// Nothing was sent; here is the request back.
    Unsent(Box<Request<RequestBody>>),
    Failed(Failure),
}

async fn exchange(
    conn: &Conn,
    upstream: &mut Upstream,
    request: Request<RequestBody>,
) -> Result<Response<Incoming>, ExchangeFailure> {
    let exchange = upstream.exchange(request);
    let result = match conn.worker.config.response_header_timeout {
        None => exchange.await,
        Some(timeout) => match tokio::time::timeout(timeout, exchange).await {
            Ok(result) => result,
            Err(_) => return Err(ExchangeFailure::Failed(Failure::ResponseTimeout)),
        },
    };
    result.map_err(|error| match error.unsent {
        Some(request) => ExchangeFailure::Unsent(request),
        None if error.malformed => ExchangeFailure::Failed(Failure::Malformed),
        None => ExchangeFailure::Failed(Failure::Broken),
    })
}

/// What is needed to send a request again: only kept for requests that may be.
struct Replay {
    method: Method,
    uri: Uri,
}

impl Replay {
    fn keep(conn: &Conn, head: &request::Parts, body: &Incoming) -> Option<Self> {
        if !body.is_end_stream() || !check::is_idempotent(&head.method) {
            return None;
        }
        let mut kept = conn.kept.borrow_mut();
        kept.clear();
        kept.extend(head.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        Some(Self { method: head.method.clone(), uri: head.uri.clone() })
    }

    fn request(&self, conn: &Conn) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::Empty);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        for (name, value) in conn.kept.borrow().iter() {
            request.headers_mut().append(name, value.clone());
        }
        request
    }
}

/// An endpoint's response as the client gets it.
fn respond(
    conn: &Conn,
    response: Response<Incoming>,
    upstream: Box<Upstream>,
    on_upgrade: Option<OnUpgrade>,
    mut record: Record,
) -> Response<ResponseBody> {
    let (mut head, body) = response.into_parts();
    head.extensions.clear();
    head.version = http::Version::HTTP_11;
    let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
    check::to_client(&mut head.headers, switched);
    if !switched {
        record.answered(head.status);
        return Response::from_parts(head, ResponseBody::upstream(body, upstream, record));
    }
    let Some(on_upgrade) = on_upgrade else {
        // Nobody asked for another protocol; what follows on that connection is not HTTP.
        return fail(Failure::Malformed, record);
    };
    record.answered(head.status);
    tunnel::spawn(on_upgrade, upstream, record, conn.drain.clone());
    Response::from_parts(head, ResponseBody::Empty)
}

fn fail(failure: Failure, record: Record) -> Response<ResponseBody> {
    let (status, text) = failure.status_and_text();
    let service = &record.backend.service;
    let text = format!("{}: service {service} {text}\n", status.as_u16());
    text_response(status, text, record)
}

/// Answers a request that is not forwarded, and closes the connection: what follows it cannot be trusted.
fn refuse(reject: Reject, record: Record) -> Response<ResponseBody> {
    let text = format!("{}: {}\n", reject.status.as_u16(), reject.reason);
    let mut response = text_response(reject.status, text, record);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn text_response(status: StatusCode, text: String, mut record: Record) -> Response<ResponseBody> {
    record.answered(status);
    let mut response = Response::new(ResponseBody::text(text, record));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
