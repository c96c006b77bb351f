//! The server: one accept loop for each listener, which hands every client to a thread, and one loop
//! that waits for signals, ends it when it is to end, and lets sessions finish. No accept loop ever
//! reads from a client, resolves a name or waits for a lock that is held for long.

pub mod inherit;
pub mod landlock;
pub mod listeners;
pub mod metrics;
pub mod notify;
pub mod pid_file;
pub mod privileges;
pub mod sessions;
pub mod signals;
pub mod walls;

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::log::{Level, Line};
use crate::server::listeners::{Client, Listener};
use crate::server::metrics::Metrics;
use crate::server::sessions::{Caps, HalfOpen, Refusal, Sessions, Slot};
use crate::server::signals::Signal;
use crate::session::{self, Seat, Service};
use crate::sys::{self, PollFd};
use crate::threads::lock;

/// How long an accept loop rests when the system is out of something, at first and at most.
const REST: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How often the same trouble is told of.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How long sessions that are ended have to write their last line.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How long connections that have begun may take until they can be accepted. New ones wait a second
/// to try again if they come in that time, so it is no longer than local networks need.
const ON_THE_WAY: Duration = Duration::from_millis(5);

/// Descriptors kept back for listeners, the log, look-ups and what else is not a session's.
const SPARE_DESCRIPTORS: u64 = 64;

/// Descriptors of a session: its two connections. An association has four; they are counted on to
/// be few, and an accept loop that runs out refuses instead of ending.
const SESSION_DESCRIPTORS: u64 = 2;

/// Descriptors of a pipe.
const PIPE_DESCRIPTORS: u64 = 2;

/// Raises the limit on open descriptors to what `caps` need and returns the caps that can be kept.
///
/// # Errors
/// As getrlimit(2).
pub fn fit(mut caps: Caps, pipes: u64) -> io::Result<(Caps, u64)> {
    let (soft, hard) = sys::getrlimit_nofile()?;
    let others = SPARE_DESCRIPTORS + pipes * PIPE_DESCRIPTORS;
    let wanted = (caps.sessions * SESSION_DESCRIPTORS * 2 + others).min(hard);
    let soft =
        if soft < wanted && sys::setrlimit_nofile(wanted, hard).is_ok() { wanted } else { soft };
    let pipes = pipes.min(soft / 8 / PIPE_DESCRIPTORS);
    let others = SPARE_DESCRIPTORS + pipes * PIPE_DESCRIPTORS;
    let kept = soft.saturating_sub(others) / SESSION_DESCRIPTORS;
    caps.sessions = kept.clamp(1, caps.sessions);
    Ok((caps, pipes))
}

/// What happens while the server runs.
enum Event {
    Signal(Signal),
    /// A listener became unusable.
    Broken(io::Error),
    /// The last session has ended.
    Idle,
}

/// Why the server ends.
#[derive(Debug)]
pub enum Ending {
    /// A signal of this name.
    Signal(&'static str),
    /// There is nothing left to do: no listener, or no session for the time given, and no client.
    Idle,
    /// A listener became unusable.
    Broken(io::Error),
}

/// When to end.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long sessions under way have once a signal has come.
    pub drain: Duration,
    /// How long there may be no session; `None` for ever.
    pub idle: Option<Duration>,
}

/// A running server.
pub struct Server {
    service: Arc<Service>,
    sessions: Arc<Sessions>,
    accepting: Vec<Accepting>,
    metrics: Option<Metrics>,
    events: mpsc::Receiver<Event>,
    started: Instant,
}

