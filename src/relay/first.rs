//! The first few octets of both directions, which one thread passes. Many sessions have no more.

use std::io::Read as _;
use std::time::Duration;

use crate::relay::direction::{Direction, Stop, is_quiet};
use crate::relay::end::Side;
use crate::relay::shared::Shared;
use crate::sys::{self, PollFd};

/// Pieces, none larger than that, that pass before a session puts its second thread to work.
const FIRST_PIECES: u32 = 8;

/// How long none of them comes before it does so all the same.
const FIRST_QUIET: Duration = Duration::from_secs(10);

/// What the first exchange came to.
pub(super) enum First {
    /// There is more to come. The direction from this side has these octets still to write.
    More(Side, Vec<u8>),
    /// The direction from this side has ended.
    Ended(Side, Stop),
}

/// Passes the first few octets of both directions. Many sessions consist of nothing else, and need
/// not wake their second thread. Nothing is written here that would have to wait.
pub(super) fn first(up: &Direction, down: &Direction, leftover: &[u8], octets: &mut [u8]) -> First {
    if let Some(first) = up.pass_now(leftover) {
        return first;
    }
    let Shared { client, target, limits, .. } = &*up.shared;
    for _ in 0..FIRST_PIECES {
        let mut fds = [PollFd::new(client, sys::POLLIN), PollFd::new(target, sys::POLLIN)];
        // Who is quiet for long, or whose poll fails, waits where the idle limit is kept.
        let quiet = limits.idle.unwrap_or(FIRST_QUIET).min(FIRST_QUIET);
        if !matches!(sys::poll(&mut fds, Some(quiet)), Ok(1..)) {
            break;
        }
        let ready = fds.map(|fd| fd.has(!0));
        for (way, ready) in [up, down].into_iter().zip(ready) {
            if !ready {
                continue;
            }
            let len = match way.received(way.shared.leg(way.from).read(octets)) {
                Ok(len) => len.unwrap_or_default(),
                Err(stop) => return First::Ended(way.from, stop),
            };
            if let Some(first) = way.pass_now(octets.get(..len).unwrap_or_default()) {
                return first;
            }
            if len == octets.len() {
                return First::More(way.from, Vec::new());
            }
        }
    }
    First::More(Side::Client, Vec::new())
}

impl Direction {
    /// Writes what can be written at once, and tells if that is not all.
    fn pass_now(&self, octets: &[u8]) -> Option<First> {
        if octets.is_empty() {
            return None;
        }
        let result = sys::send_dontwait(self.shared.leg(self.to()), octets);
        let sent = if is_quiet(&result) { Ok(0) } else { self.sent(result) };
        match sent {
            Ok(len) if len == octets.len() => None,
            Ok(len) => Some(First::More(self.from, octets.get(len..).unwrap_or_default().to_vec())),
            Err(stop) => Some(First::Ended(self.from, stop)),
        }
    }
}
