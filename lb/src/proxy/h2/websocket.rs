//! WebSockets of HTTP/2 clients (RFC 8441): an extended CONNECT becomes an HTTP/1.1 upgrade towards the endpoint, its 101 a 200 towards the
//! client, and then bytes go both ways.
//!
//! To an endpoint that speaks HTTP/2 the way leads over [`super::bridge`], which makes an extended CONNECT of the upgrade again.
//!
//! The key and its answer (RFC 6455 §4.1) are between us and the endpoint, as RFC 8441 §5 has none. An end of the client's stream is the end of
//! what we send, and the other way round; a reset stands for a broken connection.

use std::cell::Cell;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use http::{HeaderName, StatusCode};
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::Broke;
use super::forward::Job;
use super::http1::{Download, write_head};
use super::response::Parsed;
use super::stream::{Body, Stream};
use crate::proxy::tunnel;

pub(super) const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
pub(super) const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
/// What an endpoint proves that it understood (RFC 6455 §1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Asks an endpoint to switch and passes its answer on; if it did, serves the tunnel until both sides have ended. Whether the connection
/// can be used again.
pub(super) async fn exchange(
    stream: &mut Stream,
    job: &Job<'_>,
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
) -> Result<bool, Broke> {
    let key = BASE64_STANDARD.encode(rand::random::<[u8; 16]>());
    let mut out = Vec::with_capacity(512);
    job.write_http1(Some(&key), &mut out);
    write_head(&mut writer, &out).await?;
    let (body, reply) = stream.split(job);
    let mut download = Download::new(job, &mut reader, BytesMut::new());
    let mut head = reply.wait(job, &Cell::new(true), download.head(Some(&reply))).await?;
    if head.response.status() != StatusCode::SWITCHING_PROTOCOLS {
        if head.response.status().is_success() {
            // It would tell the client that the tunnel is open.
            return Err(Broke::Malformed);
        }
        let reusable = download.relay(&reply, head).await?;
        return Ok(reusable && download.pending.is_empty());
    }
    switch(&mut head, &key)?;
    job.judge(&reply, &head.response)?;
    let mut client = reply.head(job, head.response, false)?;
    let active = Cell::new(true);
    let joined = async {
        tokio::try_join!(upload(body, &mut writer, &active), download_all(&mut download, &mut client, &active))
    };
    let ended = tokio::select! {
        joined = joined => joined.is_ok(),
        () = tunnel::silence(job.record.rule.policy.idle_timeout, &active) => false,
    };
    if !ended {
        // RFC 8441 §5
        client.send_reset(Reason::CANCEL);
    }
    Ok(false)
}

/// Makes the client's answer of a 101, if that is the one to our key.
fn switch(head: &mut Parsed, key: &str) -> Result<(), Broke> {
    let fields = head.response.headers_mut();
    let proof = fields.remove(ACCEPT);
    if !head.websocket || proof.is_none_or(|proof| proof.as_bytes() != proof_of(key.as_bytes()).as_bytes()) {
        return Err(Broke::Malformed);
    }
    *head.response.status_mut() = StatusCode::OK;
    Ok(())
}

/// The answer to a key.
pub(super) fn proof_of(key: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(GUID);
    BASE64_STANDARD.encode(hash.finalize())
}

async fn upload(mut body: Body<'_>, writer: &mut (impl AsyncWrite + Unpin), active: &Cell<bool>) -> Result<(), Broke> {
    while let Some(data) = body.next().await? {
        active.set(true);
        writer.write_all(&data).await.map_err(|_| Broke::Endpoint)?;
        writer.flush().await.map_err(|_| Broke::Endpoint)?;
        body.pass(data.len());
    }
    writer.shutdown().await.map_err(|_| Broke::Endpoint)
}

async fn download_all<R: AsyncRead + Unpin>(
    download: &mut Download<'_, R>,
    client: &mut SendStream<Bytes>,
    active: &Cell<bool>,
) -> Result<(), Broke> {
    loop {
        // What came with the 101 is there already.
        if !download.pending.is_empty() {
            active.set(true);
            let data = download.pending.split().freeze();
            download.pass(client, data, false).await?;
        }
        if download.fill(client).await? == 0 {
            return download.pass(client, Bytes::new(), true).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;
    use crate::proxy::request::Framing;

    /// The example of RFC 6455 §1.3.
    const EXAMPLE: (&str, &str) = ("dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");

    #[track_caller]
    fn check(websocket: bool, accept: Option<&str>, expected: bool) {
        let mut response = Response::builder().status(101).header("sec-websocket-protocol", "chat");
        if let Some(accept) = accept {
            response = response.header(ACCEPT, accept);
        }
        let response = response.body(()).expect("a head");
        let mut head = Parsed { response, framing: Framing::None, reusable: false, websocket };
        let switched = switch(&mut head, EXAMPLE.0).is_ok();
        assert_eq!(switched, expected, "{accept:?}");
        if switched {
            assert_eq!((head.response.status(), head.response.headers().len()), (StatusCode::OK, 1));
        }
    }

    #[test]
    fn only_the_answer_to_our_key_opens_the_tunnel() {
        check(true, Some(EXAMPLE.1), true);
        check(false, Some(EXAMPLE.1), false);
        check(true, None, false);
        check(true, Some("c3pPLMBiTxaQ9kYGzzhZRbK+xOo="), false);
    }
}
