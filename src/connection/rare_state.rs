//! What a client has for a while only, or on some routes only: one pointer while it has none of it.

use crate::protocol::websocket::ControlPayload;

use super::client::Client;
use super::reauthenticate::Renewal;
use super::upgrade::PendingRequest;

#[derive(Default)]
pub(super) struct RareState {
    /// Until the client is open or refused: its request, as far as it is needed later.
    pending: Option<Box<PendingRequest>>,
    /// The pong that waits for earlier ones to be sent.
    pong: Option<Box<ControlPayload>>,
    /// Only in `Open`, and only on routes where fresh tokens may come.
    renewal: Option<Box<Renewal>>,
}

impl Client {
    pub(super) fn pending(&self) -> Option<&PendingRequest> {
        self.rare_state.as_ref()?.pending.as_deref()
    }

    pub(super) fn take_pending(&mut self) -> Option<Box<PendingRequest>> {
        self.rare_state.as_mut()?.pending.take()
    }

    pub(super) fn set_pending(&mut self, pending: Box<PendingRequest>) {
        self.rare_state.get_or_insert_default().pending = Some(pending);
    }

    pub(super) fn take_pong(&mut self) -> Option<Box<ControlPayload>> {
        self.rare_state.as_mut()?.pong.take()
    }

    /// Takes the place of one that waits already.
    pub(super) fn set_pong(&mut self, payload: &ControlPayload) {
        match &mut self.rare_state.get_or_insert_default().pong {
            Some(waiting) => **waiting = *payload,
            none => *none = Some(Box::new(*payload)),
        }
    }

    pub(super) fn renewal(&self) -> Option<&Renewal> {
        self.rare_state.as_ref()?.renewal.as_deref()
    }

    pub(super) fn take_renewal(&mut self) -> Option<Box<Renewal>> {
        self.rare_state.as_mut()?.renewal.take()
    }

    pub(super) fn set_renewal(&mut self, renewal: Box<Renewal>) {
        self.rare_state.get_or_insert_default().renewal = Some(renewal);
    }

    /// Gives the memory back when nothing is left in it.
    pub(super) fn drop_empty_rare_state(&mut self) {
        let is_empty =
            |it: &RareState| it.pending.is_none() && it.pong.is_none() && it.renewal.is_none();
        if self.rare_state.as_deref().is_some_and(is_empty) {
            self.rare_state = None;
        }
    }
}
