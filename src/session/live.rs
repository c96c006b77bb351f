//! The sessions under way: a strict reload ends those that the new policy does not allow, the end
//! of the server ends all, and the status report lists them. The traffic of ended sessions is kept
//! as well, so that the total never decreases.

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

/// A session that was granted and is under way.
pub(super) struct LiveSession {
    /// The client and its request.
    pub(super) asker: Asker,
    /// The destination and the address of the target; an association has none.
    pub(super) target: Option<(Destination, IpAddr)>,
    /// The fields for the log.
    pub(super) record: Arc<Record>,
    /// The means to end its relay.
    pub(super) stopper: Stopper,
}

impl LiveSession {
    /// Whether `policy` allows the session too: the same user with the same password.
    fn is_allowed_by(&self, policy: &Policy) -> bool {
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
            // Each datagram is checked by the rules in force, but for the user as it was.
            None => {
                let same = asker.user == self.asker.user && asker.ident == self.asker.ident;
                same && policy.may_allow(&asker, None).is_ok()
            }
        }
    }
}

/// All sessions under way, and a pipe that ends those in their handshake, too.
pub struct LiveSessions {
    state: Mutex<LiveState>,
    /// Closed to end all sessions.
    writer: Mutex<Option<io::PipeWriter>>,
    /// Hangs up when `writer` is closed.
    ended: io::PipeReader,
}

#[derive(Default)]
struct LiveState {
    sessions: HashMap<u64, Arc<LiveSession>>,
    /// The traffic of all ended sessions.
    past: Traffic,
}

impl LiveSessions {
    /// No sessions yet.
    ///
    /// # Errors
    /// As pipe(2).
    pub fn new() -> io::Result<Self> {
        let (ended, writer) = io::pipe()?;
        Ok(Self { state: Mutex::default(), writer: Mutex::new(Some(writer)), ended })
    }

    /// A descriptor with POLLHUP of poll(2) from the time when all sessions are to end.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Adds session `number`, until the registration is dropped.
    #[must_use]
    pub(super) fn register(self: &Arc<Self>, number: u64, session: LiveSession) -> Registration {
        let stopper = session.stopper.clone();
        lock(&self.state).sessions.insert(number, Arc::new(session));
        // `end_all` may have missed it.
        if lock(&self.writer).is_none() {
            stopper.stop(End::Stopped);
        }
        Registration { live: Arc::clone(self), number }
    }

    /// A copy of the list, so that no lock is held while something is done with each session.
    fn all(&self) -> Vec<Arc<LiveSession>> {
        lock(&self.state).sessions.values().cloned().collect()
    }

    /// Ends all sessions that `policy` does not allow.
    pub fn enforce(&self, policy: &Policy) {
        for session in self.all().iter().filter(|session| !session.is_allowed_by(policy)) {
            session.stopper.stop(End::Revoked);
        }
    }

    /// Ends all sessions, including those in a handshake and those that wait for others.
    pub fn end_all(&self) {
        *lock(&self.writer) = None;
        self.all().iter().for_each(|session| session.stopper.stop(End::Stopped));
    }

    /// Logs a line for each session, in the order of acceptance.
    pub fn report(&self, log: &Log) {
        for line in self.lines(usize::MAX, || log.line("session")).1 {
            log.write(Level::Normal, line);
        }
    }

    /// The number of sessions, and a line for each of the first `max`, in the order of acceptance.
    /// `begin` begins a line.
    pub fn lines(
        &self,
        max: usize,
        begin: impl Fn() -> Line,
    ) -> (usize, impl Iterator<Item = Line>) {
        let record = |session: &Arc<LiveSession>| Arc::clone(&session.record);
        let mut records: Vec<_> = lock(&self.state).sessions.values().map(record).collect();
        records.sort_unstable_by_key(|record| record.number);
        let line = move |record: Arc<Record>| record.add_totals(record.add_identity(begin()));
        (records.len(), records.into_iter().take(max).map(line))
    }

    /// The traffic of all sessions, including those that have ended.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let sum = Traffic::default();
        let state = lock(&self.state);
        sum.add(&state.past);
        state.sessions.values().for_each(|session| sum.add(&session.record.traffic));
        sum
    }
}

/// The place of a session in [`LiveSessions`], given up when it is dropped.
pub(super) struct Registration {
    live: Arc<LiveSessions>,
    number: u64,
}

impl Registration {
    /// Ends the session if `policy` does not allow it.
    pub(super) fn enforce(&self, policy: &Policy) {
        let session = lock(&self.live.state).sessions.get(&self.number).cloned();
        if let Some(session) = session
            && !session.is_allowed_by(policy)
        {
            session.stopper.stop(End::Revoked);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = lock(&self.live.state);
        if let Some(session) = state.sessions.remove(&self.number) {
            state.past.add(&session.record.traffic);
        }
    }
}
