//! Taking connections in: outstanding accepts, exhaustion. Who is let in is decided in
//! `admission.rs`.

use std::time::Duration;

use crate::base::time::Instant;
use crate::counters::Metric;
use crate::ring::{Failure, Op, OpKey, OpKind, Outcome, Owner, Socket};
use crate::settings::Settings;

use super::core::{Core, Parts};
use super::mailbox::Report;

/// How long accepts rest after descriptors or memory ran out.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// How many connections give way in that time.
const EXHAUSTED_EVICTIONS: usize = 64;
/// How often exhaustion is reported.
const EXHAUSTED_REPORT_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accept {
    /// To be submitted, not before the instant.
    Due(Instant),
    InFlight,
    /// Being cancelled; it may still bring a connection.
    Ending,
    Over,
}

/// The worker's outstanding accepts. Slot `i` serves listener `i / per_listener`.
pub(super) struct Acceptor {
    /// Closes of connections turned away, and cancellations of accepts, in flight: they have no
    /// owner, and a drain waits for them too.
    unowned: u32,
    per_listener: u16,
    slots: Vec<Accept>,
    stopping: bool,
    /// Not after the earliest `Due`; a turn before it need not look at the slots.
    due: Instant,
    reported: Instant,
    /// When exhaustion may next cost others their connections.
    relief_at: Instant,
}

impl Acceptor {
    pub(super) fn new(settings: &Settings) -> Self {
        let per_listener = settings.limits.accepts.max(1);
        let count = settings.listeners.len() * usize::from(per_listener);
        let slots = vec![Accept::Due(Instant::default()); count];
        Acceptor {
            unowned: 0,
            per_listener,
            slots,
            stopping: false,
            due: Instant::default(),
            reported: Instant::default(),
            relief_at: Instant::default(),
        }
    }

    pub(super) fn next_deadline(&self) -> Instant {
        self.due
    }

    fn earliest(&self) -> Instant {
        self.slots
            .iter()
            .filter_map(|slot| match slot {
                Accept::Due(at) => Some(*at),
                _ => None,
            })
            .min()
            .unwrap_or(Instant::NEVER)
    }

    /// Whether every accept, and all that was left without an owner, has completed for good.
    pub(super) fn is_over(&self) -> bool {
        self.unowned == 0 && self.slots.iter().all(|slot| *slot == Accept::Over)
    }

    /// A close or a cancellation without an owner completed.
    pub(super) fn unowned_done(&mut self) {
        self.unowned -= 1;
    }

    fn listener(&self, slot: usize) -> u16 {
        (slot / usize::from(self.per_listener)) as u16
    }
}

impl Parts {
    /// Submits the accepts that are due.
    pub(super) fn advance_accepts(&mut self) {
        let now = self.env.now.instant;
        if now < self.acceptor.due {
            return;
        }
        for index in 0..self.acceptor.slots.len() {
            if matches!(self.acceptor.slots[index], Accept::Due(at) if at <= now) {
                self.submit_accept(index);
            }
        }
        self.acceptor.due = self.acceptor.earliest();
    }

    fn submit_accept(&mut self, index: usize) {
        let listener = self.acceptor.listener(index);
        self.acceptor.slots[index] = Accept::InFlight;
        let key = OpKey::new(OpKind::Accept, Owner::Acceptor(index as u32));
        self.agenda.ops.push((key, Op::Accept { listener }));
    }

    /// Ends all accepts; [`Acceptor::is_over`] says when they are gone.
    pub(super) fn stop_accepting(&mut self) {
        self.acceptor.stopping = true;
        for (index, slot) in self.acceptor.slots.iter_mut().enumerate() {
            match *slot {
                Accept::InFlight => {
                    *slot = Accept::Ending;
                    let target = OpKey::new(OpKind::Accept, Owner::Acceptor(index as u32));
                    self.acceptor.unowned += 1;
                    let key = OpKey::new(OpKind::Cancel, Owner::Nobody);
                    self.agenda.ops.push((key, Op::Cancel { target }));
                }
                Accept::Due(_) => *slot = Accept::Over,
                Accept::Ending | Accept::Over => {}
            }
        }
    }

    /// RST: the peer may have said nothing yet, and nothing is owed to it.
    pub(super) fn turn_away(&mut self, socket: Socket) {
        self.acceptor.unowned += 1;
        let key = OpKey::new(OpKind::Close, Owner::Nobody);
        self.agenda.ops.push((key, Op::Close { socket, reset: true }));
    }
}

impl Core {
    pub(super) fn accepted(&mut self, slot: u32, outcome: Outcome) {
        let index = slot as usize;
        let listener = self.parts.acceptor.listener(index);
        let mut again = self.parts.env.now.instant;
        match outcome {
            Outcome::Accepted { socket, peer } => {
                self.parts.env.counters.increment(Metric::Accepted);
                if self.parts.acceptor.stopping {
                    self.parts.turn_away(socket);
                } else {
                    self.admit(socket, peer, listener);
                }
            }
            Outcome::Failed(Failure::Cancelled) => {}
            Outcome::Failed(failure) => {
                self.parts.env.counters.increment(Metric::AcceptFailed);
                if failure == Failure::Exhausted {
                    self.parts.env.counters.increment(Metric::AcceptExhausted);
                    again = again + EXHAUSTED_PAUSE;
                    self.relieve_exhaustion();
                }
            }
            other => unreachable!("an accept completed with {other:?}"),
        }
        let Parts { acceptor, env, .. } = &mut self.parts;
        if acceptor.stopping {
            acceptor.slots[index] = Accept::Over;
        } else if again <= env.now.instant {
            self.parts.submit_accept(index);
        } else {
            acceptor.slots[index] = Accept::Due(again);
            acceptor.due = acceptor.due.min(again);
        }
    }

    /// Descriptors or memory ran out. Of those who have not authenticated, a few that were
    /// refused, or have taken long, give way before the accepts go on.
    fn relieve_exhaustion(&mut self) {
        let now = self.parts.env.now.instant;
        if now >= self.parts.acceptor.relief_at {
            self.parts.acceptor.relief_at = now + EXHAUSTED_PAUSE;
            self.evict_idle(EXHAUSTED_EVICTIONS);
        }
        let Parts { acceptor, control, .. } = &mut self.parts;
        if now.since(acceptor.reported) >= EXHAUSTED_REPORT_EVERY {
            acceptor.reported = now;
            control.mailbox.report(Report::AcceptExhausted);
        }
    }
}
