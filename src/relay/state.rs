//! The state of a relay, shared by both directions: its sockets, how long it has been quiet, and its
//! end, by a FIN or a reset.
//! How octets get from one socket to the other is in [`crate::relay::direction`].

use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::net::Stream;
use crate::relay::end::{End, Side, Stopper};
use crate::relay::pool::Pool;
use crate::relay::rate::Rate;
use crate::relay::traffic::Traffic;
use crate::sync::{Queue, lock};
use crate::sys;

/// How long a direction may take to notice that its socket has been shut for reading.
const NOTICE: Duration = Duration::from_millis(100);

/// Time limits and rates of a relay.
#[derive(Clone, Debug)]
pub struct RelayLimits {
    /// How long both sides may be quiet; `None` for ever. Time spent waiting for a rate does not
    /// count.
    pub idle: Option<Duration>,
    /// The same for the open side of a half-closed relay.
    pub linger: Duration,
    /// The relay keeps to each of these rates. Without any, octets pass as fast as they can.
    pub rates: Vec<Arc<Rate>>,
}

/// Resources shared by all relays.
pub(super) struct Common {
    /// Buffers and pipes for busy directions.
    pub(super) pool: Pool,
    /// Half-closed relays that the watch has not taken yet.
    pub(super) half_closed: Queue<Weak<Relay>>,
    /// Whether the thread of the watch runs.
    pub(super) is_watched: Mutex<bool>,
}

/// A relay. Dropping the last reference closes both sockets and then calls `done`.
pub(super) struct Relay {
    pub(super) client: Stream,
    pub(super) target: Stream,
    pub(super) limits: RelayLimits,
    pub(super) common: Arc<Common>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) begun: Instant,
    /// Milliseconds from `begun` to the last octet that passed, or to when the rates will let the
    /// next one pass.
    pub(super) active: AtomicU64,
    /// Notified when the relay is aborted, and when a direction ends after that.
    pub(super) changed: Condvar,
    /// The last field, so that it is dropped after the sockets.
    pub(super) progress: Mutex<Progress>,
}

/// How far a relay has come.
pub(super) struct Progress {
    phase: Phase,
    /// Directions that have not ended.
    running: u8,
    /// Called at the end.
    done: Option<Box<dyn FnOnce(End) + Send>>,
}

/// Which directions are open.
#[derive(Clone, Copy)]
enum Phase {
    /// Both directions.
    Open,
    /// The direction from this side has ended, and the other side has been sent the end of input:
    /// only after that can that side's connection end without a reset.
    HalfClosed { from: Side },
    /// None.
    Aborted { end: End },
}

impl Progress {
    /// A relay that is about to begin.
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

impl Relay {
    /// Lets `stopper` end this relay.
    pub(super) fn obey(self: &Arc<Self>, stopper: &Stopper) {
        let relay = Arc::downgrade(self);
        stopper.attach(move |end| {
            if let Some(relay) = relay.upgrade() {
                relay.abort(end);
            }
        });
    }

    /// The socket of this side.
    pub(super) fn stream(&self, side: Side) -> &Stream {
        match side {
            Side::Client => &self.client,
            Side::Target => &self.target,
        }
    }

    /// Sets the time-outs of both sockets for this idle limit.
    pub(super) fn set_timeouts(&self, idle: Duration) {
        // If nothing is left, the first read finds that out.
        let left = self.left(idle).unwrap_or(Duration::from_millis(1));
        for leg in [&self.client, &self.target] {
            // A dead socket shows when it is used.
            let _ = leg.set_read_timeout(Some(left));
            let _ = leg.set_write_timeout(Some(idle));
        }
    }

    /// Notes that the relay is not quiet before `wait` is over.
    pub(super) fn touch(&self, wait: Duration) {
        let active = self.begun.elapsed().saturating_add(wait);
        let millis = u64::try_from(active.as_millis()).unwrap_or(u64::MAX);
        // The other direction may wait for longer.
        self.active.fetch_max(millis, Ordering::Relaxed);
    }

    /// Time left until the relay has been quiet for `limit`; `None` if it has been.
    pub(super) fn left(&self, limit: Duration) -> Option<Duration> {
        let active = Duration::from_millis(self.active.load(Ordering::Relaxed));
        let quiet = self.begun.elapsed().saturating_sub(active);
        limit.checked_sub(quiet).filter(|left| !left.is_zero())
    }

    /// Waits for `time`, or until the relay is aborted; returns whether it is.
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

    /// Counts the direction from this side as ended by the end of its input, and returns whether
    /// that half-closes the relay. It does not if the other direction has ended, since both sockets
    /// are about to be closed, nor after an abort, which makes every read return the end of input.
    pub(super) fn half_close(&self, from: Side) -> bool {
        let mut progress = self.retire();
        let is_first = matches!(progress.phase, Phase::Open);
        if is_first {
            progress.phase = Phase::HalfClosed { from };
        }
        is_first
    }

    /// Ends both directions now. If `end` is a reset, the peers get a reset.
    pub(super) fn abort(&self, end: End) {
        let mut progress = lock(&self.progress);
        let told = match (progress.phase, end) {
            (Phase::Aborted { .. }, _) => return,
            // After closing, a side answers what the other one still sends with a reset.
            (Phase::HalfClosed { from }, End::Reset(side) | End::Lost(side)) if side == from => {
                End::Closed(from)
            }
            // Any other end after a half-close counts for more than the close.
            _ => end,
        };
        progress.phase = Phase::Aborted { end: told };
        self.changed.notify_all();
        let legs = [&self.client, &self.target];
        if matches!(end, End::Reset(_) | End::Lost(_)) {
            for leg in legs {
                let _ = sys::set_linger_zero(leg);
            }
            // Shutting for reading wakes a reader and sends nothing: the peer should see the reset
            // of the close, not the end of input of a shutdown before it.
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
            // The other direction is blocked in a write, to a peer that takes nothing and so will
            // not see the end of input either.
        }
        for leg in legs {
            let _ = leg.shutdown(Shutdown::Both);
        }
    }

    /// Whether this side has reset the connection: its socket is closed, though this server has not
    /// ended its output. The error may have gone to the other direction, so that the reader of this
    /// side saw a mere end of input.
    pub(super) fn is_reset(&self, side: Side) -> bool {
        let progress = lock(&self.progress);
        let may_be = match progress.phase {
            Phase::Open => true,
            Phase::HalfClosed { from } => side == from,
            Phase::Aborted { .. } => false,
        };
        may_be && sys::is_tcp_closed(self.stream(side)).unwrap_or(false)
    }

    /// Whether the relay is half-closed.
    pub(super) fn is_half_closed(&self) -> bool {
        matches!(lock(&self.progress).phase, Phase::HalfClosed { .. })
    }

    /// Whether the relay is half-closed and may stay so. Ends it if the open side has been quiet
    /// for the linger limit, or if the closed side, from which nothing is read any more, has reset
    /// the connection.
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
