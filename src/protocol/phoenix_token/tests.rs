use serde_json::{Value, json};

use super::*;
use crate::protocol::base64url;
use crate::protocol::plug_crypto::Derivation;
use crate::protocol::scratch::TOKEN_MAX;

const AT_MS: u64 = 1_700_000_000_000;

fn vectors(name: &str) -> Value {
    let path = format!("{}/tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

fn options(max_age: MaxAge, subject: Option<&str>) -> PhoenixOptions {
    PhoenixOptions { max_age, subject: subject.map(TermPath::from) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Subject, claims and end, or the cause.
type Decision = Result<(String, String, Option<u64>), Cause>;

fn decision(verifier: &PhoenixVerifier, token: &str, now_ms: u64) -> Decision {
    let mut scratch = TokenScratch::new();
    let identity =
        verifier.verify(token.as_bytes(), UnixTime::from_millis(now_ms), &mut scratch)?;
    let claims = str::from_utf8(identity.claims()).unwrap().to_owned();
    assert_eq!(identity.token_id(), None);
    Ok((identity.subject().into(), claims, identity.expires().map(UnixTime::as_millis)))
}

#[test]
fn vectors_of_erlang() {
    let vectors = vectors("phoenix_token.json");
    let rows = vectors["vectors"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    for row in rows {
        let base = secret(row["secret_key_base"].as_str().unwrap());
        let salt = row["salt"].as_str().unwrap();
        let key = Derivation::default().derive(&base, salt.as_bytes());
        if let Some(expected) = row["key_hex"].as_str() {
            assert_eq!(hex(key.expose()), expected);
        }
        let verifier =
            PhoenixVerifier::new(std::slice::from_ref(&key), options(MaxAge::Embedded, None));
        let token = row["token"].as_str().unwrap();
        let signed = row["signed_at_ms"].as_u64().unwrap();
        let max_age_s = row["max_age_s"].as_u64().unwrap();
        let data = &row["data"];
        let subject = data.as_str().map_or_else(|| data.to_string(), str::to_owned);
        let expires = Some(signed + max_age_s * 1000);
        let expected = Ok((subject, data.to_string(), expires));
        assert_eq!(decision(&verifier, token, signed), expected);
        assert_eq!(mint(&key, data, UnixTime::from_millis(signed), max_age_s), token);
        if let Some(offer) = row["phoenix_js_subprotocol"].as_str() {
            let text = offer.strip_prefix("base64url.bearer.phx.").unwrap();
            let mut out = [0; 512];
            assert_eq!(base64url::decode_either(text.as_bytes(), &mut out), Some(token.as_bytes()));
        }
    }
}

#[test]
fn vectors_of_plug() {
    let vectors = vectors("plug.json");
    let base = secret(vectors["secret_key_base"].as_str().unwrap());
    let salt = vectors["salt"].as_str().unwrap().as_bytes();
    let rows = vectors["tokens"].as_array().unwrap();
    assert_eq!(rows.len(), 19);
    for row in rows {
        let name = row["name"].as_str().unwrap();
        let digest = match row["digest"].as_str().unwrap() {
            "sha256" => Algorithm::HS256,
            "sha384" => Algorithm::HS384,
            _ => Algorithm::HS512,
        };
        let number = |key: &str| row[key].as_u64().unwrap();
        let (iterations, length) = (number("iterations") as u32, number("length") as usize);
        let key = Derivation { iterations, length, digest }.derive(&base, salt);
        assert_eq!(hex(key.expose()), row["key_hex"].as_str().unwrap(), "{name}");
        let verifier = PhoenixVerifier::new(&[key], options(MaxAge::Embedded, Some("user_id")));
        let token = row["token"].as_str().unwrap();
        let expected = match row["subject"].as_str() {
            Some(subject) => {
                let claims = row["claims"].as_str().unwrap().to_owned();
                Ok((subject.to_owned(), claims, row["expires_ms"].as_u64()))
            }
            None => Err(Cause::TokenExpired),
        };
        let now = AT_MS + 1000;
        assert_eq!(decision(&verifier, token, now), expected, "{name}");
        if let Some(expires) = row["expires_ms"].as_u64() {
            assert_eq!(decision(&verifier, token, expires), expected, "{name}");
            let late = decision(&verifier, token, expires + 1);
            assert_eq!(late, Err(Cause::TokenExpired), "{name}");
        }
    }
}

/// A verifier and its key.
fn fixture(max_age: MaxAge, subject: Option<&str>) -> (PhoenixVerifier, Secret) {
    let key = Derivation::default().derive(&secret("base"), b"salt");
    (PhoenixVerifier::new(std::slice::from_ref(&key), options(max_age, subject)), key)
}

#[test]
fn ages_are_judged_as_plug_does() {
    use Cause::{TokenExpired as Old, TokenNotYetValid as Early};
    let fixed = MaxAge::Fixed(Duration::from_secs(10));
    type Row = (MaxAge, u64, i64, Result<Option<i64>, Cause>);
    let table: &[Row] = &[
        // The configuration, the token's age in seconds, the clock after signing in ms.
        (MaxAge::Embedded, 60, 0, Ok(Some(60_000))),
        (MaxAge::Embedded, 60, 60_000, Ok(Some(60_000))),
        (MaxAge::Embedded, 60, 60_001, Err(Old)),
        (MaxAge::Embedded, 60, -1, Err(Early)),
        (MaxAge::Embedded, 0, 0, Err(Old)),
        (MaxAge::Embedded, 0, -1, Err(Old)),
        (MaxAge::Embedded, u64::MAX, 1 << 50, Ok(Some(i64::MAX - AT_MS as i64))),
        (fixed, 60, 10_000, Ok(Some(10_000))),
        (fixed, 60, 10_001, Err(Old)),
        (fixed, 0, 5_000, Ok(Some(10_000))),
        (fixed, 60, -1, Err(Early)),
        (MaxAge::Infinite, 60, 1 << 50, Ok(None)),
        (MaxAge::Infinite, 0, -1, Ok(None)),
    ];
    for (max_age, embedded, after, expected) in table {
        let (verifier, key) = fixture(*max_age, None);
        let token = mint(&key, &json!(7), UnixTime::from_millis(AT_MS), *embedded);
        let got = decision(&verifier, &token, AT_MS.checked_add_signed(*after).unwrap());
        let expires = got.map(|(_, _, expires)| expires.map(|at| at as i64 - AT_MS as i64));
        assert_eq!(expires, *expected, "{max_age:?} {embedded} {after}");
    }
}

#[test]
fn subjects_come_from_the_data() {
    let long = "x".repeat(NAME_MAX);
    let table: Vec<(Option<&str>, Value, Option<&str>)> = vec![
        (None, json!(42), Some("42")),
        (None, json!(-42), Some("-42")),
        (None, json!("ada"), Some("ada")),
        (None, json!(long), Some(&long)),
        (None, json!(format!("{long}x")), None),
        (None, json!(""), None),
        (None, json!(null), None),
        (None, json!(true), None),
        (None, json!(1.5), None),
        (None, json!([1]), None),
        (None, json!({"user_id": 42}), None),
        (Some("user_id"), json!({"user_id": 42}), Some("42")),
        (Some("user_id"), json!({"user_id": "ada", "x": 1}), Some("ada")),
        (Some("user_id"), json!({"id": 42}), None),
        (Some("user_id"), json!({"user_id": null}), None),
        (Some("user_id"), json!({"user_id": {"user_id": 1}}), None),
        (Some("user_id"), json!(42), Some("42")),
    ];
    for (subject, data, expected) in table {
        let (verifier, key) = fixture(MaxAge::Embedded, subject);
        let token = mint(&key, &data, UnixTime::from_millis(AT_MS), 60);
        let got = decision(&verifier, &token, AT_MS);
        let got = got.map(|(subject, _, _)| subject);
        assert_eq!(got.as_deref().map_err(|c| *c), expected.ok_or(Cause::TokenForbidden), "{data}");
    }
}

/// Payloads with a valid MAC that no library would sign.
#[test]
fn odd_terms_are_malformed() {
    let (verifier, key) = fixture(MaxAge::Embedded, None);
    let signed = |payload: &[u8]| plug_crypto::sign(&key, Algorithm::HS256, payload);
    let table: &[&[u8]] = &[
        b"",
        b"\x83",
        b"\x83a\x01",
        b"\x83h\x01a\x07",
        b"\x83h\x04a\x07a\x01a\x01a\x01",
        b"\x83h\x03a\x07m\x00\x00\x00\x011a\x01",
        b"\x83h\x03a\x07F\x3f\xf0\x00\x00\x00\x00\x00\x00a\x01",
        b"\x83h\x03a\x07a\x01w\x03day",
        b"\x83h\x03a\x07a\x01m\x00\x00\x00\x08infinity",
        b"\x83h\x03a\x07a\x01a\x01\x00",
        b"\x83h\x03a\x07a\x01\x79\x01",
        b"\x83t\x00\x00\x00\x01w\x04dataa\x07",
        b"\x83t\x00\x00\x00\x02m\x00\x00\x00\x04dataa\x07w\x06signeda\x01",
        b"\x83P\x00\x00\x00\x03\x78\x9c\x4b\x4c\x04\x00\x02\x4d\x01\x27",
    ];
    for payload in table {
        let cause = decision(&verifier, &signed(payload), 5_000_000).unwrap_err();
        assert_eq!(cause, Cause::TokenMalformed, "{}", payload.escape_ascii());
    }
    let endless = signed(b"\x83h\x03a\x07a\x01w\x08infinity");
    assert_eq!(decision(&verifier, &endless, 0), Ok(("7".into(), "7".into(), None)));
}

#[test]
fn messages_are_read_exactly() {
    let (verifier, key) = fixture(MaxAge::Embedded, None);
    let good = mint(&key, &json!(7), UnixTime::from_millis(AT_MS), 60);
    let [name, payload, mac] = good.split('.').collect::<Vec<_>>()[..] else { panic!() };
    let stranger = Derivation::default().derive(&secret("base"), b"other salt");
    let forged = mint(&stranger, &json!(7), UnixTime::from_millis(AT_MS), 60);
    let flipped = if mac.starts_with('A') { "B" } else { "A" };
    use Cause::{BadSignature as Forged, TokenMalformed as Bad};
    let table: Vec<(String, Option<Cause>)> = vec![
        (good.clone(), None),
        (forged, Some(Forged)),
        (format!("{name}.{payload}.{flipped}{}", &mac[1..]), Some(Forged)),
        (format!("{name}.{payload}."), Some(Forged)),
        (format!("{name}.{payload}.{}", &mac[..40]), Some(Forged)),
        (format!("{name}.{payload}.{mac}AAAA"), Some(Forged)),
        (format!("{name}..{mac}"), Some(Forged)),
        (format!("SFMzODQ.{payload}.{mac}"), Some(Forged)),
        (format!("SFM1MTI.{payload}.{mac}"), Some(Forged)),
        (format!("{name}.{payload}"), Some(Bad)),
        (format!("{name}.{payload}.{mac}."), Some(Bad)),
        (format!("{name}.{payload}=.{mac}"), Some(Bad)),
        (format!("{name}.{payload}.{mac}="), Some(Bad)),
        (format!("SFMyNTY=.{payload}.{mac}"), Some(Bad)),
        (format!("sfmyNTY.{payload}.{mac}"), Some(Bad)),
        (format!("bm9uZQ.{payload}."), Some(Bad)),
        (format!("eyJhbGciOiJIUzI1NiJ9.{payload}.{mac}"), Some(Bad)),
        (String::new(), Some(Bad)),
        (format!("{name}.{}.{mac}", "A".repeat(TOKEN_MAX)), Some(Bad)),
    ];
    for (token, expected) in table {
        assert_eq!(decision(&verifier, &token, AT_MS).err(), expected, "{token}");
    }
}

#[test]
fn keys_rotate_with_overlap() {
    let keys =
        ["new", "old", "older"].map(|base| Derivation::default().derive(&secret(base), b"salt"));
    let verifier = PhoenixVerifier::new(&keys[..2], options(MaxAge::Embedded, None));
    for (key, accepted) in keys.iter().zip([true, true, false]) {
        let token = mint(key, &json!(7), UnixTime::from_millis(AT_MS), 60);
        assert_eq!(decision(&verifier, &token, AT_MS).is_ok(), accepted);
    }
}

/// Data beside the subject that JSON has no form for locks no user out.
#[test]
fn the_subject_decides() {
    let (verifier, key) = fixture(MaxAge::Infinite, Some("user_id"));
    let token = |pairs: u8, data: &[u8]| {
        let head = [b"\x83h\x03t\x00\x00\x00".as_slice(), &[pairs]].concat();
        let payload = [&head[..], b"w\x07user_ida\x2a", data, b"a\x01w\x08infinity"].concat();
        plug_crypto::sign(&key, Algorithm::HS256, &payload)
    };
    let table: &[(u8, &[u8], &str)] = &[
        // A tuple, a list and a float as keys.
        (2, b"h\x00a\x01", r#"{"user_id":42,"$unsupported":1}"#),
        (3, b"ja\x01F\x3f\xf8\x00\x00\x00\x00\x00\x00a\x02", r#"{"user_id":42,"$unsupported":2}"#),
        // An atom and a text of one spelling.
        (3, b"w\x01aa\x01m\x00\x00\x00\x01aa\x02", r#"{"user_id":42,"$unsupported":2}"#),
        // MapSet.new([{1, 2}]).
        (
            2,
            b"w\x03sett\x00\x00\x00\x01h\x02a\x01a\x02j",
            r#"{"user_id":42,"set":{"$unsupported":1}}"#,
        ),
        (
            2,
            b"w\x01pX\x77\x01a\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00",
            r#"{"user_id":42,"p":{"$unsupported":"pid"}}"#,
        ),
        (2, b"w\x01lla\x01", ""),
    ];
    for (pairs, data, claims) in table {
        let got = decision(&verifier, &token(*pairs, data), AT_MS);
        let expected = match *claims {
            "" => Err(Cause::TokenMalformed),
            claims => Ok(("42".into(), claims.into(), None)),
        };
        assert_eq!(got, expected, "{}", data.escape_ascii());
    }
    // The subject itself twice: whose token it is cannot be told.
    let twice = token(2, b"m\x00\x00\x00\x07user_ida\x07");
    assert_eq!(decision(&verifier, &twice, AT_MS), Err(Cause::TokenForbidden));
}

#[test]
fn compressed_terms_are_accepted_within_a_bound() {
    let (verifier, key) = fixture(MaxAge::Infinite, Some("user_id"));
    let sign = |term: &[u8]| {
        let zlib = miniz_oxide::deflate::compress_to_vec_zlib(term, 9);
        let size = u32::try_from(term.len()).unwrap().to_be_bytes();
        plug_crypto::sign(&key, Algorithm::HS256, &[&b"\x83P"[..], &size, &zlib].concat())
    };
    let term = |data: Value| {
        let mut term = Vec::new();
        external_term::encode_signed(&data, AT_MS as i64, 60, &mut term);
        term.split_off(1)
    };
    let good = json!({"user_id": 42, "x": "y".repeat(10_000)});
    let got = decision(&verifier, &sign(&term(good.clone())), AT_MS);
    assert_eq!(got, Ok(("42".into(), good.to_string(), None)));
    // Claims that have no room are marked; the subject decides.
    let wide = json!({"user_id": 42, "x": "y".repeat(50_000)});
    let got = decision(&verifier, &sign(&term(wide)), AT_MS);
    assert_eq!(got, Ok(("42".into(), r#"{"$unsupported":"size"}"#.into(), None)));
    let bomb = json!({"user_id": 42, "x": "y".repeat(70_000)});
    assert_eq!(decision(&verifier, &sign(&term(bomb)), AT_MS), Err(Cause::TokenMalformed));
}

#[test]
fn subjects_stand_in_tuples_and_keywords() {
    use external_term::Step;
    let key = Derivation::default().derive(&secret("base"), b"salt");
    let path = |steps: Vec<Step>| {
        let options = PhoenixOptions { max_age: MaxAge::Infinite, subject: Some(steps.into()) };
        PhoenixVerifier::new(std::slice::from_ref(&key), options)
    };
    let token = |data: &[u8]| {
        let payload = [b"\x83h\x03", data, b"a\x01w\x08infinity"].concat();
        plug_crypto::sign(&key, Algorithm::HS256, &payload)
    };
    // {:user, 42} and [user_id: 42]
    let tuple = token(b"h\x02w\x04usera\x2a");
    let keyword = token(b"l\x00\x00\x00\x01h\x02w\x07user_ida\x2aj");
    let table: [(Vec<Step>, &str, &str); 2] = [
        (vec![Step::Index(1)], &tuple, r#"["user",42]"#),
        (vec![Step::Name("user_id".into())], &keyword, r#"[["user_id",42]]"#),
    ];
    for (steps, token, claims) in table {
        let got = decision(&path(steps.clone()), token, AT_MS);
        assert_eq!(got, Ok(("42".into(), claims.into(), None)), "{steps:?}");
        let other = path(vec![Step::Index(7)]);
        assert_eq!(decision(&other, token, AT_MS), Err(Cause::TokenForbidden));
    }
}
