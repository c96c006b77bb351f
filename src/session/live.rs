//! The sessions under way, for who has to end them or to tell of them: after a change of rules or
//! users those that would not be granted any more end, with the server all. With them is kept what
//! the others have relayed, so that a sum of both never goes down.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex};

use crate::log::{Level, Line, Log};
use crate::policy::rules::Ident;
use crate::policy::{Asker, Policy};
use crate::relay::{End, Stopper, Traffic};
use crate::session::record::Record;
use crate::sync::lock;
use crate::wire::Destination;

/// What a session was granted.
pub(super) struct Grant {
    /// To whom, and how it was asked for.
    pub(super) asker: Asker,
    /// For what, and the address at the other end; an association has none.
    pub(super) target: Option<(Destination, IpAddr)>,
    /// What the log says of it.
    pub(super) record: Arc<Record>,
    /// What ends its relay.
    pub(super) stopper: Stopper,
}

impl Grant {
    /// Whether `policy` would grant this too: to the same user with the same password.
    fn holds_under(&self, policy: &Policy) -> bool {
        let mut asker = self.asker.clone();
        match policy.renewed(&asker.user) {
            Some(user) => asker.user = user,
            None => return false,
        }
        if let Ident::Proved(user) = &asker.ident {
            asker.ident = policy.renewed(user).map_or(Ident::Unproved, Ident::Proved);
        }
        match &self.target {
            Some((dst, ip)) => policy.allows(&asker, dst, *ip).is_ok(),
            // Its datagrams are judged by the rules in force, but as those of the user who it was.
            None => {
                let same = asker.user == self.asker.user && asker.ident == self.asker.ident;
                same && policy.may_allow(&asker, None).is_ok()
            }
        }
    }
}

/// The grants of all sessions under way, and what tells those without one yet that the server ends.
pub struct Live {
    state: Mutex<LiveState>,
    /// Closed when all are to end.
    open: Mutex<Option<io::PipeWriter>>,
    ended: io::PipeReader,
}

#[derive(Default)]
struct LiveState {
    grants: HashMap<u64, Arc<Grant>>,
    /// What the sessions that are not among them any more have relayed.
    over: Traffic,
}

impl Live {
    /// Nobody yet.
    ///
    /// # Errors
    /// As pipe(2).
    pub fn new() -> io::Result<Self> {
        let (ended, open) = io::pipe()?;
        Ok(Self { state: Mutex::default(), open: Mutex::new(Some(open)), ended })
    }

    /// Hangs up, as poll(2) calls it, when all sessions are to end.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Puts in the grant of session `number`, which is taken out when what is returned is dropped.
    #[must_use]
    pub(super) fn enter(self: &Arc<Self>, number: u64, grant: Grant) -> Entry {
        let stopper = grant.stopper.clone();
        lock(&self.state).grants.insert(number, Arc::new(grant));
        // Those that were there when it came to an end have been told.
        if lock(&self.open).is_none() {
            stopper.stop(End::Stopped);
        }
        Entry { live: Arc::clone(self), number }
    }

    /// All of them now: what is done with each may take time and locks.
    fn all(&self) -> Vec<Arc<Grant>> {
        lock(&self.state).grants.values().cloned().collect()
    }

    /// Ends all sessions that `policy` would not grant.
    pub fn revoke(&self, policy: &Policy) {
        for grant in self.all().iter().filter(|grant| !grant.holds_under(policy)) {
            grant.stopper.stop(End::Revoked);
        }
    }

    /// Ends all sessions, those that wait for their client, identd or the peer of a BIND too.
    pub fn end_all(&self) {
        *lock(&self.open) = None;
        self.all().iter().for_each(|grant| grant.stopper.stop(End::Stopped));
    }

    /// Writes a line about each session, in the order they were accepted.
    pub fn report(&self, log: &Log) {
        for line in self.lines(usize::MAX, || log.line("session")).1 {
            log.write(Level::Normal, line);
        }
    }

    /// How many there are, and a line, begun by `begin`, about each of those accepted first, `max`
    /// at most.
    pub fn lines(
        &self,
        max: usize,
        begin: impl Fn() -> Line,
    ) -> (usize, impl Iterator<Item = Line>) {
        let record = |grant: &Arc<Grant>| Arc::clone(&grant.record);
        let mut records: Vec<_> = lock(&self.state).grants.values().map(record).collect();
        records.sort_unstable_by_key(|record| record.number);
        let line = move |record: Arc<Record>| record.counted(record.described(begin()));
        (records.len(), records.into_iter().take(max).map(line))
    }

    /// What all sessions together have relayed, those that are over included.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let sum = Traffic::default();
        let state = lock(&self.state);
        sum.add(&state.over);
        state.grants.values().for_each(|grant| sum.add(&grant.record.traffic));
        sum
    }
}

impl Entry {
    /// Ends the session if `policy` would not grant it.
    pub(super) fn check(&self, policy: &Policy) {
        let grant = lock(&self.live.state).grants.get(&self.number).cloned();
        if let Some(grant) = grant
            && !grant.holds_under(policy)
        {
            grant.stopper.stop(End::Revoked);
        }
    }
}

/// A session under way.
pub(super) struct Entry {
    live: Arc<Live>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut state = lock(&self.live.state);
        if let Some(grant) = state.grants.remove(&self.number) {
            state.over.add(&grant.record.traffic);
        }
    }
}
