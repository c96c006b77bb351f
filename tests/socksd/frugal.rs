//! What a session costs, as far as no clock tells it: system calls, threads and pipes; and that
//! much is spliced where it may be, and only there. What it costs of memory is in `tests/alone`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::common::{
    HELLO, SOCKSD, Server, TempFile, connect, copy_program, eventually, read, request5, through,
};

/// A server of which strace(1) writes down the system calls.
struct Traced {
    server: Server,
    calls: TempFile,
}

/// A system call that has returned: its name, and what it returned.
type Call = (String, i64);

impl Traced {
    /// Starts a server to trace these calls of, `all` for all.
    fn start(calls: &str, args: &[&str]) -> Self {
        Self::injected(&format!("trace={calls}"), args)
    }

    /// Starts a server with such an expression of strace's.
    fn injected(expression: &str, args: &[&str]) -> Self {
        Self::become_one(Command::new("env"), expression, args)
    }

    /// The same, by a command that becomes the one of its arguments.
    fn become_one(mut command: Command, expression: &str, args: &[&str]) -> Self {
        // Another user may have no way to the directory of the program.
        let (file, socksd) = (TempFile::new(""), TempFile::new(""));
        fs::set_permissions(&file.0, fs::Permissions::from_mode(0o666)).unwrap();
        copy_program(SOCKSD, &socksd.0);
        // The server is this process's own child, and the tracer (-D) nobody's: it ends with the
        // server.
        command.args(["strace", "-D", "-f", "-q", "-s", "0", "-o", file.path(), "-e"]);
        command.args([expression, socksd.path(), "--listen", "127.0.0.1:0"]);
        Self { server: Server::spawn(command.args(args)), calls: file }
    }

    /// The calls so far that have returned. The server must have come to rest.
    fn calls(&self) -> Vec<Call> {
        let text = || fs::read_to_string(self.calls.path()).unwrap();
        let mut before = text();
        eventually("the server rests", || {
            thread::sleep(Duration::from_millis(100));
            let now = text();
            let rests = now == before;
            before = now;
            rests
        });
        before.lines().filter_map(call).collect()
    }
}

/// The call that returns in a line of strace's, such as `7 read(3, ""..., 9) = 9` or
/// `7 <... read resumed>""..., 9) = 9`.
fn call(line: &str) -> Option<Call> {
    let (_pid, line) = line.split_once(' ')?;
    let line = line.trim_start();
    let (_, returned) = line.rsplit_once(" = ")?;
    let name = line.trim_start_matches("<... ").split([' ', '(']).next()?;
    // `?` of a call that never returns, and addresses, which nobody asks for.
    let value = returned.split(' ').next()?.parse().unwrap_or(0);
    Some((name.to_owned(), value))
}

const ALLOW: [&str; 2] = ["--rule", "allow to all"];

/// Sessions to average over, and most system calls each of them may take.
const SESSIONS: usize = 300;
const CALLS: usize = 29;

