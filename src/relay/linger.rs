//! The watch over half-closed relays: one thread, which ends those whose open side is quiet for too
//! long, or whose closed side has reset the connection. No direction reads from that side any more.
//!
//! A server starts the thread beforehand. A process of inetd(8) with its one session starts it with
//! the first half-close, if there is one.

use std::io;
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::relay::leg::keep_alive;
use crate::relay::state::{Common, Relay};
use crate::sync::{Queue, lock};

/// How often each relay is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Starts the thread if it does not run yet.
///
/// # Errors
/// As pthread_create(3). The next call tries again.
pub(super) fn start(common: &Arc<Common>) -> io::Result<()> {
    let mut is_watched = lock(&common.is_watched);
    if !*is_watched {
        let common = Arc::clone(common);
        let body = move || watch_all(&common.half_closed);
        thread::Builder::new().name("linger".into()).spawn(body)?;
        *is_watched = true;
    }
    Ok(())
}

/// Watches a relay that has just been half-closed.
///
/// # Errors
/// As [`start`].
pub(super) fn watch(relay: &Arc<Relay>) -> io::Result<()> {
    start(&relay.common)?;
    relay.common.half_closed.put(Arc::downgrade(relay));
    Ok(())
}

/// The thread: takes relays from the queue, and looks at each once a second until it is over.
fn watch_all(queue: &Queue<Weak<Relay>>) {
    let mut relays = Vec::new();
    loop {
        let first = if relays.is_empty() { queue.take(None) } else { None };
        thread::sleep(LOOK_EVERY);
        relays.retain(|relay| stays(relay, Relay::lingers));
        let now = Some(Instant::now());
        let new = first.into_iter().chain(iter::from_fn(|| queue.take(now)));
        relays.extend(new.filter(|relay| {
            stays(relay, |relay| {
                // A relay half-closed in its first exchange has no probes yet.
                keep_alive(&relay.target);
                relay.lingers()
            })
        }));
    }
}

/// Whether the relay still exists and `lingers` lets it go on.
fn stays(relay: &Weak<Relay>, looks: impl FnOnce(&Relay) -> bool) -> bool {
    // This thread may hold the last reference, and then calls `done`, which may panic.
    let look = || relay.upgrade().is_some_and(|relay| looks(&relay));
    catch_unwind(AssertUnwindSafe(look)).unwrap_or(false)
}
