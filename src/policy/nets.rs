//! Sets of addresses: blocks, named sets, and the addresses that the IANA special-purpose
//! registries take out of the public Internet (RFC 6890; registries as of 2025-10-09). Names, and
//! long lists of blocks, are in `list`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::log::Escaped;

/// The most octets of a wrong text that an error shows.
const SHOWN_MAX: usize = 100;

/// The message that `what` was expected instead of `text`.
pub(crate) fn expected(what: &str, text: &[u8]) -> String {
    match text.split_at_checked(SHOWN_MAX) {
        Some((head, [_, ..])) => format!("expected {what}, found {}...", Escaped(head)),
        _ => format!("expected {what}, found {}", Escaped(text)),
    }
}

/// The addresses from a first to a last one, both of one family. An IPv4-mapped IPv6 address counts
/// as the IPv4 address here, so no IPv6 block contains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    first: IpAddr,
    last: IpAddr,
}

impl Block {
    /// The addresses that share their first `len` bits with `ip`.
    const fn cidr(ip: IpAddr, len: u32) -> Self {
        // checked_shr is `None` for a shift by the whole width, which leaves nothing.
        match ip {
            IpAddr::V4(ip) => {
                let rest = match u32::MAX.checked_shr(len) {
                    Some(rest) => rest,
                    None => 0,
                };
                let first = Ipv4Addr::from_bits(ip.to_bits() & !rest);
                let last = Ipv4Addr::from_bits(ip.to_bits() | rest);
                Self { first: IpAddr::V4(first), last: IpAddr::V4(last) }
            }
            IpAddr::V6(ip) => {
                let rest = match u128::MAX.checked_shr(len) {
                    Some(rest) => rest,
                    None => 0,
                };
                let first = Ipv6Addr::from_bits(ip.to_bits() & !rest);
                let last = Ipv6Addr::from_bits(ip.to_bits() | rest);
                Self { first: IpAddr::V6(first), last: IpAddr::V6(last) }
            }
        }
    }

    /// Parses an address (`192.0.2.1`), a CIDR block (`10.0.0.0/8`) or a range
    /// (`192.0.2.1-192.0.2.9`), of either family. The length of a block of IPv4-mapped addresses
    /// counts the 96 bits before the IPv4 address.
    ///
    /// # Errors
    /// The form that was expected instead of `text`.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let wrong = |what: &str| expected(what, text);
        let form = || wrong("an address, a block (10.0.0.0/8) or a range (10.0.0.1-10.0.0.9)");
        let text = str::from_utf8(text).map_err(|_| form())?;
        if text.contains('%') {
            return Err(wrong("an address without a zone"));
        }
        let address = |text: &str| text.parse::<IpAddr>().map_err(|_| form());
        if let Some((ip, len)) = text.split_once('/') {
            let ip = address(ip)?;
            let canonical = ip.to_canonical();
            let (min, max) = match (ip, canonical) {
                (IpAddr::V4(_), _) => (0, 32),
                (IpAddr::V6(_), IpAddr::V4(_)) => (96, 128),
                (IpAddr::V6(_), IpAddr::V6(_)) => (0, 128),
            };
            // parse() accepts a plus sign.
            let good = |len: &u32| (min..=max).contains(len) && !text.contains('+');
            let len = len.parse().ok().filter(good);
            let len = len.ok_or_else(|| wrong(&format!("a length from {min} to {max}")))?;
            let block = Self::cidr(canonical, len - min);
            return if block.first == canonical {
                Ok(block)
            } else {
                Err(wrong(&format!("no bits set after the prefix length, perhaps {block}")))
            };
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (address(first)?.to_canonical(), address(last)?.to_canonical());
        if first.is_ipv4() != last.is_ipv4() {
            return Err(wrong("both ends of a range in one family"));
        }
        if first > last {
            return Err(wrong("the lower end of a range first"));
        }
        Ok(Self { first, last })
    }

    /// The first address.
    #[must_use]
    pub const fn first(self) -> IpAddr {
        self.first
    }

    /// The last address, of the same family.
    #[must_use]
    pub const fn last(self) -> IpAddr {
        self.last
    }

    /// Whether it contains `ip`.
    #[must_use]
    pub fn holds(self, ip: IpAddr) -> bool {
        // All of IPv4 sorts before all of IPv6.
        (self.first..=self.last).contains(&ip.to_canonical())
    }
}

