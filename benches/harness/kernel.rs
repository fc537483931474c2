//! The harness's own small io_uring loop.
//!
//! Sockets live only in the ring's table of direct descriptors, so one process may hold as many
//! connections as it has rings times the descriptor limit. The types here keep the rules that
//! the kernel cannot check: memory of an operation in flight is owned by the ring, and a slot is
//! free again only after the last completion of every operation on it.
#![allow(unsafe_code)] // A bench program on the raw ring: the kernel writes into memory we name.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::squeue::Flags;
use io_uring::types::{BufRingEntry, DestinationSlot, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use socket2::SockAddr;

pub use crate::process::{
    catch_interrupts, descriptor_limit, end_with_parent, interrupted, pin, precise_timers,
};

/// Provided buffers per ring; a power of two.
const BUFFERS: u16 = 1024;
/// Completions that may wait before the kernel has to keep them on a list.
pub(crate) const COMPLETIONS: u32 = 32_768;
/// Submissions that may be queued between two enters.
const SUBMISSIONS: u32 = 4096;
const BUFFER_GROUP: u16 = 0;
/// The value of every boolean socket option that we set.
static ON: libc::c_int = 1;
/// Makes a close a reset, which leaves no socket in TIME_WAIT.
static NO_LINGER: libc::linger = libc::linger { l_onoff: 1, l_linger: 0 };

/// The step of opening a connection that failed, or another operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Socket = 1,
    Option = 2,
    Bind = 3,
    Connect = 4,
    Receive = 5,
    Send = 6,
    Close = 7,
    Cancel = 8,
    Accept = 9,
}

const KINDS: [Kind; 9] = [
    Kind::Socket,
    Kind::Option,
    Kind::Bind,
    Kind::Connect,
    Kind::Receive,
    Kind::Send,
    Kind::Close,
    Kind::Cancel,
    Kind::Accept,
];

fn key(kind: Kind, slot: u32) -> u64 {
    (kind as u64) << 56 | u64::from(slot)
}

/// What happened. Buffers carried in it must go back with [`Ring::give_back`].
#[derive(Debug)]
pub enum Event {
    /// The connection stands; receiving is not yet armed.
    Connected { slot: u32 },
    /// A step of opening failed, named for the report.
    ConnectFailed { slot: u32, step: &'static str, errno: i32 },
    /// A new connection in `slot`, from the listener.
    Accepted { slot: u32 },
    /// The listener gave an error.
    AcceptFailed { errno: i32 },
    /// Bytes arrived.
    Received { slot: u32, buffer: Buffer },
    /// Nothing more will be received; `errno` 0 is the peer's orderly end.
    ReceiveEnded { slot: u32, errno: i32 },
    /// Everything of a send went out; the memory comes back.
    Sent { slot: u32, data: Vec<u8> },
    /// A send failed.
    SendFailed { slot: u32, errno: i32 },
    /// The slot is free again.
    Closed { slot: u32 },
}

/// A filled receive buffer.
#[derive(Debug)]
pub struct Buffer {
    id: u16,
    length: usize,
}

#[derive(Default)]
struct Slot {
    open: bool,
    connecting: bool,
    receiving: bool,
    closing: bool,
    starved: bool,
    /// Memory of the send in flight, and how much of it went out.
    sending: Option<(Vec<u8>, usize)>,
}

impl Slot {
    fn idle(&self) -> bool {
        !self.connecting && !self.receiving && self.sending.is_none()
    }
}

struct Addresses {
    source: Option<SockAddr>,
    destination: SockAddr,
}

/// One ring with its table of sockets and its receive buffers. Belongs to one thread.
pub struct Ring {
    // Declared first: dropped, and with it every operation ended, before the memory below.
    ring: IoUring,
    slots: Vec<Slot>,
    /// Addresses of opens that the kernel has not read yet; emptied after each submit.
    #[allow(clippy::vec_box)]
    // The kernel is told where they lie; a growing Vec would move them.
    addresses: Vec<Box<Addresses>>,
    completions: Vec<cqueue::Entry>,
    next_completion: usize,
    buffers: Buffers,
    starved: Vec<u32>,
    listener: Option<TcpListener>,
    accept_paused: bool,
}

impl Ring {
    /// Makes a ring for up to `slots` sockets with receive buffers of `buffer_bytes`. Must be
    /// called by the thread that will use it.
    ///
    /// # Errors
    /// Says which step failed and what usually mends it.
    pub fn new(slots: u32, buffer_bytes: usize) -> Result<Ring, String> {
        let build = |no_array: bool| {
            let mut builder = IoUring::builder();
            builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
            builder.setup_cqsize(COMPLETIONS).setup_clamp();
            if no_array {
                builder.setup_no_sqarray();
            }
            builder.build(SUBMISSIONS)
        };
        let ring = build(true).or_else(|_| build(false)).map_err(|error| {
            format!(
                "io_uring is not available ({error}): needs Linux 6.1 or later, sysctl \
                 kernel.io_uring_disabled=0, and no seccomp filter that blocks it (the default \
                 one of container engines does)"
            )
        })?;
        ring.submitter().register_files_sparse(slots).map_err(|error| {
            format!("a table of {slots} sockets was refused ({error}): raise `ulimit -n`")
        })?;
        let buffers = Buffers::new(&ring, buffer_bytes)?;
        Ok(Ring {
            ring,
            slots: (0..slots).map(|_| Slot::default()).collect(),
            addresses: Vec::new(),
            completions: Vec::with_capacity(4096),
            next_completion: 0,
            buffers,
            starved: Vec::new(),
            listener: None,
            accept_paused: false,
        })
    }

