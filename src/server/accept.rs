//! Accepting: a few threads wait for the clients of a listener; each serves the client it accepts.
//! Also here: the back-off after accept(2) fails. The limits on clients are in
//! [`crate::server::slots`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::log::Level;
use crate::net::ClientKey;
use crate::server::listeners::{Client, Listener};
use crate::server::slots::{HalfOpenSlot, Refusal, SessionSlot, Sessions};
use crate::session;
use crate::session::service::{Service, Slot};
use crate::sync::lock;
use crate::sys::{self, PollFd};

/// The first back-off after accept(2) fails for lack of resources.
const BACKOFF_MIN: Duration = Duration::from_millis(10);

/// The longest back-off.
const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// Threads that return to wait at one listener. With one, a client would wait while the next thread
/// is on its way. The system wakes waiting threads in turn, so more than two would only run with
/// cold stacks and caches.
const ACCEPTORS: usize = 2;

/// Clients closed between two back-offs, at most.
const TURN_AWAY_MAX: usize = 256;

/// The least time between two log lines about the back-off of one listener.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How long the threads that wait for clients may take to end.
const END_TIME: Duration = Duration::from_secs(1);

/// How long TCP handshakes may take that have begun before the end. A SYN in this time is dropped
/// and repeated a second later, so it is no longer than local networks need.
const TCP_HANDSHAKE_TIME: Duration = Duration::from_millis(5);

/// A listener at work.
pub(super) struct Accepting {
    acceptors: Arc<Acceptors>,
    /// Closed to end the waits at an inherited listener.
    waker: Option<io::PipeWriter>,
}

impl Accepting {
    pub(super) fn start(
        listener: Listener,
        admitter: Admitter,
        broken: impl Fn(io::Error) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        // A socket of our own is shut down instead.
        let (ended, waker) = listener.inherited.then(io::pipe).transpose()?.unzip();
        let backoff =
            Backoff { time: BACKOFF_MIN, ended: None, spare: spare_descriptor(), logged: None };
        let acceptors = Arc::new(Acceptors {
            listener,
            admitter,
            broken: Box::new(broken),
            ended,
            state: Mutex::default(),
            acceptor_left: Condvar::new(),
            backoff: Mutex::new(backoff),
        });
        for _ in 0..acceptors.wanted() {
            Acceptors::add(&acceptors)?;
        }
        Ok(Self { acceptors, waker })
    }

    /// Ends accepting. Clients in the backlog of a listener of our own are admitted first. Those of
    /// an inherited one are left to the next process that accepts there.
    pub(super) fn end(self) {
        let Acceptors { listener, admitter, state, acceptor_left, .. } = &*self.acceptors;
        let mut locked = lock(state);
        locked.ending = true;
        let blocks = listener.inherited || listener.set_nonblocking(true).is_err();
        drop(locked);
        if !listener.inherited {
            // New connections are dropped first: one between the last accept(2) and the end would
            // be reset. Without socket filters in the kernel, it still is.
            listener.remove();
            if listener.tcp_addr().is_some() {
                let _ = sys::drop_new_connections(listener);
            }
            if !blocks {
                admit_backlog(listener, admitter);
            }
            let _ = sys::shutdown(listener);
        }
        drop(self.waker);
        let any_waits = |state: &mut AcceptState| state.waiting > 0;
        // The time is limited, so that no error can keep the server from its end.
        let _ = acceptor_left.wait_timeout_while(lock(state), END_TIME, any_waits);
    }
}

/// Admits the clients in the backlog of a non-blocking listener, and those whose TCP handshake ends
/// in a moment.
fn admit_backlog(listener: &Listener, admitter: &Admitter) {
    let until = Instant::now() + TCP_HANDSHAKE_TIME;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match listener.accept() {
            Ok(client) => admitter.admit(client),
            Err(_) if left.is_zero() => return,
            Err(_) => {
                let _ = sys::poll(&mut [PollFd::new(listener, sys::POLLIN)], Some(left));
            }
        }
    }
}

/// The slots of one client.
struct ClientSlots {
    session: SessionSlot,
    /// Until the end of the handshake.
    half_open: Option<HalfOpenSlot>,
}

impl Slot for ClientSlots {
    fn number(&self) -> u64 {
        self.session.number()
    }

    fn reassign(&mut self, client: Option<IpAddr>) -> Result<(), String> {
        // A balancer names the client in the handshake only.
        let Some(half_open) = &mut self.half_open else { return Ok(()) };
        let reassigned = self.session.reassign(ClientKey::of(client), half_open);
        reassigned.map_err(|refusal| format!("{refusal} limit reached"))
    }

    fn end_handshake(&mut self) {
        self.half_open = None;
    }
}

/// Admits clients as sessions, or refuses them.
#[derive(Clone)]
pub(super) struct Admitter {
    pub(super) service: Arc<Service>,
    pub(super) sessions: Arc<Sessions>,
}

