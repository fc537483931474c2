//! AUTH, ACCEPT and REJECT: a backend decides who a client is.
//!
//! AUTH opens a session halfway: it carries what OPEN carries, with credentials instead of an
//! identity. ACCEPT opens the session, so no OPEN follows; REJECT is a CLOSE in its effect.

use super::session::{exact, open_fields, put_field};
use super::{
    CLOSE_REASON_MAX, Fields, HEADER_BYTES, Kind, LinkError, Open, PAYLOAD_MAX, SessionId, cut,
    encode_frame,
};
use crate::base::time::UnixTime;
use crate::protocol::cause::Cause;
use crate::protocol::identity::{CLAIMS_MAX, IDENTITY_TEXT_MAX, VerifiedIdentity};

/// Types of the fields that AUTH and ACCEPT have beyond those of OPEN.
pub mod verdict_fields {
    /// In ACCEPT: u64, milliseconds since 1970.
    pub const ISSUED_AT: u8 = 13;
    /// In AUTH: u8 carrier, u8 length of the name, name, token; may repeat.
    pub const CREDENTIAL: u8 = 32;
}

/// Longest wait that a REJECT may ask for, in milliseconds.
pub const RETRY_AFTER_MAX_MS: u32 = 3_600_000;

/// Where a credential was found. The numbers are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CredentialCarrier {
    /// `Authorization: Bearer`.
    Authorization = 1,
    /// An entry of `Sec-WebSocket-Protocol`, decoded.
    Subprotocol = 2,
    /// The cookie of the credential's name.
    Cookie = 3,
    /// The header field of the credential's name, lower case.
    Header = 4,
    /// The query parameter of the credential's name, decoded.
    Query = 5,
    /// The first message: all of it, or the JSON string at the path that the name spells.
    FirstMessage = 6,
}

impl CredentialCarrier {
    /// Every carrier, in the order of its number.
    pub const ALL: &'static [CredentialCarrier] = &[
        CredentialCarrier::Authorization,
        CredentialCarrier::Subprotocol,
        CredentialCarrier::Cookie,
        CredentialCarrier::Header,
        CredentialCarrier::Query,
        CredentialCarrier::FirstMessage,
    ];

    fn from_code(code: u8) -> Option<Self> {
        CredentialCarrier::ALL.iter().copied().find(|carrier| *carrier as u8 == code)
    }
}

/// One credential that a client showed. It has no `Debug`: the token is a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Credential<'a> {
    /// Where it was found.
    pub carrier: CredentialCarrier,
    /// Name of the cookie, header field or parameter; member names with dots between them for
    /// a first message; empty for the rest.
    pub name: &'a str,
    /// The token, at least one byte.
    pub token: &'a [u8],
}

impl<'a> Credential<'a> {
    /// Whether the lengths of name and token fit their fields.
    pub fn fits(&self) -> bool {
        let value_bytes = 2 + self.name.len() + self.token.len();
        self.name.len() <= usize::from(u8::MAX) && value_bytes <= usize::from(u16::MAX)
    }

    /// Appends this credential to a whole AUTH frame; false, and nothing changed, when it
    /// does not fit. Credentials come last in the frame, so this may be repeated.
    pub fn append_to(&self, frame: &mut Vec<u8>) -> bool {
        self.append_at(0, frame)
    }

    /// The same for the last frame in `out`, which begins at `frame`.
    pub fn append_at(&self, frame: usize, out: &mut Vec<u8>) -> bool {
        let Ok(name_bytes) = u8::try_from(self.name.len()) else { return false };
        let start = out.len();
        let head = [self.carrier as u8, name_bytes];
        let fits =
            put_field(out, verdict_fields::CREDENTIAL, &[&head, self.name.as_bytes(), self.token]);
        let length = out.len() - frame - HEADER_BYTES;
        if !fits || length > PAYLOAD_MAX {
            out.truncate(start);
            return false;
        }
        set_length(frame, out);
        true
    }

