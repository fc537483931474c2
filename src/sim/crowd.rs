//! A crowd: one worker with very many connections over a ring in memory that answers as fast as
//! it can, to see what one turn costs when something concerns all of them. Nothing is random and
//! nothing goes wrong here: that is what [`Simulation`](super::Simulation) is for.

mod ring;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use self::ring::CrowdRing;
use super::memory::RingSizes;
use crate::base::random::Random;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::counters::{Counters, Metric};
use crate::protocol::cause::Cause;
use crate::protocol::jwt::{self, Algorithm, JwtKey};
use crate::protocol::revocation::{Hasher, Revocation, RevocationSet, Target};
use crate::ring::Ring;
use crate::settings::Settings;
use crate::settings::load::{Environment, FileContents, load};
use crate::worker::mailbox::{ControlMailbox, Plan, Report, WorkerOrder, mailboxes};
use crate::worker::{Turn, Worker, WorkerOptions};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const UNIX: u64 = 1_750_000_000;

/// What happens to all connections in one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// The gateway drains, over two seconds.
    Drain,
    /// A reload shortens the idle deadline below what every client has been silent for.
    ShorterDeadlines,
    /// Reloads change the order of the routes, one soon after the other.
    RoutesMove,
    /// Every token is revoked.
    RevokeAll,
    /// One of two links is lost, with half of the sessions.
    LinkLost,
    /// Every client is to be pinged, and none reads.
    NoSlots,
}

impl Happening {
    /// All of them.
    pub const ALL: [Happening; 6] = [
        Happening::Drain,
        Happening::ShorterDeadlines,
        Happening::RoutesMove,
        Happening::RevokeAll,
        Happening::LinkLost,
        Happening::NoSlots,
    ];
}

/// What turns took, by the clock that the caller brings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    /// Turns of the worker.
    pub turns: u64,
    /// All of them together.
    pub total: Duration,
    /// The longest.
    pub longest: Duration,
    /// Time of the world in which that was, from the first turn to the last.
    pub world: Duration,
}

/// A worker with a crowd.
pub struct Crowd {
    worker: Worker<CrowdRing>,
    control: ControlMailbox,
    counters: Arc<Counters>,
    clients: u32,
    clock: fn() -> Duration,
    took: Took,
    stopped: bool,
    /// Closes that were reported: cause, route, and which of the requests it was, by its port.
    closes: BTreeMap<(&'static str, Option<u16>, u16), u64>,
}

impl Crowd {
    /// A worker that sweeps `sweep_slots` in one turn, with so many open clients, each with a
    /// session on one of two links. `clock` measures turns.
    pub fn new(clients: u32, sweep_slots: u32, clock: fn() -> Duration) -> Crowd {
        let settings = settings(["/a", "/b"], "");
        let mut crowd = Crowd::nobody(settings, clients, sweep_slots, clock);
        crowd.turn_until(|crowd| crowd.counters.value(Metric::LinksReady) == 2);
        crowd.worker.ring().connect(clients, vec![head("/a"), head("/b")]);
        crowd.turn_until(|crowd| crowd.open() == u64::from(crowd.clients));
        crowd.took = Took::default();
        crowd
    }

    /// Likewise before any client has come.
    fn nobody(
        settings: Settings,
        clients: u32,
        sweep_slots: u32,
        clock: fn() -> Duration,
    ) -> Crowd {
        Crowd::with_room(settings, clients, sweep_slots, clock, 1 << 30)
    }

