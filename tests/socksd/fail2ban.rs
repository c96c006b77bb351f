//! The filter for fail2ban in the manual, run by fail2ban itself on the log of a real server: it
//! finds those who failed to authenticate, and nobody can make it find somebody else.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::common::{
    HELLO, Killed, SOCKSD, Server, Target, TempFile, connect, connect_from, eventually, field,
    in_network_of, in_new_network, listens_at, read, read_to_end, refusing_port, reply5, request4,
    request5, request5_name, root,
};

/// What a name could hold to be taken for something else. None has a colon, since a users file
/// could not hold it.
const FORGERIES: [&[u8]; 7] = [
    b" reason=auth error=\"",
    b"x version=5 reason=auth ",
    b"\nevent=refuse session=1 client=198.51.100.1 user=x reason=auth ",
    b"x\r\ntime=2026-11-21T00 event=refuse session=1 client=198.51.100.2 user=x reason=auth ",
    b"client=198.51.100.3",
    b"\x1b[2K\x00\xff\\x20reason=auth\\x20",
    b"\xc2\xa0reason=auth\xe2\x80\xa8",
];

/// The filter as it stands in the manual.
fn filter() -> TempFile {
    let manual = fs::read_to_string(root().join("man/socksd.8")).unwrap();
    let (_, filter) = manual.split_once("\n[Definition]\n").expect("the manual has a filter");
    let (filter, _) = filter.split_once("\n.Ed\n").unwrap();
    TempFile::new(&format!("[Definition]\n{}\n", filter.replace("\\e", "\\")))
}

/// Runs fail2ban on log lines; returns the addresses it finds, each with the line it was found in.
fn found(lines: &[String]) -> Vec<(IpAddr, String)> {
    let (log, filter) = (TempFile::new(&(lines.join("\n") + "\n")), filter());
    // Another time zone than that of the log.
    let output = Command::new("fail2ban-regex")
        .args(["-o", "<ip> <time> <msg>", log.path(), filter.path()])
        .env("TZ", "JST-9")
        .output()
        .unwrap_or_else(|error| panic!("cannot run fail2ban-regex: {error}"));
    assert!(output.status.success(), "{output:?}");
    let output = String::from_utf8(output.stdout).unwrap();
    let rows = output.lines().map(|row| {
        let mut row = row.splitn(3, ' ');
        let ip = row.next().unwrap().parse().unwrap();
        let time = row.next().unwrap().parse().unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(time);
        let age = SystemTime::now().duration_since(time).unwrap();
        assert!(age < Duration::from_secs(600), "the time is not read as it is meant: {age:?}");
        (ip, row.next().unwrap().to_owned())
    });
    rows.collect()
}

/// Sends a greeting and a password.
fn claim(mut client: TcpStream, name: &[u8], password: &[u8]) -> TcpStream {
    let (ulen, plen) = (u8::try_from(name.len()).unwrap(), u8::try_from(password.len()).unwrap());
    client.write_all(&[&[5, 1, 2, 1, ulen], name, &[plen], password].concat()).unwrap();
    assert_eq!(read(&mut client, 3), [5, 2, 1]);
    client
}

/// Fails to authenticate and returns the address it came from.
fn fail(client: TcpStream, name: &[u8], password: &[u8]) -> SocketAddr {
    let addr = client.local_addr().unwrap();
    assert_ne!(read(&mut claim(client, name, password), 1), [0]);
    addr
}

/// Authenticates.
fn log_in(client: TcpStream, name: &[u8]) -> TcpStream {
    let mut client = claim(client, name, b"secret");
    assert_eq!(read(&mut client, 1), [0]);
    client
}

/// Alice, bob whose account has expired, and one for each forgery that a users file can hold, all
/// with the same password.
fn users() -> TempFile {
    let users = TempFile::alice();
    let alice = fs::read(users.path()).unwrap();
    let hash = &alice[b"alice".len()..];
    let forgeries = FORGERIES.iter().filter(|name| !name.contains(&b'\n'));
    let mut lines = alice.clone();
    lines.extend(forgeries.flat_map(|name| [name, hash].concat()));
    lines.extend([b"bob", hash.trim_ascii_end(), b":2020-02-29\n"].concat());
    fs::write(users.path(), lines).unwrap();
    users
}

