//! GatewayClass and Gateway.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};

use super::common::{LocalObjectReference, ParametersReference, SecretObjectReference};

data!(
    /// Specification of a GatewayClass.
    GatewayClassSpec "io.k8s.networking.gateway.v1.GatewayClassSpec"
    requires {
        /// The controller that serves Gateways of the class, a domain and a path: `scaleup.dev/gateway`. Never changes.
        controller_name: String,
    }
    {
        /// Parameters of the controller.
        parameters_ref: Option<ParametersReference>,
        /// For people; at most 64 characters.
        description: Option<String>,
    }
);

data!(
    /// Observed state of a GatewayClass.
    GatewayClassStatus "io.k8s.networking.gateway.v1.GatewayClassStatus" {
        /// `Accepted`, `SupportedVersion`. At most 8.
        conditions: Vec<Condition>,
        /// Features of the Gateway API that the controller claims, by name. At most 64.
        supported_features: Vec<SupportedFeature>,
    }
);

data!(
    /// A feature that is claimed.
    SupportedFeature "io.k8s.networking.gateway.v1.SupportedFeature"
    requires {
        /// Name in the conformance suite, e.g. `HTTPRouteQueryParamMatching`.
        name: String,
    }
    {}
);

data!(
    /// Specification of a Gateway.
    GatewaySpec "io.k8s.networking.gateway.v1.GatewaySpec"
    requires {
        /// Name of the GatewayClass.
        gateway_class_name: String,
        /// What is listened on, and how. 1 to 64, by name.
        listeners: Vec<Listener>,
    }
    {
        /// Addresses that are asked for; the controller chooses if there are none. At most 16.
        addresses: Vec<GatewaySpecAddress>,
        /// What is put on the objects that a Gateway is made of.
        infrastructure: Option<GatewayInfrastructure>,
    }
);

data!(
    /// A port with a protocol, perhaps for one host name only.
    Listener "io.k8s.networking.gateway.v1.Listener"
    requires {
        /// Name, unique in the Gateway.
        name: String,
        /// Port, 1 to 65535. Several listeners may share one if their host names or protocols tell them apart.
        port: i32,
        /// `HTTP`, `HTTPS`, `TLS`, `TCP` or `UDP`.
        protocol: String,
    }
    {
        /// Host name (HTTP `Host`, TLS server name) that is served, perhaps `*.` and a domain; all if absent. Not with TCP and UDP.
        hostname: Option<String>,
        /// TLS, for `HTTPS` and `TLS`.
        tls: Option<ListenerTLSConfig>,
        /// Which routes may attach.
        allowed_routes: Option<AllowedRoutes>,
    }
);

data!(
    /// TLS of a listener.
    ListenerTLSConfig "io.k8s.networking.gateway.v1.ListenerTLSConfig" {
        /// `Terminate` (default) or `Passthrough` (only with protocol `TLS`).
        mode: Option<String>,
        /// Secrets (`kubernetes.io/tls`) with certificates. At most 64; at least one with `Terminate`, unless there are `options`.
        certificate_refs: Vec<SecretObjectReference>,
        /// Settings of the controller's own. At most 16.
        options: BTreeMap<String, String>,
    }
);

data!(
    /// Which routes may attach to a listener.
    AllowedRoutes "io.k8s.networking.gateway.v1.AllowedRoutes" {
        /// From which namespaces.
        namespaces: Option<RouteNamespaces>,
        /// Of which kinds; those that fit the protocol if empty. At most 8.
        kinds: Vec<RouteGroupKind>,
    }
);

data!(
    /// Namespaces of routes.
    RouteNamespaces "io.k8s.networking.gateway.v1.RouteNamespaces" {
        /// `Same` (default: the Gateway's own), `All` or `Selector`.
        from: Option<String>,
        /// Labels of the namespaces, with `Selector`.
        selector: Option<LabelSelector>,
    }
);

data!(
    /// A kind of routes.
    RouteGroupKind "io.k8s.networking.gateway.v1.RouteGroupKind"
    requires {
        /// Kind, e.g. `HTTPRoute`.
        kind: String,
    }
    {
        /// API group; `gateway.networking.k8s.io` if absent.
        group: Option<String>,
    }
);

data!(
    /// An address that is asked for.
    GatewaySpecAddress "io.k8s.networking.gateway.v1.GatewaySpecAddress" {
        /// `IPAddress` (default), `Hostname`, `NamedAddress` or a name of the controller's own with a domain.
        r#type: Option<String>,
        /// The address; the controller chooses one of the type if it is absent or empty.
        value: Option<String>,
    }
);

data!(
    /// What is put on the objects that a Gateway is made of.
    GatewayInfrastructure "io.k8s.networking.gateway.v1.GatewayInfrastructure" {
        /// Labels. At most 8.
        labels: BTreeMap<String, String>,
        /// Annotations. At most 8.
        annotations: BTreeMap<String, String>,
        /// Parameters of the controller.
        parameters_ref: Option<LocalObjectReference>,
    }
);

data!(
    /// Observed state of a Gateway.
    GatewayStatus "io.k8s.networking.gateway.v1.GatewayStatus" {
        /// Addresses that it is reached at. At most 16.
        addresses: Vec<GatewayStatusAddress>,
        /// `Accepted`, `Programmed`. At most 8.
        conditions: Vec<Condition>,
        /// State of each listener, by name. At most 64.
        listeners: Vec<ListenerStatus>,
    }
);

data!(
    /// An address that a Gateway is reached at.
    GatewayStatusAddress "io.k8s.networking.gateway.v1.GatewayStatusAddress"
    requires {
        /// The address.
        value: String,
    }
    {
        /// `IPAddress` (default), `Hostname` or a name of the controller's own with a domain.
        r#type: Option<String>,
    }
);

data!(
    /// Observed state of a listener.
    ListenerStatus "io.k8s.networking.gateway.v1.ListenerStatus"
    requires {
        /// Name of the listener.
        name: String,
        /// Kinds of routes that it takes. At most 8.
        supported_kinds: Vec<RouteGroupKind>,
        /// How many routes are attached and accepted.
        attached_routes: i32,
        /// `Accepted`, `Programmed`, `ResolvedRefs`, `Conflicted`. At most 8.
        conditions: Vec<Condition>,
    }
    {}
);
