//! What can be asked for on the command line. Each command has a file.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use portcullis::server::files::load_file;
use portcullis::settings::load::Loaded;

mod admin_client;
mod check;
mod connect;
mod dev;
mod drain;
mod echo_backend;
mod health;
mod reload;
mod revoke;
mod run;
mod schema;
mod status;
mod token;
mod version;

const EXAMPLES: &str = "\
Examples:
  portcullis dev                                   everything embedded, to try it out
  portcullis check --config config/portcullis.toml what is wrong with a configuration
  portcullis run --config config/portcullis.toml   the gateway; SIGHUP reloads, SIGTERM drains
  portcullis token mint --config config/dev.toml --auth dev --subject alice --expires-in 1h

Exit codes:
  0  done
  1  it did not work, or the answer is no (check, token inspect); the reason is on stderr
  2  the command line was not understood";

/// Authenticates WebSocket clients, or closes them, and passes the rest on to few backends.
#[derive(Parser)]
#[command(name = "portcullis", after_help = EXAMPLES, arg_required_else_help = true)]
#[command(disable_help_subcommand = true)]
pub struct Arguments {
    /// Show the version, and what this machine's io_uring can do.
    #[arg(short = 'V', long)]
    version: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Start the gateway and serve until it is told to stop.
    Run(run::Run),
    /// Report everything that is wrong with a configuration, at once.
    Check(check::Check),
    /// Print the JSON Schema of the configuration file, for editors.
    Schema(schema::Schema),
    /// Start a gateway, a backend and a page to play with; needs no configuration.
    Dev(dev::Dev),
    /// Make a token, or look into one.
    #[command(subcommand)]
    Token(token::Token),
    /// Close connections whose tokens are void, and keep their owners out.
    Revoke(revoke::Revoke),
    /// Show what a running gateway does.
    Status(status::Status),
    /// Have a running gateway read its configuration again.
    Reload(reload::Reload),
    /// Have a running gateway close its clients, then end.
    Drain(drain::Drain),
    /// Exit 0 if a running gateway does its work.
    Health(health::Health),
    /// Talk to a gateway from a terminal.
    Connect(connect::Connect),
    /// Start a backend that sends every message back.
    EchoBackend(echo_backend::EchoBackend),
    /// Print a script that completes this command line in a shell.
    Completions(Completions),
}

/// Prints the completions of a shell.
#[derive(Args)]
#[command(after_help = "Example:\n  portcullis completions bash > \
                        ~/.local/share/bash-completion/completions/portcullis")]
struct Completions {
    /// Which shell.
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Carries the command out.
pub fn run(arguments: Arguments) -> ExitCode {
    if arguments.version {
        return version::run();
    }
    match arguments.command {
        Some(Command::Run(command)) => run::run(&command),
        Some(Command::Check(command)) => check::run(&command),
        Some(Command::Schema(_)) => schema::run(),
        Some(Command::Dev(command)) => dev::run(&command),
        Some(Command::Token(command)) => token::run(&command),
        Some(Command::Revoke(command)) => revoke::run(&command),
        Some(Command::Status(command)) => status::run(&command),
        Some(Command::Reload(command)) => reload::run(&command),
        Some(Command::Drain(command)) => drain::run(&command),
        Some(Command::Health(command)) => health::run(&command),
        Some(Command::Connect(command)) => connect::run(command),
        Some(Command::EchoBackend(command)) => echo_backend::run(&command),
        Some(Command::Completions(command)) => {
            let mut description = Arguments::command();
            let out = &mut std::io::stdout();
            clap_complete::generate(command.shell, &mut description, "portcullis", out);
            ExitCode::SUCCESS
        }
        // `arg_required_else_help` leaves nothing else.
        None => ExitCode::from(2),
    }
}

/// `--config FILE`.
#[derive(Args)]
struct ConfigFile {
    /// The configuration file; docs/configuration.md explains every key.
    #[arg(long = "config", value_name = "FILE")]
    path: PathBuf,
}

/// Tells a person why it did not work.
fn failed(why: impl Display) -> ExitCode {
    eprintln!("portcullis: {why}");
    ExitCode::FAILURE
}

/// Loads a configuration, and tells of its problems on stderr.
fn load_or_tell(path: &Path) -> Result<Loaded, ExitCode> {
    match load_file(path) {
        Ok(loaded) => {
            loaded.warnings.iter().for_each(|warning| eprintln!("{warning}"));
            Ok(loaded)
        }
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            Err(failed(format_args!("{} cannot be used", path.display())))
        }
    }
}

/// A port of this machine alone.
const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_is_understood() {
        let table: &[(&str, bool)] = &[
            ("--version", true),
            ("-V", true),
            ("run --config c.toml", true),
            ("run", false),
            ("check --config c.toml", true),
            ("check c.toml", false),
            ("dev", true),
            ("dev --plain-port 1 --tls-port 2 --admin-port 3", true),
            ("dev --plain-port 65536", false),
            ("token mint --config c --auth a --subject s --expires-in 1h", true),
            ("token mint --config c --auth a --subject s --expires-in 1", false),
            ("token mint --config c --auth a --subject s --expires-in 1h --claim x=1", true),
            ("token mint --config c --auth a --subject s --expires-in 1h --claim x", false),
            ("token mint --config c --auth a --subject s", false),
            ("token inspect", true),
            ("token inspect a.b.c", true),
            ("token inspect - --config c --auth a", true),
            ("token inspect --config c", false),
            ("token inspect --auth a", false),
            ("echo-backend --listen 127.0.0.1:7000 --secret-file s", true),
            ("echo-backend", false),
            ("connect ws://127.0.0.1:8080/chat --token a.b.c", true),
            ("connect ws://127.0.0.1:8080/chat --origin http://a", true),
            ("connect --token a.b.c", false),
            ("revoke --config c --subject a --lapses-in 1h", true),
            ("revoke --config c --subject a --issued-before now --lapses-in 1h", true),
            ("revoke --config c --issued-before 1763800000 --lapses-in 1h", true),
            ("revoke --config c --token-id t --lapses-in 1h", true),
            ("revoke --config c --token-id t --subject a --lapses-in 1h", false),
            ("revoke --config c --token-id t --issued-before now --lapses-in 1h", false),
            ("revoke --config c --subject a", false),
            ("revoke --config c --subject a --issued-before soon --lapses-in 1h", false),
            ("revoke --config c --list", true),
            ("revoke --config c --list --subject a", false),
            ("revoke --config c --undo 7", true),
            ("revoke --config c --undo 7 --list", false),
            ("status --config c", true),
            ("status --url http://127.0.0.1:9464", true),
            ("status --url http://127.0.0.1:9464 --token-file t", true),
            ("status --config c --url http://127.0.0.1:9464", false),
            ("status --config c --token-file t", false),
            ("status", false),
            ("reload --config c", true),
            ("drain --config c", true),
            ("health --config c", true),
            ("health --config c --ready", true),
            ("completions zsh", true),
            ("completions ksh", false),
            ("", false),
            ("serve", false),
        ];
        for (line, understood) in table {
            let words = std::iter::once("portcullis").chain(line.split_whitespace());
            assert_eq!(Arguments::try_parse_from(words).is_ok(), *understood, "{line:?}");
        }
    }
}
