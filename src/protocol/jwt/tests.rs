use super::*;
use crate::protocol::scratch::{CLAIMS_MAX, HEADER_MAX};

const NOW: u64 = 1_700_000_000;

fn key(id: Option<&str>, algorithm: Algorithm, fill: u8) -> JwtKey {
    let secret = Secret::new(vec![fill; 32]);
    JwtKey { id: id.map(str::to_owned), algorithm, secret }
}

fn keys() -> Vec<JwtKey> {
    vec![
        key(Some("k1"), Algorithm::HS256, 1),
        key(Some("k2"), Algorithm::HS256, 2),
        key(Some("k3"), Algorithm::HS384, 3),
        key(Some("k5"), Algorithm::HS512, 5),
        key(None, Algorithm::HS256, 6),
    ]
}

fn verifier(options: JwtOptions) -> JwtVerifier {
    JwtVerifier::new(keys(), options).unwrap()
}

fn plain() -> JwtVerifier {
    verifier(JwtOptions { leeway: Duration::ZERO, ..JwtOptions::default() })
}

/// `Ok` is `subject/token id/expires`.
fn decision(verifier: &JwtVerifier, token: &str) -> Result<String, Cause> {
    verdict_at(verifier, token, UnixTime::from_seconds(NOW))
}

fn verdict_at(verifier: &JwtVerifier, token: &str, now: UnixTime) -> Result<String, Cause> {
    let mut scratch = TokenScratch::new();
    verifier.verify(token.as_bytes(), now, &mut scratch).map(|identity| {
        assert!(!identity.is_anonymous());
        let expires = identity.expires().map(UnixTime::as_seconds);
        format!("{}/{:?}/{expires:?}", identity.subject(), identity.token_id())
    })
}

fn base64(text: &[u8]) -> String {
    let mut out = Vec::new();
    base64url::encode(text, &mut out);
    String::from_utf8(out).unwrap()
}

/// A token with any header and claims, signed with the key that has `fill`.
fn forge(algorithm: Algorithm, fill: u8, header: &str, claims: &[u8]) -> String {
    let signed = format!("{}.{}", base64(header.as_bytes()), base64(claims));
    let mut mac = [0; MAC_MAX];
    let mac = MacState::new(algorithm, &[fill; 32]).compute(signed.as_bytes(), &mut mac);
    format!("{signed}.{}", base64(mac))
}

#[test]
fn rfc_7515_a_1_is_accepted_in_its_time() {
    let mut secret = [0; 64];
    let text =
        b"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    base64url::decode(text, &mut secret).unwrap();
    let secret = Secret::new(secret.to_vec());
    let key = JwtKey { id: None, algorithm: Algorithm::HS256, secret };
    let subject = Some(TermPath::from("iss"));
    let options = JwtOptions { issuer: Some("joe".into()), subject, ..JwtOptions::default() };
    let verifier = JwtVerifier::new(vec![key], options).unwrap();
    let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9\
        .eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQog\
        Imh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ\
        .dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let at = |seconds| verdict_at(&verifier, token, UnixTime::from_seconds(seconds));
    assert_eq!(at(1_300_819_379), Ok("joe/None/Some(1300819380)".into()));
    assert_eq!(at(1_300_819_389), Ok("joe/None/Some(1300819380)".into()));
    assert_eq!(at(1_300_819_390), Err(Cause::TokenExpired));
    assert_eq!(decision(&plain(), token), Err(Cause::BadSignature));
}

#[test]
fn minted_tokens_are_accepted_and_no_others() {
    let claims = br#"{"sub":"u\u002d1","jti":"t-1","iat":1699999999,"exp":1700000001}"#;
    for key in keys() {
        let token = mint(&key, claims);
        let expected = Ok("u-1/Some(\"t-1\")/Some(1700000001)".into());
        assert_eq!(decision(&plain(), &token), expected, "{token}");
        // Each character counts, and each may be changed by an attacker.
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let mut scratch = TokenScratch::new();
            let now = UnixTime::from_seconds(NOW);
            assert!(plain().verify(&bytes, now, &mut scratch).is_err(), "{at}");
        }
        for end in 0..token.len() {
            assert!(decision(&plain(), &token[..end]).is_err(), "{end}");
        }
    }
    let odd = JwtKey { id: Some("a\"\\\u{e9}".into()), ..keys().remove(0) };
    let token = mint(&odd, claims);
    let verifier = JwtVerifier::new(vec![odd], JwtOptions::default()).unwrap();
    assert!(decision(&verifier, &token).is_ok());
}

