//! Addresses: their canonical form, and the block of addresses that counts as one client. Sets and
//! kinds of addresses are in [`crate::policy::nets`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

/// A connected stream socket, TCP or UNIX. std has no type for both. This one serves for both,
/// except that its addresses are errors on a UNIX socket.
pub type Stream = TcpStream;

/// Turns an IPv4-mapped IPv6 address into the IPv4 address. Any other IPv6 address keeps its scope:
/// a link-local peer cannot be answered without it.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(IpAddr::V4(ip), addr.port()),
        IpAddr::V6(_) => addr,
    }
}

/// The unspecified address of the family of `ip`, with port 0.
#[must_use]
pub fn unspecified(ip: IpAddr) -> SocketAddr {
    let ip = if ip.is_ipv4() {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    SocketAddr::new(ip, 0)
}

/// The key by which one client is counted: its IPv4 address, or the /64 of its IPv6 address, since
/// one machine has a whole /64 to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientKey(IpAddr);

impl ClientKey {
    /// The key of the client with this address. Clients of UNIX sockets have none: all of them
    /// share 0.0.0.0, which is no client's address.
    #[must_use]
    pub fn of(ip: Option<IpAddr>) -> Self {
        Self(match ip.map_or(Ipv4Addr::UNSPECIFIED.into(), |ip| ip.to_canonical()) {
            IpAddr::V6(ip) if !ip.is_loopback() => {
                Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into()
            }
            ip => ip,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_is_an_ipv4_address_or_an_ipv6_64() {
        let block = |text: &str| ClientKey::of(text.parse().ok()).0.to_string();
        assert_eq!(block("192.0.2.1"), "192.0.2.1");
        assert_eq!(block("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(block("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(block("::1"), "::1");
        assert_eq!(block("unix"), "0.0.0.0");
    }
}
