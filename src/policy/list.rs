//! Lists of addresses and names, for blocklists of any length: a million entries load in about a
//! second, and a look-up takes about a microsecond.
//!
//! An entry is an address, a CIDR block, a range, `host.example.org`, or `.example.org`, which is
//! that name and everything below it. Each line holds one entry; `#` at its beginning or after
//! blank space starts a comment. The caller reads the file, and looks up the IPv4 address that
//! hides in an IPv6 one (`nets::spellings`).

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::iter::successors;
use std::net::IpAddr;

use crate::policy::nets::{Block, expected};
use crate::policy::words::{Position, Wrong};
use crate::wire::STRING_MAX;

/// The most errors reported of one list: the wrong file could have a million.
const ERRORS_MAX: usize = 100;

/// The longest label of a name, in octets (RFC 1035 section 2.3.4).
const LABEL_MAX: usize = 63;

/// A host name, or a domain with everything below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// In lower case, without dots at its ends.
    name: Vec<u8>,
    /// Whether everything below it matches, too.
    below: bool,
}

/// Parses `host.example.org` or `.example.org`, in any case; a trailing dot is ignored.
///
/// # Errors
/// The form that was expected instead of `text`. A name that ends in a number is a mistyped
/// address.
pub fn parse_name(text: &[u8]) -> Result<Name, String> {
    let domain = text.strip_prefix(b".");
    let name = without_dot(domain.unwrap_or(text)).to_ascii_lowercase();
    let part_of_label = |octet: &u8| octet.is_ascii_alphanumeric() || b"-_".contains(octet);
    let is_label =
        |label: &[u8]| (1..=LABEL_MAX).contains(&label.len()) && label.iter().all(part_of_label);
    if name.len() > STRING_MAX || !name.split(|&octet| octet == b'.').all(is_label) {
        let form = format!(
            "a name, at most {STRING_MAX} ASCII letters, digits, '-', '_' and dots, of labels of 1 \
             to {LABEL_MAX}, with a dot before it for everything below it too"
        );
        return Err(expected(&form, text));
    }
    if ends_in_number(&name) {
        return Err(expected("a name that does not end in a number", text));
    }
    Ok(Name { name, below: domain.is_some() })
}

fn without_dot(name: &[u8]) -> &[u8] {
    name.strip_suffix(b".").unwrap_or(name)
}

/// The part after the first dot.
fn above(name: &[u8]) -> Option<&[u8]> {
    let dot = name.iter().position(|&octet| octet == b'.')?;
    name.get(dot + 1..)
}

/// Whether the last label has no letter or is a hexadecimal number: getaddrinfo(3) takes some of
/// these names for addresses, and no top-level domain is like that.
fn ends_in_number(name: &[u8]) -> bool {
    let last = without_dot(name).rsplit(|&octet| octet == b'.').next().unwrap_or_default();
    let is_hex = matches!(last, [b'0', b'x' | b'X', ..]);
    is_hex || !last.iter().any(u8::is_ascii_alphabetic)
}

impl Name {
    /// Whether it is the name `asked`, in any case and with or without a trailing dot, or a domain
    /// above it.
    #[must_use]
    pub fn matches(&self, asked: &[u8]) -> bool {
        let asked = without_dot(asked);
        let at = asked.len().checked_sub(self.name.len());
        at.and_then(|at| asked.split_at_checked(at)).is_some_and(|(head, tail)| {
            let whole = head.is_empty() || self.below && head.ends_with(b".");
            whole && tail.eq_ignore_ascii_case(&self.name)
        })
    }
}

/// The text that [`parse_name`] reads as this name.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = if self.below { "." } else { "" };
        write!(f, "{dot}{}", self.name.escape_ascii())
    }
}

/// An entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListEntry {
    /// An address, a CIDR block or a range.
    Block(Block),
    /// A name or a domain.
    Name(Name),
}

impl ListEntry {
    /// Parses a block, or a name if `text` does not look like a block.
    ///
    /// # Errors
    /// The form that was expected instead of `text`.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        if text.iter().any(|octet| b":/".contains(octet)) || ends_in_number(text) {
            Block::parse(text).map(Self::Block)
        } else {
            parse_name(text).map(Self::Name)
        }
    }
}

