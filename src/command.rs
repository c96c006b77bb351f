//! From a request to open sockets. A plan says what the rules make of a request; each command then
//! opens sockets and returns them. It has nothing to write to: the reply is the session's part.

pub mod associate;
pub mod bind;
pub mod connect;
pub mod failure;
pub mod ports;
pub mod quotas;
pub mod resources;

use std::sync::Arc;

use crate::command::failure::Failure;
use crate::command::resources::{Candidate, Resources};
use crate::policy::rules::Rule;
use crate::policy::{Asker, Policy};
use crate::wait::Wait;
use crate::wire::{Command, Destination, Request, Version};

/// What a request comes to under the rules. Nothing is opened yet.
pub enum Plan {
    /// Connect to the first of these addresses, at least one, that answers.
    Connect(Vec<Candidate>),
    /// Accept one connection, by this rule.
    Bind {
        /// The addresses it may come from; none of them given means any.
        expected: Vec<Candidate>,
        /// The rule that admits the session.
        rule: Arc<Rule>,
    },
    /// Relay datagrams, by this rule: the first that may allow some of them.
    Associate(Arc<Rule>),
}

impl Plan {
    /// What `policy` makes of `request`, which `asker` makes. Nothing is asked of anybody but the
    /// addresses of a name, on the terms of `wait`.
    ///
    /// # Errors
    /// `Command`, and as [`Resources::candidates`].
    #[inline(never)]
    pub fn new(
        resources: &Resources,
        policy: &Policy,
        asker: &Asker,
        request: &Request,
        wait: &Wait<'_>,
    ) -> Result<Self, Failure> {
        let dst = destination(request)?;
        let candidates = match dst {
            Some(dst) if request.command == Command::CONNECT || !dst.is_unspecified() => {
                resources.candidates(policy, asker, dst, wait)?
            }
            // Any peer of a BIND, any destination of an association.
            _ => Vec::new(),
        };
        if request.command == Command::CONNECT {
            return Ok(Self::Connect(candidates));
        }
        let rule = match candidates.first() {
            Some(candidate) => Arc::clone(&candidate.rule),
            None => Arc::clone(policy.may_allow(asker, dst).map_err(Failure::Denied)?),
        };
        Ok(match dst {
            Some(_) => Self::Bind { expected: candidates, rule },
            None => Self::Associate(rule),
        })
    }

    /// The first rule by which it may be carried out.
    #[must_use]
    pub fn rule(&self) -> Option<&Rule> {
        match self {
            Self::Connect(candidates) => candidates.first().map(|candidate| &*candidate.rule),
            Self::Bind { rule, .. } | Self::Associate(rule) => Some(rule),
        }
    }
}

/// Where `request` wants to go as far as that is known: an association does not say.
///
/// # Errors
/// `Command` for one that its version does not have.
pub fn destination(request: &Request) -> Result<Option<&Destination>, Failure> {
    match request.command {
        Command::CONNECT | Command::BIND => Ok(Some(&request.dst)),
        Command::UDP_ASSOCIATE if request.version == Version::V5 => Ok(None),
        _ => Err(Failure::Command),
    }
}
