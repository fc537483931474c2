//! A hierarchical timer wheel with one timer per slot number: 16 bytes a slot, no allocation
//! for scheduling once a slot is known, and cost that does not depend on how far time jumps.

use std::time::Duration;

use super::time::Instant;

/// Each level splits a bucket of the level above into this many.
const LEVEL_BITS: u32 = 6;
const BUCKETS_PER_LEVEL: u32 = 1 << LEVEL_BITS;
/// Enough levels for every tick number of 64 bits.
const LEVELS: usize = 11;
/// Timers that are due: their tick had passed when they were scheduled, or has come since.
const OVERDUE: u32 = LEVELS as u32 * BUCKETS_PER_LEVEL;
/// A bucket whose first tick has come, while it is spread over the levels below in parts.
const SPREADING: u32 = OVERDUE + 1;
const BUCKETS: usize = SPREADING as usize + 1;
/// Timers that one call spreads: a bucket of a high level may hold all there are.
const SPREAD_MAX: usize = 8192;

const NONE: u32 = u32::MAX;
/// Set in `Node::previous` of the first node of a bucket; the other bits name the bucket.
const IS_FIRST: u32 = 1 << 31;
/// `Node::tick` of a slot without a timer.
const IDLE: u64 = u64::MAX;

/// One slot's timer: a node of its bucket's doubly linked list.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// When it fires, in ticks since the wheel's start; [`IDLE`] when it is in no bucket.
    tick: u64,
    previous: u32,
    next: u32,
}

const _: () = assert!(size_of::<Node>() == 16);

/// The wheel. A timer fires at its deadline rounded up to a whole tick.
///
/// Invariants: every timer with `tick <= current` is in the overdue bucket or is being spread,
/// and time does not go on before all of those have been. Any other is at the
/// level of the highest group of `LEVEL_BITS` bits in which `tick` and `current` differ, in
/// the bucket that this group of `tick` names. So all timers of a level fire before all of the
/// next, and within a level buckets fire in order. Bit `b` of `occupied[l]` is set exactly when
/// bucket `b` of level `l` has a timer.
#[derive(Debug)]
pub struct Wheel {
    tick_nanos: u64,
    start: Instant,
    current: u64,
    occupied: [u64; LEVELS],
    buckets: Box<[u32; BUCKETS]>,
    nodes: Vec<Node>,
}

impl Wheel {
    /// An empty wheel that starts to count at `start`, with a resolution of `tick` (above zero).
    pub fn new(tick: Duration, start: Instant) -> Self {
        let tick_nanos = u64::try_from(tick.as_nanos()).unwrap_or(u64::MAX);
        assert!(tick_nanos > 0, "a tick must last");
        Wheel {
            tick_nanos,
            start,
            current: 0,
            occupied: [0; LEVELS],
            buckets: Box::new([NONE; BUCKETS]),
            nodes: Vec::new(),
        }
    }

    /// Sets the timer of `slot`, in place of an earlier one. A deadline in the past fires at the
    /// next [`expire`](Self::expire).
    pub fn schedule(&mut self, slot: u32, deadline: Instant) {
        assert!(slot < IS_FIRST, "slot number out of range");
        self.know(slot);
        let tick = self.tick_at_or_after(deadline);
        if self.nodes[slot as usize].tick == tick {
            return;
        }
        self.cancel(slot);
        self.nodes[slot as usize].tick = tick;
        self.link(slot);
    }

    /// Removes the timer of `slot`, if it has one.
    pub fn cancel(&mut self, slot: u32) {
        let Some(node) = self.nodes.get(slot as usize).copied() else { return };
        if node.tick == IDLE {
            return;
        }
        if node.previous & IS_FIRST == 0 {
            self.nodes[node.previous as usize].next = node.next;
        } else {
            let bucket = node.previous & !IS_FIRST;
            self.buckets[bucket as usize] = node.next;
            if node.next == NONE {
                self.mark_empty(bucket);
            }
        }
        if node.next != NONE {
            self.nodes[node.next as usize].previous = node.previous;
        }
        self.nodes[slot as usize].tick = IDLE;
    }

    /// When the timer of `slot` fires: its deadline, rounded up to a tick.
    pub fn scheduled(&self, slot: u32) -> Option<Instant> {
        let tick = self.nodes.get(slot as usize)?.tick;
        (tick != IDLE).then(|| self.instant_of(tick))
    }

