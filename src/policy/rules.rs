//! One rule: what it says, and whether it matches what is known of a request. Reading rules is for
//! [`crate::policy::parse`], writing them for `print`, deciding by a list of them for
//! [`crate::policy`].
//!
//! A rule is asked at three times: when a client may choose a method and nothing but its address is
//! known, when its request is known, and when the name in it is resolved. What is not known yet
//! makes a condition neither true nor false but [`Truth::Maybe`].

use std::fmt::{self, Display};
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::users::Users;
use crate::auth::{Proof, User};
use crate::log::Escaped;
use crate::policy::list::{List, Name};
use crate::policy::nets::{Block, Set, spellings};
use crate::wire::{Command, Version};

/// How far something is known to be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Truth {
    /// It is not.
    No,
    /// That depends on what is not known yet.
    Maybe,
    /// It is.
    Yes,
}

impl From<bool> for Truth {
    fn from(is: bool) -> Self {
        if is { Self::Yes } else { Self::No }
    }
}

impl std::ops::Not for Truth {
    type Output = Self;

    fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
            Self::Yes => Self::No,
        }
    }
}

/// What the Identification Protocol has told of a client's user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ident {
    /// Nobody has asked.
    NotAsked,
    /// This user; for SOCKS 4 it is the one that USERID names.
    Proved(User),
    /// There was no answer, or none that proves anything.
    Unproved,
    /// Another user than USERID names.
    Different,
}

impl Ident {
    /// What comes of an answer to a client that speaks `version` and calls itself `userid`, which
    /// only SOCKS 4 has. `users` knows the groups.
    #[must_use]
    pub fn of_answer(
        users: Option<&Users>,
        version: Version,
        userid: &[u8],
        answer: &[u8],
    ) -> Self {
        // An account that has expired is as good as none.
        let Some(user) = Self::user(users, answer) else { return Self::Unproved };
        // An empty USERID is nobody's.
        if version != Version::V5 && (userid.is_empty() || userid != answer) {
            return Self::Different;
        }
        Self::Proved(user)
    }

    /// The user called `name` by its host; `None` if the account has expired.
    pub(super) fn user(users: Option<&Users>, name: &[u8]) -> Option<User> {
        match users {
            Some(users) => users.proved(name, Proof::Ident),
            None => Some(User::proved(name, Arc::default(), Proof::Ident)),
        }
    }
}

/// The address of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DstIp {
    /// Not known yet, or any peer of a BIND.
    Unknown,
    /// Some public address that no pattern is for.
    SomePublic,
    /// This one.
    Known(IpAddr),
}

/// What is known of a destination.
#[derive(Clone, Copy, Debug)]
pub struct DstFacts<'a> {
    /// The name asked for, if one was.
    pub name: Option<&'a [u8]>,
    /// The address asked for, or one of the name's.
    pub ip: DstIp,
    /// The port asked for.
    pub port: u16,
}

/// What is known of a request.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The client's address, if it has one.
    pub client: Option<IpAddr>,
    /// The protocol it speaks.
    pub version: Version,
    /// What it asks for, once known.
    pub command: Option<Command>,
    /// Who it is; `None` for somebody with a name that is not known yet.
    pub user: Option<&'a User>,
    /// Who its host says it is.
    pub ident: &'a Ident,
    /// Where it wants to go, once known.
    pub dst: Option<DstFacts<'a>>,
}

/// Where a rule is written: file and line. Display gives them as they stand in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRef {
    /// The file, or what stands for one.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: usize,
}

impl Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", Escaped(self.file.as_bytes()), self.line)
    }
}

/// The list of a condition: it holds if one of its items does, or none if it is negated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnyOf<T> {
    /// Whether a `!` stands before the list.
    pub negated: bool,
    /// The items, at least one.
    pub items: Vec<T>,
}

impl<T> AnyOf<T> {
    fn test(&self, item: impl FnMut(&T) -> Truth) -> Truth {
        let any = self.items.iter().map(item).max().unwrap_or(Truth::No);
        if self.negated { !any } else { any }
    }
}

/// A list with its name.
#[derive(Clone)]
pub struct NamedList {
    /// What rules call it: ASCII letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// What is in it.
    pub list: Arc<List>,
}

impl fmt::Debug for NamedList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NamedList").field(&self.name).finish()
    }
}

