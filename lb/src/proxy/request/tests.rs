//! Request heads by value.

use super::*;

fn client(trusted: bool) -> Client {
    Client::new(IpAddr::from([192, 0, 2, 1]), trusted, false)
}

fn run(text: &str, trusted: bool) -> (Parsed<Request>, String) {
    let config = ProxyConfig { max_uri_bytes: 100, ..ProxyConfig::default() };
    let mut out = Vec::new();
    let parsed = parse(text.as_bytes(), &config, &client(trusted), false, |head| {
        head.write(&Rewritten::default(), Edits::default(), || "web.d".to_owned(), &mut out)
    });
    (parsed, String::from_utf8_lossy(&out).into_owned())
}

fn text(method: &str, target: &str, headers: &[(&str, &str)]) -> String {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{method} {target} HTTP/1.1\r\n{lines}\r\n")
}

#[track_caller]
fn check(method: &str, target: &str, headers: &[(&str, &str)], status: u16) {
    let got = match run(&text(method, target, headers), false).0 {
        Parsed::Complete(_) => 200,
        Parsed::Refused(reject) => reject.status.as_u16(),
        other => panic!("{other:?}"),
    };
    assert_eq!(got, status, "{method} {target} {headers:?}");
}

#[test]
fn framing_and_host_are_unambiguous() {
    check("GET", "/", &[("host", "a")], 200);
    check("GET", "/", &[("host", "[::1]:80")], 200);
    check("GET", "/", &[], 400);
    check("GET", "/", &[("host", "a"), ("host", "a")], 400);
    for host in ["", "a b", "a/b", "u@a", "a,b", "a\tb"] {
        check("GET", "/", &[("host", host)], 400);
    }
    let te = "transfer-encoding";
    check("POST", "/", &[("host", "a"), (te, "chunked")], 200);
    check("POST", "/", &[("host", "a"), (te, "Chunked")], 200);
    for coding in ["gzip, chunked", "chunked, chunked", "identity, chunked", "xchunked", "\"chunked\"", ""] {
        check("POST", "/", &[("host", "a"), (te, coding)], 400);
    }
    check("POST", "/", &[("host", "a"), (te, "chunked"), (te, "chunked")], 400);
    check("POST", "/", &[("host", "a"), (te, "chunked"), ("content-length", "1")], 400);
    check("POST", "/", &[("host", "a"), ("content-length", "1"), ("content-length", "1")], 400);
    check("POST", "/", &[("host", "a"), ("connection", "close, Content-Length")], 400);
    check("GET", "/", &[("host", "a"), ("connection", "host")], 400);
    check("GET", "/", &[("host", "a"), ("connection", &"x,".repeat(MAX_NAMED + 1))], 400);
}

#[test]
fn targets_are_paths_or_http_urls() {
    let host = [("host", "a")];
    check("GET", "http://b/x", &host, 200);
    check("GET", "/a?b={c}&d=%20[e]|f", &host, 200);
    check("OPTIONS", "*", &host, 200);
    check("GET", "*", &host, 400);
    check("GET", "ftp://b/x", &host, 400);
    check("GET", "http://u:p@b/x", &host, 400);
    check("GET", "/a#b", &host, 400);
    check("GET", "/a<b>", &host, 400);
    check("CONNECT", "b:443", &host, 405);
    check("GET", &format!("/{}", "x".repeat(100)), &host, 414);
}

/// Request line and sorted field lines as sent upstream.
fn forwarded(trusted: bool, target: &str, headers: &[(&str, &str)]) -> (String, Vec<String>) {
    let (parsed, out) = run(&text("GET", target, headers), trusted);
    assert!(matches!(parsed, Parsed::Complete(_)), "{parsed:?}");
    let mut lines = out.strip_suffix("\r\n\r\n").expect("an end").split("\r\n").map(str::to_owned);
    let first = lines.next().expect("a request line");
    let mut rest: Vec<String> = lines.collect();
    rest.sort();
    (first, rest)
}

const OURS: [&str; 4] = ["host: a", "x-forwarded-for: 192.0.2.1", "x-forwarded-host: a", "x-forwarded-proto: http"];

#[test]
fn hop_by_hop_headers_end_here_and_claims_of_strangers_are_replaced() {
    let (_, got) = forwarded(
        false,
        "/",
        &[
            ("Host", "a"),
            ("Connection", "keep-alive, x-secret"),
            ("X-Secret", "1"),
            ("keep-alive", "5"),
            ("proxy-connection", "x"),
            ("te", "gzip"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("expect", "100-continue"),
            ("forwarded", "for=evil"),
            ("X-Forwarded-For", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
        ],
    );
    assert_eq!(got, OURS);
}

#[test]
fn trusted_claims_are_extended() {
    let (_, got) = forwarded(
        true,
        "/",
        &[
            ("host", "a"),
            ("forwarded", "for=x"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-for", "203.0.113.8"),
            ("x-forwarded-proto", "https"),
        ],
    );
    let expected = [
        "forwarded: for=x, for=192.0.2.1",
        "host: a",
        "x-forwarded-for: 203.0.113.9, 203.0.113.8, 192.0.2.1",
        "x-forwarded-host: a",
        "x-forwarded-proto: https",
    ];
    assert_eq!(got, expected);
    assert_eq!(forwarded(true, "/", &[("host", "a")]).1, OURS);
}

#[test]
fn upgrades_and_trailers_survive() {
    let headers = [("host", "a"), ("connection", "Upgrade"), ("upgrade", "websocket"), ("te", "trailers")];
    let (_, got) = forwarded(false, "/", &headers);
    for expected in ["connection: upgrade", "upgrade: websocket", "te: trailers"] {
        assert!(got.iter().any(|line| line == expected), "{expected} in {got:?}");
    }
}

#[test]
fn absolute_targets_decide_the_host() {
    let (line, got) = forwarded(false, "http://b:81/x?y", &[("host", "a")]);
    assert_eq!(line, "GET /x?y HTTP/1.1");
    assert!(got.contains(&"host: b:81".to_owned()));
    assert_eq!(forwarded(false, "http://b", &[("host", "a")]).0, "GET / HTTP/1.1");
}

#[test]
fn only_real_upgrade_requests_are_tunnelled() {
    let check = |headers: &[(&str, &str)], expected| {
        let mut all = vec![("host", "a")];
        all.extend_from_slice(headers);
        let Parsed::Complete(request) = run(&text("GET", "/", &all), false).0 else { panic!("{headers:?}") };
        assert_eq!(request.upgrade, expected, "{headers:?}");
    };
    check(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")], true);
    check(&[("upgrade", "websocket")], false);
    check(&[("connection", "upgrade"), ("upgrade", "h2c")], false);
    check(&[("connection", "upgrade")], false);
    check(&[("connection", "upgrade"), ("upgrade", "websocket"), ("content-length", "1")], false);
}

#[test]
fn old_clients_may_leave_out_the_host_and_ask_for_keep_alive() {
    let (parsed, out) = run("GET / HTTP/1.0\r\n\r\n", false);
    assert!(matches!(parsed, Parsed::Complete(Request { http10: true, keep_alive: false, .. })), "{parsed:?}");
    assert!(out.starts_with("GET / HTTP/1.1\r\nhost: web.d\r\n"), "{out}");
    let (parsed, _) = run("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", false);
    assert!(matches!(parsed, Parsed::Complete(Request { keep_alive: true, .. })), "{parsed:?}");
}
