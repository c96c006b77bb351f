//! Waiting for others on behalf of a client. Every such wait has a deadline, ends when the client
//! leaves, and ends with the server: a client that has left keeps no thread and no descriptor.
//!
//! Not here: waiting for the client itself, which the session and the relay do.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync::lock;
use crate::sys::{self, PollFd};

/// How long a wait goes on after a FIN of the client with nothing sent behind its request. A client
/// that ends its output may still read; most have left.
const GRACE: Duration = Duration::from_secs(2);

/// How long each wait may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the connection of a client to the end of its request.
    pub handshake: Duration,
    /// The answer of a client's host to an IDENT query.
    pub ident: Duration,
    /// The look-up of a name.
    pub resolve: Duration,
    /// A connection to a target, all addresses of a name together.
    pub connect: Duration,
    /// The peer of a BIND.
    pub bind: Duration,
    /// A tunnel that passes nothing; `None` for ever.
    pub idle: Option<Duration>,
    /// The same once one side has closed.
    pub linger: Duration,
    /// An association that passes no datagram; `None` for ever.
    pub udp_idle: Option<Duration>,
}

/// What a FIN of the client means. A reset always means that it has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fin {
    /// It has left.
    Leaves,
    /// It has left in two seconds, unless it has sent something behind its request.
    LeavesSoon,
    /// A FIN has come; the client has left at that time.
    LeavesAt(Instant),
    /// It has ended its output, and is served.
    HalfCloses,
}

/// For which client to wait, and for how long.
#[derive(Clone, Copy)]
pub struct Wait<'a> {
    /// The client, which has to stay: TCP, or a UNIX stream socket.
    pub client: &'a TcpStream,
    /// What its FIN means; several waits for one client share it.
    pub fin: &'a Cell<Fin>,
    /// Hangs up when the server ends.
    pub ended: BorrowedFd<'a>,
    /// When the wait is over.
    pub deadline: Instant,
}

/// Why a wait was in vain.
#[derive(Debug)]
pub enum WaitError {
    /// The deadline came first.
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

impl<'a> Wait<'a> {
    /// A wait for the same client that is over after `time`.
    #[must_use]
    pub fn within(&self, time: Duration) -> Self {
        Self { deadline: Instant::now() + time, ..*self }
    }

    /// Waits for `events`, as of poll(2), on `fd`.
    ///
    /// # Errors
    /// Why they did not come.
    pub fn on(&self, fd: &impl AsFd, events: i16) -> Result<(), WaitError> {
        self.poll(&mut vec![PollFd::new(fd, events)], None).map(drop)
    }

    /// Lets `time` pass.
    ///
    /// # Errors
    /// Why it did not pass.
    pub fn sleep(&self, time: Duration) -> Result<(), WaitError> {
        self.poll(&mut Vec::new(), Some(Instant::now() + time)).map(drop)
    }

    /// Waits for another thread to leave an answer.
    ///
    /// # Errors
    /// Why there is none.
    pub fn promised<T>(&self, promise: &Promise<T>) -> Result<T, WaitError> {
        loop {
            self.on(&promise.kept, sys::POLLIN)?;
            if let Some(value) = promise.take() {
                return Ok(value);
            }
        }
    }

    /// Waits until one of `fds` has an event, or until `until`: then returns false.
    ///
    /// # Errors
    /// Why neither came to pass.
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
            if let Fin::LeavesAt(at) = fin {
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
            let heeded = matches!(fin, Fin::Leaves | Fin::LeavesSoon);
            fds.push(PollFd::new(self.client, if heeded { sys::POLLRDHUP } else { 0 }));
            fds.push(PollFd::new(&self.ended, 0));
            let polled = sys::poll(fds, Some(next.saturating_duration_since(now)));
            let on_ended = fds.pop().is_some_and(|fd| fd.has(!0));
            let on_client = fds.pop();
            match polled {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(WaitError::Failed(error)),
                Ok(_) => {}
            }
            let came = |events| on_client.as_ref().is_some_and(|fd| fd.has(events));
            if came(!sys::POLLRDHUP) || came(sys::POLLRDHUP) && fin == Fin::Leaves {
                return Err(WaitError::ClientGone);
            }
            if came(sys::POLLRDHUP) {
                // Nothing is waited for here: the input has ended, with or without something unread.
                let unread = self.client.peek(&mut [0])? > 0;
                self.fin.set(if unread { Fin::HalfCloses } else { Fin::LeavesAt(now + GRACE) });
            }
            if on_ended {
                return Err(WaitError::Stopped);
            }
            if fds.iter().any(|fd| fd.has(!0)) {
                return Ok(true);
            }
        }
    }
}

