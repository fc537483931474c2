//! REAUTH, EXPIRE and REVOKE: what may happen to an identity while its session is open.

use std::fmt;

use super::session::{exact, open_fields, put_field};
use super::{
    Fields, FrameHeader, HEADER_BYTES, Kind, LinkError, PAYLOAD_MAX, SessionId, encode_frame,
};
use crate::base::time::UnixTime;
use crate::protocol::revocation::{Revocation, Target};

/// Type of REVOKE's field for tokens made before an instant: u64, milliseconds since 1970.
const ISSUED_BEFORE: u8 = 35;

/// The client presented a fresh token, and it was verified: the same subject as before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Reauth<'a> {
    /// Whom the token names: who the session is of already.
    pub subject: Option<&'a str>,
    /// The new token's own id.
    pub token_id: Option<&'a str>,
    /// When the new token's time is over.
    pub expires: Option<UnixTime>,
    /// The new token's claims as they stood in it.
    pub claims: &'a [u8],
}

impl<'a> Reauth<'a> {
    /// Appends the frame, unless its payload would be over `frame_max` bytes or a field over
    /// its length field: then `out` is left as it was and the answer is false.
    pub fn encode(&self, session: SessionId, frame_max: u32, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        let expires = self.expires.map(|expires| expires.as_millis().to_be_bytes());
        let fields = [
            (open_fields::SUBJECT, self.subject.map(str::as_bytes)),
            (open_fields::TOKEN_ID, self.token_id.map(str::as_bytes)),
            (open_fields::EXPIRES, expires.as_ref().map(<[u8; 8]>::as_slice)),
            (open_fields::CLAIMS, Some(self.claims).filter(|claims| !claims.is_empty())),
        ];
        let mut fits = true;
        for (field, value) in fields {
            fits = fits && value.is_none_or(|value| put_field(out, field, &[value]));
        }
        let length = out.len() - start - HEADER_BYTES;
        if !fits || length > PAYLOAD_MAX.min(frame_max as usize) {
            out.truncate(start);
            return false;
        }
        let header = FrameHeader { length: length as u32, kind: Kind::Reauth, flags: 0, session };
        out[start..start + HEADER_BYTES].copy_from_slice(&header.format());
        true
    }

    /// Reads the payload of a REAUTH.
    ///
    /// # Errors
    /// [`LinkError::BadField`].
    pub fn decode(payload: &'a [u8]) -> Result<Self, LinkError> {
        let mut reauth = Reauth { subject: None, token_id: None, expires: None, claims: &[] };
        for_each_field(Kind::Reauth, payload, |field, value| {
            match field {
                open_fields::SUBJECT => reauth.subject = Some(value.text(usize::MAX, "subject")?),
                open_fields::TOKEN_ID => {
                    reauth.token_id = Some(value.text(usize::MAX, "token id")?);
                }
                open_fields::EXPIRES => reauth.expires = Some(time(value, "expires")?),
                open_fields::CLAIMS => reauth.claims = value.rest,
                open_fields::OPTIONAL.. => {}
                _ => return Err(value.bad("field type")),
            }
            Ok(())
        })?;
        Ok(reauth)
    }
}

impl fmt::Debug for Reauth<'_> {
    /// Claims may hold secrets: only their length is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reauth")
            .field("subject", &self.subject)
            .field("expires", &self.expires)
            .field("claims_bytes", &self.claims.len())
            .finish_non_exhaustive()
    }
}

/// The backend sets when the session's identity is over, earlier or later than it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expire {
    /// When; a time that is past ends the session now.
    pub expires: UnixTime,
}

impl Expire {
    /// Appends the frame.
    pub fn encode(&self, session: SessionId, out: &mut Vec<u8>) {
        encode_frame(Kind::Expire, session, out, |out| {
            out.extend_from_slice(&self.expires.as_millis().to_be_bytes());
        });
    }

    /// Reads the payload of an EXPIRE.
    ///
    /// # Errors
    /// [`LinkError::BadField`].
    pub fn decode(payload: &[u8]) -> Result<Self, LinkError> {
        Ok(Expire { expires: time(Fields { kind: Kind::Expire, rest: payload }, "expires")? })
    }
}

impl Revocation {
    /// Appends a REVOKE frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let before = self.target.issued_before().map(|at| at.as_millis().to_be_bytes());
        encode_frame(Kind::Revoke, SessionId::LINK, out, |out| {
            out.extend_from_slice(&self.lapses.as_millis().to_be_bytes());
            for (field, value) in [
                (open_fields::SUBJECT, self.target.subject().map(str::as_bytes)),
                (open_fields::TOKEN_ID, self.target.token_id().map(str::as_bytes)),
                (ISSUED_BEFORE, before.as_ref().map(<[u8; 8]>::as_slice)),
            ] {
                let fits = value.is_none_or(|value| put_field(out, field, &[value]));
                assert!(fits, "a target's names are bounded");
            }
        });
    }

    /// Reads the payload of a REVOKE.
    ///
    /// # Errors
    /// [`LinkError::BadField`].
    pub fn decode(payload: &[u8]) -> Result<Self, LinkError> {
        let mut fields = Fields { kind: Kind::Revoke, rest: payload };
        let lapses = UnixTime::from_millis(fields.u64("lapses")?);
        let (mut subject, mut token_id, mut issued_before) = (None, None, None);
        for_each_field(Kind::Revoke, fields.rest, |field, value| {
            match field {
                open_fields::SUBJECT => subject = Some(value.text(usize::MAX, "subject")?),
                open_fields::TOKEN_ID => token_id = Some(value.text(usize::MAX, "token id")?),
                ISSUED_BEFORE => issued_before = Some(time(value, "issued before")?),
                open_fields::OPTIONAL.. => {}
                _ => return Err(value.bad("field type")),
            }
            Ok(())
        })?;
        let target = Target::new(subject, token_id, issued_before);
        let bad = |_| LinkError::BadField { kind: Kind::Revoke, field: "target" };
        Ok(Revocation { target: target.map_err(bad)?, lapses })
    }
}

/// Hands out every field of a payload, which come in ascending order, each at most once.
fn for_each_field<'a>(
    kind: Kind,
    payload: &'a [u8],
    mut take: impl FnMut(u8, Fields<'a>) -> Result<(), LinkError>,
) -> Result<(), LinkError> {
    let mut fields = Fields { kind, rest: payload };
    let mut before = 0;
    while !fields.rest.is_empty() {
        let field = fields.u8("field type")?;
        let length = fields.u16("field length")?;
        let value = fields.bytes(usize::from(length), "field length")?;
        if field <= before {
            return Err(fields.bad("order of fields"));
        }
        take(field, Fields { kind, rest: value })?;
        before = field;
    }
    Ok(())
}

fn time(value: Fields<'_>, name: &'static str) -> Result<UnixTime, LinkError> {
    Ok(UnixTime::from_millis(u64::from_be_bytes(exact(value, name)?)))
}
