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

use super::scanner::{Output, Scanner};
use super::watched::{
    CLOSING_LINGER, DRAIN_REST, Ending, Facts, NEVER, Stage, Watched, nanos, since,
};
use crate::ring::{BufferGroup, Completion, Failure, Op, OpKey, OpKind, Outcome, Owner, Socket};
use crate::settings::Deadlines;
use crate::worker::WHEEL_TICK;

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
    /// How long the answer of a WebSocket server may take.
    server: Option<Duration>,
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

    /// WebSocket servers are asked about every client whose token is good, and answer within this
    /// time. When they do is not seen here: only that the worker reads the client again.
    pub fn set_server(&mut self, timeout: Duration) {
        self.server = Some(timeout);
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
            decision: self.decision.or(self.server.filter(|_| facts.is_valid)),
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
                // What came last may be the client's own close, after the gateway's.
                let answered = watched.told && !watched.receiving;
                // The close waits for cancellations of earlier receives.
                if (over || answered) && watched.cancels > 0 && watched.sending.is_none() {
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
                // What was due before the reload may be met and in a queue, unseen; what follows it
                // under those deadlines cannot be told.
                let under = |(before, _): &(Deadlines, u64)| {
                    let (_, due, must_show) = watched.next_deadline(before, drain);
                    if due <= now && hidden && !must_show { NEVER } else { due }
                };
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

/// Where an owner is: links and clients have tables of their own.
fn place(owner: Owner) -> (bool, u32) {
    (matches!(owner, Owner::Upstream(_)), owner.key().slot)
}
