//! Limits: of sessions, descriptors, time and memory; and what the server stands on, its log and
//! its listeners, when that fails.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::netns::isolated;
use crate::common::udp::{self, Association};
use crate::common::{
    HELLO, SOCKSD, SOON, Server, Target, TempFile, assert_ends_silently, connect, connect_from,
    eventually, field, is_root, listens_at, read, read_to_end, refusing_port, reply4, reply5,
    request4, request4a, request5, request5_name, tunnel,
};

const OTHER_CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Opens a tunnel through the server at `proxy` and passes something through it.
fn echo_through(proxy: SocketAddr, target: SocketAddr) -> TcpStream {
    let mut client = connect(proxy);
    client.write_all(&[HELLO, &request5(1, target)].concat()).unwrap();
    assert_eq!(read(&mut client, 2), [5, 0]);
    assert_eq!(reply5(&mut client).0, 0);
    echo(&mut client);
    client
}

fn echo(tunnel: &mut TcpStream) {
    tunnel.write_all(b"ping").unwrap();
    assert_eq!(read(tunnel, 4), b"ping");
}

/// Whether the server takes on a client.
fn serves(mut client: TcpStream) -> bool {
    let mut selection = [0; 2];
    client.write_all(HELLO).is_ok() && client.read_exact(&mut selection).is_ok()
}

#[test]
fn max_sessions_refuses_at_accept_and_slots_come_back() {
    let target = Target::echo();
    let server = Server::open(&["--max-sessions", "3"]);
    let mut tunnels: Vec<_> = (0..3).map(|_| tunnel(&server, target.addr)).collect();
    assert_ends_silently(&mut server.connect(), SOON);
    let line = server.log_line(&["event=refuse", "reason=limit", "limit=sessions"]);
    assert!(field(&line, "client").starts_with("127.0.0.1:"), "{line}");
    tunnels.iter_mut().for_each(echo);

    drop(tunnels.pop());
    eventually("the slot is free again", || serves(server.connect()));
    drop(tunnels);
    eventually("all slots are free again", || {
        let clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
        clients.into_iter().all(serves)
    });
}

#[test]
fn max_per_client_counts_each_source_address_by_itself() {
    let target = Target::echo();
    let server = Server::open(&["--max-per-client", "2"]);
    let mut tunnels: Vec<_> = (0..2).map(|_| tunnel(&server, target.addr)).collect();
    assert_ends_silently(&mut server.connect(), SOON);
    server.log_line(&["event=refuse", "client=127.0.0.1:", "reason=limit", "limit=per-client"]);
    // Kept open, so that they take up slots.
    let others: Vec<_> = (0..2).map(|_| connect_from(OTHER_CLIENT, server.addr)).collect();
    for mut other in &others {
        other.write_all(HELLO).unwrap();
        other.read_exact(&mut [0; 2]).unwrap();
    }
    assert_ends_silently(&mut connect_from(OTHER_CLIENT, server.addr), SOON);
    tunnels.iter_mut().for_each(echo);

    drop(tunnels);
    eventually("the slots are free again", || serves(server.connect()));
    assert_ends_silently(&mut connect_from(OTHER_CLIENT, server.addr), SOON);
}

#[test]
fn the_half_open_have_a_cap_that_a_complete_handshake_leaves() {
    let target = Target::echo();
    let server = Server::open(&["--max-half-open", "4", "--handshake-timeout", "2"]);
    let from = |last| connect_from(Ipv4Addr::new(127, 0, 0, last), server.addr);
    // One each is a quarter; those whose handshake is complete do not count.
    let mut tunnels: Vec<_> = (0..6).map(|_| tunnel(&server, target.addr)).collect();
    let begun = Instant::now();
    let silent: Vec<_> = (2..6).map(from).collect();
    assert_ends_silently(&mut from(2), SOON);
    assert_ends_silently(&mut server.connect(), SOON);
    let line = server.log_line(&["event=refuse", "reason=limit", "limit=half-open"]);
    assert!(field(&line, "client").starts_with("127.0.0."), "{line}");
    tunnels.iter_mut().for_each(echo);
    eventually("the silent are cut", || serves(server.connect()));
    assert!(begun.elapsed() > Duration::from_secs(1));
    drop(silent);
}

