//! Body pieces on their way into HTTP/2 streams, as far as windows allow, and both directions of an exchange at once.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;

use super::Broke;

/// The receiver took nothing for too long, or is gone.
#[derive(Debug)]
pub(super) struct Stalled;

/// Sends `data`, waiting at most `patience` at a time for the receiver to take more. `end`: it is the last piece.
pub(super) async fn send(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    end: bool,
    patience: Duration,
) -> Result<(), Stalled> {
    if data.is_empty() {
        return if end { stream.send_data(data, true).map_err(|_| Stalled) } else { Ok(()) };
    }
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let mut room = stream.capacity();
        if room == 0 {
            let wait = std::future::poll_fn(|cx| stream.poll_capacity(cx));
            room = match tokio::time::timeout(patience, wait).await {
                Ok(Some(Ok(room))) => room,
                _ => return Err(Stalled),
            };
        }
        let piece = data.split_to(room.min(data.len()));
        if !piece.is_empty() {
            let last = end && data.is_empty();
            stream.send_data(piece, last).map_err(|_| Stalled)?;
        }
    }
    Ok(())
}

/// Runs both directions. The exchange is over when the response is; the result also says whether the whole request was
/// sent. A request that the endpoint stops taking does not end it: the endpoint may have said why.
pub(super) async fn both<T>(
    upload: impl Future<Output = Result<(), Broke>>,
    download: impl Future<Output = Result<T, Broke>>,
) -> Result<(T, bool), Broke> {
    let (mut upload, mut download) = (pin!(upload), pin!(download));
    let (mut ended, mut sent_all) = (false, false);
    std::future::poll_fn(|cx| {
        if !ended && let Poll::Ready(result) = upload.as_mut().poll(cx) {
            ended = true;
            match result {
                Ok(()) => sent_all = true,
                Err(Broke::Endpoint | Broke::Unsent) => {}
                Err(broke) => return Poll::Ready(Err(broke)),
            }
        }
        download.as_mut().poll(cx).map(|result| result.map(|response| (response, sent_all)))
    })
    .await
}
