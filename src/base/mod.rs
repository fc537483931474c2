//! L0: small structures that know nothing of sockets, protocols or clocks.

pub mod byte_queue;
pub mod circuit;
pub mod laps;
pub mod memory_pressure;
pub mod penalties;
pub mod prefix;
pub mod random;
pub mod rendezvous;
pub mod secret;
pub mod shares;
pub mod slab;
pub mod time;
pub mod token_bucket;
pub mod wheel;
