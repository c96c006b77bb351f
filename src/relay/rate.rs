//! A limit on octets per second: one leaky bucket for each direction, for one session or for all
//! sessions of a user. Nothing waits here; the caller does.
//!
//! The level of a bucket is what has passed and is not yet paid for; it falls at the rate. A stream
//! is charged and then waits its turn. A datagram cannot wait: it passes or is dropped. Streams
//! keep the level high, which would leave nothing to datagrams, so datagrams have a second level of
//! their own. They are charged to the first one as well, which keeps the sum at the rate.

use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::relay::end::Side;
use crate::sync::lock;

/// Units of a level that one octet takes. In octets times nanoseconds nothing is ever rounded.
const OCTET: u128 = 1_000_000_000;

/// Octets of the largest possible datagram. One passes at any rate.
const DATAGRAM_MAX: u128 = 65_535;

/// A rate, the same up and down, and the bucket of each direction.
#[derive(Debug)]
pub struct Rate {
    octets_per_second: NonZeroU64,
    up: Mutex<Bucket>,
    down: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// The level of all octets.
    all: u128,
    /// The level of datagrams alone.
    datagrams: u128,
    /// When the levels were last lowered.
    at: Instant,
}

impl Rate {
    /// A rate with empty buckets.
    #[must_use]
    pub fn new(octets_per_second: NonZeroU64) -> Self {
        let bucket = || Mutex::new(Bucket { all: 0, datagrams: 0, at: Instant::now() });
        Self { octets_per_second, up: bucket(), down: bucket() }
    }

    /// Octets that a stream should pass at once to flow smoothly: a tenth of a second's worth, at
    /// least one. A pause saves up no more than that.
    #[must_use]
    pub fn portion(&self) -> usize {
        usize::try_from(self.octets_per_second.get() / 10).unwrap_or(usize::MAX).max(1)
    }

