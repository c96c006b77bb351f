//! Behind a balancer: PROXY headers by hand, and real HAProxy in front of two servers, with the
//! configuration that is installed as an example.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::netns::{ip, isolated};
use crate::common::udp;
use crate::common::*;
use socksd::sync::lock;
use socksd::wire::NO_ADDRESS;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Options of a server whose clients all come through a balancer on 127.0.0.1.
const BEHIND: [&str; 2] = ["--proxy-protocol", "127.0.0.1"];

/// What HAProxy adds with `proxy-v2-options unique-id,crc32c`, and 900 octets of nothing.
fn tlvs() -> Vec<u8> {
    let known = b"\x03\x00\x04\x51\xca\x81\x27\x05\x00\x127F000001:8B28_0002";
    [&known[..], b"\x04\x03\x84", &[0; 900]].concat()
}

fn sock(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A header of version 1.
fn v1(client: &str, server: &str) -> Vec<u8> {
    let (client, server) = (sock(client), sock(server));
    let family = if client.is_ipv4() { 4 } else { 6 };
    let (from, to) = (client.ip(), server.ip());
    format!("PROXY TCP{family} {from} {to} {} {}\r\n", client.port(), server.port()).into_bytes()
}

/// A header of version 2: command, family, what LEN counts.
fn v2_raw(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[0x20 | command, family], &len, rest].concat()
}

/// A header of version 2 for a client, with TLVs.
fn v2_with(client: &str, server: &str, tlvs: &[u8]) -> Vec<u8> {
    let (client, server) = (sock(client), sock(server));
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ports = [client.port().to_be_bytes(), server.port().to_be_bytes()].concat();
    let addresses = [octets(client.ip()), octets(server.ip()), ports].concat();
    let family = if client.is_ipv4() { 0x11 } else { 0x21 };
    v2_raw(1, family, &[&addresses, tlvs].concat())
}

fn v2(client: &str, server: &str) -> Vec<u8> {
    v2_with(client, server, b"")
}

/// The header of some client at this address.
fn of(client: &str) -> Vec<u8> {
    let ip: IpAddr = client.parse().unwrap();
    let server = if ip.is_ipv4() { "192.0.2.1:1080" } else { "[2001:db8::1]:1080" };
    v2(&SocketAddr::new(ip, 4_321).to_string(), server)
}

const LOCAL: fn() -> Vec<u8> = || v2_raw(0, 0, b"");

/// A client behind the header, greeted; returns the method and its connection.
fn greeted(server: &Server, header: &[u8], greeting: &[u8]) -> (u8, TcpStream) {
    let mut client = server.sent(&[header, greeting].concat());
    let answer = read(&mut client, 2);
    assert_eq!(answer[0], 5);
    (answer[1], client)
}

/// Asks for a version 5 command behind a header; returns REP, BND and the connection.
fn ask(server: &Server, header: &[u8], cmd: u8, dst: SocketAddr) -> (u8, SocketAddr, TcpStream) {
    let (method, mut client) = greeted(server, header, HELLO);
    assert_eq!(method, 0);
    client.write_all(&request5(cmd, dst)).unwrap();
    let (rep, bnd) = reply5(&mut client);
    (rep, bnd, client)
}

/// A tunnel of a client behind a header.
fn tunnel_of(server: &Server, header: &[u8], target: SocketAddr) -> TcpStream {
    let (rep, _, client) = ask(server, header, 1, target);
    assert_eq!(rep, 0);
    client
}

fn assert_flows(tunnel: &mut TcpStream) {
    tunnel.write_all(b"ping").unwrap();
    assert_eq!(read(tunnel, 4), b"ping");
}

