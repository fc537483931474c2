//! `portcullis token mint` and `portcullis token inspect`.

use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use portcullis::base::time::UnixTime;
use portcullis::protocol::cause::Cause;
use portcullis::protocol::jwt::{self, JwtKey, JwtVerifier, TOKEN_MAX, TokenScratch};
use portcullis::server::files::Machine;
use portcullis::settings::AuthKind;
use portcullis::settings::load::{Issuing, Loaded, Outside};
use portcullis::settings::units::parse_duration;
use serde_json::{Map, Value};

use super::{ConfigFile, failed, load_or_tell};

/// Makes tokens, and looks into them.
#[derive(Subcommand)]
pub enum Token {
    /// Make a token that a configuration accepts; it is all that stdout gets.
    Mint(Mint),
    /// Show what a token says, and with a configuration whether it would be accepted.
    Inspect(Inspect),
}

/// Makes a token.
#[derive(Args)]
#[command(after_help = "\
The token has sub, iat and exp, and the issuer and audience that the [[auth]] asks for. It is
signed with the first key, or the one that --key names. A claim's value is read as JSON if it is
JSON, and is text otherwise.

Examples:
  portcullis token mint --config config/dev.toml --auth dev --subject alice --expires-in 1h
  portcullis token mint --config config/dev.toml --auth dev --subject bob --expires-in 5m \\
      --claim role=admin --claim 'rooms=[\"lobby\",\"attic\"]'
  TOKEN=$(portcullis token mint …) && websocat -H \"Authorization: Bearer $TOKEN\" ws://…/ws")]
pub struct Mint {
    #[command(flatten)]
    config: ConfigFile,
    /// The [[auth]] that the token is for.
    #[arg(long, value_name = "NAME")]
    auth: String,
    /// Whom the token is about (`sub`).
    #[arg(long, value_name = "S")]
    subject: String,
    /// How long it is valid, as in 30s, 5m, 1h.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    expires_in: Duration,
    /// A further claim; may be repeated.
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    claims: Vec<(String, Value)>,
    /// The `id` of the key to sign with.
    #[arg(long, value_name = "ID")]
    key: Option<String>,
}

/// Looks into a token.
#[derive(Args)]
#[command(after_help = "\
Without --config nothing is verified: the claims are what the token says of itself. With it the
exit code is 0 only if the gateway would accept the token now. The signature is never shown.
A token on the command line can be seen by other users of the machine; stdin can not.

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
}

/// Carries one of the two out.
pub fn run(command: &Token) -> ExitCode {
    let outcome = match command {
        Token::Mint(mint) => run_mint(mint),
        Token::Inspect(inspect) => run_inspect(inspect),
    };
    outcome.unwrap_or_else(|code| code)
}

fn run_mint(command: &Mint) -> Result<ExitCode, ExitCode> {
    let loaded = load_or_tell(&command.config.path)?;
    let (verifier, issuing) = find_auth(&loaded, &command.auth).map_err(failed)?;
    let now_s = Machine.unix_seconds();
    let key = choose_key(issuing, command.key.as_deref()).map_err(failed)?;
    let claims = claims(command, issuing, now_s).map_err(failed)?;
    let token = jwt::mint(key, Value::Object(claims).to_string().as_bytes());
    if let Err(cause) = verify(verifier, &token, now_s) {
        let why = format!("the gateway would not accept this token now: {}", explain(cause));
        // A token that is not valid yet is a fair thing to ask for; the others help nobody.
        if cause != Cause::TokenNotYetValid {
            return Err(failed(why));
        }
        eprintln!("portcullis: warning: {why}");
    }
    println!("{token}");
    Ok(ExitCode::SUCCESS)
}

fn run_inspect(command: &Inspect) -> Result<ExitCode, ExitCode> {
    let token = match command.token.as_deref() {
        Some(token) if token != "-" => token.to_owned(),
        _ => read_stdin().map_err(failed)?,
    };
    let token = token.trim().trim_start_matches("Bearer ").trim();
    let inspection = jwt::inspect(token.as_bytes()).map_err(|_| {
        failed("this is not a token: it must be three parts of base64url with dots between them")
    })?;
    let now_s = Machine.unix_seconds();
    println!("header  {}", pretty(&inspection.unverified_header));
    println!("claims  {}", pretty(&inspection.unverified_claims));
    for line in times(&inspection.unverified_claims, now_s) {
        println!("{line}");
    }
    println!("mac     {} bytes", inspection.mac_length);
    let (Some(config), Some(auth)) = (&command.config, &command.auth) else {
        println!("verdict not verified: give --config and --auth");
        return Ok(ExitCode::SUCCESS);
    };
    let loaded = load_or_tell(config)?;
    let (verifier, _) = find_auth(&loaded, auth).map_err(failed)?;
    match verify(verifier, token, now_s) {
        Ok(()) => {
            println!("verdict accepted by auth {auth:?}");
            Ok(ExitCode::SUCCESS)
        }
        Err(cause) => {
            println!("verdict refused by auth {auth:?}: {}", explain(cause));
            Err(ExitCode::FAILURE)
        }
    }
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

fn find_auth<'l>(loaded: &'l Loaded, name: &str) -> Result<(&'l JwtVerifier, &'l Issuing), String> {
    let auths = &loaded.settings.auths;
    let Some(index) = auths.iter().position(|auth| auth.name == name) else {
        let names: Vec<_> = auths.iter().map(|auth| auth.name.as_str()).collect();
        return Err(format!(
            "there is no [[auth]] called {name:?}; there are: {}",
            names.join(", ")
        ));
    };
    match &auths[index].kind {
        AuthKind::Jwt(verifier) => Ok((verifier, &loaded.issuing[index])),
        AuthKind::Backend(_) | AuthKind::Http(_) => {
            Err(format!("[[auth]] {name:?} asks somebody else, who also makes the tokens"))
        }
    }
}

