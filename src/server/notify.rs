//! Reports the state of the server to the supervisor that started it: sd_notify(3) for systemd, a
//! newline for s6.

use std::env;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::sys;

/// How long to wait for a supervisor that has no room for a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket of sd_notify(3), if there is one. A message that cannot be sent is lost, and the
/// server goes on.
pub struct Notify(Option<UnixDatagram>);

impl Notify {
    /// Connects to `NOTIFY_SOCKET`, a path or `@` and an abstract name, before a change of user or
    /// root directory puts it out of reach.
    ///
    /// # Errors
    /// As connect(2): the start fails rather than leave the supervisor waiting.
    pub fn from_env() -> io::Result<Self> {
        let Some(name) = env::var_os("NOTIFY_SOCKET") else { return Ok(Self(None)) };
        let addr = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&addr)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(Some(socket)))
    }

    /// The server listens, or a reload is over.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// A reload begins.
    pub fn reloading(&self) {
        // systemd ignores an answer that seems older than its signal.
        let now = sys::clock_gettime_monotonic().unwrap_or_default();
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    }

    /// The server ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.0 {
            let _ = socket.send(message.as_bytes());
        }
    }
}

/// Tells s6 that the server listens: writes a newline and closes the descriptor. An error is
/// ignored, since the reader may have gone.
pub fn end_with_newline(fd: OwnedFd) {
    let _ = File::from(fd).write_all(b"\n");
}
