//! The PROXY header, versions 1 and 2: a balancer sends it before the octets of a client (HAProxy's
//! proxy-protocol.txt).
//!
//! ```text
//! version 1  "PROXY TCP4" | "PROXY TCP6", then " " source " " destination " " source port
//!            " " destination port CR LF
//!            "PROXY UNKNOWN" [ " " anything ] CR LF
//! version 2  signature(12) version=2 and command(1) family and transport(1) LEN(2)
//!            source(4 or 16) destination(4 or 16) source port(2) destination port(2) TLVs
//!            where LEN is the number of octets after it
//! ```
//!
//! TLVs are skipped, also the checksum, which a receiver need not support (section 2.2.3).
//!
//! The sender of a header can claim any address. The caller decides by configuration which clients
//! send one, and never by a look at their octets (section 5).

use std::net::{IpAddr, SocketAddr};

use crate::net::canonical;
use crate::wire::{DecodeError, Reader};

/// Longest header of version 1, in octets with its CR LF (section 2.1).
pub const V1_MAX: usize = 107;

/// Longest header of version 2 that is accepted, in octets with its TLVs. Section 2.2 allows a LEN
/// of 65,535, but wants a header to fit in one segment; after IPv6 addresses 972 octets are left
/// for TLVs.
pub const V2_MAX: usize = 1_024;

/// The first octets of version 2 (section 2.2).
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Octets of a version 2 header up to LEN and with it.
const V2_FIXED: usize = 16;

/// A decoded header: the addresses of the connection to the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// LOCAL: a connection of the balancer's own, such as a health check. Its own addresses count.
    Local,
    /// UNKNOWN, AF_UNSPEC or AF_UNIX: the balancer knows no IP address of the client.
    Unknown,
    /// The addresses, which may differ in family: IPv4-mapped ones have become IPv4 addresses.
    Proxied {
        /// The source: the client of the balancer.
        client: SocketAddr,
        /// The destination: the address at which the client reached the balancer.
        server: SocketAddr,
    },
}

/// Decodes a header of either version.
///
/// # Errors
/// `ProxyHeader` as soon as the octets cannot become a header, except that the addresses of version
/// 1 are checked once the line is complete (section 2.1); `Incomplete` while octets are missing.
pub fn decode(r: &mut Reader<'_>) -> Result<Header, DecodeError> {
    match r.rest().first() {
        None => Err(DecodeError::Incomplete),
        Some(b'P') => {
            let head = r.rest().get(..V1_MAX).unwrap_or(r.rest());
            let mut line = Reader::new(head);
            match decode_v1(&mut line) {
                Err(DecodeError::Incomplete) if head.len() == V1_MAX => {
                    Err(DecodeError::ProxyHeader("no end of line in 107 octets"))
                }
                result => {
                    r.take(line.consumed())?;
                    result
                }
            }
        }
        Some(b'\r') => decode_v2(r),
        Some(_) => Err(DecodeError::ProxyHeader("missing")),
    }
}

