//! Whether the worker keeps its deadlines, to the tick of its wheel.
//!
//! A [`Watch`] sees what crosses the ring seam, in plaintext, and keeps its own small model of
//! each client connection: no more than design and RFC 6455 say of it, and nothing of the
//! worker's. At each `enter` it knows what must have begun by now, and until when the worker
//! may sleep. No lateness is excused: a worker that woke late has had its turn since.
//!
//! One thing cannot be seen from here: an answer that is queued behind a send in flight, or that
//! found no send slot. Then the model takes it as given at the latest possible time.

use std::collections::BTreeMap;
use std::time::Duration;

use super::scenario::PACED;
use crate::protocol::cause::Cause;
use crate::ring::{BufferGroup, Completion, Failure, Op, OpKey, OpKind, Outcome, Owner, Socket};
use crate::settings::Deadlines;
use crate::worker::WHEEL_TICK;

/// What a drain leaves for goodbyes after its window.
const DRAIN_REST: Duration = Duration::from_secs(2);
/// What a refused client gets beyond all stages together.
const REFUSED_GRACE: Duration = Duration::from_millis(100);
const CLOSING_LINGER: &str = "closing linger";
const NEVER: u64 = u64::MAX;

/// What the world knows of a connection that was just accepted.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The client's index.
    pub client: usize,
    /// Its token is good, or will be.
    pub is_valid: bool,
    /// Its token comes in the first message.
    pub first_message: bool,
    /// Bytes in front of its request: a PROXY header.
    pub proxy_bytes: usize,
    /// What follows is ciphertext: only silence can be judged.
    pub is_tls: bool,
    /// How long its close frame may have to wait at least, if it is refused.
    pub pace: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing was heard of the handshake yet.
    SilentTls,
    /// Nothing can be told of what goes on; the ends of both sides check it.
    Opaque,
    Head,
    Authenticating,
    /// A backend decides who the client is; the time of its answer cannot be seen.
    Asking,
    Open,
    Refused,
    Closing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    /// A receive is being cancelled: for the end, for a pause, or to wait without a buffer. An
    /// end that begins meanwhile asks for nothing more, so it cannot be seen.
    Perhaps,
    /// A send is being cancelled, which only an end does.
    Sure,
}

/// One connection. Times are in nanoseconds; where the true one is not known, the latest.
#[derive(Debug)]
struct Watched {
    facts: Facts,
    owner: Option<Owner>,
    stage: Stage,
    since: u64,
    /// How long a backend's auth decision may take.
    decision: Option<Duration>,
    /// When the upgrade was answered.
    upgraded: u64,
    accepted: u64,
    received: u64,
    pinged: bool,
    /// A close frame, or an answer over HTTP, was sent to it.
    told: bool,
    /// It was told a cause for which the close frame waits.
    paced: bool,
    expires: u64,
    lifetime_ends: u64,
    progressed: u64,
    sending: Option<(u32, u32)>,
    receiving: bool,
    /// The receive in flight was cancelled.
    receive_cancelled: bool,
    /// Input may wait for credit, and be heard later.
    paused: bool,
    cancels: u32,
    ending: Ending,
    head: Vec<u8>,
    skip: usize,
    input: Scanner,
    output: Output,
}

/// What the worker must keep, and how often it was held to it.
#[derive(Debug, Default)]
pub struct Watch {
    deadlines: Option<Deadlines>,
    watched: BTreeMap<u32, Watched>,
    /// By the place of the owner in its table: of all that had it, only the latest counts.
    sockets: BTreeMap<(bool, u32), u32>,
    /// No send slot was free in this turn.
    denied: bool,
    drain_ends: Option<u64>,
    /// How long a backend's auth decision may take.
    decision: Option<Duration>,
    /// When the worker was last told other deadlines.
    changed: u64,
    /// Those that held before, and the turn in which the worker has come by all connections with
    /// what followed them: until then either may hold for a connection.
    before: Vec<(Deadlines, u64)>,
    /// The worker's turns.
    turns: u64,
    /// In how many turns the worker comes by all connections.
    sweep_turns: u64,
    /// The turn in which the worker has come by all connections after the drain's window, and
    /// after its rest.
    drained: [Option<u64>; 2],
    /// A close frame that did not wait for as long as it should.
    hasty: Option<String>,
    /// Deadlines that were due and kept.
    pub kept: u64,
}

