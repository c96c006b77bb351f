//! A crowd of sessions at once, under the limit on descriptors that many systems have. The only
//! test here: both ends of all of them are in this process, and take most of its descriptors too.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{SOCKSD, SOON, Server, eventually, read, tunnel};

const CROWD: usize = 9_500;

/// Descriptors of the server, and of this process.
const DESCRIPTORS: u64 = 20_000;

/// Handshakes while the crowd stands; all but one of a hundred have to be quick.
const MORE: usize = 300;
const QUICK: Duration = Duration::from_millis(100);

/// KiB that may be in use afterwards and were not before, for what the C library keeps of its own
/// accord: stacks, and the rests of its arenas. That is 10 MiB as a rule, and more where many
/// threads take long to end. The crowd takes five times as much at least.
const LEFT: usize = 24 * 1_024;

/// How long the server may take to come to rest: threads without work stay for some seconds.
const REST: Duration = Duration::from_secs(20);

/// A session: the client's end and the target's.
type Ends = (TcpStream, TcpStream);

fn open(server: &Server, listener: &TcpListener) -> Ends {
    let client = tunnel(server, listener.local_addr().unwrap());
    let (target, _) = listener.accept().unwrap();
    target.set_read_timeout(Some(SOON)).unwrap();
    target.set_nodelay(true).unwrap();
    (client, target)
}

/// Sends one octet each way.
fn exchange((client, target): &mut Ends) {
    client.write_all(b"?").unwrap();
    assert_eq!(read(target, 1), b"?");
    target.write_all(b"!").unwrap();
    assert_eq!(read(client, 1), b"!");
}

fn kib(server: &Server) -> usize {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", server.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Waits until the server has these descriptors and threads, and no more KiB of memory than that.
fn rests(server: &Server, before: (usize, usize), memory: usize) {
    let begun = Instant::now();
    loop {
        let (holds, kib) = (server.holds(), kib(server));
        if holds == before && kib <= memory {
            return;
        }
        assert!(begun.elapsed() < REST, "it holds {holds:?} and {kib} KiB");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn sessions_9500_at_once_are_all_served_and_leave_nothing_behind() {
    let _alone = crate::alone();
    let (_, hard) = socksd::sys::getrlimit_nofile().unwrap();
    assert!(hard >= DESCRIPTORS, "this test takes {DESCRIPTORS} descriptors, ulimit -Hn is {hard}");
    socksd::sys::setrlimit_nofile(hard, hard).unwrap();
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={DESCRIPTORS}")).args([SOCKSD, "--rule=allow to all"]);
    for limit in ["--max-sessions", "--max-per-client"] {
        command.args([limit, "9800"]);
    }
    let early = "--early-drop=100-100";
    let server = Server::spawn(command.args(["--max-half-open", "1000", early, "-l127.0.0.1:0"]));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();

    // The main thread, those for signals and half-closed relays, and two that wait for clients.
    eventually("all its threads have started", || server.holds().1 == 5);
    let (before, memory) = (server.holds(), kib(&server));
    let mut crowd: Vec<Ends> = (0..CROWD).map(|_| open(&server, &listener)).collect();
    // Too much for one thread.
    for _ in 0..5 {
        crowd.iter_mut().for_each(exchange);
    }
    let (descriptors, threads) = server.holds();
    assert_eq!(descriptors, before.0 + 2 * CROWD);
    // Of those two one may have stayed with its client: the other one is enough while all is busy.
    assert!((before.1 - 1..=before.1).contains(&(threads - 2 * CROWD)), "{threads} threads");

    let mut handshakes: Vec<Duration> = (0..MORE)
        .map(|_| {
            let begun = Instant::now();
            let mut ends = open(&server, &listener);
            let took = begun.elapsed();
            exchange(&mut ends);
            took
        })
        .collect();
    handshakes.sort_unstable();
    let p99 = handshakes[MORE * 99 / 100];
    assert!(p99 < QUICK, "{p99:?}");

    crowd.iter_mut().for_each(exchange);
    let taken = kib(&server);
    assert!(taken > memory + 5 * LEFT, "{memory} KiB, then only {taken}");
    for (client, mut target) in crowd {
        drop(client);
        assert_eq!(target.read(&mut [0]).unwrap(), 0);
    }
    rests(&server, before, memory + LEFT);
    server.log_lines(&["event=close", "reason=client"], CROWD + MORE);
    assert!(
        !server.log().iter().any(|line| line.contains("refuse") || line.contains("event=error"))
    );
}
