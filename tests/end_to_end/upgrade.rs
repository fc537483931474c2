//! The HTTP upgrade beside the table of `heads.rs`: good heads, health checks, subprotocols, and
//! clients that leave early or speak early.

use std::time::Duration;

use crate::support::{Backend, Client, Config, End, Gateway, Opcode, head, masked, request};

#[test]
fn a_good_head_is_answered_exactly_whole_or_dripped() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()));
    let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let asked = request("/ws", "Sec-WebSocket-Extensions: permessage-deflate\r\n");
    for size in [asked.len(), 1, 7] {
        let mut client = Client::connect(gateway.address());
        asked.as_bytes().chunks(size).for_each(|piece| client.write(piece));
        assert_eq!(client.head(), expected, "{size} by {size}");
        client.echo("hello");
    }
}

#[test]
fn a_client_that_half_closes_after_a_bad_head_still_gets_its_answer() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()));
    for _ in 0..20 {
        let mut client = Client::connect(gateway.address());
        client.write(b"POST /ws HTTP/1.1\r\n\r\n");
        client.tcp().shutdown(std::net::Shutdown::Write).expect("shut down");
        assert!(client.head().starts_with("HTTP/1.1 405 "));
    }
}

#[test]
fn load_balancers_are_answered_where_the_route_says_so() {
    let backend = Backend::start();
    let config = Config::to(backend.address()).route("/lb", "auth = \"none\"\nhealth = true");
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.address());
    client.write(b"GET /lb?x HTTP/1.1\r\nHost: a.example\r\n\r\n");
    let answer = client.head();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\nConnection: close\r\n"), "{answer}");
    assert_eq!(client.drain(), (b"ok\n".to_vec(), End::Fin));
    gateway.wait_closes("health_check", 1);
}

#[test]
fn subprotocols_are_chosen_by_the_route_and_never_a_bearer() {
    let backend = Backend::start();
    let config = Config::to(backend.address())
        .route("/two", "auth = \"none\"\nsubprotocols = [\"v2\", \"v1\"]");
    let gateway = Gateway::start(&config);
    // Path and offer -> what is answered with.
    let table = [
        ("/ws", "chat, other", Some("chat")),
        ("/ws", "base64url.bearer.phx.YQ, phoenix", Some("phoenix")),
        ("/ws", "base64url.bearer.phx.YQ", None),
        ("/two", "v1, v2", Some("v2")),
        ("/two", "v1", Some("v1")),
        ("/two", "v3", None),
        ("/two", "BASE64URL.bearer.x.YQ, V1, v1", Some("v1")),
    ];
    for (path, offer, expected) in table {
        let fields = format!("Sec-WebSocket-Protocol: {offer}\r\n");
        let (mut client, answer) = Client::ask(gateway.address(), path, &fields);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert_eq!(head(&answer, "sec-websocket-protocol"), expected, "{offer}");
        client.echo("hello");
        assert_eq!(backend.opened().subprotocol.as_deref(), expected, "{offer}");
    }
}

#[test]
fn a_client_may_speak_right_after_the_101() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()));
    let mut client = Client::open(gateway.address(), "/ws", "");
    let burst: Vec<u8> = (0..100).flat_map(|n: u32| masked(0x82, &n.to_be_bytes())).collect();
    client.write(&burst);
    for number in 0..100_u32 {
        client.expect(Opcode::Binary, &number.to_be_bytes());
    }
    assert!(client.is_quiet_for(Duration::from_millis(50)));
}

#[test]
fn a_refused_client_that_leaves_at_once_takes_no_other_with_it() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()));
    for round in 0..500 {
        let (refused, answer) = Client::ask(gateway.address(), "/nowhere", "");
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        // The end of this one is still under way when the next one gets its descriptor.
        drop(refused);
        let (mut client, answer) = Client::ask(gateway.address(), "/ws", "");
        assert!(answer.starts_with("HTTP/1.1 101 "), "{round}: {answer}");
        client.echo("hello");
    }
}
