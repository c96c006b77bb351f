//! What a session relays: octets pass unread and unchanged until both sides are done.
//!
//! One thread passes the first few octets of both directions, and many sessions have no more. Then
//! each direction has a thread of its own, which copies little through its stack, more through a
//! buffer, and has much moved by the kernel.
//!
//! Each direction ends by itself: the end of input of one side becomes a shutdown of the other's,
//! and the opposite direction goes on. A reset becomes a reset. The relay takes the client by
//! value, so that nothing else can write into the tunnel. A [`Stopper`] ends it from outside.

mod direction;
pub mod pool;
pub mod rate;
pub mod udp;

use std::io::Read as _;
use std::mem;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::relay::direction::{Direction, Stop};
use crate::relay::pool::Pool;
use crate::relay::rate::Rate;
use crate::sync::lock;
use crate::sys::{self, PollFd};
use crate::threads::Reserved;

/// Octets that are read at once while nothing tells that there may be more to come.
const SMALL: usize = 1536;

/// Pieces, none larger than that, that pass before a session puts its second thread to work.
const FIRST_PIECES: u32 = 8;

/// How long none of them comes before it does so all the same.
const FIRST_QUIET: Duration = Duration::from_secs(10);

/// How long a thread may take to notice that its sockets have been shut for reading.
const NOTICE: Duration = Duration::from_millis(100);

/// How often the side that has closed is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Seconds without traffic before keepalive probes begin, seconds between them, and how many may
/// go unanswered: a dead peer is found within three minutes.
const KEEPALIVE: (i32, i32, i32) = (60, 20, 6);

/// Limits of a relay.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long neither side may send anything; `None` for ever. Time spent waiting for a rate
    /// does not count.
    pub idle: Option<Duration>,
    /// The same once one side has closed.
    pub linger: Duration,
    /// Each of these rates is kept to. Without any, octets pass as fast as they can.
    pub rates: Vec<Arc<Rate>>,
}

/// What a session has relayed, or several together.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Octets from the client to the target.
    pub up: AtomicU64,
    /// Octets from the target to the client.
    pub down: AtomicU64,
    /// Datagrams from the client to targets.
    pub datagrams_up: AtomicU64,
    /// Datagrams from targets to the client.
    pub datagrams_down: AtomicU64,
    /// Datagrams and fragments dropped, for each of [`Dropped::ALL`].
    dropped: [AtomicU64; Dropped::ALL.len()],
}

impl Traffic {
    /// Counts datagrams that were not relayed.
    pub fn drop_datagrams(&self, cause: Dropped, count: u64) {
        let mut counts = Dropped::ALL.iter().zip(&self.dropped);
        if let Some((_, dropped)) = counts.find(|(other, _)| **other == cause) {
            dropped.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// How many datagrams were not relayed for each cause.
    pub fn dropped(&self) -> impl Iterator<Item = (Dropped, u64)> {
        let counts = self.dropped.iter().map(|count| count.load(Ordering::Relaxed));
        Dropped::ALL.into_iter().zip(counts)
    }

    /// Adds what others have relayed.
    pub fn add(&self, other: &Self) {
        for (sum, count) in self.counts().zip(other.counts()) {
            sum.fetch_add(count.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn counts(&self) -> impl Iterator<Item = &AtomicU64> {
        let Self { up, down, datagrams_up, datagrams_down, dropped } = self;
        [up, down, datagrams_up, datagrams_down].into_iter().chain(dropped)
    }
}

/// Why a datagram was not relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// It came to the client's socket from somebody else.
    Sender,
    /// It has no header that can be read.
    Header,
    /// It is part of a sequence that did not become whole, or fragments are not served.
    Fragment,
    /// The rules do not let it pass, or its family is not served.
    Denied,
    /// Its name was not resolved, or too many wait for that.
    Name,
    /// It was beyond a rate.
    Rate,
    /// It could not be sent.
    Send,
}

impl Dropped {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Sender,
        Self::Header,
        Self::Fragment,
        Self::Denied,
        Self::Name,
        Self::Rate,
        Self::Send,
    ];

    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Sender => "sender",
            Self::Header => "header",
            Self::Fragment => "fragment",
            Self::Denied => "denied",
            Self::Name => "name",
            Self::Rate => "rate",
            Self::Send => "send",
        }
    }
}

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who connected to this server.
    Client,
    /// Whom this server connected to, or who connected to a BIND.
    Target,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Target,
            Self::Target => Self::Client,
        }
    }
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// This side closed first.
    Closed(Side),
    /// This side reset the connection.
    Reset(Side),
    /// This side stopped answering.
    Lost(Side),
    /// Nothing passed for the idle limit.
    Idle,
    /// Nothing passed for the linger limit after one side had closed.
    Linger,
    /// The rules or the users no longer allow it.
    Revoked,
    /// The server ends.
    Stopped,
    /// A fault in this server.
    Internal,
}

