//! TrafficPolicies: every field is checked.

use scaleup_api::traffic::TrafficPolicy;
use serde_json::json;

use super::super::custom::CustomRules;
use super::super::field::test::*;
use super::*;
use crate::registry::{AnyRules, RuleContext, Typed};

const RULES: fn() -> CustomRules<TrafficPolicy> = CustomRules::new;
const TARGETS: &str = "targetRefs: [{kind: Service, name: web}]";

fn policy(spec: &str) -> String {
    format!("{{metadata: {{name: a}}, spec: {{{TARGETS}, {spec}}}}}")
}

/// A policy with this beside its target gives exactly these messages.
#[track_caller]
fn check(spec: &str, expected: &[&str]) {
    let expected: Vec<String> = expected.iter().map(|e| format!("spec.{e}")).collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    if expected.is_empty() {
        assert_eq!(create(RULES(), &policy(spec)).err(), None, "{spec}");
    } else {
        refused(RULES(), &policy(spec), &expected);
    }
}

#[test]
fn everything_at_once_is_accepted_and_kept() {
    let text = policy(
        "loadBalancing: {algorithm: RingHash, hashOn: [{header: X-User}, {cookie: {name: s, path: /, ttl: 1h}}, {queryParam: q}, {sourceIp: true}], boundedLoadPercent: 125, weights: [{zone: a, weight: 0}], locality: {prefer: Nearest, spilloverPercent: 50, regions: [{name: eu, latitude: '50.11', longitude: '-8.6'}]}, slowStart: {window: 30s, minPercent: 1}}, \
         healthCheck: {path: '/healthz?x=1', host: 'a.example:8080', expectedStatuses: ['200', 300-399], interval: 100ms, timeout: 1s, healthyThreshold: 1, unhealthyThreshold: 1}, \
         outlierDetection: {consecutiveErrors: 0, failurePercent: 50, interval: 10s, baseEjectionTime: 30s, maxEjectionTime: 5m, maxEjectedPercent: 0, panicPercent: 0}, \
         retries: {attempts: 0, retryOn: [5xx, Timeout], statuses: [429], perTryTimeout: 1s, backoff: 25ms, budgetPercent: 0, minPerSecond: 0}, hedging: {delay: 1ms, maxExtra: 4}, \
         circuitBreaker: {maxRequests: 1, maxConnections: 1, maxPerEndpoint: 1, maxRetries: 0}, queue: {maxDepth: 1, timeout: 1s, classes: [{name: gold, header: {name: X-Tier, value: gold}, pathPrefix: /pay}]}, \
         rateLimits: [{name: all, requests: 10}, {per: Header, header: X-Key, requests: 1, interval: 1m, burst: 5, shared: true}], timeouts: {request: 0s, connect: 2s}, limits: {maxRequestBodyBytes: 0}, \
         proxyProtocol: {accept: true, trustedSources: [10.0.0.0/8], send: V2}, upstreamTls: {hostname: a.example, caConfigMap: ca, clientCertificateSecret: c}, accessLog: {samplePercent: 0}, \
         policyRef: {kind: ClusterWasmPlugin, name: canary, headers: [X-User, cookie]}",
    );
    let stored = create(RULES(), &text).expect("valid");
    assert_eq!(stored["spec"], yaml(&text)["spec"]);
}

