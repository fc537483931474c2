//! Which pages may connect: Origin against a list (RFC 6454 §6.2, RFC 6455 §10.2).
//!
//! A browser serializes an origin in exactly one way, so comparison is by bytes: whatever else
//! looks like a listed origin (another case, a default port, a trailing dot) is not from a
//! browser, and is refused.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::protocol::host::Site;

/// Origins that say nothing of who wrote the page: sandboxed frames, files, apps in a web view.
pub const OPAQUE: [&str; 2] = ["null", "file://"];

/// Longest host name in DNS, in bytes.
const HOST_MAX: usize = 253;

/// Which origins a route accepts. An empty list refuses every Origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginPolicy {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// `any`, written out.
    Any,
    /// One serialized origin.
    Exact(String),
    /// `same-host`: the page comes from where it connects to.
    SameHost,
    /// `https://*.example.com:8443` as `https://` and `.example.com:8443`: one or more whole
    /// labels between them, never none.
    Below { scheme: String, suffix: String },
}

impl OriginPolicy {
    /// Reads a list as configured: serialized origins, `https://*.example.com` for every name
    /// below (one or more labels, not `example.com` itself), `same-host`, the opaque origins `null`
    /// and `file://`, or `any` alone.
    ///
    /// # Errors
    /// The index of the first wrong entry, and what is wrong with it and how to remedy it.
    pub fn parse_list(list: &[String]) -> Result<OriginPolicy, (usize, String)> {
        let mut entries = Vec::with_capacity(list.len());
        for (index, text) in list.iter().enumerate() {
            let entry = parse_entry(text).map_err(|reason| (index, reason))?;
            if entry == Entry::Any && list.len() > 1 {
                let reason = "\"any\" must stand alone: it makes the other entries meaningless";
                return Err((index, reason.into()));
            }
            if entries.contains(&entry) {
                return Err((index, format!("\"{text}\" is in the list twice")));
            }
            entries.push(entry);
        }
        Ok(OriginPolicy { entries })
    }

    /// Whether a page of this origin (the value of the one Origin field) may connect.
    pub fn allows(&self, origin: &[u8]) -> bool {
        !origin.is_empty() && self.entries.iter().any(|entry| entry.allows(origin))
    }

    /// As [`OriginPolicy::allows`], where the client connects to this `site`.
    pub fn allows_at(&self, origin: &[u8], site: Site<'_>) -> bool {
        self.allows(origin) || (self.has_same_host() && site.is_origin(origin))
    }

    /// Whether pages of the site itself are accepted, which is safe only where the sites are known:
    /// a name of an attacker's can be made to point here (DNS rebinding).
    pub fn has_same_host(&self) -> bool {
        self.entries.contains(&Entry::SameHost)
    }

    /// Whether pages are accepted that many unrelated parties have the origin of, so that a cookie
    /// alone must never authenticate.
    pub fn has_opaque(&self) -> bool {
        let opaque =
            |entry: &Entry| matches!(entry, Entry::Exact(text) if OPAQUE.contains(&text.as_str()));
        self.entries.iter().any(opaque)
    }
}

impl Entry {
    fn allows(&self, origin: &[u8]) -> bool {
        match self {
            Entry::Any => true,
            Entry::SameHost => false,
            Entry::Exact(exact) => exact.as_bytes() == origin,
            Entry::Below { scheme, suffix } => {
                let rest = origin.strip_prefix(scheme.as_bytes());
                let labels = rest.and_then(|rest| rest.strip_suffix(suffix.as_bytes()));
                labels.is_some_and(|labels| {
                    labels.len() + suffix.find(':').unwrap_or(suffix.len()) <= HOST_MAX
                        && labels.split(|&b| b == b'.').all(is_label)
                })
            }
        }
    }
}

/// One label of a host name as browsers serialize it: lower case, IDNs as `xn--`.
fn is_label(label: &[u8]) -> bool {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(b);
    !label.is_empty() && label.len() <= 63 && label.iter().all(plain)
}

