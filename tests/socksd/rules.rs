//! What the rules of a running server let through, and what they keep out: whom, where to, by which
//! method, how many and how fast. What a rule means is tested beside it, in `policy`.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Deref;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::dns::Dns;
use crate::common::netns::{ip, isolated};
use crate::common::udp::{self, Association};
use crate::common::*;

/// REP of what is denied, and of a session for which there is no room.
const DENIED: u8 = 0x02;
const FULL: u8 = 0x01;

/// CD of a refusal.
const REJECTED: u8 = 91;

/// An address that is nobody's, in a block for documents.
const NOBODYS: &str = "203.0.113.9";

/// A public address that tests give to their own network, and two more.
const PUBLIC: &str = "93.184.216.34";
const PUBLIC_STRANGER: &str = "93.184.216.35";
const PUBLIC6: &str = "2606:2800:220:1::34";

/// A server with its rules in a file.
struct Ruled {
    server: Server,
    _rules: TempFile,
}

impl Ruled {
    fn with(rules: &str, args: &[&str]) -> Self {
        let file = TempFile::new(rules);
        let server = Server::start(&[&["--rules", file.path()], args].concat());
        Self { server, _rules: file }
    }

    fn by(rules: &str) -> Self {
        Self::with(rules, &[])
    }
}

impl Deref for Ruled {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

/// The line of the rule that a log line names, or nothing.
fn rule_of(line: &str) -> Option<usize> {
    field(line, "rule").rsplit_once(':').map(|(_, number)| number.parse().unwrap())
}

/// Users alice of the group staff, and bob; each with the password "secret".
fn staff_and_bob() -> TempFile {
    TempFile::new(&format!("alice:{SECRET}::staff\nbob:{SECRET}\n"))
}

/// Sends a version 5 request of a client that proves nothing; returns REP, BND and the connection.
fn ask5(mut client: TcpStream, request: &[u8]) -> (u8, SocketAddr, TcpStream) {
    client.write_all(&[HELLO, request].concat()).unwrap();
    assert_eq!(read(&mut client, 2), [5, 0]);
    let (rep, bnd) = reply5(&mut client);
    (rep, bnd, client)
}

/// The same of a user.
fn ask5_as(name: &str, mut client: TcpStream, request: &[u8]) -> (u8, SocketAddr, TcpStream) {
    log_in(&mut client, name);
    client.write_all(request).unwrap();
    let (rep, bnd) = reply5(&mut client);
    (rep, bnd, client)
}

/// Asserts that requests are refused in versions 5 and 4 as what is denied, and the connection
/// closed; returns how many there were.
fn assert_denied(server: &Server, five: &[Vec<u8>], four: &[Vec<u8>]) -> usize {
    for request in five {
        let (rep, _, mut client) = ask5(server.connect(), request);
        assert_eq!((rep, read_to_end(&mut client)), (DENIED, Vec::new()), "{request:02x?}");
    }
    for request in four {
        let mut client = server.sent(request);
        let cd = reply4(&mut client).0;
        assert_eq!((cd, read_to_end(&mut client)), (REJECTED, Vec::new()), "{request:02x?}");
    }
    five.len() + four.len()
}

/// Asserts that a tunnel leads to an echo.
fn assert_echoes(tunnel: &mut TcpStream) {
    tunnel.write_all(b"ping").unwrap();
    assert_eq!(read(tunnel, 4), b"ping");
}

/// Closes a session and waits until the server has told of it.
fn end(server: &Server, session: TcpStream) {
    let client = session.local_addr().unwrap();
    drop(session);
    server.log_line(&["event=close", &format!("client={client} ")]);
}

#[test]
fn v4_03_v4_23_v5_24_what_is_denied_is_told_so_and_not_connected() {
    let server = Ruled::by("deny to 127.0.0.1 # by a rule\nallow to 127.0.0.0/8 port 1-1000\n");
    let (one, two) = (Target::echo(), Target::echo_on("127.0.0.2"));
    for (target, rule) in [(&one, Some(1)), (&two, None)] {
        let port = target.addr.port();
        let name = target.addr.ip().to_string();
        let mut five = vec![request5(1, target.addr), request5(2, target.addr)];
        five.push(request5_name(1, name.as_bytes(), port));
        let mut four = vec![request4(1, target.addr, b"root"), request4(2, target.addr, b"")];
        four.push(request4a(1, 1, name.as_bytes(), port, b""));
        let count = assert_denied(&server, &five, &four);
        let dst = format!("dst={}", target.addr);
        let lines = server.log_lines(&["event=refuse", "reason=denied", &dst], count);
        assert!(lines.iter().all(|line| rule_of(line) == rule), "{lines:#?}");
    }
    // SEC-08: datagrams, while an association is allowed for what else it may do.
    let inside = UdpSocket::bind("127.0.0.1:0").unwrap();
    let association = Association::open(&server);
    association.send(inside.local_addr().unwrap(), b"denied by a rule");
    association.send(two.addr, b"allowed by none");
    server.await_dropped(2);
    assert_no_datagram(&inside);
    drop(association);
    server.log_line(&["event=close", "command=udp", "up=0", "dropped=2"]);
    one.assert_untouched(&server);
    two.assert_untouched(&server);
}

#[test]
fn v4_23_a_bind_is_judged_by_its_dst_and_by_its_peer() {
    let server = Ruled::by("allow command bind to 127.0.0.2,127.0.0.3\ndeny\n");
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let dst = SocketAddr::from(([127, 0, 0, 2], 0));
    for (dst, peer, rep) in [
        (dst, [127, 0, 0, 2], 0),
        (dst, [127, 0, 0, 3], DENIED),
        (any, [127, 0, 0, 2], 0),
        (any, [127, 0, 0, 3], 0),
        (any, [127, 0, 0, 4], DENIED),
    ] {
        let (first, bnd, mut client) = ask5(server.connect(), &request5(2, dst));
        assert_eq!(first, 0);
        let mut peer = connect_from(peer.into(), bnd);
        assert_eq!(reply5(&mut client), (rep, peer.local_addr().unwrap()), "{dst}");
        if rep == 0 {
            client.write_all(b"ping").unwrap();
            assert_eq!(read(&mut peer, 4), b"ping");
        } else {
            assert_eq!(read_to_end(&mut client), b"");
            assert_ends_silently(&mut peer, SOON);
        }
    }
    assert_denied(&server, &[request5(2, SocketAddr::from(([127, 0, 0, 4], 0)))], &[]);
}

#[test]
fn what_the_name_alone_decides_is_not_looked_up() {
    isolated(|| {
        let dns = Dns::start(&[("www.good.test", &["127.0.0.1"])]);
        let target = Target::echo();
        let rules = "deny to .blocked.test\n\
                     deny version 4,4a,5 to www.good.test port 81\n\
                     allow to .good.test port 80,81\n\
                     allow command connect to 127.0.0.1\n\
                     allow command udp to .late.test\n";
        let server = Ruled::by(rules);
        let (mut five, mut four) = (Vec::new(), Vec::new());
        for (name, port) in [
            (&b"blocked.test"[..], 80),
            (b"a.b.BLOCKED.test.", 80),
            (b"blocked.test.", 443),
            (b"www.good.test", 81),
        ] {
            five.extend([1, 2].map(|cmd| request5_name(cmd, name, port)));
            four.extend([1, 2].map(|cd| request4a(cd, 9, name, port, b"")));
        }
        // No rule is for these, but one for addresses, which is for another command.
        for name in [&b"other.test"[..], b"good.test.other", b"late.test", b"xgood.test"] {
            five.push(request5_name(2, name, 80));
            four.push(request4a(2, 9, name, 80, b""));
        }
        assert_denied(&server, &five, &four);
        let association = Association::open(&server);
        let names = ["blocked.test", "www.BLOCKED.test", "other.test", "xgood.test"];
        names.iter().for_each(|name| association.send_to_name(name, 80, b"denied"));
        association.send_to_name("www.good.test", 81, b"denied");
        association.send_to_name("www.good.test", 82, b"denied");
        server.await_dropped(6);
        assert_no_datagram(&association.socket);
        end(&server, association.control);
        server.log_line(&["event=close", "command=udp", "up=0", "dropped=6"]);
        assert_eq!(dns.all_asked(), [""; 0]);
        target.assert_untouched(&server);

        // Where the address might be allowed, only a look-up can tell.
        let request = request5_name(1, b"www.good.test", target.addr.port());
        assert_eq!(ask5(server.connect(), &request).0, 0);
        assert_eq!(dns.asked("www.good.test"), 1);
    });
}

/// The network of the tests about rebinding: the same port of an address inside and one outside,
/// and names for them.
struct Rebinding {
    dns: Dns,
    inside: Target,
    outside: Target,
    port: u16,
}

impl Rebinding {
    fn start() -> Self {
        for address in [PUBLIC, PUBLIC_STRANGER] {
            ip(&format!("addr add {address}/32 dev lo"));
        }
        ip(&format!("addr add {PUBLIC6}/128 dev lo nodad"));
        let dns = Dns::start(&[
            ("inside.example.org", &["127.0.0.5"]),
            ("six.example.org", &["::1"]),
            ("mapped.example.org", &["::ffff:127.0.0.5"]),
            ("nat64.example.org", &["64:ff9b::7f00:5"]),
            ("mixed.example.org", &["127.0.0.5", PUBLIC]),
            ("dual.example.org", &["127.0.0.5", "::1", PUBLIC6]),
            ("good.example.org", &[PUBLIC]),
        ]);
        let inside = Target::echo_on("127.0.0.5");
        let port = inside.addr.port();
        // On all addresses of IPv6 and on one of IPv4.
        let outside = Target::echo_at(&[
            SocketAddr::new(PUBLIC.parse().unwrap(), port),
            SocketAddr::new(PUBLIC6.parse().unwrap(), port),
        ]);
        Self { dns, inside, outside, port }
    }

