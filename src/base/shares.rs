//! The connections that have not authenticated: in order of age, and by address prefix, so that
//! the one to give up first is found without a search.
//!
//! Exact rather than a sketch: whatever is counted here is capped by the caller, so exact counts
//! are bounded too, by three prefixes for each connection, and no address can be made to
//! collide with another. Everything but the ordered index of prefixes is lists through the
//! entries themselves.

use std::collections::BTreeMap;

use slab::Slab;

use super::prefix::{Level, Prefix, Prefixes};
use super::slab::Key;
use super::time::Instant;

/// The end of a list.
const NONE: u32 = u32::MAX;

/// Which list a pair of links belongs to: all by age, the refused by age of the refusal, and
/// one for each prefix.
const BY_AGE: usize = 0;
const REFUSED: usize = 1;
const OF_PREFIX: usize = 2;
const CHAINS: usize = OF_PREFIX + Prefixes::MAX;

/// The widest prefix's allowance: loads are compared in parts of it, in whole numbers.
const SCALE: u32 = Level::Ipv6Of48.allowance();

#[derive(Clone, Copy, Debug)]
struct Links {
    before: u32,
    after: u32,
}

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
}

const EMPTY: List = List { first: NONE, last: NONE };
const LOOSE: Links = Links { before: NONE, after: NONE };

/// One connection.
#[derive(Debug)]
struct Entry {
    owner: Key,
    since: Instant,
    refused: bool,
    links: [Links; CHAINS],
    /// Its prefixes, the narrowest first, as places in `crowds`.
    crowds: [u32; Prefixes::MAX],
}

/// The connections of one prefix. Each is in one of the two lists.
#[derive(Debug)]
struct PrefixGroup {
    prefix: Prefix,
    count: u32,
    waiting: List,
    refused: List,
    /// Among the crowds of its level with the same count.
    links: Links,
}

/// The crowds of one level by their count.
///
/// Invariant: `by_count[top]` is the last list that is not empty; `top` is 0 when all are.
#[derive(Debug)]
struct Ranking {
    by_count: Vec<List>,
    top: u32,
}

/// Which connection is given up first, and what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// One that has had its refusal and lingers.
    Refused(Key),
    /// The one that has waited the longest.
    Oldest(Key),
}

/// The connections that have not authenticated.
#[derive(Debug)]
pub struct UnauthenticatedIndex {
    entries: Slab<Entry>,
    /// By the owner's slot: a connection need not know its place here.
    places: BTreeMap<u32, u32>,
    by_age: List,
    refused: List,
    crowds: Slab<PrefixGroup>,
    by_prefix: BTreeMap<Prefix, u32>,
    rankings: [Ranking; Level::COUNT],
}

impl Default for UnauthenticatedIndex {
    fn default() -> Self {
        UnauthenticatedIndex {
            entries: Slab::new(),
            places: BTreeMap::new(),
            by_age: EMPTY,
            refused: EMPTY,
            crowds: Slab::new(),
            by_prefix: BTreeMap::new(),
            rankings: [(); Level::COUNT].map(|()| Ranking { by_count: vec![EMPTY], top: 0 }),
        }
    }
}

impl UnauthenticatedIndex {
    /// Number of connections.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of prefixes that have any.
    pub fn prefixes(&self) -> usize {
        self.crowds.len()
    }

    /// Adds a connection that came at `now`, which no earlier one is younger than.
    pub fn add(&mut self, owner: Key, prefixes: &Prefixes, now: Instant) {
        let place = self.entries.insert(Entry {
            owner,
            since: now,
            refused: false,
            links: [LOOSE; CHAINS],
            crowds: [NONE; Prefixes::MAX],
        }) as u32;
        let earlier = self.places.insert(owner.slot, place);
        assert!(earlier.is_none(), "one connection for each slot");
        push(&mut self.entries, BY_AGE, &mut self.by_age, place);
        self.join(place, prefixes);
    }

    /// The connection is of other prefixes than was thought.
    pub fn set_prefixes(&mut self, owner: Key, prefixes: &Prefixes) {
        let Some(place) = self.place(owner) else { return };
        self.part(place);
        self.join(place, prefixes);
    }

    /// The connection has had its refusal. False when that was known.
    pub fn refuse(&mut self, owner: Key) -> bool {
        let Some(place) = self.place(owner) else { return false };
        if std::mem::replace(&mut self.entries[place as usize].refused, true) {
            return false;
        }
        push(&mut self.entries, REFUSED, &mut self.refused, place);
        for (index, crowd) in self.entries[place as usize].crowds.into_iter().enumerate() {
            if let Some(crowd) = self.crowds.get_mut(crowd as usize) {
                unlink(&mut self.entries, OF_PREFIX + index, &mut crowd.waiting, place);
                push(&mut self.entries, OF_PREFIX + index, &mut crowd.refused, place);
            }
        }
        true
    }

