//! L3: state machines of one connection each.

pub mod transport;
