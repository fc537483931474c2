//! How long a comparison takes, told before it begins, and how much of it is left.

use std::time::Duration;

use super::cases::{Spec, Work};
use crate::servers::peers::Kind;

/// Connects per second while idle connections are opened.
pub const OPEN_RATE: f64 = 4000.0;
/// Warm-up before the measured time, as a part of it.
pub const WARM_UP: u32 = 4;
/// Beside warm-up and measured time, seconds: connecting, closing, the pause.
const AROUND: f64 = 1.8;
/// A server that is started and ended for one run, seconds.
const FRESH: f64 = 2.5;
/// Before and after a flood: honest clients alone, and the junk that the server must get rid of.
const AROUND_FLOOD: f64 = 16.0;
/// Measured time that still says something, and more than which says no more.
const MEASURED: (f64, f64) = (2.0, 5.0);

/// A comparison's turns, each a peer's in a round.
pub struct Estimate {
    /// How many turns there are.
    pub turns: usize,
    /// Seconds that do not depend on the measured time.
    fixed: f64,
    /// Measured times, each with its warm-up, in units of one.
    measured: f64,
}

impl Estimate {
    /// Of these cases with these peers.
    pub fn of(specs: &[Spec], kinds: &[Kind], rounds: u32) -> Estimate {
        let mut all = Estimate { turns: 0, fixed: 0.0, measured: 0.0 };
        for spec in specs {
            let peers = kinds.iter().filter(|kind| spec.work.leaves_out(**kind).is_none()).count();
            let turns = peers * spec.work.rounds(rounds) as usize;
            let (fixed, measured) = parts(&spec.work);
            all.turns += turns;
            all.fixed += fixed * turns as f64;
            all.measured += measured * turns as f64;
        }
        all
    }

    /// The measured time of a run with which all of it takes `budget`, within bounds.
    pub fn measured_within(&self, budget: Duration) -> Duration {
        let left = budget.as_secs_f64() - self.fixed;
        let each = if self.measured > 0.0 { left / self.measured } else { MEASURED.1 };
        // Tenths: nobody reads more.
        let each = (each.clamp(MEASURED.0, MEASURED.1) * 10.0).floor() / 10.0;
        Duration::from_secs_f64(each)
    }

    /// How long all of it takes.
    pub fn total(&self, measured: Duration) -> Duration {
        Duration::from_secs_f64(self.fixed + self.measured * measured.as_secs_f64())
    }
}

/// Seconds that one turn takes by this estimate.
pub fn of_turn(work: &Work, measured: Duration) -> f64 {
    let (fixed, times) = parts(work);
    fixed + times * measured.as_secs_f64()
}

/// Fixed seconds of a turn, and how often it takes the measured time.
fn parts(work: &Work) -> (f64, f64) {
    let with_warm_up = 1.0 + 1.0 / f64::from(WARM_UP);
    match work {
        Work::Token { .. } => (0.4, 1.0),
        Work::Idle { connections, hold, .. } => {
            (FRESH + AROUND + *connections as f64 / OPEN_RATE + hold.as_secs_f64(), 0.0)
        }
        Work::Flood { duration } => (FRESH + AROUND_FLOOD + duration.as_secs_f64(), 0.0),
        Work::Echo { .. } | Work::Latency { .. } | Work::FanIn { .. } | Work::Open { .. } => {
            (AROUND, with_warm_up)
        }
    }
}

/// Minutes for people.
pub fn minutes(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s => format!("{:.0} min", s / 60.0),
    }
}
