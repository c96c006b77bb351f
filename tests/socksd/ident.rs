//! IDENT: who the client's host says the client is takes part in what the client may do.
//!
//! Most of it against a stub that answers as told; at the end against oidentd(8).

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::netns::{isolated, link_local};
use crate::common::udp::{Association, echo_on};
use crate::common::*;
use socksd::sync::lock;
use socksd::wire::NO_ADDRESS;

const ASK: &str = "allow ident to all";
const PROVED: u8 = 90;
const UNPROVED: u8 = 92;
const DIFFERENT: u8 = 93;

/// What most clients' hosts say here. See [`says`].
const ALICE: &str = "<,>:USERID:UNIX:alice\r\n";

/// What a stub was asked.
#[derive(Clone, Debug)]
struct Query {
    from: SocketAddr,
    line: String,
}

/// A daemon that notes what it is asked and answers as told.
struct Identd {
    target: Target,
    queries: Arc<Mutex<Vec<Query>>>,
}

impl Identd {
    /// One on a port of `ip` that gives the connection and the two ports asked about to `answer`,
    /// whose return closes the connection.
    fn on(ip: &str, answer: impl Fn(&mut TcpStream, &str) + Send + Sync + 'static) -> Self {
        let queries: Arc<Mutex<Vec<Query>>> = Arc::default();
        let asked = Arc::clone(&queries);
        let target = Target::on(ip, move |mut stream| {
            stream.set_nodelay(true).unwrap();
            let from = stream.peer_addr().unwrap();
            let mut line = String::new();
            if BufReader::new(&stream).read_line(&mut line).is_ok() {
                lock(&asked).push(Query { from, line: line.clone() });
                answer(&mut stream, line.trim_end());
            }
        });
        Self { target, queries }
    }

    /// One on 127.0.0.1 that says this to every query.
    fn says(template: impl AsRef<[u8]>) -> Self {
        Self::on("127.0.0.1", says(template))
    }

    /// One on 127.0.0.1 that never says anything.
    fn silent() -> Self {
        Self::on("127.0.0.1", |stream, _| hold(stream))
    }

    /// For `--ident-port`.
    fn port(&self) -> String {
        self.target.addr.port().to_string()
    }

    fn queries(&self) -> Vec<Query> {
        lock(&self.queries).clone()
    }

    /// Asserts that a server has asked so many times.
    fn assert_asked(&self, server: &Server, count: usize) {
        // A daemon is asked before its session goes on.
        server.serve_sentinel();
        self.target.assert_accepted(count);
        // The line of the last one may be on its way.
        eventually("all queries are read", || self.queries().len() == count);
    }
}

/// Waits for the peer to close, as daemons do that take further queries.
fn hold(stream: &mut TcpStream) {
    let _ = stream.read(&mut [0; 16]);
}

/// An answer, in which `<` and `>` stand for the ports asked about. The connection stays open.
fn says(template: impl AsRef<[u8]>) -> impl Fn(&mut TcpStream, &str) + Send + Sync + 'static {
    let template = template.as_ref().to_vec();
    move |stream, ports| {
        let _ = stream.write_all(&filled(&template, ports));
        hold(stream);
    }
}

fn filled(template: &[u8], ports: &str) -> Vec<u8> {
    let (client, server) = ports.split_once(',').unwrap();
    let mut octets = Vec::new();
    for &octet in template {
        match octet {
            b'<' => octets.extend(client.bytes()),
            b'>' => octets.extend(server.bytes()),
            _ => octets.push(octet),
        }
    }
    octets
}

/// A server, the daemon it asks and a target.
struct Bench {
    server: Server,
    identd: Identd,
    target: Target,
}

impl Bench {
    fn new(identd: Identd) -> Self {
        Self::with(identd, &["--rule", ASK])
    }

    fn with(identd: Identd, args: &[&str]) -> Self {
        let server = Server::start(&[&["-v", "--ident-port", &identd.port()], args].concat());
        Self { server, identd, target: Target::echo() }
    }

    fn rules(identd: Identd, rules: &[&str]) -> Self {
        let args: Vec<&str> = rules.iter().flat_map(|rule| ["--rule", *rule]).collect();
        Self::with(identd, &args)
    }

    fn connect4(&self, userid: impl AsRef<[u8]>) -> Vec<u8> {
        request4(1, self.target.addr, userid.as_ref())
    }

    /// Asserts that SOCKS 4 connects a client of this USERID.
    fn grants4(&self, userid: impl AsRef<[u8]>) {
        let mut client = self.server.sent(&self.connect4(userid));
        assert_eq!(reply4(&mut client).0, PROVED, "V4-20");
        assert_echoes(&mut client);
    }

    /// Asserts that SOCKS 5 connects a client.
    fn grants5(&self) {
        assert_echoes(&mut tunnel(&self.server, self.target.addr));
    }

    /// Asserts that SOCKS 4 refuses a request with this reply, closes, and has connected nowhere.
    fn refuses(&self, request: &[u8], cd: u8) {
        assert_refuses4(&self.server, request, cd);
        self.target.assert_untouched(&self.server);
    }

    fn refuses4(&self, userid: impl AsRef<[u8]>, cd: u8) {
        self.refuses(&self.connect4(userid), cd);
    }

    /// The same for a request of SOCKS 5, behind its greeting.
    fn refuses5(&self, request: &[u8]) {
        assert_refuses5(&self.server, request);
        self.target.assert_untouched(&self.server);
    }

    fn connect5(&self) -> Vec<u8> {
        request5(1, self.target.addr)
    }

    /// Asserts that this daemon proves nothing to either version, in good time.
    fn proves_nothing(&self) {
        assert_refuses4(&self.server, &self.connect4("alice"), UNPROVED);
        assert_refuses5(&self.server, &self.connect5());
        self.target.assert_untouched(&self.server);
        self.server.log_lines(&["event=refuse", "reason=ident", "IDENT proves nothing"], 2);
        self.server.log_lines(&["event=ident "], 2);
    }
}

fn assert_refuses4(server: &Server, request: &[u8], cd: u8) {
    let mut client = server.sent(request);
    assert_eq!(reply4(&mut client), (cd, NO_ADDRESS), "{:#?}", server.log());
    assert_eq!(read_to_end(&mut client), b"");
}

fn assert_refuses5(server: &Server, request: &[u8]) {
    let mut client = server.sent(&[HELLO, request].concat());
    assert_eq!(read(&mut client, 2), [5, 0]);
    assert_eq!(reply5(&mut client), (2, NO_ADDRESS), "{:#?}", server.log());
    assert_eq!(read_to_end(&mut client), b"");
}

fn assert_echoes(client: &mut TcpStream) {
    client.write_all(b"ping").unwrap();
    assert_eq!(read(client, 4), b"ping");
}

