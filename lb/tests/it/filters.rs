//! Routes and their filters on the wire.

use std::sync::Arc;

use scaleup_lb::snapshot::routes::{
    CorsPlan, Filter, HeaderEdits, Mode, PathMatch, PathRewrite, RedirectPlan, RulePlan, WeightedBackend,
};

use crate::routed::*;

fn pairs(list: &[(&str, &str)]) -> Vec<(Arc<str>, Arc<str>)> {
    list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_where_their_host_and_path_say() {
    let (a, b) = (Scripted::named("a").await, Scripted::named("b").await);
    let hosts = vec![("a.example", vec![rule("/", "a"), rule("/b", "b")]), ("*.example", vec![rule("/only", "b")])];
    let setup =
        Setup::default().service("a", &[a.addr]).service("b", &[b.addr]).listener(PORT, Mode::Http(http(hosts)));
    let lab = Routed::start(&setup).await;
    for (path, host, expected) in [
        ("/", "a.example", "a"),
        ("/x?y=/b", "A.Example:8080", "a"),
        ("/b/c", "a.example.", "b"),
        ("/only", "other.example", "b"),
    ] {
        let answer = lab.send(&get(path, host)).await;
        assert_eq!((answer.status, &*answer.body), (200, expected), "{path} {host}");
    }
    for (path, host) in [("/", "other.example"), ("/", "nobody.test")] {
        assert_eq!(lab.send(&get(path, host)).await.status, 404, "{path} {host}");
    }
    // A client whose request nobody takes keeps its connection.
    let both = format!("GET / HTTP/1.1\r\nhost: nobody.test\r\n\r\n{}", get("/b", "a.example"));
    let answer = lab.send(&both).await;
    assert!(answer.status == 404 && answer.body.ends_with("\r\n\r\nb"), "{answer:?}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_cannot_get_past_its_route_in_disguise() {
    let (public, admin) = (Scripted::echo().await, Scripted::named("admin").await);
    let rules = vec![rule("/", "public"), rule("/admin", "admin")];
    let setup = Setup::default().service("public", &[public.addr]).service("admin", &[admin.addr]).rules(rules);
    let lab = Routed::start(&setup).await;
    for path in ["/x/../admin", "/%61dmin", "/x/%2e%2E/admin/", "//admin", "/./admin", "http://b.example/y/../admin"] {
        let answer = lab.get(path).await;
        assert_eq!((answer.status, &*answer.body), (200, "admin"), "{path}");
    }
    for path in ["/x/..%2fadmin", "/..;/admin", "/x\\..\\admin", "/../admin", "/x/..%5cadmin", "/%00/admin", "/%2"] {
        assert_eq!(lab.get(path).await.status, 400, "{path}");
    }
    let answer = lab.get("/a/./b//c/%7euser/%2f?q=/../%2e").await;
    assert!(answer.body.starts_with("GET /a/b/c/~user/%2F?q=/../%2e HTTP/1.1\r\n"), "{}", answer.body);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_follow_their_weights_and_an_invalid_one_is_a_500() {
    let (a, b) = (Scripted::named("a").await, Scripted::named("b").await);
    let invalid = WeightedBackend { backend: None, weight: 1, filters: vec![] };
    let split = RulePlan { backends: vec![share("a", 3), share("b", 1), share("b", 0)], ..rule("/split", "a") };
    let broken = RulePlan { backends: vec![invalid], ..rule("/broken", "a") };
    let nobody = RulePlan { backends: vec![], ..rule("/nobody", "a") };
    let empty = rule("/empty", "empty");
    let setup = Setup::default()
        .service("a", &[a.addr])
        .service("b", &[b.addr])
        .service("empty", &[])
        .rules(vec![split, broken, nobody, empty]);
    let lab = Routed::start(&setup).await;
    for _ in 0..200 {
        assert_eq!(lab.get("/split").await.status, 200);
    }
    // 50 are expected; beyond these bounds is a chance of less than 1 in 10^9.
    let to_b = b.seen().len();
    assert!((15..=90).contains(&to_b), "{to_b} of 200");
    for (path, status) in [("/broken", 500), ("/nobody", 500), ("/empty", 503)] {
        assert_eq!(lab.get(path).await.status, status, "{path}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_host_and_path_are_changed_on_the_way() {
    let endpoint = Scripted::start(|request, _| {
        let body = request.to_owned();
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\nserver: secret\r\nx-old: 1\r\ncontent-length: {length}\r\n\r\n");
        Act::Say((head + &body).into_bytes())
    })
    .await;
    let filters = vec![
        Filter::RequestHeaders(HeaderEdits {
            set: pairs(&[("x-set", "new"), ("content-length", "7"), ("host", "evil")]),
            add: pairs(&[("x-add", "more")]),
            remove: vec!["x-remove".into(), "x-forwarded-for".into()],
        }),
        Filter::ResponseHeaders(HeaderEdits {
            set: pairs(&[("x-old", "2")]),
            add: pairs(&[("x-new", "3")]),
            remove: vec!["server".into()],
        }),
        Filter::Rewrite { hostname: Some("inner.example".into()), path: Some(PathRewrite::Prefix("/in".into())) },
    ];
    let setup = Setup::default().service("a", &[endpoint.addr]).rules(vec![filtered("/out", "a", filters)]);
    let lab = Routed::start(&setup).await;
    let request = "GET /out/x?q=1 HTTP/1.1\r\nhost: a.example\r\nX-Set: old\r\nx-add: one\r\nX-Remove: 1\r\n\
        x-stays: 1\r\nconnection: close\r\n\r\n";
    let answer = lab.send(request).await;
    assert_eq!((answer.header("x-old"), answer.header("x-new"), answer.header("server")), (Some("2"), Some("3"), None));
    let seen = endpoint.seen().remove(0);
    let mut lines: Vec<&str> = seen.trim_end().lines().collect();
    assert_eq!(lines.remove(0), "GET /in/x?q=1 HTTP/1.1");
    lines.sort_unstable();
    let expected = [
        "host: inner.example",
        "x-add: more",
        "x-add: one",
        "x-forwarded-host: a.example",
        "x-forwarded-proto: http",
        "x-set: new",
        "x-stays: 1",
    ];
    assert_eq!(lines, expected);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_answered_without_an_endpoint() {
    let plan = RedirectPlan {
        scheme: Some("https".into()),
        hostname: None,
        port: None,
        path: Some(PathRewrite::Prefix("/new".into())),
        status: 308,
    };
    let here =
        RedirectPlan { scheme: None, hostname: Some("b.example".into()), path: None, status: 302, ..plan.clone() };
    let mut exact = filtered("/", "none", vec![Filter::Redirect(here)]);
    exact.path = PathMatch::Exact("/here".into());
    exact.backends = vec![];
    let setup = Setup::default().rules(vec![filtered("/old", "none", vec![Filter::Redirect(plan)]), exact]);
    let lab = Routed::start(&setup).await;
    let answer = lab.get("/old/x?a=b").await;
    assert_eq!((answer.status, answer.header("location")), (308, Some("https://a.example/new/x?a=b")));
    assert_eq!(answer.header("content-length"), Some("0"));
    let answer = lab.get("/here").await;
    assert_eq!((answer.status, answer.header("location")), (302, Some("http://b.example:8080/here")));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cors_is_answered_and_said() {
    let endpoint = Scripted::start(|_, _| {
        Act::Say(b"HTTP/1.1 200 OK\r\naccess-control-allow-origin: *\r\nvary: x\r\ncontent-length: 0\r\n\r\n".to_vec())
    })
    .await;
    let plan = CorsPlan {
        origins: vec!["https://*.example".into()],
        methods: vec!["PUT".into()],
        headers: vec!["x-a".into()],
        credentials: true,
        max_age_s: 5,
        ..CorsPlan::default()
    };
    let setup =
        Setup::default().service("a", &[endpoint.addr]).rules(vec![filtered("/", "a", vec![Filter::Cors(plan)])]);
    let lab = Routed::start(&setup).await;
    let ask = |method: &str, origin: &str| {
        format!(
            "{method} / HTTP/1.1\r\nhost: a\r\norigin: {origin}\r\naccess-control-request-method: PUT\r\n\
             connection: close\r\n\r\n"
        )
    };
    let answer = lab.send(&ask("OPTIONS", "https://w.example")).await;
    assert_eq!((answer.status, answer.header("access-control-allow-methods")), (204, Some("put")));
    assert!(answer.header("content-length").is_none() && endpoint.seen().is_empty());
    let answer = lab.send(&ask("GET", "https://w.example")).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://w.example"));
    assert_eq!(answer.head.matches("access-control-allow-origin").count(), 1, "{answer:?}");
    assert!(answer.head.contains("vary: x") && answer.head.contains("vary: origin"), "{answer:?}");
    let answer = lab.send(&ask("OPTIONS", "https://evil.test")).await;
    assert!(!answer.head.contains("access-control"), "{answer:?}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_sent_and_never_waited_for() {
    let (main, copies) = (Scripted::named("main").await, Scripted::start(|_, _| Act::Hang).await);
    let lab = Routed::start(&mirrored(&main, &copies)).await;
    for _ in 0..5 {
        assert_eq!(lab.get("/get").await.body, "main");
    }
    let post = |framing: &str, body: &str| {
        format!("POST /p HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{framing}\r\n\r\n{body}")
    };
    assert_eq!(lab.send(&post("content-length: 5", "hello")).await.body, "main");
    assert_eq!(lab.send(&post("transfer-encoding: chunked", "3\r\nabc\r\n0\r\n\r\n")).await.body, "main");
    // Too large for a copy.
    assert_eq!(lab.send(&post("content-length: 100000", &"x".repeat(100_000))).await.body, "main");
    assert_eq!(lab.get("/last").await.body, "main");
    let seen = copies.until_seen(8).await;
    assert_eq!(seen.iter().filter(|text| text.starts_with("GET /get ")).count(), 5);
    assert!(seen.iter().any(|text| text.starts_with("POST ") && text.ends_with("\r\n\r\nhello")), "{seen:?}");
    assert!(seen.iter().any(|text| text.ends_with("3\r\nabc\r\n0\r\n\r\n")), "{seen:?}");
    assert!(seen.iter().any(|text| text.starts_with("GET /last ")), "{seen:?}");
    assert_eq!(seen.len(), 8, "{seen:?}");
    lab.stop().await;
}
