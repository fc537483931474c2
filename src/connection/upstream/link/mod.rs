//! The gateway's end of one link to a backend: handshake, sessions, credit, liveness.
//!
//! Sans-IO: the worker connects, moves bytes and reads the clock. Frames to send gather in
//! [`Link::copy_output`]; frames received come out of [`Link::receive`] one event at a time.

pub mod compose;
mod event;
mod output;
mod receive;
mod sessions;
mod stall;

use std::collections::VecDeque;
use std::time::Duration;

pub use event::{Due, Event, Failure, OpenError, Redacted, Warning};
use output::LinkOutput;
use sessions::Session;
use stall::Stall;

use crate::base::slab::{Key, KeyedSlab};
use crate::base::time::Instant;
use crate::connection::session::{Fragment, SessionRequest};
use crate::protocol::link::{
    self, Close, Credit, GoAway, Hello, PieceOrder, Ping, ReceiveWindow, SendCredit, SessionId,
    UnknownSessionFrames, data_cost, data_flags, encode_data, features,
};
use crate::protocol::utf8::Utf8Validator;
use crate::protocol::websocket::DataKind;
use crate::settings::{Deadlines, Limits};

/// Pings that may go unanswered before a link is given up, while nothing that waits is sent.
const PINGS_UNANSWERED_MAX: u32 = 3;
/// After how many ping intervals a backend that answers no ping is warned of: one after the PING.
const PINGS_BEFORE_WARNING: u32 = 2;
/// A backend must have answered a CLOSE within this many ping intervals.
const CLOSE_ANSWER_PINGS: u32 = 12;
/// How long the backend may take to read a REFUSED and close.
const REFUSAL_LINGER: Duration = Duration::from_millis(500);
/// Closed sessions that a link remembers without allocating.
const CLOSING_KEPT: usize = 64;

/// What does not change over the life of a link entry.
#[derive(Clone, Copy)]
pub struct Identity {
    /// This gateway process.
    pub instance: [u8; 16],
    /// When it started; a later start has a higher one.
    pub epoch: u64,
    /// The worker's number.
    pub worker: u16,
    /// The link's number in the worker.
    pub link: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No connection; one is tried at the instant.
    Down { retry_at: Instant },
    /// Being connected.
    Connecting { deadline: Instant },
    /// HELLO is sent.
    AwaitingChallenge { deadline: Instant },
    /// PROOF is sent.
    AwaitingReady { deadline: Instant },
    /// REFUSED is sent, for the reason in [`Link::refused`]; the backend closes the connection, or
    /// the gateway does at the deadline.
    Refusing { deadline: Instant },
    /// Sessions flow. With `leaving`, no new ones.
    Ready { leaving: bool },
}

/// The state machine of one link.
///
/// Invariant: sessions exist only in `Ready`.
pub struct Link {
    identity: Identity,
    state: State,
    attempts: u32,
    hello: Vec<u8>,
    sessions: KeyedSlab<Session>,
    open_sessions: u32,
    credit: SendCredit,
    window: ReceiveWindow,
    peer: link::Limits,
    ours: link::Limits,
    /// What both sides can do; 0 until the handshake said so.
    features: u64,
    unknown_session_frames: UnknownSessionFrames,
    waiting: Vec<Key>,
    /// Sessions that we have closed and the backend has not, oldest first; some may be gone.
    closing: VecDeque<(Key, Instant)>,
    output: LinkOutput,
    /// `limits.link_output_max`.
    output_max: usize,
    /// The latest time that the link was told.
    clock: Instant,
    /// When the backend last answered a PING, or room for bytes that waited was made.
    proved: Instant,
    pinged: bool,
    /// A PING that is still unanswered was warned of.
    warned: bool,
    stall: Stall,
    /// The backend has proved a key.
    proved_key: bool,
    /// Why the gateway has refused the handshake.
    refused: Option<Failure>,
}