#[test]
fn ident_01_ident_17_the_query_comes_before_reply_and_connection() {
    for delivery in DELIVERIES {
        let (go, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let bench = Bench::new(Identd::on("127.0.0.1", move |stream, ports| {
            lock(&wait).recv().unwrap();
            says(ALICE)(stream, ports);
        }));
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                let request = bench.connect4("alice");
                delivery.exchange(&bench.server, &[(&request, 8)], b"payload")
            });
            eventually("a query", || bench.identd.queries().len() == 1);
            bench.target.assert_untouched_beside(&bench.server, 1);
            assert!(!client.is_finished(), "{delivery:?}");
            go.send(()).unwrap();
            let (answers, mut client) = client.join().unwrap();
            assert_eq!(answers[0][..2], [0, PROVED]);
            assert_eq!(read(&mut client, 7), b"payload");
        });
        bench.identd.assert_asked(&bench.server, 1);
    }
}

#[test]
fn ident_02_ident_03_the_query_names_both_ports_and_comes_from_the_address_reached() {
    let server_ip = Ipv4Addr::new(127, 0, 0, 8);
    for listen in ["0.0.0.0:0", "[::]:0", "127.0.0.8:0"] {
        let identd = Identd::on("127.0.0.7", says(ALICE));
        let target = Target::echo();
        // Where targets are connected from is another matter.
        let source = ["--source", "127.0.0.9", "--listen", listen];
        let server = Server::spawn(
            Command::new(SOCKSD).args(["--rule", ASK, "--ident-port", &identd.port()]).args(source),
        );
        let reached = SocketAddr::from((server_ip, server.addr.port()));
        for request in
            [request4(1, target.addr, b"alice"), [HELLO, &request5(1, target.addr)].concat()]
        {
            let mut client = connect_from(Ipv4Addr::new(127, 0, 0, 7), reached);
            client.write_all(&request).unwrap();
            match request[0] {
                4 => assert_eq!(reply4(&mut client).0, PROVED),
                _ => assert_eq!((read(&mut client, 2), reply5(&mut client).0), (vec![5, 0], 0)),
            }
            let query = identd.queries().pop().unwrap();
            assert_eq!(query.from.ip(), IpAddr::from(server_ip), "{listen}");
            let port = client.local_addr().unwrap().port();
            assert_eq!(query.line, format!("{port},{}\r\n", reached.port()));
        }
        identd.assert_asked(&server, 2);
    }
}

#[test]
fn ident_04_the_same_user_goes_on() {
    let bench = Bench::new(Identd::says(ALICE));
    for delivery in DELIVERIES {
        let request = bench.connect4("alice");
        let (answers, mut client) = delivery.exchange(&bench.server, &[(&request, 8)], b"payload");
        assert_eq!(answers[0][..2], [0, PROVED], "{delivery:?}");
        assert_eq!(read(&mut client, 7), b"payload");
        let messages = [(HELLO, 2), (&bench.connect5(), 10)];
        let (answers, mut client) = delivery.exchange(&bench.server, &messages, b"payload");
        assert_eq!(answers[1][..2], [5, 0], "{delivery:?}");
        assert_eq!(read(&mut client, 7), b"payload");
    }
    let name = request4a(1, 1, b"localhost", bench.target.addr.port(), b"alice");
    let mut client = bench.server.sent(&name);
    assert_eq!(reply4(&mut client).0, PROVED);
    assert_echoes(&mut client);
    drop(client);
    for version in ["4", "4a", "5"] {
        let version = format!("version={version}");
        bench.server.log_line(&["event=close", "user=alice", &version, "rule=--rule:1"]);
    }
    assert!(!bench.server.log().iter().any(|line| line.contains("event=ident")));
}

#[test]
fn ident_05_ident_17_a_different_user_is_refused() {
    let bench = Bench::new(Identd::says("<,>:USERID:UNIX:bob\r\n"));
    for delivery in DELIVERIES {
        let request = bench.connect4("alice");
        let (answers, mut client) = delivery.exchange(&bench.server, &[(&request, 8)], b"");
        assert_eq!(answers[0], [0, DIFFERENT, 0, 0, 0, 0, 0, 0], "{delivery:?}");
        assert_eq!(read_to_end(&mut client), b"");
        bench.target.assert_untouched(&bench.server);
    }
    // What a client sends behind a request must not destroy the reply.
    bench.refuses(&[&bench.connect4("alice"), &b"payload"[..]].concat(), DIFFERENT);
    let line = bench.server.log_line(&["event=refuse"]);
    assert!(line.contains("error=\"IDENT names another user\""), "{line}");
    for (key, value) in [("user", "alice"), ("reply", "5d"), ("reason", "ident")] {
        assert_eq!(field(&line, key), value, "{line}");
    }
}

#[test]
fn ident_06_ident_17_nobody_to_ask_refuses() {
    let (nobody, _socket) = refusing_port();
    let port = nobody.port().to_string();
    let target = Target::echo();
    let server = Server::start(&["-v", "--rule", ASK, "--ident-port", &port]);
    for delivery in DELIVERIES {
        for userid in [&b"alice"[..], b""] {
            let request = request4(1, target.addr, userid);
            let (answers, mut client) = delivery.exchange(&server, &[(&request, 8)], b"");
            assert_eq!(answers[0], [0, UNPROVED, 0, 0, 0, 0, 0, 0], "{delivery:?}");
            assert_eq!(read_to_end(&mut client), b"");
        }
        let messages = [(HELLO, 2), (&request5(1, target.addr), 10)];
        let (answers, mut client) = delivery.exchange(&server, &messages, b"");
        assert_eq!(answers[1], [5, 2, 0, 1, 0, 0, 0, 0, 0, 0], "{delivery:?}");
        assert_eq!(read_to_end(&mut client), b"");
    }
    target.assert_untouched(&server);
    let line = server.log_line(&["event=refuse", "version=4 ", "user=alice"]);
    assert_eq!((field(&line, "reply"), field(&line, "reason")), ("5c", "ident"));
    let line = server.log_line(&["event=refuse", "version=5"]);
    let fields = ["user", "reply", "reason", "rule"].map(|key| field(&line, key));
    assert_eq!(fields, ["-", "02", "ident", "-"]);
    assert!(line.contains("error=\"IDENT proves nothing\""), "{line}");
    let line = server.log_line(&["event=ident "]);
    assert!(line.contains("error=\"identd connection failed: Connection refused"), "{line}");
}

#[test]
fn ident_06_only_with_v_is_it_told_what_a_daemon_did() {
    let identd = Identd::says("<,>:ERROR:NO-USER\r\n");
    let server = Server::start(&["--rule", ASK, "--ident-port", &identd.port()]);
    let mut client = server.sent(&request4(1, identd.target.addr, b"alice"));
    assert_eq!(reply4(&mut client).0, UNPROVED);
    server.log_line(&["event=refuse", "reason=ident"]);
    assert!(!server.log().iter().any(|line| line.contains("event=ident")));
}

