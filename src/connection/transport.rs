//! The bytes of one client connection as they cross the network: plain, or TLS.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;

use crate::protocol::client_hello::{Hello, HelloScanner};

use super::tls::{Received, TlsTransport};
pub use super::transport_error::{HANDSHAKE_BYTES_MAX, TransportError};

/// How a connection's bytes travel.
#[derive(Debug)]
pub enum Transport {
    /// As they are. The caller should leave the transport out of the path
    /// ([`is_plain`](Transport::is_plain)): its methods only copy.
    Plain,
    /// In TLS records. Boxed twice, so that a plain connection pays for one pointer, and a
    /// silent one for no TLS state.
    Tls(Box<TlsState>),
}

/// How far a TLS connection is.
#[derive(Debug)]
pub enum TlsState {
    /// No byte came yet.
    Untouched(Arc<ServerConfig>),
    /// The client's hello is coming.
    Gathering(Box<Gathering>),
    /// The handshake has begun.
    Begun(Box<TlsTransport<UnbufferedServerConnection>>),
}

/// The first bytes of a client, on which no work has been done.
///
/// Invariant: `bytes.len() <= HANDSHAKE_BYTES_MAX`, and what one receive brings.
#[derive(Debug)]
pub struct Gathering {
    config: Arc<ServerConfig>,
    bytes: Vec<u8>,
    scanner: HelloScanner,
    found: Hello,
}

impl Gathering {
    fn push(&mut self, input: &[u8]) -> Hello {
        if self.found == Hello::Partial {
            self.found = self.scanner.push(input);
        }
        // Beyond the bound it fails, whatever comes.
        if self.bytes.len() <= HANDSHAKE_BYTES_MAX {
            self.bytes.extend_from_slice(input);
        }
        if self.is_too_long() {
            self.found = Hello::NotHello;
        }
        self.found
    }

    fn is_too_long(&self) -> bool {
        self.bytes.len() > HANDSHAKE_BYTES_MAX
    }
}

/// What [`Transport::hold`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// There is nothing to work on yet.
    Incomplete,
    /// The client's first message is there: the work on it is a handshake's.
    Hello,
    /// There is something to work on.
    Input,
}

impl Transport {
    /// A TLS connection that waits for its client's hello. Early data must be off: it could be
    /// replayed.
    pub fn tls(config: Arc<ServerConfig>) -> Self {
        assert_eq!(config.max_early_data_size, 0, "early data must be off");
        Transport::Tls(Box::new(TlsState::Untouched(config)))
    }

    /// Whether bytes travel as they are.
    pub fn is_plain(&self) -> bool {
        matches!(self, Transport::Plain)
    }

    /// Whether the TLS handshake is still going on.
    pub fn is_handshaking(&self) -> bool {
        match self {
            Transport::Plain => false,
            Transport::Tls(state) => state.begun().is_none_or(TlsTransport::is_handshaking),
        }
    }

    /// The TLS version agreed on, once it is.
    pub fn protocol_version(&self) -> Option<rustls::ProtocolVersion> {
        match self {
            Transport::Plain => None,
            Transport::Tls(state) => state.begun()?.protocol_version(),
        }
    }

    /// Keeps input of a handshake without working on it: a call of [`receive`](Self::receive)
    /// does that, with more input or none. What is kept is bounded: when there is more than a
    /// handshake may have, it is to be worked on, which fails.
    pub fn hold(&mut self, input: &[u8]) -> Held {
        let Transport::Tls(state) = self else { return Held::Input };
        match state.gathering() {
            Some(gathering) => match gathering.push(input) {
                Hello::Partial => Held::Incomplete,
                Hello::Whole => Held::Hello,
                Hello::NotHello => Held::Input,
            },
            None => {
                let TlsState::Begun(tls) = &mut **state else {
                    unreachable!("it gathers or has begun")
                };
                tls.hold(input);
                Held::Input
            }
        }
    }

