//! The bytes of one client connection as they cross the network: plain, or TLS; and the TLS of
//! both ends. The only file that drives rustls, on its unbuffered interface: at rest a connection
//! holds nothing but rustls' own state.

use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
    WriteTraffic,
};
use rustls::{ClientConfig, CommonState, ServerConfig};

use crate::protocol::client_hello::{Hello, HelloScanner};

pub use super::transport_error::{HANDSHAKE_BYTES_MAX, TransportError};

/// The fatal alert `decode_error` as a record of its own, before there are keys (RFC 8446 §6.2).
const DECODE_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 50];
/// Most plaintext bytes that one TLS record carries (RFC 8446 §5.1).
pub const RECORD_PLAINTEXT_MAX: usize = 16 * 1024;
/// Bytes that encryption adds to a record at most: header, nonce, tag, content type.
pub const RECORD_OVERHEAD_MAX: usize = 5 + 8 + 16 + 1;

/// Room beyond a record that rustls may need: it puts key updates (one that the peer asked
/// for, one of its own, 27 bytes each) and pending alerts in front of the next record.
const UPDATES_MAX: usize = 128;
/// Room that sending takes beyond the plaintext, where that fits into one record.
pub const SEND_OVERHEAD_MAX: usize = RECORD_OVERHEAD_MAX + UPDATES_MAX;

/// Most bytes kept after the handshake while a record is incomplete: the longest record
/// (RFC 5246 §6.2.3), and as much again for a key update in fragments.
const PENDING_MAX: usize = 2 * (5 + RECORD_PLAINTEXT_MAX + 2048);

/// What [`Transport::receive`] found out besides bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// With this input the handshake came to its end.
    pub handshake_finished_now: bool,
    /// The peer will send no more data (close_notify, now or earlier). Data may still be sent to
    /// it.
    pub peer_closed: bool,
}

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

/// The end of a TLS connection that the gateway has: what rustls has twice.
pub trait TlsEnd {
    /// What rustls keeps for this end alone.
    type Data;

    /// Lets rustls work on `records`.
    fn process<'c, 'i>(&'c mut self, records: &'i mut [u8])
    -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// What rustls keeps for both ends.
    fn common(&self) -> &CommonState;
}

impl TlsEnd for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        records: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

impl TlsEnd for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        records: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

/// A TLS connection.
///
/// Invariants: `pending` is never empty, and `None` between records; between calls rustls has
/// nothing to send.
pub struct TlsTransport<E> {
    connection: E,
    /// Received bytes that rustls could not use yet: the beginning of a record, or of a
    /// handshake message in several records.
    pending: Option<Vec<u8>>,
    /// Bytes received before the end of the handshake.
    handshake_bytes: u32,
    /// Something was sent, so that keys may be in use.
    answered: bool,
    peer_closed: bool,
    /// close_notify was sent.
    closed: bool,
    failed: bool,
}

impl<E> std::fmt::Debug for TlsTransport<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsTransport")
            .field("pending", &self.pending.as_ref().map(Vec::len))
            .field("peer_closed", &self.peer_closed)
            .field("closed", &self.closed)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
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
            Transport::Tls(state) => state.begun()?.connection.common().protocol_version(),
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

impl TlsTransport<UnbufferedClientConnection> {
    /// The client's end of a connection to the server of this name, whose hello it appends to
    /// `output`.
    ///
    /// # Errors
    /// rustls refuses the configuration.
    pub fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        output: &mut Vec<u8>,
    ) -> Result<Self, TransportError> {
        let mut tls = TlsTransport::new(UnbufferedClientConnection::new(config, name)?);
        tls.receive(&mut [], &mut Vec::new(), output)?;
        Ok(tls)
    }
}

impl<E: TlsEnd> TlsTransport<E> {
    fn new(connection: E) -> Self {
        TlsTransport {
            connection,
            pending: None,
            handshake_bytes: 0,
            answered: false,
            peer_closed: false,
            closed: false,
            failed: false,
        }
    }

    fn is_handshaking(&self) -> bool {
        self.connection.common().is_handshaking()
    }

    /// Whether data can be sent now.
    pub fn is_open(&self) -> bool {
        !self.failed && !self.closed && !self.is_handshaking()
    }