impl PartialEq for NamedList {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for NamedList {}

/// An item of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// In `from` every client that has an address; in `to` every public address.
    Any,
    /// In `from` only: clients of UNIX sockets whose address is not known.
    Unix,
    /// The addresses of a named set.
    Set(Set),
    /// A block of addresses.
    Block(Block),
    /// A host name, in `to` only.
    Name(Name),
    /// The addresses and, in `to`, the names of a list.
    List(NamedList),
}

impl Pattern {
    fn holds_ip(&self, ip: IpAddr) -> bool {
        match self {
            Self::Any | Self::Unix | Self::Name(_) => false,
            Self::Set(set) => set.holds(ip),
            Self::Block(block) => block.holds(ip),
            Self::List(named) => named.list.holds_ip(ip),
        }
    }

    fn holds_name(&self, name: &[u8]) -> bool {
        match self {
            Self::Name(pattern) => pattern.matches(name),
            Self::List(named) => named.list.holds_name(name),
            Self::Any | Self::Unix | Self::Set(_) | Self::Block(_) => false,
        }
    }

    fn test_client(&self, client: IpAddr) -> Truth {
        (*self == Self::Any || self.holds_ip(client)).into()
    }

    /// Whether the address is one of these. An IPv6 address in which an IPv4 address hides is both;
    /// with `guarded` it is itself only, and only if nothing inside hides there that is not meant.
    fn test_ip(&self, ip: DstIp, guarded: bool) -> Truth {
        match (self, ip) {
            (Self::Set(Set::All), _) => Truth::Yes,
            (Self::Name(_) | Self::Unix, _) => Truth::No,
            (_, DstIp::Unknown) => Truth::Maybe,
            (Self::Any | Self::Set(Set::Public), _) => is_public(ip),
            (_, DstIp::SomePublic) => Truth::No,
            (Self::Block(_) | Self::List(_), DstIp::Known(ip)) if guarded => {
                let meant = |hidden| self.holds_ip(hidden) || Set::Public.holds(hidden);
                (self.holds_ip(ip) && spellings(ip).skip(1).all(meant)).into()
            }
            (_, DstIp::Known(ip)) => spellings(ip).any(|ip| self.holds_ip(ip)).into(),
        }
    }

    /// Whether it is for this destination. With `guarded` neither a name nor an address may lead inside
    /// in disguise.
    fn test_dst(&self, dst: DstFacts<'_>, guarded: bool) -> Truth {
        let by_name = match dst.name {
            Some(name) if self.holds_name(name) && guarded => is_public(dst.ip),
            Some(name) => self.holds_name(name).into(),
            None => Truth::No,
        };
        by_name.max(self.test_ip(dst.ip, guarded))
    }
}

fn is_public(ip: DstIp) -> Truth {
    match ip {
        DstIp::Unknown => Truth::Maybe,
        DstIp::SomePublic => Truth::Yes,
        DstIp::Known(ip) => Set::Public.holds(ip).into(),
    }
}

/// An item of `user`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserPattern {
    /// Whoever has proved a name.
    Any,
    /// Whoever has not.
    None,
    /// The user of this name.
    Name(Vec<u8>),
    /// Whoever the users file has in this group.
    Group(String),
}

impl UserPattern {
    fn is(&self, user: &User) -> bool {
        match self {
            Self::Any => user.name().is_some(),
            Self::None => user.name().is_none(),
            Self::Name(name) => user.name() == Some(name),
            Self::Group(group) => user.is_in(group),
        }
    }
}

/// What of its sessions a rule has logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logging {
    /// Nothing.
    No,
    /// Requests and connections as they are made, too.
    Verbose,
}