/// A session that is one octet each way; the client closes first.
fn short_session(server: &Server) {
    let (mut client, mut target) = through(server);
    client.write_all(b"?").unwrap();
    read(&mut target, 1);
    target.write_all(b"!").unwrap();
    read(&mut client, 1);
    drop(client);
    assert_eq!(target.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_short_session_takes_at_most_29_system_calls_of_one_thread() {
    let traced = Traced::start("all", &ALLOW);
    short_session(&traced.server);
    let before = traced.calls().len();
    for _ in 0..SESSIONS {
        short_session(&traced.server);
    }
    traced.server.log_lines(&["event=close"], SESSIONS + 1);
    let mut calls = traced.calls().split_off(before);
    // Without optimisation the standard library looks whether what it closes is open.
    calls.retain(|(name, _)| name != "fcntl");
    let mut counts = BTreeMap::new();
    for (name, _) in &calls {
        *counts.entry(name.as_str()).or_insert(0) += 1;
    }
    // No thread hands the session to another, which would take two of these of both, nor waits for
    // one but where two meet by chance.
    let meetings = counts.get("futex").copied().unwrap_or_default();
    assert!(meetings < SESSIONS, "{counts:#?}");
    let own = calls.len() - meetings;
    assert!(own <= CALLS * SESSIONS, "{own} in {counts:#?}");
    // Both sockets and nothing else are opened and closed, and the log line is written at once.
    for (name, count) in [("accept4", 1), ("socket", 1), ("connect", 1), ("close", 2), ("write", 1)]
    {
        assert_eq!(counts.get(name), Some(&(count * SESSIONS)), "{name} in {counts:#?}");
    }
}

/// Sends so many octets up, then down.
fn both_ways([client, target]: [&TcpStream; 2], octets: usize) {
    for (mut from, mut to) in [(client, target), (target, client)] {
        thread::scope(|scope| {
            scope.spawn(move || from.write_all(&vec![7; octets]).unwrap());
            to.read_exact(&mut vec![0; octets]).unwrap();
        });
    }
}

/// How many octets each splice(2) has moved when `octets` have passed up and down through such a
/// server.
fn spliced_at_once(args: &[&str], octets: usize) -> Vec<usize> {
    let traced = Traced::start("splice", args);
    let (client, target) = through(&traced.server);
    both_ways([&client, &target], octets);
    drop((client, target));
    traced.server.log_line(&["event=close"]);
    traced.calls().iter().map(|(_, len)| usize::try_from(*len).unwrap_or(0)).collect()
}

/// How many they have moved together out of sockets.
fn spliced(args: &[&str], octets: usize) -> usize {
    let moved: usize = spliced_at_once(args, octets).iter().sum();
    // In and out again.
    assert_eq!(moved % 2, 0, "{moved}");
    moved / 2
}

#[test]
fn most_of_what_is_much_is_spliced() {
    // Twice that, less what passes before a direction is known to be busy. It may be quiet between,
    // where the machine has other things to do.
    let moved = spliced(&ALLOW, 64 << 20);
    assert!(moved > 64 << 20 && moved < 128 << 20, "{moved}");
}

#[test]
fn nothing_is_spliced_of_little_or_at_a_rate_or_with_no_splice() {
    assert_eq!(spliced(&ALLOW, 1), 0);
    assert_eq!(spliced(&ALLOW, 100_000), 0);
    assert_eq!(spliced(&["--rule", "allow to all rate 1000000000"], 64 << 20), 0);
    assert_eq!(spliced(&["--rule", "allow to all", "--no-splice"], 64 << 20), 0);
}

#[test]
fn with_an_idle_limit_no_more_is_spliced_at_once_than_would_be_copied() {
    // Else a session whose reader takes longer than the limit for what is in a pipe would be idle.
    let most = |args: &[&str]| {
        let args = [&ALLOW[..], args].concat();
        spliced_at_once(&args, 64 << 20).into_iter().max().unwrap()
    };
    assert!(most(&[]) > 65_536);
    assert_eq!(most(&["--idle-timeout", "60"]), 65_536);
}

#[test]
fn where_splicing_is_forbidden_or_unknown_octets_are_copied() {
    for (error, is_known) in [("EPERM", true), ("ENOSYS", true), ("EINVAL", false)] {
        let traced = Traced::injected(&format!("inject=splice:error={error}"), &ALLOW);
        let tries = [(); 2].map(|()| {
            let (client, target) = through(&traced.server);
            both_ways([&client, &target], 8 << 20);
            both_ways([&client, &target], 8 << 20);
            traced.calls().iter().filter(|(name, _)| name == "splice").count()
        });
        // Each direction finds it out once at most, and so do all others where it is for good.
        let [first, both] = tries;
        assert!((1..=2).contains(&first), "{error} {first} times");
        let second = both - first;
        let expected = if is_known { 0..=0 } else { 1..=2 };
        assert!(expected.contains(&second), "{error} another {second} times");
    }
}

/// Threads of a process that watch half-closed relays.
fn watching(pid: u32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // One that ends meanwhile has no name.
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name == "linger\n").count()
}

#[test]
fn a_session_that_goes_quiet_gives_its_pipes_back() {
    const ONE_AFTER_ANOTHER: usize = 6;
    let server = Server::open(&[]);
    let (before, _) = server.holds();
    let sessions = (0..ONE_AFTER_ANOTHER).map(|_| {
        let (client, target) = through(&server);
        both_ways([&client, &target], 4 << 20);
        // Longer than it takes to be quiet.
        thread::sleep(Duration::from_millis(300));
        (client, target)
    });
    let sessions: Vec<_> = sessions.collect();
    let (descriptors, _) = server.holds();
    let pipes = descriptors - before - 2 * sessions.len();
    // Both ends of one for each direction of one session, or of two where it took a little longer.
    assert!(0 < pipes && pipes <= 2 * 2 * 2, "{pipes} pipe ends");
}

#[test]
fn pipes_are_kept_for_a_few_sessions_and_not_for_many() {
    const AT_ONCE: usize = 10;
    let server = Server::open(&[]);
    let (before, _) = server.holds();
    let sessions: Vec<_> = (0..AT_ONCE).map(|_| through(&server)).collect();
    thread::scope(|scope| {
        for (client, target) in &sessions {
            scope.spawn(move || both_ways([client, target], 4 << 20));
        }
    });
    drop(sessions);
    let kept = 2 * 8;
    eventually("the others are closed", || server.holds().0 <= before + kept);
}

#[test]
fn a_user_who_may_have_no_more_pages_for_pipes_has_octets_copied() {
    // Takes all there is, so that new ones have two pages, and becomes the program of its
    // arguments, in which these pipes stay open.
    const HOG: &str = "
import fcntl, os, sys
# There is no limit for root. This user has nothing else, so that nobody makes room.
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(54321)
    os.setuid(54321)
def pipe():
    ends = os.pipe()
    os.set_inheritable(ends[0], True)
    return ends[0]
try:
    while True:
        fcntl.fcntl(pipe(), fcntl.F_SETPIPE_SZ, 1 << 20)
except PermissionError:
    pass
while fcntl.fcntl(pipe(), fcntl.F_GETPIPE_SZ) > 8192:
    pass
os.execvp(sys.argv[1], sys.argv[1:])
";
    let mut command = Command::new("python3");
    command.args(["-c", HOG]);
    let traced = Traced::become_one(command, "trace=pipe2,splice", &ALLOW);
    let (client, target) = through(&traced.server);
    let before = traced.calls().len();
    both_ways([&client, &target], 64 << 20);
    let calls = traced.calls().split_off(before);
    assert_eq!(calls.iter().filter(|(name, _)| name == "splice").count(), 0);
    assert_eq!(calls.len(), 1, "it is tried once, and not for every piece: {calls:?}");
}

#[test]
fn a_trickle_takes_no_pipe_however_long_it_lasts() {
    const SECONDS: u32 = 3;
    let server = Server::open(&[]);
    let (before, _) = server.holds();
    let (mut client, mut target) = through(&server);
    // Never quiet, and in the end more than what takes a pipe where it comes at once.
    for _ in 0..20 * SECONDS {
        client.write_all(&[7; 8_192]).unwrap();
        target.read_exact(&mut [0; 8_192]).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(server.holds().0, before + 2);
}

#[test]
fn a_session_half_closed_early_keeps_one_thread() {
    const HALF_CLOSED: usize = 20;
    let server = Server::open(&[]);
    eventually("all its threads have started", || server.holds().1 == 5);
    let before = server.holds().1;
    let sessions = (0..HALF_CLOSED).map(|_| {
        let (client, mut target) = through(&server);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(target.read(&mut [0]).unwrap(), 0);
        (client, target)
    });
    let _sessions: Vec<_> = sessions.collect();
    // As long as threads without work stay.
    thread::sleep(Duration::from_secs(5));
    eventually("threads without work end", || server.holds().1 <= before + HALF_CLOSED);
    // One thread, which was there before, watches them all.
    assert_eq!(watching(server.pid()), 1);
}

#[test]
fn a_server_of_one_session_watches_for_its_end_once_it_is_half_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut client = connect(addr);
    let (near, _) = listener.accept().unwrap();
    let mut server = Command::new(SOCKSD);
    server.args(["--inetd", "--rule", "allow to all"]).stdin(OwnedFd::from(near));
    let mut server = server.spawn().unwrap();
    client.write_all(&[HELLO, &request5(1, addr)].concat()).unwrap();
    let (mut target, _) = listener.accept().unwrap();
    read(&mut client, 12);
    target.write_all(b"!").unwrap();
    assert_eq!(read(&mut client, 1), b"!");
    assert_eq!(watching(server.id()), 0, "a thread that it may never need");
    target.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    eventually("it is watched", || watching(server.id()) == 1);
    drop((client, target));
    assert!(server.wait().unwrap().success());
}
