//! Backends that come, go, choose, stall and lie.

use std::time::{Duration, Instant};

use portcullis::backend::{EndedBy, Limits};
use portcullis::base::secret::Secret;
use portcullis::protocol::link::{
    Close, Kind, RefusalCode, Refused, SessionId, UNKNOWN_SESSION_FRAMES_MAX, data_cost, data_flags,
};

use crate::support::{
    Backend, Choices, Client, Config, End, Gateway, Opcode, RawBackend, RawLink, assert_took,
    free_port, wait_until,
};

pub const UNAVAILABLE: &str = concat!(
    r#"{"type":"close","code":1012,"reason":"backend_unavailable","#,
    r#""reconnect":true,"retry_after_ms":2000}"#,
);
const KEY: &str = "a link secret of 32 bytes or more";

fn expect_unavailable(client: &mut Client) {
    client.expect_explained(UNAVAILABLE, 1012, "backend_unavailable");
}

fn with_secret(secret: &'static str) -> Choices {
    Choices { secret: Some(secret), ..Choices::default() }
}

#[test]
fn an_absent_backend_is_explained_and_comes_back_by_itself() {
    let address = format!("127.0.0.1:{}", free_port());
    let gateway = Gateway::start_alone(&Config::to(&address));
    let mut client = Client::open(gateway.address(), "/ws", "");
    expect_unavailable(&mut client);
    assert_eq!(gateway.get("/readyz").0, 200, "clients can still be told");
    let backend = Backend::start_at(&address, Choices::default());
    gateway.wait_ready(1);
    Client::open(gateway.address(), "/ws", "").echo("hello");
    backend.opened();
    gateway.wait_closes("backend_unavailable", 1);
}

#[test]
fn a_gateway_without_a_backend_is_not_ready_where_the_settings_say_so() {
    let address = format!("127.0.0.1:{}", free_port());
    let mut config = Config::to(&address).ports(free_port(), free_port());
    config.gateway += "ready_without_backend = false\n";
    let gateway = Gateway::start_from(&config, tempfile::tempdir().expect("a folder"));
    assert_eq!(gateway.get("/readyz"), (503, "no backend is linked\n".into()));
    assert_eq!(gateway.get("/healthz").0, 200);
    let backend = Backend::start_at(&address, Choices::default());
    wait_until("it is ready", || gateway.get("/readyz").0 == 200);
    drop(backend);
    wait_until("it is not", || gateway.get("/readyz").0 == 503);
    config.gateway = config.gateway.replace("backend = false", "backend = true");
    assert!(gateway.reload(&config).is_ok());
    wait_until("a reload changes it", || gateway.get("/readyz").0 == 200);
}

#[test]
fn clients_of_a_killed_backend_are_told_one_after_the_other() {
    let address = format!("127.0.0.1:{}", free_port());
    let backend = Backend::start_at(&address, Choices::default());
    let gateway = Gateway::start(&Config::to(&address));
    let mut clients: Vec<Client> =
        (0..40).map(|_| Client::open(gateway.address(), "/ws", "")).collect();
    clients.iter_mut().for_each(|client| client.echo("hello"));
    let begun = Instant::now();
    drop(backend);
    let waiting: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                client.expect(Opcode::Text, UNAVAILABLE.as_bytes());
                let at = begun.elapsed();
                assert_eq!(client.close_frame(), (Some(1012), "backend_unavailable".into()));
                client.close(1012, "");
                assert_eq!(client.end(), End::Fin);
                at
            })
        })
        .collect();
    let times: Vec<Duration> = waiting.into_iter().map(|t| t.join().expect("told")).collect();
    let (first, last) = (times.iter().min().expect("40"), times.iter().max().expect("40"));
    assert!(*last - *first > Duration::from_millis(400), "told together: {times:?}");
    assert!(*last < Duration::from_millis(2500), "{last:?}");
    gateway.wait_closes("backend_unavailable", 40);
    // It comes back, and so do sessions.
    let _backend = Backend::start_at(&address, Choices::default());
    wait_until("sessions work again", || {
        let mut client = Client::open(gateway.address(), "/ws", "");
        client.text("hello");
        client.frame().is_some_and(|frame| frame.payload == b"hello")
    });
}

