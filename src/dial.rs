//! Addresses in turn under one deadline: RFC 8305 ("Happy Eyeballs") in small, for CONNECT. Names
//! are resolved and addresses judged before they come here.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::sys;

/// How long one address has before the next is tried beside it, RFC 8305 section 5.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Most addresses tried for one name. Each takes a descriptor, and a peer's name server could send
/// hundreds.
const ATTEMPTS_MAX: usize = 32;

/// Most attempts under way at once: the oldest, which as a rule has had two seconds, gives way to
/// the next.
/// Otherwise a name with many silent addresses would hold many descriptors until the deadline.
const PENDING_MAX: usize = 8;

/// One address of each family, or none.
#[derive(Clone, Copy, Debug, Default)]
pub struct PerFamily {
    /// The IPv4 one.
    pub v4: Option<IpAddr>,
    /// The IPv6 one.
    pub v6: Option<IpAddr>,
}

impl PerFamily {
    /// The one of the family of `ip`.
    #[must_use]
    pub fn of_family(&self, ip: IpAddr) -> Option<IpAddr> {
        if ip.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// Where to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// To this address.
    pub addr: SocketAddr,
    /// From this address of the same family, or from one of the system's choice.
    pub source: Option<IpAddr>,
}

/// Connects to the first of `targets` that answers; returns the connection and the target's index.
/// Families take turns, beginning with that of the first; an address has 250 ms before the next is
/// tried beside it.
///
/// # Errors
/// The error of the last attempt that failed; `TimedOut` at `deadline`.
pub fn connect(targets: &[Target], deadline: Instant) -> io::Result<(TcpStream, usize)> {
    match *targets {
        [Target { addr, source: None }] => {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            TcpStream::connect_timeout(&addr, left).map(|stream| (stream, 0))
        }
        _ => race(interleave(targets), deadline),
    }
}

/// Puts targets, with their indices, in the order to try them: families in turn, the first one's
/// first.
fn interleave(targets: &[Target]) -> impl Iterator<Item = (usize, Target)> {
    let v4_first = targets.first().is_some_and(|target| target.addr.is_ipv4());
    let family = |v4: bool| {
        let all = targets.iter().copied().enumerate();
        all.filter(move |(_, target)| target.addr.is_ipv4() == v4)
    };
    let (mut a, mut b) = (family(v4_first), family(!v4_first));
    let mut turn = false;
    std::iter::from_fn(move || {
        turn = !turn;
        if turn { a.next().or_else(|| b.next()) } else { b.next().or_else(|| a.next()) }
    })
    .take(ATTEMPTS_MAX)
}

fn race(
    mut targets: impl Iterator<Item = (usize, Target)>,
    deadline: Instant,
) -> io::Result<(TcpStream, usize)> {
    let mut pending: Vec<(OwnedFd, usize)> = Vec::new();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut next_at = Instant::now();
    let mut more = true;
    loop {
        let now = Instant::now();
        if now >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if more && (now >= next_at || pending.is_empty()) {
            match targets.next() {
                None => more = false,
                Some((index, target)) => {
                    if pending.len() == PENDING_MAX {
                        pending.remove(0);
                    }
                    match start(target) {
                        Ok(fd) => {
                            pending.push((fd, index));
                            next_at = now + ATTEMPT_DELAY;
                        }
                        Err(error) => failure = error,
                    }
                }
            }
            continue;
        }
        if pending.is_empty() {
            return Err(failure);
        }
        let until = if more { next_at.min(deadline) } else { deadline };
        let mut fds: Vec<_> =
            pending.iter().map(|(fd, _)| sys::PollFd::new(fd, sys::POLLOUT)).collect();
        match sys::poll(&mut fds, Some(until.saturating_duration_since(now))) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.has(!0)).collect();
        let mut waiting = Vec::new();
        for ((fd, index), ready) in std::mem::take(&mut pending).into_iter().zip(ready) {
            if !ready {
                waiting.push((fd, index));
                continue;
            }
            let stream = TcpStream::from(fd);
            match stream.take_error()? {
                None => {
                    stream.set_nonblocking(false)?;
                    return Ok((stream, index));
                }
                Some(error) => {
                    failure = error;
                    // A failure need not wait for the delay to be followed by the next attempt.
                    next_at = now;
                }
            }
        }
        pending = waiting;
    }
}

/// Starts one connection; it is made once the descriptor can be written to without an error.
///
/// # Errors
/// As socket(2), bind(2) or connect(2), where that is known at once.
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
    use std::net::TcpListener;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    fn targets<const N: usize>(addrs: [SocketAddr; N]) -> [Target; N] {
        addrs.map(|addr| Target { addr, source: None })
    }

    fn refusing() -> SocketAddr {
        // Bound, so that nobody else listens there, but not listening itself.
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
        let (stream, index) = connect(&targets([refusing(), target]), soon()).unwrap();
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
        let (stream, index) = connect(&targets([silent, target]), soon()).unwrap();
        assert_eq!(index, 1);
        assert_eq!(stream.peer_addr().unwrap(), target);

        let deadline = Instant::now() + Duration::from_millis(100);
        let error = connect(&targets([silent, silent]), deadline).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "V4-32");
        let deadline = Instant::now() + Duration::from_millis(100);
        let error = connect(&targets([silent]), deadline).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "V4-32");
    }

    #[test]
    fn the_error_of_the_last_attempt_is_told() {
        let error = connect(&targets([refusing(), refusing()]), soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(connect(&targets([]), soon()).is_err());
    }

    #[test]
    fn a_connection_leaves_from_the_source_given() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let source = Some(IpAddr::from([127, 0, 0, 5]));
        let target = Target { addr: listener.local_addr().unwrap(), source };
        let (stream, _) = connect(&[target], soon()).unwrap();
        assert_eq!(stream.local_addr().unwrap().ip(), IpAddr::from([127, 0, 0, 5]));
        assert_eq!(listener.accept().unwrap().1, stream.local_addr().unwrap());
    }

    #[test]
    fn families_take_turns() {
        let addrs = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"];
        let targets = targets(addrs.map(|text| text.parse().unwrap()));
        let order: Vec<usize> = interleave(&targets).map(|(index, _)| index).collect();
        assert_eq!(order, [0, 3, 1, 4, 2]);
        assert!(interleave(&targets).all(|(index, target)| targets[index] == target));
        assert_eq!(interleave(&vec![targets[0]; 100]).count(), ATTEMPTS_MAX);
    }
}
