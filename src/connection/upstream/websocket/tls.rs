//! TLS to a WebSocket server: between the socket and the [`Relay`], whose output it encrypts when
//! that is sent, so that the queue holds the same with and without TLS.

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error};

use super::handshake::Fault;
use super::relay::Relay;
use crate::base::byte_queue::BytePool;
use crate::connection::tls::{RECORD_PLAINTEXT_MAX, Received, SEND_OVERHEAD_MAX, TlsTransport};
use crate::connection::transport::TransportError;

/// Longest text about a failure: a certificate may hold any number of names.
const TEXT_CHARS_MAX: usize = 300;

/// One TLS connection to a server.
///
/// Invariant: `out` holds what rustls says of its own accord (hello, end of the handshake, alerts):
/// a few kilobytes at most, and no memory once that is sent.
#[derive(Debug)]
pub struct ServerTls {
    connection: TlsTransport<UnbufferedClientConnection>,
    out: Vec<u8>,
}

impl ServerTls {
    /// Begins the handshake: the server must prove this name.
    ///
    /// # Errors
    /// rustls refuses the configuration.
    pub fn new(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Fault> {
        let mut out = Vec::new();
        let connection = TlsTransport::client(config, name, &mut out);
        Ok(ServerTls { connection: connection.map_err(|error| fault(&error))?, out })
    }

    /// Takes all of `input`; appends what it decrypts to `plaintext`. Whether the server will send
    /// no more.
    ///
    /// # Errors
    /// What came is no TLS of this server. Nothing can be received or sent any more but the alert
    /// that says so.
    pub fn receive(&mut self, input: &mut [u8], plaintext: &mut Vec<u8>) -> Result<bool, Fault> {
        let received = self.connection.receive(input, plaintext, &mut self.out);
        received.map(|Received { peer_closed, .. }| peer_closed).map_err(|error| fault(&error))
    }

    /// Whether the handshake is over, and data can be sent.
    pub fn is_open(&self) -> bool {
        self.connection.is_open()
    }

    /// Whether something can be sent now: before the end of the handshake the relay's output
    /// waits.
    pub fn has_output(&self, relay: &Relay) -> bool {
        !self.out.is_empty() || (relay.unsent() > 0 && self.is_open())
    }

    /// Moves output, encrypted, into `into` until that is full or nothing waits; returns how many
    /// bytes. `room` is reused.
    ///
    /// # Errors
    /// The keys are worn out: the connection cannot go on.
    pub fn copy_output(
        &mut self,
        relay: &mut Relay,
        pool: &mut BytePool,
        room: &mut Vec<u8>,
        into: &mut [u8],
    ) -> Result<usize, Fault> {
        let mut filled = self.out.len().min(into.len());
        into[..filled].copy_from_slice(&self.out[..filled]);
        self.out.drain(..filled);
        if !self.out.is_empty() {
            return Ok(filled);
        }
        self.out = Vec::new();
        while self.is_open() && relay.unsent() > 0 {
            let most = (into.len() - filled).saturating_sub(SEND_OVERHEAD_MAX);
            let count = relay.unsent().min(RECORD_PLAINTEXT_MAX).min(most);
            // A record for a few bytes at the end of the room would cost more than it brings.
            let is_whole = count == relay.unsent() || count == RECORD_PLAINTEXT_MAX;
            if count == 0 || (filled > 0 && !is_whole) {
                break;
            }
            room.clear();
            room.resize(count, 0);
            relay.copy_output(pool, room);
            let written = self.connection.send_into(room, &mut into[filled..]);
            filled += written.map_err(|error| fault(&error))?;
        }
        Ok(filled)
    }

    /// Says that no more data will come (RFC 8446 §6.1), if that can be said. Whether something,
    /// this or an alert, is still to be sent.
    pub fn close(&mut self) -> bool {
        self.connection.close_notify(&mut self.out);
        !self.out.is_empty()
    }
}

/// What was wrong, for people.
fn fault(error: &TransportError) -> Fault {
    let text: String = match error {
        TransportError::Tls(error) => error.to_string(),
        error => error.to_string(),
    };
    // Names in a certificate are the server's text.
    let escaped = |c: char| match c {
        '"' | '\'' => c.to_string(),
        c => c.escape_debug().to_string(),
    };
    let mut shown: String = text.chars().take(TEXT_CHARS_MAX).map(escaped).collect();
    let advice = advice(error);
    if !advice.is_empty() {
        shown.push_str("; ");
        shown.push_str(advice);
    }
    Fault::Tls(shown)
}

fn advice(error: &TransportError) -> &'static str {
    use CertificateError as Wrong;
    let error = match error {
        TransportError::PlainHttp => return "write ws:// for a server without TLS",
        TransportError::Tls(error) => error,
        _ => return "",
    };
    match error {
        Error::InvalidCertificate(Wrong::UnknownIssuer | Wrong::BadSignature) => {
            "name the certificate of its issuer as ca_file"
        }
        Error::InvalidCertificate(
            Wrong::NotValidForName | Wrong::NotValidForNameContext { .. },
        ) => "write a name of its certificate as server_name",
        Error::InvalidCertificate(Wrong::Expired | Wrong::ExpiredContext { .. }) => {
            "renew the server's certificate"
        }
        Error::InvalidCertificate(Wrong::NotValidYet | Wrong::NotValidYetContext { .. }) => {
            "compare the clocks of both machines"
        }
        Error::InvalidMessage(_) => "write ws:// for a server without TLS",
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the server asks for a client's certificate, and the gateway has none"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests;
