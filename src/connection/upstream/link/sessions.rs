//! The sessions of a link, and what frames of the backend's do to them.

use super::event::{Event, Redacted};
use super::stall::Stall;
use crate::base::slab::{Key, KeyedSlab};
use crate::base::time::Instant;
use crate::connection::session::Fragment;
use crate::counters::{Counters, Metric};
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::link::{
    Close, Closer, Credit, Expire, Kind, LinkError, PieceOrder, ReceiveWindow, Reject, SendCredit,
    SessionId, UnknownSessionFrames, data_cost, data_flags,
};
use crate::protocol::utf8::Utf8Validator;
use crate::protocol::websocket::DataKind;

/// One client's session on this link. It leaves the slab when both sides have sent CLOSE.
pub(super) struct Session {
    pub(super) client: Key,
    pub(super) credit: SendCredit,
    pub(super) window: ReceiveWindow,
    pub(super) order: PieceOrder,
    /// Bytes of the backend's unfinished message.
    pub(super) message_bytes: u32,
    /// Checks the backend's unfinished text.
    pub(super) text: Utf8Validator,
    /// We have sent AUTH, and no decision has come: nothing but that may pass.
    pub(super) asked: bool,
    /// We have sent CLOSE.
    pub(super) closed: bool,
    /// It is in `waiting`.
    pub(super) waiting: bool,
    /// Its client's input waits, and it is counted in [`Stall`].
    pub(super) stalled: bool,
    /// The number of its OPEN or AUTH, while nothing else was written for it, see
    /// [`LinkOutput::drop_opening`](super::output::LinkOutput::drop_opening).
    pub(super) opening: Option<u64>,
}

impl Session {
    /// Between AUTH and the decision a backend has nothing else to say.
    fn expect_open(&self, kind: Kind) -> Result<(), LinkError> {
        if self.asked { Err(LinkError::WrongState { kind }) } else { Ok(()) }
    }

    /// Whether the backend's text is still UTF-8 with this piece.
    fn takes_text(&mut self, first: bool, last: bool, piece: &[u8]) -> bool {
        if first {
            self.text = Utf8Validator::default();
        }
        self.text.push(piece).is_ok() && (!last || self.text.is_complete())
    }
}

/// The parts of a link that frames of sessions touch: all but the reader, which a frame borrows.
pub(super) struct Table<'t> {
    pub(super) sessions: &'t mut KeyedSlab<Session>,
    pub(super) open_sessions: &'t mut u32,
    pub(super) credit: &'t mut SendCredit,
    pub(super) window: &'t mut ReceiveWindow,
    pub(super) unknown_session_frames: &'t mut UnknownSessionFrames,
    pub(super) stall: &'t mut Stall,
    pub(super) output: &'t mut Vec<u8>,
    pub(super) counters: &'t Counters,
    pub(super) message_max: u32,
}

