//! The room that one link's unfinished messages share, and who holds how much of it.
//!
//! When the room is full, the owner that holds most gives way, not the message that happens to
//! arrive: otherwise one client that leaves many messages unfinished would end every session
//! whose message comes in pieces. An owner is a subject, with all its sessions; a session
//! without a subject is its own owner.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// Whose unfinished messages count together. Two subjects share one only if a keyed hash
/// collides, which no client can cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Owner(u64);

/// Invariant: `used` is the sum of `by_owner`, which has no zeros.
pub(super) struct Unfinished {
    limit: usize,
    used: usize,
    by_owner: HashMap<Owner, usize>,
    hasher: RandomState,
}

impl Unfinished {
    /// A room of `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Unfinished { limit, used: 0, by_owner: HashMap::new(), hasher: RandomState::new() }
    }

    /// The owner of a session: its subject, else the session itself.
    pub(super) fn owner(&self, subject: Option<&str>, serial: u64) -> Owner {
        Owner(match subject.filter(|subject| !subject.is_empty()) {
            Some(subject) => self.hasher.hash_one(("subject", subject)),
            None => self.hasher.hash_one(("session", serial)),
        })
    }

    pub(super) fn add(&mut self, owner: Owner, bytes: usize) {
        if bytes > 0 {
            self.used += bytes;
            *self.by_owner.entry(owner).or_default() += bytes;
        }
    }

    pub(super) fn remove(&mut self, owner: Owner, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let held = self.by_owner.get_mut(&owner).expect("what is removed was added");
        *held -= bytes;
        self.used -= bytes;
        if *held == 0 {
            self.by_owner.remove(&owner);
        }
    }

    /// Whether more is held than the room has.
    pub(super) fn is_over(&self) -> bool {
        self.used > self.limit
    }

    /// The owner that holds most. Looks at all: it is asked only when the room is full, and
    /// each time ends a session.
    pub(super) fn heaviest(&self) -> Option<Owner> {
        self.by_owner
            .iter()
            .max_by_key(|(owner, bytes)| (**bytes, **owner))
            .map(|(owner, _)| *owner)
    }

    /// Bytes in use.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_owner_is_found_by_all_its_sessions() {
        let mut room = Unfinished::new(100);
        let (eve, ada) = (room.owner(Some("eve"), 1), room.owner(Some("ada"), 2));
        assert_eq!((room.owner(Some("eve"), 7), room.heaviest()), (eve, None));
        for _ in 0..3 {
            room.add(eve, 20);
        }
        room.add(ada, 40);
        assert_eq!((room.heaviest(), room.is_over()), (Some(eve), false));
        room.add(ada, 1);
        assert!(room.is_over());
        room.remove(eve, 40);
        assert_eq!((room.heaviest(), room.used()), (Some(ada), 61));
        room.remove(eve, 20);
        room.remove(ada, 41);
        assert_eq!((room.heaviest(), room.used(), room.by_owner.len()), (None, 0, 0));
        // Sessions without a subject are strangers to each other.
        assert_ne!(room.owner(None, 1), room.owner(None, 2));
        assert_ne!(room.owner(Some(""), 1), room.owner(Some(""), 2));
    }
}
