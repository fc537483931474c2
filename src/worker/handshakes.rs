//! TLS input: handshakes within the budgets of a turn and of a second, and records after them.

use crate::base::slab::Key;
use crate::connection::transport::Held;

use super::Core;

impl Core {
    /// Takes input of a TLS handshake. It is copied, so that no receive buffer waits for the
    /// handshake's turn; and as long as the client's hello is not whole, that is all it costs.
    pub(super) fn handshake_input(&mut self, owner: Key, bytes: &[u8]) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let held = connection.transport.hold(bytes);
        if connection.parked || held == Held::Incomplete {
            return;
        }
        // The second's budget, before anything waits for this one.
        if held == Held::Hello && !self.may_handshake(owner) {
            return;
        }
        if self.handshakes < self.env.settings.limits.handshakes_per_tick {
            self.handshakes += 1;
            return self.tls_input(owner, &mut []);
        }
        if let Some(connection) = self.connections.entry_mut(owner) {
            connection.parked = true;
            self.deferred.push_back(owner);
        }
    }

    /// Goes on with TLS handshakes that were put off, within this turn's budget. Whether there
    /// were any.
    pub(super) fn handle_deferred(&mut self) -> bool {
        let any = !self.deferred.is_empty();
        while self.handshakes < self.env.settings.limits.handshakes_per_tick
            && let Some(owner) = self.deferred.pop_front()
        {
            let Some(connection) = self.connections.entry_mut(owner) else { continue };
            connection.parked = false;
            if !connection.pipe.is_ending() {
                self.handshakes += 1;
                self.tls_input(owner, &mut []);
            }
            self.settle(owner);
        }
        any
    }

    pub(super) fn tls_input(&mut self, owner: Key, bytes: &mut [u8]) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let mut plaintext = std::mem::take(&mut self.plaintext);
        plaintext.clear();
        self.ciphertext.clear();
        let result = connection.transport.receive(bytes, &mut plaintext, &mut self.ciphertext);
        self.queue_ciphertext(owner);
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let ctx = self.env.context();
        match result {
            Err(error) => connection.client.tls_failed(error.fault(), &ctx),
            Ok(received) => {
                if received.handshake_finished_now {
                    connection.client.handshake_finished(&ctx);
                }
                if !plaintext.is_empty() {
                    self.plain_input(owner, &mut plaintext);
                }
                if received.peer_closed {
                    self.peer_finished(owner);
                }
            }
        }
        self.plaintext = plaintext;
    }
}
