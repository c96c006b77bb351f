//! Names: resolved through a name server of the test's own, in a network of the test's own; and
//! addresses that only such a network has: public ones, and ones with every kind of route.

use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::dns::Dns;
use crate::common::netns::{ip, isolated, link_up};
use crate::common::udp::{self, Association};
use crate::common::{
    HELLO, SOCKSD, Server, Target, connect, connect_from, eventually, read, read_to_end, reply4,
    reply5, request4a, request5, request5_name, tunnel,
};

/// What must not wait for anything takes less than this.
const AT_ONCE: Duration = Duration::from_secs(1);

const OTHER_CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// CD of a refusal, and that of a grant.
const REJECTED: u8 = 91;
const GRANTED: u8 = 90;

/// Asks for a name with version 4, that is 4A, or 5; returns CD or REP, and the connection.
fn ask(mut client: TcpStream, version: u8, name: &str, port: u16) -> (u8, TcpStream) {
    let code = if version == 4 {
        client.write_all(&request4a(1, 1, name.as_bytes(), port, b"")).unwrap();
        reply4(&mut client).0
    } else {
        let request = [HELLO, &request5_name(1, name.as_bytes(), port)].concat();
        client.write_all(&request).unwrap();
        assert_eq!(read(&mut client, 2), [5, 0]);
        reply5(&mut client).0
    };
    (code, client)
}

/// Asserts that a name is refused in both versions, in 5 with `rep`, and the connection closed.
fn assert_refused(server: &Server, name: &str, port: u16, rep: u8) {
    for (version, expected) in [(4, REJECTED), (5, rep)] {
        let (code, mut client) = ask(server.connect(), version, name, port);
        assert_eq!(code, expected, "{name} with version {version}");
        assert_eq!(read_to_end(&mut client), b"");
    }
}

/// Asserts that a name leads to an echo.
fn assert_echo(client: TcpStream, version: u8, name: &str, port: u16) {
    let (code, mut client) = ask(client, version, name, port);
    assert_eq!(code, if version == 4 { GRANTED } else { 0 }, "{name} with version {version}");
    client.write_all(b"ping").unwrap();
    assert_eq!(read(&mut client, 4), b"ping");
}

/// Asserts that a server has not connected to `listener`: a sentinel is the first to come.
fn assert_untouched(server: &Server, listener: &TcpListener) {
    server.serve_sentinel();
    let sentinel = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer, sentinel.local_addr().unwrap());
}

/// An address that drops what is sent to it: a listener whose backlog is full, and what fills it.
struct Silent {
    addr: SocketAddr,
    _listener: TcpListener,
    _backlog: Vec<TcpStream>,
}

impl Silent {
    fn at(addr: SocketAddr) -> Self {
        let listener = TcpListener::bind(addr).unwrap();
        socksd::sys::listen(&listener, 0).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut backlog = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(200)) {
            backlog.push(stream);
        }
        Self { addr, _listener: listener, _backlog: backlog }
    }
}

#[test]
fn v4a_20_a_name_whose_server_never_answers_is_refused_at_the_resolve_timeout() {
    isolated(|| {
        let dns = Dns::start(&[]);
        let server = Server::open(&["--resolve-timeout", "1"]);
        let mut askers: Vec<_> = [(4, REJECTED), (5, 0x04)]
            .map(|(version, expected)| {
                let client = server.connect();
                thread::spawn(move || {
                    let begun = Instant::now();
                    let (code, mut client) = ask(client, version, &format!("{version}.tarpit"), 80);
                    assert_eq!((code, read_to_end(&mut client)), (expected, Vec::new()));
                    let took = begun.elapsed();
                    assert!(took > Duration::from_millis(900), "{took:?}: not waited for");
                    assert!(took < Duration::from_secs(2), "{took:?}: V4A-12");
                })
            })
            .into();
        askers.drain(..).for_each(|asker| asker.join().unwrap());
        server.log_lines(&["event=refuse", "reason=timeout"], 2);
        assert_eq!(dns.stuck(), 2);
    });
}

