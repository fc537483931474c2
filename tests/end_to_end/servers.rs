//! Ordinary WebSocket servers behind the gateway.

use std::io::ErrorKind;
use std::net::TcpStream;

use tungstenite::protocol::CloseFrame;
use tungstenite::{Bytes, Error, Message, WebSocket};

use crate::support::{Client, Config, End, Gateway, Opcode, Server, free_port, token};

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

/// What comes next from the gateway.
fn read(app: &mut WebSocket<TcpStream>) -> Message {
    loop {
        match app.read() {
            Err(Error::Io(error)) if error.kind() == ErrorKind::Interrupted => {}
            message => return message.expect("a message"),
        }
    }
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
    assert!(!server.has_connection());
    let address = gateway.address();
    let path = format!("/ws?token={}", token("good"));
    let client = std::thread::spawn(move || Client::open(address, &path, ""));
    let mut app = server.accept();
    let mut client = client.join().expect("let in");
    app.send(Message::Binary(Bytes::from_static(b"in"))).expect("sent");
    client.expect(Opcode::Binary, b"in");
}
