//! What can go wrong in the simulated world, how often, and how often it did.

use crate::base::random::Random;

macro_rules! faults {
    ($( $(#[$doc:meta])* $name:ident = $label:literal, $rate_max:literal; )*) => {
        /// One kind of misfortune.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Fault { $( $(#[$doc])* $name, )* }

        impl Fault {
            /// Every fault with its label and the highest rate drawn, in chances of 10,000.
            pub const ALL: &'static [(Fault, &'static str, u32)] =
                &[ $( (Fault::$name, $label, $rate_max), )* ];
        }
    };
}

faults! {
    /// Accept found no descriptor (EMFILE); the connection stays in the backlog.
    AcceptExhausted = "accept_exhausted", 2000;
    /// The connection was gone before it was accepted (ECONNABORTED).
    AcceptAborted = "accept_aborted", 500;
    /// A receive found no free buffer. Counted when it happens; tiny pools make it happen.
    NoBuffers = "no_buffers", 0;
    /// A multishot receive ended although its socket lives (completion queue pressure).
    MultishotEnded = "multishot_ended", 1500;
    /// A receive took a few bytes only.
    ReceiveShort = "receive_short", 2500;
    /// A send completed although bytes of it remain.
    SendShort = "send_short", 1500;
    /// A send waited although there was room.
    SendPending = "send_pending", 1000;
    /// A send met a connection that had just been reset.
    SendReset = "send_reset", 30;
    /// A completion was held back.
    CompletionDelayed = "completion_delayed", 2000;
    /// A completion overtook those of other operations.
    CompletionReordered = "completion_reordered", 3000;
    /// The target of a cancellation was quicker: it completed on its own, or had more to say.
    CancelRace = "cancel_race", 5000;
    /// No socket listened (ECONNREFUSED).
    ConnectRefused = "connect_refused", 2500;
    /// A connect took long.
    ConnectSlow = "connect_slow", 2000;
    /// A connect was never answered.
    ConnectHung = "connect_hung", 1200;
    /// No descriptor for a connect.
    ConnectExhausted = "connect_exhausted", 2500;
    /// A client's connection was reset from outside.
    ClientReset = "client_reset", 150;
    /// A link's connection was reset from outside.
    LinkReset = "link_reset", 60;
    /// Bytes stopped moving in one direction of a connection for a while.
    PipeStalled = "pipe_stalled", 800;
    /// `enter` returned with nothing to say.
    SpuriousWake = "spurious_wake", 1000;
    /// The worker's thread did not run for a while.
    WorkerLate = "worker_late", 50;
    /// The wall clock jumped.
    WallJump = "wall_jump", 100;
    /// A backend ended its links and came back later.
    BackendRestart = "backend_restart", 60;
    /// A backend died in the middle of a frame.
    BackendTorn = "backend_torn", 40;
    /// A backend stopped reading and writing for a while.
    BackendStalled = "backend_stalled", 100;
    /// A backend granted credit late.
    CreditLate = "credit_late", 3000;
    /// A backend closed a session.
    BackendClosed = "backend_closed", 60;
    /// A backend took long to decide on a client.
    VerdictLate = "verdict_late", 3000;
    /// A backend never decided.
    VerdictNever = "verdict_never", 2500;
    /// A backend closed the session instead of deciding.
    VerdictDeclined = "verdict_declined", 2500;
    /// A backend accepted a session that never was, or one that it had rejected.
    VerdictStray = "verdict_stray", 200;
    /// A backend decided twice.
    VerdictTwice = "verdict_twice", 4000;
    /// A backend spoke to a client on which it had not decided.
    VerdictOvertaken = "verdict_overtaken", 2500;
    /// A backend spoke of a session that never was.
    HostileUnknown = "hostile_unknown", 200;
    /// A backend spoke of an ended session, by its old generation.
    HostileStale = "hostile_stale", 200;
    /// A backend sent more than its credit.
    HostileOverCredit = "hostile_over_credit", 60;
    /// A backend revoked one of its clients, or all of them.
    BackendRevoked = "backend_revoked", 60;
    /// The operator revoked a client over the admin listener. Drawn by the run.
    AdminRevoked = "admin_revoked", 4000;
    /// A client presented a fresh token of its own.
    Reauthenticated = "reauthenticated", 1500;
    /// A client presented a fresh token of another's.
    ReauthenticatedOther = "reauthenticated_other", 100;
    /// The worker got other settings. Drawn by the run; the rest below comes about by itself.
    Reload = "reload", 5000;
    /// The worker died in the middle of a turn, and another took its place. Drawn by the run.
    WorkerPanic = "worker_panic", 1000;
    /// The worker was drained while everything else went wrong. Drawn by the scenario.
    DrainedEarly = "drained_early", 0;
    /// A client's token ran out while its connection was open.
    TokenExpired = "token_expired", 0;
    /// A connection reached the age at which it is asked to come again.
    LifetimeOver = "lifetime_over", 0;
    /// A connection was turned away because of a cap.
    CapReached = "cap_reached", 0;
    /// A connection spoke TLS.
    Tls = "tls", 0;
    /// A connection came with a PROXY header.
    ProxyHeader = "proxy_header", 0;
    /// A backend sent bytes that are no frame.
    HostileGarbage = "hostile_garbage", 20;
    /// A WebSocket server answered with another status than 101.
    ServerRefused = "server_refused", 2500;
    /// A WebSocket server answered with what is no proper 101.
    ServerBroken = "server_broken", 1500;
    /// A WebSocket server closed before it answered.
    ServerClosedEarly = "server_closed_early", 1500;
    /// A WebSocket server said nothing more: in the middle of its answer, or later.
    ServerMute = "server_mute", 500;
    /// A WebSocket server ended an open connection without a close frame.
    ServerGone = "server_gone", 150;
    /// A WebSocket server broke RFC 6455.
    ServerBreaks = "server_breaks", 150;
}

