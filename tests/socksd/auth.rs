//! User names and passwords (RFC 1929).

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::*;

const OFFER: &[u8] = &[5, 1, 2];
const RIGHT: &[u8] = b"\x01\x05alice\x06secret";

#[test]
fn auth_01_auth_02_the_right_password_is_accepted_however_it_is_cut() {
    let users = TempFile::alice();
    let server = Server::open(&["--users", users.path()]);
    let target = Target::echo();
    for delivery in DELIVERIES {
        let request = request5(1, target.addr);
        let messages = [(OFFER, 2), (RIGHT, 2), (&request[..], 10)];
        let (replies, mut client) = delivery.exchange(&server, &messages, b"ping");
        assert_eq!(replies[0], [5, 2], "V5-07");
        assert_eq!(replies[1], [1, 0]);
        assert_eq!(replies[2][1], 0);
        assert_eq!(read(&mut client, 4), b"ping", "REAL-03");
        drop(client);
    }
    server.log_lines(&["event=close", "user=alice "], 3);
}

#[test]
fn auth_03_auth_08_auth_09_wrong_password_opens_no_connection() {
    let users = TempFile::alice();
    let server = Server::open(&["--users", users.path(), "--auth-penalty", "0"]);
    let target = Target::echo();
    let wrong: [(&[u8], &[u8]); 10] = [
        (b"alice", b"secre"),
        (b"alice", b"secretx"),
        (b"alice", b"secret\0"),
        (b"alice", b"Secret"),
        (b"Alice", b"secret"),
        (b"alice", b""),
        (b"", b""),
        (b"", b"secret"),
        (b"bob", b"secret"),
        (&[b'a'; 255], &[b'b'; 255]),
    ];
    for (name, password) in wrong {
        let mut client =
            server.sent(&[OFFER, &login(name, password), &request5(1, target.addr)].concat());
        assert_eq!(read(&mut client, 2), [5, 2]);
        assert_eq!(read_to_end(&mut client), [1, 1], "{name:?} {password:?}");
    }
    target.assert_untouched(&server);
    let lines = server.log_lines(&["event=refuse", " reason=auth "], wrong.len());
    assert!(lines.iter().all(|line| field(line, "command") == "-"));
}

#[test]
fn an_expired_user_is_refused_as_with_a_wrong_password_and_logged_as_expired() {
    let users = TempFile::alice_with(":2020-02-29:staff");
    let server = Server::open(&["--users", users.path()]);
    let target = Target::echo();
    for password in [&b"secret"[..], b"wrong"] {
        let mut client =
            server.sent(&[OFFER, &login(b"alice", password), &request5(1, target.addr)].concat());
        assert_eq!(read_to_end(&mut client), [5, 2, 1, 1], "{password:?}");
    }
    target.assert_untouched(&server);
    let lines = server.log_lines(&["event=refuse", " user=alice ", " reason=auth "], 2);
    let expired = |line: &&String| line.ends_with(" error=\"the account has expired\"");
    assert_eq!(lines.iter().filter(expired).count(), 1, "{lines:#?}");
}

#[test]
fn an_account_that_expires_later_or_never_is_served() {
    for fields in [":9999-12-31", ":9999-12-31:staff,ops", "::staff", "::", ":"] {
        let users = TempFile::alice_with(fields);
        let server = Server::open(&["--users", users.path()]);
        let mut client = server.sent(&[OFFER, RIGHT].concat());
        assert_eq!(read(&mut client, 4), [5, 2, 1, 0], "{fields}");
    }
}

#[test]
fn auth_08_passwords_are_octets_and_not_text() {
    // printf '\xff' | openssl passwd -6 -salt saltsalt -stdin
    let users = TempFile::new(
        "octets:$6$saltsalt$7ftz5L1enAVnWPUv4BIvBcL3tmmvjeZZbwJzNWfNz2/39.vGRo6yU9tNmma76Y4u2Lxat\
         Ln9oypdcoKvxoxfy1\n",
    );
    let server = Server::open(&["--users", users.path()]);
    // Taken for text, UTF-8 or Latin-1, each of the wrong ones could be the right one, which is
    // remembered once it has come.
    let right: (&[u8], u8) = (b"\xff", 0);
    let wrong: [(&[u8], u8); 3] = [(b"\xfe", 1), (b"\xef\xbf\xbd", 1), (b"\xc3\xbf", 1)];
    for (password, status) in wrong.into_iter().chain([right, right]).chain(wrong) {
        let mut client = server.sent(&[OFFER, &login(b"octets", password)].concat());
        assert_eq!(read(&mut client, 4), [5, 2, 1, status], "{password:02x?}");
    }
}

#[test]
fn auth_06_another_sub_negotiation_version_is_a_failure() {
    let users = TempFile::alice();
    let server = Server::open(&["--users", users.path()]);
    for version in [0, 5] {
        let mut message = RIGHT.to_vec();
        message[0] = version;
        let mut client = server.sent(&[OFFER, &message].concat());
        assert_eq!(read_to_end(&mut client), [5, 2, 1, 1]);
    }
}

