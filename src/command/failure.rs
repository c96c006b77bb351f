//! The reasons why a request is not carried out, with the one table of their reply codes in both
//! versions, and of their words in the log.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use crate::policy::Denial;
use crate::resolve::ResolveError;
use crate::wait::WaitError;
use crate::wire::Version;
use crate::wire::reply::ReplyCode;
use crate::wire::socks4::Cd;
use crate::wire::socks5::Rep;

/// The reason why a request is not carried out.
#[derive(Debug)]
pub enum Failure {
    /// The rules deny it.
    Denied(Denial),
    /// This quota of the user or of a rule is used up.
    Full(&'static str),
    /// The name has no usable address.
    Unresolved(ResolveError),
    /// The destination is of an address family that is disabled.
    Family,
    /// The version of the request has no such command.
    Command,
    /// The destination of a CONNECT is port 0.
    PortZero,
    /// A peer connected to a BIND that was not expected, or that the rules deny.
    WrongPeer(SocketAddr, Option<Denial>),
    /// No peer connected to a BIND in time.
    NoPeer,
    /// The client left before the reply.
    ClientGone,
    /// The server ends.
    Stopped,
    /// No port of the range is free.
    NoPort,
    /// No thread could be started.
    NoThread(io::Error),
    /// The system gave no descriptor to wait with.
    NoDescriptor(io::Error),
    /// A system call failed.
    Io(io::Error),
}

impl Failure {
    /// The reply code of version 5, REP (RFC 1928 section 6).
    #[must_use]
    pub fn rep(&self) -> Rep {
        use io::ErrorKind as Kind;
        match self {
            Self::Denied(_) | Self::WrongPeer(..) => Rep::NOT_ALLOWED,
            Self::Unresolved(ResolveError::NoThread | ResolveError::TooMany) => {
                Rep::GENERAL_FAILURE
            }
            // The RFC has no better code for a name or a peer that cannot be found.
            Self::Unresolved(_) | Self::NoPeer => Rep::HOST_UNREACHABLE,
            Self::Family => Rep::ADDRESS_TYPE_NOT_SUPPORTED,
            Self::Command => Rep::COMMAND_NOT_SUPPORTED,
            Self::PortZero
            | Self::ClientGone
            | Self::Stopped
            | Self::NoPort
            | Self::NoThread(_)
            | Self::NoDescriptor(_)
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

    /// The reply code of version 4, CD (draft -08 section 3.3).
    #[must_use]
    pub fn cd(&self) -> Cd {
        match self {
            Self::Denied(Denial::Unproved) => Cd::NO_IDENTD,
            Self::Denied(Denial::Different) => Cd::OTHER_USER,
            _ => Cd::REJECTED,
        }
    }

    /// The reply code of `version`.
    #[must_use]
    pub fn code(&self, version: Version) -> ReplyCode {
        match version {
            Version::V4 | Version::V4a => ReplyCode::V4(self.cd()),
            Version::V5 => ReplyCode::V5(self.rep()),
        }
    }

    /// The reason in the log.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Denied(Denial::Unproved | Denial::Different) => "ident",
            Self::Denied(_) => "denied",
            Self::Unresolved(ResolveError::TimedOut) | Self::NoPeer => "timeout",
            Self::Unresolved(ResolveError::NoThread | ResolveError::TooMany)
            | Self::NoPort
            | Self::NoThread(_)
            | Self::NoDescriptor(_)
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
            Self::Unresolved(ResolveError::Invalid) => f.write_str("invalid host name"),
            Self::Unresolved(ResolveError::NotFound) => f.write_str("name has no address"),
            Self::Unresolved(ResolveError::TimedOut) => f.write_str("name not resolved in time"),
            Self::Unresolved(ResolveError::TooMany) => {
                f.write_str("too many look-ups of this client")
            }
            Self::Unresolved(ResolveError::NoThread) => {
                f.write_str("cannot start a thread to look the name up")
            }
            Self::Family => f.write_str("address family is disabled"),
            Self::Command => f.write_str("unknown command"),
            Self::PortZero => f.write_str("cannot connect to port 0"),
            Self::WrongPeer(peer, None) => write!(f, "unexpected peer {peer}"),
            Self::WrongPeer(peer, Some(denial)) => write!(f, "peer {peer}: {denial}"),
            Self::NoPeer => f.write_str("no peer connected in time"),
            Self::ClientGone => f.write_str("client left"),
            Self::Stopped => f.write_str("server is shutting down"),
            Self::NoPort => f.write_str("no free port in the range"),
            Self::NoThread(error) => write!(f, "cannot start a thread: {error}"),
            Self::NoDescriptor(error) => write!(f, "cannot wait: {error}"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<WaitError> for Failure {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut => Self::Io(io::ErrorKind::TimedOut.into()),
            WaitError::ClientGone => Self::ClientGone,
            WaitError::Stopped => Self::Stopped,
            WaitError::Failed(error) => Self::Io(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_14_each_errno_has_its_reply_code() {
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
}