    fn names(&self, names: &[&str], code: u8) -> Vec<Vec<u8>> {
        names.iter().map(|name| request5_name(code, name.as_bytes(), self.port)).collect()
    }
}

/// Rules under which a name must not lead inside.
const NO_WAY_INSIDE: [&str; 6] = [
    "allow to any",
    "allow",
    "allow to .example.org",
    "allow to !other.example.org",
    "allow to any,.example.org,inside.example.org",
    "deny to other.test\nallow to public\nallow to inside.example.org",
];

#[test]
fn sec_04_a_public_name_does_not_lead_inside() {
    isolated(|| {
        let net = Rebinding::start();
        let inside =
            ["inside.example.org", "six.example.org", "mapped.example.org", "nat64.example.org"];
        for rules in NO_WAY_INSIDE {
            let server = Ruled::by(rules);
            let five = [net.names(&inside, 1), net.names(&inside, 2)].concat();
            let name = b"inside.example.org";
            let four = [1, 2].map(|cd| request4a(cd, 1, name, net.port, b""));
            let before = net.dns.asked("inside.example.org");
            let count = assert_denied(&server, &five, &four);
            assert_eq!(net.dns.asked("inside.example.org") - before, 4, "{rules}");
            server.log_lines(&["event=refuse", "reason=denied"], count);
            // What of a name is outside is used, and nothing else of it.
            let names = ["mixed.example.org", "dual.example.org", "good.example.org"];
            for request in net.names(&names, 1) {
                let (rep, _, mut client) = ask5(server.connect(), &request);
                assert_eq!(rep, 0, "{rules}");
                assert_echoes(&mut client);
            }
            let mixed = request4a(1, 1, b"mixed.example.org", net.port, b"");
            let mut client = server.sent(&mixed);
            assert_eq!(reply4(&mut client).0, 90);
            assert_echoes(&mut client);
            drop(client);
            net.inside.assert_untouched(&server);
        }
        net.outside.assert_accepted(4 * NO_WAY_INSIDE.len());

        // Whoever names what is inside means it.
        for (rules, rule) in [
            ("allow to 127.0.0.5", 1),
            ("allow to all", 1),
            ("allow to loopback", 1),
            ("allow to .example.org,127.0.0.0/8", 1),
            ("allow to any\nallow to 127.0.0.5-127.0.0.6", 2),
        ] {
            let server = Ruled::by(rules);
            let requests = net.names(&["inside.example.org"], 1);
            let (rep, _, mut client) = ask5(server.connect(), &requests[0]);
            assert_eq!(rep, 0, "{rules}");
            assert_echoes(&mut client);
            drop(client);
            assert_eq!(rule_of(&server.log_line(&["event=close"])), Some(rule));
        }
        net.inside.assert_accepted(5);
    });
}

#[test]
fn sec_08_a_public_name_does_not_lead_datagrams_inside() {
    isolated(|| {
        let net = Rebinding::start();
        let inside = UdpSocket::bind(("127.0.0.5", net.port)).unwrap();
        let outside = UdpSocket::bind((PUBLIC, net.port)).unwrap();
        outside.set_read_timeout(Some(SOON)).unwrap();
        for rules in NO_WAY_INSIDE {
            let server = Ruled::by(rules);
            let association = Association::open(&server);
            for name in ["inside.example.org", "mapped.example.org", "nat64.example.org"] {
                association.send_to_name(name, net.port, b"inside");
            }
            for name in ["mixed.example.org", "good.example.org"] {
                association.send_to_name(name, net.port, name.as_bytes());
                let mut buffer = [0; 64];
                let (len, relay) = outside.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..len], name.as_bytes(), "{rules}");
                // The answer comes back, whatever names the address of the name.
                outside.send_to(b"answer", relay).unwrap();
                assert_eq!(association.receive(), b"answer", "{rules}");
            }
            server.await_dropped(3);
            assert_no_datagram(&association.socket);
            assert_no_datagram(&inside);
            end(&server, association.control);
            server.log_line(&["event=close", "command=udp", "dropped=3"]);
        }

        let server = Ruled::by("allow to .example.org,127.0.0.5");
        let association = Association::open(&server);
        association.send_to_name("inside.example.org", net.port, b"meant");
        inside.set_read_timeout(Some(SOON)).unwrap();
        let mut buffer = [0; 64];
        let (len, relay) = inside.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"meant");
        inside.send_to(b"answer", relay).unwrap();
        assert_eq!(association.receive(), b"answer");
    });
}

#[test]
fn under_a_rule_of_names_nobody_but_those_names_answers_a_datagram() {
    isolated(|| {
        let net = Rebinding::start();
        let named = UdpSocket::bind((PUBLIC, net.port)).unwrap();
        let strangers = [
            // Another address, and another port of the same one.
            UdpSocket::bind((PUBLIC_STRANGER, net.port)).unwrap(),
            UdpSocket::bind((PUBLIC, 0)).unwrap(),
        ];
        let server = Ruled::by("allow to good.example.org");
        let association = Association::open(&server);
        association.send_to_name("good.example.org", net.port, b"question");
        named.set_read_timeout(Some(SOON)).unwrap();
        let (_, relay) = named.recv_from(&mut [0; 64]).unwrap();
        for stranger in &strangers {
            stranger.send_to(b"stranger", relay).unwrap();
        }
        named.send_to(b"answer", relay).unwrap();
        assert_eq!(association.receive(), b"answer");
        // Nor does the address by itself get a datagram, which is not what the rule says.
        association.send(named.local_addr().unwrap(), b"by address");
        server.await_dropped(3);
        assert_no_datagram(&named);
        end(&server, association.control);
        server.log_line(&["event=close", "command=udp", "dropped=3"]);
    });
}

/// What a server chooses of the methods that a client offers.
fn choice(server: &Server, from: u8, offer: &[u8]) -> u8 {
    let mut client = connect_from(Ipv4Addr::new(127, 0, 0, from), server.addr);
    client.write_all(&[&[5, u8::try_from(offer.len()).unwrap()], offer].concat()).unwrap();
    let [5, method] = read(&mut client, 2)[..] else { panic!("no version 5") };
    if method == 0xff {
        assert_eq!(read_to_end(&mut client), b"", "V5-05");
    }
    method
}

#[test]
fn v5_03_v5_04_sec_16_the_method_follows_from_the_rules_a_client_can_reach() {
    const FF: u8 = 0xff;
    let users = staff_and_bob();
    // What a client offers, and what is chosen by one set of rules for one client.
    const OFFERS: [&[u8]; 8] =
        [&[0], &[2], &[0, 2], &[2, 0], &[1, 2, 0x80], &[1, 0], &[1], &[0xff, 3]];
    let nothing = [FF; 8];
    let free = [0, 2, 0, 0, 2, 0, FF, FF];
    let both = [0, 2, 2, 2, 2, 0, FF, FF];
    let only_password = [FF, 2, 2, 2, 2, FF, FF, FF];
    for (rules, from, expected) in [
        ("allow to any", 1, free),
        ("allow user any to any", 1, only_password),
        ("allow user @staff,bob to any port 80", 1, only_password),
        ("allow user !bob to all", 1, only_password),
        ("deny user none\nallow to any", 1, only_password),
        ("allow user alice to 10.0.0.0/8\nallow to any", 1, both),
        ("deny user bob\nallow to any", 1, both),
        // Each client has its own rules.
        ("allow from 127.0.0.2 user any\nallow from 127.0.0.1", 1, free),
        ("allow from 127.0.0.2 user any\nallow from 127.0.0.1", 2, only_password),
        ("allow from 127.0.0.2 user any\nallow from 127.0.0.1", 3, nothing),
        // Rules for another version, or behind one that decides, are none.
        ("allow version 4,4a", 1, nothing),
        ("allow version 4 user any\nallow", 1, free),
        ("allow to all\nallow user any", 1, free),
        ("deny from 127.0.0.1\nallow", 1, nothing),
        ("deny\nallow user alice", 1, nothing),
        ("", 1, nothing),
    ] {
        let server = Ruled::with(rules, &["--users", users.path()]);
        let chosen = OFFERS.map(|offer| choice(&server, from, offer));
        assert_eq!(chosen, expected, "{rules} from 127.0.0.{from}");
        let reason = if expected == nothing { "reason=denied" } else { "reason=method" };
        let refused = chosen.iter().filter(|method| **method == FF).count();
        server.log_lines(&["event=refuse", reason, "rule=- "], refused);
    }
    // Without users there is nothing to check a password by.
    let server = Ruled::by("allow");
    let chosen = OFFERS.map(|offer| choice(&server, 1, offer));
    assert_eq!(chosen, [0, FF, 0, 0, FF, 0, FF, FF]);
}