#[test]
fn backends_get_the_names_of_routes_and_a_reload_moves_none() {
    let backend = Backend::start();
    let config = Config::bare(backend.address())
        .route("/ws/*", "auth = \"none\"")
        .route("/old", "auth = \"none\"\nname = \"chat\"")
        .ports(free_port(), free_port());
    let gateway = Gateway::start_from(&config, tempfile::tempdir().expect("a folder"));
    gateway.wait_ready(1);
    let opened = |path: &str| {
        let mut client = Client::open(gateway.address(), path, "");
        client.echo("hello");
        let identity = backend.opened();
        (identity.route, identity.route_name)
    };
    assert_eq!(opened("/ws/1"), (0, "/ws/*".into()));
    assert_eq!(opened("/old"), (1, "chat".into()));
    let moved = Config { routes: String::new(), ..config }
        .route("/new", "auth = \"none\"\nname = \"chat\"")
        .route("/ws/*", "auth = \"none\"");
    assert!(gateway.reload(&moved).is_ok());
    wait_until("the new route is there", || {
        Client::ask(gateway.address(), "/new", "").1.starts_with("HTTP/1.1 101 ")
    });
    backend.opened();
    assert_eq!(opened("/new"), (0, "chat".into()));
}

#[test]
fn both_sides_need_the_same_secret() {
    let other = "another secret, also of 32 bytes or more";
    for (backends, gateways, works) in [
        (None, None, true),
        (Some(KEY), Some(KEY), true),
        (Some(KEY), Some(other), false),
        (Some(KEY), None, false),
        (None, Some(KEY), false),
    ] {
        let choices = Choices { secret: backends, ..Choices::default() };
        let backend = Backend::start_at("127.0.0.1:0", choices);
        let more = gateways.map_or(String::new(), |key| format!("secret = \"{key}\""));
        let config = Config::default().backend(&[backend.address()], &more);
        let gateway = Gateway::start_alone(&config);
        if works {
            gateway.wait_ready(1);
            Client::open(gateway.address(), "/ws", "").echo("hello");
        } else {
            gateway.wait_metric("portcullis_link_failures_total", |count| count >= 2);
            assert_eq!(gateway.metric("portcullis_link_connects_total"), 0);
            expect_unavailable(&mut Client::open(gateway.address(), "/ws", ""));
            assert!(backend.seen().is_empty());
        }
    }
}

#[test]
fn a_backend_without_the_key_gets_no_proof_of_ours() {
    let backend = RawBackend::listen();
    let config = Config::default().backend(&[&backend.address()], &format!("secret = \"{KEY}\""));
    let gateway = Gateway::start_alone(&config);
    let wrong = Secret::new(b"guessed, but as long as it has to be".to_vec());
    for (proof, code) in
        [(None, RefusalCode::AuthenticationRequired), (Some(&wrong), RefusalCode::WrongKey)]
    {
        let mut link = backend.accept_silent();
        assert_eq!(link.read().expect("HELLO").0.kind, Kind::Hello);
        link.challenge(Limits::default(), proof);
        let (header, payload) = link.read().expect("REFUSED");
        assert_eq!(header.kind, Kind::Refused);
        assert_eq!(Refused::decode(&payload), Ok(Refused::new(code)));
        assert!(link.is_dropped(), "the link goes on");
    }
    assert_eq!(gateway.metric("portcullis_link_connects_total"), 0);
}

