//! WebSocket servers behind the gateway that speak TLS.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

use crate::support::{
    Asked, Child, Client, Config, End, Gateway, Opcode, Server, assert_took, free_port, read,
    series_value, wait_until,
};
use crate::tls;

const NAME: &str = "app.example";
const UNAVAILABLE: &str = concat!(
    r#"{"type":"close","code":1012,"reason":"backend_unavailable","#,
    r#""reconnect":true,"retry_after_ms":2000}"#,
);

type Tls = StreamOwned<ServerConnection, TcpStream>;

/// A server with a certificate.
struct Secure {
    server: Server,
    tls: Arc<ServerConfig>,
    folder: tempfile::TempDir,
}

impl Secure {
    /// With a certificate for `name` that is valid to the end of `year`.
    fn start(name: &str, year: i32, versions: &[&'static SupportedProtocolVersion]) -> Secure {
        let mut parameters = rcgen::CertificateParams::new([name.to_owned()]).expect("a name");
        parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(year, 12, 31);
        let folder = tempfile::tempdir().expect("a temporary folder");
        // Issuers with the same name would be taken for each other at first.
        let issuer = folder.path().display().to_string();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, issuer);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = parameters.self_signed(&key).expect("a certificate");
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).expect("written");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivatePkcs8KeyDer::from_pem_slice(key.serialize_pem().as_bytes());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("known versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.expect("a key").into())
            .expect("a certificate");
        Secure { server: Server::start(), tls: Arc::new(tls), folder }
    }

    fn proper() -> Secure {
        Secure::start(NAME, 2100, rustls::ALL_VERSIONS)
    }

    /// Settings with it as the one server, trusted by its own certificate.
    fn config(&self) -> Config {
        self.config_with(&format!("ca_file = {:?}", self.folder.path().join("ca.pem")))
    }

    fn config_with(&self, more: &str) -> Config {
        let endpoint = self.server.endpoint().replace("ws://", "wss://");
        let kind = format!("kind = \"websocket\"\nserver_name = \"{NAME}\"\n{more}");
        Config::default().backend(&[&endpoint], &kind)
    }

    /// The next connection, in TLS as far as that comes.
    fn connection(&self) -> Tls {
        let connection = ServerConnection::new(Arc::clone(&self.tls)).expect("a configuration");
        StreamOwned::new(connection, self.server.connection())
    }

    /// The next connection, accepted.
    fn accept(&self) -> WebSocket<Tls> {
        Asked::read(self.connection()).accept("")
    }

    /// A client that is through to it.
    fn pair(&self, gateway: &Gateway) -> (Client, WebSocket<Tls>) {
        let address = gateway.address();
        let client = std::thread::spawn(move || Client::open(address, "/ws", ""));
        let app = self.accept();
        (client.join().expect("it is let in"), app)
    }
}

/// How the connection ends: `Ok` with close_notify.
fn end(mut stream: Tls) -> Result<(), ErrorKind> {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).map_err(|error| error.kind())?;
    assert!(rest.is_empty(), "{:?} came before the end", rest.escape_ascii().to_string());
    Ok(())
}

/// Carries a message that no queue holds whole, there and back.
fn carry(client: &mut Client, app: &mut WebSocket<Tls>, bytes: &[u8]) {
    let message = std::thread::scope(|threads| {
        threads.spawn(|| client.send(true, Opcode::Binary, bytes));
        read(app)
    });
    assert!(message == Message::binary(bytes.to_vec()));
    let heard = std::thread::scope(|threads| {
        threads.spawn(|| app.send(message).expect("sent"));
        client.message()
    });
    assert!(heard == (Opcode::Binary, bytes.to_vec()));
}

#[test]
fn messages_and_closes_pass_both_ways_in_tls() {
    for version in rustls::ALL_VERSIONS {
        let secure = Secure::start(NAME, 2100, &[version]);
        let gateway = Gateway::start_alone(&secure.config());
        let (mut client, mut app) = secure.pair(&gateway);
        assert_eq!(app.get_ref().conn.server_name(), Some(NAME));
        assert_eq!(app.get_ref().conn.protocol_version(), Some(version.version));
        client.text("hello");
        assert_eq!(read(&mut app), Message::text("hello"));
        app.send(Message::text("and back")).expect("sent");
        client.expect(Opcode::Text, b"and back");
        client.send(true, Opcode::Ping, b"from the client");
        assert_eq!(read(&mut app), Message::Ping("from the client".into()));
        app.flush().expect("sent");
        client.expect(Opcode::Pong, b"from the client");
        let large: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        carry(&mut client, &mut app, &large);
        client.close(4000, "why");
        let Message::Close(Some(CloseFrame { code, reason })) = read(&mut app) else {
            panic!("no close frame");
        };
        assert_eq!((u16::from(code), reason.as_str()), (4000, "why"));
        assert_eq!(client.close_frame(), (Some(4000), String::new()));
        assert_eq!(client.end(), End::Fin);
        let _ = app.flush();
        // The server says nothing more: the gateway ends the connection in order, too.
        assert_eq!(end(app.into_inner()), Ok(()));
        gateway.wait_closes("client_closed", 1);
    }
}

