//! The only place in the library that reads a clock for the data plane.
#![allow(unsafe_code)] // clock_gettime: the standard library hides the monotonic clock's value

use crate::base::time::{Instant, Now, UnixTime};

/// Both clocks: CLOCK_MONOTONIC and CLOCK_REALTIME.
pub fn now() -> Now {
    let wall = read(libc::CLOCK_REALTIME);
    let millis = wall.tv_sec.max(0) as u64 * 1000 + wall.tv_nsec as u64 / 1_000_000;
    Now { instant: instant(), unix: UnixTime::from_millis(millis) }
}

/// CLOCK_MONOTONIC alone.
pub fn instant() -> Instant {
    let time = read(libc::CLOCK_MONOTONIC);
    Instant::from_nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// The processor time that the calling thread has had. A system call: for benchmarks.
pub fn thread_cpu() -> std::time::Duration {
    let time = read(libc::CLOCK_THREAD_CPUTIME_ID);
    std::time::Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec as u32)
}

fn read(clock: libc::clockid_t) -> libc::timespec {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that outlives the call.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(result, 0, "these clocks exist on every Linux");
    time
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    #[test]
    fn the_clocks_agree_with_the_standard_library() {
        let before = now();
        std::thread::sleep(Duration::from_millis(20));
        let after = now();
        let passed = after.instant.since(before.instant);
        assert!(passed >= Duration::from_millis(20), "{passed:?}");
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        assert!(after.unix.as_millis().abs_diff(wall) < 1000, "{:?} {wall}", after.unix);
    }
}
