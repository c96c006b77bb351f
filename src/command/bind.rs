//! BIND: one connection from an expected peer (RFC 1928 section 6, draft -08 section 4).
//!
//! The socket listens before the first reply, and is closed as soon as one connection has come,
//! right or wrong, so that the time in which a stranger can come first is short.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use crate::command::failure::Failure;
use crate::command::resources::{Admission, Candidate, Opened, Resources};
use crate::net::{canonical, unspecified};
use crate::policy::rules::Rule;
use crate::policy::{Asker, Policy};
use crate::relay::Leg;
use crate::sys;
use crate::wait::{Wait, WaitError};
use crate::wire::{Destination, Request};

/// A listening BIND.
pub struct Bound {
    listener: TcpListener,
    /// BND of the first reply.
    pub bnd: Destination,
    /// The addresses the peer may have; none of them given means any.
    expected: Vec<IpAddr>,
    /// What the request was for.
    dst: Destination,
    admission: Admission,
}

/// Listens for a connection from the destination of `request`, of which `candidates` are the addresses, none of them for any
/// peer, for a client that reached this server at `local`, an address with the scope it may need.
/// `rule` is the one that lets it.
///
/// # Errors
/// Whatever kept it from doing so.
#[inline(never)]
pub fn open(
    resources: &Resources,
    asker: &Asker,
    request: &Request,
    candidates: &[Candidate],
    rule: &Arc<Rule>,
    local: SocketAddr,
) -> Result<Bound, Failure> {
    let admission = resources.admit(asker, rule)?;
    let expected: Vec<SocketAddr> = candidates.iter().map(|candidate| candidate.addr).collect();
    // A peer of the client's own family if there is one: then the address it reached us at serves.
    let peer = expected.iter().find(|peer| peer.is_ipv4() == local.is_ipv4()).or(expected.first());
    let reached = match peer {
        Some(&peer) => towards(peer, local)?,
        None => local,
    };
    if !resources.reaches(reached.ip()) {
        return Err(Failure::Family);
    }
    let advertised = resources.outgoing.advertise.of_family(reached.ip());
    // Behind a NAT that forwards the advertised address, connections may come in anywhere.
    let mut listen = if advertised.is_some() { unspecified(reached.ip()) } else { reached };
    let listener = resources.bind_port(|port| {
        listen.set_port(port);
        TcpListener::bind(listen)
    })?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    let bnd = Destination::Address(SocketAddr::new(advertised.unwrap_or(reached.ip()), port));
    let expected = expected.iter().map(SocketAddr::ip).collect();
    Ok(Bound { listener, bnd, expected, dst: request.dst.clone(), admission })
}

/// The address of this host that `peer` can reach: the one the client used, or where that is of
/// another family, or loopback for a peer elsewhere, the one the system would use towards it.
pub(super) fn towards(peer: SocketAddr, local: SocketAddr) -> io::Result<SocketAddr> {
    let same_family = peer.is_ipv4() == local.is_ipv4();
    if same_family && (!local.ip().is_loopback() || peer.ip().is_loopback()) {
        return Ok(local);
    }
    let socket = UdpSocket::bind(unspecified(peer.ip()))?;
    // Connecting a datagram socket sends nothing; a port is needed all the same.
    socket.connect(SocketAddr::new(peer.ip(), peer.port().max(1)))?;
    Ok(canonical(socket.local_addr()?))
}

impl Bound {
    /// Waits for the peer. The listener is closed on return.
    ///
    /// # Errors
    /// `WrongPeer`, `NoPeer`, `ClientGone`, `Stopped`, or what a system call said.
    pub fn wait(self, policy: &Policy, asker: &Asker, wait: &Wait<'_>) -> Result<Opened, Failure> {
        let (target, peer) = loop {
            wait.on(&self.listener, sys::POLLIN).map_err(|error| match error {
                WaitError::TimedOut => Failure::NoPeer,
                error => error.into(),
            })?;
            match self.listener.accept() {
                Ok((target, peer)) => break (target, canonical(peer)),
                // Gone again before it was accepted.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::Interrupted
                            | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => return Err(error.into()),
            }
        };
        if !self.expected.is_empty() && !self.expected.contains(&peer.ip()) {
            return Err(Failure::WrongPeer(peer, None));
        }
        let verdict = policy.allows(asker, &self.dst, peer.ip());
        verdict.map_err(|denial| Failure::WrongPeer(peer, Some(denial)))?;
        let target = Leg { stream: target, unread: Vec::new() };
        Ok(Opened { target, peer, bnd: Destination::Address(peer), admission: self.admission })
    }
}
