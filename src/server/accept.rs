//! Accepting: threads that wait for the clients of a listener, each of which then serves the one it
//! got; and what is done where accepting fails. How many there may be is in
//! [`crate::server::slots`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::log::Level;
use crate::server::listeners::{Client, Listener};
use crate::server::slots::{HalfOpenSlot, Refusal, SessionSlot, Sessions};
use crate::session;
use crate::session::service::{Service, Slot};
use crate::sync::lock;
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

/// How often the same backoff is told of.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How long sessions that are ended have to write their last line.
pub(super) const LAST_LINES: Duration = Duration::from_secs(1);

/// How long connections that have begun may take until they can be accepted. New ones wait a second
/// to try again if they come in that time, so it is no longer than local networks need.
const ON_THE_WAY: Duration = Duration::from_millis(5);

/// A listener at work.
pub(super) struct Accepting {
    acceptors: Arc<Acceptors>,
    /// Closed to wake who waits at an inherited listener.
    waker: Option<io::PipeWriter>,
}

impl Accepting {
    pub(super) fn start(
        listener: Listener,
        admitter: Admitter,
        broken: impl Fn(io::Error) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        // A socket of our own is shut down for that.
        let (woken, waker) = listener.inherited.then(io::pipe).transpose()?.unzip();
        let backoff = Backoff { rest: REST.0, last: None, spare: spare(), told: None };
        let acceptors = Arc::new(Acceptors {
            listener,
            admitter,
            broken: Box::new(broken),
            woken,
            watch: Mutex::default(),
            left: Condvar::new(),
            backoff: Mutex::new(backoff),
        });
        for _ in 0..acceptors.enough() {
            Acceptors::add(&acceptors)?;
        }
        Ok(Self { acceptors, waker })
    }

    /// Ends accepting. The clients that wait at a listener of our own are admitted first: nobody
    /// else will. Those at an inherited one wait for whoever has it next.
    pub(super) fn end(self) {
        let Acceptors { listener, admitter, watch, left, .. } = &*self.acceptors;
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
                admit_the_rest(listener, admitter);
            }
            let _ = sys::shutdown(listener);
        }
        drop(self.waker);
        let others = |watch: &mut AcceptState| watch.waiting > 0;
        // Not for ever, whatever went wrong.
        let _ = left.wait_timeout_while(lock(watch), LAST_LINES, others);
    }
}

/// Lets in who waits at a listener that does not, and who is on the way there.
fn admit_the_rest(listener: &Listener, admitter: &Admitter) {
    let until = Instant::now() + ON_THE_WAY;
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

/// The slots of a session.
struct ClientSlots {
    slot: SessionSlot,
    half_open: Option<HalfOpenSlot>,
}

impl Slot for ClientSlots {
    fn number(&self) -> u64 {
        self.slot.number()
    }

    fn reassign(&mut self, client: Option<IpAddr>) -> Result<(), String> {
        // Once its handshake is complete a session belongs to whom it does.
        let Some(half_open) = &mut self.half_open else { return Ok(()) };
        let counted = self.slot.assign_to(client, half_open);
        counted.map_err(|refusal| format!("{refusal} limit reached"))
    }

    fn end_handshake(&mut self) {
        self.half_open = None;
    }
}

/// Where clients are let in or turned away.
#[derive(Clone)]
pub(super) struct Admitter {
    pub(super) service: Arc<Service>,
    pub(super) sessions: Arc<Sessions>,
}

impl Admitter {
    /// Gives a client its slots and a thread, or closes its connection.
    pub(super) fn admit(&self, client: Client) {
        let Some(slots) = self.seat(&client) else { return };
        match self.service.threads.reserve() {
            Ok(thread) => {
                let service = Arc::clone(&self.service);
                thread.run(move || session::run(&service, client.stream, client.addr, slots));
            }
            Err(error) => self.refuse(client.addr, Refusal::Threads, Some(error)),
        }
    }

    /// Gives a client its slots, or tells why it has none.
    fn seat(&self, client: &Client) -> Option<ClientSlots> {
        let ip = client.addr.map(|addr| addr.ip());
        let is_balancer = self.service.balancers.includes(ip);
        // A balancer comes for others than those of its own host who have failed.
        let admitted = if !is_balancer && self.service.shuts_out(ip) {
            Err(Refusal::AuthPenalty)
        } else {
            Sessions::admit(&self.sessions, Some(ip).filter(|_| !is_balancer))
        };
        match admitted {
            Ok((slot, half_open)) => Some(ClientSlots { slot, half_open: Some(half_open) }),
            Err(refusal) => {
                self.refuse(client.addr, refusal, None);
                None
            }
        }
    }

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

/// Has somebody else wait in place of a thread that panics at it.
struct ReplaceOnPanic<'a>(&'a Arc<Acceptors>);

impl Drop for ReplaceOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() && self.0.leave() {
            // Whoever serves a client comes back where nobody can be had now.
            let _ = Acceptors::add(self.0);
        }
    }
}

