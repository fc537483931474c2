//! Tokens, good and bad.

use std::time::{SystemTime, UNIX_EPOCH};

use portcullis::base::secret::Secret;
use portcullis::protocol::jwt::{self, Algorithm, JwtKey};

/// The key of every auth in these tests.
pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// The wall clock, in seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A token of these claims, signed with `secret`.
pub fn mint(secret: &str, claims: &str) -> String {
    let secret = Secret::new(secret.as_bytes().to_vec());
    let key = JwtKey { id: None, algorithm: Algorithm::HS256, secret };
    jwt::mint(&key, claims.as_bytes())
}

/// A token of a kind: `good`, `expired`, `forged`, `malformed`, `early` or `foreign`.
pub fn token(kind: &str) -> String {
    let now = unix_now();
    let good = format!(r#"{{"sub":"ada","jti":"t1","exp":{}}}"#, now + 600);
    match kind {
        "good" => mint(SECRET, &good),
        "expired" => mint(SECRET, &format!(r#"{{"sub":"ada","exp":{}}}"#, now - 60)),
        "forged" => mint("fedcba9876543210fedcba9876543210", &good),
        "malformed" => "not.a.token".into(),
        "early" => {
            let (nbf, exp) = (now + 300, now + 600);
            mint(SECRET, &format!(r#"{{"sub":"ada","nbf":{nbf},"exp":{exp}}}"#))
        }
        "foreign" => mint(SECRET, &format!(r#"{{"sub":"ada","aud":"else","exp":{}}}"#, now + 600)),
        other => panic!("no such kind of token: {other}"),
    }
}
