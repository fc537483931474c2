//! A token bucket in one number.

use super::time::Instant;

/// Allows `rate` events a second on average and `burst` events in one burst.
///
/// Kept as the instant at which the bucket will be full again (the generic cell rate algorithm's
/// theoretical arrival time): each event moves it on by `1 / rate`, and an event that would move
/// it more than `burst / rate` past now is refused. So a bucket is 8 bytes, and needs no refill.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    full_at: Instant,
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;

impl TokenBucket {
    /// A full bucket.
    pub fn full(now: Instant) -> Self {
        TokenBucket { full_at: now }
    }

    /// Takes `count` tokens if they are there. A rate of 0 allows nothing.
    pub fn take(&mut self, count: u32, rate_per_second: u32, burst: u32, now: Instant) -> bool {
        let Some(each) = NANOS_PER_SECOND.checked_div(u64::from(rate_per_second)) else {
            return false;
        };
        let begin = self.full_at.max(now).as_nanos();
        let full_at = begin.saturating_add(each * u64::from(count));
        if full_at - now.as_nanos() > each * u64::from(burst) {
            return false;
        }
        self.full_at = Instant::from_nanos(full_at);
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
        let mut bucket = TokenBucket::full(start);
        let taken = (0..10).filter(|_| bucket.take(1, 2, 3, start)).count();
        assert_eq!(taken, 3);
        assert!(!bucket.take(1, 2, 3, start + Duration::from_millis(499)));
        assert!(bucket.take(1, 2, 3, start + Duration::from_millis(501)));
        assert!(!bucket.take(1, 2, 3, start + Duration::from_millis(502)));
    }

    #[test]
    fn never_above_burst_and_a_clock_that_steps_back_gives_nothing() {
        let start = Instant::from_nanos(0);
        let mut bucket = TokenBucket::full(start);
        let later = start + Duration::from_secs(1000);
        assert!(!bucket.take(3, 100, 2, later));
        assert!(bucket.take(2, 100, 2, later));
        assert!(!bucket.take(1, 100, 2, start));
    }

    #[test]
    fn no_rate_allows_nothing() {
        let now = Instant::from_nanos(7);
        assert!(!TokenBucket::full(now).take(1, 0, 5, now));
    }

    #[test]
    fn is_small() {
        assert_eq!(size_of::<TokenBucket>(), 8);
    }
}
