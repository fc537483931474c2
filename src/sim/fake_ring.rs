//! `FakeRing`: the ring seam over a simulated world. It owns the bytes of buffers and slots;
//! everything else is the [`World`]'s, which the run shares.

use std::cell::RefCell;
use std::rc::Rc;

use super::memory::Memory;
use super::world::World;
use crate::base::time::{Instant, Now, UnixTime};
use crate::ring::{
    BufferCount, BufferGroup, Completion, EndpointAddress, Op, OpKey, ReceivedBuffer, Ring,
    SendSlot, Socket,
};

/// A ring over a shared simulated world.
#[derive(Debug)]
pub struct FakeRing {
    world: Rc<RefCell<World>>,
    memory: Memory,
}

impl FakeRing {
    /// A ring of the world's sizes. One world has one ring at a time.
    pub fn new(world: Rc<RefCell<World>>) -> Self {
        let memory = Memory::new(world.borrow().sizes());
        FakeRing { world, memory }
    }
}

impl Ring for FakeRing {
    fn now(&self) -> Now {
        let world = self.world.borrow();
        Now {
            instant: Instant::from_nanos(world.clock()),
            unix: UnixTime::from_millis(world.net.wall_millis()),
        }
    }

    fn clock(&self) -> Instant {
        self.now().instant
    }

    fn set_endpoint(&mut self, endpoint: u16, address: EndpointAddress) {
        self.world.borrow_mut().kernel.set_endpoint(endpoint, address);
    }

    fn submit(&mut self, key: OpKey, op: Op) {
        let world = &mut *self.world.borrow_mut();
        world.submit(&mut self.memory, key, op);
    }

    fn enter(&mut self, until: Instant) {
        self.world.borrow_mut().enter(&mut self.memory, until.as_nanos());
    }

    fn completion(&mut self) -> Option<Completion> {
        self.world.borrow_mut().completion(&mut self.memory)
    }

    fn received(&mut self, buffer: &ReceivedBuffer) -> &mut [u8] {
        let world = &mut *self.world.borrow_mut();
        world.kernel.check_buffer(&mut world.net, buffer);
        &mut self.memory.buffer(buffer.group(), buffer.id())[..buffer.length() as usize]
    }

    fn give_back(&mut self, buffer: ReceivedBuffer) {
        // What is read after this is not what was received.
        self.memory.buffer(buffer.group(), buffer.id())[..buffer.length() as usize].fill(0xdb);
        let world = &mut *self.world.borrow_mut();
        world.kernel.give_back(&mut world.net, buffer);
    }

    fn buffers(&self, group: BufferGroup) -> BufferCount {
        self.world.borrow().kernel.buffer_count(group)
    }

