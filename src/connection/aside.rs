//! What a client has for a while only, or on some routes only: one pointer while it has none of it.

use crate::protocol::websocket::ControlPayload;

use super::client::Client;
use super::reauthenticate::Renewal;
use super::upgrade::PendingRequest;

#[derive(Default)]
pub(super) struct Aside {
    /// Until the client is open or refused: its request, as far as it is needed later.
    pending: Option<Box<PendingRequest>>,
    /// The pong that waits for earlier ones to be sent.
    pong: Option<Box<ControlPayload>>,
    /// Only in `Open`, and only on routes where fresh tokens may come.
    renewal: Option<Box<Renewal>>,
}

impl Client {
    pub(super) fn pending(&self) -> Option<&PendingRequest> {
        self.aside.as_ref()?.pending.as_deref()
    }

    pub(super) fn take_pending(&mut self) -> Option<Box<PendingRequest>> {
        self.aside.as_mut()?.pending.take()
    }

    pub(super) fn set_pending(&mut self, pending: Box<PendingRequest>) {
        self.aside.get_or_insert_default().pending = Some(pending);
    }

    pub(super) fn take_pong(&mut self) -> Option<Box<ControlPayload>> {
        self.aside.as_mut()?.pong.take()
    }

    /// Takes the place of one that waits already.
    pub(super) fn set_pong(&mut self, payload: &ControlPayload) {
        match &mut self.aside.get_or_insert_default().pong {
            Some(waiting) => **waiting = *payload,
            none => *none = Some(Box::new(*payload)),
        }
    }

    pub(super) fn renewal(&self) -> Option<&Renewal> {
        self.aside.as_ref()?.renewal.as_deref()
    }

    pub(super) fn take_renewal(&mut self) -> Option<Box<Renewal>> {
        self.aside.as_mut()?.renewal.take()
    }

    pub(super) fn set_renewal(&mut self, renewal: Box<Renewal>) {
        self.aside.get_or_insert_default().renewal = Some(renewal);
    }

    /// Gives the memory back when nothing is left in it.
    pub(super) fn drop_empty_aside(&mut self) {
        let is_empty =
            |it: &Aside| it.pending.is_none() && it.pong.is_none() && it.renewal.is_none();
        if self.aside.as_deref().is_some_and(is_empty) {
            self.aside = None;
        }
    }
}
