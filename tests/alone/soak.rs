//! Thousands of sessions of every kind of ending: afterwards the server holds what it held before,
//! and has said what became of each.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::udp::{self, Association};
use crate::common::{
    HELLO, SOON, Server, Target, assert_ends_silently, connect_from, eventually, field, read,
    read_to_end, refusing_port, reply4, reply5, request4, request4a, request5,
};

/// In all, and of each client address. A closed connection takes its pair of ports away for a
/// minute, so both clients and targets are spread over many addresses of loopback.
const SESSIONS: usize = CLIENTS * PER_CLIENT;
const PER_CLIENT: usize = 2_500;
const CLIENTS: usize = 8;
const TARGETS: u8 = 16;

/// How long all of them may take, and how long the server may then take to come to rest: threads
/// without work stay for up to ten seconds.
const TIME: Duration = Duration::from_secs(90);
const REST: Duration = Duration::from_secs(20);

/// What the clients play with.
struct World {
    server: Server,
    targets: Vec<Target>,
    refusing: SocketAddr,
    udp_echo: SocketAddr,
}

/// A target does what the first octet tells it.
fn obey(mut stream: TcpStream) {
    let mut order = [0];
    if stream.read_exact(&mut order).is_err() {
        return;
    }
    match &order {
        b"e" => {
            let mut data = [0; 1024];
            while let Ok(len @ 1..) = stream.read(&mut data) {
                if stream.write_all(&data[..len]).is_err() {
                    return;
                }
            }
        }
        b"c" => stream.write_all(b"bye").unwrap(),
        b"h" => {
            stream.write_all(b"half").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            // The client may reset its end by then.
            let _ = stream.read_to_end(&mut Vec::new());
        }
        b"r" => reset(stream),
        other => panic!("no such order: {other:?}"),
    }
}

fn reset(stream: TcpStream) {
    socksd::sys::set_linger_zero(&stream).unwrap();
    drop(stream);
}

/// One session to be.
struct Turn<'a> {
    world: &'a World,
    from: Ipv4Addr,
    number: usize,
}

impl Turn<'_> {
    fn connect(&self) -> TcpStream {
        connect_from(self.from, self.world.server.addr)
    }

    fn target(&self) -> SocketAddr {
        self.world.targets[self.number % self.world.targets.len()].addr
    }

    /// Sends all of a session's beginning in one go.
    fn sent(&self, octets: &[u8]) -> TcpStream {
        let mut client = self.connect();
        client.write_all(octets).unwrap();
        client
    }

    /// Makes a request of version 5; returns REP, BND and the connection.
    fn request5(&self, request: &[u8]) -> (u8, SocketAddr, TcpStream) {
        let mut client = self.sent(&[HELLO, request].concat());
        assert_eq!(read(&mut client, 2), [5, 0]);
        let (rep, bnd) = reply5(&mut client);
        (rep, bnd, client)
    }

    /// A tunnel to a target, of either version, and an order for the target.
    fn tunnel(&self, order: &[u8]) -> TcpStream {
        let mut client = if self.number.is_multiple_of(2) {
            let mut client = self.sent(&request4(1, self.target(), b"soak"));
            assert_eq!(reply4(&mut client).0, 90);
            client
        } else {
            let (rep, _, client) = self.request5(&request5(1, self.target()));
            assert_eq!(rep, 0);
            client
        };
        client.write_all(order).unwrap();
        client
    }
}

/// A kind of ending: what makes one session end that way, and how the log tells of it.
type Ending = (fn(&Turn), &'static str);

const ENDINGS: [Ending; 26] = [
    (client_closes, "close client"),
    (client_resets, "close client-reset"),
    (client_half_closes, "close client"),
    (client_half_closes_with_its_request, "close client"),
    (target_closes, "close target"),
    (target_half_closes, "close target"),
    (target_resets, "close target-reset"),
    (named_target_closes, "close target"),
    (target_refuses_5, "refuse connect"),
    (target_refuses_4, "refuse connect"),
    (destination_denied_5, "refuse denied"),
    (destination_denied_4, "refuse denied"),
    (unknown_command, "refuse command"),
    (unknown_address_type, "refuse protocol"),
    (no_acceptable_method, "refuse method"),
    (garbage, "refuse protocol"),
    (gone_at_once, "close client"),
    (gone_in_greeting, "close client"),
    (gone_after_greeting, "close client"),
    (gone_in_request_5, "close client"),
    (gone_in_request_4, "close client"),
    (gone_in_name, "close client"),
    (bind_completed, "close client"),
    (bind_abandoned, "close client"),
    (bind_by_stranger, "refuse peer"),
    (datagram_relayed, "close client"),
];

fn client_closes(turn: &Turn) {
    let mut client = turn.tunnel(b"eping");
    assert_eq!(read(&mut client, 4), b"ping");
}

fn client_resets(turn: &Turn) {
    let mut client = turn.tunnel(b"eping");
    assert_eq!(read(&mut client, 4), b"ping");
    reset(client);
}

fn client_half_closes(turn: &Turn) {
    let mut client = turn.tunnel(b"eping");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client), b"ping");
}

