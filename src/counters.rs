//! One table of every metric. The exposition, the live page, the dashboard's check and the
//! alerts' check all derive from it.
//!
//! Each worker owns one [`Counters`] block and is its only writer, so an update is a plain load
//! and store; the control thread reads all blocks once a second and sums them. What the settings
//! name (a route, a listener) has numbers of its own beside those of the whole: see [`NamedTable`].

#[macro_use]
mod description;
mod named;

pub use description::{Description, MetricKind};
pub use named::{NAMES_MAX, NamedMetric, NamedTable, OTHER, Row};

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::protocol::cause::Cause;
use crate::protocol::close_detail::CloseDetail;

use description::bump;

metrics! {
    /// Every metric of a worker as a whole but the closes by cause.
    Metric, DESCRIPTIONS, &[];
    Accepted, Counter, "portcullis_connections_accepted_total", "Connections accepted.";
    AcceptFailed, Counter, "portcullis_accept_errors_total", "Accepts that failed, for whatever reason.";
    AcceptExhausted, Counter, "portcullis_accept_exhausted_total", "Accepts that failed because descriptors or memory ran out.";
    AcceptRefused, Counter, "portcullis_connections_over_cap_total", "Connections reset at accept because a cap was reached.";
    EarlyDropShare, Counter, "portcullis_early_drops_total" {"reason": "share"}, "Connections reset at accept under pressure, because their address prefix had used its share or has a penalty.";
    EarlyDropPenalty, Counter, "portcullis_early_drops_total" {"reason": "penalty"}, "Connections reset at accept under pressure, because their address prefix had used its share or has a penalty.";
    EvictedRefused, Counter, "portcullis_evictions_total" {"kind": "refused"}, "Unauthenticated connections reset to make room: those already refused, or the oldest of the address prefix with the most.";
    EvictedOldest, Counter, "portcullis_evictions_total" {"kind": "oldest"}, "Unauthenticated connections reset to make room: those already refused, or the oldest of the address prefix with the most.";
    TlsRateRefusals, Counter, "portcullis_tls_rate_refusals_total", "Connections reset after their ClientHello because too many TLS handshakes began in that second.";
    Penalties, Counter, "portcullis_penalties_total", "Penalties imposed on address prefixes after repeated failures.";
    MemoryRefusals, Counter, "portcullis_memory_refusals_total", "Connections reset at accept because memory was short.";
    MemoryCloses, Counter, "portcullis_memory_closes_total", "Slow readers reset because memory was short.";
    EvictedVisitor, Counter, "portcullis_visitors_evicted_total", "Visitors closed to make room: for others of lighter address prefixes, or when places or memory ran short.";
    Visitors, Gauge, "portcullis_visitors", "Open clients without an identity that count towards limits.anonymous_max.";
    VisitorsMax, Gauge, "portcullis_visitors_max", "Sum of the workers' shares of limits.anonymous_max.";
    Unauthenticated, Gauge, "portcullis_unauthenticated_connections", "Connections that count towards limits.unauthenticated_max.";
    UnauthenticatedMax, Gauge, "portcullis_unauthenticated_connections_max", "Sum of the workers' shares of limits.unauthenticated_max.";
    UnauthenticatedOldest, Peak / 1_000, "portcullis_unauthenticated_oldest_seconds", "Age of the oldest unauthenticated connection, in seconds.";
    PrefixesUnauthenticated, Gauge, "portcullis_prefixes" {"table": "unauthenticated"}, "Address prefixes tracked by all workers.";
    PrefixesFailing, Gauge, "portcullis_prefixes" {"table": "failing"}, "Address prefixes tracked by all workers.";
    StageTls, Gauge, "portcullis_connections" {"stage": "tls_handshake"}, "Connections by stage.";
    StageHead, Gauge, "portcullis_connections" {"stage": "request_head"}, "Connections by stage.";
    StageAuthenticating, Gauge, "portcullis_connections" {"stage": "authenticating"}, "Connections by stage.";
    StageOpen, Gauge, "portcullis_connections" {"stage": "open"}, "Connections by stage.";
    StageRefused, Gauge, "portcullis_connections" {"stage": "refused"}, "Connections by stage.";
    StageClosing, Gauge, "portcullis_connections" {"stage": "closing"}, "Connections by stage.";
    TlsHandshakes, Counter, "portcullis_tls_handshakes_total", "TLS handshakes completed.";
    Upgrades, Counter, "portcullis_upgrades_total", "Requests answered with 101.";
    TokensAccepted, Counter, "portcullis_tokens_accepted_total", "Tokens verified and accepted.";
    TokensRefused, Counter, "portcullis_tokens_refused_total", "Tokens refused or missing.";
    RevokedRefused, Counter, "portcullis_revoked_total" {"when": "connecting"}, "Clients refused or closed because they were revoked.";
    RevokedClosed, Counter, "portcullis_revoked_total" {"when": "open"}, "Clients refused or closed because they were revoked.";
    ReauthAccepted, Counter, "portcullis_reauthentications_total" {"result": "accepted"}, "Fresh tokens presented on open connections.";
    ReauthRefused, Counter, "portcullis_reauthentications_total" {"result": "refused"}, "Fresh tokens presented on open connections.";
    ExpirySet, Counter, "portcullis_expiries_set_total", "Expiries that backends set on open sessions.";
    DeadTokenHits, Counter, "portcullis_dead_token_hits_total", "Tokens refused from memory, without verifying them again.";
    VerdictsAccepted, Counter, "portcullis_verdicts_total" {"outcome": "accepted"}, "Auth requests sent to backends and HTTP endpoints, by outcome.";
    VerdictsRefused, Counter, "portcullis_verdicts_total" {"outcome": "refused"}, "Auth requests sent to backends and HTTP endpoints, by outcome.";
    VerdictsUnavailable, Counter, "portcullis_verdicts_total" {"outcome": "unavailable"}, "Auth requests sent to backends and HTTP endpoints, by outcome.";
    VerdictsTimedOut, Counter, "portcullis_verdicts_total" {"outcome": "timed_out"}, "Auth requests sent to backends and HTTP endpoints, by outcome.";
    VerdictsWithdrawn, Counter, "portcullis_verdicts_total" {"outcome": "withdrawn"}, "Auth requests sent to backends and HTTP endpoints, by outcome.";
    VerdictsUnasked, Counter, "portcullis_verdicts_unasked_total", "Clients refused because no auth request could be sent: no backend, or too many requests waiting.";
    VerdictsAwaited, Gauge, "portcullis_verdicts_awaited", "Auth requests that wait for an answer.";
    VerdictWithin5Ms, Histogram, "portcullis_verdict_seconds_bucket" {"le": "0.005"}, "Time from an auth request to its answer, in seconds.";
    VerdictWithin25Ms, Histogram, "portcullis_verdict_seconds_bucket" {"le": "0.025"}, "Time from an auth request to its answer, in seconds.";
    VerdictWithin100Ms, Histogram, "portcullis_verdict_seconds_bucket" {"le": "0.1"}, "Time from an auth request to its answer, in seconds.";
    VerdictWithin500Ms, Histogram, "portcullis_verdict_seconds_bucket" {"le": "0.5"}, "Time from an auth request to its answer, in seconds.";
    VerdictWithin2S, Histogram, "portcullis_verdict_seconds_bucket" {"le": "2"}, "Time from an auth request to its answer, in seconds.";
    VerdictWithinAny, Histogram, "portcullis_verdict_seconds_bucket" {"le": "+Inf"}, "Time from an auth request to its answer, in seconds.";
    VerdictMicros, Histogram / 1_000_000, "portcullis_verdict_seconds_sum", "Time from an auth request to its answer, in seconds.";
    VerdictCount, Histogram, "portcullis_verdict_seconds_count", "Time from an auth request to its answer, in seconds.";
    MessagesFromClients, Counter, "portcullis_messages_total" {"direction": "from_client"}, "Whole messages relayed.";
    MessagesToClients, Counter, "portcullis_messages_total" {"direction": "to_client"}, "Whole messages relayed.";
    BytesFromClients, Counter, "portcullis_message_bytes_total" {"direction": "from_client"}, "Payload bytes relayed.";
    BytesToClients, Counter, "portcullis_message_bytes_total" {"direction": "to_client"}, "Payload bytes relayed.";
    ClosesPaced, Counter, "portcullis_closes_paced_total", "Close frames sent after the dialect's close delay.";
    PingsSent, Counter, "portcullis_pings_sent_total", "Pings sent to clients.";
    DeadlineTls, Counter, "portcullis_deadline_closes_total" {"stage": "tls_handshake"}, "Connections ended by a deadline, by stage.";
    DeadlineHead, Counter, "portcullis_deadline_closes_total" {"stage": "request_head"}, "Connections ended by a deadline, by stage.";
    DeadlineAuthenticate, Counter, "portcullis_deadline_closes_total" {"stage": "authenticating"}, "Connections ended by a deadline, by stage.";
    DeadlineVerdict, Counter, "portcullis_deadline_closes_total" {"stage": "verdict"}, "Connections ended by a deadline, by stage.";
    DeadlineLinger, Counter, "portcullis_deadline_closes_total" {"stage": "linger"}, "Connections ended by a deadline, by stage.";
    DeadlineIdle, Counter, "portcullis_deadline_closes_total" {"stage": "idle"}, "Connections ended by a deadline, by stage.";
    DeadlineWrite, Counter, "portcullis_deadline_closes_total" {"stage": "write_stall"}, "Connections ended by a deadline, by stage.";
    DeadlineExpiry, Counter, "portcullis_deadline_closes_total" {"stage": "expiry"}, "Connections ended by a deadline, by stage.";
    ReceiveStarved, Counter, "portcullis_receive_starved_total", "Receives that found no buffer free.";
    SendStarved, Counter, "portcullis_send_starved_total", "Sends delayed because no send slot was free.";
    StaleCompletions, Counter, "portcullis_stale_completions_total", "Completions for sockets that no longer exist.";
    ReadsPaused, Gauge, "portcullis_reads_paused", "Connections not read because their backend gave no credit.";
    StalledInputBytes, Gauge, "portcullis_stalled_input_bytes", "Input bytes waiting for a backend's credit.";
    QueuedBytes, Gauge, "portcullis_queued_bytes", "Bytes waiting to be sent to clients and backends.";
    BuffersFree, Gauge, "portcullis_receive_buffers_free", "Receive buffers free for the kernel.";
    LinksReady, Gauge, "portcullis_links" {"state": "ready"}, "Links to backends by state.";
    LinksDown, Gauge, "portcullis_links" {"state": "down"}, "Links to backends by state.";
    LinkConnects, Counter, "portcullis_link_connects_total", "Link handshakes completed.";
    LinkFailures, Counter, "portcullis_link_failures_total", "Link attempts that failed, and links lost.";
    LinkStaleFrames, Counter, "portcullis_link_stale_frames_total", "Link frames for sessions that are not open.";
    LinkViolations, Counter, "portcullis_link_violations_total", "Links dropped because the backend broke the protocol.";
    RevocationsIgnored, Counter, "portcullis_link_revocations_ignored_total", "REVOKE frames of backends that may not revoke: the backend's `revoke` setting does not allow it, or the link has no secret.";
    UpstreamsReady, Gauge, "portcullis_upstreams" {"state": "ready"}, "WebSocket servers behind the gateway by state, once for each worker.";
    UpstreamsResting, Gauge, "portcullis_upstreams" {"state": "resting"}, "WebSocket servers behind the gateway by state, once for each worker.";
    UpstreamConnections, Gauge, "portcullis_upstream_connections", "Connections to WebSocket servers behind the gateway, those included that are being made.";
    UpstreamDials, Counter, "portcullis_upstream_dials_total", "Connections begun to WebSocket servers behind the gateway.";
    UpstreamConnects, Counter, "portcullis_upstream_connects_total", "Handshakes that WebSocket servers behind the gateway answered with a proper 101.";
    UpstreamFailures, Counter, "portcullis_upstream_failures_total", "Handshakes with WebSocket servers that failed: no connection, no answer in time, or a broken one.";
    UpstreamPortsExhausted, Counter, "portcullis_upstream_ports_exhausted_total", "Handshakes with WebSocket servers that failed because no local port was free.";
    UpstreamRefusals, Counter, "portcullis_upstream_refusals_total", "Handshakes that WebSocket servers answered with another status than 101.";
    UpstreamMessageRefusals, Counter, "portcullis_upstream_message_refusals_total", "Messages by which applications behind the gateway refused clients that they judge themselves.";
    UpstreamMessagesHeld, Counter, "portcullis_upstream_messages_held_total", "Messages of clients that an application had not accepted, held back because its answer would have passed for an acceptance.";
    UpstreamViolations, Counter, "portcullis_upstream_violations_total", "Connections closed because a WebSocket server broke the protocol.";
    UpstreamStalls, Counter, "portcullis_upstream_stalls_total", "Connections closed because a WebSocket server read nothing for deadlines.write_stall.";
    LinkRttWithin1Ms, Histogram, "portcullis_link_rtt_seconds_bucket" {"le": "0.001"}, "Round trip of link pings, in seconds.";
    LinkRttWithin5Ms, Histogram, "portcullis_link_rtt_seconds_bucket" {"le": "0.005"}, "Round trip of link pings, in seconds.";
    LinkRttWithin25Ms, Histogram, "portcullis_link_rtt_seconds_bucket" {"le": "0.025"}, "Round trip of link pings, in seconds.";
    LinkRttWithin100Ms, Histogram, "portcullis_link_rtt_seconds_bucket" {"le": "0.1"}, "Round trip of link pings, in seconds.";
    LinkRttWithin500Ms, Histogram, "portcullis_link_rtt_seconds_bucket" {"le": "0.5"}, "Round trip of link pings, in seconds.";
    LinkRttWithin2S, Histogram, "portcullis_link_rtt_seconds_bucket" {"le": "2"}, "Round trip of link pings, in seconds.";
    LinkRttWithinAny, Histogram, "portcullis_link_rtt_seconds_bucket" {"le": "+Inf"}, "Round trip of link pings, in seconds.";
    LinkRttMicros, Histogram / 1_000_000, "portcullis_link_rtt_seconds_sum", "Round trip of link pings, in seconds.";
    LinkRttCount, Histogram, "portcullis_link_rtt_seconds_count", "Round trip of link pings, in seconds.";
    SessionsOpened, Counter, "portcullis_sessions_opened_total", "Sessions opened on links.";
    LogLinesDropped, Counter, "portcullis_close_lines_dropped_total", "Close lines dropped by the log's rate limit.";
    Ticks, Counter, "portcullis_worker_ticks_total", "Iterations of the worker loops.";
    TickLongest, Peak / 1_000_000, "portcullis_worker_tick_longest_seconds" {"phase": "all"}, "Longest time that a worker spent in one part of one loop iteration within the last one to two minutes, system calls aside, in seconds.";
    TickLongestCommands, Peak / 1_000_000, "portcullis_worker_tick_longest_seconds" {"phase": "commands"}, "Longest time that a worker spent in one part of one loop iteration within the last one to two minutes, system calls aside, in seconds.";
    TickLongestTimers, Peak / 1_000_000, "portcullis_worker_tick_longest_seconds" {"phase": "timers"}, "Longest time that a worker spent in one part of one loop iteration within the last one to two minutes, system calls aside, in seconds.";
    TickLongestSweep, Peak / 1_000_000, "portcullis_worker_tick_longest_seconds" {"phase": "sweep"}, "Longest time that a worker spent in one part of one loop iteration within the last one to two minutes, system calls aside, in seconds.";
    TickLongestDeferredTls, Peak / 1_000_000, "portcullis_worker_tick_longest_seconds" {"phase": "deferred_tls"}, "Longest time that a worker spent in one part of one loop iteration within the last one to two minutes, system calls aside, in seconds.";
    TickLongestFlush, Peak / 1_000_000, "portcullis_worker_tick_longest_seconds" {"phase": "flush"}, "Longest time that a worker spent in one part of one loop iteration within the last one to two minutes, system calls aside, in seconds.";
    TickLongestCompletions, Peak / 1_000_000, "portcullis_worker_tick_longest_seconds" {"phase": "completions"}, "Longest time that a worker spent in one part of one loop iteration within the last one to two minutes, system calls aside, in seconds.";
    Completions, Counter, "portcullis_worker_completions_total", "Completions handled.";
}

