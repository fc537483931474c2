//! L5: everything that touches the Linux kernel directly, and the only folder with `unsafe`:
//! the io_uring ring behind the seam of `ring.rs`, listeners, clocks, limits, the start-up
//! probe.

pub mod clock;
pub mod listener;
pub mod probe;
pub mod process;
pub mod ring;

mod address;
mod buffers;
mod memory;
mod operations;
mod options;
mod slots;
mod sockets;
mod uring;
mod waker;

#[cfg(test)]
mod load_tests;
#[cfg(test)]
mod ring_tests;
