use rustls::client::Resumption;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};
use std::io::{Read, Write};

use super::*;
use crate::base::random::Random;
use crate::connection::transport::HANDSHAKE_BYTES_MAX;
use crate::ring::CLIENT_SLOT_BYTES;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
const NAME: &str = "app.example";

/// What both ends are made with.
struct Made {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// A server with a certificate for `names`, valid to the end of `year`, and clients that trust it.
fn made(version: &'static SupportedProtocolVersion, names: &[String], year: i32) -> Made {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut parameters = rcgen::CertificateParams::new(names).expect("proper names");
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(year, 12, 31);
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = parameters.self_signed(&key).expect("a certificate").der().clone();
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a root");
    Made { server: Arc::new(server), client: client(roots) }
}

fn client(roots: RootCertStore) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

fn proper(version: &'static SupportedProtocolVersion) -> Made {
    made(version, &[NAME.to_owned()], 2100)
}

struct Pair {
    server: ServerConnection,
    tls: ServerTls,
    relay: Relay,
    pool: BytePool,
    room: Vec<u8>,
    /// Bytes of a send.
    slot: usize,
    /// What came from the server.
    plaintext: Vec<u8>,
    /// What the server decrypted.
    heard: Vec<u8>,
    /// The server has closed.
    closed: bool,
    /// The gateway has.
    server_saw_close: bool,
}

impl Pair {
    fn new(made: &Made) -> Pair {
        let name = ServerName::try_from(NAME).expect("a name");
        let mut server = ServerConnection::new(Arc::clone(&made.server)).expect("a server");
        server.set_buffer_limit(None);
        Pair {
            server,
            tls: ServerTls::new(Arc::clone(&made.client), name).expect("a client"),
            relay: Relay::default(),
            pool: BytePool::new(100),
            room: Vec::new(),
            slot: CLIENT_SLOT_BYTES,
            plaintext: Vec::new(),
            heard: Vec::new(),
            closed: false,
            server_saw_close: false,
        }
    }

    fn queue(&mut self, bytes: &[u8]) {
        self.relay.request(bytes, &mut self.pool).expect("room");
    }

    /// Takes what would be sent now.
    fn sent(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        while self.tls.has_output(&self.relay) {
            let mut slot = vec![0; self.slot];
            let (relay, pool) = (&mut self.relay, &mut self.pool);
            let count = self.tls.copy_output(relay, pool, &mut self.room, &mut slot);
            let count = count.expect("keys");
            assert!((1..=self.slot).contains(&count));
            sent.extend_from_slice(&slot[..count]);
        }
        assert_eq!(self.tls.out.capacity(), 0, "no memory is kept for what is sent");
        sent
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<(), Fault> {
        let before = self.tls.is_open();
        self.closed |= self.tls.receive(bytes, &mut self.plaintext)?;
        assert!(!before || self.tls.is_open());
        Ok(())
    }

    /// Carries bytes both ways in pieces of the given sizes until nothing moves.
    fn carry(&mut self, mut size: impl FnMut() -> usize) -> Result<(), Fault> {
        loop {
            let sent = self.sent();
            let mut rest = &sent[..];
            while !rest.is_empty() {
                let (mut now, later) = rest.split_at(size().clamp(1, rest.len()));
                while !now.is_empty() {
                    self.server.read_tls(&mut now).expect("memory");
                    let state = self.server.process_new_packets().expect("the client is honest");
                    self.server_saw_close |= state.peer_has_closed();
                    let _ = self.server.reader().read_to_end(&mut self.heard);
                }
                rest = later;
            }
            let mut answer = Vec::new();
            while self.server.wants_write() {
                self.server.write_tls(&mut answer).expect("memory");
            }
            if sent.is_empty() && answer.is_empty() {
                return Ok(());
            }
            let mut rest = &mut answer[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at_mut(size().clamp(1, rest.len()));
                self.receive(now)?;
                rest = later;
            }
        }
    }
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i * 7 % 251) as u8).collect()
}

/// The request waits for the handshake; then data both ways, and closes both ways.
fn converse(made: &Made, slot: usize, mut size: impl FnMut() -> usize) {
    let mut pair = Pair::new(made);
    pair.slot = slot;
    pair.queue(b"GET / HTTP/1.1");
    pair.carry(&mut size).expect("a handshake");
    assert!(pair.tls.is_open() && !pair.server.is_handshaking());
    assert_eq!(std::mem::take(&mut pair.heard), b"GET / HTTP/1.1");
    for count in [1, 126, 16_384, 16_385, 50_000] {
        let data = bytes(count);
        pair.queue(&data);
        pair.server.writer().write_all(&data).expect("no limit");
        pair.carry(&mut size).expect("data");
        assert!(std::mem::take(&mut pair.heard) == data, "{count} bytes to the server");
        assert!(std::mem::take(&mut pair.plaintext) == data, "{count} bytes from the server");
        assert_eq!(pair.pool.in_use_bytes(), 0);
    }
    pair.server.send_close_notify();
    pair.carry(&mut size).expect("a close");
    assert!(pair.closed && !pair.server_saw_close);
    pair.queue(b"still open");
    pair.carry(&mut size).expect("data");
    assert_eq!(pair.heard, b"still open");
    assert!(pair.tls.close());
    pair.carry(&mut size).expect("a close");
    assert!(pair.server_saw_close && !pair.tls.close(), "said once");
    pair.queue(b"late");
    assert!(!pair.tls.has_output(&pair.relay));
}

