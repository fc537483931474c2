//! When a client must have done what, and what happens when it has not. Activity only writes
//! fields; the deadline is computed from them when the worker asks.

use crate::base::time::Instant;
use crate::connection::context::{Context, Output};
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::dialect::centrifuge;
use crate::protocol::http_upgrade::HttpRefusal;
use crate::protocol::websocket::OpCode;
use crate::settings::{Deadlines, Settings};

use super::phase::{Authenticating, Awaited, CloseProgress, Ended, Open, Phase, Standing};
use super::state::{Client, write_frame};

/// What is due next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deadline {
    /// The end of the lifetime, of a drain, or of what a lost backend's clients are given.
    ScheduledClose,
    TlsHandshake,
    RequestHead,
    /// No progress of what is queued for the client.
    WriteStall,
    Authenticate,
    /// A backend or an endpoint that was asked about the client.
    Decision,
    /// The server behind, which has still to agree.
    Server,
    /// The rest of a message that brings a fresh token.
    Renewal,
    TokenExpiry,
    Idle,
    Ping,
    /// The close frame that waits.
    CloseDelay,
    /// The client's close frame, or its end.
    Linger,
}

/// The earliest of several deadlines; of two at the same instant the first that was named.
struct Earliest(Instant, Deadline);

impl Earliest {
    fn or(self, at: Instant, deadline: Deadline) -> Self {
        if at < self.0 { Earliest(at, deadline) } else { self }
    }

    fn or_maybe(self, at: Option<Instant>, deadline: Deadline) -> Self {
        self.or(at.unwrap_or(Instant::NEVER), deadline)
    }
}

impl Client {
    /// The earliest instant at which [`handle_deadline`](Self::handle_deadline) has work.
    pub fn next_deadline(&self, settings: &Settings) -> Instant {
        self.due(&settings.deadlines).0
    }

    /// Does what is due at `ctx.now`; nothing when nothing is.
    pub fn handle_deadline(&mut self, ctx: &Context<'_>, output: &mut Output) {
        let (at, deadline) = self.due(&ctx.settings.deadlines);
        if at <= ctx.now.instant {
            self.act_on(deadline, ctx, output);
        }
    }

    /// What must happen next, and when. The only place where deadlines are compared.
    pub(super) fn due(&self, deadlines: &Deadlines) -> (Instant, Deadline) {
        let since = self.phase_since.instant();
        let scheduled = Earliest(self.close_scheduled.instant(), Deadline::ScheduledClose);
        let stalled = self.output_pending.then(|| self.progressed + deadlines.write_stall);
        let earliest = match &self.phase {
            Phase::TlsHandshake => scheduled
                .or(since + deadlines.tls_handshake, Deadline::TlsHandshake)
                .or_maybe(stalled, Deadline::WriteStall),
            Phase::RequestHead(_) => scheduled
                .or(since + deadlines.request_head, Deadline::RequestHead)
                .or_maybe(stalled, Deadline::WriteStall),
            Phase::Authenticating(Authenticating { awaited, .. }) => {
                let (decision, server) = match awaited {
                    Awaited::Decision(pending) => (Some(pending.until.instant()), None),
                    Awaited::Server(pending) => (None, Some(pending.until.instant())),
                    Awaited::FirstMessage(_) | Awaited::Acceptance(_) | Awaited::Nothing => {
                        (None, None)
                    }
                };
                scheduled
                    .or_maybe(stalled, Deadline::WriteStall)
                    .or_maybe(server, Deadline::Server)
                    .or(since + deadlines.authenticate, Deadline::Authenticate)
                    .or_maybe(decision, Deadline::Decision)
            }
            Phase::Open(open) => {
                let renewal = open.renewal.as_ref().map(|renewal| renewal.deadline(deadlines));
                scheduled
                    .or_maybe(stalled, Deadline::WriteStall)
                    .or_maybe(renewal, Deadline::Renewal)
                    .or(open.expires.instant(), Deadline::TokenExpiry)
                    .or(self.received + deadlines.idle, Deadline::Idle)
                    .or(self.next_ping(open, deadlines), Deadline::Ping)
            }
            Phase::Ended(ended) => self.due_after_end(ended, stalled, deadlines),
        };
        (earliest.0, earliest.1)
    }

