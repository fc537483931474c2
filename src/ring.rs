//! The ring seam: everything a worker may ask of the kernel. `linux/` implements it on
//! io_uring, `sim/` in memory with faults.
//!
//! The ring owns all buffer memory. A receive buffer and a send slot are named by handles that
//! can be neither copied nor made up: the holder of a handle may touch the bytes, and a slot in
//! flight is held by the ring. So the layers above need no `unsafe`. Only implementations of the
//! ring make handles: the constructors are private to the crate, and `tests/architecture/`
//! finds a call outside `linux/` and `sim/`.
//!
//! ```compile_fail,E0451
//! # use portcullis::ring::{BufferGroup, SendSlot};
//! let forged = SendSlot { group: BufferGroup::Client, id: 0 };
//! ```
//!
//! ```compile_fail,E0624
//! # use portcullis::ring::{BufferGroup, ReceivedBuffer};
//! let forged = ReceivedBuffer::of_ring(BufferGroup::Client, 0, 1);
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::base::slab::Key;
use crate::base::time::{Instant, Now};

/// An open socket of the ring's: a descriptor, or an index in its table of direct descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Socket(pub u32);

/// What an operation is, as carried in its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum OpKind {
    /// One connection from a listener.
    Accept = 1,
    /// Bytes from a socket into provided buffers.
    Receive = 2,
    /// A socket that waits without a buffer until it has something to say.
    Poll = 3,
    /// Bytes from a send slot.
    Send = 4,
    /// A new connection to a backend.
    Connect = 5,
    /// The end of a descriptor.
    Close = 6,
    /// A request to end another operation.
    Cancel = 7,
}

impl OpKind {
    fn from_bits(bits: u8) -> Option<OpKind> {
        use OpKind::*;
        [Accept, Receive, Poll, Send, Connect, Close, Cancel]
            .into_iter()
            .find(|kind| *kind as u8 == bits)
    }
}

/// Whose an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// No one's: what it was about is gone already.
    Nobody,
    /// An accept slot.
    Acceptor(u32),
    /// A client's connection.
    Client(Key),
    /// A connection to an upstream.
    Upstream(Key),
}

impl Owner {
    /// Slot and generation in the owner's table.
    pub const fn key(self) -> Key {
        match self {
            Owner::Nobody => Key { slot: 0, generation: 0 },
            Owner::Acceptor(slot) => Key { slot, generation: 0 },
            Owner::Client(key) | Owner::Upstream(key) => key,
        }
    }

    const fn to_bits(self) -> u64 {
        match self {
            Owner::Nobody => 0,
            Owner::Acceptor(_) => 1,
            Owner::Client(_) => 2,
            Owner::Upstream(_) => 3,
        }
    }

    fn from_bits(bits: u8, key: Key) -> Option<Owner> {
        match bits {
            0 => Some(Owner::Nobody),
            1 => Some(Owner::Acceptor(key.slot)),
            2 => Some(Owner::Client(key)),
            3 => Some(Owner::Upstream(key)),
            _ => None,
        }
    }
}

/// The 64 bits that travel with an operation: the owner's table (4), kind (4), generation (24),
/// slot (32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpKey {
    /// What the operation is.
    pub kind: OpKind,
    /// Whose it is.
    pub owner: Owner,
}

/// Width of the generation that fits an [`OpKey`].
pub const GENERATION_BITS: u32 = 24;

impl OpKey {
    /// A key for an operation of `owner`.
    pub const fn new(kind: OpKind, owner: Owner) -> Self {
        OpKey { kind, owner }
    }

    /// Packs the key into a completion's `user_data`.
    pub const fn to_bits(self) -> u64 {
        let key = self.owner.key();
        self.owner.to_bits() << 60
            | (self.kind as u64) << 56
            | ((key.generation as u64) & 0x00ff_ffff) << 32
            | key.slot as u64
    }

    /// Reads a key from `user_data`; `None` for bits that no operation of ours has.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let kind = OpKind::from_bits((bits >> 56) as u8 & 0xf)?;
        let generation = ((bits >> 32) & 0x00ff_ffff) as u32;
        let owner = Owner::from_bits((bits >> 60) as u8, Key { slot: bits as u32, generation })?;
        Some(OpKey { kind, owner })
    }
}

/// Which pool a receive takes its buffers from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BufferGroup {
    /// Many small buffers, for clients.
    Client,
    /// Few large ones, for backend links; so that clients cannot starve them.
    Link,
}