fn choose_key<'i>(issuing: &'i Issuing, id: Option<&str>) -> Result<&'i JwtKey, String> {
    let Some(id) = id else {
        return issuing.keys.first().ok_or_else(|| "this [[auth]] has no keys".to_owned());
    };
    issuing.keys.iter().find(|key| key.id.as_deref() == Some(id)).ok_or_else(|| {
        let ids: Vec<_> = issuing.keys.iter().filter_map(|key| key.id.as_deref()).collect();
        format!("there is no key with the id {id:?}; there are: {}", ids.join(", "))
    })
}

fn claims(command: &Mint, issuing: &Issuing, now_s: u64) -> Result<Map<String, Value>, String> {
    let mut claims = Map::new();
    claims.insert("sub".into(), command.subject.as_str().into());
    claims.insert("iat".into(), now_s.into());
    claims.insert("exp".into(), now_s.saturating_add(command.expires_in.as_secs()).into());
    let expected = [("iss", &issuing.options.issuer), ("aud", &issuing.options.audience)];
    for (name, value) in expected {
        if let Some(value) = value {
            claims.insert(name.into(), value.as_str().into());
        }
    }
    for (name, value) in &command.claims {
        if claims.insert(name.clone(), value.clone()).is_some() {
            return Err(format!("the claim {name:?} is set already, or twice"));
        }
    }
    Ok(claims)
}

fn verify(verifier: &JwtVerifier, token: &str, now_s: u64) -> Result<(), Cause> {
    let now = UnixTime::from_seconds(now_s);
    verifier.verify(token.as_bytes(), now, &mut TokenScratch::new()).map(|_| ())
}

/// A cause for a person at a terminal; the label is what clients and metrics are told.
fn explain(cause: Cause) -> String {
    let why = match cause {
        Cause::TokenMalformed => {
            "it cannot be read, is over 4 KiB, has no proper exp, or ends beyond lifetime_max"
        }
        Cause::BadSignature => "none of the keys signed it, or not with the key's algorithm",
        Cause::TokenExpired => "its time is over",
        Cause::TokenNotYetValid => "its time has not begun",
        Cause::TokenForbidden => "it is for another issuer or audience",
        _ => "see docs/configuration.md",
    };
    format!("{} ({why})", cause.label())
}

/// JSON with indentation, or as it is; nothing in it can steer a terminal.
fn pretty(json: &str) -> String {
    let parsed: Result<Value, _> = serde_json::from_str(json);
    let pretty = parsed.and_then(|value| serde_json::to_string_pretty(&value));
    let text = pretty.unwrap_or_else(|_| json.to_owned());
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\n        "),
            c if c.is_control() => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// The times among the claims, for people.
fn times(claims: &str, now_s: u64) -> Vec<String> {
    let claims: Value = serde_json::from_str(claims).unwrap_or_default();
    let line = |name: &str| {
        let at_s = claims.get(name)?.as_u64()?;
        let (distance_s, side) = match at_s.checked_sub(now_s) {
            Some(ahead) => (ahead, "from now"),
            None => (now_s - at_s, "ago"),
        };
        Some(format!("{name}     {} ({} {side})", utc(at_s), span(distance_s)))
    };
    ["iat", "nbf", "exp"].into_iter().filter_map(line).collect()
}

/// A span in its two largest units.
fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {}s", seconds % 60),
        3600..86_400 => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Date and time in UTC, by the proleptic Gregorian calendar.
fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    // Days since 0000-03-01; years begin in March so that the leap day is a year's last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

fn duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Some(time) if time.as_secs() > 0 => Ok(time),
        _ => Err("write a time of at least one second, as in 30s, 5m or 1h".to_owned()),
    }
}

fn claim(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    if name.is_empty() {
        return Err("a claim needs a name: write NAME=VALUE".to_owned());
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_are_json_or_text() {
        let table = [
            ("role=admin", Ok(("role", json!("admin")))),
            ("level=3", Ok(("level", json!(3)))),
            ("level=\"3\"", Ok(("level", json!("3")))),
            ("rooms=[\"a\"]", Ok(("rooms", json!(["a"])))),
            ("x=a=b", Ok(("x", json!("a=b")))),
            ("x=", Ok(("x", json!("")))),
            ("x", Err("write NAME=VALUE")),
            ("=x", Err("a claim needs a name: write NAME=VALUE")),
        ];
        for (text, expected) in table {
            let expected = expected.map(|(name, value)| (name.to_owned(), value));
            assert_eq!(claim(text), expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn nothing_shown_steers_a_terminal() {
        assert_eq!(
            pretty(r#"{"a":"x\u009b1m\u001b"}"#),
            "{\n          \"a\": \"x\\u{9b}1m\\u001b\"\n        }"
        );
    }

    #[test]
    fn dates() {
        for (unix_s, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_795_348_800, "2026-11-22 12:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(unix_s), expected);
        }
    }

    #[test]
    fn times_are_told_for_people() {
        let claims = r#"{"iat":1000,"exp":94600,"nbf":"soon"}"#;
        let expected = [
            "iat     1970-01-01 00:16:40 UTC (1m 40s ago)",
            "exp     1970-01-02 02:16:40 UTC (1d 1h from now)",
        ];
        assert_eq!(times(claims, 1100), expected);
    }
}