/// The shortest text that [`Block::parse`] parses as this block.
impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        let len = match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                (first.to_bits() ^ last.to_bits()).leading_zeros()
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                (first.to_bits() ^ last.to_bits()).leading_zeros()
            }
            // A block is of one family.
            _ => 0,
        };
        if first == last {
            write!(f, "{first}")
        } else if *self == Self::cidr(*first, len) {
            write!(f, "{first}/{len}")
        } else {
            write!(f, "{first}-{last}")
        }
    }
}

/// A set of addresses with a name of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// This machine: 127.0.0.0/8 and `::1`.
    Loopback,
    /// RFC 1918, and the unique local addresses of RFC 4193.
    Private,
    /// 169.254.0.0/16 and fe80::/10.
    Linklocal,
    /// 100.64.0.0/10, between a carrier and its customers (RFC 6598).
    Shared,
    /// 224.0.0.0/4 and ff00::/8.
    Multicast,
    /// The addresses of [`is_special`].
    Special,
    /// All others.
    Public,
    /// Every address.
    All,
}

impl Set {
    const EVERY: [Self; 8] = [
        Self::Loopback,
        Self::Private,
        Self::Linklocal,
        Self::Shared,
        Self::Multicast,
        Self::Special,
        Self::Public,
        Self::All,
    ];

    /// Finds the set that `word` names, in lower case.
    #[must_use]
    pub fn parse(word: &[u8]) -> Option<Self> {
        Self::EVERY.into_iter().find(|set| set.word().as_bytes() == word)
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::Linklocal => "linklocal",
            Self::Shared => "shared",
            Self::Multicast => "multicast",
            Self::Special => "special",
            Self::Public => "public",
            Self::All => "all",
        }
    }

    /// Whether it contains `ip` itself: an IPv4 address that hides in `ip` counts for `special` and
    /// `public` only (see [`spellings`]).
    #[must_use]
    pub fn holds(self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        match (self, ip) {
            (Self::Loopback, _) => ip.is_loopback(),
            (Self::Private, IpAddr::V4(ip)) => ip.is_private(),
            (Self::Private, IpAddr::V6(ip)) => ip.is_unique_local(),
            (Self::Linklocal, IpAddr::V4(ip)) => ip.is_link_local(),
            (Self::Linklocal, IpAddr::V6(ip)) => ip.is_unicast_link_local(),
            (Self::Shared, _) => v4(100, 64, 0, 0, 10).holds(ip),
            (Self::Multicast, _) => ip.is_multicast(),
            (Self::Special, _) => is_special(ip),
            (Self::Public, _) => !is_special(ip),
            (Self::All, _) => true,
        }
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, len: u32) -> Block {
    Block::cidr(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), len)
}

/// A block by the first 64 bits of its base; the other bits are zero.
const fn v6(a: u16, b: u16, c: u16, d: u16, len: u32) -> Block {
    Block::cidr(IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)), len)
}

/// The IPv4 registry, without the blocks that it calls globally reachable.
const SPECIAL_V4: [Block; 15] = [
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

/// Public addresses are those of 2000::/3 (RFC 4291) without these blocks.
const SPECIAL_V6: [Block; 3] = [
    v6(0x2001, 0, 0, 0, 23),     // protocol assignments, Teredo among them
    v6(0x2001, 0xdb8, 0, 0, 32), // documentation
    v6(0x3fff, 0, 0, 0, 20),     // documentation
];

/// The blocks of 2001::/23 that the registry calls globally reachable.
const REACHABLE_V6: [Block; 4] = [
    v6(0x2001, 3, 0, 0, 32),     // AMT
    v6(0x2001, 4, 0x112, 0, 48), // AS112
    v6(0x2001, 0x20, 0, 0, 28),  // ORCHIDv2
    v6(0x2001, 0x30, 0, 0, 28),  // DETs
];

/// The IPv4 address that hides in an IPv6 one, if any: mapped (RFC 4291), compatible (the same,
/// withdrawn; `::` and `::1` are none), NAT64 (RFC 6052), 6to4 (RFC 3056), Teredo (RFC 4380; the
/// client's).
fn hidden_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |hi: u16, lo: u16| Ipv4Addr::from_bits(u32::from(hi) << 16 | u32::from(lo));
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, hi, lo] | [0x64, 0xff9b, 0, 0, 0, 0, hi, lo] => {
            Some(v4(hi, lo))
        }
        [0x2002, hi, lo, ..] => Some(v4(hi, lo)),
        [0x2001, 0, .., hi, lo] => Some(v4(!hi, !lo)),
        _ => None,
    }
}

