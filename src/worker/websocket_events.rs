//! What happens to the connections to WebSocket servers: they come about or not, servers agree or
//! not, frames come, timers fire.

use std::sync::Arc;

use crate::base::slab::Key;
use crate::connection::session::Fragment;
use crate::connection::upstream::websocket::handshake::{Accepted, Answered, Fault, Refused};
use crate::connection::upstream::websocket::relay::FromServer;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::websocket::{FrameError, is_sendable_close_code};
use crate::ring::{BufferGroup, Owner, Socket};

use super::core::{Core, Parts};
use super::mailbox::Report;
use super::servers::Server;
use super::sessions::Session;
use super::upstreams::{UpstreamKind, upstream};
use super::websocket_io::begin_tls;
use super::websockets::{Dial, State};

/// The close code for a server whose message is too large.
const TOO_LARGE: u16 = 1009;
/// The close code for a server that broke the protocol.
const PROTOCOL_ERROR: u16 = 1002;

impl Core {
    /// The socket to a server is there: the request goes out.
    pub(super) fn websocket_connected(&mut self, key: Key, socket: Socket) {
        let Parts { upstreams, agenda, pools, servers, env, .. } = &mut self.parts;
        let upstream = upstream(upstreams, key);
        let pipe = upstream.socket.connected(socket, BufferGroup::Client);
        let UpstreamKind::WebSocket(websocket) = &mut upstream.kind else { return };
        match std::mem::replace(&mut websocket.state, State::Over) {
            State::Connecting(dial) => {
                let queued = websocket.relay.request(dial.handshake.request(), &mut pools.backlogs);
                let begun = begin_tls(&env.settings, servers.server(websocket.server));
                websocket.state = State::Handshaking(dial);
                pipe.reconcile(Owner::Upstream(key), &mut agenda.ops);
                if queued.is_err() {
                    return self.websocket_failed(key, &Fault::NoRoom);
                }
                match begun {
                    Ok(tls) => self.parts.websocket(key).tls = tls,
                    Err(fault) => return self.websocket_failed(key, &fault),
                }
                self.parts.mark_websocket(key);
            }
            // Its client left while it was being connected.
            _ => {
                pipe.end(true);
                pipe.reconcile(Owner::Upstream(key), &mut agenda.ops);
            }
        }
    }

    /// No server agreed in this attempt: another is tried while there is time, or the client is
    /// refused.
    pub(super) fn websocket_failed(&mut self, key: Key, fault: &Fault) {
        let now = self.parts.env.now.instant;
        let jitter = self.parts.random.number() as u32;
        let websocket = self.parts.websocket(key);
        let (server, client) = (websocket.server, websocket.client.take());
        let dial = match std::mem::replace(&mut websocket.state, State::Over) {
            State::Connecting(dial) | State::Handshaking(dial) => dial,
            other => {
                websocket.state = other;
                return self.parts.forget_websocket(key);
            }
        };
        let Dial { handshake, affinity, permit, at_latest, .. } = *dial;
        // A reload may have removed the backend, or moved it.
        let Server { target, standing, .. } = self.parts.servers.server(server);
        let (target, backend) = (Arc::clone(target), standing.backend());
        let counters = &self.parts.env.counters;
        counters.add(Metric::UpstreamFailures, u64::from(fault.is_servers()));
        counters.add(Metric::UpstreamPortsExhausted, u64::from(*fault == Fault::NoPorts));
        if fault.is_servers() {
            if self.parts.servers.failed(server, permit, now, jitter) {
                let report = Report::ServerRests { target, reason: fault.to_string() };
                self.parts.control.mailbox.report(report);
            }
        } else {
            self.parts.servers.abandoned(server, permit, now);
        }
        self.parts.end_websocket(key, false);
        self.parts.forget_websocket(key);
        let Some(client) = client else { return };
        // What the server has seen of a request, another may see again: nothing of the client's
        // messages is in it.
        let again = match backend {
            Some(backend) if fault.is_worth_another() && at_latest > now => {
                let wanted = (backend, affinity);
                let (again, failed) = (handshake.again(), Some(server));
                self.parts.connect(again, wanted, failed, Some(client), at_latest).ok()
            }
            _ => None,
        };
        self.with_client(client, |parts, key, connection| match again {
            Some(again) => connection.session = Some(Session::WebSocket(again)),
            None => parts.refused_by_server(key, connection, &Refused::unavailable()),
        });
    }

