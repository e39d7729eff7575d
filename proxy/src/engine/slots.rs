//! A table whose entries go by index and generation, so that a late message about an entry that is gone cannot meet its
//! successor.

use super::driver::Key;

/// Entries by [`Key`]. Indices are reused, the newest free one first: the warmest.
#[derive(Debug)]
pub(super) struct Slots<T> {
    entries: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    entry: Option<T>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// Puts an entry in.
    pub(super) fn insert(&mut self, entry: T) -> Key {
        if let Some(index) = self.free.pop()
            && let Some(slot) = self.entries.get_mut(index as usize)
        {
            slot.entry = Some(entry);
            return Key { index, generation: slot.generation };
        }
        // Descriptors are numbered by 31 bits: there cannot be more entries than that.
        let index = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push(Slot { generation: 0, entry: Some(entry) });
        Key { index, generation: 0 }
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let slot = self.entries.get(key.index as usize)?;
        if slot.generation == key.generation { slot.entry.as_ref() } else { None }
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.entries.get_mut(key.index as usize)?;
        if slot.generation == key.generation { slot.entry.as_mut() } else { None }
    }

    /// Takes an entry out; its key is stale from now on.
    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.entries.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let entry = slot.entry.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(entry)
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// The keys of those entries whose index is in this range: for walks in slices. `None` past the end.
    pub(super) fn keys_in(&self, range: std::ops::Range<usize>) -> Option<Vec<Key>> {
        let slice = self.entries.get(range.start..range.end.min(self.entries.len()))?;
        if slice.is_empty() {
            return None;
        }
        let keys = slice.iter().zip(range).filter(|(slot, _)| slot.entry.is_some()).map(|(slot, index)| {
            Key { index: u32::try_from(index).unwrap_or(u32::MAX), generation: slot.generation }
        });
        Some(keys.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_meets_nobody() {
        let mut slots = Slots::default();
        let first = slots.insert("first");
        assert_eq!(slots.remove(first), Some("first"));
        let second = slots.insert("second");
        assert_eq!(second.index, first.index);
        assert_eq!(slots.get(first), None);
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!((slots.get(second), slots.len()), (Some(&"second"), 1));
    }

    #[test]
    fn a_walk_in_slices_meets_everybody_once() {
        let mut slots = Slots::default();
        let keys: Vec<Key> = (0..10).map(|number| slots.insert(number)).collect();
        slots.remove(keys[4]);
        let mut met = Vec::new();
        let mut at = 0;
        while let Some(slice) = slots.keys_in(at..at + 3) {
            met.extend(slice);
            at += 3;
        }
        assert_eq!(met, keys.into_iter().filter(|key| key.index != 4).collect::<Vec<_>>());
    }
}
