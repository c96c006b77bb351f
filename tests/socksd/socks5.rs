//! SOCKS 5 over TCP: method selection, CONNECT and its refusals (RFC 1928).

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener};

use crate::common::*;

/// Sends a request behind a greeting and asserts that it is refused with `rep` and an end of
/// input, whatever follows it.
fn assert_refused(server: &Server, request: &[u8], rep: u8) {
    for payload in [&b""[..], b"pending payload"] {
        let mut client = server.sent(&[HELLO, request, payload].concat());
        assert_eq!(read(&mut client, 2), [5, 0]);
        assert_eq!(reply5(&mut client).0, rep, "{request:02x?}");
        assert_eq!(read_to_end(&mut client), b"", "V5-35, REAL-10");
    }
}

#[test]
fn v5_11_v5_14_v5_15_v5_16_v5_36_connect_relays_however_the_exchange_is_cut() {
    let server = Server::open(&[]);
    let (v4, v6) = (Target::echo(), Target::echo_on("::1"));
    for (request, len) in [
        (request5(1, v4.addr), 10),
        (request5_name(1, b"localhost", v4.addr.port()), 10),
        (request5_name(1, b"127.0.0.1", v4.addr.port()), 10),
        (request5(1, v6.addr), 22),
        (request5_name(1, b"::1", v6.addr.port()), 22),
    ] {
        for delivery in DELIVERIES {
            let messages = [(HELLO, 2), (&request[..], len)];
            let (replies, mut client) = delivery.exchange(&server, &messages, b"ping");
            assert_eq!(replies[0], [5, 0], "V5-03");
            assert_eq!(replies[1][..3], [5, 0, 0], "V5-20, V5-21 {delivery:?}");
            assert_eq!(read(&mut client, 4), b"ping", "REAL-02, REAL-03 {delivery:?}");
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&mut client), b"");
        }
    }
}

#[test]
fn v5_29_v5_30_v5_38_bnd_is_the_address_the_target_sees() {
    let server = Server::open(&[]);
    for ip in ["127.0.0.1", "::1"] {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let target = listener.local_addr().unwrap();
        let mut client = server.sent(&[HELLO, &request5(1, target)].concat());
        read(&mut client, 2);
        let (rep, bnd) = reply5(&mut client);
        assert_eq!((rep, bnd), (0, listener.accept().unwrap().1));
        drop(client);
        let line = server.log_line(&[&format!("local={bnd} ")]);
        assert_eq!(field(&line, "addr"), target.to_string());
    }
}

#[test]
fn v5_02_v5_03_v5_04_v5_08_v5_40_only_an_offered_method_that_works_is_chosen() {
    let server = Server::open(&[]);
    let all: Vec<u8> = (0..=254).collect();
    for (methods, chosen) in [
        (&[0][..], 0),
        (&[1, 0], 0),
        (&[2, 1, 0], 0),
        (&all, 0),
        (&[0xff, 0], 0),
        (&[], 0xff),
        (&[1], 0xff),
        (&[2], 0xff),
        (&[0xff], 0xff),
        (&all[1..], 0xff),
    ] {
        let mut greeting = vec![5, u8::try_from(methods.len()).unwrap()];
        greeting.extend(methods);
        let mut client = server.sent(&greeting);
        assert_eq!(read(&mut client, 2), [5, chosen], "{methods:?}");
        if chosen == 0xff {
            assert_eq!(read_to_end(&mut client), b"", "V5-05");
        }
    }
}

#[test]
fn v5_04_v5_09_nothing_is_served_behind_no_acceptable_method() {
    let (server, target) = (Server::open(&[]), Target::echo());
    let mut client = server.sent(&[&[5, 1, 1][..], &request5(1, target.addr)].concat());
    assert_eq!(read_to_end(&mut client), [5, 0xff]);
    target.assert_untouched(&server);
    server.log_line(&["event=refuse", "reason=method"]);
}

#[test]
fn v5_12_a_request_of_another_version_is_refused() {
    let (server, target) = (Server::open(&[]), Target::echo());
    for version in [0, 1, 4, 6] {
        let mut request = request5(1, target.addr);
        request[0] = version;
        assert_refused(&server, &request, 1);
    }
    target.assert_untouched(&server);
}

#[test]
fn v5_13_an_unknown_command_is_told_so() {
    let (server, target) = (Server::open(&[]), Target::echo());
    for cmd in [0, 4, 0xf0, 0xff] {
        assert_refused(&server, &request5(cmd, target.addr), 7);
    }
    target.assert_untouched(&server);
    server.log_line(&["command=0xf0", "reason=command", "reply=07"]);
}

