//! The life of one socket's operations: what is in flight, what is wanted, and the way between.
//!
//! A socket never has more than one receive-like operation and one send in flight. It ends in
//! the order terminate → join → close: operations are cancelled, their last completions awaited,
//! and only then is the descriptor closed. `close()` under an armed receive would send no FIN,
//! because the armed request holds the file.

use crate::ring::{BufferGroup, Failure, Op, OpKey, OpKind, Owner, SendSlot, Socket};

/// Operations to submit, in order.
pub type Ops = Vec<(OpKey, Op)>;

/// How a socket should be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// By a multishot receive: 864 bytes of kernel memory, no submission for each message.
    Active,
    /// By a one-shot poll until something comes: 256 bytes of kernel memory.
    IdlePoll,
    /// Not at all: its backend gives no credit.
    Paused,
    /// Not at all, but its end must be noticed: it awaits a decision.
    HangupOnly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InFlight {
    Nothing,
    Multishot,
    Once,
    Poll,
    HangupPoll,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    /// Operations are being joined; then close, with RST if set.
    Joining {
        reset: bool,
    },
    /// The close is in flight.
    Closing,
    Closed,
}

/// One socket and its operations.
///
/// Invariants: `cancelling` only while `receive != Nothing`; a close is submitted only when
/// `receive == Nothing && !sending && cancels == 0`.
#[derive(Debug)]
pub struct SocketOps {
    socket: Socket,
    group: BufferGroup,
    reading: Reading,
    receive: InFlight,
    cancelling: bool,
    /// A poll said that there is something to read.
    readable: bool,
    /// The last receive found no buffer; wait until some are back.
    starved: bool,
    /// The peer will send no more.
    ended: bool,
    sending: bool,
    send_cancelled: bool,
    cancels: u8,
    ending: Ending,
}

/// What a finished receive-like operation means to its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveEnd {
    /// Nothing that the owner needs to know.
    Routine,
    /// No buffer was free; the owner remembers the socket and calls [`SocketOps::feed`].
    Starved,
    /// The peer is gone: FIN if `true`, otherwise an error.
    Gone {
        /// The peer ended its stream in order.
        fin: bool,
    },
}

impl SocketOps {
    /// A fresh socket, to be read actively.
    pub fn new(socket: Socket, group: BufferGroup) -> Self {
        SocketOps {
            socket,
            group,
            reading: Reading::Active,
            receive: InFlight::Nothing,
            cancelling: false,
            readable: false,
            starved: false,
            ended: false,
            sending: false,
            send_cancelled: false,
            cancels: 0,
            ending: Ending::No,
        }
    }

    /// The socket itself.
    pub fn socket(&self) -> Socket {
        self.socket
    }

    /// The pools that its receives and sends use.
    pub fn group(&self) -> BufferGroup {
        self.group
    }

    /// Changes how the socket is meant to be read; [`reconcile`](Self::reconcile) acts on it.
    /// Whether that is a change.
    pub fn set_reading(&mut self, reading: Reading) -> bool {
        std::mem::replace(&mut self.reading, reading) != reading
    }

    /// Whether a send is in flight.
    pub fn is_sending(&self) -> bool {
        self.sending
    }

    /// Whether the end has begun: nothing more is to be received or sent.
    pub fn is_ending(&self) -> bool {
        self.ending != Ending::No
    }

    /// Whether the descriptor is gone and no completion is outstanding.
    pub fn is_over(&self) -> bool {
        self.ending == Ending::Closed
    }

    /// Begins the end. With `reset`, undelivered bytes are thrown away. A later call can only
    /// turn an orderly end into a reset.
    pub fn end(&mut self, reset: bool) {
        match &mut self.ending {
            Ending::No => self.ending = Ending::Joining { reset },
            Ending::Joining { reset: already } => *already |= reset,
            Ending::Closing | Ending::Closed => {}
        }
    }

    /// Submits a send of `slot[start..end]`.
    pub fn send(&mut self, owner: Owner, slot: SendSlot, start: u32, end: u32, ops: &mut Ops) {
        assert!(!self.sending && self.ending == Ending::No, "one send at a time, none at the end");
        self.sending = true;
        let op = Op::Send { socket: self.socket, slot, start, end };
        ops.push((OpKey::new(OpKind::Send, owner), op));
    }

    /// The send completed.
    pub fn sent(&mut self) {
        assert!(self.sending, "a send completed that was not in flight");
        self.sending = false;
        self.send_cancelled = false;
    }

    /// A receive completed with bytes. `more` is false when the operation is over.
    pub fn received(&mut self, more: bool) {
        self.readable = false;
        if !more {
            self.over();
        }
    }

