//! A socket that the gateway opens: being connected, there, or given up.

use crate::base::slab::Key;
use crate::ring::{BufferGroup, Op, OpKey, OpKind, Owner, Socket};

use super::ops::Ops;
use super::pipe::Pipe;

/// The connection to an upstream, or the room for one.
///
/// Invariant: `pipe` is there only when no connect is in flight.
#[derive(Debug, Default)]
pub struct DialledSocket {
    pipe: Option<Pipe>,
    connecting: bool,
    /// The cancellation of a connect is in flight. The connect may be quicker, so that there is
    /// a socket when it completes.
    cancelling: bool,
}

impl DialledSocket {
    /// Connects to the ring's endpoint of this number.
    pub fn connect(&mut self, key: Key, endpoint: u16, ops: &mut Ops) {
        assert!(!self.is_busy(), "an earlier connection has operations in flight");
        self.connecting = true;
        let key = OpKey::new(OpKind::Connect, Owner::Upstream(key));
        ops.push((key, Op::Connect { endpoint }));
    }

    /// The socket is there.
    pub fn connected(&mut self, socket: Socket, group: BufferGroup) -> &mut Pipe {
        self.connecting = false;
        self.pipe.insert(Pipe::new(socket, group))
    }

    /// The connect failed.
    pub fn connect_failed(&mut self) {
        self.connecting = false;
    }

    /// Whether a completed cancellation was that of a connect. A socket that comes all the same
    /// is closed, which cancels nothing.
    pub fn cancel_done(&mut self) -> bool {
        std::mem::take(&mut self.cancelling)
    }

    /// Ends the connection, or gives the attempt up.
    pub fn end(&mut self, reset: bool, key: Key, ops: &mut Ops) {
        let owner = Owner::Upstream(key);
        match &mut self.pipe {
            Some(pipe) => {
                pipe.end(reset);
                pipe.reconcile(owner, ops);
            }
            None if self.connecting && !self.cancelling => {
                self.cancelling = true;
                let target = OpKey::new(OpKind::Connect, owner);
                ops.push((OpKey::new(OpKind::Cancel, owner), Op::Cancel { target }));
            }
            None => {}
        }
    }

    /// The socket, while it is there.
    pub fn pipe(&self) -> Option<&Pipe> {
        self.pipe.as_ref()
    }

    /// The socket, while it is there.
    pub fn pipe_mut(&mut self) -> Option<&mut Pipe> {
        self.pipe.as_mut()
    }

    /// Receive buffers are free again.
    pub fn feed(&mut self, key: Key, ops: &mut Ops) {
        if let Some(pipe) = &mut self.pipe {
            pipe.feed();
        }
        self.reconcile(key, ops);
    }

    /// Submits what the socket needs, and lets go of one that is over.
    pub fn reconcile(&mut self, key: Key, ops: &mut Ops) {
        if let Some(pipe) = &mut self.pipe {
            pipe.reconcile(Owner::Upstream(key), ops);
            if pipe.is_over() {
                self.pipe = None;
            }
        }
    }

    /// Whether operations of it are in flight, or a descriptor is open.
    pub fn is_busy(&self) -> bool {
        self.connecting || self.cancelling || self.pipe.is_some()
    }
}