    fn send_slot(&mut self, group: BufferGroup) -> Option<SendSlot> {
        let world = &mut *self.world.borrow_mut();
        let slot = world.kernel.take_slot(group);
        if slot.is_none() {
            world.watch.slot_denied(group);
        }
        slot
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::Random;
    use crate::base::slab::Key;
    use crate::ring::CLIENT_SLOT_BYTES;
    use crate::ring::Owner;
    use crate::ring::{Failure, OpKind, Outcome, Socket};
    use crate::sim::check::ConnId;
    use crate::sim::deadlines::Watch;
    use crate::sim::faults::{Fault, Faults};
    use crate::sim::memory::RingSizes;
    use crate::sim::net::{MILLIS, Net, Party, SECONDS, Side};
    use crate::sim::tokens::Tokens;

    fn sizes() -> RingSizes {
        RingSizes {
            buffers: [2, 1],
            slots: [2, 1],
            descriptors: 10,
            reuse_descriptors: false,
            listeners: 1,
        }
    }

    fn world(faults: Faults) -> (FakeRing, Rc<RefCell<World>>) {
        let mut random = Random::from_number(7);
        let tokens = Tokens::new(&mut random);
        let net = Net::new(random, faults, 1000, 5000);
        let world = World::new(net, tokens, Watch::default(), sizes());
        let world = Rc::new(RefCell::new(world));
        (FakeRing::new(world.clone()), world)
    }

    fn key(kind: OpKind) -> OpKey {
        OpKey::new(kind, Owner::Client(Key { slot: 1, generation: 1 }))
    }

    /// Everything that completes within ten milliseconds.
    fn turns(ring: &mut FakeRing) -> Vec<Completion> {
        let mut all = Vec::new();
        let end = ring.now().instant + std::time::Duration::from_millis(10);
        while ring.now().instant < end {
            ring.enter(end);
            all.extend(std::iter::from_fn(|| ring.completion()));
        }
        all
    }

    /// A connection whose remote end the test holds, and its socket.
    fn accepted(ring: &mut FakeRing, world: &Rc<RefCell<World>>) -> (ConnId, Socket) {
        let conn = {
            let world = &mut *world.borrow_mut();
            let conn = world.net.new_conn(Party::Test);
            world.kernel.knock(&mut world.net, 0, conn);
            conn
        };
        ring.submit(key(OpKind::Accept), Op::Accept { listener: 0 });
        match turns(ring).as_slice() {
            [Completion { outcome: Outcome::Accepted { socket, .. }, more: false, .. }] => {
                (conn, *socket)
            }
            other => panic!("{other:?}"),
        }
    }

    fn failure(world: &Rc<RefCell<World>>) -> String {
        world.borrow().net.check.failure().unwrap_or_default().to_owned()
    }

    fn send(world: &Rc<RefCell<World>>, conn: ConnId, bytes: &[u8]) {
        let taken = world.borrow_mut().net.write(conn, Side::Remote, bytes);
        assert_eq!(taken, Ok(bytes.len()));
    }

    fn multishot(socket: Socket) -> Op {
        Op::ReceiveMultishot { socket, group: BufferGroup::Client }
    }

    #[test]
    fn multishots_go_on_until_buffers_run_out() {
        let (mut ring, world) = world(Faults::quiet());
        let (conn, socket) = accepted(&mut ring, &world);
        ring.submit(key(OpKind::Receive), multishot(socket));
        let mut held = Vec::new();
        for round in 0..3u8 {
            send(&world, conn, &[round; 3]);
            for completion in turns(&mut ring) {
                match (round, completion.outcome, completion.more) {
                    (0 | 1, Outcome::Received(buffer), true) => {
                        assert_eq!(ring.received(&buffer), [round; 3]);
                        held.push(buffer);
                    }
                    (2, Outcome::Failed(Failure::NoBuffers), false) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(ring.buffers(BufferGroup::Client), BufferCount { total: 2, free: 0 });
        held.drain(..).for_each(|buffer| ring.give_back(buffer));
        ring.submit(key(OpKind::Receive), multishot(socket));
        let [Completion { outcome: Outcome::Received(buffer), .. }] = &turns(&mut ring)[..] else {
            panic!("the third bytes are still there");
        };
        assert_eq!(ring.received(buffer), [2; 3]);
        assert_eq!(failure(&world), "");
    }

    #[test]
    fn ends_are_told_after_the_bytes_before_them() {
        for reset in [false, true] {
            let (mut ring, world) = world(Faults::quiet());
            let (conn, socket) = accepted(&mut ring, &world);
            send(&world, conn, b"last");
            turns(&mut ring);
            ring.submit(key(OpKind::Receive), multishot(socket));
            let first = turns(&mut ring);
            assert!(matches!(first[0].outcome, Outcome::Received(_)));
            world.borrow_mut().net.close(conn, Side::Remote, reset);
            match (&turns(&mut ring)[..], reset) {
                ([Completion { outcome: Outcome::EndOfStream, more: false, .. }], false) => {}
                ([Completion { outcome: Outcome::Failed(Failure::Disconnected), .. }], true) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn sends_wait_for_room_and_end_with_the_connection() {
        let (mut ring, world) = world(Faults::quiet());
        let (conn, socket) = accepted(&mut ring, &world);
        let slot = ring.send_slot(BufferGroup::Client).expect("free");
        let room = world.borrow().net.room(conn, Side::Gateway) as u32;
        let total = (room + 1000).min(CLIENT_SLOT_BYTES as u32);
        assert!(total > room, "the pipe is smaller than a slot");
        ring.submit(key(OpKind::Send), Op::Send { socket, slot, start: 0, end: total });
        assert!(turns(&mut ring).is_empty(), "more than the pipe holds stays in flight");
        let mut bytes = Vec::new();
        world.borrow_mut().net.read_vec(conn, Side::Remote, &mut bytes, 2000);
        let [Completion { outcome: Outcome::Sent { result: Ok(sent), .. }, .. }] =
            turns(&mut ring)[..]
        else {
            panic!("room lets it finish");
        };
        assert_eq!(sent, total);
        world.borrow_mut().net.kill(conn);
        turns(&mut ring);
        let slot = ring.send_slot(BufferGroup::Client).expect("the second");
        ring.submit(key(OpKind::Send), Op::Send { socket, slot, start: 0, end: 1 });
        let [Completion { outcome: Outcome::Sent { result, .. }, .. }] = &turns(&mut ring)[..]
        else {
            panic!("a dead connection fails the send");
        };
        assert_eq!(*result, Err(Failure::Disconnected));
    }

    #[test]
    fn cancellations_meet_their_target_or_nothing() {
        let (mut ring, world) = world(Faults::quiet());
        let (_, socket) = accepted(&mut ring, &world);
        ring.submit(key(OpKind::Receive), multishot(socket));
        turns(&mut ring);
        let cancel = |ring: &mut FakeRing| {
            let target = key(OpKind::Receive);
            ring.submit(key(OpKind::Cancel), Op::Cancel { target });
            let mut seen: Vec<String> = turns(ring)
                .iter()
                .map(|completion| format!("{:?} {:?}", completion.key.kind, completion.outcome))
                .collect();
            seen.sort();
            seen
        };
        assert_eq!(cancel(&mut ring), ["Cancel CancelDone", "Receive Failed(Cancelled)"]);
        assert_eq!(cancel(&mut ring), ["Cancel Failed(NotFound)"]);
    }

    #[test]
    fn shots_of_one_receive_keep_their_order_whatever_is_delayed() {
        let mut faults = Faults::quiet();
        for fault in [Fault::CompletionDelayed, Fault::CompletionReordered, Fault::ReceiveShort] {
            faults.set(fault, 5000);
        }
        let (mut ring, world) = world(faults);
        let (conn, socket) = accepted(&mut ring, &world);
        let sent: Vec<u8> = (0..=255).cycle().take(4000).collect();
        send(&world, conn, &sent);
        let (mut read, mut armed) = (Vec::new(), false);
        for _ in 0..3000 {
            if !armed {
                ring.submit(key(OpKind::Receive), multishot(socket));
                armed = true;
            }
            for completion in turns(&mut ring) {
                armed &= completion.more;
                if let Outcome::Received(buffer) = completion.outcome {
                    read.extend_from_slice(ring.received(&buffer));
                    ring.give_back(buffer);
                }
            }
            if read.len() == sent.len() {
                break;
            }
        }
        assert!(read == sent, "{} of {} bytes, or out of order", read.len(), sent.len());
    }

    #[test]
    fn connects_to_nobody_fail_and_hung_ones_can_be_cancelled() {
        let mut faults = Faults::quiet();
        let (mut ring, world) = world(faults.clone());
        ring.submit(key(OpKind::Connect), Op::Connect { endpoint: 0 });
        let [Completion { outcome: Outcome::Failed(Failure::Errno(_)), .. }] = turns(&mut ring)[..]
        else {
            panic!("nobody listens");
        };
        drop(world);
        faults.set(Fault::ConnectHung, 10_000);
        let (mut ring, _world) = super::tests::world(faults);
        ring.submit(key(OpKind::Connect), Op::Connect { endpoint: 0 });
        assert!(turns(&mut ring).is_empty());
        ring.submit(key(OpKind::Cancel), Op::Cancel { target: key(OpKind::Connect) });
        let ended = turns(&mut ring);
        assert!(ended.iter().any(|completion| {
            matches!(completion.outcome, Outcome::Failed(Failure::Cancelled))
        }));
    }

    #[test]
    fn broken_rules_are_seen() {
        type Rule = fn(&mut FakeRing, Socket);
        let rules: [(&str, Rule); 7] = [
            ("in flight", |ring, socket| {
                ring.submit(key(OpKind::Receive), multishot(socket));
                ring.enter(Instant::default());
                ring.submit(key(OpKind::Close), Op::Close { socket, reset: false });
            }),
            ("closing descriptor", |ring, socket| {
                ring.submit(key(OpKind::Close), Op::Close { socket, reset: false });
                ring.submit(key(OpKind::Poll), Op::PollReadable { socket });
            }),
            ("closed descriptor", |ring, socket| {
                ring.submit(key(OpKind::Close), Op::Close { socket, reset: false });
                turns(ring);
                ring.submit(key(OpKind::Close), Op::Close { socket, reset: false });
            }),
            ("submitted while", |ring, socket| {
                ring.submit(key(OpKind::Poll), Op::PollReadable { socket });
                ring.submit(key(OpKind::Poll), Op::PollReadable { socket });
            }),
            ("closed twice", |ring, _| {
                ring.close_listener(0);
                ring.close_listener(0);
            }),
            ("used while", |ring, _| {
                let slot = ring.send_slot(BufferGroup::Client).expect("free");
                let forged = SendSlot::of_ring(slot.group(), slot.id());
                ring.release(slot);
                ring.release(forged);
            }),
            ("spins", |ring, _| {
                for _ in 0..5000 {
                    ring.enter(Instant::default());
                }
            }),
        ];
        for (told, rule) in rules {
            let (mut ring, world) = world(Faults::quiet());
            let (_, socket) = accepted(&mut ring, &world);
            rule(&mut ring, socket);
            assert!(failure(&world).contains(told), "{told}: {:?}", failure(&world));
        }
    }

    #[test]
    fn time_stands_at_the_end_of_a_wait() {
        let (mut ring, _world) = world(Faults::quiet());
        ring.enter(Instant::from_nanos(SECONDS + 30 * MILLIS));
        assert_eq!(ring.now().instant, Instant::from_nanos(SECONDS + 30 * MILLIS));
    }
}
