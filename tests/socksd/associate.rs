//! UDP ASSOCIATE (RFC 1928 sections 6 and 7).

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::netns::{isolated, link_local};
use crate::common::*;
use socksd::wire::udp;

/// An association, its control connection, and a socket of its client.
struct Association {
    control: TcpStream,
    bnd: SocketAddr,
    socket: UdpSocket,
}

fn associate(server: &Server) -> Association {
    associate_with(server, &request5(3, "0.0.0.0:0".parse().unwrap()))
}

fn associate_with(server: &Server, request: &[u8]) -> Association {
    let mut control = server.sent(&[HELLO, request].concat());
    read(&mut control, 2);
    let (rep, bnd) = reply5(&mut control);
    assert_eq!(rep, 0, "UDP-01");
    assert!(!bnd.ip().is_unspecified() && bnd.port() != 0, "UDP-05");
    Association { control, bnd, socket: bound("127.0.0.1:0") }
}

fn bound(addr: &str) -> UdpSocket {
    let socket = UdpSocket::bind(addr).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

/// A datagram as a client sends it.
fn datagram(frag: u8, dst: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut octets = Vec::new();
    udp::encode_header(dst, &mut octets);
    octets[2] = frag;
    octets.extend(data);
    octets
}

fn named(name: &[u8], port: u16, data: &[u8]) -> Vec<u8> {
    [&[0, 0, 0][..], &request5_name(0, name, port)[3..], data].concat()
}

impl Association {
    fn send(&self, octets: &[u8]) {
        self.socket.send_to(octets, self.bnd).unwrap();
    }

    /// Receives an answer: the address in its header, and its data.
    fn receive(&self) -> (SocketAddr, Vec<u8>) {
        receive(&self.socket, self.bnd)
    }

    fn echoes(&self, target: SocketAddr) {
        self.send(&datagram(0, target, b"ping"));
        assert_eq!(self.receive(), (target, b"ping".to_vec()));
    }
}

fn receive(socket: &UdpSocket, bnd: SocketAddr) -> (SocketAddr, Vec<u8>) {
    let mut buffer = vec![0; 65_536];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(from, bnd, "REAL-26");
    assert_eq!(buffer[..2], [0, 0], "UDP-21");
    let answer = udp::decode(&buffer[..len]).unwrap();
    assert_eq!(answer.frag, udp::Frag::STANDALONE);
    let socksd::wire::Destination::Address(remote) = answer.dst else { panic!("a name") };
    (remote, answer.data.to_vec())
}

/// A UDP target that sends back what it gets.
fn echo(ip: &str) -> SocketAddr {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    let addr = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
    addr
}

/// A UDP target that reports the data it gets.
fn sink() -> (SocketAddr, UdpSocket) {
    let socket = bound("127.0.0.1:0");
    (socket.local_addr().unwrap(), socket)
}

#[test]
fn udp_07_udp_08_udp_11_udp_23_datagrams_of_each_address_type_go_and_come_back() {
    let server = Server::open(&[]);
    let (v4, v6) = (echo("127.0.0.1"), echo("::1"));
    let association = associate(&server);
    association.echoes(v4);
    association.echoes(v6);
    association.send(&named(b"localhost", v4.port(), b"by name"));
    let (remote, data) = association.receive();
    assert_eq!((remote.port(), &data[..]), (v4.port(), &b"by name"[..]));
    association.send(&named(b"127.0.0.1", v4.port(), b"literal"));
    assert_eq!(association.receive(), (v4, b"literal".to_vec()), "REAL-11");
    association.send(&datagram(0, v4, b""));
    assert_eq!(association.receive(), (v4, vec![]), "UDP-23");
    drop(association);
    let line = server.log_line(&["event=close", "command=udp", "reason=client"]);
    assert_eq!((field(&line, "up"), field(&line, "dropped")), ("22", "0"));
}

#[test]
fn udp_02_udp_03_real_12_what_the_request_says_of_the_client_is_advice() {
    let server = Server::open(&[]);
    let target = echo("127.0.0.1");
    for request in [
        request5(3, "0.0.0.0:0".parse().unwrap()),
        request5(3, "[::]:0".parse().unwrap()),
        request5(3, "0.0.0.0:12345".parse().unwrap()),
        request5(3, "127.0.0.1:12345".parse().unwrap()),
        request5(3, "192.168.77.1:12345".parse().unwrap()),
        request5_name(3, b"0", 12_345),
        request5_name(3, b"0.0.0.0", 0),
        request5_name(3, b"localhost", 1),
    ] {
        associate_with(&server, &request).echoes(target);
    }
}

#[test]
fn udp_04_udp_06_an_association_ends_with_its_connection() {
    let server = Server::open(&[]);
    let (target, sink) = sink();
    for reset in [false, true] {
        let association = associate(&server);
        if reset {
            socksd::sys::set_linger_zero(&association.control).unwrap();
        }
        let Association { control, bnd, .. } = association;
        drop(control);
        eventually("the relay port is closed", || UdpSocket::bind(bnd).is_ok());
    }
    let association = associate(&server);
    association.control.shutdown(std::net::Shutdown::Write).unwrap();
    eventually("a half-close ends it", || UdpSocket::bind(association.bnd).is_ok());
    association.send(&datagram(0, target, b"late"));
    assert_no_datagram(&sink);
}

#[test]
fn real_24_octets_over_the_control_connection_do_not_end_it() {
    let server = Server::open(&[]);
    let target = echo("127.0.0.1");
    let mut association = associate(&server);
    association.control.write_all(&[7; 10_000]).unwrap();
    association.echoes(target);
}

#[test]
fn udp_12_udp_13_only_the_clients_own_address_is_served() {
    let server = Server::open(&[]);
    let (target, sink) = sink();
    let association = associate(&server);
    let stranger = bound("127.0.0.2:0");
    stranger.send_to(&datagram(0, target, b"stranger"), association.bnd).unwrap();
    // What comes later arrives, and first.
    association.send(&datagram(0, target, b"client"));
    let mut buffer = [0; 64];
    let (len, relay) = sink.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"client");
    sink.send_to(b"answer", relay).unwrap();
    assert_eq!(association.receive(), (target, b"answer".to_vec()));
    assert_no_datagram(&sink);
    assert_no_datagram(&stranger);
}

