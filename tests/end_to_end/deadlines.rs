//! Deadlines, seen from outside: never early, and not long after.

use std::io::Read;
use std::thread::scope;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::support::{
    Backend, Client, Config, End, Gateway, Opcode, SECRET, SLACK, assert_took, mint, request,
    token, unix_now,
};

const DEADLINES: &str = "tls_handshake = \"300ms\"\nrequest_head = \"400ms\"\n\
    authenticate = \"500ms\"\nlinger = \"300ms\"\nping_interval = \"1s\"\nidle = \"2s\"\n\
    write_stall = \"500ms\"";

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn ended(series: &str) -> String {
    format!("portcullis_deadline_closes_total{{stage=\"{series}\"}}")
}

/// The kernel keeps a silent connection to itself for about a second (TCP_DEFER_ACCEPT).
const DEFERRED: Duration = Duration::from_secs(2);

#[test]
fn a_request_head_has_its_deadline() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()).deadlines(DEADLINES));
    let address = gateway.address();
    scope(|tests| {
        tests.spawn(|| {
            let begun = Instant::now();
            let end = Client::connect(address).end();
            let took = begun.elapsed();
            assert!(took >= millis(400) && took < millis(400) + DEFERRED + SLACK, "{took:?}");
            eprintln!("silent: {end:?} after {took:?}");
        });
        tests.spawn(|| {
            let begun = Instant::now();
            let mut client = Client::connect(address);
            client.write(b"GET /ws HTTP/1.1\r\nHost: a");
            assert!(client.head().starts_with("HTTP/1.1 408 Request Timeout\r\n"));
            assert_took("half a head", begun, millis(400));
            assert_eq!(client.drain().1, End::Fin);
        });
        tests.spawn(|| {
            // A byte never extends it.
            let begun = Instant::now();
            let mut client = Client::connect(address);
            let mut dripping = Client::over_tcp(client.tcp().try_clone().expect("cloned"));
            std::thread::spawn(move || {
                for byte in request("/ws", "").as_bytes().chunks(1) {
                    dripping.write(byte);
                    std::thread::sleep(millis(10));
                }
            });
            assert!(client.head().starts_with("HTTP/1.1 408 Request Timeout\r\n"));
            assert_took("a dripped head", begun, millis(400));
        });
        tests.spawn(|| {
            // CloseDetails off, it neither reads nor closes, and is reset.
            let begun = Instant::now();
            let mut client = Client::connect(address);
            client.write(b"POST / HTTP/1.1\r\n\r\n");
            client.head();
            client.drain();
            let mut reset = false;
            while !reset && begun.elapsed() < millis(300) + SLACK {
                std::thread::sleep(millis(20));
                let sock = SockRef::from(client.tcp());
                reset = sock.take_error().ok().flatten().is_some();
                reset |= sock.send(b"x").is_err();
            }
            assert!(reset, "still open");
        });
    });
    gateway.wait_metric(&ended("request_head"), |count| count == 3);
    gateway.wait_closes("handshake_timed_out", 3);
}

