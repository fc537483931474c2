//! What several commands share: the configuration's place, and how they fail.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use portcullis::server::files::load_file;
use portcullis::settings::load::Loaded;

/// Where every command looks for its configuration at last.
const CONFIG_DEFAULT: &str = "/etc/portcullis/portcullis.toml";

/// How to print a report.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// `--config FILE`.
#[derive(Args)]
pub(super) struct ConfigFile {
    /// The configuration file [default: /etc/portcullis/portcullis.toml].
    #[arg(short = 'c', long = "config", value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    named: Option<PathBuf>,
}

impl ConfigFile {
    /// The file that was named, or the default.
    pub(super) fn path(&self) -> &Path {
        self.named.as_deref().unwrap_or(Path::new(CONFIG_DEFAULT))
    }

    /// Whether no file was named.
    pub(super) fn is_default(&self) -> bool {
        self.named.is_none()
    }
}

/// Prints why a command failed.
pub(super) fn failed(why: impl Display) -> ExitCode {
    eprintln!("portcullis: {why}");
    ExitCode::FAILURE
}

/// Loads a configuration; on failure prints its problems. Warnings are for `check` and `run`:
/// commands that are called often do not repeat them.
pub(super) fn load(path: &Path) -> Result<Loaded, ExitCode> {
    load_file(path).map_err(|problems| {
        problems.iter().for_each(|problem| eprintln!("{problem}"));
        failed(format_args!("{} cannot be used", path.display()))
    })
}

/// A port that only this machine can reach.
pub(super) const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}