impl Admitter {
    /// Serves a client on another thread, or closes its connection.
    pub(super) fn admit(&self, client: Client) {
        let Some(slots) = self.take_slots(&client) else { return };
        match self.service.threads.reserve() {
            Ok(thread) => {
                let service = Arc::clone(&self.service);
                thread.run(move || session::run(&service, client.stream, client.addr, slots));
            }
            Err(error) => self.refuse(client.addr, Refusal::Threads, Some(error)),
        }
    }

    /// Takes the slots for a client, or logs why there are none.
    fn take_slots(&self, client: &Client) -> Option<ClientSlots> {
        let ip = client.addr.map(|addr| addr.ip());
        let is_balancer = self.service.balancers.includes(ip);
        // A penalty for clients on the host of a balancer must not shut out the balancer.
        let admitted = if !is_balancer && self.service.shuts_out(ip) {
            Err(Refusal::AuthPenalty)
        } else {
            Sessions::admit(&self.sessions, (!is_balancer).then(|| ClientKey::of(ip)))
        };
        match admitted {
            Ok((session, half_open)) => Some(ClientSlots { session, half_open: Some(half_open) }),
            Err(refusal) => {
                self.refuse(client.addr, refusal, None);
                None
            }
        }
    }

    /// Counts and logs a refusal.
    fn refuse(&self, client: Option<SocketAddr>, refusal: Refusal, error: Option<io::Error>) {
        let Some(count) = self.sessions.count_refusal(refusal, Instant::now()) else { return };
        let log = &self.service.log;
        let mut line = log
            .line("refuse")
            .client(client)
            .word("reason", "limit")
            .word("limit", refusal)
            .number("count", count);
        if let Some(error) = error {
            line = line.text("error", error);
        }
        log.write(Level::Normal, line);
    }
}

/// Replaces an acceptor that panics.
struct ReplaceOnPanic<'a>(&'a Arc<Acceptors>);

impl Drop for ReplaceOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() && self.0.leave() {
            // If that fails, a thread that now serves a client rejoins after it.
            let _ = Acceptors::add(self.0);
        }
    }
}

/// The threads that wait for clients of one listener. A thread serves the client it accepts, and
/// the others go on waiting: no client is handed from thread to thread, and the wait never pauses.
struct Acceptors {
    listener: Listener,
    admitter: Admitter,
    /// Called if the listener becomes unusable.
    broken: Box<dyn Fn(io::Error) + Send + Sync>,
    /// Hangs up when accepting at an inherited listener ends.
    ended: Option<io::PipeReader>,
    /// Locked while the listener is switched between blocking and non-blocking.
    state: Mutex<AcceptState>,
    /// Notified when a thread stops waiting during the end.
    acceptor_left: Condvar,
    backoff: Mutex<Backoff>,
}

#[derive(Default)]
struct AcceptState {
    /// The number of threads that wait for a client, or are about to.
    waiting: usize,
    ending: bool,
}

/// The back-off after accept(2) fails.
struct Backoff {
    /// The length of the next back-off.
    time: Duration,
    /// The end of the last one.
    ended: Option<Instant>,
    /// A descriptor that is closed for a moment when the table is full, so that a waiting client
    /// can be accepted and closed instead of left waiting.
    spare: Option<OwnedFd>,
    /// The time of the last log line.
    logged: Option<Instant>,
}

fn spare_descriptor() -> Option<OwnedFd> {
    io::stdin().as_fd().try_clone_to_owned().ok()
}

impl Acceptors {
    /// Adds a thread that waits.
    fn add(this: &Arc<Self>) -> io::Result<()> {
        let thread = this.admitter.service.threads.reserve()?;
        lock(&this.state).waiting += 1;
        let this = Arc::clone(this);
        thread.run(move || Self::work(this));
        Ok(())
    }

    /// Waits for a client, serves it, and returns to wait as long as threads are wanted.
    fn work(mut this: Arc<Self>) {
        while let Some((Client { stream, addr }, slots)) = Self::next(&this) {
            let service = Arc::clone(&this.admitter.service);
            // A session must not keep the listener open.
            let acceptors = Arc::downgrade(&this);
            drop(this);
            session::run(&service, stream, addr, slots);
            match acceptors.upgrade().filter(|acceptors| acceptors.rejoin()) {
                Some(acceptors) => this = acceptors,
                None => return,
            }
        }
    }

    /// The number of threads that should wait when all clients are served.
    fn wanted(&self) -> usize {
        // At an inherited listener, poll(2) wakes all waiting threads for one client.
        if self.listener.inherited { 1 } else { ACCEPTORS }
    }

    /// Counts the thread as waiting again, if one more is wanted. Returns whether it is.
    fn rejoin(&self) -> bool {
        let mut state = lock(&self.state);
        let is_wanted = state.waiting < self.wanted() && !state.ending;
        state.waiting += usize::from(is_wanted);
        is_wanted
    }

