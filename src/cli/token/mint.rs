//! `portcullis token mint`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use portcullis::base::random::Random;
use portcullis::base::secret::Secret;
use portcullis::base::time::UnixTime;
use portcullis::linux::process::random_seed;
use portcullis::protocol::cause::Cause;
use portcullis::protocol::compact_token::{self, CompactKey, Fields};
use portcullis::protocol::external_term::{Step, TermPath};
use portcullis::protocol::jwt::{self, JwtKey, JwtOptions};
use portcullis::protocol::phoenix_token;
use portcullis::protocol::plug_session::{self, CSRF_NAME};
use portcullis::server::files::Machine;
use portcullis::settings::load::{Issuing, Outside};
use portcullis::settings::units::parse_duration;
use serde_json::{Map, Value};

use super::super::common::{ConfigFile, failed, load};
use super::verify::{explain, find_auth, verify};

/// Create a token that a configuration accepts; only the token goes to stdout.
#[derive(Args)]
#[command(after_help = "\
It is signed with the first key, or the one that --key names: by its id, or its place from 1 among
the values of secret_key_base. A claim's value is read as JSON if it is JSON, and is text otherwise.

  jwt           the subject as `sub` or where the [[auth]]'s `subject` says, iat, exp, the issuer and
                audience that the [[auth]] asks for, and the claims
  phoenix       the subject as signed data (a number as an integer); with claims, a map of them and
                the subject under the [[auth]]'s `subject`
  plug-session  a session of the subject and the claims; the parameter _csrf_token that goes with it
                is printed to stderr
  compact       the subject, a claim called jti as the token's id, the others as JSON

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
    /// Subject of the token (`sub`).
    #[arg(long, value_name = "S")]
    subject: String,
    /// How long it is valid, as in 30s, 5m, 1h.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    expires_in: Duration,
    /// A further claim; may be repeated.
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    claims: Vec<(String, Value)>,
    /// The key to sign with.
    #[arg(long, value_name = "ID")]
    key: Option<String>,
}

/// A token, and the parameter that goes with a session.
struct Minted {
    token: String,
    csrf: Option<String>,
}

/// Makes it, tries it, and prints it.
pub(super) fn run(command: &Mint) -> Result<ExitCode, ExitCode> {
    let loaded = load(command.config.path())?;
    let (auth, issuing) = find_auth(&loaded, &command.auth).map_err(failed)?;
    let now_s = Machine.unix_seconds();
    let minted = match issuing {
        Issuing::Jwt { keys, options } => mint_jwt(command, keys, options, now_s),
        Issuing::Phoenix { keys, subject } => mint_phoenix(command, keys, subject.as_ref(), now_s),
        Issuing::PlugSession { keys, subject } => mint_session(command, keys, subject),
        Issuing::Compact { keys } => mint_compact(command, keys, now_s),
        Issuing::Elsewhere => Err("these tokens are made outside the gateway".to_owned()),
    };
    let Minted { token, csrf } = minted.map_err(failed)?;
    if let Err(cause) = verify(auth, &token, csrf.as_deref(), now_s) {
        let why = format!("the gateway would not accept this token now: {}", explain(cause));
        // A token that is not valid yet may be useful; the others are not.
        if cause != Cause::TokenNotYetValid {
            return Err(failed(why));
        }
        eprintln!("portcullis: warning: {why}");
    }
    if let Some(csrf) = csrf {
        eprintln!("portcullis: a session carries no time, so that --expires-in is not in it");
        eprintln!("portcullis: the query must carry {CSRF_NAME}={csrf}");
    }
    println!("{token}");
    Ok(ExitCode::SUCCESS)
}

fn mint_jwt(
    command: &Mint,
    keys: &[JwtKey],
    options: &JwtOptions,
    now_s: u64,
) -> Result<Minted, String> {
    let key = by_id(command, keys, |key| key.id.clone())?;
    let subject = Value::from(command.subject.as_str());
    let mut claims = match &options.subject {
        None => Map::from_iter([("sub".to_owned(), subject)]),
        Some(path) => match nested(path, subject) {
            Value::Object(members) => members,
            _ => return Err("claims are an object: begin `subject` with a name".to_owned()),
        },
    };
    claims.insert("iat".into(), now_s.into());
    claims.insert("exp".into(), expires_s(command, now_s).into());
    let expected = [("iss", &options.issuer), ("aud", &options.audience)];
    for (name, value) in expected {
        if let Some(value) = value {
            // Where the subject is the issuer, it is the user who says which.
            claims.entry(name).or_insert_with(|| value.as_str().into());
        }
    }
    add_claims(command, &mut claims)?;
    let token = jwt::mint(key, Value::Object(claims).to_string().as_bytes());
    Ok(Minted { token, csrf: None })
}

