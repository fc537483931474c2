//! Rendezvous hashing: the same value gets the same place on every worker and every gateway, and a
//! place that comes or goes moves only the values that it has.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

/// A value that chooses a place, or a place's name, as a number. Not a secret: a client that can choose
/// the value can choose the place.
pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish()
}

/// The place that `value` gets of those given, each with the hash of its name: of those with the
/// highest score the first.
pub fn choose(value: u64, places: impl Iterator<Item = (usize, u64)>) -> Option<usize> {
    let mut best = None;
    for (place, name) in places {
        let mut hasher = SipHasher13::new();
        hasher.write_u64(value);
        hasher.write_u64(name);
        let score = hasher.finish();
        if best.is_none_or(|(highest, _)| score > highest) {
            best = Some((score, place));
        }
    }
    best.map(|(_, place)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<u64> {
        (0..count).map(|at| hash(format!("10.0.0.{at}:80").as_bytes())).collect()
    }

    #[test]
    fn a_value_keeps_its_place_while_that_is_there() {
        let names = names(5);
        for user in 0..200 {
            let value = hash(format!("user {user}").as_bytes());
            let all = choose(value, names.iter().copied().enumerate()).expect("a place");
            for gone in 0..names.len() {
                let left = names.iter().copied().enumerate().filter(|(at, _)| *at != gone);
                let now = choose(value, left).expect("a place");
                assert!(now == all || gone == all, "user {user} moved from {all} to {now}");
            }
        }
        assert_eq!(choose(7, std::iter::empty()), None);
    }

    #[test]
    fn values_are_spread() {
        let names = names(4);
        let mut counts = [0; 4];
        for user in 0..4000 {
            let value = hash(format!("user {user}").as_bytes());
            counts[choose(value, names.iter().copied().enumerate()).expect("a place")] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
