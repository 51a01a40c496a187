//! The paths: health, version, metrics, discovery, OpenAPI; everything else is a resource.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::get;
use http::header::{ACCEPT, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::Server;
use super::pipeline::{self, Scope, render};
use crate::error::ApiError;
use crate::handler::{self, Resolved};
use crate::present::discovery::{self, DiscoveryFormat};
use crate::present::openapi;

/// The Kubernetes version whose API this is.
const MINOR: &str = "33";
const GIT_VERSION: &str = concat!("v1.33.0+scaleup.", env!("CARGO_PKG_VERSION"));
/// Content type of `/metrics`.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Answer = Result<Response<Body>, ApiError>;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        render(&self)
    }
}

/// Every route, with the pipeline around it.
pub fn router(server: &Arc<Server>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/livez/{check}", get(livez_check))
        .route("/readyz", get(readyz))
        .route("/readyz/{check}", get(readyz_check))
        .route("/healthz", get(livez))
        .route("/healthz/{check}", get(livez_check))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .route("/lb/{*view}", get(lb_views))
        .route("/plugins/records", get(super::records::read).post(super::records::hand_in))
        .route("/api", get(core_versions))
        .route("/apis", get(groups))
        .route("/openid/v1/jwks", get(jwks))
        .route("/.well-known/openid-configuration", get(openid_configuration))
        .fallback(fallback)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(server.clone(), pipeline::run))
        .with_state(server.clone())
}

