//! UDP ASSOCIATE: opens the sockets of an association (RFC 1928 sections 6 and 7).
//!
//! Not here: relaying the datagrams and checking each by the rules, see [`crate::relay::udp`].

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

/// Opens a socket for the client's datagrams at `local`, the address of its connection, and one for
/// each outward family; returns them with BND of the reply. `rule` admits the session: the first
/// that may allow some datagram. The client's address in the request is ignored, since that of its
/// connection is known.
///
/// # Errors
/// `Full`, `NoPort`, or `Io` if a socket cannot be opened.
#[inline(never)]
pub fn open(
    resources: &Resources,
    asker: &Asker,
    rule: &Arc<Rule>,
    local: SocketAddr,
) -> Result<(Sockets, Destination, Admission), Failure> {
    let admission = resources.admit(asker, rule)?;
    // A balancer and its client may use different families.
    let local = match asker.client {
        Some(client) if client.is_ipv4() != local.is_ipv4() => {
            match resources.outgoing.advertise.of_family(client) {
                Some(advertised) => unspecified(advertised),
                None => bind::address_for(SocketAddr::new(client, 0), local)?,
            }
        }
        _ => local,
    };
    let advertised = resources.outgoing.advertise.of_family(local.ip());
    let mut listen = advertised.map_or(local, listen_address);
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
        // One family is enough: hosts without IPv6 are common.
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

/// The address to listen on for datagrams to the advertised address `ip`: `ip` itself if this host
/// has it, so that answers come from it by any route; otherwise any address, since a NAT forwards
/// the datagrams.
fn listen_address(ip: IpAddr) -> SocketAddr {
    let own = SocketAddr::new(ip, 0);
    if UdpSocket::bind(own).is_ok() { own } else { unspecified(ip) }
}
