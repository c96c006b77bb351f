//! A count per key.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

/// A count for each key. A key with count 0 takes no memory.
#[derive(Debug)]
pub struct Counts<K>(HashMap<K, u64>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Counts<K> {
    /// The count of `key`.
    pub fn of(&self, key: &K) -> u64 {
        self.0.get(key).copied().unwrap_or_default()
    }

    /// Adds one to the count of `key`.
    pub fn add(&mut self, key: K) {
        *self.0.entry(key).or_default() += 1;
    }

    /// Subtracts one from the count of `key`, unless that is 0.
    pub fn remove(&mut self, key: K) {
        if let Entry::Occupied(mut entry) = self.0.entry(key) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    /// Whether all counts are 0.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_of_0_leaves_no_entry() {
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
