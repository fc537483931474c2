//! The servers of a backend, as the file names them.

use std::fmt;

use crate::ring::EndpointAddress;

/// Longest name that DNS has (RFC 1035 §2.3.4), and longest label.
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// A server of a backend, or all that a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Where it listens.
    Address(EndpointAddress),
    /// Every address of this name is one.
    Name(HostPort),
}

/// A name to resolve, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// In lower case.
    pub host: String,
    /// Never 0.
    pub port: u16,
}

impl Endpoint {
    /// Whether it may be on another machine.
    pub fn is_remote(&self) -> bool {
        match self {
            Endpoint::Address(EndpointAddress::Tcp(address)) => !address.ip().is_loopback(),
            Endpoint::Address(EndpointAddress::Unix(_)) => false,
            Endpoint::Name(name) => name.host != "localhost",
        }
    }

    /// The name, if it is one.
    pub fn name(&self) -> Option<&HostPort> {
        match self {
            Endpoint::Address(_) => None,
            Endpoint::Name(name) => Some(name),
        }
    }
}

impl HostPort {
    /// Reads `HOST:PORT`. What looks like a mistyped IP address is no host: the last label has a
    /// letter (RFC 3696 §2).
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| *port != 0 && digits)?;
        let bare = host.strip_suffix('.').unwrap_or(host);
        let is_label = |label: &str| {
            let of_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=LABEL_BYTES_MAX).contains(&label.len())
                && label.bytes().all(of_name)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let last = bare.rsplit('.').next()?;
        let is_host = bare.len() <= NAME_BYTES_MAX
            && bare.split('.').all(is_label)
            && last.bytes().any(|byte| byte.is_ascii_alphabetic());
        // The dot at the end is kept: it says that no search domain is to be tried.
        is_host.then(|| HostPort { host: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for Endpoint {
    /// As settings and metrics have it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Address(address) => address.fmt(f),
            Endpoint::Name(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_ports() {
        for text in ["localhost:1", "app.internal:7000", "a_b-c.x1:65535", "app.:80"] {
            assert_eq!(HostPort::parse(text).map(|name| name.to_string()).as_deref(), Some(text));
        }
        assert_eq!(HostPort::parse("APP:80").map(|name| name.host).as_deref(), Some("app"));
        let long = format!("{}:80", "a.".repeat(127) + "a");
        for text in [
            "app",
            "app:",
            "app:0",
            "app:65536",
            "app:+80",
            ":80",
            ".:80",
            "a..b:80",
            "-a:80",
            "a-:80",
            "127.0.0.1:80",
            "127.0.0:80",
            "127.1:80",
            "1:80",
            "[::1]:80",
            "::1:80",
            "a b:80",
            "a/b:80",
            "user@a:80",
            "ä:80",
            &long,
        ] {
            assert_eq!(HostPort::parse(text), None, "{text}");
        }
    }
}
