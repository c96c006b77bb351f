//! The watch over half-closed relays: one thread, started when it is first needed. It sees what no
//! direction sees any more: how long the open side has been quiet, and a reset by the closed one,
//! from which nothing is read.
//!
//! Starting the thread with the server would cost each session from inetd(8) a thread, and few of
//! them have a use for it.

use std::io;
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::relay::leg::keep_alive;
use crate::relay::shared::Shared;
use crate::sync::{Queue, lock};

/// How often each of them is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Has the relay watched from now on, until it ends.
///
/// # Errors
/// Where the thread cannot be started. The next call tries again.
pub(super) fn watch(relay: &Arc<Shared>) -> io::Result<()> {
    let common = &relay.common;
    let mut is_watched = lock(&common.is_watched);
    if !*is_watched {
        let common = Arc::clone(common);
        let body = move || watch_all(&common.half_closed);
        thread::Builder::new().name("linger".into()).spawn(body)?;
        *is_watched = true;
    }
    drop(is_watched);
    common.half_closed.put(Arc::downgrade(relay));
    Ok(())
}

/// Looks once a second at the relays of the queue, as long as there are any.
fn watch_all(queue: &Queue<Weak<Shared>>) {
    let mut relays = Vec::new();
    loop {
        let first = if relays.is_empty() { queue.take(None) } else { None };
        thread::sleep(LOOK_EVERY);
        relays.retain(|relay| stays(relay, Shared::lingers));
        let now = Some(Instant::now());
        let new = first.into_iter().chain(iter::from_fn(|| queue.take(now)));
        relays.extend(new.filter(|relay| {
            stays(relay, |relay| {
                // It may have been half-closed before there was any need of that.
                keep_alive(&relay.target);
                relay.lingers()
            })
        }));
    }
}

/// Whether there is a relay still, and `looks` finds that it may go on.
fn stays(relay: &Weak<Shared>, looks: impl FnOnce(&Shared) -> bool) -> bool {
    // This thread may let go of it last, and tell that it is done.
    let look = || relay.upgrade().is_some_and(|relay| looks(&relay));
    catch_unwind(AssertUnwindSafe(look)).unwrap_or(false)
}
