//! The ring seam on io_uring: one worker's way to the kernel.
#![allow(unsafe_code)] // submits operations that name memory, and decides when it may go

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use io_uring::types::{DestinationSlot, Fd, Fixed};
use io_uring::{opcode, squeue};

use super::buffers::{self, ReceivePool};
use super::clock;
use super::listener::ListenerSocket;
use super::memory::Pinned;
use super::operations::{Accepts, Connects, open_failure, transfer_failure};
pub use super::options::{DescriptorMode, RingError, RingOptions};
use super::probe::{ProbeError, Step};
use super::process;
use super::slots::SlotPool;
use super::sockets::{self, SocketTable, Target};
use super::uring::{Cqe, OWN, Permissions, Uring};
pub use super::waker::Waker;
use crate::base::time::{Instant, Now};
use crate::ring::{
    BufferCount, BufferGroup, CLIENT_BUFFER_BYTES, CLIENT_SLOT_BYTES, Completion, ENTER_WAIT_MAX,
    EndpointAddress, Failure, LINK_BUFFER_BYTES, LINK_SLOT_BYTES, Op, OpKey, OpKind, Outcome,
    ReceivedBuffer, Ring, SendSlot, Socket,
};

/// The ring's read of its wake-up event.
const WAKE: u64 = OWN | 1;
/// The ring's own operations whose cqe has no reader.
const UNHEEDED: u64 = OWN | 2;
/// The shutdown of a direct descriptor, whose number is in the low half.
const SHUTDOWN: u64 = OWN | 1 << 32;
/// A send: its low bits say which slot it has in flight, and the slot knows the key.
const SEND: u64 = (OpKind::Send as u64) << 56;
/// Set in a send's bits when its slot is of the link pool.
const SEND_LINK_BIT: u64 = 1 << 16;
/// How long a ring that is dropped waits for its operations to end.
const DRAIN_PATIENCE: Duration = Duration::from_millis(100);

/// One worker's io_uring. It is made, used and dropped on the worker's own thread; the type is
/// not `Send`, and the kernel refuses other threads as well.
///
/// Dropping it closes every socket that it accepted or connected.
pub struct LinuxRing {
    /// Goes before `memory`, which the kernel may use as long as there is a ring.
    uring: ManuallyDrop<Uring>,
    memory: ManuallyDrop<Memory>,
    listeners: Vec<Option<ListenerSocket>>,
    endpoints: Vec<Option<EndpointAddress>>,
    sockets: SocketTable,
    /// Direct descriptors that a kernel thread is about to shut down, with the close that waits
    /// for it: the thread looks the number up when its turn comes, and by then a number that
    /// was closed would be another client's.
    shutting: HashMap<u32, Option<HeldClose>>,
    /// Failures found before an operation reached the kernel.
    early: VecDeque<Completion>,
    waker: Waker,
    waker_armed: bool,
    descriptors: DescriptorMode,
    now: Now,
}

/// A close, and whether it is one with reset.
type HeldClose = (OpKey, bool);

/// Everything whose address the kernel is given.
struct Memory {
    client_buffers: ReceivePool,
    link_buffers: ReceivePool,
    client_slots: SlotPool,
    link_slots: SlotPool,
    accepts: Accepts,
    connects: Connects,
    wake_count: Pinned<u64>,
}

impl LinuxRing {
    /// Makes the calling thread's ring, and the handle by which other threads wake it.
    ///
    /// # Errors
    /// When an option is out of range, when the kernel refuses io_uring or a feature (the
    /// error says how to remedy it), or when memory or descriptors run out.
    pub fn new(options: RingOptions) -> Result<(LinuxRing, Waker), RingError> {
        options.check()?;
        let memory = Memory::new(&options)?;
        let waker = Waker::new()?;
        let uring = Uring::new(options.entries)
            .map_err(|error| ProbeError::from_system(Step::Setup, &error))?;
        let mut ring = LinuxRing {
            uring: ManuallyDrop::new(uring),
            memory: ManuallyDrop::new(memory),
            listeners: options.listeners.into_iter().map(Some).collect(),
            endpoints: Vec::new(),
            sockets: SocketTable::default(),
            shutting: HashMap::new(),
            early: VecDeque::new(),
            waker: waker.clone(),
            waker_armed: false,
            descriptors: options.descriptors,
            now: clock::now(),
        };
        ring.register()?;
        let permissions = match ring.descriptors {
            DescriptorMode::Plain => Permissions::Plain,
            DescriptorMode::Direct => Permissions::Direct,
        };
        ring.uring
            .enable(permissions)
            .map_err(|error| ProbeError::from_system(Step::Enable, &error))?;
        Ok((ring, waker))
    }