impl Watch {
    /// A watch over connections that are held to these deadlines.
    pub fn new(deadlines: Deadlines) -> Self {
        Watch { deadlines: Some(deadlines), ..Watch::default() }
    }

    /// A backend decides about every client, within this time.
    pub fn set_verdict(&mut self, timeout: Duration) {
        self.decision = Some(timeout);
    }

    /// The worker is gone, and its connections with it.
    pub fn worker_died(&mut self) {
        self.watched.clear();
        self.sockets.clear();
        self.denied = false;
    }

    /// In how many turns the worker comes by all connections.
    pub fn set_sweep_turns(&mut self, turns: u64) {
        self.sweep_turns = turns;
    }

    /// The worker was told other deadlines. It must know them from its next turn on, or once a
    /// sweep for the reload before has ended; and timers that are there follow with its sweep.
    pub fn set_deadlines(&mut self, deadlines: Deadlines, now: u64) {
        let until = self.turns + 2 * self.sweep_turns + 1;
        self.before.extend(self.deadlines.replace(deadlines).map(|before| (before, until)));
        self.changed = now;
    }

    /// The worker was told to close everything within `window` nanoseconds.
    pub fn drain(&mut self, now: u64, window: u64) {
        self.drain_ends = Some(now + window);
    }

    /// The worker found no free send slot.
    pub fn slot_denied(&mut self, group: BufferGroup) {
        self.denied |= group == BufferGroup::Client;
    }

    /// The worker got a client's connection.
    pub fn accepted(&mut self, socket: Socket, facts: Facts, now: u64) {
        let Some(deadlines) = &self.deadlines else { return };
        let lifetime = deadlines.lifetime.map_or(NEVER, |lifetime| now + nanos(lifetime));
        let watched = Watched {
            facts,
            owner: None,
            stage: if facts.is_tls { Stage::SilentTls } else { Stage::Head },
            since: now,
            decision: self.decision,
            upgraded: now,
            accepted: now,
            received: now,
            pinged: false,
            told: false,
            paced: false,
            expires: NEVER,
            lifetime_ends: lifetime,
            progressed: now,
            sending: None,
            receiving: false,
            receive_cancelled: false,
            paused: false,
            cancels: 0,
            ending: Ending::No,
            head: Vec::new(),
            skip: facts.proxy_bytes,
            input: Scanner::default(),
            output: Output::default(),
        };
        self.watched.insert(socket.0, watched);
    }

