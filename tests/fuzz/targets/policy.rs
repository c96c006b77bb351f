//! Rules, lists and what they are made of, and the questions of `--explain`.

use std::net::IpAddr;
use std::path::Path;

use socksd::policy::Policy;
use socksd::policy::explain::{Explanation, Query};
use socksd::policy::list::{self as lists, List, ListEntry};
use socksd::policy::nets::Block;
use socksd::policy::parse::{self, Loaded};
use socksd::policy::rules::{Pattern, Rule};
use socksd::wire::STRING_MAX;

use super::assert_plain;

/// Makes a list known to rules. No other file is read for a target: it could be any.
const LISTS: &str = "list a /dev/null";

/// Longest message of an error, which shows 100 octets of what is wrong at most.
const MESSAGE_MAX: usize = 1_000;

/// Whether a text may have statements that read files.
fn reads_files(text: &str) -> bool {
    text.contains("include") || text.split("list").skip(1).any(|rest| !rest.starts_with(':'))
}

fn load(text: &str) -> Result<Vec<Rule>, Vec<String>> {
    let Loaded { rules, files } = parse::load(&[LISTS.into(), text.into()], None)?;
    assert_eq!(files, [Path::new("/dev/null")]);
    Ok(rules)
}

/// Asserts that a place is in a text: line and column from 1.
fn assert_in(text: &[u8], line: usize, column: usize) {
    let found = text.split(|&octet| octet == b'\n').nth(line - 1).expect("a line of the text");
    assert!((1..=found.len() + 1).contains(&column), "line {line} has no column {column}");
}

/// Texts of rules.
pub fn rules(octets: &[u8]) {
    let Some(text) = str::from_utf8(octets).ok().filter(|text| !reads_files(text)) else { return };
    let rules = match load(text) {
        Ok(rules) => rules,
        Err(errors) => {
            assert!(!errors.is_empty() && errors.len() <= text.split('\n').count());
            for error in errors {
                assert_plain(&error);
                assert!(error.len() <= MESSAGE_MAX, "{error}");
                let place = error.strip_prefix("--rule:").unwrap();
                let mut place = place.splitn(3, ':');
                let mut number = || place.next().unwrap().parse::<usize>().unwrap();
                // The second text begins in line 2.
                assert_in(octets, number() - 1, number());
            }
            return;
        }
    };
    let printed: Vec<String> = rules.iter().map(Rule::to_string).collect();
    let again = load(&printed.join("\n")).expect("what is printed");
    assert_eq!(again.len(), rules.len());
    for ((rule, again), printed) in rules.iter().zip(again).zip(printed) {
        assert!(printed.bytes().all(|octet| (b' '..=b'~').contains(&octet)), "{printed:?}");
        assert_eq!(again.to_string(), printed);
        assert_eq!(Rule { place: rule.place.clone(), ..again }, *rule);
        assert_in(octets, rule.place.line - 1, 1);
        assert_bounded(rule);
    }
}

/// Asserts that a rule is within the bounds of socksd.rules(5).
fn assert_bounded(rule: &Rule) {
    let settings = &rule.settings;
    for sessions in [settings.max_sessions, settings.max_per_client].into_iter().flatten() {
        assert!(sessions.get() <= 1_000_000);
    }
    assert!(settings.idle.is_none_or(|idle| idle.as_secs() <= 30 * 86_400));
    let v4 = settings.source.iter().filter(|ip| ip.is_ipv4()).count();
    assert!(v4 <= 1 && settings.source.len() - v4 <= 1);
    let names = rule.to.iter().chain(&rule.from).flat_map(|any| &any.items);
    for item in names {
        assert!(!matches!(item, Pattern::Name(name) if name.to_string().len() > STRING_MAX + 1));
    }
    for ports in rule.port.iter().flat_map(|any| &any.items) {
        assert!(!ports.is_empty());
    }
}

/// Lists: their answers are those of their entries, asked one by one.
pub fn list(octets: &[u8]) {
    let list = match List::parse(octets) {
        Ok(list) => list,
        Err(errors) => {
            assert!(!errors.is_empty() && errors.len() <= 101);
            for error in errors {
                let (line, column, error) = (error.at.line, error.at.column, error.what);
                assert_plain(&error);
                assert!(error.len() <= MESSAGE_MAX, "{error}");
                assert_in(octets, line, column);
            }
            return;
        }
    };
    let words = octets.split(|&octet| octet == b'\n').filter_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut words = line.split(|octet| b" \t".contains(octet)).filter(|word| !word.is_empty());
        words.next().filter(|word| !word.starts_with(b"#"))
    });
    let words: Vec<&[u8]> = words.collect();
    let entries: Vec<ListEntry> =
        words.iter().map(|word| ListEntry::parse(word).unwrap()).collect();
    assert_eq!((list.len(), list.is_empty()), (entries.len(), entries.is_empty()));
    let (mut ips, mut names) = (Vec::new(), vec![b"".to_vec(), b".".to_vec()]);
    for (entry, word) in entries.iter().zip(words).take(32) {
        match entry {
            ListEntry::Block(block) => ips.extend(around(*block)),
            ListEntry::Name(_) => {
                let name = word.strip_prefix(b".").unwrap_or(word);
                let above = name.iter().position(|&octet| octet == b'.').map_or(0, |dot| dot + 1);
                let below = |head: &[u8]| [head, name].concat();
                names.extend([name.to_ascii_uppercase(), name[above..].to_vec(), below(b"x")]);
                names.extend([below(b"x."), below(b"."), [name, b"."].concat()]);
            }
        }
    }
    for ip in ips {
        let held = |entry: &ListEntry| matches!(entry, ListEntry::Block(block) if block.holds(ip));
        assert_eq!(list.holds_ip(ip), entries.iter().any(held), "{ip}");
    }
    for name in names {
        let held = |entry: &ListEntry| matches!(entry, ListEntry::Name(own) if own.matches(&name));
        assert_eq!(list.holds_name(&name), entries.iter().any(held), "{}", name.escape_ascii());
    }
}

