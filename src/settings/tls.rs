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
use super::file::RawCertificate;
use super::load::Loader;

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
        let (mut failed, mut not_after_s) = (false, u64::MAX);
        for certificate in raw.get_ref() {
            match self.certificate(certificate.get_ref()) {
                Some(Certificate { key, names, not_after_s: end, at }) => {
                    not_after_s = not_after_s.min(end);
                    self.add_names(&mut by_name, key, names, at);
                }
                None => failed = true,
            }
        }
        if failed {
            return None;
        }
        match server_config(by_name) {
            Ok(config) => Some(TlsListener { config: Arc::new(config), not_after_s }),
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

    fn certificate(&mut self, raw: &RawCertificate) -> Option<Certificate> {
        let chain = raw.certificate.as_ref().and_then(|name| self.chain(name));
        let private = raw.key.as_ref().and_then(|name| self.private_key(name));
        let (certificate_at, key_at) = (raw.certificate.as_ref()?.span(), raw.key.as_ref()?.span());
        let (chain, private) = (chain?, private?);
        let (names, not_after_s) = self.certificate_names(&chain[0], certificate_at.clone())?;
        self.check_chain(&chain, certificate_at.clone());
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
                self.report.error(key_at, what, fix).code = "certificate_key_mismatch";
                return None;
            }
            Err(error) => {
                let what = format!("this certificate cannot be used: {error}");
                self.report.error(certificate_at, what, "");
                return None;
            }
        }
        Some(Certificate { key: Arc::new(certified), names, not_after_s, at: certificate_at })
    }

    /// Clients build the chain from what the server sends: most do not fetch what is missing, and
    /// those that do hide the mistake from its author.
    fn check_chain(&mut self, chain: &[CertificateDer<'_>], at: Range<usize>) {
        let parse = |der| X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate);
        let Some(chain) = chain.iter().map(|der| parse(der)).collect::<Option<Vec<_>>>() else {
            let what = "the chain holds something that is no X.509 certificate";
            self.report.warning(at, what, "keep the server's certificate and its intermediates");
            return;
        };
        let gap = chain.windows(2).position(|pair| pair[0].issuer() != pair[1].subject());
        if let Some(index) = gap {
            let what = format!(
                "certificate {} of the file is not the issuer of the one before it",
                index + 2
            );
            let fix = "write the server's certificate first, then each one's issuer";
            self.report.warning(at, what, fix).code = "certificate_chain";
        } else if let [alone] = chain.as_slice()
            && alone.issuer() != alone.subject()
        {
            let what = format!(
                "the file has the server's certificate only, without its issuer's ({})",
                alone.issuer().to_string().escape_debug()
            );
            let fix = "append the intermediate certificates (a CA calls that file fullchain); \
                       clients refuse the chain unless they have this issuer already";
            self.report.warning(at, what, fix).code = "certificate_chain";
        }
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

    /// The names that a certificate is for, in lower case, and when it expires. Warns when it is
    /// not valid now.
    fn certificate_names(
        &mut self,
        der: &CertificateDer<'_>,
        at: Range<usize>,
    ) -> Option<(Vec<String>, u64)> {
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
        let not_after = validity.not_after.timestamp();
        if now > validity.not_after.timestamp() {
            let what = format!("this certificate expired on {}", validity.not_after);
            let fix = "clients will refuse it: renew it";
            self.report.warning(at.clone(), what, fix).code = "certificate_expired";
        } else if now > validity.not_after.timestamp() - EXPIRES_SOON_S {
            let what = format!("this certificate expires on {}", validity.not_after);
            let fix = "renew it and reload";
            self.report.warning(at.clone(), what, fix).code = "certificate_expires_soon";
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
        Some((names, u64::try_from(not_after).unwrap_or(0)))
    }
}

/// A certificate that can be served.
struct Certificate {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
    not_after_s: u64,
    /// Its place in the configuration.
    at: Range<usize>,
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