    /// See [`Transport::receive`].
    ///
    /// # Errors
    /// The peer's bytes cannot be used.
    pub fn receive(
        &mut self,
        input: &mut [u8],
        plaintext: &mut Vec<u8>,
        output: &mut Vec<u8>,
    ) -> Result<Received, TransportError> {
        if self.failed {
            return Err(TransportError::Failed);
        }
        if self.peer_closed {
            return Ok(Received { handshake_finished_now: false, peer_closed: true });
        }
        let handshaking = self.is_handshaking();
        let queued = output.len();
        let http = self.is_http(input);
        let result = self.take(input, plaintext, output);
        let result = result.map_err(|error| if http { TransportError::PlainHttp } else { error });
        self.answered |= output.len() > queued;
        if let Err(error) = result {
            self.fail(&error, output);
            return Err(error);
        }
        Ok(Received {
            handshake_finished_now: handshaking && !self.is_handshaking(),
            peer_closed: self.peer_closed,
        })
    }

    fn fail(&mut self, error: &TransportError, output: &mut Vec<u8>) {
        self.failed = true;
        self.pending = None;
        self.drain_alerts(output);
        // rustls knows nothing of our own bound. After its first answer a plain alert could be
        // taken for an attacker's.
        if *error == TransportError::HandshakeTooLong && !self.answered {
            output.extend_from_slice(&DECODE_ERROR);
        }
    }

    /// Keeps input for the next [`receive`](Self::receive), which counts it.
    fn hold(&mut self, input: &[u8]) {
        let over = self.handshake_bytes as usize > HANDSHAKE_BYTES_MAX;
        if !self.failed && !self.peer_closed && !over && !input.is_empty() {
            self.handshake_bytes += u32::try_from(input.len()).unwrap_or(u32::MAX / 2);
            self.pending.get_or_insert_default().extend_from_slice(input);
        }
    }

    /// Whether the first bytes of the connection are a request's, in capitals, where TLS has 22.
    fn is_http(&self, input: &[u8]) -> bool {
        let is_method = |start: &[u8]| start.iter().all(|b| b.is_ascii_uppercase() || *b == b' ');
        self.handshake_bytes == 0 && input.get(..4).is_some_and(is_method)
    }

    fn take(
        &mut self,
        input: &mut [u8],
        plaintext: &mut Vec<u8>,
        output: &mut Vec<u8>,
    ) -> Result<(), TransportError> {
        if self.is_handshaking() {
            self.handshake_bytes += u32::try_from(input.len()).unwrap_or(u32::MAX / 2);
        }
        match self.pending.take() {
            None => {
                let used = self.process(input, plaintext, output)?;
                if used < input.len() && !self.peer_closed {
                    self.pending = Some(input[used..].to_vec());
                }
            }
            Some(mut pending) => {
                pending.extend_from_slice(input);
                let used = self.process(&mut pending, plaintext, output)?;
                if used < pending.len() && !self.peer_closed {
                    pending.drain(..used);
                    // A large record must not leave its memory to the small one behind it.
                    if pending.capacity() > 4 * pending.len() + 256 {
                        pending.shrink_to_fit();
                    }
                    self.pending = Some(pending);
                }
            }
        }
        let kept = self.pending.as_ref().map_or(0, Vec::len);
        match self.is_handshaking() {
            true if self.handshake_bytes as usize > HANDSHAKE_BYTES_MAX => {
                Err(TransportError::HandshakeTooLong)
            }
            false if kept > PENDING_MAX => Err(TransportError::FragmentTooLong),
            _ => Ok(()),
        }
    }

