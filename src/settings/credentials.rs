//! Secrets, keys and `[[auth]]` blocks.

use std::io::ErrorKind;
use std::mem::discriminant;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use toml::Spanned;

use super::file::{RawAuth, RawKey};
use super::load::{Issuing, Loader, place, trim_newline};
use super::raw::{CountOrWord, List, Path, Text};
use super::secrets;
use super::units::parse_duration;
use super::{Auth, AuthKind, SecretEncoding};
use crate::base::secret::Secret;
use crate::protocol::carrier::Carrier;
use crate::protocol::compact_token::{self, CompactKey, CompactOptions, CompactVerifier};
use crate::protocol::external_term::{Step, TermPath};
use crate::protocol::jwt::{JwtKey, JwtOptions, JwtVerifier};
use crate::protocol::mac::Algorithm;
use crate::protocol::phoenix_token::{MaxAge, PhoenixOptions, PhoenixVerifier};
use crate::protocol::plug_crypto::{BASES_MAX, Derivation};
use crate::protocol::plug_session::{CSRF_NAME, SessionOptions, SessionVerifier};
use crate::protocol::verifier::{TokenFormat, Verifier};

/// What Plug.Session.COOKIE asks of a `secret_key_base`, in bytes.
const SECRET_KEY_BASE_MIN: usize = 64;

/// What decides, and how to make its tokens.
type Built = (AuthKind, Issuing);

/// A digest of what a decision depends on beside the token and the clock.
struct Fingerprint(Sha256);

impl Fingerprint {
    fn new(kind: &str, options: &dyn std::fmt::Debug) -> Self {
        let mut fingerprint = Fingerprint(Sha256::new());
        fingerprint.add(kind, format!("{options:?}").as_bytes());
        fingerprint
    }

    /// Lengths go before bytes, so that no two lists are taken for one another.
    fn add(&mut self, name: &str, bytes: &[u8]) {
        for part in [name.as_bytes(), bytes] {
            self.0.update(part.len().to_be_bytes());
            self.0.update(part);
        }
    }

    fn finish(self, format: TokenFormat) -> AuthKind {
        let digest = self.0.finalize();
        let fingerprint = std::array::from_fn(|index| digest[index]);
        AuthKind::Token(Arc::new(Verifier::new(format, fingerprint)))
    }
}

/// A kind that a backend or endpoint decides, which issues its tokens, too. Its decisions are not
/// cached, so it needs no fingerprint.
fn asked(kind: AuthKind) -> Built {
    (kind, Issuing::Elsewhere)
}

fn text(value: &Text) -> Option<String> {
    value.as_ref().map(|text| text.get_ref().clone())
}

fn path(value: &Path) -> Option<TermPath> {
    let step = |step: &Spanned<CountOrWord>| match step.get_ref() {
        CountOrWord::Count(index) => Step::Index(*index as usize),
        CountOrWord::Word(name) => Step::Name(name.clone()),
    };
    let steps: Vec<Step> = value.as_ref()?.get_ref().iter().map(step).collect();
    Some(steps.into())
}

/// A shorter secret can be guessed, or is a mistake (an empty file, a placeholder).
const SECRET_BYTES_MIN: usize = 32;

/// For a name that may be the secret itself, put where a name belongs.
const NOT_SHOWN: &str = "its name is not shown, since it could be the secret itself";

/// Whether a name is as long as a secret and made of what secrets are written in.
fn may_be_secret(name: &str) -> bool {
    let is_written_so = |b: u8| b.is_ascii_alphanumeric() || b"+/=_-".contains(&b);
    name.len() >= SECRET_BYTES_MIN && name.bytes().all(is_written_so)
}

