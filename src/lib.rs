//! Portcullis: a thread-per-core WebSocket gateway for Linux, on io_uring.
//!
//! It terminates TLS, parses upgrades, checks origins, verifies signed tokens and holds every
//! socket to an authenticate-or-close deadline; authenticated traffic goes to a few backends
//! over one compact framed protocol. `ARCHITECTURE.md` is the map of the layers below.
//!
//! Authors of backends want the [`backend`] module; the rest is the gateway itself.

pub mod backend;
pub mod base;
pub mod connection;
pub mod counters;
pub mod dev;
pub mod linux;
pub mod protocol;
pub mod ring;
pub mod server;
pub mod settings;
pub mod sim;
pub mod worker;
