//! Slots: limits on the number of sessions, in all and per client, and the limit on descriptors
//! that they need. The threads that accept clients are in `server/accept.rs`.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher as _;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::counts::Counts;
use crate::log::Line;
use crate::net::ClientKey;
use crate::sync::lock;
use crate::sys;

/// The least time between two log lines for one reason of refusal. A line has their number.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Descriptors reserved for listeners, the log, look-ups and others that belong to no session.
const SPARE_DESCRIPTORS: u64 = 64;

/// Descriptors of a session: its two connections. A UDP association has four, but associations are
/// few, and a server that runs out of descriptors refuses clients and goes on.
const SESSION_DESCRIPTORS: u64 = 2;

/// Descriptors of a pipe.
const PIPE_DESCRIPTORS: u64 = 2;

/// Limits on simultaneous sessions. A client is an IPv4 address or an IPv6 /64.
#[derive(Clone, Copy, Debug)]
pub struct SlotLimits {
    /// Sessions of all clients together.
    pub sessions: u64,
    /// Sessions of one client.
    pub per_client: u64,
    /// Sessions of all clients before the end of the handshake. One client may have a quarter of
    /// them, but at least one, so that a single silent client cannot keep out all others.
    pub half_open: u64,
    /// Two percentages of [`SlotLimits::sessions`], 1 to 100. Between them new clients are refused
    /// at random: none at the first, all at the second.
    pub early_drop: (u64, u64),
}

impl SlotLimits {
    /// Whether to refuse a client early at `total` sessions. `draw` is a random number.
    fn drops_early(&self, total: u64, draw: u64) -> bool {
        let (low, high) = self.early_drop;
        let (total, low, high) = (total * 100, low * self.sessions, high * self.sessions);
        // Between the two, the refused part grows linearly from none to all.
        total >= high || total > low && draw % (high - low) < total - low
    }
}

/// Raises the limit on open descriptors for `limits` and `pipes`. Returns `limits` and `pipes`,
/// lowered if the descriptors do not suffice. Pipes get an eighth of all descriptors at most.
///
/// # Errors
/// As getrlimit(2).
pub fn fit(mut limits: SlotLimits, pipes: u64) -> io::Result<(SlotLimits, u64)> {
    let (soft, hard) = sys::getrlimit_nofile()?;
    let others = SPARE_DESCRIPTORS + pipes * PIPE_DESCRIPTORS;
    let wanted = (limits.sessions * SESSION_DESCRIPTORS * 2 + others).min(hard);
    let soft =
        if soft < wanted && sys::setrlimit_nofile(wanted, hard).is_ok() { wanted } else { soft };
    let pipes = pipes.min(soft / 8 / PIPE_DESCRIPTORS);
    let others = SPARE_DESCRIPTORS + pipes * PIPE_DESCRIPTORS;
    let possible = soft.saturating_sub(others) / SESSION_DESCRIPTORS;
    limits.sessions = possible.clamp(1, limits.sessions);
    Ok((limits, pipes))
}

/// The reason why a client was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// [`SlotLimits::sessions`].
    Sessions,
    /// [`SlotLimits::per_client`].
    PerClient,
    /// [`SlotLimits::half_open`], or the quarter of one client.
    HalfOpen,
    /// [`SlotLimits::early_drop`].
    EarlyDrop,
    /// The client failed to authenticate too often.
    AuthPenalty,
    /// The system refused another thread.
    Threads,
}

impl Refusal {
    /// All reasons.
    const ALL: [Self; 6] = [
        Self::Sessions,
        Self::PerClient,
        Self::HalfOpen,
        Self::EarlyDrop,
        Self::AuthPenalty,
        Self::Threads,
    ];

