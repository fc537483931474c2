//! Log lines: the subscriber, the line for a closed connection, the lines for links.
//!
//! Only the control thread writes them (but for a panic's line), so a slow reader of the log
//! holds up no client.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use super::error::RunError;
use crate::protocol::close_detail::CloseDetail;
use crate::protocol::dialect::Dialect;
use crate::settings::{LogFormat, Settings};
use crate::worker::mailbox::{CloseRecord, ClosedBy};

/// The way to change the log filter while running.
#[derive(Clone)]
pub struct LogControl {
    filter: Arc<reload::Handle<EnvFilter, Registry>>,
}

/// Sets up logging to standard error for the whole process. Returns `None`, and changes nothing,
/// when the process has a subscriber already.
///
/// # Errors
/// [`RunError::LogFilter`] when `level` cannot be read.
pub fn install(format: LogFormat, level: &str) -> Result<Option<LogControl>, RunError> {
    let (filter, handle) = reload::Layer::new(parse_filter(level)?);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = if pretty(format, std::io::stderr().is_terminal()) {
        let no_color = std::env::var_os("NO_COLOR");
        lines.with_ansi(colored(std::io::stderr().is_terminal(), no_color.as_deref())).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    };
    let installed = tracing_subscriber::registry().with(filter).with(lines).try_init();
    Ok(installed.ok().map(|()| LogControl { filter: Arc::new(handle) }))
}

impl LogControl {
    /// Changes the filter from the next line on.
    ///
    /// # Errors
    /// [`RunError::LogFilter`] when `level` cannot be read; the old filter stays.
    pub fn set_level(&self, level: &str) -> Result<(), RunError> {
        let filter = parse_filter(level)?;
        self.filter.reload(filter).map_err(|e| RunError::LogFilter { reason: e.to_string() })
    }
}

/// Reads a filter such as `info` or `portcullis=debug`.
///
/// # Errors
/// [`RunError::LogFilter`] with what is wrong.
pub fn parse_filter(level: &str) -> Result<EnvFilter, RunError> {
    EnvFilter::try_new(level)
        .map_err(|error| RunError::LogFilter { reason: format!("{level:?}: {error}") })
}

/// <https://no-color.org>: any value that is not empty means no.
fn colored(terminal: bool, no_color: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty)
}

fn pretty(format: LogFormat, terminal: bool) -> bool {
    match format {
        LogFormat::Auto => terminal,
        LogFormat::Pretty => true,
        LogFormat::Json => false,
    }
}

/// What a close line says. All of it is the gateway's own words but the address and the subject.
#[derive(Clone, Debug)]
pub struct CloseLine<'a> {
    /// The worker that held the connection.
    pub worker: u16,
    /// What the worker tells.
    pub record: &'a CloseRecord,
    /// The route's name.
    pub route: Option<&'a str>,
    /// The client's subject, escaped, where the settings ask for it.
    pub subject: Option<String>,
}

impl<'a> CloseLine<'a> {
    /// A line for `record`, with the route's name looked up.
    pub fn new(worker: u16, record: &'a CloseRecord, settings: &'a Settings) -> Self {
        let route = record.route.and_then(|index| settings.routes.get(usize::from(index)));
        let route = route.map(|route| route.name.as_str());
        CloseLine { worker, record, route, subject: record.subject.as_deref().map(escaped) }
    }

    /// One line of the log.
    pub fn trace(&self) {
        let record = self.record;
        tracing::info!(
            target: "portcullis::close",
            worker = self.worker,
            connection = connection_name(record.connection),
            subject = self.subject,
            peer = record.peer.as_ref().map(tracing::field::display),
            cause = record.cause.label(),
            detail = record.detail.map(CloseDetail::label),
            by = by_label(record.by),
            stage = record.stage.label(),
            code = record.code,
            dialect = record.dialect.map(dialect_label),
            route = self.route,
            age_ms = record.age.as_millis() as u64,
            received_ago_ms = record.received_ago.as_millis() as u64,
            sent_ago_ms = record.sent_ago.as_millis() as u64,
            queued = record.queued,
            "connection closed"
        );
    }

    /// One line for the close log's file, with its newline. `unix_ms` is now, in milliseconds
    /// since 1970.
    pub fn json(&self, unix_ms: u64) -> String {
        let record = self.record;
        let line: Value = json!({
            "time": rfc3339(unix_ms),
            "worker": self.worker,
            "connection": connection_name(record.connection),
            "subject": self.subject,
            "peer": record.peer.map(|peer: SocketAddr| peer.to_string()),
            "cause": record.cause.label(),
            "detail": record.detail.map(CloseDetail::label),
            "by": by_label(record.by),
            "stage": record.stage.label(),
            "code": record.code,
            "dialect": record.dialect.map(dialect_label),
            "route": self.route,
            "age_ms": record.age.as_millis() as u64,
            "received_ago_ms": record.received_ago.as_millis() as u64,
            "sent_ago_ms": record.sent_ago.as_millis() as u64,
            "queued": record.queued,
        });
        format!("{line}\n")
    }
}

/// A connection's number as close lines write it, for a backend's own log too.
pub fn connection_name(number: u64) -> String {
    format!("{number:016x}")
}

