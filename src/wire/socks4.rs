//! SOCKS 4 and 4A messages (draft-vance-socks-v4-08, draft-vance-socks-v4a).
//!
//! ```text
//! request  VN(1)=4 CD(1) DSTPORT(2) DSTIP(4) USERID(variable) NUL(1)
//!          and in 4A mode, when DSTIP is 0.0.0.x with x != 0: DOMAIN(variable) NUL(1)
//! reply    VN(1)=0 CD(1) DSTPORT(2) DSTIP(4)
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::wire::{Command, DecodeError, Destination, Reader, Request, STRING_MAX, Version};

/// VN of a request.
pub const VN: u8 = 0x04;

/// Octets of the longest request: version 4A, with the longest USERID and DOMAIN.
pub const REQUEST_MAX: usize = 8 + 2 * (STRING_MAX + 1);

/// Reply code CD, draft -08 section 3.3 table 3.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cd(pub u8);

impl Cd {
    /// 90: request granted.
    pub const GRANTED: Self = Self(0x5a);
    /// 91: request rejected or failed.
    pub const REJECTED: Self = Self(0x5b);
    /// 92: rejected because identd of the client cannot be reached.
    pub const NO_IDENTD: Self = Self(0x5c);
    /// 93: rejected because identd names another user.
    pub const OTHER_USER: Self = Self(0x5d);
}

impl fmt::Debug for Cd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cd({:#04x})", self.0)
    }
}

/// Whether `ip` is in 0.0.0.1 to 0.0.0.255, which signals 4A (draft -08 section 3.2.1).
#[must_use]
pub fn signals_4a(ip: Ipv4Addr) -> bool {
    matches!(ip.octets(), [0, 0, 0, x] if x != 0)
}

/// Decodes a request. Without `allow_4a`, DSTIP 0.0.0.x is an ordinary address, to which no
/// connection is possible, and no DOMAIN is read.
///
/// # Errors
/// `Version` for a first octet other than 4, `Overlong` for a USERID or DOMAIN of more than 255
/// octets, `Incomplete` while octets are missing.
pub fn decode_request(r: &mut Reader<'_>, allow_4a: bool) -> Result<Request, DecodeError> {
    match r.octet()? {
        VN => {}
        other => return Err(DecodeError::Version(other)),
    }
    let command = Command(r.octet()?);
    let port = r.port()?;
    let ip = Ipv4Addr::from(r.array::<4>()?);
    let userid = r.until_nul()?.to_vec();
    let (version, dst) = if allow_4a && signals_4a(ip) {
        (Version::V4a, Destination::from_name(r.until_nul()?, port))
    } else {
        (Version::V4, Destination::from_ip(IpAddr::V4(ip), port))
    };
    Ok(Request { version, command, dst, userid })
}

/// Encodes a reply. DSTIP is 0.0.0.0 for an IPv6 address or a name, which do not fit in it.
#[must_use]
pub fn encode_reply(cd: Cd, bnd: &Destination) -> Vec<u8> {
    let ip = match bnd {
        Destination::Address(SocketAddr::V4(addr)) => *addr.ip(),
        _ => Ipv4Addr::UNSPECIFIED,
    };
    let mut out = vec![0x00, cd.0];
    out.extend_from_slice(&bnd.port().to_be_bytes());
    out.extend_from_slice(&ip.octets());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{prefixes_are_incomplete, survives_random_octets};

    fn decode(octets: &[u8]) -> Result<Request, DecodeError> {
        decode_request(&mut Reader::new(octets), true)
    }

    #[test]
    fn v4_05_fields_are_in_network_order() {
        let request = decode(b"\x04\x01\x12\x34\x7f\x00\x00\x02alice\x00").unwrap();
        assert_eq!(request.version, Version::V4);
        assert_eq!(request.command, Command::CONNECT);
        assert_eq!(request.dst, Destination::Address("127.0.0.2:4660".parse().unwrap()));
        assert_eq!(request.userid, b"alice");
    }

    #[test]
    fn v4a_01_every_x_but_zero_signals_4a() {
        for x in 0..=255 {
            let mut octets = vec![4, 1, 0, 80, 0, 0, 0, x, 0];
            octets.extend(b"example.org\0");
            let mut r = Reader::new(&octets);
            let request = decode_request(&mut r, true).unwrap();
            if x == 0 {
                assert_eq!(request.version, Version::V4);
                assert_eq!(r.rest(), b"example.org\0");
            } else {
                assert_eq!(request.version, Version::V4a);
                assert_eq!(request.dst, Destination::Name(b"example.org".to_vec(), 80));
                assert_eq!(r.rest(), b"");
            }
        }
    }

    #[test]
    fn v4_13_without_4a_no_domain_is_read() {
        let octets = b"\x04\x01\x00\x50\x00\x00\x00\x01\x00localhost\x00";
        let mut r = Reader::new(octets);
        let request = decode_request(&mut r, false).unwrap();
        assert_eq!(request.dst, Destination::Address("0.0.0.1:80".parse().unwrap()));
        assert_eq!(r.rest(), b"localhost\0");
    }

    #[test]
    fn v4_07_an_unknown_command_is_kept() {
        let request = decode(b"\x04\xff\x00\x50\x7f\x00\x00\x01\x00").unwrap();
        assert_eq!(request.command, Command(0xff));
    }

    #[test]
    fn every_strict_prefix_is_incomplete() {
        prefixes_are_incomplete(b"\x04\x01\x00\x50\x7f\x00\x00\x01bob\x00", decode);
        prefixes_are_incomplete(b"\x04\x02\x00\x50\x00\x00\x00\xffbob\x00a.test\x00", decode);
    }

    #[test]
    fn v4_06_another_version_is_an_error_at_once() {
        assert_eq!(decode(b"\x05"), Err(DecodeError::Version(5)));
    }

    #[test]
    fn v4a_17_v4a_18_overlong_fields_are_errors_before_their_nul() {
        let mut octets = b"\x04\x01\x00\x50\x00\x00\x00\x01".to_vec();
        octets.extend([b'u'; 256]);
        assert_eq!(decode(&octets), Err(DecodeError::Overlong));
        let mut octets = b"\x04\x01\x00\x50\x00\x00\x00\x01\x00".to_vec();
        octets.extend([b'd'; 256]);
        assert_eq!(decode(&octets), Err(DecodeError::Overlong));
    }

    #[test]
    fn v4_15_a_reply_is_eight_octets() {
        let address = |text: &str| Destination::Address(text.parse().unwrap());
        let reply = encode_reply(Cd::GRANTED, &address("192.0.2.7:258"));
        assert_eq!(reply, [0, 90, 1, 2, 192, 0, 2, 7]);
        for bnd in [address("[::1]:258"), Destination::Name(b"a.example".to_vec(), 258)] {
            assert_eq!(encode_reply(Cd::REJECTED, &bnd), [0, 91, 1, 2, 0, 0, 0, 0]);
        }
    }

    #[test]
    fn random_octets_never_panic() {
        survives_random_octets(b"\x04\x01\x00\x50\x00\x00\x00\x01", |octets| {
            let _ = decode(octets);
        });
    }
}
