//! A worker in its steady state allocates nothing: counted over 10,000 relayed messages.

#[path = "support/counting.rs"]
mod counting;

use counting::{allocations, uncounted};
use portcullis::base::time::{Instant, Now};
use portcullis::ring::{
    BufferCount, BufferGroup, Completion, EndpointAddress, Op, OpKey, ReceivedBuffer, Ring,
    SendSlot, Socket,
};
use portcullis::sim::faults::Fault;
use portcullis::sim::scenario::Scenario;
use portcullis::sim::{Options, Simulation};

/// What the fake ring and the world behind it allocate is not the worker's.
struct Uncounted<R>(R);

impl<R: Ring> Ring for Uncounted<R> {
    fn now(&self) -> Now {
        uncounted(|| self.0.now())
    }
    fn clock(&self) -> Instant {
        self.0.clock()
    }
    fn set_endpoint(&mut self, endpoint: u16, address: EndpointAddress) {
        uncounted(|| self.0.set_endpoint(endpoint, address));
    }
    fn submit(&mut self, key: OpKey, op: Op) {
        uncounted(|| self.0.submit(key, op));
    }
    fn enter(&mut self, until: Instant) {
        uncounted(|| self.0.enter(until));
    }
    fn completion(&mut self) -> Option<Completion> {
        uncounted(|| self.0.completion())
    }
    fn received(&mut self, buffer: &ReceivedBuffer) -> &mut [u8] {
        uncounted(|| self.0.received(buffer))
    }
    fn give_back(&mut self, buffer: ReceivedBuffer) {
        uncounted(|| self.0.give_back(buffer));
    }
    fn buffers(&self, group: BufferGroup) -> BufferCount {
        uncounted(|| self.0.buffers(group))
    }
    fn send_slot(&mut self, group: BufferGroup) -> Option<SendSlot> {
        uncounted(|| self.0.send_slot(group))
    }
    fn slot_bytes(&mut self, slot: &SendSlot) -> &mut [u8] {
        uncounted(|| self.0.slot_bytes(slot))
    }
    fn release(&mut self, slot: SendSlot) {
        uncounted(|| self.0.release(slot));
    }
    fn shutdown_write(&mut self, socket: Socket) {
        uncounted(|| self.0.shutdown_write(socket));
    }
    fn close_listener(&mut self, listener: u16) {
        uncounted(|| self.0.close_listener(listener));
    }
}

const CLIENTS: usize = 20;
const MESSAGES: u32 = 1000;

fn relay<R: Ring>(simulation: &mut Simulation<R>, messages: u64) -> u64 {
    let down = |simulation: &Simulation<R>| simulation.world.borrow().net.check.messages_down;
    let end = down(simulation) + messages;
    let mut count = 0;
    for _ in 0..500_000 {
        if down(simulation) >= end {
            break;
        }
        count += allocations(|| simulation.worker.tick()).0;
        let world = simulation.world.borrow();
        assert_eq!(world.net.check.failure(), None);
    }
    assert!(down(simulation) >= end, "the messages do not flow");
    count
}

#[test]
fn relaying_allocates_nothing() {
    let quiet = Some(Scenario::quiet(CLIENTS, MESSAGES, 64));
    let options = Options { quiet, ..Options::default() };
    let mut simulation = Simulation::with_ring(1, &options, Uncounted);
    simulation.world.borrow_mut().start();
    let opening = relay(&mut simulation, 1_000);
    assert!(opening > 0, "opening connections allocates: is anything counted at all?");
    // A worker that is often late meets everything at once: every queue grows to the most that
    // these clients can ever fill.
    simulation.world.borrow_mut().net.faults.set(Fault::WorkerLate, 2000);
    relay(&mut simulation, 4_000);
    simulation.world.borrow_mut().net.faults.stop();
    assert_eq!(relay(&mut simulation, 12_000), 0, "allocations in the steady state");
}
