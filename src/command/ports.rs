//! The ports for BIND and for the relay sockets of UDP ASSOCIATE.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU16, Ordering};

/// A range of ports that are used in rotation, so that a closed port is not reused at once.
#[derive(Debug)]
pub struct PortRange {
    ports: RangeInclusive<u16>,
    next: AtomicU16,
}

impl PortRange {
    /// A range of ports; `None` if it is empty or includes port 0.
    #[must_use]
    pub fn new(ports: RangeInclusive<u16>) -> Option<Self> {
        let first = *ports.start();
        (first > 0 && !ports.is_empty()).then(|| Self { ports, next: AtomicU16::new(first) })
    }

    /// All ports of the range. Each call begins one port later.
    pub(super) fn rotation(&self) -> impl Iterator<Item = u16> {
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
    fn a_rotation_is_all_ports_once_from_the_next_one() {
        let range = PortRange::new(5..=7).unwrap();
        assert_eq!(range.rotation().collect::<Vec<_>>(), [5, 6, 7]);
        assert_eq!(range.rotation().collect::<Vec<_>>(), [6, 7, 5]);
        assert_eq!(range.rotation().collect::<Vec<_>>(), [7, 5, 6]);
        assert_eq!(range.rotation().collect::<Vec<_>>(), [5, 6, 7]);
        assert!(PortRange::new(65_535..=65_535).unwrap().rotation().eq([65_535]));
        assert!(PortRange::new(0..=7).is_none());
        #[expect(clippy::reversed_empty_ranges, reason = "the test is about it")]
        let empty = PortRange::new(7..=5);
        assert!(empty.is_none());
    }
}
