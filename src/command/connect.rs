//! CONNECT: a connection to the destination (RFC 1928 section 6, draft -08 section 3). What
//! it opens is relayed by [`crate::relay`], what it failed to open is told by the session.

use std::net::{SocketAddr, UdpSocket};
use std::time::Instant;

use crate::command::{Failure, Means, Opened};
use crate::dial;
use crate::policy::Asker;
use crate::wire::{Destination, canonical};

/// Connects to `dst`, to the first of a name's addresses that answers.
///
/// # Errors
/// Whatever kept it from doing so.
pub fn open(means: &Means, asker: &Asker, dst: &Destination) -> Result<Opened, Failure> {
    if dst.port() == 0 {
        return Err(Failure::PortZero);
    }
    let mut addrs = means.addresses(asker, dst)?;
    addrs.retain(|&addr| !leads_back(means, addr));
    if addrs.is_empty() {
        return Err(Failure::Denied("leads back to this server"));
    }
    let target = dial::connect(&addrs, means.source, Instant::now() + means.connect_timeout)?;
    let peer = canonical(target.peer_addr()?);
    let bnd = canonical(target.local_addr()?);
    Ok(Opened { target, peer, bnd })
}

/// Whether a connection to `addr` would come back to this very server: a client could make it talk
/// to itself until every session is used up.
fn leads_back(means: &Means, addr: SocketAddr) -> bool {
    means
        .listening
        .iter()
        .filter(|own| own.port() == addr.port())
        .any(|own| own.ip() == addr.ip() || own.ip().is_unspecified() && is_this_host(addr))
}

/// Whether `addr` is one of this host: then, and only then, a socket can be bound to it.
fn is_this_host(addr: SocketAddr) -> bool {
    addr.ip().is_loopback() || UdpSocket::bind(SocketAddr::new(addr.ip(), 0)).is_ok()
}
