use serde_json::{Value, json};

use super::*;
use crate::protocol::plug_crypto::Derivation;

const NOW: UnixTime = UnixTime::from_seconds(1_700_000_000);

fn options(csrf: bool) -> SessionOptions {
    SessionOptions { subject: "user_id".into(), max_age: None, csrf }
}

/// Subject and claims, or the cause.
fn decision(
    verifier: &SessionVerifier,
    cookie: &str,
    csrf: Option<&str>,
) -> Result<(String, String), Cause> {
    let mut scratch = TokenScratch::new();
    let csrf = csrf.map(str::as_bytes);
    let identity = verifier.verify(cookie.as_bytes(), csrf, NOW, &mut scratch)?;
    assert!(identity.token_id().is_none() && identity.issued_at().is_none());
    let claims = str::from_utf8(identity.claims()).unwrap().to_owned();
    Ok((identity.subject().into(), claims))
}

#[test]
fn vectors_of_plug() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/plug.json");
    let vectors: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let base = vectors["secret_key_base"].as_str().unwrap().as_bytes().to_vec();
    let salt = vectors["signing_salt"].as_str().unwrap().as_bytes();
    let key = Derivation::default().derive(&Secret::new(base), salt);
    let verifier = SessionVerifier::new(&[key], options(true));
    let rows = vectors["sessions"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    let masked = |row: &Value, index: usize| row["csrf"][index].as_str().unwrap().to_owned();
    for (index, row) in rows.iter().enumerate() {
        let cookie = row["cookie"].as_str().unwrap();
        let expected = match row["subject"].as_str() {
            Some(subject) => Ok((subject.into(), row["claims"].as_str().unwrap().into())),
            None => Err(Cause::TokenMissing),
        };
        // Each page of a session has a mask of its own.
        for page in [0, 1] {
            assert_eq!(decision(&verifier, cookie, Some(&masked(row, page))), expected, "{row}");
        }
        if expected.is_ok() {
            let other = masked(&rows[(index + 1) % rows.len()], 0);
            for csrf in [None, Some(other.as_str())] {
                assert_eq!(decision(&verifier, cookie, csrf), Err(Cause::CsrfMismatch), "{row}");
            }
        }
    }
}

fn fixture(csrf: bool) -> (SessionVerifier, Secret) {
    let key = Derivation::default().derive(&Secret::new(b"base".to_vec()), b"salt");
    (SessionVerifier::new(std::slice::from_ref(&key), options(csrf)), key)
}

#[test]
fn the_parameter_must_unmask_to_the_sessions_token() {
    let (verifier, key) = fixture(true);
    let random = std::array::from_fn(|index| index as u8);
    let Minted { cookie, csrf } = mint(&key, json!({"user_id": 7}), &random);
    assert_eq!(csrf.len(), MASKED_BYTES);
    let text = |at: usize, with: &str| format!("{}{with}{}", &csrf[..at], &csrf[at + 1..]);
    let other = |at: usize| if csrf.as_bytes()[at] == b'A' { "B" } else { "A" };
    let table: Vec<(Option<String>, bool)> = vec![
        (Some(csrf.clone()), true),
        (None, false),
        (Some(String::new()), false),
        (Some(csrf[..55].into()), false),
        (Some(format!("{csrf}A")), false),
        (Some(text(0, other(0))), false),
        (Some(text(31, other(31))), false),
        (Some(text(32, other(32))), false),
        (Some(text(55, other(55))), false),
        (Some(text(3, "=")), false),
        (Some(text(3, "+")), false),
        // The session's own token, as a page must never show it.
        (Some("AAECAwQFBgcICQoLDA0ODxAR".into()), false),
    ];
    for (csrf, accepted) in table {
        let expected = if accepted { None } else { Some(Cause::CsrfMismatch) };
        assert_eq!(decision(&verifier, &cookie, csrf.as_deref()).err(), expected, "{csrf:?}");
    }
    let (lenient, _) = fixture(false);
    assert_eq!(decision(&lenient, &cookie, None), Ok(("7".into(), "{\"user_id\":7}".into())));
}

