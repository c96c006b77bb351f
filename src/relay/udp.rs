//! Relays the datagrams of one association (RFC 1928 section 7).
//!
//! One thread moves all datagrams of an association, the pump. A datagram that cannot or may not be
//! relayed is silently dropped, as the RFC says, and counted. Names are resolved by other threads,
//! so that a slow one holds up nothing else.

pub mod fragments;

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::net::{IpAddr, Shutdown, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::net::canonical;
use crate::net::{ClientKey, Stream};
use crate::policy::{Asker, Current};
use crate::relay::end::{End, Side, Stopper};
use crate::relay::rate::Rate;
use crate::relay::traffic::{Dropped, Traffic};
use crate::relay::udp::fragments::{Fragments, Payload};
use crate::resolve::{Resolved, Resolver};
use crate::sync::lock;
use crate::sys::{self, PollFd};
use crate::wire::Destination;
use crate::wire::udp::{self, Frag, HEADER_MAX};

/// Octets of the buffer, more than any datagram has.
const BUFFER: usize = 65_536;

/// Datagrams taken from one socket before the others are looked at.
const BURST: usize = 32;

/// Octets of datagrams of one association that may wait for names.
const WAITING_OCTETS: usize = 128 * 1024;

/// Octets that each of these datagrams counts in addition to its data: at most 64 can wait.
const WAITING_EACH: usize = 2 * 1024;

/// Names that an association remembers.
const NAMES_MAX: usize = 64;

/// How long an association remembers the address of a name.
const NAME_STAY: Duration = Duration::from_secs(30);

/// The sockets of an association, all non-blocking.
pub struct Sockets {
    /// Facing the client.
    pub client: UdpSocket,
    /// Facing IPv4 targets.
    pub v4: Option<UdpSocket>,
    /// Facing IPv6 targets.
    pub v6: Option<UdpSocket>,
}

/// Rules and limits of an association.
pub struct Terms {
    /// Its owner. Datagrams from any other address than this client's are dropped.
    pub asker: Asker,
    /// Judges each datagram's destination, and the source of each answer, by the rules in force.
    pub policy: Arc<Current>,
    /// Turns names into addresses.
    pub resolver: Arc<Resolver>,
    /// How long a name may take.
    pub resolve_timeout: Duration,
    /// Whether fragments are put together rather than dropped.
    pub fragments: bool,
    /// How long no datagram may pass either way; `None` for ever.
    pub idle: Option<Duration>,
    /// Datagrams beyond any of these rates are dropped. The session's own rate comes first: a
    /// datagram it refuses is not charged to the rate that the user's sessions share.
    pub rates: Vec<Arc<Rate>>,
}

/// Relays datagrams until `control`, the client's connection, ends, until the idle limit, or until
/// `stopper` ends it. Octets that come over `control` have no meaning and are discarded. Returns
/// with all sockets closed.
#[inline(never)]
pub fn run(
    control: Stream,
    sockets: Sockets,
    terms: Terms,
    traffic: &Arc<Traffic>,
    stopper: &Stopper,
) -> End {
    if control.set_nonblocking(true).is_err() {
        return End::Internal;
    }
    let control = Arc::new(control);
    let stopped = Arc::downgrade(&control);
    stopper.attach(move |_| {
        // Wakes the pump, which then asks `stopper`. A dead connection wakes it as well.
        if let Some(control) = stopped.upgrade() {
            let _ = control.shutdown(Shutdown::Both);
        }
    });
    let Sockets { client, v4, v6 } = sockets;
    let outward = Arc::new(Outward {
        v4,
        v6,
        terms,
        traffic: Arc::clone(traffic),
        waiting: AtomicUsize::new(0),
        names: Mutex::default(),
    });
    let mut pump = Pump {
        client,
        outward: &outward,
        sender: None,
        fragments: Fragments::default(),
        buffer: vec![0; BUFFER],
    };
    pump.run(&control, stopper)
}

/// Discards octets from the control connection; returns how that has ended, if it has.
fn ended(mut control: &Stream) -> Option<End> {
    let mut octets = [0; 512];
    match control.read(&mut octets) {
        Ok(0) => Some(End::Closed(Side::Client)),
        Ok(_) => None,
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => None,
            io::ErrorKind::ConnectionReset => Some(End::Reset(Side::Client)),
            _ => Some(End::Lost(Side::Client)),
        },
    }
}

