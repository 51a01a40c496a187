//! Bytes both ways until both sides are done: plain TCP, and connections that left HTTP by a 101 response.
//!
//! A connection over which nothing goes holds no buffer. Much that goes from one TCP connection to another does not pass through our
//! memory ([`splice`]).

use std::cell::Cell;
use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::buffer::{Buffer, LARGE, Stock};
use super::io::{Link, Sink, Source, send};
use super::splice::{self, Moved};

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
pub(crate) async fn join<R: Source, W: Sink>(
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
async fn pipe<R: Source, W: Sink>(
    from: &mut R,
    to: &mut W,
    mut input: Buffer,
    stock: &Stock,
    count: impl Fn(u64),
) -> io::Result<()> {
    let mut copied = 0;
    loop {
        if !input.is_empty() {
            let bytes = input.bytes();
            send(to, bytes).await?;
            count(bytes.len() as u64);
            copied += bytes.len() as u64;
            input.consume(usize::MAX);
        }
        input.release(stock);
        if copied >= splice::WORTH_BYTES {
            if let Some((from, to)) = from.plain().zip(to.plain())
                && spliced(from, to, stock, &count).await?
            {
                break;
            }
            copied = 0;
        }
        if input.fill(from, stock, LARGE).await? == 0 {
            break;
        }
    }
    to.shutdown().await
}

/// Moves bytes as long as they come in large pieces; whether they have ended.
async fn spliced(from: &TcpStream, to: &TcpStream, stock: &Stock, count: &impl Fn(u64)) -> io::Result<bool> {
    loop {
        from.readable().await?;
        let Some(pipe) = stock.pipes.take() else { return Ok(false) };
        match pipe.move_all(from, to, count).await? {
            Moved::All => return Ok(true),
            Moved::Waits(true) => {}
            Moved::Waits(false) => return Ok(false),
        }
    }
}
