//! TLS as clients meet it: versions, ALPN, server names, reload, and what is not TLS.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis::dev::any_certificate::AnyCertificate;
use rustls::pki_types::ServerName;
use rustls::{
    ClientConfig, ClientConnection, ProtocolVersion, StreamOwned, SupportedProtocolVersion, version,
};

use crate::support::{
    Backend, Client, Config, End, Gateway, Opcode, PATIENCE, SLACK, free_port, request, wait_until,
};

/// Writes a fresh self-signed certificate for `name` into `folder`; returns it as DER.
pub fn certify(folder: &Path, name: &str) -> Vec<u8> {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    std::fs::write(folder.join(format!("{name}.pem")), made.cert.pem()).expect("written");
    let key = made.signing_key.serialize_pem();
    std::fs::write(folder.join(format!("{name}.key")), key).expect("written");
    made.cert.der().to_vec()
}

/// The configuration with one TLS listener that has a certificate for each name.
pub fn config(config: Config, names: &[&str]) -> (Config, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let entries: Vec<String> = names
        .iter()
        .map(|name| {
            certify(folder.path(), name);
            let file = |ending| folder.path().join(format!("{name}.{ending}"));
            format!("{{ certificate = {:?}, key = {:?} }}", file("pem"), file("key"))
        })
        .collect();
    let listeners =
        format!("[[listener]]\naddress = \"127.0.0.1:1\"\ntls = [{}]\n", entries.join(", "));
    (Config { listeners, ..config }, folder)
}

/// What a client asks of TLS.
#[derive(Clone)]
pub struct Wish {
    pub name: &'static str,
    pub versions: &'static [&'static SupportedProtocolVersion],
    pub alpn: &'static [&'static str],
}

impl Default for Wish {
    fn default() -> Self {
        Wish { name: "a.example", versions: rustls::ALL_VERSIONS, alpn: &[] }
    }
}

/// What TLS came to.
pub struct Secured {
    pub stream: StreamOwned<ClientConnection, TcpStream>,
    pub certificate: Vec<u8>,
    pub version: ProtocolVersion,
    pub alpn: Option<Vec<u8>>,
}

/// Connects and shakes hands.
pub fn secure(address: SocketAddr, wish: &Wish) -> Result<Secured, std::io::Error> {
    secure_after(address, b"", wish)
}

/// Connects, sends plain bytes and then shakes hands.
pub fn secure_after(
    address: SocketAddr,
    plain: &[u8],
    wish: &Wish,
) -> Result<Secured, std::io::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(wish.versions)
        .expect("known versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = wish.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(wish.name).expect("a name");
    let mut connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.write_all(plain)?;
    while connection.is_handshaking() {
        match connection.complete_io(&mut tcp) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            outcome => drop(outcome?),
        }
    }
    let certificates = connection.peer_certificates().expect("a certificate");
    Ok(Secured {
        certificate: certificates[0].to_vec(),
        version: connection.protocol_version().expect("agreed on"),
        alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
        stream: StreamOwned::new(connection, tcp),
    })
}

/// A client that has been upgraded over TLS.
pub fn open(address: SocketAddr, wish: &Wish, path: &str, more: &str) -> Client {
    let Secured { stream, .. } = secure(address, wish).expect("a handshake");
    let tcp = stream.sock.try_clone().expect("cloned");
    let mut client = Client::over(stream, tcp);
    client.write(request(path, more).as_bytes());
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    client
}

fn start(names: &[&str]) -> (Gateway, Backend, tempfile::TempDir) {
    let backend = Backend::start();
    let (config, folder) = config(Config::to(backend.address()), names);
    (Gateway::start(&config), backend, folder)
}

#[test]
fn both_versions_carry_messages_of_every_size() {
    let (gateway, _backend, _folder) = start(&["a.example"]);
    const TABLE: [(&[&SupportedProtocolVersion], ProtocolVersion); 2] = [
        (&[&version::TLS13], ProtocolVersion::TLSv1_3),
        (&[&version::TLS12], ProtocolVersion::TLSv1_2),
    ];
    for (versions, expected) in TABLE {
        let wish = Wish { versions, ..Wish::default() };
        assert_eq!(secure(gateway.address(), &wish).expect("a handshake").version, expected);
        let mut client = open(gateway.address(), &wish, "/ws", "");
        client.echo("hello");
        // Around and above the size of a TLS record.
        for length in [0, 1, 16_383, 16_384, 16_385, 100_000, 1 << 20] {
            let payload: Vec<u8> = (0..length).map(|at: u32| (at % 251) as u8).collect();
            client.send(true, Opcode::Binary, &payload);
            assert!(client.message() == (Opcode::Binary, payload), "{length}");
        }
        client.close(1000, "");
        assert_eq!(client.close_frame(), (Some(1000), String::new()));
        assert_eq!(client.end(), End::Fin);
    }
    gateway.wait_metric("portcullis_tls_handshakes_total", |count| count == 4);
}

