//! What the integration tests share: the real server in a process of its own, targets to connect
//! to, and the three ways to deliver an exchange.
#![allow(dead_code, reason = "each test program uses a part of this")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout
)]
#![allow(missing_docs, unreachable_pub)]

pub mod dns;
pub mod json;
pub mod netns;
mod random;
pub mod udp;

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

#[allow(unused_imports, reason = "one of the test programs has no use for it")]
pub use random::Random;
use socksd::sync::lock;
use socksd::sys::{self, PollFd};

/// How long anything that ought to happen may take.
pub const SOON: Duration = Duration::from_secs(5);

/// The real binary.
pub const SOCKSD: &str = env!("CARGO_BIN_EXE_socksd");

/// The hash of the password "secret": openssl passwd -6 -salt saltsalt secret
pub const SECRET: &str = "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiO\
                          QSpT0Y77vwPZN.Pq.H91p5hVO1";

/// A running server, killed when it is dropped.
pub struct Server {
    child: Child,
    /// Where its first listener is.
    pub addr: SocketAddr,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
    /// How many clients have been sentinels: see [`Server::serve_sentinel`].
    sentinels: AtomicUsize,
}

impl Server {
    /// Starts a server that may reach loopback, on a port of 127.0.0.1 the system chose. With a
    /// users file it demands a password.
    pub fn open(args: &[&str]) -> Self {
        let rule = if args.contains(&"--users") { "allow user any to all" } else { "allow to all" };
        Self::start(&[&["--rule", rule], args].concat())
    }

    /// Starts a server on a port of 127.0.0.1 the system chose.
    pub fn start(args: &[&str]) -> Self {
        Self::spawn(Command::new(SOCKSD).args(["--listen", "127.0.0.1:0"]).args(args))
    }

