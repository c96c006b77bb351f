//! SIGHUP: what a server reads anew, what it keeps, and which sessions may stay.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::udp::{self, Association};
use crate::common::*;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A server with files that can be written anew.
struct Reloaded {
    server: Server,
    rules: TempFile,
    users: TempFile,
}

impl Reloaded {
    fn start(rules: &str, users: &str, args: &[&str]) -> Self {
        let (rules, users) = (TempFile::new(rules), TempFile::new(users));
        let files = ["--rules", rules.path(), "--users", users.path()];
        let server = Server::start(&[&files, args].concat());
        Self { server, rules, users }
    }

    /// Sends SIGHUP and waits until the files are in force, or told of as wrong by `errors` lines.
    fn reload(&self, errors: usize) -> Vec<String> {
        let event = if errors == 0 { "event=reload " } else { "event=reload-failed " };
        let before = self.log().iter().filter(|line| line.contains(event)).count();
        self.signal("HUP");
        self.log_lines(&[event], before + errors.max(1)).split_off(before)
    }

    /// Puts other rules in force.
    fn rule(&self, rules: &str) {
        write(&self.rules, rules);
        self.reload(0);
    }

    /// Asks for `dst` from 127.0.0.`from`, perhaps with a password; returns REP and the connection.
    fn ask(&self, name: Option<&str>, from: u8, cmd: u8, dst: SocketAddr) -> (u8, TcpStream) {
        let mut client = connect_from(Ipv4Addr::new(127, 0, 0, from), self.addr);
        match name {
            Some(name) => log_in(&mut client, name),
            None => {
                client.write_all(HELLO).unwrap();
                assert_eq!(read(&mut client, 2), [5, 0]);
            }
        }
        client.write_all(&request5(cmd, dst)).unwrap();
        (reply5(&mut client).0, client)
    }

    fn tunnel(&self, name: Option<&str>, dst: SocketAddr) -> TcpStream {
        let (rep, client) = self.ask(name, 1, 1, dst);
        assert_eq!(rep, 0, "{name:?} to {dst}");
        client
    }

    fn associate(&self, name: Option<&str>) -> Association {
        let mut control = self.connect();
        match name {
            Some(name) => log_in(&mut control, name),
            None => {
                control.write_all(HELLO).unwrap();
                assert_eq!(read(&mut control, 2), [5, 0]);
            }
        }
        control.write_all(&request5(3, ANY)).unwrap();
        let (rep, bnd) = reply5(&mut control);
        assert_eq!(rep, 0);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(bnd).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Association { control, socket }
    }
}

