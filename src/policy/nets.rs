//! Sets of addresses: what the IANA special-purpose registries take out of the public Internet
//! (RFC 6890; registries as of 2025-10-09), and how addresses of one client are counted together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A block of addresses.
#[derive(Clone, Copy, Debug)]
struct Block<T> {
    /// Its first address.
    base: T,
    /// How many leading bits all of it share.
    len: u32,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, len: u32) -> Block<Ipv4Addr> {
    Block { base: Ipv4Addr::new(a, b, c, d), len }
}

/// A block by the first 64 bits of its base; the rest of every base here is zero.
const fn v6(a: u16, b: u16, c: u16, d: u16, len: u32) -> Block<Ipv6Addr> {
    Block { base: Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), len }
}

impl Block<Ipv4Addr> {
    fn holds(self, ip: Ipv4Addr) -> bool {
        (ip.to_bits() ^ self.base.to_bits()).leading_zeros() >= self.len
    }
}

impl Block<Ipv6Addr> {
    fn holds(self, ip: Ipv6Addr) -> bool {
        (ip.to_bits() ^ self.base.to_bits()).leading_zeros() >= self.len
    }
}

/// The IPv4 registry, without the blocks it calls globally reachable.
const SPECIAL_V4: [Block<Ipv4Addr>; 15] = [
    v4(0, 0, 0, 0, 8),       // this network
    v4(10, 0, 0, 0, 8),      // private
    v4(100, 64, 0, 0, 10),   // shared
    v4(127, 0, 0, 0, 8),     // loopback
    v4(169, 254, 0, 0, 16),  // link-local
    v4(172, 16, 0, 0, 12),   // private
    v4(192, 0, 0, 0, 24),    // protocol assignments
    v4(192, 0, 2, 0, 24),    // documentation
    v4(192, 88, 99, 0, 24),  // 6to4 relays, withdrawn
    v4(192, 168, 0, 0, 16),  // private
    v4(198, 18, 0, 0, 15),   // benchmarking
    v4(198, 51, 100, 0, 24), // documentation
    v4(203, 0, 113, 0, 24),  // documentation
    v4(224, 0, 0, 0, 4),     // multicast
    v4(240, 0, 0, 0, 4),     // reserved and broadcast
];

/// Public addresses are in 2000::/3 (RFC 4291), but for these blocks of it.
const SPECIAL_V6: [Block<Ipv6Addr>; 3] = [
    v6(0x2001, 0, 0, 0, 23),     // protocol assignments, Teredo among them
    v6(0x2001, 0xdb8, 0, 0, 32), // documentation
    v6(0x3fff, 0, 0, 0, 20),     // documentation
];

/// What the registry calls globally reachable within 2001::/23.
const REACHABLE_V6: [Block<Ipv6Addr>; 4] = [
    v6(0x2001, 3, 0, 0, 32),     // AMT
    v6(0x2001, 4, 0x112, 0, 48), // AS112
    v6(0x2001, 0x20, 0, 0, 28),  // ORCHIDv2
    v6(0x2001, 0x30, 0, 0, 28),  // DETs
];

/// The IPv4 address that hides in an IPv6 one, if any: mapped (RFC 4291), compatible (the same,
/// withdrawn), NAT64 (RFC 6052), 6to4 (RFC 3056), Teredo (RFC 4380; the client's).
fn hidden_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |hi: u16, lo: u16| Ipv4Addr::from_bits(u32::from(hi) << 16 | u32::from(lo));
    match ip.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, hi, lo] | [0x64, 0xff9b, 0, 0, 0, 0, hi, lo] => {
            Some(v4(hi, lo))
        }
        [0x2002, hi, lo, ..] => Some(v4(hi, lo)),
        [0x2001, 0, .., hi, lo] => Some(v4(!hi, !lo)),
        _ => None,
    }
}

fn is_special_v6(ip: Ipv6Addr) -> bool {
    let nat64 = v6(0x64, 0xff9b, 0, 0, 96);
    !(v6(0x2000, 0, 0, 0, 3).holds(ip) || nat64.holds(ip))
        || SPECIAL_V6.iter().any(|block| block.holds(ip))
            && !REACHABLE_V6.iter().any(|block| block.holds(ip))
}

/// Whether `ip` is no address of the public Internet: loopback, private, link-local, shared,
/// multicast, unspecified, reserved, documentation, or an IPv6 address in which one of these hides.
#[must_use]
pub fn is_special(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => SPECIAL_V4.iter().any(|block| block.holds(ip)),
        IpAddr::V6(ip) => {
            is_special_v6(ip) || hidden_v4(ip).is_some_and(|ip| is_special(IpAddr::V4(ip)))
        }
    }
}

/// Whether `ip` is loopback, private or link-local: a client that needs no further proof of being
/// at home.
#[must_use]
pub fn is_inside(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// Whether `ip` is in 0.0.0.0/8 or is `::`: never a destination. SOCKS 4 forbids to connect to
/// 0.0.0.x (draft -08 section 3.2.1), and the unspecified address is loopback in disguise.
#[must_use]
pub fn is_nowhere(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => v4(0, 0, 0, 0, 8).holds(ip),
        IpAddr::V6(ip) => {
            ip.is_unspecified()
                || hidden_v4(ip).is_some_and(|ip| is_nowhere(ip.into())) && !ip.is_loopback()
        }
    }
}

/// What one client is counted by: an IPv4 address, or the /64 of an IPv6 one, since a single
/// machine has a whole /64 to choose from.
#[must_use]
pub fn client_block(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) if !ip.is_loopback() => {
            Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into()
        }
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_01_to_06_inside_addresses_are_special_in_every_spelling() {
        for text in [
            "127.0.0.1",
            "127.255.255.255",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "0.0.0.7",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "192.0.0.8",
            "192.88.99.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:10.0.0.1",
            "fc00::1",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "2001::1",
            "2001:0:808:808::80ff:fffe",
            "2001:db8::1",
            "3fff::1",
            "5f00::1",
            "100::1",
            "2001:10::1",
        ] {
            assert!(is_special(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn public_addresses_are_not_special() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "11.0.0.1",
            "126.255.255.255",
            "128.0.0.1",
            "172.15.255.255",
            "172.32.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "192.167.255.255",
            "192.169.0.1",
            "223.255.255.255",
            "2606:4700::1",
            "64:ff9b::808:808",
            "2002:808:808::1",
            "::ffff:8.8.8.8",
            "2001:200::1",
            "2001:20::1",
            "2001:4:112::1",
            "3fff:1000::1",
        ] {
            assert!(!is_special(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn nowhere_is_0_slash_8_and_the_unspecified() {
        for (text, nowhere) in [
            ("0.0.0.0", true),
            ("0.0.0.255", true),
            ("0.255.0.1", true),
            ("::", true),
            ("::0.0.0.7", true),
            ("64:ff9b::7", true),
            ("1.0.0.0", false),
            ("127.0.0.1", false),
            ("::1", false),
        ] {
            assert_eq!(is_nowhere(text.parse().unwrap()), nowhere, "{text}");
        }
    }

    #[test]
    fn one_client_is_an_ipv4_address_or_an_ipv6_64() {
        let block = |text: &str| client_block(text.parse().unwrap()).to_string();
        assert_eq!(block("192.0.2.1"), "192.0.2.1");
        assert_eq!(block("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(block("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(block("::1"), "::1");
    }
}