#[test]
fn auth_09_a_rule_for_a_user_is_for_that_user_only() {
    let users = staff_and_bob();
    let target = Target::echo();
    let request = request5(1, target.addr);
    // Rules, and which rule admits nobody in particular, alice, and bob; 0 where none does.
    for (rules, nobody, alice, bob) in [
        ("allow user alice to all\nallow user none to all", 2, 1, 0),
        ("allow user @staff to all\nallow to all", 2, 1, 2),
        ("deny user bob\nallow user any,none to all", 2, 2, 0),
        ("allow user !@staff to all\nallow user none to all", 2, 0, 1),
        ("allow user !none to all\nallow user none to all", 2, 1, 1),
        ("deny user none port 1-1023\nallow user none to all\nallow user bob to all", 2, 0, 3),
    ] {
        let server = Ruled::with(rules, &["--users", users.path(), "--auth-penalty", "0"]);
        let asked = [
            ask5(server.connect(), &request),
            ask5_as("alice", server.connect(), &request),
            ask5_as("bob", server.connect(), &request),
        ];
        for ((rep, _, mut client), (name, rule)) in
            asked.into_iter().zip([("-", nobody), ("alice", alice), ("bob", bob)])
        {
            assert_eq!(rep, if rule == 0 { DENIED } else { 0 }, "{name}: {rules}");
            if rep == 0 {
                assert_echoes(&mut client);
            } else {
                assert_eq!(read_to_end(&mut client), b"");
            }
            drop(client);
            let line = server.log_line(&[&format!("user={name} "), "reply="]);
            if rep == 0 {
                assert_eq!(rule_of(&line), Some(rule), "{line}");
            }
        }
        let served = target.accepted();
        // A wrong password opens nothing, not even what is open to all.
        let mut client =
            server.sent(&[&[5, 1, 2][..], &login(b"alice", b"wrong"), &request].concat());
        assert_eq!(read_to_end(&mut client), [5, 2, 1, 1]);
        drop(client);
        server.log_line(&["event=refuse", "user=alice ", "reason=auth"]);
        target.assert_accepted(served);
    }
}

#[test]
fn auth_11_sec_14_socks_4_matches_no_rule_with_a_user() {
    let users = staff_and_bob();
    let target = Target::echo();
    let port = target.addr.port();
    let requests = |userid: &[u8]| {
        let name = request4a(1, 1, b"localhost", port, userid);
        vec![request4(1, target.addr, userid), request4(2, target.addr, userid), name]
    };
    for rules in [
        "allow user any to all",
        "allow user alice to all",
        "allow user @staff to all",
        "allow user !bob to all",
        "allow user !none to all",
        "allow version 4,4a user alice,bob to all",
        "deny user none\nallow to all",
        "deny user !any\nallow to all",
    ] {
        let server = Ruled::with(rules, &["--users", users.path()]);
        let all = [&b"alice"[..], b"bob", b"", b"none", b"any"].map(requests).concat();
        assert_denied(&server, &[], &all);
        target.assert_untouched(&server);
    }
    for rules in ["allow user none to all", "deny user any\nallow version 4,4a to all"] {
        let server = Ruled::with(rules, &["--users", users.path()]);
        for request in &requests(b"alice")[..1] {
            assert_eq!(reply4(&mut server.sent(request)).0, 90, "{rules}");
        }
    }
}

/// Asserts that there is no room for a session, which the log tells as of `limit`.
fn assert_full(server: &Server, (rep, _, mut client): (u8, SocketAddr, TcpStream), limit: &str) {
    assert_eq!((rep, read_to_end(&mut client)), (FULL, Vec::new()), "{limit}");
    let error = format!("error=\"{limit} reached\"");
    let from = client.local_addr().unwrap();
    // It is told of once the client has gone too.
    drop(client);
    let client = format!("client={from} ");
    server.log_line(&["event=refuse", "reason=limit", "reply=01", &error, &client]);
}

#[test]
fn a_rule_admits_as_many_sessions_as_it_says_of_all_commands_together() {
    let server = Ruled::by("allow port 0-999\nallow to all max-sessions 3\n");
    let target = Target::echo();
    let (connect, any) = (request5(1, target.addr), SocketAddr::from(([0, 0, 0, 0], 1_000)));
    let (rep, _, tunnel) = ask5(server.connect(), &connect);
    assert_eq!(rep, 0);
    let (rep, _, bind) = ask5(server.connect(), &request5(2, target.addr));
    assert_eq!(rep, 0);
    let mut four = server.sent(&request4(1, target.addr, b""));
    assert_eq!(reply4(&mut four).0, 90);
    for request in [connect.clone(), request5(2, target.addr), request5(2, any)] {
        assert_full(&server, ask5(server.connect(), &request), "max-sessions of the rule");
    }
    let mut refused = server.sent(&request4(1, target.addr, b""));
    assert_eq!(read_to_end(&mut refused)[..2], [0, REJECTED]);
    // What there is no room for is not connected.
    target.assert_accepted(2);
    // One that has ended makes room, whichever it was.
    let mut kept = Vec::new();
    for (session, binds) in [(tunnel, 1), (four, 2)] {
        end(&server, session);
        let (rep, _, mut again) = ask5(server.connect(), &connect);
        assert_eq!(rep, 0);
        assert_echoes(&mut again);
        assert_full(&server, ask5(server.connect(), &connect), "max-sessions of the rule");
        end(&server, again);
        assert_eq!(ask5(server.connect(), &request5(2, target.addr)).0, 0);
        server.log_lines(&["event=close", "command=bind", "reason=client"], binds);
        let (rep, _, again) = ask5(server.connect(), &connect);
        assert_eq!(rep, 0);
        kept.push(again);
    }
    drop(bind);
}

#[test]
fn an_association_counts_among_the_sessions_of_its_rule() {
    let server = Ruled::by("allow to all max-sessions 1\n");
    let target = Target::echo();
    let association = Association::open(&server);
    let request = request5(1, target.addr);
    assert_full(&server, ask5(server.connect(), &request), "max-sessions of the rule");
    assert_eq!(Association::over(server.connect()).err(), Some(FULL));
    target.assert_untouched_beside(&server, 1);
    end(&server, association.control);
    assert_echoes(&mut tunnel(&server, target.addr));
}

#[test]
fn a_rule_admits_as_many_sessions_of_each_client_as_it_says() {
    let server = Ruled::by("allow to all max-per-client 2\n");
    let target = Target::echo();
    let request = request5(1, target.addr);
    let ask = |last| ask5(connect_from(Ipv4Addr::new(127, 0, 0, last), server.addr), &request);
    let mut held: Vec<_> = [2, 3, 2, 3].into_iter().map(ask).collect();
    assert!(held.iter().all(|(rep, ..)| *rep == 0));
    for last in [2, 3] {
        assert_full(&server, ask(last), "max-per-client of the rule");
    }
    end(&server, held.remove(0).2);
    assert_full(&server, ask(3), "max-per-client of the rule");
    let (rep, _, mut again) = ask(2);
    assert_eq!(rep, 0);
    assert_echoes(&mut again);
    assert_full(&server, ask(2), "max-per-client of the rule");
    target.assert_accepted(5);
}

#[test]
fn a_user_has_as_many_sessions_as_max_per_user_says_by_all_rules_together() {
    let users = staff_and_bob();
    let rules = "allow user any to 127.0.0.1\nallow user any to all\nallow to all\n";
    let server = Ruled::with(rules, &["--users", users.path(), "--max-per-user", "2"]);
    let (one, two) = (Target::echo(), Target::echo_on("127.0.0.2"));
    let ask = |name: &str, from, target: &Target| {
        let client = connect_from(Ipv4Addr::new(127, 0, 0, from), server.addr);
        ask5_as(name, client, &request5(1, target.addr))
    };
    let (rep, _, first) = ask("alice", 1, &one);
    assert_eq!(rep, 0);
    let (rep, _, mut second) = ask("alice", 2, &two);
    assert_eq!(rep, 0);
    for (from, target) in [(1, &one), (2, &two), (3, &one)] {
        assert_full(&server, ask("alice", from, target), "max-per-user");
    }
    // No other user, nor one that is none, is kept out by that.
    let (rep, _, mut bobs) = ask("bob", 1, &one);
    assert_eq!(rep, 0);
    let nobodys: Vec<_> = (0..3).map(|_| ask5(server.connect(), &request5(1, one.addr))).collect();
    assert!(nobodys.iter().all(|(rep, ..)| *rep == 0));
    assert_echoes(&mut bobs);
    assert_echoes(&mut second);
    end(&server, first);
    assert_eq!(ask("alice", 3, &two).0, 0);
    one.assert_accepted(5);
    two.assert_accepted(2);
}

