//! Buffers and slots on their way between the pools and the worker.

use super::pools::{Place, Pool};
use super::{Kernel, planted};
use crate::ring::{BufferCount, BufferGroup, ReceivedBuffer, SendSlot};
use crate::sim::net::Net;

impl Kernel {
    /// Checks that the worker may touch a receive buffer.
    pub fn check_buffer(&mut self, net: &mut Net, buffer: &ReceivedBuffer) {
        let place = self.buffers[buffer.group() as usize].places.get(buffer.id() as usize);
        if place != Some(&Place::Worker) {
            net.check.fail(format!("{buffer:?} used while {place:?}"));
        }
    }

    /// Checks that the worker may touch a send slot.
    pub fn check_slot(&mut self, net: &mut Net, slot: &SendSlot) {
        let place = self.slots[slot.group() as usize].places.get(slot.id() as usize);
        if place != Some(&Place::Worker) {
            net.check.fail(format!("{slot:?} used while {place:?}"));
        }
    }

    /// Takes a receive buffer back.
    pub fn give_back(&mut self, net: &mut Net, buffer: ReceivedBuffer) {
        self.check_buffer(net, &buffer);
        self.given_back += 1;
        let pool = &mut self.buffers[buffer.group() as usize];
        pool.places[buffer.id() as usize] = Place::Free;
        if !planted(self.bugs.loses_buffer, self.given_back) {
            pool.free.push(buffer.id());
        }
    }

    /// Takes a send slot from its pool.
    pub fn take_slot(&mut self, group: BufferGroup) -> Option<SendSlot> {
        let id = self.slots[group as usize].take(Place::Worker)?;
        Some(SendSlot::of_ring(group, id))
    }

    /// Takes a send slot back.
    pub fn release(&mut self, net: &mut Net, slot: SendSlot) {
        self.check_slot(net, &slot);
        let pool = &mut self.slots[slot.group() as usize];
        pool.places[slot.id() as usize] = Place::Free;
        pool.free.push(slot.id());
    }

    /// How full a receive pool is.
    pub fn buffer_count(&self, group: BufferGroup) -> BufferCount {
        let pool = &self.buffers[group as usize];
        BufferCount { total: pool.places.len() as u32, free: pool.free.len() as u32 }
    }

    /// Checks `free + held + in flight = total` in all four pools.
    pub fn check_pools(&self, net: &mut Net) {
        for (name, pools) in [("buffers", &self.buffers), ("slots", &self.slots)] {
            for (group, pool) in pools.iter().enumerate() {
                let away = pool.count(Place::InFlight) + pool.count(Place::Worker);
                let (free, total) = (pool.free.len(), pool.places.len());
                if free + away != total {
                    net.check.fail(format!(
                        "{name} of group {group}: {free} free + {away} away, not {total}"
                    ));
                }
            }
        }
    }

    /// How many buffers and slots the worker holds, in that order.
    pub fn held_by_worker(&self) -> (usize, usize) {
        let held = |pools: &[Pool; 2]| pools.iter().map(|pool| pool.count(Place::Worker)).sum();
        (held(&self.buffers), held(&self.slots))
    }

    /// Whether any buffer or slot is away from its pool.
    pub fn all_free(&self) -> bool {
        let full = |pools: &[Pool; 2]| pools.iter().all(|p| p.free.len() == p.places.len());
        full(&self.buffers) && full(&self.slots)
    }
}
