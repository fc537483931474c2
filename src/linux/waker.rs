//! Wakes a worker out of its wait in the kernel, from any thread.
#![allow(unsafe_code)] // eventfd

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Ends the wait of one worker's ring. Cheap to clone; outlives the ring harmlessly.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<File>,
}

impl Waker {
    pub(super) fn new() -> io::Result<Waker> {
        // Blocking on purpose: the ring reads it by polling, and a non-blocking file would
        // make the read fail instead.
        // SAFETY: eventfd takes no pointers.
        let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and belongs to no other owner.
        let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Waker { event: Arc::new(File::from(owned)) })
    }

    /// Makes the ring's present wait, or its next one, end immediately.
    pub fn wake(&self) {
        // The write adds one to a 64-bit count that the ring resets; it cannot overflow, and a
        // ring that is gone needs no waking.
        let _ = (&*self.event).write(&1u64.to_ne_bytes());
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
