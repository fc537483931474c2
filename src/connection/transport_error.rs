//! Why a TLS connection cannot go on, and what that is for logs and metrics.

use rustls::{AlertDescription, PeerIncompatible};

use crate::protocol::close_detail::TlsFault;

/// Most bytes that a peer may send before its handshake is finished.
pub const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;

/// Why a TLS connection cannot go on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TransportError {
    /// The peer's bytes are not acceptable TLS, or it sent a fatal alert.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The peer speaks HTTP where TLS is expected.
    #[error("the peer speaks HTTP without TLS")]
    PlainHttp,
    /// The peer sent too much before its handshake was finished.
    #[error("more than {HANDSHAKE_BYTES_MAX} bytes before the end of the TLS handshake")]
    HandshakeTooLong,
    /// The peer began something that it does not finish within two records.
    #[error("a fragmented TLS message is too long")]
    FragmentTooLong,
    /// The keys are worn out, and the protocol version cannot change them.
    #[error("the TLS keys are exhausted")]
    KeysExhausted,
    /// Data cannot be sent: the handshake is not finished, or close_notify was sent.
    #[error("the TLS connection is not open for sending")]
    NotOpen,
    /// An earlier call failed.
    #[error("the TLS connection has failed before")]
    Failed,
}

impl TransportError {
    /// What it is for logs and metrics.
    pub fn fault(&self) -> TlsFault {
        use rustls::Error::{
            AlertReceived, DecryptError, InappropriateHandshakeMessage, InappropriateMessage,
            InvalidMessage, NoApplicationProtocol, PeerIncompatible, PeerMisbehaved,
        };
        match self {
            TransportError::PlainHttp => TlsFault::PlainHttp,
            TransportError::HandshakeTooLong => TlsFault::HelloTooLong,
            TransportError::FragmentTooLong => TlsFault::ProtocolError,
            TransportError::KeysExhausted | TransportError::NotOpen | TransportError::Failed => {
                TlsFault::Other
            }
            TransportError::Tls(error) => match error {
                PeerIncompatible(why) => incompatibility(why),
                AlertReceived(alert) => match alert {
                    AlertDescription::BadCertificate
                    | AlertDescription::UnsupportedCertificate
                    | AlertDescription::CertificateRevoked
                    | AlertDescription::CertificateExpired
                    | AlertDescription::CertificateUnknown
                    | AlertDescription::UnknownCA => TlsFault::CertificateRefused,
                    _ => TlsFault::ClientAlert,
                },
                InvalidMessage(rustls::InvalidMessage::InvalidContentType) => TlsFault::NotTls,
                DecryptError => TlsFault::BadRecord,
                NoApplicationProtocol => TlsFault::NoCommonProtocol,
                InvalidMessage(_)
                | PeerMisbehaved(_)
                | InappropriateMessage { .. }
                | InappropriateHandshakeMessage { .. } => TlsFault::ProtocolError,
                _ => TlsFault::Other,
            },
        }
    }
}

fn incompatibility(why: &PeerIncompatible) -> TlsFault {
    match why {
        PeerIncompatible::NoCipherSuitesInCommon => TlsFault::NoCommonCipher,
        PeerIncompatible::NoKxGroupsInCommon | PeerIncompatible::NamedGroupsExtensionRequired => {
            TlsFault::NoCommonGroup
        }
        PeerIncompatible::NoSignatureSchemesInCommon => TlsFault::NoCommonSignature,
        // Clients of TLS 1.0 and 1.1 do not know the extension (RFC 5246 §7.4.1.4.1).
        PeerIncompatible::SignatureAlgorithmsExtensionRequired
        | PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::SupportedVersionsExtensionRequired => TlsFault::NoCommonVersion,
        _ => TlsFault::Incompatible,
    }
}
