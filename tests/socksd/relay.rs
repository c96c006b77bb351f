//! The relay: every octet, every kind of ending. All of this runs twice, the second time with
//! `--no-splice`.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::*;

/// How the server may pass octets on: an option, or none.
#[derive(Clone, Copy)]
struct Way(&'static [&'static str]);

impl Way {
    fn open(self, args: &[&str]) -> Server {
        Server::open(&[args, self.0].concat())
    }
}

/// Makes two tests of each function, one for each way.
macro_rules! spliced_and_copied {
    ($($name:ident,)*) => {
        mod spliced {
            $(#[test] fn $name() { super::$name(super::Way(&[])); })*
        }
        mod copied {
            $(#[test] fn $name() { super::$name(super::Way(&["--no-splice"])); })*
        }
    };
}

// A function that is missing here is unused, of which the compiler warns.
spliced_and_copied! {
    v4_02_large_streams_pass_both_ways_at_once_unchanged,
    real_04_a_half_close_of_the_client_is_carried_and_the_answer_still_comes,
    real_05_a_half_close_of_the_target_is_carried_and_more_can_be_sent,
    real_06_what_was_sent_before_a_close_arrives_whole_at_a_slow_reader,
    real_07_a_reset_of_one_side_is_a_reset_of_the_other,
    real_07_a_reset_behind_a_half_close_reaches_a_quiet_other_side,
    a_reset_after_the_grant_puts_no_reply_into_the_tunnel,
    a_reset_ends_a_session_whose_other_side_takes_nothing,
    real_08_a_silent_session_outlives_every_time_limit_of_its_beginning,
    an_idle_session_ends_at_the_limit_and_traffic_either_way_puts_it_off,
    a_session_that_is_stuck_in_a_write_ends_at_the_idle_limit_too,
    a_half_closed_session_without_traffic_ends_at_the_linger_limit,
    small_pieces_leave_at_once_both_ways,
    urgent_octets_pass_in_their_place_and_end_nothing,
    a_client_whose_socket_takes_nothing_from_a_pipe_gets_every_octet,
}

/// A stream of octets that holds every value and does not repeat soon.
fn stream(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    let mut octets: Vec<u8> = (0..len.min(1_000_003)).map(|_| next()).collect();
    while octets.len() < len {
        octets.extend_from_within(..octets.len().min(len - octets.len()));
    }
    octets
}

fn v4_02_large_streams_pass_both_ways_at_once_unchanged(way: Way) {
    let server = way.open(&[]);
    let (client, target) = through(&server);
    let (up, down) = (stream(20_000_000), stream(30_000_000));
    thread::scope(|scope| {
        for (mut end, sent, expected) in [(client, &up, &down), (target, &down, &up)] {
            let mut writer = end.try_clone().unwrap();
            scope.spawn(move || {
                writer.write_all(sent).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || assert!(read_to_end(&mut end) == *expected));
        }
    });
    let line = server.log_line(&["event=close"]);
    assert_eq!((field(&line, "up"), field(&line, "down")), ("20000000", "30000000"));
}

fn real_04_a_half_close_of_the_client_is_carried_and_the_answer_still_comes(way: Way) {
    let server = way.open(&[]);
    let (mut client, mut target) = through(&server);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut target), b"question");
    target.write_all(b"answer").unwrap();
    assert_eq!(read(&mut client, 6), b"answer");
    drop(target);
    assert_eq!(read_to_end(&mut client), b"");
    server.log_line(&["event=close", "up=8 down=6", "reason=client"]);
}

fn real_05_a_half_close_of_the_target_is_carried_and_more_can_be_sent(way: Way) {
    let server = way.open(&[]);
    let (mut client, mut target) = through(&server);
    target.write_all(b"greeting").unwrap();
    target.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client), b"greeting");
    client.write_all(b"thanks").unwrap();
    assert_eq!(read(&mut target, 6), b"thanks");
    drop(client);
    assert_eq!(read_to_end(&mut target), b"");
    server.log_line(&["event=close", "up=6 down=8", "reason=target"]);
}

fn real_06_what_was_sent_before_a_close_arrives_whole_at_a_slow_reader(way: Way) {
    let server = way.open(&[]);
    let sent = stream(3_000_000);
    for up in [true, false] {
        let (client, target) = through(&server);
        let (mut from, mut to) = if up { (client, target) } else { (target, client) };
        thread::scope(|scope| {
            scope.spawn(|| {
                from.write_all(&sent).unwrap();
                drop(from);
            });
            let mut received: Vec<u8> = Vec::new();
            let mut buffer = vec![0; 60_000];
            loop {
                match to.read(&mut buffer).unwrap() {
                    0 => break,
                    len => received.extend(&buffer[..len]),
                }
                thread::sleep(Duration::from_millis(2));
            }
            assert!(received == sent, "{} of {}", received.len(), sent.len());
        });
    }
}

