//! What threads share: a lock that outlives a panic, and a queue to wait in. The threads themselves
//! are in [`crate::threads`].

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Locks a mutex even if a thread panicked while holding it: what is kept behind mutexes here is
/// whole after every single assignment.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What some threads put in and others wait for; what has come first is taken first. The channels of
/// std do the same, with 10 KiB of code for every kind of item.
#[derive(Debug)]
pub struct Queue<T> {
    items: Mutex<VecDeque<T>>,
    more: Condvar,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { items: Mutex::default(), more: Condvar::new() }
    }
}

impl<T> Queue<T> {
    /// Puts `item` in, and wakes one who waits.
    pub fn put(&self, item: T) {
        lock(&self.items).push_back(item);
        self.more.notify_one();
    }

    /// Takes an item out, or `None` if there is none until then; without `until` waits for ever.
    pub fn take(&self, until: Option<Instant>) -> Option<T> {
        let mut items = lock(&self.items);
        loop {
            if let Some(item) = items.pop_front() {
                return Some(item);
            }
            items = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return None,
                Some(left) => {
                    let waited = self.more.wait_timeout(items, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.more.wait(items).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}