struct Pump<'a> {
    client: UdpSocket,
    outward: &'a Arc<Outward>,
    /// Source of the client's last datagram, where answers go. Its port may change.
    sender: Option<SocketAddr>,
    fragments: Fragments,
    buffer: Vec<u8>,
}

impl Pump<'_> {
    /// Moves datagrams until the association ends.
    fn run(&mut self, control: &Stream, stopper: &Stopper) -> End {
        let Outward { v4, v6, terms, .. } = &**self.outward;
        let mut active = Instant::now();
        loop {
            let timeout = terms.idle.map(|idle| idle.saturating_sub(active.elapsed()));
            if timeout.is_some_and(|left| left.is_zero()) {
                return End::Idle;
            }
            // In place of a missing socket stands the control connection, polled for nothing.
            let mut fds = [
                PollFd::new(control, sys::POLLIN),
                PollFd::new(&self.client, sys::POLLIN),
                v4.as_ref().map_or(PollFd::new(control, 0), |v4| PollFd::new(v4, sys::POLLIN)),
                v6.as_ref().map_or(PollFd::new(control, 0), |v6| PollFd::new(v6, sys::POLLIN)),
            ];
            match sys::poll(&mut fds, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return End::Internal,
                Ok(_) => {}
            }
            let [on_control, on_client, on_v4, on_v6] = fds.map(|fd| fd.has(!0));
            if on_control && let Some(end) = stopper.end().or_else(|| ended(control)) {
                return end;
            }
            if on_client && self.up() {
                active = Instant::now();
            }
            for (ready, socket) in [(on_v4, v4), (on_v6, v6)] {
                if ready
                    && let Some(socket) = socket
                    && self.down(socket)
                {
                    active = Instant::now();
                }
            }
        }
    }

    /// Relays datagrams from the client; returns whether one of them was activity.
    fn up(&mut self) -> bool {
        let mut active = false;
        for _ in 0..BURST {
            let (len, sender) = match self.client.recv_from(&mut self.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The error of an earlier datagram, cleared by being returned.
                Err(_) => continue,
            };
            let sender_ip = canonical(sender).ip();
            // A client on a UNIX socket is on this host.
            let own = self.outward.terms.asker.client;
            if !own.map_or(sender_ip.is_loopback(), |own| own == sender_ip) {
                self.outward.drop_one(Dropped::Sender);
                continue;
            }
            let Ok(datagram) = udp::decode(self.buffer.get(..len).unwrap_or_default()) else {
                self.outward.drop_one(Dropped::Header);
                continue;
            };
            self.sender = Some(sender);
            active = true;
            if datagram.frag == Frag::STANDALONE {
                // Its FRAG is lower than that of any sequence under way, which restarts the queue.
                self.fragments.abandon(&self.outward.traffic);
                Outward::send(self.outward, &datagram.dst, datagram.data);
            } else if !self.outward.terms.fragments {
                self.outward.drop_one(Dropped::Fragment);
            } else if let Some(whole) =
                self.fragments.add(&datagram, Instant::now(), &self.outward.traffic)
            {
                Outward::send(self.outward, &whole.dst, &whole.data);
            }
        }
        active
    }

    /// Relays datagrams from targets; returns whether one of them was activity.
    fn down(&mut self, socket: &UdpSocket) -> bool {
        let mut active = false;
        for _ in 0..BURST {
            // Room for the header, whose length is not known yet.
            let Some(room) = self.buffer.get_mut(HEADER_MAX..) else { break };
            let (len, remote) = match socket.recv_from(room) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error of an earlier datagram ends nothing.
                Err(_) => continue,
            };
            let remote = canonical(remote);
            let (Some(sender), true) = (self.sender, self.outward.may_answer(remote)) else {
                self.outward.drop_one(Dropped::Denied);
                continue;
            };
            if !self.outward.allows(Side::Target, len) {
                self.outward.drop_one(Dropped::Rate);
                continue;
            }
            let mut header = Vec::with_capacity(HEADER_MAX);
            udp::encode_header(remote, &mut header);
            let begin = HEADER_MAX - header.len();
            let Some(datagram) = self.buffer.get_mut(begin..HEADER_MAX + len) else { continue };
            datagram.iter_mut().zip(&header).for_each(|(to, from)| *to = *from);
            match self.client.send_to(datagram, sender) {
                Ok(_) => {
                    let len = u64::try_from(len).unwrap_or(0);
                    let traffic = &self.outward.traffic;
                    traffic.down.fetch_add(len, Ordering::Relaxed);
                    traffic.datagrams_down.fetch_add(1, Ordering::Relaxed);
                    active = true;
                }
                // With its header it may also have become too long for a datagram.
                Err(_) => self.outward.drop_one(Dropped::Send),
            }
        }
        active
    }
}

