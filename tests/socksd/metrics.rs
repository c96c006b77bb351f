//! Metrics over HTTP: the counters agree with what sessions did, whatever comes over HTTP is
//! answered within bounds and disturbs nobody, and nothing a peer made gets out of its place.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::udp::{Association, echo_on};
use crate::common::{
    HELLO, Raise, Random, SOON, Server, Target, TempFile, assert_ends_silently, connect,
    eventually, field, login, read, read_to_end, refusing_port, reply4, reply5, request4, request5,
    request5_name, tunnel,
};

/// How long a connection for metrics may take, and some.
const BOUND: Duration = Duration::from_secs(7);

/// A server that serves metrics, and where.
fn watched(args: &[&str]) -> (Server, SocketAddr) {
    let server = Server::start(&[&["--metrics", "127.0.0.1:0"], args].concat());
    let addr = field(&server.log_line(&["event=metrics "]), "addr").parse().unwrap();
    (server, addr)
}

fn open() -> (Server, SocketAddr) {
    watched(&["--rule=allow to all"])
}

/// What a request gets: the status line, the rest of the head, the body.
fn response(addr: SocketAddr, request: impl AsRef<[u8]>) -> (String, String, String) {
    let mut stream = connect(addr);
    stream.write_all(request.as_ref()).unwrap();
    split(&read_to_end(&mut stream))
}

fn split(octets: &[u8]) -> (String, String, String) {
    let text = str::from_utf8(octets).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
    let (status, head) = head.split_once("\r\n").unwrap();
    (status.to_owned(), head.to_owned(), body.to_owned())
}

fn get(addr: SocketAddr, path: &str) -> String {
    let (status, _, body) = response(addr, format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\n\r\n"));
    assert_eq!(status, "HTTP/1.1 200 OK", "{body}");
    body
}

/// The samples that are not 0, but for those whose values nobody can foretell.
fn samples(addr: SocketAddr) -> BTreeMap<String, u64> {
    let text = get(addr, "/metrics");
    let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.to_owned())
    });
    let foretold = |name: &str| {
        let others = ["process_", "socksd_build", "socksd_sessions_max"];
        !others.iter().any(|other| name.starts_with(other))
            && !name.ends_with("_sum")
            && (!name.contains("_bucket{") || name.contains("+Inf"))
    };
    let samples = samples.filter(|(name, _)| foretold(name));
    samples.map(|(name, value)| (name, value.parse().unwrap())).filter(|(_, n)| *n != 0).collect()
}

