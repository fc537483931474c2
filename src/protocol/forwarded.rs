//! What trusted proxies say of the client's own connection: its address, scheme and host.
//!
//! Any client can write these fields, so a caller makes sure first that the connection's peer is
//! trusted.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr as _;

/// Fields that claim where a request comes from, beside all that begin with `x-forwarded-` or
/// `x-original-`; lower case.
const CLAIMS: &[&str] = &[
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "fastly-client-ip",
    "fly-client-ip",
];

/// The one list that grows on its way; all others hold one value.
pub const LIST: &str = "x-forwarded-for";

/// Whether a field of this name claims where a request comes from, so that none of an untrusted
/// peer may be believed. Some servers read `_` as `-`.
pub fn is_claim(name: &str) -> bool {
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    let starts = |start: &str| {
        name.len() >= start.len() && name.bytes().map(fold).zip(start.bytes()).all(|(a, b)| a == b)
    };
    ["x-forwarded-", "x-original-"].iter().any(|start| starts(start))
        || CLAIMS.iter().any(|claim| claim.len() == name.len() && starts(claim))
}

/// The client's address in the values of [`LIST`], seen from the trusted peer: the last entry that
/// no trusted proxy has. Where all of them are trusted it is the first; an entry that is no address
/// ends the search, and what was good behind it counts.
pub fn client_in_list<'v>(
    values: impl DoubleEndedIterator<Item = &'v [u8]>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Option<(IpAddr, Option<u16>)> {
    let entries = values.rev().flat_map(|value| value.rsplit(|&b| b == b','));
    let mut last = None;
    for entry in entries {
        match address(entry) {
            Some(found) => last = Some(found),
            None => break,
        }
        if last.is_some_and(|(ip, _)| !is_trusted(ip)) {
            break;
        }
    }
    last
}

/// The only value, if there is one only.
pub fn single<'v>(mut values: impl Iterator<Item = &'v [u8]>) -> Option<&'v [u8]> {
    values.next().filter(|_| values.next().is_none())
}

/// An address, perhaps with its port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`,
/// `[2001:db8::1]:80`.
pub fn address(text: &[u8]) -> Option<(IpAddr, Option<u16>)> {
    let text = str::from_utf8(text).ok()?.trim_matches([' ', '\t']);
    if let Ok(ip) = IpAddr::from_str(text) {
        return Some((ip.to_canonical(), None));
    }
    let (ip, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (ip, rest) = rest.split_once(']')?;
            let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
            (IpAddr::from(Ipv6Addr::from_str(ip).ok()?), port)
        }
        None => {
            let (ip, port) = text.split_once(':')?;
            (IpAddr::V4(ip.parse().ok()?), Some(port))
        }
    };
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let port = match port {
        None => None,
        Some(port) => Some(port.parse().ok().filter(|_| is_port(port))?),
    };
    Some((ip.to_canonical(), port))
}

/// Whether the client speaks TLS to the outermost proxy, if the value says so.
pub fn is_secure(scheme: &[u8]) -> Option<bool> {
    match scheme {
        _ if scheme.eq_ignore_ascii_case(b"https") => Some(true),
        _ if scheme.eq_ignore_ascii_case(b"wss") => Some(true),
        _ if scheme.eq_ignore_ascii_case(b"http") => Some(false),
        _ if scheme.eq_ignore_ascii_case(b"ws") => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_proxies_write_them() {
        let table = [
            ("192.0.2.1", Some(("192.0.2.1", None))),
            (" 192.0.2.1\t", Some(("192.0.2.1", None))),
            ("192.0.2.1:8080", Some(("192.0.2.1", Some(8080)))),
            ("2001:db8::1", Some(("2001:db8::1", None))),
            ("[2001:db8::1]", Some(("2001:db8::1", None))),
            ("[2001:db8::1]:443", Some(("2001:db8::1", Some(443)))),
            ("::ffff:192.0.2.1", Some(("192.0.2.1", None))),
            ("[::ffff:192.0.2.1]:7", Some(("192.0.2.1", Some(7)))),
            ("", None),
            ("unknown", None),
            ("_hidden", None),
            ("app.example.com", None),
            ("192.0.2.1:", None),
            ("192.0.2.1:+80", None),
            ("192.0.2.1:65536", None),
            ("192.0.2.01", None),
            ("192.0.2.1 192.0.2.2", None),
            ("[192.0.2.1]", None),
            ("[2001:db8::1]443", None),
            ("[2001:db8::1", None),
            ("\"192.0.2.1\"", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|(ip, port)| (ip.parse().unwrap(), port));
            assert_eq!(address(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(address(b"\xff"), None);
    }

    #[test]
    fn a_list_is_read_from_the_right() {
        let trusted = |ip: IpAddr| ip.to_string().starts_with("10.");
        let table: &[(&[&str], Option<&str>)] = &[
            (&[], None),
            (&[""], None),
            (&["198.51.100.7"], Some("198.51.100.7")),
            (&["198.51.100.7, 10.0.0.2"], Some("198.51.100.7")),
            // What the client wrote itself stands to the left of what the proxy saw.
            (&["203.0.113.1, 198.51.100.7"], Some("198.51.100.7")),
            (&["203.0.113.1", "198.51.100.7", "10.0.0.2"], Some("198.51.100.7")),
            (&["10.0.0.9, 198.51.100.7:5, 10.0.0.2"], Some("198.51.100.7")),
            (&["10.0.0.3, 10.0.0.2"], Some("10.0.0.3")),
            (&["unknown, 10.0.0.2"], Some("10.0.0.2")),
            (&["198.51.100.7, unknown"], None),
            (&["198.51.100.7,, 10.0.0.2"], Some("10.0.0.2")),
            (&["198.51.100.7, "], None),
        ];
        for (values, expected) in table {
            let list = values.iter().map(|value| value.as_bytes());
            let got = client_in_list(list, trusted).map(|(ip, _)| ip.to_string());
            assert_eq!(got.as_deref(), *expected, "{values:?}");
        }
    }

    #[test]
    fn claims_and_single_values() {
        for name in
            ["X-Forwarded-For", "x_forwarded_proto", "Forwarded", "X-Real-IP", "CF-Connecting-IP"]
        {
            assert!(is_claim(name), "{name}");
        }
        for name in ["x-forward", "accept-language", "host", "x-request-id"] {
            assert!(!is_claim(name), "{name}");
        }
        let of = |values: &[&'static str]| {
            single(values.iter().map(|value| value.as_bytes())).map(<[u8]>::len)
        };
        assert_eq!((of(&[]), of(&["ab"]), of(&["a", "a"])), (None, Some(2), None));
        let schemes = ["https", "WSS", "http", "ws", "", "https, https", "ftp"].map(str::as_bytes);
        let secure = [Some(true), Some(true), Some(false), Some(false), None, None, None];
        assert_eq!(schemes.map(is_secure), secure);
    }
}