metrics! {
    /// The metrics of each listener.
    ListenerMetric, LISTENER_METRICS, &["listener"];
    Accepted, Counter, "portcullis_listener_accepted_total", "Connections accepted, by listener.";
    Refused, Counter, "portcullis_listener_refused_total", "Connections reset at accept, for a cap, a share, a penalty or want of memory, by listener.";
    Connections, Gauge, "portcullis_listener_connections", "Connections in any stage, by listener.";
}

metrics! {
    /// The metrics of each route.
    RouteMetric, ROUTE_METRICS, &["route"];
    SessionsOpened, Counter, "portcullis_route_sessions_opened_total", "Sessions opened, by route.";
    Connections, Gauge, "portcullis_route_connections", "Connections whose session was opened, those that are closing included, by route.";
    MessagesFromClients, Counter, "portcullis_route_messages_total" {"direction": "from_client"}, "Whole messages relayed, by route.";
    MessagesToClients, Counter, "portcullis_route_messages_total" {"direction": "to_client"}, "Whole messages relayed, by route.";
    BytesFromClients, Counter, "portcullis_route_message_bytes_total" {"direction": "from_client"}, "Payload bytes relayed, by route.";
    BytesToClients, Counter, "portcullis_route_message_bytes_total" {"direction": "to_client"}, "Payload bytes relayed, by route.";
}