/// A target that tells each client where it came from.
fn tells_source(ip: &str) -> Target {
    Target::on(ip, |mut stream| {
        let _ = write!(stream, "{}", stream.peer_addr().unwrap().ip());
    })
}

#[test]
fn a_rule_says_where_its_sessions_leave_from() {
    let (five, six) = (tells_source("127.0.0.1"), tells_source("127.0.0.1"));
    let six_port = six.addr.port();
    let rules = format!(
        "allow command udp to all source 127.0.0.7\n\
         allow to all port {six_port} source 127.0.0.6\n\
         allow version 4 to all\n\
         allow to all source 127.0.0.5,::1\n"
    );
    let server = Ruled::with(&rules, &["--source", "127.0.0.4"]);
    for (target, source) in [(&five, "127.0.0.5"), (&six, "127.0.0.6")] {
        let (rep, bnd, mut client) = ask5(server.connect(), &request5(1, target.addr));
        assert_eq!((rep, bnd.ip().to_string()), (0, source.into()));
        assert_eq!(read_to_end(&mut client), source.as_bytes());
    }
    // One without a source of its own has that of all.
    let mut client = server.sent(&request4(1, five.addr, b""));
    assert_eq!(reply4(&mut client).0, 90);
    assert_eq!(read_to_end(&mut client), b"127.0.0.4");
    let target = UdpSocket::bind("127.0.0.1:0").unwrap();
    target.set_read_timeout(Some(SOON)).unwrap();
    let association = Association::open(&server);
    association.send(target.local_addr().unwrap(), b"ping");
    let (_, relay) = target.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(relay.ip().to_string(), "127.0.0.7");
    target.send_to(b"pong", relay).unwrap();
    assert_eq!(association.receive(), b"pong");
}

#[test]
fn from_a_source_that_this_host_lacks_nothing_leaves_at_all() {
    let target = Target::echo();
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    for family in [&[][..], &["-4"]] {
        let server = Ruled::with(&format!("allow to all source {NOBODYS}"), family);
        let (rep, _, mut client) = ask5(server.connect(), &request5(1, target.addr));
        assert_eq!((rep, read_to_end(&mut client)), (0x01, Vec::new()));
        drop(client);
        let mut client = server.sent(&request4(1, target.addr, b""));
        assert_eq!(read_to_end(&mut client)[..2], [0, REJECTED]);
        drop(client);
        server.log_lines(&["event=refuse", "reason=connect", "error="], 2);
        match Association::over(server.connect()) {
            // There is the other family.
            Ok(association) if family.is_empty() => {
                association.send(sink.local_addr().unwrap(), b"ping");
                server.await_dropped(1);
                assert_no_datagram(&sink);
            }
            Ok(_) => panic!("an association that can send nothing"),
            Err(rep) => assert_eq!(rep, 0x01),
        }
        target.assert_untouched(&server);
    }
}

/// A target that sends this many octets to whoever connects, and closes.
fn sends(octets: usize) -> Target {
    Target::on("127.0.0.1", move |mut stream| {
        let _ = stream.write_all(&vec![0x55; octets]);
    })
}

#[test]
fn a_rate_holds_for_each_session_and_each_way_by_itself() {
    const OCTETS: usize = 400_000;
    const RATE: usize = 400_000;
    // A tenth of a second's worth may pass at once.
    let least = Duration::from_millis(900);
    let server = Ruled::by(&format!("deny port 1\nallow to all rate {RATE}\n"));
    let source = sends(OCTETS);
    let (tx, drained) = std::sync::mpsc::channel();
    let drain = Target::on("127.0.0.1", move |mut stream| {
        let _ = tx.send(read_to_end(&mut stream).len());
    });
    let begun = Instant::now();
    let (mut down, mut up) = (tunnel(&server, source.addr), tunnel(&server, drain.addr));
    let mut both = tunnel(&server, Target::echo().addr);
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(read_to_end(&mut down).len(), OCTETS);
            assert!(begun.elapsed() > least, "down: {:?}", begun.elapsed());
        });
        scope.spawn(move || {
            up.write_all(&vec![0x55; OCTETS]).unwrap();
            up.shutdown(Shutdown::Write).unwrap();
            assert_eq!(drained.recv().unwrap(), OCTETS);
            assert!(begun.elapsed() > least, "up: {:?}", begun.elapsed());
        });
        // What goes up and comes down again is not charged to both.
        let mut writing = both.try_clone().unwrap();
        scope.spawn(move || {
            writing.write_all(&vec![0x55; OCTETS]).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
        assert_eq!(read_to_end(&mut both).len(), OCTETS);
        assert!(begun.elapsed() > least, "both: {:?}", begun.elapsed());
    });
    assert!(begun.elapsed() < 2 * least, "sessions share no rate: {:?}", begun.elapsed());
}

#[test]
fn all_sessions_of_a_user_share_the_rate_of_the_user() {
    const OCTETS: usize = 200_000;
    let users = staff_and_bob();
    let rules = "allow user any to all rate-user 400000\nallow to all rate-user 400000\n";
    let server = Ruled::with(rules, &["--users", users.path()]);
    let source = sends(OCTETS);
    let request = request5(1, source.addr);
    let took = |sessions: Vec<(u8, SocketAddr, TcpStream)>| {
        let begun = Instant::now();
        thread::scope(|scope| {
            for (rep, _, mut client) in sessions {
                assert_eq!(rep, 0);
                scope.spawn(move || assert_eq!(read_to_end(&mut client).len(), OCTETS));
            }
        });
        begun.elapsed()
    };
    let as_user = |name, last| {
        let client = connect_from(Ipv4Addr::new(127, 0, 0, last), server.addr);
        ask5_as(name, client, &request)
    };
    let of_nobody =
        |last| ask5(connect_from(Ipv4Addr::new(127, 0, 0, last), server.addr), &request);
    // The first octets pass before all sessions are there: a little less than a second.
    let least = Duration::from_millis(800);
    for name in ["alice", "bob"] {
        let time = took(vec![as_user(name, 1), as_user(name, 2)]);
        assert!(time > least, "{name} from two addresses: {time:?}");
    }
    // Whoever is no user is known by the address.
    let time = took(vec![of_nobody(1), of_nobody(1)]);
    assert!(time > least, "one address: {time:?}");
    let time = took(vec![as_user("alice", 1), as_user("bob", 1), of_nobody(1), of_nobody(2)]);
    assert!(time < 2 * least, "two users and two addresses: {time:?}");
}

#[test]
fn a_session_that_passes_nothing_ends_at_the_idle_limit_of_its_rule() {
    let rules = "allow from 127.0.0.2 to all idle 1\n\
                 allow from 127.0.0.3 to all idle 0\n\
                 allow to all\n";
    let args = ["--idle-timeout", "2", "--udp-idle-timeout", "2"];
    let server = Ruled::with(rules, &args);
    let (target, udp_echo) = (Target::echo(), udp::echo_on("127.0.0.1"));
    let open = |last| {
        let from = || connect_from(Ipv4Addr::new(127, 0, 0, last), server.addr);
        let (rep, _, tunnel) = ask5(from(), &request5(1, target.addr));
        assert_eq!(rep, 0);
        (tunnel, Association::over(from()).unwrap())
    };
    let begun = Instant::now();
    let (mut quick, mut never, mut plain) = (open(2), open(3), open(1));
    let idle_after = |(tunnel, association): &mut (TcpStream, Association), seconds| {
        let limit = Duration::from_secs(seconds);
        for stream in [tunnel, &mut association.control] {
            assert_ends_silently(stream, SOON);
            let took = begun.elapsed();
            assert!(took > limit && took < 2 * limit, "{took:?}");
        }
    };
    idle_after(&mut quick, 1);
    let lines = server.log_lines(&["event=close", "reason=idle", "client=127.0.0.2:"], 2);
    assert!(lines.iter().all(|line| rule_of(line) == Some(1)));
    idle_after(&mut plain, 2);
    server.log_lines(&["event=close", "reason=idle", "client=127.0.0.1:"], 2);
    assert_echoes(&mut never.0);
    never.1.send(udp_echo, b"ping");
    assert_eq!(never.1.receive(), b"ping");
}