#[test]
fn a_flood_of_500_silent_clients_locks_nobody_else_out() {
    let target = Target::echo();
    for addresses in [1, 100] {
        let server = Server::open(&[]);
        let from = |n: usize| Ipv4Addr::new(127, 0, 1, u8::try_from(n % addresses).unwrap());
        let flood: Vec<_> = (0..500).map(|n| connect_from(from(n), server.addr)).collect();
        // The accept loop goes by order: it has seen the flood when it comes to these.
        for _ in 0..5 {
            echo_through(server.addr, target.addr);
        }
        assert_eq!(server.log().iter().any(|line| line.contains("reason=limit")), addresses == 1);
        drop(flood);
    }
}

#[test]
fn early_drop_refuses_some_new_clients_and_leaves_old_ones_alone() {
    let target = Target::echo();
    let server = Server::open(&["--max-sessions", "100", "--early-drop", "20-60"]);
    let mut tunnels: Vec<_> = (0..21).map(|_| tunnel(&server, target.addr)).collect();
    // Some are let in and some are not, until there are 60 per cent.
    let (mut refused, mut held) = (0, Vec::new());
    eventually("nobody is let in any more", || {
        let mut client = server.connect();
        let mut selection = [0; 2];
        match client.write_all(HELLO).and_then(|()| client.read_exact(&mut selection)) {
            Ok(()) => held.push(client),
            Err(_) => refused += 1,
        }
        tunnels.len() + held.len() == 60
    });
    assert!(refused > 0);
    for _ in 0..100 {
        assert_ends_silently(&mut server.connect(), SOON);
    }
    server.log_line(&["event=refuse", "reason=limit", "limit=early-drop"]);
    tunnels.iter_mut().for_each(echo);
    drop(tunnels);
    drop(held);
    eventually("there is room for all", || {
        let clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
        clients.into_iter().all(serves)
    });
}

#[test]
fn refusals_at_accept_are_logged_once_a_second_with_their_count() {
    let server = Server::open(&["--max-sessions", "1"]);
    let _holder = server.sent(HELLO);
    eventually("the slot is taken", || !serves(server.connect()));
    let counted = || -> (usize, usize) {
        let log = server.log();
        let lines: Vec<_> = log.iter().filter(|line| line.contains("reason=limit")).collect();
        let count = |line: &&String| field(line, "count").parse::<usize>().unwrap();
        (lines.len(), lines.iter().map(count).sum())
    };
    for _ in 0..100 {
        assert_ends_silently(&mut server.connect(), SOON);
    }
    // More of them until one is told of, and with it all before.
    eventually("all are counted", || {
        assert_ends_silently(&mut server.connect(), SOON);
        thread::sleep(Duration::from_millis(10));
        counted().1 > 100
    });
    let (lines, count) = counted();
    assert!(lines <= count / 10, "{lines} lines for {count} refusals");
}

/// Clock ticks, 10 ms each on every Linux, that the server has computed: proc_pid_stat(5).
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    // The state, field 3, is the first behind the name; utime and stime are 14 and 15.
    fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_full_table_of_descriptors_ends_neither_the_server_nor_its_sessions() {
    // So many that there are some for the client of the last association, but not for that.
    const DESCRIPTORS: usize = 258;
    let (target, echo_addr) = (Target::echo(), udp::echo_on("127.0.0.1"));
    let server = Server::spawn(Command::new("prlimit").args([
        &format!("--nofile={DESCRIPTORS}"),
        SOCKSD,
        "--rule=allow to all",
        "--listen",
        "127.0.0.1:0",
        // Nobody is to be turned away by chance.
        "--early-drop=100-100",
    ]));
    server.log_line(&["event=warning", "raise ulimit -n"]);
    let limits = server.log_line(&["event=limits"]);
    let kept: usize = field(&limits, "sessions").parse().unwrap();
    assert!((1..DESCRIPTORS / 2).contains(&kept), "{limits}");

    // Associations take more descriptors than sessions are counted with.
    let mut tunnel = tunnel(&server, target.addr);
    let mut associations = Vec::new();
    let rep = loop {
        match Association::over(server.connect()) {
            Ok(association) => associations.push(association),
            Err(rep) => break rep,
        }
        assert!(associations.len() < kept, "the caps are too low to fill the table");
    };
    assert_eq!(rep, 0x01);
    let mut clients = Vec::new();
    // The last association took more than is left now that it is gone.
    eventually("the table is full", || {
        let mut client = server.connect();
        client.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        let served = client.read(&mut [0]).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
        if served {
            clients.push(client);
        }
        // Nor is one served while that association is being undone.
        !served && server.holds().0 >= DESCRIPTORS - 1
    });
    server.log_line(&["event=error", "accept"]);
    // Those who come now are not left waiting.
    for _ in 0..3 {
        assert_ends_silently(&mut server.connect(), SOON);
    }
    let (begun, ticks) = (Instant::now(), cpu_ticks(server.pid()));
    // The claim is about time that passes.
    thread::sleep(Duration::from_secs(1));
    let ticks = cpu_ticks(server.pid()) - ticks;
    assert!(ticks < 10, "{ticks} ticks in {:?}: the server spins", begun.elapsed());
    echo(&mut tunnel);
    for association in &associations {
        association.send(echo_addr, b"ping");
        assert_eq!(association.receive(), b"ping");
    }

    drop((clients, associations));
    eventually("it serves again", || serves(server.connect()));
    echo_through(server.addr, target.addr);
    assert_eq!(server.log_lines(&["event=error"], 1).len(), 1, "trouble is told of once");
}

