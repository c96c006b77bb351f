//! SOCKS 5 messages over TCP (RFC 1928 sections 3 to 6).
//!
//! ```text
//! greeting   VER(1)=5 NMETHODS(1) METHODS(1..255)
//! selection  VER(1)=5 METHOD(1)
//! request    VER(1)=5 CMD(1) RSV(1)=0 ATYP(1) DST.ADDR(variable) DST.PORT(2)
//! reply      VER(1)=5 REP(1) RSV(1)=0 ATYP(1) BND.ADDR(variable) BND.PORT(2)
//! ```

use std::fmt;

use crate::wire::{
    Command, DecodeError, Destination, Reader, Request, STRING_MAX, Version, put_destination,
};

/// VER of all messages.
pub const VER: u8 = 0x05;

/// Octets of the longest greeting.
pub const GREETING_MAX: usize = 2 + 255;

/// Octets of the longest request: a name of 255 octets.
pub const REQUEST_MAX: usize = 4 + 1 + STRING_MAX + 2;

/// Authentication method, RFC 1928 section 3.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Method(pub u8);

impl Method {
    /// No authentication required.
    pub const NONE: Self = Self(0x00);
    /// GSS-API, RFC 1961.
    pub const GSSAPI: Self = Self(0x01);
    /// User name and password, RFC 1929.
    pub const USERPASS: Self = Self(0x02);
    /// No acceptable method; in a selection only.
    pub const NO_ACCEPTABLE: Self = Self(0xff);
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Method({:#04x})", self.0)
    }
}

/// Reply code REP, RFC 1928 section 6.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rep(pub u8);

impl Rep {
    /// Succeeded.
    pub const SUCCEEDED: Self = Self(0x00);
    /// General SOCKS server failure.
    pub const GENERAL_FAILURE: Self = Self(0x01);
    /// Connection not allowed by ruleset.
    pub const NOT_ALLOWED: Self = Self(0x02);
    /// Network unreachable.
    pub const NETWORK_UNREACHABLE: Self = Self(0x03);
    /// Host unreachable; also for a name without an address and for a time-out.
    pub const HOST_UNREACHABLE: Self = Self(0x04);
    /// Connection refused.
    pub const CONNECTION_REFUSED: Self = Self(0x05);
    /// TTL expired: never sent, since no socket error says so.
    pub const TTL_EXPIRED: Self = Self(0x06);
    /// Command not supported.
    pub const COMMAND_NOT_SUPPORTED: Self = Self(0x07);
    /// Address type not supported.
    pub const ADDRESS_TYPE_NOT_SUPPORTED: Self = Self(0x08);
}

impl fmt::Debug for Rep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rep({:#04x})", self.0)
    }
}

fn expect_ver(r: &mut Reader<'_>) -> Result<(), DecodeError> {
    match r.octet()? {
        VER => Ok(()),
        other => Err(DecodeError::Version(other)),
    }
}

/// Decodes a greeting: the methods of the client in its order, none if NMETHODS is 0.
///
/// # Errors
/// `Version` for a first octet other than 5, `Incomplete` while octets are missing.
pub fn decode_greeting(r: &mut Reader<'_>) -> Result<Vec<Method>, DecodeError> {
    expect_ver(r)?;
    Ok(r.counted()?.iter().copied().map(Method).collect())
}

/// Encodes a method selection.
#[must_use]
pub fn encode_selection(method: Method) -> Vec<u8> {
    vec![VER, method.0]
}

/// Decodes a request. RSV is ignored: some clients do not set it to 0.
///
/// # Errors
/// `Version` for a first octet other than 5, `AddressType` for an unknown ATYP, `Incomplete` while
/// octets are missing.
pub fn decode_request(r: &mut Reader<'_>) -> Result<Request, DecodeError> {
    expect_ver(r)?;
    let command = Command(r.octet()?);
    let _rsv = r.octet()?;
    let dst = r.destination()?;
    Ok(Request { version: Version::V5, command, dst, userid: Vec::new() })
}

/// Encodes a reply, with the ATYP of `bnd`.
#[must_use]
pub fn encode_reply(rep: Rep, bnd: &Destination) -> Vec<u8> {
    let mut out = vec![VER, rep.0, 0x00];
    put_destination(bnd, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Destination;
    use crate::wire::testing::{prefixes_are_incomplete, survives_random_octets};

    fn greeting(octets: &[u8]) -> Result<Vec<Method>, DecodeError> {
        decode_greeting(&mut Reader::new(octets))
    }

    fn request(octets: &[u8]) -> Result<Request, DecodeError> {
        decode_request(&mut Reader::new(octets))
    }

    #[test]
    fn v5_02_lists_of_1_and_255_methods_are_read_whole() {
        assert_eq!(greeting(&[5, 1, 0]), Ok(vec![Method::NONE]));
        let mut octets = vec![5, 255];
        octets.extend(0..=254);
        assert_eq!(greeting(&octets).map(|methods| methods.len()), Ok(255));
        prefixes_are_incomplete(&octets, greeting);
    }

    #[test]
    fn v5_40_a_greeting_may_offer_nothing() {
        assert_eq!(greeting(&[5, 0]), Ok(vec![]));
    }

    #[test]
    fn v5_11_requests_of_each_address_type() {
        let dst = |octets: &[u8]| request(octets).map(|request| request.dst);
        let v4 = b"\x05\x01\x00\x01\x7f\x00\x00\x02\x12\x34";
        let name = b"\x05\x01\x00\x03\x09localhost\x12\x34";
        let v6 = b"\x05\x01\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x12\x34";
        assert_eq!(dst(v4), Ok(Destination::Address("127.0.0.2:4660".parse().unwrap())));
        assert_eq!(dst(name), Ok(Destination::Name(b"localhost".to_vec(), 4660)));
        assert_eq!(dst(v6), Ok(Destination::Address("[::1]:4660".parse().unwrap())));
        for message in [&v4[..], name, v6] {
            prefixes_are_incomplete(message, request);
        }
    }

    #[test]
    fn v5_17_an_unknown_address_type_is_an_error_after_four_octets() {
        for atyp in [0x00, 0x02, 0x05, 0xff] {
            assert_eq!(request(&[5, 1, 0, atyp]), Err(DecodeError::AddressType(atyp)));
        }
    }

    #[test]
    fn v5_12_another_version_is_an_error_at_once() {
        assert_eq!(request(&[4]), Err(DecodeError::Version(4)));
        assert_eq!(greeting(&[4]), Err(DecodeError::Version(4)));
    }

    #[test]
    fn v5_20_replies_are_10_or_22_octets() {
        let address = |text: &str| Destination::Address(text.parse().unwrap());
        let v4 = encode_reply(Rep::SUCCEEDED, &address("192.0.2.7:258"));
        assert_eq!(v4, [5, 0, 0, 1, 192, 0, 2, 7, 1, 2]);
        let v6 = encode_reply(Rep::CONNECTION_REFUSED, &address("[::1]:258"));
        assert_eq!(v6.len(), 22);
        assert_eq!(v6[..4], [5, 5, 0, 4]);
        assert_eq!(v6[19..], [1, 1, 2]);
    }

    #[test]
    fn an_encoded_destination_decodes_to_itself() {
        let address = |text: &str| Destination::Address(text.parse().unwrap());
        let name = |len| Destination::Name(vec![b'a'; len], 258);
        for dst in [address("192.0.2.7:258"), address("[2001:db8::1]:65535"), name(0), name(255)] {
            let reply = encode_reply(Rep::SUCCEEDED, &dst);
            let mut r = Reader::new(&reply[3..]);
            assert_eq!(r.destination(), Ok(dst));
            assert_eq!(r.rest(), b"");
        }
    }

    #[test]
    fn random_octets_never_panic() {
        survives_random_octets(b"\x05\x01\x00\x03\xff", |octets| {
            let _ = request(octets);
            let _ = greeting(octets);
        });
    }
}
