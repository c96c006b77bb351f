//! `--explain`: how the rules decide on one request, rule by rule. The network is not used: the
//! query holds everything that a server would learn from it.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::auth::User;
use crate::log::Escaped;
use crate::policy::nets::is_nowhere;
use crate::policy::rules::{CONDITIONS, DstFacts, DstIp, Facts, Ident, Rule, Settings, Truth};
use crate::policy::{Asker, Policy, Unknown, destination};
use crate::wire::socks5::Method;
use crate::wire::{Command, Destination, Version};

/// The form of a query.
pub const FORM: &str = "from=ADDR|unix [user=NAME] [ident=NAME] [version=4|4a|5] \
                        [command=connect|bind|udp] to=HOST:PORT [at=ADDR]";

/// Adds a line to a String, which does not fail.
macro_rules! line {
    ($text:expr, $($word:tt)*) => {{ let _ = writeln!($text, $($word)*); }};
}

/// How a policy decides on a query.
pub struct Explanation {
    /// The steps up to the verdict, in lines.
    pub text: String,
    /// Whether it is allowed.
    pub allowed: bool,
}

/// The value of `from`.
enum Origin {
    Unix,
    Ip(IpAddr),
}

/// A hypothetical request.
#[derive(Debug)]
pub struct Query {
    client: Option<IpAddr>,
    user: Option<String>,
    ident: Option<String>,
    version: Version,
    command: Command,
    dst: Destination,
    at: Option<IpAddr>,
}

impl Query {
    /// Parses words of the form [`FORM`], in any order.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut from, mut user, mut ident, mut dst, mut at) = (None, None, None, None, None);
        let (mut version, mut command) = (None, None);
        for word in text.split_whitespace() {
            let wrong = || format!("'{}': expected {FORM}", word.escape_debug());
            let (key, value) = word.split_once('=').ok_or_else(wrong)?;
            let twice = match key {
                "from" => from.replace(parse_from(value).ok_or_else(wrong)?).is_some(),
                "user" => user.replace(value.to_owned()).is_some(),
                "ident" => ident.replace(value.to_owned()).is_some(),
                "version" => version.replace(parse_version(value).ok_or_else(wrong)?).is_some(),
                "command" => command.replace(parse_command(value).ok_or_else(wrong)?).is_some(),
                "to" => dst.replace(parse_to(value).ok_or_else(wrong)?).is_some(),
                "at" => at.replace(address(value).ok_or_else(wrong)?).is_some(),
                _ => return Err(wrong()),
            };
            if twice {
                return Err(format!("'{}': duplicate {key}", word.escape_debug()));
            }
        }
        let missing = |key: &str| format!("no {key}: expected {FORM}");
        let query = Self {
            client: match from.ok_or_else(|| missing("from"))? {
                Origin::Unix => None,
                Origin::Ip(ip) => Some(ip),
            },
            user,
            ident,
            version: version.unwrap_or(Version::V5),
            command: command.unwrap_or(Command::CONNECT),
            dst: dst.ok_or_else(|| missing("to"))?,
            at,
        };
        let Self { version, command, ref dst, .. } = query;
        let problem = match (version, dst) {
            (Version::V4 | Version::V4a, _) if command == Command::UDP_ASSOCIATE => {
                "command=udp: SOCKS 4 has no such command"
            }
            (Version::V4, Destination::Name(..)) => "version=4: names need version 4a or 5",
            (Version::V4 | Version::V4a, Destination::Address(addr)) if addr.is_ipv6() => {
                "SOCKS 4 has no IPv6 addresses"
            }
            (_, Destination::Address(_)) if at.is_some() && command != Command::BIND => {
                "at: only for a name, or for the peer that comes to a BIND"
            }
            (Version::V4 | Version::V4a, _) if at.is_some_and(|at| at.is_ipv6()) => {
                "SOCKS 4 has no IPv6 addresses"
            }
            _ => return Ok(query),
        };
        Err(problem.into())
    }

    /// Explains how `policy` decides on this request.
    #[must_use]
    pub fn explain(&self, policy: &Policy) -> Explanation {
        let mut text = String::new();
        let verdict = self.judge(policy, &mut text);
        if let Err(why) = &verdict {
            line!(text, "verdict: deny: {why}");
        }
        Explanation { text, allowed: verdict.is_ok() }
    }

    /// Writes a line for each step, and for the verdict if it is to allow.
    ///
    /// # Errors
    /// The reason for a denial.
    fn judge(&self, policy: &Policy, text: &mut String) -> Result<(), String> {
        let asker = self.asker(policy, text)?;
        let dst = self.destination(text)?;
        let facts = asker.facts(Some(dst));
        list_rules(policy, &facts, text);
        let rule = policy.verdict(&facts, Unknown::Denies).map_err(|denial| denial.to_string())?;
        let admitting = self.admitting(policy, &asker, rule);
        line!(text, "verdict: allow");
        if !Arc::ptr_eq(admitting, rule) {
            line!(text, "admitted by: {}", admitting.place);
        }
        let settings = match &admitting.settings {
            none if *none == Settings::default() => " none".into(),
            settings => settings.to_string(),
        };
        line!(text, "settings:{settings}");
        Ok(())
    }

    /// The client and its request, authenticated as a server would do it.
    fn asker(&self, policy: &Policy, text: &mut String) -> Result<Asker, String> {
        let mut asker = Asker {
            client: self.client,
            user: self.authenticate(policy, text)?,
            ident: Ident::NotAsked,
            version: self.version,
            command: self.command,
        };
        if policy.needs_ident(&asker, self.asked()) {
            asker.ident = self.identify(policy);
            match &self.ident {
                Some(answer) => line!(text, "ident: asked, {}", Escaped(answer.as_bytes())),
                None => line!(text, "ident: asked, no answer"),
            }
        }
        Ok(asker)
    }

    /// The destination as known when a session is admitted: an association is admitted before its
    /// first datagram.
    fn asked(&self) -> Option<&Destination> {
        Some(&self.dst).filter(|_| self.command != Command::UDP_ASSOCIATE)
    }

    /// The destination with its address.
    ///
    /// # Errors
    /// Why there is no such destination.
    fn destination(&self, text: &mut String) -> Result<DstFacts<'_>, String> {
        if let (Destination::Address(expected), Some(at)) = (&self.dst, self.at)
            && !self.dst.is_unspecified()
            && at != expected.ip()
        {
            return Err("not the peer that was expected".into());
        }
        let dst = destination(&self.dst);
        let ip = match (self.at, dst.ip) {
            (Some(at), _) => DstIp::Known(at),
            (None, DstIp::Unknown) => {
                line!(text, "at: not given: a public address that is in no rule and no list");
                DstIp::SomePublic
            }
            (None, ip) => ip,
        };
        if matches!(ip, DstIp::Known(ip) if is_nowhere(ip))
            || self.dst.is_unspecified() && self.command != Command::BIND
        {
            return Err("not the address of a host".into());
        }
        Ok(DstFacts { ip, ..dst })
    }

    /// The rule whose settings apply if `rule` decides: an association, or a BIND for any peer, has
    /// been admitted before.
    fn admitting<'p>(
        &self,
        policy: &'p Policy,
        asker: &Asker,
        rule: &'p Arc<Rule>,
    ) -> &'p Arc<Rule> {
        let before = match self.command {
            Command::UDP_ASSOCIATE => true,
            Command::BIND => self.dst.is_unspecified(),
            _ => false,
        };
        if before { policy.may_allow(asker, self.asked()).unwrap_or(rule) } else { rule }
    }

    /// The user that authentication yields.
    ///
    /// # Errors
    /// Why it fails.
    fn authenticate(&self, policy: &Policy, text: &mut String) -> Result<User, String> {
        if self.version != Version::V5 {
            return Ok(User::anonymous());
        }
        let methods = policy.methods(self.client);
        let codes: Vec<_> = methods.iter().map(|method| format!("{:02x}", method.0)).collect();
        let codes = if codes.is_empty() { "none".into() } else { codes.join(" ") };
        line!(text, "methods: {codes}");
        // A client with a password offers both, as curl does.
        let client = [Method::NONE, Method::USERPASS];
        let client = if self.user.is_some() { &client[..] } else { &client[..1] };
        match (methods.select(client), &self.user, policy.checker()) {
            (Some(Method::USERPASS), Some(name), Some(checker)) => {
                let user = checker.user(name.as_bytes());
                user.ok_or_else(|| "the user is unknown, locked or expired".into())
            }
            (Some(_), ..) => Ok(User::anonymous()),
            (None, ..) => Err("no acceptable method".into()),
        }
    }

    /// The result of IDENT.
    fn identify(&self, policy: &Policy) -> Ident {
        let (Some(answer), Some(_)) = (&self.ident, self.client) else { return Ident::Unproved };
        let claimed = self.user.as_deref().unwrap_or_default();
        Ident::of_answer(policy.users.as_ref(), self.version, claimed.as_bytes(), answer.as_bytes())
    }
}

