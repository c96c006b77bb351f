//! Decides whether a request is allowed: one flat list of rules, of which the first that matches
//! decides. Pure: nothing is read, sent or resolved here.
//!
//! A name is judged as a name, then each address that it resolves to is judged as well. The meaning
//! of one rule is in [`rules`], the syntax in [`parse`].
//!
//! | When | Asked by | Question | Known |
//! |---|---|---|---|
//! | greeting | session | [`Policy::methods`]: which methods may the client choose? | client address |
//! | request | session | [`Policy::needs_ident`]: does the verdict depend on IDENT? | + user, command, destination |
//! | log line of the request | session | [`Policy::sure_rule`]: which rule is certain to decide? | + IDENT |
//! | before a look-up, an association, a BIND for any peer | session, commands, datagrams | [`Policy::may_allow`]: can it still be allowed? | the same |
//! | each address | commands, datagrams | [`Policy::allows`]: is it allowed? | + address |
//! | reload | live sessions | [`Policy::renewed`], then one of the last two | all |

pub mod explain;
pub mod list;
pub mod nets;
pub mod parse;
mod print;
pub mod rules;
mod words;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use crate::auth::users::Users;
use crate::auth::{Checker, Proof, User};
use crate::policy::nets::{is_nowhere, is_special};
use crate::policy::parse::Loaded;
use crate::policy::rules::{DstFacts, DstIp, Facts, Ident, Rule, RuleRef, Truth};
use crate::wire::socks5::Method;
use crate::wire::{Command, Destination, Version};

/// The rules that apply if none are given: without users, clients of this host and its site are
/// served; with users, only users are. Internal addresses are out of reach.
const DEFAULT: &str = "allow from loopback,private,linklocal to any";
const DEFAULT_WITH_USERS: &str = "allow user any to any";

/// The client and its request, without the destination.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The client's address; a client of a UNIX socket may have none.
    pub client: Option<IpAddr>,
    /// The authenticated user.
    pub user: User,
    /// The answer of the client's host.
    pub ident: Ident,
    /// The version of the protocol.
    pub version: Version,
    /// The command of the request.
    pub command: Command,
}

/// The reason for a denial; Display is for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// This rule denies it.
    Rule(Arc<Rule>),
    /// No rule matches.
    NoRule,
    /// No rule matches an internal address, which only a rule that names it can allow.
    Inside,
    /// The rules depend on IDENT, which proved nothing.
    Unproved,
    /// The rules depend on IDENT, which named another user than USERID.
    Different,
    /// The address is in 0.0.0.0/8 or is `::`, which are no destinations.
    Nowhere,
    /// The address and port are those of this server.
    LeadsBack,
}

impl Denial {
    /// The rule that denies, if there is one.
    #[must_use]
    pub fn rule(&self) -> Option<&Rule> {
        match self {
            Self::Rule(rule) => Some(rule),
            _ => None,
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rule(_) => "denied by a rule",
            Self::NoRule => "no rule allows this",
            Self::Inside => "internal address not named by any rule",
            Self::Unproved => "IDENT proves nothing",
            Self::Different => "IDENT names another user",
            Self::Nowhere => "not the address of a host",
            Self::LeadsBack => "would connect back to this server",
        })
    }
}

/// The rule that allows a request, or the reason for its denial.
pub type Verdict<'a> = Result<&'a Arc<Rule>, Denial>;

/// How to count a rule that depends on unknown facts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unknown {
    /// As a match if it is an allow rule: the facts may be known later.
    Allows,
    /// As a match if it is a deny rule: the facts will not be known later. An IDENT that was not
    /// asked, for instance, is no reason to allow anything.
    Denies,
}

/// The methods of version 5 that a client may choose, best first. The list is empty if no request
/// of the client could be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Methods(Vec<Method>);

impl Methods {
    /// Lists the method that proves no name, if it is acceptable, and the methods in `named`, which
    /// prove one, best first. The latter are preferred only if a name `matters`: otherwise a client
    /// that offers both would send a password for nothing.
    fn new(without_name: Option<Method>, named: Vec<Method>, matters: bool) -> Self {
        let mut methods = named;
        let last = if matters { methods.len() } else { 0 };
        methods.splice(last..last, without_name);
        Self(methods)
    }

    /// Whether no method is acceptable.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All methods, best first.
    pub fn iter(&self) -> impl Iterator<Item = Method> {
        self.0.iter().copied()
    }

    /// Chooses the best of the methods that a client offers (RFC 1928 section 3), or `None` if none
    /// of them is acceptable.
    #[must_use]
    pub fn select(&self, offered: &[Method]) -> Option<Method> {
        self.iter().find(|method| offered.contains(method))
    }
}

