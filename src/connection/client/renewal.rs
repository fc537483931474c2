//! What an open client keeps on a route where it may present fresh tokens.

use std::sync::Arc;

use crate::base::time::Instant;
use crate::settings::{Deadlines, Reauthenticate};

/// The pattern that marks a message as the gateway's, and the message under way.
pub(super) struct Renewal {
    pub(super) pattern: Arc<Reauthenticate>,
    /// The message under way, if it is or may become the gateway's.
    pub(super) buffered: Option<Buffered>,
    /// An answer waits for the end of a message of the backend's.
    pub(super) answer_owed: bool,
    /// The command that it answers, where the dialect numbers them.
    pub(super) command: Option<u32>,
}

/// The beginning of a message. Invariant: `pattern.prefix` and `bytes` begin alike, and
/// `bytes.len() <= limits.first_message_max`.
pub(super) struct Buffered {
    pub(super) bytes: Vec<u8>,
    pub(super) since: Instant,
}

impl Renewal {
    pub(super) fn new(pattern: &Arc<Reauthenticate>) -> Box<Self> {
        let pattern = Arc::clone(pattern);
        Box::new(Renewal { pattern, buffered: None, answer_owed: false, command: None })
    }

    /// Until when the message under way must be whole.
    pub(super) fn deadline(&self, deadlines: &Deadlines) -> Instant {
        self.buffered.as_ref().map_or(Instant::NEVER, |it| it.since + deadlines.authenticate)
    }

    /// Bytes that will need the backend's credit if they turn out to be for it.
    pub(super) fn undecided(&self) -> usize {
        let buffered = self.buffered.as_ref().map_or(0, |it| it.bytes.len());
        if buffered < self.pattern.prefix.len() { buffered } else { 0 }
    }

    pub(super) fn is_ours(&self) -> bool {
        self.buffered.as_ref().is_some_and(|it| it.bytes.len() >= self.pattern.prefix.len())
    }
}