/// A list, ready for look-ups.
#[derive(Default)]
pub struct List {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
    /// The names that match themselves only.
    hosts: Names,
    /// The names that match everything below them, too.
    domains: Names,
    len: usize,
}

impl List {
    /// Parses the octets of a file.
    ///
    /// # Errors
    /// All errors, at most 100 and a last one that says so.
    pub fn parse(octets: &[u8]) -> Result<Self, Vec<Wrong>> {
        let mut list = Self::default();
        let mut errors = Vec::new();
        for (text, line) in octets.split(|&octet| octet == b'\n').zip(1..) {
            let mut words = words(text.strip_suffix(b"\r").unwrap_or(text));
            let Some((column, entry)) = words.next() else { continue };
            let result = match (list.add(entry), words.next()) {
                (Err(error), _) => Err((column, error)),
                (Ok(()), Some((column, word))) => Err((column, expected("one entry a line", word))),
                (Ok(()), None) => Ok(()),
            };
            if let Err((column, what)) = result {
                let at = Position { line, column };
                if errors.len() == ERRORS_MAX {
                    let what = format!("more than {ERRORS_MAX} errors: the rest is not read");
                    errors.push(Wrong { at, what });
                    break;
                }
                errors.push(Wrong { at, what });
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        list.v4.merge(|last| last.checked_add(1));
        list.v6.merge(|last| last.checked_add(1));
        list.hosts.index();
        list.domains.index();
        Ok(list)
    }

    fn add(&mut self, text: &[u8]) -> Result<(), String> {
        match ListEntry::parse(text)? {
            ListEntry::Block(block) => match (block.first(), block.last()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => {
                    self.v4.0.push(Range { first: first.to_bits(), last: last.to_bits() });
                }
                (IpAddr::V6(first), IpAddr::V6(last)) => {
                    self.v6.0.push(Range { first: first.to_bits(), last: last.to_bits() });
                }
                // A block is of one family.
                _ => {}
            },
            ListEntry::Name(Name { name, below: false }) => self.hosts.push(&name)?,
            ListEntry::Name(Name { name, below: true }) => self.domains.push(&name)?,
        }
        self.len += 1;
        Ok(())
    }

    /// Whether an address, block or range of the list contains `ip`.
    #[must_use]
    pub fn holds_ip(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => self.v4.holds(ip.to_bits()),
            IpAddr::V6(ip) => self.v6.holds(ip.to_bits()),
        }
    }

    /// Whether a name of the list matches `asked`, as [`Name::matches`] does.
    #[must_use]
    pub fn holds_name(&self, asked: &[u8]) -> bool {
        let name = without_dot(asked).to_ascii_lowercase();
        let mut domains = successors(Some(name.as_slice()), |name| above(name));
        self.hosts.holds(&name) || domains.any(|domain| self.domains.holds(domain))
    }

    /// The number of entries in the file, duplicates included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The words of a line up to a comment, each with its column from 1.
fn words(line: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut next = 1;
    line.split(|octet| b" \t".contains(octet))
        .map(move |word| {
            let column = next;
            next += word.len() + 1;
            (column, word)
        })
        .filter(|(_, word)| !word.is_empty())
        .take_while(|(_, word)| !word.starts_with(b"#"))
}

/// The numbers from a first to a last one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Range<T> {
    first: T,
    last: T,
}

/// Ranges of numbers. Once merged they are sorted and disjoint, so that bisection finds the only
/// one that can contain a number.
#[derive(Default)]
struct Ranges<T>(Vec<Range<T>>);

impl<T: Copy + Ord> Ranges<T> {
    /// Sorts the ranges and joins those that overlap or touch; `next` is the number after one.
    fn merge(&mut self, next: impl Fn(T) -> Option<T>) {
        self.0.sort_unstable();
        self.0.dedup_by(|range, before| {
            let touch = next(before.last).is_none_or(|next| range.first <= next);
            if touch {
                before.last = before.last.max(range.last);
            }
            touch
        });
        self.0.shrink_to_fit();
    }

