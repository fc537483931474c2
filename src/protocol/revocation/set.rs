//! The entries themselves: bounded, none twice, each until it lapses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{
    Hasher, Kind, NEVER, NO_NAME, Revoked, Row, ScopedRevocation, Target, seconds_up, within,
};
use crate::base::time::UnixTime;

/// What became of a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It holds, under this id.
    New(u64),
    /// The entry with this id voids all that it would, for at least as long.
    Covered(u64),
    /// It has lapsed already.
    Lapsed,
}

/// There is no room for one more entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limits.revocations_max ({max}) entries are held: raise it, or remove some")]
pub struct Full {
    /// The limit.
    pub max: usize,
}

/// Every revocation that holds. Each operation takes logarithmic time, but for the entries that
/// it removes.
pub struct RevocationSet {
    hasher: Hasher,
    entries: BTreeMap<u64, Held>,
    /// Entries by the hash of their name, and by the instant that they end at ([`ALL`] for none).
    ///
    /// Invariant: no entry is covered by another, so within one hash `lapses` falls as the
    /// instant rises.
    by_name: BTreeMap<(u64, u64), Named>,
    by_lapse: BTreeSet<(UnixTime, u64)>,
    /// How many entries hold on the routes of each backend alone.
    backends: BTreeMap<Box<str>, usize>,
    /// Invariant: above every id ever given.
    next_id: u64,
}

/// The instant of an entry that voids tokens whenever they were made, in milliseconds.
const ALL: u64 = u64::MAX;

struct Held {
    /// Shared with the writer of the file.
    scoped: Arc<ScopedRevocation>,
    name: (u64, u64),
}

#[derive(Clone, Copy)]
struct Named {
    lapses: UnixTime,
    id: u64,
}

/// An entry whose id was given before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdReused;

