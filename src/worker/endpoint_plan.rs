//! Which endpoints a worker has, and what becomes of the slots of those that it had: by the
//! settings, and by what their names stand for.
//!
//! A reload knows a backend by its name and an endpoint by the file's words for it, so one that has
//! only moved in the file keeps its slot. An address that is no longer in the answer for its name
//! gets no new sessions and keeps its own: only a reload closes clients.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use crate::base::secret::Secret;
use crate::base::time::Instant;
use crate::ring::EndpointAddress;
use crate::settings::endpoint::{Endpoint, HostPort};
use crate::settings::{Backend, Settings};

/// Endpoints of one kind of backend that a worker has, addresses of names included; the settings
/// may list as many.
const ENDPOINTS_MAX: usize = 1024;
/// Links of one worker, and likewise its WebSocket servers, with those that are leaving: a reload
/// may replace all of them.
const SLOTS_MAX: usize = 2 * ENDPOINTS_MAX;

/// What the names of endpoints stand for. Names that have no answer yet have no endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointPlan {
    /// The addresses of each name, in order.
    pub addresses: BTreeMap<HostPort, Vec<SocketAddr>>,
}

/// Where a link goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinkTarget {
    /// The backend's name.
    pub backend: String,
    /// The endpoint, as the settings have it.
    pub configured: Endpoint,
    /// Its address, or one of those that its name stands for.
    pub address: EndpointAddress,
}

impl LinkTarget {
    /// The endpoint for log lines: as the settings have it, and for a name its address.
    pub fn endpoint(&self) -> String {
        match &self.configured {
            Endpoint::Address(address) => address.to_string(),
            Endpoint::Name(name) => format!("{name} ({})", self.address),
        }
    }
}

/// What the plan says of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It belongs to the backend of this index.
    Listed { backend: u16 },
    /// Likewise, but its name does not stand for it any more: it gets no new session.
    Retired { backend: u16 },
    /// A reload removed it then.
    Leaving { since: Instant },
    /// The slot waits for another endpoint.
    Free,
}

impl Standing {
    /// Index of the backend in the settings; `None` once its endpoint was removed.
    pub(super) fn backend(self) -> Option<u16> {
        match self {
            Standing::Listed { backend } | Standing::Retired { backend } => Some(backend),
            Standing::Leaving { .. } | Standing::Free => None,
        }
    }

    pub(super) fn is_listed(self) -> bool {
        matches!(self, Standing::Listed { .. })
    }

    /// Whether it goes with its last session.
    pub(super) fn is_ending(self) -> bool {
        matches!(self, Standing::Retired { .. } | Standing::Leaving { .. })
    }

    /// The key for a handshake. One that leaves makes none.
    pub(super) fn secret(self, settings: &Settings) -> Option<&Secret> {
        settings.backends[usize::from(self.backend()?)].secret.as_ref()
    }
}

/// The place of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) target: LinkTarget,
    /// Its slot, if it has one.
    pub(super) slot: Option<u16>,
}

/// What becomes of the slots of one kind of backend when a plan comes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    /// The places of each backend; those of another kind have none.
    pub(super) groups: Vec<Vec<Place>>,
    /// Slots whose endpoints are not there any more, and how they stand from now on.
    pub(super) left: Vec<(u16, Standing)>,
}

impl Assignment {
    /// Compares the slots that were in use with the backends `of_kind` of the plan that comes.
    pub(super) fn new<'a>(
        used: impl Iterator<Item = (u16, &'a LinkTarget)>,
        settings: &Settings,
        plan: &EndpointPlan,
        of_kind: impl Fn(&Backend) -> bool,
        now: Instant,
    ) -> Self {
        let mut known: HashMap<&LinkTarget, u16> =
            used.map(|(slot, target)| (target, slot)).collect();
        let backends = || settings.backends.iter().enumerate().filter(|(_, b)| of_kind(b));
        let endpoints = backends().flat_map(|(_, backend)| &backend.endpoints);
        let addresses = endpoints.filter(|endpoint| endpoint.name().is_none()).count();
        let mut left_for_names = ENDPOINTS_MAX.saturating_sub(addresses);
        let mut groups: Vec<Vec<Place>> = settings.backends.iter().map(|_| Vec::new()).collect();
        for (index, backend) in backends() {
            for configured in &backend.endpoints {
                let mut push = |address| {
                    let (backend, configured) = (backend.name.clone(), configured.clone());
                    let target = LinkTarget { backend, configured, address };
                    let slot = known.remove(&target);
                    groups[index].push(Place { target, slot });
                };
                match configured {
                    Endpoint::Address(address) => push(address.clone()),
                    Endpoint::Name(name) => {
                        let found = plan.addresses.get(name).map_or(&[][..], Vec::as_slice);
                        let found = &found[..found.len().min(left_for_names)];
                        left_for_names -= found.len();
                        found.iter().for_each(|address| push(EndpointAddress::Tcp(*address)));
                    }
                }
            }
        }
        let names = |backend: &Backend, target: &LinkTarget| {
            backend.name == target.backend && backend.endpoints.contains(&target.configured)
        };
        let standing = |target: &LinkTarget| match backends().find(|(_, b)| names(b, target)) {
            Some((index, _)) => Standing::Retired { backend: index as u16 },
            None => Standing::Leaving { since: now },
        };
        let mut left: Vec<(u16, Standing)> =
            known.into_iter().map(|(target, slot)| (slot, standing(target))).collect();
        left.sort_unstable_by_key(|(slot, _)| *slot);
        Assignment { groups, left }
    }

