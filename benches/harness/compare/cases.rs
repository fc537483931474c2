//! What a comparison consists of.

use std::time::Duration;

use crate::results::Case;
use crate::servers::peers::{Kind, Tls};

/// The work of a case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Messages there and back, as fast as they go.
    Echo {
        /// Payload bytes.
        size: u32,
        /// Clients.
        connections: u64,
    },
    /// Messages there and back, on schedule.
    Latency {
        /// Payload bytes.
        size: u32,
        /// Clients.
        connections: u64,
        /// Messages per second; `None`: half of what the peer reached.
        rate: Option<f64>,
    },
    /// Messages that are counted, not echoed.
    FanIn {
        /// Payload bytes.
        size: u32,
        /// Clients.
        connections: u64,
    },
    /// Connect, upgrade, close.
    Open {
        /// At once.
        concurrency: u64,
        /// How.
        tls: Tls,
    },
    /// Verification alone, without a socket.
    Token {
        /// A good one, or a forged one.
        accepted: bool,
    },
    /// Connections that stay and say nothing, on a fresh server.
    Idle {
        /// Clients.
        connections: u64,
        /// How.
        tls: Tls,
        /// For how long.
        hold: Duration,
    },
    /// Junk beside honest clients, on a fresh server.
    Flood {
        /// How long it lasts.
        duration: Duration,
    },
}

/// A case that is to be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// For files and options.
    pub id: String,
    /// For people.
    pub title: String,
    /// What is divided by.
    pub event: &'static str,
    /// What is done.
    pub work: Work,
}

/// Clients of the large cases; the proxies need two sockets for each.
pub const MANY: u64 = 8000;

/// Messages per second at which no peer is near saturation, nor the load side, which shares its
/// core with backends.
const EASY_RATE: f64 = 15_000.0;

/// The scenarios of `--cases`, in the order in which they run: traffic first, then what needs
/// fresh servers.
pub const SCENARIOS: [&str; 8] =
    ["echo", "latency", "open", "tls-open", "fan-in", "token", "idle", "flood"];

impl Work {
    /// Its scenario.
    pub fn scenario(&self) -> &'static str {
        match self {
            Work::Echo { .. } => "echo",
            Work::Latency { .. } => "latency",
            Work::FanIn { .. } => "fan-in",
            Work::Open { tls: Tls::Plain, .. } => "open",
            Work::Open { .. } => "tls-open",
            Work::Token { .. } => "token",
            Work::Idle { .. } => "idle",
            Work::Flood { .. } => "flood",
        }
    }

    /// Whether each run starts a server of its own.
    pub fn is_fresh(&self) -> bool {
        matches!(self, Work::Idle { .. } | Work::Flood { .. })
    }

    /// Rounds: what starts afresh measures bytes or takes long, and is done once.
    pub fn rounds(&self, wanted: u32) -> u32 {
        if self.is_fresh() { 1 } else { wanted }
    }

    /// Why a kind is left out; `None` when it takes part.
    pub fn leaves_out(&self, kind: Kind) -> Option<&'static str> {
        let tls = match self {
            Work::Open { tls, .. } | Work::Idle { tls, .. } => *tls,
            _ => Tls::Plain,
        };
        let gateway = matches!(kind, Kind::Gateway);
        let large = matches!(self, Work::Idle { connections, .. } if *connections > MANY);
        match self {
            _ if tls != Tls::Plain && !kind.has_tls() => Some("has no TLS"),
            Work::Token { .. } if !gateway => Some("verifies no tokens"),
            Work::Flood { .. } if !gateway && kind != Kind::Nginx => {
                Some("the flood is for the gateway, and nginx beside it")
            }
            _ if large && !gateway && kind != Kind::Ring => {
                Some("needs two descriptors a client or has one thread: not so many clients")
            }
            _ => None,
        }
    }
}

impl Spec {
    /// An empty case to fill.
    pub fn case(&self) -> Case {
        Case {
            id: self.id.clone(),
            scenario: self.work.scenario().to_owned(),
            title: self.title.clone(),
            event: self.event.to_owned(),
            ..Case::default()
        }
    }
}

