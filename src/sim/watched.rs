//! The model of one client connection that a [`Watch`](super::deadlines::Watch) keeps.

use std::time::Duration;

use super::scanner::{CLOSE, Output, PING, Scanner};
use super::scenario::PACED;
use crate::protocol::cause::Cause;
use crate::ring::Owner;
use crate::settings::Deadlines;

/// What a drain leaves for goodbyes after its window.
pub(super) const DRAIN_REST: Duration = Duration::from_secs(2);
/// What a refused client gets beyond all stages together.
const REFUSED_GRACE: Duration = Duration::from_millis(100);
pub(super) const CLOSING_LINGER: &str = "closing linger";
pub(super) const NEVER: u64 = u64::MAX;

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
pub(super) enum Stage {
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
pub(super) enum Ending {
    No,
    /// A receive is being cancelled: for the end, for a pause, or to wait without a buffer. An
    /// end that begins meanwhile asks for nothing more, so it cannot be seen.
    Perhaps,
    /// A send is being cancelled, which only an end does.
    Sure,
}

/// One connection. Times are in nanoseconds; where the true one is not known, the latest.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) facts: Facts,
    pub(super) owner: Option<Owner>,
    pub(super) stage: Stage,
    pub(super) since: u64,
    /// How long a backend's auth decision may take.
    pub(super) decision: Option<Duration>,
    /// When the upgrade was answered.
    pub(super) upgraded: u64,
    pub(super) accepted: u64,
    pub(super) received: u64,
    pub(super) pinged: bool,
    /// A close frame, or an answer over HTTP, was sent to it.
    pub(super) told: bool,
    /// It was told a cause for which the close frame waits.
    pub(super) paced: bool,
    pub(super) expires: u64,
    pub(super) lifetime_ends: u64,
    pub(super) progressed: u64,
    pub(super) sending: Option<(u32, u32)>,
    pub(super) receiving: bool,
    /// The receive in flight was cancelled.
    pub(super) receive_cancelled: bool,
    /// Input may wait for credit, and be heard later.
    pub(super) paused: bool,
    pub(super) cancels: u32,
    pub(super) ending: Ending,
    pub(super) head: Vec<u8>,
    pub(super) skip: usize,
    pub(super) input: Scanner,
    pub(super) output: Output,
}

impl Watched {
    /// Without a receive in flight, input may wait for credit, and whether the client has been
    /// heard since cannot be seen. An end would have led to a close by now.
    pub(super) fn note_pause(&mut self, now: u64, denied: bool, ping_interval: Duration) {
        // A client that awaits a decision is watched for its end. One that is not watched has been
        // accepted, and its input, which may have come before, waits for credit.
        let unwatched = !self.receiving && self.cancels == 0 && self.ending == Ending::No;
        if self.stage == Stage::Asking && self.facts.is_valid && unwatched {
            self.open(None, now);
        }
        let joined = !self.receiving && self.cancels == 0 && self.sending.is_none();
        if self.ending == Ending::Perhaps && joined {
            self.ending = Ending::No;
        }
        // A client that was silent up to a ping waits without a buffer; that is no pause.
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
    pub(super) fn next_deadline(
        &self,
        deadlines: &Deadlines,
        drain: u64,
    ) -> (&'static str, u64, bool) {
        let stall = match self.sending {
            Some(_) => ("write stall", since(self.progressed, deadlines.write_stall), true),
            None => ("write stall", NEVER, true),
        };
        let lifetime = ("lifetime", self.lifetime_ends, false);
        // At the end of the window the clients that are left get a close, and the worker drops them
        // only after a rest.
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
    pub(super) fn pace_end(&self, pace: Duration, deadlines: &Deadlines) -> u64 {
        let cut = self.refused_at_latest(deadlines).saturating_sub(nanos(deadlines.linger));
        since(self.since, pace).min(cut.max(self.since))
    }

    pub(super) fn state(&self) -> String {
        let Watched { facts, stage, since, accepted, received, pinged, .. } = self;
        let Watched { progressed, sending, receiving, cancels, ending, .. } = self;
        format!(
            "{facts:?} {stage:?} since {since}, accepted {accepted}, received {received}, pinged \
             {pinged}, progressed {progressed}, sending {sending:?}, receiving {receiving}, \
             cancels {cancels}, {ending:?}"
        )
    }

    /// What was due is in a queue, unseen: the next deadline counts from now.
    pub(super) fn assume_met(&mut self, now: u64) {
        match self.stage {
            Stage::Open if !self.pinged => self.pinged = true,
            Stage::Open => self.enter(Stage::Closing, now),
            _ => {
                self.told |= self.stage == Stage::Refused;
                self.enter(Stage::Refused, now);
            }
        }
    }

    pub(super) fn enter(&mut self, stage: Stage, now: u64) {
        self.stage = stage;
        self.since = now;
    }

    pub(super) fn open(&mut self, expires: Option<u64>, now: u64) {
        self.enter(Stage::Open, now);
        self.received = now;
        self.expires = expires.unwrap_or(NEVER);
    }

    /// The worker read `bytes`.
    pub(super) fn heard(&mut self, bytes: &[u8], expires: Option<u64>, now: u64) {
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
    pub(super) fn answered(&mut self, bytes: &[u8], now: u64) -> bool {
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
        let explains_paced = PACED.iter().any(|cause| explains(bytes, *cause));
        self.paced |= refused_before && explains_paced;
        let ends_pace = refused_before && now_told && self.paced;
        if refused_before && now_told && !self.facts.pace.is_zero() {
            self.since = now;
        }
        match self.stage {
            // A WebSocket server refused it as if its token were bad: the close may have to wait.
            Stage::Asking | Stage::Open if explains_paced && !self.facts.pace.is_zero() => {
                self.paced = true;
                self.enter(Stage::Refused, now);
            }
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

    pub(super) fn sent(&mut self, count: Option<u32>, now: u64) {
        let Some((start, end)) = self.sending.take() else { return };
        if let Some(count) = count {
            self.progressed = now;
            if start + count >= end && self.stage == Stage::Closing {
                self.since = now;
            }
        }
    }
}

/// A name, a time, and whether the effect shows immediately.
type Due = (&'static str, u64, bool);

fn earliest(all: [Due; 5]) -> Due {
    let [first, ..] = all;
    all.into_iter().min_by_key(|(_, due, _)| *due).unwrap_or(first)
}

pub(super) fn since(time: u64, duration: Duration) -> u64 {
    time.saturating_add(nanos(duration))
}

/// Whether these bytes explain `cause` to a client.
fn explains(bytes: &[u8], cause: Cause) -> bool {
    let words = format!("\"reason\":\"{}\"", cause.label());
    bytes.windows(words.len()).any(|window| window == words.as_bytes())
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NEVER)
}
