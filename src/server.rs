//! The server: starts the threads that accept clients, waits for signals, ends for one of the
//! reasons in [`Ending`], and lets sessions finish. Not here: accepting (`accept`), and the limits
//! on clients and descriptors (`slots`).

mod accept;
pub mod inherit;
pub mod landlock;
pub mod listeners;
pub mod metrics;
pub mod notify;
pub mod pid_file;
pub mod privileges;
pub mod signals;
pub mod slots;
pub mod walls;

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::log::Level;
use crate::server::accept::{Accepting, Admitter};
use crate::server::listeners::{Client, Listener};
use crate::server::metrics::Metrics;
use crate::server::signals::Signal;
use crate::server::slots::{Sessions, SlotLimits};
use crate::session::service::Service;
use crate::sync::Queue;

/// How long ended sessions may take to write their last log line.
const LAST_LINE_TIME: Duration = Duration::from_secs(1);

/// Something that the run loop waits for.
enum Event {
    Signal(Signal),
    /// A listener became unusable.
    Broken(io::Error),
    /// The last session has ended.
    Idle,
}

/// The reason why the server ends.
#[derive(Debug)]
pub enum Ending {
    /// The signal of this name.
    Signal(&'static str),
    /// No session, and no listener or no client for [`Lifetime::idle`].
    Idle,
    /// A listener became unusable.
    Broken(io::Error),
}

/// When to end.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    /// How long sessions may go on after a signal.
    pub drain: Duration,
    /// How long the server goes on without a session; `None` for ever.
    pub idle: Option<Duration>,
}

/// A running server.
pub struct Server {
    service: Arc<Service>,
    sessions: Arc<Sessions>,
    /// Whether the end of the last session is an event.
    reports_idle: Arc<AtomicBool>,
    accepting: Vec<Accepting>,
    metrics: Option<Metrics>,
    events: Arc<Queue<Event>>,
    started: Instant,
}

impl Server {
    /// Serves `clients`, which have been accepted already, the clients of all `listeners`, and
    /// metrics. Signals must be blocked before.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(
        listeners: Vec<Listener>,
        metrics: Option<Listener>,
        clients: Vec<Client>,
        service: &Arc<Service>,
        slots: SlotLimits,
    ) -> io::Result<Self> {
        let events = Arc::<Queue<Event>>::default();
        let (idle, reports_idle) = (Arc::clone(&events), Arc::new(AtomicBool::new(false)));
        let reports = Arc::clone(&reports_idle);
        let on_idle = move || {
            if reports.load(Ordering::SeqCst) {
                idle.put(Event::Idle);
            }
        };
        let sessions = Arc::new(Sessions::new(slots, on_idle));
        let metrics = metrics.map(|listener| Metrics::start(listener, service, &sessions));
        let metrics = metrics.transpose()?;
        let admitter = Admitter { service: Arc::clone(service), sessions: Arc::clone(&sessions) };
        clients.into_iter().for_each(|client| admitter.admit(client));
        let mut accepting = Vec::new();
        for listener in listeners {
            let events = Arc::clone(&events);
            let broken = move |error| events.put(Event::Broken(error));
            accepting.push(Accepting::start(listener, admitter.clone(), broken)?);
        }
        if !accepting.is_empty() {
            service.relays.watch()?;
        }
        let signalled = Arc::clone(&events);
        thread::Builder::new().name("signals".into()).spawn(move || {
            loop {
                match signals::wait() {
                    Ok(signal) => signalled.put(Event::Signal(signal)),
                    Err(error) => return signalled.put(Event::Broken(error)),
                }
            }
        })?;
        let started = Instant::now();
        let service = Arc::clone(service);
        Ok(Self { service, sessions, reports_idle, accepting, metrics, events, started })
    }

    /// Runs until a signal, until a listener breaks, or until nothing is left to do. SIGHUP calls
    /// `reload`. `stopping` is called before the end of anything. On return no client is accepted
    /// any more, and all sessions have ended.
    pub fn run(mut self, lifetime: Lifetime, reload: impl Fn(), stopping: impl FnOnce()) -> Ending {
        self.reports_idle
            .store(lifetime.idle.is_some() || self.accepting.is_empty(), Ordering::SeqCst);
        let ending = loop {
            let idle = self.sessions.idle_for();
            let limit =
                if self.accepting.is_empty() { Some(Duration::ZERO) } else { lifetime.idle };
            let left = match (idle, limit) {
                (Some(idle), Some(limit)) if idle >= limit => break Ending::Idle,
                (Some(idle), Some(limit)) => Some(limit.saturating_sub(idle)),
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
        self.reports_idle.store(true, Ordering::SeqCst);
        let accepting = std::mem::take(&mut self.accepting);
        let count = accepting.len();
        accepting.into_iter().for_each(Accepting::end);
        let log = &self.service.log;
        let deadline = match &ending {
            Ending::Signal(name) => {
                let line = log
                    .line("stopping")
                    .word("signal", name)
                    .number("sessions", self.sessions.count());
                log.write(Level::Normal, line);
                Some(Instant::now() + lifetime.drain)
            }
            // A client of the last moment is served to its end.
            Ending::Idle if count > 0 => {
                let line = log.line("idle").number("sessions", self.sessions.count());
                log.write(Level::Normal, line);
                None
            }
            Ending::Idle => None,
            Ending::Broken(_) => Some(Instant::now()),
        };
        self.wait_for_sessions(deadline, lifetime.drain, &reload);
        if self.sessions.count() > 0 {
            self.service.live.end_all();
            self.wait_for_sessions(Some(Instant::now() + LAST_LINE_TIME), lifetime.drain, &reload);
        }
        ending
    }

    /// Waits for the end of all sessions until the deadline or a signal. Without a deadline the
    /// first signal sets one, after `drain`.
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

    /// Waits for the next event; `None` after `timeout`.
    fn next_event(&self, timeout: Option<Duration>) -> Option<Event> {
        self.events.take(timeout.map(|timeout| Instant::now() + timeout))
    }

    /// Logs the state of the server and of its sessions.
    fn report(&self) {
        // Not available in a chroot.
        let count = |directory: &str| fs::read_dir(directory).ok().map(Iterator::count);
        let log = &self.service.log;
        let line = log
            .line("status")
            .number("uptime", self.started.elapsed().as_secs())
            .number_or_dash("threads", count("/proc/self/task"))
            .number_or_dash("descriptors", count("/proc/self/fd"))
            .number("names", self.service.resources.resolver.waiting());
        log.write(Level::Normal, self.sessions.report(line));
        self.service.live.report(log);
    }
}
