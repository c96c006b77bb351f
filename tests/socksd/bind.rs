//! BIND of versions 4, 4A and 5.

use std::io::Write as _;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::common::netns::{isolated, link_local};
use crate::common::*;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

fn bind5(server: &Server, dst: SocketAddr) -> (TcpStream, SocketAddr) {
    let mut client = server.sent(&[HELLO, &request5(2, dst)].concat());
    read(&mut client, 2);
    let (rep, bnd) = reply5(&mut client);
    assert_eq!(rep, 0, "V5-37");
    assert!(!bnd.ip().is_unspecified() && bnd.port() != 0, "V5-32");
    (client, bnd)
}

fn bind4(server: &Server, dst: SocketAddr) -> (TcpStream, SocketAddr) {
    let mut client = server.sent(&request4(2, dst, b"bob"));
    let (cd, bnd) = reply4(&mut client);
    assert_eq!(cd, 90, "V4-22, V4-35");
    assert!(!bnd.ip().is_unspecified() && bnd.port() != 0, "V4-25, V4A-15");
    (client, bnd)
}

fn assert_port_closed(bnd: SocketAddr) {
    eventually("the BIND port is closed", || TcpStream::connect(bnd).is_err());
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[test]
fn v4_24_v4_26_v4_27_v4_29_version_4_accepts_the_expected_peer() {
    let server = Server::open(&[]);
    for dst in [loopback(0), loopback(9999), ANY] {
        let (mut client, bnd) = bind4(&server, dst);
        assert_silent(&server, &mut client);
        let mut peer = connect(bnd);
        peer.write_all(b"early").unwrap();
        assert_eq!(reply4(&mut client), (90, peer.local_addr().unwrap()), "V4-27, V4-36, REAL-09");
        assert_eq!(read(&mut client, 5), b"early", "V4-31, REAL-20");
        client.write_all(b"answer").unwrap();
        assert_eq!(read(&mut peer, 6), b"answer");
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut client), b"");
        assert_port_closed(bnd);
    }
}

#[test]
fn v5_19_v5_31_to_v5_34_version_5_accepts_the_expected_peer() {
    let server = Server::open(&[]);
    for dst in [loopback(0), loopback(9999), ANY, "[::]:0".parse().unwrap()] {
        let (mut client, bnd) = bind5(&server, dst);
        assert_silent(&server, &mut client);
        let mut peer = connect(bnd);
        peer.write_all(b"early").unwrap();
        assert_eq!(reply5(&mut client), (0, peer.local_addr().unwrap()), "V5-33, V5-34");
        assert_eq!(read(&mut client, 5), b"early", "REAL-20");
        client.write_all(b"answer").unwrap();
        assert_eq!(read(&mut peer, 6), b"answer");
    }
}

#[test]
fn bind_requests_are_served_however_they_are_cut_and_keep_what_follows() {
    let server = Server::open(&[]);
    for delivery in DELIVERIES {
        let request = request4(2, loopback(0), b"");
        let (replies, mut client) = delivery.exchange(&server, &[(&request, 8)], b"early");
        let bnd = loopback(u16::from_be_bytes([replies[0][2], replies[0][3]]));
        let mut peer = connect(bnd);
        assert_eq!(reply4(&mut client).0, 90);
        assert_eq!(read(&mut peer, 5), b"early", "REAL-02 {delivery:?}");

        let request = request5(2, loopback(0));
        let messages = [(HELLO, 2), (&request[..], 10)];
        let (replies, mut client) = delivery.exchange(&server, &messages, b"early");
        let bnd = loopback(u16::from_be_bytes([replies[1][8], replies[1][9]]));
        let mut peer = connect(bnd);
        assert_eq!(reply5(&mut client).0, 0);
        assert_eq!(read(&mut peer, 5), b"early", "REAL-02 {delivery:?}");
    }
}

#[test]
fn v4_28_v4_30_v4_37_a_wrong_peer_ends_both_connections() {
    let server = Server::open(&[]);
    let (mut client, bnd) = bind4(&server, loopback(0));
    let mut intruder = connect_from(Ipv4Addr::new(127, 0, 0, 2), bnd);
    assert_eq!(reply4(&mut client), (91, intruder.local_addr().unwrap()));
    assert_eq!(read_to_end(&mut client), b"");
    assert_ends_silently(&mut intruder, Duration::from_secs(2));
    assert_port_closed(bnd);
    server.log_line(&["event=refuse", "reason=peer", "reply=5b"]);
}

#[test]
fn real_25_v5_31_a_wrong_peer_of_version_5_is_told_so() {
    let server = Server::open(&[]);
    let (mut client, bnd) = bind5(&server, loopback(0));
    let mut intruder = connect_from(Ipv4Addr::new(127, 0, 0, 2), bnd);
    assert_eq!(reply5(&mut client), (2, intruder.local_addr().unwrap()));
    assert_eq!(read_to_end(&mut client), b"");
    assert_ends_silently(&mut intruder, Duration::from_secs(2));
    assert_port_closed(bnd);
}

#[test]
fn v4a_03_v4a_16_a_name_stands_for_its_addresses() {
    let server = Server::open(&[]);
    for (from, code) in [([127, 0, 0, 1], 90), ([127, 0, 0, 2], 91)] {
        let mut client = server.sent(&request4a(2, 1, b"localhost", 0, b""));
        let (cd, bnd) = reply4(&mut client);
        assert_eq!(cd, 90);
        let _peer = connect_from(from.into(), bnd);
        assert_eq!(reply4(&mut client).0, code);
    }
}