    /// Removes up to `most` timers that are due at `now` and appends their slots to `fired`,
    /// earlier ticks first. Where there are more, [`next_expiry`](Self::next_expiry) has come.
    /// `now` should not step back; if it does, nothing becomes due.
    pub fn expire(&mut self, now: Instant, most: usize, fired: &mut Vec<u32>) {
        let target = now.since(self.start).as_nanos() as u64 / self.tick_nanos;
        let (mut fires, mut spreads) = (most, SPREAD_MAX);
        loop {
            while self.buckets[SPREADING as usize] != NONE {
                if spreads == 0 {
                    return;
                }
                spreads -= 1;
                let slot = self.buckets[SPREADING as usize];
                let tick = self.nodes[slot as usize].tick;
                self.cancel(slot);
                self.nodes[slot as usize].tick = tick;
                self.link(slot);
            }
            while self.buckets[OVERDUE as usize] != NONE {
                if fires == 0 {
                    return;
                }
                fires -= 1;
                let slot = self.buckets[OVERDUE as usize];
                debug_assert!(self.nodes[slot as usize].tick <= self.current);
                self.cancel(slot);
                fired.push(slot);
            }
            let Some((level, bucket, tick)) = self.earliest_bucket() else { break };
            if tick > target {
                break;
            }
            self.current = tick;
            self.rename_bucket(bucket, if level == 0 { OVERDUE } else { SPREADING });
        }
        // No bucket begins in between, so no timer changes its level by this.
        self.current = self.current.max(target);
    }

    /// The earliest instant at which [`expire`](Self::expire) could have work: never after the
    /// earliest timer, sometimes before it (to spread a bucket over the levels below).
    pub fn next_expiry(&self) -> Option<Instant> {
        if self.buckets[OVERDUE as usize] != NONE || self.buckets[SPREADING as usize] != NONE {
            return Some(self.instant_of(self.current));
        }
        self.earliest_bucket().map(|(_, _, tick)| self.instant_of(tick))
    }

    /// Makes a node for `slot`. Grows by a quarter, not to the double: with 16 bytes a node the
    /// wheel stays within 20 bytes a slot.
    fn know(&mut self, slot: u32) {
        let needed = slot as usize + 1;
        if needed <= self.nodes.len() {
            return;
        }
        if needed > self.nodes.capacity() {
            let capacity = needed.max(self.nodes.len() + self.nodes.len() / 4);
            self.nodes.reserve_exact(capacity - self.nodes.len());
        }
        self.nodes.resize(needed, Node { tick: IDLE, previous: NONE, next: NONE });
    }

    fn tick_at_or_after(&self, deadline: Instant) -> u64 {
        let nanos = deadline.as_nanos().saturating_sub(self.start.as_nanos());
        nanos.div_ceil(self.tick_nanos).min(IDLE - 1)
    }

    fn instant_of(&self, tick: u64) -> Instant {
        let nanos = tick.saturating_mul(self.tick_nanos);
        self.start + Duration::from_nanos(nanos)
    }

    /// Level, bucket and first tick of the earliest bucket with a timer, overdue ones aside.
    fn earliest_bucket(&self) -> Option<(u32, u32, u64)> {
        let level = self.occupied.iter().position(|bits| *bits != 0)? as u32;
        let index = self.occupied[level as usize].trailing_zeros();
        let shift = level * LEVEL_BITS;
        let above = self.current.checked_shr(shift + LEVEL_BITS).unwrap_or(0);
        let tick = above.checked_shl(shift + LEVEL_BITS).unwrap_or(0) | u64::from(index) << shift;
        debug_assert!(tick > self.current);
        Some((level, level * BUCKETS_PER_LEVEL + index, tick))
    }

    /// Puts a node that is in no bucket into the one where its tick belongs.
    fn link(&mut self, slot: u32) {
        let bucket = self.bucket_of(self.nodes[slot as usize].tick);
        let next = std::mem::replace(&mut self.buckets[bucket as usize], slot);
        if next != NONE {
            self.nodes[next as usize].previous = slot;
        }
        let node = &mut self.nodes[slot as usize];
        node.next = next;
        node.previous = IS_FIRST | bucket;
        if bucket != OVERDUE {
            let level = (bucket / BUCKETS_PER_LEVEL) as usize;
            self.occupied[level] |= 1 << (bucket % BUCKETS_PER_LEVEL);
        }
    }