#[test]
fn a_session_that_waits_for_its_turn_at_a_rate_is_not_idle() {
    // Each gets its portion of 100 octets every three seconds.
    let server = Ruled::by("allow to all rate-user 1000 idle 1\n");
    let source = sends(10_000);
    let sessions: Vec<TcpStream> = (0..30).map(|_| tunnel(&server, source.addr)).collect();
    thread::sleep(Duration::from_secs(4));
    let closed = server.log().into_iter().find(|line| line.contains("event=close"));
    assert_eq!(closed, None);
    drop(sessions);
    let lines = server.log_lines(&["event=close"], 30);
    assert!(lines.iter().all(|line| field(line, "down") != "0"), "{lines:#?}");
}

#[test]
fn a_rule_may_have_nothing_logged_or_more_than_is_usual() {
    let rules = "allow from 127.0.0.2 to all port 1024-65535 log no\n\
                 deny from 127.0.0.3 log no\n\
                 allow from 127.0.0.4 to all log verbose\n\
                 allow from 127.0.0.5 to 192.0.2.0/24 log no\n\
                 allow from 127.0.0.1 to all\n";
    let server = Ruled::by(rules);
    let target = Target::echo();
    let request = request5(1, target.addr);
    let ask = |last, request: &[u8]| {
        ask5(connect_from(Ipv4Addr::new(127, 0, 0, last), server.addr), request)
    };
    for last in [2, 4, 1] {
        let (rep, _, mut client) = ask(last, &request);
        assert_eq!(rep, 0);
        assert_echoes(&mut client);
    }
    drop(Association::over(connect_from([127, 0, 0, 2].into(), server.addr)).unwrap());
    let mut four = connect_from([127, 0, 0, 3].into(), server.addr);
    four.write_all(&request4(1, target.addr, b"")).unwrap();
    assert_eq!(reply4(&mut four).0, REJECTED);
    // What no rule decides is logged, though one that logs nothing might have allowed the name.
    assert_eq!(ask(5, &request5_name(1, b"localhost", 80)).0, DENIED);
    // So is what is refused of a rule that is not reached.
    assert_eq!(ask(2, &request5(1, SocketAddr::from(([127, 0, 0, 1], 80)))).0, DENIED);

    server.log_line(&["event=close", "client=127.0.0.1:"]);
    server.log_line(&["event=refuse", "client=127.0.0.5:", "rule=- "]);
    server.log_line(&["event=refuse", "client=127.0.0.2:", "rule=- "]);
    server.log_line(&["event=close", "client=127.0.0.4:"]);
    let events = |client: &str| -> Vec<String> {
        let lines = server.log().into_iter().filter(|line| line.contains(client));
        lines.map(|line| field(&line, "event").to_owned()).collect()
    };
    assert_eq!(events("client=127.0.0.2:"), ["refuse"]);
    assert_eq!(events("client=127.0.0.3:"), [""; 0]);
    assert_eq!(events("client=127.0.0.4:"), ["request", "connect", "close"]);
    assert_eq!(events("client=127.0.0.1:"), ["close"]);
}

#[test]
fn of_a_name_the_addresses_are_used_whose_rules_have_room() {
    isolated(|| {
        Dns::start(&[("two.test", &["127.0.0.5", "127.0.0.6"])]);
        let five = SocketAddr::from(([127, 0, 0, 5], 80));
        let six = SocketAddr::from(([127, 0, 0, 6], 80));
        let target = Target::echo_at(&[five, six]);
        let rules = "allow to 127.0.0.5 max-sessions 1\nallow to 127.0.0.6 max-sessions 1\n";
        let server = Ruled::by(rules);
        let ask = || ask5(server.connect(), &request5_name(1, b"two.test", 80));
        // What was kept for the address not used is given back before the reply.
        for (first, second) in [(five, 2), (six, 1)] {
            let held = tunnel(&server, first);
            let (rep, _, other) = ask();
            assert_eq!(rep, 0);
            assert_full(&server, ask(), "max-sessions of the rule");
            end(&server, held);
            let (rep, _, again) = ask();
            assert_eq!(rep, 0);
            let client = format!("client={} ", other.local_addr().unwrap());
            end(&server, other);
            assert_eq!(rule_of(&server.log_line(&["event=close", &client])), Some(second));
            end(&server, again);
        }
        target.assert_accepted(6);
    });
}

/// What became of a client.
enum Outcome {
    Served(TcpStream),
    /// With this REP.
    Refused(u8),
    /// Without an answer, when it was accepted.
    TurnedAway,
}

impl Outcome {
    /// Sends all of a version 5 exchange at once.
    fn begin(server: SocketAddr, from: Ipv4Addr, octets: &[u8]) -> Option<TcpStream> {
        let mut client = connect_from(from, server);
        client.set_read_timeout(Some(6 * SOON)).unwrap();
        client.write_all(octets).is_ok().then_some(client)
    }

    /// Reads the answers, `before` octets of them before the reply, and one octet from the target.
    fn of(client: Option<TcpStream>, before: usize) -> Self {
        let Some(mut client) = client else { return Self::TurnedAway };
        let mut first = vec![0; before];
        match client.read_exact(&mut first) {
            Ok(()) => {}
            Err(error) => {
                let gone = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
                assert!(gone.contains(&error.kind()), "{error}");
                assert!(first.iter().all(|octet| *octet == 0), "cut within its answer: {first:?}");
                return Self::TurnedAway;
            }
        }
        match reply5(&mut client).0 {
            0 => {
                assert_eq!(read(&mut client, 1), b"!");
                Self::Served(client)
            }
            rep => {
                assert_eq!(read_to_end(&mut client), b"");
                Self::Refused(rep)
            }
        }
    }
}

/// A target that says a word to whoever connects and keeps the connection, without a thread each.
struct Keeper {
    addr: SocketAddr,
    kept: Arc<Mutex<Vec<TcpStream>>>,
}

impl Keeper {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        socksd::sys::listen(&listener, 4_096).unwrap();
        let addr = listener.local_addr().unwrap();
        let kept: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let keeping = Arc::clone(&kept);
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let _ = stream.write_all(b"!");
                keeping.lock().unwrap().push(stream);
            }
        });
        Self { addr, kept }
    }

    /// Closes all connections, of which there are to be as many; then no session is left.
    fn let_go(&self, count: usize, server: &Server, descriptors_before: usize) {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap());
        assert_eq!(kept.len(), count);
        drop(kept);
        eventually("all its descriptors are closed", || server.holds().0 == descriptors_before);
        // The last sessions are being counted out.
        thread::sleep(Duration::from_millis(100));
    }
}

/// Clients of one kind.
struct Group {
    /// They come from 127.0.`net`.1 and on.
    net: u8,
    hosts: usize,
    clients: usize,
    user: Option<&'static str>,
    /// How many of them are to be served, and how many refused with a reply.
    served: usize,
    refused: usize,
}