#[test]
fn sessions_without_subject_or_csrf_token() {
    let (verifier, key) = fixture(true);
    let signed = |session: Value| {
        let mut payload = Vec::new();
        external_term::encode(&session, &mut payload);
        plug_crypto::sign(&key, Algorithm::HS256, &payload)
    };
    // What the library would make of an empty token and mask is not accepted for an empty one.
    let csrf = "A".repeat(MASKED_BYTES);
    let table = [
        (json!({}), Cause::TokenMissing),
        (json!({"user_id": null}), Cause::TokenMissing),
        (json!({"user_id": ""}), Cause::TokenMissing),
        (json!({"user_id": [1]}), Cause::TokenMissing),
        (json!({"user_id": 7}), Cause::CsrfMismatch),
        (json!({"user_id": 7, "_csrf_token": ""}), Cause::CsrfMismatch),
        (json!({"user_id": 7, "_csrf_token": 24}), Cause::CsrfMismatch),
        (json!({"user_id": 7, "_csrf_token": "short"}), Cause::CsrfMismatch),
        (json!([{"user_id": 7}]), Cause::TokenMalformed),
        (json!("user_id"), Cause::TokenMalformed),
    ];
    for (session, expected) in table {
        let shown = session.to_string();
        assert_eq!(decision(&verifier, &signed(session), Some(&csrf)), Err(expected), "{shown}");
    }
    let stranger = Derivation::default().derive(&Secret::new(b"base".to_vec()), b"other");
    let Minted { cookie, csrf } = mint(&stranger, json!({"user_id": 7}), &[9; 36]);
    assert_eq!(decision(&verifier, &cookie, Some(&csrf)), Err(Cause::BadSignature));
}

#[test]
fn a_session_in_which_nobody_is_logged_in_is_a_visitors() {
    let (verifier, key) = fixture(true);
    let of = |session: Value| mint(&key, session, &[9; 36]);
    let check = |verifier: &SessionVerifier, cookie: &str, csrf: Option<&str>| {
        let csrf = csrf.map(str::as_bytes);
        verifier.check_visitor(cookie.as_bytes(), csrf, &mut TokenScratch::new())
    };
    for (session, expected) in [
        (json!({}), Ok(())),
        (json!({"user_id": null, "locale": "de"}), Ok(())),
        // A subject that cannot be read is a user's.
        (json!({"user_id": [1]}), Err(Cause::TokenMissing)),
        (json!({"user_id": ""}), Err(Cause::TokenMissing)),
        (json!({"user_id": 7}), Err(Cause::TokenMissing)),
    ] {
        let Minted { cookie, csrf } = of(session.clone());
        assert_eq!(check(&verifier, &cookie, Some(&csrf)), expected, "{session}");
    }
    let Minted { cookie, csrf } = of(json!({}));
    let wrong = "A".repeat(MASKED_BYTES);
    for csrf in [None, Some(wrong.as_str())] {
        assert_eq!(check(&verifier, &cookie, csrf), Err(Cause::CsrfMismatch));
    }
    assert_eq!(check(&fixture(false).0, &cookie, None), Ok(()));
    let stranger = Derivation::default().derive(&Secret::new(b"base".to_vec()), b"other");
    let Minted { cookie: forged, .. } = mint(&stranger, json!({}), &[9; 36]);
    assert_eq!(check(&verifier, &forged, Some(&csrf)), Err(Cause::BadSignature));
    assert_eq!(check(&verifier, "x", Some(&csrf)), Err(Cause::TokenMalformed));
}

/// The cookie carries no time, so only the connection's age can be bounded.
#[test]
fn a_connection_ends_max_age_after_its_session_was_seen() {
    let (_, key) = fixture(true);
    let Minted { cookie, csrf } = mint(&key, json!({"user_id": 7}), &[9; 36]);
    for max_age in [None, Some(Duration::from_secs(3600))] {
        let options = SessionOptions { max_age, ..options(true) };
        let verifier = SessionVerifier::new(std::slice::from_ref(&key), options);
        let mut scratch = TokenScratch::new();
        let (cookie, csrf) = (cookie.as_bytes(), Some(csrf.as_bytes()));
        let identity = verifier.verify(cookie, csrf, NOW, &mut scratch);
        let expires = identity.ok().and_then(|identity| identity.expires());
        assert_eq!(expires, max_age.map(|age| NOW.later(age)));
    }
}
