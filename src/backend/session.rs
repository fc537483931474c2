//! A session as an author's task holds it.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use super::link::Link;
use super::message::{Ended, Identity, Message, Renewal, SendError, TellError};
use super::state::Handle;
use crate::base::time::UnixTime;
use crate::protocol::link::Close;

/// One authenticated client. Dropping it closes the session with code 1000 (1011 when the
/// task panics).
pub struct Session {
    sender: SessionSender,
    identity: Identity,
    renewals: u64,
    is_forgotten: bool,
}

/// Sends to one session from anywhere: cheap to clone, and does not keep the session open.
#[derive(Clone)]
pub struct SessionSender {
    link: Arc<Link>,
    handle: Handle,
}

impl Session {
    pub(super) fn new(link: Arc<Link>, handle: Handle, identity: Identity) -> Self {
        let sender = SessionSender { link, handle };
        Session { sender, identity, renewals: 0, is_forgotten: false }
    }

    /// Drops the session without closing it: the caller does, under the link's lock.
    pub(super) fn forget(mut self) {
        self.is_forgotten = true;
    }

    /// Who the client is and what it asked for. When the client presented a fresh token, this
    /// says what that says from the next [`next`](Self::next) on.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How many fresh tokens the client has presented, as far as [`identity`](Self::identity)
    /// knows of them.
    pub fn renewals(&self) -> u64 {
        self.renewals
    }

    /// Sets when the client's identity is over, earlier or later than its token says: the gateway
    /// closes the session then, unless a fresh token comes first.
    ///
    /// # Errors
    /// [`TellError`].
    pub fn expire(&self, expires: UnixTime) -> Result<(), TellError> {
        self.sender.expire(expires)
    }

    /// The client's next message; `None` once the session has ended and every message that
    /// came before its end was taken. Taking a message lets the client send more. May be
    /// cancelled: no message is lost.
    pub async fn next(&mut self) -> Option<Message> {
        let SessionSender { link, handle } = &self.sender;
        let message =
            poll_fn(|context| match link.with(|state| state.poll_next(*handle, context.waker())) {
                Some(message) => Poll::Ready(message),
                None => Poll::Pending,
            })
            .await;
        if let Some((count, renewal)) = link.lock().take_renewal(*handle) {
            let Renewal { token_id, expires, claims } = renewal;
            self.renewals = count;
            self.identity = Identity { token_id, expires, claims, ..self.identity.clone() };
        }
        message
    }

    /// Sends a message; waits while an earlier one waits for the client to read.
    ///
    /// # Errors
    /// [`SendError::Closed`] or [`SendError::TooLarge`].
    pub async fn send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.sender.send(message).await
    }

    /// A sender for other tasks, for fan-out.
    pub fn sender(&self) -> SessionSender {
        self.sender.clone()
    }

    /// Closes the session, after the messages that wait. Codes that must not appear in a
    /// close frame (RFC 6455 §7.4) become 1000; the reason is cut to 123 bytes. Messages of
    /// the client's that were not taken are dropped.
    pub fn close(&self, code: u16, reason: &str) {
        self.sender.close(code, reason);
    }

    /// How the session ended, once it has.
    pub fn ended(&self) -> Option<Ended> {
        let SessionSender { link, handle } = &self.sender;
        link.lock().ended(*handle)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.is_forgotten {
            let code = if std::thread::panicking() { 1011 } else { 1000 };
            let SessionSender { link, handle } = &self.sender;
            link.with(|state| state.disown(*handle, code));
        }
    }
}

impl SessionSender {
    pub(super) fn new(link: Arc<Link>, handle: Handle) -> Self {
        SessionSender { link, handle }
    }

    /// Sends a message; waits while an earlier one waits for the client to read.
    ///
    /// # Errors
    /// [`SendError::Closed`] or [`SendError::TooLarge`].
    pub async fn send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        let message = message.into();
        poll_fn(|context| {
            self.link.with(|state| match state.send(self.handle, message.borrowed(), false) {
                Err(SendError::Full) => {
                    state.await_room(self.handle, context.waker());
                    Poll::Pending
                }
                outcome => Poll::Ready(outcome),
            })
        })
        .await
    }

    /// Sends a message if no earlier one waits for the client to read.
    ///
    /// # Errors
    /// [`SendError::Full`], [`SendError::Closed`] or [`SendError::TooLarge`].
    pub fn try_send(&self, message: &Message) -> Result<(), SendError> {
        self.link.with(|state| state.send(self.handle, message.borrowed(), false))
    }

    /// Sets when the client's identity is over: see [`Session::expire`].
    ///
    /// # Errors
    /// [`TellError`].
    pub fn expire(&self, expires: UnixTime) -> Result<(), TellError> {
        self.link.with(|state| state.expire(self.handle, expires))
    }

    /// Closes the session: see [`Session::close`].
    pub fn close(&self, code: u16, reason: &str) {
        let code = sendable(code);
        self.link.with(|state| state.close(self.handle, code, reason));
    }
}

/// The code, or 1000 where it must not appear in a close frame.
pub(super) fn sendable(code: u16) -> u16 {
    if code != 0 && Close::is_code_allowed(code) { code } else { 1000 }
}