    /// Likewise with room for so many bytes of output.
    fn with_room(
        settings: Settings,
        clients: u32,
        sweep_slots: u32,
        clock: fn() -> Duration,
        queue_bytes_max: u64,
    ) -> Crowd {
        let settings = Arc::new(settings);
        let counters = Arc::new(Counters::default());
        let set = RevocationSet::new(Hasher::new(&[9; 32]));
        let (control, mailbox) =
            mailboxes(Plan::new(Arc::clone(&settings), Arc::default(), Arc::new(set.snapshot())));
        // The gateway's numbers, and fewer slots than many clients.
        let slots = clients.div_ceil(16).max(clients.min(48)).min(2048) as u16;
        let sizes = RingSizes {
            buffers: [4096, 64],
            slots: [slots, 16],
            descriptors: usize::MAX,
            reuse_descriptors: false,
            listeners: 1,
        };
        let ring = CrowdRing::new(sizes, UnixTime::from_seconds(UNIX));
        let options = WorkerOptions {
            index: 0,
            instance: *b"a worker's crowd",
            epoch: UNIX * 1000,
            generation_bits: 24,
            workers: 1,
            descriptors_max: u32::MAX,
            queue_bytes_max,
            sweep_slots,
        };
        let random = Random::from_number(1);
        let worker = Worker::new(ring, settings, Arc::clone(&counters), mailbox, random, options);
        Crowd {
            worker,
            control,
            counters,
            clients,
            clock,
            took: Took::default(),
            stopped: false,
            closes: BTreeMap::new(),
        }
    }

    /// Clients that are open.
    pub fn open(&self) -> u64 {
        self.counters.value(Metric::StageOpen)
    }

    /// How many connections have ended for a cause.
    pub fn closed(&self, cause: Cause) -> u64 {
        self.counters.closes(cause)
    }

    /// Lets it happen, sees it through, and says what the turns took.
    pub fn happen(&mut self, happening: Happening) -> Took {
        let all = u64::from(self.clients);
        match happening {
            Happening::Drain => {
                let window = Duration::from_secs(2);
                self.plan(|plan| plan.order = WorkerOrder::Drain { window });
                self.turn_until(|crowd| crowd.stopped);
                assert_eq!(self.closed(Cause::GoingAway), all);
            }
            Happening::ShorterDeadlines => {
                self.pass(Duration::from_secs(5));
                self.reload(["/a", "/b"], "ping_interval = \"1s\"\nidle = \"2s\"");
                self.turn_until(|crowd| crowd.worker.connections() == 0);
                assert_eq!(self.closed(Cause::Idle), all);
            }
            Happening::RoutesMove => {
                self.reload(["/b", "/a"], "");
                self.turn();
                self.reload(["/b", "/new"], "");
                self.pass(Duration::from_secs(1));
            }
            Happening::RevokeAll => {
                self.revoke_all();
                self.turn_until(|crowd| crowd.open() == 0);
                self.pass(Duration::from_secs(3));
                assert_eq!(self.closed(Cause::TokenRevoked), all);
            }
            Happening::LinkLost => {
                self.worker.ring().lose_link(0);
                self.pass(Duration::from_secs(4));
                assert_eq!(self.closed(Cause::BackendUnavailable), all / 2);
                assert_eq!(self.counters.value(Metric::LinksReady), 2, "the link comes back");
            }
            Happening::NoSlots => {
                self.worker.ring().stalls = true;
                // Past the ping interval, to the first write stalls.
                self.pass(Duration::from_secs(40));
                assert!(self.closed(Cause::SlowConsumer) > 0);
                assert!(self.counters.value(Metric::SendStarved) > 0);
            }
        }
        self.took
    }

    fn plan(&self, change: impl FnOnce(&mut Plan)) {
        self.control.publish(self.control.latest().changed(change));
    }

    fn reload(&self, routes: [&str; 2], deadlines: &str) {
        let settings = Arc::new(settings(routes, deadlines));
        self.plan(|plan| plan.settings = settings);
    }

    fn revoke_all(&self) {
        let mut set = RevocationSet::new(Hasher::new(&[9; 32]));
        let target = Target::Subject { subject: "crowd".into(), issued_before: None };
        let revocation = Revocation { target, lapses: UnixTime::from_seconds(UNIX * 2) };
        set.insert(revocation, 1, UnixTime::from_seconds(UNIX)).expect("there is room for one");
        self.plan(|plan| plan.revoked = Arc::new(set.snapshot()));
    }

    /// One turn of the worker.
    fn turn(&mut self) {
        let world = self.worker.ring().now().instant;
        let began = (self.clock)();
        self.stopped = self.worker.tick() == Turn::Stopped;
        let took = (self.clock)().saturating_sub(began);
        self.took.turns += 1;
        self.took.total += took;
        self.took.longest = self.took.longest.max(took);
        self.took.world += self.worker.ring().now().instant.since(world);
        while let Some(report) = self.control.report() {
            if let Report::Closed(record) = report {
                let port = record.peer.map_or(0, |peer| peer.port());
                *self.closes.entry((record.cause.label(), record.route, port)).or_default() += 1;
            }
        }
    }

