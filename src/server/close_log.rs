//! The close log's file, written through tokio-uring's file operations. The queue is bounded:
//! when the disk is too slow, lines are dropped and counted, and nothing waits.

use std::cell::Cell;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio_uring::fs::{File, OpenOptions};

/// Lines that may wait for the disk.
pub const LINES_MAX: usize = 8192;
/// Bytes that go into one write.
const BATCH_BYTES: usize = 256 * 1024;
/// Of a file that is made here: its lines name clients' addresses.
const MODE: u32 = 0o640;
/// Errors are reported at most this often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
/// At the end of the process, how long the rest may take to be written.
const FINISH_MAX: Duration = Duration::from_secs(2);

enum Message {
    Line(String),
    Reopen,
}

/// The sending end of the close log.
pub struct CloseLog {
    queue: Sender<Message>,
    dropped: Rc<Cell<u64>>,
    writer: JoinHandle<()>,
}

impl CloseLog {
    /// Opens (or makes) the file for appending and starts its writer. Within a tokio-uring
    /// runtime only.
    ///
    /// # Errors
    /// What the kernel says of the path.
    pub async fn open(path: PathBuf) -> io::Result<CloseLog> {
        let file = open_file(&path).await?;
        let (queue, messages) = channel(LINES_MAX);
        let dropped = Rc::new(Cell::new(0));
        let writer =
            Writer { path, file: Some(file), dropped: Rc::clone(&dropped), complained: None };
        let writer = tokio_uring::spawn(writer.run(messages));
        Ok(CloseLog { queue, dropped, writer })
    }

    /// Queues one line, newline included. Never waits.
    pub fn append(&self, line: String) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.dropped.set(self.dropped.get() + 1);
        }
    }

    /// Opens the path again, after the file was renamed by log rotation.
    pub fn reopen(&self) {
        // With the queue full, rotation is the smaller trouble: the next reload tries again.
        let _ = self.queue.try_send(Message::Reopen);
    }

    /// Lines lost so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Writes what waits, for at most two seconds, and closes the file.
    pub async fn finish(self) {
        drop(self.queue);
        if tokio::time::timeout(FINISH_MAX, self.writer).await.is_err() {
            tracing::warn!("the close log could not be written to its end");
        }
    }
}

struct Writer {
    path: PathBuf,
    file: Option<File>,
    dropped: Rc<Cell<u64>>,
    complained: Option<Instant>,
}

impl Writer {
    async fn run(mut self, mut messages: Receiver<Message>) {
        while let Some(first) = messages.recv().await {
            let mut batch = Vec::new();
            let mut lines = 0;
            let mut next = Some(first);
            let mut reopen = false;
            while let Some(message) = next {
                match message {
                    Message::Line(line) => {
                        batch.extend_from_slice(line.as_bytes());
                        lines += 1;
                    }
                    Message::Reopen => reopen = true,
                }
                let full = reopen || batch.len() >= BATCH_BYTES;
                next = if full { None } else { messages.try_recv().ok() };
            }
            if !batch.is_empty()
                && let Err(error) = self.write(batch).await
            {
                self.dropped.set(self.dropped.get() + lines);
                self.complain(&error);
                self.file = None;
            }
            if reopen {
                self.file = None;
            }
        }
        if let Some(file) = self.file.take() {
            let _ = file.close().await;
        }
    }

    async fn write(&mut self, batch: Vec<u8>) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(open_file(&self.path).await?),
        };
        // O_APPEND: the offset is not looked at.
        file.write_all_at(batch, 0).await.0
    }

    fn complain(&mut self, error: &io::Error) {
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
            self.complained = Some(Instant::now());
            let (path, dropped) = (self.path.display(), self.dropped.get());
            tracing::error!(%path, %error, dropped, "cannot write the close log");
        }
    }
}

async fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(MODE).open(path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn lines_are_appended_in_order_and_rotation_makes_a_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("close.log"), folder.path().join("close.log.1"));
        std::fs::write(&path, "earlier\n").unwrap();
        tokio_uring::start(async {
            let log = CloseLog::open(path.clone()).await.unwrap();
            for number in 0..1000 {
                log.append(format!("line {number}\n"));
            }
            // The writer has its turn before the rename.
            tokio::time::sleep(Duration::from_millis(50)).await;
            std::fs::rename(&path, &old).unwrap();
            log.append("the last of the old\n".into());
            log.reopen();
            log.append("the first of the new\n".into());
            assert_eq!(log.dropped(), 0);
            log.finish().await;
        });
        let written = lines(&old);
        assert_eq!(written.len(), 1002);
        assert_eq!(written[0], "earlier");
        assert_eq!(written[1000], "line 999");
        assert_eq!(written[1001], "the last of the old");
        assert_eq!(lines(&path), ["the first of the new"]);
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
        assert_eq!(mode & 0o7777 & !MODE, 0, "{mode:o}");
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("close.log");
        tokio_uring::start(async {
            let log = CloseLog::open(path.clone()).await.unwrap();
            // No await between: the writer cannot run.
            for number in 0..LINES_MAX + 5 {
                log.append(format!("{number}\n"));
            }
            assert_eq!(log.dropped(), 5);
            log.finish().await;
        });
        assert_eq!(lines(&path).len(), LINES_MAX);
    }

    #[test]
    fn failed_writes_are_counted_as_dropped() {
        tokio_uring::start(async {
            // Every write to this device fails with ENOSPC.
            let log = CloseLog::open("/dev/full".into()).await.unwrap();
            log.append("lost\n".into());
            let dropped = Rc::clone(&log.dropped);
            log.finish().await;
            assert_eq!(dropped.get(), 1);
            let missing = CloseLog::open("/nowhere/close.log".into()).await;
            assert_eq!(missing.err().map(|error| error.kind()), Some(io::ErrorKind::NotFound));
        });
    }
}
