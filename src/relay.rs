//! Relays octets between client and target, unchanged and without looking into them, until both
//! sides are done. This file starts a relay; how octets are passed is in `direction`.
//!
//! One thread passes the first few octets of both directions, and many sessions have no more. Then
//! each direction gets its own thread, which copies small pieces through its stack and larger ones
//! through a buffer, and has the kernel move a long stream.
//!
//! Each direction ends by itself: the end of input of one side becomes a shutdown of the other, and
//! the opposite direction goes on. A reset becomes a reset. The relay takes the client by value, so
//! nothing else can write into the tunnel. A [`Stopper`] ends it from outside.

mod direction;
mod end;
mod first;
mod leg;
mod linger;
pub mod pool;
pub mod rate;
mod state;
mod traffic;
pub mod udp;

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use crate::relay::direction::{Direction, Halt, SMALL};
pub use crate::relay::end::{End, Side, Stopper};
use crate::relay::first::{First, first};
use crate::relay::leg::keep_alive;
pub use crate::relay::leg::{Leg, prepare};
use crate::relay::pool::Pool;
pub use crate::relay::state::RelayLimits;
use crate::relay::state::{Common, Progress, Relay};
pub use crate::relay::traffic::{Dropped, Traffic};
use crate::sync::Queue;
use crate::sys;
use crate::threads::Reserved;

/// A session about to be relayed.
pub struct Tunnel {
    /// The client. Its unread octets are those sent after the request.
    pub client: Leg,
    /// The target. Its unread octets are those sent after the answer of an upstream.
    pub target: Leg,
    /// The thread for the second direction, used if there is more than a short exchange.
    pub helper: Reserved,
    /// Time limits and rates.
    pub limits: RelayLimits,
    /// Counts what passes.
    pub traffic: Arc<Traffic>,
    /// Ends it early.
    pub stopper: Stopper,
    /// Called with the end once both sockets are closed.
    pub done: Box<dyn FnOnce(End) + Send>,
}

/// Starts relays, and holds what they share.
pub struct Relays(Arc<Common>);

impl Relays {
    /// No relay yet. At most `pipes` directions use splice(2) at the same time; the others copy.
    #[must_use]
    pub fn new(pipes: usize) -> Self {
        let pool = Pool::new(pipes);
        let (half_closed, is_watched) = (Queue::default(), Mutex::default());
        Self(Arc::new(Common { pool, half_closed, is_watched }))
    }

    /// Starts the thread that watches half-closed relays. Without this it starts with the first of
    /// them, and should that fail, that relay ends.
    ///
    /// # Errors
    /// As pthread_create(3).
    pub fn watch(&self) -> io::Result<()> {
        linger::start(&self.0)
    }