/// Headers, each with the client that the log is to name; `unix` for one without an address and
/// `""` for that of the connection.
fn headers() -> Vec<(Vec<u8>, &'static str)> {
    vec![
        (v1("192.0.2.7:1001", "198.51.100.1:1080"), "192.0.2.7:1001"),
        (v1("[2001:db8::7]:1002", "[2001:db8::1]:1080"), "[2001:db8::7]:1002"),
        (v1("[::ffff:192.0.2.8]:1003", "[2001:db8::1]:1080"), "192.0.2.8:1003"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "unix"),
        (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".to_vec(), "unix"),
        (v2("192.0.2.7:1004", "198.51.100.1:1080"), "192.0.2.7:1004"),
        (v2("[2001:db8::7]:1005", "[2001:db8::1]:1080"), "[2001:db8::7]:1005"),
        (v2("[::ffff:192.0.2.8]:1006", "[2001:db8::1]:1080"), "192.0.2.8:1006"),
        (v2_with("192.0.2.7:1007", "198.51.100.1:1080", &tlvs()), "192.0.2.7:1007"),
        (v2_with("[2001:db8::7]:1008", "[2001:db8::1]:1080", &tlvs()), "[2001:db8::7]:1008"),
        (v2_raw(1, 0x00, &tlvs()), "unix"),
        (v2_raw(1, 0x31, &[b'/'; 216]), "unix"),
        (v2_raw(0, 0x00, b""), ""),
        (v2_raw(0, 0x00, &tlvs()), ""),
        (v2_raw(0, 0x11, b"\xc0\x00\x02\x07\xc0\x00\x02\x01\x00\x01\x00\x02"), ""),
    ]
}

#[test]
fn headers_of_both_versions_may_come_in_any_pieces_before_all_versions_of_socks() {
    let server = Server::open(&BEHIND);
    let target = Target::echo();
    let mut sessions = 0;
    thread::scope(|scope| {
        for (header, client) in headers() {
            let (server, target) = (&server, target.addr);
            scope.spawn(move || {
                for delivery in DELIVERIES {
                    let five = request5(1, target);
                    let messages = [(&header[..], 0), (HELLO, 2), (&five, 10)];
                    let (answers, mut tunnel) = delivery.exchange(server, &messages, b"ping");
                    assert_eq!((&answers[1][..], answers[2][1]), (&[5, 0][..], 0), "{client}");
                    assert_eq!(read(&mut tunnel, 4), b"ping");
                    tunnel.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(read_to_end(&mut tunnel), b"");
                    let own = tunnel.local_addr().unwrap().to_string();
                    let client = if client.is_empty() { &own } else { client };
                    let told = format!(" client={client} ");
                    server.log_line(&["event=close ", &told, " version=5 ", " up=4 down=4 "]);

                    let four = request4(1, target, b"bob");
                    let messages = [(&header[..], 0), (&four, 8)];
                    let (answers, mut tunnel) = delivery.exchange(server, &messages, b"ping");
                    assert_eq!(answers[1][1], 90, "{client}");
                    assert_eq!(read(&mut tunnel, 4), b"ping");
                }
            });
            sessions += 2 * DELIVERIES.len();
        }
    });
    assert_eq!(server.log_lines(&["event=close "], sessions).len(), sessions);
    target.assert_accepted(sessions);
}

#[test]
fn the_longest_header_and_the_longest_handshake_fit_together() {
    let users = TempFile::new(&format!("{}:{SECRET}\n", "n".repeat(255)));
    let server = Server::open(&[&BEHIND[..], &["--users", users.path()]].concat());
    let longest = v2_raw(0, 0, &[0; 1_008]);
    let greeting = [&[5, 255][..], &[2; 255]].concat();
    let before = [longest, greeting].concat();
    let mut wrong = server.sent(&[&before[..], &login(&[b'n'; 255], &[b'p'; 255])].concat());
    assert_eq!(read(&mut wrong, 4), [5, 2, 1, 1]);
    let (right, request) = (login(&[b'n'; 255], b"secret"), request5_name(1, &[b'.'; 255], 1));
    let mut client = server.sent(&[before, right, request].concat());
    assert_eq!(read(&mut client, 4), [5, 2, 1, 0]);
    assert_eq!(reply5(&mut client).0, 4, "read, and no name of a host");
}

#[test]
fn a_header_is_for_those_only_who_are_named_and_they_must_send_one() {
    let named = "127.0.0.2,127.0.0.16/28,127.0.0.64-127.0.0.66,::1";
    let server = Server::open(&["--listen", "[::]:0", "--proxy-protocol", named]);
    let listening = server.log_lines(&["event=listening "], 2);
    let port = sock(field(&listening[1], "addr")).port();
    let target = Target::echo();
    let request = [HELLO, &request5(1, target.addr)].concat();
    let both = [SocketAddr::from(([127, 0, 0, 1], port)), server.addr];
    let mut errors = 0;
    for (last, is_named) in
        [(1, false), (2, true), (3, false), (15, false), (16, true), (31, true), (32, false)]
            .into_iter()
            .chain([(63, false), (64, true), (66, true), (67, false)])
    {
        for addr in both {
            let connect = || connect_from([127, 0, 0, last].into(), addr);
            for header in [v1("192.0.2.7:1", "192.0.2.1:2"), of("192.0.2.7"), LOCAL()] {
                let mut client = connect();
                client.write_all(&[&header, &request[..]].concat()).unwrap();
                if is_named {
                    assert_eq!(read(&mut client, 2), [5, 0], "127.0.0.{last}");
                    assert_eq!(reply5(&mut client).0, 0);
                } else {
                    assert_ends_silently(&mut client, SOON);
                    errors += 1;
                }
            }
            let mut client = connect();
            client.write_all(&request).unwrap();
            if is_named {
                assert_ends_silently(&mut client, SOON);
                errors += 1;
            } else {
                assert_eq!(read(&mut client, 2), [5, 0], "127.0.0.{last}");
                assert_eq!(reply5(&mut client).0, 0);
            }
        }
    }
    let mut six = connect(sock(&format!("[::1]:{port}")));
    six.write_all(&request).unwrap();
    assert_ends_silently(&mut six, SOON);
    errors += 1;
    let mut six = connect(sock(&format!("[::1]:{port}")));
    six.write_all(&[of("192.0.2.7"), request].concat()).unwrap();
    assert_eq!(read(&mut six, 2), [5, 0]);
    assert_eq!(reply5(&mut six).0, 0);
    let refused = server.log_lines(&["event=refuse ", " reason=protocol "], errors);
    assert_eq!(refused.len(), errors);
    let missing = server.log_lines(&[" client=127.0.0.2:", "error=\"PROXY header: missing\""], 2);
    assert_eq!(missing.len(), 2);
    target.assert_accepted(22 * 4 - errors + 2);
}

#[test]
fn a_second_header_is_no_socks() {
    let server = Server::open(&BEHIND);
    for header in [v1("127.0.0.1:1", "192.0.2.1:2"), of("127.0.0.1"), LOCAL()] {
        let mut client = server.sent(&[&header[..], &header, HELLO].concat());
        assert_ends_silently(&mut client, SOON);
    }
    server.log_lines(&["event=refuse ", " reason=protocol "], 3);
}

#[test]
fn garbage_ends_at_its_first_octet_and_what_never_ends_at_its_bound() {
    let server = Server::open(&BEHIND);
    let pad = |start: &str, len: usize| format!("{start:x<len$}").into_bytes();
    // Each ends the connection although its sender waits for more.
    let cases: Vec<Vec<u8>> = vec![
        b"G".to_vec(),
        b"\x16".to_vec(),
        b"PROXY TCP5".to_vec(),
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n".to_vec(),
        b"PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n".to_vec(),
        b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(),
        pad("PROXY UNKNOWN ", 107),
        pad("PROXY UNKNOWN ", 60_000),
        format!("PROXY TCP4 {:107}", "").into_bytes(),
        b"\r\n\r\n\0\r\nQUIP".to_vec(),
        [SIGNATURE, &[0x31]].concat(),
        [SIGNATURE, &[0x22]].concat(),
        [SIGNATURE, &[0x21, 0x12]].concat(),
        [SIGNATURE, &[0x21, 0x41]].concat(),
        [SIGNATURE, &[0x21, 0x11, 0, 11]].concat(),
        [SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat(),
        [SIGNATURE, &[0x20, 0x00, 0x03, 0xf1]].concat(),
    ];
    for octets in &cases {
        let mut client = server.connect();
        // It may be cut while it still sends.
        let _ = client.write_all(octets);
        let begun = Instant::now();
        assert_ends_silently(&mut client, SOON);
        assert!(begun.elapsed() < Duration::from_secs(2), "{}", octets.escape_ascii());
    }
    let refused = server.log_lines(&[" reason=protocol ", "error=\"PROXY header: "], cases.len());
    assert_eq!(refused.len(), cases.len());
    assert_flows(&mut tunnel_of(&server, &LOCAL(), Target::echo().addr));
}

#[test]
fn a_header_that_does_not_come_or_drips_is_cut_at_the_handshake_timeout() {
    let args = [&BEHIND[..], &["--handshake-timeout", "1"]].concat();
    let server = Server::open(&args);
    let whole = of("192.0.2.7");
    thread::scope(|scope| {
        for begin in [&b""[..], b"P", b"PROXY UNKNOWN", b"\r\n", &whole[..27], &whole] {
            for drips in [false, true] {
                let server = &server;
                scope.spawn(move || {
                    let mut client = server.sent(begin);
                    let begun = Instant::now();
                    client.set_read_timeout(Some(Duration::from_millis(250))).unwrap();
                    // Of a SOCKS 4 request without an end, or of a line without one.
                    let mut more = if begin.len() == 28 { &b"\x04\x01\x00"[..] } else { b"" };
                    if begin.ends_with(b"UNKNOWN") {
                        more = b" xxxxxxxxxxxxxxxxxxx";
                    }
                    loop {
                        if let (true, [next, rest @ ..]) = (drips, more) {
                            let _ = client.write_all(&[*next]);
                            more = rest;
                        }
                        match client.read(&mut [0; 1]) {
                            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                            _ => break,
                        }
                        assert!(begun.elapsed() < SOON);
                    }
                    let took = begun.elapsed();
                    assert!(took > Duration::from_millis(900), "{took:?}");
                    assert!(took < Duration::from_secs(3), "{took:?}");
                });
            }
        }
    });
    assert_eq!(server.log_lines(&["event=refuse ", " reason=timeout "], 12).len(), 12);
}

#[test]
fn rules_and_methods_are_those_of_the_client_in_the_header() {
    let users = TempFile::alice();
    let rules = [
        "deny from 192.0.2.66 to all",
        "allow from 192.0.2.0/24 to all",
        "allow from 2001:db8::/64 to all",
        "allow user any from 198.51.100.0/24 to all",
        "allow from unix to 127.0.0.1",
        "allow command connect from 127.0.0.1 to 127.0.0.2",
    ];
    let rules: Vec<&str> = rules.into_iter().flat_map(|rule| ["--rule", rule]).collect();
    let server = Server::start(&[&BEHIND[..], &["--users", users.path()], &rules].concat());
    let (one, two) = (Target::echo(), Target::echo_on("127.0.0.2"));
    let offer: &[u8] = &[5, 2, 0, 2];
    for (header, expected) in [
        (of("192.0.2.7"), 0),
        (of("2001:db8::7"), 0),
        (of("2001:db8:0:1::7"), 0xff),
        (of("198.51.100.9"), 2),
        (of("203.0.113.1"), 0xff),
        (of("::ffff:198.51.100.9"), 2),
        (b"PROXY UNKNOWN\r\n".to_vec(), 0),
        (LOCAL(), 0),
    ] {
        assert_eq!(greeted(&server, &header, offer).0, expected, "{}", header.escape_ascii());
    }
    let rep = |header: &[u8], target: &Target| ask(&server, header, 1, target.addr).0;
    assert_eq!(rep(&of("192.0.2.7"), &two), 0);
    assert_eq!(rep(b"PROXY UNKNOWN\r\n", &one), 0);
    assert_eq!(rep(b"PROXY UNKNOWN\r\n", &two), 2);
    assert_eq!(rep(&v2_raw(1, 0, b""), &one), 0);
    // The health check is the balancer's own, and so is what it may.
    assert_eq!(rep(&LOCAL(), &two), 0);
    assert_eq!(rep(&LOCAL(), &one), 2);
    // A client cannot be one of the balancer's host unless the balancer says so.
    assert_eq!(rep(&of("127.0.0.1"), &two), 0);
    // SOCKS 4 cannot offer anything: the rules judge the request.
    for (client, cd) in [("192.0.2.7", 90), ("192.0.2.66", 91), ("198.51.100.9", 91)] {
        let mut four = server.sent(&[of(client), request4(1, one.addr, b"")].concat());
        assert_eq!(reply4(&mut four).0, cd, "{client}");
    }
    let (_, mut alice) = greeted(&server, &of("198.51.100.9"), &[5, 1, 2]);
    alice.write_all(&[login(b"alice", b"secret"), request5(1, one.addr)].concat()).unwrap();
    assert_eq!(read(&mut alice, 2), [1, 0]);
    assert_eq!(reply5(&mut alice).0, 0);
}

#[test]
fn max_per_client_counts_the_clients_of_a_balancer_and_not_the_balancer() {
    let server = Server::open(&[&BEHIND[..], &["--max-per-client", "2"]].concat());
    let target = Target::echo();
    let refused = |header: &[u8]| {
        let mut client = server.sent(&[header, HELLO].concat());
        assert_ends_silently(&mut client, SOON);
    };
    let mut kept = Vec::new();
    for client in ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1", "127.0.0.1"] {
        kept.push((0..2).map(|_| tunnel_of(&server, &of(client), target.addr)).collect::<Vec<_>>());
        refused(&of(client));
        let other_port = SocketAddr::new(client.parse().unwrap(), 9).to_string();
        refused(&v1(&other_port, &other_port));
    }
    refused(&of("2001:db8::2"));
    // Who has no address is one client; the balancer's own sessions have no such cap.
    let nobody = b"PROXY UNKNOWN\r\n";
    let _nobody: Vec<_> = (0..2).map(|_| tunnel_of(&server, nobody, target.addr)).collect();
    refused(nobody);
    let _own: Vec<_> = (0..5).map(|_| tunnel_of(&server, &LOCAL(), target.addr)).collect();
    // Connections that have yet to tell for whom they come have none either.
    let _silent: Vec<_> = (0..5).map(|_| server.connect()).collect();
    server
        .log_lines(&[" client=192.0.2.1:", "reason=limit", "error=\"per-client limit reached"], 1);
    let first = kept[0].remove(0);
    drop(first);
    server.log_line(&["event=close ", " client=192.0.2.1:"]);
    // Its slot is given back behind its line.
    eventually("there is room for one", || {
        let mut client = server.sent(&[&of("192.0.2.1"), HELLO].concat());
        client.read_exact(&mut [0; 2]).is_ok()
    });
    kept.iter_mut().flatten().for_each(assert_flows);
}

#[test]
fn a_client_of_a_balancer_has_no_more_than_its_part_of_the_half_open() {
    let server = Server::open(&[&BEHIND[..], &["--max-half-open", "8"]].concat());
    let target = Target::echo();
    let waiting: Vec<TcpStream> =
        (0..2).map(|_| greeted(&server, &of("192.0.2.1"), HELLO).1).collect();
    for _ in 0..8 {
        let mut client = server.sent(&of("192.0.2.1"));
        assert_ends_silently(&mut client, SOON);
    }
    server.log_line(&[" client=192.0.2.1:", "reason=limit", "error=\"half-open limit reached\""]);
    // Their slots are given back behind their lines.
    eventually("only the two are half open", || {
        server.signal("USR1");
        let status = server.log().into_iter().rfind(|line| line.contains(" event=status "));
        status.is_some_and(|line| line.contains(" half_open=2 "))
    });
    // Another one is served, and so is this one once a handshake of its own is complete.
    assert_flows(&mut tunnel_of(&server, &of("192.0.2.2"), target.addr));
    for mut client in waiting {
        client.write_all(&request5(1, target.addr)).unwrap();
        assert_eq!(reply5(&mut client).0, 0);
    }
    assert_flows(&mut tunnel_of(&server, &of("192.0.2.1"), target.addr));
    server.signal("USR1");
    server.log_line(&["event=status ", " half_open=0 "]);
}

#[test]
fn who_guesses_behind_a_balancer_shuts_out_himself_and_never_the_balancer() {
    let users = TempFile::alice();
    let server = Server::open(&[&BEHIND[..], &["--users", users.path()]].concat());
    let offer: &[u8] = &[5, 1, 2];
    let log_in = |header: &[u8]| {
        let octets = [header, offer, &login(b"alice", b"secret")].concat();
        let client = server.sent(&octets);
        let mut answer = Vec::new();
        let _ = client.take(4).read_to_end(&mut answer);
        answer
    };
    // One of them on the balancer's own host, and its health check.
    let guessers = [of("192.0.2.66"), of("127.0.0.1")];
    let guesses: Vec<TcpStream> = guessers
        .iter()
        .flat_map(|header| {
            let octets = [&header[..], offer, &login(b"alice", b"guess")].concat();
            (0..12).map(|_| server.sent(&octets)).collect::<Vec<_>>()
        })
        .collect();
    for client in ["192.0.2.66:4321", "127.0.0.1:4321"] {
        server.log_line(&["event=penalty ", &format!(" client={client} ")]);
    }
    for header in &guessers {
        assert_eq!(log_in(header), b"", "{}", header.escape_ascii());
    }
    assert_eq!(log_in(&LOCAL()), b"", "what it says of itself is its own too");
    for client in ["192.0.2.67", "2001:db8::66"] {
        assert_eq!(log_in(&of(client)), [5, 2, 1, 0], "{client}");
    }
    assert_eq!(log_in(b"PROXY UNKNOWN\r\n"), [5, 2, 1, 0]);
    server.log_line(&["event=refuse ", " client=192.0.2.66:4321 ", " reason=penalty "]);
    drop(guesses);
}

/// Who asked, and what.
type Query = (SocketAddr, String);

/// A daemon on `ip` that says that everybody is alice, and what it is asked.
fn identd(ip: &str) -> (Target, Arc<Mutex<Vec<Query>>>) {
    let queries: Arc<Mutex<Vec<Query>>> = Arc::default();
    let asked = Arc::clone(&queries);
    let daemon = Target::on(ip, move |mut stream| {
        let from = stream.peer_addr().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        lock(&asked).push((from, line.clone()));
        let answer = format!("{}:USERID:UNIX:alice\r\n", line.trim_end());
        let _ = stream.write_all(answer.as_bytes());
    });
    (daemon, queries)
}

#[test]
fn ident_asks_the_host_of_the_client_in_the_header_about_its_ports() {
    isolated(|| {
        ip("addr add 192.0.2.7/32 dev lo");
        ip("addr add 2001:db8::7/128 dev lo nodad");
        let (four, asked) = identd("192.0.2.7");
        let port = four.addr.port().to_string();
        let rule = "allow ident to all";
        let args = ["--rule", rule, "--ident-port", &port, "--ident-timeout", "2"];
        let server = Server::start(&[&BEHIND[..], &args].concat());
        let target = Target::echo();
        let cd = |header: Vec<u8>, userid: &[u8]| {
            reply4(&mut server.sent(&[header, request4(1, target.addr, userid)].concat())).0
        };
        let header = v1("192.0.2.7:4321", "198.51.100.1:1081");
        assert_eq!(cd(header.clone(), b"alice"), 90);
        assert_eq!(cd(header, b"bob"), 93);
        for (_, line) in lock(&asked).iter() {
            let words: String = line.split_whitespace().collect();
            assert_eq!(words, "4321,1081");
        }
        assert_eq!(lock(&asked).len(), 2);
        // The address the client reached is none of this host's: the query has another source.
        assert!(!lock(&asked)[0].0.ip().is_unspecified());
        // A balancer that listens on this very host.
        assert_eq!(cd(v1("192.0.2.7:4321", "127.0.0.1:1081"), b"alice"), 90);
        // Nobody to ask: no address, or no daemon there.
        assert_eq!(cd(b"PROXY UNKNOWN\r\n".to_vec(), b"alice"), 92);
        assert_eq!(cd(LOCAL(), b"alice"), 92);
        assert_eq!(cd(of("192.0.2.8"), b"alice"), 92);

        // Over IPv6, where the connection of the balancer is IPv4.
        let six = std::net::TcpListener::bind(sock(&format!("[2001:db8::7]:{port}"))).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = six.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let answer = format!("{}:USERID:UNIX:carol\r\n", line.trim_end());
            stream.write_all(answer.as_bytes()).unwrap();
        });
        assert_eq!(cd(of("2001:db8::7"), b"carol"), 90);
    });
}

