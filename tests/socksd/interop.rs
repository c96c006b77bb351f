//! Programs of others around the real binary. Several of them go round a proxy where the target is
//! on loopback, and say nothing: so every test takes the server's own log as its witness.

use std::fs;
use std::io::{self, BufRead as _, BufReader, PipeReader, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use crate::common::{SOCKSD, Server, Target, TempDir, TempFile, eventually, field};

/// Debian's own, which has Debian's modules; a `python3` found first on PATH may have none.
const PYTHON: &str = "/usr/bin/python3";

/// It insists on being called by its path.
const SSHD: &str = "/usr/sbin/sshd";

/// Where programs are looked for, and all the environment they get.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a client asks of a [`page`], over whatever it takes for a connection.
const REQUEST: &str = "GET / HTTP/1.0\r\n\r\n";

/// What it is given.
const PAGE: &str = "<p>This came through.</p>";

/// Options of a server that asks for no password.
const ANYBODY: &[&str] = &[];

/// Asserts that `program` is installed.
fn demand(program: &str) {
    let found = PATH.split(':').any(|dir| Path::new(dir).join(program).exists());
    assert!(found, "{program} is not installed: run tests/setup.sh");
}

/// A command under a time limit, in an environment that says nothing of proxies and with no home to
/// read settings from or to leave anything in.
fn tool(program: &str, args: &[&str]) -> Command {
    demand(program);
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60", program]).args(args);
    command.env_clear().env("PATH", PATH).env("HOME", "/dev/null").env("LC_ALL", "C");
    command
}

/// Runs a command to its end with `input` as its standard input.
fn outcome(mut command: Command, input: &str) -> Output {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    // It may have ended without reading any.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// Runs a command, which has to succeed, and returns what it printed.
fn run(command: Command, input: &str) -> String {
    let what = format!("{command:?}");
    let output = outcome(command, input);
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{what}: {}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

/// A target that speaks enough HTTP to serve one page.
fn page() -> Target {
    Target::on("127.0.0.1", |stream| {
        let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
        while lines.next().is_some_and(|line| !line.is_empty()) {}
        let head = "HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n";
        let _ = (&stream).write_all([head, PAGE].concat().as_bytes());
    })
}

/// A socket that answers each datagram with the same in capitals; returns its port.
fn shout() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, sender)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len].to_ascii_uppercase(), sender);
        }
    });
    port
}

/// Asserts that the server relayed a session both ways of which it says `told`; returns the line.
fn assert_relayed(server: &Server, told: &str) -> String {
    let line = server.log_line(&["event=close ", &format!(" {told} ")]);
    for direction in ["up", "down"] {
        assert_ne!(field(&line, direction), "0", "{line}");
    }
    line
}

/// Asserts that a client gets a page through a server with the options `args`, which then says of
/// it `told` and the port. The client is made from the ports of the server and of the page.
fn fetches(args: &[&str], told: &str, client: impl FnOnce(u16, u16) -> Command) {
    let (server, page) = (Server::open(args), page());
    let port = page.addr.port();
    let got = run(client(server.addr.port(), port), REQUEST);
    assert!(got.contains(PAGE), "{got}");
    assert_relayed(&server, &format!("{told}:{port}"));
    page.assert_accepted(1);
}

/// Asserts that a client fails at a server that demands a password, which says `told`, and that it
/// does not reach the page.
fn fails(told: &[&str], client: impl FnOnce(u16, u16) -> Command) {
    let users = TempFile::alice();
    let (server, page) = (Server::open(&["--users", users.path()]), page());
    let output = outcome(client(server.addr.port(), page.addr.port()), REQUEST);
    assert!(!output.status.success(), "{output:?}");
    server.log_line(&[&["event=refuse "], told].concat());
    assert!(!String::from_utf8_lossy(&output.stdout).contains(PAGE), "{output:?}");
    page.assert_untouched(&server);
}

/// A process that is there until it is dropped.
struct Daemon {
    child: Child,
    /// What it prints; the pipe has room for all that comes after `line`.
    output: BufReader<PipeReader>,
    /// The line that told that it is ready.
    line: String,
}

