//! Signals: blocked before the first thread starts, waited for by one thread. No handlers.

use std::io;

use crate::sys::{self, SIGINT, SIGTERM, SIGXFSZ};

/// The signals that end the server.
const ENDING: [i32; 2] = [SIGINT, SIGTERM];

/// Blocks them, here and in all threads started from now on, and with them SIGXFSZ: a log that may
/// not grow any further is then an error of a write and not the end of the server.
///
/// # Errors
/// As pthread_sigmask(3).
pub fn block() -> io::Result<()> {
    sys::block_signals(&[SIGINT, SIGTERM, SIGXFSZ])
}

/// Waits for one of them and returns its name.
///
/// # Errors
/// As sigwait(3).
pub fn wait() -> io::Result<&'static str> {
    Ok(match sys::sigwait(&ENDING)? {
        SIGINT => "INT",
        _ => "TERM",
    })
}