/// Usable bytes of a client receive buffer.
pub const CLIENT_BUFFER_BYTES: usize = 4096;
/// Usable bytes of a link receive buffer.
pub const LINK_BUFFER_BYTES: usize = 64 * 1024;
/// Usable bytes of a client send slot: a whole TLS record and its overhead.
pub const CLIENT_SLOT_BYTES: usize = 16 * 1024 + 320;
/// Usable bytes of a link send slot.
pub const LINK_SLOT_BYTES: usize = 256 * 1024;

/// A filled receive buffer. Give it back with [`Ring::give_back`]; dropping it loses the buffer.
#[derive(Debug, PartialEq, Eq, Hash)]
#[must_use = "a receive buffer must be given back to the ring"]
pub struct ReceivedBuffer {
    group: BufferGroup,
    id: u16,
    length: u32,
}

impl ReceivedBuffer {
    /// For implementations of [`Ring`] alone: buffer `id` of the pool, with `length` bytes that
    /// the kernel wrote.
    pub(crate) fn of_ring(group: BufferGroup, id: u16, length: u32) -> Self {
        ReceivedBuffer { group, id, length }
    }

    /// The pool it belongs to.
    pub fn group(&self) -> BufferGroup {
        self.group
    }

    /// Its number in the pool.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// How many bytes the kernel wrote.
    pub fn length(&self) -> u32 {
        self.length
    }
}

/// A piece of send memory. Release it with [`Ring::release`]; dropping it loses the slot.
#[derive(Debug, PartialEq, Eq, Hash)]
#[must_use = "a send slot must be released to the ring"]
pub struct SendSlot {
    group: BufferGroup,
    id: u16,
}

impl SendSlot {
    /// For implementations of [`Ring`] alone: slot `id` of the pool.
    pub(crate) fn of_ring(group: BufferGroup, id: u16) -> Self {
        SendSlot { group, id }
    }

    /// The pool it belongs to.
    pub fn group(&self) -> BufferGroup {
        self.group
    }

    /// Its number in the pool.
    pub fn id(&self) -> u16 {
        self.id
    }
}

/// A request to the kernel.
#[derive(Debug)]
pub enum Op {
    /// Accept one connection on the worker's listener number `listener`.
    Accept {
        /// Index into the settings' listeners.
        listener: u16,
    },
    /// Receive until the peer ends, buffers run out, or the operation is cancelled.
    ReceiveMultishot {
        /// From where.
        socket: Socket,
        /// Into which pool.
        group: BufferGroup,
    },
    /// Receive once.
    ReceiveOnce {
        /// From where.
        socket: Socket,
        /// Into which pool.
        group: BufferGroup,
    },
    /// Complete once when the socket is readable or has hung up.
    PollReadable {
        /// Which socket.
        socket: Socket,
    },
    /// Complete once, as readable, when the peer has ended its side or the connection broke;
    /// bytes that wait are of no matter.
    PollHangup {
        /// Which socket.
        socket: Socket,
    },
    /// Send `slot[start..end]`. The slot comes back with the completion.
    Send {
        /// To where.
        socket: Socket,
        /// The memory; in flight it belongs to the ring.
        slot: SendSlot,
        /// First byte to send.
        start: u32,
        /// One past the last byte to send.
        end: u32,
    },
    /// Open a socket and connect it to the endpoint number `endpoint`.
    Connect {
        /// Index into the ring's endpoint table, see [`Ring::set_endpoint`].
        endpoint: u16,
    },
    /// Close the socket. With `reset`, undelivered bytes are thrown away and the peer sees RST.
    Close {
        /// Which socket.
        socket: Socket,
        /// RST instead of FIN.
        reset: bool,
    },
    /// Ask for the end of the operation with this key; it completes by itself, with
    /// [`Failure::Cancelled`] unless it was quicker.
    Cancel {
        /// The operation to end.
        target: OpKey,
    },
}

/// Why an operation failed. The rest of errno is carried for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The operation was cancelled.
    Cancelled,
    /// No receive buffer was free.
    NoBuffers,
    /// Out of descriptors or kernel memory (EMFILE, ENFILE, ENOBUFS on accept, ENOMEM).
    Exhausted,
    /// The peer reset or the connection is otherwise dead.
    Disconnected,
    /// Nothing to cancel.
    NotFound,
    /// Another error number.
    Errno(i32),
}

