//! Clients, one in each stage of a connection, and what they see.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::report::Row;
use crate::support::{Client, End, Opcode, request};
use crate::world::World;

/// Messages in flight of the client that has some.
pub const IN_FLIGHT: u32 = 5;

/// A client in a stage.
pub struct Watched {
    stage: &'static str,
    client: Client,
    sent: u32,
    /// Whether it answers a close frame.
    answers: bool,
    upgraded: bool,
}

pub const SILENT: &str = "connected, silent";
pub const HALF_HEAD: &str = "half a head";
pub const FIRST: &str = "waits with its first message";
pub const VERDICT: &str = "waits for a verdict";
pub const IDLE: &str = "open, idle";
pub const BUSY: &str = "open, messages in flight";
pub const CLOSED: &str = "closed by the backend, does not answer";
pub const REFUSED: &str = "refused, does not answer";

/// One client in each stage. The backend sleeps `hold` before it answers the messages in flight.
pub fn one_of_each(world: &World, hold: Duration) -> Vec<Watched> {
    let address = world.child.address;
    let before = world.metric("portcullis_messages_total{direction=\"from_client\"}");
    let mut idle = Client::open(address, "/ws", "");
    idle.echo("hello");
    let mut busy = Client::open(address, "/ws", "");
    busy.text(&format!("sleep {}", hold.as_millis()));
    (0..IN_FLIGHT).for_each(|number| busy.text(&format!("message {number}")));
    let decision = Client::open(address, "/judged", "X-Token: slow_60000_accept_ada\r\n");
    let mut closed = Client::open(address, "/ws", "");
    closed.text("close 4000 bye");
    assert_eq!(closed.close_frame(), (Some(4000), "bye".into()));
    let mut refused = Client::open(address, "/first", "");
    refused.text("no token");
    refused.frame();
    assert_eq!(refused.close_frame(), (Some(4401), "token_malformed".into()));
    let first = Client::open(address, "/first", "");
    let mut half = Client::connect(address);
    half.write(&request("/ws", "").as_bytes()[..40]);
    let silent = Client::connect(address);
    let sent = before + 3 + u64::from(IN_FLIGHT);
    world.wait_metric("portcullis_messages_total{direction=\"from_client\"}", |n| n >= sent);
    world.wait_metric("portcullis_verdicts_awaited", |awaited| awaited == 1);
    let new = |stage, client| Watched { stage, client, sent: 0, answers: true, upgraded: true };
    vec![
        Watched { upgraded: false, ..new(SILENT, silent) },
        Watched { upgraded: false, ..new(HALF_HEAD, half) },
        new(FIRST, first),
        new(VERDICT, decision),
        new(IDLE, idle),
        Watched { sent: IN_FLIGHT, ..new(BUSY, busy) },
        Watched { answers: false, ..new(CLOSED, closed) },
        Watched { answers: false, ..new(REFUSED, refused) },
    ]
}

impl Watched {
    /// An open client with messages that it will see answered or not.
    pub fn open(stage: &'static str, client: Client, sent: u32) -> Watched {
        Watched { stage, client, sent, answers: true, upgraded: true }
    }

    /// Follows it to the end of its connection; says what it saw, and when that was.
    pub fn follow(mut self) -> JoinHandle<(Row, Instant)> {
        std::thread::spawn(move || {
            let (saw, answered) = match self.upgraded {
                true => self.frames(),
                false => (self.bytes(), 0),
            };
            (Row { stage: self.stage, saw, sent: self.sent, answered }, Instant::now())
        })
    }

    fn bytes(&mut self) -> String {
        let (bytes, end) = self.client.drain();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match text.split(' ').nth(1) {
            Some(status) => format!("{status}, {}", name(end)),
            None => name(end).to_owned(),
        }
    }

    fn frames(&mut self) -> (String, u32) {
        let (mut saw, mut answered) = (String::new(), 0);
        while let Some(frame) = self.client.frame() {
            match frame.opcode {
                Opcode::Text if frame.payload.starts_with(b"{\"type\":\"close\"") => {
                    saw += "told, "
                }
                Opcode::Text => {
                    let expected = format!("message {answered}");
                    assert_eq!(frame.payload, expected.as_bytes(), "in order, none left out");
                    answered += 1;
                }
                Opcode::Close => {
                    let code = frame.payload.first_chunk().map_or(0, |c| u16::from_be_bytes(*c));
                    let reason = String::from_utf8_lossy(frame.payload.get(2..).unwrap_or(b""));
                    saw += &format!("{code} {reason}, ");
                    if self.answers {
                        self.client.close(1000, "");
                    }
                }
                Opcode::Ping | Opcode::Pong => {}
                other => panic!("{other:?} in {}", self.stage),
            }
        }
        (saw + name(self.client.end()), answered)
    }
}

fn name(end: End) -> &'static str {
    match end {
        End::Fin => "FIN",
        End::Reset => "reset",
    }
}

/// Follows all to their ends.
pub fn follow_all(watched: Vec<Watched>) -> Vec<JoinHandle<(Row, Instant)>> {
    watched.into_iter().map(Watched::follow).collect()
}

/// What they saw. None ended later than so long after `since`.
pub fn ends(
    following: Vec<JoinHandle<(Row, Instant)>>,
    since: Instant,
    latest: Duration,
) -> Vec<Row> {
    let ended = following.into_iter().map(|thread| thread.join().expect("it ended"));
    ended
        .map(|(row, at)| {
            let took = at.saturating_duration_since(since);
            assert!(took <= latest, "{} ended {took:?} after, not {latest:?}", row.stage);
            row
        })
        .collect()
}
