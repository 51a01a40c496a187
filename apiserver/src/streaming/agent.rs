//! A request to a node's agent: HTTPS with the API server's client certificate, one connection per request.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Node, Pod};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::choice;
use crate::Server;
use crate::error::ApiError;

/// Bound on connecting, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bound on the head of the answer; the agent may have to ask its runtime first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Refusals of the agent are cut here.
const MAX_REFUSAL_BYTES: usize = 16 * 1024;
/// A node that vanished is noticed by probes of its silent connection, after this and this often.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Port of an agent that does not say.
const DEFAULT_PORT: u16 = 10250;

/// Where the agent of a pod's node is.
pub struct Endpoint {
    node: String,
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
}

fn address_of(node: &Node) -> Option<SocketAddr> {
    let status = node.status.as_ref()?;
    let addresses = status.addresses.as_deref().unwrap_or_default();
    let ip: IpAddr = addresses.iter().find(|a| a.type_ == "InternalIP")?.address.parse().ok()?;
    let endpoint = status.daemon_endpoints.as_ref().and_then(|d| d.kubelet_endpoint.as_ref());
    let port = endpoint.map_or(Some(DEFAULT_PORT), |e| u16::try_from(e.port).ok())?;
    (port > 0).then_some(SocketAddr::new(ip, port))
}

impl Endpoint {
    /// Of the node the pod runs on.
    pub async fn of(server: &Server, pod: &Pod) -> Result<Self, ApiError> {
        let name = choice::node_name(pod).unwrap_or_default();
        let stored = server.get_stored("", "nodes", "", name).await?;
        let node: Option<Node> = stored.and_then(|s| serde_json::from_slice(&s.json).ok());
        let Some(node) = node else {
            return Err(ApiError::unavailable(format!("node {name:?}, on which the pod runs, is not registered")));
        };
        let Some(address) = address_of(&node) else {
            return Err(ApiError::unavailable(format!("node {name:?} does not say where its agent listens")));
        };
        Ok(Self { node: name.to_owned(), address, tls: server.kubelet_client.config.clone() })
    }

    fn unavailable(&self, error: impl std::fmt::Display) -> ApiError {
        ApiError::unavailable(format!(
            "the agent of node {:?} does not answer at {}: {error}; is the node up?",
            self.node, self.address
        ))
    }

    /// Asks it. The answer's body is read as it comes.
    pub async fn get(&self, path: &str, headers: HeaderMap) -> Result<Response<Incoming>, ApiError> {
        let connect = async {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
            SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
            TlsConnector::from(self.tls.clone()).connect(ServerName::IpAddress(self.address.ip().into()), stream).await
        };
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(connected) => connected.map_err(|e| self.unavailable(e))?,
            Err(_) => return Err(self.unavailable(format!("no connection within {CONNECT_TIMEOUT:?}"))),
        };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|e| self.unavailable(e))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to an agent ended");
            }
        });
        let mut request = Request::get(path)
            .header(http::header::HOST, self.address.to_string())
            .body(Empty::<Bytes>::new())
            .map_err(|e| ApiError::bad_request(format!("the request cannot be passed on: {e}")))?;
        request.headers_mut().extend(headers);
        match tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request)).await {
            Ok(answer) => answer.map_err(|e| self.unavailable(e)),
            Err(_) => Err(ApiError::timeout(format!("the agent of node {:?} did not answer in time", self.node))),
        }
    }
}

/// An agent's refusal as a `Status`.
pub async fn refusal(answer: Response<Incoming>) -> ApiError {
    let code = answer.status();
    let body = Limited::new(Body::new(answer.into_body()), MAX_REFUSAL_BYTES).collect().await;
    let bytes = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let message = String::from_utf8_lossy(&bytes).trim().to_owned();
    match code {
        StatusCode::BAD_REQUEST => ApiError::bad_request(message),
        StatusCode::NOT_FOUND => ApiError { code, reason: "NotFound", message, details: None },
        StatusCode::CONFLICT => ApiError { code, reason: "Conflict", message, details: None },
        StatusCode::SERVICE_UNAVAILABLE => ApiError::unavailable(message),
        _ => ApiError::internal(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_say_where_their_agents_are() {
        let check = |status: serde_json::Value, want: Option<&str>| {
            let node: Node = serde_json::from_value(json!({ "status": status })).unwrap();
            assert_eq!(address_of(&node), want.map(|w| w.parse().unwrap()), "{status}");
        };
        let addresses = json!([{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.1"}]);
        check(json!({ "addresses": addresses }), Some("10.0.0.1:10250"));
        let port = |port: i32| json!({"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}});
        check(port(4444), Some("10.0.0.1:4444"));
        check(port(0), None);
        check(port(-1), None);
        check(port(70_000), None);
        check(json!({}), None);
    }
}