#[test]
fn sessions_go_to_the_endpoint_with_the_fewest() {
    let (a, b) = (Backend::start(), Backend::start());
    let config =
        Config::default().backend(&[a.address(), b.address()], "balance = \"least-sessions\"");
    let gateway = Gateway::start_alone(&config);
    gateway.wait_ready(2);
    let open = || {
        let mut client = Client::open(gateway.address(), "/ws", "");
        client.echo("hello");
        let (of_a, of_b) = (a.opens(), b.opens());
        assert_eq!(of_a + of_b, 1);
        (client, of_a == 1)
    };
    let (ours, theirs): (Vec<_>, Vec<_>) = (0..6).map(|_| open()).partition(|(_, at_a)| *at_a);
    assert_eq!((ours.len(), theirs.len()), (3, 3));
    drop(ours);
    (0..3).for_each(|_| assert_eq!(a.ended().by, EndedBy::Client));
    let next: Vec<_> = (0..3).map(|_| open()).collect();
    assert!(next.iter().all(|(_, at_a)| *at_a), "a had none, b three");
}

#[test]
fn sessions_go_around_and_past_a_dead_endpoint() {
    let (a, b) = (Backend::start(), Backend::start());
    let config =
        Config::default().backend(&[a.address(), b.address()], "balance = \"round-robin\"");
    let gateway = Gateway::start_alone(&config);
    gateway.wait_ready(2);
    let open = || {
        let mut client = Client::open(gateway.address(), "/ws", "");
        client.echo("hello");
        drop(client);
        (a.opens(), b.opens())
    };
    let first = open();
    for turn in 1..6 {
        let expected = if turn % 2 == 0 { first } else { (first.1, first.0) };
        assert_eq!(open(), expected, "turn {turn}");
    }
    drop(b);
    gateway.wait_metric("portcullis_links{state=\"down\"}", |down| down == 1);
    for _ in 0..4 {
        let mut client = Client::open(gateway.address(), "/ws", "");
        client.echo("hello");
    }
    assert_eq!(a.opens(), 4);
}

#[test]
fn a_unix_socket_carries_a_link_as_well() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let address = format!("unix:{}", folder.path().join("link.sock").display());
    let backend = Backend::start_at(&address, with_secret(KEY));
    let config = Config::default().backend(&[&address], &format!("secret = \"{KEY}\""));
    let gateway = Gateway::start(&config);
    let mut client = Client::open(gateway.address(), "/ws", "");
    client.echo("hello");
    client.send(true, Opcode::Binary, &[5; 300_000]);
    assert!(client.message() == (Opcode::Binary, vec![5; 300_000]));
    assert_eq!(backend.opened().remote, client.tcp().local_addr().ok());
}

#[test]
fn a_backend_closes_with_its_own_code_and_reason() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()));
    let long = "r".repeat(130);
    for (code, reason, told) in [
        (1000, "done", (1000, "done")),
        (1001, "", (1001, "")),
        (1011, "trouble \u{2620}", (1011, "trouble \u{2620}")),
        (3000, "x", (3000, "x")),
        (4999, long.as_str(), (4999, &long[..123])),
        // Codes that must not be sent.
        (1005, "no code", (1000, "no code")),
        (1006, "gone", (1000, "gone")),
        (0, "none", (1000, "none")),
    ] {
        let mut client = Client::open(gateway.address(), "/ws", "");
        client.text("flood 3 10");
        client.text(&format!("close {code} {reason}"));
        // Everything that was sent before comes before.
        for _ in 0..3 {
            client.expect(Opcode::Binary, &[b'f'; 10]);
        }
        assert_eq!(client.close_frame(), (Some(told.0), told.1.to_owned()), "{code}");
        client.close(told.0, "");
        assert_eq!(client.end(), End::Fin);
    }
    gateway.wait_closes("backend_closed", 8);
}

/// A gateway with a link played by hand, and one client with a session on it.
fn by_hand(backend: &RawBackend, config: Config) -> (Gateway, RawLink, Client, SessionId) {
    let gateway = Gateway::start_alone(&config);
    let mut link = backend.accept();
    let client = Client::open(gateway.address(), "/ws", "");
    let (session, _) = link.expect(Kind::Open);
    (gateway, link, client, session)
}

