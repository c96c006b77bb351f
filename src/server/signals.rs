//! Signals: blocked before the first thread starts, waited for by one thread. No handlers.

use std::io;

use crate::sys::{self, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};

/// The signals that are waited for.
const WAITED_FOR: [i32; 4] = [SIGHUP, SIGINT, SIGTERM, SIGUSR1];

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// To read rules and users anew: SIGHUP.
    Reload,
    /// To log how the server is doing: SIGUSR1.
    Report,
    /// To end; the name is the signal's.
    End(&'static str),
}

/// Blocks them, here and in all threads started from now on, and with them SIGXFSZ: a log that may
/// not grow any further is then an error of a write and not the end of the server.
///
/// # Errors
/// As pthread_sigmask(3).
pub fn block() -> io::Result<()> {
    sys::block_signals(&[SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ])
}

/// Waits for one of them.
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