    /// Something happened to the socket.
    pub(super) fn settle_websocket(&mut self, key: Key) {
        let Parts { upstreams, agenda, .. } = &mut self.parts;
        let Some(upstream) = upstreams.entry_mut(key) else { return };
        upstream.socket.reconcile(key, &mut agenda.ops);
        self.parts.mark_websocket(key);
        self.parts.forget_websocket(key);
    }

    /// The timer of a connection to a server fired.
    pub(super) fn websocket_deadline(&mut self, key: Key) {
        let now = self.parts.env.now.instant;
        let due = {
            let Parts { upstreams, env, .. } = &mut self.parts;
            let UpstreamKind::WebSocket(websocket) = &upstream(upstreams, key).kind else { return };
            websocket.due(&env.settings.deadlines)
        };
        if due > now {
            return self.parts.mark_websocket(key);
        }
        match self.parts.websocket(key).state {
            State::Connecting(_) | State::Handshaking(_) => {
                let fault = self.parts.timed_out(key);
                self.websocket_failed(key, &fault);
            }
            State::Open => self.drop_stalled_websocket(key),
            State::Closing { .. } | State::Parting { .. } => self.parts.end_websocket(key, false),
            State::Over => {}
        }
        if self.parts.upstreams.entry(key).is_some() {
            self.parts.forget_websocket(key);
        }
    }

    /// A server reads nothing.
    pub(super) fn drop_stalled_websocket(&mut self, key: Key) {
        self.parts.env.counters.increment(Metric::UpstreamStalls);
        self.websocket_lost(key, Cause::BackendUnavailable);
        self.parts.end_websocket(key, true);
    }

    /// The session of an open client cannot go on.
    pub(super) fn websocket_lost(&mut self, key: Key, cause: Cause) {
        let Some(client) = self.parts.websocket(key).client.take() else { return };
        self.with_client(client, |parts, _, connection| {
            connection.session = None;
            connection.client.close(cause, &parts.env.context(), &mut parts.scratch.output);
            parts.send_answers(connection);
        });
    }

    /// A server's connection ended, in order or not.
    pub(super) fn websocket_gone(&mut self, key: Key) {
        match self.parts.websocket(key).state {
            State::Connecting(_) => unreachable!("there is no socket yet"),
            State::Handshaking(_) => {
                let tls = self.parts.websocket(key).tls.as_ref();
                let agreed = tls.is_none_or(|tls| tls.is_open());
                let fault = if agreed { Fault::ClosedEarly } else { Fault::TlsClosed };
                return self.websocket_failed(key, &fault);
            }
            State::Open => self.websocket_lost(key, Cause::BackendUnavailable),
            // The server may still read the last of TLS.
            State::Parting { .. } => return,
            State::Closing { .. } | State::Over => {}
        }
        self.parts.end_websocket(key, false);
    }

    /// Takes bytes from a server, decrypted.
    pub(super) fn websocket_input(&mut self, key: Key, input: &mut [u8]) {
        match &mut self.parts.websocket(key).state {
            State::Connecting(_) => unreachable!("there is no socket yet"),
            State::Handshaking(dial) => match dial.handshake.receive(input) {
                (_, Answered::NeedMore) => {}
                (used, Answered::Accepted(accepted)) => {
                    self.websocket_accepted(key, &accepted);
                    if used < input.len() {
                        self.websocket_input(key, &mut input[used..]);
                    }
                }
                (_, Answered::Refused(refused)) => self.websocket_refused(key, &refused),
                (_, Answered::Broken(fault)) => self.websocket_failed(key, &fault),
            },
            State::Open => self.relay_to_client(key, input),
            State::Closing { .. } | State::Parting { .. } | State::Over => {}
        }
    }

