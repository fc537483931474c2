//! Who is let in, and who gives way, of clients that have not authenticated.
//!
//! At rest nothing here refuses a client. From a share of the cap on, prefixes that hold many
//! connections already, or have failed often, are dropped on arrival, with a chance that grows
//! up to the cap; at the cap every newcomer that is not dropped takes the place of another that
//! has not authenticated. No authenticated client gives way to a newcomer.
//!
//! Every decision is a function of what is counted here, the time and one drawn number, and
//! costs a few steps in ordered maps, however many connections there are.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use crate::base::memory_pressure::MemoryPressure;
use crate::base::penalties::{Penalties, PenaltyRule};
use crate::base::prefix::Prefixes;
use crate::base::shares::{UnauthenticatedIndex, Victim};
use crate::base::slab::Key;
use crate::base::time::Instant;
use crate::base::token_bucket::TokenBucket;
use crate::connection::client::Client;
use crate::connection::stage::Stage;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::settings::Limits;

use super::clients::Connection;
use super::core::{Core, Parts};

/// TLS handshakes of one worker in a second, where the settings name no number: about half of
/// what a core does when each of them is a full one with an ECDSA key.
const TLS_HANDSHAKES_PER_WORKER: u32 = 2_000;
/// The reserve for explanations is at most one part in this many of a worker's connections.
const EXPLAIN_RESERVE_PARTS: u32 = 16;
/// Of the places of unauthenticated connections, the part that is freed at a time for newcomers
/// which find no place.
const GIVING_WAY_SHARE: u32 = 16;
/// Honest clients are taken to have authenticated by this age, but for the slowest hundredth.
const LATE_AFTER: Duration = Duration::from_secs(1);
/// Draws are numbers below this.
const DRAWS: u64 = 10_000;

/// A worker's part of what the settings allow to those who have not authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Connections of the worker.
    pub connections_max: u32,
    /// How many of these places are for clients that hear that there is no other.
    pub explain_reserve: u32,
    /// Connections that have not authenticated.
    pub unauthenticated_max: u32,
    /// As many of them as early drop begins with.
    pub early_drop_start: u32,
    /// Visitors: open connections without an identity.
    pub anonymous_max: u32,
    /// The chance of a drop there, in percent.
    pub early_drop_rate: u32,
    /// Connections that an address may have before early drop concerns it.
    pub prefix_share: u32,
    /// TLS handshakes that may begin in a second.
    pub tls_handshakes: u32,
    /// What a penalty is.
    pub penalty: PenaltyRule,
}

impl Allowance {
    /// Divides the limits among `workers`, none of which can have more than `descriptors_max`
    /// clients.
    pub fn new(limits: &Limits, workers: u16, descriptors_max: u32) -> Self {
        let workers = u32::from(workers.max(1));
        let share = |total: u32| (total / workers).max(1);
        let connections_max = limits
            .connections_per_worker
            .unwrap_or(u32::MAX)
            .min(share(limits.connections_max))
            .min(descriptors_max.max(1));
        let unauthenticated_max = share(limits.unauthenticated_max).min(connections_max);
        let start = u64::from(unauthenticated_max) * u64::from(limits.early_drop_start);
        let minute = Duration::from_secs(60);
        Allowance {
            connections_max,
            explain_reserve: (limits.explain_reserve / workers)
                .min(connections_max / EXPLAIN_RESERVE_PARTS),
            unauthenticated_max,
            early_drop_start: start.div_ceil(100) as u32,
            anonymous_max: share(limits.anonymous_max).min(connections_max),
            early_drop_rate: limits.early_drop_rate.into(),
            prefix_share: limits.prefix_share.div_ceil(workers),
            tls_handshakes: limits
                .tls_handshakes_per_second
                .map_or(TLS_HANDSHAKES_PER_WORKER, share),
            penalty: PenaltyRule {
                // A prefix's connections are spread over the workers, and so are its failures.
                fades: minute / limits.prefix_failures_per_minute.max(1) * workers,
                burst: limits.prefix_failures_burst.div_ceil(workers),
                prefixes_max: (limits.prefixes_max / workers) as usize,
            },
        }
    }
}

/// Which of the worker's places a connection has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Ordinary,
    /// One of the reserve, to be told that there is no other.
    Explanation,
    /// One of those for visitors.
    Visitor,
}

