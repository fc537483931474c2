//! What a worker gives up as memory runs short. The control thread measures, and says which
//! pressure of the ladder holds.

use crate::base::memory_pressure::MemoryPressure;

use super::core::{Core, Parts};
use super::sweep::Duty;

/// Connections that are shed in one turn.
const SHED_PER_TICK: usize = 256;

impl Parts {
    /// The control thread measured, and this pressure holds from now on. While memory is short it
    /// says so every time; each time free memory is given back, and on the last pressure all
    /// connections are looked at.
    pub(super) fn set_pressure(&mut self, pressure: MemoryPressure) {
        self.admission.pressure = pressure;
        match pressure {
            MemoryPressure::CloseSlowReaders => self.sweep.begin(Duty::SlowReaders),
            _ => self.sweep.cancel(Duty::SlowReaders),
        }
        if pressure != MemoryPressure::Clear {
            self.pools.queues.release_free();
            self.pools.backlogs.release_free();
        }
    }

    /// Whether there is something to give up in the next turn already.
    pub(super) fn has_memory_to_give(&self) -> bool {
        let sheds = self.admission.pressure >= MemoryPressure::ShedUnauthenticated;
        sheds && self.admission.holds_any()
    }
}

impl Core {
    /// Gives up a turn's part of what the pressure says, if it says anything.
    pub(super) fn give_up_memory(&mut self) -> bool {
        let sheds = self.parts.admission.pressure >= MemoryPressure::ShedUnauthenticated;
        if sheds {
            self.evict_some(SHED_PER_TICK);
        }
        sheds
    }
}
