//! `portcullis run`.

use std::process::ExitCode;

use clap::Args;

use portcullis::settings::load::Loaded;

use super::common::{ConfigFile, failed, load};

/// Run the gateway until a signal ends it.
#[derive(Args)]
#[command(after_help = "\
Signals:
  SIGHUP           reload the configuration: all of it takes effect, or nothing
  SIGTERM, SIGINT  drain: accept no more connections, close the others over deadlines.drain, exit 0

Examples:
  portcullis run --config /etc/portcullis/portcullis.toml
  portcullis run --config /etc/portcullis/portcullis.toml --takeover")]
pub struct Run {
    #[command(flatten)]
    config: ConfigFile,
    /// Start beside the gateway that runs with this gateway.admin_socket, then have it drain.
    #[arg(long)]
    takeover: bool,
}

/// Serves until the gateway has drained.
pub fn run(command: &Run) -> ExitCode {
    let path = command.config.path();
    let Loaded { settings, issuing, warnings } = match load(path) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    // The gateway only verifies tokens: the keys that sign them do not stay in memory.
    drop(issuing);
    match portcullis::server::run(path, settings, &warnings, command.takeover) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error),
    }
}
