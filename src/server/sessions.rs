//! Slots: how many sessions there may be, in all and for one client.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::policy::nets::client_block;
use crate::threads::lock;

/// How often refusals are told of; those between are counted.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Most sessions at once.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Of all clients together.
    pub sessions: usize,
    /// Of one client: an IPv4 address or an IPv6 /64.
    pub per_client: usize,
}

/// Which cap kept a client out; Display gives the word of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// [`Caps::sessions`].
    Sessions,
    /// [`Caps::per_client`].
    PerClient,
    /// The system gives no more threads.
    Threads,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sessions => "sessions",
            Self::PerClient => "per-client",
            Self::Threads => "threads",
        })
    }
}

/// The sessions there are.
pub struct Sessions {
    caps: Caps,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    total: usize,
    by_client: HashMap<IpAddr, usize>,
    last_number: u64,
    /// Of each cause: refusals not told of yet, and when the last was.
    refusals: HashMap<Refusal, (u64, Option<Instant>)>,
}

impl Sessions {
    /// No sessions yet.
    #[must_use]
    pub fn new(caps: Caps) -> Self {
        Self { caps, state: Mutex::default() }
    }

    /// Takes a slot for a client, given back when it is dropped.
    ///
    /// # Errors
    /// The cap that is reached.
    pub fn admit(this: &Arc<Self>, client: IpAddr) -> Result<Slot, Refusal> {
        let client = client_block(client);
        let mut state = lock(&this.state);
        if state.total >= this.caps.sessions {
            return Err(Refusal::Sessions);
        }
        if state.by_client.get(&client).is_some_and(|&count| count >= this.caps.per_client) {
            return Err(Refusal::PerClient);
        }
        state.total += 1;
        *state.by_client.entry(client).or_insert(0) += 1;
        state.last_number += 1;
        Ok(Slot { sessions: Arc::clone(this), client, number: state.last_number })
    }

    /// Counts a refusal. Returns how many of its cause there were since one was told of last if this
    /// one is to be told of, at most one of each cause each second.
    pub fn tell(&self, refusal: Refusal, now: Instant) -> Option<u64> {
        let mut state = lock(&self.state);
        let (untold, told) = state.refusals.entry(refusal).or_default();
        *untold += 1;
        if told.is_some_and(|told| now.duration_since(told) < TELL_EVERY) {
            return None;
        }
        *told = Some(now);
        Some(std::mem::take(untold))
    }
}

/// The right of one session to be there.
pub struct Slot {
    sessions: Arc<Sessions>,
    client: IpAddr,
    number: u64,
}

impl Slot {
    /// The session's number, from 1, in the order of acceptance.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = lock(&self.sessions.state);
        state.total -= 1;
        if let Some(count) = state.by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                state.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn caps_hold_and_slots_come_back() {
        let sessions = Arc::new(Sessions::new(Caps { sessions: 3, per_client: 2 }));
        let admit = |text| Sessions::admit(&sessions, ip(text));
        let first = admit("192.0.2.1").ok().unwrap();
        let second = admit("192.0.2.1").ok().unwrap();
        assert_eq!((first.number(), second.number()), (1, 2));
        assert_eq!(admit("192.0.2.1").err(), Some(Refusal::PerClient));
        let _third = admit("192.0.2.2").ok().unwrap();
        assert_eq!(admit("192.0.2.3").err(), Some(Refusal::Sessions));
        drop(first);
        drop(second);
        assert!(admit("192.0.2.1").is_ok());
        assert_eq!(lock(&sessions.state).by_client.len(), 1);
    }

    #[test]
    fn one_ipv6_host_is_counted_by_its_64() {
        let sessions = Arc::new(Sessions::new(Caps { sessions: 9, per_client: 1 }));
        let _one = Sessions::admit(&sessions, ip("2001:db8::1")).ok().unwrap();
        let other = Sessions::admit(&sessions, ip("2001:db8::2")).err();
        assert_eq!(other, Some(Refusal::PerClient));
        assert!(Sessions::admit(&sessions, ip("2001:db8:0:1::1")).is_ok());
    }

    #[test]
    fn many_refusals_are_told_of_once_a_second_with_their_count() {
        let sessions = Sessions::new(Caps { sessions: 0, per_client: 0 });
        let now = Instant::now();
        let told: Vec<_> = [0, 10, 999, 1_000, 1_001, 2_000]
            .map(|millis| sessions.tell(Refusal::Sessions, now + Duration::from_millis(millis)))
            .into();
        assert_eq!(told, [Some(1), None, None, Some(3), None, Some(2)]);
    }

    #[test]
    fn each_cause_is_told_of_by_itself() {
        let sessions = Sessions::new(Caps { sessions: 0, per_client: 0 });
        let now = Instant::now();
        let later = now + TELL_EVERY;
        for refusal in [Refusal::Sessions, Refusal::PerClient] {
            assert_eq!(sessions.tell(refusal, now), Some(1));
        }
        assert_eq!(sessions.tell(Refusal::Sessions, now), None);
        assert_eq!(sessions.tell(Refusal::PerClient, later), Some(1));
        assert_eq!(sessions.tell(Refusal::Sessions, later), Some(2));
    }
}
