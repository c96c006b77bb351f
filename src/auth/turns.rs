//! Limits how many password hashes are computed at once, so that a flood of logins does not take
//! every core from the relays. A session takes a turn for each hash; a reload of the users adds no
//! turns. The hashes are in `users`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use crate::sync::lock;
use crate::wait::{Promise, Wait, WaitError};

/// The free turns, and the sessions that wait for one.
pub struct Turns(Mutex<TurnState>);

struct TurnState {
    free: usize,
    /// The sessions that wait, in the order of their turns; none while a turn is free.
    waiting: VecDeque<Arc<Promise<()>>>,
}

/// The right to compute one hash. Dropping it passes the turn on.
pub struct Turn<'a>(&'a Turns);

impl Turns {
    /// One turn for every two cores of this machine, at least one.
    #[must_use]
    pub fn for_this_machine() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new((cores / 2).max(1))
    }

    /// Turns for `at_once` hashes at the same time.
    #[must_use]
    pub fn new(at_once: usize) -> Self {
        Self(Mutex::new(TurnState { free: at_once, waiting: VecDeque::new() }))
    }

    /// Takes a turn, waiting for it within the bounds of `wait`.
    ///
    /// # Errors
    /// Every [`WaitError`], but none if a turn is free.
    pub fn take(&self, wait: &Wait<'_>) -> Result<Turn<'_>, WaitError> {
        let mut state = lock(&self.0);
        if state.free > 0 {
            state.free -= 1;
            return Ok(Turn(self));
        }
        let promise = Arc::new(Promise::new()?);
        state.waiting.push_back(Arc::clone(&promise));
        drop(state);
        wait.for_promise(&promise).map(|()| Turn(self)).inspect_err(|_| {
            lock(&self.0).waiting.retain(|waiting| !Arc::ptr_eq(waiting, &promise));
            // A turn given at the last moment is passed on.
            drop(promise.take().map(|()| Turn(self)));
        })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.0);
        match state.waiting.pop_front() {
            Some(next) => next.set(()),
            None => state.free += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::testing::Scene;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn no_more_turns_are_given_at_once_than_there_are() {
        let (turns, scene) = (Turns::new(2), Scene::new());
        let (first, _second) = (turns.take(&scene.wait(20)).ok(), turns.take(&scene.wait(20)).ok());
        assert!(matches!(turns.take(&scene.wait(20)), Err(WaitError::TimedOut)));
        drop(first);
        assert!(turns.take(&scene.wait(20)).is_ok());
        assert!(turns.take(&scene.wait(0)).is_ok(), "a free turn takes no time");
    }

    #[test]
    fn a_returned_turn_goes_to_a_waiting_thread() {
        let turns = Turns::new(1);
        let scene = Scene::new();
        let taken = turns.take(&scene.wait(20));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| turns.take(&Scene::new().wait(10_000)).is_ok());
            thread::sleep(Duration::from_millis(50));
            assert!(!waiting.is_finished());
            drop(taken);
            assert!(waiting.join().unwrap());
        });
        assert_eq!(lock(&turns.0).free, 1);
    }

    #[test]
    fn a_client_that_leaves_stops_waiting_for_a_turn() {
        let turns = Turns::new(1);
        let mut scene = Scene::new();
        let taken = turns.take(&scene.wait(20));
        scene.reset();
        assert!(matches!(turns.take(&scene.wait(60_000)), Err(WaitError::ClientGone)));
        assert!(lock(&turns.0).waiting.is_empty());
        drop(taken);
        assert_eq!(lock(&turns.0).free, 1);
    }
}
