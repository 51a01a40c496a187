//! One attempt at an HTTP/2 endpoint for a request of an HTTP/2 client: streams are joined, trailers and cancellation included.

use std::cell::Cell;
use std::task::Poll;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};

use super::forward::Job;
use super::stream::{Body, Reply, Stream};
use super::transfer::{both, send};
use super::upstream::{Came, Heads, Lease};
use super::{Broke, response};
use crate::proxy::request::Framing;

/// Sends the request over a stream of `lease` and relays the response.
pub(super) async fn exchange(
    stream: &mut Stream,
    job: &Job<'_>,
    lease: &Lease,
    request: Request<()>,
) -> Result<(), Broke> {
    let ended = job.head.framing == Framing::None;
    let (future, mut sink) = lease.send(request, ended).await?;
    let uploaded = Cell::new(ended);
    let (mut body, reply) = stream.split(job);
    let upload = async {
        if !ended {
            let sent = upload(&mut body, job, &mut sink).await;
            uploaded.set(true);
            return sent;
        }
        Ok(())
    };
    let download = async {
        let mut heads = Heads::new(future);
        let head = async {
            loop {
                match heads.next().await? {
                    Came::Interim(interim) => reply.interim(job, interim),
                    Came::Head(response) => return Ok(response),
                }
            }
        };
        let response = reply.wait(job, &uploaded, head).await?;
        relay(job, &reply, response).await
    };
    both(upload, download).await.map(|((), _)| ())
}

async fn upload(body: &mut Body<'_>, job: &Job<'_>, sink: &mut SendStream<Bytes>) -> Result<(), Broke> {
    while let Some(data) = body.next().await? {
        let length = data.len();
        send(sink, data, false, job.patience()).await.map_err(|_| Broke::Endpoint)?;
        body.pass(length);
    }
    let ended = match body.trailers().await? {
        Some(mut trailers) => {
            response::clean_trailers(&mut trailers);
            sink.send_trailers(trailers)
        }
        None => sink.send_data(Bytes::new(), true),
    };
    ended.map_err(|_| Broke::Endpoint)
}

/// Passes a response on.
pub(super) async fn relay(job: &Job<'_>, reply: &Reply<'_>, response: Response<RecvStream>) -> Result<(), Broke> {
    let (parts, mut body) = response.into_parts();
    let mut response = Response::new(());
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    response::strip(response.headers_mut());
    job.judge(reply, &response)?;
    if body.is_end_stream() {
        reply.head(job, response, true)?;
        return Ok(());
    }
    let mut client = reply.head(job, response, false)?;
    while let Some(data) = next(&mut body, &mut client).await? {
        let length = data.len();
        let end = body.is_end_stream();
        send(&mut client, data, end, job.patience()).await.map_err(|_| Broke::Client)?;
        job.record.sent(length as u64);
        // Window that cannot be given back belongs to a stream that is over.
        let _ = body.flow_control().release_capacity(length);
        if end {
            return Ok(());
        }
    }
    let ended = match trailers(&mut body).await? {
        Some(mut trailers) => {
            response::clean_trailers(&mut trailers);
            client.send_trailers(trailers)
        }
        None => client.send_data(Bytes::new(), true),
    };
    ended.map_err(|_| Broke::Client)
}

/// The endpoint's next piece; notices when the client cancels meanwhile.
async fn next(body: &mut RecvStream, client: &mut SendStream<Bytes>) -> Result<Option<Bytes>, Broke> {
    std::future::poll_fn(|cx| {
        if let Poll::Ready(data) = body.poll_data(cx) {
            return Poll::Ready(data.transpose().map_err(|_| Broke::Midway));
        }
        client.poll_reset(cx).map(|_| Err(Broke::Client))
    })
    .await
}

async fn trailers(body: &mut RecvStream) -> Result<Option<HeaderMap>, Broke> {
    std::future::poll_fn(|cx| body.poll_trailers(cx)).await.map_err(|_| Broke::Midway)
}
