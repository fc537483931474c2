//! Revocations in a worker: what the control thread says must not be is looked for by the sweep;
//! what a backend revokes goes to the control thread.

use std::sync::Arc;
use std::time::Duration;

use crate::base::time::Instant;
use crate::connection::upstream::link::Failure;
use crate::counters::Metric;
use crate::protocol::revocation::{Revocation, Revoked, ScopedRevocation};

use crate::settings::RevokeScope;

use super::clients::Connection;
use super::core::{Control, Core, Parts};
use super::mailbox::Report;
use super::sessions::Session;
use super::sweep::Duty;

/// Revocations of backends that may wait for the control thread. A backend that goes on loses
/// its link, so that it knows.
const WAITING_MAX: usize = 4096;
/// How soon the control thread is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(10);

impl Parts {
    pub(super) fn take_revoked(&mut self, revoked: Arc<Revoked>) {
        self.env.revoked = revoked;
        self.sweep.begin(Duty::Revocations);
    }

    /// Whether an open client must be so no longer.
    pub(super) fn is_revoked(&self, connection: &Connection) -> bool {
        let (Connection { client, session, .. }, env) = (connection, &self.env);
        if !client.is_open() {
            return false;
        }
        // The session's backend is the client's, whatever a reload made of its route. One whose
        // link is lost has its route's, until it is closed.
        let backend = match session {
            Some(Session::Link { link, .. }) => Some(self.links.backend(*link)),
            Some(Session::WebSocket(key)) => Some(self.backend_of_websocket(*key)),
            None => {
                let route = client.route(&env.routes);
                route.map(|route| env.settings.routes[usize::from(route)].backend)
            }
        };
        let name = backend.map_or("", |backend| &env.settings.backends[usize::from(backend)].name);
        env.revoked.holds(client.mark(), name, env.now.unix)
    }

    /// Hands the control thread as many as it takes.
    pub(super) fn report_revocations(&mut self) {
        let Control { mailbox, revocations_waiting, .. } = &mut self.control;
        while let Some(revocation) = revocations_waiting.pop_front() {
            match mailbox.try_report(Report::Revoke(revocation)) {
                Ok(()) => {}
                Err(Report::Revoke(revocation)) => {
                    return revocations_waiting.push_front(revocation);
                }
                Err(_) => unreachable!("what comes back is what was sent"),
            }
        }
    }

    /// When there is more to do here.
    pub(super) fn next_revocation_work(&self) -> Instant {
        if self.control.revocations_waiting.is_empty() {
            Instant::NEVER
        } else {
            self.env.now.instant + RETRY_EVERY
        }
    }
}

impl Core {
    /// A backend revoked something. All its workers must know, and the file, so it goes to the
    /// control thread; none is ever lost on the way.
    /// One whose block does not allow it, or whose link has proved no key, revokes nothing.
    pub(super) fn revoke(&mut self, link: u16, revocation: Revocation) {
        let Parts { env, links, control, .. } = &mut self.parts;
        let backend = &env.settings.backends[usize::from(links.backend(link))];
        let scope = match backend.revoke {
            RevokeScope::OwnRoutes => Some(backend.name.as_str().into()),
            RevokeScope::All => None,
            RevokeScope::None => return env.counters.increment(Metric::RevocationsIgnored),
        };
        if !links.proved_key(link) {
            return env.counters.increment(Metric::RevocationsIgnored);
        }
        if control.revocations_waiting.len() >= WAITING_MAX {
            return self.fail_link(link, &Failure::TooManyRevocations);
        }
        control.revocations_waiting.push_back(ScopedRevocation { revocation, backend: scope });
        self.parts.report_revocations();
    }
}
