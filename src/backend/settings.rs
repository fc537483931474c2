//! What the builder collects.

use std::time::Duration;

use super::authenticate::Authenticator;
use crate::base::secret::Secret;
use crate::protocol::link::{Limits, features};

pub(super) struct Settings {
    pub(super) secret: Option<Secret>,
    pub(super) limits: Limits,
    pub(super) links_max: usize,
    pub(super) handshakes_max: usize,
    pub(super) queue_max: usize,
    pub(super) assembly_max: usize,
    pub(super) unfinished_max: Duration,
    pub(super) send_queue_max: usize,
    pub(super) pending_max: usize,
    pub(super) handshake_timeout: Duration,
    pub(super) silence_max: Duration,
    pub(super) authenticator: Option<Authenticator>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            secret: None,
            limits: Limits::default(),
            links_max: 256,
            handshakes_max: 256,
            queue_max: 64 << 20,
            assembly_max: 256 << 20,
            unfinished_max: Duration::from_secs(300),
            send_queue_max: 16 << 20,
            pending_max: 8 << 20,
            handshake_timeout: Duration::from_secs(5),
            silence_max: Duration::from_secs(30),
            authenticator: None,
        }
    }
}

impl Settings {
    /// What this backend can do, as bits of the handshake.
    pub(super) fn features(&self) -> u64 {
        let verdicts = if self.authenticator.is_some() { features::VERDICTS } else { 0 };
        features::REAUTHENTICATION | verdicts
    }
}