/// Text of others with everything escaped that a terminal or a line-wise reader could take for
/// something else: controls, line ends, invisible and reordering characters.
pub fn escaped(text: &str) -> String {
    let shown = |c: char| match c {
        '"' | '\'' => c.to_string(),
        c => c.escape_debug().to_string(),
    };
    text.chars().map(shown).collect()
}

/// The name and address of an endpoint, for log lines.
pub fn endpoint_name(settings: &Settings, backend: u16, endpoint: u16) -> (String, String) {
    let Some(found) = settings.backends.get(usize::from(backend)) else {
        return (format!("#{backend}"), format!("#{endpoint}"));
    };
    let address = found.endpoints.get(usize::from(endpoint));
    (found.name.clone(), address.map_or_else(|| format!("#{endpoint}"), ToString::to_string))
}

fn by_label(by: ClosedBy) -> &'static str {
    match by {
        ClosedBy::Client => "client",
        ClosedBy::Backend => "backend",
        ClosedBy::Gateway => "gateway",
    }
}

fn dialect_label(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Plain => "plain",
        Dialect::Phoenix => "phoenix",
        Dialect::Graphql => "graphql-transport-ws",
        Dialect::Pusher => "pusher",
        Dialect::Centrifuge => "centrifuge",
    }
}

/// `unix_ms` milliseconds after 1970 in UTC, as RFC 3339 writes it.
pub fn rfc3339(unix_ms: u64) -> String {
    let (days, in_day) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (hour, minute) = (in_day / 3_600_000, in_day / 60_000 % 60);
    let (second, milli) = (in_day / 1000 % 60, in_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// Year, month and day, `days` days after 1970-01-01.
fn civil(mut days: u64) -> (u64, u64, u64) {
    // Whole cycles of the Gregorian calendar first, so that the loop below is short.
    const CYCLE_DAYS: u64 = 146_097;
    let mut year = 1970 + days / CYCLE_DAYS * 400;
    days %= CYCLE_DAYS;
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing;
    use super::*;
    use crate::protocol::cause::Cause;
    use crate::worker::mailbox::Stage;

    #[test]
    fn times_are_rfc_3339() {
        let table = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_001, "2000-03-01T00:00:00.001Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (12_622_780_800_000, "2370-01-01T00:00:00.000Z"),
        ];
        for (unix_ms, expected) in table {
            assert_eq!(rfc3339(unix_ms), expected);
        }
    }

    #[test]
    fn a_close_line_has_every_field() {
        let record = CloseRecord {
            connection: 0x0a,
            subject: Some("al\"ice\n\u{1b}[2J\u{202e}\u{9b}\\é".into()),
            cause: Cause::TokenExpired,
            detail: Some(CloseDetail::TokenFarOff),
            by: ClosedBy::Gateway,
            stage: Stage::Authenticating,
            code: Some(4401),
            dialect: Some(Dialect::Plain),
            route: Some(0),
            peer: Some("[2001:db8::1]:5".parse().unwrap()),
            age: Duration::from_millis(1500),
            received_ago: Duration::from_millis(20),
            sent_ago: Duration::from_millis(10),
            queued: 3,
        };
        let settings = testing::settings();
        let line = CloseLine::new(1, &record, &settings);
        assert_eq!(line.route, None, "a route that a reload took away has no name");
        let line = CloseLine { route: Some("/ws"), ..line };
        let expected = json!({
            "time": "1970-01-01T00:00:01.000Z", "worker": 1, "connection": "000000000000000a",
            "subject": "al\"ice\\n\\u{1b}[2J\\u{202e}\\u{9b}\\\\é", "peer": "[2001:db8::1]:5",
            "cause": "token_expired", "detail": "token_far_off", "by": "gateway", "stage": "authenticating", "code": 4401,
            "dialect": "plain", "route": "/ws", "age_ms": 1500, "received_ago_ms": 20,
            "sent_ago_ms": 10, "queued": 3,
        });
        let text = line.json(1000);
        assert!(text.ends_with('\n') && text.matches('\n').count() == 1);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    }

    #[test]
    fn filters_and_formats() {
        for good in ["info", "portcullis=debug", "warn,portcullis::close=off"] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        let error = parse_filter("portcullis=loud").unwrap_err().to_string();
        assert!(error.contains("portcullis=loud") && error.contains("what to do"), "{error}");
        assert!(pretty(LogFormat::Auto, true) && !pretty(LogFormat::Auto, false));
        assert!(pretty(LogFormat::Pretty, false) && !pretty(LogFormat::Json, true));
    }

    #[test]
    fn colors_are_for_terminals_that_want_them() {
        assert!(colored(true, None) && colored(true, Some("".as_ref())));
        assert!(!colored(true, Some("1".as_ref())) && !colored(false, None));
    }

    #[test]
    fn endpoints_have_names() {
        let settings = testing::settings();
        let name = |backend, endpoint| endpoint_name(&settings, backend, endpoint);
        assert_eq!(name(0, 0), ("main".into(), "127.0.0.1:1".into()));
        assert_eq!(name(0, 9), ("main".into(), "#9".into()));
        assert_eq!(name(9, 2), ("#9".into(), "#2".into()));
    }
}
