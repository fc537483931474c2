//! While the WebSocket server behind has still to agree to a client: what it is asked, and what its
//! answer makes of the client.
//!
//! A client whose credentials came with its request gets its own 101 when the server's has come, so
//! that what the server chose is what it hears. One that authenticated by its first message has had
//! its 101 by then.

use std::sync::Arc;
use std::time::Duration;

use crate::connection::context::{Context, Output};
use crate::connection::upstream::websocket::handshake::{Accepted, Handshake, Refused};
use crate::connection::upstream::websocket::request::ServerRequest;
use crate::protocol::cause::Cause;
use crate::protocol::http_upgrade::{self, FIELDS, HttpRefusal, Request, UpgradeRequest};
use crate::settings::{Route, WebSocketBackend};

use super::admitted::Admitted;
use super::closing::{CloseDetails, RejectHint};
use super::open::{head_limits, still_valid, subprotocol};
use super::pending_acceptance::PendingAcceptance;
use super::phase::{
    Authenticating, Awaited, FirstMessageInfo, PendingRequest, PendingServer, Phase,
};
use super::state::Client;
use super::step::Step;
use super::upgrade::{explains, refusal_subprotocol, switch_protocols};

/// How much later than the worker the client's own machine gives a server up: the worker keeps the
/// time of each attempt, and says first what failed.
const GRACE: Duration = Duration::from_millis(500);

