//! Durations and sizes as the configuration file writes them.

use std::time::Duration;

/// Reads `250ms`, `3s`, `5m` or `1h`: a whole number and a unit, nothing between them.
///
/// `None` for anything else, and for what does not fit into 64 bits of milliseconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (count, unit) = split(text)?;
    let scale_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        _ => return None,
    };
    count.checked_mul(scale_ms).map(Duration::from_millis)
}

/// Reads `8000B`, `64KiB`, `1MiB` or `2GiB`: a whole number of bytes with a binary unit.
///
/// `None` for anything else, and for what does not fit into 64 bits.
pub fn parse_size(text: &str) -> Option<u64> {
    let (count, unit) = split(text)?;
    let scale = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    count.checked_mul(scale)
}

/// Writes a duration in the largest unit that keeps it whole.
pub fn format_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0 => "0s".to_owned(),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        _ => format!("{ms}ms"),
    }
}

/// Writes a size in the largest unit that keeps it whole.
pub fn format_size(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// Splits digits from the unit that follows them.
fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let table: &[(&str, Option<u64>)] = &[
            ("250ms", Some(250)),
            ("3s", Some(3000)),
            ("0s", Some(0)),
            ("5m", Some(300_000)),
            ("1h", Some(3_600_000)),
            ("3", None),
            ("s", None),
            ("", None),
            ("3 s", None),
            ("+3s", None),
            ("-3s", None),
            ("1.5s", None),
            ("3S", None),
            ("3sec", None),
            ("18446744073709551615s", None),
            ("99999999999999999999s", None),
        ];
        for (text, ms) in table {
            assert_eq!(parse_duration(text), ms.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn sizes() {
        let table: &[(&str, Option<u64>)] = &[
            ("8000B", Some(8000)),
            ("64KiB", Some(65_536)),
            ("1MiB", Some(1 << 20)),
            ("2GiB", Some(2 << 30)),
            ("64KB", None),
            ("64kib", None),
            ("64", None),
            ("KiB", None),
            ("64 KiB", None),
            ("17179869184GiB", None),
        ];
        for (text, bytes) in table {
            assert_eq!(parse_size(text), *bytes, "{text:?}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for ms in [0, 1, 999, 1000, 1500, 60_000, 61_000, 3_600_000, 5_400_000] {
            let duration = Duration::from_millis(ms);
            assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }
        for bytes in [0, 1, 1023, 1024, 1025, 1 << 20, 3 << 20, 5 << 30] {
            assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
        }
    }
}
