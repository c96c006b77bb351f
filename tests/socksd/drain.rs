//! How a server ends: what goes on, who is still served, when it is over, and how another one takes
//! its place.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::netns::isolated;
use crate::common::udp::{self, Association};
use crate::common::*;
use socksd::wire::NO_ADDRESS;

const ADDR: &str = "127.0.0.1:1080";

/// A server at the one address of these tests, which are in networks of their own.
fn at_addr(args: &[&str]) -> Server {
    let always = ["--rule", "allow to all", "--listen", ADDR];
    Server::spawn(Command::new(SOCKSD).args(always).args(args))
}

/// Has the server end, and waits until it tells so.
fn stop(server: &Server) -> String {
    server.signal("TERM");
    server.log_line(&["event=stopping ", "signal=TERM"])
}

fn assert_flows(tunnel: &mut TcpStream) {
    tunnel.write_all(b"ping").unwrap();
    assert_eq!(read(tunnel, 4), b"ping");
}

fn assert_refused(addr: SocketAddr) {
    assert_eq!(TcpStream::connect(addr).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

/// Random octets, the same for the same seed.
fn octets(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::of(seed);
    (0..len / 8).flat_map(|_| random.next().to_ne_bytes()).collect()
}

/// Waits for the server to end; returns how long that took from `begun`.
fn ended(server: &mut Server, begun: Instant) -> Duration {
    assert_eq!(server.wait(), Some(0));
    begun.elapsed()
}

/// Within what something happens that is to happen at once, on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(900);

#[test]
fn a_hundred_transfers_survive_term_while_another_server_has_the_port() {
    const LEN: usize = 1_000_000;
    isolated(|| {
        // Sends what belongs to the octet that it gets.
        let source = Target::on("127.0.0.1", |mut stream| {
            let seed = read(&mut stream, 1)[0];
            stream.set_write_timeout(Some(4 * SOON)).unwrap();
            stream.write_all(&octets(seed.into(), LEN)).unwrap();
        });
        let echo = Target::echo();
        let mut server = at_addr(&["--drain", "60"]);
        let (half, over) = (Barrier::new(101), Barrier::new(101));
        let mut second = None;
        thread::scope(|scope| {
            for seed in 1..=50 {
                let (half, over, server) = (&half, &over, &server);
                let (source, echo) = (source.addr, echo.addr);
                // One way, of which the source still has a part.
                scope.spawn(move || {
                    let mut tunnel = tunnel(server, source);
                    tunnel.set_read_timeout(Some(4 * SOON)).unwrap();
                    tunnel.write_all(&[seed]).unwrap();
                    let mut got = read(&mut tunnel, LEN / 4);
                    half.wait();
                    over.wait();
                    got.extend(read_to_end(&mut tunnel));
                    assert!(got == octets(seed.into(), LEN), "{seed}");
                });
                // Both ways, block after block, and a half-close.
                scope.spawn(move || {
                    let mut tunnel = tunnel(server, echo);
                    tunnel.set_read_timeout(Some(4 * SOON)).unwrap();
                    for block in 0..40 {
                        if block == 10 {
                            half.wait();
                            over.wait();
                        }
                        let block = octets(u64::from(seed) << 8 | block, 8_000);
                        tunnel.write_all(&block).unwrap();
                        assert!(read(&mut tunnel, block.len()) == block, "{seed}");
                    }
                    tunnel.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(read_to_end(&mut tunnel), b"");
                });
            }
            half.wait();
            let line = stop(&server);
            assert_eq!(field(&line, "sessions"), "100");
            assert_refused(server.addr);
            let other = at_addr(&[]);
            assert_flows(&mut tunnel(&other, echo.addr));
            second = Some(other);
            over.wait();
        });
        assert_eq!(server.wait(), Some(0));
        let closed = server.log_lines(&["event=close "], 100);
        assert_eq!(closed.len(), 100);
        for line in &closed {
            assert!(["client", "target"].contains(&field(line, "reason")), "{line}");
        }
        let sum = |key| -> usize {
            closed.iter().map(|line| field(line, key).parse::<usize>().unwrap()).sum()
        };
        assert_eq!([sum("up"), sum("down")], [50 + 50 * 320_000, 50 * LEN + 50 * 320_000]);
        assert_flows(&mut tunnel(&second.unwrap(), echo.addr));
    });
}

#[test]
fn what_is_left_when_the_drain_is_over_ends_with_a_line() {
    let target = Target::echo();
    let mut server = Server::open(&["--drain", "1"]);
    let mut tunnels: Vec<TcpStream> = (0..50).map(|_| tunnel(&server, target.addr)).collect();
    let short = tunnels.split_off(40);
    let begun = Instant::now();
    stop(&server);
    tunnels.iter_mut().for_each(assert_flows);
    drop(short);
    let took = ended(&mut server, begun);
    assert!(took > Duration::from_secs(1) && took < Duration::from_millis(2_500), "{took:?}");
    assert_eq!(server.log_lines(&["event=close ", "reason=stopped"], 40).len(), 40);
    assert_eq!(server.log_lines(&["event=close ", "reason=client"], 10).len(), 10);
    // An ordinary end on both sides: nothing of what has come is lost.
    for mut tunnel in tunnels {
        assert_eq!(read_to_end(&mut tunnel), b"");
    }
}

/// A server with a session in each state, and the clients.
struct Busy {
    server: Server,
    tunnel: TcpStream,
    association: Association,
    /// One that waits, and where its peer is to come.
    bind: (TcpStream, SocketAddr),
    /// Clients that have sent nothing, a greeting, and half a request of version 4.
    half_open: [TcpStream; 3],
}

impl Busy {
    fn start(args: &[&str]) -> Self {
        let server = Server::open(args);
        let tunnel = tunnel(&server, Target::echo().addr);
        let association = Association::open(&server);
        let mut client = server.sent(&[HELLO, &request5(2, NO_ADDRESS)].concat());
        read(&mut client, 2);
        let (rep, bnd) = reply5(&mut client);
        assert_eq!(rep, 0);
        let half_open = [&b""[..], HELLO, &[4, 1]].map(|octets| server.sent(octets));
        let mut greeted = &half_open[1];
        greeted.read_exact(&mut [0; 2]).unwrap();
        let busy = Self { server, tunnel, association, bind: (client, bnd), half_open };
        busy.server.signal("USR1");
        busy.server.log_line(&["event=status ", " sessions=6 half_open=3 "]);
        busy
    }
}

#[test]
fn sessions_in_every_state_go_on_when_term_comes() {
    let target = Target::echo();
    let echo = udp::echo_on("127.0.0.1");
    let Busy { mut server, mut tunnel, association, bind, half_open } =
        Busy::start(&["--handshake-timeout", "2"]);
    let line = stop(&server);
    assert_eq!(field(&line, "sessions"), "6");
    assert_refused(server.addr);
    assert_flows(&mut tunnel);
    association.send(echo, b"ping");
    assert_eq!(association.receive(), b"ping");
    let (mut client, bnd) = bind;
    let mut peer = connect(bnd);
    assert_eq!(reply5(&mut client), (0, peer.local_addr().unwrap()));
    peer.write_all(b"ping").unwrap();
    assert_eq!(read(&mut client, 4), b"ping");
    let [mut silent, mut greeted, mut four] = half_open;
    greeted.write_all(&request5(1, target.addr)).unwrap();
    assert_eq!(reply5(&mut greeted).0, 0);
    assert_flows(&mut greeted);
    four.write_all(&request4(1, target.addr, b"")[2..]).unwrap();
    assert_eq!(reply4(&mut four).0, 90);
    assert_flows(&mut four);
    // The one that stays silent has the time of any handshake, and no more.
    assert_eq!(read_to_end(&mut silent), b"");
    server.log_line(&["event=refuse ", " reason=timeout "]);
    drop((tunnel, client, peer, greeted, four));
    association.send(echo, b"pong");
    assert_eq!(association.receive(), b"pong");
    let begun = Instant::now();
    drop(association);
    assert!(ended(&mut server, begun) < AT_ONCE, "it ends with its last session");
    let closed = server.log_lines(&["event=close "], 5);
    assert_eq!(closed.len(), 5);
    assert!(!closed.iter().any(|line| line.contains("reason=stopped")));
}

/// Asserts that a server with a session in each state ends at once, and tells of each.
fn assert_all_stopped(mut busy: Busy, begun: Instant) {
    let took = ended(&mut busy.server, begun);
    assert!(took < AT_ONCE, "{took:?}");
    let closed = busy.server.log_lines(&["event=close ", "reason=stopped"], 6);
    assert_eq!(closed.len(), 6);
    for command in ["connect", "udp", "bind"] {
        assert!(closed.iter().any(|line| field(line, "command") == command), "{command}");
    }
    assert_eq!(read_to_end(&mut busy.tunnel), b"");
    assert_eq!(read_to_end(&mut busy.association.control), b"");
    assert_eq!(read_to_end(&mut busy.bind.0), b"", "no second reply");
    for client in &mut busy.half_open {
        assert_ends_silently(client, SOON);
    }
}

#[test]
fn a_second_signal_ends_sessions_in_every_state_at_once() {
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM"), ("TERM", "INT")] {
        let busy = Busy::start(&[]);
        busy.server.signal(first);
        busy.server.log_line(&["event=stopping ", &format!("signal={first}")]);
        let begun = Instant::now();
        busy.server.signal(second);
        assert_all_stopped(busy, begun);
    }
}

#[test]
fn a_drain_of_no_seconds_ends_sessions_in_every_state_at_once() {
    let busy = Busy::start(&["--drain", "0"]);
    let begun = Instant::now();
    stop(&busy.server);
    assert_all_stopped(busy, begun);
}

#[test]
fn a_session_that_waits_for_identd_does_not_hold_up_the_end() {
    for (drain, signals) in [("0", 1), ("30", 2)] {
        // Connections to it are made, and that is all.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port().to_string();
        let rule = "allow ident to all";
        let mut server = Server::start(&["--rule", rule, "--ident-port", &port, "--drain", drain]);
        let mut client = server.sent(&request4(1, NO_ADDRESS, b"alice"));
        let _asked = silent.accept().unwrap();
        let begun = Instant::now();
        stop(&server);
        if signals == 2 {
            server.signal("TERM");
        }
        let took = ended(&mut server, begun);
        assert!(took < AT_ONCE, "{took:?}");
        server.log_line(&["event=close ", "reason=stopped"]);
        assert_ends_silently(&mut client, SOON);
    }
}

#[test]
fn a_server_without_sessions_ends_at_once() {
    for drain in ["0", "30"] {
        let mut server = Server::open(&["--drain", drain]);
        let begun = Instant::now();
        stop(&server);
        assert!(ended(&mut server, begun) < AT_ONCE);
    }
}

#[test]
fn clients_in_the_backlog_are_served_all_the_same() {
    let target = Target::echo();
    let path = std::env::temp_dir().join(format!("socksd-drain-{}", std::process::id()));
    let path = path.to_str().unwrap();
    let mut server =
        Server::open(&["--listen", &format!("unix:{path}"), "--max-half-open", "4000"]);
    // Signals and clients wait while it is stopped.
    server.signal("STOP");
    let request = [HELLO, &request5(1, target.addr), b"ping"].concat();
    let mut clients: Vec<TcpStream> = (0..200)
        .map(|n| match n % 4 {
            0 => TcpStream::from(OwnedFd::from(UnixStream::connect(path).unwrap())),
            _ => server.connect(),
        })
        .collect();
    // Some of them send later.
    for client in clients.iter_mut().step_by(2) {
        client.write_all(&request).unwrap();
    }
    server.signal("TERM");
    server.signal("CONT");
    let line = server.log_line(&["event=stopping "]);
    assert!(field(&line, "sessions").parse::<usize>().unwrap() <= 200);
    assert_refused(server.addr);
    assert!(!fs::exists(path).unwrap());
    for client in clients.iter_mut().skip(1).step_by(2) {
        client.write_all(&request).unwrap();
    }
    for client in &mut clients {
        client.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(read(client, 2), [5, 0]);
        assert_eq!(reply5(client).0, 0);
        assert_eq!(read(client, 4), b"ping");
    }
    drop(clients);
    assert_eq!(server.wait(), Some(0));
    assert_eq!(server.log_lines(&["event=close ", "reason=client"], 200).len(), 200);
}

#[test]
fn exit_when_idle_ends_a_server_with_a_listener_of_its_own_and_never_a_session() {
    let target = Target::echo();
    let begun = Instant::now();
    let mut server = Server::open(&["--exit-when-idle", "1"]);
    let unused = ended(&mut server, begun);
    assert!(unused > Duration::from_millis(950) && unused < Duration::from_secs(3), "{unused:?}");
    server.log_line(&["event=idle ", "sessions=0"]);
    assert_refused(server.addr);

    let mut server = Server::open(&["--exit-when-idle", "1"]);
    let mut running = tunnel(&server, target.addr);
    thread::sleep(Duration::from_millis(1_700));
    assert_flows(&mut running);
    // Counted from the end of the last session, not of any.
    assert_flows(&mut tunnel(&server, target.addr));
    drop(running);
    thread::sleep(Duration::from_millis(600));
    let half_open = server.connect();
    thread::sleep(Duration::from_millis(1_200));
    assert_flows(&mut tunnel(&server, target.addr));
    let begun = Instant::now();
    drop(half_open);
    let took = ended(&mut server, begun);
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(3), "{took:?}");
    assert_eq!(server.log_lines(&["event=close "], 4).len(), 4);
}

