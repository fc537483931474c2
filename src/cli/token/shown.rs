//! What a token says of itself, for a person at a terminal. Nothing here is verified.

use portcullis::protocol::compact_token;
use portcullis::protocol::external_term;
use portcullis::protocol::plug_crypto;
use portcullis::protocol::plug_session::CSRF_NAME;
use serde::de::IgnoredAny;
use serde_json::Value;

/// Longest JSON that is shown of an Erlang term.
const SHOWN_MAX: usize = 32 << 10;

/// A JWT taken apart, however broken it is.
pub(super) struct Jwt {
    /// The decoded header and claims, where they are text.
    pub(super) header: Option<String>,
    pub(super) claims: Option<String>,
    /// What is wrong with it, whatever the configuration.
    pub(super) faults: Vec<String>,
}

/// A JWT taken apart, line by line, as far as it can be read. The signature is not shown.
pub(super) fn jwt_lines(jwt: &Jwt, now_s: u64) -> Vec<String> {
    let part = |name: &str, json: &Option<String>| {
        let json = json.as_deref().map_or("(cannot be read)".to_owned(), pretty);
        format!("{name}  {json}")
    };
    let mut lines = vec![part("header", &jwt.header), part("claims", &jwt.claims)];
    lines.extend(times(jwt.claims.as_deref().unwrap_or_default(), now_s));
    lines.extend(jwt.faults.iter().map(|fault| format!("fault   {fault}")));
    lines
}

/// A token of another kind taken apart, line by line; `None` when it is of no kind that is
/// known. MACs are not shown.
pub(super) fn lines(token: &str, now_s: u64) -> Option<Vec<String>> {
    let token = token.as_bytes();
    if let Some(payload) = plug_crypto::unverified_payload(token) {
        let mut room = vec![0; SHOWN_MAX];
        let mut inflated = Vec::new();
        let term = external_term::inflated(&payload, &mut inflated).and_then(external_term::read);
        let json = term.map(|term| external_term::write_json(term, Some(CSRF_NAME), &mut room));
        let json = json.map_or("(no term that can be read)".into(), String::from_utf8_lossy);
        return Some(vec!["signed by Plug.Crypto".into(), format!("term    {}", pretty(&json))]);
    }
    let compact = compact_token::inspect(token)?;
    let time = |name: &str, at_s: u64| moment(name, at_s, now_s);
    Some(vec![
        format!("compact key {}", compact.unverified_key),
        format!("subject {}", plain(&compact.unverified_subject)),
        format!("id      {}", plain(&compact.unverified_token_id)),
        format!("claims  {}", pretty(&String::from_utf8_lossy(&compact.unverified_claims))),
        time("iat", compact.unverified_issued.as_seconds()),
        time("exp", compact.unverified_expires.as_seconds()),
    ])
}

/// JSON with indentation, or as it is; nothing in it can steer a terminal. Numbers and members
/// stay as they are written: a big integer keeps its digits, a repeated member shows twice.
fn pretty(json: &str) -> String {
    let text = match serde_json::from_str::<IgnoredAny>(json) {
        Ok(_) => indented(json),
        Err(_) => json.to_owned(),
    };
    let lines: Vec<String> = text.lines().map(plain).collect();
    lines.join("\n        ")
}

/// Valid JSON with a line for each member and element.
fn indented(json: &str) -> String {
    let mut out = String::with_capacity(2 * json.len());
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    let mut opened = false;
    for c in json.chars() {
        if in_text {
            out.push(c);
            in_text = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        if c.is_ascii_whitespace() {
            continue;
        }
        let closes = matches!(c, '}' | ']');
        depth -= usize::from(closes);
        // An empty object or array stays on its line.
        if opened != closes {
            line(&mut out, depth);
        }
        opened = matches!(c, '{' | '[');
        depth += usize::from(opened);
        out.push(c);
        match c {
            '"' => in_text = true,
            ',' => line(&mut out, depth),
            ':' => out.push(' '),
            _ => {}
        }
    }
    out
}

/// Text in which nothing can steer a terminal.
pub(super) fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_control() => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// The times among the claims, for people.
fn times(claims: &str, now_s: u64) -> Vec<String> {
    let claims: Value = serde_json::from_str(claims).unwrap_or_default();
    let line = |name: &str| Some(moment(name, claims.get(name)?.as_u64()?, now_s));
    ["iat", "nbf", "exp"].into_iter().filter_map(line).collect()
}

pub(super) fn moment(name: &str, at_s: u64, now_s: u64) -> String {
    let (distance_s, side) = match at_s.checked_sub(now_s) {
        Some(ahead) => (ahead, "from now"),
        None => (now_s - at_s, "ago"),
    };
    format!("{name}     {} ({} {side})", utc(at_s), span(distance_s))
}

/// A span in its two largest units.
fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {}s", seconds % 60),
        3600..86_400 => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Date and time in UTC, by the proleptic Gregorian calendar.
fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    // Days since 0000-03-01; years begin in March so that the leap day is a year's last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_shown_steers_a_terminal() {
        assert_eq!(
            pretty(r#"{"a":"x\u009b1m\u001b"}"#),
            "{\n          \"a\": \"x\\u009b1m\\u001b\"\n        }"
        );
        assert_eq!(pretty("{\"a\":\"\u{9b}\"}"), "{\n          \"a\": \"\\u{9b}\"\n        }");
        assert_eq!(pretty("no JSON\u{1b}"), "no JSON\\u{1b}");
    }

    #[test]
    fn json_keeps_its_numbers_and_its_members() {
        let json =
            r#"{"n":1e2,"big":100000000000000000000,"a":[],"o":{},"x":[1,{"y":"a,\"{:"}],"n":2}"#;
        let expected = "{\n  \"n\": 1e2,\n  \"big\": 100000000000000000000,\n  \"a\": [],\n  \
                        \"o\": {},\n  \"x\": [\n    1,\n    {\n      \"y\": \"a,\\\"{:\"\n    }\n  \
                        ],\n  \"n\": 2\n}";
        assert_eq!(indented(json), expected);
        assert_eq!(
            (indented("{}"), indented("[ ]"), indented("7")),
            ("{}".into(), "[]".into(), "7".into())
        );
    }

    #[test]
    fn dates() {
        for (unix_s, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_795_348_800, "2026-11-22 12:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(unix_s), expected);
        }
    }

    #[test]
    fn times_are_told_for_people() {
        let claims = r#"{"iat":1000,"exp":94600,"nbf":"soon"}"#;
        let expected = [
            "iat     1970-01-01 00:16:40 UTC (1m 40s ago)",
            "exp     1970-01-02 02:16:40 UTC (1d 1h from now)",
        ];
        assert_eq!(times(claims, 1100), expected);
    }
}
