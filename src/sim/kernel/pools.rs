//! Where each buffer and slot of a pool is.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Free,
    InFlight,
    Worker,
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) places: Vec<Place>,
    pub(super) free: Vec<u16>,
}

impl Pool {
    pub(super) fn new(count: u16) -> Self {
        Pool { places: vec![Place::Free; count.into()], free: (0..count).rev().collect() }
    }

    pub(super) fn take(&mut self, place: Place) -> Option<u16> {
        let id = self.free.pop()?;
        debug_assert_eq!(self.places[id as usize], Place::Free);
        self.places[id as usize] = place;
        Some(id)
    }

    pub(super) fn count(&self, place: Place) -> usize {
        self.places.iter().filter(|p| **p == place).count()
    }
}
