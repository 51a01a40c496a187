//! The generic handler: every verb of every kind, built-in or custom.
//!
//! A request comes here resolved to a row, authenticated and authorized ([`crate::server`]). Reads are answered with the
//! cache's bytes ([`read`], [`watch`]); writes go decode → mutate → default → validate → admit → store ([`write`],
//! [`patch`], [`delete`]). Nothing here knows a kind by name: what differs between kinds is in the row.

pub mod body;
pub mod delete;
mod list_body;
pub mod metadata;
pub mod patch;
pub mod read;
mod scale;
pub mod served;
pub mod storage;
pub mod watch;
pub mod write;

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::{HeaderMap, Request, Response, StatusCode};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::admission::Notes;
use crate::error::ApiError;
use crate::negotiate::{self, Accepted};
use crate::registry::{Resource, Storage, SubresourceKind, Verb};
use crate::request::{Query, WriteOptions};
use crate::server::Draining;
use crate::user::UserInfo;

/// A request that was resolved to a row, authenticated and authorized.
#[derive(Clone)]
pub struct Resolved {
    /// The row.
    pub resource: Arc<Resource>,
    /// Verb as RBAC sees it.
    pub verb: Verb,
    /// Namespace; empty for cluster scope or all namespaces.
    pub namespace: String,
    /// Object name; empty for collections.
    pub name: String,
    /// Subresource, if the path named one.
    pub subresource: Option<String>,
    /// Who asks.
    pub user: Arc<UserInfo>,
    /// What admission has to say beside its verdict.
    pub notes: Arc<Notes>,
}

/// A subresource with behaviour of its own (`pods/binding`, `pods/log`, `serviceaccounts/token`).
#[async_trait]
pub trait SubresourceHandler: Send + Sync + 'static {
    /// Answers the request; authorization for `resource/subresource` is done. Bodies must be read with [`crate::Server::read_body`].
    async fn handle(
        &self,
        server: &Arc<crate::Server>,
        resolved: Resolved,
        request: Request<Body>,
    ) -> Result<Response<Body>, ApiError>;
}

/// A kind that is only computed (`SelfSubjectAccessReview`, `TokenReview`).
#[async_trait]
pub trait VirtualCreate: Send + Sync + 'static {
    /// The answer to `create`; `object` is decoded and defaulted.
    async fn create(&self, server: &Arc<crate::Server>, resolved: &Resolved, object: Value) -> Result<Value, ApiError>;
}

/// Stateful steps around writes of a kind (cluster IP and node port allocation).
#[async_trait]
pub trait WriteHooks: Send + Sync + 'static {
    /// Before validation of a create (`old` is `None`) or update: allocates into `object`. With `dry_run` nothing may be kept.
    async fn before_write(
        &self,
        server: &Arc<crate::Server>,
        object: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<(), ApiError>;
    /// After the write: `new` is what is stored now (`None`: deleted, or the write failed and never happened), `old` what was
    /// stored before, `attempted` what `before_write` produced. Releases what neither holds.
    async fn after_write(
        &self,
        server: &Arc<crate::Server>,
        attempted: Option<&Value>,
        old: Option<&Value>,
        new: Option<&Value>,
    );
}

/// A request in the generic handler.
pub struct Context {
    /// The server.
    pub server: Arc<crate::Server>,
    /// What it asks for, and who asks.
    pub resolved: Resolved,
    /// Its query.
    pub query: Query,
    /// Its headers.
    pub headers: HeaderMap,
    /// The form of the answer.
    pub accepted: Accepted,
    /// Warnings to send with the answer.
    pub warnings: Vec<String>,
    /// Cancelled when long answers must end.
    pub draining: CancellationToken,
}

impl Context {
    /// For work on one object of the same kind, within this request.
    fn for_object(&self, object: &crate::cache::Cached) -> Self {
        let mut resolved = self.resolved.clone();
        resolved.namespace.clone_from(&object.namespace);
        resolved.name.clone_from(&object.name);
        Self::internal(&self.server, resolved)
    }

    /// For a subresource that works on its object (eviction deletes it).
    pub fn internal(server: &Arc<crate::Server>, resolved: Resolved) -> Self {
        Self {
            server: server.clone(),
            resolved,
            query: Query::default(),
            headers: HeaderMap::new(),
            accepted: Accepted::default(),
            warnings: Vec::new(),
            draining: server.stopping.clone(),
        }
    }
}

