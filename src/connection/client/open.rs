//! The way to a session: what a client asked for, and the one function that opens it.

use std::net::IpAddr;

use crate::connection::authenticate::{Decision, Scratch};
use crate::connection::context::Context;
use crate::connection::session::SessionRequest;
use crate::counters::Metric;
use crate::protocol::carrier;
use crate::protocol::cause::Cause;
use crate::protocol::forwarded;
use crate::protocol::host::Site;
use crate::protocol::http_upgrade::{self, FIELDS, HeadLimits, Request, UpgradeRequest};
use crate::protocol::identity::VerifiedIdentity;
use crate::settings::{HashKey, Route, Settings};

use super::admitted::Admitted;
use super::phase::{Open, PendingRequest, Phase};
use super::renewal::Renewal;
use super::state::Client;

/// Longest query parameter on which the choice of an endpoint may depend.
const AFFINITY_MAX: usize = 256;

impl Client {
    /// The only way to a session: it takes the proof that the token was verified.
    pub(super) fn open(
        &mut self,
        identity: &VerifiedIdentity<'_>,
        request: &UpgradeRequest<'_, '_>,
        route: &Route,
        ctx: &Context<'_>,
        asked_for: &mut SessionRequest,
    ) {
        let admitted = self.admit(identity, request, route, ctx, asked_for);
        self.enter_open(admitted, route, ctx);
    }

    /// Says what a client asked for whose token was verified, and who it is.
    pub(super) fn admit(
        &self,
        identity: &VerifiedIdentity<'_>,
        request: &UpgradeRequest<'_, '_>,
        route: &Route,
        ctx: &Context<'_>,
        asked_for: &mut SessionRequest,
    ) -> Admitted {
        self.ask_for(request, route, ctx, asked_for);
        asked_for.set_identity(identity);
        let backend = &ctx.settings.backends[usize::from(route.backend)];
        if backend.hash_key() == Some(&HashKey::Subject) {
            let subject = Some(identity.subject()).filter(|subject| !subject.is_empty());
            asked_for.set_affinity(subject.map(str::as_bytes));
        }
        Admitted::new(identity, ctx)
    }

    pub(super) fn enter_open(&mut self, admitted: Admitted, route: &Route, ctx: &Context<'_>) {
        self.is_visitor = route.visitors.is_some() && admitted.has_no_identity();
        let open = Open {
            mark: admitted.mark(),
            expires: admitted.expires(),
            backend_message_max: route.message_max.unwrap_or(u32::MAX),
            renewal: route.reauthenticate.as_ref().map(Renewal::new),
            ping_sent: false,
            handshake_done: false,
            handshake_seen: 0,
            pings_promised: false,
            passes_controls: false,
            to_client_unfinished: false,
            broken: false,
            piece_debt: 0,
        };
        self.enter(Phase::Open(open), ctx);
    }

    /// Says what the client asked for, without its identity.
    pub(super) fn ask_for(
        &self,
        request: &UpgradeRequest<'_, '_>,
        route: &Route,
        ctx: &Context<'_>,
        asked_for: &mut SessionRequest,
    ) {
        asked_for.begin(self.route(ctx.routes).unwrap_or_default(), self.peer(), |path| {
            let secrets = ctx.settings.auths_of(route).flat_map(|auth| auth.secret_parameters());
            carrier::redacted_path_and_query(request, secrets, path);
        });
        asked_for.set_route_name(&route.name);
        self.set_affinity(request, route, ctx, asked_for);
        asked_for.set_subprotocol(subprotocol(request, route));
        asked_for.set_origin(request.origin().and_then(|origin| std::str::from_utf8(origin).ok()));
        // All of them, so that repeats of one field push no other out; the head bounds them.
        let trusted = |name: &&String| self.is_from_proxy() || !forwarded::is_claim(name);
        for name in route.forward_headers.iter().filter(trusted) {
            for value in request.values(name) {
                asked_for.push_header(name, value);
            }
        }
    }
}