/// What becomes of a connection that was just accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Admit,
    /// This one has to go first.
    AdmitInPlaceOf(Victim),
    /// This visitor has to go first.
    AdmitInPlaceOfVisitor(Key),
    /// There is no place but to say so.
    Explain,
    Drop(Metric),
}

/// What a worker knows of those who have not authenticated.
pub(super) struct Admission {
    pub(super) allowance: Allowance,
    shares: UnauthenticatedIndex,
    /// Those in the reserve. They do not count among the others, and give way to none of them.
    explained: UnauthenticatedIndex,
    /// Visitors that are open.
    visitors: UnauthenticatedIndex,
    /// Visitors that no longer count, and are closed before the turn ends.
    ousted: Vec<Key>,
    /// Those that gave way to the next newcomers and whose places are not free yet.
    giving_way: VecDeque<Key>,
    penalties: Penalties,
    handshakes: TokenBucket,
    pub(super) pressure: MemoryPressure,
}

impl Admission {
    pub(super) fn new(allowance: Allowance, now: Instant) -> Self {
        Admission {
            allowance,
            shares: UnauthenticatedIndex::default(),
            explained: UnauthenticatedIndex::default(),
            visitors: UnauthenticatedIndex::default(),
            ousted: Vec::new(),
            giving_way: VecDeque::new(),
            penalties: Penalties::default(),
            handshakes: TokenBucket::full(now),
            pressure: MemoryPressure::Clear,
        }
    }

    /// Whether any client is here that has not authenticated.
    pub(super) fn holds_any(&self) -> bool {
        !self.shares.is_empty() || !self.explained.is_empty() || !self.visitors.is_empty()
    }

    /// Where a connection is counted.
    fn index_of(&mut self, place: Place) -> &mut UnauthenticatedIndex {
        match place {
            Place::Ordinary => &mut self.shares,
            Place::Explanation => &mut self.explained,
            Place::Visitor => &mut self.visitors,
        }
    }

    fn may_explain(&self, of: &Prefixes) -> bool {
        (self.explained.len() as u32) < self.allowance.explain_reserve
            && self.explained.load(of) == 0
    }

    fn unauthenticated(&self) -> u32 {
        self.shares.len() as u32
    }

    /// Judges a connection at its accept. `draw` is a random number below [`DRAWS`].
    fn judge(&self, of: &Prefixes, connections: usize, draw: u64, now: Instant) -> Decision {
        if self.pressure >= MemoryPressure::StopAccepting {
            return Decision::Drop(Metric::MemoryRefusals);
        }
        let Allowance { connections_max, explain_reserve, .. } = self.allowance;
        if let Some(metric) = self.early_drop(of, draw, now) {
            return Decision::Drop(metric);
        }
        if connections >= connections_max as usize {
            return Decision::Drop(Metric::AcceptRefused);
        }
        if connections >= (connections_max - explain_reserve) as usize {
            // Strangers give way before any newcomer is refused, whatever their number.
            return match self.shares.victim() {
                Some(victim) => Decision::AdmitInPlaceOf(victim),
                None if !self.visitors.is_empty() => self
                    .first_visitor()
                    .map_or(Decision::Drop(Metric::AcceptRefused), Decision::AdmitInPlaceOfVisitor),
                None if self.may_explain(of) => Decision::Explain,
                None => Decision::Drop(Metric::AcceptRefused),
            };
        }
        if self.unauthenticated() < self.allowance.unauthenticated_max {
            return Decision::Admit;
        }
        let victim = self.shares.victim();
        victim.map_or(Decision::Drop(Metric::AcceptRefused), Decision::AdmitInPlaceOf)
    }

    /// Random early drop, as sshd's MaxStartups, of those who have their share already; and
    /// under the same pressure of all who have a penalty.
    fn early_drop(&self, of: &Prefixes, draw: u64, now: Instant) -> Option<Metric> {
        let Allowance { early_drop_start: start, unauthenticated_max: full, .. } = self.allowance;
        let count = self.unauthenticated();
        if count < start {
            return None;
        }
        if self.penalties.is_penalised(of, &self.allowance.penalty, now) {
            return Some(Metric::EarlyDropPenalty);
        }
        if self.shares.load(of) < self.allowance.prefix_share {
            return None;
        }
        let band = u64::from(full.saturating_sub(start));
        let above = u64::from(count - start).min(band);
        let rate = u64::from(self.allowance.early_drop_rate) * DRAWS / 100;
        let chance = match band {
            0 => DRAWS,
            _ => rate + (DRAWS - rate) * above / band,
        };
        (draw < chance).then_some(Metric::EarlyDropShare)
    }