    fn decode(value: &'a [u8]) -> Option<Self> {
        let (&[carrier, name_bytes], rest) = value.split_first_chunk::<2>()?;
        let (name, token) = rest.split_at_checked(usize::from(name_bytes))?;
        let carrier = CredentialCarrier::from_code(carrier)?;
        let name = simdutf8::basic::from_utf8(name).ok()?;
        (!token.is_empty()).then_some(Credential { carrier, name, token })
    }
}

/// The length of the last frame in `out`, which begins at `frame`, is that of all behind its header.
fn set_length(frame: usize, out: &mut [u8]) {
    let [_, length @ ..] = ((out.len() - frame - HEADER_BYTES) as u32).to_be_bytes();
    out[frame..frame + 3].copy_from_slice(&length);
}

/// The gateway's question: who is this?
#[derive(Clone, PartialEq, Eq)]
pub struct Auth<'a> {
    /// What the client asked for; no identity.
    pub open: Open<'a>,
    /// Credential fields, each of them checked.
    credentials: &'a [u8],
}

impl<'a> Auth<'a> {
    /// Appends an AUTH frame without credentials, see [`Credential::append_to`]; false when it
    /// does not fit.
    ///
    /// # Panics
    /// When `open` has an identity: the question would answer itself; or a connection, which comes
    /// behind the credentials ([`Auth::append_connection`]).
    pub fn encode(open: &Open<'_>, session: SessionId, out: &mut Vec<u8>) -> bool {
        let nobody = open.subject.is_none() && open.token_id.is_none();
        assert!(nobody && open.expires.is_none() && open.claims.is_empty(), "AUTH has no identity");
        assert!(open.connection.is_none(), "its type is above that of credentials");
        open.encode_as(Kind::Auth, session, PAYLOAD_MAX as u32, out)
    }

    /// Appends the number of the connection to the last frame in `out`, which begins at `frame` and
    /// has its credentials.
    pub fn append_connection(connection: u64, frame: usize, out: &mut Vec<u8>) {
        put_field(out, open_fields::CONNECTION, &[&connection.to_be_bytes()]);
        set_length(frame, out);
    }

    /// Reads the payload of an AUTH; the answer borrows from it.
    ///
    /// # Errors
    /// [`LinkError::BadField`] as for an OPEN; also for an identity, and when no credential is
    /// there.
    pub fn decode(payload: &'a [u8]) -> Result<Self, LinkError> {
        let mut fields = Fields { kind: Kind::Auth, rest: payload };
        let mut credentials = 0..0;
        let mut connection = None;
        let mut before = 0;
        while !fields.rest.is_empty() {
            let start = payload.len() - fields.rest.len();
            let field = fields.u8("field type")?;
            let length = fields.u16("field length")?;
            let value = fields.bytes(usize::from(length), "field length")?;
            if field < before {
                return Err(fields.bad("order of fields"));
            }
            before = field;
            match field {
                0..=open_fields::CLAIMS => return Err(fields.bad("identity")),
                verdict_fields::CREDENTIAL => {
                    Credential::decode(value).ok_or(fields.bad("credential"))?;
                    let end = payload.len() - fields.rest.len();
                    let first = if credentials.is_empty() { start } else { credentials.start };
                    credentials = first..end;
                }
                open_fields::CONNECTION if connection.is_some() => {
                    return Err(fields.bad("order of fields"));
                }
                open_fields::CONNECTION => {
                    let value = Fields { kind: Kind::Auth, rest: value };
                    connection = Some(u64::from_be_bytes(exact(value, "connection")?));
                }
                ..=open_fields::CREDIT | open_fields::OPTIONAL.. => {}
                _ => return Err(fields.bad("field type")),
            }
        }
        if credentials.is_empty() {
            return Err(fields.bad("credential"));
        }
        let open = Open::decode_as(Kind::Auth, &payload[..credentials.start])?;
        let open = Open { connection, ..open };
        Ok(Auth { open, credentials: &payload[credentials] })
    }

