//! Carries out requests: a [`Plan`] applies the rules to a request, then each command opens its
//! sockets and returns them.
//!
//! Not here: replies, which the session sends, and anything else written to the client.

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

/// A request that the rules allow, before anything is opened.
pub enum Plan {
    /// Connect to the first of these addresses that answers; there is at least one.
    Connect(Vec<Candidate>),
    /// Accept one connection.
    Bind {
        /// The addresses that the peer may have; any if the list is empty.
        expected: Vec<Candidate>,
        /// The rule that admits the session.
        rule: Arc<Rule>,
    },
    /// Relay datagrams. The rule is the first that may allow some of them.
    Associate(Arc<Rule>),
}

impl Plan {
    /// Plans `request` of `asker` by the rules of `policy`. The only effect is the look-up of a
    /// name, within the bounds of `wait`.
    ///
    /// # Errors
    /// `Command`, or as [`Resources::candidates`].
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

    /// The first rule that may admit the session.
    #[must_use]
    pub fn rule(&self) -> Option<&Rule> {
        match self {
            Self::Connect(candidates) => candidates.first().map(|candidate| &*candidate.rule),
            Self::Bind { rule, .. } | Self::Associate(rule) => Some(rule),
        }
    }
}

/// The destination of `request`; `None` for an association, which names one in each datagram.
///
/// # Errors
/// `Command` for a command that the version of the request does not have.
pub fn destination(request: &Request) -> Result<Option<&Destination>, Failure> {
    match request.command {
        Command::CONNECT | Command::BIND => Ok(Some(&request.dst)),
        Command::UDP_ASSOCIATE if request.version == Version::V5 => Ok(None),
        _ => Err(Failure::Command),
    }
}
