//! Sockets of a worker, of clients and upstreams alike: their operations, their sends, and the
//! table that holds them.

mod ops;
mod pipe;
mod table;

pub use ops::{Ops, Reading};
pub use pipe::{Flush, Pipe, PipeEvent};
pub use table::{Agenda, Entry, SocketTable};
