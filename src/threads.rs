//! A cache of threads: one that has finished its work waits a little for the next piece.
//!
//! Starting a thread is the dearest part of a short session. Nothing here bounds how many threads
//! there are; there are few beside those of sessions, who hold a slot each.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::sync::{Queue, lock};
use crate::sys;

/// Octets of stack of a thread of the cache. Decoders, the pump and crypt_r run here; getaddrinfo,
/// the deepest caller known, does not. Only pages that are touched cost memory.
const STACK: usize = 128 * 1024;

/// How long a thread without work stays.
const STAY: Duration = Duration::from_secs(5);

/// How long many threads may take to end.
const WAY_OUT: Duration = Duration::from_secs(3);

/// Threads that were without work at once whose memory is worth giving back.
const MANY: usize = 64;

type Task = Box<dyn FnOnce() + Send>;

/// The cache. Cheap to clone; all clones are one cache.
#[derive(Clone, Default)]
pub struct Threads {
    /// Slots of the threads without work; the one that came last is handed out first, while its
    /// stack is still warm.
    idle: Arc<Mutex<Vec<Arc<Queue<Task>>>>>,
}

/// A thread reserved for one piece of work. Dropping it unused gives it back.
pub struct Reserved {
    threads: Threads,
    slot: Option<Arc<Queue<Task>>>,
}

impl Threads {
    /// Takes a waiting thread, or starts one.
    ///
    /// # Errors
    /// EAGAIN where the system gives no more threads.
    pub fn reserve(&self) -> io::Result<Reserved> {
        let waiting = lock(&self.idle).pop();
        let slot = match waiting {
            Some(slot) => slot,
            None => {
                let slot = Arc::new(Queue::default());
                let (threads, own) = (self.clone(), Arc::clone(&slot));
                sys::pthread_create(STACK, Box::new(move || threads.serve(&own)))?;
                slot
            }
        };
        Ok(Reserved { threads: self.clone(), slot: Some(slot) })
    }

    /// The life of one thread.
    fn serve(&self, slot: &Arc<Queue<Task>>) {
        while let Some(work) = self.next(slot) {
            // The panic hook has told of it; this thread is as good as before.
            let _ = catch_unwind(AssertUnwindSafe(work));
            lock(&self.idle).push(Arc::clone(slot));
        }
    }

    fn next(&self, slot: &Arc<Queue<Task>>) -> Option<Task> {
        loop {
            let work = slot.take(Some(Instant::now() + STAY));
            if work.is_some() {
                return work;
            }
            let mut idle = lock(&self.idle);
            // Else somebody has reserved this thread: its work is on the way.
            if let Some(index) = idle.iter().position(|other| Arc::ptr_eq(other, slot)) {
                idle.remove(index);
                // There were many: what they had is of no more use either.
                if idle.capacity() > MANY && idle.len() < idle.capacity() / 8 {
                    idle.shrink_to_fit();
                    drop(idle);
                    // They are still on their way out.
                    thread::sleep(WAY_OUT);
                    sys::malloc_trim();
                }
                return None;
            }
        }
    }
}

impl Reserved {
    /// Gives the thread its work.
    pub fn run(mut self, work: impl FnOnce() + Send + 'static) {
        if let Some(slot) = self.slot.take() {
            slot.put(Box::new(work));
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            lock(&self.threads.idle).push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn run(threads: &Threads) -> thread::ThreadId {
        let (tx, rx) = mpsc::channel();
        threads.reserve().unwrap().run(move || tx.send(thread::current().id()).unwrap());
        rx.recv_timeout(Duration::from_secs(5)).unwrap()
    }

    fn wait_for_idle(threads: &Threads, count: usize) {
        let until = Instant::now() + Duration::from_secs(5);
        while lock(&threads.idle).len() != count {
            assert!(Instant::now() < until);
            thread::yield_now();
        }
    }

    #[test]
    fn a_finished_thread_takes_the_next_piece_of_work() {
        let threads = Threads::default();
        let first = run(&threads);
        wait_for_idle(&threads, 1);
        assert_eq!(run(&threads), first);
    }

    #[test]
    fn a_panic_ends_neither_the_thread_nor_the_cache() {
        let threads = Threads::default();
        threads.reserve().unwrap().run(|| panic!("on purpose"));
        wait_for_idle(&threads, 1);
        run(&threads);
    }

    #[test]
    fn what_many_threads_had_is_given_back_while_some_have_work() {
        let threads = Threads::default();
        let many: Vec<_> = (0..2 * MANY).map(|_| threads.reserve().unwrap()).collect();
        drop(many);
        assert!(lock(&threads.idle).capacity() > MANY);
        let until = Instant::now() + 3 * STAY;
        while lock(&threads.idle).capacity() > MANY {
            assert!(Instant::now() < until);
            // There is always one without work.
            run(&threads);
            thread::sleep(Duration::from_millis(50));
        }
    }

    #[test]
    fn an_unused_reservation_gives_the_thread_back() {
        let threads = Threads::default();
        drop(threads.reserve().unwrap());
        assert_eq!(lock(&threads.idle).len(), 1);
        run(&threads);
    }
}
