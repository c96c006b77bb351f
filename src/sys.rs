//! The system calls std lacks: the only `unsafe` code, one wrapper each, with the call's own name.
//!
//! A wrapper turns -1 into the `io::Error` of errno and decides nothing: no retries, no defaults.
//! Linux only; the numbers below are those of the generic kernel ABI (x86, Arm, RISC-V, POWER).
//!
//! One file for each kind of thing the calls are about; all names are used as `sys::name`. Here is
//! only what the files share. Not here or below: what std has.

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

fn cvt(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same for calls that return errno instead of setting it.
fn cvt_errno(errno: c_int) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}