/// The rules and the users: everything that a reload replaces.
pub struct Policy {
    rules: Vec<Arc<Rule>>,
    /// The users file, if there is one.
    pub users: Option<Users>,
    /// The files that the rules were read from: included files and lists, too.
    pub files: Vec<PathBuf>,
}

impl Policy {
    /// Loads the rules of `texts`, followed by those of the file `rules`, and the users file
    /// `users`. With neither texts nor a file the built-in rules apply.
    ///
    /// # Errors
    /// Everything that is wrong with any of them, one message each.
    pub fn load(
        texts: &[String],
        rules: Option<&Path>,
        users: Option<&Path>,
    ) -> Result<Self, Vec<String>> {
        let users = users.map(Users::load).transpose();
        let loaded = if texts.is_empty() && rules.is_none() {
            let default = if matches!(users, Ok(None)) { DEFAULT } else { DEFAULT_WITH_USERS };
            parse::builtin("default", default).map(|rules| Loaded { rules, files: Vec::new() })
        } else {
            parse::load(texts, rules)
        };
        match (loaded, users) {
            (Ok(Loaded { rules, files }), Ok(users)) => {
                let needs: Vec<&Rule> = rules.iter().filter(|rule| rule.needs_users()).collect();
                if users.is_none() && !needs.is_empty() {
                    let lines = needs.iter().map(|rule| {
                        let RuleRef { file, line } = &rule.place;
                        format!(
                            "{file}:{line}: a rule with user needs --users, or ident and no group"
                        )
                    });
                    return Err(lines.collect());
                }
                Ok(Self { rules: rules.into_iter().map(Arc::new).collect(), users, files })
            }
            (rules, users) => {
                let (mut errors, more) = (rules.err().unwrap_or_default(), users.err());
                errors.extend(more.unwrap_or_default());
                Err(errors)
            }
        }
    }

    /// The number of rules.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are no rules, so that everything is denied.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The checker of passwords, if there is one.
    #[must_use]
    pub fn checker(&self) -> Option<&dyn Checker> {
        Some(self.users.as_ref()?)
    }

    /// The rules that match or may match, up to the first that certainly does.
    fn may_decide(&self, facts: &Facts<'_>) -> impl Iterator<Item = (&Arc<Rule>, Truth)> {
        let mut decided = false;
        self.rules
            .iter()
            .map_while(move |rule| {
                let truth = (!decided).then(|| rule.matches(facts))?;
                decided = truth == Truth::Yes;
                Some((rule, truth))
            })
            .filter(|(_, truth)| *truth != Truth::No)
    }

    /// The verdict of the first rule that matches, where `unknown` says how a rule counts that only
    /// may match.
    fn verdict(&self, facts: &Facts<'_>, unknown: Unknown) -> Verdict<'_> {
        let decides = |&(rule, truth): &(&Arc<Rule>, Truth)| {
            truth == Truth::Yes || rule.allow == (unknown == Unknown::Allows)
        };
        match self.may_decide(facts).find(decides) {
            Some((rule, _)) if rule.allow => Ok(rule),
            Some((rule, _)) => Err(denied(Some(rule), facts.ident)),
            None => {
                let ip = facts.dst.map(|dst| dst.ip);
                let inside = matches!(ip, Some(DstIp::Known(ip)) if is_special(ip));
                Err(match denied(None, facts.ident) {
                    Denial::NoRule if inside => Denial::Inside,
                    denial => denial,
                })
            }
        }
    }

    /// The same user with the groups of this policy, or `None` if the proof is no longer valid: the
    /// password has changed, or the account is locked, expired or gone.
    #[must_use]
    pub fn renewed(&self, user: &User) -> Option<User> {
        match (user.name(), user.proof()) {
            (None, _) | (_, Proof::Nothing) => Some(user.clone()),
            (Some(name), Proof::Password(_)) => {
                let now = self.checker()?.user(name)?;
                (now.proof() == user.proof()).then_some(now)
            }
            (Some(name), Proof::Ident) => Ident::user(self.users.as_ref(), name),
        }
    }

    /// The methods that a client of version 5 may choose.
    #[must_use]
    pub fn methods(&self, client: Option<IpAddr>) -> Methods {
        let unknown = Facts {
            client,
            version: Version::V5,
            command: None,
            user: None,
            ident: &Ident::NotAsked,
            dst: None,
        };
        let nobody = User::anonymous();
        let anonymous = Facts { user: Some(&nobody), ..unknown };
        let without_name =
            self.verdict(&anonymous, Unknown::Allows).is_ok().then_some(Method::NONE);
        let mut named = Vec::new();
        if self.checker().is_some() && self.verdict(&unknown, Unknown::Allows).is_ok() {
            // GSS-API, once it is served, comes after this: a client offers a password only if it
            // was given one.
            named.push(Method::USERPASS);
        }
        let mut rules = self.may_decide(&unknown).chain(self.may_decide(&anonymous));
        let matters = rules.any(|(rule, _)| rule.depends_on_user());
        Methods::new(without_name, named, matters)
    }

    /// Whether the verdict on `dst` may depend on IDENT.
    #[must_use]
    pub fn needs_ident(&self, asker: &Asker, dst: Option<&Destination>) -> bool {
        self.may_decide(&asker.facts(dst.map(destination))).any(|(rule, _)| rule.ident)
    }

    /// The rule that is certain to decide on `dst`, if no rule before it may match.
    #[must_use]
    pub fn sure_rule(&self, asker: &Asker, dst: Option<&Destination>) -> Option<&Rule> {
        let facts = asker.facts(dst.map(destination));
        let first = self.may_decide(&facts).next();
        first.filter(|(_, truth)| *truth == Truth::Yes).map(|(rule, _)| &**rule)
    }

    /// The first rule that may allow some address that `dst` stands for; without `dst`, some
    /// destination at all. A name that this denies need not be resolved.
    ///
    /// # Errors
    /// The reason for the denial.
    pub fn may_allow(&self, asker: &Asker, dst: Option<&Destination>) -> Verdict<'_> {
        self.verdict(&asker.facts(dst.map(destination)), Unknown::Allows)
    }

