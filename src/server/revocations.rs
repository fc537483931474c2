//! The keeper of the revocations: it holds the set, tells the workers of every change and saves
//! it. It lives on the control thread, shared by the control loop and the admin listener.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::revocation_file::{self, FileError};
use crate::base::time::UnixTime;
use crate::protocol::revocation::{Full, Hasher, Inserted, Revocation, RevocationSet, Revoked};

/// How long after a failed save the next is tried.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Whether a change holds for good.
pub type Kept = Result<(), String>;

/// Holds every revocation.
pub struct RevocationStore {
    set: RevocationSet,
    file: Option<PathBuf>,
    /// Most entries.
    max: usize,
    /// Grows with each change of the set.
    changes: u64,
    /// Changes that workers were told of, `published <= changes`.
    published: u64,
    /// Changes that the file has, `saved <= changes`.
    saved: u64,
    /// Changes that the save under way will have put in the file.
    saving: Option<u64>,
    retry_at: Option<Instant>,
    done_in: UnboundedSender<(u64, std::io::Result<()>)>,
    done: UnboundedReceiver<(u64, std::io::Result<()>)>,
    /// Who waits until so many changes hold for good.
    waiting: Vec<(u64, oneshot::Sender<Kept>)>,
    refused: u64,
    save_failures: u64,
}

impl RevocationStore {
    /// A keeper of what the file holds.
    ///
    /// # Errors
    /// [`FileError`]: starting without the file would let the revoked in again.
    pub fn open(
        file: Option<PathBuf>,
        hasher: Hasher,
        max: usize,
        now: UnixTime,
    ) -> Result<RevocationStore, FileError> {
        let saved = match &file {
            Some(path) => revocation_file::load(path, max)?,
            None => revocation_file::Saved::default(),
        };
        let set = RevocationSet::restored(hasher, saved.next_id, saved.entries, now);
        let (done_in, done) = unbounded_channel();
        Ok(RevocationStore {
            set,
            file,
            max,
            changes: 0,
            published: 0,
            saved: 0,
            saving: None,
            retry_at: None,
            done_in,
            done,
            waiting: Vec::new(),
            refused: 0,
            save_failures: 0,
        })
    }

    /// Saves what there is, to see at the start whether that works. Within a tokio-uring
    /// runtime only.
    ///
    /// # Errors
    /// What the kernel says of the file.
    pub async fn try_file(&self) -> Result<(), FileError> {
        let Some(path) = self.file.clone() else { return Ok(()) };
        Ok(revocation_file::replace(path, revocation_file::format(&self.set)).await?)
    }

    /// What workers need at their start.
    pub fn snapshot(&self) -> Arc<Revoked> {
        Arc::new(self.set.snapshot())
    }

    /// Every entry with an id above `after`, in order.
    pub fn after(&self, after: u64) -> impl Iterator<Item = (u64, &Revocation)> {
        self.set.after(after)
    }

    /// How many entries are held.
    pub fn held(&self) -> usize {
        self.set.len()
    }

    /// How many were refused for want of room.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// How many saves failed.
    pub fn save_failures(&self) -> u64 {
        self.save_failures
    }

    /// Whether entries outlive a restart.
    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Takes a revocation in. It is in force within a poll and a turn of the workers.
    ///
    /// # Errors
    /// [`Full`]; this is counted.
    pub fn insert(&mut self, revocation: Revocation, now: UnixTime) -> Result<Inserted, Full> {
        // What has lapsed must not stand in the way of what is needed.
        self.lapse(now);
        let inserted = self.set.insert(revocation, self.max, now);
        match inserted {
            Ok(Inserted::New(_)) => self.changes += 1,
            Ok(Inserted::Covered(_) | Inserted::Lapsed) => {}
            Err(_) => self.refused += 1,
        }
        inserted
    }

    /// How many entries there may be from now on. Those that are there stay.
    pub fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Takes an entry back; false when there is none of this id.
    pub fn remove(&mut self, id: u64) -> bool {
        let removed = self.set.remove(id);
        self.changes += u64::from(removed);
        removed
    }

    /// Answers once every change so far is in force, and in the file where there is one.
    pub fn kept(&mut self) -> oneshot::Receiver<Kept> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.push((self.changes, sender));
        receiver
    }

    /// Forgets what has lapsed. The file need not know: it is judged again when it is read.
    pub fn lapse(&mut self, now: UnixTime) {
        self.set.lapse(now);
    }

    /// The picture for the workers, when it changed since the last call.
    pub fn take_update(&mut self) -> Option<Arc<Revoked>> {
        let changed = self.published < self.changes;
        self.published = self.changes;
        changed.then(|| self.snapshot())
    }

    /// Begins the save that is due, takes in how the last one went, and answers who waits. Within
    /// a tokio-uring runtime only.
    pub fn advance(&mut self, now: Instant) {
        while let Ok((changes, result)) = self.done.try_recv() {
            self.save_ended(changes, result, now);
        }
        let Some(path) = &self.file else { return self.answer(self.published, &Ok(())) };
        let waits = self.saving.is_some() || self.retry_at.is_some_and(|at| now < at);
        if self.saved == self.changes {
            return self.answer(self.saved, &Ok(()));
        }
        if waits {
            return;
        }
        let (path, contents, changes) =
            (path.clone(), revocation_file::format(&self.set), self.changes);
        let done = self.done_in.clone();
        self.saving = Some(changes);
        tokio_uring::spawn(async move {
            let result = revocation_file::replace(path, contents).await;
            // The keeper goes first only when the process ends.
            let _ = done.send((changes, result));
        });
    }

    /// Whether nothing waits to be saved.
    pub fn is_saved(&self) -> bool {
        self.file.is_none() || self.saved == self.changes
    }

    fn save_ended(&mut self, changes: u64, result: std::io::Result<()>, now: Instant) {
        self.saving = None;
        match result {
            Ok(()) => {
                (self.saved, self.retry_at) = (changes, None);
                self.answer(changes, &Ok(()));
            }
            Err(error) => {
                self.save_failures += 1;
                self.retry_at = Some(now + RETRY_AFTER);
                tracing::error!(%error, "revocations are in force, but could not be saved");
                let why = format!("in force until a restart, but not saved: {error}");
                self.answer(changes, &Err(why));
            }
        }
    }

    /// Answers those who wait for no more than `changes`.
    fn answer(&mut self, changes: u64, kept: &Kept) {
        for (_, waiting) in self.waiting.extract_if(.., |(wanted, _)| *wanted <= changes) {
            // Nobody may be there any more to hear it.
            let _ = waiting.send(kept.clone());
        }
    }
}