#[test]
fn a_backend_that_gives_no_credit_withholds_reads_and_loses_nothing() {
    let mut backend = RawBackend::listen();
    backend.limits.session_window = 8 * 1024;
    let config = Config::to(&backend.address())
        .limits("frames_per_second = 1_000_000\nframes_burst = 1_000_000");
    let (gateway, mut link, mut client, session) = by_hand(&backend, config);
    // 20 MB: more than all buffers on the way hold.
    let writer = std::thread::spawn(move || {
        for number in 0..20_000_u32 {
            let mut payload = vec![number as u8; 1000];
            payload[..4].copy_from_slice(&number.to_be_bytes());
            client.send(true, Opcode::Binary, &payload);
        }
        client
    });
    gateway.wait_metric("portcullis_reads_paused", |paused| paused == 1);
    std::thread::sleep(Duration::from_millis(100));
    assert!(!writer.is_finished(), "somebody buffers 20 MB");
    // One that talks little is not disturbed.
    let mut other = Client::open(gateway.address(), "/ws", "");
    other.text("hi");
    let (mut message, mut next, mut unpaid) = (Vec::new(), 0_u32, 0_u32);
    while next < 20_000 {
        let (header, payload) = link.next().expect("a frame");
        if header.kind != Kind::Data || header.session != session {
            continue;
        }
        message.extend_from_slice(&payload);
        unpaid += data_cost(payload.len());
        if unpaid > 4096 {
            link.credit(session, unpaid);
            link.credit(SessionId::LINK, unpaid);
            unpaid = 0;
        }
        if header.flags & data_flags::FIN != 0 {
            assert_eq!(message.len(), 1000, "message {next}");
            assert_eq!(message[..4], next.to_be_bytes());
            message.clear();
            next += 1;
        }
    }
    link.text(session, "all there");
    let mut client = writer.join().expect("everything was written");
    client.expect(Opcode::Text, b"all there");
    gateway.wait_metric("portcullis_reads_paused", |paused| paused == 0);
}

#[test]
fn a_backend_that_leaves_lets_sessions_end_and_gets_no_new_ones() {
    let (a, b) = (Backend::start(), Backend::start());
    let config =
        Config::default().backend(&[a.address(), b.address()], "balance = \"round-robin\"");
    let gateway = Gateway::start_alone(&config);
    gateway.wait_ready(2);
    let mut clients: Vec<Client> =
        (0..4).map(|_| Client::open(gateway.address(), "/ws", "")).collect();
    clients.iter_mut().for_each(|client| client.echo("hello"));
    assert_eq!((a.opens(), b.opens()), (2, 2));
    a.leave(Duration::from_secs(1));
    std::thread::sleep(Duration::from_millis(200));
    // Those that it has live on; new ones go elsewhere.
    clients.iter_mut().for_each(|client| client.echo("still"));
    for _ in 0..3 {
        Client::open(gateway.address(), "/ws", "").echo("new");
    }
    assert_eq!((a.opens(), b.opens()), (0, 3));
    // After the grace it closes its own.
    let mut restarted = 0;
    for client in &mut clients {
        client.text("late");
        let frame = client.frame().expect("an echo or a close");
        if frame.opcode == Opcode::Text {
            std::thread::sleep(Duration::from_millis(300));
        }
        restarted += u32::from(frame.opcode == Opcode::Close);
    }
    wait_until("a has none left", || gateway.metric("portcullis_connections{stage=\"open\"}") == 2);
    assert!(restarted <= 2);
}

