//! TLS with the servers of `kind = "websocket"`: whose certificates they may show, and for which
//! names. There is no way to leave the check out.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use toml::Spanned;

use super::WebSocketBackend;
use super::file::RawBackend;
use super::load::Loader;

/// How the address of a server with TLS begins.
pub(super) const TLS: &str = "wss://";

impl Loader<'_> {
    /// What the servers of a block of `kind = "websocket"` have besides their addresses; `None`
    /// when it cannot be used.
    pub(super) fn websocket_backend(&mut self, raw: &RawBackend) -> Option<WebSocketBackend> {
        let name = match &raw.server_name {
            None => None,
            Some(text) => Some(self.server_name(text)?),
        };
        let list = raw.endpoints.as_ref()?;
        let of_endpoint = |text: &Spanned<String>| {
            let authority = text.get_ref().strip_prefix(TLS)?;
            let address = authority.parse::<SocketAddr>().ok()?;
            Some(name.clone().unwrap_or(ServerName::from(address.ip())))
        };
        let names: Vec<_> = list.get_ref().iter().map(of_endpoint).collect();
        let roots = match &raw.ca_file {
            None => None,
            Some(file) => Some(self.roots(file)?),
        };
        if let Some(at) = names.iter().position(Option::is_some) {
            let roots = match roots {
                Some(roots) => roots,
                None => self.system_roots(&list.get_ref()[at])?,
            };
            let tls = Some(Arc::new(client_config(roots)));
            return Some(WebSocketBackend { tls, names });
        }
        for (key, text) in [("ca_file", &raw.ca_file), ("server_name", &raw.server_name)] {
            if let Some(text) = text {
                let what = format!("{key} has no use: no endpoint is {TLS}");
                self.report.error(text.span(), what, "remove it, or write wss://");
            }
        }
        Some(WebSocketBackend { tls: None, names })
    }

    fn server_name(&mut self, text: &Spanned<String>) -> Option<ServerName<'static>> {
        let name = ServerName::try_from(text.get_ref().clone());
        if name.is_err() {
            let what = format!("{:?} is not a name that a certificate can be for", text.get_ref());
            let fix = "write a host name, as in app.example.com, or an IP address";
            self.report.error(text.span(), what, fix);
        }
        name.ok()
    }

    fn system_roots(&mut self, endpoint: &Spanned<String>) -> Option<RootCertStore> {
        match self.environment.system_roots() {
            Ok(roots) => Some(roots),
            Err(error) => {
                let what = format!("the system's certificates cannot be read: {error}");
                let fix = "install ca-certificates, or name the issuer's certificate as ca_file";
                self.report.error(endpoint.span(), what, fix);
                None
            }
        }
    }
}

/// TLS of a client that shows no certificate. Servers that speak more than HTTP/1.1 are asked for
/// that.
fn client_config(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider has suites for both versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}
