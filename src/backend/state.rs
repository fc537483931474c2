//! One link's sessions, credits and queues: plain calls under one lock, no I/O.

use std::collections::{HashMap, VecDeque};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;
use tokio::task::AbortHandle;

use super::authenticate::{self, Decision};
use super::message::{Ended, EndedBy, Identity, Message, Renewal, TellError};
use super::settings::Settings;
use super::unfinished::{Owner, Unfinished};
use crate::base::time::UnixTime;
use crate::protocol::cause::Cause;
use crate::protocol::link::{
    Close, Closer, Credit, Expire, Frame, GoAway, Kind, Limits, LinkError, PieceOrder, Ping, Pong,
    Reauth, ReceiveWindow, SendCredit, SessionId, UnknownSessionFrames, features,
};
use crate::protocol::revocation::Revocation;

mod receive;
mod send;
mod stalls;

pub(super) use receive::{Arrival, message_ref};

/// Names a session of this link for as long as its entry lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    index: usize,
    serial: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The gateway asked who the client is, and was not answered yet.
    Asked,
    /// Neither side closed.
    Open,
    /// This side sent CLOSE and awaits the gateway's.
    Closing,
    /// Both sent CLOSE, or the link is lost; the gateway may use the id again.
    Ended,
}

/// A message that waits for the author. `owed <= total`: some credit may be back already.
struct Queued {
    message: Message,
    owed: u32,
    total: usize,
}

/// A message that waits for credit. `sent <= bytes.len()`.
struct Pending {
    is_text: bool,
    bytes: Bytes,
    sent: usize,
}

struct Entry {
    id: SessionId,
    serial: u64,
    phase: Phase,
    send: SendCredit,
    receive: ReceiveWindow,
    order: PieceOrder,
    owner: Owner,
    assembly: Vec<u8>,
    /// When the unfinished message began.
    assembly_since: Duration,
    /// Credit of the unfinished message that was not given back yet.
    assembly_owed: u32,
    queue: VecDeque<Queued>,
    /// Credit withheld because replies wait (handlers only).
    held: u32,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    /// When a message of this session was last taken by the author, or found the queue empty.
    taken_at: Duration,
    /// When something of `pending` last went out, or found it empty.
    sent_at: Duration,
    close_after: Option<(u16, String)>,
    is_blocked: bool,
    is_owned: bool,
    ended: Option<Ended>,
    /// What the latest fresh token says, until the author has taken it, and how many there were.
    renewal: Option<Renewal>,
    renewals: u64,
    reader: Option<Waker>,
    writers: Vec<Waker>,
    /// The task that decides, while it does.
    deciding: Option<AbortHandle>,
}

/// How a session's end reaches the author.
pub(super) type Closed = Option<(Handle, SessionId, Ended)>;

pub(super) struct LinkState {
    ours: Limits,
    theirs: Limits,
    /// The features that both sides have.
    features: u64,
    queue_max: usize,
    unfinished_max: Duration,
    send_queue_max: usize,
    by_id: HashMap<SessionId, usize>,
    sessions: Slab<Entry>,
    serial: u64,
    send: SendCredit,
    receive: ReceiveWindow,
    /// Link credit withheld while `queued > queue_max`.
    held: u32,
    /// Bytes of finished messages that wait for the author.
    queued: usize,
    unfinished: Unfinished,
    /// Sessions closed for their part of it since the last tick.
    evicted: u32,
    /// Time since the link's start, as of the last [`LinkState::tick`].
    now: Duration,
    /// Sessions that wait for link credit or room, in turn.
    blocked: VecDeque<Handle>,
    unknown_session_frames: UnknownSessionFrames,
    /// Sessions that were accepted, on their way to the author.
    accepted: VecDeque<(Handle, SessionId, Identity)>,
    /// Encoded frames that the link's task has not taken yet.
    pub(super) out: Vec<u8>,
    /// Bytes that the task has taken and not written.
    pub(super) unsent: usize,
    /// The task knows that `out` has something.
    pub(super) is_awake: bool,
    /// Why the link is to end or has ended.
    pub(super) lost: Option<String>,
    pub(super) is_draining: bool,
}

