//! Shared by all messages: a bounded reader, decode errors, destinations and requests.
//!
//! Nothing here or in `wire/` touches a socket. A decoder gets the octets that have arrived so far,
//! and returns `Incomplete` until they hold the whole message: how TCP splits it does not matter.

pub mod ident;
pub mod proxy;
pub mod reply;
pub mod socks4;
pub mod socks5;
pub mod udp;
pub mod userpass;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest USERID, DOMAIN, user name or password, in octets: RFC 1928 and RFC 1929 have one octet
/// for its length, and the SOCKS 4A draft recommends the same limit.
pub const STRING_MAX: usize = 255;

/// ATYP: an IPv4 address, 4 octets.
pub const ATYP_IPV4: u8 = 0x01;
/// ATYP: a length octet and a name.
pub const ATYP_DOMAINNAME: u8 = 0x03;
/// ATYP: an IPv6 address, 16 octets.
pub const ATYP_IPV6: u8 = 0x04;

/// Why a message could not be decoded from the octets at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Octets are missing: read more, and decode again from the first octet of the message.
    Incomplete,
    /// The message begins with this octet instead of its version.
    Version(u8),
    /// A NUL-terminated field has more than [`STRING_MAX`] octets.
    Overlong,
    /// ATYP is none of 01, 03, 04 (RFC 1928 section 5), so the length of the address is unknown.
    AddressType(u8),
    /// RSV of a UDP header is not 0000.
    Reserved,
    /// A PROXY header is missing or malformed; with the reason.
    ProxyHeader(&'static str),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incomplete => f.write_str("incomplete message"),
            Self::Version(octet) => write!(f, "bad version {octet:#04x}"),
            Self::Overlong => write!(f, "field longer than {STRING_MAX} octets"),
            Self::AddressType(octet) => write!(f, "bad address type {octet:#04x}"),
            Self::Reserved => f.write_str("reserved octets are not zero"),
            Self::ProxyHeader(fault) => write!(f, "PROXY header: {fault}"),
        }
    }
}

/// Takes octets from the front of a slice; [`DecodeError::Incomplete`] if too few are left.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    len: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the first octet of `octets`.
    #[must_use]
    pub fn new(octets: &'a [u8]) -> Self {
        Self { rest: octets, len: octets.len() }
    }

    /// The number of octets taken so far.
    #[must_use]
    pub fn consumed(&self) -> usize {
        self.len - self.rest.len()
    }

    /// The octets not taken yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Takes the next `n` octets.
    ///
    /// # Errors
    /// `Incomplete` when fewer are left.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.rest.split_at_checked(n).ok_or(DecodeError::Incomplete)?;
        self.rest = tail;
        Ok(head)
    }

    /// Takes the next `N` octets as an array.
    ///
    /// # Errors
    /// `Incomplete` when fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.rest.split_first_chunk().ok_or(DecodeError::Incomplete)?;
        self.rest = tail;
        Ok(*head)
    }

    /// Takes one octet.
    ///
    /// # Errors
    /// `Incomplete` when none is left.
    pub fn octet(&mut self) -> Result<u8, DecodeError> {
        self.array().map(|[octet]| octet)
    }

    /// Takes two octets in network byte order.
    ///
    /// # Errors
    /// `Incomplete` when fewer are left.
    pub fn port(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    /// Takes a length octet and that many octets.
    ///
    /// # Errors
    /// `Incomplete` when fewer are left.
    pub fn counted(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.octet()?;
        self.take(usize::from(len))
    }

    /// Takes a NUL-terminated field, and returns it without the NUL.
    ///
    /// # Errors
    /// `Overlong` when the NUL is not among the first [`STRING_MAX`] + 1 octets, `Incomplete` when
    /// it may still come.
    pub fn until_nul(&mut self) -> Result<&'a [u8], DecodeError> {
        match self.rest.iter().take(STRING_MAX + 1).position(|&octet| octet == 0) {
            Some(len) => {
                let field = self.take(len)?;
                self.octet()?;
                Ok(field)
            }
            None if self.rest.len() > STRING_MAX => Err(DecodeError::Overlong),
            None => Err(DecodeError::Incomplete),
        }
    }

    /// Takes ATYP, DST.ADDR and DST.PORT (RFC 1928 section 5).
    ///
    /// # Errors
    /// `AddressType` for an unknown ATYP, `Incomplete` when octets are missing.
    pub fn destination(&mut self) -> Result<Destination, DecodeError> {
        match self.octet()? {
            ATYP_IPV4 => {
                let ip = self.array::<4>()?.into();
                Ok(Destination::from_ip(IpAddr::V4(ip), self.port()?))
            }
            ATYP_DOMAINNAME => {
                let name = self.counted()?;
                Ok(Destination::from_name(name, self.port()?))
            }
            ATYP_IPV6 => {
                let ip = self.array::<16>()?.into();
                Ok(Destination::from_ip(IpAddr::V6(ip), self.port()?))
            }
            other => Err(DecodeError::AddressType(other)),
        }
    }
}

