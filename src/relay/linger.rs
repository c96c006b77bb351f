//! The watch over relays of which one side has closed. Whichever thread finds nobody watching does so,
//! once it has nothing else to do.

use std::mem;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use crate::relay::end::Side;
use crate::relay::shared::{Lingering, Shared};
use crate::sync::lock;

/// How often the side that has closed is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whose thread is to look at all that linger, once it has nothing else to do.
pub(super) struct Watcher {
    lingering: Arc<Mutex<Lingering>>,
    watching: Arc<()>,
}

/// Has the relay, of which this side has closed, watched; by whom, if nobody watches yet.
pub(super) fn linger(
    lingering: &Arc<Mutex<Lingering>>,
    relay: Weak<Shared>,
    closed: Side,
) -> Option<Watcher> {
    let mut list = lock(lingering);
    list.relays.push((relay, closed));
    if list.watched.strong_count() > 0 {
        return None;
    }
    let watching = Arc::new(());
    list.watched = Arc::downgrade(&watching);
    Some(Watcher { lingering: Arc::clone(lingering), watching })
}

impl Watcher {
    /// Looks at all that linger, as long as there are any, if somebody is to.
    pub(super) fn watch(watcher: Option<Self>) {
        let Some(Self { lingering, watching }) = watcher else { return };
        loop {
            thread::sleep(LOOK_EVERY);
            // Ending one may take an instant.
            let relays = mem::take(&mut lock(&lingering).relays);
            let still = relays.into_iter().filter(|(relay, closed)| {
                relay.upgrade().is_some_and(|shared| shared.lingers(*closed))
            });
            let still: Vec<_> = still.collect();
            let mut lingering = lock(&lingering);
            lingering.relays.extend(still);
            if lingering.relays.is_empty() {
                // Whoever comes next finds no watcher, and not one about to leave.
                drop(watching);
                return;
            }
        }
    }
}