#[test]
fn the_soft_limit_of_descriptors_is_raised_to_what_the_sessions_need() {
    let server = Server::spawn(Command::new("prlimit").args([
        "--nofile=256:4096",
        SOCKSD,
        "--listen",
        "127.0.0.1:0",
    ]));
    let limits = server.log_line(&["event=limits"]);
    let sessions: usize = field(&limits, "sessions").parse().unwrap();
    assert!((257..2_048).contains(&sessions), "{limits}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[3..5], ["4096", "4096"]);
}

/// What ss(8) says of the timer of the connection `from`, `to`, without its parentheses.
fn timer(from: SocketAddr, to: SocketAddr) -> Option<String> {
    let filter = ["-tanoH", "src", &from.to_string(), "dst", &to.to_string()];
    let output = Command::new("ss").args(filter).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run ss (iproute2): {error}"));
    let said = String::from_utf8(output.stdout).unwrap();
    let (_, timer) = said.split_once("timer:(")?;
    Some(timer.split_once(')')?.0.to_string())
}

#[test]
fn a_dead_target_is_probed_for_behind_an_early_half_close() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::open(&[]);
    let client = tunnel(&server, listener.local_addr().unwrap());
    let (mut target, outward) = listener.accept().unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(target.read(&mut [0]).unwrap(), 0);
    let from = target.local_addr().unwrap();
    eventually("a timer", || timer(outward, from).is_some_and(|timer| timer.contains("keepalive")));
}

#[test]
fn a_dead_peer_is_probed_for_after_a_minute_on_both_sides_of_a_session() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::open(&[]);
    let mut client = tunnel(&server, listener.local_addr().unwrap());
    let (mut target, outward) = listener.accept().unwrap();
    // Beyond a short exchange.
    for _ in 0..8 {
        client.write_all(&[7]).unwrap();
        assert_eq!(read(&mut target, 1), [7]);
    }
    for (from, to) in
        [(server.addr, client.local_addr().unwrap()), (outward, target.local_addr().unwrap())]
    {
        eventually("probes are due", || {
            // keepalive, what is left, how many have been sent.
            timer(from, to).is_some_and(|timer| match *timer.split(',').collect::<Vec<_>>() {
                ["keepalive", left, "0"] => left == "1min" || !left.contains("min"),
                _ => false,
            })
        });
    }
}

#[test]
fn with_hardly_any_descriptors_the_server_keeps_one_session() {
    let target = Target::echo();
    let server = Server::spawn(
        Command::new("sh").args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\"", SOCKSD]).args([
            "--rule=allow to all",
            "--listen",
            "127.0.0.1:0",
        ]),
    );
    let limits = server.log_line(&["event=limits"]);
    assert_eq!(field(&limits, "sessions"), "1");
    echo_through(server.addr, target.addr);
    eventually("the slot is free again", || serves(server.connect()));
}

/// A server that says nothing, killed when it is dropped.
struct Unheard {
    child: Child,
    addr: SocketAddr,
}

