//! What a load thread is asked to do.

use std::str::FromStr;
use std::time::Duration;

use crate::target::Target;

/// The parts of a run, in order. Load threads look at it once per turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Connections are opened, nothing is said.
    Opening = 0,
    /// Load runs, nothing is recorded.
    Warm = 1,
    /// Load runs and is recorded.
    Measure = 2,
    /// Nothing new is begun; answers are awaited.
    Drain = 3,
    /// The end.
    Stop = 4,
}

impl Phase {
    /// Reads a phase back from its number.
    pub fn from_number(number: u8) -> Phase {
        let all = [Phase::Opening, Phase::Warm, Phase::Measure, Phase::Drain, Phase::Stop];
        all[usize::from(number.min(4))]
    }
}

/// What connections do once they are open.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// Send messages and check that they come back.
    Echo {
        /// Payload bytes.
        size: usize,
        /// Text or binary.
        opcode: u8,
        /// Messages on their way per connection, at most.
        pipeline: u64,
        /// Messages per second of this worker; `None` sends the next when one came back.
        rate: Option<f64>,
    },
    /// Send messages that are not echoed; the server answers each batch with their number.
    FanIn {
        /// Payload bytes.
        size: usize,
        /// Messages to an answer.
        batch: u32,
    },
    /// Stay, and answer pings.
    Hold,
    /// Close again at once, and begin anew.
    Cycle,
    /// Junk kinds with their share of the connect rate, 0 to 1.
    Junk(Vec<(JunkKind, f64)>),
}

/// A connection that will never authenticate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JunkKind {
    /// Connects and says nothing.
    Silent,
    /// Sends half a request head.
    HalfHead,
    /// Completes TLS, then says nothing.
    TlsThenSilent,
    /// Upgrades without a token, then says nothing.
    UpgradeSilent,
    /// Sends 1 to 512 random bytes.
    Garbage,
    /// Connects, and resets the connection at once.
    Reset,
    /// Upgrades with a token of its own that nobody signed, and does not close.
    BadToken,
    /// The same, but always with the same token, as a client that replays a dead one.
    DeadToken,
}

impl JunkKind {
    /// All kinds.
    pub const ALL: [JunkKind; 8] = [
        JunkKind::Silent,
        JunkKind::HalfHead,
        JunkKind::TlsThenSilent,
        JunkKind::UpgradeSilent,
        JunkKind::Garbage,
        JunkKind::Reset,
        JunkKind::BadToken,
        JunkKind::DeadToken,
    ];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            JunkKind::Silent => "silent",
            JunkKind::HalfHead => "half-head",
            JunkKind::TlsThenSilent => "tls-then-silent",
            JunkKind::UpgradeSilent => "upgrade-silent",
            JunkKind::Garbage => "garbage",
            JunkKind::Reset => "reset",
            JunkKind::BadToken => "bad-token",
            JunkKind::DeadToken => "dead-token",
        }
    }
}

impl FromStr for JunkKind {
    type Err = String;

    fn from_str(text: &str) -> Result<JunkKind, String> {
        JunkKind::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names: Vec<&str> = JunkKind::ALL.iter().map(|kind| kind.name()).collect();
            format!("unknown kind {text:?}; there are {}", names.join(", "))
        })
    }
}

/// One load thread's orders.
#[derive(Clone)]
pub struct Plan {
    /// Where to.
    pub target: Target,
    /// What connections do.
    pub behaviour: Behaviour,
    /// Connections at once, at most.
    pub slots: u32,
    /// Connections in all; `None`: no end.
    pub connects: Option<u64>,
    /// Connects per second; `None`: as fast as they are answered.
    pub connect_rate: Option<f64>,
    /// Connections that may be opening at once.
    pub opening_max: u32,
    /// Source addresses to rotate over; 0 leaves the choice to the kernel.
    pub sources: usize,
    /// Tells the groups of a scenario apart by source address: 127.GROUP.WORKER.n.
    pub group: u8,
    /// Number of the thread in its group.
    pub worker: usize,
    /// Core to run on.
    pub core: Option<usize>,
    /// Longest time to become open.
    pub open_timeout: Duration,
    /// Bytes of one receive buffer.
    pub buffer_bytes: usize,
}
