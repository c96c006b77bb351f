//! The server: threads that wait for the clients of each listener, each of which then serves the one
//! it got, and one loop that waits for signals, ends it when it is to end, and lets sessions finish.
//! Somebody always waits for the next client, whatever becomes of those that have come.

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
use crate::server::accept::{Accepting, Admitter, LAST_LINE_TIME};
use crate::server::listeners::{Client, Listener};
use crate::server::metrics::Metrics;
use crate::server::signals::Signal;
use crate::server::slots::{Sessions, SlotLimits};
use crate::session::service::Service;
use crate::sync::Queue;

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
pub struct Lifetime {
    /// How long sessions under way have once a signal has come.
    pub drain: Duration,
    /// How long there may be no session; `None` for ever.
    pub idle: Option<Duration>,
}

/// A running server.
pub struct Server {
    service: Arc<Service>,
    sessions: Arc<Sessions>,
    /// Whether it matters that there is no session any more.
    tell_idle: Arc<AtomicBool>,
    accepting: Vec<Accepting>,
    metrics: Option<Metrics>,
    events: Arc<Queue<Event>>,
    started: Instant,
}

impl Server {
    /// Serves `clients`, who have been accepted already, and those of all `listeners`, and metrics.
    /// The signals must have been blocked.
    ///
    /// # Errors
    /// Where a thread cannot be started.
    pub fn start(
        listeners: Vec<Listener>,
        metrics: Option<Listener>,
        clients: Vec<Client>,
        service: &Arc<Service>,
        slots: SlotLimits,
    ) -> io::Result<Self> {
        let events = Arc::<Queue<Event>>::default();
        let (idle, tell_idle) = (Arc::clone(&events), Arc::new(AtomicBool::new(false)));
        let wanted = Arc::clone(&tell_idle);
        let on_idle = move || {
            if wanted.load(Ordering::SeqCst) {
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
        Ok(Self { service, sessions, tell_idle, accepting, metrics, events, started })
    }

    /// Runs until a signal comes, a listener breaks or there is nothing left to do. SIGHUP calls
    /// `reload`; `stopping` is called before anything is ended. On return no client is accepted any
    /// more, and all sessions have ended.
    pub fn run(mut self, lifetime: Lifetime, reload: impl Fn(), stopping: impl FnOnce()) -> Ending {
        self.tell_idle
            .store(lifetime.idle.is_some() || self.accepting.is_empty(), Ordering::SeqCst);
        let ending = loop {
            let idle = self.sessions.idle_for();
            let patience =
                if self.accepting.is_empty() { Some(Duration::ZERO) } else { lifetime.idle };
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
        self.tell_idle.store(true, Ordering::SeqCst);
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
            // Who came at the last moment is served all the same.
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
        self.events.take(timeout.map(|timeout| Instant::now() + timeout))
    }

    /// Logs how the server is doing.
    fn report(&self) {
        // Not to be had in a chroot.
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
