//! What is given up as memory runs short, step by step.

/// How short memory is. Each pressure adds to the one below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryPressure {
    /// Not at all.
    #[default]
    Clear,
    /// New connections are reset.
    StopAccepting,
    /// Connections that have not authenticated are reset.
    ShedUnauthenticated,
    /// Clients that do not read what waits for them are reset.
    CloseSlowReaders,
}

/// How far memory use must fall below a level's threshold before the level ends, in percent of the
/// budget: memory that was freed must not be taken again immediately.
const HYSTERESIS: u64 = 5;

impl MemoryPressure {
    const ABOVE: [MemoryPressure; 3] = [
        MemoryPressure::StopAccepting,
        MemoryPressure::ShedUnauthenticated,
        MemoryPressure::CloseSlowReaders,
    ];

    /// From which use on, in percent of the budget.
    pub const fn threshold(self) -> u64 {
        match self {
            MemoryPressure::Clear => 0,
            MemoryPressure::StopAccepting => 85,
            MemoryPressure::ShedUnauthenticated => 92,
            MemoryPressure::CloseSlowReaders => 95,
        }
    }

    /// The pressure after memory use was seen to be `used` of `budget` bytes.
    pub fn next(self, used: u64, budget: u64) -> MemoryPressure {
        let percent = u128::from(used) * 100 / u128::from(budget.max(1));
        let holds = |pressure: &&MemoryPressure| {
            let slack = if **pressure <= self { HYSTERESIS } else { 0 };
            percent >= u128::from(pressure.threshold() - slack)
        };
        MemoryPressure::ABOVE.iter().take_while(holds).last().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_at_the_thresholds_down_below_them() {
        use MemoryPressure::*;
        // use in percent -> pressure, one after the other
        let steps = [
            (0, Clear),
            (84, Clear),
            (85, StopAccepting),
            (91, StopAccepting),
            (84, StopAccepting),
            (80, StopAccepting),
            (79, Clear),
            (84, Clear),
            (94, ShedUnauthenticated),
            (99, CloseSlowReaders),
            (90, CloseSlowReaders),
            (89, ShedUnauthenticated),
            (87, ShedUnauthenticated),
            (86, StopAccepting),
            (300, CloseSlowReaders),
            (0, Clear),
        ];
        let mut pressure = Clear;
        for (percent, expected) in steps {
            pressure = pressure.next(percent << 20, 100 << 20);
            assert_eq!(pressure, expected, "at {percent} %");
        }
        assert_eq!(Clear.next(u64::MAX, u64::MAX / 2), CloseSlowReaders);
        assert_eq!(Clear.next(1, 0), CloseSlowReaders, "no budget at all");
    }
}
