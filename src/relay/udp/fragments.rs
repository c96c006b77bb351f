//! Reassembles fragments of datagrams (RFC 1928 section 7). Reads and sends nothing.

use std::time::{Duration, Instant};

use crate::relay::traffic::{Dropped, Traffic};
use crate::wire::Destination;
use crate::wire::udp::Datagram;

/// Largest payload of a datagram over IPv4; over IPv6 without jumbograms 20 octets more fit.
const PAYLOAD_MAX: usize = 65_507;

/// How long a sequence of fragments may take: the least that RFC 1928 section 7 allows.
const REASSEMBLY_TIMER: Duration = Duration::from_secs(5);

/// Data to be sent to a target.
#[derive(Clone, Debug)]
pub struct Payload {
    /// The target.
    pub dst: Destination,
    /// Its octets.
    pub data: Vec<u8>,
}

/// The reassembly queue and its timer. Fragments must come in order: as the RFC abandons a sequence
/// when a lower position comes, a gap could never be filled.
#[derive(Default)]
pub struct Fragments {
    /// The highest position so far; 0 if there is no sequence.
    highest: u8,
    dst: Option<Destination>,
    data: Vec<u8>,
    until: Option<Instant>,
}

impl Fragments {
    /// Abandons the sequence under way, and counts its fragments as dropped.
    pub(super) fn abandon(&mut self, traffic: &Traffic) {
        traffic.drop_datagrams(Dropped::Fragment, self.highest.into());
        *self = Self::default();
    }

    /// Adds a fragment; the last one of a sequence returns the whole.
    pub fn add(
        &mut self,
        datagram: &Datagram<'_>,
        now: Instant,
        traffic: &Traffic,
    ) -> Option<Payload> {
        let position = datagram.frag.position();
        if position <= 1 || position < self.highest || self.until.is_some_and(|until| now >= until)
        {
            self.abandon(traffic);
        }
        let follows = position == self.highest + 1
            && (position == 1 || self.dst.as_ref() == Some(&datagram.dst))
            && self.data.len() + datagram.data.len() <= PAYLOAD_MAX;
        if !follows {
            // Repeating the last fragment does no harm; anything else leaves a gap for good.
            if position != self.highest {
                self.abandon(traffic);
            }
            traffic.drop_datagrams(Dropped::Fragment, 1);
            return None;
        }
        if position == 1 {
            self.until = Some(now + REASSEMBLY_TIMER);
            self.dst = Some(datagram.dst.clone());
        }
        self.highest = position;
        self.data.extend_from_slice(datagram.data);
        if !datagram.frag.is_last() {
            return None;
        }
        let Self { dst, data, .. } = std::mem::take(self);
        dst.map(|dst| Payload { dst, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::udp::Frag;

    fn dropped(traffic: &Traffic) -> u64 {
        traffic.dropped().map(|(_, count)| count).sum()
    }

    /// Adds fragments, each (FRAG, seconds since the start, data), and returns what became whole.
    fn reassemble(fragments: &[(u8, u64, &str)]) -> (Vec<String>, u64) {
        let (mut queue, traffic, begun) =
            (Fragments::default(), Traffic::default(), Instant::now());
        let dst = Destination::Address("192.0.2.1:53".parse().unwrap());
        let whole = fragments
            .iter()
            .filter_map(|&(frag, after, data)| {
                let datagram =
                    Datagram { frag: Frag(frag), dst: dst.clone(), data: data.as_bytes() };
                queue.add(&datagram, begun + Duration::from_secs(after), &traffic)
            })
            .map(|whole| String::from_utf8(whole.data).unwrap())
            .collect();
        (whole, dropped(&traffic))
    }

    #[test]
    fn udp_15_a_sequence_becomes_one_datagram() {
        assert_eq!(reassemble(&[(1, 0, "A"), (0x82, 0, "B")]), (vec!["AB".into()], 0));
        assert_eq!(reassemble(&[(0x81, 0, "A")]), (vec!["A".into()], 0));
        let long: Vec<_> = (1..=0x7e).map(|frag| (frag, 0, "x")).chain([(0xff, 0, "x")]).collect();
        assert_eq!(reassemble(&long), (vec!["x".repeat(127)], 0));
    }

    #[test]
    fn udp_17_a_lower_position_restarts_the_queue() {
        let fragments = [(1, 0, "a"), (2, 0, "b"), (1, 0, "C"), (0x82, 0, "D")];
        assert_eq!(reassemble(&fragments), (vec!["CD".into()], 2));
    }

    #[test]
    fn udp_18_udp_19_the_timer_is_five_seconds() {
        assert_eq!(reassemble(&[(1, 0, "A"), (0x82, 4, "B")]), (vec!["AB".into()], 0));
        assert_eq!(reassemble(&[(1, 0, "A"), (0x82, 5, "B")]), (vec![], 2));
    }

    #[test]
    fn gaps_and_positions_out_of_range_give_nothing() {
        assert_eq!(reassemble(&[(1, 0, "A"), (0x83, 0, "C")]), (vec![], 2));
        assert_eq!(reassemble(&[(0x82, 0, "B")]), (vec![], 1));
        assert_eq!(reassemble(&[(0x80, 0, "B")]), (vec![], 1));
        assert_eq!(
            reassemble(&[(1, 0, "A"), (2, 0, "B"), (2, 0, "B"), (0x83, 0, "C")]),
            (vec!["ABC".into()], 1)
        );
    }

    #[test]
    fn the_queue_is_bounded() {
        let big = "x".repeat(40_000);
        assert_eq!(reassemble(&[(1, 0, &big), (2, 0, &big), (0x83, 0, "C")]), (vec![], 3));
    }
}
