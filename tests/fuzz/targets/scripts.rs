//! The machine of a client that is written as a script of frames: its first message, the decision
//! of another, and fresh tokens later. Any pieces, and any credit, come to the same.

use std::sync::LazyLock;

use portcullis::base::random::Random;
use portcullis::base::secret::Secret;
use portcullis::base::time::{Now, UnixTime};
use portcullis::connection::client::{Client, RejectHint, SocketAction, Step};
use portcullis::connection::route_order::FIRST_ORDER;
use portcullis::connection::upstream::link::compose;
use portcullis::connection::{Context, Output};
use portcullis::counters::Counters;
use portcullis::protocol::cause::Cause;
use portcullis::protocol::jwt::{Algorithm, JwtKey, mint};
use portcullis::protocol::link::{Accept, HEADER_BYTES, Reject, SessionId};
use portcullis::protocol::revocation::{Hasher, Revoked};
use portcullis::settings::Settings;

use super::machines::{SECRET, START, UNIX, sent, settings_from};
use super::{pieces, with_cuts};

const TEXT: &str = r#"
    listener = [{ address = "127.0.0.1:8080" }]
    backend = [{ name = "main", endpoints = ["127.0.0.1:7000"] }]
    [limits]
    frames_burst = 1_000_000_000
    controls_burst = 1_000_000_000
    first_message_max = "600B"
    token_max = "500B"
    [[auth]]
    name = "app"
    kind = "jwt"
    carriers = ["authorization"]
    keys = [{ secret = "0123456789abcdef0123456789abcdef" }]
    [[auth]]
    name = "init"
    kind = "jwt"
    carriers = ["first-message:payload.token"]
    keys = [{ secret = "0123456789abcdef0123456789abcdef" }]
    [[auth]]
    name = "connect"
    kind = "jwt"
    carriers = ["first-message:connect.token"]
    keys = [{ secret = "0123456789abcdef0123456789abcdef" }]
    [[auth]]
    name = "it"
    kind = "backend"
    carriers = ["authorization", "first-message"]
    [[route]]
    path = "/live"
    origins = []
    origin_absent = "allow"
    auth = "app"
    backend = "main"
    reauthenticate = { prefix = '{"type":"authenticate",', token = "token" }
    [[route]]
    path = "/refresh"
    origins = []
    origin_absent = "allow"
    auth = "app"
    backend = "main"
    dialect = "centrifuge"
    reauthenticate = { prefix = '{"', token = "refresh.token" }
    [[route]]
    path = "/graphql"
    origins = []
    origin_absent = "allow"
    auth = "init"
    backend = "main"
    dialect = "graphql-transport-ws"
    [[route]]
    path = "/centrifuge"
    origins = []
    origin_absent = "allow"
    auth = "connect"
    backend = "main"
    dialect = "centrifuge"
    reauthenticate = { prefix = '{"refresh":', token = "refresh.token" }
    [[route]]
    path = "/asked"
    origins = []
    origin_absent = "allow"
    auth = "it"
    backend = "main"
"#;

static SETTINGS: LazyLock<Settings> = LazyLock::new(|| settings_from(TEXT));

