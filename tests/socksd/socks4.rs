//! SOCKS 4 and 4A CONNECT, and their refusals (draft-vance-socks-v4-08, draft-vance-socks-v4a).

use std::io::Write as _;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use crate::common::*;

const GRANTED: u8 = 90;
const REJECTED: u8 = 91;

/// Sends a request and asserts that it is refused with 91 and an end of input, and that the octets
/// sent behind it do not destroy the reply.
fn assert_rejected(server: &Server, request: &[u8]) {
    for payload in [&b""[..], b"pending payload"] {
        let mut client = server.sent(&[request, payload].concat());
        assert_eq!(reply4(&mut client).0, REJECTED, "{request:02x?}");
        assert_eq!(read_to_end(&mut client), b"", "V4-19, REAL-10");
    }
}

#[test]
fn v4_01_v4_05_v4_10_v4_40_connect_relays_however_the_request_is_cut() {
    let (server, target) = (Server::open(&[]), Target::echo());
    for delivery in DELIVERIES {
        let request = request4(1, target.addr, b"alice");
        let (replies, mut client) = delivery.exchange(&server, &[(&request, 8)], b"ping");
        assert_eq!(replies[0][..2], [0, GRANTED], "V4-15, V4-16 {delivery:?}");
        assert_eq!(read(&mut client, 4), b"ping", "REAL-01, REAL-02 {delivery:?}");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut client), b"");
    }
    target.assert_accepted(3); // V4-10
}

#[test]
fn v4_05_the_address_is_the_one_asked_for() {
    let server = Server::open(&[]);
    let target = Target::echo_on("127.0.0.2");
    let mut client = server.sent(&request4(1, target.addr, b""));
    let (cd, bnd) = reply4(&mut client);
    assert_eq!(cd, GRANTED);
    assert!(bnd.ip().is_loopback() && bnd.port() != 0);
}

#[test]
fn v4_08_v4a_18_userids_from_none_to_255_octets_of_any_value_are_granted() {
    let (server, target) = (Server::open(&[]), Target::echo());
    let all: Vec<u8> = (1..=255).collect();
    for userid in [&b""[..], b"a", &all] {
        let mut client = server.sent(&request4(1, target.addr, userid));
        assert_eq!(reply4(&mut client).0, GRANTED);
    }
    let mut client = server.sent(&request4(1, target.addr, &[b'u'; 256]));
    assert_eq!(reply4(&mut client).0, REJECTED);
    target.assert_accepted(3);
}

#[test]
fn v4_14_v4_39_v4a_09_octets_behind_the_first_nul_are_payload() {
    let (server, target) = (Server::open(&[]), Target::echo());
    let mut client = server.sent(&[&request4(1, target.addr, b"")[..], b"name\0"].concat());
    assert_eq!(reply4(&mut client).0, GRANTED);
    assert_eq!(read(&mut client, 5), b"name\0");
    // The answer to 0.0.0.0 comes without a second NUL.
    assert_rejected(&server, &request4(1, "0.0.0.0:80".parse().unwrap(), b""));
}

#[test]
fn v4_07_an_unknown_command_is_rejected() {
    let (server, target) = (Server::open(&[]), Target::echo());
    for cd in [0, 3, 255] {
        assert_rejected(&server, &request4(cd, target.addr, b""));
    }
    target.assert_untouched(&server);
}

#[test]
fn v4_06_v4a_07_an_unknown_version_ends_the_connection() {
    let server = Server::open(&[]);
    for version in [0x00, 0x01, 0x03, 0x06, 0x16, 0x47, 0xff] {
        let mut client = server.sent(&[version, 1, 0, 80, 127, 0, 0, 1, 0]);
        assert_ends_silently(&mut client, SOON);
    }
    server.log_lines(&["event=refuse", "reason=protocol", "bad version"], 7);
}

#[test]
fn v4_11_v4_17_v4a_22_a_refused_connection_is_rejected() {
    let server = Server::open(&[]);
    let (refusing, _bound) = refusing_port();
    assert_rejected(&server, &request4(1, refusing, b""));
    server.log_line(&["reason=connect", "reply=5b", "refused"]);
    assert_rejected(&server, &request4a(1, 1, b"localhost", refusing.port(), b""));
}

#[test]
fn v4_12_v4_13_v4a_24_0_0_0_x_is_never_connected_to() {
    let server = Server::open(&["--no-4a"]);
    let target = Target::echo_on("0.0.0.0");
    for x in [1, 2, 127, 255] {
        let request = request4a(1, x, b"localhost", target.addr.port(), b"");
        assert_rejected(&server, &request);
        let literal = request4(1, SocketAddr::from(([0, 0, 0, x], target.addr.port())), b"");
        assert_rejected(&server, &literal);
    }
    target.assert_untouched(&server);
}

#[test]
fn v4_20_v4_21_the_reply_comes_before_a_target_that_speaks_first() {
    let server = Server::open(&[]);
    let target = Target::on("127.0.0.1", |mut stream| {
        let _ = stream.write_all(b"220 ready");
        let _ = std::io::Read::read(&mut stream, &mut [0]);
    });
    let mut client = server.sent(&request4(1, target.addr, b""));
    assert_eq!(reply4(&mut client).0, GRANTED);
    assert_eq!(read(&mut client, 9), b"220 ready");
}