    fn holds(&self, number: T) -> bool {
        let after = self.0.partition_point(|range| range.first <= number);
        let range = after.checked_sub(1).and_then(|at| self.0.get(at));
        range.is_some_and(|range| number <= range.last)
    }
}

/// An empty slot of a table.
const FREE: u32 = u32::MAX;

/// A set of names of up to 255 octets: a hash table with open addressing, which takes 9 octets more
/// for each name than the name itself.
#[derive(Default)]
struct Names {
    /// The names, each after its length.
    arena: Vec<u8>,
    /// Positions of names in the arena. Less than half of the slots are used.
    slots: Vec<u32>,
    /// The number of names.
    len: usize,
    /// A random key: names that share a slot cannot be chosen.
    key: RandomState,
}

impl Names {
    fn push(&mut self, name: &[u8]) -> Result<(), String> {
        let len = u8::try_from(name.len()).ok().filter(|_| position(self.arena.len()).is_some());
        let len = len.ok_or("expected at most 4 GiB of names")?;
        self.arena.push(len);
        self.arena.extend_from_slice(name);
        self.len += 1;
        Ok(())
    }

    /// Builds the table. Of equal names it holds one.
    fn index(&mut self) {
        self.arena.shrink_to_fit();
        if self.len > 0 {
            self.slots = vec![FREE; 2 * self.len + 1];
        }
        let mut next = 0;
        while let Some(at) = position(next)
            && let Some(name) = self.at(at)
        {
            next += 1 + name.len();
            if let Some(slot) = self.slot(name).and_then(|slot| self.slots.get_mut(slot)) {
                *slot = at;
            }
        }
    }

    fn holds(&self, name: &[u8]) -> bool {
        // A name that is too long is not hashed.
        let may_be = self.len > 0 && name.len() <= STRING_MAX;
        let slot = if may_be { self.slot(name) } else { None };
        slot.and_then(|slot| self.slots.get(slot)).is_some_and(|&at| at != FREE)
    }

    /// The slot of `name`, or else the free slot for it; `None` without a table.
    fn slot(&self, name: &[u8]) -> Option<usize> {
        let slots = self.slots.len();
        let home = self.key.hash_one(name).checked_rem(u64::try_from(slots).ok()?)?;
        let home = usize::try_from(home).ok()?;
        (home..slots).chain(0..home).find(|&slot| {
            self.slots.get(slot).is_some_and(|&at| at == FREE || self.at(at) == Some(name))
        })
    }

