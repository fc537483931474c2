//! Why a token is refused, for a person at a terminal: which member, which bound, which key.
//!
//! It reads more leniently than verification does, and decides nothing.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use portcullis::base::secret::Secret;
use portcullis::base::time::UnixTime;
use portcullis::protocol::cause::Cause;
use portcullis::protocol::compact_json::{DEPTH_MAX, MEMBERS_MAX};
use portcullis::protocol::external_term::{Step, TermPath};
use portcullis::protocol::jwt::{Algorithm, JwtKey, JwtOptions, JwtVerifier};
use portcullis::protocol::scratch::{NAME_MAX, TOKEN_MAX, TokenScratch};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::shown::{Jwt, moment, plain};

/// Longest text of a token's that a message repeats, in characters.
const QUOTED_MAX: usize = 64;

/// Takes a token apart that looks like a JWT: its first part is a JSON object.
pub(super) fn jwt(token: &str) -> Option<Jwt> {
    let parts: Vec<&str> = token.split('.').collect();
    let header = decode(parts[0]).0?;
    let text = String::from_utf8_lossy(&header);
    if !text.trim_start_matches('\u{feff}').trim_start().starts_with('{') {
        return None;
    }
    let mut faults = Vec::new();
    if token.len() > TOKEN_MAX {
        let length = token.len();
        faults.push(format!("it has {length} bytes, and the gateway takes at most {TOKEN_MAX}"));
    }
    match parts.len() {
        3 => {}
        5 => faults.push("it has five parts: it is encrypted (JWE), which is not supported".into()),
        count => faults.push(format!("it has {count} parts, where a signed token has three")),
    }
    let mut texts = [None, None];
    for (index, name) in ["header", "claims"].into_iter().enumerate() {
        let Some(part) = parts.get(index) else { break };
        let (bytes, fault) = decode(part);
        faults.extend(fault.map(|fault| format!("the {name} {fault}")));
        let Some(bytes) = bytes else { continue };
        match String::from_utf8(bytes) {
            Ok(text) => {
                faults.extend(json_faults(name, &text));
                texts[index] = Some(text);
            }
            Err(_) => faults.push(format!("the {name} is not UTF-8")),
        }
    }
    if let Some(mac) = parts.get(2) {
        faults.extend(decode(mac).1.map(|fault| format!("the signature {fault}")));
    }
    let [header, claims] = texts;
    faults.extend(header.as_deref().and_then(members).map(header_faults).unwrap_or_default());
    faults.extend(claims.as_deref().and_then(members).map(claim_faults).unwrap_or_default());
    Some(Jwt { header, claims, faults })
}

/// The bytes of one part, and what is wrong with how they are written.
fn decode(part: &str) -> (Option<Vec<u8>>, Option<String>) {
    if let Ok(bytes) = URL_SAFE_NO_PAD.decode(part) {
        return (Some(bytes), None);
    }
    let written = if part.contains('=') {
        "is padded with \"=\": base64url in a token has no padding (RFC 7515 §2)"
    } else if part.contains(['+', '/']) {
        "is written in the alphabet of base64, and not of base64url (\"-\" and \"_\")"
    } else {
        "is not base64url"
    };
    let bytes =
        URL_SAFE.decode(part).or_else(|_| STANDARD_NO_PAD.decode(part.trim_end_matches('=')));
    (bytes.ok(), Some(written.to_owned()))
}

/// Why this text is no JSON object that the gateway reads.
fn json_faults(name: &str, text: &str) -> Vec<String> {
    if text.starts_with('\u{feff}') {
        return vec![format!("the {name} begins with a byte order mark (U+FEFF)")];
    }
    let Members(members) = match serde_json::from_str(text) {
        Ok(members) => members,
        Err(error) => return vec![format!("the {name} is no JSON object: {error}")],
    };
    let mut faults = Vec::new();
    if members.len() > MEMBERS_MAX {
        let count = members.len();
        faults.push(format!("the {name} has {count} members, and at most {MEMBERS_MAX} are read"));
    }
    let mut seen = std::collections::HashSet::new();
    for (member, _) in &members {
        if !seen.insert(member) {
            faults.push(format!("the {name} has {} twice", quoted(member)));
        }
    }
    let depth = depth(text);
    if depth > DEPTH_MAX {
        faults.push(format!("the {name} is nested {depth} levels deep, and {DEPTH_MAX} are read"));
    }
    faults
}

