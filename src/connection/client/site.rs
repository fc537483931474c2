//! Where a client comes from, and where it believes to be: what the socket says, and what trusted
//! proxies say beyond that.

use std::net::SocketAddr;

use crate::connection::context::{Context, Output};
use crate::protocol::forwarded;
use crate::protocol::host::Site;
use crate::protocol::http_upgrade::RequestParts;
use crate::settings::{ExternalScheme, Forwarded, Listener, Redirect, Settings};

use super::peer_address::{PeerAddress, PeerIs};
use super::state::Client;

impl Client {
    /// Whether the request came from a proxy whose word on the client counts.
    pub(super) fn is_from_proxy(&self) -> bool {
        self.peer_is != PeerIs::Client
    }

    /// The listener, whose place no reload changes.
    fn listener<'s>(&self, settings: &'s Settings) -> Option<&'s Listener> {
        settings.listeners.get(usize::from(self.listener))
    }

    /// The proxies whose word counts, where the request came from one of them.
    pub(super) fn proxies<'s>(&self, settings: &'s Settings) -> Option<&'s Forwarded> {
        let listener = self.listener(settings).filter(|_| self.is_from_proxy());
        listener.and_then(|listener| listener.forwarded.as_ref())
    }

    /// What the listener and its PROXY header say of the connection's peer.
    pub(super) fn meet_peer(&mut self, ctx: &Context<'_>) {
        let Some(listener) = self.listener(ctx.settings) else { return };
        let trusts = |peer: SocketAddr| {
            listener.forwarded.as_ref().is_some_and(|proxies| proxies.trusts(peer.ip()))
        };
        self.peer_is = match self.peer().is_some_and(trusts) {
            true => PeerIs::TrustedProxy,
            false => PeerIs::Client,
        };
        self.is_secure |= match listener.external_scheme {
            ExternalScheme::Auto => self.is_tls(),
            ExternalScheme::Http => false,
            ExternalScheme::Https => true,
        };
    }

    /// A load balancer's PROXY header said that the client speaks TLS to it.
    pub fn set_external_tls(&mut self) {
        self.is_secure = true;
    }

    /// Whose share and penalties the connection counts towards; none while only a proxy of
    /// many clients is known.
    pub fn counted_as(&self) -> Option<SocketAddr> {
        self.peer().filter(|_| self.peer_is != PeerIs::TrustedProxy)
    }

    /// Takes over what a trusted proxy says in the head, and leaves in `output.forwarded_peer` whose
    /// the connection is from now on.
    pub(super) fn take_forwarded(
        &mut self,
        parts: &RequestParts<'_, '_>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        output.proxy = None;
        let (Some(proxies), Some(proxy)) = (self.proxies(ctx.settings), self.peer()) else {
            return;
        };
        let scheme = forwarded::single(parts.values("x-forwarded-proto"));
        self.is_secure = scheme.and_then(forwarded::is_secure).unwrap_or(self.is_secure);
        let values = parts.values(&proxies.header);
        let found = match proxies.header.as_str() {
            forwarded::LIST => forwarded::client_in_list(values, |ip| proxies.trusts(ip)),
            _ => forwarded::single(values).and_then(forwarded::address),
        };
        if let Some((ip, port)) = found {
            // Without a port of the client, the proxy's own tells connections apart in the log.
            let port = port.filter(|port| *port > 0).unwrap_or(proxy.port());
            let client = SocketAddr::new(ip, port);
            self.peer = PeerAddress::pack(Some(client));
            self.peer_is = PeerIs::ClientOfProxy;
            output.forwarded_peer = Some(client);
            output.proxy = Some(proxy.ip());
        }
    }

    /// Where the client believes to be.
    pub(super) fn site<'b>(&self, parts: &RequestParts<'_, 'b>) -> Site<'b> {
        let forwarded = parts.forwarded_host().filter(|_| self.is_from_proxy());
        Site {
            is_secure: self.is_secure,
            host: forwarded.unwrap_or(parts.host()),
            port: parts.forwarded_port().filter(|_| self.is_from_proxy()),
        }
    }

    /// Whether the request is to be made again over TLS.
    pub(super) fn must_redirect(&self, settings: &Settings) -> bool {
        let listener = self.listener(settings);
        !self.is_secure && listener.is_some_and(|listener| listener.redirect == Redirect::Https)
    }
}