    /// The credentials, in the order of the gateway's settings.
    pub fn credentials(&self) -> impl Iterator<Item = Credential<'a>> + use<'a> {
        let mut rest = self.credentials;
        std::iter::from_fn(move || {
            let ([_, high, low], after) = rest.split_first_chunk::<3>()?;
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let (value, after) = after.split_at_checked(length)?;
            rest = after;
            Credential::decode(value)
        })
    }
}

/// The backend accepts the client: the session is open. It is only encoded; decoding makes the
/// identity itself, so that no other code can make one up.
#[derive(Clone, PartialEq, Eq)]
pub struct Accept<'a> {
    /// Whom the backend recognised: 1 to [`IDENTITY_TEXT_MAX`] bytes.
    pub subject: &'a str,
    /// The token's own id, by which it can be revoked: at most [`IDENTITY_TEXT_MAX`] bytes.
    pub token_id: Option<&'a str>,
    /// When the token was made.
    pub issued_at: Option<UnixTime>,
    /// When the session must end.
    pub expires: Option<UnixTime>,
    /// What else is known, at most [`CLAIMS_MAX`] bytes.
    pub claims: &'a [u8],
}

impl<'a> Accept<'a> {
    /// Appends the frame; false, and nothing appended, when a field is out of its bounds.
    pub fn encode(&self, session: SessionId, out: &mut Vec<u8>) -> bool {
        let text = |text: &str| (1..=IDENTITY_TEXT_MAX).contains(&text.len());
        if !text(self.subject) || !self.token_id.is_none_or(text) || self.claims.len() > CLAIMS_MAX
        {
            return false;
        }
        encode_frame(Kind::Accept, session, out, |out| {
            put_field(out, open_fields::SUBJECT, &[self.subject.as_bytes()]);
            if let Some(id) = self.token_id {
                put_field(out, open_fields::TOKEN_ID, &[id.as_bytes()]);
            }
            if let Some(at) = self.expires {
                put_field(out, open_fields::EXPIRES, &[&at.as_millis().to_be_bytes()]);
            }
            if !self.claims.is_empty() {
                put_field(out, open_fields::CLAIMS, &[self.claims]);
            }
            if let Some(at) = self.issued_at {
                put_field(out, verdict_fields::ISSUED_AT, &[&at.as_millis().to_be_bytes()]);
            }
        });
        true
    }

    /// Reads the payload of an ACCEPT.
    ///
    /// # Errors
    /// [`LinkError::BadField`] for fields out of order, doubled, unknown or out of their
    /// bounds, and for a missing subject.
    pub fn decode(payload: &'a [u8]) -> Result<VerifiedIdentity<'a>, LinkError> {
        let mut fields = Fields { kind: Kind::Accept, rest: payload };
        let mut accept =
            Accept { subject: "", token_id: None, issued_at: None, expires: None, claims: &[] };
        let mut before = 0;
        while !fields.rest.is_empty() {
            let field = fields.u8("field type")?;
            let length = fields.u16("field length")?;
            let value = fields.bytes(usize::from(length), "field length")?;
            if field <= before {
                return Err(fields.bad("order of fields"));
            }
            before = field;
            accept.set(field, Fields { kind: Kind::Accept, rest: value })?;
        }
        if accept.subject.is_empty() {
            return Err(fields.bad("subject"));
        }
        let Accept { subject, token_id, issued_at, expires, claims } = accept;
        Ok(VerifiedIdentity::verified(subject, token_id, issued_at, expires, claims))
    }

    fn set(&mut self, field: u8, value: Fields<'a>) -> Result<(), LinkError> {
        let time = |millis: [u8; 8]| Some(UnixTime::from_millis(u64::from_be_bytes(millis)));
        match field {
            open_fields::SUBJECT => self.subject = value.text(IDENTITY_TEXT_MAX, "subject")?,
            open_fields::TOKEN_ID if value.rest.is_empty() => return Err(value.bad("token id")),
            open_fields::TOKEN_ID => {
                self.token_id = Some(value.text(IDENTITY_TEXT_MAX, "token id")?);
            }
            open_fields::EXPIRES => self.expires = time(exact(value, "expires")?),
            open_fields::CLAIMS if value.rest.len() > CLAIMS_MAX => return Err(value.bad("claims")),
            open_fields::CLAIMS => self.claims = value.rest,
            verdict_fields::ISSUED_AT => self.issued_at = time(exact(value, "issued at")?),
            open_fields::OPTIONAL.. => {}
            _ => return Err(value.bad("field type")),
        }
        Ok(())
    }
}

/// The backend's no. It is also the backend's last frame for the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject<'a> {
    /// Why: one of [`Reject::CAUSES`].
    pub cause: Cause,
    /// When the client may try again, in milliseconds, at most [`RETRY_AFTER_MAX_MS`]; 0 leaves
    /// it to the gateway. Only causes after which a client may try again at all have one.
    pub retry_after_ms: u32,
    /// For the client's eyes, at most [`CLOSE_REASON_MAX`] bytes (longer ones are cut).
    pub message: &'a str,
}

