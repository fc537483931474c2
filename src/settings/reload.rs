//! Which differences between two settings need a restart.

use super::Settings;
use super::keys::{self, Reload};

/// The keys (as in `limits.client_buffers`) whose values differ and that only a restart changes:
/// a reload that would change any of them is refused as a whole.
pub fn restart_required(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let differs = |key: &&keys::Key| match key.reload {
        Reload::Live => false,
        Reload::RestartRequired(same) => !same(old, new),
    };
    keys::all().filter(differs).map(|key| key.full_name).collect()
}