    /// Takes all of `input` (its bytes are overwritten). Appends what it decrypts to
    /// `plaintext` and what must be sent to the client (handshake, alerts) to `output`.
    ///
    /// After an error, whose alert is in `output`, every further call fails; what was appended
    /// to `plaintext` before is genuine.
    pub fn receive(
        &mut self,
        input: &mut [u8],
        plaintext: &mut Vec<u8>,
        output: &mut Vec<u8>,
    ) -> Result<Received, TransportError> {
        match self {
            Transport::Plain => {
                plaintext.extend_from_slice(input);
                Ok(Received::default())
            }
            Transport::Tls(state) => {
                if let Some(gathering) = state.gathering() {
                    if gathering.push(input) == Hello::Partial {
                        return Ok(Received::default());
                    }
                    return state.begin(plaintext, output);
                }
                match &mut **state {
                    TlsState::Begun(tls) => tls.receive(input, plaintext, output),
                    _ => unreachable!("it gathers or has begun"),
                }
            }
        }
    }

    /// Appends the pieces of `plaintext`, one after the other, to `output`: as they are, or
    /// encrypted, in as few records as they fit in.
    pub fn send(
        &mut self,
        plaintext: &[&[u8]],
        output: &mut Vec<u8>,
    ) -> Result<(), TransportError> {
        match self {
            Transport::Plain => {
                plaintext.iter().for_each(|piece| output.extend_from_slice(piece));
                Ok(())
            }
            Transport::Tls(state) => match &mut **state {
                TlsState::Untouched(_) | TlsState::Gathering(_) => Err(TransportError::NotOpen),
                TlsState::Begun(tls) => tls.send(plaintext, output),
            },
        }
    }

    /// Tells the client that no more data will come (close_notify, RFC 8446 §6.1); nothing can
    /// be sent afterwards. Without effect on a plain, handshaking, closed or failed connection.
    pub fn close_notify(&mut self, output: &mut Vec<u8>) {
        if let Transport::Tls(state) = self
            && let TlsState::Begun(tls) = &mut **state
        {
            tls.close_notify(output);
        }
    }
}

impl TlsState {
    fn begun(&self) -> Option<&TlsTransport<UnbufferedServerConnection>> {
        match self {
            TlsState::Untouched(_) | TlsState::Gathering(_) => None,
            TlsState::Begun(tls) => Some(tls),
        }
    }

    /// The first bytes, while there is no connection.
    fn gathering(&mut self) -> Option<&mut Gathering> {
        if let TlsState::Untouched(config) = self {
            *self = TlsState::Gathering(Box::new(Gathering {
                config: Arc::clone(config),
                bytes: Vec::new(),
                scanner: HelloScanner::default(),
                found: Hello::Partial,
            }));
        }
        match self {
            TlsState::Gathering(gathering) => Some(gathering),
            TlsState::Untouched(_) | TlsState::Begun(_) => None,
        }
    }

