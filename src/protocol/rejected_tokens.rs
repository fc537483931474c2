//! The negative cache: tokens that were refused for good, so that a client which replays a dead
//! one costs a hash instead of a MAC.
//!
//! It holds only decisions that no time can remedy: expired beyond the leeway, a bad signature,
//! malformed. Entries are keyed hashes of the token and of the fingerprint of the `[[auth]]` that
//! judged it: no client can aim at a set or find two tokens of one hash, and a change of
//! keys or options makes every older entry unreachable.
//!
//! A set is one cache line of eight entries in the order of their last use. A new entry goes to
//! the seventh place; only one that is met again moves to the front. So a client that
//! sends tokens that are all different pushes out nothing but tokens that were seen once, too.

use std::hash::Hasher as _;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::base::time::UnixTime;
use crate::protocol::cause::Cause;

/// Entries of a set.
const WAYS: usize = 8;

/// Where new entries of a set go; those before it were met more than once.
const NEW: usize = WAYS - 2;

/// Low bits of an entry that say which decision it holds.
const CODE_BITS: u64 = 0b11;

/// How far the wall clock may step back before what expired has to be judged again.
const STEP_BACK: Duration = Duration::from_secs(1);

/// The decisions that are remembered; an entry's code is the index plus one, and 0 is no entry.
const LASTING: [Cause; 3] = [Cause::TokenExpired, Cause::BadSignature, Cause::TokenMalformed];

/// The cache of one worker. Its memory is fixed when it is made.
pub struct RejectedTokenCache {
    /// A power of two of them, or none.
    sets: Box<[Set]>,
    key: [u8; 16],
    /// The latest wall-clock time that was seen.
    latest: UnixTime,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Set([u64; WAYS]);

/// A token under its `[[auth]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadKey(u64);

impl RejectedTokenCache {
    /// Room for at least `entries_max` decisions; 0 switches it off. `key` is random and secret.
    pub fn new(entries_max: u32, key: [u8; 16]) -> Self {
        let sets = match entries_max as usize {
            0 => 0,
            entries => entries.div_ceil(WAYS).next_power_of_two(),
        };
        let sets = vec![Set([0; WAYS]); sets].into_boxed_slice();
        RejectedTokenCache { sets, key, latest: UnixTime::default() }
    }

    /// Under what a token is kept; `None` when the cache is off.
    pub fn key(&self, fingerprint: &[u8; 16], token: &[u8]) -> Option<DeadKey> {
        if self.sets.is_empty() {
            return None;
        }
        let mut hasher = SipHasher13::new_with_key(&self.key);
        hasher.write(fingerprint);
        hasher.write(token);
        Some(DeadKey(hasher.finish() & !CODE_BITS))
    }

    /// The decision on a token that was refused before.
    pub fn find(&mut self, key: DeadKey, now: UnixTime) -> Option<Cause> {
        if now.later(STEP_BACK) < self.latest {
            // The clock was wrong, and so may be whatever it called expired.
            self.sets.fill(Set([0; WAYS]));
            self.latest = now;
        }
        self.latest = self.latest.max(now);
        let set = self.set(key);
        let way = set.iter().position(|entry| *entry != 0 && entry & !CODE_BITS == key.0)?;
        set[..=way].rotate_right(1);
        let code = (set[0] & CODE_BITS) as usize;
        LASTING.get(code - 1).copied()
    }

    /// Remembers a decision, if it is one that lasts.
    pub fn insert(&mut self, key: DeadKey, cause: Cause) {
        if let Some(index) = LASTING.iter().position(|lasting| *lasting == cause) {
            let set = self.set(key);
            set[NEW..].rotate_right(1);
            set[NEW] = key.0 | (index as u64 + 1);
        }
    }

    /// How many decisions there is room for.
    pub fn capacity(&self) -> usize {
        self.sets.len() * WAYS
    }

