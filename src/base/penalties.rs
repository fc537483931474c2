//! Prefixes that fail again and again, in a bounded table whose entries fade.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use super::prefix::{Prefix, Prefixes};
use super::time::Instant;

/// How many entries are looked at to make room for another.
const LOOKS: usize = 8;

/// What counts as failing again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PenaltyRule {
    /// In this time one failure of one address is forgotten.
    pub fades: Duration,
    /// Failures of one address that are not yet a penalty.
    pub burst: u32,
    /// Most prefixes that are remembered.
    pub prefixes_max: usize,
}

/// The failures of each prefix, kept as the instant at which all of them are forgotten.
///
/// A wide prefix may fail as often as the number of addresses that it may count as. When the
/// table is full, the entry with the fewest failures of a few makes room: an attacker with more
/// prefixes than entries can hide its own failures and others'. Then the gateway loses this measure,
/// but no client loses a connection.
#[derive(Debug, Default)]
pub struct Penalties {
    clear_at: BTreeMap<Prefix, Instant>,
    /// Where the last look for room ended.
    looked: Option<Prefix>,
}

impl Penalties {
    /// Number of prefixes that are remembered.
    pub fn len(&self) -> usize {
        self.clear_at.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.clear_at.is_empty()
    }

    /// A client of these prefixes failed. True when that made a penalty of it.
    pub fn failed(&mut self, prefixes: &Prefixes, rule: &PenaltyRule, now: Instant) -> bool {
        let mut begins = false;
        for prefix in prefixes.iter() {
            let (fades, full) = scaled(rule, prefix);
            let earlier = self.clear_at.get(&prefix).copied();
            if earlier.is_none() && !self.make_room(rule.prefixes_max, now) {
                continue;
            }
            let before = earlier.unwrap_or(now).max(now);
            // Twice the burst at most, so that a long attack is forgotten as soon as a short
            // one.
            let after = (before + fades).min(now + full * 2);
            begins |= before.since(now) <= full && after.since(now) > full;
            self.clear_at.insert(prefix, after);
        }
        begins
    }

    /// A client of these prefixes authenticated: makes up for one failure.
    pub fn succeeded(&mut self, prefixes: &Prefixes, rule: &PenaltyRule, now: Instant) {
        for prefix in prefixes.iter() {
            let (fades, _) = scaled(rule, prefix);
            if let Some(clear_at) = self.clear_at.get_mut(&prefix) {
                *clear_at = *clear_at - fades;
                if *clear_at <= now {
                    self.clear_at.remove(&prefix);
                }
            }
        }
    }

    /// Whether one of these prefixes has a penalty.
    pub fn is_penalised(&self, prefixes: &Prefixes, rule: &PenaltyRule, now: Instant) -> bool {
        prefixes.iter().any(|prefix| {
            let clear_at = self.clear_at.get(&prefix).copied().unwrap_or(now);
            clear_at.since(now) > scaled(rule, prefix).1
        })
    }

    /// Makes room for one entry. Looks at a few, not at all of them.
    fn make_room(&mut self, most: usize, now: Instant) -> bool {
        if self.clear_at.len() < most {
            return true;
        }
        let after = self.looked.map_or(Bound::Unbounded, Bound::Excluded);
        let onward = self.clear_at.range((after, Bound::Unbounded));
        let around = self.clear_at.iter();
        let mut least: Option<(Prefix, Instant)> = None;
        for (prefix, clear_at) in onward.chain(around).take(LOOKS) {
            self.looked = Some(*prefix);
            if least.is_none_or(|(_, other)| *clear_at < other) {
                least = Some((*prefix, *clear_at));
            }
            if *clear_at <= now {
                break;
            }
        }
        if let Some((prefix, _)) = least {
            self.clear_at.remove(&prefix);
        }
        // A reload may have lowered the limit: then two go for each that comes.
        if self.clear_at.len() >= most {
            self.clear_at.pop_first();
        }
        self.clear_at.len() < most
    }
}

