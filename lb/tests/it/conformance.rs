//! HTTP/1.1 as RFC 9110 and RFC 9112 have it, case by case, before an endpoint that takes down every byte it gets.
//!
//! A case is a request as bytes, perhaps an endpoint's answer as bytes, and what must be true at both ends. After each request a
//! second one follows on the same connection: it must be answered exactly when the first one left the connection usable, and the
//! endpoint must never see a request that nobody sent.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Lab, PATIENCE};

/// What an endpoint received: the head as text, and the decoded body.
type Seen = (String, Vec<u8>);

/// Answers by path, and whether the connection is closed after them.
type Script = HashMap<String, (Vec<u8>, bool)>;

/// An endpoint that accepts only what is framed beyond doubt, and answers by script.
struct Witness {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// By path: the bytes of the answer, and whether the connection is closed after it.
    script: Arc<Mutex<Script>>,
}

impl Witness {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let witness = Self { addr: listener.local_addr().unwrap(), seen: Arc::default(), script: Arc::default() };
        let (seen, script) = (witness.seen.clone(), witness.script.clone());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (seen, script) = (seen.clone(), script.clone());
                tokio::spawn(async move {
                    while let Some(request) = receive(&mut stream).await {
                        let path = request.0.split(' ').nth(1).unwrap_or_default().to_owned();
                        seen.lock().push(request);
                        let scripted = script.lock().get(&path).cloned();
                        let (answer, close) = scripted.unwrap_or_else(|| {
                            (format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len()).into(), false)
                        });
                        if stream.write_all(&answer).await.is_err() || close {
                            return;
                        }
                    }
                });
            }
        });
        witness
    }
}

async fn receive(stream: &mut TcpStream) -> Option<Seen> {
    let head = until(stream, b"\r\n\r\n").await?;
    let lower = head.to_ascii_lowercase();
    let value = |name: &str| {
        lower.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(|value| value.trim().to_owned()))
    };
    let mut body = Vec::new();
    match (value("content-length"), value("transfer-encoding")) {
        (Some(length), None) => {
            body.resize(length.parse().expect("one length"), 0);
            stream.read_exact(&mut body).await.ok()?;
        }
        (None, Some(coding)) => {
            assert_eq!(coding, "chunked");
            loop {
                let line = until(stream, b"\r\n").await?;
                let size = usize::from_str_radix(line.trim_end(), 16).expect("a plain chunk size");
                let mut chunk = vec![0; size];
                stream.read_exact(&mut chunk).await.ok()?;
                body.extend(chunk);
                let end = until(stream, b"\r\n").await?;
                if size == 0 {
                    // Trailer fields end with an empty line.
                    let mut line = end;
                    while line != "\r\n" {
                        line = until(stream, b"\r\n").await?;
                    }
                    break;
                }
                assert_eq!(end, "\r\n", "a chunk ends where its size says");
            }
        }
        (None, None) => {}
        (Some(_), Some(_)) => panic!("framed twice: {head:?}"),
    }
    Some((head, body))
}