impl End {
    /// The word of the log.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Closed(Side::Client) => "client",
            Self::Closed(Side::Target) => "target",
            Self::Reset(Side::Client) => "client-reset",
            Self::Reset(Side::Target) => "target-reset",
            Self::Lost(Side::Client) => "client-lost",
            Self::Lost(Side::Target) => "target-lost",
            Self::Idle => "idle",
            Self::Linger => "linger",
            Self::Revoked => "revoked",
            Self::Stopped => "stopped",
            Self::Internal => "internal",
        }
    }
}

/// Ends a relay of octets or datagrams from another thread. All clones are one, for one relay.
#[derive(Clone, Default)]
pub struct Stopper(Arc<Mutex<Stopping>>);

#[derive(Default)]
struct Stopping {
    /// What the relay is to end with.
    end: Option<End>,
    /// Ends the relay, once there is one.
    abort: Option<Box<dyn Fn(End) + Send>>,
}

impl Stopper {
    /// Ends the relay with `end` now, or as soon as it begins; one that is over stays as it is. The
    /// first call counts. Does not wait for the relay, but for an instant where the end is a reset.
    pub fn stop(&self, end: End) {
        let mut stopping = lock(&self.0);
        stopping.end.get_or_insert(end);
        stopping.act();
    }

    /// Gives the relay that is about to begin. `abort` must not keep its sockets open.
    fn attach(&self, abort: impl Fn(End) + Send + 'static) {
        let mut stopping = lock(&self.0);
        stopping.abort = Some(Box::new(abort));
        stopping.act();
    }

    /// What the relay has been told to end with.
    fn end(&self) -> Option<End> {
        lock(&self.0).end
    }
}

impl Stopping {
    fn act(&self) {
        if let (Some(end), Some(abort)) = (self.end, &self.abort) {
            abort(end);
        }
    }
}

/// Prepares the client's leg for relaying: small writes leave at once, an urgent octet stays in its
/// place, and a dead peer is found. What is accepted by a listener that is prepared is so itself.
pub fn prepare(leg: &impl AsFd) {
    // Nice to have on all counts; a leg that is already gone will tell when it is used.
    let _ = sys::set_nodelay(leg);
    let _ = sys::set_oobinline(leg);
    keep_alive(leg);
}

fn keep_alive(leg: &impl AsFd) {
    let (idle, interval, count) = KEEPALIVE;
    let _ = sys::set_keepalive(leg, idle, interval, count);
}

/// A session about to be relayed.
pub struct Tunnel {
    /// The client.
    pub client: TcpStream,
    /// What the client has sent behind its request.
    pub leftover: Vec<u8>,
    /// The target.
    pub target: TcpStream,
    /// Copies one direction, if there is more than a short exchange.
    pub helper: Reserved,
    /// What it is to keep to.
    pub limits: Limits,
    /// Counts what passes.
    pub traffic: Arc<Traffic>,
    /// Can end it earlier.
    pub stopper: Stopper,
    /// Is told of the end, when all is over and both sockets are closed.
    pub done: Box<dyn FnOnce(End) + Send>,
}