#[test]
fn a_servers_close_in_tls_reaches_the_client_as_it_is() {
    let secure = Secure::proper();
    let gateway = Gateway::start_alone(&secure.config());
    for (code, reason) in [(1001, ""), (1011, "oops"), (4711, "custom")] {
        let (mut client, mut app) = secure.pair(&gateway);
        app.close(Some(CloseFrame { code: code.into(), reason: reason.into() })).expect("sent");
        assert_eq!(client.close_frame(), (Some(code), reason.into()));
        let echo = read(&mut app);
        assert!(matches!(&echo, Message::Close(Some(frame)) if frame.code == code.into()));
        let mut stream = app.into_inner();
        stream.conn.send_close_notify();
        stream.flush().expect("sent");
        assert_eq!(end(stream), Ok(()));
    }
    // close_notify without a close frame, and an end without either.
    for in_order in [true, false] {
        let (mut client, app) = secure.pair(&gateway);
        let mut stream = app.into_inner();
        if in_order {
            stream.conn.send_close_notify();
            stream.flush().expect("sent");
            stream.sock.shutdown(Shutdown::Write).expect("a FIN");
            assert_eq!(end(stream), Ok(()));
        } else {
            drop(stream);
        }
        client.expect_explained(UNAVAILABLE, 1012, "backend_unavailable");
    }
}

#[test]
fn both_sides_speak_tls() {
    let secure = Secure::proper();
    let (config, _folder) = tls::config(secure.config(), &["a.example"]);
    let gateway = Gateway::start_alone(&config);
    let address = gateway.address();
    let client = std::thread::spawn(move || tls::open(address, &tls::Wish::default(), "/ws", ""));
    let mut app = secure.accept();
    let mut client = client.join().expect("it is let in");
    let large = vec![7; 300_000];
    for _ in 0..3 {
        carry(&mut client, &mut app, &large);
    }
    client.close(1000, "");
    assert!(matches!(read(&mut app), Message::Close(Some(frame)) if frame.code == 1000.into()));
    assert_eq!(client.close_frame(), (Some(1000), String::new()));
    assert_eq!(client.end(), End::Fin);
    let _ = app.flush();
    assert_eq!(end(app.into_inner()), Ok(()));
}

/// What clients of a server that fails hear, and what the log says about the server.
fn failing(secure: Secure, config: Config, answer: fn(Tls), told: &str) {
    let child = Child::start(config, "");
    std::thread::spawn(move || {
        loop {
            answer(secure.connection());
        }
    });
    for _ in 0..3 {
        let mut client = Client::open(child.address, "/ws", "");
        client.expect_explained(UNAVAILABLE, 1012, "backend_unavailable");
    }
    wait_until(told, || {
        let log = child.log();
        let line = log.lines().find(|line| line.contains("WebSocket server rests"));
        if let Some(line) = line {
            assert!(line.contains(told), "{line} does not say {told}");
        }
        line.is_some()
    });
    wait_until("the failures are counted", || {
        let metrics = child.get("/metrics").1;
        series_value(&metrics, "portcullis_upstream_failures_total") >= 3
    });
}

/// Shakes hands, which must fail: the request must not come.
fn shake_hands(mut stream: Tls) {
    let mut request = [0];
    match stream.read(&mut request) {
        Ok(0) | Err(_) => {}
        Ok(_) => panic!("the gateway sends its request to a server that it does not know"),
    }
}

/// Whatever address a resolver gives for it.
#[test]
fn the_certificate_must_have_the_name_of_the_endpoint() {
    let config = |secure: &Secure| {
        let endpoint = secure.server.endpoint().replace("ws://127.0.0.1", "wss://localhost");
        let kind = format!(
            "kind = \"websocket\"\npreserve_host = false\nca_file = {:?}",
            secure.folder.path().join("ca.pem")
        );
        Config::default().backend(&[&endpoint], &kind)
    };
    let secure = Secure::start("localhost", 2100, rustls::ALL_VERSIONS);
    let gateway = Gateway::start_alone(&config(&secure));
    let address = gateway.address();
    let client = std::thread::spawn(move || Client::open(address, "/ws", ""));
    let asked = Asked::read(secure.connection());
    assert_eq!(asked.stream.conn.server_name(), Some("localhost"));
    let host = secure.server.endpoint().replace("ws://127.0.0.1", "\r\nHost: localhost");
    assert!(asked.head.contains(&format!("{host}\r\n")), "{}", asked.head);
    let mut app = asked.accept("");
    let mut client = client.join().expect("it is let in");
    client.text("hello");
    assert_eq!(read(&mut app), Message::text("hello"));

    let secure = Secure::start("127.0.0.1", 2100, rustls::ALL_VERSIONS);
    let config = config(&secure);
    failing(secure, config, shake_hands, "certificate is only valid for IpAddress(");
}

#[test]
fn a_certificate_of_another_name_is_refused() {
    let secure = Secure::start("other.example", 2100, rustls::ALL_VERSIONS);
    let config = secure.config();
    let told = "certificate is only valid for DnsName(";
    failing(secure, config, shake_hands, told);
}

