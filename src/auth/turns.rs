//! Turns to hash a password: only a few hashes are computed at once, so that a flood of logins cannot
//! take every core from the relays. There is one [`Turns`] for the life of the server: a reload, which
//! reads the users anew, adds no turns. What is hashed is for `users`.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::auth::AuthError;
use crate::sync::lock;

/// The turns that are not taken.
pub struct Turns {
    free: Mutex<usize>,
    returned: Condvar,
}

/// The right to compute one hash now; it ends when it is dropped.
pub struct Turn<'a>(&'a Turns);

impl Turns {
    /// As many as half of the cores of this machine, at least one.
    #[must_use]
    pub fn for_this_machine() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new((cores / 2).max(1))
    }

    /// As many as given.
    #[must_use]
    pub fn new(at_once: usize) -> Self {
        Self { free: Mutex::new(at_once), returned: Condvar::new() }
    }

    /// Takes a turn, waiting for one until `deadline`.
    ///
    /// # Errors
    /// `TimedOut`.
    pub fn take(&self, deadline: Instant) -> Result<Turn<'_>, AuthError> {
        let mut free = lock(&self.free);
        while *free == 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AuthError::TimedOut);
            }
            (free, _) =
                self.returned.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Ok(Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
        self.0.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn there_are_as_many_turns_at_once_as_given() {
        let turns = Turns::new(2);
        let (first, _second) = (turns.take(soon()).ok(), turns.take(soon()).ok());
        assert!(matches!(turns.take(soon()), Err(AuthError::TimedOut)));
        drop(first);
        assert!(turns.take(soon()).is_ok());
        assert!(turns.take(Instant::now()).is_ok(), "free turns need no time");
    }

    #[test]
    fn a_turn_that_is_given_back_goes_to_one_that_waits() {
        let turns = Turns::new(1);
        let taken = turns.take(soon());
        thread::scope(|scope| {
            let waiting =
                scope.spawn(|| turns.take(Instant::now() + Duration::from_secs(10)).is_ok());
            thread::sleep(Duration::from_millis(50));
            assert!(!waiting.is_finished());
            drop(taken);
            assert!(waiting.join().unwrap());
        });
    }
}
