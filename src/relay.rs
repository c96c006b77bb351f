//! The two copy threads of a session: octets pass unread and unchanged until both sides are done.
//!
//! Each direction ends by itself: the end of input of one side becomes a shutdown of the other's,
//! and the opposite direction goes on. A reset becomes a reset. The relay takes the client by
//! value, so that nothing else can write into the tunnel. A [`Stopper`] ends it from outside.

pub mod rate;
pub mod udp;

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::relay::rate::Rate;
use crate::sys;
use crate::threads::{Reserved, lock};

/// Octets of the buffer of one direction.
const BUFFER: usize = 64 * 1024;

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

/// Prepares one leg for relaying: small writes leave at once, and a dead peer is found.
pub fn prepare(leg: &TcpStream) {
    let (idle, interval, count) = KEEPALIVE;
    // Nice to have on both counts; a leg that is already gone will tell when it is used.
    let _ = leg.set_nodelay(true);
    let _ = sys::set_keepalive(leg, idle, interval, count);
}

/// Relays between `client` and `target` until both directions have ended, beginning with
/// `leftover`, what the client sent behind its request. Both sockets are closed on return.
/// `helper` copies the direction from the target. `stopper` can end it earlier.
pub fn run(
    client: TcpStream,
    leftover: &[u8],
    target: TcpStream,
    helper: Reserved,
    limits: Limits,
    traffic: &Arc<Traffic>,
    stopper: &Stopper,
) -> End {
    let shared = Arc::new(Shared {
        client,
        target,
        limits,
        traffic: Arc::clone(traffic),
        begun: Instant::now(),
        active: AtomicU64::new(0),
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    if let Some(idle) = shared.limits.idle {
        for leg in [&shared.client, &shared.target] {
            // A leg that is gone will tell when it is used.
            let _ = leg.set_read_timeout(Some(idle));
            let _ = leg.set_write_timeout(Some(idle));
        }
    }
    let stopped = Arc::downgrade(&shared);
    stopper.attach(move |end| {
        if let Some(shared) = stopped.upgrade() {
            shared.abort(end);
        }
    });
    let (finished, finish) = mpsc::channel::<()>();
    let helpers = Arc::clone(&shared);
    helper.run(move || {
        Direction { shared: &helpers, from: Side::Target }.run(&[]);
        drop(helpers);
        drop(finished);
    });
    Direction { shared: &shared, from: Side::Client }.run(leftover);
    // Nothing is ever sent: this returns once the helper has let go of the sockets.
    let _ = finish.recv();
    let end = lock(&shared.state).end;
    end.unwrap_or(End::Internal)
}

struct Shared {
    client: TcpStream,
    target: TcpStream,
    limits: Limits,
    traffic: Arc<Traffic>,
    begun: Instant,
    /// Milliseconds from `begun` to the last octet that passed, or that is going to pass as soon as
    /// the rates let it.
    active: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What happened first.
    end: Option<End>,
    /// How many directions have ended.
    ended: u8,
    /// Nothing more is to be relayed.
    aborted: bool,
    /// The sides this server has sent the end of input to. Only then can their sockets be closed
    /// without a reset.
    shut: Vec<Side>,
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

    fn note(&self, end: End) {
        lock(&self.state).end.get_or_insert(end);
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
}

/// Marks a direction as ended when it is dropped, however that comes.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).ended += 1;
        self.0.changed.notify_all();
        if thread::panicking() {
            self.0.abort(End::Internal);
        }
    }
}

/// One direction of a relay.
struct Direction<'a> {
    shared: &'a Shared,
    from: Side,
}

/// Why a direction stopped copying.
enum Stop {
    /// End of input, carried to the other side.
    EndOfInput,
    /// An error of one side.
    Failed(Side, io::Error),
    /// The idle limit.
    Idle,
}

