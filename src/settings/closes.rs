//! `closes` of a `[[route]]`: what it says of closes in place of the dialect's table.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::Spanned;

use super::file::RawClose;
use super::load::Loader;
use super::raw::{CountOrWord, Text};
use super::units::parse_duration;
use crate::protocol::cause::Cause;
use crate::protocol::dialect::{Override, Overrides, REASON_MAX, is_silent};
use crate::protocol::websocket::is_sendable_close_code;

impl Loader<'_> {
    /// What a route says of closes; `None` is an error.
    pub(super) fn closes(
        &mut self,
        raw: &BTreeMap<String, Spanned<RawClose>>,
    ) -> Option<Overrides> {
        let built: Vec<_> = raw
            .iter()
            .filter_map(|(label, close)| Some((Cause::from_label(label)?, close)))
            .map(|(cause, close)| Some((cause, self.close(cause, close)?)))
            .collect();
        built.into_iter().collect::<Option<Vec<_>>>().map(Overrides)
    }

    fn close(&mut self, cause: Cause, close: &Spanned<RawClose>) -> Option<Override> {
        let raw = close.get_ref();
        let label = cause.label();
        if is_silent(cause) || cause == Cause::ClientClosed {
            let what = format!("{label}: the gateway says nothing then, so nothing can differ");
            self.report.error(close.span(), what, "remove it");
            return None;
        }
        if let Some(pace) = &raw.pace
            && cause == Cause::BackendClosed
        {
            let what = format!("{label}: a backend's close is passed on at once");
            self.report.error(pace.span(), what, "remove pace");
            return None;
        }
        let code = self.close_code(raw);
        let reason = self.close_reason(&raw.reason);
        if let Some(wait) = &raw.retry_after
            && raw.reconnect == Some(false)
        {
            let what = format!("{label}: retry_after counts for nothing with reconnect = false");
            self.report.warning(wait.span(), what, "remove one of them");
        }
        Some(Override {
            code: code?,
            reason: reason?,
            reconnect: raw.reconnect,
            retry_after: duration(&raw.retry_after),
            pace: duration(&raw.pace),
            explain: raw.message,
        })
    }

    /// RFC 6455 §7.4: a code that an endpoint may put into a close frame.
    fn close_code(&mut self, raw: &RawClose) -> Option<Option<u16>> {
        let Some(code) = &raw.code else { return Some(None) };
        // The table of keys lets only whole numbers up to 4999 through.
        let CountOrWord::Count(number) = code.get_ref() else { return Some(None) };
        match u16::try_from(*number) {
            Ok(number) if is_sendable_close_code(number) => Some(Some(number)),
            _ => {
                let what = format!("{number} may not be in a close frame (RFC 6455 section 7.4)");
                let fix = "write 1000 to 1003, 1007 to 1014 or 3000 to 4999";
                self.report.error(code.span(), what, fix);
                None
            }
        }
    }

    fn close_reason(&mut self, reason: &Text) -> Option<Option<String>> {
        let Some(reason) = reason else { return Some(None) };
        let text = reason.get_ref();
        if text.len() > REASON_MAX {
            let what = format!(
                "this reason has {} bytes, and a close frame has room for {REASON_MAX}",
                text.len()
            );
            self.report.error(reason.span(), what, "shorten it");
            return None;
        }
        Some(Some(text.clone()))
    }
}

/// A duration whose shape was checked.
fn duration(text: &Text) -> Option<Duration> {
    text.as_ref().and_then(|text| parse_duration(text.get_ref()))
}
