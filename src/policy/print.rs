//! Prints rules in their syntax: [`crate::policy::parse`] reads the text as the same rule again.

use std::fmt::{self, Display, Write as _};
use std::ops::RangeInclusive;

use crate::policy::nets::Set;
use crate::policy::rules::{AnyOf, Logging, Pattern, Rule, Settings, UserPattern};

impl<T: Display> Display for AnyOf<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.negated {
            f.write_char('!')?;
        }
        for (index, item) in self.items.iter().enumerate() {
            if index > 0 {
                f.write_char(',')?;
            }
            item.fmt(f)?;
        }
        Ok(())
    }
}

impl Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Unix => f.write_str("unix"),
            Self::Set(set) => set.fmt(f),
            Self::Block(block) => block.fmt(f),
            // The name of a host may be a word of the language.
            Self::Name(name) if is_keyword(name.to_string().as_bytes()) => write!(f, "\"{name}\""),
            Self::Name(name) => name.fmt(f),
            Self::List(named) => write!(f, "list:{}", named.name),
        }
    }
}

/// Whether a word of `from`, `to` or `user` has to be quoted to be a name.
fn is_keyword(word: &[u8]) -> bool {
    matches!(word, b"any" | b"none" | b"unix") || Set::parse(word).is_some()
}

impl Display for UserPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::None => f.write_str("none"),
            Self::Name(name) => Spelled(name).fmt(f),
            Self::Group(group) => write!(f, "@{group}"),
        }
    }
}

/// A word that is read as these octets, in quotes if it needs them.
struct Spelled<'a>(&'a [u8]);

impl Display for Spelled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |&octet: &u8| octet.is_ascii_alphanumeric() || b"-_./:".contains(&octet);
        let plain = !self.0.is_empty() && self.0.iter().all(plain) && !is_keyword(self.0);
        if let (true, Ok(word)) = (plain, str::from_utf8(self.0)) {
            return f.write_str(word);
        }
        f.write_char('"')?;
        for &octet in self.0 {
            match octet {
                b'"' | b'\\' => write!(f, "\\{}", char::from(octet))?,
                b' '..=b'~' => f.write_char(char::from(octet))?,
                _ => write!(f, "\\x{octet:02x}")?,
            }
        }
        f.write_char('"')
    }
}

/// A port or a range of ports.
struct Ports<'a>(&'a RangeInclusive<u16>);

impl Display for Ports<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0.start(), self.0.end());
        if first == last { first.fmt(f) } else { write!(f, "{first}-{last}") }
    }
}

/// The whole rule, on one line.
impl Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.allow { "allow" } else { "deny" })?;
        word(f, "version", self.version.as_ref())?;
        word(f, "command", self.command.as_ref())?;
        word(f, "from", self.from.as_ref())?;
        word(f, "user", self.user.as_ref())?;
        if self.ident {
            f.write_str(" ident")?;
        }
        word(f, "to", self.to.as_ref())?;
        let ports = self.port.as_ref().map(|any| AnyOf {
            negated: any.negated,
            items: any.items.iter().map(Ports).collect(),
        });
        word(f, "port", ports)?;
        self.settings.fmt(f)
    }
}

/// The settings after the conditions of a rule, with a blank before each.
impl Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        word(f, "max-sessions", self.max_sessions)?;
        word(f, "max-per-client", self.max_per_client)?;
        word(f, "rate", self.rate)?;
        word(f, "rate-user", self.rate_user)?;
        word(f, "idle", self.idle.map(|idle| idle.as_secs()))?;
        let source = AnyOf { negated: false, items: self.source.clone() };
        word(f, "source", Some(source).filter(|source| !source.items.is_empty()))?;
        let log = |log| if log == Logging::No { "no" } else { "verbose" };
        word(f, "log", self.log.map(log))
    }
}

fn word(f: &mut fmt::Formatter<'_>, word: &str, value: Option<impl Display>) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(f, " {word} {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse;
    use crate::policy::rules::tests::random_rules;
    use crate::wire::testing::Random;

    #[test]
    fn what_is_parsed_and_printed_is_parsed_as_the_same() {
        let mut random = Random::seeded();
        for _ in 0..20_000 {
            for rule in random_rules(&mut random) {
                let printed = rule.to_string();
                let again = parse::builtin("random", &printed);
                let again = again.unwrap_or_else(|errors| panic!("{printed}: {errors:?}"));
                let expected = Rule { place: again[0].place.clone(), ..(*rule).clone() };
                assert_eq!(again, [expected], "{printed}");
                assert_eq!(again[0].to_string(), printed);
            }
        }
    }

    #[test]
    fn words_are_printed_as_they_have_to_be_written() {
        for (word, printed) in [
            ("alice", "alice"),
            ("any", "\"any\""),
            ("none", "\"none\""),
            ("private", "\"private\""),
            ("@staff", "\"@staff\""),
            ("a b", "\"a b\""),
            ("a,b", "\"a,b\""),
            ("a\"\\", "\"a\\\"\\\\\""),
            ("\u{e4}\n", "\"\\xc3\\xa4\\x0a\""),
            ("#", "\"#\""),
            ("", "\"\""),
            ("-", "-"),
        ] {
            assert_eq!(Spelled(word.as_bytes()).to_string(), printed);
        }
    }
}
