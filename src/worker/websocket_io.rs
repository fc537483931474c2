//! The bytes of connections to WebSocket servers: as they are, or in TLS.

use std::sync::Arc;

use crate::base::slab::Key;
use crate::connection::upstream::websocket::handshake::Fault;
use crate::connection::upstream::websocket::tls::ServerTls;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::ring::{BufferGroup, Owner, Ring};
use crate::settings::Settings;

use super::Worker;
use super::core::{Core, Parts};
use super::servers::Server;
use super::sockets::{Flush, PipeEvent};
use super::upstreams::{UpstreamKind, upstream};
use super::websockets::{State, WebSocket};

/// The TLS of a new connection to a server; `None` where the settings ask for none.
pub(super) fn begin_tls(
    settings: &Settings,
    server: &Server,
) -> Result<Option<Box<ServerTls>>, Fault> {
    let backend = server.standing.backend().ok_or(Fault::Removed)?;
    let backend = &settings.backends[usize::from(backend)];
    let Some(tls) = backend.server.as_ref().and_then(|server| server.tls.as_ref()) else {
        return Ok(None);
    };
    let name = tls.name_of(&server.target.configured);
    ServerTls::new(Arc::clone(&tls.config), name).map(|tls| Some(Box::new(tls)))
}

impl WebSocket {
    /// Whether something can be sent now.
    pub(super) fn has_output(&self) -> bool {
        match &self.tls {
            None => self.relay.unsent() > 0,
            Some(tls) => tls.has_output(&self.relay),
        }
    }
}

impl Parts {
    /// Sends what TLS says before an end, if it has something to say: the end follows it, see
    /// [`end_parted`](Self::end_parted). Whether that is so.
    pub(super) fn part_websocket(&mut self, key: Key) -> bool {
        let until = self.env.now.instant + self.env.settings.deadlines.linger;
        let Parts { upstreams, agenda, pools, .. } = self;
        let upstream = upstream(upstreams, key);
        let UpstreamKind::WebSocket(websocket) = &mut upstream.kind else { return false };
        let lives = upstream.socket.pipe_mut().is_some_and(|pipe| !pipe.is_ending());
        let parts = matches!(websocket.state, State::Parting { .. });
        let Some(tls) = websocket.tls.as_mut().filter(|_| lives && !parts) else { return false };
        if !tls.close() {
            return false;
        }
        websocket.relay.drop_output(&mut pools.backlogs);
        websocket.state = State::Parting { until: until.into() };
        agenda.upstream_timers.cancel(key.slot);
        self.mark_websocket(key);
        true
    }

    /// Ends a connection whose last bytes are sent.
    fn end_parted(&mut self, key: Key) {
        let upstream = upstream(&mut self.upstreams, key);
        let UpstreamKind::WebSocket(websocket) = &upstream.kind else { return };
        let parted = matches!(websocket.state, State::Parting { .. }) && !websocket.has_output();
        if parted && upstream.socket.pipe_mut().is_some_and(|pipe| pipe.can_send()) {
            self.end_websocket(key, false);
        }
    }
}

impl Core {
    /// Takes bytes from a server.
    fn websocket_bytes(&mut self, key: Key, input: &mut [u8]) {
        if self.parts.websocket(key).tls.is_none() {
            return self.websocket_input(key, input);
        }
        let mut plaintext = std::mem::take(&mut self.parts.scratch.plaintext);
        plaintext.clear();
        let websocket = self.parts.websocket(key);
        let received = match &mut websocket.tls {
            Some(tls) if !matches!(websocket.state, State::Parting { .. }) => {
                tls.receive(input, &mut plaintext)
            }
            // Nothing of it matters any more but its end.
            _ => Ok(false),
        };
        // What came before a fault is the server's.
        if !plaintext.is_empty() {
            self.websocket_input(key, &mut plaintext);
        }
        self.parts.scratch.plaintext = plaintext;
        match received {
            Ok(false) => {}
            Ok(true) => self.websocket_gone(key),
            Err(fault) => self.websocket_untrusted(key, &fault),
        }
    }

    /// TLS with a server failed.
    fn websocket_untrusted(&mut self, key: Key, fault: &Fault) {
        match self.parts.websocket(key).state {
            State::Connecting(_) => unreachable!("there is no socket yet"),
            State::Handshaking(_) => return self.websocket_failed(key, fault),
            State::Open => {
                self.parts.env.counters.increment(Metric::UpstreamViolations);
                self.websocket_lost(key, Cause::BackendUnavailable);
            }
            State::Closing { .. } | State::Parting { .. } | State::Over => {}
        }
        self.parts.end_websocket(key, false);
    }
}

impl<R: Ring> Worker<R> {
    /// Something happened to the socket of a connection to a server.
    pub(super) fn websocket_event(&mut self, key: Key, event: PipeEvent) {
        match event {
            PipeEvent::Received(buffer) => {
                self.core.websocket_bytes(key, self.ring.received(&buffer));
                self.ring.give_back(buffer);
            }
            PipeEvent::Sent => {
                self.core.parts.websocket_sent(key);
                // What the client has goes out in this turn: nothing else need end the sleep.
                self.core.resume_woken();
                self.core.parts.end_parted(key);
            }
            PipeEvent::Finished => self.core.websocket_gone(key),
            PipeEvent::Broken => {
                self.core.websocket_gone(key);
                if let State::Parting { .. } = self.core.parts.websocket(key).state {
                    self.core.parts.end_websocket(key, false);
                }
            }
            PipeEvent::Starved => {
                let Parts { agenda, env, .. } = &mut self.core.parts;
                env.counters.increment(Metric::ReceiveStarved);
                agenda.starve(Owner::Upstream(key), BufferGroup::Client);
            }
            PipeEvent::Routine => {}
        }
        self.core.settle_websocket(key);
    }

    /// Fills the next send of a connection to a server. False when no slot is free.
    pub(super) fn flush_websocket(&mut self, key: Key) -> bool {
        let Parts { upstreams, agenda, pools, scratch, env, .. } = &mut self.core.parts;
        let upstream = upstream(upstreams, key);
        let UpstreamKind::WebSocket(websocket) = &mut upstream.kind else { return true };
        let mut broken = None;
        if let Some(pipe) = upstream.socket.pipe_mut()
            && websocket.has_output()
        {
            let WebSocket { relay, tls, .. } = websocket;
            let copy = |bytes: &mut [u8]| match tls {
                None => relay.copy_output(&mut pools.backlogs, bytes),
                Some(tls) => tls
                    .copy_output(relay, &mut pools.backlogs, &mut scratch.frame, bytes)
                    .unwrap_or_else(|fault| {
                        broken = Some(fault);
                        0
                    }),
            };
            let owner = Owner::Upstream(key);
            match pipe.flush(owner, &mut self.ring, &mut agenda.ops, copy) {
                Flush::Sending(slot) => {
                    // What it waited for a slot before is not the server's.
                    websocket.progressed = env.now.instant.into();
                    agenda.note_sender(slot, owner);
                }
                Flush::Busy | Flush::Nothing => {}
                Flush::NoSlot => return false,
            }
        }
        websocket.dirty = false;
        if let Some(fault) = broken {
            self.core.websocket_untrusted(key, &fault);
            self.core.settle_websocket(key);
        }
        true
    }
}