    /// The word of the log.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::PerClient => "per-client",
            Self::HalfOpen => "half-open",
            Self::EarlyDrop => "early-drop",
            Self::AuthPenalty => "auth-penalty",
            Self::Threads => "threads",
        }
    }

    /// The key in the log for the number of refused clients.
    fn key(self) -> &'static str {
        match self {
            Self::Sessions => "refused_sessions",
            Self::PerClient => "refused_per_client",
            Self::HalfOpen => "refused_half_open",
            Self::EarlyDrop => "refused_early_drop",
            Self::AuthPenalty => "refused_auth_penalty",
            Self::Threads => "refused_threads",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Numbers of sessions since the start and now.
pub struct Totals {
    /// The current sessions.
    pub sessions: u64,
    /// The current sessions before the end of the handshake.
    pub half_open: u64,
    /// All sessions since the start.
    pub accepted: u64,
    /// All refused clients since the start, by reason.
    pub refused: [(Refusal, u64); Refusal::ALL.len()],
}

/// The slots of all sessions.
pub struct Sessions {
    limits: SlotLimits,
    /// Turns the number of a draw into a random number, which no client can predict.
    draw_hasher: RandomState,
    /// Called when the last session has ended.
    on_idle: Box<dyn Fn() + Send + Sync>,
    state: Mutex<SlotState>,
}

#[derive(Default)]
struct SlotState {
    sessions: Count,
    half_open: Count,
    last_number: u64,
    draws: u64,
    /// When the last session ended, if there is none now.
    idle_since: Option<Instant>,
    /// The refused clients by reason.
    refusals: HashMap<Refusal, Refusals>,
}

impl SlotState {
    /// Checks the limits of one client for another session of `client`.
    fn check_client(&self, client: ClientKey, limits: SlotLimits) -> Result<(), Refusal> {
        if self.sessions.by_client.of(&client) >= limits.per_client {
            return Err(Refusal::PerClient);
        }
        if self.half_open.by_client.of(&client) >= (limits.half_open / 4).max(1) {
            return Err(Refusal::HalfOpen);
        }
        Ok(())
    }
}

#[derive(Default)]
struct Refusals {
    total: u64,
    /// The number since the last log line.
    unlogged: u64,
    /// The time of the last log line.
    logged: Option<Instant>,
}

/// A number of sessions, in all and per client.
#[derive(Default)]
struct Count {
    total: u64,
    by_client: Counts<ClientKey>,
}

impl Count {
    fn add(&mut self, client: Option<ClientKey>) {
        self.total += 1;
        client.into_iter().for_each(|client| self.by_client.add(client));
    }

    fn remove(&mut self, client: Option<ClientKey>) {
        self.total -= 1;
        client.into_iter().for_each(|client| self.by_client.remove(client));
    }
}

impl Sessions {
    /// No sessions yet. `on_idle` is called each time the last session ends.
    #[must_use]
    pub fn new(limits: SlotLimits, on_idle: impl Fn() + Send + Sync + 'static) -> Self {
        let state = SlotState { idle_since: Some(Instant::now()), ..SlotState::default() };
        let on_idle = Box::new(on_idle);
        Self { limits, draw_hasher: RandomState::new(), on_idle, state: Mutex::new(state) }
    }

    /// The number of sessions.
    pub fn count(&self) -> u64 {
        lock(&self.state).sessions.total
    }

    /// How long there has been no session; `None` if there is one.
    pub fn idle_for(&self) -> Option<Duration> {
        lock(&self.state).idle_since.map(|since| since.elapsed())
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> SlotLimits {
        self.limits
    }

    /// The numbers of sessions and of refused clients.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let state = lock(&self.state);
        let total = |refusal| state.refusals.get(&refusal).map_or(0, |refusals| refusals.total);
        Totals {
            sessions: state.sessions.total,
            half_open: state.half_open.total,
            accepted: state.last_number,
            refused: Refusal::ALL.map(|refusal| (refusal, total(refusal))),
        }
    }

    /// Adds these numbers to a log line.
    pub fn report(&self, line: Line) -> Line {
        let Totals { sessions, half_open, accepted, refused } = self.totals();
        let line = line
            .number("sessions", sessions)
            .number("half_open", half_open)
            .number("accepted", accepted);
        refused.into_iter().fold(line, |line, (refusal, total)| line.number(refusal.key(), total))
    }

    /// Takes a slot for the session of a client, and one for its handshake. Each is freed when it
    /// is dropped. `client` is `None` for a balancer, which has not named its client yet: the
    /// limits of one client do not apply to it.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn admit(
        this: &Arc<Self>,
        client: Option<ClientKey>,
    ) -> Result<(SessionSlot, HalfOpenSlot), Refusal> {
        let mut state = lock(&this.state);
        if state.sessions.total >= this.limits.sessions {
            return Err(Refusal::Sessions);
        }
        if state.half_open.total >= this.limits.half_open {
            return Err(Refusal::HalfOpen);
        }
        if let Some(client) = client {
            state.check_client(client, this.limits)?;
        }
        state.draws += 1;
        if this.limits.drops_early(state.sessions.total, this.draw_hasher.hash_one(state.draws)) {
            return Err(Refusal::EarlyDrop);
        }
        state.idle_since = None;
        state.sessions.add(client);
        state.half_open.add(client);
        state.last_number += 1;
        let slot = SessionSlot { sessions: Arc::clone(this), client, number: state.last_number };
        Ok((slot, HalfOpenSlot { sessions: Arc::clone(this), client }))
    }

    /// Counts a refusal. Once a second for each reason, returns the number of refusals since the
    /// last log line, for a new line.
    pub fn count_refusal(&self, refusal: Refusal, now: Instant) -> Option<u64> {
        let mut state = lock(&self.state);
        let refusals = state.refusals.entry(refusal).or_default();
        refusals.total += 1;
        refusals.unlogged += 1;
        if refusals.logged.is_some_and(|logged| now.duration_since(logged) < LOG_INTERVAL) {
            return None;
        }
        refusals.logged = Some(now);
        Some(std::mem::take(&mut refusals.unlogged))
    }
}

