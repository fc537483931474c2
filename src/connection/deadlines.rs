//! When a client must have done what, and what happens when it has not. Activity only writes
//! fields; the deadline is computed from them when the worker asks.

use std::time::Duration;

use crate::base::time::Instant;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::dialect::centrifuge;
use crate::protocol::http_upgrade::HttpRefusal;
use crate::protocol::websocket::OpCode;
use crate::settings::{Deadlines, Settings};

use super::client::{Client, CloseProgress, SocketAction, write_frame};
use super::stage::Stage;
use super::{Context, Output};

/// What a client that used up every stage still gets to read its refusal.
const REFUSED_GRACE: Duration = Duration::from_millis(100);

impl Client {
    /// The earliest instant at which [`handle_deadline`](Self::handle_deadline) has work.
    pub fn next_deadline(&self, settings: &Settings) -> Instant {
        let deadlines = &settings.deadlines;
        let stage = match self.stage {
            Stage::TlsHandshake => self.stage_since + deadlines.tls_handshake,
            Stage::RequestHead => self.stage_since + deadlines.request_head,
            Stage::Authenticating => {
                let decision = self.asked().map_or(Instant::NEVER, |asked| asked.until);
                decision.min(self.stage_since + deadlines.authenticate)
            }
            Stage::Refused if self.is_paced() => {
                return self.close_at.instant().min(self.refused_at_latest(deadlines));
            }
            Stage::Refused => return self.refused_until(deadlines),
            Stage::Closing if self.is_paced() => self.close_at.instant(),
            Stage::Closing
                if self.output_pending && self.close_progress != CloseProgress::Lingering =>
            {
                return self.progressed + deadlines.write_stall;
            }
            Stage::Closing => return self.stage_since + deadlines.linger,
            Stage::Open => {
                let silence =
                    if self.pings.is_sent() { deadlines.idle } else { deadlines.ping_interval };
                let idle = self.received + silence;
                let renewal = self.renewal().map(|renewal| renewal.deadline(deadlines));
                let renewal = renewal.unwrap_or(Instant::NEVER);
                idle.min(self.expires.instant()).min(self.promised_ping(deadlines)).min(renewal)
            }
        };
        let stalled =
            if self.output_pending { self.progressed + deadlines.write_stall } else { stage };
        stage.min(stalled).min(self.close_at.instant())
    }

    /// Does what is due at `ctx.now`; nothing when nothing is.
    pub fn handle_deadline(&mut self, ctx: &Context<'_>, output: &mut Output) {
        let now = ctx.now.instant;
        if now < self.next_deadline(ctx.settings) {
            return;
        }
        let deadlines = &ctx.settings.deadlines;
        match self.stage {
            Stage::Refused | Stage::Closing
                if self.is_paced() && !self.is_stalled(deadlines, now) =>
            {
                self.end_pace(ctx, output);
            }
            Stage::Refused | Stage::Closing => {
                let stalled =
                    self.output_pending && self.close_progress != CloseProgress::Lingering;
                let metric = if stalled && self.stage == Stage::Closing {
                    Metric::DeadlineWrite
                } else {
                    Metric::DeadlineLinger
                };
                ctx.counters.increment(metric);
                self.dispose(SocketAction::CloseNow { reset: true });
            }
            _ if self.close_at.instant() <= now => {
                self.close_at = Instant::NEVER.into();
                self.close(self.close_scheduled, ctx, output);
            }
            Stage::TlsHandshake => {
                ctx.counters.increment(Metric::DeadlineTls);
                self.drop_silently(Cause::HandshakeTimedOut, ctx);
            }
            Stage::RequestHead => {
                ctx.counters.increment(Metric::DeadlineHead);
                if self.pending().is_some() {
                    self.refuse_http(HttpRefusal::HeadTimedOut, ctx, output);
                } else {
                    self.drop_silently(Cause::HandshakeTimedOut, ctx);
                }
            }
            _ if self.output_pending && self.progressed + deadlines.write_stall <= now => {
                ctx.counters.increment(Metric::DeadlineWrite);
                self.drop_silently(Cause::SlowConsumer, ctx);
            }
            Stage::Authenticating if self.stage_since + deadlines.authenticate > now => {
                ctx.counters.increment(Metric::DeadlineVerdict);
                self.close(Cause::BackendUnavailable, ctx, output);
            }
            Stage::Authenticating => {
                ctx.counters.increment(Metric::DeadlineAuthenticate);
                self.close(Cause::AuthenticationTimedOut, ctx, output);
            }
            Stage::Open => self.handle_open_deadline(ctx, output),
        }
    }

    fn handle_open_deadline(&mut self, ctx: &Context<'_>, output: &mut Output) {
        let now = ctx.now.instant;
        let renewal = self.renewal().map(|it| it.deadline(&ctx.settings.deadlines));
        if renewal.is_some_and(|deadline| deadline <= now) {
            ctx.counters.increment(Metric::DeadlineAuthenticate);
            self.close(Cause::AuthenticationTimedOut, ctx, output);
        } else if self.expires.instant() <= now {
            ctx.counters.increment(Metric::DeadlineExpiry);
            self.close(Cause::TokenExpired, ctx, output);
        } else if self.received + ctx.settings.deadlines.idle <= now {
            ctx.counters.increment(Metric::DeadlineIdle);
            self.close(Cause::Idle, ctx, output);
        } else {
            if self.received + ctx.settings.deadlines.ping_interval <= now && !self.pings.is_sent()
            {
                self.pings.set_sent(true);
                ctx.counters.increment(Metric::PingsSent);
                write_frame(OpCode::Ping, &[], &mut output.answers);
            }
            if self.pings.are_promised() && !self.to_client_unfinished {
                write_frame(OpCode::Text, centrifuge::PING.as_bytes(), &mut output.answers);
            }
        }
    }

    /// When the client that was promised to hear from us would have waited for a whole ping
    /// interval. What is on its way, or halfway there, counts as heard.
    fn promised_ping(&self, deadlines: &Deadlines) -> Instant {
        let due = self.pings.are_promised() && !self.output_pending && !self.to_client_unfinished;
        if due { self.progressed + deadlines.ping_interval } else { Instant::NEVER }
    }

    fn is_stalled(&self, deadlines: &Deadlines, now: Instant) -> bool {
        self.stage == Stage::Closing
            && self.output_pending
            && self.progressed + deadlines.write_stall <= now
    }

    /// A refused client's last moment: a linger after its close frame, but never later than
    /// all unauthenticated stages together may last.
    fn refused_until(&self, deadlines: &Deadlines) -> Instant {
        self.refused_at_latest(deadlines).min(self.stage_since + deadlines.linger)
    }

    /// When all unauthenticated stages together are over.
    pub(super) fn refused_at_latest(&self, deadlines: &Deadlines) -> Instant {
        let stages = deadlines.tls_handshake + deadlines.request_head + deadlines.authenticate;
        self.accepted + stages + REFUSED_GRACE
    }
}

/// The lifetime, shortened by up to a tenth so that connections made together part.
pub(super) fn lifetime_end(now: Instant, lifetime: Option<Duration>, jitter: u32) -> Instant {
    let Some(lifetime) = lifetime else { return Instant::NEVER };
    let tenth = lifetime / 10;
    let cut = tenth.mul_f64(f64::from(jitter) / f64::from(u32::MAX));
    now + lifetime.saturating_sub(cut)
}
