//! Resolves names under a deadline, on a bounded pool of threads.
//!
//! getaddrinfo cannot be cancelled, so it runs on a thread of the pool, and a session that waits
//! for it can give up. Simultaneous requests for one name share a look-up. One client may occupy at
//! most a quarter of the pool: names whose servers never answer cannot starve other clients.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::counts::Counts;
use crate::net::ClientKey;
use crate::sync::lock;
use crate::wait::{Promise, Wait, WaitError};

/// The time after which an idle thread of the pool ends.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// The most names one client may wait for. Each takes memory, and time to be skipped in the queue
/// while the client's share is used up.
const WAITING_MAX: u64 = 512;

/// Why a name has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveError {
    /// It is no valid host name.
    Invalid,
    /// The system found no address.
    NotFound,
    /// The deadline passed.
    TimedOut,
    /// The client already waits for too many names.
    TooMany,
    /// No thread could be started.
    NoThread,
}

/// The result of a look-up: at least one address, without duplicates, in the system's order
/// (RFC 6724).
pub type Resolved = Result<Arc<[IpAddr]>, ResolveError>;

/// The pool of threads and its queue.
pub struct Resolver {
    inner: Arc<Inner>,
}

struct Inner {
    /// The most threads at once.
    max: usize,
    /// The most look-ups of one client at once.
    max_per_client: u64,
    state: Mutex<ResolverState>,
    changed: Condvar,
}

#[derive(Default)]
struct ResolverState {
    /// The names to look up, oldest first. Each is also in `lookups`.
    queue: VecDeque<Vec<u8>>,
    /// The names being looked up or queued for it, each with its waiters.
    lookups: HashMap<Vec<u8>, Vec<Waiter>>,
    /// The number of running look-ups of each client.
    running: Counts<ClientKey>,
    /// The number of waiters of each client, in all of `lookups`.
    waiting: Counts<ClientKey>,
    threads: usize,
    idle: usize,
    last_ticket: u64,
}

struct Waiter {
    ticket: u64,
    client: ClientKey,
    deadline: Instant,
    done: Box<dyn FnOnce(Resolved) + Send>,
}

