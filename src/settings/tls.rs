//! Certificates and keys of a listener, made into a `rustls` configuration.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{Error as TlsError, InconsistentKeys, ServerConfig};
use toml::Spanned;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::TlsListener;
use super::load::Loader;
use super::raw::RawCertificate;

/// A certificate that ends within this many seconds is warned of.
const EXPIRES_SOON_S: i64 = 7 * 24 * 3600;

impl Loader<'_> {
    /// The TLS side of a listener; `None` when it cannot be used.
    pub(super) fn tls(
        &mut self,
        raw: &Spanned<Vec<Spanned<RawCertificate>>>,
    ) -> Option<TlsListener> {
        if raw.get_ref().is_empty() {
            self.report.error(raw.span(), "tls has no certificate", "remove it, or list one");
            return None;
        }
        let mut by_name = BySni::default();
        let mut failed = false;
        for certificate in raw.get_ref() {
            match self.certificate(certificate.get_ref()) {
                Some((key, names, at)) => self.add_names(&mut by_name, key, names, at),
                None => failed = true,
            }
        }
        if failed {
            return None;
        }
        match server_config(by_name) {
            Ok(config) => Some(TlsListener(Arc::new(config))),
            Err(error) => {
                self.report.error(raw.span(), format!("TLS cannot be set up: {error}"), "");
                None
            }
        }
    }

    fn add_names(
        &mut self,
        by_name: &mut BySni,
        key: Arc<CertifiedKey>,
        names: Vec<String>,
        at: Range<usize>,
    ) {
        for name in names {
            if by_name.insert(&name, key.clone()) {
                continue;
            }
            let what = format!("an earlier certificate of this listener has {name} too");
            self.report.warning(at.clone(), what, "the earlier one is served for it");
        }
        by_name.first.get_or_insert(key);
    }

    fn certificate(
        &mut self,
        raw: &RawCertificate,
    ) -> Option<(Arc<CertifiedKey>, Vec<String>, Range<usize>)> {
        let chain = raw.certificate.as_ref().and_then(|name| self.chain(name));
        let private = raw.key.as_ref().and_then(|name| self.private_key(name));
        let (certificate_at, key_at) = (raw.certificate.as_ref()?.span(), raw.key.as_ref()?.span());
        let (chain, private) = (chain?, private?);
        let names = self.certificate_names(&chain[0], certificate_at.clone())?;
        let signing = match ring::sign::any_supported_type(&private) {
            Ok(signing) => signing,
            Err(error) => {
                let what = format!("this private key cannot be used: {error}");
                self.report.error(key_at, what, "use ECDSA P-256 or P-384, Ed25519, or RSA");
                return None;
            }
        };
        let certified = CertifiedKey::new(chain, signing);
        match certified.keys_match() {
            Ok(()) | Err(TlsError::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(TlsError::InconsistentKeys(_)) => {
                let what = "this private key does not belong to the certificate";
                let fix = "the first certificate in the file must be the server's own";
                self.report.error(key_at, what, fix);
                return None;
            }
            Err(error) => {
                let what = format!("this certificate cannot be used: {error}");
                self.report.error(certificate_at, what, "");
                return None;
            }
        }
        Some((Arc::new(certified), names, certificate_at))
    }

    fn chain(&mut self, name: &Spanned<String>) -> Option<Vec<CertificateDer<'static>>> {
        let pem = self.contents(name, false)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        match chain {
            Ok(chain) if !chain.is_empty() => Some(chain),
            Ok(_) => {
                let what = format!("{} holds no certificate", name.get_ref());
                let fix = "it must be PEM: -----BEGIN CERTIFICATE-----";
                self.report.error(name.span(), what, fix);
                None
            }
            Err(error) => {
                let what = format!("{} is not PEM: {error}", name.get_ref());
                self.report.error(name.span(), what, "");
                None
            }
        }
    }

    fn private_key(&mut self, name: &Spanned<String>) -> Option<PrivateKeyDer<'static>> {
        let pem = zeroize::Zeroizing::new(self.contents(name, true)?);
        if let Ok(key) = PrivateKeyDer::from_pem_slice(&pem) {
            return Some(key);
        }
        // The error's text is not shown: it can repeat a line of the file.
        let encrypted = pem.windows(9).any(|window| window == b"ENCRYPTED");
        let (what, fix) = if encrypted {
            ("this private key is encrypted", "decrypt it: openssl pkey -in OLD -out NEW")
        } else {
            ("there is no private key here", "it must be PEM: -----BEGIN PRIVATE KEY-----")
        };
        self.report.error(name.span(), what, fix);
        None
    }

    /// The names that a certificate is for, in lower case. Warns when it is not valid now.
    fn certificate_names(
        &mut self,
        der: &CertificateDer<'_>,
        at: Range<usize>,
    ) -> Option<Vec<String>> {
        let certificate = match X509Certificate::from_der(der) {
            Ok((_, certificate)) => certificate,
            Err(_) => {
                let what = "the file holds no X.509 certificate that can be read";
                self.report.error(at, what, "");
                return None;
            }
        };
        let now = i64::try_from(self.outside.unix_seconds()).unwrap_or(i64::MAX);
        let validity = certificate.validity();
        if now > validity.not_after.timestamp() {
            let what = format!("this certificate expired on {}", validity.not_after);
            self.report.warning(at.clone(), what, "clients will refuse it: renew it");
        } else if now > validity.not_after.timestamp() - EXPIRES_SOON_S {
            let what = format!("this certificate expires on {}", validity.not_after);
            self.report.warning(at.clone(), what, "renew it and reload");
        } else if now < validity.not_before.timestamp() {
            let what = format!("this certificate is valid from {}", validity.not_before);
            self.report.warning(at.clone(), what, "clients will refuse it until then");
        }
        let names = certificate.subject_alternative_name().ok().flatten();
        let names: Vec<String> = names
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
                _ => None,
            })
            .collect();
        if names.is_empty() && certificate.subject_alternative_name().ok().flatten().is_none() {
            let what = "this certificate has no alternative names: browsers will refuse it";
            self.report.warning(at, what, "make one with subjectAltName");
        }
        Some(names)
    }
}