    /// Whether a table of `used` slots, of which `free` are, can take them.
    pub(super) fn fits(&self, used: usize, free: usize) -> bool {
        let added = self.groups.iter().flatten().filter(|place| place.slot.is_none()).count();
        added <= free + SLOTS_MAX - used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::load::test_settings;
    use crate::settings::{Balance, RevokeScope};

    const NOW: Instant = Instant::from_nanos(7);

    fn tcp(port: u16) -> EndpointAddress {
        EndpointAddress::Tcp(([127, 0, 0, 1], port).into())
    }

    fn backend(name: &str, endpoints: Vec<Endpoint>) -> Backend {
        Backend {
            name: name.into(),
            endpoints,
            balance: Balance::LeastSessions,
            secret: None,
            revoke: RevokeScope::None,
            server: None,
        }
    }

    fn assign(before: &[LinkTarget], backends: Vec<Backend>, plan: &EndpointPlan) -> Assignment {
        let mut settings = test_settings();
        settings.backends = backends;
        let used = before.iter().enumerate().map(|(slot, target)| (slot as u16, target));
        Assignment::new(used, &settings, plan, |_| true, NOW)
    }

    fn slots(assignment: &Assignment) -> Vec<Vec<Option<u16>>> {
        let of = |group: &Vec<Place>| group.iter().map(|place| place.slot).collect();
        assignment.groups.iter().map(of).collect()
    }

    #[test]
    fn slots_follow_their_backend_by_name_and_their_endpoint_by_address() {
        let target = |name: &str, port| LinkTarget {
            backend: name.into(),
            configured: Endpoint::Address(tcp(port)),
            address: tcp(port),
        };
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
            let of = |ports: &[u16]| ports.iter().map(|p| Endpoint::Address(tcp(*p))).collect();
            let backends = after.iter().map(|(name, ports)| backend(name, of(ports))).collect();
            let assignment = assign(&before, backends, &EndpointPlan::default());
            let groups: Vec<Vec<_>> = groups.iter().map(|group| group.to_vec()).collect();
            assert_eq!(slots(&assignment), groups, "{what}");
            let leaving = Standing::Leaving { since: NOW };
            let left: Vec<_> = left.iter().map(|slot| (*slot, leaving)).collect();
            assert_eq!(assignment.left, left, "{what}");
        }
    }

    #[test]
    fn an_address_that_left_its_name_retires_and_one_whose_name_was_removed_leaves() {
        let name = HostPort::parse("app:7000").expect("a name");
        let named = Endpoint::Name(name.clone());
        let plan = |ports: &[u16]| EndpointPlan {
            addresses: [(
                name.clone(),
                ports.iter().map(|port| ([127, 0, 0, 1], *port).into()).collect(),
            )]
            .into(),
        };
        let target = |port| LinkTarget {
            backend: "a".into(),
            configured: named.clone(),
            address: tcp(port),
        };
        let other = || backend("b", vec![Endpoint::Address(tcp(9))]);
        let both = || vec![other(), backend("a", vec![named.clone()])];

        let first = assign(&[], both(), &EndpointPlan::default());
        assert_eq!(slots(&first), [vec![None], vec![]], "no answer, no endpoint");
        let before = [target(1), target(2)];
        let moved = assign(&before, both(), &plan(&[2, 3]));
        assert_eq!(slots(&moved), [vec![None], vec![Some(1), None]]);
        assert_eq!(moved.left, [(0, Standing::Retired { backend: 1 })]);
        let back = assign(&before, both(), &plan(&[1, 2]));
        assert_eq!((slots(&back)[1].clone(), back.left), (vec![Some(0), Some(1)], vec![]));
        let removed = assign(&before, vec![other()], &plan(&[1, 2]));
        let leaving = Standing::Leaving { since: NOW };
        assert_eq!(removed.left, [(0, leaving), (1, leaving)]);
        assert_eq!(before[0].endpoint(), "app:7000 (127.0.0.1:1)");
    }

    #[test]
    fn names_get_what_addresses_leave_of_the_bound() {
        let name = |host: &str| HostPort { host: host.into(), port: 1 };
        let many = |count: u16| (1..=count).map(|port| ([10, 0, 0, 1], port).into()).collect();
        let plan =
            EndpointPlan { addresses: [(name("x"), many(1000)), (name("y"), many(1000))].into() };
        let endpoints =
            vec![Endpoint::Name(name("x")), Endpoint::Name(name("y")), Endpoint::Address(tcp(1))];
        let assignment = assign(&[], vec![backend("a", endpoints)], &plan);
        assert_eq!(assignment.groups[0].len(), ENDPOINTS_MAX);
        assert_eq!(assignment.groups[0].last().map(|place| &place.target.address), Some(&tcp(1)));
        assert!(assignment.fits(1024, 0) && !assignment.fits(1025, 0));
    }
}