#[test]
fn targets() {
    let check = |targets: &str, expected: &[&str]| {
        let text = format!("{{metadata: {{name: a}}, spec: {{targetRefs: {targets}}}}}");
        let expected: Vec<String> = expected.iter().map(|e| format!("spec.targetRefs{e}")).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        match expected.as_slice() {
            [] => assert_eq!(create(RULES(), &text).err(), None, "{targets}"),
            expected => refused(RULES(), &text, expected),
        }
    };
    check(
        "[{group: gateway.networking.k8s.io, kind: Gateway, name: g, sectionName: https}, {group: networking.k8s.io, kind: Ingress, name: i}]",
        &[],
    );
    check("[]", &[": Required value"]);
    check(
        "[{kind: Pod, name: a}, {kind: Gateway, name: a}, {group: networking.k8s.io, kind: Ingress, name: '../x', sectionName: a}]",
        &[
            "[0].kind: Unsupported value: \"Pod\": supported values: \"Service\", \"Ingress\", \"Gateway\", \"HTTPRoute\", \"GRPCRoute\", \"TLSRoute\", \"TCPRoute\", \"UDPRoute\"",
            "[1].group: Unsupported value: \"\": supported values: \"gateway.networking.k8s.io\"",
            "[2].name: Invalid value: \"../x\": may not contain '/'",
            "[2].sectionName: Forbidden: Ingress has no sections",
        ],
    );
    check(
        "[{kind: Service, name: a}, {kind: Service, name: a, sectionName: http}]",
        &[
            "[1]: Invalid value: \"a\": sectionName must be specified when targetRefs includes 2 or more references to the same target",
        ],
    );
    let many: Vec<String> = (0..17).map(|i| format!("{{kind: Service, name: s{i}}}")).collect();
    check(&format!("[{}]", many.join(", ")), &[": Too many: 17: must have at most 16 items"]);
}

#[test]
fn balancing() {
    check("loadBalancing: {algorithm: Maglev}", &[]);
    let hash = "may only be specified when `algorithm` is 'RingHash' or 'Maglev'";
    check(
        "loadBalancing: {algorithm: Fastest, hashOn: [{header: a}], boundedLoadPercent: 99}",
        &[
            "loadBalancing.algorithm: Unsupported value: \"Fastest\": supported values: \"LeastConnections\", \"LeastRequest\", \"Maglev\", \"PeakEWMA\", \"Random\", \"RingHash\", \"RoundRobin\"",
            &format!("loadBalancing.hashOn: Forbidden: {hash}"),
            &format!("loadBalancing.boundedLoadPercent: Forbidden: {hash}"),
            "loadBalancing.boundedLoadPercent: Invalid value: 99: must be between 100 and 1000, inclusive",
        ],
    );
    check(
        "loadBalancing: {algorithm: RingHash, hashOn: [{}, {header: a, sourceIp: true}, {cookie: {name: 'a=b', path: '/;x', ttl: soon}}]}",
        &[
            "loadBalancing.hashOn[0]: Required value: exactly one of header, cookie, queryParam and sourceIp",
            "loadBalancing.hashOn[1]: Forbidden: exactly one of header, cookie, queryParam and sourceIp may be specified",
            &format!(
                "loadBalancing.hashOn[2].cookie.name: Invalid value: \"a=b\": {}",
                text::token("a=b").expect_err("bad")
            ),
            "loadBalancing.hashOn[2].cookie.path: Invalid value: \"/;x\": must be an absolute path without ';' (e.g. '/shop')",
            &format!("loadBalancing.hashOn[2].cookie.ttl: Invalid value: \"soon\": {DURATION}"),
        ],
    );
    check(
        "loadBalancing: {weights: [{weight: 1}, {address: x, weight: 1001}], locality: {prefer: Nearest, spilloverPercent: 0}, slowStart: {window: 16m, minPercent: 0}}",
        &[
            "loadBalancing.weights[0]: Required value: at least one of zone, node and address",
            "loadBalancing.weights[1].address: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            "loadBalancing.weights[1].weight: Invalid value: 1001: must be between 0 and 1000, inclusive",
            "loadBalancing.locality.spilloverPercent: Invalid value: 0: must be between 1 and 100, inclusive",
            "loadBalancing.locality.regions: Required value: must be specified when `prefer` is 'Nearest'",
            "loadBalancing.slowStart.window: Invalid value: \"16m\": must be at most 900s",
            "loadBalancing.slowStart.minPercent: Invalid value: 0: must be between 1 and 100, inclusive",
        ],
    );
    check(
        "loadBalancing: {locality: {regions: [{name: a, latitude: '91', longitude: 'nan'}, {name: a, longitude: '1e2', latitude: '0'}]}}",
        &[
            "loadBalancing.locality.regions[0].latitude: Invalid value: \"91\": must be a decimal number between -90 and 90",
            "loadBalancing.locality.regions[0].longitude: Invalid value: \"nan\": must be a decimal number between -180 and 180",
            "loadBalancing.locality.regions[1].name: Duplicate value: \"a\"",
            "loadBalancing.locality.regions[1].longitude: Invalid value: \"1e2\": must be a decimal number between -180 and 180",
        ],
    );
}