#[test]
fn ident_07_ident_17_an_error_proves_nothing() {
    for word in ["NO-USER", "HIDDEN-USER", "UNKNOWN-ERROR", "INVALID-PORT", "XALICE"] {
        let bench = Bench::new(Identd::says(format!("<,>:ERROR:{word}\r\n")));
        bench.proves_nothing();
        let line = bench.server.log_line(&["event=ident "]);
        assert!(line.ends_with(&format!("error=\"identd answered with error {word}\"")), "{line}");
    }
    for answer in ["< , > : ERROR : NO-USER\r\n", "0,0:ERROR:INVALID-PORT\r\n", "<,>:ERROR:\r\n"] {
        Bench::new(Identd::says(answer)).proves_nothing();
    }
}

#[test]
fn ident_07_no_line_of_the_log_can_be_forged_by_a_daemon() {
    let word = "x\"\revent=close user=root\u{1b}[2J\u{9b}";
    let bench = Bench::new(Identd::says(format!("<,>:ERROR:{word}{}\r\n", "y".repeat(900))));
    bench.proves_nothing();
    for line in bench.server.log() {
        assert!(line.len() < 700 && !line.contains(char::is_control), "{line}");
        assert!(!line.contains("event=close") || line.contains("event=ident "), "{line}");
    }
    let bench = Bench::new(Identd::says(&b"<,>:USERID:UNIX:a b\"\x1b\xff=\\\r\n"[..]));
    bench.grants5();
    let line = bench.server.log_line(&["event=close"]);
    assert_eq!(field(&line, "user"), "a\\x20b\\x22\\x1b\\xff\\x3d\\x5c", "{line}");
}

#[test]
fn ident_08_ident_17_a_close_before_the_end_of_line_proves_nothing() {
    let whole = ALICE.trim_end();
    for template in ["", "<", "<,>:USERID:UNIX:", whole, &format!("{whole}\r")] {
        let template = template.to_owned();
        let bench = Bench::new(Identd::on("127.0.0.1", move |stream, ports| {
            stream.write_all(&filled(template.as_bytes(), ports)).unwrap();
        }));
        bench.proves_nothing();
        bench.server.log_lines(&["event=ident ", "identd closed without an answer"], 2);
    }
}

#[test]
fn ident_08_ident_17_a_reset_proves_nothing() {
    for template in ["", ALICE.trim_end()] {
        let bench = Bench::new(Identd::on("127.0.0.1", move |stream, ports| {
            stream.write_all(&filled(template.as_bytes(), ports)).unwrap();
            socksd::sys::set_linger_zero(stream).unwrap();
        }));
        bench.proves_nothing();
    }
}

#[test]
fn ident_09_ident_17_a_silent_daemon_is_waited_for_with_an_end() {
    let trickle = |stream: &mut TcpStream, _: &str| {
        while stream.write_all(b" ").is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
    };
    let half = |stream: &mut TcpStream, ports: &str| says("<,>:USERID:UNIX:alice")(stream, ports);
    let daemons =
        [Identd::silent(), Identd::on("127.0.0.1", trickle), Identd::on("127.0.0.1", half)];
    for identd in daemons {
        let bench = Bench::with(identd, &["--rule", ASK, "--ident-timeout", "1"]);
        for _ in 0..2 {
            let begun = Instant::now();
            bench.refuses4("alice", UNPROVED);
            assert!(begun.elapsed() >= Duration::from_secs(1));
        }
        bench.refuses5(&bench.connect5());
        bench.server.log_lines(&["event=ident ", "identd did not answer in time"], 3);
    }
}

/// Where connections are neither made nor refused, as long as what is returned is kept.
fn unanswering() -> (SocketAddr, Vec<OwnedFd>) {
    let full = TcpListener::bind("127.0.0.1:0").unwrap();
    socksd::sys::listen(&full, 0).unwrap();
    let addr = full.local_addr().unwrap();
    let short = Duration::from_millis(100);
    let mut kept = vec![OwnedFd::from(full)];
    let fill = (0..3).filter_map(|_| TcpStream::connect_timeout(&addr, short).ok());
    kept.extend(fill.map(OwnedFd::from));
    (addr, kept)
}

#[test]
fn ident_09_ident_06_a_host_that_drops_queries_is_waited_for_with_an_end() {
    let (addr, _kept) = unanswering();
    let target = Target::echo();
    let port = addr.port().to_string();
    let server = Server::start(&["--rule", ASK, "--ident-port", &port, "--ident-timeout", "1"]);
    let begun = Instant::now();
    let mut client = server.sent(&request4(1, target.addr, b"alice"));
    assert_eq!(reply4(&mut client).0, UNPROVED);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(read_to_end(&mut client), b"");
    target.assert_untouched(&server);
}

/// Asserts that the session of a client that asks for `target` ends at once when it breaks its
/// connection, after `asked` has waited for the server to ask.
fn assert_leaving_ends(server: &Server, target: SocketAddr, asked: impl FnOnce()) {
    let client = server.sent(&request4(1, target, b"alice"));
    asked();
    let begun = Instant::now();
    socksd::sys::set_linger_zero(&client).unwrap();
    drop(client);
    server.log_line(&["event=close", "reply=- ", "reason=client"]);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn a_client_that_leaves_while_identd_is_silent_ends_its_session() {
    let bench = Bench::new(Identd::silent());
    assert_leaving_ends(&bench.server, bench.target.addr, || {
        eventually("a query", || bench.identd.queries().len() == 1);
    });
    bench.target.assert_untouched(&bench.server);
}

#[test]
fn a_client_that_sends_nothing_more_is_waited_for_two_seconds_while_identd_is_silent() {
    let bench = Bench::new(Identd::silent());
    let mut client = bench.server.sent(&bench.connect4("alice"));
    eventually("a query", || bench.identd.queries().len() == 1);
    let begun = Instant::now();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client), b"");
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    bench.server.log_line(&["event=close", "reply=- ", "reason=client"]);
    bench.target.assert_untouched(&bench.server);
}

#[test]
fn real_04_a_client_that_has_sent_all_while_identd_is_asked_is_served() {
    let identd = Identd::on("127.0.0.1", |stream, ports| {
        // Time for the end of the client's output to be seen.
        thread::sleep(Duration::from_millis(200));
        says("<, > : USERID : UNIX : alice\r\n")(stream, ports);
    });
    let bench = Bench::new(identd);
    let mut client = bench.server.sent(&[&bench.connect4("alice")[..], b"all"].concat());
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(reply4(&mut client).0, PROVED);
    assert_eq!(read_to_end(&mut client), b"all");
}