    /// Sockets that this ring has opened and that were not closed yet.
    pub fn open_sockets(&self) -> u32 {
        self.sockets.open()
    }

    fn register(&self) -> Result<(), RingError> {
        let submitter = self.uring.inner().submitter();
        for pool in [&self.memory.client_buffers, &self.memory.link_buffers] {
            // SAFETY: `drop` lets the pools go only after the ring, and never while a receive
            // may still be in flight.
            unsafe { pool.register(&submitter) }
                .map_err(|error| ProbeError::from_system(Step::Buffers, &error))?;
        }
        if self.descriptors == DescriptorMode::Direct {
            let limit = process::descriptor_limit()?;
            // The kernel's own bound on a table is 2^20.
            let entries = limit.min(1 << 20) as u32;
            submitter
                .register_files_sparse(entries)
                .map_err(|error| ProbeError::from_system(Step::Files, &error))?;
        }
        Ok(())
    }

    fn push(&mut self, key: OpKey, entry: squeue::Entry) {
        self.push_as(key.to_bits(), entry);
    }

    fn push_as(&mut self, user_data: u64, entry: squeue::Entry) {
        // SAFETY: entries name memory of `self.memory` alone (or of statics), whose pieces are
        // marked as in flight until the last cqe, and which `drop` keeps while operations
        // may be running.
        unsafe { self.uring.push(entry.user_data(user_data)) };
    }

    fn accept(&mut self, key: OpKey, listener: u16) {
        let Some(socket) = &self.listeners[usize::from(listener)] else {
            return self.fail_early(key, Failure::Cancelled);
        };
        let descriptor = Fd(socket.descriptor());
        let room = self.memory.accepts.start(key.owner.key().slot, listener);
        // SAFETY: `room` points to live storage of the accept slot; only addresses are taken.
        let (address, length) = unsafe { (&raw mut (*room).storage, &raw mut (*room).length) };
        let entry = opcode::Accept::new(descriptor, address.cast(), length);
        let entry = match self.descriptors {
            DescriptorMode::Plain => entry.flags(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC),
            DescriptorMode::Direct => {
                entry.flags(libc::SOCK_NONBLOCK).file_index(Some(DestinationSlot::auto_target()))
            }
        };
        self.push(key, entry.build());
    }

    fn receive(&mut self, key: OpKey, socket: Socket, group: BufferGroup, multishot: bool) {
        let group = buffers::group_number(group);
        let entry = match (self.sockets.target(socket), multishot) {
            (Target::Plain(number), true) => opcode::RecvMulti::new(Fd(number), group).build(),
            (Target::Direct(number), true) => opcode::RecvMulti::new(Fixed(number), group).build(),
            (Target::Plain(number), false) => {
                receive_once(opcode::Recv::new(Fd(number), std::ptr::null_mut(), 0), group)
            }
            (Target::Direct(number), false) => {
                receive_once(opcode::Recv::new(Fixed(number), std::ptr::null_mut(), 0), group)
            }
        };
        self.push(key, entry);
    }

    fn poll(&mut self, key: OpKey, socket: Socket, events: i16) {
        let events = events as u32;
        let entry = match self.sockets.target(socket) {
            Target::Plain(number) => opcode::PollAdd::new(Fd(number), events).build(),
            Target::Direct(number) => opcode::PollAdd::new(Fixed(number), events).build(),
        };
        self.push(key, entry);
    }

    fn send(&mut self, key: OpKey, socket: Socket, slot: SendSlot, start: u32, end: u32) {
        let link = if slot.group() == BufferGroup::Link { SEND_LINK_BIT } else { 0 };
        let user_data = SEND | link | u64::from(slot.id());
        let target = self.sockets.target(socket);
        let data = self.memory.slots(slot.group()).launch(slot, key, start, end);
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let length = end - start;
        let entry = match target {
            Target::Plain(number) => opcode::Send::new(Fd(number), data, length),
            Target::Direct(number) => opcode::Send::new(Fixed(number), data, length),
        };
        self.push_as(user_data, entry.flags(flags).build());
    }