#[test]
fn headers_are_judged_exactly() {
    const GOOD: Result<&str, Cause> = Ok("u/None/Some(1700000001)");
    const BAD_KEY: Result<&str, Cause> = Err(Cause::BadSignature);
    const MALFORMED: Result<&str, Cause> = Err(Cause::TokenMalformed);
    use Algorithm::{HS256, HS384, HS512};
    let table: &[(Algorithm, u8, &str, Result<&str, Cause>)] = &[
        (HS256, 1, r#"{"alg":"HS256"}"#, GOOD),
        (HS256, 2, r#"{"alg":"HS256"}"#, GOOD),
        (HS256, 6, r#"{"alg":"HS256"}"#, GOOD),
        (HS256, 2, r#"{"alg":"HS256","kid":"k2"}"#, GOOD),
        (HS256, 2, r#"{"typ":"JWT","\u0061lg":"HS\u003256","kid":"k\u0032"}"#, GOOD),
        (HS256, 1, r#"{"alg":"HS256","jku":"https://evil.example","jwk":{"kty":"oct"}}"#, GOOD),
        (HS384, 3, r#"{"alg":"HS384","kid":"k3"}"#, GOOD),
        (HS512, 5, r#"{"alg":"HS512"}"#, GOOD),
        (HS256, 9, r#"{"alg":"HS256"}"#, BAD_KEY),
        (HS256, 0, r#"{"alg":"HS256"}"#, BAD_KEY),
        (HS256, 0, r#"{"alg":"HS256","kid":"unknown"}"#, BAD_KEY),
        (HS256, 1, r#"{"alg":"HS256","kid":"unknown"}"#, BAD_KEY),
        (HS256, 1, r#"{"alg":"HS256","kid":"k2"}"#, BAD_KEY),
        (HS256, 6, r#"{"alg":"HS256","kid":""}"#, BAD_KEY),
        (HS256, 1, r#"{"alg":"HS256","kid":"K1"}"#, BAD_KEY),
        (HS256, 1, r#"{"alg":"HS256","kid":"../k1"}"#, BAD_KEY),
        // The key's own algorithm alone is used with it.
        (HS256, 3, r#"{"alg":"HS256","kid":"k3"}"#, BAD_KEY),
        (HS512, 1, r#"{"alg":"HS512","kid":"k1"}"#, BAD_KEY),
        (HS384, 3, r#"{"alg":"HS512","kid":"k3"}"#, BAD_KEY),
        (HS256, 3, r#"{"alg":"HS384","kid":"k3"}"#, BAD_KEY),
        (HS256, 1, r#"{"alg":"none"}"#, MALFORMED),
        (HS256, 1, r#"{"alg":"None"}"#, MALFORMED),
        (HS256, 1, r#"{"alg":"hs256"}"#, MALFORMED),
        (HS256, 1, r#"{"alg":"RS256"}"#, MALFORMED),
        (HS256, 1, r#"{"alg":"ES256"}"#, MALFORMED),
        (HS256, 1, r#"{"alg":""}"#, MALFORMED),
        (HS256, 1, r#"{"alg":null}"#, MALFORMED),
        (HS256, 1, r#"{"alg":["HS256"]}"#, MALFORMED),
        (HS256, 1, r#"{"Alg":"HS256"}"#, MALFORMED),
        (HS256, 1, r#"{"alg":"HS256","alg":"HS256"}"#, MALFORMED),
        (HS256, 1, r#"{"alg":"none","\u0061lg":"HS256"}"#, MALFORMED),
        (HS256, 1, r#"{"alg":"HS256","kid":"k1","kid":"k2"}"#, MALFORMED),
        (HS256, 1, r#"{"alg":"HS256","kid":1}"#, MALFORMED),
        (HS256, 1, r#"{"alg":"HS256","kid":null}"#, MALFORMED),
        (HS256, 1, r#"{"alg":"HS256","typ":1}"#, MALFORMED),
        (HS256, 1, r#"{"alg":"HS256","crit":["exp"]}"#, MALFORMED),
        (HS256, 1, r#"{"alg":"HS256","crit":[]}"#, MALFORMED),
        (HS256, 1, r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#, MALFORMED),
        (HS256, 1, r#"{"alg":"HS256"} "x""#, MALFORMED),
        (HS256, 1, r#"["alg","HS256"]"#, MALFORMED),
        (HS256, 1, r#"{"kid":"k1"}"#, MALFORMED),
        (HS256, 1, "{}", MALFORMED),
        (HS256, 1, "", MALFORMED),
        (HS256, 1, "HS256", MALFORMED),
    ];
    let claims = br#"{"sub":"u","exp":1700000001}"#;
    for (algorithm, fill, header, expected) in table {
        let token = forge(*algorithm, *fill, header, claims);
        let expected = expected.map(str::to_owned);
        assert_eq!(decision(&plain(), &token), expected, "{header}");
    }
    let wide: String = (0..16).map(|n| format!(r#","x{n}":0"#)).collect();
    let wide = format!(r#"{{"alg":"HS256"{wide}}}"#);
    assert_eq!(decision(&plain(), &forge(HS256, 1, &wide, claims)), Err(Cause::TokenMalformed));
    let long = format!(r#"{{"alg":"HS256","x":"{}"}}"#, "x".repeat(HEADER_MAX));
    assert_eq!(decision(&plain(), &forge(HS256, 1, &long, claims)), Err(Cause::TokenMalformed));
}

#[test]
fn claims_are_judged_exactly_and_only_after_the_mac() {
    const MALFORMED: Result<&str, Cause> = Err(Cause::TokenMalformed);
    const NOBODY: Result<&str, Cause> = Err(Cause::TokenForbidden);
    let long_name = format!(r#"{{"sub":"{}","exp":1700000001}}"#, "u".repeat(257));
    let escaped = format!(r#"{{"sub":"u","jti":"{}","exp":1700000001}}"#, "\\u00e9".repeat(129));
    let table: &[(&[u8], Result<&str, Cause>)] = &[
        (br#"{"sub":"u","exp":1700000001}"#, Ok("u/None/Some(1700000001)")),
        (br#"{"exp":1700000001}"#, NOBODY),
        (br#"{"user_id":"u","exp":1700000001}"#, NOBODY),
        (br#"{"exp":1700000000}"#, Err(Cause::TokenExpired)),
        (br#"{"sub":"u","exp":1700000001,"jti":""}"#, Ok("u/Some(\"\")/Some(1700000001)")),
        (
            br#"{"sub":"u","exp":1700000001,"nbf":1700000000,"iat":1700000000}"#,
            Ok("u/None/Some(1700000001)"),
        ),
        (br#"{"sub":"u","exp":1700000001,"iss":"anyone"}"#, Ok("u/None/Some(1700000001)")),
        (br#"{"sub":"u","exp":2015360000}"#, Ok("u/None/Some(2015360000)")),
        (br#"{"sub":"u","exp":1700000000}"#, Err(Cause::TokenExpired)),
        (br#"{"sub":"u","exp":0}"#, Err(Cause::TokenExpired)),
        (br#"{"sub":"u","exp":1700000001,"nbf":1700000001}"#, Err(Cause::TokenNotYetValid)),
        (br#"{"sub":"u","exp":1700000001,"iat":1700000001}"#, Err(Cause::TokenNotYetValid)),
        (br#"{"sub":"u","exp":1,"nbf":1700000001}"#, Err(Cause::TokenExpired)),
        (br#"{"sub":"u","exp":1700000001,"aud":"app"}"#, Err(Cause::TokenForbidden)),
        (br#"{"sub":"u","exp":1,"aud":"app"}"#, Err(Cause::TokenForbidden)),
        (br#"{"sub":"u"}"#, MALFORMED),
        (br#"{"sub":"u","exp":null}"#, MALFORMED),
        (br#"{"sub":"u","exp":"1700000001"}"#, MALFORMED),
        (br#"{"sub":"u","exp":1700000001.0}"#, Ok("u/None/Some(1700000001)")),
        (br#"{"sub":"u","exp":1700000001.999}"#, Ok("u/None/Some(1700000001)")),
        (br#"{"sub":"u","exp":1700000000.999}"#, Err(Cause::TokenExpired)),
        (br#"{"sub":"u","exp":1.700000001e9}"#, Ok("u/None/Some(1700000001)")),
        (br#"{"sub":"u","exp":17e8}"#, Err(Cause::TokenExpired)),
        (br#"{"sub":"u","exp":1e99}"#, MALFORMED),
        (br#"{"sub":"u","exp":1700000001,"nbf":1700000000.9}"#, Ok("u/None/Some(1700000001)")),
        (br#"{"sub":"u","exp":-1}"#, MALFORMED),
        (br#"{"sub":"u","exp":true}"#, MALFORMED),
        (br#"{"sub":"u","exp":[1700000001]}"#, MALFORMED),
        (br#"{"sub":"u","exp":2015360001}"#, Err(Cause::TokenForbidden)),
        (br#"{"sub":"u","exp":9007199254740992}"#, Err(Cause::TokenForbidden)),
        (br#"{"sub":"u","exp":18446744073709551617}"#, MALFORMED),
        (br#"{"sub":"u","exp":1,"exp":1700000001}"#, MALFORMED),
        (br#"{"sub":"u","exp":1,"\u0065xp":1700000001}"#, MALFORMED),
        (br#"{"sub":"u","sub":"v","exp":1700000001}"#, MALFORMED),
        (br#"{"sub":"u","exp":1700000001,"nbf":"0"}"#, MALFORMED),
        (br#"{"sub":"u","exp":1700000001,"iat":0.5}"#, Ok("u/None/Some(1700000001)")),
        (br#"{"sub":"u","exp":1700000001,"iat":-0.5}"#, MALFORMED),
        (br#"{"sub":"","exp":1700000001}"#, NOBODY),
        (br#"{"sub":42,"exp":1700000001}"#, Ok("42/None/Some(1700000001)")),
        (br#"{"sub":-7,"exp":1700000001}"#, Ok("-7/None/Some(1700000001)")),
        (
            br#"{"sub":9007199254740993,"exp":1700000001}"#,
            Ok("9007199254740993/None/Some(1700000001)"),
        ),
        (br#"{"sub":-0,"exp":1700000001}"#, NOBODY),
        (br#"{"sub":42.0,"exp":1700000001}"#, NOBODY),
        (br#"{"sub":4e1,"exp":1700000001}"#, NOBODY),
        (br#"{"sub":true,"exp":1700000001}"#, NOBODY),
        (br#"{"sub":[42],"exp":1700000001}"#, NOBODY),
        (br#"{"sub":null,"exp":1700000001}"#, NOBODY),
        (br#"{"sub":"u","jti":1,"exp":1700000001}"#, MALFORMED),
        (br#"{"sub":"\ud800","exp":1700000001}"#, MALFORMED),
        (b"{\"sub\":\"\xff\",\"exp\":1700000001}", MALFORMED),
        (br#"{"sub":"u","exp":1700000001}x"#, MALFORMED),
        (br#"{"sub":"u","exp":1700000001"#, MALFORMED),
        (br#"[{"exp":1700000001}]"#, MALFORMED),
        (b"", MALFORMED),
        (long_name.as_bytes(), MALFORMED),
        (escaped.as_bytes(), MALFORMED),
    ];
    for (claims, expected) in table {
        let header = r#"{"alg":"HS256","kid":"k1"}"#;
        let shown = claims.escape_ascii();
        let expected = expected.map(str::to_owned);
        assert_eq!(
            decision(&plain(), &forge(Algorithm::HS256, 1, header, claims)),
            expected,
            "{shown}"
        );
        let forged = forge(Algorithm::HS256, 9, header, claims);
        assert_eq!(decision(&plain(), &forged), Err(Cause::BadSignature), "{shown}");
    }
}

#[test]
fn the_subject_is_where_the_options_say() {
    const NOBODY: Result<&str, Cause> = Err(Cause::TokenForbidden);
    let name = |name: &str| Step::Name(name.to_owned());
    let user_id = || vec![name("user_id")];
    let uid = || vec![name("https://example.com/uid")];
    let nested = || vec![name("user"), name("ids"), Step::Index(1)];
    let table: &[(Vec<Step>, &str, Result<&str, Cause>)] = &[
        (vec![name("sub")], r#""sub":"u""#, Ok("u")),
        (user_id(), r#""user_id":"u""#, Ok("u")),
        (user_id(), r#""user_id":7,"sub":"other""#, Ok("7")),
        (user_id(), r#""user_id":"u","sub":["of no concern"]"#, Ok("u")),
        (user_id(), r#""user\u005fid":"\u0075""#, Ok("u")),
        (user_id(), r#""sub":"other""#, NOBODY),
        (user_id(), r#""user_id":"" "#, NOBODY),
        (user_id(), r#""user_id":{"id":"u"}"#, NOBODY),
        (user_id(), r#""user_id":"u","user_id":"v""#, Err(Cause::TokenMalformed)),
        (uid(), r#""https://example.com/uid":"u""#, Ok("u")),
        (uid(), r#""https://example":{"com/uid":"u"}"#, NOBODY),
        (nested(), r#""user":{"ids":["a",42]}"#, Ok("42")),
        (nested(), r#""user":{"ids":["a"]}"#, NOBODY),
        (nested(), r#""user":{"ids":{"1":"u"}}"#, NOBODY),
        (nested(), r#""user":{"ids":["a","b"],"ids":["c","d"]}"#, NOBODY),
        (nested(), r#""user":"ids""#, NOBODY),
        // A registered claim may be the subject, too.
        (vec![name("jti")], r#""jti":"t""#, Ok("t")),
        (vec![name("aud"), Step::Index(0)], r#""aud":["app"]"#, NOBODY),
    ];
    for (steps, claims, expected) in table {
        let subject = Some(TermPath::from(steps.clone()));
        let verifier = verifier(JwtOptions { subject, ..JwtOptions::default() });
        let claims = format!(r#"{{{claims},"exp":1700000001}}"#);
        let token = forge(Algorithm::HS256, 1, r#"{"alg":"HS256"}"#, claims.as_bytes());
        let mut scratch = TokenScratch::new();
        let now = UnixTime::from_seconds(NOW);
        let got = verifier.verify(token.as_bytes(), now, &mut scratch);
        assert_eq!(got.map(|identity| identity.subject()), *expected, "{claims}");
    }
}

#[test]
fn token_texts_are_judged_exactly() {
    let token = mint(&keys()[0], br#"{"sub":"u","exp":1700000001}"#);
    let (signed, mac) = token.rsplit_once('.').unwrap();
    let (header, claims) = signed.split_once('.').unwrap();
    // 32 bytes are 43 characters, the last of which has two spare bits.
    let last = token.as_bytes()[token.len() - 1];
    let spare = &token[..token.len() - 1];
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let position = alphabet.iter().position(|&b| b == last).unwrap();
    assert_eq!(position % 4, 0);
    let none = base64(br#"{"alg":"none"}"#);
    let short_mac = base64(&[0; 31]);
    let long_mac = base64(&[0; 33]);
    let too_long_mac = base64(&[0; 65]);
    let table: &[(String, Cause)] = &[
        (String::new(), Cause::TokenMalformed),
        ("..".into(), Cause::TokenMalformed),
        (signed.into(), Cause::TokenMalformed),
        (format!("{signed}."), Cause::BadSignature),
        (format!("{none}.{claims}."), Cause::TokenMalformed),
        (format!("{token}."), Cause::TokenMalformed),
        (format!("{token}.{mac}"), Cause::TokenMalformed),
        (format!(".{claims}.{mac}"), Cause::TokenMalformed),
        (format!("{header}..{mac}"), Cause::BadSignature),
        (format!("{token}="), Cause::TokenMalformed),
        (format!("{token}\n"), Cause::TokenMalformed),
        (format!(" {token}"), Cause::TokenMalformed),
        (format!("Bearer {token}"), Cause::TokenMalformed),
        (format!("{spare}{}", char::from(alphabet[position + 1])), Cause::TokenMalformed),
        (format!("{signed}.{}", &mac[..42]), Cause::TokenMalformed),
        (format!("{signed}.{}", &mac[..40]), Cause::BadSignature),
        (format!("{signed}.{short_mac}"), Cause::BadSignature),
        (format!("{signed}.{long_mac}"), Cause::BadSignature),
        (format!("{token}AA"), Cause::TokenMalformed),
        (format!("{signed}.{too_long_mac}"), Cause::TokenMalformed),
        (format!("{signed}.{}", mac.to_uppercase()), Cause::BadSignature),
        (format!("{signed}+.{mac}"), Cause::TokenMalformed),
        ("a".repeat(TOKEN_MAX + 1), Cause::TokenMalformed),
    ];
    for (text, cause) in table {
        // A truncated or cased MAC may have spare bits; either refusal is then right.
        let got = decision(&plain(), text).unwrap_err();
        let either = text.contains(&mac.to_uppercase()) || text.ends_with(&mac[..42]);
        assert!(got == *cause || (either && got != Cause::TokenExpired), "{text}: {got:?}");
    }
    let fill = |length: usize| {
        let claims = format!(r#"{{"sub":"u","exp":1700000001,"x":"{}"}}"#, "x".repeat(length));
        mint(&keys()[0], claims.as_bytes())
    };
    let largest = (0..CLAIMS_MAX).rev().find(|&length| fill(length).len() <= TOKEN_MAX).unwrap();
    assert!(decision(&plain(), &fill(largest)).is_ok());
    assert_eq!(decision(&plain(), &fill(largest + 1)), Err(Cause::TokenMalformed));
}

/// The shapes of Project Wycheproof's JWS vectors for HMAC keys, with tokens of our own: its file
/// has payloads that are no claims, and comes in no package (`mac/tests.rs` runs its HMAC vectors).
///
/// Deliberate differences from that file, the last two rows: it takes tokens with a character
/// that is not base64url inside the header or the payload; RFC 7515 §2 knows no such token, and
/// one token must have one spelling.
#[test]
fn shapes_of_published_jws_vectors() {
    let claims = base64(br#"{"sub":"u","exp":1700000001}"#);
    let made =
        |header: &str| forge(Algorithm::HS256, 1, header, br#"{"sub":"u","exp":1700000001}"#);
    let token = made(r#"{"alg":"HS256","kid":"k1"}"#);
    let [header, _, mac] = token.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
    // The MAC of a text that is spelled with another character at its end.
    let signed_as = |signed: String| {
        let mut room = [0; MAC_MAX];
        let state = MacState::new(Algorithm::HS256, &[1; 32]);
        format!("{signed}.{}", base64(state.compute(signed.as_bytes(), &mut room)))
    };
    let flipped = if mac.starts_with('X') { 'Y' } else { 'X' };
    let inside = |text: &str, what: &str| format!("{}{what}{}", &text[..5], &text[5..]);
    let flattened =
        format!(r#"{{"payload":"{claims}","protected":"{header}","signature":"{mac}"}}"#);
    let table: Vec<(&str, String, bool)> = vec![
        ("valid", token.clone(), true),
        (
            "white space in the header's JSON",
            made("{ \"alg\":\t\"HS256\",\r\n\"kid\" : \"k1\" }"),
            true,
        ),
        ("modified signature", format!("{header}.{claims}.{flipped}{}", &mac[1..]), false),
        ("missing signature", format!("{header}.{claims}."), false),
        ("missing signature and separator", format!("{header}.{claims}"), false),
        ("modified payload", format!("{header}.X{}.{mac}", &claims[1..]), false),
        ("missing payload", format!("{header}..{mac}"), false),
        ("missing payload and separator", format!("{header}.{mac}"), false),
        ("modified header", made(r#"{"alg":"HS256","kid":"X1"}"#), false),
        ("missing header", format!(".{claims}.{mac}"), false),
        ("missing header and separator", format!("{claims}.{mac}"), false),
        ("missing header and signature", format!(".{claims}."), false),
        ("one part", claims.clone(), false),
        ("nothing", String::new(), false),
        ("an empty part more", format!("{token}."), false),
        ("a part more", format!("{token}.foo"), false),
        ("alg none", format!("{}.{claims}.", base64(br#"{"alg":"none","kid":"k1"}"#)), false),
        ("JSON serialization", flattened, false),
        ("space in the MAC", format!("{header}.{claims}.{}", inside(mac, " ")), false),
        ("? in the MAC", format!("{header}.{claims}.{}", inside(mac, "?")), false),
        ("space in the header", signed_as(format!("{}.{claims}", inside(header, " "))), false),
        ("space in the payload", signed_as(format!("{header}.{}", inside(&claims, " "))), false),
        ("padded header", signed_as(format!("{header}=.{claims}")), false),
        ("padded payload", signed_as(format!("{header}.{claims}==")), false),
        (
            "MAC of padded payload",
            format!(
                "{header}.{claims}.{}",
                signed_as(format!("{header}.{claims}==")).rsplit('.').next().unwrap_or_default()
            ),
            false,
        ),
        ("? in the header", format!("{}.{claims}.{mac}", inside(header, "?")), false),
        ("? in the payload", format!("{header}.{}.{mac}", inside(&claims, "?")), false),
    ];
    for (name, text, accepted) in table {
        assert_eq!(decision(&plain(), &text).is_ok(), accepted, "{name}: {text}");
    }
}

#[test]
fn parties_and_leeway_are_honoured() {
    let options = JwtOptions {
        issuer: Some("issuer".into()),
        audience: Some("app".into()),
        leeway: Duration::from_secs(30),
        lifetime_max: Duration::from_secs(3600),
        subject: None,
    };
    let verifier = verifier(options);
    let table: &[(&str, Result<(), Cause>)] = &[
        (r#""iss":"issuer","aud":"app","exp":1700000001"#, Ok(())),
        (r#""iss":"issuer","aud":["x","app"],"exp":1700000001"#, Ok(())),
        (r#""iss":"iss\u0075er","aud":[1,null,"\u0061pp"],"exp":1700000001"#, Ok(())),
        (r#""iss":"issuer","aud":"app","exp":1699999971"#, Ok(())),
        (r#""iss":"issuer","aud":"app","exp":1699999970"#, Err(Cause::TokenExpired)),
        (r#""iss":"issuer","aud":"app","exp":1700000001,"nbf":1700000030"#, Ok(())),
        (
            r#""iss":"issuer","aud":"app","exp":1700000040,"nbf":1700000031"#,
            Err(Cause::TokenNotYetValid),
        ),
        (r#""iss":"issuer","aud":"app","exp":1700003600"#, Ok(())),
        (r#""iss":"issuer","aud":"app","exp":1700003601"#, Err(Cause::TokenForbidden)),
        (r#""iss":"Issuer","aud":"app","exp":1700000001"#, Err(Cause::TokenForbidden)),
        (r#""iss":["issuer"],"aud":"app","exp":1700000001"#, Err(Cause::TokenForbidden)),
        (r#""aud":"app","exp":1700000001"#, Err(Cause::TokenForbidden)),
        (r#""iss":"issuer","exp":1700000001"#, Err(Cause::TokenForbidden)),
        (r#""iss":"issuer","aud":[],"exp":1700000001"#, Err(Cause::TokenForbidden)),
        (r#""iss":"issuer","aud":[["app"]],"exp":1700000001"#, Err(Cause::TokenForbidden)),
        (r#""iss":"issuer","aud":{"app":"app"},"exp":1700000001"#, Err(Cause::TokenForbidden)),
        (r#""iss":"issuer","aud":"app2","exp":1700000001"#, Err(Cause::TokenForbidden)),
        (r#""iss":"issuer","aud":"ap","exp":1700000001"#, Err(Cause::TokenForbidden)),
        (r#""iss":"issuer","aud":"","exp":1700000001"#, Err(Cause::TokenForbidden)),
    ];
    for (claims, expected) in table {
        let token = mint(&keys()[0], format!("{{\"sub\":\"u\",{claims}}}").as_bytes());
        assert_eq!(decision(&verifier, &token).map(|_| ()), *expected, "{claims}");
        let valid_from = match expected {
            Err(Cause::TokenNotYetValid) => Some(UnixTime::from_seconds(NOW + 1)),
            _ => None,
        };
        let early = verifier.valid_from(token.as_bytes()).filter(|at| at.as_seconds() > NOW);
        assert_eq!(early, valid_from, "{claims}");
    }
}

#[test]
fn wrong_setups_are_named() {
    let with = |keys: Vec<JwtKey>, leeway: u64| {
        let leeway = Duration::from_secs(leeway);
        JwtVerifier::new(keys, JwtOptions { leeway, ..JwtOptions::default() }).err()
    };
    let short = JwtKey { secret: Secret::new(vec![1; 31]), ..keys().remove(0) };
    let many = (0..17).map(|_| key(None, Algorithm::HS256, 1)).collect();
    assert_eq!(with(vec![], 0), Some(JwtSetupError::NoKeys));
    assert_eq!(with(many, 0), Some(JwtSetupError::TooManyKeys));
    assert_eq!(with(keys(), 301), Some(JwtSetupError::LeewayTooLong));
    assert_eq!(with(keys(), 300), None);
    let short_key = JwtSetupError::ShortKey { index: 1, length: 31 };
    assert_eq!(with(vec![keys().remove(1), short], 0), Some(short_key));
    let twice = vec![keys().remove(0), keys().remove(0)];
    assert_eq!(with(twice, 0), Some(JwtSetupError::RepeatedId("k1".into())));
    let empty = vec![key(Some(""), Algorithm::HS256, 1)];
    assert_eq!(with(empty, 0), Some(JwtSetupError::EmptyId(0)));
    for algorithm in Algorithm::ALL {
        assert_eq!(Algorithm::from_name(algorithm.name()), Some(algorithm));
    }
}
