//! The links of a worker follow the endpoints of its plan, and so do its WebSocket servers: which
//! link goes where, which are chosen, and which end.
//!
//! A removed endpoint takes no new session and gets a GOAWAY, and its clients are closed over
//! `deadlines.drain`; its slot is used again after that.

use std::sync::Arc;

use crate::base::random::Random;
use crate::base::slab::KeyedSlab;
use crate::base::time::Instant;
use crate::connection::upstream::link::{Failure, Identity, Link};
use crate::ring::Ring;
use crate::settings::{Balance, Settings};

use super::core::{Core, Environment, Parts};
use super::endpoint_plan::{Assignment, EndpointPlan, LinkTarget, Place, Standing};
use super::links::{LinkEntry, LinkTable};
use super::sweep::Duty;
use super::upstreams::Upstream;

/// The links of one backend.
pub(super) struct Group {
    links: Vec<u16>,
    /// Where round robin goes on.
    next: usize,
}

impl LinkEntry {
    /// Index of its backend in the settings; `None` once its endpoint was removed.
    pub(super) fn backend(&self) -> Option<u16> {
        self.standing.backend()
    }

    /// Whether it was there only for its sessions, and the last is over.
    pub(super) fn has_left(&self) -> bool {
        self.standing.is_ending() && self.link.is_ready() && self.link.has_no_session()
    }
}

impl LinkTable {
    fn assign(&self, settings: &Settings, plan: &EndpointPlan, now: Instant) -> Assignment {
        let links = self.entries.iter().enumerate();
        let used = links.filter(|(_, entry)| entry.backend().is_some());
        let used = used.map(|(link, entry)| (link as u16, &*entry.target));
        Assignment::new(used, settings, plan, |backend| backend.server.is_none(), now)
    }

    /// Whether there are slots for the endpoints that these settings add.
    pub(super) fn has_room(&self, settings: &Settings, plan: &EndpointPlan) -> bool {
        let assignment = self.assign(settings, plan, Instant::NEVER);
        assignment.fits(self.entries.len(), self.free.len())
    }

    /// Gives every endpoint its link. Returns the links of those that are not there any more, and
    /// how they stand from now on.
    pub(super) fn adopt(
        &mut self,
        env: &Environment,
        random: &mut Random,
        upstreams: &mut KeyedSlab<Upstream>,
    ) -> Vec<(u16, Standing)> {
        let Assignment { groups, left } =
            self.assign(&env.settings, &env.endpoints, env.now.instant);
        let mut adopted = Vec::with_capacity(groups.len());
        for (index, places) in groups.into_iter().enumerate() {
            let standing = Standing::Listed { backend: index as u16 };
            let mut links = Vec::with_capacity(places.len());
            for Place { target, slot } in places {
                let link = slot.unwrap_or_else(|| self.claim(target, env, upstreams));
                self.entries[usize::from(link)].standing = standing;
                links.push(link);
            }
            // Workers begin round robin at different endpoints.
            let next = random.below(links.len().max(1) as u64) as usize;
            adopted.push(Group { links, next });
        }
        self.groups = adopted;
        // New links are looked at, and connected.
        self.deadlines_changed();
        left
    }

    /// A slot for an endpoint that has none.
    fn claim(
        &mut self,
        target: LinkTarget,
        env: &Environment,
        upstreams: &mut KeyedSlab<Upstream>,
    ) -> u16 {
        let Environment { counters, settings, now, .. } = env;
        let row = counters.endpoints.row(&[&target.backend, &target.configured.to_string()]);
        let target = Arc::new(target);
        let link = match self.free.pop() {
            Some(link) => {
                let entry = &mut self.entries[usize::from(link)];
                entry.link.renew(now.instant);
                (entry.target, entry.row) = (target, row);
                link
            }
            None => {
                let link = self.entries.len() as u16;
                let Identity { instance, epoch, worker, .. } = self.identity;
                let identity = Identity { instance, epoch, worker, link };
                let bits = self.generation_bits;
                let machine = Link::new(identity, bits, &settings.limits, now.instant);
                let key = upstreams.insert(Upstream::link(link));
                self.entries.push(LinkEntry::new(machine, key, target, row));
                link
            }
        };
        self.claimed.push(link);
        link
    }

