//! Microbenchmarks of the codecs: `cargo bench --bench codecs`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use portcullis::base::secret::Secret;
use portcullis::base::time::UnixTime;
use portcullis::protocol::cause::Cause;
use portcullis::protocol::compact_token::{
    self, CompactKey, CompactOptions, CompactVerifier, Fields,
};
use portcullis::protocol::http_upgrade::{self, HeadLimits, HeadScanner, NO_FIELDS};
use portcullis::protocol::jwt::{self, Algorithm, JwtKey, JwtOptions, JwtVerifier, TokenScratch};
use portcullis::protocol::link::{LinkReader, SessionId, data_flags, encode_data};
use portcullis::protocol::mask::apply_mask;
use portcullis::protocol::phoenix_token::{self, MaxAge, PhoenixOptions, PhoenixVerifier};
use portcullis::protocol::plug_crypto::Derivation;
use portcullis::protocol::plug_session::{self, Minted, SessionOptions, SessionVerifier};
use portcullis::protocol::rejected_tokens::RejectedTokenCache;
use portcullis::protocol::utf8::Utf8Validator;
use portcullis::protocol::websocket::{FrameLimits, FrameReader, OpCode, Side, write_header};
use serde_json::json;

const NOW: u64 = 1_800_000_000;
const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

fn tokens(c: &mut Criterion) {
    let key = || JwtKey {
        id: Some("k1".into()),
        algorithm: Algorithm::HS256,
        secret: Secret::new(vec![7; 32]),
    };
    let claims =
        format!(r#"{{"sub":"user-4711","exp":{},"iat":{NOW},"jti":"0123456789"}}"#, NOW + 600);
    let good = jwt::mint(&key(), claims.as_bytes());
    let forged = forge(&good);
    let verifier = JwtVerifier::new(vec![key()], JwtOptions::default()).expect("a good key");
    let mut scratch = TokenScratch::default();
    let now = UnixTime::from_seconds(NOW);
    let mut group = c.benchmark_group("tokens");
    let mut pair = |name: &str, tokens: [&[u8]; 2], verify: &mut dyn FnMut(&[u8]) -> bool| {
        for (token, accepted, verdict) in [(0, true, "accepted"), (1, false, "refused")] {
            let token = tokens[token];
            assert_eq!(verify(token), accepted, "{name} {verdict}");
            group.bench_function(format!("{name}, {} bytes, {verdict}", tokens[0].len()), |b| {
                b.iter(|| verify(black_box(token)));
            });
        }
    };
    pair("jwt HS256", [good.as_bytes(), &forged], &mut |token| {
        verifier.verify(token, now, &mut scratch).is_ok()
    });
    let key = Derivation::default().derive(&Secret::new(vec![b'k'; 64]), b"salt");
    let phoenix = phoenix_token::mint(&key, &json!("user-4711"), now, 600);
    let options = PhoenixOptions { max_age: MaxAge::Embedded, subject: None };
    let verifier = PhoenixVerifier::new(std::slice::from_ref(&key), options);
    pair("phoenix", [phoenix.as_bytes(), &forge(&phoenix)], &mut |token| {
        verifier.verify(token, now, &mut scratch).is_ok()
    });
    let session = json!({"user_id": 4711, "locale": "de"});
    let Minted { cookie, csrf } = plug_session::mint(&key, session, &[9; 36]);
    let options = SessionOptions { subject: "user_id".into(), max_age: None, csrf: true };
    let verifier = SessionVerifier::new(&[key], options);
    pair("plug-session", [cookie.as_bytes(), &forge(&cookie)], &mut |token| {
        verifier.verify(token, Some(csrf.as_bytes()), now, &mut scratch).is_ok()
    });
    let key = CompactKey { id: 1, secret: Secret::new(vec![7; 32]) };
    let (leeway, lifetime_max) = (Duration::ZERO, Duration::from_secs(86_400));
    let verifier =
        CompactVerifier::new(std::slice::from_ref(&key), CompactOptions { leeway, lifetime_max });
    let expires = now.later(Duration::from_secs(600));
    let (subject, token_id) = ("user-4711", "0123456789");
    let fields = Fields { issued: now, expires, subject, token_id, claims: b"" };
    let compact = compact_token::mint(&key, &fields).expect("it fits");
    pair("compact", [compact.as_bytes(), &forge(&compact)], &mut |token| {
        verifier.verify(token, now, &mut scratch).is_ok()
    });
    let mut dead = RejectedTokenCache::new(65_536, [7; 16]);
    let replayed = dead.key(&[1; 16], &forged).expect("it is on");
    dead.insert(replayed, Cause::BadSignature);
    group.bench_function(format!("dead token of {} bytes, replayed", forged.len()), |b| {
        b.iter(|| {
            let key = dead.key(&[1; 16], black_box(&forged)).expect("it is on");
            dead.find(key, now).expect("it was refused before")
        });
    });
    group.bench_function(format!("unknown token of {} bytes, looked up", good.len()), |b| {
        b.iter(|| {
            let key = dead.key(&[1; 16], black_box(good.as_bytes())).expect("it is on");
            dead.find(key, now).is_none()
        });
    });
    group.finish();
}

/// The token with a wrong MAC.
fn forge(token: &str) -> Vec<u8> {
    let mut forged = token.as_bytes().to_vec();
    let at = forged.len() - 5;
    forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
    forged
}

fn upgrade(c: &mut Criterion) {
    let head = b"GET /ws?room=1 HTTP/1.1\r\nHost: app.example.com\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\nOrigin: https://app.example.com\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nUser-Agent: Mozilla/5.0 (X11; Linux)\r\n\
        Accept-Language: en\r\nCache-Control: no-cache\r\n\r\n";
    let limits = HeadLimits::default();
    c.bench_function("request head: scan, parse, answer", |b| {
        let mut answer = Vec::with_capacity(512);
        b.iter(|| {
            let end = HeadScanner::default().push(black_box(head), &limits);
            assert!(matches!(end, Ok(Some(_))));
            let mut fields = NO_FIELDS;
            let Ok(http_upgrade::Request::Upgrade(request)) =
                http_upgrade::parse(head, &mut fields, &limits)
            else {
                unreachable!("the request is an upgrade")
            };
            answer.clear();
            http_upgrade::write_switching_protocols(&mut answer, request.key(), None, &[]);
            answer.len()
        });
    });
}

fn frames(c: &mut Criterion) {
    let limits =
        FrameLimits { message_max: 1 << 20, fragments_max: 1024, text: true, binary: true };
    let mut group = c.benchmark_group("frames");
    for size in [64_usize, 4096] {
        let mut wire =
            write_header(true, OpCode::Text, size as u64, Some(MASK)).as_slice().to_vec();
        let mut payload = vec![b'x'; size];
        apply_mask(&mut payload, MASK, 0);
        wire.extend_from_slice(&payload);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("read a text frame of {size} bytes"), |b| {
            let mut reader = FrameReader::new(Side::Server);
            b.iter_batched_ref(
                || wire.clone(),
                |wire| {
                    let (used, _) = reader.next(wire, usize::MAX, &limits).expect("a good frame");
                    used
                },
                BatchSize::SmallInput,
            );
        });
        group.bench_function(format!("unmask {size} bytes"), |b| {
            let mut bytes = vec![0; size];
            b.iter(|| apply_mask(black_box(&mut bytes), MASK, 1));
        });
        let text = "naïve text, ".repeat(size / 13 + 1);
        group.bench_function(format!("validate {size} bytes of UTF-8"), |b| {
            b.iter(|| Utf8Validator::default().push(black_box(&text.as_bytes()[..size])).is_ok());
        });
    }
    group.finish();
}

fn link(c: &mut Criterion) {
    let session = SessionId::new(7, 1);
    let mut stream = Vec::new();
    for _ in 0..100 {
        encode_data(session, data_flags::WHOLE, &[b'x'; 64], &mut stream);
    }
    let mut group = c.benchmark_group("link, 100 DATA frames of 64 bytes");
    group.throughput(Throughput::Elements(100));
    group.bench_function("encode", |b| {
        let mut out = Vec::with_capacity(stream.len());
        b.iter(|| {
            out.clear();
            for _ in 0..100 {
                encode_data(session, data_flags::WHOLE, black_box(&[b'x'; 64]), &mut out);
            }
        });
    });
    group.bench_function("read", |b| {
        let mut reader = LinkReader::new(1 << 16);
        b.iter(|| {
            let mut input = black_box(stream.as_slice());
            let mut frames = 0;
            while reader.next(&mut input).expect("good frames").is_some() {
                frames += 1;
            }
            assert_eq!(frames, 100);
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = tokens, upgrade, frames, link
}
criterion_main!(benches);