/// The destination of a request or a datagram.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// An address, never an IPv4-mapped IPv6 one.
    Address(SocketAddr),
    /// A host name exactly as the peer sent it (perhaps empty or invalid), and a port.
    Name(Vec<u8>, u16),
}

impl Destination {
    /// No address, in a reply: 0.0.0.0 port 0.
    pub const NONE: Self = Self::Address(NO_ADDRESS);

    /// The destination at `ip`; an IPv4-mapped IPv6 address becomes the IPv4 address.
    #[must_use]
    pub fn from_ip(ip: IpAddr, port: u16) -> Self {
        Self::Address(SocketAddr::new(ip.to_canonical(), port))
    }

    /// The destination `name`, of at most 255 octets. Some clients send addresses as names, so the
    /// usual text of an IPv4 or IPv6 address becomes that address.
    #[must_use]
    pub fn from_name(name: &[u8], port: u16) -> Self {
        match str::from_utf8(name).ok().and_then(|text| text.parse().ok()) {
            Some(ip) => Self::from_ip(ip, port),
            None => Self::Name(name.to_vec(), port),
        }
    }

    /// The port, which may be 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(addr) => addr.port(),
            Self::Name(_, port) => *port,
        }
    }

    /// Whether this is 0.0.0.0 or `::`, which means any peer in a BIND, and an address not known
    /// yet in a UDP ASSOCIATE.
    #[must_use]
    pub fn is_unspecified(&self) -> bool {
        matches!(self, Self::Address(addr) if addr.ip().is_unspecified())
    }
}

/// The protocol version of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// SOCKS 4.
    V4,
    /// SOCKS 4A: version 4 with a host name.
    V4a,
    /// SOCKS 5.
    V5,
}

impl Version {
    /// The word of the log.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::V4 => "4",
            Self::V4a => "4a",
            Self::V5 => "5",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The command of a request: CD of version 4 or CMD of version 5, which have the same 1 and 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Command(pub u8);

impl Command {
    /// Open a connection to the destination.
    pub const CONNECT: Self = Self(0x01);
    /// Accept one connection from the destination.
    pub const BIND: Self = Self(0x02);
    /// Relay datagrams; version 5 only.
    pub const UDP_ASSOCIATE: Self = Self(0x03);

    /// The word of the log; `None` for an unknown command.
    #[must_use]
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::CONNECT => Some("connect"),
            Self::BIND => Some("bind"),
            Self::UDP_ASSOCIATE => Some("udp"),
            _ => None,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.word() {
            Some(word) => f.write_str(word),
            None => write!(f, "{:#04x}", self.0),
        }
    }
}

/// A decoded request of any version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The protocol version.
    pub version: Version,
    /// The command. An unknown one is kept, for the log line of its refusal.
    pub command: Command,
    /// DSTIP, DOMAIN or DST.ADDR, with the port.
    pub dst: Destination,
    /// USERID of version 4, which the client is free to choose. Empty in version 5.
    pub userid: Vec<u8>,
}

/// 0.0.0.0 port 0: no address, in a reply.
pub const NO_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// `::` port 0.
pub const NO_ADDRESS6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);

