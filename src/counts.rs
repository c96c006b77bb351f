//! How many there are of each of some things.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

/// A count for each key; keys whose count is 0 take no room.
#[derive(Debug)]
pub struct Counts<K>(HashMap<K, u64>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Counts<K> {
    /// How many there are of `key`.
    pub fn of(&self, key: &K) -> u64 {
        self.0.get(key).copied().unwrap_or_default()
    }

    /// Counts one more.
    pub fn add(&mut self, key: K) {
        *self.0.entry(key).or_default() += 1;
    }

    /// Counts one less, of those that were added.
    pub fn remove(&mut self, key: K) {
        if let Entry::Occupied(mut entry) = self.0.entry(key) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    /// Whether there is none of anything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_away_again_leaves_nothing() {
        let mut counts = Counts::default();
        for key in ["a", "b", "a"] {
            counts.add(key);
        }
        assert_eq!((counts.of(&"a"), counts.of(&"b"), counts.of(&"c")), (2, 1, 0));
        for key in ["a", "b", "a", "c"] {
            assert!(!counts.is_empty() || key == "c");
            counts.remove(key);
        }
        assert!(counts.is_empty());
    }
}