/// Encodes a frame without any check.
fn raw(length: usize, kind: u8, flags: u8, session: SessionId, payload: &[u8]) -> Vec<u8> {
    let [_, l0, l1, l2] = (length as u32).to_be_bytes();
    let [_, g0, g1, g2] = session.generation.to_be_bytes();
    let mut bytes = vec![l0, l1, l2, kind, flags, g0, g1, g2];
    bytes.extend_from_slice(&session.slot.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn a_hostile_backend_loses_its_link_and_nothing_else() {
    let backend = RawBackend::listen();
    let config = Config::to(&backend.address())
        .limits("message_max = \"3KiB\"\nsession_window = \"8KiB\"\nlink_window = \"64KiB\"");
    let gateway = Gateway::start_alone(&config);
    type Hostile = (&'static str, fn(SessionId) -> Vec<u8>);
    let table: &[Hostile] = &[
        ("garbage", |_| vec![0xff; 64]),
        ("http", |_| b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("unknown kind", |id| raw(0, 0x7f, 0, id, b"")),
        ("unknown flags", |id| raw(1, Kind::Data as u8, 0x80 | 6, id, b"x")),
        ("data for the link", |_| raw(1, Kind::Data as u8, 6, SessionId::LINK, b"x")),
        ("strays", |id| {
            let nobody = SessionId { slot: id.slot + 1000, ..id };
            raw(1, Kind::Data as u8, 6, nobody, b"x")
                .repeat(UNKNOWN_SESSION_FRAMES_MAX as usize + 1)
        }),
        ("an old generation", |id| {
            let old = SessionId { generation: id.generation.wrapping_sub(1) & 0xff_ffff, ..id };
            raw(1, Kind::Data as u8, 6, old, b"x").repeat(UNKNOWN_SESSION_FRAMES_MAX as usize + 1)
        }),
        ("over the session's credit", |id| {
            raw(3000, Kind::Data as u8, 6, id, &[0; 3000]).repeat(3)
        }),
        ("no first piece", |id| raw(1, Kind::Data as u8, 4, id, b"x")),
        ("a first piece in a message", |id| raw(1, Kind::Data as u8, 2, id, b"x").repeat(2)),
        ("text becomes binary", |id| {
            let rest = raw(1, Kind::Data as u8, 4, id, b"y");
            [raw(1, Kind::Data as u8, 3, id, b"x"), rest].concat()
        }),
        ("too much credit", |id| raw(4, Kind::Credit as u8, 0, id, &[0x7f, 0xff, 0xff, 0xff])),
        ("too much for the link", |_| {
            raw(4, Kind::Credit as u8, 0, SessionId::LINK, &[0x7f, 0xff, 0xff, 0xff])
        }),
        ("credit of 3 bytes", |id| raw(3, Kind::Credit as u8, 0, id, &[0; 3])),
        ("no credit", |id| raw(4, Kind::Credit as u8, 0, id, &[0; 4])),
        ("a message over the limit, in pieces", |id| {
            let piece = |flags| raw(1000, Kind::Data as u8, flags, id, &[0; 1000]);
            [piece(2), piece(0), piece(0), piece(4)].concat()
        }),
        ("half a close", |id| raw(1, Kind::Close as u8, 0, id, &[1])),
        ("HELLO", |_| raw(100, Kind::Hello as u8, 0, SessionId::LINK, &[0; 100])),
        ("READY again", |_| raw(0, Kind::Ready as u8, 0, SessionId::LINK, b"")),
        ("OPEN", |id| raw(4, Kind::Open as u8, 0, id, &[0; 4])),
        ("ACCEPT", |id| raw(4, Kind::Accept as u8, 0, id, &[0; 4])),
        ("MULTICAST", |_| raw(4, Kind::Multicast as u8, 0, SessionId::LINK, &[0; 4])),
        ("REVOKE", |_| raw(4, Kind::Revoke as u8, 0, SessionId::LINK, &[0; 4])),
        ("RESUME", |id| raw(4, Kind::Resume as u8, 0, id, &[0; 4])),
    ];
    for (what, hostile) in table {
        eprintln!("{what}");
        let mut link = backend.accept();
        let mut client = Client::open(gateway.address(), "/ws", "");
        let (session, _) = link.expect(Kind::Open);
        link.text(session, "good");
        client.expect(Opcode::Text, b"good");
        link.write(&hostile(session));
        assert!(link.is_dropped(), "{what}");
        let mut frame = client.frame().expect("an answer");
        while frame.opcode != Opcode::Close {
            frame = client.frame().expect("an answer");
        }
        assert_eq!(frame.payload[..2], 1012_u16.to_be_bytes(), "{what}");
    }
    let count = table.len() as u64;
    gateway.wait_metric("portcullis_link_violations_total", |violations| violations == count);
    gateway.wait_closes("backend_unavailable", count);
    // It lives.
    let mut link = backend.accept();
    let mut client = Client::open(gateway.address(), "/ws", "");
    let (session, _) = link.expect(Kind::Open);
    link.text(session, "good");
    client.expect(Opcode::Text, b"good");
    assert_eq!(gateway.metric("portcullis_worker_panics_total"), 0);
}

#[test]
fn a_few_stray_frames_are_forgiven_and_touch_no_session() {
    let backend = RawBackend::listen();
    let (gateway, mut link, mut client, session) =
        by_hand(&backend, Config::to(&backend.address()));
    let stranger = SessionId { slot: session.slot + 1, ..session };
    for _ in 0..UNKNOWN_SESSION_FRAMES_MAX {
        link.text(stranger, "not yours");
    }
    link.close(stranger, 4000, "nor this");
    // That was one too many.
    assert!(link.is_dropped());
    client.expect(Opcode::Text, UNAVAILABLE.as_bytes());
    gateway.wait_metric("portcullis_link_stale_frames_total", |count| {
        count == u64::from(UNKNOWN_SESSION_FRAMES_MAX) + 1
    });
}

#[test]
fn half_a_message_is_never_finished_nor_explained_into() {
    let backend = RawBackend::listen();
    let (_gateway, mut link, mut client, session) =
        by_hand(&backend, Config::to(&backend.address()));
    link.data(session, data_flags::FIRST | data_flags::TEXT, b"half a ");
    let frame = client.frame().expect("the half");
    assert_eq!(
        (frame.fin, frame.opcode, &frame.payload[..]),
        (false, Opcode::Text, &b"half a "[..])
    );
    drop(link);
    assert_eq!(client.close_frame(), (Some(1012), "backend_unavailable".into()));
}

#[test]
fn what_a_client_did_is_told_to_its_backend() {
    let backend = RawBackend::listen();
    let (_gateway, mut link, mut client, session) =
        by_hand(&backend, Config::to(&backend.address()));
    client.close(4001, "bored");
    let (told, payload) = link.expect(Kind::Close);
    let close = Close::decode(&payload).expect("a good CLOSE");
    assert_eq!(told, session);
    assert_eq!((close.label, close.code, close.reason), ("client_closed", 4001, "bored"));
    // The session's number is not used again before we have closed as well.
    assert_eq!(client.close_frame(), (Some(4001), String::new()));
    link.close(session, 0, "");
}

#[test]
fn a_link_takes_no_more_sessions_than_the_backend_said() {
    let mut backend = RawBackend::listen();
    backend.limits.sessions_max = 1;
    let (gateway, mut link, mut client, session) =
        by_hand(&backend, Config::to(&backend.address()));
    expect_unavailable(&mut Client::open(gateway.address(), "/ws", ""));
    link.text(session, "alone");
    client.expect(Opcode::Text, b"alone");
}

#[test]
fn a_silent_link_is_dead_after_three_pings_and_a_silent_handshake_after_its_deadline() {
    let backend = RawBackend::listen();
    let config =
        Config::to(&backend.address()).deadlines("link_ping = \"200ms\"\nlink_connect = \"300ms\"");
    let gateway = Gateway::start_alone(&config);
    let begun = Instant::now();
    let mut link = backend.accept();
    assert!(link.is_dropped());
    assert_took("a link without pongs", begun, Duration::from_millis(600));
    let mut mute = backend.accept_silent();
    assert!(mute.is_dropped());
    // One that answers pings lives.
    let mut link = backend.accept();
    let answering = std::thread::spawn(move || (link.next().is_err(), link));
    std::thread::sleep(Duration::from_millis(1200));
    assert!(!answering.is_finished(), "the link was dropped");
    drop(gateway);
    let (ended, _) = answering.join().expect("no panic");
    assert!(ended);
}

#[test]
fn a_message_over_the_backends_own_limit_costs_its_sender_alone() {
    let limits = Limits { message_max: 1000, ..Limits::default() };
    let choices = Choices { limits: Some(limits), ..Choices::default() };
    let backend = Backend::start_at("127.0.0.1:0", choices);
    let gateway = Gateway::start(&Config::to(backend.address()));
    let mut bystander = Client::open(gateway.address(), "/ws", "");
    bystander.echo("hello");
    for pieces in [1, 3] {
        let mut client = Client::open(gateway.address(), "/ws", "");
        client.send(true, Opcode::Binary, &[1; 1000]);
        assert!(client.message() == (Opcode::Binary, vec![1; 1000]));
        for piece in 0..pieces {
            let opcode = if piece == 0 { Opcode::Binary } else { Opcode::Continuation };
            client.send(piece + 1 == pieces, opcode, &vec![1; 1002 / pieces]);
        }
        assert_eq!(client.close_frame(), (Some(1009), "too_large".into()));
        assert_eq!(client.end(), End::Fin);
        assert_eq!(backend.ended().cause, "too_large");
    }
    bystander.echo("still here");
    assert_eq!(gateway.metric("portcullis_link_failures_total"), 0);
}

#[test]
fn text_that_is_none_closes_its_session_alone() {
    let backend = RawBackend::listen();
    let gateway = Gateway::start_alone(&Config::to(&backend.address()));
    let mut link = backend.accept();
    let mut bystander = Client::open(gateway.address(), "/ws", "");
    let (spared, _) = link.expect(Kind::Open);
    const TEXT: u8 = data_flags::TEXT;
    const WHOLE: u8 = data_flags::WHOLE;
    let table: [&[(u8, &[u8])]; 4] = [
        &[(WHOLE | TEXT, b"a\xffb")],
        &[(WHOLE | TEXT, b"a\xe2\x82")],
        &[(data_flags::FIRST | TEXT, b"a\xe2"), (TEXT, b"\x82"), (data_flags::FIN | TEXT, b"a")],
        &[(data_flags::FIRST | TEXT, b"a"), (data_flags::FIN | TEXT, b"\xe2\x82")],
    ];
    for pieces in table {
        let mut client = Client::open(gateway.address(), "/ws", "");
        let (session, _) = link.expect(Kind::Open);
        // Binary may be anything, and a character may be cut anywhere.
        link.data(session, WHOLE, b"\xff");
        client.expect(Opcode::Binary, b"\xff");
        link.data(session, data_flags::FIRST | TEXT, b"\xe2\x82");
        link.data(session, data_flags::FIN | TEXT, b"\xac");
        assert_eq!(client.message(), (Opcode::Text, "\u{20ac}".into()));
        for (flags, piece) in pieces {
            link.data(session, *flags, piece);
        }
        let mut frame = client.frame().expect("a close frame");
        while frame.opcode != Opcode::Close {
            assert!(!frame.fin, "the broken text was finished: {frame:?}");
            frame = client.frame().expect("a close frame");
        }
        assert_eq!(frame.payload, [&1007_u16.to_be_bytes()[..], b"invalid_utf8"].concat());
        let (closed, payload) = link.expect(Kind::Close);
        let close = Close::decode(&payload).expect("a good CLOSE");
        assert_eq!((closed, close.label, close.code), (session, "invalid_utf8", 1007));
        link.close(session, 0, "");
    }
    link.text(spared, "spared");
    bystander.expect(Opcode::Text, b"spared");
}