/// Appends ATYP, address and port of `addr` (RFC 1928 sections 5 and 6).
pub fn put_address(addr: SocketAddr, out: &mut Vec<u8>) {
    match addr.ip() {
        IpAddr::V4(ip) => {
            out.push(ATYP_IPV4);
            out.extend_from_slice(&Ipv4Addr::octets(&ip));
        }
        IpAddr::V6(ip) => {
            out.push(ATYP_IPV6);
            out.extend_from_slice(&Ipv6Addr::octets(&ip));
        }
    }
    out.extend_from_slice(&addr.port().to_be_bytes());
}

/// Appends ATYP, address or name, and port of `dst` in the same way. A name of more than
/// [`STRING_MAX`] octets, which no decoder returns, is cut there.
pub fn put_destination(dst: &Destination, out: &mut Vec<u8>) {
    match dst {
        Destination::Address(addr) => put_address(*addr, out),
        Destination::Name(name, port) => {
            let name = name.get(..STRING_MAX).unwrap_or(name);
            out.push(ATYP_DOMAINNAME);
            out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(name);
            out.extend_from_slice(&port.to_be_bytes());
        }
    }
}

#[path = "../tests/common/random.rs"]
#[cfg(test)]
mod random;

#[cfg(test)]
pub(crate) mod testing {
    use super::DecodeError;

    pub(crate) use crate::wire::random::Random;

    /// Feeds 100,000 random inputs, each after a prefix of `head`, to `decode`.
    pub(crate) fn survives_random_octets(head: &[u8], decode: impl Fn(&[u8])) {
        let mut random = Random::seeded();
        for _ in 0..100_000 {
            let mut input = head[..random.below(head.len() + 1)].to_vec();
            input.extend(random.octets(600));
            decode(&input);
        }
    }

    /// Asserts that each strict prefix of `message` is `Incomplete`.
    pub(crate) fn prefixes_are_incomplete<T: std::fmt::Debug>(
        message: &[u8],
        decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
    ) {
        for len in 0..message.len() {
            let result = decode(&message[..len]);
            assert!(
                matches!(result, Err(DecodeError::Incomplete)),
                "{len} of {message:02x?} gave {result:?}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until_nul_takes_255_octets_and_no_more() {
        let mut octets = vec![b'a'; STRING_MAX];
        octets.extend([0, b'x']);
        let mut r = Reader::new(&octets);
        assert_eq!(r.until_nul().map(<[u8]>::len), Ok(STRING_MAX));
        assert_eq!(r.rest(), b"x");

        octets.insert(0, b'a');
        assert_eq!(Reader::new(&octets).until_nul(), Err(DecodeError::Overlong));
        assert_eq!(Reader::new(&[b'a'; 256]).until_nul(), Err(DecodeError::Overlong));
        assert_eq!(Reader::new(&[b'a'; 255]).until_nul(), Err(DecodeError::Incomplete));
    }

    #[test]
    fn real_11_a_literal_address_as_a_name_is_that_address() {
        let v4 = "127.0.0.1:80".parse().map(Destination::Address);
        let v6 = "[::1]:80".parse().map(Destination::Address);
        assert_eq!(Ok(Destination::from_name(b"127.0.0.1", 80)), v4);
        assert_eq!(Ok(Destination::from_name(b"::1", 80)), v6);
        assert_eq!(Ok(Destination::from_name(b"::ffff:127.0.0.1", 80)), v4);
        for name in [&b"127.1"[..], b"0x7f000001", b"[::1]", b"127.0.0.1.", b"\xff", b""] {
            assert_eq!(Destination::from_name(name, 80), Destination::Name(name.to_vec(), 80));
        }
    }

    #[test]
    fn real_29_a_mapped_address_becomes_ipv4() {
        let mut octets = vec![ATYP_IPV6];
        octets.extend("::ffff:192.0.2.1".parse().map(|ip: Ipv6Addr| ip.octets()).unwrap());
        octets.extend([0, 80]);
        let dst = Reader::new(&octets).destination().unwrap();
        assert_eq!(dst, Destination::Address("192.0.2.1:80".parse().unwrap()));
    }
}