impl LinkState {
    pub(super) fn new(settings: &Settings, theirs: Limits, features: u64) -> Self {
        let ours = settings.limits;
        LinkState {
            ours,
            theirs,
            features,
            queue_max: settings.queue_max,
            unfinished_max: settings.unfinished_max,
            send_queue_max: settings.send_queue_max,
            by_id: HashMap::new(),
            sessions: Slab::new(),
            serial: 0,
            send: SendCredit::new(theirs.link_window),
            receive: ReceiveWindow::new(ours.link_window),
            held: 0,
            queued: 0,
            unfinished: Unfinished::new(settings.assembly_max),
            evicted: 0,
            now: Duration::ZERO,
            blocked: VecDeque::new(),
            unknown_session_frames: UnknownSessionFrames::default(),
            accepted: VecDeque::new(),
            out: Vec::new(),
            unsent: 0,
            is_awake: false,
            lost: None,
            is_draining: false,
        }
    }

    /// Sessions of which the gateway still knows.
    pub(super) fn live(&self) -> usize {
        self.by_id.len()
    }

    /// Adds a session, or refuses it with a CLOSE (`None`).
    pub(super) fn open(
        &mut self,
        id: SessionId,
        subject: Option<&str>,
        credit: Option<u32>,
    ) -> Result<Option<Handle>, LinkError> {
        self.add(id, subject, credit, Kind::Open)
    }

    /// Adds a session of which the author must say who it is, or refuses it (`None`).
    pub(super) fn ask(
        &mut self,
        id: SessionId,
        credit: Option<u32>,
    ) -> Result<Option<Handle>, LinkError> {
        let handle = self.add(id, None, credit, Kind::Auth)?;
        if let Some(handle) = handle {
            let entry = &mut self.sessions[handle.index];
            entry.phase = Phase::Asked;
            entry.is_owned = false;
        }
        Ok(handle)
    }

    /// The task that decides; it is aborted when no client waits for it any more.
    pub(super) fn deciding(&mut self, handle: Handle, task: AbortHandle) {
        match self.entry(handle).filter(|entry| entry.phase == Phase::Asked) {
            Some(entry) => entry.deciding = Some(task),
            None => task.abort(),
        }
    }

    /// The author decided; with `request`, what the client had asked for.
    pub(super) fn decided(
        &mut self,
        handle: Handle,
        decision: Decision,
        request: Option<Identity>,
    ) {
        let Some(entry) = self.entry(handle).filter(|entry| entry.phase == Phase::Asked) else {
            return;
        };
        entry.deciding = None;
        let id = entry.id;
        if !authenticate::encode(&decision, id, &mut self.out) {
            // REJECT is this side's CLOSE; the gateway's ends the session.
            self.sessions[handle.index].phase = Phase::Closing;
            return;
        }
        let entry = &mut self.sessions[handle.index];
        entry.phase = Phase::Open;
        entry.is_owned = true;
        if let Decision::Accept(accepted) = &decision {
            entry.owner = self.unfinished.owner(Some(&accepted.subject), entry.serial);
        }
        if let (Decision::Accept(accepted), Some(request)) = (decision, request) {
            let identity = Identity {
                subject: Some(accepted.subject),
                token_id: accepted.token_id,
                expires: accepted.expires,
                claims: accepted.claims,
                ..request
            };
            self.accepted.push_back((handle, id, identity));
        }
    }

    /// The next session that was accepted and that the author has not seen.
    pub(super) fn next_accepted(&mut self) -> Option<(Handle, SessionId, Identity)> {
        self.accepted.pop_front()
    }