/// How deep objects and arrays are nested.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn header_faults(members: Vec<(String, Value)>) -> Vec<String> {
    let find = |name: &str| members.iter().find(|(member, _)| member == name).map(|(_, v)| v);
    let mut faults = Vec::new();
    match find("alg") {
        None => faults.push("the header has no `alg`".to_owned()),
        Some(Value::String(name)) if name.eq_ignore_ascii_case("none") => {
            faults.push("`alg` is \"none\": the token is not signed".to_owned());
        }
        Some(Value::String(_)) => {}
        Some(other) => faults.push(format!("`alg` is {}, and not text", kind(other))),
    }
    for name in ["kid", "typ"] {
        if let Some(other) = find(name).filter(|value| !value.is_string()) {
            faults.push(format!("`{name}` is {}, and not text: leave it out instead", kind(other)));
        }
    }
    if find("crit").is_some() {
        faults.push("`crit` is there: the gateway supports no extension".to_owned());
    }
    faults
}

fn claim_faults(members: Vec<(String, Value)>) -> Vec<String> {
    let find = |name: &str| members.iter().find(|(member, _)| member == name).map(|(_, v)| v);
    let mut faults = Vec::new();
    for name in ["exp", "nbf", "iat"] {
        match find(name) {
            None if name == "exp" => faults.push("`exp` is missing: every token must end".into()),
            Some(Value::Number(number)) => {
                let seconds = number.as_f64().unwrap_or(f64::MAX);
                if seconds < 0.0 {
                    faults.push(format!("`{name}` is negative"));
                } else if seconds > 1e11 {
                    faults
                        .push(format!("`{name}` is {number}: milliseconds, where seconds belong?"));
                }
            }
            Some(other) => {
                faults.push(format!("`{name}` is {}, and not a number of seconds", kind(other)));
            }
            None => {}
        }
    }
    for (name, bound) in [("sub", NAME_MAX), ("jti", NAME_MAX)] {
        match find(name) {
            Some(Value::String(text)) if text.len() > bound => {
                let length = text.len();
                faults.push(format!("`{name}` has {length} bytes, and {bound} are the most"));
            }
            // Whom a token names, the [[auth]] says.
            _ if name == "sub" => {}
            None | Some(Value::String(_)) => {}
            Some(other) => faults.push(format!("`{name}` is {}, and not text", kind(other))),
        }
    }
    faults
}

/// What kind of value, as an English phrase.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Why this `[[auth]]` in particular refuses a token that can be read.
pub(super) fn refusal(
    token: &str,
    jwt: &Jwt,
    (keys, options): (&[JwtKey], &JwtOptions),
    cause: Cause,
    now_s: u64,
) -> Vec<String> {
    let header = jwt.header.as_deref().and_then(members).unwrap_or_default();
    let claims = jwt.claims.as_deref().and_then(members).unwrap_or_default();
    match cause {
        Cause::TokenMalformed => algorithm_fault(&header, keys).into_iter().collect(),
        Cause::BadSignature => signature_faults(token, &header, keys, options),
        Cause::TokenForbidden => party_faults(&claims, options, now_s),
        Cause::TokenExpired => time_fault(&claims, "exp", "ended", now_s),
        Cause::TokenNotYetValid => ["nbf", "iat"]
            .into_iter()
            .flat_map(|name| time_fault(&claims, name, "begins", now_s))
            .collect(),
        _ => Vec::new(),
    }
}

fn text_of<'m>(members: &'m [(String, Value)], name: &str) -> Option<&'m str> {
    members.iter().find(|(member, _)| member == name)?.1.as_str()
}

