//! May they: what is known of a request to a verdict, by one flat list of rules of which the first
//! that matches decides. Pure: nothing is read, sent or resolved here.
//!
//! Names are judged as names; what they resolve to is judged again as addresses. Commands and the
//! datagram pump ask before they use an address. What a rule says is in [`rules`], how it is
//! written in [`parse`].

pub mod explain;
pub mod list;
pub mod nets;
pub mod parse;
pub mod rules;

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use crate::auth::User;
use crate::auth::users::Users;
use crate::policy::nets::is_nowhere;
use crate::policy::rules::{Ident, Place, Question, Rule, To, Truth, Where};
use crate::wire::socks5::Method;
use crate::wire::{Command, Destination, Version};

/// The rules that hold where none are given: without users, clients from this host and its site;
/// with users, whoever is one. Nobody reaches inside.
const DEFAULT: &str = "allow from loopback,private,linklocal to any";
const DEFAULT_WITH_USERS: &str = "allow user any to any";

/// Who asks for what, and how.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The client's address.
    pub client: IpAddr,
    /// Who it is, as authentication found out.
    pub user: User,
    /// Who its host says it is.
    pub ident: Ident,
    /// The protocol it speaks.
    pub version: Version,
    /// What it asks for.
    pub command: Command,
}

/// Why something is denied; Display tells an administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The rule written here says so.
    Rule(Arc<Rule>),
    /// No rule matches.
    NoRule,
    /// A rule that might have matched needs IDENT, which proved nothing.
    Unproved,
    /// A rule that might have matched needs IDENT, which named another user than USERID.
    Different,
    /// 0.0.0.0/8 and `::` are no destinations.
    Nowhere,
    /// A connection there would come back to this very server.
    LeadsBack,
}

impl Denial {
    /// Where the rule is written that denied, if one did.
    #[must_use]
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Rule(rule) => Some(&rule.place),
            _ => None,
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rule(_) => "denied by a rule",
            Self::NoRule => "no rule allows this",
            Self::Unproved => "IDENT proves nothing",
            Self::Different => "IDENT names another user",
            Self::Nowhere => "not the address of a host",
            Self::LeadsBack => "leads back to this server",
        })
    }
}

/// The rule that allows something, or why it is denied.
pub type Verdict<'a> = Result<&'a Arc<Rule>, Denial>;

/// Which methods of version 5 a client may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Methods {
    /// Whether a client without a proved name may be allowed something.
    pub none: bool,
    /// Whether one with a password may.
    pub userpass: bool,
    /// Whether a password makes a difference, so that it is asked for if it can be had.
    pub prefer_userpass: bool,
}

impl Methods {
    /// Chooses among the methods a client offers (RFC 1928 section 3), or `None` where none is
    /// acceptable. GSS-API is never chosen: choosing it means being able to do it.
    #[must_use]
    pub fn select(&self, offered: &[Method]) -> Option<Method> {
        let methods = [(self.none, Method::NONE), (self.userpass, Method::USERPASS)];
        let acceptable = |&(may, method): &(bool, Method)| may && offered.contains(&method);
        let mut chosen = methods.into_iter().filter(acceptable).map(|(_, method)| method);
        if self.prefer_userpass { chosen.next_back() } else { chosen.next() }
    }
}

/// The rules, and the users they speak of: what a reload replaces.
pub struct Policy {
    rules: Vec<Arc<Rule>>,
    /// Those of the users file, where there is one.
    pub users: Option<Users>,
}

