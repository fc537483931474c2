//! What the control thread does with revocations, and a check of its own that they hold: by the
//! names of the clients, where the worker goes by hashes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::messages::Author;
use super::world::World;
use crate::base::time::UnixTime;
use crate::protocol::revocation::{
    Hasher, Inserted, RevocationSet, Revoked, ScopedRevocation, Target,
};

/// Revocations held at one time.
const MAX: usize = 8;
/// When a simulated token was made, before it was presented, in seconds.
const ISSUED_BEFORE: u64 = 5000;

/// One revocation that the worker was told of.
#[derive(Debug)]
struct CloseDetails {
    entry: ScopedRevocation,
    turn: u64,
    /// What the wall clock was off by then: once it has jumped, it says something else.
    wall_offset: u64,
    wall_millis: u64,
}

/// The control thread's side.
pub struct Revocations {
    set: RevocationSet,
    told: Vec<CloseDetails>,
    /// A planted bug: every second one is not told to the worker.
    forgets: bool,
    taken: u64,
    /// What backends said before is still on its way, and holds no more.
    over: bool,
    /// In how many turns the worker's sweep comes by every connection.
    sweep_turns: u64,
}

impl Revocations {
    /// Nothing is revoked.
    pub fn new(forgets: bool, sweep_turns: u64) -> Self {
        let set = RevocationSet::new(Hasher::new(&[9; 32]));
        Revocations { set, told: Vec::new(), forgets, taken: 0, over: false, sweep_turns }
    }

    /// What the worker is to know.
    pub fn snapshot(&self) -> Arc<Revoked> {
        Arc::new(self.set.snapshot())
    }

    /// Takes a revocation in; answers what the worker must be told, if that changed.
    pub fn take(
        &mut self,
        entry: impl Into<ScopedRevocation>,
        turn: u64,
        world: &World,
    ) -> Option<Arc<Revoked>> {
        if self.over {
            return None;
        }
        let entry = entry.into();
        let wall_millis = world.net.wall_millis();
        let now = UnixTime::from_millis(wall_millis);
        self.set.lapse(now);
        if !matches!(self.set.insert(entry.clone(), MAX, now), Ok(Inserted::New(_))) {
            return None;
        }
        let wall_offset = world.net.wall_offset;
        self.told.push(CloseDetails { entry, turn, wall_offset, wall_millis });
        self.taken += 1;
        (!self.forgets || self.taken.is_multiple_of(2)).then(|| self.snapshot())
    }

    /// Everything is taken back, and nothing more is taken in.
    pub fn clear(&mut self) -> Arc<Revoked> {
        self.over = true;
        self.told.clear();
        let ids: Vec<u64> = self.set.after(0).map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| assert!(self.set.remove(id)));
        self.snapshot()
    }

    /// Once the worker has got the revocation and a sweep has come by, no revoked client may be
    /// open: neither those that were, nor new ones.
    pub fn check(&mut self, open: Vec<SocketAddr>, turn: u64, world: &mut World) {
        let (offset, now) = (world.net.wall_offset, world.net.wall_millis());
        self.told.retain(|told| {
            told.wall_offset == offset && told.entry.revocation.lapses > UnixTime::from_millis(now)
        });
        for told in self.told.iter().filter(|told| told.turn + 1 + self.sweep_turns <= turn) {
            for author in open.iter().filter_map(|peer| author(*peer, world)) {
                if means(told, author) {
                    let revocation = &told.entry;
                    let since = now - told.wall_millis;
                    return world.net.check.fail(format!(
                        "{author:?} is open, but was revoked {since} ms ago by {revocation:?}"
                    ));
                }
            }
        }
    }
}

/// Whether the entry means the client for sure. Tokens are presented at other times than they
/// are made for, so those near an instant are left out.
fn means(told: &CloseDetails, author: Author) -> bool {
    let subject = author.subject();
    // The youngest token that a client can have had then.
    let surely_older =
        |before: &UnixTime| before.as_seconds() + ISSUED_BEFORE > told.wall_millis / 1000 + 3600;
    match &told.entry.revocation.target {
        Target::Subject { subject: theirs, issued_before } => {
            **theirs == *subject && issued_before.as_ref().is_none_or(surely_older)
        }
        Target::TokenId(id) => **id == *format!("t-{subject}"),
        Target::IssuedBefore(before) => surely_older(before),
    }
}

/// Whose connection comes from here: told by the PROXY header, or by the network.
fn author(peer: SocketAddr, world: &World) -> Option<Author> {
    let IpAddr::V4(ip) = peer.ip() else { return None };
    let [first, _, high, low] = ip.octets();
    if first == 192 {
        let life = peer.port().checked_sub(1000)?;
        return Some(Author { client: u16::from_be_bytes([high, low]), life });
    }
    let conn = usize::from(peer.port().checked_sub(1024)?);
    world.net.check.author_of(conn)
}
