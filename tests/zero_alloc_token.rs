//! Verifying a token allocates nothing, whether it is accepted or refused and for what cause.

#[path = "support/counting.rs"]
mod counting;

use std::time::Duration;

use counting::allocations;
use portcullis::base::secret::Secret;
use portcullis::base::time::UnixTime;
use portcullis::protocol::carrier::{self, Carrier, CarrierScratch};
use portcullis::protocol::cause::Cause;
use portcullis::protocol::compact_token::{
    self, CompactKey, CompactOptions, CompactVerifier, Fields,
};
use portcullis::protocol::http_upgrade::{HeadLimits, HeadScanner, NO_FIELDS, Request, parse};
use portcullis::protocol::jwt::{self, Algorithm, JwtKey, JwtOptions, JwtVerifier, TokenScratch};
use portcullis::protocol::origin::OriginPolicy;
use portcullis::protocol::phoenix_token::{self, MaxAge, PhoenixOptions, PhoenixVerifier};
use portcullis::protocol::plug_crypto::Derivation;
use portcullis::protocol::plug_session::{self, SessionOptions, SessionVerifier};
use portcullis::protocol::rejected_tokens::RejectedTokenCache;
use serde_json::{Value, json};

fn key(id: &str, algorithm: Algorithm) -> JwtKey {
    JwtKey { id: Some(id.into()), algorithm, secret: Secret::new(id.repeat(32).into_bytes()) }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![0_u8; 64]))).0, 1);
    assert_eq!(allocations(|| ()).0, 0);
}

