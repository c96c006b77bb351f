//! The server: threads that wait for the clients of each listener, each of which then serves the one
//! it got, and one loop that waits for signals, ends it when it is to end, and lets sessions finish.
//! Somebody always waits for the next client, whatever becomes of those that have come.

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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::log::{Level, Line};
use crate::server::listeners::{Client, Listener};
use crate::server::metrics::Metrics;
use crate::server::sessions::{Caps, HalfOpen, Refusal, Sessions, Slot};
use crate::server::signals::Signal;
use crate::session::{self, Seat, Service};
use crate::sync::{Queue, lock};
use crate::sys::{self, PollFd};

/// How long whoever waits for clients rests when the system is out of something, at first and at
/// most.
const REST: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// Threads that come back to wait for clients of one listener. With one alone a client that comes
/// before the next one is there has to wait; the system wakes those that wait in turn, so that more
/// than two only find their stacks and processors cold.
const WAITING: usize = 2;

/// Clients turned away between two rests.
const BATCH: usize = 256;

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
/// be few, and whoever waits for clients and runs out refuses them instead of ending.
const SESSION_DESCRIPTORS: u64 = 2;

/// Descriptors of a pipe.
const PIPE_DESCRIPTORS: u64 = 2;

/// Raises the limit on open descriptors to what `caps` and so many pipes need, and returns the caps
/// and the number of pipes that can be kept. Pipes have no more than an eighth of all descriptors.
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
        caps: Caps,
    ) -> io::Result<Self> {
        let events = Arc::<Queue<Event>>::default();
        let (idle, tell_idle) = (Arc::clone(&events), Arc::new(AtomicBool::new(false)));
        let wanted = Arc::clone(&tell_idle);
        let on_idle = move || {
            if wanted.load(Ordering::SeqCst) {
                idle.put(Event::Idle);
            }
        };
        let sessions = Arc::new(Sessions::new(caps, on_idle));
        let metrics = metrics.map(|listener| Metrics::start(listener, service, &sessions));
        let metrics = metrics.transpose()?;
        let door = Door { service: Arc::clone(service), sessions: Arc::clone(&sessions) };
        clients.into_iter().for_each(|client| door.admit(client));
        let mut accepting = Vec::new();
        for listener in listeners {
            accepting.push(Accepting::start(listener, door.clone(), Arc::clone(&events))?);
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
    pub fn run(mut self, limits: Limits, reload: impl Fn(), stopping: impl FnOnce()) -> Ending {
        self.tell_idle.store(limits.idle.is_some() || self.accepting.is_empty(), Ordering::SeqCst);
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
        self.tell_idle.store(true, Ordering::SeqCst);
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
        self.events.take(timeout.map(|timeout| Instant::now() + timeout))
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
    post: Arc<Post>,
    /// Closed to wake who waits at an inherited listener.
    waker: Option<io::PipeWriter>,
}

impl Accepting {
    fn start(listener: Listener, door: Door, events: Arc<Queue<Event>>) -> io::Result<Self> {
        // A socket of our own is shut down for that.
        let (woken, waker) = listener.inherited.then(io::pipe).transpose()?.unzip();
        let trouble = Trouble { rest: REST.0, last: None, spare: spare(), told: None };
        let post = Arc::new(Post {
            listener,
            door,
            events,
            woken,
            watch: Mutex::default(),
            left: Condvar::new(),
            trouble: Mutex::new(trouble),
        });
        for _ in 0..post.enough() {
            Post::add(&post)?;
        }
        Ok(Self { post, waker })
    }

    /// Ends accepting. The clients that wait at a listener of our own are admitted first: nobody
    /// else will. Those at an inherited one wait for whoever has it next.
    fn end(self) {
        let Post { listener, door, watch, left, .. } = &*self.post;
        let mut watching = lock(watch);
        watching.ending = true;
        let waits = listener.inherited || listener.set_nonblocking(true).is_err();
        drop(watching);
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
        let others = |watch: &mut Watch| watch.waiting > 0;
        // Not for ever, whatever went wrong.
        let _ = left.wait_timeout_while(lock(watch), LAST_LINES, others);
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
    fn admit(&self, client: Client) {
        let Some(seated) = self.seat(&client) else { return };
        match self.service.threads.reserve() {
            Ok(thread) => {
                let service = Arc::clone(&self.service);
                thread.run(move || session::run(&service, client.stream, client.addr, seated));
            }
            Err(error) => self.refuse(client.addr, Refusal::Threads, Some(error)),
        }
    }

    /// Gives a client its slots, or tells why it has none.
    fn seat(&self, client: &Client) -> Option<Seated> {
        let ip = client.addr.map(|addr| addr.ip());
        let is_balancer = self.service.is_balancer(ip);
        // A balancer comes for others than those of its own host who have failed.
        let admitted = if !is_balancer && self.service.shuts_out(ip) {
            Err(Refusal::AuthPenalty)
        } else {
            Sessions::admit(&self.sessions, Some(ip).filter(|_| !is_balancer))
        };
        match admitted {
            Ok((slot, half_open)) => Some(Seated { slot, half_open: Some(half_open) }),
            Err(refusal) => {
                self.refuse(client.addr, refusal, None);
                None
            }
        }
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

/// Has somebody else wait in place of a thread that panics at it.
struct Guard<'a>(&'a Arc<Post>);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if thread::panicking() && self.0.leave() {
            // Whoever serves a client comes back where nobody can be had now.
            let _ = Post::add(self.0);
        }
    }
}

/// Where threads wait for the clients of a listener. Whoever gets one serves it, and leaves the wait
/// to others: no client is handed from thread to thread.
struct Post {
    listener: Listener,
    door: Door,
    events: Arc<Queue<Event>>,
    /// Ends when nobody is to wait any more at an inherited listener.
    woken: Option<io::PipeReader>,
    /// Held while the listener is made to wait or not to wait.
    watch: Mutex<Watch>,
    /// Somebody has left while it is ending.
    left: Condvar,
    trouble: Mutex<Trouble>,
}

#[derive(Default)]
struct Watch {
    /// How many threads wait, or are about to.
    waiting: usize,
    ending: bool,
}

/// What there is for when accepting fails.
struct Trouble {
    /// How long to rest, and when the last one was over.
    rest: Duration,
    last: Option<Instant>,
    /// A descriptor to give up for a moment when the table is full, so that a waiting client can be
    /// accepted and closed rather than kept waiting.
    spare: Option<OwnedFd>,
    /// When trouble was told of last.
    told: Option<Instant>,
}

fn spare() -> Option<OwnedFd> {
    io::stdin().as_fd().try_clone_to_owned().ok()
}

impl Post {
    /// Has one more thread wait.
    fn add(this: &Arc<Self>) -> io::Result<()> {
        let thread = this.door.service.threads.reserve()?;
        lock(&this.watch).waiting += 1;
        let this = Arc::clone(this);
        thread.run(move || Self::man(this));
        Ok(())
    }

    /// Waits for clients and serves them, as long as somebody is needed here.
    fn man(mut this: Arc<Self>) {
        while let Some((Client { stream, addr }, seated)) = Self::next(&this) {
            let service = Arc::clone(&this.door.service);
            // The listener does not stay open for the sake of its clients.
            let post = Arc::downgrade(&this);
            drop(this);
            session::run(&service, stream, addr, seated);
            match post.upgrade().filter(|post| post.comes_back()) {
                Some(post) => this = post,
                None => return,
            }
        }
    }

    /// How many are to wait when nothing else is to be done.
    fn enough(&self) -> usize {
        // All that wait at an inherited listener would be woken for one client.
        if self.listener.inherited { 1 } else { WAITING }
    }

    /// Whether somebody who has served a client waits again.
    fn comes_back(&self) -> bool {
        let mut watch = lock(&self.watch);
        let comes = watch.waiting < self.enough() && !watch.ending;
        watch.waiting += usize::from(comes);
        comes
    }

    /// Ends one wait; tells whether nobody is left to wait.
    fn leave(&self) -> bool {
        let mut watch = lock(&self.watch);
        watch.waiting = watch.waiting.saturating_sub(1);
        if watch.ending {
            self.left.notify_all();
        }
        watch.waiting == 0 && !watch.ending
    }

    /// Ends one wait, if it is not the last one.
    fn leave_it_to_others(&self) -> bool {
        let mut watch = lock(&self.watch);
        let leaves = watch.waiting > 1 && !watch.ending;
        watch.waiting -= usize::from(leaves);
        leaves
    }

    /// Waits for a client; `None` when it is not to any more, or the listener breaks. The wait is
    /// over then.
    fn next(this: &Arc<Self>) -> Option<(Client, Seated)> {
        let _guard = Guard(this);
        while !this.is_ending() {
            match this.accept() {
                Ok(client) => {
                    let Some(seated) = this.door.seat(&client) else { continue };
                    if this.leave()
                        && let Err(error) = Self::add(this)
                    {
                        lock(&this.watch).waiting += 1;
                        this.door.refuse(client.addr, Refusal::Threads, Some(error));
                        continue;
                    }
                    return Some((client, seated));
                }
                Err(_) if this.is_ending() => break,
                Err(error) if sys::is_bad_descriptor(&error) => {
                    this.events.put(Event::Broken(error));
                    break;
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted
                            | io::ErrorKind::Interrupted
                            | io::ErrorKind::WouldBlock
                    ) => {}
                // The spare descriptor is for one alone to give up: another would serve a client with
                // it, and those behind would neither be served nor turned away.
                Err(error) if sys::is_out_of_descriptors(&error) && this.leave_it_to_others() => {
                    return None;
                }
                // EMFILE, ENFILE, ENOBUFS and ENOMEM may pass, and so may the errors that
                // accept(2) hands on from the network; a rest keeps this from spinning.
                Err(error) => this.rest(&error),
            }
        }
        this.leave();
        None
    }

    fn is_ending(&self) -> bool {
        lock(&self.watch).ending
    }

    /// Waits for a client. A socket of our own is shut down to end that; an inherited one must not
    /// be, so there the wait is for either.
    fn accept(&self) -> io::Result<Client> {
        if let Some(woken) = &self.woken {
            let mut fds =
                [PollFd::new(&self.listener, sys::POLLIN), PollFd::new(woken, sys::POLLIN)];
            sys::poll(&mut fds, None)?;
            let [on_listener, _] = &fds;
            if !on_listener.has(!0) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        self.listener.accept()
    }

    /// Rests after an error, longer after another soon. Who else has one rests behind this one.
    fn rest(&self, error: &io::Error) {
        let mut trouble = lock(&self.trouble);
        let now = Instant::now();
        if trouble.last.is_none_or(|last| now.duration_since(last) > 4 * REST.1) {
            trouble.rest = REST.0;
        }
        if trouble.told.is_none_or(|told| now.duration_since(told) >= TELL_EVERY) {
            trouble.told = Some(now);
            let line = Line::new("error").text("error", format_args!("accept: {error}"));
            self.door.service.log.write(Level::Quiet, line);
        }
        if sys::is_out_of_descriptors(error) {
            self.turn_away(&mut trouble);
        }
        thread::sleep(trouble.rest);
        trouble.rest = (trouble.rest * 2).min(REST.1);
        trouble.last = Some(Instant::now());
    }

    /// Accepts clients that wait with the spare descriptor, each to close it at once, as long as the
    /// table stays full.
    fn turn_away(&self, trouble: &mut Trouble) {
        let listener = &self.listener;
        // At an inherited one accepting may wait, if another process is quicker. That must not keep
        // anybody from ending it.
        let watch = (!listener.inherited).then(|| lock(&self.watch));
        if watch
            .as_ref()
            .is_some_and(|watch| watch.ending || listener.set_nonblocking(true).is_err())
        {
            return;
        }
        for _ in 0..BATCH {
            drop(trouble.spare.take());
            // If another thread was quicker to take the descriptor, this fails.
            let client = self.accept_waiting();
            // As long as that one has it, there is another one only if the table is not full.
            let ends = client.is_err() || {
                trouble.spare = spare();
                trouble.spare.is_some()
            };
            drop(client);
            if ends {
                break;
            }
        }
        trouble.spare = trouble.spare.take().or_else(spare);
        if watch.is_some() {
            let _ = listener.set_nonblocking(false);
        }
    }

    /// Accepts a client who waits already.
    fn accept_waiting(&self) -> io::Result<Client> {
        let mut fds = [PollFd::new(&self.listener, sys::POLLIN)];
        if sys::poll(&mut fds, Some(Duration::ZERO))? == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.listener.accept()
    }
}