    /// Takes a connection out: it has authenticated, or ends. Says whether it had been refused,
    /// or none when it was not here.
    pub fn remove(&mut self, owner: Key) -> Option<bool> {
        let place = self.place(owner)?;
        self.part(place);
        unlink(&mut self.entries, BY_AGE, &mut self.by_age, place);
        if self.entries[place as usize].refused {
            unlink(&mut self.entries, REFUSED, &mut self.refused, place);
        }
        self.places.remove(&owner.slot);
        Some(self.entries.remove(place as usize).refused)
    }

    /// The load of the fullest of these prefixes: its connections for each address that it
    /// may count as, rounded down.
    pub fn load(&self, prefixes: &Prefixes) -> u32 {
        let load = |prefix: Prefix| {
            let crowd = self.by_prefix.get(&prefix).and_then(|at| self.crowds.get(*at as usize));
            crowd.map_or(0, |crowd| crowd.count / prefix.level().allowance())
        };
        prefixes.iter().map(load).max().unwrap_or(0)
    }

    /// Whom to give up first: of the heaviest prefix the one that was refused first, or else
    /// came first. Where no prefix holds more than others may, the same of all connections.
    pub fn victim(&self) -> Option<Victim> {
        let heaviest = self.heaviest();
        let (refused, waiting) = match heaviest {
            Some(crowd) => (crowd.refused, crowd.waiting),
            None => (self.refused, self.by_age),
        };
        let owner = |list: List| self.entries.get(list.first as usize).map(|entry| entry.owner);
        owner(refused).map(Victim::Refused).or_else(|| owner(waiting).map(Victim::Oldest))
    }

    /// The one to give up for a newcomer of these prefixes: of the heaviest prefix, if that holds
    /// more than the newcomer's own would. Where all hold alike no connection gives way.
    pub fn victim_for(&self, newcomer: &Prefixes) -> Option<Key> {
        let weight =
            |prefix: Prefix, count: u32| count.saturating_mul(SCALE / prefix.level().allowance());
        let heaviest = self.heaviest()?;
        let with_newcomer = |prefix: Prefix| {
            let crowd = self.by_prefix.get(&prefix).and_then(|at| self.crowds.get(*at as usize));
            weight(prefix, crowd.map_or(0, |crowd| crowd.count) + 1)
        };
        let own = newcomer.iter().map(with_newcomer).max().unwrap_or(0);
        let first = [heaviest.refused, heaviest.waiting]
            .into_iter()
            .find_map(|list| self.entries.get(list.first as usize));
        first.filter(|_| own < weight(heaviest.prefix, heaviest.count)).map(|entry| entry.owner)
    }

    /// The one that was refused first.
    pub fn first_refused(&self) -> Option<Key> {
        self.entries.get(self.refused.first as usize).map(|entry| entry.owner)
    }

    /// The one that came first, and when.
    pub fn first(&self) -> Option<(Key, Instant)> {
        self.entries.get(self.by_age.first as usize).map(|entry| (entry.owner, entry.since))
    }

    /// The crowd with the highest load, if any has more than one connection for each address
    /// that it may count as. Of equals, the narrower, and the longest at its count.
    fn heaviest(&self) -> Option<&PrefixGroup> {
        const LEVELS: [Level; Level::COUNT] =
            [Level::Ipv4, Level::Ipv6Of64, Level::Ipv6Of56, Level::Ipv6Of48];
        let mut most = SCALE;
        let mut found = NONE;
        for (level, ranking) in LEVELS.iter().zip(&self.rankings) {
            let load = ranking.top.saturating_mul(SCALE / level.allowance());
            if load > most {
                (most, found) = (load, ranking.by_count[ranking.top as usize].first);
            }
        }
        self.crowds.get(found as usize)
    }

    fn place(&self, owner: Key) -> Option<u32> {
        let place = *self.places.get(&owner.slot)?;
        (self.entries[place as usize].owner == owner).then_some(place)
    }

    fn join(&mut self, place: u32, prefixes: &Prefixes) {
        for (index, prefix) in prefixes.iter().enumerate() {
            let crowd = *self.by_prefix.entry(prefix).or_insert_with(|| {
                let empty =
                    PrefixGroup { prefix, count: 0, waiting: EMPTY, refused: EMPTY, links: LOOSE };
                self.crowds.insert(empty) as u32
            });
            let entry = &mut self.entries[place as usize];
            entry.crowds[index] = crowd;
            let refused = entry.refused;
            let found = &mut self.crowds[crowd as usize];
            let list = if refused { &mut found.refused } else { &mut found.waiting };
            push(&mut self.entries, OF_PREFIX + index, list, place);
            let count = found.count + 1;
            self.set_count(crowd, count);
        }
    }

