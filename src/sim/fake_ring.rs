//! `FakeRing`: the ring seam over a simulated world. It owns the bytes of buffers and slots;
//! everything else is the [`World`]'s, which the run shares.

use std::cell::RefCell;
use std::rc::Rc;

use super::kernel::RingSizes;
use super::world::World;
use crate::base::time::{Instant, Now, UnixTime};
use crate::ring::{
    BufferCount, BufferGroup, CLIENT_BUFFER_BYTES, CLIENT_SLOT_BYTES, Completion, EndpointAddress,
    LINK_BUFFER_BYTES, LINK_SLOT_BYTES, Op, OpKey, ReceivedBuffer, Ring, SendSlot, Socket,
};

/// The bytes of every buffer and slot.
#[derive(Debug)]
pub struct Memory {
    buffers: [Vec<u8>; 2],
    slots: [Vec<u8>; 2],
}

impl Memory {
    fn new(sizes: RingSizes) -> Self {
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
        let size = match slot.group {
            BufferGroup::Client => CLIENT_SLOT_BYTES,
            BufferGroup::Link => LINK_SLOT_BYTES,
        };
        &mut self.slots[slot.group as usize][usize::from(slot.id) * size..][..size]
    }
}

/// A ring over a shared simulated world.
#[derive(Debug)]
pub struct FakeRing {
    world: Rc<RefCell<World>>,
    memory: Memory,
}

impl FakeRing {
    /// A ring of the world's sizes. One world has one ring.
    pub fn new(world: Rc<RefCell<World>>) -> Self {
        let memory = Memory::new(world.borrow().sizes());
        FakeRing { world, memory }
    }
}

impl Ring for FakeRing {
    fn now(&self) -> Now {
        let world = self.world.borrow();
        Now {
            instant: Instant::from_nanos(world.net.now),
            unix: UnixTime::from_millis(world.net.wall_millis()),
        }
    }

    fn set_endpoint(&mut self, endpoint: u16, address: EndpointAddress) {
        self.world.borrow_mut().kernel.set_endpoint(endpoint, address);
    }

    fn submit(&mut self, key: OpKey, op: Op) {
        let world = &mut *self.world.borrow_mut();
        world.kernel.submit(&mut world.net, key, op);
    }

    fn enter(&mut self, until: Instant) {
        self.world.borrow_mut().enter(&mut self.memory, until.as_nanos());
    }

    fn completion(&mut self) -> Option<Completion> {
        let world = &mut *self.world.borrow_mut();
        world.kernel.completion(&mut world.net)
    }

    fn received(&mut self, buffer: &ReceivedBuffer) -> &mut [u8] {
        let world = &mut *self.world.borrow_mut();
        world.kernel.check_buffer(&mut world.net, buffer);
        &mut self.memory.buffer(buffer.group, buffer.id)[..buffer.length as usize]
    }

    fn give_back(&mut self, buffer: ReceivedBuffer) {
        // What is read after this is not what was received.
        self.memory.buffer(buffer.group, buffer.id)[..buffer.length as usize].fill(0xdb);
        let world = &mut *self.world.borrow_mut();
        world.kernel.give_back(&mut world.net, buffer);
    }

    fn buffers(&self, group: BufferGroup) -> BufferCount {
        self.world.borrow().kernel.buffer_count(group)
    }

    fn send_slot(&mut self, group: BufferGroup) -> Option<SendSlot> {
        self.world.borrow_mut().kernel.take_slot(group)
    }

    fn slot_bytes(&mut self, slot: &SendSlot) -> &mut [u8] {
        let world = &mut *self.world.borrow_mut();
        world.kernel.check_slot(&mut world.net, slot);
        self.memory.slot(slot)
    }

    fn release(&mut self, slot: SendSlot) {
        let world = &mut *self.world.borrow_mut();
        world.kernel.release(&mut world.net, slot);
    }

    fn shutdown_write(&mut self, socket: Socket) {
        let world = &mut *self.world.borrow_mut();
        world.kernel.shutdown_write(&mut world.net, socket);
    }

    fn close_listener(&mut self, listener: u16) {
        let world = &mut *self.world.borrow_mut();
        world.kernel.close_listener(&mut world.net, listener);
    }
}
