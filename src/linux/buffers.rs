//! A pool of receive buffers that the kernel picks from (IORING_REGISTER_PBUF_RING).
//!
//! The kernel takes published buffers first in, first out. To keep the cache warm, only a few
//! are published at a time, from a stack that has the buffer used last on top. How many is
//! learned: few while they suffice, all of them when the sockets want them.
#![allow(unsafe_code)] // memory shared with the kernel

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use super::memory::{Mapping, stride};
use crate::ring::{BufferCount, BufferGroup, ReceivedBuffer};

/// Most buffers that a pool may have; the kernel's bound.
pub(super) const BUFFERS_MAX: u16 = 32_768;
/// Number of buffers that are published at first and in quiet times: since the kernel takes them in
/// turn, just as many are ever touched. For clients, 266 KB of a worker; for links, 512 KiB at most.
const PUBLISHED_MIN: [u32; 2] = [64, 8];
/// Publications between two looks at whether fewer would do.
const REVIEW_INTERVAL: u32 = 1024;
/// Set in the buffer numbers of the link pool: a completion says which buffer was used, but not
/// of which group.
const LINK_BIT: u16 = 0x8000;

/// Where a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Stacked,
    Published,
    Held,
}

/// Invariant: every buffer is stacked, published or held by the worker;
/// `stack.len()` buffers are stacked and `published` are published.
#[derive(Debug)]
pub(super) struct ReceivePool {
    group: BufferGroup,
    usable: usize,
    stride: usize,
    data: Mapping,
    ring: Mapping,
    mask: u16,
    tail: u16,
    stack: Vec<u16>,
    places: Vec<Place>,
    published: u32,
    /// How many to publish: `floor <= target <= total`.
    target: u32,
    floor: u32,
    /// Fewest found published since the last review.
    lowest: u32,
    publications: u32,
}

/// Splits the number that the kernel reported into group and position in the pool.
pub(super) fn split(number: u16) -> (BufferGroup, u16) {
    let group = if number & LINK_BIT == 0 { BufferGroup::Client } else { BufferGroup::Link };
    (group, number & !LINK_BIT)
}

/// The kernel's number of a group.
pub(super) fn group_number(group: BufferGroup) -> u16 {
    match group {
        BufferGroup::Client => 0,
        BufferGroup::Link => 1,
    }
}

impl ReceivePool {
    /// A pool of `count` buffers, of which `usable` bytes each are for data.
    pub(super) fn new(group: BufferGroup, count: u16, usable: usize) -> io::Result<Self> {
        assert!((1..=BUFFERS_MAX).contains(&count));
        let entries = count.next_power_of_two();
        let stride = stride(usable);
        let floor = PUBLISHED_MIN[usize::from(group_number(group))].min(u32::from(count));
        Ok(ReceivePool {
            group,
            usable,
            stride,
            data: Mapping::new(usize::from(count) * stride)?,
            ring: Mapping::new(usize::from(entries) * size_of::<BufRingEntry>())?,
            mask: entries - 1,
            tail: 0,
            stack: (0..count).rev().collect(),
            places: vec![Place::Stacked; usize::from(count)],
            published: 0,
            target: floor,
            floor,
            lowest: floor,
            publications: 0,
        })
    }