/// What all relays share. All clones are one.
#[derive(Clone)]
pub struct Relays {
    pool: Arc<Pool>,
    lingering: Arc<Mutex<Lingering>>,
}

/// The relays of which one side has closed, each with that side.
#[derive(Default)]
struct Lingering {
    relays: Vec<(Weak<Shared>, Side)>,
    /// Held by the [`Watcher`], if there is one.
    watched: Weak<()>,
}

/// Whose thread is to look at all that linger, once it has nothing else to do.
struct Watcher {
    relays: Relays,
    watching: Arc<()>,
}

impl Relays {
    /// No relay yet. So many directions at most can splice(2) at the same time; others copy.
    #[must_use]
    pub fn new(pipes: usize) -> Self {
        Self { pool: Arc::new(Pool::new(pipes)), lingering: Arc::default() }
    }

    /// Relays until both directions have ended. One may go on in the helper after this returns, and
    /// this may return later, as somebody has to look at relays of which one side has closed.
    /// Whichever thread is last tells that all is done.
    // The frames of whoever has prepared the tunnel do not lie above those that stay.
    #[inline(never)]
    pub fn run(&self, tunnel: Tunnel) {
        let Tunnel { client, leftover, target, helper, limits, traffic, stopper, done } = tunnel;
        let _ = sys::set_nodelay(&target);
        let _ = sys::set_oobinline(&target);
        let state = State {
            end: None,
            ended: 0,
            lingers: false,
            aborted: false,
            shut: None,
            done: Some(done),
        };
        let shared = Arc::new(Shared {
            client,
            target,
            limits,
            relays: self.clone(),
            traffic,
            begun: Instant::now(),
            active: AtomicU64::new(0),
            changed: Condvar::new(),
            state: Mutex::new(state),
        });
        let stopped = Arc::downgrade(&shared);
        stopper.attach(move |end| {
            if let Some(shared) = stopped.upgrade() {
                shared.abort(end);
            }
        });
        let direction = |from| Direction { shared: Arc::clone(&shared), from };
        let mut octets = [0; SMALL];
        // Waiting for a rate must not hold up the other direction.
        let first = if shared.limits.rates.is_empty() {
            first(&direction(Side::Client), &direction(Side::Target), &leftover, &mut octets)
        } else {
            First::More(Side::Client, leftover)
        };
        // Worth their system calls for who stays.
        if let First::More(..) = first {
            keep_alive(&shared.target);
            sys::madvise_unused_stack();
        }
        if let Some(idle) = shared.limits.idle {
            // Who has used up all of it is found out by the first read.
            let left = shared.left(idle).unwrap_or(Duration::from_millis(1));
            for leg in [&shared.client, &shared.target] {
                // A leg that is gone will tell when it is used.
                let _ = leg.set_read_timeout(Some(left));
                let _ = leg.set_write_timeout(Some(idle));
            }
        }
        let watcher = match first {
            First::More(from, unsent) => {
                let other = direction(from.other());
                helper.run(move || Watcher::watch(other.run(&[], &mut [0; SMALL])));
                direction(from).run(&unsent, &mut octets)
            }
            First::Ended(from, Stop::EndOfInput) => {
                match direction(from).end(Stop::EndOfInput) {
                    None => drop(helper),
                    watcher => helper.run(move || Watcher::watch(watcher)),
                }
                // This direction may take long.
                direction(from.other()).run(&[], &mut octets)
            }
            First::Ended(from, stop) => {
                // The other direction has not begun and does not have to.
                lock(&shared.state).ended += 1;
                direction(from).end(stop)
            }
        };
        drop(shared);
        Watcher::watch(watcher);
    }