    fn connect(&mut self, key: OpKey, endpoint: u16) {
        let address = self.endpoints.get(usize::from(endpoint)).and_then(Option::as_ref);
        let address = address.expect("connect to an endpoint that was never set");
        let (socket, address) = match self.memory.connects.start(key, address) {
            Ok(started) => started,
            Err(error) => {
                let failure = open_failure(error.raw_os_error().unwrap_or(libc::EINVAL));
                return self.fail_early(key, failure);
            }
        };
        let descriptor = Fd(socket.as_raw_fd());
        // SAFETY: the address stays where it is until the connect has ended.
        let (pointer, length) = unsafe { ((*address).as_ptr(), (*address).len()) };
        self.push(key, opcode::Connect::new(descriptor, pointer.cast(), length).build());
    }

    fn close(&mut self, key: OpKey, socket: Socket, reset: bool) {
        match self.sockets.remove(socket) {
            Target::Plain(number) => {
                if reset {
                    // What cannot be aborted is closed in the ordinary way.
                    let _ = sockets::abort_on_close(number);
                }
                self.push(key, opcode::Close::new(Fd(number)).build());
            }
            Target::Direct(number) => match self.shutting.get_mut(&number) {
                Some(held) => *held = Some((key, reset)),
                None => self.close_direct(number, (key, reset)),
            },
        }
    }

    fn close_direct(&mut self, number: u32, (key, reset): HeldClose) {
        if reset {
            self.abort_direct(number);
        }
        self.push(key, opcode::Close::new(Fixed(number)).build());
    }

    /// A kernel thread is done with a direct descriptor: it may be closed.
    fn shut_down(&mut self, number: u32) {
        if let Some(Some(close)) = self.shutting.remove(&number) {
            self.close_direct(number, close);
        }
    }

    fn abort_direct(&mut self, number: u32) {
        let entry = opcode::SetSockOpt::new(
            Fixed(number),
            libc::SOL_SOCKET as u32,
            libc::SO_LINGER as u32,
            (&raw const sockets::ABORT).cast(),
            size_of::<libc::linger>() as u32,
        )
        .build();
        // Linked hard: the close comes after it, whether or not the kernel knows the option.
        self.push_as(UNHEEDED, entry.flags(squeue::Flags::IO_HARDLINK));
    }

    fn cancel(&mut self, key: OpKey, target: OpKey) {
        let user_data = match target.kind {
            OpKind::Send => self.memory.find_send(target),
            _ => Some(target.to_bits()),
        };
        match user_data {
            Some(user_data) => self.push(key, opcode::AsyncCancel::new(user_data).build()),
            None => self.fail_early(key, Failure::NotFound),
        }
    }

    fn fail_early(&mut self, key: OpKey, failure: Failure) {
        let outcome = Outcome::Failed(failure);
        self.early.push_back(Completion { key, outcome, more: false });
    }

    fn arm_waker(&mut self) {
        if self.waker_armed {
            return;
        }
        let count = self.memory.wake_count.address().cast();
        let entry = opcode::Read::new(Fd(self.waker.descriptor()), count, size_of::<u64>() as u32);
        self.push_as(WAKE, entry.build());
        self.waker_armed = true;
    }

    fn translate(&mut self, cqe: Cqe) -> Option<Completion> {
        if cqe.user_data >= OWN {
            self.waker_armed &= cqe.user_data != WAKE;
            if cqe.user_data & SHUTDOWN == SHUTDOWN {
                self.shut_down(cqe.user_data as u32);
            }
            return None;
        }
        if cqe.user_data >> 56 == OpKind::Send as u64 {
            return Some(self.sent(cqe));
        }
        let key = OpKey::from_bits(cqe.user_data).expect("an answer to nobody's operation");
        let errno = -cqe.result;
        let outcome = match key.kind {
            OpKind::Accept => self.accepted(key, cqe.result),
            OpKind::Receive => self.filled(cqe),
            OpKind::Connect => self.connected(key, cqe.result),
            OpKind::Poll if cqe.result >= 0 => Outcome::Readable,
            OpKind::Close if cqe.result >= 0 => Outcome::Closed,
            // Too late to cancel is an cqe too: the target ends by itself.
            OpKind::Cancel if cqe.result >= 0 || errno == libc::EALREADY => Outcome::CancelDone,
            OpKind::Cancel if errno == libc::ENOENT => Outcome::Failed(Failure::NotFound),
            _ => Outcome::Failed(transfer_failure(errno)),
        };
        Some(Completion { key, outcome, more: cqe.more() })
    }

