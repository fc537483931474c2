//! The client's machine while another program decides: every decision, every deadline, every event
//! between, and changes of the settings.

use std::io;
use std::path::Path;

use super::*;
use crate::base::time::{Instant, Now, UnixTime};
use crate::connection::client::SocketAction;
use crate::connection::route_order::FIRST_ORDER;
use crate::connection::session::SessionRequest;
use crate::connection::stage::Stage;
use crate::connection::upstream::link::compose;
use crate::counters::Counters;
use crate::protocol::http_decision::{DecisionHeaders, HttpDecision, judge};
use crate::protocol::link::{
    Accept, Auth as AuthFrame, CredentialCarrier, HEADER_BYTES, Kind, Open, PAYLOAD_MAX, SessionId,
};
use crate::protocol::mask::apply_mask;
use crate::protocol::revocation::{Hasher, Revoked};
use crate::settings::Settings;
use crate::settings::load::{Environment, FileContents, load};

const START: Instant = Instant::from_nanos(1_000_000_000_000);
const UNIX: u64 = 1_700_000_000;

const BLOCKS: &str = r#"
    [[auth]]
    name = "ask"
    kind = "backend"
    carriers = ["authorization", "query:token", "cookie:s", "first-message"]
    timeout = "2s"
    [[auth]]
    name = "web"
    kind = "http"
    carriers = ["authorization", "query:token", "header:x-key", "first-message:token"]
    endpoint = "http://127.0.0.1:1/verify"
    timeout = "1s"
    [[route]]
    path = "/ask"
    origins = ["https://a.example"]
    origin_absent = "allow"
    auth = "ask"
    backend = "main"
    [[route]]
    path = "/web"
    origins = []
    origin_absent = "allow"
    auth = "web"
    backend = "main"
"#;

fn settings(blocks: &str) -> Settings {
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
        "listener = [{{ address = \"127.0.0.1:8080\" }}]\n\
         backend = [{{ name = \"main\", endpoints = [\"127.0.0.1:7000\"] }}]\n{blocks}"
    );
    match load(&text, Path::new("test.toml"), &Nothing) {
        Ok(loaded) => loaded.settings,
        Err(problems) => panic!("{}", problems[0]),
    }
}

struct World {
    client: Client,
    settings: Settings,
    counters: Counters,
    now: Now,
    output: Output,
    revoked: Revoked,
}

impl World {
    /// What a backend is sent of the request.
    fn encoded(
        &self,
        compose: fn(&SessionRequest, SessionId, u32, &mut Vec<u8>) -> bool,
    ) -> Vec<u8> {
        let mut frame = Vec::new();
        let (id, frame_max) = (SessionId::new(0, 0), PAYLOAD_MAX as u32);
        assert!(compose(&self.output.request, id, frame_max, &mut frame));
        frame
    }

    fn new() -> World {
        let (settings, counters) = (settings(BLOCKS), Counters::default());
        let now = Now { instant: START, unix: UnixTime::from_seconds(UNIX) };
        let revoked = Revoked::nothing(Hasher::new(&[7; 32]));
        let ctx = Context {
            now,
            settings: &settings,
            routes: &FIRST_ORDER,
            counters: &counters,
            revoked: &revoked,
            jitter: 0,
        };
        let client = Client::new(Some("203.0.113.9:5000".parse().unwrap()), 0, false, 0, &ctx);
        World { client, settings, counters, now, output: Output::default(), revoked }
    }

    /// Calls the client; answers what it sent after that, as text.
    fn call<T>(
        &mut self,
        call: impl FnOnce(&mut Client, &Context<'_>, &mut Output) -> T,
    ) -> (T, String) {
        let World { client, settings, counters, now, output, revoked } = self;
        output.answers.clear();
        let ctx =
            Context { now: *now, settings, routes: &FIRST_ORDER, counters, revoked, jitter: 0 };
        let answer = call(client, &ctx, output);
        (answer, String::from_utf8_lossy(&output.answers).into_owned())
    }

    fn ask(&mut self, target: &str, fields: &str) -> Step {
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: gate\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             {fields}\r\n"
        );
        let mut head = head.into_bytes();
        self.call(|client, ctx, out| client.receive(&mut head, usize::MAX, ctx, out).1).0
    }

