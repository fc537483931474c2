//! The upstreams of a worker: the table of the sockets that it opens, and one place for each thing
//! that happens to them, whatever kind of upstream is behind.

use crate::base::slab::{Key, KeyedSlab};
use crate::connection::upstream::websocket::handshake::Fault;
use crate::ring::{BufferGroup, Failure as RingFailure, OpKey, OpKind, Outcome, Ring};

use super::Worker;
use super::core::{Core, Parts};
use super::sockets::DialledSocket;
use super::websockets::WebSocket;

/// Linux's number for "no port is free", on all architectures.
const EADDRNOTAVAIL: i32 = 99;

/// What stands behind one entry of the table.
pub(super) struct Upstream {
    pub(super) socket: DialledSocket,
    pub(super) kind: UpstreamKind,
}

/// The kinds of upstream.
pub(super) enum UpstreamKind {
    /// A link, by its number in the [`LinkTable`](super::links::LinkTable): it carries many
    /// clients' sessions.
    Link(u16),
    /// The connection to a WebSocket server, for one client.
    WebSocket(WebSocket),
}

impl Upstream {
    /// The room for a link's connections.
    pub(super) fn link(number: u16) -> Self {
        let socket = DialledSocket::default();
        Upstream { socket, kind: UpstreamKind::Link(number) }
    }

    /// A connection to a WebSocket server.
    pub(super) fn websocket(websocket: WebSocket) -> Self {
        let socket = DialledSocket::default();
        Upstream { socket, kind: UpstreamKind::WebSocket(websocket) }
    }

    /// The number of its link; `None` for other kinds.
    fn as_link(&self) -> Option<u16> {
        match self.kind {
            UpstreamKind::Link(link) => Some(link),
            UpstreamKind::WebSocket(_) => None,
        }
    }
}

/// The upstream with this key, whose holder keeps it in line with the table.
pub(super) fn upstream(upstreams: &mut KeyedSlab<Upstream>, key: Key) -> &mut Upstream {
    let Some(upstream) = upstreams.entry_mut(key) else {
        unreachable!("{key:?} names no upstream")
    };
    upstream
}

impl Core {
    /// An upstream's timer fired.
    pub(super) fn upstream_deadline(&mut self, slot: u32) {
        let Some((key, upstream)) = self.parts.upstreams.slot_mut(slot) else { return };
        match upstream.as_link() {
            Some(link) => self.link_deadline(link),
            None => self.websocket_deadline(key),
        }
    }
}

impl<R: Ring> Worker<R> {
    /// A completion of an upstream's socket, or of its connect.
    pub(super) fn complete_upstream(&mut self, op: OpKey, outcome: Outcome, more: bool) {
        let key = op.owner.key();
        let Parts { upstreams, links, agenda, .. } = &mut self.core.parts;
        let Some(upstream) = upstreams.entry_mut(key) else {
            return self.complete_stale(outcome);
        };
        let link = upstream.as_link();
        match outcome {
            Outcome::Connected(socket) => match link {
                Some(link) => self.core.link_connected(key, link, socket),
                None => self.core.websocket_connected(key, socket),
            },
            Outcome::Failed(failure) if op.kind == OpKind::Connect => {
                upstream.socket.connect_failed();
                match link {
                    Some(link) => self.core.link_unconnected(link, &describe(failure)),
                    None => self.core.websocket_failed(key, &fault(failure)),
                }
            }
            Outcome::CancelDone if upstream.socket.cancel_done() => match link {
                Some(link) => links.mark(link, agenda),
                None => self.core.settle_websocket(key),
            },
            outcome => {
                let Some(pipe) = upstream.socket.pipe_mut() else {
                    unreachable!("{outcome:?} of an upstream without a socket")
                };
                let event = pipe.complete(op.owner, outcome, more, &mut self.ring, &mut agenda.ops);
                match link {
                    Some(link) => self.link_event(key, link, event),
                    None => self.websocket_event(key, event),
                }
            }
        }
    }

    /// Fills an upstream's next send, if there is something to send. Says which pool had no slot
    /// free for that.
    pub(super) fn flush_upstream(&mut self, key: Key) -> Option<BufferGroup> {
        // A link that was connected again since keeps its slot.
        let (key, upstream) = self.core.parts.upstreams.slot_mut(key.slot)?;
        match upstream.as_link() {
            Some(link) => (!self.flush_link(link)).then_some(BufferGroup::Link),
            None => (!self.flush_websocket(key)).then_some(BufferGroup::Client),
        }
    }
}

/// What a failed connect says of a server, or of this machine.
fn fault(failure: RingFailure) -> Fault {
    match failure {
        RingFailure::Exhausted => Fault::NoDescriptors,
        RingFailure::Errno(EADDRNOTAVAIL) => Fault::NoPorts,
        failure => Fault::Connect(describe(failure)),
    }
}

fn describe(failure: RingFailure) -> String {
    match failure {
        RingFailure::Errno(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
        RingFailure::Disconnected => "refused or reset; is the backend listening there?".into(),
        RingFailure::Cancelled => "given up".into(),
        RingFailure::Exhausted => "out of descriptors or memory".into(),
        RingFailure::NoBuffers | RingFailure::NotFound => format!("{failure:?}"),
    }
}
