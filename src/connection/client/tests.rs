//! The client's machine, driven by hand: every stage with every event, every deadline, any
//! chunking, reloads, and random scripts. [`World::check`] holds after each call.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::phase::{Phase, gauge};
use super::*;
use crate::base::secret::Secret;
use crate::base::time::{Instant, Now, UnixTime};
use crate::connection::authenticate::{self, Decision};
use crate::connection::route_order::{FIRST_ORDER, RouteOrder};
use crate::connection::session::SessionRequest;
use crate::connection::stage::Stage;
use crate::connection::upstream::link::compose;
use crate::connection::{Context, Output};
use crate::counters::{Counters, Metric};
use crate::protocol::cause::Cause;
use crate::protocol::http_upgrade;
use crate::protocol::jwt::{self, Algorithm, JwtKey};
use crate::protocol::link::{self, Open};
use crate::protocol::mask::apply_mask;
use crate::protocol::revocation::{Hasher, RevocationSet, Revoked};
use crate::protocol::websocket::DataKind;
use crate::settings::PREFIX_MAX;
use crate::settings::Refuse;
use crate::settings::Settings;
use crate::settings::load::{Environment, FileContents, load};

#[path = "reauthenticate_tests.rs"]
mod reauthenticate;

const START: Instant = Instant::from_nanos(1_000_000_000_000);
const UNIX: u64 = 1_700_000_000;
const STAGES: [Stage; 6] = [
    Stage::TlsHandshake,
    Stage::RequestHead,
    Stage::Authenticating,
    Stage::Open,
    Stage::Refused,
    Stage::Closing,
];

/// What a backend is sent of a request.
fn encoded(
    compose: fn(&SessionRequest, link::SessionId, u32, &mut Vec<u8>) -> bool,
    request: &SessionRequest,
) -> Vec<u8> {
    let mut frame = Vec::new();
    assert!(compose(request, link::SessionId::new(0, 0), link::PAYLOAD_MAX as u32, &mut frame));
    frame
}

const APP: &str = "0123456789abcdef0123456789abcdef";
const LATE: &str = "another-secret-another-secret-32";

const ROUTES: &str = r#"
    [[route]]
    path = "/ws"
    origins = ["https://app.example.com"]
    origin_absent = "allow"
    auth = "app"
    backend = "main"
    health = true
    [[route]]
    path = "/binary"
    origins = []
    origin_absent = "allow"
    auth = "none"
    backend = "main"
    messages = "binary"
    [[route]]
    path = "/first"
    origins = ["https://app.example.com"]
    origin_absent = "allow"
    auth = "late"
    backend = "main"
    subprotocols = ["chat"]
"#;

/// Settings with these routes over two kinds of authentication.
fn settings(routes: &str) -> Settings {
    struct Nothing;
    impl Environment for Nothing {
        fn read(&self, _: &Path) -> io::Result<FileContents> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn variable(&self, _: &str) -> Option<String> {
            None
        }

        fn unix_seconds(&self) -> u64 {
            UNIX
        }
    }
    let text = format!(
        r#"
        listener = [{{ address = "127.0.0.1:8080" }}]
        backend = [{{ name = "main", endpoints = ["127.0.0.1:7000"] }}]
        [[auth]]
        name = "app"
        kind = "jwt"
        carriers = ["authorization"]
        keys = [{{ id = "k", secret = "{APP}" }}]
        [[auth]]
        name = "late"
        kind = "jwt"
        carriers = ["authorization", "first-message"]
        keys = [{{ id = "k", secret = "{LATE}" }}]
        [[auth]]
        name = "other"
        kind = "jwt"
        carriers = ["first-message"]
        keys = [{{ id = "k", secret = "{APP}" }}]
        {routes}
        "#
    );
    match load(&text, Path::new("test.toml"), &Nothing) {
        Ok(loaded) => loaded.settings,
        Err(problems) => panic!("{}", problems[0]),
    }
}

/// A token of Ann's that ends `left` seconds from the start.
fn token(secret: &str, left: i64) -> String {
    let key = JwtKey {
        id: Some("k".into()),
        algorithm: Algorithm::HS256,
        secret: Secret::new(secret.into()),
    };
    let expires = UNIX as i64 + left;
    jwt::mint(&key, format!(r#"{{"sub":"ann","exp":{expires}}}"#).as_bytes())
}

/// A request head with `extra` lines, each with its line end.
fn head(path: &str, extra: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: gate\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
    )
    .into_bytes()
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// A masked frame; `first` is its first byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        short @ 0..126 => bytes.push(0x80 | short as u8),
        long => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&u16::try_from(long).unwrap().to_be_bytes());
        }
    }
    let key = [0x37, 0xfa, 0x21, 0x3d];
    bytes.extend_from_slice(&key);
    let start = bytes.len();
    bytes.extend_from_slice(payload);
    apply_mask(&mut bytes[start..], key, 0);
    bytes
}

const TEXT: u8 = 0x81;
const PING: u8 = 0x89;
const CLOSE: u8 = 0x88;

/// A client and everything around it.
struct World {
    client: Client,
    settings: Settings,
    routes: RouteOrder,
    counters: Counters,
    revocations: RevocationSet,
    revoked: Revoked,
    now: Now,
    output: Output,
    /// What the client was told, in words.
    told: Vec<String>,
    /// Message pieces as they came out: kind, first, last, bytes.
    data: Vec<(DataKind, bool, bool, Vec<u8>)>,
    /// OPEN payloads.
    opened: Vec<Vec<u8>>,
    /// Heads of HTTP answers.
    answered: Vec<String>,
    /// REAUTH payloads.
    renewed: Vec<Vec<u8>>,
    /// Whether everything queued is sent immediately.
    flushes: bool,
    closed: bool,
    was_open: bool,
    end: Option<End>,
    over: bool,
}

impl World {
    fn new(tls: bool) -> World {
        World::with(settings(ROUTES), tls, 0)
    }

    fn with(settings: Settings, tls: bool, jitter: u32) -> World {
        let counters = Counters::default();
        let now = Now { instant: START, unix: UnixTime::from_seconds(UNIX) };
        let set = RevocationSet::new(Hasher::new(&[7; 32]));
        let revoked = set.snapshot();
        let ctx = Context {
            now,
            settings: &settings,
            routes: &FIRST_ORDER,
            counters: &counters,
            jitter: 0,
            revoked: &revoked,
        };
        let client = Client::new(None, 0, tls, jitter, &ctx);
        let mut world = World {
            client,
            settings,
            routes: RouteOrder::default(),
            counters,
            revocations: set,
            revoked,
            now,
            output: Output::default(),
            told: Vec::new(),
            data: Vec::new(),
            opened: Vec::new(),
            answered: Vec::new(),
            renewed: Vec::new(),
            flushes: true,
            closed: false,
            was_open: false,
            end: None,
            over: false,
        };
        world.check();
        world
    }

    /// A client in `stage`, at the start's instant.
    fn at(stage: Stage) -> World {
        let mut world = World::new(stage == Stage::TlsHandshake);
        match stage {
            Stage::TlsHandshake | Stage::RequestHead => {}
            Stage::Authenticating => world.feed(&head("/first", "")),
            Stage::Open => world.feed(&head("/ws", &bearer(&token(APP, 3600)))),
            Stage::Refused => world.feed(&head("/ws", &bearer(&token(APP, -3600)))),
            Stage::Closing => {
                world = World::at(Stage::Open);
                world.call(|client, ctx, output| client.close(Cause::GoingAway, ctx, output));
            }
        }
        assert_eq!(world.client.stage(), stage);
        world.told.clear();
        world
    }