#[test]
fn authentication_has_its_deadline_and_a_refused_client_its_linger() {
    let backend = Backend::start();
    let config = Config::bare(backend.address())
        .guarded("first", "first-message", "")
        .guarded("header", "header:x-token", "")
        .deadlines(DEADLINES);
    let gateway = Gateway::start(&config);
    let address = gateway.address();
    let explanation = concat!(
        r#"{"type":"close","code":4408,"reason":"authentication_timed_out","#,
        r#""reconnect":true,"retry_after_ms":1000}"#,
    );
    scope(|tests| {
        tests.spawn(|| {
            let begun = Instant::now();
            let mut client = Client::open(address, "/first", "");
            client.expect(Opcode::Text, explanation.as_bytes());
            assert_took("silence", begun, millis(500));
            assert_eq!(client.close_frame(), (Some(4408), "authentication_timed_out".into()));
            client.close(4408, "");
            assert_eq!(client.end(), End::Fin);
        });
        tests.spawn(|| {
            // Neither pings nor pieces extend it.
            let begun = Instant::now();
            let mut client = Client::open(address, "/first", "");
            client.send(false, Opcode::Text, b"ey");
            for _ in 0..4 {
                std::thread::sleep(millis(100));
                client.send(true, Opcode::Ping, b"");
                client.send(false, Opcode::Continuation, b"J");
                client.expect(Opcode::Pong, b"");
            }
            client.expect(Opcode::Text, explanation.as_bytes());
            assert_took("pings", begun, millis(500));
        });
        tests.spawn(|| {
            let begun = Instant::now();
            let mut client = Client::open(address, "/header", "");
            client.expect(
                Opcode::Text,
                br#"{"type":"close","code":4401,"reason":"token_missing","reconnect":false}"#,
            );
            assert_eq!(client.close_frame(), (Some(4401), "token_missing".into()));
            // Whatever it says but a close does not extend the linger.
            let mut talking = Client::over_tcp(client.tcp().try_clone().expect("cloned"));
            std::thread::spawn(move || {
                for _ in 0..10 {
                    talking.text("please");
                    std::thread::sleep(millis(50));
                }
            });
            assert_eq!(client.end(), End::Reset);
            assert_took("linger", begun, millis(300));
        });
    });
    gateway.wait_metric(&ended("authenticating"), |count| count == 2);
    gateway.wait_metric(&ended("linger"), |count| count >= 1);
    assert!(backend.seen().is_empty());
}

#[test]
fn silence_is_pinged_and_then_closed() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()).deadlines(DEADLINES));
    let address = gateway.address();
    scope(|tests| {
        tests.spawn(|| {
            let mut client = Client::open(address, "/ws", "");
            let begun = Instant::now();
            client.echo("hello");
            client.expect(Opcode::Ping, b"");
            assert_took("ping", begun, millis(1000));
            assert_eq!(client.close_frame(), (Some(4408), "idle".into()));
            assert_took("idle", begun, millis(2000));
            // It is not there to answer: the close's own deadline ends it.
            assert_eq!(client.end(), End::Reset);
            assert_took("linger", begun, millis(2300));
        });
        tests.spawn(|| {
            // A pong is a sign of life.
            let mut client = Client::open(address, "/ws", "");
            for _ in 0..3 {
                let begun = Instant::now();
                client.send(true, Opcode::Pong, b"");
                client.expect(Opcode::Ping, b"");
                assert_took("ping", begun, millis(1000));
            }
            client.send(true, Opcode::Pong, b"");
            client.echo("still here");
        });
    });
    gateway.wait_closes("idle", 1);
    gateway.wait_metric(&ended("idle"), |count| count == 1);
}

#[test]
fn a_client_that_does_not_read_is_dropped_when_its_writes_stall() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()).deadlines(DEADLINES));
    let mut client = Client::open(gateway.address(), "/ws", "");
    client.text("flood 1000 65536");
    let begun = Instant::now();
    gateway.wait_closes("slow_consumer", 1);
    assert!(begun.elapsed() >= millis(500));
    assert_eq!(gateway.metric(&ended("write_stall")), 1);
    let ended = backend.ended();
    assert_eq!(ended.cause, "slow_consumer");
    assert_eq!(client.drain().1, End::Reset);
    gateway.wait_metric("portcullis_queued_bytes", |bytes| bytes == 0);
}

#[test]
fn a_closed_client_that_reads_nothing_is_dropped_too() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()).deadlines(DEADLINES));
    let mut client = Client::open(gateway.address(), "/ws", "");
    client.text("flood 20 65536");
    client.text("close 4000 enough");
    std::thread::sleep(millis(100));
    // It reads late, but before the write stalls, and gets everything.
    let mut bytes = 0;
    let close = loop {
        let frame = client.frame().expect("all of it");
        match frame.opcode {
            Opcode::Close => break frame.payload,
            _ => bytes += frame.payload.len(),
        }
    };
    assert_eq!(bytes, 20 * 65_536);
    assert_eq!(close, [&4000_u16.to_be_bytes()[..], b"enough"].concat());
    // Then it does not answer the close.
    assert_eq!(client.end(), End::Reset);
    gateway.wait_closes("backend_closed", 1);
}

