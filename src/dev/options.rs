//! Where `portcullis dev` listens, and what its parts share.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::server::RunError;

/// Where `portcullis dev` listens. A port 0 is a free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevOptions {
    /// WebSocket over plain TCP.
    pub plain: SocketAddr,
    /// WebSocket over TLS.
    pub tls: SocketAddr,
    /// The page, the metrics, the tokens. Loopback only.
    pub admin: SocketAddr,
}

impl Default for DevOptions {
    /// 127.0.0.1 with the ports 8080, 8443 and 9464.
    fn default() -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        DevOptions { plain: loopback(8080), tls: loopback(8443), admin: loopback(9464) }
    }
}

pub(super) fn failure(what: &str, error: impl std::fmt::Display) -> RunError {
    RunError::Dev { reason: format!("{what}: {error}") }
}

/// The wall clock, in seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
