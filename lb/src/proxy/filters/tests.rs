//! Filters by value.

use std::net::IpAddr;
use std::sync::Arc;

use super::*;

struct Request {
    method: &'static str,
    path: &'static str,
    query: Option<&'static str>,
    fields: Vec<(&'static str, &'static str)>,
}

impl Head for Request {
    fn method(&self) -> &str {
        self.method
    }
    fn host(&self) -> &str {
        "old.example"
    }
    fn path(&self) -> &str {
        self.path
    }
    fn query(&self) -> Option<&str> {
        self.query
    }
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        self.fields.iter().find(|(known, _)| *known == name).map(|(_, value)| Cow::Borrowed(*value))
    }
    fn client(&self) -> IpAddr {
        IpAddr::from([192, 0, 2, 1])
    }
}

fn get(path: &'static str) -> Request {
    Request { method: "GET", path, query: None, fields: vec![] }
}

fn filters(list: &[Filter]) -> Filters<'_> {
    Filters { lists: [list, &[]] }
}

fn prefix(text: &str) -> PathMatch {
    PathMatch::Prefix(text.into())
}

#[test]
fn prefixes_are_replaced_as_the_gateway_api_says() {
    // The table of HTTPPathModifier.replacePrefixMatch, and some more.
    for (path, matched, replacement, expected) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/bar", "/", "/", "/bar"),
    ] {
        let list = [Filter::Rewrite { hostname: None, path: Some(PathRewrite::Prefix(replacement.into())) }];
        let new = filters(&list).rewrite(&get(path), &prefix(matched));
        assert_eq!(new.path.as_deref(), Some(expected), "{path} {matched} {replacement}");
    }
}

#[test]
fn later_rewrites_win_part_by_part() {
    let list = [
        Filter::Rewrite { hostname: Some("a".into()), path: Some(PathRewrite::Full("/x".into())) },
        Filter::Rewrite { hostname: None, path: Some(PathRewrite::Full("/y".into())) },
    ];
    let new = filters(&list).rewrite(&get("/p"), &prefix("/"));
    assert_eq!(new, Rewritten { host: Some("a"), path: Some("/y".into()) });
    assert_eq!(filters(&[]).rewrite(&get("/p"), &prefix("/")), Rewritten::default());
}

fn location(plan: RedirectPlan, request: &Request, place: Place) -> (u16, String) {
    let list = [Filter::Redirect(plan)];
    let ready = filters(&list).answer(request, &prefix("/p"), place).expect("an answer");
    (ready.status.as_u16(), ready.fields[0].1.clone())
}

#[test]
fn redirects_keep_what_they_do_not_change() {
    let plan = RedirectPlan { scheme: None, hostname: None, port: None, path: None, status: 302 };
    let clear = Place { https: false, port: 8080 };
    let request = Request { query: Some("a=b c\u{e9}"), ..get("/p/q") };
    assert_eq!(location(plan.clone(), &request, clear), (302, "http://old.example:8080/p/q?a=b%20c%C3%A9".into()));
    let https = RedirectPlan { scheme: Some("https".into()), status: 301, ..plan.clone() };
    assert_eq!(location(https.clone(), &get("/"), clear), (301, "https://old.example/".into()));
    let port = RedirectPlan { port: Some(8443), ..https };
    assert_eq!(location(port, &get("/"), clear).1, "https://old.example:8443/");
    let standard = Place { https: true, port: 443 };
    let rewritten = RedirectPlan {
        hostname: Some("new.example".into()),
        path: Some(PathRewrite::Prefix("/n".into())),
        ..plan.clone()
    };
    assert_eq!(location(rewritten, &get("/p/q"), standard).1, "https://new.example/n/q");
    assert_eq!(location(plan, &get("/"), Place { https: false, port: 80 }).1, "http://old.example/");
}

