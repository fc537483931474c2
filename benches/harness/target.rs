//! Where the load goes and what every connection says first.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use clap::{Args, ValueEnum};
use portcullis::dev::any_certificate::AnyCertificate;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::tickets::Tickets;
use crate::wire;

/// Where a token from `--token-file` is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TokenBy {
    /// `Authorization: Bearer TOKEN`.
    Authorization,
    /// Offered as `base64url.bearer.authorization.<base64url of the token>`.
    Subprotocol,
    /// Sent as the first text message.
    FirstMessage,
}

/// The server, and how a connection introduces itself.
#[derive(Args, Clone, Debug)]
pub struct TargetArgs {
    /// The server: ws://HOST:PORT/PATH or wss://…
    #[arg(value_name = "URL")]
    pub url: String,
    #[command(flatten)]
    pub hello: HelloArgs,
}

/// How a connection introduces itself.
#[derive(Args, Clone, Debug, Default)]
pub struct HelloArgs {
    /// A header for every upgrade request, as 'Name: value'; may be repeated
    #[arg(long = "header", value_name = "HEADER")]
    pub headers: Vec<String>,
    /// A subprotocol to offer; may be repeated
    #[arg(long = "subprotocol", value_name = "NAME")]
    pub subprotocols: Vec<String>,
    /// Tokens, one a line; connections take them in turn
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// How a token of --token-file travels [default: authorization]
    #[arg(long, value_name = "CARRIER")]
    pub token_by: Option<TokenBy>,
    /// A text message that every connection sends right after the upgrade
    #[arg(long, value_name = "TEXT")]
    pub first_message: Option<String>,
    /// Count a connection as open only once the server sent a message
    #[arg(long)]
    pub await_message: bool,
    /// Accept any certificate
    #[arg(long)]
    pub insecure: bool,
    /// Trust the certificates in this PEM file (the harness carries no root certificates)
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Resume TLS sessions; without it every handshake is a full one
    #[arg(long)]
    pub tls_resume: bool,
    /// Allow a target that is not this machine. Only load hosts that are yours
    #[arg(long)]
    pub i_own_this_host: bool,
}

/// A resolved server with everything that connections share.
#[derive(Clone)]
pub struct Target {
    /// The address to connect to.
    pub address: SocketAddr,
    /// Upgrade requests; connections take them in turn.
    pub requests: Arc<[Vec<u8>]>,
    /// First messages; connections take them in turn. Empty: none is sent.
    pub first_messages: Arc<[String]>,
    /// Whether a connection is open only once the server sent a message.
    pub await_message: bool,
    /// What `Sec-WebSocket-Accept` must say.
    pub accept: Arc<str>,
    /// TLS, for wss.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// For reports.
    pub url: String,
}

impl Target {
    /// Resolves and checks a target.
    ///
    /// # Errors
    /// Says which option is wrong, and what to give instead.
    pub fn new(url: &str, hello: &HelloArgs) -> Result<Target, String> {
        let parts = parse_url(url)?;
        let address = (parts.host, parts.port)
            .to_socket_addrs()
            .map_err(|error| format!("cannot resolve {}: {error}", parts.host))?
            .next()
            .ok_or_else(|| format!("{} has no address", parts.host))?;
        if !address.ip().is_loopback() && !hello.i_own_this_host {
            return Err(format!(
                "{} is not this machine; load on others' hosts is an attack. If the host is \
                 yours, say --i-own-this-host",
                address.ip()
            ));
        }
        let tls = match parts.secure {
            true => Some(tls_config(hello, parts.host)?),
            false => None,
        };
        let (requests, first_messages, accept) = introductions(hello, &parts)?;
        Ok(Target {
            address,
            requests,
            first_messages,
            await_message: hello.await_message,
            accept: accept.into(),
            tls,
            url: url.to_owned(),
        })
    }

    /// The `index`th source address of a group's worker; `None` where the kernel must choose.
    /// On IPv4 loopback every 127.x.y.z is ours, and each has a port range of its own.
    pub fn source(&self, group: u8, worker: usize, index: usize) -> Option<SocketAddr> {
        match self.address.ip() {
            IpAddr::V4(ip) if ip.is_loopback() => {
                let address = Ipv4Addr::new(127, group, worker as u8 + 1, index as u8 + 1);
                Some(SocketAddr::new(address.into(), 0))
            }
            _ => None,
        }
    }
}

