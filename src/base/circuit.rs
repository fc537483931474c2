//! A circuit breaker: after failures in a row, a server that fails is left alone for a while,
//! then asked once to see whether it has recovered.

use std::time::Duration;

use super::time::Instant;

/// When to leave a server alone, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitLimits {
    /// Failures in a row after which the server is left alone; at least 1.
    pub failures: u32,
    /// For how long at first; doubled after each probe that fails.
    pub open_min: Duration,
    /// For how long at most.
    pub open_max: Duration,
}

/// Where the circuit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitState {
    /// Requests go through.
    Closed,
    /// No request goes through.
    Open,
    /// One request is out, to see whether the server has recovered.
    HalfOpen,
}

/// Leave to make one request. To be given back through [`Circuit::succeeded`],
/// [`Circuit::failed`] or [`Circuit::abandoned`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Permit {
    epoch: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen,
}

/// The circuit to one server.
///
/// Each change of state begins an epoch. What comes back from a request of an earlier epoch
/// says nothing about now and changes nothing.
#[derive(Debug)]
pub struct Circuit {
    limits: CircuitLimits,
    state: State,
    epoch: u32,
    /// Times that it opened without a success between.
    openings: u32,
}

impl Circuit {
    /// A closed circuit.
    pub fn new(limits: CircuitLimits) -> Self {
        Circuit { limits, state: State::Closed { failures: 0 }, epoch: 0, openings: 0 }
    }

    /// Other limits hold from now on.
    pub fn set_limits(&mut self, limits: CircuitLimits) {
        self.limits = limits;
    }

    /// The state at `now`. An open circuit whose wait has ended stays open until the next request.
    pub fn state(&self) -> CircuitState {
        match self.state {
            State::Closed { .. } => CircuitState::Closed,
            State::Open { .. } => CircuitState::Open,
            State::HalfOpen => CircuitState::HalfOpen,
        }
    }

