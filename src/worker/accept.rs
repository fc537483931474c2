//! Taking connections in: outstanding accepts, exhaustion. Who is let in is decided in
//! `admission.rs`.

use std::time::Duration;

use crate::base::time::Instant;
use crate::counters::{ListenerMetric, Metric};
use crate::ring::{Failure, Op, OpKey, OpKind, Outcome, Owner, Socket};
use crate::settings::Settings;

use super::core::{Core, Parts};
use super::mailbox::Report;

/// How long accepts rest after descriptors or memory ran out.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// How many connections give way in that time.
const EXHAUSTED_EVICTIONS: usize = 64;
/// How long backlogs that do not become empty keep the listeners open in a drain.
const BACKLOG_TIME_MAX: Duration = Duration::from_secs(1);
/// How often exhaustion is reported.
const EXHAUSTED_REPORT_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accept {
    /// To be submitted, not before the instant.
    Due(Instant),
    InFlight,
    /// Its listener is closed; it may still bring a connection.
    Ending,
    Over,
}

/// The end of accepting. The listeners stay open until a turn brings no connection: what waits
/// in their backlogs then has been taken, and is not reset with them.
struct Stopping {
    /// A connection came since the last look.
    busy: bool,
    /// When the listeners are closed in any case.
    until: Instant,
    closed: bool,
}

/// The worker's outstanding accepts. Slot `i` serves listener `i / per_listener`.
pub(super) struct Acceptor {
    /// Closes of connections turned away, in flight: they have no owner, and a drain waits for
    /// them too.
    unowned: u32,
    per_listener: u16,
    slots: Vec<Accept>,
    stopping: Option<Stopping>,
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
            stopping: None,
            due: Instant::default(),
            reported: Instant::default(),
            relief_at: Instant::default(),
        }
    }

    pub(super) fn next_deadline(&self) -> Instant {
        match &self.stopping {
            Some(Stopping { closed: false, .. }) => Instant::default(),
            _ => self.due,
        }
    }

    /// Begins to end all accepts; [`is_over`](Self::is_over) says when they are gone.
    pub(super) fn stop(&mut self, now: Instant) {
        // Whatever waits has not been looked at since.
        self.stopping = Some(Stopping { busy: true, until: now + BACKLOG_TIME_MAX, closed: false });
    }

    /// Whether the listeners are to be closed now, and with them the accepts in flight; true once.
    pub(super) fn closes_listeners(&mut self, now: Instant) -> bool {
        let Some(stopping) = &mut self.stopping else { return false };
        let busy = std::mem::replace(&mut stopping.busy, false) && now < stopping.until;
        if stopping.closed || busy {
            return false;
        }
        stopping.closed = true;
        for slot in &mut self.slots {
            *slot = match *slot {
                Accept::InFlight => Accept::Ending,
                Accept::Due(_) => Accept::Over,
                other => other,
            };
        }
        self.due = Instant::NEVER;
        true
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
        let ending = self.parts.acceptor.slots[index] == Accept::Ending;
        match outcome {
            Outcome::Accepted { socket, peer } => {
                self.parts.env.counters.increment(Metric::Accepted);
                self.parts.env.count_at_listener(listener, ListenerMetric::Accepted);
                if let Some(stopping) = &mut self.parts.acceptor.stopping {
                    stopping.busy = true;
                }
                self.admit(socket, peer, listener);
            }
            Outcome::Failed(Failure::Cancelled) => {}
            // The listener is closed.
            Outcome::Failed(_) if ending => {}
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
        if ending {
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