fn expected(samples: &[(&str, u64)]) -> BTreeMap<String, u64> {
    samples.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

/// Asserts that the samples come to be these: a relay counts octets after it has sent them.
fn assert_samples(addr: SocketAddr, expected: &BTreeMap<String, u64>) {
    let until = Instant::now() + SOON;
    while samples(addr) != *expected && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(samples(addr), *expected);
}

fn echoes(tunnel: &mut TcpStream, payload: &[u8]) {
    tunnel.write_all(payload).unwrap();
    assert_eq!(read(tunnel, payload.len()), payload);
}

#[test]
fn counters_agree_exactly_with_what_sessions_did() {
    let args =
        ["--rule=deny to 127.0.0.9", "--rule=allow to all", "--max-per-client=3", "--no-fragments"];
    let ((server, addr), target) = (watched(&args), Target::echo());
    let (refusing, _kept) = refusing_port();
    let refused = |octets: &[u8]| {
        let mut client = server.sent(octets);
        let octets = read_to_end(&mut client);
        drop(client);
        octets
    };
    let settled = |count| {
        eventually("sessions have ended", || {
            let samples = samples(addr);
            !samples.contains_key("socksd_sessions")
                && samples.get("socksd_sessions_started_total") == Some(&count)
        });
    };
    assert_samples(addr, &expected(&[]));

    // CONNECT granted, under way and ended, with an address and with a name.
    let mut one = tunnel(&server, target.addr);
    echoes(&mut one, b"1234567");
    let mut name =
        server.sent(&[HELLO, &request5_name(1, b"localhost", target.addr.port())].concat());
    assert_eq!(read(&mut name, 2), [5, 0]);
    assert_eq!(reply5(&mut name).0, 0);
    let mut four = server.sent(&request4(1, target.addr, b"eve"));
    assert_eq!(reply4(&mut four).0, 90);
    // One more than there may be.
    assert_ends_silently(&mut server.connect(), SOON);
    let connect = |reason| {
        format!(
            "socksd_sessions_ended_total{{version=\"5\",command=\"connect\",reason=\"{reason}\"}}"
        )
    };
    assert_samples(
        addr,
        &expected(&[
            ("socksd_connect_duration_seconds_bucket{le=\"+Inf\"}", 3),
            ("socksd_connect_duration_seconds_count", 3),
            ("socksd_connections_refused_total{limit=\"per-client\"}", 1),
            ("socksd_relayed_bytes_total{direction=\"down\"}", 7),
            ("socksd_relayed_bytes_total{direction=\"up\"}", 7),
            ("socksd_resolve_duration_seconds_bucket{le=\"+Inf\"}", 1),
            ("socksd_resolve_duration_seconds_count", 1),
            ("socksd_sessions", 3),
            ("socksd_sessions_started_total", 3),
        ]),
    );
    drop((one, name, four));
    settled(3);

    // Refused by the target, by a rule, and because it is no request. There may not be more than
    // three at once.
    refused(&[HELLO, &request5(1, refusing)].concat());
    settled(4);
    refused(&[HELLO, &request5(1, "127.0.0.9:80".parse().unwrap())].concat());
    settled(5);
    refused(&[HELLO, &request5(9, target.addr)].concat());
    settled(6);
    refused(b"GET / HTTP/1.0\r\n\r\n");
    settled(7);

    // Datagrams: two both ways, one with no header, one denied, one fragment.
    let udp = Association::open(&server);
    let echo = echo_on("127.0.0.1");
    for _ in 0..2 {
        udp.send(echo, b"abc");
        assert_eq!(udp.receive(), b"abc");
    }
    udp.socket.send(b"x").unwrap();
    udp.send("127.0.0.9:80".parse().unwrap(), b"denied");
    let mut fragment = vec![0, 0, 1];
    socksd::wire::put_address(echo, &mut fragment);
    udp.socket.send(&fragment).unwrap();
    eventually("three are dropped", || {
        let samples = samples(addr);
        samples.iter().filter(|(name, _)| name.contains("_dropped_total")).count() == 3
    });
    drop(udp);
    settled(8);

    let mut known = expected(&[
        ("socksd_connect_duration_seconds_bucket{le=\"+Inf\"}", 4),
        ("socksd_connect_duration_seconds_count", 4),
        ("socksd_connections_refused_total{limit=\"per-client\"}", 1),
        ("socksd_datagrams_dropped_total{cause=\"denied\"}", 1),
        ("socksd_datagrams_dropped_total{cause=\"fragment\"}", 1),
        ("socksd_datagrams_dropped_total{cause=\"header\"}", 1),
        ("socksd_datagrams_total{direction=\"down\"}", 2),
        ("socksd_datagrams_total{direction=\"up\"}", 2),
        ("socksd_relayed_bytes_total{direction=\"down\"}", 13),
        ("socksd_relayed_bytes_total{direction=\"up\"}", 13),
        ("socksd_resolve_duration_seconds_bucket{le=\"+Inf\"}", 1),
        ("socksd_resolve_duration_seconds_count", 1),
        ("socksd_sessions_ended_total{version=\"-\",command=\"-\",reason=\"protocol\"}", 1),
        ("socksd_sessions_ended_total{version=\"4\",command=\"connect\",reason=\"client\"}", 1),
        ("socksd_sessions_ended_total{version=\"5\",command=\"udp\",reason=\"client\"}", 1),
        ("socksd_sessions_ended_total{version=\"5\",command=\"unknown\",reason=\"command\"}", 1),
        ("socksd_sessions_started_total", 8),
    ]);
    known.extend([(connect("client"), 2), (connect("connect"), 1), (connect("denied"), 1)]);
    assert_samples(addr, &known);
    // The log counts the same.
    for (name, count) in known.iter().filter(|(name, _)| name.contains("_ended_total")) {
        let words: Vec<&str> = name.split('"').collect();
        let logged = server.log().into_iter().filter(|line| {
            line.contains(" reason=")
                && line.contains(" session=")
                && field(line, "version") == words[1]
                && (words[3] == "unknown" || field(line, "command") == words[3])
                && field(line, "reason") == words[5]
        });
        assert_eq!(u64::try_from(logged.count()).unwrap(), *count, "{name}");
    }
}

#[test]
fn wrong_passwords_are_counted_and_no_name_of_theirs_is_told() {
    let users = TempFile::alice();
    let (server, addr) = watched(&["--users", users.path(), "--rule=allow user any to all"]);
    for (name, password, status) in
        [("alice", "wrong", 1), ("mallory", "secret", 1), ("alice", "secret", 0)]
    {
        let claim = login(name.as_bytes(), password.as_bytes());
        let mut client = server.sent(&[&[5, 1, 2][..], &claim].concat());
        assert_eq!(read(&mut client, 4), [5, 2, 1, status]);
    }
    eventually("sessions have ended", || !samples(addr).contains_key("socksd_sessions"));
    assert_samples(
        addr,
        &expected(&[
            ("socksd_auth_failures_total", 2),
            ("socksd_sessions_ended_total{version=\"5\",command=\"-\",reason=\"auth\"}", 2),
            ("socksd_sessions_ended_total{version=\"5\",command=\"-\",reason=\"client\"}", 1),
            ("socksd_sessions_started_total", 3),
        ]),
    );
    for name in ["alice", "mallory", "127.0.0.1"] {
        assert!(!get(addr, "/metrics").contains(name));
    }
}

#[test]
fn a_name_that_cannot_be_found_is_waited_for_and_counted() {
    let (server, addr) = open();
    let mut client = server.sent(&[HELLO, &request5_name(1, b"nowhere.invalid", 80)].concat());
    read_to_end(&mut client);
    drop(client);
    eventually("it is counted", || {
        let samples = samples(addr);
        samples.get("socksd_resolve_duration_seconds_count") == Some(&1)
            && samples.keys().any(|name| name.contains("reason=\"name\""))
    });
}

#[test]
fn no_counter_of_octets_goes_down_while_sessions_come_and_go() {
    let ((server, addr), target) = (open(), Target::echo());
    let ends = Instant::now() + Duration::from_secs(2);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while Instant::now() < ends {
                    echoes(&mut tunnel(&server, target.addr), &[7; 1_000]);
                }
            });
        }
        let mut last = 0;
        while Instant::now() < ends {
            let samples = samples(addr);
            let up = samples.get("socksd_relayed_bytes_total{direction=\"up\"}").copied();
            assert!(up.unwrap_or(0) >= last, "{last} and then {samples:#?}");
            last = up.unwrap_or(0);
        }
        assert!(last > 10_000, "{last}");
    });
}

