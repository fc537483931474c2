//! L5: the other implementation of the ring seam. A seeded world in memory, with a fake ring,
//! fake clients and backends, faults and checks, in which a whole worker runs on a fake clock.
//! The same seed gives the same run, to the last byte.

pub mod backend;
pub mod backend_link;
mod backend_server;
pub mod behaviour;
pub mod bugs;
pub mod check;
pub mod client;
pub mod crowd;
pub mod deadlines;
pub mod fake_ring;
pub mod faults;
mod faulty_ring;
pub mod flood;
pub mod frames;
pub mod keep;
pub mod kernel;
pub mod memory;
pub mod messages;
pub mod net;
pub mod numbers;
mod revocations;
mod scanner;
pub mod scenario;
pub mod simulation;
pub mod tls;
pub mod tokens;
pub mod trace;
pub mod watched;
pub mod world;

pub use bugs::Bug;
pub use keep::Keep;
pub use simulation::{Options, Outcome, Simulation, run};