/// What `$0` to `$5` stand for in a script: a good token, a later one, another subject's, one that
/// is over, one of another key, one of nobody.
static TOKENS: LazyLock<[String; 6]> = LazyLock::new(|| {
    let ours = SECRET;
    let theirs = "another key of the right length.";
    [
        (ours, r#""sub":"ann","#, 60),
        (ours, r#""sub":"ann","jti":"2","#, 900),
        (ours, r#""sub":"bob","#, 900),
        (ours, r#""sub":"ann","#, -60),
        (theirs, r#""sub":"ann","#, 60),
        (ours, "", 60),
    ]
    .map(|(secret, subject, left)| {
        let secret = Secret::new(secret.into());
        let key = JwtKey { id: None, algorithm: Algorithm::HS256, secret };
        let expires = UNIX.saturating_add_signed(left);
        mint(&key, format!(r#"{{{subject}"exp":{expires}}}"#).as_bytes())
    })
});

/// Everybody else's word on clients of `/asked`.
#[derive(Clone, Copy)]
enum Said {
    Yes,
    No,
    Nothing,
}

/// What comes of it.
#[derive(Debug, PartialEq)]
struct Life {
    answers: Vec<u8>,
    /// Whole messages, identities, questions, in order.
    events: Vec<(&'static str, Vec<u8>)>,
    end: String,
}

/// A client that must say who it is in its first message, or of whom somebody else is asked. The
/// first byte chooses the route and the decision.
pub fn first_message(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let said = [Said::Yes, Said::No, Said::Nothing][usize::from(choice / 4) % 3];
    let head = match choice % 4 {
        0 => head("/graphql", ""),
        1 => head("/centrifuge", ""),
        2 => head("/asked", ""),
        _ => head("/asked", "Authorization: Bearer x\r\n"),
    };
    in_any_pieces(&head, data, said);
}

/// A client that is open, and sends what may be a fresh token or only begins like one. The first
/// byte chooses the route.
pub fn reauthenticate(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let token = format!("Authorization: Bearer {}\r\n", TOKENS[0]);
    in_any_pieces(&head(["/live", "/refresh"][usize::from(choice % 2)], &token), data, Said::No);
}

fn head(path: &str, more: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: gate\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
    .into_bytes()
}

fn in_any_pieces(head: &[u8], data: &[u8], said: Said) {
    let (random, script) = with_cuts(data);
    let bytes = wire(script);
    let whole = live(head, [&bytes[..]], None, said);
    let credit = Random::from_number(script.len() as u64);
    assert_eq!(live(head, pieces(random, &bytes), Some(credit), said), whole, "by piece and whole");
}

/// A script as bytes on the wire: one byte says what it is, one how long, then the payload, in
/// which `$` and a digit are a token.
fn wire(mut script: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some((&[what, length], rest)) = script.split_first_chunk::<2>() {
        let (text, after) = rest.split_at(rest.len().min(length.into()));
        script = after;
        let payload = filled_in(text);
        match what % 8 {
            0 => frame(0x81, &payload, &mut out),
            1 => frame(0x01, &payload, &mut out),
            2 => frame(0x00, &payload, &mut out),
            3 => frame(0x80, &payload, &mut out),
            4 => frame(0x82, &payload, &mut out),
            5 => frame(0x89, &payload[..payload.len().min(125)], &mut out),
            6 => frame(0x88, &payload[..payload.len().min(125)], &mut out),
            _ => out.extend_from_slice(&payload),
        }
    }
    out
}

fn filled_in(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        match (byte, after.first()) {
            (b'$', Some(digit @ b'0'..=b'5')) => {
                out.extend_from_slice(TOKENS[usize::from(digit - b'0')].as_bytes());
                rest = &after[1..];
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

/// A masked frame (RFC 6455 §5.2), with a mask that changes something.
fn frame(first: u8, payload: &[u8], out: &mut Vec<u8>) {
    const MASK: [u8; 4] = [1, 2, 3, 4];
    out.push(first);
    match u16::try_from(payload.len()) {
        Ok(length @ 0..=125) => out.push(0x80 | length as u8),
        Ok(length) => {
            out.push(0x80 | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        Err(_) => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// Feeds the pieces as a worker does. `credit` draws how many bytes the backend takes at once;
/// without it, any number.
fn live<'a>(
    head: &'a [u8],
    pieces: impl IntoIterator<Item = &'a [u8]>,
    mut credit: Option<Random>,
    said: Said,
) -> Life {
    let counters = Counters::default();
    let now = Now { instant: START, unix: UnixTime::from_seconds(UNIX) };
    let revoked = Revoked::nothing(Hasher::new(&[0; 32]));
    let settings = &*SETTINGS;
    let ctx = Context {
        now,
        settings,
        routes: &FIRST_ORDER,
        counters: &counters,
        revoked: &revoked,
        jitter: 0,
    };
    let mut client = Client::new(None, 0, false, 0, &ctx);
    let mut output = Output::default();
    let mut life = Life { answers: Vec::new(), events: Vec::new(), end: String::new() };
    let mut message: Option<Vec<u8>> = None;
    for piece in std::iter::once(head).chain(pieces) {
        let mut bytes = piece.to_vec();
        let mut used = 0;
        let mut allowance = usize::MAX;
        while used < bytes.len() && client.socket_action() == SocketAction::Stay {
            allowance = match &mut credit {
                Some(random) if allowance == usize::MAX => 1 + random.below(40) as usize,
                _ => allowance,
            };
            let (count, step) = client.receive(&mut bytes[used..], allowance, &ctx, &mut output);
            let input = &bytes[used..used + count];
            // More comes, until what is held back and one byte of what follows fit.
            allowance = match step {
                Step::Blocked => allowance.saturating_add(1000),
                _ => usize::MAX,
            };
            match step {
                Step::NeedMore => assert_eq!(used + count, bytes.len()),
                Step::Handled | Step::Blocked => {}
                Step::Data { range, first, last, .. } => {
                    let piece = input[range].to_vec();
                    relay(&mut message, &mut life, (first, last), piece);
                }
                Step::Released { last, .. } => {
                    let held = std::mem::take(&mut output.released);
                    relay(&mut message, &mut life, (true, last), held);
                }
                Step::Reauthenticated => {
                    life.events.push(("renewed", sent(compose::reauth, &output.request)))
                }
                Step::Authenticated { .. } => opened(&mut life, &output),
                Step::Control(_) | Step::Dial { .. } => panic!("the backend is a link"),
                Step::Ask(_) => {
                    life.events.push(("asked", sent(compose::auth, &output.request)));
                    decision(said, &mut client, &ctx, &mut output, &mut life);
                }
            }
            used += count;
            while !output.answers.is_empty() {
                life.answers.append(&mut output.answers);
                client.output_queued(&ctx);
                client.output_sent(true, &ctx, &mut output);
            }
        }
    }
    let (stage, socket_action, end) = (client.stage(), client.socket_action(), client.end());
    assert!(client.next_deadline(settings) >= START, "a deadline in the past");
    life.end = format!("{stage:?} {socket_action:?} {end:?}");
    client.leave(&ctx);
    life
}

/// A piece goes to the backend: messages have one beginning each, and do not mix.
fn relay(
    message: &mut Option<Vec<u8>>,
    life: &mut Life,
    (first, last): (bool, bool),
    piece: Vec<u8>,
) {
    assert_eq!(first, message.is_none(), "a message begins once");
    let whole = message.get_or_insert_default();
    whole.extend_from_slice(&piece);
    if last {
        life.events.push(("message", message.take().expect("begun")));
    }
}

fn opened(life: &mut Life, output: &Output) {
    life.events.push(("opened", sent(compose::open, &output.request)));
    life.events.push(("welcome", output.connect_ack.clone()));
    life.events.push(("rest", output.rest.clone()));
}

fn decision(
    said: Said,
    client: &mut Client,
    ctx: &Context<'_>,
    output: &mut Output,
    life: &mut Life,
) {
    match said {
        Said::Yes => {
            let expires = Some(UnixTime::from_seconds(UNIX + 60));
            let (subject, token_id, issued_at) = ("ann", None, None);
            let accept = Accept { subject, token_id, issued_at, expires, claims: b"{}" };
            let mut frame = Vec::new();
            assert!(accept.encode(SessionId::new(0, 0), &mut frame));
            let identity = Accept::decode(&frame[HEADER_BYTES..]).expect("our own frame");
            match client.accept(&identity, ctx, output) {
                Step::Authenticated { .. } => opened(life, output),
                step => assert!(matches!(step, Step::Handled)),
            }
        }
        Said::No => client.reject(Reject::CAUSES[2], &RejectHint::default(), ctx, output),
        Said::Nothing => client.unasked(Cause::BackendUnavailable, ctx, output),
    }
}
