//! Secrets, keys and `[[auth]]` blocks.

use std::mem::discriminant;
use std::path::PathBuf;
use std::sync::Arc;

use toml::Spanned;

use super::load::{Issuing, Loader, place, time, trim_newline, word};
use super::raw::{List, RawAuth, RawKey, Text};
use super::{Auth, AuthKind};
use crate::base::secret::Secret;
use crate::protocol::carrier::Carrier;
use crate::protocol::jwt::{Algorithm, JwtKey, JwtOptions, JwtVerifier};

/// A shorter secret can be guessed, or is a mistake (an empty file, a placeholder).
const SECRET_BYTES_MIN: usize = 32;

impl Loader<'_> {
    /// A file that the configuration names, or what `env:NAME` stands for.
    pub(super) fn contents(&mut self, name: &Spanned<String>, private: bool) -> Option<Vec<u8>> {
        if let Some(variable) = name.get_ref().strip_prefix("env:").filter(|_| private) {
            let value = self.outside.variable(variable);
            if value.is_none() {
                let what = format!("the environment variable {variable:?} is not set");
                self.report.error(name.span(), what, "set it where the gateway is started");
            }
            return value.map(String::into_bytes);
        }
        let path: PathBuf = self.base.join(name.get_ref());
        match self.outside.read(&path) {
            Ok(file) => {
                if private && file.readable_by_others {
                    let what = format!("{} can be read by every user", path.display());
                    let fix = format!("chmod o-rwx {}", path.display());
                    self.report.warning(name.span(), what, &fix);
                }
                Some(file.bytes)
            }
            Err(error) => {
                let what = format!("cannot read {}: {error}", path.display());
                let fix = "file names are relative to the configuration file's folder";
                self.report.error(name.span(), what, fix);
                None
            }
        }
    }

    /// A secret from a file or from the configuration itself; `None` when there is none, or
    /// when what there is was reported.
    pub(super) fn secret(&mut self, file: &Text, inline: &Text, key: &str) -> Option<Secret> {
        let (bytes, at) = match (file, inline) {
            (None, None) => return None,
            (Some(_), Some(inline)) => {
                let fix = "keep the file";
                self.report.error(inline.span(), format!("both {key} and secret are given"), fix);
                return None;
            }
            (Some(file), None) => {
                let mut bytes = self.contents(file, true)?;
                trim_newline(&mut bytes);
                (bytes, file.span())
            }
            (None, Some(inline)) => {
                let what = "a secret in the configuration file is for development only";
                let fix = format!("put it into a file that only the gateway may read: {key} = …");
                self.report.warning(inline.span(), what, &fix);
                (inline.get_ref().clone().into_bytes(), inline.span())
            }
        };
        let secret = Secret::new(bytes);
        if secret.len() < SECRET_BYTES_MIN {
            let what = format!(
                "this secret has {} bytes and can be guessed: {SECRET_BYTES_MIN} are the least",
                secret.len()
            );
            self.report.error(at, what, "make one with: openssl rand -hex 32");
            return None;
        }
        Some(secret)
    }

    /// Every `[[auth]]`, and how to make its tokens; `None` when one of them cannot be used.
    pub(super) fn auths(&mut self, raw: &[Spanned<RawAuth>]) -> Option<(Vec<Auth>, Vec<Issuing>)> {
        let built: Vec<_> = raw.iter().map(|auth| self.auth(auth)).collect();
        built.into_iter().collect()
    }

    fn auth(&mut self, auth: &Spanned<RawAuth>) -> Option<(Auth, Issuing)> {
        let raw = auth.get_ref();
        let carriers = self.carriers(&raw.carriers);
        self.check_kind_keys(auth);
        let external = match raw.kind.as_ref().map(|kind| kind.get_ref().as_str()) {
            Some("backend") => Some(Some(AuthKind::Backend(self.backend_verdicts(auth)))),
            Some("http") => Some(self.http_verdicts(auth).map(Arc::new).map(AuthKind::Http)),
            _ => None,
        };
        if let Some(kind) = external {
            let name = raw.name.as_ref()?.get_ref().clone();
            // The gateway makes no tokens for somebody else to judge.
            let issuing = Issuing { keys: Vec::new(), options: JwtOptions::default() };
            return Some((Auth { name, kind: kind?, carriers: carriers? }, issuing));
        }
        let keys = self.keys(raw);
        // Kinds of later versions, and keys that are missing, were reported before.
        raw.kind.as_ref()?;
        let keys = keys?;
        let options = JwtOptions {
            issuer: raw.issuer.as_ref().map(|text| text.get_ref().clone()),
            audience: raw.audience.as_ref().map(|text| text.get_ref().clone()),
            leeway: time("auth", "leeway", &raw.leeway),
            lifetime_max: time("auth", "lifetime_max", &raw.lifetime_max),
        };
        let verifier = match JwtVerifier::new(keys.clone(), options.clone()) {
            Ok(verifier) => verifier,
            Err(error) => {
                self.report.error(place(&raw.keys, &auth.span()), error.to_string(), "");
                return None;
            }
        };
        let name = raw.name.as_ref()?.get_ref().clone();
        let auth = Auth { name, kind: AuthKind::Jwt(verifier), carriers: carriers? };
        Some((auth, Issuing { keys, options }))
    }

    fn carriers(&mut self, raw: &List) -> Option<Vec<Carrier>> {
        let list = raw.as_ref()?;
        if list.get_ref().is_empty() {
            let what = "carriers is empty: no client could show a token";
            self.report.error(list.span(), what, "list at least \"authorization\"");
            return None;
        }
        let mut carriers: Vec<Carrier> = Vec::new();
        let mut failed = false;
        for text in list.get_ref() {
            let carrier = match Carrier::parse(text.get_ref()) {
                Ok(carrier) => carrier,
                Err(error) => {
                    self.report.error(text.span(), error, "");
                    failed = true;
                    continue;
                }
            };
            if let Carrier::Query(_) = carrier {
                let what = "query strings end in the logs of proxies and in browser histories, \
                            and a token with them";
                let fix = "prefer subprotocol or first-message for browsers";
                self.report.warning(text.span(), what, fix);
            }
            if carriers.contains(&carrier) {
                let what = format!("carrier {:?} is listed twice", text.get_ref());
                self.report.error(text.span(), what, "remove one");
                failed = true;
            } else {
                self.check_agreement(text, &carrier, &carriers);
            }
            carriers.push(carrier);
        }
        (!failed).then_some(carriers)
    }

    /// One request can hold two tokens, and then the first carrier counts. That is dangerous
    /// where the first comes without anybody's will, or where another server may read the other.
    fn check_agreement(&mut self, at: &Spanned<String>, carrier: &Carrier, before: &[Carrier]) {
        let same_sort = |other: &&Carrier| discriminant(*other) == discriminant(carrier);
        let cookie = |other: &&Carrier| matches!(other, Carrier::Cookie(_));
        if before.iter().any(|other| same_sort(&other)) {
            let what = format!(
                "{:?} can disagree with the carrier of the same sort before it, which counts \
                 where a request holds both; another server may read the other",
                at.get_ref()
            );
            self.report.warning(at.span(), what, "keep one of them");
        } else if before.iter().any(|other| cookie(&other)) && !cookie(&carrier) {
            let what = format!(
                "{:?} comes after a cookie: a browser sends the cookie by itself, so an old \
                 cookie would count instead of the token that the page shows",
                at.get_ref()
            );
            self.report.warning(at.span(), what, "list cookies last");
        }
    }

    fn keys(&mut self, raw: &RawAuth) -> Option<Vec<JwtKey>> {
        let list = raw.keys.as_ref()?;
        if list.get_ref().is_empty() {
            self.report.error(list.span(), "keys is empty: no token could be valid", "list one");
            return None;
        }
        let mut ids: Vec<&str> = Vec::new();
        let mut keys = Vec::new();
        let mut failed = false;
        for key in list.get_ref() {
            if let Some(id) = &key.get_ref().id {
                let text = id.get_ref().as_str();
                if text.is_empty() || ids.contains(&text) {
                    let what = match text {
                        "" => "an empty id is not an id".to_owned(),
                        id => format!("there are two keys with the id {id:?}"),
                    };
                    self.report.error(id.span(), what, "give another, or leave it out");
                    failed = true;
                }
                ids.push(text);
            }
            match self.key(key) {
                Some(key) => keys.push(key),
                None => failed = true,
            }
        }
        (!failed).then_some(keys)
    }

    fn key(&mut self, key: &Spanned<RawKey>) -> Option<JwtKey> {
        let raw = key.get_ref();
        if raw.secret_file.is_none() && raw.secret.is_none() {
            let fix = "add secret_file = \"keys/NAME\" or secret_file = \"env:NAME\"";
            self.report.error(key.span(), "this key has no secret", fix);
        }
        let secret = self.secret(&raw.secret_file, &raw.secret, "secret_file")?;
        let algorithm = Algorithm::from_name(word("auth.keys", "algorithm", &raw.algorithm))?;
        let hash_bytes = match algorithm {
            Algorithm::HS256 => 32,
            Algorithm::HS384 => 48,
            Algorithm::HS512 => 64,
        };
        if secret.len() < hash_bytes {
            // RFC 7518 section 3.2: a key of the same size as the hash output or larger.
            let what = format!(
                "this secret has {} bytes; RFC 7518 asks for {hash_bytes} with its algorithm",
                secret.len()
            );
            self.report.error(key.span(), what, "make one with: openssl rand -hex 64");
            return None;
        }
        let id = raw.id.as_ref().map(|id| id.get_ref().clone());
        Some(JwtKey { id, algorithm, secret })
    }
}
