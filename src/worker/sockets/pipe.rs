//! One socket with its send in flight: the only place that fills send slots, goes on with short
//! sends and takes completions apart, for clients and upstreams alike.

use crate::ring::{BufferGroup, Failure, Outcome, Owner, ReceivedBuffer, Ring, SendSlot, Socket};

use super::ops::{Ops, Reading, ReceiveEnd, SocketOps};

/// A socket, and what is left of its send in flight.
#[derive(Debug)]
pub struct Pipe {
    ops: SocketOps,
    /// The send in flight is of `slot[sent..filled]`.
    sent: u32,
    filled: u32,
}

/// What a completion means to the pipe's owner.
#[derive(Debug)]
pub enum PipeEvent {
    /// Bytes arrived.
    Received(ReceivedBuffer),
    /// The kernel took bytes of the output.
    Sent,
    /// The peer will send no more.
    Finished,
    /// The connection is dead.
    Broken,
    /// No receive buffer was free. The owner calls [`Pipe::feed`] when some are.
    Starved,
    /// Nothing that the owner must act on, but for [`Pipe::reconcile`].
    Routine,
}

/// What came of [`Pipe::flush`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// A send from the slot of this number was submitted.
    Sending(u16),
    /// A send is in flight, or the pipe ends.
    Busy,
    /// No slot is free: try again when some have come back.
    NoSlot,
    /// The output could not be made: the owner ends the connection.
    Nothing,
}

impl Pipe {
    /// A fresh socket. It is read from the first [`reconcile`](Self::reconcile) on.
    pub fn new(socket: Socket, group: BufferGroup) -> Self {
        Pipe { ops: SocketOps::new(socket, group), sent: 0, filled: 0 }
    }

    /// The socket itself.
    pub fn socket(&self) -> Socket {
        self.ops.socket()
    }

    /// Bytes that are with the kernel.
    pub fn unsent(&self) -> usize {
        (self.filled - self.sent) as usize
    }

    /// Whether a send is in flight.
    pub fn is_sending(&self) -> bool {
        self.ops.is_sending()
    }

    /// Whether output could be sent now.
    pub fn can_send(&self) -> bool {
        !self.ops.is_sending() && !self.ops.is_ending()
    }

    /// Whether the end has begun: nothing more is to be received or sent.
    pub fn is_ending(&self) -> bool {
        self.ops.is_ending()
    }

    /// Whether the descriptor is gone and no completion is outstanding.
    pub fn is_over(&self) -> bool {
        self.ops.is_over()
    }

    /// Begins the end, see `SocketOps::end`.
    pub fn end(&mut self, reset: bool) {
        self.ops.end(reset);
    }

    /// Changes how the socket is read; [`reconcile`](Self::reconcile) acts on it.
    /// Whether that is a change.
    pub fn set_reading(&mut self, reading: Reading) -> bool {
        self.ops.set_reading(reading)
    }

    /// Receive buffers are free again.
    pub fn feed(&mut self) {
        self.ops.feed();
    }

    /// Submits what brings the socket from what is in flight to what is wanted.
    pub fn reconcile(&mut self, owner: Owner, ops: &mut Ops) {
        self.ops.reconcile(owner, ops);
    }

    /// Takes a completion: submits the rest of a short send, and gives a slot that is used up
    /// back to the ring.
    pub fn complete<R: Ring>(
        &mut self,
        owner: Owner,
        outcome: Outcome,
        more: bool,
        ring: &mut R,
        ops: &mut Ops,
    ) -> PipeEvent {
        let end = match outcome {
            Outcome::Received(buffer) => {
                self.ops.received(more);
                return PipeEvent::Received(buffer);
            }
            Outcome::Sent { slot, result } => return self.sent(owner, slot, result, ring, ops),
            Outcome::Readable => self.ops.polled(),
            Outcome::EndOfStream => self.ops.stream_ended(),
            Outcome::Failed(failure) => self.ops.receive_failed(failure),
            Outcome::CancelDone => {
                self.ops.cancel_done();
                ReceiveEnd::Routine
            }
            Outcome::Closed => {
                self.ops.closed();
                ReceiveEnd::Routine
            }
            Outcome::Accepted { .. } | Outcome::Connected(_) => {
                unreachable!("{outcome:?} of a socket that is there already")
            }
        };
        match end {
            ReceiveEnd::Routine => PipeEvent::Routine,
            ReceiveEnd::Starved => PipeEvent::Starved,
            ReceiveEnd::Gone { fin: true } => PipeEvent::Finished,
            ReceiveEnd::Gone { fin: false } => PipeEvent::Broken,
        }
    }

