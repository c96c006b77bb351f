//! What else comes from peers: heads of HTTP requests, fragments of datagrams, names to look up.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use socksd::relay::Traffic;
use socksd::relay::udp::fragments::{Fragments, Payload};
use socksd::resolve;
use socksd::server::metrics::http::{self as head, HEAD_MAX};
use socksd::wire::Destination;
use socksd::wire::udp::{Datagram, Frag};

use super::assert_plain;

/// Heads of requests to the server of metrics.
pub fn http(octets: &[u8]) {
    let octets = &octets[..octets.len().min(HEAD_MAX)];
    let whole = head::is_whole(octets);
    for len in 0..octets.len() {
        assert!(whole || !head::is_whole(&octets[..len]), "whole with {len} octets only");
    }
    for any_host in [true, false] {
        match head::path(octets, any_host) {
            Ok(path) => {
                assert!(whole && path.starts_with('/') && !path.contains('?'));
                assert!(path.bytes().all(|octet| octet.is_ascii_graphic()), "{path:?}");
                assert!(octets.windows(path.len()).any(|part| part == path.as_bytes()));
                // Where names are no matter, an address is not either.
                assert_eq!(head::path(octets, true).ok(), Some(path));
                assert!(any_host || hosts(octets).into_iter().all(is_own));
            }
            Err(response) => {
                assert_plain(response.status);
                for with_body in [true, false] {
                    let encoded = response.encode(with_body);
                    let body = if with_body { response.body.as_bytes() } else { b"" };
                    let head = encoded.strip_suffix(body).unwrap();
                    assert!(head.starts_with(b"HTTP/1.1 4") && head.ends_with(b"\r\n\r\n"));
                    let (_, rest) = head.split_at(head.len() - 2);
                    assert_eq!(rest, b"\r\n");
                    let text = str::from_utf8(head).unwrap();
                    assert_eq!(text.matches("\r\n\r\n").count(), 1);
                    let len = format!("\r\nContent-Length: {}\r\n", response.body.len());
                    assert_eq!(text.matches(&len).count(), 1);
                }
            }
        }
    }
}

/// The values of all Host fields of a head that is good.
fn hosts(head: &[u8]) -> Vec<&str> {
    let fields = str::from_utf8(head).unwrap().lines().skip(1).take_while(|line| !line.is_empty());
    let fields = fields.map(|line| line.split_once(':').unwrap());
    fields.filter(|(name, _)| name.eq_ignore_ascii_case("host")).map(|(_, host)| host).collect()
}

/// Whether nobody can have this host, perhaps with a port, in the DNS.
fn is_own(host: &str) -> bool {
    let host = host.trim();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|octet| octet.is_ascii_digit()) => name,
        _ => host,
    };
    let v6 = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<Ipv4Addr>().is_ok()
        || v6.is_some_and(|name| name.parse::<Ipv6Addr>().is_ok())
}

/// Most octets of payload that a datagram of UDP over IPv4 has.
const PAYLOAD_MAX: usize = 65_507;

/// Fragments of one association. Each is FRAG, the seconds since the one before with the
/// destination in the high bit, how often its data repeats, the length of its data, and that.
pub fn fragments(mut octets: &[u8]) {
    let (mut queue, traffic, mut now) = (Fragments::default(), Traffic::default(), Instant::now());
    let (mut model, mut added, mut used) = (Sequence::default(), 0, 0);
    while let [frag, pause, times, len, rest @ ..] = octets {
        let (data, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        octets = rest;
        let data = data.repeat(usize::from(*times));
        now += Duration::from_secs((pause & 0x7f).into());
        let dst = Destination::Name(vec![b'a' + (pause >> 7)], 53);
        let datagram = Datagram { frag: Frag(*frag), dst, data: &data };
        added += 1;
        let expected = model.add(&datagram, now);
        if let Some((_, _, count)) = &expected {
            used += count;
        }
        let expected = expected.map(|(dst, data, _)| (dst, data));
        let added = queue.add(&datagram, now, &traffic);
        assert_eq!(added.map(|Payload { dst, data }| (dst, data)), expected);
    }
    // Position 0 is none: it ends what is under way. All that did not become whole is told.
    let dst = Destination::Name(Vec::new(), 0);
    queue.add(&Datagram { frag: Frag(0x80), dst, data: b"" }, now, &traffic);
    let dropped: u64 = traffic.dropped().map(|(_, count)| count).sum();
    assert_eq!(dropped, added + 1 - used);
}

/// RFC 1928 section 7 by the letter, but that a repetition of the last fragment does no harm.
#[derive(Default)]
struct Sequence {
    count: u8,
    dst: Option<Destination>,
    data: Vec<u8>,
    until: Option<Instant>,
}

impl Sequence {
    /// The whole datagram, with the number of its fragments, where this is the last of them.
    fn add(
        &mut self,
        datagram: &Datagram<'_>,
        now: Instant,
    ) -> Option<(Destination, Vec<u8>, u64)> {
        let position = datagram.frag.position();
        if position <= 1 || self.until.is_some_and(|until| until <= now) {
            *self = Self::default();
        }
        if position == 1 {
            self.dst = Some(datagram.dst.clone());
            self.until = Some(now + Duration::from_secs(5));
        } else if position == 0 || position == self.count {
            return None;
        }
        let fits = self.data.len() + datagram.data.len() <= PAYLOAD_MAX;
        if position != self.count + 1 || self.dst.as_ref() != Some(&datagram.dst) || !fits {
            *self = Self::default();
            return None;
        }
        self.count = position;
        self.data.extend(datagram.data);
        let Self { count, dst, data, .. } =
            datagram.frag.is_last().then(|| std::mem::take(self))?;
        dst.map(|dst| (dst, data, count.into()))
    }
}

/// Names before they are looked up.
pub fn host_name(octets: &[u8]) {
    let Some(name) = resolve::host_name(octets) else { return };
    assert!(name.eq_ignore_ascii_case(octets.strip_suffix(b".").unwrap_or(octets)));
    assert!(!name.starts_with(b".") && !name.ends_with(b".") && !name.is_empty());
    let part = |octet: &u8| octet.is_ascii_lowercase() || octet.is_ascii_digit();
    assert!(name.iter().all(|octet| part(octet) || b"-_.".contains(octet)));
    assert_eq!(resolve::host_name(&name), Some(name));
}
