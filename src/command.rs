//! Carrying out a request: a command opens sockets and returns them. It has nothing to write to;
//! telling the client is the session's part.

pub mod associate;
pub mod bind;
pub mod caps;
pub mod connect;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::command::caps::{Caps, Slot};
use crate::dial::PerFamily;
use crate::net::client_block;
use crate::policy::rules::Rule;
use crate::policy::{Asker, Denial, Policy};
use crate::resolve::{ResolveError, Resolver};
use crate::stats::Stats;
use crate::wait::InVain;
use crate::wire::socks4::Cd;
use crate::wire::socks5::Rep;
use crate::wire::{Destination, Version};

/// What commands work with, the same for all sessions.
pub struct Means {
    /// Counts what sessions do.
    pub stats: Stats,
    /// Counts the sessions of each user and of rules.
    pub caps: Caps,
    /// Turns names into addresses.
    pub resolver: Arc<Resolver>,
    /// How long a name may take.
    pub resolve_timeout: Duration,
    /// How long a connection may take, all addresses of a name together.
    pub connect_timeout: Duration,
    /// How long a BIND waits for its peer.
    pub bind_timeout: Duration,
    /// The addresses to leave from.
    pub source: PerFamily,
    /// Whether IPv4 targets are reached at all.
    pub ipv4: bool,
    /// Whether IPv6 targets are reached at all.
    pub ipv6: bool,
    /// The addresses to tell clients in BIND and UDP ASSOCIATE replies instead of the real ones,
    /// where a NAT stands before this host.
    pub advertise: PerFamily,
    /// Ports for BIND and for the relay sockets of UDP ASSOCIATE.
    pub ports: Option<PortRange>,
    /// Where this server itself listens; a session that would come back here is refused.
    pub listening: Vec<SocketAddr>,
}

/// The rule that admits a session, and the session's place in the caps of the rule and of the user.
#[derive(Debug)]
pub struct Admission {
    /// The rule, whose settings apply.
    pub rule: Arc<Rule>,
    /// Given back when it is dropped.
    pub slot: Slot,
}

/// An address that may be used.
#[derive(Debug)]
pub struct Candidate {
    /// The address.
    pub addr: SocketAddr,
    /// The rule that allows it.
    pub rule: Arc<Rule>,
}

/// An opened target.
#[derive(Debug)]
pub struct Opened {
    /// The connection to it.
    pub target: TcpStream,
    /// The address of the target.
    pub peer: SocketAddr,
    /// BND of the reply: for CONNECT the local address of the connection, for the second reply of a
    /// BIND the peer's.
    pub bnd: SocketAddr,
    /// The rule that admitted the session.
    pub admission: Admission,
}

/// Why a request was not carried out.
#[derive(Debug)]
pub enum Failure {
    /// It is forbidden, for this reason.
    Denied(Denial),
    /// There are as many sessions as may be, of the user or by a rule.
    Full(&'static str),
    /// The name has no usable address.
    Unresolved(ResolveError),
    /// The destination is of a family that this server does not reach.
    Family,
    /// CMD or CD is none this version has.
    Command,
    /// A connection to port 0 was asked for.
    PortZero,
    /// Somebody else than the expected peer connected to a BIND, or one whom the rules keep out.
    WrongPeer(SocketAddr, Option<Denial>),
    /// Nobody connected to a BIND in time.
    NoPeer,
    /// The client left before the answer.
    ClientGone,
    /// The server ends.
    Stopped,
    /// No port of the range is free.
    NoPort,
    /// The system gave no thread.
    NoThread(io::Error),
    /// A system call failed.
    Io(io::Error),
}

impl Failure {
    /// REP, RFC 1928 section 6: the one table from failures to codes of version 5.
    #[must_use]
    pub fn rep(&self) -> Rep {
        use io::ErrorKind as Kind;
        match self {
            Self::Denied(_) | Self::WrongPeer(..) => Rep::NOT_ALLOWED,
            // The RFC has no better code for a name or a peer that cannot be found.
            Self::Unresolved(ResolveError::NoThread | ResolveError::TooMany) => {
                Rep::GENERAL_FAILURE
            }
            Self::Unresolved(_) | Self::NoPeer => Rep::HOST_UNREACHABLE,
            Self::Family => Rep::ADDRESS_TYPE_NOT_SUPPORTED,
            Self::Command => Rep::COMMAND_NOT_SUPPORTED,
            Self::PortZero
            | Self::ClientGone
            | Self::Stopped
            | Self::NoPort
            | Self::NoThread(_)
            | Self::Full(_) => Rep::GENERAL_FAILURE,
            Self::Io(error) => match error.kind() {
                Kind::ConnectionRefused => Rep::CONNECTION_REFUSED,
                Kind::NetworkUnreachable => Rep::NETWORK_UNREACHABLE,
                Kind::HostUnreachable | Kind::TimedOut => Rep::HOST_UNREACHABLE,
                Kind::PermissionDenied => Rep::NOT_ALLOWED,
                _ if crate::sys::is_family_missing(error) => Rep::NETWORK_UNREACHABLE,
                _ => Rep::GENERAL_FAILURE,
            },
        }
    }

