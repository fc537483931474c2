//! One link, as its task, its sessions and their senders see it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::settings::Settings;
use super::state::LinkState;
use crate::protocol::link::{GoAway, Limits};

pub(super) struct Link {
    state: Mutex<LinkState>,
    /// Tells the task that `out` or `lost` has something.
    wake: Notify,
}

impl Link {
    /// A link between these settings and a gateway of these limits; `features` are those that
    /// both sides have.
    pub(super) fn new(settings: &Settings, theirs: Limits, features: u64) -> Self {
        let state = Mutex::new(LinkState::new(settings, theirs, features));
        Link { state, wake: Notify::new() }
    }

    /// Waits until [`Link::with`] wakes the link's task.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, LinkState> {
        // The state's own panics are bugs; a poisoned lock must not spread them further.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` under the lock, then wakes the link's task if it has new work.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut LinkState) -> T) -> T {
        let mut state = self.lock();
        let answer = change(&mut state);
        let is_new = !state.is_awake && state.has_work();
        state.is_awake |= is_new;
        drop(state);
        if is_new {
            self.wake.notify_one();
        }
        answer
    }
}

/// Tells the link's gateway that no new sessions should come.
pub(super) fn go_away(link: &Link, reason: &str) {
    link.with(|state| {
        if !state.is_draining {
            state.is_draining = true;
            GoAway { reason }.encode(&mut state.out);
        }
    });
}