    /// The rule that allows the address `ip`, which was requested as `dst`.
    ///
    /// # Errors
    /// The reason for the denial.
    pub fn allows(&self, asker: &Asker, dst: &Destination, ip: IpAddr) -> Verdict<'_> {
        if is_nowhere(ip) {
            return Err(Denial::Nowhere);
        }
        let dst = DstFacts { ip: DstIp::Known(ip), ..destination(dst) };
        self.verdict(&asker.facts(Some(dst)), Unknown::Denies)
    }
}

impl Asker {
    /// The user of a session that `rule` admits: the authenticated one, or else the one of IDENT if
    /// the rule asks for it.
    #[must_use]
    pub fn user_for(&self, rule: &Rule) -> &User {
        match &self.ident {
            Ident::Proved(user) if rule.ident && self.user.name().is_none() => user,
            _ => &self.user,
        }
    }

    fn facts<'a>(&'a self, dst: Option<DstFacts<'a>>) -> Facts<'a> {
        Facts {
            client: self.client,
            version: self.version,
            command: Some(self.command),
            user: Some(&self.user),
            ident: &self.ident,
            dst,
        }
    }
}

/// The facts that `dst` by itself provides.
fn destination(dst: &Destination) -> DstFacts<'_> {
    match dst {
        Destination::Name(name, port) => {
            DstFacts { name: Some(name), ip: DstIp::Unknown, port: *port }
        }
        // Any peer of a BIND.
        Destination::Address(addr) if addr.ip().is_unspecified() => {
            DstFacts { name: None, ip: DstIp::Unknown, port: addr.port() }
        }
        Destination::Address(addr) => {
            DstFacts { name: None, ip: DstIp::Known(addr.ip()), port: addr.port() }
        }
    }
}

/// The reason for a denial; an IDENT that failed is more useful to know than the rule.
fn denied(rule: Option<&Arc<Rule>>, ident: &Ident) -> Denial {
    match (ident, rule) {
        (Ident::Unproved, _) => Denial::Unproved,
        (Ident::Different, _) => Denial::Different,
        (_, Some(rule)) => Denial::Rule(Arc::clone(rule)),
        (_, None) => Denial::NoRule,
    }
}

/// The policy in force.
pub struct Current(RwLock<Arc<Policy>>);

