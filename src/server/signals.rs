//! Signals: blocked before the first thread starts, waited for by one thread. No handlers.

use std::io;

use crate::sys::{self, SIGINT, SIGTERM};

/// The signals that end the server.
const ENDING: [i32; 2] = [SIGINT, SIGTERM];

/// Blocks them, here and in all threads started from now on.
///
/// # Errors
/// As pthread_sigmask(3).
pub fn block() -> io::Result<()> {
    sys::block_signals(&ENDING)
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
