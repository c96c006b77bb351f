//! Penalties against guessing: a client that fails to authenticate waits longer for each answer,
//! and finally is shut out for a while.
//!
//! Only time lowers a count. Success does not: with one valid account an attacker could otherwise
//! clear the count after each guess at the others.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::net::ClientKey;
use crate::sync::lock;

/// The number of failures that shuts a client out.
const FAILURES_MAX: u32 = 10;

/// The most clients remembered. One more replaces the client with the oldest last failure. Each
/// failure costs the time of a hash, so an attacker cannot quickly replace its own entry.
const CLIENTS_MAX: usize = 10_000;

/// The delay of the answer to the first failure. It doubles with each further failure.
const DELAY_FIRST: Duration = Duration::from_millis(100);

/// The longest delay of an answer.
const DELAY_MAX: Duration = Duration::from_secs(5);

/// The clients that have failed recently. The caller decides what counts as one client.
pub struct Penalties {
    time: Duration,
    records: Mutex<HashMap<ClientKey, Failures>>,
}

struct Failures {
    /// The number of failures at `last`; at [`FAILURES_MAX`] the client is shut out.
    count: u32,
    /// When the last of them is answered, so that the delay does not lower the count.
    last: Instant,
}

/// The consequence of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Penalty {
    /// The delay of the answer.
    pub delay: Duration,
    /// Whether this failure shuts the client out.
    pub shuts_out: bool,
}

impl Penalties {
    /// Penalties that shut clients out for `time`, and forget one failure in each tenth of it that
    /// passes without another. With a `time` of zero there are no penalties.
    #[must_use]
    pub fn new(time: Duration) -> Self {
        Self { time, records: Mutex::default() }
    }

    /// How long a client is shut out.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Whether `client` is shut out.
    #[must_use]
    pub fn shut_out(&self, client: ClientKey, now: Instant) -> bool {
        let records = lock(&self.records);
        records.get(&client).is_some_and(|record| self.is_shut_out(record, now))
    }

    fn is_shut_out(&self, record: &Failures, now: Instant) -> bool {
        record.count == FAILURES_MAX && now.saturating_duration_since(record.last) < self.time
    }

