//! The bytes of the fake ring, and how many buffers and slots it has.

use crate::ring::{
    BufferGroup, CLIENT_BUFFER_BYTES, CLIENT_SLOT_BYTES, LINK_BUFFER_BYTES, LINK_SLOT_BYTES,
    SendSlot,
};

/// Sizes of one run's ring.
#[derive(Clone, Copy, Debug)]
pub struct RingSizes {
    /// Receive buffers, clients and links.
    pub buffers: [u16; 2],
    /// Send slots, clients and links.
    pub slots: [u16; 2],
    /// Descriptors that may be open concurrently.
    pub descriptors: usize,
    /// Whether a closed descriptor's number is given out again. Without, a use after close is
    /// always seen; with it, confusion of old and new is.
    pub reuse_descriptors: bool,
    /// Listeners, by number.
    pub listeners: u16,
}

/// The bytes of every buffer and slot.
#[derive(Debug)]
pub struct Memory {
    buffers: [Vec<u8>; 2],
    slots: [Vec<u8>; 2],
}

impl Memory {
    /// Zeroed memory.
    pub fn new(sizes: RingSizes) -> Self {
        let bytes = |count: u16, size: usize| vec![0; usize::from(count) * size];
        Memory {
            buffers: [
                bytes(sizes.buffers[0], CLIENT_BUFFER_BYTES),
                bytes(sizes.buffers[1], LINK_BUFFER_BYTES),
            ],
            slots: [
                bytes(sizes.slots[0], CLIENT_SLOT_BYTES),
                bytes(sizes.slots[1], LINK_SLOT_BYTES),
            ],
        }
    }

    /// A whole receive buffer.
    pub fn buffer(&mut self, group: BufferGroup, id: u16) -> &mut [u8] {
        let size = match group {
            BufferGroup::Client => CLIENT_BUFFER_BYTES,
            BufferGroup::Link => LINK_BUFFER_BYTES,
        };
        &mut self.buffers[group as usize][usize::from(id) * size..][..size]
    }

    /// A whole send slot.
    pub fn slot(&mut self, slot: &SendSlot) -> &mut [u8] {
        let size = match slot.group() {
            BufferGroup::Client => CLIENT_SLOT_BYTES,
            BufferGroup::Link => LINK_SLOT_BYTES,
        };
        &mut self.slots[slot.group() as usize][usize::from(slot.id()) * size..][..size]
    }
}
