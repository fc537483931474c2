//! What the answer of an HTTP endpoint says about a client: 2xx with an identity accepts, 401,
//! 403 and redirects to a sign-in page refuse, and whatever else comes decides nothing.

use std::time::Duration;

use crate::base::time::UnixTime;
use crate::protocol::cause::Cause;
use crate::protocol::identity::{CLAIMS_MAX, IDENTITY_TEXT_MAX, VerifiedIdentity};

/// Longest time in Retry-After that is passed on, in seconds.
pub const RETRY_AFTER_MAX: u32 = 3600;
const RETRY_AFTER: &str = "retry-after";
/// Digits of a Unix time in seconds; more lie beyond every calendar.
const SECONDS_DIGITS_MAX: usize = 12;

/// Names of the response fields that are looked at, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionHeaders {
    /// The user that the endpoint recognised; a 2xx without it accepts no client.
    pub subject: String,
    /// The token's own id.
    pub token_id: String,
    /// When the session must end, in seconds since 1970.
    pub expires: String,
    /// When the token was made, in seconds since 1970.
    pub issued_at: String,
    /// What else is known, for the backend.
    pub claims: String,
    /// Label of a cause, beside 401 and 403.
    pub reason: String,
}

/// What an endpoint decided. It has no `Debug`: an identity is private.
pub enum HttpDecision {
    /// It knows the client.
    Accepted(Box<OwnedIdentity>),
    /// It turns the client away.
    Refused(Cause),
    /// It decided nothing that can be relied on.
    Undecided(Undecided),
}

/// Why an endpoint's answer is no decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecided {
    /// A status that is neither yes nor no.
    #[error("it answered {0}")]
    Status(u16),
    /// 429, or 503 with Retry-After: not now.
    #[error("it answered {status}: too many requests")]
    Busy {
        /// The status.
        status: u16,
        /// How long to wait, in seconds, if it said so; at most [`RETRY_AFTER_MAX`].
        retry_after: Option<u32>,
    },
    /// A field that cannot be what it should be.
    #[error("its {0} cannot be read, or is there twice")]
    Malformed(&'static str),
    /// Fields that cannot be true together.
    #[error("its {0} contradicts its answer")]
    Contradictory(&'static str),
    /// A head or body over the bound.
    #[error("its answer is longer than response_max")]
    TooLarge,
    /// It took too long.
    #[error("it took too long")]
    TimedOut,
    /// No connection, or a broken one.
    #[error("it cannot be reached, or broke off")]
    Unreachable,
    /// Not asked: it failed so often that it is left alone for a while.
    #[error("it is left alone after failures")]
    CircuitOpen,
    /// Not asked: as many as may wait do so already.
    #[error("too many verdicts are awaited")]
    Overloaded,
}

impl Undecided {
    /// Whether the endpoint failed. A whole answer below 500 is about the client, which chose what
    /// the question says: no client can open the circuit by asking nonsense.
    pub fn is_failure(self) -> bool {
        match self {
            Undecided::Status(status) => status >= 500,
            Undecided::TimedOut | Undecided::Unreachable => true,
            Undecided::Busy { .. }
            | Undecided::Malformed(_)
            | Undecided::Contradictory(_)
            | Undecided::TooLarge
            | Undecided::CircuitOpen
            | Undecided::Overloaded => false,
        }
    }

    /// When the client may try again, if the endpoint said so.
    pub fn retry_after(self) -> Option<Duration> {
        match self {
            Undecided::Busy { retry_after, .. } => {
                retry_after.map(|seconds| Duration::from_secs(seconds.into()))
            }
            _ => None,
        }
    }

    /// What an operator should look at, where the answer points to a wrong configuration.
    pub fn likely_cause(self) -> Option<&'static str> {
        Some(match self {
            Undecided::Status(400) => {
                "it does not understand the question: Authelia answers so to plain http and to \
                 hosts outside its domains"
            }
            Undecided::Status(301 | 308) => {
                "it wants another scheme or path: write the URL that it redirects to"
            }
            Undecided::Status(404 | 405 | 426) => "the path of `endpoint` is not the service's",
            Undecided::Status(status) if status < 500 => "`endpoint` is not a forward-auth service",
            Undecided::Malformed("subject") => {
                "it names no user: identity.subject is another header, oauth2-proxy lacks \
                 --set-xauthrequest, or a rule lets every user pass"
            }
            Undecided::Malformed(_) | Undecided::Contradictory(_) => {
                "the headers named in `identity` are not what it sends"
            }
            Undecided::TooLarge => "response_max is too small for it",
            _ => return None,
        })
    }
}

