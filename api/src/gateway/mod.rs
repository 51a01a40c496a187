//! `gateway.networking.k8s.io`: the Gateway API as of v1.4, its standard channel, the routes for TLS, TCP and UDP, and of the
//! experimental channel what the load balancer does: retries, session persistence and CORS of HTTPRoutes.
//!
//! Fields that the API server fills (a listener's `allowedRoutes`, a match's `path`, a backend's `weight`, …) are optional here, and whoever
//! reads them treats an absent one as the default that its documentation names. Strings with few allowed values are plain strings: the API server
//! validates them. Durations are written as [`crate::duration`] reads them (GEP-2257).
//!
//! The kinds here are those that are stored; [`v1`] and the like hold the other versions that are served. They differ in `apiVersion` alone.

mod class;
mod common;
mod grpc;
mod http;
mod http_filters;
mod l4;
mod policy;

pub use class::*;
pub use common::*;
pub use grpc::*;
pub use http::*;
pub use http_filters::*;
pub use l4::*;
pub use policy::*;

/// The API group.
pub const GROUP: &str = "gateway.networking.k8s.io";

crate::kind!(
    /// A kind of Gateways that one controller serves; cluster-wide.
    GatewayClass,
    "gateway.networking.k8s.io",
    "v1",
    "gatewayclasses",
    Cluster,
    GatewayClassSpec,
    GatewayClassStatus,
    "io.k8s.networking.gateway.v1.GatewayClass"
);
crate::kind!(
    /// Where traffic enters: addresses and listeners, to which routes attach.
    Gateway,
    "gateway.networking.k8s.io",
    "v1",
    "gateways",
    Namespace,
    GatewaySpec,
    GatewayStatus,
    "io.k8s.networking.gateway.v1.Gateway"
);
crate::kind!(
    /// Which HTTP requests of its parents go where, and what is done to them on the way.
    HTTPRoute,
    "gateway.networking.k8s.io",
    "v1",
    "httproutes",
    Namespace,
    HTTPRouteSpec,
    RouteStatus,
    "io.k8s.networking.gateway.v1.HTTPRoute"
);
crate::kind!(
    /// Which gRPC calls of its parents go where, and what is done to them on the way.
    GRPCRoute,
    "gateway.networking.k8s.io",
    "v1",
    "grpcroutes",
    Namespace,
    GRPCRouteSpec,
    RouteStatus,
    "io.k8s.networking.gateway.v1.GRPCRoute"
);
crate::kind!(
    /// Which TLS connections of its parents go where, by the server name that the client asks for.
    TLSRoute,
    "gateway.networking.k8s.io",
    "v1alpha2",
    "tlsroutes",
    Namespace,
    TLSRouteSpec,
    RouteStatus,
    "io.k8s.networking.gateway.v1alpha2.TLSRoute"
);
crate::kind!(
    /// Where TCP connections of its parents go.
    TCPRoute,
    "gateway.networking.k8s.io",
    "v1alpha2",
    "tcproutes",
    Namespace,
    TCPRouteSpec,
    RouteStatus,
    "io.k8s.networking.gateway.v1alpha2.TCPRoute"
);
crate::kind!(
    /// Where UDP datagrams of its parents go.
    UDPRoute,
    "gateway.networking.k8s.io",
    "v1alpha2",
    "udproutes",
    Namespace,
    UDPRouteSpec,
    RouteStatus,
    "io.k8s.networking.gateway.v1alpha2.UDPRoute"
);
crate::kind!(
    /// Lets objects of other namespaces refer to objects of its own namespace.
    ReferenceGrant,
    "gateway.networking.k8s.io",
    "v1beta1",
    "referencegrants",
    Namespace,
    ReferenceGrantSpec,
    -,
    "io.k8s.networking.gateway.v1beta1.ReferenceGrant"
);
crate::kind!(
    /// How a Gateway speaks TLS to the backends it targets.
    BackendTLSPolicy,
    "gateway.networking.k8s.io",
    "v1",
    "backendtlspolicies",
    Namespace,
    BackendTLSPolicySpec,
    PolicyStatus,
    "io.k8s.networking.gateway.v1.BackendTLSPolicy"
);