impl Deref for Reloaded {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

fn write(file: &TempFile, text: &str) {
    fs::write(&file.0, text).unwrap();
}

/// A line of a users file, for the password "secret".
fn user(name: &str, fields: &str) -> String {
    format!("{name}:{SECRET}{fields}\n")
}

/// The same for the password "other".
fn user_with_other_password(name: &str) -> String {
    let hash = socksd::sys::crypt(b"other", b"$6$othersalt$").unwrap();
    format!("{name}:{}\n", String::from_utf8(hash.clone()).unwrap())
}

/// Asserts that octets still pass through a session.
fn assert_flows(session: &mut TcpStream) {
    session.write_all(b"ping").unwrap();
    assert_eq!(read(session, 4), b"ping");
}

fn assert_datagrams_flow(association: &Association, echo: SocketAddr) {
    association.send(echo, b"ping");
    assert_eq!(association.receive(), b"ping");
}

/// Asserts that a datagram of the only association gets no answer, and is the `count`th to be
/// dropped.
fn assert_datagram_dropped(
    server: &Server,
    association: &Association,
    echo: SocketAddr,
    count: usize,
) {
    association.send(echo, b"ping");
    server.await_dropped(count);
    assert_no_datagram(&association.socket);
}

#[test]
fn new_rules_users_and_lists_are_for_new_sessions_and_old_ones_go_on() {
    let list = TempFile::new("127.0.0.1\n");
    let rules = format!("list good {}\nallow user alice to list:good\n", list.path());
    let server = Reloaded::start(&rules, &user("alice", ""), &[]);
    let (one, two) = (Target::echo(), Target::echo_on("127.0.0.2"));
    let mut first = server.tunnel(Some("alice"), one.addr);
    assert_eq!(server.ask(Some("alice"), 1, 1, two.addr).0, 2);

    // A list alone.
    write(&list, "127.0.0.2\n");
    server.reload(0);
    assert_eq!(server.ask(Some("alice"), 1, 1, one.addr).0, 2);
    let mut second = server.tunnel(Some("alice"), two.addr);

    // Users alone: another one, and another password for the one there was.
    let users = format!("{}{}", user("bob", ""), user_with_other_password("alice"));
    write(&server.users, &users);
    let line = server.reload(0).remove(0);
    assert_eq!((field(&line, "rules"), field(&line, "users")), ("1", "2"));
    assert_eq!(server.ask(Some("bob"), 1, 1, two.addr).0, 2, "no rule for bob yet");
    let octets = [&[5, 1, 2][..], &login(b"alice", b"secret"), &request5(1, two.addr)].concat();
    assert_eq!(read_to_end(&mut server.sent(&octets)), [5, 2, 1, 1]);
    let mut third = server.sent(&[&[5, 1, 2][..], &login(b"alice", b"other")].concat());
    assert_eq!(read(&mut third, 4), [5, 2, 1, 0]);
    third.write_all(&request5(1, two.addr)).unwrap();
    assert_eq!(reply5(&mut third).0, 0);

    // Rules alone, in which no user is left to be asked for.
    server.rule("allow from 127.0.0.9 to all\n");
    let line = server.log_lines(&["event=reload "], 3).remove(2);
    assert_eq!((field(&line, "rules"), field(&line, "users")), ("1", "2"));
    let mut refused = server.sent(HELLO);
    assert_eq!(read_to_end(&mut refused), [5, 0xff]);
    let (rep, mut fourth) = server.ask(None, 9, 1, one.addr);
    assert_eq!(rep, 0);
    for session in [&mut first, &mut second, &mut third, &mut fourth] {
        assert_flows(session);
    }
    one.assert_accepted(2);
    two.assert_accepted(2);
}

#[test]
fn without_strict_reload_an_association_goes_on_and_its_datagrams_keep_to_the_new_rules() {
    let server = Reloaded::start("allow to all\n", "", &[]);
    let (one, two) = (udp::echo_on("127.0.0.1"), udp::echo_on("127.0.0.2"));
    let association = server.associate(None);
    assert_datagrams_flow(&association, one);
    server.rule("deny to 127.0.0.1\nallow to all\n");
    assert_datagram_dropped(&server, &association, one, 1);
    assert_datagrams_flow(&association, two);
    server.rule("deny\n");
    assert_datagram_dropped(&server, &association, two, 2);
    server.rule("allow to all\n");
    assert_datagrams_flow(&association, one);
}

#[test]
fn with_anything_wrong_the_old_set_stays_and_all_errors_are_logged() {
    let list = TempFile::new("127.0.0.1\n");
    let good = format!("list good {}\nallow user alice to list:good\n", list.path());
    let server = Reloaded::start(&good, &user("alice", ""), &["--strict-reload"]);
    let (one, two) = (Target::echo(), Target::echo_on("127.0.0.2"));
    let mut session = server.tunnel(Some("alice"), one.addr);
    let (rules, users) = (server.rules.path(), server.users.path());

    let wrong_rules = format!("alow to all\nlist good {}\nallow port 0-65536\ndeny\n", list.path());
    write(&server.rules, &wrong_rules);
    write(&list, "127.0.0.1\n127.0.0.300\n");
    write(&server.users, "alice:plain\nbob\n");
    let errors = server.reload(5);
    for (error, place) in errors.iter().zip([
        format!("{rules}:1:1: "),
        format!("{}:2:1: ", list.path()),
        format!("{rules}:3:12: "),
        format!("{users}:1: "),
        format!("{users}:2: "),
    ]) {
        assert!(error.contains(&format!("error=\"{place}")), "{place} in {errors:#?}");
    }
    assert_eq!(errors.len(), 5);
    assert!(!server.log().iter().any(|line| line.contains("plain")));

    // Each file alone; one that is gone; users that others can read; rules without their users.
    write(&server.users, &user("alice", ""));
    write(&list, "127.0.0.1\n");
    let missing = "include /nonexistent/socksd.rules\n";
    for text in [missing, "allow to list:good\n", "allow idle\n", "allow \"\n", "\0"] {
        write(&server.rules, text);
        assert_eq!(server.reload(1).len(), 1, "{text:?}");
    }
    fs::remove_file(&server.rules.0).unwrap();
    server.reload(1);
    write(&server.rules, &good);
    write(&server.users, "# nobody\nalice\n");
    server.reload(1);
    fs::remove_file(&server.users.0).unwrap();
    server.reload(1);

    // All the while it was as before.
    assert_flows(&mut session);
    assert_flows(&mut server.tunnel(Some("alice"), one.addr));
    assert_eq!(server.ask(Some("alice"), 1, 1, two.addr).0, 2);
    two.assert_untouched_beside(&server, 1);

    // And what is good again is taken.
    let users = TempFile::new(&user("alice", ""));
    fs::rename(&users.0, &server.users.0).unwrap();
    assert!(!server.log().iter().any(|line| line.contains("event=reload ")));
    server.rule("allow user alice to 127.0.0.2\n");
    assert_ends_silently(&mut session, SOON);
    assert_flows(&mut server.tunnel(Some("alice"), two.addr));
}

#[test]
fn strict_reload_ends_exactly_the_sessions_that_are_no_longer_allowed() {
    let names = ["alice", "removed", "changed", "moved", "expired", "locked", "noted"];
    let users: String = names
        .iter()
        .map(|name| user(name, if *name == "moved" { "::staff" } else { "" }))
        .collect();
    let before = "allow user @staff,alice,removed,changed,expired,locked to all\n\
                  allow user none to all\n\
                  allow user noted to all log verbose\n";
    let server = Reloaded::start(before, &users, &["--strict-reload"]);
    let (one, two) = (Target::echo(), Target::echo_on("127.0.0.2"));
    let udp_echo = udp::echo_on("127.0.0.1");

    let stay: Vec<TcpStream> = vec![
        server.tunnel(Some("alice"), one.addr),
        server.tunnel(Some("alice"), two.addr),
        server.tunnel(Some("noted"), one.addr),
        server.tunnel(None, one.addr),
        {
            let mut four = server.sent(&request4(1, one.addr, b"removed"));
            assert_eq!(reply4(&mut four).0, 90);
            four
        },
        {
            let mut named = server.connect();
            let request = request5_name(1, b"localhost", one.addr.port());
            named.write_all(&[HELLO, &request].concat()).unwrap();
            read(&mut named, 2);
            assert_eq!(reply5(&mut named).0, 0);
            named
        },
    ];
    let leave: Vec<TcpStream> = ["removed", "changed", "moved", "expired", "locked"]
        .map(|name| server.tunnel(Some(name), one.addr))
        .into_iter()
        // By the rule: to another address, and from another client.
        .chain([server.tunnel(None, two.addr), server.ask(None, 7, 1, one.addr).1])
        .collect();
    let associations_stay = [server.associate(Some("alice")), server.associate(None)];
    let associations_leave =
        ["removed", "changed", "moved"].map(|name| server.associate(Some(name)));
    for association in associations_stay.iter().chain(&associations_leave) {
        assert_datagrams_flow(association, udp_echo);
    }

    // The groups, the place in the file and the settings of those who stay may be others.
    let locked = format!("locked:!{SECRET}\n");
    let users = [
        user("noted", "::staff,more"),
        user("moved", "::more"),
        user("expired", ":2020-01-01"),
        locked,
        user_with_other_password("changed"),
        user("alice", ":2999-12-31"),
    ];
    write(&server.users, &users.concat());
    server.rule(
        "deny from 127.0.0.7\n\
         allow user @staff,alice,changed,expired,locked,removed to all max-sessions 100 idle 60\n\
         allow user none to 127.0.0.1\n",
    );
    for mut session in leave {
        assert_ends_silently(&mut session, SOON);
    }
    for mut association in associations_leave {
        assert_ends_silently(&mut association.control, SOON);
        let client = format!(" client={} ", association.control.local_addr().unwrap());
        server.log_line(&["event=close ", &client]);
        association.send(udp_echo, b"ping");
        assert_no_datagram(&association.socket);
    }
    for mut session in stay {
        assert_flows(&mut session);
    }
    for association in associations_stay {
        assert_datagrams_flow(&association, udp_echo);
    }
    server.log_lines(&["event=close", "reason=revoked"], 10);
    server.log_lines(&["event=close", "reason=client"], 8);
    let lines = server.log();
    let closed = |line: &&String| line.contains("event=close");
    assert_eq!(lines.iter().filter(closed).count(), 18);
    for name in ["removed", "changed", "moved"] {
        server.log_lines(&["event=close", "reason=revoked", &format!("user={name} ")], 2);
    }
    let mut old = server.sent(&[&[5, 1, 2][..], &login(b"changed", b"secret")].concat());
    assert_eq!(read_to_end(&mut old), [5, 2, 1, 1]);
}

#[test]
fn strict_reload_ends_what_was_asked_for_before_it_and_begins_after() {
    let server = Reloaded::start("allow to all\n", "", &["--strict-reload"]);
    let dst = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut bind = server.sent(&[HELLO, &request5(2, dst)].concat());
    assert_eq!(read(&mut bind, 2), [5, 0]);
    let (rep, bnd) = reply5(&mut bind);
    assert_eq!(rep, 0);
    // A request whose half is still on its way is judged by the rules its method was chosen by.
    let mut half = server.sent(HELLO);
    assert_eq!(read(&mut half, 2), [5, 0]);
    let target = Target::echo();
    server.rule("deny\n");
    let mut peer = connect_from(Ipv4Addr::LOCALHOST, bnd);
    let _ = peer.write_all(b"not to be relayed");
    assert_ends_silently(&mut peer, SOON);
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut bind, &mut rest);
    assert!(rest.len() <= 10, "nothing but the second reply: {rest:02x?}");
    half.write_all(&[&request5(1, target.addr)[..], b"ping"].concat()).unwrap();
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut half, &mut answer);
    assert!(answer.len() <= 10, "{answer:02x?}");
    drop((bind, half));
    server.log_lines(&["reason=revoked"], 2);
    server.rule("allow to all\n");
    assert_flows(&mut tunnel(&server, target.addr));
}

