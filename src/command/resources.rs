//! What all commands work with, and what they all do with it: the addresses a request may use, and
//! room for its session.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::command::failure::Failure;
use crate::command::ports::PortRange;
use crate::command::quotas::{QuotaSlot, Quotas};
use crate::dial::PerFamily;
use crate::net::client_block;
use crate::policy::rules::Rule;
use crate::policy::{Asker, Policy};
use crate::relay::Leg;
use crate::resolve::{ResolveError, Resolver};
use crate::stats::Stats;
use crate::wait::{Timeouts, Wait, WaitError};
use crate::wire::{Destination, Version};

/// Which addresses and ports the sockets have that commands open, and which families they reach.
#[derive(Debug)]
pub struct Outgoing {
    /// Whether IPv4 targets are reached at all.
    pub ipv4: bool,
    /// Whether IPv6 targets are reached at all.
    pub ipv6: bool,
    /// The addresses to leave from.
    pub source: PerFamily,
    /// The addresses to tell clients in BIND and UDP ASSOCIATE replies instead of the real ones,
    /// where a NAT stands before this host.
    pub advertise: PerFamily,
    /// Ports for BIND and for the relay sockets of UDP ASSOCIATE.
    pub ports: Option<PortRange>,
}

/// What commands work with, the same for all sessions.
pub struct Resources {
    /// Counts what sessions do.
    pub stats: Stats,
    /// Counts the sessions of each user and of rules.
    pub quotas: Quotas,
    /// Turns names into addresses.
    pub resolver: Arc<Resolver>,
    /// How long each wait may take.
    pub timeouts: Timeouts,
    /// Which addresses and ports the sockets have that commands open.
    pub outgoing: Outgoing,
    /// Where this server itself listens; a session that would come back here is refused.
    pub listening: Vec<SocketAddr>,
}

/// The rule that admits a session, and the session's place in the quotas of the rule and of the user.
#[derive(Debug)]
pub struct Admission {
    /// The rule, whose settings apply.
    pub rule: Arc<Rule>,
    /// Given back when it is dropped.
    pub quota: QuotaSlot,
}

/// An address that may be used.
#[derive(Debug)]
pub struct Candidate {
    /// The address.
    pub addr: SocketAddr,
    /// The rule that allows it.
    pub rule: Arc<Rule>,
}

/// An opened target.
#[derive(Debug)]
pub struct Opened {
    /// The connection to it.
    pub target: Leg,
    /// The address of the target.
    pub peer: SocketAddr,
    /// BND of the reply: for CONNECT the local address of the connection, for the second reply of a
    /// BIND the peer's.
    pub bnd: Destination,
    /// The rule that admitted the session.
    pub admission: Admission,
}

impl Resources {
    /// Whether targets of the family of `ip` are reached.
    #[must_use]
    pub fn reaches(&self, ip: IpAddr) -> bool {
        if ip.is_ipv4() { self.outgoing.ipv4 } else { self.outgoing.ipv6 }
    }

    /// The addresses that `dst` stands for and that `policy` lets `asker` use, at least one, each
    /// with the rule that does. What is denied by name is not resolved.
    ///
    /// # Errors
    /// `Denied`, `Unresolved`, `Family`, `ClientGone`, `Stopped`.
    #[inline(never)]
    pub fn candidates(
        &self,
        policy: &Policy,
        asker: &Asker,
        dst: &Destination,
        wait: &Wait<'_>,
    ) -> Result<Vec<Candidate>, Failure> {
        let judge = |addr: SocketAddr| {
            let rule = policy.allows(asker, dst, addr.ip())?;
            Ok(Candidate { addr, rule: Arc::clone(rule) })
        };
        // SOCKS 4A resolves to IPv4 only: its draft, "Resolution".
        let speaks = |ip: IpAddr| asker.version == Version::V5 || ip.is_ipv4();
        let (name, port) = match dst {
            Destination::Address(addr) => {
                let candidate = judge(*addr).map_err(Failure::Denied)?;
                let usable = speaks(addr.ip()) && self.reaches(addr.ip());
                return if usable { Ok(vec![candidate]) } else { Err(Failure::Family) };
            }
            Destination::Name(name, port) => (name, *port),
        };
        policy.may_allow(asker, Some(dst)).map_err(Failure::Denied)?;
        let begun = Instant::now();
        let wait = wait.within(self.timeouts.resolve);
        let resolved = self.resolver.resolve(client_block(asker.client), name, &wait);
        self.stats.resolve.observe(begun.elapsed());
        let ips = match resolved {
            Ok(resolved) => resolved.map_err(Failure::Unresolved)?,
            Err(WaitError::TimedOut) => return Err(Failure::Unresolved(ResolveError::TimedOut)),
            Err(error) => return Err(error.into()),
        };
        let (mut usable, mut denied) = (Vec::new(), None);
        for &ip in ips.iter().filter(|&&ip| speaks(ip) && self.reaches(ip)) {
            match judge(SocketAddr::new(ip, port)) {
                Ok(candidate) => usable.push(candidate),
                Err(denial) => denied = Some(denial),
            }
        }
        match (usable.is_empty(), denied) {
            (false, _) => Ok(usable),
            (true, Some(denial)) => Err(Failure::Denied(denial)),
            (true, None) => Err(Failure::Unresolved(ResolveError::NotFound)),
        }
    }

    /// Lets a session in by `rule`, where there is room.
    ///
    /// # Errors
    /// `Full`.
    #[inline(never)]
    pub(super) fn admit(&self, asker: &Asker, rule: &Arc<Rule>) -> Result<Admission, Failure> {
        let quota = self.quotas.admit(asker, rule)?;
        Ok(Admission { rule: Arc::clone(rule), quota })
    }

    /// The address to leave from to one of the family of `ip`, by `rule` or else for all.
    pub(super) fn source(&self, rule: &Rule, ip: IpAddr) -> Option<IpAddr> {
        let same_family = |source: &IpAddr| source.is_ipv4() == ip.is_ipv4();
        let own = rule.settings.source.iter().copied().find(same_family);
        own.or_else(|| self.outgoing.source.of_family(ip))
    }

    /// Calls `bind` with ports of the range, or with 0 without one, until one is free.
    ///
    /// # Errors
    /// `NoPort` where none is, `Io` for any other error of `bind`.
    pub(super) fn bind_port<T>(
        &self,
        mut bind: impl FnMut(u16) -> io::Result<T>,
    ) -> Result<T, Failure> {
        let Some(range) = &self.outgoing.ports else { return Ok(bind(0)?) };
        for port in range.turns() {
            match bind(port) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                result => return Ok(result?),
            }
        }
        Err(Failure::NoPort)
    }
}