    fn turn_until(&mut self, is_enough: impl Fn(&Self) -> bool) {
        let turns = self.took.turns;
        while !is_enough(self) {
            self.turn();
            assert!(self.took.turns - turns < 2_000_000, "it takes too many turns");
        }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.took.world + time;
        self.turn_until(|crowd| crowd.took.world >= until || crowd.stopped);
    }
}

/// Settings with these routes, of which each has one token carrier.
fn settings(routes: [&str; 2], deadlines: &str) -> Settings {
    struct Nothing;
    impl Environment for Nothing {
        fn read(&self, _: &Path) -> io::Result<FileContents> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn variable(&self, _: &str) -> Option<String> {
            None
        }

        fn unix_seconds(&self) -> u64 {
            UNIX
        }
    }
    let routes = routes.map(|path| {
        format!(
            "[[route]]\npath = \"{path}\"\norigins = []\norigin_absent = \"allow\"\nauth = \"app\"\n\
             backend = \"main\"\n"
        )
    });
    let text = format!(
        r#"
        listener = [{{ address = "127.0.0.1:8080" }}]
        backend = [{{ name = "main", endpoints = ["127.0.0.1:7000", "127.0.0.1:7001"] }}]
        [limits]
        connections_max = 10_000_000
        close_lines_per_second = 1_000_000
        [deadlines]
        # The backends answer nothing.
        link_ping = "10m"
        {deadlines}
        [[auth]]
        name = "app"
        kind = "jwt"
        carriers = ["authorization"]
        keys = [{{ id = "k", secret = "{SECRET}" }}]
        {}{}
        "#,
        routes[0], routes[1]
    );
    match load(&text, Path::new("crowd.toml"), &Nothing) {
        Ok(loaded) => loaded.settings,
        Err(problems) => panic!("{}", problems[0]),
    }
}

/// A request with a good token.
fn head(path: &str) -> Vec<u8> {
    let key = JwtKey {
        id: Some("k".into()),
        algorithm: Algorithm::HS256,
        secret: Secret::new(SECRET.into()),
    };
    let claims = format!(r#"{{"sub":"crowd","exp":{}}}"#, UNIX + 86_400);
    let token = jwt::mint(&key, claims.as_bytes());
    format!(
        "GET {path} HTTP/1.1\r\nHost: gate\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::Instant;
    use crate::protocol::link::{SessionId, data_flags, encode_data};
    use crate::ring::BufferGroup;
    use crate::settings::TlsListener;
    use crate::sim::tls::{self, TlsClient};

    /// As [`Crowd::happen`] in benchmarks, of which the assertions count here: with few slots in a
    /// turn every sweep takes many turns.
    #[test]
    fn sweeps_of_many_turns_reach_every_connection() {
        for happening in Happening::ALL {
            let mut crowd = Crowd::new(1000, 7, Duration::default);
            crowd.happen(happening);
        }
    }

    fn tls_settings() -> Settings {
        let mut settings = settings(["/a", "/b"], "");
        settings.listeners[0].tls =
            Some(TlsListener { config: tls::server(), not_after_s: u64::MAX });
        settings
    }

    fn hello() -> Vec<u8> {
        let mut hello = Vec::new();
        TlsClient::new().send(b"", &mut hello);
        assert!(hello.len() > 100);
        hello
    }

    /// However many strangers shake hands, no receive buffer waits for their turns: clients that
    /// are open find all of them.
    #[test]
    fn handshakes_that_wait_hold_no_receive_buffers() {
        let mut settings = tls_settings();
        settings.limits.handshakes_per_tick = 1;
        let mut crowd = Crowd::nobody(settings, 1000, 8192, Duration::default);
        crowd.worker.ring().connect(1000, vec![hello()]);
        let (mut turns, mut waited) = (0, 0);
        while crowd.worker.ring().sends < 1000 {
            crowd.turn();
            turns += 1;
            let ring = crowd.worker.ring();
            let buffers = ring.buffers(BufferGroup::Client);
            assert_eq!(buffers.free, buffers.total, "after {turns} turns");
            assert!(ring.sends <= turns, "one handshake in a turn");
            waited = waited.max(crowd.worker.connections() as u64 - crowd.worker.ring().sends);
        }
        assert!(waited > 900, "only {waited} waited");
    }

    /// The second's budget is for what costs arithmetic: strangers who send a part of a hello
    /// take nothing from those who send a whole one.
    #[test]
    fn parts_of_hellos_do_not_use_up_the_rate() {
        let mut settings = tls_settings();
        settings.limits.tls_handshakes_per_second = Some(50);
        let mut crowd = Crowd::nobody(settings, 1000, 8192, Duration::default);
        let part = hello()[..hello().len() - 1].to_vec();
        crowd.worker.ring().connect(1000, vec![vec![22], part]);
        crowd.turn_until(|crowd| crowd.worker.connections() == 1000);
        crowd.pass(Duration::from_millis(10));
        assert_eq!(crowd.counters.value(Metric::TlsRateRefusals), 0);
        assert_eq!(crowd.worker.ring().sends, 0, "no work was done for them");
        crowd.worker.ring().connect(20, vec![hello()]);
        crowd.pass(Duration::from_millis(10));
        assert_eq!(crowd.worker.ring().sends, 20, "all of these are answered");
        crowd.worker.ring().connect(100, vec![hello()]);
        crowd.pass(Duration::from_millis(10));
        let refused = crowd.counters.value(Metric::TlsRateRefusals);
        assert!((50..100).contains(&refused), "{refused} refused beyond the rate");
    }

    /// A worker for 1,000 connections with so many open ones.
    fn filled(open: u32) -> Crowd {
        let mut settings = settings(["/a", "/b"], "");
        settings.limits.connections_max = 1000;
        settings.limits.unauthenticated_max = 500;
        let mut crowd = Crowd::nobody(settings, open, 8192, Duration::default);
        crowd.turn_until(|crowd| crowd.counters.value(Metric::LinksReady) == 2);
        crowd.worker.ring().connect(open, vec![head("/a")]);
        crowd.turn_until(|crowd| crowd.open() == u64::from(open));
        crowd
    }

    fn address(high: u8, number: u32) -> std::net::SocketAddr {
        let [_, _, c, d] = number.to_be_bytes();
        std::net::SocketAddr::from(([198, high, c, d], 4000))
    }

    /// Strangers that say nothing give way before a newcomer is refused, also where all places
    /// together are short, and not only those of the unauthenticated.
    #[test]
    fn strangers_do_not_hold_the_last_places() {
        // Open ones, strangers a second, from so many addresses.
        for (open, rate, addresses) in [
            (900, 0, 1),
            (930, 8, 1),
            (900, 100, 1),
            (900, 600, 1),
            (900, 2000, 20),
            (0, 1000, 200),
        ] {
            let mut crowd = filled(open);
            let mut strangers = 0;
            for step in 0..400 {
                let due = step * rate / 100;
                while strangers < due {
                    let from = address(18, strangers % addresses);
                    crowd.worker.ring().arrive(from, Duration::from_millis(50), Vec::new());
                    strangers += 1;
                }
                // Two honest newcomers a second, each 50 ms away.
                if step % 50 == 0 {
                    let from = address(51, step);
                    crowd.worker.ring().arrive(from, Duration::from_millis(50), head("/a"));
                }
                crowd.worker.ring().wake =
                    crowd.worker.ring().now().instant + Duration::from_millis(10);
                crowd.pass(Duration::from_millis(10));
            }
            crowd.pass(Duration::from_millis(100));
            let row = format!("{open} open, {rate} strangers a second from {addresses}");
            assert_eq!(crowd.open(), u64::from(open) + 8, "{row}");
            assert!(crowd.worker.connections() <= 1000, "{row}");
        }
    }

    /// Where the room for output is used up, those lose it that hold it and do not read, and not
    /// those to which something is said next.
    #[test]
    fn clients_that_do_not_read_pay_for_the_room_that_they_hold() {
        let settings = settings(["/a", "/b"], "");
        let mut crowd = Crowd::with_room(settings, 40, 8192, Duration::default, 128 * 1024);
        crowd.turn_until(|crowd| crowd.counters.value(Metric::LinksReady) == 2);
        crowd.worker.ring().connect(40, vec![head("/a"), head("/b")]);
        crowd.turn_until(|crowd| crowd.open() == 40);
        crowd.worker.ring().stalls = true;
        crowd.worker.ring().stalls_half = true;
        let flags = data_flags::FIRST | data_flags::FIN;
        for _ in 0..20 {
            // Sessions were opened in turn on both links.
            for session in 0..20 {
                for link in 0..2 {
                    let mut frame = Vec::new();
                    encode_data(SessionId::new(session, 0), flags, &[7; 10_000], &mut frame);
                    crowd.worker.ring().say(link, &frame);
                }
                crowd.turn();
                crowd.turn();
            }
        }
        let ports: std::collections::BTreeSet<u16> =
            crowd.closes.keys().map(|(_, _, port)| *port).collect();
        assert_eq!(ports, [1024].into(), "{:?}", crowd.closes);
        assert!(crowd.closed(Cause::SlowConsumer) >= 10, "{:?}", crowd.closes);
        assert!(crowd.open() >= 20);
    }

    /// Where every place is a client's that has authenticated, newcomers hear so: one of each
    /// address, without a look at their tokens, and no more than the reserve has places.
    #[test]
    fn newcomers_beyond_all_places_are_told() {
        let mut crowd = filled(938);
        let verified = crowd.counters.value(Metric::TokensAccepted);
        let arrive = |crowd: &mut Crowd, number: u32| {
            crowd.worker.ring().arrive(address(51, number), Duration::ZERO, head("/a"));
            crowd.worker.ring().wake = crowd.worker.ring().now().instant + Duration::from_millis(1);
            crowd.pass(Duration::from_millis(2));
        };
        arrive(&mut crowd, 0);
        let refused = |crowd: &Crowd| crowd.counters.value(Metric::StageRefused);
        assert_eq!(refused(&crowd), 1, "it has its answer, and is waited for");
        arrive(&mut crowd, 0);
        assert_eq!(crowd.counters.value(Metric::AcceptRefused), 1, "one of an address");
        for number in 1..70 {
            arrive(&mut crowd, number);
        }
        assert_eq!(refused(&crowd), 62, "the reserve");
        assert_eq!(crowd.counters.value(Metric::AcceptRefused), 1 + 8);
        assert_eq!(crowd.counters.value(Metric::TokensAccepted), verified);
        assert_eq!(crowd.counters.value(Metric::SessionsOpened), 938);
        assert_eq!(crowd.open(), 938, "nobody who was let in gave way");
        crowd.worker.ring().wake = Instant::NEVER;
        crowd.pass(Duration::from_secs(12));
        assert_eq!(crowd.closed(Cause::OverCapacity), 62);
        assert_eq!(crowd.worker.connections(), 938);
    }

    /// A client that the sweep has not reached is logged under the route that it is on, through
    /// two changes of the order; one whose route is gone is logged without.
    #[test]
    fn routes_hold_while_they_move() {
        const OLD: (u16, u16) = (1024, 1025);
        for turns in [0, 1, 30, 142, 200] {
            let mut crowd = Crowd::new(1000, 7, Duration::default);
            crowd.reload(["/b", "/a"], "");
            for _ in 0..turns {
                crowd.turn();
            }
            // The sweep for this one begins when the other is over.
            crowd.reload(["/new", "/b"], "");
            crowd.turn();
            crowd.revoke_all();
            crowd.turn_until(|crowd| crowd.worker.connections() == 0);
            let of = |route, port| crowd.closes.get(&("token_revoked", route, port)).copied();
            let of_b = of(Some(0), OLD.1).unwrap_or(0) + of(Some(1), OLD.1).unwrap_or(0);
            let of_a = of(None, OLD.0).unwrap_or(0) + of(Some(1), OLD.0).unwrap_or(0);
            assert_eq!((of_a, of_b), (500, 500), "after {turns} turns: {:?}", crowd.closes);
            assert_eq!(of(Some(0), OLD.0), None, "`/a` was never first again");
        }
    }
}
