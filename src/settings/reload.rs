//! Which differences between two settings need a restart.

use super::Settings;

/// The cold keys (as in `limits.client_buffers`) whose values differ: a reload that would change
/// any of them is refused as a whole.
pub fn cold_changes(old: &Settings, new: &Settings) -> Vec<&'static str> {
    COLD.iter().filter(|(_, same)| !same(old, new)).map(|(name, _)| *name).collect()
}

/// Whether a cold key has the same value in both.
type Same = fn(&Settings, &Settings) -> bool;

/// Every cold key that can differ. A test compares the names with the table of keys.
const COLD: &[(&str, Same)] = &[
    ("gateway.workers", |a, b| a.gateway.workers == b.gateway.workers),
    ("gateway.descriptors", |a, b| a.gateway.descriptors == b.gateway.descriptors),
    ("gateway.admin", |a, b| a.gateway.admin == b.gateway.admin),
    ("gateway.admin_token_file", |a, b| {
        let bytes = |s: &Settings| s.gateway.admin_token.as_ref().map(|t| t.expose().to_vec());
        bytes(a) == bytes(b)
    }),
    ("gateway.admin_socket", |a, b| a.gateway.admin_socket == b.gateway.admin_socket),
    ("gateway.close_log", |a, b| a.gateway.close_log == b.gateway.close_log),
    ("gateway.revocations_file", |a, b| a.gateway.revocations_file == b.gateway.revocations_file),
    ("gateway.log.format", |a, b| a.gateway.log_format == b.gateway.log_format),
    ("limits.connections_per_worker", |a, b| {
        a.limits.connections_per_worker == b.limits.connections_per_worker
    }),
    ("limits.memory_max", |a, b| a.limits.memory_max == b.limits.memory_max),
    ("limits.dead_tokens_max", |a, b| a.limits.dead_tokens_max == b.limits.dead_tokens_max),
    ("limits.client_buffers", |a, b| a.limits.client_buffers == b.limits.client_buffers),
    ("limits.accepts", |a, b| a.limits.accepts == b.limits.accepts),
    ("listener.address", |a, b| {
        let addresses = |s: &Settings| s.listeners.iter().map(|l| l.address).collect::<Vec<_>>();
        addresses(a) == addresses(b)
    }),
    ("listener.tls", |a, b| {
        a.listeners.iter().zip(&b.listeners).all(|(a, b)| a.tls.is_some() == b.tls.is_some())
    }),
    ("listener.defer_accept", |a, b| {
        a.listeners.iter().zip(&b.listeners).all(|(a, b)| a.defer_accept == b.defer_accept)
    }),
    ("backend.name", |a, b| {
        let names = |s: &Settings| s.backends.iter().map(|b| b.name.clone()).collect::<Vec<_>>();
        names(a) == names(b)
    }),
    ("backend.endpoints", |a, b| {
        a.backends.iter().zip(&b.backends).all(|(a, b)| a.endpoints == b.endpoints)
    }),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::keys::{Heat, KEYS, Shape};

    #[test]
    fn every_cold_key_is_compared_and_nothing_else() {
        // A key with a single permitted word cannot differ.
        let can_differ = |shape: Shape| !matches!(shape, Shape::WordOrLater([_], _));
        let mut declared: Vec<String> = KEYS
            .iter()
            .filter(|key| key.heat == Heat::Cold && can_differ(key.shape))
            .map(|key| key.full_name())
            .collect();
        let mut compared: Vec<String> = COLD.iter().map(|(name, _)| (*name).to_owned()).collect();
        declared.sort();
        compared.sort();
        assert_eq!(declared, compared);
    }
}
