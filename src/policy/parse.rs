//! Parses rules, socksd.rules(5): statements and rules; each error has its position. The lexer is
//! in `words`.
//!
//! First all files are read and split into statements, and the lists are loaded; then the rules are
//! parsed. An error ends its statement, not the parsing.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::policy::list::{List, ListEntry};
use crate::policy::nets::Set;
use crate::policy::rules::{
    AnyOf, Logging, NamedList, Pattern, Rule, RuleRef, Settings, UserPattern,
};
use crate::policy::words::{Lexer, Statement, Token, Tokens, Word, Wrong};
use crate::wire::{Command, STRING_MAX, Version};

/// The deepest nesting of included files.
const DEPTH_MAX: usize = 16;

/// The most seconds of `idle`, the same as of `--idle-timeout`: 30 days.
const IDLE_MAX: u64 = 30 * 86_400;

/// The most sessions, the same as of `--max-sessions`.
const SESSIONS_MAX: u64 = 1_000_000;

/// The first words of statements.
const VERBS: &str = "allow, deny, list or include";

/// The keywords of rules.
const KEYWORDS: &str = "version, command, from, user, ident, to, port, max-sessions, \
                        max-per-client, rate, rate-user, idle, source or log";

/// The result of [`load`].
#[derive(Debug)]
pub struct Loaded {
    /// The rules, in their order.
    pub rules: Vec<Rule>,
    /// The files that were read, including lists.
    pub files: Vec<PathBuf>,
}

/// Parses the rules of `texts`, which are called `--rule`, followed by those of `file`, with all
/// that they include.
///
/// # Errors
/// A message for each error, with file, line and column, in the order of the files.
pub fn load(texts: &[String], file: Option<&Path>) -> Result<Loaded, Vec<String>> {
    let mut loader = Loader::default();
    for (text, number) in texts.iter().zip(1..) {
        loader.text("--rule".into(), text.as_bytes(), Path::new(""), number);
    }
    if let Some(path) = file
        && let Err(error) = loader.file(path)
    {
        loader.error(error);
    }
    let files = std::mem::take(&mut loader.files);
    loader.finish().map(|rules| Loaded { rules, files })
}

/// Parses rules that are part of the program.
///
/// # Errors
/// As [`load`].
pub fn builtin(name: &str, text: &str) -> Result<Vec<Rule>, Vec<String>> {
    let mut loader = Loader::default();
    loader.text(name.into(), text.as_bytes(), Path::new(""), 1);
    loader.finish()
}

#[derive(Default)]
struct Loader {
    statements: Vec<Statement>,
    lists: HashMap<String, Arc<List>>,
    /// The files that are open, each included by the one before it.
    open: Vec<PathBuf>,
    /// All files that were read.
    files: Vec<PathBuf>,
    errors: Vec<LoadError>,
}

struct LoadError {
    /// The number of rules before it, for the order.
    after: usize,
    message: String,
}

impl Loader {
    fn error(&mut self, message: String) {
        self.errors.push(LoadError { after: self.statements.len(), message });
    }

    fn wrong(&mut self, file: &str, wrong: &Wrong) {
        self.error(format!("{file}:{wrong}"));
    }

    /// Reads the file at `path`.
    fn file(&mut self, path: &Path) -> Result<(), String> {
        let name = path.display();
        let unreadable = |error| format!("cannot read {name}: {error}");
        let real = fs::canonicalize(path).map_err(unreadable)?;
        if self.open.contains(&real) {
            return Err(format!("{name} includes itself"));
        }
        if self.open.len() == DEPTH_MAX {
            return Err(format!("{name} is included through more than {DEPTH_MAX} files"));
        }
        let octets = fs::read(&real).map_err(unreadable)?;
        self.files.push(path.into());
        self.open.push(real);
        let directory = path.parent().unwrap_or(Path::new(""));
        self.text(name.to_string().into(), &octets, directory, 1);
        self.open.pop();
        Ok(())
    }