#[test]
fn the_caps_of_rules_go_on_counting_through_a_reload() {
    let server = Reloaded::start("allow to all max-sessions 2\n", "", &[]);
    let target = Target::echo();
    let rep = || server.ask(None, 1, 1, target.addr).0;
    let first = server.tunnel(None, target.addr);
    let _second = server.tunnel(None, target.addr);
    assert_eq!(rep(), 1);
    server.reload(0);
    assert_eq!(rep(), 1);
    // Rules before it, comments and other words for the same change nothing.
    server.rule("# now with a comment\ndeny port 1\nallow max-sessions 2 \\\n  to all\n");
    assert_eq!(rep(), 1);
    let from = first.local_addr().unwrap();
    drop(first);
    server.log_line(&["event=close", &format!("client={from} ")]);
    let _third = server.tunnel(None, target.addr);
    assert_eq!(rep(), 1);
    server.rule("allow to all max-per-client 1\n");
    let _fourth = server.ask(None, 2, 1, target.addr);
    assert_eq!(server.ask(None, 2, 1, target.addr).0, 1);
    server.reload(0);
    assert_eq!(server.ask(None, 2, 1, target.addr).0, 1);
}

#[test]
fn a_cap_that_a_reload_changes_counts_the_sessions_that_there_are() {
    let server = Reloaded::start("allow to all max-sessions 3 rate 1000000\n", "", &[]);
    let target = Target::echo();
    let _running = [(); 3].map(|()| server.tunnel(None, target.addr));
    let rep = || server.ask(None, 1, 1, target.addr).0;
    for rules in [
        "allow to all max-sessions 2 rate 1000000\n",
        "allow to all max-sessions 3 rate 1000000 log verbose\n",
        "allow to all max-sessions 3 max-per-client 9\n",
    ] {
        server.rule(rules);
        assert_eq!(rep(), 1, "{rules}");
    }
    server.rule("allow to all max-sessions 4\n");
    let _fourth = server.tunnel(None, target.addr);
    assert_eq!(rep(), 1);
}

