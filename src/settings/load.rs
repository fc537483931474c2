//! From the file's text to [`Settings`], or to everything that is wrong with it.
//!
//! [`load`] reads no file, no environment and no clock itself: it asks [`Environment`].

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use rustls::RootCertStore;
use sha2::{Digest as _, Sha256};
use toml::Spanned;

use super::file::{RawDeadlines, RawGateway, RawLimits, RawLog, RawSettings};
pub use super::problem::{Problem, Severity};
use super::problem::{Report, did_you_mean};
use super::raw::Text;
use super::units::format_duration;
use super::{Deadlines, Gateway, Limits, Listener, LogSubject, Settings, shape};
use crate::base::secret::Secret;
use crate::protocol::compact_token::CompactKey;
use crate::protocol::external_term::TermPath;
use crate::protocol::jwt::{JwtKey, JwtOptions};
use crate::protocol::verifier::VisitorsWelcome;

/// What the loader asks of the world.
pub trait Environment {
    /// A whole file. The path is absolute or relative to the process's directory.
    fn read(&self, path: &Path) -> io::Result<FileContents>;
    /// An environment variable; `None` when it is not set.
    fn variable(&self, name: &str) -> Option<String>;
    /// Seconds since 1970, to judge certificates by.
    fn unix_seconds(&self) -> u64;
    /// The certificates that the system trusts. A world without a system has none.
    ///
    /// # Errors
    /// They cannot be read, or there is none.
    fn system_roots(&self) -> io::Result<RootCertStore> {
        Err(io::Error::from(io::ErrorKind::NotFound))
    }
}

/// A file that was read.
pub struct FileContents {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Whether users other than its owner and group may read it.
    pub readable_by_others: bool,
}

/// Settings that can be used, and what should be known about them.
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// What tokens of each of [`Settings::auths`] are made with, in order. The settings keep none
    /// of the keys in the open, so a caller that makes no tokens should drop this.
    pub issuing: Vec<Issuing>,
    /// What is permitted but unwise, in the order of the file.
    pub warnings: Vec<Problem>,
}

/// What it takes to make tokens that an `[[auth]]` accepts. Keys are in the order of the file.
pub enum Issuing {
    /// For `kind = "jwt"`.
    Jwt {
        /// Its keys.
        keys: Vec<JwtKey>,
        /// What the tokens must say.
        options: JwtOptions,
    },
    /// For `kind = "phoenix"`.
    Phoenix {
        /// Its derived keys.
        keys: Vec<Secret>,
        /// Where the subject stands in data that is no subject itself.
        subject: Option<TermPath>,
    },
    /// For `kind = "plug-session"`.
    PlugSession {
        /// Its derived keys.
        keys: Vec<Secret>,
        /// Where the subject stands.
        subject: TermPath,
    },
    /// For `kind = "compact"`.
    Compact {
        /// Its keys.
        keys: Vec<CompactKey>,
    },
    /// For kinds whose tokens are made outside.
    Elsewhere,
}

/// Checks the text of a configuration file and everything that it refers to.
///
/// `file` names the text in problems, and file names in it are relative to its folder.
///
/// # Errors
/// Everything that is wrong, warnings included, in the order of the file. Only a broken syntax
/// hides the rest.
pub fn load(
    text: &str,
    file: &Path,
    environment: &dyn Environment,
) -> Result<Loaded, Vec<Problem>> {
    let base = file.parent().unwrap_or(Path::new(""));
    let report = Report::new(file.display().to_string(), text);
    let mut loader = Loader { report, base, environment };
    let Some(raw) = shape::parse(text, &mut loader.report) else {
        return Err(loader.report.into_problems());
    };
    let settings = loader.settings(&raw);
    let failed = loader.report.has_errors();
    let problems = loader.report.into_problems();
    match settings {
        Some((settings, issuing)) if !failed => {
            Ok(Loaded { settings, issuing, warnings: problems })
        }
        _ => {
            assert!(failed, "settings are missing without an error");
            Err(problems)
        }
    }
}

pub use crate::base::secret::trim_newline;

/// Where the file's parts are checked. Methods are spread over the files of this folder.
pub(super) struct Loader<'a> {
    /// What was found so far.
    pub(super) report: Report<'a>,
    /// The folder of the configuration file.
    pub(super) base: &'a Path,
    /// The world.
    pub(super) environment: &'a dyn Environment,
}

/// The names of a kind of block, and what they lead to.
#[derive(Default)]
pub(super) struct Names {
    by_name: HashMap<String, u16>,
    /// Whether a block's own name could not be read, so that a miss proves nothing.
    incomplete: bool,
}

impl Names {
    /// The number of the block called `name`.
    pub(super) fn find(&self, name: &str) -> Option<u16> {
        self.by_name.get(name).copied()
    }