/// A value that one thread leaves for another, which waits for it beside its client.
#[derive(Debug)]
pub struct Promise<T> {
    value: Mutex<Option<T>>,
    /// An eventfd(2), readable once the value was left.
    kept: File,
}

impl<T> Promise<T> {
    /// None yet.
    ///
    /// # Errors
    /// As eventfd(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self { value: Mutex::new(None), kept: sys::eventfd()?.into() })
    }

    /// Leaves the answer. The first one counts.
    pub fn keep(&self, value: T) {
        lock(&self.value).get_or_insert(value);
        // Fails at 2^64 - 1 answers.
        let _ = (&self.kept).write(&1_u64.to_ne_bytes());
    }

    /// The answer, if it has been left and was not taken.
    pub fn take(&self) -> Option<T> {
        lock(&self.value).take()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::net::TcpListener;

    /// A client that waits can be for, and a server that has not ended.
    pub(crate) struct Scene {
        /// The client's own end.
        pub(crate) client: Option<TcpStream>,
        accepted: TcpStream,
        pub(crate) fin: Cell<Fin>,
        ended: io::PipeReader,
        /// Ends the server when it is dropped.
        pub(crate) server: Option<io::PipeWriter>,
    }

    impl Scene {
        pub(crate) fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let (ended, server) = io::pipe().unwrap();
            let fin = Cell::new(Fin::LeavesSoon);
            Self { client: Some(client), accepted, fin, ended, server: Some(server) }
        }

        /// Has the client reset its connection.
        pub(crate) fn reset(&mut self) {
            let client = self.client.take();
            client.iter().for_each(|client| sys::set_linger_zero(client).unwrap());
        }

        /// A wait of so many milliseconds.
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
        for fin in [Fin::Leaves, Fin::LeavesSoon, Fin::HalfCloses] {
            let mut scene = Scene::new();
            scene.fin.set(fin);
            scene.reset();
            let begun = Instant::now();
            assert!(matches!(scene.wait(60_000).sleep(GRACE), Err(WaitError::ClientGone)));
            assert!(begun.elapsed() < GRACE, "{fin:?}");
        }
    }

    #[test]
    fn a_fin_with_nothing_behind_the_request_ends_waits_two_seconds_later_together() {
        let scene = Scene::new();
        scene.client.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
        let begun = Instant::now();
        scene.wait(60_000).sleep(Duration::from_millis(500)).unwrap();
        let waited = scene.wait(60_000).sleep(Duration::from_secs(30));
        assert!(matches!(waited, Err(WaitError::ClientGone)));
        assert!((2_000..4_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_fin_behind_data_ends_no_wait() {
        let scene = Scene::new();
        scene.client.as_ref().unwrap().write_all(b"GET").unwrap();
        scene.client.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
        scene.wait(60_000).sleep(GRACE + Duration::from_millis(500)).unwrap();
        assert_eq!(scene.fin.get(), Fin::HalfCloses);
    }

    #[test]
    fn a_fin_ends_at_once_a_wait_that_it_means_the_end_of() {
        let scene = Scene::new();
        scene.client.as_ref().unwrap().write_all(b"data").unwrap();
        scene.client.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
        scene.fin.set(Fin::Leaves);
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
    fn a_promise_is_waited_for_whether_it_was_kept_before_or_is_during_the_wait() {
        let scene = Scene::new();
        for delay in [0, 50] {
            let promise = Promise::new().unwrap();
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(delay));
                    promise.keep(7);
                });
                assert_eq!(scene.wait(60_000).promised(&promise).unwrap(), 7);
            });
        }
        let none = Promise::<u8>::new().unwrap();
        assert!(matches!(scene.wait(50).promised(&none), Err(WaitError::TimedOut)));
    }
}