    fn accepted(&mut self, key: OpKey, result: i32) -> Outcome {
        let (listener, peer) = self.memory.accepts.finish(key.owner.key().slot);
        if result >= 0 {
            let target = match self.descriptors {
                DescriptorMode::Plain => Target::Plain(result),
                DescriptorMode::Direct => Target::Direct(result as u32),
            };
            return Outcome::Accepted { socket: self.sockets.add(target), peer };
        }
        // A listener that we stopped makes its accepts fail with EINVAL.
        let stopped = self.listeners[usize::from(listener)].is_none();
        Outcome::Failed(if stopped { Failure::Cancelled } else { open_failure(-result) })
    }

    fn filled(&mut self, cqe: Cqe) -> Outcome {
        let buffer = cqe.buffer().map(buffers::split);
        match (cqe.result, buffer) {
            (1.., Some((group, id))) => {
                let length = cqe.result as u32;
                Outcome::Received(self.memory.buffers(group).take(id, length))
            }
            (1.., None) => panic!("bytes were received into no buffer"),
            (result, buffer) => {
                if let Some((group, id)) = buffer {
                    self.memory.buffers(group).reclaim(id);
                }
                match -result {
                    0 => Outcome::EndOfStream,
                    libc::ENOBUFS => Outcome::Failed(Failure::NoBuffers),
                    errno => Outcome::Failed(transfer_failure(errno)),
                }
            }
        }
    }

    fn sent(&mut self, cqe: Cqe) -> Completion {
        let group = match cqe.user_data & SEND_LINK_BIT {
            0 => BufferGroup::Client,
            _ => BufferGroup::Link,
        };
        let (key, slot) = self.memory.slots(group).land(cqe.user_data as u16);
        let result = u32::try_from(cqe.result).map_err(|_| match -cqe.result {
            libc::ENOBUFS => Failure::Exhausted,
            errno => transfer_failure(errno),
        });
        Completion { key, outcome: Outcome::Sent { slot, result }, more: false }
    }

    fn connected(&mut self, key: OpKey, result: i32) -> Outcome {
        let socket = self.memory.connects.finish(key);
        if result < 0 {
            return Outcome::Failed(open_failure(-result));
        }
        Outcome::Connected(self.sockets.add(Target::Plain(socket.into_raw_fd())))
    }

    fn wait_until(&mut self, until: Instant) -> Option<Duration> {
        if !self.early.is_empty() || self.uring.has_answers() {
            return None;
        }
        let time = until.since(clock::instant()).min(ENTER_WAIT_MAX);
        (!time.is_zero()).then_some(time)
    }
}

impl Ring for LinuxRing {
    fn now(&self) -> Now {
        self.now
    }

    fn clock(&self) -> Instant {
        clock::instant()
    }

    fn set_endpoint(&mut self, endpoint: u16, address: EndpointAddress) {
        let index = usize::from(endpoint);
        if self.endpoints.len() <= index {
            self.endpoints.resize(index + 1, None);
        }
        self.endpoints[index] = Some(address);
    }

    fn submit(&mut self, key: OpKey, op: Op) {
        match op {
            Op::Accept { listener } => self.accept(key, listener),
            Op::ReceiveMultishot { socket, group } => self.receive(key, socket, group, true),
            Op::ReceiveOnce { socket, group } => self.receive(key, socket, group, false),
            Op::PollReadable { socket } => {
                self.poll(key, socket, libc::POLLIN | libc::POLLRDHUP);
            }
            Op::PollHangup { socket } => self.poll(key, socket, libc::POLLRDHUP),
            Op::Send { socket, slot, start, end } => self.send(key, socket, slot, start, end),
            Op::Connect { endpoint } => self.connect(key, endpoint),
            Op::Close { socket, reset } => self.close(key, socket, reset),
            Op::Cancel { target } => self.cancel(key, target),
        }
    }

    fn enter(&mut self, until: Instant) {
        self.arm_waker();
        self.memory.client_buffers.publish();
        self.memory.link_buffers.publish();
        let wait = self.wait_until(until);
        if let Err(error) = self.uring.enter(wait) {
            panic!("io_uring_enter failed: {error}");
        }
        self.now = clock::now();
    }

    fn completion(&mut self) -> Option<Completion> {
        if let Some(early) = self.early.pop_front() {
            return Some(early);
        }
        loop {
            let cqe = self.uring.next_cqe()?;
            if let Some(completion) = self.translate(cqe) {
                return Some(completion);
            }
        }
    }

