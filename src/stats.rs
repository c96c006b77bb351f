//! What sessions do, counted for who watches: relaxed atomics without a lock, bumped once or twice
//! in a session. What each has relayed is counted where it is relayed.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The counts of all sessions.
#[derive(Default)]
pub struct Stats {
    /// Sessions that ended, by the version, the command and the reason that the log has.
    pub ended: Tally,
    /// Passwords that were wrong, or of an account that has expired.
    pub auth_failures: AtomicU64,
    /// How long sessions waited for a name, whatever came of it.
    pub resolve: Histogram,
    /// How long sessions waited for a connection to their target, whatever came of it.
    pub connect: Histogram,
}

/// Places in a [`Tally`]: as many as there are versions, commands and reasons to combine, and some.
const PLACES: usize = 512;

/// Three words. They are constants of the program: nothing a peer made can be one.
pub type Words = [&'static str; 3];

/// A count for each combination of three words, which takes a place when it is counted first.
pub struct Tally([(OnceLock<Words>, AtomicU64); PLACES]);

impl Default for Tally {
    fn default() -> Self {
        Self([const { (OnceLock::new(), AtomicU64::new(0)) }; PLACES])
    }
}

impl Tally {
    /// Counts one more of `words`.
    pub fn add(&self, words: Words) {
        let mut places = self.0.iter();
        if let Some((_, count)) = places.find(|(place, _)| *place.get_or_init(|| words) == words) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counts.
    pub fn counts(&self) -> impl Iterator<Item = (&Words, u64)> {
        let places = self.0.iter();
        places.map_while(|(place, count)| Some((place.get()?, count.load(Ordering::Relaxed))))
    }
}

/// The upper bounds of the buckets of a [`Histogram`] but the last, which has none, in milliseconds.
pub const BOUNDS: [u64; 10] = [1, 5, 25, 100, 250, 500, 1_000, 2_500, 10_000, 30_000];

/// How long something took.
#[derive(Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    beyond: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// Counts `time`.
    pub fn observe(&self, time: Duration) {
        let mut buckets = BOUNDS.iter().zip(&self.buckets);
        let bucket = buckets.find(|(bound, _)| time <= Duration::from_millis(**bound));
        bucket.map_or(&self.beyond, |(_, bucket)| bucket).fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// For each bound how many took no longer, how many there are in all, and how long all of them
    /// took together.
    #[must_use]
    pub fn sums(&self) -> ([(Duration, u64); BOUNDS.len()], u64, Duration) {
        let mut sum = 0;
        let mut buckets = self.buckets.iter();
        let sums = BOUNDS.map(|bound| {
            sum += buckets.next().map_or(0, |bucket| bucket.load(Ordering::Relaxed));
            (Duration::from_millis(bound), sum)
        });
        let total = sum + self.beyond.load(Ordering::Relaxed);
        (sums, total, Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn threads_that_count_the_same_words_at_once_share_a_place() {
        let tally = Tally::default();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        tally.add(["5", "connect", "client"]);
                        tally.add(["4", "bind", "target"]);
                    }
                });
            }
        });
        let mut counts: Vec<_> = tally.counts().collect();
        counts.sort();
        assert_eq!(
            counts,
            [(&["4", "bind", "target"], 8_000), (&["5", "connect", "client"], 8_000)]
        );
    }

    #[test]
    fn a_full_tally_neither_grows_nor_miscounts() {
        let tally = Tally::default();
        for n in 0..PLACES + 10 {
            tally.add([n.to_string().leak(), "", ""]);
        }
        assert_eq!(tally.counts().count(), PLACES);
        assert!(tally.counts().all(|(_, count)| count == 1));
    }

    #[test]
    fn a_time_is_counted_in_its_bucket_and_in_all_wider_ones() {
        let histogram = Histogram::default();
        for millis in [0, 1, 2, 30_000, 30_001] {
            histogram.observe(Duration::from_millis(millis));
        }
        let (sums, total, sum) = histogram.sums();
        assert_eq!(sums.map(|(_, count)| count), [2, 3, 3, 3, 3, 3, 3, 3, 3, 4]);
        assert_eq!((total, sum), (5, Duration::from_millis(60_004)));
    }
}