    fn accept(&mut self, subject: &str, expires: Option<u64>) -> (Step, String) {
        let expires = expires.map(UnixTime::from_seconds);
        let mut frame = Vec::new();
        let accept = Accept { subject, token_id: None, issued_at: None, expires, claims: b"c" };
        assert!(accept.encode(SessionId::new(0, 0), &mut frame));
        let identity = Accept::decode(&frame[HEADER_BYTES..]).expect("whole");
        self.call(|client, ctx, out| client.accept(&identity, ctx, out))
    }

    fn value(&self, metric: Metric) -> u64 {
        self.counters.value(metric)
    }

    fn pass(&mut self, millis: u64) {
        self.now.instant = self.now.instant + Duration::from_millis(millis);
    }
}

fn message(text: &str) -> Vec<u8> {
    let mut payload = text.as_bytes().to_vec();
    let mask = [1, 2, 3, 4];
    apply_mask(&mut payload, mask, 0);
    let mut frame = vec![0x81, 0x80 | text.len() as u8, 1, 2, 3, 4];
    frame.append(&mut payload);
    frame
}

#[test]
fn a_question_carries_what_the_client_showed_and_no_token_elsewhere() {
    let table: &[(&str, &str, &[&str])] = &[
        ("/ask?a=1", "Authorization: Bearer t\r\n", &["Authorization:=t"]),
        ("/ask?token=q&a=1", "", &["Query:token=q"]),
        (
            "/ask?token=q&a=1",
            "Origin: https://a.example\r\nCookie: s=c\r\nAuthorization: Bearer t\r\n",
            &["Authorization:=t", "Query:token=q", "Cookie:s=c"],
        ),
        ("/ask?token=q&a=1", "Cookie: s=c\r\n", &["Query:token=q"]),
    ];
    for (target, fields, expected) in table {
        let mut world = World::new();
        assert_eq!(world.ask(target, fields), Step::Ask(AuthRequest::Backend(0)), "{target}");
        let frame = &world.encoded(compose::auth);
        assert_eq!(frame[3], Kind::Auth as u8);
        let auth = AuthFrame::decode(&frame[HEADER_BYTES..]).expect("a good AUTH");
        let shown: Vec<String> = auth
            .credentials()
            .map(|c| format!("{:?}:{}={}", c.carrier, c.name, c.token.escape_ascii()))
            .collect();
        assert_eq!(shown, *expected);
        assert_eq!(auth.open.path, "/ask?a=1");
        assert_eq!(auth.open.remote, world.client.peer());
        assert!(world.client.awaits_decision() && world.client.stage() == Stage::Authenticating);
    }
    let mut world = World::new();
    assert_eq!(world.ask("/ask", "Cookie: s=c\r\n"), Step::Handled);
    assert_eq!(world.client.end().unwrap().cause, Cause::ForbiddenOrigin, "a lone cookie");
}

#[test]
fn what_no_header_field_can_carry_is_malformed() {
    for (target, refused) in [
        ("/web?token=abc", false),
        ("/web?token=a%20b", true),
        ("/web?token=a%0d%0aX-Evil:1", true),
        ("/web?token=a%2cb", true),
        ("/web?token=%ff", true),
        ("/web?token=%00", true),
    ] {
        let mut world = World::new();
        let step = world.ask(target, "");
        assert_eq!(step == Step::Handled, refused, "{target}");
        if refused {
            assert_eq!(world.client.end().unwrap().cause, Cause::TokenMalformed, "{target}");
            assert!(world.output.http_request.is_none());
        } else {
            let http_request = world.output.http_request.take().expect("a question");
            let fields: Vec<&str> =
                http_request.fields.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(fields[0], "authorization");
            assert!(!fields.contains(&"origin") && !fields.contains(&"cookie"));
        }
    }
}

#[test]
fn a_first_message_is_asked_about_once_it_is_whole() {
    let mut world = World::new();
    assert_eq!(world.ask("/ask", ""), Step::Handled);
    assert!(!world.client.awaits_decision());
    let mut frame = message("sesame");
    let step = world.call(|client, ctx, out| client.receive(&mut frame, 0, ctx, out).1).0;
    assert_eq!(step, Step::Ask(AuthRequest::Backend(0)));
    let frame = world.encoded(compose::auth);
    let auth = AuthFrame::decode(&frame[HEADER_BYTES..]).expect("a good AUTH");
    let credential = auth.credentials().next().expect("one");
    assert_eq!(credential.carrier, CredentialCarrier::FirstMessage);
    assert_eq!(credential.token, b"sesame");
}