/// Has a client look up `count` names that are never answered; returns what it waits for them with.
fn get_stuck(server: &Server, from: Ipv4Addr, count: usize) -> Vec<TcpStream> {
    let stuck = |n| {
        let mut client = connect_from(from, server.addr);
        let name = format!("{n}.{from}.tarpit");
        client.write_all(&request4a(1, 1, name.as_bytes(), 80, b"")).unwrap();
        client
    };
    let clients = (0..count).map(stuck).collect();
    server.log_lines(&["event=request", ".tarpit:80"], count);
    clients
}

#[test]
fn sec_10_names_that_hang_keep_no_more_than_a_quarter_of_the_pool() {
    isolated(|| {
        let dns = Dns::start(&[("good.test", &["127.0.0.1"])]);
        let target = Target::echo();
        let server = Server::open(&["-v", "--resolvers", "8", "--resolve-timeout", "3"]);
        let clients = get_stuck(&server, Ipv4Addr::LOCALHOST, 24);
        eventually("the client's share is used up", || dns.stuck() == 2);

        let begun = Instant::now();
        for version in [4, 5] {
            let other = connect_from(OTHER_CLIENT, server.addr);
            assert_echo(other, version, "good.test", target.addr.port());
        }
        // What needs no look-up does not wait for one.
        drop(tunnel(&server, target.addr));
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());

        for mut client in clients {
            assert_eq!(reply4(&mut client).0, REJECTED, "V4A-20");
        }
        assert_eq!(dns.stuck(), 2, "no thread was spent on names that nobody waits for any more");
    });
}

#[test]
fn sec_10_a_name_of_the_same_client_is_served_while_20_hang() {
    isolated(|| {
        let dns = Dns::start(&[("good.test", &["127.0.0.1"])]);
        let target = Target::echo();
        let server = Server::open(&["-v"]);
        let _clients = get_stuck(&server, Ipv4Addr::LOCALHOST, 20);
        eventually("some hang", || dns.stuck() > 0);
        let begun = Instant::now();
        assert_echo(server.connect(), 4, "good.test", target.addr.port());
        assert_echo(server.connect(), 5, "good.test", target.addr.port());
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    });
}

#[test]
fn sec_10_a_name_that_waits_for_one_clients_share_is_looked_up_for_another() {
    isolated(|| {
        let dns = Dns::start(&[("good.test", &["127.0.0.1"])]);
        let target = Target::echo();
        let server = Server::open(&["-v", "--resolvers", "8", "--resolve-timeout", "3"]);
        let _clients = get_stuck(&server, Ipv4Addr::LOCALHOST, 24);
        eventually("the client's share is used up", || dns.stuck() == 2);
        let port = target.addr.port();
        let mut first = server.sent(&request4a(1, 1, b"good.test", port, b""));
        server.log_line(&["event=request", "dst=good.test"]);

        let begun = Instant::now();
        assert_echo(connect_from(OTHER_CLIENT, server.addr), 5, "good.test", port);
        assert_eq!(reply4(&mut first).0, GRANTED, "whoever asked first gets the answer as well");
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
        assert_eq!(dns.asked("good.test"), 1);
    });
}

/// Waits until every thread of the server waits for something. A request is logged a little before
/// its name is asked for.
fn settle(server: &Server) {
    let is_asleep = |task: fs::DirEntry| {
        // proc_pid_stat(5): the state follows the name, which is in parentheses.
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with('S'))
    };
    let mut calm = 0;
    eventually("the server is at rest", || {
        let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
        calm = if tasks.map(Result::unwrap).all(is_asleep) { calm + 1 } else { 0 };
        calm == 3
    });
}

#[test]
fn sec_20_a_name_that_many_ask_for_at_once_is_looked_up_once() {
    isolated(|| {
        const ASKERS: u8 = 30;
        let dns = Dns::start(&[("good.test", &["127.0.0.1"])]);
        let target = Target::echo();
        let server = Server::open(&["-v"]);
        dns.hold("good.test");
        let port = target.addr.port();
        let clients: Vec<_> = (1..=ASKERS)
            .map(|n| {
                let mut client = connect_from(Ipv4Addr::new(127, 0, 1, n), server.addr);
                // Case and a trailing dot make no other name of it.
                let name: &[u8] = if n % 2 == 0 { b"good.test" } else { b"GOOD.test." };
                client.write_all(&request4a(1, 1, name, port, b"")).unwrap();
                client
            })
            .collect();
        server.log_lines(&["event=request"], ASKERS.into());
        eventually("the name is asked for", || dns.asked("good.test") > 0);
        settle(&server);
        dns.release();
        for mut client in clients {
            assert_eq!(reply4(&mut client).0, GRANTED);
        }
        assert_eq!(dns.asked("good.test"), 1);
        // Nothing is kept longer than the name server allows.
        assert_echo(server.connect(), 5, "good.test", port);
        assert_eq!(dns.asked("good.test"), 2);
    });
}