#[test]
fn promtool_finds_nothing_to_complain_of() {
    let ((server, addr), target) = (open(), Target::echo());
    drop(tunnel(&server, target.addr));
    server.log_line(&["event=close "]);
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is not installed: run tests/setup.sh");
    promtool.stdin.take().unwrap().write_all(get(addr, "/metrics").as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let told = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!((output.status.code(), told), (Some(0), [String::new(), String::new()]));
}

// What comes over HTTP.

#[test]
fn every_request_gets_the_status_it_deserves() {
    let (_server, addr) = open();
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(4_096));
    let fits = "GET / HTTP/1.1\r\nHost: localhost\r\nX: ";
    let fits = format!("{fits}{}\r\n\r\n", "x".repeat(4_096 - fits.len() - 4));
    assert_eq!(fits.len(), 4_096);
    let post = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody";
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "200 OK"),
        ("GET /metrics?a=/b HTTP/1.1\r\nhost: [::1]:9\r\n\r\n", "200 OK"),
        ("GET /healthz HTTP/1.1\r\nHost:127.0.0.1\r\nX-A: \tb\r\n\r\n", "200 OK"),
        ("HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n", "200 OK"),
        ("GET / HTTP/1.0\r\n\r\n", "200 OK"),
        ("GET / HTTP/1.0\n\n", "200 OK"),
        (&fits, "200 OK"),
        // Pipelined: the first is answered.
        ("GET / HTTP/1.0\r\n\r\nGET /none HTTP/1.0\r\n\r\n", "200 OK"),
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421 Misdirected Request"),
        ("GET / HTTP/1.0\r\nHost: evil.example:9180\r\n\r\n", "421 Misdirected Request"),
        ("GET / HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n", "421 Misdirected Request"),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "421 Misdirected Request"),
        ("GET / HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.0\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", "400 Bad Request"),
        ("GET http://127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", "400 Bad Request"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400 Bad Request"),
        ("GET  / HTTP/1.1\r\nHost: localhost\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.1 \r\nHost: localhost\r\n\r\n", "400 Bad Request"),
        ("GET /\r\n\r\n", "400 Bad Request"),
        ("\r\n\r\n", "400 Bad Request"),
        ("\n\n", "400 Bad Request"),
        (" / HTTP/1.0\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.0\r\nno colon\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.0\r\nA : b\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.0\r\nA: b\r\n folded\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.0\r\nA: \0\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.0\r\nA: b\rc\r\n\r\n", "400 Bad Request"),
        (post, "405 Method Not Allowed"),
        ("DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n", "405 Method Not Allowed"),
        ("get / HTTP/1.0\r\n\r\n", "405 Method Not Allowed"),
        ("GET /none HTTP/1.0\r\n\r\n", "404 Not Found"),
        ("GET /metrics/ HTTP/1.0\r\n\r\n", "404 Not Found"),
        ("GET /../metrics HTTP/1.0\r\n\r\n", "404 Not Found"),
        ("GET /%6detrics HTTP/1.0\r\n\r\n", "404 Not Found"),
        (&long, "431 Request Header Fields Too Large"),
    ] {
        let (told, head, body) = response(addr, request);
        assert_eq!(told, format!("HTTP/1.1 {status}"), "{request:?}: {body}");
        for field in [
            "Connection: close",
            "Allow: GET, HEAD",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
        ] {
            assert!(head.lines().any(|line| line == field), "{field}: {head}");
        }
        let policy = "Content-Security-Policy: default-src 'none'; ";
        assert!(head.lines().any(|line| line.starts_with(policy)), "{head}");
        let len = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        let len: usize = len.parse().unwrap();
        assert_eq!(body.len(), if request.starts_with("HEAD") { 0 } else { len }, "{request:?}");
        assert!(len > 0 && !body.contains("evil"), "{body}");
    }
    let not_utf_8 = b"GET / HTTP/1.0\r\nA: \xff\r\n\r\n";
    assert_eq!(response(addr, not_utf_8).0, "HTTP/1.1 400 Bad Request");
}

