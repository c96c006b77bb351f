//! May they: (client, user, command, version, destination) to a verdict, without any input or
//! output. Names are judged as names; what they resolve to is judged again as an address. Commands
//! and the datagram pump ask before they use an address. There is no rules file yet, only the
//! policy that holds without one.

pub mod list;
pub mod nets;

use std::net::IpAddr;

use crate::auth::User;
use crate::policy::nets::{is_inside, is_nowhere, is_special};
use crate::wire::{Command, Destination, Version};

/// Whether something may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may not, for this reason: REP 02, CD 91.
    Deny(&'static str),
}

impl Verdict {
    /// The verdict as a result.
    ///
    /// # Errors
    /// The reason of a `Deny`.
    pub fn ok(self) -> Result<(), &'static str> {
        match self {
            Self::Allow => Ok(()),
            Self::Deny(why) => Err(why),
        }
    }
}

/// Who asks for what, and how.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The client's address.
    pub client: IpAddr,
    /// Who it is, as authentication found out.
    pub user: User,
    /// The protocol it speaks.
    pub version: Version,
    /// What it asks for.
    pub command: Command,
}

/// The built-in policy: clients from inside or authenticated ones, destinations that are not
/// inside. It cannot make an open proxy by accident.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Lifts the guard: inside destinations may be reached too.
    pub allow_inside: bool,
}

impl Policy {
    /// Judges one destination. For a BIND that is first the address the peer is expected at, where
    /// 0.0.0.0 and `::` stand for any, then the peer that came.
    #[must_use]
    pub fn judge(&self, asker: &Asker, dst: &Destination) -> Verdict {
        let client_may = asker.user.name().is_some() || is_inside(asker.client);
        let dst_may = match dst {
            Destination::Name(..) => true,
            Destination::Address(addr) => {
                let any_peer = asker.command == Command::BIND && dst.is_unspecified();
                any_peer || !is_nowhere(addr.ip()) && (self.allow_inside || !is_special(addr.ip()))
            }
        };
        match (client_may, dst_may) {
            (true, true) => Verdict::Allow,
            (false, _) => Verdict::Deny("clients from there need a password (see --users)"),
            (true, false) => Verdict::Deny("inside address (see --allow-inside)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Auth;

    fn judge(policy: Policy, client: &str, command: Command, dst: &str) -> bool {
        let user = Auth::new(None, std::time::Duration::ZERO).anonymous().unwrap();
        let asker = Asker { client: client.parse().unwrap(), user, version: Version::V5, command };
        policy.judge(&asker, &Destination::Address(dst.parse().unwrap())) == Verdict::Allow
    }

    #[test]
    fn sec_08_the_guard_holds_for_every_command() {
        let guarded = Policy { allow_inside: false };
        for command in [Command::CONNECT, Command::BIND, Command::UDP_ASSOCIATE] {
            assert!(!judge(guarded, "127.0.0.1", command, "127.0.0.1:80"));
            assert!(judge(guarded, "127.0.0.1", command, "8.8.8.8:80"));
        }
    }

    #[test]
    fn without_users_a_client_from_outside_is_denied() {
        let open = Policy { allow_inside: true };
        for client in ["8.8.8.8", "2001:4860::1", "100.64.0.1"] {
            assert!(!judge(open, client, Command::CONNECT, "8.8.8.8:80"));
        }
        for client in ["127.0.0.1", "::1", "10.1.2.3", "192.168.1.1", "fd00::1", "fe80::1"] {
            assert!(judge(open, client, Command::CONNECT, "8.8.8.8:80"));
        }
    }

    #[test]
    fn v4_12_nothing_lifts_the_guard_of_0_0_0_x() {
        let open = Policy { allow_inside: true };
        for dst in ["0.0.0.1:80", "0.0.0.255:80", "0.0.0.0:80", "[::]:80", "0.1.2.3:80"] {
            assert!(!judge(open, "127.0.0.1", Command::CONNECT, dst), "{dst}");
        }
    }

    #[test]
    fn real_09_a_bind_may_expect_any_peer() {
        let guarded = Policy { allow_inside: false };
        for dst in ["0.0.0.0:0", "[::]:0"] {
            assert!(judge(guarded, "127.0.0.1", Command::BIND, dst));
        }
        assert!(!judge(guarded, "127.0.0.1", Command::BIND, "0.0.0.1:0"));
    }
}