#[test]
fn a_session_ends_with_its_token() {
    let backend = Backend::start();
    let config = Config::bare(backend.address())
        .guarded("a", "authorization", "")
        .deadlines("expiry_grace = \"0s\"");
    let gateway = Gateway::start(&config);
    let exp = unix_now() + 2;
    let token = mint(SECRET, &format!(r#"{{"sub":"ada","exp":{exp}}}"#));
    let fields = format!("Authorization: Bearer {token}\r\n");
    let mut client = Client::open(gateway.address(), "/a", &fields);
    client.echo("hello");
    let expected = r#"{"type":"close","code":4401,"reason":"token_expired","reconnect":false}"#;
    client.expect(Opcode::Text, expected.as_bytes());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after");
    assert!(now >= Duration::from_secs(exp), "{now:?} is before {exp}");
    assert!(now <= Duration::from_secs(exp) + SLACK, "{now:?} is long after {exp}");
    assert_eq!(client.close_frame(), (Some(4401), "token_expired".into()));
    let ended = backend.ended();
    assert_eq!((ended.cause.as_str(), ended.code), ("token_expired", 4401));
    gateway.wait_metric(&self::ended("expiry"), |count| count == 1);
}

#[test]
fn a_lifetime_asks_to_reconnect() {
    // The shortest that may be set is 10 s; it is cut by up to a tenth.
    let backend = Backend::start();
    let config = Config::bare(backend.address())
        .guarded("first", "first-message", "")
        .deadlines("lifetime = \"10s\"");
    let gateway = Gateway::start(&config);
    let begun = Instant::now();
    let mut client = Client::open(gateway.address(), "/first", "");
    client.text(&token("good"));
    client.echo("hello");
    let expected = concat!(
        r#"{"type":"close","code":1012,"reason":"lifetime","#,
        r#""reconnect":true,"retry_after_ms":1000}"#,
    );
    client.expect(Opcode::Text, expected.as_bytes());
    let took = begun.elapsed();
    assert!(took >= millis(9_000) && took <= millis(10_000) + SLACK, "{took:?}");
    assert_eq!(client.close_frame(), (Some(1012), "lifetime".into()));
}

#[test]
fn a_tls_handshake_has_its_deadline() {
    let backend = Backend::start();
    let (config, _folder) = crate::tls::config(Config::to(backend.address()), &["a.example"]);
    let gateway = Gateway::start(&config.deadlines(DEADLINES));
    let address = gateway.address();
    scope(|tests| {
        tests.spawn(|| {
            let begun = Instant::now();
            let mut client = Client::connect(address);
            let mut bytes = Vec::new();
            let _ = client.tcp().read_to_end(&mut bytes);
            let took = begun.elapsed();
            assert!(took >= millis(300) && took < millis(300) + DEFERRED + SLACK, "{took:?}");
            assert!(bytes.is_empty());
            client.write(b"gone");
        });
        tests.spawn(|| {
            // The head of a ClientHello, dripped: not beyond the deadline, since a write that
            // meets the reset would take its error away from the read.
            let begun = Instant::now();
            let mut client = Client::connect(address);
            let mut dripping = Client::over_tcp(client.tcp().try_clone().expect("cloned"));
            std::thread::spawn(move || {
                for byte in [0x16, 3, 1, 1] {
                    dripping.write(&[byte]);
                    std::thread::sleep(millis(50));
                }
            });
            assert_eq!(client.end(), End::Reset);
            assert_took("a dripped ClientHello", begun, millis(300));
        });
    });
    gateway.wait_metric(&ended("tls_handshake"), |count| count == 2);
}