impl Table<'_> {
    pub(super) fn data<'a>(
        &mut self,
        id: SessionId,
        flags: u8,
        payload: &'a [u8],
    ) -> Result<Event<'a>, LinkError> {
        let cost = data_cost(payload.len());
        self.window.receive(cost)?;
        // The link's window guards the way to the session queues; those have windows of their
        // own, so that a slow client stops its session alone.
        if let Some(bytes) = self.window.consume(cost) {
            Credit { bytes }.encode(SessionId::LINK, self.output);
        }
        let Some(session) = self.sessions.entry_mut(id.into()) else {
            return self.stray();
        };
        session.expect_open(Kind::Data)?;
        session.window.receive(cost)?;
        session.order.accept(flags)?;
        let first = flags & data_flags::FIRST != 0;
        let last = flags & data_flags::FIN != 0;
        let before = if first { 0 } else { session.message_bytes };
        session.message_bytes = before + payload.len() as u32;
        if session.message_bytes > self.message_max {
            return Err(LinkError::MessageTooLarge { limit: self.message_max });
        }
        if session.closed {
            return Ok(Event::Routine);
        }
        let client = session.client;
        let text = flags & data_flags::TEXT != 0;
        if text && !session.takes_text(first, last, payload) {
            return Ok(Event::InvalidText { client });
        }
        let kind = if text { DataKind::Text } else { DataKind::Binary };
        Ok(Event::Data { client, fragment: Fragment { kind, first, last, bytes: payload }, cost })
    }

    pub(super) fn credit<'a>(
        &mut self,
        id: SessionId,
        bytes: u32,
        now: Instant,
    ) -> Result<Event<'a>, LinkError> {
        self.stall.credit(now);
        if id == SessionId::LINK {
            self.credit.grant(bytes)?;
            return Ok(Event::LinkCredit);
        }
        let Some(session) = self.sessions.entry_mut(id.into()) else {
            return self.stray();
        };
        session.expect_open(Kind::Credit)?;
        session.credit.grant(bytes)?;
        self.stall.end(&mut session.stalled);
        if session.closed {
            return Ok(Event::Routine);
        }
        Ok(Event::SessionCredit { client: session.client })
    }

    pub(super) fn expire<'a>(
        &mut self,
        id: SessionId,
        expire: Expire,
    ) -> Result<Event<'a>, LinkError> {
        let Some(session) = self.sessions.entry_mut(id.into()) else {
            return self.stray();
        };
        session.expect_open(Kind::Expire)?;
        if session.closed {
            return Ok(Event::Routine);
        }
        Ok(Event::Expire { client: session.client, expires: expire.expires })
    }

    pub(super) fn close<'a>(
        &mut self,
        id: SessionId,
        close: Close<'a>,
    ) -> Result<Event<'a>, LinkError> {
        let Some(mut session) = self.sessions.remove(id.into()) else {
            return self.stray();
        };
        self.stall.end(&mut session.stalled);
        if session.closed {
            return Ok(Event::Routine);
        }
        self.answer_close(id);
        if session.asked {
            return Ok(Event::Declined { client: session.client });
        }
        Ok(Event::Closed { client: session.client, code: close.code, reason: close.reason })
    }

    /// ACCEPT opens a session that was asked about; a second one is a contradiction.
    pub(super) fn accept<'a>(
        &mut self,
        id: SessionId,
        identity: VerifiedIdentity<'a>,
    ) -> Result<Event<'a>, LinkError> {
        let Some(session) = self.sessions.entry_mut(id.into()) else {
            return self.stray();
        };
        if !session.asked {
            return Err(LinkError::WrongState { kind: Kind::Accept });
        }
        session.asked = false;
        // It may have crossed our CLOSE: the client has left, or the decision came too late.
        if session.closed {
            return Ok(Event::Routine);
        }
        Ok(Event::Accepted { client: session.client, identity: Redacted(identity) })
    }

    /// REJECT is the backend's CLOSE for a session that it was asked about.
    pub(super) fn reject<'a>(
        &mut self,
        id: SessionId,
        reject: Reject<'a>,
    ) -> Result<Event<'a>, LinkError> {
        let Some(session) = self.sessions.entry_mut(id.into()) else {
            return self.stray();
        };
        if !session.asked {
            return Err(LinkError::WrongState { kind: Kind::Reject });
        }
        let (client, closed) = (session.client, session.closed);
        self.sessions.remove(id.into());
        if closed {
            return Ok(Event::Routine);
        }
        self.answer_close(id);
        Ok(Event::Rejected { client, reject })
    }

    /// The backend ended a session: so do we.
    fn answer_close(&mut self, id: SessionId) {
        *self.open_sessions -= 1;
        let answer = Close { by: Closer::Gateway, label: "", code: 0, reason: "" };
        answer.encode(id, self.output);
    }

    /// A frame for a session that is not there. The closing handshake rules that out, so the
    /// backend is wrong; a few are forgiven.
    fn stray<'a>(&mut self) -> Result<Event<'a>, LinkError> {
        self.counters.increment(Metric::LinkStaleFrames);
        self.unknown_session_frames.unknown().map(|()| Event::Routine)
    }
}
