//! CONNECT: connects to the destination (RFC 1928 section 6, draft -08 section 3).
//!
//! Not here: relaying the connection, see [`crate::relay`], and reporting a failure, which the
//! session does.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use crate::command::failure::Failure;
use crate::command::resources::{Admission, Candidate, Opened, Resources};
use crate::dial::{self, Target};
use crate::net::canonical;
use crate::policy::{Asker, Denial};
use crate::wait::{Wait, WaitError};
use crate::wire::{Destination, Request};

/// Connects to the first of `candidates`, the addresses of the destination of `request`, that
/// answers.
///
/// # Errors
/// `PortZero`, `Denied`, `Full`, `ClientGone`, `Stopped`, or `Io` with the error of the last
/// attempt.
#[inline(never)]
pub fn open(
    resources: &Resources,
    asker: &Asker,
    request: &Request,
    mut candidates: Vec<Candidate>,
    wait: &Wait<'_>,
) -> Result<Opened, Failure> {
    if request.dst.port() == 0 {
        return Err(Failure::PortZero);
    }
    candidates.retain(|candidate| !leads_back(resources, candidate.addr));
    if candidates.is_empty() {
        return Err(Failure::Denied(Denial::LeadsBack));
    }
    // Any of the rules may admit the session: take a place in the quotas of each before connecting.
    let mut admissions: Vec<Admission> = Vec::new();
    let mut full = None;
    let mut targets = Vec::new();
    for Candidate { addr, rule } in candidates {
        if !admissions.iter().any(|admission| Arc::ptr_eq(&admission.rule, &rule)) {
            match resources.admit(asker, &rule) {
                Ok(admission) => admissions.push(admission),
                Err(failure) => {
                    full = Some(failure);
                    continue;
                }
            }
        }
        targets.push((Target { addr, source: resources.source(&rule, addr.ip()) }, rule));
    }
    if let (true, Some(full)) = (targets.is_empty(), full) {
        return Err(full);
    }
    let (targets, rules): (Vec<Target>, Vec<_>) = targets.into_iter().unzip();
    let begun = Instant::now();
    let connected = dial::connect(&targets, wait);
    // A wait that the client or the end of the server cuts short says nothing about targets.
    if !matches!(connected, Err(WaitError::ClientGone | WaitError::Stopped)) {
        resources.stats.connect.observe(begun.elapsed());
    }
    let (target, index) = connected?;
    let bnd = Destination::Address(canonical(target.local_addr()?));
    let chosen = targets.get(index).zip(rules.get(index));
    let (asked, rule) = chosen.ok_or(Failure::Denied(Denial::NoRule))?;
    let admits = |admission: &Admission| Arc::ptr_eq(&admission.rule, rule);
    let admission = admissions.into_iter().find(admits).ok_or(Failure::Denied(Denial::NoRule))?;
    Ok(Opened { target: target.into(), peer: canonical(asked.addr), bnd, admission })
}

/// Whether a connection to `addr` would connect back to this server: a client could chain such
/// connections until no session is left.
fn leads_back(resources: &Resources, addr: SocketAddr) -> bool {
    resources
        .listening
        .iter()
        .filter(|own| own.port() == addr.port())
        .any(|own| own.ip() == addr.ip() || own.ip().is_unspecified() && is_this_host(addr))
}

/// Whether `addr` is an address of this host: a socket can be bound to those only.
fn is_this_host(addr: SocketAddr) -> bool {
    addr.ip().is_loopback() || UdpSocket::bind(SocketAddr::new(addr.ip(), 0)).is_ok()
}
