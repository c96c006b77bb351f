//! The code of a reply of either version.

use crate::wire::socks4::{self, Cd};
use crate::wire::socks5::{self, Rep};
use crate::wire::{Destination, Version};

/// The code of a reply to one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyCode {
    /// CD of version 4.
    V4(Cd),
    /// REP of version 5.
    V5(Rep),
}

impl ReplyCode {
    /// The code for success.
    #[must_use]
    pub fn granted(version: Version) -> Self {
        match version {
            Version::V4 | Version::V4a => Self::V4(Cd::GRANTED),
            Version::V5 => Self::V5(Rep::SUCCEEDED),
        }
    }

    /// The octet of the code.
    #[must_use]
    pub fn octet(self) -> u8 {
        match self {
            Self::V4(cd) => cd.0,
            Self::V5(rep) => rep.0,
        }
    }

    /// Encodes a reply with this code and the address `bnd`.
    #[must_use]
    pub fn encode(self, bnd: &Destination) -> Vec<u8> {
        match self {
            Self::V4(cd) => socks4::encode_reply(cd, bnd),
            Self::V5(rep) => socks5::encode_reply(rep, bnd),
        }
    }
}