    /// Splits a text into statements. The paths in it are relative to `directory`.
    fn text(&mut self, file: Arc<str>, octets: &[u8], directory: &Path, first_line: usize) {
        let mut lexer = Lexer::new(octets, first_line);
        loop {
            match lexer.statement() {
                Ok(None) => return,
                Ok(Some(tokens)) => {
                    let statement = Statement { file: Arc::clone(&file), tokens };
                    if let Err(wrong) = self.statement(statement, directory) {
                        self.wrong(&file, &wrong);
                    }
                }
                Err(wrong) => {
                    self.wrong(&file, &wrong);
                    lexer.skip_statement();
                }
            }
        }
    }

    /// Carries out `list` and `include`, and keeps rules for later.
    fn statement(&mut self, statement: Statement, directory: &Path) -> Result<(), Wrong> {
        let mut tokens = Tokens::of(&statement);
        match tokens.keyword() {
            Some("include") => {
                let path = directory.join(tokens.path("the name of a file")?);
                tokens.end()?;
                self.file(&path).map_err(|error| tokens.wrong(error))
            }
            Some("list") => {
                let name = tokens.list_name()?;
                if self.lists.contains_key(&name) {
                    return Err(tokens.wrong(format!("duplicate list {name}")));
                }
                let path = directory.join(tokens.path("the name of a file")?);
                tokens.end()?;
                // A list that cannot be read makes no rule that uses it wrong.
                let list = self.list(&path);
                let known = list.as_ref().map_or_else(|_| Arc::default(), Arc::clone);
                self.lists.insert(name, known);
                list.map(drop).map_err(|error| tokens.wrong(error))
            }
            Some("allow" | "deny") => {
                self.statements.push(statement);
                Ok(())
            }
            Some(other) => Err(tokens.found(VERBS, other.as_bytes())),
            None => Err(tokens.unexpected(VERBS)),
        }
    }

    /// Loads a list. If it has errors, they are noted and the list is empty.
    fn list(&mut self, path: &Path) -> Result<Arc<List>, String> {
        let name = path.display().to_string();
        let octets = fs::read(path).map_err(|error| format!("cannot read {name}: {error}"))?;
        self.files.push(path.into());
        Ok(List::parse(&octets).map(Arc::new).unwrap_or_else(|errors| {
            for wrong in &errors {
                self.wrong(&name, wrong);
            }
            Arc::default()
        }))
    }

    fn finish(mut self) -> Result<Vec<Rule>, Vec<String>> {
        let mut rules = Vec::new();
        for (statement, after) in self.statements.iter().zip(0..) {
            match rule(statement, &self.lists) {
                Ok(rule) => rules.push(rule),
                Err(wrong) => {
                    let message = format!("{}:{wrong}", statement.file);
                    self.errors.push(LoadError { after, message });
                }
            }
        }
        if self.errors.is_empty() {
            return Ok(rules);
        }
        self.errors.sort_by_key(|error| error.after);
        Err(self.errors.into_iter().map(|error| error.message).collect())
    }
}

/// Parts of the grammar that several statements share.
impl<'a> Tokens<'a> {
    fn path(&mut self, expected: &str) -> Result<PathBuf, Wrong> {
        use std::os::unix::ffi::OsStrExt as _;
        self.value(expected, |Word { octets, .. }| {
            (!octets.is_empty() && !octets.contains(&0))
                .then(|| PathBuf::from(std::ffi::OsStr::from_bytes(octets)))
        })
    }

    fn list_name(&mut self) -> Result<String, Wrong> {
        let expected = "the name of a list, of ASCII letters, digits, '-', '_' and '.'";
        self.value(expected, |name| plain(name.octets))
    }

    /// Takes a list of items separated by commas, with an optional `!` before it.
    fn any_of<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Wrong>,
    ) -> Result<AnyOf<T>, Wrong> {
        let negated = self.take(&Token::Not);
        let mut items = vec![item(self)?];
        while self.take(&Token::Comma) {
            items.push(item(self)?);
        }
        Ok(AnyOf { negated, items })
    }
}

