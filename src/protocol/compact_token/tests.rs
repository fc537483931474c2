use proptest::prelude::*;
use serde_json::Value;

use super::*;

const NOW: u64 = 1_700_000_000;

fn key(id: u8, byte: u8) -> CompactKey {
    CompactKey { id, secret: Secret::new(vec![byte; 32]) }
}

fn verifier(keys: &[CompactKey]) -> CompactVerifier {
    let (leeway, lifetime_max) = (Duration::from_secs(10), Duration::from_secs(86_400));
    CompactVerifier::new(keys, CompactOptions { leeway, lifetime_max })
}

fn fields<'f>() -> Fields<'f> {
    Fields {
        issued: UnixTime::from_seconds(NOW),
        expires: UnixTime::from_seconds(NOW + 60),
        subject: "ada",
        token_id: "t1",
        claims: b"{}",
    }
}

fn refused(verifier: &CompactVerifier, token: &str, now: u64) -> Option<Cause> {
    let mut scratch = TokenScratch::new();
    verifier.verify(token.as_bytes(), UnixTime::from_seconds(now), &mut scratch).err()
}

#[test]
fn vectors() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/compact_token.json");
    let vectors: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let rows = vectors["tokens"].as_array().unwrap();
    assert!(rows.len() >= 4);
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap();
        let bytes = |name: &str| -> Vec<u8> {
            let digits = text(name).as_bytes().chunks(2);
            digits.map(|d| u8::from_str_radix(str::from_utf8(d).unwrap(), 16).unwrap()).collect()
        };
        let seconds = |name: &str| UnixTime::from_seconds(row[name].as_u64().unwrap());
        let id = row["key_id"].as_u64().unwrap() as u8;
        let key = CompactKey { id, secret: Secret::new(bytes("secret_hex")) };
        let claims = bytes("claims_hex");
        let fields = Fields {
            issued: seconds("issued"),
            expires: seconds("expires"),
            subject: text("subject"),
            token_id: text("token_id"),
            claims: &claims,
        };
        assert_eq!(mint(&key, &fields).as_deref(), Some(text("token")));
        let mut scratch = TokenScratch::new();
        let verifier = verifier(&[key]);
        let Ok(identity) = verifier.verify(text("token").as_bytes(), fields.issued, &mut scratch)
        else {
            panic!("{row}")
        };
        assert_eq!(identity.subject(), fields.subject);
        assert_eq!(identity.token_id().unwrap_or_default(), fields.token_id);
        assert_eq!(identity.claims(), claims);
        assert_eq!(identity.issued_at(), Some(fields.issued));
        assert_eq!(identity.expires(), Some(fields.expires));
        assert!(!identity.is_anonymous());
    }
}