/// Faults from here on have rates of their own randomness, so that the worlds of seeds without
/// WebSocket servers stay as they are.
const FIRST_OF_SERVERS: usize = Fault::ServerRefused as usize;

impl Fault {
    /// Its name in tables and in replay commands.
    pub fn label(self) -> &'static str {
        Fault::ALL[self as usize].1
    }

    /// The fault with this name.
    pub fn from_label(label: &str) -> Option<Fault> {
        Fault::ALL.iter().find(|(_, other, _)| *other == label).map(|(fault, ..)| *fault)
    }
}

/// Number of kinds.
pub const FAULTS: usize = Fault::ALL.len();

/// The rates of one run, and what fired.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Chances of 10,000, by [`Fault`].
    rates: [u32; FAULTS],
    fired: [u64; FAULTS],
}

impl Faults {
    /// A world in which nothing goes wrong.
    pub fn quiet() -> Self {
        Faults { rates: [0; FAULTS], fired: [0; FAULTS] }
    }

    /// Draws the rates. About half of the kinds never happen in one run, so that those that do
    /// are seen without the others masking them.
    pub fn drawn(random: &mut Random) -> Self {
        let mut faults = Faults::quiet();
        faults.draw(&Fault::ALL[..FIRST_OF_SERVERS], random);
        let number =
            faults.rates.iter().fold(0, |sum: u64, rate| sum.wrapping_mul(31) + u64::from(*rate));
        faults.draw(&Fault::ALL[FIRST_OF_SERVERS..], &mut Random::from_number(number));
        faults
    }

    fn draw(&mut self, kinds: &[(Fault, &str, u32)], random: &mut Random) {
        for (fault, _, rate_max) in kinds {
            if random.chance(1, 2) && *rate_max > 0 {
                self.rates[*fault as usize] = 1 + random.below(u64::from(*rate_max)) as u32;
            }
        }
    }

    /// Sets one rate, in chances of 10,000.
    pub fn set(&mut self, fault: Fault, rate: u32) {
        self.rates[fault as usize] = rate;
    }

    /// Whether it can happen in this run by a rate of its own.
    pub fn is_drawn(&self, fault: Fault) -> bool {
        self.rates[fault as usize] > 0
    }

    /// Nothing goes wrong from now on. What fired stays counted.
    pub fn stop(&mut self) {
        self.rates = [0; FAULTS];
    }

    /// Whether the fault happens now; counts it if so.
    pub fn fires(&mut self, fault: Fault, random: &mut Random) -> bool {
        let rate = u64::from(self.rates[fault as usize]);
        let fires = rate > 0 && random.chance(rate, 10_000);
        if fires {
            self.note(fault);
        }
        fires
    }

    /// Counts a fault that came about by itself.
    pub fn note(&mut self, fault: Fault) {
        self.note_many(fault, 1);
    }

    /// Counts a fault that came about by itself `count` times.
    pub fn note_many(&mut self, fault: Fault, count: u64) {
        self.fired[fault as usize] += count;
    }

    /// Every fault's label with the number of times it fired.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Fault::ALL.iter().map(|(fault, label, _)| (*label, self.fired[*fault as usize]))
    }
}
