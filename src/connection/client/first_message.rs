//! The first message of a client whose token comes in it: gathered, taken apart where it is a
//! dialect's own handshake, and judged.

use std::sync::Arc;

use crate::connection::authenticate::{self, Decision};
use crate::connection::context::{Context, Output};
use crate::protocol::carrier::Carrier;
use crate::protocol::cause::Cause;
use crate::protocol::dialect::Dialect;
use crate::protocol::http_upgrade::{self, FIELDS, Request};
use crate::protocol::websocket::{self, DataKind, OpCode};
use crate::settings::MessageTypes;

use super::auth_decision::Credentials;
use super::closing::CloseDetails;
use super::open::{count_refusal, head_limits, still_valid, unless_revoked};
use super::phase::{Authenticating, Awaited, FirstMessageInfo, PendingRequest, Phase};
use super::state::{Client, write_frame};
use super::step::Step;

/// A mask that leaves bytes as they are.
const NO_MASK: [u8; 4] = [0; 4];

impl Client {
    /// Gathers the first message, which carries the token, and decides on it once it is whole.
    pub(super) fn take_first_message(
        &mut self,
        step: Step,
        input: &[u8],
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Step {
        let Step::Data { range, kind, last, .. } = step else { return step };
        let Phase::Authenticating(Authenticating { request, awaited, .. }) = &mut self.phase else {
            unreachable!("data comes out while the phase goes on")
        };
        let Awaited::FirstMessage(message) = awaited else {
            unreachable!("input waits while a decision is awaited")
        };
        message.extend_from_slice(&input[range]);
        if !last {
            return Step::Handled;
        }
        let (message, request) = (std::mem::take(message), Arc::clone(request));
        if kind == DataKind::Text && self.comes_before_first(&message, ctx, output) {
            return Step::Handled;
        }
        if let Phase::Authenticating(authenticating) = &mut self.phase {
            authenticating.awaited = Awaited::Nothing;
        }
        self.decide_first_message(message, kind, &request, ctx, output)
    }

    /// Takes what may precede the first message: answers a check of liveness, and ignores the answer
    /// to one. The deadline goes on, and each costs a control frame, so that no client can wait so
    /// for longer, or cheaper, than in silence.
    fn comes_before_first(
        &mut self,
        message: &[u8],
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> bool {
        output.explanation.clear();
        let dialect = self.dialect().unwrap_or(Dialect::Plain);
        if self.messages == MessageTypes::Binary
            || !dialect.comes_before_first(message, &mut output.explanation)
        {
            return false;
        }
        if !self.charge_controls(1, ctx) {
            self.close(Cause::RateLimited, ctx, output);
        } else if !output.explanation.is_empty() {
            write_frame(OpCode::Text, &output.explanation, &mut output.answers);
        }
        true
    }

    fn decide_first_message(
        &mut self,
        mut message: Vec<u8>,
        kind: DataKind,
        pending: &PendingRequest,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Step {
        let passing = self.passing_whole(&message, kind, ctx);
        let taken = self.split_first_message(&mut message, ctx, output);
        let mut info = taken.unwrap_or_default();
        if let Some(whole) = passing {
            // The application answers it.
            output.rest = whole;
            info.wants_ack = false;
        }
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let parsed = http_upgrade::parse(&pending.head, &mut fields, &head_limits(ctx.settings));
        let Ok(Request::Upgrade(request)) = parsed else {
            self.refuse_in_dialect(Cause::ForbiddenRoute, ctx, output);
            return Step::Handled;
        };
        let index = match still_valid(self, pending, &request, ctx.settings) {
            Ok(index) => index,
            Err(cause) => {
                self.refuse_in_dialect(cause, ctx, output);
                return Step::Handled;
            }
        };
        let route = &ctx.settings.routes[usize::from(index)];
        self.set_route(index, route, ctx);
        let (unix, scratch) = (ctx.now.unix, &mut output.tokens);
        let decision = match taken {
            Err(cause) => Decision::Refused(cause.into()),
            Ok(_) => authenticate::by_first_message(ctx.settings, route, &message, unix, scratch),
        };
        let refusal = match unless_revoked(decision, route, ctx) {
            Decision::Accepted(identity) if let Some(server) = ctx.settings.server_of(route) => {
                let asked_for = &mut output.request;
                let admitted = self.admit(&identity, &request, route, ctx, asked_for);
                return self.dial(Some(admitted), info, &request, (route, server), ctx, output);
            }
            Decision::Accepted(identity) => {
                let expires = identity.expires();
                self.open(&identity, &request, route, ctx, &mut output.request);
                self.acknowledge(info, expires, ctx, output);
                return Step::Authenticated { backend: route.backend };
            }
            Decision::Ask(auth) => {
                let credentials = Credentials::InMessage(&message, info);
                return self.ask(auth, pending, &credentials, ctx, output);
            }
            Decision::AwaitFirstMessage | Decision::AskServer => Cause::TokenMissing.into(),
            Decision::Refused(refusal) => refusal,
        };
        count_refusal(ctx, &mut output.tokens);
        let details = CloseDetails { command: info.command, ..CloseDetails::of(refusal, ctx) };
        self.refuse_with(refusal.cause, &details, ctx, output);
        Step::Handled
    }

    /// The first message as a frame of the client's, where the application behind, unchanged, is to
    /// get it as it gets all credentials.
    fn passing_whole(&self, message: &[u8], kind: DataKind, ctx: &Context<'_>) -> Option<Vec<u8>> {
        let route = self.settings_of_route(ctx)?;
        ctx.settings.server_of(route).filter(|server| server.passes_credentials)?;
        let header =
            websocket::write_header(true, kind.opcode(true), message.len() as u64, Some(NO_MASK));
        Some([header.as_slice(), message].concat())
    }

    /// Takes a first message apart as the dialect has it: leaves in `message` what holds the
    /// token, and in `output.rest`, as a frame of the client's, what is for the backend. Where
    /// the token is the whole message, there is no handshake in it.
    ///
    /// # Errors
    /// What the client is refused for.
    pub(super) fn split_first_message(
        &self,
        message: &mut Vec<u8>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Result<FirstMessageInfo, Cause> {
        output.rest.clear();
        let json = |carrier: &Carrier| matches!(carrier, Carrier::FirstMessageJson(_));
        let dialect = self.dialect().unwrap_or(Dialect::Plain);
        let route = self.settings_of_route(ctx);
        let mut auths = route.into_iter().flat_map(|route| ctx.settings.auths_of(route));
        let wanted = matches!(dialect, Dialect::Graphql | Dialect::Centrifuge)
            && auths.any(|auth| auth.carriers.iter().any(json));
        if !wanted {
            return Ok(FirstMessageInfo::default());
        }
        let first = dialect.first_message(message)?;
        if !first.rest.is_empty() {
            let length = first.rest.len() as u64;
            let header = websocket::write_header(true, OpCode::Text, length, Some(NO_MASK));
            output.rest.extend_from_slice(header.as_slice());
            output.rest.extend_from_slice(first.rest);
        }
        let (command, length) = (first.command, first.token_in.len());
        message.truncate(length);
        Ok(FirstMessageInfo { wants_ack: wanted, command })
    }
}
