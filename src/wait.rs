//! Waits on behalf of a client: for a target, a name, a turn, or for time to pass. Every wait has a
//! deadline and also ends when the client leaves or the server ends, so that a client that has left
//! holds no thread and no descriptor.
//!
//! Not here: waiting for the client itself, which the session and the relay do.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::net::Stream;
use crate::sync::lock;
use crate::sys::{self, PollFd};

/// How long a wait goes on after a FIN of a client that has sent nothing after its request. Such a
/// client may still read, but most have left.
const GRACE: Duration = Duration::from_secs(2);

/// The time limits of a session, on the lowest floor that all who keep to them can see.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the client's connection to the end of its request.
    pub handshake: Duration,
    /// For an IDENT answer.
    pub ident: Duration,
    /// For the look-up of a name.
    pub resolve: Duration,
    /// For a connection to the target, all addresses of a name together.
    pub connect: Duration,
    /// For the peer of a BIND.
    pub bind: Duration,
    /// For a tunnel that passes nothing; `None` for no limit.
    pub idle: Option<Duration>,
    /// The same after one side has closed.
    pub linger: Duration,
    /// For an association that passes no datagram; `None` for no limit.
    pub udp_idle: Option<Duration>,
}

/// The meaning of a FIN from the client. A reset always means that it has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fin {
    /// The client has left.
    Gone,
    /// The client counts as gone two seconds later, unless it has sent something after its request.
    GoneAfterGrace,
    /// The FIN has come; the client counts as gone from this time on.
    GoneAt(Instant),
    /// The client has only ended its output, and is still served.
    HalfClose,
}

/// The bounds of a wait: its client, its deadline and the end of the server.
#[derive(Clone, Copy)]
pub struct Wait<'a> {
    /// The client, TCP or UNIX; the wait ends when it leaves.
    pub client: &'a Stream,
    /// The meaning of its FIN, shared by all waits for one client.
    pub fin: &'a Cell<Fin>,
    /// Hangs up when the server ends.
    pub ended: BorrowedFd<'a>,
    /// The time at which the wait gives up.
    pub deadline: Instant,
}

/// Why a wait failed.
#[derive(Debug)]
pub enum WaitError {
    /// The deadline passed.
    TimedOut,
    /// The client left.
    ClientGone,
    /// The server ends.
    Stopped,
    /// A system call failed.
    Failed(io::Error),
}

impl From<io::Error> for WaitError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl Wait<'_> {
    /// Waits for `events` of poll(2) on `fd`.
    ///
    /// # Errors
    /// Every [`WaitError`].
    pub fn on(&self, fd: &impl AsFd, events: i16) -> Result<(), WaitError> {
        self.poll(&mut vec![PollFd::new(fd, events)], None).map(drop)
    }

    /// Sleeps for `time`.
    ///
    /// # Errors
    /// Every [`WaitError`].
    pub fn sleep(&self, time: Duration) -> Result<(), WaitError> {
        self.poll(&mut Vec::new(), Some(Instant::now() + time)).map(drop)
    }

    /// Waits until another thread sets the value of `promise`, and takes it.
    ///
    /// # Errors
    /// Every [`WaitError`].
    pub fn for_promise<T>(&self, promise: &Promise<T>) -> Result<T, WaitError> {
        loop {
            self.on(&promise.ready, sys::POLLIN)?;
            if let Some(value) = promise.take() {
                return Ok(value);
            }
        }
    }

    /// Waits for an event on one of `fds`; returns false if there is none until `until`.
    ///
    /// # Errors
    /// Every [`WaitError`].
    pub fn poll<'f>(
        &'f self,
        fds: &mut Vec<PollFd<'f>>,
        until: Option<Instant>,
    ) -> Result<bool, WaitError> {
        loop {
            let now = Instant::now();
            let (fin, mut next) = (self.fin.get(), self.deadline);
            if now >= next {
                return Err(WaitError::TimedOut);
            }
            if let Fin::GoneAt(at) = fin {
                if now >= at {
                    return Err(WaitError::ClientGone);
                }
                next = next.min(at);
            }
            if let Some(until) = until {
                if now >= until {
                    return Ok(false);
                }
                next = next.min(until);
            }
            let watches_fin = matches!(fin, Fin::Gone | Fin::GoneAfterGrace);
            fds.push(PollFd::new(self.client, if watches_fin { sys::POLLRDHUP } else { 0 }));
            fds.push(PollFd::new(&self.ended, 0));
            let polled = sys::poll(fds, Some(next.saturating_duration_since(now)));
            let has_ended = fds.pop().is_some_and(|fd| fd.has(!0));
            let client = fds.pop();
            match polled {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(WaitError::Failed(error)),
                Ok(_) => {}
            }
            let client_has = |events| client.as_ref().is_some_and(|fd| fd.has(events));
            if client_has(!sys::POLLRDHUP) || client_has(sys::POLLRDHUP) && fin == Fin::Gone {
                return Err(WaitError::ClientGone);
            }
            if client_has(sys::POLLRDHUP) {
                // After a FIN this does not block, whether or not octets are left to read.
                self.fin.set(match self.client.peek(&mut [0]) {
                    Ok(0) => Fin::GoneAt(Instant::now() + GRACE),
                    Ok(_) => Fin::HalfClose,
                    // A reset has followed.
                    Err(_) => return Err(WaitError::ClientGone),
                });
            }
            if has_ended {
                return Err(WaitError::Stopped);
            }
            if fds.iter().any(|fd| fd.has(!0)) {
                return Ok(true);
            }
        }
    }
}