    /// CD, draft -08 section 3.3: the same table for version 4.
    #[must_use]
    pub fn cd(&self) -> Cd {
        match self {
            Self::Denied(Denial::Unproved) => Cd::NO_IDENTD,
            Self::Denied(Denial::Different) => Cd::OTHER_USER,
            _ => Cd::REJECTED,
        }
    }

    /// The word of the log.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Denied(Denial::Unproved | Denial::Different) => "ident",
            Self::Denied(_) => "denied",
            Self::Unresolved(ResolveError::TimedOut) | Self::NoPeer => "timeout",
            Self::Unresolved(ResolveError::NoThread | ResolveError::TooMany)
            | Self::NoPort
            | Self::NoThread(_)
            | Self::Full(_) => "limit",
            Self::Unresolved(ResolveError::Invalid | ResolveError::NotFound) => "name",
            Self::Family | Self::PortZero => "address",
            Self::Command => "command",
            Self::WrongPeer(..) => "peer",
            Self::ClientGone => "client",
            Self::Stopped => "stopped",
            Self::Io(error) if error.kind() == io::ErrorKind::TimedOut => "timeout",
            Self::Io(_) => "connect",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(denial) => denial.fmt(f),
            Self::Full(what) => write!(f, "{what} reached"),
            Self::Unresolved(ResolveError::Invalid) => f.write_str("not the name of a host"),
            Self::Unresolved(ResolveError::NotFound) => f.write_str("name has no address"),
            Self::Unresolved(ResolveError::TimedOut) => f.write_str("name not resolved in time"),
            Self::Unresolved(ResolveError::TooMany) => f.write_str("too many names at once"),
            Self::Unresolved(ResolveError::NoThread) => f.write_str("no thread to resolve a name"),
            Self::Family => f.write_str("address family not served"),
            Self::Command => f.write_str("unknown command"),
            Self::PortZero => f.write_str("port 0 cannot be connected to"),
            Self::WrongPeer(peer, None) => write!(f, "unexpected peer {peer}"),
            Self::WrongPeer(peer, Some(denial)) => write!(f, "peer {peer}: {denial}"),
            Self::NoPeer => f.write_str("no peer connected in time"),
            Self::ClientGone => f.write_str("client left"),
            Self::Stopped => f.write_str("the server ends"),
            Self::NoPort => f.write_str("no port of the range is free"),
            Self::NoThread(error) => write!(f, "no thread: {error}"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<InVain> for Failure {
    fn from(in_vain: InVain) -> Self {
        match in_vain {
            // The only wait for which that is a failure.
            InVain::TimedOut => Self::NoPeer,
            InVain::ClientGone => Self::ClientGone,
            InVain::Stopped => Self::Stopped,
            InVain::Failed(error) => Self::Io(error),
        }
    }
}

impl Means {
    /// Whether targets of the family of `ip` are reached.
    #[must_use]
    pub fn reaches(&self, ip: IpAddr) -> bool {
        if ip.is_ipv4() { self.ipv4 } else { self.ipv6 }
    }

    /// The addresses that `dst` stands for and that `policy` lets `asker` use, at least one, each
    /// with the rule that does. What is denied by name is not resolved.
    ///
    /// # Errors
    /// `Denied`, `Unresolved`, `Family`.
    #[inline(never)]
    pub fn candidates(
        &self,
        policy: &Policy,
        asker: &Asker,
        dst: &Destination,
    ) -> Result<Vec<Candidate>, Failure> {
        let judge = |addr: SocketAddr| {
            let rule = policy.judge(asker, dst, addr.ip())?;
            Ok(Candidate { addr, rule: Arc::clone(rule) })
        };
        // SOCKS 4A resolves to IPv4 only: its draft, "Resolution".
        let speaks = |ip: IpAddr| asker.version == Version::V5 || ip.is_ipv4();
        let (name, port) = match dst {
            Destination::Address(addr) => {
                let candidate = judge(*addr).map_err(Failure::Denied)?;
                let usable = speaks(addr.ip()) && self.reaches(addr.ip());
                return if usable { Ok(vec![candidate]) } else { Err(Failure::Family) };
            }
            Destination::Name(name, port) => (name, *port),
        };
        policy.admit(asker, Some(dst)).map_err(Failure::Denied)?;
        let begun = Instant::now();
        let deadline = begun + self.resolve_timeout;
        let resolved = self.resolver.resolve(client_block(asker.client), name, deadline);
        self.stats.resolve.observe(begun.elapsed());
        let ips = resolved.map_err(Failure::Unresolved)?;
        let (mut usable, mut denied) = (Vec::new(), None);
        for &ip in ips.iter().filter(|&&ip| speaks(ip) && self.reaches(ip)) {
            match judge(SocketAddr::new(ip, port)) {
                Ok(candidate) => usable.push(candidate),
                Err(denial) => denied = Some(denial),
            }
        }
        match (usable.is_empty(), denied) {
            (false, _) => Ok(usable),
            (true, Some(denial)) => Err(Failure::Denied(denial)),
            (true, None) => Err(Failure::Unresolved(ResolveError::NotFound)),
        }
    }

    /// Lets a session in by `rule`, where there is room.
    ///
    /// # Errors
    /// `Full`.
    #[inline(never)]
    fn admit(&self, asker: &Asker, rule: &Arc<Rule>) -> Result<Admission, Failure> {
        let slot = self.caps.admit(asker, rule)?;
        Ok(Admission { rule: Arc::clone(rule), slot })
    }

    /// The address to leave from to one of the family of `ip`, by `rule` or else for all.
    fn source(&self, rule: &Rule, ip: IpAddr) -> Option<IpAddr> {
        let same_family = |source: &IpAddr| source.is_ipv4() == ip.is_ipv4();
        let own = rule.settings.source.iter().copied().find(same_family);
        own.or_else(|| self.source.of_family(ip))
    }

    /// Calls `bind` with ports of the range, or with 0 without one, until one is free.
    ///
    /// # Errors
    /// `NoPort` where none is, `Io` for any other error of `bind`.
    fn bind_port<T>(&self, mut bind: impl FnMut(u16) -> io::Result<T>) -> Result<T, Failure> {
        let Some(range) = &self.ports else { return Ok(bind(0)?) };
        for port in range.turns() {
            match bind(port) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                result => return Ok(result?),
            }
        }
        Err(Failure::NoPort)
    }
}

/// A range of ports, handed out in turn so that a port just closed rests.
#[derive(Debug)]
pub struct PortRange {
    ports: RangeInclusive<u16>,
    next: AtomicU16,
}

impl PortRange {
    /// A range that is not empty and without port 0, or `None`.
    #[must_use]
    pub fn new(ports: RangeInclusive<u16>) -> Option<Self> {
        let first = *ports.start();
        (first > 0 && !ports.is_empty()).then(|| Self { ports, next: AtomicU16::new(first) })
    }

