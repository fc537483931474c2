//! Every request of `tests/vectors/heads.txt` over real sockets, plain and TLS: whole, byte by
//! byte and in random pieces it gets the one answer, to the byte, and nothing of it reaches the
//! backend that listens on the link.
//!
//! Bytes behind a good head are the exception: `early_bytes` while they come with the head's last
//! byte, frames once the client has seen the 101. The table says what they come to then.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use portcullis::base::random::Random;
use portcullis::protocol::link::Kind;

use crate::support::{Client, Config, End, Gateway, Opcode, RawBackend};
use crate::tls::{self, Secured, Wish, secure};

use self::vectors::{Case, Expected, Then};

#[path = "../vectors/heads.rs"]
mod vectors;

/// How long nothing must come, where nothing is right.
const QUIET: Duration = Duration::from_millis(20);

/// How the bytes of a request are sent.
#[derive(Clone, Copy, Debug)]
enum Way {
    Whole,
    ByteByByte,
    Pieces { seed: u64 },
}

const WAYS: [Way; 4] =
    [Way::Whole, Way::ByteByByte, Way::Pieces { seed: 1 }, Way::Pieces { seed: 2 }];

/// Every frame of the link but pings. It echoes messages and answers closes.
fn record() -> (String, Receiver<(Kind, Vec<u8>)>) {
    let backend = RawBackend::listen();
    let address = backend.address();
    let (seen, frames) = channel();
    std::thread::spawn(move || {
        let mut link = backend.accept();
        while let Ok((header, payload)) = link.next() {
            match header.kind {
                Kind::Data => link.data(header.session, header.flags, &payload),
                Kind::Close => link.close(header.session, 1000, ""),
                _ => {}
            }
            let _ = seen.send((header.kind, payload));
        }
    });
    (address, frames)
}

/// A gateway, its only backend's frames, and how to reach it.
struct World {
    gateway: Gateway,
    frames: Receiver<(Kind, Vec<u8>)>,
    tls: bool,
    answers: HashMap<&'static str, String>,
    _certificates: Option<tempfile::TempDir>,
}

impl World {
    fn start(tls: bool) -> World {
        let (address, frames) = record();
        // No deadline may come between a request that drips in and its answer.
        let config = Config::to(&address).deadlines("request_head = \"1m\"\nlinger = \"20s\"");
        let (config, folder) = match tls {
            true => {
                let (config, folder) = tls::config(config, &["a.example"]);
                (config, Some(folder))
            }
            false => (config, None),
        };
        let answers = vectors::answers().into_iter();
        World {
            gateway: Gateway::start(&config),
            frames,
            tls,
            answers: answers.map(|answer| (answer.label, answer.bytes)).collect(),
            _certificates: folder,
        }
    }

    /// Calls `body` for each case and way, on a few threads; returns how many calls there were.
    fn each(&self, cases: &[&Case], ways: &[Way], body: impl Fn(&mut Client, &Case, Way) + Sync) {
        let (address, tls) = (self.gateway.address(), self.tls);
        std::thread::scope(|threads| {
            for share in cases.chunks(cases.len().div_ceil(4)) {
                let body = &body;
                threads.spawn(move || {
                    for case in share {
                        for way in ways {
                            println!("heads.txt:{} {way:?} {tls}", case.line);
                            body(&mut connect(address, tls), case, *way);
                        }
                    }
                });
            }
        });
    }

    /// The kinds of frame that reached the backend since the last look.
    fn reached(&self) -> Vec<Kind> {
        self.frames.try_iter().map(|(kind, _)| kind).collect()
    }
}

fn connect(address: SocketAddr, tls: bool) -> Client {
    if !tls {
        return Client::connect(address);
    }
    let Secured { stream, .. } = secure(address, &Wish::default()).expect("a handshake");
    let tcp = stream.sock.try_clone().expect("cloned");
    Client::over(stream, tcp)
}

