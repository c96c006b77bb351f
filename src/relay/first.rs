//! The first exchange: one thread passes the first few octets of both directions. Many sessions
//! have no more. The rest of a relay is in [`crate::relay::direction`].

use std::io::Read as _;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::relay::direction::{Direction, Halt, is_quiet};
use crate::relay::end::Side;
use crate::relay::state::Relay;
use crate::sys::{self, PollFd};

/// Small pieces that pass before a session puts its second thread to work.
const FIRST_PIECES: u32 = 8;

/// Quiet after which it does so in any case.
const FIRST_QUIET: Duration = Duration::from_secs(10);

/// How the first exchange ended.
pub(super) enum First {
    /// There is more to come, most likely from this side.
    More(Side),
    /// The direction from this side has ended.
    Ended(Side, Halt),
}

/// Passes the first few octets of both directions, so that a short session need not wake its second
/// thread. Never waits in a write.
pub(super) fn first(up: &mut Direction, down: &mut Direction, octets: &mut [u8]) -> First {
    // Down first: what the target has sent reaches the client even if the target is gone.
    for way in [&mut *down, &mut *up] {
        let unread = mem::take(&mut way.unsent);
        if let Some(first) = way.pass_now(&unread) {
            return first;
        }
    }
    let relay = Arc::clone(&up.relay);
    let Relay { client, target, limits, .. } = &*relay;
    for _ in 0..FIRST_PIECES {
        let mut fds = [PollFd::new(client, sys::POLLIN), PollFd::new(target, sys::POLLIN)];
        // The idle limit is kept where both directions run; so a failed poll leads there as well.
        let quiet = limits.idle.unwrap_or(FIRST_QUIET).min(FIRST_QUIET);
        if !matches!(sys::poll(&mut fds, Some(quiet)), Ok(1..)) {
            break;
        }
        let ready = fds.map(|fd| fd.has(!0));
        for (way, ready) in [&mut *up, &mut *down].into_iter().zip(ready) {
            if !ready {
                continue;
            }
            let len = match way.received(relay.stream(way.from).read(octets)) {
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
    /// Writes what can be written at once and keeps the rest; `None` if there is no rest.
    fn pass_now(&mut self, octets: &[u8]) -> Option<First> {
        if octets.is_empty() {
            return None;
        }
        let result = sys::send_dontwait(self.relay.stream(self.to()), octets);
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
