//! A cache of threads: a thread that has finished its work waits a while for more.
//!
//! Starting a thread is the most expensive part of a short session. Nothing here limits the number
//! of threads: nearly all of them serve sessions, and each session holds a slot.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::sync::{Queue, lock};
use crate::sys;

/// The stack of a thread, in bytes. Decoders, the UDP pump and crypt_r run on it; getaddrinfo,
/// which needs the most stack of all known callees, does not. Only pages in use cost memory.
const STACK: usize = 128 * 1024;

/// How long an idle thread waits for work before it ends.
const IDLE_TIME: Duration = Duration::from_secs(5);

/// How long threads may take to end after they left the cache.
const EXIT_TIME: Duration = Duration::from_secs(3);

/// The number of idle threads from which their memory is worth returning to the system.
const MANY: usize = 64;

type Task = Box<dyn FnOnce() + Send>;

/// The cache. It is cheap to clone; all clones share one cache.
#[derive(Clone, Default)]
pub struct Threads {
    /// The inboxes of the idle threads. The last one is reserved first: its stack is still warm.
    idle: Arc<Mutex<Vec<Arc<Queue<Task>>>>>,
}

/// A thread reserved for one piece of work. A drop without `run` returns it to the cache.
pub struct Reserved {
    threads: Threads,
    inbox: Option<Arc<Queue<Task>>>,
}

impl Threads {
    /// Reserves an idle thread, or starts one.
    ///
    /// # Errors
    /// EAGAIN if the system refuses another thread.
    pub fn reserve(&self) -> io::Result<Reserved> {
        let idle = lock(&self.idle).pop();
        let inbox = match idle {
            Some(inbox) => inbox,
            None => {
                let inbox = Arc::new(Queue::default());
                let (threads, own) = (self.clone(), Arc::clone(&inbox));
                sys::pthread_create(STACK, Box::new(move || threads.serve(&own)))?;
                inbox
            }
        };
        Ok(Reserved { threads: self.clone(), inbox: Some(inbox) })
    }

    /// The body of a thread.
    fn serve(&self, inbox: &Arc<Queue<Task>>) {
        while let Some(work) = self.next(inbox) {
            // The panic hook has logged it; the thread is still usable.
            let _ = catch_unwind(AssertUnwindSafe(work));
            lock(&self.idle).push(Arc::clone(inbox));
        }
    }

    fn next(&self, inbox: &Arc<Queue<Task>>) -> Option<Task> {
        loop {
            let work = inbox.take(Some(Instant::now() + IDLE_TIME));
            if work.is_some() {
                return work;
            }
            let mut idle = lock(&self.idle);
            // If it is absent, the thread has just been reserved, and work is on the way.
            if let Some(index) = idle.iter().position(|other| Arc::ptr_eq(other, inbox)) {
                idle.remove(index);
                // Most of many threads have ended: their memory is of no more use.
                if idle.capacity() > MANY && idle.len() < idle.capacity() / 8 {
                    idle.shrink_to_fit();
                    drop(idle);
                    // The others may still be ending.
                    thread::sleep(EXIT_TIME);
                    sys::malloc_trim();
                }
                return None;
            }
        }
    }
}

impl Reserved {
    /// Runs `work` on the thread.
    pub fn run(mut self, work: impl FnOnce() + Send + 'static) {
        if let Some(inbox) = self.inbox.take() {
            inbox.put(Box::new(work));
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(inbox) = self.inbox.take() {
            lock(&self.threads.idle).push(inbox);
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
    fn the_memory_of_many_threads_is_returned_while_some_have_work() {
        let threads = Threads::default();
        let many: Vec<_> = (0..2 * MANY).map(|_| threads.reserve().unwrap()).collect();
        drop(many);
        assert!(lock(&threads.idle).capacity() > MANY);
        let until = Instant::now() + 3 * IDLE_TIME;
        while lock(&threads.idle).capacity() > MANY {
            assert!(Instant::now() < until);
            // At least one thread is always idle.
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