/// Answers a request on a resource; authorization is done.
pub async fn handle(
    server: &Arc<crate::Server>,
    resolved: Resolved,
    query: Query,
    request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    check_shape(&resolved)?;
    if let Some(name) = &resolved.subresource {
        let subresource = resolved.resource.subresource(name).ok_or_else(ApiError::no_such_path)?.clone();
        if !subresource.verbs.contains(&resolved.verb) {
            return Err(not_allowed(&resolved));
        }
        return match subresource.kind {
            SubresourceKind::Custom(handler) => handler.handle(server, resolved, request).await,
            SubresourceKind::Scale => scale::handle(&mut context(server, resolved, query, &request)?, request).await,
            SubresourceKind::Status => {
                part(&mut context(server, resolved, query, &request)?, write::Part::Status, request).await
            }
            SubresourceKind::Finalize => {
                part(&mut context(server, resolved, query, &request)?, write::Part::Finalize, request).await
            }
        };
    }
    let names_what_it_creates = resolved.verb == Verb::Create && !resolved.name.is_empty();
    if names_what_it_creates || !resolved.resource.verbs.contains(&resolved.verb) {
        return Err(not_allowed(&resolved));
    }
    let verb = resolved.verb;
    let mut cx = context(server, resolved, query, &request)?;
    match verb {
        Verb::Get | Verb::Update | Verb::Patch => part(&mut cx, write::Part::Whole, request).await,
        Verb::List => read::list(&cx).await,
        Verb::Watch => watch::watch(cx).await,
        Verb::Create => create(&mut cx, request).await,
        Verb::Delete => delete::delete(&mut cx, request).await,
        Verb::DeleteCollection => delete::delete_collection(&mut cx, request).await,
    }
}

fn context(
    server: &Arc<crate::Server>,
    resolved: Resolved,
    query: Query,
    request: &Request<Body>,
) -> Result<Context, ApiError> {
    let headers = request.headers().clone();
    let pretty = query.flag("pretty");
    let accepted = negotiate::accept(&headers, pretty)?;
    let draining = request.extensions().get::<Draining>().map_or_else(|| server.stopping.clone(), |d| d.0.clone());
    Ok(Context { server: server.clone(), resolved, query, headers, accepted, warnings: Vec::new(), draining })
}

/// 405 for a verb that the row does not have.
fn not_allowed(resolved: &Resolved) -> ApiError {
    ApiError::method_not_allowed(&resolved.resource.group_resource(), resolved.verb.as_str())
}

/// Whether the path has a namespace where the kind needs one, and none where it must not.
fn check_shape(resolved: &Resolved) -> Result<(), ApiError> {
    let row = &resolved.resource;
    let namespaced_path = !resolved.namespace.is_empty();
    if row.namespaced() {
        match (namespaced_path, resolved.name.is_empty(), resolved.verb) {
            (true, _, _) | (false, true, Verb::List | Verb::Watch) => Ok(()),
            (false, true, _) => Err(not_allowed(resolved)),
            (false, false, _) => Err(ApiError::no_such_path()),
        }
    } else if namespaced_path {
        Err(ApiError::no_such_path())
    } else {
        Ok(())
    }
}

/// GET, PUT and PATCH of an object or of the part of it that a subresource is.
async fn part(cx: &mut Context, part: write::Part, request: Request<Body>) -> Result<Response<Body>, ApiError> {
    match cx.resolved.verb {
        Verb::Get => read::get(cx).await,
        Verb::Update => {
            let options = WriteOptions::parse(&cx.query, "UpdateOptions")?;
            let bytes = cx.server.read_body(request).await?;
            let parsed = body::parse(&cx.headers, &bytes, &cx.resolved.resource.kind)?;
            let row = cx.resolved.resource.clone();
            let object = body::decode(&row, parsed, options.validation, &mut cx.warnings)?;
            write::check_identity(cx, &object)?;
            let done = write::update(cx, part, &options, write::Source::Object(object)).await?;
            served::object(cx, StatusCode::OK, done.json)
        }
        Verb::Patch => {
            let options = WriteOptions::parse(&cx.query, "PatchOptions")?;
            let kind = patch::kind(&cx.headers)?;
            let bytes = cx.server.read_body(request).await?;
            let patch = patch::Patch { kind, bytes };
            let done = write::update(cx, part, &options, write::Source::Patch(patch)).await?;
            served::object(cx, StatusCode::OK, done.json)
        }
        _ => Err(not_allowed(&cx.resolved)),
    }
}

async fn create(cx: &mut Context, request: Request<Body>) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(&cx.query, "CreateOptions")?;
    let bytes = cx.server.read_body(request).await?;
    let row = cx.resolved.resource.clone();
    let parsed = body::parse(&cx.headers, &bytes, &row.kind)?;
    let object = body::decode(&row, parsed, options.validation, &mut cx.warnings)?;
    if let Storage::Virtual(answerer) = &row.storage {
        let object = write::check_virtual(cx, object)?;
        let answer = answerer.create(&cx.server, &cx.resolved, object).await?;
        return served::other(cx, StatusCode::CREATED, &answer);
    }
    let done = write::create(cx, object, &options).await?;
    served::object(cx, StatusCode::CREATED, done.json)
}