/// Sets a value that may be given once.
fn once<T>(
    place: &mut Option<T>,
    keyword: &str,
    tokens: &mut Tokens<'_>,
    value: impl FnOnce(&mut Tokens<'_>) -> Result<T, Wrong>,
) -> Result<(), Wrong> {
    if place.is_some() {
        return Err(tokens.wrong(format!("duplicate {keyword}")));
    }
    *place = Some(value(tokens)?);
    Ok(())
}

fn rule(statement: &Statement, lists: &HashMap<String, Arc<List>>) -> Result<Rule, Wrong> {
    let mut tokens = Tokens::of(statement);
    let allow = tokens.keyword() == Some("allow");
    let place = RuleRef { file: Arc::clone(&statement.file), line: tokens.last.line };
    let mut rule = Rule::new(place, allow);
    while tokens.peek().is_some() {
        let Some(keyword) = tokens.keyword() else { return Err(tokens.unexpected(KEYWORDS)) };
        match keyword {
            "version" => once(&mut rule.version, keyword, &mut tokens, |w| w.any_of(version))?,
            "command" => once(&mut rule.command, keyword, &mut tokens, |w| w.any_of(command))?,
            "from" => once(&mut rule.from, keyword, &mut tokens, |w| {
                w.any_of(|w| pattern(w, lists, false))
            })?,
            "user" => once(&mut rule.user, keyword, &mut tokens, |w| w.any_of(user))?,
            "ident" if rule.ident => return Err(tokens.wrong("duplicate ident".into())),
            "ident" => rule.ident = true,
            "to" => {
                once(&mut rule.to, keyword, &mut tokens, |w| w.any_of(|w| pattern(w, lists, true)))?
            }
            "port" => once(&mut rule.port, keyword, &mut tokens, |w| w.any_of(ports))?,
            _ => setting(&mut rule.settings, keyword, allow, &mut tokens)?,
        }
    }
    Ok(rule)
}

fn setting(
    settings: &mut Settings,
    keyword: &str,
    allow: bool,
    tokens: &mut Tokens<'_>,
) -> Result<(), Wrong> {
    let known = ["max-sessions", "max-per-client", "rate", "rate-user", "idle", "source", "log"];
    if !known.contains(&keyword) {
        return Err(tokens.found(KEYWORDS, keyword.as_bytes()));
    }
    if !allow && keyword != "log" {
        let what = format!("`{keyword}` is not allowed in a deny rule (only `log` is)");
        return Err(tokens.wrong(what));
    }
    match keyword {
        "max-sessions" => once(&mut settings.max_sessions, keyword, tokens, sessions),
        "max-per-client" => once(&mut settings.max_per_client, keyword, tokens, sessions),
        "rate" => once(&mut settings.rate, keyword, tokens, rate),
        "rate-user" => once(&mut settings.rate_user, keyword, tokens, rate),
        "idle" => once(&mut settings.idle, keyword, tokens, |tokens| {
            tokens.value("0 to 2592000 seconds", |word| {
                let seconds = number(word.octets).filter(|&seconds| seconds <= IDLE_MAX);
                seconds.map(Duration::from_secs)
            })
        }),
        "source" => {
            let mut given = Some(()).filter(|()| !settings.source.is_empty());
            once(&mut given, keyword, tokens, |tokens| {
                settings.source = sources(tokens)?;
                Ok(())
            })
        }
        _ => once(&mut settings.log, keyword, tokens, |tokens| {
            tokens.value("no or verbose", |word| match word.bare()? {
                b"no" => Some(Logging::No),
                b"verbose" => Some(Logging::Verbose),
                _ => None,
            })
        }),
    }
}

fn version(tokens: &mut Tokens<'_>) -> Result<Version, Wrong> {
    tokens.value("version 4, 4a or 5", |word| match word.octets {
        b"4" => Some(Version::V4),
        b"4a" => Some(Version::V4a),
        b"5" => Some(Version::V5),
        _ => None,
    })
}

fn command(tokens: &mut Tokens<'_>) -> Result<Command, Wrong> {
    tokens.value("command connect, bind or udp", |word| match word.octets {
        b"connect" => Some(Command::CONNECT),
        b"bind" => Some(Command::BIND),
        b"udp" => Some(Command::UDP_ASSOCIATE),
        _ => None,
    })
}

fn user(tokens: &mut Tokens<'_>) -> Result<UserPattern, Wrong> {
    tokens.value("a user, @GROUP, any or none", |word| match word.bare() {
        Some(b"any") => Some(UserPattern::Any),
        Some(b"none") => Some(UserPattern::None),
        Some([b'@', group @ ..]) => plain(group).map(UserPattern::Group),
        _ => {
            let name = word.octets;
            (1..=STRING_MAX).contains(&name.len()).then(|| UserPattern::Name(name.to_vec()))
        }
    })
}

/// An item of `to`, or of `from`, which has no names.
fn pattern(
    tokens: &mut Tokens<'_>,
    lists: &HashMap<String, Arc<List>>,
    names: bool,
) -> Result<Pattern, Wrong> {
    let expected = if names {
        "an address, a block, a name, any, all, a set or list:NAME"
    } else {
        "an address, a block, any, unix, a set or list:NAME"
    };
    let word = tokens.word(expected)?;
    match word.bare() {
        Some(b"any") => return Ok(Pattern::Any),
        Some(b"unix") if !names => return Ok(Pattern::Unix),
        Some(text) => {
            if let Some(set) = Set::parse(text) {
                return Ok(Pattern::Set(set));
            }
            if let Some(name) = text.strip_prefix(b"list:") {
                let name = String::from_utf8_lossy(name);
                let list = lists.get(name.as_ref()).cloned();
                let list =
                    list.ok_or_else(|| tokens.found("the name of a list", name.as_bytes()))?;
                return Ok(Pattern::List(NamedList { name: name.into(), list }));
            }
        }
        None => {}
    }
    match ListEntry::parse(word.octets) {
        Ok(ListEntry::Block(block)) => Ok(Pattern::Block(block)),
        Ok(ListEntry::Name(name)) if names => Ok(Pattern::Name(name)),
        Ok(ListEntry::Name(_)) => Err(tokens.found(expected, word.octets)),
        Err(what) => Err(tokens.wrong(what)),
    }
}

fn ports(tokens: &mut Tokens<'_>) -> Result<RangeInclusive<u16>, Wrong> {
    tokens.value("a port or LO-HI, from 0 to 65535", |word| {
        let port = |text: &[u8]| number(text).and_then(|port| u16::try_from(port).ok());
        let mut ends = word.octets.splitn(2, |&octet| octet == b'-');
        let first = port(ends.next()?)?;
        let last = ends.next().map_or(Some(first), port)?;
        (first <= last).then_some(first..=last)
    })
}

fn sessions(tokens: &mut Tokens<'_>) -> Result<NonZeroU64, Wrong> {
    tokens.value("1 to 1000000 sessions", |word| {
        number(word.octets).filter(|&sessions| sessions <= SESSIONS_MAX).and_then(NonZeroU64::new)
    })
}

fn rate(tokens: &mut Tokens<'_>) -> Result<NonZeroU64, Wrong> {
    tokens
        .value("octets a second, at least 1", |word| number(word.octets).and_then(NonZeroU64::new))
}

fn sources(tokens: &mut Tokens<'_>) -> Result<Vec<IpAddr>, Wrong> {
    let mut sources: Vec<IpAddr> = Vec::new();
    loop {
        let source = tokens.value("an address of this host, one of each family", |word| {
            let ip: IpAddr = str::from_utf8(word.octets).ok()?.parse().ok()?;
            let ip = ip.to_canonical();
            let twice = sources.iter().any(|other| other.is_ipv4() == ip.is_ipv4());
            (!twice && !ip.is_unspecified() && !ip.is_multicast()).then_some(ip)
        })?;
        sources.push(source);
        if !tokens.take(&Token::Comma) {
            return Ok(sources);
        }
    }
}

/// Parses digits, without a sign or blanks.
fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// Checks the name of a list or a group.
fn plain(name: &[u8]) -> Option<String> {
    let part = |octet: &u8| octet.is_ascii_alphanumeric() || b"-_.".contains(octet);
    let plain = !name.is_empty() && name.iter().all(part);
    String::from_utf8(name.to_vec()).ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rules::tests::random_rules;
    use crate::wire::testing::Random;

    /// A directory that is removed when it is dropped.
    struct Directory(PathBuf);

    impl Directory {
        fn with(files: &[(&str, &str)]) -> Self {
            use std::sync::atomic::{AtomicUsize, Ordering};
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("socksd-rules-{}-{number}", std::process::id());
            let directory = Self(std::env::temp_dir().join(name));
            fs::create_dir(&directory.0).unwrap();
            for (name, text) in files {
                fs::create_dir_all(directory.0.join(name).parent().unwrap()).unwrap();
                fs::write(directory.0.join(name), text).unwrap();
            }
            directory
        }

        /// The rules in the file `rules`, or the errors without the path of the directory.
        fn load(&self) -> Result<Vec<String>, Vec<String>> {
            let own = format!("{}/", self.0.display());
            match load(&[], Some(&self.0.join("rules"))) {
                Ok(Loaded { rules, .. }) => Ok(rules.iter().map(Rule::to_string).collect()),
                Err(errors) => Err(errors.iter().map(|error| error.replace(&own, "")).collect()),
            }
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn errors(text: &str) -> Vec<String> {
        builtin("f", text).err().unwrap_or_default()
    }

    #[test]
    fn words_commas_quotes_comments_and_continued_lines_are_read_as_the_manual_says() {
        for (text, printed) in [
            ("allow", "allow"),
            ("  allow\tto   any  # all the rest\r\n", "allow to any"),
            ("allow to any#1", ""),
            ("allow to a ,b,\tc , d", "allow to a,b,c,d"),
            ("allow to ! a,b", "allow to !a,b"),
            ("allow to !a", "allow to !a"),
            ("allow \\\n  to \\\r\n any\\\n", "allow to any"),
            ("allow user \"any\",\"a \\\"b\\\\\\x00\"", "allow user \"any\",\"a \\\"b\\\\\\x00\""),
            ("\"allow\"", ""),
            ("allow to \"private\"", "allow to \"private\""),
            ("allow to EXAMPLE.org.", "allow to example.org"),
            ("allow to ::ffff:10.0.0.1", "allow to 10.0.0.1"),
            ("allow to 10.0.0.0-10.255.255.255", "allow to 10.0.0.0/8"),
            ("allow port 80-80,1-2", "allow port 80,1-2"),
            ("allow ident log no rate 5 to any", "allow ident to any rate 5 log no"),
        ] {
            let rules = builtin("f", text).unwrap_or_default();
            let rules: Vec<String> = rules.iter().map(Rule::to_string).collect();
            assert_eq!(rules.join("\n"), printed, "{text:?}");
        }
    }

    #[test]
    fn every_error_has_file_line_and_column_and_what_was_expected() {
        for (text, error) in [
            ("alow", "1:1: expected allow, deny, list or include, found alow"),
            ("\n\n  \"allow\"", "3:3: expected allow, deny, list or include"),
            (",", "1:1: expected allow, deny, list or include"),
            (
                "allow to",
                "1:7: expected an address, a block, a name, any, all, a set or list:NAME after this",
            ),
            (
                "allow to any,",
                "1:13: expected an address, a block, a name, any, all, a set or list:NAME after this",
            ),
            (
                "allow to ,any",
                "1:10: expected an address, a block, a name, any, all, a set or list:NAME",
            ),
            (
                "allow from a.example",
                "1:12: expected an address, a block, any, unix, a set or list:NAME, found a.example",
            ),
            ("allow to list:none", "1:10: expected the name of a list, found none"),
            ("allow user @", "1:12: expected a user, @GROUP, any or none, found @"),
            ("allow user \"\"", "1:12: expected a user, @GROUP, any or none, found -"),
            ("allow version 6", "1:15: expected version 4, 4a or 5, found 6"),
            ("allow command get", "1:15: expected command connect, bind or udp, found get"),
            ("allow port 65536", "1:12: expected a port or LO-HI, from 0 to 65535, found 65536"),
            ("allow port 2-1", "1:12: expected a port or LO-HI, from 0 to 65535, found 2-1"),
            ("allow port +1", "1:12: expected a port or LO-HI, from 0 to 65535, found +1"),
            ("allow rate 0", "1:12: expected octets a second, at least 1, found 0"),
            ("allow max-sessions 0", "1:20: expected 1 to 1000000 sessions, found 0"),
            ("allow idle 2592001", "1:12: expected 0 to 2592000 seconds, found 2592001"),
            ("allow log yes", "1:11: expected no or verbose, found yes"),
            (
                "allow source 1.1.1.1,2.2.2.2",
                "1:22: expected an address of this host, one of each family, found 2.2.2.2",
            ),
            (
                "allow source 0.0.0.0",
                "1:14: expected an address of this host, one of each family, found 0.0.0.0",
            ),
            ("allow to any to all", "1:14: duplicate to"),
            ("allow ident ident", "1:13: duplicate ident"),
            ("allow source 1.1.1.1 source ::1", "1:22: duplicate source"),
            ("deny rate 5", "1:6: `rate` is not allowed in a deny rule (only `log` is)"),
            ("allow \\\n  to any \"x", "2:10: expected a closing double quote in this line"),
            ("allow user \"\\y\"", "1:13: expected \\\", \\\\ or \\xNN"),
            ("allow user \"\\xg0\"", "1:13: expected two hexadecimal digits after \\x"),
            ("allow user a\"b\"", "1:13: '\"' in a word: put the word in double quotes"),
            ("allow user \u{e4}", "1:12: expected a printing ASCII character, found '\\xc3'"),
            (
                "allow user \"\t\"",
                "1:13: expected a printing ASCII character or \\xNN, found '\\x09'",
            ),
            ("list a", "1:6: expected the name of a file after this"),
            (
                "list a/b c",
                "1:6: expected the name of a list, of ASCII letters, digits, '-', '_' and '.', found a/b",
            ),
            ("include a b", "1:11: expected the end of the line"),
            ("include \"\"", "1:9: expected the name of a file, found -"),
            ("include \"a\\x00\"", "1:9: expected the name of a file, found a\\x00"),
        ] {
            assert_eq!(errors(text), [format!("f:{error}")], "{text:?}");
        }
    }

    #[test]
    fn all_errors_of_a_file_are_reported_in_its_order() {
        let text = "allow to list:x\nbogus\nallow\n\" \\\nto \\\r\nx\nallow port x\nlist y /nonexistent/y\ndeny to list:y idle 1";
        let lines: Vec<String> = errors(text)
            .iter()
            .map(|error| error.split(':').nth(1).unwrap_or_default().to_owned())
            .collect();
        assert_eq!(lines, ["1", "2", "4", "7", "8", "9"]);
    }

    #[test]
    fn files_are_included_in_place_and_found_from_the_file_that_names_them() {
        let directory = Directory::with(&[
            ("rules", "allow to a\ninclude more/b\nallow to list:d"),
            ("more/b", "allow to b\nlist d d\ninclude ../c"),
            ("more/d", ".d.example\n192.0.2.0/24 # all of it\n"),
            ("c", "allow to list:d,c"),
        ]);
        let expected =
            ["allow to a", "allow to b", "allow to list:d,c", "allow to list:d"].map(str::to_owned);
        assert_eq!(directory.load(), Ok(expected.to_vec()));
    }

    #[test]
    fn errors_of_included_files_and_of_lists_name_those_files() {
        let directory = Directory::with(&[
            ("rules", "include b\nlist x l\nlist x l\nallow to list:x\ninclude none"),
            ("b", "allow\nbogus"),
            ("l", "a.example\n10.0.0.1/8\n"),
        ]);
        let errors = directory.load().unwrap_err();
        let heads: Vec<&str> = errors.iter().filter_map(|error| error.split(": ").next()).collect();
        assert_eq!(heads, ["b:2:1", "l:2:1", "rules:3:6", "rules:5:9"], "{errors:?}");
    }

    #[test]
    fn files_that_include_each_other_are_an_error() {
        let directory = Directory::with(&[("rules", "include b\nallow"), ("b", "include rules")]);
        assert_eq!(directory.load(), Err(vec!["b:1:9: rules includes itself".to_owned()]));
        let files: Vec<(String, String)> =
            (0..20).map(|n| (format!("f{n}"), format!("include f{}", n + 1))).collect();
        let mut files: Vec<(&str, &str)> =
            files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        files.push(("rules", "include f0"));
        let error = "f14:1:9: f15 is included through more than 16 files".to_owned();
        assert_eq!(Directory::with(&files).load(), Err(vec![error]));
    }

    #[test]
    fn rules_of_the_command_line_come_before_those_of_the_file() {
        let directory = Directory::with(&[("rules", "allow to c")]);
        let texts = ["allow to a".to_owned(), "allow to b\nallow to bb".to_owned()];
        let Loaded { rules, files } = load(&texts, Some(&directory.0.join("rules"))).unwrap();
        assert_eq!(files, [directory.0.join("rules")]);
        let rules: Vec<_> = rules.iter().map(|rule| (rule.place.line, rule.to_string())).collect();
        let expected =
            [(1, "allow to a"), (2, "allow to b"), (3, "allow to bb"), (1, "allow to c")];
        assert_eq!(rules, expected.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn random_octets_and_mutated_rules_never_panic_and_accepted_rules_can_be_printed() {
        let mut random = Random::seeded();
        let mut accepted = 0;
        for round in 0..100_000 {
            let octets = if round % 4 == 0 {
                random.octets(60)
            } else {
                let rules = random_rules(&mut random);
                let text: Vec<String> = rules.iter().map(|rule| rule.to_string()).collect();
                mutate(text.join("\n").into_bytes(), &mut random)
            };
            // No random file may be read.
            if octets.windows(4).any(|word| word == b"list" || word == b"incl") {
                continue;
            }
            let mut loader = Loader::default();
            loader.text("f".into(), &octets, Path::new("/nonexistent"), 1);
            for rule in loader.finish().unwrap_or_default() {
                accepted += 1;
                let again = builtin("f", &rule.to_string()).unwrap();
                let place = rule.place.clone();
                assert_eq!(
                    again
                        .into_iter()
                        .map(|again| Rule { place: place.clone(), ..again })
                        .collect::<Vec<_>>(),
                    [rule]
                );
            }
        }
        assert!(accepted > 10_000, "{accepted}");
    }

    fn mutate(mut octets: Vec<u8>, random: &mut Random) -> Vec<u8> {
        for _ in 0..random.below(4) {
            let at = random.below(octets.len() + 1);
            match random.below(3) {
                0 => octets.insert(at, *random.pick(b" ,!\"\\#\n\r\t\x00\xff:/-.0@a")),
                1 => octets.truncate(at),
                _ => drop(octets.drain(at..(at + random.below(4)).min(octets.len()))),
            }
        }
        octets
    }
}