    fn received(&mut self, buffer: &ReceivedBuffer) -> &mut [u8] {
        self.memory.buffers(buffer.group()).bytes(buffer)
    }

    fn give_back(&mut self, buffer: ReceivedBuffer) {
        self.memory.buffers(buffer.group()).give_back(buffer);
    }

    fn buffers(&self, group: BufferGroup) -> BufferCount {
        match group {
            BufferGroup::Client => self.memory.client_buffers.count(),
            BufferGroup::Link => self.memory.link_buffers.count(),
        }
    }

    fn send_slot(&mut self, group: BufferGroup) -> Option<SendSlot> {
        self.memory.slots(group).take()
    }

    fn slot_bytes(&mut self, slot: &SendSlot) -> &mut [u8] {
        self.memory.slots(slot.group()).bytes(slot)
    }

    fn release(&mut self, slot: SendSlot) {
        self.memory.slots(slot.group()).release(slot);
    }

    fn shutdown_write(&mut self, socket: Socket) {
        match self.sockets.target(socket) {
            // Not through the ring, which would hand it to a kernel thread.
            Target::Plain(number) => sockets::shutdown_write(number),
            Target::Direct(number) => {
                let entry = opcode::Shutdown::new(Fixed(number), libc::SHUT_WR).build();
                self.push_as(SHUTDOWN | u64::from(number), entry);
                self.shutting.insert(number, None);
            }
        }
    }

    fn close_listener(&mut self, listener: u16) {
        if let Some(socket) = self.listeners[usize::from(listener)].take() {
            socket.stop();
        }
    }
}

impl Drop for LinuxRing {
    fn drop(&mut self) {
        // No assertion here: this runs while a worker's panic unwinds.
        self.listeners.clear();
        let direct = self.descriptors == DescriptorMode::Direct;
        let mut accepted = Vec::new();
        let drained = self.uring.drain(DRAIN_PATIENCE, |cqe| {
            let kind = OpKey::from_bits(cqe.user_data).map(|key| key.kind);
            if kind == Some(OpKind::Accept) && cqe.result >= 0 && !direct {
                accepted.push(cqe.result);
            }
        });
        for descriptor in accepted {
            // SAFETY: the kernel has just opened it for us, and no other code knows of it.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
        self.sockets.close_all();
        if direct {
            // Now, not when the kernel gets round to the rest of the ring.
            let _ = self.uring.inner().submitter().unregister_files();
        }
        // SAFETY: neither field is used after this; the ring goes first.
        unsafe { ManuallyDrop::drop(&mut self.uring) };
        if drained {
            // SAFETY: every operation has given its last cqe and the ring is closed, so
            // the kernel no longer uses this memory.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        } else {
            // Lost on purpose: an operation that did not end may still write to it.
            tracing::warn!("operations did not end in time: the ring's memory is not freed");
            self.memory.connects.close_all();
        }
    }
}

impl Memory {
    fn new(options: &RingOptions) -> io::Result<Memory> {
        use BufferGroup::{Client, Link};
        Ok(Memory {
            client_buffers: ReceivePool::new(Client, options.client_buffers, CLIENT_BUFFER_BYTES)?,
            link_buffers: ReceivePool::new(Link, options.link_buffers, LINK_BUFFER_BYTES)?,
            client_slots: SlotPool::new(Client, options.client_slots, CLIENT_SLOT_BYTES)?,
            link_slots: SlotPool::new(Link, options.link_slots, LINK_SLOT_BYTES)?,
            accepts: Accepts::default(),
            connects: Connects::default(),
            wake_count: Pinned::new(0),
        })
    }

    fn buffers(&mut self, group: BufferGroup) -> &mut ReceivePool {
        match group {
            BufferGroup::Client => &mut self.client_buffers,
            BufferGroup::Link => &mut self.link_buffers,
        }
    }

    fn slots(&mut self, group: BufferGroup) -> &mut SlotPool {
        match group {
            BufferGroup::Client => &mut self.client_slots,
            BufferGroup::Link => &mut self.link_slots,
        }
    }

    fn find_send(&self, key: OpKey) -> Option<u64> {
        let client = self.client_slots.find(key).map(|id| SEND | u64::from(id));
        client.or_else(|| self.link_slots.find(key).map(|id| SEND | SEND_LINK_BIT | u64::from(id)))
    }
}

fn receive_once(entry: opcode::Recv, group: u16) -> squeue::Entry {
    entry.buf_group(group).build().flags(squeue::Flags::BUFFER_SELECT)
}
