//! What happens to every request, whatever it asks for: resolve, limit, authenticate, authorize, answer, count, audit.
//!
//! A panic in an answer is caught here and becomes a 500; nothing else in the server catches panics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use futures::FutureExt;
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Response};
use k8s_openapi::jiff::Timestamp;
use tracing::error;

use super::{PeerAddress, Server};
use crate::admission::Notes;
use crate::audit::{Record, is_logged};
use crate::auth::rbac::{Attributes, Decision};
use crate::auth::{InProcessUser, PeerCertificate};
use crate::error::ApiError;
use crate::handler::served::add_warnings;
use crate::metrics::RequestLabels;
use crate::registry::{Resource, Verb};
use crate::request::{Query, ResourcePath, Target, resolve, verb};
use crate::user::UserInfo;

/// Longest time for an answer, watches and streams aside; as upstream's `--request-timeout`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Subresources whose answers last as long as the client likes.
const LONG_RUNNING: [&str; 4] = ["log", "exec", "attach", "portforward"];
/// Paths that anybody may read, and everything below them.
const OPEN_PATHS: [&str; 4] = ["/livez", "/readyz", "/healthz", "/version"];

/// What the pipeline found out, for the answering part.
#[derive(Clone)]
pub struct Scope {
    /// Who asks.
    pub user: Arc<UserInfo>,
    /// What for, if it is a resource.
    pub asked: Option<Asked>,
    /// The query.
    pub query: Query,
    /// What admission has to say beside its verdict.
    pub notes: Arc<Notes>,
}

/// A request on a resource.
#[derive(Clone)]
pub struct Asked {
    /// The path.
    pub path: ResourcePath,
    /// The verb.
    pub verb: Verb,
    /// The row, if there is such a kind.
    pub row: Option<Arc<Resource>>,
}

/// The middleware around every route.
pub async fn run(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response<Body> {
    let started = Instant::now();
    let received = server.audit.as_ref().map(|_| Timestamp::now());
    let target = resolve(request.uri().path());
    let about = About::new(&server, &request, target);
    let (user, mut response) = match authenticate(&server, request) {
        Ok((user, request)) => {
            let response = admitted(&server, &about, &user, request, next).await;
            (user, response.unwrap_or_else(|error| render(&error)))
        }
        Err(error) => (Arc::new(UserInfo::anonymous()), render(&error)),
    };
    if response.status() == http::StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static(crate::auth::WWW_AUTHENTICATE);
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    add_warnings(&mut response, &about.notes.take_warnings());
    let took = (!about.long_running).then(|| started.elapsed());
    server.metrics.answered(&about.labels, response.status().as_u16(), took);
    if let (Some(audit), Some(received)) = (&server.audit, received)
        && is_logged(&user, about.in_process, about.read_only, about.target_path.is_some())
    {
        audit.log(about.record(user, response.status().as_u16(), received));
    }
    response
}

/// What is known about a request from its head alone.
struct About {
    target: Target,
    target_path: Option<ResourcePath>,
    query: Result<Query, ApiError>,
    asked: Option<Asked>,
    long_running: bool,
    read_only: bool,
    in_process: bool,
    labels: RequestLabels,
    method: Method,
    uri: String,
    user_agent: String,
    source: Option<std::net::SocketAddr>,
    notes: Arc<Notes>,
}

impl About {
    fn new(server: &Server, request: &Request, target: Target) -> Self {
        let query = Query::parse(request.uri().query());
        let target_path = match &target {
            Target::Resource(path) => Some(path.clone()),
            _ => None,
        };
        let asked = target_path.as_ref().and_then(|path| {
            let verb = verb(request.method(), path, query.as_ref().unwrap_or(&Query::default()))?;
            let row = server.registry.load().find(&path.group, &path.version, &path.resource).cloned();
            Some(Asked { path: path.clone(), verb, row })
        });
        let subresource = target_path.as_ref().and_then(|p| p.subresource.as_deref()).unwrap_or_default();
        let watch = asked.as_ref().is_some_and(|a| a.verb == Verb::Watch);
        let in_process = request.extensions().get::<InProcessUser>().is_some();
        let header = |name| request.headers().get(name).and_then(|v: &HeaderValue| v.to_str().ok());
        // Only requests that may be logged pay for copies.
        let logged = server.audit.is_some();
        Self {
            long_running: watch || LONG_RUNNING.contains(&subresource),
            read_only: matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS),
            in_process,
            labels: labels(request, asked.as_ref()),
            method: request.method().clone(),
            uri: if logged { path_and_query(request) } else { String::new() },
            user_agent: if logged { header(USER_AGENT).unwrap_or_default().to_owned() } else { String::new() },
            source: request.extensions().get::<PeerAddress>().map(|p| p.0),
            target,
            target_path,
            query,
            asked,
            notes: Arc::default(),
        }
    }

    fn record(&self, user: Arc<UserInfo>, code: u16, received: Timestamp) -> Record {
        Record {
            user,
            verb: self.asked.as_ref().map_or(method_verb(&self.method), |a| a.verb.as_str()),
            uri: self.uri.clone(),
            target: self.target_path.clone(),
            source: self.source,
            user_agent: self.user_agent.clone(),
            code,
            annotations: self.notes.take_annotations(),
            started: self.long_running,
            received,
            answered: Timestamp::now(),
        }
    }
}

