//! Bytes both ways until both sides are done: plain TCP, and connections that left HTTP by a 101 response.
//!
//! A connection over which nothing goes holds no buffer.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::buffer::{Buffer, LARGE, Stock};
use super::http::Conn;
use super::pool::Upstream;
use super::record::Record;

/// Which way counted bytes went.
#[derive(Clone, Copy)]
pub(crate) enum Direction {
    FromClient,
    ToClient,
}

/// Passes the 101 in `conn.reply` on and joins the client's connection with the endpoint's.
pub(crate) async fn upgrade(conn: &mut Conn<'_>, upstream: Upstream, record: &Record) {
    let count = |direction, bytes| match direction {
        Direction::FromClient => record.received(bytes),
        Direction::ToClient => record.sent(bytes),
    };
    let joined = async {
        conn.writer.write_all(&conn.reply).await?;
        // Bytes that came with the 101, and those that the client did not wait with.
        let early = [std::mem::take(&mut conn.input), upstream.input];
        let client = (&mut conn.reader, &mut conn.writer);
        join(client, upstream.stream, early, &record.worker.stock, &count).await
    };
    if let Err(error) = joined.await {
        tracing::trace!(%error, "upgraded connection ended");
    }
}

/// Copies both ways until both sides have ended, or either fails; `early` was received from the client and the endpoint
/// before. `count` learns what passes as it passes, so that long connections show up before they end.
pub(crate) async fn join(
    client: (&mut ReadHalf<'_>, &mut WriteHalf<'_>),
    mut endpoint: TcpStream,
    early: [Buffer; 2],
    stock: &Stock,
    count: &impl Fn(Direction, u64),
) -> io::Result<()> {
    let (mut reader, mut writer) = endpoint.split();
    let [from_client, from_endpoint] = early;
    tokio::try_join!(
        pipe(client.0, &mut writer, from_client, stock, |bytes| count(Direction::FromClient, bytes)),
        pipe(&mut reader, client.1, from_endpoint, stock, |bytes| count(Direction::ToClient, bytes)),
    )?;
    Ok(())
}

/// One direction, half-close included.
async fn pipe(
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    mut input: Buffer,
    stock: &Stock,
    count: impl Fn(u64),
) -> io::Result<()> {
    loop {
        if !input.is_empty() {
            let bytes = input.bytes();
            to.write_all(bytes).await?;
            count(bytes.len() as u64);
            input.consume(usize::MAX);
        }
        input.release(stock);
        if input.fill(from, stock, LARGE).await? == 0 {
            return to.shutdown().await;
        }
    }
}