/// Section 2.1.
fn decode_v1(r: &mut Reader<'_>) -> Result<Header, DecodeError> {
    expect(r, b"PROXY ", "missing")?;
    if r.rest().starts_with(b"U") {
        expect(r, b"UNKNOWN", "bad protocol")?;
        if r.rest().starts_with(b" ") {
            let end = r.rest().windows(2).position(|pair| pair == b"\r\n");
            r.take(end.ok_or(DecodeError::Incomplete)?)?;
        }
        expect(r, b"\r\n", "bad protocol")?;
        return Ok(Header::Unknown);
    }
    expect(r, b"TCP", "bad protocol")?;
    let parse: fn(&str) -> Option<IpAddr> = match r.octet()? {
        b'4' => |text| text.parse().ok().map(IpAddr::V4),
        // Dots are accepted, against section 2.1: inet_ntop(3) writes mapped addresses with them.
        b'6' => |text| text.parse().ok().map(IpAddr::V6),
        _ => return Err(DecodeError::ProxyHeader("bad protocol")),
    };
    expect(r, b" ", "bad protocol")?;

    let in_fields = |octet: &u8| octet.is_ascii_hexdigit() || b" .:".contains(octet);
    let end = r.rest().iter().position(|octet| !in_fields(octet));
    let fields = r.take(end.ok_or(DecodeError::Incomplete)?)?;
    expect(r, b"\r\n", "bad octet in the line")?;

    let fields: Vec<&str> = str::from_utf8(fields).unwrap_or_default().split(' ').collect();
    let [source, destination, source_port, destination_port] = fields.as_slice() else {
        return Err(DecodeError::ProxyHeader("not two addresses and two ports"));
    };
    let ip = |text| parse(text).ok_or(DecodeError::ProxyHeader("bad address"));
    Ok(proxied(
        SocketAddr::new(ip(source)?, port(source_port)?),
        SocketAddr::new(ip(destination)?, port(destination_port)?),
    ))
}