metrics! {
    /// The metrics of each endpoint of a backend.
    EndpointMetric, ENDPOINT_METRICS, &["backend", "endpoint"];
    LinksReady, Gauge, "portcullis_endpoint_links" {"state": "ready"}, "Links by endpoint and state, one for each worker.";
    LinksDown, Gauge, "portcullis_endpoint_links" {"state": "down"}, "Links by endpoint and state, one for each worker.";
    Sessions, Gauge, "portcullis_endpoint_sessions", "Open sessions, and auth requests that wait for the backend, by endpoint; of a WebSocket server its connections, those included that are being made.";
    Connects, Counter, "portcullis_endpoint_connects_total", "Handshakes completed, of links and with WebSocket servers, by endpoint.";
    Failures, Counter, "portcullis_endpoint_failures_total", "Link attempts that failed, links lost, and failures of a WebSocket server before its answer, by endpoint.";
    Resting, Gauge, "portcullis_endpoint_resting", "Workers that leave a WebSocket server alone after failures in a row, by endpoint.";
    PingsUnanswered, Counter, "portcullis_endpoint_pings_unanswered_total", "Pings that a backend left unanswered for deadlines.link_ping, by endpoint.";
    CreditStalls, Counter, "portcullis_endpoint_credit_stalls_total", "Times that a backend gave no credit for deadlines.link_stall while clients waited to send, by endpoint.";
}