fn parse_entry(text: &str) -> Result<Entry, String> {
    match text {
        "any" => return Ok(Entry::Any),
        "*" => return Err("write \"any\" to accept every origin".into()),
        "same-host" => return Ok(Entry::SameHost),
        opaque if OPAQUE.contains(&opaque) => return Ok(Entry::Exact(opaque.to_owned())),
        "file" | "file:" | "file:///" => {
            return Err("write \"file://\", as browsers send it".into());
        }
        _ => {}
    }
    if !text.is_ascii() {
        return Err(format!("write \"{text}\" in its ASCII form, with xn-- labels"));
    }
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!("write \"{}\": origins are lower case", text.to_ascii_lowercase()));
    }
    let Some((scheme, authority)) = text.split_once("://") else {
        return Err(format!("\"{text}\" has no scheme: write \"https://{text}\""));
    };
    check_scheme(scheme)?;
    if let Some(end) = authority.find(['/', '?', '#']) {
        let origin = &text[..scheme.len() + 3 + end];
        return Err(format!("an origin has no path: write \"{origin}\""));
    }
    if authority.contains('@') {
        return Err("an origin has no user name".into());
    }
    let (host, port) = split_port(authority)?;
    check_port(scheme, port)?;
    match host.strip_prefix("*.") {
        Some(parent) => {
            check_name(parent)?;
            if parent.parse::<Ipv4Addr>().is_ok() {
                return Err("an address has nothing below it".into());
            }
            if !parent.contains('.') && parent != "localhost" {
                return Err(format!("\"*.{parent}\" would accept a whole top-level domain"));
            }
            let suffix = authority[1..].to_owned();
            Ok(Entry::Below { scheme: format!("{scheme}://"), suffix })
        }
        None if host.starts_with('[') => {
            check_ipv6(host)?;
            Ok(Entry::Exact(text.into()))
        }
        None => {
            check_name(host)?;
            Ok(Entry::Exact(text.into()))
        }
    }
}

fn check_scheme(scheme: &str) -> Result<(), String> {
    match scheme {
        "ws" => return Err("a page's origin starts with http://, not ws://".into()),
        "wss" => return Err("a page's origin starts with https://, not wss://".into()),
        _ => {}
    }
    let mut bytes = scheme.bytes();
    let valid = bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
    if valid { Ok(()) } else { Err(format!("\"{scheme}\" is not a scheme")) }
}

fn split_port(authority: &str) -> Result<(&str, Option<&str>), String> {
    let after_host = authority.rfind(']').unwrap_or(0);
    match authority[after_host..].split_once(':') {
        Some((_, port)) if port.contains(':') => Err("write an IPv6 address in brackets".into()),
        Some((_, port)) => Ok((&authority[..authority.len() - port.len() - 1], Some(port))),
        None => Ok((authority, None)),
    }
}

fn check_port(scheme: &str, port: Option<&str>) -> Result<(), String> {
    match (scheme, port) {
        (_, None) => Ok(()),
        ("http", Some("80")) | ("https", Some("443")) => {
            Err("browsers leave the default port out: so must the list".into())
        }
        (_, Some(port)) => {
            let number: Result<u16, _> = port.parse();
            match number {
                Ok(number) if number > 0 && number.to_string() == port => Ok(()),
                _ => Err(format!("\"{port}\" is not a port")),
            }
        }
    }
}

fn check_name(host: &str) -> Result<(), String> {
    if host.is_empty() {
        return Err("the host is missing".into());
    }
    if host.contains('*') {
        return Err("\"*\" may only stand for whole labels at the left, as in \
                    \"https://*.example.com\""
            .into());
    }
    if let Some(bare) = host.strip_suffix('.') {
        return Err(format!("write \"{bare}\" without the dot at the end"));
    }
    if host.len() > HOST_MAX || !host.as_bytes().split(|&b| b == b'.').all(is_label) {
        return Err(format!("\"{host}\" is not a host"));
    }
    // Browsers turn a name that ends in a number into an address, or refuse it.
    let last = host.rsplit('.').next().unwrap_or(host);
    if last.bytes().all(|b| b.is_ascii_digit()) && host.parse::<Ipv4Addr>().is_err() {
        return Err(format!("\"{host}\" is neither a name nor an address"));
    }
    Ok(())
}

fn check_ipv6(host: &str) -> Result<(), String> {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match inner.map(str::parse::<Ipv6Addr>) {
        Some(Ok(address)) if inner == Some(ipv6_text(address).as_str()) => Ok(()),
        Some(Ok(address)) => Err(format!("write \"[{}]\", as browsers do", ipv6_text(address))),
        _ => Err(format!("\"{host}\" is not an IPv6 address in brackets")),
    }
}

