//! What can be asked for on the command line. Each command has a file.

use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

mod admin_client;
mod as_run;
mod check;
mod common;
mod connect;
mod dev;
mod doctor;
mod drain;
mod echo_backend;
mod health;
mod reload;
mod revoke;
mod run;
mod schema;
mod status;
mod token;

const EXAMPLES: &str = "\
Examples:
  portcullis dev                                   try it: gateway, backend, tokens and a page
  portcullis check -c config/portcullis.toml       report what is wrong with a configuration
  portcullis doctor                                report what is wrong with this machine
  portcullis run -c config/portcullis.toml         serve; SIGHUP reloads, SIGTERM drains
  portcullis token mint -c config/dev.toml --auth dev --subject alice --expires-in 1h

Environment:
  PORTCULLIS_CONFIG  the configuration file, when --config is not given
  NO_COLOR           if set, no colors in help texts and in the log

Exit codes:
  0  done
  1  it failed, or the answer is no (check, doctor, token inspect); stderr says why
  2  the command line was not understood";

/// A WebSocket gateway that authenticates clients or closes them, and relays the rest to your
/// backends.
#[derive(Parser)]
#[command(name = "portcullis", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway until a signal ends it.
    Run(run::Run),
    /// Report everything that is wrong with a configuration.
    Check(check::Check),
    /// Report what is wrong with this machine: kernel, limits, ports, certificates, backends.
    Doctor(doctor::Doctor),
    /// Print the JSON Schema of the configuration file, for editors.
    Schema(schema::Schema),
    /// Try it out: start a gateway, a backend and a page, without a configuration.
    Dev(dev::Dev),
    /// Create or inspect tokens.
    #[command(subcommand)]
    Token(token::Token),
    /// Revoke tokens: close their connections and refuse them from now on.
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
    /// Run a backend that echoes every message.
    EchoBackend(echo_backend::EchoBackend),
    /// Print a completion script for a shell.
    Completions(Completions),
}

/// Print a completion script for a shell.
#[derive(Args)]
#[command(after_help = "Example:\n  portcullis completions bash > \
                        ~/.local/share/bash-completion/completions/portcullis")]
struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Carries the command out.
pub fn run(arguments: Arguments) -> ExitCode {
    match arguments.command {
        Command::Run(command) => run::run(&command),
        Command::Check(command) => check::run(&command),
        Command::Schema(_) => schema::run(),
        Command::Doctor(command) => doctor::run(&command),
        Command::Dev(command) => dev::run(&command),
        Command::Token(command) => token::run(&command),
        Command::Revoke(command) => revoke::run(&command),
        Command::Status(command) => status::run(&command),
        Command::Reload(command) => reload::run(&command),
        Command::Drain(command) => drain::run(&command),
        Command::Health(command) => health::run(&command),
        Command::Connect(command) => connect::run(command),
        Command::EchoBackend(command) => echo_backend::run(&command),
        Command::Completions(command) => {
            let mut description = Arguments::command();
            let out = &mut std::io::stdout();
            clap_complete::generate(command.shell, &mut description, "portcullis", out);
            ExitCode::SUCCESS
        }
    }
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
            ("run --config c.toml", true),
            ("run -c c.toml", true),
            ("run", true),
            ("check --config c.toml", true),
            ("check --as-run --format json", true),
            ("check --format yaml", false),
            ("check c.toml", false),
            ("doctor", true),
            ("doctor -c c.toml --format json", true),
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
            (
                "connect wss://a/b -H X:1 --header Y:2 --cookie a=1 --subprotocol v1 --insecure",
                true,
            ),
            ("revoke --config c --subject a --lapses-in 1h", true),
            ("revoke --config c --subject a --issued-before now --lapses-in 1h", true),
            ("revoke --config c --issued-before 1763800000 --lapses-in 1h", true),
            ("revoke --config c --token-id t --lapses-in 1h", true),
            ("revoke --config c --token-id t --subject a --lapses-in 1h", false),
            ("revoke --config c --token-id t --issued-before now --lapses-in 1h", false),
            ("revoke --config c --subject a", false),
            ("revoke --config c --subject a --issued-before soon --lapses-in 1h", false),
            ("revoke --config c --lapses-in 1h", false),
            ("revoke", false),
            ("revoke --list", true),
            ("revoke --config c --list", true),
            ("revoke --config c --list --subject a", false),
            ("revoke --config c --undo 7", true),
            ("revoke --config c --undo 7 --list", false),
            ("status --config c", true),
            ("status --url http://127.0.0.1:9464", true),
            ("status --url http://127.0.0.1:9464 --token-file t", true),
            ("status --config c --url http://127.0.0.1:9464", true),
            ("status --config c --token-file t", false),
            ("status", true),
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