#[test]
fn real_27_the_most_recent_port_of_the_client_is_answered() {
    let server = Server::open(&[]);
    let target = echo("127.0.0.1");
    let association = associate(&server);
    association.echoes(target);
    let other = bound("127.0.0.1:0");
    other.send_to(&datagram(0, target, b"other"), association.bnd).unwrap();
    assert_eq!(receive(&other, association.bnd), (target, b"other".to_vec()));
    association.echoes(target);
}

#[test]
fn udp_09_udp_10_what_cannot_be_relayed_is_dropped_and_ends_nothing() {
    let server = Server::open(&["--resolve-timeout", "2"]);
    let target = echo("127.0.0.1");
    let association = associate(&server);
    let mut reserved = datagram(0, target, b"x");
    reserved[0] = 1;
    let mut atyp = datagram(0, target, b"x");
    atyp[3] = 2;
    let dropped = [
        &b""[..],
        b"\0",
        &datagram(0, target, b"")[..9],
        &reserved,
        &atyp,
        &named(b"", target.port(), b"x"),
        &named(b"no host", target.port(), b"x"),
        &datagram(0, "127.0.0.1:0".parse().unwrap(), b"x"),
        &datagram(0, "0.0.0.0:53".parse().unwrap(), b"x"),
        &datagram(0x80, target, b"x"),
    ];
    for octets in dropped {
        association.send(octets);
    }
    association.echoes(target);
    server.await_dropped(dropped.len());
    assert_no_datagram(&association.socket);
    drop(association);
    let line = server.log_line(&["event=close", "command=udp"]);
    assert_eq!(field(&line, "dropped"), dropped.len().to_string());
}

#[test]
fn real_13_a_dead_target_does_not_end_the_association() {
    let server = Server::open(&[]);
    let (dead, socket) = sink();
    drop(socket);
    let target = echo("127.0.0.1");
    let association = associate(&server);
    for _ in 0..3 {
        association.send(&datagram(0, dead, b"x"));
        association.echoes(target);
    }
}

