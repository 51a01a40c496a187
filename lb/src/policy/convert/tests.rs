//! What each field of a policy becomes, and what is refused.

use super::super::*;
use super::*;
use serde_json::{Value, json};

fn parsed(spec: Value) -> Result<Parsed, String> {
    let spec: TrafficPolicySpec = serde_json::from_value(spec).expect("a policy");
    parse(&ServiceKey::new("d", "p"), &spec)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn documented_defaults_are_filled_in() {
    let parsed = parsed(json!({
        "loadBalancing": {"locality": {}, "slowStart": {"window": "30s"}}, "healthCheck": {}, "outlierDetection": {}, "retries": {},
        "hedging": {"delay": "20ms"}, "queue": {}, "rateLimits": [{"requests": 10}], "proxyProtocol": {"send": "V2"},
    }))
    .expect("valid");
    let (request, service) = (parsed.request, parsed.service);
    let balancing = service.balancing.expect("balancing");
    assert_eq!(balancing.locality, Some(Locality::default()));
    assert_eq!(balancing.slow_start, Some((seconds(30), 10)));
    assert_eq!(
        service.health_check,
        Some(HealthCheck {
            probe: Probe::Http { path: "/".into(), host: None, statuses: vec![(200, 399)] },
            port: None,
            interval: seconds(10),
            timeout: seconds(1),
            healthy_threshold: 2,
            unhealthy_threshold: 3,
        })
    );
    assert_eq!(
        service.outlier,
        Some(Outlier {
            consecutive_errors: 5,
            failure_percent: None,
            minimum_requests: 20,
            interval: seconds(10),
            base_ejection: seconds(30),
            max_ejection: seconds(300),
            max_ejected_percent: 50,
            panic_percent: 0,
        })
    );
    assert_eq!(service.queue, Some(Queue { max_depth: 100, timeout: seconds(1), classes: vec![] }));
    assert_eq!(service.send_proxy, Some(2));
    assert_eq!(request.retries, Some(default_retries()));
    assert_eq!(request.hedging, Some((Duration::from_millis(20), 1)));
    let limit = &request.rate_limits.expect("limits")[0];
    assert_eq!((limit.requests, limit.burst, limit.interval, &limit.per), (10, 10, seconds(1), &RatePer::Target));
    assert_eq!(&*limit.id, "d/p/0");
    assert_eq!(
        parsed.endpoint_fields,
        ["loadBalancing", "healthCheck", "outlierDetection", "queue", "proxyProtocol.send"]
    );
}

#[test]
fn fields_are_taken_over() {
    let parsed = parsed(json!({
        "loadBalancing": {"algorithm": "Maglev", "boundedLoadPercent": 125,
            "hashOn": [{"header": "X-User"}, {"cookie": {"name": "c", "ttl": "1h"}}, {"queryParam": "q"}, {"sourceIp": true}],
            "weights": [{"zone": "z", "weight": 5}, {"address": "10.0.0.1", "weight": 0}],
            "locality": {"prefer": "Nearest", "regions": [{"name": "eu", "latitude": "50.11", "longitude": "8.68"}]}},
        "healthCheck": {"type": "GRPC", "grpcService": "s", "host": "H:1", "port": 9},
        "retries": {"attempts": 3, "retryOn": ["GatewayError", "Timeout"], "statuses": [429, 503], "perTryTimeout": "2s", "backoff": "0s"},
        "timeouts": {"request": "0s", "responseHeader": "9s", "idle": "1m", "connect": "3s"},
        "circuitBreaker": {"maxRequests": 1, "maxPerEndpoint": 2}, "accessLog": {"samplePercent": 5},
        "queue": {"classes": [{"name": "gold", "header": {"name": "X-Tier", "value": "gold"}, "pathPrefix": "/a"}]},
        "rateLimits": [{"name": "n", "per": "Header", "header": "X-Key", "requests": 5, "interval": "1m", "burst": 9, "shared": true}],
    }))
    .expect("valid");
    let (request, service) = (parsed.request, parsed.service);
    let balancing = service.balancing.expect("balancing");
    assert_eq!(balancing.algorithm, Some(Algorithm::Maglev));
    assert_eq!(
        balancing.hash_on,
        [
            HashSource::Header("x-user".into()),
            HashSource::Cookie("c".into(), "/".into(), Some(seconds(3600))),
            HashSource::Query("q".into()),
            HashSource::Address
        ]
    );
    assert_eq!(balancing.weights.iter().map(|rule| rule.weight).collect::<Vec<_>>(), [5, 0]);
    let regions = Prefer::Nearest([("eu".into(), 50.11, 8.68)].into());
    assert_eq!(balancing.locality.expect("locality").prefer, regions);
    assert_eq!(
        service.health_check.expect("a check").probe,
        Probe::Grpc { service: "s".into(), host: Some("h:1".into()) }
    );
    let retries = request.retries.expect("retries");
    assert_eq!((retries.attempts, retries.on_reset, retries.on_timeout, retries.backoff), (3, false, true, None));
    assert_eq!(retries.statuses, [429, 502, 503, 504]);
    assert_eq!(request.request_timeout, Some(None));
    assert_eq!(request.response_timeout, Some(Some(seconds(2))));
    assert_eq!(request.idle_timeout, Some(Some(seconds(60))));
    assert_eq!(service.connect_timeout, Some(Some(seconds(3))));
    assert_eq!(service.limits.expect("limits").per_endpoint, Some(2));
    assert_eq!(request.rate_limits.expect("limits")[0].per, RatePer::Header("x-key".into()));
    assert_eq!(request.access_log_percent, Some(5.0));
}

#[test]
fn what_is_not_valid_is_refused_by_name() {
    for (spec, field) in [
        (json!({"loadBalancing": {"algorithm": "Best"}}), "loadBalancing.algorithm"),
        (json!({"loadBalancing": {"hashOn": [{"header": "a\r\nb"}]}}), "loadBalancing.hashOn"),
        (json!({"loadBalancing": {"hashOn": [{"header": "a", "sourceIp": true}]}}), "exactly one"),
        (json!({"loadBalancing": {"hashOn": [{"cookie": {"name": "a", "path": "/; Secure"}}]}}), "cookie.path"),
        (json!({"loadBalancing": {"boundedLoadPercent": 99}}), "boundedLoadPercent"),
        (json!({"loadBalancing": {"weights": [{"zone": "z", "weight": 1001}]}}), "weight"),
        (json!({"loadBalancing": {"weights": [{"weight": 1}]}}), "one of zone"),
        (json!({"loadBalancing": {"slowStart": {"window": "16m"}}}), "slowStart"),
        (json!({"loadBalancing": {"locality": {"prefer": "Nearest"}}}), "regions"),
        (
            json!({"loadBalancing": {"locality": {"prefer": "Nearest", "regions": [{"name": "a", "latitude": "NaN", "longitude": "0"}]}}}),
            "latitude",
        ),
        (json!({"healthCheck": {"path": "x"}}), "healthCheck.path"),
        (json!({"healthCheck": {"path": "/a HTTP/1.1\r\nx: y"}}), "healthCheck.path"),
        (json!({"healthCheck": {"host": "a\r\nb"}}), "healthCheck.host"),
        (json!({"healthCheck": {"expectedStatuses": ["2xx"]}}), "expectedStatuses"),
        (json!({"healthCheck": {"interval": "10ms"}}), "healthCheck.interval"),
        (json!({"healthCheck": {"port": 0}}), "healthCheck.port"),
        (json!({"outlierDetection": {"failurePercent": 0}}), "failurePercent"),
        (json!({"retries": {"attempts": 11}}), "retries.attempts"),
        (json!({"retries": {"retryOn": ["Everything"]}}), "retries.retryOn"),
        (json!({"retries": {"statuses": [200]}}), "retries.statuses"),
        (json!({"hedging": {}}), "hedging.delay"),
        (json!({"circuitBreaker": {"maxRequests": 0}}), "maxRequests"),
        (json!({"queue": {"timeout": "0s"}}), "queue.timeout"),
        (json!({"queue": {"classes": [{"name": "a\n"}]}}), "queue.classes.name"),
        (json!({"rateLimits": [{"requests": 0}]}), "rateLimits[0].requests"),
        (json!({"rateLimits": [{"requests": 1, "per": "Header"}]}), "rateLimits[0].header"),
        (json!({"timeouts": {"idle": "1 s"}}), "timeouts.idle"),
        (json!({"limits": {"maxRequestBodyBytes": -1}}), "maxRequestBodyBytes"),
        (json!({"proxyProtocol": {"accept": true}}), "trustedSources"),
        (json!({"proxyProtocol": {"accept": true, "trustedSources": ["10.0.0.0/33"]}}), "trustedSources"),
        (json!({"proxyProtocol": {"send": "V3"}}), "proxyProtocol.send"),
        (json!({"upstreamTls": {"hostname": "a b"}}), "upstreamTls.hostname"),
        (json!({"accessLog": {"samplePercent": 101}}), "accessLog"),
    ] {
        let refused = parsed(spec.clone()).expect_err("refused");
        assert!(refused.contains(field), "{spec}: {refused}");
    }
}