#[test]
fn a_client_that_leaves_while_the_connection_to_identd_is_not_made_ends_its_session() {
    let (addr, _kept) = unanswering();
    let target = Target::echo();
    let server = Server::start(&["-v", "--rule", ASK, "--ident-port", &addr.port().to_string()]);
    // The client's, and the one that is on its way.
    let (before, _) = server.holds();
    assert_leaving_ends(&server, target.addr, || {
        eventually("it connects", || server.holds().0 == before + 2);
    });
    eventually("all is closed", || server.holds().0 == before);
    target.assert_untouched(&server);
}

/// A daemon for two hosts: that of 127.0.0.1 is silent, the other's clients are all alice.
fn half_silent() -> Identd {
    Identd::on("0.0.0.0", |stream, ports| match stream.local_addr().unwrap().ip() {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => hold(stream),
        _ => says(ALICE)(stream, ports),
    })
}

#[test]
fn ident_09_others_are_served_while_daemons_are_silent() {
    for (args, timed) in [(&["--ident-timeout", "1"][..], true), (&[], false)] {
        let bench = Bench::with(half_silent(), &[&["--rule", ASK], args].concat());
        // The main thread, the two that wait for clients, and those for signals and half-closed
        // relays.
        eventually("all its threads have started", || bench.server.holds().1 == 5);
        let (before, _) = bench.server.holds();
        let begun = Instant::now();
        let mut silent: Vec<TcpStream> =
            (0..20).map(|_| bench.server.sent(&bench.connect4("alice"))).collect();
        eventually("20 queries", || bench.identd.target.accepted() >= 20);
        let mut other = connect_from(Ipv4Addr::new(127, 0, 0, 2), bench.server.addr);
        other.write_all(&bench.connect4("alice")).unwrap();
        assert_eq!(reply4(&mut other).0, PROVED);
        assert_echoes(&mut other);
        drop(other);
        if timed {
            for client in &mut silent {
                assert_eq!(reply4(client).0, UNPROVED);
                assert_eq!(read_to_end(client), b"");
                assert!(begun.elapsed() >= Duration::from_secs(1));
            }
            drop(silent);
            eventually("all is closed", || bench.server.holds().0 == before);
        } else {
            // The default is at least the 30 seconds that RFC 1413 advises.
            assert_silent(&bench.server, &mut silent[0]);
        }
        bench.target.assert_accepted(1);
    }
}

#[test]
fn ident_10_white_space_is_optional_anywhere() {
    for answer in [
        "<,>:USERID:UNIX:alice\r\n",
        "< , > : USERID : UNIX : alice\r\n",
        "<, > : USERID : UNIX :alice\r\n",
        " \t<\t,\t>\t:\tUSERID\t:\tUNIX\t:\talice\r\n",
        "<,>:USERID:UNIX:alice\n",
    ] {
        let bench = Bench::rules(Identd::says(answer), &["allow ident user alice to all"]);
        bench.grants4("alice");
        bench.grants5();
    }
}

#[test]
fn ident_11_opsys_may_be_any_token_and_carry_a_charset() {
    for opsys in ["OTHER", "UNIX,US-ASCII", "UNIX , UTF-8", "OTHER,ISO-8859-1", "VM/CMS", "x"] {
        let answer = format!("<,>:USERID:{opsys}:alice\r\n");
        let bench = Bench::rules(Identd::says(answer), &["allow ident user alice to all"]);
        bench.grants4("alice");
        bench.grants5();
    }
}

#[test]
fn ident_12_long_user_ids_are_accepted_and_compared_whole() {
    let long = "a".repeat(255);
    let other = format!("{}b", &long[1..]);
    for (answer, wrong) in [(&long, &other), (&other, &long)] {
        let bench = Bench::new(Identd::says(format!("<,>:USERID:UNIX:{answer}\r\n")));
        bench.refuses4(wrong, DIFFERENT);
        bench.refuses4(&answer[1..], DIFFERENT);
        bench.grants4(answer);
    }
    // Longer ones than any USERID: no beginning of theirs is taken for them.
    for len in [256, 512, 900] {
        let bench = Bench::new(Identd::says(format!("<,>:USERID:UNIX:{}\r\n", "a".repeat(len))));
        bench.refuses4(&long, DIFFERENT);
        bench.grants5();
        let line = bench.server.log_line(&["event=close", "version=5"]);
        assert_eq!(field(&line, "user").len(), len);
    }
}

#[test]
fn ident_13_ident_17_an_endless_answer_is_given_up() {
    let (ended, end) = mpsc::channel();
    let ended = Mutex::new(ended);
    let bench = Bench::new(Identd::on("127.0.0.1", move |stream, ports| {
        stream.write_all(&filled(b"<,>:USERID:UNIX:alice", ports)).unwrap();
        while stream.write_all(&[b'e'; 4096]).is_ok() {}
        lock(&ended).send(()).unwrap();
    }));
    bench.proves_nothing();
    bench.server.log_lines(&["event=ident ", "no end of line in 1000 octets"], 2);
    for _ in 0..2 {
        end.recv_timeout(SOON).expect("the daemon is still listened to");
    }
    // The end of line comes too late.
    let late = format!("<,>:USERID:UNIX:alice{}\r\n", " ".repeat(1000));
    Bench::new(Identd::says(late)).proves_nothing();
}

#[test]
fn ident_14_ident_17_the_answer_must_repeat_the_ports() {
    for pair in [">,<", "<,<", ">,>", "<", "<,", ",>", "", "<>", "+<,>", "0,0", "<,>0", "<,>,>"] {
        let bench = Bench::new(Identd::says(format!("{pair}:USERID:UNIX:alice\r\n")));
        bench.proves_nothing();
        bench.server.log_lines(&["event=ident ", "ports differ from the query"], 2);
    }
}

#[test]
fn ident_15_ident_17_the_comparison_is_octet_by_octet() {
    for (answer, userid) in [
        ("alice", "Alice"),
        ("ALICE", "alice"),
        ("alice", "alic"),
        ("alice", "alice2"),
        ("alice ", "alice"),
        ("alice", "alice "),
        ("alice", " alice"),
        ("alice:x", "alice"),
        ("alice", "alice\n"),
        ("alic\u{e9}", "alice"),
        ("alice", "*"),
        ("alice", "UNIX"),
    ] {
        let bench = Bench::new(Identd::says(format!("<,>:USERID:UNIX:{answer}\r\n")));
        bench.refuses4(userid, DIFFERENT);
        bench.grants4(answer);
    }
    let bench = Bench::new(Identd::says(&b"<,>:USERID:UNIX:\xff\xfe\x01\r\n"[..]));
    bench.refuses4(b"\xff\xfe", DIFFERENT);
    bench.refuses4("\u{ff}\u{fe}\u{1}", DIFFERENT);
    bench.grants4(b"\xff\xfe\x01");
}

