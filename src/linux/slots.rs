//! A pool of memory to send from.
#![allow(unsafe_code)] // memory that the kernel reads

use std::io;

use super::memory::{Mapping, stride};
use crate::ring::{BufferGroup, OpKey, SendSlot};

/// `uses` of a slot that is in the pool.
const FREE: u64 = 0;
/// `uses` of a slot that the worker holds.
const TAKEN: u64 = 1;

/// Invariant: `uses[id]` is FREE, TAKEN, or the key of the send that has the slot in flight
/// (no key is that small: its kind is in the top byte); the free ones are on the stack.
#[derive(Debug)]
pub(super) struct SlotPool {
    group: BufferGroup,
    usable: usize,
    stride: usize,
    data: Mapping,
    stack: Vec<u16>,
    uses: Vec<u64>,
}

impl SlotPool {
    /// A pool of `count` slots of `usable` bytes each.
    pub(super) fn new(group: BufferGroup, count: u16, usable: usize) -> io::Result<Self> {
        let stride = stride(usable);
        Ok(SlotPool {
            group,
            usable,
            stride,
            data: Mapping::new(usize::from(count) * stride)?,
            stack: (0..count).rev().collect(),
            uses: vec![FREE; usize::from(count)],
        })
    }

    /// Takes the slot that was released last, unless all are in use.
    pub(super) fn take(&mut self) -> Option<SendSlot> {
        let id = self.stack.pop()?;
        self.change(id, FREE, TAKEN);
        Some(SendSlot::of_ring(self.group, id))
    }

    /// Returns a slot that the worker holds.
    pub(super) fn release(&mut self, slot: SendSlot) {
        self.change(slot.id(), TAKEN, FREE);
        self.stack.push(slot.id());
    }

    /// The memory of a slot that the worker holds.
    pub(super) fn bytes(&mut self, slot: &SendSlot) -> &mut [u8] {
        assert_eq!(self.uses[usize::from(slot.id())], TAKEN, "slot is not held");
        let offset = usize::from(slot.id()) * self.stride;
        // SAFETY: the slot is not in flight, slots do not overlap, and `&mut self` bars a
        // second reference.
        unsafe { self.data.slice(offset, self.usable) }
    }

    /// Puts a slot in flight for the send `key`; returns the address of byte `start`.
    pub(super) fn start_send(
        &mut self,
        slot: SendSlot,
        key: OpKey,
        start: u32,
        end: u32,
    ) -> *const u8 {
        assert!(start < end && end as usize <= self.usable, "send of {start}..{end}");
        self.change(slot.id(), TAKEN, key.to_bits());
        let offset = usize::from(slot.id()) * self.stride + start as usize;
        self.data.at(offset, (end - start) as usize)
    }

    /// The send that has slot `id` in flight has ended: its key, and the slot again.
    pub(super) fn finish_send(&mut self, id: u16) -> (OpKey, SendSlot) {
        let bits = self.uses[usize::from(id)];
        let key = OpKey::from_bits(bits).expect("a send ended whose slot is not in flight");
        self.uses[usize::from(id)] = TAKEN;
        (key, SendSlot::of_ring(self.group, id))
    }

    /// The slot that the send `key` has in flight. Looks at all: only stalled sends are
    /// cancelled, which is rare.
    pub(super) fn find(&self, key: OpKey) -> Option<u16> {
        let bits = key.to_bits();
        self.uses.iter().position(|used| *used == bits).map(|id| id as u16)
    }

    fn change(&mut self, id: u16, from: u64, to: u64) {
        let used = &mut self.uses[usize::from(id)];
        assert_eq!(*used, from, "slot {id} of {:?}", self.group);
        *used = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::slab::Key;
    use crate::ring::{OpKind, Owner};

    fn key(slot: u32) -> OpKey {
        OpKey::new(OpKind::Send, Owner::Client(Key { slot, generation: 3 }))
    }

    #[test]
    fn a_slot_goes_round_from_pool_to_flight_and_back() {
        let mut pool = SlotPool::new(BufferGroup::Link, 2, 100).unwrap();
        let (first, second) = (pool.take().unwrap(), pool.take().unwrap());
        assert_eq!((first.id(), second.id(), pool.take()), (0, 1, None));
        pool.bytes(&first)[99] = 5;
        pool.bytes(&second).fill(6);
        let address = pool.start_send(first, key(9), 99, 100);
        // SAFETY: the address is inside the pool's mapping.
        assert_eq!(unsafe { *address }, 5);
        assert_eq!((pool.find(key(9)), pool.find(key(8))), (Some(0), None));
        let (landed, first) = pool.finish_send(0);
        assert_eq!((landed, pool.find(key(9))), (key(9), None));
        pool.release(second);
        pool.release(first);
        assert_eq!(pool.take().map(|slot| slot.id()), Some(0), "the last one released");
    }

    #[test]
    #[should_panic(expected = "slot is not held")]
    fn bytes_of_a_slot_in_flight_cannot_be_had() {
        let mut pool = SlotPool::new(BufferGroup::Client, 1, 100).unwrap();
        let slot = pool.take().unwrap();
        let forged = SendSlot::of_ring(slot.group(), slot.id());
        pool.start_send(slot, key(1), 0, 1);
        pool.bytes(&forged);
    }

    #[test]
    #[should_panic(expected = "send of 50..101")]
    fn a_send_stays_inside_its_slot() {
        let mut pool = SlotPool::new(BufferGroup::Client, 2, 100).unwrap();
        let slot = pool.take().unwrap();
        pool.start_send(slot, key(1), 50, 101);
    }
}