/// Has all clients of all groups at once ask for `target`, of the groups in turn; returns those who
/// are served.
fn storm(server: SocketAddr, target: SocketAddr, groups: &[Group]) -> Vec<TcpStream> {
    const THREADS: usize = 20;
    let most = groups.iter().map(|group| group.clients).max().unwrap();
    let turns: Vec<(usize, usize)> = (0..most)
        .flat_map(|n| (0..groups.len()).map(move |group| (group, n)))
        .filter(|(group, n)| *n < groups[*group].clients)
        .collect();
    let outcomes: Vec<(usize, Outcome)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let mine = turns.iter().copied().skip(thread).step_by(THREADS);
                scope.spawn(move || {
                    let begun: Vec<_> = mine
                        .map(|(group, n)| {
                            let Group { net, hosts, user, .. } = groups[group];
                            let host = u8::try_from(n % hosts + 1).unwrap();
                            let from = Ipv4Addr::new(127, 0, net, host);
                            let request = request5(1, target);
                            let octets = match user {
                                Some(name) => {
                                    let login = login(name.as_bytes(), b"secret");
                                    [&[5, 1, 2][..], &login, &request].concat()
                                }
                                None => [HELLO, &request].concat(),
                            };
                            let before = if user.is_some() { 4 } else { 2 };
                            (group, Outcome::begin(server, from, &octets), before)
                        })
                        .collect();
                    let ended = begun.into_iter();
                    ended
                        .map(|(group, client, before)| (group, Outcome::of(client, before)))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut counts = vec![(0, 0, 0); groups.len()];
    let mut all_served = Vec::new();
    for (group, outcome) in outcomes {
        let (served, refused, turned_away) = &mut counts[group];
        match outcome {
            Outcome::Served(client) => {
                *served += 1;
                all_served.push(client);
            }
            Outcome::Refused(rep) => {
                assert_eq!(rep, FULL);
                *refused += 1;
            }
            Outcome::TurnedAway => *turned_away += 1,
        }
    }
    let expected: Vec<_> = groups
        .iter()
        .map(|group| (group.served, group.refused, group.clients - group.served - group.refused))
        .collect();
    assert_eq!(counts, expected);
    all_served
}

#[test]
fn sec_12_caps_of_every_kind_hold_exactly_under_2000_clients_at_once() {
    let users = staff_and_bob();
    let rules = "allow user alice to all\n\
                 allow from 127.0.2.0/24 to all max-sessions 150\n\
                 allow from 127.0.3.0/24 to all max-per-client 7\n\
                 allow from 127.0.4.0/24,127.0.0.0/24 to all\n";
    let args = ["--users", users.path(), "--max-per-user", "100", "--max-per-client", "300"];
    let limits = ["--max-sessions", "4000", "--max-half-open", "100000", "--early-drop", "100-100"];
    let server = Ruled::with(rules, &[&args[..], &limits].concat());
    let target = Keeper::start();
    let group = |net, hosts, clients, served, refused| {
        let user = (net == 1).then_some("alice");
        Group { net, hosts, clients, user, served, refused }
    };
    eventually("all its threads have started", || server.holds().1 == 5);
    let before = server.holds().0;
    // Its users are known from here on, so that logging in takes no time.
    log_in(&mut server.connect(), "alice");
    server.log_line(&["event=close", "user=alice"]);
    // The second time shows that all places were given back.
    for _ in 0..2 {
        let held = storm(
            server.addr,
            target.addr,
            &[
                group(1, 10, 300, 100, 200),
                group(2, 10, 500, 150, 350),
                group(3, 20, 400, 140, 260),
                group(4, 2, 800, 600, 0),
            ],
        );
        assert_eq!(held.len(), 990);
        drop(held);
        target.let_go(990, &server, before);
    }
}

#[test]
fn sec_12_the_cap_of_all_sessions_holds_exactly_under_2000_clients_at_once() {
    let limits = ["--max-sessions", "500", "--max-half-open", "100000", "--early-drop", "100-100"];
    let server = Ruled::with("allow to all", &limits);
    let target = Keeper::start();
    eventually("all its threads have started", || server.holds().1 == 5);
    let before = server.holds().0;
    for _ in 0..2 {
        let group =
            Group { net: 5, hosts: 40, clients: 2_000, user: None, served: 500, refused: 0 };
        drop(storm(server.addr, target.addr, &[group]));
        target.let_go(500, &server, before);
    }
}

/// Words of random rules: each matches some of the questions below, and not others.
const RULE_WORDS: [(&str, &[&str]); 6] = [
    ("version", &["4", "4a", "5"]),
    ("command", &["connect", "connect", "bind", "udp"]),
    ("from", &["127.0.0.1", "127.0.0.2-127.0.0.4", "127.0.0.4/30", "loopback", "any", "public"]),
    ("user", &["alice", "bob", "@staff", "any", "none"]),
    (
        "to",
        &[
            "any",
            "any",
            "all",
            "loopback",
            "127.0.0.6",
            "127.0.0.8-127.0.0.9",
            "10.9.0.0/16",
            "private",
            "::1",
            "public",
            "www.example.org",
            ".example.org",
            ".test",
            "list:some",
        ],
    ),
    ("port", &["80", "443", "0-1023", "1024-65535"]),
];

/// Names, and the address of each.
const NAMES: [(&str, &str); 6] = [
    ("www.example.org", "127.0.0.6"),
    ("deep.www.example.org", PUBLIC),
    ("inside.test", "10.9.0.1"),
    ("other.test", "127.0.0.8"),
    ("listed.example", PUBLIC),
    ("six.test", "::1"),
];

fn random_rule(random: &mut Random) -> String {
    let mut rule = (*random.pick(&["allow", "allow", "deny"])).to_owned();
    for (keyword, items) in RULE_WORDS {
        let often = if keyword == "to" { 2 } else { 4 };
        if random.below(often) == 0 {
            let negated = if random.below(4) == 0 { "!" } else { "" };
            let list: Vec<&str> = (0..=random.below(3)).map(|_| *random.pick(items)).collect();
            rule += &format!(" {keyword} {negated}{}", list.join(","));
        }
    }
    rule
}

/// Something to ask of a server, and of `--explain`.
struct Question {
    from: IpAddr,
    user: Option<&'static str>,
    version: &'static str,
    to: &'static str,
    /// The address of a name.
    at: Option<&'static str>,
    port: u16,
}

impl Question {
    fn random(random: &mut Random) -> Self {
        let from = match random.below(10) {
            0 => PUBLIC_STRANGER.parse().unwrap(),
            last => Ipv4Addr::new(127, 0, 0, u8::try_from(last).unwrap()).into(),
        };
        let version = *random.pick(&["4", "4a", "5", "5", "5"]);
        let (to, at) = loop {
            let named = version == "4a" || version == "5" && random.below(2) == 0;
            let (name, address) = *random.pick(&NAMES);
            if version == "5" || !address.contains(':') {
                break if named { (name, Some(address)) } else { (address, None) };
            }
        };
        Self {
            from,
            user: if version == "5" {
                *random.pick(&[None, Some("alice"), Some("bob")])
            } else {
                None
            },
            version,
            to,
            at,
            port: *random.pick(&[80, 443, 8080]),
        }
    }

    /// As `--explain` takes it.
    fn text(&self) -> String {
        let Self { from, user, version, to, at, port } = self;
        let to = if to.contains(':') { format!("[{to}]:{port}") } else { format!("{to}:{port}") };
        let user = user.map(|user| format!("user={user} ")).unwrap_or_default();
        let at = at.map(|at| format!(" at={at}")).unwrap_or_default();
        format!("from={from} {user}version={version} command=connect to={to}{at}")
    }

    /// Asks the server; tells whether it is allowed.
    fn put(&self, server: &Server) -> bool {
        let IpAddr::V4(from) = self.from else { panic!("{}", self.from) };
        let mut client = connect_from(from, server.addr);
        let ip: Option<IpAddr> = self.to.parse().ok();
        if self.version != "5" {
            let request = match ip {
                Some(ip) => request4(1, SocketAddr::new(ip, self.port), b"alice"),
                None => request4a(1, 7, self.to.as_bytes(), self.port, b"alice"),
            };
            client.write_all(&request).unwrap();
            let cd = reply4(&mut client).0;
            assert!([90, REJECTED].contains(&cd), "{cd}");
            return cd == 90;
        }
        client.write_all(if self.user.is_some() { &[5, 2, 0, 2] } else { HELLO }).unwrap();
        match (read(&mut client, 2)[1], self.user) {
            (0, _) => {}
            (2, Some(name)) => {
                client.write_all(&login(name.as_bytes(), b"secret")).unwrap();
                assert_eq!(read(&mut client, 2), [1, 0]);
            }
            (method, _) => {
                assert_eq!(method, 0xff);
                return false;
            }
        }
        client
            .write_all(&match ip {
                Some(ip) => request5(1, SocketAddr::new(ip, self.port)),
                None => request5_name(1, self.to.as_bytes(), self.port),
            })
            .unwrap();
        let rep = reply5(&mut client).0;
        assert!([0, DENIED].contains(&rep), "{rep}");
        rep == 0
    }
}

#[test]
fn explain_agrees_with_the_server_on_500_random_questions() {
    isolated(|| {
        const SETS: usize = 25;
        const QUESTIONS: usize = 20;
        for address in [PUBLIC, PUBLIC_STRANGER, "10.9.0.1"] {
            ip(&format!("addr add {address}/32 dev lo"));
        }
        let table = NAMES.map(|(name, address)| (name, [address]));
        let table: Vec<(&str, &[&str])> = table.iter().map(|(name, at)| (*name, &at[..])).collect();
        let dns = Dns::start(&table);
        // Whoever is connected to takes it.
        let _targets = [80, 443, 8080].map(|port| {
            let every = |ip: &str| SocketAddr::new(ip.parse().unwrap(), port);
            let four = ["127.0.0.6", "127.0.0.8", PUBLIC, "10.9.0.1"].map(every);
            Target::echo_at(&[&four[..], &[every("::1")]].concat())
        });
        let users = staff_and_bob();
        let list = TempFile::new("listed.example\n127.0.0.6\n");
        let mut random = Random::seeded();
        let (mut allowed, mut decided, mut methods) = (0, 0, 0);
        for _ in 0..SETS {
            let mut rules = format!("list some {}\n", list.path());
            for _ in 0..=random.below(6) {
                rules += &(random_rule(&mut random) + "\n");
            }
            let file = TempFile::new(&rules);
            let policy = ["--rules", file.path(), "--users", users.path()];
            let server = Server::start(&policy);
            for number in 1..=QUESTIONS {
                let question = Question::random(&mut random);
                let text = question.text();
                let looked_up = dns.asked(question.to);
                let served = question.put(&server);
                let session = format!("session={number} ");
                let line = server.log_line(&[&session, " reply="]);

                let output = Command::new(SOCKSD).args(policy).args(["--explain", &text]).output();
                let output = output.unwrap();
                let told = String::from_utf8(output.stdout).unwrap();
                let context = format!("{rules}{text}\n{told}{line}");
                assert_eq!(output.status.code(), Some(if served { 0 } else { 1 }), "{context}");
                let verdict = if served { "verdict: allow\n" } else { "verdict: deny: " };
                assert!(told.contains(verdict), "{context}");

                // The rule that decides. Where a name was not even looked up, a rule that denies
                // some address may stand before the one that was enough to deny all.
                let matching = told.lines().find_map(|line| line.strip_suffix(": matches"));
                let explained = matching.map(|line| line.split(": ").next().unwrap());
                let logged = Some(field(&line, "rule")).filter(|rule| *rule != "-");
                if question.at.is_none() || dns.asked(question.to) > looked_up {
                    assert_eq!(logged, explained, "{context}");
                    decided += usize::from(logged.is_some());
                }
                methods += usize::from(line.contains(" reply=- "));
                allowed += usize::from(served);
            }
        }
        // Chance has to ask about everything.
        println!("{allowed} allowed, {decided} by a rule, {methods} without a method");
        assert!(allowed > 30 && decided > 100 && methods > 5);
    });
}

// What went wrong in other servers, as far as no other test is about it.

/// How a client shows who it is.
#[derive(Clone, Copy, Debug)]
enum Way {
    V4,
    V4a,
    NoMethod,
    As(&'static str),
}

#[test]
fn cve_2024_54662_every_way_to_log_in_gets_the_rule_for_it_with_its_own_settings() {
    let users = staff_and_bob();
    let rules = "allow user @staff to 127.0.0.1,127.0.0.2 source 127.0.0.21\n\
                 allow version 5 user none to 127.0.0.2 source 127.0.0.22\n\
                 allow version 4 to 127.0.0.3,127.0.0.2 source 127.0.0.23\n\
                 allow version 4a to 127.0.0.3 source 127.0.0.24\n\
                 allow user any to 127.0.0.3\n\
                 deny user bob\n\
                 allow to 127.0.0.4\n";
    let server = Ruled::with(rules, &["--users", users.path(), "--source", "127.0.0.20"]);
    let targets = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"].map(tells_source);
    // For each target the rule and what it has sessions leave from.
    let none = (0, "");
    let all = (7, "127.0.0.20");
    for (way, expected) in [
        (Way::V4, [none, (3, "127.0.0.23"), (3, "127.0.0.23"), all]),
        (Way::V4a, [none, none, (4, "127.0.0.24"), all]),
        (Way::NoMethod, [none, (2, "127.0.0.22"), none, all]),
        (Way::As("alice"), [(1, "127.0.0.21"), (1, "127.0.0.21"), (5, "127.0.0.20"), all]),
        (Way::As("bob"), [none, none, (5, "127.0.0.20"), none]),
    ] {
        for (target, (rule, source)) in targets.iter().zip(expected) {
            let before = target.accepted();
            let context = format!("{way:?} to {}", target.addr);
            let (name, request) = (target.addr.ip().to_string(), request5(1, target.addr));
            let four = |request: &[u8]| {
                let mut client = server.sent(request);
                (reply4(&mut client).0 == 90, client)
            };
            let (served, mut client) = match way {
                Way::V4 => four(&request4(1, target.addr, b"alice")),
                Way::V4a => four(&request4a(1, 1, name.as_bytes(), target.addr.port(), b"alice")),
                Way::NoMethod => {
                    let (rep, _, client) = ask5(server.connect(), &request);
                    (rep == 0, client)
                }
                Way::As(user) => {
                    let (rep, _, client) = ask5_as(user, server.connect(), &request);
                    (rep == 0, client)
                }
            };
            assert_eq!(served, rule != 0, "{context}");
            assert_eq!(read_to_end(&mut client), source.as_bytes(), "{context}");
            let from = format!("client={} ", client.local_addr().unwrap());
            drop(client);
            let line = server.log_line(&[&from, "reply="]);
            target.assert_accepted(before + usize::from(served));
            if served {
                assert_eq!(rule_of(&line), Some(rule), "{line}");
            }
        }
    }
}

#[test]
fn cve_2023_43644_nothing_is_served_behind_a_failed_login() {
    let users = staff_and_bob();
    let rules = "allow user any to all\nallow from 127.0.0.9 to all\n";
    let server = Ruled::with(rules, &["--users", users.path(), "--auth-penalty", "0"]);
    let target = Target::echo();
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let requests =
        [request5(1, target.addr), request5(2, target.addr), request5(3, any), HELLO.to_vec()];
    let (wrong, right) = (login(b"alice", b"wrong"), login(b"alice", b"secret"));
    for request in &requests {
        for (messages, answers) in [
            // Behind a wrong password; behind a right one that comes after it; behind a second try.
            (vec![&[5, 1, 2][..], &wrong, request], &[5, 2, 1, 1][..]),
            (vec![&[5, 1, 2], &wrong, &right, request], &[5, 2, 1, 1]),
            (vec![&[5, 1, 2], &wrong, &[5, 1, 2], &right, request], &[5, 2, 1, 1]),
            // Behind no acceptable method, with and without the password.
            (vec![&[5, 1, 0], request], &[5, 0xff]),
            (vec![&[5, 1, 0], &right, request], &[5, 0xff]),
            (vec![&[5, 1, 1], &[5, 1, 2], &right, request], &[5, 0xff]),
        ] {
            let mut client = server.sent(&messages.concat());
            assert_eq!(read_to_end(&mut client), answers, "{messages:02x?}");
        }
    }
    // Nor does another version walk round it.
    let port = target.addr.port();
    let four = [1, 2].map(|cd| request4(cd, target.addr, b"alice")).to_vec();
    let names = [1, 2].map(|cd| request4a(cd, 1, b"localhost", port, b"alice")).to_vec();
    assert_denied(&server, &[], &[four, names].concat());
    // What was said before in the same connection counts for nothing.
    let mut client = server.sent(&[&[5, 1, 0][..], &request4(1, target.addr, b"alice")].concat());
    assert_eq!(read_to_end(&mut client), [5, 0xff]);
    target.assert_untouched(&server);
}

#[test]
fn cve_2002_2368_fields_of_any_length_end_neither_server_nor_other_sessions() {
    let users = TempFile::new(&format!("alice:{SECRET}\n{}:{SECRET}\n", "u".repeat(255)));
    let rules = "deny to .blocked.test\nallow user any to all\nallow to all\n";
    let server = Ruled::with(rules, &["--users", users.path(), "--auth-penalty", "0"]);
    let target = Target::echo();
    let mut other = tunnel(&server, target.addr);
    let before = server.holds().0;
    // The longest there are, and what they are good for.
    let (rep, _, mut client) =
        ask5_as(&"u".repeat(255), server.connect(), &request5(1, target.addr));
    assert_eq!(rep, 0);
    assert_echoes(&mut client);
    drop(client);
    let mut client = server.sent(&request4(1, target.addr, &[b'u'; 255]));
    assert_eq!(reply4(&mut client).0, 90);
    assert_echoes(&mut client);
    drop(client);
    let served = target.accepted();
    for len in [255, 256, 257, 1_023, 1_024, 4_096, 65_536] {
        let long = vec![b'a'; len];
        let port = target.addr.port();
        for octets in [
            request4(1, target.addr, &long)[..8 + len].to_vec(),
            request4a(1, 1, &long, port, b""),
            request4a(1, 1, b"localhost", port, &long)[..8 + len].to_vec(),
        ] {
            let mut client = server.connect();
            // It may be cut before all has been sent.
            let _ = client.write_all(&octets);
            let _ = client.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer);
            assert!(answer.is_empty() || answer[..2] == [0, REJECTED], "{len}: {answer:02x?}");
        }
    }
    for (uname, passwd) in [(0, 0), (255, 255), (0, 255), (255, 0)] {
        let login = login(&vec![b'x'; uname], &vec![0xff; passwd]);
        let mut client = server.sent(&[&[5, 1, 2][..], &login].concat());
        assert_eq!(read_to_end(&mut client), [5, 2, 1, 1]);
        // microsocks 47d1680: one that never ends is no password.
        let mut client = server.sent(&[&[5, 1, 2][..], &login[..login.len() - 1]].concat());
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut client), [5, 2]);
    }
    server.settle(1);
    target.assert_accepted(served);
    assert_echoes(&mut other);
    // microsocks e8cc58f: nor does any of them leave a descriptor behind.
    eventually("all descriptors are closed", || server.holds().0 == before);
}