    /// Begins the connection with what was gathered. What is no hello is shown to rustls for the
    /// alert alone: whatever rustls makes of it, it is no beginning.
    fn begin(
        &mut self,
        plaintext: &mut Vec<u8>,
        output: &mut Vec<u8>,
    ) -> Result<Received, TransportError> {
        let TlsState::Gathering(gathering) = self else { unreachable!("the caller saw to that") };
        let config = Arc::clone(&gathering.config);
        let mut tls = Box::new(TlsTransport::new(UnbufferedServerConnection::new(config)?));
        let found = gathering.found;
        let mut result = Ok(Received::default());
        if !gathering.is_too_long() {
            result = tls.receive(&mut gathering.bytes, plaintext, output);
        }
        if found == Hello::NotHello && result.is_ok() {
            tls.fail(&TransportError::HandshakeTooLong, output);
            result = Err(TransportError::HandshakeTooLong);
        }
        *self = TlsState::Begun(tls);
        result
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
    use rustls::version::{TLS12, TLS13};
    use rustls::{
        AlertDescription, ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion,
    };
    use std::io::{Read, Write};

    use super::*;
    use crate::base::random::Random;
    use crate::connection::tls::{
        DECODE_ERROR, PENDING_MAX, RECORD_OVERHEAD_MAX, RECORD_PLAINTEXT_MAX,
    };
    use crate::protocol::close_detail::TlsFault;

    const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

    struct Pair {
        client: ClientConnection,
        server: Transport,
        plaintext: Vec<u8>,
        output: Vec<u8>,
        /// What the client decrypted.
        heard: Vec<u8>,
        finished: usize,
        closed: bool,
    }

    fn pair(version: &'static SupportedProtocolVersion) -> Pair {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        let certificate = made.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())
            .expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(certificate).expect("a root");
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").expect("a name");
        Pair {
            client: ClientConnection::new(Arc::new(client), name).expect("a client"),
            server: Transport::tls(Arc::new(server)),
            plaintext: Vec::new(),
            output: Vec::new(),
            heard: Vec::new(),
            finished: 0,
            closed: false,
        }
    }

    impl Pair {
        /// Carries bytes both ways in pieces of the given sizes until nothing moves.
        fn carry(&mut self, mut size: impl FnMut() -> usize) -> Result<(), TransportError> {
            loop {
                let mut sent = Vec::new();
                while self.client.wants_write() {
                    self.client.write_tls(&mut sent).expect("memory takes everything");
                }
                let answers = !self.output.is_empty();
                if sent.is_empty() && !answers {
                    return Ok(());
                }
                let mut rest = &mut sent[..];
                while !rest.is_empty() {
                    let (now, later) = rest.split_at_mut(size().clamp(1, rest.len()));
                    let received =
                        self.server.receive(now, &mut self.plaintext, &mut self.output)?;
                    self.finished += usize::from(received.handshake_finished_now);
                    self.closed |= received.peer_closed;
                    rest = later;
                }
                let output = std::mem::take(&mut self.output);
                let mut rest = &output[..];
                while !rest.is_empty() {
                    let (mut now, later) = rest.split_at(size().clamp(1, rest.len()));
                    while !now.is_empty() {
                        self.client.read_tls(&mut now).expect("memory");
                        self.client.process_new_packets().expect("the server is honest");
                        // Would block, or the end: either way there is no more for now.
                        let _ = self.client.reader().read_to_end(&mut self.heard);
                    }
                    rest = later;
                }
            }
        }

        fn client_heard(&mut self) -> Vec<u8> {
            std::mem::take(&mut self.heard)
        }

        fn server_tls(&self) -> &TlsTransport<UnbufferedServerConnection> {
            match &self.server {
                Transport::Tls(state) => state.begun().expect("it heard something"),
                Transport::Plain => unreachable!("made with TLS"),
            }
        }
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|i| (i * 7 % 251) as u8).collect()
    }

    /// Handshake, data both ways, close both ways.
    fn converse(version: &'static SupportedProtocolVersion, mut size: impl FnMut() -> usize) {
        let mut pair = pair(version);
        pair.client.set_buffer_limit(None);
        assert!(pair.server.is_handshaking() && !pair.server.is_plain());
        assert_eq!(pair.server.send(&[b"early"], &mut Vec::new()), Err(TransportError::NotOpen));
        pair.carry(&mut size).expect("handshake");
        assert!(!pair.server.is_handshaking() && !pair.client.is_handshaking());
        assert_eq!(pair.finished, 1);
        assert_eq!(pair.server.protocol_version(), Some(version.version));
        for count in [1, 126, 16_384, 16_385, 50_000] {
            let sent = bytes(count);
            pair.client.writer().write_all(&sent).expect("no limit");
            pair.carry(&mut size).expect("data");
            assert!(pair.plaintext == sent, "{count} bytes to the server");
            assert_eq!(pair.server_tls().pending, None, "nothing is kept at rest");
            pair.plaintext.clear();
            let (front, back) = sent.split_at(count / 3);
            pair.server.send(&[front, b"", back], &mut pair.output).expect("open");
            let overhead = count.div_ceil(RECORD_PLAINTEXT_MAX) * RECORD_OVERHEAD_MAX;
            assert!(pair.output.len() <= count + overhead);
            pair.carry(&mut size).expect("data");
            assert!(pair.client_heard() == sent, "{count} bytes to the client");
        }
        pair.client.send_close_notify();
        pair.carry(&mut size).expect("close");
        assert!(pair.closed);
        pair.server.send(&[b"still", b" open"], &mut pair.output).expect("half closed");
        pair.server.close_notify(&mut pair.output);
        let sent = pair.output.len();
        pair.server.close_notify(&mut pair.output);
        assert_eq!(pair.output.len(), sent, "said once");
        let late = pair.server.send(&[b"late"], &mut pair.output);
        assert_eq!(late, Err(TransportError::NotOpen));
        pair.carry(&mut size).expect("close");
        assert_eq!(pair.client_heard(), b"still open");
    }

    #[test]
    fn a_conversation_in_any_pieces() {
        for version in VERSIONS {
            converse(version, || usize::MAX);
            converse(version, || 1);
            for seed in 0..12 {
                let mut random = Random::from_number(seed);
                let bound = [8, 300, 5000, 40_000][seed as usize % 4];
                converse(version, move || random.below(bound) as usize + 1);
            }
        }
    }

