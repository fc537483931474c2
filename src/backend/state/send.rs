//! From the author to the gateway: messages go out as far as credit and room allow.

use std::task::Waker;

use bytes::Bytes;

use super::{Handle, LinkState, Pending, Phase, encode_close};
use crate::backend::message::{MessageRef, SendError};
use crate::protocol::cause::Cause;
use crate::protocol::link::{data_cost, data_flags, encode_data};

/// Control frames that may wait for a gateway that does not read, in bytes.
const CONTROL_QUEUE_MAX: usize = 1024 * 1024;
/// A message is cut for want of credit only if a piece of this many bytes can go.
const PIECE_MIN: usize = 1024;

impl LinkState {
    /// Sends or queues a whole message. With `force` it is queued behind others.
    pub(in crate::backend) fn send(
        &mut self,
        handle: Handle,
        message: MessageRef<'_>,
        force: bool,
    ) -> Result<(), SendError> {
        let (limit, frame_max) = (self.theirs.message_max, self.theirs.frame_max as usize);
        let has_room = self.has_room();
        let (link_credit, now) = (self.send.available(), self.now);
        let bytes = message.bytes();
        let entry = self.entry(handle).ok_or(SendError::Closed)?;
        if entry.phase != Phase::Open || entry.close_after.is_some() {
            return Err(SendError::Closed);
        }
        if bytes.len() > limit as usize {
            return Err(SendError::TooLarge { bytes: bytes.len(), limit });
        }
        if !entry.pending.is_empty() && !force {
            return Err(SendError::Full);
        }
        let text_flag = if message.is_text() { data_flags::TEXT } else { 0 };
        if entry.pending.is_empty() && has_room && bytes.len() <= frame_max {
            let cost = data_cost(bytes.len());
            if cost <= entry.send.available() && cost <= link_credit {
                entry.send.spend(cost);
                let id = entry.id;
                self.send.spend(cost);
                encode_data(id, data_flags::WHOLE | text_flag, bytes, &mut self.out);
                return Ok(());
            }
        }
        let bytes = Bytes::copy_from_slice(bytes);
        if entry.pending.is_empty() {
            entry.sent_at = now;
        }
        entry.pending_bytes += bytes.len();
        entry.pending.push_back(Pending { is_text: message.is_text(), bytes, sent: 0 });
        self.pump(handle.index);
        Ok(())
    }

    /// Bytes of this session's messages that wait for credit.
    pub(in crate::backend) fn pending_bytes(&mut self, handle: Handle) -> usize {
        self.entry(handle).map_or(0, |entry| entry.pending_bytes)
    }

    /// Remembers a task to wake when the session can take a message or has ended.
    pub(in crate::backend) fn await_room(&mut self, handle: Handle, waker: &Waker) {
        let Some(entry) = self.entry(handle) else { return };
        if !entry.writers.iter().any(|known| known.will_wake(waker)) {
            entry.writers.push(waker.clone());
        }
    }

    /// Sends what has come to fit, session after session.
    pub(in crate::backend) fn pump_blocked(&mut self) {
        for _ in 0..self.blocked.len() {
            if !self.has_room() || self.send.payload_max().is_none() {
                return;
            }
            let Some(handle) = self.blocked.pop_front() else { return };
            if let Some(entry) = self.entry(handle) {
                entry.is_blocked = false;
                self.pump(handle.index);
            }
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.out.len() + self.unsent < self.send_queue_max
    }

    /// Sends as much of the session's messages as credit and room allow, then its CLOSE.
    pub(super) fn pump(&mut self, index: usize) {
        let frame_max = self.theirs.frame_max as usize;
        loop {
            let has_room = self.has_room();
            let entry = &mut self.sessions[index];
            if entry.phase != Phase::Open {
                return;
            }
            let Some(pending) = entry.pending.front_mut() else { break };
            let left = pending.bytes.len() - pending.sent;
            let wanted = left.min(PIECE_MIN);
            let by_session = entry.send.payload_max().filter(|most| *most >= wanted);
            let by_link = self.send.payload_max().filter(|most| *most >= wanted && has_room);
            let Some(by_session) = by_session else { return };
            let Some(by_link) = by_link else {
                if !entry.is_blocked {
                    entry.is_blocked = true;
                    self.blocked.push_back(Handle { index, serial: entry.serial });
                }
                return;
            };
            let length = left.min(by_session).min(by_link).min(frame_max);
            let mut flags = if pending.is_text { data_flags::TEXT } else { 0 };
            flags |= if pending.sent == 0 { data_flags::FIRST } else { 0 };
            flags |= if length == left { data_flags::FIN } else { 0 };
            let piece = &pending.bytes[pending.sent..pending.sent + length];
            encode_data(entry.id, flags, piece, &mut self.out);
            let cost = data_cost(length);
            entry.send.spend(cost);
            self.send.spend(cost);
            pending.sent += length;
            entry.sent_at = self.now;
            entry.pending_bytes -= length;
            if length == left {
                entry.pending.pop_front();
            }
        }
        let entry = &mut self.sessions[index];
        entry.writers.drain(..).for_each(Waker::wake);
        if let Some((code, reason)) = entry.close_after.take() {
            encode_close(entry.id, Cause::BackendClosed, code, &reason, &mut self.out);
            self.set_closing(index, code, reason);
        }
        self.return_held(index);
    }

    /// Whether the gateway lets so much pile up that it must be broken.
    pub(in crate::backend) fn is_overfull(&self) -> bool {
        self.out.len() + self.unsent
            > self.send_queue_max + self.theirs.frame_max as usize + CONTROL_QUEUE_MAX
    }
}
