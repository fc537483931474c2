//! A ring between a sound worker and the fake one that makes the worker look faulty_ring: it
//! forgets, repeats and garbles what the worker asks for, as a wrong change to it would.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bugs::Bug;
use super::fake_ring::FakeRing;
use crate::base::time::{Instant, Now};
use crate::protocol::link::{FrameHeader, HEADER_BYTES, Kind};
use crate::ring::{
    BufferCount, BufferGroup, Completion, EndpointAddress, Failure, Op, OpKey, OpKind, Outcome,
    Owner, ReceivedBuffer, Ring, SendSlot, Socket,
};

/// What is added to the frames of a link's send slot, or taken from it.
#[derive(Clone, Copy, Debug, Default)]
struct Altered {
    /// Bytes that the worker believes to be in the slot, minus those that are.
    missing: i64,
    /// Where the send in flight begins and ends, as the ring was told.
    start: u32,
    end: u32,
}

/// The ring with one bug.
#[derive(Debug)]
pub struct Careless {
    ring: FakeRing,
    bug: Bug,
    /// Occasions on which the bug could have shown.
    occasions: u64,
    starved: Option<OpKey>,
    /// By group and number of the slot.
    altered: BTreeMap<(usize, u16), Altered>,
    /// What goes to WebSocket servers, by socket.
    streams: BTreeMap<u32, Stream>,
}

/// The place in the stream of frames to a WebSocket server.
#[derive(Debug, Default)]
struct Stream {
    /// Bytes that follow of a frame that began in an earlier slot.
    rest: usize,
    /// A header was cut: from here on nothing is known.
    is_lost: bool,
}

impl Stream {
    /// Places and lengths of the unfragmented messages that lie within `bytes`, which are next.
    fn messages(&mut self, bytes: &[u8]) -> Vec<(usize, usize)> {
        let (mut found, mut at) = (Vec::new(), self.rest);
        while at < bytes.len() && !self.is_lost {
            let header = |length| 6 + length + if length < 126 { 0 } else { 2 };
            let length = match bytes.get(at + 1..at + 4) {
                Some([short, ..]) if short & 0x7f < 126 => header(usize::from(short & 0x7f)),
                Some([0xfe, high, low]) => header(usize::from(u16::from_be_bytes([*high, *low]))),
                _ => {
                    self.is_lost = true;
                    return found;
                }
            };
            if matches!(bytes[at], 0x81 | 0x82) && at + length <= bytes.len() {
                found.push((at, length));
            }
            at += length;
        }
        self.rest = at - bytes.len().min(at);
        found
    }
}

impl Careless {
    /// `ring`, used by a worker that has `bug`.
    pub fn new(ring: FakeRing, bug: Bug) -> Self {
        Careless {
            ring,
            bug,
            occasions: 0,
            starved: None,
            altered: BTreeMap::new(),
            streams: BTreeMap::new(),
        }
    }

    /// Whether the bug shows on this occasion: one of `every`.
    fn shows(&mut self, bug: Bug, every: u64) -> bool {
        if self.bug != bug {
            return false;
        }
        self.occasions += 1;
        self.occasions.is_multiple_of(every)
    }

    fn send(&mut self, key: OpKey, socket: Socket, slot: SendSlot, (start, end): (u32, u32)) {
        let (mut start, mut end) = (start, end);
        let place = (slot.group() as usize, slot.id());
        let is_upstream = matches!(key.owner, Owner::Upstream(_));
        if !is_upstream {
            self.altered.remove(&place);
            if start > 0 && self.shows(Bug::RestOverlaps, 5) {
                start -= 1;
            }
            let code = start == 0 && self.shows(Bug::CodeWrong, 1);
            let swap = start == 0 && self.shows(Bug::MessagesSwapped, 1);
            let bytes = &mut self.ring.slot_bytes(&slot)[..end as usize];
            if code {
                spoil_code(bytes);
            }
            if swap {
                swap_messages(bytes);
            }
        } else {
            if start == 0 {
                let missing = match slot.group() {
                    BufferGroup::Link => self.alter(&slot, end),
                    BufferGroup::Client => self.alter_frames(socket, &slot, end),
                };
                self.altered.insert(place, Altered { missing, ..Altered::default() });
            }
            let altered = self.altered.entry(place).or_default();
            end = (i64::from(end) - altered.missing) as u32;
            (altered.start, altered.end) = (start, end);
        }
        self.ring.submit(key, Op::Send { socket, slot, start, end });
    }

