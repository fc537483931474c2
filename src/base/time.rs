//! Time as plain values. Nothing here can read a clock: `linux/` and `sim/` do, and pass
//! [`Now`] down as an argument.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A point on the monotonic clock, in nanoseconds since an epoch that only its source knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The latest representable instant; stands for "never" in comparisons.
    pub const NEVER: Instant = Instant(u64::MAX);

    /// An instant `nanos` nanoseconds after its source's epoch.
    pub const fn from_nanos(nanos: u64) -> Self {
        Instant(nanos)
    }

    /// Nanoseconds since the source's epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to `self`, zero when `earlier` is later.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    /// Saturates at [`Instant::NEVER`].
    fn add(self, duration: Duration) -> Instant {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_add(nanos))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    /// Saturates at the epoch.
    fn sub(self, duration: Duration) -> Instant {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_sub(nanos))
    }
}

/// An [`Instant`] in six bytes, for what is kept once for each connection: rounded up to the
/// microsecond, and [`Instant::NEVER`] from 8.9 years after the epoch on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PackedInstant([u16; 3]);

impl From<Instant> for PackedInstant {
    fn from(instant: Instant) -> Self {
        let micros = instant.0.div_ceil(1000).min((1 << 48) - 1);
        PackedInstant([micros as u16, (micros >> 16) as u16, (micros >> 32) as u16])
    }
}

impl PackedInstant {
    /// The instant that is kept.
    pub fn instant(self) -> Instant {
        let [low, middle, high] = self.0.map(u64::from);
        match low | middle << 16 | high << 32 {
            0xffff_ffff_ffff => Instant::NEVER,
            micros => Instant(micros * 1000),
        }
    }
}

impl Add<Duration> for PackedInstant {
    type Output = Instant;

    fn add(self, duration: Duration) -> Instant {
        self.instant() + duration
    }
}

/// A point on the wall clock, in milliseconds since 1970-01-01T00:00:00Z. It may jump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(u64);

impl UnixTime {
    /// A wall-clock time `millis` milliseconds after the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        UnixTime(millis)
    }

    /// A wall-clock time `seconds` seconds after the Unix epoch.
    pub const fn from_seconds(seconds: u64) -> Self {
        UnixTime(seconds.saturating_mul(1000))
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The time this much later, saturating.
    pub fn later(self, by: Duration) -> UnixTime {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        UnixTime(self.0.saturating_add(millis))
    }

    /// The time this much earlier, saturating.
    pub fn earlier(self, by: Duration) -> UnixTime {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        UnixTime(self.0.saturating_sub(millis))
    }

    /// Whole seconds since the Unix epoch, as JWT's NumericDate counts them (RFC 7519 §2).
    pub const fn as_seconds(self) -> u64 {
        self.0 / 1000
    }
}

/// Both clocks, read once per tick: deadlines use `instant`, token claims use `unix`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The monotonic clock.
    pub instant: Instant,
    /// The wall clock.
    pub unix: UnixTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_instants_are_never_early_and_late_by_less_than_a_microsecond() {
        let last = (1 << 48) - 2;
        for (nanos, packed) in [
            (0, 0),
            (1, 1_000),
            (999, 1_000),
            (1_000, 1_000),
            (1_001, 2_000),
            (123_456_789_012_345, 123_456_789_013_000),
            (last * 1_000, last * 1_000),
            (last * 1_000 + 1, u64::MAX),
            (u64::MAX, u64::MAX),
        ] {
            let instant = PackedInstant::from(Instant(nanos)).instant();
            assert_eq!(instant, Instant(packed), "{nanos}");
        }
    }
}