    /// The visitor to give up first.
    fn first_visitor(&self) -> Option<Key> {
        self.visitors.victim().map(|(Victim::Oldest(key) | Victim::Refused(key))| key)
    }

    /// Whether there is room for one more visitor. At the cap a prefix with more than the
    /// newcomer's own gives one up; else the newcomer is refused, since visitors that ousted each
    /// other would only come back.
    fn admit_visitor(&mut self, of: &Prefixes) -> bool {
        if self.visitors.len() < self.allowance.anonymous_max as usize {
            return true;
        }
        let Some(victim) = self.visitors.victim_for(of) else { return false };
        self.visitors.remove(victim);
        self.ousted.push(victim);
        true
    }

    /// Takes a TLS handshake out of the second's. The last half of a second's is kept for
    /// prefixes that neither have their share already nor a penalty.
    fn take_handshake(&mut self, of: &Prefixes, now: Instant) -> bool {
        let rate = self.allowance.tls_handshakes;
        let suspect = self.shares.load(of) >= self.allowance.prefix_share
            || self.penalties.is_penalised(of, &self.allowance.penalty, now);
        let burst = if suspect { rate.div_ceil(2) } else { rate };
        self.handshakes.take(1, rate, burst, now)
    }
}

impl Core {
    /// Decides about a connection that was just accepted, and makes room for it: says which place
    /// it gets, if any.
    pub(super) fn place_for(&mut self, peer: Option<SocketAddr>) -> Option<Place> {
        let of = prefixes(peer);
        let Parts { admission, random, env, .. } = &mut self.parts;
        let draw = random.below(DRAWS);
        let connections = self.clients.len();
        match admission.judge(&of, connections, draw, env.now.instant) {
            Decision::Admit => Some(Place::Ordinary),
            Decision::AdmitInPlaceOf(victim) => {
                self.evict(victim);
                Some(Place::Ordinary)
            }
            Decision::AdmitInPlaceOfVisitor(key) => {
                self.evict_visitor(key);
                Some(Place::Ordinary)
            }
            Decision::Explain => Some(Place::Explanation),
            Decision::Drop(metric) => {
                env.counters.increment(metric);
                if metric == Metric::AcceptRefused {
                    self.free_a_place();
                }
                None
            }
        }
    }

    /// A newcomer was refused, as there is no place. One that is unauthenticated gives way, and its
    /// place is free when it is closed: for the next newcomer. In a burst only a few do so at a
    /// time, because all of it would see the same places taken.
    fn free_a_place(&mut self) {
        let admission = &mut self.parts.admission;
        while let Some(key) = admission.giving_way.front()
            && self.clients.entry(*key).is_none()
        {
            admission.giving_way.pop_front();
        }
        let Some(victim) = admission.shares.victim() else { return };
        if let Victim::Oldest(key) = victim {
            let most = (admission.allowance.unauthenticated_max / GIVING_WAY_SHARE).max(1);
            if admission.giving_way.len() >= most as usize {
                return;
            }
            admission.giving_way.push_back(key);
        }
        self.evict(victim);
    }

    /// Ends a connection that has not authenticated, with a reset.
    fn evict(&mut self, victim: Victim) {
        let (key, metric) = match victim {
            Victim::Refused(key) => (key, Metric::EvictedRefused),
            Victim::Oldest(key) => (key, Metric::EvictedOldest),
        };
        self.parts.env.counters.increment(metric);
        let found = self.with_client(key, |parts, _, connection| {
            assert!(connection.client.is_unauthenticated(), "an authenticated client gives way");
            connection.client.drop_silently(Cause::OverCapacity, &parts.env.context());
        });
        assert!(found, "a connection that is counted is there");
    }

    /// Closes a visitor, which is open and hears why.
    fn evict_visitor(&mut self, key: Key) {
        self.parts.env.counters.increment(Metric::EvictedVisitor);
        let found = self.with_client(key, |parts, _, connection| {
            let output = &mut parts.scratch.output;
            connection.client.close(Cause::OverCapacity, &parts.env.context(), output);
            parts.send_answers(connection);
        });
        assert!(found, "a connection that is counted is there");
    }

