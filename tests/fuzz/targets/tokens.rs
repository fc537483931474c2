//! Tokens of other kinds than JWT. Each target takes its input as a token, and as the content of a
//! token that it signs itself, so that what lies behind the MAC is reached.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use portcullis::base::secret::Secret;
use portcullis::base::time::UnixTime;
use portcullis::protocol::compact_token::{self, CompactKey, CompactOptions, CompactVerifier};
use portcullis::protocol::external_term;
use portcullis::protocol::identity::VerifiedIdentity;
use portcullis::protocol::jwt::TokenScratch;
use portcullis::protocol::phoenix_token::{MaxAge, PhoenixOptions, PhoenixVerifier};
use portcullis::protocol::plug_session::{SessionOptions, SessionVerifier};
use serde::de::IgnoredAny;
use sha2::Sha256;

const NOW: UnixTime = UnixTime::from_seconds(1_700_000_000);
const SECRET: &[u8; 32] = b"0123456789abcdef0123456789abcdef";

fn mac(signed: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET).expect("any length is a key");
    mac.update(signed);
    mac.finalize().into_bytes().into()
}

/// Plug.Crypto's signed message with this content.
fn message(content: &[u8]) -> String {
    let signed = format!("SFMyNTY.{}", URL_SAFE_NO_PAD.encode(content));
    let mac = URL_SAFE_NO_PAD.encode(mac(signed.as_bytes()));
    format!("{signed}.{mac}")
}

/// Whom it names is named, and its claims are JSON.
fn check(identity: &VerifiedIdentity<'_>) {
    assert!(!identity.subject().is_empty());
    serde_json::from_slice::<IgnoredAny>(identity.claims()).expect("JSON");
}

/// A term of Erlang's is JSON once it is written as such.
pub fn term(data: &[u8]) {
    let mut inflated = Vec::new();
    let Some(data) = external_term::inflated(data, &mut inflated) else { return };
    let Some(term) = external_term::read(data) else { return };
    let mut room = vec![0; 4 * data.len() + 1000];
    let json = external_term::write_json(term, Some("_csrf_token"), &mut room);
    serde_json::from_slice::<IgnoredAny>(json).expect("JSON");
    let mut small = [0; 7];
    let _ = external_term::write_json(term, None, &mut small);
}

/// A Phoenix token.
pub fn phoenix(data: &[u8]) {
    let mut scratch = TokenScratch::new();
    let keys = [Secret::new(SECRET.to_vec())];
    let subject = data.len().is_multiple_of(2).then(|| "user_id".into());
    for max_age in [MaxAge::Embedded, MaxAge::Fixed(Duration::from_secs(60)), MaxAge::Infinite] {
        let options = PhoenixOptions { max_age, subject: subject.clone() };
        let verifier = PhoenixVerifier::new(&keys, options);
        for token in [data, message(data).as_bytes()] {
            if let Ok(identity) = verifier.verify(token, NOW, &mut scratch) {
                check(&identity);
            }
        }
    }
}

/// A session cookie of Plug's, with and without its CSRF token.
pub fn session(data: &[u8]) {
    let mut scratch = TokenScratch::new();
    let keys = [Secret::new(SECRET.to_vec())];
    for csrf in [false, true] {
        let options = SessionOptions { subject: "user_id".into(), max_age: None, csrf };
        let verifier = SessionVerifier::new(&keys, options);
        let parameter = data.get(..56);
        for cookie in [data, message(data).as_bytes()] {
            if let Ok(identity) = verifier.verify(cookie, parameter, NOW, &mut scratch) {
                check(&identity);
                assert!(!csrf, "nobody guesses the mask");
            }
        }
    }
}

/// A compact token; what is accepted can be made again from its fields.
pub fn compact(data: &[u8]) {
    let mut scratch = TokenScratch::new();
    let key = CompactKey { id: 1, secret: Secret::new(SECRET.to_vec()) };
    let hour = Duration::from_secs(3600);
    let options = CompactOptions { leeway: Duration::ZERO, lifetime_max: hour };
    let verifier = CompactVerifier::new(std::slice::from_ref(&key), options);
    let signed = URL_SAFE_NO_PAD.encode([data, &mac(data)].concat());
    for token in [data, signed.as_bytes()] {
        let Ok(identity) = verifier.verify(token, NOW, &mut scratch) else { continue };
        let expires = identity.expires().expect("it has an end");
        assert!(!identity.subject().is_empty() && expires > NOW && expires <= NOW.later(hour));
        let text = std::str::from_utf8(token).expect("base64url");
        let fields = compact_token::Fields {
            issued: identity.issued_at().expect("it has a beginning"),
            expires,
            subject: identity.subject(),
            token_id: identity.token_id().unwrap_or_default(),
            claims: identity.claims(),
        };
        assert_eq!(compact_token::mint(&key, &fields).as_deref(), Some(text));
    }
}