    /// Tells the ring where new links go, before it is asked to connect them.
    pub(super) fn give_addresses(&mut self, ring: &mut impl Ring) {
        for link in self.claimed.drain(..) {
            ring.set_endpoint(link, self.entries[usize::from(link)].target.address.clone());
        }
    }

    /// Index of the backend that a link goes to; `None` once its endpoint was removed.
    pub(super) fn backend(&self, link: u16) -> Option<u16> {
        self.entries[usize::from(link)].backend()
    }

    /// The name of the backend that a link goes to, whether its endpoint was removed or not.
    pub(super) fn backend_name(&self, link: u16) -> &str {
        &self.entries[usize::from(link)].target.backend
    }

    /// What the settings say of a link.
    pub(super) fn standing(&self, link: u16) -> Standing {
        self.entries[usize::from(link)].standing
    }

    /// Chooses a link for a new session of `backend`.
    pub(super) fn choose(&mut self, backend: u16, balance: Balance) -> Option<u16> {
        self.choose_among(backend, balance, Link::takes_sessions)
    }

    /// Chooses a link for a question to `backend`.
    pub(super) fn choose_to_ask(&mut self, backend: u16, balance: Balance) -> Option<u16> {
        self.choose_among(backend, balance, Link::takes_questions)
    }

    fn choose_among(
        &mut self,
        backend: u16,
        balance: Balance,
        takes: impl Fn(&Link) -> bool,
    ) -> Option<u16> {
        let group = &mut self.groups[usize::from(backend)];
        let count = group.links.len();
        let link = |place: usize| &self.entries[usize::from(group.links[place])].link;
        let order = (0..count).map(|step| (group.next + step) % count);
        let able = order.filter(|place| takes(link(*place)));
        let chosen = match balance {
            Balance::RoundRobin => able.into_iter().next(),
            Balance::LeastSessions => able.min_by_key(|place| link(*place).open_sessions()),
        }?;
        group.next = (chosen + 1) % count;
        Some(group.links[chosen])
    }
}

impl Core {
    /// New settings may have other endpoints, and names may stand for others.
    pub(super) fn take_endpoints(&mut self) {
        let Parts { links, upstreams, env, random, .. } = &mut self.parts;
        for (link, standing) in links.adopt(env, random, upstreams) {
            self.retire_link(link, standing);
        }
        let Parts { servers, env, random, sweep, scratch, .. } = &mut self.parts;
        if servers.adopt(env, random) {
            sweep.begin(Duty::LostLinks);
        }
        // Those that came may be the first.
        random.fill(&mut scratch.output.nonce.0);
    }

    /// A link takes no new session: its sessions end by themselves, or are closed where a reload
    /// removed its endpoint.
    fn retire_link(&mut self, link: u16, standing: Standing) {
        let Parts { links, agenda, sweep, .. } = &mut self.parts;
        let entry = links.entry(link, agenda);
        entry.standing = standing;
        if !entry.link.is_ready() || entry.link.has_no_session() {
            self.fail_link(link, &Failure::Drained);
        } else if matches!(standing, Standing::Leaving { .. }) {
            entry.link.go_away("a reload removed this endpoint");
            sweep.begin(Duty::LostLinks);
        }
    }

    /// There are no slots for what comes: what is there only for its sessions leaves.
    pub(super) fn clear_retired(&mut self) {
        let Parts { links, servers, env, sweep, .. } = &mut self.parts;
        let leaving = Standing::Leaving { since: env.now.instant };
        if servers.clear_retired(leaving) {
            sweep.begin(Duty::LostLinks);
        }
        let retired = links.entries.iter().enumerate();
        let retired = retired.filter(|(_, it)| matches!(it.standing, Standing::Retired { .. }));
        let retired: Vec<u16> = retired.map(|(link, _)| link as u16).collect();
        retired.into_iter().for_each(|link| self.retire_link(link, leaving));
    }
}
