//! The ports for BIND and for the relay sockets of UDP ASSOCIATE.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU16, Ordering};

/// A range of ports, handed out in turn so that a port just closed rests.
#[derive(Debug)]
pub struct PortRange {
    ports: RangeInclusive<u16>,
    next: AtomicU16,
}

impl PortRange {
    /// A range that is not empty and without port 0, or `None`.
    #[must_use]
    pub fn new(ports: RangeInclusive<u16>) -> Option<Self> {
        let first = *ports.start();
        (first > 0 && !ports.is_empty()).then(|| Self { ports, next: AtomicU16::new(first) })
    }

    /// All ports, beginning behind the one that was begun with last.
    pub(super) fn turns(&self) -> impl Iterator<Item = u16> {
        let first = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |port| {
            Some(
                port.checked_add(1)
                    .filter(|port| self.ports.contains(port))
                    .unwrap_or(*self.ports.start()),
            )
        });
        let first = first.unwrap_or(*self.ports.start());
        (first..=*self.ports.end()).chain(*self.ports.start()..first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_range_takes_turns_and_ends() {
        let range = PortRange::new(5..=7).unwrap();
        assert_eq!(range.turns().collect::<Vec<_>>(), [5, 6, 7]);
        assert_eq!(range.turns().collect::<Vec<_>>(), [6, 7, 5]);
        assert_eq!(range.turns().collect::<Vec<_>>(), [7, 5, 6]);
        assert_eq!(range.turns().collect::<Vec<_>>(), [5, 6, 7]);
        assert!(PortRange::new(65_535..=65_535).unwrap().turns().eq([65_535]));
        assert!(PortRange::new(0..=7).is_none());
        #[expect(clippy::reversed_empty_ranges, reason = "what is tested")]
        let empty = PortRange::new(7..=5);
        assert!(empty.is_none());
    }
}