/// Sends a datagram for `dst` from `from` to `bnd`, and tells whether its echo comes back.
fn passes(from: &str, bnd: SocketAddr, dst: SocketAddr, limit: Duration) -> bool {
    let socket = UdpSocket::bind((from.parse::<IpAddr>().unwrap(), 0)).unwrap();
    socket.set_read_timeout(Some(limit)).unwrap();
    let mut datagram = Vec::new();
    socksd::wire::udp::encode_header(dst, &mut datagram);
    socket.send_to(&[&datagram, &b"ping"[..]].concat(), bnd).unwrap();
    let mut buffer = [0; 64];
    let Ok((len, sender)) = socket.recv_from(&mut buffer) else { return false };
    assert_eq!(sender, bnd);
    socksd::wire::udp::decode(&buffer[..len]).unwrap().data == b"ping"
}

const SHORT: Duration = Duration::from_millis(200);

#[test]
fn an_association_takes_the_datagrams_of_the_client_in_the_header_only() {
    let server = Server::open(&BEHIND);
    let echo = udp::echo_on("127.0.0.1");
    let (rep, bnd, control) = ask(&server, &of("127.0.0.5"), 3, NO_ADDRESS);
    assert_eq!((rep, bnd.ip()), (0, server.addr.ip()));
    for other in ["127.0.0.1", "127.0.0.4"] {
        assert!(!passes(other, bnd, echo, SHORT), "{other}");
    }
    assert!(passes("127.0.0.5", bnd, echo, SOON));
    assert!(!passes("127.0.0.1", bnd, echo, SHORT), "nor afterwards");
    drop(control);
    let line = server.log_line(&["event=close ", " client=127.0.0.5:4321 ", " command=udp "]);
    assert_eq!(field(&line, "dropped"), "3");

    // Who has no address is taken to be on this host, as a client of a UNIX socket is.
    let (rep, bnd, _control) = ask(&server, b"PROXY UNKNOWN\r\n", 3, NO_ADDRESS);
    assert_eq!(rep, 0);
    assert!(passes("127.0.0.9", bnd, echo, SOON));
    // And the balancer's own is its own.
    let (_, bnd, _control) = ask(&server, &LOCAL(), 3, NO_ADDRESS);
    assert!(!passes("127.0.0.5", bnd, echo, SHORT));
    assert!(passes("127.0.0.1", bnd, echo, SOON));
}

