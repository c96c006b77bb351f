//! Listeners: one blocking accept loop each, which hands every client to a thread. No loop ever
//! reads from a client, resolves a name or waits for a lock that is held for long.

pub mod sessions;
pub mod signals;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::log::{Level, Line};
use crate::server::sessions::{Caps, Refusal, Sessions};
use crate::server::signals::Signal;
use crate::session::{self, Service};
use crate::sys;
use crate::wire::canonical;

/// Clients the system may hold back for an accept loop. It lowers this to net.core.somaxconn.
const BACKLOG: i32 = 4_096;

/// How long an accept loop rests when the system is out of something, at first and at most.
const REST: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How often the same trouble is told of.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Descriptors kept back for listeners, the log, look-ups and what else is not a session's.
const SPARE_DESCRIPTORS: u64 = 64;

/// Descriptors of a session: its two connections. An association has four; they are counted on to
/// be few, and an accept loop that runs out refuses instead of ending.
const SESSION_DESCRIPTORS: u64 = 2;

/// An address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address; port 0 lets the system choose.
    pub addr: SocketAddr,
    /// Whether a host that lacks this address can do without it.
    pub optional: bool,
}

/// Opens a listener on each of `wanted`, in order.
///
/// # Errors
/// A message for the first address that cannot be bound.
pub fn listen(wanted: &[Listen]) -> Result<Vec<TcpListener>, String> {
    let mut listeners = Vec::new();
    for &Listen { addr, optional } in wanted {
        match open(addr, wanted) {
            Ok(listener) => listeners.push(listener),
            Err(error) if optional && sys::is_family_or_address_missing(&error) => {}
            Err(error) => return Err(format!("cannot listen on {addr}: {error}")),
        }
    }
    Ok(listeners)
}

fn open(addr: SocketAddr, all: &[Listen]) -> io::Result<TcpListener> {
    let fd = sys::tcp_socket(addr)?;
    sys::set_reuseaddr(&fd)?;
    if addr.is_ipv6() {
        // `::` takes IPv4 clients too, unless an IPv4 listener was asked for on the same port.
        let shared =
            all.iter().any(|other| other.addr.is_ipv4() && other.addr.port() == addr.port());
        sys::set_v6only(&fd, shared && addr.port() != 0)?;
    }
    sys::bind_socket(&fd, addr)?;
    sys::listen(&fd, BACKLOG)?;
    let listener = TcpListener::from(fd);
    listener.set_nonblocking(false)?;
    Ok(listener)
}

/// Raises the limit on open descriptors to what `caps` need and returns the caps that can be kept.
///
/// # Errors
/// As getrlimit(2).
pub fn fit(mut caps: Caps) -> io::Result<Caps> {
    let (soft, hard) = sys::getrlimit_nofile()?;
    let needed = |sessions: u64| sessions * SESSION_DESCRIPTORS * 2 + SPARE_DESCRIPTORS;
    let wanted = needed(caps.sessions).min(hard);
    let soft =
        if soft < wanted && sys::setrlimit_nofile(wanted, hard).is_ok() { wanted } else { soft };
    let kept = soft.saturating_sub(SPARE_DESCRIPTORS) / SESSION_DESCRIPTORS;
    caps.sessions = kept.clamp(1, caps.sessions);
    Ok(caps)
}

/// What ends the server.
#[derive(Debug)]
pub enum Ending {
    /// This signal.
    Signal(&'static str),
    /// A listener became unusable.
    Broken(io::Error),
}

/// Serves clients of all `listeners`, each on a thread of its own, until a signal comes or a
/// listener breaks; SIGHUP calls `reload`. Sessions under way end with the process. The signals must
/// have been blocked.
///
/// # Errors
/// Where a thread cannot be started.
pub fn run(
    listeners: Vec<TcpListener>,
    service: &Arc<Service>,
    caps: Caps,
    reload: impl Fn() + Send + 'static,
) -> io::Result<Ending> {
    let sessions = Arc::new(Sessions::new(caps));
    let (tx, ending) = mpsc::channel();
    for listener in listeners {
        let accept = AcceptLoop {
            spare: listener.try_clone().ok(),
            listener,
            service: Arc::clone(service),
            sessions: Arc::clone(&sessions),
            told: None,
        };
        let tx = tx.clone();
        thread::Builder::new().name("accept".into()).spawn(move || {
            // Nobody listens any more once the server ends.
            let _ = tx.send(Ending::Broken(accept.run()));
        })?;
    }
    thread::Builder::new().name("signals".into()).spawn(move || {
        let ending = loop {
            match signals::wait() {
                Ok(Signal::Reload) => reload(),
                Ok(Signal::End(name)) => break Ending::Signal(name),
                Err(error) => break Ending::Broken(error),
            }
        };
        let _ = tx.send(ending);
    })?;
    ending.recv().map_err(io::Error::other)
}

struct AcceptLoop {
    listener: TcpListener,
    /// A descriptor to give up for a moment when the table is full, so that a waiting client can be
    /// accepted and closed rather than kept waiting.
    spare: Option<TcpListener>,
    service: Arc<Service>,
    sessions: Arc<Sessions>,
    /// When trouble was told of last.
    told: Option<Instant>,
}

impl AcceptLoop {
    /// Accepts clients until the listener breaks; returns with what error.
    fn run(mut self) -> io::Error {
        let mut rest = REST.0;
        loop {
            match self.listener.accept() {
                Ok((stream, client)) => {
                    rest = REST.0;
                    self.admit(stream, Some(canonical(client)));
                }
                Err(error) if sys::is_bad_descriptor(&error) => return error,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
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
    }

    /// Gives a client its slots and a thread, or closes its connection.
    fn admit(&mut self, stream: TcpStream, client: Option<SocketAddr>) {
        let ip = client.map(|addr| addr.ip());
        if self.service.shuts_out(ip) {
            return self.refuse(client, Refusal::AuthPenalty, None);
        }
        let (slot, half_open) = match Sessions::admit(&self.sessions, ip) {
            Ok(slots) => slots,
            Err(refusal) => return self.refuse(client, refusal, None),
        };
        let thread = match self.service.threads.reserve() {
            Ok(thread) => thread,
            Err(error) => return self.refuse(client, Refusal::Threads, Some(error)),
        };
        let service = Arc::clone(&self.service);
        thread.run(move || {
            session::run(&service, stream, client, slot.number(), half_open);
            drop(slot);
        });
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

    fn tell(&mut self, error: &io::Error) {
        if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            let line = Line::new("error").text("error", format_args!("accept: {error}"));
            self.service.log.write(Level::Quiet, line);
        }
    }

    /// Accepts a waiting client with the spare descriptor, to close it at once.
    fn turn_away(&mut self) {
        drop(self.spare.take());
        // If another thread was quicker to take the descriptor, this one fails or waits for the
        // next client, which is then served.
        if self.listener.set_nonblocking(true).is_ok() {
            let _ = self.listener.accept();
            let _ = self.listener.set_nonblocking(false);
        }
        self.spare = self.listener.try_clone().ok();
    }
}