#[test]
fn a_request_in_single_octets_is_answered() {
    let (_server, addr) = open();
    let mut client = connect(addr);
    for octet in b"GET /healthz HTTP/1.0\r\n\r\n" {
        client.write_all(&[*octet]).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(split(&read_to_end(&mut client)).2, "ok\n");
}

/// Asserts that a connection ends by itself within the bound, whatever it gives before that.
fn assert_ends(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(BOUND)).unwrap();
    let (begun, mut octets) = (Instant::now(), [0; 4_096]);
    loop {
        match stream.read(&mut octets) {
            Ok(1..) => assert!(begun.elapsed() < BOUND),
            Ok(0) => return,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("not ended: {error}"),
        }
    }
}

#[test]
fn silent_dripping_endless_and_random_requests_end_while_others_are_served() {
    let ((server, addr), target) = (open(), Target::echo());
    let mut kept = tunnel(&server, target.addr);
    let mut random = Random::seeded();
    let mut junk: Vec<Vec<u8>> = (0..100)
        .map(|_| (0..random.below(6_000)).map(|_| random.next().to_le_bytes()[0]).collect())
        .collect();
    junk.push(vec![b'\n'; 100_000]);
    junk.push(vec![b'A'; 1_000_000]);
    // All of these end by themselves, by the deadline at the latest, and at most 8 at once.
    let silent: Vec<TcpStream> = (0..3).map(|_| connect(addr)).collect();
    let dripping = connect(addr);
    let endless = connect(addr);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _raise = Raise(&done);
        scope.spawn(|| {
            let mut dripping = &dripping;
            while dripping.write_all(b"X").is_ok() && !done.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(50));
            }
        });
        scope.spawn(|| {
            let mut endless = &endless;
            let _ = endless.write_all(b"GET / HTTP/1.0\r\n\r\n");
            while endless.write_all(&[b'X'; 65_536]).is_ok() {}
        });
        for octets in &junk {
            let mut stream = connect(addr);
            // It may be closed before all is sent.
            let _ = stream.write_all(octets);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let begun = Instant::now();
            assert_ends(&mut stream);
            assert!(begun.elapsed() < Duration::from_secs(2), "{} octets", octets.len());
        }
        // Three, one that drips, and one that does not end: there is room for others.
        let begun = Instant::now();
        for _ in 0..20 {
            get(addr, "/metrics");
            echoes(&mut kept, b"still here");
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        for stream in silent.iter().chain([&dripping]) {
            assert_ends(&mut stream.try_clone().unwrap());
        }
    });
    echoes(&mut kept, b"to the end");
}