#[test]
fn under_load_fifty_reloads_lose_no_session_and_no_octet() {
    const SESSIONS: usize = 200;
    const RELOADS: usize = 50;
    const BLOCK: usize = 8 * 1024;
    let rules = "allow user alice to all max-sessions 150 rate-user 1000000000\n\
                 allow to all max-per-client 1000\n";
    let users = user("alice", "::staff");
    let server = Reloaded::start(rules, &users, &["--strict-reload"]);
    let target = Target::echo();
    eventually("all its threads have started", || server.holds().1 == 5);
    let before = server.holds();
    let (over, blocks) = (AtomicBool::new(false), AtomicUsize::new(0));
    let sessions: Vec<TcpStream> = (0..SESSIONS)
        .map(|n| server.tunnel((n % 2 == 0).then_some("alice"), target.addr))
        .collect();
    thread::scope(|scope| {
        let raise = Raise(&over);
        for (mut session, seed) in sessions.into_iter().zip(1..) {
            let (over, blocks) = (&over, &blocks);
            scope.spawn(move || {
                session.set_read_timeout(Some(4 * SOON)).unwrap();
                let mut random = Random::of(seed);
                while !over.load(Ordering::SeqCst) {
                    let block: Vec<u8> =
                        (0..BLOCK / 8).flat_map(|_| random.next().to_ne_bytes()).collect();
                    session.write_all(&block).unwrap();
                    assert!(read(&mut session, BLOCK) == block, "session {seed}");
                    blocks.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(50));
                }
                session.shutdown(Shutdown::Write).unwrap();
                assert_eq!(read_to_end(&mut session), b"");
            });
        }
        for n in 0..RELOADS {
            // Every other time with something new, and now and then with something wrong.
            let more = format!("deny port {}\n", n + 1);
            let text = if n % 2 == 0 { rules.to_owned() } else { more + rules };
            write(&server.rules, &text);
            write(&server.users, &(users.clone() + &user(&format!("user{n}"), "")));
            if n % 10 == 9 {
                write(&server.rules, "alow\n");
                server.reload(1);
            } else {
                server.reload(0);
            }
        }
        drop(raise);
    });
    let blocks = blocks.into_inner();
    assert!(blocks > SESSIONS, "{blocks} blocks passed");
    let closed = server.log_lines(&["event=close"], SESSIONS);
    assert_eq!(closed.len(), SESSIONS);
    let octets = |key| -> usize {
        closed.iter().map(|line| field(line, key).parse::<usize>().unwrap()).sum()
    };
    assert_eq!((octets("up"), octets("down")), (blocks * BLOCK, blocks * BLOCK));
    assert!(closed.iter().all(|line| field(line, "reason") == "client"));
    server.log_lines(&["event=reload "], RELOADS - RELOADS / 10);
    eventually("descriptors are closed", || server.holds().0 == before.0);
    // Threads without work stay a little.
    let mut patience = 80;
    while server.holds() != before {
        patience -= 1;
        assert!(patience > 0, "it held {before:?} and holds {:?}", server.holds());
        thread::sleep(Duration::from_millis(250));
    }
}

