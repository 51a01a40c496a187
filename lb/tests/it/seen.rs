//! Traffic that can be seen: access log, trace context and spans, metrics and views, over real sockets.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scaleup_lb::AccessTarget;
use scaleup_lb::policy::{RateLimit, RatePer, RequestPolicy};
use scaleup_lb::snapshot::routes::{FieldMatch, Filter, RedirectPlan, RulePlan, ValueMatch};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::h2_support::{H2Client, H2Endpoint};
use crate::routed::{Routed, Scripted, Setup, filtered, governed, rule};
use crate::support::*;

/// Waits for the lines of a log that are there once `count` requests were logged.
async fn lines(path: &Path, count: usize) -> Vec<Value> {
    let read = async {
        loop {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if text.lines().count() >= count && text.ends_with('\n') {
                return text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the lines are written")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_logged_with_what_came_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let [endpoint] = endpoints::<1>().await;
    let target = AccessTarget::File(path.clone());
    let lab = Lab::start("http", &[endpoint.addr], |config| config.observe.access_log = Some(target)).await;
    let mut client = Client::connect(lab.addr).await;
    client.get("/a?token=secret").await;
    let posted = client.post("/echo", text_body("hello")).await;
    drop(http_body_util::BodyExt::collect(posted.into_body()).await.unwrap());
    let forged =
        raw(lab.addr, b"GET /f HTTP/1.1\r\nhost: h\r\nuser-agent: a\"}\x0b{\"status\":1\r\nconnection: close\r\n\r\n")
            .await;
    assert!(!forged.is_empty());
    raw(lab.addr, b"nonsense\r\n\r\n").await;
    endpoint.kill();
    lab.set(&[]);
    client.get("/none").await;
    let mut lines = lines(&path, 5).await;
    // Threads write when they are done, so the order of connections is not certain.
    let mut take = |field: &str, value: Value| {
        let at = lines
            .iter()
            .position(|line| line[field] == value)
            .unwrap_or_else(|| panic!("{field} {value} in {lines:?}"));
        lines.remove(at)
    };
    let got = take("path", "/a".into());
    assert_eq!((&got["method"], &got["host"], &got["status"]), (&"GET".into(), &"web".into(), &200.into()));
    assert_eq!(
        (&got["client"], &got["protocol"], &got["attempts"]),
        (&"127.0.0.1".into(), &"HTTP/1.1".into(), &1.into())
    );
    assert_eq!(got["upstream"], endpoint.addr.to_string());
    assert_eq!(got["pod_uid"], format!("pod-{}", endpoint.addr));
    assert_eq!((&got["service"], &got["route"]), (&"shop/web".into(), &"Service shop/web rule 0".into()));
    assert_eq!((&got["bytes_in"], &got["bytes_out"], &got["query"]), (&0.into(), &2.into(), &Value::Null));
    assert!(got["duration_ms"].as_f64().unwrap() > 0.0 && got["time"].as_str().unwrap().starts_with("20"), "{got}");
    let posted = take("path", "/echo".into());
    assert_eq!((&posted["bytes_in"], &posted["bytes_out"]), (&5.into(), &5.into()));
    let none = take("path", "/none".into());
    assert_eq!(
        (&none["status"], &none["flags"], &none["upstream"]),
        (&503.into(), &serde_json::json!(["no_endpoint"]), &Value::Null)
    );
    let refused = take("flags", serde_json::json!(["bad_request"]));
    assert!(refused["status"] == 400 && refused["path"] == "", "nothing of an earlier request: {refused}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_failures_are_logged_of_requests_that_are_not_sampled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let target = AccessTarget::File(path.clone());
    let lab = Lab::start("http", &[], |config| {
        config.observe.access_log = Some(target);
        // One in a hundred million.
        config.observe.access_log_percent = 1e-6;
    })
    .await;
    let [endpoint] = endpoints::<1>().await;
    lab.set(&[endpoint.addr]);
    let mut client = Client::connect(lab.addr).await;
    for _ in 0..20 {
        client.get("/ok").await;
    }
    lab.set(&[]);
    client.get("/failed").await;
    lab.stop().await;
    let lines = lines(&path, 1).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((&lines[0]["path"], &lines[0]["status"]), (&"/failed".into(), &503.into()));
}

/// A collector that takes OTLP/HTTP; the bodies it got. The first request is refused.
async fn collector() -> (SocketAddr, Arc<Mutex<Vec<Value>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let got: Arc<Mutex<Vec<Value>>> = Arc::default();
    let bodies = got.clone();
    tokio::spawn(async move {
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = read_head(&mut stream).await;
            assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
            assert!(head.to_ascii_lowercase().contains("content-type: application/json\r\n"), "{head}");
            let length = head.to_ascii_lowercase();
            let length: usize =
                length.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            let status = if number == 0 { "503 Service Unavailable" } else { "200 OK" };
            if number > 0 {
                bodies.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
            }
            stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}").as_bytes()).await.unwrap();
        }
    });
    (addr, got)
}

/// All spans that came, once there are `count`.
async fn spans(got: &Mutex<Vec<Value>>, count: usize) -> Vec<Value> {
    let wait = async {
        loop {
            let spans: Vec<Value> = {
                let bodies = got.lock().unwrap();
                let lists = bodies.iter().map(|body| &body["resourceSpans"][0]["scopeSpans"][0]["spans"]);
                lists.flat_map(|spans| spans.as_array().unwrap().clone()).collect()
            };
            if spans.len() >= count {
                return spans;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the spans come")
}

fn attribute<'a>(span: &'a Value, key: &str) -> Option<&'a Value> {
    let found = span["attributes"].as_array()?.iter().find(|attribute| attribute["key"] == key)?;
    found["value"].as_object()?.values().next()
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_are_continued_and_their_spans_exported() {
    let (address, got) = collector().await;
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::start("http", &[endpoint.addr], |config| {
        config.observe.otlp_endpoint = Some(format!("http://{address}"));
        config.observe.trace_percent = 0.0;
    })
    .await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let seen = send_to(lab.addr, &format!("00-{trace}-b7ad6b7169203331-01")).await;
    let parent = seen.lines().find_map(|line| line.strip_prefix("traceparent: ")).expect("passed on");
    assert_eq!(seen.matches("traceparent").count(), 1, "{seen}");
    assert!(seen.contains("tracestate: v=1"), "{seen}");
    let spans = spans(&got, 2).await;
    let [server, attempt] = &spans[..] else { panic!("{spans:#?}") };
    for span in [server, attempt] {
        assert_eq!(span["traceId"], trace);
        assert_eq!(attribute(span, "http.request.method"), Some(&"GET".into()));
        assert_eq!(attribute(span, "http.response.status_code"), Some(&"200".into()));
        assert_eq!(span["status"]["code"], 0);
    }
    assert_eq!((&server["kind"], &attempt["kind"]), (&2.into(), &3.into()));
    assert_eq!((&server["parentSpanId"], &attempt["parentSpanId"]), (&"b7ad6b7169203331".into(), &server["spanId"]));
    assert_eq!(parent, format!("00-{trace}-{}-01", attempt["spanId"].as_str().unwrap()));
    assert_eq!(attribute(server, "url.path"), Some(&"/headers".into()));
    assert_eq!(attribute(server, "user_agent.original"), Some(&"test".into()));
    assert_eq!(attribute(attempt, "server.port"), Some(&endpoint.addr.port().to_string().into()));
    // Not sampled by its caller: passed on, not exported. Not valid: a new trace, without the state.
    let seen = send_to(lab.addr, &format!("00-{trace}-b7ad6b7169203331-00")).await;
    assert!(seen.contains(&format!("traceparent: 00-{trace}-")) && !seen.contains("b7ad6b7169203331"), "{seen}");
    let seen = send_to(lab.addr, "00-nonsense").await;
    let parent = seen.lines().find_map(|line| line.strip_prefix("traceparent: ")).expect("a new one");
    assert!(parent.len() == 55 && !seen.contains("tracestate") && !seen.contains(trace), "{seen}");
    lab.stop().await;
    let all = got.lock().unwrap().len();
    assert_eq!(all, 1, "what is not sampled is not exported");
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_of_http2_clients_are_continued_to_endpoints_of_both_versions() {
    let (address, got) = collector().await;
    let [old] = endpoints::<1>().await;
    let new = H2Endpoint::start("h2").await;
    let hedged = RequestPolicy { hedging: Some((Duration::from_secs(5), 1)), ..RequestPolicy::default() };
    let setup = Setup::default().service("old", &[old.addr]).service("new", &[new.addr]).h2c("new").rules(vec![
        rule("/", "old"),
        RulePlan { headers: vec![wants("new")], ..rule("/", "new") },
        RulePlan { headers: vec![wants("hedged")], ..governed("/", "new", hedged) },
    ]);
    let lab = Routed::configured(&setup, |config| {
        config.observe.otlp_endpoint = Some(format!("http://{address}"));
        config.observe.trace_percent = 0.0;
    })
    .await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let mut client = H2Client::connect(lab.addr).await;
    let mut passed_on = Vec::new();
    for wanted in ["old", "new", "hedged"] {
        let parent = format!("00-{trace}-b7ad6b7169203331-01");
        let fields = [("x-to", wanted), ("traceparent", parent.as_str()), ("tracestate", "v=1")];
        let seen = client.try_send("GET", "/headers", &fields, b"").await.unwrap().text();
        let parent = seen.lines().find_map(|line| line.strip_prefix("traceparent: ")).expect("passed on").to_owned();
        assert_eq!((seen.matches("traceparent").count(), seen.matches("tracestate: v=1").count()), (1, 1), "{seen}");
        passed_on.push(parent);
        // Not valid: a new trace, without the state.
        let fields = [("x-to", wanted), ("traceparent", "00-nonsense"), ("tracestate", "v=1")];
        let seen = client.try_send("GET", "/headers", &fields, b"").await.unwrap().text();
        assert!(seen.contains("traceparent: 00-") && !seen.contains("tracestate") && !seen.contains(trace), "{seen}");
    }
    let spans = spans(&got, 6).await;
    for parent in passed_on {
        let attempt = spans.iter().find(|span| parent == format!("00-{trace}-{}-01", span["spanId"].as_str().unwrap()));
        let attempt = attempt.unwrap_or_else(|| panic!("the endpoint was told of no span: {parent} in {spans:#?}"));
        let server = spans.iter().find(|span| span["spanId"] == attempt["parentSpanId"]).expect("its request's span");
        assert_eq!((&attempt["kind"], &server["parentSpanId"]), (&3.into(), &"b7ad6b7169203331".into()));
    }
    lab.stop().await;
}

fn wants(value: &str) -> FieldMatch {
    FieldMatch { name: "x-to".into(), value: ValueMatch::Exact(value.into()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_attempt_has_a_span_and_context_passes_untouched_without_tracing() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let seen = send_to(lab.addr, "anything goes").await;
    assert!(seen.contains("traceparent: anything goes") && seen.contains("tracestate: v=1"), "{seen}");
    lab.stop().await;
    let (address, got) = collector().await;
    let lab = Lab::start("http", &[endpoint.addr], |config| {
        config.observe.otlp_endpoint = Some(format!("http://{address}"));
        config.observe.trace_percent = 100.0;
    })
    .await;
    // An endpoint that closes every connection at once: a GET is sent again, to the other one.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    lab.set(&[listener.local_addr().unwrap(), endpoint.addr]);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = read_head(&mut stream).await;
        }
    });
    let before = lab.totals().retries;
    while lab.totals().retries == before {
        send_to(lab.addr, "00-nonsense").await;
    }
    let failed = |spans: &[Value]| {
        spans.iter().find(|s| attribute(s, "error.type") == Some(&"connection_failed".into())).cloned()
    };
    let wait = async {
        loop {
            let now = spans(&got, 1).await;
            if let Some(span) = failed(&now) {
                return (span, now);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (span, all) = tokio::time::timeout(PATIENCE, wait).await.expect("a span of the failed attempt");
    assert_eq!((&span["kind"], &span["status"]["code"]), (&3.into(), &2.into()));
    let server = all.iter().find(|s| s["spanId"] == span["parentSpanId"]).expect("its request");
    assert_eq!(
        (&server["status"]["code"], attribute(server, "http.response.status_code")),
        (&0.into(), Some(&"200".into()))
    );
    let again = all.iter().filter(|s| s["parentSpanId"] == server["spanId"]).nth(1).expect("the second attempt");
    assert_eq!(attribute(again, "http.request.resend_count"), Some(&"1".into()));
    lab.stop().await;
}

/// What an endpoint sees of a request with these trace fields.
async fn send_to(addr: SocketAddr, parent: &str) -> String {
    let request = format!(
        "GET /headers HTTP/1.1\r\nhost: web\r\nTraceparent: {parent}\r\ntracestate: v=1\r\nuser-agent: test\r\nconnection: close\r\n\r\n"
    );
    String::from_utf8(raw(addr, request.as_bytes()).await).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn views_and_metrics_tell_of_traffic() {
    let endpoints = endpoints::<2>().await;
    let lab = Lab::http(&addresses(&endpoints)).await;
    let mut client = Client::connect(lab.addr).await;
    for _ in 0..10 {
        client.get("/").await;
    }
    lab.until("all are counted", |t| t.codes[1] == 10).await;
    let totals = lab.totals();
    assert_eq!((totals.durations.count(), totals.connects.count(), totals.upstream_opened), (10, 2, 2));
    let top = lab.lb.view("top", "").unwrap();
    let [service] = &top["services"].as_array().unwrap()[..] else { panic!("{top}") };
    assert_eq!((&service["name"], &service["codes"][1], &service["endpoints"]), (&"web".into(), &10.into(), &2.into()));
    let usage = lab.lb.view("usage", "").unwrap();
    assert_eq!(usage["pods"][0]["requests"], 5);
    let query = format!("method=GET&url=http%3A%2F%2F{}%2F", lab.addr);
    let said = lab.lb.view("explain", &query).unwrap();
    assert_eq!(said["listener"], format!("{SERVICE_PORT}/TCP for Service shop/web"));
    assert_eq!(said["backends"][0]["endpoints"].as_array().unwrap().len(), 2);
    assert_eq!(said["backends"][0]["endpoints"].as_array().unwrap().iter().filter(|e| e["chosen"] == true).count(), 1);
    assert!(lab.lb.view("other", "").is_err() && lab.lb.view("explain", "").is_err());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_endpoint_answers_is_logged_counted_and_traced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let (collector, got) = collector().await;
    let endpoint = Scripted::named("a").await;
    let redirect = RedirectPlan { scheme: Some("https".into()), hostname: None, port: None, path: None, status: 301 };
    let limit = RateLimit {
        id: "l".into(),
        name: "l".into(),
        per: RatePer::ClientIp,
        requests: 1,
        interval: Duration::from_secs(3_600),
        burst: 1,
        shared: false,
    };
    let limits = RequestPolicy { rate_limits: vec![limit], ..RequestPolicy::default() };
    let setup = Setup::default().service("a", &[endpoint.addr]).rules(vec![
        filtered("/old", "a", vec![Filter::Redirect(redirect)]),
        governed("/limited", "a", limits),
        RulePlan { backends: vec![], ..rule("/gone", "a") },
    ]);
    let target = AccessTarget::File(path.clone());
    let mut registry = prometheus_client::registry::Registry::default();
    let lab = Routed::registered(&setup, &mut registry, |config| {
        config.observe.access_log = Some(target);
        config.observe.otlp_endpoint = Some(format!("http://{collector}"));
        config.observe.trace_percent = 100.0;
    })
    .await;
    for path in ["/old/x?q=1", "/none", "/gone", "/limited", "/limited"] {
        lab.get(path).await;
    }
    raw(lab.addr, b"nonsense\r\n\r\n").await;
    let mut client = H2Client::connect(lab.addr).await;
    for path in ["/old/h2", "/none/h2", "/gone/h2", "/limited/h2"] {
        client.get(path).await;
    }
    let lines = lines(&path, 10).await;
    let one = |path: &str, status: u16| {
        let mut found = lines.iter().filter(|line| line["path"] == path && line["status"] == status);
        let line = found.next().unwrap_or_else(|| panic!("{path} {status} in {lines:#?}"));
        assert!(found.next().is_none(), "{path} {status} twice in {lines:#?}");
        line
    };
    let check = |path: &str, status: u16, route: Value, flags: Value, bytes_out: Option<u64>| {
        let line = one(path, status);
        assert_eq!((&line["route"], &line["flags"], &line["upstream"]), (&route, &flags, &Value::Null), "{line}");
        assert_eq!((&line["attempts"], &line["client"]), (&0.into(), &"127.0.0.1".into()));
        assert!(line["trace_id"].is_string(), "{line}");
        let protocol = if path.ends_with("/h2") { "HTTP/2" } else { "HTTP/1.1" };
        assert_eq!(line["protocol"], protocol);
        if let Some(bytes) = bytes_out {
            assert_eq!(line["bytes_out"], bytes);
        }
    };
    let none = serde_json::json!([]);
    let no_route = serde_json::json!(["no_route"]);
    let nowhere = serde_json::json!(["no_endpoint"]);
    let limited = serde_json::json!(["rate_limited"]);
    check("/old/x", 301, "HTTPRoute shop//old rule 0".into(), none.clone(), Some(0));
    check("/old/h2", 301, "HTTPRoute shop//old rule 0".into(), none, Some(0));
    check("/none", 404, Value::Null, no_route.clone(), Some("404: no route matches this request\n".len() as u64));
    check("/none/h2", 404, Value::Null, no_route, None);
    check("/gone", 500, "HTTPRoute shop//gone rule 0".into(), nowhere.clone(), None);
    check("/gone/h2", 500, "HTTPRoute shop//gone rule 0".into(), nowhere, None);
    check("/limited", 429, "HTTPRoute shop//limited rule 0".into(), limited.clone(), None);
    check("/limited/h2", 429, "HTTPRoute shop//limited rule 0".into(), limited, None);
    check("", 400, Value::Null, serde_json::json!(["bad_request"]), None);
    let answered = spans(&got, 10).await;
    let unrouted = answered.iter().find(|span| attribute(span, "url.path") == Some(&"/none".into())).expect("a span");
    assert_eq!(attribute(unrouted, "http.response.status_code"), Some(&"404".into()));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for expected in [
        "lb_listener_unrouted_requests_total{listener=\"8080/TCP\",code=\"4xx\"} 3",
        "lb_route_requests_total{kind=\"HTTPRoute\",namespace=\"shop\",route=\"/old\",rule=\"0\",code=\"3xx\"} 2",
        "lb_route_requests_total{kind=\"HTTPRoute\",namespace=\"shop\",route=\"/gone\",rule=\"0\",code=\"5xx\"} 2",
        "lb_route_requests_total{kind=\"HTTPRoute\",namespace=\"shop\",route=\"/limited\",rule=\"0\",code=\"4xx\"} 2",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    lab.stop().await;
}
