//! The kinds of sockets, what each says before it falls silent, and its deadline.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::crowd::{PrefixGroup, Shape, connect, say, upgraded};
use crate::support::{masked, request, token};
use crate::world::World;

/// A socket that is of no use to anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Connected, half of them to the TLS listener, and silent.
    Connected,
    /// A ClientHello: half of them send one half of it, the others all.
    MidTls,
    /// Half a request head.
    HalfHead,
    /// Upgraded on a route that awaits the token in the first message.
    Upgraded,
    /// Refused and told so; neither reads nor closes.
    Refused,
    /// Authenticated; the backend floods it, and it does not read.
    SlowReader,
}

const SECOND: Duration = Duration::from_secs(1);

impl Kind {
    pub const ALL: [Kind; 6] = [
        Kind::Connected,
        Kind::MidTls,
        Kind::HalfHead,
        Kind::Upgraded,
        Kind::Refused,
        Kind::SlowReader,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Connected => "connected and silent",
            Kind::MidTls => "mid-TLS",
            Kind::HalfHead => "half a head",
            Kind::Upgraded => "upgraded but silent",
            Kind::Refused => "refused and not closing",
            Kind::SlowReader => "slow reader",
        }
    }

    /// The default deadlines, in the order in which they apply.
    pub fn deadline(self) -> Duration {
        match self {
            // TLS: 3 s. Plain: the kernel's own second (TCP_DEFER_ACCEPT), then 2 s.
            Kind::Connected => SECOND + 2 * SECOND,
            Kind::MidTls => 3 * SECOND,
            // The head's, then the linger after the 408.
            Kind::HalfHead => 2 * SECOND + SECOND,
            // The authentication's, then the linger after the close frame.
            Kind::Upgraded => 5 * SECOND + SECOND,
            Kind::Refused => SECOND,
            Kind::SlowReader => 10 * SECOND,
        }
    }

    /// By which deadline the gateway says that it ended so many. Slow readers beyond the number
    /// of send slots lose their connection before their deadline, for the same cause.
    pub fn counts(self, count: usize) -> Vec<(String, usize)> {
        let stages: &[(&str, usize)] = match self {
            Kind::Connected => &[("request_head", 2), ("tls_handshake", 2)],
            Kind::MidTls => &[("tls_handshake", 1)],
            Kind::HalfHead => &[("request_head", 1), ("linger", 1)],
            Kind::Upgraded => &[("authenticating", 1), ("linger", 1)],
            Kind::Refused => &[("linger", 1)],
            Kind::SlowReader => {
                return vec![("portcullis_closes_total{cause=\"slow_consumer\"}".into(), count)];
            }
        };
        let series = |stage| format!("portcullis_deadline_closes_total{{stage=\"{stage}\"}}");
        stages.iter().map(|&(stage, of)| (series(stage), count / of)).collect()
    }

    /// Opens so many, and has each say what it says.
    pub fn open(self, world: &World, count: usize) -> PrefixGroup {
        let (plain, tls) = (world.plain, world.tls);
        match self {
            Kind::Connected => PrefixGroup::open(count, |number| {
                connect([plain, tls][number % 2], number, Shape::default())
            }),
            Kind::MidTls => {
                let hello = world.client_hello();
                let parts = [&hello[..hello.len() / 2], &hello[..]];
                PrefixGroup::open(count, |number| say(tls, number, parts[number % 2]))
            }
            Kind::HalfHead => {
                let head = request("/first", "");
                let half = &head.as_bytes()[..head.len() / 2];
                PrefixGroup::open(count, |number| say(plain, number, half))
            }
            Kind::Upgraded => {
                let head = request("/first", "");
                PrefixGroup::open(count, |number| upgraded(say(plain, number, head.as_bytes())?))
            }
            Kind::Refused => {
                let fields = format!("X-Token: {}\r\n", token("forged"));
                let head = request("/header", &fields);
                PrefixGroup::open(count, |number| upgraded(say(plain, number, head.as_bytes())?))
            }
            Kind::SlowReader => {
                let fields = format!("X-Token: {}\r\n", token("good"));
                let head = request("/header", &fields);
                let flood = masked(0x81, b"flood");
                PrefixGroup::open(count, |number| {
                    // Small, so that 15,000 full ones do not fill the kernel's memory for TCP.
                    let shape = Shape { small: Some((4096, 536)) };
                    let mut stream = connect(plain, number, shape)?;
                    stream.write_all(head.as_bytes())?;
                    let mut stream = upgraded(stream)?;
                    stream.write_all(&flood)?;
                    Ok(stream)
                })
            }
        }
    }

    /// When the last one's deadline began.
    pub fn last_progress(self, world: &World) -> Instant {
        match self {
            Kind::SlowReader => world.backend.wait_until_stuck(),
            _ => Instant::now(),
        }
    }
}
