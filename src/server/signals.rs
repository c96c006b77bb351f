//! Signals: they are blocked before the first thread starts, and one thread waits for them. There
//! are no handlers.

use std::io;

use crate::sys::{self, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};

/// The signals that are waited for.
const WAITED_FOR: [i32; 4] = [SIGHUP, SIGINT, SIGTERM, SIGUSR1];

/// The meaning of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Reload rules and users: SIGHUP.
    Reload,
    /// Log the state of the server: SIGUSR1.
    Report,
    /// End; with the name of the signal.
    End(&'static str),
}

/// Blocks them in this thread and those it starts from now on. SIGXFSZ is blocked as well: a log
/// file at its size limit then makes write(2) fail instead of killing the server.
///
/// # Errors
/// As pthread_sigmask(3).
pub fn block() -> io::Result<()> {
    sys::block_signals(&[SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ])
}

/// Waits for the next signal.
///
/// # Errors
/// As sigwait(3).
pub fn wait() -> io::Result<Signal> {
    Ok(match sys::sigwait(&WAITED_FOR)? {
        SIGHUP => Signal::Reload,
        SIGUSR1 => Signal::Report,
        SIGINT => Signal::End("INT"),
        _ => Signal::End("TERM"),
    })
}