    /// Closes the visitors that gave way to others in this turn.
    pub(super) fn close_ousted(&mut self) {
        while let Some(key) = self.parts.admission.ousted.pop() {
            // It may have ended by itself meanwhile.
            if self.clients.entry(key).is_some_and(|connection| connection.client.is_open()) {
                self.evict_visitor(key);
            }
        }
    }

    /// Evicts up to `most` of those who have not authenticated; after them come visitors.
    pub(super) fn evict_some(&mut self, most: usize) {
        for _ in 0..most {
            let Admission { shares, explained, .. } = &self.parts.admission;
            match shares.victim().or_else(|| explained.victim()) {
                Some(victim) => self.evict(victim),
                None => match self.parts.admission.first_visitor() {
                    Some(visitor) => self.evict_visitor(visitor),
                    None => return,
                },
            }
        }
    }

    /// Evicts up to `most` of those who were refused, or have taken so long that they are
    /// hardly honest; visitors where there is none of those at all.
    pub(super) fn evict_idle(&mut self, most: usize) {
        let late = self.parts.env.now.instant - LATE_AFTER;
        for _ in 0..most {
            let shares = &self.parts.admission.shares;
            match (shares.first_refused(), shares.first()) {
                (Some(refused), _) => self.evict(Victim::Refused(refused)),
                (None, Some((oldest, since))) if since <= late => {
                    self.evict(Victim::Oldest(oldest));
                }
                (None, None) => match self.parts.admission.first_visitor() {
                    Some(visitor) => self.evict_visitor(visitor),
                    None => return,
                },
                _ => return,
            }
        }
    }
}

impl Parts {
    /// Counts a connection that was let in. `peer` is none while only a balancer knows it.
    pub(super) fn count_in(&mut self, key: Key, place: Place, peer: Option<SocketAddr>) {
        let now = self.env.now.instant;
        self.admission.index_of(place).add(key, &prefixes(peer), now);
    }

    /// A trusted balancer said where a client comes from. Its share and penalty were unknown
    /// when it was let in. False when it is dropped for them.
    pub(super) fn set_peer(
        &mut self,
        key: Key,
        connection: &mut Connection,
        peer: SocketAddr,
    ) -> bool {
        let Some(place) = connection.counted else { return false };
        let dropped = self.move_to(key, place, peer);
        connection.client.set_peer(peer, &self.env.context());
        if let Some(metric) = dropped {
            self.env.counters.increment(metric);
            connection.client.drop_silently(Cause::OverCapacity, &self.env.context());
        }
        dropped.is_none()
    }

    /// A trusted proxy's request said whose a connection is. If that is decided already, it stays:
    /// only one that may still be anybody's is dropped for its prefix.
    pub(super) fn peer_forwarded(
        &mut self,
        key: Key,
        connection: &mut Connection,
        peer: SocketAddr,
    ) {
        let Some(place) = connection.counted else { return };
        let dropped = self.move_to(key, place, peer);
        let client = &mut connection.client;
        if client.end().is_none()
            && client.is_unauthenticated()
            && let Some(metric) = dropped
        {
            self.env.counters.increment(metric);
            client.drop_silently(Cause::OverCapacity, &self.env.context());
        }
    }

    /// Counts a connection as one of `peer`'s from now on, and says what it is to be dropped for.
    fn move_to(&mut self, key: Key, place: Place, peer: SocketAddr) -> Option<Metric> {
        let of = prefixes(Some(peer));
        let draw = self.random.below(DRAWS);
        let dropped = match place {
            Place::Ordinary => self.admission.early_drop(&of, draw, self.env.now.instant),
            Place::Visitor => None,
            Place::Explanation => {
                (self.admission.explained.load(&of) > 0).then_some(Metric::AcceptRefused)
            }
        };
        self.admission.index_of(place).set_prefixes(key, &of);
        dropped
    }

    /// Whether there is room for a client that was just let in; one with an identity needs none.
    pub(super) fn has_room_for(&mut self, connection: &Connection) -> bool {
        let client = &connection.client;
        !client.is_visitor() || self.admission.admit_visitor(&prefixes(client.counted_as()))
    }

