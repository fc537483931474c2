//! Whether verification takes the same time for right and for wrong MACs, by dudect's method
//! (Reparaz, Balasch, Verbauwhede 2017): `cargo bench --bench constant_time`.
//!
//! Each bench times two classes of tokens in random order and tests whether the two distributions
//! differ (Welch's t-test). A |t| that stays below 4.5 shows no difference; one that grows with the
//! number of samples is a leak. The last bench compares with `==` on purpose: its |t| must be
//! large, or the method sees nothing.

use std::cell::RefCell;
use std::hint::black_box;
use std::time::Duration;

use dudect_bencher::rand::RngExt;
use dudect_bencher::{BenchRng, Class, CtRunner, ctbench_main};
use portcullis::base::secret::Secret;
use portcullis::base::time::UnixTime;
use portcullis::protocol::compact_token::{self, CompactKey, CompactOptions, CompactVerifier};
use portcullis::protocol::jwt::{self, Algorithm, JwtKey, JwtOptions, JwtVerifier};
use portcullis::protocol::phoenix_token::{self, MaxAge, PhoenixOptions, PhoenixVerifier};
use portcullis::protocol::plug_crypto::Derivation;
use portcullis::protocol::plug_session::{self, SessionOptions, SessionVerifier};
use portcullis::protocol::scratch::TokenScratch;
use serde_json::json;

const SAMPLES: usize = 200_000;
const NOW: UnixTime = UnixTime::from_seconds(1_800_000_000);

/// A token whose MAC (the last 43 characters) differs from the right one's first or last byte.
/// Both are refused, so that what comes after the MAC cannot be seen in the time.
fn with_wrong_byte(token: &str, last: bool) -> Vec<u8> {
    let mut bytes = token.as_bytes().to_vec();
    // Not the very last character: its spare bits would make it another text for nothing.
    let at = if last { bytes.len() - 2 } else { bytes.len() - 43 };
    bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
    bytes
}

/// Left: wrong in the first byte of the MAC. Right: wrong near its end.
fn first_against_last(
    runner: &mut CtRunner,
    rng: &mut BenchRng,
    token: &str,
    refused: impl Fn(&[u8]) -> bool,
) {
    compare(runner, rng, &[with_wrong_byte(token, false), with_wrong_byte(token, true)], |token| {
        assert!(refused(token), "a wrong MAC is refused");
    });
}

fn compare(
    runner: &mut CtRunner,
    rng: &mut BenchRng,
    tokens: &[Vec<u8>; 2],
    verify: impl Fn(&[u8]),
) {
    // Both are copied into one place before each run, so that no address tells them apart.
    let mut place = vec![0; tokens[0].len()];
    for _ in 0..SAMPLES {
        let right = rng.random::<bool>();
        let length = tokens[usize::from(right)].len();
        place[..length].copy_from_slice(&tokens[usize::from(right)]);
        let class = if right { Class::Right } else { Class::Left };
        runner.run_one(class, || verify(black_box(&place[..length])));
    }
}

fn jwt_key(id: &str, fill: u8) -> JwtKey {
    JwtKey { id: Some(id.into()), algorithm: Algorithm::HS256, secret: Secret::new(vec![fill; 32]) }
}

fn jwt_verifier() -> JwtVerifier {
    JwtVerifier::new(vec![jwt_key("k1", 1)], JwtOptions::default()).expect("a good key")
}

const CLAIMS: &[u8] = br#"{"sub":"user-4711","exp":1800000600,"jti":"0123456789"}"#;

fn jwt(runner: &mut CtRunner, rng: &mut BenchRng) {
    let (verifier, scratch) = (jwt_verifier(), RefCell::new(TokenScratch::new()));
    let token = jwt::mint(&jwt_key("k1", 1), CLAIMS);
    first_against_last(runner, rng, &token, |token| {
        verifier.verify(token, NOW, &mut scratch.borrow_mut()).is_err()
    });
}

/// Left: a known key and a wrong MAC. Right: a key that nobody knows.
fn jwt_unknown_key(runner: &mut CtRunner, rng: &mut BenchRng) {
    let (verifier, scratch) = (jwt_verifier(), RefCell::new(TokenScratch::new()));
    let tokens = ["k1", "k2"].map(|id| jwt::mint(&jwt_key(id, 2), CLAIMS).into_bytes());
    compare(runner, rng, &tokens, |token| {
        assert!(verifier.verify(token, NOW, &mut scratch.borrow_mut()).is_err());
    });
}

