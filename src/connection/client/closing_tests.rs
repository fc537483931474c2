//! Closes that wait, routes with words of their own, and the handshakes of dialects.

use super::*;
use crate::connection::stage::ClosedBy;
use crate::protocol::close_detail::CloseDetail;
use crate::protocol::dialect::centrifuge::PING as CENTRIFUGE_PING;
use crate::protocol::dialect::is_silent;

const DIALECTS: &str = r#"
    [[auth]]
    name = "init"
    kind = "jwt"
    carriers = ["first-message:payload.token"]
    keys = [{ id = "k", secret = "0123456789abcdef0123456789abcdef" }]
    [[auth]]
    name = "connect"
    kind = "jwt"
    carriers = ["first-message:connect.token"]
    leeway = "0s"
    keys = [{ id = "k", secret = "0123456789abcdef0123456789abcdef" }]
    [[route]]
    path = "/phoenix/websocket"
    origins = []
    origin_absent = "allow"
    auth = "app"
    backend = "main"
    [[route]]
    path = "/phoenix/late"
    origins = []
    origin_absent = "allow"
    auth = "late"
    backend = "main"
    dialect = "phoenix"
    [[route]]
    path = "/graphql"
    origins = []
    origin_absent = "allow"
    auth = "init"
    backend = "main"
    [[route]]
    path = "/centrifuge"
    origins = []
    origin_absent = "allow"
    auth = "connect"
    backend = "main"
    dialect = "centrifuge"
    [[route]]
    path = "/own"
    origins = []
    origin_absent = "allow"
    auth = "app"
    backend = "main"
    [route.closes]
    token_expired = { code = 4999, reason = "sign in \"again\"", pace = "2s" }
    backend_unavailable = { message = false, code = 4001, retry_after = "9s" }
"#;

const PACE: Duration = Duration::from_secs(5);

fn world() -> World {
    World::with(settings(DIALECTS), false, 0)
}

/// A phoenix client whose token is over: explained, and waiting for its close frame.
fn refused() -> World {
    let mut world = world();
    let expired = bearer(&token(APP, -3600));
    world.feed(&head("/phoenix/websocket?vsn=2.0.0", &expired));
    assert_eq!(world.told, ["101", "text token_expired"]);
    world
}

fn open(path: &str) -> World {
    let mut world = world();
    world.feed(&head(path, &bearer(&token(APP, 3600))));
    assert!(world.client.is_open());
    world.told.clear();
    world
}

/// Goes to the next deadline and handles it. Returns how long that took.
fn wait(world: &mut World) -> Duration {
    let due = world.client.next_deadline(&world.settings);
    let waited = due.since(world.now.instant);
    world.pass(waited);
    world.handle_deadline();
    waited
}

fn close(world: &mut World, cause: Cause) {
    world.call(|client, ctx, output| client.close(cause, ctx, output));
}

#[test]
fn a_refusal_is_explained_at_once_and_closed_after_the_pace() {
    let mut world = refused();
    assert!(world.client.is_close_delayed() && world.client.is_unauthenticated());
    assert_eq!(world.counters.value(Metric::ClosesPaced), 1);
    let waited = wait(&mut world);
    assert!(waited >= PACE && waited <= PACE * 3 / 2, "{waited:?}");
    assert_eq!(world.told[2..], ["close 1000 token_expired"]);
    assert!(!world.client.is_close_delayed());
    assert_eq!(wait(&mut world), Duration::from_secs(1), "the linger");
    assert_eq!(
        world.summary(),
        "refused reset <- token_expired Gateway request_head 1000: 101, text token_expired, \
         close 1000 token_expired"
    );
}

#[test]
fn paces_are_spread() {
    let pace = |jitter: u32, port: u16| {
        let settings = settings(DIALECTS);
        let counters = Counters::default();
        let now = Now { instant: START, unix: UnixTime::from_seconds(UNIX) };
        let revoked = RevocationSet::new(Hasher::new(&[7; 32])).snapshot();
        let revoked = &revoked;
        let ctx = Context {
            now,
            settings: &settings,
            routes: &FIRST_ORDER,
            counters: &counters,
            jitter,
            revoked,
        };
        let peer = SocketAddr::from(([192, 0, 2, 1], port));
        let mut client = Client::new(Some(peer), 0, false, 0, &ctx);
        let mut request = head("/phoenix/websocket?vsn=2.0.0", "");
        client.receive(&mut request, usize::MAX, &ctx, &mut Output::default());
        client.next_deadline(&settings).since(START)
    };
    // Of one turn, and of many.
    let turn: Vec<_> = (1..=100).map(|port| pace(7, port)).collect();
    let turns: Vec<_> = (1..=100).map(|jitter| pace(jitter, 7)).collect();
    for paces in [turn, turns] {
        assert!(paces.iter().all(|pace| (PACE..=PACE * 3 / 2).contains(pace)));
        for quarter in 0..4 {
            let from = PACE + PACE / 8 * quarter;
            let within = paces.iter().filter(|&&pace| (from..from + PACE / 8).contains(&pace));
            let count = within.count();
            assert!((10..50).contains(&count), "{count} of 100 in quarter {quarter}");
        }
    }
}

