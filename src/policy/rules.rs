//! One rule: its conditions and settings, and whether it matches the facts known of a request.
//! Rules are read by [`crate::policy::parse`] and written by `print`; [`crate::policy`] decides by
//! a list of them.
//!
//! A rule is tested up to three times: on the greeting, when only the client's address is known, on
//! the request, and once the name in it is resolved. A condition on a fact that is not known yet is
//! neither true nor false but [`Truth::Maybe`].

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

/// Three-valued truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Truth {
    /// False.
    No,
    /// Not decided by the known facts.
    Maybe,
    /// True.
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

/// The result of the Identification Protocol for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ident {
    /// The client's host was not asked.
    NotAsked,
    /// The host named this user, for SOCKS 4 the same as USERID.
    Proved(User),
    /// There was no answer, or it proves nothing.
    Unproved,
    /// The host named another user than USERID.
    Different,
}

impl Ident {
    /// The result of `answer` for a client of `version` with this `userid`, which only SOCKS 4 has.
    /// `users` has the groups.
    #[must_use]
    pub fn of_answer(
        users: Option<&Users>,
        version: Version,
        userid: &[u8],
        answer: &[u8],
    ) -> Self {
        // An expired account proves nothing.
        let Some(user) = Self::user(users, answer) else { return Self::Unproved };
        // An empty USERID is nobody's name.
        if version != Version::V5 && (userid.is_empty() || userid != answer) {
            return Self::Different;
        }
        Self::Proved(user)
    }

    /// The user that the client's host calls `name`; `None` if the account has expired.
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
    /// Some public address that no block or list contains.
    SomePublic,
    /// This one.
    Known(IpAddr),
}

/// The facts known of a destination.
#[derive(Clone, Copy, Debug)]
pub struct DstFacts<'a> {
    /// The requested name, if it is one.
    pub name: Option<&'a [u8]>,
    /// The requested address, or one of the name's.
    pub ip: DstIp,
    /// The requested port.
    pub port: u16,
}

/// The facts known of a request.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The client's address, if it has one.
    pub client: Option<IpAddr>,
    /// The version of the protocol.
    pub version: Version,
    /// The command, once known.
    pub command: Option<Command>,
    /// The user; `None` stands for a user whose name is not known yet.
    pub user: Option<&'a User>,
    /// The answer of the client's host.
    pub ident: &'a Ident,
    /// The destination, once known.
    pub dst: Option<DstFacts<'a>>,
}

/// The file and the line of a rule. Display is for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRef {
    /// The file, or `--rule` or `default`.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: usize,
}

impl Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", Escaped(self.file.as_bytes()), self.line)
    }
}

/// The list of a condition: true if one of its items is, or none if it is negated.
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
    /// The name in rules: ASCII letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// The entries.
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
    /// In `from`, every client with an address; in `to`, every public address.
    Any,
    /// In `from` only: clients without an address.
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

    /// Whether the address matches. An IPv6 address that hides an IPv4 address matches as either;
    /// with `guarded` only as itself, and not if it hides an internal address that does not match.
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

    /// Whether the destination matches. With `guarded`, neither a name nor an address matches that
    /// leads to an internal address in disguise.
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
    /// Every user with a proved name.
    Any,
    /// Every client without one.
    None,
    /// The user of this name.
    Name(Vec<u8>),
    /// The users in this group of the users file.
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

/// How much a rule logs of its sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logging {
    /// Nothing.
    No,
    /// Requests and connections, too.
    Verbose,
}

/// Settings of the sessions that a rule admits; `log` also applies to those that it denies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The most sessions at once.
    pub max_sessions: Option<NonZeroU64>,
    /// The most sessions at once of one client.
    pub max_per_client: Option<NonZeroU64>,
    /// Octets per second of one session, each way.
    pub rate: Option<NonZeroU64>,
    /// Octets per second of all sessions of one user together, each way.
    pub rate_user: Option<NonZeroU64>,
    /// How long a session may be idle; zero is no limit.
    pub idle: Option<Duration>,
    /// The source addresses, at most one of each family.
    pub source: Vec<IpAddr>,
    /// How much to log.
    pub log: Option<Logging>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its file and line.
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
    /// `to`. Without it an allow rule matches `any`, a deny rule `all`.
    pub to: Option<AnyOf<Pattern>>,
    /// `port`.
    pub port: Option<AnyOf<RangeInclusive<u16>>>,
    /// Settings of its sessions.
    pub settings: Settings,
}

/// A kind of condition.
pub struct Condition {
    /// Its keyword.
    pub keyword: &'static str,
    /// Tests the condition of a rule.
    pub test: fn(&Rule, &Facts<'_>) -> Truth,
}

/// The conditions, in the order in which they are written and tested.
pub const CONDITIONS: [Condition; 7] = [
    Condition { keyword: "version", test: Rule::test_version },
    Condition { keyword: "command", test: Rule::test_command },
    Condition { keyword: "from", test: Rule::test_from },
    Condition { keyword: "user", test: Rule::test_user },
    Condition { keyword: "ident", test: Rule::test_ident },
    Condition { keyword: "to", test: Rule::test_to },
    Condition { keyword: "port", test: Rule::test_port },
];

/// Tests a condition; one that is absent is true.
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

    /// Whether all its conditions are true.
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

    /// Whether it depends on the authenticated user.
    #[must_use]
    pub fn depends_on_user(&self) -> bool {
        !self.ident && self.user.is_some()
    }

    /// Whether it is useless without a users file.
    #[must_use]
    pub fn needs_users(&self) -> bool {
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

    /// A client without an address matches only `unix`.
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
            // The answer may prove nothing, which matches a deny rule.
            (true, Ident::NotAsked) if !self.allow => return Truth::Maybe,
            (true, Ident::NotAsked) => None,
            // Fails closed: test_ident is false for an allow rule.
            (true, Ident::Unproved | Ident::Different) => return Truth::Yes,
        };
        let Some(user) = user else {
            return condition.test(|who| match who {
                UserPattern::Any => Truth::Yes,
                UserPattern::None => Truth::No,
                UserPattern::Name(_) | UserPattern::Group(_) => Truth::Maybe,
            });
        };
        // A client without a name is not allowed for not having a certain one.
        let about_all = |item: &UserPattern| matches!(item, UserPattern::Any | UserPattern::None);
        if condition.negated && user.name().is_none() && !condition.items.iter().any(about_all) {
            return (!self.allow).into();
        }
        condition.test(|who| who.is(user).into())
    }

    /// A deny rule with `ident` also matches if IDENT proves nothing: otherwise silence would avoid
    /// the rule.
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
        // Without a destination, any name and any address is possible.
        let Some(dst) = facts.dst else {
            let all = |item: &Pattern| *item == Pattern::Set(Set::All);
            let everywhere = !condition.negated && condition.items.iter().any(all);
            return if everywhere { Truth::Yes } else { Truth::Maybe };
        };
        // A destination that is allowed by this condition has to be named by it.
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

    /// Up to five random rules, of words that often match.
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