/// An identity that an endpoint vouched for, on its way between threads. Only [`judge`] makes
/// one, and it has no `Debug`.
pub struct OwnedIdentity {
    subject: String,
    token_id: Option<String>,
    issued_at: Option<UnixTime>,
    expires: Option<UnixTime>,
    claims: Vec<u8>,
}

impl OwnedIdentity {
    /// The proof that the client may pass.
    pub fn identity(&self) -> VerifiedIdentity<'_> {
        VerifiedIdentity::verified(
            &self.subject,
            self.token_id.as_deref(),
            self.issued_at,
            self.expires,
            &self.claims,
        )
    }
}

/// Judges a response by its status and fields (names in lower case, values as they came).
pub fn judge(status: u16, fields: &[(&str, &[u8])], names: &DecisionHeaders) -> HttpDecision {
    let decision = match status {
        200..=299 => accept(fields, names).map(|voucher| HttpDecision::Accepted(Box::new(voucher))),
        // A redirect of the whole service is the operator's to remedy.
        301 | 308 => Err(Undecided::Status(status)),
        300..=399 | 401 | 403 => refuse(status, fields, names).map(HttpDecision::Refused),
        429 => Err(busy(status, fields)),
        503 if fields.iter().any(|(name, _)| *name == RETRY_AFTER) => Err(busy(status, fields)),
        status => Err(Undecided::Status(status)),
    };
    decision.unwrap_or_else(HttpDecision::Undecided)
}

fn accept(fields: &[(&str, &[u8])], names: &DecisionHeaders) -> Result<OwnedIdentity, Undecided> {
    let text = |name: &str, what, max| text(fields, name, what, max);
    let subject = text(&names.subject, "subject", IDENTITY_TEXT_MAX)?;
    let token_id = text(&names.token_id, "token id", IDENTITY_TEXT_MAX)?;
    let claims = text(&names.claims, "claims", CLAIMS_MAX)?;
    let expires = seconds(text(&names.expires, "expiry", SECONDS_DIGITS_MAX)?, "expiry")?;
    let issued_at =
        seconds(text(&names.issued_at, "time of issue", SECONDS_DIGITS_MAX)?, "time of issue")?;
    if text(&names.reason, "reason", usize::MAX)?.is_some() {
        return Err(Undecided::Contradictory("reason"));
    }
    if expires.is_some_and(|end| issued_at.is_some_and(|start| start >= end)) {
        return Err(Undecided::Contradictory("expiry"));
    }
    Ok(OwnedIdentity {
        subject: subject.ok_or(Undecided::Malformed("subject"))?.to_owned(),
        token_id: token_id.map(str::to_owned),
        issued_at,
        expires,
        claims: claims.unwrap_or_default().as_bytes().to_vec(),
    })
}

/// A date in Retry-After (RFC 9110 §10.2.3) counts as no time.
fn busy(status: u16, fields: &[(&str, &[u8])]) -> Undecided {
    let text = text(fields, RETRY_AFTER, "Retry-After", SECONDS_DIGITS_MAX).ok().flatten();
    Undecided::Busy { status, retry_after: text.and_then(retry_after) }
}

