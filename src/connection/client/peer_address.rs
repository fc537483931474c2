//! Where a client comes from, packed: there is one for each connection.

use std::net::{IpAddr, SocketAddr};

/// An optional socket address in 18 bytes instead of 32. No client has port 0, so that stands
/// for none.
#[derive(Clone, Copy)]
pub(super) struct PeerAddress {
    /// IPv4 in its mapped form.
    ip: [u8; 16],
    port: u16,
}

/// Whose address a client's `peer` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerIs {
    /// The client's, as far as is known.
    Client,
    /// That of a proxy whose word on the client counts.
    TrustedProxy,
    /// The client's by such a proxy's word.
    ClientOfProxy,
}

impl PeerAddress {
    pub(super) fn pack(address: Option<SocketAddr>) -> Self {
        let Some(address) = address else { return PeerAddress { ip: [0; 16], port: 0 } };
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        PeerAddress { ip: ip.octets(), port: address.port() }
    }

    pub(super) fn unpack(self) -> Option<SocketAddr> {
        let ip = IpAddr::from(self.ip).to_canonical();
        (self.port != 0).then(|| SocketAddr::new(ip, self.port))
    }
}