fn pairs(list: &[(&str, &str)]) -> Vec<(Arc<str>, Arc<str>)> {
    list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

#[test]
fn edits_set_add_and_remove() {
    let rule = [Filter::RequestHeaders(HeaderEdits {
        set: pairs(&[("x-a", "1"), ("x-gone", "1")]),
        add: pairs(&[("x-b", "2"), ("x-c", "3")]),
        remove: vec!["x-d".into(), "x-gone".into()],
    })];
    let share = [Filter::RequestHeaders(HeaderEdits { set: pairs(&[("x-c", "4")]), ..HeaderEdits::default() })];
    let edits = Filters { lists: [&rule, &share] }.request_edits();
    for (name, dropped) in [("X-A", true), ("x-b", false), ("x-c", true), ("X-D", true), ("x-e", false)] {
        assert_eq!(edits.drops(name), dropped, "{name}");
    }
    assert_eq!(edits.added().collect::<Vec<_>>(), [("x-a", "1"), ("x-b", "2"), ("x-c", "4")]);
    let response = Filters { lists: [&rule, &share] }.response_edits(&[]);
    assert!(!response.drops("x-a") && response.added().next().is_none());
}

#[test]
fn edits_cannot_touch_framing_or_split_a_message() {
    let names = [
        "content-length",
        "Transfer-Encoding",
        "connection",
        "host",
        "te",
        "upgrade",
        "trailer",
        "keep-alive",
        ":path",
        "",
    ];
    for name in names {
        let list = [Filter::RequestHeaders(HeaderEdits {
            set: pairs(&[(name, "1")]),
            add: pairs(&[(name, "1")]),
            remove: vec![name.into()],
        })];
        let edits = filters(&list).request_edits();
        assert!(!edits.drops(name) && edits.added().next().is_none(), "{name}");
    }
    let list = [Filter::RequestHeaders(HeaderEdits {
        add: pairs(&[("x", "a\r\ny: b"), ("a b", "c")]),
        ..HeaderEdits::default()
    })];
    assert!(filters(&list).request_edits().added().next().is_none());
}

fn cors(origins: &[&str], credentials: bool) -> [Filter; 1] {
    [Filter::Cors(CorsPlan {
        origins: origins.iter().map(|origin| (*origin).into()).collect(),
        methods: vec!["GET".into(), "PUT".into()],
        headers: vec!["*".into()],
        expose: vec!["x-seen".into()],
        credentials,
        max_age_s: 60,
    })]
}

fn asking(origin: &'static str) -> Request {
    let fields = vec![
        ("origin", origin),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-a, x-b"),
    ];
    Request { method: "OPTIONS", fields, ..get("/") }
}

#[test]
fn preflights_are_answered() {
    let place = Place { https: false, port: 80 };
    let answer = |list: &[Filter], request: &Request| filters(list).answer(request, &prefix("/"), place);
    let ready = answer(&cors(&["*"], false), &asking("https://a.example")).expect("an answer");
    let expected = [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET, PUT"),
        ("access-control-allow-headers", "*"),
        ("access-control-max-age", "60"),
    ];
    let got: Vec<(&str, &str)> = ready.fields.iter().map(|(name, value)| (*name, &**value)).collect();
    assert_eq!((ready.status.as_u16(), got), (204, expected.to_vec()));
    let ready = answer(&cors(&["*"], true), &asking("https://a.example")).expect("an answer");
    let value = |name: &str| ready.fields.iter().find(|(known, _)| *known == name).map(|(_, value)| &**value);
    assert_eq!(value("access-control-allow-origin"), Some("https://a.example"));
    assert_eq!(value("access-control-allow-headers"), Some("x-a, x-b"));
    assert_eq!(value("access-control-allow-credentials"), Some("true"));
    let other = answer(&cors(&["https://b.example"], false), &asking("https://a.example")).expect("an answer");
    assert!(other.fields.is_empty());
    let plain = Request { method: "OPTIONS", ..get("/") };
    assert_eq!(answer(&cors(&["*"], false), &plain), None, "an OPTIONS request of its own is forwarded");
}

#[test]
fn responses_to_allowed_origins_say_so() {
    let list = cors(&["https://*.example"], false);
    let request = Request { fields: vec![("origin", "https://a.b.example")], ..get("/") };
    let own = filters(&list).response_fields(&request);
    let edits = filters(&list).response_edits(&own);
    assert!(edits.drops("Access-Control-Allow-Origin") && !edits.drops("Vary"));
    let got: Vec<_> = edits.added().collect();
    let expected = [
        ("access-control-allow-origin", "https://a.b.example"),
        ("vary", "Origin"),
        ("access-control-expose-headers", "x-seen"),
    ];
    assert_eq!(got, expected);
    for origin in
        ["https://example", "https://.example", "http://a.example", "https://a/.example", "https://a.example, x"]
    {
        assert!(!origin_matches("https://*.example", origin), "{origin}");
    }
}
