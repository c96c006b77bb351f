//! What all sessions share, and what the server counts of each.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::auth::penalties::Penalties;
use crate::auth::turns::Turns;
use crate::command::resources::Resources;
use crate::log::Log;
use crate::net::client_block;
use crate::policy::nets::Block;
use crate::policy::{Current, Policy};
use crate::relay::Relays;
use crate::session::live::Live;
use crate::threads::Threads;

/// What all sessions share.
pub struct Service {
    /// Who may do what.
    pub policy: Arc<Current>,
    /// Who has failed to authenticate of late.
    pub penalties: Penalties,
    /// Turns to hash a password.
    pub turns: Turns,
    /// The sessions under way.
    pub live: Arc<Live>,
    /// Whether sessions that a new policy would not grant end with the old one.
    pub strict_reload: bool,
    /// What commands work with.
    pub resources: Resources,
    /// Threads that wait for clients, serve them, and see to the second direction.
    pub threads: Threads,
    /// What relays share.
    pub relays: Relays,
    /// Where the lines go.
    pub log: Log,
    /// Whether SOCKS 4A is spoken beside SOCKS 4.
    pub allow_4a: bool,
    /// The clients that begin with a PROXY header.
    pub balancers: Balancers,
    /// The port at which a client's host answers IDENT queries.
    pub ident_port: u16,
    /// Whether fragments of datagrams are put together rather than dropped.
    pub fragments: bool,
}

/// The clients that begin with a PROXY header, in which they name another.
#[derive(Debug, Default)]
pub struct Balancers {
    /// Where they come from.
    pub blocks: Vec<Block>,
    /// Whether those of UNIX sockets, which have no address, are among them.
    pub unix: bool,
}

impl Balancers {
    /// Whether a client at this address is one of them.
    #[must_use]
    pub fn includes(&self, client: Option<IpAddr>) -> bool {
        match client {
            Some(ip) => self.blocks.iter().any(|block| block.holds(ip)),
            None => self.unix,
        }
    }
}

impl Service {
    /// Whether a client is refused for a while because it has failed to authenticate too often.
    #[must_use]
    pub fn shuts_out(&self, client: Option<IpAddr>) -> bool {
        self.penalties.shut_out(client_block(client), Instant::now())
    }

    /// Puts another policy in force.
    pub fn change_policy(&self, policy: Policy) {
        self.policy.set(policy);
        if self.strict_reload {
            self.live.revoke(&self.policy.get());
        }
    }
}

/// A session's place among all others, which the server counts.
pub trait Slot {
    /// The number of the session in the log.
    fn number(&self) -> u64;

    /// Counts it for `client`, whom a balancer has told of, from now on.
    ///
    /// # Errors
    /// The cap that is reached.
    fn belongs_to(&mut self, client: Option<IpAddr>) -> Result<(), String>;

    /// Counts it no more among those whose handshake is not complete.
    fn handshake_is_over(&mut self);
}
