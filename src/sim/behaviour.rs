//! What a fake client is to do, drawn by the scenario.

use std::net::Ipv4Addr;

use super::tokens::{Carriage, TokenKind};

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Exchanges its messages and closes in order.
    Honest,
    /// Likewise, with its messages in pieces and pings between them.
    Fragmenter,
    /// Likewise, and pings often.
    Pinger,
    /// Likewise, but reads a little at a time.
    SlowReader,
    /// Presents this token and expects to be refused.
    Refused(TokenKind),
    /// Refused, but neither answers the close nor goes.
    Lingerer(TokenKind),
    /// Says nothing from the start.
    SilentAtStart,
    /// Sends half a request head.
    HalfHead,
    /// Upgrades and never sends the first message with its token.
    SilentAfterUpgrade,
    /// Is let in and says nothing more, not even pongs.
    SilentWhenOpen,
    /// Is let in, asks for echoes and reads none of them.
    NeverReads,
    /// Goes without a word after a while, with RST if set.
    Dropper(bool),
    /// Sends FIN once its messages are sent, without a close frame.
    HalfCloser,
    /// Sends bytes that are no request.
    Garbage,
    /// Is let in and breaks RFC 6455.
    FrameBreaker,
}

impl Behaviour {
    /// Whether such a client must succeed once nothing goes wrong any more.
    pub fn is_honest(self) -> bool {
        use Behaviour::*;
        matches!(self, Honest | Fragmenter | Pinger | SlowReader)
    }

    /// Whether its token is one that the gateway must accept.
    pub fn is_valid(self) -> bool {
        use Behaviour::*;
        match self {
            Honest | Fragmenter | Pinger | SlowReader => true,
            SilentWhenOpen | NeverReads | Dropper(_) | HalfCloser | FrameBreaker => true,
            Refused(_) | Lingerer(_) | SilentAtStart | HalfHead | SilentAfterUpgrade | Garbage => {
                false
            }
        }
    }

    pub(super) fn token(self) -> TokenKind {
        match self {
            Behaviour::Refused(kind) | Behaviour::Lingerer(kind) => kind,
            _ => TokenKind::Good,
        }
    }
}

/// What a client is to do, drawn by the world.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How it behaves.
    pub behaviour: Behaviour,
    /// How it carries its token.
    pub carriage: Carriage,
    /// Messages in one connection.
    pub messages: u32,
    /// Largest message, in bytes.
    pub size_max: usize,
    /// Most messages without an echo.
    pub window: u32,
    /// Mean pause between messages, in nanoseconds.
    pub pause: u64,
    /// Connections that it makes, one after the other.
    pub lives: u16,
    /// When the first one begins.
    pub begins: u64,
    /// Its tokens run out soon.
    pub brief: bool,
    /// It is an adversary's, from this address, and is back as soon as it is thrown out.
    pub floods_from: Option<Ipv4Addr>,
}