impl NamedMetric for EndpointMetric {
    const LABELS: &'static [&'static str] = &["backend", "endpoint"];
    const TABLE: &'static [Description] = ENDPOINT_METRICS;
    const CLOSES: Option<(&'static str, &'static str)> = None;

    fn column(self) -> usize {
        self as usize
    }
}

impl NamedMetric for ListenerMetric {
    const LABELS: &'static [&'static str] = &["listener"];
    const TABLE: &'static [Description] = LISTENER_METRICS;
    const CLOSES: Option<(&'static str, &'static str)> = Some((
        "portcullis_listener_closes_total",
        "Connections that ended before their route was known, by listener and cause.",
    ));

    fn column(self) -> usize {
        self as usize
    }
}

impl NamedMetric for RouteMetric {
    const LABELS: &'static [&'static str] = &["route"];
    const TABLE: &'static [Description] = ROUTE_METRICS;
    const CLOSES: Option<(&'static str, &'static str)> = Some((
        "portcullis_route_closes_total",
        "Connections that ended after their route was known, by route and cause.",
    ));

    fn column(self) -> usize {
        self as usize
    }
}

/// The cells of one histogram.
#[derive(Clone, Copy)]
pub struct Histogram {
    /// Each bucket with its upper bound in microseconds, the last without one.
    buckets: &'static [(Metric, u64)],
    micros: Metric,
    count: Metric,
}