impl Link {
    /// A link that is to be connected at `now`.
    pub fn new(identity: Identity, generation_bits: u32, limits: &Limits, now: Instant) -> Self {
        let ours = our_limits(limits);
        Link {
            identity,
            state: State::Down { retry_at: now },
            attempts: 0,
            hello: Vec::new(),
            sessions: KeyedSlab::new(generation_bits),
            open_sessions: 0,
            credit: SendCredit::new(0),
            window: ReceiveWindow::new(ours.link_window),
            peer: link::Limits::default(),
            ours,
            features: 0,
            unknown_session_frames: UnknownSessionFrames::default(),
            waiting: Vec::new(),
            closing: VecDeque::new(),
            output: LinkOutput::default(),
            output_max: limits.link_output_max as usize,
            clock: now,
            proved: now,
            pinged: false,
            warned: false,
            stall: Stall::default(),
            proved_key: false,
            refused: None,
        }
    }

    /// Whether new sessions may be opened.
    pub fn takes_sessions(&self) -> bool {
        // Those that the backend has not closed yet are still its.
        self.state == State::Ready { leaving: false }
            && self.sessions.len() < self.peer.sessions_max as usize
    }

    /// Whether new sessions may be opened by asking the backend who the client is.
    pub fn takes_questions(&self) -> bool {
        self.takes_sessions() && self.features & features::VERDICTS != 0
    }

    /// Whether the backend has proved in this connection's handshake that it has our key.
    pub fn proved_key(&self) -> bool {
        self.is_ready() && self.proved_key
    }

