//! The built-in policy and its guard: what is denied is not connected to.

use std::net::{SocketAddr, UdpSocket};

use crate::common::*;

#[test]
fn v4_03_v5_18_v5_24_sec_01_to_sec_08_the_guard_is_on_by_default() {
    let server = Server::start(&[]);
    let (v4, v6) = (Target::echo_on("0.0.0.0"), Target::echo_on("::"));
    let mut requests: Vec<Vec<u8>> = Vec::new();
    for ip in [
        "127.0.0.1",
        "127.8.9.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.1.1",
        "0.0.0.0",
        "100.64.0.1",
    ] {
        requests.push(request5(1, SocketAddr::new(ip.parse().unwrap(), v4.addr.port())));
        requests.push(request5_name(1, ip.as_bytes(), v4.addr.port()));
    }
    for ip in
        ["::1", "::ffff:127.0.0.1", "fd00::1", "fe80::1", "::", "64:ff9b::7f00:1", "2002:7f00:1::"]
    {
        requests.push(request5(1, SocketAddr::new(ip.parse().unwrap(), v6.addr.port())));
        requests.push(request5_name(1, ip.as_bytes(), v6.addr.port()));
    }
    for name in ["localhost", "LOCALHOST.", "127.1", "0x7f000001", "2130706433", "0177.0.0.1"] {
        requests.push(request5_name(1, name.as_bytes(), v4.addr.port()));
    }
    for request in &requests {
        let mut client = server.sent(&[HELLO, request].concat());
        read(&mut client, 2);
        assert_eq!(reply5(&mut client).0, 2, "{request:02x?}");
    }
    let count = requests.len();
    server.log_lines(&["event=refuse", "reason=denied", "reply=02"], count);

    let mut client =
        server.sent(&request4(1, SocketAddr::from(([127, 0, 0, 1], v4.addr.port())), b""));
    assert_eq!(reply4(&mut client).0, 91);
    let mut client = server.sent(&request4a(1, 1, b"localhost", v4.addr.port(), b""));
    assert_eq!(reply4(&mut client).0, 91);
    v4.assert_untouched(&server);
    v6.assert_untouched(&server);
}

#[test]
fn sec_08_udp_26_the_guard_holds_for_datagrams() {
    let server = Server::start(&[]);
    let mut client = server.sent(&[HELLO, &request5(3, "0.0.0.0:0".parse().unwrap())].concat());
    read(&mut client, 2);
    let (rep, bnd) = reply5(&mut client);
    assert_eq!(rep, 0);
    let target = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = target.local_addr().unwrap().port();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for request in [
        request5(0, target.local_addr().unwrap()),
        request5_name(0, b"localhost", port),
        request5_name(0, b"127.1", port),
    ] {
        // A datagram's header is a request's without VER, with RSV and FRAG before its ATYP.
        let datagram = [&[0, 0, 0][..], &request[3..], b"ping"].concat();
        socket.send_to(&datagram, bnd).unwrap();
    }
    server.await_dropped(3);
    assert_no_datagram(&target);
    drop(client);
    let line = server.log_line(&["event=close", "command=udp"]);
    assert_eq!(field(&line, "dropped"), "3");
}

#[test]
fn v4_23_sec_08_the_guard_holds_for_bind() {
    let server = Server::start(&[]);
    // The expected peer is inside.
    let mut client = server.sent(&[HELLO, &request5(2, "127.0.0.1:0".parse().unwrap())].concat());
    read(&mut client, 2);
    assert_eq!(reply5(&mut client).0, 2);
    // Any peer is expected, and one from inside comes.
    let mut client = server.sent(&[HELLO, &request5(2, "0.0.0.0:0".parse().unwrap())].concat());
    read(&mut client, 2);
    let (rep, bnd) = reply5(&mut client);
    assert_eq!(rep, 0);
    let peer = connect(bnd);
    assert_eq!(reply5(&mut client), (2, peer.local_addr().unwrap()));
    assert_eq!(read_to_end(&mut client), b"");
}