#[test]
fn ident_15_ident_17_an_empty_userid_is_nobodys() {
    let bench = Bench::new(Identd::says(ALICE));
    bench.refuses4("", DIFFERENT);
    bench.refuses(&request4a(1, 1, b"localhost", bench.target.addr.port(), b""), DIFFERENT);
    // Neither is an empty answer anybody's.
    for empty in ["", " ", "\t"] {
        let bench = Bench::new(Identd::says(format!("<,>:USERID:UNIX:{empty}\r\n")));
        bench.refuses4("", UNPROVED);
        bench.proves_nothing();
    }
}

#[test]
fn ident_15_ident_17_a_nul_or_a_second_line_forges_nobody() {
    for answer in [
        "<,>:USERID:UNIX:alice\0bob\r\n",
        "<,>:USERID:UNIX:alice\0\r\n",
        "<,>:USERID:UNIX:\0alice\r\n",
        "<,>:USERID:UNIX:alice\rbob\r\n",
        "\r\n<,>:USERID:UNIX:alice\r\n",
        "<,>:ERROR:NO-USER\r\n<,>:USERID:UNIX:alice\r\n",
        "hello\r\n<,>:USERID:UNIX:alice\r\n",
        "alice\r\n",
        "<,>:USERID\r\n",
        "<,>:USERID:alice\r\n",
        "<,>:USER:UNIX:alice\r\n",
    ] {
        Bench::new(Identd::says(answer)).proves_nothing();
    }
    // The first of several lines counts.
    let bench =
        Bench::new(Identd::says("<,>:USERID:UNIX:bob\r\n<,>:USERID:UNIX:alice\r\n".repeat(20)));
    bench.refuses4("alice", DIFFERENT);
    bench.grants4("bob");
}

#[test]
fn ident_16_the_answer_may_come_octet_by_octet() {
    for template in [ALICE, "< , > : USERID : UNIX,US-ASCII : alice\r\n"] {
        let bench = Bench::new(Identd::on("127.0.0.1", |stream, ports| {
            for octet in filled(template.as_bytes(), ports) {
                stream.write_all(&[octet]).unwrap();
                thread::sleep(Duration::from_millis(2));
            }
        }));
        bench.grants4("alice");
        bench.grants5();
    }
}

#[test]
fn ident_18_a_bind_is_checked_the_same_way() {
    isolated(|| {
        let early = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&early);
        let identd = Identd::on("127.0.0.1", move |stream, ports| {
            // Nothing may be listened on yet.
            seen.fetch_add(TcpStream::connect("127.0.0.1:2001").is_ok().into(), Ordering::SeqCst);
            says(ALICE)(stream, ports);
        });
        let args = ["--port-range", "2001-2001", "--rule", "allow ident user alice to all"];
        let bench = Bench::with(identd, &args);
        let peer = SocketAddr::from(([127, 0, 0, 1], 0));
        bench.refuses(&request4(2, peer, b"bob"), DIFFERENT);
        bench.refuses(&request4a(2, 1, b"localhost", 0, b"bob"), DIFFERENT);
        assert!(TcpStream::connect("127.0.0.1:2001").is_err());
        let line = bench.server.log_line(&["event=refuse", "command=bind", "version=4 "]);
        assert_eq!((field(&line, "reason"), field(&line, "reply")), ("ident", "5d"));

        let mut client = bench.server.sent(&request4(2, peer, b"alice"));
        let (cd, bnd) = reply4(&mut client);
        assert_eq!((cd, bnd.port()), (PROVED, 2001));
        let mut other = connect(bnd);
        assert_eq!(reply4(&mut client), (PROVED, other.local_addr().unwrap()));
        client.write_all(b"ping").unwrap();
        assert_eq!(read(&mut other, 4), b"ping");
        // Once for both replies.
        bench.identd.assert_asked(&bench.server, 3);
        drop((client, other));
        bench.server.log_line(&["event=close", "command=bind", "user=alice"]);

        let mut client = bench.server.sent(&[HELLO, &request5(2, peer)].concat());
        assert_eq!(read(&mut client, 2), [5, 0]);
        let (rep, bnd) = reply5(&mut client);
        assert_eq!(rep, 0);
        let other = connect(bnd);
        assert_eq!(reply5(&mut client), (0, other.local_addr().unwrap()));
        bench.identd.assert_asked(&bench.server, 4);
        assert_eq!(early.load(Ordering::SeqCst), 0, "a port was opened before the answer");
    });
}

#[test]
fn ident_18_a_bind_is_refused_where_nothing_is_proved() {
    let bench = Bench::new(Identd::says("<,>:ERROR:HIDDEN-USER\r\n"));
    bench.refuses(&request4(2, bench.target.addr, b"alice"), UNPROVED);
    bench.refuses5(&request5(2, bench.target.addr));
    bench.refuses5(&request5(2, NO_ADDRESS));
}

#[test]
fn ident_19_the_whole_4a_request_is_read_and_nothing_resolved_before() {
    isolated(|| {
        let dns = UdpSocket::bind("127.0.0.1:53").unwrap();
        let bench = Bench::new(Identd::says("<,>:USERID:UNIX:bob\r\n"));
        let request = request4a(1, 1, b"host.example", 80, b"alice");
        let (most, last) = request.split_at(request.len() - 1);
        let mut client = bench.server.sent(most);
        assert_silent(&bench.server, &mut client);
        bench.identd.target.assert_untouched_beside(&bench.server, 1);
        client.write_all(last).unwrap();
        assert_eq!(reply4(&mut client), (DIFFERENT, NO_ADDRESS));
        assert_eq!(read_to_end(&mut client), b"");
        let messages: [(&[u8], usize); 1] = [(&request, 8)];
        for delivery in DELIVERIES {
            let (answers, mut client) = delivery.exchange(&bench.server, &messages, b"");
            assert_eq!(answers[0][..2], [0, DIFFERENT], "{delivery:?}");
            assert_eq!(read_to_end(&mut client), b"");
        }
        bench.identd.assert_asked(&bench.server, 4);

        // The same of SOCKS 5.
        let port = bench.identd.port();
        let server =
            Server::start(&["--rule", "allow ident user alice to all", "--ident-port", &port]);
        let mut client = server.sent(&[HELLO, &request5_name(1, b"host.example", 80)].concat());
        assert_eq!((read(&mut client, 2), reply5(&mut client).0), (vec![5, 0], 2));
        bench.identd.assert_asked(&bench.server, 5);
        // No name is looked up for nobody.
        assert_no_datagram(&dns);

        let _client = bench.server.sent(&request4a(1, 1, b"host.example", 80, b"bob"));
        dns.set_read_timeout(Some(SOON)).unwrap();
        dns.recv(&mut [0; 512]).expect("no name was looked up");
        bench.identd.assert_asked(&bench.server, 6);
    });
}