    /// Counts a failure of `client`.
    pub fn fail(&self, client: ClientKey, now: Instant) -> Penalty {
        if self.time.is_zero() {
            return Penalty { delay: Duration::ZERO, shuts_out: false };
        }
        let mut records = lock(&self.records);
        if records.len() >= CLIENTS_MAX && !records.contains_key(&client) {
            let oldest = records.iter().min_by_key(|(_, record)| record.last);
            if let Some(oldest) = oldest.map(|(client, _)| *client) {
                records.remove(&oldest);
            }
        }
        let record = records.entry(client).or_insert(Failures { count: 0, last: now });
        if self.is_shut_out(record, now) {
            // This check began before the client was shut out.
            return Penalty { delay: DELAY_MAX, shuts_out: false };
        }
        let quiet = now.saturating_duration_since(record.last);
        let forgotten = quiet.as_nanos() / (self.time / FAILURES_MAX).as_nanos();
        let forgotten = u32::try_from(forgotten).unwrap_or(u32::MAX);
        let failures = record.count.saturating_sub(forgotten);
        let delay = (DELAY_FIRST * 2_u32.pow(failures)).min(DELAY_MAX);
        // Simultaneous failures may be answered in another order.
        *record = Failures { count: failures + 1, last: record.last.max(now + delay) };
        Penalty { delay, shuts_out: record.count == FAILURES_MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(600);

    fn client(n: u32) -> ClientKey {
        ClientKey::of(Some(std::net::Ipv4Addr::from_bits(n).into()))
    }

    /// Counts `times` failures of a client, each right after the answer to the one before; returns
    /// the penalties and the time of the last answer.
    fn fail(
        penalties: &Penalties,
        client: ClientKey,
        times: usize,
        mut now: Instant,
    ) -> (Vec<Penalty>, Instant) {
        let mut given = Vec::new();
        for _ in 0..times {
            given.push(penalties.fail(client, now));
            now += given[given.len() - 1].delay;
        }
        (given, now)
    }

    #[test]
    fn each_failure_waits_longer_and_the_tenth_shuts_out_for_the_time() {
        let penalties = Penalties::new(TIME);
        let begun = Instant::now();
        let (given, now) = fail(&penalties, client(1), 9, begun);
        let delays: Vec<_> = given.iter().map(|penalty| penalty.delay.as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000]);
        assert!(given.iter().all(|penalty| !penalty.shuts_out));
        assert!(!penalties.shut_out(client(1), now));

        let (given, answered) = fail(&penalties, client(1), 1, now);
        assert_eq!(given, [Penalty { delay: DELAY_MAX, shuts_out: true }]);
        assert!(penalties.shut_out(client(1), now));
        assert!(penalties.shut_out(client(1), answered + TIME - Duration::from_millis(1)));
        assert!(!penalties.shut_out(client(2), now), "another client is not affected");
        assert_eq!(penalties.fail(client(2), now).delay, DELAY_FIRST);
        // A check that began before neither extends the time nor reports it again.
        let late = penalties.fail(client(1), now + Duration::from_secs(60));
        assert_eq!(late, Penalty { delay: DELAY_MAX, shuts_out: false });
        let over = answered + TIME;
        assert!(!penalties.shut_out(client(1), over));
        assert_eq!(
            penalties.fail(client(1), over).delay,
            DELAY_FIRST,
            "all failures are forgotten"
        );
    }

    #[test]
    fn failures_at_the_same_time_are_all_counted() {
        let penalties = Penalties::new(TIME);
        let now = Instant::now();
        let given = [(); 11].map(|()| penalties.fail(client(1), now).shuts_out);
        assert_eq!(given.iter().position(|shuts_out| *shuts_out), Some(9));
        assert!(!given[10]);
    }

    #[test]
    fn one_failure_is_forgotten_in_each_tenth_of_the_time() {
        for (quiet, expected) in [(59, 6), (60, 5), (179, 4), (180, 3), (6_000, 1)] {
            let penalties = Penalties::new(TIME);
            let (_, now) = fail(&penalties, client(1), 5, Instant::now());
            penalties.fail(client(1), now + Duration::from_secs(quiet));
            let failures = lock(&penalties.records)[&client(1)].count;
            assert_eq!(failures, expected, "after {quiet} s");
        }
        // A client that fails less often than that is never shut out.
        let penalties = Penalties::new(TIME);
        let (_, mut now) = fail(&penalties, client(1), 5, Instant::now());
        for _ in 0..100 {
            now += Duration::from_secs(70);
            assert!(!penalties.fail(client(1), now).shuts_out);
        }
    }

    #[test]
    fn a_bounded_number_of_clients_is_remembered_and_the_oldest_is_forgotten_first() {
        let penalties = Penalties::new(TIME);
        let begun = Instant::now();
        fail(&penalties, client(0), 10, begun);
        let at = |n: u32| begun + Duration::from_millis(n.into());
        let last = u32::try_from(CLIENTS_MAX).unwrap() + 500;
        // The first client was shut out later than many others failed.
        for n in 1..last {
            penalties.fail(client(n), at(n));
            assert!(lock(&penalties.records).len() <= CLIENTS_MAX);
        }
        let records = lock(&penalties.records);
        assert_eq!(records.len(), CLIENTS_MAX);
        assert!(records.contains_key(&client(0)) && records.contains_key(&client(last - 1)));
        assert!(!records.contains_key(&client(1)));
    }

    #[test]
    fn with_a_time_of_zero_there_is_no_penalty() {
        let penalties = Penalties::new(Duration::ZERO);
        let (given, now) = fail(&penalties, client(1), 100, Instant::now());
        assert!(given.iter().all(|penalty| penalty.delay.is_zero() && !penalty.shuts_out));
        assert!(!penalties.shut_out(client(1), now));
        assert!(lock(&penalties.records).is_empty());
    }

    #[test]
    fn the_longest_time_does_not_overflow() {
        let penalties = Penalties::new(Duration::from_secs(86_400));
        let (given, now) = fail(&penalties, client(1), 10, Instant::now());
        assert!(given[9].shuts_out && penalties.shut_out(client(1), now));
    }
}
