//! Durations and sizes as the configuration file writes them.

use std::time::Duration;

/// The units of a size, smallest first, and their bytes.
pub const SIZES: &[(&str, u64)] = &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
/// The units of a duration, smallest first, and their milliseconds.
pub const TIMES: &[(&str, u64)] = &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

/// Reads `250ms`, `3s`, `5m` or `1h`: a whole number and a unit, nothing between them.
///
/// `None` for anything else, and for what does not fit into 64 bits of milliseconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    parse(text, TIMES).map(Duration::from_millis)
}

/// Reads `8000B`, `64KiB`, `1MiB` or `2GiB`: a whole number of bytes with a binary unit.
///
/// `None` for anything else, and for what does not fit into 64 bits.
pub fn parse_size(text: &str) -> Option<u64> {
    parse(text, SIZES)
}

/// Writes a duration in the largest unit that keeps it whole.
pub fn format_duration(duration: Duration) -> String {
    format(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), TIMES, "s")
}

/// Writes a size in the largest unit that keeps it whole.
pub fn format_size(bytes: u64) -> String {
    format(bytes, SIZES, "B")
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(end);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    digits.parse::<u64>().ok()?.checked_mul(*scale)
}

fn format(number: u64, units: &[(&str, u64)], of_zero: &str) -> String {
    let whole = |(_, scale): &&(&str, u64)| number != 0 && number.is_multiple_of(*scale);
    match units.iter().rev().find(whole) {
        Some((unit, scale)) => format!("{}{unit}", number / scale),
        None => format!("0{of_zero}"),
    }
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