#[test]
fn cve_2007_2031_a_request_of_http_is_no_request_at_all() {
    let server = Ruled::by("allow to all");
    let target = Target::echo();
    let addr = target.addr;
    for head in ["GET http://", "POST http://", "CONNECT "] {
        for len in [0, 300, 20_000] {
            let path = "a".repeat(len);
            let request = format!("{head}{addr}/{path} HTTP/1.1\r\nHost: {addr}\r\n\r\n");
            let mut client = server.connect();
            let _ = client.write_all(request.as_bytes());
            assert_ends_silently(&mut client, SOON);
        }
    }
    server.log_lines(&["event=refuse", "reason=protocol", "rule=- "], 9);
    target.assert_untouched(&server);
    assert_echoes(&mut tunnel(&server, addr));
}

#[test]
fn cve_2023_38545_a_name_too_long_is_refused_and_not_looked_up_however_slowly_it_comes() {
    isolated(|| {
        let dns = Dns::start(&[]);
        let target = Target::echo();
        let server = Ruled::by("allow to all");
        let long = "localhost.".repeat(26);
        for (len, slow) in [(256, false), (256, true), (260, false)] {
            let name = &long.as_bytes()[..len];
            let request = request4a(1, 1, name, target.addr.port(), b"");
            let mut client = server.connect();
            for part in request.chunks(if slow { 16 } else { 1_024 }) {
                let _ = client.write_all(part);
                thread::sleep(Duration::from_millis(2));
            }
            assert_eq!(read(&mut client, 8)[..2], [0, REJECTED]);
        }
        // One of 255 octets is longer than any name can be, and cut short nowhere either.
        let name = &long.as_bytes()[..255];
        let request = [HELLO, &request5_name(1, name, target.addr.port())].concat();
        let mut client = server.connect();
        for part in request.chunks(16) {
            client.write_all(part).unwrap();
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(read(&mut client, 2), [5, 0]);
        assert_ne!(reply5(&mut client).0, 0);
        assert_eq!(dns.all_asked(), [""; 0]);
        target.assert_untouched(&server);
    });
}

#[test]
fn ghsa_qwrf_gfpj_qvj6_no_spelling_of_what_is_denied_gets_past() {
    isolated(|| {
        // As inet_aton(3) and the resolver would have them.
        let dns = Dns::start(&[
            ("blocked.test", &["127.0.0.1"]),
            ("blocked.test.", &["127.0.0.1"]),
            ("[blocked.test]", &["127.0.0.1"]),
            ("[127.0.0.1]", &["127.0.0.1"]),
            ("[::1]", &["::1"]),
            ("alias.test", &["127.0.0.1"]),
            ("alias6.test", &["::1"]),
            ("public.test", &[PUBLIC]),
            ("www.public.test", &[PUBLIC]),
        ]);
        let (v4, v6) = (Target::echo(), Target::echo_on("::1"));
        for rules in [
            "deny to .blocked.test,127.0.0.0/8,::1\nallow to all",
            "deny to blocked.test,loopback\nallow to all",
            "list bad /dev/stdin\ndeny to list:bad\nallow to all",
        ] {
            let list = TempFile::new("blocked.test\n127.0.0.0/8\n::1\n");
            let server = Ruled::by(&rules.replace("/dev/stdin", list.path()));
            let ports = [v4.addr.port(), v6.addr.port()];
            for name in [
                "blocked.test",
                "BLOCKED.Test",
                "blocked.test.",
                "blocked.test..",
                ".blocked.test",
                "[blocked.test]",
                "[127.0.0.1]",
                "[::1]",
                "[::ffff:127.0.0.1]",
                "127.1",
                "127.0.0.1.",
                "0x7f.1",
                "017700000001",
                "2130706433",
                "::ffff:127.0.0.1",
                "::ffff:7f00:1",
                "::127.0.0.1",
                "64:ff9b::7f00:1",
                "2002:7f00:1::",
                "::1",
                "0:0:0:0:0:0:0:1",
                "::1%lo",
                "alias.test",
                "alias6.test",
                "blocked.test\0.example.org",
                " blocked.test",
                "blocked.test ",
                "0.0.0.0",
                "::",
            ] {
                for port in ports {
                    let request = request5_name(1, name.as_bytes(), port);
                    let (rep, _, mut client) = ask5(server.connect(), &request);
                    assert_ne!(rep, 0, "{name:?} under {rules}");
                    assert_eq!(read_to_end(&mut client), b"");
                    let mut client = server.sent(&request4a(1, 1, name.as_bytes(), port, b""));
                    assert_eq!(reply4(&mut client).0, REJECTED, "{name:?} under {rules}");
                }
            }
            for address in ["::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"] {
                for port in ports {
                    let addr = SocketAddr::new(address.parse().unwrap(), port);
                    assert_denied(&server, &[request5(1, addr)], &[]);
                }
            }
        }
        // Where a name is denied and what it leads to is not, the name has to be found out.
        ip(&format!("addr add {PUBLIC}/32 dev lo"));
        let public = Target::echo_on(PUBLIC);
        let server = Ruled::by("deny to .public.test\nallow to any\n");
        for name in ["public.test", "WWW.public.TEST.", "public.test..", "www..public.test"] {
            let request = request5_name(1, name.as_bytes(), public.addr.port());
            assert_ne!(ask5(server.connect(), &request).0, 0, "{name}");
        }
        assert_eq!(ask5(server.connect(), &request5(1, public.addr)).0, 0);
        public.assert_accepted(1);

        let denied = dns.all_asked().into_iter().filter(|name| !name.starts_with("alias"));
        assert_eq!(denied.collect::<Vec<_>>(), [""; 0]);
        v4.assert_untouched(&server);
        v6.assert_untouched(&server);
    });
}

#[test]
fn gost_no_password_is_right_for_an_empty_or_locked_one() {
    let users = format!("alice:\nbob:!\ncarol:*\ndave:!{SECRET}\nerin:{SECRET}\n");
    let users = TempFile::new(&users);
    let server =
        Ruled::with("allow user any to all", &["--users", users.path(), "--auth-penalty", "0"]);
    let target = Target::echo();
    for name in ["alice", "bob", "carol", "dave", ""] {
        for password in ["", "!", "*", "secret", SECRET] {
            let login = login(name.as_bytes(), password.as_bytes());
            let octets = [&[5, 1, 2][..], &login, &request5(1, target.addr)].concat();
            assert_eq!(read_to_end(&mut server.sent(&octets)), [5, 2, 1, 1], "{name} {password}");
        }
    }
    server.log_lines(&["event=refuse", "reason=auth"], 25);
    target.assert_untouched(&server);
    assert_eq!(ask5_as("erin", server.connect(), &request5(1, target.addr)).0, 0);
}

#[test]
fn udp_26_as_in_3proxy_once_not_only_the_first_target_of_an_association_is_judged() {
    let (good, bad) = (udp::echo_on("127.0.0.1"), UdpSocket::bind("127.0.0.2:0").unwrap());
    let server = Ruled::by("deny to 127.0.0.2\nallow to all\n");
    let association = Association::open(&server);
    for round in 0..3 {
        association.send(good, b"allowed");
        assert_eq!(association.receive(), b"allowed", "{round}");
        association.send(bad.local_addr().unwrap(), b"denied");
        association.send_to_name("127.0.0.2", bad.local_addr().unwrap().port(), b"denied");
        association.send_to_name("127.2", bad.local_addr().unwrap().port(), b"denied");
    }
    server.await_dropped(9);
    assert_no_datagram(&bad);
    end(&server, association.control);
    server.log_line(&["event=close", "command=udp", "up=21", "down=21", "dropped=9"]);
}

#[test]
fn udp_05_as_in_v2ray_once_no_datagram_passes_that_no_password_stands_behind() {
    let users = staff_and_bob();
    let server = Ruled::with("allow user alice to all", &["--users", users.path()]);
    let target = UdpSocket::bind("127.0.0.1:0").unwrap();
    target.set_read_timeout(Some(SOON)).unwrap();
    let mut datagram = Vec::new();
    socksd::wire::udp::encode_header(target.local_addr().unwrap(), &mut datagram);
    let from = |who| [&datagram[..], &[who]].concat();
    // Not at the port of the server, which has none for datagrams.
    let stranger = UdpSocket::bind("127.0.0.9:0").unwrap();
    stranger.send_to(&from(b's'), server.addr).unwrap();
    // Not where another user's association is, from elsewhere; and not when that is over.
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    assert_eq!(ask5_as("bob", server.connect(), &request5(3, any)).0, DENIED);
    let (rep, bnd, control) = ask5_as("alice", server.connect(), &request5(3, any));
    assert_eq!(rep, 0);
    stranger.send_to(&from(b's'), bnd).unwrap();
    let own = UdpSocket::bind("127.0.0.1:0").unwrap();
    own.send_to(&from(b'o'), bnd).unwrap();
    // The first that comes, and the only one.
    let mut came = [0; 16];
    assert_eq!((target.recv(&mut came).unwrap(), came[0]), (1, b'o'));
    server.await_dropped(1);
    end(&server, control);
    own.send_to(&from(b'o'), bnd).unwrap();
    assert_no_datagram(&target);
}
