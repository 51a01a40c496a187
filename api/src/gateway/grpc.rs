//! GRPCRoute.

use super::common::{LocalObjectReference, ParentReference};
use super::http::SessionPersistence;
use super::http_filters::{HTTPHeaderFilter, HTTPRequestMirrorFilter};

data!(
    /// Specification of a GRPCRoute.
    GRPCRouteSpec "io.k8s.networking.gateway.v1.GRPCRouteSpec" {
        /// Gateways (or their listeners) that the route attaches to. At most 32.
        parent_refs: Vec<ParentReference>,
        /// Host names that the route is for, perhaps `*.` and a domain; those of the listeners if empty. At most 16.
        hostnames: Vec<String>,
        /// At most 16. Of all rules that match a call the most specific one counts, not the first.
        rules: Vec<GRPCRouteRule>,
    }
);

data!(
    /// What is done with the calls that match.
    GRPCRouteRule "io.k8s.networking.gateway.v1.GRPCRouteRule" {
        /// Name, unique in the route.
        name: Option<String>,
        /// The rule is for calls that match any of these; all if empty. At most 64, and at most 128 in a route.
        matches: Vec<GRPCRouteMatch>,
        /// What is done to calls and responses. At most 16.
        filters: Vec<GRPCRouteFilter>,
        /// Where the calls go, by weight. At most 16; without any, calls are answered with `UNAVAILABLE`.
        backend_refs: Vec<GRPCBackendRef>,
        /// Keeps a client's calls at one endpoint.
        session_persistence: Option<SessionPersistence>,
    }
);

data!(
    /// A condition on calls: everything that is set must hold.
    GRPCRouteMatch "io.k8s.networking.gateway.v1.GRPCRouteMatch" {
        /// Service and method; all if absent.
        method: Option<GRPCMethodMatch>,
        /// Headers (metadata); all must match. At most 16, each name once.
        headers: Vec<GRPCHeaderMatch>,
    }
);

data!(
    /// A condition on service and method. At least one of the two is set.
    GRPCMethodMatch "io.k8s.networking.gateway.v1.GRPCMethodMatch" {
        /// `Exact` (default) or `RegularExpression`.
        r#type: Option<String>,
        /// Service with its package, e.g. `shop.v1.Cart`; all if absent.
        service: Option<String>,
        /// Method; all if absent.
        method: Option<String>,
    }
);

data!(
    /// A condition on a header.
    GRPCHeaderMatch "io.k8s.networking.gateway.v1.GRPCHeaderMatch"
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
    /// One thing that is done to calls or responses: `type` and the field of that name.
    GRPCRouteFilter "io.k8s.networking.gateway.v1.GRPCRouteFilter"
    requires {
        /// `RequestHeaderModifier`, `ResponseHeaderModifier`, `RequestMirror` or `ExtensionRef`.
        r#type: String,
    }
    {
        /// Changes headers of the call.
        request_header_modifier: Option<HTTPHeaderFilter>,
        /// Changes headers of the response.
        response_header_modifier: Option<HTTPHeaderFilter>,
        /// Sends a copy of the call elsewhere and ignores the answer. May be repeated.
        request_mirror: Option<HTTPRequestMirrorFilter>,
        /// A filter of the controller's own.
        extension_ref: Option<LocalObjectReference>,
    }
);

data!(
    /// Where calls go, which share of them, and what is done to those.
    GRPCBackendRef "io.k8s.networking.gateway.v1.GRPCBackendRef"
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
        /// Share of the calls, in proportion to the sum of the weights of the rule's backends. 0 to 1000000, default 1; 0 gets none.
        weight: Option<i32>,
        /// What is done to calls that go here, after the rule's filters. At most 16.
        filters: Vec<GRPCRouteFilter>,
    }
);
