//! Writes lines to standard output or a file, which is put aside when it is large. The only place that does I/O for the access log.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio_util::sync::CancellationToken;

use crate::observe::{AccessTarget, Observers};

/// Lines written in one go.
const MAX_BATCH: usize = 512;

/// Where lines are written.
#[derive(Debug)]
pub(crate) struct Writer {
    target: AccessTarget,
    max_bytes: u64,
    kept: u32,
    /// The open file and its size.
    file: Option<(File, u64)>,
    /// A failure was told already.
    failing: bool,
}

impl Writer {
    /// Opens nothing.
    pub fn new(target: AccessTarget, max_bytes: u64, kept: u32) -> Self {
        Self { target, max_bytes, kept, file: None, failing: false }
    }

    /// Writes `bytes`, whole lines. A file that fails is opened again the next time.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let AccessTarget::File(path) = &self.target else {
            let mut out = io::stdout().lock();
            out.write_all(bytes)?;
            return out.flush();
        };
        let length = bytes.len() as u64;
        if self.file.as_ref().is_some_and(|(_, size)| *size > 0 && size.saturating_add(length) > self.max_bytes) {
            self.file = None;
            put_aside(path, self.kept)?;
        }
        let (mut file, size) = match self.file.take() {
            Some(open) => open,
            None => {
                let file = File::options().create(true).append(true).open(path)?;
                let size = file.metadata()?.len();
                (file, size)
            }
        };
        file.write_all(bytes)?;
        self.file = Some((file, size + length));
        Ok(())
    }
}

/// `path` becomes `path.1`, that one `path.2`, and so on; the oldest of `kept` is overwritten.
fn put_aside(path: &Path, kept: u32) -> io::Result<()> {
    let numbered = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    if kept == 0 {
        return std::fs::remove_file(path);
    }
    for number in (1..kept).rev() {
        match std::fs::rename(numbered(number), numbered(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::rename(path, numbered(1))
}

/// Writes what the threads log until `stop`, then what is queued.
pub(crate) async fn run(observers: Arc<Observers>, stop: CancellationToken) {
    let Some(sink) = &observers.access else { return };
    let Some((mut lines, mut writer)) = sink.waiting.lock().take() else { return };
    loop {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        tokio::select! {
            biased;
            _ = lines.recv_many(&mut batch, MAX_BATCH) => {}
            () = stop.cancelled() => return,
        }
        let count = batch.len() as u64;
        let written = tokio::task::spawn_blocking(move || {
            let outcome = writer.write(&batch.concat());
            (writer, outcome)
        });
        // Only a runtime that ends refuses.
        let Ok((back, outcome)) = written.await else { return };
        writer = back;
        match outcome {
            Ok(()) => {
                writer.failing = false;
                sink.written.fetch_add(count, Relaxed);
            }
            Err(error) => {
                sink.dropped.fetch_add(count, Relaxed);
                if !std::mem::replace(&mut writer.failing, true) {
                    tracing::error!(target = ?writer.target, %error, "the access log cannot be written; lines are lost");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_put_aside_by_size_and_the_oldest_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("access.log");
        std::fs::write(&path, "old\n").expect("written");
        let mut writer = Writer::new(AccessTarget::File(path.clone()), 10, 2);
        for line in ["one\n", "two\n", "three\n", "four\n", "a line longer than the limit\n", "five\n"] {
            writer.write(line.as_bytes()).expect("written");
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).ok();
        assert_eq!(read("access.log").as_deref(), Some("five\n"));
        assert_eq!(read("access.log.1").as_deref(), Some("a line longer than the limit\n"));
        assert_eq!(read("access.log.2").as_deref(), Some("four\n"));
        assert_eq!(read("access.log.3"), None);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_tried_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = dir.path().join("logs");
        let mut writer = Writer::new(AccessTarget::File(folder.join("a")), 100, 1);
        assert!(writer.write(b"lost\n").is_err());
        std::fs::create_dir(&folder).expect("made");
        writer.write(b"kept\n").expect("written");
        assert_eq!(std::fs::read_to_string(folder.join("a")).expect("read"), "kept\n");
    }
}