fn mint_phoenix(
    command: &Mint,
    keys: &[Secret],
    path: Option<&TermPath>,
    now_s: u64,
) -> Result<Minted, String> {
    let data = match path {
        Some(path) => data_with_subject(command, path)?,
        None if command.claims.is_empty() => subject(command),
        None => {
            return Err("this [[auth]] has no `subject`: claims make the data a map, in which it \
                        would find no subject"
                .to_owned());
        }
    };
    let key = by_place(command, keys)?;
    let signed = UnixTime::from_seconds(now_s);
    let token = phoenix_token::mint(key, &data, signed, command.expires_in.as_secs());
    Ok(Minted { token, csrf: None })
}

/// The claims, and the subject where `path` wants it.
fn data_with_subject(command: &Mint, path: &TermPath) -> Result<Value, String> {
    match nested(path, subject(command)) {
        Value::Object(mut members) => {
            add_claims(command, &mut members)?;
            Ok(Value::Object(members))
        }
        data if command.claims.is_empty() => Ok(data),
        _ => Err("the subject of this [[auth]] stands in a list, which has no room for claims"
            .to_owned()),
    }
}

/// The least data in which `path` leads to `value`.
fn nested(path: &TermPath, value: Value) -> Value {
    path.steps().iter().rev().fold(value, |inner, step| match step {
        Step::Name(name) => Value::Object(Map::from_iter([(name.clone(), inner)])),
        Step::Index(index) => {
            let mut items = vec![Value::Null; *index];
            items.push(inner);
            Value::Array(items)
        }
    })
}

fn mint_session(command: &Mint, keys: &[Secret], path: &TermPath) -> Result<Minted, String> {
    let session = data_with_subject(command, path)?;
    if !session.is_object() {
        return Err("a session is a map: begin this [[auth]]'s `subject` with a name".to_owned());
    }
    let seed = random_seed().map_err(|error| format!("no random bytes: {error}"))?;
    let mut random = [0; 36];
    Random::from_seed(seed).fill(&mut random);
    let minted = plug_session::mint(by_place(command, keys)?, session, &random);
    Ok(Minted { token: minted.cookie, csrf: Some(minted.csrf) })
}

fn mint_compact(command: &Mint, keys: &[CompactKey], now_s: u64) -> Result<Minted, String> {
    let key = by_id(command, keys, |key| Some(key.id.to_string()))?;
    let mut claims = Map::new();
    add_claims(command, &mut claims)?;
    let token_id = match claims.remove("jti") {
        None => String::new(),
        Some(Value::String(id)) => id,
        Some(other) => other.to_string(),
    };
    let claims = if claims.is_empty() { String::new() } else { Value::Object(claims).to_string() };
    let fields = Fields {
        issued: UnixTime::from_seconds(now_s),
        expires: UnixTime::from_seconds(expires_s(command, now_s)),
        subject: &command.subject,
        token_id: &token_id,
        claims: claims.as_bytes(),
    };
    let token = compact_token::mint(key, &fields).ok_or(
        "it does not fit: subject (1 to 255 bytes), jti (at most 255), the end (before 2106), all \
         of it (16,384 characters)",
    )?;
    Ok(Minted { token, csrf: None })
}

fn expires_s(command: &Mint, now_s: u64) -> u64 {
    now_s.saturating_add(command.expires_in.as_secs())
}

/// The subject as Elixir would hold it: a number as an integer.
fn subject(command: &Mint) -> Value {
    match command.subject.parse::<i64>() {
        Ok(number) if number.to_string() == command.subject => number.into(),
        _ => command.subject.as_str().into(),
    }
}

fn add_claims(command: &Mint, to: &mut Map<String, Value>) -> Result<(), String> {
    for (name, value) in &command.claims {
        if to.insert(name.clone(), value.clone()).is_some() {
            return Err(format!("the claim {name:?} is set already, or twice"));
        }
    }
    Ok(())
}

fn by_id<'k, K>(
    command: &Mint,
    keys: &'k [K],
    id_of: impl Fn(&K) -> Option<String>,
) -> Result<&'k K, String> {
    let found = match &command.key {
        None => keys.first(),
        Some(id) => keys.iter().find(|key| id_of(key).as_ref() == Some(id)),
    };
    found.ok_or_else(|| {
        let ids: Vec<_> = keys.iter().filter_map(id_of).collect();
        let id = command.key.as_deref().unwrap_or_default();
        format!("there is no key with the id {id:?}; there are: {}", ids.join(", "))
    })
}

/// Keys of Phoenix have no ids: they are counted from 1.
fn by_place<'k>(command: &Mint, keys: &'k [Secret]) -> Result<&'k Secret, String> {
    let place = command.key.as_ref().map_or(Ok(1), |key| key.parse::<usize>());
    let key = place.ok().and_then(|place| keys.get(place.checked_sub(1)?));
    key.ok_or_else(|| {
        format!("--key counts the values of secret_key_base, from 1 to {}", keys.len())
    })
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
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
}
