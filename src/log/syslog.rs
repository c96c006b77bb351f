//! The client side of the syslog daemon of this host: one datagram a line, as syslog(3) sends them.
//!
//! The head of a datagram follows RFC 3164 section 4.1, but lacks the time: that would be local
//! time without its zone, which std does not know. Daemons add the time of arrival (section 4.3.2);
//! journald and rsyslog do so in any case.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::process;

/// The socket of syslog daemons, a directory that only root can write to.
const PATH: &str = "/dev/log";

/// The kind of program that logs: the facility of RFC 3164 section 4.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facility(u8);

impl Default for Facility {
    /// `daemon`.
    fn default() -> Self {
        Self(3)
    }
}

/// The facilities by their names in syslog(3). `kern` belongs to the kernel.
pub const FACILITIES: [(&str, Facility); 19] = [
    ("user", Facility(1)),
    ("mail", Facility(2)),
    ("daemon", Facility(3)),
    ("auth", Facility(4)),
    ("syslog", Facility(5)),
    ("lpr", Facility(6)),
    ("news", Facility(7)),
    ("uucp", Facility(8)),
    ("cron", Facility(9)),
    ("authpriv", Facility(10)),
    ("ftp", Facility(11)),
    ("local0", Facility(16)),
    ("local1", Facility(17)),
    ("local2", Facility(18)),
    ("local3", Facility(19)),
    ("local4", Facility(20)),
    ("local5", Facility(21)),
    ("local6", Facility(22)),
    ("local7", Facility(23)),
];

/// The severity of RFC 3164 section 4.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Severity(u8);

impl Severity {
    /// Error.
    pub(crate) const ERROR: Self = Self(3);
    /// Warning.
    pub(crate) const WARNING: Self = Self(4);
    /// Informational.
    pub(crate) const INFO: Self = Self(6);
    /// Debug.
    pub(crate) const DEBUG: Self = Self(7);
}

/// A connection to the daemon, if there is one.
pub(crate) struct Syslog {
    facility: Facility,
    socket: Option<UnixDatagram>,
}

impl Syslog {
    /// Connects at once: later the root directory may have changed. A daemon that starts later gets
    /// the first line after its start.
    pub(crate) fn new(facility: Facility) -> Self {
        Self { facility, socket: connect().ok() }
    }

    /// Sends a line if that does not wait. Returns whether it was sent.
    pub(crate) fn send(&mut self, Severity(severity): Severity, line: &str) -> bool {
        let priority = u16::from(self.facility.0) * 8 + u16::from(severity);
        let datagram = format!("<{priority}>socksd[{}]: {line}", process::id());
        if let Some(socket) = &self.socket {
            match socket.send(datagram.as_bytes()) {
                Ok(_) => return true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // The daemon has gone or has been replaced.
                Err(_) => {}
            }
        }
        self.socket = connect().ok();
        self.socket.as_ref().is_some_and(|socket| socket.send(datagram.as_bytes()).is_ok())
    }
}

fn connect() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect(PATH)?;
    Ok(socket)
}
