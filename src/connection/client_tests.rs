//! The client's machine, driven by hand: every stage with every event, every deadline, any
//! chunking, reloads, and random scripts. [`World::check`] holds after each call.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::base::secret::Secret;
use crate::base::time::{Now, UnixTime};
use crate::counters::Counters;
use crate::protocol::jwt::{self, Algorithm, JwtKey};
use crate::protocol::mask::apply_mask;
use crate::settings::load::{FileContents, Outside, load};

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
    impl Outside for Nothing {
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
    counters: Counters,
    now: Now,
    output: Output,
    /// What the client was told, in words.
    told: Vec<String>,
    /// Message pieces as they came out: kind, first, last, bytes.
    data: Vec<(DataKind, bool, bool, Vec<u8>)>,
    /// OPEN payloads.
    opened: Vec<Vec<u8>>,
    /// Whether everything queued is sent at once.
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
        let cx = Surroundings { now, settings: &settings, counters: &counters };
        let client = Client::new(None, tls, jitter, &cx);
        let mut world = World {
            client,
            settings,
            counters,
            now,
            output: Output::default(),
            told: Vec::new(),
            data: Vec::new(),
            opened: Vec::new(),
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
                world.call(|client, cx, output| client.close(Cause::GoingAway, cx, output));
            }
        }
        assert_eq!(world.client.stage(), stage);
        world.told.clear();
        world
    }

    /// Calls the machine, then queues and (perhaps) sends what it says, as the worker does.
    fn call<T>(
        &mut self,
        call: impl FnOnce(&mut Client, &Surroundings<'_>, &mut Output) -> T,
    ) -> T {
        let result = self.checked(call);
        while !self.output.answers.is_empty() {
            self.listen();
            self.checked(|client, cx, _| client.output_queued(cx));
            if self.flushes {
                self.checked(|client, cx, output| client.output_sent(true, cx, output));
            }
        }
        result
    }

    /// Calls the machine and checks everything.
    fn checked<T>(
        &mut self,
        call: impl FnOnce(&mut Client, &Surroundings<'_>, &mut Output) -> T,
    ) -> T {
        let due = self.due();
        let cx = Surroundings { now: self.now, settings: &self.settings, counters: &self.counters };
        let result = call(&mut self.client, &cx, &mut self.output);
        let next = self.client.next_deadline(&self.settings);
        assert!(due || next >= self.now.instant, "a deadline in the past");
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
        let over = matches!(client.disposition(), Disposition::CloseNow { .. });
        assert!(over || !self.over, "CloseNow became {:?}", client.disposition());
        self.over = over;
        assert!(ended || client.disposition() == Disposition::Stay);
        assert!(client.pending.is_none() || !ended);
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
                self.closed = status != "101";
                // Only a 101 is followed by anything but its own body.
                rest = if self.closed { &[] } else { &rest[end..] };
                continue;
            }
            let length = usize::from(rest[1]);
            assert!(length < 126, "no answer is longer");
            let (payload, opcode) = (&rest[2..2 + length], rest[0]);
            rest = &rest[2 + length..];
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            match opcode {
                0x81 => {
                    let value: serde_json::Value = serde_json::from_slice(payload).unwrap();
                    self.told.push(format!("text {}", value["reason"].as_str().unwrap()));
                }
                0x89 => self.told.push(format!("ping{}", text(payload))),
                0x8a => self.told.push(format!("pong {}", text(payload))),
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
        while used < bytes.len() && self.client.disposition() == Disposition::Stay {
            let before = (self.client.stage(), self.client.next_deadline(&self.settings));
            let input = &mut bytes[used..];
            let given = if self.client.is_open() { allowance } else { usize::MAX };
            let (count, step) = self.call(|client, cx, out| client.receive(input, given, cx, out));
            assert!(count <= input.len());
            if before.0 < Stage::Open && self.client.stage() == before.0 {
                assert!(self.client.next_deadline(&self.settings) <= before.1, "extended");
            }
            match step {
                Step::NeedMore => assert_eq!(count, input.len()),
                Step::Handled => assert!(count > 0 || self.client.stage() != before.0),
                Step::Blocked => {
                    assert_eq!(given, 0);
                    return bytes.len() - used - count;
                }
                Step::Data { range, kind, first, last } => {
                    assert!(self.was_open && range.end <= count && range.len() <= given);
                    self.data.push((kind, first, last, input[range].to_vec()));
                }
                Step::Authenticated { backend } => {
                    assert_eq!(backend, 0);
                    self.opened.push(self.output.open.clone());
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
        self.call(|client, cx, output| client.handle_deadline(cx, output));
    }

    /// The next deadline, from the start.
    fn next(&self) -> Option<Duration> {
        let next = self.client.next_deadline(&self.settings);
        (next != Instant::NEVER).then(|| next.since(START))
    }

    /// Everything that can be seen of the client, in a line.
    fn summary(&self) -> String {
        let disposition = match self.client.disposition() {
            Disposition::Stay => "stay",
            Disposition::ShutdownWhenFlushed => "shutdown",
            Disposition::AwaitEnd => "await",
            Disposition::CloseWhenFlushed => "flush",
            Disposition::CloseNow { reset: true } => "reset",
            Disposition::CloseNow { reset: false } => "gone",
        };
        let mut line = format!("{} {disposition}", self.client.stage().label());
        if let Some(End { cause, by, code, stage }) = self.client.end() {
            line += &format!(" <- {} {by:?} {}", cause.label(), stage.label());
            line += &code.map_or(String::new(), |code| format!(" {code}"));
        }
        if !self.told.is_empty() {
            line += &format!(": {}", self.told.join(", "));
        }
        line
    }
}

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
            Event::PeerGone => self.call(|client, cx, _| client.peer_gone(cx)),
            Event::PeerFinished => self.call(|client, cx, _| client.peer_finished(cx)),
            Event::TlsFailed => self.call(|client, cx, _| client.tls_failed(cx)),
            Event::HandshakeFinished => self.call(|client, cx, _| client.handshake_finished(cx)),
            Event::Close => self.call(|client, cx, out| client.close(Cause::Internal, cx, out)),
            Event::Refuse => {
                self.call(|client, cx, out| client.refuse(Cause::OverCapacity, cx, out));
            }
            Event::CloseByBackend => {
                self.call(|client, cx, out| client.close_by_backend(4000, "done", cx, out));
            }
            Event::DropSilently => {
                self.call(|client, cx, _| client.drop_silently(Cause::SlowConsumer, cx));
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
                self.call(|client, cx, _| client.output_queued(cx));
                self.call(|client, cx, out| client.output_sent(false, cx, out));
                self.call(|client, cx, out| client.output_sent(true, cx, out));
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

/// Every event in every stage: the stage after it, the disposition, `<-` the end, and `:` what the
/// client is told. `=` is no change at all; plaintext cannot come inside the TLS handshake.
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
        self.call(|client, cx, output| client.output_sent(flushed, cx, output));
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
    assert_eq!(world.client.disposition(), Disposition::CloseNow { reset: true });
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
    assert_eq!(world.client.disposition(), Disposition::CloseNow { reset: true });
}

#[test]
fn a_client_that_never_authenticated_cannot_hold_its_close() {
    let mut world = World::at(Stage::Authenticating);
    world.flushes = false;
    world.pass(ms(4_900));
    world.happen(Event::CloseFrame);
    // Nothing of the answer is sent: a linger, not a write stall, ends it.
    world.expect(ms(5_900), Some(Metric::DeadlineLinger));
    assert_eq!(world.client.disposition(), Disposition::CloseNow { reset: true });
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
    world.call(|client, cx, _| client.output_queued(cx));
    assert_eq!(world.next(), Some(ms(15_000)));
    world.expect(ms(15_000), Some(Metric::DeadlineWrite));
    assert_eq!(world.summary(), "closing reset <- slow_consumer Gateway open: pong you");
}

#[test]
fn a_close_behind_much_output_lingers_from_when_it_was_sent() {
    for (event, disposition) in [
        (Event::Close, Disposition::Stay),
        (Event::Garbage, Disposition::ShutdownWhenFlushed),
        (Event::CloseFrame, Disposition::CloseWhenFlushed),
    ] {
        let mut world = World::at(Stage::Open);
        world.flushes = false;
        world.call(|client, cx, _| client.output_queued(cx));
        world.pass(ms(5_000));
        world.happen(event);
        assert_eq!(world.client.disposition(), disposition);
        assert_eq!(world.next(), Some(ms(10_000)), "a write stall");
        world.pass(ms(4_000));
        world.sent(false);
        assert_eq!(world.next(), Some(ms(19_000)));
        world.pass(ms(4_000));
        world.sent(true);
        assert_eq!(world.next(), Some(ms(14_000)), "{event:?}");
        // What TLS says after that (key updates, its own goodbye) is no reason to stay.
        world.pass(ms(500));
        world.call(|client, cx, _| client.output_queued(cx));
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
    for (grace, left, end) in [(0, 20, 20_000), (7_000, 10, 17_000), (0, -5, 0), (7_000, -5, 7_000)]
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