    /// Opens a connection in a free slot: socket, options, bind and connect in one linked chain.
    /// With `reset`, our close of it is a reset. Answered by exactly one `Connected` or
    /// `ConnectFailed`.
    pub fn connect(
        &mut self,
        slot: u32,
        source: Option<SocketAddr>,
        destination: SocketAddr,
        reset: bool,
    ) {
        let state = &mut self.slots[slot as usize];
        assert!(!state.open && !state.closing, "slot {slot} is in use");
        state.open = true;
        state.connecting = true;
        let addresses = Box::new(Addresses {
            source: source.map(SockAddr::from),
            destination: destination.into(),
        });
        let domain = if destination.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let place = DestinationSlot::try_from_slot_target(slot).expect("slot fits");
        let socket = opcode::Socket::new(domain, libc::SOCK_STREAM, 0).file_index(Some(place));
        let mut chain = vec![(Kind::Socket, socket.build())];
        let option = |level: i32, name: i32, value: *const libc::c_void, length: usize| {
            let (level, name) = (level as u32, name as u32);
            opcode::SetSockOpt::new(Fixed(slot), level, name, value, length as u32).build()
        };
        let on =
            |level: i32, name: i32| option(level, name, (&raw const ON).cast(), size_of_val(&ON));
        // The first message is all that a connection to be reset ever sends: no delay in it.
        chain.push((
            Kind::Option,
            match reset {
                true => {
                    let value = (&raw const NO_LINGER).cast();
                    option(libc::SOL_SOCKET, libc::SO_LINGER, value, size_of_val(&NO_LINGER))
                }
                false => on(libc::IPPROTO_TCP, libc::TCP_NODELAY),
            },
        ));
        if let Some(source) = &addresses.source {
            let late = on(libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT);
            chain.push((Kind::Option, late));
            let bind = opcode::Bind::new(Fixed(slot), source.as_ptr().cast(), source.len());
            chain.push((Kind::Bind, bind.build()));
        }
        let to = &addresses.destination;
        let connect = opcode::Connect::new(Fixed(slot), to.as_ptr().cast(), to.len()).build();
        self.reserve(chain.len() + 1);
        for (kind, entry) in chain {
            let flags = Flags::IO_LINK | Flags::SKIP_SUCCESS;
            self.push(entry.flags(flags).user_data(key(kind, slot)));
        }
        self.push(connect.user_data(key(Kind::Connect, slot)));
        self.addresses.push(addresses);
    }

