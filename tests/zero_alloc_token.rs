//! Verifying a token allocates nothing, whether it is accepted or refused and for what cause.

// A global allocator cannot be written without `unsafe`; this one only counts and forwards.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use portcullis::base::secret::Secret;
use portcullis::base::time::UnixTime;
use portcullis::protocol::carrier::{self, Carrier, CarrierScratch};
use portcullis::protocol::cause::Cause;
use portcullis::protocol::http_upgrade::{HeadLimits, HeadScanner, NO_FIELDS, Request, parse};
use portcullis::protocol::jwt::{self, Algorithm, JwtKey, JwtOptions, JwtVerifier, TokenScratch};
use portcullis::protocol::origin::OriginPolicy;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call is forwarded unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps `GlobalAlloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `GlobalAlloc`'s contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps `GlobalAlloc`'s contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

fn key(id: &str, algorithm: Algorithm) -> JwtKey {
    JwtKey { id: Some(id.into()), algorithm, secret: Secret::new(id.repeat(32).into_bytes()) }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![0_u8; 64]))), 1);
    assert_eq!(allocations(|| ()), 0);
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
        ("too long", "a".repeat(5000), Some(Cause::TokenMalformed)),
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
        let mut got = None;
        let count = allocations(|| {
            got = verifier.verify(token.as_bytes(), now, &mut scratch).err();
        });
        assert_eq!(got, *expected, "{name}");
        assert_eq!(count, 0, "{name}");
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
        ("/ws?token=a&token=b", "", Err(Cause::TokenMalformed)),
        ("/ws", "Sec-WebSocket-Protocol: base64url.bearer.phx.Y\r\n", Err(Cause::TokenMalformed)),
    ];
    let mut scratch = CarrierScratch::new();
    for (target, fields, expected) in table {
        let head = format!("GET {target} HTTP/1.1\r\n{start}{fields}\r\n");
        let mut got = None;
        let count = allocations(|| {
            let mut scanner = HeadScanner::default();
            let end = scanner.push(head.as_bytes(), &limits);
            assert_eq!(end, Ok(Some(head.len())));
            let mut room = NO_FIELDS;
            let Ok(Request::Upgrade(request)) = parse(head.as_bytes(), &mut room, &limits) else {
                panic!("an upgrade")
            };
            assert!(policy.allows(request.origin().unwrap()));
            let found = carrier::find(&carriers, &request, &mut scratch);
            got = Some(found.map(|found| found.is_some_and(|found| found.token() == b"abc")));
        });
        assert_eq!(got, Some(expected), "{target} {fields}");
        assert_eq!(count, 0, "{target} {fields}");
    }
}
