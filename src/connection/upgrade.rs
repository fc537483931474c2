//! The part of a client's life before its first frame: the request head, the origin, the token,
//! and the first message where that carries the token.

use crate::counters::Metric;
use crate::protocol::carrier;
use crate::protocol::cause::Cause;
use crate::protocol::dialect::Dialect;
use crate::protocol::http_upgrade::{
    self, FIELDS, HeadLimits, HeadScanner, HttpRefusal, PlainRequest, Request, UpgradeRequest,
};
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::link::{self, Open, OpenHeaders, SessionId};
use crate::settings::{PathPattern, Refuse, Route, Settings};

use super::auth_request::Asked;
use super::authenticate::{self, Decision, Scratch};
use super::client::{Client, Step};
use super::closing::CloseDetails;
use super::first_message::FirstMessageInfo;
use super::reauthenticate::Renewal;
use super::stage::Stage;
use super::{Context, Output};

/// Longest offered subprotocol that a refused client is answered with although the route does not
/// list it: a longer one may be a token.
const REFUSAL_SUBPROTOCOL_MAX: usize = 64;

/// What is kept of a request that is not decided yet. It exists only meanwhile.
#[derive(Default)]
pub(super) struct PendingRequest {
    scanner: HeadScanner,
    /// The head as far as it has come. Invariant: `head.len() <= limits.head_max`.
    pub(super) head: Vec<u8>,
    /// The first message as far as it has come, bounded by `limits.first_message_max`.
    pub(super) message: Vec<u8>,
    /// The question that is out about this client, if one is.
    pub(super) asked: Option<Asked>,
    /// How the client is greeted if it is let in.
    pub(super) first_message: FirstMessageInfo,
    /// Names of the route's `[[auth]]` blocks, which asked for the first message or a decision.
    auths: Vec<String>,
    /// The subprotocol that the 101 named.
    subprotocol: Option<String>,
}