    /// Whether a name that is not here is an error.
    pub(super) fn is_complete(&self) -> bool {
        !self.incomplete
    }

    /// The nearest name, as a question, or all names.
    pub(super) fn suggestion(&self, name: &str) -> String {
        let mut known: Vec<_> = self.by_name.keys().map(String::as_str).collect();
        known.sort_unstable();
        did_you_mean(name, known.iter().copied()).unwrap_or_else(|| match known.as_slice() {
            [] => "there is none".to_owned(),
            known => format!("there are: {}", known.join(", ")),
        })
    }
}

/// The place of a value, or of what stands for it when it is absent.
pub(super) fn place<T>(value: &Option<Spanned<T>>, otherwise: &Range<usize>) -> Range<usize> {
    value.as_ref().map_or_else(|| otherwise.clone(), Spanned::span)
}

impl Loader<'_> {
    /// `None` when something necessary is missing or wrong, which then was reported.
    fn settings(&mut self, raw: &RawSettings) -> Option<(Settings, Vec<Issuing>)> {
        let profile = raw.limits.profile.as_ref().map(|profile| profile.get_ref().as_str());
        let conformance = profile == Some("conformance");
        let gateway = self.gateway(&raw.gateway);
        let limits = Limits::read(&raw.limits, conformance);
        self.check_limits(&raw.limits, &limits, gateway.as_ref().and_then(|g| g.workers));
        let deadlines = Deadlines::read(&raw.deadlines, conformance);
        self.check_deadlines(&raw.deadlines, &deadlines);
        let listeners = self.listeners(&raw.listener);
        self.check_admin_port(&raw.gateway, gateway.as_ref(), listeners.as_deref());
        self.check_admission(raw, &limits, &deadlines, listeners.as_deref());
        let auth_names = self.names("auth", raw.auth.iter().map(|a| (a.span(), &a.get_ref().name)));
        let auths = self.auths(&raw.auth);
        self.check_timeouts(&raw.auth, deadlines.authenticate);
        let backend_names =
            self.names("backend", raw.backend.iter().map(|b| (b.span(), &b.get_ref().name)));
        let backends = self.backends(&raw.backend);
        let routes = self.routes(raw, &auth_names, &backend_names, &limits);
        self.check_forwarded_fields(raw);
        for (section, empty) in [
            ("listener", raw.listener.is_empty()),
            ("route", raw.route.is_empty()),
            ("backend", raw.backend.is_empty()),
        ] {
            if empty {
                let what = format!("there is no [[{section}]]");
                self.report.error(0..0, what, "config/portcullis.toml shows one of each");
            }
        }
        let (gateway, listeners, (auths, issuing)) = (gateway?, listeners?, auths?);
        let (routes, backends) = (routes?, backends?);
        let hash = text_hash(self.report.text());
        let settings =
            Settings { gateway, limits, deadlines, listeners, auths, routes, backends, hash };
        Some((settings, issuing))
    }

    /// Checks that names are there, proper and unique.
    fn names<'n>(
        &mut self,
        section: &str,
        blocks: impl Iterator<Item = (Range<usize>, &'n Text)>,
    ) -> Names {
        let mut names = Names::default();
        for (index, (_, name)) in blocks.enumerate() {
            let Some(name) = name else {
                names.incomplete = true;
                continue;
            };
            let text = name.get_ref();
            if !self.is_name(section, name) {
                continue;
            }
            if section == "auth" && ["none", VisitorsWelcome::NAME].contains(&text.as_str()) {
                let what = format!("{text:?} cannot name an [[auth]]");
                self.report.error(name.span(), what, "in a route it means no authentication");
            } else if names.by_name.insert(text.clone(), index as u16).is_some() {
                let what = format!("there are two [[{section}]] called \"{text}\"");
                self.report.error(name.span(), what, "rename one of them");
            }
        }
        names
    }

    /// Whether a block may be called so; otherwise that is reported.
    pub(super) fn is_name(&mut self, section: &str, name: &Spanned<String>) -> bool {
        let text = name.get_ref();
        let proper = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if (1..=64).contains(&text.len()) && text.chars().all(proper) {
            return true;
        }
        let what = format!("{text:?} cannot name an [[{section}]]");
        self.report.error(name.span(), what, "use 1 to 64 letters, digits, -, _ and .");
        false
    }

    /// The admin listener shares its address with no other.
    fn check_admin_port(
        &mut self,
        raw: &RawGateway,
        gateway: Option<&Gateway>,
        listeners: Option<&[Listener]>,
    ) {
        let Some(admin) = gateway.and_then(|gateway| gateway.admin) else { return };
        let mut listeners = listeners.unwrap_or_default().iter();
        if let Some(listener) = listeners.find(|listener| overlap(listener.address, admin)) {
            let what = format!("admin {admin} overlaps with the listener at {}", listener.address);
            let fix = "give one of them another port";
            self.report.error(place(&raw.admin, &(0..0)), what, fix).code = "address_taken";
        }
    }

    fn gateway(&mut self, raw: &RawGateway) -> Option<Gateway> {
        let admin = match raw.admin() {
            "off" => None,
            text => Some(self.socket_address(text, place(&raw.admin, &(0..0)))?),
        };
        let admin_token = self.secret(&raw.admin_token_file, &None, "admin_token_file");
        if raw.admin_token_file.is_none() && admin.is_some_and(|a| !a.ip().is_loopback()) {
            let what = format!("admin {} can be reached from other machines", raw.admin());
            let fix = "set admin_token_file, or listen on 127.0.0.1";
            self.report.error(place(&raw.admin, &(0..0)), what, fix);
        }
        let absent = RawLog::default();
        let log = raw.log.as_ref().unwrap_or(&absent);
        if !is_log_filter(log.level()) {
            let what = format!("\"level\" in log of [gateway] is {:?}", log.level());
            let fix = "write a level (error, warn, info, debug, trace, off) or target=level, \
                       several separated by commas";
            self.report.error(place(&log.level, &(0..0)), what, fix);
        }
        let path = |name: &Text| name.as_ref().map(|name| self.base.join(name.get_ref()));
        Some(Gateway {
            workers: raw.workers(),
            descriptors: raw.descriptors(),
            admin,
            admin_token,
            admin_socket: path(&raw.admin_socket),
            ready_without_backend: raw.ready_without_backend(),
            drain_delay: raw.drain_delay(),
            log_format: log.format(),
            log_level: log.level().to_owned(),
            log_subject: self.log_subject(log)?,
            close_log: path(&raw.close_log),
            revocations_file: path(&raw.revocations_file),
        })
    }

    fn log_subject(&mut self, log: &RawLog) -> Option<LogSubject> {
        let key = self.secret(&log.subject_key_file, &None, "subject_key_file");
        match log.subject() {
            "plain" => Some(LogSubject::Plain),
            "hash" if log.subject_key_file.is_none() => {
                let what = "subject = \"hash\" in log of [gateway] has no key";
                let fix = "set subject_key_file; openssl rand -hex 32 makes a key";
                self.report.error(place(&log.subject, &(0..0)), what, fix);
                None
            }
            "hash" => key.map(LogSubject::Hash),
            _ => Some(LogSubject::Off),
        }
    }

    /// An IP address and port that can be listened on.
    pub(super) fn socket_address(&mut self, text: &str, at: Range<usize>) -> Option<SocketAddr> {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Some(address),
            Ok(_) => {
                self.report.error(at, format!("{text:?} has no port"), "give one from 1 to 65535");
                None
            }
            Err(_) => {
                let what = format!("{text:?} is not an IP address and port");
                let fix = "write 127.0.0.1:8080 or [::1]:8080; names are not resolved";
                self.report.error(at, what, fix);
                None
            }
        }
    }

    /// Rules between limits.
    fn check_limits(&mut self, raw: &RawLimits, limits: &Limits, workers: Option<u16>) {
        let top = 0..0;
        let per_worker = limits.connections_per_worker.map(u64::from);
        if let (Some(each), Some(workers)) = (per_worker, workers)
            && each * u64::from(workers) < u64::from(limits.connections_max)
        {
            let what = format!(
                "{workers} workers of {each} connections cannot reach connections_max = {}",
                limits.connections_max
            );
            let fix = "raise connections_per_worker or lower connections_max";
            self.report.warning(place(&raw.connections_per_worker, &top), what, fix);
        }
        if !limits.client_buffers.is_power_of_two() {
            let what = format!("client_buffers = {} is not a power of two", limits.client_buffers);
            let fix = format!("try {}", limits.client_buffers.next_power_of_two().min(32_768));
            self.report.error(place(&raw.client_buffers, &top), what, &fix);
        }
        for (name, at, smaller, other, larger) in [
            (
                "session_window",
                &raw.session_window,
                limits.session_window.into(),
                "link_window",
                u64::from(limits.link_window),
            ),
            (
                "token_max",
                &raw.token_max,
                limits.token_max.into(),
                "first_message_max",
                limits.first_message_max.into(),
            ),
            (
                "token_max",
                &raw.token_max,
                limits.token_max.into(),
                "head_max",
                limits.head_max.into(),
            ),
            (
                "request_line_max",
                &raw.request_line_max,
                limits.request_line_max.into(),
                "head_max",
                limits.head_max.into(),
            ),
        ] {
            let smaller: u64 = smaller;
            if smaller > larger {
                let what = format!("{name} ({smaller} bytes) is above {other} ({larger} bytes)");
                let fix = format!("raise {other} or lower {name}");
                self.report.error(place(at, &top), what, &fix);
            }
        }
        if limits.memory_max.is_some_and(|max| max < limits.stalled_input_max) {
            let what = "stalled_input_max is above memory_max, so memory_max is no limit";
            self.report.warning(place(&raw.stalled_input_max, &top), what, "lower it");
        }
    }

    /// Rules between deadlines.
    fn check_deadlines(&mut self, raw: &RawDeadlines, deadlines: &Deadlines) {
        let top = 0..0;
        if deadlines.ping_interval >= deadlines.idle {
            let what = format!(
                "ping_interval ({}) is not shorter than idle ({}): a healthy but silent client \
                 would be closed before it is pinged",
                format_duration(deadlines.ping_interval),
                format_duration(deadlines.idle)
            );
            let at = place(&raw.ping_interval, &place(&raw.idle, &top));
            self.report.error(at, what, "make idle at least twice ping_interval");
        } else if deadlines.idle < deadlines.ping_interval + Duration::from_secs(1) {
            let at = place(&raw.idle, &place(&raw.ping_interval, &top));
            let what = "idle leaves a client less than 1s to answer a ping";
            self.report.warning(at, what, "make idle at least twice ping_interval");
        }
        if deadlines.link_retry_min > deadlines.link_retry_max {
            let at = place(&raw.link_retry_min, &place(&raw.link_retry_max, &top));
            self.report.error(at, "link_retry_min is above link_retry_max", "swap them");
        }
        let unauthenticated = deadlines.tls_handshake
            + deadlines.request_head
            + deadlines.authenticate
            + deadlines.linger;
        if unauthenticated > Duration::from_secs(30) {
            let what = format!(
                "a client that never authenticates can hold a connection for {} (tls_handshake + \
                 request_head + authenticate + linger)",
                format_duration(unauthenticated)
            );
            let at = place(&raw.authenticate, &place(&raw.tls_handshake, &top));
            self.report.warning(at, what, "lower them until together they are 30s or less");
        }
        if deadlines.lifetime.is_some_and(|lifetime| lifetime <= deadlines.idle) {
            let what = "lifetime is not longer than idle: every connection is soon asked to leave";
            self.report.warning(place(&raw.lifetime, &top), what, "an hour or more is usual");
        }
    }
}

