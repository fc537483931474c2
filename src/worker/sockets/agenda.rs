//! What is to be done for the sockets of a worker, clients' and upstreams' alike.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::slab::Key;
use crate::base::time::Instant;
use crate::base::wheel::Wheel;
use crate::ring::{BufferGroup, Owner, Socket};

use super::ops::Ops;

/// What is to be done for sockets, later in this turn or in a later one.
pub struct Agenda {
    /// One timer for each slot of the clients' table.
    pub client_timers: Wheel,
    /// One timer for each slot of the upstreams' table.
    pub upstream_timers: Wheel,
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
    /// For each send slot of clients' pool the socket that sent from it last: those that can give a
    /// slot back, without a look at all of them.
    senders: Vec<Option<Owner>>,
}

impl Agenda {
    /// Nothing is to be done. Timers fire at multiples of `tick` from `start` on.
    pub fn new(tick: Duration, start: Instant) -> Self {
        Agenda {
            client_timers: Wheel::new(tick, start),
            upstream_timers: Wheel::new(tick, start),
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

    /// A socket sends from the slot with this number.
    pub fn note_sender(&mut self, slot: u16, sender: Owner) {
        let slot = usize::from(slot);
        if slot >= self.senders.len() {
            self.senders.resize(slot + 1, None);
        }
        self.senders[slot] = Some(sender);
    }

    /// The sockets that have sent from slots. One that has sent from several is there as often.
    pub fn senders(&self) -> impl Iterator<Item = Owner> {
        self.senders.iter().flatten().copied()
    }

    /// When a timer fires.
    pub fn next_timer(&self) -> Instant {
        let next = |wheel: &Wheel| wheel.next_expiry().unwrap_or(Instant::NEVER);
        next(&self.client_timers).min(next(&self.upstream_timers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_dirty_once_and_those_kept_come_first() {
        let mut agenda = Agenda::new(Duration::from_millis(10), Instant::default());
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