    /// A poll completed: there is something to read, or the peer is gone.
    pub fn polled(&mut self) -> ReceiveEnd {
        let hung_up = self.receive == InFlight::HangupPoll;
        self.over();
        if hung_up {
            self.ended = true;
            return ReceiveEnd::Gone { fin: true };
        }
        self.readable = true;
        ReceiveEnd::Routine
    }

    /// A receive met the peer's FIN.
    pub fn stream_ended(&mut self) -> ReceiveEnd {
        self.ended = true;
        self.over();
        ReceiveEnd::Gone { fin: true }
    }

    /// A receive or poll failed.
    pub fn receive_failed(&mut self, failure: Failure) -> ReceiveEnd {
        self.over();
        match failure {
            Failure::Cancelled | Failure::NotFound => ReceiveEnd::Routine,
            Failure::NoBuffers => {
                self.starved = true;
                ReceiveEnd::Starved
            }
            Failure::Disconnected | Failure::Exhausted | Failure::Errno(_) => {
                self.ended = true;
                ReceiveEnd::Gone { fin: false }
            }
        }
    }

    /// A cancellation was looked at.
    pub fn cancel_done(&mut self) {
        assert!(self.cancels > 0, "a cancellation completed that was not in flight");
        self.cancels -= 1;
    }

    /// The close completed.
    pub fn closed(&mut self) {
        assert_eq!(self.ending, Ending::Closing, "a close completed that was not in flight");
        self.ending = Ending::Closed;
    }

    /// Buffers are back: a starved socket may try again.
    pub fn feed(&mut self) {
        self.starved = false;
    }

    /// Submits whatever brings the socket from what is in flight to what is wanted.
    pub fn reconcile(&mut self, owner: Owner, ops: &mut Ops) {
        match self.ending {
            Ending::No => self.reconcile_reading(owner, ops),
            Ending::Joining { reset } => self.reconcile_ending(owner, reset, ops),
            Ending::Closing | Ending::Closed => {}
        }
    }

    fn reconcile_reading(&mut self, owner: Owner, ops: &mut Ops) {
        if self.ended {
            return;
        }
        let (socket, group) = (self.socket, self.group);
        match (self.receive, self.reading) {
            (InFlight::Nothing, Reading::Paused) => {}
            (InFlight::Nothing, _) if self.starved => {}
            (InFlight::Nothing, Reading::Active) => {
                self.receive = InFlight::Multishot;
                let op = Op::ReceiveMultishot { socket, group };
                ops.push((OpKey::new(OpKind::Receive, owner), op));
            }
            (InFlight::Nothing, Reading::IdlePoll) if self.readable => {
                self.receive = InFlight::Once;
                ops.push((OpKey::new(OpKind::Receive, owner), Op::ReceiveOnce { socket, group }));
            }
            (InFlight::Nothing, Reading::IdlePoll) => {
                self.receive = InFlight::Poll;
                ops.push((OpKey::new(OpKind::Poll, owner), Op::PollReadable { socket }));
            }
            (InFlight::Nothing, Reading::HangupOnly) => {
                self.receive = InFlight::HangupPoll;
                ops.push((OpKey::new(OpKind::Poll, owner), Op::PollHangup { socket }));
            }
            (InFlight::Multishot, Reading::Active)
            | (InFlight::Poll, Reading::IdlePoll)
            | (InFlight::HangupPoll, Reading::HangupOnly)
            | (InFlight::Once, _) => {}
            (InFlight::Multishot | InFlight::Poll | InFlight::HangupPoll, _) => {
                self.cancel_receive(owner, ops);
            }
        }
    }

    fn reconcile_ending(&mut self, owner: Owner, reset: bool, ops: &mut Ops) {
        if self.receive != InFlight::Nothing {
            self.cancel_receive(owner, ops);
        }
        if self.sending && !self.send_cancelled {
            self.send_cancelled = true;
            self.cancel(owner, OpKind::Send, ops);
        }
        if self.receive == InFlight::Nothing && !self.sending && self.cancels == 0 {
            self.ending = Ending::Closing;
            let op = Op::Close { socket: self.socket, reset };
            ops.push((OpKey::new(OpKind::Close, owner), op));
        }
    }

    fn cancel_receive(&mut self, owner: Owner, ops: &mut Ops) {
        if self.cancelling {
            return;
        }
        self.cancelling = true;
        let kind = match self.receive {
            InFlight::Poll | InFlight::HangupPoll => OpKind::Poll,
            _ => OpKind::Receive,
        };
        self.cancel(owner, kind, ops);
    }

    fn cancel(&mut self, owner: Owner, kind: OpKind, ops: &mut Ops) {
        self.cancels += 1;
        let target = OpKey::new(kind, owner);
        ops.push((OpKey::new(OpKind::Cancel, owner), Op::Cancel { target }));
    }

