//! TLSRoute, TCPRoute and UDPRoute.

use super::common::{BackendRef, ParentReference};

data!(
    /// Specification of a TLSRoute.
    TLSRouteSpec "io.k8s.networking.gateway.v1.TLSRouteSpec"
    requires {
        /// Where the connections go. One rule; more are accepted in versions before `v1`, and the first one counts.
        rules: Vec<TLSRouteRule>,
    }
    {
        /// Gateways (or their listeners) that the route attaches to. At most 32.
        parent_refs: Vec<ParentReference>,
        /// Server names that the route is for, perhaps `*.` and a domain; those of the listeners if empty. At most 16.
        hostnames: Vec<String>,
    }
);

data!(
    /// Where connections go.
    TLSRouteRule "io.k8s.networking.gateway.v1.TLSRouteRule"
    requires {
        /// Backends, by weight. 1 to 16.
        backend_refs: Vec<BackendRef>,
    }
    {
        /// Name, unique in the route.
        name: Option<String>,
    }
);

data!(
    /// Specification of a TCPRoute.
    TCPRouteSpec "io.k8s.networking.gateway.v1.TCPRouteSpec"
    requires {
        /// Where the connections go. 1 to 16; the first one counts.
        rules: Vec<TCPRouteRule>,
    }
    {
        /// Gateways (or their listeners) that the route attaches to. At most 32.
        parent_refs: Vec<ParentReference>,
    }
);

data!(
    /// Where connections go.
    TCPRouteRule "io.k8s.networking.gateway.v1.TCPRouteRule"
    requires {
        /// Backends, by weight. 1 to 16.
        backend_refs: Vec<BackendRef>,
    }
    {
        /// Name, unique in the route.
        name: Option<String>,
    }
);

data!(
    /// Specification of a UDPRoute.
    UDPRouteSpec "io.k8s.networking.gateway.v1.UDPRouteSpec"
    requires {
        /// Where the datagrams go. 1 to 16; the first one counts.
        rules: Vec<UDPRouteRule>,
    }
    {
        /// Gateways (or their listeners) that the route attaches to. At most 32.
        parent_refs: Vec<ParentReference>,
    }
);

data!(
    /// Where datagrams go.
    UDPRouteRule "io.k8s.networking.gateway.v1.UDPRouteRule"
    requires {
        /// Backends, by weight. 1 to 16.
        backend_refs: Vec<BackendRef>,
    }
    {
        /// Name, unique in the route.
        name: Option<String>,
    }
);
