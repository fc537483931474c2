//! Whether caps, rates and deadlines can protect honest clients from a flood.

use std::time::Duration;

use super::file::RawSettings;
use super::load::{Loader, place};
use super::units::format_duration;
use super::{Deadlines, DeferAccept, Limits, Listener};

/// How long all but the slowest hundredth of honest clients are taken to need, from connecting
/// to being authenticated, on bad networks.
pub const TIME_TO_AUTHENTICATE: Duration = Duration::from_secs(1);
/// In what time all clients come back after an outage.
const RETURN_SECONDS: u32 = 60;
/// Seen from outside, no connection should be unauthenticated for longer.
const AGE_MAX: Duration = Duration::from_secs(10);
/// What TCP_DEFER_ACCEPT adds to the age of a silent connection.
const DEFERRED: Duration = Duration::from_secs(1);

/// What a cap on unauthenticated connections is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// At this many arrivals in a second, junk included, an honest client that needs
    /// [`TIME_TO_AUTHENTICATE`] is not evicted even if no prefix stands out.
    pub arrivals_per_second: u64,
    /// Up to this many in a second, the deadlines alone keep the cap from being reached.
    pub without_eviction: u64,
    /// All deadlines before authentication together.
    pub age: Duration,
}

/// What the limits and deadlines are good for, on a listener with or without TLS.
pub fn protection(limits: &Limits, deadlines: &Deadlines, tls: bool) -> Protection {
    let handshake = if tls { deadlines.tls_handshake } else { Duration::ZERO };
    let age = handshake + deadlines.request_head + deadlines.authenticate;
    let cap = u128::from(limits.unauthenticated_max);
    let rate = |time: Duration| (cap * 1000 / time.as_millis().max(1)) as u64;
    Protection { arrivals_per_second: rate(TIME_TO_AUTHENTICATE), without_eviction: rate(age), age }
}

impl Loader<'_> {
    /// Warns where honest clients are not protected, and says by how much.
    pub(super) fn check_admission(
        &mut self,
        raw: &RawSettings,
        limits: &Limits,
        deadlines: &Deadlines,
        listeners: Option<&[Listener]>,
    ) {
        self.check_return(raw, limits);
        self.check_share(raw, limits);
        let listeners = listeners.unwrap_or_default();
        if listeners.iter().any(|listener| listener.tls.is_some()) {
            self.check_handshakes(raw, limits, deadlines);
        }
        for (listener, written) in listeners.iter().zip(&raw.listener) {
            let age = DEFERRED + protection(limits, deadlines, listener.tls.is_some()).age;
            if listener.defer_accept == DeferAccept::On && age > AGE_MAX {
                let what = format!(
                    "defer_accept = \"on\" adds 1s to the age of a silent connection: seen from \
                     outside, one may be unauthenticated for {}, {} longer than {}",
                    format_duration(age),
                    format_duration(age - AGE_MAX),
                    format_duration(AGE_MAX)
                );
                let at = place(&written.get_ref().defer_accept, &written.span());
                self.report.warning(at, what, "lower the deadlines, or leave it to \"auto\"");
            }
        }
    }

    /// All clients return in one burst, without an attack.
    fn check_return(&mut self, raw: &RawSettings, limits: &Limits) {
        let raw = &raw.limits;
        let Limits { unauthenticated_max: cap, connections_max, .. } = *limits;
        if cap > connections_max {
            let at = place(&raw.unauthenticated_max, &(0..0));
            let what = "unauthenticated_max is above connections_max and cannot protect anybody";
            self.report.warning(at, what, "set it to a tenth of connections_max or less");
            return;
        }
        let needed = connections_max.div_ceil(RETURN_SECONDS);
        if cap < needed {
            let at = place(&raw.unauthenticated_max, &place(&raw.connections_max, &(0..0)));
            let what = format!(
                "unauthenticated_max = {cap} cannot hold honest clients: when connections_max = \
                 {connections_max} of them come back within a minute and each takes 1 s to \
                 authenticate, {needed} are unauthenticated at once, {} too many, and the oldest \
                 are evicted",
                needed - cap
            );
            self.report.warning(at, what, &format!("set it to {needed} or more"));
        }
    }

    /// An address that may fill the cap alone has no share.
    fn check_share(&mut self, raw: &RawSettings, limits: &Limits) {
        let start =
            u64::from(limits.unauthenticated_max) * u64::from(limits.early_drop_start) / 100;
        if u64::from(limits.prefix_share) > start.max(1) {
            let what = format!(
                "prefix_share = {} is above the {start} connections that early drop begins at \
                 (early_drop_start = {} % of unauthenticated_max): one address may reach the cap \
                 before early drop concerns it",
                limits.prefix_share, limits.early_drop_start
            );
            let at =
                place(&raw.limits.prefix_share, &place(&raw.limits.unauthenticated_max, &(0..0)));
            let fix = format!("set it to {} or less", (start / 10).max(1));
            self.report.warning(at, what, &fix);
        }
    }

    /// Clients that finish TLS as fast as they may, and fall silent.
    fn check_handshakes(&mut self, raw: &RawSettings, limits: &Limits, deadlines: &Deadlines) {
        let Some(rate) = limits.tls_handshakes_per_second else { return };
        let at = place(&raw.limits.tls_handshakes_per_second, &(0..0));
        let cap = limits.unauthenticated_max;
        let silent = deadlines.request_head;
        if u128::from(rate) * TIME_TO_AUTHENTICATE.as_millis() > u128::from(cap) * 1000 {
            let lasts = Duration::from_millis(u64::from(cap) * 1000 / u64::from(rate));
            let what = format!(
                "tls_handshakes_per_second = {rate} is more than unauthenticated_max = {cap} can \
                 hold: clients that finish TLS and fall silent (for up to {}) fill it after {}, \
                 and an honest one that takes {} to authenticate is evicted; {} are missing",
                format_duration(silent),
                format_duration(lasts),
                format_duration(TIME_TO_AUTHENTICATE),
                rate - cap
            );
            let fix = format!("lower it to {cap}, or set unauthenticated_max to {rate} or more");
            self.report.warning(at.clone(), what, &fix);
        }
        let needed = limits.connections_max.div_ceil(RETURN_SECONDS);
        if rate < needed {
            let takes = Duration::from_secs(u64::from(limits.connections_max.div_ceil(rate)));
            let what = format!(
                "tls_handshakes_per_second = {rate} lets connections_max = {} clients come back \
                 over TLS in {} at best; within a minute it would take {needed}",
                limits.connections_max,
                format_duration(takes)
            );
            self.report.warning(at, what, "raise it as far as the cores can bear");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::load::test_settings;

    #[test]
    fn what_a_cap_is_good_for() {
        let settings = test_settings();
        let of = |tls| protection(&settings.limits, &settings.deadlines, tls);
        let seconds = Duration::from_secs;
        let expected =
            Protection { arrivals_per_second: 50_000, without_eviction: 7142, age: seconds(7) };
        assert_eq!(of(false), expected);
        let expected =
            Protection { arrivals_per_second: 50_000, without_eviction: 5000, age: seconds(10) };
        assert_eq!(of(true), expected);
    }
}
