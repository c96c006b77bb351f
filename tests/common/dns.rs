//! A name server of the test's own, for tests in a network of their own (see [`super::netns`]).

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

/// A name server on 127.0.0.1:53, with A and AAAA records from a table. Queries for names that end
/// in `.tarpit` get no answer at all, nor do those for names that are held until they are released.
#[derive(Clone)]
pub struct Dns(Arc<Zone>);

struct Zone {
    socket: UdpSocket,
    records: HashMap<String, Vec<IpAddr>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Names of queries for A records, in the order they came.
    asked: Vec<String>,
    held: HashSet<String>,
    /// Queries whose answer is held back, and who asked.
    waiting: Vec<(Query, SocketAddr)>,
}

struct Query {
    message: Vec<u8>,
    name: String,
    qtype: u16,
}

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

impl Dns {
    pub fn start(table: &[(&str, &[&str])]) -> Self {
        let records = table.iter().map(|(name, addrs)| {
            ((*name).to_string(), addrs.iter().map(|addr| addr.parse().unwrap()).collect())
        });
        let zone = Zone {
            socket: UdpSocket::bind("127.0.0.1:53").unwrap(),
            records: records.collect(),
            state: Mutex::default(),
        };
        let dns = Self(Arc::new(zone));
        let serving = dns.clone();
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((len, from)) = serving.0.socket.recv_from(&mut buffer) {
                serving.take(Query::decode(&buffer[..len]), from);
            }
        });
        dns
    }

    fn take(&self, query: Query, from: SocketAddr) {
        let mut state = self.0.state.lock().unwrap();
        if query.qtype == TYPE_A {
            state.asked.push(query.name.clone());
        }
        if state.held.contains(&query.name) {
            state.waiting.push((query, from));
        } else if !query.name.ends_with(".tarpit") {
            self.answer(&query, from);
        }
    }

    fn answer(&self, query: &Query, to: SocketAddr) {
        let addrs = self.0.records.get(&query.name);
        let of_type = |ip: &&IpAddr| ip.is_ipv4() == (query.qtype == TYPE_A);
        let records: Vec<Vec<u8>> = addrs
            .into_iter()
            .flatten()
            .filter(of_type)
            .map(|ip| match ip {
                IpAddr::V4(ip) => record(TYPE_A, &ip.octets()),
                IpAddr::V6(ip) => record(TYPE_AAAA, &ip.octets()),
            })
            .collect();
        let mut message = query.message.clone();
        // A response, recursion available; NXDOMAIN for a name that is not in the table.
        message[2..4].copy_from_slice(&[0x81, if addrs.is_some() { 0x80 } else { 0x83 }]);
        message[6..8].copy_from_slice(&u16::try_from(records.len()).unwrap().to_be_bytes());
        message.extend(records.concat());
        self.0.socket.send_to(&message, to).unwrap();
    }

    /// Holds back answers for `name`.
    pub fn hold(&self, name: &str) {
        self.0.state.lock().unwrap().held.insert(name.into());
    }

    /// Gives all answers held back, and holds back no more.
    pub fn release(&self) {
        let mut state = self.0.state.lock().unwrap();
        state.held.clear();
        for (query, from) in std::mem::take(&mut state.waiting) {
            self.answer(&query, from);
        }
    }

    /// How often `name` has been asked for.
    pub fn asked(&self, name: &str) -> usize {
        self.0.state.lock().unwrap().asked.iter().filter(|asked| *asked == name).count()
    }

    /// The names asked for so far, each time that one was.
    pub fn all_asked(&self) -> Vec<String> {
        self.0.state.lock().unwrap().asked.clone()
    }

    /// How many names in the tar pit have been asked for.
    pub fn stuck(&self) -> usize {
        let state = self.0.state.lock().unwrap();
        state.asked.iter().filter(|name| name.ends_with(".tarpit")).collect::<HashSet<_>>().len()
    }
}

impl Query {
    /// Takes a query apart, RFC 1035 section 4; anything odd in it fails the test.
    fn decode(message: &[u8]) -> Self {
        let mut labels = Vec::new();
        let mut at = 12;
        while message[at] > 0 {
            let end = at + 1 + usize::from(message[at]);
            labels.push(String::from_utf8(message[at + 1..end].to_vec()).unwrap());
            at = end;
        }
        let qtype = u16::from_be_bytes([message[at + 1], message[at + 2]]);
        Self { message: message[..at + 5].to_vec(), name: labels.join("."), qtype }
    }
}

/// A resource record of the name in question, which may not be kept.
fn record(rtype: u16, rdata: &[u8]) -> Vec<u8> {
    let rdlength = u16::try_from(rdata.len()).unwrap().to_be_bytes();
    [&[0xc0, 12], &rtype.to_be_bytes()[..], &[0, 1, 0, 0, 0, 0], &rdlength, rdata].concat()
}