#[test]
fn alpn_is_http_1_1_or_none() {
    let (gateway, _backend, _folder) = start(&["a.example"]);
    let table: [(&'static [&'static str], Option<&[u8]>); 3] =
        [(&[], None), (&["http/1.1"], Some(b"http/1.1")), (&["h2", "http/1.1"], Some(b"http/1.1"))];
    for (alpn, expected) in table {
        let secured = secure(gateway.address(), &Wish { alpn, ..Wish::default() });
        assert_eq!(secured.expect("a handshake").alpn.as_deref(), expected, "{alpn:?}");
    }
    // RFC 7301 §3.2: nothing in common is fatal.
    let wish = Wish { alpn: &["h2"], ..Wish::default() };
    let error = secure(gateway.address(), &wish).err().expect("refused").to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
    gateway.wait_closes("tls_failed", 1);
}

#[test]
fn the_server_name_selects_the_certificate() {
    let backend = Backend::start();
    let names = ["a.example", "b.example", "*.c.example"];
    let (config, folder) = config(Config::to(backend.address()), &names);
    let gateway = Gateway::start(&config);
    let served = |name| secure(gateway.address(), &Wish { name, ..Wish::default() });
    let der = |name: &str| {
        let pem = std::fs::read(folder.path().join(format!("{name}.pem"))).expect("written");
        let mut pem = &pem[..];
        let found = rustls_pem(&mut pem);
        found.expect("a certificate")
    };
    for (name, expected) in [
        ("a.example", "a.example"),
        ("b.example", "b.example"),
        ("x.c.example", "*.c.example"),
        ("unknown.example", "a.example"),
        // An address is no server name, so none is sent.
        ("127.0.0.1", "a.example"),
    ] {
        let certificate = served(name).expect("a handshake").certificate;
        assert!(certificate == der(expected), "{name} is not served {expected}");
    }
}

/// The first certificate of a PEM text, as DER.
fn rustls_pem(pem: &mut &[u8]) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let text = std::str::from_utf8(pem).ok()?;
    let body = text.split("-----").nth(2)?;
    let packed: String = body.chars().filter(|c| !c.is_whitespace()).collect();
    base64::engine::general_purpose::STANDARD.decode(packed).ok()
}

#[test]
fn a_reload_serves_the_new_certificate_and_keeps_connections() {
    let backend = Backend::start();
    let (config, certificates) = config(Config::to(backend.address()), &["a.example"]);
    let config = config.ports(free_port(), free_port());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gateway = Gateway::start_from(&config, folder);
    gateway.wait_ready(1);
    let wish = Wish::default();
    let mut client = open(gateway.address(), &wish, "/ws", "");
    let old = secure(gateway.address(), &wish).expect("a handshake").certificate;
    let new = certify(certificates.path(), "a.example");
    assert!(old != new);
    assert!(gateway.reload(&config).is_ok());
    wait_until("the new certificate is served", || {
        secure(gateway.address(), &wish).is_ok_and(|secured| secured.certificate == new)
    });
    client.echo("still here");
    // A key that does not fit is refused, and the last good pair stays.
    let path = certificates.path().join("a.example.key");
    std::fs::write(path, "no key").expect("written");
    assert!(!gateway.reload(&config).expect_err("refused").is_empty());
    assert!(secure(gateway.address(), &wish).expect("a handshake").certificate == new);
    client.echo("still here");
}

#[test]
fn what_is_not_tls_ends_without_harm() {
    let (gateway, _backend, _folder) = start(&["a.example"]);
    let table: [&[u8]; 5] = [
        b"GET /ws HTTP/1.1\r\nHost: a.example\r\n\r\n",
        &[0; 64],
        &[0xff; 4096],
        // A record with a handshake message that is none.
        &[0x16, 3, 1, 0, 4, 1, 0, 0, 0],
        // A record over 2^14 bytes.
        &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3],
    ];
    for (index, sent) in table.into_iter().enumerate() {
        let mut client = Client::connect(gateway.address());
        client.write(sent);
        let (bytes, _) = client.drain();
        // An alert (RFC 8446 §6) or nothing; never plaintext HTTP.
        assert!(bytes.is_empty() || bytes[0] == 0x15, "{index}: {}", bytes.escape_ascii());
    }
    let mut client = open(gateway.address(), &Wish::default(), "/ws", "");
    client.echo("unharmed");
}

