//! HTTPRoute: which requests, and where to.

use super::common::ParentReference;
use super::http_filters::HTTPRouteFilter;

data!(
    /// Specification of an HTTPRoute.
    HTTPRouteSpec "io.k8s.networking.gateway.v1.HTTPRouteSpec" {
        /// Gateways (or their listeners) that the route attaches to. At most 32.
        parent_refs: Vec<ParentReference>,
        /// Host names that the route is for, perhaps `*.` and a domain; those of the listeners if empty. At most 16.
        hostnames: Vec<String>,
        /// At most 16; by default one that matches everything. Of all rules that match a request the most specific one counts, not the first.
        rules: Vec<HTTPRouteRule>,
    }
);

data!(
    /// What is done with the requests that match.
    HTTPRouteRule "io.k8s.networking.gateway.v1.HTTPRouteRule" {
        /// Name, unique in the route.
        name: Option<String>,
        /// The rule is for requests that match any of these; by default every path. At most 64, and at most 128 in a route.
        matches: Vec<HTTPRouteMatch>,
        /// What is done to requests and responses. At most 16.
        filters: Vec<HTTPRouteFilter>,
        /// Where the requests go, by weight. At most 16; without any, and without a redirect, requests are answered with 500.
        backend_refs: Vec<HTTPBackendRef>,
        /// How long things may take.
        timeouts: Option<HTTPRouteTimeouts>,
        /// When a failed request is sent again.
        retry: Option<HTTPRouteRetry>,
        /// Keeps a client's requests at one endpoint.
        session_persistence: Option<SessionPersistence>,
    }
);

data!(
    /// A condition on requests: everything that is set must hold.
    HTTPRouteMatch "io.k8s.networking.gateway.v1.HTTPRouteMatch" {
        /// Path; everything below `/` if absent.
        path: Option<HTTPPathMatch>,
        /// Headers; all must match. At most 16, each name once.
        headers: Vec<HTTPHeaderMatch>,
        /// Query parameters; all must match. At most 16, each name once.
        query_params: Vec<HTTPQueryParamMatch>,
        /// Method: `GET`, `HEAD`, `POST`, `PUT`, `DELETE`, `CONNECT`, `OPTIONS`, `TRACE` or `PATCH`.
        method: Option<String>,
    }
);

data!(
    /// A condition on the path.
    HTTPPathMatch "io.k8s.networking.gateway.v1.HTTPPathMatch" {
        /// `PathPrefix` (default; whole segments), `Exact` or `RegularExpression`.
        r#type: Option<String>,
        /// Path, at most 1024 characters; `/` if absent.
        value: Option<String>,
    }
);

data!(
    /// A condition on a header.
    HTTPHeaderMatch "io.k8s.networking.gateway.v1.HTTPHeaderMatch"
    requires {
        /// Name; case does not matter.
        name: String,
        /// Value.
        value: String,
    }
    {
        /// `Exact` (default) or `RegularExpression`.
        r#type: Option<String>,
    }
);

data!(
    /// A condition on a query parameter.
    HTTPQueryParamMatch "io.k8s.networking.gateway.v1.HTTPQueryParamMatch"
    requires {
        /// Name; case matters.
        name: String,
        /// Value.
        value: String,
    }
    {
        /// `Exact` (default) or `RegularExpression`.
        r#type: Option<String>,
    }
);

data!(
    /// Where requests go, which share of them, and what is done to those.
    HTTPBackendRef "io.k8s.networking.gateway.v1.HTTPBackendRef"
    requires {
        /// Name of the backend.
        name: String,
    }
    {
        /// API group of the backend; empty (the default) is the core group.
        group: Option<String>,
        /// Kind of the backend; `Service` if absent.
        kind: Option<String>,
        /// Namespace of the backend; the route's own if absent. Another one must allow it by a ReferenceGrant.
        namespace: Option<String>,
        /// Port of the Service (not its target port). Required for a Service.
        port: Option<i32>,
        /// Share of the requests, in proportion to the sum of the weights of the rule's backends. 0 to 1000000, default 1; 0 gets none.
        weight: Option<i32>,
        /// What is done to requests that go here, after the rule's filters. At most 16.
        filters: Vec<HTTPRouteFilter>,
    }
);

data!(
    /// How long things may take; `0s` is no limit.
    HTTPRouteTimeouts "io.k8s.networking.gateway.v1.HTTPRouteTimeouts" {
        /// From the whole request to the whole response, as the client sees it.
        request: Option<String>,
        /// One attempt at one backend. Not longer than `request`.
        backend_request: Option<String>,
    }
);

data!(
    /// When a failed request is sent again.
    HTTPRouteRetry "io.k8s.networking.gateway.v1.HTTPRouteRetry" {
        /// Statuses that are retried, 400 to 599.
        codes: Vec<i32>,
        /// How often.
        attempts: Option<i32>,
        /// Shortest pause before a retry.
        backoff: Option<String>,
    }
);

data!(
    /// Keeps a client's requests at one endpoint.
    SessionPersistence "io.k8s.networking.gateway.v1.SessionPersistence" {
        /// Name of the cookie or header; chosen by the load balancer if absent. At most 128 characters.
        session_name: Option<String>,
        /// A session ends this long after it began.
        absolute_timeout: Option<String>,
        /// A session ends when it was not used for this long.
        idle_timeout: Option<String>,
        /// `Cookie` (default) or `Header`.
        r#type: Option<String>,
        /// More about the cookie.
        cookie_config: Option<CookieConfig>,
    }
);

data!(
    /// Lifetime of the cookie.
    CookieConfig "io.k8s.networking.gateway.v1.CookieConfig" {
        /// `Session` (default: until the browser is closed) or `Permanent` (as long as `absoluteTimeout`, which is then required).
        lifetime_type: Option<String>,
    }
);