    /// All ports, beginning behind the one that was begun with last.
    fn turns(&self) -> impl Iterator<Item = u16> {
        let first = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |port| {
            Some(
                port.checked_add(1)
                    .filter(|port| self.ports.contains(port))
                    .unwrap_or(*self.ports.start()),
            )
        });
        let first = first.unwrap_or(*self.ports.start());
        (first..=*self.ports.end()).chain(*self.ports.start()..first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_14_the_table_from_errno_to_reply() {
        for (errno, rep) in [
            (111, 0x05), // ECONNREFUSED
            (101, 0x03), // ENETUNREACH
            (97, 0x03),  // EAFNOSUPPORT
            (113, 0x04), // EHOSTUNREACH
            (110, 0x04), // ETIMEDOUT
            (13, 0x02),  // EACCES
            (1, 0x02),   // EPERM
            (22, 0x01),  // EINVAL
            (24, 0x01),  // EMFILE
            (99, 0x01),  // EADDRNOTAVAIL
            (104, 0x01), // ECONNRESET
        ] {
            let failure = Failure::Io(io::Error::from_raw_os_error(errno));
            assert_eq!(failure.rep(), Rep(rep), "{failure}");
            assert_eq!(failure.cd(), Cd::REJECTED);
        }
        assert_eq!(Failure::Denied(Denial::NoRule).rep(), Rep::NOT_ALLOWED);
        assert_eq!(Failure::Denied(Denial::NoRule).cd(), Cd::REJECTED);
        assert_eq!(Failure::Denied(Denial::Unproved).cd(), Cd::NO_IDENTD);
        assert_eq!(Failure::Denied(Denial::Different).cd(), Cd::OTHER_USER);
        assert_eq!(Failure::Command.rep(), Rep::COMMAND_NOT_SUPPORTED);
        assert_eq!(Failure::Family.rep(), Rep::ADDRESS_TYPE_NOT_SUPPORTED);
        assert_eq!(Failure::Unresolved(ResolveError::NotFound).rep(), Rep::HOST_UNREACHABLE);
        assert_eq!(Failure::Unresolved(ResolveError::TimedOut).rep(), Rep::HOST_UNREACHABLE);
        assert_eq!(Failure::NoPeer.rep(), Rep::HOST_UNREACHABLE);
    }

    #[test]
    fn a_port_range_takes_turns_and_ends() {
        let range = PortRange::new(5..=7).unwrap();
        assert_eq!(range.turns().collect::<Vec<_>>(), [5, 6, 7]);
        assert_eq!(range.turns().collect::<Vec<_>>(), [6, 7, 5]);
        assert_eq!(range.turns().collect::<Vec<_>>(), [7, 5, 6]);
        assert_eq!(range.turns().collect::<Vec<_>>(), [5, 6, 7]);
        assert!(PortRange::new(65_535..=65_535).unwrap().turns().eq([65_535]));
        assert!(PortRange::new(0..=7).is_none());
        #[expect(clippy::reversed_empty_ranges, reason = "what is tested")]
        let empty = PortRange::new(7..=5);
        assert!(empty.is_none());
    }
}