/// The side facing the targets, shared with look-ups under way.
struct Outward {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    terms: Terms,
    traffic: Arc<Traffic>,
    /// Octets of datagrams that wait for names.
    waiting: AtomicUsize,
    /// Addresses of recent names, each name with a port.
    names: Mutex<HashMap<Destination, Known>>,
}

/// The address a name was resolved to.
#[derive(Clone, Copy)]
struct Known {
    ip: IpAddr,
    /// When it has to be resolved again.
    until: Instant,
}

impl Outward {
    fn drop_one(&self, cause: Dropped) {
        self.traffic.drop_datagrams(cause, 1);
    }

    /// Whether a datagram may go to `ip`, the address of `dst`.
    fn may_send(&self, dst: &Destination, ip: IpAddr) -> bool {
        self.terms.policy.get().allows(&self.terms.asker, dst, ip).is_ok()
    }

    /// Whether a datagram from `remote` may go to the client: it may if one to `remote` would be
    /// allowed, by address or by a name with that address.
    fn may_answer(&self, remote: SocketAddr) -> bool {
        self.may_send(&Destination::Address(remote), remote.ip())
            || lock(&self.names).iter().any(|(dst, known)| {
                known.ip == remote.ip()
                    && dst.port() == remote.port()
                    && self.may_send(dst, remote.ip())
            })
    }

    /// Whether the rates let a datagram of `octets` from this side pass.
    fn allows(&self, from: Side, octets: usize) -> bool {
        self.terms.rates.iter().all(|rate| rate.allows(from, octets, Instant::now()))
    }

    /// Sends `data` to `dst`, now or once its name is resolved.
    fn send(this: &Arc<Self>, dst: &Destination, data: &[u8]) {
        let name = match dst {
            Destination::Address(addr) => return this.send_to(dst, addr.ip(), data),
            Destination::Name(name, _) => name,
        };
        let now = Instant::now();
        let known = lock(&this.names).get(dst).filter(|known| now < known.until).copied();
        if let Some(Known { ip, .. }) = known {
            return this.send_to(dst, ip, data);
        }
        if this.terms.policy.get().may_allow(&this.terms.asker, Some(dst)).is_err() {
            return this.drop_one(Dropped::Denied);
        }
        let octets = data.len() + WAITING_EACH;
        if this.waiting.load(Ordering::Relaxed) + octets > WAITING_OCTETS {
            return this.drop_one(Dropped::Name);
        }
        // Only the pump adds to it, so the check still holds.
        this.waiting.fetch_add(octets, Ordering::Relaxed);
        // Weak: the association may end before the answer.
        let mut waiting = Waiting {
            outward: Arc::downgrade(this),
            octets,
            payload: Some(Payload { dst: dst.clone(), data: data.to_vec() }),
        };
        let terms = &this.terms;
        let deadline = now + terms.resolve_timeout;
        terms.resolver.request(
            ClientKey::of(terms.asker.client),
            name,
            deadline,
            move |resolved| {
                waiting.done(resolved);
            },
        );
    }