impl Client {
    /// The value on which the choice of the endpoint depends, but for the subject, which is not
    /// known yet.
    fn set_affinity(
        &self,
        request: &UpgradeRequest<'_, '_>,
        route: &Route,
        ctx: &Context<'_>,
        asked_for: &mut SessionRequest,
    ) {
        let backend = &ctx.settings.backends[usize::from(route.backend)];
        let Some(key) = backend.hash_key() else { return };
        let mut room = [0; AFFINITY_MAX];
        match key {
            HashKey::Subject => {}
            HashKey::Address => match self.peer().map(|peer| peer.ip().to_canonical()) {
                Some(IpAddr::V4(ip)) => asked_for.set_affinity(Some(&ip.octets())),
                Some(IpAddr::V6(ip)) => asked_for.set_affinity(Some(&ip.octets())),
                None => {}
            },
            HashKey::Cookie(name) => asked_for.set_affinity(carrier::cookie(request, name)),
            HashKey::Query(name) => {
                asked_for.set_affinity(carrier::query_parameter(request, name, &mut room));
            }
        }
    }
}

pub(super) fn count_refusal(ctx: &Context<'_>, tokens: &mut Scratch) {
    ctx.counters.increment(Metric::TokensRefused);
    // With those of requests that another block accepted in the meantime.
    ctx.counters.add(Metric::DeadTokenHits, tokens.take_dead_hits());
}

/// Hands out a request that was kept, and its route; `None` when it no longer has one.
pub(super) fn with_request<T>(
    client: &Client,
    head: &[u8],
    ctx: &Context<'_>,
    take: impl FnOnce(&UpgradeRequest<'_, '_>, &Route) -> T,
) -> Option<T> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let parsed = http_upgrade::parse(head, &mut fields, &head_limits(ctx.settings));
    let Ok(Request::Upgrade(request)) = parsed else { return None };
    let host = client.site(request.parts()).host;
    let index = ctx.settings.route_for(host, request.path())?;
    Some(take(&request, &ctx.settings.routes[usize::from(index)]))
}

pub(super) fn head_limits(settings: &Settings) -> HeadLimits {
    let limits = &settings.limits;
    HeadLimits {
        head_max: limits.head_max,
        header_fields_max: limits.header_fields_max,
        request_line_max: limits.request_line_max,
    }
}

/// The route of a request that was answered with 101 earlier. A reload may have changed
/// everything since, so all is looked up again: an index kept from then could name another
/// route, and a token must not be judged by blocks that the client never dealt with.
///
/// # Errors
/// What the request would be refused for now; where it only has to be made again,
/// [`Cause::GoingAway`], after which clients come back.
pub(super) fn still_valid(
    client: &Client,
    pending: &PendingRequest,
    request: &UpgradeRequest<'_, '_>,
    settings: &Settings,
) -> Result<u16, Cause> {
    let site = client.site(request.parts());
    let index = settings.route_for(site.host, request.path()).ok_or(Cause::ForbiddenRoute)?;
    let route = &settings.routes[usize::from(index)];
    if !origin_allowed(route, request, site) {
        return Err(Cause::ForbiddenOrigin);
    }
    let same_auths = settings.auths_of(route).map(|auth| &auth.name).eq(&pending.auths);
    let same_subprotocol = subprotocol(request, route) == pending.subprotocol.as_deref();
    if same_auths && same_subprotocol { Ok(index) } else { Err(Cause::GoingAway) }
}

pub(super) fn origin_allowed(
    route: &Route,
    request: &UpgradeRequest<'_, '_>,
    site: Site<'_>,
) -> bool {
    match request.origin() {
        Some(origin) => route.origins.allows_at(origin, site),
        None => route.origin_absent_allowed,
    }
}

/// The subprotocol to answer with: the route's first that is offered; where the route names
/// none, the first offered. Never one that carries a token. A browser that offers some and is
/// answered with none gives up (WHATWG WebSockets).
pub(super) fn subprotocol<'a>(
    request: &'a UpgradeRequest<'_, '_>,
    route: &'a Route,
) -> Option<&'a str> {
    if route.subprotocols.is_empty() {
        return request.subprotocols_without_bearer().next();
    }
    let offered =
        |name: &&String| request.subprotocols_without_bearer().any(|o| o == name.as_str());
    route.subprotocols.iter().find(offered).map(String::as_str)
}

/// The decision, but no acceptance of a revoked identity.
pub(super) fn unless_revoked<'s>(
    decision: Decision<'s>,
    route: &Route,
    ctx: &Context<'_>,
) -> Decision<'s> {
    match decision {
        Decision::Accepted(identity) if ctx.is_revoked(&identity, route) => {
            ctx.counters.increment(Metric::RevokedRefused);
            Decision::Refused(Cause::TokenRevoked.into())
        }
        decision => decision,
    }
}
