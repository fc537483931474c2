//! From the gateway's DATA frames to the author: assembly, queues, and the credit that goes back.

use std::task::Waker;

use super::{Entry, Handle, LinkState, Phase, Queued};
use crate::backend::message::{Message, MessageRef};
use crate::protocol::cause::Cause;
use crate::protocol::link::{
    Credit, Frame, HEADER_BYTES, Kind, LinkError, SessionId, data_cost, data_flags,
};

/// What a DATA frame brought.
pub(in crate::backend) enum Arrival<'a> {
    /// Nothing to deliver (yet).
    Nothing,
    /// A message in one piece, where it lies.
    Whole(Delivery, MessageRef<'a>),
    /// A message of several pieces.
    Assembled(Delivery, bool, Vec<u8>),
}

/// Whose a message is, and what it cost.
#[derive(Clone, Copy)]
pub(in crate::backend) struct Delivery {
    pub(in crate::backend) handle: Handle,
    owed: u32,
    total: usize,
}

impl LinkState {
    /// Takes a DATA frame.
    pub(in crate::backend) fn data<'a>(
        &mut self,
        frame: &Frame<'a>,
    ) -> Result<Arrival<'a>, LinkError> {
        self.unknown_session_frames.frame();
        let cost = data_cost(frame.payload.len());
        self.receive.receive(cost)?;
        if self.queued <= self.queue_max {
            self.return_link_credit(cost);
        } else {
            self.held += cost;
        }
        let Some(&index) = self.by_id.get(&frame.header.session) else {
            return self.unknown_session_frames.unknown().map(|()| Arrival::Nothing);
        };
        let flags = frame.header.flags;
        let entry = &mut self.sessions[index];
        if entry.phase == Phase::Asked {
            return Err(LinkError::WrongState { kind: Kind::Data });
        }
        entry.receive.receive(cost)?;
        entry.order.accept(flags)?;
        let is_whole = flags & data_flags::WHOLE == data_flags::WHOLE;
        let length = entry.assembly.len() + frame.payload.len();
        if length > self.ours.message_max as usize {
            return Err(LinkError::MessageTooLarge { limit: self.ours.message_max });
        }
        if entry.phase != Phase::Open || entry.close_after.is_some() {
            return Ok(Arrival::Nothing);
        }
        let is_text = flags & data_flags::TEXT != 0;
        let handle = Handle { index, serial: entry.serial };
        if is_whole {
            let total = cost as usize;
            let Some(message) = message_ref(is_text, frame.payload) else {
                self.close_now(index, Cause::InvalidUtf8, 1007);
                return Ok(Arrival::Nothing);
            };
            self.queued += total;
            return Ok(Arrival::Whole(Delivery { handle, owed: cost, total }, message));
        }
        self.assemble(handle, frame, cost)
    }

    fn assemble<'a>(
        &mut self,
        handle: Handle,
        frame: &Frame<'a>,
        cost: u32,
    ) -> Result<Arrival<'a>, LinkError> {
        let flags = frame.header.flags;
        let entry = &mut self.sessions[handle.index];
        if flags & data_flags::FIRST != 0 {
            entry.assembly_since = self.now;
        }
        entry.assembly.extend_from_slice(frame.payload);
        entry.assembly_owed += cost;
        self.unfinished.add(entry.owner, frame.payload.len());
        self.evict_unfinished();
        let entry = &mut self.sessions[handle.index];
        if entry.phase != Phase::Open {
            return Ok(Arrival::Nothing);
        }
        if flags & data_flags::FIN == 0 {
            self.advance_unfinished(handle.index);
            return Ok(Arrival::Nothing);
        }
        let bytes = std::mem::take(&mut entry.assembly);
        let owed = std::mem::take(&mut entry.assembly_owed);
        self.unfinished.remove(entry.owner, bytes.len());
        let is_text = flags & data_flags::TEXT != 0;
        if message_ref(is_text, &bytes).is_none() {
            self.close_now(handle.index, Cause::InvalidUtf8, 1007);
            return Ok(Arrival::Nothing);
        }
        let total = bytes.len() + HEADER_BYTES;
        self.queued += total;
        Ok(Arrival::Assembled(Delivery { handle, owed, total }, is_text, bytes))
    }

    /// Ends the largest unfinished message of the owner that holds most, until all fit again.
    fn evict_unfinished(&mut self) {
        while self.unfinished.is_over() {
            let Some(heaviest) = self.unfinished.heaviest() else { return };
            let held =
                |entry: &Entry| if entry.owner == heaviest { entry.assembly.len() } else { 0 };
            let largest = self.sessions.iter().max_by_key(|(_, entry)| held(entry));
            let Some((index, _)) = largest else { return };
            self.evicted += 1;
            self.close_now(index, Cause::OverCapacity, 1013);
        }
    }

    pub(super) fn drop_unfinished(&mut self, index: usize) {
        let entry = &mut self.sessions[index];
        self.unfinished.remove(entry.owner, entry.assembly.len());
        entry.assembly = Vec::new();
    }

    /// Puts a message into the session's queue, for [`LinkState::poll_next`].
    pub(in crate::backend) fn enqueue(&mut self, delivery: Delivery, message: Message) {
        let entry = &mut self.sessions[delivery.handle.index];
        let Delivery { owed, total, .. } = delivery;
        if entry.queue.is_empty() {
            entry.taken_at = self.now;
        }
        entry.queue.push_back(Queued { message, owed, total });
        if let Some(reader) = entry.reader.take() {
            reader.wake();
        }
    }

    /// A handler is done with a message: its credit goes back, unless replies still wait.
    pub(in crate::backend) fn handled(&mut self, delivery: Delivery) {
        self.release_queued(delivery.total);
        let Some(entry) = self.entry(delivery.handle) else { return };
        entry.held += delivery.owed;
        self.return_held(delivery.handle.index);
    }

    /// The next message for the author: `Some(None)` at the end, `None` when there is none yet.
    pub(in crate::backend) fn poll_next(
        &mut self,
        handle: Handle,
        waker: &Waker,
    ) -> Option<Option<Message>> {
        let now = self.now;
        let Some(entry) = self.entry(handle) else { return Some(None) };
        entry.taken_at = now;
        let Some(queued) = entry.queue.pop_front() else {
            if entry.phase != Phase::Open || entry.close_after.is_some() {
                return Some(None);
            }
            entry.reader = Some(waker.clone());
            return None;
        };
        self.release_queued(queued.total);
        self.return_session_credit(handle.index, queued.owed);
        self.advance_unfinished(handle.index);
        Some(Some(queued.message))
    }

    pub(super) fn discard_unread(&mut self, index: usize) {
        let Some(entry) = self.sessions.get_mut(index) else { return };
        let queue = std::mem::take(&mut entry.queue);
        self.drop_unfinished(index);
        for queued in queue {
            self.release_queued(queued.total);
        }
    }

    fn return_session_credit(&mut self, index: usize, cost: u32) {
        let entry = &mut self.sessions[index];
        if let Some(bytes) = entry.receive.consume(cost) {
            // After this side's CLOSE nothing more is sent for the session.
            if entry.phase == Phase::Open {
                Credit { bytes }.encode(entry.id, &mut self.out);
            }
        }
    }

    fn return_link_credit(&mut self, cost: u32) {
        if let Some(bytes) = self.receive.consume(cost) {
            Credit { bytes }.encode(SessionId::LINK, &mut self.out);
        }
    }

    pub(super) fn return_held(&mut self, index: usize) {
        let entry = &mut self.sessions[index];
        if entry.pending.is_empty() && entry.held > 0 {
            let held = std::mem::take(&mut entry.held);
            self.return_session_credit(index, held);
            self.advance_unfinished(index);
        }
    }

    /// Lets an unfinished message go on when no finished one waits before it.
    fn advance_unfinished(&mut self, index: usize) {
        let entry = &mut self.sessions[index];
        if entry.queue.is_empty() && entry.held == 0 && entry.assembly_owed > 0 {
            let owed = std::mem::take(&mut entry.assembly_owed);
            self.return_session_credit(index, owed);
        }
    }

    fn release_queued(&mut self, total: usize) {
        self.queued -= total;
        if self.queued <= self.queue_max && self.held > 0 {
            let held = std::mem::take(&mut self.held);
            self.return_link_credit(held);
        }
    }
}

/// The message in these bytes; `None` for text that is not UTF-8.
pub(in crate::backend) fn message_ref(is_text: bool, bytes: &[u8]) -> Option<MessageRef<'_>> {
    if is_text {
        simdutf8::basic::from_utf8(bytes).ok().map(MessageRef::Text)
    } else {
        Some(MessageRef::Binary(bytes))
    }
}
