//! The store of the revocations: it holds the set, publishes every change to the workers and
//! saves it. It lives on the control thread, shared by the control loop and the admin listeners;
//! the file is written on another thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::journal::{self, FileError, Journal, Record, Save, Snapshot};
use crate::base::time::UnixTime;
use crate::protocol::revocation::{
    Full, Hasher, Inserted, RevocationSet, Revoked, ScopedRevocation,
};

/// Changes that wait for the file; with more, everything is saved.
const PENDING_MAX: usize = 1024;
/// How long after a failed save the next is tried.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Whether a change holds for good.
pub type Kept = Result<(), String>;

/// Holds every revocation.
pub struct RevocationStore {
    set: RevocationSet,
    has_file: bool,
    /// `None` without a file, and while a save is under way.
    journal: Option<Journal>,
    /// Changes that no save has taken up; `None` when everything must be saved.
    pending: Option<Record>,
    /// Most entries.
    max: usize,
    /// Grows with each change of the set.
    changes: u64,
    /// Changes that workers were given, `published <= changes`.
    published: u64,
    /// Changes that the file has, `saved <= changes`.
    saved: u64,
    retry_at: Option<Instant>,
    done_in: UnboundedSender<Done>,
    done: UnboundedReceiver<Done>,
    /// Askers that wait until so many changes hold for good.
    waiting: Vec<(u64, oneshot::Sender<Kept>)>,
    refused: u64,
    save_failures: u64,
    /// The gateway that this one took over from, while it drains.
    forward: Option<UnboundedSender<ScopedRevocation>>,
}

/// A save that has ended.
struct Done {
    journal: Journal,
    /// Changes that the file has now, if it went well.
    changes: u64,
    result: std::io::Result<()>,
}

impl RevocationStore {
    /// A store of what the file holds; the file is written again, which shows whether that works.
    ///
    /// # Errors
    /// [`FileError`]: starting without the file would let the revoked in again.
    pub fn open(
        file: Option<PathBuf>,
        hasher: Hasher,
        max: usize,
        now: UnixTime,
    ) -> Result<RevocationStore, FileError> {
        let has_file = file.is_some();
        let (set, journal) = match file {
            Some(path) => {
                let (set, torn) = journal::load(&path, hasher, max, now)?;
                if torn > 0 {
                    let path = path.display();
                    tracing::warn!(
                        %path,
                        bytes = torn,
                        "the last revocation was cut off by a crash, before it was answered as \
                         saved: it is dropped"
                    );
                }
                let journal = Journal::create(path, &Snapshot::of(&set))?;
                (set, Some(journal))
            }
            None => (RevocationSet::new(hasher), None),
        };
        let (done_in, done) = unbounded_channel();
        Ok(RevocationStore {
            set,
            has_file,
            journal,
            pending: Some(Record::default()),
            max,
            changes: 0,
            published: 0,
            saved: 0,
            retry_at: None,
            done_in,
            done,
            waiting: Vec::new(),
            refused: 0,
            save_failures: 0,
            forward: None,
        })
    }

    /// What workers need at their start.
    pub fn snapshot(&self) -> Arc<Revoked> {
        Arc::new(self.set.snapshot())
    }

    /// Every entry with an id above `after`, in order.
    pub fn after(&self, after: u64) -> impl Iterator<Item = (u64, &Arc<ScopedRevocation>)> {
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
        self.has_file
    }

    /// Takes a revocation in. It is in force within a poll and a turn of the workers.
    ///
    /// # Errors
    /// [`Full`]; this is counted.
    pub fn insert(
        &mut self,
        revocation: impl Into<ScopedRevocation>,
        now: UnixTime,
    ) -> Result<Inserted, Full> {
        let revocation = revocation.into();
        // What has lapsed must not stand in the way of what is needed.
        self.lapse(now);
        let noted = self.has_file.then(|| revocation.clone());
        // What is covered here may not be there, which refuses nothing that it has.
        self.forward.take_if(|forward| forward.send(revocation.clone()).is_err());
        let inserted = self.set.insert(revocation, self.max, now);
        match inserted {
            Ok(Inserted::New(id)) => self.note(|record| {
                noted.iter().for_each(|revocation| record.add(id, revocation));
            }),
            Ok(Inserted::Covered(_) | Inserted::Lapsed) => {}
            Err(_) => self.refused += 1,
        }
        inserted
    }

    /// From now on every revocation goes to that gateway, too.
    pub fn forward(&mut self, to: UnboundedSender<ScopedRevocation>) {
        self.forward = Some(to);
    }

    /// Whether the file has everything, and no save is under way.
    pub fn can_give_up_file(&self) -> bool {
        !self.has_file || (self.journal.is_some() && self.is_saved())
    }