impl Server {
    /// Serves `clients`, who have been accepted already, and those of all `listeners`, each on a
    /// thread of its own, and metrics. The signals must have been blocked.
    ///
    /// # Errors
    /// Where a thread cannot be started.
    pub fn start(
        listeners: Vec<Listener>,
        metrics: Option<Listener>,
        clients: Vec<Client>,
        service: &Arc<Service>,
        caps: Caps,
    ) -> io::Result<Self> {
        let (tx, events) = mpsc::channel();
        let idle = tx.clone();
        // Nobody listens any more once the server has ended.
        let sessions = Arc::new(Sessions::new(caps, move || drop(idle.send(Event::Idle))));
        let metrics = metrics.map(|listener| Metrics::start(listener, service, &sessions));
        let metrics = metrics.transpose()?;
        let door = Door { service: Arc::clone(service), sessions: Arc::clone(&sessions) };
        clients.into_iter().for_each(|client| door.admit(client));
        let mut accepting = Vec::new();
        for listener in listeners {
            accepting.push(Accepting::start(listener, door.clone(), tx.clone())?);
        }
        thread::Builder::new().name("signals".into()).spawn(move || {
            loop {
                let event = signals::wait().map_or_else(Event::Broken, Event::Signal);
                if tx.send(event).is_err() {
                    return;
                }
            }
        })?;
        let started = Instant::now();
        Ok(Self { service: Arc::clone(service), sessions, accepting, metrics, events, started })
    }

    /// Runs until a signal comes, a listener breaks or there is nothing left to do. SIGHUP calls
    /// `reload`; `stopping` is called before anything is ended. On return no client is accepted any
    /// more, and all sessions have ended.
    pub fn run(mut self, limits: Limits, reload: impl Fn(), stopping: impl FnOnce()) -> Ending {
        let ending = loop {
            let idle = self.sessions.idle_for();
            let patience =
                if self.accepting.is_empty() { Some(Duration::ZERO) } else { limits.idle };
            let left = match (idle, patience) {
                (Some(idle), Some(patience)) if idle >= patience => break Ending::Idle,
                (Some(idle), Some(patience)) => Some(patience.saturating_sub(idle)),
                _ => None,
            };
            match self.next_event(left) {
                Some(Event::Signal(Signal::Reload)) => reload(),
                Some(Event::Signal(Signal::Report)) => self.report(),
                Some(Event::Signal(Signal::End(name))) => break Ending::Signal(name),
                Some(Event::Broken(error)) => break Ending::Broken(error),
                Some(Event::Idle) | None => {}
            }
        };
        if let Some(metrics) = &self.metrics {
            metrics.drain();
        }
        stopping();
        let accepting = std::mem::take(&mut self.accepting);
        let count = accepting.len();
        accepting.into_iter().for_each(Accepting::end);
        let deadline = match &ending {
            Ending::Signal(name) => {
                let line = Line::new("stopping")
                    .field("signal", name)
                    .field("sessions", self.sessions.count());
                self.service.log.write(Level::Normal, line);
                Some(Instant::now() + limits.drain)
            }
            // Who came at the last moment is served all the same.
            Ending::Idle if count > 0 => {
                let line = Line::new("idle").field("sessions", self.sessions.count());
                self.service.log.write(Level::Normal, line);
                None
            }
            Ending::Idle => None,
            Ending::Broken(_) => Some(Instant::now()),
        };
        self.wait_for_sessions(deadline, limits.drain, &reload);
        if self.sessions.count() > 0 {
            self.service.live.end_all();
            self.wait_for_sessions(Some(Instant::now() + LAST_LINES), limits.drain, &reload);
        }
        ending
    }

    /// Waits until there is no session, the deadline, or a second signal to end. The first one sets
    /// the deadline, where there is none, to the end of `drain`.
    fn wait_for_sessions(
        &self,
        mut deadline: Option<Instant>,
        drain: Duration,
        reload: &impl Fn(),
    ) {
        while self.sessions.count() > 0 {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return;
            }
            match self.next_event(left) {
                Some(Event::Signal(Signal::End(_))) if deadline.is_none() => {
                    deadline = Some(Instant::now() + drain);
                }
                Some(Event::Signal(Signal::End(_))) => return,
                Some(Event::Signal(Signal::Reload)) => reload(),
                Some(Event::Signal(Signal::Report)) => self.report(),
                Some(Event::Broken(_) | Event::Idle) | None => {}
            }
        }
    }

    /// Waits for something to happen; `None` where nothing does for so long.
    fn next_event(&self, timeout: Option<Duration>) -> Option<Event> {
        match timeout {
            Some(timeout) => self.events.recv_timeout(timeout).ok(),
            None => self.events.recv().ok(),
        }
    }

    /// Logs how the server is doing.
    fn report(&self) {
        let count = |directory: &str| {
            // Not to be had in a chroot.
            fs::read_dir(directory).map_or_else(|_| "-".into(), |found| found.count().to_string())
        };
        let line = Line::new("status")
            .field("uptime", self.started.elapsed().as_secs())
            .field("threads", count("/proc/self/task"))
            .field("descriptors", count("/proc/self/fd"))
            .field("names", self.service.means.resolver.waiting());
        self.service.log.write(Level::Normal, self.sessions.report(line));
        self.service.live.report(&self.service.log);
    }
}

