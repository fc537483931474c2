//! The machines of one client connection: HTTP head, token and frames; TLS.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use portcullis::base::random::Random;
use portcullis::base::secret::Secret;
use portcullis::base::time::{Instant, Now, UnixTime};
use portcullis::connection::client::{Client, SocketAction, Step};
use portcullis::connection::route_order::FIRST_ORDER;
use portcullis::connection::session::SessionRequest;
use portcullis::connection::transport::Transport;
use portcullis::connection::upstream::link::compose;
use portcullis::connection::{Context, Output};
use portcullis::counters::Counters;
use portcullis::dev::any_certificate::AnyCertificate;
use portcullis::protocol::jwt::{Algorithm, JwtKey, mint};
use portcullis::protocol::link::{PAYLOAD_MAX, SessionId};
use portcullis::protocol::revocation::{Hasher, Revoked};
use portcullis::settings::Settings;
use portcullis::settings::load::{Environment, FileContents, load};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ServerConfig};

use super::{pieces, with_cuts};

pub const START: Instant = Instant::from_nanos(1_000_000_000_000);
pub const UNIX: u64 = 1_700_000_000;
pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

const TEXT: &str = r#"
    listener = [{ address = "127.0.0.1:8080" }]
    backend = [{ name = "main", endpoints = ["127.0.0.1:7000"] }]
    [limits]
    frames_burst = 1_000_000_000
    controls_burst = 1_000_000_000
    [[auth]]
    name = "app"
    kind = "jwt"
    carriers = ["authorization", "query:token", "first-message"]
    keys = [{ secret = "0123456789abcdef0123456789abcdef" }]
    [[route]]
    path = "/ws"
    origins = ["https://app.example.com"]
    origin_absent = "allow"
    auth = "app"
    backend = "main"
    [[route]]
    path = "/open"
    origins = []
    origin_absent = "allow"
    auth = "none"
    backend = "main"
    health = true
"#;

/// Settings with one guarded and one open route.
pub fn settings() -> Settings {
    settings_from(TEXT)
}

/// Settings from a text that is good.
pub fn settings_from(text: &str) -> Settings {
    struct Nothing;
    impl Environment for Nothing {
        fn read(&self, _: &Path) -> io::Result<FileContents> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn variable(&self, _: &str) -> Option<String> {
            None
        }

        fn unix_seconds(&self) -> u64 {
            UNIX
        }
    }
    match load(text, Path::new("fuzz.toml"), &Nothing) {
        Ok(loaded) => loaded.settings,
        Err(problems) => panic!("{}", problems[0]),
    }
}

static SETTINGS: LazyLock<Settings> = LazyLock::new(settings);

static TOKEN: LazyLock<String> = LazyLock::new(|| {
    let key = JwtKey { id: None, algorithm: Algorithm::HS256, secret: Secret::new(SECRET.into()) };
    mint(&key, format!(r#"{{"sub":"ann","exp":{}}}"#, UNIX + 3600).as_bytes())
});

/// What a backend is sent of a client's request.
pub fn sent(
    compose: fn(&SessionRequest, SessionId, u32, &mut Vec<u8>) -> bool,
    request: &SessionRequest,
) -> Vec<u8> {
    let mut frame = Vec::new();
    assert!(compose(request, SessionId::new(0, 0), PAYLOAD_MAX as u32, &mut frame));
    frame
}

/// What comes of a client's bytes.
#[derive(Debug, PartialEq)]
struct Life {
    answers: Vec<u8>,
    /// Whole messages.
    messages: Vec<Vec<u8>>,
    opened: Vec<u8>,
    end: String,
}

/// The first byte chooses how far the client is when it says the rest. Any pieces come to the
/// same; but the end of a head and what follows it must arrive together, see `early_bytes`.
pub fn client(data: &[u8]) {
    let Some((stage, data)) = data.split_first() else { return };
    let (random, said) = with_cuts(data);
    let head = |path: &str, more: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: gate\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
        )
    };
    let before = match stage % 4 {
        0 => String::new(),
        1 => head("/ws", ""),
        2 => head("/ws", &format!("Authorization: Bearer {}\r\n", *TOKEN)),
        _ => head("/open", ""),
    };
    let whole = live([before.as_bytes(), said]);
    let head_end = match stage % 4 {
        0 => said.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4),
        _ => None,
    };
    let mut cut: Vec<&[u8]> = vec![before.as_bytes()];
    let mut at = 0;
    for piece in pieces(random, said) {
        let end = at + piece.len();
        if Some(end) != head_end {
            let start = cut.iter().skip(1).map(|piece| piece.len()).sum();
            cut.push(&said[start..end]);
        }
        at = end;
    }
    let start = cut.iter().skip(1).map(|piece| piece.len()).sum();
    cut.push(&said[start..]);
    assert_eq!(live(cut), whole, "by piece and whole");
}

