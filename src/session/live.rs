//! The sessions under way, as far as somebody else may have to end them: after a change of rules or
//! users, those that would not be granted any more.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;

use crate::policy::rules::Ident;
use crate::policy::{Asker, Policy};
use crate::relay::{End, Stopper};
use crate::threads::lock;
use crate::wire::{Destination, Version};

/// What a session was granted.
#[derive(Clone)]
pub struct Grant {
    /// To whom, and how it was asked for.
    pub asker: Asker,
    /// For what, and the address at the other end; an association has none.
    pub target: Option<(Destination, IpAddr)>,
    /// What ends its relay.
    pub stopper: Stopper,
}

impl Grant {
    /// Whether `policy` would grant this too: to the same user with the same password.
    fn holds_under(&self, policy: &Policy) -> bool {
        let mut asker = self.asker.clone();
        if let Some(name) = asker.user.name() {
            let user = policy.users.as_ref().and_then(|users| users.with_password(name));
            match user.filter(|user| user.has_password_of(&asker.user)) {
                Some(user) => asker.user = user,
                None => return false,
            }
        }
        if let Ident::Proved(user) = &asker.ident {
            let name = user.name().unwrap_or_default();
            asker.ident = Ident::of_answer(policy.users.as_ref(), Version::V5, b"", name);
        }
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
    /// Ends the session if `policy` would not grant it.
    pub fn check(&self, policy: &Policy) {
        let grant = lock(&self.live.grants).get(&self.number).cloned();
        if let Some(grant) = grant
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
