//! `[[auth]]` blocks whose decisions come from outside: `kind = "backend"` and `kind = "http"`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use hyper::header::HeaderName;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use toml::Spanned;

use super::file::{RawAuth, RawIdentityHeaders, RawRoute};
use super::load::{Loader, place};
use super::raw::{List, Text};
use super::units::format_duration;
use super::{HttpAuth, Refuse};
use crate::base::circuit::CircuitLimits;
use crate::protocol::http_decision::DecisionHeaders;

/// Fields that the gateway writes itself, or that belong to the connection.
const HEADERS_WITHHELD: &[&str] = &[
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "expect",
    "host",
    "origin",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-method",
    "x-forwarded-proto",
    "x-forwarded-uri",
    "x-original-method",
    "x-original-uri",
    "x-original-url",
];

impl Loader<'_> {
    /// How long a decision of `kind = "backend"` may take.
    pub(super) fn backend_auth(&mut self, auth: &Spanned<RawAuth>) -> Duration {
        auth.get_ref().timeout()
    }

    /// A block of `kind = "http"`; `None` when it cannot be used.
    pub(super) fn http_auth(&mut self, auth: &Spanned<RawAuth>) -> Option<HttpAuth> {
        let raw = auth.get_ref();
        let endpoint = self.http_endpoint(auth);
        let identity = self.identity_headers(raw.identity.as_ref());
        let headers = self.endpoint_headers(&raw.headers);
        let is_tls = endpoint.as_ref().is_some_and(|uri| uri.scheme_str() == Some("https"));
        let roots = raw.ca_file.as_ref().map(|name| self.roots(name));
        if let Some(name) = raw.ca_file.as_ref().filter(|_| endpoint.is_some() && !is_tls) {
            let what = "ca_file has no use: the endpoint is not https://";
            self.report.error(name.span(), what, "remove it, or write https://");
        }
        let circuit = CircuitLimits {
            failures: raw.circuit_failures(),
            open_min: raw.circuit_open_min(),
            open_max: raw.circuit_open_max(),
        };
        if circuit.open_max < circuit.open_min {
            let at = place(&raw.circuit_open_max, &auth.span());
            let what = "circuit_open_max is below circuit_open_min";
            self.report.error(at, what, "the wait begins at the one and doubles up to the other");
        }
        let name = raw.name.as_ref()?.get_ref().clone();
        let roots = match roots {
            None => None,
            Some(roots) => Some(Arc::new(roots?)),
        };
        Some(HttpAuth {
            name,
            endpoint: endpoint?,
            timeout: raw.timeout(),
            in_flight_max: raw.in_flight_max(),
            queue_max: raw.queue_max(),
            response_max: raw.response_max(),
            headers: headers?,
            identity: identity?,
            roots,
            circuit,
        })
    }

    /// Deadlines between which a decision must fit.
    pub(super) fn check_timeouts(&mut self, raw: &[Spanned<RawAuth>], authenticate: Duration) {
        for auth in raw {
            let block = auth.get_ref();
            let timeout = block.timeout();
            if is_external(block) && timeout >= authenticate {
                let what = format!(
                    "timeout = {} is not below deadlines.authenticate = {}, which ends first: \
                     clients of a slow decision are told that they were slow",
                    format_duration(timeout),
                    format_duration(authenticate)
                );
                self.report.warning(place(&block.timeout, &auth.span()), what, "");
            }
        }
    }

    /// A decision comes after the 101, when HTTP has nothing more to say.
    pub(super) fn check_refuse(&mut self, route: &Spanned<RawRoute>, blocks: &[&RawAuth]) {
        let raw = route.get_ref();
        let refuse = raw.refuse();
        if refuse != Refuse::Explain && blocks.iter().any(|block| is_external(block)) {
            let what = format!(
                "refuse = {:?} cannot hold where somebody else decides: their verdict \
                 comes after the 101, so clients that they refuse are explained to",
                refuse.word()
            );
            self.report.warning(place(&raw.refuse, &route.span()), what, "");
        }
    }

    fn http_endpoint(&mut self, auth: &Spanned<RawAuth>) -> Option<Uri> {
        let text = auth.get_ref().endpoint.as_ref()?;
        let what = match text.get_ref().parse::<Uri>() {
            Err(error) => error.to_string(),
            Ok(uri) if !matches!(uri.scheme_str(), Some("http" | "https")) => {
                "it begins with neither http:// nor https://".to_owned()
            }
            Ok(uri) if uri.host().is_none_or(str::is_empty) => "it names no host".to_owned(),
            Ok(uri) if uri.authority().is_some_and(|a| a.as_str().contains('@')) => {
                "a user and password would end in logs".to_owned()
            }
            Ok(_) if text.get_ref().contains('#') => "a fragment is never sent".to_owned(),
            Ok(uri) => {
                self.check_endpoint(text, &uri);
                return Some(uri);
            }
        };
        // The text itself is not shown: it may hold a password or a key.
        let what = format!("this is not an endpoint: {what}");
        let fix = "write http://HOST:PORT/PATH or https://HOST/PATH";
        self.report.error(text.span(), what, fix);
        None
    }

    /// Tokens must not cross a network in the clear.
    fn check_endpoint(&mut self, at: &Spanned<String>, uri: &Uri) {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let here = host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if uri.scheme_str() == Some("http") && !here {
            let what = "clients' tokens travel to this endpoint in the clear";
            self.report.warning(at.span(), what, "write https://, unless the way is protected");
        }
    }

    fn identity_headers(&mut self, raw: Option<&RawIdentityHeaders>) -> Option<DecisionHeaders> {
        let absent = RawIdentityHeaders::default();
        let raw = raw.unwrap_or(&absent);
        let mut names: Vec<String> = Vec::new();
        let mut name = |text: &Text, name: &str| {
            let name = name.to_ascii_lowercase();
            let wrong = if HeaderName::try_from(name.as_str()).is_err() {
                Some(format!("{name:?} is not a header name"))
            } else if names.contains(&name) {
                Some(format!("header {name:?} cannot mean two things"))
            } else {
                None
            };
            names.push(name.clone());
            match wrong {
                None => Some(name),
                Some(what) => {
                    self.report.error(place(text, &(0..0)), what, "");
                    None
                }
            }
        };
        let subject = name(&raw.subject, raw.subject());
        let token_id = name(&raw.token_id, raw.token_id());
        let expires = name(&raw.expires, raw.expires());
        let issued_at = name(&raw.issued_at, raw.issued_at());
        let claims = name(&raw.claims, raw.claims());
        let reason = name(&raw.reason, raw.reason());
        Some(DecisionHeaders {
            subject: subject?,
            token_id: token_id?,
            expires: expires?,
            issued_at: issued_at?,
            claims: claims?,
            reason: reason?,
        })
    }

    fn endpoint_headers(&mut self, list: &List) -> Option<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        let mut failed = false;
        for text in list.iter().flat_map(|list| list.get_ref()) {
            let name = text.get_ref().to_ascii_lowercase();
            let what = if HeaderName::try_from(name.as_str()).is_err() {
                format!("{:?} is not a header name", text.get_ref())
            } else if HEADERS_WITHHELD.contains(&name.as_str()) || name.starts_with("sec-websocket")
            {
                format!("header {name:?} is the gateway's own and does not go along")
            } else if names.contains(&name) {
                format!("header {name:?} is listed twice")
            } else {
                names.push(name);
                continue;
            };
            self.report.error(text.span(), what, "");
            failed = true;
        }
        (!failed).then_some(names)
    }

    pub(super) fn roots(&mut self, name: &Spanned<String>) -> Option<RootCertStore> {
        let pem = self.contents(name, false)?;
        let path: PathBuf = self.base.join(name.get_ref());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let added = certificate
                .map_err(|error| error.to_string())
                .and_then(|der| roots.add(der).map_err(|error| error.to_string()));
            if let Err(error) = added {
                let what = format!("{} has a certificate that cannot be used", path.display());
                self.report.error(name.span(), format!("{what}: {error}"), "");
                return None;
            }
        }
        if roots.is_empty() {
            let what = format!("{} has no certificate", path.display());
            self.report.error(name.span(), what, "it must be PEM: -----BEGIN CERTIFICATE-----");
            return None;
        }
        Some(roots)
    }
}

fn is_external(block: &RawAuth) -> bool {
    let kind = block.kind.as_ref().map(|kind| kind.get_ref().as_str());
    matches!(kind, Some("backend" | "http"))
}
