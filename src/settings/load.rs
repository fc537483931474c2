//! From the file's text to [`Settings`], or to everything that is wrong with it.
//!
//! [`load`] reads no file, no environment and no clock itself: it asks [`Outside`].

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use toml::Spanned;

use super::keys;
pub use super::problem::{Problem, Severity};
use super::problem::{Report, did_you_mean};
use super::raw::{CountOrWord, Number, RawDeadlines, RawGateway, RawLimits, RawSettings, Text};
use super::units::{format_duration, parse_duration, parse_size};
use super::{Deadlines, Descriptors, Gateway, Limits, LogFormat, Settings, shape};
use crate::base::secret::Secret;
use crate::protocol::compact_token::CompactKey;
use crate::protocol::jwt::{JwtKey, JwtOptions};

/// What the loader asks of the world.
pub trait Outside {
    /// A whole file. The path is absolute or relative to the process's directory.
    fn read(&self, path: &Path) -> io::Result<FileContents>;
    /// An environment variable; `None` when it is not set.
    fn variable(&self, name: &str) -> Option<String>;
    /// Seconds since 1970, to judge certificates by.
    fn unix_seconds(&self) -> u64;
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
    /// of the keys in the open, so whoever does not make tokens should drop this.
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
        /// The key of the subject in data that is a map.
        subject: Option<String>,
    },
    /// For `kind = "plug-session"`.
    PlugSession {
        /// Its derived keys.
        keys: Vec<Secret>,
        /// The key of the subject.
        subject: String,
    },
    /// For `kind = "compact"`.
    Compact {
        /// Its keys.
        keys: Vec<CompactKey>,
    },
    /// For kinds whose tokens somebody else makes.
    Elsewhere,
}

/// Checks the text of a configuration file and everything that it refers to.
///
/// `file` names the text in problems, and file names in it are relative to its folder.
///
/// # Errors
/// Everything that is wrong, warnings included, in the order of the file. Only a broken syntax
/// hides the rest.
pub fn load(text: &str, file: &Path, outside: &dyn Outside) -> Result<Loaded, Vec<Problem>> {
    let base = file.parent().unwrap_or(Path::new(""));
    let report = Report::new(file.display().to_string(), text);
    let mut loader = Loader { report, base, outside };
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

/// Removes one newline (`\n` or `\r\n`) that an editor or `echo` left at the end
/// of a secret's file.
pub fn trim_newline(bytes: &mut Vec<u8>) {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
}

/// Where the file's parts are checked. Methods are spread over the files of this folder.
pub(super) struct Loader<'a> {
    /// What was found so far.
    pub(super) report: Report<'a>,
    /// The folder of the configuration file.
    pub(super) base: &'a Path,
    /// The world.
    pub(super) outside: &'a dyn Outside,
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

/// A number's row in the table of keys, and the profile that its default depends on.
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    pub(super) section: &'static str,
    pub(super) conformance: bool,
}

impl Defaults {
    pub(super) fn text(self, name: &str) -> &'static str {
        let key = keys::find(self.section, name).expect("every raw field has a row in KEYS");
        key.conformance.filter(|_| self.conformance).unwrap_or(key.default)
    }

    /// A whole number; `None` is the word `auto`.
    fn count_or_auto(self, name: &str, value: &Number) -> Option<u64> {
        match value.as_ref().map(Spanned::get_ref) {
            Some(CountOrWord::Count(count)) => Some(*count),
            Some(CountOrWord::Word(_)) => None,
            None => self.text(name).replace('_', "").parse().ok(),
        }
    }

    pub(super) fn count(self, name: &str, value: &Number) -> u64 {
        self.count_or_auto(name, value).expect("a number was asked for, and defaults are numbers")
    }

    /// A size in bytes; `None` is the word `auto`.
    fn size_or_auto(self, name: &str, value: &Text) -> Option<u64> {
        parse_size(value.as_ref().map_or_else(|| self.text(name), |text| text.get_ref()))
    }

    pub(super) fn size(self, name: &str, value: &Text) -> u64 {
        self.size_or_auto(name, value).expect("sizes and their defaults were checked")
    }

    /// A duration; `None` is the word `off`.
    fn time_or_off(self, name: &str, value: &Text) -> Option<Duration> {
        parse_duration(value.as_ref().map_or_else(|| self.text(name), |text| text.get_ref()))
    }

    fn time(self, name: &str, value: &Text) -> Duration {
        self.time_or_off(name, value).expect("durations and their defaults were checked")
    }
}