    /// Lets rustls work on `bytes` until it needs more; returns how many it is done with.
    fn process(
        &mut self,
        bytes: &mut [u8],
        plaintext: &mut Vec<u8>,
        output: &mut Vec<u8>,
    ) -> Result<usize, TransportError> {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.connection.process(&mut bytes[used..]);
            let mut goes_on = true;
            match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        plaintext.extend_from_slice(record.payload);
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    append(output, |room| data.encode(room))?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed | ConnectionState::Closed => {
                    self.peer_closed = true;
                    goes_on = false;
                }
                // Early data is off, so rustls skips it instead of showing it here.
                _ => goes_on = false,
            }
            used += discard;
            if !goes_on {
                return Ok(used);
            }
        }
    }

    /// Appends the alerts that a failure left in rustls. The failed input is not shown to it
    /// again, and it is only asked while it has something to send: it would otherwise go on
    /// reading.
    fn drain_alerts(&mut self, output: &mut Vec<u8>) {
        while self.connection.common().wants_write() {
            match self.connection.process(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    if append(output, |room| data.encode(room)).is_err() {
                        return;
                    }
                }
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while traffic.next_record().is_some() {}
                }
                _ => return,
            }
        }
    }

    fn send(&mut self, plaintext: &[&[u8]], output: &mut Vec<u8>) -> Result<(), TransportError> {
        if self.failed {
            return Err(TransportError::Failed);
        }
        if self.closed || self.is_handshaking() {
            return Err(TransportError::NotOpen);
        }
        let mut pieces = plaintext.iter().copied().filter(|piece| !piece.is_empty()).peekable();
        let mut piece: &[u8] = &[];
        loop {
            if piece.is_empty() {
                match pieces.next() {
                    Some(next) => piece = next,
                    None => return Ok(()),
                }
            }
            if piece.len() >= RECORD_PLAINTEXT_MAX || pieces.peek().is_none() {
                let (now, later) = piece.split_at(piece.len().min(RECORD_PLAINTEXT_MAX));
                let start = output.len();
                output.resize(start + now.len() + SEND_OVERHEAD_MAX, 0);
                let written = self.write(|writer| writer.encrypt(now, &mut output[start..]));
                output.truncate(start + *written.as_ref().unwrap_or(&0));
                written?;
                piece = later;
                continue;
            }
            // Several pieces for one record: gather them in `output`, behind the room for it.
            let wanted = piece.len() + pieces.clone().map(<[u8]>::len).sum::<usize>();
            let wanted = wanted.min(RECORD_PLAINTEXT_MAX);
            let start = output.len();
            let room = wanted + SEND_OVERHEAD_MAX;
            output.resize(start + room, 0);
            let mut missing = wanted;
            while missing > 0 {
                if piece.is_empty() {
                    piece = pieces.next().unwrap_or_default();
                }
                let (now, later) = piece.split_at(piece.len().min(missing));
                output.extend_from_slice(now);
                missing -= now.len();
                piece = later;
            }
            let (record, gathered) = output[start..].split_at_mut(room);
            let written = self.write(|writer| writer.encrypt(gathered, record));
            output.truncate(start + *written.as_ref().unwrap_or(&0));
            written?;
        }
    }

    /// Encrypts `plaintext` into one record at the start of `room`; returns how long it is.
    /// `plaintext` is no longer than a record's, and `room` longer by [`SEND_OVERHEAD_MAX`].
    ///
    /// # Errors
    /// The connection is not open, or its keys are worn out.
    pub fn send_into(
        &mut self,
        plaintext: &[u8],
        room: &mut [u8],
    ) -> Result<usize, TransportError> {
        assert!(plaintext.len() <= RECORD_PLAINTEXT_MAX, "more than a record takes");
        assert!(plaintext.len() + SEND_OVERHEAD_MAX <= room.len(), "too little room");
        if self.failed {
            return Err(TransportError::Failed);
        }
        if !self.is_open() {
            return Err(TransportError::NotOpen);
        }
        self.write(|writer| writer.encrypt(plaintext, room))
    }

    /// See [`Transport::close_notify`].
    pub fn close_notify(&mut self, output: &mut Vec<u8>) {
        if !self.is_open() {
            return;
        }
        let start = output.len();
        output.resize(start + SEND_OVERHEAD_MAX, 0);
        let written = self.write(|writer| writer.queue_close_notify(&mut output[start..]));
        output.truncate(start + written.unwrap_or(0));
        self.closed = true;
    }

    /// Calls `write` with what rustls writes application data through.
    fn write(
        &mut self,
        write: impl FnOnce(&mut WriteTraffic<'_, E::Data>) -> Result<usize, EncryptError>,
    ) -> Result<usize, TransportError> {
        // rustls remembers positions in bytes that it asked us to keep: show it those.
        let pending = self.pending.as_deref_mut().unwrap_or_default();
        let error = match self.connection.process(pending).state? {
            ConnectionState::WriteTraffic(mut writer) => match write(&mut writer) {
                Ok(written) => return Ok(written),
                Err(EncryptError::InsufficientSize(_)) => unreachable!("the room is sufficient"),
                Err(EncryptError::EncryptExhausted) => TransportError::KeysExhausted,
            },
            _ => return Err(TransportError::NotOpen),
        };
        self.failed = true;
        Err(error)
    }
}

/// Appends to `output` what `encode` writes: asks it for the size first.
fn append(
    output: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), TransportError> {
    let start = output.len();
    let mut room = 0;
    loop {
        output.resize(start + room, 0);
        match encode(&mut output[start..]) {
            Ok(written) => {
                output.truncate(start + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                assert!(required_size > room, "rustls asks for more room each time");
                room = required_size;
            }
            Err(EncodeError::AlreadyEncoded) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::version::{TLS12, TLS13};
    use rustls::{AlertDescription, ClientConnection, RootCertStore, SupportedProtocolVersion};
    use std::io::{Read, Write};

    use super::*;
    use crate::base::random::Random;
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
