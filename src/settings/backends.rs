//! `[[listener]]` and `[[backend]]` blocks.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;

use super::endpoint::{Endpoint, HostPort};
use super::file::{RawBackend, RawForwarded, RawListener};
use super::load::{Loader, overlap, place};
use super::raw::List;
use super::servers::{self, Way};
use super::{Backend, ExternalScheme, Forwarded, Listener, Network, Redirect, RevokeScope};
use crate::ring::EndpointAddress;

/// Listeners of one gateway.
const LISTENERS_MAX: usize = 64;
/// Servers of all backends together: links are numbered in 16 bits, for each worker.
const ENDPOINTS_MAX: usize = 1024;
/// Longest path of a unix socket: `sun_path` without its final NUL.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Whether a network holds addresses of the public internet: all that none of the ranges for
/// private use holds whole.
fn is_public(network: &Network) -> bool {
    const PRIVATE: [(&str, u8); 9] = [
        ("10.0.0.0", 8),
        ("172.16.0.0", 12),
        ("192.168.0.0", 16),
        ("127.0.0.0", 8),
        ("169.254.0.0", 16),
        ("100.64.0.0", 10),
        ("::1", 128),
        ("fc00::", 7),
        ("fe80::", 10),
    ];
    let holds = |(address, prefix): &(&str, u8)| {
        address.parse().is_ok_and(|address| {
            let range = Network { address, prefix: *prefix };
            network.prefix >= *prefix && range.contains(network.address)
        })
    };
    !PRIVATE.iter().any(holds)
}

