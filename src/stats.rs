//! Statistics of sessions, for the metrics: relaxed atomics without a lock, each updated once or
//! twice per session. Relayed octets are counted in `crate::relay::traffic`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The statistics of all sessions.
#[derive(Default)]
pub struct Stats {
    /// Sessions that ended, by version, command and reason as in the log.
    pub ended: Tally,
    /// Passwords that were wrong or of an expired account.
    pub auth_failures: AtomicU64,
    /// How long sessions waited for a name, resolved or not.
    pub resolve: Histogram,
    /// How long sessions waited for a connection to their target, established or not.
    pub connect: Histogram,
}

/// The capacity of a [`Tally`]: more than all combinations of version, command and reason.
const ENTRIES_MAX: usize = 512;

/// Version, command and reason, as words of the log: constants of the program, never text from a
/// peer.
pub type Words = [&'static str; 3];

/// A count for each combination of three words, which takes an entry when it is first counted.
pub struct Tally([(OnceLock<Words>, AtomicU64); ENTRIES_MAX]);

impl Default for Tally {
    fn default() -> Self {
        Self([const { (OnceLock::new(), AtomicU64::new(0)) }; ENTRIES_MAX])
    }
}

impl Tally {
    /// Counts one session with these words; ignores it if all entries are taken.
    pub fn add(&self, words: Words) {
        let mut entries = self.0.iter();
        if let Some((_, count)) = entries.find(|(entry, _)| *entry.get_or_init(|| words) == words) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All combinations with their counts.
    pub fn counts(&self) -> impl Iterator<Item = (&Words, u64)> {
        let entries = self.0.iter();
        entries.map_while(|(entry, count)| Some((entry.get()?, count.load(Ordering::Relaxed))))
    }
}

/// The upper bounds of the buckets of a [`Histogram`], in milliseconds. The last bucket, above all
/// of these, has none.
pub const BOUNDS: [u64; 10] = [1, 5, 25, 100, 250, 500, 1_000, 2_500, 10_000, 30_000];

/// The distribution of a duration.
#[derive(Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    beyond: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, time: Duration) {
        let mut buckets = BOUNDS.iter().zip(&self.buckets);
        let bucket = buckets.find(|(bound, _)| time <= Duration::from_millis(**bound));
        bucket.map_or(&self.beyond, |(_, bucket)| bucket).fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// The number of durations up to each bound, the number of all, and the sum of all.
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
    fn threads_that_count_the_same_words_at_once_share_an_entry() {
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
        for n in 0..ENTRIES_MAX + 10 {
            tally.add([n.to_string().leak(), "", ""]);
        }
        assert_eq!(tally.counts().count(), ENTRIES_MAX);
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