#[test]
fn refusals_and_ends_over_tls_say_goodbye() {
    let backend = Backend::start();
    let plain = Config::bare(backend.address()).guarded("a", "authorization", "");
    let (config, _folder) = config(plain, &["a.example"]);
    let gateway = Gateway::start(&config);
    let mut client = open(gateway.address(), &Wish::default(), "/a", "");
    let text = r#"{"type":"close","code":4401,"reason":"token_missing","reconnect":false}"#;
    client.expect_explained(text, 4401, "token_missing");
    let Secured { stream, .. } = secure(gateway.address(), &Wish::default()).expect("a handshake");
    let tcp = stream.sock.try_clone().expect("cloned");
    let mut client = Client::over(stream, tcp);
    client.write(b"POST / HTTP/1.1\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 405 Method Not Allowed\r\n"));
    assert_eq!(client.drain().1, End::Fin);
    assert!(backend.seen().is_empty());
}

#[test]
fn many_clients_shake_hands_at_once() {
    let backend = Backend::start();
    let (config, _folder) = config(Config::to(backend.address()), &["a.example"]);
    let config = config.limits("handshakes_per_tick = 2");
    let gateway = Gateway::start(&config);
    std::thread::scope(|clients| {
        for number in 0..4 {
            let address = gateway.address();
            clients.spawn(move || {
                for round in 0..10 {
                    let mut client = open(address, &Wish::default(), "/ws", "");
                    client.echo(&format!("{number} {round}"));
                }
            });
        }
    });
    std::thread::sleep(Duration::from_millis(10));
    gateway.wait_metric("portcullis_tls_handshakes_total", |count| count == 40);
}

#[test]
fn the_head_has_its_deadline_after_the_handshake() {
    let backend = Backend::start();
    let (config, _folder) = config(Config::to(backend.address()), &["a.example"]);
    let gateway = Gateway::start(&config.deadlines("request_head = \"400ms\""));
    // What is sent of a head -> what comes back.
    for (sent, answer) in [("", ""), ("GET /ws HT", "HTTP/1.1 408 Request Timeout\r\n")] {
        let secured = secure(gateway.address(), &Wish::default()).expect("a handshake");
        let tcp = secured.stream.sock.try_clone().expect("cloned");
        let mut client = Client::over(secured.stream, tcp);
        client.write(sent.as_bytes());
        let begun = Instant::now();
        let (bytes, _) = client.drain();
        assert!(begun.elapsed() < Duration::from_millis(400) + SLACK, "{:?}", begun.elapsed());
        let text = String::from_utf8(bytes).expect("text");
        assert!(text.starts_with(answer) && text.is_empty() == answer.is_empty(), "{text}");
    }
    gateway.wait_closes("handshake_timed_out", 2);
}

#[test]
fn a_lost_backend_is_explained_over_tls() {
    let backend = Backend::start();
    let (config, _folder) = config(Config::to(backend.address()), &["a.example"]);
    let gateway = Gateway::start(&config);
    let mut client = open(gateway.address(), &Wish::default(), "/ws", "");
    client.echo("hello");
    drop(backend);
    let (_, explained) = client.message();
    let value: serde_json::Value = serde_json::from_slice(&explained).expect("JSON");
    assert_eq!((&value["code"], &value["reason"]), (&1012.into(), &"backend_unavailable".into()));
    assert_eq!(client.close_frame(), (Some(1012), "backend_unavailable".into()));
    client.close(1012, "");
    assert_eq!(client.end(), End::Fin);
}

#[test]
fn an_ipv6_listener_serves_as_well() {
    let backend = Backend::start();
    let (config, _folder) = config(Config::to(backend.address()), &["a.example"]);
    let listeners = config.listeners.replace("127.0.0.1:1", "[::1]:1");
    let gateway = Gateway::start(&Config { listeners, ..config });
    let mut client = open(gateway.address(), &Wish::default(), "/ws", "");
    client.echo("hello");
    let remote = backend.opened().remote.expect("known");
    assert_eq!(Some(remote), client.tcp().local_addr().ok());
    assert!(remote.is_ipv6());
}

#[test]
fn a_client_that_does_not_read_is_dropped_over_tls_too() {
    let backend = Backend::start();
    let (config, _folder) = config(Config::to(backend.address()), &["a.example"]);
    let gateway = Gateway::start(&config.deadlines("write_stall = \"500ms\""));
    let mut client = open(gateway.address(), &Wish::default(), "/ws", "");
    client.text("flood 1000 65536");
    gateway.wait_closes("slow_consumer", 1);
    assert_eq!(backend.ended().cause, "slow_consumer");
    gateway.wait_metric("portcullis_queued_bytes", |bytes| bytes == 0);
}