/// Where the head ends, if it does.
fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// Sends `bytes`; never cuts at `whole`, so that the bytes on both sides of it arrive together.
fn send(client: &mut Client, bytes: &[u8], way: Way, whole: Option<usize>) {
    let mut random = match way {
        Way::Whole => return client.write(bytes),
        Way::ByteByByte => Random::from_number(0),
        Way::Pieces { seed } => Random::from_number(seed),
    };
    let mut sent = 0;
    while sent < bytes.len() {
        let step = if let Way::ByteByByte = way { 1 } else { 1 + random.below(60) as usize };
        let mut end = (sent + step).min(bytes.len());
        end += usize::from(Some(end) == whole && end < bytes.len());
        client.write(&bytes[sent..end]);
        sent = end;
    }
}

/// The answer, to the byte, and then the end.
fn expect_answer(client: &mut Client, answer: &str, what: &str) {
    let (bytes, end) = client.drain();
    assert_eq!(String::from_utf8_lossy(&bytes), answer, "{what}");
    assert_eq!(end, End::Fin, "{what}");
}

/// The 101 for the key in `request`.
fn expect_101(client: &mut Client, request: &[u8]) {
    let text = String::from_utf8_lossy(request);
    let key = text.split("Sec-WebSocket-Key:").nth(1).expect("a key").lines().next();
    let accept = tungstenite::handshake::derive_accept_key(key.expect("a key").trim().as_bytes());
    let expected = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n"
    );
    let answer = client.head();
    assert!(answer.starts_with(&expected), "{answer}");
}

/// The answer to a target and a Host that differ, with both behind its sentence.
fn naming_both(answer: &str, request: &[u8]) -> String {
    let text = String::from_utf8_lossy(request);
    let between = |start: &str, end: &[char]| {
        text.split_once(start).expect("there").1.split(end).next().expect("a part").to_owned()
    };
    let (target, host) = (between("://", &['/', '?', ' ']), between("Host: ", &['\r']));
    let detail = format!(": \"{target}\" and \"{host}\".");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
    let length = |body: &str| format!("Content-Length: {}", body.len());
    let longer = format!("{}{detail}\n", body.trim_end());
    format!("{}\r\n\r\n{longer}", head.replace(&length(body), &length(&longer)))
}

/// The label of the answer, unless the request is upgraded or not whole.
fn label(case: &Case) -> Option<&'static str> {
    let is_served = |target: &str| target.split('?').next() == Some("/ws");
    match case.expected {
        Expected::Refused(_, label) => Some(label),
        Expected::Upgrade { target, .. } if is_served(target) => None,
        Expected::Plain { path: "/ws", label, .. } => Some(label),
        Expected::Upgrade { .. } | Expected::Plain { .. } => Some("not_found"),
        Expected::Incomplete => None,
    }
}

