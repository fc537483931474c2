//! Cancels, which may come too late.

use super::{Kernel, Work};
use crate::ring::{Failure, OpKey, Outcome};
use crate::sim::faults::Fault;
use crate::sim::memory::Memory;
use crate::sim::net::{Event, Net};

impl Kernel {
    pub(super) fn start_cancel(
        &mut self,
        net: &mut Net,
        memory: &mut Memory,
        id: u64,
        target: OpKey,
    ) {
        let found = self.keys.get(&target.to_bits()).copied();
        let live = found.filter(|target| self.ops.get(target).is_some_and(|op| !op.finished));
        let Some(found) = live else {
            return self.finish(net, id, Outcome::Failed(Failure::NotFound));
        };
        if net.fault(Fault::CancelRace) && self.complete_first(net, memory, found) {
            return self.finish(net, id, Outcome::Failed(Failure::NotFound));
        }
        let first = net.random.chance(1, 2);
        if first {
            self.finish(net, id, Outcome::CancelDone);
        }
        self.cancel_work(net, found);
        if !first {
            self.finish(net, id, Outcome::CancelDone);
        }
    }

    /// The target of a cancel gets a last chance; true when that ended it.
    pub(super) fn complete_first(&mut self, net: &mut Net, memory: &mut Memory, id: u64) -> bool {
        let Some(pending) = self.ops.get_mut(&id) else { return false };
        match &mut pending.work {
            Work::Receive { socket, .. } => {
                let socket = *socket;
                self.progress_receive(net, memory, socket);
            }
            Work::Poll { socket, .. } => {
                let socket = *socket;
                self.progress_poll(net, socket);
            }
            Work::Send { socket, held_until, .. } => {
                *held_until = 0;
                let socket = *socket;
                self.progress_send(net, memory, socket);
            }
            // It is decided now, by the world.
            Work::Connect { .. } => {
                net.schedule(net.now, Event::Connect(id));
                return true;
            }
            Work::Close | Work::Accept { .. } | Work::Cancel => {}
        }
        self.ops.get(&id).is_none_or(|op| op.finished)
    }

    pub(super) fn cancel_work(&mut self, net: &mut Net, id: u64) {
        let Some(pending) = self.ops.get_mut(&id) else { return };
        match &mut pending.work {
            Work::Accept { listener } => {
                let listener = *listener as usize;
                self.listeners[listener].accepts.retain(|accept| *accept != id);
                self.finish(net, id, Outcome::Failed(Failure::Cancelled));
            }
            Work::Send { slot, next, start, .. } => {
                let done = *next - *start;
                let Some(slot) = slot.take() else { return };
                let result = if done > 0 { Ok(done) } else { Err(Failure::Cancelled) };
                self.finish(net, id, Outcome::Sent { slot, result });
            }
            Work::Receive { .. } | Work::Poll { .. } | Work::Connect { .. } => {
                self.finish(net, id, Outcome::Failed(Failure::Cancelled));
            }
            Work::Close | Work::Cancel => {}
        }
    }
}