    /// The handshake is over, and the server is well, whatever it said.
    fn take_dial(&mut self, key: Key, state: State) {
        let websocket = self.parts.websocket(key);
        let server = websocket.server;
        if let State::Handshaking(dial) = std::mem::replace(&mut websocket.state, state) {
            let now = self.parts.env.now.instant;
            self.parts.servers.answered(server, dial.permit, now);
        }
        self.parts.agenda.upstream_timers.cancel(key.slot);
    }

    /// The server takes the client.
    fn websocket_accepted(&mut self, key: Key, accepted: &Accepted) {
        self.parts.report_advice(key, Some(101), accepted.advice());
        self.take_dial(key, State::Open);
        let websocket = self.parts.websocket(key);
        let (server, client) = (websocket.server, websocket.client);
        self.parts.servers.accepted(server);
        self.parts.env.counters.increment(Metric::UpstreamConnects);
        let Some(client) = client else { return };
        let backend = self.parts.server_of_websocket(key).standing.backend();
        self.with_client(client, |parts, client, connection| {
            parts.accepted_by_server(client, connection, backend, accepted);
        });
    }

    /// The server does not take the client.
    fn websocket_refused(&mut self, key: Key, refused: &Refused) {
        self.parts.env.counters.increment(Metric::UpstreamRefusals);
        self.parts.report_advice(key, refused.status, refused.advice);
        self.take_dial(key, State::Over);
        let client = self.parts.websocket(key).client.take();
        self.parts.end_websocket(key, false);
        if let Some(client) = client {
            self.with_client(client, |parts, client, connection| {
                parts.refused_by_server(client, connection, refused);
            });
        }
    }

    /// Hands a server's frames to its client.
    fn relay_to_client(&mut self, key: Key, input: &mut [u8]) {
        let message_max = self.parts.server_message_max(key);
        let mut at = 0;
        while at < input.len() {
            let websocket = self.parts.websocket(key);
            let (State::Open, Some(client)) = (&websocket.state, websocket.client) else { break };
            match websocket.relay.receive(&mut input[at..], message_max) {
                Ok((_, FromServer::NeedMore)) => break,
                Ok((used, FromServer::Data { range, kind, first, last })) => {
                    let bytes = &input[at + range.start..at + range.end];
                    at += used;
                    self.make_room(client, bytes.len());
                    let (parts, connection) = self.session_client(client);
                    let fragment = Fragment { kind, first, last, bytes };
                    parts.deliver(client, connection, &fragment, 0);
                    parts.look_for_acceptance(connection, &fragment);
                }
                Ok((used, FromServer::Control(opcode, payload))) => {
                    at += used;
                    let (parts, connection) = self.session_client(client);
                    let output = &mut parts.scratch.output;
                    connection.client.pass_control(opcode, payload.as_slice(), output);
                    parts.send_answers(connection);
                    parts.mark_for_reconcile(client, connection);
                }
                Ok((_, FromServer::Close(code, reason))) => {
                    self.closed_by_server(key, code, reason.as_text());
                    break;
                }
                Err(error) => {
                    let code =
                        if error == FrameError::TooLarge { TOO_LARGE } else { PROTOCOL_ERROR };
                    self.parts.env.counters.increment(Metric::UpstreamViolations);
                    self.websocket_lost(key, Cause::BackendUnavailable);
                    self.parts.close_websocket(key, Some(code), "");
                    break;
                }
            }
        }
        self.reconcile_marked();
        // The client may have left, and the session with it.
        if let Some(client) = self.parts.websocket(key).client
            && let Some(connection) = self.clients.entry(client)
        {
            self.parts.read_websocket(key, connection.unsent());
        }
    }

    /// The server closes: so does the client's connection, and the server hears its own close back
    /// (RFC 6455 §5.5.1), then ends the connection itself.
    fn closed_by_server(&mut self, key: Key, code: Option<u16>, reason: &str) {
        let client = self.parts.websocket(key).client.take();
        let echoed = code.filter(|code| is_sendable_close_code(*code));
        self.parts.close_websocket(key, echoed, "");
        let Some(client) = client else { return };
        self.with_client(client, |parts, _, connection| {
            connection.session = None;
            let ctx = parts.env.context();
            connection.client.close_by_backend(code, reason, &ctx, &mut parts.scratch.output);
            parts.send_answers(connection);
        });
    }
}
