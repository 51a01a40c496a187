//! The Kubernetes objects that traffic is steered by: one table of kinds ([`Object`], [`Kind`]) for watches, tests and the compiler,
//! and [`Objects`], what is kept of them. Never decides anything about traffic.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use scaleup_api::gateway::{
    BackendTLSPolicy, GRPCRoute, Gateway, GatewayClass, HTTPRoute, ReferenceGrant, TCPRoute, TLSRoute, UDPRoute,
};
use scaleup_api::traffic::TrafficPolicy;

use super::ServiceKey;
use super::certificates::StoredSecret;
use super::routes::Challenges;

/// What `kubectl apply` keeps of its input, as long as the object itself.
const ANNOTATION_LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Namespace and name of any object; cluster-wide ones have an empty namespace.
pub type ObjectKey = ServiceKey;

/// The key of an object; `None` when it has no name.
pub(crate) fn object_key(metadata: &ObjectMeta) -> Option<ObjectKey> {
    Some(ObjectKey::new(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref()?))
}

/// Creation time in Unix seconds; objects without one are the youngest.
pub(crate) fn created(metadata: &ObjectMeta) -> i64 {
    metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second())
}

macro_rules! kinds {
    ($($kind:ident),* $(,)?) => {
        /// An object of any kind that steers traffic.
        #[derive(Clone, Debug)]
        pub enum Object {
            $(#[allow(missing_docs)] $kind(Box<$kind>),)*
        }

        /// The kinds of [`Object`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $(#[allow(missing_docs)] $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// As in `kind:`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => stringify!($kind),)*
                }
            }
        }

        impl Object {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                }
            }

            /// Its metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self {
                    $(Self::$kind(object) => &object.metadata,)*
                }
            }

            /// Drops what only servers and clients need, and the room to spare of lists and texts: those of a decoded object have several times
            /// what they need.
            pub(crate) fn strip(&mut self) {
                let metadata = match self {
                    $(Self::$kind(object) => &mut object.metadata,)*
                };
                metadata.managed_fields = None;
                if let Some(annotations) = &mut metadata.annotations {
                    annotations.remove(ANNOTATION_LAST_APPLIED);
                }
                // A copy has none.
                *self = self.clone();
            }

            /// From JSON with `kind`; `None` if the kind is not one of these.
            pub fn from_value(value: serde_json::Value) -> Option<Result<Self, serde_json::Error>> {
                match value.get("kind").and_then(serde_json::Value::as_str)? {
                    $(stringify!($kind) => Some(serde_json::from_value::<$kind>(value).map(Self::from)),)*
                    _ => None,
                }
            }
        }

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Box::new(object))
            }
        })*
    };
}

kinds!(
    Service,
    EndpointSlice,
    Node,
    Namespace,
    IngressClass,
    Ingress,
    GatewayClass,
    Gateway,
    HTTPRoute,
    GRPCRoute,
    TLSRoute,
    TCPRoute,
    UDPRoute,
    ReferenceGrant,
    BackendTLSPolicy,
    TrafficPolicy,
    Secret,
    ConfigMap,
);

/// Kinds of objects that send traffic to Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the kind of its name")]
pub enum RouteKind {
    Ingress,
    HTTPRoute,
    GRPCRoute,
    TLSRoute,
    TCPRoute,
    UDPRoute,
}

impl RouteKind {
    /// As in `kind:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::HTTPRoute => "HTTPRoute",
            Self::GRPCRoute => "GRPCRoute",
            Self::TLSRoute => "TLSRoute",
            Self::TCPRoute => "TCPRoute",
            Self::UDPRoute => "UDPRoute",
        }
    }
}

/// Kind, namespace and name of a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Kind.
    pub kind: RouteKind,
    /// Namespace and name.
    pub key: ObjectKey,
}

/// A route of any kind.
#[derive(Clone, Debug)]
pub(crate) enum Route {
    Ingress(Box<Ingress>),
    Http(Box<HTTPRoute>),
    Grpc(Box<GRPCRoute>),
    Tls(Box<TLSRoute>),
    Tcp(Box<TCPRoute>),
    Udp(Box<UDPRoute>),
}

impl Route {
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Ingress(route) => &route.metadata,
            Self::Http(route) => &route.metadata,
            Self::Grpc(route) => &route.metadata,
            Self::Tls(route) => &route.metadata,
            Self::Tcp(route) => &route.metadata,
            Self::Udp(route) => &route.metadata,
        }
    }
}

/// A route as it is kept. There may be thousands of those for HTTP, of which hardly any is looked at again: they stay serialized, which
/// takes a third of the memory.
#[derive(Debug)]
pub(crate) enum StoredRoute {
    Whole(Route),
    Packed(RouteKind, Box<[u8]>),
}

impl StoredRoute {
    /// Keeps a route.
    pub fn new(route: Route) -> Self {
        let packed = match &route {
            Route::Http(route) => serde_json::to_vec(route).map(|json| (RouteKind::HTTPRoute, json)),
            Route::Grpc(route) => serde_json::to_vec(route).map(|json| (RouteKind::GRPCRoute, json)),
            Route::Ingress(_) | Route::Tls(_) | Route::Tcp(_) | Route::Udp(_) => return Self::Whole(route),
        };
        // Types of the API can be written.
        packed.map_or(Self::Whole(route), |(kind, json)| Self::Packed(kind, json.into()))
    }

    /// The route. `None` never happens: what was written here can be read.
    pub fn open(&self) -> Option<Cow<'_, Route>> {
        Some(match self {
            Self::Whole(route) => Cow::Borrowed(route),
            Self::Packed(RouteKind::GRPCRoute, json) => Cow::Owned(Route::Grpc(serde_json::from_slice(json).ok()?)),
            Self::Packed(_, json) => Cow::Owned(Route::Http(serde_json::from_slice(json).ok()?)),
        })
    }
}

/// What matters of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub zone: Option<Arc<str>>,
    pub region: Option<Arc<str>>,
}

/// What is kept of the objects besides Services and their slices.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub services: BTreeMap<ObjectKey, Box<Service>>,
    pub nodes: BTreeMap<Arc<str>, NodeFacts>,
    pub namespaces: BTreeMap<Arc<str>, BTreeMap<String, String>>,
    pub ingress_classes: BTreeMap<ObjectKey, Box<IngressClass>>,
    pub gateway_classes: BTreeMap<ObjectKey, Box<GatewayClass>>,
    pub gateways: BTreeMap<ObjectKey, Box<Gateway>>,
    pub routes: BTreeMap<RouteKey, StoredRoute>,
    pub grants: BTreeMap<ObjectKey, Box<ReferenceGrant>>,
    pub tls_policies: BTreeMap<ObjectKey, Box<BackendTLSPolicy>>,
    pub policies: BTreeMap<ObjectKey, Box<TrafficPolicy>>,
    pub secrets: BTreeMap<ObjectKey, StoredSecret>,
    /// Answers to ACME challenges, from the ConfigMap in which they are published.
    pub challenges: Arc<Challenges>,
    /// `ca.crt` of the ConfigMaps that have one.
    pub bundles: BTreeMap<ObjectKey, Arc<[u8]>>,
}

impl Objects {
    /// The key of a Service; that of one that is there shares its text.
    pub fn service_key(&self, namespace: &str, name: &str) -> ServiceKey {
        let key = ServiceKey::new(namespace, name);
        self.services.get_key_value(&key).map_or(key, |(known, _)| known.clone())
    }
}
