//! The entries themselves: bounded, none twice, each until it lapses.

use std::collections::{BTreeMap, HashMap};

use super::{Hasher, Kind, NEVER, NOBODY, Revocation, Revoked, Row, Target, seconds_up};
use crate::base::time::UnixTime;

/// One revocation that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Names the entry as long as it is there; never used again.
    pub id: u64,
    /// What it voids, and until when.
    pub revocation: Revocation,
}

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

/// Every revocation that holds.
///
/// Invariant: no entry is covered by another, and `rows` and `by_hash` have each entry once.
pub struct RevocationSet {
    hasher: Hasher,
    entries: BTreeMap<u64, Held>,
    /// Entries by the hash of their name: those that may cover one another.
    by_hash: HashMap<u64, Vec<u64>>,
    /// Invariant: above every id ever given.
    next_id: u64,
}

struct Held {
    revocation: Revocation,
    row: Row,
}

impl RevocationSet {
    /// An empty set.
    pub fn new(hasher: Hasher) -> Self {
        RevocationSet { hasher, entries: BTreeMap::new(), by_hash: HashMap::new(), next_id: 1 }
    }

    /// A set as it was saved: entries that have lapsed are left out.
    pub fn restored(
        hasher: Hasher,
        next_id: u64,
        entries: impl IntoIterator<Item = Entry>,
        now: UnixTime,
    ) -> Self {
        let mut set = RevocationSet::new(hasher);
        for Entry { id, revocation } in entries {
            set.next_id = set.next_id.max(id.saturating_add(1));
            if revocation.lapses > now {
                set.hold(id, revocation);
            }
        }
        set.next_id = set.next_id.max(next_id);
        set
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

    /// Adds an entry, unless one covers it; entries that it covers go.
    ///
    /// # Errors
    /// [`Full`] when `max` entries would be exceeded: then nothing changes.
    pub fn insert(
        &mut self,
        revocation: Revocation,
        max: usize,
        now: UnixTime,
    ) -> Result<Inserted, Full> {
        if revocation.lapses <= now {
            return Ok(Inserted::Lapsed);
        }
        let row = self.row(&revocation);
        let kin = self.by_hash.get(&row.hash).map_or(&[][..], Vec::as_slice);
        if let Some(&id) = kin.iter().find(|id| self.covers(**id, &revocation)) {
            return Ok(Inserted::Covered(id));
        }
        let covered: Vec<u64> =
            kin.iter().copied().filter(|id| self.is_covered(*id, &revocation)).collect();
        if self.len() - covered.len() >= max {
            return Err(Full { max });
        }
        for id in covered {
            self.remove(id);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.hold(id, revocation);
        Ok(Inserted::New(id))
    }

    /// Removes an entry; false when there is none of this id.
    pub fn remove(&mut self, id: u64) -> bool {
        let Some(held) = self.entries.remove(&id) else { return false };
        if let Some(kin) = self.by_hash.get_mut(&held.row.hash) {
            kin.retain(|other| *other != id);
            if kin.is_empty() {
                self.by_hash.remove(&held.row.hash);
            }
        }
        true
    }

    /// Removes what has lapsed; answers whether anything had.
    pub fn lapse(&mut self, now: UnixTime) -> bool {
        let over = |(id, held): (&u64, &Held)| (held.revocation.lapses <= now).then_some(*id);
        let over: Vec<u64> = self.entries.iter().filter_map(over).collect();
        for id in &over {
            self.remove(*id);
        }
        !over.is_empty()
    }

    /// The entries with an id above `after`, in order.
    pub fn after(&self, after: u64) -> impl Iterator<Item = (u64, &Revocation)> {
        let range = self.entries.range(after.saturating_add(1)..);
        range.map(|(id, held)| (*id, &held.revocation))
    }

    /// A picture for the workers.
    pub fn picture(&self) -> Revoked {
        Revoked::new(self.hasher.clone(), self.entries.values().map(|held| held.row).collect())
    }

    fn hold(&mut self, id: u64, revocation: Revocation) {
        let row = self.row(&revocation);
        self.by_hash.entry(row.hash).or_default().push(id);
        self.entries.insert(id, Held { revocation, row });
    }

    fn row(&self, revocation: &Revocation) -> Row {
        let hash = match &revocation.target {
            Target::Subject { subject, .. } => self.hasher.hash(Kind::Subject, subject),
            Target::TokenId(id) => self.hasher.hash(Kind::TokenId, id),
            Target::IssuedBefore(_) => NOBODY,
        };
        // At least 1, so that a token which does not say when it was made is older.
        let before = revocation.target.issued_before().map_or(NEVER, |at| seconds_up(at).max(1));
        Row { hash, before, lapses: seconds_up(revocation.lapses) }
    }

    fn covers(&self, id: u64, theirs: &Revocation) -> bool {
        self.entries.get(&id).is_some_and(|held| is_superset(&held.revocation, theirs))
    }

    fn is_covered(&self, id: u64, by: &Revocation) -> bool {
        self.entries.get(&id).is_some_and(|held| is_superset(by, &held.revocation))
    }
}

/// Whether `wide` voids every token that `narrow` does, for at least as long.
fn is_superset(wide: &Revocation, narrow: &Revocation) -> bool {
    let before = |revocation: &Revocation| {
        revocation.target.issued_before().map_or(u64::MAX, UnixTime::as_millis)
    };
    wide.target.subject() == narrow.target.subject()
        && wide.target.token_id() == narrow.target.token_id()
        && before(wide) >= before(narrow)
        && wide.lapses >= narrow.lapses
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::IdentityFingerprint;
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
        let picture = set.picture();
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
            let mark = picture.mark(&identity(name, id, issued));
            assert_eq!(picture.holds(mark, at(999)), revoked, "{name} {id:?} {issued:?}");
            assert!(!picture.holds(mark, at(1000)), "all has lapsed");
        }
        assert!(!picture.holds(IdentityFingerprint::ANONYMOUS, at(1)));
        assert_eq!(picture.mark(&VerifiedIdentity::anonymous()), IdentityFingerprint::ANONYMOUS);
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
        assert!(!set.remove(3) && set.remove(4) && set.picture().rows.is_empty());
    }