/// The seconds of a Retry-After, at most [`RETRY_AFTER_MAX`].
pub fn retry_after(text: &str) -> Option<u32> {
    let digits = Some(text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let seconds = digits.and_then(|text| text.parse::<u64>().ok());
    seconds.map(|s| u32::try_from(s).unwrap_or(u32::MAX).min(RETRY_AFTER_MAX))
}

/// The cause of a status by which clients are refused, and those that a reason beside it may name.
pub fn causes(status: u16) -> (Cause, &'static [Cause]) {
    use Cause::*;
    const OF_TOKENS: &[Cause] =
        &[TokenMissing, TokenMalformed, BadSignature, TokenExpired, TokenRevoked, TokenNotYetValid];
    match status {
        401 => (BadSignature, OF_TOKENS),
        300..=399 => (TokenMissing, OF_TOKENS),
        _ => (TokenForbidden, &[TokenForbidden, TokenRevoked, ForbiddenOrigin, ForbiddenRoute]),
    }
}

/// A refusal that names a user contradicts itself.
fn refuse(
    status: u16,
    fields: &[(&str, &[u8])],
    names: &DecisionHeaders,
) -> Result<Cause, Undecided> {
    if text(fields, &names.subject, "subject", usize::MAX)?.is_some() {
        return Err(Undecided::Contradictory("subject"));
    }
    let (usual, allowed) = causes(status);
    match text(fields, &names.reason, "reason", usize::MAX)? {
        None => Ok(usual),
        Some(label) => {
            let named = allowed.iter().find(|cause| cause.label() == label);
            named.copied().ok_or(Undecided::Contradictory("reason"))
        }
    }
}

/// The value of a field that is there at most once, is UTF-8 and is not too long. An empty one
/// counts as absent.
fn text<'h>(
    fields: &[(&str, &'h [u8])],
    name: &str,
    what: &'static str,
    max: usize,
) -> Result<Option<&'h str>, Undecided> {
    let mut values = fields.iter().filter(|(field, _)| *field == name).map(|(_, value)| *value);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() || value.len() > max {
        return Err(Undecided::Malformed(what));
    }
    let value = simdutf8::basic::from_utf8(value).map_err(|_| Undecided::Malformed(what))?;
    Ok(Some(value).filter(|value| !value.is_empty()))
}

fn seconds(value: Option<&str>, what: &'static str) -> Result<Option<UnixTime>, Undecided> {
    let Some(value) = value else { return Ok(None) };
    let digits = value.bytes().all(|b| b.is_ascii_digit());
    match value.parse::<u64>() {
        Ok(seconds) if digits => Ok(Some(UnixTime::from_seconds(seconds))),
        _ => Err(Undecided::Malformed(what)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> DecisionHeaders {
        DecisionHeaders {
            subject: "x-auth-subject".into(),
            token_id: "x-auth-token-id".into(),
            expires: "x-auth-expires".into(),
            issued_at: "x-auth-issued-at".into(),
            claims: "x-auth-claims".into(),
            reason: "x-auth-reason".into(),
        }
    }

    /// The decision in words: `+` and what an accepted identity holds, `-` and a cause, `?`.
    fn decision(status: u16, fields: &[(&str, &[u8])]) -> String {
        match judge(status, fields, &names()) {
            HttpDecision::Accepted(voucher) => {
                let identity = voucher.identity();
                let time = |at: Option<UnixTime>| at.map_or(0, UnixTime::as_seconds);
                format!(
                    "+{},{},{},{},{}",
                    identity.subject(),
                    identity.token_id().unwrap_or("-"),
                    time(identity.expires()),
                    time(identity.issued_at()),
                    identity.claims().escape_ascii()
                )
            }
            HttpDecision::Refused(cause) => format!("-{}", cause.label()),
            HttpDecision::Undecided(why) => format!("?{why:?}"),
        }
    }

    #[test]
    fn responses_become_verdicts() {
        const ADA: (&str, &[u8]) = ("x-auth-subject", b"ada");
        const REASON: &str = "x-auth-reason";
        const EXPIRES: &str = "x-auth-expires";
        let long = [b'a'; 1025];
        let claims = [b'c'; 8193];
        type Row<'r> = (u16, &'r [(&'r str, &'r [u8])], &'r str);
        let table: &[Row<'_>] = &[
            (200, &[ADA], "+ada,-,0,0,"),
            (204, &[ADA], "+ada,-,0,0,"),
            (299, &[ADA], "+ada,-,0,0,"),
            (200, &[("x-auth-subject", "åda".as_bytes())], "+åda,-,0,0,"),
            (
                200,
                &[
                    ("server", b"x"),
                    ADA,
                    ("x-auth-token-id", b"t1"),
                    (EXPIRES, b"1800000000"),
                    ("x-auth-issued-at", b"1700000000"),
                    ("x-auth-claims", b"{\"a\":1}"),
                ],
                "+ada,t1,1800000000,1700000000,{\\\"a\\\":1}",
            ),
            (200, &[ADA, ("x-auth-token-id", b"")], "+ada,-,0,0,"),
            (200, &[], "?Malformed(\"subject\")"),
            (200, &[("x-auth-subject", b"")], "?Malformed(\"subject\")"),
            (200, &[("x-auth-subject", b"\xff")], "?Malformed(\"subject\")"),
            (200, &[("x-auth-subject", &long)], "?Malformed(\"subject\")"),
            (200, &[ADA, ADA], "?Malformed(\"subject\")"),
            (200, &[ADA, ("x-auth-subject", b"bob")], "?Malformed(\"subject\")"),
            (200, &[ADA, ("x-auth-token-id", &long)], "?Malformed(\"token id\")"),
            (200, &[ADA, ("x-auth-claims", &claims)], "?Malformed(\"claims\")"),
            (200, &[ADA, ("x-auth-claims", b"\xc0\x80")], "?Malformed(\"claims\")"),
            (200, &[ADA, (EXPIRES, b"tomorrow")], "?Malformed(\"expiry\")"),
            (200, &[ADA, (EXPIRES, b"-1")], "?Malformed(\"expiry\")"),
            (200, &[ADA, (EXPIRES, b"+1")], "?Malformed(\"expiry\")"),
            (200, &[ADA, (EXPIRES, b"1.5")], "?Malformed(\"expiry\")"),
            (200, &[ADA, (EXPIRES, b"1800000000000")], "?Malformed(\"expiry\")"),
            (200, &[ADA, (EXPIRES, b"1"), (EXPIRES, b"2")], "?Malformed(\"expiry\")"),
            (
                200,
                &[ADA, (EXPIRES, b"10"), ("x-auth-issued-at", b"10")],
                "?Contradictory(\"expiry\")",
            ),
            (200, &[ADA, (REASON, b"token_expired")], "?Contradictory(\"reason\")"),
            (401, &[], "-token_bad_signature"),
            (401, &[(REASON, b"token_expired")], "-token_expired"),
            (401, &[(REASON, b"token_missing")], "-token_missing"),
            (401, &[(REASON, b"token_forbidden")], "?Contradictory(\"reason\")"),
            (401, &[(REASON, b"idle")], "?Contradictory(\"reason\")"),
            (401, &[(REASON, b"Token_Expired")], "?Contradictory(\"reason\")"),
            (401, &[(REASON, b"token_expired"), (REASON, b"x")], "?Malformed(\"reason\")"),
            (401, &[(REASON, b"\xff")], "?Malformed(\"reason\")"),
            (401, &[ADA], "?Contradictory(\"subject\")"),
            (403, &[], "-token_forbidden"),
            (403, &[(REASON, b"forbidden_route")], "-forbidden_route"),
            (403, &[(REASON, b"token_expired")], "?Contradictory(\"reason\")"),
            (403, &[ADA], "?Contradictory(\"subject\")"),
            (100, &[ADA], "?Status(100)"),
            (199, &[ADA], "?Status(199)"),
            (300, &[], "-token_missing"),
            (301, &[("location", b"https://here/")], "?Status(301)"),
            (302, &[("location", b"http://elsewhere/")], "-token_missing"),
            (302, &[(REASON, b"token_expired")], "-token_expired"),
            (302, &[ADA], "?Contradictory(\"subject\")"),
            (303, &[], "-token_missing"),
            (307, &[], "-token_missing"),
            (308, &[], "?Status(308)"),
            (400, &[ADA], "?Status(400)"),
            (402, &[], "?Status(402)"),
            (404, &[], "?Status(404)"),
            (407, &[], "?Status(407)"),
            (429, &[], "?Busy { status: 429, retry_after: None }"),
            (429, &[("retry-after", b"7")], "?Busy { status: 429, retry_after: Some(7) }"),
            (429, &[("retry-after", b"99999")], "?Busy { status: 429, retry_after: Some(3600) }"),
            (
                503,
                &[("retry-after", b"Sat, 28 Nov 2026 06:00:00 GMT")],
                "?Busy { status: 503, retry_after: None }",
            ),
            (500, &[ADA], "?Status(500)"),
            (503, &[], "?Status(503)"),
            (599, &[ADA], "?Status(599)"),
        ];
        for (status, fields, expected) in table {
            assert_eq!(decision(*status, fields), *expected, "{status} {fields:?}");
        }
    }

    #[test]
    fn no_answer_below_500_is_a_failure_of_the_endpoint() {
        let fields: [&[(&str, &[u8])]; 3] =
            [&[], &[("x-auth-subject", b"\xff")], &[("retry-after", b"1")]];
        for status in 200..=599 {
            for fields in fields {
                let failed = match judge(status, fields, &names()) {
                    HttpDecision::Undecided(why) => why.is_failure(),
                    HttpDecision::Accepted(_) | HttpDecision::Refused(_) => false,
                };
                let busy = status == 503 && fields.iter().any(|field| field.0 == "retry-after");
                assert_eq!(failed, status >= 500 && !busy, "{status} {fields:?}");
            }
        }
    }

    #[test]
    fn no_status_but_2xx_ever_accepts() {
        let fields: &[(&str, &[u8])] = &[("x-auth-subject", b"ada")];
        for status in 0..=999 {
            let accepted = decision(status, fields).starts_with('+');
            assert_eq!(accepted, (200..300).contains(&status), "{status}");
        }
    }
}
