//! Connects to the first of several addresses that answers: a small RFC 8305 ("Happy Eyeballs").
//!
//! Not here: resolving names and checking addresses by the rules, which come first.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::sys::{self, PollFd};
use crate::wait::{Wait, WaitError};

/// The delay between two attempts, while the earlier one goes on (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The most addresses tried for one name. Each takes a descriptor, and a hostile name server could
/// send hundreds.
const ATTEMPTS_MAX: usize = 32;

/// The most attempts under way at once. The next one replaces the oldest, which usually has had two
/// seconds: a name with many silent addresses would otherwise hold many descriptors until the
/// deadline.
const PENDING_MAX: usize = 8;

/// An optional address of each family.
#[derive(Clone, Copy, Debug, Default)]
pub struct PerFamily {
    /// The IPv4 address.
    pub v4: Option<IpAddr>,
    /// The IPv6 address.
    pub v6: Option<IpAddr>,
}

impl PerFamily {
    /// The address of the same family as `ip`.
    #[must_use]
    pub fn of_family(&self, ip: IpAddr) -> Option<IpAddr> {
        if ip.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// The two ends of a connection to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The address to connect to.
    pub addr: SocketAddr,
    /// The local address, of the same family; `None` leaves the choice to the system.
    pub source: Option<IpAddr>,
}

/// Connects to the first of `targets` that answers; returns the connection and the target's index.
/// The families alternate, beginning with that of the first target. Each attempt has a head start
/// of 250 ms over the next.
///
/// # Errors
/// `Failed` with the error of the last attempt if all attempts have failed; otherwise the error of
/// the wait.
pub fn connect(targets: &[Target], wait: &Wait<'_>) -> Result<(TcpStream, usize), WaitError> {
    let mut untried = interleave(targets).peekable();
    let mut pending: Vec<Pending> = Vec::new();
    let mut last_error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut next_at = Instant::now();
    loop {
        while pending.is_empty() || Instant::now() >= next_at {
            let Some((index, target)) = untried.next() else { break };
            if pending.len() == PENDING_MAX {
                pending.remove(0);
            }
            match start(target) {
                Ok(fd) => {
                    pending.push(Pending { fd, index });
                    next_at = Instant::now() + ATTEMPT_DELAY;
                }
                Err(error) => last_error = error,
            }
        }
        if pending.is_empty() {
            return Err(WaitError::Failed(last_error));
        }
        let mut fds =
            pending.iter().map(|attempt| PollFd::new(&attempt.fd, sys::POLLOUT)).collect();
        let until = untried.peek().map(|_| next_at);
        if !wait.poll(&mut fds, until)? {
            continue;
        }
        let mut ready: Vec<bool> = fds.iter().rev().map(|fd| fd.has(!0)).collect();
        let is_over = |_: &Pending| ready.pop().unwrap_or(false);
        let (over, unanswered) = pending.into_iter().partition(is_over);
        pending = unanswered;
        for attempt in over {
            match attempt.finish() {
                Ok(connected) => return Ok(connected),
                Err(error) => {
                    last_error = error;
                    // The next attempt follows a failure without a delay.
                    next_at = Instant::now();
                }
            }
        }
    }
}

/// An attempt under way.
struct Pending {
    fd: OwnedFd,
    /// The target's index.
    index: usize,
}

impl Pending {
    /// The connection, or the error of an attempt that failed.
    fn finish(self) -> io::Result<(TcpStream, usize)> {
        let stream = TcpStream::from(self.fd);
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        stream.set_nonblocking(false)?;
        Ok((stream, self.index))
    }
}

/// Returns the targets with their indices in the order of the attempts: alternating families,
/// beginning with that of the first target.
fn interleave(targets: &[Target]) -> impl Iterator<Item = (usize, Target)> {
    let v4_first = targets.first().is_some_and(|target| target.addr.is_ipv4());
    let family = |v4: bool| {
        let all = targets.iter().copied().enumerate();
        all.filter(move |(_, target)| target.addr.is_ipv4() == v4)
    };
    let (mut a, mut b) = (family(v4_first), family(!v4_first));
    let mut first = false;
    std::iter::from_fn(move || {
        first = !first;
        if first { a.next().or_else(|| b.next()) } else { b.next().or_else(|| a.next()) }
    })
    .take(ATTEMPTS_MAX)
}

/// Starts to connect without waiting. The connection is made once the descriptor is writable and
/// has no error.
///
/// # Errors
/// As socket(2), bind(2) or connect(2), if known at once.
pub fn start(Target { addr, source }: Target) -> io::Result<OwnedFd> {
    let fd = sys::tcp_socket(addr)?;
    if let Some(ip) = source {
        sys::set_bind_address_no_port(&fd)?;
        sys::bind_socket(&fd, SocketAddr::new(ip, 0))?;
    }
    match sys::connect_socket(&fd, addr) {
        Err(error) if !sys::is_in_progress(&error) => Err(error),
        _ => Ok(fd),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::testing::Scene;
    use std::net::TcpListener;

    fn error_kind(result: Result<(TcpStream, usize), WaitError>) -> io::ErrorKind {
        match result {
            Err(WaitError::Failed(error)) => error.kind(),
            other => panic!("{other:?}"),
        }
    }

    fn targets<const N: usize>(addrs: [SocketAddr; N]) -> [Target; N] {
        addrs.map(|addr| Target { addr, source: None })
    }

    fn refusing() -> SocketAddr {
        // A socket that is bound but does not listen keeps other programs off the port.
        let fd = sys::tcp_socket("127.0.0.9:0".parse().unwrap()).unwrap();
        sys::bind_socket(&fd, "127.0.0.9:0".parse().unwrap()).unwrap();
        let stream = TcpStream::from(fd);
        let addr = stream.local_addr().unwrap();
        std::mem::forget(stream);
        addr
    }

    #[test]
    fn v4a_11_real_15_a_refusing_address_is_followed_by_the_next_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let begun = Instant::now();
        let (stream, index) =
            connect(&targets([refusing(), target]), &Scene::new().wait(5_000)).unwrap();
        assert_eq!(index, 1);
        assert_eq!(stream.peer_addr().unwrap(), target);
        assert!(begun.elapsed() < ATTEMPT_DELAY);
    }

    #[test]
    fn a_silent_address_is_overtaken_by_the_next() {
        // A full backlog drops the SYN: the address neither answers nor refuses.
        let full = TcpListener::bind("127.0.0.1:0").unwrap();
        sys::listen(&full, 0).unwrap();
        let silent = full.local_addr().unwrap();
        let _fill: Vec<_> = (0..3).map(|_| start(targets([silent])[0])).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let (stream, index) =
            connect(&targets([silent, target]), &Scene::new().wait(5_000)).unwrap();
        assert_eq!(index, 1);
        assert_eq!(stream.peer_addr().unwrap(), target);

        for targets in [&targets([silent, silent])[..], &targets([silent])] {
            let connected = connect(targets, &Scene::new().wait(100));
            assert!(matches!(connected, Err(WaitError::TimedOut)), "V4-32");
            let mut scene = Scene::new();
            scene.reset();
            let connected = connect(targets, &scene.wait(60_000));
            assert!(matches!(connected, Err(WaitError::ClientGone)));
            let mut scene = Scene::new();
            drop(scene.server.take());
            let connected = connect(targets, &scene.wait(60_000));
            assert!(matches!(connected, Err(WaitError::Stopped)));
        }
    }

    #[test]
    fn the_error_of_the_last_attempt_is_returned() {
        let scene = Scene::new();
        let connected = connect(&targets([refusing(), refusing()]), &scene.wait(5_000));
        assert_eq!(error_kind(connected), io::ErrorKind::ConnectionRefused);
        let connected = connect(&[], &scene.wait(5_000));
        assert_eq!(error_kind(connected), io::ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn a_connection_has_the_given_source() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let source = Some(IpAddr::from([127, 0, 0, 5]));
        let target = Target { addr: listener.local_addr().unwrap(), source };
        let (stream, _) = connect(&[target], &Scene::new().wait(5_000)).unwrap();
        assert_eq!(stream.local_addr().unwrap().ip(), IpAddr::from([127, 0, 0, 5]));
        assert_eq!(listener.accept().unwrap().1, stream.local_addr().unwrap());
    }

    #[test]
    fn families_alternate() {
        let addrs = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"];
        let targets = targets(addrs.map(|text| text.parse().unwrap()));
        let order: Vec<usize> = interleave(&targets).map(|(index, _)| index).collect();
        assert_eq!(order, [0, 3, 1, 4, 2]);
        assert!(interleave(&targets).all(|(index, target)| targets[index] == target));
        assert_eq!(interleave(&vec![targets[0]; 100]).count(), ATTEMPTS_MAX);
    }
}