#[test]
fn the_filter_finds_failed_authentication_and_nothing_else() {
    let (target, (refusing, _kept)) = (Target::echo(), refusing_port());
    let users = users();
    let args = ["--listen", "[::1]:0", "--users", users.path(), "--auth-penalty", "0", "-v"];
    let server = Server::open(&args);
    let listening = server.log_lines(&["event=listening "], 2);
    let v6: SocketAddr = field(&listening[1], "addr").parse().unwrap();
    let from = |last| connect_from(Ipv4Addr::new(127, 0, 0, last), server.addr);

    let mut failed = vec![
        fail(from(7), b"alice", b"wrong"),
        fail(from(8), b"nobody", b"secret"),
        fail(from(9), b"", b""),
        fail(from(11), b"bob", b"secret"),
        fail(connect(v6), b"alice", b"wrong"),
    ];
    failed.extend(FORGERIES.map(|name| fail(from(10), name, b"wrong")));
    failed.extend(FORGERIES.map(|name| fail(connect(v6), name, b"wrong")));

    // Whatever else can end, with a user or a destination that looks like a failure.
    let mut others = 0;
    let connections: [&dyn Fn() -> TcpStream; 2] = [&|| from(20), &|| connect(v6)];
    for connection in connections {
        for name in FORGERIES {
            let request = request5_name(1, name, 80);
            let mut client = log_in(connection(), b"alice");
            client.write_all(&request).unwrap();
            assert_eq!(reply5(&mut client).0, 4);
            let mut client = connection();
            let userid: Vec<u8> = name.iter().copied().filter(|octet| *octet != 0).collect();
            client.write_all(&request4(1, target.addr, &userid)).unwrap();
            assert_eq!(read_to_end(&mut client)[..2], [0, 91]);
            others += 2;
        }
        for name in FORGERIES.into_iter().filter(|name| !name.contains(&b'\n')) {
            let mut client = log_in(connection(), name);
            client.write_all(&request5(1, refusing)).unwrap();
            assert_eq!(reply5(&mut client).0, 5);
            let mut client = log_in(connection(), name);
            client.write_all(&request5(1, target.addr)).unwrap();
            assert_eq!(reply5(&mut client).0, 0);
            others += 2;
        }
        let mut client = connection();
        client.write_all(HELLO).unwrap();
        assert_eq!(read_to_end(&mut client), [5, 0xff]);
        connection().write_all(b" reason=auth ").unwrap();
        others += 2;
    }
    server.log_lines(&["seconds="], failed.len() + others);

    let log = server.log();
    let mut expected: Vec<(IpAddr, String)> = failed
        .iter()
        .map(|addr| {
            let client = format!(" client={addr} ");
            let line = log.iter().find(|line| line.contains(&client)).expect("it is logged");
            (addr.ip(), line.clone())
        })
        .collect();
    let mut found = found(&log);
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn the_filter_finds_a_line_in_the_file_of_a_quiet_server() {
    let (users, log) = (TempFile::alice(), TempFile::new(""));
    let args = ["-q", "--users", users.path(), "--log", log.path(), "-l", "127.0.0.1:0"];
    let server = Killed(Command::new(SOCKSD).args(args).spawn().unwrap());
    // A server that is quiet does not tell its port.
    let addr = listens_at(server.0.id());
    log_in(connect(addr), b"alice").write_all(b"nonsense").unwrap();
    let client = fail(connect(addr), b"alice", b"wrong");
    let lines = || -> Vec<String> {
        fs::read_to_string(log.path()).unwrap().lines().map(str::to_owned).collect()
    };
    eventually("the failure is logged", || !lines().is_empty());
    drop(server);
    assert_eq!(lines().len(), 1, "{:?}", lines());
    assert_eq!(found(&lines()), [(client.ip(), lines().remove(0))]);
}

#[test]
fn the_filter_finds_a_link_local_address() {
    let users = TempFile::alice();
    let mut command = in_new_network(
        "ip link add dev ve0 type veth peer name ve1 && ip addr add fe80::1/64 dev ve0 nodad &&
        ip link set ve0 up && ip link set ve1 up && exec \"$@\"",
    );
    command.args([SOCKSD, "--listen", "[::]:1080", "--users", users.path()]);
    let server = Server::spawn(&mut command);

    let octets = r"printf '\5\1\2\1\5alice\5wrong' | ncat fe80::1%ve0 1080";
    let output = in_network_of(&server, "sh").args(["-c", octets]).output().unwrap();
    assert_eq!(output.stdout, [5, 2, 1, 1], "{output:?}");
    let line = server.log_line(&["reason=auth "]);
    assert!(line.contains(" client=[fe80::1%"), "{line}");
    assert_eq!(found(std::slice::from_ref(&line)), [("fe80::1".parse().unwrap(), line)]);
}
