//! User name and password sub-negotiation (RFC 1929 section 2).
//!
//! ```text
//! request  VER(1)=1 ULEN(1) UNAME(1..255) PLEN(1) PASSWD(1..255)
//! reply    VER(1)=1 STATUS(1)
//! ```

use crate::wire::{DecodeError, Reader, STRING_MAX};

/// VER of the sub-negotiation, which is not that of SOCKS.
pub const VER: u8 = 0x01;

/// Octets of the longest request.
pub const REQUEST_MAX: usize = 2 + STRING_MAX + 1 + STRING_MAX;

/// The name and the password of a client. The password is a [`Secret`] and cannot be printed.
pub struct Credentials {
    /// UNAME; empty if ULEN is 0, which matches no user.
    pub uname: Vec<u8>,
    /// PASSWD; empty from some clients, such as Java.
    pub passwd: Secret,
}

/// Octets that cannot be printed: they have neither Debug nor Display.
pub struct Secret(Vec<u8>);

impl Secret {
    /// A secret of these octets.
    #[must_use]
    pub fn new(octets: Vec<u8>) -> Self {
        Self(octets)
    }

    /// The octets, for a comparison or a hash.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// Decodes a request.
///
/// # Errors
/// `Version` for a first octet other than 1, `Incomplete` while octets are missing.
pub fn decode_request(r: &mut Reader<'_>) -> Result<Credentials, DecodeError> {
    match r.octet()? {
        VER => {}
        other => return Err(DecodeError::Version(other)),
    }
    let uname = r.counted()?.to_vec();
    let passwd = Secret::new(r.counted()?.to_vec());
    Ok(Credentials { uname, passwd })
}

/// Encodes a reply: STATUS 00 for success, 01 for failure.
#[must_use]
pub fn encode_reply(success: bool) -> Vec<u8> {
    vec![VER, if success { 0x00 } else { 0x01 }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{prefixes_are_incomplete, survives_random_octets};

    fn decode(octets: &[u8]) -> Result<(Vec<u8>, Vec<u8>), DecodeError> {
        decode_request(&mut Reader::new(octets)).map(|c| (c.uname, c.passwd.expose().to_vec()))
    }

    #[test]
    fn auth_01_fields_are_taken_by_their_lengths() {
        let message = b"\x01\x05alice\x06secret";
        assert_eq!(decode(message), Ok((b"alice".to_vec(), b"secret".to_vec())));
        prefixes_are_incomplete(message, decode);
    }

    #[test]
    fn auth_04_255_and_255_octets_are_read_whole() {
        let mut message = vec![1, 255];
        message.extend([b'u'; 255]);
        message.push(255);
        message.extend([b'p'; 255]);
        let (uname, passwd) = decode(&message).unwrap();
        assert_eq!((uname.len(), passwd.len()), (255, 255));
    }

    #[test]
    fn auth_05_empty_fields_are_read() {
        assert_eq!(decode(b"\x01\x00\x00"), Ok((vec![], vec![])));
        assert_eq!(decode(b"\x01\x04root\x00"), Ok((b"root".to_vec(), vec![])));
    }

    #[test]
    fn auth_06_version_5_is_an_error() {
        assert_eq!(decode(b"\x05\x01"), Err(DecodeError::Version(5)));
    }

    #[test]
    fn random_octets_never_panic() {
        survives_random_octets(b"\x01\x05alice", |octets| {
            let _ = decode(octets);
        });
    }
}
