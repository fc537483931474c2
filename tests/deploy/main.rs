//! What `deploy/` ships, held against the code: every metric that the dashboard and the alerts
//! name exists with its labels, the seccomp profile lets through what a run was seen to do and
//! nothing without a reason, and the gateway runs under it.

mod dashboard;
mod files;
mod metrics;
mod profile;
mod sandbox;

use std::path::Path;

/// A file of the repository.
fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn json(name: &str) -> serde_json::Value {
    serde_json::from_str(&file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