impl Daemon {
    /// Starts a process and waits until it prints a line that begins with `ready`.
    fn start(mut command: Command, ready: &str) -> Self {
        let (output, input) = io::pipe().unwrap();
        command.stdin(Stdio::null()).stdout(input.try_clone().unwrap()).stderr(input);
        let child = command.spawn().unwrap();
        // It holds the other end too, and the output ends with its last holder.
        drop(command);
        let mut daemon = Self { child, output: BufReader::new(output), line: String::new() };
        let mut printed = String::new();
        while !daemon.line.starts_with(ready) {
            daemon.line.clear();
            let len = daemon.output.read_line(&mut daemon.line).unwrap();
            assert_ne!(len, 0, "it ended without {ready:?}:\n{printed}");
            printed += &daemon.line;
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A signal that timeout(1) can pass on.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// A server on port 1080 in a network of its own, which is nothing but loopback: nobody can be
/// reached from there, every port is free, and no packets are there but its own.
fn secluded() -> Server {
    for program in ["unshare", "ip"] {
        demand(program);
    }
    let script = "ip link set lo up && exec \"$@\"";
    let server = [SOCKSD, "--rule=allow to all", "--listen", "127.0.0.1:1080"];
    Server::spawn(Command::new("unshare").args(["-r", "-n", "sh", "-c", script, "sh"]).args(server))
}

/// The arguments with which nsenter(1) runs a command in the network of `server`.
fn joining(server: &Server) -> [String; 5] {
    demand("nsenter");
    ["-t", &server.pid().to_string(), "-U", "-n", "--preserve-credentials"].map(String::from)
}

/// A command in the network of `server`.
fn beside(server: &Server, program: &str, args: &[&str]) -> Command {
    demand(program);
    let mut command = tool("nsenter", &[]);
    command.args(joining(server)).arg(program).args(args);
    command
}

/// Serves a page on port 8000 in the network of `server`.
fn page_beside(server: &Server, dir: &TempDir) -> Daemon {
    fs::write(dir.path("index.html"), PAGE).unwrap();
    let args = ["-u", "-m", "http.server", "--bind", "127.0.0.1", "-d", &dir.path(""), "8000"];
    Daemon::start(beside(server, PYTHON, &args), "Serving HTTP")
}

#[test]
fn curl_fetches_through_all_four_socks_modes() {
    for (option, host, told) in [
        ("--socks4", "127.0.0.1", "version=4 command=connect dst=127.0.0.1"),
        ("--socks4a", "localhost", "version=4a command=connect dst=localhost"),
        ("--socks5", "127.0.0.1", "version=5 command=connect dst=127.0.0.1"),
        ("--socks5-hostname", "localhost", "version=5 command=connect dst=localhost"),
    ] {
        fetches(ANYBODY, told, |proxy, page| curl(option, proxy, &format!("{host}:{page}")));
    }
}

fn curl(option: &str, proxy: u16, target: &str) -> Command {
    let (proxy, url) = (format!("127.0.0.1:{proxy}"), format!("http://{target}/"));
    tool("curl", &["-sS", option, &proxy, &url])
}

#[test]
fn curl_gives_the_password_that_is_demanded() {
    let users = TempFile::alice();
    for (option, host) in [("--socks5", "127.0.0.1"), ("--socks5-hostname", "localhost")] {
        let told = format!("user=alice version=5 command=connect dst={host}");
        fetches(&["--users", users.path()], &told, |proxy, page| {
            let mut curl = curl(option, proxy, &format!("{host}:{page}"));
            curl.args(["--proxy-user", "alice:secret"]);
            curl
        });
    }
}

#[test]
fn curl_reaches_nothing_without_the_password() {
    let target = |page| format!("127.0.0.1:{page}");
    fails(&["user=alice version=5 ", "reason=auth "], |proxy, page| {
        let mut curl = curl("--socks5", proxy, &target(page));
        curl.args(["--proxy-user", "alice:wrong"]);
        curl
    });
    fails(&["version=5 ", "reason=method "], |proxy, page| curl("--socks5", proxy, &target(page)));
    // SOCKS 4 has no password to give, whatever curl is told.
    for (option, told) in [
        ("--socks4", "user=alice version=4 command=connect "),
        ("--socks4a", "user=alice version=4a command=connect "),
    ] {
        fails(&[told, "reply=5b ", "reason=denied "], |proxy, page| {
            let mut curl = curl(option, proxy, &target(page));
            curl.args(["--proxy-user", "alice:secret"]);
            curl
        });
    }
}

#[test]
fn netcat_of_openbsd_connects_with_4_and_5() {
    for (version, host, told) in [
        ("4", "127.0.0.1", "version=4 command=connect dst=127.0.0.1"),
        ("5", "127.0.0.1", "version=5 command=connect dst=127.0.0.1"),
        ("5", "localhost", "version=5 command=connect dst=localhost"),
    ] {
        fetches(ANYBODY, told, |proxy, page| {
            let (proxy, page) = (format!("127.0.0.1:{proxy}"), page.to_string());
            tool("nc.openbsd", &["-N", "-X", version, "-x", &proxy, host, &page])
        });
    }
}

#[test]
fn ncat_connects_with_4_4a_and_5_and_a_password() {
    let users = TempFile::alice();
    let demanding = ["--users", users.path()];
    for (args, options, host, told) in [
        (
            ANYBODY,
            &["socks4", "--proxy-auth", "bob"][..],
            "127.0.0.1",
            "user=bob version=4 command=connect dst=127.0.0.1",
        ),
        (
            ANYBODY,
            &["socks4", "--proxy-dns", "remote"],
            "localhost",
            "version=4a command=connect dst=localhost",
        ),
        (ANYBODY, &["socks5"], "127.0.0.1", "version=5 command=connect dst=127.0.0.1"),
        (
            &demanding,
            &["socks5", "--proxy-auth", "alice:secret", "--proxy-dns", "remote"],
            "localhost",
            "user=alice version=5 command=connect dst=localhost",
        ),
    ] {
        fetches(args, told, |proxy, page| {
            let (proxy, page) = (format!("127.0.0.1:{proxy}"), page.to_string());
            let mut ncat = tool("ncat", &["--proxy", &proxy, "--proxy-type"]);
            ncat.args(options).args([host, &page]);
            ncat
        });
    }
}

#[test]
fn proxychains_carries_a_program_that_knows_no_socks() {
    let users = TempFile::alice();
    let demanding = ["--users", users.path()];
    for (args, kind, login, told) in [
        (ANYBODY, "socks4", "bob", "user=bob version=4a command=connect dst=LOCALHOST"),
        (ANYBODY, "socks5", "", "version=5 command=connect dst=LOCALHOST"),
        (
            &demanding,
            "socks5",
            "alice secret",
            "user=alice version=5 command=connect dst=LOCALHOST",
        ),
    ] {
        let dir = TempDir::new();
        let conf = dir.path("proxychains.conf");
        fetches(args, told, |proxy, page| {
            let list =
                format!("strict_chain\nproxy_dns\n[ProxyList]\n{kind} 127.0.0.1 {proxy} {login}\n");
            fs::write(&conf, list).unwrap();
            // It looks a name up in /etc/hosts, letter by letter, before it leaves it to the
            // server.
            let args = ["-q", "-f", &conf, "nc.openbsd", "-N", "LOCALHOST", &page.to_string()];
            tool("proxychains4", &args)
        });
    }
}

#[test]
fn ssh_logs_in_through_a_proxy_command() {
    demand("nc.openbsd");
    demand(SSHD);
    // One key serves the host and its one user. sshd insists on a directory to hide in.
    let dir = TempDir::new();
    let (key, conf) = (dir.path("key"), dir.path("sshd_config"));
    run(tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key]), "");
    let settings = format!(
        "HostKey {key}\nAuthorizedKeysFile {key}.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
    );
    fs::write(&conf, settings).unwrap();
    let _ = fs::create_dir_all("/run/sshd");
    let sshd = Target::on("127.0.0.1", move |stream: TcpStream| {
        let stream = OwnedFd::from(stream);
        let mut sshd = tool(SSHD, &["-i", "-e", "-f", &conf]);
        sshd.stdin(stream.try_clone().unwrap()).stdout(stream).stderr(Stdio::null());
        let _ = sshd.status();
    });

    for version in ["4", "5"] {
        let server = Server::open(&[]);
        let port = sshd.addr.port();
        let proxy = format!("ProxyCommand=nc.openbsd -X {version} -x {} %h %p", server.addr);
        let known = format!("UserKnownHostsFile={}", dir.path("known_hosts"));
        let options = [&proxy, &known, "StrictHostKeyChecking=accept-new", "BatchMode=yes"];
        let mut ssh = tool("ssh", &["-F", "none", "-i", &key, "-p", &port.to_string()]);
        ssh.args(options.iter().flat_map(|option| ["-o", option]));
        ssh.args(["127.0.0.1", "echo $((6 * 7))"]);
        assert_eq!(run(ssh, ""), "42\n");
        let told = format!("version={version} command=connect dst=127.0.0.1:{port}");
        assert_relayed(&server, &told);
    }
}

/// Arguments: port of the proxy, port of the page, kind, host, user and password if any.
const PYSOCKS: &str = "
import socks, sys
proxy, page, kind, host, *login = sys.argv[1:]
version = socks.SOCKS4 if kind[0] == '4' else socks.SOCKS5
s = socks.socksocket()
s.set_proxy(version, '127.0.0.1', int(proxy), kind in ('4a', '5h'), *login)
s.connect((host, int(page)))
s.sendall(sys.stdin.buffer.read())
print(s.makefile().read())
";

/// The same arguments.
const PYTHON_SOCKS: &str = "
import sys
from python_socks import ProxyType
from python_socks.sync import Proxy
proxy, page, kind, host, *login = sys.argv[1:]
version = ProxyType.SOCKS4 if kind[0] == '4' else ProxyType.SOCKS5
chosen = Proxy.create(version, '127.0.0.1', int(proxy), *login, rdns=kind in ('4a', '5h'))
s = chosen.connect(host, int(page), timeout=30)
s.sendall(sys.stdin.buffer.read())
print(s.makefile().read())
";

#[test]
fn both_python_modules_connect_with_4_4a_and_5_and_a_password() {
    let users = TempFile::alice();
    let demanding = ["--users", users.path()];
    for script in [PYSOCKS, PYTHON_SOCKS] {
        for (args, kind, host, login, told) in [
            (ANYBODY, "4", "127.0.0.1", &[][..], "version=4 command=connect dst=127.0.0.1"),
            (ANYBODY, "4a", "localhost", &[], "version=4a command=connect dst=localhost"),
            (ANYBODY, "5", "127.0.0.1", &[], "version=5 command=connect dst=127.0.0.1"),
            (
                &demanding,
                "5h",
                "localhost",
                &["alice", "secret"],
                "user=alice version=5 command=connect dst=localhost",
            ),
        ] {
            fetches(args, told, |proxy, page| {
                let ports = [proxy.to_string(), page.to_string()];
                let mut python = tool(PYTHON, &["-c", script]);
                python.args(ports).args([kind, host]).args(login);
                python
            });
        }
    }
}

const PYSOCKS_UDP: &str = "
import socket, socks, sys
proxy, port = map(int, sys.argv[1:])
s = socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(30)
s.set_proxy(socks.SOCKS5, '127.0.0.1', proxy)
for host in '127.0.0.1', 'localhost':
    s.sendto(b'hello ' + host.encode(), (host, port))
    print(s.recvfrom(99))
";

#[test]
fn pysocks_exchanges_datagrams() {
    let (server, port) = (Server::open(&[]), shout());
    let proxy = server.addr.port();
    let args = ["-c", PYSOCKS_UDP, &proxy.to_string(), &port.to_string()];
    let got = run(tool(PYTHON, &args), "");
    let sender = format!("('127.0.0.1', {port})");
    assert_eq!(got, format!("(b'HELLO 127.0.0.1', {sender})\n(b'HELLO LOCALHOST', {sender})\n"));
    let line = assert_relayed(&server, "version=5 command=udp");
    assert_eq!(field(&line, "dropped"), "0");
}

#[test]
fn socat_connects_with_4_and_4a() {
    for (kind, host, told) in [
        ("SOCKS4", "127.0.0.1", "user=bob version=4 command=connect dst=127.0.0.1"),
        ("SOCKS4A", "localhost", "user=bob version=4a command=connect dst=localhost"),
    ] {
        fetches(ANYBODY, told, |proxy, page| {
            let address = format!("{kind}:127.0.0.1:{host}:{page},socksport={proxy},socksuser=bob");
            // -t: how long it waits for the answer once its input is at its end.
            tool("socat", &["-t", "30", "-", &address])
        });
    }
}

const JAVA: &str = r#"
import java.net.*;
public class Fetch {
    public static void main(String[] args) throws Exception {
        Authenticator.setDefault(new Authenticator() {
            protected PasswordAuthentication getPasswordAuthentication() {
                return new PasswordAuthentication("alice", "secret".toCharArray());
            }
        });
        var host = args[0];
        int port = Integer.parseInt(args[1]);
        var socket = new Socket();
        socket.connect(System.getProperty("socksProxyVersion").equals("4")
            ? new InetSocketAddress(host, port)
            : InetSocketAddress.createUnresolved(host, port));
        System.in.transferTo(socket.getOutputStream());
        socket.getInputStream().transferTo(System.out);
    }
}
"#;

#[test]
fn java_connects_with_4_and_5_and_a_password() {
    let users = TempFile::alice();
    let demanding = ["--users", users.path()];
    let source = TempFile::new(JAVA);
    for (args, version, host, told) in [
        (ANYBODY, "4", "127.0.0.1", "user=carol version=4 command=connect dst=127.0.0.1"),
        (ANYBODY, "5", "localhost", "user=- version=5 command=connect dst=localhost"),
        (&demanding, "5", "localhost", "user=alice version=5 command=connect dst=localhost"),
    ] {
        fetches(args, told, |proxy, page| {
            let settings = [
                "-DsocksProxyHost=127.0.0.1",
                &format!("-DsocksProxyPort={proxy}"),
                &format!("-DsocksProxyVersion={version}"),
                // Loopback would be an exception.
                "-DsocksNonProxyHosts=",
                "-Duser.name=carol",
            ];
            let mut java = tool("java", &settings);
            java.args(["--source", "17", source.path(), host, &page.to_string()]);
            java
        });
    }
}

/// Arguments: port of the proxy, port of the page, version, host, user and password if any.
const PERL: &str = r#"
use strict;
use IO::Socket::Socks;
my ($proxy, $page, $version, $host, $user, $password) = @ARGV;
my $s = IO::Socket::Socks->new(
    ProxyAddr => '127.0.0.1', ProxyPort => $proxy, SocksVersion => $version, SocksResolve => 1,
    ConnectAddr => $host, ConnectPort => $page, Username => $user, Password => $password,
    AuthType => $password ? 'userpass' : 'none',
) or die $SOCKS_ERROR;
print $s <STDIN>;
print <$s>;
"#;

#[test]
fn perl_connects_with_4a_and_5_and_a_password() {
    let users = TempFile::alice();
    let demanding = ["--users", users.path()];
    for (args, version, host, login, told) in [
        (
            ANYBODY,
            "4",
            "localhost",
            &["bob"][..],
            "user=bob version=4a command=connect dst=localhost",
        ),
        (ANYBODY, "5", "127.0.0.1", &[], "version=5 command=connect dst=127.0.0.1"),
        (
            &demanding,
            "5",
            "localhost",
            &["alice", "secret"],
            "user=alice version=5 command=connect dst=localhost",
        ),
    ] {
        fetches(args, told, |proxy, page| {
            let ports = [proxy.to_string(), page.to_string()];
            let mut perl = tool("perl", &["-e", PERL]);
            perl.args(ports).args([version, host]).args(login);
            perl
        });
    }
}

/// Waits as a server of FTP would, and is the peer it waits for too.
const PERL_BIND: &str = r#"
use strict;
use IO::Socket::INET;
use IO::Socket::Socks;
my ($proxy) = @ARGV;
my $s = IO::Socket::Socks->new(
    ProxyAddr => '127.0.0.1', ProxyPort => $proxy, SocksVersion => 5,
    BindAddr => '127.0.0.1', BindPort => 21,
) or die $SOCKS_ERROR;
my ($host, $port) = $s->dst;
my $peer = IO::Socket::INET->new(PeerAddr => $host, PeerPort => $port) or die $@;
print $peer "from the peer\n";
$s->accept or die $SOCKS_ERROR;
my ($from, $from_port) = $s->dst;
die "$from:$from_port" unless $from eq $peer->sockhost && $from_port == $peer->sockport;
print scalar <$s>;
print $s "from the client\n";
print scalar <$peer>;
"#;

#[test]
fn perl_waits_for_a_peer_with_bind() {
    let server = Server::open(&[]);
    let got = run(tool("perl", &["-e", PERL_BIND, &server.addr.port().to_string()]), "");
    assert_eq!(got, "from the peer\nfrom the client\n");
    assert_relayed(&server, "version=5 command=bind dst=127.0.0.1:21");
}

const PERL_UDP: &str = r#"
use strict;
use IO::Socket::Socks;
use Socket;
my ($proxy, $port) = @ARGV;
my $s = IO::Socket::Socks->new(
    ProxyAddr => '127.0.0.1', ProxyPort => $proxy, UdpAddr => '0.0.0.0', UdpPort => 0,
) or die $SOCKS_ERROR;
$s->send('hello', 0, pack_sockaddr_in($port, inet_aton('127.0.0.1'))) or die $!;
$s->recv(my $data, 99) or die $!;
print $data;
"#;

#[test]
fn perl_exchanges_datagrams() {
    let (server, port) = (Server::open(&[]), shout());
    let (proxy, port) = (server.addr.port().to_string(), port.to_string());
    assert_eq!(run(tool("perl", &["-e", PERL_UDP, &proxy, &port]), ""), "HELLO");
    assert_relayed(&server, "version=5 command=udp");
}

/// The file that tells dante's socksify to speak `version` to `server`.
fn route(server: &Server, version: &str) -> TempFile {
    let (protocols, commands) = match version {
        "4" => ("tcp", "connect bind"),
        _ => ("tcp udp", "connect bind udpassociate"),
    };
    TempFile::new(&format!(
        "resolveprotocol: fake\n\
         route {{\n\
         from: 0.0.0.0/0 to: 0.0.0.0/0 via: 127.0.0.1 port = {}\n\
         proxyprotocol: socks_v{version}\n\
         protocol: {protocols}\n\
         command: {commands}\n\
         method: none\n\
         }}\n",
        server.addr.port()
    ))
}

/// A program for which socksify speaks SOCKS.
fn socksify(route: &TempFile, args: &[&str]) -> Command {
    let mut command = tool("socksify", args);
    // By itself it goes straight to whatever is on a network of this host.
    command.env("SOCKS_CONF", route.path()).env("SOCKS_AUTOADD_LANROUTES", "no");
    command
}

/// Serves a directory to the user ftp with the password ftp; prints its port.
const FTPD: &str = "
import sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer
authorizer = DummyAuthorizer()
authorizer.add_user('ftp', 'ftp', sys.argv[1])
FTPHandler.authorizer = authorizer
server = FTPServer(('127.0.0.1', 0), FTPHandler)
print('port', server.address[1], flush=True)
server.serve_forever()
";

#[test]
fn active_ftp_gets_its_data_connections_through_bind() {
    demand("curl");
    demand("tnftp");
    let dir = TempDir::new();
    fs::write(dir.path("page"), PAGE).unwrap();
    let ftpd = Daemon::start(tool(PYTHON, &["-c", FTPD, &dir.path("")]), "port ");
    let port = ftpd.line.trim_start_matches("port ").trim_end();
    let url = format!("ftp://ftp:ftp@127.0.0.1:{port}/page");
    let orders = format!(
        "open 127.0.0.1 {port}\nuser ftp ftp\npassive off\nepsv4 off\nnlist\nget page -\nquit\n"
    );
    for version in ["4", "5"] {
        for (program, input, binds) in [
            (&["curl", "-sS", "-P", "127.0.0.1", "--disable-eprt", &url][..], "", 1),
            (&["tnftp", "-n", "-A", "-v"], &orders, 2),
        ] {
            let server = Server::open(&[]);
            let got = run(socksify(&route(&server, version), program), input);
            assert!(got.contains(PAGE), "{got}");
            let connect = format!("version={version} command=connect dst=127.0.0.1:{port}");
            assert_relayed(&server, &connect);
            let bind = format!(" version={version} command=bind dst=127.0.0.1:");
            for line in server.log_lines(&["event=close ", &bind], binds) {
                // The data comes from the server of FTP.
                assert!(field(&line, "addr").starts_with("127.0.0.1:"), "{line}");
                assert_ne!(field(&line, "down"), "0", "{line}");
            }
        }
    }
}

const PLAIN_UDP: &str = "
import socket, sys
port = int(sys.argv[1])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(30)
s.sendto(b'unconnected', ('127.0.0.1', port))
print(s.recvfrom(99))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(30)
s.connect(('127.0.0.1', port))
s.send(b'connected')
print(s.recv(99))
";

#[test]
fn socksify_carries_datagrams_of_programs_that_know_no_socks() {
    demand("nc.openbsd");
    let port = shout();

    let server = Server::open(&[]);
    let python = [PYTHON, "-c", PLAIN_UDP, &port.to_string()];
    let got = run(socksify(&route(&server, "5"), &python), "");
    assert_eq!(got, format!("(b'UNCONNECTED', ('127.0.0.1', {port}))\nb'CONNECTED'\n"));
    server.log_lines(&["event=close ", "version=5 command=udp ", " dropped=0 "], 2);

    let server = Server::open(&[]);
    let nc = ["nc.openbsd", "-u", "-w", "2", "127.0.0.1", &port.to_string()];
    assert_eq!(run(socksify(&route(&server, "5"), &nc), "hello\n"), "HELLO\n");
    assert_relayed(&server, "version=5 command=udp");
}

#[test]
fn chromium_loads_a_page_with_4_and_5() {
    let dir = TempDir::new();
    for (scheme, told) in [
        ("socks4", "version=4 command=connect dst=127.0.0.1:8000"),
        ("socks5", "version=5 command=connect dst=localhost:8000"),
    ] {
        let server = secluded();
        let _page = page_beside(&server, &dir);
        let profile = format!("--user-data-dir={}", dir.path(scheme));
        let proxy = format!("--proxy-server={scheme}://{}", server.addr);
        let mut chromium = beside(
            &server,
            "chromium",
            &[
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-quic",
                "--no-first-run",
                // Loopback would be an exception.
                "--proxy-bypass-list=<-loopback>",
                &profile,
                &proxy,
                "--dump-dom",
                "http://localhost:8000/",
            ],
        );
        // It leaves more than its profile.
        chromium.env("HOME", &dir.0);
        let got = run(chromium, "");
        assert!(got.contains(PAGE), "{got}");
        assert_relayed(&server, told);
    }
}

/// BIND with both versions, and a peer for each.
const BINDS: &str = r"
import socket
def connect(port):
    return socket.create_connection(('127.0.0.1', port))
with connect(1080) as s:
    s.sendall(b'\4\2\0\25\x7f\0\0\1\0')
    with connect(int.from_bytes(s.recv(8)[2:4], 'big')):
        s.recv(8)
with connect(1080) as s:
    s.sendall(b'\5\1\0')
    s.recv(2)
    s.sendall(b'\5\2\0\1\x7f\0\0\1\0\25')
    with connect(int.from_bytes(s.recv(10)[8:], 'big')):
        s.recv(10)
";

#[test]
fn wireshark_understands_every_reply() {
    demand("tshark");
    let (dir, users) = (TempDir::new(), TempFile::alice());
    let server = secluded();
    let demanding =
        [SOCKSD, "--rule=allow user any to all", "--listen", "127.0.0.1:1081", "--users"];
    let demanding = Server::spawn(
        Command::new("nsenter").args(joining(&server)).args(demanding).arg(users.path()),
    );
    let _page = page_beside(&server, &dir);
    let capture = dir.path("capture");
    let dumpcap = beside(&server, "dumpcap", &["-q", "-i", "lo", "-w", &capture]);
    let dumpcap = Daemon::start(dumpcap, "File: ");

    let curl = |args: &[&str]| {
        outcome(beside(&server, "curl", &[&["-sS"], args].concat()), "");
    };
    curl(&["--socks4", "127.0.0.1", "http://127.0.0.1:8000/"]);
    curl(&["--socks4a", "127.0.0.1", "http://localhost:8000/"]);
    curl(&["--socks4", "127.0.0.1", "http://127.0.0.1:8001/"]);
    curl(&["--socks5", "127.0.0.1", "http://127.0.0.1:8000/"]);
    curl(&["--socks5-hostname", "127.0.0.1", "http://localhost:8000/"]);
    curl(&["--socks5", "127.0.0.1", "http://127.0.0.1:8001/"]);
    run(beside(&server, PYTHON, &["-c", BINDS]), "");
    curl(&["-x", "socks5://alice:secret@127.0.0.1:1081", "http://127.0.0.1:8000/"]);
    curl(&["-x", "socks5://alice:wrong@127.0.0.1:1081", "http://127.0.0.1:8000/"]);
    curl(&["-x", "socks5://127.0.0.1:1081", "http://127.0.0.1:8000/"]);
    // Packets are captured one after the other.
    curl(&["http://127.0.0.1:8000/?last"]);
    eventually("all is captured", || {
        fs::read(&capture).unwrap().windows(5).any(|octets| octets == b"?last")
    });
    drop(dumpcap);

    let tshark = |filter| {
        let args = ["-r", &capture, "-d", "tcp.port==1081,socks", "-O", "socks", "-Y", filter];
        let mut tshark = tool("tshark", &args);
        // Whose settings may be missing, but not unreadable.
        tshark.env("HOME", &dir.0);
        run(tshark, "")
    };
    assert_eq!(tshark("_ws.malformed"), "");
    // What the server says of its sessions, which come one after the other.
    let told = |server: &Server, session: u32, key: &str| {
        let line = server.log_line(&[&format!(" session={session} "), " reply="]);
        field(&line, key).to_owned()
    };
    let method = |method: &str| format!("Version: 5, Accepted Auth Method: {method}");
    let anybody = || method("0x0 (No authentication)");
    let login = |status: &str| format!("Subnegotiation Version: 1, Status: {status}");
    let reply4 = |results: &str, bnd: &str| {
        let (ip, port) = bnd.split_once(':').unwrap();
        format!("Version: 0, Results(V4): {results}, Remote Port: {port}, Remote Address: {ip}")
    };
    let reply5 = |results: &str, bnd: &str| {
        let (ip, port) = bnd.split_once(':').unwrap();
        format!(
            "Version: 5, Results(V5): {results}, Reserved: 0, Address Type: IPv4 (1), \
             Remote Address: {ip}, Port: {port}"
        )
    };
    let expected = [
        reply4("Granted (90)", &told(&server, 1, "local")),
        reply4("Granted (90)", &told(&server, 2, "local")),
        reply4("Rejected or Failed (91)", "0.0.0.0:0"),
        anybody(),
        reply5("Succeeded (0)", &told(&server, 4, "local")),
        anybody(),
        reply5("Succeeded (0)", &told(&server, 5, "local")),
        anybody(),
        reply5("Connection refused (5)", "0.0.0.0:0"),
        // It takes the second reply of version 4 for payload.
        reply4("Granted (90)", &told(&server, 7, "local")),
        anybody(),
        reply5("Succeeded (0)", &told(&server, 8, "local")),
        reply5("Succeeded (0)", &told(&server, 8, "addr")).replace("Port:", "Remote Host Port:"),
        method("0x2 (Username/Password)"),
        login("0 (success)"),
        reply5("Succeeded (0)", &told(&demanding, 1, "local")),
        method("0x2 (Username/Password)"),
        login("1 (failure)"),
        method("0xff (no acceptable method)"),
    ];
    let decoded = messages(&tshark("socks && tcp.srcport in {1080, 1081}"));
    assert_eq!(decoded, expected, "{decoded:#?}");
}

/// The messages of SOCKS in what `tshark -O socks` prints, each in a line, without what it has
/// only deduced.
fn messages(text: &str) -> Vec<String> {
    let message = |tree: &str| {
        let lines = tree.lines().take_while(|line| line.starts_with(' ')).map(str::trim);
        let lines = lines.filter(|line| !line.starts_with('[') && !line.starts_with("TCP "));
        lines.collect::<Vec<_>>().join(", ")
    };
    let trees = text.split("Socks Protocol\n").skip(1);
    trees.map(message).filter(|message| !message.is_empty()).collect()
}