    /// The worker asks for something. `bytes` is what a send is to send.
    pub fn submitted(&mut self, key: OpKey, op: &Op, bytes: &[u8], now: u64) {
        if let Op::Cancel { target } = op {
            return self.cancelled(key, *target, now);
        }
        let socket = match op {
            Op::ReceiveMultishot { socket, .. } | Op::ReceiveOnce { socket, .. } => socket.0,
            Op::PollReadable { socket } | Op::PollHangup { socket } => socket.0,
            Op::Send { socket, .. } => socket.0,
            Op::Close { socket, .. } => {
                self.count_kept(socket.0, now);
                if let Some(watched) = self.watched.remove(&socket.0) {
                    self.forget_owner(&watched, socket.0);
                }
                return;
            }
            _ => return,
        };
        if matches!(op, Op::Send { start: 0, .. }) {
            self.count_kept(socket, now);
        }
        let Some(watched) = self.watched.get_mut(&socket) else { return };
        if watched.owner.is_none() {
            watched.owner = Some(key.owner);
            self.sockets.insert(place(key.owner), socket);
        }
        watched.ending = match op {
            Op::Send { .. } if watched.receive_cancelled => Ending::Perhaps,
            _ => Ending::No,
        };
        match op {
            Op::Send { start, end, .. } => {
                watched.sending = Some((*start, *end));
                // The rest of a short send has been seen already.
                if *start == 0 {
                    watched.progressed = now;
                    // A drain ends every pace; a reload may have come after it was set.
                    let paces = self.drain_ends.is_none() && self.changed < watched.since;
                    let earliest = match &self.deadlines {
                        Some(deadlines) if paces => watched.pace_end(watched.facts.pace, deadlines),
                        _ => 0,
                    };
                    if watched.answered(bytes, now) && now < earliest {
                        self.hasty = Some(format!(
                            "closed too soon: socket {socket}, at {} us, not before {}: {}",
                            now / 1000,
                            earliest / 1000,
                            watched.state()
                        ));
                    }
                }
            }
            _ => {
                if std::mem::take(&mut watched.paused) {
                    watched.received = now;
                }
                watched.receiving = true;
                // What the client sends is read again once there is a decision.
                let reads = !matches!(op, Op::PollHangup { .. });
                if watched.stage == Stage::Asking && reads {
                    // When its token runs out depends on the wall clock at the decision.
                    match watched.facts.is_valid {
                        true => watched.open(None, now),
                        false => watched.enter(Stage::Refused, now),
                    }
                }
            }
        }
    }

    /// Something was due, and this may be what was.
    fn count_kept(&mut self, socket: u32, now: u64) {
        let Some(deadlines) = &self.deadlines else { return };
        let Some(watched) = self.watched.get(&socket) else { return };
        let drain = self.drain_ends.unwrap_or(NEVER);
        let (_, due, _) = watched.next_deadline(deadlines, drain);
        self.kept += u64::from(due <= now && watched.ending == Ending::No);
    }

    fn forget_owner(&mut self, watched: &Watched, socket: u32) {
        if let Some(owner) = watched.owner
            && self.sockets.get(&place(owner)) == Some(&socket)
        {
            self.sockets.remove(&place(owner));
        }
    }

    fn cancelled(&mut self, key: OpKey, target: OpKey, now: u64) {
        let Some(socket) = self.socket_of(key.owner) else { return };
        self.count_kept(socket, now);
        let Some(watched) = self.watched.get_mut(&socket) else { return };
        watched.cancels += 1;
        if target.kind == OpKind::Send {
            watched.ending = Ending::Sure;
            return;
        }
        watched.receive_cancelled = true;
        if watched.ending == Ending::No {
            watched.ending = Ending::Perhaps;
        }
    }

    /// The worker takes a completion. `bytes` is what a receive brought; `expires` says when
    /// the token of this connection's client runs out, if it does.
    pub fn completed(
        &mut self,
        completion: &Completion,
        bytes: &[u8],
        expires: Option<u64>,
        now: u64,
    ) {
        let key = completion.key;
        let Some(watched) = self.owned_by(key.owner) else { return };
        match key.kind {
            OpKind::Cancel => watched.cancels = watched.cancels.saturating_sub(1),
            OpKind::Receive | OpKind::Poll => {
                watched.receiving = completion.more;
                watched.receive_cancelled &= completion.more;
                let over = matches!(
                    completion.outcome,
                    Outcome::EndOfStream | Outcome::Failed(Failure::Disconnected)
                );
                // The close waits for cancellations of earlier receives.
                if over && watched.cancels > 0 && watched.sending.is_none() {
                    watched.ending = Ending::Perhaps;
                }
            }
            _ => {}
        }
        match &completion.outcome {
            Outcome::Received(_) => watched.heard(bytes, expires, now),
            Outcome::Sent { result, .. } => watched.sent(result.as_ref().ok().copied(), now),
            _ => {}
        }
    }

    /// The socket that belongs to a key, if it is a client's.
    pub fn socket_of(&self, owner: Owner) -> Option<u32> {
        let socket = self.sockets.get(&place(owner))?;
        (self.watched.get(socket)?.owner == Some(owner)).then_some(*socket)
    }

