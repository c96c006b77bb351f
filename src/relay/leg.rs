//! A leg, the connection to one of the two sides, and its socket options. Nothing is read or
//! written here.

use std::os::fd::AsFd;

use crate::net::Stream;
use crate::sys;

/// Seconds without traffic before keepalive probes begin. Together with the two below: a dead peer
/// is found within three minutes.
const KEEPALIVE_IDLE: i32 = 60;

/// Seconds between probes.
const KEEPALIVE_INTERVAL: i32 = 20;

/// Probes that may go unanswered.
const KEEPALIVE_PROBES: i32 = 6;

/// The connection to one of the two sides.
#[derive(Debug)]
pub struct Leg {
    /// Its socket.
    pub stream: Stream,
    /// Octets already read from it, which the other side gets before anything else.
    pub unread: Vec<u8>,
}

impl From<Stream> for Leg {
    /// A leg without unread octets.
    fn from(stream: Stream) -> Self {
        Self { stream, unread: Vec::new() }
    }
}

/// Prepares the client's socket for relaying: small writes leave at once, an urgent octet stays in
/// its place, and a dead peer is found. A prepared listener accepts prepared sockets.
pub fn prepare(leg: &impl AsFd) {
    // None of these is essential; a dead socket shows when it is used.
    let _ = sys::set_nodelay(leg);
    let _ = sys::set_oobinline(leg);
    keep_alive(leg);
}

pub(super) fn keep_alive(leg: &impl AsFd) {
    let _ = sys::set_keepalive(leg, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES);
}
