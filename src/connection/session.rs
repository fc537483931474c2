//! The nouns between a client and what stands behind it. The client's machine says what it wants
//! in these terms; an upstream says how that goes over its own wire.

use std::net::SocketAddr;

use crate::base::rendezvous;
use crate::base::time::UnixTime;
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::link::{Credential, CredentialCarrier};
use crate::protocol::websocket::DataKind;

/// A piece of a message, unmasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// Text or binary.
    pub kind: DataKind,
    /// The message begins with this piece.
    pub first: bool,
    /// The message ends with this piece.
    pub last: bool,
    /// The piece.
    pub bytes: &'a [u8],
}

/// Whose session it is, as far as an upstream learns it. It has no `Debug`: claims are private.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionIdentity<'a> {
    /// Whom the token names; empty for an anonymous client.
    pub subject: &'a str,
    /// The token's own id.
    pub token_id: Option<&'a str>,
    /// When the token's time is over.
    pub expires: Option<UnixTime>,
    /// The claims as the token had them.
    pub claims: &'a [u8],
}

/// What a client wants of an upstream: a session, a decision, or (its identity alone) that the
/// upstream learns of its fresh token. One for each worker, reused, so that composing one
/// allocates nothing once its memory has grown. It has no `Debug`: it holds secrets.
///
/// Invariant: every span lies within `bytes`, and those of text hold UTF-8.
#[derive(Default)]
pub struct SessionRequest {
    /// All variable parts, one after another.
    bytes: Vec<u8>,
    identity: Option<IdentitySpans>,
    path: Span,
    route: u16,
    route_name: Span,
    remote: Option<SocketAddr>,
    connection: Option<u64>,
    /// Which endpoint it gets, where the backend has that depend on a value of the client's.
    affinity: Option<u64>,
    subprotocol: Option<Span>,
    origin: Option<Span>,
    headers: Vec<(Span, Span)>,
    credentials: Vec<(CredentialCarrier, Span, Span)>,
}

#[derive(Clone, Copy)]
struct IdentitySpans {
    subject: Span,
    token_id: Option<Span>,
    expires: Option<UnixTime>,
    claims: Span,
}

/// A part of [`SessionRequest::bytes`].
#[derive(Clone, Copy, Default)]
struct Span {
    start: u32,
    end: u32,
}

impl SessionRequest {
    /// Forgets everything but the memory.
    pub fn clear(&mut self) {
        let SessionRequest { bytes, headers, credentials, .. } = std::mem::take(self);
        (self.bytes, self.headers, self.credentials) = (bytes, headers, credentials);
        self.bytes.clear();
        self.headers.clear();
        self.credentials.clear();
    }

    /// Says what is asked for, in place of all that was said before; `write_path` appends path
    /// and query without credentials.
    pub fn begin(
        &mut self,
        route: u16,
        remote: Option<SocketAddr>,
        write_path: impl FnOnce(&mut Vec<u8>),
    ) {
        self.clear();
        (self.route, self.remote) = (route, remote);
        write_path(&mut self.bytes);
        self.path = Span { start: 0, end: self.bytes.len() as u32 };
    }

    /// What the settings call the route.
    pub fn set_route_name(&mut self, name: &str) {
        self.route_name = self.push(name.as_bytes());
    }

    /// The worker's number of the connection, which its close line has too.
    pub fn set_connection(&mut self, connection: u64) {
        self.connection = Some(connection);
    }

    /// Has the endpoint depend on this value of the client's; without one it does not.
    pub fn set_affinity(&mut self, value: Option<&[u8]>) {
        self.affinity = value.map(rendezvous::hash);
    }

    /// The subprotocol that the 101 names.
    pub fn set_subprotocol(&mut self, subprotocol: Option<&str>) {
        self.subprotocol = subprotocol.map(|text| self.push(text.as_bytes()));
    }

    /// The Origin that the client sent, if it is text.
    pub fn set_origin(&mut self, origin: Option<&str>) {
        self.origin = origin.map(|text| self.push(text.as_bytes()));
    }

    /// Forwards a field of the client's request; its name is in lower case.
    pub fn push_header(&mut self, name: &str, value: &[u8]) {
        let field = (self.push(name.as_bytes()), self.push(value));
        self.headers.push(field);
    }

    /// Adds a credential of a client that the upstream is asked about; false when it is too long
    /// to be told.
    pub fn push_credential(&mut self, credential: &Credential<'_>) -> bool {
        if !credential.fits() {
            return false;
        }
        let (name, token) = (self.push(credential.name.as_bytes()), self.push(credential.token));
        self.credentials.push((credential.carrier, name, token));
        true
    }

    /// Says who the client is: the only way, and it takes the proof.
    pub fn set_identity(&mut self, identity: &VerifiedIdentity<'_>) {
        self.identity = Some(IdentitySpans {
            subject: self.push(identity.subject().as_bytes()),
            token_id: identity.token_id().map(|id| self.push(id.as_bytes())),
            expires: identity.expires(),
            claims: self.push(identity.claims()),
        });
    }

    /// Who the client is; `None` when the upstream is to say so.
    pub fn identity(&self) -> Option<SessionIdentity<'_>> {
        let spans = self.identity.as_ref()?;
        Some(SessionIdentity {
            subject: self.text(spans.subject),
            token_id: spans.token_id.map(|span| self.text(span)),
            expires: spans.expires,
            claims: self.part(spans.claims),
        })
    }

    /// Path and query of the request, credentials removed.
    pub fn path(&self) -> &str {
        self.text(self.path)
    }

    /// Index of the route in the settings.
    pub fn route(&self) -> u16 {
        self.route
    }

    /// What the settings call the route.
    pub fn route_name(&self) -> &str {
        self.text(self.route_name)
    }

    /// The worker's number of the connection.
    pub fn connection(&self) -> Option<u64> {
        self.connection
    }

    /// What the choice of the endpoint depends on.
    pub fn affinity(&self) -> Option<u64> {
        self.affinity
    }

    /// The client's address, as far as it is known.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.remote
    }

    /// The subprotocol that the 101 named.
    pub fn subprotocol(&self) -> Option<&str> {
        self.subprotocol.map(|span| self.text(span))
    }

    /// The request's Origin, checked.
    pub fn origin(&self) -> Option<&str> {
        self.origin.map(|span| self.text(span))
    }

    /// Names and values of the fields that the route forwards, in order.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&str, &[u8])> {
        self.headers.iter().map(|(name, value)| (self.text(*name), self.part(*value)))
    }

    /// The credentials by which the upstream is to decide, in the order of the settings.
    pub fn credentials(&self) -> impl ExactSizeIterator<Item = Credential<'_>> {
        self.credentials.iter().map(|(carrier, name, token)| Credential {
            carrier: *carrier,
            name: self.text(*name),
            token: self.part(*token),
        })
    }

    /// All parts together are bounded by `head_max` and `token_max`, far below 4 GiB.
    fn push(&mut self, part: &[u8]) -> Span {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(part);
        Span { start, end: self.bytes.len() as u32 }
    }

    fn part(&self, span: Span) -> &[u8] {
        &self.bytes[span.start as usize..span.end as usize]
    }

    /// A request target is ASCII, or it would have been refused; all other text came as `str`.
    fn text(&self, span: Span) -> &str {
        std::str::from_utf8(self.part(span)).unwrap_or_default()
    }
}