fn json_answer(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text_answer(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

async fn method_not_allowed() -> ApiError {
    let mut error = ApiError::bad_request("the server does not allow this method on the requested resource");
    (error.code, error.reason) = (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed");
    error
}

/// Health checks by name; `None` is well, `Some` says what is wrong.
fn checks(server: &Server, ready: bool) -> Vec<(&'static str, Option<&'static str>)> {
    let failed = |ok: bool, why: &'static str| (!ok).then_some(why);
    let mut out = vec![("ping", None)];
    if ready {
        let synced = server.caches.is_synced();
        out.push(("store", failed(synced, "the store has not answered yet")));
        out.push(("informer-sync", failed(synced, "the watch cache is not filled yet")));
        let bootstrapped = server.bootstrapped.load(Ordering::Acquire);
        out.push(("poststarthook/bootstrap", failed(bootstrapped, "the cluster's own objects are not created yet")));
        out.push(("shutdown", failed(!server.stopping.is_cancelled(), "the server is shutting down")));
    }
    out
}

/// As upstream's `healthz` package prints it.
fn health(server: &Server, name: &str, ready: bool, scope: &Scope) -> Response<Body> {
    let excluded: Vec<&str> = scope.query.all("exclude").collect();
    let checks = checks(server, ready);
    let healthy = checks.iter().all(|(check, failure)| failure.is_none() || excluded.contains(check));
    if healthy && !scope.query.has("verbose") {
        return text_answer(StatusCode::OK, "ok".into());
    }
    let mut text = String::new();
    for (check, failure) in &checks {
        let line = match failure {
            _ if excluded.contains(check) => format!("[+]{check} excluded: ok\n"),
            None => format!("[+]{check} ok\n"),
            Some(why) => format!("[-]{check} failed: {why}\n"),
        };
        text.push_str(&line);
    }
    let verdict = if healthy { "passed" } else { "failed" };
    text.push_str(&format!("{name} check {verdict}\n"));
    text_answer(if healthy { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }, text)
}

fn one_check(server: &Server, check: &str, ready: bool) -> Answer {
    let found =
        checks(server, ready).into_iter().find(|(name, _)| *name == check || name.ends_with(&format!("/{check}")));
    match found {
        None => Err(ApiError::no_such_path()),
        Some((_, None)) => Ok(text_answer(StatusCode::OK, "ok".into())),
        Some((_, Some(why))) => {
            Ok(text_answer(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n")))
        }
    }
}

async fn livez(State(server): State<Arc<Server>>, axum::Extension(scope): axum::Extension<Scope>) -> Response<Body> {
    health(&server, "livez", false, &scope)
}

async fn readyz(State(server): State<Arc<Server>>, axum::Extension(scope): axum::Extension<Scope>) -> Response<Body> {
    health(&server, "readyz", true, &scope)
}

async fn livez_check(State(server): State<Arc<Server>>, Path(check): Path<String>) -> Answer {
    one_check(&server, &check, false)
}

async fn readyz_check(State(server): State<Arc<Server>>, Path(check): Path<String>) -> Answer {
    one_check(&server, &check, true)
}

async fn version() -> Response<Body> {
    json_answer(&json!({
        "major": "1", "minor": MINOR, "gitVersion": GIT_VERSION, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "rust", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, architecture()),
    }))
}

/// Architecture as Go spells it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

async fn metrics(State(server): State<Arc<Server>>) -> Response<Body> {
    let mut response = Response::new(Body::from(server.metrics.encode()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS));
    response
}

/// The load balancer's, which knows nothing of users: the pipeline has authorised this one for the path.
async fn lb_views(State(server): State<Arc<Server>>, mut request: Request) -> Response<Body> {
    // Among them this router's own path parameters, which would count as the other one's.
    request.extensions_mut().clear();
    match server.lb_views.get() {
        // A router cannot fail.
        Some(router) => router.clone().oneshot(request).await.unwrap_or_default(),
        None => {
            let why = "this API server knows no load balancer; start it with --lb-views ADDR:PORT";
            let mut error = ApiError::no_such_path();
            error.message = why.into();
            render(&error)
        }
    }
}

async fn jwks(State(server): State<Arc<Server>>) -> Response<Body> {
    let mut response = json_answer(&server.tokens.jwks());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
    response
}

async fn openid_configuration(State(server): State<Arc<Server>>) -> Response<Body> {
    let address = std::net::SocketAddr::new(server.config.advertise_address, server.config.advertise_port);
    json_answer(&server.tokens.openid_configuration(&format!("https://{address}")))
}

fn discover(server: &Server, headers: &HeaderMap, core: bool) -> Response<Body> {
    let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let format = DiscoveryFormat::from_accept(accept);
    let mut response = json_answer(&discovery::root(&server.registry.load(), core, format));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    response
}

async fn core_versions(State(server): State<Arc<Server>>, headers: HeaderMap) -> Response<Body> {
    discover(&server, &headers, true)
}

async fn groups(State(server): State<Arc<Server>>, headers: HeaderMap) -> Response<Body> {
    discover(&server, &headers, false)
}

/// Resources, and the discovery and OpenAPI paths that have parts in them.
async fn fallback(
    State(server): State<Arc<Server>>,
    axum::Extension(scope): axum::Extension<Scope>,
    request: Request,
) -> Answer {
    match scope.asked.clone() {
        Some(asked) => resource(&server, scope, asked, request).await,
        None if *request.method() == Method::GET || *request.method() == Method::HEAD => document(&server, &request),
        None => Err(ApiError::no_such_path()),
    }
}

fn document(server: &Server, request: &Request) -> Answer {
    let registry = server.registry.load();
    let path = request.uri().path().trim_end_matches('/');
    if path.starts_with("/openapi/") {
        return openapi::serve(&registry, path, request.uri().query(), request.headers());
    }
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let found = match parts.as_slice() {
        [""] => Some(json!({"paths": root_paths(&registry)})),
        ["api"] => return Ok(discover(server, request.headers(), true)),
        ["apis"] => return Ok(discover(server, request.headers(), false)),
        ["api", version] => discovery::resources(&registry, "", version),
        ["apis", group] => discovery::group(&registry, group),
        ["apis", group, version] => discovery::resources(&registry, group, version),
        _ => None,
    };
    found.map(|value| json_answer(&value)).ok_or_else(ApiError::no_such_path)
}

fn root_paths(registry: &crate::registry::Registry) -> Vec<String> {
    let fixed =
        ["/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"];
    let mut paths: Vec<String> = fixed.iter().map(|p| (*p).to_owned()).collect();
    for row in registry.rows() {
        paths.push(match row.group.is_empty() {
            true => format!("/api/{}", row.version),
            false => format!("/apis/{}/{}", row.group, row.version),
        });
    }
    paths.sort();
    paths.dedup();
    paths
}

async fn resource(server: &Arc<Server>, scope: Scope, asked: pipeline::Asked, request: Request) -> Answer {
    let resource = asked.row.ok_or_else(ApiError::no_such_path)?;
    let read_only = matches!(*request.method(), Method::GET | Method::HEAD);
    let resolved = Resolved {
        resource,
        verb: asked.verb,
        namespace: asked.path.namespace,
        name: asked.path.name,
        subresource: asked.path.subresource,
        user: scope.user,
        notes: scope.notes,
    };
    if read_only {
        return handler::handle(server, resolved, scope.query, request).await;
    }
    // On a task of its own: a client that goes away must not leave a write half done (hooks not told, say).
    let server = server.clone();
    let task = tokio::spawn(async move { handler::handle(&server, resolved, scope.query, request).await });
    match task.await {
        Ok(answer) => answer,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(ApiError::unavailable("the server is shutting down")),
        },
    }
}