    /// Changes what goes to a WebSocket server; answers how many bytes it took away.
    fn alter_frames(&mut self, socket: Socket, slot: &SendSlot, end: u32) -> i64 {
        let bytes = self.ring.slot_bytes(slot)[..end as usize].to_vec();
        if bytes.starts_with(b"GET ") {
            self.streams.insert(socket.0, Stream::default());
            let early = b"\x89\x80\0\0\0\0";
            if !bytes.ends_with(b"\r\n\r\n") || !self.shows(Bug::FrameTooEarly, 5) {
                return 0;
            }
            return -self.insert(slot, bytes.len(), early);
        }
        let messages = self.streams.entry(socket.0).or_default().messages(&bytes);
        let Some((at, length)) = messages.last().copied() else { return 0 };
        // Alone in its slot it is left alone: a send of nothing is not what is meant here.
        if length < bytes.len() && self.shows(Bug::FrameLost, 5) {
            let slot_bytes = self.ring.slot_bytes(slot);
            slot_bytes[at..bytes.len() - length].copy_from_slice(&bytes[at + length..]);
            return length as i64;
        }
        // At the end of the slot, where a frame may follow.
        if at + length == bytes.len() && self.shows(Bug::FrameDoubled, 20) {
            return -self.insert(slot, bytes.len(), &bytes[at..]);
        }
        0
    }

    /// Puts more behind the first `end` bytes of a slot, if there is room; answers how much.
    fn insert(&mut self, slot: &SendSlot, end: usize, more: &[u8]) -> i64 {
        let Some(room) = self.ring.slot_bytes(slot).get_mut(end..end + more.len()) else {
            return 0;
        };
        room.copy_from_slice(more);
        more.len() as i64
    }

    /// Changes the frames in a link's slot; answers how many bytes it took away.
    fn alter(&mut self, slot: &SendSlot, end: u32) -> i64 {
        let (bug, kind, every) = match self.bug {
            Bug::SessionKept => (Bug::SessionKept, Kind::Close, 3),
            Bug::CreditForgotten => (Bug::CreditForgotten, Kind::Credit, 1),
            Bug::MessageLost => (Bug::MessageLost, Kind::Data, 20),
            Bug::SessionMixedUp => (Bug::SessionMixedUp, Kind::Data, 20),
            Bug::OpenedTwice => (Bug::OpenedTwice, Kind::Open, 3),
            _ => return 0,
        };
        let bytes = self.ring.slot_bytes(slot)[..end as usize].to_vec();
        let Some((at, length)) = find_frame(&bytes, kind) else { return 0 };
        // Alone in its slot it is left alone: a send of nothing is not what is meant here.
        let only = bytes.len() == length;
        if (only && !matches!(bug, Bug::SessionMixedUp | Bug::OpenedTwice))
            || !self.shows(bug, every)
        {
            return 0;
        }
        let slot_bytes = self.ring.slot_bytes(slot);
        match bug {
            Bug::SessionMixedUp => slot_bytes[at + HEADER_BYTES - 1] ^= 1,
            Bug::OpenedTwice if bytes.len() + length <= slot_bytes.len() => {
                slot_bytes[end as usize..][..length].copy_from_slice(&bytes[at..at + length]);
                return -(length as i64);
            }
            Bug::OpenedTwice => {}
            _ => {
                slot_bytes[at..bytes.len() - length].copy_from_slice(&bytes[at + length..]);
                return length as i64;
            }
        }
        0
    }
}

/// Place and length of the first frame of this kind, if the bytes begin with whole frames.
fn find_frame(bytes: &[u8], kind: Kind) -> Option<(usize, usize)> {
    let mut at = 0;
    loop {
        let header = bytes.get(at..)?.first_chunk::<HEADER_BYTES>()?;
        let header = FrameHeader::parse(header).ok()?;
        let length = HEADER_BYTES + header.length as usize;
        if at + length > bytes.len() {
            return None;
        }
        if header.kind == kind {
            return Some((at, length));
        }
        at += length;
    }
}

/// Changes the code of a close frame for a bad token at the end of `bytes`.
fn spoil_code(bytes: &mut [u8]) {
    for code in [4401u16, 4403] {
        let [high, low] = code.to_be_bytes();
        let found = bytes.windows(4).rposition(|w| w[0] == 0x88 && w[2..] == [high, low]);
        if let Some(at) = found {
            bytes[at + 2..at + 4].copy_from_slice(&4402u16.to_be_bytes());
        }
    }
}