    /// Whether a connection may begin its TLS handshake; drops it if not.
    pub(super) fn may_handshake(&mut self, connection: &mut Connection) -> bool {
        let of = prefixes(connection.client.counted_as());
        if self.admission.take_handshake(&of, self.env.now.instant) {
            return true;
        }
        self.env.counters.increment(Metric::TlsRateRefusals);
        connection.client.drop_silently(Cause::OverCapacity, &self.env.context());
        false
    }

    /// Brings the counts in line with a connection that is counted: it may have authenticated,
    /// been refused, or be on its way out.
    pub(super) fn recount(&mut self, key: Key, connection: &mut Connection) {
        let Admission { shares, explained, visitors, ousted, penalties, allowance, .. } =
            &mut self.admission;
        let client = &connection.client;
        let visits = client.is_visitor() && client.is_open() && !connection.pipe.is_ending();
        let shares = match connection.counted {
            Some(Place::Ordinary) => shares,
            Some(Place::Explanation) => explained,
            Some(Place::Visitor) => {
                if !visits {
                    connection.counted = None;
                    visitors.remove(key);
                }
                return;
            }
            None => return,
        };
        let of = prefixes(client.counted_as());
        let now = self.env.now.instant;
        let stays = client.is_unauthenticated() && !connection.pipe.is_ending();
        if stays && client.end().is_none() {
            return;
        }
        let news = if stays {
            shares.refuse(key)
        } else {
            connection.counted = None;
            shares.remove(key) == Some(false)
        };
        if visits {
            connection.counted = Some(Place::Visitor);
            visitors.add(key, &of, now);
            // One whose own server had to be asked first was let in without a look at the room.
            if visitors.len() > allowance.anonymous_max as usize {
                visitors.remove(key);
                ousted.push(key);
            }
        }
        // Without an identity a client speaks neither for nor against where it came from.
        if !news || client.is_visitor() {
            return;
        }
        if has_authenticated(client) {
            penalties.succeeded(&of, &allowance.penalty, now);
        } else if client.end().is_some_and(|end| is_failure(end.cause))
            && penalties.failed(&of, &allowance.penalty, now)
        {
            self.env.counters.increment(Metric::Penalties);
        }
    }

    pub(super) fn set_admission_gauges(&self) {
        let Admission { shares, visitors, penalties, allowance, .. } = &self.admission;
        let set = |metric, value| self.env.counters.set(metric, value);
        let age =
            shares.first().map_or(Duration::ZERO, |(_, since)| self.env.now.instant.since(since));
        set(Metric::UnauthenticatedOldest, age.as_millis() as u64);
        set(Metric::Unauthenticated, shares.len() as u64);
        set(Metric::Visitors, visitors.len() as u64);
        set(Metric::VisitorsMax, allowance.anonymous_max.into());
        set(Metric::UnauthenticatedMax, allowance.unauthenticated_max.into());
        set(Metric::PrefixesUnauthenticated, shares.prefixes() as u64);
        set(Metric::PrefixesFailing, penalties.len() as u64);
    }
}

fn prefixes(peer: Option<SocketAddr>) -> Prefixes {
    peer.map(|peer| Prefixes::of(peer.ip())).unwrap_or_default()
}

/// Whether a client that no longer counts as unauthenticated was let in, if only for a moment.
fn has_authenticated(client: &Client) -> bool {
    client.end().map_or(client.is_open(), |end| end.stage == Stage::Open)
}

/// Whether an end before authentication speaks against where it came from. What the gateway or
/// a backend caused does not, nor does a client that goes by itself, as checks of health do.
const fn is_failure(cause: Cause) -> bool {
    use Cause::*;
    match cause {
        TokenMissing | TokenMalformed | TokenRepeated | BadSignature | TokenExpired => true,
        TokenRevoked | HandshakeRepeated => true,
        TokenNotYetValid | TokenForbidden | ForbiddenOrigin | ForbiddenRoute | CsrfMismatch => true,
        AuthenticationTimedOut | HandshakeTimedOut | TlsFailed | BadRequest => true,
        ProtocolError | InvalidUtf8 | UnsupportedType | TooLarge | RateLimited => true,
        SlowConsumer | Idle => true,
        OverCapacity | Lifetime | GoingAway | BackendUnavailable | BackendClosed => false,
        HealthCheck | Redirected | ClientClosed | ClientGone | Internal => false,
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