#[test]
fn v5_17_an_unknown_address_type_is_told_so() {
    let server = Server::open(&[]);
    for atyp in [0x00, 0x02, 0x05, 0xff] {
        assert_refused(&server, &[5, 1, 0, atyp], 8);
    }
}

#[test]
fn v5_22_v5_23_v5_25_to_v5_27_failures_have_their_codes() {
    let server = Server::open(&["--resolve-timeout", "2"]);
    let (refusing, _bound) = refusing_port();
    assert_refused(&server, &request5(1, refusing), 5);
    assert_refused(&server, &request5(1, "224.0.0.1:80".parse().unwrap()), 3);
    assert_refused(&server, &request5_name(1, b"no host", 80), 4);
    assert_refused(&server, &request5(1, "127.0.0.1:0".parse().unwrap()), 1);
}

#[test]
fn v5_28_a_silent_target_is_told_of_as_unreachable() {
    let server = Server::open(&["--connect-timeout", "1"]);
    let full = TcpListener::bind("127.0.0.1:0").unwrap();
    socksd::sys::listen(&full, 0).unwrap();
    let silent = full.local_addr().unwrap();
    let _fill: Vec<_> = (0..3)
        .map(|_| {
            let fd = socksd::sys::tcp_socket(silent).unwrap();
            let _ = socksd::sys::connect_socket(&fd, silent);
            fd
        })
        .collect();
    assert_refused(&server, &request5(1, silent), 4);
}

#[test]
fn real_16_rsv_is_tolerated() {
    let (server, target) = (Server::open(&[]), Target::echo());
    let mut request = request5(1, target.addr);
    request[2] = 0xff;
    let mut client = server.sent(&[HELLO, &request].concat());
    read(&mut client, 2);
    assert_eq!(reply5(&mut client).0, 0);
}

#[test]
fn real_23_sec_17_a_name_that_is_none_connects_nowhere() {
    let server = Server::open(&[]);
    let target = Target::echo();
    for name in [&b""[..], b"localhost\0.example", b"localhost\0", b"\xff\xfe", b"[127.0.0.1]"] {
        assert_refused(&server, &request5_name(1, name, target.addr.port()), 4);
    }
    target.assert_untouched(&server);
    server.log_line(&["dst=localhost\\x00.example:", "reason=name"]);
}

#[test]
fn families_that_are_switched_off_are_told_so() {
    let (v4, v6) = (Target::echo(), Target::echo_on("::1"));
    let server = Server::open(&["-4"]);
    assert_refused(&server, &request5(1, v6.addr), 8);
    drop(tunnel(&server, v4.addr));
    let server = Server::open(&["-6"]);
    assert_refused(&server, &request5(1, v4.addr), 8);
    drop(tunnel(&server, v6.addr));
    eventually("both were reached once", || (v4.accepted(), v6.accepted()) == (1, 1));
}

#[test]
fn the_source_option_sets_the_address_to_leave_from() {
    let server = Server::open(&["--source", "127.0.0.5"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = tunnel(&server, listener.local_addr().unwrap());
    let (mut target, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip().to_string(), "127.0.0.5");
    client.write_all(b"x").unwrap();
    target.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_session_that_would_come_back_to_this_server_is_refused() {
    let server = Server::open(&[]);
    assert_refused(&server, &request5(1, server.addr), 2);
    let server = Server::spawn(std::process::Command::new(SOCKSD).args([
        "--rule=allow to all",
        "-l",
        "0.0.0.0:0",
    ]));
    let other = SocketAddr::from(([127, 0, 0, 9], server.addr.port()));
    let mut client = connect(SocketAddr::from(([127, 0, 0, 1], server.addr.port())));
    client.write_all(&[HELLO, &request5(1, other)].concat()).unwrap();
    read(&mut client, 2);
    assert_eq!(reply5(&mut client).0, 2);
}

#[test]
fn real_19_all_versions_share_one_port() {
    let (server, target) = (Server::open(&[]), Target::echo());
    let port = target.addr.port();
    for (octets, reply) in [
        (request4(1, target.addr, b""), 8),
        (request4a(1, 9, b"localhost", port, b""), 8),
        ([HELLO, &request5(1, target.addr)].concat(), 12),
    ] {
        let mut client = server.sent(&[&octets[..], b"ping"].concat());
        read(&mut client, reply);
        assert_eq!(read(&mut client, 4), b"ping");
    }
    for version in ["4", "4a", "5"] {
        server.log_line(&["event=close", &format!("version={version} ")]);
    }
}