fn real_07_a_reset_of_one_side_is_a_reset_of_the_other(way: Way) {
    let server = way.open(&[]);
    for reset_client in [true, false] {
        for busy in [false, true] {
            let (client, target) = through(&server);
            let (from, mut to) = if reset_client { (client, target) } else { (target, client) };
            let sent: &[u8] = if busy { b"before" } else { b"" };
            if busy {
                // What came before the reset, and the other direction is under way when it comes.
                (&from).write_all(sent).unwrap();
                assert_eq!(read(&mut to, sent.len()), sent);
                to.write_all(&[1; 100_000]).unwrap();
            }
            socksd::sys::set_linger_zero(&from).unwrap();
            drop(from);
            let mut octets = Vec::new();
            let error = to.read_to_end(&mut octets).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{reset_client} {busy}");
            assert_eq!(octets, b"", "{reset_client} {busy}: octets that nobody sent");
        }
    }
    server.log_lines(&["event=close", "reason=client-reset"], 2);
    server.log_lines(&["event=close", "reason=target-reset"], 2);
}

fn real_07_a_reset_behind_a_half_close_reaches_a_quiet_other_side(way: Way) {
    // Far longer than this may take.
    let server = way.open(&["--linger-timeout", "60"]);
    for by_client in [true, false] {
        let (client, target) = through(&server);
        let (from, mut to) = if by_client { (client, target) } else { (target, client) };
        from.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut to), b"");
        let begun = Instant::now();
        socksd::sys::set_linger_zero(&from).unwrap();
        drop(from);
        // The end of input has been read, so only polling shows the reset without a write.
        eventually("the reset is passed on", || to.take_error().unwrap().is_some());
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
    server.log_line(&["event=close", "reason=client"]);
    server.log_line(&["event=close", "reason=target"]);
}

fn a_reset_after_the_grant_puts_no_reply_into_the_tunnel(way: Way) {
    let server = way.open(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    for data in [&b""[..], b"only this"] {
        for (request, granted) in [
            (request4(1, addr, b""), &[0, 90][..]),
            (request4a(1, 1, b"localhost", addr.port(), b""), &[0, 90]),
            ([HELLO, &request5(1, addr)].concat(), &[5, 0, 5, 0]),
        ] {
            let mut client = server.sent(&request);
            let (mut target, _) = listener.accept().unwrap();
            let reply = read(&mut client, if granted.len() == 2 { 8 } else { 12 });
            assert!(reply.starts_with(granted), "{reply:02x?}");
            target.write_all(data).unwrap();
            assert_eq!(read(&mut client, data.len()), data);
            socksd::sys::set_linger_zero(&target).unwrap();
            drop(target);
            let mut octets = Vec::new();
            let error = client.read_to_end(&mut octets).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert_eq!(octets, b"", "after the grant and {data:?}");
        }
    }

    // Nor when it is the client's own octets that the target refuses.
    let mut client = tunnel(&server, addr);
    let (target, _) = listener.accept().unwrap();
    client.write_all(b"unread").unwrap();
    eventually("the octets are there", || target.peek(&mut [0; 8]).unwrap() == 6);
    // Closed with octets unread, which the system makes a reset.
    drop(target);
    let mut octets = Vec::new();
    let _ = client.read_to_end(&mut octets);
    assert_eq!(octets, b"");
    server.log_lines(&["event=close", "reason=target-reset"], 7);
}

fn a_reset_ends_a_session_whose_other_side_takes_nothing(way: Way) {
    let server = way.open(&[]);
    let (mut client, mut target) = through(&server);
    // Fills every buffer on the way to the target, so that a thread sits in a write.
    client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    while client.write(&[1; 65_536]).is_ok() {}
    socksd::sys::set_linger_zero(&client).unwrap();
    drop(client);
    // The server can only notice by writing to the client.
    target.write_all(b"x").unwrap();
    server.log_line(&["event=close", "reason=client-reset"]);
    let mut octets = Vec::new();
    assert!(target.read_to_end(&mut octets).is_err(), "an end of input in place of a reset");
}

fn real_08_a_silent_session_outlives_every_time_limit_of_its_beginning(way: Way) {
    let server =
        way.open(&["--handshake-timeout", "1", "--connect-timeout", "1", "--resolve-timeout", "1"]);
    let (mut client, mut target) = through(&server);
    thread::sleep(Duration::from_millis(2_500));
    client.write_all(b"still").unwrap();
    assert_eq!(read(&mut target, 5), b"still");
    target.write_all(b"there").unwrap();
    assert_eq!(read(&mut client, 5), b"there");
}

fn an_idle_session_ends_at_the_limit_and_traffic_either_way_puts_it_off(way: Way) {
    let server = way.open(&["--idle-timeout", "1"]);
    let (mut client, mut target) = through(&server);
    let begun = Instant::now();
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(500));
        target.write_all(b"x").unwrap();
        read(&mut client, 1);
    }
    assert_eq!(read_to_end(&mut client), b"");
    assert_eq!(read_to_end(&mut target), b"");
    let lived = begun.elapsed();
    assert!(
        lived > Duration::from_millis(2_900) && lived < Duration::from_millis(4_500),
        "{lived:?}"
    );
    server.log_line(&["event=close", "reason=idle"]);
}