#[test]
fn auth_07_v5_39_v5_41_sec_16_with_users_only_method_02_is_chosen() {
    let users = TempFile::alice();
    let server = Server::open(&["--users", users.path()]);
    for (greeting, chosen) in [
        (&[5, 1, 0][..], 0xff),
        (&[5, 1, 1], 0xff),
        (&[5, 2, 0, 1], 0xff),
        (&[5, 2, 0, 2], 2),
        (&[5, 3, 0, 1, 2], 2),
    ] {
        let mut client = server.sent(greeting);
        assert_eq!(read(&mut client, 2), [5, chosen]);
    }
}

#[test]
fn auth_09_a_request_in_place_of_the_password_is_not_served() {
    let users = TempFile::alice();
    let server = Server::open(&["--users", users.path()]);
    let target = Target::echo();
    let mut client = server.sent(&[OFFER, &request5(1, target.addr)].concat());
    assert_eq!(read_to_end(&mut client), [5, 2, 1, 1]);
    let mut client = server.sent(&[HELLO, &request5(1, target.addr)].concat());
    assert_eq!(read_to_end(&mut client), [5, 0xff]);
    target.assert_untouched(&server);
}

#[test]
fn auth_11_sec_14_socks_4_does_not_walk_round_the_password() {
    let users = TempFile::alice();
    let server = Server::open(&["--users", users.path()]);
    let target = Target::echo();
    for request in [
        request4(1, target.addr, b"alice"),
        request4(2, target.addr, b"alice"),
        request4a(1, 1, b"localhost", target.addr.port(), b"alice"),
    ] {
        let mut client = server.sent(&request);
        assert_eq!(read_to_end(&mut client)[..2], [0, 91]);
    }
    target.assert_untouched(&server);
}

#[test]
fn auth_12_bind_and_udp_work_behind_a_password() {
    let users = TempFile::alice();
    let server = Server::open(&["--users", users.path()]);
    let any = "0.0.0.0:0".parse().unwrap();

    let mut client = server.sent(&[OFFER, RIGHT, &request5(2, any)].concat());
    assert_eq!(read(&mut client, 4), [5, 2, 1, 0]);
    let (rep, bnd) = reply5(&mut client);
    assert_eq!(rep, 0);
    let mut peer = connect(bnd);
    assert_eq!(reply5(&mut client), (0, peer.local_addr().unwrap()));
    peer.write_all(b"ping").unwrap();
    assert_eq!(read(&mut client, 4), b"ping");

    let mut client = server.sent(&[OFFER, RIGHT, &request5(3, any)].concat());
    assert_eq!(read(&mut client, 4), [5, 2, 1, 0]);
    let (rep, bnd) = reply5(&mut client);
    assert_eq!(rep, 0);
    let (socket, target) = (UdpSocket::bind("127.0.0.1:0"), UdpSocket::bind("127.0.0.1:0"));
    let (socket, target) = (socket.unwrap(), target.unwrap());
    target.set_read_timeout(Some(SOON)).unwrap();
    let mut datagram = Vec::new();
    socksd::wire::udp::encode_header(target.local_addr().unwrap(), &mut datagram);
    datagram.extend(b"ping");
    socket.send_to(&datagram, bnd).unwrap();
    let mut buffer = [0; 16];
    assert_eq!(target.recv(&mut buffer).unwrap(), 4);
}

#[test]
fn secrets_never_reach_the_log_and_names_reach_it_escaped() {
    let users = TempFile::alice();
    let server = Server::open(&["-v", "--users", users.path()]);
    let forged = b"x reason=client\nevent=close user=root";
    let mut client = server.sent(&[OFFER, &login(forged, b"pa55word")].concat());
    assert_eq!(read_to_end(&mut client), [5, 2, 1, 1]);
    let mut client = server.sent(&[OFFER, RIGHT].concat());
    assert_eq!(read(&mut client, 4), [5, 2, 1, 0]);
    drop(client);
    server.log_line(&["event=close", "user=alice "]);
    server.log_line(&[
        "reason=auth",
        "user=x\\x20reason\\x3dclient\\x0aevent\\x3dclose\\x20user\\x3droot ",
    ]);
    for line in server.log() {
        assert!(!line.contains("pa55word") && !line.contains("secret"), "{line}");
        assert!(line.starts_with("time="), "{line}");
    }
}

