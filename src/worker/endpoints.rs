//! Which endpoints links and connections to WebSocket servers go to: those of the latest settings,
//! and those that a reload removed and whose sessions are not over.
//!
//! A reload knows a backend by its name and an endpoint by its address, so one that has only
//! moved in the file keeps its link. A removed one takes no new session and gets a GOAWAY, and its
//! clients are closed over `deadlines.drain`; its slot is used again after that.

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::random::Random;
use crate::base::secret::Secret;
use crate::base::slab::KeyedSlab;
use crate::base::time::Instant;
use crate::connection::upstream::link::{Failure, Identity, Link};
use crate::counters::Counters;
use crate::ring::{EndpointAddress, Ring};
use crate::settings::{Backend, Balance, Settings};

use super::core::{Core, Parts};
use super::links::{LinkEntry, LinkTable};
use super::sweep::Duty;
use super::upstreams::Upstream;

/// Links of one worker, and likewise its WebSocket servers, with those that reloads removed: twice
/// the endpoints that settings may have, so that a reload may replace all of them.
const SLOTS_MAX: usize = 2048;

/// Where a link goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinkTarget {
    /// The backend's name.
    pub backend: String,
    /// The endpoint's address.
    pub endpoint: EndpointAddress,
}

/// What the settings say of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It belongs to the backend of this index.
    Listed { backend: u16 },
    /// A reload removed it then.
    Leaving { since: Instant },
    /// The slot waits for another endpoint.
    Free,
}

impl Standing {
    /// Index of the backend in the settings.
    pub(super) fn backend(self) -> Option<u16> {
        match self {
            Standing::Listed { backend } => Some(backend),
            Standing::Leaving { .. } | Standing::Free => None,
        }
    }

    pub(super) fn is_leaving(self) -> bool {
        matches!(self, Standing::Leaving { .. })
    }

    /// The key for a handshake. One that leaves makes none.
    pub(super) fn secret(self, settings: &Settings) -> Option<&Secret> {
        settings.backends[usize::from(self.backend()?)].secret.as_ref()
    }
}

/// The links of one backend.
pub(super) struct Group {
    links: Vec<u16>,
    /// Where round robin goes on.
    next: usize,
}

/// What becomes of the slots of one kind of backend when settings come.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    /// For each endpoint of each backend its slot, if it has one; backends of another kind have
    /// none.
    pub(super) groups: Vec<Vec<Option<u16>>>,
    /// Slots whose endpoints are not there any more.
    pub(super) left: Vec<u16>,
}

impl Assignment {
    /// Compares the slots of the settings before with the backends `of_kind` of those that come.
    pub(super) fn new<'a>(
        listed: impl Iterator<Item = (u16, &'a LinkTarget)>,
        backends: &'a [Backend],
        of_kind: impl Fn(&Backend) -> bool,
    ) -> Self {
        let mut known: HashMap<(&str, &EndpointAddress), u16> =
            listed.map(|(slot, target)| ((&*target.backend, &target.endpoint), slot)).collect();
        let mut group = |backend: &'a Backend| {
            let slot = |endpoint| known.remove(&(&*backend.name, endpoint));
            let endpoints = if of_kind(backend) { &*backend.endpoints } else { &[] };
            endpoints.iter().map(slot).collect()
        };
        let groups = backends.iter().map(&mut group).collect();
        let mut left: Vec<u16> = known.into_values().collect();
        left.sort_unstable();
        Assignment { groups, left }
    }

    /// Whether a table of `used` slots, of which `free` are, can take them.
    pub(super) fn fits(&self, used: usize, free: usize) -> bool {
        let added = self.groups.iter().flatten().filter(|slot| slot.is_none()).count();
        added <= free + SLOTS_MAX - used
    }
}

impl LinkEntry {
    /// Index of its backend in the settings; `None` once its endpoint was removed.
    pub(super) fn backend(&self) -> Option<u16> {
        self.standing.backend()
    }

    /// Whether its endpoint was removed, and its last session is over.
    pub(super) fn has_left(&self) -> bool {
        self.standing.is_leaving() && self.link.is_ready() && self.link.has_no_session()
    }
}

impl LinkTable {
    fn assign(&self, settings: &Settings) -> Assignment {
        let links = self.entries.iter().enumerate();
        let listed = links.filter(|(_, entry)| entry.backend().is_some());
        let listed = listed.map(|(link, entry)| (link as u16, &*entry.target));
        Assignment::new(listed, &settings.backends, |backend| backend.server.is_none())
    }

    /// Whether there are slots for the endpoints that these settings add.
    pub(super) fn has_room(&self, settings: &Settings) -> bool {
        self.assign(settings).fits(self.entries.len(), self.free.len())
    }