const DURATION: &str = "must be a duration: one to four numbers with a unit of h, m, s or ms (e.g. '1m30s')";

#[test]
fn health() {
    check("healthCheck: {type: GRPC, grpcService: a.B}", &[]);
    check(
        "healthCheck: {type: TCP, path: /, host: a, grpcService: a, expectedStatuses: ['200']}",
        &[
            "healthCheck.path: Forbidden: may only be specified when `type` is HTTP",
            "healthCheck.expectedStatuses: Forbidden: may only be specified when `type` is HTTP",
            "healthCheck.host: Forbidden: may only be specified when `type` is HTTP or GRPC",
            "healthCheck.grpcService: Forbidden: may only be specified when `type` is GRPC",
        ],
    );
    let status = "must be a status between 100 and 599 or a range (e.g. '200-299')";
    check(
        "healthCheck: {path: \"/ HTTP/1.1\\r\\n\", host: 'a:0', port: 0, expectedStatuses: ['99', 299-200, '+20', 200-600], interval: 99ms, timeout: 0s, healthyThreshold: 0}",
        &[
            "healthCheck.path: Invalid value: \"/ HTTP/1.1\\r\\n\": must be an absolute path without spaces (e.g. '/healthz')",
            "healthCheck.host: Invalid value: \"a:0\": must end with a port between 1 and 65535, or have none",
            "healthCheck.port: Invalid value: 0: must be between 1 and 65535, inclusive",
            &format!("healthCheck.expectedStatuses[0]: Invalid value: \"99\": {status}"),
            &format!("healthCheck.expectedStatuses[1]: Invalid value: \"299-200\": {status}"),
            &format!("healthCheck.expectedStatuses[2]: Invalid value: \"+20\": {status}"),
            &format!("healthCheck.expectedStatuses[3]: Invalid value: \"200-600\": {status}"),
            "healthCheck.interval: Invalid value: \"99ms\": must be at least 100ms",
            "healthCheck.timeout: Invalid value: \"0s\": must be at least 1ms",
            "healthCheck.healthyThreshold: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ],
    );
    check(
        "outlierDetection: {consecutiveErrors: -1, failurePercent: 0, baseEjectionTime: 2s, maxEjectionTime: 1s, maxEjectedPercent: 101}",
        &[
            "outlierDetection.consecutiveErrors: Invalid value: -1: must be between 0 and 2147483647, inclusive",
            "outlierDetection.failurePercent: Invalid value: 0: must be between 1 and 100, inclusive",
            "outlierDetection.maxEjectionTime: Invalid value: \"1s\": must not be shorter than baseEjectionTime",
            "outlierDetection.maxEjectedPercent: Invalid value: 101: must be between 0 and 100, inclusive",
        ],
    );
}

#[test]
fn retries_and_queues() {
    check(
        "retries: {attempts: 11, retryOn: [Sometimes, Reset, Reset], statuses: [200], budgetPercent: 101}, hedging: {maxExtra: 5}",
        &[
            "retries.attempts: Invalid value: 11: must be between 0 and 10, inclusive",
            "retries.retryOn[0]: Unsupported value: \"Sometimes\": supported values: \"5xx\", \"ConnectFailure\", \"GatewayError\", \"NonIdempotent\", \"Reset\", \"Timeout\"",
            "retries.retryOn[2]: Duplicate value: \"Reset\"",
            "retries.statuses[0]: Invalid value: 200: must be between 400 and 599, inclusive",
            "retries.budgetPercent: Invalid value: 101: must be between 0 and 100, inclusive",
            "hedging.delay: Required value: a duration, e.g. '10s'",
            "hedging.maxExtra: Invalid value: 5: must be between 1 and 4, inclusive",
        ],
    );
    check(
        "queue: {maxDepth: 0, classes: [{name: a}, {name: a, pathPrefix: x}]}, circuitBreaker: {maxRequests: 0}",
        &[
            "queue.maxDepth: Invalid value: 0: must be between 1 and 100000, inclusive",
            "queue.classes[0]: Required value: at least one of header and pathPrefix",
            "queue.classes[1].name: Duplicate value: \"a\"",
            "queue.classes[1].pathPrefix: Invalid value: \"x\": must be an absolute path and start with '/'",
            "circuitBreaker.maxRequests: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ],
    );
    check(
        "rateLimits: [{}, {per: Header, requests: 1}, {header: a, requests: 10000001, name: a}, {requests: 1, name: a, burst: 0}]",
        &[
            "rateLimits[0].requests: Invalid value: 0: must be between 1 and 10000000, inclusive",
            "rateLimits[1].header: Required value: must be specified when `per` is 'Header'",
            "rateLimits[2].header: Forbidden: may only be specified when `per` is 'Header'",
            "rateLimits[2].requests: Invalid value: 10000001: must be between 1 and 10000000, inclusive",
            "rateLimits[3].name: Duplicate value: \"a\"",
            "rateLimits[3].burst: Invalid value: 0: must be between 1 and 10000000, inclusive",
        ],
    );
}

#[test]
fn connections() {
    check(
        "timeouts: {idle: 1d}, limits: {maxRequestBodyBytes: -1}, proxyProtocol: {accept: true, send: V3}, upstreamTls: {caConfigMap: a, insecureSkipVerify: true}, accessLog: {samplePercent: 101}",
        &[
            &format!("timeouts.idle: Invalid value: \"1d\": {DURATION}"),
            "limits.maxRequestBodyBytes: Invalid value: -1: must be greater than or equal to 0",
            "proxyProtocol.trustedSources: Required value: say whose headers are believed when `accept` is true",
            "proxyProtocol.send: Unsupported value: \"V3\": supported values: \"V1\", \"V2\"",
            "upstreamTls.hostname: Required value",
            "upstreamTls.caConfigMap: Forbidden: must not be specified when `insecureSkipVerify` is true: no certificate would be checked",
            "accessLog.samplePercent: Invalid value: 101: must be between 0 and 100, inclusive",
        ],
    );
    check(
        "proxyProtocol: {trustedSources: [10.0.0.1]}",
        &[
            "proxyProtocol.trustedSources: Forbidden: may only be specified when `accept` is true",
            "proxyProtocol.trustedSources[0]: Invalid value: \"10.0.0.1\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        ],
    );
}

#[test]
fn plugins() {
    check("policyRef: {name: canary}", &[]);
    check(
        "policyRef: {kind: Plugin, headers: ['a b']}",
        &[
            "policyRef.kind: Unsupported value: \"Plugin\": supported values: \"ClusterWasmPlugin\", \"WasmPlugin\"",
            "policyRef.name: Required value",
            &format!("policyRef.headers[0]: Invalid value: \"a b\": {}", text::token("a b").expect_err("bad")),
        ],
    );
    let many: Vec<String> = (0..33).map(|i| format!("h{i}")).collect();
    let spec = format!("policyRef: {{name: a, headers: [{}]}}", many.join(", "));
    check(&spec, &["policyRef.headers: Too many: 33: must have at most 32 items"]);
}

#[test]
fn status() {
    let cx = RuleContext { subresource: Some("status"), ..cx() };
    let old = create(RULES(), &policy("limits: {}")).expect("valid");
    let write = |ancestor: serde_json::Value| {
        let mut new = old.clone();
        new["status"] = json!({"ancestors": [ancestor]});
        Typed(RULES()).update(new, &old, &cx).map_err(|e| e.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let condition = json!({"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2024-01-01T00:00:00Z"});
    let target = json!({"kind": "Service", "name": "web"});
    assert!(
        write(json!({"ancestorRef": target, "controllerName": "scaleup.dev/lb", "conditions": [condition]})).is_ok()
    );
    same_messages(
        write(json!({"ancestorRef": target, "controllerName": "lb", "conditions": []})),
        &[
            "status.ancestors[0].controllerName: Invalid value: \"lb\": must be a domain and a path (e.g. 'example.com/gateway')",
            "status.ancestors[0].conditions: Required value",
        ],
    );
}