impl Loader<'_> {
    /// A file that the configuration names, or what `env:NAME` stands for.
    pub(super) fn contents(&mut self, name: &Spanned<String>, private: bool) -> Option<Vec<u8>> {
        if let Some(variable) = name.get_ref().strip_prefix("env:").filter(|_| private) {
            let value = self.environment.variable(variable);
            if value.is_none() {
                let what = match may_be_secret(variable) {
                    true => format!("the environment variable ({NOT_SHOWN}) is not set"),
                    false => format!("the environment variable {variable:?} is not set"),
                };
                self.report.error(name.span(), what, "set it where the gateway is started");
            }
            return value.map(String::into_bytes);
        }
        let path: PathBuf = self.base.join(name.get_ref());
        match self.environment.read(&path) {
            Ok(file) => {
                if private && file.readable_by_others {
                    let what = format!("{} can be read by every user", path.display());
                    let fix = format!("chmod o-rwx {}", path.display());
                    self.report.warning(name.span(), what, &fix);
                }
                Some(file.bytes)
            }
            Err(error) => {
                let what = match private && may_be_secret(name.get_ref()) {
                    true => format!("cannot read the file ({NOT_SHOWN}): {error}"),
                    false => format!("cannot read {}: {error}", path.display()),
                };
                let fix = match error.kind() {
                    ErrorKind::NotFound => {
                        "file names are relative to the configuration file's folder"
                    }
                    ErrorKind::PermissionDenied => {
                        "let the user that runs the gateway read it, and enter its folders"
                    }
                    _ => "name a regular file",
                };
                self.report.error(name.span(), what, fix);
                None
            }
        }
    }

    /// A secret from a file or from the configuration itself; `None` when there is none, or
    /// when what there is was reported.
    pub(super) fn secret(&mut self, file: &Text, inline: &Text, key: &str) -> Option<Secret> {
        self.secret_as(SecretEncoding::Utf8, file, inline, key)
    }

    fn secret_as(
        &mut self,
        encoding: SecretEncoding,
        file: &Text,
        inline: &Text,
        key: &str,
    ) -> Option<Secret> {
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
        let Some(bytes) = secrets::decode(encoding, bytes) else {
            let what = format!("this secret is not written in {}", encoding.word());
            let fix = "secret_encoding says how the issuer decodes it";
            self.report.error(at, what, fix);
            return None;
        };
        let invisible = match encoding {
            SecretEncoding::Utf8 => secrets::invisible_end(&bytes),
            _ => None,
        };
        let secret = Secret::new(bytes);
        if secret.len() < SECRET_BYTES_MIN {
            let what = format!(
                "this secret has {} bytes and can be guessed: at least {SECRET_BYTES_MIN} are required",
                secret.len()
            );
            self.report.error(at, what, "make one with: openssl rand -hex 32");
            return None;
        }
        if let Some((end, what)) = invisible {
            let what = format!("this secret {end} with {what}, which counts as part of it");
            self.report.warning(at, what, "remove it, unless the other side has it, too");
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
        let carriers = match raw.kind.as_ref()?.get_ref().as_str() {
            "upstream" => Some(Vec::new()),
            _ => self.carriers(&raw.carriers),
        };
        // Kinds that are unknown, and keys that are missing, were reported before.
        let (kind, issuing) = match raw.kind.as_ref()?.get_ref().as_str() {
            "phoenix" => self.phoenix(auth),
            "plug-session" => self.plug_session(auth),
            "compact" => self.compact(auth),
            "backend" => Some(asked(AuthKind::Backend(self.backend_auth(auth)))),
            "upstream" => self.upstream_auth(auth).map(asked),
            "http" => self.http_auth(auth).map(|http| asked(AuthKind::Http(Arc::new(http)))),
            _ => self.jwt(auth),
        }?;
        let (name, carriers) = (raw.name.as_ref()?.get_ref().clone(), carriers?);
        Some((Auth { name, kind, carriers }, issuing))
    }

    fn jwt(&mut self, auth: &Spanned<RawAuth>) -> Option<Built> {
        let raw = auth.get_ref();
        let keys = self.keys(raw)?;
        let subject = path(&raw.subject);
        if let Some([Step::Index(_), ..]) = subject.as_ref().map(TermPath::steps) {
            let at = place(&raw.subject, &auth.span());
            let what = "the claims are an object, whose members have names";
            self.report.error(at, what, "begin the path with a claim's name");
            return None;
        }
        let options = JwtOptions {
            issuer: text(&raw.issuer),
            audience: text(&raw.audience),
            leeway: raw.leeway(),
            lifetime_max: raw.lifetime_max(),
            subject,
        };
        let verifier = match JwtVerifier::new(keys.clone(), options.clone()) {
            Ok(verifier) => verifier,
            Err(error) => {
                self.report.error(place(&raw.keys, &auth.span()), error.to_string(), "");
                return None;
            }
        };
        let mut fingerprint = Fingerprint::new("jwt", &options);
        for key in &keys {
            fingerprint.add(&format!("{:?} {:?}", key.id, key.algorithm), key.secret.expose());
        }
        let kind = fingerprint.finish(TokenFormat::Jwt(verifier));
        Some((kind, Issuing::Jwt { keys, options }))
    }

    fn compact(&mut self, auth: &Spanned<RawAuth>) -> Option<Built> {
        let raw = auth.get_ref();
        let list = raw.keys.as_ref()?;
        let keys = self.keys(raw)?;
        if keys.len() > compact_token::KEYS_MAX {
            let what = format!("there are more than {} keys", compact_token::KEYS_MAX);
            self.report.error(list.span(), what, "remove those that were rotated out");
            return None;
        }
        let mut numbered: Vec<CompactKey> = Vec::new();
        for (key, raw) in keys.into_iter().zip(list.get_ref()) {
            let raw = raw.get_ref();
            let at = place(&raw.id, &list.span());
            let number = key.id.as_deref().and_then(|id| id.parse::<u8>().ok());
            let what = match (number, key.algorithm) {
                (None, _) => "the id of a compact key is a number from 0 to 255",
                (_, Algorithm::HS384 | Algorithm::HS512) => "compact tokens have HS256 alone",
                (Some(id), _) if numbered.iter().any(|other| other.id == id) => {
                    "there are two keys of this number"
                }
                (Some(id), _) => {
                    numbered.push(CompactKey { id, secret: key.secret });
                    continue;
                }
            };
            self.report.error(at, what, "write id = \"1\"");
            return None;
        }
        let options = CompactOptions { leeway: raw.leeway(), lifetime_max: raw.lifetime_max() };
        let mut fingerprint = Fingerprint::new("compact", &options);
        for key in &numbered {
            fingerprint.add(&key.id.to_string(), key.secret.expose());
        }
        let verifier = CompactVerifier::new(&numbered, options);
        let kind = fingerprint.finish(TokenFormat::Compact(verifier));
        Some((kind, Issuing::Compact { keys: numbered }))
    }

    fn phoenix(&mut self, auth: &Spanned<RawAuth>) -> Option<Built> {
        let raw = auth.get_ref();
        let keys = self.derived_keys(auth, &raw.salt)?;
        let max_age = match &raw.max_age {
            None => MaxAge::Embedded,
            Some(text) => parse_duration(text.get_ref()).map_or(MaxAge::Infinite, MaxAge::Fixed),
        };
        let options = PhoenixOptions { max_age, subject: path(&raw.subject) };
        let mut fingerprint = Fingerprint::new("phoenix", &options);
        keys.iter().for_each(|key| fingerprint.add("", key.expose()));
        let issuing = Issuing::Phoenix { keys: keys.clone(), subject: options.subject.clone() };
        let format = TokenFormat::Phoenix(PhoenixVerifier::new(&keys, options));
        Some((fingerprint.finish(format), issuing))
    }

    fn plug_session(&mut self, auth: &Spanned<RawAuth>) -> Option<Built> {
        let raw = auth.get_ref();
        let is_cookie = |text: &&Spanned<String>| text.get_ref().starts_with("cookie:");
        let carriers = raw.carriers.iter().flat_map(|list| list.get_ref());
        if let Some(other) = carriers.clone().find(|text| !is_cookie(text)) {
            let what = format!("a session is a cookie, and not {:?}", other.get_ref());
            self.report.error(other.span(), what, "write cookie:_my_app_key, the endpoint's key");
            return None;
        }
        let keys = self.derived_keys(auth, &raw.signing_salt)?;
        let subject = path(&raw.subject)?;
        if subject == TermPath::from(CSRF_NAME) {
            let at = place(&raw.subject, &auth.span());
            self.report.error(at, "the CSRF token names nobody", "name the user's key");
            return None;
        }
        let max_age = raw.max_age.as_ref().and_then(|text| parse_duration(text.get_ref()));
        let csrf = raw.csrf();
        let options = SessionOptions { subject: subject.clone(), max_age, csrf };
        let mut fingerprint = Fingerprint::new("plug-session", &options);
        keys.iter().for_each(|key| fingerprint.add("", key.expose()));
        let issuing = Issuing::PlugSession { keys: keys.clone(), subject };
        let format = TokenFormat::PlugSession(SessionVerifier::new(&keys, options));
        Some((fingerprint.finish(format), issuing))
    }

    /// The keys derived from every `secret_key_base`.
    fn derived_keys(&mut self, auth: &Spanned<RawAuth>, salt: &Text) -> Option<Vec<Secret>> {
        let raw = auth.get_ref();
        let (files, inline) = (&raw.secret_key_base_file, &raw.secret_key_base);
        let list = match (files, inline) {
            (Some(_), Some(inline)) => {
                let what = "both secret_key_base_file and secret_key_base are given";
                self.report.error(inline.span(), what, "keep the file");
                return None;
            }
            (Some(list), None) | (None, Some(list)) => list,
            (None, None) => {
                let what = "there is no secret_key_base";
                let fix = "add secret_key_base_file = \"keys/NAME\" or \"env:SECRET_KEY_BASE\"";
                self.report.error(auth.span(), what, fix);
                return None;
            }
        };
        if !(1..=BASES_MAX).contains(&list.get_ref().len()) {
            let what = format!("there are {} values", list.get_ref().len());
            self.report.error(list.span(), what, &format!("list 1 to {BASES_MAX}"));
            return None;
        }
        let length_min = match raw.kind.as_ref()?.get_ref().as_str() {
            "plug-session" => SECRET_KEY_BASE_MIN,
            _ => SECRET_BYTES_MIN,
        };
        let mut bases: Vec<Secret> = Vec::new();
        let mut failed = false;
        for text in list.get_ref() {
            let text = Some(text.clone());
            let base = match files {
                Some(_) => self.secret(&text, &None, "secret_key_base_file"),
                None => self.secret(&None, &text, "secret_key_base_file"),
            };
            let at = place(&text, &list.span());
            failed |=
                !base.as_ref().is_some_and(|base| self.fit_base(base, &bases, length_min, at));
            bases.extend(base);
        }
        let salt = salt.as_ref()?;
        if salt.get_ref().is_empty() {
            self.report.error(salt.span(), "this salt is empty", "write the application's");
            failed = true;
        }
        let derivation = Derivation {
            iterations: raw.iterations(),
            length: raw.length(),
            digest: match raw.digest() {
                "sha384" => Algorithm::HS384,
                "sha512" => Algorithm::HS512,
                _ => Algorithm::HS256,
            },
        };
        let derive = |base: &Secret| derivation.derive(base, salt.get_ref().as_bytes());
        (!failed).then(|| bases.iter().map(derive).collect())
    }

    fn fit_base(
        &mut self,
        base: &Secret,
        earlier: &[Secret],
        length_min: usize,
        at: Range<usize>,
    ) -> bool {
        let length = base.len();
        let fix = "make one with: mix phx.gen.secret, or openssl rand -base64 48";
        if earlier.iter().any(|other| other.expose() == base.expose()) {
            self.report.error(at, "this secret_key_base is listed twice", "remove one");
            return false;
        }
        if length < length_min {
            let what = format!(
                "this secret_key_base has {length} bytes; Plug refuses to sign sessions with less \
                 than {length_min}"
            );
            self.report.error(at, what, fix);
            return false;
        }
        if length < SECRET_KEY_BASE_MIN {
            let what = format!(
                "this secret_key_base has {length} bytes; Phoenix makes {SECRET_KEY_BASE_MIN}, \
                 and Plug signs no session with less"
            );
            self.report.warning(at, what, fix);
        }
        true
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

    /// One request can hold two tokens, and then the first carrier counts. That is dangerous where
    /// a browser sends the first without the user's will, or where another server may read the other.
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
        let encoding = raw.secret_encoding();
        let secret = self.secret_as(encoding, &raw.secret_file, &raw.secret, "secret_file")?;
        let algorithm = Algorithm::from_name(raw.algorithm())?;
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