    fn due_after_end(
        &self,
        ended: &Ended,
        stalled: Option<Instant>,
        deadlines: &Deadlines,
    ) -> Earliest {
        let lingered = self.phase_since + deadlines.linger;
        let at_latest = self.refused_at_latest(deadlines);
        // What was queued for an identity that is over is not for the client to read on.
        let stalled = stalled.map(|stalled| match ended.end.cause {
            Cause::TokenExpired | Cause::TokenRevoked => stalled.min(lingered),
            _ => stalled,
        });
        match (&ended.progress, ended.standing) {
            (CloseProgress::Delayed(delayed), Standing::Refused) => {
                Earliest(delayed.until.instant().min(at_latest), Deadline::CloseDelay)
            }
            (CloseProgress::Delayed(delayed), Standing::Leaving) => {
                Earliest(stalled.unwrap_or(Instant::NEVER), Deadline::WriteStall)
                    .or(delayed.until.instant(), Deadline::CloseDelay)
            }
            // The socket is being closed: nothing is waited for.
            (CloseProgress::Dropped { .. }, Standing::Leaving) => {
                Earliest(Instant::NEVER, Deadline::Linger)
            }
            (_, Standing::Refused) => Earliest(lingered.min(at_latest), Deadline::Linger),
            (CloseProgress::Said { lingering: false, .. }, Standing::Leaving) => match stalled {
                Some(stalled) => Earliest(stalled, Deadline::WriteStall),
                None => Earliest(lingered, Deadline::Linger),
            },
            (_, Standing::Leaving) => Earliest(lingered, Deadline::Linger),
        }
    }

    /// When an open client is pinged: after a silence, once, and, where it was promised to hear
    /// from us, when nothing went to it for that long. What is on its way, or halfway there,
    /// counts as heard.
    fn next_ping(&self, open: &Open, deadlines: &Deadlines) -> Instant {
        let silence = self.received + deadlines.ping_interval;
        let silence = if open.ping_sent { Instant::NEVER } else { silence };
        if open.pings_promised && !self.output_pending && !open.to_client_unfinished {
            silence.min(self.progressed + deadlines.ping_interval)
        } else {
            silence
        }
    }

    fn act_on(&mut self, deadline: Deadline, ctx: &Context<'_>, output: &mut Output) {
        let count = |metric| ctx.counters.increment(metric);
        match deadline {
            Deadline::ScheduledClose => self.close(self.close_cause, ctx, output),
            Deadline::TlsHandshake => {
                count(Metric::DeadlineTls);
                self.drop_silently(Cause::HandshakeTimedOut, ctx);
            }
            Deadline::RequestHead => {
                count(Metric::DeadlineHead);
                match &self.phase {
                    Phase::RequestHead(Some(_)) => {
                        self.refuse_http(HttpRefusal::HeadTimedOut, ctx, output);
                    }
                    _ => self.drop_silently(Cause::HandshakeTimedOut, ctx),
                }
            }
            Deadline::WriteStall => {
                count(Metric::DeadlineWrite);
                self.drop_silently(Cause::SlowConsumer, ctx);
            }
            Deadline::Authenticate | Deadline::Renewal => {
                count(Metric::DeadlineAuthenticate);
                self.close(Cause::AuthenticationTimedOut, ctx, output);
            }
            Deadline::Decision => {
                count(Metric::DeadlineVerdict);
                self.close(Cause::BackendUnavailable, ctx, output);
            }
            Deadline::Server => self.close(Cause::BackendUnavailable, ctx, output),
            Deadline::TokenExpiry => {
                count(Metric::DeadlineExpiry);
                self.close(Cause::TokenExpired, ctx, output);
            }
            Deadline::Idle => {
                count(Metric::DeadlineIdle);
                self.close(Cause::Idle, ctx, output);
            }
            Deadline::Ping => self.ping(ctx, output),
            Deadline::CloseDelay => self.end_delay(ctx, output),
            Deadline::Linger => {
                count(Metric::DeadlineLinger);
                self.drop_ended(true);
            }
        }
    }

    fn ping(&mut self, ctx: &Context<'_>, output: &mut Output) {
        let silent = self.received + ctx.settings.deadlines.ping_interval <= ctx.now.instant;
        let Some(open) = self.open_mut() else { return };
        if silent && !open.ping_sent {
            open.ping_sent = true;
            let passes_controls = open.passes_controls;
            ctx.counters.increment(Metric::PingsSent);
            let own = self.own_ping();
            let payload: &[u8] = if passes_controls { &own } else { &[] };
            write_frame(OpCode::Ping, payload, &mut output.answers);
        }
        let Some(open) = self.open_mut() else { return };
        if open.pings_promised && !open.to_client_unfinished {
            write_frame(OpCode::Text, centrifuge::PING.as_bytes(), &mut output.answers);
        }
    }
}