impl Policy {
    /// Loads the rules of `texts` and of the file `rules` behind them, and the users file `users`.
    /// With neither texts nor a file the built-in rules hold.
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
            parse::builtin("default", default)
        } else {
            parse::load(texts, rules)
        };
        match (loaded, users) {
            (Ok(rules), Ok(users)) => {
                let needs: Vec<&Rule> = rules.iter().filter(|rule| rule.wants_password()).collect();
                if users.is_none() && !needs.is_empty() {
                    let lines = needs.iter().map(|rule| {
                        let Place { file, line } = &rule.place;
                        format!("{file}:{line}: a rule with user needs --users or ident")
                    });
                    return Err(lines.collect());
                }
                Ok(Self { rules: rules.into_iter().map(Arc::new).collect(), users })
            }
            (rules, users) => {
                let (mut errors, more) = (rules.err().unwrap_or_default(), users.err());
                errors.extend(more.unwrap_or_default());
                Err(errors)
            }
        }
    }

    /// How many rules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are none, so that everything is denied.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules that may come to decide, with how far they match: all up to the first that surely
    /// does.
    fn reachable(&self, question: &Question<'_>) -> impl Iterator<Item = (&Arc<Rule>, Truth)> {
        let mut decided = false;
        self.rules
            .iter()
            .map_while(move |rule| {
                let truth = (!decided).then(|| rule.matches(question))?;
                decided = truth == Truth::Yes;
                Some((rule, truth))
            })
            .filter(|(_, truth)| *truth != Truth::No)
    }

    /// The first rule by which a request may come to be allowed.
    fn possible(&self, question: &Question<'_>) -> Verdict<'_> {
        for (rule, truth) in self.reachable(question) {
            match (rule.allow, truth) {
                (true, _) => return Ok(rule),
                (false, Truth::Yes) => return Err(denied(Some(rule), question.ident)),
                (false, _) => {}
            }
        }
        Err(denied(None, question.ident))
    }

    /// Which methods a client of version 5 may choose.
    #[must_use]
    pub fn methods(&self, client: IpAddr) -> Methods {
        let unknown = Question {
            client,
            version: Version::V5,
            command: None,
            user: None,
            ident: &Ident::NotAsked,
            to: None,
        };
        let anonymous = Question { user: Some(&User::anonymous()), ..unknown };
        Methods {
            none: self.possible(&anonymous).is_ok(),
            userpass: self.users.is_some() && self.possible(&unknown).is_ok(),
            prefer_userpass: self.reachable(&unknown).any(|(rule, _)| rule.wants_password()),
        }
    }

    /// Whether IDENT has to be asked before `asker` can be judged on `dst`.
    #[must_use]
    pub fn wants_ident(&self, asker: &Asker, dst: Option<&Destination>) -> bool {
        self.reachable(&asker.question(dst.map(destination))).any(|(rule, _)| rule.ident)
    }

    /// Whether anything that `dst` may stand for is allowed, and by which rule first: all that is
    /// asked of a name is denied if the name alone decides. Without `dst`, any destination is meant.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, asker: &Asker, dst: Option<&Destination>) -> Verdict<'_> {
        self.possible(&asker.question(dst.map(destination)))
    }

    /// Judges the address `ip`, asked for by the name in `dst` if there is one.
    ///
    /// # Errors
    /// Why it is denied.
    pub fn judge(&self, asker: &Asker, dst: &Destination, ip: IpAddr) -> Verdict<'_> {
        if is_nowhere(ip) {
            return Err(Denial::Nowhere);
        }
        self.decide(&asker.question(Some(To { ip: Where::At(ip), ..destination(dst) })))
    }

    fn decide(&self, question: &Question<'_>) -> Verdict<'_> {
        // What is not known by now, such as an IDENT not asked, speaks for no client.
        let decides = |&(rule, truth): &(&Arc<Rule>, Truth)| truth == Truth::Yes || !rule.allow;
        match self.reachable(question).find(decides) {
            Some((rule, _)) if rule.allow => Ok(rule),
            Some((rule, _)) => Err(denied(Some(rule), question.ident)),
            None => Err(denied(None, question.ident)),
        }
    }
}

impl Asker {
    /// The user proved by a password, or else by IDENT.
    #[must_use]
    pub fn identity(&self) -> &User {
        match &self.ident {
            Ident::Proved(user) if self.user.name().is_none() => user,
            _ => &self.user,
        }
    }

    fn question<'a>(&'a self, to: Option<To<'a>>) -> Question<'a> {
        Question {
            client: self.client,
            version: self.version,
            command: Some(self.command),
            user: Some(&self.user),
            ident: &self.ident,
            to,
        }
    }
}

/// What `dst` says by itself.
fn destination(dst: &Destination) -> To<'_> {
    match dst {
        Destination::Name(name, port) => To { name: Some(name), ip: Where::Unknown, port: *port },
        // Any peer of a BIND.
        Destination::Address(addr) if addr.ip().is_unspecified() => {
            To { name: None, ip: Where::Unknown, port: addr.port() }
        }
        Destination::Address(addr) => {
            To { name: None, ip: Where::At(addr.ip()), port: addr.port() }
        }
    }
}

/// Where IDENT was asked in vain, that is what there is to be told.
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
    /// Begins with `policy`.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self(RwLock::new(Arc::new(policy)))
    }

    /// The policy in force now.
    #[must_use]
    pub fn get(&self) -> Arc<Policy> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another in force.
    pub fn set(&self, policy: Policy) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }
}