/// Section 2.2.
fn decode_v2(r: &mut Reader<'_>) -> Result<Header, DecodeError> {
    expect(r, SIGNATURE, "bad signature")?;
    let is_local = match r.octet()? {
        0x20 => true,
        0x21 => false,
        0x22..=0x2f => return Err(DecodeError::ProxyHeader("bad command")),
        _ => return Err(DecodeError::ProxyHeader("bad version")),
    };
    type Addresses = fn(&mut Reader<'_>) -> Result<Header, DecodeError>;
    let (least, addresses): (usize, Addresses) = match r.octet()? {
        // The family is meaningless with LOCAL.
        _ if is_local => (0, |_| Ok(Header::Local)),
        // AF_UNSPEC, AF_UNSPEC with STREAM, AF_UNIX with STREAM.
        0x00 | 0x01 | 0x31 => (0, |_| Ok(Header::Unknown)),
        0x11 => (12, addresses::<4>),
        0x21 => (36, addresses::<16>),
        0x02 | 0x12 | 0x22 | 0x32 => return Err(DecodeError::ProxyHeader("not a stream")),
        _ => return Err(DecodeError::ProxyHeader("bad family or transport")),
    };
    let len = usize::from(u16::from_be_bytes(r.array()?));
    if len < least {
        return Err(DecodeError::ProxyHeader("too short for its addresses"));
    }
    if len > V2_MAX - V2_FIXED {
        return Err(DecodeError::ProxyHeader("longer than 1024 octets"));
    }
    addresses(&mut Reader::new(r.take(len)?))
}

/// Takes the addresses of version 2, of `N` octets each, and their ports.
fn addresses<const N: usize>(r: &mut Reader<'_>) -> Result<Header, DecodeError>
where
    IpAddr: From<[u8; N]>,
{
    let source = IpAddr::from(r.array::<N>()?);
    let destination = IpAddr::from(r.array::<N>()?);
    Ok(proxied(SocketAddr::new(source, r.port()?), SocketAddr::new(destination, r.port()?)))
}

fn proxied(source: SocketAddr, destination: SocketAddr) -> Header {
    Header::Proxied { client: canonical(source), server: canonical(destination) }
}

/// Parses a port of version 1: decimal, without leading zeros.
fn port(text: &str) -> Result<u16, DecodeError> {
    let port = text.parse().ok().filter(|port: &u16| port.to_string() == text);
    port.ok_or(DecodeError::ProxyHeader("bad port"))
}

/// Takes `octets`; fails with `fault` at the first octet that differs.
fn expect(r: &mut Reader<'_>, octets: &[u8], fault: &'static str) -> Result<(), DecodeError> {
    if r.rest().iter().zip(octets).any(|(octet, expected)| octet != expected) {
        return Err(DecodeError::ProxyHeader(fault));
    }
    r.take(octets.len()).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{prefixes_are_incomplete, survives_random_octets};

    fn decode(octets: &[u8]) -> Result<Header, DecodeError> {
        super::decode(&mut Reader::new(octets))
    }

    fn from(client: &str, server: &str) -> Result<Header, DecodeError> {
        Ok(Header::Proxied { client: client.parse().unwrap(), server: server.parse().unwrap() })
    }

    /// A header of version 2 with `rest` after LEN.
    fn v2(version_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[version_command, family], &len, rest].concat()
    }

    /// Octets that a real HAProxy sent.
    const V2_TCP4: &[u8] = b"\x7f\x00\x00\x01\x7f\x00\x00\x01\xb0\xe2\x60\x7e";
    const V2_TLVS: &[u8] = b"\x7f\x00\x00\x01\x7f\x00\x00\x01\x8b\x28\x60\x7f\
        \x03\x00\x04\x51\xca\x81\x27\x05\x00\x127F000001:8B28_0002";

    fn v2_tcp6(client: &str, server: &str) -> Vec<u8> {
        let ip = |text: &str| text.parse().map(|ip: std::net::Ipv6Addr| ip.octets()).unwrap();
        [&ip(client)[..], &ip(server), b"\xb7\xba\x60\x7e"].concat()
    }

    fn good() -> Vec<(Vec<u8>, Result<Header, DecodeError>)> {
        let v1 = |line: &str| line.as_bytes().to_vec();
        let ffff = ["ffff"; 8].join(":");
        let longest = format!("{ffff} {ffff} 65535 65535\r\n");
        let socket = format!("[{ffff}]:65535");
        let (local, unknown) = (Ok(Header::Local), Ok(Header::Unknown));
        vec![
            (
                v1("PROXY TCP4 127.0.0.1 127.0.0.1 33416 24701\r\n"),
                from("127.0.0.1:33416", "127.0.0.1:24701"),
            ),
            (v1("PROXY TCP6 ::1 ::1 58878 24701\r\n"), from("[::1]:58878", "[::1]:24701")),
            (v1("PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n"), {
                from("0.0.0.0:0", "255.255.255.255:65535")
            }),
            (v1(&format!("PROXY TCP6 {longest}")), from(&socket, &socket)),
            (
                v1("PROXY TCP6 ::ffff:192.0.2.1 2001:DB8:0000::1 1 2\r\n"),
                from("192.0.2.1:1", "[2001:db8::1]:2"),
            ),
            (v1("PROXY TCP6 ::ffff:c000:201 ::1 1 2\r\n"), from("192.0.2.1:1", "[::1]:2")),
            (v1("PROXY UNKNOWN\r\n"), unknown),
            (v1("PROXY UNKNOWN \r\n"), unknown),
            (v1("PROXY UNKNOWN \n\r nonsense \0\r\r\n"), unknown),
            (v1(&format!("PROXY UNKNOWN {longest}")), unknown),
            (v2(0x21, 0x11, V2_TCP4), from("127.0.0.1:45282", "127.0.0.1:24702")),
            (v2(0x21, 0x11, V2_TLVS), from("127.0.0.1:35624", "127.0.0.1:24703")),
            (v2(0x21, 0x21, &v2_tcp6("::1", "::2")), from("[::1]:47034", "[::2]:24702")),
            (
                v2(0x21, 0x21, &v2_tcp6("::ffff:192.0.2.1", "::ffff:192.0.2.2")),
                from("192.0.2.1:47034", "192.0.2.2:24702"),
            ),
            (v2(0x20, 0x00, b""), local),
            (v2(0x20, 0x00, b"\x04\x00\x00"), local),
            (v2(0x20, 0x11, V2_TCP4), local),
            (v2(0x20, 0xff, b"x"), local),
            (v2(0x21, 0x00, b""), unknown),
            (v2(0x21, 0x00, V2_TLVS), unknown),
            (v2(0x21, 0x01, b""), unknown),
            (v2(0x21, 0x31, &[b'/'; 216]), unknown),
            (v2(0x20, 0x00, &[0; V2_MAX - V2_FIXED]), local),
        ]
    }

    #[test]
    fn headers_of_both_versions_give_the_addresses() {
        for (octets, expected) in good() {
            assert_eq!(decode(&octets), expected, "{}", octets.escape_ascii());
        }
    }

    #[test]
    fn every_strict_prefix_is_incomplete() {
        for (octets, _) in good() {
            prefixes_are_incomplete(&octets, decode);
        }
    }

    #[test]
    fn octets_after_the_header_are_kept() {
        for after in [&b"\x05\x01\x00"[..], b"\r\n", b"PROXY UNKNOWN\r\n", &[0; 2_000]] {
            for (octets, expected) in good() {
                let both = [&octets[..], after].concat();
                let mut r = Reader::new(&both);
                assert_eq!(super::decode(&mut r), expected);
                assert_eq!((r.consumed(), r.rest()), (octets.len(), after));
            }
        }
    }

    #[test]
    fn the_first_wrong_octet_is_an_error() {
        // Each is Incomplete without its last octet.
        let fixed = |version_command, family| v2(version_command, family, b"")[..14].to_vec();
        let bad_len = |family, len: u16| [&fixed(0x21, family)[..], &len.to_be_bytes()].concat();
        let mut table: Vec<(Vec<u8>, &str)> = Vec::new();
        for line in ["\x04", "\x05", "G", "p", "\n", "\0", "PO", "PROXy", "PROXY\t", "PROXY\r"] {
            table.push((line.into(), "missing"));
        }
        for line in [
            "PROXY  ",
            "PROXY t",
            "PROXY TCP5",
            "PROXY TCP4\t",
            "PROXY TCP6\r",
            "PROXY UD",
            "PROXY UNKNOWN\n",
            "PROXY UNKNOWNS",
            "PROXY UNKNOWN\r\r",
            "PROXY \r",
        ] {
            table.push((line.into(), "bad protocol"));
        }
        for line in [
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r",
            "PROXY TCP4 1.2.3.4\t",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +",
            "PROXY TCP4 1.2.3.4 1.2.3.4 -",
            "PROXY TCP4 1.2.3.4\0",
            "PROXY TCP6 fe80::1%",
            "PROXY TCP6 [",
            "PROXY TCP4 l",
        ] {
            table.push((line.into(), "bad octet in the line"));
        }
        for start in ["PROXY UNKNOWN", "PROXY TCP4 ", "PROXY TCP6 1"] {
            table.push((format!("{start:107}").into(), "no end of line in 107 octets"));
            table.push((format!("{start:106}\r").into(), "no end of line in 107 octets"));
        }
        for at in 1..SIGNATURE.len() {
            let octets = [&SIGNATURE[..at], b"x"].concat();
            table.push((octets, "bad signature"));
        }
        for octet in [0x00, 0x01, 0x10, 0x11, 0x1f, 0x30, 0x31, 0xff] {
            table.push((fixed(octet, 0)[..13].to_vec(), "bad version"));
        }
        for octet in 0x22..=0x2f {
            table.push((fixed(octet, 0)[..13].to_vec(), "bad command"));
        }
        for family in [0x02, 0x12, 0x22, 0x32] {
            table.push((fixed(0x21, family), "not a stream"));
        }
        for family in [0x03, 0x10, 0x13, 0x20, 0x2f, 0x30, 0x33, 0x40, 0x41, 0xff] {
            table.push((fixed(0x21, family), "bad family or transport"));
        }
        for (family, len) in [(0x11, 0), (0x11, 11), (0x21, 12), (0x21, 35)] {
            table.push((bad_len(family, len), "too short for its addresses"));
        }
        for family in [0x00, 0x11, 0x21, 0x31] {
            table.push((bad_len(family, 1_009), "longer than 1024 octets"));
            table.push((bad_len(family, 0xffff), "longer than 1024 octets"));
        }
        for (octets, fault) in table {
            let result = decode(&octets);
            assert_eq!(result, Err(DecodeError::ProxyHeader(fault)), "{}", octets.escape_ascii());
            prefixes_are_incomplete(&octets, decode);
        }
    }

    #[test]
    fn a_complete_line_must_match_exactly() {
        for (fault, lines) in [
            (
                "not two addresses and two ports",
                &[
                    "TCP4 ",
                    "TCP4 1.2.3.4 1.2.3.4 1",
                    "TCP4 1.2.3.4 1.2.3.4 1 2 ",
                    "TCP4 1.2.3.4 1.2.3.4 1 2 3",
                    "TCP4 1.2.3.4 1.2.3.4  1 2",
                    "TCP4  1.2.3.4 1.2.3.4 1 2",
                ][..],
            ),
            (
                "bad address",
                &[
                    "TCP4 ::1 ::1 1 2",
                    "TCP6 1.2.3.4 ::1 1 2",
                    "TCP6 ::1 1.2.3.4 1 2",
                    "TCP4 1.2.3 1.2.3.4 1 2",
                    "TCP4 1.2.3.4 1.2.3.4.5 1 2",
                    "TCP4 1.2.3.256 1.2.3.4 1 2",
                    "TCP4 01.2.3.4 1.2.3.4 1 2",
                    "TCP4 1.2.3.4 1.2.3.00 1 2",
                    "TCP4  1.2.3.4 1 2",
                    "TCP4 7f000001 1.2.3.4 1 2",
                    "TCP6 1::2::3 ::1 1 2",
                    "TCP6 ::1 1:2:3:4:5:6:7 1 2",
                    "TCP6 ::1 1:2:3:4:5:6:7:8:9 1 2",
                    "TCP6 ::00001 ::1 1 2",
                    "TCP6 ::ffff:192.0.2.01 ::1 1 2",
                ],
            ),
            (
                "bad port",
                &[
                    "TCP4 1.2.3.4 1.2.3.4 65536 2",
                    "TCP4 1.2.3.4 1.2.3.4 1 99999999999999999999",
                    "TCP4 1.2.3.4 1.2.3.4 01 2",
                    "TCP4 1.2.3.4 1.2.3.4 1 00",
                    "TCP4 1.2.3.4 1.2.3.4 1 ",
                    "TCP6 ::1 ::1 1 5f",
                    "TCP6 ::1 ::1 1. 2",
                ],
            ),
        ] {
            for line in lines {
                let octets = format!("PROXY {line}\r\n").into_bytes();
                assert_eq!(decode(&octets), Err(DecodeError::ProxyHeader(fault)), "{line}");
            }
        }
    }

    #[test]
    fn the_error_names_the_fault() {
        let fault = decode(b"\x05\x01\x00").unwrap_err();
        assert_eq!(fault.to_string(), "PROXY header: missing");
    }

    #[test]
    fn random_octets_never_panic_nor_take_more_than_the_bounds() {
        let v1 = b"PROXY TCP4 127.0.0.1 127.0.0.1 33416 24701\r\n";
        for head in [&v1[..], b"PROXY UNKNOWN ", &v2(0x21, 0x11, V2_TCP4), &v2(0x20, 0, b"")] {
            survives_random_octets(head, |octets| {
                let mut r = Reader::new(octets);
                match super::decode(&mut r) {
                    Ok(_) if octets.starts_with(b"P") => assert!(r.consumed() <= V1_MAX),
                    Ok(_) => assert!(octets.starts_with(SIGNATURE) && r.consumed() <= V2_MAX),
                    Err(DecodeError::Incomplete) => assert!(octets.len() < V2_MAX),
                    Err(DecodeError::ProxyHeader(_)) => {}
                    Err(other) => panic!("{} gave {other:?}", octets.escape_ascii()),
                }
            });
        }
    }
}
