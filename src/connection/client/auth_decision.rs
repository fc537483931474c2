//! While another program decides: the request, the wait, and the decision.
//!
//! The 101 has gone out, and the client waits in [`Phase::Authenticating`]. What it sends
//! meanwhile waits, too: the worker reads no more of it until the decision. Only
//! [`Client::accept`] opens it, with the identity that the decision named.

use std::sync::Arc;
use std::time::Duration;

use crate::connection::auth_request::{AuthRequest, HttpAuthRequest};
use crate::connection::authenticate::{each_credential, message_credential};
use crate::connection::context::{Context, Output};
use crate::counters::Metric;
use crate::protocol::carrier;
use crate::protocol::cause::Cause;
use crate::protocol::forwarded;
use crate::protocol::http_upgrade::{self, FIELDS, Request, UpgradeRequest};
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::link::Credential;
use crate::settings::{Auth, AuthKind, Route};

use super::closing::{CloseDetails, RejectHint};
use super::http_fields::Fields;
use super::open::{head_limits, still_valid, with_request};
use super::phase::{
    Authenticating, Awaited, FirstMessageInfo, PendingDecision, PendingRequest, Phase,
};
use super::state::Client;
use super::step::Step;

/// How much later than the HTTP service the client's own machine gives a question up: the
/// service keeps the time itself, so that it learns of slow endpoints, and says so first.
const HTTP_GRACE: Duration = Duration::from_millis(500);

/// Where the credentials are that a backend or an endpoint judges.
pub(super) enum Credentials<'m> {
    InRequest,
    /// In the first message.
    InMessage(&'m [u8], FirstMessageInfo),
}

impl Client {
    /// Puts the question of the `[[auth]]` with this index.
    pub(super) fn ask(
        &mut self,
        index: u16,
        pending: &PendingRequest,
        credentials: &Credentials<'_>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Step {
        let auth = &ctx.settings.auths[usize::from(index)];
        let (timeout, is_backend) = match &auth.kind {
            AuthKind::Backend(timeout) => (*timeout, true),
            AuthKind::Http(endpoint) => (endpoint.timeout + HTTP_GRACE, false),
            AuthKind::Token(_) | AuthKind::Upstream(_) => {
                unreachable!("only backends and endpoints are asked")
            }
        };
        let (message, first_message) = match credentials {
            Credentials::InRequest => (None, FirstMessageInfo::default()),
            Credentials::InMessage(message, info) => (Some(*message), *info),
        };
        let composed = with_request(self, &pending.head, ctx, |request, route| {
            if is_backend {
                self.compose_auth(auth, request, route, message, ctx, output)?;
                return Some(AuthRequest::Backend(route.backend));
            }
            output.http_request =
                Some(self.compose_http_request(auth, request, route, message, ctx, output)?);
            Some(AuthRequest::Http)
        });
        let Some(Some(auth_request)) = composed else {
            ctx.counters.increment(Metric::TokensRefused);
            self.refuse_in_dialect(Cause::TokenMalformed, ctx, output);
            return Step::Handled;
        };
        let since = ctx.now.instant;
        let until = (since + timeout).into();
        if let Phase::Authenticating(authenticating) = &mut self.phase {
            let decision = PendingDecision { since: since.into(), until, first_message };
            authenticating.awaited = Awaited::Decision(Box::new(decision));
        }
        Step::Ask(auth_request)
    }

    /// The decision: this is who the client is. What it asked for is looked at again, because the
    /// settings may have changed; the caller compares the backend of
    /// [`Step::Authenticated`] with the one that decided, if one did.
    pub fn accept(
        &mut self,
        identity: &VerifiedIdentity<'_>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Step {
        let Some((pending, decision)) = self.take_decision() else { return Step::Handled };
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let parsed = http_upgrade::parse(&pending.head, &mut fields, &head_limits(ctx.settings));
        let checked = match parsed {
            // Accepted, but over already: it cannot be both.
            _ if identity.expires().is_some_and(|end| end <= ctx.now.unix) => {
                Err(Cause::BackendUnavailable)
            }
            Ok(Request::Upgrade(request)) => {
                match still_valid(self, &pending, &request, ctx.settings) {
                    Ok(index)
                        if ctx.is_revoked(identity, &ctx.settings.routes[usize::from(index)]) =>
                    {
                        ctx.counters.increment(Metric::RevokedRefused);
                        Err(Cause::TokenRevoked)
                    }
                    valid => valid.map(|index| (index, request)),
                }
            }
            _ => Err(Cause::ForbiddenRoute),
        };
        match checked {
            Ok((index, request)) => {
                decision.count(Metric::VerdictsAccepted, ctx);
                let route = &ctx.settings.routes[usize::from(index)];
                self.set_route(index, route, ctx);
                if let Some(server) = ctx.settings.server_of(route) {
                    let asked_for = &mut output.request;
                    let admitted = self.admit(identity, &request, route, ctx, asked_for);
                    let info = decision.first_message;
                    return self.dial(Some(admitted), info, &request, (route, server), ctx, output);
                }
                self.open(identity, &request, route, ctx, &mut output.request);
                self.acknowledge(decision.first_message, identity.expires(), ctx, output);
                Step::Authenticated { backend: route.backend }
            }
            Err(cause) => {
                let unavailable = cause == Cause::BackendUnavailable;
                let outcome = if unavailable {
                    Metric::VerdictsUnavailable
                } else {
                    Metric::VerdictsAccepted
                };
                decision.count(outcome, ctx);
                self.refuse_in_dialect(cause, ctx, output);
                Step::Handled
            }
        }
    }

