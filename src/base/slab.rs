//! A slab whose keys carry a generation, so that a key kept too long names nothing.

use slab::Slab;

/// Names one entry of a [`KeyedSlab`]: the slot, and which use of that slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Position in the slab; reused after removal.
    pub slot: u32,
    /// Counts the uses of the slot, modulo the slab's generation width.
    pub generation: u32,
}

/// A slab on the `slab` crate plus a generation for every slot. The generation's width is an
/// argument so that tests can make it tiny and see wrap-around.
///
/// Invariant: `generations.len() >= slots ever used`; `generations[slot]` is the generation of
/// the live entry, or of the next one when the slot is free.
#[derive(Debug)]
pub struct KeyedSlab<T> {
    entries: Slab<T>,
    generations: Vec<u32>,
    mask: u32,
}

impl<T> KeyedSlab<T> {
    /// An empty slab whose generations are `generation_bits` wide (1 to 32).
    pub fn new(generation_bits: u32) -> Self {
        assert!((1..=32).contains(&generation_bits));
        let mask = u32::MAX >> (32 - generation_bits);
        KeyedSlab { entries: Slab::new(), generations: Vec::new(), mask }
    }

    /// Adds an entry and returns its key.
    pub fn insert(&mut self, value: T) -> Key {
        let slot = self.entries.insert(value);
        if slot == self.generations.len() {
            self.generations.push(0);
        }
        Key { slot: slot as u32, generation: self.generations[slot] }
    }

    /// The key that the next [`insert`](Self::insert) will return.
    pub fn vacant_key(&self) -> Key {
        let slot = self.entries.vacant_key();
        let generation = self.generations.get(slot).copied().unwrap_or(0);
        Key { slot: slot as u32, generation }
    }

    /// The entry, unless the key is stale.
    pub fn entry(&self, key: Key) -> Option<&T> {
        self.is_live(key).then(|| self.entries.get(key.slot as usize)).flatten()
    }

    /// The entry, unless the key is stale.
    pub fn entry_mut(&mut self, key: Key) -> Option<&mut T> {
        if !self.is_live(key) {
            return None;
        }
        self.entries.get_mut(key.slot as usize)
    }

    /// The live entry of a slot, with its key.
    pub fn slot_mut(&mut self, slot: u32) -> Option<(Key, &mut T)> {
        let entry = self.entries.get_mut(slot as usize)?;
        Some((Key { slot, generation: self.generations[slot as usize] }, entry))
    }

    /// The live key of a slot, if the slot is in use.
    pub fn key_of(&self, slot: u32) -> Option<Key> {
        self.entries
            .contains(slot as usize)
            .then(|| Key { slot, generation: self.generations[slot as usize] })
    }

    /// Gives the entry its slot's next generation, so that what names it by the key until now
    /// names nothing. `None` when the key is stale already.
    pub fn renew(&mut self, key: Key) -> Option<Key> {
        if !self.is_live(key) {
            return None;
        }
        let generation = &mut self.generations[key.slot as usize];
        *generation = generation.wrapping_add(1) & self.mask;
        Some(Key { slot: key.slot, generation: *generation })
    }

    /// Removes the entry, unless the key is stale; the slot's generation moves on.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        if !self.is_live(key) {
            return None;
        }
        let value = self.entries.try_remove(key.slot as usize)?;
        let generation = &mut self.generations[key.slot as usize];
        *generation = generation.wrapping_add(1) & self.mask;
        Some(value)
    }

    /// Forgets all entries, and which generations there have been: earlier keys must be gone too.
    /// What it costs does not depend on their number, where they need no drop.
    pub fn reset(&mut self) {
        self.entries = Slab::new();
        self.generations = Vec::new();
    }

    /// Every live entry's slot is below this.
    pub fn slots(&self) -> u32 {
        self.generations.len() as u32
    }

    /// Number of live entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no entry is live.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every live entry with its key, in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries.iter().map(|(slot, value)| {
            (Key { slot: slot as u32, generation: self.generations[slot] }, value)
        })
    }

    /// Every live entry with its key, in slot order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        let generations = &self.generations;
        self.entries
            .iter_mut()
            .map(|(slot, value)| (Key { slot: slot as u32, generation: generations[slot] }, value))
    }

    fn is_live(&self, key: Key) -> bool {
        self.entries.contains(key.slot as usize)
            && self.generations[key.slot as usize] == key.generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_keys_name_nothing_until_the_generation_wraps() {
        let mut slab = KeyedSlab::new(2);
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        for _ in 0..3 {
            let key = slab.insert('b');
            assert_eq!(key.slot, first.slot);
            assert_ne!(key.generation, first.generation);
            assert_eq!(slab.entry(first), None);
            assert_eq!(slab.remove(first), None);
            slab.remove(key);
        }
        assert_eq!(slab.insert('c'), first, "two bits wrap after four uses");
    }

    #[test]
    fn a_renewed_entry_is_the_same_under_another_key() {
        let mut slab = KeyedSlab::new(24);
        let before = slab.insert('a');
        let after = slab.renew(before).unwrap();
        assert_eq!((after.slot, slab.entry(after)), (before.slot, Some(&'a')));
        assert_eq!(slab.entry(before), None);
        assert_eq!(slab.renew(before), None);
        assert_eq!(slab.remove(after), Some('a'));
        assert_eq!(slab.renew(after), None);
    }

    #[test]
    fn vacant_key_is_what_insert_returns() {
        let mut slab = KeyedSlab::new(24);
        for round in 0..5 {
            let key = slab.vacant_key();
            assert_eq!(slab.insert(round), key);
            if round % 2 == 0 {
                slab.remove(key);
            }
        }
    }
}
