//! One client, from its first plaintext byte to its last: request head, token, frames, close.
//!
//! The transport (TLS) lies below and the worker above. Each file imports only from files above
//! it in this list:
//!
//! | file | what |
//! |---|---|
//! | `step` | what the machine wants of the worker |
//! | `peer_address`, `renewal`, `http_fields`, `admitted`, `pending_acceptance` | small parts of a client's state |
//! | `phase` | what a client is doing, with what exists only while it does that |
//! | `state` | the client itself, and the one place where its phase changes |
//! | `closing` | the end: what is said, how long the close frame waits |
//! | `deadlines` | what is due next, and acting on it |
//! | `frames`, `after_close` | frames before and after the end |
//! | `connect_ack`, `open` | the way to a session |
//! | `acceptance`, `server` | while the WebSocket server behind has still to agree |
//! | `auth_decision` | decisions of backends and endpoints |
//! | `upgrade`, `first_message`, `reauthenticate` | where tokens come from |
//! | `events` | input and output, handed to the files above |

mod acceptance;
mod admitted;
mod after_close;
mod auth_decision;
mod closing;
mod connect_ack;
mod deadlines;
mod events;
mod first_message;
mod frames;
mod http_fields;
mod open;
mod peer_address;
mod pending_acceptance;
mod phase;
mod reauthenticate;
mod renewal;
mod server;
mod site;
mod state;
mod step;
mod upgrade;

pub use closing::RejectHint;
pub use phase::End;
pub use state::Client;
pub use step::{SocketAction, Step};

#[cfg(test)]
mod tests;