#[test]
fn v4a_11_real_15_of_several_addresses_the_first_that_answers_is_used() {
    isolated(|| {
        // The C library may sort the addresses, so that each has to be the one that refuses.
        Dns::start(&[("two.test", &["127.0.0.9", "127.0.0.1"])]);
        let server = Server::open(&[]);
        for (good, bad) in [("127.0.0.1", "127.0.0.9"), ("127.0.0.9", "127.0.0.1")] {
            let target = Target::echo_on(good);
            let port = target.addr.port();
            TcpStream::connect((bad, port)).unwrap_err();
            let begun = Instant::now();
            assert_echo(server.connect(), 4, "two.test", port);
            assert_echo(server.connect(), 5, "two.test", port);
            assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
            target.assert_accepted(2);
        }
        let nobody = TcpListener::bind("127.0.0.33:0").unwrap();
        assert_refused(&server, "two.test", nobody.local_addr().unwrap().port(), 0x05);
    });
}

#[test]
fn v4a_10_a_name_with_ipv6_addresses_only_is_for_version_5() {
    isolated(|| {
        Dns::start(&[("six.test", &["::1"])]);
        let target = Target::echo_on("::1");
        let server = Server::open(&[]);
        let (cd, mut client) = ask(server.connect(), 4, "six.test", target.addr.port());
        assert_eq!((cd, read_to_end(&mut client)), (REJECTED, Vec::new()));
        target.assert_untouched(&server);
        assert_echo(server.connect(), 5, "six.test", target.addr.port());
    });
}

#[test]
fn ipv4_only_and_ipv6_only_choose_among_the_addresses_of_a_name() {
    isolated(|| {
        Dns::start(&[("both.test", &["127.0.0.1", "::1"]), ("four.test", &["127.0.0.1"])]);
        let v4 = Target::echo_on("127.0.0.1");
        let port = v4.addr.port();
        let v6 = TcpListener::bind(("::1", port)).unwrap();

        let server = Server::open(&["-4"]);
        assert_echo(server.connect(), 4, "both.test", port);
        assert_echo(server.connect(), 5, "both.test", port);
        assert_untouched(&server, &v6);
        let mut client = server.sent(&[HELLO, &request5(1, v6.local_addr().unwrap())].concat());
        read(&mut client, 2);
        assert_eq!(reply5(&mut client).0, 0x08);

        let server = Server::open(&["-6"]);
        let (rep, _client) = ask(server.connect(), 5, "both.test", port);
        assert_eq!(rep, 0);
        v6.set_nonblocking(false).unwrap();
        v6.accept().unwrap();
        assert_refused(&server, "four.test", port, 0x04);
        let (cd, _) = ask(server.connect(), 4, "both.test", port);
        assert_eq!(cd, REJECTED, "SOCKS 4A has IPv4 only");
        v4.assert_accepted(2);
    });
}

#[test]
fn v4a_12_a_name_that_is_unknown_or_has_no_address_is_refused() {
    isolated(|| {
        let dns = Dns::start(&[("empty.test", &[])]);
        let server = Server::open(&[]);
        let begun = Instant::now();
        assert_refused(&server, "unknown.test", 80, 0x04);
        assert_refused(&server, "empty.test", 80, 0x04);
        assert!(begun.elapsed() < 2 * AT_ONCE, "{:?}", begun.elapsed());
        server.log_lines(&["event=refuse", "reason=name"], 4);
        assert_eq!(dns.asked("unknown.test"), 2);
        assert_eq!(dns.asked("empty.test"), 2);
    });
}