/// A value that one thread sets for another, which waits for it by [`Wait::for_promise`].
#[derive(Debug)]
pub struct Promise<T> {
    value: Mutex<Option<T>>,
    /// An eventfd(2), readable once the value has been set.
    ready: File,
}

impl<T> Promise<T> {
    /// A promise without a value.
    ///
    /// # Errors
    /// As eventfd(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self { value: Mutex::new(None), ready: sys::eventfd()?.into() })
    }

    /// Sets the value and wakes the thread that waits for it. The first value counts.
    pub fn set(&self, value: T) {
        lock(&self.value).get_or_insert(value);
        // This fails only after 2^64 - 1 calls.
        let _ = (&self.ready).write(&1_u64.to_ne_bytes());
    }

    /// Takes the value, or `None` if it is not set or has been taken.
    pub fn take(&self) -> Option<T> {
        lock(&self.value).take()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    /// A connected client and a running server, for waits in tests.
    pub(crate) struct Scene {
        /// The client's end of the connection.
        pub(crate) client: Option<TcpStream>,
        accepted: Stream,
        pub(crate) fin: Cell<Fin>,
        ended: io::PipeReader,
        /// Dropping it ends the server.
        pub(crate) server: Option<io::PipeWriter>,
    }

    impl Scene {
        pub(crate) fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let (ended, server) = io::pipe().unwrap();
            let fin = Cell::new(Fin::GoneAfterGrace);
            Self { client: Some(client), accepted, fin, ended, server: Some(server) }
        }

        /// Resets the client's connection.
        pub(crate) fn reset(&mut self) {
            let client = self.client.take();
            client.iter().for_each(|client| sys::set_linger_zero(client).unwrap());
        }

        /// A wait of at most `millis` milliseconds.
        pub(crate) fn wait(&self, millis: u64) -> Wait<'_> {
            let Self { accepted: client, fin, ended, .. } = self;
            let deadline = Instant::now() + Duration::from_millis(millis);
            Wait { client, fin, ended: ended.as_fd(), deadline }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Scene;
    use super::*;
    use std::net::Shutdown;
    use std::thread;

    #[test]
    fn a_wait_ends_at_its_deadline_or_when_its_time_has_passed() {
        let scene = Scene::new();
        let begun = Instant::now();
        assert!(matches!(scene.wait(50).sleep(Duration::from_secs(60)), Err(WaitError::TimedOut)));
        assert!(begun.elapsed() >= Duration::from_millis(50));
        scene.wait(60_000).sleep(Duration::from_millis(50)).unwrap();
        assert!((100..5_000).contains(&begun.elapsed().as_millis()));
    }

    #[test]
    fn a_reset_ends_a_wait_at_once() {
        for fin in [Fin::Gone, Fin::GoneAfterGrace, Fin::HalfClose] {
            let mut scene = Scene::new();
            scene.fin.set(fin);
            scene.reset();
            let begun = Instant::now();
            assert!(matches!(scene.wait(60_000).sleep(GRACE), Err(WaitError::ClientGone)));
            assert!(begun.elapsed() < GRACE, "{fin:?}");
        }
    }

    #[test]
    fn a_fin_without_data_ends_all_waits_two_seconds_later() {
        let scene = Scene::new();
        scene.client.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
        let begun = Instant::now();
        scene.wait(60_000).sleep(Duration::from_millis(500)).unwrap();
        let waited = scene.wait(60_000).sleep(Duration::from_secs(30));
        assert!(matches!(waited, Err(WaitError::ClientGone)));
        assert!((2_000..4_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_fin_during_a_wait_gives_it_two_seconds_from_then() {
        let scene = Scene::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(GRACE);
                scene.client.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
            });
            let begun = Instant::now();
            let waited = scene.wait(60_000).sleep(Duration::from_secs(30));
            assert!(matches!(waited, Err(WaitError::ClientGone)));
            assert!((4_000..6_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
        });
    }

    #[test]
    fn a_fin_after_data_ends_no_wait() {
        let scene = Scene::new();
        scene.client.as_ref().unwrap().write_all(b"GET").unwrap();
        scene.client.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
        scene.wait(60_000).sleep(GRACE + Duration::from_millis(500)).unwrap();
        assert_eq!(scene.fin.get(), Fin::HalfClose);
    }

    #[test]
    fn a_fin_that_means_gone_ends_a_wait_at_once() {
        let scene = Scene::new();
        scene.client.as_ref().unwrap().write_all(b"data").unwrap();
        scene.client.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
        scene.fin.set(Fin::Gone);
        assert!(matches!(scene.wait(60_000).sleep(GRACE), Err(WaitError::ClientGone)));
    }

    #[test]
    fn the_end_of_the_server_ends_a_wait() {
        let mut scene = Scene::new();
        let server = scene.server.take();
        let ends = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop(server);
        });
        assert!(matches!(scene.wait(60_000).sleep(GRACE), Err(WaitError::Stopped)));
        ends.join().unwrap();
    }

    #[test]
    fn a_promise_may_be_set_before_or_during_the_wait() {
        let scene = Scene::new();
        for delay in [0, 50] {
            let promise = Promise::new().unwrap();
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(delay));
                    promise.set(7);
                });
                assert_eq!(scene.wait(60_000).for_promise(&promise).unwrap(), 7);
            });
        }
        let unset = Promise::<u8>::new().unwrap();
        assert!(matches!(scene.wait(50).for_promise(&unset), Err(WaitError::TimedOut)));
    }
}
