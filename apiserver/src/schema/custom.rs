//! The kinds that `scaleup-api` declares. As custom resources upstream, they have neither a protobuf encoding nor strategic merge.

use scaleup_api::kind::REQUIRED;
use scaleup_api::{gateway, plugin, traffic};
use serde_json::{Map, Value};

use super::roots::{Root, root};
use super::table::{Extra, atomic, field, set};

const GATEWAY: &str = gateway::GROUP;
const TRAFFIC: &str = "traffic.scaleup.dev";
const POLICY: &str = plugin::GROUP;

/// The kinds.
pub const ROOTS: &[Root] = &[
    root::<gateway::BackendTLSPolicy>(GATEWAY, "v1", "BackendTLSPolicy", true),
    root::<gateway::Gateway>(GATEWAY, "v1", "Gateway", true),
    root::<gateway::v1beta1::Gateway>(GATEWAY, "v1beta1", "Gateway", true),
    root::<gateway::GatewayClass>(GATEWAY, "v1", "GatewayClass", true),
    root::<gateway::v1beta1::GatewayClass>(GATEWAY, "v1beta1", "GatewayClass", true),
    root::<gateway::GRPCRoute>(GATEWAY, "v1", "GRPCRoute", true),
    root::<gateway::HTTPRoute>(GATEWAY, "v1", "HTTPRoute", true),
    root::<gateway::v1beta1::HTTPRoute>(GATEWAY, "v1beta1", "HTTPRoute", true),
    root::<gateway::v1::ReferenceGrant>(GATEWAY, "v1", "ReferenceGrant", true),
    root::<gateway::ReferenceGrant>(GATEWAY, "v1beta1", "ReferenceGrant", true),
    root::<gateway::TCPRoute>(GATEWAY, "v1alpha2", "TCPRoute", true),
    root::<gateway::v1::TLSRoute>(GATEWAY, "v1", "TLSRoute", true),
    root::<gateway::v1alpha3::TLSRoute>(GATEWAY, "v1alpha3", "TLSRoute", true),
    root::<gateway::TLSRoute>(GATEWAY, "v1alpha2", "TLSRoute", true),
    root::<gateway::UDPRoute>(GATEWAY, "v1alpha2", "UDPRoute", true),
    root::<traffic::TrafficPolicy>(TRAFFIC, "v1", "TrafficPolicy", true),
    root::<plugin::ClusterWasmPlugin>(POLICY, "v1", "ClusterWasmPlugin", true),
    root::<plugin::WasmModule>(POLICY, "v1", "WasmModule", true),
    root::<plugin::WasmPlugin>(POLICY, "v1", "WasmPlugin", true),
];

/// Lists are replaced whole unless a CRD says otherwise; the key of those that it says are maps.
const BY_NAME: &[&str] = &["name"];
const BY_TYPE: &[&str] = &["type"];