/// What applies to the sessions that a rule admits; `log` also to those that it denies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Most sessions at once.
    pub max_sessions: Option<NonZeroU64>,
    /// Most sessions at once of one client.
    pub max_per_client: Option<NonZeroU64>,
    /// Octets a second of one session, each way.
    pub rate: Option<NonZeroU64>,
    /// Octets a second of all sessions of one user together, each way.
    pub rate_user: Option<NonZeroU64>,
    /// How long a session may pass nothing; zero for ever.
    pub idle: Option<Duration>,
    /// The addresses to leave from, one of each family at most.
    pub source: Vec<IpAddr>,
    /// What to log.
    pub log: Option<Logging>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where it is written.
    pub place: RuleRef,
    /// Whether it allows or denies.
    pub allow: bool,
    /// `version`.
    pub version: Option<AnyOf<Version>>,
    /// `command`.
    pub command: Option<AnyOf<Command>>,
    /// `from`.
    pub from: Option<AnyOf<Pattern>>,
    /// `user`.
    pub user: Option<AnyOf<UserPattern>>,
    /// `ident`.
    pub ident: bool,
    /// `to`. Without it an allow rule is for `any`, a deny rule for `all`.
    pub to: Option<AnyOf<Pattern>>,
    /// `port`.
    pub port: Option<AnyOf<RangeInclusive<u16>>>,
    /// What applies to its sessions.
    pub settings: Settings,
}

/// A kind of condition.
pub struct Condition {
    /// Its keyword.
    pub keyword: &'static str,
    /// Whether that of a rule holds.
    pub test: fn(&Rule, &Facts<'_>) -> Truth,
}

/// The conditions, in the order they are written and tested.
pub const CONDITIONS: [Condition; 7] = [
    Condition { keyword: "version", test: Rule::test_version },
    Condition { keyword: "command", test: Rule::test_command },
    Condition { keyword: "from", test: Rule::test_from },
    Condition { keyword: "user", test: Rule::test_user },
    Condition { keyword: "ident", test: Rule::test_ident },
    Condition { keyword: "to", test: Rule::test_to },
    Condition { keyword: "port", test: Rule::test_port },
];

/// A condition that is not there holds.
fn holds<T>(condition: &Option<AnyOf<T>>, item: impl FnMut(&T) -> Truth) -> Truth {
    condition.as_ref().map_or(Truth::Yes, |any| any.test(item))
}

impl Rule {
    /// A rule without conditions and settings.
    #[must_use]
    pub fn new(place: RuleRef, allow: bool) -> Self {
        Self {
            place,
            allow,
            version: None,
            command: None,
            from: None,
            user: None,
            ident: false,
            to: None,
            port: None,
            settings: Settings::default(),
        }
    }

    /// Whether all its conditions hold.
    #[must_use]
    pub fn matches(&self, facts: &Facts<'_>) -> Truth {
        let mut all = Truth::Yes;
        for condition in CONDITIONS {
            all = all.min((condition.test)(self, facts));
            if all == Truth::No {
                break;
            }
        }
        all
    }

    /// Whether it tells clients apart by the password they gave.
    #[must_use]
    pub fn wants_password(&self) -> bool {
        !self.ident && self.user.is_some()
    }

    /// Whether it is about users or groups that there have to be.
    #[must_use]
    pub fn wants_users(&self) -> bool {
        let Some(AnyOf { negated, items }) = &self.user else { return false };
        let by_password = *negated || items.iter().any(|item| *item != UserPattern::None);
        let by_group = items.iter().any(|item| matches!(item, UserPattern::Group(_)));
        by_group || !self.ident && by_password
    }

    fn test_version(&self, facts: &Facts<'_>) -> Truth {
        holds(&self.version, |version| (*version == facts.version).into())
    }

    fn test_command(&self, facts: &Facts<'_>) -> Truth {
        holds(&self.command, |command| {
            facts.command.map_or(Truth::Maybe, |asked| (asked == *command).into())
        })
    }

    /// Whose address is not known is nobody else than `unix`, whatever the list says.
    fn test_from(&self, facts: &Facts<'_>) -> Truth {
        match (&self.from, facts.client) {
            (None, _) => Truth::Yes,
            (Some(from), Some(client)) => from.test(|pattern| pattern.test_client(client)),
            (Some(from), None) => (!from.negated && from.items.contains(&Pattern::Unix)).into(),
        }
    }

    fn test_user(&self, facts: &Facts<'_>) -> Truth {
        let Some(condition) = &self.user else { return Truth::Yes };
        let user = match (self.ident, facts.ident) {
            (false, _) => facts.user,
            (true, Ident::Proved(user)) => Some(user),
            // It may turn out to prove nobody, which a rule that denies takes for a match.
            (true, Ident::NotAsked) if !self.allow => return Truth::Maybe,
            (true, Ident::NotAsked) => None,
            // Fails closed: test_ident has an allow rule not match.
            (true, Ident::Unproved | Ident::Different) => return Truth::Yes,
        };
        let Some(user) = user else {
            return condition.test(|who| match who {
                UserPattern::Any => Truth::Yes,
                UserPattern::None => Truth::No,
                UserPattern::Name(_) | UserPattern::Group(_) => Truth::Maybe,
            });
        };
        // Who is nobody in particular is not let in for not being somebody else.
        let about_all = |item: &UserPattern| matches!(item, UserPattern::Any | UserPattern::None);
        if condition.negated && user.name().is_none() && !condition.items.iter().any(about_all) {
            return (!self.allow).into();
        }
        condition.test(|who| who.is(user).into())
    }