    /// The name that begins at a position of the arena.
    fn at(&self, at: u32) -> Option<&[u8]> {
        let (&len, rest) = self.arena.get(usize::try_from(at).ok()?..)?.split_first()?;
        rest.get(..usize::from(len))
    }
}

/// A position in the form of a slot, if it fits.
fn position(at: usize) -> Option<u32> {
    u32::try_from(at).ok().filter(|&at| at != FREE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::nets::spellings;
    use crate::wire::testing::{Random, survives_random_octets};
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn list(text: &str) -> List {
        List::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{text}: {errors:?}"))
    }

    fn ranges<T: Copy>(ranges: &Ranges<T>) -> Vec<(T, T)> {
        ranges.0.iter().map(|range| (range.first, range.last)).collect()
    }

    fn errors(text: &[u8]) -> Vec<(usize, usize, String)> {
        let errors = List::parse(text).err().unwrap_or_default();
        errors.into_iter().map(|Wrong { at, what }| (at.line, at.column, what)).collect()
    }

    #[test]
    fn a_line_holds_one_entry_with_blank_space_and_comments() {
        let list = list(
            "# comment\n\n \t# another\r\n\r\n10.0.0.0/8\n\t192.0.2.1-192.0.2.9 \t# why\n\
             2001:db8::/32\r\n  Host.Example.ORG.\t\r\n.example.net #\n::ffff:1.2.3.4",
        );
        assert_eq!(list.len(), 6);
        for ip in ["10.1.2.3", "192.0.2.9", "2001:db8::1", "1.2.3.4", "::ffff:1.2.3.4"] {
            assert!(list.holds_ip(ip.parse().unwrap()), "{ip}");
        }
        assert!(list.holds_name(b"host.example.org") && list.holds_name(b"a.example.net"));
        for empty in ["", "\n", "#", " # 10.0.0.1", "\r\n\r\n"] {
            let list = self::list(empty);
            assert!(list.is_empty());
            assert!(!list.holds_ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) && !list.holds_name(b""));
        }
    }

    #[test]
    fn a_name_matches_itself_and_a_domain_what_is_below_it_too() {
        for (name, asked, matches) in [
            ("host.example.org", "host.example.org", true),
            ("host.example.org", "HOST.example.ORG.", true),
            ("Host.Example.Org.", "host.example.org", true),
            ("host.example.org", "a.host.example.org", false),
            ("host.example.org", "ahost.example.org", false),
            ("host.example.org", "example.org", false),
            ("host.example.org", "host.example.org..", false),
            ("host.example.org", ".host.example.org", false),
            ("host.example.org", "", false),
            ("host.example.org", ".", false),
            (".example.org", "example.org", true),
            (".example.org.", "a.b.EXAMPLE.org.", true),
            (".example.org", "aexample.org", false),
            (".example.org", "a.example.org.net", false),
            (".example.org", "org", false),
            (".example.org", "a..example.org", true),
            (".example.org", "\0\n\u{fc}.example.org", true),
            (".org", "example.org", true),
            (".org", "org", true),
            ("localhost", "localhost.", true),
            ("_a-b.1.c", "_A-B.1.C", true),
        ] {
            let pattern = parse_name(name.as_bytes()).unwrap();
            assert_eq!(pattern.matches(asked.as_bytes()), matches, "{name} {asked}");
            assert_eq!(list(name).holds_name(asked.as_bytes()), matches, "{name} {asked}");
            assert_eq!(parse_name(pattern.to_string().as_bytes()), Ok(pattern));
        }
    }

    #[test]
    fn a_name_has_at_most_255_octets_in_labels_of_63() {
        let label = "a".repeat(63);
        let longest = [label.as_str(); 4].join(".");
        assert_eq!(longest.len(), 255);
        for name in [longest.clone(), format!(".{longest}."), "a.".repeat(127)] {
            assert!(list(&name).holds_name(name.trim_start_matches('.').as_bytes()), "{name}");
        }
        for name in [format!("{longest}b"), format!("{longest}.b"), format!("{label}a.b")] {
            assert!(parse_name(name.as_bytes()).is_err(), "{name}");
            assert!(!list(&longest).holds_name(name.as_bytes()), "{name}");
        }
        // A name that is too long is below a domain nevertheless.
        let long = format!("{longest}.{longest}");
        assert!(list(&format!(".{longest}")).holds_name(long.as_bytes()));
        assert!(parse_name(format!(".{longest}").as_bytes()).unwrap().matches(long.as_bytes()));
    }

    #[test]
    fn every_error_has_its_line_and_column() {
        let text = b"10.0.0.1/8\n good.example # fine\n\t b\xfcro.example\r\n1.2.3.4 1.2.3.5\n\
            fe80::1%eth0\n\n*.example.org";
        let found = errors(text);
        let places: Vec<_> = found.iter().map(|(line, column, _)| (*line, *column)).collect();
        assert_eq!(places, [(1, 1), (3, 3), (4, 9), (5, 1), (7, 1)]);
        for ((_, _, error), part) in found.iter().zip([
            "perhaps 10.0.0.0/8, found 10.0.0.1/8",
            "expected a name, at most",
            "expected one entry a line, found 1.2.3.5",
            "without a zone, found fe80::1%eth0",
            "a dot before it for everything below it too, found *.example.org",
        ]) {
            assert!(error.contains(part), "{error}");
        }
        assert!(found.iter().any(|(_, _, error)| error.ends_with("found b\\xfcro.example")));
    }

    #[test]
    fn an_entry_that_is_neither_block_nor_name_is_an_error() {
        for text in [
            "1.2.3",
            "1.2.3.256",
            "1.2.3.4.",
            "01.2.3.4",
            "1.2.3.4/33",
            "1.2.3.9-1.2.3.1",
            "1.2.3.4-1.2.3.",
            "1.2.3.4-",
            ".1.2.3.4",
            "a.b.7",
            "7",
            "0x7f000001",
            "127.0X1",
            "127.0.0.0x1.",
            "host.0xab",
            "[::1]",
            "::1-2",
            "1.2.3.4:80",
            "http://example.org/",
            "example.org/a",
            "a..b",
            "..",
            ".",
            "-",
            "..a",
            "a..",
            "*",
            "a.*.b",
            "a#b",
            "a,b",
            "a\rb",
            "a\0",
            "a\u{a0}b",
            "\u{feff}a.b",
        ] {
            assert_eq!(errors(text.as_bytes()).len(), 1, "{text:?}");
        }
        for text in ["7.example", "0x7.example", "1-2.example", "1.2.3.4.in-addr.arpa", "3com"] {
            assert!(list(text).holds_name(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn no_more_than_100_errors_are_told() {
        assert_eq!(errors(&b"*\n".repeat(100)).len(), 100);
        let found = errors(&b"*\n".repeat(1_000));
        assert_eq!(found.len(), 101);
        assert_eq!(found[100], (101, 1, "more than 100 errors: the rest is not read".to_owned()));
    }

    #[test]
    fn a_position_that_does_not_fit_is_none() {
        assert_eq!(position(0xffff_fffe), Some(0xffff_fffe));
        assert_eq!(position(0xffff_ffff), None);
        assert_eq!(position(0x1_0000_0000), None);
    }

    #[test]
    fn ranges_that_overlap_or_touch_become_one() {
        let list = list(
            "10.0.0.0/9\n10.128.0.0/9\n10.2.0.0/16\n9.255.255.255\n255.255.255.255\n0.0.0.0\n\
             0.0.0.0-0.0.0.2\n0.0.0.4\n::\n::1-::ff\nffff::/16\n",
        );
        let v4 = [(0, 2), (4, 4), (0x09ff_ffff, 0x0aff_ffff), (0xffff_ffff, 0xffff_ffff)];
        assert_eq!(ranges(&list.v4), v4);
        assert_eq!(ranges(&list.v6), [(0, 0xff), (0xffff << 112, u128::MAX)]);
        assert_eq!(list.len(), 11);
    }

    #[test]
    fn equal_names_are_found_however_many_there_are() {
        // In a table with duplicates this would never end.
        let list = list(&"Example.org\n.example.net\n".repeat(100_000));
        assert!(list.holds_name(b"example.org") && list.holds_name(b"a.example.net"));
        assert!(!list.holds_name(b"a.example.org") && list.len() == 200_000);
    }

    /// The address of a family with this number.
    fn ip(v4: bool, number: u128) -> IpAddr {
        match u32::try_from(number) {
            Ok(number) if v4 => Ipv4Addr::from_bits(number).into(),
            _ => Ipv6Addr::from_bits(number).into(),
        }
    }

    /// A number up to `max`, mostly near another one or an end.
    fn number(random: &mut Random, max: u128, known: &[(bool, u128, u128)]) -> u128 {
        let any = u128::from(random.next()) << 64 | u128::from(random.next());
        let near = any % 5;
        let number = match random.below(8) {
            0 => 0_u128.wrapping_sub(near),
            1 => near,
            2..5 if !known.is_empty() => {
                let (_, first, last) = known[random.below(known.len())];
                if near % 2 == 0 { first } else { last }.wrapping_add(near).wrapping_sub(2)
            }
            5 | 6 => 0x7fff_fff0 + any % 64,
            _ => any,
        };
        number & max
    }

    /// A random entry for addresses: its text, and the range it contains, made without parsing.
    fn block(random: &mut Random, known: &[(bool, u128, u128)]) -> (String, (bool, u128, u128)) {
        let v4 = random.below(2) == 0;
        let (width, max) = if v4 { (32, u128::from(u32::MAX)) } else { (128, u128::MAX) };
        let mut end = || loop {
            let end = number(random, max, known);
            // An IPv4-mapped one would be of the other family.
            if ip(v4, end).to_canonical() == ip(v4, end) {
                break end;
            }
        };
        let (one, two) = (end(), end());
        match random.below(3) {
            0 => (ip(v4, one).to_string(), (v4, one, one)),
            1 => {
                let (first, last) = (one.min(two), one.max(two));
                (format!("{}-{}", ip(v4, first), ip(v4, last)), (v4, first, last))
            }
            _ => {
                let rest = u32::try_from(random.below(width + 1)).unwrap();
                let hosts = 1_u128.checked_shl(rest).map_or(max, |size| size - 1);
                let first = one & !hosts;
                let (base, len) = (ip(v4, first), width - usize::try_from(rest).unwrap());
                let text = match base {
                    IpAddr::V4(base) if random.below(4) == 0 => {
                        format!("{}/{}", base.to_ipv6_mapped(), len + 96)
                    }
                    _ => format!("{base}/{len}"),
                };
                (text, (v4, first, first | hosts))
            }
        }
    }

    #[test]
    fn a_million_addresses_are_judged_as_one_entry_after_the_other_would() {
        let mut random = Random::seeded();
        let mut held = 0;
        for _ in 0..10_000 {
            let (mut text, mut blocks) = (String::new(), Vec::new());
            for _ in 0..random.below(61) {
                let (entry, block) = block(&mut random, &blocks);
                text += &format!("{entry}\n");
                blocks.push(block);
            }
            let list = list(&text);
            assert_eq!(list.len(), blocks.len());
            for _ in 0..100 {
                let v4 = random.below(2) == 0;
                let max = if v4 { u128::from(u32::MAX) } else { u128::MAX };
                let asked = ip(v4, number(&mut random, max, &blocks));
                let (v4, number) = match asked.to_canonical() {
                    IpAddr::V4(ip) => (true, u128::from(ip.to_bits())),
                    IpAddr::V6(ip) => (false, ip.to_bits()),
                };
                let holds = |&(family, first, last): &(bool, u128, u128)| {
                    family == v4 && first <= number && number <= last
                };
                let holds = blocks.iter().any(holds);
                assert_eq!(list.holds_ip(asked), holds, "{asked} in\n{text}");
                held += usize::from(holds);
            }
        }
        assert!((100_000..900_000).contains(&held), "{held} held: this test has gone blind");
    }

    /// A random name out of a few.
    fn name(random: &mut Random) -> String {
        const LABELS: [&str; 6] = ["a", "B", "ab", "x-y", "_z", "c1"];
        let labels: Vec<&str> =
            (0..=random.below(4)).map(|_| LABELS[random.below(LABELS.len())]).collect();
        labels.join(".") + if random.below(4) == 0 { "." } else { "" }
    }

    #[test]
    fn names_are_judged_as_one_entry_after_the_other_would() {
        let mut random = Random::seeded();
        let mut held = 0;
        for _ in 0..2_000 {
            let mut names: Vec<String> = (0..random.below(40)).map(|_| name(&mut random)).collect();
            for name in &mut names {
                if random.below(3) == 0 {
                    name.insert(0, '.');
                }
            }
            let list = list(&names.join("\n"));
            for _ in 0..50 {
                let asked = name(&mut random);
                let plain = |name: &str| name.trim_end_matches('.').to_lowercase();
                let holds = names.iter().map(|name| plain(name)).any(|name| {
                    name == plain(&asked)
                        || name.starts_with('.') && format!(".{}", plain(&asked)).ends_with(&name)
                });
                assert_eq!(list.holds_name(asked.as_bytes()), holds, "{asked} in {names:?}");
                held += usize::from(holds);
            }
        }
        assert!((10_000..90_000).contains(&held), "{held} held: this test has gone blind");
    }

    #[test]
    fn random_octets_never_panic_and_accepted_entries_are_printed_and_parsed_again() {
        const ALPHABET: &[u8] = b"0123456789abcdef::::....//--%#_* \n\t\rx\xff";
        let long = list(".a.a\n.example.org\na.b\n::/0\n");
        survives_random_octets(b".example.org\n10.0.0.0/8 # x\r\n\t::1-::2\nfd00::/8\n", |input| {
            let _ = List::parse(input);
            let _ = long.holds_name(input);
            // Short, since it is all words.
            let octets = input.iter().take(100).map(|&octet| usize::from(octet));
            let text: Vec<u8> = octets.map(|octet| ALPHABET[octet % ALPHABET.len()]).collect();
            let _ = List::parse(&text);
            for word in text.split(u8::is_ascii_whitespace) {
                match ListEntry::parse(word) {
                    Ok(ListEntry::Block(block)) => {
                        assert_eq!(Block::parse(block.to_string().as_bytes()), Ok(block));
                        assert_eq!(spellings(block.first()).next(), Some(block.first()));
                    }
                    Ok(ListEntry::Name(name)) => {
                        assert_eq!(parse_name(name.to_string().as_bytes()), Ok(name));
                    }
                    Err(error) => assert!(error.is_ascii() && error.len() < 700, "{error}"),
                }
            }
        });
    }
}