/// The place of a value, or of what stands for it when it is absent.
pub(super) fn place<T>(value: &Option<Spanned<T>>, otherwise: &Range<usize>) -> Range<usize> {
    value.as_ref().map_or_else(|| otherwise.clone(), Spanned::span)
}

/// A word, or the table's default for it.
pub(super) fn word<'v>(section: &'static str, name: &str, value: &'v Text) -> &'v str {
    let defaults = Defaults { section, conformance: false };
    value.as_ref().map_or_else(|| defaults.text(name), |text| text.get_ref())
}

/// A whole number, or the table's default for it.
pub(super) fn count(section: &'static str, name: &str, value: &Number) -> u64 {
    Defaults { section, conformance: false }.count(name, value)
}

/// A duration, or the table's default for it.
pub(super) fn time(section: &'static str, name: &str, value: &Text) -> Duration {
    Defaults { section, conformance: false }.time(name, value)
}

impl Loader<'_> {
    /// `None` when something necessary is missing or wrong, which then was reported.
    fn settings(&mut self, raw: &RawSettings) -> Option<(Settings, Vec<Issuing>)> {
        let conformance = word("limits", "profile", &raw.limits.profile) == "conformance";
        let gateway = self.gateway(&raw.gateway);
        let limits = limits(&raw.limits, conformance);
        self.check_limits(&raw.limits, &limits, gateway.as_ref().and_then(|g| g.workers));
        let deadlines = deadlines(&raw.deadlines, conformance);
        self.check_deadlines(&raw.deadlines, &deadlines);
        let listeners = self.listeners(&raw.listener);
        self.check_admission(raw, &limits, &deadlines, listeners.as_deref());
        let auth_names = self.names("auth", raw.auth.iter().map(|a| (a.span(), &a.get_ref().name)));
        let auths = self.auths(&raw.auth);
        self.check_timeouts(&raw.auth, deadlines.authenticate);
        let backend_names =
            self.names("backend", raw.backend.iter().map(|b| (b.span(), &b.get_ref().name)));
        let backends = self.backends(&raw.backend);
        let routes = self.routes(raw, &auth_names, &backend_names);
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
        let settings = Settings { gateway, limits, deadlines, listeners, auths, routes, backends };
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
            let proper = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if text.is_empty() || text.len() > 64 || !text.chars().all(proper) {
                let what = format!("{text:?} cannot name an [[{section}]]");
                let fix = "use 1 to 64 letters, digits, -, _ and .";
                self.report.error(name.span(), what, fix);
            } else if section == "auth" && text == "none" {
                let what = "\"none\" cannot name an [[auth]]";
                self.report.error(name.span(), what, "in a route it means no authentication");
            } else if names.by_name.insert(text.clone(), index as u16).is_some() {
                let what = format!("there are two [[{section}]] called \"{text}\"");
                self.report.error(name.span(), what, "rename one of them");
            }
        }
        names
    }

    fn gateway(&mut self, raw: &RawGateway) -> Option<Gateway> {
        let defaults = Defaults { section: "gateway", conformance: false };
        let admin_text = raw.admin.as_ref().map_or(defaults.text("admin"), |text| text.get_ref());
        let admin = match admin_text {
            "off" => None,
            text => Some(self.socket_address(text, place(&raw.admin, &(0..0)))?),
        };
        let admin_token = self.secret(&raw.admin_token_file, &None, "admin_token_file");
        if raw.admin_token_file.is_none() && admin.is_some_and(|a| !a.ip().is_loopback()) {
            let what = format!("admin {admin_text} can be reached from other machines");
            let fix = "set admin_token_file, or listen on 127.0.0.1";
            self.report.error(place(&raw.admin, &(0..0)), what, fix);
        }
        let log_level = word("gateway.log", "level", &raw.log.level);
        if !is_log_filter(log_level) {
            let what = format!("\"level\" in log of [gateway] is {log_level:?}");
            let fix = "write a level (error, warn, info, debug, trace, off) or target=level, \
                       several separated by commas";
            self.report.error(place(&raw.log.level, &(0..0)), what, fix);
        }
        Some(Gateway {
            workers: defaults.count_or_auto("workers", &raw.workers).map(|count| count as u16),
            descriptors: match word("gateway", "descriptors", &raw.descriptors) {
                "plain" => Descriptors::Plain,
                "direct" => Descriptors::Direct,
                _ => Descriptors::Auto,
            },
            admin,
            admin_token,
            admin_socket: raw.admin_socket.as_ref().map(|name| self.base.join(name.get_ref())),
            log_format: match word("gateway.log", "format", &raw.log.format) {
                "pretty" => LogFormat::Pretty,
                "json" => LogFormat::Json,
                _ => LogFormat::Auto,
            },
            log_level: log_level.to_owned(),
            close_log: raw.close_log.as_ref().map(|name| self.base.join(name.get_ref())),
            revocations_file: raw
                .revocations_file
                .as_ref()
                .map(|name| self.base.join(name.get_ref())),
        })
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

fn limits(raw: &RawLimits, conformance: bool) -> Limits {
    let defaults = Defaults { section: "limits", conformance };
    // The ranges in the table of keys are within the fields' types; a test tries both ends.
    macro_rules! narrow {
        ($read:ident $field:ident) => {
            defaults.$read(stringify!($field), &raw.$field).try_into().expect("within range")
        };
    }
    Limits {
        connections_max: narrow!(count connections_max),
        unauthenticated_max: narrow!(count unauthenticated_max),
        early_drop_start: narrow!(count early_drop_start),
        early_drop_rate: narrow!(count early_drop_rate),
        prefix_share: narrow!(count prefix_share),
        prefix_failures_per_minute: narrow!(count prefix_failures_per_minute),
        prefix_failures_burst: narrow!(count prefix_failures_burst),
        prefixes_max: narrow!(count prefixes_max),
        tls_handshakes_per_second: defaults
            .count_or_auto("tls_handshakes_per_second", &raw.tls_handshakes_per_second)
            .map(|count| count as u32),
        connections_per_worker: defaults
            .count_or_auto("connections_per_worker", &raw.connections_per_worker)
            .map(|count| count as u32),
        memory_max: defaults.size_or_auto("memory_max", &raw.memory_max),
        message_max: narrow!(size message_max),
        first_message_max: narrow!(size first_message_max),
        head_max: narrow!(size head_max),
        header_fields_max: narrow!(count header_fields_max),
        request_line_max: narrow!(size request_line_max),
        token_max: narrow!(size token_max),
        dead_tokens_max: narrow!(count dead_tokens_max),
        frames_per_second: narrow!(count frames_per_second),
        frames_burst: narrow!(count frames_burst),
        controls_per_second: narrow!(count controls_per_second),
        controls_burst: narrow!(count controls_burst),
        pongs_unsent_max: narrow!(count pongs_unsent_max),
        fragments_max: narrow!(count fragments_max),
        session_window: narrow!(size session_window),
        link_window: narrow!(size link_window),
        stalled_input_max: defaults.size("stalled_input_max", &raw.stalled_input_max),
        verdicts_max: narrow!(count verdicts_max),
        handshakes_per_tick: narrow!(count handshakes_per_tick),
        client_buffers: narrow!(count client_buffers),
        accepts: narrow!(count accepts),
        close_lines_per_second: narrow!(count close_lines_per_second),
        revocations_max: narrow!(count revocations_max),
    }
}

fn deadlines(raw: &RawDeadlines, conformance: bool) -> Deadlines {
    let defaults = Defaults { section: "deadlines", conformance };
    macro_rules! time {
        ($field:ident) => {
            defaults.time(stringify!($field), &raw.$field)
        };
    }
    Deadlines {
        tls_handshake: time!(tls_handshake),
        request_head: time!(request_head),
        authenticate: time!(authenticate),
        linger: time!(linger),
        failure_grace: time!(failure_grace),
        ping_interval: time!(ping_interval),
        idle: time!(idle),
        write_stall: time!(write_stall),
        lifetime: defaults.time_or_off("lifetime", &raw.lifetime),
        expiry_grace: time!(expiry_grace),
        drain: time!(drain),
        link_connect: time!(link_connect),
        link_ping: time!(link_ping),
        link_retry_min: time!(link_retry_min),
        link_retry_max: time!(link_retry_max),
    }
}

/// Settings for the tests of other modules: the defaults, with one plain listener, one key and
/// one backend.
#[cfg(test)]
pub fn test_settings() -> Settings {
    struct Nothing;
    impl Outside for Nothing {
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
    let text = r#"
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
    "#;
    match load(text, Path::new("test.toml"), &Nothing) {
        Ok(loaded) => loaded.settings,
        Err(problems) => panic!("{}", problems[0]),
    }
}
