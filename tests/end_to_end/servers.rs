//! Ordinary WebSocket servers behind the gateway.

use std::net::TcpStream;
use std::time::Instant;

use tungstenite::protocol::CloseFrame;
use tungstenite::{Bytes, Message, WebSocket};

use crate::lifecycle::await_going_away;
use crate::support::{
    Backend, Client, Config, End, Gateway, Opcode, Server, free_port, read, token,
};

const UNAVAILABLE: &str = concat!(
    r#"{"type":"close","code":1012,"reason":"backend_unavailable","#,
    r#""reconnect":true,"retry_after_ms":2000}"#,
);

fn config(server: &Server) -> Config {
    Config::default().backend(&[&server.endpoint()], "kind = \"websocket\"")
}

/// A client that is through to the server.
fn pair(gateway: &Gateway, server: &Server) -> (Client, WebSocket<TcpStream>) {
    let address = gateway.address();
    let client = std::thread::spawn(move || Client::open(address, "/ws", ""));
    let server = server.accept();
    (client.join().expect("it is let in"), server)
}

#[test]
fn messages_pings_and_closes_pass_both_ways() {
    let server = Server::start();
    let gateway = Gateway::start_alone(&config(&server));
    let (mut client, mut app) = pair(&gateway, &server);
    client.send(true, Opcode::Text, b"hello");
    assert_eq!(read(&mut app), Message::text("hello"));
    app.send(Message::text("and back")).expect("sent");
    client.expect(Opcode::Text, b"and back");
    client.send(true, Opcode::Binary, &[7; 100_000]);
    assert_eq!(read(&mut app), Message::binary(vec![7; 100_000]));
    client.send(true, Opcode::Ping, b"from the client");
    assert_eq!(read(&mut app), Message::Ping("from the client".into()));
    app.flush().expect("sent");
    client.expect(Opcode::Pong, b"from the client");
    app.send(Message::Ping("from the server".into())).expect("sent");
    client.expect(Opcode::Ping, b"from the server");
    client.send(true, Opcode::Pong, b"from the server");
    assert_eq!(read(&mut app), Message::Pong("from the server".into()));
    client.close(4000, "why");
    let Message::Close(Some(CloseFrame { code, reason })) = read(&mut app) else {
        panic!("no close frame");
    };
    assert_eq!((u16::from(code), reason.as_str()), (4000, "why"));
    assert_eq!(client.close_frame(), (Some(4000), String::new()));
    assert_eq!(client.end(), End::Fin);
    gateway.wait_closes("client_closed", 1);
}

/// Larger than what the gateway holds for a server: the client waits, and goes on.
#[test]
fn messages_larger_than_the_window_reach_the_server() {
    let server = Server::start();
    let gateway = Gateway::start_alone(&config(&server));
    let (mut client, mut app) = pair(&gateway, &server);
    let large = vec![7; 900_000];
    for _ in 0..3 {
        client.send(true, Opcode::Binary, &large);
        assert_eq!(read(&mut app), Message::binary(large.clone()));
    }
}

#[test]
fn a_message_that_no_queue_holds_whole_passes_both_ways() {
    let server = Server::start();
    let gateway = Gateway::start_alone(&config(&server));
    let (mut client, mut app) = pair(&gateway, &server);
    let large = vec![7; 1_000_000];
    let message = std::thread::scope(|threads| {
        threads.spawn(|| client.send(true, Opcode::Binary, &large));
        read(&mut app)
    });
    assert!(message == Message::binary(large.clone()));
    let heard = std::thread::scope(|threads| {
        threads.spawn(|| app.send(message).expect("sent"));
        client.message()
    });
    assert!(heard == (Opcode::Binary, large));
}

#[test]
fn a_servers_close_reaches_the_client_as_it_is() {
    let server = Server::start();
    let gateway = Gateway::start_alone(&config(&server));
    for (code, reason) in [(1001, ""), (1011, "oops"), (4711, "custom")] {
        let (mut client, mut app) = pair(&gateway, &server);
        app.close(Some(CloseFrame { code: code.into(), reason: reason.into() })).expect("sent");
        assert_eq!(client.close_frame(), (Some(code), reason.into()));
        let echo = read(&mut app);
        assert!(matches!(&echo, Message::Close(Some(frame)) if frame.code == code.into()));
    }
    let (mut client, mut app) = pair(&gateway, &server);
    app.close(None).expect("sent");
    assert_eq!(client.close_frame(), (None, String::new()));
    let (mut client, app) = pair(&gateway, &server);
    drop(app);
    client.expect_explained(UNAVAILABLE, 1012, "backend_unavailable");
}