impl Unheard {
    /// Runs a command that becomes a server once it is told where to listen, and waits for that.
    fn spawn(command: &mut Command) -> Self {
        let listen = ["--rule=allow to all", "--listen=127.0.0.1:0"];
        let child = command.args(listen).stdin(Stdio::null()).spawn().unwrap();
        let addr = listens_at(child.id());
        Self { child, addr }
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asserts that a server whose log goes nowhere does all else as ever.
fn assert_serves_unheard(command: &mut Command) {
    let target = Target::echo();
    let mut server = Unheard::spawn(command);
    let mut open = echo_through(server.addr, target.addr);
    for _ in 0..20 {
        echo_through(server.addr, target.addr);
        let mut garbage = connect(server.addr);
        garbage.write_all(b"G").unwrap();
        assert_ends_silently(&mut garbage, SOON);
    }
    echo(&mut open);
    assert!(server.child.try_wait().unwrap().is_none());
}

#[test]
fn sessions_are_served_with_standard_error_closed() {
    let closed = ["-c", "exec \"$0\" \"$@\" 2>&-", SOCKSD];
    assert_serves_unheard(Command::new("sh").args(closed));
}

#[test]
fn sessions_are_served_with_standard_error_full() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert_serves_unheard(Command::new(SOCKSD).stderr(full));
}

#[test]
fn sessions_are_served_with_the_log_file_full() {
    assert_serves_unheard(Command::new(SOCKSD).args(["--log", "/dev/full"]));
}

/// Becomes the server of its arguments, whose standard error is a terminal that nobody reads for as
/// long as the server lives.
const ON_A_STUCK_TERMINAL: &str = "
import os, sys
master, slave = os.openpty()
gone, here = os.pipe()
if os.fork() == 0:
    os.close(slave)
    os.close(here)
    os.read(gone, 1)
    os._exit(0)
os.close(master)
os.set_inheritable(here, True)
os.dup2(slave, 2)
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
fn sessions_are_served_with_a_terminal_for_a_log_that_nobody_reads() {
    let target = Target::echo();
    let python = ["-c", ON_A_STUCK_TERMINAL, SOCKSD, "-v"];
    let mut server = Unheard::spawn(Command::new("python3").args(python));
    let mut open = echo_through(server.addr, target.addr);
    for _ in 0..600 {
        echo_through(server.addr, target.addr);
    }
    echo(&mut open);
    assert!(server.child.try_wait().unwrap().is_none());
}

#[test]
fn a_terminal_that_cannot_be_opened_anew_is_logged_to_all_the_same() {
    // It outlives its terminal, whose end is but a SIGHUP: it is to end by itself.
    let command = format!("{SOCKSD} --exit-when-idle 1 --rule=\"allow to all\" -l 127.0.0.1:0");
    let script = format!(
        "mount --make-rprivate / && mount -t tmpfs none /proc && \
         exec script -qec '{command}' /dev/null 1>&2"
    );
    let namespaces: &[&str] = if is_root() { &["-m"] } else { &["-r", "-m"] };
    let server =
        Server::spawn(Command::new("unshare").args(namespaces).args(["sh", "-c", &script]));
    drop(tunnel(&server, Target::echo().addr));
    server.log_line(&["event=close", "reason=client"]);
}

#[test]
fn a_log_that_may_not_grow_ends_nothing() {
    const SIZE: u64 = 4_096;
    let file = TempFile::new("");
    let limit = format!("--fsize={SIZE}");
    assert_serves_unheard(Command::new("prlimit").args([
        &limit,
        SOCKSD,
        "-v",
        "--log",
        file.path(),
    ]));
    assert_eq!(fs::metadata(&file.0).unwrap().len(), SIZE, "the limit was never reached");
}

#[test]
fn a_log_goes_on_with_whole_lines_once_a_full_disk_has_room() {
    isolated(|| {
        // Hidden in here only, and nothing that a test needs is there.
        let disk = Path::new("/media");
        let mount = ["-t", "tmpfs", "-o", "size=24k", "tmpfs", disk.to_str().unwrap()];
        assert!(Command::new("mount").args(mount).status().unwrap().success());
        let (filler, log) = (disk.join("filler"), disk.join("log"));
        fs::write(&filler, [0; 16 * 1024]).unwrap();
        // There is room for less than a line.
        fs::write(&log, format!("time={:8150}\n", "before")).unwrap();
        let read_log = || fs::read_to_string(&log).unwrap();

        let target = Target::echo();
        let options = ["-v", "--log", log.to_str().unwrap()];
        let server = Unheard::spawn(Command::new(SOCKSD).args(options));
        let mut open = echo_through(server.addr, target.addr);
        eventually("the disk is full", || {
            echo_through(server.addr, target.addr);
            fs::metadata(&log).unwrap().len() == 8 * 1024
        });
        let full = read_log();
        assert!(!full.ends_with('\n'), "no line was torn");
        for _ in 0..20 {
            echo_through(server.addr, target.addr);
        }
        echo(&mut open);
        assert_eq!(read_log(), full);

        fs::remove_file(&filler).unwrap();
        eventually("it is told what is missing", || {
            echo_through(server.addr, target.addr);
            read_log().contains("event=log-dropped lines=")
        });
        let log = read_log();
        assert!(log.starts_with(&full), "what was there has changed");
        for line in log.lines() {
            // The torn one may have been torn before its first field was whole.
            assert!(line.starts_with("time=") || "time=".starts_with(line), "{line}");
            assert!(line.matches("time=").count() <= 1, "glued together: {line}");
        }
    });
}

#[test]
fn a_log_that_nobody_reads_holds_up_nothing_and_says_later_how_much_is_missing() {
    let target = Target::echo();
    let mut server = Unheard::spawn(Command::new(SOCKSD).stderr(Stdio::piped()));
    let mut open = echo_through(server.addr, target.addr);
    let mut refused = 0;
    let mut be_refused = || {
        let mut client = connect(server.addr);
        client.write_all(b"G").unwrap();
        assert_ends_silently(&mut client, SOON);
        refused += 1;
        refused
    };
    // More lines than the 64 KiB of a pipe hold.
    while be_refused() < 1_000 {}
    echo(&mut open);
    let mut another = echo_through(server.addr, target.addr);

    let stderr = BufReader::new(server.child.stderr.take().unwrap());
    let (tx, rx) = mpsc::channel();
    thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| tx.send(line)));
    let (mut lines, mut missing) = (0, 0);
    // What is missing is told of with the next line that can be written.
    eventually("every line is there or known to be missing", || {
        let refused = be_refused();
        while let Ok(line) = rx.recv_timeout(Duration::from_millis(100)) {
            if line.contains("event=log-dropped") {
                missing += field(&line, "lines").parse::<usize>().unwrap();
            }
            lines += usize::from(line.contains("event=refuse"));
        }
        lines + missing == refused
    });
    assert!(missing > 0, "the pipe was never full");
    echo(&mut open);
    echo(&mut another);
}

