//! What both directions of a relay share: its legs, how long it has been quiet, and how it ends. How
//! octets get from one leg to the other is in [`crate::relay::direction`].

use std::mem;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::relay::end::{End, Side};
use crate::relay::leg::keep_alive;
use crate::relay::pool::Pool;
use crate::relay::rate::Rate;
use crate::relay::traffic::Traffic;
use crate::sync::{Queue, lock};
use crate::sys;

/// How long a thread may take to notice that its sockets have been shut for reading.
const NOTICE: Duration = Duration::from_millis(100);

/// Limits of a relay.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long neither side may send anything; `None` for ever. Time spent waiting for a rate
    /// does not count.
    pub idle: Option<Duration>,
    /// The same once one side has closed.
    pub linger: Duration,
    /// Each of these rates is kept to. Without any, octets pass as fast as they can.
    pub rates: Vec<Arc<Rate>>,
}

/// What all relays share that are half-closed.
#[derive(Default)]
pub(super) struct Lingering {
    /// Those that nobody has looked at yet.
    pub(super) relays: Queue<Weak<Shared>>,
    /// Whether there is a thread to look at them.
    pub(super) has_thread: Mutex<bool>,
}

/// A relay. Whoever lets go of it last closes both sockets and tells that it is done.
pub(super) struct Shared {
    pub(super) client: TcpStream,
    pub(super) target: TcpStream,
    pub(super) limits: Limits,
    pub(super) pool: Arc<Pool>,
    pub(super) lingering: Arc<Lingering>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) begun: Instant,
    /// Milliseconds from `begun` to the last octet that passed, or that is going to pass as soon as
    /// the rates let it.
    pub(super) active: AtomicU64,
    pub(super) changed: Condvar,
    /// Is dropped last.
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    /// What happened first.
    pub(super) end: Option<End>,
    /// How many directions have ended.
    pub(super) ended: u8,
    /// One side has closed, and the other was seen to stay.
    pub(super) lingers: bool,
    /// Nothing more is to be relayed.
    pub(super) aborted: bool,
    /// The side this server has sent the end of input to. Only then can its socket be closed
    /// without a reset.
    pub(super) shut: Option<Side>,
    /// To be told at the end.
    pub(super) done: Option<Box<dyn FnOnce(End) + Send>>,
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(self.end.unwrap_or(End::Internal));
        }
    }
}

impl Shared {
    pub(super) fn leg(&self, side: Side) -> &TcpStream {
        match side {
            Side::Client => &self.client,
            Side::Target => &self.target,
        }
    }

    /// Has reads and writes end when the session has been quiet for that long.
    pub(super) fn set_timeouts(&self, idle: Duration) {
        // Who has used up all of it is found out by the first read.
        let left = self.left(idle).unwrap_or(Duration::from_millis(1));
        for leg in [&self.client, &self.target] {
            // A leg that is gone will tell when it is used.
            let _ = leg.set_read_timeout(Some(left));
            let _ = leg.set_write_timeout(Some(idle));
        }
    }

    /// The session is not quiet before `wait` is over.
    pub(super) fn touch(&self, wait: Duration) {
        let active = self.begun.elapsed().saturating_add(wait);
        let millis = u64::try_from(active.as_millis()).unwrap_or(u64::MAX);
        // The other direction may wait for longer.
        self.active.fetch_max(millis, Ordering::Relaxed);
    }

    /// How much of `limit` is left before the session has been quiet for that long.
    pub(super) fn left(&self, limit: Duration) -> Option<Duration> {
        let active = Duration::from_millis(self.active.load(Ordering::Relaxed));
        let quiet = self.begun.elapsed().saturating_sub(active);
        limit.checked_sub(quiet).filter(|left| !left.is_zero())
    }

    /// Ends both directions now. With a reset the peers learn of it by a reset.
    pub(super) fn abort(&self, end: End) {
        let mut state = lock(&self.state);
        if state.aborted {
            return;
        }
        state.end = Some(match (state.end, end) {
            // A side that closes while the other still sends answers that with a reset.
            (Some(closed @ End::Closed(side)), End::Reset(same) | End::Lost(same))
                if side == same =>
            {
                closed
            }
            // What ends the session behind the close of one side counts for more than the close.
            _ => end,
        });
        state.aborted = true;
        self.changed.notify_all();
        let legs = [&self.client, &self.target];
        if matches!(end, End::Reset(_) | End::Lost(_)) {
            for leg in legs {
                let _ = sys::set_linger_zero(leg);
            }
            // Shutting for reading wakes a reader without a word to the peer, which is to see the
            // reset of the close and not the end of input of a shutdown before it.
            for leg in legs {
                let _ = leg.shutdown(Shutdown::Read);
            }
            let others = |state: &mut State| state.ended < 2;
            (state, _) = self
                .changed
                .wait_timeout_while(state, NOTICE, others)
                .unwrap_or_else(PoisonError::into_inner);
            if state.ended == 2 {
                return;
            }
            // The other direction sits in a write to a peer that takes nothing, and that will not
            // see the end of input either.
        }
        for leg in legs {
            let _ = leg.shutdown(Shutdown::Both);
        }
    }

    /// Whether this side, which is read from, is gone: its socket is closed though this server has
    /// not ended its output. The error may have been given to the other direction, so that this one
    /// saw a mere end of input.
    pub(super) fn is_reset(&self, side: Side) -> bool {
        let state = lock(&self.state);
        !state.aborted
            && state.shut != Some(side)
            && sys::is_tcp_closed(self.leg(side)).unwrap_or(false)
    }

    /// Whether one side has closed, and the other may not stay quiet for long.
    pub(super) fn has_closed_side(&self) -> bool {
        lock(&self.state).ended > 0
    }

    /// Whether the relay, which is half-closed, may go on: the open side must not stay quiet for
    /// ever, and the closed one still be there: nobody reads from it any more.
    pub(super) fn lingers(&self) -> bool {
        let mut state = lock(&self.state);
        // Without one that is shut it has been aborted.
        let Some(closed) = state.shut.map(Side::other) else { return false };
        if state.ended == 2 {
            return false;
        }
        // It may have closed before there was any need of that.
        if !mem::replace(&mut state.lingers, true) {
            keep_alive(&self.target);
        }
        drop(state);
        if self.left(self.limits.linger).is_none() {
            self.abort(End::Linger);
        } else if self.is_reset(closed) {
            self.abort(End::Reset(closed));
        }
        !lock(&self.state).aborted
    }
}