#[test]
fn udp_24_the_largest_datagrams_pass_whole_and_larger_answers_are_dropped() {
    let server = Server::open(&[]);
    let target = echo("127.0.0.1");
    let association = associate(&server);
    let largest: Vec<u8> =
        (0..65_497_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    association.send(&datagram(0, target, &largest));
    let (remote, data) = association.receive();
    assert!(remote == target && data == largest);

    // Two fragments make a datagram that a target can send back, but not with the header on it.
    association.send(&datagram(1, target, &largest[..65_000]));
    association.send(&datagram(0x82, target, &[7; 507]));
    association.echoes(target);
    drop(association);
    let line = server.log_line(&["event=close", "command=udp"]);
    assert_eq!(field(&line, "dropped"), "1");
}

#[test]
fn udp_14_udp_15_udp_17_fragments_are_put_together() {
    let server = Server::open(&[]);
    let (target, sink) = sink();
    let association = associate(&server);
    let mut buffer = [0; 64];
    let mut next = || {
        let len = sink.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    };
    for (frag, data) in [(1, "A"), (0x82, "B"), (1, "a"), (2, "b"), (1, "C"), (0x82, "D")] {
        association.send(&datagram(frag, target, data.as_bytes()));
    }
    assert_eq!((next(), next()), ("AB".into(), "CD".into()));
    for (frag, data) in [(1, "lost"), (0, "alone"), (0x82, "lost"), (0x81, "last")] {
        association.send(&datagram(frag, target, data.as_bytes()));
    }
    assert_eq!((next(), next()), ("alone".into(), "last".into()));
}

#[test]
fn udp_18_udp_19_a_sequence_of_fragments_has_five_seconds() {
    let server = Server::open(&[]);
    let (target, sink) = sink();
    let (in_time, late) = (associate(&server), associate(&server));
    late.send(&datagram(1, target, b"late"));
    thread::sleep(Duration::from_millis(1_200));
    in_time.send(&datagram(1, target, b"in "));
    thread::sleep(Duration::from_secs(4));
    in_time.send(&datagram(0x82, target, b"time"));
    late.send(&datagram(0x82, target, b"r"));
    let mut buffer = [0; 64];
    let len = sink.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"in time");
    // What comes later is relayed, so the rest of the late ones has been dropped.
    late.echoes(echo("127.0.0.1"));
    assert_no_datagram(&sink);
}

#[test]
fn udp_16_without_reassembly_every_fragment_is_dropped() {
    let server = Server::open(&["--no-fragments"]);
    let (target, sink) = sink();
    let association = associate(&server);
    for frag in [1, 0x82, 0x81, 0x7f, 0xff] {
        association.send(&datagram(frag, target, b"x"));
    }
    association.echoes(echo("127.0.0.1"));
    assert_no_datagram(&sink);
    drop(association);
    server.log_line(&["event=close", "command=udp", "dropped=5 "]);
}

#[test]
fn udp_22_associations_are_separate() {
    let server = Server::open(&[]);
    let target = echo("127.0.0.1");
    let (one, two) = (associate(&server), associate(&server));
    assert_ne!(one.bnd, two.bnd);
    one.echoes(target);
    assert_no_datagram(&two.socket);
    two.echoes(target);
    assert_no_datagram(&one.socket);
}

#[test]
fn an_idle_association_ends_only_at_the_limit_that_is_set() {
    let server = Server::open(&["--udp-idle-timeout", "1"]);
    let target = echo("127.0.0.1");
    let mut association = associate(&server);
    let begun = Instant::now();
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(400));
        association.echoes(target);
    }
    assert_eq!(read_to_end(&mut association.control), b"");
    assert!(begun.elapsed() > Duration::from_millis(2_500));
    server.log_line(&["command=udp", "reason=idle"]);
}