#[test]
fn a_log_file_is_added_to_and_is_for_its_owner_only() {
    let target = Target::echo();
    // Only its name is wanted: the server is to make it.
    let file = TempFile::new("");
    fs::remove_file(&file.0).unwrap();
    for count in [1, 2] {
        let server =
            Unheard::spawn(Command::new(SOCKSD).args(["--log", file.path()]).stderr(Stdio::null()));
        echo_through(server.addr, target.addr);
        let log = || fs::read_to_string(&file.0).unwrap();
        eventually("the session is logged", || log().matches("command=connect").count() == count);
        assert_eq!(log().matches("event=listening").count(), count);
        assert!(log().lines().all(|line| line.starts_with("time=")), "{}", log());
    }
    assert_eq!(fs::metadata(&file.0).unwrap().permissions().mode() & 0o777, 0o600);
}

/// Sends `begin`, then `a` every 300 ms if `drips`, until the server ends the connection; returns
/// after how long.
fn time_to_cut(server: &Server, begin: &[u8], drips: bool) -> Duration {
    let mut client = server.sent(begin);
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < SOON {
        match client.read(&mut [0; 16]) {
            Ok(0) => return begun.elapsed(),
            // A method selection.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Fails if the server was quicker; the next read tells.
                let _ = client.write_all(if drips { b"a" } else { b"" });
            }
            Err(_) => return begun.elapsed(),
        }
    }
    panic!("{begin:02x?}: not cut");
}

#[test]
fn sec_11_a_client_that_is_silent_or_drips_is_cut_at_the_handshake_timeout() {
    let server = Server::open(&["--handshake-timeout", "1"]);
    let cases: [(&[u8], bool); 12] = [
        (b"", false),
        (b"\x04", false),
        (b"\x04\x01\0\x50\x7f\0\0\x01user", false),
        (b"\x04\x01\0\x50\x7f\0\0\x01user", true),
        (b"\x04\x01\0\x50\0\0\0\x01user\0name", true),
        (b"\x05", false),
        (b"\x05\xff", true),
        (b"\x05\x01\0", false),
        (b"\x05\x01\0\x05\x01\0\x03", false),
        (b"\x05\x01\0\x05\x01\0\x03\xff", true),
        (b"\x05\x01\0\x05\x01\0\x04", true),
        (b"\x05\x01\0\x05\x01\0\x01\x7f\0\0\x01\0", false),
    ];
    thread::scope(|scope| {
        for (begin, drips) in cases {
            let server = &server;
            scope.spawn(move || {
                let took = time_to_cut(server, begin, drips);
                let limit = Duration::from_millis(900)..Duration::from_secs(2);
                assert!(limit.contains(&took), "{begin:02x?}, drips: {drips}: {took:?}");
            });
        }
    });
    server.log_lines(&["event=refuse", "reply=- ", "reason=timeout"], cases.len());
}