    /// Accepts on `listener` for as long as the ring lives, into slots that the kernel chooses.
    pub fn accept(&mut self, listener: TcpListener) {
        self.listener = Some(listener);
        self.arm_accept();
    }

    /// Accepts again after an `AcceptFailed`; call it once the cause may be gone.
    pub fn resume_accept(&mut self) {
        if std::mem::take(&mut self.accept_paused) {
            self.arm_accept();
        }
    }

    /// Starts receiving; lasts until `ReceiveEnded`.
    pub fn receive(&mut self, slot: u32) {
        let state = &mut self.slots[slot as usize];
        assert!(state.open && !state.receiving && !state.closing);
        state.receiving = true;
        let entry = opcode::RecvMulti::new(Fixed(slot), BUFFER_GROUP).build();
        self.push(entry.user_data(key(Kind::Receive, slot)));
    }

    /// Whether a send of this slot is under way.
    pub fn is_sending(&self, slot: u32) -> bool {
        self.slots[slot as usize].sending.is_some()
    }

    /// Sends all of `data`; one send per slot at a time.
    pub fn send(&mut self, slot: u32, data: Vec<u8>) {
        let state = &mut self.slots[slot as usize];
        assert!(state.open && !state.closing && state.sending.is_none() && !data.is_empty());
        state.sending = Some((data, 0));
        self.push_send(slot);
    }

    /// Ends every operation of the slot, then closes it. Answered by exactly one `Closed`;
    /// until then the slot gives no other event.
    pub fn close(&mut self, slot: u32) {
        let state = &mut self.slots[slot as usize];
        assert!(state.open, "closing a free slot");
        if state.closing {
            return;
        }
        state.closing = true;
        if state.starved {
            state.starved = false;
            state.receiving = false;
            self.starved.retain(|other| *other != slot);
        }
        let state = &self.slots[slot as usize];
        let (connecting, receiving, sending) =
            (state.connecting, state.receiving, state.sending.is_some());
        if state.idle() {
            return self.push_close(slot);
        }
        let kinds =
            [(connecting, Kind::Connect), (receiving, Kind::Receive), (sending, Kind::Send)];
        for (_, kind) in kinds.into_iter().filter(|(busy, _)| *busy) {
            let entry = opcode::AsyncCancel::new(key(kind, slot)).build();
            self.push(entry.user_data(key(Kind::Cancel, slot)));
        }
    }

    /// The bytes of a receive buffer.
    pub fn bytes(&self, buffer: &Buffer) -> &[u8] {
        self.buffers.bytes(buffer)
    }

    /// Makes a receive buffer usable by the kernel again.
    pub fn give_back(&mut self, buffer: Buffer) {
        self.buffers.give_back(buffer.id);
    }

    /// Submits everything and waits until something happened or `timeout` passed.
    ///
    /// # Errors
    /// Only errors that no retry mends.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        debug_assert_eq!(self.next_completion, self.completions.len());
        for slot in std::mem::take(&mut self.starved) {
            let state = &mut self.slots[slot as usize];
            state.starved = false;
            state.receiving = false;
            self.receive(slot);
        }
        let time = Timespec::from(timeout);
        let arguments = SubmitArgs::new().timespec(&time);
        let outcome = self.ring.submitter().submit_with_args(1, &arguments);
        if let Err(error) = outcome
            && !matches!(
                error.raw_os_error(),
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
            )
        {
            return Err(error);
        }
        if self.ring.submission().is_empty() {
            self.addresses.clear();
        }
        self.completions.clear();
        self.next_completion = 0;
        self.completions.extend(self.ring.completion());
        Ok(())
    }

