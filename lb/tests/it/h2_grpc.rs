//! gRPC over HTTP/2 on both sides: unary calls, streams, trailers, cancellation, errors.

use bytes::Bytes;
use http::HeaderMap;

use crate::h2_support::*;
use crate::support::*;

const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc"), ("te", "trailers")];

async fn lab(endpoint: &H2Endpoint) -> Lab {
    Lab::start("grpc", &[endpoint.addr], |_| {}).await
}

#[tokio::test(flavor = "multi_thread")]
async fn unary_calls_end_with_trailers() {
    let endpoint = H2Endpoint::start("h0").await;
    let lab = lab(&endpoint).await;
    let mut client = H2Client::connect(lab.addr).await;
    let answer = client.try_send("POST", "/grpc", GRPC, b"\0\0\0\0\0").await.unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"\0\0\0\0\x02hi"[..]));
    assert_eq!(answer.trailers.unwrap().get("grpc-status").unwrap(), "0");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_grpc_pass() {
    let endpoint = H2Endpoint::start("h0").await;
    let lab = lab(&endpoint).await;
    let mut client = H2Client::connect(lab.addr).await;
    let fields = [&[("grpc-timeout", "5S"), ("grpc-encoding", "identity"), ("x-bin", "AAEC")], GRPC].concat();
    let seen = client.try_send("POST", "/headers", &fields, b"\0\0\0\0\0").await.unwrap().text();
    for line in ["te: trailers\n", "content-type: application/grpc\n", "grpc-timeout: 5S\n", "x-bin: AAEC\n"] {
        assert!(seen.contains(line), "{line:?} in {seen}");
    }
    lab.stop().await;
}

/// Messages pass as they come, both ways, for as long as both sides like; trailers of both.
#[tokio::test(flavor = "multi_thread")]
async fn bidirectional_streams() {
    let endpoint = H2Endpoint::start("h0").await;
    let lab = lab(&endpoint).await;
    let mut client = H2Client::connect(lab.addr).await;
    let (response, mut sink) = client.open("POST", "/echo", GRPC, false).await;
    let mut body = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
    for turn in 0..100 {
        let message = Bytes::from(format!("message {turn}"));
        write(&mut sink, message.clone(), false).await.unwrap();
        let echo = tokio::time::timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap();
        body.flow_control().release_capacity(echo.len()).unwrap();
        assert_eq!(echo, message);
    }
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "100".parse().unwrap())]);
    sink.send_trailers(trailers.clone()).unwrap();
    assert!(tokio::time::timeout(PATIENCE, body.data()).await.unwrap().is_none());
    assert_eq!(body.trailers().await.unwrap(), Some(trailers));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_without_a_message_are_trailers_only() {
    let endpoint = H2Endpoint::start("h0").await;
    let lab = lab(&endpoint).await;
    let mut client = H2Client::connect(lab.addr).await;
    let answer = client.try_send("POST", "/grpc-error", GRPC, b"\0\0\0\0\0").await.unwrap();
    assert_eq!((answer.status, answer.field("grpc-status"), answer.body.len()), (200, "5", 0));
    assert!(answer.trailers.is_none());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_call_is_cancelled_at_the_endpoint() {
    let endpoint = H2Endpoint::start("h0").await;
    let lab = lab(&endpoint).await;
    let mut client = H2Client::connect(lab.addr).await;
    let (response, mut sink) = client.open("POST", "/echo", GRPC, false).await;
    write(&mut sink, Bytes::from_static(b"begun"), false).await.unwrap();
    let mut body = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
    assert_eq!(tokio::time::timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap(), "begun");
    sink.send_reset(h2::Reason::CANCEL);
    endpoint.until_cancelled(1).await;
    assert_eq!(client.try_send("POST", "/grpc", GRPC, b"\0\0\0\0\0").await.unwrap().status, 200);
    lab.stop().await;
}

/// A receiver that takes nothing stops the sender at the far end: nobody buffers in between.
#[tokio::test(flavor = "multi_thread")]
async fn backpressure_reaches_the_sender() {
    let endpoint = H2Endpoint::start("h0").await;
    let lab = lab(&endpoint).await;
    let mut client = H2Client::connect(lab.addr).await;
    let (response, mut sink) = client.open("POST", "/echo", GRPC, false).await;
    let mut body = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
    // Nobody reads the echo, so windows run out along the way.
    let mut sent = 0;
    let stuck = async {
        loop {
            write(&mut sink, Bytes::from(vec![b'x'; 16_384]), false).await.unwrap();
            sent += 16_384;
        }
    };
    let stuck = tokio::time::timeout(std::time::Duration::from_secs(2), stuck).await;
    assert!(stuck.is_err() && sent < 8 * MIB, "{sent} bytes went somewhere");
    // And on again, as soon as somebody does.
    let first = tokio::time::timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap();
    body.flow_control().release_capacity(first.len()).unwrap();
    sink.send_reset(h2::Reason::CANCEL);
    endpoint.until_cancelled(1).await;
    lab.stop().await;
}
