//! What a link tells the worker.

use std::fmt;

use crate::base::slab::Key;
use crate::base::time::UnixTime;
use crate::connection::session::Fragment;
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::link::{LinkError, RefusalCode, Reject};
use crate::protocol::revocation::Revocation;

/// What a received frame means to the worker.
#[derive(Debug)]
pub enum Event<'a> {
    /// The handshake is done; sessions may be opened.
    Ready,
    /// A piece of a message for a client.
    Data {
        /// Whose session it is.
        client: Key,
        /// The piece.
        fragment: Fragment<'a>,
        /// What to return through [`Link::delivered`](super::Link::delivered) once the client has it.
        cost: u32,
    },
    /// The backend sent text that is not UTF-8: the session is to be closed.
    InvalidText {
        /// Whose session it is.
        client: Key,
    },
    /// The backend closed a session. The session is over; nothing need be said of it.
    Closed {
        /// Whose session it was.
        client: Key,
        /// The close code for the client; 0 when the backend named none.
        code: u16,
        /// The reason for the client, at most 123 bytes.
        reason: &'a str,
    },
    /// The backend set when a session's identity is over.
    Expire {
        /// Whose session it is.
        client: Key,
        /// When.
        expires: UnixTime,
    },
    /// The backend says that tokens are void.
    Revoke(Revocation),
    /// The backend says who an asked client is: its session is open.
    Accepted {
        /// Whose session it is.
        client: Key,
        /// Who it is.
        identity: Redacted<'a>,
    },
    /// The backend turns an asked client away. The session is over.
    Rejected {
        /// Whose session it was.
        client: Key,
        /// Why.
        reject: Reject<'a>,
    },
    /// The backend closed the session of an asked client without a decision.
    Declined {
        /// Whose session it was.
        client: Key,
    },
    /// A session may send again.
    SessionCredit {
        /// Whose session it is.
        client: Key,
    },
    /// Sessions that waited for the link may send again, see [`Link::take_waiting`](super::Link::take_waiting).
    LinkCredit,
    /// Nothing that the worker must act on.
    Routine,
}

/// An identity whose `Debug` says nothing of it.
pub struct Redacted<'a>(pub VerifiedIdentity<'a>);

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redacted")
    }
}

/// Why a link is given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The backend broke the protocol.
    #[error("the backend broke the link protocol: {0}")]
    Protocol(#[from] LinkError),
    /// The backend refused the handshake.
    #[error("the backend refused the link: {hint} (code {code})")]
    Refused {
        /// What the code means.
        hint: &'static str,
        /// The code.
        code: u16,
    },
    /// The backend does not have our key.
    #[error(
        "the backend's proof is wrong: both sides need the same secret_file, or neither must \
         have one"
    )]
    WrongProof(RefusalCode),
    /// The handshake took too long.
    #[error("no connection within deadlines.link_connect; is the backend listening there?")]
    TimedOut,
    /// Pings went unanswered.
    #[error(
        "the backend answered no ping for three times deadlines.link_ping, and read nothing of \
         what waits for it"
    )]
    Silent,
    /// It sends and does not read.
    #[error(
        "the backend reads so little that twice limits.link_output_max waits for it; is it \
         stopped, or flooding?"
    )]
    NotReading,
    /// It leaves sessions half closed.
    #[error("the backend did not answer the CLOSE of a session; every CLOSE is answered with one")]
    CloseUnanswered,
    /// The backend said that it goes away, and its last session is over.
    #[error("the backend is going away")]
    GoneAway,
    /// The gateway has drained and needs the link no more.
    #[error("the gateway has drained")]
    Drained,
    /// Revocations came faster than they can be taken.
    #[error("the backend revokes faster than revocations can be taken in")]
    TooManyRevocations,
    /// The connection ended.
    #[error("the connection ended")]
    Disconnected,
    /// The connection could not be made.
    #[error("cannot connect: {0}")]
    Connect(String),
}

/// What people should know of a link that is not given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// A whole ping interval went by after a PING.
    #[error(
        "the backend has answered no ping for deadlines.link_ping; after another such time the \
         gateway drops the link and closes its sessions"
    )]
    PingUnanswered,
    /// Clients' input waits, and no credit has come for any of them.
    #[error(
        "the backend has given no credit for deadlines.link_stall while clients wait to send \
         ({sessions}); is it stuck, or too slow?"
    )]
    NoCredit {
        /// How many clients.
        sessions: u32,
    },
}

/// Why a session cannot be opened on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Too much waits for the backend already: the client may come again.
    NotReading,
    /// The backend takes no frame of this size, and never will.
    TooLarge,
}

/// What [`Link::handle_deadline`](super::Link::handle_deadline) asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// Connect now.
    Connect,
    /// Say this of the link, which goes on.
    Warn(Warning),
    /// Give the connection up.
    Fail(Failure),
}
