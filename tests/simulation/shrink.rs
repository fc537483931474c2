//! A failing seed made smaller: less time, fewer clients, fewer faults, while the same kind of
//! failure remains.

use portcullis::sim::faults::Fault;
use portcullis::sim::{Keep, Options, run};

/// Runs that a shrinking may take.
const RUNS_MAX: u32 = 250;
/// Shortest time of misfortunes that is tried, in milliseconds.
const CHAOS_MIN: u64 = 100;
/// More clients than any seed has.
const CLIENTS_MAX: usize = 32;

/// What is left of a failing world.
pub struct Shrunk {
    pub keep: Keep,
    /// The failure in that world, with its trace.
    pub failure: String,
    pub runs: u32,
}

/// What a failure is about, without the numbers, names and times in it.
pub fn kind(failure: &str) -> String {
    let line = failure.lines().next().unwrap_or_default();
    let words = line.split([':', '{', '(']).next().unwrap_or_default();
    words.chars().filter(|c| !c.is_ascii_digit()).collect()
}

struct Search<'a> {
    seed: u64,
    options: &'a Options,
    kind: String,
    best: Shrunk,
}

impl Search<'_> {
    /// Whether the failure is still there; then this is the best so far.
    fn try_keep(&mut self, keep: Keep) -> bool {
        if self.best.runs >= RUNS_MAX {
            return false;
        }
        self.best.runs += 1;
        let options = Options { keep: keep.clone(), ..self.options.clone() };
        let failure = run(self.seed, &options).failure;
        match failure.filter(|failure| kind(failure) == self.kind) {
            Some(failure) => {
                (self.best.keep, self.best.failure) = (keep, failure);
                true
            }
            None => false,
        }
    }

    fn shorten(&mut self) {
        // Longer than any seed's, then half of it, as long as that is enough.
        let mut chaos = 8000;
        while chaos / 2 >= CHAOS_MIN {
            chaos /= 2;
            let keep = Keep { chaos: Some(chaos), ..self.best.keep.clone() };
            if !self.try_keep(keep) && chaos < 4000 {
                return;
            }
        }
    }

    fn drop_clients(&mut self) {
        let mut left: Vec<usize> = (0..CLIENTS_MAX).collect();
        let mut step = left.len() / 2;
        while step > 0 {
            let mut at = 0;
            while at < left.len() {
                let mut fewer = left.clone();
                fewer.drain(at..(at + step).min(left.len()));
                let keep = Keep { clients: Some(fewer.clone()), ..self.best.keep.clone() };
                if self.try_keep(keep) {
                    left = fewer;
                } else {
                    at += step;
                }
            }
            step /= 2;
        }
    }

    fn drop_faults(&mut self) {
        for (fault, _, rate_max) in Fault::ALL {
            if *rate_max == 0 {
                continue;
            }
            let mut keep = self.best.keep.clone();
            keep.off.push(*fault);
            self.try_keep(keep);
        }
    }
}

/// Makes the world of `seed` smaller in which `failure` came.
pub fn shrink(seed: u64, options: &Options, failure: &str) -> Shrunk {
    let best = Shrunk { keep: options.keep.clone(), failure: failure.to_owned(), runs: 0 };
    let mut search = Search { seed, options, kind: kind(failure), best };
    search.shorten();
    search.drop_clients();
    search.drop_faults();
    search.best
}
