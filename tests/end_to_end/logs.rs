//! What the log says of clients: lines for people who look for one of them.

use serde_json::Value;

use crate::support::{
    Backend, Child, Choices, Client, Config, RawBackend, mint, token, unix_now, wait_until,
};

/// The lines of one kind, in the order in which they came.
fn lines(child: &Child, message: &str) -> Vec<Value> {
    let log = child.log();
    let parsed = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter(|line| line["message"] == message).collect()
}

/// The close lines, once there are as many.
fn closes(child: &Child, count: usize) -> Vec<Value> {
    wait_until("every close is in the log", || lines(child, "connection closed").len() >= count);
    lines(child, "connection closed")
}

fn wait_linked(child: &Child) {
    wait_until("the link is up", || {
        child.get("/metrics").1.contains("portcullis_links{state=\"ready\"} 1")
    });
}

fn bearer(subject: &str) -> String {
    let claims = format!(r#"{{"sub":{subject},"exp":{}}}"#, unix_now() + 600);
    format!("Authorization: Bearer {}\r\n", mint(crate::support::SECRET, &claims))
}

#[test]
fn a_close_line_names_the_connection_as_the_backend_knows_it() {
    let backend = Backend::start_at("127.0.0.1:0", Choices { decides: true, ..Choices::default() });
    let config = Config::bare(backend.address()).guarded("a", "authorization", "").asking(
        "b",
        "backend",
        &["authorization"],
        "",
    );
    let child = Child::start(config, "");
    wait_linked(&child);
    let names = ["/a", "/a", "/b"].map(|path| {
        let token = if path == "/b" { "accept_ada".into() } else { token("good") };
        let good = format!("Authorization: Bearer {token}\r\n");
        let mut client = Client::open(child.address, path, &good);
        client.echo("hello");
        if path == "/b" {
            backend.asked();
        }
        let name = backend.opened().connection;
        client.close(1000, "");
        client.drain();
        backend.ended();
        name
    });
    let closed = closes(&child, 3);
    for name in &names {
        assert_eq!(name.len(), 16, "{names:?}");
        let found = closed.iter().filter(|line| line["connection"] == name.as_str()).count();
        assert_eq!(found, 1, "{name} in {closed:?}");
    }
    assert!(closed.iter().all(|line| line.get("subject").is_none()), "off by default");
}

#[test]
fn subjects_are_in_close_lines_where_the_settings_say_so() {
    let backend = Backend::start();
    let key = "0123456789abcdef0123456789abcdef";
    // printf alice | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
    let hash = "433deb45467e4e53dbaba594c88bc3a2";
    for (level, alice, odd) in
        [("plain", "alice", Some("a\"\\u{1b}[2J\\n\\u{202e}")), ("hash", hash, None)]
    {
        let mut config = Config::to(backend.address()).guarded("a", "authorization", "");
        config.gateway = "log = { subject = \"LEVEL\", subject_key_file = \"env:K\" }\n".into();
        config.gateway = config.gateway.replace("LEVEL", level);
        let child = Child::start(config, &format!("export K={key};"));
        wait_linked(&child);
        for more in [bearer("\"alice\""), bearer(r#""a\"\u001b[2J\n\u202e""#)] {
            let mut client = Client::open(child.address, "/a", &more);
            client.echo("hello");
            client.close(1000, "");
            client.drain();
        }
        let mut client = Client::open(child.address, "/ws", "");
        client.echo("nobody, in a slot that had a subject");
        client.close(1000, "");
        client.drain();
        let closed = closes(&child, 3);
        assert_eq!(closed[0]["subject"], alice, "{level}");
        assert!(odd.is_none_or(|odd| closed[1]["subject"] == odd), "{level}: {:?}", closed[1]);
        assert_eq!(closed[2].get("subject"), None, "{level}");
        let log = child.log();
        assert!(!log.contains('\u{1b}') && !log.contains('\u{202e}'), "{log}");
        assert!(level == "plain" || !log.contains("alice"), "{log}");
    }
}

#[test]
fn health_checks_write_no_lines_and_refused_origins_a_few() {
    let backend = RawBackend::listen();
    let config = Config::bare(&backend.address())
        .route("/health", "auth = \"none\"\nhealth = true")
        .route("/ws", "auth = \"none\"\norigins = [\"https://app.example\"]");
    let child = Child::start(config, "");
    for _ in 0..3 {
        let mut client = Client::connect(child.address);
        client.write(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(client.head().starts_with("HTTP/1.1 200 "));
        client.drain();
    }
    let asked: Vec<Client> = (0..30)
        .map(|_| {
            let odd = "Origin: http://localhost:3000/\u{202e}\"\\\r\n";
            let (client, answer) = Client::ask(child.address, "/ws", odd);
            assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
            client
        })
        .collect();
    for mut client in asked {
        client.drain();
    }
    let closed = closes(&child, 30);
    assert_eq!(closed.len(), 30);
    assert!(closed.iter().all(|line| line["cause"] == "forbidden_origin"), "{closed:?}");
    wait_until("they are counted all the same", || {
        child.get("/metrics").1.contains("portcullis_closes_total{cause=\"health_check\"} 3")
    });
    let message = "Origin refused: if this page is yours, add it to the route's origins";
    let refused = lines(&child, message);
    assert!((5..10).contains(&refused.len()), "{} lines", refused.len());
    let expected = "http://localhost:3000/\\u{202e}\"\\\\";
    assert_eq!((&refused[0]["origin"], &refused[0]["route"]), (&expected.into(), &"/ws".into()));
}