    fn owned_by(&mut self, owner: Owner) -> Option<&mut Watched> {
        let socket = self.socket_of(owner)?;
        self.watched.get_mut(&socket)
    }

    /// The worker enters at `now` and means to wait until `until`.
    ///
    /// # Errors
    /// The deadline that was missed, or that would be slept through; a close frame that came too
    /// soon.
    pub fn check(&mut self, now: u64, until: u64) -> Result<(), String> {
        if let Some(hasty) = self.hasty.take() {
            return Err(hasty);
        }
        self.turns += 1;
        let turns = self.turns;
        self.before.retain(|(_, until)| turns < *until);
        let drain_over = self.drain_ends.map(|end| [end, since(end, DRAIN_REST)]);
        for (over, drained) in drain_over.into_iter().flatten().zip(&mut self.drained) {
            if now >= over {
                drained.get_or_insert(turns + self.sweep_turns);
            }
        }
        let Some(deadlines) = &self.deadlines else { return Ok(()) };
        let denied = std::mem::take(&mut self.denied);
        for (socket, watched) in &mut self.watched {
            watched.note_pause(now, denied, deadlines.ping_interval);
            if watched.ending != Ending::No {
                continue;
            }
            // A deadline that is taken as met may lead to another one.
            for _ in 0..4 {
                let hidden = denied || watched.sending.is_some();
                let drain = self.drain_ends.unwrap_or(NEVER);
                let (name, due, must_show) = watched.next_deadline(deadlines, drain);
                let under = |(before, _): &(Deadlines, u64)| watched.next_deadline(before, drain).1;
                let due = self.before.iter().map(under).fold(due, u64::max);
                let latest = due.saturating_add(nanos(WHEEL_TICK));
                if now < latest && until <= latest {
                    break;
                }
                let swept = match name {
                    "drain" => self.drained[0],
                    "drain rest" => self.drained[1],
                    _ => Some(0),
                };
                if swept.is_none_or(|turn| turns <= turn) && until <= now {
                    break;
                }
                if name == CLOSING_LINGER && denied && watched.sending.is_none() {
                    // Its close may be in the queue for a slot; the linger begins after that.
                    break;
                }
                if must_show || !hidden {
                    let verb = if now < latest { "would sleep past" } else { "missed" };
                    let micros = |time: u64| time / 1000;
                    return Err(format!(
                        "deadline {verb}: {name} of socket {socket}, due at {} us, now {}, \
                         until {}: {}",
                        micros(due),
                        micros(now),
                        micros(until),
                        watched.state()
                    ));
                }
                if now < due {
                    // A close for another reason may be in the queue already: a backend's, say.
                    break;
                }
                self.kept += 1;
                watched.assume_met(now);
            }
        }
        Ok(())
    }
}

impl Watched {
    /// Without a receive in flight, input may wait for credit, and whether the client has been
    /// heard since cannot be seen. An end would have led to a close by now.
    fn note_pause(&mut self, now: u64, denied: bool, ping_interval: Duration) {
        // Whoever awaits a decision is watched for its end. Who is not has been accepted, and its
        // input, which may have come before, waits for credit.
        let unwatched = !self.receiving && self.cancels == 0 && self.ending == Ending::No;
        if self.stage == Stage::Asking && self.facts.is_valid && unwatched {
            self.open(None, now);
        }
        let joined = !self.receiving && self.cancels == 0 && self.sending.is_none();
        if self.ending == Ending::Perhaps && joined {
            self.ending = Ending::No;
        }
        // Whoever was silent up to a ping waits without a buffer; that is no pause.
        let silent = self.pinged || now >= self.received.saturating_add(nanos(ping_interval));
        self.paused |= (!self.receiving || self.ending == Ending::Perhaps) && !silent;
        if self.paused {
            self.received = now;
        }
        if self.stage == Stage::Closing && denied && self.sending.is_none() {
            self.since = now;
        }
    }