fn derived() -> Secret {
    Derivation::default().derive(&Secret::new(vec![b'k'; 64]), b"salt")
}

fn phoenix(runner: &mut CtRunner, rng: &mut BenchRng) {
    let options = PhoenixOptions { max_age: MaxAge::Embedded, subject: None };
    let verifier = PhoenixVerifier::new(&[derived()], options);
    let scratch = RefCell::new(TokenScratch::new());
    let token = phoenix_token::mint(&derived(), &json!("user-4711"), NOW, 600);
    first_against_last(runner, rng, &token, |token| {
        verifier.verify(token, NOW, &mut scratch.borrow_mut()).is_err()
    });
}

/// Left: the parameter's first character is wrong. Right: its last before the mask.
fn csrf(runner: &mut CtRunner, rng: &mut BenchRng) {
    let options = SessionOptions { subject: "user_id".into(), max_age: None, csrf: true };
    let verifier = SessionVerifier::new(&[derived()], options);
    let scratch = RefCell::new(TokenScratch::new());
    let minted = plug_session::mint(&derived(), json!({"user_id": 7}), &[9; 36]);
    let wrong = |at: usize| {
        let mut csrf = minted.csrf.clone().into_bytes();
        csrf[at] = if csrf[at] == b'A' { b'B' } else { b'A' };
        csrf
    };
    compare(runner, rng, &[wrong(0), wrong(31)], |csrf| {
        let session = minted.cookie.as_bytes();
        assert!(verifier.verify(session, Some(csrf), NOW, &mut scratch.borrow_mut()).is_err());
    });
}

fn compact_key(id: u8, fill: u8) -> CompactKey {
    CompactKey { id, secret: Secret::new(vec![fill; 32]) }
}

fn compact_verifier() -> CompactVerifier {
    let (leeway, lifetime_max) = (Duration::ZERO, Duration::from_secs(86_400));
    CompactVerifier::new(&[compact_key(1, 1)], CompactOptions { leeway, lifetime_max })
}

fn compact_token(id: u8, fill: u8) -> String {
    let fields = compact_token::Fields {
        issued: NOW,
        expires: NOW.later(Duration::from_secs(600)),
        subject: "user-4711",
        token_id: "0123456789",
        // A length that makes the text end on a whole group of four.
        claims: b"ab",
    };
    compact_token::mint(&compact_key(id, fill), &fields).expect("it fits")
}

fn compact(runner: &mut CtRunner, rng: &mut BenchRng) {
    let (verifier, scratch) = (compact_verifier(), RefCell::new(TokenScratch::new()));
    first_against_last(runner, rng, &compact_token(1, 1), |token| {
        verifier.verify(token, NOW, &mut scratch.borrow_mut()).is_err()
    });
}

/// Left: a known key and a wrong MAC. Right: a key that nobody knows.
fn compact_unknown_key(runner: &mut CtRunner, rng: &mut BenchRng) {
    let (verifier, scratch) = (compact_verifier(), RefCell::new(TokenScratch::new()));
    let tokens = [1, 2].map(|id| compact_token(id, 2).into_bytes());
    compare(runner, rng, &tokens, |token| {
        assert!(verifier.verify(token, NOW, &mut scratch.borrow_mut()).is_err());
    });
}

/// What a leak looks like: the two tokens compared byte by byte, up to the first difference.
fn planted_leak(runner: &mut CtRunner, rng: &mut BenchRng) {
    let token = jwt::mint(&jwt_key("k1", 1), CLAIMS);
    let right = token.clone().into_bytes();
    let wrong = [with_wrong_byte(&token, false), with_wrong_byte(&token, true)];
    compare(runner, rng, &wrong, |token| {
        let differ = token.iter().zip(&right).position(|(a, b)| black_box(a) != black_box(b));
        assert!(differ.is_some());
    });
}

ctbench_main!(jwt, jwt_unknown_key, phoenix, csrf, compact, compact_unknown_key, planted_leak);
