//! Hosts that a route serves, and the host that a request names.

/// A host, or all below one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// This name or address alone, in lower case.
    Exact(String),
    /// Every name below; from `*.example.com`, kept as `.example.com`.
    Below(String),
}

impl HostPattern {
    /// Reads a host as configured.
    ///
    /// # Errors
    /// What is wrong, and what may be written instead.
    pub fn parse(text: &str) -> Result<HostPattern, String> {
        if text.contains("://") {
            return Err("a host has no scheme: write app.example.com".to_owned());
        }
        let lower = text.to_ascii_lowercase();
        let (name, below) = match lower.strip_prefix("*.") {
            Some(parent) => (parent, true),
            None => (lower.as_str(), false),
        };
        let is_address = name.starts_with('[') && name.ends_with(']') && !below;
        let label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        if name.contains(':') && !is_address {
            return Err("a host has no port here: all ports of it are meant".to_owned());
        }
        let proper = match is_address {
            true => name[1..name.len() - 1].parse::<std::net::Ipv6Addr>().is_ok(),
            false => name.len() <= 253 && name.split('.').all(label),
        };
        if !proper || (below && !name.contains('.')) {
            return Err("write app.example.com, or *.example.com for all hosts below it".to_owned());
        }
        Ok(match below {
            true => HostPattern::Below(format!(".{name}")),
            false => HostPattern::Exact(name.to_owned()),
        })
    }

    /// Whether `host` (of a request, perhaps with a port) is meant.
    pub fn matches(&self, host: &str) -> bool {
        let name = name(host);
        match self {
            HostPattern::Exact(exact) => name.eq_ignore_ascii_case(exact),
            HostPattern::Below(suffix) => name
                .len()
                .checked_sub(suffix.len())
                .filter(|at| *at > 0)
                .and_then(|at| name.get(at..))
                .is_some_and(|end| end.eq_ignore_ascii_case(suffix)),
        }
    }

    /// Whether every host of `other` is one of these.
    pub fn covers(&self, other: &HostPattern) -> bool {
        match (self, other) {
            (HostPattern::Below(ours), HostPattern::Below(theirs)) => {
                theirs.ends_with(ours.as_str())
            }
            (_, HostPattern::Exact(name)) => self.matches(name),
            (HostPattern::Exact(_), HostPattern::Below(_)) => false,
        }
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HostPattern::Exact(exact) => out.write_str(exact),
            HostPattern::Below(suffix) => write!(out, "*{suffix}"),
        }
    }
}

/// A host without its port, and that port.
pub fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rfind(':') {
        Some(at) if !host[at..].contains(']') => (&host[..at], Some(&host[at + 1..])),
        _ => (host, None),
    }
}

/// A host without port and final dot.
fn name(host: &str) -> &str {
    let (name, _) = split_port(host);
    name.strip_suffix('.').unwrap_or(name)
}

/// Where a client believes that it is: scheme, host and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site<'h> {
    /// Whether it speaks TLS.
    pub is_secure: bool,
    /// As in `Host`, perhaps with a port.
    pub host: &'h str,
    /// The port that a trusted proxy names, where the host has none.
    pub port: Option<&'h str>,
}

impl Site<'_> {
    /// The scheme of its pages.
    pub const fn scheme(self) -> &'static str {
        if self.is_secure { "https" } else { "http" }
    }

    /// Whether a serialized origin (RFC 6454 §6.2) is this very site's.
    pub fn is_origin(self, origin: &[u8]) -> bool {
        let Ok(origin) = str::from_utf8(origin) else { return false };
        let Some(theirs) = origin.strip_prefix(self.scheme()).and_then(|o| o.strip_prefix("://"))
        else {
            return false;
        };
        let default = if self.is_secure { "443" } else { "80" };
        let ((ours, our_port), (theirs, their_port)) = (split_port(self.host), split_port(theirs));
        !ours.is_empty()
            && ours.eq_ignore_ascii_case(theirs)
            && our_port.or(self.port).unwrap_or(default) == their_port.unwrap_or(default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_hosts() {
        let table = [
            ("app.example.com", "app.example.com", true),
            ("app.example.com", "APP.example.com:8443", true),
            ("App.Example.com", "app.example.com.", true),
            ("app.example.com", "xapp.example.com", false),
            ("app.example.com", "app.example.com.evil.example", false),
            ("app.example.com", "", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.example.com:80", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.example.com", "aexample.com", false),
            ("[2001:db8::1]", "[2001:db8::1]:443", true),
            ("192.0.2.1", "192.0.2.1", true),
        ];
        for (pattern, host, expected) in table {
            let parsed = HostPattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(host), expected, "{pattern} {host}");
        }
        for bad in
            ["", "*", "*.com", "a b", "https://a.example", "a.example:443", "*.", "a..b", "[::x]"]
        {
            assert!(HostPattern::parse(bad).is_err(), "{bad:?}");
        }
        let of = |text| HostPattern::parse(text).unwrap();
        assert!(of("*.example.com").covers(&of("a.example.com")));
        assert!(of("*.example.com").covers(&of("*.a.example.com")));
        assert!(!of("a.example.com").covers(&of("*.example.com")));
    }

    #[test]
    fn the_same_host_is_scheme_name_and_port() {
        let site = |is_secure, host| Site { is_secure, host, port: None };
        let table = [
            (site(true, "app.example"), "https://app.example", true),
            (site(true, "app.example:443"), "https://app.example", true),
            (site(true, "APP.example"), "https://app.example", true),
            (site(true, "app.example:8443"), "https://app.example:8443", true),
            (site(false, "app.example:80"), "http://app.example", true),
            (site(false, "[::1]:3000"), "http://[::1]:3000", true),
            (site(true, "app.example"), "http://app.example", false),
            (site(false, "app.example"), "https://app.example", false),
            (site(true, "app.example"), "https://app.example:8443", false),
            (site(true, "app.example:8443"), "https://app.example", false),
            (site(true, "app.example"), "https://evil.example", false),
            (site(true, "app.example"), "https://app.example.evil.example", false),
            (site(true, "app.example"), "https://app.example/", false),
            (site(true, ""), "https://", false),
            (site(false, "app.example"), "null", false),
            (site(false, "app.example"), "", false),
        ];
        for (site, origin, expected) in table {
            assert_eq!(site.is_origin(origin.as_bytes()), expected, "{site:?} {origin}");
        }
        assert!(!site(true, "a").is_origin(b"https://\xff"));
        let proxied = Site { port: Some("8443"), ..site(true, "app.example") };
        assert!(proxied.is_origin(b"https://app.example:8443"));
        assert!(!proxied.is_origin(b"https://app.example"));
    }
}