    /// Name and time of the next deadline, and whether its effect shows immediately.
    fn next_deadline(&self, deadlines: &Deadlines, drain: u64) -> (&'static str, u64, bool) {
        let stall = match self.sending {
            Some(_) => ("write stall", since(self.progressed, deadlines.write_stall), true),
            None => ("write stall", NEVER, true),
        };
        let lifetime = ("lifetime", self.lifetime_ends, false);
        // At the end of the window whoever is left is told, and dropped only after a rest.
        let rest = ("drain rest", drain.saturating_add(nanos(DRAIN_REST)), true);
        let drain = ("drain", drain, false);
        let all = match self.stage {
            Stage::SilentTls => {
                let until = since(self.since, deadlines.tls_handshake);
                [("TLS handshake", until, true), lifetime, drain, drain, drain]
            }
            Stage::Opaque => [rest; 5],
            Stage::Head => {
                let head = ("request head", since(self.since, deadlines.request_head), false);
                [head, lifetime, drain, stall, drain]
            }
            Stage::Authenticating => {
                let until = since(self.since, deadlines.authenticate);
                [("authenticate", until, false), lifetime, drain, stall, drain]
            }
            Stage::Asking => {
                let decision = since(self.since, self.decision.unwrap_or_default());
                let until = decision.min(since(self.upgraded, deadlines.authenticate));
                [("verdict", until, false), lifetime, drain, stall, drain]
            }
            Stage::Open => {
                let expiry = ("token expiry", self.expires, false);
                let silence = match self.pinged {
                    false => ("ping", since(self.received, deadlines.ping_interval), false),
                    true => ("idle", since(self.received, deadlines.idle), false),
                };
                [silence, lifetime, expiry, stall, drain]
            }
            Stage::Refused => {
                let linger = ("refused", since(self.since, deadlines.linger), true);
                let cap = ("refused cap", self.refused_at_latest(deadlines), true);
                if self.told || self.facts.pace.is_zero() {
                    return earliest([linger, cap, rest, rest, rest]);
                }
                let due = self.pace_end(self.facts.pace * 3 / 2, deadlines);
                [("pace", due, false), cap, rest, rest, rest]
            }
            Stage::Closing if self.sending.is_some() => [stall, rest, rest, rest, rest],
            Stage::Closing => {
                let linger = (CLOSING_LINGER, since(self.since, deadlines.linger), true);
                [linger, rest, rest, rest, rest]
            }
        };
        earliest(all)
    }

    /// When a refused client must be gone.
    fn refused_at_latest(&self, deadlines: &Deadlines) -> u64 {
        let stages = deadlines.tls_handshake + deadlines.request_head + deadlines.authenticate;
        since(self.accepted, stages + REFUSED_GRACE)
    }

    /// When a pace is over: it is cut so that the linger after it fits in.
    fn pace_end(&self, pace: Duration, deadlines: &Deadlines) -> u64 {
        let cut = self.refused_at_latest(deadlines).saturating_sub(nanos(deadlines.linger));
        since(self.since, pace).min(cut.max(self.since))
    }

    fn state(&self) -> String {
        let Watched { facts, stage, since, accepted, received, pinged, .. } = self;
        let Watched { progressed, sending, receiving, cancels, ending, .. } = self;
        format!(
            "{facts:?} {stage:?} since {since}, accepted {accepted}, received {received}, pinged \
             {pinged}, progressed {progressed}, sending {sending:?}, receiving {receiving}, \
             cancels {cancels}, {ending:?}"
        )
    }

    /// What was due is in a queue, unseen: the next deadline counts from now.
    fn assume_met(&mut self, now: u64) {
        match self.stage {
            Stage::Open if !self.pinged => self.pinged = true,
            Stage::Open => self.enter(Stage::Closing, now),
            _ => {
                self.told |= self.stage == Stage::Refused;
                self.enter(Stage::Refused, now);
            }
        }
    }

    fn enter(&mut self, stage: Stage, now: u64) {
        self.stage = stage;
        self.since = now;
    }

    fn open(&mut self, expires: Option<u64>, now: u64) {
        self.enter(Stage::Open, now);
        self.received = now;
        self.expires = expires.unwrap_or(NEVER);
    }

