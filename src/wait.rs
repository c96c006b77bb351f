//! Waiting for somebody else on behalf of a client, who may leave meanwhile, as the server may end.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use crate::sys::{self, PollFd};

/// For whom to wait, and for how long.
#[derive(Clone, Copy)]
pub struct Wait<'a> {
    /// Who has to stay.
    pub client: &'a TcpStream,
    /// What of the client's tells that it has left, beside a reset, as poll(2) has it.
    pub leaves_by: i16,
    /// Hangs up when the server ends.
    pub ended: BorrowedFd<'a>,
    /// When the wait is over.
    pub deadline: Instant,
}

/// Why nothing came.
#[derive(Debug)]
pub enum InVain {
    /// It was not there by the deadline.
    TimedOut,
    /// The client left.
    ClientGone,
    /// The server ends.
    Stopped,
    /// A system call failed.
    Failed(io::Error),
}

impl Wait<'_> {
    /// Waits for `events`, as poll(2) has them, on `fd`.
    ///
    /// # Errors
    /// Why they did not come.
    pub fn on(&self, fd: &impl AsFd, events: i16) -> Result<(), InVain> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(InVain::TimedOut);
            }
            let mut fds = [
                PollFd::new(fd, events),
                PollFd::new(self.client, self.leaves_by),
                PollFd::new(&self.ended, 0),
            ];
            match sys::poll(&mut fds, Some(left)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(InVain::Failed(error)),
                Ok(_) => {}
            }
            match fds.map(|fd| fd.has(!0)) {
                [_, true, _] => return Err(InVain::ClientGone),
                [_, _, true] => return Err(InVain::Stopped),
                [true, ..] => return Ok(()),
                [false, ..] => {}
            }
        }
    }
}
