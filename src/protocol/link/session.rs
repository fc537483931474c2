//! OPEN, CLOSE, CREDIT, GOAWAY, PING and PONG. (DATA is [`super::encode_data`] and its payload.)

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::flow::CREDIT_MAX;
use super::{
    CLOSE_REASON_MAX, Fields, FrameHeader, HEADER_BYTES, Kind, LABEL_MAX, LinkError, PAYLOAD_MAX,
    REASON_MAX, SessionId, cut, encode_frame,
};
use crate::base::time::UnixTime;
use crate::protocol::cause::Cause;

/// Types of OPEN's fields. They come in ascending order, each at most once but [`HEADER`].
/// Unknown ones from 128 up are skipped, unknown ones below are an error.
///
/// [`HEADER`]: open_fields::HEADER
pub mod open_fields {
    /// UTF-8.
    pub const SUBJECT: u8 = 1;
    /// UTF-8.
    pub const TOKEN_ID: u8 = 2;
    /// u64, milliseconds since 1970.
    pub const EXPIRES: u8 = 3;
    /// Bytes as the token had them.
    pub const CLAIMS: u8 = 4;
    /// UTF-8; always there.
    pub const PATH: u8 = 5;
    /// u16.
    pub const ROUTE: u8 = 6;
    /// UTF-8.
    pub const ROUTE_NAME: u8 = 7;
    /// 4 or 16 bytes of address, u16 port.
    pub const REMOTE: u8 = 8;
    /// UTF-8.
    pub const SUBPROTOCOL: u8 = 9;
    /// UTF-8.
    pub const ORIGIN: u8 = 10;
    /// u8 length of the name, name, value; may repeat.
    pub const HEADER: u8 = 11;
    /// u32, instead of HELLO's `session_window`.
    pub const CREDIT: u8 = 12;
    /// The first type that may be skipped when it is unknown.
    pub const OPTIONAL: u8 = 128;
    /// u64.
    pub const CONNECTION: u8 = 129;
}

/// A new session: who the client is and what it asked for. Every field fits 65,535 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Open<'a> {
    /// Whom the token names, if it names anyone.
    pub subject: Option<&'a str>,
    /// The token's own id.
    pub token_id: Option<&'a str>,
    /// When the token's time is over.
    pub expires: Option<UnixTime>,
    /// The token's claims as they stood in it (JSON for a JWT); empty when there are none.
    pub claims: &'a [u8],
    /// Path and query of the request, tokens removed.
    pub path: &'a str,
    /// Index of the route in the gateway's settings.
    pub route: u16,
    /// What the gateway's settings call the route: its `name`, or its path as written there; empty
    /// when not told.
    pub route_name: &'a str,
    /// The client's address, as the gateway sees it.
    pub remote: Option<SocketAddr>,
    /// The subprotocol that the gateway chose.
    pub subprotocol: Option<&'a str>,
    /// The Origin header, checked.
    pub origin: Option<&'a str>,
    /// The request headers that the route forwards; names in lower case.
    pub headers: OpenHeaders<'a>,
    /// Credit that the backend begins with, in bytes, where it differs from HELLO's.
    pub credit: Option<u32>,
    /// The gateway's own number of the connection, which its close line has too.
    pub connection: Option<u64>,
}

impl<'a> Open<'a> {
    /// An OPEN with a path and nothing else.
    pub const fn new(path: &'a str) -> Self {
        Open {
            subject: None,
            token_id: None,
            expires: None,
            claims: &[],
            path,
            route: 0,
            route_name: "",
            remote: None,
            subprotocol: None,
            origin: None,
            headers: OpenHeaders::NONE,
            credit: None,
            connection: None,
        }
    }

    /// Appends the frame, unless its payload would be over `frame_max` bytes or a field over
    /// its length field: then `out` is left as it was and the answer is false.
    pub fn encode(&self, session: SessionId, frame_max: u32, out: &mut Vec<u8>) -> bool {
        self.encode_as(Kind::Open, session, frame_max, out)
    }

    /// The same fields as another kind of frame.
    pub(super) fn encode_as(
        &self,
        kind: Kind,
        session: SessionId,
        frame_max: u32,
        out: &mut Vec<u8>,
    ) -> bool {
        let start = out.len();
        let mut fits = true;
        out.extend_from_slice(&[0; HEADER_BYTES]);
        self.for_each_field(|field, parts| fits = fits && put_field(out, field, parts));
        let length = out.len() - start - HEADER_BYTES;
        if !fits || length > PAYLOAD_MAX.min(frame_max as usize) {
            out.truncate(start);
            return false;
        }
        let header = FrameHeader { length: length as u32, kind, flags: 0, session };
        out[start..start + HEADER_BYTES].copy_from_slice(&header.format());
        true
    }

