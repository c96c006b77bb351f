//! The first few octets of both directions, which one thread passes. Many sessions have no more.

use std::io::Read as _;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::relay::direction::{Direction, Halt, is_quiet};
use crate::relay::end::Side;
use crate::relay::shared::Shared;
use crate::sys::{self, PollFd};

/// Pieces, none larger than that, that pass before a session puts its second thread to work.
const FIRST_PIECES: u32 = 8;

/// How long none of them comes before it does so all the same.
const FIRST_QUIET: Duration = Duration::from_secs(10);

/// What the first exchange came to.
pub(super) enum First {
    /// There is more to come, most likely from this side.
    More(Side),
    /// The direction from this side has ended.
    Ended(Side, Halt),
}

/// Passes the first few octets of both directions. Many sessions consist of nothing else, and need
/// not wake their second thread. Nothing is written here that would have to wait.
pub(super) fn first(up: &mut Direction, down: &mut Direction, octets: &mut [u8]) -> First {
    // What the target has said already gets to the client even if the target takes nothing any more.
    for way in [&mut *down, &mut *up] {
        let unread = mem::take(&mut way.unsent);
        if let Some(first) = way.pass_now(&unread) {
            return first;
        }
    }
    let shared = Arc::clone(&up.shared);
    let Shared { client, target, limits, .. } = &*shared;
    for _ in 0..FIRST_PIECES {
        let mut fds = [PollFd::new(client, sys::POLLIN), PollFd::new(target, sys::POLLIN)];
        // Who is quiet for long, or whose poll fails, waits where the idle limit is kept.
        let quiet = limits.idle.unwrap_or(FIRST_QUIET).min(FIRST_QUIET);
        if !matches!(sys::poll(&mut fds, Some(quiet)), Ok(1..)) {
            break;
        }
        let ready = fds.map(|fd| fd.has(!0));
        for (way, ready) in [&mut *up, &mut *down].into_iter().zip(ready) {
            if !ready {
                continue;
            }
            let len = match way.received(shared.stream(way.from).read(octets)) {
                Ok(len) => len.unwrap_or_default(),
                Err(halt) => return First::Ended(way.from, halt),
            };
            if let Some(first) = way.pass_now(octets.get(..len).unwrap_or_default()) {
                return first;
            }
            if len == octets.len() {
                return First::More(way.from);
            }
        }
    }
    First::More(Side::Client)
}

impl Direction {
    /// Writes what can be written at once, keeps the rest, and tells if there is any.
    fn pass_now(&mut self, octets: &[u8]) -> Option<First> {
        if octets.is_empty() {
            return None;
        }
        let result = sys::send_dontwait(self.shared.stream(self.to()), octets);
        let sent = if is_quiet(&result) { Ok(0) } else { self.sent(result) };
        match sent {
            Ok(len) if len == octets.len() => None,
            Ok(len) => {
                self.unsent = octets.get(len..).unwrap_or_default().to_vec();
                Some(First::More(self.from))
            }
            Err(halt) => Some(First::Ended(self.from, halt)),
        }
    }
}
