//! A backend that sends everything back, as fast as it goes.

use super::{Backend, BindError, Ended, Handler, Identity, Limits, MessageRef, SessionHandle};
use crate::base::secret::Secret;
use crate::protocol::link::SessionId;

/// What the echo takes in one message: as much as the gateway's conformance profile.
const MESSAGE_MAX: u32 = 32 << 20;

/// Sends every message back to its sender.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Handler for Echo {
    fn open(&mut self, _: &mut SessionHandle<'_>, _: &Identity) {}

    fn message(&mut self, session: &mut SessionHandle<'_>, message: MessageRef<'_>) {
        session.send(message);
    }

    fn closed(&mut self, _: SessionId, _: &Ended) {}
}

/// Listens on `listen` (`127.0.0.1:7000` or `unix:/path`) and echoes until it is cancelled.
///
/// # Errors
/// [`BindError`] when it cannot listen.
pub async fn run(listen: &str, secret: Option<Secret>) -> Result<(), BindError> {
    let limits = Limits { message_max: MESSAGE_MAX, ..Limits::default() };
    // One whole message must be able to wait for its client's credit.
    let mut builder = Backend::builder().limits(limits).pending_max(MESSAGE_MAX as usize);
    if let Some(secret) = secret {
        builder = builder.secret(secret);
    }
    let backend = builder.bind(listen).await?;
    tracing::info!(address = backend.address(), "echo backend listens");
    backend.serve(|| Echo).await;
    Ok(())
}
