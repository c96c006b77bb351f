//! Synchronization: a lock that survives a panic, and a blocking queue. The cache of threads is in
//! [`crate::threads`].

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Locks a mutex even if a thread panicked while holding it: all data under mutexes here is
/// consistent after every single assignment.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A blocking FIFO queue. The channels of std do the same, with 10 KiB of code for every kind of
/// item.
#[derive(Debug)]
pub struct Queue<T> {
    queued: Mutex<Queued<T>>,
    more: Condvar,
}

#[derive(Debug)]
struct Queued<T> {
    items: VecDeque<T>,
    /// The number of threads that wait for an item. At 0, `put` makes no system call.
    waiting: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let queued = Queued { items: VecDeque::new(), waiting: 0 };
        Self { queued: Mutex::new(queued), more: Condvar::new() }
    }
}

impl<T> Queue<T> {
    /// Appends `item`, and wakes one waiting thread, if there is any.
    pub fn put(&self, item: T) {
        let mut queued = lock(&self.queued);
        queued.items.push_back(item);
        let is_awaited = queued.waiting > 0;
        drop(queued);
        if is_awaited {
            self.more.notify_one();
        }
    }

    /// Removes the first item, and waits for one if there is none. `None` at `deadline`; without a
    /// deadline it waits for ever.
    pub fn take(&self, deadline: Option<Instant>) -> Option<T> {
        let mut queued = lock(&self.queued);
        loop {
            if let Some(item) = queued.items.pop_front() {
                return Some(item);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return None;
            }
            queued.waiting += 1;
            queued = match left {
                Some(left) => {
                    let waited = self.more.wait_timeout(queued, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.more.wait(queued).unwrap_or_else(PoisonError::into_inner),
            };
            queued.waiting -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn items_come_out_in_the_order_they_went_in() {
        let queue = Queue::default();
        (0..3).for_each(|item| queue.put(item));
        let now = Some(Instant::now());
        assert_eq!([(); 4].map(|()| queue.take(now)), [Some(0), Some(1), Some(2), None]);
    }

    #[test]
    fn every_thread_that_waits_gets_an_item() {
        let queue = Arc::<Queue<()>>::default();
        let takers: Vec<_> = (0..8)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || queue.take(Some(Instant::now() + Duration::from_secs(30))))
            })
            .collect();
        while lock(&queue.queued).waiting < takers.len() {
            thread::yield_now();
        }
        takers.iter().for_each(|_| queue.put(()));
        takers.into_iter().for_each(|taker| assert_eq!(taker.join().unwrap(), Some(())));
        assert_eq!(lock(&queue.queued).waiting, 0);
    }
}