    /// A rule that denies by IDENT also denies whom IDENT does not tell of: else hiding would help.
    fn test_ident(&self, facts: &Facts<'_>) -> Truth {
        match (self.ident, facts.ident) {
            (false, _) | (true, Ident::Proved(_)) => Truth::Yes,
            (true, Ident::NotAsked) => Truth::Maybe,
            (true, Ident::Unproved | Ident::Different) => (!self.allow).into(),
        }
    }

    fn test_to(&self, facts: &Facts<'_>) -> Truth {
        let Some(condition) = &self.to else {
            let everywhere = if self.allow { Pattern::Any } else { Pattern::Set(Set::All) };
            return match facts.dst {
                Some(dst) => everywhere.test_dst(dst, false),
                None if self.allow => Truth::Maybe,
                None => Truth::Yes,
            };
        };
        // Nothing known is as good as an unknown address and any name.
        let Some(dst) = facts.dst else {
            let all = |item: &Pattern| *item == Pattern::Set(Set::All);
            let everywhere = !condition.negated && condition.items.iter().any(all);
            return if everywhere { Truth::Yes } else { Truth::Maybe };
        };
        // What is let in has to be meant, in whichever way the rule says so.
        let guarded = self.allow != condition.negated;
        let truth = condition.test(|item| item.test_dst(dst, guarded));
        if self.allow && condition.negated { truth.min(is_public(dst.ip)) } else { truth }
    }

    fn test_port(&self, facts: &Facts<'_>) -> Truth {
        holds(&self.port, |ports| {
            facts.dst.map_or(Truth::Maybe, |dst| ports.contains(&dst.port).into())
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::policy::parse;
    use crate::wire::testing::Random;

    /// Up to five rules of every kind, of words that often match each other's questions.
    pub(crate) fn random_rules(random: &mut Random) -> Vec<Arc<Rule>> {
        let text: Vec<String> = (0..random.below(6)).map(|_| random_rule(random)).collect();
        let rules = parse::builtin("random", &text.join("\n"));
        rules.unwrap_or_else(|errors| panic!("{errors:?}")).into_iter().map(Arc::new).collect()
    }

    fn random_rule(random: &mut Random) -> String {
        let mut rule = (*random.pick(&["allow", "allow", "deny"])).to_owned();
        let conditions: [(&str, &[&str]); 6] = [
            ("version", &["4", "4a", "5"]),
            ("command", &["connect", "bind", "udp"]),
            ("from", &["any", "10.0.0.0/8", "private", "192.0.2.1-192.0.2.9", "::1", "unix"]),
            ("user", &["any", "none", "alice", "@staff", "\"any\"", "\"a b\\x00\\\"\""]),
            ("to", &["any", "all", "a.example", ".example", "10.0.0.0/8", "loopback", "8.8.8.8"]),
            ("port", &["80", "443", "0-1023", "1024-65535"]),
        ];
        for (keyword, items) in conditions {
            if random.below(3) == 0 {
                let negated = if random.below(4) == 0 { "!" } else { "" };
                let list: Vec<&str> = (0..=random.below(3)).map(|_| *random.pick(items)).collect();
                rule += &format!(" {keyword} {negated}{}", list.join(","));
            }
        }
        if random.below(5) == 0 {
            rule += " ident";
        }
        let settings = [
            "max-sessions 3",
            "max-per-client 1000000",
            "rate 1",
            "rate-user 18446744073709551615",
            "idle 0",
            "source 192.0.2.1,2001:db8::1",
        ];
        if rule.starts_with("allow") {
            for setting in settings {
                if random.below(6) == 0 {
                    rule += &format!(" {setting}");
                }
            }
        }
        rule + *random.pick(&["", "", " log no", " log verbose"])
    }
}
