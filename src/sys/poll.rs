//! Waiting for descriptors, poll(2). Not here: deadlines and retries (`crate::wait` and others).

use std::ffi::{c_int, c_short, c_ulong};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::sys::cvt;

/// A descriptor for [`poll`], with the events to wait for and those that came.
#[repr(C)]
#[derive(Debug)]
pub struct PollFd<'fd> {
    fd: BorrowedFd<'fd>,
    events: c_short,
    revents: c_short,
}
const _: () = assert!(size_of::<PollFd<'_>>() == 8);

/// Data can be read, or the end of it.
pub const POLLIN: i16 = 0x001;
/// Data can be written.
pub const POLLOUT: i16 = 0x004;
/// An error is pending; reported even if not waited for.
pub const POLLERR: i16 = 0x008;
/// The peer has shut down its sending side, or both sides.
pub const POLLRDHUP: i16 = 0x2000;

unsafe extern "C" {
    // poll(2)
    #[link_name = "poll"]
    fn c_poll(fds: *mut PollFd<'_>, nfds: c_ulong, timeout: c_int) -> c_int;
}

impl<'fd> PollFd<'fd> {
    /// Waits for `events` on `fd`.
    pub fn new(fd: &'fd impl AsFd, events: i16) -> Self {
        Self { fd: fd.as_fd(), events, revents: 0 }
    }

    /// Whether any of `events` came at the last [`poll`].
    #[must_use]
    pub fn has(&self, events: i16) -> bool {
        self.revents & events != 0
    }
}

/// Waits until one of `fds` is ready or `timeout` has passed (`None`: no limit; rounded up to
/// milliseconds); returns the number of those that are ready. poll(2).
///
/// # Errors
/// As poll(2); EINTR can come after the process was stopped and continued.
pub fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let millis = match timeout {
        None => -1,
        Some(timeout) => {
            c_int::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX)
        }
    };
    let nfds = c_ulong::try_from(fds.len()).map_err(io::Error::other)?;
    // SAFETY: `fds` points to `nfds` structures laid out as struct pollfd (BorrowedFd is
    // transparent over an int), borrowed mutably for the length of the call.
    let ready = cvt(unsafe { c_poll(fds.as_mut_ptr(), nfds, millis) })?;
    usize::try_from(ready).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poll_returns_0_after_its_timeout() {
        let (reader, _writer) = io::pipe().unwrap();
        let mut fds = [PollFd::new(&reader, POLLIN)];
        assert_eq!(poll(&mut fds, Some(Duration::from_millis(1))).unwrap(), 0);
    }
}
