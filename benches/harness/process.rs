//! What the harness asks of its own process and of those that it starts: signals, cores, limits.
#![allow(unsafe_code)] // libc calls that std does not have.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::kernel::COMPLETIONS;

/// When the first signal came, in nanoseconds since the machine started; 0 for not yet.
static INTERRUPTED: AtomicU64 = AtomicU64::new(0);
/// One Ctrl-C may come twice: to the group of processes, and once more by whoever leads it.
const TWICE_NS: u64 = 500_000_000;

extern "C" fn note_interrupt(_: libc::c_int) {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime may be called from a signal handler, and fills one `timespec`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    let now = (time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64).max(1);
    let first = INTERRUPTED.compare_exchange(0, now, Ordering::SeqCst, Ordering::SeqCst);
    // A second signal ends the program at once.
    if first.is_err_and(|first| now.saturating_sub(first) > TWICE_NS) {
        // SAFETY: `_exit` may be called from a signal handler.
        unsafe { libc::_exit(130) };
    }
}

/// Makes Ctrl-C and SIGTERM end the measurement instead of the program.
pub fn catch_interrupts() {
    let handler = note_interrupt as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler touches an atomic and calls clock_gettime and `_exit`, all of them
    // async-signal-safe.
    unsafe {
        libc::signal(libc::SIGINT, handler);
        libc::signal(libc::SIGTERM, handler);
    }
}

/// Whether a signal asked to stop.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed) != 0
}

/// Binds a thread (0: the calling one) to one core.
///
/// # Errors
/// The kernel's: no such core or thread, or not ours to move.
pub fn pin(thread: i32, core: usize) -> io::Result<()> {
    // SAFETY: a zeroed cpu_set_t is a valid empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::other("no such core"));
    }
    // SAFETY: `core` is below CPU_SETSIZE; the kernel reads `size_of(set)` bytes of `set`.
    let outcome = unsafe {
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(thread, size_of_val(&set), &set)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets the calling thread's timeouts end within a microsecond instead of fifty.
pub fn precise_timers() {
    // SAFETY: PR_SET_TIMERSLACK takes a number of nanoseconds and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1000 as libc::c_ulong) };
}

/// Asks that the calling process be ended when its parent is.
pub fn end_with_parent() {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as libc::c_ulong) };
}

/// Raises the soft limit of descriptors to the hard one and returns it: it is also the largest
/// table of direct descriptors that one ring may have.
pub fn descriptor_limit() -> u32 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills and reads one `rlimit`.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return 1024;
        }
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
    // Rings are cheap, and completions of a larger table would overflow the queue.
    limit.rlim_max.min(u64::from(COMPLETIONS)) as u32
}

/// Lets a program that is about to be started run on `core` only, with all threads that it makes,
/// end when the harness does, and not be reached by a terminal's Ctrl-C: the harness ends it.
pub fn prepare(command: &mut Command, core: Option<usize>) {
    command.process_group(0);
    // SAFETY: between fork and exec only async-signal-safe calls are made: prctl and
    // sched_setaffinity, on memory of their own.
    unsafe {
        command.pre_exec(move || {
            end_with_parent();
            core.map_or(Ok(()), |core| pin(0, core))
        });
    }
}

/// Asks a process that we started to end.
pub fn terminate(pid: u32) {
    // SAFETY: kill takes two numbers and touches no memory.
    unsafe { libc::kill(pid as libc::pid_t, libc::SIGTERM) };
}
