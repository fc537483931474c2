//! The callback style: messages are handled where they lie, in the task that read them.

use std::sync::Arc;

use super::link::Link;
use super::message::{Ended, Identity, MessageRef, Renewal, SendError, TellError};
use super::session::{SessionSender, sendable};
use super::settings::Settings;
use super::state::Handle;
use crate::base::time::UnixTime;
use crate::protocol::link::SessionId;

/// What happens on one link, as callbacks. Each link has a handler of its own.
///
/// Callbacks run in the link's task: they must not block. Messages are borrowed from the read
/// buffer and answers are written once per batch, so this is the fastest way to answer.
pub trait Handler: Send + 'static {
    /// A client was authenticated and its session is open.
    fn open(&mut self, session: &mut SessionHandle<'_>, identity: &Identity);

    /// A whole message came.
    fn message(&mut self, session: &mut SessionHandle<'_>, message: MessageRef<'_>);

    /// The client presented a fresh token, which the gateway verified; the subject is the same.
    fn reauthenticated(&mut self, session: &mut SessionHandle<'_>, renewal: &Renewal) {
        let _ = (session, renewal);
    }

    /// The session is over; `ended` says which side ended it. Nothing more comes with this id
    /// until it is opened again.
    fn closed(&mut self, session: SessionId, ended: &Ended);
}

/// A session, during a callback.
pub struct SessionHandle<'a> {
    link: &'a Arc<Link>,
    settings: &'a Settings,
    handle: Handle,
    id: SessionId,
}

impl<'a> SessionHandle<'a> {
    pub(super) fn new(
        link: &'a Arc<Link>,
        settings: &'a Settings,
        handle: Handle,
        id: SessionId,
    ) -> Self {
        SessionHandle { link, settings, handle, id }
    }

    /// Names the session on this link while it lives: a key for the handler's own tables.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Sends a message. What the client has no credit for waits, and holds back the client's
    /// own messages meanwhile; if more than `pending_max` waits, the session is closed with
    /// 1013. A message that the gateway would not take closes it with 1009.
    pub fn send(&mut self, message: MessageRef<'_>) {
        let mut state = self.link.lock();
        let sent = state.send(self.handle, message, true);
        if let Err(SendError::TooLarge { .. }) = sent {
            state.close(self.handle, 1009, "message too large");
        }
        if state.pending_bytes(self.handle) > self.settings.pending_max {
            state.close_overrun(self.handle);
        }
    }

    /// Closes the session, after the messages that wait. See
    /// [`Session::close`](super::Session::close) for the codes.
    pub fn close(&mut self, code: u16, reason: &str) {
        self.link.lock().close(self.handle, sendable(code), reason);
    }

    /// Sets when the client's identity is over. See [`Session::expire`](super::Session::expire).
    ///
    /// # Errors
    /// [`TellError`].
    pub fn expire(&mut self, expires: UnixTime) -> Result<(), TellError> {
        self.link.lock().expire(self.handle, expires)
    }

    /// A sender that outlives the callback.
    pub fn sender(&self) -> SessionSender {
        SessionSender::new(self.link.clone(), self.handle)
    }
}
