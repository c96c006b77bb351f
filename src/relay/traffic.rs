//! Counts of a relay: octets, datagrams, and datagrams dropped. The relays do the counting.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counts of one session, or the sum of several.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Octets from the client to the target.
    pub up: AtomicU64,
    /// Octets from the target to the client.
    pub down: AtomicU64,
    /// Datagrams from the client to targets.
    pub datagrams_up: AtomicU64,
    /// Datagrams from targets to the client.
    pub datagrams_down: AtomicU64,
    /// Datagrams and fragments dropped, for each of [`Dropped::ALL`].
    dropped: [AtomicU64; Dropped::ALL.len()],
}

impl Traffic {
    /// Counts datagrams that are not relayed.
    pub fn drop_datagrams(&self, cause: Dropped, count: u64) {
        let mut counts = Dropped::ALL.iter().zip(&self.dropped);
        if let Some((_, dropped)) = counts.find(|(other, _)| **other == cause) {
            dropped.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Datagrams not relayed, by cause.
    pub fn dropped(&self) -> impl Iterator<Item = (Dropped, u64)> {
        let counts = self.dropped.iter().map(|count| count.load(Ordering::Relaxed));
        Dropped::ALL.into_iter().zip(counts)
    }

    /// Adds the counts of another.
    pub fn add(&self, other: &Self) {
        for (sum, count) in self.counts().zip(other.counts()) {
            sum.fetch_add(count.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn counts(&self) -> impl Iterator<Item = &AtomicU64> {
        let Self { up, down, datagrams_up, datagrams_down, dropped } = self;
        [up, down, datagrams_up, datagrams_down].into_iter().chain(dropped)
    }
}

/// Why a datagram was not relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// It came to the client's socket from another address.
    Sender,
    /// Its header is malformed.
    Header,
    /// It is a fragment of an incomplete sequence, or fragments are not served.
    Fragment,
    /// The rules deny it, or its address family is not served.
    Denied,
    /// Its name was not resolved, or too many are waiting for that.
    Name,
    /// It exceeded a rate.
    Rate,
    /// It could not be sent.
    Send,
}

impl Dropped {
    /// All causes.
    pub const ALL: [Self; 7] = [
        Self::Sender,
        Self::Header,
        Self::Fragment,
        Self::Denied,
        Self::Name,
        Self::Rate,
        Self::Send,
    ];

    /// The word in the log and the metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Sender => "sender",
            Self::Header => "header",
            Self::Fragment => "fragment",
            Self::Denied => "denied",
            Self::Name => "name",
            Self::Rate => "rate",
            Self::Send => "send",
        }
    }
}