impl Direction<'_> {
    fn to(&self) -> Side {
        match self.from {
            Side::Client => Side::Target,
            Side::Target => Side::Client,
        }
    }

    fn run(&self, leftover: &[u8]) {
        let shared = self.shared;
        let ended = Ended(shared);
        let stop = self.copy(leftover);
        drop(ended);
        match stop {
            // Shut for reading by an abort, which has seen to everything.
            Stop::EndOfInput if lock(&shared.state).aborted => {}
            Stop::EndOfInput => {
                shared.note(End::Closed(self.from));
                shared.touch(Duration::ZERO);
                lock(&shared.state).shut.push(self.to());
                // Fails where the other side is gone already, which its own direction will tell.
                let _ = shared.leg(self.to()).shutdown(Shutdown::Write);
                self.linger();
            }
            Stop::Idle => shared.abort(End::Idle),
            Stop::Failed(side, error) => shared.abort(match error.kind() {
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => End::Reset(side),
                _ => End::Lost(side),
            }),
        }
    }

    /// After this direction has ended, watches that the other one does not stay quiet for ever, and
    /// that the side that has closed is still there: nobody reads from it any more.
    fn linger(&self) {
        let shared = self.shared;
        let mut state = lock(&shared.state);
        while state.ended < 2 && !state.aborted {
            let Some(left) = shared.left(shared.limits.linger) else {
                drop(state);
                return shared.abort(End::Linger);
            };
            if self.is_reset(&state) {
                drop(state);
                return shared.abort(End::Reset(self.from));
            }
            (state, _) = shared
                .changed
                .wait_timeout(state, left.min(LOOK_EVERY))
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn copy(&self, leftover: &[u8]) -> Stop {
        let rates = self.shared.limits.rates.iter();
        let portion = rates.map(|rate| rate.portion()).fold(BUFFER, usize::min);
        for octets in leftover.chunks(portion) {
            if let Err(stop) = self.pass(octets) {
                return stop;
            }
        }
        let mut from = self.shared.leg(self.from);
        let mut buffer = vec![0; portion];
        loop {
            match from.read(&mut buffer) {
                Ok(0) if self.is_reset(&lock(&self.shared.state)) => {
                    return Stop::Failed(self.from, io::ErrorKind::ConnectionReset.into());
                }
                Ok(0) => return Stop::EndOfInput,
                Ok(len) => {
                    if let Err(stop) = self.pass(buffer.get(..len).unwrap_or_default()) {
                        return stop;
                    }
                }
                Err(error) => {
                    if let Some(stop) = self.failed(self.from, error) {
                        return stop;
                    }
                }
            }
        }
    }

    /// Writes `octets` as soon as the rates let them pass.
    fn pass(&self, octets: &[u8]) -> Result<(), Stop> {
        let shared = self.shared;
        let charge = |rate: &Arc<Rate>| rate.charge(self.from, octets.len(), Instant::now());
        let wait = shared.limits.rates.iter().map(charge).max().unwrap_or_default();
        if !wait.is_zero() {
            shared.touch(wait);
            let state = lock(&shared.state);
            let (state, _) = shared
                .changed
                .wait_timeout_while(state, wait, |state| !state.aborted)
                .unwrap_or_else(PoisonError::into_inner);
            if state.aborted {
                return Err(Stop::EndOfInput);
            }
        }
        self.write(octets)
    }

    fn write(&self, mut octets: &[u8]) -> Result<(), Stop> {
        let mut to = self.shared.leg(self.to());
        let counter = match self.from {
            Side::Client => &self.shared.traffic.up,
            Side::Target => &self.shared.traffic.down,
        };
        while !octets.is_empty() {
            match to.write(octets) {
                Ok(len) => {
                    octets = octets.get(len..).unwrap_or_default();
                    counter.fetch_add(u64::try_from(len).unwrap_or(0), Ordering::Relaxed);
                    self.shared.touch(Duration::ZERO);
                }
                Err(error) => {
                    if let Some(stop) = self.failed(self.to(), error) {
                        return Err(stop);
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells whether an error of `side` ends this direction. After a time-out with part of the idle
    /// limit left, the next wait is set to that part.
    fn failed(&self, side: Side, error: io::Error) -> Option<Stop> {
        match (error.kind(), self.shared.limits.idle) {
            (io::ErrorKind::Interrupted, _) => None,
            (io::ErrorKind::WouldBlock, Some(idle)) => {
                let Some(left) = self.shared.left(idle) else { return Some(Stop::Idle) };
                let leg = self.shared.leg(side);
                let set = if side == self.from {
                    leg.set_read_timeout(Some(left))
                } else {
                    leg.set_write_timeout(Some(left))
                };
                set.err().map(|error| Stop::Failed(side, error))
            }
            _ => Some(Stop::Failed(side, error)),
        }
    }

    /// Whether the side that is read from is gone: its socket is closed though this server has not
    /// ended its output. The error may have been given to the other direction, so that this one
    /// saw a mere end of input.
    fn is_reset(&self, state: &State) -> bool {
        !state.aborted
            && !state.shut.contains(&self.from)
            && sys::is_tcp_closed(self.shared.leg(self.from)).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::Threads;
    use std::net::TcpListener;
    use std::num::NonZeroU64;
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
        let traffic = Arc::<Traffic>::default();
        let helper = Threads::default().reserve().unwrap();
        let end = thread::spawn({
            let (traffic, stopper) = (Arc::clone(&traffic), stopper.clone());
            move || run(near, leftover, far, helper, limits, &traffic, &stopper)
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
            (limits.idle, limits.linger) = (Some(limit), limit);
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