fn client_half_closes_with_its_request(turn: &Turn) {
    let mut client = turn.sent(&[&request4(1, turn.target(), b"")[..], b"eping"].concat());
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(reply4(&mut client).0, 90);
    assert_eq!(read_to_end(&mut client), b"ping");
}

fn target_closes(turn: &Turn) {
    assert_eq!(read_to_end(&mut turn.tunnel(b"c")), b"bye");
}

fn target_half_closes(turn: &Turn) {
    let mut client = turn.tunnel(b"h");
    assert_eq!(read_to_end(&mut client), b"half");
    client.write_all(b"late").unwrap();
}

fn target_resets(turn: &Turn) {
    assert_ends_silently(&mut turn.tunnel(b"r"), SOON);
}

fn named_target_closes(turn: &Turn) {
    let target = &turn.world.targets[0].addr;
    let mut client = turn.sent(&request4a(1, 1, b"localhost", target.port(), b""));
    assert_eq!(reply4(&mut client).0, 90);
    client.write_all(b"c").unwrap();
    assert_eq!(read_to_end(&mut client), b"bye");
}

fn refused(turn: &Turn, request: &[u8], rep: u8) {
    let (found, _, mut client) = turn.request5(request);
    assert_eq!((found, read_to_end(&mut client)), (rep, Vec::new()));
}

fn rejected(turn: &Turn, request: &[u8]) {
    let mut client = turn.sent(request);
    assert_eq!((reply4(&mut client).0, read_to_end(&mut client)), (91, Vec::new()));
}

fn target_refuses_5(turn: &Turn) {
    refused(turn, &request5(1, turn.world.refusing), 0x05);
}

fn target_refuses_4(turn: &Turn) {
    rejected(turn, &request4(1, turn.world.refusing, b""));
}

fn destination_denied_5(turn: &Turn) {
    refused(turn, &request5(1, SocketAddr::from(([0, 0, 0, 1], 80))), 0x02);
}

fn destination_denied_4(turn: &Turn) {
    rejected(turn, &request4(1, SocketAddr::from(([0, 0, 0, 0], 80)), b""));
}

fn unknown_command(turn: &Turn) {
    refused(turn, &request5(9, turn.target()), 0x07);
}

fn unknown_address_type(turn: &Turn) {
    refused(turn, &[5, 1, 0, 9, 127, 0, 0, 1, 0, 80], 0x08);
}

fn no_acceptable_method(turn: &Turn) {
    assert_eq!(read_to_end(&mut turn.sent(&[5, 1, 9])), [5, 0xff]);
}

fn garbage(turn: &Turn) {
    assert_ends_silently(&mut turn.sent(b"GET / HTTP/1.0\r\n\r\n"), SOON);
}

/// Leaves, with a reset every other time.
fn leave(turn: &Turn, client: TcpStream) {
    if turn.number.is_multiple_of(2) {
        reset(client);
    }
}

fn gone_at_once(turn: &Turn) {
    leave(turn, turn.connect());
}

fn gone_in_greeting(turn: &Turn) {
    leave(turn, turn.sent(&[5]));
}

fn gone_after_greeting(turn: &Turn) {
    let mut client = turn.sent(HELLO);
    assert_eq!(read(&mut client, 2), [5, 0]);
    leave(turn, client);
}

fn gone_in_request_5(turn: &Turn) {
    let mut client = turn.sent(&[HELLO, &[5, 1, 0, 3, 9, b'n']].concat());
    assert_eq!(read(&mut client, 2), [5, 0]);
    leave(turn, client);
}