    /// Whether the handshake is done.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready { .. })
    }

    /// Whether there is no connection and none is being made.
    pub fn is_down(&self) -> bool {
        matches!(self.state, State::Down { .. })
    }

    /// Largest payload that the backend may send once the link is ready.
    pub fn frame_max(&self) -> u32 {
        self.ours.frame_max
    }

    /// Largest message that the backend takes; its limit holds for this link's clients.
    pub fn message_max(&self) -> u32 {
        self.peer.message_max
    }

    /// Number of sessions that neither side has closed.
    pub fn open_sessions(&self) -> u32 {
        self.open_sessions
    }

    /// Bytes that wait to be sent.
    pub fn unsent(&self) -> usize {
        self.output.len()
    }

    /// Bytes of memory that what waits takes.
    pub fn output_memory(&self) -> usize {
        self.output.memory()
    }

    /// Moves output out until `into` is full or nothing waits; returns how many bytes.
    pub fn copy_output(&mut self, into: &mut [u8]) -> usize {
        self.output.copy_out(into)
    }

    /// A send completed. Where more waits, the kernel had no room for it before, so that the
    /// backend has read some: the link lives.
    pub fn send_progressed(&mut self, now: Instant) {
        self.clock = now;
        if !self.output.is_empty() {
            self.proved = now;
        }
    }

    /// Whether sessions wait that may send again, see [`take_waiting`](Self::take_waiting).
    pub fn may_wake(&self) -> bool {
        !self.waiting.is_empty()
            && self.output.len() < self.data_max() / 2
            && self.credit.payload_max().is_some_and(|bytes| bytes > 0)
    }

    /// Bytes that may wait before clients' messages do: half of all, so that there is room for
    /// newcomers while a backend is slow.
    fn data_max(&self) -> usize {
        self.output_max / 2
    }

    /// When [`handle_deadline`](Self::handle_deadline) has work.
    pub fn next_deadline(&self, deadlines: &Deadlines) -> Instant {
        match self.state {
            State::Down { retry_at } => retry_at,
            State::Connecting { deadline }
            | State::AwaitingChallenge { deadline }
            | State::AwaitingReady { deadline }
            | State::Refusing { deadline } => deadline,
            State::Ready { .. } => {
                let pings = match (self.pinged, self.warned) {
                    (false, _) => 1,
                    (true, false) => PINGS_BEFORE_WARNING,
                    (true, true) => PINGS_UNANSWERED_MAX,
                };
                let answer = self.closing.front().map_or(Instant::NEVER, |(_, since)| {
                    *since + deadlines.link_ping * CLOSE_ANSWER_PINGS
                });
                let stall = self.stall.deadline(deadlines.link_stall);
                answer.min(stall).min(self.proved + deadlines.link_ping * pings)
            }
        }
    }

    /// Does what is due.
    pub fn handle_deadline(&mut self, now: Instant, deadlines: &Deadlines) -> Due {
        self.clock = now;
        if now < self.next_deadline(deadlines) {
            return Due::Nothing;
        }
        match self.state {
            State::Down { .. } => {
                self.state = State::Connecting { deadline: now + deadlines.link_connect };
                Due::Connect
            }
            State::Connecting { .. }
            | State::AwaitingChallenge { .. }
            | State::AwaitingReady { .. }
            | State::Refusing { .. } => Due::Fail(Failure::TimedOut),
            State::Ready { .. } => self.handle_ready_deadline(now, deadlines),
        }
    }

    fn handle_ready_deadline(&mut self, now: Instant, deadlines: &Deadlines) -> Due {
        self.forget_answered();
        if let Some((_, since)) = self.closing.front()
            && now >= *since + deadlines.link_ping * CLOSE_ANSWER_PINGS
        {
            return Due::Fail(Failure::CloseUnanswered);
        }
        let passed = |pings: u32| now >= self.proved + deadlines.link_ping * pings;
        if !self.pinged && passed(1) {
            self.pinged = true;
            Ping { opaque: now.as_nanos() }.encode(self.output.frames());
        } else if passed(PINGS_UNANSWERED_MAX) {
            return Due::Fail(Failure::Silent);
        } else if self.pinged && !self.warned && passed(PINGS_BEFORE_WARNING) {
            self.warned = true;
            return Due::Warn(Warning::PingUnanswered);
        }
        let stalled = self.stall.take_due(now, deadlines.link_stall);
        stalled.map_or(Due::Nothing, |sessions| Due::Warn(Warning::NoCredit { sessions }))
    }

    /// The connection stands: says HELLO. `nonce` must be unpredictable.
    pub fn connected(&mut self, nonce: [u8; 32], authenticated: bool, limits: &Limits) {
        let State::Connecting { deadline } = self.state else {
            unreachable!("connected without connecting")
        };
        self.ours = our_limits(limits);
        self.output_max = limits.link_output_max as usize;
        let hello = Hello {
            version_min: link::VERSION,
            version_max: link::VERSION,
            features: features::SUPPORTED,
            instance: self.identity.instance,
            epoch: self.identity.epoch,
            worker: self.identity.worker,
            link: self.identity.link,
            authenticated,
            nonce,
            limits: self.ours,
        };
        self.hello.clear();
        hello.encode_payload(&mut self.hello);
        hello.encode(self.output.frames());
        self.state = State::AwaitingChallenge { deadline };
    }

    /// The connection is gone or given up. Its sessions keep their names, see
    /// [`forget_sessions`](Self::forget_sessions). The next attempt waits for a back-off that doubles with each failure; `jitter` is a random number.
    pub fn lost(&mut self, now: Instant, deadlines: &Deadlines, jitter: u32) {
        let was_ready = self.is_ready();
        self.attempts = if was_ready { 0 } else { self.attempts.saturating_add(1) };
        let doubled = deadlines.link_retry_min.saturating_mul(1 << self.attempts.min(16));
        let wait = doubled.min(deadlines.link_retry_max);
        // Half of the wait is fixed, half is drawn: workers and gateways must not come together.
        let drawn = (wait / 2).mul_f64(f64::from(jitter) / f64::from(u32::MAX));
        self.state = State::Down { retry_at: now + wait / 2 + drawn };
        self.output.clear();
        self.closing = VecDeque::new();
        self.waiting.clear();
        self.unknown_session_frames = UnknownSessionFrames::default();
        self.pinged = false;
        self.warned = false;
        self.proved_key = false;
        self.refused = None;
    }

    /// Why a link fails: a refusal outlasts the end of the connection that follows it.
    pub fn cause_of(&self, failure: &Failure) -> Failure {
        self.refused.as_ref().unwrap_or(failure).clone()
    }

    /// Nothing names the sessions of a lost connection any more. Until then its sessions take
    /// nothing, and no connection may be made: its sessions would get the same names.
    pub fn forget_sessions(&mut self) {
        assert!(self.is_down(), "the backend knows these sessions");
        self.sessions.reset();
        self.stall = Stall::default();
        self.open_sessions = 0;
    }

    /// Opens a session.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&mut self, client: Key, request: &SessionRequest) -> Result<SessionId, OpenError> {
        debug_assert!(self.takes_sessions());
        self.begin(client, request, false)
    }

    /// Opens a session halfway: the backend's decision opens the session or ends it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn ask(&mut self, client: Key, request: &SessionRequest) -> Result<SessionId, OpenError> {
        debug_assert!(self.takes_questions());
        self.begin(client, request, true)
    }

    fn begin(
        &mut self,
        client: Key,
        request: &SessionRequest,
        asked: bool,
    ) -> Result<SessionId, OpenError> {
        if self.output.len() >= self.output_max {
            return Err(OpenError::NotReading);
        }
        let id = SessionId::from(self.sessions.vacant_key());
        let compose = if asked { compose::auth } else { compose::open };
        let frame_max = self.peer.frame_max;
        let opening = self.output.append_opening(|out| compose(request, id, frame_max, out));
        let Some(opening) = opening else { return Err(OpenError::TooLarge) };
        let key = self.sessions.insert(Session {
            client,
            credit: SendCredit::new(self.peer.session_window),
            window: ReceiveWindow::new(self.ours.session_window),
            order: PieceOrder::default(),
            message_bytes: 0,
            text: Utf8Validator::default(),
            asked,
            closed: false,
            waiting: false,
            stalled: false,
            opening: Some(opening),
        });
        assert_eq!(SessionId::from(key), id, "a vacant key is the next one");
        self.open_sessions += 1;
        Ok(id)
    }

    /// How many payload bytes the next DATA frame may have; `None` when not even an empty
    /// frame is allowed. Remembers a session that waits for credit.
    pub fn allowance(&mut self, id: SessionId, now: Instant) -> Option<usize> {
        if self.is_down() {
            return None;
        }
        // However much credit the backend gives, what waits here for it is bounded by us.
        let room = self.data_max().checked_sub(self.output.len()).filter(|bytes| *bytes > 0);
        let session = self.sessions.entry_mut(id.into())?;
        let of_link = self.credit.payload_max().filter(|bytes| *bytes > 0 && room.is_some());
        let Some(of_link) = of_link else {
            self.wait(id, now);
            return None;
        };
        let Some(of_session) = session.credit.payload_max().filter(|bytes| *bytes > 0) else {
            self.stall.begin(&mut session.stalled, now);
            return None;
        };
        Some(of_link.min(of_session).min(self.peer.frame_max as usize))
    }

    /// Remembers a session that needs more than what the link has left.
    pub fn wait(&mut self, id: SessionId, now: Instant) {
        if self.is_down() {
            return;
        }
        if let Some(session) = self.sessions.entry_mut(id.into()) {
            self.stall.begin(&mut session.stalled, now);
            if !std::mem::replace(&mut session.waiting, true) {
                self.waiting.push(id.into());
            }
        }
    }

    /// Sends a piece of a client's message, within the [`allowance`](Self::allowance).
    pub fn data(&mut self, id: SessionId, fragment: &Fragment<'_>) {
        let Fragment { kind, first, last, bytes: piece } = *fragment;
        let Some(session) = self.sessions.entry_mut(id.into()) else {
            unreachable!("DATA for a session that is not open")
        };
        assert!(!session.closed && !session.asked, "DATA before ACCEPT or after CLOSE");
        // What follows its OPEN cannot be taken back with it.
        session.opening = None;
        let cost = data_cost(piece.len());
        session.credit.spend(cost);
        self.credit.spend(cost);
        let mut flags = 0;
        for (set, flag) in [
            (kind == DataKind::Text, data_flags::TEXT),
            (first, data_flags::FIRST),
            (last, data_flags::FIN),
        ] {
            flags |= if set { flag } else { 0 };
        }
        encode_data(id, flags, piece, self.output.frames());
    }

    /// Tells the backend that a client has a fresh token. False when the backend cannot be told
    /// now: it does not read. One that does not speak of such things is not told, and needs not
    /// be.
    pub fn reauthenticated(&mut self, id: SessionId, request: &SessionRequest) -> bool {
        if self.is_down() {
            return false;
        }
        if self.features & features::REAUTHENTICATION == 0 {
            return true;
        }
        if let Some(session) = self.sessions.entry_mut(id.into()) {
            session.opening = None;
        }
        self.output.len() < self.output_max
            && compose::reauth(request, id, self.peer.frame_max, self.output.frames())
    }

    /// Tells the backend that a session is over.
    pub fn close(&mut self, id: SessionId, close: &Close<'_>) {
        let down = self.is_down();
        let Some(session) = self.sessions.entry_mut(id.into()) else { return };
        if session.closed {
            return;
        }
        session.closed = true;
        self.stall.end(&mut session.stalled);
        self.open_sessions -= 1;
        if down {
            return;
        }
        if session.opening.is_some_and(|opening| self.output.drop_opening(opening)) {
            // The backend has never heard of it.
            self.sessions.remove(id.into());
            return;
        }
        close.encode(id, self.output.frames());
        self.closing.push_back((id.into(), self.clock));
        self.forget_answered();
    }

    /// Keeps `closing` within the size of the sessions that it is about.
    fn forget_answered(&mut self) {
        let sessions = &self.sessions;
        let unanswered = |key: Key| sessions.entry(key).is_some_and(|session| session.closed);
        while self.closing.front().is_some_and(|(key, _)| !unanswered(*key)) {
            self.closing.pop_front();
        }
        if self.closing.len() > 2 * sessions.len() + CLOSING_KEPT {
            self.closing.retain(|(key, _)| unanswered(*key));
        }
    }

    /// The client has `cost` bytes of what came for it: credit goes back to the backend.
    pub fn delivered(&mut self, id: SessionId, cost: u32) {
        let down = self.is_down();
        let Some(session) = self.sessions.entry_mut(id.into()) else { return };
        if session.closed || down {
            return;
        }
        if let Some(bytes) = session.window.consume(cost) {
            Credit { bytes }.encode(id, self.output.frames());
        }
    }

    /// The clients whose sessions waited for the link's credit.
    pub fn take_waiting(&mut self, clients: &mut Vec<Key>) {
        for key in self.waiting.drain(..) {
            if let Some(session) = self.sessions.entry_mut(key) {
                session.waiting = false;
                self.stall.end(&mut session.stalled);
                clients.push(session.client);
            }
        }
    }

    /// Tells the backend that the gateway drains.
    pub fn go_away(&mut self, reason: &str) {
        if self.is_ready() {
            GoAway { reason }.encode(self.output.frames());
        }
    }

    /// Whether the backend said that it goes away and has no session left: time to part.
    pub fn has_gone_away(&self) -> bool {
        self.state == State::Ready { leaving: true } && self.sessions.is_empty()
    }
}

/// What the gateway offers a backend, from the settings.
fn our_limits(limits: &Limits) -> link::Limits {
    link::Limits {
        frame_max: link::Limits::default().frame_max,
        message_max: limits.message_max,
        session_window: limits.session_window,
        link_window: limits.link_window,
        sessions_max: link::Limits::default().sessions_max,
    }
}

#[cfg(test)]
mod tests;
