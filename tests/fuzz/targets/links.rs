//! The framed link: the cutter, every payload, and the gateway's machine.

use std::sync::LazyLock;

use portcullis::base::slab::Key;
use portcullis::base::time::Instant;
use portcullis::connection::session::SessionRequest;
use portcullis::connection::upstream::link::{Due, Event, Identity, Link};
use portcullis::counters::Counters;
use portcullis::protocol::link::{
    self, Accept, Auth, Challenge, Close, Credit, Expire, FrameHeader, GoAway, Hello, Kind, Limits,
    LinkReader, Open, Ping, Pong, Proof, Ready, Reauth, Refused, Reject, SessionId,
};
use portcullis::protocol::revocation::Revocation;
use portcullis::protocol::verifier::NoAuthentication;
use portcullis::settings::Settings;

use super::machines::settings;
use super::{pieces, with_cuts};

/// Any pieces give the same frames, and the same end.
pub fn reader(data: &[u8]) {
    let (random, bytes) = with_cuts(data);
    assert_eq!(cut(pieces(random, bytes)), cut([bytes].into_iter()));
}

fn cut<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<(FrameHeader, Vec<u8>)>, String) {
    let mut reader = LinkReader::new(300);
    let mut frames = Vec::new();
    for mut piece in pieces {
        loop {
            match reader.next(&mut piece) {
                Ok(Some(frame)) => {
                    assert_eq!(frame.header.length as usize, frame.payload.len());
                    assert!(frame.payload.len() <= 300);
                    frames.push((frame.header, frame.payload.to_vec()));
                }
                Ok(None) => break,
                Err(error) => return (frames, error.to_string()),
            }
        }
        assert!(piece.is_empty(), "None means that the input was taken");
    }
    (frames, reader.is_mid_frame().to_string())
}

const ID: SessionId = SessionId::new(7, 9);

/// What decodes encodes to something that decodes to the same.
pub fn payload(data: &[u8]) {
    let Some((kind, payload)) = data.split_first() else { return };
    if payload.len() > 60_000 {
        return;
    }
    let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
    let Some(first) = again(kind, payload) else { return };
    let header: &[u8; link::HEADER_BYTES] = first.first_chunk().expect("a header");
    let header = FrameHeader::parse(header).expect("our own header");
    assert_eq!((header.kind, header.length as usize), (kind, first.len() - link::HEADER_BYTES));
    let second = again(kind, &first[link::HEADER_BYTES..]);
    assert_eq!(second.as_ref(), Some(&first), "{kind:?} decoded and encoded twice");
    // What decides about a client has one form: nothing of it is lost or read as something else.
    let fixed = match kind {
        Kind::Accept | Kind::Auth => 0,
        Kind::Revoke => 8,
        Kind::Reject => payload.len(),
        _ => return,
    };
    assert_eq!(first[link::HEADER_BYTES..], canonical(kind, payload, fixed), "{kind:?}");
}

/// The payload of a good frame without the fields that a reader skips and without empty ones that
/// say nothing; a route that is not named is the first. The first `fixed` bytes are no fields.
fn canonical(kind: Kind, payload: &[u8], fixed: usize) -> Vec<u8> {
    const CLAIMS: u8 = 4;
    const ROUTE: u8 = 6;
    const ROUTE_NAME: u8 = 7;
    const OPTIONAL: u8 = 128;
    let mut kept = payload[..fixed].to_vec();
    let mut rest = &payload[fixed..];
    let mut route_owed = kind == Kind::Auth;
    while let Some(&[field, high, low]) = rest.first_chunk::<3>() {
        let (whole, after) = rest.split_at(3 + usize::from(u16::from_be_bytes([high, low])));
        rest = after;
        if route_owed && field >= ROUTE {
            if field > ROUTE {
                kept.extend_from_slice(&[ROUTE, 0, 2, 0, 0]);
            }
            route_owed = false;
        }
        let says_nothing = whole.len() == 3 && matches!(field, CLAIMS | ROUTE_NAME);
        if field < OPTIONAL && !says_nothing {
            kept.extend_from_slice(whole);
        }
    }
    assert!(rest.is_empty());
    kept
}

