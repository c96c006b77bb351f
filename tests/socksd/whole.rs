//! Octets arrive whole, in their order and nowhere else, however they are passed on and however
//! sessions end.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::netns::isolated;
use crate::common::{
    HELLO, Random, Server, eventually, field, read, read_to_end, reply5, request5,
};

/// How long nothing may move.
const STUCK: Duration = Duration::from_secs(20);

/// Octets that come in one go from the noise.
const RUN: usize = 64 * 1024;

/// Runs can begin anywhere in its first MiB.
const BEGINNINGS: usize = 1 << 20;

static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::of(1);
    (0..(BEGINNINGS + RUN) / 8).flat_map(|_| random.next().to_le_bytes()).collect()
});

/// An endless stream of octets, another one for every number. Each run of it comes from somewhere
/// else in the noise, so that no octet passes for one at another place or of another stream.
#[derive(Clone, Copy)]
struct Stream(u64);

impl Stream {
    /// What comes at `place`, up to `len` octets but no more than to the end of its run.
    fn at(self, place: usize, len: usize) -> &'static [u8] {
        let run = u64::try_from(place / RUN).unwrap();
        let mut random = Random::of(self.0 << 32 | run);
        random.next();
        let begin = random.below(BEGINNINGS) + place % RUN;
        &NOISE[begin..][..len.min(RUN - place % RUN)]
    }

    /// Sends what comes from `place` to `end`; tells how far it got.
    fn send(self, mut to: &TcpStream, mut place: usize, end: usize) -> (usize, io::Result<()>) {
        while place < end {
            match to.write(self.at(place, end - place)) {
                Ok(len) => place += len,
                Err(error) => return (place, Err(error)),
            }
        }
        (place, Ok(()))
    }

    /// Reads up to the end of input or up to `end`, and checks every octet; tells how far it got.
    fn check(self, mut from: &TcpStream, end: usize) -> (usize, io::Result<()>) {
        let (mut octets, mut place) = (vec![0; 4 * RUN], 0);
        while place < end {
            let most = octets.len().min(end - place);
            let mut came = match from.read(&mut octets[..most]) {
                Ok(0) => break,
                Ok(len) => &octets[..len],
                Err(error) => return (place, Err(error)),
            };
            while !came.is_empty() {
                let expected = self.at(place, came.len());
                let (now, rest) = came.split_at(expected.len());
                assert!(
                    now == expected,
                    "stream {} is another between {place} and {}",
                    self.0,
                    place + now.len()
                );
                (came, place) = (rest, place + now.len());
            }
        }
        (place, Ok(()))
    }

    /// Checks that exactly so many octets come.
    fn check_all(self, from: &TcpStream, octets: usize) {
        let (place, result) = self.check(from, usize::MAX);
        result.unwrap_or_else(|error| panic!("stream {} after {place}: {error}", self.0));
        assert_eq!(place, octets, "octets of stream {}", self.0);
    }
}

/// A tunnel: the client's end and the target's end. The client sends what `with` is along with its
/// request.
fn through(server: &Server, with: &[u8]) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let request = request5(1, listener.local_addr().unwrap());
    let mut client = server.sent(&[HELLO, &request, with].concat());
    assert_eq!(read(&mut client, 2), [5, 0]);
    assert_eq!(reply5(&mut client).0, 0);
    let (target, _) = listener.accept().unwrap();
    target.set_nodelay(true).unwrap();
    for end in [&client, &target] {
        end.set_read_timeout(Some(STUCK)).unwrap();
        end.set_write_timeout(Some(STUCK)).unwrap();
    }
    (client, target)
}

