//! Seeded randomness. The owner of a [`Random`] passes the seed in: the operating system's in
//! production, the simulator's number in a simulation.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

/// A cryptographically strong generator that is a function of its seed alone.
#[derive(Debug)]
pub struct Random(StdRng);

impl Random {
    /// A generator from a 32-byte seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Random(StdRng::from_seed(seed))
    }

    /// A generator from a number; for simulations and tests.
    pub fn from_number(seed: u64) -> Self {
        Random(StdRng::seed_from_u64(seed))
    }

    /// A uniformly drawn number.
    pub fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number drawn from `0..bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.0.random_range(0..bound) }
    }

    /// True with a probability of `parts` in `whole`.
    pub fn chance(&mut self, parts: u64, whole: u64) -> bool {
        self.below(whole) < parts
    }

    /// A duration drawn from `[0, bound)`.
    pub fn duration_below(&mut self, bound: Duration) -> Duration {
        Duration::from_nanos(self.below(u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Fills `bytes`; fit for nonces.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}