/// Time from an auth request to its answer.
pub const VERDICT_TIME: Histogram = Histogram {
    buckets: &[
        (Metric::VerdictWithin5Ms, 5_000),
        (Metric::VerdictWithin25Ms, 25_000),
        (Metric::VerdictWithin100Ms, 100_000),
        (Metric::VerdictWithin500Ms, 500_000),
        (Metric::VerdictWithin2S, 2_000_000),
        (Metric::VerdictWithinAny, u64::MAX),
    ],
    micros: Metric::VerdictMicros,
    count: Metric::VerdictCount,
};

/// Round trip of link pings.
pub const LINK_RTT: Histogram = Histogram {
    buckets: &[
        (Metric::LinkRttWithin1Ms, 1_000),
        (Metric::LinkRttWithin5Ms, 5_000),
        (Metric::LinkRttWithin25Ms, 25_000),
        (Metric::LinkRttWithin100Ms, 100_000),
        (Metric::LinkRttWithin500Ms, 500_000),
        (Metric::LinkRttWithin2S, 2_000_000),
        (Metric::LinkRttWithinAny, u64::MAX),
    ],
    micros: Metric::LinkRttMicros,
    count: Metric::LinkRttCount,
};

const METRICS: usize = DESCRIPTIONS.len();
const CAUSES: usize = Cause::ALL.len();
const CLOSES_NAME: &str = "portcullis_closes_total";
const CLOSES_HELP: &str = "Connections that ended, by cause.";
const DETAILS_NAME: &str = "portcullis_close_details_total";
const DETAILS_HELP: &str = "Connections that ended for a cause with many reasons, by reason: bad requests, failed TLS handshakes, wrong PROXY headers, tokens of the far future.";