const fn map(name: &'static str, keys: &'static [&'static str]) -> Extra {
    field(name).map_keys(keys)
}

const COMPARISON: Extra = field("type").values(&["Exact", "RegularExpression"]).or(r#""Exact""#);
const GATEWAY_GROUP: Extra = field("group").or(r#""gateway.networking.k8s.io""#);
const CORE_GROUP: Extra = field("group").or(r#""""#);
const SERVICE_KIND: Extra = field("kind").or(r#""Service""#);
const WEIGHT: Extra = field("weight").or("1");
const ON_FAILURE: &[&str] = &["BuiltIn", "Refuse"];
const METHODS: &[&str] = &["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

/// What the types do not say, as the CRDs do.
#[rustfmt::skip]
pub const TABLE: &[(&str, &[Extra])] = &[
    ("io.k8s.networking.gateway.v1.AllowedRoutes", &[atomic("kinds")]),
    ("io.k8s.networking.gateway.v1.BackendObjectReference", &[CORE_GROUP, SERVICE_KIND]),
    ("io.k8s.networking.gateway.v1.BackendRef", &[CORE_GROUP, SERVICE_KIND, WEIGHT]),
    ("io.k8s.networking.gateway.v1.BackendTLSPolicySpec", &[atomic("targetRefs")]),
    ("io.k8s.networking.gateway.v1.BackendTLSPolicyValidation", &[
        atomic("caCertificateRefs"), atomic("subjectAltNames"), field("wellKnownCACertificates").values(&["System"]),
    ]),
    ("io.k8s.networking.gateway.v1.CookieConfig", &[field("lifetimeType").values(&["Permanent", "Session"]).or(r#""Session""#)]),
    ("io.k8s.networking.gateway.v1.Fraction", &[field("denominator").or("100")]),
    ("io.k8s.networking.gateway.v1.GRPCBackendRef", &[CORE_GROUP, SERVICE_KIND, WEIGHT, atomic("filters")]),
    ("io.k8s.networking.gateway.v1.GRPCHeaderMatch", &[COMPARISON]),
    ("io.k8s.networking.gateway.v1.GRPCMethodMatch", &[COMPARISON]),
    ("io.k8s.networking.gateway.v1.GRPCRouteFilter", &[
        field("type").values(&["ExtensionRef", "RequestHeaderModifier", "RequestMirror", "ResponseHeaderModifier"]),
    ]),
    ("io.k8s.networking.gateway.v1.GRPCRouteMatch", &[map("headers", BY_NAME)]),
    ("io.k8s.networking.gateway.v1.GRPCRouteRule", &[atomic("backendRefs"), atomic("filters"), atomic("matches")]),
    ("io.k8s.networking.gateway.v1.GRPCRouteSpec", &[atomic("hostnames"), atomic("parentRefs"), atomic("rules")]),
    ("io.k8s.networking.gateway.v1.GatewayClassStatus", &[map("conditions", BY_TYPE), map("supportedFeatures", BY_NAME)]),
    ("io.k8s.networking.gateway.v1.GatewaySpec", &[atomic("addresses"), map("listeners", BY_NAME)]),
    ("io.k8s.networking.gateway.v1.GatewaySpecAddress", &[field("type").or(r#""IPAddress""#)]),
    ("io.k8s.networking.gateway.v1.GatewayStatus", &[
        atomic("addresses"), map("conditions", BY_TYPE), map("listeners", BY_NAME),
    ]),
    ("io.k8s.networking.gateway.v1.GatewayStatusAddress", &[field("type").or(r#""IPAddress""#)]),
    ("io.k8s.networking.gateway.v1.HTTPBackendRef", &[CORE_GROUP, SERVICE_KIND, WEIGHT, atomic("filters")]),
    ("io.k8s.networking.gateway.v1.HTTPCORSFilter", &[
        set("allowHeaders"), set("allowMethods"), set("allowOrigins"), set("exposeHeaders"), field("maxAge").or("5"),
    ]),
    ("io.k8s.networking.gateway.v1.HTTPHeaderFilter", &[map("add", BY_NAME), set("remove"), map("set", BY_NAME)]),
    ("io.k8s.networking.gateway.v1.HTTPHeaderMatch", &[COMPARISON]),
    ("io.k8s.networking.gateway.v1.HTTPPathMatch", &[
        field("type").values(&["Exact", "PathPrefix", "RegularExpression"]).or(r#""PathPrefix""#), field("value").or(r#""/""#),
    ]),
    ("io.k8s.networking.gateway.v1.HTTPPathModifier", &[field("type").values(&["ReplaceFullPath", "ReplacePrefixMatch"])]),
    ("io.k8s.networking.gateway.v1.HTTPQueryParamMatch", &[COMPARISON]),
    ("io.k8s.networking.gateway.v1.HTTPRequestRedirectFilter", &[
        field("scheme").values(&["http", "https"]), field("statusCode").or("302"),
    ]),
    ("io.k8s.networking.gateway.v1.HTTPRouteFilter", &[
        field("type").values(&[
            "CORS", "ExtensionRef", "RequestHeaderModifier", "RequestMirror", "RequestRedirect", "ResponseHeaderModifier",
            "URLRewrite",
        ]),
    ]),
    ("io.k8s.networking.gateway.v1.HTTPRouteMatch", &[
        map("headers", BY_NAME), field("method").values(METHODS), map("queryParams", BY_NAME),
    ]),
    ("io.k8s.networking.gateway.v1.HTTPRouteRetry", &[atomic("codes")]),
    ("io.k8s.networking.gateway.v1.HTTPRouteRule", &[
        atomic("backendRefs"), atomic("filters"),
        atomic("matches").or(r#"[{"path": {"type": "PathPrefix", "value": "/"}}]"#),
    ]),
    ("io.k8s.networking.gateway.v1.HTTPRouteSpec", &[
        atomic("hostnames"), atomic("parentRefs"),
        atomic("rules").or(r#"[{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}]"#),
    ]),
    ("io.k8s.networking.gateway.v1.Listener", &[field("allowedRoutes").or(r#"{"namespaces": {"from": "Same"}}"#)]),
    ("io.k8s.networking.gateway.v1.ListenerStatus", &[map("conditions", BY_TYPE), atomic("supportedKinds")]),
    ("io.k8s.networking.gateway.v1.ListenerTLSConfig", &[
        atomic("certificateRefs"), field("mode").values(&["Passthrough", "Terminate"]).or(r#""Terminate""#),
    ]),
    ("io.k8s.networking.gateway.v1.ParentReference", &[GATEWAY_GROUP, field("kind").or(r#""Gateway""#)]),
    ("io.k8s.networking.gateway.v1.PolicyAncestorStatus", &[map("conditions", BY_TYPE)]),
    ("io.k8s.networking.gateway.v1.PolicyStatus", &[atomic("ancestors")]),
    ("io.k8s.networking.gateway.v1.ReferenceGrantSpec", &[atomic("from"), atomic("to")]),
    ("io.k8s.networking.gateway.v1.RouteGroupKind", &[GATEWAY_GROUP]),
    ("io.k8s.networking.gateway.v1.RouteNamespaces", &[field("from").values(&["All", "Same", "Selector"]).or(r#""Same""#)]),
    ("io.k8s.networking.gateway.v1.RouteParentStatus", &[map("conditions", BY_TYPE)]),
    ("io.k8s.networking.gateway.v1.RouteStatus", &[atomic("parents")]),
    ("io.k8s.networking.gateway.v1.SecretObjectReference", &[CORE_GROUP, field("kind").or(r#""Secret""#)]),
    ("io.k8s.networking.gateway.v1.SessionPersistence", &[field("type").values(&["Cookie", "Header"]).or(r#""Cookie""#)]),
    ("io.k8s.networking.gateway.v1.SubjectAltName", &[field("type").values(&["Hostname", "URI"])]),
    ("io.k8s.networking.gateway.v1.TCPRouteRule", &[atomic("backendRefs")]),
    ("io.k8s.networking.gateway.v1.TCPRouteSpec", &[atomic("parentRefs"), atomic("rules")]),
    ("io.k8s.networking.gateway.v1.TLSRouteRule", &[atomic("backendRefs")]),
    ("io.k8s.networking.gateway.v1.TLSRouteSpec", &[atomic("hostnames"), atomic("parentRefs"), atomic("rules")]),
    ("io.k8s.networking.gateway.v1.UDPRouteRule", &[atomic("backendRefs")]),
    ("io.k8s.networking.gateway.v1.UDPRouteSpec", &[atomic("parentRefs"), atomic("rules")]),
    ("dev.scaleup.policy.v1.AdmissionBinding", &[atomic("rules")]),
    ("dev.scaleup.policy.v1.AdmissionRule", &[
        atomic("apiGroups"), atomic("apiVersions"),
        atomic("operations").values(&["*", "CREATE", "DELETE", "UPDATE"]), atomic("resources"),
    ]),
    ("dev.scaleup.policy.v1.PluginFailurePolicy", &[
        field("compile").values(ON_FAILURE), field("fetch").values(ON_FAILURE), field("invalidOutput").values(ON_FAILURE),
        field("timeout").values(ON_FAILURE), field("trap").values(ON_FAILURE),
    ]),
    ("dev.scaleup.policy.v1.Recording", &[atomic("plainHeaders")]),
    ("dev.scaleup.policy.v1.Rollout", &[atomic("canary")]),
    ("dev.scaleup.policy.v1.SchedulingBinding", &[atomic("schedulerNames")]),
    ("dev.scaleup.policy.v1.WasmModuleSpec", &[field("origin").values(&["Fetch", "Upload"])]),
    ("dev.scaleup.policy.v1.WasmPluginSpec", &[field("world").values(&plugin::WORLDS)]),
    ("dev.scaleup.policy.v1.WasmPluginStatus", &[map("conditions", BY_TYPE)]),
    ("dev.scaleup.traffic.v1.HealthCheck", &[
        atomic("expectedStatuses"), field("type").values(&["GRPC", "HTTP", "TCP"]),
    ]),
    ("dev.scaleup.traffic.v1.LoadBalancing", &[
        field("algorithm").values(&[
            "LeastConnections", "LeastRequest", "Maglev", "PeakEWMA", "Random", "RingHash", "RoundRobin",
        ]),
        atomic("hashOn"), atomic("weights"),
    ]),
    ("dev.scaleup.traffic.v1.Locality", &[
        field("prefer").values(&["Nearest", "None", "Region", "Zone"]), atomic("regions"),
    ]),
    ("dev.scaleup.traffic.v1.PolicyAncestorStatus", &[map("conditions", BY_TYPE)]),
    ("dev.scaleup.traffic.v1.ProxyProtocol", &[field("send").values(&["V1", "V2"]), atomic("trustedSources")]),
    ("dev.scaleup.traffic.v1.Queue", &[atomic("classes")]),
    ("dev.scaleup.traffic.v1.RateLimit", &[field("per").values(&["ClientIP", "Header", "Target"])]),
    ("dev.scaleup.traffic.v1.Retries", &[
        atomic("retryOn").values(&["5xx", "ConnectFailure", "GatewayError", "NonIdempotent", "Reset", "Timeout"]),
        atomic("statuses"),
    ]),
    ("dev.scaleup.traffic.v1.TrafficPolicySpec", &[atomic("rateLimits"), atomic("targetRefs")]),
    ("dev.scaleup.traffic.v1.TrafficPolicyStatus", &[atomic("ancestors")]),
];

/// Brings a derived schema into k8s-openapi's form: what may be absent is not said to be `null` too, and Rust's defaults are not
/// the API's.
pub fn plain(type_name: &str, schema: &mut Value) {
    let derived = ROOTS.iter().any(|r| r.type_name() == type_name)
        || type_name.starts_with("io.k8s.networking.gateway.")
        || type_name.starts_with("dev.scaleup.");
    if !derived {
        return;
    }
    let mut required = Vec::new();
    for (name, property) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        if property.as_object_mut().and_then(|p| p.remove(REQUIRED)).is_some() {
            required.push(Value::from(name.as_str()));
        }
        plain_property(property);
    }
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    one_line(schema);
}

fn plain_property(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    map.remove("default");
    if let Some(types) = map.get("type").and_then(Value::as_array)
        && let Some(one) = types.iter().find(|t| *t != "null").cloned()
    {
        map.insert("type".into(), one);
    }
    if let Some(Value::Array(choices)) = map.remove("anyOf") {
        let one: Option<Map<String, Value>> =
            choices.into_iter().find_map(|c| c.as_object().filter(|c| c.contains_key("$ref")).cloned());
        map.extend(one.into_iter().flatten());
    }
    // `i32` and the like; bounds are the rules' business.
    if map.get("type").is_some_and(|t| t == "integer") {
        map.remove("minimum");
    }
    for below in ["items", "additionalProperties"] {
        if let Some(below) = map.get_mut(below) {
            plain_property(below);
        }
    }
    one_line(schema);
}

/// Doc comments are broken into lines, descriptions are not.
fn one_line(schema: &mut Value) {
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.replace('\n', " ");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::roots::{definitions, find, find_any};
    use super::*;

    #[test]
    fn derived_schemas_look_like_the_others() {
        let all = definitions(ROOTS.iter());
        let text = serde_json::to_string(&all).unwrap();
        for odd in ["\"null\"", "anyOf", "\"default\":null"] {
            assert!(!text.contains(odd), "{odd}");
        }
        let backend = &all["io.k8s.networking.gateway.v1.HTTPBackendRef"];
        assert_eq!(backend["required"], json!(["name"]));
        assert_eq!(backend["properties"]["weight"]["default"], 1);
        assert_eq!(backend["properties"]["port"]["type"], "integer");
        let route = &all["io.k8s.networking.gateway.v1.HTTPRoute"];
        assert_eq!(route["required"], json!(["spec"]));
        assert_eq!(route["x-kubernetes-group-version-kind"][0]["kind"], "HTTPRoute");
        assert!(route["properties"]["status"]["$ref"].as_str().unwrap().ends_with("v1.RouteStatus"));
        assert!(route["properties"]["metadata"]["$ref"].as_str().unwrap().ends_with("v1.ObjectMeta"));
        let listeners = &all["io.k8s.networking.gateway.v1.GatewaySpec"]["properties"]["listeners"];
        assert_eq!(listeners["x-kubernetes-list-map-keys"], json!(["name"]));
    }

    #[test]
    fn custom_kinds_have_no_encoding_of_upstreams() {
        for root in ROOTS {
            assert!(find(root.group, root.version, root.kind).is_none());
            assert!(find_any(root.group, root.version, root.kind).is_some());
        }
    }
}