    /// Hands out every field in the order of its type, its value in parts.
    fn for_each_field(&self, mut put: impl FnMut(u8, &[&[u8]])) {
        use open_fields as f;
        let mut text = |field, value: Option<&str>| {
            if let Some(value) = value {
                put(field, &[value.as_bytes()]);
            }
        };
        text(f::SUBJECT, self.subject);
        text(f::TOKEN_ID, self.token_id);
        if let Some(expires) = self.expires {
            put(f::EXPIRES, &[&expires.as_millis().to_be_bytes()]);
        }
        if !self.claims.is_empty() {
            put(f::CLAIMS, &[self.claims]);
        }
        put(f::PATH, &[self.path.as_bytes()]);
        put(f::ROUTE, &[&self.route.to_be_bytes()]);
        if !self.route_name.is_empty() {
            put(f::ROUTE_NAME, &[self.route_name.as_bytes()]);
        }
        if let Some(remote) = self.remote {
            let port = remote.port().to_be_bytes();
            match remote.ip() {
                IpAddr::V4(ip) => put(f::REMOTE, &[&ip.octets(), &port]),
                IpAddr::V6(ip) => put(f::REMOTE, &[&ip.octets(), &port]),
            }
        }
        let mut text = |field, value: Option<&str>| {
            if let Some(value) = value {
                put(field, &[value.as_bytes()]);
            }
        };
        text(f::SUBPROTOCOL, self.subprotocol);
        text(f::ORIGIN, self.origin);
        for (name, value) in self.headers.iter() {
            assert!(name.len() <= 255, "header names are at most 255 bytes");
            put(f::HEADER, &[&[name.len() as u8], name.as_bytes(), value]);
        }
        if let Some(credit) = self.credit {
            put(f::CREDIT, &[&credit.to_be_bytes()]);
        }
        if let Some(connection) = self.connection {
            put(f::CONNECTION, &[&connection.to_be_bytes()]);
        }
    }

    /// Reads the payload of an OPEN; the answer borrows from it.
    ///
    /// # Errors
    /// [`LinkError::BadField`] for fields out of order, doubled, unknown, too long or short,
    /// or not UTF-8, and for a missing path.
    pub fn decode(payload: &'a [u8]) -> Result<Self, LinkError> {
        Open::decode_as(Kind::Open, payload)
    }

    /// The same fields in another kind of frame.
    pub(super) fn decode_as(kind: Kind, payload: &'a [u8]) -> Result<Self, LinkError> {
        let mut open = Open::new("");
        let (mut has_path, mut before) = (false, 0);
        let mut headers = 0..0;
        let mut fields = Fields { kind, rest: payload };
        while !fields.rest.is_empty() {
            let start = payload.len() - fields.rest.len();
            let field = fields.u8("field type")?;
            let length = fields.u16("field length")?;
            let value = fields.bytes(usize::from(length), "field length")?;
            if field < before || (field == before && field != open_fields::HEADER) {
                return Err(fields.bad("order of fields"));
            }
            if field == open_fields::HEADER {
                split_header(value).ok_or(fields.bad("header"))?;
                let end = payload.len() - fields.rest.len();
                headers = if headers.is_empty() { start..end } else { headers.start..end };
            } else {
                open.set(field, Fields { kind, rest: value })?;
            }
            has_path |= field == open_fields::PATH;
            before = field;
        }
        open.headers = OpenHeaders::Encoded(&payload[headers]);
        if has_path { Ok(open) } else { Err(fields.bad("path")) }
    }

    fn set(&mut self, field: u8, value: Fields<'a>) -> Result<(), LinkError> {
        use open_fields as f;
        let all = usize::MAX;
        match field {
            f::SUBJECT => self.subject = Some(value.text(all, "subject")?),
            f::TOKEN_ID => self.token_id = Some(value.text(all, "token id")?),
            f::EXPIRES => {
                let millis = u64::from_be_bytes(exact(value, "expires")?);
                self.expires = Some(UnixTime::from_millis(millis));
            }
            f::CLAIMS => self.claims = value.rest,
            f::PATH => self.path = value.text(all, "path")?,
            f::ROUTE => self.route = u16::from_be_bytes(exact(value, "route")?),
            f::ROUTE_NAME => self.route_name = value.text(all, "route name")?,
            f::REMOTE => self.remote = Some(remote(value)?),
            f::SUBPROTOCOL => self.subprotocol = Some(value.text(all, "subprotocol")?),
            f::ORIGIN => self.origin = Some(value.text(all, "origin")?),
            f::CREDIT => self.credit = Some(u32::from_be_bytes(exact(value, "credit")?)),
            f::CONNECTION => {
                self.connection = Some(u64::from_be_bytes(exact(value, "connection")?));
            }
            f::OPTIONAL.. => {}
            _ => return Err(value.bad("field type")),
        }
        Ok(())
    }
}