#[test]
fn a_certificate_of_an_unknown_issuer_is_refused() {
    let (secure, other) = (Secure::proper(), Secure::proper());
    let config = secure.config_with(&format!("ca_file = {:?}", other.folder.path().join("ca.pem")));
    failing(secure, config, shake_hands, "UnknownIssuer; name the certificate of its issuer");
}

#[test]
fn an_expired_certificate_is_refused() {
    let secure = Secure::start(NAME, 2021, rustls::ALL_VERSIONS);
    let config = secure.config();
    failing(secure, config, shake_hands, "renew the server's certificate");
}

#[test]
fn servers_without_tls_are_found_out() {
    let secure = Secure::proper();
    let config = secure.config();
    let answer = |mut stream: Tls| {
        let mut hello = [0; 5];
        stream.sock.read_exact(&mut hello).expect("a hello");
        assert_eq!(hello[0], 22, "nothing in the clear");
        stream.sock.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("sent");
        let mut alert = Vec::new();
        let _ = stream.sock.read_to_end(&mut alert);
    };
    failing(secure, config, answer, "write ws:// for a server without TLS");
    let secure = Secure::proper();
    let config = secure.config();
    let answer = |mut stream: Tls| {
        let _ = stream.sock.read(&mut [0; 4096]);
    };
    failing(secure, config, answer, "closed during the TLS handshake");
}

#[test]
fn a_server_that_never_ends_the_tls_handshake_has_its_deadline() {
    let secure = Secure::proper();
    let gateway = Gateway::start_alone(&secure.config().deadlines("upstream_connect = \"600ms\""));
    let address = gateway.address();
    let begun = Instant::now();
    let mut client = Client::open(address, "/ws", "");
    client.expect_explained(UNAVAILABLE, 1012, "backend_unavailable");
    assert_took("the TLS handshake", begun, Duration::from_millis(300));
    let mut stream = secure.server.connection();
    let mut hello = Vec::new();
    stream.read_to_end(&mut hello).expect("the gateway ends the connection");
    assert!(hello.len() > 100 && !hello.windows(3).any(|three| three == b"GET"));
}

#[test]
fn damaged_records_end_the_connection() {
    let secure = Secure::proper();
    let gateway = Gateway::start_alone(&secure.config());
    let (mut client, mut app) = secure.pair(&gateway);
    app.send(Message::text("genuine")).expect("sent");
    client.expect(Opcode::Text, b"genuine");
    let mut stream = app.into_inner();
    stream.sock.write_all(&[23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).expect("sent");
    stream.sock.write_all(&[0; 10]).expect("sent");
    client.expect_explained(UNAVAILABLE, 1012, "backend_unavailable");
    let error = stream.read(&mut [0]).expect_err("an alert");
    assert!(error.to_string().contains("BadRecordMac"), "{error}");
    gateway.wait_metric("portcullis_upstream_violations_total", |count| count == 1);
}

#[test]
fn a_reload_takes_a_new_ca_file_for_new_connections() {
    let (secure, other) = (Secure::proper(), Secure::proper());
    let config = |ca: &Secure| {
        let ca = format!("ca_file = {:?}", ca.folder.path().join("ca.pem"));
        secure.config_with(&ca)
    };
    let (listener, admin) = (free_port(), free_port());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gateway = Gateway::start_from(&config(&secure).ports(listener, admin), folder);
    let (mut client, mut app) = secure.pair(&gateway);
    gateway.reload(&config(&other).ports(listener, admin)).expect("it can be reloaded");
    let address = gateway.address();
    let stranger = std::thread::spawn(move || Client::open(address, "/ws", ""));
    while !stranger.is_finished() {
        match secure.server.has_waiting() {
            true => shake_hands(secure.connection()),
            false => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    let mut stranger = stranger.join().expect("it gets a 101");
    stranger.expect_explained(UNAVAILABLE, 1012, "backend_unavailable");
    client.text("still here");
    assert_eq!(read(&mut app), Message::text("still here"));
}

#[test]
fn the_next_server_takes_over_from_one_whose_certificate_is_wrong() {
    let (secure, wrong) =
        (Secure::proper(), Secure::start("other.example", 2100, rustls::ALL_VERSIONS));
    let endpoint = |secure: &Secure| secure.server.endpoint().replace("ws://", "wss://");
    let kind = format!(
        "kind = \"websocket\"\nserver_name = \"{NAME}\"\nbalance = \"round-robin\"\nca_file = {:?}",
        secure.folder.path().join("ca.pem")
    );
    let endpoints = [endpoint(&wrong), endpoint(&secure)];
    let config = Config::default().backend(&[&endpoints[0], &endpoints[1]], &kind);
    let gateway = Gateway::start_alone(&config);
    std::thread::spawn(move || {
        loop {
            shake_hands(wrong.connection());
        }
    });
    for _ in 0..4 {
        let (mut client, mut app) = secure.pair(&gateway);
        client.text("hello");
        assert_eq!(read(&mut app), Message::text("hello"));
    }
}
