//! What every request has, whatever it asks for.

use std::net::Ipv6Addr;

use httparse::Header;

use crate::protocol::forwarded;
use crate::protocol::host::split_port;

/// What every request has. It has no `Debug`: its fields hold tokens and cookies.
#[derive(Clone, Copy)]
pub struct RequestParts<'h, 'b> {
    pub(super) target: Target<'b>,
    pub(super) host: &'b str,
    pub(super) fields: &'h [Header<'b>],
}

impl<'h, 'b> RequestParts<'h, 'b> {
    /// The path as sent (percent-encoded), starting with `/`, without dot segments.
    pub fn path(&self) -> &'b str {
        self.target.path
    }

    /// The query as sent, without `?`; `None` when there is no `?`.
    pub fn query(&self) -> Option<&'b str> {
        self.target.query
    }

    /// Host and, when given, port; empty where HTTP/1.0 came without.
    pub fn host(&self) -> &'b str {
        self.host
    }

    /// Trimmed values of all fields called `name`, in any case, in order.
    pub fn values<'n>(
        &self,
        name: &'n str,
    ) -> impl DoubleEndedIterator<Item = &'b [u8]> + use<'h, 'b, 'n> {
        let named = self.fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| trim(field.value))
    }

    /// The port of X-Forwarded-Port, if it is one port; for requests of trusted proxies.
    pub fn forwarded_port(&self) -> Option<&'b str> {
        let port = str::from_utf8(forwarded::single(self.values("x-forwarded-port"))?).ok()?;
        let is_port =
            port.parse::<u16>().is_ok_and(|number| number > 0 && number.to_string() == port);
        is_port.then_some(port)
    }

    /// The host of X-Forwarded-Host, if it is one valid host; for requests of trusted proxies.
    pub fn forwarded_host(&self) -> Option<&'b str> {
        let host = str::from_utf8(forwarded::single(self.values("x-forwarded-host"))?).ok()?;
        is_host(host).then_some(host)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Target<'b> {
    pub(super) path: &'b str,
    pub(super) query: Option<&'b str>,
    /// Host and port of an absolute-form target, and the port that its scheme implies.
    pub(super) authority: Option<(&'b str, &'static str)>,
}

/// Strips optional whitespace (RFC 9110 §5.6.3).
pub(in crate::protocol) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// `host [":" port]` (RFC 9110 §7.2), where a name has letters, digits, `-`, `.` and `_` only.
pub(super) fn is_host(host: &str) -> bool {
    let (name, port) = split_port(host);
    let port_ok = port.is_none_or(|port| {
        port.len() <= 5
            && port.bytes().all(|b| b.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    let name_ok = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            let labels = name.strip_suffix('.').unwrap_or(name);
            name.len() <= 255
                && labels.split('.').all(|label| {
                    !label.is_empty()
                        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
                })
        }
    };
    name_ok && port_ok
}