/// One worker's block of numbers. Aligned so that two workers never share a cache line.
#[repr(align(128))]
pub struct Counters {
    metrics: [AtomicU64; METRICS],
    closes: [AtomicU64; CAUSES],
    details: [AtomicU64; CloseDetail::COUNT],
    /// Those of each listener.
    pub listeners: NamedTable<ListenerMetric>,
    /// Those of each route.
    pub routes: NamedTable<RouteMetric>,
    /// Those of each endpoint of a backend.
    pub endpoints: NamedTable<EndpointMetric>,
}

impl Default for Counters {
    fn default() -> Self {
        Counters {
            metrics: [const { AtomicU64::new(0) }; METRICS],
            closes: [const { AtomicU64::new(0) }; CAUSES],
            details: [const { AtomicU64::new(0) }; CloseDetail::COUNT],
            listeners: NamedTable::default(),
            routes: NamedTable::default(),
            endpoints: NamedTable::default(),
        }
    }
}

impl Counters {
    /// Adds to a counter or gauge. Only the owning worker may call this.
    pub fn add(&self, metric: Metric, count: u64) {
        bump(&self.metrics[metric as usize], count);
    }

    /// Adds one.
    pub fn increment(&self, metric: Metric) {
        self.add(metric, 1);
    }

    /// Takes one from a gauge.
    pub fn decrement(&self, metric: Metric) {
        let cell = &self.metrics[metric as usize];
        let value = cell.load(Relaxed);
        debug_assert!(value > 0, "gauge {metric:?} below zero");
        cell.store(value.saturating_sub(1), Relaxed);
    }