    /// The receive-like operation in flight gave its last completion.
    fn over(&mut self) {
        assert_ne!(self.receive, InFlight::Nothing, "a receive completed that was not in flight");
        self.receive = InFlight::Nothing;
        self.cancelling = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::slab::Key;

    const OWNER: Owner = Owner::Client(Key { slot: 7, generation: 3 });

    fn socket() -> SocketOps {
        SocketOps::new(Socket(9), BufferGroup::Client)
    }

    fn step(socket: &mut SocketOps) -> Vec<String> {
        let mut ops = Ops::new();
        socket.reconcile(OWNER, &mut ops);
        ops.iter()
            .map(|(key, op)| match op {
                Op::ReceiveMultishot { .. } => "multishot".into(),
                Op::ReceiveOnce { .. } => "once".into(),
                Op::PollReadable { .. } => "poll".into(),
                Op::PollHangup { .. } => "poll for hangup".into(),
                Op::Cancel { target } => format!("cancel {:?}", target.kind),
                Op::Close { reset, .. } => format!("close reset={reset}"),
                _ => format!("{:?}", key.kind),
            })
            .collect()
    }

    #[test]
    fn active_to_idle_poll_to_active() {
        let mut socket = socket();
        assert_eq!(step(&mut socket), ["multishot"]);
        assert!(step(&mut socket).is_empty(), "nothing to do twice");
        socket.set_reading(Reading::IdlePoll);
        assert_eq!(step(&mut socket), ["cancel Receive"]);
        socket.received(true);
        assert!(step(&mut socket).is_empty(), "data may race the cancellation");
        assert_eq!(socket.receive_failed(Failure::Cancelled), ReceiveEnd::Routine);
        assert_eq!(step(&mut socket), ["poll"]);
        socket.cancel_done();
        socket.polled();
        assert_eq!(step(&mut socket), ["once"]);
        socket.received(false);
        assert_eq!(step(&mut socket), ["poll"]);
        socket.set_reading(Reading::Active);
        assert_eq!(step(&mut socket), ["cancel Poll"]);
        socket.polled();
        assert_eq!(step(&mut socket), ["multishot"], "the poll was quicker than its cancellation");
    }

    #[test]
    fn a_client_that_awaits_a_decision_is_not_read_but_its_end_is_noticed() {
        let mut socket = socket();
        step(&mut socket);
        socket.set_reading(Reading::HangupOnly);
        assert_eq!(step(&mut socket), ["cancel Receive"]);
        socket.receive_failed(Failure::Cancelled);
        socket.cancel_done();
        assert_eq!(step(&mut socket), ["poll for hangup"]);
        assert!(step(&mut socket).is_empty());
        socket.set_reading(Reading::Active);
        assert_eq!(step(&mut socket), ["cancel Poll"]);
        socket.receive_failed(Failure::Cancelled);
        socket.cancel_done();
        assert_eq!(step(&mut socket), ["multishot"]);
        socket.receive_failed(Failure::NoBuffers);
        socket.feed();
        socket.set_reading(Reading::HangupOnly);
        assert_eq!(step(&mut socket), ["poll for hangup"]);
        assert_eq!(socket.polled(), ReceiveEnd::Gone { fin: true });
        assert!(step(&mut socket).is_empty(), "nothing more will come");
    }

    #[test]
    fn closes_only_when_all_is_joined() {
        let mut socket = socket();
        step(&mut socket);
        let mut ops = Ops::new();
        socket.send(OWNER, SendSlot::of_ring(BufferGroup::Client, 0), 0, 5, &mut ops);
        socket.end(false);
        assert_eq!(step(&mut socket), ["cancel Receive", "cancel Send"]);
        socket.end(true);
        socket.cancel_done();
        assert_eq!(socket.receive_failed(Failure::Cancelled), ReceiveEnd::Routine);
        assert!(step(&mut socket).is_empty(), "the send is still out");
        socket.sent();
        assert!(step(&mut socket).is_empty(), "a cancellation is still out");
        socket.cancel_done();
        assert_eq!(step(&mut socket), ["close reset=true"]);
        assert!(!socket.is_over());
        socket.closed();
        assert!(socket.is_over());
    }

    #[test]
    fn starved_sockets_wait_to_be_fed() {
        let mut socket = socket();
        step(&mut socket);
        assert_eq!(socket.receive_failed(Failure::NoBuffers), ReceiveEnd::Starved);
        assert!(step(&mut socket).is_empty());
        socket.feed();
        assert_eq!(step(&mut socket), ["multishot"]);
    }

    #[test]
    fn nothing_is_armed_after_the_peer_ended() {
        let mut socket = socket();
        step(&mut socket);
        assert_eq!(socket.stream_ended(), ReceiveEnd::Gone { fin: true });
        assert!(step(&mut socket).is_empty());
        socket.end(false);
        assert_eq!(step(&mut socket), ["close reset=false"]);
    }
}