impl<'a> Reject<'a> {
    /// What a decision may give as its cause. The rest is the gateway's own to find.
    pub const CAUSES: &'static [Cause] = &[
        Cause::TokenMissing,
        Cause::TokenMalformed,
        Cause::BadSignature,
        Cause::TokenExpired,
        Cause::TokenRevoked,
        Cause::TokenNotYetValid,
        Cause::TokenForbidden,
        Cause::ForbiddenOrigin,
        Cause::ForbiddenRoute,
        Cause::OverCapacity,
        Cause::RateLimited,
        Cause::BackendUnavailable,
    ];

    /// A rejection that leaves the rest to the gateway.
    pub const fn new(cause: Cause) -> Reject<'static> {
        Reject { cause, retry_after_ms: 0, message: "" }
    }

    /// Appends the frame; false, and nothing appended, when the cause may not be given, or has
    /// a time to wait that it cannot have.
    pub fn encode(&self, session: SessionId, out: &mut Vec<u8>) -> bool {
        if !Self::CAUSES.contains(&self.cause) || !self.wait_fits() {
            return false;
        }
        let label = self.cause.label();
        encode_frame(Kind::Reject, session, out, |out| {
            out.push(label.len() as u8);
            out.extend_from_slice(&self.retry_after_ms.to_be_bytes());
            out.extend_from_slice(label.as_bytes());
            out.extend_from_slice(cut(self.message, CLOSE_REASON_MAX).as_bytes());
        });
        true
    }

    /// Reads the payload of a REJECT.
    ///
    /// # Errors
    /// [`LinkError::BadField`]; also for a cause that a decision may not give.
    pub fn decode(payload: &'a [u8]) -> Result<Self, LinkError> {
        let mut fields = Fields { kind: Kind::Reject, rest: payload };
        let label_bytes = usize::from(fields.u8("cause")?);
        let retry_after_ms = fields.u32("retry after")?;
        let label = fields.bytes(label_bytes, "cause")?;
        let known = Self::CAUSES.iter().find(|cause| cause.label().as_bytes() == label);
        let cause = *known.ok_or(fields.bad("cause"))?;
        if !(Reject { cause, retry_after_ms, message: "" }).wait_fits() {
            return Err(fields.bad("retry after"));
        }
        let message = fields.text(CLOSE_REASON_MAX, "message")?;
        Ok(Reject { cause, retry_after_ms, message })
    }

    fn wait_fits(&self) -> bool {
        let may_retry = matches!(
            self.cause,
            Cause::OverCapacity | Cause::RateLimited | Cause::BackendUnavailable
        );
        self.retry_after_ms == 0 || (may_retry && self.retry_after_ms <= RETRY_AFTER_MAX_MS)
    }
}
