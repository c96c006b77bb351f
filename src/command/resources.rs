//! The resources shared by all commands, and the steps common to them: finding the addresses that a
//! request may use, taking a place in the quotas, choosing addresses and ports.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::command::failure::Failure;
use crate::command::ports::PortRange;
use crate::command::quotas::{QuotaSlot, Quotas};
use crate::dial::PerFamily;
use crate::net::ClientKey;
use crate::policy::rules::Rule;
use crate::policy::{Asker, Policy};
use crate::relay::Leg;
use crate::resolve::{ResolveError, Resolver};
use crate::stats::Stats;
use crate::wait::{Timeouts, Wait, WaitError};
use crate::wire::{Destination, Version};

/// The addresses, ports and families of the sockets that commands open.
#[derive(Debug)]
pub struct Outgoing {
    /// Whether IPv4 targets are allowed.
    pub ipv4: bool,
    /// Whether IPv6 targets are allowed.
    pub ipv6: bool,
    /// The source addresses.
    pub source: PerFamily,
    /// The addresses for BIND and UDP ASSOCIATE replies in place of the real ones, if this host is
    /// behind a NAT.
    pub advertise: PerFamily,
    /// The ports for BIND and for the client's socket of UDP ASSOCIATE.
    pub ports: Option<PortRange>,
}

/// Resources shared by all commands of all sessions.
pub struct Resources {
    /// The counts of sessions and their waits.
    pub stats: Stats,
    /// The quotas of users and rules.
    pub quotas: Quotas,
    /// The resolver of names.
    pub resolver: Arc<Resolver>,
    /// The time limits.
    pub timeouts: Timeouts,
    /// The addresses, ports and families of sockets.
    pub outgoing: Outgoing,
    /// The addresses that this server listens on; a request that would connect back is refused.
    pub listening: Vec<SocketAddr>,
}

/// The rule that admits a session, and the session's place in the quotas.
#[derive(Debug)]
pub struct Admission {
    /// The rule, whose settings apply.
    pub rule: Arc<Rule>,
    /// The place in the quotas of the rule and of the user.
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

/// An open connection to the target.
#[derive(Debug)]
pub struct Opened {
    /// The connection.
    pub target: Leg,
    /// The address of the target.
    pub peer: SocketAddr,
    /// BND of the reply: the local address for CONNECT, the address of the target for the second
    /// reply of a BIND.
    pub bnd: Destination,
    /// The rule and the place in its quotas.
    pub admission: Admission,
}

impl Resources {
    /// Whether targets of the family of `ip` are allowed.
    #[must_use]
    pub fn reaches(&self, ip: IpAddr) -> bool {
        if ip.is_ipv4() { self.outgoing.ipv4 } else { self.outgoing.ipv6 }
    }

    /// Resolves `dst` to the addresses that `policy` allows `asker`, at least one, each with the
    /// rule that allows it. A name that is denied as a name is not looked up.
    ///
    /// # Errors
    /// `Denied`, `Unresolved`, `Family`, `ClientGone`, `Stopped`, `NoDescriptor`.
    #[inline(never)]
    pub fn candidates(
        &self,
        policy: &Policy,
        asker: &Asker,
        dst: &Destination,
        wait: &Wait<'_>,
    ) -> Result<Vec<Candidate>, Failure> {
        let check = |addr: SocketAddr| {
            let rule = policy.allows(asker, dst, addr.ip())?;
            Ok(Candidate { addr, rule: Arc::clone(rule) })
        };
        // SOCKS 4A has no IPv6 addresses (its draft, "Resolution").
        let in_version = |ip: IpAddr| asker.version == Version::V5 || ip.is_ipv4();
        let (name, port) = match dst {
            Destination::Address(addr) => {
                let candidate = check(*addr).map_err(Failure::Denied)?;
                let usable = in_version(addr.ip()) && self.reaches(addr.ip());
                return if usable { Ok(vec![candidate]) } else { Err(Failure::Family) };
            }
            Destination::Name(name, port) => (name, *port),
        };
        policy.may_allow(asker, Some(dst)).map_err(Failure::Denied)?;
        let begun = Instant::now();
        let resolved = match self.resolver.resolve(ClientKey::of(asker.client), name, wait) {
            Ok(resolved) => resolved,
            Err(WaitError::TimedOut) => Err(ResolveError::TimedOut),
            Err(WaitError::Failed(error)) => return Err(Failure::NoDescriptor(error)),
            Err(error) => return Err(error.into()),
        };
        self.stats.resolve.observe(begun.elapsed());
        let ips = resolved.map_err(Failure::Unresolved)?;
        let (mut usable, mut denied) = (Vec::new(), None);
        for &ip in ips.iter().filter(|&&ip| in_version(ip) && self.reaches(ip)) {
            match check(SocketAddr::new(ip, port)) {
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

    /// Admits a session of `asker` by `rule` within the quotas.
    ///
    /// # Errors
    /// `Full`.
    #[inline(never)]
    pub(super) fn admit(&self, asker: &Asker, rule: &Arc<Rule>) -> Result<Admission, Failure> {
        let quota = self.quotas.admit(asker, rule)?;
        Ok(Admission { rule: Arc::clone(rule), quota })
    }

    /// The source address for targets of the family of `ip`: that of `rule`, or else that of all
    /// rules.
    pub(super) fn source(&self, rule: &Rule, ip: IpAddr) -> Option<IpAddr> {
        let same_family = |source: &IpAddr| source.is_ipv4() == ip.is_ipv4();
        let own = rule.settings.source.iter().copied().find(same_family);
        own.or_else(|| self.outgoing.source.of_family(ip))
    }

    /// Calls `bind` with each port of the range until one is free, or with port 0 if there is no
    /// range.
    ///
    /// # Errors
    /// `NoPort` if none is free, `Io` for any other error of `bind`.
    pub(super) fn bind_port<T>(
        &self,
        mut bind: impl FnMut(u16) -> io::Result<T>,
    ) -> Result<T, Failure> {
        let Some(range) = &self.outgoing.ports else { return Ok(bind(0)?) };
        for port in range.rotation() {
            match bind(port) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                result => return Ok(result?),
            }
        }
        Err(Failure::NoPort)
    }
}
