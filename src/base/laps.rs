//! Going around a table in bounded parts, for several duties at a time.
//!
//! There is one position. A duty lasts for one lap from where the position is when the duty
//! begins, so every slot that was in use then is visited under it, whatever else begins
//! meanwhile. An entry that is added during a lap may be visited or not: it is made under what
//! the duty brings to the others.

use std::ops::Range;

/// A position: which time around, and the next slot.
pub type Position = (u64, u32);

/// Several duties, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Duties(u8);

impl Duties {
    /// Whether a duty is among them.
    pub const fn has(self, duty: usize) -> bool {
        self.0 & 1 << duty != 0
    }
}

/// The laps of a table with up to eight duties.
#[derive(Clone, Debug)]
pub struct Laps<const DUTIES: usize> {
    round: u64,
    at: u32,
    /// Where each duty's lap is over.
    ends: [Option<Position>; DUTIES],
}

impl<const DUTIES: usize> Default for Laps<DUTIES> {
    fn default() -> Self {
        const { assert!(DUTIES <= 8) };
        Laps { round: 0, at: 0, ends: [None; DUTIES] }
    }
}

impl<const DUTIES: usize> Laps<DUTIES> {
    /// Begins a duty. One that is under way lasts for a whole lap more from here. Returns where
    /// its lap is over.
    pub fn begin(&mut self, duty: usize) -> Position {
        let end = (self.round + 1, self.at);
        self.ends[duty] = Some(end);
        end
    }

    /// Ends a duty before its lap is over.
    pub fn cancel(&mut self, duty: usize) {
        self.ends[duty] = None;
    }

    /// Whether a duty's lap is not over.
    pub fn is_under_way(&self, duty: usize) -> bool {
        self.ends[duty].is_some()
    }

    /// Whether any lap is not over.
    pub fn is_any_under_way(&self) -> bool {
        self.ends.iter().any(Option::is_some)
    }

    /// Whether the position has come to `end`, or beyond it.
    pub fn has_passed(&self, end: Position) -> bool {
        (self.round, self.at) >= end
    }

    /// Moves on by at most `most` slots of a table of `slots`, and says which, and the duties
    /// under which they are to be visited: no lap begins or ends within them. `None` when no
    /// duty is left.
    pub fn advance(&mut self, slots: u32, most: u32) -> Option<(Range<u32>, Duties)> {
        if self.at >= slots {
            (self.round, self.at) = (self.round + 1, 0);
        }
        let position = (self.round, self.at);
        let mut duties = 0;
        let mut stop = slots.min(self.at.saturating_add(most));
        for (duty, lap) in self.ends.iter_mut().enumerate() {
            match *lap {
                Some(end) if end <= position || slots == 0 => *lap = None,
                Some((round, at)) => {
                    duties |= 1 << duty;
                    if round == self.round {
                        stop = stop.min(at);
                    }
                }
                None => {}
            }
        }
        if duties == 0 {
            return None;
        }
        let part = self.at..stop;
        self.at = stop;
        Some((part, Duties(duties)))
    }

    /// Goes back to a slot of the latest part: those from it on were not visited after all.
    pub fn back_to(&mut self, slot: u32) {
        debug_assert!(slot <= self.at);
        self.at = slot;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const DUTIES: usize = 3;

    #[derive(Clone, Debug)]
    enum Action {
        Begin(usize),
        Cancel(usize),
        Grow(u32),
        /// At most so many slots, and how many of them are visited.
        Advance(u32, u32),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            2 => (0..DUTIES).prop_map(Action::Begin),
            1 => (0..DUTIES).prop_map(Action::Cancel),
            1 => (1..5u32).prop_map(Action::Grow),
            8 => (1..9u32, 0..9u32).prop_map(|(most, visited)| Action::Advance(most, visited)),
        ]
    }

    proptest! {
        /// Each slot that was there when a duty began is visited under it before it is over,
        /// and a lap takes no more parts than its slots need.
        #[test]
        fn a_lap_visits_every_slot(
            first in 0..20u32,
            actions in prop::collection::vec(action(), 1..200),
        ) {
            let mut laps = Laps::<DUTIES>::default();
            let mut slots = first;
            let mut owed: [Option<BTreeSet<u32>>; DUTIES] = Default::default();
            for action in actions {
                match action {
                    Action::Begin(duty) => {
                        laps.begin(duty);
                        owed[duty] = Some((0..slots).collect());
                    }
                    Action::Cancel(duty) => {
                        laps.cancel(duty);
                        owed[duty] = None;
                    }
                    Action::Grow(by) => slots += by,
                    Action::Advance(most, visited) => {
                        let part = laps.advance(slots, most);
                        for (duty, owed) in owed.iter_mut().enumerate() {
                            if let Some(slots) = owed.take_if(|_| !laps.is_under_way(duty)) {
                                prop_assert_eq!(slots, BTreeSet::new(), "missed by {}", duty);
                            }
                        }
                        let Some((part, duties)) = part else {
                            prop_assert!(!laps.is_any_under_way());
                            continue;
                        };
                        prop_assert!(!part.is_empty() && part.len() as u32 <= most);
                        let stop = part.end.min(part.start + visited);
                        laps.back_to(stop);
                        for slot in part.start..stop {
                            for (duty, owed) in owed.iter_mut().enumerate() {
                                prop_assert_eq!(owed.is_some(), duties.has(duty));
                                owed.iter_mut().for_each(|slots| { slots.remove(&slot); });
                            }
                        }
                    }
                }
            }
            // What is left is over within one lap.
            let mut steps = 0;
            while let Some((part, duties)) = laps.advance(slots, 4) {
                steps += 1;
                for (duty, owed) in owed.iter_mut().enumerate().filter(|(d, _)| duties.has(*d)) {
                    let owed = owed.as_mut().expect("a duty under way was begun");
                    part.clone().for_each(|slot| { owed.remove(&slot); });
                    prop_assert!(laps.is_under_way(duty));
                }
            }
            prop_assert!(owed.iter().flatten().all(BTreeSet::is_empty));
            prop_assert!(steps <= slots.div_ceil(4) + 2 + DUTIES as u32);
        }
    }

    #[test]
    fn an_empty_table_ends_every_lap() {
        let mut laps = Laps::<2>::default();
        let end = laps.begin(1);
        assert_eq!(laps.advance(0, 10), None);
        assert!(!laps.is_any_under_way());
        assert!(laps.has_passed(end) || laps.advance(0, 10).is_none());
    }

    #[test]
    fn an_end_is_passed_after_a_whole_lap() {
        let mut laps = Laps::<1>::default();
        laps.begin(0);
        assert_eq!(laps.advance(10, 4).map(|(part, _)| part), Some(0..4));
        let end = laps.begin(0);
        assert_eq!(laps.advance(10, 40).map(|(part, _)| part), Some(4..10));
        assert!(!laps.has_passed(end));
        assert_eq!(laps.advance(10, 40).map(|(part, _)| part), Some(0..4));
        assert!(laps.has_passed(end));
        assert_eq!(laps.advance(10, 40), None);
    }
}
