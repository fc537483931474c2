//! Room for the connections of one admin listener: bounded, and no sender of half a request can
//! keep it from others.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// Connections of one listener; one more takes the place of an older one.
pub const CONNECTIONS_MAX: usize = 64;
/// A younger connection keeps its place: its request may be on its way.
pub const GRACE: Duration = Duration::from_millis(20);

struct Entry {
    id: u64,
    peer: Option<IpAddr>,
    since: Instant,
    /// A whole request came and is being acted on: it keeps its place.
    acting: bool,
    /// Dropped, it ends the connection.
    _life: oneshot::Sender<()>,
}

/// The connections that are open, oldest first. Invariant: at most [`CONNECTIONS_MAX`].
#[derive(Default)]
pub struct Room {
    entries: RefCell<Vec<Entry>>,
    last_id: Cell<u64>,
}

/// One connection's place; given back on drop.
pub struct Place {
    room: Rc<Room>,
    id: u64,
}

impl Room {
    /// A place for a connection, and what ends when it must give way. The oldest connection
    /// without a whole request goes, of the peer that holds most.
    ///
    /// # Errors
    /// How long to wait before trying again.
    pub fn enter(
        self: &Rc<Self>,
        peer: Option<IpAddr>,
        now: Instant,
    ) -> Result<(Place, oneshot::Receiver<()>), Duration> {
        let mut entries = self.entries.borrow_mut();
        if entries.len() >= CONNECTIONS_MAX {
            let places = |peer| entries.iter().filter(|entry| entry.peer == peer).count();
            let waiting = entries.iter().enumerate().filter(|(_, entry)| !entry.acting);
            let victim = waiting.max_by_key(|(at, entry)| (places(entry.peer), usize::MAX - at));
            let Some((at, victim)) = victim else { return Err(GRACE) };
            let age = now.saturating_duration_since(victim.since);
            if age < GRACE {
                return Err(GRACE - age);
            }
            entries.remove(at);
        }
        let (life, end) = oneshot::channel();
        let id = self.last_id.get() + 1;
        self.last_id.set(id);
        entries.push(Entry { id, peer, since: now, acting: false, _life: life });
        Ok((Place { room: Rc::clone(self), id }, end))
    }
}

impl Place {
    /// Says whether a whole request is being acted on.
    pub fn set_acting(&self, acting: bool) {
        let mut entries = self.room.entries.borrow_mut();
        entries.iter_mut().filter(|entry| entry.id == self.id).for_each(|e| e.acting = acting);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.entries.borrow_mut().retain(|entry| entry.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([127, 0, 0, last]))
    }

    #[test]
    fn the_oldest_of_the_largest_peer_gives_way() {
        let room = Rc::new(Room::default());
        let start = Instant::now();
        let later = start + GRACE;
        let enter = |peer, at| room.enter(address(peer), at);
        let mut quiet = enter(1, start).unwrap();
        let mut many: Vec<_> = (1..CONNECTIONS_MAX).map(|_| enter(2, start).unwrap()).collect();
        assert_eq!(enter(3, start).err(), Some(GRACE), "all are too young to go");
        // The oldest of the crowd is being answered, so the next one goes.
        many[0].0.set_acting(true);
        let newcomer = enter(3, later).unwrap();
        let ended = |(_, end): &mut (Place, oneshot::Receiver<()>)| {
            end.try_recv() == Err(oneshot::error::TryRecvError::Closed)
        };
        assert!(!ended(&mut quiet) && !ended(&mut many[0]) && ended(&mut many[1]));
        assert!(!many[2..].iter_mut().any(ended));
        assert_eq!(room.entries.borrow().len(), CONNECTIONS_MAX);
        drop((quiet, many, newcomer));
        assert!(room.entries.borrow().is_empty());
    }

    #[test]
    fn requests_that_are_acted_on_never_give_way() {
        let room = Rc::new(Room::default());
        let now = Instant::now();
        let held: Vec<_> = (0..CONNECTIONS_MAX).map(|_| room.enter(None, now).unwrap()).collect();
        held.iter().for_each(|(place, _)| place.set_acting(true));
        assert_eq!(room.enter(address(1), now + GRACE * 9).err(), Some(GRACE));
        held[7].0.set_acting(false);
        assert!(room.enter(address(1), now + GRACE * 9).is_ok());
    }
}