/// See [`Settings::hash`]. Of the text that was parsed: the file may be another one by now.
fn text_hash(text: &str) -> u64 {
    let digest = Sha256::digest(text);
    digest[..6].iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// A `tracing` filter whose levels are levels. (`tracing` itself takes `inof` for a target.)
fn is_log_filter(text: &str) -> bool {
    let is_level = |word: &str| {
        let levels = ["error", "warn", "info", "debug", "trace", "off"];
        levels.iter().any(|level| level.eq_ignore_ascii_case(word))
    };
    let is_target = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "_:-".contains(c))
    };
    text.split(',').all(|directive| match directive.split_once('=') {
        Some((target, level)) => is_target(target) && is_level(level),
        None => is_level(directive),
    })
}

/// Settings for the tests of other modules: the defaults, with one plain listener, one key and
/// one backend.
#[cfg(test)]
pub fn test_settings() -> Settings {
    test_settings_of(
        r#"
        listener = [{ address = "127.0.0.1:8080" }]
        backend = [{ name = "main", endpoints = ["127.0.0.1:7000"] }]
        [[auth]]
        name = "app"
        kind = "jwt"
        carriers = ["authorization"]
        keys = [{ id = "k", secret = "0123456789abcdef0123456789abcdef" }]
        [[route]]
        path = "/ws"
        origins = ["https://app.example.com"]
        origin_absent = "allow"
        auth = "app"
        backend = "main"
    "#,
    )
}

/// Settings of a text that names no file.
#[cfg(test)]
pub fn test_settings_of(text: &str) -> Settings {
    struct Nothing;
    impl Environment for Nothing {
        fn read(&self, _: &Path) -> io::Result<FileContents> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn variable(&self, _: &str) -> Option<String> {
            None
        }

        fn unix_seconds(&self) -> u64 {
            0
        }
    }
    match load(text, Path::new("test.toml"), &Nothing) {
        Ok(loaded) => loaded.settings,
        Err(problems) => panic!("{}", problems[0]),
    }
}

/// Whether a socket at one of the addresses keeps the other from being bound: an IPv6 wildcard
/// takes IPv4 clients too.
pub(super) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |wide: IpAddr, other: IpAddr| match wide {
        IpAddr::V6(_) => wide.is_unspecified(),
        IpAddr::V4(_) => wide.is_unspecified() && other.is_ipv4(),
    };
    let (ip_a, ip_b) = (a.ip().to_canonical(), b.ip().to_canonical());
    let same_port = a.port() == b.port() && a.port() != 0;
    same_port && (ip_a == ip_b || covers(ip_a, ip_b) || covers(ip_b, ip_a))
}
