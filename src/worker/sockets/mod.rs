//! Sockets of a worker, of clients and upstreams alike: their operations, their sends, how those
//! that we dial come about, and what is to be done for them.

mod agenda;
mod dialled;
mod ops;
mod pipe;

pub use agenda::Agenda;
pub use dialled::DialledSocket;
pub use ops::{Ops, Reading};
pub use pipe::{Flush, Pipe, PipeEvent};