/// Writes a line for each rule, up to the one that is certain to decide.
fn list_rules(policy: &Policy, facts: &Facts<'_>, text: &mut String) {
    for rule in &policy.rules {
        let failing: Vec<&str> = CONDITIONS
            .iter()
            .filter(|condition| (condition.test)(rule, facts) != Truth::Yes)
            .map(|condition| condition.keyword)
            .collect();
        if failing.is_empty() {
            line!(text, "{}: {rule}: matches", rule.place);
            break;
        }
        line!(text, "{}: {rule}: passed over: {}", rule.place, failing.join(", "));
    }
}

fn parse_from(text: &str) -> Option<Origin> {
    if text == "unix" { Some(Origin::Unix) } else { address(text).map(Origin::Ip) }
}

fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

fn parse_version(text: &str) -> Option<Version> {
    [Version::V4, Version::V4a, Version::V5].into_iter().find(|version| version.to_string() == text)
}

fn parse_command(text: &str) -> Option<Command> {
    let all = [Command::CONNECT, Command::BIND, Command::UDP_ASSOCIATE];
    all.into_iter().find(|command| command.to_string() == text)
}

/// `ADDR:PORT`, `[ADDR6]:PORT` or `NAME:PORT`.
fn parse_to(text: &str) -> Option<Destination> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Some(Destination::from_ip(addr.ip(), addr.port()));
    }
    let (name, port) = text.rsplit_once(':')?;
    (!name.is_empty() && !name.contains(':')).then_some(())?;
    Some(Destination::from_name(name.as_bytes(), port.parse().ok()?))
}
