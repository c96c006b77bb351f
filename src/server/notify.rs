//! Telling whoever started the server how it is, as sd_notify(3) and s6 want to hear it.

use std::env;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::sys;

/// How long a supervisor may take to make room for a message; it is not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket of sd_notify(3), if there is one. A message that it does not take is lost: nothing
/// better can be done than to serve all the same.
pub struct Notify(Option<UnixDatagram>);

impl Notify {
    /// Connects to `NOTIFY_SOCKET`, a path or `@` and an abstract name, while that can still be
    /// done.
    ///
    /// # Errors
    /// As connect(2): whoever waits for a message had better be told than left waiting.
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

    /// The server listens, or has read its rules anew.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The server reads its rules anew.
    pub fn reloading(&self) {
        // systemd takes no message for an answer to its signal that was sent before it.
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

/// Tells s6 that the server listens: a newline, and the end of it. Nobody has to be reading.
pub fn end_with_newline(fd: OwnedFd) {
    let _ = File::from(fd).write_all(b"\n");
}