/// A listener at work.
struct Accepting {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    /// Closed to wake the loop of an inherited listener.
    waker: io::PipeWriter,
}

/// What the accept loop of a listener and who ends it have in common.
struct Shared {
    listener: Listener,
    door: Door,
    /// Whether it is to end. Held while the listener is made to wait or not to wait.
    ending: Mutex<bool>,
}

impl Accepting {
    fn start(listener: Listener, door: Door, events: mpsc::Sender<Event>) -> io::Result<Self> {
        let (woken, waker) = io::pipe()?;
        let shared = Arc::new(Shared { listener, door, ending: Mutex::new(false) });
        let spare = io::stdin().as_fd().try_clone_to_owned().ok();
        let mut accept = AcceptLoop { shared: Arc::clone(&shared), woken, spare, told: None };
        let thread = thread::Builder::new().name("accept".into()).spawn(move || {
            if let Some(error) = accept.run() {
                let _ = events.send(Event::Broken(error));
            }
        })?;
        Ok(Self { shared, thread, waker })
    }

    /// Ends accepting. The clients that wait at a listener of our own are admitted first: nobody
    /// else will. Those at an inherited one wait for whoever has it next.
    fn end(self) {
        let Shared { listener, door, ending } = &*self.shared;
        let mut ending = lock(ending);
        *ending = true;
        let waits = listener.inherited || listener.set_nonblocking(true).is_err();
        drop(ending);
        if !listener.inherited {
            // First nobody new is to come: who came between the last accept and the end would be
            // reset. A kernel without filters leaves that short time.
            listener.remove();
            if listener.tcp_addr().is_some() {
                let _ = sys::drop_new_connections(listener);
            }
            if !waits {
                admit_the_rest(listener, door);
            }
            let _ = sys::shutdown(listener);
        }
        drop(self.waker);
        let _ = self.thread.join();
    }
}

/// Lets in who waits at a listener that does not, and who is on the way there.
fn admit_the_rest(listener: &Listener, door: &Door) {
    let until = Instant::now() + ON_THE_WAY;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match listener.accept() {
            Ok(client) => door.admit(client),
            Err(_) if left.is_zero() => return,
            Err(_) => {
                let _ = sys::poll(&mut [PollFd::new(listener, sys::POLLIN)], Some(left));
            }
        }
    }
}

/// The slots of a session.
struct Seated {
    slot: Slot,
    half_open: Option<HalfOpen>,
}

impl Seat for Seated {
    fn number(&self) -> u64 {
        self.slot.number()
    }

    fn belongs_to(&mut self, client: Option<IpAddr>) -> Result<(), String> {
        // Once its handshake is complete a session belongs to whom it does.
        let Some(half_open) = &mut self.half_open else { return Ok(()) };
        let counted = self.slot.belongs_to(client, half_open);
        counted.map_err(|refusal| format!("{refusal} limit reached"))
    }

    fn handshake_is_over(&mut self) {
        self.half_open = None;
    }
}

/// Where clients are let in or turned away.
#[derive(Clone)]
struct Door {
    service: Arc<Service>,
    sessions: Arc<Sessions>,
}

