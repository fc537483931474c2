//! While somebody else decides: the question, the wait, and the decision.
//!
//! The 101 has gone out, and the client waits in [`Stage::Authenticating`](super::stage::Stage). What it sends
//! meanwhile waits, too: the worker reads no more of it until the decision. Only
//! [`Client::accept`] opens it, with the identity that the decision named.

use std::sync::Arc;
use std::time::Duration;

use crate::base::time::Instant;
use crate::counters::Metric;
use crate::protocol::carrier;
use crate::protocol::cause::Cause;
use crate::protocol::http_upgrade::{self, FIELDS, Request, UpgradeRequest};
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::link::{Auth as AuthFrame, Credential, CredentialCarrier, Open, SessionId};
use crate::settings::{Auth, AuthKind, HttpAuth, Route};

use super::authenticate::{each_credential, message_credential};
use super::client::{Client, RejectHint, Step};
use super::closing::CloseDetails;
use super::upgrade::{PendingRequest, head_limits, still_valid, with_request};
use super::{Context, Output};

/// How much later than the HTTP service the client's own machine gives a question up: the
/// service keeps the time itself, so that it learns of slow endpoints, and says so first.
const HTTP_GRACE: Duration = Duration::from_millis(500);

/// Who is to be asked about a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The backend with this index, by the AUTH frame in [`Output::open`].
    Backend(u16),
    /// An HTTP endpoint, by the [`Output::http_request`].
    Http,
}

/// A question to an HTTP endpoint. It has no `Debug`: its fields carry tokens.
pub struct HttpAuthRequest {
    /// Who is asked, and how.
    pub endpoint: Arc<HttpAuth>,
    /// Names and values of the request's fields; the names are lower case.
    pub fields: Vec<(String, Vec<u8>)>,
    /// After this the answer is of no use.
    pub timeout: Duration,
}

/// A question that is out.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    since: Instant,
    /// When it has taken too long.
    pub(super) until: Instant,
}

impl Client {
    /// Whether a question about this client is out.
    pub fn awaits_decision(&self) -> bool {
        self.asked().is_some()
    }

    pub(super) fn asked(&self) -> Option<Asked> {
        self.pending().and_then(|pending| pending.asked)
    }