impl Loader<'_> {
    /// Every `[[listener]]`; `None` when one of them cannot be used.
    pub(super) fn listeners(&mut self, raw: &[Spanned<RawListener>]) -> Option<Vec<Listener>> {
        if let Some(listener) = raw.get(LISTENERS_MAX) {
            let what = format!("there are more than {LISTENERS_MAX} listeners");
            self.report.error(listener.span(), what, "");
        }
        let mut seen: Vec<SocketAddr> = Vec::new();
        let mut built = Vec::new();
        for listener in raw {
            let raw = listener.get_ref();
            let address = raw.address.as_ref().and_then(|text| {
                let address = self.socket_address(text.get_ref(), text.span())?;
                if seen.contains(&address) {
                    let what = format!("two listeners have the address {address}");
                    self.report.error(text.span(), what, "remove one").code = "address_taken";
                } else if let Some(other) = seen.iter().find(|other| overlap(**other, address)) {
                    let what = format!("{address} overlaps with the listener at {other}");
                    let fix = "remove the narrower one: [::] takes IPv4 clients too, and 0.0.0.0 \
                               takes every IPv4 address";
                    self.report.error(text.span(), what, fix).code = "address_taken";
                }
                seen.push(address);
                Some(address)
            });
            let tls = match &raw.tls {
                Some(tls) => self.tls(tls).map(Some),
                None => Some(None),
            };
            let proxy = raw.proxy_protocol.as_ref();
            let proxy_trusted = proxy.map_or(Some(Vec::new()), |p| self.networks(&p.trusted));
            let forwarded = match &raw.forwarded {
                Some(forwarded) => self.forwarded(forwarded).map(Some),
                None => Some(None),
            };
            self.check_schemes(listener);
            built.push(match (address, tls, proxy_trusted, forwarded) {
                (Some(address), Some(tls), Some(proxy_trusted), Some(forwarded)) => {
                    Some(Listener {
                        address,
                        tls,
                        defer_accept: raw.defer_accept(),
                        proxy_trusted,
                        forwarded,
                        external_scheme: raw.external_scheme(),
                        redirect: raw.redirect(),
                    })
                }
                _ => None,
            });
        }
        built.into_iter().collect()
    }

    fn forwarded(&mut self, raw: &RawForwarded) -> Option<Forwarded> {
        let trusted = self.networks(&raw.trusted);
        for text in raw.trusted.iter().flat_map(|list| list.get_ref()) {
            let network = parse_network(text.get_ref());
            if let Some((network, true)) = network.filter(|(network, _)| is_public(network)) {
                let what = format!(
                    "{} holds public addresses: whoever has one of them can be any client",
                    text.get_ref()
                );
                let fix = match network.prefix {
                    0 => "list the proxies alone",
                    _ => {
                        "list only what your proxies have, and let nothing else reach this listener"
                    }
                };
                self.report.warning(text.span(), what, fix);
            }
        }
        let header = raw.header().to_ascii_lowercase();
        let at = raw.header.as_ref().map_or(0..0, Spanned::span);
        if !super::routes::is_token(&header) {
            let what = format!("{:?} is not a header name", raw.header());
            self.report.error(at, what, "write x-forwarded-for, or cf-connecting-ip");
            return None;
        }
        if header == "forwarded" {
            let what = "the Forwarded field (RFC 7239) is not read";
            self.report.error(at, what, "let the proxy send X-Forwarded-For");
            return None;
        }
        Some(Forwarded { trusted: trusted?, header })
    }

    fn check_schemes(&mut self, listener: &Spanned<RawListener>) {
        let raw = listener.get_ref();
        let has_tls = raw.tls.is_some();
        if has_tls && raw.external_scheme() == ExternalScheme::Http {
            let what = "external_scheme = \"http\" on a listener with TLS";
            let fix = "remove it: clients speak TLS here";
            self.report.warning(place(&raw.external_scheme, &listener.span()), what, fix);
        }
        let always_secure = has_tls || raw.external_scheme() == ExternalScheme::Https;
        if raw.redirect() == Redirect::Https && always_secure && raw.forwarded.is_none() {
            let what = "redirect = \"https\" where every request comes with TLS: it redirects none";
            let fix = "put it on the listener of port 80";
            self.report.warning(place(&raw.redirect, &listener.span()), what, fix);
        }
    }

    fn networks(&mut self, list: &List) -> Option<Vec<Network>> {
        let list = list.as_ref()?;
        if list.get_ref().is_empty() {
            let what = "trusted is empty: no load balancer would be believed";
            self.report.error(list.span(), what, "list the load balancers' networks");
        }
        let parsed: Vec<_> = list.get_ref().iter().map(|text| self.network(text)).collect();
        parsed.into_iter().collect()
    }

    fn network(&mut self, text: &Spanned<String>) -> Option<Network> {
        let parsed = parse_network(text.get_ref());
        match parsed {
            Some((network, true)) => {
                if network.prefix == 0 {
                    let what = format!("{} lets everybody forge their address", text.get_ref());
                    self.report.warning(text.span(), what, "list the load balancers alone");
                }
                return Some(network);
            }
            Some((network, false)) => {
                let what = format!("{} has bits beyond its prefix", text.get_ref());
                let fix = format!("shorten the address, or write /{}", bits(network.address));
                self.report.error(text.span(), what, &fix);
            }
            None => {
                let what = format!("{:?} is not a network", text.get_ref());
                self.report.error(text.span(), what, "write 10.0.0.0/8 or fd00::/8");
            }
        }
        None
    }

    /// Every `[[backend]]`; `None` when one of them cannot be used.
    pub(super) fn backends(&mut self, raw: &[Spanned<RawBackend>]) -> Option<Vec<Backend>> {
        let endpoints = |b: &Spanned<RawBackend>| {
            b.get_ref().endpoints.as_ref().map_or(0, |list| list.get_ref().len())
        };
        if raw.iter().map(endpoints).sum::<usize>() > ENDPOINTS_MAX {
            let what = format!("the backends have more than {ENDPOINTS_MAX} endpoints");
            self.report.error(raw[0].span(), what, "put a load balancer before them");
        }
        let built: Vec<_> = raw.iter().map(|backend| self.backend(backend.get_ref())).collect();
        let mut built: Vec<Backend> = built.into_iter().collect::<Option<_>>()?;
        servers::withhold(&mut built);
        Some(built)
    }

    fn backend(&mut self, raw: &RawBackend) -> Option<Backend> {
        let balance = self.balance(raw);
        if raw.kind() == "websocket" {
            let (endpoints, way, first) = self.server_endpoints(&raw.endpoints)?;
            let (balance, hash) = balance?;
            let server = self.server(raw, (way, &first), hash);
            let name = raw.name.as_ref()?.get_ref().clone();
            return Some(Backend {
                name,
                endpoints,
                balance,
                secret: None,
                revoke: RevokeScope::None,
                server: Some(server?),
            });
        }
        let secret = self.secret(&raw.secret_file, &raw.secret, "secret_file");
        let endpoints = self.endpoints(&raw.endpoints)?;
        if raw.secret_file.is_none()
            && raw.secret.is_none()
            && let Some(at) = endpoints.iter().position(Endpoint::is_remote)
            && let Some(list) = &raw.endpoints
        {
            let what = "this endpoint is on another machine and the link has no secret: whoever \
                        answers there is believed";
            self.report.warning(list.get_ref()[at].span(), what, "set secret_file");
        }
        if raw.secret_file.is_none()
            && raw.secret.is_none()
            && let Some(revoke) = &raw.revoke
            && raw.revoke() != RevokeScope::None
        {
            let what = "the link has no secret: any program that once listens at its address could \
                        revoke tokens";
            self.report.error(revoke.span(), what, "set secret_file, or revoke = \"none\"");
        }
        let name = raw.name.as_ref()?.get_ref().clone();
        let ((balance, _), revoke) = (balance?, raw.revoke());
        Some(Backend { name, endpoints, balance, secret, revoke, server: None })
    }

    fn endpoints(&mut self, list: &List) -> Option<Vec<Endpoint>> {
        let fix = "list \"IP:PORT\", \"NAME:PORT\" or \"unix:/PATH\"";
        self.each_endpoint(list, fix, Loader::endpoint)
    }

    /// The endpoints of `kind = "websocket"`, what their URLs have in common, and the first one's
    /// host.
    fn server_endpoints(&mut self, list: &List) -> Option<(Vec<Endpoint>, Way, String)> {
        let mut common: Option<(Way, String)> = None;
        let fix = "list \"ws://IP:PORT\", \"ws://NAME:PORT\" or \"unix:/PATH\"";
        let endpoints = self.each_endpoint(list, fix, |loader, text| {
            let (endpoint, way, host) = match text.get_ref().starts_with("unix:") {
                true => (loader.endpoint(text)?, Way::unix(), "localhost".to_owned()),
                false => loader.server_endpoint(text)?,
            };
            let (other, _) = common.get_or_insert_with(|| (way.clone(), host));
            loader.is_same_way(&way, other, text).then_some(endpoint)
        })?;
        let (way, host) = common?;
        Some((endpoints, way, host))
    }

    fn each_endpoint(
        &mut self,
        list: &List,
        fix: &str,
        mut parse: impl FnMut(&mut Self, &Spanned<String>) -> Option<Endpoint>,
    ) -> Option<Vec<Endpoint>> {
        let list = list.as_ref()?;
        if list.get_ref().is_empty() {
            let what = "endpoints is empty: the backend has no server";
            self.report.error(list.span(), what, fix);
            return None;
        }
        let mut endpoints: Vec<Endpoint> = Vec::new();
        let mut failed = false;
        for text in list.get_ref() {
            match parse(self, text) {
                Some(endpoint) if endpoints.contains(&endpoint) => {
                    let what = format!("endpoint {:?} is listed twice", text.get_ref());
                    self.report.error(text.span(), what, "remove one");
                    failed = true;
                }
                Some(endpoint) => endpoints.push(endpoint),
                None => failed = true,
            }
        }
        (!failed).then_some(endpoints)
    }

    fn endpoint(&mut self, text: &Spanned<String>) -> Option<Endpoint> {
        let (name, at) = (text.get_ref().as_str(), text.span());
        if let Some(path) = name.strip_prefix("unix:") {
            if !path.starts_with('/') || path.len() > UNIX_PATH_BYTES_MAX || path.contains('\0') {
                let what = format!("{name:?} is not the address of a unix socket");
                let fix =
                    format!("write unix:/PATH, absolute, at most {UNIX_PATH_BYTES_MAX} bytes");
                self.report.error(at, what, &fix);
                return None;
            }
            return Some(Endpoint::Address(EndpointAddress::Unix(PathBuf::from(path))));
        }
        if name.starts_with("ws://") || name.starts_with("wss://") {
            let what = format!("{name:?} belongs to kind = \"websocket\"");
            self.report.error(at, what, "set that, or write IP:PORT for kind = \"link\"");
            return None;
        }
        self.named_address(name, at)
    }

    /// `IP:PORT` or `NAME:PORT`.
    pub(super) fn named_address(&mut self, text: &str, at: Range<usize>) -> Option<Endpoint> {
        if let Some(name) = HostPort::parse(text) {
            return Some(Endpoint::Name(name));
        }
        if text.parse::<SocketAddr>().is_err() {
            let what = format!("{text:?} is not an IP address, or a name, and a port");
            self.report.error(at, what, "write 127.0.0.1:7000, [::1]:7000 or app.internal:7000");
            return None;
        }
        self.socket_address(text, at).map(|at| Endpoint::Address(EndpointAddress::Tcp(at)))
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// A network, and whether all bits beyond its prefix are zero. An address alone is a network of
/// itself.
fn parse_network(text: &str) -> Option<(Network, bool)> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address.parse::<IpAddr>().ok()?, Some(prefix)),
        None => (text.parse::<IpAddr>().ok()?, None),
    };
    let prefix = match prefix {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok()?,
        Some(_) => return None,
        None => bits(address),
    };
    if prefix > bits(address) {
        return None;
    }
    let trailing_zeros = match address {
        IpAddr::V4(v4) => u32::from(v4).trailing_zeros(),
        IpAddr::V6(v6) => u128::from(v6).trailing_zeros(),
    };
    let clean = trailing_zeros >= u32::from(bits(address) - prefix);
    Some((Network { address, prefix }, clean))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        for (text, address, prefix, clean) in [
            ("10.0.0.0/8", "10.0.0.0", 8, true),
            ("10.0.0.1/8", "10.0.0.1", 8, false),
            ("10.1.2.3", "10.1.2.3", 32, true),
            ("0.0.0.0/0", "0.0.0.0", 0, true),
            ("fd00::/8", "fd00::", 8, true),
            ("::1", "::1", 128, true),
        ] {
            let network = Network { address: address.parse().expect("an address"), prefix };
            assert_eq!(parse_network(text), Some((network, clean)), "{text}");
        }
        for text in ["10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/", "10.0.0/8", "localhost", ""] {
            assert_eq!(parse_network(text), None, "{text}");
        }
    }
}