impl Resolver {
    /// A pool of at most `max` threads, which start on demand.
    #[must_use]
    pub fn new(max: usize) -> Self {
        let inner = Inner {
            max,
            max_per_client: u64::try_from(max / 4).unwrap_or(u64::MAX).max(1),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The number of names being looked up or queued for it.
    #[must_use]
    pub fn waiting(&self) -> usize {
        lock(&self.inner.state).lookups.len()
    }

    /// Resolves `name` for `client`, within the bounds of
    /// `wait`.
    ///
    /// # Errors
    /// Every [`WaitError`].
    pub fn resolve(
        &self,
        client: ClientKey,
        name: &[u8],
        wait: &Wait<'_>,
    ) -> Result<Resolved, WaitError> {
        let promise = Arc::new(Promise::new()?);
        let answer = Arc::clone(&promise);
        let done = move |resolved| answer.set(resolved);
        let ticket = self.request(client, name, wait.deadline, done);
        wait.for_promise(&promise).inspect_err(|_| self.cancel(client, name, ticket))
    }

    /// Resolves `name` for `client` and calls `done` with the result, here or on a thread of the
    /// pool; it must not block. After `deadline` `done` may be dropped without a call. Returns the
    /// number of the request, its ticket.
    pub fn request(
        &self,
        client: ClientKey,
        name: &[u8],
        deadline: Instant,
        done: impl FnOnce(Resolved) + Send + 'static,
    ) -> u64 {
        let Some(name) = host_name(name) else {
            done(Err(ResolveError::Invalid));
            return 0;
        };
        let mut state = lock(&self.inner.state);
        if state.waiting.of(&client) >= WAITING_MAX {
            drop(state);
            done(Err(ResolveError::TooMany));
            return 0;
        }
        state.waiting.add(client);
        state.last_ticket += 1;
        let ticket = state.last_ticket;
        let waiter = Waiter { ticket, client, deadline, done: Box::new(done) };
        match state.lookups.get_mut(&name) {
            // A queued name may wait for another client's share while this client's is free.
            Some(waiters) => waiters.push(waiter),
            None => {
                state.lookups.insert(name.clone(), vec![waiter]);
                state.queue.push_back(name);
            }
        }
        if state.queue.len() > state.idle && state.threads < self.inner.max {
            let inner = Arc::clone(&self.inner);
            let spawned =
                thread::Builder::new().name("resolver".into()).spawn(move || inner.run_thread());
            match spawned {
                Ok(_) => state.threads += 1,
                // One of the threads that there are will come to it.
                Err(_) if state.threads > 0 => {}
                Err(_) => {
                    state.queue.clear();
                    let lookups = std::mem::take(&mut state.lookups);
                    state.waiting = Counts::default();
                    drop(state);
                    for waiter in lookups.into_values().flatten() {
                        (waiter.done)(Err(ResolveError::NoThread));
                    }
                    return ticket;
                }
            }
        }
        self.inner.changed.notify_one();
        ticket
    }

    /// Cancels a request whose client no longer waits. A running look-up goes on and stays in the
    /// client's share, since getaddrinfo cannot be cancelled.
    fn cancel(&self, client: ClientKey, name: &[u8], ticket: u64) {
        let Some(name) = host_name(name) else { return };
        let mut state = lock(&self.inner.state);
        let ResolverState { queue, lookups, waiting, .. } = &mut *state;
        let Some(waiters) = lookups.get_mut(&name) else { return };
        if let Some(index) = waiters.iter().position(|waiter| waiter.ticket == ticket) {
            waiters.remove(index);
            waiting.remove(client);
        }
        if waiters.is_empty()
            && let Some(index) = queue.iter().position(|queued| *queued == name)
        {
            queue.remove(index);
            lookups.remove(&name);
        }
    }
}

impl Inner {
    /// Runs one thread of the pool.
    fn run_thread(&self) {
        while let Some((name, client)) = self.next() {
            let resolved = look_up(&name);
            let mut state = lock(&self.state);
            state.running.remove(client);
            let waiters = state.lookups.remove(&name).unwrap_or_default();
            for waiter in &waiters {
                state.waiting.remove(waiter.client);
            }
            drop(state);
            // Another name of the client may now be looked up.
            self.changed.notify_one();
            for waiter in waiters {
                (waiter.done)(resolved.clone());
            }
        }
    }

    /// Waits for a name that may be looked up now and takes the oldest, with the client whose share
    /// it uses; `None` after [`IDLE_MAX`] without one.
    fn next(&self) -> Option<(Vec<u8>, ClientKey)> {
        let mut state = lock(&self.state);
        let until = Instant::now() + IDLE_MAX;
        loop {
            if let Some(next) = state.take(self.max_per_client) {
                return Some(next);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.threads -= 1;
                return None;
            }
            state.idle += 1;
            (state, _) =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

impl ResolverState {
    /// Takes the oldest name with a waiter whose client has some share left, and returns it with
    /// that client. Drops waiters past their deadline, and names without waiters.
    fn take(&mut self, max_per_client: u64) -> Option<(Vec<u8>, ClientKey)> {
        let now = Instant::now();
        let Self { queue, lookups, running, waiting, .. } = self;
        let mut index = 0;
        while let Some(name) = queue.get(index) {
            let waiters = lookups.get_mut(name)?;
            waiters.retain(|waiter| {
                let in_time = waiter.deadline > now;
                if !in_time {
                    waiting.remove(waiter.client);
                }
                in_time
            });
            let mut clients = waiters.iter().map(|waiter| waiter.client);
            if let Some(client) = clients.find(|&client| running.of(&client) < max_per_client) {
                running.add(client);
                return Some((queue.remove(index)?, client));
            }
            if waiters.is_empty() {
                lookups.remove(name);
                queue.remove(index);
            } else {
                index += 1;
            }
        }
        None
    }
}

/// The host name to look up: in lower case, without its trailing dot. `None` unless every label is
/// a non-empty string of letters, digits, hyphens and underscores: no NUL, bracket, scope or
/// control octet reaches the C library, nor a second trailing dot, which it ignores but rules do
/// not.
pub fn host_name(name: &[u8]) -> Option<Vec<u8>> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let is_valid = |octet: &u8| octet.is_ascii_alphanumeric() || b"-_".contains(octet);
    let is_label = |label: &[u8]| !label.is_empty() && label.iter().all(is_valid);
    name.split(|&octet| octet == b'.').all(is_label).then(|| name.to_ascii_lowercase())
}

fn look_up(name: &[u8]) -> Resolved {
    let name = str::from_utf8(name).map_err(|_| ResolveError::Invalid)?;
    let found = (name, 0).to_socket_addrs().map_err(|_| ResolveError::NotFound)?;
    let mut ips: Vec<IpAddr> = Vec::new();
    for ip in found.map(|addr| addr.ip().to_canonical()) {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    if ips.is_empty() { Err(ResolveError::NotFound) } else { Ok(ips.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::wait::testing::Scene;

    fn client(n: u8) -> ClientKey {
        ClientKey::of(Some([192, 0, 2, n].into()))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn resolve(resolver: &Resolver, name: &[u8]) -> Resolved {
        resolver.resolve(client(0), name, &Scene::new().wait(10_000)).unwrap()
    }

    #[test]
    fn localhost_resolves_in_any_case_and_with_a_trailing_dot() {
        let resolver = Resolver::new(1);
        for name in [&b"localhost"[..], b"LOCALHOST", b"localhost."] {
            let ips = resolve(&resolver, name).unwrap();
            assert!(ips.iter().all(IpAddr::is_loopback), "{ips:?}");
        }
    }

    #[test]
    fn sec_17_an_invalid_host_name_is_not_looked_up() {
        let resolver = Resolver::new(1);
        let long = [b'a'; 255];
        for name in [
            &b""[..],
            b".",
            // The C library ignores the last dot as well, and so would bypass rules for the name.
            b"localhost..",
            b".localhost",
            b"a..localhost",
            b"localhost\0.example",
            b"[::1]",
            b"::1%lo",
            b"a b",
            b"a\nb",
            b"\xc3\xa4",
            b"a/b",
            b"a:1",
        ] {
            assert_eq!(resolve(&resolver, name), Err(ResolveError::Invalid));
        }
        assert_eq!(resolve(&resolver, &long), Err(ResolveError::NotFound));
        assert_eq!(lock(&resolver.inner.state).threads, 1);
    }

    fn waiter(client: ClientKey, deadline: Instant) -> Waiter {
        Waiter { ticket: 0, client, deadline, done: Box::new(drop) }
    }

    #[test]
    fn sec_10_one_client_gets_no_more_than_its_share() {
        let mut state = ResolverState::default();
        let other = client(1);
        for (name, client) in
            [(b"a", client(0)), (b"b", client(0)), (b"c", client(0)), (b"d", other)]
        {
            state.lookups.insert(name.to_vec(), vec![waiter(client, soon())]);
            state.queue.push_back(name.to_vec());
        }
        let taken: Vec<_> = std::iter::from_fn(|| state.take(2)).map(|(name, _)| name).collect();
        assert_eq!(taken, [b"a", b"b", b"d"]);
        // Another client may spend its own share on what the first one has to wait for.
        state.lookups.get_mut(&b"c"[..]).unwrap().push(waiter(other, soon()));
        assert_eq!(state.take(2), Some((b"c".to_vec(), other)));
        assert_eq!(state.running.of(&other), 2);
    }

    #[test]
    fn a_name_without_waiters_in_time_is_not_looked_up() {
        let mut state = ResolverState::default();
        state.lookups.insert(b"late".to_vec(), vec![waiter(client(0), Instant::now())]);
        state.queue.push_back(b"late".to_vec());
        assert!(state.take(1).is_none());
        assert!(state.lookups.is_empty() && state.queue.is_empty());
    }

    #[test]
    fn sec_10_one_client_has_a_bounded_number_of_names_waiting() {
        let resolver = Resolver::new(4);
        let other = client(1);
        {
            // The client's share is used up for good, so that none of its names is looked up.
            let mut state = lock(&resolver.inner.state);
            for _ in 0..resolver.inner.max_per_client {
                state.running.add(client(0));
            }
        }
        let (tx, answers) = std::sync::mpsc::channel();
        for n in 0..=WAITING_MAX {
            let tx = tx.clone();
            let name = format!("waits-{n}");
            resolver.request(client(0), name.as_bytes(), soon(), move |resolved| {
                let _ = tx.send((n, resolved));
            });
        }
        assert_eq!(
            answers.recv_timeout(Duration::from_secs(5)).unwrap(),
            (WAITING_MAX, Err(ResolveError::TooMany))
        );
        let scene = Scene::new();
        assert!(resolver.resolve(other, b"localhost", &scene.wait(10_000)).unwrap().is_ok());
        let state = lock(&resolver.inner.state);
        assert_eq!((state.waiting.of(&client(0)), state.waiting.of(&other)), (WAITING_MAX, 0));
        assert_eq!(u64::try_from(state.lookups.len()).unwrap(), WAITING_MAX);
    }

    #[test]
    fn a_waiter_past_its_deadline_makes_room_for_another() {
        let mut state = ResolverState::default();
        state.lookups.insert(b"late".to_vec(), vec![waiter(client(0), Instant::now())]);
        state.queue.push_back(b"late".to_vec());
        state.waiting.add(client(0));
        assert!(state.take(1).is_none());
        assert_eq!(state.waiting.of(&client(0)), 0);
    }

    #[test]
    fn the_requests_of_a_client_that_leaves_are_cancelled() {
        let resolver = Resolver::new(4);
        let leave = |name: &[u8]| {
            let mut scene = Scene::new();
            scene.reset();
            let resolved = resolver.resolve(client(0), name, &scene.wait(60_000));
            assert!(matches!(resolved, Err(WaitError::ClientGone)), "{resolved:?}");
        };
        // The client's share is used up by one name; the others wait in the queue.
        lock(&resolver.inner.state).running.add(client(0));
        lock(&resolver.inner.state).lookups.insert(b"runs.example".to_vec(), Vec::new());
        for name in ["runs.example", "waits.example", "Waits.Example.", "other.example"] {
            leave(name.as_bytes());
        }
        let state = lock(&resolver.inner.state);
        assert_eq!((state.waiting.of(&client(0)), state.running.of(&client(0))), (0, 1));
        assert!(state.queue.is_empty());
        assert_eq!(state.lookups.keys().collect::<Vec<_>>(), [b"runs.example"]);
    }

    #[test]
    fn threads_are_bounded_and_every_name_is_resolved() {
        let resolver = Arc::new(Resolver::new(2));
        let askers: Vec<_> = (0..50)
            .map(|n: u8| {
                let resolver = Arc::clone(&resolver);
                thread::spawn(move || {
                    let name = format!("127.0.{n}.1.");
                    let scene = Scene::new();
                    let client = client(n);
                    resolver.resolve(client, name.as_bytes(), &scene.wait(10_000)).unwrap()
                })
            })
            .collect();
        for (asker, n) in askers.into_iter().zip(0..) {
            assert_eq!(asker.join().unwrap().unwrap()[..], [IpAddr::from([127, 0, n, 1])]);
        }
        let state = lock(&resolver.inner.state);
        assert!(state.threads <= 2);
        assert!(state.lookups.is_empty() && state.running.is_empty() && state.waiting.is_empty());
    }
}