    fn part(&mut self, place: u32) {
        let entry = &mut self.entries[place as usize];
        let refused = entry.refused;
        let crowds = std::mem::replace(&mut entry.crowds, [NONE; Prefixes::MAX]);
        for (index, crowd) in crowds.into_iter().enumerate() {
            let Some(found) = self.crowds.get_mut(crowd as usize) else { continue };
            let list = if refused { &mut found.refused } else { &mut found.waiting };
            unlink(&mut self.entries, OF_PREFIX + index, list, place);
            let (count, prefix) = (found.count - 1, found.prefix);
            self.set_count(crowd, count);
            if count == 0 {
                self.by_prefix.remove(&prefix);
                self.crowds.remove(crowd as usize);
            }
        }
    }

    /// Moves a crowd to the crowds of its new count, which is one more or less than the old.
    fn set_count(&mut self, crowd: u32, count: u32) {
        let PrefixGroup { prefix, count: earlier, .. } = self.crowds[crowd as usize];
        let ranking = &mut self.rankings[prefix.level() as usize];
        if earlier > 0 {
            unlink(&mut self.crowds, 0, &mut ranking.by_count[earlier as usize], crowd);
        }
        if ranking.by_count.len() <= count as usize {
            ranking.by_count.push(EMPTY);
        }
        if count > 0 {
            push(&mut self.crowds, 0, &mut ranking.by_count[count as usize], crowd);
        }
        self.crowds[crowd as usize].count = count;
        let empty = ranking.by_count[ranking.top as usize].first == NONE;
        if count > ranking.top || (empty && earlier == ranking.top) {
            ranking.top = count;
        }
    }
}

/// Something that lists run through.
trait Linked {
    fn links(&mut self, chain: usize) -> &mut Links;
}

impl Linked for Entry {
    fn links(&mut self, chain: usize) -> &mut Links {
        &mut self.links[chain]
    }
}

impl Linked for PrefixGroup {
    fn links(&mut self, _: usize) -> &mut Links {
        &mut self.links
    }
}

/// Adds to the end of a list.
fn push<T: Linked>(slab: &mut Slab<T>, chain: usize, list: &mut List, place: u32) {
    *slab[place as usize].links(chain) = Links { before: list.last, after: NONE };
    match slab.get_mut(list.last as usize) {
        Some(last) => last.links(chain).after = place,
        None => list.first = place,
    }
    list.last = place;
}