    #[test]
    fn pieces_share_records() {
        let mut pair = pair(&TLS13);
        pair.carry(|| usize::MAX).expect("handshake");
        let data = bytes(40_000);
        let pieces: Vec<&[u8]> = data.chunks(700).collect();
        pair.server.send(&pieces, &mut pair.output).expect("open");
        // TLS 1.3 adds 22 bytes to a record (RFC 8446 §5.2).
        assert_eq!(pair.output.len(), 40_000 + 3 * 22);
        pair.carry(|| usize::MAX).expect("data");
        assert!(pair.client_heard() == data);
    }

    #[test]
    fn a_key_update_is_answered() {
        let mut pair = pair(&TLS13);
        pair.carry(|| 100).expect("handshake");
        for round in 0..3u8 {
            pair.client.refresh_traffic_keys().expect("TLS 1.3");
            pair.client.writer().write_all(&[round; 50]).expect("room");
            pair.carry(|| 13).expect("data");
            assert_eq!(std::mem::take(&mut pair.plaintext), [round; 50]);
            pair.server.send(&[&[round; 9], &[round; 11]], &mut pair.output).expect("open");
            pair.carry(|| 13).expect("data");
            assert_eq!(pair.client_heard(), [round; 20]);
        }
    }

    /// The alert that a client which knows no keys yet can read.
    fn plain_alert(output: &[u8]) -> AlertDescription {
        assert_eq!((output[0], output.len(), output[5]), (21, 7, 2), "one fatal alert");
        AlertDescription::from(output[6])
    }