    /// Has the relay, of which this side has closed, watched; by whom, if nobody watches yet.
    fn linger(&self, relay: Weak<Shared>, closed: Side) -> Option<Watcher> {
        let mut lingering = lock(&self.lingering);
        lingering.relays.push((relay, closed));
        if lingering.watched.strong_count() > 0 {
            return None;
        }
        let watching = Arc::new(());
        lingering.watched = Arc::downgrade(&watching);
        Some(Watcher { relays: self.clone(), watching })
    }
}

impl Watcher {
    /// Looks at all that linger, as long as there are any, if somebody is to.
    fn watch(watcher: Option<Self>) {
        let Some(Self { relays: Relays { lingering, .. }, watching }) = watcher else { return };
        loop {
            thread::sleep(LOOK_EVERY);
            // Ending one may take an instant.
            let relays = mem::take(&mut lock(&lingering).relays);
            let still = relays.into_iter().filter(|(relay, closed)| {
                relay.upgrade().is_some_and(|shared| shared.lingers(*closed))
            });
            let still: Vec<_> = still.collect();
            let mut lingering = lock(&lingering);
            lingering.relays.extend(still);
            if lingering.relays.is_empty() {
                // Whoever comes next finds no watcher, and not one about to leave.
                drop(watching);
                return;
            }
        }
    }
}

/// A relay. Whoever lets go of it last closes both sockets and tells that it is done.
struct Shared {
    client: TcpStream,
    target: TcpStream,
    limits: Limits,
    relays: Relays,
    traffic: Arc<Traffic>,
    begun: Instant,
    /// Milliseconds from `begun` to the last octet that passed, or that is going to pass as soon as
    /// the rates let it.
    active: AtomicU64,
    changed: Condvar,
    /// Is dropped last.
    state: Mutex<State>,
}

struct State {
    /// What happened first.
    end: Option<End>,
    /// How many directions have ended.
    ended: u8,
    /// One side has closed, and the other was seen to stay.
    lingers: bool,
    /// Nothing more is to be relayed.
    aborted: bool,
    /// The side this server has sent the end of input to. Only then can its socket be closed
    /// without a reset.
    shut: Option<Side>,
    /// To be told at the end.
    done: Option<Box<dyn FnOnce(End) + Send>>,
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(self.end.unwrap_or(End::Internal));
        }
    }
}

impl Shared {
    fn leg(&self, side: Side) -> &TcpStream {
        match side {
            Side::Client => &self.client,
            Side::Target => &self.target,
        }
    }

    /// The session is not quiet before `wait` is over.
    fn touch(&self, wait: Duration) {
        let active = self.begun.elapsed().saturating_add(wait);
        let millis = u64::try_from(active.as_millis()).unwrap_or(u64::MAX);
        // The other direction may wait for longer.
        self.active.fetch_max(millis, Ordering::Relaxed);
    }

    /// How much of `limit` is left before the session has been quiet for that long.
    fn left(&self, limit: Duration) -> Option<Duration> {
        let active = Duration::from_millis(self.active.load(Ordering::Relaxed));
        let quiet = self.begun.elapsed().saturating_sub(active);
        limit.checked_sub(quiet).filter(|left| !left.is_zero())
    }

    /// Ends both directions now. With a reset the peers learn of it by a reset.
    fn abort(&self, end: End) {
        let mut state = lock(&self.state);
        if state.aborted {
            return;
        }
        state.end = Some(match (state.end, end) {
            // A side that closes while the other still sends answers that with a reset.
            (Some(closed @ End::Closed(side)), End::Reset(same) | End::Lost(same))
                if side == same =>
            {
                closed
            }
            // What ends the session behind the close of one side counts for more than the close.
            _ => end,
        });
        state.aborted = true;
        self.changed.notify_all();
        let legs = [&self.client, &self.target];
        if matches!(end, End::Reset(_) | End::Lost(_)) {
            for leg in legs {
                let _ = sys::set_linger_zero(leg);
            }
            // Shutting for reading wakes a reader without a word to the peer, which is to see the
            // reset of the close and not the end of input of a shutdown before it.
            for leg in legs {
                let _ = leg.shutdown(Shutdown::Read);
            }
            let others = |state: &mut State| state.ended < 2;
            (state, _) = self
                .changed
                .wait_timeout_while(state, NOTICE, others)
                .unwrap_or_else(PoisonError::into_inner);
            if state.ended == 2 {
                return;
            }
            // The other direction sits in a write to a peer that takes nothing, and that will not
            // see the end of input either.
        }
        for leg in legs {
            let _ = leg.shutdown(Shutdown::Both);
        }
    }

