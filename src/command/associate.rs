//! UDP ASSOCIATE: the sockets of an association (RFC 1928 sections 6 and 7). The datagrams
//! themselves are moved, and each judged, by [`crate::relay::udp`].

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use crate::command::bind;
use crate::command::failure::Failure;
use crate::command::resources::{Admission, Resources};
use crate::net::unspecified;
use crate::policy::Asker;
use crate::policy::rules::Rule;
use crate::relay::udp::Sockets;
use crate::wire::{Destination, NO_ADDRESS, NO_ADDRESS6};

/// Opens one socket towards the client, at the address `local` where it reached this server, and
/// one for each family outward; returns them with BND of the reply.
/// `rule` is the one that lets it: the first that may allow some datagram. What the request says of the
/// client's own address is advice, and not needed: the address of its connection is known.
///
/// # Errors
/// `Denied`, or whatever kept the sockets from being opened.
#[inline(never)]
pub fn open(
    resources: &Resources,
    asker: &Asker,
    rule: &Arc<Rule>,
    local: SocketAddr,
) -> Result<(Sockets, Destination, Admission), Failure> {
    let admission = resources.admit(asker, rule)?;
    // A balancer may speak another family with this server than with its client.
    let local = match asker.client {
        Some(client) if client.is_ipv4() != local.is_ipv4() => {
            match resources.outgoing.advertise.of_family(client) {
                Some(advertised) => unspecified(advertised),
                None => bind::towards(SocketAddr::new(client, 0), local)?,
            }
        }
        _ => local,
    };
    let advertised = resources.outgoing.advertise.of_family(local.ip());
    let mut listen = advertised.map_or(local, towards_advertised);
    let client = resources.bind_port(|port| {
        listen.set_port(port);
        UdpSocket::bind(listen)
    })?;
    let outward = |any: SocketAddr, wanted: bool| {
        let ip = resources.source(rule, any.ip()).unwrap_or(any.ip());
        if wanted { UdpSocket::bind(SocketAddr::new(ip, 0)).map(Some) } else { Ok(None) }
    };
    let v4 = outward(NO_ADDRESS, resources.outgoing.ipv4);
    let v6 = outward(NO_ADDRESS6, resources.outgoing.ipv6);
    let (v4, v6) = match (v4, v6) {
        // One family will do: hosts without IPv6 are common.
        (Ok(Some(v4)), v6) => (Some(v4), v6.unwrap_or(None)),
        (v4, Ok(Some(v6))) => (v4.unwrap_or(None), Some(v6)),
        (Err(error), _) | (_, Err(error)) => return Err(error.into()),
        (Ok(None), Ok(None)) => return Err(io::Error::from(io::ErrorKind::AddrNotAvailable).into()),
    };
    for socket in [Some(&client), v4.as_ref(), v6.as_ref()].into_iter().flatten() {
        socket.set_nonblocking(true)?;
    }
    let port = client.local_addr()?.port();
    let bnd = Destination::Address(SocketAddr::new(advertised.unwrap_or(local.ip()), port));
    Ok((Sockets { client, v4, v6 }, bnd, admission))
}

/// Where datagrams to the advertised address come in: there, if this host has it, so that answers
/// come from it whatever route they take; else anywhere, by a NAT.
fn towards_advertised(ip: IpAddr) -> SocketAddr {
    let own = SocketAddr::new(ip, 0);
    if UdpSocket::bind(own).is_ok() { own } else { unspecified(ip) }
}