#[test]
fn ident_19_a_4a_request_is_checked_the_same_way() {
    let bench = Bench::new(Identd::says(ALICE));
    let port = bench.target.addr.port();
    bench.refuses(&request4a(1, 1, b"localhost", port, b"bob"), DIFFERENT);
    bench.refuses(&request4a(1, 255, b"127.0.0.1", port, b"bob"), DIFFERENT);
    let line = bench.server.log_line(&["event=refuse"]);
    let fields = ["user", "version", "reply", "reason"].map(|key| field(&line, key));
    assert_eq!(fields, ["bob", "4a", "5d", "ident"]);

    let bench = Bench::new(Identd::says("<,>:ERROR:NO-USER\r\n"));
    let port = bench.target.addr.port();
    bench.refuses(&request4a(1, 1, b"localhost", port, b"alice"), UNPROVED);
}

#[test]
fn ident_01_the_answer_is_who_a_client_of_version_5_is() {
    let rules = ["allow ident user alice to all", "deny user any to all"];
    let users = TempFile::alice();
    let args = ["--users", users.path(), "--rule", rules[0], "--rule", rules[1]];
    let bench = Bench::with(Identd::says("<,>:USERID:UNIX:bob\r\n"), &args);
    bench.refuses5(&bench.connect5());
    // There is an answer, and no rule for it.
    let line = bench.server.log_line(&["event=refuse"]);
    let fields = ["user", "reply", "reason", "rule"].map(|key| field(&line, key));
    assert_eq!(fields, ["bob", "02", "denied", "-"]);
    // In version 4 such a user is denied like any other.
    bench.refuses4("bob", 91);
    bench.refuses4("alice", DIFFERENT);

    let bench = Bench::with(Identd::says(ALICE), &args);
    bench.grants5();
    let line = bench.server.log_line(&["event=close"]);
    assert_eq!((field(&line, "user"), field(&line, "rule")), ("alice", "--rule:1"));
    bench.identd.assert_asked(&bench.server, 1);
}

#[test]
fn ident_01_who_has_proved_nothing_may_do_what_anybody_may() {
    let other = Target::echo();
    let port = other.addr.port();
    let rule = format!("allow to 127.0.0.1 port {port}");
    let (nobody, _socket) = refusing_port();
    let ident_port = nobody.port().to_string();
    let args = ["--rule", ASK, "--rule", &rule, "--ident-port", &ident_port];
    let server = Server::start(&args);
    let mut client = server.sent(&request4(1, other.addr, b"alice"));
    assert_eq!(reply4(&mut client).0, PROVED);
    drop(client);
    assert_echoes(&mut tunnel(&server, other.addr));
    let line = server.log_line(&["event=close", "version=5"]);
    assert_eq!((field(&line, "user"), field(&line, "rule")), ("-", "--rule:2"));

    let target = Target::echo();
    let mut client = server.sent(&request4(1, target.addr, b"alice"));
    assert_eq!(reply4(&mut client).0, UNPROVED);
    target.assert_untouched(&server);
}

#[test]
fn ident_01_a_deny_rule_fails_closed() {
    let rules = ["deny ident user bob to all", "allow to all"];
    let bench = Bench::rules(Identd::says("<,>:USERID:UNIX:bob\r\n"), &rules);
    bench.refuses5(&bench.connect5());
    let line = bench.server.log_line(&["event=refuse"]);
    let fields = ["user", "reply", "reason", "rule"].map(|key| field(&line, key));
    assert_eq!(fields, ["bob", "02", "denied", "--rule:1"]);
    bench.refuses4("bob", 91);
    bench.refuses4("alice", DIFFERENT);
    bench.refuses4("", DIFFERENT);

    for answer in ["<,>:ERROR:HIDDEN-USER\r\n", ">,<:USERID:UNIX:alice\r\n"] {
        Bench::rules(Identd::says(answer), &rules).proves_nothing();
    }
    let bench = Bench::rules(Identd::on("127.0.0.1", |_, _| {}), &rules);
    bench.proves_nothing();

    let bench = Bench::rules(Identd::says(ALICE), &rules);
    bench.refuses4("bob", DIFFERENT);
    bench.grants4("alice");
    bench.grants5();
    bench.server.log_line(&["event=close", "version=5", "user=alice", "rule=--rule:2"]);
}

#[test]
fn ident_01_a_negated_user_is_somebody_else_who_is_proved() {
    let rules = ["allow ident user !bob to all"];
    Bench::rules(Identd::says("<,>:ERROR:NO-USER\r\n"), &rules).proves_nothing();
    let bench = Bench::rules(Identd::says("<,>:USERID:UNIX:bob\r\n"), &rules);
    bench.refuses5(&bench.connect5());
    bench.refuses4("bob", 91);
    let bench = Bench::rules(Identd::says(ALICE), &rules);
    bench.grants4("alice");
    bench.grants5();
}

#[test]
fn ident_01_a_group_of_the_users_file_is_for_a_user_whom_ident_names() {
    let users = TempFile::new("alice:!::staff\ncarol:!:2020-01-01:staff\ndave:!::guests\n");
    let rule = "allow ident user @staff to all";
    let args = ["--users", users.path(), "--rule", rule];
    let bench = Bench::with(Identd::says(ALICE), &args);
    bench.refuses4("dave", DIFFERENT);
    bench.grants4("alice");
    bench.grants5();
    bench.server.log_line(&["event=close", "version=5", "user=alice"]);
    // Not in the group, unknown; an account that has expired proves nothing.
    for (name, cd, reason) in [
        ("dave", 91, "reason=denied"),
        ("bob", 91, "reason=denied"),
        ("staff", 91, "reason=denied"),
        ("@staff", 91, "reason=denied"),
        ("carol", 92, "reason=ident"),
    ] {
        let bench = Bench::with(Identd::says(format!("<,>:USERID:UNIX:{name}\r\n")), &args);
        bench.refuses4(name, cd);
        bench.refuses5(&bench.connect5());
        bench.server.log_lines(&["event=refuse", reason], 2);
    }
}