impl Door {
    /// Gives a client its slots and a thread, or closes its connection.
    fn admit(&self, Client { stream, addr }: Client) {
        let ip = addr.map(|addr| addr.ip());
        let (sessions, is_balancer) = (&self.sessions, self.service.is_balancer(ip));
        // A balancer comes for others than those of its own host who have failed.
        if !is_balancer && self.service.shuts_out(ip) {
            return self.refuse(addr, Refusal::AuthPenalty, None);
        }
        let seated = match Sessions::admit(sessions, Some(ip).filter(|_| !is_balancer)) {
            Ok((slot, half_open)) => Seated { slot, half_open: Some(half_open) },
            Err(refusal) => return self.refuse(addr, refusal, None),
        };
        let thread = match self.service.threads.reserve() {
            Ok(thread) => thread,
            Err(error) => return self.refuse(addr, Refusal::Threads, Some(error)),
        };
        let service = Arc::clone(&self.service);
        thread.run(move || session::run(&service, stream, addr, seated));
    }

    fn refuse(&self, client: Option<SocketAddr>, refusal: Refusal, error: Option<io::Error>) {
        let Some(count) = self.sessions.tell(refusal, Instant::now()) else { return };
        let mut line = Line::new("refuse")
            .client(client)
            .field("reason", "limit")
            .field("limit", refusal)
            .field("count", count);
        if let Some(error) = error {
            line = line.text("error", error);
        }
        self.service.log.write(Level::Normal, line);
    }
}

struct AcceptLoop {
    shared: Arc<Shared>,
    /// Ends when the loop is to.
    woken: io::PipeReader,
    /// A descriptor to give up for a moment when the table is full, so that a waiting client can be
    /// accepted and closed rather than kept waiting.
    spare: Option<OwnedFd>,
    /// When trouble was told of last.
    told: Option<Instant>,
}

impl AcceptLoop {
    /// Accepts clients until it is to end, or the listener breaks; returns with what error.
    fn run(&mut self) -> Option<io::Error> {
        let mut rest = REST.0;
        while !self.is_ending() {
            match self.accept() {
                Ok(client) => {
                    rest = REST.0;
                    self.shared.door.admit(client);
                }
                Err(_) if self.is_ending() => break,
                Err(error) if sys::is_bad_descriptor(&error) => return Some(error),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted
                            | io::ErrorKind::Interrupted
                            | io::ErrorKind::WouldBlock
                    ) => {}
                // EMFILE, ENFILE, ENOBUFS and ENOMEM may pass, and so may the errors that
                // accept(2) hands on from the network; a rest keeps this from spinning.
                Err(error) => {
                    self.tell(&error);
                    if sys::is_out_of_descriptors(&error) {
                        self.turn_away();
                    }
                    thread::sleep(rest);
                    rest = (rest * 2).min(REST.1);
                }
            }
        }
        None
    }

    fn is_ending(&self) -> bool {
        *lock(&self.shared.ending)
    }

    /// Waits for a client. A socket of our own is shut down to end that; an inherited one must not
    /// be, so there the wait is for either.
    fn accept(&self) -> io::Result<Client> {
        let listener = &self.shared.listener;
        if listener.inherited {
            let woken = PollFd::new(&self.woken, sys::POLLIN);
            let mut fds = [PollFd::new(listener, sys::POLLIN), woken];
            sys::poll(&mut fds, None)?;
            let [on_listener, _] = &fds;
            if !on_listener.has(!0) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        listener.accept()
    }

    fn tell(&mut self, error: &io::Error) {
        if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            let line = Line::new("error").text("error", format_args!("accept: {error}"));
            self.shared.door.service.log.write(Level::Quiet, line);
        }
    }

    /// Accepts a waiting client with the spare descriptor, to close it at once.
    fn turn_away(&mut self) {
        let listener = &self.shared.listener;
        drop(self.spare.take());
        // If another thread was quicker to take the descriptor, this one fails or waits for the
        // next client, which is then served.
        if listener.inherited {
            let _ = self.accept();
        } else {
            let ending = lock(&self.shared.ending);
            if !*ending && listener.set_nonblocking(true).is_ok() {
                let _ = listener.accept();
                let _ = listener.set_nonblocking(false);
            }
        }
        self.spare = io::stdin().as_fd().try_clone_to_owned().ok();
    }
}
