//! L6: the control thread. It runs on tokio-uring, spawns and watches the workers, loads and
//! reloads the settings, answers the admin endpoints, exposes the metrics and writes the logs.
//! No client's byte passes through it.

pub mod admin;
pub mod admin_sockets;
pub mod auth_client;
pub mod close_log;
pub mod control;
pub mod data_plane;
pub mod error;
pub mod exposition;
pub mod files;
pub mod gateway;
pub mod journal;
pub mod logs;
pub mod memory;
pub mod names;
pub mod panics;
pub mod process;
pub mod reload;
pub mod revocations;
pub mod signals;
pub mod status;
pub mod takeover;
pub mod workers;

#[cfg(test)]
mod end_to_end;
#[cfg(test)]
mod testing;

use std::path::Path;

pub use admin::{Asset, AssetBody, Page};
pub use error::RunError;
pub use gateway::{GatewayHandle, PageMaker, StartOptions, start};

use crate::settings::Settings;
use crate::settings::load::Problem;

/// `portcullis run`: serves until SIGTERM or SIGINT has drained the gateway. `config_path` is
/// read again on SIGHUP; `warnings` are what loading it brought up, and go to the log. With
/// `takeover` a gateway that runs already drains once this one serves.
///
/// # Errors
/// [`RunError`] when the gateway cannot start, or when its control thread dies.
pub fn run(
    config_path: &Path,
    settings: Settings,
    warnings: &[Problem],
    takeover: bool,
) -> Result<(), RunError> {
    let logs = logs::install(settings.gateway.log_format, &settings.gateway.log_level)?;
    for Problem { file, line, column, what, fix, .. } in warnings {
        tracing::warn!(file, line, column, remedy = fix, "configuration: {what}");
    }
    let options = StartOptions {
        config_path: Some(config_path.to_owned()),
        signals: true,
        logs,
        takeover,
        ..StartOptions::default()
    };
    start(settings, options)?.join()
}
