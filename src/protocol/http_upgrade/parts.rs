//! What every request has, whatever it asks for.

use httparse::Header;

use super::{Target, is_host, trim};
use crate::protocol::forwarded;

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