#[test]
fn sec_11_a_client_that_ignores_its_refusal_and_goes_on_is_cut_for_good() {
    let server = Server::open(&["--handshake-timeout", "1"]);
    let mut client = server.sent(b"\x04\x01\0\x50\x7f\0\0\x01");
    let begun = Instant::now();
    while client.write_all(b"a").is_ok() {
        assert!(begun.elapsed() < SOON, "not cut");
        thread::sleep(Duration::from_millis(100));
    }
    server.log_line(&["event=refuse", "reason=timeout"]);
}

/// One of many sessions, open.
enum Open {
    Connect(TcpStream),
    Bind(TcpStream, TcpStream),
    Associate(Association),
}

impl Open {
    /// Opens the kind of session whose turn it is.
    fn turn(server: &Server, n: u8, target: SocketAddr) -> Self {
        let mut client = server.connect();
        let v4 = |mut client: TcpStream, request: &[u8]| {
            client.write_all(request).unwrap();
            assert_eq!(reply4(&mut client).0, 90);
            Self::Connect(client)
        };
        let v5 = |client: &mut TcpStream, request: &[u8]| {
            client.write_all(&[HELLO, request].concat()).unwrap();
            assert_eq!(read(client, 2), [5, 0]);
            let (rep, bnd) = reply5(client);
            assert_eq!(rep, 0);
            bnd
        };
        match n % 6 {
            0 => v4(client, &request4(1, target, b"user")),
            1 => v4(client, &request4a(1, n, b"localhost", target.port(), b"")),
            2 => {
                v5(&mut client, &request5(1, target));
                Self::Connect(client)
            }
            3 => {
                v5(&mut client, &request5_name(1, b"localhost", target.port()));
                Self::Connect(client)
            }
            4 => {
                let peer = connect(v5(&mut client, &request5(2, target)));
                assert_eq!(reply5(&mut client).0, 0);
                Self::Bind(client, peer)
            }
            _ => Self::Associate(Association::over(client).unwrap()),
        }
    }

    /// Passes `data` through it, to an echo or to its own peer.
    fn pass(&mut self, data: &[u8], udp_echo: SocketAddr) {
        match self {
            Self::Connect(client) => {
                client.write_all(data).unwrap();
                assert!(read(client, data.len()) == data);
            }
            Self::Bind(client, peer) => {
                client.write_all(data).unwrap();
                assert!(read(peer, data.len()) == data);
            }
            Self::Associate(association) => {
                association.send(udp_echo, data);
                assert!(association.receive() == data);
            }
        }
    }
}

#[test]
fn real_18_sec_12_200_sessions_at_once_of_mixed_versions_are_served() {
    const SESSIONS: u8 = 200;
    let (target, udp_echo) = (Target::echo(), udp::echo_on("127.0.0.1"));
    let server = Server::open(&[]);
    thread::scope(|scope| {
        let (server, target) = (&server, target.addr);
        let opening: Vec<_> = (0..SESSIONS)
            .map(|n| scope.spawn(move || (n, Open::turn(server, n, target))))
            .collect();
        let all: Vec<_> = opening.into_iter().map(|thread| thread.join().unwrap()).collect();
        for (n, mut open) in all {
            scope.spawn(move || open.pass(&[n; 1_000], udp_echo));
        }
    });
    let closed = server.log_lines(&["event=close"], SESSIONS.into());
    assert_eq!(closed.len(), usize::from(SESSIONS));
}

/// KiB of memory the server has: proc_pid_status(5).
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

