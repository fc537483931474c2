//! What the control thread shows of the service.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::base::circuit::CircuitState;

/// Written by the service's thread alone.
#[derive(Default)]
pub struct AuthNumbers {
    pub(super) in_flight: AtomicU64,
    pub(super) circuits: [AtomicU64; 3],
}

impl AuthNumbers {
    /// Requests at endpoints.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Relaxed)
    }

    /// Endpoints whose circuit stands so.
    pub fn circuits(&self, state: CircuitState) -> u64 {
        self.circuits[state as usize].load(Relaxed)
    }
}