    /// The next thing that happened, until none is left from the last wait.
    pub fn next_event(&mut self) -> Option<Event> {
        while let Some(entry) = self.completions.get(self.next_completion) {
            let (bits, result, flags) = (entry.user_data(), entry.result(), entry.flags());
            self.next_completion += 1;
            if let Some(event) = self.interpret(bits, result, flags) {
                return Some(event);
            }
        }
        None
    }

    fn interpret(&mut self, bits: u64, result: i32, flags: u32) -> Option<Event> {
        let slot = bits as u32;
        let kind = KINDS[(bits >> 56) as usize - 1];
        match kind {
            Kind::Cancel => return None,
            Kind::Accept => return self.accepted(result, flags),
            Kind::Close => {
                self.slots[slot as usize] = Slot::default();
                return Some(Event::Closed { slot });
            }
            _ => {}
        }
        let event = match kind {
            Kind::Receive => self.received(slot, result, flags),
            Kind::Send => self.sent(slot, result),
            _ => self.connected(slot, kind, result),
        };
        let state = &self.slots[slot as usize];
        if !state.closing {
            return event;
        }
        if let Some(Event::Received { buffer, .. }) = event {
            self.give_back(buffer);
        }
        if self.slots[slot as usize].idle() {
            self.push_close(slot);
        }
        None
    }

    fn connected(&mut self, slot: u32, kind: Kind, result: i32) -> Option<Event> {
        self.slots[slot as usize].connecting = false;
        let step = match kind {
            Kind::Connect if result >= 0 => return Some(Event::Connected { slot }),
            Kind::Socket => "socket",
            Kind::Option => "setsockopt",
            Kind::Bind => "bind",
            _ => "connect",
        };
        Some(Event::ConnectFailed { slot, step, errno: -result })
    }

    fn accepted(&mut self, result: i32, flags: u32) -> Option<Event> {
        if result < 0 {
            self.accept_paused = !cqueue::more(flags);
            return Some(Event::AcceptFailed { errno: -result });
        }
        if !cqueue::more(flags) {
            self.arm_accept();
        }
        let slot = result as u32;
        let state = &mut self.slots[slot as usize];
        assert!(!state.open, "the kernel chose a slot in use");
        state.open = true;
        Some(Event::Accepted { slot })
    }

    fn received(&mut self, slot: u32, result: i32, flags: u32) -> Option<Event> {
        let closing = self.slots[slot as usize].closing;
        let starved = result == -libc::ENOBUFS;
        if !cqueue::more(flags) {
            self.slots[slot as usize].receiving = false;
            // Data without F_MORE ends the multishot; so does an empty pool. Both are re-armed
            // at the next wait, when the buffers of this batch are back.
            if (starved || result > 0) && !closing {
                let state = &mut self.slots[slot as usize];
                state.receiving = true;
                state.starved = true;
                self.starved.push(slot);
            }
        }
        if let Some(id) = cqueue::buffer_select(flags) {
            let buffer = Buffer { id, length: result.max(0) as usize };
            if result > 0 {
                return Some(Event::Received { slot, buffer });
            }
            self.give_back(buffer);
        }
        (!starved).then_some(Event::ReceiveEnded { slot, errno: -result })
    }

    fn sent(&mut self, slot: u32, result: i32) -> Option<Event> {
        let state = &mut self.slots[slot as usize];
        let (data, done) = state.sending.take().expect("a send was in flight");
        if result < 0 {
            return Some(Event::SendFailed { slot, errno: -result });
        }
        let done = done + result as usize;
        if done < data.len() && !state.closing {
            state.sending = Some((data, done));
            self.push_send(slot);
            return None;
        }
        Some(Event::Sent { slot, data })
    }

    fn push_send(&mut self, slot: u32) {
        let (data, done) = self.slots[slot as usize].sending.as_ref().expect("data is set");
        let rest = &data[*done..];
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let entry = opcode::Send::new(Fixed(slot), rest.as_ptr(), rest.len() as u32).flags(flags);
        self.push(entry.build().user_data(key(Kind::Send, slot)));
    }