    /// Sends `data` to `ip`, the address of `dst`.
    fn send_to(&self, dst: &Destination, ip: IpAddr, data: &[u8]) {
        let addr = SocketAddr::new(ip, dst.port());
        let socket = if addr.is_ipv4() { &self.v4 } else { &self.v6 };
        let Some(socket) = socket.as_ref().filter(|_| self.may_send(dst, ip) && addr.port() != 0)
        else {
            return self.drop_one(Dropped::Denied);
        };
        if !self.allows(Side::Client, data.len()) {
            return self.drop_one(Dropped::Rate);
        }
        // Counted before it is sent: an answer may end the association first.
        let len = u64::try_from(data.len()).unwrap_or(0);
        self.traffic.up.fetch_add(len, Ordering::Relaxed);
        self.traffic.datagrams_up.fetch_add(1, Ordering::Relaxed);
        // The first try may fail with the ICMP error of an earlier datagram.
        if socket.send_to(data, addr).or_else(|_| socket.send_to(data, addr)).is_err() {
            self.traffic.up.fetch_sub(len, Ordering::Relaxed);
            self.traffic.datagrams_up.fetch_sub(1, Ordering::Relaxed);
            self.drop_one(Dropped::Send);
        }
    }

    /// The first of `ips`, the addresses of `dst`, that the rules and the sockets allow.
    fn choose(&self, dst: &Destination, ips: &[IpAddr]) -> Option<IpAddr> {
        ips.iter().copied().find(|&ip| {
            let socket = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
            socket.is_some() && self.may_send(dst, ip)
        })
    }
}

/// A datagram that waits for its name. If it goes out of scope unsent, it is counted as dropped.
struct Waiting {
    outward: Weak<Outward>,
    /// Its share of [`Outward::waiting`].
    octets: usize,
    payload: Option<Payload>,
}