#[test]
fn ident_01_a_password_and_ident_do_not_get_mixed_up() {
    let users = TempFile::alice();
    let args = ["--users", users.path(), "--rule", "allow user alice to all", "--rule", ASK];
    let userpass = [&[5, 1, 2, 1, 5][..], b"alice", &[6], b"secret"].concat();
    // With her password she needs nobody's word.
    let bench = Bench::with(Identd::says("<,>:USERID:UNIX:bob\r\n"), &args);
    let mut client = bench.server.sent(&[&userpass, &bench.connect5()[..]].concat());
    assert_eq!(read(&mut client, 4), [5, 2, 1, 0]);
    assert_eq!(reply5(&mut client).0, 0);
    drop(client);
    bench.server.log_line(&["event=close", "user=alice", "rule=--rule:1"]);
    bench.identd.target.assert_untouched(&bench.server);
    // IDENT's word does not do for a password.
    let args = ["--users", users.path(), "--rule", "allow user alice to all", "--rule", ASK];
    let bench = Bench::with(Identd::says(ALICE), &args);
    bench.grants5();
    bench.server.log_line(&["event=close", "user=alice", "rule=--rule:2"]);
    bench.identd.assert_asked(&bench.server, 1);
}

#[test]
fn ident_01_nobody_is_asked_twice_in_a_session() {
    let bench = Bench::rules(
        Identd::says(ALICE),
        &[
            "deny ident user bob to all",
            "allow ident user carol to all",
            "allow ident user bob,alice to loopback",
            ASK,
        ],
    );
    bench.grants4("alice");
    bench.identd.assert_asked(&bench.server, 1);
    // A name of two addresses, each of them judged.
    let port = bench.target.addr.port();
    let mut client = bench.server.sent(&request4a(1, 1, b"localhost", port, b"alice"));
    assert_eq!(reply4(&mut client).0, PROVED);
    assert_echoes(&mut client);
    bench.identd.assert_asked(&bench.server, 2);
    bench.grants5();
    bench.identd.assert_asked(&bench.server, 3);
    // Nor is an answer in vain asked for again.
    let bench = Bench::rules(
        Identd::says("<,>:ERROR:NO-USER\r\n"),
        &["allow ident user carol to all", ASK, "deny ident to all"],
    );
    bench.refuses4("alice", UNPROVED);
    bench.identd.assert_asked(&bench.server, 1);
    bench.refuses5(&bench.connect5());
    bench.identd.assert_asked(&bench.server, 2);
}

#[test]
fn ident_01_nobody_is_asked_where_it_makes_no_difference() {
    for rules in [
        &["allow to all", ASK][..],
        &["allow to 127.0.0.0/8", "deny ident user bob to all"],
        &["allow ident version 4a to all", "allow to all"],
        &["allow ident command bind,udp to all", "allow to all"],
        &["allow ident from 127.0.0.2 to all", "allow to all"],
        &["allow ident to 127.0.0.2", "allow to all"],
        &["allow ident to all port 1", "allow to all"],
        &["deny ident to public", "allow to all"],
        &["allow user none to all", ASK],
    ] {
        let bench = Bench::rules(Identd::silent(), rules);
        bench.grants4("alice");
        bench.identd.target.assert_untouched(&bench.server);
        if !rules[0].contains("4a") {
            bench.grants5();
            bench.identd.target.assert_untouched(&bench.server);
        }
    }
    for rules in [
        &["deny to all", ASK][..],
        &["deny from 127.0.0.1", ASK],
        &["deny port 1-65535", ASK],
        &["allow ident to 127.0.0.2"],
        &["allow ident version 4a to all"],
        &["allow ident"],
    ] {
        let bench = Bench::rules(Identd::silent(), rules);
        bench.refuses4("alice", 91);
        bench.server.log_line(&["event=refuse", "reason=denied", "reply=5b"]);
        bench.identd.target.assert_untouched(&bench.server);
    }
}

#[test]
fn ident_01_nobody_is_asked_for_what_is_no_request() {
    let bench = Bench::new(Identd::silent());
    bench.refuses(&request4(3, bench.target.addr, b"alice"), 91);
    bench.refuses(&request4(9, bench.target.addr, b"alice"), 91);
    let mut client = bench.server.sent(&[HELLO, &request5(9, bench.target.addr)].concat());
    assert_eq!((read(&mut client, 2), reply5(&mut client).0), (vec![5, 0], 7));
    bench.refuses(&request4(1, bench.target.addr, &[b'a'; 600]), 91);
    drop(bench.server.sent(HELLO));
    drop(bench.server.sent(&bench.connect4("alice")[..9]));
    bench.server.log_lines(&["event=close", "reason=client"], 2);
    bench.identd.target.assert_untouched(&bench.server);
}

#[test]
fn ident_01_an_association_is_checked_the_same_way() {
    let echo = echo_on("127.0.0.1");
    let bench = Bench::rules(Identd::says(ALICE), &["allow ident user alice to all"]);
    let association = Association::open(&bench.server);
    for _ in 0..3 {
        association.send(echo, b"ping");
        assert_eq!(association.receive(), b"ping");
    }
    association.send_to_name("localhost", echo.port(), b"pong");
    assert_eq!(association.receive(), b"pong");
    bench.identd.assert_asked(&bench.server, 1);
    drop(association);
    let line = bench.server.log_line(&["event=close", "command=udp"]);
    assert_eq!((field(&line, "user"), field(&line, "dropped")), ("alice", "0"));

    let refused = |answer: &'static str, reason| {
        let bench = Bench::rules(Identd::says(answer), &["allow ident user alice to all"]);
        bench.refuses5(&request5(3, NO_ADDRESS));
        let line = bench.server.log_line(&["event=refuse", "command=udp"]);
        assert_eq!((field(&line, "reason"), field(&line, "reply")), (reason, "02"));
        bench.identd.assert_asked(&bench.server, 1);
    };
    refused("<,>:USERID:UNIX:bob\r\n", "denied");
    refused("<,>:ERROR:NO-USER\r\n", "ident");
}

#[test]
fn ident_01_datagrams_are_judged_by_the_answer() {
    let (echo, other) = (echo_on("127.0.0.1"), echo_on("127.0.0.2"));
    let rules = [
        "allow ident user alice command udp to 127.0.0.1",
        "allow ident user bob command udp to 127.0.0.2",
    ];
    for (answer, goes, stays) in [(ALICE, echo, other), ("<,>:USERID:UNIX:bob\r\n", other, echo)] {
        let bench = Bench::rules(Identd::says(answer), &rules);
        let association = Association::open(&bench.server);
        association.send(stays, b"no");
        association.send(goes, b"yes");
        assert_eq!(association.receive(), b"yes");
        drop(association);
        let line = bench.server.log_line(&["event=close", "command=udp"]);
        assert_eq!(field(&line, "dropped"), "1");
        bench.identd.assert_asked(&bench.server, 1);
    }
}

/// A server on `listen` that asks the daemon.
fn server_on(listen: &str, identd: &Identd) -> Server {
    Server::spawn(Command::new(SOCKSD).args([
        "-v",
        "--listen",
        listen,
        "--rule",
        ASK,
        "--ident-port",
        &identd.port(),
    ]))
}