#[test]
fn only_a_verdict_opens() {
    let mut world = World::new();
    world.ask("/ask", "Authorization: Bearer t\r\n");
    world.pass(30);
    let (step, told) = world.accept("ada", Some(UNIX + 60));
    assert_eq!((step, told.as_str()), (Step::Authenticated { backend: 0 }, ""));
    assert!(world.client.is_open() && !world.client.awaits_decision());
    let frame = world.encoded(compose::open);
    let open = Open::decode(&frame[HEADER_BYTES..]).expect("a good OPEN");
    assert_eq!((open.subject, open.claims), (Some("ada"), &b"c"[..]));
    let end = world.client.next_deadline(&world.settings);
    assert!(end <= START + Duration::from_secs(61), "it ends with what was accepted");
    let (step, told) = world.accept("bob", None);
    assert_eq!((step, told.as_str()), (Step::Handled, ""), "a second one is nothing");
    assert_eq!(
        (world.value(Metric::VerdictsAccepted), world.value(Metric::VerdictMicros)),
        (1, 30_000)
    );
    assert_eq!(
        (world.value(Metric::VerdictWithin25Ms), world.value(Metric::VerdictWithin100Ms)),
        (0, 1)
    );
    let mut unasked = World::new();
    assert_eq!(unasked.accept("ada", None).0, Step::Handled);
    unasked.ask("/ask", "");
    assert_eq!(unasked.accept("ada", None).0, Step::Handled, "it was never asked about");
    assert_eq!(unasked.client.stage(), Stage::Authenticating);
}

#[test]
fn a_verdict_that_contradicts_itself_is_none() {
    let mut world = World::new();
    world.ask("/ask", "Authorization: Bearer t\r\n");
    let (step, told) = world.accept("ada", Some(UNIX));
    assert_eq!(step, Step::Handled);
    assert!(told.contains("backend_unavailable") && told.contains("\"reconnect\":true"), "{told}");
    assert_eq!(world.value(Metric::VerdictsUnavailable), 1);
}

#[test]
fn deadlines_end_the_wait() {
    // path, after milliseconds, cause, metric
    let table = [
        ("/ask", 2000, Cause::BackendUnavailable, Metric::VerdictsUnavailable),
        ("/web", 1500, Cause::BackendUnavailable, Metric::VerdictsUnavailable),
    ];
    for (path, millis, cause, metric) in table {
        let mut world = World::new();
        world.ask(path, "Authorization: Bearer t\r\n");
        world.pass(millis - 1);
        world.call(|client, ctx, out| client.handle_deadline(ctx, out));
        assert!(world.client.awaits_decision(), "{path}: not yet");
        world.pass(1);
        world.call(|client, ctx, out| client.handle_deadline(ctx, out));
        assert_eq!(world.client.end().unwrap().cause, cause, "{path}");
        assert_eq!((world.value(metric), world.value(Metric::DeadlineVerdict)), (1, 1));
        assert_eq!(world.accept("ada", None).0, Step::Handled, "too late");
        assert_eq!(world.client.stage(), Stage::Refused);
    }
    let mut world = World::new();
    world.settings.deadlines.authenticate = Duration::from_millis(700);
    world.ask("/ask", "Authorization: Bearer t\r\n");
    world.pass(700);
    world.call(|client, ctx, out| client.handle_deadline(ctx, out));
    assert_eq!(world.client.end().unwrap().cause, Cause::AuthenticationTimedOut);
    assert_eq!(world.value(Metric::VerdictsTimedOut), 1);
}