#[test]
fn no_session_slips_through_a_strict_reload_while_it_begins() {
    const THREADS: u8 = 8;
    let server = Reloaded::start("deny\n", "", &["--strict-reload"]);
    let target = Target::echo();
    let mut through = 0;
    for round in 0..10 {
        server.rule("allow to all\n");
        let over = AtomicBool::new(false);
        let kept: Vec<TcpStream> = thread::scope(|scope| {
            let raise = Raise(&over);
            let threads: Vec<_> = (1..=THREADS)
                .map(|from| {
                    let (server, over, target) = (&server, &over, target.addr);
                    scope.spawn(move || {
                        let mut kept = Vec::new();
                        while !over.load(Ordering::SeqCst) && kept.len() < 20 {
                            let mut client =
                                connect_from(Ipv4Addr::new(127, 0, 0, from), server.addr);
                            let octets = [HELLO, &request5(1, target)].concat();
                            client.write_all(&octets).unwrap();
                            if read(&mut client, 2) == [5, 0] && reply5(&mut client).0 == 0 {
                                kept.push(client);
                            }
                        }
                        kept
                    })
                })
                .collect();
            thread::sleep(Duration::from_millis(3 * round));
            server.rule("deny\n");
            drop(raise);
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        through += kept.len();
        for mut session in kept {
            assert_ends_silently(&mut session, SOON);
        }
    }
    assert!(through > 50, "{through}");
}
