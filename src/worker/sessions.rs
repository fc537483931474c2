//! The sessions of clients: where what a client wants meets the kind of upstream that it has.

use crate::base::slab::Key;
use crate::connection::Output;
use crate::connection::client::End;
use crate::connection::session::Fragment;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::link::SessionId;
use crate::protocol::websocket::OpCode;

use super::clients::Connection;
use super::core::{Core, Parts};
use super::rows::Way;

/// What stands behind an open client, or one whose upstream has still to agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Session {
    /// One of many on a link.
    Link { link: u16, id: SessionId },
    /// A connection to a WebSocket server: the upstream with this key.
    WebSocket(Key),
}

impl Parts {
    /// How many payload bytes the upstream takes of a client now; `None`: not even an empty
    /// message. What comes before the session is open is no upstream's.
    pub(super) fn allowance(&mut self, connection: &Connection) -> Option<usize> {
        if !connection.client.relays() {
            return Some(usize::MAX);
        }
        match connection.session? {
            Session::Link { link, id } => {
                self.links.entry(link, &mut self.agenda).link.allowance(id, self.env.now.instant)
            }
            Session::WebSocket(key) => self.websocket_allowance(key),
        }
    }

    /// Has a client woken when its upstream takes more.
    pub(super) fn await_room(&mut self, session: Session) {
        match session {
            Session::Link { link, id } => {
                self.links.entry(link, &mut self.agenda).link.wait(id, self.env.now.instant);
            }
            Session::WebSocket(key) => self.websocket(key).client_waits = true,
        }
    }

    /// Hands a piece of a client's message to its upstream.
    pub(super) fn relay(&mut self, connection: &mut Connection, fragment: &Fragment<'_>) {
        connection.idle = false;
        let counters = &self.env.counters;
        counters.add(Metric::BytesFromClients, fragment.bytes.len() as u64);
        counters.add(Metric::MessagesFromClients, u64::from(fragment.last));
        self.env.count_fragment(connection, Way::FromClient, fragment.bytes.len(), fragment.last);
        match connection.session {
            Some(Session::Link { link, id }) => {
                self.links.entry(link, &mut self.agenda).link.data(id, fragment);
            }
            Some(Session::WebSocket(key)) => {
                if !self.websocket_data(key, fragment) {
                    self.close_for_want_of_room(connection);
                }
            }
            None => unreachable!("data has an allowance, so there is a session"),
        }
    }

    /// Hands a client's ping or pong, which is in the output, to its upstream.
    pub(super) fn relay_control(&mut self, connection: &mut Connection, opcode: OpCode) {
        if let Some(Session::WebSocket(key)) = connection.session
            && !self.websocket_control(key, opcode)
        {
            self.close_for_want_of_room(connection);
        }
    }

    /// The room for what waits for upstreams is used up: a message, or a fresh token, would be lost.
    fn close_for_want_of_room(&mut self, connection: &mut Connection) {
        let ctx = self.env.context();
        connection.client.close(Cause::BackendUnavailable, &ctx, &mut self.scratch.output);
    }

    /// Tells the upstream of a client's fresh token. One that reads so little that it cannot be
    /// told would go on with a client whose time it believes to be over. A WebSocket server knows
    /// nothing of tokens that the gateway judges.
    pub(super) fn relay_reauthentication(&mut self, connection: &mut Connection) {
        if self.close_if_revoked(connection) {
            return;
        }
        match connection.session {
            Some(Session::Link { link, id }) => {
                let entry = self.links.entry(link, &mut self.agenda);
                if !entry.link.reauthenticated(id, &self.scratch.output.request) {
                    self.close_for_want_of_room(connection);
                }
            }
            Some(Session::WebSocket(_)) => {}
            None => unreachable!("a client that presents a fresh token has a session"),
        }
    }

    /// What upstreams sent has reached the client's kernel: they may send more.
    pub(super) fn output_delivered(&mut self, connection: &mut Connection) {
        let unsent = connection.unsent();
        match connection.session {
            Some(Session::Link { link, id }) => {
                // What the upstream sent is a part of what is queued, so the credit owed beyond
                // the unsent bytes is for what has reached the kernel.
                let delivered = connection.credit_owed.saturating_sub(unsent as u32);
                connection.credit_owed -= delivered;
                if delivered > 0 {
                    self.links.entry(link, &mut self.agenda).link.delivered(id, delivered);
                }
            }
            Some(Session::WebSocket(key)) => self.read_websocket(key, unsent),
            None => {}
        }
    }

    /// Ends the session of a client that is not open any more.
    pub(super) fn end_session(&mut self, connection: &mut Connection) {
        let Some(session) = connection.session.take() else { return };
        let Some(end) = connection.client.end() else {
            unreachable!("a client that is not open has an end")
        };
        match session {
            Session::Link { link, id } => self.end_link_session(link, id, &end),
            Session::WebSocket(key) => self.leave_websocket(key, &end),
        }
    }

    /// A client's session is open: its dialect may greet it.
    pub(super) fn session_opened(&mut self, connection: &mut Connection) {
        self.env.counters.increment(Metric::SessionsOpened);
        self.env.count_session(connection);
        let output = &mut self.scratch.output;
        output.answers.append(&mut output.connect_ack);
    }
}

/// The close reason of a client's close frame, if that is how it ended.
pub(super) fn reason_of<'o>(output: &'o Output, end: &End) -> &'o str {
    let by_client = end.cause == Cause::ClientClosed;
    let reason = if by_client { output.reason.as_slice() } else { &[] };
    std::str::from_utf8(reason).unwrap_or_default()
}

impl Core {
    /// The client of a session that an upstream names, and what else there is.
    pub(super) fn session_client(&mut self, client: Key) -> (&mut Parts, &mut Connection) {
        let Some(connection) = self.clients.entry_mut(client) else {
            unreachable!("a client ends its session before it leaves")
        };
        (&mut self.parts, connection)
    }
}