    /// The decision: no, or none at all ([`Cause::BackendUnavailable`]).
    pub fn reject(
        &mut self,
        cause: Cause,
        hint: &RejectHint<'_>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        let Some((_, decision)) = self.take_decision() else { return };
        if cause == Cause::BackendUnavailable {
            decision.count(Metric::VerdictsUnavailable, ctx);
        } else {
            decision.count(Metric::VerdictsRefused, ctx);
            ctx.counters.increment(Metric::TokensRefused);
        }
        let command = decision.first_message.command;
        let details = CloseDetails { command, hint: *hint, ..CloseDetails::default() };
        self.refuse_with(cause, &details, ctx, output);
    }

    /// The question could not be put.
    pub fn unasked(&mut self, cause: Cause, ctx: &Context<'_>, output: &mut Output) {
        if self.take_decision().is_some() {
            ctx.counters.increment(Metric::VerdictsUnasked);
            self.refuse_in_dialect(cause, ctx, output);
        }
    }

    /// What is decided about, if anything; from here on it is not awaited any more.
    fn take_decision(&mut self) -> Option<(Arc<PendingRequest>, PendingDecision)> {
        let decision = self.pending_decision()?;
        let Phase::Authenticating(Authenticating { request, awaited, .. }) = &mut self.phase else {
            return None;
        };
        *awaited = Awaited::Nothing;
        Some((Arc::clone(request), decision))
    }

    /// Leaves what the backend is asked in `output.request`; `None` when a credential cannot be
    /// told.
    fn compose_auth(
        &self,
        auth: &Auth,
        request: &UpgradeRequest<'_, '_>,
        route: &Route,
        message: Option<&[u8]>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Option<()> {
        let Output { request: asked_for, tokens, .. } = output;
        self.ask_for(request, route, ctx, asked_for);
        let mut fits = true;
        let append = |credential: Credential<'_>| fits &= asked_for.push_credential(&credential);
        let scratch = tokens.carried();
        let found = match message {
            Some(message) => message_credential(auth, message, scratch, append),
            None => {
                let token_max = ctx.settings.limits.token_max;
                each_credential(auth, request, token_max, scratch, append).is_ok_and(|n| n > 0)
            }
        };
        (found && fits).then_some(())
    }

    /// The request to an HTTP endpoint; `None` when a credential cannot be told.
    fn compose_http_request(
        &self,
        auth: &Auth,
        request: &UpgradeRequest<'_, '_>,
        route: &Route,
        message: Option<&[u8]>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Option<HttpAuthRequest> {
        let AuthKind::Http(endpoint) = &auth.kind else { return None };
        let mut fields = Fields::default();
        let scratch = output.tokens.carried();
        let put = |credential: Credential<'_>| fields.credential(&credential);
        let found = match message {
            Some(message) => message_credential(auth, message, scratch, put),
            None => {
                let token_max = ctx.settings.limits.token_max;
                each_credential(auth, request, token_max, scratch, put).is_ok_and(|n| n > 0)
            }
        };
        if !found || fields.failed {
            return None;
        }
        output.path.clear();
        let secrets = ctx.settings.auths_of(route).flat_map(|auth| auth.secret_parameters());
        carrier::redacted_path_and_query(request, secrets, &mut output.path);
        fields.put("x-original-uri", &output.path);
        fields.put("x-original-method", b"GET");
        let site = self.site(request.parts());
        fields.put("x-forwarded-proto", site.scheme().as_bytes());
        fields.put("x-forwarded-host", site.host.as_bytes());
        if let Some(peer) = self.peer() {
            fields.put("x-forwarded-for", peer.ip().to_string().as_bytes());
        }
        if let Some(origin) = request.origin() {
            fields.put("origin", origin);
        }
        let trusted = |name: &&String| self.is_from_proxy() || !forwarded::is_claim(name);
        for name in endpoint.headers.iter().filter(trusted) {
            for value in request.values(name) {
                fields.put(name, value);
            }
        }
        let (endpoint, timeout) = (Arc::clone(endpoint), endpoint.timeout);
        Some(HttpAuthRequest { endpoint, fields: fields.finish(), timeout })
    }
}

#[cfg(test)]
#[path = "auth_decision_tests.rs"]
mod tests;