/// The slot of one session, until it is dropped.
pub struct SessionSlot {
    sessions: Arc<Sessions>,
    client: Option<ClientKey>,
    number: u64,
}

impl SessionSlot {
    /// The number of the session, from 1, in the order of acceptance.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Counts the session and its handshake for `client` from now on.
    ///
    /// # Errors
    /// `PerClient`, or `HalfOpen` for the quarter of one client.
    pub fn reassign(
        &mut self,
        client: ClientKey,
        half_open: &mut HalfOpenSlot,
    ) -> Result<(), Refusal> {
        let mut state = lock(&self.sessions.state);
        state.check_client(client, self.sessions.limits)?;
        state.sessions.remove(self.client);
        state.half_open.remove(half_open.client);
        (self.client, half_open.client) = (Some(client), Some(client));
        state.sessions.add(self.client);
        state.half_open.add(half_open.client);
        Ok(())
    }
}

impl Drop for SessionSlot {
    fn drop(&mut self) {
        let mut state = lock(&self.sessions.state);
        state.sessions.remove(self.client);
        if state.sessions.total == 0 {
            state.idle_since = Some(Instant::now());
            drop(state);
            (self.sessions.on_idle)();
        }
    }
}

/// The slot of one handshake, until it is dropped.
pub struct HalfOpenSlot {
    sessions: Arc<Sessions>,
    client: Option<ClientKey>,
}

