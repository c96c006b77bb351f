//! Terminals: turning echo off and on. Not here: asking for a password (`crate::hash`).

use std::ffi::{c_int, c_uint};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use crate::sys::cvt;

/// bits/termios-struct.h `struct termios`: the settings of a terminal.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Termios {
    iflag: c_uint,
    oflag: c_uint,
    cflag: c_uint,
    lflag: c_uint,
    /// c_line, c_cc, c_ispeed and c_ospeed; their order differs by architecture.
    rest: [c_uint; 11],
}
const _: () = assert!(size_of::<Termios>() == 60);
const ECHO: c_uint = 0o10;
const TCSAFLUSH: c_int = 2;

unsafe extern "C" {
    // termios(3)
    #[link_name = "tcgetattr"]
    fn c_tcgetattr(fd: c_int, termios: *mut Termios) -> c_int;
    #[link_name = "tcsetattr"]
    fn c_tcsetattr(fd: c_int, actions: c_int, termios: *const Termios) -> c_int;
}

impl Termios {
    /// The same settings without echo.
    #[must_use]
    pub fn without_echo(mut self) -> Self {
        self.lflag &= !ECHO;
        self
    }
}

/// Reads the settings of a terminal. tcgetattr(3).
///
/// # Errors
/// ENOTTY where `fd` is no terminal.
pub fn tcgetattr(fd: &impl AsFd) -> io::Result<Termios> {
    let mut termios = Termios { iflag: 0, oflag: 0, cflag: 0, lflag: 0, rest: [0; 11] };
    // SAFETY: `fd` is borrowed, so open; `termios` is a struct termios the call may fill.
    cvt(unsafe { c_tcgetattr(fd.as_fd().as_raw_fd(), &raw mut termios) })?;
    Ok(termios)
}

/// Changes the settings of a terminal after its output is written, and discards unread input.
/// tcsetattr(3) with TCSAFLUSH.
///
/// # Errors
/// ENOTTY where `fd` is no terminal, EIO in an orphaned background process group.
pub fn tcsetattr_flush(fd: &impl AsFd, termios: &Termios) -> io::Result<()> {
    // SAFETY: `fd` is borrowed, so open; `termios` is a struct termios, which the call only reads.
    cvt(unsafe { c_tcsetattr(fd.as_fd().as_raw_fd(), TCSAFLUSH, termios) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_has_no_terminal_settings() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(tcgetattr(&reader).is_err());
    }
}