impl Client {
    /// Takes bytes of the request head; always uses all of them.
    pub(super) fn receive_head(
        &mut self,
        input: &[u8],
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Step {
        let limits = head_limits(ctx.settings);
        let pending = self.take_pending();
        let mut scanner = pending.as_ref().map_or(HeadScanner::default(), |p| p.scanner);
        match scanner.push(input, &limits) {
            Err(refusal) => self.refuse_http(refusal, ctx, output),
            Ok(None) => {
                let mut kept = pending.unwrap_or_default();
                kept.scanner = scanner;
                kept.head.extend_from_slice(input);
                self.set_pending(kept);
                return Step::NeedMore;
            }
            Ok(Some(end)) => {
                let (last, early) = input.split_at(end);
                let early = !early.is_empty();
                let Some(mut pending) = pending else {
                    return self.decide(last, early, ctx, output);
                };
                pending.head.extend_from_slice(last);
                return self.decide(&pending.head, early, ctx, output);
            }
        }
        Step::Handled
    }

    /// Gathers the first message, which carries the token, and decides on it once it is whole.
    pub(super) fn take_first_message(
        &mut self,
        step: Step,
        input: &[u8],
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Step {
        let Step::Data { range, last, .. } = step else { return step };
        let Some(mut pending) = self.take_pending() else {
            unreachable!("an authenticating client keeps its request")
        };
        pending.message.extend_from_slice(&input[range]);
        if last {
            return self.decide_first_message(pending, ctx, output);
        }
        self.set_pending(pending);
        Step::Handled
    }

    /// Decides on a whole request head; bytes may have come `early`, right behind it.
    fn decide(&mut self, head: &[u8], early: bool, ctx: &Context<'_>, output: &mut Output) -> Step {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let request = match http_upgrade::parse(head, &mut fields, &head_limits(ctx.settings)) {
            Ok(Request::Upgrade(request)) => request,
            Ok(Request::Plain(request)) => {
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
        let Some(index) = ctx.settings.route_for(request.path()) else {
            self.refuse_http(not_found(ctx.settings, request.path()), ctx, output);
            return Step::Handled;
        };
        let route = &ctx.settings.routes[usize::from(index)];
        self.set_route(index, route);
        self.set_dialect(dialect(route, &request));
        if !origin_allowed(route, &request) {
            self.refuse_http(HttpRefusal::Forbidden(Cause::ForbiddenOrigin), ctx, output);
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
        let Output { answers, open, path, tokens, .. } = output;
        let decision = authenticate::by_request(ctx.settings, route, request, ctx.now.unix, tokens);
        match unless_revoked(decision, ctx) {
            Decision::Accepted(identity) => {
                switch_protocols(request, route, ctx, answers);
                self.open(&identity, request, route, ctx, (open, path));
                Step::Authenticated { backend: route.backend }
            }
            Decision::AwaitFirstMessage => {
                switch_protocols(request, route, ctx, answers);
                self.set_pending(pending_request(head, request, route, ctx));
                self.enter(Stage::Authenticating, ctx);
                Step::Handled
            }
            Decision::Ask(auth) => {
                switch_protocols(request, route, ctx, answers);
                self.enter(Stage::Authenticating, ctx);
                self.ask(auth, pending_request(head, request, route, ctx), ctx, output)
            }
            Decision::Refused(cause) => {
                count_refusal(ctx, tokens);
                if explains(route, request) {
                    ctx.counters.increment(Metric::Upgrades);
                    let subprotocol = refusal_subprotocol(request, route);
                    http_upgrade::write_switching_protocols(answers, request.key(), subprotocol);
                    self.refuse_in_dialect(cause, ctx, output);
                } else {
                    self.refuse_http(HttpRefusal::for_cause(cause), ctx, output);
                }
                Step::Handled
            }
        }
    }

    fn decide_first_message(
        &mut self,
        mut pending: Box<PendingRequest>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Step {
        let taken = self.split_first_message(&mut pending.message, ctx.settings, output);
        pending.first_message = taken.unwrap_or_default();
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let parsed = http_upgrade::parse(&pending.head, &mut fields, &head_limits(ctx.settings));
        let Ok(Request::Upgrade(request)) = parsed else {
            self.refuse_in_dialect(Cause::ForbiddenRoute, ctx, output);
            return Step::Handled;
        };
        let index = match still_valid(&pending, &request, ctx.settings) {
            Ok(index) => index,
            Err(cause) => {
                self.refuse_in_dialect(cause, ctx, output);
                return Step::Handled;
            }
        };
        let route = &ctx.settings.routes[usize::from(index)];
        self.set_route(index, route);
        let PendingRequest { message, first_message, .. } = &*pending;
        let (unix, scratch) = (ctx.now.unix, &mut output.tokens);
        let decision = match taken {
            Err(cause) => Decision::Refused(cause),
            Ok(_) => authenticate::by_first_message(ctx.settings, route, message, unix, scratch),
        };
        let cause = match unless_revoked(decision, ctx) {
            Decision::Accepted(identity) => {
                let expires = identity.expires();
                self.open(&identity, &request, route, ctx, (&mut output.open, &mut output.path));
                self.greet(*first_message, expires, ctx, output);
                return Step::Authenticated { backend: route.backend };
            }
            Decision::Ask(auth) => return self.ask(auth, pending, ctx, output),
            Decision::AwaitFirstMessage => Cause::TokenMissing,
            Decision::Refused(cause) => cause,
        };
        count_refusal(ctx, &mut output.tokens);
        self.refuse_told(
            cause,
            &CloseDetails { command: first_message.command, ..CloseDetails::default() },
            ctx,
            output,
        );
        Step::Handled
    }

    /// The only way to a session: it takes the proof that the token was verified.
    pub(super) fn open(
        &mut self,
        identity: &VerifiedIdentity<'_>,
        request: &UpgradeRequest<'_, '_>,
        route: &Route,
        ctx: &Context<'_>,
        (open, path): (&mut Vec<u8>, &mut Vec<u8>),
    ) {
        ctx.counters.increment(Metric::TokensAccepted);
        self.set_identity(identity, ctx);
        if let Some(form) = &route.reauthenticate {
            self.set_renewal(Renewal::new(form));
        }
        open.clear();
        // The session is filled in once there is one. All fields together are bounded by
        // `head_max` and `token_max`, far below what a frame can hold.
        let fits = self.with_open(request, route, ctx, path, |asked_for| {
            let frame = Open {
                subject: Some(identity.subject()).filter(|subject| !subject.is_empty()),
                token_id: identity.token_id(),
                expires: identity.expires(),
                claims: identity.claims(),
                ..asked_for.clone()
            };
            frame.encode(SessionId::new(0, 0), link::PAYLOAD_MAX as u32, open)
        });
        assert!(fits, "a request head over the size of a frame");
        self.enter(Stage::Open, ctx);
    }

    /// Hands out what the client asked for, without its identity.
    pub(super) fn with_open<T>(
        &self,
        request: &UpgradeRequest<'_, '_>,
        route: &Route,
        ctx: &Context<'_>,
        path: &mut Vec<u8>,
        take: impl FnOnce(&Open<'_>) -> T,
    ) -> T {
        path.clear();
        let secrets = ctx.settings.auths_of(route).flat_map(|auth| auth.secret_parameters());
        carrier::redacted_path_and_query(request, secrets, path);
        // A request target is ASCII, or it would have been refused.
        let path = std::str::from_utf8(path).unwrap_or_default();
        let mut pairs = [("", &[][..]); FIELDS];
        let headers = forwarded(route, request, &mut pairs);
        take(&Open {
            route: self.route().unwrap_or_default(),
            remote: self.peer(),
            subprotocol: subprotocol(request, route),
            origin: request.origin().and_then(|origin| std::str::from_utf8(origin).ok()),
            headers: OpenHeaders::Pairs(headers),
            ..Open::new(path)
        })
    }

    fn answer_plain(&mut self, request: &PlainRequest<'_>, ctx: &Context<'_>, output: &mut Output) {
        match ctx.settings.route_for(request.path) {
            None => self.refuse_http(not_found(ctx.settings, request.path), ctx, output),
            Some(index) if ctx.settings.routes[usize::from(index)].health => {
                self.answer_health(request.is_head, ctx, output);
            }
            Some(_) => self.refuse_http(request.refusal, ctx, output),
        }
    }
}

/// The refusal of a path without a route. Paths are compared exactly, since a server behind the
/// gateway tells `/ws` and `/ws/` apart, so the answer says where the two are mixed up.
fn not_found(settings: &Settings, path: &str) -> HttpRefusal {
    let differs_by_slash = |route: &Route| match &route.path {
        PathPattern::Exact(ours) => {
            ours.strip_suffix('/') == Some(path) || path.strip_suffix('/') == Some(ours)
        }
        PathPattern::Prefix(ours) => ours.strip_suffix('/') == Some(path),
    };
    match settings.routes.iter().any(differs_by_slash) {
        true => HttpRefusal::NotFoundSlash,
        false => HttpRefusal::NotFound,
    }
}

fn count_refusal(ctx: &Context<'_>, tokens: &mut Scratch) {
    ctx.counters.increment(Metric::TokensRefused);
    // With those of requests that another block accepted in the meantime.
    ctx.counters.add(Metric::DeadTokenHits, tokens.take_dead_hits());
}

/// The request's headers that the route forwards, in `pairs`. There is room for all fields of any
/// request and names are distinct, so repeats of one field push no other out.
fn forwarded<'p, 'r>(
    route: &'r Route,
    request: &UpgradeRequest<'_, 'r>,
    pairs: &'p mut [(&'r str, &'r [u8]); FIELDS],
) -> &'p [(&'r str, &'r [u8])] {
    let mut count = 0;
    for name in &route.forward_headers {
        for value in request.values(name) {
            pairs[count] = (name, value);
            count += 1;
        }
    }
    &pairs[..count]
}

/// What is kept of a request that gets its 101 before it is decided.
fn pending_request(
    head: &[u8],
    request: &UpgradeRequest<'_, '_>,
    route: &Route,
    ctx: &Context<'_>,
) -> Box<PendingRequest> {
    Box::new(PendingRequest {
        head: head.to_vec(),
        auths: ctx.settings.auths_of(route).map(|auth| auth.name.clone()).collect(),
        subprotocol: subprotocol(request, route).map(str::to_owned),
        ..Default::default()
    })
}

/// Hands out a request that was kept, and its route; `None` when it no longer has one.
pub(super) fn with_request<T>(
    head: &[u8],
    ctx: &Context<'_>,
    take: impl FnOnce(&UpgradeRequest<'_, '_>, &Route) -> T,
) -> Option<T> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let parsed = http_upgrade::parse(head, &mut fields, &head_limits(ctx.settings));
    let Ok(Request::Upgrade(request)) = parsed else { return None };
    let index = ctx.settings.route_for(request.path())?;
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
    pending: &PendingRequest,
    request: &UpgradeRequest<'_, '_>,
    settings: &Settings,
) -> Result<u16, Cause> {
    let index = settings.route_for(request.path()).ok_or(Cause::ForbiddenRoute)?;
    let route = &settings.routes[usize::from(index)];
    if !origin_allowed(route, request) {
        return Err(Cause::ForbiddenOrigin);
    }
    let same_auths = settings.auths_of(route).map(|auth| &auth.name).eq(&pending.auths);
    let same_subprotocol = subprotocol(request, route) == pending.subprotocol.as_deref();
    if same_auths && same_subprotocol { Ok(index) } else { Err(Cause::GoingAway) }
}

fn origin_allowed(route: &Route, request: &UpgradeRequest<'_, '_>) -> bool {
    match request.origin() {
        Some(origin) => route.origins.allows(origin),
        None => route.origin_absent_allowed,
    }
}

/// Whether a refused token is explained over WebSocket, or answered over HTTP.
fn explains(route: &Route, request: &UpgradeRequest<'_, '_>) -> bool {
    match route.refuse {
        Refuse::Explain => true,
        Refuse::Http => false,
        Refuse::Auto => request.origin().is_some(),
    }
}

fn switch_protocols(
    request: &UpgradeRequest<'_, '_>,
    route: &Route,
    ctx: &Context<'_>,
    answers: &mut Vec<u8>,
) {
    ctx.counters.increment(Metric::Upgrades);
    http_upgrade::write_switching_protocols(answers, request.key(), subprotocol(request, route));
}

/// The subprotocol to answer with: the route's first that is offered; where the route names
/// none, the first offered. Never one that carries a token. A browser that offers some and is
/// answered with none gives up (WHATWG WebSockets).
fn subprotocol<'a>(request: &'a UpgradeRequest<'_, '_>, route: &'a Route) -> Option<&'a str> {
    if route.subprotocols.is_empty() {
        return request.subprotocols_without_bearer().next();
    }
    let offered =
        |name: &&String| request.subprotocols_without_bearer().any(|o| o == name.as_str());
    route.subprotocols.iter().find(offered).map(String::as_str)
}

/// The subprotocol for a client that is refused after the 101. A browser that offers some and is
/// answered with none gives up before it can read why, so an offer that the route does not list
/// will do, unless it may be a token.
fn refusal_subprotocol<'a>(
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

/// The decision, but no acceptance of a revoked identity.
fn unless_revoked<'s>(decision: Decision<'s>, ctx: &Context<'_>) -> Decision<'s> {
    match decision {
        Decision::Accepted(identity) if ctx.revoked.meets(&identity, ctx.now.unix) => {
            ctx.counters.increment(Metric::RevokedRefused);
            Decision::Refused(Cause::TokenRevoked)
        }
        decision => decision,
    }
}
