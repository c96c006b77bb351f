//! The system calls that std lacks, one wrapper each, named after the call. All `unsafe` code of
//! the program is here and in `sys/`.
//!
//! A wrapper turns -1 into the `io::Error` of errno and decides nothing: no retries, no defaults.
//! Linux only; the numbers are those of the generic kernel ABI (x86, Arm, RISC-V, POWER).
//!
//! Each file in `sys/` has one topic, and callers write `sys::name` for all of them. This file has
//! only what they share. Not here: calls that std wraps.

use std::ffi::c_int;
use std::io;

mod crypt;
mod fd;
mod ids;
mod landlock;
mod poll;
mod signal;
mod sock;
mod thread;
mod time;
mod tty;

pub use crypt::*;
pub use fd::*;
pub use ids::*;
pub use landlock::*;
pub use poll::*;
pub use signal::*;
pub use sock::*;
pub use thread::*;
pub use time::*;
pub use tty::*;

#[cfg(not(target_os = "linux"))]
compile_error!("socksd calls Linux system calls by their Linux numbers");

/// Turns -1 into the error that errno holds.
fn cvt(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Turns an errno that a call has returned into an error; 0 is success.
fn cvt_errno(errno: c_int) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}
