//! Attacks with cheap frames, played with raw frames: the connection is closed, with a reason where there is somebody to tell, and another
//! connection is served at the same time and afterwards.

use std::time::Duration;

use crate::h2_support::Outcome::{Closed, GoAway};
use crate::h2_support::*;
use crate::support::*;

/// Plays `round` (given an odd stream id) again and again until the connection ends, at most `most` times; what was said at the end.
async fn play(lab: &Lab, setup: &[u8], most: u32, round: impl Fn(u32) -> Vec<u8>) -> Outcome {
    let mut raw = Raw::connect(lab.addr).await;
    raw.write(setup).await;
    let (mut reader, mut writer) = raw.stream.into_split();
    let write = async {
        use tokio::io::AsyncWriteExt;
        for turn in 0..most / 64 {
            let bytes: Vec<u8> = (0..64).flat_map(|i| round((turn * 64 + i) * 2 + 1)).collect();
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        // Kept open: the other side has to end it.
        writer
    };
    let read = async {
        use tokio::io::AsyncReadExt;
        let mut last = Closed;
        loop {
            let mut head = [0; 9];
            if reader.read_exact(&mut head).await.is_err() {
                return last;
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if reader.read_exact(&mut payload).await.is_err() {
                return last;
            }
            if head[3] == GOAWAY {
                last = GoAway(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
    };
    let both = async { tokio::join!(write, read) };
    tokio::time::timeout(PATIENCE, both).await.expect("the connection is ended").1
}

async fn check(name: &str, setup: &[u8], most: u32, allowed: &[Outcome], round: impl Fn(u32) -> Vec<u8>) {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let mut other = H2Client::connect(lab.addr).await;
    assert_eq!(other.get("/").await.status, 200);
    let attack = play(&lab, setup, most, round);
    let during = async {
        let mut served = 0;
        for _ in 0..20 {
            served += u32::from(other.get("/").await.status == 200);
        }
        served
    };
    let (got, served) = tokio::join!(attack, during);
    assert!(allowed.contains(&got), "{name}: {got:?}");
    assert_eq!(served, 20, "{name}: others are served meanwhile");
    assert_eq!(H2Client::connect(lab.addr).await.get("/").await.text(), "e0", "{name}: and afterwards");
    assert_eq!(Client::connect(lab.addr).await.get("/").await.1, "e0", "{name}: in HTTP/1.1, too");
    lab.stop().await;
}

const CALM: &[Outcome] = &[GoAway(ENHANCE_YOUR_CALM)];

#[tokio::test(flavor = "multi_thread")]
async fn rapid_reset() {
    let reset = |stream| [get(stream), frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat();
    check("requests reset at once", &[], 100_000, CALM, reset).await;
    let slow = |stream| {
        let head = frame(HEADERS, END_STREAM | END_HEADERS, stream, &request("GET", "/slow", &[]));
        [head, frame(PING, 0, 0, &[0; 8]), frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat()
    };
    check("requests reset when they are served", &[], 100_000, CALM, slow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn made_you_reset() {
    let overflow = |stream| {
        let head = frame(HEADERS, END_HEADERS, stream, &request("POST", "/slow", &[]));
        [head, frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])].concat()
    };
    check("window overflow", &[], 20_000, CALM, overflow).await;
    let zero = |stream| {
        let head = frame(HEADERS, END_HEADERS, stream, &request("POST", "/slow", &[]));
        [head, frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat()
    };
    // The crate takes a broken increment for a broken connection.
    check("window update of 0", &[], 20_000, &[GoAway(ENHANCE_YOUR_CALM), GoAway(PROTOCOL_ERROR)], zero).await;
    let closed = |stream| {
        let head = frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/slow", &[]));
        [head, frame(DATA, 0, stream, b"x")].concat()
    };
    check(
        "DATA behind the end",
        &[],
        20_000,
        &[GoAway(ENHANCE_YOUR_CALM), GoAway(STREAM_CLOSED), GoAway(PROTOCOL_ERROR)],
        closed,
    )
    .await;
    let malformed = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/", &[("te", "gzip")]));
    check("malformed requests", &[], 20_000, CALM, malformed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn continuation_flood() {
    let start = frame(HEADERS, END_STREAM, 1, &request("GET", "/", &[]));
    check("empty", &start, 200_000, CALM, |_| frame(CONTINUATION, 0, 1, &[])).await;
    let field = block(&[("x", &"y".repeat(200))]);
    check("fields without end", &start, 200_000, CALM, |_| frame(CONTINUATION, 0, 1, &field)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_without_progress() {
    let post = frame(HEADERS, END_HEADERS, 1, &request("POST", "/length", &[]));
    check("PING", &[], 200_000, CALM, |_| frame(PING, 0, 0, &[1; 8])).await;
    check("SETTINGS", &[], 200_000, CALM, |_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9])).await;
    check("PRIORITY", &[], 200_000, CALM, |stream| frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 1])).await;
    check("unknown frames", &[], 200_000, CALM, |_| frame(0xbe, 0, 0, b"x")).await;
    check("window updates", &[], 200_000, CALM, |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])).await;
    check("empty DATA", &post, 200_000, CALM, |_| frame(DATA, 0, 1, &[])).await;
    check("DATA of padding", &post, 2_000_000, CALM, |_| frame(DATA, PADDED, 1, &[3, 0, 0, 0])).await;
}

/// A small block that refers to a large table entry again and again (CVE-2016-6581).
#[tokio::test(flavor = "multi_thread")]
async fn hpack_bomb() {
    let mut bomb = request("GET", "/", &[]);
    // A literal with indexing of 4,000 bytes, then references to it.
    bomb.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    bomb.extend(vec![b'y'; 4_000]);
    bomb.extend(vec![0xbe; 12_000]);
    let head = frame(HEADERS, END_STREAM | END_HEADERS, 1, &bomb[..bomb.len().min(16_384)]);
    check("bomb", &head, 64, CALM, |_| frame(PING, 0, 0, &[1; 8])).await;
}

/// A client that asks for much and takes nothing: what waits for it is bounded in bytes and time.
#[tokio::test(flavor = "multi_thread")]
async fn zero_window_stall() {
    let [endpoint] = endpoints::<1>().await;
    let lab =
        Lab::start("http", &[endpoint.addr], |config| config.proxy.send_timeout = Duration::from_millis(300)).await;
    let mut raw = Raw::connect(lab.addr).await;
    raw.write(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    raw.write(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &request("GET", "/stream/8", &[]))).await;
    raw.next_of(HEADERS).await;
    let reset = raw.next_of(RST_STREAM).await;
    assert_eq!((reset.stream, &reset.payload[..]), (1, &CANCEL.to_be_bytes()[..]), "the stream is given up");
    assert_eq!(H2Client::connect(lab.addr).await.get("/").await.text(), "e0");
    lab.stop().await;
}

/// More streams than allowed are refused; those within the limit are served.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_streams() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let mut raw = Raw::connect(lab.addr).await;
    let slow = |stream| frame(HEADERS, END_STREAM | END_HEADERS, stream, &request("GET", "/slow", &[]));
    let all: Vec<u8> = (0..300).flat_map(|i| slow(i * 2 + 1)).collect();
    raw.write(&all).await;
    let (mut refused, mut served) = (0, 0);
    while refused + served < 300 {
        let frame = raw.next().await.expect("the connection stays");
        match frame.kind {
            RST_STREAM => {
                assert_eq!(frame.payload, REFUSED_STREAM.to_be_bytes());
                refused += 1;
            }
            HEADERS => served += 1,
            _ => {}
        }
    }
    assert!(served >= 100 && refused > 0, "{served} served, {refused} refused");
    lab.stop().await;
}

/// Connections that say nothing are closed, in whatever state they are.
#[tokio::test(flavor = "multi_thread")]
async fn silence() {
    let [endpoint] = endpoints::<1>().await;
    let lab =
        Lab::start("http", &[endpoint.addr], |config| config.proxy.header_read_timeout = Duration::from_millis(300))
            .await;
    for (name, bytes) in [
        ("half a preface", PREFACE[..20].to_vec()),
        ("only a preface", PREFACE.to_vec()),
        ("an idle connection", [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()),
        (
            "a header block that does not end",
            [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 0, 1, b"")].concat(),
        ),
        (
            "a body that does not come, PINGs unanswered",
            [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END_HEADERS, 1, &request("POST", "/length", &[]))]
                .concat(),
        ),
    ] {
        let mut raw = Raw { stream: tokio::net::TcpStream::connect(lab.addr).await.unwrap() };
        raw.write(&bytes).await;
        while raw.next().await.is_some() {}
        assert!(endpoint.served() <= 1, "{name}");
    }
    lab.stop().await;
}