    /// Gives every endpoint of these settings its link. Returns the links of removed ones.
    pub(super) fn adopt(
        &mut self,
        settings: &Settings,
        counters: &Counters,
        now: Instant,
        random: &mut Random,
        upstreams: &mut KeyedSlab<Upstream>,
    ) -> Vec<u16> {
        let Assignment { groups, left } = self.assign(settings);
        let mut adopted = Vec::with_capacity(groups.len());
        for (index, (places, backend)) in groups.iter().zip(&settings.backends).enumerate() {
            let mut links = Vec::with_capacity(places.len());
            for (place, endpoint) in places.iter().zip(&backend.endpoints) {
                let standing = Standing::Listed { backend: index as u16 };
                links.push(match *place {
                    Some(link) => {
                        self.entries[usize::from(link)].standing = standing;
                        link
                    }
                    None => {
                        let (backend, endpoint) = (backend.name.clone(), endpoint.clone());
                        let target = LinkTarget { backend, endpoint };
                        self.claim(target, standing, settings, counters, now, upstreams)
                    }
                });
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
        standing: Standing,
        settings: &Settings,
        counters: &Counters,
        now: Instant,
        upstreams: &mut KeyedSlab<Upstream>,
    ) -> u16 {
        let row = counters.endpoints.row(&[&target.backend, &target.endpoint.to_string()]);
        let target = Arc::new(target);
        let link = match self.free.pop() {
            Some(link) => {
                let entry = &mut self.entries[usize::from(link)];
                entry.link.renew(now);
                (entry.target, entry.standing, entry.row) = (target, standing, row);
                link
            }
            None => {
                let link = self.entries.len() as u16;
                let Identity { instance, epoch, worker, .. } = self.identity;
                let identity = Identity { instance, epoch, worker, link };
                let machine = Link::new(identity, self.generation_bits, &settings.limits, now);
                let key = upstreams.insert(Upstream::link(link));
                self.entries.push(LinkEntry::new(machine, key, target, standing, row));
                link
            }
        };
        self.claimed.push(link);
        link
    }

    /// Tells the ring where new links go, before it is asked to connect them.
    pub(super) fn give_addresses(&mut self, ring: &mut impl Ring) {
        for link in self.claimed.drain(..) {
            ring.set_endpoint(link, self.entries[usize::from(link)].target.endpoint.clone());
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
    /// New settings may have other endpoints.
    pub(super) fn take_endpoints(&mut self) {
        let Parts { links, upstreams, env, random, .. } = &mut self.parts;
        let now = env.now.instant;
        for link in links.adopt(&env.settings, &env.counters, now, random, upstreams) {
            let Parts { links, agenda, sweep, .. } = &mut self.parts;
            let entry = links.entry(link, agenda);
            entry.standing = Standing::Leaving { since: now };
            if entry.link.is_ready() && !entry.link.has_no_session() {
                entry.link.go_away("a reload removed this endpoint");
                sweep.begin(Duty::LostLinks);
            } else {
                self.fail_link(link, &Failure::Drained);
            }
        }
        let Parts { servers, env, random, sweep, scratch, .. } = &mut self.parts;
        if servers.adopt(&env.settings, now, random) {
            sweep.begin(Duty::LostLinks);
        }
        // Those that came may be the first.
        random.fill(&mut scratch.output.nonce.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::RevokeScope;

    fn tcp(port: u16) -> EndpointAddress {
        EndpointAddress::Tcp(([127, 0, 0, 1], port).into())
    }

    fn backend(name: &str, ports: &[u16]) -> Backend {
        Backend {
            name: name.into(),
            endpoints: ports.iter().map(|port| tcp(*port)).collect(),
            balance: Balance::LeastSessions,
            secret: None,
            revoke: RevokeScope::None,
            server: None,
        }
    }

    #[test]
    fn links_follow_their_backend_by_name_and_their_endpoint_by_address() {
        let target = |name: &str, port| LinkTarget { backend: name.into(), endpoint: tcp(port) };
        let before = [target("a", 1), target("a", 2), target("b", 1)];
        type Case<'a> = (&'a str, &'a [(&'a str, &'a [u16])], &'a [&'a [Option<u16>]], &'a [u16]);
        let cases: [Case<'_>; 8] = [
            ("as before", &[("a", &[1, 2]), ("b", &[1])], &[&[Some(0), Some(1)], &[Some(2)]], &[]),
            ("reordered", &[("b", &[1]), ("a", &[2, 1])], &[&[Some(2)], &[Some(1), Some(0)]], &[]),
            (
                "added",
                &[("a", &[3, 1, 2]), ("b", &[1])],
                &[&[None, Some(0), Some(1)], &[Some(2)]],
                &[],
            ),
            ("removed", &[("a", &[2]), ("b", &[1])], &[&[Some(1)], &[Some(2)]], &[0]),
            (
                "moved to another port",
                &[("a", &[1, 9]), ("b", &[1])],
                &[&[Some(0), None], &[Some(2)]],
                &[1],
            ),
            ("a backend removed", &[("b", &[1])], &[&[Some(2)]], &[0, 1]),
            (
                "an endpoint of another backend is another endpoint",
                &[("a", &[1]), ("b", &[1, 2])],
                &[&[Some(0)], &[Some(2), None]],
                &[1],
            ),
            ("all replaced", &[("c", &[1, 2])], &[&[None, None]], &[0, 1, 2]),
        ];
        for (what, after, groups, left) in cases {
            let listed = before.iter().enumerate().map(|(link, t)| (link as u16, t));
            let backends: Vec<_> = after.iter().map(|(name, ports)| backend(name, ports)).collect();
            let assignment = Assignment::new(listed, &backends, |_| true);
            let groups = groups.iter().map(|group| group.to_vec()).collect();
            assert_eq!(assignment, Assignment { groups, left: left.to_vec() }, "{what}");
        }
    }
}