/// How an operation, or one shot of a multishot operation, ended.
#[derive(Debug)]
pub enum Outcome {
    /// A connection arrived.
    Accepted {
        /// Its socket.
        socket: Socket,
        /// Where from; `None` for a unix socket.
        peer: Option<SocketAddr>,
    },
    /// Bytes arrived.
    Received(ReceivedBuffer),
    /// The peer will send no more (FIN).
    EndOfStream,
    /// The polled socket is readable or has hung up.
    Readable,
    /// `sent` bytes left the slot; fewer than asked is possible.
    Sent {
        /// The slot, back from the kernel.
        slot: SendSlot,
        /// Number of bytes taken, or why none.
        result: Result<u32, Failure>,
    },
    /// Connected to the backend.
    Connected(Socket),
    /// The descriptor is gone.
    Closed,
    /// The cancellation was looked at; its target completes separately.
    CancelDone,
    /// The operation failed.
    Failed(Failure),
}

/// What the kernel says of an operation.
#[derive(Debug)]
pub struct Completion {
    /// Which operation.
    pub key: OpKey,
    /// How it went.
    pub outcome: Outcome,
    /// The operation goes on and will complete again (IORING_CQE_F_MORE).
    pub more: bool,
}

/// How many receive buffers a pool has, and how many of them are with the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BufferCount {
    /// All of the pool's buffers.
    pub total: u32,
    /// Those free for the kernel to fill.
    pub free: u32,
}

/// Where a backend listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A unix socket's path.
    Unix(std::path::PathBuf),
}

impl fmt::Display for EndpointAddress {
    /// As settings and metrics have it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndpointAddress::Tcp(address) => address.fmt(f),
            EndpointAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One worker's way to the kernel.
pub trait Ring {
    /// Both clocks, as read when [`enter`](Self::enter) last returned.
    fn now(&self) -> Now;

    /// The monotonic clock as it is now, without a system call. For measurements alone: a turn's
    /// decisions go by [`now`](Self::now).
    fn clock(&self) -> Instant;

    /// Replaces entry `endpoint` of the table that [`Op::Connect`] refers to.
    fn set_endpoint(&mut self, endpoint: u16, address: EndpointAddress);

    /// Queues an operation; it starts at the next `enter` (or earlier when the queue is full).
    fn submit(&mut self, key: OpKey, op: Op);

    /// Starts everything queued, then waits for a completion, a wake-up from the mailbox, or
    /// `until`, whichever is first.
    fn enter(&mut self, until: Instant);

    /// The next completion, in the order in which the kernel gave them.
    fn completion(&mut self) -> Option<Completion>;

    /// The bytes of a filled buffer.
    fn received(&mut self, buffer: &ReceivedBuffer) -> &mut [u8];

    /// Returns a buffer to its pool.
    fn give_back(&mut self, buffer: ReceivedBuffer);

    /// How full a pool of receive buffers is.
    fn buffers(&self, group: BufferGroup) -> BufferCount;

    /// Takes a send slot from its pool, unless all are in use.
    fn send_slot(&mut self, group: BufferGroup) -> Option<SendSlot>;

    /// The memory of a send slot.
    fn slot_bytes(&mut self, slot: &SendSlot) -> &mut [u8];

    /// Returns a send slot to its pool.
    fn release(&mut self, slot: SendSlot);

    /// Sends FIN after everything sent so far; receiving goes on. Never blocks, never completes.
    fn shutdown_write(&mut self, socket: Socket);

    /// Stops taking connections on the listener number `listener`: closes it.
    fn close_listener(&mut self, listener: u16);
}

/// Bounds how long [`Ring::enter`] may wait when nothing is due, so that a lost wake-up costs
/// at most this.
pub const ENTER_WAIT_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn op_keys_survive_packing() {
        let most = Key { slot: u32::MAX, generation: 0x00ff_ffff };
        for (kind, owner) in [
            (OpKind::Accept, Owner::Acceptor(0)),
            (OpKind::Receive, Owner::Client(most)),
            (OpKind::Cancel, Owner::Upstream(Key { slot: 0x8000_0001, generation: 0x0080_0001 })),
            (OpKind::Close, Owner::Nobody),
        ] {
            let key = OpKey::new(kind, owner);
            assert_eq!(OpKey::from_bits(key.to_bits()), Some(key));
        }
        assert_eq!(OpKey::from_bits(0), None);
        assert_eq!(OpKey::from_bits(u64::MAX), None);
    }
}