    /// Whether [`admit`](Self::admit) would let a request through at `now`.
    pub fn may_admit(&self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until } => until <= now,
            State::HalfOpen => false,
        }
    }

    /// Leave to make a request at `now`, if there is.
    pub fn admit(&mut self, now: Instant) -> Option<Permit> {
        match self.state {
            State::Closed { .. } => {}
            State::Open { until } if until <= now => self.enter(State::HalfOpen),
            State::Open { .. } | State::HalfOpen => return None,
        }
        Some(Permit { epoch: self.epoch })
    }

    /// The server answered as it should.
    pub fn succeeded(&mut self, permit: Permit) {
        if permit.epoch != self.epoch {
            return;
        }
        self.openings = 0;
        match &mut self.state {
            State::Closed { failures } => *failures = 0,
            State::HalfOpen | State::Open { .. } => self.enter(State::Closed { failures: 0 }),
        }
    }

    /// The server failed at `now`. `jitter` is a random number: it keeps gateways from coming
    /// back together.
    pub fn failed(&mut self, permit: Permit, now: Instant, jitter: u32) {
        if permit.epoch != self.epoch {
            return;
        }
        match &mut self.state {
            State::Closed { failures } if *failures + 1 < self.limits.failures => *failures += 1,
            State::Closed { .. } | State::HalfOpen | State::Open { .. } => {
                let doubled = self.limits.open_min.saturating_mul(1 << self.openings.min(16));
                let wait = doubled.min(self.limits.open_max);
                // Half of the wait is fixed, half is drawn.
                let drawn = (wait / 2).mul_f64(f64::from(jitter) / f64::from(u32::MAX));
                self.openings = self.openings.saturating_add(1);
                self.enter(State::Open { until: now + wait / 2 + drawn });
            }
        }
    }

    /// The caller gave the request up for its own reasons: the outcome says nothing about the
    /// endpoint. A further probe may follow immediately.
    pub fn abandoned(&mut self, permit: Permit, now: Instant) {
        if permit.epoch == self.epoch && self.state == State::HalfOpen {
            self.enter(State::Open { until: now });
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch = self.epoch.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CircuitLimits = CircuitLimits {
        failures: 3,
        open_min: Duration::from_secs(1),
        open_max: Duration::from_secs(5),
    };

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn fail(circuit: &mut Circuit, now: Instant, jitter: u32) {
        let permit = circuit.admit(now).expect("let through");
        circuit.failed(permit, now, jitter);
    }

    #[test]
    fn opens_after_failures_in_a_row_only() {
        let mut circuit = Circuit::new(LIMITS);
        for _ in 0..10 {
            fail(&mut circuit, at(0), 0);
            fail(&mut circuit, at(0), 0);
            let permit = circuit.admit(at(0)).expect("closed");
            circuit.succeeded(permit);
        }
        assert_eq!(circuit.state(), CircuitState::Closed);
        for _ in 0..3 {
            fail(&mut circuit, at(0), u32::MAX);
        }
        assert_eq!(circuit.state(), CircuitState::Open);
        assert_eq!(circuit.admit(at(999)), None);
        assert!(circuit.admit(at(1000)).is_some());
    }

    #[test]
    fn one_probe_decides() {
        let mut circuit = Circuit::new(LIMITS);
        (0..3).for_each(|_| fail(&mut circuit, at(0), u32::MAX));
        let probe = circuit.admit(at(1000)).expect("a probe");
        assert_eq!(circuit.state(), CircuitState::HalfOpen);
        assert_eq!(circuit.admit(at(9000)), None, "one at a time");
        circuit.succeeded(probe);
        assert_eq!(circuit.state(), CircuitState::Closed);
        fail(&mut circuit, at(9000), 0);
        assert_eq!(circuit.state(), CircuitState::Closed, "it counts from nothing again");
    }

    #[test]
    fn waits_double_up_to_the_most_and_half_of_each_is_drawn() {
        // jitter, waits in milliseconds after each opening
        let table: [(u32, [u64; 5]); 2] =
            [(0, [500, 1000, 2000, 2500, 2500]), (u32::MAX, [1000, 2000, 4000, 5000, 5000])];
        for (jitter, waits) in table {
            let mut circuit = Circuit::new(LIMITS);
            fail(&mut circuit, at(0), jitter);
            fail(&mut circuit, at(0), jitter);
            let mut now = 0;
            for wait in waits {
                fail(&mut circuit, at(now), jitter);
                assert_eq!(circuit.admit(at(now + wait - 1)), None, "{jitter} {wait}");
                now += wait;
            }
        }
    }

    #[test]
    fn what_was_asked_before_says_nothing_about_now() {
        let mut circuit = Circuit::new(LIMITS);
        let early = [circuit.admit(at(0)).unwrap(), circuit.admit(at(0)).unwrap()];
        (0..3).for_each(|_| fail(&mut circuit, at(0), u32::MAX));
        let [yes, no] = early;
        circuit.succeeded(yes);
        assert_eq!(circuit.state(), CircuitState::Open);
        let probe = circuit.admit(at(1000)).unwrap();
        circuit.failed(no, at(1000), 0);
        assert_eq!(circuit.state(), CircuitState::HalfOpen, "the probe decides");
        circuit.succeeded(probe);
        assert_eq!(circuit.state(), CircuitState::Closed);
    }

    #[test]
    fn a_probe_that_was_given_up_makes_room_for_another() {
        let mut circuit = Circuit::new(LIMITS);
        (0..3).for_each(|_| fail(&mut circuit, at(0), 0));
        let probe = circuit.admit(at(500)).unwrap();
        circuit.abandoned(probe, at(600));
        assert_eq!(circuit.state(), CircuitState::Open);
        let probe = circuit.admit(at(600)).expect("at once");
        circuit.failed(probe, at(600), 0);
        assert_eq!(circuit.admit(at(1500)), None, "and its back-off goes on");
        assert!(circuit.admit(at(1600)).is_some());
    }

    #[test]
    fn giving_up_an_ordinary_request_changes_nothing() {
        let mut circuit = Circuit::new(LIMITS);
        fail(&mut circuit, at(0), 0);
        fail(&mut circuit, at(0), 0);
        let permit = circuit.admit(at(0)).unwrap();
        circuit.abandoned(permit, at(0));
        assert_eq!(circuit.state(), CircuitState::Closed);
        fail(&mut circuit, at(0), 0);
        assert_eq!(circuit.state(), CircuitState::Open);
    }
}
