//! Tests in namespaces of their own: a network with nothing but loopback, where every port is free,
//! routes can be made, and `/etc/resolv.conf` names a server of the test on 127.0.0.1:53.

use std::any::type_name;
use std::env;
use std::fs;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{TempFile, eventually};

/// Whether this is the copy of a test inside the namespaces.
pub fn is_inside() -> bool {
    env::var(INSIDE).is_ok()
}

/// Tells the copy of a test inside the namespaces that it is there; its value is the test's name.
const INSIDE: &str = "SOCKSD_TEST_INSIDE";

/// Runs `body`, the whole of the test it is written in, in new namespaces for network and mounts:
/// runs this very test program once more in there, for this one test, and fails if that did not
/// pass.
pub fn isolated<F: FnOnce()>(body: F) {
    isolated_as(test_of::<F>(), body);
}

/// The name of the test that a closure is written in, which is part of the name of its type:
/// `program::module::test::{{closure}}`.
pub fn test_of<F>() -> &'static str {
    let (_, name) = type_name::<F>().split_once("::").unwrap();
    name.trim_end_matches("::{{closure}}")
}

/// The same as [`isolated`] for the test called `name`, to be called by a helper.
pub fn isolated_as(name: &str, body: impl FnOnce()) {
    if is_inside() {
        return body();
    }
    let resolv_conf = TempFile::new("nameserver 127.0.0.1\n");
    let setup = r#"set -e; ip link set lo up; mount --bind "$0" /etc/resolv.conf; exec "$@""#;
    let mut unshare = Command::new("unshare");
    // Whoever is not root becomes so in a namespace for users.
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        unshare.arg("--map-root-user");
    }
    let output = unshare
        .args(["--net", "--mount", "--", "sh", "-c", setup, resolv_conf.path()])
        .arg(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, name)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run unshare (util-linux): {error}"));
    let said = String::from_utf8_lossy(&output.stdout);
    // A wrong name would run no test at all, and so fail in none.
    assert!(
        output.status.success() && said.contains(" 1 passed; 0 failed; 0 ignored"),
        "in the namespaces:\n{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs ip(8) with the words of `args`.
pub fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status();
    let status = status.unwrap_or_else(|error| panic!("cannot run ip (iproute2): {error}"));
    assert!(status.success(), "ip {args}");
    if let Some(ip) = args.strip_prefix("addr add ").filter(|args| !args.starts_with("fe80:")) {
        let ip: IpAddr = ip.split_once('/').unwrap().0.parse().unwrap();
        await_address(|port| SocketAddr::new(ip, port));
    }
}

/// Waits until an address of this host can be reached: the kernel adds the route to an IPv6 address
/// some time after the address.
fn await_address(addr: impl Fn(u16) -> SocketAddr) {
    let reached = || {
        let socket = UdpSocket::bind(addr(0))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        socket.send_to(b"?", addr(socket.local_addr()?.port()))?;
        socket.recv(&mut [0])
    };
    eventually("the address can be reached", || reached().is_ok());
}

/// Makes a link, called `link0`, to another one in the same network that has no address. All its
/// addresses are to be added.
pub fn link_up() {
    ip("link add link0 type veth peer name link1");
    for link in ["link0", "link1"] {
        ip(&format!("link set {link} addrgenmode none"));
        ip(&format!("link set {link} up"));
    }
}

/// Makes a link with the link-local address `fe80::1`; returns what makes a port of it an address.
pub fn link_local() -> impl Fn(u16) -> SocketAddr {
    link_up();
    ip("addr add fe80::1/64 dev link0 nodad");
    // Address, index in hexadecimal, and four columns more.
    let table = fs::read_to_string("/proc/self/net/if_inet6").unwrap();
    let line = table.lines().find(|line| line.ends_with(" link0")).unwrap();
    let scope = u32::from_str_radix(line.split(' ').nth(1).unwrap(), 16).unwrap();
    let addr = move |port| SocketAddrV6::new("fe80::1".parse().unwrap(), port, 0, scope).into();
    await_address(addr);
    addr
}