    /// Whether the link's task has something to do.
    pub(super) fn has_work(&self) -> bool {
        !self.out.is_empty() || !self.accepted.is_empty() || self.lost.is_some()
    }

    fn add(
        &mut self,
        id: SessionId,
        subject: Option<&str>,
        credit: Option<u32>,
        kind: Kind,
    ) -> Result<Option<Handle>, LinkError> {
        if self.by_id.contains_key(&id) {
            return Err(LinkError::WrongState { kind });
        }
        let is_full = self.sessions.len() >= self.ours.sessions_max as usize;
        self.serial += 1;
        let mut entry = Entry {
            id,
            serial: self.serial,
            phase: Phase::Open,
            send: SendCredit::new(credit.unwrap_or(self.theirs.session_window)),
            receive: ReceiveWindow::new(self.ours.session_window),
            order: PieceOrder::default(),
            owner: self.unfinished.owner(subject, self.serial),
            assembly: Vec::new(),
            assembly_since: self.now,
            assembly_owed: 0,
            queue: VecDeque::new(),
            held: 0,
            pending: VecDeque::new(),
            pending_bytes: 0,
            taken_at: self.now,
            sent_at: self.now,
            close_after: None,
            is_blocked: false,
            is_owned: true,
            ended: None,
            renewal: None,
            renewals: 0,
            reader: None,
            writers: Vec::new(),
            deciding: None,
        };
        if !is_full && !self.is_draining {
            let index = self.sessions.insert(entry);
            self.by_id.insert(id, index);
            return Ok(Some(Handle { index, serial: self.serial }));
        }
        // A refused session stays known until the gateway's CLOSE. A gateway that opens far
        // more than it was allowed to loses the link.
        if self.sessions.len() >= (self.ours.sessions_max as usize).saturating_mul(2) {
            return Err(LinkError::WrongState { kind });
        }
        let (cause, code) =
            if is_full { (Cause::OverCapacity, 1013) } else { (Cause::GoingAway, 1012) };
        entry.is_owned = false;
        entry.phase = Phase::Closing;
        encode_close(id, cause, code, "", &mut self.out);
        let index = self.sessions.insert(entry);
        self.by_id.insert(id, index);
        Ok(None)
    }

    /// Closes from this side, after the messages that wait. Later calls change nothing.
    pub(super) fn close(&mut self, handle: Handle, code: u16, reason: &str) {
        let Some(entry) = self.entry(handle) else { return };
        if entry.phase == Phase::Open && entry.close_after.is_none() {
            entry.close_after = Some((code, reason.to_owned()));
            self.discard_unread(handle.index);
            self.pump(handle.index);
        }
    }

    /// The author dropped the session: close it, and forget it when the gateway has, too.
    pub(super) fn disown(&mut self, handle: Handle, code: u16) {
        self.close(handle, code, "");
        self.discard_unread(handle.index);
        if let Some(entry) = self.entry(handle) {
            entry.is_owned = false;
            self.forget_if_over(handle.index);
        }
    }

    /// How the session ended, once it has.
    pub(super) fn ended(&self, handle: Handle) -> Option<Ended> {
        let entry = self.sessions.get(handle.index).filter(|e| e.serial == handle.serial)?;
        entry.ended.clone()
    }