#[test]
fn more_connections_than_are_served_at_once_wait_for_their_turn() {
    let ((server, addr), target) = (open(), Target::echo());
    let mut kept = tunnel(&server, target.addr);
    echoes(&mut kept, b"to begin with");
    let (holds, _) = server.holds();
    let silent: Vec<TcpStream> = (0..8).map(|_| connect(addr)).collect();
    let begun = Instant::now();
    let mut waiting = connect(addr);
    waiting.set_read_timeout(Some(BOUND)).unwrap();
    waiting.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    echoes(&mut kept, b"in the meantime");
    assert_eq!(split(&read_to_end(&mut waiting)).2, "ok\n");
    assert!(begun.elapsed() > Duration::from_secs(3), "{:?}", begun.elapsed());
    drop((silent, waiting));
    eventually("descriptors are given back", || server.holds().0 == holds);
}

#[test]
fn five_hundred_sessions_are_told_of_within_a_second_and_go_on() {
    let args = ["--rule=allow to all", "--max-per-client=600"];
    let ((server, addr), target) = (watched(&args), Target::echo());
    let mut tunnels: Vec<TcpStream> = (0..500).map(|_| tunnel(&server, target.addr)).collect();
    tunnels.iter_mut().for_each(|tunnel| echoes(tunnel, b"before"));
    for path in ["/metrics", "/", "/healthz"] {
        let begun = Instant::now();
        let body = get(addr, path);
        assert!(begun.elapsed() < Duration::from_secs(1), "{path}: {:?}", begun.elapsed());
        println!("{path}: {} octets in {:?}", body.len(), begun.elapsed());
        let rows = body.matches("<tr>").count();
        assert_eq!(rows, if path == "/" { 501 } else { 0 });
    }
    tunnels.iter_mut().for_each(|tunnel| echoes(tunnel, b"after"));
    assert_samples(
        addr,
        &expected(&[
            ("socksd_connect_duration_seconds_bucket{le=\"+Inf\"}", 500),
            ("socksd_connect_duration_seconds_count", 500),
            ("socksd_relayed_bytes_total{direction=\"down\"}", 500 * 11),
            ("socksd_relayed_bytes_total{direction=\"up\"}", 500 * 11),
            ("socksd_sessions", 500),
            ("socksd_sessions_started_total", 500),
        ]),
    );
    drop(tunnels);
    eventually("all have ended", || server.log().len() > 500);
}

// The page.

const MEAN: &[u8] = b"\"'><script>alert(1)</script>\n&amp;<img src=x>";

#[test]
fn what_a_peer_made_is_escaped_in_the_page_and_in_no_label() {
    let ((server, addr), target) = (open(), Target::echo());
    let mut mean = server.sent(&request4(1, target.addr, MEAN));
    assert_eq!(reply4(&mut mean).0, 90);
    echoes(&mut mean, b"it relays");
    let page = get(addr, "/");
    let escaped = "<td>\\x22&#39;&gt;&lt;script&gt;alert(1)&lt;/script&gt;\\x0a&amp;amp;\
                   &lt;img\\x20src\\x3dx&gt;</td>";
    assert!(page.contains(escaped), "{page}");
    assert!(!page.contains("<script") && !page.contains("<img"), "{page}");
    drop(mean);
    server.log_line(&["event=close "]);
    assert!(!get(addr, "/metrics").contains("script"));
}

