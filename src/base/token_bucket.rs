//! A token bucket on integers.

use super::time::Instant;

/// Allows `rate` events a second on average and `burst` at once.
///
/// Invariant: `0 <= level <= burst * SCALE`.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    level: u64,
    refilled: Instant,
}

/// One token in the unit that `level` counts: a nanosecond's share at one event a second.
const SCALE: u64 = 1_000_000_000;

impl TokenBucket {
    /// A full bucket.
    pub fn full(burst: u32, now: Instant) -> Self {
        TokenBucket { level: u64::from(burst) * SCALE, refilled: now }
    }

    /// Takes `count` tokens if they are there.
    pub fn take(&mut self, count: u32, rate_per_second: u32, burst: u32, now: Instant) -> bool {
        let elapsed = now.as_nanos().saturating_sub(self.refilled.as_nanos());
        let gained = elapsed.saturating_mul(u64::from(rate_per_second));
        self.level = self.level.saturating_add(gained).min(u64::from(burst) * SCALE);
        self.refilled = self.refilled.max(now);
        let wanted = u64::from(count) * SCALE;
        if self.level < wanted {
            return false;
        }
        self.level -= wanted;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn burst_then_rate() {
        let start = Instant::from_nanos(5);
        let mut bucket = TokenBucket::full(3, start);
        let taken = (0..10).filter(|_| bucket.take(1, 2, 3, start)).count();
        assert_eq!(taken, 3);
        assert!(!bucket.take(1, 2, 3, start + Duration::from_millis(499)));
        assert!(bucket.take(1, 2, 3, start + Duration::from_millis(501)));
        assert!(!bucket.take(1, 2, 3, start + Duration::from_millis(502)));
    }

    #[test]
    fn never_above_burst_and_a_clock_that_steps_back_gives_nothing() {
        let start = Instant::from_nanos(0);
        let mut bucket = TokenBucket::full(2, start);
        let later = start + Duration::from_secs(1000);
        assert!(!bucket.take(3, 100, 2, later));
        assert!(bucket.take(2, 100, 2, later));
        assert!(!bucket.take(1, 100, 2, start));
    }
}