fn a_session_that_is_stuck_in_a_write_ends_at_the_idle_limit_too(way: Way) {
    let server = way.open(&["--idle-timeout", "1"]);
    let (mut client, _target) = through(&server);
    client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    while client.write(&[1; 65_536]).is_ok() {}
    server.log_line(&["event=close", "reason=idle"]);
}

fn a_half_closed_session_without_traffic_ends_at_the_linger_limit(way: Way) {
    let server = way.open(&["--linger-timeout", "1"]);
    for by_client in [true, false] {
        let (client, target) = through(&server);
        // The limit counts from the half-close, not from the last octet.
        thread::sleep(Duration::from_millis(1_200));
        let (from, mut to) = if by_client { (client, target) } else { (target, client) };
        let begun = Instant::now();
        from.shutdown(Shutdown::Write).unwrap();
        let mut from = from;
        assert_eq!(read_to_end(&mut to), b"");
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(400));
            to.write_all(b"x").unwrap();
            read(&mut from, 1);
        }
        assert_eq!(read_to_end(&mut from), b"");
        assert!(begun.elapsed() > Duration::from_millis(2_100));
    }
    server.log_lines(&["event=close", "reason=linger"], 2);
}

fn small_pieces_leave_at_once_both_ways(way: Way) {
    const ROUNDS: usize = 21;
    let server = way.open(&[]);
    for by_client in [true, false] {
        let (client, target) = through(&server);
        target.set_nodelay(true).unwrap();
        let (mut from, mut to) = if by_client { (client, target) } else { (target, client) };
        let round = |_| {
            let begun = Instant::now();
            // The second piece would wait for the first one's acknowledgement, which waits 40 ms.
            from.write_all(b"a").unwrap();
            thread::sleep(Duration::from_millis(2));
            from.write_all(b"b").unwrap();
            assert_eq!(read(&mut to, 2), b"ab");
            to.write_all(b"c").unwrap();
            assert_eq!(read(&mut from, 1), b"c");
            begun.elapsed()
        };
        let mut took: Vec<Duration> = (0..ROUNDS).map(round).collect();
        // Each round would; some may wait for a processor.
        took.sort_unstable();
        assert!(took[ROUNDS / 2] < Duration::from_millis(20), "{took:?}");
    }
}

fn urgent_octets_pass_in_their_place_and_end_nothing(way: Way) {
    // As telnet's Synch and ftp's ABOR send them; the standard library cannot.
    const SEND: &str = "
import socket
end = socket.socket(fileno=0)
end.send(b'1', socket.MSG_OOB)
for urgent in b'2', b'3':
    end.sendall(bytes(8 << 20))
    end.send(urgent, socket.MSG_OOB)
end.sendall(bytes(100))
end.shutdown(socket.SHUT_WR)
";
    let server = way.open(&[]);
    let expected =
        [&b"1"[..], &vec![0; 8 << 20], b"2", &vec![0; 8 << 20], b"3", &[0; 100]].concat();
    for up in [true, false] {
        let (client, target) = through(&server);
        let (from, mut to) = if up { (client, target) } else { (target, client) };
        let mut python = Command::new("python3");
        let mut python = python.args(["-c", SEND]).stdin(OwnedFd::from(from)).spawn().unwrap();
        let came = read_to_end(&mut to);
        assert!(came == expected, "{} octets of {}", came.len(), expected.len());
        assert!(python.wait().unwrap().success());
    }
}

fn a_client_whose_socket_takes_nothing_from_a_pipe_gets_every_octet(way: Way) {
    // splice(2) refuses to write where O_APPEND is set, as whatever passes on a socket may leave
    // it.
    const APPEND: &str = "
import fcntl, os, sys
fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_APPEND)
os.execv(sys.argv[1], sys.argv[1:])
";
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = connect(listener.local_addr().unwrap());
    let (near, _) = listener.accept().unwrap();
    let mut python = Command::new("python3");
    python.args(["-c", APPEND, SOCKSD, "--inetd", "--rule", "allow to all"]);
    python.args(way.0);
    let mut server = python.stdin(OwnedFd::from(near)).spawn().unwrap();
    client.write_all(&[HELLO, &request5(1, listener.local_addr().unwrap())].concat()).unwrap();
    let (mut target, _) = listener.accept().unwrap();
    assert_eq!(read(&mut client, 12)[..4], [5, 0, 5, 0]);
    let sent = stream(20_000_000);
    thread::scope(|scope| {
        scope.spawn(|| {
            target.write_all(&sent).unwrap();
            drop(target);
        });
        let mut received = Vec::new();
        let ended = client.read_to_end(&mut received);
        assert!(received == sent, "{} octets of {}, {ended:?}", received.len(), sent.len());
    });
    drop(client);
    assert!(server.wait().unwrap().success());
}
