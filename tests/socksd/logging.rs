//! Where the log goes and what it looks like, and who is told that the server is ready: syslog,
//! JSON, the log opened anew, the pid file, sd_notify(3) and the descriptor of s6.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{self, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use crate::common::netns::{isolated, isolated_as, test_of};
use crate::common::{
    HELLO, SOCKSD, SOON, Server, Target, TempFile, assert_ends_silently, connect, eventually,
    field, login, read, request4, request5, request5_name,
};
use socksd::sys;

/// A directory that is removed when it is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("socksd-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn join(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server that does not log to standard error, killed when it is dropped.
struct Quiet(Child);

impl Quiet {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(SOCKSD);
        command.args(args).stdin(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Has the server at `addr` log one refusal.
fn refused(addr: SocketAddr) {
    let mut client = connect(addr);
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert_ends_silently(&mut client, SOON);
}

fn bound(path: &str) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

fn received(socket: &UnixDatagram) -> String {
    let mut octets = [0; 16_384];
    let len = socket.recv(&mut octets).expect("a datagram");
    String::from_utf8(octets[..len].to_vec()).unwrap()
}

// Syslog. Namespaces give a port and a /dev/log that nobody else has.

const ADDR: &str = "127.0.0.1:1080";

/// Runs `body`, the whole of the test it stands in, where `/dev` is its own and has no log.
fn with_own_dev<F: FnOnce(SocketAddr)>(body: F) {
    isolated_as(test_of::<F>(), || {
        let setup = r#"set -e; new=$(mktemp -d); mount -t tmpfs none "$new"
            for node in full null urandom; do
                : >"$new/$node"; mount --bind "/dev/$node" "$new/$node"
            done
            mount --rbind "$new" /dev"#;
        assert!(Command::new("sh").args(["-c", setup]).status().unwrap().success());
        body(ADDR.parse().unwrap());
    });
}

#[test]
fn syslog_gets_lines_with_facility_and_severity_and_without_time() {
    with_own_dev(|addr| {
        let log = bound("/dev/log");
        let rules = TempFile::new("allow to all");
        let args = ["--listen", ADDR, "--rules", rules.path(), "-v", "--syslog"];
        let server = Quiet::start(&[&args[..], &["local3"]].concat());
        let head = format!("socksd[{}]: event=", server.0.id());
        // 19 * 8 + 6
        assert_eq!(received(&log), format!("<158>{head}listening addr={ADDR}"));
        assert!(received(&log).starts_with(&format!("<158>{head}limits sessions=")));
        assert!(received(&log).starts_with(&format!("<159>{head}walls nofile=")));
        assert!(received(&log).starts_with(&format!("<158>{head}policy rules=1 ")));
        assert!(received(&log).starts_with(&format!("<158>{head}landlock state=")));

        let target = Target::echo();
        let mut client = connect(addr);
        client.write_all(&[HELLO, &request5(1, target.addr)].concat()).unwrap();
        read(&mut client, 4);
        drop(client);
        assert!(received(&log).starts_with(&format!("<159>{head}request session=1 client=")));
        assert!(received(&log).starts_with(&format!("<159>{head}connect session=1 client=")));
        assert!(received(&log).starts_with(&format!("<158>{head}close session=1 client=")));

        fs::write(&rules.0, "bogus").unwrap();
        server.signal("HUP");
        let line = received(&log);
        assert!(line.starts_with(&format!("<156>{head}reload-failed error=\"")), "{line}");
        assert!(!line.contains('\n'));
        drop(server);

        let args = ["--listen", ADDR, "--syslog", "daemon", "--log-format", "json"];
        let server = Quiet::start(&args);
        let line = received(&log);
        let head = format!("<30>socksd[{}]: ", server.0.id());
        assert_eq!(line, format!(r#"{head}{{"event":"listening","addr":"{ADDR}"}}"#));
    });
}

#[test]
fn a_syslog_daemon_that_comes_late_or_anew_gets_the_lines_and_the_count_of_those_lost() {
    with_own_dev(|addr| {
        let server = Quiet::start(&["--listen", ADDR, "--syslog", "daemon"]);
        eventually("it listens", || TcpStream::connect(addr).is_ok());
        // Four lines of the start, and one of that connection.
        let (mut lines, mut told, mut dropped) = (5, 0, 0);
        // A client may be gone before its line is written, and the daemon be back by then, so that
        // the line is told and not lost: there are rounds until enough are lost. Each adds up.
        for round in 2.. {
            assert!(round < 100, "only {told} told and {dropped} lost of {lines}");
            let log = bound("/dev/log");
            refused(addr);
            lines += 1;
            while told + dropped < lines {
                let line = received(&log);
                match line.strip_prefix(&format!("<28>socksd[{}]: ", server.0.id())) {
                    Some(count) => {
                        assert!(count.starts_with("event=log-dropped "), "{line}");
                        dropped += field(count, "lines").parse::<usize>().unwrap();
                    }
                    None => told += 1,
                }
            }
            if round > 3 && told >= 3 && dropped > 3 {
                break;
            }
            drop(log);
            fs::remove_file("/dev/log").unwrap();
            (0..round).for_each(|_| refused(addr));
            lines += round;
        }
    });
}

#[test]
fn a_syslog_daemon_that_is_replaced_at_once_loses_no_line() {
    with_own_dev(|addr| {
        let mut log = bound("/dev/log");
        let server = Quiet::start(&["--listen", ADDR, "--syslog", "daemon"]);
        while !received(&log).contains("event=landlock ") {}
        for number in 1..=5 {
            fs::remove_file("/dev/log").unwrap();
            log = bound("/dev/log");
            refused(addr);
            assert!(received(&log).contains(&format!("event=refuse session={number} ")));
        }
        drop(server);
    });
}

#[test]
fn a_syslog_daemon_that_does_not_read_keeps_nobody_waiting() {
    with_own_dev(|addr| {
        const CLIENTS: usize = 600;
        let log = bound("/dev/log");
        let server = Quiet::start(&["--listen", ADDR, "--syslog", "daemon"]);
        while !received(&log).contains("event=landlock ") {}
        // Whoever waited for the log would fail here.
        (0..CLIENTS).for_each(|_| refused(addr));
        let (mut seen, mut dropped) = (0, 0);
        log.set_nonblocking(true).unwrap();
        let mut octets = [0; 16_384];
        eventually("all lines are told or counted", || {
            while let Ok(len) = log.recv(&mut octets) {
                let line = String::from_utf8_lossy(&octets[..len]).into_owned();
                match line.contains("event=log-dropped ") {
                    true => dropped += field(&line, "lines").parse::<usize>().unwrap(),
                    false => seen += 1,
                }
            }
            // One more, for the count to be told with.
            if dropped == 0 {
                refused(addr);
            }
            dropped > 0 && seen + dropped > CLIENTS
        });
        drop(server);
    });
}

// JSON.

#[test]
fn python_reads_every_line_in_json() {
    let directory = Directory::new("json");
    let log = directory.join("log");
    let args = ["--log-format", "json", "--log", &log, "--rule", "allow to all", "-v"];
    let _server = Quiet::start(&[&["--listen", "127.0.0.1:0"], &args[..]].concat());
    let lines = || fs::read_to_string(&log).unwrap_or_default();
    eventually("it listens", || lines().contains(r#""event":"policy""#));
    let text = crate::common::json::to_text(lines().lines().next().unwrap());
    let addr: SocketAddr = field(&text, "addr").parse().unwrap();

    let target = Target::echo();
    let mut client = connect(addr);
    // USERID has everything that an octet can be, but NUL.
    let userid: Vec<u8> = (1..=255).collect();
    client.write_all(&request4(1, target.addr, &userid)).unwrap();
    read(&mut client, 8);
    drop(client);
    eventually("the session is logged", || lines().contains(r#""event":"close""#));

    let script = r#"import json, sys
for line in sys.stdin:
    item = json.loads(line, object_pairs_hook=list)
    print(*(f"{key}={type(value).__name__}" for key, value in item))
    item = json.loads(line)
    if item["event"] == "close":
        assert item["user"] == "".join(
            chr(c) if 33 <= c <= 126 and c not in b'\\"=' else f"\\x{c:02x}" for c in range(1, 256)
        ), item["user"]
        assert item["version"] == "4" and item["session"] == 1 and item["seconds"] < 60
"#;
    let mut python = Command::new("python3");
    python.args(["-c", script]).stdin(fs::File::open(&log).unwrap());
    let output = python.output().unwrap();
    let (stdout, stderr) = (text_of(&output.stdout), text_of(&output.stderr));
    assert!(output.status.success(), "{stderr}\n{}", lines());
    let kinds = stdout.lines().last().unwrap();
    assert_eq!(
        kinds,
        "time=str event=str session=int client=str user=str version=str command=str dst=str \
         addr=str local=str rule=str reply=str up=int down=int dropped=int seconds=float reason=str"
    );
}

fn text_of(octets: &[u8]) -> String {
    String::from_utf8(octets.to_vec()).unwrap()
}

// logfmt.

/// The fields of each line as logfmtkv reads them from PyPI, which takes what go-logfmt takes.
fn logfmt(lines: &[String]) -> Vec<Vec<(String, String)>> {
    let package = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("logfmt");
    // Keys and values, each in hexadecimal.
    let script = r#"import logfmtkv, sys
for line in sys.stdin.buffer.read().decode().removesuffix("\n").split("\n"):
    pairs = logfmtkv.parse_pairs(line, strict=True)
    print(*(text.encode().hex() + "." for pair in pairs for text in pair))
"#;
    let mut python = Command::new("python3")
        .args(["-c", script])
        .env("PYTHONPATH", &package)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output.stderr));
    let word = |hex: &str| {
        let digits = hex.strip_suffix('.').unwrap().as_bytes().chunks(2);
        let octet = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        text_of(&digits.map(octet).collect::<Vec<u8>>())
    };
    let fields = |row: &str| {
        let words: Vec<String> = row.split(' ').map(word).collect();
        words.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    };
    let read: Vec<_> = text_of(&output.stdout).lines().map(fields).collect();
    assert_eq!(read.len(), lines.len());
    read
}

/// The octets that stand in the log as `value`.
fn unescaped(value: &str) -> Vec<u8> {
    let mut parts = value.split("\\x");
    let mut octets = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.split_at(2);
        octets.push(u8::from_str_radix(hex, 16).unwrap());
        octets.extend(rest.as_bytes());
    }
    if value == "-" { Vec::new() } else { octets }
}

/// The lines of a server, each with its process number.
fn told_by(server: &Server) -> Vec<(u32, String)> {
    server.log().into_iter().map(|line| (server.pid(), line)).collect()
}

#[test]
fn a_parser_of_logfmt_reads_every_line_and_in_it_what_peers_sent() {
    let all: Vec<u8> = (0..=255).collect();
    let (low, high) = all.split_at(128);
    let directory = Directory::new("a=\"b\" c\u{e9}");
    let (rules, socket) = (directory.join("rules=\""), directory.join("socket=\""));
    fs::write(&rules, "allow to all\n").unwrap();

    // Each client with its server, since two servers may have clients of one address; the key of what
    // it sent; and that.
    let mut sent: Vec<(u32, SocketAddr, &str, Vec<u8>)> = Vec::new();
    let target = Target::echo();
    let at = format!("unix:{socket}");
    let server = Server::start(&["-v", "--rules", &rules, "--listen", &at]);
    for userid in [&all[1..], b"-", b"\"", b"=", b"\"=\"", b" =", b""] {
        let mut client = server.sent(&request4(1, target.addr, userid));
        assert_eq!(read(&mut client, 8)[1], 90);
        sent.push((server.pid(), client.local_addr().unwrap(), "user", userid.to_vec()));
    }
    for name in [low, high, b"\"", b"=", b"\"\"", b"a=b"] {
        let mut client = server.sent(&[HELLO, &request5_name(1, name, 80)].concat());
        assert_eq!(read(&mut client, 4), [5, 0, 5, 4]);
        sent.push((server.pid(), client.local_addr().unwrap(), "dst", [name, b":80"].concat()));
    }
    server.log_lines(&[" reason="], sent.len());
    fs::write(&rules, "\"=\"").unwrap();
    server.signal("HUP");
    server.log_line(&["event=reload-failed "]);
    let mut lines: Vec<(u32, String)> = told_by(&server);

    let users = TempFile::alice();
    let server = Server::start(&["--users", users.path(), "--auth-penalty", "0"]);
    for name in [low, high, b"-", b"\"", b"=", b"\"=\"", b" =", b""] {
        let mut client = server.sent(&[&[5, 1, 2], &login(name, b"wrong")[..]].concat());
        assert_eq!(read(&mut client, 4), [5, 2, 1, 1]);
        sent.push((server.pid(), client.local_addr().unwrap(), "user", name.to_vec()));
    }
    server.log_lines(&[" reason=auth "], 8);
    lines.extend(told_by(&server));

    // What stands for no user id, or ends the line.
    let not_named: Vec<u8> = all.iter().copied().filter(|c| !b"\0\r\n".contains(c)).collect();
    for (answer, key) in [
        ([b":USERID:UNIX:x", &not_named[..]].concat(), "user"),
        (b":ERROR:\"=\\\x01\xff \"\"==".to_vec(), "error"),
    ] {
        let told = answer.clone();
        let identd = Target::on("127.0.0.1", move |mut stream| {
            let mut query = [0; 64];
            let len = stream.read(&mut query).unwrap();
            stream.write_all(&[query[..len].trim_ascii(), &told, b"\n"].concat()).unwrap();
        });
        let port = identd.addr.port().to_string();
        let args = ["-v", "--rule", "allow ident to all", "--ident-port", &port];
        let server = Server::start(&args);
        let mut client = server.sent(&[HELLO, &request5(1, target.addr)].concat());
        read(&mut client, 4);
        let value =
            answer.splitn(if key == "user" { 4 } else { 3 }, |c| *c == b':').last().unwrap();
        sent.push((server.pid(), client.local_addr().unwrap(), key, value.to_vec()));
        drop(client);
        server.log_line(&[" reason="]);
        lines.extend(told_by(&server));
    }

    let (pids, lines): (Vec<u32>, Vec<String>) = lines.into_iter().unzip();
    let read = logfmt(&lines);
    let values = |key: &str, client: Option<(u32, SocketAddr)>| -> Vec<String> {
        let value = |fields: &[(String, String)], key| {
            fields.iter().find(|(other, _)| other == key).map(|(_, value)| value.clone())
        };
        let is_of = |pid: u32, fields: &[(String, String)]| match client {
            Some((server, addr)) => {
                pid == server && value(fields, "client") == Some(addr.to_string())
            }
            None => true,
        };
        let lines = pids.iter().zip(&read).filter(|(pid, fields)| is_of(**pid, fields));
        lines.filter_map(|(_, fields)| value(fields, key)).collect()
    };
    for (server, client, key, octets) in sent {
        let told = values(key, Some((server, client)));
        let told = match key {
            "error" => told[0].strip_prefix("identd answered with error ").unwrap(),
            // Its last line, after IDENT.
            _ => told.last().unwrap(),
        };
        assert!(!told.contains(['"', '=', ' ']), "{told}");
        assert_eq!(unescaped(told), octets, "{told}");
    }
    let told = |key, octets: &str| {
        assert!(values(key, None).iter().any(|value| unescaped(value) == octets.as_bytes()));
    };
    told("addr", &at);
    told("rule", &format!("{rules}:1"));
    assert!(values("error", None).iter().any(|text| text.contains("/rules=\":1:1: ")));
}

// A terminal.

/// Runs socksd at a terminal that another process shows on standard error: at first up to the line
/// of Landlock, the rest as soon as there is a file `go`.
const AT_A_TERMINAL: &str = r#"import os, pty, sys, time
master, slave = pty.openpty()
if os.fork():
    os.dup2(slave, 2)
    os.execv(sys.argv[2], sys.argv[2:])
os.close(slave)
server = os.getppid()
seen = b""
while True:
    if b"event=landlock" in seen:
        while not os.path.exists(sys.argv[1]) and os.getppid() == server:
            time.sleep(0.01)
    try:
        octets = os.read(master, 4096)
    except OSError:
        break
    os.write(2, octets)
    seen = (seen + octets)[-8192:]
"#;

fn at_a_terminal(go: &str) -> Server {
    // Without /proc the terminal cannot be opened anew.
    let script = r#"mount -t tmpfs none /proc && exec /usr/bin/python3 -c "$@""#;
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        AT_A_TERMINAL,
        go,
        SOCKSD,
        "--listen",
        ADDR,
    ]);
    Server::spawn(&mut command)
}

/// More lines than a terminal takes that nobody reads.
const MANY: usize = 1_000;

#[test]
fn a_terminal_that_is_stopped_keeps_nobody_waiting() {
    isolated(|| {
        let directory = Directory::new("terminal");
        let go = directory.join("go");
        let mut server = at_a_terminal(&go);
        // Whoever waited for the log would fail here.
        (0..MANY).for_each(|_| refused(server.addr));
        fs::write(&go, "").unwrap();
        let mut count = MANY;
        eventually("all lines are told or counted", || {
            refused(server.addr);
            count += 1;
            server.log().iter().any(|line| line.contains(" event=log-dropped "))
        });
        server.signal("TERM");
        assert_eq!(server.wait(), Some(0));
        // The last line comes before the end of the process.
        server.log_line(&["event=stopping "]);
        let (mut told, mut dropped) = (0, 0);
        for line in server.log() {
            assert!(line.starts_with("time="), "{line}");
            told += usize::from(line.contains(" event=refuse "));
            if line.contains(" event=log-dropped ") {
                dropped += field(&line, "lines").parse::<usize>().unwrap();
            }
        }
        assert!(dropped > 0);
        assert_eq!(told + dropped, count);
    });
}

#[test]
fn a_server_whose_terminal_is_stopped_ends() {
    isolated(|| {
        let directory = Directory::new("stopped");
        let mut server = at_a_terminal(&directory.join("go"));
        (0..MANY).for_each(|_| refused(server.addr));
        server.signal("TERM");
        assert_eq!(server.wait(), Some(0));
        fs::write(directory.join("go"), "").unwrap();
    });
}

// The log opened anew.

#[test]
fn a_log_moved_away_before_hup_loses_no_line() {
    const CLIENTS: usize = 400;
    let directory = Directory::new("rotation");
    let log = directory.join("log");
    let server = Quiet::start(&["--listen", "127.0.0.1:0", "--log", &log]);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    eventually("it listens", || read(&log).contains("event=policy "));
    let addr: SocketAddr = field(read(&log).lines().next().unwrap(), "addr").parse().unwrap();
    let clients = thread::spawn(move || (0..CLIENTS).for_each(|_| refused(addr)));
    let mut all = String::new();
    for number in 0..4 {
        let old = directory.join(&format!("log.{number}"));
        fs::rename(&log, &old).unwrap();
        server.signal("HUP");
        eventually("the log is made anew", || read(&log).contains("event=reload "));
        let mode = fs::metadata(&log).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        all.push_str(&read(&old));
    }
    clients.join().unwrap();
    let seen = |text: &str| text.matches(" event=refuse session=").count();
    eventually("every refusal is logged", || seen(&all) + seen(&read(&log)) == CLIENTS);
    all.push_str(&read(&log));
    assert!(all.lines().all(|line| line.starts_with("time=")), "{all}");
    assert_eq!(all.matches(" event=reload ").count(), 4);
}

#[test]
fn a_log_that_cannot_be_opened_anew_goes_on_in_the_old_file() {
    let directory = Directory::new("reopen");
    let (kept, log) = (directory.join("kept"), directory.join("log"));
    let server = Quiet::start(&["--listen", "127.0.0.1:0", "--log", &log]);
    let lines = || fs::read_to_string(&kept).unwrap();
    eventually("it listens", || fs::read_to_string(&log).is_ok_and(|log| log.contains("policy ")));
    fs::rename(&log, &kept).unwrap();
    fs::create_dir(&log).unwrap();
    server.signal("HUP");
    let told =
        format!(" event=reopen-failed error=\"cannot open {log}: Is a directory (os error 21)\"\n");
    eventually("that is told", || lines().contains(&told));
    eventually("the rules are read all the same", || lines().contains(" event=reload "));

    // A FIFO that nobody reads must not keep the server from hearing signals.
    fs::remove_dir(&log).unwrap();
    assert!(Command::new("mkfifo").arg(&log).status().unwrap().success());
    server.signal("HUP");
    eventually("that is told", || lines().matches("event=reopen-failed ").count() == 2);
    server.signal("TERM");
    eventually("it ends", || lines().contains(" event=stopping "));
}

// The pid file.

#[test]
fn the_pid_file_is_there_while_the_server_runs() {
    let file = TempFile::new("an old one, longer than a number");
    let mut server = Server::start(&["--pid-file", file.path()]);
    server.log_line(&["event=limits "]);
    let content = fs::read_to_string(&file.0).unwrap();
    assert_eq!(content, format!("{}\n", server.pid()));
    // Less the umask of whoever runs this.
    let mode = fs::metadata(&file.0).unwrap().permissions().mode();
    assert_eq!(mode & !0o644 & 0o777, 0);
    assert_eq!(mode & 0o600, 0o600);
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    assert!(!file.0.exists());
}

#[test]
fn a_pid_file_that_another_has_written_stays() {
    let file = TempFile::new("");
    let mut server = Server::start(&["--pid-file", file.path()]);
    server.log_line(&["event=limits "]);
    fs::write(&file.0, "1\n").unwrap();
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    assert_eq!(fs::read_to_string(&file.0).unwrap(), "1\n");
}

/// Runs socksd, which is to fail with status 111, and returns what it says.
fn failure(command: &mut Command) -> String {
    let Output { status, stderr, .. } =
        command.args(["--listen", "127.0.0.1:0"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(status.code(), Some(111));
    text_of(&stderr).lines().last().unwrap().to_owned()
}

#[test]
fn a_pid_file_that_cannot_be_written_keeps_the_server_from_starting() {
    let directory = Directory::new("pid");
    let link = directory.join("link");
    let target = TempFile::new("precious");
    std::os::unix::fs::symlink(&target.0, &link).unwrap();
    for (path, reason) in [
        ("/nonexistent/pid", "No such file or directory (os error 2)"),
        ("/dev/null", "File exists (os error 17)"),
        (directory.0.to_str().unwrap(), "File exists (os error 17)"),
        (&link, "File exists (os error 17)"),
    ] {
        let told = failure(Command::new(SOCKSD).args(["--pid-file", path]));
        assert_eq!(told, format!("socksd: cannot write {path}: {reason}"));
    }
    assert_eq!(fs::read_to_string(&target.0).unwrap(), "precious");
    assert!(Path::new("/dev/null").exists());
}

// Readiness.

/// Starts, reloads and ends a server; `socket` is what `name` leads to.
fn assert_notifies(name: &str, socket: &UnixDatagram) {
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut command = Command::new(SOCKSD);
    let mut server =
        Server::spawn(command.args(["--listen", "127.0.0.1:0"]).env("NOTIFY_SOCKET", name));
    assert_eq!(received(socket), "READY=1");
    // It does listen.
    drop(server.connect());
    let before = sys::clock_gettime_monotonic().unwrap();
    server.signal("HUP");
    let reloading = received(socket);
    let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
    let told = Duration::from_micros(micros) + Duration::from_micros(1);
    assert!(before <= told && told <= before + SOON, "{before:?} {told:?}");
    assert_eq!(received(socket), "READY=1");
    server.log_line(&["event=reload "]);
    // Not only when the last session has ended.
    let client = server.connect();
    server.signal("TERM");
    assert_eq!(received(socket), "STOPPING=1");
    drop(client);
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn systemd_is_told_at_a_path_of_start_reload_and_end() {
    let directory = Directory::new("notify");
    let path = directory.join("socket");
    assert_notifies(&path, &bound(&path));
}

#[test]
fn systemd_is_told_at_an_abstract_name_of_start_reload_and_end() {
    let name = format!("socksd-notify-{}", std::process::id());
    let addr = net::SocketAddr::from_abstract_name(&name).unwrap();
    assert_notifies(&format!("@{name}"), &UnixDatagram::bind_addr(&addr).unwrap());
}

#[test]
fn a_notify_socket_that_leads_nowhere_keeps_the_server_from_starting() {
    let told = failure(Command::new(SOCKSD).env("NOTIFY_SOCKET", "/nonexistent"));
    let reason = "No such file or directory (os error 2)";
    assert_eq!(told, format!("socksd: cannot connect to NOTIFY_SOCKET: {reason}"));
}

#[test]
fn the_ready_descriptor_gets_a_newline_and_is_closed() {
    let mut shell = Command::new("sh");
    let script = r#"exec "$0" --listen 127.0.0.1:0 --ready-fd 7 7>&1 >/dev/null"#;
    shell.args(["-c", script, SOCKSD]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut server = Quiet(shell.spawn().unwrap());
    let mut octets = Vec::new();
    server.0.stdout.take().unwrap().read_to_end(&mut octets).unwrap();
    assert_eq!(octets, b"\n");
    assert_eq!(server.0.try_wait().unwrap(), None, "it runs");
}

#[test]
fn a_ready_descriptor_that_is_not_open_keeps_the_server_from_starting() {
    let told = failure(Command::new(SOCKSD).args(["--ready-fd", "77"]));
    let reason = "Bad file descriptor (os error 9)";
    assert_eq!(told, format!("socksd: cannot use the descriptor of --ready-fd: {reason}"));
}