fn gone_in_request_4(turn: &Turn) {
    leave(turn, turn.sent(&[4, 1, 0, 80, 127, 0, 0, 1, b'u']));
}

fn gone_in_name(turn: &Turn) {
    leave(turn, turn.sent(&[4, 1, 0, 80, 0, 0, 0, 1, b'u', 0, b'n']));
}

fn bind_completed(turn: &Turn) {
    let (rep, bnd, mut client) = turn.request5(&request5(2, turn.target()));
    assert_eq!(rep, 0);
    let SocketAddr::V4(expected) = turn.target() else { panic!("not IPv4") };
    let mut peer = connect_from(*expected.ip(), bnd);
    assert_eq!(reply5(&mut client), (0, peer.local_addr().unwrap()));
    peer.write_all(b"ping").unwrap();
    assert_eq!(read(&mut client, 4), b"ping");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut peer), b"");
    drop(peer);
    assert_eq!(read_to_end(&mut client), b"");
}

fn bind_abandoned(turn: &Turn) {
    let (rep, _, client) = turn.request5(&request5(2, turn.target()));
    assert_eq!(rep, 0);
    leave(turn, client);
}

fn bind_by_stranger(turn: &Turn) {
    let (rep, bnd, mut client) = turn.request5(&request5(2, SocketAddr::from((turn.from, 0))));
    assert_eq!(rep, 0);
    let stranger = TcpStream::connect(bnd);
    let (rep, peer) = reply5(&mut client);
    assert_eq!((rep, peer.ip()), (0x02, IpAddr::from(Ipv4Addr::LOCALHOST)));
    assert_eq!(read_to_end(&mut client), b"");
    match stranger {
        Ok(mut stranger) => assert_ends_silently(&mut stranger, SOON),
        // The reset can come before the system is back from connecting.
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

fn datagram_relayed(turn: &Turn) {
    let association = Association::over(turn.connect()).unwrap();
    association.send(turn.world.udp_echo, b"ping");
    assert_eq!(association.receive(), b"ping");
}

/// How a session of a client is to end; each client begins with another ending.
fn ending(client: usize, number: usize) -> Ending {
    ENDINGS[(number + 3 * client) % ENDINGS.len()]
}

#[test]
fn sec_18_real_21_20000_sessions_leave_nothing_behind_and_one_log_line_each() {
    let _alone = crate::alone();
    let (refusing, _kept) = refusing_port();
    let world = World {
        server: Server::open(&["--max-per-client", "1000"]),
        // The first one is where localhost is.
        targets: (0..TARGETS).map(|n| Target::on(&format!("127.0.{n}.1"), obey)).collect(),
        refusing,
        udp_echo: udp::echo_on("127.0.0.1"),
    };
    let server = &world.server;
    // The main thread, the two that wait for clients, and those for signals and half-closed relays.
    eventually("all its threads have started", || server.holds().1 == 5);
    let before = server.holds();

    let begun = Instant::now();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let world = &world;
            scope.spawn(move || {
                let from = Ipv4Addr::new(127, 0, 100, u8::try_from(client + 1).unwrap());
                for number in 0..PER_CLIENT {
                    let (end, _) = ending(client, number);
                    end(&Turn { world, from, number });
                }
            });
        }
    });
    assert!(begun.elapsed() < TIME, "{:?}", begun.elapsed());

    let rested = Instant::now();
    while server.holds() != before {
        assert!(rested.elapsed() < REST, "it held {before:?} and holds {:?}", server.holds());
        thread::sleep(Duration::from_millis(50));
    }
    let mut lines = Vec::new();
    eventually("all lines are read", || {
        lines = server.log().into_iter().filter(|line| line.contains(" session=")).collect();
        lines.len() >= SESSIONS
    });
    let mut numbers: Vec<usize> =
        lines.iter().map(|line| field(line, "session").parse().unwrap()).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(1..=SESSIONS));

    let mut expected: HashMap<String, usize> = HashMap::new();
    for client in 0..CLIENTS {
        for number in 0..PER_CLIENT {
            *expected.entry(ending(client, number).1.into()).or_default() += 1;
        }
    }
    let mut told: HashMap<String, usize> = HashMap::new();
    for line in &lines {
        *told.entry(format!("{} {}", field(line, "event"), field(line, "reason"))).or_default() +=
            1;
    }
    assert_eq!(told, expected);
}
