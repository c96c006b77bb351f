//! Signals: blocking them, and waiting for blocked ones. Not here: handlers; there are none.

use std::ffi::c_int;
use std::io;

use crate::sys::{cvt, cvt_errno};

/// bits/types/__sigset_t.h: 1024 bits in glibc and musl alike.
#[repr(C)]
struct SigSet([u64; 16]);
const _: () = assert!(size_of::<SigSet>() == 128);

/// bits/signum-arch.h: a file grew past RLIMIT_FSIZE.
pub const SIGXFSZ: i32 = 25;
/// bits/signum-generic.h: terminate.
pub const SIGTERM: i32 = 15;
/// bits/signum-generic.h: interrupt from the terminal.
pub const SIGINT: i32 = 2;
/// A user-defined signal, signal(7).
pub const SIGUSR1: i32 = 10;
/// bits/signum-generic.h: the terminal is gone.
pub const SIGHUP: i32 = 1;
/// bits/signum-generic.h: quit from the terminal.
pub const SIGQUIT: i32 = 3;
/// asm-generic/signal.h: stop from the terminal.
pub const SIGTSTP: i32 = 20;
const SIG_BLOCK: c_int = 0;

unsafe extern "C" {
    // sigsetops(3), pthread_sigmask(3), sigwait(3)
    fn sigemptyset(set: *mut SigSet) -> c_int;
    fn sigaddset(set: *mut SigSet, signum: c_int) -> c_int;
    fn pthread_sigmask(how: c_int, set: *const SigSet, old: *mut SigSet) -> c_int;
    #[link_name = "sigwait"]
    fn c_sigwait(set: *const SigSet, signum: *mut c_int) -> c_int;
}

fn sigset(signums: &[i32]) -> io::Result<SigSet> {
    let mut set = SigSet([0; 16]);
    // SAFETY: `set` is a sigset_t the call may fill.
    cvt(unsafe { sigemptyset(&raw mut set) })?;
    for &signum in signums {
        // SAFETY: `set` was initialised by sigemptyset.
        cvt(unsafe { sigaddset(&raw mut set, signum) })?;
    }
    Ok(set)
}

/// Blocks `signums` in this thread and in those it starts afterwards. pthread_sigmask(3).
///
/// # Errors
/// EINVAL for a number that is not a signal.
pub fn block_signals(signums: &[i32]) -> io::Result<()> {
    let set = sigset(signums)?;
    // SAFETY: `set` is initialised; null stands for the old mask, which is not needed.
    cvt_errno(unsafe { pthread_sigmask(SIG_BLOCK, &raw const set, std::ptr::null_mut()) })
}

/// Waits for one of the blocked `signums` and returns it. sigwait(3).
///
/// # Errors
/// EINVAL for a number that is not a signal.
pub fn sigwait(signums: &[i32]) -> io::Result<i32> {
    let set = sigset(signums)?;
    let mut signum = 0;
    // SAFETY: `set` is initialised and `signum` an int the call may fill.
    cvt_errno(unsafe { c_sigwait(&raw const set, &raw mut signum) })?;
    Ok(signum)
}