impl Client {
    /// Leaves in `output.handshake` what a server of the route's backend is asked, and waits for its
    /// answer. The client is in [`Phase::Authenticating`], and `output.request` says who it is, if
    /// that is known. Without `admitted` the server itself judges the client: nothing but the
    /// handshake reaches it before that.
    pub(super) fn dial(
        &mut self,
        admitted: Option<Admitted>,
        first_message: FirstMessageInfo,
        request: &UpgradeRequest<'_, '_>,
        (route, server): (&Route, &WebSocketBackend),
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Step {
        let proxy = match &self.phase {
            Phase::Authenticating(authenticating) => authenticating.request.proxy,
            _ => None,
        };
        output.handshake = Some(Handshake::new(&ServerRequest {
            request,
            settings: ctx.settings,
            route,
            server,
            site: self.site(request.parts()),
            client: self.peer().map(|peer| peer.ip()),
            proxies: self.proxies(ctx.settings),
            proxy,
            identity: output.request.identity().as_ref(),
            nonce: &output.nonce,
        }));
        let until = ctx.now.instant + ctx.settings.deadlines.upstream_connect + GRACE;
        let backend = route.backend;
        let pending = PendingServer { until: until.into(), first_message, admitted };
        let Phase::Authenticating(authenticating) = &mut self.phase else {
            unreachable!("a server is asked about a client that authenticates")
        };
        authenticating.awaited = Awaited::Server(Box::new(pending));
        Step::Dial { backend }
    }

    /// The server has agreed. What the client asked for is looked at again, because the settings may
    /// have changed: `backend` is the index of the server's now, `None` if it was removed. Whether
    /// the client is open now.
    pub fn server_accepted(
        &mut self,
        backend: Option<u16>,
        accepted: &Accepted,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> bool {
        let Some((request, pending, switched)) = self.take_server() else { return false };
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let parsed = http_upgrade::parse(&request.head, &mut fields, &head_limits(ctx.settings));
        let checked = match parsed {
            Ok(Request::Upgrade(upgrade)) => {
                still_valid(self, &request, &upgrade, ctx.settings).map(|index| (index, upgrade))
            }
            _ => Err(Cause::ForbiddenRoute),
        };
        let (index, upgrade) = match checked {
            Ok(checked) => checked,
            Err(cause) => {
                self.refuse_in_dialect(cause, ctx, output);
                return false;
            }
        };
        let route = &ctx.settings.routes[usize::from(index)];
        let chosen = accepted.subprotocol();
        let admitted = match (pending.admitted, ctx.settings.acceptance_of(route)) {
            (Some(admitted), _) => Ok(admitted),
            (None, Some(rules)) => Err(Arc::clone(rules)),
            (None, None) => Ok(Admitted::by_server()),
        };
        if let Ok(admitted) = &admitted
            && let Some(cause) = admitted.is_over(route, ctx)
        {
            self.refuse_in_dialect(cause, ctx, output);
            return false;
        }
        // A reload gave the route to another backend; or the client has heard of another subprotocol
        // than the one that the server speaks.
        let differs = switched && chosen.is_some() && chosen != request.subprotocol.as_deref();
        if backend != Some(route.backend) || differs {
            let cause = if differs { Cause::BackendUnavailable } else { Cause::GoingAway };
            self.refuse_in_dialect(cause, ctx, output);
            return false;
        }
        if !switched {
            // A browser that offers some and is answered with none gives up.
            let answered = chosen.or_else(|| subprotocol(&upgrade, route));
            switch_protocols(&upgrade, answered, accepted.cookies(), ctx, &mut output.answers);
        }
        self.set_route(index, route, ctx);
        match admitted {
            Ok(admitted) => {
                self.enter_open(admitted, route, ctx);
                self.pass_all(route, ctx);
                self.acknowledge(pending.first_message, None, ctx, output);
                true
            }
            Err(rules) => {
                if let Phase::Authenticating(authenticating) = &mut self.phase {
                    let pending = PendingAcceptance::new(rules, ctx);
                    authenticating.awaited = Awaited::Acceptance(Box::new(pending));
                    authenticating.switched = true;
                }
                false
            }
        }
    }

    /// From now on pings and pongs go on to the server and come from it, and messages may be as
    /// large as the route has it.
    pub(super) fn pass_all(&mut self, route: &Route, ctx: &Context<'_>) {
        if let Some(open) = self.open_mut() {
            open.passes_controls = true;
            open.backend_message_max = route.message_max.unwrap_or(ctx.settings.limits.message_max);
        }
    }

    /// The server has refused, or there is none that could be asked.
    pub fn server_refused(&mut self, refused: &Refused, ctx: &Context<'_>, output: &mut Output) {
        if !self.awaits_server() {
            return;
        }
        let hint = RejectHint { retry_after: refused.retry_after, message: &refused.reason };
        let details = CloseDetails { hint, ..CloseDetails::default() };
        self.refuse_with(refused.cause, &details, ctx, output);
    }

    /// Sends the 101 that a client who is refused has still to get, or answers it over HTTP where it
    /// is not to hear more. Whether it is explained over WebSocket.
    pub(super) fn switch_for_refusal(
        &mut self,
        cause: Cause,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> bool {
        let Phase::Authenticating(Authenticating { request, switched, .. }) = &mut self.phase
        else {
            return true;
        };
        if std::mem::replace(switched, true) {
            return true;
        }
        let request = Arc::clone(request);
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let parsed = http_upgrade::parse(&request.head, &mut fields, &head_limits(ctx.settings));
        let route = self.settings_of_route(ctx);
        match (parsed, route) {
            (Ok(Request::Upgrade(upgrade)), Some(route)) if explains(route, &upgrade) => {
                let subprotocol = refusal_subprotocol(&upgrade, route);
                switch_protocols(&upgrade, subprotocol, &[], ctx, &mut output.answers);
                true
            }
            _ => {
                self.refuse_http(HttpRefusal::for_cause(cause), ctx, output);
                false
            }
        }
    }

    /// What is awaited of a server; from here on it is not awaited any more.
    fn take_server(&mut self) -> Option<(Arc<PendingRequest>, Box<PendingServer>, bool)> {
        let Phase::Authenticating(Authenticating { request, awaited, switched }) = &mut self.phase
        else {
            return None;
        };
        match std::mem::replace(awaited, Awaited::Nothing) {
            Awaited::Server(pending) => Some((Arc::clone(request), pending, *switched)),
            other => {
                *awaited = other;
                None
            }
        }
    }
}
