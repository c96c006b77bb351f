//! BIND: accepts one connection from an expected peer (RFC 1928 section 6, draft -08 section 4).
//!
//! The socket listens before the first reply and is closed after one connection, expected or not:
//! a stranger has little time to connect first.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use crate::command::failure::Failure;
use crate::command::resources::{Admission, Candidate, Opened, Resources};
use crate::net::{canonical, unspecified};
use crate::policy::rules::Rule;
use crate::policy::{Asker, Policy};
use crate::sys;
use crate::wait::{Wait, WaitError};
use crate::wire::{Destination, Request};

/// A BIND that listens.
pub struct Bound {
    listener: TcpListener,
    /// BND of the first reply.
    pub bnd: Destination,
    /// The addresses that the peer may have; any if the list is empty.
    expected: Vec<IpAddr>,
    /// The destination of the request.
    dst: Destination,
    admission: Admission,
}

/// Listens for a connection from one of `candidates`, the addresses of the destination of
/// `request`, or from any peer if there are none. `local` is the server's address of the client's
/// connection, with its scope. `rule` admits the session.
///
/// # Errors
/// `Full`, `Family`, `NoPort`, or `Io` if a system call fails.
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
    // For a peer of the client's family the address that the client reached can serve.
    let peer = expected.iter().find(|peer| peer.is_ipv4() == local.is_ipv4()).or(expected.first());
    let reached = match peer {
        Some(&peer) => address_for(peer, local)?,
        None => local,
    };
    if !resources.reaches(reached.ip()) {
        return Err(Failure::Family);
    }
    let advertised = resources.outgoing.advertise.of_family(reached.ip());
    // A NAT may forward connections for the advertised address to any address of this host.
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

/// The address of this host that `peer` can reach: `local`, which the client reached; or if that is
/// of another family, or loopback for a peer on another host, the source address that the system
/// chooses for `peer`.
pub(super) fn address_for(peer: SocketAddr, local: SocketAddr) -> io::Result<SocketAddr> {
    let same_family = peer.is_ipv4() == local.is_ipv4();
    if same_family && (!local.ip().is_loopback() || peer.ip().is_loopback()) {
        return Ok(local);
    }
    let socket = UdpSocket::bind(unspecified(peer.ip()))?;
    // Connecting a datagram socket sends nothing, but takes a port.
    socket.connect(SocketAddr::new(peer.ip(), peer.port().max(1)))?;
    Ok(canonical(socket.local_addr()?))
}

impl Bound {
    /// Waits for the peer and closes the listener.
    ///
    /// # Errors
    /// `WrongPeer`, `NoPeer`, `ClientGone`, `Stopped`, or `Io` if a system call fails.
    pub fn wait(self, policy: &Policy, asker: &Asker, wait: &Wait<'_>) -> Result<Opened, Failure> {
        let (target, peer) = loop {
            wait.on(&self.listener, sys::POLLIN).map_err(|error| match error {
                WaitError::TimedOut => Failure::NoPeer,
                error => error.into(),
            })?;
            match self.listener.accept() {
                Ok((target, peer)) => break (target, canonical(peer)),
                // The connection ended before it was accepted.
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
        Ok(Opened {
            target: target.into(),
            peer,
            bnd: Destination::Address(peer),
            admission: self.admission,
        })
    }
}
