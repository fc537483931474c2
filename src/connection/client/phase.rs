//! What a client is doing now, with what exists only while it does that.

use std::net::IpAddr;
use std::sync::Arc;

use crate::base::time::PackedInstant;
use crate::connection::context::Context;
use crate::connection::stage::{ClosedBy, Stage};
use crate::counters::{Metric, VERDICT_TIME};
use crate::protocol::cause::Cause;
use crate::protocol::close_detail::CloseDetail;
use crate::protocol::http_upgrade::HeadScanner;
use crate::protocol::revocation::IdentityFingerprint;

use super::admitted::Admitted;
use super::pending_acceptance::PendingAcceptance;
use super::renewal::Renewal;
use super::step::SocketAction;

/// The phases of a connection's life, in their order; none is entered twice.
pub(super) enum Phase {
    TlsHandshake,
    /// Waits for the end of the request head. `None` before its first byte.
    RequestHead(Option<Box<PartialHead>>),
    /// The identity is not known yet, though the 101 is out; or it is, and the server behind has
    /// still to agree, which the 101 may wait for.
    Authenticating(Authenticating),
    /// Authenticated: there is a session, or will be within this tick.
    Open(Open),
    Ended(Ended),
}

impl Phase {
    pub(super) const fn stage(&self) -> Stage {
        match self {
            Phase::TlsHandshake => Stage::TlsHandshake,
            Phase::RequestHead(_) => Stage::RequestHead,
            Phase::Authenticating(_) => Stage::Authenticating,
            Phase::Open(_) => Stage::Open,
            Phase::Ended(Ended { standing: Standing::Refused, .. }) => Stage::Refused,
            Phase::Ended(Ended { standing: Standing::Leaving, .. }) => Stage::Closing,
        }
    }

    pub(super) const fn socket_action(&self) -> SocketAction {
        let Phase::Ended(ended) = self else { return SocketAction::Stay };
        match &ended.progress {
            CloseProgress::Delayed(_) => SocketAction::Stay,
            CloseProgress::Said { next, .. } => match next {
                Next::AwaitClose => SocketAction::Stay,
                Next::Shutdown => SocketAction::ShutdownWhenFlushed,
                Next::AwaitFin => SocketAction::AwaitEnd,
                Next::Close => SocketAction::CloseWhenFlushed,
            },
            CloseProgress::Dropped { reset } => SocketAction::CloseNow { reset: *reset },
        }
    }
}

/// The gauge that counts the clients in a stage.
pub(super) const fn gauge(stage: Stage) -> Metric {
    match stage {
        Stage::TlsHandshake => Metric::StageTls,
        Stage::RequestHead => Metric::StageHead,
        Stage::Authenticating => Metric::StageAuthenticating,
        Stage::Open => Metric::StageOpen,
        Stage::Refused => Metric::StageRefused,
        Stage::Closing => Metric::StageClosing,
    }
}

/// A request head of which the end has not come.
#[derive(Default)]
pub(super) struct PartialHead {
    pub(super) scanner: HeadScanner,
    /// Invariant: `bytes.len() <= limits.head_max`.
    pub(super) bytes: Vec<u8>,
}

pub(super) struct Authenticating {
    pub(super) request: Arc<PendingRequest>,
    pub(super) awaited: Awaited,
    /// The client has had its 101.
    pub(super) switched: bool,
}

/// What is kept of a request that gets its 101 before it is decided.
pub(super) struct PendingRequest {
    pub(super) head: Vec<u8>,
    /// Names of the route's `[[auth]]` blocks, which asked for the first message or a decision.
    pub(super) auths: Vec<String>,
    /// The subprotocol that the 101 named.
    pub(super) subprotocol: Option<String>,
    /// The trusted proxy that the request came through.
    pub(super) proxy: Option<IpAddr>,
}

pub(super) enum Awaited {
    /// The first message, as far as it has come: at most `limits.first_message_max`.
    FirstMessage(Vec<u8>),
    /// The decision of a backend or an endpoint.
    Decision(Box<PendingDecision>),
    /// The answer of the WebSocket server behind.
    Server(Box<PendingServer>),
    /// A message of that server which lets the client in.
    Acceptance(Box<PendingAcceptance>),
    /// Nothing: what was awaited has come, and is acted on within this call.
    Nothing,
}

#[derive(Clone, Copy)]
pub(super) struct PendingDecision {
    pub(super) since: PackedInstant,
    /// When it has taken too long.
    pub(super) until: PackedInstant,
    pub(super) first_message: FirstMessageInfo,
}