/// Swaps the first two messages, if `bytes` are two short ones of one frame each, or more.
fn swap_messages(bytes: &mut [u8]) {
    let frame = |at: usize| {
        let &[first, second, ..] = bytes.get(at..)? else { return None };
        let length = match second {
            0..=125 => 2 + usize::from(second),
            126 => 4 + usize::from(u16::from_be_bytes(*bytes.get(at + 2..)?.first_chunk()?)),
            _ => return None,
        };
        let whole = matches!(first, 0x81 | 0x82) && at + length <= bytes.len();
        whole.then_some(length)
    };
    let Some(first) = frame(0) else { return };
    if let Some(second) = frame(first) {
        bytes[..first + second].rotate_left(first);
    }
}

impl Ring for Careless {
    fn now(&self) -> Now {
        self.ring.now()
    }

    fn clock(&self) -> Instant {
        self.ring.clock()
    }

    fn set_endpoint(&mut self, endpoint: u16, address: EndpointAddress) {
        self.ring.set_endpoint(endpoint, address);
    }

    fn submit(&mut self, key: OpKey, op: Op) {
        match op {
            Op::Send { socket, slot, start, end } => {
                return self.send(key, socket, slot, (start, end));
            }
            Op::ReceiveMultishot { socket, group } | Op::ReceiveOnce { socket, group } => {
                if self.starved.take_if(|starved| *starved == key).is_some() {
                    return;
                }
                if self.shows(Bug::ReceivesTwice, 30) {
                    self.ring.submit(key, Op::ReceiveOnce { socket, group });
                }
            }
            Op::Close { socket, .. }
                if self.streams.remove(&socket.0).is_some() && self.shows(Bug::ServerKept, 3) =>
            {
                return;
            }
            Op::Close { .. } if self.shows(Bug::DescriptorKept, 20) => return,
            Op::Close { socket, reset } if self.shows(Bug::ClosedTwice, 20) => {
                self.ring.submit(key, Op::Close { socket, reset });
            }
            Op::Cancel { .. } if self.shows(Bug::CancelForgotten, 10) => return,
            _ => {}
        }
        self.ring.submit(key, op);
    }

    fn enter(&mut self, until: Instant) {
        let until = match self.bug {
            Bug::Oversleeps => until + Duration::from_millis(60),
            Bug::NeverSleeps => self.ring.now().instant,
            _ => until,
        };
        self.ring.enter(until);
    }

    fn completion(&mut self) -> Option<Completion> {
        let mut completion = self.ring.completion()?;
        let key = completion.key;
        match &mut completion.outcome {
            Outcome::Failed(Failure::NoBuffers)
                if key.kind == OpKind::Receive && self.shows(Bug::RearmForgotten, 3) =>
            {
                self.starved = Some(key);
            }
            Outcome::Sent { slot, result: Ok(count) } => {
                if let Some(altered) = self.altered.get(&(slot.group() as usize, slot.id()))
                    && altered.start + *count == altered.end
                {
                    *count = (i64::from(*count) + altered.missing) as u32;
                }
            }
            _ => {}
        }
        Some(completion)
    }

    fn received(&mut self, buffer: &ReceivedBuffer) -> &mut [u8] {
        self.ring.received(buffer)
    }

    fn give_back(&mut self, buffer: ReceivedBuffer) {
        if !self.shows(Bug::BufferKept, 40) {
            self.ring.give_back(buffer);
        }
    }

    fn buffers(&self, group: BufferGroup) -> BufferCount {
        self.ring.buffers(group)
    }

    fn send_slot(&mut self, group: BufferGroup) -> Option<SendSlot> {
        self.ring.send_slot(group)
    }

    fn slot_bytes(&mut self, slot: &SendSlot) -> &mut [u8] {
        self.ring.slot_bytes(slot)
    }

    fn release(&mut self, slot: SendSlot) {
        if !self.shows(Bug::SlotKept, 40) {
            self.ring.release(slot);
        }
    }

    fn shutdown_write(&mut self, socket: Socket) {
        self.ring.shutdown_write(socket);
    }

    fn close_listener(&mut self, listener: u16) {
        self.ring.close_listener(listener);
    }
}
