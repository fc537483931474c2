//! `portcullis dev`: the whole way of a message embedded in one process. A gateway on plain and
//! TLS loopback ports, a certificate and keys made at the start, an echo-and-chat backend behind
//! a real link, tokens of every kind, and a page to try them on.
//!
//! Nothing here is a short cut: the settings are text for the ordinary loader, the backend is an
//! ordinary one, the clients are strangers.

pub mod any_certificate;
mod certificate;
mod chat;
pub mod connect;
mod options;
mod page;
mod settings;
mod tokens;

use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use rand::TryRngCore;

use crate::server::{self, RunError, StartOptions};
use chat::ChatBackend;
pub use options::DevOptions;
use options::{failure, unix_seconds};
use tokens::Mint;

/// Runs everything until SIGINT or SIGTERM; prints where it is and how to talk to it.
///
/// # Errors
/// [`RunError`]: an address that is taken, with the option that chooses another; or why a part
/// could not be made.
pub fn run(options: DevOptions) -> Result<(), RunError> {
    let options = free_addresses(options)?;
    let link_secret = random_hex()?;
    let backend = ChatBackend::start(&link_secret)?;
    let demo = settings::Demo {
        options,
        backend: backend.address().to_owned(),
        link_secret,
        token_key: random_hex()?,
        certificate: certificate::make()?,
    };
    let loaded = settings::load_demo(&demo)?;
    let key = settings::token_key(&loaded);
    let mint = Arc::new(Mint::new(key, random_hex()?.into_bytes()));
    let banner = banner(&options, &mint.good(tokens::SUBJECTS[0], unix_seconds()));
    let page = page::page(&options, Arc::clone(&mint));
    let settings = loaded.settings;
    let logs = server::logs::install(settings.gateway.log_format, &settings.gateway.log_level)?;
    let start = StartOptions {
        page: Some(Box::new(move |_| page)),
        signals: true,
        logs,
        ..StartOptions::default()
    };
    let gateway = server::start(settings, start)?;
    print!("{banner}");
    let ended = gateway.join();
    drop(backend);
    ended
}

/// 256 random bits as text, as `openssl rand -hex 32` would give.
fn random_hex() -> Result<String, RunError> {
    let mut bytes = [0; 32];
    let drawn = rand::rngs::OsRng.try_fill_bytes(&mut bytes);
    drawn.map_err(|error| failure("no random bytes from the system", error))?;
    Ok(bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    }))
}

/// Replaces ports 0 and finds out which address is taken. The gateway's own listeners share
/// their ports (SO_REUSEPORT) and would silently take half of another gateway's clients.
fn free_addresses(options: DevOptions) -> Result<DevOptions, RunError> {
    let free = |option: &str, address: SocketAddr| -> Result<(TcpListener, SocketAddr), RunError> {
        let bound = TcpListener::bind(address)
            .and_then(|listener| listener.local_addr().map(|address| (listener, address)));
        let other = address.port().saturating_add(10_000).max(1024);
        let what = format!("to choose another port: {option} {other}");
        bound.map_err(|source: io::Error| RunError::Bind { what, address, source })
    };
    // Held together, so that two ports 0 do not become the same.
    let (_plain, plain) = free("--plain-port", options.plain)?;
    let (_tls, tls) = free("--tls-port", options.tls)?;
    let (_admin, admin) = free("--admin-port", options.admin)?;
    Ok(DevOptions { plain, tls, admin })
}

/// What is printed once everything is up.
fn banner(options: &DevOptions, token: &str) -> String {
    let DevOptions { plain, tls, admin } = options;
    let program = std::env::args().next().unwrap_or_else(|| "portcullis".to_owned());
    let subject = tokens::SUBJECTS[0];
    format!(
        "\nPortcullis dev: gateway, backend and tokens in one process

  page      http://{admin}/
  plain     ws://{plain}/chat    ws://{plain}/echo
  TLS       wss://{tls}/chat   wss://{tls}/echo   (self-signed, made just now)
  metrics   http://{admin}/metrics

Chat as {subject} from another terminal (the token is good for an hour):

  {program} connect ws://{plain}/chat --token {token}

See only the upgrade:

  curl -isN --http1.1 --max-time 1 -H 'Connection: Upgrade' -H 'Upgrade: websocket' \\
    -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==' \\
    -H 'Authorization: Bearer {token}' http://{plain}/echo

More tokens (good, short-lived, expired, forged): http://{admin}/dev/tokens.json
Ctrl-C ends it.

"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_the_option_that_changes_it() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let table = [
            ("--plain-port", DevOptions { plain: address, tls: any, admin: any }),
            ("--tls-port", DevOptions { plain: any, tls: address, admin: any }),
            ("--admin-port", DevOptions { plain: any, tls: any, admin: address }),
        ];
        for (option, options) in table {
            let error = free_addresses(options).expect_err("taken").to_string();
            let advice = format!("to choose another port: {option} ");
            assert!(error.contains(&address.to_string()), "{error}");
            assert!(error.contains(&advice), "{error}");
        }
    }

    #[test]
    fn ports_0_become_three_different_ones() {
        let any = "127.0.0.1:0".parse().unwrap();
        let free = free_addresses(DevOptions { plain: any, tls: any, admin: any }).unwrap();
        let mut ports = [free.plain.port(), free.tls.port(), free.admin.port()];
        ports.sort_unstable();
        assert!(ports[0] > 0 && ports[0] != ports[1] && ports[1] != ports[2], "{ports:?}");
    }

    #[test]
    fn random_text_is_64_digits_and_never_the_same() {
        let (one, other) = (random_hex().unwrap(), random_hex().unwrap());
        assert_eq!((one.len(), other.len()), (64, 64));
        assert_ne!(one, other);
        assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()), "{one}");
    }
}