/// A token of Ann's whose time begins `ahead` seconds from the start.
fn token_of_the_future(ahead: u64) -> String {
    let secret = Secret::new(APP.into());
    let key = JwtKey { id: Some("k".into()), algorithm: Algorithm::HS256, secret };
    let (begins, expires) = (UNIX + ahead, UNIX + 100_000);
    let claims = format!(r#"{{"sub":"ann","iat":{begins},"exp":{expires}}}"#);
    jwt::mint(&key, claims.as_bytes())
}

#[test]
fn a_token_that_is_valid_soon_is_to_be_shown_again_then() {
    let again = |ms: u64| format!(r#""reconnect":true,"retry_after_ms":{ms}"#);
    let stay = || r#""reconnect":false"#.to_owned();
    // The leeway is 10 s.
    for (path, ahead, code, said) in [
        ("/own", 11, 4401, again(1_000)),
        ("/own", 13, 4401, again(3_000)),
        ("/own", 70, 4401, again(60_000)),
        ("/own", 71, 4401, stay()),
        ("/own", 50_000, 4401, stay()),
        ("/phoenix/websocket?vsn=2.0.0", 13, 4401, again(3_000)),
        ("/phoenix/websocket?vsn=2.0.0", 71, 1000, stay()),
    ] {
        let mut world = world();
        world.feed(&head(path, &bearer(&token_of_the_future(ahead))));
        let explanation = String::from_utf8(world.output.explanation.clone()).unwrap();
        assert!(explanation.contains(&said), "{path} {ahead}: {explanation}");
        if world.client.is_close_delayed() {
            wait(&mut world);
        }
        let close = format!("close {code} token_not_yet_valid");
        assert_eq!(world.told.last(), Some(&close), "{path} {ahead}");
        let end = world.client.end().expect("refused");
        let far = (ahead > 70).then_some(CloseDetail::TokenFarOff);
        assert_eq!((end.cause, end.detail), (Cause::TokenNotYetValid, far), "{path} {ahead}");
    }
    let mut world = World::new(false);
    world.feed(&head("/first", ""));
    let mut late = token_of_the_future(13).into_bytes();
    assert!(world.told == ["101"] && !late.is_empty());
    world.feed(&frame(TEXT, &std::mem::take(&mut late)));
    assert_eq!(world.told[1..], ["text token_bad_signature", "close 4401 token_bad_signature"]);
}

fn retry_after(world: &World) -> Option<&str> {
    let (_, rest) = world.answered[0].split_once("\r\nRetry-After: ")?;
    rest.lines().next()
}

#[test]
fn an_answer_over_http_says_when_to_try_again() {
    // The leeway is 10 s.
    for (path, ahead, wait) in [
        ("/own", 11, Some("1")),
        ("/own", 13, Some("3")),
        ("/own", 70, Some("60")),
        ("/own", 71, None),
        // Programs read it: the words of a browser library's dialect do not count.
        ("/phoenix/websocket?vsn=2.0.0", 13, Some("3")),
    ] {
        let mut world = world();
        world.settings.routes.iter_mut().for_each(|route| route.refuse = Refuse::Http);
        world.feed(&head(path, &bearer(&token_of_the_future(ahead))));
        assert_eq!((world.told.last().unwrap().as_str(), retry_after(&world)), ("401", wait));
        let far = (ahead > 70).then_some(CloseDetail::TokenFarOff);
        assert_eq!(world.client.end().expect("refused").detail, far, "{path} {ahead}");
    }
    // Every other cause, from the time between head and 101.
    let mut found = Vec::new();
    for cause in Cause::ALL.iter().copied().filter(|cause| !is_silent(*cause)) {
        let mut world = world();
        world
            .call(|client, ctx, output| client.refuse_upgrade_over_http(cause.into(), ctx, output));
        if let Some(wait) = retry_after(&world) {
            found.push(format!("{} {} {wait}", world.told[0], cause.label()));
        }
    }
    let expected = [
        "401 token_not_yet_valid 1",
        "408 authentication_timed_out 1",
        "503 over_capacity 5",
        "503 rate_limited 5",
        "503 slow_consumer 5",
        "503 idle 1",
        "503 lifetime 1",
        "503 going_away 1",
        "503 backend_unavailable 2",
        "503 internal 5",
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_route_says_over_http_too_when_to_try_again() {
    for (closes, wait) in [
        ("over_capacity = { retry_after = \"31s\" }", Some("31")),
        ("over_capacity = { retry_after = \"1500ms\" }", Some("2")),
        ("over_capacity = { reconnect = false }", None),
        ("token_expired = { retry_after = \"31s\" }", Some("5")),
    ] {
        let text = DIALECTS.replace("token_expired = {", &format!("{closes}\n#"));
        let mut world = World::with(settings(&text), false, 0);
        world.settings.routes.iter_mut().for_each(|route| route.refuse = Refuse::Http);
        world.client.refuse_for_capacity();
        world.feed(&head("/own", &bearer(&token(APP, 60))));
        assert_eq!((world.told.last().unwrap().as_str(), retry_after(&world)), ("503", wait));
    }
}

/// However slowly a client comes to its refusal, it is gone when all stages together are over.
#[test]
fn nobody_unauthenticated_is_older_than_all_stages_together() {
    let bad = token(APP, 3600);
    for head_after in [0, 700, 1_900] {
        for message_after in [0, 400, 1_100, 2_500, 4_900] {
            let mut world = world();
            world.pass(Duration::from_millis(head_after));
            world.feed(&head("/phoenix/late", ""));
            world.pass(Duration::from_millis(message_after));
            world.feed(&frame(TEXT, bad.as_bytes()));
            assert_eq!(world.client.stage(), Stage::Refused);
            let mut closed = None;
            for _ in 0..4 {
                if world.over {
                    break;
                }
                wait(&mut world);
                if world.closed && closed.is_none() {
                    closed = Some(world.now.instant);
                }
            }
            assert!(world.over);
            let closed = closed.expect("a close frame");
            let age = world.now.instant.since(START);
            assert!(age <= Duration::from_millis(10_100), "{age:?}");
            // The pace was cut, not the linger after it.
            assert_eq!(world.now.instant.since(closed), Duration::from_secs(1));
        }
    }
}

#[test]
fn an_open_client_loses_its_session_at_once() {
    let mut world = open("/phoenix/websocket?vsn=2.0.0");
    close(&mut world, Cause::BackendUnavailable);
    assert!(!world.client.is_open() && world.client.is_close_delayed());
    assert!(!world.client.is_unauthenticated());
    assert_eq!(world.told, ["text backend_unavailable"]);
    world.feed(&frame(TEXT, b"is anybody there?"));
    assert!(world.data.is_empty());
    let waited = wait(&mut world);
    assert!(waited >= PACE && waited <= PACE * 3 / 2, "{waited:?}");
    assert_eq!(world.told[1..], ["close 1012 backend_unavailable"]);
    assert_eq!(wait(&mut world), Duration::from_secs(1));
    assert!(world.over);
}

/// Going away and lifetimes come once, and are spread already.
#[test]
fn what_comes_once_is_not_paced() {
    for cause in [Cause::GoingAway, Cause::Lifetime] {
        let mut world = open("/phoenix/websocket?vsn=2.0.0");
        close(&mut world, cause);
        assert!(world.closed && !world.client.is_close_delayed());
    }
}

#[test]
fn whoever_closes_first_is_answered_at_once() {
    let mut world = refused();
    world.pass(Duration::from_millis(20));
    world.feed(&frame(CLOSE, b"\x03\xe8"));
    assert_eq!(
        world.summary(),
        "refused flush <- token_expired Gateway request_head 1000: 101, text token_expired, \
         close 1000 token_expired"
    );
}

#[test]
fn a_drain_waits_for_nobodys_pace() {
    let mut world = refused();
    let soon = START + Duration::from_secs(1);
    world.call(|client, _, _| client.schedule_close(soon, Cause::GoingAway));
    assert_eq!(wait(&mut world), Duration::from_secs(1));
    assert_eq!(world.told[2..], ["close 1000 token_expired"]);

    let mut world = refused();
    close(&mut world, Cause::GoingAway);
    assert_eq!(world.told[2..], ["close 1000 token_expired"]);
    close(&mut world, Cause::GoingAway);
    assert_eq!(world.told.len(), 3, "once");
}

#[test]
fn after_a_broken_frame_nothing_is_heard_or_said_but_the_close() {
    let mut world = open("/phoenix/websocket?vsn=2.0.0");
    world.feed(b"\xff\x00\xff\x00");
    assert!(world.client.is_close_delayed());
    world.feed(&frame(CLOSE, b"\x03\xe8"));
    world.feed(b"\xff\x00\xff\x00");
    assert_eq!(world.told, [""; 0]);
    wait(&mut world);
    assert_eq!(
        world.summary(),
        "closing shutdown <- protocol_error Gateway open 1002: close 1002 protocol_error"
    );
}

/// A client that goes on too fast would come back immediately if it were dropped. It is not read
/// while it waits, so it costs nothing, and its own close is found after that.
#[test]
fn a_client_that_goes_on_too_fast_waits_all_the_same() {
    let floods: [fn() -> Vec<u8>; 3] = [
        || frame(PING, b""),
        || frame(TEXT, b"{}"),
        || frame(TEXT, br#"[null,"1","phoenix","heartbeat",{}]"#),
    ];
    for flood in floods {
        for mut world in [refused(), rate_limited()] {
            let limits = &world.settings.limits;
            let burst = limits.frames_burst.max(limits.controls_burst) as usize;
            let told = world.told.len();
            for _ in 0..2 * burst {
                world.feed(&flood());
            }
            assert!(!world.client.takes_input() && world.client.is_close_delayed());
            let answered = world.told.len() - told;
            assert!(answered <= world.settings.limits.controls_burst as usize, "{answered}");
            let code = if world.was_open { 4429 } else { 1000 };
            wait(&mut world);
            assert!(world.told.last().unwrap().starts_with(&format!("close {code}")));
            assert!(world.client.takes_input() && !world.over);
            world.feed(&[flood(), frame(CLOSE, b"\x03\xe8")].concat());
            assert_eq!(world.client.socket_action(), SocketAction::CloseWhenFlushed);
        }
    }
}

/// An open phoenix client that sent too many frames.
fn rate_limited() -> World {
    let mut world = open("/phoenix/websocket?vsn=2.0.0");
    while world.client.is_open() {
        world.feed(&frame(TEXT, b"{}"));
    }
    assert_eq!(world.client.end().unwrap().cause, Cause::RateLimited);
    assert!(world.client.is_close_delayed());
    world
}

/// phoenix.js goes over to long polling when its heartbeat is not answered in time.
#[test]
fn liveness_is_answered_while_a_close_waits() {
    let heartbeat = br#"[null,"7","phoenix","heartbeat",{}]"#;
    let reply = r#"[null,"7","phoenix","phx_reply",{"status":"ok","response":{}}]"#;
    let reply: serde_json::Value = serde_json::from_str(reply).unwrap();
    let reply = format!("text {reply}");
    let mut world = refused();
    // In pieces, and between other messages.
    let bytes = [frame(TEXT, b"[]"), frame(TEXT, heartbeat), frame(TEXT, b"{}")].concat();
    for byte in &bytes {
        world.feed(&[*byte]);
    }
    assert_eq!(world.told[2..], [&*reply]);
    world.feed(&[frame(0x01, &heartbeat[..9]), frame(0x80, &heartbeat[9..])].concat());
    world.feed(&frame(PING, b"a"));
    assert_eq!(world.told[3..], [&*reply, "pong a"]);
    let waited = wait(&mut world);
    assert!(waited >= PACE, "{waited:?}");
    assert_eq!(world.told[5..], ["close 1000 token_expired"]);
    world.feed(&frame(TEXT, heartbeat));
    assert_eq!(world.told.len(), 6, "nothing follows the close");

    // A message that was cut short cannot be followed by another.
    let mut world = open("/phoenix/websocket?vsn=2.0.0");
    world.call(|client, _, _| client.data_header(DataKind::Text, true, false, 5));
    close(&mut world, Cause::BackendUnavailable);
    world.feed(&frame(TEXT, heartbeat));
    assert_eq!(world.told, [""; 0]);

    // What began before the delay, is too long, or binary is no check of liveness.
    let mut world = open("/phoenix/websocket?vsn=2.0.0");
    world.feed(&frame(0x01, &heartbeat[..9]));
    close(&mut world, Cause::BackendUnavailable);
    world.feed(&[frame(0x80, &heartbeat[9..]), frame(TEXT, &[b' '; 300])].concat());
    assert_eq!(world.told.len(), 1);
}

#[test]
fn a_client_that_does_not_read_is_not_waited_for_twice() {
    let mut world = open("/phoenix/websocket?vsn=2.0.0");
    world.flushes = false;
    world.settings.deadlines.write_stall = Duration::from_secs(2);
    close(&mut world, Cause::BackendUnavailable);
    assert_eq!(wait(&mut world), Duration::from_secs(2));
    assert_eq!(world.told, ["text backend_unavailable"]);
    assert!(world.over);
}

#[test]
fn a_route_has_words_of_its_own() {
    let mut world = world();
    world.feed(&head("/own", &bearer(&token(APP, -3600))));
    assert_eq!(world.told, ["101", r#"text sign in \"again\"#]);
    let waited = wait(&mut world);
    assert!(waited >= Duration::from_secs(2) && waited <= Duration::from_secs(3));
    assert_eq!(world.told[2..], [r#"close 4999 sign in "again""#]);

    let mut world = open("/own");
    close(&mut world, Cause::BackendUnavailable);
    assert_eq!(world.told, ["close 4001 backend_unavailable"]);
}

/// Words are looked up when they are said, for the route as it is then.
#[test]
fn a_reload_changes_what_is_said() {
    let mut world = open("/own");
    world.settings = settings(&DIALECTS.replace("4001", "4002"));
    close(&mut world, Cause::BackendUnavailable);
    assert_eq!(world.told, ["close 4002 backend_unavailable"]);

    let moved = format!(
        "[[route]]\npath = \"/new\"\norigins = []\norigin_absent = \"allow\"\nauth = \"app\"\n\
         backend = \"main\"\n{DIALECTS}"
    );
    let mut world = open("/own");
    world.settings = settings(&moved);
    world.routes = world.routes.changed((1..9).map(Some).collect());
    close(&mut world, Cause::BackendUnavailable);
    assert_eq!(world.told, ["close 4001 backend_unavailable"]);

    let mut world = open("/own");
    world.routes = world.routes.changed(Vec::new());
    assert_eq!(world.client.route(&world.routes), None);
    close(&mut world, Cause::BackendUnavailable);
    assert_eq!(world.told, ["text backend_unavailable", "close 1012 backend_unavailable"]);
}

#[test]
fn a_reload_changes_what_a_waiting_close_says() {
    let mut world = world();
    world.feed(&head("/own", &bearer(&token(APP, -3600))));
    world.settings = settings(&DIALECTS.replace("4999", "4998"));
    let due = world.client.next_deadline(&world.settings);
    world.pass(due.since(START));
    // The end has the code that went out; `check` would not have it change.
    world.end = None;
    let ctx = Context {
        now: world.now,
        settings: &world.settings,
        routes: &world.routes,
        counters: &world.counters,
        jitter: 0,
        revoked: &world.revoked,
    };
    world.client.handle_deadline(&ctx, &mut world.output);
    world.listen();
    assert_eq!(world.told[2..], [r#"close 4998 sign in "again""#]);
    assert_eq!(world.client.end().and_then(|end| end.code), Some(4998));
}

#[test]
fn shorter_deadlines_cut_a_pace() {
    let mut world = refused();
    world.settings.deadlines.tls_handshake = Duration::from_millis(500);
    world.settings.deadlines.request_head = Duration::from_millis(500);
    world.settings.deadlines.authenticate = Duration::from_millis(500);
    assert_eq!(wait(&mut world), Duration::from_millis(1600));
    assert_eq!(world.told[2..], ["close 1000 token_expired"]);
    wait(&mut world);
    assert!(world.over);
}

fn offers(name: &str) -> String {
    format!("Sec-WebSocket-Protocol: {name}\r\n")
}

/// A client of graphql-transport-ws that said this first.
fn graphql(first: &str) -> World {
    let mut world = world();
    world.feed(&head("/graphql", &offers("graphql-transport-ws")));
    world.feed(&frame(TEXT, first.as_bytes()));
    world
}

#[test]
fn connection_init_is_acknowledged_once_there_is_a_session() {
    let init =
        format!(r#"{{"type":"connection_init","payload":{{"token":"{}"}}}}"#, token(APP, 3600));
    let world = graphql(&init);
    assert!(world.client.is_open());
    assert_eq!(world.told, ["101"], "not before");
    assert_eq!(world.output.connect_ack, b"\x81\x19{\"type\":\"connection_ack\"}");
    assert!(world.output.rest.is_empty());
}

#[test]
fn what_is_no_init_gets_the_protocols_codes() {
    let init =
        |token: &str| format!(r#"{{"type":"connection_init","payload":{{"token":"{token}"}}}}"#);
    let table = [
        (init(&token(APP, -3600)), "close 4403 token_expired"),
        (init(&token(LATE, 3600)), "close 4401 token_bad_signature"),
        (init("x"), "close 4400 token_malformed"),
        (r#"{"type":"connection_init"}"#.into(), "close 4401 token_missing"),
        (r#"{"type":"subscribe","id":"1"}"#.into(), "close 4401 token_missing"),
        ("hello".into(), "close 4400 token_malformed"),
        (String::new(), "close 4400 token_malformed"),
    ];
    for (first, expected) in table {
        let world = graphql(&first);
        assert_eq!(world.told, ["101", expected], "{first}");
    }
    let mut world = world();
    world.feed(&head("/graphql", &offers("graphql-transport-ws")));
    assert_eq!(wait(&mut world), Duration::from_secs(5));
    assert_eq!(world.told, ["101", "close 4408 authentication_timed_out"]);
}

/// The protocol lets either side ping at any time.
#[test]
fn liveness_checks_before_the_first_message_are_answered_and_bounded() {
    const PING: &[u8] = br#"{"type":"ping","payload":{"n":1}}"#;
    const PONG: &[u8] = br#"{"type":"pong"}"#;
    let init =
        format!(r#"{{"type":"connection_init","payload":{{"token":"{}"}}}}"#, token(APP, 3600));
    let mut world = graphql(r#"{"type":"ping"}"#);
    assert_eq!(world.told, ["101", "text pong"]);
    world.feed(&frame(TEXT, PONG));
    world.feed(&frame(TEXT, PING));
    assert_eq!(world.told[2..], ["text pong"]);
    world.feed(&frame(TEXT, init.as_bytes()));
    assert!(world.client.is_open());
    // An open client's are between it and the backend.
    world.feed(&frame(TEXT, PING));
    assert_eq!((world.data.len(), world.told.len()), (1, 3));

    // They do not put the deadline off.
    let mut world = graphql(r#"{"type":"ping"}"#);
    world.pass(Duration::from_millis(4_999));
    world.feed(&frame(TEXT, PING));
    assert_eq!(wait(&mut world), Duration::from_millis(1));
    assert_eq!(world.told.last().unwrap(), "close 4408 authentication_timed_out");
    // They cost control frames, pongs too.
    for check in [PING, PONG] {
        let mut world = graphql(r#"{"type":"ping"}"#);
        for _ in 1..60 {
            world.feed(&frame(TEXT, check));
        }
        assert_eq!(world.client.stage(), Stage::Authenticating);
        world.feed(&frame(TEXT, check));
        assert_eq!(world.told.last().unwrap(), "close 1013 rate_limited");
    }
    // The other dialects' own; binary and longer ones are first messages like any other.
    let mut phoenix = World::with(settings(DIALECTS), false, 0);
    phoenix.feed(&head("/phoenix/late", ""));
    phoenix.feed(&frame(TEXT, br#"[null,"1","phoenix","heartbeat",{}]"#));
    phoenix.feed(&frame(TEXT, token(LATE, 3600).as_bytes()));
    assert!(phoenix.client.is_open());
    let mut world = graphql(&format!(r#"{{"type":"ping","payload":"{}"}}"#, "x".repeat(256)));
    assert_eq!(world.told.pop().unwrap(), "close 4401 token_missing");
    let mut world = World::with(settings(DIALECTS), false, 0);
    world.feed(&head("/graphql", &offers("graphql-transport-ws")));
    world.feed(&frame(0x82, br#"{"type":"ping"}"#));
    assert_eq!(world.told.pop().unwrap(), "close 4401 token_missing");
}

/// However it is written and cut, its token does not come out.
#[test]
fn a_second_handshake_ends_the_connection() {
    let token = token(APP, 3600);
    let init = format!(r#"{{"type":"connection_init","payload":{{"token":"{token}"}}}}"#);
    let swapped = format!(r#"{{"payload":{{"token":"{token}"}}, "type":"connection_init"}}"#);
    let second = connect(&token);
    let behind = format!("{{\"send\":{{}}}}\n{second}");
    let init_refused = "close 4429 Too many initialisation requests";
    let connect_refused = "close 3501 handshake_repeated";
    for (open, message, cut, expected) in [
        (graphql(&init), &init, usize::MAX, init_refused),
        (graphql(&init), &swapped, usize::MAX, init_refused),
        (graphql(&init), &init, 1, init_refused),
        (graphql(&init), &init, 30, init_refused),
        (centrifuge(&second), &second, usize::MAX, connect_refused),
        (centrifuge(&second), &behind, usize::MAX, connect_refused),
        (centrifuge(&second), &second, 1, connect_refused),
    ] {
        let mut world = open;
        assert!(world.client.is_open());
        world.told.clear();
        let bytes = frame(TEXT, message.as_bytes());
        for piece in bytes.chunks(cut.min(bytes.len())) {
            if world.client.is_open() {
                world.feed(piece);
            }
        }
        assert_eq!(world.told, [expected], "{message} by {cut}");
        let end = world.client.end().expect("closed");
        assert_eq!((end.cause, end.by), (Cause::HandshakeRepeated, ClosedBy::Gateway));
        let sent: Vec<u8> = world.data.iter().flat_map(|(.., bytes)| bytes.clone()).collect();
        let sent = String::from_utf8(sent).unwrap();
        assert!(!sent.contains(&token[..8]), "{message} by {cut}: {sent}");
    }
    // All else goes on, whatever it holds.
    let mut world = graphql(&init);
    world.feed(&frame(
        TEXT,
        br#"{"id":"1","type":"subscribe","payload":{"query":"{connection_init}"}}"#,
    ));
    for byte in frame(TEXT, br#"{"type":"connection_in","x":"connection_init"}"#) {
        world.feed(&[byte]);
    }
    world.feed(&frame(0x82, init.as_bytes()));
    assert!(world.client.is_open());
    // Where the dialect's handshake was not the gateway's, it is the backend's.
    let mut world = world_of_no_dialect(&token);
    world.feed(&frame(TEXT, init.as_bytes()));
    assert!(world.client.is_open() && !world.data.is_empty());
}

/// A client whose token came in plain JSON.
fn world_of_no_dialect(token: &str) -> World {
    let mut world = world();
    world.feed(&head("/graphql", ""));
    world.feed(&frame(TEXT, format!(r#"{{"payload":{{"token":"{token}"}}}}"#).as_bytes()));
    assert!(world.client.is_open());
    world
}

/// The same carrier without the subprotocol: any JSON will do, and there is no acknowledgement.
#[test]
fn the_handshake_is_the_dialects() {
    let mut world = world();
    world.feed(&head("/graphql", ""));
    world
        .feed(&frame(TEXT, format!(r#"{{"payload":{{"token":"{}"}}}}"#, token(APP, 9)).as_bytes()));
    assert!(world.client.is_open() && world.output.connect_ack.is_empty());
}

fn connect(token: &str) -> String {
    format!(r#"{{"connect":{{"token":"{token}","name":"js"}},"id":1}}"#)
}

fn centrifuge(first: &str) -> World {
    let mut world = world();
    world.feed(&head("/centrifuge", ""));
    world.feed(&frame(TEXT, first.as_bytes()));
    world
}

#[test]
fn connect_is_answered_and_the_rest_is_the_backends() {
    let rest = "{\"subscribe\":{\"channel\":\"news\"},\"id\":2}";
    let world = centrifuge(&format!("{}\n{rest}", connect(&token(APP, 3600))));
    assert!(world.client.is_open());
    let connect_ack = &world.output.connect_ack;
    let reply: serde_json::Value = serde_json::from_slice(&connect_ack[2..]).unwrap();
    assert_eq!(reply["id"], 1);
    let connect = &reply["connect"];
    assert_eq!(connect["ping"], 25);
    assert_eq!((&connect["expires"], &connect["ttl"]), (&true.into(), &3570.into()));
    assert_eq!(connect["client"].as_str().map(str::len), Some(32));

    // What is left over reads as a frame of the client's own.
    let mut bytes = world.output.rest.clone();
    let mut world = world;
    let ctx = Context {
        now: world.now,
        settings: &world.settings,
        routes: &world.routes,
        counters: &world.counters,
        jitter: 0,
        revoked: &world.revoked,
    };
    let mut output = Output::default();
    let (used, step) = world.client.receive(&mut bytes, usize::MAX, &ctx, &mut output);
    let Step::Data { range, kind: DataKind::Text, first: true, last: true } = step else {
        panic!("{step:?}")
    };
    assert_eq!((&bytes[range], used), (rest.as_bytes(), bytes.len()));
}

#[test]
fn an_expired_token_is_error_109_and_others_are_codes() {
    let mut world = centrifuge(&connect(&token(APP, -1)));
    assert_eq!(world.told, ["101", "text 109"]);
    let waited = wait(&mut world);
    assert!(waited >= Duration::from_secs(1) && waited <= Duration::from_millis(1500));
    assert_eq!(world.told[2..], ["close 3005 token_expired"]);
    let table = [
        (connect(&token(LATE, 3600)), "close 3500 token_bad_signature"),
        (connect(""), "close 3500 token_missing"),
        (r#"{"connect":{},"id":1}"#.into(), "close 3500 token_missing"),
        (r#"{"subscribe":{},"id":1}"#.into(), "close 3500 token_malformed"),
        ("\u{8}\u{1}".into(), "close 3500 token_malformed"),
    ];
    for (first, expected) in table {
        assert_eq!(centrifuge(&first).told, ["101", expected], "{first}");
    }
}

/// centrifuge-js counts from what it hears, and WebSocket pings do not reach it.
#[test]
fn promised_pings_come_also_to_a_client_that_talks() {
    let mut world = centrifuge(&connect(&token(APP, 3600)));
    world.told.clear();
    let text = format!("text {CENTRIFUGE_PING}");
    for _ in 0..3 {
        for _ in 0..24 {
            world.pass(Duration::from_secs(1));
            world.feed(&frame(TEXT, b"{\"send\":{}}"));
            world.handle_deadline();
        }
        assert_eq!(world.told, [""; 0], "not yet");
        wait(&mut world);
        assert_eq!(world.told, [text.as_str()]);
        world.told.clear();
    }
    // To a silent one both come.
    wait(&mut world);
    wait(&mut world);
    assert_eq!(world.told.iter().filter(|told| **told == "ping").count(), 1);
    // Not between the pieces of a message.
    world.told.clear();
    world.feed(&frame(TEXT, b"{}"));
    world.call(|client, _, _| client.data_header(DataKind::Text, true, false, 5));
    wait(&mut world);
    assert_eq!(world.told, ["ping"]);
}

/// The ways of an end, beyond those that [`STAGES`] name.
const ENDINGS: [&str; 6] = [
    "refused, delayed",
    "was open, delayed",
    "delayed, unread",
    "close frame sent",
    "answered over HTTP",
    "FIN sent",
];

fn ending(name: &str) -> World {
    let mut world = match name {
        "refused, delayed" => refused(),
        "was open, delayed" => {
            let mut world = open("/phoenix/websocket?vsn=2.0.0");
            close(&mut world, Cause::BackendUnavailable);
            world
        }
        "delayed, unread" => {
            let mut world = rate_limited();
            world.feed(&frame(TEXT, b"{}"));
            assert!(!world.client.takes_input());
            world
        }
        "close frame sent" => {
            let mut world = ending("was open, delayed");
            wait(&mut world);
            world
        }
        "answered over HTTP" | "FIN sent" => {
            let mut world = World::with(settings(DIALECTS), false, 0);
            world.feed(&head("/nowhere", ""));
            if name == "FIN sent" {
                world.call(|client, _, _| client.shut_down());
            }
            world
        }
        _ => unreachable!("not in the list"),
    };
    world.told.clear();
    world
}

type Happening = fn(&mut World);

/// What happens, and what comes of it in each of [`ENDINGS`]: what is done with the socket (with
/// `delayed` or `unread` while a close frame waits), and what the gateway sends.
const ENDED: [(&str, Happening, [&str; 6]); 14] = [
    (
        "text",
        |world| world.feed(&frame(TEXT, b"[]")),
        ["delayed", "delayed", "unread", "linger", "shutdown", "await"],
    ),
    (
        "heartbeat",
        |world| world.feed(&frame(TEXT, br#"[null,"7","phoenix","heartbeat",{}]"#)),
        [
            "delayed: text [null,\"7\",\"phoenix\",\"phx_reply\",{\"response\":{},\"status\":\"ok\"}]",
            "delayed: text [null,\"7\",\"phoenix\",\"phx_reply\",{\"response\":{},\"status\":\"ok\"}]",
            "unread",
            "linger",
            "shutdown",
            "await",
        ],
    ),
    (
        "ping",
        |world| world.feed(&frame(PING, b"a")),
        ["delayed: pong a", "delayed: pong a", "unread", "linger", "shutdown", "await"],
    ),
    (
        "close frame",
        |world| world.feed(&frame(CLOSE, b"\x03\xe8")),
        [
            "flush: close 1000 token_expired",
            "flush: close 1012 backend_unavailable",
            "flush: close 4429 rate_limited",
            "flush",
            "shutdown",
            "await",
        ],
    ),
    (
        "broken frame",
        |world| world.feed(b"\xff\x00\xff\x00"),
        ["unread", "unread", "unread", "flush", "shutdown", "await"],
    ),
    ("FIN, all sent", |world| world.happen(Event::PeerFinished), ["gone"; 6]),
    (
        "FIN, output waits",
        |world| {
            world.call(|client, ctx, _| client.output_queued(ctx));
            world.happen(Event::PeerFinished);
        },
        ["flush"; 6],
    ),
    ("reset", |world| world.happen(Event::PeerGone), ["gone"; 6]),
    ("TLS failure", |world| world.happen(Event::TlsFailed), ["shutdown"; 6]),
    (
        "deadline",
        |world| world.happen(Event::DeadlineExact),
        [
            "linger: close 1000 token_expired",
            "linger: close 1012 backend_unavailable",
            "linger: close 4429 rate_limited",
            "reset",
            "reset",
            "reset",
        ],
    ),
    (
        "close by backend",
        |world| world.happen(Event::CloseByBackend),
        ["delayed", "delayed", "unread", "linger", "shutdown", "await"],
    ),
    (
        "revocation",
        |world| close(world, Cause::TokenRevoked),
        [
            "linger: close 1000 token_expired",
            "linger: close 1012 backend_unavailable",
            "linger: close 4429 rate_limited",
            "linger",
            "shutdown",
            "await",
        ],
    ),
    (
        "drain",
        |world| world.happen(Event::ScheduleClose),
        [
            "linger: close 1000 token_expired",
            "linger: close 1012 backend_unavailable",
            "linger: close 4429 rate_limited",
            "linger",
            "shutdown",
            "await",
        ],
    ),
    (
        "decision, route gone, output sent",
        |world| {
            world.routes = world.routes.changed(Vec::new());
            world.call(|client, ctx, output| {
                client.reject(Cause::TokenExpired, &RejectHint::default(), ctx, output);
            });
            world.happen(Event::OutputSent);
        },
        ["delayed", "delayed", "unread", "linger", "shutdown", "await"],
    ),
];

/// The cell of a table for what can be seen of a client that has ended.
fn cell(world: &World) -> String {
    let action = match world.client.socket_action() {
        SocketAction::Stay if !world.client.takes_input() => "unread",
        SocketAction::Stay if world.client.is_close_delayed() => "delayed",
        SocketAction::Stay => "linger",
        SocketAction::ShutdownWhenFlushed => "shutdown",
        SocketAction::AwaitEnd => "await",
        SocketAction::CloseWhenFlushed => "flush",
        SocketAction::CloseNow { reset: true } => "reset",
        SocketAction::CloseNow { reset: false } => "gone",
    };
    let told = world.told.join(", ");
    if told.is_empty() { action.to_owned() } else { format!("{action}: {told}") }
}

#[test]
fn every_event_in_every_ending() {
    for (event, happen, expected) in ENDED {
        for (name, expected) in ENDINGS.into_iter().zip(expected) {
            let mut world = ending(name);
            let (end, stage) = (world.client.end().unwrap(), world.client.stage());
            happen(&mut world);
            assert_eq!(cell(&world), expected, "{event} in {name}");
            let now = world.client.end().unwrap();
            assert_eq!((now.cause, now.by, now.stage), (end.cause, end.by, end.stage), "{event}");
            assert_eq!(world.client.stage(), stage, "{event} in {name}");
        }
    }
}