    /// Calls the machine, then queues and (perhaps) sends what it says, as the worker does.
    fn call<T>(&mut self, call: impl FnOnce(&mut Client, &Context<'_>, &mut Output) -> T) -> T {
        let result = self.checked(call);
        while !self.output.answers.is_empty() {
            self.listen();
            self.checked(|client, ctx, _| client.output_queued(ctx));
            if self.flushes {
                self.checked(|client, ctx, output| client.output_sent(true, ctx, output));
            }
        }
        result
    }

    /// Calls the machine and checks everything.
    fn checked<T>(&mut self, call: impl FnOnce(&mut Client, &Context<'_>, &mut Output) -> T) -> T {
        let due = self.due();
        let (now, settings, counters) = (self.now, &self.settings, &self.counters);
        let routes = &self.routes;
        let ctx = Context { now, settings, routes, counters, jitter: 0, revoked: &self.revoked };
        let result = call(&mut self.client, &ctx, &mut self.output);
        let next = self.client.next_deadline(&self.settings);
        // Expire refused clients immediately when no time is left.
        let late = self.client.stage() == Stage::Refused
            && self.client.refused_at_latest(&self.settings.deadlines) <= self.now.instant;
        assert!(due || late || next >= self.now.instant, "a deadline in the past");
        self.check();
        result
    }

    fn due(&self) -> bool {
        self.client.next_deadline(&self.settings) <= self.now.instant
    }

    fn check(&mut self) {
        let client = &self.client;
        for stage in STAGES {
            let expected = u64::from(stage == client.stage());
            assert_eq!(self.counters.value(gauge(stage)), expected, "{stage:?}");
        }
        let ended = matches!(client.stage(), Stage::Refused | Stage::Closing);
        assert_eq!(client.end().is_some(), ended, "{:?}", client.stage());
        assert!(self.end.is_none() || self.end == client.end(), "the end changed");
        self.end = client.end();
        let over = matches!(client.socket_action(), SocketAction::CloseNow { .. });
        assert!(over || !self.over, "CloseNow became {:?}", client.socket_action());
        self.over = over;
        assert!(ended || client.socket_action() == SocketAction::Stay);
        if client.is_open() {
            self.was_open = true;
        }
        let unauthenticated = !self.was_open && !over;
        assert!(client.is_unauthenticated() || !unauthenticated, "left the cap too early");
    }

    /// Takes the answers and puts them into words.
    fn listen(&mut self) {
        let answers = std::mem::take(&mut self.output.answers);
        let mut rest = &answers[..];
        while !rest.is_empty() {
            assert!(!self.closed, "{:?} after a close", rest.escape_ascii().to_string());
            if rest.starts_with(b"HTTP/1.1 ") {
                let end = rest.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
                let status = std::str::from_utf8(&rest[9..12]).unwrap();
                self.told.push(status.to_owned());
                self.answered.push(String::from_utf8(rest[..end].to_vec()).unwrap());
                self.closed = status != "101";
                // Only a 101 is followed by anything but its own body.
                rest = if self.closed { &[] } else { &rest[end..] };
                continue;
            }
            let (start, length) = match rest[1] {
                126 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
                length => (2, usize::from(length)),
            };
            assert!(length <= 256, "no answer is longer");
            let (payload, opcode) = (&rest[start..start + length], rest[0]);
            rest = &rest[start + length..];
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            match opcode {
                0x81 => {
                    let value: serde_json::Value = serde_json::from_slice(payload).unwrap();
                    let places = [
                        &value["reason"],
                        &value[4]["reason"],
                        &value["error"]["code"],
                        &value["type"],
                    ];
                    let said = places.into_iter().find(|place| !place.is_null());
                    let said = said.unwrap_or(&value).to_string();
                    self.told.push(format!("text {}", said.trim_matches('"')));
                }
                0x89 => self.told.push(format!("ping{}", text(payload))),
                0x8a => self.told.push(format!("pong {}", payload.escape_ascii())),
                0x88 => {
                    self.closed = true;
                    match payload.split_first_chunk() {
                        None => self.told.push("close".into()),
                        Some((code, reason)) => {
                            let code = u16::from_be_bytes(*code);
                            self.told.push(format!("close {code} {}", text(reason)));
                        }
                    }
                }
                other => panic!("a frame of type {other:#x}"),
            }
        }
        self.output.answers = answers;
        self.output.answers.clear();
    }

    fn feed(&mut self, bytes: &[u8]) {
        let rest = self.feed_with(bytes, usize::MAX);
        assert_eq!(rest, 0, "blocked without a reason");
    }

    /// Feeds `bytes` as the worker does. Returns how many are left when it is blocked.
    fn feed_with(&mut self, bytes: &[u8], allowance: usize) -> usize {
        let mut bytes = bytes.to_vec();
        let mut used = 0;
        while used < bytes.len() && self.client.socket_action() == SocketAction::Stay {
            let before = (self.client.stage(), self.client.next_deadline(&self.settings));
            let input = &mut bytes[used..];
            let given = if self.client.is_open() { allowance } else { usize::MAX };
            let (count, step) =
                self.call(|client, ctx, out| client.receive(input, given, ctx, out));
            assert!(count <= input.len());
            if before.0 < Stage::Open && self.client.stage() == before.0 {
                assert!(self.client.next_deadline(&self.settings) <= before.1, "extended");
            }
            match step {
                Step::NeedMore => assert_eq!(count, input.len()),
                Step::Handled => assert!(count > 0 || self.client.stage() != before.0),
                Step::Blocked => {
                    let renews =
                        matches!(&self.client.phase, Phase::Open(it) if it.renewal.is_some());
                    let most = if renews { PREFIX_MAX } else { 0 };
                    assert!(given <= most, "blocked with an allowance of {given}");
                    return bytes.len() - used - count;
                }
                Step::Data { range, kind, first, last } => {
                    assert!(self.was_open && range.end <= count && range.len() <= given);
                    self.data.push((kind, first, last, input[range].to_vec()));
                }
                Step::Released { kind, last } => {
                    assert!(self.was_open && self.output.released.len() <= given);
                    self.data.push((kind, true, last, self.output.released.clone()));
                }
                Step::Reauthenticated => {
                    self.renewed.push(encoded(compose::reauth, &self.output.request))
                }
                Step::Ask(_) => panic!("these blocks decide by themselves"),
                Step::Control(_) | Step::Dial { .. } => panic!("the backend is a link"),
                Step::Authenticated { backend } => {
                    assert_eq!(backend, 0);
                    self.opened.push(encoded(compose::open, &self.output.request));
                    assert_eq!(self.opened.len(), 1, "two sessions");
                }
            }
            used += count;
            assert_eq!(self.opened.len(), usize::from(self.was_open));
        }
        0
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant = self.now.instant + time;
        let unix = self.now.unix.as_millis() + time.as_millis() as u64;
        self.now.unix = UnixTime::from_millis(unix);
    }

    fn handle_deadline(&mut self) {
        self.call(|client, ctx, output| client.handle_deadline(ctx, output));
    }

    /// The next deadline, from the start.
    fn next(&self) -> Option<Duration> {
        let next = self.client.next_deadline(&self.settings);
        (next != Instant::NEVER).then(|| next.since(START))
    }

    /// Everything that can be seen of the client, in a line.
    fn summary(&self) -> String {
        let socket_action = match self.client.socket_action() {
            SocketAction::Stay => "stay",
            SocketAction::ShutdownWhenFlushed => "shutdown",
            SocketAction::AwaitEnd => "await",
            SocketAction::CloseWhenFlushed => "flush",
            SocketAction::CloseNow { reset: true } => "reset",
            SocketAction::CloseNow { reset: false } => "gone",
        };
        let mut line = format!("{} {socket_action}", self.client.stage().label());
        if let Some(End { cause, by, code, stage, .. }) = self.client.end() {
            line += &format!(" <- {} {by:?} {}", cause.label(), stage.label());
            line += &code.map_or(String::new(), |code| format!(" {code}"));
        }
        if !self.told.is_empty() {
            line += &format!(": {}", self.told.join(", "));
        }
        line
    }
}

#[path = "closing_tests.rs"]
mod closing;

/// Everything that can happen to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Event {
    PartialHead,
    Head,
    HeadAndMore,
    HttpGet,
    Text,
    Partial,
    PingFrame,
    CloseFrame,
    Garbage,
    PeerGone,
    PeerFinished,
    TlsFailed,
    HandshakeFinished,
    Close,
    Refuse,
    CloseByBackend,
    DropSilently,
    ScheduleClose,
    DataHeader,
    OutputSent,
    DeadlineEarly,
    DeadlineExact,
    DeadlineLate,
}

const EVENTS: [Event; 23] = [
    Event::PartialHead,
    Event::Head,
    Event::HeadAndMore,
    Event::HttpGet,
    Event::Text,
    Event::Partial,
    Event::PingFrame,
    Event::CloseFrame,
    Event::Garbage,
    Event::PeerGone,
    Event::PeerFinished,
    Event::TlsFailed,
    Event::HandshakeFinished,
    Event::Close,
    Event::Refuse,
    Event::CloseByBackend,
    Event::DropSilently,
    Event::ScheduleClose,
    Event::DataHeader,
    Event::OutputSent,
    Event::DeadlineEarly,
    Event::DeadlineExact,
    Event::DeadlineLate,
];

impl World {
    fn happen(&mut self, event: Event) {
        let good = head("/ws", &bearer(&token(APP, 3600)));
        match event {
            Event::PartialHead => self.feed(&good[..40]),
            Event::Head => self.feed(&good),
            Event::HeadAndMore => self.feed(&[&good[..], &frame(TEXT, b"early")].concat()),
            Event::HttpGet => self.feed(b"GET /ws HTTP/1.1\r\nHost: gate\r\n\r\n"),
            Event::Text => self.feed(&frame(TEXT, b"hello")),
            Event::Partial => self.feed(&frame(TEXT, b"hello")[..9]),
            Event::PingFrame => self.feed(&frame(PING, b"you")),
            Event::CloseFrame => self.feed(&frame(CLOSE, b"\x0f\xa0bye")),
            Event::Garbage => self.feed(b"\xff\x00\xff\x00"),
            Event::PeerGone => self.call(|client, ctx, _| client.peer_gone(ctx)),
            Event::PeerFinished => self.call(|client, ctx, _| client.peer_finished(ctx)),
            Event::TlsFailed => self.call(|client, ctx, _| {
                client.tls_failed(crate::protocol::close_detail::TlsFault::Other, ctx)
            }),
            Event::HandshakeFinished => self.call(|client, ctx, _| client.handshake_finished(ctx)),
            Event::Close => self.call(|client, ctx, out| client.close(Cause::Internal, ctx, out)),
            Event::Refuse => {
                self.call(|client, ctx, out| client.refuse(Cause::OverCapacity, ctx, out));
            }
            Event::CloseByBackend => {
                self.call(|client, ctx, out| client.close_by_backend(Some(4000), "done", ctx, out));
            }
            Event::DropSilently => {
                self.call(|client, ctx, _| client.drop_silently(Cause::SlowConsumer, ctx));
            }
            Event::ScheduleClose => {
                let at = self.now.instant + Duration::from_millis(500);
                self.client.schedule_close(at, Cause::GoingAway);
                self.pass(Duration::from_millis(500));
                self.handle_deadline();
            }
            Event::DataHeader => {
                let header =
                    self.call(|client, _, _| client.data_header(DataKind::Text, true, true, 3));
                assert_eq!(header.is_some(), self.client.is_open());
                if let Some(header) = header {
                    assert_eq!(header.as_slice(), [0x81, 3]);
                }
            }
            Event::OutputSent => {
                self.call(|client, ctx, _| client.output_queued(ctx));
                self.call(|client, ctx, out| client.output_sent(false, ctx, out));
                self.call(|client, ctx, out| client.output_sent(true, ctx, out));
            }
            Event::DeadlineEarly => self.advance_to_deadline(-1),
            Event::DeadlineExact => self.advance_to_deadline(0),
            Event::DeadlineLate => self.advance_to_deadline(10_000_000_000),
        }
    }