/// A server's answer that is awaited.
pub(super) struct PendingServer {
    /// When it has taken too long.
    pub(super) until: PackedInstant,
    pub(super) first_message: FirstMessageInfo,
    /// Who the client is; `None` where the server is to say whether it may come in.
    pub(super) admitted: Option<Admitted>,
}

/// What a first message asked for, beside being let in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FirstMessageInfo {
    /// It was the dialect's handshake, and the dialect has an answer to that.
    pub(super) wants_ack: bool,
    /// The number of the command to answer, where the dialect numbers them.
    pub(super) command: Option<u32>,
}

pub(super) struct Open {
    /// What revocations and fresh tokens are compared with.
    pub(super) mark: IdentityFingerprint,
    pub(super) expires: PackedInstant,
    /// Largest message that the session's backend takes.
    pub(super) backend_message_max: u32,
    /// `Some` on routes where fresh tokens may come.
    pub(super) renewal: Option<Box<Renewal>>,
    /// A ping is out, and nothing came since.
    pub(super) ping_sent: bool,
    /// The client was let in by its dialect's handshake, which it may not begin again.
    pub(super) handshake_done: bool,
    /// How many bytes of the dialect's handshake the message under way began with; the length of
    /// that once it differs.
    pub(super) handshake_seen: u8,
    /// The client was promised messages of its dialect at the ping interval.
    pub(super) pings_promised: bool,
    /// The client has been sent the beginning of a message, but not its end.
    pub(super) to_client_unfinished: bool,
    /// Pings and pongs go on to the server behind, and come from it.
    pub(super) passes_controls: bool,
    /// The client broke the protocol, and its close waits for what the backend has under way.
    pub(super) broken: bool,
    /// What small pieces of frames have cost and were not charged for yet.
    pub(super) piece_debt: u16,
}

pub(super) struct Ended {
    pub(super) end: End,
    pub(super) standing: Standing,
    pub(super) progress: CloseProgress,
}

/// What a client that ends may still expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It was not let in: it counts against the cap of the unauthenticated, and leaves when all
    /// their stages together are over.
    Refused,
    /// It was open, or goes without a word: what is queued for it is sent first.
    Leaving,
}

/// How far an end has come. It only goes forward.
pub(super) enum CloseProgress {
    /// The explanation is said; the close frame is still to come.
    Delayed(Delayed),
    /// The last word is queued, or sent.
    Said {
        next: Next,
        /// Everything up to the last word was sent once.
        lingering: bool,
    },
    /// Nothing more is sent: what is queued may be cut short.
    Dropped { reset: bool },
}

impl CloseProgress {
    pub(super) const fn said(next: Next) -> Self {
        CloseProgress::Said { next, lingering: false }
    }
}

/// What follows the last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The client's close frame, for a linger.
    AwaitClose,
    /// FIN, and then the client's end.
    Shutdown,
    /// The client's end: FIN is sent.
    AwaitFin,
    /// Nothing: the socket is closed.
    Close,
}

/// A close frame that waits.
pub(super) struct Delayed {
    pub(super) until: PackedInstant,
    pub(super) input: DelayedInput,
    /// A message of the backend's was cut short, so that no other may be sent.
    pub(super) to_client_unfinished: bool,
    /// The beginning of a message that may be a liveness check of the dialect.
    pub(super) partial: Option<Box<[u8]>>,
}

/// What becomes of input while the close frame waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DelayedInput {
    /// Liveness checks are answered, a close frame ends the delay, all else is dropped.
    Answered,
    /// It came too fast: nothing more is read until the delay is over.
    Unread,
    /// After a broken frame (RFC 6455 §7.1.7): nothing is read any more, and FIN follows the
    /// close frame.
    Broken,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub cause: Cause,
    /// Who began it.
    pub by: ClosedBy,
    /// The close code on the wire, if there was a close frame.
    pub code: Option<u16>,
    /// The furthest stage before the end began.
    pub stage: Stage,
    /// What it was in particular, where the cause has many reasons.
    pub detail: Option<CloseDetail>,
}

// There is one for each connection.
const _: () = assert!(size_of::<Phase>() <= 48);

impl PendingDecision {
    /// Counts what became of the question, and how long that took.
    pub(super) fn count(self, outcome: Metric, ctx: &Context<'_>) {
        ctx.counters.increment(outcome);
        ctx.counters.observe(VERDICT_TIME, ctx.now.instant.since(self.since.instant()));
    }
}