impl RevocationSet {
    /// An empty set.
    pub fn new(hasher: Hasher) -> Self {
        RevocationSet {
            hasher,
            entries: BTreeMap::new(),
            by_name: BTreeMap::new(),
            by_lapse: BTreeSet::new(),
            backends: BTreeMap::new(),
            next_id: 1,
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The id that the next entry gets.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Adds an entry, unless one covers it; entries that it covers go. Entries of different scopes
    /// do not cover each other: taking one back must not take back what another backend said.
    ///
    /// # Errors
    /// [`Full`] when `max` entries would be exceeded: then nothing changes.
    pub fn insert(
        &mut self,
        entry: impl Into<ScopedRevocation>,
        max: usize,
        now: UnixTime,
    ) -> Result<Inserted, Full> {
        let entry = entry.into();
        let lapses = entry.revocation.lapses;
        if lapses <= now {
            return Ok(Inserted::Lapsed);
        }
        let name = self.name(&entry);
        if let Some(id) = self.covering(name, lapses) {
            return Ok(Inserted::Covered(id));
        }
        let covered = self.covered(name, lapses);
        if self.len() - covered.len() >= max {
            return Err(Full { max });
        }
        let id = self.next_id;
        self.hold(id, name, entry, covered);
        Ok(Inserted::New(id))
    }

    /// Adds an entry as it was saved, in the order in which ids were given.
    ///
    /// # Errors
    /// [`IdReused`].
    pub fn restore(&mut self, id: u64, entry: impl Into<ScopedRevocation>) -> Result<(), IdReused> {
        let entry = entry.into();
        if id < self.next_id {
            return Err(IdReused);
        }
        let (name, lapses) = (self.name(&entry), entry.revocation.lapses);
        if self.covering(name, lapses).is_none() {
            let covered = self.covered(name, lapses);
            self.hold(id, name, entry, covered);
        }
        self.next_id = id.saturating_add(1);
        Ok(())
    }

    /// Leaves out the ids below this.
    ///
    /// # Errors
    /// [`IdReused`].
    pub fn skip_ids(&mut self, next_id: u64) -> Result<(), IdReused> {
        if next_id < self.next_id {
            return Err(IdReused);
        }
        self.next_id = next_id;
        Ok(())
    }

    /// Removes an entry; false when there is none of this id.
    pub fn remove(&mut self, id: u64) -> bool {
        let Some(held) = self.entries.remove(&id) else { return false };
        self.by_name.remove(&held.name);
        self.by_lapse.remove(&(held.scoped.revocation.lapses, id));
        if let Some(backend) = &held.scoped.backend
            && let Some(count) = self.backends.get_mut(backend)
        {
            *count -= 1;
            if *count == 0 {
                self.backends.remove(backend);
            }
        }
        true
    }

    /// Removes what has lapsed; answers whether anything had.
    pub fn lapse(&mut self, now: UnixTime) -> bool {
        let before = self.len();
        while let Some(&(lapses, id)) = self.by_lapse.first()
            && lapses <= now
        {
            self.remove(id);
        }
        self.len() < before
    }

    /// The entries with an id above `after`, in order.
    pub fn after(&self, after: u64) -> impl Iterator<Item = (u64, &Arc<ScopedRevocation>)> {
        let range = self.entries.range(after.saturating_add(1)..);
        range.map(|(id, held)| (*id, &held.scoped))
    }

    /// A snapshot for the workers.
    pub fn snapshot(&self) -> Revoked {
        let row = |(&(hash, before), named): (&(u64, u64), &Named)| Row {
            hash,
            // At least 1, so that a token which does not say when it was made is older.
            before: if before == ALL {
                NEVER
            } else {
                seconds_up(UnixTime::from_millis(before)).max(1)
            },
            lapses: seconds_up(named.lapses),
        };
        let backend = |name: &str| (name.into(), self.hasher.hash(Kind::Backend, name));
        let backends = self.backends.keys().map(|name| backend(name)).collect();
        Revoked::new(self.hasher.clone(), backends, self.by_name.iter().map(row).collect())
    }

    fn hold(&mut self, id: u64, name: (u64, u64), entry: ScopedRevocation, covered: Vec<u64>) {
        for id in covered {
            self.remove(id);
        }
        let lapses = entry.revocation.lapses;
        self.by_name.insert(name, Named { lapses, id });
        self.by_lapse.insert((lapses, id));
        if let Some(backend) = &entry.backend {
            *self.backends.entry(backend.clone()).or_default() += 1;
        }
        self.entries.insert(id, Held { scoped: Arc::new(entry), name });
        self.next_id = id.saturating_add(1);
    }

    fn name(&self, entry: &ScopedRevocation) -> (u64, u64) {
        let target = &entry.revocation.target;
        let hash = match target {
            Target::Subject { subject, .. } => self.hasher.hash(Kind::Subject, subject),
            Target::TokenId(id) => self.hasher.hash(Kind::TokenId, id),
            Target::IssuedBefore(_) => NO_NAME,
        };
        let hash = match &entry.backend {
            Some(backend) => within(self.hasher.hash(Kind::Backend, backend), hash),
            None => hash,
        };
        (hash, target.issued_before().map_or(ALL, UnixTime::as_millis))
    }

    /// The entry that voids all that one of this name would, for at least as long. Of those with
    /// a later instant the first one lapses last.
    fn covering(&self, name: (u64, u64), lapses: UnixTime) -> Option<u64> {
        let (_, first) = self.by_name.range(name..=(name.0, ALL)).next()?;
        (first.lapses >= lapses).then_some(first.id)
    }

    fn covered(&self, name: (u64, u64), lapses: UnixTime) -> Vec<u64> {
        let narrower = self.by_name.range((name.0, 0)..=name).rev();
        narrower.take_while(|(_, named)| named.lapses <= lapses).map(|(_, n)| n.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{IdentityFingerprint, Revocation};
    use super::*;
    use crate::protocol::identity::VerifiedIdentity;

    const HASHER_KEY: [u8; 32] = [7; 32];

    fn at(seconds: u64) -> UnixTime {
        UnixTime::from_seconds(seconds)
    }

    fn set() -> RevocationSet {
        RevocationSet::new(Hasher::new(&HASHER_KEY))
    }

    fn subject(name: &str, before: Option<u64>, lapses: u64) -> Revocation {
        let target = Target::new(Some(name), None, before.map(at)).unwrap();
        Revocation { target, lapses: at(lapses) }
    }

    fn token(id: &str, lapses: u64) -> Revocation {
        Revocation { target: Target::new(None, Some(id), None).unwrap(), lapses: at(lapses) }
    }

    fn everybody(before: u64, lapses: u64) -> Revocation {
        let target = Target::new(None, None, Some(at(before))).unwrap();
        Revocation { target, lapses: at(lapses) }
    }

    fn identity<'a>(
        subject: &'a str,
        id: Option<&'a str>,
        issued: Option<u64>,
    ) -> VerifiedIdentity<'a> {
        VerifiedIdentity::verified(subject, id, issued.map(at), None, b"{}")
    }

    #[test]
    fn entries_meet_exactly_the_tokens_that_they_name() {
        let mut set = set();
        for revocation in [
            subject("alice", None, 1000),
            subject("bob", Some(500), 1000),
            token("alice", 1000),
            token("t1", 1000),
            everybody(100, 1000),
        ] {
            assert!(matches!(set.insert(revocation, 10, at(1)), Ok(Inserted::New(_))));
        }
        let snapshot = set.snapshot();
        // subject, token id, issued at -> revoked at 999 s
        for (name, id, issued, revoked) in [
            ("alice", None, Some(600), true),
            ("alice", None, None, true),
            ("alicf", None, Some(600), false),
            ("bob", None, Some(499), true),
            ("bob", None, Some(500), false),
            // One that does not say when it was made may be as old as any.
            ("bob", None, None, true),
            ("carol", None, None, true),
            ("carol", None, Some(100), false),
            ("carol", None, Some(99), true),
            ("carol", Some("t1"), Some(600), true),
            ("carol", Some("t2"), Some(600), false),
            // A subject's letters are not a token id's.
            ("t1", None, Some(600), false),
            ("carol", Some("bob"), Some(200), false),
            ("carol", Some("alice"), Some(600), true),
            ("", None, Some(600), false),
            ("", Some("t1"), Some(600), true),
            ("", None, Some(99), true),
            ("carol", None, Some(u64::MAX / 1000), false),
        ] {
            let mark = snapshot.mark(&identity(name, id, issued));
            assert_eq!(snapshot.holds(mark, "b", at(999)), revoked, "{name} {id:?} {issued:?}");
            assert!(!snapshot.holds(mark, "b", at(1000)), "all has lapsed");
        }
        assert!(!snapshot.holds(IdentityFingerprint::ANONYMOUS, "b", at(1)));
        assert_eq!(snapshot.mark(&VerifiedIdentity::anonymous()), IdentityFingerprint::ANONYMOUS);
    }

    fn of(backend: &str, revocation: Revocation) -> ScopedRevocation {
        ScopedRevocation { revocation, backend: Some(backend.into()) }
    }

    #[test]
    fn a_backends_own_entries_hold_on_its_routes_alone() {
        let mut set = set();
        for entry in [
            of("chat", subject("alice", None, 1000)),
            of("chat", token("t1", 900)),
            of("news", everybody(100, 1000)),
            subject("eve", None, 1000).into(),
        ] {
            assert!(matches!(set.insert(entry, 10, at(1)), Ok(Inserted::New(_))));
        }
        let snapshot = set.snapshot();
        // subject, token id, issued at -> revoked on routes of chat, news, other
        for (name, id, issued, revoked) in [
            ("alice", None, 600, [true, false, false]),
            ("bob", Some("t1"), 600, [true, false, false]),
            ("bob", None, 99, [false, true, false]),
            ("bob", None, 100, [false; 3]),
            ("eve", None, 600, [true; 3]),
            // The letters of a backend's name are nothing else's.
            ("chat", Some("news"), 600, [false; 3]),
        ] {
            let identity = identity(name, id, Some(issued));
            let found = ["chat", "news", "other"]
                .map(|backend| snapshot.is_revoked(&identity, backend, at(899)));
            assert_eq!(found, revoked, "{name} {id:?} {issued}");
        }
        let bob = identity("bob", Some("t1"), Some(600));
        assert!(!snapshot.is_revoked(&bob, "chat", at(900)), "each ends at its own time");
        assert!(!snapshot.is_revoked(&VerifiedIdentity::anonymous(), "news", at(1)));
    }

    #[test]
    fn taking_one_scope_back_leaves_the_others() {
        let mut set = set();
        let alice = || subject("alice", None, 1000);
        for (entry, id) in [
            (alice().into(), 1),
            (of("chat", alice()), 2),
            (of("news", alice()), 3),
            (of("chat", token("t", 1000)), 4),
        ] {
            assert_eq!(set.insert(entry, 10, at(1)), Ok(Inserted::New(id)));
        }
        assert_eq!(set.insert(of("chat", alice()), 10, at(1)), Ok(Inserted::Covered(2)));
        let revoked = |set: &RevocationSet| {
            let alice = identity("alice", None, Some(600));
            ["chat", "news", "other"].map(|b| set.snapshot().is_revoked(&alice, b, at(9)))
        };
        assert_eq!(revoked(&set), [true; 3]);
        assert!(set.remove(1));
        assert_eq!(revoked(&set), [true, true, false]);
        assert!(set.remove(2));
        assert_eq!(revoked(&set), [false, true, false]);
        let bob = identity("bob", Some("t"), None);
        assert!(set.snapshot().is_revoked(&bob, "chat", at(9)), "chat's other entry stays");
        assert!(set.remove(3) && set.remove(4) && set.backends.is_empty());
    }

    #[test]
    fn what_another_entry_covers_takes_no_room() {
        let mut set = set();
        let now = at(1);
        assert_eq!(set.insert(subject("a", Some(50), 100), 2, now), Ok(Inserted::New(1)));
        assert_eq!(set.insert(subject("a", Some(50), 100), 2, now), Ok(Inserted::Covered(1)));
        assert_eq!(set.insert(subject("a", Some(40), 90), 2, now), Ok(Inserted::Covered(1)));
        // Neither covers the other: more tokens, but for a shorter time.
        assert_eq!(set.insert(subject("a", Some(60), 90), 2, now), Ok(Inserted::New(2)));
        assert_eq!(set.insert(subject("b", None, 90), 2, now), Err(Full { max: 2 }));
        assert_eq!(set.len(), 2);
        // This covers both, so that there is room for it although the set is full.
        assert_eq!(set.insert(subject("a", None, 100), 2, now), Ok(Inserted::New(3)));
        assert_eq!(set.len(), 1);
        assert_eq!(set.insert(subject("b", None, 1), 2, now), Ok(Inserted::Lapsed));
        assert!(!set.lapse(at(99)) && set.lapse(at(100)) && set.is_empty());
        assert_eq!(
            set.insert(token("a", 200), 2, at(100)),
            Ok(Inserted::New(4)),
            "ids never recur"
        );
        assert!(!set.remove(3) && set.remove(4) && set.snapshot().rows.is_empty());
    }

    #[test]
    fn a_set_comes_back_as_it_was_but_for_what_lapsed() {
        let mut first = set();
        for (index, revocation) in
            [subject("a", Some(5), 100), token("t", 50), everybody(9, 200)].into_iter().enumerate()
        {
            assert_eq!(first.insert(revocation, 9, at(1)), Ok(Inserted::New(index as u64 + 1)));
        }
        let entries: Vec<(u64, ScopedRevocation)> =
            first.after(0).map(|(id, entry)| (id, (**entry).clone())).collect();
        let mut again = RevocationSet::new(Hasher::new(&[8; 32]));
        for (id, revocation) in entries {
            again.restore(id, revocation.clone()).unwrap();
            assert_eq!(again.restore(id, revocation), Err(IdReused), "no id comes twice");
        }
        assert!(again.lapse(at(50)));
        let left: Vec<u64> = again.after(0).map(|(id, _)| id).collect();
        assert_eq!((left, again.next_id()), (vec![1, 3], 4));
        assert_eq!(again.after(1).count(), 1);
        assert_eq!((again.skip_ids(9), again.next_id()), (Ok(()), 9));
        assert_eq!(again.skip_ids(8), Err(IdReused));
    }

    #[test]
    fn an_insert_does_not_look_at_every_entry() {
        // One name, later and later instants for shorter and shorter times: none covers another.
        let mut set = set();
        let count = 200_000;
        let begun = std::time::Instant::now();
        for index in 0..count {
            let revocation = subject("a", Some(index + 1), 10 * count - index);
            assert!(matches!(set.insert(revocation, usize::MAX, at(1)), Ok(Inserted::New(_))));
            set.lapse(at(1));
        }
        // With a scan this takes minutes.
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
        assert_eq!(set.snapshot().rows.len(), count as usize);
        assert!(set.lapse(at(10 * count - 10)) && set.len() == 10, "{}", set.len());
    }

    #[test]
    fn targets_name_one_thing() {
        let long = "x".repeat(super::super::NAME_MAX + 1);
        let error = |s, t, i| Target::new(s, t, i).unwrap_err().to_string();
        assert!(error(None, None, None).starts_with("name a subject"));
        assert!(error(Some("a"), Some("b"), None).contains("stands alone"));
        assert!(error(None, Some("b"), Some(at(1))).contains("stands alone"));
        assert!(error(Some(""), None, None).contains("empty"));
        assert!(error(None, Some(&long), None).contains("1,024"));
        assert!(Target::new(Some(&long[1..]), None, None).is_ok());
    }

    proptest! {
        /// The snapshot against a look at every entry.
        #[test]
        fn pictures_say_what_the_entries_say(
            entries in prop::collection::vec(
                (0u8..3, 0u8..3, prop::option::of(0u64..12), 1u64..12, prop::option::of(0u8..2)),
                0..14,
            ),
            who in (0u8..4, prop::option::of(0u8..4), prop::option::of(1u64..12)),
            now in 0u64..12,
        ) {
            let mut set = set();
            let mut all = Vec::new();
            for (kind, name, before, lapses, backend) in entries {
                let name = format!("n{name}");
                let revocation = match kind {
                    0 => subject(&name, before, lapses),
                    1 => token(&name, lapses),
                    _ => everybody(before.unwrap_or(3), lapses),
                };
                let backend = backend.map(|backend| format!("b{backend}").into());
                let entry = ScopedRevocation { revocation, backend };
                let _ = set.insert(entry.clone(), 100, at(0));
                all.push(entry);
            }
            let (name, id) = (format!("n{}", who.0), who.1.map(|id| format!("n{id}")));
            let expected = all.iter().any(|entry| {
                let r = &entry.revocation;
                let here = entry.backend.as_deref().is_none_or(|backend| backend == "b0");
                let older = |before: Option<UnixTime>| {
                    before.is_none_or(|before| who.2.is_none_or(|issued| at(issued) < before))
                };
                let named = match &r.target {
                    Target::Subject { subject, issued_before } => {
                        **subject == *name && older(*issued_before)
                    }
                    Target::TokenId(other) => id.as_deref() == Some(other),
                    Target::IssuedBefore(before) => older(Some(*before)),
                };
                named && here && r.lapses > at(now)
            });
            let snapshot = set.snapshot();
            let mark = snapshot.mark(&identity(&name, id.as_deref(), who.2));
            prop_assert_eq!(snapshot.holds(mark, "b0", at(now)), expected);
        }
    }
}