    #[test]
    fn a_set_comes_back_as_it_was_but_for_what_lapsed() {
        let mut first = set();
        for (index, revocation) in
            [subject("a", Some(5), 100), token("t", 50), everybody(9, 200)].into_iter().enumerate()
        {
            assert_eq!(first.insert(revocation, 9, at(1)), Ok(Inserted::New(index as u64 + 1)));
        }
        let entries: Vec<Entry> =
            first.after(0).map(|(id, r)| Entry { id, revocation: r.clone() }).collect();
        let other = Hasher::new(&[8; 32]);
        let again = RevocationSet::restored(other, first.next_id(), entries.clone(), at(50));
        let left: Vec<u64> = again.after(0).map(|(id, _)| id).collect();
        assert_eq!((left, again.next_id()), (vec![1, 3], 4));
        assert_eq!(again.after(1).count(), 1);
        // Even where the saved number was tampered with, no id comes twice.
        let again = RevocationSet::restored(Hasher::new(&[8; 32]), 0, entries, at(50));
        assert_eq!(again.next_id(), 4);
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
        /// The picture against a look at every entry.
        #[test]
        fn pictures_say_what_the_entries_say(
            entries in prop::collection::vec((0u8..3, 0u8..3, prop::option::of(0u64..12), 1u64..12), 0..14),
            who in (0u8..4, prop::option::of(0u8..4), prop::option::of(1u64..12)),
            now in 0u64..12,
        ) {
            let mut set = set();
            let mut all = Vec::new();
            for (kind, name, before, lapses) in entries {
                let name = format!("n{name}");
                let revocation = match kind {
                    0 => subject(&name, before, lapses),
                    1 => token(&name, lapses),
                    _ => everybody(before.unwrap_or(3), lapses),
                };
                let _ = set.insert(revocation.clone(), 100, at(0));
                all.push(revocation);
            }
            let (name, id) = (format!("n{}", who.0), who.1.map(|id| format!("n{id}")));
            let expected = all.iter().any(|r| {
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
                named && r.lapses > at(now)
            });
            let picture = set.picture();
            let mark = picture.mark(&identity(&name, id.as_deref(), who.2));
            prop_assert_eq!(picture.holds(mark, at(now)), expected);
        }
    }
}