fn check(tls: bool) {
    let world = World::start(tls);
    let cases = vectors::cases();
    let (early, others): (Vec<&Case>, Vec<&Case>) =
        cases.iter().partition(|case| case.then.is_some());
    let refused: Vec<&Case> = others.iter().copied().filter(|case| label(case).is_some()).collect();
    assert!(refused.len() + early.len() >= 215 && early.len() >= 10);
    let answer = |case: &Case| {
        let label = label(case).expect("refused");
        let answer = &world.answers[label];
        if label == "host_differs" { naming_both(answer, &case.bytes) } else { answer.clone() }
    };
    world.each(&refused, &WAYS, |client, case, way| {
        send(client, &case.bytes, way, None);
        expect_answer(client, &answer(case), &format!("heads.txt:{} {way:?}", case.line));
    });
    let together = [Way::Whole, Way::Pieces { seed: 1 }, Way::Pieces { seed: 2 }];
    world.each(&early, &together, |client, case, way| {
        send(client, &case.bytes, way, head_end(&case.bytes));
        expect_answer(client, &answer(case), &format!("heads.txt:{} {way:?}", case.line));
    });
    assert_eq!(world.reached(), [], "of refused requests nothing reaches the backend");
    let count = refused.len() * WAYS.len() + early.len() * together.len();
    world.gateway.wait_closes("bad_request", count as u64);

    let whole = |case: &&Case| !matches!(case.expected, Expected::Incomplete);
    let (good, incomplete): (Vec<&Case>, Vec<&Case>) =
        others.iter().filter(|case| label(case).is_none()).partition(|case| whole(case));
    world.each(&incomplete, &WAYS, |client, case, way| {
        send(client, &case.bytes, way, None);
        assert!(client.is_quiet_for(QUIET), "{way:?}");
        client.tcp().shutdown(std::net::Shutdown::Write).expect("shut down");
        assert!(client.drain().0.is_empty(), "{way:?}");
    });
    assert_eq!(world.reached(), [], "of half a request nothing reaches the backend");

    world.each(&good, &WAYS, |client, case, way| {
        send(client, &case.bytes, way, None);
        expect_101(client, &case.bytes);
        client.close(1000, "");
        assert_eq!(client.close_frame(), (Some(1000), String::new()), "{way:?}");
        assert_eq!(client.end(), End::Fin, "{way:?}");
    });
    world.gateway.wait_closes("client_closed", (good.len() * WAYS.len()) as u64);
    let reached = world.reached();
    let opens = reached.iter().filter(|kind| **kind == Kind::Open).count();
    assert_eq!(opens, good.len() * WAYS.len());
    assert!(!reached.contains(&Kind::Data), "nobody sent a message");

    world.each(&early, &[Way::ByteByByte], late);
    let data = world.frames.try_iter().filter(|(kind, _)| *kind == Kind::Data);
    let data: Vec<u8> = data.flat_map(|(_, payload)| payload).collect();
    assert_eq!(data, b"Hello", "what came after the 101, and no byte of what came before");
}

/// The bytes behind the head are sent when the 101 is there.
fn late(client: &mut Client, case: &Case, way: Way) {
    let (head, rest) = case.bytes.split_at(head_end(&case.bytes).expect("a head"));
    send(client, head, way, None);
    expect_101(client, head);
    send(client, rest, way, None);
    match case.then.expect("early bytes") {
        Then::Closed(code, reason) => {
            assert_eq!(client.close_frame(), (code, reason.to_owned()));
            if code.is_some_and(|code| code > 1000) {
                assert_eq!(client.end(), End::Fin);
            }
        }
        Then::Echoed(text) => assert_eq!(client.message(), (Opcode::Text, text.into())),
        Then::Ponged => client.expect(Opcode::Pong, b""),
        Then::Open => assert!(client.is_quiet_for(QUIET)),
    }
}

#[test]
fn every_request_gets_its_answer_and_none_reaches_the_backend() {
    check(false);
}

#[test]
fn every_request_gets_its_answer_over_tls_too() {
    check(true);
}

#[test]
fn balancers_checks_are_answered_on_routes_with_health() {
    let (address, _frames) = record();
    let config = Config::bare(&address);
    let config = config.route("/ws", "auth = \"none\"\nhealth = true");
    let gateway = Gateway::start(&config);
    let ok = "HTTP/1.1 200 OK\r\nConnection: close\r\n\
              Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n\
              Content-Length: 3\r\n\r\n";
    let mut checks = 0;
    for case in vectors::cases() {
        let Expected::Plain { method, path: "/ws", .. } = case.expected else { continue };
        let mut client = Client::connect(gateway.address());
        client.write(&case.bytes);
        let content = if method == "head" { "" } else { "ok\n" };
        expect_answer(&mut client, &format!("{ok}{content}"), &format!("heads.txt:{}", case.line));
        checks += 1;
    }
    assert!(checks >= 8, "{checks}");
    gateway.wait_closes("health_check", checks);
}