fn server_config(by_name: BySni) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(by_name));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Stateless tickets, and one of them: a resumed client costs no memory while it is away.
    config.ticketer = ring::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // A replayed upgrade request would be a second connection with the same token.
    config.max_early_data_size = 0;
    Ok(config)
}

/// Chooses a certificate by the client's server name.
#[derive(Default)]
struct BySni {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// `*.example.com` is kept as `example.com`.
    below: HashMap<String, Arc<CertifiedKey>>,
    first: Option<Arc<CertifiedKey>>,
}

impl BySni {
    /// Whether the name was still free. A certificate may well repeat its own names.
    fn insert(&mut self, name: &str, key: Arc<CertifiedKey>) -> bool {
        let (map, name) = match name.strip_prefix("*.") {
            Some(parent) => (&mut self.below, parent),
            None => (&mut self.exact, name),
        };
        let entry = map.entry(name.to_owned()).or_insert_with(|| key.clone());
        Arc::ptr_eq(entry, &key)
    }

    /// RFC 6125 section 6.4.3: a wildcard stands for exactly one label, the leftmost.
    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let lower = name.to_ascii_lowercase();
        let parent = || lower.split_once('.').and_then(|(_, parent)| self.below.get(parent));
        self.exact.get(&lower).or_else(parent).or(self.first.as_ref())
    }
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            Some(name) => self.find(name).cloned(),
            None => self.first.clone(),
        }
    }
}

impl fmt::Debug for BySni {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.exact.len() + self.below.len();
        out.debug_struct("BySni").field("names", &names).finish_non_exhaustive()
    }
}
