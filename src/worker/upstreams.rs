//! The upstreams of a worker: the table of the sockets that it opens, and one place for each thing
//! that happens to them, whatever kind of upstream is behind.

use crate::base::slab::{Key, KeyedSlab};
use crate::ring::{Failure as RingFailure, OpKey, OpKind, Outcome, Ring};

use super::Worker;
use super::core::{Core, Parts};
use super::sockets::{DialledSocket, PipeEvent};

/// What stands behind one entry of the table.
pub(super) struct Upstream {
    pub(super) socket: DialledSocket,
    pub(super) kind: UpstreamKind,
}

/// The kinds of upstream.
#[derive(Clone, Copy)]
pub(super) enum UpstreamKind {
    /// A link, by its number in the [`LinkTable`](super::links::LinkTable): it carries many
    /// clients' sessions.
    Link(u16),
}

impl Upstream {
    /// The room for a link's connections.
    pub(super) fn link(number: u16) -> Self {
        let socket = DialledSocket::default();
        Upstream { socket, kind: UpstreamKind::Link(number) }
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
        let Some((_, upstream)) = self.parts.upstreams.slot_mut(slot) else { return };
        match upstream.kind {
            UpstreamKind::Link(link) => self.link_deadline(link),
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
        let kind = upstream.kind;
        match outcome {
            Outcome::Connected(socket) => match kind {
                UpstreamKind::Link(link) => self.core.link_connected(key, link, socket),
            },
            Outcome::Failed(failure) if op.kind == OpKind::Connect => {
                upstream.socket.connect_failed();
                match kind {
                    UpstreamKind::Link(link) => {
                        self.core.link_unconnected(link, &describe(failure));
                    }
                }
            }
            Outcome::CancelDone if upstream.socket.cancel_done() => match kind {
                UpstreamKind::Link(link) => links.mark(link, agenda),
            },
            outcome => {
                let Some(pipe) = upstream.socket.pipe_mut() else {
                    unreachable!("{outcome:?} of an upstream without a socket")
                };
                let event = pipe.complete(op.owner, outcome, more, &mut self.ring, &mut agenda.ops);
                self.upstream_event(key, kind, event);
            }
        }
    }

    fn upstream_event(&mut self, key: Key, kind: UpstreamKind, event: PipeEvent) {
        match kind {
            UpstreamKind::Link(link) => self.link_event(key, link, event),
        }
    }

    /// Fills an upstream's next send, if there is something to send. False when no slot is free.
    pub(super) fn flush_upstream(&mut self, key: Key) -> bool {
        // A link that was connected again since keeps its slot.
        let Some((_, upstream)) = self.core.parts.upstreams.slot_mut(key.slot) else { return true };
        match upstream.kind {
            UpstreamKind::Link(link) => self.flush_link(link),
        }
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
