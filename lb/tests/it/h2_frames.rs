//! Frames and streams as RFC 9113 wants them: what breaks its rules ends the stream or the connection with a reason, and everybody else
//! is served as before. A stream error may be answered as a connection error (§5.4.2), or by a response (§8.1.1).

use crate::h2_support::Outcome::{Closed, GoAway, Reset, Status};
use crate::h2_support::*;
use crate::support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Name, what is sent after the preface and SETTINGS, and what may come of stream 1.
type Case = (&'static str, Vec<u8>, &'static [Outcome]);

const PROTOCOL: &[Outcome] = &[GoAway(PROTOCOL_ERROR)];
/// The crate reports sizes that a frame cannot have as either.
const SIZE: &[Outcome] = &[GoAway(FRAME_SIZE_ERROR), GoAway(PROTOCOL_ERROR)];
const MALFORMED: &[Outcome] = &[Reset(PROTOCOL_ERROR), GoAway(PROTOCOL_ERROR), Status(400)];
const SERVED: &[Outcome] = &[Status(200)];

fn all(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.concat()
}

fn headers(flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags, stream, payload)
}

fn post(stream: u32) -> Vec<u8> {
    headers(END_HEADERS, stream, &request("POST", "/length", &[]))
}

fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    headers(END_STREAM | END_HEADERS, 1, &block(fields))
}

fn padded(pad: u8, data: &[u8], zeros: usize) -> Vec<u8> {
    let mut payload = vec![pad];
    payload.extend_from_slice(data);
    payload.extend(vec![0; zeros]);
    payload
}