#[test]
fn v4a_25_a_name_that_resolves_to_this_network_is_not_connected_to() {
    isolated(|| {
        Dns::start(&[
            ("seven.test", &["0.0.0.7"]),
            ("zero.test", &["0.0.0.0"]),
            ("zero6.test", &["::"]),
            ("mixed.test", &["0.0.0.0", "127.0.0.5"]),
        ]);
        // Linux takes the unspecified address for loopback.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = TcpListener::bind(("::1", listener.local_addr().unwrap().port())).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Server::open(&[]);
        assert_refused(&server, "seven.test", port, 0x02);
        assert_refused(&server, "zero.test", port, 0x02);
        let (rep, _) = ask(server.connect(), 5, "zero6.test", port);
        assert_eq!(rep, 0x02);
        // Of several addresses those that are allowed are used, and here that one refuses.
        assert_refused(&server, "mixed.test", port, 0x05);
        server.log_lines(&["event=refuse", "addr=- ", "reason=denied"], 5);
        assert_untouched(&server, &listener);
        assert_untouched(&server, &v6);
    });
}

#[test]
fn sec_04_sec_07_no_name_leads_inside_past_the_guard() {
    isolated(|| {
        ip("addr add 10.1.2.3/32 dev lo");
        Dns::start(&[
            ("www.example.com", &["127.0.0.1"]),
            ("six.example.com", &["::1"]),
            ("mapped.example.com", &["::ffff:127.0.0.1"]),
            ("private.example.com", &["10.1.2.3"]),
        ]);
        let everywhere = TcpListener::bind("[::]:0").unwrap();
        let port = everywhere.local_addr().unwrap().port();
        let server = Server::start(&[]);
        for name in [
            "www.example.com",
            "private.example.com",
            "localhost",
            "LOCALHOST",
            "localhost.",
            // Loopback as inet_aton(3) spells it, which the C library takes for an address.
            "127.1",
            "0x7f000001",
            "2130706433",
            "0177.0.0.1",
            "127.0.0.1.",
            // And as everybody does.
            "127.0.0.1",
        ] {
            assert_refused(&server, name, port, 0x02);
        }
        for name in ["six.example.com", "mapped.example.com", "::1", "::ffff:7f00:1"] {
            let (rep, _) = ask(server.connect(), 5, name, port);
            assert_eq!(rep, 0x02, "{name}");
        }
        assert_untouched(&server, &everywhere);

        // SEC-08: nor does a datagram get there.
        let inside = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = inside.local_addr().unwrap().port();
        let association = Association::open(&server);
        for name in ["www.example.com", "localhost", "127.1"] {
            association.send_to_name(name, port, b"inside");
        }
        association.send(inside.local_addr().unwrap(), b"inside");
        let public = {
            ip("addr add 93.184.216.34/32 dev lo");
            udp::echo_on("93.184.216.34")
        };
        association.send(public, b"outside");
        assert_eq!(association.receive(), b"outside");
        drop(association);
        server.log_line(&["event=close", "command=udp", "dropped=4"]);
        inside.set_nonblocking(true).unwrap();
        assert_eq!(inside.recv(&mut [0; 16]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    });
}

#[test]
fn with_the_guard_public_addresses_are_reached() {
    isolated(|| {
        ip("addr add 93.184.216.34/32 dev lo");
        ip("addr add 2606:2800:220:1::34/128 dev lo nodad");
        Dns::start(&[
            ("four.test", &["93.184.216.34"]),
            ("six.test", &["2606:2800:220:1::34"]),
            ("mixed.test", &["127.0.0.1", "93.184.216.34"]),
        ]);
        let v4 = Target::echo_on("93.184.216.34");
        let v6 = Target::echo_on("2606:2800:220:1::34");
        let inside = TcpListener::bind(("127.0.0.1", v4.addr.port())).unwrap();
        let server = Server::start(&[]);
        for (version, name, target) in [
            (4, "93.184.216.34", &v4),
            (4, "four.test", &v4),
            (5, "93.184.216.34", &v4),
            (5, "four.test", &v4),
            (5, "six.test", &v6),
            (5, "2606:2800:220:1::34", &v6),
            // What is inside of a name's addresses is left out.
            (4, "mixed.test", &v4),
            (5, "mixed.test", &v4),
        ] {
            assert_echo(server.connect(), version, name, target.addr.port());
        }
        v4.assert_accepted(6);
        v6.assert_accepted(2);
        assert_untouched(&server, &inside);
    });
}

#[test]
fn a_silent_address_is_overtaken_by_the_next_one() {
    isolated(|| {
        // The C library may sort the addresses, so that each has to be the silent one.
        Dns::start(&[
            ("two.test", &["127.0.0.1", "127.0.0.9"]),
            ("dual.test", &["127.0.0.1", "::1"]),
        ]);
        let server = Server::open(&[]);
        let mut waited = false;
        for (name, silent, good) in [
            ("two.test", "127.0.0.1", "127.0.0.9"),
            ("two.test", "127.0.0.9", "127.0.0.1"),
            ("dual.test", "127.0.0.1", "::1"),
            ("dual.test", "::1", "127.0.0.1"),
        ] {
            let target = Target::echo_on(good);
            let port = target.addr.port();
            let _silent = Silent::at(SocketAddr::new(silent.parse().unwrap(), port));
            let begun = Instant::now();
            assert_echo(server.connect(), 5, name, port);
            let took = begun.elapsed();
            assert!(took < AT_ONCE, "{name}: {took:?}");
            waited |= took > Duration::from_millis(200);
        }
        assert!(waited, "no silent address was ever tried first");
    });
}

#[test]
fn a_name_with_many_silent_addresses_holds_few_descriptors() {
    isolated(|| {
        const ATTEMPTS_MAX: usize = 8;
        // Neighbours that nobody is: what is sent to them waits for their hardware addresses.
        link_up();
        ip("addr add 10.9.0.1/24 dev link0");
        let silent: Vec<String> = (101..=132).map(|n| format!("10.9.0.{n}")).collect();
        let silent: Vec<&str> = silent.iter().map(String::as_str).collect();
        Dns::start(&[("silent.test", &silent)]);
        // They are given up after three seconds, so that no attempt fails before all of them end.
        let server = Server::open(&["--connect-timeout", "3"]);
        drop(ask(server.connect(), 5, "localhost", 1));
        server.log_line(&["event=refuse"]);
        settle(&server);
        let before = server.holds().0;

        let client = server.connect();
        let asking = thread::spawn(move || {
            let (rep, _) = ask(client, 5, "silent.test", 80);
            assert_eq!(rep, 0x04);
        });
        let mut most = 0;
        while !asking.is_finished() {
            // The client's connection is one more.
            most = most.max(server.holds().0.saturating_sub(before + 1));
            thread::sleep(Duration::from_millis(20));
        }
        asking.join().unwrap();
        // The next attempt begins a moment before the oldest gives way.
        assert!((ATTEMPTS_MAX..=ATTEMPTS_MAX + 1).contains(&most), "{most}");
    });
}

#[test]
fn every_address_of_this_host_that_leads_back_to_the_server_is_refused() {
    isolated(|| {
        link_up();
        // The second one of a subnet is a secondary address, which the system never sends from.
        ip("addr add 10.9.0.1/24 dev link0");
        ip("addr add 10.9.0.2/24 dev link0");
        ip("addr add fd00:9::1/64 dev link0 nodad");
        ip("addr add fd00:9::2/64 dev link0 nodad");
        Dns::start(&[]);
        let listen = ["--rule=allow to all", "--listen", "0.0.0.0:1080", "--listen", "[::]:1080"];
        let server = Server::spawn(Command::new(SOCKSD).args(listen));
        let proxy = SocketAddr::from(([127, 0, 0, 1], 1080));
        let own =
            ["127.0.0.1", "127.0.0.9", "10.9.0.1", "10.9.0.2", "::1", "fd00:9::1", "fd00:9::2"];
        for own in own {
            let (rep, mut client) = ask(connect(proxy), 5, own, 1080);
            assert_eq!((rep, read_to_end(&mut client)), (0x02, Vec::new()), "{own}");
        }
        server.log_lines(&["event=refuse", "reason=denied"], own.len());
        // Another port of the same address is somebody else's.
        for own in ["10.9.0.2", "fd00:9::2"] {
            let target = Target::echo_on(own);
            assert_echo(connect(proxy), 5, own, target.addr.port());
        }
    });
}

#[test]
fn v4_34_when_all_addresses_are_silent_the_connect_timeout_ends_it() {
    isolated(|| {
        Dns::start(&[("silent.test", &["127.0.0.9", "127.0.0.10", "127.0.0.11"])]);
        let server = Server::open(&["--connect-timeout", "1"]);
        let first = Silent::at("127.0.0.9:0".parse().unwrap());
        let port = first.addr.port();
        let _others = [10, 11].map(|n| Silent::at(SocketAddr::from(([127, 0, 0, n], port))));
        for name in ["silent.test", "127.0.0.9"] {
            for (version, expected) in [(4, REJECTED), (5, 0x04)] {
                let begun = Instant::now();
                let (code, mut client) = ask(server.connect(), version, name, port);
                assert_eq!((code, read_to_end(&mut client)), (expected, Vec::new()), "{name}");
                let took = begun.elapsed();
                assert!(took > Duration::from_millis(900), "{name}: {took:?}: not waited for");
                assert!(took < Duration::from_secs(2), "{name}: {took:?}");
            }
        }
        server.log_lines(&["event=refuse", "reason=timeout"], 4);
    });
}

#[test]
fn real_14_routes_that_lead_nowhere_have_their_own_replies() {
    isolated(|| {
        let routes = [
            ("unreachable", "11.1.0.0/16", "2600:1::/32", 0x04),
            ("prohibit", "11.2.0.0/16", "2600:2::/32", 0x02),
            // The system calls it an invalid argument.
            ("blackhole", "11.3.0.0/16", "2600:3::/32", 0x01),
        ];
        for (kind, v4, v6, _) in routes {
            ip(&format!("route add {kind} {v4}"));
            ip(&format!("route add {kind} {v6}"));
        }
        // There is no default route in here.
        let no_route = ("no route", "11.4.0.0/16", "2600:4::/32", 0x03);
        let server = Server::start(&[]);
        for (kind, v4, v6, rep) in routes.into_iter().chain([no_route]) {
            let v4 = v4.replace("0.0/16", "0.1");
            assert_refused(&server, &v4, 80, rep);
            let v6 = v6.replace("::/32", "::1");
            let (code, mut client) = ask(server.connect(), 5, &v6, 80);
            assert_eq!((code, read_to_end(&mut client)), (rep, Vec::new()), "{kind} {v6}");
        }
    });
}

#[test]
fn a_datagram_for_a_name_that_hangs_holds_up_no_other() {
    isolated(|| {
        let dns = Dns::start(&[("good.test", &["127.0.0.1"])]);
        let echo = udp::echo_on("127.0.0.1");
        let server = Server::open(&["--resolve-timeout", "2"]);
        let association = Association::open(&server);
        let (dst, port) = (echo, echo.port());
        association.send_to_name("one.tarpit", port, b"lost");
        association.send_to_name("two.tarpit", port, b"lost");
        eventually("the names are asked for", || dns.stuck() == 2);
        let begun = Instant::now();
        association.send(dst, b"by address");
        assert_eq!(association.receive(), b"by address");
        association.send_to_name("good.test", port, b"by name");
        assert_eq!(association.receive(), b"by name");
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
        // Known by now, and never asked for again while it is.
        association.send_to_name("good.test", port, b"again");
        assert_eq!(association.receive(), b"again");
        assert_eq!(dns.asked("good.test"), 1);
    });
}

#[test]
fn a_session_whose_client_left_during_a_look_up_ends_with_the_look_up() {
    isolated(|| {
        let dns = Dns::start(&[]);
        let server = Server::open(&["-v", "--resolve-timeout", "1"]);
        let clients = get_stuck(&server, Ipv4Addr::LOCALHOST, 3);
        eventually("the names are asked for", || dns.stuck() == 3);
        drop(clients);
        let begun = Instant::now();
        server.log_lines(&[".tarpit:80", "seconds="], 3);
        assert!(begun.elapsed() < 2 * AT_ONCE, "{:?}: SEC-18", begun.elapsed());
    });
}