#[test]
fn an_association_has_a_fixed_number_of_descriptors() {
    let server = Server::open(&[]);
    // The server is up, with all that it opens at its start, once a session has ended.
    drop(associate(&server));
    server.log_line(&["event=close"]);
    let before = server.holds().0;
    let association = associate(&server);
    for port in 20_000..20_200 {
        association.send(&datagram(0, SocketAddr::from(([127, 0, 0, 1], port)), b"x"));
    }
    association.echoes(echo("127.0.0.1"));
    assert_eq!(server.holds().0 - before, 4);
}

#[test]
fn an_advertised_address_and_a_port_of_the_range_are_told() {
    let server = Server::open(&["--advertise", "192.0.2.8", "--port-range", "20411-20411"]);
    let association = associate(&server);
    assert_eq!(association.bnd, "192.0.2.8:20411".parse().unwrap());
    // A NAT would forward the advertised address to the one the client reached.
    let target = echo("127.0.0.1");
    let bnd = "127.0.0.1:20411".parse().unwrap();
    association.socket.send_to(&datagram(0, target, b"ping"), bnd).unwrap();
    assert_eq!(receive(&association.socket, bnd).1, b"ping");
    let mut control = server.sent(&[HELLO, &request5(3, "0.0.0.0:0".parse().unwrap())].concat());
    read(&mut control, 2);
    assert_eq!(reply5(&mut control).0, 1, "UDP-25");
}

#[test]
fn answers_come_from_the_advertised_address_where_this_host_has_it() {
    // The system would answer from 127.0.0.1, the first address of the interface.
    let server = Server::open(&["--advertise", "127.0.0.8"]);
    let association = associate(&server);
    assert_eq!(association.bnd.ip(), std::net::Ipv4Addr::new(127, 0, 0, 8));
    association.echoes(echo("127.0.0.1"));
}

#[test]
fn real_29_an_ipv6_client_gets_an_ipv6_relay() {
    let server = Server::spawn(std::process::Command::new(SOCKSD).args([
        "--rule=allow to all",
        "--listen",
        "[::]:0",
    ]));
    let target = echo("127.0.0.1");
    for ip in ["::1", "127.0.0.1"] {
        let ip = ip.parse().unwrap();
        let mut control = connect(SocketAddr::new(ip, server.addr.port()));
        control.write_all(&[HELLO, &request5(3, "0.0.0.0:0".parse().unwrap())].concat()).unwrap();
        read(&mut control, 2);
        let (rep, bnd) = reply5(&mut control);
        assert_eq!((rep, bnd.ip()), (0, ip));
        let socket = bound(&SocketAddr::new(ip, 0).to_string());
        Association { control, bnd, socket }.echoes(target);
    }
}

#[test]
fn a_link_local_client_gets_a_relay_on_its_own_link() {
    isolated(|| {
        let here = link_local();
        let listen = ["--rule=allow to all", "--listen", "[::]:1080"];
        let server = Server::spawn(std::process::Command::new(SOCKSD).args(listen));
        let mut control = connect(here(1080));
        control.write_all(&[HELLO, &request5(3, "[::]:0".parse().unwrap())].concat()).unwrap();
        read(&mut control, 2);
        let (rep, bnd) = reply5(&mut control);
        assert_eq!((rep, bnd.ip()), (0, here(0).ip()), "{:?}", server.log());
        let socket = bound(&here(0).to_string());
        Association { control, bnd: here(bnd.port()), socket }.echoes(echo("127.0.0.1"));
    });
}

#[test]
fn datagrams_leave_from_the_source_given() {
    let server = Server::open(&["--source", "127.0.0.5"]);
    let (target, sink) = sink();
    let association = associate(&server);
    association.send(&datagram(0, target, b"ping"));
    let mut buffer = [0; 64];
    let (len, from) = sink.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from.ip().to_string()), (&b"ping"[..], "127.0.0.5".into()));
    sink.send_to(b"pong", from).unwrap();
    assert_eq!(association.receive(), (target, b"pong".to_vec()));
}

#[test]
fn udp_25_socks_4_has_no_udp() {
    let server = Server::open(&[]);
    let mut client = server.sent(&request4(3, "127.0.0.1:53".parse().unwrap(), b""));
    assert_eq!(reply4(&mut client).0, 91);
}