/// Browsers never write the dotted form, also not for IPv4-mapped addresses.
fn ipv6_text(address: Ipv6Addr) -> String {
    match address.to_ipv4_mapped() {
        Some(_) => {
            let [.., high, low] = address.segments();
            format!("::ffff:{high:x}:{low:x}")
        }
        None => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(list: &[&str]) -> Result<OriginPolicy, (usize, String)> {
        let list: Vec<String> = list.iter().map(|&entry| entry.to_owned()).collect();
        OriginPolicy::parse_list(&list)
    }

    #[test]
    fn only_the_listed_origins_are_allowed() {
        let policy = policy(&[
            "https://app.example.com",
            "http://localhost:3000",
            "https://*.wild.example.org",
            "https://*.ported.example.org:8443",
            "http://[::1]:8080",
            "https://xn--bcher-kva.example",
            "https://192.0.2.7",
            "chrome-extension://abcdefghijklmnop",
        ])
        .unwrap();
        let long = format!("https://{}wild.example.org", "a.".repeat(118));
        let too_long = format!("https://{}wild.example.org", "a.".repeat(119));
        let long_label = format!("https://{}.wild.example.org", "a".repeat(64));
        let table: &[(&str, bool)] = &[
            ("https://app.example.com", true),
            ("http://localhost:3000", true),
            ("https://a.wild.example.org", true),
            ("https://a.b.wild.example.org", true),
            ("https://a-1.b_2.wild.example.org", true),
            ("https://xn--bcher-kva.wild.example.org", true),
            ("https://a.ported.example.org:8443", true),
            ("http://[::1]:8080", true),
            ("https://xn--bcher-kva.example", true),
            ("https://192.0.2.7", true),
            ("chrome-extension://abcdefghijklmnop", true),
            ("", false),
            ("null", false),
            ("NULL", false),
            ("any", false),
            ("*", false),
            ("https://", false),
            ("app.example.com", false),
            ("//app.example.com", false),
            ("http://app.example.com", false),
            ("wss://app.example.com", false),
            ("HTTPS://app.example.com", false),
            ("https://App.example.com", false),
            ("https://app.example.COM", false),
            ("https://app.example.com.", false),
            ("https://app.example.com:443", false),
            ("https://app.example.com:", false),
            ("https://app.example.com:8443", false),
            ("https://app.example.com/", false),
            ("https://app.example.com/ws", false),
            ("https://app.example.com?x", false),
            ("https://app.example.com#x", false),
            (" https://app.example.com", false),
            ("https://app.example.com ", false),
            ("https://app.example.com\t", false),
            ("https://app.example.com\0", false),
            ("https://app.example.com https://evil.example", false),
            ("https://evil.example https://app.example.com", false),
            ("https://app.example.com, https://app.example.com", false),
            ("https://user@app.example.com", false),
            ("https://user:pw@app.example.com", false),
            ("https://app.example.com@evil.example", false),
            ("https://app.example.com.evil.example", false),
            ("https://evil-app.example.com", false),
            ("https://evilapp.example.com", false),
            ("https://evil.app.example.com", false),
            ("https://example.com", false),
            ("https://app.example.co", false),
            ("https://app-example.com", false),
            ("https://app\u{ff0e}example.com", false),
            ("https://\u{430}pp.example.com", false),
            ("https://xn--pp-7kc.example.com", false),
            ("https://b\u{fc}cher.example", false),
            ("http://localhost", false),
            ("http://localhost:30000", false),
            ("http://localhost:03000", false),
            ("http://127.0.0.1:3000", false),
            ("https://wild.example.org", false),
            ("https://.wild.example.org", false),
            ("https://a..wild.example.org", false),
            ("https://.a.wild.example.org", false),
            ("https://evilwild.example.org", false),
            ("https://a.evilwild.example.org", false),
            ("https://A.wild.example.org", false),
            ("https://*.wild.example.org", false),
            ("https://a.wild.example.org.", false),
            ("https://a.wild.example.org:443", false),
            ("https://a.wild.example.org:8443", false),
            ("http://a.wild.example.org", false),
            ("https://evil.example/.wild.example.org", false),
            ("https://evil.example#.wild.example.org", false),
            ("https://evil.example?.wild.example.org", false),
            ("https://evil.example\\.wild.example.org", false),
            ("https://evil.example:80.wild.example.org", false),
            ("https://u@a.wild.example.org", false),
            ("https://a b.wild.example.org", false),
            ("https://a\n.wild.example.org", false),
            ("https://a%2e.wild.example.org", false),
            ("https://[::1].wild.example.org", false),
            ("https://b\u{fc}cher.wild.example.org", false),
            ("https://a.ported.example.org", false),
            ("https://a.ported.example.org:8444", false),
            ("https://a.ported.example.org:18443", false),
            ("http://[0:0:0:0:0:0:0:1]:8080", false),
            ("http://::1:8080", false),
            ("https://192.0.2.007", false),
            ("https://3221225991", false),
            (&long, true),
            (&too_long, false),
            (&long_label, false),
        ];
        for (origin, allowed) in table {
            assert_eq!(policy.allows(origin.as_bytes()), *allowed, "{origin:?}");
        }
        assert!(!policy.allows(b"https://app.example.com\xff"));
        assert!(!policy.allows(b"\xff\xfe.wild.example.org"));
    }

    #[test]
    fn an_empty_list_refuses_and_any_accepts() {
        let none = policy(&[]).unwrap();
        let any = policy(&["any"]).unwrap();
        for origin in ["https://app.example.com", "null"] {
            assert!(!none.allows(origin.as_bytes()));
            assert!(any.allows(origin.as_bytes()));
        }
        assert!(!any.allows(b""));
        assert_eq!(OriginPolicy::default(), none);
    }

    #[test]
    fn wrong_entries_say_how_to_mend_them() {
        let table: &[(&[&str], usize, &str)] = &[
            (&["*"], 0, "write \"any\""),
            (&["file:"], 0, "write \"file://\""),
            (&["null", "null"], 1, "twice"),
            (&["https://a.example", "any"], 1, "must stand alone"),
            (&["https://a.example", "https://a.example"], 1, "twice"),
            (&["a.example"], 0, "write \"https://a.example\""),
            (&["https://A.example"], 0, "write \"https://a.example\""),
            (&["https://a.example/"], 0, "write \"https://a.example\""),
            (&["https://a.example/ws?x"], 0, "write \"https://a.example\""),
            (&["https://a.example."], 0, "without the dot"),
            (&["https://b\u{fc}cher.example"], 0, "xn--"),
            (&["https://u@a.example"], 0, "user name"),
            (&["wss://a.example"], 0, "https://, not wss://"),
            (&["ws://a.example"], 0, "http://, not ws://"),
            (&["https://a.example:443"], 0, "default port"),
            (&["http://a.example:80"], 0, "default port"),
            (&["https://a.example:"], 0, "not a port"),
            (&["https://a.example:0"], 0, "not a port"),
            (&["https://a.example:0443"], 0, "not a port"),
            (&["https://a.example:65536"], 0, "not a port"),
            (&["https://a.example:+1"], 0, "not a port"),
            (&["https://"], 0, "host is missing"),
            (&["https://*.com"], 0, "top-level"),
            (&["https://*."], 0, "host is missing"),
            (&["https://*"], 0, "whole labels"),
            (&["https://*a.example"], 0, "whole labels"),
            (&["https://a.*.example"], 0, "whole labels"),
            (&["https://*.*.example"], 0, "whole labels"),
            (&["https://*.192.0.2.1"], 0, "nothing below"),
            (&["https://a..example"], 0, "not a host"),
            (&["https://a b.example"], 0, "not a host"),
            (&["https://1.2.3"], 0, "neither a name nor an address"),
            (&["https://::1"], 0, "in brackets"),
            (&["https://[::1"], 0, "in brackets"),
            (&["https://[0::1]"], 0, "write \"[::1]\""),
            (&["https://[::ffff:1.2.3.4]"], 0, "write \"[::ffff:102:304]\""),
            (&["1https://a.example"], 0, "not a scheme"),
            (&[""], 0, "no scheme"),
        ];
        for (list, index, reason) in table {
            let (at, why) = policy(list).unwrap_err();
            assert_eq!(at, *index, "{list:?}");
            assert!(why.contains(reason), "{list:?}: {why}");
        }
        assert!(policy(&["http://*.localhost:3000", "https://[::ffff:102:304]"]).is_ok());
    }
}