    #[test]
    fn garbage_gets_an_alert_and_nothing_more() {
        let client_hello_with_two_messages = {
            let bad_hello = [1, 0, 0, 1, 9];
            let payload = [bad_hello, bad_hello].concat();
            [&[22, 3, 1, 0, payload.len() as u8][..], &payload].concat()
        };
        let no_tls_12 = b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01";
        let old_hello = [&no_tls_12[..], &[7; 32], &[0, 0, 2, 0, 0x2f, 1, 0]].concat();
        use AlertDescription::{DecodeError, HandshakeFailure, UnexpectedMessage};
        let table: &[(&[u8], AlertDescription, TlsFault)] = &[
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", DecodeError, TlsFault::PlainHttp),
            (b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", DecodeError, TlsFault::PlainHttp),
            (b"get / HTTP/1.1\r\n\r\n", DecodeError, TlsFault::NotTls),
            (&[22, 3, 1, 0xff, 0xff, 0], DecodeError, TlsFault::ProtocolError),
            (&[0x80, 0x2e, 1, 3, 1, 0, 0], DecodeError, TlsFault::NotTls),
            (&[23, 3, 3, 0, 3, 1, 2, 3], UnexpectedMessage, TlsFault::ProtocolError),
            (&client_hello_with_two_messages, DecodeError, TlsFault::ProtocolError),
            (&old_hello, HandshakeFailure, TlsFault::NoCommonVersion),
        ];
        for (input, alert, fault) in table {
            for size in [1, usize::MAX] {
                let mut server = pair(&TLS13).server;
                let (mut plaintext, mut output) = (Vec::new(), Vec::new());
                let mut results = input
                    .chunks(size.min(input.len()))
                    .map(|piece| server.receive(&mut piece.to_vec(), &mut plaintext, &mut output));
                let error = results.find_map(Result::err).expect("refused");
                drop(results);
                assert_eq!(error.fault(), *fault, "{input:x?} by {size}: {error}");
                assert_eq!(plain_alert(&output), *alert, "{input:x?}: {error}");
                let again = server.receive(&mut [22], &mut plaintext, &mut output);
                assert_eq!(again, Err(TransportError::Failed));
                assert_eq!(server.send(&[b"x"], &mut output), Err(TransportError::Failed));
                server.close_notify(&mut output);
                assert_eq!((output.len(), plaintext.len()), (7, 0));
            }
        }
    }

    #[test]
    fn a_damaged_record_ends_the_connection() {
        for version in VERSIONS {
            let mut pair = pair(version);
            pair.carry(|| usize::MAX).expect("handshake");
            pair.client.writer().write_all(b"genuine").expect("room");
            let mut first = Vec::new();
            pair.client.write_tls(&mut first).expect("memory");
            pair.client.writer().write_all(b"damaged").expect("room");
            pair.client.write_tls(&mut first).expect("memory");
            *first.last_mut().expect("bytes") ^= 1;
            let error = pair.server.receive(&mut first, &mut pair.plaintext, &mut pair.output);
            assert_eq!(error, Err(TransportError::Tls(rustls::Error::DecryptError)));
            assert_eq!(pair.plaintext, b"genuine");
            let mut alert = &pair.output[..];
            pair.client.read_tls(&mut alert).expect("memory");
            let told = pair.client.process_new_packets().expect_err("an alert");
            assert_eq!(told, rustls::Error::AlertReceived(AlertDescription::BadRecordMac));
        }
    }

    #[test]
    fn bytes_before_the_end_of_the_handshake_are_bounded() {
        let mut server = pair(&TLS13).server;
        let (mut plaintext, mut output) = (Vec::new(), Vec::new());
        // A hello that declares 65,280 bytes, in records of 1,100: it would be whole after 60.
        let mut record = [&[22, 3, 1, 4, 0x4c, 1, 0, 0xff, 0][..], &[0; 1096]].concat();
        let mut taken = 0;
        let error = loop {
            match server.receive(&mut record.clone(), &mut plaintext, &mut output) {
                Ok(_) => taken += record.len(),
                Err(error) => break error,
            }
            record[5..9].fill(0);
        };
        assert_eq!(error, TransportError::HandshakeTooLong);
        assert_eq!(output, DECODE_ERROR);
        output.clear();
        assert_eq!(taken, HANDSHAKE_BYTES_MAX / 1105 * 1105);
        let Transport::Tls(tls) = &server else { unreachable!("made with TLS") };
        let tls = tls.begun().expect("it heard something");
        assert_eq!(tls.pending, None, "a failed connection keeps nothing");
    }

    #[test]
    fn junk_after_the_handshake_is_not_kept() {
        let mut pair = pair(&TLS12);
        pair.carry(|| usize::MAX).expect("handshake");
        let mut junk = vec![0; PENDING_MAX + 1];
        junk[..5].copy_from_slice(&[23, 3, 3, 0x40, 0]);
        let error = pair.server.receive(&mut junk, &mut pair.plaintext, &mut pair.output);
        assert_eq!(error, Err(TransportError::Tls(rustls::Error::DecryptError)));
        assert_eq!(pair.server_tls().pending, None);
    }

    #[test]
    fn a_truncated_record_is_kept_and_no_more() {
        let mut pair = pair(&TLS13);
        pair.carry(|| usize::MAX).expect("handshake");
        pair.client.writer().write_all(&bytes(16_384)).expect("room");
        let mut record = Vec::new();
        pair.client.write_tls(&mut record).expect("memory");
        let (front, back) = record.split_at_mut(1000);
        pair.server.receive(front, &mut pair.plaintext, &mut pair.output).expect("half");
        assert_eq!(pair.server_tls().pending.as_ref().map(Vec::capacity), Some(1000));
        // Sending goes on while a record is incomplete.
        pair.server.send(&[b"meanwhile"], &mut pair.output).expect("open");
        pair.server.receive(back, &mut pair.plaintext, &mut pair.output).expect("whole");
        assert_eq!(pair.server_tls().pending, None);
        assert!(pair.plaintext == bytes(16_384));
        pair.carry(|| usize::MAX).expect("data");
        assert_eq!(pair.client_heard(), b"meanwhile");
    }

    #[test]
    fn plain_only_copies() {
        let mut transport = Transport::Plain;
        let (mut plaintext, mut output) = (Vec::new(), Vec::new());
        let received = transport.receive(&mut b"in".to_vec(), &mut plaintext, &mut output);
        assert_eq!(received, Ok(Received::default()));
        transport.send(&[b"o", b"ut"], &mut output).expect("plain");
        transport.close_notify(&mut output);
        assert_eq!((&plaintext[..], &output[..]), (&b"in"[..], &b"out"[..]));
        assert!(transport.is_plain() && !transport.is_handshaking());
        assert!(size_of::<Transport>() <= 16);
        // The rest of the 3.5 KB at rest are rustls' own allocations: keys, hashes, session.
        let size = size_of::<TlsTransport<UnbufferedServerConnection>>();
        assert!(size <= 1600, "{size}");
    }
}