/// In what time one failure of the prefix is forgotten, and in what time a burst of them.
fn scaled(rule: &PenaltyRule, prefix: Prefix) -> (Duration, Duration) {
    (rule.fades / prefix.level().allowance(), rule.fades * rule.burst)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: PenaltyRule =
        PenaltyRule { fades: Duration::from_secs(1), burst: 10, prefixes_max: 1000 };

    fn of(text: &str) -> Prefixes {
        Prefixes::of(text.parse().unwrap())
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(1) + Duration::from_secs(seconds)
    }

    #[test]
    fn a_burst_is_free_and_all_is_forgotten() {
        let mut penalties = Penalties::default();
        let bad = of("192.0.2.1");
        let begins: Vec<bool> = (0..12).map(|_| penalties.failed(&bad, &RULE, at(0))).collect();
        assert_eq!(begins.iter().position(|begins| *begins), Some(10), "the eleventh");
        assert_eq!(begins.iter().filter(|begins| **begins).count(), 1);
        assert!(penalties.is_penalised(&bad, &RULE, at(1)));
        assert!(!penalties.is_penalised(&of("192.0.2.2"), &RULE, at(1)));
        assert!(!penalties.is_penalised(&bad, &RULE, at(2)), "12 - 2 are 10");
    }

    #[test]
    fn a_long_attack_is_forgotten_after_twice_the_burst() {
        let mut penalties = Penalties::default();
        let bad = of("192.0.2.1");
        for _ in 0..100_000 {
            penalties.failed(&bad, &RULE, at(0));
        }
        assert!(penalties.is_penalised(&bad, &RULE, at(9)));
        assert!(!penalties.is_penalised(&bad, &RULE, at(10)));
    }

    #[test]
    fn success_makes_up_for_failure() {
        let mut penalties = Penalties::default();
        let shared = of("192.0.2.1");
        for _ in 0..100 {
            penalties.failed(&shared, &RULE, at(0));
            penalties.succeeded(&shared, &RULE, at(0));
        }
        assert!(!penalties.is_penalised(&shared, &RULE, at(0)));
        assert!(penalties.is_empty(), "nothing is kept of the innocent");
    }

    #[test]
    fn a_site_may_fail_as_often_as_its_addresses() {
        let mut penalties = Penalties::default();
        let mut failed = |subnet: u16| {
            let address = format!("2001:db8:0:{subnet:x}::1");
            penalties.failed(&of(&address), &RULE, at(0))
        };
        // Each /64 fails once, each of the 10 /56 sixteen times: only the /48 is full.
        let begins = (0..161).map(|n| failed(n / 16 * 256 + n % 16)).position(|begins| begins);
        assert_eq!(begins, Some(160));
        assert!(penalties.is_penalised(&of("2001:db8:0:ffff::1"), &RULE, at(0)));
        assert!(!penalties.is_penalised(&of("2001:db8:1::1"), &RULE, at(0)));
    }

    #[test]
    fn the_table_is_bounded_and_keeps_the_guilty() {
        let rule = PenaltyRule { prefixes_max: 64, ..RULE };
        let mut penalties = Penalties::default();
        let bad = of("203.0.113.9");
        for _ in 0..20 {
            penalties.failed(&bad, &rule, at(0));
        }
        for number in 0..5000u32 {
            let other = Prefixes::of(std::net::Ipv4Addr::from(number * 7919).into());
            penalties.failed(&other, &rule, at(0));
            assert!(penalties.len() <= 64);
        }
        assert!(penalties.is_penalised(&bad, &rule, at(0)), "others had failed less");
        let smaller = PenaltyRule { prefixes_max: 8, ..RULE };
        for number in 0..100u32 {
            let other = Prefixes::of(std::net::Ipv4Addr::from(number).into());
            penalties.failed(&other, &smaller, at(0));
        }
        assert!(penalties.len() <= 8, "a reload lowered the limit: {}", penalties.len());
        let none = PenaltyRule { prefixes_max: 0, ..RULE };
        assert!(!penalties.failed(&bad, &none, at(0)) && penalties.len() <= 8);
    }
}
