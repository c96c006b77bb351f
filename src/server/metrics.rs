//! Metrics over HTTP for Prometheus, health checks and eyes. One thread serves a few connections at
//! a time, answers one request on each, and changes nothing: all that sessions notice is a lock held
//! while what they have relayed is added up.

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
const TIME: Duration = Duration::from_secs(5);

/// Octets thrown away behind a request: closing with octets unread would reset the connection and
/// could destroy the answer on its way.
const DRAIN_MAX: usize = 64 * 1024;

/// How long no connection is accepted when the system is out of something.
const REST: Duration = Duration::from_secs(1);

/// The server of metrics, to the end of the process. Dropping it removes its UNIX socket.
pub struct Metrics(Arc<Site>);

impl Metrics {
    /// Serves metrics on a thread.
    ///
    /// # Errors
    /// Where the thread cannot be started.
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

    /// Tells health checks from now on that no client is accepted any more.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.0.listener.remove();
    }
}

/// What is served.
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
        let mut resting: Option<Instant> = None;
        loop {
            let now = Instant::now();
            connections.retain(|connection| now < connection.deadline);
            resting = resting.filter(|until| now < *until);
            let accepts = connections.len() < CONNECTIONS_MAX && resting.is_none();
            let mut fds: Vec<PollFd<'_>> = connections.iter().map(Connection::awaited).collect();
            fds.extend(accepts.then(|| PollFd::new(&self.listener, sys::POLLIN)));
            let until = connections.iter().map(|connection| connection.deadline).chain(resting);
            let wait = until.min().map(|until| until.saturating_duration_since(now));
            if let Err(error) = sys::poll(&mut fds, wait) {
                if !is_passing(&error) {
                    thread::sleep(REST);
                }
                continue;
            }
            // The listener's comes last, if at all.
            let ready: Vec<bool> = fds.iter().map(|fd| fd.has(!0)).collect();
            let mut ready = ready.into_iter();
            connections.retain_mut(|connection| {
                !ready.next().unwrap_or_default()
                    || connection.go_on(self).unwrap_or_else(|error| is_passing(&error))
            });
            if ready.next().unwrap_or_default() {
                match self.accept() {
                    Ok(connection) => connections.push(connection),
                    Err(error) if is_passing(&error) => {}
                    Err(_) => resting = Some(now + REST),
                }
            }
        }
    }

    fn accept(&self) -> io::Result<Connection> {
        let stream = self.listener.accept()?.stream;
        stream.set_nonblocking(true)?;
        let deadline = Instant::now() + TIME;
        Ok(Connection { stream, deadline, state: Step::Head(Vec::new()) })
    }

    /// The answer to a request with this head, or as much of one as there may be.
    fn answer(&self, head: &[u8]) -> Response {
        // Who can open a UNIX socket is no web page of a stranger.
        let any_host = self.listener.tcp_addr().is_none();
        match http::path(head, any_host) {
            Ok("/") => page::page(&self.service.live),
            Ok("/metrics") => text::metrics(&self.service, &self.sessions, self.started),
            Ok("/healthz") if self.draining.load(Ordering::Relaxed) => {
                Response::plain("503 Service Unavailable", "draining")
            }
            Ok("/healthz") => Response::plain("200 OK", "ok"),
            Ok(_) => Response::plain("404 Not Found", "there are /, /metrics and /healthz"),
            Err(response) => response,
        }
    }
}

/// One connection, which is for one request.
struct Connection {
    stream: TcpStream,
    /// When it ends at the latest.
    deadline: Instant,
    state: Step,
}

enum Step {
    /// The head of the request so far.
    Head(Vec<u8>),
    /// The answer, and how much of it is sent.
    Answer(Vec<u8>, usize),
    /// Waiting for the client to close. As many octets may come before that.
    Over(usize),
}

impl Connection {
    fn awaited(&self) -> PollFd<'_> {
        let is_answering = matches!(self.state, Step::Answer(..));
        PollFd::new(&self.stream, if is_answering { sys::POLLOUT } else { sys::POLLIN })
    }

    /// Does what can be done now. Tells whether there is more to come.
    ///
    /// # Errors
    /// `WouldBlock` where nothing can be done yet; any other has ended the connection.
    fn go_on(&mut self, site: &Site) -> io::Result<bool> {
        let mut buffer = [0; HEAD_MAX];
        match &mut self.state {
            Step::Head(head) => {
                let room = buffer.get_mut(head.len()..).unwrap_or_default();
                let len = self.stream.read(room)?;
                head.extend_from_slice(room.get(..len).unwrap_or_default());
                if http::is_whole(head) || head.len() == HEAD_MAX {
                    let with_body = !head.starts_with(b"HEAD ");
                    self.state = Step::Answer(site.answer(head).encode(with_body), 0);
                }
                Ok(len > 0)
            }
            Step::Answer(answer, sent) => {
                *sent += self.stream.write(answer.get(*sent..).unwrap_or_default())?;
                if *sent == answer.len() {
                    self.stream.shutdown(Shutdown::Write)?;
                    self.state = Step::Over(DRAIN_MAX);
                }
                Ok(true)
            }
            Step::Over(left) => {
                let len = self.stream.read(&mut buffer)?;
                *left = left.saturating_sub(len);
                Ok(len > 0 && *left > 0)
            }
        }
    }
}

/// Whether the next call may do better, without a rest.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::WouldBlock | Kind::Interrupted | Kind::ConnectionAborted)
}
