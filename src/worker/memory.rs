//! What a worker gives up as memory runs short. The control thread measures, and says which
//! pressure of the ladder holds.

use std::time::Duration;

use crate::base::memory_pressure::MemoryPressure;
use crate::counters::Metric;
use crate::protocol::cause::Cause;

use super::Core;
use super::clients::Connection;

/// Connections that are shed in one turn.
const SHED_PER_TICK: usize = 256;
/// Slots that are looked at for slow readers in one turn.
const SWEEP_PER_TICK: u32 = 4096;
/// How long a send must have made no progress for its client to be a slow reader.
const SLOW_AFTER: Duration = Duration::from_secs(1);

impl Core {
    /// The control thread measured, and this pressure holds from now on. While memory is short it
    /// says so every time; each time free memory is given back, and on the last pressure all
    /// connections are looked at once.
    pub(super) fn set_pressure(&mut self, pressure: MemoryPressure) {
        self.admission.pressure = pressure;
        self.admission.sweep = (pressure == MemoryPressure::CloseSlowReaders).then_some(0);
        if pressure != MemoryPressure::Clear {
            self.queues.release_free();
            self.stashes.release_free();
        }
    }

    /// Whether there is something to give up in the next turn already.
    pub(super) fn has_memory_to_give(&self) -> bool {
        let sheds = self.admission.pressure >= MemoryPressure::ShedUnauthenticated;
        self.admission.sweep.is_some() || (sheds && self.admission.holds_any())
    }

    /// Gives up a turn's part of what the pressure says.
    pub(super) fn give_up_memory(&mut self) {
        if self.admission.pressure >= MemoryPressure::ShedUnauthenticated {
            self.evict_some(SHED_PER_TICK);
        }
        if let Some(from) = self.admission.sweep {
            let slots = self.connections.slots();
            let to = slots.min(from.saturating_add(SWEEP_PER_TICK));
            self.admission.sweep = (to < slots).then_some(to);
            for slot in from..to {
                self.close_if_slow(slot);
            }
        }
    }

    /// What waits for a client that does not read is what is to be given back, so nothing more
    /// is queued for it, not even an explanation.
    fn close_if_slow(&mut self, slot: u32) {
        let now = self.env.now.instant;
        let Some(owner) = self.connections.key_of(slot) else { return };
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let stalled =
            |c: &Connection| c.unsent() > 0 && now.since(c.client.progressed()) >= SLOW_AFTER;
        if connection.pipe.is_ending() || !stalled(connection) {
            return;
        }
        self.env.counters.increment(Metric::MemoryCloses);
        connection.client.drop_silently(Cause::SlowConsumer, &self.env.context());
        self.settle(owner);
    }
}