/// The frame that a payload decodes to, encoded.
fn again(kind: Kind, payload: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match kind {
        Kind::Hello => Hello::decode(payload).ok()?.encode(&mut out),
        Kind::Challenge => Challenge::decode(payload).ok()?.encode(&mut out),
        Kind::Proof => Proof::decode(payload).ok()?.encode(&mut out),
        Kind::Refused => Refused::decode(payload).ok()?.encode(&mut out),
        Kind::Ping => Ping::decode(payload).ok()?.encode(&mut out),
        Kind::Pong => Pong::decode(payload).ok()?.encode(&mut out),
        Kind::GoAway => GoAway::decode(payload).ok()?.encode(&mut out),
        Kind::Credit => Credit::decode(payload).ok()?.encode(ID, &mut out),
        Kind::Open => {
            let open = Open::decode(payload).ok()?;
            assert!(open.encode(ID, link::PAYLOAD_MAX as u32, &mut out));
        }
        Kind::Close => Close::decode(payload).ok()?.encode(ID, &mut out),
        Kind::Reject => assert!(Reject::decode(payload).ok()?.encode(ID, &mut out)),
        Kind::Reauth => {
            let reauth = Reauth::decode(payload).ok()?;
            assert!(reauth.encode(ID, link::PAYLOAD_MAX as u32, &mut out));
        }
        Kind::Expire => Expire::decode(payload).ok()?.encode(ID, &mut out),
        Kind::Revoke => Revocation::decode(payload).ok()?.encode(&mut out),
        Kind::Auth => {
            let auth = Auth::decode(payload).ok()?;
            assert!(Auth::encode(&auth.open, ID, &mut out));
            for credential in auth.credentials() {
                assert!(credential.append_to(&mut out));
            }
        }
        Kind::Accept => {
            let identity = Accept::decode(payload).ok()?;
            let accept = Accept {
                subject: identity.subject(),
                token_id: identity.token_id(),
                issued_at: identity.issued_at(),
                expires: identity.expires(),
                claims: identity.claims(),
            };
            assert!(accept.encode(ID, &mut out));
        }
        _ => return None,
    }
    Some(out)
}

static SETTINGS: LazyLock<Settings> = LazyLock::new(settings);

/// A backend past its handshake says anything: the same comes of it in any pieces.
pub fn machine(data: &[u8]) {
    let (random, bytes) = with_cuts(data);
    let whole = converse([bytes].into_iter());
    assert_eq!(converse(pieces(random, bytes)), whole, "by piece and whole");
}

/// What comes of it: the events, how it ended, and what the gateway said.
fn converse<'a>(backend: impl Iterator<Item = &'a [u8]>) -> (Vec<String>, Option<String>, Vec<u8>) {
    let settings = &*SETTINGS;
    let counters = Counters::default();
    let now = Instant::from_nanos(1_000_000_000);
    let identity = Identity { instance: [1; 16], epoch: 5, worker: 0, link: 0 };
    let mut link = Link::new(identity, 24, &settings.limits, now);
    assert_eq!(link.handle_deadline(now, &settings.deadlines), Due::Connect);
    link.connected([7; 32], false, &settings.limits);
    let mut reader = LinkReader::new(link::HANDSHAKE_FRAME_MAX);
    let mut hello = Vec::new();
    let limits = Limits { session_window: 5_000, ..Limits::default() };
    let (instance, nonce, proof) = ([2; 16], [3; 32], Proof::Absent);
    let challenge = Challenge { version: 1, features: 0, instance, nonce, limits, proof };
    challenge.encode(&mut hello);
    Ready.encode(&mut hello);
    let mut events = Vec::new();
    let mut opened = false;
    let backend = backend.map(|piece| -> &[u8] { piece });
    for mut input in std::iter::once(&hello[..]).chain(backend) {
        loop {
            let received = link.receive(&mut reader, &mut input, now, None, &counters);
            let became_ready = matches!(received, Ok(Some(Event::Ready)));
            match received {
                Ok(None) => break,
                Ok(Some(event)) => events.push(format!("{event:?}")),
                Err(failure) => {
                    return (events, Some(failure.to_string()), output(&mut link));
                }
            }
            if became_ready {
                reader.set_frame_max(link.frame_max());
            }
        }
        if link.is_ready() && !opened {
            opened = true;
            for slot in 0..3 {
                let mut request = SessionRequest::default();
                request.begin(0, None, |path| path.extend_from_slice(b"/ws"));
                let proof = NoAuthentication::written_out("none").expect("written out");
                request.set_identity(&proof.identity());
                link.open(Key { slot, generation: 1 }, &request).expect("it fits");
            }
        }
    }
    (events, None, output(&mut link))
}

fn output(link: &mut Link) -> Vec<u8> {
    let mut bytes = vec![0; link.unsent()];
    link.copy_output(&mut bytes);
    bytes
}
