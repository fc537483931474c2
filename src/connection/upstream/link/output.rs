//! What waits to be sent on one link: bounded, given back when it is drained, and without what
//! belongs to clients that have left.

use std::collections::VecDeque;

/// Memory that an empty output keeps, so that a busy link allocates nothing.
const KEPT_BYTES: usize = 1 << 20;
/// Bytes of dropped frames that are not worth moving the rest for.
const DROPPED_MAX: usize = 64 * 1024;

/// A link's output.
///
/// Invariants: `sent <= bytes.len()`; `openings` are in the order of the stream, none of them
/// wholly sent; one that is partly sent is not dropped; `dropped` is the sum of the bytes of
/// dropped openings.
#[derive(Default)]
pub(super) struct LinkOutput {
    bytes: Vec<u8>,
    /// How much of `bytes` is with the ring.
    sent: usize,
    /// Position in the stream of `bytes[0]`.
    base: u64,
    openings: VecDeque<Opening>,
    /// Openings so far.
    opened: u64,
    dropped: usize,
    /// Position in the stream of the last PONG.
    pong: Option<u64>,
}

/// An OPEN or AUTH that may still be taken back.
struct Opening {
    number: u64,
    at: u64,
    bytes: usize,
    dropped: bool,
}

impl LinkOutput {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.sent - self.dropped
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that it takes.
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    /// Where frames are appended.
    pub(super) fn frames(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Appends an OPEN or AUTH and returns its number, or appends nothing: `write` says whether
    /// it has written one.
    pub(super) fn append_opening(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> bool,
    ) -> Option<u64> {
        let start = self.bytes.len();
        if !write(&mut self.bytes) {
            return None;
        }
        let number = self.opened;
        self.opened += 1;
        let (at, bytes) = (self.base + start as u64, self.bytes.len() - start);
        self.openings.push_back(Opening { number, at, bytes, dropped: false });
        Some(number)
    }

    /// Takes an opening back; false when the peer may have seen some of it.
    pub(super) fn drop_opening(&mut self, number: u64) -> bool {
        let sent = self.base + self.sent as u64;
        let Ok(index) = self.openings.binary_search_by_key(&number, |opening| opening.number)
        else {
            return false;
        };
        let opening = &mut self.openings[index];
        if opening.at < sent {
            return false;
        }
        opening.dropped = true;
        self.dropped += opening.bytes;
        if self.dropped > DROPPED_MAX.max(self.len() / 2) {
            self.compact();
        }
        true
    }

    /// Appends a PONG, or, while one waits, lets that answer the later PING: a peer that sends
    /// PINGs and reads nothing costs the memory of one answer. `write` appends the frame.
    pub(super) fn append_pong(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        write(&mut self.bytes);
        match self.pong {
            Some(at) if at >= self.base + self.sent as u64 => {
                let waiting = (at - self.base) as usize;
                self.bytes.copy_within(start.., waiting);
                self.bytes.truncate(start);
            }
            _ => self.pong = Some(self.base + start as u64),
        }
    }

    /// Moves bytes out until `into` is full or nothing waits; returns how many.
    pub(super) fn copy_out(&mut self, into: &mut [u8]) -> usize {
        let mut copied = 0;
        while copied < into.len() && self.sent < self.bytes.len() {
            let end = match self.openings.front() {
                None => self.bytes.len(),
                Some(opening) => {
                    let start = (opening.at as i64 - self.base as i64).max(0) as usize;
                    let end = (opening.at + opening.bytes as u64 - self.base) as usize;
                    if self.sent >= end {
                        self.openings.pop_front();
                        continue;
                    }
                    if opening.dropped && self.sent == start {
                        self.sent = end;
                        self.dropped -= opening.bytes;
                        self.openings.pop_front();
                        continue;
                    }
                    if self.sent < start { start } else { end }
                }
            };
            let count = (end - self.sent).min(into.len() - copied);
            into[copied..copied + count].copy_from_slice(&self.bytes[self.sent..self.sent + count]);
            self.sent += count;
            copied += count;
        }
        self.forget_sent();
        copied
    }

    /// Forgets everything, and the memory.
    pub(super) fn clear(&mut self) {
        *self = LinkOutput::default();
    }

    fn forget_sent(&mut self) {
        if self.is_empty() {
            self.openings.clear();
            self.dropped = 0;
            self.base += self.bytes.len() as u64;
            self.bytes.clear();
            if self.bytes.capacity() > KEPT_BYTES {
                self.bytes = Vec::new();
                self.openings = VecDeque::new();
            }
        } else if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.base += self.sent as u64;
        } else {
            return;
        }
        self.sent = 0;
    }