    fn bucket_of(&self, tick: u64) -> u32 {
        if tick <= self.current {
            return OVERDUE;
        }
        let level = (tick ^ self.current).ilog2() / LEVEL_BITS;
        let index = (tick >> (level * LEVEL_BITS)) as u32 % BUCKETS_PER_LEVEL;
        level * BUCKETS_PER_LEVEL + index
    }

    fn mark_empty(&mut self, bucket: u32) {
        if bucket < OVERDUE {
            let level = (bucket / BUCKETS_PER_LEVEL) as usize;
            self.occupied[level] &= !(1 << (bucket % BUCKETS_PER_LEVEL));
        }
    }

    /// Makes all of a bucket's timers those of another, empty one.
    fn rename_bucket(&mut self, from: u32, to: u32) {
        debug_assert_eq!(self.buckets[to as usize], NONE);
        let first = std::mem::replace(&mut self.buckets[from as usize], NONE);
        self.mark_empty(from);
        self.buckets[to as usize] = first;
        if first != NONE {
            self.nodes[first as usize].previous = IS_FIRST | to;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_millis(10);
    const DAY: u64 = 86_400_000;

    #[derive(Clone, Debug)]
    enum Action {
        /// Slot, milliseconds from now (negative: overdue), nanoseconds more.
        Schedule(u32, i64, u64),
        Cancel(u32),
        /// Milliseconds by which time moves on.
        Pass(u64),
        /// Time moves on to what the wheel itself asks for.
        PassToNext,
        /// How many timers fire in one call, from now on.
        Most(usize),
    }

    fn span() -> impl Strategy<Value = u64> {
        prop_oneof![0..30u64, 0..2_000u64, 0..100_000u64, 0..4 * 3_600_000u64, 0..40 * DAY]
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            6 => (0..24u32, span(), 0..20_000_000u64)
                .prop_map(|(slot, ms, ns)| Action::Schedule(slot, ms as i64, ns)),
            1 => (0..24u32, 0..5_000i64).prop_map(|(slot, ms)| Action::Schedule(slot, -ms, 0)),
            2 => (0..24u32).prop_map(Action::Cancel),
            4 => span().prop_map(Action::Pass),
            3 => Just(Action::PassToNext),
            1 => prop_oneof![1..4usize, Just(usize::MAX)].prop_map(Action::Most),
        ]
    }

    fn round_up(deadline: u64, start: u64) -> u64 {
        let tick = TICK.as_nanos() as u64;
        start + deadline.saturating_sub(start).div_ceil(tick) * tick
    }

    fn run(start: u64, actions: &[Action]) {
        let mut wheel = Wheel::new(TICK, Instant::from_nanos(start));
        let mut model: BTreeMap<u32, u64> = BTreeMap::new();
        let mut now = start;
        let mut most = usize::MAX;
        for action in actions {
            match *action {
                Action::Most(count) => most = count,
                Action::Schedule(slot, millis, nanos) => {
                    let deadline = now.saturating_add_signed(millis * 1_000_000) + nanos;
                    wheel.schedule(slot, Instant::from_nanos(deadline));
                    model.insert(slot, round_up(deadline, start));
                }
                Action::Cancel(slot) => {
                    wheel.cancel(slot);
                    model.remove(&slot);
                }
                Action::Pass(millis) => now += millis * 1_000_000,
                Action::PassToNext => {
                    now = now.max(wheel.next_expiry().map_or(now, Instant::as_nanos));
                }
            }
            if matches!(action, Action::Pass(_) | Action::PassToNext) {
                let mut fired = Vec::new();
                while wheel.next_expiry().is_some_and(|next| next <= Instant::from_nanos(now)) {
                    let before = fired.len();
                    wheel.expire(Instant::from_nanos(now), most, &mut fired);
                    assert!(fired.len() - before <= most);
                }
                let times: Vec<u64> = fired.iter().map(|slot| model[slot]).collect();
                assert!(times.iter().all(|time| *time <= now), "fired early");
                fired.sort_unstable();
                let due: Vec<u32> =
                    model.iter().filter(|(_, time)| **time <= now).map(|(slot, _)| *slot).collect();
                assert_eq!(fired, due);
                model.retain(|_, time| *time > now);
            }
            for slot in 0..24 {
                let scheduled = wheel.scheduled(slot).map(Instant::as_nanos);
                assert_eq!(scheduled, model.get(&slot).copied());
            }
            let next = wheel.next_expiry().map(Instant::as_nanos);
            assert_eq!(next.is_some(), !model.is_empty());
            if let (Some(next), Some(earliest)) = (next, model.values().min()) {
                assert!(next <= (*earliest).max(now));
            }
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_sorted_map(
            start in prop_oneof![Just(0), 0..u64::MAX / 4],
            actions in prop::collection::vec(action(), 1..120),
        ) {
            run(start, &actions);
        }
    }

    #[test]
    fn fires_in_order_never_early_and_within_a_tick() {
        let start = Instant::from_nanos(77);
        let mut wheel = Wheel::new(TICK, start);
        let deadlines = [0, 1, 9, 10, 11, 639, 640, 641, 40_960, 2_621_441, 40 * DAY];
        for (slot, millis) in deadlines.iter().enumerate().rev() {
            wheel.schedule(slot as u32, start + Duration::from_millis(*millis));
        }
        let mut fired = Vec::new();
        let mut steps = 0;
        while let Some(next) = wheel.next_expiry() {
            let before = fired.len();
            wheel.expire(next, usize::MAX, &mut fired);
            for slot in &fired[before..] {
                let late = next.since(start + Duration::from_millis(deadlines[*slot as usize]));
                let due = start + Duration::from_millis(deadlines[*slot as usize]) <= next;
                assert!(due && late < TICK, "slot {slot}");
            }
            steps += 1;
        }
        assert_eq!(fired[0], 0);
        assert_eq!(fired.iter().position(|slot| *slot == 4), Some(4));
        // 639 ms and 640 ms are one tick.
        fired[5..7].sort_unstable();
        assert_eq!(fired[5..], [5, 6, 7, 8, 9, 10]);
        assert!(steps < 30, "{steps} steps");
    }

    #[test]
    fn a_deadline_that_never_comes_is_no_trouble() {
        for tick in [Duration::from_nanos(1), TICK, Duration::from_secs(3600)] {
            let mut wheel = Wheel::new(tick, Instant::from_nanos(5));
            wheel.schedule(3, Instant::NEVER);
            let mut fired = Vec::new();
            wheel.expire(Instant::from_nanos(u64::MAX / 2), usize::MAX, &mut fired);
            assert!(fired.is_empty());
            assert!(wheel.scheduled(3).is_some() && wheel.next_expiry().is_some());
            wheel.cancel(3);
            assert_eq!(wheel.next_expiry(), None);
        }
    }

    /// A bucket of a high level with every timer in it is spread in parts, and while that lasts
    /// timers can be set, cancelled and fire.
    #[test]
    fn no_call_looks_at_all_timers() {
        let millis = |millis: u64| Instant::from_nanos(millis * 1_000_000);
        let mut wheel = Wheel::new(TICK, millis(0));
        let count = 3 * SPREAD_MAX as u32;
        for slot in 0..count {
            wheel.schedule(slot, millis(60_000 + u64::from(slot % 7) * 10));
        }
        let mut fired = Vec::new();
        let mut calls = 0;
        while let Some(next) = wheel.next_expiry() {
            if next > millis(70_000) {
                break;
            }
            let before = fired.len();
            wheel.expire(next.max(millis(60_030)), 1000, &mut fired);
            assert!(fired.len() - before <= 1000);
            calls += 1;
            if calls == 2 {
                assert!(fired.is_empty(), "the bucket is being spread");
                wheel.cancel(0);
                wheel.schedule(7, millis(65_000));
                wheel.schedule(count, millis(0));
            }
        }
        assert!(calls > 3, "{calls} calls");
        assert_eq!(fired.len(), count as usize);
        let mut seen = fired.clone();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), fired.len(), "a timer fires once");
        assert!(!seen.contains(&0) && seen.contains(&count));
        assert_eq!(fired.last(), Some(&7), "the one that was set again is last");
    }

    #[test]
    fn at_most_twenty_bytes_a_slot() {
        let mut wheel = Wheel::new(TICK, Instant::from_nanos(0));
        for slot in 0..100_000u32 {
            wheel.schedule(slot, Instant::from_nanos(u64::from(slot) * 1_000_000));
            let bytes = wheel.nodes.capacity() * size_of::<Node>();
            assert!(bytes <= 20 * (slot as usize + 1));
        }
    }
}