#[test]
fn sec_19_a_receiver_that_stops_reading_stops_the_sender() {
    const MIB: usize = 1024 * 1024;
    let server = Server::open(&[]);
    for (what, client_sends) in [("up", true), ("down", false)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = tunnel(&server, listener.local_addr().unwrap());
        let (target, _) = listener.accept().unwrap();
        target.set_read_timeout(Some(SOON)).unwrap();
        let (mut sender, mut receiver) =
            if client_sends { (client, target) } else { (target, client) };
        let before = memory(server.pid());
        sender.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let (chunk, mut sent) = (vec![0x55; MIB / 16], 0);
        let error = loop {
            match sender.write(&chunk) {
                Ok(len) => sent += len,
                Err(error) => break error,
            }
            assert!(sent < 64 * MIB, "{what}: the sender is never stopped");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let grown = memory(server.pid()).saturating_sub(before);
        assert!(grown < 4 * 1024, "{what}: {grown} KiB more memory for {sent} octets");
        // And once the receiver reads, all of it arrives.
        drop(sender);
        let received = io::copy(&mut receiver, &mut io::sink()).unwrap();
        assert_eq!(usize::try_from(received).unwrap(), sent, "{what}");
    }
}

#[test]
fn real_10_a_refusal_survives_data_that_the_client_has_sent_already() {
    let (refusing, _kept) = refusing_port();
    let server = Server::open(&[]);
    let data = [0; 16 * 1024];
    for (request, reply) in [
        (request4(1, refusing, b""), &[0, 91][..]),
        ([HELLO, &request5(1, refusing)].concat(), &[5, 0, 5, 5]),
        (request4(9, refusing, b""), &[0, 91]),
        ([HELLO, &[5, 1, 0, 9]].concat(), &[5, 0, 5, 8]),
        (vec![5, 1, 9], &[5, 0xff]),
    ] {
        let mut client = server.sent(&[&request, &data[..]].concat());
        // Time for a reset to overtake the reply, if there were one.
        thread::sleep(Duration::from_millis(300));
        client.write_all(&data).unwrap();
        let answer = read_to_end(&mut client);
        assert!(answer.starts_with(reply), "{answer:02x?} to {request:02x?}");
    }
}

/// Runs a server that is not to come up; returns its exit status and what it says. One that does
/// come up is ended, with another status.
fn run(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new("timeout").args(["5", SOCKSD]).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run timeout (coreutils): {error}"));
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_port_in_use_is_fatal_and_named() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = busy.local_addr().unwrap().to_string();
    let (status, stderr) = run(&["--listen", "127.0.0.1:0", "--listen", &addr]);
    assert_eq!(status, Some(111), "{stderr}");
    let expected =
        format!("socksd: cannot listen on {addr}: Address already in use (os error 98)\n");
    assert_eq!(stderr, expected);
}

/// The addresses a server says it listens on.
fn listening(server: &Server) -> Vec<String> {
    // Told of after all of them.
    server.log_line(&["event=limits"]);
    let lines = server.log_lines(&["event=listening"], 1);
    lines.iter().map(|line| field(line, "addr").to_string()).collect()
}

#[test]
fn a_port_alone_listens_on_both_loopbacks() {
    isolated(|| {
        let target = Target::echo();
        let server =
            Server::spawn(Command::new(SOCKSD).args(["--rule=allow to all", "-l", "1081"]));
        assert_eq!(listening(&server), ["127.0.0.1:1081", "[::1]:1081"]);
        echo_through("127.0.0.1:1081".parse().unwrap(), target.addr);
        echo_through("[::1]:1081".parse().unwrap(), target.addr);
        TcpStream::connect("127.0.0.2:1081").unwrap_err();
    });
}

#[test]
fn v4_38_v5_01_without_options_it_listens_on_loopback_port_1080() {
    isolated(|| {
        let server = Server::spawn(&mut Command::new(SOCKSD));
        assert_eq!(listening(&server), ["127.0.0.1:1080"]);
        assert!(serves(connect("127.0.0.1:1080".parse().unwrap())));
        TcpStream::connect("[::1]:1080").unwrap_err();
    });
}

#[test]
fn a_port_alone_does_without_ipv6_where_there_is_none() {
    isolated(|| {
        fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let target = Target::echo();
        let server =
            Server::spawn(Command::new(SOCKSD).args(["--rule=allow to all", "-l", "1081"]));
        assert_eq!(listening(&server), ["127.0.0.1:1081"]);
        echo_through(server.addr, target.addr);
        let association = Association::open(&server);
        association.send(udp::echo_on("127.0.0.1"), b"ping");
        assert_eq!(association.receive(), b"ping");

        // What was asked for in so many words is not done without.
        let (status, stderr) = run(&["--listen", "[::1]:1082"]);
        assert_eq!(status, Some(111), "{stderr}");
        assert!(stderr.contains("cannot listen on [::1]:1082: "), "{stderr}");
    });
}

#[test]
fn real_29_a_listener_for_both_families_treats_an_ipv4_client_as_one() {
    isolated(|| {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp_target = udp::echo_on("127.0.0.1");
        let command = ["--rule=allow to all", "-v", "--listen", "[::]:1080"];
        let server = Server::spawn(Command::new(SOCKSD).args(command));
        let (v4, v6): (SocketAddr, SocketAddr) =
            ("127.0.0.1:1080".parse().unwrap(), "[::1]:1080".parse().unwrap());

        for proxy in [v4, v6] {
            // CONNECT: BND is the address that the target sees.
            let mut client = connect(proxy);
            let begin = [HELLO, &request5(1, target.local_addr().unwrap())].concat();
            client.write_all(&begin).unwrap();
            assert_eq!(read(&mut client, 2), [5, 0]);
            let (_, from) = target.accept().unwrap();
            assert_eq!(reply5(&mut client), (0, from));
            server
                .log_line(&["event=connect", &format!("client={}", client.local_addr().unwrap())]);

            // BIND: BND is of the client's own family.
            let mut client = connect(proxy);
            client.write_all(&[HELLO, &request5(2, proxy)].concat()).unwrap();
            assert_eq!(read(&mut client, 2), [5, 0]);
            let (rep, bnd) = reply5(&mut client);
            assert_eq!((rep, bnd.ip()), (0, proxy.ip()));
            let peer = connect(bnd);
            assert_eq!(reply5(&mut client), (0, peer.local_addr().unwrap()));

            // UDP ASSOCIATE: the same, and the client's address is known for what it is.
            let association = Association::over(connect(proxy)).unwrap();
            assert_eq!(association.socket.peer_addr().unwrap().ip(), proxy.ip());
            association.send(udp_target, b"ping");
            assert_eq!(association.receive(), b"ping");
        }
        let mut client = connect(v4);
        client.write_all(&request4(2, v4, b"")).unwrap();
        let (cd, bnd) = reply4(&mut client);
        assert_eq!((cd, bnd.ip()), (90, v4.ip()));
        server.log_lines(&["event=close"], 6);
        assert!(!server.log().concat().contains("::ffff:"), "{:#?}", server.log());

        // The same limit holds for a client however it comes.
        drop(server);
        let command = ["--max-per-client", "1", "--listen", "[::]:1080", "--listen", "127.0.0.1:0"];
        let server = Server::spawn(Command::new(SOCKSD).args(command));
        let only_v4 = listening(&server)[1].parse().unwrap();
        let mut holder = connect(v4);
        holder.write_all(HELLO).unwrap();
        read(&mut holder, 2);
        assert_ends_silently(&mut connect(only_v4), SOON);
        assert!(serves(connect(v6)));
    });
}

#[test]
fn both_families_can_have_a_listener_of_their_own_on_one_port() {
    isolated(|| {
        let target = Target::echo();
        let (v4, v6) = ("0.0.0.0:1080", "[::]:1080");
        for (first, second) in [(v4, v6), (v6, v4)] {
            let listen = ["--rule=allow to all", "--listen", first, "--listen", second];
            let server = Server::spawn(Command::new(SOCKSD).args(listen));
            assert_eq!(listening(&server), [first, second]);
            echo_through("127.0.0.1:1080".parse().unwrap(), target.addr);
            echo_through("[::1]:1080".parse().unwrap(), target.addr);
        }
    });
}

#[test]
fn a_signal_ends_the_server_with_status_0_whatever_it_is_doing() {
    let target = Target::echo();
    for signal in ["TERM", "INT"] {
        let mut server = Server::open(&[]);
        let mut tunnel = tunnel(&server, target.addr);
        let _waiting = server.connect();
        server.signal(signal);
        server.log_line(&["event=stopping", &format!("signal={signal}"), "sessions=2"]);
        TcpStream::connect(server.addr).unwrap_err();
        tunnel.write_all(b"goes on").unwrap();
        assert_eq!(read(&mut tunnel, 7), b"goes on");
        server.signal(signal);
        assert_eq!(server.wait(), Some(0), "{signal}");
        assert_eq!(read_to_end(&mut tunnel), b"");
        server.log_line(&["event=close", "reason=stopped"]);
    }
}