    /// Takes any frame that is neither OPEN nor DATA.
    pub(super) fn control(&mut self, frame: &Frame<'_>) -> Result<Closed, LinkError> {
        self.unknown_session_frames.frame();
        let id = frame.header.session;
        match frame.header.kind {
            Kind::Credit if id == SessionId::LINK => {
                self.send.grant(Credit::decode(frame.payload)?.bytes)?;
                self.pump_blocked();
            }
            Kind::Credit => {
                let credit = Credit::decode(frame.payload)?;
                let Some(&index) = self.by_id.get(&id) else {
                    return self.unknown_session_frames.unknown().map(|()| None);
                };
                if self.sessions[index].phase == Phase::Asked {
                    return Err(LinkError::WrongState { kind: Kind::Credit });
                }
                self.sessions[index].send.grant(credit.bytes)?;
                self.pump(index);
            }
            Kind::Close => {
                let close = Close::decode(frame.payload)?;
                let Some(&index) = self.by_id.get(&id) else {
                    return self.unknown_session_frames.unknown().map(|()| None);
                };
                return Ok(self.closed_by_gateway(index, &close));
            }
            Kind::Ping => {
                let Ping { opaque } = Ping::decode(frame.payload)?;
                Pong { opaque }.encode(&mut self.out);
            }
            Kind::Pong => {
                Pong::decode(frame.payload)?;
            }
            Kind::GoAway => {
                GoAway::decode(frame.payload)?;
            }
            kind => return Err(LinkError::Unexpected { kind }),
        }
        Ok(None)
    }

    /// Takes a REAUTH frame; answers whose it is unless the session has ended.
    pub(super) fn reauth(
        &mut self,
        frame: &Frame<'_>,
    ) -> Result<Option<(Handle, Renewal)>, LinkError> {
        if self.features & features::REAUTHENTICATION == 0 {
            return Err(LinkError::Unexpected { kind: Kind::Reauth });
        }
        let renewal = Renewal::from_reauth(&Reauth::decode(frame.payload)?);
        let Some(&index) = self.by_id.get(&frame.header.session) else {
            return self.unknown_session_frames.unknown().map(|()| None);
        };
        let entry = &mut self.sessions[index];
        if entry.phase != Phase::Open {
            return Ok(None);
        }
        entry.renewal = Some(renewal.clone());
        entry.renewals += 1;
        Ok(Some((Handle { index, serial: entry.serial }, renewal)))
    }

    /// What the latest fresh token says, once, and the how manieth it is.
    pub(super) fn take_renewal(&mut self, handle: Handle) -> Option<(u64, Renewal)> {
        let entry = self.entry(handle)?;
        entry.renewal.take().map(|renewal| (entry.renewals, renewal))
    }

    /// Sets when a session's identity is over.
    pub(super) fn expire(&mut self, handle: Handle, expires: UnixTime) -> Result<(), TellError> {
        self.may_tell()?;
        let entry = self.entry(handle).ok_or(TellError::Closed)?;
        if entry.phase != Phase::Open {
            return Err(TellError::Closed);
        }
        let id = entry.id;
        Expire { expires }.encode(id, &mut self.out);
        Ok(())
    }

    /// Voids tokens.
    pub(super) fn revoke(&mut self, revocation: &Revocation) -> Result<(), TellError> {
        self.may_tell()?;
        revocation.encode(&mut self.out);
        Ok(())
    }

    fn may_tell(&self) -> Result<(), TellError> {
        if self.lost.is_some() {
            Err(TellError::Closed)
        } else if self.features & features::REAUTHENTICATION == 0 {
            Err(TellError::Unsupported)
        } else if !self.has_room() {
            Err(TellError::Full)
        } else {
            Ok(())
        }
    }

    /// The link is gone: every session ends. Answers those that a handler must hear of.
    pub(super) fn lose(&mut self, reason: &str) -> Vec<(Handle, SessionId, Ended)> {
        self.lost = Some(reason.to_owned());
        while let Some((handle, ..)) = self.accepted.pop_front() {
            self.unseen(handle);
        }
        let live: Vec<usize> = self.by_id.drain().map(|(_, index)| index).collect();
        let mut told = Vec::new();
        for index in live {
            let entry = &mut self.sessions[index];
            let ended = entry.ended.clone().unwrap_or_else(|| Ended::link_lost(reason));
            if entry.is_owned {
                told.push((Handle { index, serial: entry.serial }, entry.id, ended.clone()));
            }
            self.end(index, ended);
        }
        told
    }