    /// Relays until both directions have ended. One may go on in the helper after this returns; the
    /// last thread calls `done`.
    // Not inlined: the frames that prepared the tunnel would stay on the stack.
    #[inline(never)]
    pub fn run(&self, tunnel: Tunnel) {
        let Tunnel { client, target, helper, limits, traffic, stopper, done } = tunnel;
        let _ = sys::set_nodelay(&target.stream);
        let _ = sys::set_oobinline(&target.stream);
        let relay = Arc::new(Relay {
            client: client.stream,
            target: target.stream,
            limits,
            common: Arc::clone(&self.0),
            traffic,
            begun: Instant::now(),
            active: AtomicU64::new(0),
            changed: Condvar::new(),
            progress: Mutex::new(Progress::new(done)),
        });
        relay.obey(&stopper);
        let mut up = Direction::new(&relay, Side::Client, client.unread);
        let mut down = Direction::new(&relay, Side::Target, target.unread);
        let mut octets = [0; SMALL];
        // With rates, waiting for one direction must not hold up the other.
        let first = if relay.limits.rates.is_empty() {
            first(&mut up, &mut down, &mut octets)
        } else {
            First::More(Side::Client)
        };
        // Only a session that lasts is worth these system calls.
        if let First::More(..) = first {
            keep_alive(&relay.target);
            sys::madvise_unused_stack();
        }
        if let Some(idle) = relay.limits.idle {
            relay.set_timeouts(idle);
        }
        let directions = |from| match from {
            Side::Client => (up, down),
            Side::Target => (down, up),
        };
        match first {
            First::More(from) => {
                let (own, other) = directions(from);
                helper.run(move || other.run(&mut [0; SMALL]));
                own.run(&mut octets);
            }
            First::Ended(from, Halt::EndOfInput) => {
                // Given back first: the other direction may take long.
                drop(helper);
                let (own, other) = directions(from);
                own.end(Halt::EndOfInput);
                other.run(&mut octets);
            }
            First::Ended(from, halt) => {
                // The other direction never begins.
                drop(relay.retire());
                directions(from).0.end(halt);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::rate::Rate;
    use crate::threads::Threads;
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::num::NonZeroU64;
    use std::sync::atomic::Ordering;
    use std::sync::mpsc;
    use std::thread::{self, JoinHandle};
    use std::time::Duration;

    /// Far longer than any step here may take.
    const LONG: Duration = Duration::from_secs(60);

    /// At once, on a busy machine.
    const SOON: Duration = Duration::from_millis(500);

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        near.set_read_timeout(Some(LONG)).unwrap();
        (near, far)
    }

    /// A running relay.
    struct Running {
        client: TcpStream,
        target: TcpStream,
        traffic: Arc<Traffic>,
        stopper: Stopper,
        end: JoinHandle<End>,
    }

    impl Running {
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

    fn tunnel(unread: &[u8], limits: RelayLimits) -> Running {
        tunnel_with(unread, b"", limits, Stopper::default())
    }

    /// A relay where `client` and `target` have been read before from those sides.
    fn tunnel_with(client: &[u8], target: &[u8], limits: RelayLimits, stopper: Stopper) -> Running {
        let unread = (client.to_vec(), target.to_vec());
        let ((client, near), (target, far)) = (pair(), pair());
        let (traffic, threads) = (Arc::<Traffic>::default(), Threads::default());
        let helper = threads.reserve().unwrap();
        let end = thread::spawn({
            let (traffic, stopper) = (Arc::clone(&traffic), stopper.clone());
            let [client, target] =
                [(near, unread.0), (far, unread.1)].map(|(stream, unread)| Leg { stream, unread });
            let (tx, rx) = mpsc::channel();
            let done = Box::new(move |end| tx.send(end).unwrap());
            let tunnel = Tunnel { client, target, helper, limits, traffic, stopper, done };
            move || {
                Relays::new(2).run(tunnel);
                rx.recv().unwrap()
            }
        });
        Running { client, target, traffic, stopper, end }
    }

    fn rate(octets_per_second: u64) -> Arc<Rate> {
        Arc::new(Rate::new(NonZeroU64::new(octets_per_second).unwrap()))
    }

    fn limits(rates: &[&Arc<Rate>]) -> RelayLimits {
        let rates = rates.iter().map(|&rate| Arc::clone(rate)).collect();
        RelayLimits { idle: None, linger: LONG, rates }
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

    /// Checks that `octets` took the time they need at `rate`, less one burst.
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
    fn what_has_been_read_already_comes_first_on_both_sides() {
        for (up, down) in [(3, 5), (3, 1 << 23), (1 << 23, 3), (1 << 23, 1 << 23)] {
            let unread = [vec![1; up], vec![2; down]];
            let [from_client, from_target] = &unread;
            let session = tunnel_with(from_client, from_target, limits(&[]), Stopper::default());
            let ways = [(&session.client, &session.target), (&session.target, &session.client)];
            thread::scope(|scope| {
                for ((mut from, mut to), mut octets) in ways.into_iter().zip(unread.clone()) {
                    scope.spawn(move || {
                        from.write_all(b"later").unwrap();
                        from.shutdown(Shutdown::Write).unwrap();
                    });
                    scope.spawn(move || {
                        let mut received = Vec::new();
                        to.read_to_end(&mut received).unwrap();
                        octets.extend(b"later");
                        assert!(received == octets, "{} of {}", received.len(), octets.len());
                    });
                }
            });
            assert!(matches!(session.end.join().unwrap(), End::Closed(_)));
            let expected = [up, down].map(|octets| u64::try_from(octets + 5).unwrap());
            assert_eq!(passed(&session.traffic), expected);
        }
    }

    #[test]
    fn what_a_target_said_before_it_left_reaches_the_client() {
        let mut session = tunnel_with(b"?", b"220 ", limits(&[]), Stopper::default());
        drop(session.target);
        let mut octets = Vec::new();
        // A reset may follow.
        let _ = session.client.read_to_end(&mut octets);
        assert_eq!(octets, b"220 ");
    }

    #[test]
    fn what_has_been_read_already_keeps_to_the_rate_too() {
        for by_client in [true, false] {
            let begun = Instant::now();
            let (unread, nothing) = (&[7; 150][..], &[][..]);
            let (client, target) = if by_client { (unread, nothing) } else { (nothing, unread) };
            let session = tunnel_with(client, target, limits(&[&rate(100)]), Stopper::default());
            let mut to = if by_client { &session.target } else { &session.client };
            let mut octets = [0; 150];
            to.read_exact(&mut octets[..10]).unwrap();
            to.read_exact(&mut octets[10..]).unwrap();
            assert_eq!(octets, [7; 150]);
            check(begun, 150, 100);
        }
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

    /// Octets passed up and down.
    fn passed(traffic: &Traffic) -> [u64; 2] {
        [&traffic.up, &traffic.down].map(|count| count.load(Ordering::Relaxed))
    }

    /// Waits until the relay has passed some octets up.
    fn wait_for(session: &Running, octets: u64) {
        while session.traffic.up.load(Ordering::Relaxed) < octets {
            thread::yield_now();
        }
    }

    #[test]
    fn a_stop_wakes_directions_that_read() {
        let mut session = tunnel(b"", limits(&[]));
        session.client.write_all(b"x").unwrap();
        wait_for(&session, 1);
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
        wait_for(&session, 1);
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
            let session = tunnel_with(b"up", b"down", limits(rates), stopper.clone());
            let traffic = Arc::clone(&session.traffic);
            session.stop();
            assert_eq!(passed(&traffic), [0, 0]);
        }
    }

    #[test]
    fn a_stop_at_any_moment_ends_the_relay() {
        for delay in 0..100 {
            let session = tunnel(b"unread", limits(&[]));
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