/// The ends of a block and the addresses beside it.
fn around(block: Block) -> [IpAddr; 4] {
    let (first, last) = (block.first(), block.last());
    let step = |ip: IpAddr, up: bool| match ip {
        IpAddr::V4(ip) => {
            let bits = ip.to_bits();
            let bits = if up { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
            IpAddr::V4(bits.into())
        }
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            let bits = if up { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
            IpAddr::V6(bits.into())
        }
    };
    [first, last, step(first, false), step(last, true)]
}

/// Addresses, blocks and ranges.
pub fn block(octets: &[u8]) {
    let block = match Block::parse(octets) {
        Ok(block) => block,
        Err(error) => {
            assert_plain(&error);
            assert!(error.len() <= MESSAGE_MAX, "{error}");
            return;
        }
    };
    let (first, last) = (block.first(), block.last());
    assert!(first <= last && first.is_ipv4() == last.is_ipv4());
    // A block of IPv6 may end with mapped addresses, which it does not hold.
    assert_eq!(first, first.to_canonical());
    assert!(block.holds(first));
    assert_eq!(block.holds(last), last == last.to_canonical());
    for ip in around(block) {
        assert_eq!(
            block.holds(ip),
            first <= ip.to_canonical() && ip.to_canonical() <= last,
            "{ip}"
        );
    }
    assert_eq!(Block::parse(block.to_string().as_bytes()), Ok(block));
    assert_eq!(ListEntry::parse(octets), Ok(ListEntry::Block(block)));
}

/// Names of hosts and domains.
pub fn name(octets: &[u8]) {
    let name = match lists::parse_name(octets) {
        Ok(name) => name,
        Err(error) => {
            assert_plain(&error);
            assert!(error.len() <= MESSAGE_MAX, "{error}");
            return;
        }
    };
    let printed = name.to_string();
    assert_eq!(lists::parse_name(printed.as_bytes()).as_ref(), Ok(&name));
    assert_eq!(ListEntry::parse(octets), Ok(ListEntry::Name(name.clone())));
    let domain = octets.strip_prefix(b".");
    let own = domain.unwrap_or(octets);
    let own = own.strip_suffix(b".").unwrap_or(own);
    assert!(own.len() <= STRING_MAX);
    assert_eq!(printed.trim_start_matches('.').as_bytes(), own.to_ascii_lowercase());
    let matches = |head: &[u8], tail: &[u8]| name.matches(&[head, own, tail].concat());
    assert!(matches(b"", b"") && matches(b"", b".") && name.matches(&own.to_ascii_uppercase()));
    assert_eq!(matches(b"a.b.", b""), domain.is_some());
    assert!(!matches(b"a", b"") && !matches(b"", b"a"));
    assert!(!name.matches(&own[1..]));
    assert!(str::from_utf8(own).unwrap().parse::<IpAddr>().is_err());
}

/// Questions of `--explain`, in the first line, about the rules in the others.
pub fn explain(octets: &[u8]) {
    let Ok(text) = str::from_utf8(octets) else { return };
    let (question, rules) = text.split_once('\n').unwrap_or((text, ""));
    let request = match Query::parse(question) {
        Ok(request) => request,
        Err(error) => return assert_plain(&error),
    };
    if reads_files(rules) {
        return;
    }
    let policy = |texts: &[&str]| {
        let texts: Vec<String> = texts.iter().map(|&text| text.into()).collect();
        Policy::load(&texts, None, None)
    };
    let Ok(own) = policy(&[LISTS, rules]) else { return };
    let Explanation { text: told, allowed } = request.explain(&own);
    told.lines().for_each(assert_plain);
    let verdicts: Vec<&str> = told.lines().filter(|line| line.starts_with("verdict: ")).collect();
    let [verdict] = verdicts[..] else { panic!("{told}") };
    assert_eq!(verdict == "verdict: allow", allowed, "{told}");
    // What stands first decides.
    let denied = policy(&[LISTS, "deny", rules]).unwrap_or_else(|errors| panic!("{errors:?}"));
    assert!(!request.explain(&denied).allowed);
}