    /// Passes time until the next deadline and `offset` nanoseconds, and handles it.
    fn advance_to_deadline(&mut self, offset: i64) {
        let next = self.client.next_deadline(&self.settings);
        let left = next.since(self.now.instant).as_nanos() as i64 + offset;
        self.pass(Duration::from_nanos(left.max(0) as u64));
        self.handle_deadline();
    }
}

/// Every event in every stage: the stage after it, the socket_action, `<-` the end, and `:` what the
/// gateway sends to the client. `=` is no change at all; plaintext cannot come inside the TLS handshake.
const TABLE: [(Event, [&str; 6]); 23] = [
    (
        Event::PartialHead,
        [
            "-",
            "=",
            "refused shutdown <- protocol_error Gateway authenticating 1002: \
             close 1002 protocol_error",
            "closing shutdown <- protocol_error Gateway open 1002: close 1002 protocol_error",
            "refused flush <- token_expired Gateway request_head 4401",
            "closing flush <- going_away Gateway open 1001",
        ],
    ),
    (
        Event::Head,
        [
            "-",
            "open stay: 101",
            "refused shutdown <- protocol_error Gateway authenticating 1002: \
             close 1002 protocol_error",
            "closing shutdown <- protocol_error Gateway open 1002: close 1002 protocol_error",
            "refused flush <- token_expired Gateway request_head 4401",
            "closing flush <- going_away Gateway open 1001",
        ],
    ),
    (
        Event::HeadAndMore,
        [
            "-",
            "refused shutdown <- bad_request Gateway request_head: 400",
            "refused shutdown <- protocol_error Gateway authenticating 1002: \
             close 1002 protocol_error",
            "closing shutdown <- protocol_error Gateway open 1002: close 1002 protocol_error",
            "refused flush <- token_expired Gateway request_head 4401",
            "closing flush <- going_away Gateway open 1001",
        ],
    ),
    (
        Event::HttpGet,
        [
            "-",
            "refused shutdown <- health_check Gateway request_head: 200",
            "refused shutdown <- protocol_error Gateway authenticating 1002: \
             close 1002 protocol_error",
            "closing shutdown <- protocol_error Gateway open 1002: close 1002 protocol_error",
            "refused flush <- token_expired Gateway request_head 4401",
            "closing flush <- going_away Gateway open 1001",
        ],
    ),
    (
        Event::Text,
        [
            "-",
            "refused shutdown <- bad_request Gateway request_head: 400",
            "refused stay <- token_malformed Gateway authenticating 4401: \
             text token_malformed, close 4401 token_malformed",
            "=",
            "=",
            "=",
        ],
    ),
    (
        Event::Partial,
        ["-", "refused shutdown <- bad_request Gateway request_head: 400", "=", "=", "=", "="],
    ),
    (
        Event::PingFrame,
        [
            "-",
            "refused shutdown <- bad_request Gateway request_head: 400",
            "authenticating stay: pong you",
            "open stay: pong you",
            "=",
            "=",
        ],
    ),
    (
        Event::CloseFrame,
        [
            "-",
            "refused shutdown <- bad_request Gateway request_head: 400",
            "refused flush <- client_closed Client authenticating 4000: close 4000 ",
            "closing flush <- client_closed Client open 4000: close 4000 ",
            "refused flush <- token_expired Gateway request_head 4401",
            "closing flush <- going_away Gateway open 1001",
        ],
    ),
    (
        Event::Garbage,
        [
            "-",
            "refused shutdown <- bad_request Gateway request_head: 400",
            "refused shutdown <- protocol_error Gateway authenticating 1002: \
             close 1002 protocol_error",
            "closing shutdown <- protocol_error Gateway open 1002: close 1002 protocol_error",
            "refused flush <- token_expired Gateway request_head 4401",
            "closing flush <- going_away Gateway open 1001",
        ],
    ),
    (
        Event::PeerGone,
        [
            "closing gone <- tls_failed Client tls_handshake",
            "closing gone <- client_gone Client request_head",
            "closing gone <- client_gone Client authenticating",
            "closing gone <- client_gone Client open",
            "refused gone <- token_expired Gateway request_head 4401",
            "closing gone <- going_away Gateway open 1001",
        ],
    ),
    (
        Event::PeerFinished,
        [
            "closing gone <- tls_failed Client tls_handshake",
            "closing gone <- client_gone Client request_head",
            "closing gone <- client_gone Client authenticating",
            "closing gone <- client_gone Client open",
            "refused gone <- token_expired Gateway request_head 4401",
            "closing gone <- going_away Gateway open 1001",
        ],
    ),
    (
        Event::TlsFailed,
        [
            "refused shutdown <- tls_failed Gateway tls_handshake",
            "refused shutdown <- tls_failed Gateway request_head",
            "refused shutdown <- tls_failed Gateway authenticating",
            "closing shutdown <- tls_failed Gateway open",
            "refused shutdown <- token_expired Gateway request_head 4401",
            "closing shutdown <- going_away Gateway open 1001",
        ],
    ),
    (Event::HandshakeFinished, ["request_head stay", "=", "=", "=", "=", "="]),
    (
        Event::Close,
        [
            "closing reset <- internal Gateway tls_handshake",
            "closing reset <- internal Gateway request_head",
            "refused stay <- internal Gateway authenticating 1011: \
             text internal, close 1011 internal",
            "closing stay <- internal Gateway open 1011: text internal, close 1011 internal",
            "=",
            "=",
        ],
    ),
    (
        Event::Refuse,
        [
            "closing reset <- over_capacity Gateway tls_handshake",
            "closing reset <- over_capacity Gateway request_head",
            "refused stay <- over_capacity Gateway authenticating 1013: \
             text over_capacity, close 1013 over_capacity",
            "refused stay <- over_capacity Gateway open 1013: \
             text over_capacity, close 1013 over_capacity",
            "=",
            "=",
        ],
    ),
    (
        Event::CloseByBackend,
        [
            "=",
            "=",
            "=",
            "closing stay <- backend_closed Backend open 4000: close 4000 done",
            "=",
            "=",
        ],
    ),
    (
        Event::DropSilently,
        [
            "closing reset <- slow_consumer Gateway tls_handshake",
            "closing reset <- slow_consumer Gateway request_head",
            "closing reset <- slow_consumer Gateway authenticating",
            "closing reset <- slow_consumer Gateway open",
            "refused reset <- token_expired Gateway request_head 4401",
            "closing reset <- going_away Gateway open 1001",
        ],
    ),
    (
        Event::ScheduleClose,
        [
            "closing reset <- going_away Gateway tls_handshake",
            "closing reset <- going_away Gateway request_head",
            "refused stay <- going_away Gateway authenticating 1001: \
             text going_away, close 1001 going_away",
            "closing stay <- going_away Gateway open 1001: \
             text going_away, close 1001 going_away",
            "=",
            "=",
        ],
    ),
    (Event::DataHeader, ["="; 6]),
    (Event::OutputSent, ["="; 6]),
    (Event::DeadlineEarly, ["="; 6]),
    (
        Event::DeadlineExact,
        [
            "closing reset <- handshake_timed_out Gateway tls_handshake",
            "closing reset <- handshake_timed_out Gateway request_head",
            "refused stay <- authentication_timed_out Gateway authenticating 4408: \
             text authentication_timed_out, close 4408 authentication_timed_out",
            "open stay: ping",
            "refused reset <- token_expired Gateway request_head 4401",
            "closing reset <- going_away Gateway open 1001",
        ],
    ),
    (
        Event::DeadlineLate,
        [
            "closing reset <- handshake_timed_out Gateway tls_handshake",
            "closing reset <- handshake_timed_out Gateway request_head",
            "refused stay <- authentication_timed_out Gateway authenticating 4408: \
             text authentication_timed_out, close 4408 authentication_timed_out",
            "open stay: ping",
            "refused reset <- token_expired Gateway request_head 4401",
            "closing reset <- going_away Gateway open 1001",
        ],
    ),
];

#[test]
fn every_event_in_every_stage() {
    assert_eq!(TABLE.map(|(event, _)| event), EVENTS);
    for (event, expected) in TABLE {
        for (stage, expected) in STAGES.into_iter().zip(expected) {
            if expected == "-" {
                continue;
            }
            let mut world = World::at(stage);
            let before = world.summary();
            world.happen(event);
            let expected = if expected == "=" { &before } else { expected };
            assert_eq!(world.summary(), expected, "{event:?} in {stage:?}");
        }
    }
}

#[test]
fn nothing_follows_close_now() {
    for stage in [Stage::Authenticating, Stage::Open] {
        for event in EVENTS {
            let mut world = World::at(stage);
            world.flushes = false;
            world.happen(Event::PingFrame);
            world.happen(Event::DropSilently);
            let before = world.summary();
            world.happen(event);
            assert_eq!(world.summary(), before, "{event:?} in {stage:?}");
        }
    }
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl World {
    /// Passes time up to `at` from the start, and handles what is due.
    fn until(&mut self, at: Duration) {
        let target = START + at;
        assert!(target >= self.now.instant, "time goes forward");
        self.pass(target.since(self.now.instant));
        self.handle_deadline();
    }

    /// Nothing happens a nanosecond before `at`; at it, something does.
    fn expect(&mut self, at: Duration, counted: Option<Metric>) {
        assert_eq!(self.next(), Some(at));
        let before = self.summary();
        self.until(at - Duration::from_nanos(1));
        assert_eq!(self.summary(), before, "early");
        let count = counted.map(|metric| self.counters.value(metric));
        self.until(at);
        assert_ne!(self.summary(), before, "late");
        if let (Some(metric), Some(count)) = (counted, count) {
            assert_eq!(self.counters.value(metric), count + 1, "{metric:?}");
        }
    }

    fn sent(&mut self, flushed: bool) {
        self.call(|client, ctx, output| client.output_sent(flushed, ctx, output));
    }
}

#[test]
fn no_byte_extends_a_deadline_before_authentication() {
    let mut world = World::new(true);
    world.pass(ms(2_000));
    assert_eq!(world.next(), Some(ms(3_000)));
    world.happen(Event::HandshakeFinished);
    assert_eq!(world.next(), Some(ms(4_000)));
    // The head is dripped, and ends just in time.
    let request = head("/first", "");
    for byte in &request[..request.len() - 1] {
        world.pass(ms(1));
        world.feed(&[*byte]);
        assert_eq!(world.next(), Some(ms(4_000)));
    }
    world.until(ms(3_999));
    world.feed(b"\n");
    assert_eq!(world.next(), Some(ms(8_999)));
    for _ in 0..10 {
        world.pass(ms(100));
        world.happen(Event::PingFrame);
        assert_eq!(world.next(), Some(ms(8_999)));
    }
    world.feed(&frame(0x01, b"ey"));
    assert_eq!(world.next(), Some(ms(8_999)));
    world.expect(ms(8_999), Some(Metric::DeadlineAuthenticate));
    assert_eq!(world.next(), Some(ms(9_999)));
    world.pass(ms(900));
    world.happen(Event::PingFrame);
    assert_eq!(world.next(), Some(ms(9_999)));
    world.expect(ms(9_999), Some(Metric::DeadlineLinger));
    assert_eq!(world.client.socket_action(), SocketAction::CloseNow { reset: true });
}

#[test]
fn each_early_stage_has_its_own_deadline_and_metric() {
    let mut world = World::new(true);
    world.expect(ms(3_000), Some(Metric::DeadlineTls));
    let mut world = World::new(false);
    world.expect(ms(2_000), Some(Metric::DeadlineHead));
    assert_eq!(world.told, [""; 0]);
    // Who sent a part of a head is answered.
    let mut world = World::new(false);
    world.happen(Event::PartialHead);
    world.expect(ms(2_000), Some(Metric::DeadlineHead));
    let told = "refused shutdown <- handshake_timed_out Gateway request_head: 408";
    assert_eq!(world.summary(), told);
    world.call(|client, _, _| client.shut_down());
    world.expect(ms(3_000), Some(Metric::DeadlineLinger));
}

#[test]
fn a_refused_client_leaves_by_the_sum_of_all_stages() {
    // Each stage takes all its time, and 100 ms are left for the client to read why.
    let mut world = World::new(true);
    world.until(ms(2_999));
    world.happen(Event::HandshakeFinished);
    world.until(ms(4_998));
    world.feed(&head("/first", ""));
    world.expect(ms(9_998), Some(Metric::DeadlineAuthenticate));
    world.expect(ms(10_100), Some(Metric::DeadlineLinger));
    // Late by two seconds, it gets no linger at all.
    let mut world = World::at(Stage::Authenticating);
    world.until(ms(12_000));
    assert_eq!(world.client.stage(), Stage::Refused);
    world.until(ms(12_000));
    assert_eq!(world.client.socket_action(), SocketAction::CloseNow { reset: true });
}

#[test]
fn a_client_that_never_authenticated_cannot_hold_its_close() {
    let mut world = World::at(Stage::Authenticating);
    world.flushes = false;
    world.pass(ms(4_900));
    world.happen(Event::CloseFrame);
    // Nothing of the answer is sent: a linger, not a write stall, ends it.
    world.expect(ms(5_900), Some(Metric::DeadlineLinger));
    assert_eq!(world.client.socket_action(), SocketAction::CloseNow { reset: true });
}

#[test]
fn silence_is_pinged_and_then_closed() {
    let mut world = World::at(Stage::Open);
    world.expect(ms(25_000), Some(Metric::PingsSent));
    assert_eq!(world.next(), Some(ms(60_000)));
    world.until(ms(59_999));
    world.feed(&frame(0x8a, b""));
    assert_eq!(world.next(), Some(ms(59_999 + 25_000)));
    world.expect(ms(84_999), Some(Metric::PingsSent));
    world.expect(ms(119_999), Some(Metric::DeadlineIdle));
    let told = "closing stay <- idle Gateway open 4408: ping, ping, close 4408 idle";
    assert_eq!(world.summary(), told);
    world.expect(ms(120_999), Some(Metric::DeadlineLinger));
}

#[test]
fn a_client_that_does_not_read_is_dropped() {
    let mut world = World::at(Stage::Open);
    world.flushes = false;
    world.pass(ms(1_000));
    world.happen(Event::PingFrame);
    assert_eq!(world.next(), Some(ms(11_000)));
    world.pass(ms(4_000));
    world.sent(false);
    assert_eq!(world.next(), Some(ms(15_000)));
    // More output is no progress.
    world.pass(ms(9_000));
    world.call(|client, ctx, _| client.output_queued(ctx));
    assert_eq!(world.next(), Some(ms(15_000)));
    world.expect(ms(15_000), Some(Metric::DeadlineWrite));
    assert_eq!(world.summary(), "closing reset <- slow_consumer Gateway open: pong you");
}

#[test]
fn a_close_behind_much_output_lingers_from_when_it_was_sent() {
    for (event, socket_action) in [
        (Event::Close, SocketAction::Stay),
        (Event::Garbage, SocketAction::ShutdownWhenFlushed),
        (Event::CloseFrame, SocketAction::CloseWhenFlushed),
    ] {
        let mut world = World::at(Stage::Open);
        world.flushes = false;
        world.call(|client, ctx, _| client.output_queued(ctx));
        world.pass(ms(5_000));
        world.happen(event);
        assert_eq!(world.client.socket_action(), socket_action);
        assert_eq!(world.next(), Some(ms(10_000)), "a write stall");
        world.pass(ms(4_000));
        world.sent(false);
        assert_eq!(world.next(), Some(ms(19_000)));
        world.pass(ms(4_000));
        world.sent(true);
        assert_eq!(world.next(), Some(ms(14_000)), "{event:?}");
        // What TLS says after that (key updates, its own goodbye) is no reason to stay.
        world.pass(ms(500));
        world.call(|client, ctx, _| client.output_queued(ctx));
        assert_eq!(world.next(), Some(ms(14_000)));
        world.sent(true);
        world.expect(ms(14_000), Some(Metric::DeadlineLinger));
    }
    let mut world = World::at(Stage::Open);
    world.flushes = false;
    world.happen(Event::Close);
    world.expect(ms(10_000), Some(Metric::DeadlineWrite));
}

#[test]
fn a_token_ends_on_time_or_a_grace_later() {
    // One that was let in by the leeway of 10 s ends with it.
    for (grace, left, end) in
        [(0, 20, 20_000), (7_000, 10, 17_000), (0, -5, 5_000), (7_000, -5, 12_000)]
    {
        let mut settings = settings(ROUTES);
        settings.deadlines.expiry_grace = ms(grace);
        let mut world = World::with(settings, false, 0);
        world.feed(&head("/ws", &bearer(&token(APP, left))));
        assert_eq!(world.next(), Some(ms(end)), "{grace} {left}");
        world.until(ms(end));
        let told = "closing stay <- token_expired Gateway open 4401: 101, text token_expired, \
                    close 4401 token_expired";
        assert_eq!(world.summary(), told);
        assert_eq!(world.counters.value(Metric::DeadlineExpiry), 1);
    }
    // Milliseconds of the wall clock count.
    let mut world = World::new(false);
    world.pass(ms(250));
    world.feed(&head("/ws", &bearer(&token(APP, 3))));
    world.expect(ms(3_000), Some(Metric::DeadlineExpiry));
}

#[test]
fn lifetimes_are_cut_by_up_to_a_tenth() {
    for (jitter, end) in [(0, 20_000), (u32::MAX / 2 + 1, 19_000), (u32::MAX, 18_000)] {
        let mut settings = settings(ROUTES);
        settings.deadlines.lifetime = Some(ms(20_000));
        let mut world = World::with(settings, false, jitter);
        world.pass(ms(1_000));
        world.feed(&head("/ws", &bearer(&token(APP, 3600))));
        let next = world.next().unwrap();
        assert!(next.abs_diff(ms(end)) < ms(1), "{next:?}");
        world.expect(next, None);
        let told = "closing stay <- lifetime Gateway open 1012: 101, text lifetime, \
                    close 1012 lifetime";
        assert_eq!(world.summary(), told);
    }
}

#[test]
fn the_earliest_scheduled_close_counts() {
    let mut world = World::at(Stage::Open);
    for (at, cause) in
        [(9_000, Cause::GoingAway), (4_000, Cause::BackendUnavailable), (6_000, Cause::Idle)]
    {
        world.client.schedule_close(START + ms(at), cause);
    }
    world.pass(ms(3_000));
    world.happen(Event::PingFrame);
    world.told.clear();
    world.expect(ms(4_000), None);
    let told = "closing stay <- backend_unavailable Gateway open 1012: text backend_unavailable, \
                close 1012 backend_unavailable";
    assert_eq!(world.summary(), told);
    // A schedule changes nothing for who is closing already.
    world.client.schedule_close(START + ms(4_100), Cause::Internal);
    assert_eq!(world.next(), Some(ms(5_000)));
}

impl World {
    /// Another configuration is in force from now on.
    fn reload(&mut self, routes: &str) {
        self.settings = settings(routes);
    }

    fn first_message(&mut self, token: &str) {
        self.feed(&frame(TEXT, token.as_bytes()));
    }
}

#[test]
fn a_first_message_opens_the_session() {
    let mut world = World::new(false);
    world.feed(&head("/first?room=7", "Sec-WebSocket-Protocol: other, chat\r\n"));
    let token = token(LATE, 60);
    let (begin, end) = token.split_at(20);
    world.feed(&frame(0x01, begin.as_bytes()));
    world.feed(&frame(PING, b"still here"));
    world.feed(&[frame(0x80, end.as_bytes()), frame(TEXT, b"hello")].concat());
    assert_eq!(world.summary(), "open stay: 101, pong still here");
    assert_eq!(world.data, [(DataKind::Text, true, true, b"hello".to_vec())]);
    let open = Open::decode(&world.opened[0][link::HEADER_BYTES..]).unwrap();
    assert_eq!((open.subject, open.path), (Some("ann"), "/first?room=7"));
    assert_eq!((open.route, open.subprotocol), (2, Some("chat")));
    assert_eq!(world.next(), Some(ms(25_000)));
    assert_eq!(world.counters.value(Metric::TokensAccepted), 1);
}

#[test]
fn first_messages_that_hold_no_good_token() {
    let app = token(APP, 60);
    let old = token(LATE, -60);
    let long = "x".repeat(5_000);
    let huge = "x".repeat(40_000);
    for (message, cause, code) in [
        ("", "token_missing", 4401),
        ("hello", "token_malformed", 4401),
        (app.as_str(), "token_bad_signature", 4401),
        (old.as_str(), "token_expired", 4401),
        (long.as_str(), "token_malformed", 4401),
    ] {
        let mut world = World::at(Stage::Authenticating);
        world.first_message(message);
        let expected = format!(
            "refused stay <- {cause} Gateway authenticating {code}: text {cause}, \
             close {code} {cause}"
        );
        assert_eq!(world.summary(), expected);
        assert_eq!(world.counters.value(Metric::TokensRefused), 1);
    }
    let mut world = World::at(Stage::Authenticating);
    world.first_message(&huge);
    let told = "refused shutdown <- too_large Gateway authenticating 1009: close 1009 too_large";
    assert_eq!(world.summary(), told);
}

/// A reload between the 101 and the first message: the routes after it, and what becomes of a
/// client whose token the block `late` signed, and of one of the block `app` and `other`.
#[test]
fn a_reload_while_a_client_authenticates() {
    const GONE: &str = r#"
        [[route]]
        path = "/ws"
        origins = []
        origin_absent = "allow"
        auth = "other"
        backend = "main"
    "#;
    let first = |auth: &str, more: &str| {
        format!(
            r#"
            [[route]]
            path = "/first"
            origins = ["https://app.example.com"]
            origin_absent = "allow"
            auth = "{auth}"
            backend = "main"
            {more}
            "#
        )
    };
    let same = first("late", r#"subprotocols = ["chat"]"#);
    let origin = same.replace("app.example", "new.example");
    let taken = format!("{}\n{same}", first("other", "").replace("/first", "/*"));
    let refused = |cause: &str, code: u16| {
        format!(
            "refused stay <- {cause} Gateway authenticating {code}: text {cause}, \
             close {code} {cause}"
        )
    };
    let changed = refused("going_away", 1001);
    for (routes, late, app) in [
        // Nothing changed but the place in the file.
        (same.clone(), "open stay".into(), refused("token_bad_signature", 4401)),
        (GONE.into(), refused("forbidden_route", 4403), refused("forbidden_route", 4403)),
        (first("other", r#"subprotocols = ["chat"]"#), changed.clone(), changed.clone()),
        (first("app", r#"subprotocols = ["chat"]"#), changed.clone(), changed.clone()),
        (first("none", r#"subprotocols = ["chat"]"#), changed.clone(), changed.clone()),
        (taken, changed.clone(), changed.clone()),
        // The 101 named a subprotocol that would not be chosen any more.
        (first("late", r#"subprotocols = ["other"]"#), changed.clone(), changed.clone()),
        (origin, refused("forbidden_origin", 4403), refused("forbidden_origin", 4403)),
    ] {
        for (secret, expected) in [(LATE, late), (APP, app)] {
            let mut world = World::new(false);
            world.feed(&head(
                "/first",
                "Sec-WebSocket-Protocol: chat\r\nOrigin: https://app.example.com\r\n",
            ));
            world.told.clear();
            world.reload(&routes);
            world.first_message(&token(secret, 60));
            assert_eq!(world.summary(), expected, "{routes}");
            for open in &world.opened {
                let open = Open::decode(&open[link::HEADER_BYTES..]).unwrap();
                assert_eq!((open.route, open.subprotocol), (0, Some("chat")));
                assert_eq!(world.client.route(&world.routes), Some(0));
            }
        }
    }
}

#[test]
fn a_key_rotated_while_a_client_authenticates() {
    let mut world = World::at(Stage::Authenticating);
    let (old, new) = (token(LATE, 60), token(APP, 60));
    // The same block by name, with another key: the one in force decides.
    let swapped = |world: &mut World| {
        let other = world.settings.auths.pop().unwrap();
        world.settings.auths[1].kind = other.kind;
    };
    swapped(&mut world);
    world.first_message(&old);
    assert_eq!(world.client.end().unwrap().cause, Cause::BadSignature);
    let mut world = World::at(Stage::Authenticating);
    swapped(&mut world);
    world.first_message(&new);
    assert_eq!(world.summary(), "open stay");
}

#[test]
fn a_reload_changes_deadlines_and_limits_at_once() {
    let mut world = World::at(Stage::Authenticating);
    world.settings.deadlines.authenticate = ms(1_500);
    assert_eq!(world.next(), Some(ms(1_500)));
    world.settings.limits.header_fields_max = 2;
    world.first_message(&token(LATE, 60));
    // The request would not be taken any more.
    assert_eq!(world.client.end().unwrap().cause, Cause::ForbiddenRoute);
}

/// Over budget, the gateway says so to the client, and the close in the same bytes is still found.
#[test]
fn too_many_frames() {
    let close = frame(CLOSE, b"\x03\xe8");
    let told = |stage: &str, from: &str| {
        format!(
            "{stage} flush <- rate_limited Gateway {from} 4429: pong a, pong b, \
             text rate_limited, close 4429 rate_limited"
        )
    };
    for over in [frame(PING, b"c"), frame(TEXT, b"hello"), frame(0x01, &[b'x'; 300])] {
        let begin = [frame(PING, b"a"), frame(PING, b"b")].concat();
        for (stage, expected) in [
            (Stage::Open, told("closing", "open")),
            (Stage::Authenticating, told("refused", "authenticating")),
        ] {
            let mut settings = settings(ROUTES);
            settings.limits.frames_burst = 2;
            settings.limits.controls_burst = 2;
            let mut world = World::with(settings, false, 0);
            match stage {
                Stage::Open => world.feed(&head("/ws", &bearer(&token(APP, 60)))),
                _ => world.feed(&head("/first", "")),
            }
            world.told.clear();
            world.feed(&[&begin[..], &over, &close].concat());
            assert_eq!(world.summary(), expected);
            assert_eq!(world.data, []);
        }
    }
    // The budget comes back with time.
    let mut world = World::at(Stage::Open);
    world.settings.limits.controls_per_second = 2;
    let burst = world.settings.limits.controls_burst;
    for _ in 0..burst {
        world.happen(Event::PingFrame);
    }
    world.pass(ms(500));
    world.happen(Event::PingFrame);
    assert!(world.client.is_open());
    world.happen(Event::PingFrame);
    assert_eq!(world.client.end().unwrap().cause, Cause::RateLimited);
}

/// One frame in tiny segments makes as many DATA frames at the backend.
#[test]
fn small_pieces_of_a_frame_are_charged() {
    let pieces = |size: usize| {
        let mut world = World::at(Stage::Open);
        world.settings.limits.message_max = 1 << 20;
        let whole = frame(0x82, &[7; 60_000]);
        world.feed(&whole[..8]);
        let (mut count, step) = (0, ms(1));
        for piece in whole[8..].chunks(size).cycle().take(50_000) {
            // As fast as a hundred thousand segments a second.
            world.pass(step / 100);
            count += 1;
            if count * size >= 60_000 {
                // The next message.
                return (count, true);
            }
            world.feed(piece);
            if !world.client.is_open() {
                assert_eq!(world.client.end().unwrap().cause, Cause::RateLimited);
                return (count, false);
            }
        }
        (count, true)
    };
    let burst = World::new(false).settings.limits.frames_burst as usize;
    let (count, unharmed) = pieces(1);
    assert!(!unharmed && count <= 10 * burst, "{count} pieces");
    for size in [1024, 1448, 4096] {
        assert!(pieces(size).1, "{size}");
    }
    // A slow client may send byte for byte.
    let mut world = World::at(Stage::Open);
    for byte in frame(0x82, &[7; 10_000]) {
        world.pass(ms(1));
        world.feed(&[byte]);
    }
    assert!(world.client.is_open());
}

/// An answer that is queued when FIN comes goes out first.
#[test]
fn a_half_closed_client_gets_its_answer() {
    let requests = [
        ("open", head("/ws", &bearer(&token(APP, 60))), "closing"),
        ("first message", head("/first", ""), "refused"),
    ];
    for (name, request, stage) in requests {
        let mut world = World::new(false);
        world.flushes = false;
        world.feed(&request);
        world.happen(Event::PeerFinished);
        assert_eq!(world.client.stage().label(), stage, "{name}");
        assert_eq!(world.client.end().unwrap().cause, Cause::ClientGone);
        assert_eq!(world.client.socket_action(), SocketAction::CloseWhenFlushed, "{name}");
        // It does not wait for a client that does not read.
        let limit = START + world.settings.deadlines.write_stall;
        assert!(world.client.next_deadline(&world.settings) <= limit);
    }
}

/// What was queued for an identity that is over is not for the client to read on at its leisure.
#[test]
fn the_revoked_and_expired_do_not_read_on() {
    for (cause, left) in [
        (Cause::TokenRevoked, ms(1_000)),
        (Cause::TokenExpired, ms(1_000)),
        (Cause::GoingAway, ms(10_000)),
    ] {
        let mut world = World::at(Stage::Open);
        world.flushes = false;
        world.call(|client, ctx, _| client.output_queued(ctx));
        world.call(|client, ctx, output| client.close(cause, ctx, output));
        // It reads a little all the time.
        for _ in 0..9 {
            world.pass(ms(100));
            world.sent(false);
        }
        let deadline = world.client.next_deadline(&world.settings);
        let slack = if left == ms(10_000) { ms(900) } else { ms(0) };
        assert_eq!(deadline.since(START), left + slack, "{cause:?}");
        world.pass(deadline.since(world.now.instant));
        world.handle_deadline();
        assert_eq!(world.client.socket_action(), SocketAction::CloseNow { reset: true });
    }
}

/// Blocks are asked in order; one that has not signed the token gives way, and one that has
/// judges for good.
#[test]
fn a_visitor_has_no_credential_or_a_session_without_a_user() {
    use crate::protocol::plug_crypto::Derivation;
    use crate::protocol::plug_session::{Minted, mint};
    const BASE: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let text = format!(
        r#"
        [[auth]]
        name = "lv"
        kind = "plug-session"
        carriers = ["cookie:_app_key"]
        secret_key_base = "{BASE}"
        signing_salt = "p4Xf2Qzk"
        subject = "user_id"
        [[route]]
        path = "/live"
        origins = ["https://app.example.com"]
        origin_absent = "allow"
        auth = ["lv", "app", "anonymous"]
        backend = "main"
        [[route]]
        path = "/members"
        origins = ["https://app.example.com"]
        origin_absent = "allow"
        auth = ["lv", "app"]
        backend = "main"
    "#
    );
    let key = Derivation::default().derive(&Secret::new(BASE.as_bytes().to_vec()), b"p4Xf2Qzk");
    const PAGE: &str = "Origin: https://app.example.com\r\n";
    let session = |user: Option<u32>| {
        let Minted { cookie, csrf } = mint(&key, serde_json::json!({ "user_id": user }), &[9; 36]);
        (format!("Cookie: _app_key={cookie}\r\n"), format!("?_csrf_token={csrf}"))
    };
    let ((visitor, csrf), (user, users_csrf)) = (session(None), session(Some(7)));
    let forged = visitor.replace("_app_key=SFM", "_app_key=x");
    let stranger = Derivation::default().derive(&Secret::new(BASE.as_bytes().to_vec()), b"other");
    let of_stranger = mint(&stranger, serde_json::json!({}), &[9; 36]).cookie;
    let of_stranger = format!("Cookie: _app_key={of_stranger}\r\n");
    let good = bearer(&token(APP, 60));
    let bad = bearer(&token("yet-another-secret-of-32-bytes!!", 60));
    let expired = bearer(&token(APP, -60));
    let (none, repeated) = (String::new(), "Cookie: _app_key=a; _app_key=b\r\n".to_owned());
    let empty = "Cookie: _app_key=; other=1\r\n".to_owned();
    // query, fields, with an Origin -> what a route with and one without visitors says
    let table: &[(&str, &[&String], bool, &str, &str)] = &[
        ("", &[&none], true, "visitor", "token_missing"),
        ("", &[&none], false, "visitor", "token_missing"),
        ("", &[&empty], true, "visitor", "token_missing"),
        (&csrf, &[&visitor], true, "visitor", "token_missing"),
        (&users_csrf, &[&user], true, "user", "user"),
        ("", &[&good], true, "user", "user"),
        (&csrf, &[&visitor, &good], true, "user", "user"),
        // A cookie of any page's request counts only beside an Origin, and with its CSRF token.
        (&csrf, &[&visitor], false, "forbidden_origin", "forbidden_origin"),
        ("", &[&visitor], true, "csrf_mismatch", "token_missing"),
        ("", &[&user], true, "csrf_mismatch", "csrf_mismatch"),
        // A forged token never becomes a visitor.
        (&csrf, &[&of_stranger], true, "token_bad_signature", "token_bad_signature"),
        (&csrf, &[&forged], true, "token_malformed", "token_malformed"),
        ("", &[&bad], true, "token_bad_signature", "token_bad_signature"),
        ("", &[&expired], true, "token_expired", "token_expired"),
        (&csrf, &[&visitor, &bad], true, "token_bad_signature", "token_bad_signature"),
        (&csrf, &[&forged, &good], true, "user", "user"),
        ("", &[&repeated], true, "token_repeated", "token_repeated"),
    ];
    for (query, fields, from_page, welcome, members) in table {
        for (path, expected) in [("/live", welcome), ("/members", members)] {
            let mut world = World::with(settings(&text), false, 0);
            let page = if *from_page { PAGE } else { "" };
            let fields: String = fields.iter().map(|field| field.as_str()).collect();
            world.feed(&head(&format!("{path}{query}"), &format!("{page}{fields}")));
            let found = match (world.client.is_open(), world.client.is_visitor()) {
                (true, true) => "visitor",
                (true, false) => "user",
                (false, _) => world.client.end().expect("refused").cause.label(),
            };
            assert_eq!(&found, expected, "{path}{query} {page}{fields}");
            // The backend hears of no identity.
            for open in &world.opened {
                let open = Open::decode(&open[link::HEADER_BYTES..]).unwrap();
                let nobody = open.subject.is_none_or(str::is_empty) && open.claims.is_empty();
                assert_eq!(nobody, found == "visitor", "{:?}", open.subject);
            }
        }
    }
    let mut world = World::with(settings(&text), false, 0);
    world.feed(&head("/live", "Origin: https://evil.example\r\n"));
    assert_eq!(world.client.end().expect("refused").cause, Cause::ForbiddenOrigin);
}

#[test]
fn several_blocks_on_one_route() {
    let bad = "Authorization: Bearer x y\r\n".to_owned();
    let both = [
        settings(
            r#"
        [[route]]
        path = "/ws"
        origins = []
        origin_absent = "allow"
        auth = ["app", "late"]
        backend = "main"
    "#,
        ),
        settings(
            r#"
        [[route]]
        path = "/ws"
        origins = []
        origin_absent = "allow"
        auth = ["late", "app"]
        backend = "main"
    "#,
        ),
    ];
    let stranger = "yet-another-secret-of-32-bytes!!";
    let ann = || Ok("ann".to_owned());
    let table: [(String, Result<String, Option<Cause>>); 7] = [
        (bearer(&token(APP, 60)), ann()),
        (bearer(&token(LATE, 60)), ann()),
        (bearer(&token(APP, -60)), Err(Some(Cause::TokenExpired))),
        (bearer(&token(LATE, -60)), Err(Some(Cause::TokenExpired))),
        (bearer(&token(stranger, 60)), Err(Some(Cause::BadSignature))),
        (bad, Err(Some(Cause::TokenMalformed))),
        (String::new(), Err(None)),
    ];
    for settings in both {
        let settings = std::sync::Arc::new(settings);
        for (lines, expected) in &table {
            let text = head("/ws", lines);
            let mut scratch = authenticate::Scratch::default();
            let mut fields = [httparse::EMPTY_HEADER; http_upgrade::FIELDS];
            let limits = http_upgrade::HeadLimits::default();
            let parsed = http_upgrade::parse(&text, &mut fields, &limits);
            let Ok(http_upgrade::Request::Upgrade(request)) = parsed else { panic!("an upgrade") };
            let now = UnixTime::from_seconds(UNIX);
            let route = &settings.routes[0];
            let found = authenticate::by_request(&settings, route, &request, now, &mut scratch);
            let found = match found {
                Decision::Accepted(identity) => Ok(identity.subject().to_owned()),
                Decision::Ask(_) | Decision::AskServer => panic!("these blocks decide themselves"),
                Decision::AwaitFirstMessage => Err(None),
                Decision::Refused(refusal) => Err(Some(refusal.cause)),
            };
            assert_eq!(&found, expected, "{lines}");
        }
    }
}

#[test]
fn a_broken_frame_may_wait_for_what_the_backend_has_under_way() {
    let grace = Duration::from_millis(300);
    let broken = |event: Option<Event>| {
        let mut world = World::at(Stage::Open);
        world.settings.deadlines.failure_grace = grace;
        world.feed(&frame(0x83, b""));
        assert_eq!(world.summary(), "open stay");
        assert_eq!(world.client.next_deadline(&world.settings), START + grace);
        // Nothing more is read, but the backend's messages still go out.
        world.feed(&frame(PING, b"unread"));
        world.feed(&frame(CLOSE, b""));
        assert_eq!(world.summary(), "open stay");
        assert!(world.client.data_header(DataKind::Text, true, true, 5).is_some());
        match event {
            Some(event) => world.happen(event),
            None => world.advance_to_deadline(0),
        }
        world.summary()
    };
    let failed = "closing shutdown <- protocol_error Gateway open 1002: close 1002 protocol_error";
    assert_eq!(broken(None), failed);
    // Whatever else ends it first: nothing of the client is waited for.
    let closed =
        "closing shutdown <- internal Gateway open 1011: text internal, close 1011 internal";
    assert_eq!(broken(Some(Event::Close)), closed);
}

/// RFC 6455 §5.5.3: while a pong waits to be sent, only the latest ping is answered.
#[test]
fn pongs_coalesce() {
    let mut world = World::at(Stage::Open);
    world.flushes = false;
    for text in ["1", "2", "3"] {
        world.feed(&frame(PING, text.as_bytes()));
    }
    assert_eq!(world.told, ["pong 1"]);
    world.sent(false);
    assert_eq!(world.told, ["pong 1"]);
    world.sent(true);
    assert_eq!(world.told, ["pong 1", "pong 3"]);
    world.sent(true);
    world.feed(&frame(PING, b"4"));
    assert_eq!(world.told, ["pong 1", "pong 3", "pong 4"]);
    // More may wait where the settings say so.
    world.sent(true);
    world.settings.limits.pongs_unsent_max = 3;
    for text in ["5", "6", "7", "8", "9"] {
        world.feed(&frame(PING, text.as_bytes()));
    }
    assert_eq!(world.told[3..], ["pong 5", "pong 6", "pong 7"]);
    world.sent(true);
    assert_eq!(world.told[6..], ["pong 9"]);
    world.told.truncate(3);
    world.settings.limits.pongs_unsent_max = 1;
    // None is sent after the close frame.
    world.feed(&frame(PING, b"10"));
    world.happen(Event::Close);
    world.sent(true);
    assert_eq!(world.told[3..], ["text internal", "close 1011 internal"]);
}

/// The explanation is a text message: not in the middle of another message, and not for those
/// who take binary ones only.
#[test]
fn closes_without_an_explanation() {
    for (path, unfinished, told) in [
        ("/ws", false, vec!["text internal", "close 1011 internal"]),
        ("/ws", true, vec!["close 1011 internal"]),
        ("/binary", false, vec!["close 1011 internal"]),
    ] {
        let mut world = World::new(false);
        world.feed(&head(path, &bearer(&token(APP, 60))));
        world.told.clear();
        world.call(|client, _, _| client.data_header(DataKind::Binary, true, !unfinished, 1));
        world.happen(Event::Close);
        assert_eq!(world.told, told);
    }
    let mut world = World::new(false);
    world.feed(&head("/binary", ""));
    world.happen(Event::Text);
    let told = "closing shutdown <- unsupported_type Gateway open 1003: 101, \
                close 1003 unsupported_type";
    assert_eq!(world.summary(), told);
}

#[test]
fn backends_close_with_codes_that_may_be_sent() {
    for (code, sent) in [(1000, 1000), (4999, 4999), (1005, 1000), (1006, 1000), (0, 1000)] {
        let mut world = World::at(Stage::Open);
        world.call(|client, ctx, out| client.close_by_backend(Some(code), "why", ctx, out));
        assert_eq!(world.told, [format!("close {sent} why")]);
        assert_eq!(world.client.end().unwrap().code, Some(sent));
    }
    let mut world = World::at(Stage::Open);
    let reason = "ä".repeat(100);
    world.call(|client, ctx, out| client.close_by_backend(Some(4000), &reason, ctx, out));
    assert_eq!(world.told, [format!("close 4000 {}", "ä".repeat(61))]);
}

/// Who gets 401 or 403 over HTTP, and who gets 101 and an explanation.
#[test]
fn refusals_by_route_and_origin() {
    const PAGE: &str = "Origin: https://app.example.com\r\n";
    let explained = vec!["101", "text token_missing", "close 4401 token_missing"];
    let forbidden = vec!["101", "text forbidden_origin", "close 4403 forbidden_origin"];
    for (refuse, extra, told) in [
        (Refuse::Explain, "", explained.clone()),
        (Refuse::Explain, PAGE, explained.clone()),
        (Refuse::Http, "", vec!["401"]),
        (Refuse::Http, PAGE, vec!["401"]),
        (Refuse::Auto, "", vec!["401"]),
        (Refuse::Auto, PAGE, explained.clone()),
        (Refuse::Explain, "Origin: https://evil.example\r\n", forbidden.clone()),
        (Refuse::Explain, "Origin: null\r\n", forbidden.clone()),
        (Refuse::Auto, "Origin: null\r\n", forbidden),
        (Refuse::Http, "Origin: https://evil.example\r\n", vec!["403"]),
    ] {
        let mut world = World::new(false);
        world.settings.routes[0].refuse = refuse;
        world.feed(&head("/ws", extra));
        assert_eq!(world.told, told, "{refuse:?} {extra}");
        assert_eq!(world.client.stage(), Stage::Refused);
    }
    let mut world = World::new(false);
    world.settings.routes[0].origin_absent_allowed = false;
    world.feed(&head("/ws", &bearer(&token(APP, 60))));
    assert_eq!(world.told, ["403"]);
    let mut world = World::new(false);
    world.feed(&head("/nowhere", ""));
    assert_eq!(world.summary(), "refused shutdown <- bad_request Gateway request_head: 404");
}

#[test]
fn a_refused_client_is_answered_with_an_offer_that_is_no_token() {
    let long = "t".repeat(65);
    let offer = format!("base64url.bearer.phx.AAAA, {long}, a.b.c, bearer, v2");
    for (listed, offers, answer) in [
        (vec!["v1"], "v2, c2VjcmV0", Some("v2")),
        (vec!["v1"], "v2, v1", Some("v1")),
        (vec!["v1"], &*offer, Some("bearer")),
        (vec![], &*offer, Some("bearer")),
        (vec!["v1"], "base64url.bearer.phx.AAAA", None),
        (vec!["v1"], "a.b.c", None),
        (vec!["v1.2.3"], "v1.2.3", Some("v1.2.3")),
        (vec!["v1"], &*long, None),
        (vec![], "a.b.c", None),
    ] {
        let mut world = World::new(false);
        world.settings.routes[0].subprotocols = listed.into_iter().map(str::to_owned).collect();
        // The token in the offer is broken: what counts is that it is not answered with.
        world.feed(&head("/ws", &format!("Sec-WebSocket-Protocol: {offers}\r\n")));
        assert_eq!(world.told[..2], ["101", "text token_missing"], "{offers}");
        let answered = world.answered[0].split("Sec-WebSocket-Protocol: ").nth(1);
        assert_eq!(answered.and_then(|rest| rest.lines().next()), answer, "{offers}");
    }
    // A client that is let in is answered with none: an application that it did not ask for
    // must not get its messages.
    let mut world = World::new(false);
    world.settings.routes[0].subprotocols = vec!["v1".into()];
    world.feed(&head("/ws", &format!("{}Sec-WebSocket-Protocol: v2\r\n", bearer(&token(APP, 60)))));
    assert_eq!(world.client.stage(), Stage::Open);
    assert!(!world.answered[0].contains("Sec-WebSocket-Protocol"));
}

#[test]
fn repeats_of_a_forwarded_header_push_no_other_out() {
    let mut world = World::new(false);
    world.settings.routes[0].forward_headers = vec!["x-a".into(), "x-b".into()];
    let repeats = "X-A: 1\r\n".repeat(40);
    world.feed(&head("/ws", &format!("{}{repeats}X-B: 2\r\n", bearer(&token(APP, 60)))));
    let open = Open::decode(&world.opened[0][link::HEADER_BYTES..]).unwrap();
    let headers: Vec<_> = open.headers.iter().collect();
    assert_eq!(headers.len(), 41);
    assert_eq!(headers[40], ("x-b", &b"2"[..]));
}

#[test]
fn checks_and_near_misses_get_their_answers() {
    for (bytes, told) in [
        ("HEAD /ws HTTP/1.0\r\n\r\n", "200"),
        ("GET /ws HTTP/1.0\r\n\r\n", "200"),
        ("HEAD /first HTTP/1.1\r\nHost: a\r\n\r\n", "405"),
        ("GET /first HTTP/1.0\r\n\r\n", "426"),
        ("GET /ws HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key: AA\r\n\r\n", "426"),
        ("GET /ws/ HTTP/1.1\r\nHost: a\r\n\r\n", "404"),
        ("GET http://a:81/ws HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
    ] {
        let mut world = World::new(false);
        world.feed(bytes.as_bytes());
        assert_eq!(world.told, [told], "{bytes}");
        assert_eq!(world.client.stage(), Stage::Refused);
    }
}

/// What a client says after its head, and what should come out of it.
#[derive(Clone, Debug)]
enum Said {
    Message { binary: bool, fragments: Vec<String> },
    Ping(String),
    Pong(String),
    Close(u16),
    Wrong(u8),
}

fn said() -> impl Strategy<Value = Said> {
    let text = || "[a-zäß€😀]{0,30}";
    prop_oneof![
        6 => (any::<bool>(), prop::collection::vec(text(), 1..4))
            .prop_map(|(binary, fragments)| Said::Message { binary, fragments }),
        1 => "[a-zA-Z]{200,300}"
            .prop_map(|long| Said::Message { binary: false, fragments: vec![long] }),
        2 => "[a-z]{0,20}".prop_map(Said::Ping),
        1 => "[a-z]{0,20}".prop_map(Said::Pong),
        1 => (3000u16..5000).prop_map(Said::Close),
        1 => (3u8..8).prop_map(Said::Wrong),
    ]
}

fn write_said(said: &[Said]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for said in said {
        match said {
            Said::Message { binary, fragments } => {
                for (index, fragment) in fragments.iter().enumerate() {
                    let opcode = if index > 0 { 0 } else { 1 + u8::from(*binary) };
                    let last = if index + 1 == fragments.len() { 0x80 } else { 0 };
                    bytes.extend(frame(last | opcode, fragment.as_bytes()));
                }
            }
            Said::Ping(text) => bytes.extend(frame(PING, text.as_bytes())),
            Said::Pong(text) => bytes.extend(frame(0x8a, text.as_bytes())),
            Said::Close(code) => bytes.extend(frame(CLOSE, &code.to_be_bytes())),
            Said::Wrong(opcode) => bytes.extend(frame(0x80 | opcode, b"?")),
        }
    }
    bytes
}

impl World {
    /// Feeds `bytes` cut by `cuts`, with allowances from the same numbers.
    fn feed_in_pieces(&mut self, bytes: &[u8], cuts: &[(u16, u8)]) {
        let mut rest = bytes;
        let mut cuts = cuts.iter().cycle();
        while let (false, Some((cut, allowance))) = (rest.is_empty(), cuts.next()) {
            let count = rest.len().min(usize::from(*cut));
            let left = self.feed_with(&rest[..count], usize::from(*allowance));
            let stopped = self.client.socket_action() != SocketAction::Stay;
            rest = if stopped { &[] } else { &rest[count - left..] };
        }
    }

    /// The messages that came out, whole or not, and whether each was.
    fn messages(&self) -> Vec<(DataKind, bool, Vec<u8>)> {
        let mut messages: Vec<(DataKind, bool, Vec<u8>)> = Vec::new();
        for (kind, first, last, piece) in &self.data {
            let begins = messages.last().is_none_or(|(_, whole, _)| *whole);
            assert_eq!(*first, begins, "pieces out of order");
            if begins {
                messages.push((*kind, false, Vec::new()));
            }
            let (of, whole, message) = messages.last_mut().unwrap();
            assert_eq!(of, kind);
            message.extend_from_slice(piece);
            *whole = *last;
        }
        messages
    }
}

/// Settings under which no number of frames is too many.
fn patient() -> Settings {
    let mut settings = settings(ROUTES);
    settings.limits.frames_burst = u32::MAX;
    settings.limits.controls_burst = u32::MAX;
    settings
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// However the stream is cut and whatever the backend allows, the same comes of it, and
    /// that is what was said.
    #[test]
    fn any_chunking_is_as_good_as_none(
        script in prop::collection::vec(said(), 0..12),
        first_message in any::<bool>(),
        head_cuts in prop::collection::vec((1u16..60, any::<u8>()), 1..8),
        cuts in prop::collection::vec(((1u16..40).prop_union(100..1000), 0u8..50), 1..8),
    ) {
        // Some allowance must be above zero, or nothing ever moves.
        let mut cuts = cuts;
        cuts.push((7, 3));
        let (request, token) = if first_message {
            (head("/first", ""), frame(TEXT, token(LATE, 60).as_bytes()))
        } else {
            (head("/ws", &bearer(&token(APP, 60))), Vec::new())
        };
        let stream = [token, write_said(&script)].concat();
        let mut whole = World::with(patient(), false, 0);
        whole.feed(&request);
        whole.feed(&stream);
        let mut pieces = World::with(patient(), false, 0);
        pieces.feed_in_pieces(&request, &head_cuts);
        pieces.feed_in_pieces(&stream, &cuts);
        prop_assert_eq!(whole.summary(), pieces.summary());
        prop_assert_eq!(whole.messages(), pieces.messages());
        prop_assert_eq!(&whole.opened, &pieces.opened);
        prop_assert_eq!(whole.next(), pieces.next());
        prop_assert_eq!(whole.data.len() <= pieces.data.len(), true);

        let live = script.iter().take_while(|said| !matches!(said, Said::Close(_) | Said::Wrong(_)));
        let (mut told, mut messages) = (vec!["101".to_owned()], Vec::new());
        for said in live.clone() {
            match said {
                Said::Ping(text) => told.push(format!("pong {text}")),
                Said::Message { binary, fragments } => {
                    let kind = if *binary { DataKind::Binary } else { DataKind::Text };
                    messages.push((kind, true, fragments.concat().into_bytes()));
                }
                _ => {}
            }
        }
        match script.get(live.count()) {
            Some(Said::Close(code)) => told.push(format!("close {code} ")),
            Some(Said::Wrong(_)) => told.push("close 1002 protocol_error".into()),
            _ => {}
        }
        prop_assert_eq!(&pieces.told, &told);
        prop_assert_eq!(pieces.messages(), messages);
    }
}

/// One step of a random life.
#[derive(Clone, Debug)]
enum Act {
    Happen(usize),
    Bytes(Vec<u8>),
    Frame(u8, Vec<u8>),
    FirstHead(usize),
    Token,
    Pass(u64),
    Sent(bool),
    Flushes(bool),
    Reload(bool),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        // Up to and without the events that pass time.
        6 => (0..EVENTS.len() - 3).prop_map(Act::Happen),
        1 => prop::collection::vec(any::<u8>(), 1..40).prop_map(Act::Bytes),
        4 => (any::<u8>(), prop::collection::vec(any::<u8>(), 0..140))
            .prop_map(|(first, payload)| Act::Frame(first & 0x8f, payload)),
        2 => (1usize..400).prop_map(Act::FirstHead),
        2 => Just(Act::Token),
        3 => (0u64..3_000).prop_map(Act::Pass),
        1 => (0u64..40_000).prop_map(Act::Pass),
        2 => any::<bool>().prop_map(Act::Sent),
        1 => any::<bool>().prop_map(Act::Flushes),
        1 => any::<bool>().prop_map(Act::Reload),
    ]
}

#[test]
fn a_client_refused_with_no_time_left_ends_at_the_next_look() {
    let mut world = World::new(false);
    world.happen(Event::Head);
    world.pass_promptly(ms(10_101));
    assert!(world.client.is_open());
    world.happen(Event::Refuse);
    assert!(world.due());
    world.handle_deadline();
    assert_eq!(world.client.socket_action(), SocketAction::CloseNow { reset: true });
}

impl World {
    fn act(&mut self, act: &Act) {
        let handshaking = self.client.stage() == Stage::TlsHandshake;
        match act {
            Act::Happen(index) => {
                let event = EVENTS[*index];
                let takes_bytes = event < Event::PeerGone;
                if !(handshaking && takes_bytes) && event != Event::ScheduleClose {
                    self.happen(event);
                }
            }
            Act::Bytes(bytes) if !handshaking => self.feed(bytes),
            Act::Frame(first, payload) if !handshaking => self.feed(&frame(*first, payload)),
            Act::FirstHead(count) if !handshaking => {
                let request = head("/first", "");
                self.feed(&request[..request.len().min(*count)]);
            }
            Act::Token if !handshaking => self.first_message(&token(LATE, 30)),
            Act::Bytes(_) | Act::Frame(..) | Act::FirstHead(_) | Act::Token => {}
            Act::Pass(millis) => self.pass_promptly(ms(*millis)),
            Act::Sent(flushed) => self.sent(*flushed),
            Act::Flushes(flushes) => self.flushes = *flushes,
            Act::Reload(same) => {
                let routes = if *same { ROUTES } else { &ROUTES.replace("late", "other") };
                self.reload(routes);
            }
        }
        self.check_age();
    }

    /// Passes time and handles each deadline when it comes.
    fn pass_promptly(&mut self, time: Duration) {
        let target = self.now.instant + time;
        let mut fired = 0;
        while !self.over && self.client.next_deadline(&self.settings) <= target {
            self.advance_to_deadline(0);
            self.check_age();
            fired += 1;
            assert!(fired < 20, "deadlines that change nothing");
        }
        self.pass(target.since(self.now.instant));
    }

    /// No unauthenticated socket grows older than all stages together and 100 ms.
    fn check_age(&self) {
        if !self.was_open && !self.over {
            let next = self.client.next_deadline(&self.settings);
            assert!(next <= START + ms(10_100), "may live until {:?}", self.next());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Nothing that clients, backends and time can do breaks an invariant of [`World`], and
    /// every client comes to an end.
    #[test]
    fn random_lives_end_well(tls in any::<bool>(), acts in prop::collection::vec(act(), 0..25)) {
        let mut world = World::new(tls);
        for act in &acts {
            world.act(act);
        }
        world.flushes = false;
        world.pass_promptly(ms(10 * 60_000));
        assert!(world.over, "{}", world.summary());
        let ctx = Context {
            now: world.now,
            settings: &world.settings,
            routes: &world.routes,
            counters: &world.counters,
            jitter: 0,
            revoked: &world.revoked,
        };
        world.client.leave(&ctx);
        assert!(STAGES.iter().all(|stage| world.counters.value(gauge(*stage)) == 0));
    }
}