fn frame_cases() -> Vec<Case> {
    let long = vec![0; 16_385];
    let plain = request("GET", "/", &[]);
    vec![
        (
            "§4.1 unknown frame types are ignored",
            all(&[frame(0xfa, 0xff, 0, b"x"), frame(0xfb, 0, 1, b""), get(1)]),
            SERVED,
        ),
        ("§4.1 unknown flags are ignored", headers(END_STREAM | END_HEADERS | 0xc2, 1, &plain), SERVED),
        ("§4.1 the reserved bit is ignored", headers(END_STREAM | END_HEADERS, 0x8000_0001, &plain), SERVED),
        ("§4.2 DATA beyond the largest frame", all(&[post(1), frame(DATA, 0, 1, &long)]), SIZE),
        ("§4.2 HEADERS beyond the largest frame", headers(END_HEADERS, 1, &long), SIZE),
        ("§4.2 an unknown frame beyond the largest frame", frame(0xfa, 0, 0, &long), SIZE),
        (
            "§4.3 a header block that is no HPACK",
            headers(END_STREAM | END_HEADERS, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            &[GoAway(COMPRESSION_ERROR), GoAway(PROTOCOL_ERROR)],
        ),
        (
            "§4.3 an index beyond the tables",
            headers(END_STREAM | END_HEADERS, 1, &[0xfe]),
            &[GoAway(COMPRESSION_ERROR), GoAway(PROTOCOL_ERROR)],
        ),
        (
            "§4.3 a table larger than allowed",
            headers(END_STREAM | END_HEADERS, 1, &all(&[vec![0x3f, 0xff, 0xff, 0x03], plain.clone()])),
            &[GoAway(COMPRESSION_ERROR), GoAway(PROTOCOL_ERROR)],
        ),
        ("§5.1 DATA on an idle stream", frame(DATA, 0, 1, b"x"), PROTOCOL),
        ("§5.1 RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), PROTOCOL),
        ("§5.1 WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 8]), PROTOCOL),
        ("§5.1 CONTINUATION on an idle stream", frame(CONTINUATION, END_HEADERS, 1, &plain), PROTOCOL),
        (
            "§5.1 DATA behind END_STREAM",
            all(&[headers(END_STREAM | END_HEADERS, 1, &request("GET", "/slow", &[])), frame(DATA, 0, 1, b"x")]),
            &[Reset(STREAM_CLOSED), GoAway(STREAM_CLOSED), GoAway(PROTOCOL_ERROR)],
        ),
        (
            "§5.1 HEADERS behind END_STREAM",
            all(&[headers(END_STREAM | END_HEADERS, 1, &request("GET", "/slow", &[])), get(1)]),
            &[Reset(STREAM_CLOSED), GoAway(STREAM_CLOSED), GoAway(PROTOCOL_ERROR)],
        ),
        ("§5.1.1 even stream from a client", get(2), PROTOCOL),
        ("§5.1.1 stream ids that fall", all(&[get(5), get(3)]), PROTOCOL),
        ("§5.1.1 stream ids may be skipped", all(&[get(1), get(101)]), SERVED),
        (
            "§5.3.1 a stream that depends on itself",
            headers(END_STREAM | END_HEADERS | PRIORITIZED, 1, &all(&[vec![0, 0, 0, 1, 7], plain.clone()])),
            &[Reset(PROTOCOL_ERROR), GoAway(PROTOCOL_ERROR), Status(200)],
        ),
        ("§6.1 DATA on stream 0", frame(DATA, 0, 0, b"x"), PROTOCOL),
        (
            "§6.1 padding beyond the frame",
            all(&[post(1), frame(DATA, PADDED | END_STREAM, 1, &padded(9, b"x", 0))]),
            PROTOCOL,
        ),
        ("§6.1 padded DATA", all(&[post(1), frame(DATA, PADDED | END_STREAM, 1, &padded(5, b"abc", 5))]), SERVED),
        (
            "§6.1 DATA of nothing but padding",
            all(&[post(1), frame(DATA, PADDED, 1, &padded(3, b"", 3)), frame(DATA, END_STREAM, 1, b"")]),
            SERVED,
        ),
        ("§6.2 HEADERS on stream 0", headers(END_STREAM | END_HEADERS, 0, &plain), PROTOCOL),
        ("§6.2 padded HEADERS", headers(END_STREAM | END_HEADERS | PADDED, 1, &padded(4, &plain, 4)), SERVED),
        (
            "§6.2 HEADERS with padding beyond the frame",
            headers(END_STREAM | END_HEADERS | PADDED, 1, &padded(255, &plain, 0)),
            PROTOCOL,
        ),
        (
            "§6.2 HEADERS with priority",
            headers(END_STREAM | END_HEADERS | PRIORITIZED, 1, &all(&[vec![0, 0, 0, 0, 7], plain.clone()])),
            SERVED,
        ),
        (
            "§6.2 another frame inside a header block",
            all(&[headers(END_STREAM, 1, &plain), frame(PING, 0, 0, &[0; 8])]),
            PROTOCOL,
        ),
        (
            "§6.2 another stream's HEADERS inside a header block",
            all(&[headers(END_STREAM, 1, &plain), get(3)]),
            PROTOCOL,
        ),
        ("§6.3 PRIORITY is ignored", all(&[frame(PRIORITY, 0, 7, &[0, 0, 0, 3, 1]), get(1)]), SERVED),
        ("§6.3 PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0, 0, 0, 3, 1]), PROTOCOL),
        ("§6.3 short PRIORITY", all(&[frame(PRIORITY, 0, 1, &[0, 0, 0, 3])]), SIZE),
        ("§6.4 RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0, 0, 0, 8]), PROTOCOL),
        ("§6.4 short RST_STREAM", all(&[post(1), frame(RST_STREAM, 0, 1, &[0, 0, 8])]), SIZE),
        ("§6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), PROTOCOL),
        ("§6.5 SETTINGS of a broken size", frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0]), SIZE),
        ("§6.5 acknowledged SETTINGS with content", frame(SETTINGS, ACK, 0, &[0, 3, 0, 0, 0, 1]), SIZE),
        ("§6.5.2 ENABLE_PUSH of 2", frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]), PROTOCOL),
        (
            "§6.5.2 window beyond 2³¹-1",
            frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]),
            &[GoAway(FLOW_CONTROL_ERROR), GoAway(PROTOCOL_ERROR)],
        ),
        ("§6.5.2 frame size below 2¹⁴", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0x3f, 0xff]), PROTOCOL),
        ("§6.5.2 frame size beyond 2²⁴-1", frame(SETTINGS, 0, 0, &[0, 5, 1, 0, 0, 0]), PROTOCOL),
        (
            "§6.5.2 unknown settings are ignored",
            all(&[frame(SETTINGS, 0, 0, &[0xff, 0xee, 1, 2, 3, 4]), get(1)]),
            SERVED,
        ),
        (
            "§6.6 PUSH_PROMISE from a client",
            all(&[post(1), frame(PUSH_PROMISE, END_HEADERS, 1, &all(&[vec![0, 0, 0, 2], plain.clone()]))]),
            PROTOCOL,
        ),
        ("§6.7 PING on a stream", frame(PING, 0, 1, &[0; 8]), PROTOCOL),
        ("§6.7 PING of a broken size", frame(PING, 0, 0, &[0; 6]), SIZE),
        ("§6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), PROTOCOL),
        ("§6.9 WINDOW_UPDATE of 0 for the connection", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), PROTOCOL),
        ("§6.9 WINDOW_UPDATE of 0 for a stream", all(&[post(1), frame(WINDOW_UPDATE, 0, 1, &[0; 4])]), MALFORMED),
        ("§6.9 short WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), SIZE),
        (
            "§6.9.1 connection window beyond 2³¹-1",
            all(&[frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])]),
            &[GoAway(FLOW_CONTROL_ERROR)],
        ),
        (
            "§6.9.1 stream window beyond 2³¹-1",
            all(&[post(1), frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff])]),
            &[Reset(FLOW_CONTROL_ERROR), GoAway(FLOW_CONTROL_ERROR)],
        ),
        (
            "§6.10 CONTINUATION",
            all(&[
                headers(END_STREAM, 1, &plain[..9]),
                frame(CONTINUATION, 0, 1, &plain[9..20]),
                frame(CONTINUATION, END_HEADERS, 1, &plain[20..]),
            ]),
            SERVED,
        ),
        (
            "§6.10 CONTINUATION behind a whole block",
            all(&[get(1), frame(CONTINUATION, END_HEADERS, 1, &plain)]),
            PROTOCOL,
        ),
        (
            "§6.10 CONTINUATION of another stream",
            all(&[headers(END_STREAM, 1, &plain[..9]), frame(CONTINUATION, END_HEADERS, 3, &plain[9..])]),
            PROTOCOL,
        ),
        (
            "§6.10 CONTINUATION on stream 0",
            all(&[headers(END_STREAM, 1, &plain[..9]), frame(CONTINUATION, END_HEADERS, 0, &plain[9..])]),
            PROTOCOL,
        ),
    ]
}

