//! How a cause is put so that a client's own library understands it: one table.
//! `docs/closing.md` is made from it, and a test keeps the two the same.

use std::io::Write as _;
use std::time::Duration;

use crate::protocol::cause::Cause;

/// A family of clients with its own reading of close codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Dialect {
    /// A raw WebSocket: the application reads code and reason.
    Plain,
}

/// What a client is told when its connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The close code (RFC 6455 §7.4).
    pub code: u16,
    /// The reason: the cause's label, at most 123 bytes of `a-z`, `0-9` and `_`.
    pub reason: &'static str,
    /// Whether it makes sense to come back with the same request and token.
    pub reconnect: bool,
    /// How long to wait first; set whenever `reconnect` is. The caller adds jitter.
    pub retry_after: Option<Duration>,
    /// Whether a message of [`Dialect::write_explanation`] goes before the close frame. Not after
    /// the client broke the protocol (nothing may follow but the close), and not to one that
    /// does not read or said goodbye itself.
    pub explain: bool,
}

impl Dialect {
    /// Every dialect.
    pub const ALL: &'static [Dialect] = &[Dialect::Plain];

    /// The name in the configuration, and a metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Dialect::Plain => "plain",
        }
    }

    /// The dialect of this name.
    pub fn from_name(name: &str) -> Option<Dialect> {
        Dialect::ALL.iter().copied().find(|dialect| dialect.name() == name)
    }

    /// How `cause` is put in this dialect. For [`Cause::BackendClosed`] and
    /// [`Cause::ClientClosed`] the code is the one for when the other side gave none; its own
    /// goes first.
    pub const fn answer(self, cause: Cause) -> Answer {
        match self {
            Dialect::Plain => plain(cause),
        }
    }

    /// Appends the text message that explains the close.
    pub fn write_explanation(self, answer: &Answer, out: &mut Vec<u8>) {
        let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        assert!(answer.reason.bytes().all(is_plain), "a label needs no escape");
        let Answer { code, reason, reconnect, retry_after, .. } = answer;
        match self {
            Dialect::Plain => {
                let _infallible = write!(
                    out,
                    r#"{{"type":"close","code":{code},"reason":"{reason}","reconnect":{reconnect}"#
                );
                if let Some(wait) = retry_after {
                    let _infallible = write!(out, r#","retry_after_ms":{}"#, wait.as_millis());
                }
                out.push(b'}');
            }
        }
    }
}

/// Codes: 4401, 4403, 4408 and 4429 are the HTTP statuses that browsers cannot see. A refused
/// token stays refused, so that retrying it is never suggested. 1012 and 1013 (IANA's registry)
/// say "restarts" and "try again later"; 1001 is for a gateway that goes away.
const fn plain(cause: Cause) -> Answer {
    use Cause::*;
    let (code, retry_after_ms, explain) = match cause {
        TokenMissing | TokenMalformed | BadSignature | TokenExpired | TokenRevoked
        | TokenNotYetValid => (4401, None, true),
        TokenForbidden | CsrfMismatch | ForbiddenOrigin | ForbiddenRoute => (4403, None, true),
        AuthenticationTimedOut => (4408, Some(1_000), true),
        OverCapacity => (1013, Some(5_000), true),
        RateLimited => (4429, Some(5_000), true),
        // It does not read: a message more would only wait with the others.
        SlowConsumer => (4429, Some(5_000), false),
        // Nobody answers pings: the close frame is a courtesy.
        Idle => (4408, Some(1_000), false),
        Lifetime => (1012, Some(1_000), true),
        GoingAway => (1001, Some(1_000), true),
        BackendUnavailable => (1012, Some(2_000), true),
        BackendClosed | ClientClosed => (1000, None, false),
        ProtocolError | BadRequest | HealthCheck | TlsFailed => (1002, None, false),
        InvalidUtf8 => (1007, None, false),
        UnsupportedType => (1003, None, false),
        TooLarge => (1009, None, false),
        HandshakeTimedOut => (4408, Some(1_000), false),
        ClientGone => (1001, None, false),
        Internal => (1011, Some(5_000), true),
    };
    let retry_after = match retry_after_ms {
        Some(millis) => Some(Duration::from_millis(millis)),
        None => None,
    };
    let reconnect = retry_after.is_some();
    Answer { code, reason: cause.label(), reconnect, retry_after, explain }
}