    /// Sets a gauge.
    pub fn set(&self, metric: Metric, value: u64) {
        self.metrics[metric as usize].store(value, Relaxed);
    }

    /// Adds one observation to a histogram.
    pub fn observe(&self, histogram: Histogram, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        for (bucket, _) in histogram.buckets.iter().filter(|(_, bound)| micros <= *bound) {
            self.increment(*bucket);
        }
        self.increment(histogram.count);
        self.add(histogram.micros, micros);
    }

    /// Counts a connection that ended.
    pub fn closed(&self, cause: Cause, detail: Option<CloseDetail>) {
        bump(&self.closes[cause as usize], 1);
        if let Some(index) = detail.and_then(CloseDetail::index) {
            bump(&self.details[index], 1);
        }
    }

    /// One metric's value.
    pub fn value(&self, metric: Metric) -> u64 {
        self.metrics[metric as usize].load(Relaxed)
    }

    /// How many connections ended for `cause`.
    pub fn closes(&self, cause: Cause) -> u64 {
        self.closes[cause as usize].load(Relaxed)
    }

    /// Sets every gauge to zero: for a worker that took over a dead one's block.
    pub fn clear_gauges(&self) {
        for (cell, description) in self.metrics.iter().zip(DESCRIPTIONS) {
            if matches!(description.kind, MetricKind::Gauge | MetricKind::Peak) {
                cell.store(0, Relaxed);
            }
        }
        self.listeners.clear_gauges();
        self.routes.clear_gauges();
        self.endpoints.clear_gauges();
    }

    /// Every series of the things that the settings name: what it is, the values of its labels
    /// and its own.
    pub fn each_named(&self, mut take: impl FnMut(Description, &[String], u64)) {
        self.listeners.each(&mut take);
        self.routes.each(&mut take);
        self.endpoints.each(&mut take);
    }

    /// Every metric of the worker as a whole with its value, closes by cause and detail last.
    pub fn all(&self) -> impl Iterator<Item = (Description, u64)> {
        let plain = DESCRIPTIONS.iter().copied().zip(self.metrics.iter());
        let closes = Cause::ALL.iter().map(|cause| close_description(*cause));
        let details = CloseDetail::all().map(detail_description).zip(self.details.iter());
        let closes = closes.zip(self.closes.iter());
        plain.chain(closes).chain(details).map(|(d, cell)| (d, cell.load(Relaxed)))
    }
}

/// What every entry of [`Counters::all`] is, in the same order.
pub fn descriptions() -> impl Iterator<Item = Description> {
    let closes = Cause::ALL.iter().map(|cause| close_description(*cause));
    DESCRIPTIONS.iter().copied().chain(closes).chain(CloseDetail::all().map(detail_description))
}