    /// Whether this side, which is read from, is gone: its socket is closed though this server has
    /// not ended its output. The error may have been given to the other direction, so that this one
    /// saw a mere end of input.
    fn is_reset(&self, side: Side) -> bool {
        let state = lock(&self.state);
        !state.aborted
            && state.shut != Some(side)
            && sys::is_tcp_closed(self.leg(side)).unwrap_or(false)
    }

    /// Whether one side has closed, and the other may not stay quiet for long.
    fn has_closed_side(&self) -> bool {
        lock(&self.state).ended > 0
    }

    /// Whether the relay, of which this side has closed, may go on: the other one must not stay
    /// quiet for ever, and the one that has closed still be there: nobody reads from it any more.
    fn lingers(&self, closed: Side) -> bool {
        let mut state = lock(&self.state);
        if state.ended == 2 {
            return false;
        }
        // It may have closed before there was any need of that.
        if !mem::replace(&mut state.lingers, true) {
            keep_alive(&self.target);
        }
        drop(state);
        if self.left(self.limits.linger).is_none() {
            self.abort(End::Linger);
        } else if self.is_reset(closed) {
            self.abort(End::Reset(closed));
        }
        !lock(&self.state).aborted
    }
}

/// What the first exchange came to.
enum First {
    /// There is more to come. The direction from this side has these octets still to write.
    More(Side, Vec<u8>),
    /// The direction from this side has ended.
    Ended(Side, Stop),
}