impl Current {
    /// Puts the first policy in force.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self(RwLock::new(Arc::new(policy)))
    }

    /// The policy in force now.
    #[must_use]
    pub fn get(&self) -> Arc<Policy> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another policy in force.
    pub fn set(&self, policy: Policy) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rules::tests::random_rules;
    use crate::wire::testing::Random;

    fn policy(rules: &str) -> Policy {
        let rules = parse::builtin("test", rules).unwrap();
        Policy { rules: rules.into_iter().map(Arc::new).collect(), users: None, files: vec![] }
    }

    fn inside() -> Option<IpAddr> {
        Some([10, 0, 0, 5].into())
    }

    fn alice() -> User {
        User::proved(b"alice", Arc::new(["staff".to_owned()]), Proof::Password(1))
    }

    /// Alice at 10.0.0.5, with version 5.
    fn asker(command: Command) -> Asker {
        let ident = Ident::NotAsked;
        Asker { client: inside(), user: alice(), ident, version: Version::V5, command }
    }

    fn name(name: &str, port: u16) -> Destination {
        Destination::Name(name.as_bytes().to_vec(), port)
    }

    fn address(text: &str) -> (Destination, IpAddr) {
        let addr: std::net::SocketAddr = text.parse().unwrap();
        (Destination::from_ip(addr.ip(), addr.port()), addr.ip().to_canonical())
    }

    #[test]
    fn a_rule_matches_where_both_of_any_two_conditions_hold_and_nowhere_else() {
        // Each condition in a form that matches and in one that does not.
        let conditions = [
            ["version 4a,5", "version !5"],
            ["command connect,udp", "command bind"],
            ["from 192.0.2.1,10.0.0.0/8", "from !10.0.0.1-10.0.0.9"],
            ["user bob,@staff", "user !alice"],
            ["ident", "ident user none"],
            ["to .example.org", "to other.example.org"],
            ["port 80,400-500", "port !443"],
        ];
        let dst = name("www.example.org", 443);
        let mut asker = asker(Command::CONNECT);
        asker.ident = Ident::Proved(alice());
        let allowed = |rules: &str| {
            let policy = policy(rules);
            policy.allows(&asker, &dst, [93, 184, 215, 14].into()).is_ok()
        };
        for (index, one) in conditions.iter().enumerate() {
            for other in conditions.iter().skip(index + 1) {
                for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let (one, other) = (one[a], other[b]);
                    if one.contains("user") && other.contains("user") {
                        continue;
                    }
                    let both = (a, b) == (0, 0);
                    for pair in [format!("{one} {other}"), format!("{other} {one}")] {
                        assert_eq!(allowed(&format!("allow {pair}")), both, "allow {pair}");
                        let denies = format!("deny {pair}\nallow to all");
                        assert_eq!(allowed(&denies), !both, "{denies}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_first_match_decides_and_no_match_denies() {
        let (dst, ip) = address("93.184.215.14:80");
        let asker = asker(Command::CONNECT);
        for (rules, allowed) in [
            ("", false),
            ("allow to all", true),
            ("deny to all\nallow to all", false),
            ("allow to all\ndeny to all", true),
            ("allow port 81\ndeny port 82\nallow port 80\ndeny", true),
            ("deny\nallow", false),
            ("allow", true),
        ] {
            assert_eq!(policy(rules).allows(&asker, &dst, ip).is_ok(), allowed, "{rules}");
        }
    }

    #[test]
    fn sec_01_to_06_an_internal_address_is_reached_only_if_a_rule_names_it() {
        let asker = asker(Command::CONNECT);
        for (rules, dst, allowed) in [
            ("allow", "8.8.8.8:80", true),
            ("allow", "127.0.0.1:80", false),
            ("allow", "10.1.2.3:80", false),
            ("allow to any", "[::1]:80", false),
            ("allow to any", "[::ffff:10.0.0.1]:80", false),
            ("allow to any", "[64:ff9b::7f00:1]:80", false),
            ("allow to any", "[2606:4700::1]:80", true),
            ("allow to public", "10.1.2.3:80", false),
            ("allow to !8.8.8.8", "8.8.4.4:80", true),
            ("allow to !8.8.8.8", "8.8.8.8:80", false),
            ("allow to !8.8.8.8", "[64:ff9b::808:808]:80", false),
            ("allow to !8.8.8.8", "10.1.2.3:80", false),
            ("allow to all", "127.0.0.1:80", true),
            ("allow to 10.0.0.0/8", "10.1.2.3:80", true),
            ("allow to 10.0.0.0/8", "[::ffff:10.1.2.3]:80", true),
            // An address that hides an internal one needs a rule for both.
            ("allow to 10.0.0.0/8", "[64:ff9b::a01:203]:80", false),
            ("allow to 64:ff9b::/96", "[64:ff9b::a01:203]:80", false),
            ("allow to 64:ff9b::/96", "[64:ff9b::808:808]:80", true),
            ("allow to private", "[64:ff9b::a01:203]:80", true),
            ("deny to 10.0.0.0/8\nallow to all", "[64:ff9b::a01:203]:80", false),
            ("deny to 10.0.0.0/8\nallow to all", "[2002:a01:203::]:80", false),
            ("deny to any\nallow to all", "10.1.2.3:80", true),
            ("deny to special\nallow to all", "10.1.2.3:80", false),
            ("deny to !10.0.0.0/8\nallow to all", "10.1.2.3:80", true),
            ("deny to !10.0.0.0/8\nallow to all", "8.8.8.8:80", false),
            ("deny to !10.0.0.0/8\nallow to all", "[2002:a01:203::]:80", false),
            // These are never destinations.
            ("allow to all", "0.0.0.0:80", false),
            ("allow to all", "0.0.0.7:80", false),
            ("allow to all", "[::]:80", false),
            ("allow to 0.0.0.0/0", "0.1.2.3:80", false),
        ] {
            let (dst, ip) = address(dst);
            let may = policy(rules).allows(&asker, &dst, ip).is_ok();
            assert_eq!(may, allowed, "{rules}: {dst:?}");
        }
    }

    #[test]
    fn sec_04_a_name_is_judged_by_itself_and_with_its_address() {
        let asker = asker(Command::CONNECT);
        // Rules, name, address; whether the name is resolved, whether the address is allowed.
        for (rules, asked, ip, resolved, allowed) in [
            ("allow to any", "a.example", "8.8.8.8", true, true),
            ("allow to any", "a.example", "10.0.0.1", true, false),
            ("allow to a.example", "a.example", "8.8.8.8", true, true),
            ("allow to a.example", "A.Example.", "8.8.8.8", true, true),
            ("allow to a.example", "b.a.example", "8.8.8.8", false, false),
            ("allow to .a.example", "b.a.example", "8.8.8.8", true, true),
            ("allow to .a.example", "ba.example", "8.8.8.8", false, false),
            // DNS rebinding: the name resolves to an internal address that no rule names.
            ("allow to a.example", "a.example", "10.0.0.1", true, false),
            ("allow to a.example,10.0.0.1", "a.example", "10.0.0.1", true, true),
            ("allow to a.example\nallow to private", "a.example", "10.0.0.1", true, true),
            ("allow to !a.example", "a.example", "8.8.8.8", false, false),
            ("allow to !a.example", "b.example", "8.8.8.8", true, true),
            ("allow to !a.example", "b.example", "10.0.0.1", true, false),
            ("deny to a.example\nallow to all", "a.example", "8.8.8.8", false, false),
            ("deny to !a.example\nallow to all", "b.example", "8.8.8.8", false, false),
            ("deny to !a.example\nallow to all", "a.example", "8.8.8.8", true, true),
            ("deny to !a.example\nallow to all", "a.example", "10.0.0.1", true, false),
            ("deny to 8.8.8.8\nallow to all", "a.example", "8.8.8.8", true, false),
            ("allow to 8.8.8.8", "a.example", "8.8.8.8", true, true),
            ("allow port 81", "a.example", "8.8.8.8", false, false),
            ("deny", "a.example", "8.8.8.8", false, false),
        ] {
            let (policy, dst) = (policy(rules), name(asked, 80));
            assert_eq!(policy.may_allow(&asker, Some(&dst)).is_ok(), resolved, "{rules}: {asked}");
            let verdict = policy.allows(&asker, &dst, ip.parse().unwrap());
            assert_eq!(verdict.is_ok(), allowed, "{rules}: {asked} at {ip}");
        }
    }

    #[test]
    fn if_an_address_is_allowed_its_name_is_resolved_and_its_ident_is_asked() {
        let mut random = Random::seeded();
        let names: [&str; 3] = ["a.example", "b.a.example", "c.example"];
        let ips = ["8.8.8.8", "10.0.0.1", "127.0.0.1", "2606:4700::1", "64:ff9b::a00:1"];
        let mut allowed = 0;
        for _ in 0..20_000 {
            let policy = Policy { rules: random_rules(&mut random), users: None, files: vec![] };
            let command = *random.pick(&[Command::CONNECT, Command::BIND, Command::UDP_ASSOCIATE]);
            let mut asker = asker(command);
            asker.version = *random.pick(&[Version::V4, Version::V4a, Version::V5]);
            asker.user = random.pick(&[User::anonymous(), alice()]).clone();
            let asked = *random.pick(&names);
            let dst = name(asked, *random.pick(&[80, 443]));
            let ip: IpAddr = random.pick(&ips).parse().unwrap();
            let asked = Some(&dst).filter(|_| command != Command::UDP_ASSOCIATE);
            let wants = policy.needs_ident(&asker, asked);
            if wants {
                asker.ident = random.pick(&[Ident::Unproved, Ident::Proved(alice())]).clone();
            }
            if let Ok(rule) = policy.allows(&asker, &dst, ip) {
                allowed += 1;
                assert!(policy.may_allow(&asker, asked).is_ok(), "{:?}", policy.rules);
                assert!(!rule.ident || wants, "{:?}", policy.rules);
            }
        }
        assert!(allowed > 2_000, "{allowed}");
    }

    #[test]
    fn cve_2024_54662_methods_follow_from_the_rules_a_client_can_reach() {
        let methods = |rules: &str| {
            let users = Users::parse(b"alice:!\n").ok();
            Policy { users, ..policy(rules) }.methods(inside())
        };
        const NONE: Method = Method::NONE;
        const PASSWORD: Method = Method::USERPASS;
        // Rules; the choice if the client offers 00, 02, both.
        for (rules, none, password, both) in [
            ("", None, None, None),
            ("deny", None, None, None),
            ("allow from 192.0.2.1", None, None, None),
            ("allow version 4", None, None, None),
            ("deny from 10.0.0.0/8\nallow", None, None, None),
            // No rule needs a password: 00. A client that offers only 02 may use it.
            ("allow", Some(NONE), Some(PASSWORD), Some(NONE)),
            ("allow user none", Some(NONE), None, Some(NONE)),
            ("allow user none,alice", Some(NONE), Some(PASSWORD), Some(PASSWORD)),
            ("deny user none port 25\nallow", Some(NONE), Some(PASSWORD), Some(PASSWORD)),
            ("allow port 80\nallow user !none", Some(NONE), Some(PASSWORD), Some(PASSWORD)),
            ("allow\nallow user alice", Some(NONE), Some(PASSWORD), Some(PASSWORD)),
            ("allow to all\nallow user alice", Some(NONE), Some(PASSWORD), Some(NONE)),
            // A rule that some request of this client may match needs a password.
            ("allow user any", None, Some(PASSWORD), Some(PASSWORD)),
            ("allow user !alice", None, Some(PASSWORD), Some(PASSWORD)),
            ("allow user @staff port 80", None, Some(PASSWORD), Some(PASSWORD)),
            ("allow user alice\nallow to any", Some(NONE), Some(PASSWORD), Some(PASSWORD)),
            ("allow user alice from 192.0.2.1\nallow", Some(NONE), Some(PASSWORD), Some(NONE)),
            ("allow user alice version 4\nallow", Some(NONE), Some(PASSWORD), Some(NONE)),
            ("deny user none\nallow", None, Some(PASSWORD), Some(PASSWORD)),
            ("deny user !@staff\nallow", None, Some(PASSWORD), Some(PASSWORD)),
            // A name that IDENT proves needs no password.
            ("allow ident user alice", Some(NONE), Some(PASSWORD), Some(NONE)),
        ] {
            let methods = methods(rules);
            assert_eq!(methods.select(&[NONE]), none, "{rules}");
            assert_eq!(methods.select(&[PASSWORD]), password, "{rules}");
            assert_eq!(methods.select(&[NONE, PASSWORD]), both, "{rules}");
            assert_eq!(methods.select(&[PASSWORD, Method::GSSAPI, NONE]), both, "{rules}");
            for useless in [&[][..], &[Method::GSSAPI], &[Method(0xff)]] {
                assert_eq!(methods.select(useless), None, "V5-04, V5-08, V5-40: {rules}");
            }
        }
    }

    #[test]
    fn methods_are_in_order_of_preference() {
        const NONE: Method = Method::NONE;
        const NAMED: [Method; 2] = [Method::USERPASS, Method::GSSAPI];
        for (without_name, named, matters, expected) in [
            (Some(NONE), &NAMED[..], false, &[0, 2, 1][..]),
            (Some(NONE), &NAMED[..], true, &[2, 1, 0]),
            (Some(NONE), &NAMED[..1], true, &[2, 0]),
            (None, &NAMED[..], false, &[2, 1]),
            (Some(NONE), &[], true, &[0]),
            (None, &[], true, &[]),
        ] {
            let methods = Methods::new(without_name, named.to_vec(), matters);
            assert_eq!(methods.iter().map(|method| method.0).collect::<Vec<_>>(), expected);
            assert_eq!(methods.is_empty(), expected.is_empty());
            assert_eq!(methods.select(&[NONE, NAMED[1], NAMED[0]]), methods.iter().next());
        }
    }

    #[test]
    fn without_users_no_method_02_is_chosen() {
        let methods = policy("allow").methods(inside());
        assert_eq!(methods.select(&[Method::USERPASS]), None);
    }

    #[test]
    fn auth_11_sec_14_socks_4_matches_no_rule_for_users_without_ident() {
        let (dst, ip) = address("93.184.215.14:80");
        let ident = |answer: &[u8]| Ident::of_answer(None, Version::V4, b"alice", answer);
        for (rules, ident, allowed) in [
            ("allow user any", Ident::NotAsked, false),
            ("allow user alice", Ident::NotAsked, false),
            ("allow user !bob", Ident::NotAsked, false),
            ("allow user none", Ident::NotAsked, true),
            ("allow user !any", Ident::NotAsked, true),
            ("deny user none\nallow", Ident::NotAsked, false),
            ("deny user alice\nallow", Ident::NotAsked, true),
            ("deny user !alice\nallow", Ident::NotAsked, false),
            ("allow ident", ident(b"alice"), true),
            ("allow ident", ident(b"bob"), false),
            ("allow ident", Ident::Unproved, false),
            ("allow ident user alice", ident(b"alice"), true),
            ("allow ident user bob", ident(b"alice"), false),
            // Neither silence nor another user's name avoids a deny rule.
            ("deny ident user bob\nallow", ident(b"alice"), true),
            ("deny ident user alice\nallow", ident(b"alice"), false),
            ("deny ident user bob\nallow", Ident::Unproved, false),
            ("deny ident user bob\nallow", ident(b"bob"), false),
            ("deny ident user bob\nallow", Ident::NotAsked, false),
            ("deny ident user none\nallow", Ident::NotAsked, false),
            ("deny ident user none\nallow", Ident::Unproved, false),
            ("deny ident user none\nallow", ident(b"alice"), true),
            ("deny ident user !any\nallow", Ident::NotAsked, false),
        ] {
            let (user, version) = (User::anonymous(), Version::V4);
            let asker = Asker { user, ident, version, ..asker(Command::CONNECT) };
            let may = policy(rules).allows(&asker, &dst, ip).is_ok();
            assert_eq!(may, allowed, "{rules} {:?}", asker.ident);
        }
    }

    #[test]
    fn a_user_is_renewed_while_the_proof_holds() {
        let with_users = |text: &str| {
            let users = Users::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{e:?}"));
            Policy { users: Some(users), ..policy("allow") }
        };
        let digest = "0123456789012345678901234567890123456789012";
        let (first, other) = (format!("$5$salt${digest}"), format!("$5$other${digest}"));
        let before = with_users(&format!("alice:{first}::staff\n"));
        let password = before.checker().unwrap().user(b"alice").unwrap();
        let ident = User::proved(b"alice", Arc::default(), Proof::Ident);
        for (line, by_password, by_ident) in [
            (format!("alice:{first}::ops"), Some("ops"), Some("ops")),
            (format!("alice:{other}::ops"), None, Some("ops")),
            ("alice:!::ops".to_owned(), None, Some("ops")),
            (format!("alice:{first}:2020-01-01:ops"), None, None),
            ("bob:!".to_owned(), None, Some("")),
        ] {
            let policy = with_users(&line);
            for (user, group) in [(&password, by_password), (&ident, by_ident)] {
                let renewed = policy.renewed(user);
                assert_eq!(renewed.is_some(), group.is_some(), "{line} {user:?}");
                let Some((user, group)) = renewed.zip(group) else { continue };
                assert_eq!(user.name(), Some(&b"alice"[..]));
                assert!(group.is_empty() || user.is_in(group), "{line} {user:?}");
            }
            assert_eq!(policy.renewed(&User::anonymous()), Some(User::anonymous()));
        }
        let without = policy("allow");
        assert_eq!(without.renewed(&password), None);
        assert_eq!(without.renewed(&ident), Some(ident));
    }

    #[test]
    fn ident_15_an_empty_userid_is_nobodys() {
        for (userid, answer) in [(&b""[..], &b"alice"[..]), (b"", b""), (b"Alice", b"alice")] {
            let ident = Ident::of_answer(None, Version::V4, userid, answer);
            assert_eq!(ident, Ident::Different);
        }
    }

    #[test]
    fn ident_01_is_asked_for_where_a_rule_that_could_match_needs_it_and_nowhere_else() {
        let asker = asker(Command::CONNECT);
        for (rules, wanted) in [
            ("allow ident", true),
            ("allow", false),
            ("allow\nallow ident", true),
            ("allow to all\nallow ident", false),
            ("deny\nallow ident", false),
            ("allow ident from 192.0.2.1", false),
            ("allow ident version 4", false),
            ("allow ident port 81", false),
            ("allow ident to b.example", false),
            ("allow ident to 8.8.8.8", true),
            ("allow ident user bob", true),
            ("deny ident user bob\nallow", true),
            ("deny ident user none\nallow", true),
            ("deny ident user !any\nallow", true),
        ] {
            let wants = policy(rules).needs_ident(&asker, Some(&name("a.example", 80)));
            assert_eq!(wants, wanted, "{rules}");
        }
        assert!(policy("allow ident port 81").needs_ident(&asker, None));
    }

    #[test]
    fn v4_23_a_bind_is_judged_by_its_dst_and_by_its_peer() {
        let asker = asker(Command::BIND);
        let (any, _) = address("0.0.0.0:21");
        for (rules, admitted, peer, allowed) in [
            ("allow", true, "8.8.8.8", true),
            ("allow", true, "10.0.0.1", false),
            ("allow to all", true, "10.0.0.1", true),
            ("allow to 10.0.0.1", true, "10.0.0.1", true),
            ("allow to 10.0.0.1", true, "10.0.0.2", false),
            ("allow command connect", false, "8.8.8.8", false),
            ("allow port 21", true, "8.8.8.8", true),
            ("allow port 20", false, "8.8.8.8", false),
            ("allow to a.example", false, "8.8.8.8", false),
            ("deny to all\nallow", false, "8.8.8.8", false),
        ] {
            let policy = policy(rules);
            assert_eq!(policy.may_allow(&asker, Some(&any)).is_ok(), admitted, "{rules}");
            let verdict = policy.allows(&asker, &any, peer.parse().unwrap());
            assert_eq!(verdict.is_ok(), allowed, "{rules}: {peer}");
        }
    }

    #[test]
    fn an_association_is_admitted_where_some_datagram_may_be() {
        for (rules, admitted) in [
            ("allow command udp port 53", true),
            ("allow command connect", false),
            ("deny\nallow", false),
            ("deny port 1-52\nallow command udp to 8.8.8.8", true),
            ("", false),
        ] {
            let verdict = policy(rules).may_allow(&asker(Command::UDP_ASSOCIATE), None).is_ok();
            assert_eq!(verdict, admitted, "{rules}");
        }
    }

    #[test]
    fn without_rules_and_users_internal_clients_reach_public_addresses_and_nothing_else() {
        let policy = Policy::load(&[], None, None).ok().unwrap();
        let may = |client: &str, dst: &str| {
            let (dst, ip) = address(dst);
            let (client, user) = (client.parse().ok(), User::anonymous());
            policy.allows(&Asker { client, user, ..asker(Command::CONNECT) }, &dst, ip).is_ok()
        };
        for client in ["127.0.0.1", "::1", "10.1.2.3", "192.168.1.1", "fd00::1", "fe80::1"] {
            assert!(may(client, "8.8.8.8:80") && !may(client, "127.0.0.1:80"), "{client}");
        }
        for client in ["8.8.8.8", "2001:4860::1", "100.64.0.1", "2002:a00:1::1"] {
            assert!(!may(client, "8.8.8.8:80"), "{client}");
        }
    }

    #[test]
    fn a_client_without_an_address_matches_only_from_unix() {
        let (dst, ip) = address("8.8.8.8:80");
        let unix = Asker { client: None, ..asker(Command::CONNECT) };
        for (rules, without, with) in [
            ("allow", true, true),
            ("allow from any", false, true),
            ("allow from all", false, true),
            ("allow from 0.0.0.0/0,::/0", false, true),
            ("allow from !192.0.2.1", false, true),
            ("allow from unix", true, false),
            ("allow from unix,10.0.0.0/8", true, true),
            ("allow from !unix", false, true),
            ("deny from !10.0.0.0/8\nallow", true, true),
        ] {
            let may = |asker| policy(rules).allows(asker, &dst, ip).is_ok();
            assert_eq!((may(&unix), may(&asker(Command::CONNECT))), (without, with), "{rules}");
        }
    }

    #[test]
    fn rules_for_users_without_a_users_file_are_an_error_except_with_ident() {
        let errors = |rules: &str| Policy::load(&[rules.into()], None, None).err();
        for rules in [
            "allow user alice",
            "allow user any",
            "deny user @staff",
            "allow user !none",
            "deny ident user @staff",
        ] {
            let message = "--rule:1: a rule with user needs --users, or ident and no group";
            assert_eq!(errors(rules), Some(vec![message.to_owned()]), "{rules}");
        }
        for rules in ["allow ident user alice", "allow user none", "deny user none"] {
            assert_eq!(errors(rules), None, "{rules}");
        }
    }
}