impl Waiting {
    fn done(&mut self, resolved: Resolved) {
        let Some(outward) = self.outward.upgrade() else { return };
        let Some(Payload { dst, data }) = self.payload.take() else { return };
        let Ok(ips) = resolved else { return outward.drop_one(Dropped::Name) };
        match outward.choose(&dst, &ips) {
            Some(ip) => {
                let now = Instant::now();
                let mut names = lock(&outward.names);
                if names.len() >= NAMES_MAX {
                    let oldest = names.iter().min_by_key(|(_, known)| known.until);
                    let oldest = oldest.map(|(dst, _)| dst.clone());
                    oldest.map(|dst| names.remove(&dst));
                }
                names.insert(dst.clone(), Known { ip, until: now + NAME_STAY });
                drop(names);
                outward.send_to(&dst, ip, &data);
            }
            None => outward.drop_one(Dropped::Denied),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(outward) = self.outward.upgrade() {
            outward.waiting.fetch_sub(self.octets, Ordering::Relaxed);
            if self.payload.is_some() {
                outward.drop_one(Dropped::Name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::User;
    use crate::policy::Policy;
    use crate::policy::rules::Ident;
    use crate::relay::rate::Rate;
    use crate::wire::{Command, Version};
    use std::io::Write as _;
    use std::net::TcpListener;
    use std::num::NonZeroU64;
    use std::thread::{self, JoinHandle};

    fn terms(rates: Vec<Arc<Rate>>) -> Terms {
        let asker = Asker {
            client: Some([127, 0, 0, 1].into()),
            user: User::anonymous(),
            ident: Ident::NotAsked,
            version: Version::V5,
            command: Command::UDP_ASSOCIATE,
        };
        let policy = Policy::load(&["allow to all".into()], None, None).ok().unwrap();
        Terms {
            asker,
            policy: Arc::new(Current::new(policy)),
            resolver: Arc::new(Resolver::new(1)),
            resolve_timeout: Duration::from_secs(5),
            fragments: false,
            idle: None,
            rates,
        }
    }

    /// A running association.
    struct Association {
        control: Stream,
        /// The client's socket, connected to the relay.
        client: UdpSocket,
        traffic: Arc<Traffic>,
        end: JoinHandle<End>,
    }

    fn dropped(traffic: &Traffic) -> u64 {
        traffic.dropped().map(|(_, count)| count).sum()
    }

    fn udp() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }

    fn associate(terms: Terms, stopper: &Stopper) -> Association {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let control = Stream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        let (client, relay, v4) = (udp(), udp(), udp());
        client.connect(relay.local_addr().unwrap()).unwrap();
        for socket in [&relay, &v4] {
            socket.set_nonblocking(true).unwrap();
        }
        let traffic = Arc::<Traffic>::default();
        let end = thread::spawn({
            let traffic = Arc::clone(&traffic);
            let (stopper, sockets) =
                (stopper.clone(), Sockets { client: relay, v4: Some(v4), v6: None });
            move || run(near, sockets, terms, &traffic, &stopper)
        });
        Association { control, client, traffic, end }
    }

    fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(5);
        while !holds() {
            assert!(Instant::now() < until, "{what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn datagrams_beyond_a_rate_are_dropped_and_counted_both_ways() {
        let rates = [1_000_000, 10].map(|rate| Arc::new(Rate::new(NonZeroU64::new(rate).unwrap())));
        let stopper = Stopper::default();
        let session = associate(terms(rates.into()), &stopper);
        let target = udp();
        let mut datagram = Vec::new();
        udp::encode_header(target.local_addr().unwrap(), &mut datagram);
        datagram.resize(datagram.len() + 30_000, 7);
        let (dropped, mut buffer) = (|| dropped(&session.traffic), [0; BUFFER]);

        let mut relay = None;
        for _ in 0..2 {
            session.client.send(&datagram).unwrap();
            let (len, from) = target.recv_from(&mut buffer).unwrap();
            assert_eq!(len, 30_000);
            relay = Some(from);
        }
        session.client.send(&datagram).unwrap();
        eventually("the third is dropped", || dropped() == 1);

        for _ in 0..2 {
            target.send_to(&[7; 30_000], relay.unwrap()).unwrap();
            assert_eq!(session.client.recv(&mut buffer).unwrap(), datagram.len());
        }
        target.send_to(&[7; 30_000], relay.unwrap()).unwrap();
        eventually("the third is dropped", || dropped() == 2);

        stopper.stop(End::Revoked);
        assert_eq!(session.end.join().unwrap(), End::Revoked);
        let traffic = &session.traffic;
        assert!(traffic.dropped().all(|(cause, count)| count == 0 || cause == Dropped::Rate));
        assert_eq!(traffic.up.load(Ordering::Relaxed), 60_000);
        assert_eq!(traffic.down.load(Ordering::Relaxed), 60_000);
    }

    #[test]
    fn a_stop_ends_an_association_before_and_while_it_runs() {
        for delay in [None, Some(0), Some(50)] {
            let stopper = Stopper::default();
            if delay.is_none() {
                stopper.stop(End::Revoked);
            }
            let mut session = associate(terms(Vec::new()), &stopper);
            thread::sleep(Duration::from_millis(delay.unwrap_or(0)));
            let begun = Instant::now();
            stopper.stop(End::Revoked);
            assert_eq!(session.end.join().unwrap(), End::Revoked);
            assert_eq!(session.control.read(&mut [0]).unwrap(), 0);
            assert!(begun.elapsed() < Duration::from_millis(500));
        }
    }

    #[test]
    fn a_stop_ends_an_association_whose_client_floods_the_control_connection() {
        let stopper = Stopper::default();
        let mut session = associate(terms(Vec::new()), &stopper);
        let flood = thread::spawn(move || while session.control.write(&[7; 65_536]).is_ok() {});
        thread::sleep(Duration::from_millis(50));
        stopper.stop(End::Revoked);
        assert_eq!(session.end.join().unwrap(), End::Revoked);
        flood.join().unwrap();
    }
}