/// What every series of [`Counters::each_named`] can be.
pub fn named_descriptions() -> impl Iterator<Item = Description> {
    let listeners = named::descriptions::<ListenerMetric>();
    let routes = named::descriptions::<RouteMetric>();
    listeners.chain(routes).chain(named::descriptions::<EndpointMetric>())
}

fn close_description(cause: Cause) -> Description {
    Description {
        name: CLOSES_NAME,
        label: Some(("cause", cause.label())),
        names: &[],
        kind: MetricKind::Counter,
        per_unit: 1,
        help: CLOSES_HELP,
    }
}

fn detail_description(detail: CloseDetail) -> Description {
    Description {
        name: DETAILS_NAME,
        label: Some(("detail", detail.label())),
        names: &[],
        kind: MetricKind::Counter,
        per_unit: 1,
        help: DETAILS_HELP,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::protocol::http_upgrade::HttpRefusal;

    #[test]
    fn names_are_unique_with_their_label_and_well_formed() {
        let mut seen = HashMap::new();
        for description in descriptions().chain(named_descriptions()) {
            assert!(description.name.starts_with("portcullis_"), "{}", description.name);
            let counter = description.kind == MetricKind::Counter;
            assert_eq!(description.name.ends_with("_total"), counter, "{}", description.name);
            let earlier = seen.insert((description.name, description.label), description.kind);
            assert_eq!(earlier, None, "{} twice", description.name);
        }
    }

    #[test]
    fn observations_land_in_every_bucket_that_holds_them() {
        for histogram in [VERDICT_TIME, LINK_RTT] {
            assert!(histogram.buckets.is_sorted_by_key(|(_, bound)| *bound));
            for (bucket, bound) in histogram.buckets {
                // The label says in seconds what the table says in microseconds.
                let (_, le) = DESCRIPTIONS[*bucket as usize].label.expect("a bound");
                let seconds: f64 = le.parse().expect("a number");
                let micros =
                    if seconds.is_finite() { (seconds * 1e6).round() as u64 } else { u64::MAX };
                assert_eq!(micros, *bound, "{bucket:?}");
            }
        }
        let counters = Counters::default();
        for millis in [5, 30, 3_000] {
            counters.observe(VERDICT_TIME, Duration::from_millis(millis));
        }
        let buckets = VERDICT_TIME.buckets.iter().map(|(bucket, _)| counters.value(*bucket));
        assert_eq!(buckets.collect::<Vec<_>>(), [1, 1, 2, 2, 2, 3]);
        assert_eq!(counters.value(Metric::VerdictCount), 3);
        assert_eq!(counters.value(Metric::VerdictMicros), 3_035_000);
        counters.clear_gauges();
        assert_eq!(counters.value(Metric::VerdictCount), 3, "only gauges start again");
    }

    #[test]
    fn values_come_out_under_their_description() {
        let counters = Counters::default();
        counters.add(Metric::Accepted, 3);
        counters.closed(Cause::Idle, None);
        let detail = CloseDetail::Http(HttpRefusal::HeadTooLarge);
        counters.closed(Cause::BadRequest, Some(detail));
        counters.set(Metric::LinksReady, 2);
        let value = |name: &str, label: Option<(&str, &str)>| {
            counters.all().find(|(d, _)| d.name == name && d.label == label).map(|(_, v)| v)
        };
        assert_eq!(value("portcullis_connections_accepted_total", None), Some(3));
        assert_eq!(value(CLOSES_NAME, Some(("cause", "idle"))), Some(1));
        assert_eq!(value(CLOSES_NAME, Some(("cause", "bad_request"))), Some(1));
        assert_eq!(value(DETAILS_NAME, Some(("detail", "head_too_large"))), Some(1));
        assert_eq!(value(DETAILS_NAME, Some(("detail", "too_many_fields"))), Some(0));
        counters.clear_gauges();
        assert_eq!(value("portcullis_links", Some(("state", "ready"))), Some(0));
        assert_eq!(counters.value(Metric::Accepted), 3);
    }
}
