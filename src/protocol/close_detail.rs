//! What a cause came to in particular, where one cause has many: for logs and metrics. A closed set,
//! so that a label of it is bounded whatever clients do.

use crate::protocol::http_upgrade::HttpRefusal;
use crate::protocol::proxy_header::ProxyError;

/// Which of the many things behind a cause it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseDetail {
    /// The HTTP answer to a bad request; one of [`HttpRefusal::PLAIN`].
    Http(HttpRefusal),
    /// Why there is no TLS connection.
    Tls(TlsFault),
    /// Why a trusted proxy's first bytes are of no use.
    Proxy(ProxyError),
    /// The token's time begins too late to wait for it.
    TokenFarOff,
}

macro_rules! tls_faults {
    ($( $(#[$doc:meta])* $name:ident = $label:literal, )*) => {
        /// Why a TLS handshake, or the connection after it, failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum TlsFault { $( $(#[$doc])* $name, )* }

        impl TlsFault {
            /// Every fault, in declaration order.
            pub const ALL: &'static [TlsFault] = &[ $( TlsFault::$name, )* ];

            const fn label(self) -> &'static str {
                match self { $( TlsFault::$name => $label, )* }
            }
        }
    };
}

tls_faults! {
    /// The client speaks HTTP without TLS.
    PlainHttp = "tls_plain_http",
    /// What came is no TLS at all.
    NotTls = "tls_not_tls",
    /// The client knows neither TLS 1.2 nor 1.3.
    NoCommonVersion = "tls_no_common_version",
    /// The client offers no cipher suite that the gateway has.
    NoCommonCipher = "tls_no_common_cipher",
    /// The client offers no key exchange group that the gateway has.
    NoCommonGroup = "tls_no_common_group",
    /// The client offers no signature scheme that fits the certificate's key.
    NoCommonSignature = "tls_no_common_signature",
    /// The client offers application protocols (ALPN), and not HTTP/1.1.
    NoCommonProtocol = "tls_no_common_protocol",
    /// Another extension that one side requires and the other lacks.
    Incompatible = "tls_incompatible",
    /// The client's alert says that it does not trust the certificate.
    CertificateRefused = "tls_certificate_refused",
    /// Another alert of the client.
    ClientAlert = "tls_client_alert",
    /// The client sent more than a handshake may take.
    HelloTooLong = "tls_hello_too_long",
    /// A record that cannot be decrypted.
    BadRecord = "tls_bad_record",
    /// The client broke the protocol in another way.
    ProtocolError = "tls_protocol_error",
    /// The client went before the handshake was finished.
    ClientLeft = "tls_client_left",
    /// Anything else.
    Other = "tls_other",
}

impl CloseDetail {
    /// How many there are.
    pub const COUNT: usize =
        HttpRefusal::PLAIN.len() + TlsFault::ALL.len() + ProxyError::ALL.len() + 1;

    /// Every detail, in the order of [`CloseDetail::index`].
    pub fn all() -> impl Iterator<Item = CloseDetail> {
        let http = HttpRefusal::PLAIN.iter().copied().map(CloseDetail::Http);
        let tls = TlsFault::ALL.iter().copied().map(CloseDetail::Tls);
        let proxy = ProxyError::ALL.iter().copied().map(CloseDetail::Proxy);
        http.chain(tls).chain(proxy).chain([CloseDetail::TokenFarOff])
    }

    /// Its place among all; `None` for an HTTP answer that its cause says all of.
    pub fn index(self) -> Option<usize> {
        CloseDetail::all().position(|detail| detail == self)
    }

    /// The stable lower-case name, for metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            CloseDetail::Http(refusal) => refusal.label(),
            CloseDetail::Tls(fault) => fault.label(),
            CloseDetail::Proxy(ProxyError::Missing) => "proxy_header_missing",
            CloseDetail::Proxy(ProxyError::Malformed) => "proxy_header_malformed",
            CloseDetail::Proxy(ProxyError::TooLong) => "proxy_header_too_long",
            CloseDetail::Proxy(ProxyError::NotTcp) => "proxy_header_not_tcp",
            CloseDetail::TokenFarOff => "token_far_off",
        }
    }
}

impl HttpRefusal {
    /// What to log and count beside the cause, which says it all where the refusal carries one.
    pub const fn detail(self) -> Option<CloseDetail> {
        match self {
            HttpRefusal::Unauthorized(_)
            | HttpRefusal::Forbidden(_)
            | HttpRefusal::Unavailable(_) => None,
            plain => Some(CloseDetail::Http(plain)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::protocol::cause::Cause;

    #[test]
    fn every_detail_has_a_place_and_a_label_of_its_own() {
        assert_eq!(CloseDetail::all().count(), CloseDetail::COUNT);
        let mut labels: HashSet<&str> = Cause::LABELS.iter().copied().collect();
        for (place, detail) in CloseDetail::all().enumerate() {
            assert_eq!(detail.index(), Some(place));
            assert!(labels.insert(detail.label()), "{} twice", detail.label());
        }
        let told_by_its_cause = CloseDetail::Http(HttpRefusal::Forbidden(Cause::ForbiddenOrigin));
        assert_eq!(told_by_its_cause.index(), None);
    }
}
