//! The request head of a client: what it asks for, and whether it gets a 101, an answer over HTTP,
//! or a 101 and a refusal.

use std::net::IpAddr;
use std::sync::Arc;

use crate::connection::authenticate::{self, Decision};
use crate::connection::context::{Context, Output};
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::dialect::Dialect;
use crate::protocol::host::split_port;
use crate::protocol::http_upgrade::{
    self, FIELDS, HeadScanner, HttpRefusal, PlainRequest, Request, RequestParts, UpgradeRequest,
};
use crate::protocol::verifier::Refusal;
use crate::settings::{PathPattern, Refuse, Route, Settings};

use super::auth_decision::Credentials;
use super::closing::CloseDetails;
use super::open::{count_refusal, head_limits, origin_allowed, subprotocol, unless_revoked};
use super::phase::{Authenticating, Awaited, FirstMessageInfo, PendingRequest, Phase};
use super::state::Client;
use super::step::Step;

/// Longest offered subprotocol that a refused client is answered with although the route does not
/// list it: a longer one may be a token.
const REFUSAL_SUBPROTOCOL_MAX: usize = 64;

/// Bytes of a refused Origin that the log gets; an honest one is a scheme, a host name and a port.
const ORIGIN_LOGGED_MAX: usize = 270;

impl Client {
    /// Takes bytes of the request head; always uses all of them.
    pub(super) fn receive_head(
        &mut self,
        input: &[u8],
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Step {
        let limits = head_limits(ctx.settings);
        let partial = match &mut self.phase {
            Phase::RequestHead(partial) => partial.take(),
            _ => unreachable!("a head comes in its own phase"),
        };
        let mut scanner = partial.as_ref().map_or(HeadScanner::default(), |it| it.scanner);
        match scanner.push(input, &limits) {
            Err(refusal) => {
                self.refuse_http(refusal, ctx, output);
                Step::Handled
            }
            Ok(None) => {
                let mut partial = partial.unwrap_or_default();
                partial.scanner = scanner;
                partial.bytes.extend_from_slice(input);
                self.phase = Phase::RequestHead(Some(partial));
                Step::NeedMore
            }
            Ok(Some(end)) => {
                let (last, early) = input.split_at(end);
                let early = !early.is_empty();
                let Some(mut partial) = partial else {
                    return self.decide(last, early, ctx, output);
                };
                partial.bytes.extend_from_slice(last);
                self.decide(&partial.bytes, early, ctx, output)
            }
        }
    }

    /// Decides on a whole request head; bytes may have come `early`, right behind it.
    fn decide(&mut self, head: &[u8], early: bool, ctx: &Context<'_>, output: &mut Output) -> Step {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let request = match http_upgrade::parse(head, &mut fields, &head_limits(ctx.settings)) {
            Ok(Request::Upgrade(request)) => {
                self.take_forwarded(request.parts(), ctx, output);
                request
            }
            Ok(Request::Plain(request)) => {
                self.take_forwarded(&request.parts, ctx, output);
                self.answer_plain(&request, ctx, output);
                return Step::Handled;
            }
            Err(refusal @ HttpRefusal::HostDiffers) => {
                let (target, host) = http_upgrade::differing_hosts(head).unwrap_or_default();
                let detail = [": \"", target, "\" and \"", host, "\"."];
                self.refuse_http_with(refusal, &detail, ctx, output);
                return Step::Handled;
            }
            Err(refusal) => {
                self.refuse_http(refusal, ctx, output);
                return Step::Handled;
            }
        };
        if self.must_redirect(ctx.settings) {
            self.redirect(request.parts(), ctx, output);
            return Step::Handled;
        }
        let site = self.site(request.parts());
        let Some(index) = ctx.settings.route_for(site.host, request.path()) else {
            self.refuse_http(not_found(ctx.settings, site.host, request.path()), ctx, output);
            return Step::Handled;
        };
        let route = &ctx.settings.routes[usize::from(index)];
        self.set_route(index, route, ctx);
        self.set_dialect(dialect(route, &request));
        if !origin_allowed(route, &request, site) {
            let origin = request.origin().unwrap_or_default();
            output.refused_origin.clear();
            output.refused_origin.extend(origin.iter().take(ORIGIN_LOGGED_MAX));
            // Before any token or cookie is looked at: the page learns nothing but that.
            let is_page = request.origin().is_some();
            if is_page && explains(route, &request) && !early {
                self.explain_refusal(Cause::ForbiddenOrigin.into(), &request, route, ctx, output);
            } else {
                self.refuse_http(HttpRefusal::Forbidden(Cause::ForbiddenOrigin), ctx, output);
            }
            return Step::Handled;
        }
        // Nothing may follow the head before our 101: what a client sends blindly could be
        // meant for the server behind a proxy that does not look. Asked last, so that a request
        // that is refused anyway gets the same answer in whatever pieces it comes.
        if early {
            self.refuse_http(HttpRefusal::EarlyBytes, ctx, output);
            return Step::Handled;
        }
        self.authenticate(head, &request, route, ctx, output)
    }