    fn push_close(&mut self, slot: u32) {
        let entry = opcode::Close::new(Fixed(slot)).build();
        self.push(entry.user_data(key(Kind::Close, slot)));
    }

    fn arm_accept(&mut self) {
        let listener = self.listener.as_ref().expect("a listener is set").as_raw_fd();
        let entry = opcode::AcceptMulti::new(Fd(listener)).allocate_file_index(true).build();
        self.push(entry.user_data(key(Kind::Accept, 0)));
    }

    /// Makes room for `count` entries, so that a chain is never cut in two.
    fn reserve(&mut self, count: usize) {
        let queue = self.ring.submission();
        let free = queue.capacity() - queue.len();
        drop(queue);
        if free < count {
            let _ = self.ring.submit();
        }
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: whatever the entry points at outlives the operation: send memory is in
            // `slots` until its completion, addresses are in `addresses` until the submit that
            // copies them, option values are static, receive memory belongs to `buffers`, and
            // the ring is dropped before all of them.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.ring.submit().expect("a full submission queue can be submitted");
        }
    }
}

/// The provided-buffer ring: `BUFFERS` pieces of `size` bytes.
struct Buffers {
    entries: *mut BufRingEntry,
    memory: *mut u8,
    size: usize,
    tail: u16,
}

impl Buffers {
    fn layouts(size: usize) -> (Layout, Layout) {
        let count = usize::from(BUFFERS);
        let entries = Layout::from_size_align(count * size_of::<BufRingEntry>(), 4096);
        let memory = Layout::from_size_align(count * size, 4096);
        (entries.expect("a constant layout"), memory.expect("sizes are checked by the caller"))
    }

    fn new(ring: &IoUring, size: usize) -> Result<Buffers, String> {
        assert!((64..=1 << 20).contains(&size), "receive buffers are 64 B to 1 MiB");
        let (entries_layout, memory_layout) = Buffers::layouts(size);
        // SAFETY: both layouts have a size above zero.
        let (entries, memory) = unsafe {
            let entries = alloc_zeroed(entries_layout).cast::<BufRingEntry>();
            (entries, alloc_zeroed(memory_layout))
        };
        if entries.is_null() || memory.is_null() {
            handle_alloc_error(memory_layout);
        }
        let mut buffers = Buffers { entries, memory, size, tail: 0 };
        // SAFETY: `entries` is page-aligned, zeroed, holds BUFFERS entries and is freed only
        // when `Buffers` drops, after the ring.
        unsafe {
            let submitter = ring.submitter();
            submitter
                .register_buf_ring_with_flags(entries as u64, BUFFERS, BUFFER_GROUP, 0)
                .map_err(|error| {
                    format!("a buffer ring was refused ({error}): needs Linux 5.19 or later")
                })?;
        }
        (0..BUFFERS).for_each(|id| buffers.give_back(id));
        Ok(buffers)
    }

    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        assert!(buffer.id < BUFFERS && buffer.length <= self.size);
        // SAFETY: the range is inside `memory`; the kernel does not write to it until the
        // buffer is given back, which consumes the `Buffer`.
        unsafe {
            let start = self.memory.add(usize::from(buffer.id) * self.size);
            std::slice::from_raw_parts(start, buffer.length)
        }
    }

    fn give_back(&mut self, id: u16) {
        assert!(id < BUFFERS);
        let index = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: `index < BUFFERS`; entries at and past the tail belong to us until the tail
        // is stored. The tail is the kernel's 16-bit field in entry 0, aligned, written only here.
        unsafe {
            let entry = &mut *self.entries.add(index);
            entry.set_addr(self.memory.add(usize::from(id) * self.size) as u64);
            entry.set_len(self.size as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        let (entries, memory) = Buffers::layouts(self.size);
        // SAFETY: allocated in `new` with the same layouts; `Ring` drops the ring first.
        unsafe {
            dealloc(self.entries.cast(), entries);
            dealloc(self.memory, memory);
        }
    }
}