    /// Closes the gaps that dropped openings leave.
    fn compact(&mut self) {
        let (mut read, mut write) = (self.sent, self.sent);
        let mut removed = 0;
        for opening in &mut self.openings {
            if opening.dropped {
                let at = (opening.at - self.base) as usize;
                self.bytes.copy_within(read..at, write);
                write += at - read;
                read = at + opening.bytes;
                removed += opening.bytes as u64;
            } else {
                opening.at -= removed;
            }
        }
        let left = self.bytes.len() - read;
        self.bytes.copy_within(read.., write);
        self.bytes.truncate(write + left);
        self.bytes.shrink_to(KEPT_BYTES);
        self.openings.retain(|opening| !opening.dropped);
        self.dropped = 0;
        // Where it lies now is not worth knowing: the next PONG is a frame of its own.
        self.pong = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Action {
        Frame(u8),
        Open(u8),
        Drop(usize),
        Pong,
        Send(usize),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            any::<u8>().prop_map(Action::Frame),
            any::<u8>().prop_map(Action::Open),
            (0..30usize).prop_map(Action::Drop),
            Just(Action::Pong),
            (0..600usize).prop_map(Action::Send),
        ]
    }

    /// A frame: kind, length, then bytes of its number.
    fn frame(kind: u8, length: u8, number: usize) -> Vec<u8> {
        let mut frame = vec![kind, length];
        frame.resize(2 + usize::from(length), number as u8);
        frame
    }

    proptest! {
        /// What arrives are all frames in order, but those openings that were taken back.
        #[test]
        fn nothing_is_lost_but_what_was_dropped(actions in prop::collection::vec(action(), 1..200)) {
            let mut output = LinkOutput::default();
            let mut expected: Vec<(Vec<u8>, Option<u64>)> = Vec::new();
            let mut arrived = Vec::new();
            let mut send = |output: &mut LinkOutput, most| {
                let mut slot = vec![0; most];
                let count = output.copy_out(&mut slot);
                arrived.extend_from_slice(&slot[..count]);
            };
            for (number, action) in actions.iter().enumerate() {
                match *action {
                    Action::Frame(length) => {
                        let frame = frame(1, length, number);
                        output.frames().extend_from_slice(&frame);
                        expected.push((frame, None));
                    }
                    Action::Open(length) => {
                        let frame = frame(2, length, number);
                        let opening = output.append_opening(|out| {
                            out.extend_from_slice(&frame);
                            true
                        });
                        expected.push((frame, opening));
                    }
                    Action::Drop(back) => {
                        let openings = expected.iter().filter_map(|(_, opening)| *opening);
                        if let Some(number) = openings.rev().nth(back)
                            && output.drop_opening(number)
                        {
                            expected.retain(|(_, opening)| *opening != Some(number));
                        }
                    }
                    Action::Pong => output.append_pong(|out| out.extend_from_slice(&[3, 0])),
                    Action::Send(most) => send(&mut output, most),
                }
            }
            while !output.is_empty() {
                send(&mut output, 97);
            }
            let mut rest = arrived.as_slice();
            let mut frames = Vec::new();
            while let [kind, length, ..] = *rest {
                let (frame, after) = rest.split_at(2 + usize::from(length));
                if kind != 3 {
                    frames.push(frame.to_vec());
                }
                rest = after;
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(frames, expected.into_iter().map(|(frame, _)| frame).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_burst_of_pings_costs_one_answer_and_memory_goes_back() {
        let mut output = LinkOutput::default();
        for number in 0..1_000_000u32 {
            output.append_pong(|out| out.extend_from_slice(&number.to_be_bytes()));
        }
        assert_eq!(output.len(), 4);
        let mut slot = [0; 8];
        assert_eq!(output.copy_out(&mut slot), 4);
        assert_eq!(slot[..4], 999_999u32.to_be_bytes(), "the latest is answered");
        output.frames().resize(8 << 20, 0);
        while output.copy_out(&mut [0; 4096]) > 0 {}
        assert!(output.memory() <= KEPT_BYTES);
    }

    #[test]
    fn openings_that_are_taken_back_take_no_memory() {
        let mut output = LinkOutput::default();
        for _ in 0..10_000 {
            let opening = output.append_opening(|out| {
                out.extend_from_slice(&[0; 8000]);
                true
            });
            assert!(output.drop_opening(opening.expect("written")));
        }
        assert_eq!(output.len(), 0);
        assert!(output.memory() <= KEPT_BYTES);
    }
}
