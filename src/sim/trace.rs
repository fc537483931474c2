//! What happened, as a hash of everything and a readable tail.

use std::collections::VecDeque;
use std::fmt::Write;

const TAIL: usize = 400;

/// One happening.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u64,
    what: &'static str,
    first: u64,
    second: u64,
}

/// The event trace of one run. Two runs of one seed must have equal hashes.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    count: u64,
    tail: VecDeque<Entry>,
}

impl Trace {
    /// Notes a happening at `at` nanoseconds.
    pub fn note(&mut self, at: u64, what: &'static str, first: u64, second: u64) {
        for word in [at, what.len() as u64, u64::from(what.as_bytes()[0]), first, second] {
            self.mix(word);
        }
        self.count += 1;
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(Entry { at, what, first, second });
    }

    /// Adds bytes to the hash alone.
    pub fn note_bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    /// The hash of everything noted so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Number of happenings.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The last happenings, one a line, oldest first.
    pub fn tail(&self, lines: usize) -> String {
        let mut text = String::new();
        for entry in self.tail.iter().skip(self.tail.len().saturating_sub(lines)) {
            let Entry { at, what, first, second } = entry;
            let (millis, micros) = (at / 1_000_000, at / 1000 % 1000);
            let _ = writeln!(text, "{millis:>7}.{micros:03} ms  {what:<18} {first:>8x} {second:x}");
        }
        text
    }

    /// A multiply-and-rotate mix: quick, and every bit of the input matters.
    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}
