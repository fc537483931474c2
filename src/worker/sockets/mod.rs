//! Sockets of a worker, clients and upstreams alike: their operations, their sends, and the table
//! that holds them.

mod ops;
mod pipe;

pub use ops::{Ops, Reading};
pub use pipe::{Flush, Pipe, PipeEvent};