    /// Runs a command that becomes a server and logs to standard error. What it logs in JSON is
    /// checked, and read as text.
    pub fn spawn(command: &mut Command) -> Self {
        have_many_descriptors();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let log = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let lines = Arc::clone(&log);
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let line = if line.starts_with('{') { json::to_text(&line) } else { line };
                lock(&lines.0).push(line);
                lines.1.notify_all();
            }
        });
        Self::of(child, log)
    }

    /// The same as [`Server::open`] with its log in a file, which takes many lines at once where a
    /// pipe would not.
    pub fn logging_to(file: &TempFile, args: &[&str]) -> Self {
        have_many_descriptors();
        let always = ["--rule", "allow to all", "--listen", "127.0.0.1:0", "--log", file.path()];
        let mut command = Command::new(SOCKSD);
        let child = command.args(always).args(args).stdin(Stdio::null()).spawn().unwrap();
        let log = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let mut file = BufReader::new(fs::File::open(&file.0).unwrap());
        let lines = Arc::downgrade(&log);
        thread::spawn(move || {
            let mut line = String::new();
            while let Some(lines) = lines.upgrade() {
                match file.read_line(&mut line) {
                    Ok(_) if line.ends_with('\n') => {
                        lock(&lines.0).push(line.trim_end().to_owned());
                        lines.1.notify_all();
                        line.clear();
                    }
                    _ => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self::of(child, log)
    }

    fn of(child: Child, log: Arc<(Mutex<Vec<String>>, Condvar)>) -> Self {
        let addr = "127.0.0.1:0".parse().unwrap();
        let mut server = Self { child, addr, log, sentinels: AtomicUsize::new(0) };
        let line = server.log_line(&["event=listening "]);
        server.addr = field(&line, "addr").parse().unwrap();
        server
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The lines logged so far.
    pub fn log(&self) -> Vec<String> {
        lock(&self.log.0).clone()
    }

    /// Waits for a line that holds all of `needles`.
    pub fn log_line(&self, needles: &[&str]) -> String {
        self.log_lines(needles, 1).remove(0)
    }

    /// Waits for `count` lines that hold all of `needles`.
    pub fn log_lines(&self, needles: &[&str], count: usize) -> Vec<String> {
        let (lines, more) = &*self.log;
        let until = Instant::now() + 2 * SOON;
        let mut lines = lock(lines);
        loop {
            let found: Vec<String> = lines
                .iter()
                .filter(|line| needles.iter().all(|needle| line.contains(needle)))
                .cloned()
                .collect();
            if found.len() >= count {
                return found;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Given up first: a lock poisoned here would be a second panic when this is
                // dropped.
                drop(lines);
                panic!("no {count} log lines with {needles:?} in {:#?}", self.log());
            }
            lines = more.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// A new connection to the server, on which no read waits longer than [`SOON`].
    pub fn connect(&self) -> TcpStream {
        connect(self.addr)
    }

    /// Sends `octets` whole, on a new connection.
    pub fn sent(&self, octets: &[u8]) -> TcpStream {
        let mut client = self.connect();
        client.write_all(octets).unwrap();
        client
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the server to end and returns its exit status.
    pub fn wait(&mut self) -> Option<i32> {
        let until = Instant::now() + 2 * SOON;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "the server does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until all sessions so far are over but `open` of them: starts another one, a sentinel,
    /// and waits for the log lines of all.
    pub fn settle(&self, open: usize) {
        let sessions = self.serve_sentinel();
        let ends = |line: &&String| {
            line.contains(" session=")
                && ["event=close ", "event=refuse "].iter().any(|event| line.contains(event))
        };
        eventually("all sessions are over", || {
            let sentinels = self.sentinels.load(Ordering::SeqCst);
            self.log().iter().filter(ends).count() + sentinels + open >= sessions
        });
    }

    /// Connects as a client that sends nonsense, a sentinel, waits for the line of its session, and
    /// takes that line out of the log; returns the number of the session.
    pub fn serve_sentinel(&self) -> usize {
        let mut sentinel = self.sent(b"?");
        let client = format!(" client={} ", sentinel.local_addr().unwrap());
        assert_ends_silently(&mut sentinel, SOON);
        drop(sentinel);
        let line = self.log_line(&["event=refuse ", &client, " reason=protocol "]);
        lock(&self.log.0).retain(|other| *other != line);
        self.sentinels.fetch_add(1, Ordering::SeqCst);
        field(&line, "session").parse().unwrap()
    }

    /// Waits until the only open session, an association, has dropped `count` datagrams.
    pub fn await_dropped(&self, count: usize) {
        let dropped = format!(" dropped={count} ");
        eventually("the datagrams are dropped", || {
            let told = |line: &&String| line.contains("event=session ");
            let before = self.log().iter().filter(told).count();
            self.signal("USR1");
            self.log_lines(&["event=session "], before + 1).pop().unwrap().contains(&dropped)
        });
    }

    /// The connections of clients that the server has: of each the port it comes from, and whether
    /// the server has read all of it.
    pub fn clients(&self) -> Vec<(u16, bool)> {
        let lines = self.log();
        let listeners = lines.iter().filter(|line| line.contains("event=listening "));
        let ports =
            listeners.filter_map(|line| field(line, "addr").rsplit_once(':')?.1.parse().ok());
        let ports: Vec<u16> = ports.collect();
        let port = |addr: &str| u16::from_str_radix(addr.rsplit_once(':').unwrap().1, 16).unwrap();
        let mut clients = Vec::new();
        for name in ["tcp", "tcp6"] {
            let table = fs::read_to_string(format!("/proc/{}/net/{name}", self.pid()));
            for line in table.unwrap_or_default().lines().skip(1) {
                // Number, its own address, the other one, state, what is to be sent and read, ...,
                // the socket, which is 0 once it is closed. 0A is a listener.
                let words: Vec<&str> = line.split_whitespace().collect();
                if ports.contains(&port(words[1])) && words[3] != "0A" && words[9] != "0" {
                    clients.push((port(words[2]), words[4].ends_with(":00000000")));
                }
            }
        }
        clients
    }

    /// How many descriptors and threads the server has.
    pub fn holds(&self) -> (usize, usize) {
        let count = |what| fs::read_dir(format!("/proc/{}/{what}", self.pid())).unwrap().count();
        (count("fd"), count("task"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            // Shown by the test harness with the failed test.
            println!("the server's log:\n{}", self.log().join("\n"));
        }
    }
}

/// Copies a program. cp(1) does it, because a file that is open for writing cannot be run: if this
/// process wrote the copy, a child that another thread is starting could still have it open.
pub fn copy_program(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    let (from, to) = (from.as_ref(), to.as_ref());
    let status = Command::new("cp").arg(from).arg(to).stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "cannot copy {} to {}", from.display(), to.display());
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Raises the limit on descriptors of this process, which holds the clients and targets of all
/// tests; most systems begin with 1,024. Children inherit the limit; socksd raises its own in any
/// case.
fn have_many_descriptors() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (soft, hard) = sys::getrlimit_nofile().unwrap();
        sys::setrlimit_nofile(soft.max(hard.min(16_384)), hard).unwrap();
    });
}

/// Waits until a process listens on a port of IPv4; returns its address, as the system knows it.
pub fn listens_at(pid: u32) -> SocketAddr {
    let mut found = None;
    eventually("it listens", || {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let owns: Vec<PathBuf> = links.filter_map(|link| fs::read_link(link.path()).ok()).collect();
        let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
        found = table.lines().find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            // The second word is the address, 0A stands for listening, the tenth is the socket.
            let owned = owns.contains(&PathBuf::from(format!("socket:[{}]", words.get(9)?)));
            let (ip, port) = words[1].split_once(':').filter(|_| words[3] == "0A" && owned)?;
            let ip = u32::from_str_radix(ip, 16).unwrap().to_ne_bytes();
            Some(SocketAddr::from((ip, u16::from_str_radix(port, 16).unwrap())))
        });
        found.is_some()
    });
    found.unwrap()
}

/// The value of a field of a log line.
pub fn field<'a>(line: &'a str, key: &str) -> &'a str {
    line.split(' ')
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        .unwrap_or_else(|| panic!("no {key} in {line}"))
}

pub fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Connects to `addr` from the address `from`.
pub fn connect_from(from: Ipv4Addr, addr: SocketAddr) -> TcpStream {
    connect_from_ip(from.into(), addr)
}

/// The same for any family.
pub fn connect_from_ip(from: IpAddr, addr: SocketAddr) -> TcpStream {
    // std cannot bind before it connects; the library under test can.
    let target = socksd::dial::Target { addr, source: Some(from) };
    let stream = TcpStream::from(socksd::dial::start(target).unwrap());
    sys::poll(&mut [PollFd::new(&stream, sys::POLLOUT)], Some(SOON)).unwrap();
    assert!(stream.take_error().unwrap().is_none());
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// Reads exactly `len` octets.
pub fn read(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut octets = vec![0; len];
    stream.read_exact(&mut octets).unwrap_or_else(|error| panic!("reading {len}: {error}"));
    octets
}

/// Reads up to the end of input, which has to come [`SOON`] and not as a reset.
pub fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut octets = Vec::new();
    stream.read_to_end(&mut octets).unwrap_or_else(|error| panic!("after {octets:02x?}: {error}"));
    octets
}

/// Asserts that the connection ends within `limit`, with or without a reset, and gives no octet.
pub fn assert_ends_silently(stream: &mut TcpStream, limit: Duration) {
    stream.set_read_timeout(Some(limit)).unwrap();
    match stream.read(&mut [0; 16]) {
        Ok(0) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        other => panic!("not ended but {other:?}"),
    }
}

/// Asserts that a server sends nothing to a client while it serves a sentinel from first to last.
pub fn assert_silent(server: &Server, stream: &mut TcpStream) {
    server.serve_sentinel();
    stream.set_nonblocking(true).unwrap();
    match stream.read(&mut [0; 16]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        other => panic!("not silent but {other:?}"),
    }
    stream.set_nonblocking(false).unwrap();
}

/// Asserts that no datagram has come so far. On loopback a datagram that is sent has come.
pub fn assert_no_datagram(socket: &UdpSocket) {
    socket.set_nonblocking(true).unwrap();
    let got = socket.recv_from(&mut [0; 64]);
    let refused = [io::ErrorKind::WouldBlock, io::ErrorKind::ConnectionRefused];
    assert!(got.as_ref().is_err_and(|error| refused.contains(&error.kind())), "{got:?}");
    socket.set_nonblocking(false).unwrap();
}

/// How an exchange is delivered: nothing may depend on how TCP cuts the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Each message in one piece, the payload after the reply.
    Whole,
    /// One octet at a time.
    Octets,
    /// All messages and the payload in one piece.
    Glued,
}

pub const DELIVERIES: [Delivery; 3] = [Delivery::Whole, Delivery::Octets, Delivery::Glued];

impl Delivery {
    /// Sends `messages`, reading the answer of the length given after each, then `payload`; returns
    /// all answers and the connection.
    pub fn exchange(
        self,
        server: &Server,
        messages: &[(&[u8], usize)],
        payload: &[u8],
    ) -> (Vec<Vec<u8>>, TcpStream) {
        let mut client = server.connect();
        if self == Self::Glued {
            let mut all: Vec<u8> =
                messages.iter().flat_map(|(message, _)| *message).copied().collect();
            all.extend(payload);
            client.write_all(&all).unwrap();
        }
        let answers = messages
            .iter()
            .map(|(message, answer)| {
                match self {
                    Self::Whole => client.write_all(message).unwrap(),
                    Self::Octets => message.chunks(1).for_each(|octet| {
                        client.write_all(octet).unwrap();
                        thread::sleep(Duration::from_millis(1));
                    }),
                    Self::Glued => {}
                }
                read(&mut client, *answer)
            })
            .collect();
        if self != Self::Glued {
            client.write_all(payload).unwrap();
        }
        (answers, client)
    }
}

/// A target that does what it is told with each connection, and counts them.
pub struct Target {
    pub addr: SocketAddr,
    /// All of its addresses, the one above first.
    addrs: Vec<SocketAddr>,
    came: Arc<Mutex<Came>>,
}

/// The connections that have come to a target.
#[derive(Default)]
struct Came {
    count: usize,
    /// The addresses of sentinels that have not been accepted yet.
    sentinels: Vec<SocketAddr>,
}

impl Target {
    /// Runs `serve` on a thread for each connection.
    pub fn on(ip: &str, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::at(&[SocketAddr::new(ip.parse().unwrap(), 0)], serve)
    }

    /// The same at an address of which the port is given.
    pub fn on_addr(addr: SocketAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::at(&[addr], serve)
    }

    /// The same on several addresses, of which the first is told of as its own.
    fn at(addrs: &[SocketAddr], serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let came = Arc::new(Mutex::new(Came::default()));
        let serve = Arc::new(serve);
        let listen = |addr: &SocketAddr| {
            let listener = TcpListener::bind(addr).unwrap();
            let addr = listener.local_addr().unwrap();
            let (came, serve) = (Arc::clone(&came), Arc::clone(&serve));
            thread::spawn(move || {
                while let Ok((stream, peer)) = listener.accept() {
                    let mut came = lock(&came);
                    if let Some(at) = came.sentinels.iter().position(|addr| *addr == peer) {
                        came.sentinels.swap_remove(at);
                        continue;
                    }
                    came.count += 1;
                    drop(came);
                    let serve = Arc::clone(&serve);
                    thread::spawn(move || serve(stream));
                }
            });
            addr
        };
        let addrs: Vec<SocketAddr> = addrs.iter().map(listen).collect();
        Self { addr: addrs[0], addrs, came }
    }

    /// Sends back what it gets and closes at the end of input.
    pub fn echo() -> Self {
        Self::echo_on("127.0.0.1")
    }

    pub fn echo_on(ip: &str) -> Self {
        Self::on(ip, echo)
    }

    pub fn echo_at(addrs: &[SocketAddr]) -> Self {
        Self::at(addrs, echo)
    }

    /// How many connections have come.
    pub fn accepted(&self) -> usize {
        lock(&self.came).count
    }

    /// Asserts that so many connections have come, of which the last may be on their way.
    pub fn assert_accepted(&self, count: usize) {
        eventually("all connections have come", || self.accepted() >= count);
        self.accept_all();
        assert_eq!(self.accepted(), count, "connections came to {}", self.addr);
    }

    /// Asserts that no connection has come from a server, all sessions of which are over.
    pub fn assert_untouched(&self, server: &Server) {
        self.assert_untouched_beside(server, 0);
    }

    /// The same where `open` sessions are not over.
    pub fn assert_untouched_beside(&self, server: &Server, open: usize) {
        server.settle(open);
        self.assert_none_came();
    }

    /// Asserts that no connection has come so far.
    pub fn assert_none_came(&self) {
        self.accept_all();
        assert_eq!(self.accepted(), 0, "a connection came to {}", self.addr);
    }

    /// Waits until every connection made so far is accepted: a sentinel queues up behind them.
    pub fn accept_all(&self) {
        for addr in &self.addrs {
            // The accepting thread waits for this lock before it counts.
            let mut came = lock(&self.came);
            let sentinel = TcpStream::connect(addr).unwrap();
            let from = sentinel.local_addr().unwrap();
            came.sentinels.push(from);
            drop(came);
            eventually("all before are accepted", || !lock(&self.came).sentinels.contains(&from));
        }
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 65_536];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// A port of 127.0.0.1 that refuses connections for as long as the socket bound to it is kept.
pub fn refusing_port() -> (SocketAddr, TcpStream) {
    let fd = sys::tcp_socket(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    sys::bind_socket(&fd, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    // Bound, so that nobody else gets it, but not listening.
    let socket = TcpStream::from(fd);
    (socket.local_addr().unwrap(), socket)
}

/// A version 4 request for an IPv4 address.
pub fn request4(cd: u8, addr: SocketAddr, userid: &[u8]) -> Vec<u8> {
    let IpAddr::V4(ip) = addr.ip() else { panic!("{addr} is not IPv4") };
    let port = addr.port().to_be_bytes();
    [&[4, cd][..], &port, &ip.octets(), userid, &[0]].concat()
}

/// A version 4A request for a name.
pub fn request4a(cd: u8, x: u8, name: &[u8], port: u16, userid: &[u8]) -> Vec<u8> {
    [&[4, cd][..], &port.to_be_bytes(), &[0, 0, 0, x], userid, &[0], name, &[0]].concat()
}

/// A version 5 request for an address.
pub fn request5(cmd: u8, addr: SocketAddr) -> Vec<u8> {
    let mut request = vec![5, cmd, 0];
    socksd::wire::put_address(addr, &mut request);
    request
}

/// A version 5 request for a name.
pub fn request5_name(cmd: u8, name: &[u8], port: u16) -> Vec<u8> {
    let len = u8::try_from(name.len()).unwrap();
    [&[5, cmd, 0, 3, len][..], name, &port.to_be_bytes()].concat()
}

/// The greeting that offers method 00.
pub const HELLO: &[u8] = &[5, 1, 0];

/// The sub-negotiation of RFC 1929: what a client sends.
pub fn login(name: &[u8], password: &[u8]) -> Vec<u8> {
    let len = |octets: &[u8]| u8::try_from(octets.len()).unwrap();
    [&[1, len(name)][..], name, &[len(password)], password].concat()
}

/// Has a client log in with the password "secret"; the request may follow.
pub fn log_in(client: &mut TcpStream, name: &str) {
    client.write_all(&[&[5, 1, 2][..], &login(name.as_bytes(), b"secret")].concat()).unwrap();
    assert_eq!(read(client, 4), [5, 2, 1, 0], "{name}");
}

/// Reads a whole version 5 reply: REP and BND.
pub fn reply5(stream: &mut TcpStream) -> (u8, SocketAddr) {
    let head = read(stream, 4);
    assert_eq!((head[0], head[2]), (5, 0), "V5-20, V5-21");
    let ip: IpAddr = match head[3] {
        1 => <[u8; 4]>::try_from(read(stream, 4)).unwrap().into(),
        4 => <[u8; 16]>::try_from(read(stream, 16)).unwrap().into(),
        other => panic!("ATYP {other} in a reply"),
    };
    let port = u16::from_be_bytes(read(stream, 2).try_into().unwrap());
    (head[1], SocketAddr::new(ip, port))
}

/// Reads a whole version 4 reply: CD and the address.
pub fn reply4(stream: &mut TcpStream) -> (u8, SocketAddr) {
    let reply = read(stream, 8);
    assert_eq!(reply[0], 0, "V4-15");
    let ip: [u8; 4] = reply[4..].try_into().unwrap();
    (reply[1], SocketAddr::from((ip, u16::from_be_bytes([reply[2], reply[3]]))))
}

/// Connects through the server with version 5 and returns the tunnel.
pub fn tunnel(server: &Server, target: SocketAddr) -> TcpStream {
    let mut client = server.sent(&[HELLO, &request5(1, target)].concat());
    assert_eq!(read(&mut client, 2), [5, 0]);
    assert_eq!(reply5(&mut client).0, 0);
    client
}

/// A tunnel with the server between its ends: the client's and the target's.
pub fn through(server: &Server) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = tunnel(server, listener.local_addr().unwrap());
    let (target, _) = listener.accept().unwrap();
    target.set_read_timeout(Some(SOON)).unwrap();
    (client, target)
}

/// A file that is removed when it is dropped.
pub struct TempFile(pub PathBuf);

impl TempFile {
    /// A file of this content that only its owner can read.
    pub fn new(content: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let name = format!("socksd-test-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Self(path)
    }

    /// A users file with the one user alice, whose password is secret.
    pub fn alice() -> Self {
        Self::alice_with("")
    }

    /// The same, with further fields behind her hash.
    pub fn alice_with(fields: &str) -> Self {
        Self::new(&format!("alice:{SECRET}{fields}\n"))
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A directory that everybody may enter and that is removed when it is dropped.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let name = format!("socksd-test-dir-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    /// The path of something in it.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).into_os_string().into_string().unwrap()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that is killed when it is dropped.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Raises a flag when it is dropped, also by a panic, so that threads which run until then end in
/// any case, and with them their scope.
pub struct Raise<'a>(pub &'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Asserts that `what` comes true [`SOON`].
pub fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !is_true() {
        assert!(Instant::now() < until, "not true in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether this process may do everything.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Whether this process may become any user: it is root, and not only in a user namespace.
pub fn is_real_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Fails a test that needs root if this process is not root.
pub fn demand_root() {
    assert!(is_real_root(), "this test changes users, which only root can do");
}

/// A command that runs a shell script in a network of its own, in which loopback is up. Whoever is
/// not root becomes it in a user namespace, to be allowed that, and stays an unprivileged user all
/// the same. The script's arguments are added by the caller.
pub fn in_new_network(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.arg("-n").args((!is_root()).then_some("-r"));
    command.args(["sh", "-c", &format!("ip link set lo up && {script}"), "sh"]);
    command
}

/// A command in the network of a server started by [`in_new_network`].
pub fn in_network_of(server: &Server, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-t", &server.pid().to_string(), "-n"]);
    if !is_root() {
        command.args(["-U", "--preserve-credentials"]);
    }
    command.arg(program).stdin(Stdio::null());
    command
}