/// Whether a connection can end for this cause only without a WebSocket to close: before the
/// 101, or when the client is gone.
pub const fn is_silent(cause: Cause) -> bool {
    use Cause::*;
    matches!(cause, BadRequest | HealthCheck | TlsFailed | HandshakeTimedOut | ClientGone)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "\
# How connections are closed

<!-- Made from src/protocol/dialect.rs. After a change there:
     UPDATE_DOCS=1 cargo test --lib closing_page -->

A browser cannot see the HTTP status of a refused upgrade. So the gateway accepts it, says in a
message why it will close, and closes with a code. The message, for the dialect `plain`:

```json
{\"type\":\"close\",\"code\":4401,\"reason\":\"token_expired\",\"reconnect\":false}
{\"type\":\"close\",\"code\":1012,\"reason\":\"lifetime\",\"reconnect\":true,\"retry_after_ms\":1000}
```

`reconnect` says whether the same request may succeed later; `retry_after_ms` is the least time to
wait before it, to which the client should add some at random. The reason of the close frame is the
same `reason`. Without `message`, the close frame stands alone.

| reason | code | reconnect after | message |
|---|---|---|---|
";

    const FOOT: &str = "
A forbidden origin normally gets 403 before the 101: a hijacking page is owed no explanation.
When the backend or the client closes with a code of its own, that code is passed on; 1000 stands
for none. These end without a close frame, before the 101 or because the client is gone, and show
up in metrics and logs only:
";

    fn page() -> String {
        let mut page = HEAD.to_owned();
        for cause in Cause::ALL.iter().copied().filter(|&cause| !is_silent(cause)) {
            let answer = Dialect::Plain.answer(cause);
            let wait = answer.retry_after.map_or("no".into(), |wait| format!("{wait:?}"));
            let message = if answer.explain { "yes" } else { "no" };
            let (reason, code) = (answer.reason, answer.code);
            page += &format!("| `{reason}` | {code} | {wait} | {message} |\n");
        }
        page += FOOT;
        let silent = Cause::ALL.iter().filter(|&&cause| is_silent(cause));
        let labels: Vec<_> = silent.map(|cause| format!("`{}`", cause.label())).collect();
        page + &labels.join(", ") + ".\n"
    }

    #[test]
    fn closing_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/closing.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let mend = "run UPDATE_DOCS=1 cargo test --lib closing_page";
        assert!(std::fs::read_to_string(path).unwrap_or_default() == page(), "{mend}");
    }

    #[test]
    fn codes_are_exact() {
        let table = [
            (Cause::TokenMissing, 4401),
            (Cause::BadSignature, 4401),
            (Cause::TokenExpired, 4401),
            (Cause::TokenForbidden, 4403),
            (Cause::ForbiddenOrigin, 4403),
            (Cause::AuthenticationTimedOut, 4408),
            (Cause::RateLimited, 4429),
            (Cause::OverCapacity, 1013),
            (Cause::BackendUnavailable, 1012),
            (Cause::GoingAway, 1001),
            (Cause::ProtocolError, 1002),
            (Cause::UnsupportedType, 1003),
            (Cause::InvalidUtf8, 1007),
            (Cause::TooLarge, 1009),
            (Cause::Internal, 1011),
        ];
        for (cause, code) in table {
            assert_eq!(Dialect::Plain.answer(cause).code, code, "{cause:?}");
        }
    }

    #[test]
    fn every_answer_may_be_sent() {
        for dialect in Dialect::ALL {
            assert_eq!(Dialect::from_name(dialect.name()), Some(*dialect));
            for cause in Cause::ALL {
                let answer = dialect.answer(*cause);
                // RFC 6455 §7.4: codes that an endpoint may put into a close frame.
                let sendable = matches!(answer.code,
                    1000..=1003 | 1007..=1014 | 3000..=4999);
                assert!(sendable, "{cause:?}");
                assert!(answer.reason.len() <= 123);
                assert_eq!(answer.reconnect, answer.retry_after.is_some(), "{cause:?}");
                if answer.code == 4401 || answer.code == 4403 {
                    assert!(!answer.reconnect, "{cause:?}: a dead token must not be retried");
                }
            }
        }
    }

    #[test]
    fn explanations_are_exact() {
        let table = [
            (
                Cause::TokenExpired,
                r#"{"type":"close","code":4401,"reason":"token_expired","reconnect":false}"#,
            ),
            (
                Cause::Idle,
                r#"{"type":"close","code":4408,"reason":"idle","reconnect":true,"retry_after_ms":1000}"#,
            ),
        ];
        for (cause, expected) in table {
            let mut out = Vec::new();
            let answer = Dialect::Plain.answer(cause);
            Dialect::Plain.write_explanation(&answer, &mut out);
            assert_eq!(str::from_utf8(&out), Ok(expected));
        }
        for cause in Cause::ALL {
            let mut out = Vec::new();
            Dialect::Plain.write_explanation(&Dialect::Plain.answer(*cause), &mut out);
            let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(value["reason"], cause.label());
        }
    }
}
