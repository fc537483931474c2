//! The two queues shared with the kernel, and the one system call that moves them.
#![allow(unsafe_code)] // io_uring_enter and io_uring_register with the registered descriptor

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::{IoUring, cqueue, opcode, squeue, types};

/// Marks the `user_data` of operations that are the ring's own; no `OpKey` has these bits.
pub(super) const OWN: u64 = 0xf0 << 56;

const ENTER_GETEVENTS: libc::c_uint = 1;
const ENTER_EXT_ARG: libc::c_uint = 1 << 3;
const ENTER_REGISTERED_RING: libc::c_uint = 1 << 4;
const UNREGISTER_FILES: u8 = 3;
const REGISTER_RING_FDS: u8 = 20;
const UNREGISTER_RING_FDS: u8 = 21;

/// Completions per submission that the completion queue has room for. When it is full, the
/// kernel keeps the rest elsewhere but ends multishot operations.
const COMPLETIONS_PER_ENTRY: u32 = 8;
const COMPLETION_ENTRIES_MAX: u32 = 65_536;

/// What the kernel said of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cqe {
    pub(super) user_data: u64,
    pub(super) result: i32,
    pub(super) flags: u32,
}

impl Cqe {
    /// Whether the operation will cqe again.
    pub(super) fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The number of the provided buffer that the kernel used.
    pub(super) fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// A ring of one thread. Not for sharing: the kernel refuses other threads (SINGLE_ISSUER).
pub(super) struct Uring {
    ring: IoUring,
    /// Index of our descriptor in the kernel's table of this thread.
    registered: Option<u32>,
    no_sqarray: bool,
    /// What the ring may do is restricted.
    restricted: bool,
    /// Operations that have yet to give their last cqe.
    in_flight: u64,
    /// Entries that found the submission queue full and the kernel unable to take them.
    backlog: VecDeque<squeue::Entry>,
}

/// Argument of io_uring_enter with IORING_ENTER_EXT_ARG.
#[repr(C)]
struct EventsArgument {
    signal_mask: u64,
    signal_mask_bytes: u32,
    min_wait_usec: u32,
    timeout: u64,
}

/// Argument of IORING_REGISTER_RING_FDS.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// What a ring may do once it is enabled. The kernel refuses everything else with EACCES, so a
/// fault that reaches the submission queue opens no file and runs no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permissions {
    /// The operations on plain descriptors.
    Plain,
    /// Those, and what direct descriptors need: their shutdown and socket options.
    Direct,
}

impl Permissions {
    fn restrictions(self) -> Vec<Restriction> {
        let mut codes = vec![
            opcode::Accept::CODE,
            opcode::Recv::CODE,
            opcode::PollAdd::CODE,
            opcode::Send::CODE,
            opcode::Connect::CODE,
            opcode::Close::CODE,
            opcode::AsyncCancel::CODE,
            // Of the wake-up event.
            opcode::Read::CODE,
        ];
        let mut flags = squeue::Flags::BUFFER_SELECT;
        let mut registrations = vec![UNREGISTER_RING_FDS];
        if self == Permissions::Direct {
            codes.extend([opcode::Shutdown::CODE, opcode::SetSockOpt::CODE]);
            flags |= squeue::Flags::FIXED_FILE | squeue::Flags::IO_HARDLINK;
            registrations.push(UNREGISTER_FILES);
        }
        let codes = codes.into_iter().map(Restriction::sqe_op);
        let registrations = registrations.into_iter().map(Restriction::register_op);
        codes.chain(registrations).chain([Restriction::sqe_flags_allowed(flags.bits())]).collect()
    }
}