    fn set(&mut self, key: DeadKey) -> &mut [u64; WAYS] {
        // Not the low bits: they hold the code.
        let index = (key.0 >> 32) as usize & (self.sets.len() - 1);
        &mut self.sets[index].0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_seconds(1_700_000_000);
    const BLOCK: [u8; 16] = [1; 16];

    fn key(cache: &RejectedTokenCache, token: &str) -> DeadKey {
        cache.key(&BLOCK, token.as_bytes()).expect("it is on")
    }

    #[test]
    fn only_lasting_verdicts_are_kept() {
        let lasting = [Cause::TokenExpired, Cause::BadSignature, Cause::TokenMalformed];
        for cause in Cause::ALL {
            let mut cache = RejectedTokenCache::new(64, [7; 16]);
            let key = key(&cache, "token");
            assert_eq!(cache.find(key, NOW), None);
            cache.insert(key, *cause);
            let kept = lasting.contains(cause).then_some(*cause);
            assert_eq!(cache.find(key, NOW), kept, "{cause:?}");
            assert_eq!(cache.find(key, NOW), kept, "{cause:?}");
        }
    }

    #[test]
    fn entries_belong_to_a_block_and_a_key() {
        let mut cache = RejectedTokenCache::new(64, [7; 16]);
        let ours = key(&cache, "token");
        cache.insert(ours, Cause::BadSignature);
        let other_block = cache.key(&[2; 16], b"token").unwrap();
        assert_eq!(cache.find(other_block, NOW), None);
        assert_ne!(RejectedTokenCache::new(64, [8; 16]).key(&BLOCK, b"token"), Some(ours));
        assert_eq!(RejectedTokenCache::new(0, [7; 16]).key(&BLOCK, b"token"), None);
    }

    #[test]
    fn room() {
        for (asked, room) in [(0, 0), (1, 8), (8, 8), (9, 16), (65_536, 65_536), (65_537, 131_072)]
        {
            assert_eq!(RejectedTokenCache::new(asked, [0; 16]).capacity(), room, "{asked}");
        }
    }

    /// A flood of tokens that are all different.
    #[test]
    fn what_was_met_twice_outlives_a_flood() {
        let mut cache = RejectedTokenCache::new(1024, [7; 16]);
        let replayed: Vec<_> = (0..100).map(|n| key(&cache, &format!("replayed {n}"))).collect();
        for key in &replayed {
            cache.insert(*key, Cause::TokenExpired);
            assert_eq!(cache.find(*key, NOW), Some(Cause::TokenExpired));
        }
        for number in 0..100_000 {
            let key = key(&cache, &format!("flood {number}"));
            assert_eq!(cache.find(key, NOW), None, "a hash of 62 bits was met twice");
            cache.insert(key, Cause::BadSignature);
        }
        let kept = replayed.iter().filter(|key| cache.find(**key, NOW).is_some()).count();
        // Six lasting places in each of 128 sets: more than six of a hundred never share one.
        assert_eq!(kept, 100);
    }

    /// Against a slow, obvious model of one set.
    #[test]
    fn a_set_is_a_list_in_order_of_use() {
        let mut cache = RejectedTokenCache::new(8, [7; 16]);
        let keys: Vec<_> = (0..20).map(|n| key(&cache, &n.to_string())).collect();
        let mut model: Vec<Option<DeadKey>> = vec![None; WAYS];
        let mut state = 1_u64;
        for _ in 0..10_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let key = keys[(state >> 33) as usize % keys.len()];
            let known = model.iter().position(|entry| *entry == Some(key));
            assert_eq!(cache.find(key, NOW).is_some(), known.is_some());
            match known {
                Some(at) => {
                    let entry = model.remove(at);
                    model.insert(0, entry);
                }
                None => {
                    cache.insert(key, Cause::TokenExpired);
                    model.pop();
                    model.insert(NEW, Some(key));
                }
            }
        }
    }

    /// "Expired" is true only while time goes forward.
    #[test]
    fn a_clock_that_steps_back_empties_it() {
        let mut cache = RejectedTokenCache::new(64, [7; 16]);
        let (old, forged) = (key(&cache, "old"), key(&cache, "forged"));
        let back = |seconds: u64| UnixTime::from_seconds(NOW.as_seconds() - seconds);
        assert_eq!(cache.find(old, NOW), None);
        cache.insert(old, Cause::TokenExpired);
        cache.insert(forged, Cause::BadSignature);
        assert_eq!(cache.find(old, back(1)), Some(Cause::TokenExpired));
        assert_eq!(cache.find(forged, back(2)), None);
        assert_eq!(cache.find(old, back(2)), None);
        cache.insert(old, Cause::TokenExpired);
        assert_eq!(cache.find(old, back(3)), Some(Cause::TokenExpired));
    }
}