#[test]
fn who_leaves_or_is_closed_meanwhile_is_not_opened() {
    type Event = fn(&mut Client, &Context<'_>, &mut Output);
    let events: [(&str, Event); 5] = [
        ("gone", |client, ctx, _| client.peer_gone(ctx)),
        ("finished", |client, ctx, _| client.peer_finished(ctx)),
        ("drained", |client, ctx, out| client.close(Cause::GoingAway, ctx, out)),
        ("dropped", |client, ctx, _| client.drop_silently(Cause::OverCapacity, ctx)),
        ("unasked", |client, ctx, out| client.unasked(Cause::BackendUnavailable, ctx, out)),
    ];
    for (name, event) in events {
        let mut world = World::new();
        world.ask("/ask", "Authorization: Bearer t\r\n");
        world.call(event);
        assert!(!world.client.awaits_decision(), "{name}");
        assert_eq!(world.accept("ada", None).0, Step::Handled, "{name}");
        world.call(|client, ctx, out| {
            client.reject(Cause::TokenExpired, &RejectHint::default(), ctx, out);
        });
        assert!(!world.client.is_open() && world.client.end().is_some(), "{name}");
        let counted = world.value(Metric::VerdictsWithdrawn) + world.value(Metric::VerdictsUnasked);
        assert_eq!(counted, 1, "{name}");
        let ends = matches!(world.client.socket_action(), SocketAction::CloseNow { .. });
        assert_eq!(ends, matches!(name, "gone" | "finished" | "dropped"), "{name}");
    }
}

#[test]
fn rejections_are_told_with_their_advice() {
    let wait = |millis| Some(Duration::from_millis(millis));
    let table = [
        (Cause::TokenExpired, None, "", r#""reason":"token_expired","reconnect":false}"#),
        (Cause::TokenExpired, wait(9), "", r#""reason":"token_expired","reconnect":false}"#),
        (Cause::RateLimited, wait(1234), "", r#""retry_after_ms":1234"#),
        (Cause::TokenForbidden, None, "not you", "not you"),
    ];
    for (cause, retry_after, message, expected) in table {
        let mut world = World::new();
        world.ask("/ask", "Authorization: Bearer t\r\n");
        let advice = RejectHint { retry_after, message };
        let ((), told) = world.call(|client, ctx, out| client.reject(cause, &advice, ctx, out));
        assert!(told.contains(expected), "{cause:?}: {told}");
        assert_eq!(world.client.stage(), Stage::Refused);
        assert_eq!(world.value(Metric::VerdictsRefused), 1);
    }
}

#[test]
fn a_reload_meanwhile_keeps_the_question_or_sends_the_client_back() {
    let table: [(&str, String, Option<Cause>); 5] = [
        ("nothing changed", BLOCKS.into(), None),
        ("another timeout", BLOCKS.replace("timeout = \"2s\"", "timeout = \"3s\""), None),
        ("another block", BLOCKS.replace("\"ask\"", "\"new\""), Some(Cause::GoingAway)),
        ("no route", BLOCKS.replace("\"/ask\"", "\"/old\""), Some(Cause::ForbiddenRoute)),
        (
            "another origin",
            BLOCKS.replace("https://a.example", "https://b.example"),
            Some(Cause::ForbiddenOrigin),
        ),
    ];
    for (name, blocks, refused) in table {
        let mut world = World::new();
        let fields = "Origin: https://a.example\r\nAuthorization: Bearer t\r\n";
        assert_eq!(world.ask("/ask", fields), Step::Ask(AuthRequest::Backend(0)), "{name}");
        world.settings = settings(&blocks);
        let (step, _) = world.accept("ada", None);
        let opened = step == Step::Authenticated { backend: 0 };
        assert_eq!(opened, refused.is_none(), "{name}");
        assert_eq!(world.client.end().map(|end| end.cause), refused, "{name}");
    }
}

#[test]
fn an_endpoints_voucher_opens_with_what_it_says() {
    let names = DecisionHeaders {
        subject: "s".into(),
        token_id: "t".into(),
        expires: "e".into(),
        issued_at: "i".into(),
        claims: "c".into(),
        reason: "r".into(),
    };
    let HttpDecision::Accepted(voucher) = judge(200, &[("s", b"ada"), ("t", b"t1")], &names) else {
        panic!("accepted")
    };
    let mut world = World::new();
    assert_eq!(world.ask("/web", "X-Key: k\r\n"), Step::Ask(AuthRequest::Http));
    let step = world.call(|client, ctx, out| client.accept(&voucher.identity(), ctx, out)).0;
    assert_eq!(step, Step::Authenticated { backend: 0 });
    let frame = world.encoded(compose::open);
    let open = Open::decode(&frame[HEADER_BYTES..]).expect("a good OPEN");
    assert_eq!((open.subject, open.token_id), (Some("ada"), Some("t1")));
}