#[test]
fn verification_allocates_nothing() {
    let keys = || {
        vec![
            key("1", Algorithm::HS256),
            key("2", Algorithm::HS384),
            key("3", Algorithm::HS512),
            key("4", Algorithm::HS256),
        ]
    };
    let options = JwtOptions { leeway: Duration::ZERO, ..JwtOptions::default() };
    let verifier = JwtVerifier::new(keys(), options).unwrap();
    let mint = |which: usize, claims: &str| jwt::mint(&keys()[which], claims.as_bytes());
    let good = r#"{"sub":"u\u00e9","jti":"\u0041","exp":1700000001,"x":[{"y":null}]}"#;
    let long = format!(r#"{{"sub":"u","exp":1700000001,"x":"{}"}}"#, "x".repeat(2800));
    let truncated = |token: String, by: usize| token[..token.len() - by].to_owned();
    let table: Vec<(&str, String, Option<Cause>)> = vec![
        ("HS256", mint(0, good), None),
        ("HS384", mint(1, good), None),
        ("HS512", mint(2, good), None),
        ("last key", mint(3, good), None),
        ("long", mint(0, &long), None),
        (
            "unknown key",
            jwt::mint(&key("5", Algorithm::HS256), good.as_bytes()),
            Some(Cause::BadSignature),
        ),
        (
            "unknown HS512 key",
            jwt::mint(&key("5", Algorithm::HS512), good.as_bytes()),
            Some(Cause::BadSignature),
        ),
        ("short MAC", truncated(mint(0, good), 3), Some(Cause::BadSignature)),
        ("no MAC", truncated(mint(0, good), 43), Some(Cause::BadSignature)),
        ("empty", String::new(), Some(Cause::TokenMalformed)),
        ("garbage", "\u{e9}.\0.".into(), Some(Cause::TokenMalformed)),
        ("too long", "a".repeat(20_000), Some(Cause::TokenMalformed)),
        ("bad base64", "e30.e30=.AA".into(), Some(Cause::TokenMalformed)),
        ("header", "e30.e30.AAAA".into(), Some(Cause::TokenMalformed)),
        ("no exp", mint(0, r#"{"sub":"u"}"#), Some(Cause::TokenMalformed)),
        ("twice", mint(0, r#"{"exp":1,"\u0065xp":1}"#), Some(Cause::TokenMalformed)),
        ("bad JSON", mint(0, r#"{"exp":"#), Some(Cause::TokenMalformed)),
        ("expired", mint(0, r#"{"exp":1700000000}"#), Some(Cause::TokenExpired)),
        ("early", mint(0, r#"{"exp":1700000009,"nbf":1700000001}"#), Some(Cause::TokenNotYetValid)),
        ("audience", mint(0, r#"{"exp":1700000001,"aud":["x"]}"#), Some(Cause::TokenForbidden)),
    ];
    let mut scratch = TokenScratch::new();
    for (name, token, expected) in &table {
        let now = UnixTime::from_seconds(1_700_000_000);
        let (count, got) =
            allocations(|| verifier.verify(token.as_bytes(), now, &mut scratch).err());
        assert_eq!(got, *expected, "{name}");
        assert_eq!(count, 0, "{name}");
    }
}

/// Two derived keys of Phoenix, and one that is not ours.
fn derived() -> [Secret; 3] {
    ["new", "old", "other"].map(|base| {
        Derivation::default().derive(&Secret::new(base.repeat(30).into_bytes()), b"salt")
    })
}

/// Cuts and garbage of a good token, which every kind refuses.
fn broken(token: &str) -> Vec<(String, Cause)> {
    use Cause::{BadSignature, TokenMalformed};
    vec![
        (token[..token.len() - 4].to_owned(), BadSignature),
        (String::new(), TokenMalformed),
        ("\u{e9}.\0.".to_owned(), TokenMalformed),
        ("a".repeat(20_000), TokenMalformed),
        (format!("{token}="), TokenMalformed),
    ]
}

#[test]
fn phoenix_tokens_allocate_nothing() {
    let [new, old, other] = derived();
    let (max_age, subject) = (MaxAge::Embedded, Some("user_id".into()));
    let verifier =
        PhoenixVerifier::new(&[new.clone(), old.clone()], PhoenixOptions { max_age, subject });
    let now = UnixTime::from_seconds(1_700_000_000);
    let mint = |key: &Secret, data: Value| phoenix_token::mint(key, &data, now, 60);
    let wide: Value = (0..200).map(|n| (format!("k{n}"), Value::from(n))).collect();
    let long = json!({"user_id": "u", "x": "\u{1}".repeat(2800)});
    let late = |by: u64| phoenix_token::mint(&new, &json!(7), UnixTime::from_seconds(by), 60);
    let mut table = vec![
        (mint(&new, json!(42)), None),
        (mint(&old, json!(i64::MIN)), None),
        (mint(&new, json!("ada")), None),
        (mint(&new, json!({"user_id": 7, "f": 1.5, "l": [1, null, true]})), None),
        (mint(&new, long), None),
        (mint(&new, wide), Some(Cause::TokenForbidden)),
        (
            mint(
                &new,
                (0..270)
                    .map(|n| (format!("k{n}"), Value::from(n)))
                    .chain([("user_id".to_owned(), json!(1))])
                    .collect(),
            ),
            None,
        ),
        (mint(&other, json!(42)), Some(Cause::BadSignature)),
        (late(1_600_000_000), Some(Cause::TokenExpired)),
        (late(1_800_000_000), Some(Cause::TokenNotYetValid)),
        (plug_session::mint(&new, json!({}), &[1; 36]).cookie, Some(Cause::TokenMalformed)),
    ];
    table.extend(broken(&mint(&new, json!(42))).into_iter().map(|(t, c)| (t, Some(c))));
    let mut scratch = TokenScratch::new();
    for (token, expected) in &table {
        let (count, got) =
            allocations(|| verifier.verify(token.as_bytes(), now, &mut scratch).err());
        assert_eq!((count, got), (0, *expected), "{token}");
    }
}

#[test]
fn sessions_allocate_nothing() {
    let [new, old, other] = derived();
    let (subject, max_age) = ("user_id".into(), Some(Duration::from_secs(60)));
    let options = SessionOptions { subject, max_age, csrf: true };
    let verifier = SessionVerifier::new(&[new.clone(), old.clone()], options);
    let now = UnixTime::from_seconds(1_700_000_000);
    let mint = |key: &Secret, session: Value| plug_session::mint(key, session, &[7; 36]);
    let good = mint(&new, json!({"user_id": 42, "locale": "de"}));
    let mut table = vec![
        (good.cookie.clone(), Some(good.csrf.clone()), None),
        (mint(&old, json!({"user_id": "ada"})).cookie, Some(good.csrf.clone()), None),
        (good.cookie.clone(), None, Some(Cause::CsrfMismatch)),
        (good.cookie.clone(), Some("A".repeat(56)), Some(Cause::CsrfMismatch)),
        (good.cookie.clone(), Some("!".repeat(56)), Some(Cause::CsrfMismatch)),
        (mint(&new, json!({})).cookie, Some(good.csrf.clone()), Some(Cause::TokenMissing)),
        (mint(&other, json!({"user_id": 1})).cookie, None, Some(Cause::BadSignature)),
        (mint(&new, json!([1])).cookie, None, Some(Cause::TokenMalformed)),
    ];
    table.extend(broken(&good.cookie).into_iter().map(|(t, c)| (t, None, Some(c))));
    let mut scratch = TokenScratch::new();
    for (cookie, csrf, expected) in &table {
        let csrf = csrf.as_ref().map(String::as_bytes);
        let (count, got) =
            allocations(|| verifier.verify(cookie.as_bytes(), csrf, now, &mut scratch).err());
        assert_eq!((count, got), (0, *expected), "{cookie} {csrf:?}");
    }
}

#[test]
fn compact_tokens_allocate_nothing() {
    let key = |id: u8| CompactKey { id, secret: Secret::new(vec![id; 32]) };
    let (leeway, lifetime_max) = (Duration::ZERO, Duration::from_secs(3600));
    let verifier = CompactVerifier::new(&[key(1), key(2)], CompactOptions { leeway, lifetime_max });
    let now = UnixTime::from_seconds(1_700_000_000);
    let claims = [b'x'; 2000];
    let mint = |id: u8, issued: u64, expires: u64| {
        let (issued, expires) = (UnixTime::from_seconds(issued), UnixTime::from_seconds(expires));
        let fields = Fields { issued, expires, subject: "ada", token_id: "t1", claims: &claims };
        compact_token::mint(&key(id), &fields).unwrap()
    };
    let (past, start, end) = (1_600_000_000, 1_700_000_000, 1_700_000_060);
    let mut table = vec![
        (mint(1, start, end), None),
        (mint(2, start, end), None),
        (mint(3, start, end), Some(Cause::BadSignature)),
        (mint(1, past, past), Some(Cause::TokenExpired)),
        (mint(1, end, end), Some(Cause::TokenNotYetValid)),
        (mint(1, start, start + 3601), Some(Cause::TokenForbidden)),
    ];
    table.extend(broken(&mint(1, start, end)).into_iter().map(|(t, c)| (t, Some(c))));
    let mut scratch = TokenScratch::new();
    for (token, expected) in &table {
        let (count, got) =
            allocations(|| verifier.verify(token.as_bytes(), now, &mut scratch).err());
        assert_eq!((count, got), (0, *expected), "{token}");
    }
}

#[test]
fn dead_tokens_allocate_nothing() {
    let mut dead = RejectedTokenCache::new(64, [7; 16]);
    let now = UnixTime::from_seconds(1_700_000_000);
    for number in 0..1000_u32 {
        let token = number.to_be_bytes();
        let (count, found) = allocations(|| {
            let key = dead.key(&[1; 16], &token).expect("it is on");
            let before = dead.find(key, now);
            dead.insert(key, Cause::BadSignature);
            (before, dead.find(key, now))
        });
        assert_eq!((count, found), (0, (None, Some(Cause::BadSignature))));
    }
}

#[test]
fn judging_a_request_allocates_nothing() {
    let limits = HeadLimits::default();
    let origins = ["https://app.example.com", "https://*.wild.example"].map(String::from);
    let policy = OriginPolicy::parse_list(&origins).unwrap();
    let carriers =
        ["authorization", "subprotocol", "cookie:session", "header:x-token", "query:token"]
            .map(|text| Carrier::parse(text).unwrap());
    let start = "Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Origin: https://a.b.wild.example\r\n";
    let table = [
        ("/ws", "Authorization: Bearer abc\r\n", Ok(true)),
        ("/ws", "Sec-WebSocket-Protocol: a, base64url.bearer.phx.YWJj\r\n", Ok(true)),
        ("/ws", "Cookie: a=b; session=abc\r\n", Ok(true)),
        ("/ws", "X-Token: abc\r\n", Ok(true)),
        ("/ws?token=%61bc", "", Ok(true)),
        ("/ws", "", Ok(false)),
        ("/ws?token=a&token=b", "", Err(Cause::TokenRepeated)),
        ("/ws", "Sec-WebSocket-Protocol: base64url.bearer.phx.Y\r\n", Err(Cause::TokenMalformed)),
    ];
    let mut scratch = CarrierScratch::new();
    for (target, fields, expected) in table {
        let head = format!("GET {target} HTTP/1.1\r\n{start}{fields}\r\n");
        let (count, got) = allocations(|| {
            let mut scanner = HeadScanner::default();
            let end = scanner.push(head.as_bytes(), &limits);
            assert_eq!(end, Ok(Some(head.len())));
            let mut room = NO_FIELDS;
            let Ok(Request::Upgrade(request)) = parse(head.as_bytes(), &mut room, &limits) else {
                panic!("an upgrade")
            };
            assert!(policy.allows(request.origin().unwrap()));
            let found = carrier::find(&carriers, &request, &mut scratch);
            found.map(|found| found.is_some_and(|found| found.token() == b"abc"))
        });
        assert_eq!(got, expected, "{target} {fields}");
        assert_eq!(count, 0, "{target} {fields}");
    }
}
