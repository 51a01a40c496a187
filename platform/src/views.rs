//! `/lb/{top,usage,explain}`: what the load balancer shows, as JSON.
//!
//! One router, mounted twice: on the API server, which has authenticated and authorised the caller by then (nonResourceURL `/lb/*`),
//! and beside `/metrics` of a load balancer that runs alone. An API server without a load balancer in its process asks that one.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use scaleup_lb::{Lb, ViewError};
use serde_json::{Value, json};

/// Longest answer of a load balancer elsewhere that is passed on.
const MAX_ANSWER: usize = 64 << 20;
/// Longest wait for it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where the load balancer is.
#[derive(Clone)]
pub enum Source {
    /// In this process.
    Here(Lb),
    /// It serves its metrics there.
    At(SocketAddr),
}

/// The routes.
pub fn router(source: Source) -> Router {
    Router::new().route("/lb/{view}", get(view)).with_state(source)
}

async fn view(State(source): State<Source>, Path(name): Path<String>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    match source {
        Source::Here(lb) => match lb.view(&name, &query) {
            Ok(value) => answer(StatusCode::OK, value.to_string()),
            Err(error @ ViewError::Unknown) => failure(StatusCode::NOT_FOUND, "NotFound", &error.to_string()),
            Err(error @ ViewError::Request(_)) => failure(StatusCode::BAD_REQUEST, "BadRequest", &error.to_string()),
            Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", &error.to_string()),
        },
        Source::At(address) => match tokio::time::timeout(TIMEOUT, ask(address, &name, &query)).await {
            Ok(Ok((status, body))) => answer(status, body),
            Ok(Err(error)) => unreachable(address, &format!("{error:#}")),
            Err(_) => unreachable(address, "it takes too long"),
        },
    }
}

fn unreachable(address: SocketAddr, why: &str) -> Response {
    let text = format!("the load balancer at {address} (--lb-views) does not answer: {why}");
    failure(StatusCode::BAD_GATEWAY, "ServiceUnavailable", &text)
}

/// Asks the load balancer that serves its metrics at `address`.
async fn ask(address: SocketAddr, name: &str, query: &str) -> anyhow::Result<(StatusCode, String)> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // The path was decoded: only names that need no encoding exist.
    anyhow::ensure!(name.bytes().all(|b| b.is_ascii_lowercase()), "no such view");
    let request = http::Request::get(format!("/lb/{name}?{query}"))
        .header("host", address.to_string())
        .body(Empty::<axum::body::Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("its answer cannot be read: {error}"))?;
        Ok((status, String::from_utf8(body.to_bytes().to_vec())?))
    };
    tokio::select! {
        answered = exchange => answered,
        ended = connection => Err(ended.err().map_or_else(|| anyhow::anyhow!("it closed the connection"), Into::into)),
    }
}

fn answer(status: StatusCode, body: String) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}

/// As the API tells errors.
fn failure(status: StatusCode, reason: &str, message: &str) -> Response {
    let body: Value = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": status.as_u16()});
    answer(status, body.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get_from(source: Source, name: &str, query: &str) -> (StatusCode, Value) {
        let response = view(State(source), Path(name.to_owned()), RawQuery(Some(query.to_owned()))).await;
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    fn lb() -> Lb {
        scaleup_lb::build(scaleup_lb::Config::new("n1"), &mut prometheus_client::registry::Registry::default())
    }

    #[tokio::test]
    async fn views_are_served_here_and_from_elsewhere() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router(Source::Here(lb()))).await });
        for source in [Source::Here(lb()), Source::At(address)] {
            let (status, top) = get_from(source.clone(), "top", "").await;
            assert_eq!((status, &top["services"]), (StatusCode::OK, &json!([])));
            let (status, usage) = get_from(source.clone(), "usage", "").await;
            assert_eq!((status, &usage["pods"]), (StatusCode::OK, &json!([])));
            let (status, said) = get_from(source.clone(), "explain", "url=http%3A%2F%2Fa%2F").await;
            assert_eq!(status, StatusCode::OK);
            assert!(said["verdict"].as_str().unwrap().starts_with("Nobody listens on port 80"), "{said}");
            let (status, refused) = get_from(source.clone(), "explain", "url=a").await;
            assert_eq!((status, &refused["kind"]), (StatusCode::BAD_REQUEST, &json!("Status")));
            assert_eq!(get_from(source, "nothing", "").await.0, StatusCode::NOT_FOUND);
        }
        server.abort();
    }

    #[tokio::test]
    async fn a_load_balancer_that_is_away_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let (status, refused) = get_from(Source::At(address), "top", "").await;
        assert_eq!(status, StatusCode::BAD_GATEWAY);
        assert!(refused["message"].as_str().unwrap().contains("--lb-views"), "{refused}");
    }
}
