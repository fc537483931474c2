//! TLS, whichever end of it the gateway is. The only file that drives rustls, on its unbuffered
//! interface: at rest a connection holds nothing but rustls' own state.

use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
    WriteTraffic,
};
use rustls::{ClientConfig, CommonState, ProtocolVersion};

use super::transport_error::{HANDSHAKE_BYTES_MAX, TransportError};

/// The fatal alert `decode_error` as a record of its own, before there are keys (RFC 8446 §6.2).
pub(super) const DECODE_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 50];
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
pub(super) const PENDING_MAX: usize = 2 * (5 + RECORD_PLAINTEXT_MAX + 2048);

/// What [`TlsTransport::receive`] found out besides bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// With this input the handshake came to its end.
    pub handshake_finished_now: bool,
    /// The peer will send no more data (close_notify, now or earlier). Data may still be sent to
    /// it.
    pub peer_closed: bool,
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
    pub(super) pending: Option<Vec<u8>>,
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
    pub(super) fn new(connection: E) -> Self {
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

    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.common().is_handshaking()
    }

    /// The TLS version agreed on, once it is.
    pub(super) fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.connection.common().protocol_version()
    }

    /// Whether data can be sent now.
    pub fn is_open(&self) -> bool {
        !self.failed && !self.closed && !self.is_handshaking()
    }

    /// Takes all of `input` (its bytes are overwritten). Appends what it decrypts to `plaintext`
    /// and what must be sent to the peer (handshake, alerts) to `output`.
    ///
    /// # Errors
    /// The peer's bytes cannot be used. The alert is in `output`, and every further call fails;
    /// what was appended to `plaintext` before is genuine.
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

    pub(super) fn fail(&mut self, error: &TransportError, output: &mut Vec<u8>) {
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
    pub(super) fn hold(&mut self, input: &[u8]) {
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

    pub(super) fn send(
        &mut self,
        plaintext: &[&[u8]],
        output: &mut Vec<u8>,
    ) -> Result<(), TransportError> {
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

    /// Tells the peer that no more data will come (close_notify, RFC 8446 §6.1); nothing can be
    /// sent afterwards. Without effect on a handshaking, closed or failed connection.
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