    /// Closes every session that is open.
    pub(super) fn close_all(&mut self, code: u16, reason: &str) {
        let live: Vec<usize> = self.by_id.values().copied().collect();
        for index in live {
            let handle = Handle { index, serial: self.sessions[index].serial };
            self.decided(handle, Decision::reject(Cause::BackendUnavailable).into(), None);
            self.close(handle, code, reason);
        }
    }

    fn entry(&mut self, handle: Handle) -> Option<&mut Entry> {
        self.sessions.get_mut(handle.index).filter(|entry| entry.serial == handle.serial)
    }

    /// The author will never see this session, and so has nothing to give up.
    fn unseen(&mut self, handle: Handle) {
        if let Some(entry) = self.entry(handle) {
            entry.is_owned = false;
        }
    }

    fn set_closing(&mut self, index: usize, code: u16, reason: String) {
        let entry = &mut self.sessions[index];
        entry.phase = Phase::Closing;
        let cause = Cause::BackendClosed.label().to_owned();
        entry.ended = Some(Ended { by: EndedBy::Backend, cause, code, reason });
        entry.reader.take().into_iter().for_each(Waker::wake);
        entry.writers.drain(..).for_each(Waker::wake);
    }

    /// Closes immediately: what waits for the client is dropped with the session.
    fn close_now(&mut self, index: usize, cause: Cause, code: u16) {
        let entry = &mut self.sessions[index];
        if entry.phase != Phase::Open {
            return;
        }
        entry.pending.clear();
        entry.pending_bytes = 0;
        encode_close(entry.id, cause, code, "", &mut self.out);
        self.drop_unfinished(index);
        self.set_closing(index, code, String::new());
        if let Some(ended) = &mut self.sessions[index].ended {
            ended.cause = cause.label().to_owned();
        }
    }

    /// Closes a session whose replies pile up beyond reason.
    pub(super) fn close_overrun(&mut self, handle: Handle) {
        if self.entry(handle).is_some() {
            self.close_now(handle.index, Cause::SlowConsumer, 1013);
        }
    }

    fn closed_by_gateway(&mut self, index: usize, close: &Close<'_>) -> Closed {
        let handle = Handle { index, serial: self.sessions[index].serial };
        if let Some(at) = self.accepted.iter().position(|(waiting, ..)| *waiting == handle) {
            self.accepted.remove(at);
            self.unseen(handle);
        }
        let entry = &mut self.sessions[index];
        let id = entry.id;
        if matches!(entry.phase, Phase::Open | Phase::Asked) {
            encode_close(id, Cause::BackendClosed, close.code, "", &mut self.out);
        }
        let ended = entry.ended.clone().unwrap_or_else(|| Ended::from_close(close));
        let told = entry.is_owned.then_some((Handle { index, serial: entry.serial }, id));
        self.by_id.remove(&id);
        self.end(index, ended.clone());
        told.map(|(handle, id)| (handle, id, ended))
    }

    fn end(&mut self, index: usize, ended: Ended) {
        let entry = &mut self.sessions[index];
        if let Some(task) = entry.deciding.take() {
            task.abort();
        }
        entry.phase = Phase::Ended;
        entry.ended = Some(ended);
        entry.pending.clear();
        entry.pending_bytes = 0;
        entry.reader.take().into_iter().for_each(Waker::wake);
        entry.writers.drain(..).for_each(Waker::wake);
        self.drop_unfinished(index);
        self.forget_if_over(index);
    }

    fn forget_if_over(&mut self, index: usize) {
        let entry = &self.sessions[index];
        if entry.phase == Phase::Ended && !entry.is_owned {
            self.discard_unread(index);
            self.sessions.remove(index);
        }
    }
}

fn encode_close(id: SessionId, cause: Cause, code: u16, reason: &str, out: &mut Vec<u8>) {
    Close { by: Closer::Backend, label: cause.label(), code, reason }.encode(id, out);
}