fn algorithm_fault(header: &[(String, Value)], keys: &[JwtKey]) -> Option<String> {
    let name = text_of(header, "alg")?;
    if keys.iter().any(|key| key.algorithm.name() == name) {
        return None;
    }
    let mut ours: Vec<&str> = keys.iter().map(|key| key.algorithm.name()).collect();
    ours.sort_unstable();
    ours.dedup();
    let asymmetric = ["RS", "PS", "ES", "Ed"].iter().any(|prefix| name.starts_with(prefix));
    let hint = match asymmetric {
        true => "; it is signed with a private key, which these keys cannot verify",
        false => "",
    };
    Some(format!(
        "the algorithm {} is not accepted: the keys of this [[auth]] are for {}{hint}",
        quoted(name),
        ours.join(", ")
    ))
}

fn signature_faults(
    token: &str,
    header: &[(String, Value)],
    keys: &[JwtKey],
    options: &JwtOptions,
) -> Vec<String> {
    let mut faults: Vec<String> = algorithm_fault(header, keys).into_iter().collect();
    if let Some(id) = text_of(header, "kid")
        && !keys.iter().any(|key| key.id.as_deref() == Some(id))
    {
        let ids: Vec<&str> = keys.iter().filter_map(|key| key.id.as_deref()).collect();
        let ours = if ids.is_empty() { "no key here has an id".into() } else { ids.join(", ") };
        faults.push(format!("`kid` is {}, and there are: {ours}", quoted(id)));
    }
    for key in keys {
        for (reading, bytes) in other_readings(key.secret.expose()) {
            if fits(token, key.algorithm, bytes, options) {
                let name = key.id.as_deref().unwrap_or("without an id");
                faults.push(format!("the signature fits the key {name:?} {reading}"));
            }
        }
    }
    faults
}