impl fmt::Debug for Open<'_> {
    /// Claims and header values may hold secrets: only their lengths are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open")
            .field("subject", &self.subject)
            .field("claims_bytes", &self.claims.len())
            .field("route", &self.route)
            .field("remote", &self.remote)
            .field("subprotocol", &self.subprotocol)
            .field("headers", &self.headers.iter().count())
            .finish_non_exhaustive()
    }
}

/// Request headers of an OPEN: the caller's pairs, or a checked part of a payload.
#[derive(Clone, Copy)]
pub enum OpenHeaders<'a> {
    /// Names (lower case, at most 255 bytes) and values, to be encoded.
    Pairs(&'a [(&'a str, &'a [u8])]),
    /// HEADER fields, each of them checked; only [`Open::decode`] makes these.
    Encoded(&'a [u8]),
}

impl<'a> OpenHeaders<'a> {
    /// No headers.
    pub const NONE: OpenHeaders<'static> = OpenHeaders::Pairs(&[]);

    /// Names and values, in order.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let (pairs, mut encoded) = match self {
            OpenHeaders::Pairs(pairs) => (pairs, &[][..]),
            OpenHeaders::Encoded(encoded) => (&[][..], encoded),
        };
        let decoded = std::iter::from_fn(move || {
            let ([_, high, low], rest) = encoded.split_first_chunk::<3>()?;
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let (value, rest) = rest.split_at_checked(length)?;
            encoded = rest;
            split_header(value)
        });
        pairs.iter().copied().chain(decoded)
    }
}

impl PartialEq for OpenHeaders<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for OpenHeaders<'_> {}

/// Who ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Closer {
    /// The client, with a close frame or by going.
    Client = 0,
    /// The gateway.
    Gateway = 1,
    /// The backend.
    Backend = 2,
}

/// The sender's last frame for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close<'a> {
    /// Who ended the session. A backend says `Backend`, whatever it was told.
    pub by: Closer,
    /// Label of the cause ([`Cause::label`]), lower case and `_`, at most [`LABEL_MAX`] bytes.
    /// Empty when there is none. One that this version does not know may be treated as none.
    pub label: &'a str,
    /// WebSocket close code: 1000 to 4999 without 1004, 1005, 1006, 1015; 0 when there is none.
    pub code: u16,
    /// Reason for the client's or the backend's eyes, at most [`CLOSE_REASON_MAX`] bytes
    /// (longer ones are cut).
    pub reason: &'a str,
}

impl<'a> Close<'a> {
    /// The cause with this label, if this version has it.
    pub fn cause(&self) -> Option<Cause> {
        Cause::ALL.iter().copied().find(|cause| cause.label() == self.label)
    }

    /// Whether a CLOSE may carry this code; these are also the codes that may appear in a
    /// WebSocket close frame (RFC 6455 §7.4).
    pub const fn is_code_allowed(code: u16) -> bool {
        matches!(code, 0 | 1000..=1003 | 1007..=1014 | 1016..=4999)
    }

    /// Appends the frame.
    ///
    /// # Panics
    /// For a code or label that is not allowed: both are ours.
    pub fn encode(&self, session: SessionId, out: &mut Vec<u8>) {
        assert!(Self::is_code_allowed(self.code), "close code {} may not be sent", self.code);
        assert!(is_label(self.label.as_bytes()), "not a label");
        encode_frame(Kind::Close, session, out, |out| {
            out.push(self.by as u8);
            out.push(self.label.len() as u8);
            out.extend_from_slice(&self.code.to_be_bytes());
            out.extend_from_slice(self.label.as_bytes());
            out.extend_from_slice(cut(self.reason, CLOSE_REASON_MAX).as_bytes());
        });
    }

    /// Reads the payload of a CLOSE.
    ///
    /// # Errors
    /// [`LinkError::BadField`].
    pub fn decode(payload: &'a [u8]) -> Result<Self, LinkError> {
        let mut fields = Fields { kind: Kind::Close, rest: payload };
        let by = match fields.u8("who")? {
            0 => Closer::Client,
            1 => Closer::Gateway,
            2 => Closer::Backend,
            _ => return Err(fields.bad("who")),
        };
        let label_bytes = usize::from(fields.u8("label")?);
        let code = fields.u16("code")?;
        if !Self::is_code_allowed(code) {
            return Err(fields.bad("code"));
        }
        let label = fields.bytes(label_bytes, "label")?;
        let label = std::str::from_utf8(label)
            .ok()
            .filter(|label| is_label(label.as_bytes()))
            .ok_or(fields.bad("label"))?;
        Ok(Close { by, label, code, reason: fields.text(CLOSE_REASON_MAX, "reason")? })
    }
}

