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

/// A blocking FIFO queue. The channels of std do the same, with 10 KiB of code for every kind of item.
#[derive(Debug)]
pub struct Queue<T> {
    queued: Mutex<Queued<T>>,
    more: Condvar,
}

#[derive(Debug)]
struct Queued<T> {
    items: VecDeque<T>,
    /// Threads that wait for an item. Without any, an item costs no system call.
    waiting: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let queued = Queued { items: VecDeque::new(), waiting: 0 };
        Self { queued: Mutex::new(queued), more: Condvar::new() }
    }
}

impl<T> Queue<T> {
    /// Puts `item` in, and wakes a thread that waits, if there is one.
    pub fn put(&self, item: T) {
        let mut queued = lock(&self.queued);
        queued.items.push_back(item);
        let wanted = queued.waiting > 0;
        drop(queued);
        if wanted {
            self.more.notify_one();
        }
    }

    /// Takes the first item out, or `None` if there is none until then; without `until` waits for
    /// ever.
    pub fn take(&self, until: Option<Instant>) -> Option<T> {
        let mut queued = lock(&self.queued);
        loop {
            if let Some(item) = queued.items.pop_front() {
                return Some(item);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
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