    /// Leaves the file to another process. What comes from now on holds, but this process no
    /// longer saves it.
    pub fn give_up_file(&mut self) {
        assert!(self.can_give_up_file(), "the file lacks revocations");
        self.has_file = false;
        self.journal = None;
    }

    /// How many entries there may be from now on. Those that are there stay.
    pub fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Takes an entry back; false when there is none of this id.
    pub fn remove(&mut self, id: u64) -> bool {
        let removed = self.set.remove(id);
        if removed {
            self.note(|record| record.remove(id));
        }
        removed
    }

    /// Counts a change, and notes it for the file.
    fn note(&mut self, note: impl FnOnce(&mut Record)) {
        self.changes += 1;
        if !self.has_file {
            return;
        }
        if let Some(pending) = &mut self.pending {
            note(pending);
        }
        self.pending.take_if(|pending| pending.changes() > PENDING_MAX);
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

    /// The snapshot for the workers, when it changed since the last call.
    pub fn take_update(&mut self) -> Option<Arc<Revoked>> {
        let changed = self.published < self.changes;
        self.published = self.changes;
        changed.then(|| self.snapshot())
    }

    /// Begins the save that is due, takes in how the last one went, and answers those that wait.
    /// Within a tokio runtime only.
    pub fn advance(&mut self, now: Instant) {
        while let Ok(done) = self.done.try_recv() {
            self.save_ended(done, now);
        }
        if !self.has_file {
            return self.answer(self.published, &Ok(()));
        }
        if self.saved == self.changes {
            return self.answer(self.saved, &Ok(()));
        }
        if self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        let Some(mut journal) = self.journal.take() else { return };
        let save = match self.pending.replace(Record::default()) {
            Some(changes) if !journal.needs_all() => Save::Changes(changes),
            _ => Save::All(Snapshot::of(&self.set)),
        };
        let (changes, done) = (self.changes, self.done_in.clone());
        tokio::task::spawn_blocking(move || {
            let result = journal.save(&save);
            // The store goes first only when the process ends.
            let _ = done.send(Done { journal, changes, result });
        });
    }

    /// Whether nothing waits to be saved.
    pub fn is_saved(&self) -> bool {
        !self.has_file || self.saved == self.changes
    }

    fn save_ended(&mut self, done: Done, now: Instant) {
        let Done { journal, changes, result } = done;
        self.journal = Some(journal);
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
            // The request that waits may have been dropped.
            let _ = waiting.send(kept.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::revocation::{Revocation, Target};

    fn subject(name: String) -> Revocation {
        let target = Target::new(Some(&name), None, None).unwrap();
        Revocation { target, lapses: UnixTime::from_seconds(100) }
    }

    async fn saved(store: &mut RevocationStore) -> Kept {
        let kept = store.kept();
        tokio::pin!(kept);
        loop {
            store.take_update();
            store.advance(Instant::now());
            tokio::select! {
                kept = &mut kept => return kept.unwrap(),
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
        }
    }

    #[test]
    fn every_change_is_in_the_file_when_it_is_answered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("revocations");
        let open = || {
            let (hasher, now) = (Hasher::new(&[1; 32]), UnixTime::from_seconds(1));
            RevocationStore::open(Some(path.clone()), hasher, 5000, now).unwrap()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut store = open();
            let now = UnixTime::from_seconds(1);
            let mut next = 0;
            // One, many, and more than wait as changes.
            for count in [1, 50, PENDING_MAX + 7, 1] {
                for _ in 0..count {
                    next += 1;
                    store.insert(subject(format!("s{next}")), now).unwrap();
                }
                store.remove(next);
                assert_eq!(saved(&mut store).await, Ok(()));
                let again = open();
                let ids = |store: &RevocationStore| store.after(0).map(|e| e.0).collect::<Vec<_>>();
                assert_eq!(ids(&again), ids(&store), "{count}");
                // It has replaced the file, so that the next save of this one must see that.
                store.insert(subject(format!("t{next}")), now).unwrap();
                next += 1;
                assert!(saved(&mut store).await.is_err());
                store.retry_at = None;
                assert_eq!(saved(&mut store).await, Ok(()));
            }
            assert_eq!(store.save_failures(), 4);
        });
    }

    #[test]
    fn without_a_file_nothing_is_kept_for_one() {
        let now = UnixTime::from_seconds(1);
        let mut store = RevocationStore::open(None, Hasher::new(&[1; 32]), 5000, now).unwrap();
        for number in 0..3 * PENDING_MAX {
            store.insert(subject(format!("s{number}")), now).unwrap();
        }
        assert!(store.is_saved() && store.pending.as_ref().is_some_and(|p| p.changes() == 0));
    }
}