    fn sent<R: Ring>(
        &mut self,
        owner: Owner,
        slot: SendSlot,
        result: Result<u32, Failure>,
        ring: &mut R,
        ops: &mut Ops,
    ) -> PipeEvent {
        self.ops.sent();
        if let Ok(count) = result {
            self.sent += count;
            if self.sent < self.filled && !self.ops.is_ending() {
                self.ops.send(owner, slot, self.sent, self.filled, ops);
                return PipeEvent::Sent;
            }
        }
        ring.release(slot);
        (self.sent, self.filled) = (0, 0);
        match result {
            Ok(_) => PipeEvent::Sent,
            Err(Failure::Cancelled) => PipeEvent::Routine,
            Err(_) => PipeEvent::Broken,
        }
    }

    /// Fills a send slot with output, of which there must be some, and submits it. `copy_out`
    /// says how many bytes it wrote, none when it failed.
    pub fn flush<R: Ring>(
        &mut self,
        owner: Owner,
        ring: &mut R,
        ops: &mut Ops,
        copy_out: impl FnOnce(&mut [u8]) -> usize,
    ) -> Flush {
        if !self.can_send() {
            return Flush::Busy;
        }
        let Some(slot) = ring.send_slot(self.ops.group()) else { return Flush::NoSlot };
        let number = slot.id();
        let bytes = copy_out(ring.slot_bytes(&slot)) as u32;
        if bytes == 0 {
            ring.release(slot);
            return Flush::Nothing;
        }
        (self.sent, self.filled) = (0, bytes);
        self.ops.send(owner, slot, 0, bytes, ops);
        Flush::Sending(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::slab::Key;
    use crate::base::time::{Instant, Now};
    use crate::ring::{BufferCount, Completion, EndpointAddress, Op, OpKey};

    const OWNER: Owner = Owner::Client(Key { slot: 7, generation: 3 });

    /// A ring with one send slot of ten bytes.
    #[derive(Default)]
    struct OneSlot {
        taken: bool,
        bytes: [u8; 10],
    }

    impl Ring for OneSlot {
        fn now(&self) -> Now {
            unreachable!("a pipe does not ask for it")
        }
        fn clock(&self) -> Instant {
            unreachable!("a pipe asks for neither time nor input")
        }
        fn set_endpoint(&mut self, _: u16, _: EndpointAddress) {}
        fn submit(&mut self, _: OpKey, _: Op) {}
        fn enter(&mut self, _: Instant) {}
        fn completion(&mut self) -> Option<Completion> {
            None
        }
        fn received(&mut self, _: &ReceivedBuffer) -> &mut [u8] {
            unreachable!("a pipe does not ask for it")
        }
        fn give_back(&mut self, _: ReceivedBuffer) {}
        fn buffers(&self, _: BufferGroup) -> BufferCount {
            BufferCount::default()
        }
        fn send_slot(&mut self, group: BufferGroup) -> Option<SendSlot> {
            let free = !std::mem::replace(&mut self.taken, true);
            free.then(|| SendSlot::of_ring(group, 0))
        }
        fn slot_bytes(&mut self, _: &SendSlot) -> &mut [u8] {
            &mut self.bytes
        }
        fn release(&mut self, _: SendSlot) {
            assert!(std::mem::take(&mut self.taken), "a slot is released once");
        }
        fn shutdown_write(&mut self, _: Socket) {}
        fn close_listener(&mut self, _: u16) {}
    }

    fn pipe() -> Pipe {
        Pipe::new(Socket(9), BufferGroup::Client)
    }

    fn flush(pipe: &mut Pipe, ring: &mut OneSlot, ops: &mut Ops) -> Flush {
        pipe.flush(OWNER, ring, ops, |slot| {
            slot[..8].copy_from_slice(b"12345678");
            8
        })
    }

    /// Takes the send out of the operations: its slot, and which part of it is to be sent.
    fn take_send(ops: &mut Ops) -> (SendSlot, u32, u32) {
        let (_, Op::Send { slot, start, end, .. }) = ops.remove(0) else { panic!("{ops:?}") };
        (slot, start, end)
    }

    fn sent(
        pipe: &mut Pipe,
        slot: SendSlot,
        result: Result<u32, Failure>,
        ring: &mut OneSlot,
        ops: &mut Ops,
    ) -> PipeEvent {
        pipe.complete(OWNER, Outcome::Sent { slot, result }, false, ring, ops)
    }

    #[test]
    fn a_short_send_goes_on_from_the_same_slot() {
        let (mut pipe, mut ring, mut ops) = (pipe(), OneSlot::default(), Ops::new());
        assert_eq!(flush(&mut pipe, &mut ring, &mut ops), Flush::Sending(0));
        let (slot, start, end) = take_send(&mut ops);
        assert_eq!((start, end, pipe.unsent()), (0, 8, 8));
        assert_eq!(flush(&mut pipe, &mut ring, &mut ops), Flush::Busy);
        assert!(matches!(sent(&mut pipe, slot, Ok(3), &mut ring, &mut ops), PipeEvent::Sent));
        let (slot, start, end) = take_send(&mut ops);
        assert_eq!((start, end, pipe.unsent(), ring.taken), (3, 8, 5, true));
        assert!(matches!(sent(&mut pipe, slot, Ok(5), &mut ring, &mut ops), PipeEvent::Sent));
        assert_eq!((pipe.unsent(), ring.taken, pipe.can_send()), (0, false, true));
    }

    #[test]
    fn without_a_slot_nothing_is_taken_from_the_output() {
        let (mut pipe, mut ring, mut ops) = (pipe(), OneSlot::default(), Ops::new());
        ring.taken = true;
        let flush = pipe.flush(OWNER, &mut ring, &mut ops, |_| panic!("there is no slot"));
        assert_eq!((flush, pipe.can_send(), ops.len()), (Flush::NoSlot, true, 0));
    }

    #[test]
    fn what_a_send_left_is_not_sent_once_the_end_has_begun() {
        let (mut pipe, mut ring, mut ops) = (pipe(), OneSlot::default(), Ops::new());
        flush(&mut pipe, &mut ring, &mut ops);
        let (slot, ..) = take_send(&mut ops);
        pipe.end(false);
        assert!(matches!(sent(&mut pipe, slot, Ok(3), &mut ring, &mut ops), PipeEvent::Sent));
        assert!(ops.is_empty() && !ring.taken, "the slot is free");
        pipe.reconcile(OWNER, &mut ops);
        assert!(matches!(ops[..], [(_, Op::Close { reset: false, .. })]), "{ops:?}");
        assert_eq!(flush(&mut pipe, &mut ring, &mut Ops::new()), Flush::Busy);
    }

    #[test]
    fn a_send_that_fails_means_a_dead_connection_unless_it_was_cancelled() {
        for (failure, dead) in [(Failure::Disconnected, true), (Failure::Cancelled, false)] {
            let (mut pipe, mut ring, mut ops) = (pipe(), OneSlot::default(), Ops::new());
            flush(&mut pipe, &mut ring, &mut ops);
            let (slot, ..) = take_send(&mut ops);
            let event = sent(&mut pipe, slot, Err(failure), &mut ring, &mut ops);
            assert_eq!(matches!(event, PipeEvent::Broken), dead, "{event:?}");
            assert_eq!((pipe.unsent(), ring.taken), (0, false));
        }
    }
}