struct Parts<'a> {
    secure: bool,
    authority: &'a str,
    host: &'a str,
    port: u16,
    path: &'a str,
}

fn parse_url(url: &str) -> Result<Parts<'_>, String> {
    let wrong = |what: &str| format!("{url:?}: {what}; expected ws://HOST:PORT/PATH or wss://…");
    let (secure, rest) = match url.split_once("://") {
        Some(("ws", rest)) => (false, rest),
        Some(("wss", rest)) => (true, rest),
        _ => return Err(wrong("not a WebSocket URL")),
    };
    let (authority, path) = match rest.find(['/', '?']) {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    if authority.contains('@') || !path.starts_with('/') {
        return Err(wrong("user names and paths without / are not supported"));
    }
    if url.contains(|c: char| c.is_ascii_control() || c == ' ') {
        return Err(wrong("spaces and control characters must be escaped"));
    }
    let default = if secure { 443 } else { 80 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            (host, port.parse().map_err(|_| wrong("bad port"))?)
        }
        _ => (authority, default),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(wrong("no host"));
    }
    Ok(Parts { secure, authority, host, port, path })
}

type Introductions = (Arc<[Vec<u8>]>, Arc<[String]>, String);

fn introductions(hello: &HelloArgs, parts: &Parts<'_>) -> Result<Introductions, String> {
    for header in &hello.headers {
        if !header.contains(':') || header.contains(['\r', '\n']) {
            return Err(format!("--header {header:?}: expected 'Name: value'"));
        }
    }
    let tokens = match &hello.token_file {
        Some(path) => read_tokens(path)?,
        None if hello.token_by.is_some() => {
            return Err("--token-by needs --token-file".to_owned());
        }
        None => Vec::new(),
    };
    let by = hello.token_by.unwrap_or(TokenBy::Authorization);
    let key = STANDARD.encode(rand::random::<[u8; 16]>());
    let request = |token: Option<&String>| {
        let mut headers = hello.headers.clone();
        let mut offered = hello.subprotocols.clone();
        match (by, token) {
            (TokenBy::Authorization, Some(token)) => {
                headers.push(format!("Authorization: Bearer {token}"));
            }
            (TokenBy::Subprotocol, Some(token)) => {
                let encoded = URL_SAFE_NO_PAD.encode(token);
                offered.push(format!("base64url.bearer.authorization.{encoded}"));
            }
            _ => {}
        }
        if !offered.is_empty() {
            headers.push(format!("Sec-WebSocket-Protocol: {}", offered.join(", ")));
        }
        wire::upgrade_request(parts.authority, parts.path, &key, &headers)
    };
    let in_request = by != TokenBy::FirstMessage && !tokens.is_empty();
    let requests = match in_request {
        true => tokens.iter().map(|token| request(Some(token))).collect(),
        false => vec![request(None)],
    };
    let mut messages: Vec<String> = hello.first_message.iter().cloned().collect();
    if by == TokenBy::FirstMessage && !tokens.is_empty() {
        if !messages.is_empty() {
            return Err("--first-message and --token-by first-message exclude each other".into());
        }
        messages = tokens;
    }
    Ok((requests.into(), messages.into(), wire::accept_key(&key)))
}

fn read_tokens(path: &Path) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("--token-file {}: {error}", path.display()))?;
    let tokens: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if tokens.is_empty() {
        return Err(format!("--token-file {}: holds no token", path.display()));
    }
    Ok(tokens)
}

fn tls_config(
    hello: &HelloArgs,
    host: &str,
) -> Result<(Arc<ClientConfig>, ServerName<'static>), String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    let mut config = match &hello.ca {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            let wrong = |error: &dyn std::fmt::Display| format!("--ca {}: {error}", path.display());
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| wrong(&error))?;
                roots.add(certificate).map_err(|error| wrong(&error))?;
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        None if hello.insecure => {
            let verifier = Arc::new(AnyCertificate(provider));
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
        None => {
            return Err("wss:// needs --ca FILE (a PEM file of certificates to trust), or \
                        --insecure to accept any certificate"
                .to_owned());
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = match hello.tls_resume {
        true => Resumption::store(Arc::new(Tickets::default())),
        false => Resumption::disabled(),
    };
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| format!("{host}: not a name that a certificate can carry"))?;
    Ok((Arc::new(config), name))
}