#[test]
fn a_signal_ends_a_server_that_may_be_idle_for_long() {
    let mut server = Server::open(&["--exit-when-idle", "3600"]);
    let begun = Instant::now();
    stop(&server);
    assert!(ended(&mut server, begun) < AT_ONCE);
}

/// Sessions one after the other until `over`, each of which has to succeed.
fn sessions(over: &AtomicBool, done: &AtomicUsize, seed: u64, target: SocketAddr) {
    let mut random = Random::of(seed);
    let addr = ADDR.parse().unwrap();
    while !over.load(Ordering::SeqCst) {
        let block = octets(random.next(), 8 * random.below(2_000));
        let mut client = connect(addr);
        client.write_all(&[HELLO, &request5(1, target)].concat()).unwrap();
        assert_eq!(read(&mut client, 2), [5, 0]);
        assert_eq!(reply5(&mut client).0, 0);
        client.write_all(&block).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert!(read_to_end(&mut client) == block);
        done.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn servers_that_reuse_a_port_share_its_clients_and_restart_in_turn_without_a_failure() {
    isolated(|| {
        let target = Target::echo();
        let start = || at_addr(&["--reuse-port"]);
        let mut servers = vec![start(), start()];
        let closed = |server: &Server| {
            server.log().iter().filter(|line| line.contains("event=close ")).count()
        };
        (0..200).for_each(|_| assert_flows(&mut tunnel(&servers[0], target.addr)));
        let count = || -> usize { servers.iter().map(closed).sum() };
        eventually("all have ended", || count() == 200);
        let share = closed(&servers[0]);
        assert!((40..=160).contains(&share), "{share} of 200");

        let (over, done) = (AtomicBool::new(false), AtomicUsize::new(0));
        let mut old = Vec::new();
        thread::scope(|scope| {
            let _raise = Raise(&over);
            for seed in 1..=8 {
                let (over, done, target) = (&over, &done, target.addr);
                scope.spawn(move || sessions(over, done, seed, target));
            }
            for _ in 0..20 {
                servers.push(start());
                let before = done.load(Ordering::SeqCst);
                eventually("sessions go on", || done.load(Ordering::SeqCst) > before + 20);
                let first = servers.remove(0);
                stop(&first);
                old.push(first);
            }
        });
        let done = done.into_inner();
        assert!(done > 400, "{done} sessions");
        for server in &mut old {
            assert_eq!(server.wait(), Some(0));
        }
        let all = || old.iter().chain(&servers);
        eventually("all have ended", || all().map(closed).sum::<usize>() == 200 + done);
        assert!(!all().any(|server| server.log().iter().any(|line| line.contains("refuse"))));
    });
}

#[test]
fn a_port_that_is_not_shared_is_not_to_be_had_twice() {
    let server = Server::open(&["--reuse-port"]);
    let second =
        Command::new(SOCKSD).args(["--listen", &server.addr.to_string()]).output().unwrap();
    assert_eq!(second.status.code(), Some(111));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("cannot listen on ") && said.contains("in use"), "{said}");
}

#[test]
fn a_report_counts_hundreds_of_sessions_and_their_octets_so_far() {
    const TUNNELS: usize = 300;
    // Answers each octet with as many as it says.
    let target = Target::on("127.0.0.1", |mut stream| {
        let mut octet = [0];
        while stream.read_exact(&mut octet).is_ok() {
            stream.write_all(&vec![7; usize::from(octet[0])]).unwrap();
        }
    });
    let echo = udp::echo_on("127.0.0.1");
    let args = ["--max-per-client", "320", "--max-half-open", "40"];
    let log = TempFile::new("");
    let server = Server::logging_to(&log, &args);
    let mut tunnels: Vec<TcpStream> = (0..TUNNELS).map(|_| tunnel(&server, target.addr)).collect();
    let association = Association::open(&server);
    let half_open: Vec<TcpStream> = (0..10).map(|_| server.sent(&[5])).collect();
    for mut refused in (0..3).map(|_| server.connect()) {
        assert_ends_silently(&mut refused, SOON);
    }
    let mut expected = vec![[0, 0]; TUNNELS];
    for round in 1..=2 {
        for (n, client) in tunnels.iter_mut().enumerate() {
            let each = u8::try_from(n % 200).unwrap();
            client.write_all(&[each, 1]).unwrap();
            read(client, usize::from(each) + 1);
            expected[n][0] += 2;
            expected[n][1] += usize::from(each) + 1;
        }
        association.send(echo, b"12345");
        assert_eq!(association.receive(), b"12345");
        server.signal("USR1");
        let reports = server.log_lines(&["event=session "], round * (TUNNELS + 1));
        let lines = &reports[(round - 1) * (TUNNELS + 1)..];
        assert_eq!(lines.len(), TUNNELS + 1, "the half-open relay nothing");
        let number = |line: &String| field(line, "session").parse::<usize>().unwrap();
        assert!(lines.iter().map(number).eq(1..=TUNNELS + 1));
        let octets =
            |line, keys: [&str; 2]| keys.map(|key| field(line, key).parse::<usize>().unwrap());
        for (n, line) in lines[..TUNNELS].iter().enumerate() {
            let client = format!(" client={} ", tunnels[n].local_addr().unwrap());
            let dst = format!(" dst={} ", target.addr);
            for told in [&client[..], &dst, " command=connect ", " version=5 ", " reply=00 "] {
                assert!(line.contains(told), "{told} in {line}");
            }
            assert_eq!(octets(line, ["up", "down"]), expected[n], "{line}");
        }
        let last = &lines[TUNNELS];
        assert_eq!(field(last, "command"), "udp");
        assert_eq!(octets(last, ["up", "down"]), [5 * round, 5 * round], "{last}");

        let status = server.log_lines(&["event=status "], round).remove(round - 1);
        for (key, value) in [
            ("sessions", TUNNELS + 11),
            ("half_open", 10),
            ("accepted", TUNNELS + 11),
            ("refused_half_open", 3),
            ("refused_per_client", 0),
            ("refused_sessions", 0),
            ("refused_early_drop", 0),
            ("refused_auth_penalty", 0),
            ("refused_threads", 0),
            ("names", 0),
        ] {
            assert_eq!(field(&status, key), value.to_string(), "{key} in {status}");
        }
        let (descriptors, threads) = server.holds();
        assert_eq!(field(&status, "threads"), threads.to_string());
        // Counting them takes one.
        assert_eq!(field(&status, "descriptors"), (descriptors + 1).to_string());
        assert!(field(&status, "uptime").parse::<u64>().unwrap() < 60);
    }
    drop((tunnels, half_open));
    server.log_lines(&["event=close ", " command=connect "], TUNNELS);
    eventually("the half-open have ended", || {
        server.log().iter().filter(|line| line.contains("command=- ")).count() == 10
    });
    server.signal("USR1");
    let status = server.log_lines(&["event=status "], 3).remove(2);
    assert_eq!([field(&status, "sessions"), field(&status, "half_open")], ["1", "0"]);
    assert_eq!(field(&status, "accepted"), (TUNNELS + 11).to_string());
    server.log_lines(&["event=session "], 2 * (TUNNELS + 1) + 1);
}

#[test]
fn a_report_comes_while_sessions_drain() {
    let mut server = Server::open(&[]);
    let mut tunnel = tunnel(&server, Target::echo().addr);
    stop(&server);
    server.signal("USR1");
    server.log_line(&["event=status ", " sessions=1 "]);
    server.log_line(&["event=session ", " command=connect "]);
    assert_flows(&mut tunnel);
    drop(tunnel);
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn signals_during_a_reload_are_neither_lost_nor_wait_for_sessions() {
    // Enough that reading them takes a while.
    let rules: String = (1..20_000_u32)
        .map(|n| format!("deny to 10.{}.{}.0/24 port {n}\n", n >> 8 & 255, n & 255))
        .collect();
    let rules = TempFile::new(&format!("{rules}allow to all\n"));
    let mut server = Server::start(&["--rules", rules.path()]);
    let target = Target::echo();
    let mut running = tunnel(&server, target.addr);
    for round in 1..=10 {
        server.signal("HUP");
        server.signal("USR1");
        server.log_lines(&["event=status "], round);
        server.log_lines(&["event=session "], round);
        assert_flows(&mut running);
    }
    // Those that come together may be one.
    for name in ["HUP", "HUP", "HUP", "USR1", "TERM", "HUP", "USR1"] {
        server.signal(name);
    }
    server.log_line(&["event=stopping ", " sessions=1"]);
    server.log_lines(&["event=status "], 11);
    // And while sessions end there are reloads.
    let reloads = || server.log().iter().filter(|line| line.contains("event=reload ")).count();
    fs::write(&rules.0, "allow to all\n").unwrap();
    let before = reloads();
    server.signal("HUP");
    eventually("it reloads", || reloads() > before);
    fs::write(&rules.0, "alow\n").unwrap();
    server.signal("HUP");
    server.log_line(&["event=reload-failed "]);
    assert_flows(&mut running);
    server.signal("HUP");
    server.signal("INT");
    let begun = Instant::now();
    assert!(ended(&mut server, begun) < 2 * AT_ONCE);
    server.log_line(&["event=close ", "reason=stopped"]);
}

/// A server under inetd that has `fd` for descriptor 0.
fn under_inetd(fd: impl Into<OwnedFd>) -> Child {
    let args = ["--inetd", "--rule=allow to all", "--drain", "1"];
    let mut command = Command::new(SOCKSD);
    command.args(args).stdin(fd.into()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Waits for the exit status of a program that ends soon.
fn status(child: &mut Child) -> Option<i32> {
    let mut status = None;
    eventually("the program ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap().code()
}

#[test]
fn servers_that_share_an_inherited_socket_all_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (addr, target) = (listener.local_addr().unwrap(), Target::echo());
    let mut servers: Vec<Child> =
        (0..3).map(|_| under_inetd(listener.try_clone().unwrap())).collect();
    for _ in 0..40 {
        let mut client = connect(addr);
        client.write_all(&[HELLO, &request5(1, target.addr), b"x"].concat()).unwrap();
        assert_eq!(read(&mut client, 2), [5, 0]);
        assert_eq!(reply5(&mut client).0, 0);
        assert_eq!(read(&mut client, 1), b"x");
    }
    for server in &servers {
        let kill = Command::new("kill").arg(server.id().to_string()).status().unwrap();
        assert!(kill.success());
    }
    for server in &mut servers {
        assert_eq!(status(server), Some(0));
    }
}

#[test]
fn a_full_table_of_descriptors_at_an_inherited_socket_does_not_hold_up_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut server = under_inetd(listener.try_clone().unwrap());
    let mut first = connect(addr);
    first.write_all(HELLO).unwrap();
    assert_eq!(read(&mut first, 2), [5, 0]);
    // As another process that has the socket may do.
    listener.set_nonblocking(false).unwrap();
    let pid = server.id().to_string();
    let used = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let limit = format!("--nofile={}", used + 4);
    assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    let clients: Vec<_> = (0..30).map(|_| connect(addr)).collect();
    let mut last = connect(addr);
    assert_ends_silently(&mut last, SOON);
    assert!(Command::new("kill").arg(&pid).status().unwrap().success());
    assert_eq!(status(&mut server), Some(0));
    drop(clients);
}

#[test]
fn a_client_that_is_gone_before_the_server_starts_is_no_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for reset in [true, false] {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        if reset {
            socksd::sys::set_linger_zero(&client).unwrap();
        }
        drop(client);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(status(&mut under_inetd(accepted)), Some(0), "reset: {reset}");
    }
}

/// A path for a socket or a file, removed when it is dropped.
fn path() -> TempFile {
    let file = TempFile::new("");
    fs::remove_file(&file.0).unwrap();
    file
}

#[test]
fn the_socket_of_another_server_at_the_same_path_stays() {
    let (own, aside) = (path(), path());
    let place = format!("unix:{}", own.path());
    let mut first = Server::start(&["--listen", &place]);
    fs::rename(&own.0, &aside.0).unwrap();
    let mut second = Server::start(&["--listen", &place]);
    first.signal("TERM");
    assert_eq!(first.wait(), Some(0));
    UnixStream::connect(&own.0).unwrap();
    second.signal("TERM");
    assert_eq!(second.wait(), Some(0));
    assert!(!own.0.exists());
}

#[test]
fn a_socket_whose_owner_accepts_nobody_is_in_use_all_the_same() {
    let own = path();
    let stuck = UnixListener::bind(&own.0).unwrap();
    socksd::sys::listen(&stuck, 0).unwrap();
    let _waits = UnixStream::connect(&own.0).unwrap();
    let place = format!("unix:{}", own.path());
    let mut server = Command::new(SOCKSD);
    server.args(["--listen", &place]).stdin(Stdio::null()).stderr(Stdio::null());
    assert_eq!(status(&mut server.spawn().unwrap()), Some(111));
    assert!(own.0.exists());
}

#[test]
fn a_pid_file_that_has_become_a_fifo_keeps_nobody_waiting() {
    let pid_file = path();
    let mut server = Server::start(&["--pid-file", pid_file.path()]);
    fs::remove_file(&pid_file.0).unwrap();
    assert!(Command::new("mkfifo").arg(&pid_file.0).status().unwrap().success());
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    assert!(pid_file.0.exists());
}