/// All addresses that `ip` may lead to: itself, as IPv4 if it is mapped, and the IPv4 address that
/// hides in it in another way, if any.
pub fn spellings(ip: IpAddr) -> impl Iterator<Item = IpAddr> {
    let ip = ip.to_canonical();
    let hidden = match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => hidden_v4(ip).map(IpAddr::V4),
    };
    std::iter::once(ip).chain(hidden)
}

fn is_special_v6(ip: IpAddr) -> bool {
    let nat64 = v6(0x64, 0xff9b, 0, 0, 96);
    !(v6(0x2000, 0, 0, 0, 3).holds(ip) || nat64.holds(ip))
        || SPECIAL_V6.iter().any(|block| block.holds(ip))
            && !REACHABLE_V6.iter().any(|block| block.holds(ip))
}

/// Whether `ip` is not an address of the public Internet: loopback, private, link-local, shared,
/// multicast, unspecified, reserved, documentation, or an IPv6 address that hides one of these.
#[must_use]
pub fn is_special(ip: IpAddr) -> bool {
    spellings(ip).any(|ip| match ip {
        IpAddr::V4(_) => SPECIAL_V4.iter().any(|block| block.holds(ip)),
        IpAddr::V6(_) => is_special_v6(ip),
    })
}

/// Whether `ip` is in 0.0.0.0/8 or is `::`: never a destination. SOCKS 4 forbids 0.0.0.x (draft -08
/// section 3.2.1), and the unspecified address leads to loopback.
#[must_use]
pub fn is_nowhere(ip: IpAddr) -> bool {
    spellings(ip).any(|ip| ip.is_unspecified() || v4(0, 0, 0, 0, 8).holds(ip))
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
    fn a_block_is_printed_as_short_as_possible_and_parsed_again() {
        for (text, shown) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1/32", "192.0.2.1"),
            ("192.0.2.1-192.0.2.1", "192.0.2.1"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.0-10.255.255.255", "10.0.0.0/8"),
            ("10.0.0.1-10.255.255.255", "10.0.0.1-10.255.255.255"),
            ("10.0.0.0-10.0.0.1", "10.0.0.0/31"),
            ("10.0.0.1-10.0.0.2", "10.0.0.1-10.0.0.2"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("0.0.0.0-255.255.255.255", "0.0.0.0/0"),
            ("255.255.255.255", "255.255.255.255"),
            ("2001:DB8:0::1", "2001:db8::1"),
            ("fd00::/8", "fd00::/8"),
            ("::/0", "::/0"),
            ("::/80", "::/80"),
            ("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::/0"),
            ("::1/128", "::1"),
            ("::1-::3", "::1-::3"),
            ("::fffe:0:0/96", "::fffe:0:0/96"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::ffff:c000:201/128", "192.0.2.1"),
            ("::ffff:192.0.2.1-192.0.2.9", "192.0.2.1-192.0.2.9"),
        ] {
            let block = Block::parse(text.as_bytes()).unwrap();
            assert_eq!(block.to_string(), shown, "{text}");
            assert_eq!(Block::parse(shown.as_bytes()), Ok(block), "{text}");
        }
    }

    #[test]
    fn the_error_of_a_wrong_block_has_the_form_that_was_expected() {
        let form = "an address, a block (10.0.0.0/8) or a range (10.0.0.1-10.0.0.9)";
        for (text, wanted) in [
            ("", form),
            ("-", form),
            ("/", form),
            ("/8", form),
            ("10.0.0/8", form),
            ("10.0.0.256", form),
            ("010.0.0.1", form),
            ("10.0.0.1 ", form),
            ("[::1]", form),
            ("::1-", form),
            ("1.1.1.1-1.1.1.2-1.1.1.3", form),
            ("10.0.0.0-10.0.0.0/8", form),
            ("b\u{fc}ro", form),
            ("fe80::1%eth0", "an address without a zone"),
            ("fe80::%1/10", "an address without a zone"),
            ("10.0.0.0/", "a length from 0 to 32"),
            ("10.0.0.0/33", "a length from 0 to 32"),
            ("10.0.0.0/+8", "a length from 0 to 32"),
            ("10.0.0.0/-8", "a length from 0 to 32"),
            ("10.0.0.0/8/8", "a length from 0 to 32"),
            ("10.0.0.0/255.0.0.0", "a length from 0 to 32"),
            ("10.0.0.0/99999999999", "a length from 0 to 32"),
            ("::/129", "a length from 0 to 128"),
            ("::ffff:10.0.0.0/8", "a length from 96 to 128"),
            ("::ffff:0:0/95", "a length from 96 to 128"),
            ("10.0.0.1/8", "no bits set after the prefix length, perhaps 10.0.0.0/8"),
            ("10.0.0.1/0", "no bits set after the prefix length, perhaps 0.0.0.0/0"),
            ("10.0.0.1/31", "no bits set after the prefix length, perhaps 10.0.0.0/31"),
            ("::ffff:10.0.0.1/104", "no bits set after the prefix length, perhaps 10.0.0.0/8"),
            ("2001:db8::1/32", "no bits set after the prefix length, perhaps 2001:db8::/32"),
            ("192.0.2.9-192.0.2.1", "the lower end of a range first"),
            ("::2-::1", "the lower end of a range first"),
            ("192.0.2.9-::1", "both ends of a range in one family"),
            ("::-::ffff:1.2.3.4", "both ends of a range in one family"),
        ] {
            assert_eq!(Block::parse(text.as_bytes()), Err(expected(wanted, text.as_bytes())));
        }
        assert!(Block::parse(b"1.2.3.4\xff").is_err());
        let long = Block::parse(&[b'1'; 10_000]).unwrap_err();
        assert!(long.len() < 250 && long.ends_with("111..."), "{long}");
    }

    #[test]
    fn a_block_holds_its_ends_and_not_their_neighbours() {
        for (block, inside, outside) in [
            ("10.0.0.0/8", ["10.0.0.0", "10.255.255.255"], ["9.255.255.255", "11.0.0.0"]),
            ("1.1.1.3-1.1.1.5", ["1.1.1.3", "::ffff:1.1.1.5"], ["1.1.1.2", "::ffff:1.1.1.6"]),
            ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255"], ["::", "::1.1.1.1"]),
            ("::/0", ["::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"], ["1.1.1.1", "::ffff:0:0"]),
            ("fe80::/10", ["fe80::", "febf::1"], ["fe7f:ffff::", "fec0::"]),
        ] {
            let block = Block::parse(block.as_bytes()).unwrap();
            assert!(inside.iter().all(|ip| block.holds(ip.parse().unwrap())), "{block}");
            assert!(!outside.iter().any(|ip| block.holds(ip.parse().unwrap())), "{block}");
        }
    }

    #[test]
    fn the_words_name_their_sets() {
        for (ip, words) in [
            ("127.0.0.1", "loopback special all"),
            ("::ffff:127.0.0.1", "loopback special all"),
            ("::1", "loopback special all"),
            ("10.255.255.255", "private special all"),
            ("172.31.0.0", "private special all"),
            ("192.168.1.1", "private special all"),
            ("fdff::1", "private special all"),
            ("169.254.0.1", "linklocal special all"),
            ("febf::1", "linklocal special all"),
            ("100.127.255.255", "shared special all"),
            ("100.128.0.0", "public all"),
            ("224.0.0.1", "multicast special all"),
            ("239.255.255.255", "multicast special all"),
            ("ff02::1", "multicast special all"),
            ("0.0.0.0", "special all"),
            ("64:ff9b::10.0.0.1", "special all"),
            ("64:ff9b::8.8.8.8", "public all"),
            ("8.8.8.8", "public all"),
        ] {
            let held = Set::EVERY.into_iter().filter(|set| set.holds(ip.parse().unwrap()));
            let held: Vec<String> = held.map(|set| set.to_string()).collect();
            assert_eq!(held.join(" "), words, "{ip}");
        }
        for set in Set::EVERY {
            assert_eq!(Set::parse(set.to_string().as_bytes()), Some(set));
        }
        for word in ["", "All", "all ", "any", "localhost"] {
            assert_eq!(Set::parse(word.as_bytes()), None, "{word}");
        }
    }

    #[test]
    fn an_address_is_spelled_with_the_ipv4_address_it_hides() {
        for (ip, spelled) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::192.0.2.1", "::c000:201 192.0.2.1"),
            ("64:ff9b::c000:201", "64:ff9b::c000:201 192.0.2.1"),
            ("2002:c000:201::1", "2002:c000:201::1 192.0.2.1"),
            ("2001::3fff:fdfe", "2001::3fff:fdfe 192.0.2.1"),
            ("::", "::"),
            ("::1", "::1"),
            ("::2", "::2 0.0.0.2"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            let all: Vec<String> =
                spellings(ip.parse().unwrap()).map(|ip| ip.to_string()).collect();
            assert_eq!(all.join(" "), spelled, "{ip}");
        }
    }
}