#[test]
fn a_flood_of_logins_leaves_a_core_to_the_relays() {
    let users = TempFile::alice();
    let server = Server::open(&["--users", users.path(), "--auth-penalty", "0"]);
    let target = Target::echo();
    let mut client = server.sent(&[OFFER, RIGHT, &request5(1, target.addr)].concat());
    read(&mut client, 14);
    let flood: Vec<_> =
        (0..40).map(|_| server.sent(&[OFFER, &login(b"bob", b"x")].concat())).collect();
    for octet in 0..50 {
        client.write_all(&[octet]).unwrap();
        assert_eq!(read(&mut client, 1), [octet]);
    }
    for mut client in flood {
        assert_eq!(read(&mut client, 4), [5, 2, 1, 1]);
    }
}

/// Sends a wrong password for alice from 127.0.0.`last`, without waiting for its answer.
fn guess(server: &Server, last: u8) -> TcpStream {
    let mut client = connect_from(Ipv4Addr::new(127, 0, 0, last), server.addr);
    client.write_all(&[OFFER, &login(b"alice", b"wrong")].concat()).unwrap();
    client
}

/// Logs alice in from 127.0.0.`last`, and asserts that this is done at once.
fn log_in(server: &Server, last: u8) {
    let begun = Instant::now();
    let mut client = connect_from(Ipv4Addr::new(127, 0, 0, last), server.addr);
    client.write_all(&[OFFER, RIGHT].concat()).unwrap();
    assert_eq!(read(&mut client, 4), [5, 2, 1, 0]);
    assert!(begun.elapsed() < Duration::from_secs(1), "delayed: {:?}", begun.elapsed());
}

#[test]
fn guesses_get_slower_and_are_refused_for_a_while_and_only_for_their_address() {
    const PENALTY: Duration = Duration::from_secs(5);
    let users = TempFile::alice();
    let server = Server::open(&["--users", users.path(), "--auth-penalty", "5"]);
    let target = Target::echo();
    let mut tunnel = connect_from(Ipv4Addr::new(127, 0, 0, 2), server.addr);
    tunnel.write_all(&[OFFER, RIGHT, &request5(1, target.addr)].concat()).unwrap();
    read(&mut tunnel, 14);

    for millis in [100, 200, 400, 800] {
        let begun = Instant::now();
        assert_eq!(read_to_end(&mut guess(&server, 2)), [5, 2, 1, 1]);
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(millis), "{took:?} is not {millis} ms");
    }
    let begun = Instant::now();
    let guesses: Vec<_> = (0..40).map(|_| guess(&server, 2)).collect();
    let line = server.log_line(&["event=penalty "]);
    assert!(line.contains(" client=127.0.0.2:") && line.ends_with(" seconds=5"), "{line}");

    // While the answers to the guesses wait.
    log_in(&server, 1);
    let mut client = connect_from(Ipv4Addr::new(127, 0, 0, 2), server.addr);
    assert_ends_silently(&mut client, SOON);
    server.log_line(&["event=refuse client=127.0.0.2:", "reason=limit", "limit=auth-penalty"]);
    tunnel.write_all(b"ping").unwrap();
    assert_eq!(read(&mut tunnel, 4), b"ping", "a session under way is left alone");

    let served = || {
        let mut client = connect_from(Ipv4Addr::new(127, 0, 0, 2), server.addr);
        client.write_all(&[OFFER, RIGHT].concat()).is_ok()
            && std::io::Read::read_exact(&mut client, &mut [0; 4]).is_ok()
    };
    while !served() {
        assert!(begun.elapsed() < 4 * PENALTY, "never served again");
        thread::sleep(Duration::from_millis(50));
    }
    assert!(begun.elapsed() > PENALTY, "{:?}", begun.elapsed());
    // Some came too late to be heard, and may have been reset.
    for mut guess in guesses {
        let _ = std::io::Read::read_to_end(&mut guess, &mut Vec::new());
    }
    // Of guesses made all at once no more were checked than of as many in a row.
    let checked = server.log_lines(&[" client=127.0.0.2:", " reason=auth "], 10).len();
    assert!(checked < 20, "{checked} were checked");
    assert_eq!(server.log_lines(&["event=penalty "], 1).len(), 1, "told of once");
}

#[test]
fn an_account_of_ones_own_does_not_make_guesses_free() {
    let users = TempFile::alice();
    let server = Server::open(&["--users", users.path()]);
    let first: Vec<_> = (0..5).map(|_| guess(&server, 1)).collect();
    // The fifth failure waits longest, and is counted before it waits.
    thread::sleep(Duration::from_millis(500));
    (0..20).for_each(|_| log_in(&server, 1));
    let second: Vec<_> = (0..5).map(|_| guess(&server, 1)).collect();
    server.log_line(&["event=penalty "]);
    drop((first, second));
}

#[test]
fn the_answer_to_a_guess_comes_before_the_handshake_timeout() {
    let users = TempFile::alice();
    let server = Server::open(&["--users", users.path(), "--handshake-timeout", "1"]);
    let begun = Instant::now();
    for mut client in (0..9).map(|_| guess(&server, 1)).collect::<Vec<_>>() {
        assert_eq!(read_to_end(&mut client), [5, 2, 1, 1]);
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}
