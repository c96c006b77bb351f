//! The header of each datagram between client and relay (RFC 1928 section 7).
//!
//! ```text
//! RSV(2)=0000 FRAG(1) ATYP(1) DST.ADDR(variable) DST.PORT(2) DATA(variable)
//! ```

use std::net::SocketAddr;

use crate::wire::{DecodeError, Destination, Reader, put_address};

/// FRAG: 0 for a whole datagram, else 1 to 127, the position in a sequence, whose last has the high
/// bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frag(pub u8);

impl Frag {
    /// A whole datagram.
    pub const STANDALONE: Self = Self(0x00);

    /// The position in the sequence, 0 to 127.
    #[must_use]
    pub fn position(self) -> u8 {
        self.0 & 0x7f
    }

    /// Whether this is the last fragment of its sequence.
    #[must_use]
    pub fn is_last(self) -> bool {
        self.0 & 0x80 != 0
    }
}

/// One datagram from a client.
#[derive(Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// The fragment number.
    pub frag: Frag,
    /// The destination of DATA.
    pub dst: Destination,
    /// DATA; may be empty.
    pub data: &'a [u8],
}

/// Decodes a whole datagram.
///
/// # Errors
/// `Reserved` where RSV is not 0000, `AddressType` for an unknown ATYP, `Incomplete` for a header
/// that is cut short.
pub fn decode(octets: &[u8]) -> Result<Datagram<'_>, DecodeError> {
    let mut r = Reader::new(octets);
    if r.array()? != [0x00, 0x00] {
        return Err(DecodeError::Reserved);
    }
    let frag = Frag(r.octet()?);
    let dst = r.destination()?;
    Ok(Datagram { frag, dst, data: r.rest() })
}

/// Octets of the longest header this server writes: with an IPv6 address.
pub const HEADER_MAX: usize = 22;

/// Appends the header of a whole datagram from `remote`.
pub fn encode_header(remote: SocketAddr, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0x00, 0x00, Frag::STANDALONE.0]);
    put_address(remote, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{prefixes_are_incomplete, survives_random_octets};

    #[test]
    fn udp_07_udp_08_headers_of_each_address_type() {
        let cases: [(&[u8], Destination); 3] = [
            (
                b"\0\0\0\x01\x7f\0\0\x01\0\x35",
                Destination::Address("127.0.0.1:53".parse().unwrap()),
            ),
            (b"\0\0\0\x03\x06a.test\0\x35", Destination::Name(b"a.test".to_vec(), 53)),
            (
                b"\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x35",
                Destination::Address("[::1]:53".parse().unwrap()),
            ),
        ];
        for (header, dst) in cases {
            prefixes_are_incomplete(header, |octets| decode(octets).map(drop));
            let whole = [header, b"data"].concat();
            let datagram = decode(&whole).unwrap();
            assert_eq!((&datagram.dst, datagram.data), (&dst, &b"data"[..]));
            assert_eq!(decode(header).map(|datagram| datagram.data), Ok(&b""[..]), "UDP-23");
        }
    }

    #[test]
    fn udp_10_a_bad_header_is_an_error() {
        assert_eq!(decode(b"\0\x01\0\x01\x7f\0\0\x01\0\x35"), Err(DecodeError::Reserved));
        assert_eq!(decode(b"\0\0\0\x02\x7f\0\0\x01\0\x35"), Err(DecodeError::AddressType(2)));
    }

    #[test]
    fn udp_24_an_encoded_header_is_10_or_22_octets_and_decodes() {
        for (text, len) in [("192.0.2.7:53", 10), ("[2001:db8::1]:53", HEADER_MAX)] {
            let remote = text.parse().unwrap();
            let mut out = Vec::new();
            encode_header(remote, &mut out);
            assert_eq!(out.len(), len);
            let datagram = decode(&out).unwrap();
            assert_eq!(datagram.frag, Frag::STANDALONE);
            assert_eq!(datagram.dst, Destination::Address(remote));
        }
    }

    #[test]
    fn random_octets_never_panic() {
        survives_random_octets(b"\0\0\0\x03", |octets| {
            let _ = decode(octets);
        });
    }
}
