//! The state shared by all sessions, and the interface by which the server counts them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::auth::penalties::Penalties;
use crate::auth::turns::Turns;
use crate::command::resources::Resources;
use crate::log::Log;
use crate::net::ClientKey;
use crate::policy::nets::Block;
use crate::policy::{Current, Policy};
use crate::relay::Relays;
use crate::session::live::LiveSessions;
use crate::threads::Threads;

/// The state shared by all sessions.
pub struct Service {
    /// The rules and users in force.
    pub policy: Arc<Current>,
    /// The penalties of clients that have failed to authenticate.
    pub penalties: Penalties,
    /// The turns to hash a password.
    pub turns: Turns,
    /// The sessions under way.
    pub live: Arc<LiveSessions>,
    /// Whether a reload ends the sessions that the new policy does not allow.
    pub strict_reload: bool,
    /// The resources shared by all commands.
    pub resources: Resources,
    /// The threads that accept clients, serve them, and relay a second direction.
    pub threads: Threads,
    /// The state shared by all relays.
    pub relays: Relays,
    /// The log.
    pub log: Log,
    /// Whether SOCKS 4 requests may use the extension 4A.
    pub allow_4a: bool,
    /// The clients that begin with a PROXY header.
    pub balancers: Balancers,
    /// The port for IDENT queries to a client's host.
    pub ident_port: u16,
    /// Whether fragments of datagrams are reassembled; otherwise they are dropped.
    pub fragments: bool,
}

/// The load balancers: clients that begin with a PROXY header naming the real client.
#[derive(Debug, Default)]
pub struct Balancers {
    /// Their addresses.
    pub blocks: Vec<Block>,
    /// Whether clients of UNIX sockets, which have no address, are balancers too.
    pub unix: bool,
}

impl Balancers {
    /// Whether a client at this address is a balancer.
    #[must_use]
    pub fn includes(&self, client: Option<IpAddr>) -> bool {
        match client {
            Some(ip) => self.blocks.iter().any(|block| block.holds(ip)),
            None => self.unix,
        }
    }
}

impl Service {
    /// Whether a client is shut out after too many failures to authenticate.
    #[must_use]
    pub fn shuts_out(&self, client: Option<IpAddr>) -> bool {
        self.penalties.shut_out(ClientKey::of(client), Instant::now())
    }

    /// Puts a new policy in force.
    pub fn change_policy(&self, policy: Policy) {
        self.policy.set(policy);
        if self.strict_reload {
            self.live.enforce(&self.policy.get());
        }
    }
}

/// A session's slot, which the server counts towards its limits.
pub trait Slot {
    /// The number of the session in the log.
    fn number(&self) -> u64;

    /// Counts the slot for `client`, named by a PROXY header, instead of the balancer.
    ///
    /// # Errors
    /// The limit that `client` has reached.
    fn reassign(&mut self, client: Option<IpAddr>) -> Result<(), String>;

    /// Counts the handshake as complete.
    fn end_handshake(&mut self);
}
