//! `portcullis token mint` and `portcullis token inspect`.

mod diagnose;
pub(super) mod mint;
mod shown;
mod verify;

use std::io::Read;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use portcullis::base::time::UnixTime;
use portcullis::protocol::identity::VerifiedIdentity;
use portcullis::protocol::revocation::{Hasher, Revoked};
use portcullis::protocol::scratch::{TOKEN_MAX, TokenScratch};
use portcullis::server::files::SystemEnvironment;
use portcullis::server::journal;
use portcullis::settings::load::{Environment, Issuing, Loaded};

use super::common::{failed, load};
use verify::{explain, find_auth};

/// Create or inspect tokens.
#[derive(Subcommand)]
pub enum Token {
    /// Create a token that a configuration accepts; only the token goes to stdout.
    Mint(mint::Mint),
    /// Show what a token says, and with a configuration whether the gateway would accept it.
    Inspect(Inspect),
}

/// Looks into a token.
#[derive(Args)]
#[command(after_help = "\
Without --config nothing is verified: the claims are what the token says about itself. With it the
exit code is 0 only if the [[auth]] block accepts the token now and the configuration's revocations
file does not revoke it. Revocations that a gateway holds without a file are not seen. The signature
is never shown. Other users of the machine can see a token on the command line, but not on stdin.

Examples:
  portcullis token inspect < token.txt
  portcullis token inspect --config config/dev.toml --auth dev - < token.txt")]
pub struct Inspect {
    /// The token; `-` or nothing reads it from stdin.
    #[arg(value_name = "TOKEN")]
    token: Option<String>,
    /// A configuration to verify it by.
    #[arg(long = "config", value_name = "FILE", requires = "auth")]
    config: Option<std::path::PathBuf>,
    /// The [[auth]] of the configuration.
    #[arg(long, value_name = "NAME", requires = "config")]
    auth: Option<String>,
    /// The `_csrf_token` parameter that goes with a session.
    #[arg(long, value_name = "TEXT", requires = "auth")]
    csrf: Option<String>,
}

/// Carries one of the two out.
pub fn run(command: &Token) -> ExitCode {
    let outcome = match command {
        Token::Mint(command) => mint::run(command),
        Token::Inspect(inspect) => run_inspect(inspect),
    };
    outcome.unwrap_or_else(|code| code)
}

fn run_inspect(command: &Inspect) -> Result<ExitCode, ExitCode> {
    let token = match command.token.as_deref() {
        Some(token) if token != "-" => token.to_owned(),
        _ => read_stdin().map_err(failed)?,
    };
    let token = token.trim().trim_start_matches("Bearer ").trim();
    let now_s = SystemEnvironment.unix_seconds();
    let jwt = diagnose::jwt(token);
    let lines = match &jwt {
        Some(jwt) => Some(shown::jwt_lines(jwt, now_s)),
        None => shown::lines(token, now_s),
    };
    let lines = lines.ok_or_else(|| {
        failed(format_args!(
            "this is not a token: it is neither a JWT (three parts of base64url with dots between \
             them, of which the first is a JSON object), nor what Phoenix and Plug sign \
             (SFMyNTY.…), nor a compact token; it has {} bytes and {} parts, and the gateway \
             takes at most {TOKEN_MAX} bytes",
            token.len(),
            token.split('.').count()
        ))
    })?;
    lines.iter().for_each(|line| println!("{line}"));
    let (Some(config), Some(auth)) = (&command.config, &command.auth) else {
        println!("verdict not verified: give --config and --auth");
        return Ok(ExitCode::SUCCESS);
    };
    let loaded = load(config)?;
    let (block, issuing) = find_auth(&loaded, auth).map_err(failed)?;
    let revoked = revocations(&loaded, now_s).map_err(failed)?;
    let mut scratch = TokenScratch::new();
    let csrf = command.csrf.as_deref().map(str::as_bytes);
    let now = UnixTime::from_seconds(now_s);
    let Some(verifier) = block.kind.verifier() else {
        return Err(failed(format_args!(
            "auth {auth:?} asks a backend or an endpoint: only a running gateway can tell"
        )));
    };
    match verifier.verify(token.as_bytes(), csrf, now, &mut scratch) {
        Ok(identity) if revoked.is_revoked(&identity, "", now) => {
            println!("verdict refused by auth {auth:?}: token_revoked (by the revocations file)");
            Err(ExitCode::FAILURE)
        }
        Ok(identity) => {
            print_scoped(&loaded, &revoked, &identity, now);
            println!("subject {}", shown::plain(identity.subject()));
            match identity.expires() {
                Some(at) => println!("{}", shown::moment("end", at.as_seconds(), now_s)),
                None => println!("end     never"),
            }
            println!("verdict accepted by auth {auth:?}");
            Ok(ExitCode::SUCCESS)
        }
        Err(cause) => {
            if let (Some(jwt), Issuing::Jwt { keys, options }) = (&jwt, issuing) {
                for why in diagnose::refusal(token, jwt, (keys, options), cause, now_s) {
                    println!("reason  {why}");
                }
            }
            println!("verdict refused by auth {auth:?}: {}", explain(cause));
            Err(ExitCode::FAILURE)
        }
    }
}

/// Says on the routes of which backends alone the token is revoked.
fn print_scoped(
    loaded: &Loaded,
    revoked: &Revoked,
    identity: &VerifiedIdentity<'_>,
    now: UnixTime,
) {
    let names = loaded.settings.backends.iter().map(|backend| &backend.name);
    for name in names.filter(|name| revoked.is_revoked(identity, name, now)) {
        println!("reason  token_revoked on the routes of backend {name:?} (by its entry)");
    }
}

/// What the configuration's revocations file holds.
fn revocations(loaded: &Loaded, now_s: u64) -> Result<Revoked, String> {
    let hasher = Hasher::new(&[0; 32]);
    let Some(path) = &loaded.settings.gateway.revocations_file else {
        return Ok(Revoked::nothing(hasher));
    };
    let max = loaded.settings.limits.revocations_max as usize;
    let now = UnixTime::from_seconds(now_s);
    let (set, _torn) = journal::load(path, hasher, max, now).map_err(|error| {
        format!("cannot tell whether the token is revoked: {}: {error}", path.display())
    })?;
    Ok(set.snapshot())
}

/// The token on stdin, if it is not absurdly long.
fn read_stdin() -> Result<String, String> {
    let mut text = String::new();
    let most = TOKEN_MAX as u64 * 4;
    match std::io::stdin().lock().take(most).read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(format!("cannot read a token from stdin: {error}")),
    }
}