/// Without scheme and host, which HTTP/2 clients send along.
fn path_and_query(request: &Request) -> String {
    request.uri().path_and_query().map(ToString::to_string).unwrap_or_default()
}

/// The RBAC verb of a request that is not about a resource.
fn method_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "other",
    }
}

fn labels(request: &Request, asked: Option<&Asked>) -> RequestLabels {
    let verb = match (asked.map(|a| a.verb), request.method()) {
        (Some(Verb::List), _) => "LIST",
        (Some(Verb::Watch), _) => "WATCH",
        (Some(Verb::DeleteCollection), _) => "DELETECOLLECTION",
        (_, &Method::GET) => "GET",
        (_, &Method::POST) => "POST",
        (_, &Method::PUT) => "PUT",
        (_, &Method::PATCH) => "PATCH",
        (_, &Method::DELETE) => "DELETE",
        _ => "OTHER",
    };
    let Some((asked, row)) = asked.and_then(|a| a.row.as_ref().map(|row| (a, row))) else {
        let known = ["livez", "readyz", "healthz", "version", "metrics", "lb", "plugins", "api", "apis", "openapi"];
        let first = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
        let subresource = known.into_iter().find(|k| *k == first).unwrap_or_default();
        return RequestLabels { verb, group: "".into(), resource: "".into(), subresource };
    };
    let subresource = asked.path.subresource.as_deref().and_then(|s| row.subresource(s)).map_or("", |s| s.name);
    RequestLabels { verb, group: row.group.clone(), resource: row.plural.clone(), subresource }
}

fn authenticate(server: &Server, request: Request) -> Result<(Arc<UserInfo>, Request), ApiError> {
    let (parts, body) = request.into_parts();
    let peer = parts.extensions.get::<PeerCertificate>();
    let user = server.authenticator.authenticate(&parts, peer)?;
    Ok((user, Request::from_parts(parts, body)))
}