    /// Makes the pool known to the kernel.
    ///
    /// # Safety
    /// The pool must not be dropped before the kernel's ring is gone or every receive has
    /// ended.
    pub(super) unsafe fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let entries = self.mask + 1;
        // SAFETY: the mapping is page-aligned and has room for `entries`; the caller vouches
        // that it stays.
        unsafe {
            submitter.register_buf_ring_with_flags(
                self.ring.base() as u64,
                entries,
                group_number(self.group),
                0,
            )
        }
    }

    /// Registers a small pool and takes it away again, to see whether the kernel can.
    pub(super) fn try_register(submitter: &Submitter<'_>) -> io::Result<()> {
        let pool = ReceivePool::new(BufferGroup::Client, 8, 64)?;
        // SAFETY: no receive uses the pool, and it is unregistered before it is dropped.
        unsafe { pool.register(submitter) }?;
        submitter.unregister_buf_ring(group_number(BufferGroup::Client))
    }

    /// Tops up what the kernel may fill. Called before each entry into the kernel.
    pub(super) fn publish(&mut self) {
        self.review();
        let wanted = self.target.saturating_sub(self.published);
        for _ in 0..wanted {
            let Some(id) = self.stack.pop() else { break };
            self.write_entry(id);
            self.published += 1;
        }
        // SAFETY: the tail is a 16-bit field of the first entry, inside our mapping; the
        // kernel only reads it.
        let tail = unsafe {
            let field = BufRingEntry::tail(self.ring.base().cast_const().cast());
            AtomicU16::from_ptr(field.cast_mut())
        };
        // Release: the kernel that sees the new tail must see the entries before it.
        tail.store(self.tail, Ordering::Release);
    }

    /// Doubles the target as soon as one burst took three quarters of it; halves it when none
    /// took even a quarter for a long time.
    fn review(&mut self) {
        if self.published * 4 < self.target && self.publications > 0 {
            self.target = (self.target * 2).min(self.places.len() as u32);
        }
        self.lowest = self.lowest.min(self.published);
        self.publications += 1;
        if self.publications > REVIEW_INTERVAL {
            if self.lowest * 4 > self.target * 3 {
                self.target = (self.target / 2).max(self.floor);
            }
            self.lowest = self.target;
            self.publications = 1;
        }
    }

    fn write_entry(&mut self, id: u16) {
        let place = &mut self.places[usize::from(id)];
        assert_eq!(*place, Place::Stacked);
        *place = Place::Published;
        let data = self.data.at(usize::from(id) * self.stride, self.usable);
        let index = usize::from(self.tail & self.mask);
        let offset = index * size_of::<BufRingEntry>();
        let entry = self.ring.at(offset, size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        let tag = if self.group == BufferGroup::Link { LINK_BIT } else { 0 };
        // SAFETY: `entry` is aligned and inside our mapping, and the kernel does not look at
        // entries from the tail on. The setters leave the tail field of entry 0 alone.
        let entry = unsafe { &mut *entry };
        entry.set_addr(data as u64);
        entry.set_len(self.usable as u32);
        entry.set_bid(id | tag);
        self.tail = self.tail.wrapping_add(1);
    }

    /// The kernel has filled `length` bytes of buffer `id`: it is the worker's now.
    pub(super) fn take(&mut self, id: u16, length: u32) -> ReceivedBuffer {
        assert!(length as usize <= self.usable);
        self.moved(id, Place::Published, Place::Held);
        self.published -= 1;
        ReceivedBuffer::of_ring(self.group, id, length)
    }

    /// The kernel has given up buffer `id` without filling it.
    pub(super) fn reclaim(&mut self, id: u16) {
        self.moved(id, Place::Published, Place::Stacked);
        self.published -= 1;
        self.stack.push(id);
    }

    /// The bytes of a buffer that the worker holds.
    pub(super) fn bytes(&mut self, buffer: &ReceivedBuffer) -> &mut [u8] {
        assert_eq!(self.places[usize::from(buffer.id())], Place::Held, "buffer is not held");
        assert!(buffer.length() as usize <= self.usable);
        let offset = usize::from(buffer.id()) * self.stride;
        // SAFETY: the kernel gave the buffer up when it was taken and has not been given it
        // again; buffers do not overlap, and `&mut self` bars a second reference.
        unsafe { self.data.slice(offset, buffer.length() as usize) }
    }

    /// Takes a held buffer back.
    pub(super) fn give_back(&mut self, buffer: ReceivedBuffer) {
        self.moved(buffer.id(), Place::Held, Place::Stacked);
        self.stack.push(buffer.id());
    }

    /// Total and free buffers.
    pub(super) fn count(&self) -> BufferCount {
        let free = self.published + self.stack.len() as u32;
        BufferCount { total: self.places.len() as u32, free }
    }

    fn moved(&mut self, id: u16, from: Place, to: Place) {
        let place = &mut self.places[usize::from(id)];
        assert_eq!(*place, from, "buffer {id} of {:?}", self.group);
        *place = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(count: u16) -> ReceivePool {
        ReceivePool::new(BufferGroup::Client, count, 64).unwrap()
    }

    /// What the kernel would fill next, `count` buffers of it.
    fn fill(pool: &mut ReceivePool, head: &mut u16, count: u32) -> Vec<ReceivedBuffer> {
        (0..count)
            .map(|_| {
                let index = usize::from(*head & pool.mask);
                *head = head.wrapping_add(1);
                let offset = index * size_of::<BufRingEntry>();
                // SAFETY: entries below the tail were written by `publish`.
                let entry = unsafe { &*pool.ring.at(offset, 16).cast::<BufRingEntry>() };
                pool.take(split(entry.bid()).1, 1)
            })
            .collect()
    }

    #[test]
    fn buffers_are_reused_last_in_first_out() {
        let mut pool = pool(4096);
        let mut head = 0;
        let mut seen = std::collections::HashSet::new();
        for _ in 0..5000 {
            pool.publish();
            for buffer in fill(&mut pool, &mut head, 20) {
                seen.insert(buffer.id());
                pool.give_back(buffer);
            }
        }
        assert_eq!(seen.len(), 64, "only the published few are ever touched");
        assert_eq!(pool.count(), BufferCount { total: 4096, free: 4096 });
    }

    #[test]
    fn the_target_grows_under_load_and_shrinks_after_it() {
        let mut pool = pool(4096);
        let mut head = 0;
        pool.publish();
        for expected in [64, 128, 256, 512, 1024, 2048, 4096, 4096] {
            assert_eq!((pool.target, pool.published), (expected, expected));
            let taken = fill(&mut pool, &mut head, expected);
            assert_eq!(pool.count().free, 4096 - expected);
            for buffer in taken {
                pool.give_back(buffer);
            }
            pool.publish();
        }
        for _ in 0..8 * REVIEW_INTERVAL {
            for buffer in fill(&mut pool, &mut head, 4) {
                pool.give_back(buffer);
            }
            pool.publish();
        }
        assert_eq!(pool.target, 64);
    }

    #[test]
    fn a_pool_whose_buffers_are_all_held_publishes_none() {
        let mut pool = pool(3);
        let mut head = 0;
        pool.publish();
        let held = fill(&mut pool, &mut head, 3);
        pool.publish();
        assert_eq!((pool.count(), pool.published), (BufferCount { total: 3, free: 0 }, 0));
        for buffer in held {
            pool.give_back(buffer);
        }
        pool.publish();
        assert_eq!(pool.published, 3);
    }

    #[test]
    #[should_panic(expected = "buffer is not held")]
    fn bytes_of_a_buffer_that_is_not_held_cannot_be_had() {
        let mut pool = pool(4);
        pool.publish();
        pool.bytes(&ReceivedBuffer::of_ring(BufferGroup::Client, 1, 1));
    }

    #[test]
    #[should_panic(expected = "buffer 0 of Client")]
    fn a_buffer_cannot_be_given_back_twice() {
        let mut pool = pool(4);
        pool.publish();
        let buffer = pool.take(0, 1);
        let forged = ReceivedBuffer::of_ring(BufferGroup::Client, buffer.id(), 1);
        pool.give_back(buffer);
        pool.give_back(forged);
    }
}