#[test]
fn a_browser_shows_the_page_and_runs_nothing_of_it() {
    let ((server, addr), target) = (open(), Target::echo());
    let mut mean = server.sent(&request4(1, target.addr, MEAN));
    assert_eq!(reply4(&mut mean).0, 90);
    echoes(&mut mean, b"it relays");
    let mut home = std::env::temp_dir();
    home.push(format!("socksd-test-metrics-{}", std::process::id()));
    fs::create_dir(&home).unwrap();
    let output = Command::new("timeout")
        .args(["--kill-after=5", "60", "chromium"])
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .args(["--disable-background-networking", "--disable-component-update"])
        .args(["--disable-sync", "--no-first-run", "--no-proxy-server"])
        .arg(format!("--user-data-dir={}", home.join("profile").display()))
        .args(["--dump-dom", &format!("http://{addr}/")])
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", &home)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    fs::remove_dir_all(&home).unwrap();
    let dom = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{dom}");
    // The parser of the browser has made a table of it, and no element of the name.
    for part in ["<th>session</th>", "<td>1</td>", "<td>connect</td>", "alert(1)"] {
        assert!(dom.contains(part), "{part}: {dom}");
    }
    assert!(!dom.contains("<script") && !dom.contains("<img"), "{dom}");
}

// Where it is served, and for how long.

#[test]
fn a_health_check_tells_of_the_drain_and_metrics_go_on_until_the_last_session_ends() {
    let ((mut server, addr), target) = (open(), Target::echo());
    let mut kept = tunnel(&server, target.addr);
    assert_eq!(get(addr, "/healthz"), "ok\n");
    server.signal("TERM");
    server.log_line(&["event=stopping "]);
    let (status, _, body) = response(addr, "GET /healthz HTTP/1.0\r\n\r\n");
    let told = (status.as_str(), body.as_str());
    assert_eq!(told, ("HTTP/1.1 503 Service Unavailable", "draining\n"));
    assert_eq!(samples(addr)["socksd_sessions"], 1);
    assert!(get(addr, "/").contains("<td>1</td>"));
    echoes(&mut kept, b"still here");
    drop(kept);
    assert_eq!(server.wait(), Some(0));
    TcpStream::connect(addr).unwrap_err();
}

#[test]
fn a_unix_socket_serves_its_owner_and_is_removed_at_the_end() {
    let path =
        std::env::temp_dir().join(format!("socksd-test-metrics-{}.sock", std::process::id()));
    let place = format!("unix:{}", path.display());
    let mut server = Server::start(&["--metrics", &place]);
    assert_eq!(field(&server.log_line(&["event=metrics "]), "addr"), place);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // Any name will do where no browser comes.
    for host in ["localhost", "socksd.example"] {
        let output = Command::new("curl")
            .args(["-sS", "--fail", "--noproxy", "*", "--unix-socket"])
            .arg(&path)
            .arg(format!("http://{host}/metrics"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8(output.stdout).unwrap().contains("\nsocksd_sessions 0\n"));
    }
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    assert!(!Path::new(&path).exists());
}

#[test]
fn metrics_for_all_are_served_where_they_were_asked_for() {
    let server = Server::start(&["--metrics", "0.0.0.0:0", "--metrics-public"]);
    let mut addr: SocketAddr =
        field(&server.log_line(&["event=metrics "]), "addr").parse().unwrap();
    addr.set_ip([127, 0, 0, 1].into());
    assert_eq!(get(addr, "/healthz"), "ok\n");
    let by_name = format!("GET / HTTP/1.1\r\nHost: socksd.example:{}\r\n\r\n", addr.port());
    assert_eq!(response(addr, by_name).0, "HTTP/1.1 421 Misdirected Request");
}

#[test]
fn no_client_comes_to_the_metrics_through_the_server() {
    let (server, addr) = open();
    let mut client = server.sent(&[HELLO, &request5(1, addr)].concat());
    assert_eq!(read(&mut client, 2), [5, 0]);
    assert_eq!(reply5(&mut client).0, 2);
    server.log_line(&["event=refuse ", "reason=denied"]);
}

#[test]
fn metrics_at_a_busy_port_keep_the_server_from_starting() {
    let (_server, addr) = open();
    let output = Command::new(crate::common::SOCKSD)
        .args(["--listen", "127.0.0.1:0", "--reuse-port", "--metrics", &addr.to_string()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(111));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with(&format!("socksd: cannot listen on {addr}: ")), "{told}");
}