    /// Puts the question of the `[[auth]]` with this index; its credentials are in the request,
    /// or in the message.
    pub(super) fn ask(
        &mut self,
        index: u16,
        mut pending: Box<PendingRequest>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Step {
        let auth = &ctx.settings.auths[usize::from(index)];
        let (timeout, is_backend) = match &auth.kind {
            AuthKind::Backend(timeout) => (*timeout, true),
            AuthKind::Http(endpoint) => (endpoint.timeout + HTTP_GRACE, false),
            AuthKind::Token(_) => unreachable!("the gateway judges tokens itself"),
        };
        let composed = with_request(&pending.head, ctx, |request, route| {
            let message = Some(pending.message.as_slice()).filter(|message| !message.is_empty());
            if is_backend {
                self.compose_auth(auth, request, route, message, ctx, output)?;
                return Some(Question::Backend(route.backend));
            }
            output.http_request =
                Some(self.compose_inquiry(auth, request, route, message, ctx, output)?);
            Some(Question::Http)
        });
        let since = ctx.now.instant;
        match composed {
            Some(Some(question)) => {
                pending.message = Vec::new();
                pending.asked = Some(Asked { since, until: since + timeout });
                self.set_pending(pending);
                Step::Ask(question)
            }
            _ => {
                ctx.counters.increment(Metric::TokensRefused);
                self.refuse_in_dialect(Cause::TokenMalformed, ctx, output);
                Step::Handled
            }
        }
    }

    /// The decision: this is who the client is. What it asked for is looked at anew, because the
    /// settings may have changed; the caller compares the backend of
    /// [`Step::Authenticated`] with the one that decided, if one did.
    pub fn accept(
        &mut self,
        identity: &VerifiedIdentity<'_>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Step {
        let Some((pending, asked)) = self.take_asked() else { return Step::Handled };
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let parsed = http_upgrade::parse(&pending.head, &mut fields, &head_limits(ctx.settings));
        let checked = match parsed {
            // Accepted, but over already: it cannot be both.
            _ if identity.expires().is_some_and(|end| end <= ctx.now.unix) => {
                Err(Cause::BackendUnavailable)
            }
            _ if ctx.revoked.meets(identity, ctx.now.unix) => {
                ctx.counters.increment(Metric::RevokedRefused);
                Err(Cause::TokenRevoked)
            }
            Ok(Request::Upgrade(request)) => {
                still_valid(&pending, &request, ctx.settings).map(|index| (index, request))
            }
            _ => Err(Cause::ForbiddenRoute),
        };
        match checked {
            Ok((index, request)) => {
                asked.count(Metric::VerdictsAccepted, ctx);
                let route = &ctx.settings.routes[usize::from(index)];
                self.set_route(index, route);
                self.open(identity, &request, route, ctx, (&mut output.open, &mut output.path));
                self.greet(pending.first_message, identity.expires(), ctx, output);
                Step::Authenticated { backend: route.backend }
            }
            Err(cause) => {
                let unavailable = cause == Cause::BackendUnavailable;
                let outcome = if unavailable {
                    Metric::VerdictsUnavailable
                } else {
                    Metric::VerdictsAccepted
                };
                asked.count(outcome, ctx);
                self.refuse_in_dialect(cause, ctx, output);
                Step::Handled
            }
        }
    }

    /// The decision: no, or none at all ([`Cause::BackendUnavailable`]).
    pub fn reject(
        &mut self,
        cause: Cause,
        advice: &RejectHint<'_>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        let Some((pending, asked)) = self.take_asked() else { return };
        if cause == Cause::BackendUnavailable {
            asked.count(Metric::VerdictsUnavailable, ctx);
        } else {
            asked.count(Metric::VerdictsRefused, ctx);
            ctx.counters.increment(Metric::TokensRefused);
        }
        let told = CloseDetails { command: pending.first_message.command, advice: *advice };
        self.refuse_told(cause, &told, ctx, output);
    }

    /// The question could not be put.
    pub fn unasked(&mut self, cause: Cause, ctx: &Context<'_>, output: &mut Output) {
        if self.take_asked().is_some() {
            ctx.counters.increment(Metric::VerdictsUnasked);
            self.refuse_in_dialect(cause, ctx, output);
        }
    }

    fn take_asked(&mut self) -> Option<(Box<PendingRequest>, Asked)> {
        let asked = self.asked()?;
        Some((self.take_pending()?, asked))
    }

    /// The client leaves the stage with its question still out: counts what became of it.
    pub(super) fn question_over(&self, ctx: &Context<'_>) {
        let Some(asked) = self.asked() else { return };
        let outcome = match self.end().map(|end| end.cause) {
            Some(Cause::BackendUnavailable) => Metric::VerdictsUnavailable,
            Some(Cause::AuthenticationTimedOut) => Metric::VerdictsTimedOut,
            _ => Metric::VerdictsWithdrawn,
        };
        asked.count(outcome, ctx);
    }

    /// Leaves an AUTH frame in `output.open`; `None` when a credential cannot be told.
    fn compose_auth(
        &self,
        auth: &Auth,
        request: &UpgradeRequest<'_, '_>,
        route: &Route,
        message: Option<&[u8]>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Option<()> {
        let Output { open: frame, path, tokens, .. } = output;
        frame.clear();
        let fits = self.with_open(request, route, ctx, path, |open: &Open<'_>| {
            AuthFrame::encode(open, SessionId::new(0, 0), frame)
        });
        assert!(fits, "a request head over the size of a frame");
        let mut fits = true;
        let append = |credential: Credential<'_>| fits &= credential.append_to(frame);
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
    fn compose_inquiry(
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
        fields.put("x-forwarded-proto", if self.is_tls() { b"https" } else { b"http" });
        if let Some(peer) = self.peer() {
            fields.put("x-forwarded-for", peer.ip().to_string().as_bytes());
        }
        for (name, field) in [("x-forwarded-host", "host"), ("origin", "origin")] {
            if let Some(value) = request.header(field) {
                fields.put(name, value);
            }
        }
        for name in &endpoint.headers {
            for value in request.values(name) {
                fields.put(name, value);
            }
        }
        let (endpoint, timeout) = (Arc::clone(endpoint), endpoint.timeout);
        Some(HttpAuthRequest { endpoint, fields: fields.finish(), timeout })
    }
}

impl Asked {
    fn count(self, outcome: Metric, ctx: &Context<'_>) {
        const WITHIN: [(Metric, u64); 5] = [
            (Metric::VerdictWithin5Ms, 5),
            (Metric::VerdictWithin25Ms, 25),
            (Metric::VerdictWithin100Ms, 100),
            (Metric::VerdictWithin500Ms, 500),
            (Metric::VerdictWithin2S, 2000),
        ];
        ctx.counters.increment(outcome);
        let took = ctx.now.instant.since(self.since);
        for (metric, millis) in WITHIN {
            if took <= Duration::from_millis(millis) {
                ctx.counters.increment(metric);
            }
        }
        ctx.counters.increment(Metric::VerdictWithinAny);
        ctx.counters.add(Metric::VerdictMicros, took.as_micros() as u64);
    }
}

/// The fields of a request to an HTTP endpoint, as they gather.
#[derive(Default)]
struct Fields {
    fields: Vec<(String, Vec<u8>)>,
    cookies: Vec<u8>,
    authorized: bool,
    failed: bool,
}

impl Fields {
    fn put(&mut self, name: &str, value: &[u8]) {
        self.fields.push((name.to_owned(), value.to_vec()));
    }

    /// A credential where an endpoint looks for it: cookies and headers as they came, whatever
    /// else as `Authorization: Bearer`, of which there is one, the first.
    fn credential(&mut self, credential: &Credential<'_>) {
        let Credential { carrier, name, token } = *credential;
        let printable = |b: &u8| *b >= b' ' && *b != 0x7f;
        match carrier {
            CredentialCarrier::Cookie => {
                let separator: &[u8] = if self.cookies.is_empty() { b"" } else { b"; " };
                let parts = [separator, name.as_bytes(), b"=", token];
                parts.iter().for_each(|part| self.cookies.extend_from_slice(part));
                self.failed |= !token.iter().all(printable);
            }
            CredentialCarrier::Header => {
                self.put(name, token);
                self.failed |= !token.iter().all(printable);
            }
            _ if self.authorized => {}
            _ => {
                self.authorized = true;
                self.put("authorization", &[b"Bearer ", token].concat());
                // RFC 6750 §2.1: without spaces and commas, which would end it.
                self.failed |= token.iter().any(|b| !b.is_ascii_graphic() || *b == b',');
            }
        }
    }

    fn finish(mut self) -> Vec<(String, Vec<u8>)> {
        if !self.cookies.is_empty() {
            self.fields.push(("cookie".to_owned(), self.cookies));
        }
        self.fields
    }
}

#[cfg(test)]
#[path = "auth_request_tests.rs"]
mod tests;
