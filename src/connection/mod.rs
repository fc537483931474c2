//! L3: state machines of one connection each, sans-IO: input and time go in, answers and steps
//! come out. They read no clock, draw no randomness and touch no socket.

pub mod auth_request;
pub mod authenticate;
pub mod client;
mod context;
pub mod route_order;
pub mod session;
pub mod stage;
mod tls;
pub mod transport;
mod transport_error;
pub mod upstream;

pub use context::{Context, Output};
