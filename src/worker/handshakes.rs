//! TLS input: handshakes within the budgets of a turn and of a second, and records after them.

use crate::base::slab::Key;
use crate::connection::transport::Held;

use super::clients::Connection;
use super::core::{Core, Parts};

impl Core {
    /// Goes on with TLS handshakes that were put off, within this turn's budget. Whether there
    /// were any.
    pub(super) fn handle_deferred(&mut self) -> bool {
        let any = !self.parts.handshakes.deferred.is_empty();
        while self.parts.has_handshake_left()
            && let Some(key) = self.parts.handshakes.deferred.pop_front()
        {
            // It may have left meanwhile.
            self.with_client(key, |parts, key, connection| {
                connection.parked = false;
                if !connection.pipe.is_ending() {
                    parts.handshakes.done += 1;
                    parts.tls_input(key, connection, &mut []);
                }
            });
        }
        any
    }
}

impl Parts {
    fn has_handshake_left(&self) -> bool {
        self.handshakes.done < self.env.settings.limits.handshakes_per_tick
    }

    /// Takes input of a TLS handshake. It is copied, so that no receive buffer waits for the
    /// handshake's turn; and as long as the client's hello is not whole, that is all it costs.
    pub(super) fn handshake_input(&mut self, key: Key, connection: &mut Connection, bytes: &[u8]) {
        let held = connection.transport.hold(bytes);
        if connection.parked || held == Held::Incomplete {
            return;
        }
        // The second's budget, before anything waits for this one.
        if held == Held::Hello && !self.may_handshake(connection) {
            return;
        }
        if self.has_handshake_left() {
            self.handshakes.done += 1;
            return self.tls_input(key, connection, &mut []);
        }
        connection.parked = true;
        self.handshakes.deferred.push_back(key);
    }

    pub(super) fn tls_input(&mut self, key: Key, connection: &mut Connection, bytes: &mut [u8]) {
        let mut plaintext = std::mem::take(&mut self.scratch.plaintext);
        let ciphertext = &mut self.scratch.ciphertext;
        plaintext.clear();
        ciphertext.clear();
        let result = connection.transport.receive(bytes, &mut plaintext, ciphertext);
        self.queue_ciphertext(connection);
        let ctx = self.env.context();
        match result {
            Err(error) => connection.client.tls_failed(error.fault(), &ctx),
            Ok(received) => {
                if received.handshake_finished_now {
                    connection.client.handshake_finished(&ctx);
                }
                if !plaintext.is_empty() {
                    self.plain_input(key, connection, &mut plaintext);
                }
                if received.peer_closed {
                    connection.client.peer_finished(&self.env.context());
                }
            }
        }
        self.scratch.plaintext = plaintext;
    }
}