/// Passes a GiB each way at once, each cut into bursts with pauses between as `burst` and `pause`
/// tell, and ends each way when it is whole.
fn pass_a_gib(args: &[&str], cut: impl Fn(&mut Random) -> (usize, Duration) + Copy + Send) {
    const GIB: usize = 1 << 30;
    let server = Server::open(args);
    let (client, target) = through(&server, b"");
    let (client, target) = (&client, &target);
    let (up, down) = (Stream(1), Stream(2));
    thread::scope(|scope| {
        for (stream, from, to) in [(up, client, target), (down, target, client)] {
            scope.spawn(move || {
                let (mut random, mut place) = (Random::of(stream.0), 0);
                while place < GIB {
                    let (len, pause) = cut(&mut random);
                    let (sent, result) = stream.send(from, place, GIB.min(place + len));
                    result.unwrap();
                    place = sent;
                    thread::sleep(pause);
                }
                from.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || stream.check_all(to, GIB));
        }
    });
    let line = server.log_line(&["event=close"]);
    assert_eq!([field(&line, "up"), field(&line, "down")], [GIB.to_string(), GIB.to_string()]);
}

#[test]
fn a_gib_arrives_whole_both_ways_at_once_through_pipes() {
    pass_a_gib(&[], |_| (1 << 20, Duration::ZERO));
}

#[test]
fn a_gib_arrives_whole_both_ways_at_once_through_buffers() {
    pass_a_gib(&["--no-splice"], |_| (1 << 20, Duration::ZERO));
}

#[test]
fn a_gib_arrives_whole_both_ways_at_once_through_everything_by_turns() {
    pass_a_gib(&[], burst);
}

#[test]
fn a_gib_arrives_whole_both_ways_at_once_through_small_and_large_buffers_by_turns() {
    pass_a_gib(&["--no-splice"], burst);
}

/// A random burst: anything from an octet to 4 MiB, as often small as large, and sometimes a pause
/// behind it after which a direction is taken for a quiet one.
fn burst(random: &mut Random) -> (usize, Duration) {
    let scale = 1 << random.below(23);
    let len = 1 + random.below(scale);
    let millis = match random.below(64) {
        0 => 50 + random.below(100),
        1..8 => random.below(3),
        _ => 0,
    };
    (len, Duration::from_millis(u64::try_from(millis).unwrap()))
}

/// Sessions of which each is another at random, and how many there are at once.
const SESSIONS: usize = 500;
const AT_ONCE: usize = 8;

/// How long the server may take to come to rest: threads without work stay for some seconds.
const REST: Duration = Duration::from_secs(20);

/// Sends a stream in bursts, and with it the end of input.
fn send_in_bursts(stream: Stream, to: &TcpStream, mut place: usize, end: usize) -> io::Result<()> {
    let mut random = Random::of(stream.0);
    while place < end {
        let (len, pause) = burst(&mut random);
        let (sent, result) = stream.send(to, place, end.min(place + len));
        result?;
        place = sent;
        thread::sleep(pause);
    }
    to.shutdown(Shutdown::Write)
}

/// Octets of a stream of a session at random: none, few or many.
fn amount(random: &mut Random) -> usize {
    let scale = 1 << random.below(23);
    random.below(scale)
}

/// One session, another one for every number, that ends with two half-closes or with a reset.
/// Checks what arrives, and what the log tells of it.
fn session(server: &Server, number: usize) {
    let mut random = Random::of(u64::try_from(number).unwrap());
    let streams = [2 * number, 2 * number + 1].map(|number| Stream(u64::try_from(number).unwrap()));
    let sizes = [amount(&mut random), amount(&mut random)];
    let with_request = match random.below(3) {
        0 => streams[0].at(0, sizes[0].min(random.below(3_000))),
        _ => b"",
    };
    let (client, target) = through(server, with_request);
    let name = format!("client={}", client.local_addr().unwrap());
    let places = [with_request.len(), 0];
    let closed = |reason: &str| {
        let line = server.log_line(&["event=close", &name]);
        assert!(reason.split('|').any(|word| word == field(&line, "reason")), "{number}: {line}");
        ["up", "down"].map(|key| field(&line, key).parse::<usize>().unwrap())
    };

    // The resets are of either end.
    let resets = random.below(4);
    if resets >= 2 {
        // Who waits sends only when all of the other's octets and their end have come.
        let waits = random.below(3);
        thread::scope(|scope| {
            for (own, end) in [&client, &target].into_iter().enumerate() {
                let send = move || send_in_bursts(streams[own], end, places[own], sizes[own]);
                let check = move || streams[1 - own].check_all(end, sizes[1 - own]);
                if own == waits {
                    scope.spawn(move || {
                        check();
                        send().unwrap();
                    });
                } else {
                    scope.spawn(move || send().unwrap());
                    scope.spawn(check);
                }
            }
        });
        assert_eq!(closed("client|target"), sizes, "session {number}");
        return;
    }

    let (own, other) = (resets, 1 - resets);
    let (end, far) = if own == 0 { (client, target) } else { (target, client) };
    let sends = places[own] + random.below(sizes[own] - places[own] + 1);
    let reads = random.below(sizes[other] + 1);
    let arrived = thread::scope(|scope| {
        let far = &far;
        let sent =
            scope.spawn(move || send_in_bursts(streams[other], far, places[other], sizes[other]));
        let checked = scope.spawn(move || streams[own].check(far, usize::MAX));
        streams[own].send(&end, places[own], sends).1.unwrap();
        assert_eq!(streams[other].check(&end, reads).0, reads, "session {number}");
        socksd::sys::set_linger_zero(&end).unwrap();
        drop(end);
        let (arrived, result) = checked.join().unwrap();
        // The error is given to one of them.
        assert!(result.and(sent.join().unwrap()).is_err(), "{number}: an end and not a reset");
        arrived
    });
    let counts = closed(["client-reset", "target-reset"][own]);
    assert!(arrived <= counts[own] && counts[own] <= sends, "{number}: {arrived} of {counts:?}");
    assert!(reads <= counts[other] && counts[other] <= sizes[other], "{number}: {counts:?}");
}

/// Threads, pipe ends and other descriptors of a server.
fn holds(server: &Server) -> [usize; 3] {
    let (descriptors, threads) = server.holds();
    let links = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().flatten();
    let ends = links.filter_map(|link| fs::read_link(link.path()).ok());
    let pipes = ends.filter(|end| end.to_string_lossy().starts_with("pipe:")).count();
    [threads, pipes, descriptors - pipes]
}

/// Plays all sessions, and waits until the server holds what it held before.
fn play(args: &[&str]) {
    let server = Server::open(args);
    eventually("all its threads have started", || server.holds().1 == 5);
    let [threads, pipes, others] = holds(&server);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let number @ ..SESSIONS = next.fetch_add(1, Ordering::Relaxed) {
                    session(&server, number);
                }
            });
        }
    });
    // Both ends of one for each direction there was at the same time stay for the next ones.
    let kept = if args.contains(&"--no-splice") { 0 } else { 2 * 2 * AT_ONCE };
    let rested = Instant::now();
    loop {
        let now = holds(&server);
        if now[0] == threads && now[1] <= pipes + kept && now[2] == others {
            break;
        }
        assert!(rested.elapsed() < REST, "{now:?} after {:?}", [threads, pipes, others]);
        thread::sleep(Duration::from_millis(50));
    }
    let closes = server.log().iter().filter(|line| line.contains("event=close")).count();
    assert_eq!(closes, SESSIONS);
}

