//! Bytes from one TCP connection to another through a pipe in the kernel (splice(2)), never through our memory: about half of what
//! copying costs where much goes, and one call more where little does (docs/benchmarks.md).
//!
//! Hence a direction begins by copying and gets a pipe after [`WORTH_BYTES`]; it gives the pipe back whenever it has to wait for more,
//! and copies again when little comes at a time. Pipes are few: what a slow receiver leaves in one is the kernel's memory.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes that a direction copies before it gets a pipe.
pub(crate) const WORTH_BYTES: u64 = 256 * 1024;
/// A direction that moves less than this at a time goes back to copying.
const MIN_PIECE_BYTES: u64 = 32 * 1024;
/// What a pipe holds: the most that the kernel gives without asking (`fs.pipe-max-size`).
const PIPE_BYTES: usize = 1024 * 1024;
/// Pipes in use by a thread at a time; further directions copy.
const MAX_PIPES: usize = 32;
/// Pipes that a thread keeps for later.
const MAX_KEPT: usize = 8;

/// A thread's pipes.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    kept: RefCell<Vec<Pipe>>,
    lent: Cell<usize>,
}

/// Empty while it is kept.
#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

/// A pipe in use. Closed when it is dropped with bytes in it.
#[derive(Debug)]
pub(crate) struct Lent<'a> {
    pipes: &'a Pipes,
    pipe: Option<Pipe>,
}

/// Why moving bytes has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// The source has ended.
    All,
    /// Nothing more is there now; whether a pipe is still worth while.
    Waits(bool),
}

impl Pipes {
    /// A pipe, unless too many are in use or the kernel has none.
    pub fn take(&self) -> Option<Lent<'_>> {
        if self.lent.get() >= MAX_PIPES {
            return None;
        }
        let kept = self.kept.borrow_mut().pop();
        let pipe = match kept {
            Some(pipe) => pipe,
            None => Pipe::open().inspect_err(|error| tracing::debug!(%error, "no pipe; bytes are copied")).ok()?,
        };
        self.lent.set(self.lent.get() + 1);
        Some(Lent { pipes: self, pipe: Some(pipe) })
    }
}

impl Pipe {
    fn open() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        fcntl_setpipe_size(&into, PIPE_BYTES)?;
        Ok(Self { out, into })
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.pipes.lent.set(self.pipes.lent.get().saturating_sub(1));
    }
}

impl Lent<'_> {
    /// Moves what is there, and what comes meanwhile, from one connection to the other. `count` learns what has passed. When this is
    /// dropped early, bytes may be lost with the pipe: both connections have to end then.
    pub async fn move_all(mut self, from: &TcpStream, to: &TcpStream, count: &impl Fn(u64)) -> io::Result<Moved> {
        let Some(pipe) = self.pipe.take() else { return Ok(Moved::Waits(false)) };
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let mut moved = 0;
        let ended = loop {
            // The pipe is empty, so that it is the connection that has nothing.
            let fill = || -> io::Result<usize> { Ok(splice(from, None, &pipe.into, None, PIPE_BYTES, flags)?) };
            let taken = match from.try_io(Interest::READABLE, fill) {
                Ok(0) => break Moved::All,
                Ok(taken) => taken,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Moved::Waits(moved >= MIN_PIECE_BYTES),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut left = taken;
            while left > 0 {
                let drain = || -> io::Result<usize> { Ok(splice(&pipe.out, None, to, None, left, flags)?) };
                match to.async_io(Interest::WRITABLE, drain).await {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(written) => left = left.saturating_sub(written),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            count(taken as u64);
            moved += taken as u64;
            tokio::task::consume_budget().await;
        };
        let mut kept = self.pipes.kept.borrow_mut();
        if kept.len() < MAX_KEPT {
            kept.push(pipe);
        }
        drop(kept);
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Two ends of a connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let (near, far) =
            tokio::join!(TcpStream::connect(listener.local_addr().expect("an address")), listener.accept());
        (near.expect("a connection"), far.expect("a connection").0)
    }

    #[tokio::test]
    async fn bytes_pass_in_order_and_the_pipe_is_kept() {
        let pipes = Pipes::default();
        let (mut source, from) = pair().await;
        let (to, mut sink) = pair().await;
        let sent: Vec<u8> = (0..5_000_000u32).map(|number| (number / 251) as u8).collect();
        let expected = sent.clone();
        let write = async {
            source.write_all(&sent).await.expect("bytes are taken");
            source.shutdown().await.expect("an end");
        };
        let total = Cell::new(0);
        let pass = async {
            loop {
                from.readable().await.expect("bytes");
                let pipe = pipes.take().expect("a pipe");
                let count = |bytes| total.set(total.get() + bytes);
                if pipe.move_all(&from, &to, &count).await.expect("bytes pass") == Moved::All {
                    break;
                }
            }
            drop(to);
        };
        let read = async {
            let mut got = Vec::new();
            sink.read_to_end(&mut got).await.expect("bytes");
            got
        };
        let ((), (), got) = tokio::join!(write, pass, read);
        assert!(got == expected, "{} bytes came", got.len());
        assert_eq!((total.get(), pipes.kept.borrow().len(), pipes.lent.get()), (5_000_000, 1, 0));
    }

    #[tokio::test]
    async fn a_pipe_with_bytes_in_it_is_not_used_again_and_there_are_not_too_many() {
        let pipes = Pipes::default();
        let (mut source, from) = pair().await;
        let (to, _sink) = pair().await;
        let much = vec![7; 64 * 1024 * 1024];
        let stuck = async {
            loop {
                from.readable().await.expect("bytes");
                let moved = pipes.take().expect("a pipe").move_all(&from, &to, &|_| {}).await.expect("bytes pass");
                assert_ne!(moved, Moved::All);
            }
        };
        // Nobody reads at the other end.
        tokio::select! {
            written = source.write_all(&much) => panic!("nobody took them: {written:?}"),
            () = stuck => {}
            () = tokio::time::sleep(std::time::Duration::from_millis(300)) => {}
        }
        assert_eq!((pipes.kept.borrow().len(), pipes.lent.get()), (0, 0), "the last one went with its bytes");
        let lent: Vec<_> = std::iter::from_fn(|| pipes.take()).take(2 * MAX_PIPES).collect();
        assert_eq!(lent.len(), MAX_PIPES);
    }
}
