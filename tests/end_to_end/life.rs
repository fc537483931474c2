//! The life of an identity: its end, a fresh token, and revocation from all sides.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{
    Backend, Child, Choices, Client, Config, Gateway, Opcode, PATIENCE, SECRET, SLACK, assert_took,
    mint, series_value, unix_now, wait_until,
};

const REVOKED: &str = r#"{"type":"close","code":4401,"reason":"token_revoked","reconnect":false}"#;
/// Within this a revoked client must be told to go.
const REVOKED_WITHIN: Duration = Duration::from_secs(1);

const LIVE: &str = r#"reauthenticate = { prefix = '{"type":"authenticate",', token = "token" }"#;

fn config(backend: &Backend) -> Config {
    Config::bare(backend.address()).guarded("live", "authorization", LIVE)
}

/// A token of `subject`'s with this id, for `left` seconds.
fn fresh(subject: &str, id: &str, left: u64) -> String {
    let now = unix_now();
    let exp = now + left;
    mint(SECRET, &format!(r#"{{"sub":"{subject}","jti":"{id}","iat":{now},"exp":{exp}}}"#))
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

fn open(address: SocketAddr, subject: &str, id: &str, left: u64) -> Client {
    Client::open(address, "/live", &bearer(&fresh(subject, id, left)))
}

fn authenticate(client: &mut Client, token: &str) {
    client.text(&format!(r#"{{"type":"authenticate","token":"{token}"}}"#));
}

/// Reads the explanation and the close, and says goodbye.
fn expect_close(client: &mut Client, reason: &str) {
    let frame = client.frame().expect("a frame");
    assert_eq!(frame.opcode, Opcode::Text);
    let text: Value = serde_json::from_slice(&frame.payload).expect("JSON");
    assert_eq!((&text["type"], &text["reason"]), (&"close".into(), &reason.into()));
    assert_eq!(client.close_frame().1, reason);
}

/// One exchange on the admin socket.
fn admin(socket: &Path, line: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let length = body.len();
    let request =
        format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let body = answer.split_once("\r\n\r\n").expect("a body").1;
    let status = answer[9..12].parse().expect("a status");
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

fn await_link(child: &Child) {
    let ready = "portcullis_links{state=\"ready\"}";
    wait_until("the link is ready", || series_value(&child.get("/metrics").1, ready) == 1);
}

/// The reason with which a token is refused; empty when it is let in.
fn refusal(address: SocketAddr, token: &str) -> String {
    let mut client = Client::open(address, "/live", &bearer(token));
    client.text("are you there");
    let frame = client.frame().expect("a frame");
    match frame.payload.as_slice() {
        b"are you there" => String::new(),
        text => {
            let text: Value = serde_json::from_slice(text).expect("JSON");
            text["reason"].as_str().expect("a reason").to_owned()
        }
    }
}

#[test]
fn a_fresh_token_keeps_a_connection_and_its_backend_is_told() {
    let backend = Backend::start();
    let gateway = Gateway::start(&config(&backend));
    let begun = Instant::now();
    let mut renewed = open(gateway.address(), "ada", "t1", 3);
    let mut other = open(gateway.address(), "ada", "t1", 3);
    renewed.echo("before");
    authenticate(&mut renewed, &fresh("ada", "t2", 60));
    let answer: Value =
        serde_json::from_slice(&renewed.frame().expect("a frame").payload).expect("JSON");
    assert_eq!(answer["type"], "authenticated");
    let left = answer["expires_in_ms"].as_u64().expect("a number");
    assert!((57_000..=60_000).contains(&left), "{left}");
    renewed.text("who are you");
    renewed.expect(Opcode::Text, b"t2 1");
    expect_close(&mut other, "token_expired");
    // Tokens end at whole seconds.
    assert_took("the first token", begun + Duration::from_millis(1), Duration::from_secs(2));
    renewed.echo("after");
    gateway.wait_metric("portcullis_reauthentications_total{result=\"accepted\"}", |n| n == 1);
}

#[test]
fn a_token_that_is_not_good_ends_the_connection() {
    let backend = Backend::start();
    let gateway = Gateway::start(&config(&backend));
    for (token, reason) in [
        (fresh("bob", "t2", 60), "token_forbidden"),
        (
            mint("another secret of 32 bytes or so", r#"{"sub":"ada","exp":1}"#),
            "token_bad_signature",
        ),
        (mint(SECRET, r#"{"sub":"ada","exp":1}"#), "token_expired"),
    ] {
        let mut client = open(gateway.address(), "ada", "t1", 60);
        client.echo("hello");
        authenticate(&mut client, &token);
        expect_close(&mut client, reason);
    }
    let messages = backend.seen().iter().map(|event| format!("{event:?}")).collect::<String>();
    assert!(!messages.contains("authenticate"), "the backend saw a token: {messages}");
    gateway.wait_metric("portcullis_reauthentications_total{result=\"refused\"}", |n| n == 3);
}

#[test]
fn a_backend_sets_the_end_of_an_identity() {
    let backend = Backend::start();
    let gateway = Gateway::start(&config(&backend));
    let mut client = open(gateway.address(), "ada", "t1", 2);
    client.text(&format!("expire {}", unix_now() + 60));
    client.echo("longer");
    std::thread::sleep(Duration::from_millis(2200));
    client.echo("still here");
    client.text(&format!("expire {}", unix_now() - 1));
    expect_close(&mut client, "token_expired");
    gateway.wait_metric("portcullis_expiries_set_total", |n| n == 2);
}

#[test]
fn the_admin_listener_revokes() {
    let backend = Backend::start();
    let gateway = Gateway::start(&config(&backend).workers(2));
    let (address, socket) = (gateway.address(), gateway.admin_socket());
    // Enough of them that both workers have some.
    let clients = |subject: &str, id: &str| -> Vec<Client> {
        (0..12).map(|_| open(address, subject, id, 60)).collect()
    };
    let (mut ada, mut bob, mut eve) =
        (clients("ada", "a"), clients("bob", "b"), clients("eve", "e"));
    bob.iter_mut().for_each(|client| client.echo("hello"));
    for (body, gone, reason) in [
        (r#"{"subject":"ada","lapses_in":60}"#.to_owned(), &mut ada, "subject"),
        (r#"{"token_id":"e","lapses_in":60}"#.to_owned(), &mut eve, "token id"),
    ] {
        let begun = Instant::now();
        let (status, answer) = admin(&socket, "POST /revocations", &body);
        assert_eq!((status, &answer["result"]), (200, &"revoked".into()), "{answer}");
        for client in gone.iter_mut() {
            client.expect(Opcode::Text, REVOKED.as_bytes());
            assert_eq!(client.close_frame(), (Some(4401), "token_revoked".into()));
        }
        assert!(begun.elapsed() < REVOKED_WITHIN, "{reason} took {:?}", begun.elapsed());
    }
    bob.iter_mut().for_each(|client| client.echo("hello again"));
    assert_eq!(refusal(address, &fresh("ada", "another", 60)), "token_revoked");
    assert_eq!(refusal(address, &fresh("eve", "e", 60)), "token_revoked");
    assert_eq!(refusal(address, &fresh("eve", "another", 60)), "");
    // A fresh token of one who is revoked does not help either.
    assert_eq!(admin(&socket, "DELETE /revocations/1", "").0, 200);
    wait_until("ada may come in again", || refusal(address, &fresh("ada", "a", 60)).is_empty());
    // Everything that was made before an instant.
    let before = unix_now() + 1;
    let body = format!(r#"{{"issued_before":{before},"lapses_in":60}}"#);
    assert_eq!(admin(&socket, "POST /revocations", &body).0, 200);
    for client in &mut bob {
        client.expect(Opcode::Text, REVOKED.as_bytes());
    }
    wait_until("that instant", || unix_now() >= before);
    assert_eq!(refusal(address, &fresh("bob", "b", 60)), "");
    let open = "portcullis_revoked_total{when=\"open\"}";
    gateway.wait_metric(open, |count| count >= 36);
    gateway.wait_metric("portcullis_revoked_total{when=\"connecting\"}", |count| count >= 2);
    gateway.wait_metric("portcullis_revocations", |held| held == 2);
}

#[test]
fn a_backend_revokes_for_every_worker_until_it_lapses() {
    const KEY: &str = "a link secret of 32 bytes or more";
    let choices = Choices { secret: Some(KEY), ..Choices::default() };
    let backend = Backend::start_at("127.0.0.1:0", choices);
    let may = |revoke: &str| format!("secret = \"{KEY}\"\nrevoke = \"{revoke}\"");
    let address = backend.address();
    let config = |revoke| config(&backend).backend(&[address], &may(revoke)).workers(2);
    // Not unless the block says so.
    let gateway = Gateway::start(&config("none"));
    let mut bob = open(gateway.address(), "bob", "b", 60);
    bob.text(&format!("revoke bob {}", unix_now() + 4));
    gateway.wait_metric("portcullis_link_revocations_ignored_total", |count| count == 1);
    bob.echo("still here");
    drop(gateway);
    let gateway = Gateway::start(&config("all"));
    let address = gateway.address();
    let mut ada: Vec<Client> = (0..12).map(|_| open(address, "ada", "a", 60)).collect();
    let mut bob = open(address, "bob", "b", 60);
    let begun = Instant::now();
    let lapses = unix_now() + 4;
    bob.text(&format!("revoke ada {lapses}"));
    for client in &mut ada {
        client.expect(Opcode::Text, REVOKED.as_bytes());
    }
    assert!(begun.elapsed() < REVOKED_WITHIN, "{:?}", begun.elapsed());
    bob.echo("still here");
    let refused = refusal(address, &fresh("ada", "a2", 60));
    assert!(refused == "token_revoked" || unix_now() >= lapses, "{refused}");
    wait_until("it has lapsed", || refusal(address, &fresh("ada", "a3", 60)).is_empty());
    assert!(unix_now() >= lapses, "it lapsed early");
    assert!(begun.elapsed() < Duration::from_secs(5) + SLACK, "it lapsed late");
}

#[test]
fn a_backend_with_own_routes_revokes_on_these_alone() {
    const KEY: &str = "a link secret of 32 bytes or more";
    let choices = || Choices { secret: Some(KEY), ..Choices::default() };
    let (ours, theirs) = ["127.0.0.1:0"; 2].map(|at| Backend::start_at(at, choices())).into();
    let may = format!("secret = \"{KEY}\"\nrevoke = \"own-routes\"");
    let mut config = config(&ours).backend(&[ours.address()], &may).workers(2);
    config.backends += &format!(
        "[[backend]]\nname = \"other\"\nendpoints = [{:?}]\nsecret = \"{KEY}\"\n",
        theirs.address()
    );
    config.routes += "[[route]]\npath = \"/other\"\nbackend = \"other\"\nauth = \"live\"\n\
                      origins = \"any\"\norigin_absent = \"allow\"\n";
    config.routes += &format!("{LIVE}\n");
    let gateway = Gateway::start(&config);
    let address = gateway.address();
    let elsewhere =
        |subject: &str| Client::open(address, "/other", &bearer(&fresh(subject, "a", 60)));
    let mut here: Vec<Client> = (0..8).map(|_| open(address, "ada", "a", 60)).collect();
    let mut there: Vec<Client> = (0..8).map(|_| elsewhere("ada")).collect();
    there.iter_mut().for_each(|client| client.echo("hello"));
    let mut bob = open(address, "bob", "b", 60);
    let begun = Instant::now();
    bob.text(&format!("revoke ada {}", unix_now() + 60));
    for client in &mut here {
        client.expect(Opcode::Text, REVOKED.as_bytes());
    }
    assert!(begun.elapsed() < REVOKED_WITHIN, "{:?}", begun.elapsed());
    // Open clients of the other route stay, may present a fresh token, and new ones come in.
    there.iter_mut().for_each(|client| client.echo("still here"));
    authenticate(&mut there[0], &fresh("ada", "a2", 60));
    assert!(there[0].message().1.starts_with(br#"{"type":"authenticated""#));
    elsewhere("ada").echo("let in");
    assert_eq!(refusal(address, &fresh("ada", "a3", 60)), "token_revoked");
    let (_, held) = admin(&gateway.admin_socket(), "GET /revocations", "");
    assert_eq!(held["revocations"][0]["backend"], "main", "{held}");
    // For the other backend an operator may say the same.
    let body = r#"{"subject":"ada","lapses_in":60,"backend":"other"}"#;
    assert_eq!(admin(&gateway.admin_socket(), "POST /revocations", body).0, 200);
    for client in &mut there {
        client.expect(Opcode::Text, REVOKED.as_bytes());
    }
    bob.echo("still here");
}

#[test]
fn revocations_outlive_the_death_of_the_gateway() {
    let backend = Backend::start();
    let mut config = config(&backend);
    config.gateway += "revocations_file = \"revocations\"\n";
    let mut child = Child::start(config, "");
    let folder = child.path("portcullis.toml").parent().expect("a folder").to_owned();
    let revoke = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["revoke", "--config", "portcullis.toml"])
            .args(arguments)
            .current_dir(&folder)
            .output()
            .expect("it runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    await_link(&child);
    let mut ada = open(child.address, "ada", "a", 60);
    let (code, told, _) = revoke(&["--subject", "ada", "--lapses-in", "1h"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains(r#""saved":true"#), "{told}");
    ada.expect(Opcode::Text, REVOKED.as_bytes());
    child.kill_and_restart();
    await_link(&child);
    assert_eq!(refusal(child.address, &fresh("ada", "a", 60)), "token_revoked");
    let (_, listed, _) = revoke(&["--list"]);
    let entry: Value = serde_json::from_str(&listed).expect("one line");
    assert_eq!((&entry["id"], &entry["subject"]), (&1.into(), &"ada".into()));
    assert_eq!(revoke(&["--undo", "1"]).0, Some(0));
    let (code, _, why) = revoke(&["--undo", "1"]);
    assert!(code == Some(1) && why.contains("404"), "{why}");
    child.kill_and_restart();
    await_link(&child);
    assert_eq!(refusal(child.address, &fresh("ada", "a", 60)), "");
    assert_eq!(revoke(&["--list"]).1, "");
    // A file that is not whole is no reason to start without it.
    child.signal("TERM");
    child.wait();
    std::fs::write(child.path("revocations"), "portcullis-revocations 1 sha256=x\n{}\n")
        .expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["run", "--config", "portcullis.toml"])
        .current_dir(&folder)
        .output()
        .expect("it ends by itself");
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{why}");
    for part in ["file of revocations", "checksum", "what to do: restore it from a backup"] {
        assert!(why.contains(part), "{why}");
    }
}