/// Where threads wait for the clients of a listener. Whoever gets one serves it, and leaves the wait
/// to others: no client is handed from thread to thread.
struct Acceptors {
    listener: Listener,
    admitter: Admitter,
    /// Called if the listener becomes unusable.
    broken: Box<dyn Fn(io::Error) + Send + Sync>,
    /// Ends when nobody is to wait any more at an inherited listener.
    woken: Option<io::PipeReader>,
    /// Held while the listener is made to wait or not to wait.
    watch: Mutex<AcceptState>,
    /// Somebody has left while it is ending.
    left: Condvar,
    backoff: Mutex<Backoff>,
}

#[derive(Default)]
struct AcceptState {
    /// How many threads wait, or are about to.
    waiting: usize,
    ending: bool,
}

/// What there is for when accepting fails.
struct Backoff {
    /// How long to rest, and when the last one was over.
    rest: Duration,
    last: Option<Instant>,
    /// A descriptor to give up for a moment when the table is full, so that a waiting client can be
    /// accepted and closed rather than kept waiting.
    spare: Option<OwnedFd>,
    /// When backoff was told of last.
    told: Option<Instant>,
}

fn spare() -> Option<OwnedFd> {
    io::stdin().as_fd().try_clone_to_owned().ok()
}

impl Acceptors {
    /// Has one more thread wait.
    fn add(this: &Arc<Self>) -> io::Result<()> {
        let thread = this.admitter.service.threads.reserve()?;
        lock(&this.watch).waiting += 1;
        let this = Arc::clone(this);
        thread.run(move || Self::work(this));
        Ok(())
    }

    /// Waits for clients and serves them, as long as somebody is needed here.
    fn work(mut this: Arc<Self>) {
        while let Some((Client { stream, addr }, slots)) = Self::next(&this) {
            let service = Arc::clone(&this.admitter.service);
            // The listener does not stay open for the sake of its clients.
            let acceptors = Arc::downgrade(&this);
            drop(this);
            session::run(&service, stream, addr, slots);
            match acceptors.upgrade().filter(|acceptors| acceptors.comes_back()) {
                Some(acceptors) => this = acceptors,
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
    fn next(this: &Arc<Self>) -> Option<(Client, ClientSlots)> {
        let _guard = ReplaceOnPanic(this);
        while !this.is_ending() {
            match this.accept() {
                Ok(client) => {
                    let Some(slots) = this.admitter.seat(&client) else { continue };
                    if this.leave()
                        && let Err(error) = Self::add(this)
                    {
                        lock(&this.watch).waiting += 1;
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
        let mut backoff = lock(&self.backoff);
        let now = Instant::now();
        if backoff.last.is_none_or(|last| now.duration_since(last) > 4 * REST.1) {
            backoff.rest = REST.0;
        }
        if backoff.told.is_none_or(|told| now.duration_since(told) >= TELL_EVERY) {
            backoff.told = Some(now);
            let log = &self.admitter.service.log;
            let line = log.line("error").text("error", format_args!("accept: {error}"));
            log.write(Level::Quiet, line);
        }
        if sys::is_out_of_descriptors(error) {
            self.turn_away(&mut backoff);
        }
        thread::sleep(backoff.rest);
        backoff.rest = (backoff.rest * 2).min(REST.1);
        backoff.last = Some(Instant::now());
    }

    /// Accepts clients that wait with the spare descriptor, each to close it at once, as long as the
    /// table stays full.
    fn turn_away(&self, backoff: &mut Backoff) {
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
            drop(backoff.spare.take());
            // If another thread was quicker to take the descriptor, this fails.
            let client = self.accept_waiting();
            // As long as that one has it, there is another one only if the table is not full.
            let ends = client.is_err() || {
                backoff.spare = spare();
                backoff.spare.is_some()
            };
            drop(client);
            if ends {
                break;
            }
        }
        backoff.spare = backoff.spare.take().or_else(spare);
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
