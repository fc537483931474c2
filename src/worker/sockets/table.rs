//! All sockets of a worker in one table, and what is to be done for them.

use std::collections::VecDeque;

use crate::base::slab::{Key, KeyedSlab};
use crate::base::time::Instant;
use crate::base::wheel::Wheel;
use crate::ring::{BufferGroup, Owner, Socket};

use super::ops::Ops;

/// One entry of the table.
pub enum Entry<C, U> {
    /// A client's connection.
    Client(C),
    /// The connection to an upstream, or the room for one.
    Upstream(U),
}

/// Clients, which come and go, and upstreams, which keep their slots: with each connection that
/// is tried an upstream's entry gets another key, so that completions of an earlier one are
/// stale.
pub struct SocketTable<C, U> {
    entries: KeyedSlab<Entry<C, U>>,
    upstreams: usize,
}

impl<C, U> SocketTable<C, U> {
    /// An empty table whose keys have generations of so many bits.
    pub fn new(generation_bits: u32) -> Self {
        SocketTable { entries: KeyedSlab::new(generation_bits), upstreams: 0 }
    }

    /// Adds a client.
    pub fn insert_client(&mut self, client: C) -> Key {
        self.entries.insert(Entry::Client(client))
    }

    /// Adds an upstream, for as long as the table lasts.
    pub fn insert_upstream(&mut self, upstream: U) -> Key {
        self.upstreams += 1;
        self.entries.insert(Entry::Upstream(upstream))
    }

    /// The entry, unless the key is stale.
    pub fn entry_mut(&mut self, key: Key) -> Option<&mut Entry<C, U>> {
        self.entries.entry_mut(key)
    }

    /// The client, unless the key is stale.
    pub fn client(&self, key: Key) -> Option<&C> {
        match self.entries.entry(key)? {
            Entry::Client(client) => Some(client),
            Entry::Upstream(_) => None,
        }
    }

    /// The client, unless the key is stale.
    pub fn client_mut(&mut self, key: Key) -> Option<&mut C> {
        match self.entries.entry_mut(key)? {
            Entry::Client(client) => Some(client),
            Entry::Upstream(_) => None,
        }
    }

    /// The upstream with this key.
    pub fn upstream_mut(&mut self, key: Key) -> &mut U {
        match self.entries.entry_mut(key) {
            Some(Entry::Upstream(upstream)) => upstream,
            _ => unreachable!("{key:?} names no upstream"),
        }
    }

    /// Removes a client.
    pub fn remove_client(&mut self, key: Key) -> C {
        match self.entries.remove(key) {
            Some(Entry::Client(client)) => client,
            _ => unreachable!("{key:?} names no client"),
        }
    }

    /// Gives an upstream another key, for its next connection.
    pub fn renew_upstream(&mut self, key: Key) -> Key {
        self.entries.renew(key).unwrap_or_else(|| unreachable!("{key:?} names no upstream"))
    }

    /// The live entry of a slot, with its key.
    pub fn slot_mut(&mut self, slot: u32) -> Option<(Key, &mut Entry<C, U>)> {
        let key = self.entries.key_of(slot)?;
        Some((key, self.entries.entry_mut(key)?))
    }

    /// Every live entry's slot is below this.
    pub fn slots(&self) -> u32 {
        self.entries.slots()
    }

    /// Number of clients.
    pub fn clients_len(&self) -> usize {
        self.entries.len() - self.upstreams
    }

    /// Every client.
    pub fn clients(&self) -> impl Iterator<Item = &C> {
        self.entries.iter().filter_map(|(_, entry)| match entry {
            Entry::Client(client) => Some(client),
            Entry::Upstream(_) => None,
        })
    }
}

/// What is to be done for sockets, later in this turn or in a later one.
pub struct Agenda {
    /// One timer for each slot of the table.
    pub wheel: Wheel,
    /// Left for the ring, in order.
    pub ops: Ops,
    /// Sockets whose sending side is to be shut down.
    pub shutdowns: Vec<Socket>,
    /// Clients that something was queued for, and that are not reconciled yet.
    pub needs_reconcile: Vec<Key>,
    /// Clients that waited for an upstream, and may go on.
    pub woken: Vec<Key>,
    /// Sockets that may have output and no send in flight. Each is in the list once.
    dirty: Vec<Owner>,
    /// Sockets that found no receive buffer, by pool, in the order in which they did.
    starved: [VecDeque<Owner>; 2],
    /// For each send slot of clients the one that sent from it last: those that can give a slot
    /// back, without a look at all clients.
    senders: Vec<Option<Key>>,
}