#[test]
fn random_half_closes_and_resets_lose_alter_and_leave_nothing() {
    play(&[]);
}

#[test]
fn random_half_closes_and_resets_lose_alter_and_leave_nothing_without_pipes() {
    play(&["--no-splice"]);
}

#[test]
fn what_a_reset_leaves_in_a_pipe_gets_to_nobody() {
    const EACH: usize = 4 << 20;
    let server = Server::open(&[]);
    // Leaves pipes for those who come next.
    let mut streams = (1..).map(Stream);
    let mut pass = || {
        let (client, target) = through(&server, b"");
        thread::scope(|scope| {
            for (from, to) in [(&client, &target), (&target, &client)] {
                let stream = streams.next().unwrap();
                scope.spawn(move || {
                    stream.send(from, 0, EACH).1.unwrap();
                    from.shutdown(Shutdown::Write).unwrap();
                });
                scope.spawn(move || stream.check_all(to, EACH));
            }
        });
    };
    pass();
    for (number, counter) in [(1, "up"), (2, "down"), (3, "up"), (4, "down")] {
        let (client, target) = through(&server, b"");
        let (from, to) = if counter == "up" { (client, target) } else { (target, client) };
        // Until every buffer on the way is full, and so the pipe between two of them.
        from.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let (sent, result) = Stream(1_000 + number).send(&from, 0, usize::MAX);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        socksd::sys::set_linger_zero(&to).unwrap();
        drop(to);
        let reason = if counter == "up" { "reason=target-reset" } else { "reason=client-reset" };
        let count = usize::try_from(number).unwrap().div_ceil(2);
        let line = server.log_lines(&["event=close", reason], count).pop().unwrap();
        let passed: usize = field(&line, counter).parse().unwrap();
        assert!(passed > 1 << 20 && passed < sent, "{passed} of {sent}: no pipe was in use");
        for _ in 0..4 {
            pass();
        }
    }
}

