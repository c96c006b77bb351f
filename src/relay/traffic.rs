//! What is counted of a relay: octets, datagrams, and what was not relayed. Reads and writes nothing.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a session has relayed, or several together.
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
    /// Counts datagrams that were not relayed.
    pub fn drop_datagrams(&self, cause: Dropped, count: u64) {
        let mut counts = Dropped::ALL.iter().zip(&self.dropped);
        if let Some((_, dropped)) = counts.find(|(other, _)| **other == cause) {
            dropped.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// How many datagrams were not relayed for each cause.
    pub fn dropped(&self) -> impl Iterator<Item = (Dropped, u64)> {
        let counts = self.dropped.iter().map(|count| count.load(Ordering::Relaxed));
        Dropped::ALL.into_iter().zip(counts)
    }

    /// Adds what others have relayed.
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
    /// It came to the client's socket from somebody else.
    Sender,
    /// It has no header that can be read.
    Header,
    /// It is part of a sequence that did not become whole, or fragments are not served.
    Fragment,
    /// The rules do not let it pass, or its family is not served.
    Denied,
    /// Its name was not resolved, or too many wait for that.
    Name,
    /// It was beyond a rate.
    Rate,
    /// It could not be sent.
    Send,
}

impl Dropped {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Sender,
        Self::Header,
        Self::Fragment,
        Self::Denied,
        Self::Name,
        Self::Rate,
        Self::Send,
    ];

    /// The word for it.
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
