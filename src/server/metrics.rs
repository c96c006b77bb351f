//! The HTTP server for metrics, health checks and a page of sessions. One thread serves a few
//! connections at a time and answers one request on each. It changes nothing: sessions notice only
//! a lock, which is held while their octets are summed up.

pub mod http;
mod page;
mod text;

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::server::listeners::Listener;
use crate::server::metrics::http::{HEAD_MAX, Response};
use crate::server::slots::Sessions;
use crate::session::service::Service;
use crate::sys::{self, PollFd};

/// Connections served at once; others wait in the backlog.
const CONNECTIONS_MAX: usize = 8;

/// How long a connection may take from its acceptance to its end.
const CONNECTION_TIME: Duration = Duration::from_secs(5);

/// Octets read and discarded after a request: a close with octets unread would reset the
/// connection, which can destroy the answer on its way.
const DRAIN_MAX: usize = 64 * 1024;

/// The back-off after accept(2) fails for lack of resources.
const BACKOFF: Duration = Duration::from_secs(1);

/// The HTTP server, which runs to the end of the process. A drop removes its UNIX socket.
pub struct Metrics(Arc<Site>);

impl Metrics {
    /// Starts the thread that serves metrics.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(
        listener: Listener,
        service: &Arc<Service>,
        sessions: &Arc<Sessions>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let site = Arc::new(Site {
            listener,
            service: Arc::clone(service),
            sessions: Arc::clone(sessions),
            draining: AtomicBool::new(false),
            started: SystemTime::now(),
        });
        let served = Arc::clone(&site);
        thread::Builder::new().name("metrics".into()).spawn(move || served.serve())?;
        Ok(Self(site))
    }

    /// From now on answers health checks with 503: no client is accepted any more.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.0.listener.remove();
    }
}

/// The state of the HTTP server.
struct Site {
    listener: Listener,
    service: Arc<Service>,
    sessions: Arc<Sessions>,
    draining: AtomicBool,
    started: SystemTime,
}

impl Site {
    fn serve(&self) {
        let mut connections: Vec<Connection> = Vec::new();
        let mut backoff: Option<Instant> = None;
        loop {
            let now = Instant::now();
            connections.retain(|connection| now < connection.deadline);
            backoff = backoff.filter(|until| now < *until);
            let accepts = connections.len() < CONNECTIONS_MAX && backoff.is_none();
            let mut fds: Vec<PollFd<'_>> = connections.iter().map(Connection::poll_fd).collect();
            fds.extend(accepts.then(|| PollFd::new(&self.listener, sys::POLLIN)));
            let until = connections.iter().map(|connection| connection.deadline).chain(backoff);
            let wait = until.min().map(|until| until.saturating_duration_since(now));
            if let Err(error) = sys::poll(&mut fds, wait) {
                if !is_transient(&error) {
                    thread::sleep(BACKOFF);
                }
                continue;
            }
            // The listener is last, if it is there.
            let ready: Vec<bool> = fds.iter().map(|fd| fd.has(!0)).collect();
            let mut ready = ready.into_iter();
            connections.retain_mut(|connection| {
                !ready.next().unwrap_or_default()
                    || connection.advance(self).unwrap_or_else(|error| is_transient(&error))
            });
            if ready.next().unwrap_or_default() {
                match self.accept() {
                    Ok(connection) => connections.push(connection),
                    Err(error) if is_transient(&error) => {}
                    Err(_) => backoff = Some(now + BACKOFF),
                }
            }
        }
    }

    fn accept(&self) -> io::Result<Connection> {
        let stream = self.listener.accept()?.stream;
        stream.set_nonblocking(true)?;
        let deadline = Instant::now() + CONNECTION_TIME;
        Ok(Connection { stream, deadline, step: Step::Head(Vec::new()) })
    }

    /// The answer to a request with this head, which is cut if it is too long.
    fn answer(&self, head: &[u8]) -> Response {
        // A browser cannot open a UNIX socket for a web page.
        let any_host = self.listener.tcp_addr().is_none();
        match http::path(head, any_host) {
            Ok("/") => page::page(&self.service.live),
            Ok("/metrics") => text::metrics(&self.service, &self.sessions, self.started),
            Ok("/healthz") if self.draining.load(Ordering::Relaxed) => {
                Response::plain("503 Service Unavailable", "draining")
            }
            Ok("/healthz") => Response::plain("200 OK", "ok"),
            Ok(_) => Response::plain("404 Not Found", "expected /, /metrics or /healthz"),
            Err(response) => response,
        }
    }
}

/// A connection, which carries one request.
struct Connection {
    stream: TcpStream,
    deadline: Instant,
    step: Step,
}

/// How far a connection is.
enum Step {
    /// Reading the head of the request; with the octets so far.
    Head(Vec<u8>),
    /// Sending the answer; with the number of octets sent.
    Answer(Vec<u8>, usize),
    /// Discarding octets until the client closes; with the number of octets still allowed.
    Drain(usize),
}

impl Connection {
    fn poll_fd(&self) -> PollFd<'_> {
        let is_answering = matches!(self.step, Step::Answer(..));
        PollFd::new(&self.stream, if is_answering { sys::POLLOUT } else { sys::POLLIN })
    }

    /// Reads or writes once. Returns whether the connection goes on.
    ///
    /// # Errors
    /// `WouldBlock` if nothing can be read or written yet; any other error ends the connection.
    fn advance(&mut self, site: &Site) -> io::Result<bool> {
        let mut buffer = [0; HEAD_MAX];
        match &mut self.step {
            Step::Head(head) => {
                let room = buffer.get_mut(head.len()..).unwrap_or_default();
                let len = self.stream.read(room)?;
                head.extend_from_slice(room.get(..len).unwrap_or_default());
                if http::is_whole(head) || head.len() == HEAD_MAX {
                    let with_body = !head.starts_with(b"HEAD ");
                    self.step = Step::Answer(site.answer(head).encode(with_body), 0);
                }
                Ok(len > 0)
            }
            Step::Answer(answer, sent) => {
                *sent += self.stream.write(answer.get(*sent..).unwrap_or_default())?;
                if *sent == answer.len() {
                    self.stream.shutdown(Shutdown::Write)?;
                    self.step = Step::Drain(DRAIN_MAX);
                }
                Ok(true)
            }
            Step::Drain(left) => {
                let len = self.stream.read(&mut buffer)?;
                *left = left.saturating_sub(len);
                Ok(len > 0 && *left > 0)
            }
        }
    }
}

/// Whether the next call may succeed without a back-off.
fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::WouldBlock | Kind::Interrupted | Kind::ConnectionAborted)
}