/// Every case, or the few that show that everything works.
pub fn all(quick: bool) -> Vec<Spec> {
    let mut specs = Vec::new();
    let mut add = |id: String, title: String, event: &'static str, work: Work| {
        specs.push(Spec { id, title, event, work });
    };
    let echoes: &[(u32, u64)] = match quick {
        true => &[(64, 1000)],
        false => &[(64, 1000), (64, 8000), (1024, 1000), (16_384, 1000)],
    };
    for &(size, connections) in echoes {
        add(
            format!("echo-{size}-{connections}"),
            format!("Echo: {size} bytes, {connections} connections, closed loop"),
            "message",
            Work::Echo { size, connections },
        );
    }
    add(
        "latency-64-1000".into(),
        "Latency at half of the peer's own rate: 64 bytes, 1000 connections, open loop".into(),
        "message",
        Work::Latency { size: 64, connections: 1000, rate: None },
    );
    add(
        "latency-same-rate".into(),
        format!("Latency at {EASY_RATE} messages a second: 64 bytes, 1000 connections, open loop"),
        "message",
        Work::Latency { size: 64, connections: 1000, rate: Some(EASY_RATE) },
    );
    for (id, how, tls) in [
        ("open-64", "plain", Tls::Plain),
        ("tls-open-full", "TLS, full handshakes", Tls::Full),
        ("tls-open-resumed", "TLS, resumed sessions", Tls::Resumed),
    ] {
        let title = format!("Connect, upgrade, close: 64 at once, {how}");
        add(id.into(), title, "connection", Work::Open { concurrency: 64, tls });
    }
    add(
        "fan-in-64-1000".into(),
        "Fan-in: 64 bytes, 1000 connections, one answer to 64 messages".into(),
        "message",
        Work::FanIn { size: 64, connections: 1000 },
    );
    for (id, accepted) in [("token-accepted", true), ("token-refused", false)] {
        let title = format!("Verification of a 200-byte HS256 token, {}", &id[6..]);
        add(id.into(), title, "token", Work::Token { accepted });
    }
    idle(quick, &mut add);
    let duration = Duration::from_secs(if quick { 10 } else { 60 });
    let title = format!("Flood of {} s beside honest clients", duration.as_secs());
    add("flood".into(), title, "connection", Work::Flood { duration });
    specs
}

fn idle(quick: bool, add: &mut impl FnMut(String, String, &'static str, Work)) {
    let (few, plain, tls) = match quick {
        true => (2000, 20_000, 10_000),
        false => (MANY, 55_000, 20_000),
    };
    // Every peer takes part in the first two, so they are shorter.
    let (short, long) = if quick { (3, 3) } else { (10, 30) };
    for (id, how, connections, tls, hold) in [
        ("idle-plain", "plain", few, Tls::Plain, short),
        ("idle-tls", "TLS", few, Tls::Full, short),
        ("idle-large-plain", "plain", plain, Tls::Plain, long),
        ("idle-large-tls", "TLS", tls, Tls::Full, long),
    ] {
        let hold = Duration::from_secs(hold);
        let title = format!("Memory: {connections} idle connections, {how}, a fresh server");
        add(id.into(), title, "connection", Work::Idle { connections, tls, hold });
    }
}

/// The cases that `--cases` names, by scenario or by name.
///
/// # Errors
/// Lists what there is when a name is not known.
pub fn chosen(specs: Vec<Spec>, names: &[String]) -> Result<Vec<Spec>, String> {
    let known = |name: &String| {
        specs.iter().any(|spec| spec.id == *name || spec.work.scenario() == name.as_str())
    };
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let ids: Vec<&str> = specs.iter().map(|spec| spec.id.as_str()).collect();
        return Err(format!(
            "--cases: there is no {unknown:?}; scenarios are {}; cases are {}",
            SCENARIOS.join(", "),
            ids.join(", ")
        ));
    }
    let wanted = |spec: &Spec| {
        names.is_empty()
            || names.iter().any(|name| spec.id == *name || spec.work.scenario() == name.as_str())
    };
    Ok(specs.into_iter().filter(wanted).collect())
}
