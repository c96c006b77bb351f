//! Every wait for somebody else watches the client and the end of the server: a client that leaves
//! gives back all it has, at once. Here are times to hold, which a busy machine would not.

use std::io::{self, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::alone;
use crate::common::dns::Dns;
use crate::common::netns::isolated;
use crate::common::{
    HELLO, Server, Target, TempFile, assert_ends_silently, connect, eventually, field, login, read,
    read_to_end, request4, request5, request5_name,
};

/// Sessions of one client, as many as the default lets it have.
const CROWD: usize = 256;

/// How long a session may take to end once its client has left.
const AT_ONCE: Duration = Duration::from_secs(1);

/// How long a FIN with nothing sent behind the request lets a wait go on.
const GRACE: Duration = Duration::from_secs(2);

const PORT: u16 = 4_000;

/// A server that waits for what never comes: for an address that drops what is sent to it, for two
/// of them, or for a name server that is silent.
struct Stuck {
    server: Server,
    metrics: SocketAddr,
    _dns: Dns,
    _silent: Vec<(TcpListener, Vec<TcpStream>)>,
}

impl Stuck {
    fn start(args: &[&str]) -> Self {
        let silent = ["127.0.0.9", "127.0.0.10"].map(|ip| {
            // A listener whose backlog is full drops the SYN.
            let listener = TcpListener::bind((ip, PORT)).unwrap();
            socksd::sys::listen(&listener, 0).unwrap();
            let addr = listener.local_addr().unwrap();
            let wait = Duration::from_millis(200);
            let fill = std::iter::from_fn(|| TcpStream::connect_timeout(&addr, wait).ok());
            let fill = fill.collect();
            (listener, fill)
        });
        let dns = Dns::start(&[("two.test", &["127.0.0.9", "127.0.0.10"])]);
        let options = ["-v", "--metrics", "127.0.0.1:0", "--connect-timeout", "120"];
        let more = ["--resolve-timeout", "120"];
        let server = Server::open(&[&options[..], &more, args].concat());
        let metrics = field(&server.log_line(&["event=metrics "]), "addr").parse().unwrap();
        Self { server, metrics, _dns: dns, _silent: silent.into() }
    }

    /// What a client sends that is kept waiting, for each kind of wait.
    fn requests() -> [(&'static str, Vec<u8>); 4] {
        let black_hole: SocketAddr = ([127, 0, 0, 9], PORT).into();
        let five = |request: Vec<u8>| [HELLO, &request].concat();
        [
            ("one address", five(request5(1, black_hole))),
            ("one address, version 4", request4(1, black_hole, b"")),
            ("two addresses", five(request5_name(1, b"two.test", PORT))),
            ("a name", five(request5_name(1, b"silent.tarpit", PORT))),
        ]
    }

    /// So many clients, whose sessions wait by now.
    fn clients(&self, count: usize, octets: &[u8]) -> Vec<TcpStream> {
        let before = self.requests_logged();
        let clients: Vec<_> = (0..count).map(|_| self.server.sent(octets)).collect();
        eventually("all requests are read", || self.requests_logged() == before + count);
        clients
    }

    fn requests_logged(&self) -> usize {
        self.server.log().iter().filter(|line| line.contains(" event=request ")).count()
    }

    /// The value of a metric without labels.
    fn metric(&self, name: &str) -> u64 {
        let mut stream = connect(self.metrics);
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", self.metrics).unwrap();
        let text = String::from_utf8(read_to_end(&mut stream)).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        value.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    }

    /// Waits until there is no session; the clients left at `left`.
    fn assert_none_left(&self, left: Instant) {
        while self.metric("socksd_sessions") > 0 {
            let took = left.elapsed();
            assert!(took < AT_ONCE, "{} left", self.metric("socksd_sessions"));
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn reset(clients: Vec<TcpStream>) -> Instant {
    clients.iter().for_each(|client| socksd::sys::set_linger_zero(client).unwrap());
    drop(clients);
    Instant::now()
}

#[test]
fn clients_that_reset_while_they_wait_keep_nothing_from_the_next() {
    let _turn = alone();
    isolated(|| {
        let stuck = Stuck::start(&[]);
        let target = Target::echo();
        for (kind, octets) in Stuck::requests() {
            let before = stuck.server.holds().0;
            let clients = stuck.clients(CROWD, &octets);
            // The next one of the same address has no room.
            let mut refused = stuck.server.connect();
            assert_ends_silently(&mut refused, AT_ONCE);
            let left = reset(clients);
            let mut next = stuck.server.sent(&[HELLO, &request5(1, target.addr), b"?"].concat());
            assert_eq!(read(&mut next, 4), [5, 0, 5, 0], "{kind}");
            assert_eq!(read(&mut next, 9)[8], b'?');
            drop(next);
            stuck.assert_none_left(left);
            let ends = stuck.server.log_lines(&["event=close ", "reason=client"], 0);
            assert!(ends.len() >= CROWD, "{kind}: {} ends", ends.len());
            // Nothing ends a look-up under way, and the socket it has.
            let looked_up = usize::from(kind == "a name");
            eventually("descriptors are given back", || {
                stuck.server.holds().0 <= before + looked_up
            });
            assert_eq!(stuck.metric("socksd_resolver_names"), u64::try_from(looked_up).unwrap());
        }
    });
}

#[test]
fn a_fin_behind_the_request_lets_a_wait_go_on_for_two_seconds_and_one_behind_data_for_good() {
    let _turn = alone();
    isolated(|| {
        let stuck = Stuck::start(&[]);
        for (kind, octets) in Stuck::requests() {
            let close = |client: &TcpStream| client.shutdown(Shutdown::Write).unwrap();
            let gone = stuck.clients(1, &octets);
            let half_closed = stuck.clients(1, &[&octets[..], b"data"].concat());
            let begun = Instant::now();
            gone.iter().chain(&half_closed).for_each(close);
            while stuck.metric("socksd_sessions") == 2 {
                assert!(begun.elapsed() < GRACE + AT_ONCE, "{kind}");
                thread::sleep(Duration::from_millis(5));
            }
            assert!(begun.elapsed() > GRACE - Duration::from_millis(100), "{kind}");
            let client = format!(" client={} ", gone[0].local_addr().unwrap());
            stuck.server.log_line(&["event=close ", &client, " reason=client"]);
            thread::sleep(GRACE);
            assert_eq!(stuck.metric("socksd_sessions"), 1, "{kind}: a half-close is served");
            stuck.assert_none_left(reset(half_closed));
        }
    });
}

/// Asserts that sessions that wait say that they were stopped, once so many signals have come.
fn assert_stopped(args: &[&str], signals: usize) {
    let mut stuck = Stuck::start(args);
    let requests = Stuck::requests();
    let clients: Vec<_> =
        requests.iter().flat_map(|(_, octets)| stuck.clients(8, octets)).collect();
    stuck.server.signal("TERM");
    stuck.server.log_line(&["event=stopping "]);
    (1..signals).for_each(|_| stuck.server.signal("TERM"));
    assert_eq!(stuck.server.wait(), Some(0));
    let lines = stuck.server.log_lines(&["event=close ", "reason=stopped"], clients.len());
    assert_eq!(lines.len(), clients.len());
}

#[test]
fn at_the_second_signal_waiting_sessions_say_that_they_were_stopped() {
    let _turn = alone();
    isolated(|| assert_stopped(&[], 2));
}

#[test]
fn at_the_end_of_the_drain_waiting_sessions_say_that_they_were_stopped() {
    let _turn = alone();
    isolated(|| assert_stopped(&["--drain", "1"], 1));
}

/// A hash that takes a processor for a second or more.
fn slow_hash() -> String {
    let setting = b"$6$rounds=6000000$saltsalt$";
    let digest = "/".repeat(86);
    format!("{}{digest}", str::from_utf8(setting).unwrap())
}

#[test]
fn a_client_that_resets_while_it_waits_for_a_turn_to_have_its_password_checked_ends_at_once() {
    let _turn = alone();
    // In a network of its own, whose table of connections is short and quickly read.
    isolated(|| {
        let users = TempFile::new(&format!("alice:{}\n", slow_hash()));
        let server = Server::start(&["-v", "--users", users.path()]);
        let octets = [&[5, 1, 2][..], &login(b"alice", b"wrong")].concat();
        let cores = thread::available_parallelism().unwrap().get();
        // All turns are taken.
        let busy: Vec<_> = (0..(cores / 2).max(1)).map(|_| server.sent(&octets)).collect();
        let is_read = |client: &TcpStream| {
            let port = client.local_addr().unwrap().port();
            eventually("all is read", || server.clients().contains(&(port, true)));
            // What is read is acted upon soon.
            thread::sleep(Duration::from_millis(200));
        };
        busy.iter().for_each(is_read);
        let mut waiting = server.sent(&octets);
        assert_eq!(read(&mut waiting, 2), [5, 2]);
        is_read(&waiting);
        let left = reset(vec![waiting]);
        server.log_line(&["event=close ", "user=alice ", "reason=client"]);
        assert!(left.elapsed() < AT_ONCE, "{:?}", left.elapsed());
        // The others are not answered yet: the turns were taken all the time.
        for mut client in busy {
            assert_eq!(read(&mut client, 2), [5, 2]);
            client.set_nonblocking(true).unwrap();
            let error = io::Read::read(&mut client, &mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
    });
}

#[test]
fn a_client_that_resets_while_its_answer_is_delayed_ends_at_once_and_is_logged_as_a_guess() {
    let _turn = alone();
    isolated(|| {
        let users = TempFile::alice();
        let stuck = Stuck::start(&["--users", users.path()]);
        let octets = [&[5, 1, 2][..], &login(b"alice", b"wrong")].concat();
        // Each failure doubles the delay, from 0.1 seconds up.
        let guesses = 7;
        let clients: Vec<_> = (0..guesses).map(|_| stuck.server.sent(&octets)).collect();
        eventually("all are checked", || stuck.metric("socksd_auth_failures_total") == guesses);
        assert!(stuck.metric("socksd_sessions") >= 2, "the last ones are delayed");
        stuck.assert_none_left(reset(clients));
        let count = usize::try_from(guesses).unwrap();
        stuck.server.log_lines(&["event=refuse ", "user=alice ", "reason=auth "], count);
    });
}

#[test]
fn a_client_that_closes_while_its_answer_is_delayed_has_no_answer_later_than_two_seconds() {
    let _turn = alone();
    let users = TempFile::alice();
    let server = Server::start(&["--users", users.path()]);
    let octets = [&[5, 1, 2][..], &login(b"alice", b"wrong")].concat();
    let begun = Instant::now();
    let clients: Vec<_> = (0..8).map(|_| server.sent(&octets)).collect();
    clients.iter().for_each(|client| client.shutdown(Shutdown::Write).unwrap());
    let answers: Vec<_> = clients.into_iter().map(|mut client| read_to_end(&mut client)).collect();
    assert!(begun.elapsed() < GRACE + AT_ONCE, "{:?}", begun.elapsed());
    let (answered, not): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.len() == 4);
    assert!(!answered.is_empty() && !not.is_empty(), "{answers:?}");
    assert!(answered.iter().all(|answer| answer[..] == [5, 2, 1, 1]), "{answers:?}");
    assert!(not.iter().all(|answer| answer[..] == [5, 2]), "{answers:?}");
    server.log_lines(&["event=refuse ", "user=alice ", "reason=auth "], answers.len());
}
