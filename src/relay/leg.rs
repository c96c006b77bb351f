//! A leg, the connection to one of the two sides, and what is set on its socket. Nothing is read or
//! written here.

use std::net::TcpStream;
use std::os::fd::AsFd;

use crate::sys;

/// Seconds without traffic before keepalive probes begin. With the two below a dead peer is found
/// within three minutes.
const KEEPALIVE_IDLE: i32 = 60;

/// Seconds between probes.
const KEEPALIVE_INTERVAL: i32 = 20;

/// Probes that may go unanswered.
const KEEPALIVE_PROBES: i32 = 6;

/// The connection to one of the two sides.
#[derive(Debug)]
pub struct Leg {
    /// Its socket.
    pub stream: TcpStream,
    /// What has been read from that side already, and is passed to the other one before anything else.
    pub unread: Vec<u8>,
}

impl From<TcpStream> for Leg {
    /// A leg of which nothing has been read that is still to be passed on.
    fn from(stream: TcpStream) -> Self {
        Self { stream, unread: Vec::new() }
    }
}

/// Prepares the client's leg for relaying: small writes leave at once, an urgent octet stays in its
/// place, and a dead peer is found. What is accepted by a listener that is prepared is so itself.
pub fn prepare(leg: &impl AsFd) {
    // Nice to have on all counts; a leg that is already gone will tell when it is used.
    let _ = sys::set_nodelay(leg);
    let _ = sys::set_oobinline(leg);
    keep_alive(leg);
}

pub(super) fn keep_alive(leg: &impl AsFd) {
    let _ = sys::set_keepalive(leg, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES);
}