/// What an issuer may have made of the same secret, and what to do about it.
fn other_readings(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut readings = Vec::new();
    let text: Vec<u8> = secret.iter().copied().filter(|byte| *byte != b'=').collect();
    if let Ok(bytes) = URL_SAFE_NO_PAD.decode(&text).or_else(|_| STANDARD_NO_PAD.decode(&text)) {
        let hint = "once its text is decoded from base64: the issuer decodes it. Write \
                    secret_encoding = \"base64\" (or \"base64url\") beside the key's secret";
        readings.push((hint, bytes));
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let hex: Option<Vec<u8>> =
        secret.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect();
    if let Some(bytes) = hex {
        let hint = "once its text is decoded from hexadecimal: the issuer decodes it. Write \
                    secret_encoding = \"hex\" beside the key's secret";
        readings.push((hint, bytes));
    }
    let hint = "with base64 of it: the issuer does not decode its secret. Remove secret_encoding, \
                or give the gateway the text that the issuer has";
    for engine in [STANDARD, URL_SAFE_NO_PAD] {
        readings.push((hint, engine.encode(secret).into_bytes()));
    }
    let hint = "with hexadecimal of it: the issuer does not decode its secret. Remove \
                secret_encoding, or give the gateway the text that the issuer has";
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    readings.push((hint, hex.into_bytes()));
    let hint = "with a newline at its end: the issuer's copy ends in one";
    readings.push((hint, [secret, b"\n"].concat()));
    let hint = "without the white space around it: the gateway's copy has some";
    let trimmed = secret.trim_ascii();
    if trimmed.len() < secret.len() {
        readings.push((hint, trimmed.to_vec()));
    }
    readings
}

/// Whether a key of these bytes made the token's signature.
fn fits(token: &str, algorithm: Algorithm, mut bytes: Vec<u8>, options: &JwtOptions) -> bool {
    // HMAC fills short keys with zeros, so a short one is the same key when it is filled.
    if bytes.len() < portcullis::protocol::jwt::KEY_MIN {
        bytes.resize(portcullis::protocol::jwt::KEY_MIN, 0);
    }
    let header = token.split('.').next().and_then(|part| decode(part).0).unwrap_or_default();
    let header = members(&String::from_utf8_lossy(&header)).unwrap_or_default();
    let ids = [None, text_of(&header, "kid").map(str::to_owned)];
    ids.into_iter().any(|id| {
        let key = JwtKey { id, algorithm, secret: Secret::new(bytes.clone()) };
        let Ok(verifier) = JwtVerifier::new(vec![key], options.clone()) else { return false };
        let now = UnixTime::from_seconds(0);
        let mut scratch = TokenScratch::new();
        let outcome = verifier.verify(token.as_bytes(), now, &mut scratch);
        // Malformed claims are looked at only behind a signature that fits; a malformed header
        // was refused before anything was asked of the key.
        !matches!(outcome.err(), Some(Cause::BadSignature))
    })
}

fn party_faults(claims: &[(String, Value)], options: &JwtOptions, now_s: u64) -> Vec<String> {
    let find = |name: &str| claims.iter().find(|(member, _)| member == name).map(|(_, v)| v);
    let mut faults = Vec::new();
    if let Some(ours) = &options.issuer {
        match find("iss") {
            Some(Value::String(theirs)) if theirs == ours => {}
            Some(theirs) => {
                let theirs = theirs.as_str().map_or(kind(theirs).to_owned(), quoted);
                faults.push(format!("`iss` is {theirs}, and `issuer` is {ours:?}"));
            }
            None => faults.push(format!("`iss` is missing, and `issuer` is {ours:?}")),
        }
    }
    let theirs: Vec<&str> = match find("aud") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let listed = || theirs.iter().map(|one| quoted(one)).collect::<Vec<_>>().join(", ");
    match (&options.audience, find("aud")) {
        (Some(ours), None) => faults.push(format!("`aud` is missing, and `audience` is {ours:?}")),
        (Some(ours), Some(_)) if !theirs.contains(&ours.as_str()) => {
            faults.push(format!("`aud` is {}, and `audience` is {ours:?}", listed()));
        }
        (None, Some(_)) => faults.push(format!(
            "`aud` is {}, and this [[auth]] has no `audience`: the token is for another service",
            listed()
        )),
        _ => {}
    }
    faults.extend(subject_fault(claims, options.subject.as_ref()));
    let ends = find("exp").and_then(Value::as_f64).unwrap_or_default();
    let bound_s = options.lifetime_max.as_secs();
    if ends > now_s.saturating_add(bound_s) as f64 {
        faults.push(format!("`exp` is further ahead than lifetime_max, {bound_s} s, permits"));
    }
    faults
}

/// Why the token names no subject, if it names none.
fn subject_fault(claims: &[(String, Value)], path: Option<&TermPath>) -> Option<String> {
    let default = [Step::Name("sub".to_owned())];
    let steps = path.map_or(&default[..], TermPath::steps);
    let (Step::Name(first), rest) = steps.split_first()? else { return None };
    let named: Vec<String> = steps
        .iter()
        .map(|step| match step {
            Step::Name(name) => format!("{name:?}"),
            Step::Index(index) => index.to_string(),
        })
        .collect();
    let claim = claims.iter().find(|(member, _)| member == first).map(|(_, value)| value);
    let value = claim.and_then(|claim| {
        rest.iter().try_fold(claim, |value, step| match step {
            Step::Name(name) => value.get(name),
            Step::Index(index) => value.get(index),
        })
    });
    let what = match value {
        Some(Value::String(text)) if !text.is_empty() => return None,
        Some(Value::Number(number)) if !number.is_f64() => return None,
        Some(Value::String(_)) => "is empty",
        Some(Value::Number(_)) => "is a number with a fraction or exponent",
        Some(_) => "is neither text nor an integer",
        None => "is missing",
    };
    let place = named.join(", ");
    Some(format!("it names no subject: the claim [{place}] {what}; `subject` says which it is"))
}

fn time_fault(claims: &[(String, Value)], name: &str, verb: &str, now_s: u64) -> Vec<String> {
    let at = claims.iter().find(|(member, _)| member == name).and_then(|(_, v)| v.as_f64());
    let line = |at: f64| format!("it {verb}: {}", moment(name, at as u64, now_s));
    at.map(line).into_iter().collect()
}

/// A token's text as a message repeats it: short, and nothing in it steers a terminal.
fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTED_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("\"{}\"", plain(&short))
}

fn members(json: &str) -> Option<Vec<(String, Value)>> {
    serde_json::from_str(json.trim_start_matches('\u{feff}')).ok().map(|Members(members)| members)
}

/// The members of an object in their order, repeated ones too.
struct Members(Vec<(String, Value)>);