    /// Charges `octets` of a stream from this side, and returns how long they have to wait from
    /// `now` on. A stream charged earlier waits for less, so that several streams take turns.
    pub fn charge(&self, from: Side, octets: usize, now: Instant) -> Duration {
        let mut bucket = self.bucket(from, now);
        bucket.all = bucket.all.saturating_add(cost(octets));
        let excess = bucket.all.saturating_sub(cost(self.portion()));
        let nanos = excess.div_ceil(self.octets_per_second.get().into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Whether a datagram of `octets` from this side may pass; charges it if so.
    pub fn allows(&self, from: Side, octets: usize, now: Instant) -> bool {
        let mut bucket = self.bucket(from, now);
        let datagrams = bucket.datagrams.saturating_add(cost(octets));
        let allowed = datagrams <= cost(self.portion()).max(DATAGRAM_MAX * OCTET);
        if allowed {
            bucket.datagrams = datagrams;
            bucket.all = bucket.all.saturating_add(cost(octets));
        }
        allowed
    }

    /// Whether all levels are down to zero, as in a new rate.
    pub fn is_rested(&self, now: Instant) -> bool {
        [Side::Client, Side::Target].into_iter().all(|from| {
            let bucket = self.bucket(from, now);
            (bucket.all, bucket.datagrams) == (0, 0)
        })
    }

    /// The bucket of the octets from this side, lowered up to `now`.
    fn bucket(&self, from: Side, now: Instant) -> MutexGuard<'_, Bucket> {
        let mut bucket = lock(match from {
            Side::Client => &self.up,
            Side::Target => &self.down,
        });
        // Threads may arrive in another order than they read the clock.
        let nanos = now.saturating_duration_since(bucket.at).as_nanos();
        let paid = nanos.saturating_mul(self.octets_per_second.get().into());
        bucket.at = bucket.at.max(now);
        bucket.all = bucket.all.saturating_sub(paid);
        bucket.datagrams = bucket.datagrams.saturating_sub(paid);
        bucket
    }
}

fn cost(octets: usize) -> u128 {
    u128::try_from(octets).unwrap_or(u128::MAX).saturating_mul(OCTET)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate(octets_per_second: u64) -> Rate {
        Rate::new(NonZeroU64::new(octets_per_second).unwrap())
    }

    /// Shares a rate among streams that always have something to send, each in portions of its own
    /// size, and returns what each of them passes in `time`.
    fn share(rate: &Rate, begun: Instant, time: Duration, portions: &[usize]) -> Vec<usize> {
        let mut passed = vec![0; portions.len()];
        let mut until: Vec<_> =
            portions.iter().map(|&len| begun + rate.charge(Side::Client, len, begun)).collect();
        loop {
            let next = (0..until.len()).min_by_key(|&index| until[index]).unwrap();
            let now = until[next];
            if now > begun + time {
                return passed;
            }
            passed[next] += portions[next];
            until[next] = now + rate.charge(Side::Client, portions[next], now);
        }
    }

    #[test]
    fn a_stream_gets_its_rate_and_no_more_whatever_the_rate() {
        for octets in [1, 2, 7, 9, 10, 11, 100, 999, 500_000, 3_000_000_019] {
            let rate = rate(octets);
            let passed = share(&rate, Instant::now(), 60 * SECOND, &[rate.portion()])[0];
            let fair = usize::try_from(60 * octets).unwrap();
            let bounds = fair..=fair + rate.portion();
            assert!(bounds.contains(&passed), "{octets}: {passed} not in {bounds:?}");
        }
    }

    #[test]
    fn charges_too_small_for_a_nanosecond_add_up() {
        let (rate, now) = (rate(3_000_000_000), Instant::now());
        assert_eq!(rate.charge(Side::Client, 300_000_000, now), Duration::ZERO);
        let waits = (0..300_000).map(|_| rate.charge(Side::Client, 1, now));
        assert_eq!(waits.last(), Some(Duration::from_micros(100)));
    }

    #[test]
    fn several_streams_take_turns() {
        for (octets, streams) in [(10_000, 3), (10_000, 50), (1, 4)] {
            let rate = rate(octets);
            let portion = rate.portion();
            let passed = share(&rate, Instant::now(), 100 * SECOND, &vec![portion; streams]);
            let (least, most) = (passed.iter().min().unwrap(), passed.iter().max().unwrap());
            assert!(most - least <= portion, "{passed:?}");
            let (sum, fair) =
                (passed.iter().sum::<usize>(), usize::try_from(100 * octets).unwrap());
            assert!((fair..=fair + portion).contains(&sum), "{passed:?}");
        }
    }

    #[test]
    fn streams_of_smaller_portions_are_not_kept_out() {
        let passed = share(&rate(1_000), Instant::now(), 100 * SECOND, &[100, 1]);
        assert!(passed[1] > 900, "{passed:?}");
    }

    #[test]
    fn a_pause_saves_up_no_more_than_a_portion() {
        let (rate, begun) = (rate(1_000), Instant::now());
        for pause in [0, 1, 1_000_000] {
            let now = begun + pause * SECOND;
            assert_eq!(rate.charge(Side::Client, 100, now), Duration::ZERO);
            assert_eq!(rate.charge(Side::Client, 100, now), SECOND / 10);
        }
    }

    #[test]
    fn directions_do_not_share() {
        let (rate, now) = (rate(1_000), Instant::now());
        assert_eq!(rate.charge(Side::Client, 1_100, now), SECOND);
        assert_eq!(rate.charge(Side::Target, 100, now), Duration::ZERO);
        assert!(rate.allows(Side::Client, 65_535, now) && rate.allows(Side::Target, 65_535, now));
    }

    #[test]
    fn a_clock_read_earlier_pays_nothing_and_takes_nothing_back() {
        let (rate, begun) = (rate(1_000), Instant::now());
        rate.charge(Side::Client, 1_100, begun + SECOND);
        assert_eq!(rate.charge(Side::Client, 0, begun), SECOND);
        assert_eq!(rate.charge(Side::Client, 0, begun + SECOND), SECOND);
        assert_eq!(rate.charge(Side::Client, 0, begun + 2 * SECOND), Duration::ZERO);
    }

    #[test]
    fn no_rate_and_no_length_overflows() {
        let begun = Instant::now();
        for octets in [1, u64::MAX] {
            let rate = rate(octets);
            for now in [begun, begun + Duration::from_secs(1 << 40), begun] {
                for _ in 0..3 {
                    rate.charge(Side::Client, usize::MAX, now);
                    rate.allows(Side::Client, usize::MAX, now);
                }
            }
        }
        // Lowers the level by 2 to the 128 units, one more than a u128 holds.
        let (rate_63, pause) = (rate(1 << 63), Duration::new(36_893_488_147, 419_103_232));
        let begun = Instant::now();
        rate_63.charge(Side::Client, usize::MAX, begun);
        assert_eq!(rate_63.charge(Side::Client, 0, begun + pause), Duration::ZERO);
        let wait = rate(1).charge(Side::Client, usize::MAX, begun);
        assert!(wait > Duration::from_secs(1 << 33), "{wait:?}");
        assert_eq!(rate(u64::MAX).charge(Side::Client, 1 << 30, begun), Duration::ZERO);
    }

    #[test]
    fn a_rested_rate_lets_one_largest_datagram_pass_and_then_its_rate() {
        for octets in [1, 1_000, 500_000] {
            let (rate, begun) = (rate(octets), Instant::now());
            assert!(rate.allows(Side::Client, 65_535, begun));
            assert!(!rate.allows(Side::Client, 1, begun));
            let passed = (1..=1_000)
                .filter(|&second| rate.allows(Side::Client, 1, begun + second * SECOND))
                .count();
            assert_eq!(passed, 1_000);
        }
        let (rate, now) = (rate(10_000_000), Instant::now());
        let passed = (0..1_000).filter(|_| rate.allows(Side::Client, 10_000, now)).count();
        assert_eq!(passed, 100, "a tenth of a second's worth");
    }

    #[test]
    fn streams_leave_room_for_datagrams_and_make_it_up() {
        let (rate, begun) = (rate(1_000), Instant::now());
        assert_eq!(rate.charge(Side::Client, 10_100, begun), 10 * SECOND);
        assert!(rate.allows(Side::Client, 500, begun));
        assert_eq!(rate.charge(Side::Client, 0, begun), 10 * SECOND + SECOND / 2);
        // A datagram that is dropped costs nothing.
        assert!(!rate.allows(Side::Client, 65_535, begun));
        assert_eq!(rate.charge(Side::Client, 0, begun), 10 * SECOND + SECOND / 2);
    }
}
