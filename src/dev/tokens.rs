//! Tokens of every kind, minted when they are asked for.

use serde_json::{Value, json};

use crate::base::secret::Secret;
use crate::protocol::jwt::{JwtKey, mint};

/// Whom the tokens name.
pub(super) const SUBJECTS: [&str; 4] = ["alice", "bob", "carol", "dave"];

/// How long a good token lives, in seconds.
const GOOD_S: u64 = 3600;
/// How long a short-lived one lives: long enough to say something, short enough to wait for.
const SHORT_S: u64 = 20;
/// How long ago an expired one expired; beyond any leeway.
const EXPIRED_S: u64 = 3600;

/// Makes tokens with the key of one run.
pub(super) struct Mint {
    key: JwtKey,
    /// Says that it is `key`, and is not.
    forger: JwtKey,
}

impl Mint {
    /// `forged` is any secret but the key's own.
    pub(super) fn new(key: JwtKey, forged: Vec<u8>) -> Mint {
        assert!(key.secret.expose() != forged.as_slice(), "a forger does not have the key");
        let forger = JwtKey { secret: Secret::new(forged), ..key.clone() };
        Mint { key, forger }
    }

    /// A token that the gateway accepts for an hour.
    pub(super) fn good(&self, subject: &str, now_s: u64) -> String {
        signed(&self.key, subject, now_s, now_s + GOOD_S)
    }

    /// One token of each kind for each subject. `now_s` is in seconds since 1970.
    pub(super) fn all(&self, now_s: u64) -> Value {
        let of = |subject: &str| {
            let past = now_s - EXPIRED_S;
            json!({
                "subject": subject,
                "good": self.good(subject, now_s),
                "short": signed(&self.key, subject, now_s, now_s + SHORT_S),
                "expired": signed(&self.key, subject, past - GOOD_S, past),
                "forged": signed(&self.forger, subject, now_s, now_s + GOOD_S),
            })
        };
        SUBJECTS.iter().map(|subject| of(subject)).collect()
    }
}

fn signed(key: &JwtKey, subject: &str, issued_s: u64, expires_s: u64) -> String {
    let claims = json!({ "sub": subject, "iat": issued_s, "exp": expires_s });
    mint(key, claims.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::UnixTime;
    use crate::protocol::cause::Cause;
    use crate::protocol::jwt::{Algorithm, JwtOptions, JwtVerifier, TokenScratch};

    #[test]
    fn each_kind_gets_its_verdict() {
        let now_s = 1_900_000_000;
        let secret = Secret::new(vec![b'k'; 64]);
        let key = JwtKey { id: Some("dev".into()), algorithm: Algorithm::HS256, secret };
        let verifier = JwtVerifier::new(vec![key.clone()], JwtOptions::default()).unwrap();
        let tokens = Mint::new(key, vec![b'f'; 64]).all(now_s);
        let table = [
            ("good", 0, Ok("carol")),
            ("short", 0, Ok("carol")),
            // The verifier's leeway is on top.
            ("short", SHORT_S + 31, Err(Cause::TokenExpired)),
            ("good", SHORT_S + 31, Ok("carol")),
            ("expired", 0, Err(Cause::TokenExpired)),
            ("forged", 0, Err(Cause::BadSignature)),
        ];
        for (kind, later_s, expected) in table {
            let token = tokens[2][kind].as_str().unwrap();
            let mut scratch = TokenScratch::new();
            let now = UnixTime::from_seconds(now_s + later_s);
            let verdict = verifier.verify(token.as_bytes(), now, &mut scratch);
            let verdict = verdict.map(|identity| identity.subject().to_owned());
            assert_eq!(verdict.as_deref().map_err(|cause| *cause), expected, "{kind} +{later_s}");
        }
    }
}