impl Uring {
    /// Makes a ring that takes `entries` submissions at a time, for the calling thread. It does
    /// nothing before [`Uring::enable`]; pools and tables are registered before that.
    pub(super) fn new(entries: u32) -> io::Result<Uring> {
        let (ring, no_sqarray) = match build(entries, true) {
            Ok(ring) => (ring, true),
            // NO_SQARRAY is of 6.6; older kernels call unknown flags invalid.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                (build(entries, false)?, false)
            }
            Err(error) => return Err(error),
        };
        let registered = register_ring(&ring).ok();
        Ok(Uring {
            ring,
            registered,
            no_sqarray,
            restricted: false,
            in_flight: 0,
            backlog: VecDeque::new(),
        })
    }

    /// Restricts the ring to `permissions` and starts it. A kernel that takes no restrictions
    /// gives a ring without them, see [`Uring::is_restricted`].
    pub(super) fn enable(&mut self, permissions: Permissions) -> io::Result<()> {
        let submitter = self.ring.submitter();
        self.restricted = submitter.register_restrictions(&mut permissions.restrictions()).is_ok();
        submitter.register_enable_rings()
    }

    /// Whether the kernel refuses what the ring does not need.
    pub(super) fn is_restricted(&self) -> bool {
        self.restricted
    }

    /// The underlying ring, for registrations and features.
    pub(super) fn inner(&self) -> &IoUring {
        &self.ring
    }

    /// Whether the ring works without the index array (Linux 6.6).
    pub(super) fn has_no_sqarray(&self) -> bool {
        self.no_sqarray
    }

    /// Whether `enter` uses the registered descriptor.
    pub(super) fn is_registered(&self) -> bool {
        self.registered.is_some()
    }

    /// Queues an operation. When the queue is full, hands it to the kernel first, without
    /// waiting.
    ///
    /// # Safety
    /// Memory that the entry names must stay valid, and untouched by us where the kernel
    /// writes, until the operation's last cqe.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        self.in_flight += 1;
        if self.backlog.is_empty() {
            // SAFETY: the caller vouches for the entry's memory.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // A failure shows again at the next `enter`.
            let _ = self.call(0, 0, None);
            // SAFETY: as above.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    /// Whether an cqe can be had without a system call.
    pub(super) fn has_answers(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// The next cqe in the kernel's order.
    pub(super) fn next_cqe(&mut self) -> Option<Cqe> {
        let entry = self.ring.completion().next()?;
        let cqe =
            Cqe { user_data: entry.user_data(), result: entry.result(), flags: entry.flags() };
        if !cqe.more() {
            self.in_flight -= 1;
        }
        Some(cqe)
    }

    /// Submits everything and runs the kernel's deferred work; waits for an cqe up to
    /// `wait`, or not at all.
    ///
    /// # Errors
    /// When nothing can be relied on any more: another thread's ring, a closed descriptor,
    /// lost answers.
    pub(super) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        while let Some(entry) = self.backlog.pop_front() {
            // SAFETY: the caller of `push` vouched for the entry's memory until its last cqe.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.backlog.push_front(entry);
                break;
            }
        }
        // What is left behind must be tried again soon.
        let wait = wait.filter(|_| self.backlog.is_empty());
        match wait {
            Some(time) => self.call(ENTER_GETEVENTS, 1, Some(time)),
            None => self.call(ENTER_GETEVENTS, 0, None),
        }
    }

    fn call(&mut self, flags: libc::c_uint, wanted: u32, wait: Option<Duration>) -> io::Result<()> {
        let to_submit = self.ring.submission().len() as u32;
        let timeout = wait.map(types::Timespec::from).unwrap_or_default();
        let argument = EventsArgument {
            signal_mask: 0,
            signal_mask_bytes: 0,
            min_wait_usec: 0,
            timeout: (&raw const timeout) as u64,
        };
        let (pointer, bytes, flags) = match wait {
            Some(_) => (&raw const argument, size_of::<EventsArgument>(), flags | ENTER_EXT_ARG),
            None => (std::ptr::null(), 0, flags),
        };
        let (descriptor, flags) = match self.registered {
            Some(index) => (index as i32, flags | ENTER_REGISTERED_RING),
            None => (self.ring.as_raw_fd(), flags),
        };
        // SAFETY: argument and timeout outlive the call; the entries' memory is vouched for by
        // the callers of `push`. The crate's own call forgets the registered descriptor between
        // two submitters, hence this one.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                descriptor,
                to_submit,
                wanted,
                flags,
                pointer,
                bytes,
            )
        };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Time is up; a signal; no memory or no room for now: the next call tries again.
            Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
            _ => Err(error),
        }
    }

    /// Cancels everything, and waits up to `patience` until every operation has given its last
    /// cqe; `note` sees the answers. Returns whether all have.
    pub(super) fn drain(&mut self, patience: Duration, mut note: impl FnMut(Cqe)) -> bool {
        let deadline = std::time::Instant::now() + patience;
        let all = opcode::AsyncCancel2::new(types::CancelBuilder::any().all()).build();
        // SAFETY: the entry names no memory.
        unsafe { self.push(all.user_data(OWN)) };
        loop {
            while let Some(cqe) = self.next_cqe() {
                note(cqe);
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if self.in_flight == 0 || left.is_zero() {
                return self.in_flight == 0;
            }
            if self.enter(Some(left)).is_err() {
                return false;
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if let Some(index) = self.registered {
            // The thread's table holds the ring open until this or the thread's end.
            let update = RingUpdate { offset: index, reserved: 0, data: 0 };
            // Failure leaves the ring open until the thread ends, which harms nothing.
            let _ = register(&self.ring, UNREGISTER_RING_FDS, &raw const update);
        }
    }
}

fn build(entries: u32, no_sqarray: bool) -> io::Result<IoUring> {
    let completions = entries.saturating_mul(COMPLETIONS_PER_ENTRY).min(COMPLETION_ENTRIES_MAX);
    let mut builder = IoUring::builder();
    builder
        .dontfork()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(completions)
        .setup_clamp()
        .setup_submit_all();
    if no_sqarray {
        builder.setup_no_sqarray();
    }
    builder.build(entries)
}

fn register_ring(ring: &IoUring) -> io::Result<u32> {
    let mut update = RingUpdate { offset: u32::MAX, reserved: 0, data: ring.as_raw_fd() as u64 };
    register(ring, REGISTER_RING_FDS, &raw mut update)?;
    Ok(update.offset)
}

fn register(ring: &IoUring, what: u8, update: *const RingUpdate) -> io::Result<()> {
    // SAFETY: `update` points to one live RingUpdate, which is what both commands expect; only
    // registration, whose pointer is mutable, writes to it.
    let result = unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), u32::from(what), update, 1)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of one operation.
    fn result(ring: &mut Uring, entry: squeue::Entry) -> i32 {
        // SAFETY: the entries of these tests name no memory but a static path.
        unsafe { ring.push(entry.user_data(1)) };
        ring.enter(Some(Duration::from_secs(5))).expect("the ring works");
        ring.next_cqe().expect("an answer").result
    }

    fn enabled(permissions: Permissions) -> Uring {
        let mut ring = Uring::new(8).expect("a ring");
        ring.enable(permissions).expect("enabled");
        assert!(ring.is_restricted(), "this kernel takes restrictions");
        ring
    }

    #[test]
    fn what_the_gateway_never_does_the_kernel_refuses() {
        let open = || opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/dev/null".as_ptr()).build();
        let shutdown = || opcode::Shutdown::new(types::Fd(-1), libc::SHUT_WR).build();
        let poll = || opcode::PollAdd::new(types::Fd(-1), libc::POLLIN as u32).build();
        type Row = (Permissions, fn() -> squeue::Entry, i32);
        let table: [Row; 6] = [
            (Permissions::Plain, open, -libc::EACCES),
            (Permissions::Direct, open, -libc::EACCES),
            (Permissions::Plain, shutdown, -libc::EACCES),
            // Permitted operations fail for the reason that they have.
            (Permissions::Direct, shutdown, -libc::EBADF),
            (Permissions::Plain, poll, -libc::EBADF),
            (Permissions::Direct, poll, -libc::EBADF),
        ];
        for (permissions, entry, expected) in table {
            let mut ring = enabled(permissions);
            assert_eq!(result(&mut ring, entry()), expected, "{permissions:?}");
        }
        // An operation that is permitted, with a flag that is not.
        for flag in [squeue::Flags::ASYNC, squeue::Flags::IO_DRAIN] {
            let mut ring = enabled(Permissions::Plain);
            assert_eq!(result(&mut ring, poll().flags(flag)), -libc::EACCES, "{flag:?}");
        }
    }

    #[test]
    fn registrations_end_when_the_ring_starts() {
        let ring = enabled(Permissions::Direct);
        let error = ring.inner().submitter().register_files_sparse(4).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }
}
