//! What both directions of a relay share: its legs, how long it has been quiet, and how it ends. How
//! octets get from one leg to the other is in [`crate::relay::direction`].

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::relay::end::{End, Side, Stopper};
use crate::relay::pool::Pool;
use crate::relay::rate::Rate;
use crate::relay::traffic::Traffic;
use crate::sync::{Queue, lock};
use crate::sys;

/// How long a thread may take to notice that its sockets have been shut for reading.
const NOTICE: Duration = Duration::from_millis(100);

/// What a relay keeps to.
#[derive(Clone, Debug)]
pub struct RelayLimits {
    /// How long neither side may send anything; `None` for ever. Time spent waiting for a rate
    /// does not count.
    pub idle: Option<Duration>,
    /// The same once one side has closed.
    pub linger: Duration,
    /// Each of these rates is kept to. Without any, octets pass as fast as they can.
    pub rates: Vec<Arc<Rate>>,
}

/// What all relays share.
pub(super) struct Common {
    /// What busy directions borrow.
    pub(super) pool: Pool,
    /// Half-closed relays that the watch has not looked at yet.
    pub(super) half_closed: Queue<Weak<Shared>>,
    /// Whether the watch has its thread.
    pub(super) is_watched: Mutex<bool>,
}

/// A relay. Whoever lets go of it last closes both sockets and tells that it is done.
pub(super) struct Shared {
    pub(super) client: TcpStream,
    pub(super) target: TcpStream,
    pub(super) limits: RelayLimits,
    pub(super) common: Arc<Common>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) begun: Instant,
    /// Milliseconds from `begun` to the last octet that passed, or that is going to pass as soon as
    /// the rates let it.
    pub(super) active: AtomicU64,
    /// Told when the relay has been aborted, and when a direction has ended after that.
    pub(super) changed: Condvar,
    /// Is dropped last.
    pub(super) progress: Mutex<Progress>,
}

/// How far a relay has come.
pub(super) struct Progress {
    phase: Phase,
    /// Directions that have not ended.
    running: u8,
    /// To be told at the end.
    done: Option<Box<dyn FnOnce(End) + Send>>,
}

/// What is still to be relayed.
#[derive(Clone, Copy)]
enum Phase {
    /// Both directions.
    Open,
    /// Nothing from this side, whose end of input the other one has been sent. Only then can the
    /// other one's socket be closed without a reset.
    HalfClosed { from: Side },
    /// Nothing more.
    Aborted { end: End },
}

impl Progress {
    /// Nothing has been relayed.
    pub(super) fn new(done: Box<dyn FnOnce(End) + Send>) -> Self {
        Self { phase: Phase::Open, running: 2, done: Some(done) }
    }

    fn is_aborted(&self) -> bool {
        matches!(self.phase, Phase::Aborted { .. })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let end = match self.phase {
            Phase::Open => End::Internal,
            Phase::HalfClosed { from } => End::Closed(from),
            Phase::Aborted { end } => end,
        };
        if let Some(done) = self.done.take() {
            done(end);
        }
    }
}

impl Shared {
    /// Has `stopper` end this relay.
    pub(super) fn obey(self: &Arc<Self>, stopper: &Stopper) {
        let relay = Arc::downgrade(self);
        stopper.attach(move |end| {
            if let Some(relay) = relay.upgrade() {
                relay.abort(end);
            }
        });
    }

    /// The socket of this side.
    pub(super) fn stream(&self, side: Side) -> &TcpStream {
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

    /// Waits for so long, unless the relay is aborted; tells whether it has been.
    pub(super) fn wait(&self, time: Duration) -> bool {
        let progress = lock(&self.progress);
        let waited =
            self.changed.wait_timeout_while(progress, time, |progress| !progress.is_aborted());
        waited.unwrap_or_else(PoisonError::into_inner).0.is_aborted()
    }

    /// Counts a direction as ended.
    pub(super) fn retire(&self) -> MutexGuard<'_, Progress> {
        let mut progress = lock(&self.progress);
        progress.running = progress.running.saturating_sub(1);
        if progress.is_aborted() {
            self.changed.notify_all();
        }
        progress
    }

    /// Counts the direction from this side as ended with its input; tells whether that half-closes
    /// the relay. The end of the second direction is told by closing, and an abort, which shuts for
    /// reading, has seen to everything.
    pub(super) fn half_close(&self, from: Side) -> bool {
        let mut progress = self.retire();
        let is_first = matches!(progress.phase, Phase::Open);
        if is_first {
            progress.phase = Phase::HalfClosed { from };
        }
        is_first
    }

    /// Ends both directions now. With a reset the peers learn of it by a reset.
    pub(super) fn abort(&self, end: End) {
        let mut progress = lock(&self.progress);
        let told = match (progress.phase, end) {
            (Phase::Aborted { .. }, _) => return,
            // A side that closes while the other still sends answers that with a reset.
            (Phase::HalfClosed { from }, End::Reset(side) | End::Lost(side)) if side == from => {
                End::Closed(from)
            }
            // What ends the session behind the close of one side counts for more than the close.
            _ => end,
        };
        progress.phase = Phase::Aborted { end: told };
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
            let others = |progress: &mut Progress| progress.running > 0;
            (progress, _) = self
                .changed
                .wait_timeout_while(progress, NOTICE, others)
                .unwrap_or_else(PoisonError::into_inner);
            if progress.running == 0 {
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
        let progress = lock(&self.progress);
        let may_be = match progress.phase {
            Phase::Open => true,
            Phase::HalfClosed { from } => side == from,
            Phase::Aborted { .. } => false,
        };
        may_be && sys::is_tcp_closed(self.stream(side)).unwrap_or(false)
    }

    /// Whether one side has closed, and the other may not stay quiet for long.
    pub(super) fn is_half_closed(&self) -> bool {
        matches!(lock(&self.progress).phase, Phase::HalfClosed { .. })
    }

    /// Whether the relay, which is half-closed, may go on: the open side must not stay quiet for
    /// ever, and the closed one still be there: nobody reads from it any more.
    pub(super) fn lingers(&self) -> bool {
        let progress = lock(&self.progress);
        let Phase::HalfClosed { from } = progress.phase else { return false };
        if progress.running == 0 {
            return false;
        }
        drop(progress);
        if self.left(self.limits.linger).is_none() {
            self.abort(End::Linger);
        } else if self.is_reset(from) {
            self.abort(End::Reset(from));
        }
        self.is_half_closed()
    }
}
