//! The API for roles in the same process: no sockets, no TLS, the same semantics, the same authorization.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use http::{Request, Response};
use tower::Service;

use crate::auth::InProcessUser;
use crate::user::UserInfo;

/// A service whose requests are one user's. Cheap to clone.
#[derive(Clone)]
pub struct InProcess {
    router: Router,
    user: InProcessUser,
}

impl InProcess {
    pub(super) fn new(router: Router, user: UserInfo) -> Self {
        Self { router, user: InProcessUser(Arc::new(user)) }
    }
}

impl<B> Service<Request<B>> for InProcess
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = axum::routing::future::RouteFuture<Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.user.clone());
        self.router.call(request)
    }
}