impl<'de> serde::Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, claims: &str) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part(header), part(claims), part("signature"))
    }

    #[test]
    fn each_fault_is_named() {
        const HEADER: &str = r#"{"alg":"HS256"}"#;
        let long = format!(r#"{{"exp":1,"x":"{}"}}"#, "y".repeat(TOKEN_MAX));
        let deep = format!(r#"{{"exp":1,"x":{}{}}}"#, "[".repeat(17), "]".repeat(17));
        let table: &[(&str, &str, &str)] = &[
            (HEADER, r#"{"exp":"tomorrow"}"#, "`exp` is text, and not a number"),
            (HEADER, r#"{"exp":null}"#, "`exp` is null"),
            (HEADER, r#"{"sub":"x"}"#, "`exp` is missing"),
            (HEADER, r#"{"exp":1795837543000}"#, "milliseconds"),
            (HEADER, r#"{"exp":1,"iat":[]}"#, "`iat` is a list"),
            (HEADER, r#"{"exp":1,"sub":"x","jti":7}"#, "`jti` is a number, and not text"),
            (HEADER, r#"{"exp":1,"a":1,"a":2}"#, "the claims has \"a\" twice"),
            (HEADER, "\u{feff}{\"exp\":1}", "byte order mark"),
            (HEADER, &deep, "nested 18 levels deep, and 16 are read"),
            (HEADER, &long, "and the gateway takes at most 16384"),
            (HEADER, r#"{"exp":"#, "no JSON object"),
            (r#"{"alg":"HS256","kid":null}"#, r#"{"exp":1}"#, "`kid` is null, and not text"),
            (r#"{"alg":"none"}"#, r#"{"exp":1}"#, "not signed"),
            (r#"{"typ":"JWT"}"#, r#"{"exp":1}"#, "no `alg`"),
            (r#"{"alg":"HS256","crit":["x"]}"#, r#"{"exp":1}"#, "`crit` is there"),
        ];
        for (header, claims, expected) in table {
            let faults = jwt(&token(header, claims)).expect("a JWT").faults;
            let found = faults.iter().any(|fault| fault.contains(expected));
            assert!(found, "{claims}: {expected:?} is not in {faults:?}");
        }
        assert!(jwt(&token(HEADER, r#"{"exp":1,"sub":"x"}"#)).expect("a JWT").faults.is_empty());
        let padded = token(HEADER, r#"{"exp":1}"#).replacen('.', "=.", 1);
        assert!(jwt(&padded).expect("a JWT").faults[0].contains("padded"));
        let parts = format!("{}.x.y", token(HEADER, r#"{"exp":1}"#));
        assert!(jwt(&parts).expect("a JWT").faults[0].contains("five parts"));
        assert!(jwt("SFMyNTY.g2gDYQFhAGIAAVGA.KXdB").is_none() && jwt("not a token").is_none());
    }

    #[test]
    fn a_signature_that_fits_another_reading_of_the_secret_is_found() {
        let raw = b"0123456789abcdef0123456789abcdef".to_vec();
        let encoded = STANDARD.encode(&raw).into_bytes();
        let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
        let hex = hex.into_bytes();
        let options = JwtOptions::default();
        let key = |secret: &[u8]| JwtKey {
            id: None,
            algorithm: Algorithm::HS256,
            secret: Secret::new(secret.to_vec()),
        };
        let claims = br#"{"exp":9999999999,"sub":"ada"}"#;
        for (issuer, ours, expected) in [
            (&raw, &encoded, "decoded from base64"),
            (&encoded, &raw, "the issuer does not decode"),
            (&raw, &hex, "decoded from hexadecimal"),
            (&hex, &raw, "with hexadecimal of it"),
        ] {
            let token = portcullis::protocol::jwt::mint(&key(issuer), claims);
            let view = jwt(&token).expect("a JWT");
            let keys = [key(ours)];
            let why = refusal(&token, &view, (&keys, &options), Cause::BadSignature, 0);
            assert!(why.iter().any(|line| line.contains(expected)), "{why:?}");
            let other = [key(b"another secret of thirty-two byt")];
            let why = refusal(&token, &view, (&other, &options), Cause::BadSignature, 0);
            assert!(why.is_empty(), "{why:?}");
        }
    }
}