async fn until(stream: &mut TcpStream, end: &[u8]) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        bytes.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// One row of the tables.
struct Case {
    name: &'static str,
    request: String,
    answer: Option<(&'static str, bool)>,
    status: u16,
    reply_has: Vec<&'static str>,
    reply_lacks: Vec<&'static str>,
    seen_has: Vec<&'static str>,
    seen_lacks: Vec<&'static str>,
    body: Option<&'static str>,
    reply_body: Option<&'static str>,
    /// The connection serves a second request.
    keeps: bool,
    /// The request reaches the endpoint.
    reaches: bool,
}

/// A request that is forwarded and answered with 200, after which the connection is usable.
fn ok(name: &'static str, request: impl Into<String>) -> Case {
    Case {
        name,
        request: request.into(),
        answer: None,
        status: 200,
        reply_has: vec![],
        reply_lacks: vec![],
        seen_has: vec![],
        seen_lacks: vec![],
        body: None,
        reply_body: None,
        keeps: true,
        reaches: true,
    }
}

/// A request that is refused and closes the connection.
fn refused(name: &'static str, status: u16, request: impl Into<String>) -> Case {
    Case { status, keeps: false, reaches: false, ..ok(name, request) }
}

/// A plain GET whose answer is `answer`.
fn answered(name: &'static str, status: u16, answer: &'static str) -> Case {
    Case { status, answer: Some((answer, false)), ..ok(name, "GET /case HTTP/1.1\r\nhost: a\r\n\r\n") }
}

impl Case {
    fn reply(mut self, has: &'static str) -> Self {
        self.reply_has.push(has);
        self
    }
    fn no_reply(mut self, lacks: &'static str) -> Self {
        self.reply_lacks.push(lacks);
        self
    }
    fn sees(mut self, has: &'static str) -> Self {
        self.seen_has.push(has);
        self
    }
    fn never_sees(mut self, lacks: &'static str) -> Self {
        self.seen_lacks.push(lacks);
        self
    }
    fn with_body(mut self, body: &'static str) -> Self {
        self.body = Some(body);
        self
    }
    fn reply_is(mut self, body: &'static str) -> Self {
        self.reply_body = Some(body);
        self
    }
    fn closes(mut self) -> Self {
        self.keeps = false;
        self
    }
    /// The endpoint closes its connection after the answer.
    fn then_closes(mut self) -> Self {
        if let Some((_, close)) = &mut self.answer {
            *close = true;
        }
        self
    }
}

fn post(fields: &str, body: &str) -> String {
    format!("POST /case HTTP/1.1\r\nhost: a\r\n{fields}\r\n{body}")
}

fn get(fields: &str) -> String {
    format!("GET /case HTTP/1.1\r\nhost: a\r\n{fields}\r\n")
}

/// RFC 9112 §2 and §3: message format and request line.
fn request_lines() -> Vec<Case> {
    vec![
        ok("a plain request", get("")).sees("GET /case HTTP/1.1\r\n").sees("host: a\r\n"),
        ok("§2.2 an empty line before the request", format!("\r\n{}", get(""))),
        ok("§2.2 several empty lines before the request", format!("\r\n\r\n\r\n{}", get(""))),
        ok("§3.2.1 a query passes as it is", "GET /case?a=b&c=%20d HTTP/1.1\r\nhost: a\r\n\r\n")
            .sees("GET /case?a=b&c=%20d "),
        ok("§3.2.2 absolute form", "GET http://b.example/case HTTP/1.1\r\nhost: b.example\r\n\r\n")
            .sees("GET /case HTTP/1.1")
            .sees("host: b.example"),
        ok("§3.2.2 absolute form wins over Host", "GET http://b.example/case HTTP/1.1\r\nhost: a\r\n\r\n")
            .sees("host: b.example")
            .never_sees("host: a"),
        ok("§3.2.2 absolute form without a path", "GET http://b.example HTTP/1.1\r\nhost: b.example\r\n\r\n")
            .sees("GET / HTTP"),
        ok("§3.2.4 asterisk form", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").sees("OPTIONS * HTTP/1.1"),
        ok("RFC 9110 §9.1 an unknown method passes", "BREW /case HTTP/1.1\r\nhost: a\r\n\r\n").sees("BREW /case"),
        ok("RFC 9110 §9.1 methods are case-sensitive", "get /case HTTP/1.1\r\nhost: a\r\n\r\n").sees("get /case"),
        ok("§3.2 a host with a port", "GET /case HTTP/1.1\r\nhost: a:8080\r\n\r\n").sees("host: a:8080"),
        ok("§3.2 an IPv6 host", "GET /case HTTP/1.1\r\nhost: [::1]:80\r\n\r\n").sees("host: [::1]:80"),
        refused("§3.2 no Host", 400, "GET /case HTTP/1.1\r\n\r\n"),
        refused("§3 no version", 400, "GET /case\r\n\r\n"),
        refused("§3 a version to come", 400, "GET /case HTTP/2.0\r\nhost: a\r\n\r\n"),
        refused("§3.2.3 authority form is for CONNECT", 400, "GET a:80 HTTP/1.1\r\nhost: a\r\n\r\n"),
        refused("RFC 9110 §9.3.6 CONNECT is not offered", 405, "CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n"),
        refused("RFC 3986 §3.5 a fragment", 400, "GET /case#x HTTP/1.1\r\nhost: a\r\n\r\n"),
        refused("a control character in the target", 400, "GET /ca\x01se HTTP/1.1\r\nhost: a\r\n\r\n"),
        refused("DEL in the target", 400, "GET /ca\x7fse HTTP/1.1\r\nhost: a\r\n\r\n"),
        refused("a backslash authority", 400, "GET http://a\\b/ HTTP/1.1\r\nhost: a\r\n\r\n"),
    ]
}

/// RFC 9110 §5 and RFC 9112 §5: fields.
fn fields() -> Vec<Case> {
    vec![
        ok("§5 names in any case", "GET /case HTTP/1.1\r\nHOST: a\r\nX-Y: z\r\n\r\n").sees("host: a").sees("X-Y: z"),
        ok("§5.1 space around a value is not part of it", get("x:  \t y z \t \r\n")).sees("x: y z\r\n"),
        ok("§5 an empty value", get("x:\r\n")).sees("x: \r\n"),
        ok("§5.3 repeated fields keep their order", get("x: 1\r\ny: 0\r\nx: 2\r\n")).sees("x: 1\r\ny: 0\r\nx: 2\r\n"),
        ok("§5.5 bytes above ASCII pass", get("x: \u{e4}\r\n")).sees("x: \u{e4}"),
        refused("§5.2 obsolete folding", 400, get("x: a\r\n b\r\n")),
        refused("§5.1 space before the colon", 400, get("x : a\r\n")),
        refused("§5.1 a name with a space", 400, get("x y: a\r\n")),
        refused("§5.1 a name with a quote", 400, get("x\": a\r\n")),
        refused("§5.5 a control character in a value", 400, get("x: a\x01b\r\n")),
        ok("RFC 9110 §7.6.1 Connection's fields end here", get("connection: x-hop, close\r\nx-hop: 1\r\nx: 2\r\n"))
            .never_sees("x-hop")
            .sees("x: 2")
            .closes(),
        ok("RFC 9110 §7.6.1 Keep-Alive ends here", get("keep-alive: timeout=5\r\nconnection: keep-alive\r\n"))
            .never_sees("keep-alive: timeout"),
        ok("Proxy-Connection ends here", get("proxy-connection: keep-alive\r\n")).never_sees("proxy-connection"),
        ok("RFC 9110 §10.1.4 TE is a hop's own", get("te: gzip\r\n")).never_sees("gzip"),
        ok("RFC 9110 §10.1.4 TE: trailers passes", get("te: trailers\r\nconnection: te\r\n")).sees("te: trailers"),
        ok("RFC 9110 §7.8 an Upgrade without Connection is dropped", get("upgrade: websocket\r\n"))
            .never_sees("upgrade:"),
        ok(
            "h2c is not passed on",
            get("upgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\nconnection: upgrade, http2-settings\r\n"),
        )
        .never_sees("h2c")
        .never_sees("http2-settings"),
        ok(
            "RFC 7239 what the client says of hops is replaced",
            get("x-forwarded-for: 6.6.6.6\r\nx-forwarded-proto: https\r\nforwarded: for=6.6.6.6\r\n"),
        )
        .never_sees("6.6.6.6")
        .sees("x-forwarded-for: 127.")
        .sees("x-forwarded-proto: http\r\n"),
        ok("RFC 9110 §10.1.1 Expect is answered here", post("content-length: 2\r\nexpect: 100-continue\r\n", "hi"))
            .never_sees("expect")
            .with_body("hi"),
    ]
}

/// RFC 9112 §6 and §7: bodies.
fn bodies() -> Vec<Case> {
    vec![
        ok("§6.2 a length", post("content-length: 5\r\n", "hello")).with_body("hello"),
        ok("§6.2 length 0", post("content-length: 0\r\n", "")).with_body(""),
        ok("§6.3 no length, no body", post("", "")).with_body(""),
        ok("§7.1 one chunk", post("transfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n")).with_body("hello"),
        ok("§7.1 several chunks", post("transfer-encoding: chunked\r\n", "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"))
            .with_body("hello"),
        ok(
            "§7.1 sizes in any case and with zeros",
            post("transfer-encoding: Chunked\r\n", "00A\r\n0123456789\r\n0\r\n\r\n"),
        )
        .with_body("0123456789"),
        ok(
            "§7.1.1 extensions are dropped",
            post("transfer-encoding: chunked\r\n", "5;a=b;c=\"d\"\r\nhello\r\n0\r\n\r\n"),
        )
        .with_body("hello"),
        ok(
            "§7.1.2 trailer fields do not become header fields",
            post("transfer-encoding: chunked\r\n", "1\r\nx\r\n0\r\nx-evil: 1\r\n\r\n"),
        )
        .with_body("x")
        .never_sees("x-evil"),
        ok("RFC 9110 §9.3.1 a GET may have a body", "GET /case HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi")
            .with_body("hi"),
        ok(
            "a DELETE with a chunked body",
            "DELETE /case HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        )
        .with_body("hi"),
        refused(
            "§6.1 a length beside chunked",
            400,
            post("content-length: 5\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
        ),
        refused("§6.1 chunked not last", 400, post("transfer-encoding: chunked, gzip\r\n", "0\r\n\r\n")),
        refused("§6.3 two lengths", 400, post("content-length: 5\r\ncontent-length: 6\r\n", "hello")),
        refused("§6.3 a length that is no number", 400, post("content-length: five\r\n", "hello")),
    ]
}

/// RFC 9112 §9: connections.
fn connections() -> Vec<Case> {
    vec![
        ok("§9.3 HTTP/1.1 persists", get("")),
        ok("§9.6 close is honoured and told", get("connection: close\r\n"))
            .reply("connection: close")
            .never_sees("connection: close")
            .closes(),
        ok("§9.6 close in any case, among others", get("connection: x, CLOSE\r\n")).closes(),
        ok("§9.3 HTTP/1.0 closes", "GET /case HTTP/1.0\r\nhost: a\r\n\r\n").sees("HTTP/1.1").closes(),
        ok("§9.3 HTTP/1.0 with keep-alive", "GET /case HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n")
            .reply("connection: keep-alive"),
        ok("HTTP/1.0 without Host", "GET /case HTTP/1.0\r\n\r\n").sees("host: ").closes(),
        ok("§9.3.2 pipelined requests", format!("{}{}", get(""), "")),
    ]
}

/// RFC 9110 §15 and RFC 9112 §6.3: answers.
fn answers() -> Vec<Case> {
    vec![
        answered("a length", 200, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").reply_is("hello"),
        answered("chunked", 200, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
            .reply("transfer-encoding: chunked")
            .reply_is("hello"),
        answered("§6.3 until the connection closes", 200, "HTTP/1.1 200 OK\r\n\r\nhello")
            .then_closes()
            .reply_is("hello"),
        answered("§6.3 204 has no body and no length", 204, "HTTP/1.1 204 No Content\r\n\r\n")
            .no_reply("content-length"),
        answered("§6.3 204 with a length", 204, "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n")
            .no_reply("content-length"),
        answered(
            "§6.3 304 may tell a length",
            304,
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\netag: \"x\"\r\n\r\n",
        )
        .reply("etag: \"x\""),
        answered("an empty reason", 200, "HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n"),
        answered("a status without a name", 599, "HTTP/1.1 599 Odd\r\ncontent-length: 0\r\n\r\n"),
        answered("HTTP/1.0 answers", 200, "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi")
            .then_closes()
            .reply("HTTP/1.1 200")
            .reply_is("hi"),
        answered(
            "RFC 9110 §7.6.1 an answer's hop-by-hop fields end here",
            200,
            "HTTP/1.1 200 OK\r\nconnection: x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\ncontent-length: 0\r\n\r\n",
        )
        .no_reply("x-hop")
        .no_reply("keep-alive: timeout"),
        answered(
            "the endpoint's close is not the client's",
            200,
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi",
        )
        .then_closes()
        .no_reply("connection: close"),
        answered("RFC 9110 §6.6.1 Date is added when missing", 200, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .reply("date: "),
        answered(
            "RFC 9110 §6.6.1 a Date stays",
            200,
            "HTTP/1.1 200 OK\r\ndate: Tue, 15 Nov 1994 08:12:31 GMT\r\ncontent-length: 0\r\n\r\n",
        )
        .reply("date: Tue, 15 Nov 1994 08:12:31 GMT"),
        answered(
            "§5.3 Set-Cookie stays in several lines",
            200,
            "HTTP/1.1 200 OK\r\nset-cookie: a=1\r\nset-cookie: b=2\r\ncontent-length: 0\r\n\r\n",
        )
        .reply("set-cookie: a=1\r\nset-cookie: b=2"),
        answered(
            "RFC 9110 §15.2.1 100 before the answer",
            200,
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        )
        .reply_is("hi"),
        answered("§6.3 differing lengths", 502, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi"),
        answered("§6.1 a coding that is not chunked", 502, "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhi"),
        answered("a length that is no number", 502, "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"),
        answered("no answer at all", 502, "garbage\r\n\r\n"),
        answered("§5.2 folding in an answer", 502, "HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n"),
        answered(
            "a switch that nobody asked for",
            502,
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        ),
        Case {
            answer: Some(("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", false)),
            ..ok("RFC 9110 §9.3.2 HEAD tells a length and has no body", "HEAD /case HTTP/1.1\r\nhost: a\r\n\r\n")
        }
        .reply("content-length: 5"),
        Case {
            answer: Some(("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", false)),
            ..ok("HEAD with a coding", "HEAD /case HTTP/1.1\r\nhost: a\r\n\r\n")
        },
    ]
}

/// Framing by which something could be smuggled past us, beyond those of the module `smuggling`.
fn smuggling() -> Vec<Case> {
    let hidden = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let chunked = |coding: &str| post(&format!("{coding}\r\n"), &format!("0\r\n\r\n{hidden}"));
    let lengths = |fields: &str| post(&format!("{fields}\r\n"), hidden);
    vec![
        refused(
            "TE.CL with a tab before the value's end",
            400,
            chunked("transfer-encoding: chunked\t, x\r\ncontent-length: 4"),
        ),
        refused("a coding with a trailing semicolon", 400, chunked("transfer-encoding: chunked;q=1")),
        refused("a coding with a form feed", 400, chunked("transfer-encoding:\x0cchunked")),
        refused("a coding behind a CR", 400, chunked("transfer-encoding: \rchunked")),
        refused("a coding in a name with a NUL", 400, chunked("transfer-encoding\0: chunked")),
        refused("a coding hidden behind a CR in another value", 400, chunked("x: a\rtransfer-encoding: chunked")),
        refused("a coding in single quotes", 400, chunked("transfer-encoding: 'chunked'")),
        refused("a coding in brackets", 400, chunked("transfer-encoding: [chunked]")),
        refused("a coding with a comma in front", 400, chunked("transfer-encoding: ,chunked")),
        refused("a coding with a comma behind", 400, chunked("transfer-encoding: chunked,")),
        refused(
            "an unknown coding among two fields",
            400,
            chunked("transfer-encoding: chunked\r\ntransfer-encoding: cow"),
        ),
        refused("CL.TE in odd case", 400, chunked("Content-length: 4\r\nTransfer-Encoding: ChUnKeD")),
        refused("a length with a plus", 400, lengths("content-length: +34")),
        refused("a length with a leading comma", 400, lengths("content-length: ,0")),
        refused("a length in exponent form", 400, lengths("content-length: 3e1")),
        refused("a length with a NUL", 400, lengths("content-length: 0\0")),
        refused("a length with a decimal point", 400, lengths("content-length: 0.0")),
        refused("a length with underscore digits", 400, lengths("content-length: 1_0")),
        refused("a length in full-width digits", 400, lengths("content-length: \u{ff10}")),
        refused("two lengths, one of them hidden by case", 400, lengths("Content-Length: 0\r\ncontent-length: 34")),
        refused("a length folded onto the next line", 400, lengths("content-length:\r\n 34")),
        refused(
            "Connection hides a coding",
            400,
            post("connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
        ),
        ok(
            "a body that looks like a request is a body",
            post("content-length: 37\r\n", "GET /smuggled HTTP/1.1\r\nhost: b\r\n\r\nxx"),
        )
        .with_body("GET /smuggled HTTP/1.1\r\nhost: b\r\n\r\nxx"),
        ok("length 0 and a request behind it are two requests", post("content-length: 0\r\n", "")),
        ok(
            "a chunk that looks like an end is a chunk",
            post("transfer-encoding: chunked\r\n", "7\r\n0\r\n\r\nab\r\n0\r\n\r\n"),
        )
        .with_body("0\r\n\r\nab"),
    ]
}

/// Answers in a reply: status, head, body.
fn parse_reply(mut bytes: &[u8], head_only: bool) -> Vec<(u16, String, String)> {
    let mut answers = Vec::new();
    while let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..at + 4]).into_owned();
        bytes = &bytes[at + 4..];
        let status: u16 = head.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
        if status / 100 == 1 {
            continue;
        }
        let lower = head.to_ascii_lowercase();
        let mut body = Vec::new();
        let bodiless = (head_only && answers.is_empty()) || matches!(status, 204 | 304);
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        if bodiless {
        } else if lower.contains("transfer-encoding: chunked") {
            while let Some(end) = bytes.windows(2).position(|w| w == b"\r\n") {
                let size = usize::from_str_radix(&String::from_utf8_lossy(&bytes[..end]), 16).unwrap_or(0);
                body.extend_from_slice(bytes.get(end + 2..end + 2 + size).unwrap_or_default());
                bytes = bytes.get(end + 2 + size + 2..).unwrap_or_default();
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = length {
            let length = length.min(bytes.len());
            body.extend_from_slice(&bytes[..length]);
            bytes = &bytes[length..];
        } else {
            body.extend_from_slice(bytes);
            bytes = &[];
        }
        answers.push((status, head, String::from_utf8_lossy(&body).into_owned()));
    }
    assert!(bytes.is_empty(), "bytes that belong to no answer: {:?}", String::from_utf8_lossy(bytes));
    answers
}

/// Plays a case; what is wrong, if anything.
async fn play(addr: SocketAddr, witness: &Witness, case: &Case) -> Result<(), String> {
    witness.seen.lock().clear();
    {
        let mut script = witness.script.lock();
        script.clear();
        if let Some((answer, close)) = case.answer {
            script.insert("/case".to_owned(), (answer.as_bytes().to_vec(), close));
        }
    }
    let canary = "GET /canary HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let mut stream = TcpStream::connect(addr).await.map_err(|e| e.to_string())?;
    // A refusal may close the connection before all was sent.
    let _ = stream.write_all(format!("{}{canary}", case.request).as_bytes()).await;
    let mut reply = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut reply)).await;
    let _ = read.map_err(|_| format!("the connection stays open after {:?}", String::from_utf8_lossy(&reply)))?;
    let answers = parse_reply(&reply, case.request.trim_start().starts_with("HEAD"));
    let text = String::from_utf8_lossy(&reply);
    let (status, head, body) = answers.first().ok_or("no answer")?;
    let check = |holds: bool, what: String| if holds { Ok(()) } else { Err(format!("{what}\n{text}")) };
    check(*status == case.status, format!("status {status} instead of {}", case.status))?;
    for has in &case.reply_has {
        check(head.contains(has), format!("the answer lacks {has:?}"))?;
    }
    for lacks in &case.reply_lacks {
        check(!head.contains(lacks), format!("the answer has {lacks:?}"))?;
    }
    if let Some(expected) = case.reply_body {
        check(body == expected, format!("the answer's body is {body:?}"))?;
    }
    let expected_answers = if case.keeps { 2 } else { 1 };
    check(answers.len() == expected_answers, format!("{} answers instead of {expected_answers}", answers.len()))?;
    if case.keeps {
        check(answers[1].2 == "/canary", format!("the second answer is {:?}", answers[1]))?;
    }
    let seen = witness.seen.lock().clone();
    let first = seen.iter().filter(|(head, _)| !head.starts_with("GET /canary ")).collect::<Vec<_>>();
    // A retry may show a request to the endpoint again; anything else is one that nobody sent.
    check(seen.iter().all(|(head, _)| !head.contains("/smuggled HTTP")), format!("smuggled: {seen:?}"))?;
    check(first.is_empty() != case.reaches, format!("the endpoint saw {first:?}"))?;
    let Some((head, body)) = first.first() else { return Ok(()) };
    for has in &case.seen_has {
        check(head.contains(has), format!("the endpoint's head lacks {has:?}: {head:?}"))?;
    }
    for lacks in &case.seen_lacks {
        check(!head.contains(lacks), format!("the endpoint's head has {lacks:?}: {head:?}"))?;
    }
    match case.body {
        Some(expected) => check(*body == expected.as_bytes(), format!("the endpoint's body is {body:?}")),
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http1_case_by_case() {
    let witness = Witness::start().await;
    let lab = Lab::http(&[witness.addr]).await;
    let mut failures = Vec::new();
    let mut count = 0;
    for case in [request_lines(), fields(), bodies(), connections(), answers(), smuggling()].into_iter().flatten() {
        count += 1;
        if let Err(why) = play(lab.addr, &witness, &case).await {
            failures.push(format!("{}: {why}", case.name));
        }
    }
    assert!(failures.is_empty(), "{} of {count} cases fail:\n\n{}", failures.len(), failures.join("\n\n"));
    println!("HTTP/1.1 conformance: {count} cases, 0 failed");
    lab.stop().await;
}
