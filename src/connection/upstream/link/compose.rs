//! A session request as the link's frames: OPEN, AUTH and REAUTH are written here and nowhere
//! else. Each function appends a whole frame, or leaves `out` as it was and answers false when
//! the frame would be over `frame_max`.

use crate::connection::session::SessionRequest;
use crate::protocol::http_upgrade::FIELDS;
use crate::protocol::link::{Auth, HEADER_BYTES, Open, OpenHeaders, Reauth, SessionId};

/// Most header fields that one OPEN carries: all that a request can have.
pub const HEADERS_MAX: usize = FIELDS;

/// A session of a client whose identity is verified.
pub fn open(request: &SessionRequest, id: SessionId, frame_max: u32, out: &mut Vec<u8>) -> bool {
    let Some(identity) = request.identity() else { unreachable!("OPEN without an identity") };
    with_asked_for(request, |asked_for| {
        let open = Open {
            subject: Some(identity.subject).filter(|subject| !subject.is_empty()),
            token_id: identity.token_id,
            expires: identity.expires,
            claims: identity.claims,
            connection: request.connection(),
            ..asked_for.clone()
        };
        open.encode(id, frame_max, out)
    })
}

/// A session that the backend's decision opens or ends.
pub fn auth(request: &SessionRequest, id: SessionId, frame_max: u32, out: &mut Vec<u8>) -> bool {
    assert!(request.identity().is_none(), "AUTH with an identity would answer itself");
    let start = out.len();
    let mut fits = with_asked_for(request, |asked_for| Auth::encode(asked_for, id, out));
    for credential in request.credentials() {
        fits = fits && credential.append_at(start, out);
    }
    if let Some(connection) = request.connection().filter(|_| fits) {
        Auth::append_connection(connection, start, out);
    }
    fits = fits && out.len() - start - HEADER_BYTES <= frame_max as usize;
    if !fits {
        out.truncate(start);
    }
    fits
}

/// An open session's fresh token.
pub fn reauth(request: &SessionRequest, id: SessionId, frame_max: u32, out: &mut Vec<u8>) -> bool {
    let Some(identity) = request.identity() else { unreachable!("REAUTH without an identity") };
    let reauth = Reauth {
        subject: Some(identity.subject),
        token_id: identity.token_id,
        expires: identity.expires,
        claims: identity.claims,
    };
    reauth.encode(id, frame_max, out)
}

/// Hands out what the client asked for, without its identity.
fn with_asked_for<T>(request: &SessionRequest, take: impl FnOnce(&Open<'_>) -> T) -> T {
    let mut pairs = [("", &[][..]); HEADERS_MAX];
    let mut count = 0;
    for (pair, header) in pairs.iter_mut().zip(request.headers()) {
        *pair = header;
        count += 1;
    }
    take(&Open {
        route: request.route(),
        route_name: request.route_name(),
        remote: request.remote(),
        subprotocol: request.subprotocol(),
        origin: request.origin(),
        headers: OpenHeaders::Pairs(&pairs[..count]),
        ..Open::new(request.path())
    })
}