    /// The worker read `bytes`.
    fn heard(&mut self, bytes: &[u8], expires: Option<u64>, now: u64) {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        let mut bytes = &bytes[skipped..];
        if self.facts.is_tls {
            return self.enter(Stage::Opaque, now);
        }
        let before = self.stage;
        if self.stage == Stage::Head {
            let known = self.head.len();
            self.head.extend_from_slice(bytes);
            let Some(end) = self.head.windows(4).position(|w| w == b"\r\n\r\n") else { return };
            bytes = &bytes[end + 4 - known..];
            self.upgraded = now;
            match self.facts {
                Facts { first_message: true, .. } => self.enter(Stage::Authenticating, now),
                _ if self.decision.is_some() => self.enter(Stage::Asking, now),
                Facts { is_valid: true, .. } => self.open(expires, now),
                _ => self.enter(Stage::Refused, now),
            }
        }
        if self.stage == Stage::Authenticating {
            let mut decided = false;
            self.input.scan(bytes, |opcode, fin| decided |= fin && opcode < CLOSE);
            match decided {
                true if self.decision.is_some() => self.enter(Stage::Asking, now),
                true if self.facts.is_valid => self.open(expires, now),
                true => self.enter(Stage::Refused, now),
                false => {}
            }
        } else if before == Stage::Open {
            self.received = now;
            self.pinged = false;
        }
    }

    /// The worker sends `bytes`. Whether that ends a pace.
    fn answered(&mut self, bytes: &[u8], now: u64) -> bool {
        if self.facts.is_tls {
            return false;
        }
        let (mut closes, mut pings) = (false, false);
        let status = self.output.scan(bytes, |opcode| {
            closes |= opcode == CLOSE;
            pings |= opcode == PING;
        });
        if pings {
            // Only those who were let in are pinged.
            if self.stage == Stage::Asking && self.facts.is_valid {
                self.open(None, now);
            }
            self.pinged |= self.stage == Stage::Open;
        }
        let refused = status == Some(false);
        let now_told = !self.told && (closes || refused);
        self.told |= now_told;
        let refused_before = self.stage == Stage::Refused;
        self.paced |= refused_before && PACED.iter().any(|cause| explains(bytes, *cause));
        let ends_pace = refused_before && now_told && self.paced;
        if refused_before && now_told && !self.facts.pace.is_zero() {
            self.since = now;
        }
        match self.stage {
            // Accepted, perhaps, and closed within the same turn; whichever lasts longer.
            Stage::Asking if closes && self.facts.is_valid => self.enter(Stage::Closing, now),
            Stage::Head | Stage::Authenticating | Stage::Asking if closes || refused => {
                self.enter(Stage::Refused, now);
            }
            Stage::Open if refused => self.enter(Stage::Refused, now),
            // Refused, perhaps, for want of a backend; whichever lasts longer.
            Stage::Open if closes => self.enter(Stage::Closing, now),
            _ => {}
        }
        ends_pace
    }

    fn sent(&mut self, count: Option<u32>, now: u64) {
        let Some((start, end)) = self.sending.take() else { return };
        if let Some(count) = count {
            self.progressed = now;
            if start + count >= end && self.stage == Stage::Closing {
                self.since = now;
            }
        }
    }
}

fn since(time: u64, duration: Duration) -> u64 {
    time.saturating_add(nanos(duration))
}

/// Whether these bytes explain `cause` to a client.
fn explains(bytes: &[u8], cause: Cause) -> bool {
    let words = format!("\"reason\":\"{}\"", cause.label());
    bytes.windows(words.len()).any(|window| window == words.as_bytes())
}

const CLOSE: u8 = 8;
const PING: u8 = 9;

/// Finds frames in a stream of bytes, masked or not, that comes in any pieces.
#[derive(Debug, Default)]
struct Scanner {
    header: Vec<u8>,
    payload: u64,
}