#[test]
fn ident_03_ident_04_ident_05_an_ipv6_client_is_asked_for_over_ipv6() {
    for listen in ["[::1]:0", "[::]:0"] {
        let identd = Identd::on("::1", says(ALICE));
        let server = server_on(listen, &identd);
        let reached = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, server.addr.port()));
        let (v4, v6) = (Target::echo(), Target::echo_on("::1"));
        for (userid, cd) in [(&b"bob"[..], DIFFERENT), (b"", DIFFERENT)] {
            let mut client = connect(reached);
            client.write_all(&request4(1, v4.addr, userid)).unwrap();
            assert_eq!(reply4(&mut client), (cd, NO_ADDRESS));
            assert_eq!(read_to_end(&mut client), b"");
        }
        v4.assert_untouched(&server);
        let mut client = connect(reached);
        client.write_all(&request4(1, v4.addr, b"alice")).unwrap();
        assert_eq!(reply4(&mut client).0, PROVED);
        let mut client = connect(reached);
        client.write_all(&[HELLO, &request5(1, v6.addr)].concat()).unwrap();
        assert_eq!((read(&mut client, 2), reply5(&mut client).0), (vec![5, 0], 0));
        assert_echoes(&mut client);
        let query = identd.queries().pop().unwrap();
        assert_eq!(query.from.ip(), reached.ip());
        let port = client.local_addr().unwrap().port();
        assert_eq!(query.line, format!("{port},{}\r\n", reached.port()));
        identd.assert_asked(&server, 4);
    }
}

#[test]
fn ident_03_a_link_local_client_is_asked_for_on_its_own_link() {
    isolated(|| {
        let here = link_local();
        let identd = Identd::on("::", says(ALICE));
        let server = server_on("[::]:1080", &identd);
        let target = Target::echo();
        for (userid, cd) in [(b"bob", DIFFERENT), (b"ali", DIFFERENT)] {
            let mut client = connect(here(1080));
            client.write_all(&request4(1, target.addr, userid)).unwrap();
            assert_eq!(reply4(&mut client).0, cd, "{:#?}", server.log());
        }
        target.assert_untouched(&server);
        let mut client = connect(here(1080));
        client.write_all(&request4(1, target.addr, b"alice")).unwrap();
        assert_eq!(reply4(&mut client).0, PROVED, "{:#?}", server.log());
        assert!(identd.queries().iter().all(|query| query.from.ip() == here(0).ip()));
        identd.assert_asked(&server, 3);
    });
}

/// A real daemon on port 113, killed when it is dropped.
struct Oidentd {
    child: Child,
    _config: TempFile,
}

impl Oidentd {
    /// The name by which daemons know all that this process is and starts.
    const USER: &str = "daemon";

    /// Starts one in this network, on port 113 of an address, with this rule for the user.
    fn on(ip: &str, capability: &str) -> Self {
        let program = "/usr/sbin/oidentd";
        assert!(Path::new(program).exists(), "{program} is missing: run tests/setup.sh");
        let user = Self::USER;
        let config = TempFile::new(&format!("user \"{user}\" {{ default {{ {capability} }} }}\n"));
        // It insists on giving up root, which only real root can do. So it has no root to give up:
        // in a namespace of its own, to which user 0 of this one, whose network it is, is user 1.
        std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").unwrap();
        let child = Command::new("unshare")
            .args(["--map-user=1", "--map-group=1", program, "-i", "-S", "-q"])
            .args(["-a", ip, "-p", "113", "-C", config.path()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut daemon = Self { child, _config: config };
        let addr = SocketAddr::new(ip.parse().unwrap(), 113);
        eventually("oidentd listens", || {
            assert_eq!(daemon.child.try_wait().unwrap(), None, "oidentd has ended");
            TcpStream::connect(addr).is_ok()
        });
        daemon
    }
}

impl Drop for Oidentd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ident_04_to_ident_07_oidentd_names_the_user_of_a_real_client() {
    isolated(|| {
        let _plain = [Oidentd::on("127.0.0.1", "deny spoof"), Oidentd::on("::1", "deny spoof")];
        let _hiding = Oidentd::on("127.0.0.2", "force hide");
        let _spaced = Oidentd::on("127.0.0.3", "force reply \"any name here\"");
        let rule = format!("allow ident user {},\"any name here\" to all", Oidentd::USER);
        let server =
            Server::spawn(Command::new(SOCKSD).args(["-v", "--listen", "[::]:0", "--rule", &rule]));
        let target = Target::echo();
        let client_of = |host: u8| {
            let reached = SocketAddr::from(([127, 0, 0, 1], server.addr.port()));
            connect_from(Ipv4Addr::new(127, 0, 0, host), reached)
        };
        let outcome4 = |mut client: TcpStream, userid: &str| {
            client.write_all(&request4(1, target.addr, userid.as_bytes())).unwrap();
            let (cd, _) = reply4(&mut client);
            if cd == PROVED {
                assert_echoes(&mut client);
            } else {
                assert_eq!(read_to_end(&mut client), b"");
            }
            cd
        };
        let outcome5 = |mut client: TcpStream| {
            client.write_all(&[HELLO, &request5(1, target.addr)].concat()).unwrap();
            assert_eq!(read(&mut client, 2), [5, 0]);
            reply5(&mut client).0
        };
        let v6 = || connect(format!("[::1]:{}", server.addr.port()).parse().unwrap());

        for userid in ["root", "Daemon", "nobody", ""] {
            assert_eq!(outcome4(client_of(1), userid), DIFFERENT, "{userid}");
            assert_eq!(outcome4(v6(), userid), DIFFERENT, "{userid}");
        }
        for userid in [Oidentd::USER, ""] {
            assert_eq!(outcome4(client_of(2), userid), UNPROVED, "{userid}");
            // Nobody is to be asked there.
            assert_eq!(outcome4(client_of(4), userid), UNPROVED, "{userid}");
        }
        assert_eq!(outcome4(client_of(3), Oidentd::USER), DIFFERENT);
        assert_eq!((outcome5(client_of(2)), outcome5(client_of(4))), (2, 2));
        target.assert_untouched(&server);
        server.log_line(&["event=ident ", "identd answered with error HIDDEN-USER"]);

        assert_eq!(outcome4(client_of(1), Oidentd::USER), PROVED, "{:#?}", server.log());
        assert_eq!(outcome4(v6(), Oidentd::USER), PROVED, "{:#?}", server.log());
        assert_eq!(outcome4(client_of(3), "any name here"), PROVED);
        assert_eq!((outcome5(client_of(1)), outcome5(v6()), outcome5(client_of(3))), (0, 0, 0));
        server.log_lines(&["event=close", "version=5", "user=daemon"], 2);
        server.log_line(&["event=close", "version=5", "user=any\\x20name\\x20here"]);
    });
}
