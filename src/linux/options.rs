//! What a ring is made of, and why none can be made.

use std::io;

use super::buffers;
use super::listener::ListenerSocket;
use super::probe::ProbeError;

/// Whether accepted sockets get descriptors of the process or entries of the ring's own table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorMode {
    /// Descriptors of the process, bounded by RLIMIT_NOFILE for all workers together.
    Plain,
    /// Entries of the ring's table, bounded by RLIMIT_NOFILE for each ring. Links to backends
    /// keep plain descriptors. A close with reset needs Linux 6.7; before, it sends FIN.
    Direct,
}

/// What a ring is made of.
#[derive(Debug)]
pub struct RingOptions {
    /// Operations that can be queued before they are handed to the kernel; a power of two.
    pub entries: u32,
    /// Receive buffers for clients, 1 to 32,768.
    pub client_buffers: u16,
    /// Receive buffers for links, 1 to 32,768.
    pub link_buffers: u16,
    /// Send slots for clients.
    pub client_slots: u16,
    /// Send slots for links.
    pub link_slots: u16,
    /// The listeners; `Op::Accept` names them by index.
    pub listeners: Vec<ListenerSocket>,
    /// What accepted sockets are.
    pub descriptors: DescriptorMode,
}

/// Why no ring could be made.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The operator's options.
    #[error("ring options: {0}")]
    Options(&'static str),
    /// The kernel refused; says what to do about it.
    #[error(transparent)]
    Kernel(#[from] ProbeError),
    /// No memory or descriptors for the ring.
    #[error("memory for the ring: {0}")]
    Resources(#[from] io::Error),
}

impl RingOptions {
    /// Whether a ring can be made of these.
    pub(super) fn check(&self) -> Result<(), RingError> {
        let buffers = 1..=buffers::BUFFERS_MAX;
        if !self.entries.is_power_of_two() {
            return Err(RingError::Options("entries must be a power of two"));
        }
        if !buffers.contains(&self.client_buffers) || !buffers.contains(&self.link_buffers) {
            return Err(RingError::Options("a pool has 1 to 32768 receive buffers"));
        }
        if self.client_slots == 0 || self.link_slots == 0 {
            return Err(RingError::Options("a pool has at least one send slot"));
        }
        Ok(())
    }
}
