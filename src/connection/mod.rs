//! L3: state machines of one connection each, sans-IO: input and time go in, answers and steps
//! come out. They read no clock, draw no randomness and touch no socket.

pub mod auth_request;
pub mod authenticate;
pub mod client;
mod closing;
mod deadlines;
mod first_message;
pub mod link;
mod rare_state;
mod reauthenticate;
pub mod stage;
pub mod transport;
mod upgrade;

use crate::base::time::Now;
use crate::counters::Counters;
use crate::protocol::revocation::Revoked;
use crate::settings::Settings;

/// What a machine may look at while it works.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Both clocks.
    pub now: Now,
    /// The settings in force.
    pub settings: &'a Settings,
    /// The worker's numbers.
    pub counters: &'a Counters,
    /// A number drawn anew in each of the worker's turns.
    pub jitter: u32,
    /// Who must not be let in.
    pub revoked: &'a Revoked,
}

/// Where a machine leaves what it has to say; one for each worker, reused for every call.
#[derive(Default)]
pub struct Output {
    /// Bytes for the client, before encryption.
    pub answers: Vec<u8>,
    /// Room to write an explanation in.
    pub explanation: Vec<u8>,
    /// A whole frame, its session still to be filled in: OPEN after
    /// [`client::Step::Authenticated`], REAUTH after [`client::Step::Reauthenticated`], AUTH after
    /// [`client::Step::Ask`].
    pub open: Vec<u8>,
    /// What an HTTP endpoint is to be asked, after [`client::Step::Ask`].
    pub http_request: Option<auth_request::HttpAuthRequest>,
    /// The client's close reason (UTF-8, at most 123 bytes), after
    /// its close frame.
    pub reason: Vec<u8>,
    /// Bytes of a client's message that were held back, after [`client::Step::Released`].
    pub released: Vec<u8>,
    /// Room to write the path in that goes with OPEN.
    pub path: Vec<u8>,
    /// What greets the client once its session is open, after [`client::Step::Authenticated`].
    pub connect_ack: Vec<u8>,
    /// What came with the token and is the backend's, as a frame of the client's, after
    /// [`client::Step::Authenticated`].
    pub rest: Vec<u8>,
    /// Room to decode tokens in.
    pub tokens: authenticate::Scratch,
}
