//! What is set on the socket of a leg, the connection to one of the two sides. Nothing is read or
//! written here.

use std::os::fd::AsFd;

use crate::sys;

/// Seconds without traffic before keepalive probes begin, seconds between them, and how many may
/// go unanswered: a dead peer is found within three minutes.
const KEEPALIVE: (i32, i32, i32) = (60, 20, 6);

/// Prepares the client's leg for relaying: small writes leave at once, an urgent octet stays in its
/// place, and a dead peer is found. What is accepted by a listener that is prepared is so itself.
pub fn prepare(leg: &impl AsFd) {
    // Nice to have on all counts; a leg that is already gone will tell when it is used.
    let _ = sys::set_nodelay(leg);
    let _ = sys::set_oobinline(leg);
    keep_alive(leg);
}

pub(super) fn keep_alive(leg: &impl AsFd) {
    let (idle, interval, count) = KEEPALIVE;
    let _ = sys::set_keepalive(leg, idle, interval, count);
}