fn message_cases() -> Vec<Case> {
    const METHOD: (&str, &str) = (":method", "GET");
    const SCHEME: (&str, &str) = (":scheme", "http");
    const PATH: (&str, &str) = (":path", "/");
    const HOST: (&str, &str) = (":authority", "a");
    let upper = [METHOD, SCHEME, PATH, HOST, ("X-Upper", "1")];
    let more = |field| fields(&[METHOD, SCHEME, PATH, HOST, field]);
    let body = |length, data: &[u8]| {
        let head = headers(END_HEADERS, 1, &request("POST", "/length", &[("content-length", length)]));
        all(&[head, frame(DATA, END_STREAM, 1, data)])
    };
    let trailers = |fields: &[(&str, &str)]| {
        all(&[post(1), frame(DATA, 0, 1, b"abc"), headers(END_STREAM | END_HEADERS, 1, &block(fields))])
    };
    vec![
        ("§8.1 trailers", trailers(&[("x-sum", "1")]), SERVED),
        (
            "§8.1 trailers without END_STREAM",
            all(&[post(1), frame(DATA, 0, 1, b"abc"), headers(END_HEADERS, 1, &block(&[("x", "1")]))]),
            MALFORMED,
        ),
        // The crate drops them; nothing of them reaches an endpoint.
        (
            "§8.1 trailers with a pseudo-header field",
            trailers(&[(":path", "/"), ("x", "1")]),
            &[Reset(PROTOCOL_ERROR), Status(200)],
        ),
        ("§8.1.1 body shorter than its length", body("4", b"abc"), MALFORMED),
        ("§8.1.1 body longer than its length", body("2", b"abc"), MALFORMED),
        ("§8.1.1 body of its length", body("3", b"abc"), SERVED),
        (
            "§8.2 upper-case name",
            fields(&upper),
            &[Reset(PROTOCOL_ERROR), GoAway(PROTOCOL_ERROR), GoAway(COMPRESSION_ERROR)],
        ),
        (
            "§8.2.1 empty name",
            more(("", "x")),
            &[Reset(PROTOCOL_ERROR), GoAway(PROTOCOL_ERROR), GoAway(COMPRESSION_ERROR)],
        ),
        (
            "§8.2.1 space in a name",
            more(("x y", "z")),
            &[Reset(PROTOCOL_ERROR), GoAway(PROTOCOL_ERROR), GoAway(COMPRESSION_ERROR)],
        ),
        (
            "§8.2.1 colon in a name",
            more(("x:y", "z")),
            &[Reset(PROTOCOL_ERROR), GoAway(PROTOCOL_ERROR), GoAway(COMPRESSION_ERROR)],
        ),
        ("§8.2.1 value that begins with a space", more(("x", " y")), MALFORMED),
        ("§8.2.1 value that ends with a tab", more(("x", "y\t")), MALFORMED),
        ("§8.2.2 connection", more(("connection", "close")), MALFORMED),
        ("§8.2.2 keep-alive", more(("keep-alive", "1")), MALFORMED),
        ("§8.2.2 proxy-connection", more(("proxy-connection", "close")), MALFORMED),
        ("§8.2.2 transfer-encoding", more(("transfer-encoding", "chunked")), MALFORMED),
        ("§8.2.2 upgrade", more(("upgrade", "websocket")), MALFORMED),
        ("§8.2.2 te other than trailers", more(("te", "gzip")), MALFORMED),
        ("§8.2.2 te: trailers", more(("te", "trailers")), SERVED),
        (
            "§8.3 unknown pseudo-header field",
            more((":x", "1")),
            &[Reset(PROTOCOL_ERROR), GoAway(PROTOCOL_ERROR), GoAway(COMPRESSION_ERROR)],
        ),
        ("§8.3 pseudo-header field of responses", fields(&[METHOD, SCHEME, PATH, HOST, (":status", "200")]), MALFORMED),
        ("§8.3 pseudo-header field behind others", fields(&[METHOD, SCHEME, ("x", "1"), PATH, HOST]), MALFORMED),
        ("§8.3.1 method twice", fields(&[METHOD, METHOD, SCHEME, PATH, HOST]), MALFORMED),
        ("§8.3.1 path twice", fields(&[METHOD, SCHEME, PATH, PATH, HOST]), MALFORMED),
        ("§8.3.1 scheme twice", fields(&[METHOD, SCHEME, SCHEME, PATH, HOST]), MALFORMED),
        ("§8.3.1 authority twice", fields(&[METHOD, SCHEME, PATH, HOST, HOST]), MALFORMED),
        ("§8.3.1 no method", fields(&[SCHEME, PATH, HOST]), MALFORMED),
        ("§8.3.1 no scheme", fields(&[METHOD, PATH, HOST]), MALFORMED),
        ("§8.3.1 no path", fields(&[METHOD, SCHEME, HOST]), MALFORMED),
        ("§8.3.1 empty path", fields(&[METHOD, SCHEME, (":path", ""), HOST]), MALFORMED),
        ("§8.3.1 Host instead of :authority", fields(&[METHOD, SCHEME, PATH, ("host", "a")]), SERVED),
        ("§8.3.1 Host that agrees with :authority", more(("host", "A")), SERVED),
        ("§8.3.1 Host that does not", more(("host", "b")), MALFORMED),
        ("§8.3.1 OPTIONS of everything", fields(&[(":method", "OPTIONS"), SCHEME, (":path", "*"), HOST]), SERVED),
        ("§8.5 CONNECT", fields(&[(":method", "CONNECT"), HOST]), &[Status(405)]),
        ("§8.5 CONNECT with a path", fields(&[(":method", "CONNECT"), SCHEME, PATH, HOST]), MALFORMED),
        (
            "RFC 8441 CONNECT with a protocol that is not offered",
            fields(&[(":method", "CONNECT"), (":protocol", "connect-udp"), SCHEME, PATH, HOST]),
            &[Status(501)],
        ),
        (
            "RFC 8441 CONNECT with a protocol and no path",
            fields(&[(":method", "CONNECT"), (":protocol", "websocket"), SCHEME, HOST]),
            MALFORMED,
        ),
        (
            "RFC 8441 CONNECT with a length",
            headers(
                END_HEADERS,
                1,
                &block(&[
                    (":method", "CONNECT"),
                    (":protocol", "websocket"),
                    SCHEME,
                    PATH,
                    HOST,
                    ("content-length", "1"),
                ]),
            ),
            MALFORMED,
        ),
        (
            "RFC 8441 :protocol without CONNECT",
            fields(&[METHOD, (":protocol", "websocket"), SCHEME, PATH, HOST]),
            MALFORMED,
        ),
        (
            "431 for too many fields",
            headers(END_STREAM | END_HEADERS, 1, &request("GET", "/", &[("x", "y"); 150])),
            &[Status(431)],
        ),
        (
            "414 for a long path",
            fields(&[METHOD, SCHEME, (":path", &format!("/{}", "x".repeat(9_000))), HOST]),
            &[Status(414)],
        ),
    ]
}