impl Scanner {
    /// Tells opcode and FIN of each frame that ends within `bytes`. An empty frame ends with
    /// its header.
    fn scan(&mut self, mut bytes: &[u8], mut tell: impl FnMut(u8, bool)) {
        while !bytes.is_empty() {
            if self.payload == 0 {
                self.header.push(bytes[0]);
                bytes = &bytes[1..];
                match frame_length(&self.header) {
                    Some(length) => self.payload = length,
                    None => continue,
                }
            }
            let taken = self.payload.min(bytes.len() as u64);
            bytes = &bytes[taken as usize..];
            self.payload -= taken;
            if self.payload == 0 {
                tell(self.header[0] & 15, self.header[0] & 0x80 != 0);
                self.header.clear();
            }
        }
    }
}

/// Length of the payload, once the header is whole (RFC 6455 §5.2).
fn frame_length(header: &[u8]) -> Option<u64> {
    let second = *header.get(1)?;
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if second & 0x80 != 0 { 4 } else { 0 };
    if header.len() < 2 + extended + mask {
        return None;
    }
    let number = header[2..2 + extended].iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    Some(if extended == 0 { u64::from(second & 0x7f) } else { number })
}

/// What the worker says: a response head, then frames.
#[derive(Debug, Default)]
struct Output {
    head: Vec<u8>,
    upgraded: bool,
    frames: Scanner,
}

impl Output {
    /// Tells the opcode of each frame, and returns the status once the head is whole: whether
    /// it is 101.
    fn scan(&mut self, bytes: &[u8], mut tell: impl FnMut(u8)) -> Option<bool> {
        if self.upgraded {
            self.frames.scan(bytes, |opcode, _| tell(opcode));
            return None;
        }
        self.head.extend_from_slice(bytes);
        let end = self.head.windows(4).position(|window| window == b"\r\n\r\n")?;
        self.upgraded = self.head.starts_with(b"HTTP/1.1 101 ");
        if self.upgraded {
            let rest = self.head.split_off(end + 4);
            self.frames.scan(&rest, |opcode, _| tell(opcode));
        }
        self.head = Vec::new();
        Some(self.upgraded)
    }
}

/// A name, a time, and whether the effect shows immediately.
type Due = (&'static str, u64, bool);

fn earliest(all: [Due; 5]) -> Due {
    let [first, ..] = all;
    all.into_iter().min_by_key(|(_, due, _)| *due).unwrap_or(first)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NEVER)
}

/// Where an owner is: links and clients have tables of their own.
fn place(owner: Owner) -> (bool, u32) {
    (matches!(owner, Owner::Upstream(_)), owner.key().slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(pieces: &[&[u8]]) -> Vec<(u8, bool)> {
        let mut scanner = Scanner::default();
        let mut found = Vec::new();
        for piece in pieces {
            scanner.scan(piece, |opcode, fin| found.push((opcode, fin)));
        }
        found
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let mut bytes =
            b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58\x89\x00\x02\x7e\x01\x00".to_vec();
        bytes.extend([7; 256]);
        bytes.extend(b"\x88\x02\x03\xe8\x80");
        let expected = [(1, true), (PING, true), (2, false), (CLOSE, true)];
        for cut in 0..bytes.len() {
            assert_eq!(frames(&[&bytes[..cut], &bytes[cut..]]), expected, "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(frames(&single), expected);
    }

    #[test]
    fn the_status_is_told_once() {
        let mut output = Output::default();
        let mut seen = Vec::new();
        assert_eq!(output.scan(b"HTTP/1.1 101 S\r\n", |opcode| seen.push(opcode)), None);
        assert_eq!(output.scan(b"\r\n\x89\x00", |opcode| seen.push(opcode)), Some(true));
        assert_eq!(output.scan(b"\x88\x00", |opcode| seen.push(opcode)), None);
        assert_eq!(seen, [PING, CLOSE]);
        let mut output = Output::default();
        assert_eq!(output.scan(b"HTTP/1.1 408 R\r\n\r\n", |_| {}), Some(false));
    }
}
