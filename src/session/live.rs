//! The sessions under way, as far as somebody else may have to end them: after a change of rules or
//! users, those that would not be granted any more.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::auth::User;
use crate::policy::rules::Ident;
use crate::policy::{Asker, Policy};
use crate::relay::{End, Stopper};
use crate::threads::lock;
use crate::wire::Destination;

/// What a session was granted.
#[derive(Clone)]
pub struct Grant {
    /// To whom, and how it was asked for.
    pub asker: Asker,
    /// For what, and the address at the other end; an association has none.
    pub target: Option<(Destination, IpAddr)>,
    /// By what.
    pub policy: Arc<Policy>,
    /// What ends its relay.
    pub stopper: Stopper,
}

impl Grant {
    /// Whether `policy` would grant this too: to the same user with the same password.
    fn holds_under(&self, policy: &Policy) -> bool {
        let (before, now) = (self.policy.users.as_ref(), policy.users.as_ref());
        let user = match self.asker.user.name() {
            None => Some(User::anonymous()),
            Some(name) => {
                now.zip(before).and_then(|(now, before)| now.with_same_password(name, before))
            }
        };
        let Some(user) = user else { return false };
        let ident = match &self.asker.ident {
            Ident::Proved(user) => Ident::Proved(match (now, user.name()) {
                (Some(users), Some(name)) => users.proved(name),
                _ => user.clone(),
            }),
            other => other.clone(),
        };
        let asker = Asker { user, ident, ..self.asker.clone() };
        match &self.target {
            Some((dst, ip)) => policy.judge(&asker, dst, *ip).is_ok(),
            None => policy.admit(&asker, None).is_ok(),
        }
    }
}

/// The grants of all sessions under way.
#[derive(Default)]
pub struct Live {
    grants: Mutex<HashMap<u64, Grant>>,
}

impl Live {
    /// Puts in the grant of session `number`, which is taken out when what is returned is dropped.
    #[must_use]
    pub fn enter(&self, number: u64, grant: Grant) -> Entry<'_> {
        lock(&self.grants).insert(number, grant);
        Entry { live: self, number }
    }

    /// Ends all sessions that `policy` would not grant.
    pub fn revoke(&self, policy: &Policy) {
        // Stopping takes other locks: none of this one's.
        let grants: Vec<Grant> = lock(&self.grants).values().cloned().collect();
        for grant in grants.iter().filter(|grant| !grant.holds_under(policy)) {
            grant.stopper.stop(End::Revoked);
        }
    }
}

impl Entry<'_> {
    /// Ends the session if it was granted by another policy than `policy`, which would not do so.
    pub fn check(&self, policy: &Arc<Policy>) {
        let grant = lock(&self.live.grants).get(&self.number).cloned();
        if let Some(grant) = grant
            && !Arc::ptr_eq(&grant.policy, policy)
            && !grant.holds_under(policy)
        {
            grant.stopper.stop(End::Revoked);
        }
    }
}

/// A session under way.
pub struct Entry<'a> {
    live: &'a Live,
    number: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        lock(&self.live.grants).remove(&self.number);
    }
}
