//! `pods/log`, `pods/exec` and `pods/attach`: checks what the client asks, then hands the bytes to the node's agent.
//!
//! Nothing is buffered beyond one piece and nothing is interpreted: log bodies are streamed, upgraded connections are
//! tunnelled. Whatever the container says goes from the agent to the client unread.

mod agent;
mod choice;
mod tunnel;

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Server;
use crate::error::{ApiError, GroupResource};
use crate::handler::{Resolved, SubresourceHandler};
use crate::request::Query;

/// Streams at a time over all clients.
const MAX_STREAMS: usize = 4_096;

/// Headers of a WebSocket handshake that concern both ends.
const HANDSHAKE: [HeaderName; 5] = [
    http::header::SEC_WEBSOCKET_KEY,
    http::header::SEC_WEBSOCKET_VERSION,
    http::header::SEC_WEBSOCKET_PROTOCOL,
    http::header::SEC_WEBSOCKET_EXTENSIONS,
    http::header::SEC_WEBSOCKET_ACCEPT,
];

/// What a client that speaks SPDY is told.
const NO_SPDY: &str = "exec and attach stream over WebSocket only; use kubectl 1.30 or newer (with 1.29, set \
                       KUBECTL_REMOTE_COMMAND_WEBSOCKETS=true)";

/// `GET pods/{name}/log`
pub struct LogHandler;

/// `GET|POST pods/{name}/exec`
pub struct ExecHandler;

/// `GET|POST pods/{name}/attach`
pub struct AttachHandler;

/// A place among the streams; given back when dropped.
fn place() -> Result<OwnedSemaphorePermit, ApiError> {
    static STREAMS: std::sync::LazyLock<Arc<Semaphore>> =
        std::sync::LazyLock::new(|| Arc::new(Semaphore::new(MAX_STREAMS)));
    let full = |_| ApiError::too_many_requests(format!("{MAX_STREAMS} streams are open; close some"), 1);
    STREAMS.clone().try_acquire_owned().map_err(full)
}

async fn find_pod(server: &Server, resolved: &Resolved) -> Result<Pod, ApiError> {
    let gr = GroupResource { group: String::new(), resource: "pods".into() };
    let stored = server.get_stored("", "pods", &resolved.namespace, &resolved.name).await?;
    let stored = stored.ok_or_else(|| ApiError::not_found(&gr, &resolved.name))?;
    serde_json::from_slice(&stored.json).map_err(|e| ApiError::internal(format!("stored pod is damaged: {e}")))
}

#[async_trait]
impl SubresourceHandler for LogHandler {
    async fn handle(
        &self,
        server: &Arc<Server>,
        resolved: Resolved,
        request: Request<Body>,
    ) -> Result<Response<Body>, ApiError> {
        let place = place()?;
        let query = Query::parse(request.uri().query())?;
        let options = choice::LogOptions::parse(&query, &resolved.name)?;
        let pod = find_pod(server, &resolved).await?;
        let container = choice::container(&pod, &options.container)?;
        if choice::node_name(&pod).is_none() {
            // Not scheduled yet: as upstream, a log without a line.
            return Ok(text(Body::empty()));
        }
        let endpoint = agent::Endpoint::of(server, &pod).await?;
        let path = format!("/containerLogs/{}/{}/{container}?{}", resolved.namespace, resolved.name, options.query());
        let answer = endpoint.get(&path, HeaderMap::new()).await?;
        match answer.status() {
            StatusCode::OK => Ok(text(tunnel::body(answer.into_body(), place))),
            // The node has not started it: the pod's status says what it waits for.
            StatusCode::NOT_FOUND => Err(choice::no_log_yet(&pod, container, options.previous)),
            _ => Err(agent::refusal(answer).await),
        }
    }
}

fn text(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

#[async_trait]
impl SubresourceHandler for ExecHandler {
    async fn handle(
        &self,
        server: &Arc<Server>,
        resolved: Resolved,
        request: Request<Body>,
    ) -> Result<Response<Body>, ApiError> {
        let query = Query::parse(request.uri().query())?;
        if query.get("command").is_empty() {
            return Err(ApiError::bad_request("you must specify at least 1 command for the container"));
        }
        upgrade(server, &resolved, request, "exec", &query).await
    }
}

#[async_trait]
impl SubresourceHandler for AttachHandler {
    async fn handle(
        &self,
        server: &Arc<Server>,
        resolved: Resolved,
        request: Request<Body>,
    ) -> Result<Response<Body>, ApiError> {
        let query = Query::parse(request.uri().query())?;
        upgrade(server, &resolved, request, "attach", &query).await
    }
}

/// Passes a WebSocket handshake on to the agent and, if it agrees, both connections to each other.
async fn upgrade(
    server: &Arc<Server>,
    resolved: &Resolved,
    mut request: Request<Body>,
    what: &str,
    query: &Query,
) -> Result<Response<Body>, ApiError> {
    let place = place()?;
    match request.headers().get(UPGRADE).map(|u| u.to_str().unwrap_or_default().to_ascii_lowercase()) {
        None => return Err(ApiError::bad_request("Upgrade request required")),
        Some(protocol) if protocol == "websocket" => {}
        Some(_) => return Err(ApiError::bad_request(NO_SPDY)),
    }
    let pod = find_pod(server, resolved).await?;
    let container = choice::container(&pod, query.get("container"))?;
    if choice::node_name(&pod).is_none() {
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", resolved.name)));
    }
    let endpoint = agent::Endpoint::of(server, &pod).await?;
    let raw_query = request.uri().query().unwrap_or_default();
    let path = format!("/{what}/{}/{}/{container}?{raw_query}", resolved.namespace, resolved.name);
    let mut headers = handshake(request.headers());
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let mut answer = endpoint.get(&path, headers).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(agent::refusal(answer).await);
    }
    let client = hyper::upgrade::on(&mut request);
    let agent = hyper::upgrade::on(&mut answer);
    let stopping = server.stopping.clone();
    tokio::spawn(async move {
        let _place = place;
        match tokio::try_join!(client, agent) {
            // The server's end ends the tunnel; either way it is over.
            Ok((client, agent)) => drop(stopping.run_until_cancelled(tunnel::join(client, agent)).await),
            Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = handshake(answer.headers());
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    Ok(response)
}

fn handshake(headers: &HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::new();
    for name in HANDSHAKE {
        for value in headers.get_all(&name) {
            out.append(name.clone(), value.clone());
        }
    }
    out
}