#[test]
fn sec_15_only_one_connection_is_accepted() {
    let server = Server::open(&[]);
    let (mut client, bnd) = bind5(&server, ANY);
    let _peer = connect(bnd);
    assert_eq!(reply5(&mut client).0, 0);
    assert_port_closed(bnd);
}

#[test]
fn v4_33_v5_33_a_bind_that_nobody_answers_ends_at_its_limit() {
    let server = Server::open(&["--bind-timeout", "1"]);
    let (mut client4, bnd4) = bind4(&server, ANY);
    let (mut client5, bnd5) = bind5(&server, ANY);
    let begun = Instant::now();
    assert_eq!(reply4(&mut client4).0, 91);
    assert_eq!(reply5(&mut client5).0, 4);
    assert!(begun.elapsed() < Duration::from_secs(4));
    assert_eq!(read_to_end(&mut client4), b"");
    assert_eq!(read_to_end(&mut client5), b"");
    assert_port_closed(bnd4);
    assert_port_closed(bnd5);
    server.log_lines(&["event=refuse", "command=bind", "reason=timeout"], 2);
}

#[test]
fn v4_41_a_client_that_leaves_takes_its_listener_along() {
    let server = Server::open(&[]);
    for reset in [false, true] {
        let (client, bnd) = bind4(&server, ANY);
        if reset {
            socksd::sys::set_linger_zero(&client).unwrap();
        }
        drop(client);
        assert_port_closed(bnd);
    }
    server.log_lines(&["event=close", "command=bind", "reason=client"], 2);
}

#[test]
fn real_29_an_ipv6_client_gets_an_ipv6_listener() {
    let server = Server::spawn(std::process::Command::new(SOCKSD).args([
        "--rule=allow to all",
        "--listen",
        "[::]:0",
    ]));
    let port = server.addr.port();
    for (ip, dst) in [
        ("::1", "[::]:0"),
        ("::1", "0.0.0.0:0"),
        ("::1", "[::1]:0"),
        ("127.0.0.1", "0.0.0.0:0"),
        ("127.0.0.1", "127.0.0.1:0"),
    ] {
        let mut client = connect(SocketAddr::new(ip.parse().unwrap(), port));
        client.write_all(&[HELLO, &request5(2, dst.parse().unwrap())].concat()).unwrap();
        read(&mut client, 2);
        let (rep, bnd) = reply5(&mut client);
        assert_eq!((rep, bnd.ip().to_string()), (0, ip.into()), "{dst}");
        let peer = connect(bnd);
        assert_eq!(reply5(&mut client), (0, peer.local_addr().unwrap()));
    }
    // A peer of the other family cannot come to the address the client used.
    let mut client = connect(SocketAddr::new("::1".parse().unwrap(), port));
    client.write_all(&[HELLO, &request5(2, loopback(0))].concat()).unwrap();
    read(&mut client, 2);
    let (rep, bnd) = reply5(&mut client);
    assert_eq!((rep, bnd.ip()), (0, loopback(0).ip()));
    drop(connect(bnd));
    assert_eq!(reply5(&mut client).0, 0);
    assert!(!server.log().iter().any(|line| line.contains("ffff")));
}

#[test]
fn a_link_local_client_gets_a_listener_on_its_own_link() {
    isolated(|| {
        let here = link_local();
        let listen = ["--rule=allow to all", "--listen", "[::]:1080"];
        let server = Server::spawn(std::process::Command::new(SOCKSD).args(listen));
        let mut client = connect(here(1080));
        client.write_all(&[HELLO, &request5(2, "[::]:0".parse().unwrap())].concat()).unwrap();
        read(&mut client, 2);
        let (rep, bnd) = reply5(&mut client);
        assert_eq!((rep, bnd.ip()), (0, here(0).ip()), "{:?}", server.log());
        let mut peer = connect(here(bnd.port()));
        let (rep, from) = reply5(&mut client);
        let peer_addr = peer.local_addr().unwrap();
        assert_eq!((rep, from.ip(), from.port()), (0, peer_addr.ip(), peer_addr.port()));
        peer.write_all(b"ping").unwrap();
        assert_eq!(read(&mut client, 4), b"ping");
    });
}

#[test]
fn an_advertised_address_is_told_and_the_range_of_ports_kept() {
    let server = Server::open(&["--advertise", "127.0.0.8", "--port-range", "20401-20402"]);
    let (_client, bnd) = bind5(&server, ANY);
    let (mut other, second) = bind5(&server, ANY);
    assert_eq!(bnd.ip().to_string(), "127.0.0.8");
    let mut ports = [bnd.port(), second.port()];
    ports.sort_unstable();
    assert_eq!(ports, [20_401, 20_402]);
    // Both ports are taken.
    let mut third = server.sent(&[HELLO, &request5(2, ANY)].concat());
    read(&mut third, 2);
    assert_eq!(reply5(&mut third).0, 1);
    server.log_line(&["reason=limit", "no free port in the range"]);
    // The listener is there for whatever address is forwarded to it.
    let peer = connect(second);
    assert_eq!(reply5(&mut other), (0, peer.local_addr().unwrap()));
}