#[test]
fn an_association_serves_a_client_of_another_family_than_the_balancer() {
    let echo = udp::echo_on("127.0.0.1");
    let plain = Server::open(&BEHIND);
    let advertised = Server::open(&[&BEHIND[..], &["--advertise", "::1"]].concat());
    for server in [&plain, &advertised] {
        let (rep, bnd, _control) = ask(server, &of("::1"), 3, NO_ADDRESS);
        assert_eq!(rep, 0);
        assert_eq!(bnd.ip(), sock("[::1]:1").ip(), "an address that this client can send to");
        assert!(passes("::1", bnd, echo, SOON));
    }
    let args = ["--rule", "allow to all", "--listen", "[::1]:0", "--proxy-protocol", "::1"];
    let server = Server::spawn(Command::new(SOCKSD).args(args));
    let (rep, bnd, _control) = ask(&server, &of("127.0.0.5"), 3, NO_ADDRESS);
    assert_eq!((rep, bnd.ip()), (0, sock("127.0.0.1:1").ip()));
    assert!(passes("127.0.0.5", bnd, echo, SOON));
    assert!(!passes("127.0.0.6", bnd, echo, SHORT));
}

#[test]
fn a_bind_works_behind_a_header() {
    let server = Server::open(&[&BEHIND[..], &["--advertise", "127.0.0.1"]].concat());
    for header in [of("192.0.2.7"), of("2001:db8::7"), LOCAL()] {
        let (rep, bnd, mut client) = ask(&server, &header, 2, NO_ADDRESS);
        assert_eq!((rep, bnd.ip()), (0, server.addr.ip()));
        let mut peer = connect(bnd);
        assert_eq!(reply5(&mut client), (0, peer.local_addr().unwrap()));
        peer.write_all(b"ping").unwrap();
        assert_eq!(read(&mut client, 4), b"ping");
    }
}

