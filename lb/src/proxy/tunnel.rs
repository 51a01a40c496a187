//! Bytes both ways until both sides are done: plain TCP, and connections that left HTTP by a 101 response.
//!
//! A connection over which nothing goes holds no buffer.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::buffer::{Buffer, LARGE, Stock};
use super::io::{Link, Source, send};

/// A silence is noticed at the latest this share of the longest one after it became too long.
const SILENCE_STEPS: u32 = 4;

/// Which way counted bytes went.
#[derive(Clone, Copy)]
pub(crate) enum Direction {
    FromClient,
    ToClient,
}

/// Ends when nothing was counted for `longest` (or a quarter more); never, if there is no limit.
pub(crate) async fn silence(longest: Option<Duration>, active: &Cell<bool>) {
    let Some(longest) = longest else { return std::future::pending().await };
    let mut silent = 0;
    while silent < SILENCE_STEPS {
        active.set(false);
        tokio::time::sleep(longest / SILENCE_STEPS).await;
        silent = if active.get() { 0 } else { silent + 1 };
    }
}

/// Copies both ways until both sides have ended, or either fails; `early` was received from the client and the endpoint
/// before. `count` learns what passes as it passes, so that long connections show up before they end.
pub(crate) async fn join<R: Source, W: AsyncWrite + Unpin>(
    client: (&mut R, &mut W),
    mut endpoint: Link,
    early: [Buffer; 2],
    stock: &Stock,
    count: &impl Fn(Direction, u64),
) -> io::Result<()> {
    let (mut reader, mut writer) = endpoint.halves();
    let [from_client, from_endpoint] = early;
    tokio::try_join!(
        pipe(client.0, &mut writer, from_client, stock, |bytes| count(Direction::FromClient, bytes)),
        pipe(&mut reader, client.1, from_endpoint, stock, |bytes| count(Direction::ToClient, bytes)),
    )?;
    Ok(())
}

/// One direction, half-close included.
async fn pipe<R: Source, W: AsyncWrite + Unpin>(
    from: &mut R,
    to: &mut W,
    mut input: Buffer,
    stock: &Stock,
    count: impl Fn(u64),
) -> io::Result<()> {
    loop {
        if !input.is_empty() {
            let bytes = input.bytes();
            send(to, bytes).await?;
            count(bytes.len() as u64);
            input.consume(usize::MAX);
        }
        input.release(stock);
        if input.fill(from, stock, LARGE).await? == 0 {
            return to.shutdown().await;
        }
    }
}