/// Passes the first few octets of both directions. Many sessions consist of nothing else, and need
/// not wake their second thread. Nothing is written here that would have to wait.
fn first(up: &Direction, down: &Direction, leftover: &[u8], octets: &mut [u8]) -> First {
    if let Some(first) = up.pass_now(leftover) {
        return first;
    }
    let Shared { client, target, limits, .. } = &*up.shared;
    for _ in 0..FIRST_PIECES {
        let mut fds = [PollFd::new(client, sys::POLLIN), PollFd::new(target, sys::POLLIN)];
        // Who is quiet for long, or whose poll fails, waits where the idle limit is kept.
        let quiet = limits.idle.unwrap_or(FIRST_QUIET).min(FIRST_QUIET);
        if !matches!(sys::poll(&mut fds, Some(quiet)), Ok(1..)) {
            break;
        }
        let ready = fds.map(|fd| fd.has(!0));
        for (way, ready) in [up, down].into_iter().zip(ready) {
            if !ready {
                continue;
            }
            let len = match way.received(way.shared.leg(way.from).read(octets)) {
                Ok(len) => len.unwrap_or_default(),
                Err(stop) => return First::Ended(way.from, stop),
            };
            if let Some(first) = way.pass_now(octets.get(..len).unwrap_or_default()) {
                return first;
            }
            if len == octets.len() {
                return First::More(way.from, Vec::new());
            }
        }
    }
    First::More(Side::Client, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::Threads;
    use std::io::Write as _;
    use std::net::TcpListener;
    use std::num::NonZeroU64;
    use std::sync::mpsc;
    use std::thread::JoinHandle;

    /// Far longer than anything here may take.
    const LONG: Duration = Duration::from_secs(60);

    /// At once, on a machine that has other things to do.
    const SOON: Duration = Duration::from_millis(500);

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        near.set_read_timeout(Some(LONG)).unwrap();
        (near, far)
    }

    /// A relay under way.
    struct Tunnel {
        client: TcpStream,
        target: TcpStream,
        traffic: Arc<Traffic>,
        stopper: Stopper,
        end: JoinHandle<End>,
    }

    impl Tunnel {
        /// Stops the relay and checks that both sides see an ordinary end soon.
        fn stop(mut self) {
            let begun = Instant::now();
            self.stopper.stop(End::Revoked);
            assert_eq!(self.end.join().unwrap(), End::Revoked);
            for side in [&mut self.client, &mut self.target] {
                side.read_to_end(&mut Vec::new()).unwrap();
            }
            assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        }
    }

    fn tunnel(leftover: &'static [u8], limits: Limits) -> Tunnel {
        tunnel_with(leftover, limits, Stopper::default())
    }

    fn tunnel_with(leftover: &'static [u8], limits: Limits, stopper: Stopper) -> Tunnel {
        let ((client, near), (target, far)) = (pair(), pair());
        let (traffic, threads) = (Arc::<Traffic>::default(), Threads::default());
        let helper = threads.reserve().unwrap();
        let end = thread::spawn({
            let (traffic, stopper) = (Arc::clone(&traffic), stopper.clone());
            let (client, leftover, target) = (near, leftover.to_vec(), far);
            let (tx, rx) = mpsc::channel();
            let done = Box::new(move |end| tx.send(end).unwrap());
            let tunnel =
                super::Tunnel { client, leftover, target, helper, limits, traffic, stopper, done };
            move || {
                Relays::new(2).run(tunnel);
                rx.recv().unwrap()
            }
        });
        Tunnel { client, target, traffic, stopper, end }
    }

    fn rate(octets_per_second: u64) -> Arc<Rate> {
        Arc::new(Rate::new(NonZeroU64::new(octets_per_second).unwrap()))
    }

    fn limits(rates: &[&Arc<Rate>]) -> Limits {
        let rates = rates.iter().map(|&rate| Arc::clone(rate)).collect();
        Limits { idle: None, linger: LONG, rates }
    }

    /// Sends `octets` over each of these connections, all at once, and waits for them to arrive.
    fn send_all(ways: &[(&TcpStream, &TcpStream)], octets: &[u8]) {
        thread::scope(|scope| {
            for &(mut from, mut to) in ways {
                scope.spawn(move || from.write_all(octets).unwrap());
                scope.spawn(move || {
                    let mut received = vec![0; octets.len()];
                    to.read_exact(&mut received).unwrap();
                    assert!(received == octets);
                });
            }
        });
    }

    /// Checks that `octets` at `rate`, but for a burst, took the time they have to.
    fn check(begun: Instant, octets: u32, rate: u32) {
        let (took, due) = (begun.elapsed(), Duration::from_secs(1) * (octets - rate / 10) / rate);
        assert!(took >= due && took < 3 * due, "{took:?} in place of {due:?}");
    }

    #[test]
    fn each_way_keeps_to_the_rate() {
        let session = tunnel(b"", limits(&[&rate(500_000)]));
        let (octets, begun) = (vec![7; 1 << 20], Instant::now());
        let (client, target) = (&session.client, &session.target);
        send_all(&[(client, target), (target, client)], &octets);
        check(begun, 1 << 20, 500_000);
    }

    #[test]
    fn sessions_of_one_rate_get_it_together() {
        let shared = rate(500_000);
        let sessions = [&rate(400_000), &rate(u64::MAX)].map(|own| {
            let limits = limits(&[own, &shared]);
            tunnel(b"", limits)
        });
        let begun = Instant::now();
        let [one, two] = &sessions;
        send_all(&[(&one.client, &one.target), (&two.client, &two.target)], &[7; 300_000]);
        check(begun, 600_000, 500_000);
    }

    #[test]
    fn what_came_with_the_request_keeps_to_the_rate_too() {
        let begun = Instant::now();
        let mut session = tunnel(&[7; 150], limits(&[&rate(100)]));
        let mut octets = [0; 150];
        session.target.read_exact(&mut octets[..10]).unwrap();
        session.target.read_exact(&mut octets[10..]).unwrap();
        assert_eq!(octets, [7; 150]);
        check(begun, 150, 100);
    }

    #[test]
    fn nothing_is_read_ahead_of_the_rate() {
        let session = tunnel(b"", limits(&[&rate(1)]));
        session.client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        while (&session.client).write(&[7; 65_536]).is_ok() {}
        assert!(session.traffic.up.load(Ordering::Relaxed) < 60);
    }

    #[test]
    fn waiting_for_the_rate_is_neither_idle_nor_lingering() {
        for half_closed in [false, true] {
            let limit = Duration::from_millis(300);
            let mut limits = limits(&[&rate(1)]);
            if half_closed {
                limits.linger = limit;
            } else {
                limits.idle = Some(limit);
            }
            let mut session = tunnel(b"", limits);
            if half_closed {
                session.target.shutdown(Shutdown::Write).unwrap();
            }
            session.client.write_all(b"xy").unwrap();
            let mut octets = Vec::new();
            session.target.read_to_end(&mut octets).unwrap();
            assert_eq!(octets, b"xy");
            let end = if half_closed { End::Linger } else { End::Idle };
            assert_eq!(session.end.join().unwrap(), end);
        }
    }

    /// Waits until the relay has passed some octets up.
    fn passed(session: &Tunnel, octets: u64) {
        while session.traffic.up.load(Ordering::Relaxed) < octets {
            thread::yield_now();
        }
    }

    #[test]
    fn a_stop_wakes_directions_that_read() {
        let mut session = tunnel(b"", limits(&[]));
        session.client.write_all(b"x").unwrap();
        passed(&session, 1);
        session.stop();
    }

    #[test]
    fn a_stop_wakes_a_direction_that_writes() {
        let mut session = tunnel(b"", limits(&[]));
        session.client.set_write_timeout(Some(SOON)).unwrap();
        while session.client.write(&[7; 65_536]).is_ok() {}
        let begun = Instant::now();
        session.stopper.stop(End::Revoked);
        assert_eq!(session.end.join().unwrap(), End::Revoked);
        assert!(begun.elapsed() < SOON);
    }

    #[test]
    fn a_stop_wakes_a_direction_that_waits_for_its_rate() {
        let session = tunnel(&[7; 1_000], limits(&[&rate(1)]));
        passed(&session, 1);
        session.stop();
    }

    #[test]
    fn a_stop_wakes_a_direction_that_lingers() {
        let mut session = tunnel(b"", limits(&[]));
        session.client.shutdown(Shutdown::Write).unwrap();
        session.target.read_to_end(&mut Vec::new()).unwrap();
        session.stop();
    }

    #[test]
    fn a_relay_stopped_before_it_begins_passes_nothing_and_ends_at_once() {
        let stopper = Stopper::default();
        stopper.stop(End::Revoked);
        stopper.stop(End::Internal);
        for rates in [&[][..], &[&rate(1)]] {
            let session = tunnel_with(b"leftover", limits(rates), stopper.clone());
            let traffic = Arc::clone(&session.traffic);
            session.stop();
            assert_eq!(traffic.up.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn a_stop_at_any_moment_ends_the_relay() {
        for delay in 0..100 {
            let session = tunnel(b"leftover", limits(&[]));
            thread::sleep(Duration::from_micros(5 * delay));
            session.stop();
        }
    }

    #[test]
    fn a_stop_after_the_end_does_nothing() {
        let session = tunnel(b"", limits(&[]));
        drop((session.client, session.target));
        let end = session.end.join().unwrap();
        assert!(matches!(end, End::Closed(_)), "{end:?}");
        session.stopper.stop(End::Revoked);
    }
}