#[test]
fn a_refusal_of_the_server_is_explained() {
    let server = Server::start();
    let gateway = Gateway::start_alone(&config(&server));
    let address = gateway.address();
    let client = std::thread::spawn(move || Client::open(address, "/ws", ""));
    let mut asked = server.asked();
    asked.answer("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    let mut client = client.join().expect("it gets a 101");
    let explained = r#"{"type":"close","code":4403,"reason":"token_forbidden","reconnect":false}"#;
    client.expect_explained(explained, 4403, "token_forbidden");
    assert!(asked.ended());
}

#[test]
fn without_a_server_the_client_is_told_so() {
    let port = free_port();
    let config =
        Config::default().backend(&[&format!("ws://127.0.0.1:{port}")], "kind = \"websocket\"");
    let gateway = Gateway::start_alone(&config);
    let mut client = Client::open(gateway.address(), "/ws", "");
    client.expect_explained(UNAVAILABLE, 1012, "backend_unavailable");
}

#[test]
fn broken_answers_are_no_frames() {
    let server = Server::start();
    let gateway = Gateway::start_alone(&config(&server));
    for broken in [
        "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
        "HTTP/1.1 101 X\r\n\r\n\u{1}hello",
        "nonsense\r\n\r\n",
    ] {
        let address = gateway.address();
        let client = std::thread::spawn(move || Client::open(address, "/ws", ""));
        let mut asked = server.asked();
        asked.answer(broken);
        let mut client = client.join().expect("it gets a 101");
        client.expect_explained(UNAVAILABLE, 1012, "backend_unavailable");
        assert!(asked.ended(), "{broken:?}");
    }
}

#[test]
fn only_verified_clients_reach_the_server() {
    let server = Server::start();
    let config =
        Config { routes: String::new(), ..config(&server) }.guarded("ws", "query:token", "");
    let gateway = Gateway::start_alone(&config);
    let mut refused = Client::open(gateway.address(), "/ws?token=x", "");
    refused.message();
    assert_eq!(refused.close_frame().0, Some(4401));
    assert!(!server.has_waiting());
    let address = gateway.address();
    let path = format!("/ws?token={}", token("good"));
    let client = std::thread::spawn(move || Client::open(address, &path, ""));
    let mut app = server.accept();
    let mut client = client.join().expect("let in");
    app.send(Message::Binary(Bytes::from_static(b"in"))).expect("sent");
    client.expect(Opcode::Binary, b"in");
}

/// A route whose application judges its clients itself.
fn judged_behind(server: &Server, rules: &str) -> Config {
    let mut config = Config { routes: String::new(), ..config(server) };
    config.auths += &format!("[[auth]]\nname = \"app\"\nkind = \"upstream\"\n{rules}\n");
    config.route("/ws", "auth = \"app\"\norigins = [\"https://app.example\"]")
}

#[test]
fn an_application_accepts_by_its_101_and_its_refusal_is_explained() {
    let server = Server::start();
    let gateway = Gateway::start_alone(&judged_behind(&server, ""));
    let (mut client, mut app) = pair(&gateway, &server);
    client.text("hello");
    assert_eq!(read(&mut app), Message::text("hello"));
    gateway.wait_metric("portcullis_connections{stage=\"open\"}", |count| count == 1);
    let address = gateway.address();
    let client = std::thread::spawn(move || Client::open(address, "/ws?vsn=2.0.0", ""));
    let mut asked = server.asked();
    assert!(asked.head.starts_with("GET /ws?vsn=2.0.0 HTTP/1.1\r\n"), "{}", asked.head);
    asked.answer("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    let mut client = client.join().expect("it gets a 101");
    let explained = r#"{"type":"close","code":4403,"reason":"token_forbidden","reconnect":false}"#;
    client.expect_explained(explained, 4403, "token_forbidden");
}

#[test]
fn a_client_that_waits_for_the_applications_word_is_a_stranger_until_then() {
    let rules = "accepted_by = \"message\"\naccepted_when = [{ prefix = \"welcome\" }]";
    let server = Server::start();
    let config = judged_behind(&server, rules)
        .deadlines("authenticate = \"2s\"")
        .limits("first_messages_max = 3");
    let gateway = Gateway::start_alone(&config);
    let (mut client, mut app) = pair(&gateway, &server);
    client.text("my secret");
    assert_eq!(read(&mut app), Message::text("my secret"));
    app.send(Message::text("who?")).expect("sent");
    client.expect(Opcode::Text, b"who?");
    gateway.wait_metric("portcullis_connections{stage=\"authenticating\"}", |count| count == 1);
    app.send(Message::text("welcome ada")).expect("sent");
    client.expect(Opcode::Text, b"welcome ada");
    gateway.wait_metric("portcullis_connections{stage=\"open\"}", |count| count == 1);
    for number in 0..10 {
        client.text(&number.to_string());
        assert_eq!(read(&mut app), Message::text(number.to_string()));
    }
    client.close(1000, "");
    read(&mut app);
    // One that the application never lets in is gone after the deadline, with the reason.
    let (mut client, mut app) = pair(&gateway, &server);
    client.text("nonsense");
    read(&mut app);
    let (_, explanation) = client.message();
    let explanation = String::from_utf8(explanation).expect("text");
    assert!(explanation.contains("authentication_timed_out"), "{explanation}");
    let Message::Close(Some(frame)) = read(&mut app) else { panic!("no close frame") };
    assert_eq!(u16::from(frame.code), 1008);
    // One that says more than it takes to authenticate goes immediately.
    let (mut client, mut app) = pair(&gateway, &server);
    for _ in 0..4 {
        client.text("again");
    }
    assert_eq!(read(&mut app), Message::text("again"));
    assert_eq!(client.close_frame(), (Some(1009), "too_large".into()));
    gateway.wait_metric("portcullis_connections{stage=\"open\"}", |count| count == 0);
}

/// Phoenix answers `ok` to the leave of a topic that was never joined: that is no acceptance, and
/// so the application never sees such a message of a stranger.
#[test]
fn no_stranger_is_let_in_by_leaving_a_topic() {
    let rules = "accepted_by = \"message\"\npreset = \"phoenix\"\naccepted_topics = [\"room:*\"]";
    let server = Server::start();
    let gateway = Gateway::start_alone(&judged_behind(&server, rules));
    let (mut client, mut app) = pair(&gateway, &server);
    client.text(r#"["1","1","room:1","phx_join",{"token":"t"}]"#);
    assert!(read(&mut app).is_text());
    app.send(Message::text(r#"["1","1","room:1","phx_reply",{"status":"ok","response":{}}]"#))
        .expect("sent");
    client.message();
    gateway.wait_metric("portcullis_connections{stage=\"open\"}", |count| count == 1);
    client.text(r#"["1","2","room:1","phx_leave",{}]"#);
    assert!(read(&mut app).is_text(), "one that is let in may leave");
    let (mut client, mut app) = pair(&gateway, &server);
    client.send(false, Opcode::Text, br#"["1","1","room:1","phx_le"#);
    client.send(true, Opcode::Continuation, br#"ave",{}]"#);
    assert_eq!(client.close_frame().0, Some(1002));
    assert!(!matches!(app.read(), Ok(Message::Text(_))), "it was never whole");
    // In one piece it is held back alone: phoenix.js leaves a topic that it was refused.
    let (mut client, mut app) = pair(&gateway, &server);
    client.text(r#"["1","1","room:1","phx_leave",{}]"#);
    client.text(r#"["2","2","room:1","phx_join",{"token":"t"}]"#);
    assert_eq!(read(&mut app), Message::text(r#"["2","2","room:1","phx_join",{"token":"t"}]"#));
}

#[test]
fn a_bound_of_the_applications_messages_ends_both_connections() {
    let server = Server::start();
    let more = "kind = \"websocket\"\nupstream_message_max = \"1KiB\"";
    let config = Config::default().backend(&[&server.endpoint()], more);
    let gateway = Gateway::start_alone(&config);
    let (mut client, mut app) = pair(&gateway, &server);
    app.send(Message::binary(vec![7; 1024])).expect("sent");
    client.message();
    app.send(Message::binary(vec![7; 1025])).expect("sent");
    client.expect_explained(UNAVAILABLE, 1012, "backend_unavailable");
    assert!(matches!(read(&mut app), Message::Close(Some(close)) if u16::from(close.code) == 1009));
}

#[test]
fn the_message_with_the_token_reaches_the_application_too() {
    let server = Server::start();
    let config = Config { routes: String::new(), ..config(&server) };
    let gateway = Gateway::start_alone(&config.guarded("ws", "first-message", ""));
    let mut client = Client::open(gateway.address(), "/ws", "");
    let token = token("good");
    client.text(&token);
    client.text("and more");
    let mut app = server.accept();
    assert_eq!(read(&mut app), Message::text(token));
    assert_eq!(read(&mut app), Message::text("and more"));
}

#[test]
fn another_server_is_tried_when_one_does_not_listen() {
    let server = Server::start();
    let absent = format!("ws://127.0.0.1:{}", free_port());
    let config = Config::default()
        .backend(&[&absent, &server.endpoint()], "kind = \"websocket\"\nbalance = \"round-robin\"");
    let gateway = Gateway::start_alone(&config);
    for _ in 0..8 {
        pair(&gateway, &server);
    }
    gateway.wait_metric("portcullis_upstreams{state=\"resting\"}", |count| count == 1);
    assert_eq!(gateway.metric("portcullis_upstream_failures_total"), 3);
}

#[test]
fn the_same_subject_gets_the_same_server() {
    let servers = [Server::start(), Server::start(), Server::start()];
    let endpoints: Vec<String> = servers.iter().map(Server::endpoint).collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let more = "kind = \"websocket\"\nbalance = \"hash-query:room\"";
    let gateway = Gateway::start_alone(&Config::default().backend(&endpoints, more));
    let address = gateway.address();
    let mut used = [0; 3];
    for room in 0..12 {
        let mut place = None;
        for _ in 0..2 {
            let path = format!("/ws?room={room}");
            let client = std::thread::spawn(move || Client::open(address, &path, ""));
            let asked = loop {
                let found = servers.iter().position(Server::has_waiting);
                if let Some(at) = found {
                    break (at, servers[at].accept());
                }
            };
            client.join().expect("let in");
            assert_eq!(*place.get_or_insert(asked.0), asked.0, "room {room}");
        }
        used[place.expect("chosen")] += 1;
    }
    assert!(used.iter().filter(|count| **count > 0).count() > 1, "{used:?}");
}

#[test]
fn a_reload_moves_clients_to_another_server_and_to_another_kind_of_backend() {
    let (first, second, linked) = (Server::start(), Server::start(), Backend::start());
    let of = |server: &Server| {
        config(server).ports(free_port(), free_port()).workers(1).deadlines("drain = \"1s\"")
    };
    let config = of(&first);
    let gateway = Gateway::start_from(&config, tempfile::tempdir().expect("a folder"));
    let (mut client, mut app) = pair(&gateway, &first);

    let begun = Instant::now();
    let moved = config.clone().backend(&[&second.endpoint()], "kind = \"websocket\"");
    gateway.reload(&moved).expect("live");
    let (mut newcomer, mut other) = pair(&gateway, &second);
    await_going_away(&mut client, begun);
    assert!(matches!(read(&mut app), Message::Close(Some(close)) if u16::from(close.code) == 1001));
    newcomer.send(true, Opcode::Text, b"untouched");
    assert_eq!(read(&mut other), Message::text("untouched"));
    gateway.wait_metric("portcullis_upstream_connections", |connections| connections == 1);

    let begun = Instant::now();
    gateway.reload(&config.clone().backend(&[linked.address()], "")).expect("live");
    gateway.wait_ready(1);
    Client::open(gateway.address(), "/ws", "").echo("by a link");
    await_going_away(&mut newcomer, begun);
    gateway.wait_metric("portcullis_upstreams{state=\"ready\"}", |servers| servers == 0);
    gateway.wait_metric("portcullis_links{state=\"ready\"}", |links| links == 1);
}