#[test]
fn a_conversation_in_any_pieces() {
    for version in VERSIONS {
        let made = proper(version);
        converse(&made, CLIENT_SLOT_BYTES, || usize::MAX);
        converse(&made, SEND_OVERHEAD_MAX + 1000, || 1);
        for seed in 0..12 {
            let mut random = Random::from_number(seed);
            let bound = [8, 300, 5000, 40_000][seed as usize % 4];
            let slot = SEND_OVERHEAD_MAX + 200 + random.below(40_000) as usize;
            converse(&made, slot, move || random.below(bound) as usize + 1);
        }
    }
}

/// The server's flight of the handshake, its first message and its close, each cut at `at`.
/// Whether one of them is longer than that.
fn converse_in_two(made: &Made, at: usize) -> bool {
    let mut pair = Pair::new(made);
    pair.queue(b"request");
    let mut cuts = false;
    while !pair.closed {
        let sent = pair.sent();
        pair.server.read_tls(&mut &sent[..]).expect("memory");
        pair.server.process_new_packets().expect("an honest client");
        let _ = pair.server.reader().read_to_end(&mut pair.heard);
        if !pair.server.is_handshaking() && !pair.heard.is_empty() {
            pair.server.writer().write_all(b"answer").expect("no limit");
            pair.server.send_close_notify();
        }
        let mut answer = Vec::new();
        while pair.server.wants_write() {
            pair.server.write_tls(&mut answer).expect("memory");
        }
        assert!(!(sent.is_empty() && answer.is_empty()), "{at}: it stands still");
        let cut = at.min(answer.len());
        cuts |= at < answer.len();
        let (front, back) = answer.split_at_mut(cut);
        pair.receive(front).expect("genuine");
        pair.receive(back).expect("genuine");
    }
    assert_eq!((&pair.heard[..], &pair.plaintext[..]), (&b"request"[..], &b"answer"[..]));
    cuts
}

#[test]
fn every_split_of_what_the_server_sends_is_the_same() {
    for version in VERSIONS {
        for (resumption, least) in [(Resumption::disabled(), 500), (Resumption::default(), 100)] {
            let mut made = proper(version);
            Arc::get_mut(&mut made.client).expect("no other").resumption = resumption;
            // What a session is taken up with is there from the second time on.
            converse_in_two(&made, 0);
            let cuts = (0..).take_while(|at| converse_in_two(&made, *at)).count();
            assert!(cuts > least, "a flight has more than {cuts} bytes");
        }
    }
}

/// What a handshake with this server comes to, and what the server says of it.
fn refused(made: &Made) -> (String, rustls::Error) {
    let mut pair = Pair::new(made);
    pair.queue(b"secret");
    let fault = pair.carry(|| usize::MAX).expect_err("refused");
    assert!(fault.is_servers() && fault.is_worth_another());
    assert!(pair.tls.close(), "the server is told by an alert");
    let alert = pair.sent();
    pair.server.read_tls(&mut &alert[..]).expect("memory");
    let told = pair.server.process_new_packets().expect_err("an alert");
    assert!(pair.heard.is_empty(), "nothing was said to it");
    assert!(pair.receive(&mut [22; 100]).is_err(), "and nothing is heard of it any more");
    assert!(!pair.tls.has_output(&pair.relay));
    (fault.to_string(), told)
}

#[test]
fn certificates_that_prove_nothing_are_refused_in_words() {
    for version in VERSIONS {
        let stranger = Made { client: client(RootCertStore::empty()), ..proper(version) };
        let (text, told) = refused(&stranger);
        assert_eq!(
            text,
            "TLS: invalid peer certificate: UnknownIssuer; name the certificate of its issuer as \
             ca_file"
        );
        assert_eq!(told, Error::AlertReceived(AlertDescription::UnknownCA));
        let (text, _) = refused(&made(version, &["other.example".to_owned()], 2100));
        assert!(text.contains("certificate not valid for name \"app.example\""), "{text}");
        assert!(text.ends_with("; write a name of its certificate as server_name"), "{text}");
        let (text, told) = refused(&made(version, &[NAME.to_owned()], 2021));
        assert!(text.contains("expired"), "{text}");
        assert!(text.ends_with("; renew the server's certificate"), "{text}");
        assert_eq!(told, Error::AlertReceived(AlertDescription::CertificateExpired));
    }
}