/// Takes out of the list that it is in.
fn unlink<T: Linked>(slab: &mut Slab<T>, chain: usize, list: &mut List, place: u32) {
    let Links { before, after } = std::mem::replace(slab[place as usize].links(chain), LOOSE);
    match slab.get_mut(before as usize) {
        Some(other) => other.links(chain).after = after,
        None => list.first = after,
    }
    match slab.get_mut(after as usize) {
        Some(other) => other.links(chain).before = before,
        None => list.last = before,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// One connection, with the numbers of the steps that put it where it is.
    struct Known {
        owner: Key,
        prefixes: Prefixes,
        since: Instant,
        joined: usize,
        refused: Option<usize>,
    }

    /// The same, slowly: everything is counted again at each question.
    #[derive(Default)]
    struct Slow {
        /// In order of arrival.
        all: Vec<Known>,
    }

    impl Slow {
        fn count(&self, prefix: Prefix) -> u32 {
            self.all.iter().filter(|known| known.is_of(prefix)).count() as u32
        }

        fn load(&self, prefixes: &Prefixes) -> u32 {
            let load = |prefix: Prefix| self.count(prefix) / prefix.level().allowance();
            prefixes.iter().map(load).max().unwrap_or(0)
        }

        fn every_prefix(&self) -> Vec<Prefix> {
            let mut all: Vec<_> = self.all.iter().flat_map(|k| k.prefixes.iter()).collect();
            all.sort();
            all.dedup();
            all
        }

        /// Every victim that may be named: one for each prefix of the highest load.
        fn victims(&self) -> Vec<Victim> {
            let scaled = |p: Prefix| self.count(p) * SCALE / p.level().allowance();
            let prefixes = self.every_prefix();
            let most = prefixes.iter().map(|p| scaled(*p)).max().unwrap_or(0);
            if most <= SCALE {
                let refused = self.all.iter().filter(|known| known.refused.is_some());
                let refused = refused.min_by_key(|known| known.refused);
                return victim(refused, self.all.first());
            }
            let heaviest = prefixes.into_iter().filter(|p| scaled(*p) == most);
            heaviest.flat_map(|p| self.victim_of(p)).collect()
        }

        fn victim_of(&self, prefix: Prefix) -> Vec<Victim> {
            let crowd = || self.all.iter().filter(|known| known.is_of(prefix));
            let refused = crowd().filter(|known| known.refused.is_some());
            // Who moves between prefixes is the last of the new one.
            let refused = refused.min_by_key(|known| known.refused.max(Some(known.joined)));
            victim(refused, crowd().min_by_key(|known| known.joined))
        }
    }

    impl Known {
        fn is_of(&self, prefix: Prefix) -> bool {
            self.prefixes.iter().any(|other| other == prefix)
        }
    }

    fn victim(refused: Option<&Known>, oldest: Option<&Known>) -> Vec<Victim> {
        let refused = refused.map(|known| Victim::Refused(known.owner));
        refused.or(oldest.map(|known| Victim::Oldest(known.owner))).into_iter().collect()
    }

    fn address(number: u16) -> IpAddr {
        let [kind, low] = number.to_be_bytes();
        match kind % 4 {
            0 => Ipv4Addr::new(192, 0, 2, low % 3).into(),
            // Many /64 networks in few /56 and /48.
            _ => {
                let third = u16::from(low % 2);
                let fourth = u16::from(low) << (kind % 4 * 2);
                Ipv6Addr::new(0x2001, 0xdb8, third, fourth, 0, 0, 0, number).into()
            }
        }
    }

    fn check(shares: &UnauthenticatedIndex, slow: &Slow) {
        assert_eq!(shares.len(), slow.all.len());
        assert_eq!(shares.prefixes(), slow.every_prefix().len());
        let first = slow.all.first().map(|known| (known.owner, known.since));
        assert_eq!(shares.first(), first);
        for number in [0, 1, 256, 300, 600, 777] {
            let prefixes = Prefixes::of(address(number));
            assert_eq!(shares.load(&prefixes), slow.load(&prefixes));
        }
        match shares.victim() {
            Some(victim) => assert!(slow.victims().contains(&victim), "{victim:?}"),
            None => assert!(slow.all.is_empty()),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]
        #[test]
        fn equals_counting_everything_again(
            steps in proptest::collection::vec((0u8..10, any::<u16>()), 1..200),
        ) {
            let (mut shares, mut slow) = (UnauthenticatedIndex::default(), Slow::default());
            for (number, (what, pick)) in steps.iter().enumerate() {
                let at = usize::from(*pick) % slow.all.len().max(1);
                let chosen = slow.all.get(at).map(|known| known.owner);
                let prefixes = Prefixes::of(address(*pick));
                let since = Instant::from_nanos(number as u64);
                match (what, chosen) {
                    (0..=4, _) | (_, None) => {
                        let owner = Key { slot: number as u32, generation: 7 };
                        shares.add(owner, &prefixes, since);
                        let (joined, refused) = (number, None);
                        slow.all.push(Known { owner, prefixes, since, joined, refused });
                    }
                    (5, Some(owner)) => {
                        shares.set_prefixes(owner, &prefixes);
                        slow.all[at].prefixes = prefixes;
                        slow.all[at].joined = number;
                    }
                    (6 | 7, Some(owner)) => {
                        let first = slow.all[at].refused.is_none();
                        assert_eq!(shares.refuse(owner), first);
                        slow.all[at].refused.get_or_insert(number);
                    }
                    (_, Some(owner)) => {
                        let refused = slow.all.remove(at).refused.is_some();
                        assert_eq!(shares.remove(owner), Some(refused));
                        assert_eq!(shares.remove(owner), None);
                    }
                }
                check(&shares, &slow);
            }
            while let Some(victim) = shares.victim() {
                let (Victim::Refused(owner) | Victim::Oldest(owner)) = victim;
                assert!(shares.remove(owner).is_some());
                slow.all.retain(|known| known.owner != owner);
                check(&shares, &slow);
            }
        }
    }

    #[test]
    fn a_key_of_an_earlier_connection_names_nothing() {
        let mut shares = UnauthenticatedIndex::default();
        let prefixes = Prefixes::of(address(3));
        shares.add(Key { slot: 1, generation: 2 }, &prefixes, Instant::from_nanos(0));
        let stale = Key { slot: 1, generation: 1 };
        assert!(shares.remove(stale).is_none() && !shares.refuse(stale));
        assert_eq!(shares.load(&prefixes), 1);
    }

    /// What `docs/operating.md` says of the memory.
    #[test]
    fn entries_are_small() {
        assert!(size_of::<Entry>() <= 80, "{}", size_of::<Entry>());
        assert!(size_of::<PrefixGroup>() <= 48, "{}", size_of::<PrefixGroup>());
    }
}
