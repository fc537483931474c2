//! Looks every few seconds for sessions that stand still.

use std::time::Duration;

use super::{LinkState, Phase};
use crate::protocol::cause::Cause;
use crate::protocol::link::SessionId;

/// Sessions that have stood still for long, and what they wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::backend) struct Stalls {
    /// The author's program takes no messages of theirs, so their clients may send no more.
    pub(in crate::backend) by_author: Stall,
    /// The gateway gives no credit: their clients do not read.
    pub(in crate::backend) by_gateway: Stall,
    /// Sessions that were closed since the last look because unfinished messages filled
    /// `assembly_max`.
    pub(in crate::backend) evicted: u32,
}

/// How many sessions stand still, and the one that has for longest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::backend) struct Stall {
    pub(in crate::backend) sessions: usize,
    pub(in crate::backend) longest: Option<(SessionId, Duration)>,
}

impl Stall {
    fn note(&mut self, id: SessionId, still: Duration, after: Duration) {
        if still < after {
            return;
        }
        self.sessions += 1;
        if self.longest.is_none_or(|(_, longest)| still > longest) {
            self.longest = Some((id, still));
        }
    }
}

impl LinkState {
    /// To be called every few seconds, with the time since the link's start: closes sessions
    /// whose unfinished message is too old, and says which sessions have stood still for
    /// `stall_after`.
    pub(in crate::backend) fn tick(&mut self, now: Duration, stall_after: Duration) -> Stalls {
        self.now = now;
        let mut stalls = Stalls { evicted: std::mem::take(&mut self.evicted), ..Stalls::default() };
        let mut late = Vec::new();
        for (&id, &index) in &self.by_id {
            let entry = &mut self.sessions[index];
            if entry.phase != Phase::Open {
                continue;
            }
            if !entry.assembly.is_empty()
                && now.saturating_sub(entry.assembly_since) >= self.unfinished_max
            {
                late.push(index);
            }
            if entry.queue.is_empty() {
                entry.taken_at = now;
            }
            if entry.pending.is_empty() {
                entry.sent_at = now;
            }
            stalls.by_author.note(id, now.saturating_sub(entry.taken_at), stall_after);
            stalls.by_gateway.note(id, now.saturating_sub(entry.sent_at), stall_after);
        }
        for index in late {
            self.close_now(index, Cause::SlowConsumer, 1013);
        }
        stalls
    }
}
