//! The syslog daemon of this host, which is sent datagrams as syslog(3) sends them.
//!
//! They are headed as RFC 3164 section 4.1 has it, but for the time: that is to be local time
//! without its zone, which std cannot tell. A message without it is taken all the same, with the
//! time at which it comes (section 4.3.2); journald and rsyslog use that one in any case.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::process;

/// Where daemons of syslog have always listened. What listens there is not for a user to choose.
const PATH: &str = "/dev/log";

/// What kind of program logs: the facility of RFC 3164 section 4.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facility(u8);

impl Default for Facility {
    /// `daemon`.
    fn default() -> Self {
        Self(3)
    }
}

/// The facilities by the names of syslog(3); `kern` is not for programs.
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

/// How bad an event is: the severity of RFC 3164 section 4.1.1.
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
    /// Connects at once, while that can still be done. A daemon that is started later is found by
    /// the first line that it can take.
    pub(crate) fn new(facility: Facility) -> Self {
        Self { facility, socket: connect().ok() }
    }

    /// Sends a line if that can be done at once; tells whether it was sent.
    pub(crate) fn send(&mut self, Severity(severity): Severity, line: &str) -> bool {
        let priority = u16::from(self.facility.0) * 8 + u16::from(severity);
        let datagram = format!("<{priority}>socksd[{}]: {line}", process::id());
        if let Some(socket) = &self.socket {
            match socket.send(datagram.as_bytes()) {
                Ok(_) => return true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // The daemon is gone, or another is in its place.
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