    /// Counts the thread as not waiting any more. Returns whether a replacement is needed, since no
    /// other thread waits.
    fn leave(&self) -> bool {
        let mut state = lock(&self.state);
        state.waiting = state.waiting.saturating_sub(1);
        if state.ending {
            self.acceptor_left.notify_all();
        }
        state.waiting == 0 && !state.ending
    }

    /// The same unless no other thread waits. Returns whether the thread has left.
    fn leave_unless_last(&self) -> bool {
        let mut state = lock(&self.state);
        let leaves = state.waiting > 1 && !state.ending;
        state.waiting -= usize::from(leaves);
        leaves
    }

    /// Waits for a client, and counts the thread as not waiting any more. `None` if accepting ends,
    /// the listener breaks, or other threads wait while descriptors are short.
    fn next(this: &Arc<Self>) -> Option<(Client, ClientSlots)> {
        let _guard = ReplaceOnPanic(this);
        while !this.is_ending() {
            match this.accept() {
                Ok(client) => {
                    let Some(slots) = this.admitter.take_slots(&client) else { continue };
                    if this.leave()
                        && let Err(error) = Self::add(this)
                    {
                        lock(&this.state).waiting += 1;
                        this.admitter.refuse(client.addr, Refusal::Threads, Some(error));
                        continue;
                    }
                    return Some((client, slots));
                }
                Err(_) if this.is_ending() => break,
                Err(error) if sys::is_bad_descriptor(&error) => {
                    (this.broken)(error);
                    break;
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted
                            | io::ErrorKind::Interrupted
                            | io::ErrorKind::WouldBlock
                    ) => {}
                // Only one thread may close the spare descriptor: a second one would use it to
                // serve a client, and the clients after that would be neither served nor closed.
                Err(error) if sys::is_out_of_descriptors(&error) && this.leave_unless_last() => {
                    return None;
                }
                // EMFILE, ENFILE, ENOBUFS and ENOMEM may pass, and so may network errors, which
                // accept(2) returns too. The back-off prevents a busy loop.
                Err(error) => this.back_off(&error),
            }
        }
        this.leave();
        None
    }

    fn is_ending(&self) -> bool {
        lock(&self.state).ending
    }

    /// Waits for a client. At the end a socket of our own is shut down. An inherited one must not
    /// be, so the wait there is for `ended` too.
    fn accept(&self) -> io::Result<Client> {
        if let Some(ended) = &self.ended {
            let mut fds =
                [PollFd::new(&self.listener, sys::POLLIN), PollFd::new(ended, sys::POLLIN)];
            sys::poll(&mut fds, None)?;
            let [on_listener, _] = &fds;
            if !on_listener.has(!0) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        self.listener.accept()
    }

    /// Sleeps after an error, twice as long if the last one was recent. The lock is held meanwhile,
    /// so that threads back off one after another.
    fn back_off(&self, error: &io::Error) {
        let mut backoff = lock(&self.backoff);
        let now = Instant::now();
        if backoff.ended.is_none_or(|ended| now.duration_since(ended) > 4 * BACKOFF_MAX) {
            backoff.time = BACKOFF_MIN;
        }
        if backoff.logged.is_none_or(|logged| now.duration_since(logged) >= LOG_INTERVAL) {
            backoff.logged = Some(now);
            let log = &self.admitter.service.log;
            let line = log.line("error").text("error", format_args!("accept: {error}"));
            log.write(Level::Quiet, line);
        }
        if sys::is_out_of_descriptors(error) {
            self.turn_away(&mut backoff);
        }
        thread::sleep(backoff.time);
        backoff.time = (backoff.time * 2).min(BACKOFF_MAX);
        backoff.ended = Some(Instant::now());
    }

    /// Accepts waiting clients with the spare descriptor and closes them, as long as the table of
    /// descriptors is full.
    fn turn_away(&self, backoff: &mut Backoff) {
        let listener = &self.listener;
        // At an inherited one accept(2) may block, if another process is faster. The lock must not
        // be held then, since the end needs it.
        let state = (!listener.inherited).then(|| lock(&self.state));
        if state
            .as_ref()
            .is_some_and(|state| state.ending || listener.set_nonblocking(true).is_err())
        {
            return;
        }
        for _ in 0..TURN_AWAY_MAX {
            drop(backoff.spare.take());
            // This fails if another thread takes the descriptor first.
            let client = self.accept_waiting();
            // The client has the descriptor: a new spare one means that the table is not full.
            let ends = client.is_err() || {
                backoff.spare = spare_descriptor();
                backoff.spare.is_some()
            };
            drop(client);
            if ends {
                break;
            }
        }
        backoff.spare = backoff.spare.take().or_else(spare_descriptor);
        if state.is_some() {
            let _ = listener.set_nonblocking(false);
        }
    }

    /// Accepts a client from the backlog, without waiting.
    fn accept_waiting(&self) -> io::Result<Client> {
        let mut fds = [PollFd::new(&self.listener, sys::POLLIN)];
        if sys::poll(&mut fds, Some(Duration::ZERO))? == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.listener.accept()
    }
}