async fn run(cases: Vec<Case>) {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    for (name, bytes, expected) in cases {
        let mut raw = Raw::connect(lab.addr).await;
        raw.write(&bytes).await;
        let got = raw.outcome(1).await;
        assert!(expected.contains(&got), "{name}: {got:?}, not one of {expected:?}");
    }
    let mut raw = Raw::connect(lab.addr).await;
    raw.write(&get(1)).await;
    assert_eq!(raw.outcome(1).await, Status(200), "everybody else is served");
    assert_eq!(H2Client::connect(lab.addr).await.get("/").await.text(), "e0");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_follow_the_rules() {
    run(frame_cases()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_follow_the_rules() {
    run(message_cases()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_preface_is_answered_by_settings_and_a_broken_one_by_nothing() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let mut raw = Raw::connect(lab.addr).await;
    let first = raw.next().await.unwrap();
    assert_eq!((first.kind, first.flags & ACK), (SETTINGS, 0), "§3.4: SETTINGS come first");
    let ack = raw.next_of(SETTINGS).await;
    assert_eq!(ack.flags & ACK, ACK, "§6.5.3: SETTINGS are acknowledged");
    raw.write(&frame(PING, 0, 0, b"abcdefgh")).await;
    let pong = raw.next_of(PING).await;
    assert_eq!((pong.flags & ACK, &pong.payload[..]), (ACK, &b"abcdefgh"[..]), "§6.7: PINGs are answered");
    // A preface that goes wrong after the part that tells it from HTTP/1.1.
    let mut broken = Raw { stream: tokio::net::TcpStream::connect(lab.addr).await.unwrap() };
    broken.write(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let got = broken.outcome(1).await;
    assert!(matches!(got, Closed | GoAway(PROTOCOL_ERROR)), "{got:?}");
    assert_eq!(endpoint.served(), 0);
    lab.stop().await;
}

/// Windows hold in both directions (§6.9).
#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_more_than_a_window() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let mut raw = Raw::connect(lab.addr).await;
    // A window of 10 bytes per stream, for a response of many.
    raw.write(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 10])).await;
    raw.write(&headers(END_STREAM | END_HEADERS, 1, &request("GET", "/stream/1", &[]))).await;
    raw.next_of(HEADERS).await;
    let data = raw.next_of(DATA).await;
    assert_eq!(data.payload.len(), 10);
    raw.write(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 7])).await;
    assert_eq!(raw.next_of(DATA).await.payload.len(), 7, "and then only what it is allowed");
    lab.stop().await;
    // A client that sends more than our window to an endpoint that takes nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let lab = Lab::http(&[listener.local_addr().unwrap()]).await;
    let held = tokio::spawn(async move {
        let stream = listener.accept().await.unwrap();
        std::future::pending::<()>().await;
        drop(stream);
    });
    let (mut reader, mut writer) = {
        let mut raw = Raw::connect(lab.addr).await;
        raw.write(&post(1)).await;
        raw.stream.into_split()
    };
    let flood = tokio::spawn(async move {
        // 64 MiB: more than sockets and windows hold.
        for _ in 0..4_096 {
            if writer.write_all(&frame(DATA, 0, 1, &[b'x'; 16_384])).await.is_err() {
                return;
            }
        }
        panic!("somebody buffers without bound");
    });
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut bytes)).await.expect("the connection is ended");
    flood.await.unwrap();
    let goaway = frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, FLOW_CONTROL_ERROR as u8]);
    let reset = frame(RST_STREAM, 0, 1, &[0, 0, 0, FLOW_CONTROL_ERROR as u8]);
    let said = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
    assert!(bytes.is_empty() || said(&goaway) || said(&reset), "{bytes:?}");
    held.abort();
    lab.stop().await;
}