impl Agenda {
    /// Nothing is to be done.
    pub fn new(wheel: Wheel) -> Self {
        Agenda {
            wheel,
            ops: Ops::new(),
            shutdowns: Vec::new(),
            needs_reconcile: Vec::new(),
            woken: Vec::new(),
            dirty: Vec::new(),
            starved: Default::default(),
            senders: Vec::new(),
        }
    }

    /// Has a socket looked at when sends are filled. `is_dirty` is its own mark of that.
    pub fn mark_dirty(&mut self, owner: Owner, is_dirty: &mut bool) {
        if !std::mem::replace(is_dirty, true) {
            self.dirty.push(owner);
        }
    }

    /// Whether sends are to be filled.
    pub fn is_any_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Those that are dirty. What [`keep_dirty`](Self::keep_dirty) is not given back for has its
    /// mark taken off by the caller.
    pub fn take_dirty(&mut self) -> Vec<Owner> {
        std::mem::take(&mut self.dirty)
    }

    /// Those that stay dirty, before those that have become so meanwhile.
    pub fn keep_dirty(&mut self, mut kept: Vec<Owner>) {
        kept.append(&mut self.dirty);
        self.dirty = kept;
    }

    /// A socket found no receive buffer of its pool.
    pub fn starve(&mut self, owner: Owner, group: BufferGroup) {
        self.starved[group as usize].push_back(owner);
    }

    /// The socket that has waited longest for a buffer of a pool.
    pub fn next_starved(&mut self, group: BufferGroup) -> Option<Owner> {
        self.starved[group as usize].pop_front()
    }

    /// Whether sockets wait for a buffer of a pool.
    pub fn is_any_starved(&self, group: BufferGroup) -> bool {
        !self.starved[group as usize].is_empty()
    }

    /// A client sends from the slot with this number.
    pub fn note_sender(&mut self, slot: u16, client: Key) {
        let slot = usize::from(slot);
        if slot >= self.senders.len() {
            self.senders.resize(slot + 1, None);
        }
        self.senders[slot] = Some(client);
    }

    /// The clients that have sent from slots. One that has sent from several is there as often.
    pub fn senders(&self) -> impl Iterator<Item = Key> {
        self.senders.iter().flatten().copied()
    }

    /// When a timer fires.
    pub fn next_timer(&self) -> Instant {
        self.wheel.next_expiry().unwrap_or(Instant::NEVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_and_upstreams_change_their_keys() {
        let mut table = SocketTable::<char, u8>::new(24);
        let first = table.insert_upstream(7);
        let client = table.insert_client('a');
        assert_eq!((table.clients_len(), table.slots()), (1, 2));
        assert_eq!(table.client_mut(first), None, "an upstream is no client");
        let second = table.renew_upstream(first);
        assert!(table.entry_mut(first).is_none(), "of an earlier connection");
        assert_eq!((second.slot, *table.upstream_mut(second)), (first.slot, 7));
        assert_eq!(table.remove_client(client), 'a');
        let after = table.insert_client('b');
        assert_eq!((after.slot, table.client(client)), (client.slot, None));
        assert_eq!(table.clients().collect::<Vec<_>>(), [&'b']);
        assert!(matches!(table.slot_mut(after.slot), Some((_, Entry::Client('b')))));
    }

    #[test]
    fn a_socket_is_dirty_once_and_those_kept_come_first() {
        let mut agenda =
            Agenda::new(Wheel::new(std::time::Duration::from_millis(10), Instant::default()));
        let owner = |slot| Owner::Client(Key { slot, generation: 0 });
        let mut marks = [false; 3];
        for slot in [0, 1, 1] {
            agenda.mark_dirty(owner(slot), &mut marks[slot as usize]);
        }
        let dirty = agenda.take_dirty();
        assert_eq!(dirty, [owner(0), owner(1)]);
        agenda.mark_dirty(owner(2), &mut marks[2]);
        agenda.keep_dirty(dirty);
        assert_eq!(agenda.take_dirty(), [owner(0), owner(1), owner(2)]);
    }
}