impl Drop for HalfOpenSlot {
    fn drop(&mut self) {
        lock(&self.sessions.state).half_open.remove(self.client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<ClientKey> {
        Some(ClientKey::of(Some(text.parse().unwrap())))
    }

    fn limits(sessions: u64, per_client: u64, half_open: u64) -> SlotLimits {
        SlotLimits { sessions, per_client, half_open, early_drop: (100, 100) }
    }

    #[test]
    fn limits_hold_and_slots_are_freed() {
        let sessions = Arc::new(Sessions::new(limits(3, 2, 9), || ()));
        let admit = |text| Sessions::admit(&sessions, ip(text)).map(|(slot, _)| slot);
        let first = admit("192.0.2.1").ok().unwrap();
        let second = admit("192.0.2.1").ok().unwrap();
        assert_eq!((first.number(), second.number()), (1, 2));
        assert_eq!(admit("192.0.2.1").err(), Some(Refusal::PerClient));
        let _third = admit("192.0.2.2").ok().unwrap();
        assert_eq!(admit("192.0.2.3").err(), Some(Refusal::Sessions));
        drop(first);
        drop(second);
        assert!(admit("192.0.2.1").is_ok());
        let state = lock(&sessions.state);
        assert!(!state.sessions.by_client.is_empty() && state.half_open.by_client.is_empty());
    }

    #[test]
    fn one_ipv6_host_is_counted_by_its_64() {
        let sessions = Arc::new(Sessions::new(limits(9, 1, 9), || ()));
        let _one = Sessions::admit(&sessions, ip("2001:db8::1")).ok().unwrap();
        let other = Sessions::admit(&sessions, ip("2001:db8::2")).err();
        assert_eq!(other, Some(Refusal::PerClient));
        assert!(Sessions::admit(&sessions, ip("2001:db8:0:1::1")).is_ok());
    }

    #[test]
    fn one_client_has_a_quarter_of_the_half_open_and_all_together_no_more_than_all() {
        let sessions = Arc::new(Sessions::new(limits(99, 99, 8), || ()));
        let admit =
            |n: u8| Sessions::admit(&sessions, Some(ClientKey::of(Some([192, 0, 2, n].into()))));
        let mut open: Vec<_> = (0..8).map(|n| admit(n / 2).ok().unwrap()).collect();
        for client in [0, 3, 4] {
            assert_eq!(admit(client).err(), Some(Refusal::HalfOpen), "{client}");
        }
        // The end of a handshake frees its slot, while the session goes on.
        let (_slot, half_open) = open.remove(0);
        drop(half_open);
        assert_eq!(admit(1).err(), Some(Refusal::HalfOpen));
        assert!(admit(0).is_ok());
        assert!(admit(4).is_ok());
        assert_eq!(lock(&sessions.state).sessions.total, 8);
    }

    #[test]
    fn a_session_through_a_balancer_is_counted_for_its_client() {
        let sessions = Arc::new(Sessions::new(limits(9, 1, 8), || ()));
        let admit = || Sessions::admit(&sessions, None).ok().unwrap();
        let (mut one, mut half) = admit();
        let (mut other, mut other_half) = admit();
        let client = ClientKey::of(Some([192, 0, 2, 1].into()));
        assert!(one.reassign(client, &mut half).is_ok());
        assert_eq!(other.reassign(client, &mut other_half), Err(Refusal::PerClient));
        assert_eq!(Sessions::admit(&sessions, Some(client)).err(), Some(Refusal::PerClient));
        drop(one);
        assert!(other.reassign(client, &mut other_half).is_ok());
        drop(other);
        assert!(lock(&sessions.state).sessions.by_client.is_empty());
    }

    #[test]
    fn the_part_dropped_early_grows_from_none_at_low_to_all_at_high() {
        for (sessions, low, high, total, dropped) in [
            (1_000, 75, 100, 0, 0),
            (1_000, 75, 100, 750, 0),
            (1_000, 75, 100, 751, 4),
            (1_000, 75, 100, 800, 200),
            (1_000, 75, 100, 999, 996),
            (1_000, 75, 100, 1_000, 1_000),
            (1_000, 20, 40, 300, 500),
            (1_000, 20, 40, 400, 1_000),
            (1_000, 50, 50, 499, 0),
            (1_000, 50, 50, 500, 1_000),
            (1_000_000, 1, 100, 1_000_000, 1_000),
            // The first client is admitted with any percentages.
            (1, 1, 1, 0, 0),
            (3, 75, 100, 2, 0),
        ] {
            let limits = SlotLimits { early_drop: (low, high), ..limits(sessions, 1, 1) };
            // A sample of all possible draws.
            let span = (high - low) * sessions;
            let draws = (0..1_000).map(|draw| draw * span / 1_000);
            let count = draws.filter(|draw| limits.drops_early(total, *draw)).count();
            assert_eq!(count, dropped, "{limits:?} {total}");
        }
    }

    #[test]
    fn no_two_servers_drop_the_same_clients_early() {
        let outcome = || -> Vec<bool> {
            let limits = SlotLimits { early_drop: (1, 100), ..limits(1_000, 1_000, 9_000) };
            let sessions = Arc::new(Sessions::new(limits, || ()));
            let kept: Vec<_> =
                (0..1_000).map(|_| Sessions::admit(&sessions, ip("192.0.2.1"))).collect();
            kept.iter().map(Result::is_ok).collect()
        };
        let (one, other) = (outcome(), outcome());
        assert_ne!(one, other);
        for outcome in [one, other] {
            let kept = outcome.into_iter().filter(|kept| *kept).count();
            assert!((550..720).contains(&kept), "{kept}: about 1,000 * (1 - 1/e)");
        }
    }

    #[test]
    fn a_session_that_panics_frees_its_slots() {
        let sessions = Arc::new(Sessions::new(limits(1, 1, 1), || ()));
        let taken = Sessions::admit(&sessions, ip("192.0.2.1")).ok().unwrap();
        let panics = std::panic::AssertUnwindSafe(move || {
            let _taken = taken;
            panic!("on purpose");
        });
        std::panic::catch_unwind(panics).unwrap_err();
        let state = lock(&sessions.state);
        assert_eq!((state.sessions.total, state.half_open.total), (0, 0));
    }

    #[test]
    fn many_refusals_are_logged_once_a_second_with_their_count() {
        let sessions = Sessions::new(limits(0, 0, 0), || ());
        let now = Instant::now();
        let logged: Vec<_> = [0, 10, 999, 1_000, 1_001, 2_000]
            .map(|millis| {
                sessions.count_refusal(Refusal::Sessions, now + Duration::from_millis(millis))
            })
            .into();
        assert_eq!(logged, [Some(1), None, None, Some(3), None, Some(2)]);
    }

    #[test]
    fn each_reason_is_logged_by_itself() {
        let sessions = Sessions::new(limits(0, 0, 0), || ());
        let now = Instant::now();
        let later = now + LOG_INTERVAL;
        for refusal in [Refusal::Sessions, Refusal::PerClient] {
            assert_eq!(sessions.count_refusal(refusal, now), Some(1));
        }
        assert_eq!(sessions.count_refusal(Refusal::Sessions, now), None);
        assert_eq!(sessions.count_refusal(Refusal::PerClient, later), Some(1));
        assert_eq!(sessions.count_refusal(Refusal::Sessions, later), Some(2));
    }
}