    fn authenticate(
        &mut self,
        head: &[u8],
        request: &UpgradeRequest<'_, '_>,
        route: &Route,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Step {
        if self.is_over_capacity() {
            self.refuse_upgrade(Cause::OverCapacity.into(), request, ctx, output);
            return Step::Handled;
        }
        let proxy = output.proxy;
        let Output { answers, request: asked_for, tokens, .. } = output;
        let decision = authenticate::by_request(ctx.settings, route, request, ctx.now.unix, tokens);
        match unless_revoked(decision, route, ctx) {
            Decision::Accepted(identity) if let Some(server) = ctx.settings.server_of(route) => {
                let admitted = self.admit(&identity, request, route, ctx, asked_for);
                self.await_server(pending_request(head, request, route, proxy, ctx), ctx);
                let info = FirstMessageInfo::default();
                self.dial(Some(admitted), info, request, (route, server), ctx, output)
            }
            Decision::Accepted(identity) => {
                switch_protocols(request, subprotocol(request, route), &[], ctx, answers);
                self.open(&identity, request, route, ctx, asked_for);
                Step::Authenticated { backend: route.backend }
            }
            Decision::AskServer => {
                let Some(server) = ctx.settings.server_of(route) else {
                    unreachable!("only applications that are WebSocket servers judge clients")
                };
                self.ask_for(request, route, ctx, asked_for);
                self.await_server(pending_request(head, request, route, proxy, ctx), ctx);
                let info = FirstMessageInfo::default();
                self.dial(None, info, request, (route, server), ctx, output)
            }
            Decision::AwaitFirstMessage => {
                switch_protocols(request, subprotocol(request, route), &[], ctx, answers);
                self.await_first_message(pending_request(head, request, route, proxy, ctx), ctx);
                Step::Handled
            }
            Decision::Ask(auth) => {
                switch_protocols(request, subprotocol(request, route), &[], ctx, answers);
                let pending = pending_request(head, request, route, proxy, ctx);
                self.await_first_message(Arc::clone(&pending), ctx);
                self.ask(auth, &pending, &Credentials::InRequest, ctx, output)
            }
            Decision::Refused(refusal) => {
                count_refusal(ctx, tokens);
                self.refuse_upgrade(refusal, request, ctx, output);
                Step::Handled
            }
        }
    }

    /// Refuses a request that is an upgrade: over WebSocket or HTTP, as the route has it.
    fn refuse_upgrade(
        &mut self,
        refusal: Refusal,
        request: &UpgradeRequest<'_, '_>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        match self.settings_of_route(ctx).filter(|route| explains(route, request)) {
            Some(route) => self.explain_refusal(refusal, request, route, ctx, output),
            None => self.refuse_upgrade_over_http(refusal, ctx, output),
        }
    }

    /// Answers with 101, and refuses then.
    fn explain_refusal(
        &mut self,
        refusal: Refusal,
        request: &UpgradeRequest<'_, '_>,
        route: &Route,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        let subprotocol = refusal_subprotocol(request, route);
        switch_protocols(request, subprotocol, &[], ctx, &mut output.answers);
        self.refuse_with(refusal.cause, &CloseDetails::of(refusal, ctx), ctx, output);
    }

    fn await_first_message(&mut self, request: Arc<PendingRequest>, ctx: &Context<'_>) {
        let awaited = Awaited::FirstMessage(Vec::new());
        self.enter(Phase::Authenticating(Authenticating { request, awaited, switched: true }), ctx);
    }

    /// As [`await_first_message`](Self::await_first_message), for a client that has not had its 101:
    /// what it awaits is set by the caller.
    fn await_server(&mut self, request: Arc<PendingRequest>, ctx: &Context<'_>) {
        let awaited = Awaited::Nothing;
        self.enter(
            Phase::Authenticating(Authenticating { request, awaited, switched: false }),
            ctx,
        );
    }

    fn answer_plain(
        &mut self,
        request: &PlainRequest<'_, '_>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        let (host, path) = (self.site(&request.parts).host, request.parts.path());
        let index = ctx.settings.route_for(host, path);
        let health = |index: u16| ctx.settings.routes[usize::from(index)].health;
        if self.must_redirect(ctx.settings) && !index.is_some_and(health) {
            return self.redirect(&request.parts, ctx, output);
        }
        match index {
            None => self.refuse_http(not_found(ctx.settings, host, path), ctx, output),
            Some(index) if health(index) => {
                self.answer_health(request.is_head, ctx, output);
            }
            Some(_) => self.refuse_http(request.refusal, ctx, output),
        }
    }
}

impl Client {
    /// Sends the client on to the same address with TLS. Browsers follow with pages, and never with
    /// a WebSocket.
    fn redirect(&mut self, parts: &RequestParts<'_, '_>, ctx: &Context<'_>, output: &mut Output) {
        let (host, _) = split_port(self.site(parts).host);
        if host.is_empty() {
            return self.refuse_http(HttpRefusal::HostMissing, ctx, output);
        }
        let query = parts.query();
        let mark = if query.is_some() { "?" } else { "" };
        let address = ["https://", host, parts.path(), mark, query.unwrap_or_default()];
        self.refuse_http_with(HttpRefusal::Redirected, &address, ctx, output);
    }
}

/// The refusal of a path without a route. Paths are compared exactly, since a server behind the
/// gateway tells `/ws` and `/ws/` apart, so the answer says where the two are mixed up.
fn not_found(settings: &Settings, host: &str, path: &str) -> HttpRefusal {
    let differs_by_slash = |route: &Route| match &route.path {
        PathPattern::Exact(ours) => {
            ours.strip_suffix('/') == Some(path) || path.strip_suffix('/') == Some(ours)
        }
        PathPattern::Prefix(ours) => ours.strip_suffix('/') == Some(path),
    };
    let mut serving = settings.routes.iter().filter(|route| route.serves(host));
    if serving.any(differs_by_slash) {
        HttpRefusal::NotFoundSlash
    } else if settings.routes.iter().any(|route| route.path.matches(path)) {
        HttpRefusal::NotFoundHost
    } else {
        HttpRefusal::NotFound
    }
}

/// What is kept of a request that gets its 101 before it is decided.
fn pending_request(
    head: &[u8],
    request: &UpgradeRequest<'_, '_>,
    route: &Route,
    proxy: Option<IpAddr>,
    ctx: &Context<'_>,
) -> Arc<PendingRequest> {
    Arc::new(PendingRequest {
        head: head.to_vec(),
        auths: ctx.settings.auths_of(route).map(|auth| auth.name.clone()).collect(),
        subprotocol: subprotocol(request, route).map(str::to_owned),
        proxy,
    })
}

/// Whether a refused token is explained over WebSocket, or answered over HTTP.
pub(super) fn explains(route: &Route, request: &UpgradeRequest<'_, '_>) -> bool {
    match route.refuse {
        Refuse::Explain => true,
        Refuse::Http => false,
        Refuse::Auto => request.origin().is_some(),
    }
}

pub(super) fn switch_protocols(
    request: &UpgradeRequest<'_, '_>,
    subprotocol: Option<&str>,
    cookies: &[Vec<u8>],
    ctx: &Context<'_>,
    answers: &mut Vec<u8>,
) {
    ctx.counters.increment(Metric::Upgrades);
    http_upgrade::write_switching_protocols(answers, request.key(), subprotocol, cookies);
}

/// The subprotocol for a client that is refused after the 101. A browser that offers some and is
/// answered with none gives up before it can read why, so an offer that the route does not list
/// will do, unless it may be a token.
pub(super) fn refusal_subprotocol<'a>(
    request: &'a UpgradeRequest<'_, '_>,
    route: &'a Route,
) -> Option<&'a str> {
    let is_no_token = |offer: &&str| {
        let dots = offer.bytes().filter(|&byte| byte == b'.').count();
        offer.len() <= REFUSAL_SUBPROTOCOL_MAX && dots < 2
    };
    let listed = || subprotocol(request, route).filter(|_| !route.subprotocols.is_empty());
    listed().or_else(|| request.subprotocols_without_bearer().find(is_no_token))
}

/// The route's dialect, or the one that the request speaks.
fn dialect(route: &Route, request: &UpgradeRequest<'_, '_>) -> Dialect {
    let detect = || Dialect::detect(subprotocol(request, route), request.path(), request.query());
    route.dialect.unwrap_or_else(detect)
}