/// Kinds that are also served as `v1`.
pub mod v1 {
    use super::{ReferenceGrantSpec, RouteStatus, TLSRouteSpec};

    crate::kind!(
        /// Lets objects of other namespaces refer to objects of its own namespace.
        ReferenceGrant,
        "gateway.networking.k8s.io",
        "v1",
        "referencegrants",
        Namespace,
        ReferenceGrantSpec,
        -,
        "io.k8s.networking.gateway.v1.ReferenceGrant"
    );
    crate::kind!(
        /// Which TLS connections of its parents go where, by the server name that the client asks for.
        TLSRoute,
        "gateway.networking.k8s.io",
        "v1",
        "tlsroutes",
        Namespace,
        TLSRouteSpec,
        RouteStatus,
        "io.k8s.networking.gateway.v1.TLSRoute"
    );
}

/// Kinds that are also served as `v1beta1`.
pub mod v1beta1 {
    use super::{GatewayClassSpec, GatewayClassStatus, GatewaySpec, GatewayStatus, HTTPRouteSpec, RouteStatus};

    crate::kind!(
        /// A kind of Gateways that one controller serves; cluster-wide.
        GatewayClass,
        "gateway.networking.k8s.io",
        "v1beta1",
        "gatewayclasses",
        Cluster,
        GatewayClassSpec,
        GatewayClassStatus,
        "io.k8s.networking.gateway.v1beta1.GatewayClass"
    );
    crate::kind!(
        /// Where traffic enters: addresses and listeners, to which routes attach.
        Gateway,
        "gateway.networking.k8s.io",
        "v1beta1",
        "gateways",
        Namespace,
        GatewaySpec,
        GatewayStatus,
        "io.k8s.networking.gateway.v1beta1.Gateway"
    );
    crate::kind!(
        /// Which HTTP requests of its parents go where, and what is done to them on the way.
        HTTPRoute,
        "gateway.networking.k8s.io",
        "v1beta1",
        "httproutes",
        Namespace,
        HTTPRouteSpec,
        RouteStatus,
        "io.k8s.networking.gateway.v1beta1.HTTPRoute"
    );
}

/// Kinds that are also served as `v1alpha3`.
pub mod v1alpha3 {
    use super::{RouteStatus, TLSRouteSpec};

    crate::kind!(
        /// Which TLS connections of its parents go where, by the server name that the client asks for.
        TLSRoute,
        "gateway.networking.k8s.io",
        "v1alpha3",
        "tlsroutes",
        Namespace,
        TLSRouteSpec,
        RouteStatus,
        "io.k8s.networking.gateway.v1alpha3.TLSRoute"
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_survive_decoding_and_encoding() {
        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "shop"},
            "spec": {"parentRefs": [{"name": "edge"}], "hostnames": ["a.example"], "rules": [{
                "matches": [{"path": {"type": "PathPrefix", "value": "/cart"}, "headers": [{"name": "x", "value": "1"}]}],
                "filters": [{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": ""}}}],
                "backendRefs": [{"name": "cart", "port": 80, "weight": 0, "filters": [{"type": "CORS", "cors": {"allowCredentials": false}}]}],
                "timeouts": {"request": "10s"}, "retry": {"attempts": 0, "codes": [503]},
            }]},
            "status": {"parents": []},
        });
        let decoded: HTTPRoute = serde_json::from_value(route.clone()).expect("a route");
        assert_eq!(serde_json::to_value(&decoded).expect("JSON"), route);
    }

    #[test]
    fn a_kind_may_have_no_status() {
        let grant = serde_json::to_value(ReferenceGrant::default()).expect("JSON");
        assert_eq!(grant["spec"], json!({"from": [], "to": []}));
        assert!(grant.get("status").is_none());
    }
}