/// Feeds the pieces as a worker does, with everything sent at once.
fn live<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Life {
    let counters = Counters::default();
    let now = Now { instant: START, unix: UnixTime::from_seconds(UNIX) };
    let revoked = Revoked::nothing(Hasher::new(&[0; 32]));
    let ctx = Context {
        now,
        settings: &SETTINGS,
        routes: &FIRST_ORDER,
        counters: &counters,
        revoked: &revoked,
        jitter: 0,
    };
    let mut client = Client::new(None, 0, false, 0, &ctx);
    let mut output = Output::default();
    let mut life =
        Life { answers: Vec::new(), messages: Vec::new(), opened: Vec::new(), end: String::new() };
    let mut message = Vec::new();
    for piece in pieces {
        let mut bytes = piece.to_vec();
        let mut used = 0;
        while used < bytes.len() && client.socket_action() == SocketAction::Stay {
            let input = &mut bytes[used..];
            let (count, step) = client.receive(input, usize::MAX, &ctx, &mut output);
            match step {
                Step::NeedMore => assert_eq!(count, input.len()),
                Step::Handled => {}
                Step::Blocked => panic!("the allowance is never zero"),
                Step::Data { range, last, .. } => {
                    message.extend_from_slice(&input[range]);
                    if last {
                        life.messages.push(std::mem::take(&mut message));
                    }
                }
                Step::Authenticated { .. } => life.opened = sent(compose::open, &output.request),
                Step::Ask(_) => panic!("no route here asks anybody"),
                Step::Control(_) | Step::Dial { .. } => panic!("the backend is a link"),
                Step::Released { .. } | Step::Reauthenticated => {
                    panic!("no route here takes fresh tokens")
                }
            }
            used += count;
            while !output.answers.is_empty() {
                life.answers.append(&mut output.answers);
                client.output_queued(&ctx);
                client.output_sent(true, &ctx, &mut output);
            }
        }
    }
    let (stage, socket_action, end) = (client.stage(), client.socket_action(), client.end());
    let next = client.next_deadline(&SETTINGS);
    assert!(next >= START, "a deadline in the past");
    life.end = format!("{stage:?} {socket_action:?} {end:?}");
    client.leave(&ctx);
    life
}

struct Certificate {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

static CERTIFICATE: LazyLock<Certificate> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["gate".to_owned()]).expect("a certificate");
    Certificate { certificate: made.cert.der().clone(), key: made.signing_key.serialize_der() }
});

fn server() -> Transport {
    static CONFIG: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::try_from(CERTIFICATE.key.clone()).expect("a key");
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .expect("known versions")
            .with_no_client_auth()
            .with_single_cert(vec![CERTIFICATE.certificate.clone()], key);
        Arc::new(config.expect("they fit"))
    });
    Transport::tls(Arc::clone(&CONFIG))
}

/// A real TLS client, whose records arrive in any pieces: what it says comes out as it was said,
/// and what is sent to it arrives. One damaged byte, if the input asks for it, ends it.
pub fn tls(data: &[u8]) {
    let Some((&[choice, at], data)) = data.split_first_chunk::<2>() else { return };
    let (mut random, said) = with_cuts(data);
    let version = if choice & 1 == 0 { &rustls::version::TLS13 } else { &rustls::version::TLS12 };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .expect("a known version")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from("gate").expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut server = server();
    let (mut plaintext, mut output, mut written) = (Vec::new(), Vec::new(), Vec::new());
    while client.is_handshaking() || client.wants_write() {
        written.clear();
        client.write_tls(&mut written).expect("a vector takes it");
        let cuts = Random::from_number(random.number());
        for piece in pieces(cuts, &written) {
            server.receive(&mut piece.to_vec(), &mut plaintext, &mut output).expect("good TLS");
        }
        take_in(&mut client, &mut output);
    }
    assert!(!server.is_handshaking() && plaintext.is_empty());
    client.set_buffer_limit(None);
    client.writer().write_all(said).expect("it is buffered");
    written.clear();
    while client.wants_write() {
        client.write_tls(&mut written).expect("a vector takes it");
    }
    let damaged = choice & 2 != 0 && !said.is_empty();
    if damaged {
        // Behind the first record's header: damage there is only found by its MAC.
        let index = 5 + usize::from(at) % (written.len() - 5).min(16);
        written[index] ^= 1;
    }
    let mut failed = false;
    for piece in pieces(random, &written) {
        failed |= server.receive(&mut piece.to_vec(), &mut plaintext, &mut output).is_err();
    }
    assert_eq!(failed, damaged);
    if failed {
        assert!(plaintext.is_empty(), "nothing of a damaged record comes out");
        return;
    }
    assert_eq!(plaintext, said);
    output.clear();
    let half = said.len() / 2;
    server.send(&[&said[..half], &said[half..]], &mut output).expect("it is open");
    assert_eq!(take_in(&mut client, &mut output), said);
}

/// The client reads what the server wrote; its plaintext.
fn take_in(client: &mut ClientConnection, output: &mut Vec<u8>) -> Vec<u8> {
    let mut plaintext = Vec::new();
    let mut input = &output[..];
    while !input.is_empty() {
        client.read_tls(&mut input).expect("a slice can be read");
        client.process_new_packets().expect("good TLS");
        // It ends with "would block": the connection stays open.
        let end = client.reader().read_to_end(&mut plaintext);
        assert!(end.is_err());
    }
    output.clear();
    plaintext
}

/// A TLS server that is told anything says no plaintext, keeps no more than its bounds, and ends
/// the same in any pieces.
pub fn tls_garbage(data: &[u8]) {
    let (random, bytes) = with_cuts(data);
    let hear = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut server = server();
        let (mut plaintext, mut output) = (Vec::new(), Vec::new());
        let mut failed = false;
        for piece in pieces {
            failed |= server.receive(&mut piece.to_vec(), &mut plaintext, &mut output).is_err();
        }
        assert!(plaintext.is_empty(), "no plaintext before a handshake");
        assert!(server.is_handshaking() || failed);
        assert!(output.len() < 64 * 1024);
        failed
    };
    let whole = hear(&mut [bytes].into_iter());
    assert_eq!(hear(&mut pieces(random, bytes)), whole);
}