#[test]
fn a_text_about_a_certificate_is_bounded() {
    let names: Vec<String> = (0..500).map(|number| format!("host-{number}.example")).collect();
    let (text, _) = refused(&made(&TLS13, &names, 2100));
    assert!(text.len() < TEXT_CHARS_MAX + 100, "{text}");
}

#[test]
fn what_is_no_tls_is_a_fault_in_any_pieces() {
    let cases: [(&[u8], &str); 4] = [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "TLS: the peer speaks HTTP without TLS; write ws:// for a server without TLS",
        ),
        (
            b"\x1b[31mHello\r\n",
            "TLS: received corrupt message of type InvalidContentType; write ws:// for a server \
             without TLS",
        ),
        (&[21, 3, 3, 0, 2, 2, 40], "TLS: received fatal alert: HandshakeFailure"),
        (&[22, 3, 3, 0xff, 0xff, 0], "TLS: received corrupt message of type MessageTooLarge"),
    ];
    for (input, text) in cases {
        for size in [4, 7, usize::MAX] {
            let mut pair = Pair::new(&proper(&TLS13));
            pair.queue(b"secret");
            let hello = pair.sent();
            assert!(hello.len() > 100 && !hello.windows(6).any(|six| six == b"secret"));
            let mut pieces = input.chunks(size.min(input.len()));
            let fault = pieces.find_map(|piece| pair.receive(&mut piece.to_vec()).err());
            let fault = fault.expect("refused").to_string();
            assert!(fault.starts_with(text), "{fault:?} is not {text:?}");
        }
    }
}

#[test]
fn a_handshake_without_an_end_is_bounded() {
    let mut pair = Pair::new(&proper(&TLS13));
    pair.sent();
    // A ServerHello that declares 65,280 bytes, in records of 1,100.
    let mut record = [&[22, 3, 3, 4, 0x4c, 2, 0, 0xff, 0][..], &[0; 1096]].concat();
    let mut taken = 0;
    let fault = loop {
        match pair.receive(&mut record.clone()) {
            Ok(()) => taken += record.len(),
            Err(fault) => break fault,
        }
        assert!(taken <= HANDSHAKE_BYTES_MAX);
        record[5..9].fill(0);
    };
    assert!(matches!(fault, Fault::Tls(_)), "{fault}");
    assert!(!pair.tls.is_open());
}

#[test]
fn a_damaged_record_ends_the_connection_after_what_is_genuine() {
    for version in VERSIONS {
        let mut pair = Pair::new(&proper(version));
        pair.carry(|| usize::MAX).expect("a handshake");
        let mut sent = Vec::new();
        for text in [b"genuine", b"damaged"] {
            pair.server.writer().write_all(text).expect("room");
            pair.server.write_tls(&mut sent).expect("memory");
        }
        *sent.last_mut().expect("bytes") ^= 1;
        let fault = pair.receive(&mut sent).expect_err("damaged");
        assert_eq!(fault.to_string(), "TLS: cannot decrypt peer's message");
        assert_eq!(pair.plaintext, b"genuine");
        pair.queue(b"late");
        let alert = pair.sent();
        pair.server.read_tls(&mut &alert[..]).expect("memory");
        let told = pair.server.process_new_packets().expect_err("an alert");
        assert_eq!(told, Error::AlertReceived(AlertDescription::BadRecordMac));
    }
}

#[test]
fn a_server_that_asks_for_key_updates_has_one_waiting_at_most() {
    let mut pair = Pair::new(&proper(&TLS13));
    pair.carry(|| usize::MAX).expect("a handshake");
    for round in 0..20u8 {
        pair.server.refresh_traffic_keys().expect("TLS 1.3");
        pair.server.writer().write_all(&[round; 50]).expect("room");
        let mut sent = Vec::new();
        while pair.server.wants_write() {
            pair.server.write_tls(&mut sent).expect("memory");
        }
        pair.receive(&mut sent).expect("genuine");
        assert_eq!(pair.tls.out.len(), 0, "the answer goes out with the next record");
    }
    pair.queue(b"after all");
    pair.carry(|| 13).expect("data");
    assert_eq!(pair.heard, b"after all");
    assert!(pair.plaintext.len() == 20 * 50);
}

#[test]
fn a_plain_connection_pays_a_pointer() {
    assert_eq!(size_of::<Option<Box<ServerTls>>>(), size_of::<usize>());
}