#[test]
fn v4_32_v4_34_a_connection_that_takes_too_long_is_rejected() {
    let server = Server::open(&["--connect-timeout", "1"]);
    // A full backlog drops the SYN: the address neither answers nor refuses.
    let full = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socksd::sys::listen(&full, 0).unwrap();
    let silent = full.local_addr().unwrap();
    let _fill: Vec<_> = (0..3).map(|_| fill(silent)).collect();
    assert_rejected(&server, &request4(1, silent, b""));
    server.log_line(&["reason=timeout", "reply=5b"]);
}

/// Starts a connection without waiting for it.
fn fill(addr: SocketAddr) -> std::os::fd::OwnedFd {
    let fd = socksd::sys::tcp_socket(addr).unwrap();
    let _ = socksd::sys::connect_socket(&fd, addr);
    fd
}

#[test]
fn v4a_01_v4a_02_v4a_04_v4a_05_every_x_means_the_domain() {
    let (server, target) = (Server::open(&[]), Target::echo());
    for (x, userid) in [(1, &b""[..]), (2, b"bob"), (127, &[b'u'; 255]), (128, b""), (255, b"")] {
        for delivery in DELIVERIES {
            let request = request4a(1, x, b"localhost", target.addr.port(), userid);
            let (replies, mut client) = delivery.exchange(&server, &[(&request, 8)], b"ping");
            assert_eq!(replies[0][..2], [0, GRANTED], "V4A-13 {x} {delivery:?}");
            assert_eq!(read(&mut client, 4), b"ping", "V4A-05 {x} {delivery:?}");
        }
    }
}

#[test]
fn v4a_06_v4a_08_there_is_no_reply_before_the_second_nul() {
    let (server, target) = (Server::open(&[]), Target::echo());
    let request = request4a(1, 1, b"localhost", target.addr.port(), b"bob");
    let mut client = server.connect();
    for part in [..1, ..8, ..12, ..request.len() - 1] {
        client = server.sent(&request[part]);
        assert_silent(&server, &mut client);
    }
    client.write_all(&[0]).unwrap();
    assert_eq!(reply4(&mut client).0, GRANTED);
}

#[test]
fn v4a_12_v4a_19_v4a_23_a_domain_that_names_nothing_is_rejected() {
    let server = Server::open(&["--resolve-timeout", "2"]);
    for name in [&b""[..], b"\xc3\xa4\xff\x01", b"no host", b"::1", b"[::1]"] {
        assert_rejected(&server, &request4a(1, 1, name, 80, b""));
    }
}

#[test]
fn v4a_21_real_11_a_literal_address_as_domain_is_that_address() {
    let (server, target) = (Server::open(&[]), Target::echo());
    let mut client = server.sent(&request4a(1, 1, b"127.0.0.1", target.addr.port(), b""));
    assert_eq!(reply4(&mut client).0, GRANTED);
    drop(client);
    server.log_line(&["version=4a", &format!("dst={} ", target.addr)]);
}

#[test]
fn v4a_17_sec_09_an_endless_field_is_cut_early() {
    let server = Server::open(&[]);
    for head in [&b"\x04\x01\0\x50\x7f\0\0\x01"[..], b"\x04\x01\0\x50\0\0\0\x01\0"] {
        let mut client = server.sent(head);
        client.set_write_timeout(Some(SOON)).unwrap();
        let mut sent = 0;
        while sent < 8 << 20 && client.write_all(&[b'a'; 4096]).is_ok() {
            sent += 4096;
        }
        assert!(sent < 8 << 20, "not cut after {sent} octets");
    }
    server.log_lines(&["event=refuse", "reason=protocol", "longer than 255"], 2);
}

#[test]
fn real_22_port_0_is_rejected() {
    assert_rejected(&Server::open(&[]), &request4(1, "127.0.0.1:0".parse().unwrap(), b""));
}

#[test]
fn real_28_a_half_close_behind_the_request_is_served() {
    let (server, target) = (Server::open(&[]), Target::echo());
    for request in [
        request4(1, target.addr, b""),
        request4a(1, 1, b"localhost", target.addr.port(), b""),
        [HELLO, &request5(1, target.addr)].concat(),
    ] {
        let mut client = server.sent(&[&request[..], b"ping"].concat());
        client.shutdown(Shutdown::Write).unwrap();
        let answer = read_to_end(&mut client);
        assert!(answer.ends_with(b"ping"), "{answer:02x?}");
    }
}

#[test]
fn v4_04_real_17_a_hundred_round_trips_are_quick() {
    let (server, target) = (Server::open(&[]), Target::echo());
    let mut client = server.sent(&request4(1, target.addr, b""));
    assert_eq!(reply4(&mut client).0, GRANTED);
    let begun = std::time::Instant::now();
    for octet in 0..100 {
        client.write_all(&[octet]).unwrap();
        assert_eq!(read(&mut client, 1), [octet]);
    }
    // With Nagle against delayed acknowledgements each would take 40 ms.
    assert!(begun.elapsed() < Duration::from_secs(3));
}