/// A connection to a UNIX socket.
fn connect_unix(path: &str) -> TcpStream {
    let stream = TcpStream::from(OwnedFd::from(UnixStream::connect(path).unwrap()));
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

#[test]
fn a_balancer_may_come_by_a_unix_socket() {
    let path = std::env::temp_dir().join(format!("socksd-balancer-{}", std::process::id()));
    let path = path.to_str().unwrap();
    let listen = format!("unix:{path}");
    let (target, echo) = (Target::echo(), udp::echo_on("127.0.0.1"));
    let start = |who| {
        let rules = ["--rule", "allow from 127.0.0.5 to all", "--rule", "allow from unix to all"];
        Server::start(&[&rules[..], &["--listen", &listen, "--proxy-protocol", who]].concat())
    };
    let sent = |octets: &[u8]| {
        let mut client = connect_unix(path);
        client.write_all(octets).unwrap();
        client
    };
    let request = [HELLO, &request5(1, target.addr)].concat();
    for who in ["unix", "unix,192.0.2.0/24"] {
        let server = start(who);
        assert_ends_silently(&mut sent(&request), SOON);
        let unknown = b"PROXY UNKNOWN\r\n".to_vec();
        for (header, told) in
            [(of("127.0.0.5"), "127.0.0.5:4321"), (unknown, "unix"), (LOCAL(), "unix")]
        {
            let mut client = sent(&[header, request.clone()].concat());
            assert_eq!(read(&mut client, 2), [5, 0]);
            assert_eq!(reply5(&mut client).0, 0);
            assert_flows(&mut client);
            drop(client);
            server.log_line(&["event=close ", &format!(" client={told} ")]);
        }
        let (method, client) = {
            let mut client = sent(&[of("127.0.0.6"), HELLO.to_vec()].concat());
            (read(&mut client, 2)[1], client)
        };
        assert_eq!(method, 0xff);
        drop(client);
        let associate = [of("127.0.0.5"), HELLO.to_vec(), request5(3, NO_ADDRESS)].concat();
        let mut control = sent(&associate);
        read(&mut control, 2);
        let (rep, bnd) = reply5(&mut control);
        assert_eq!(rep, 0);
        assert!(passes("127.0.0.5", bnd, echo, SOON));
        assert!(!passes("127.0.0.1", bnd, echo, SHORT));
        // Nobody else than UNIX clients has a header.
        let mut tcp = connect_from([127, 0, 0, 5].into(), server.addr);
        tcp.write_all(&request).unwrap();
        assert_eq!(read(&mut tcp, 2), [5, 0]);
        assert_eq!(reply5(&mut tcp).0, 0);
    }
    // And they have none where they are not named.
    let server = start("192.0.2.1");
    assert_ends_silently(&mut sent(&[LOCAL(), request.clone()].concat()), SOON);
    let mut client = sent(&request);
    assert_eq!(read(&mut client, 2), [5, 0]);
    assert_eq!(reply5(&mut client).0, 0);
    drop(server);
    let _ = fs::remove_file(path);
}

/// The example that is installed.
fn example() -> String {
    fs::read_to_string(root().join("man/examples/haproxy.cfg")).unwrap()
}

/// A command that runs haproxy(8), which Debian has where not everybody looks for programs.
fn haproxy(config: &str) -> Command {
    let path = "/usr/sbin/haproxy";
    assert!(fs::exists(path).unwrap(), "haproxy is not installed: run tests/setup.sh");
    let mut command = Command::new(path);
    command.args(["-f", config]).stdin(Stdio::null());
    command
}

#[test]
fn haproxy_takes_the_example_as_it_is() {
    let path = root().join("man/examples/haproxy.cfg");
    let output = haproxy(path.to_str().unwrap()).arg("-c").output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{said}");
    for word in ["WARNING", "ALERT"] {
        assert!(!said.contains(word), "{said}");
    }
}

/// The addresses of the example, all on one host; and where its clients come from.
const CLIENTS: [&str; 2] = ["198.51.100.7", "2001:db8:1::7"];
const FRONTENDS: [&str; 2] = ["192.0.2.1:1080", "[2001:db8::1]:1080"];

fn addresses() {
    for v4 in ["192.0.2.1", "198.51.100.7", "10.0.0.1", "10.0.0.5", "10.0.0.6"] {
        ip(&format!("addr add {v4}/32 dev lo"));
    }
    for v4 in ["203.0.113.5", "203.0.113.6", "198.51.100.8"] {
        ip(&format!("addr add {v4}/32 dev lo"));
    }
    for v6 in ["2001:db8::1", "2001:db8::5", "2001:db8::6", "2001:db8:1::7", "2001:db8:1::8"] {
        ip(&format!("addr add {v6}/128 dev lo nodad"));
    }
}

/// The node on 10.0.0.`n`, as the example has it run.
fn node(n: u8) -> Server {
    let advertised = [format!("203.0.113.{n}"), format!("2001:db8::{n}")];
    let mut command = Command::new(SOCKSD);
    for listen in [format!("10.0.0.{n}:1080"), format!("[2001:db8::{n}]:1080")] {
        command.args(["--listen", &listen]);
    }
    command.args(["--proxy-protocol", "10.0.0.1,2001:db8::1"]);
    command.args(["--advertise", &advertised[0], "--advertise", &advertised[1]]);
    command.args(["--port-range", &format!("4{n}000-4{n}999")]);
    command.args(["--rule", "allow command connect from 10.0.0.1,2001:db8::1 to 10.0.0.1 port 9"]);
    command.args(["--rule", "allow from 198.51.100.0/24,2001:db8:1::/64 to all"]);
    Server::spawn(&mut command)
}

/// HAProxy with the example, of which some words are others. Killed when it is dropped.
struct Balancer {
    child: Child,
    socket: String,
    _config: TempFile,
}

impl Balancer {
    fn start(changes: &[(&str, &str)]) -> Self {
        let own = std::env::temp_dir().join(format!("socksd-haproxy-{}", std::process::id()));
        let own = own.to_str().unwrap();
        let (mut config, socket) = (example(), "/run/haproxy/socksd.sock");
        for (from, to) in changes.iter().chain(&[(socket, own)]) {
            assert!(config.contains(from), "{from}");
            config = config.replace(from, to);
        }
        let config = TempFile::new(&config);
        // In the foreground, and one process.
        let child = haproxy(config.path()).arg("-db").stderr(Stdio::null()).spawn().unwrap();
        let balancer = Self { child, socket: own.to_owned(), _config: config };
        eventually("haproxy listens", || UnixStream::connect(own).is_ok());
        balancer
    }

    fn tell(&self, command: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.write_all(format!("{command}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A column of the statistics of a server.
    fn stat(&self, server: &str, column: &str) -> String {
        let table = self.tell("show stat");
        let mut lines = table.trim_start_matches("# ").lines().map(|line| line.split(','));
        let at = lines.next().unwrap().position(|name| name == column).unwrap();
        let mut row = lines.find(|line| {
            let mut line = line.clone();
            (line.next(), line.next()) == (Some("nodes"), Some(server))
        });
        row.as_mut().unwrap().nth(at).unwrap().to_owned()
    }

    fn wait_until(&self, server: &str, status: &str) {
        let what = format!("{server} is {status}");
        eventually(&what, || self.stat(server, "status").starts_with(status));
    }

    /// Waits until both servers have passed a health check.
    fn wait_until_up(&self) {
        for server in ["a", "b"] {
            // Until the first check they are taken to be up.
            eventually("checked", || self.stat(server, "check_status") == "L7OK");
            self.wait_until(server, "UP");
        }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// A connection to the frontend of one family, from a client of that family.
fn client(family: usize) -> TcpStream {
    let source: IpAddr = CLIENTS[family].parse().unwrap();
    let stream = connect_from_ip(source, sock(FRONTENDS[family]));
    stream.set_read_timeout(Some(2 * SOON)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Asks through the balancer; returns BND and the connection.
fn ask_through(family: usize, cmd: u8, dst: SocketAddr) -> (SocketAddr, TcpStream) {
    let mut client = client(family);
    client.write_all(&[HELLO, &request5(cmd, dst)].concat()).unwrap();
    assert_eq!(read(&mut client, 2), [5, 0]);
    let (rep, bnd) = reply5(&mut client);
    assert_eq!(rep, 0);
    (bnd, client)
}

/// Both versions of the header, the second of them with nodes that are reached over IPv6.
const V1_IPV6: &[(&str, &str)] = &[
    ("send-proxy-v2 check", "send-proxy check"),
    ("source 10.0.0.1", "source [2001:db8::1]"),
    ("server a 10.0.0.5:1080", "server a [2001:db8::5]:1080"),
    ("server b 10.0.0.6:1080", "server b [2001:db8::6]:1080"),
];

#[test]
fn through_haproxy_all_commands_work_with_both_headers_and_families() {
    isolated(|| {
        addresses();
        let nodes = [node(5), node(6)];
        let (target, echo) = (Target::echo(), udp::echo_on("127.0.0.1"));
        for changes in [&[][..], V1_IPV6] {
            let balancer = Balancer::start(changes);
            balancer.wait_until_up();
            for family in [0, 1] {
                let (_, mut tunnel) = ask_through(family, 1, target.addr);
                assert_flows(&mut tunnel);
                let port = tunnel.local_addr().unwrap().port();
                tunnel.shutdown(Shutdown::Write).unwrap();
                assert_eq!(read_to_end(&mut tunnel), b"");
                let from = SocketAddr::new(CLIENTS[family].parse().unwrap(), port);
                let told = format!(" client={from} ");
                eventually("one of them has told of the client", || {
                    let told = |line: &String| line.contains(&told) && line.contains("up=4 down=4");
                    nodes.iter().any(|node| node.log().iter().any(told))
                });
                let mut four = client(family);
                four.write_all(&request4(1, target.addr, b"bob")).unwrap();
                assert_eq!(reply4(&mut four).0, 90);

                // One to each node: where there are fewer connections.
                let none_is_left = || {
                    let none = || ["a", "b"].iter().all(|name| balancer.stat(name, "scur") == "0");
                    eventually("no session is left", none);
                };
                drop((tunnel, four));
                none_is_left();
                let associations = [(); 2].map(|()| ask_through(family, 3, NO_ADDRESS));
                let mut expected: BTreeSet<IpAddr> =
                    ["203.0.113.5", "203.0.113.6"].map(|ip| ip.parse().unwrap()).into();
                if family == 1 {
                    expected = ["2001:db8::5", "2001:db8::6"].map(|ip| ip.parse().unwrap()).into();
                }
                let told: BTreeSet<IpAddr> = associations.iter().map(|(bnd, _)| bnd.ip()).collect();
                assert_eq!(told, expected);
                let other = ["198.51.100.8", "2001:db8:1::8"][family];
                for (bnd, _) in &associations {
                    assert!(passes(CLIENTS[family], *bnd, echo, SOON));
                    assert!(!passes(other, *bnd, echo, SHORT));
                }
                drop(associations);
                none_is_left();
                let binds = [(); 2].map(|()| {
                    let any = [NO_ADDRESS, sock("[::]:0")][family];
                    ask_through(family, 2, any)
                });
                let mut told = BTreeSet::new();
                for (bnd, mut client) in binds {
                    told.insert(bnd.ip());
                    let mut peer = connect(bnd);
                    assert_eq!(reply5(&mut client), (0, peer.local_addr().unwrap()));
                    peer.write_all(b"ping").unwrap();
                    assert_eq!(read(&mut client, 4), b"ping");
                }
                // The family is that of the address by which the balancer reaches the node.
                assert_eq!(told.len(), 2, "{told:?}");
            }
        }
        // The health checks have been sessions of the balancer's own, none of them refused.
        for node in &nodes {
            node.log_line(&["event=close ", " client=10.0.0.1:"]);
            node.log_line(&["event=close ", " client=[2001:db8::1]:"]);
            assert!(!node.log().iter().any(|line| line.contains("event=refuse")));
        }
    });
}

#[test]
fn haproxy_drains_a_node_which_ends_with_its_last_session_and_comes_back() {
    isolated(|| {
        addresses();
        let checked = Target::on_addr(sock("10.0.0.1:9"), drop);
        let mut a = node(5);
        let b = node(6);
        let target = Target::echo();
        let balancer = Balancer::start(&[
            ("#tcp-check send", "tcp-check send"),
            ("#tcp-check expect", "tcp-check expect"),
        ]);
        balancer.wait_until_up();
        eventually("checks connect", || checked.accepted() > 2);
        let closed = |node: &Server| {
            let of_client = |line: &&String| line.contains("close ") && line.contains(CLIENTS[0]);
            node.log().iter().filter(of_client).count()
        };
        // One of them on each.
        let mut long = [(); 2].map(|()| ask_through(0, 1, target.addr).1);
        balancer.tell("set server nodes/a state drain");
        balancer.wait_until("a", "DRAIN");
        (0..20).for_each(|_| assert_flows(&mut ask_through(0, 1, target.addr).1));
        eventually("all have ended", || closed(&b) == 20);
        assert_eq!(closed(&a), 0);
        a.signal("TERM");
        a.log_line(&["event=stopping ", " sessions="]);
        (0..20).for_each(|_| assert_flows(&mut ask_through(0, 1, target.addr).1));
        long.iter_mut().for_each(assert_flows);
        drop(long);
        assert_eq!(a.wait(), Some(0));
        assert_eq!(closed(&a), 1);
        let a = node(5);
        balancer.tell("set server nodes/a state ready");
        balancer.wait_until("a", "UP");
        let _both = [(); 4].map(|()| ask_through(0, 1, target.addr).1);
        for node in [&a, &b] {
            node.signal("USR1");
            assert_eq!(node.log_lines(&["event=session ", CLIENTS[0]], 2).len(), 2);
        }
    });
}

/// One session through the balancer: sends `len` random octets, in pieces, and has them come back.
fn transfer(family: usize, target: SocketAddr, random: &mut Random) {
    let octets: Vec<u8> =
        (0..random.below(4_000)).flat_map(|_| random.next().to_ne_bytes()).collect();
    let (_, mut tunnel) = ask_through(family, 1, target);
    let mut back = Vec::new();
    for piece in octets.chunks(octets.len() / 3 + 1) {
        tunnel.write_all(piece).unwrap();
        back.extend(read(&mut tunnel, piece.len()));
        thread::sleep(Duration::from_millis(5));
    }
    tunnel.shutdown(Shutdown::Write).unwrap();
    back.extend(read_to_end(&mut tunnel));
    assert!(back == octets, "{} of {} octets", back.len(), octets.len());
}

#[test]
fn a_rolling_restart_of_both_nodes_under_load_fails_none_of_2000_sessions() {
    const SESSIONS: usize = 2_000;
    const THREADS: u64 = 16;
    isolated(|| {
        addresses();
        let mut nodes = [node(5), node(6)];
        let mut old = Vec::new();
        let target = Target::echo();
        let balancer = Balancer::start(&[]);
        balancer.wait_until_up();
        let done = AtomicUsize::new(0);
        let begun = Instant::now();
        let restarts = thread::scope(|scope| {
            for seed in 1..=THREADS {
                let (done, target) = (&done, target.addr);
                scope.spawn(move || {
                    let mut random = Random::of(seed);
                    while done.fetch_add(1, Ordering::SeqCst) < SESSIONS {
                        transfer(random.below(2), target, &mut random);
                    }
                });
            }
            let mut restarts = 0;
            while done.load(Ordering::SeqCst) < SESSIONS {
                // Sessions that fail are not done.
                assert!(begun.elapsed() < 24 * SOON, "the sessions have stopped");
                let at = restarts % 2;
                nodes[at].signal("TERM");
                nodes[at].log_line(&["event=stopping "]);
                let next = node(5 + u8::try_from(at).unwrap());
                old.push(std::mem::replace(&mut nodes[at], next));
                restarts += 1;
                // As whoever restarts them has to: the other one may be next.
                thread::sleep(Duration::from_millis(500));
                balancer.wait_until_up();
            }
            restarts
        });
        println!("{restarts} restarts in {:?}", begun.elapsed());
        assert!(restarts >= 4, "{restarts} restarts");
        for server in &mut old {
            assert_eq!(server.wait(), Some(0));
        }
        let all = old.iter().chain(&nodes).flat_map(|node| node.log());
        let is_session = |line: &String| {
            line.contains("event=close ") && CLIENTS.iter().any(|client| line.contains(client))
        };
        assert!(all.clone().filter(is_session).count() >= SESSIONS);
        assert_eq!(all.clone().find(|line| line.contains("event=refuse")), None);
        assert_eq!(all.clone().find(|line| line.contains("reason=stopped")), None);
    });
}