#[test]
fn a_receiver_that_rests_for_longer_than_the_idle_limit_loses_nothing() {
    const PIECES: usize = 10;
    for args in [&["--idle-timeout", "2"][..], &["--idle-timeout", "2", "--no-splice"]] {
        let server = Server::open(args);
        // So many sizes that with some of them it is the last octets that have to wait.
        thread::scope(|scope| {
            for size in (1..=32).map(|size| size * 400_000) {
                let (mut client, target) = through(&server, b"");
                let stream = Stream(u64::try_from(size).unwrap());
                scope.spawn(move || {
                    thread::scope(|scope| {
                        scope.spawn(|| {
                            stream.send(&client, 0, size).1.unwrap();
                            client.shutdown(Shutdown::Write).unwrap();
                        });
                        // The other direction keeps the session from being idle.
                        for _ in 0..PIECES {
                            thread::sleep(Duration::from_millis(500));
                            (&target).write_all(b"x").unwrap();
                        }
                        stream.check_all(&target, size);
                    });
                    target.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(read_to_end(&mut client), [b'x'; PIECES]);
                });
            }
        });
        let closed = server.log_lines(&["event=close"], 32);
        let all = PIECES.to_string();
        assert!(closed.iter().all(|line| field(line, "down") == all), "{closed:#?}");
    }
}

#[test]
fn a_slow_reader_behind_a_half_close_keeps_its_session_as_long_as_it_reads() {
    isolated(|| {
        // Else all that is sent would fit into the buffers of the system.
        for (file, sizes) in
            [("tcp_rmem", "4096 131072 2097152"), ("tcp_wmem", "4096 65536 262144")]
        {
            fs::write(format!("/proc/sys/net/ipv4/{file}"), sizes).unwrap();
        }
        let server = Server::open(&["--linger-timeout", "2"]);
        let (mut client, target) = through(&server, b"");
        client.shutdown(Shutdown::Write).unwrap();
        let (stream, size) = (Stream(1), 24 << 20);
        thread::scope(|scope| {
            scope.spawn(|| {
                stream.send(&target, 0, size).1.unwrap();
                target.shutdown(Shutdown::Write).unwrap();
            });
            let mut octets = vec![0; size];
            let (fast, slow) = octets.split_at_mut(20 << 20);
            // Enough for a pipe, in which a MiB waits then; that takes longer than the limit.
            client.read_exact(fast).unwrap();
            let (slow, rest) = slow.split_at_mut(1 << 20);
            for octets in slow.chunks_mut(16 * 1024) {
                client.read_exact(octets).unwrap();
                thread::sleep(Duration::from_millis(100));
            }
            client.read_exact(rest).unwrap();
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            let mut place = 0;
            while place < size {
                let expected = stream.at(place, size - place);
                assert!(octets[place..].starts_with(expected), "another octet behind {place}");
                place += expected.len();
            }
        });
    });
}