/// More DATA may come: for the session in the header, or for the whole link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// How many more bytes, from 1 to 2^31 - 1.
    pub bytes: u32,
}

impl Credit {
    /// Appends the frame; `session` may be [`SessionId::LINK`].
    pub fn encode(&self, session: SessionId, out: &mut Vec<u8>) {
        encode_frame(Kind::Credit, session, out, |out| {
            out.extend_from_slice(&self.bytes.to_be_bytes());
        });
    }

    /// Reads the payload of a CREDIT.
    ///
    /// # Errors
    /// [`LinkError::CreditOverflow`] for 0 or beyond 2^31 - 1, [`LinkError::BadField`].
    pub fn decode(payload: &[u8]) -> Result<Self, LinkError> {
        let value = Fields { kind: Kind::Credit, rest: payload };
        match u32::from_be_bytes(exact(value, "bytes")?) {
            bytes @ 1..=CREDIT_MAX => Ok(Credit { bytes }),
            _ => Err(LinkError::CreditOverflow),
        }
    }
}

/// Are you there? The receiver answers immediately with the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Means something to the sender only; a time, as a rule.
    pub opaque: u64,
}

/// The answer to a PING.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    /// The PING's.
    pub opaque: u64,
}

impl Ping {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_opaque(Kind::Ping, self.opaque, out);
    }

    /// Reads the payload of a PING.
    ///
    /// # Errors
    /// [`LinkError::BadField`].
    pub fn decode(payload: &[u8]) -> Result<Self, LinkError> {
        let value = Fields { kind: Kind::Ping, rest: payload };
        Ok(Ping { opaque: u64::from_be_bytes(exact(value, "opaque")?) })
    }
}

impl Pong {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_opaque(Kind::Pong, self.opaque, out);
    }

    /// Reads the payload of a PONG.
    ///
    /// # Errors
    /// [`LinkError::BadField`].
    pub fn decode(payload: &[u8]) -> Result<Self, LinkError> {
        let value = Fields { kind: Kind::Pong, rest: payload };
        Ok(Pong { opaque: u64::from_be_bytes(exact(value, "opaque")?) })
    }
}

/// No new sessions on this link, please; those that are open go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoAway<'a> {
    /// Why, for people; at most [`REASON_MAX`] bytes (longer ones are cut).
    pub reason: &'a str,
}

impl<'a> GoAway<'a> {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_frame(Kind::GoAway, SessionId::LINK, out, |out| {
            out.extend_from_slice(cut(self.reason, REASON_MAX).as_bytes());
        });
    }

    /// Reads the payload of a GOAWAY.
    ///
    /// # Errors
    /// [`LinkError::BadField`].
    pub fn decode(payload: &'a [u8]) -> Result<Self, LinkError> {
        let fields = Fields { kind: Kind::GoAway, rest: payload };
        Ok(GoAway { reason: fields.text(REASON_MAX, "reason")? })
    }
}

/// Appends one field of an OPEN or the like; false, and nothing appended, when its value is too
/// long for the length field.
pub(super) fn put_field(out: &mut Vec<u8>, field: u8, parts: &[&[u8]]) -> bool {
    let Ok(length) = u16::try_from(parts.iter().map(|part| part.len()).sum::<usize>()) else {
        return false;
    };
    out.push(field);
    out.extend_from_slice(&length.to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
    true
}

pub(super) fn exact<const N: usize>(
    mut value: Fields<'_>,
    name: &'static str,
) -> Result<[u8; N], LinkError> {
    let array = value.array(name)?;
    value.end(name)?;
    Ok(array)
}

fn remote(mut value: Fields<'_>) -> Result<SocketAddr, LinkError> {
    let ip: IpAddr = match value.rest.len() {
        6 => Ipv4Addr::from(value.array::<4>("remote")?).into(),
        18 => Ipv6Addr::from(value.array::<16>("remote")?).into(),
        _ => return Err(value.bad("remote")),
    };
    Ok(SocketAddr::new(ip, u16::from_be_bytes(exact(value, "remote")?)))
}

/// Name and value of a HEADER field; names are not empty and have no upper case.
fn split_header(field: &[u8]) -> Option<(&str, &[u8])> {
    let (&length, rest) = field.split_first()?;
    let (name, value) = rest.split_at_checked(usize::from(length))?;
    let plain = name.iter().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase());
    if name.is_empty() || !plain {
        return None;
    }
    Some((std::str::from_utf8(name).ok()?, value))
}

fn is_label(label: &[u8]) -> bool {
    label.len() <= LABEL_MAX
        && label.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_')
}

fn encode_opaque(kind: Kind, opaque: u64, out: &mut Vec<u8>) {
    encode_frame(kind, SessionId::LINK, out, |out| {
        out.extend_from_slice(&opaque.to_be_bytes());
    });
}