/// Authorizes, takes a place among the requests in flight, and answers.
async fn admitted(
    server: &Arc<Server>,
    about: &About,
    user: &Arc<UserInfo>,
    mut request: Request,
    next: Next,
) -> Result<Response<Body>, ApiError> {
    if about.asked.is_some() {
        server.caches.see_own_writes().await;
    }
    authorize(server, about, user, request.uri().path())?;
    if about.target == Target::Malformed {
        return Err(ApiError::no_such_path());
    }
    if let Target::Resource(_) = about.target
        && about.asked.is_none()
    {
        let mut error = ApiError::bad_request("the server does not allow this method on the requested resource");
        (error.code, error.reason) = (http::StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed");
        return Err(error);
    }
    let query = about.query.clone()?;
    request.extensions_mut().insert(Scope {
        user: user.clone(),
        asked: about.asked.clone(),
        query,
        notes: about.notes.clone(),
    });
    if about.long_running {
        let counted = server.metrics.long_running();
        return Ok(caught(server, next.run(request)).await?.map(|body| Body::new(Guarded { body, _counted: counted })));
    }
    let open = OPEN_PATHS.iter().any(|p| is_below(about.path(), p));
    let _place = match server.in_flight.try_acquire() {
        Ok(place) => Some(place),
        // The platform's own roles are bounded by themselves, and health must be answered under load above all.
        Err(_) if about.in_process || open => None,
        Err(_) => {
            server.metrics.rejected.inc();
            return Err(ApiError::too_many_requests("Too many requests, please try again later.", 1));
        }
    };
    let _counted = server.metrics.in_flight(!about.read_only);
    match tokio::time::timeout(REQUEST_TIMEOUT, caught(server, next.run(request))).await {
        Ok(response) => response,
        Err(_) => Err(ApiError::timeout("request did not complete within the allotted timeout")),
    }
}

impl About {
    /// The first segment of a path that is no resource, with its slash.
    fn path(&self) -> &str {
        match self.labels.subresource {
            "livez" => "/livez",
            "readyz" => "/readyz",
            "healthz" => "/healthz",
            "version" => "/version",
            _ => "",
        }
    }
}

fn is_below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn authorize(server: &Server, about: &About, user: &UserInfo, path: &str) -> Result<(), ApiError> {
    let mut attributes = Attributes::of(user);
    let field_selector = about.query.as_ref().map(|q| q.get("fieldSelector")).unwrap_or_default();
    match &about.asked {
        Some(asked) => {
            attributes.verb = asked.verb.as_str();
            attributes.group = &asked.path.group;
            attributes.resource = &asked.path.resource;
            attributes.subresource = asked.path.subresource.as_deref().unwrap_or_default();
            attributes.name = &asked.path.name;
            // As upstream's RequestInfo: a namespace is in itself.
            let is_namespace = asked.path.resource == "namespaces" && asked.path.group.is_empty();
            attributes.namespace = if is_namespace { &asked.path.name } else { &asked.path.namespace };
            attributes.field_selector = field_selector;
        }
        None if OPEN_PATHS.iter().any(|p| is_below(path, p)) => return Ok(()),
        None => {
            attributes.verb = method_verb(&about.method);
            attributes.path = path;
        }
    }
    match server.authorizer.authorize(&attributes) {
        Decision::Allow => Ok(()),
        Decision::Deny { reason } => Err(attributes.forbidden_error(&reason)),
    }
}

/// Runs an answer; a panic in it is logged and becomes a 500.
async fn caught(server: &Server, answer: impl Future<Output = Response<Body>>) -> Result<Response<Body>, ApiError> {
    match AssertUnwindSafe(answer).catch_unwind().await {
        Ok(response) => Ok(response),
        Err(panic) => {
            server.metrics.panics.inc();
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            error!(panic = %text, "a request handler panicked; please report this");
            Err(ApiError::internal("the request handler failed; see the server's log"))
        }
    }
}

/// A `Status` answer.
pub fn render(error: &ApiError) -> Response<Body> {
    let mut response = Response::new(Body::from(error.to_status().to_string()));
    *response.status_mut() = error.code;
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = error.details.as_ref().map(|d| d.retry_after_s).filter(|s| *s > 0) {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// A body that counts as a long-running request until it is dropped.
struct Guarded {
    body: Body,
    _counted: crate::metrics::InFlight,
}

impl axum::body::HttpBody for Guarded {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}