#[test]
fn tokens_are_judged() {
    use Cause::{BadSignature, TokenExpired, TokenForbidden, TokenMalformed, TokenNotYetValid};
    let verifier = verifier(&[key(1, 1), key(2, 2)]);
    let good = fields();
    let token = |key: &CompactKey, fields: &Fields<'_>| mint(key, fields).unwrap();
    let at = UnixTime::from_seconds;
    let ours = token(&key(1, 1), &good);
    let flip = |at: usize| {
        let mut bytes = ours.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        bytes.into_iter().map(char::from).collect::<String>()
    };
    let table: Vec<(&str, String, u64, Option<Cause>)> = vec![
        ("good", ours.clone(), NOW, None),
        ("second key", token(&key(2, 2), &good), NOW, None),
        ("wrong key", token(&key(1, 2), &good), NOW, Some(BadSignature)),
        ("unknown key", token(&key(3, 1), &good), NOW, Some(BadSignature)),
        ("version", flip(0), NOW, Some(TokenMalformed)),
        ("a field", flip(8), NOW, Some(BadSignature)),
        ("the MAC", flip(ours.len() - 10), NOW, Some(BadSignature)),
        ("cut", ours[..ours.len() - 4].into(), NOW, Some(BadSignature)),
        ("longer", format!("{ours}AAAA"), NOW, Some(BadSignature)),
        ("padding", format!("{ours}="), NOW, Some(TokenMalformed)),
        ("empty", String::new(), NOW, Some(TokenMalformed)),
        ("32 bytes", "A".repeat(43), NOW, Some(TokenMalformed)),
        ("too long", "A".repeat(4100), NOW, Some(TokenMalformed)),
        ("in the leeway", ours.clone(), NOW + 69, None),
        ("over", ours.clone(), NOW + 70, Some(TokenExpired)),
        ("slow clock", ours.clone(), NOW - 10, None),
        ("not yet", ours.clone(), NOW - 11, Some(TokenNotYetValid)),
        (
            "longest life",
            token(&key(1, 1), &Fields { expires: at(NOW + 86_400), ..good }),
            NOW,
            None,
        ),
        (
            "lives too long",
            token(&key(1, 1), &Fields { expires: at(NOW + 86_401), ..good }),
            NOW,
            Some(TokenForbidden),
        ),
        (
            "no claims, no id",
            token(&key(1, 1), &Fields { claims: b"", token_id: "", ..good }),
            NOW,
            None,
        ),
    ];
    for (name, token, now, expected) in table {
        assert_eq!(refused(&verifier, &token, now), expected, "{name}");
    }
}

/// What an issuer with a key of ours may still get wrong.
#[test]
fn signed_nonsense_is_malformed() {
    let verifier = verifier(&[key(1, 1)]);
    let state = MacState::new(Algorithm::HS256, &[1; 32]);
    let table: &[&[u8]] = &[
        b"\x01\x01",
        b"\x01\x01\0\0\0\x01\0\0\0",
        b"\x01\x01\0\0\0\x01\0\0\0\x02",
        b"\x01\x01\0\0\0\x01\0\0\0\x02\x00\x00",
        b"\x01\x01\0\0\0\x01\0\0\0\x02\x02a",
        b"\x01\x01\0\0\0\x01\0\0\0\x02\x01a",
        b"\x01\x01\0\0\0\x01\0\0\0\x02\x01a\x01",
        b"\x01\x01\0\0\0\x01\0\0\0\x02\x01\xff\x00",
        b"\x01\x01\0\0\0\x01\0\0\0\x02\x01a\x01\xff",
    ];
    for signed in table {
        let mut bytes = signed.to_vec();
        bytes.extend_from_slice(state.clone().compute(signed, &mut [0; MAC_MAX]));
        let mut text = Vec::new();
        base64url::encode(&bytes, &mut text);
        let text: String = text.into_iter().map(char::from).collect();
        assert_eq!(refused(&verifier, &text, 2), Some(Cause::TokenMalformed), "{signed:?}");
    }
}

#[test]
fn what_does_not_fit_is_not_minted() {
    let long = "x".repeat(256);
    let claims = vec![0; TOKEN_MAX / 4 * 3];
    for bad in [
        Fields { subject: "", ..fields() },
        Fields { subject: &long, ..fields() },
        Fields { token_id: &long, ..fields() },
        Fields { expires: UnixTime::from_seconds(1 << 32), ..fields() },
        Fields { claims: &claims, ..fields() },
    ] {
        assert_eq!(mint(&key(1, 1), &bad), None);
    }
}

proptest! {
    /// Whatever is changed in a token, it is refused: one text for one token.
    #[test]
    fn no_other_text_is_accepted(at in 0_usize..1000, byte in any::<u8>()) {
        let verifier = verifier(&[key(1, 1)]);
        let good = mint(&key(1, 1), &fields()).unwrap();
        let mut bytes = good.clone().into_bytes();
        let at = at % bytes.len();
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        let mut scratch = TokenScratch::new();
        let now = UnixTime::from_seconds(NOW);
        prop_assert!(verifier.verify(&bytes, now, &mut scratch).is_err());
    }
}
