//! socksd under the real programs that accept clients for others: inetd and its like, tcpserver,
//! socat, stunnel, s6 and systemd. Each runs in a network of its own, most by the file in
//! man/examples, in which nothing but paths and users is changed. The server's log is the witness:
//! some clients go round a proxy where the target is on loopback, and say nothing.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::netns::{is_inside, isolated};
use crate::common::{
    HELLO, SOCKSD, SOON, Target, assert_ends_silently, connect_from, copy_program, demand_root,
    eventually, field, is_real_root, read, read_to_end, reply5, request5, root,
};
use crate::install::Static;

/// Where programs are looked for, and all the environment they get.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the examples listen. Every test has a network of its own.
const TCP: &str = "127.0.0.1:1080";

/// What the rules of every test deny.
const DENIED: u16 = 9;

/// An address of loopback that no client has by itself.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 7);

/// Asserts that `program` is installed; returns its path.
fn demand(program: &str) -> String {
    let unpacked = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("wrappers");
    let mut found = match program.split_once('/') {
        // Of a package that is only unpacked.
        Some((package, name)) => vec![unpacked.join(package).join("usr/sbin").join(name)],
        None => PATH.split(':').map(|dir| Path::new(dir).join(program)).collect(),
    };
    found.retain(|path| path.exists());
    let path = found.first();
    let path = path.unwrap_or_else(|| panic!("{program} is not installed: run tests/setup.sh"));
    path.to_str().unwrap().to_owned()
}

/// The place of one test: a directory with the server, its rules and its log.
struct Stage(PathBuf);

impl Stage {
    /// Everybody is allowed everything but [`DENIED`].
    fn new() -> Self {
        Self::with_rules(&format!("deny port {DENIED}\nallow to all\n"))
    }

    fn with_rules(rules: &str) -> Self {
        Self::at(&std::env::temp_dir(), rules)
    }

    fn at(directory: &Path, rules: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let name = format!("socksd-wrappers-{}-{count}", std::process::id());
        let stage = Self(directory.join(name));
        // Wrappers change the user, who has to get at everything here.
        fs::create_dir(&stage.0).unwrap();
        fs::set_permissions(&stage.0, fs::Permissions::from_mode(0o777)).unwrap();
        copy_program(SOCKSD, stage.0.join("socksd"));
        stage.write("rules", rules, 0o644);
        stage.write("log", "", 0o666);
        stage
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// The words that run the server as its examples do, with `args` added.
    fn socksd(&self, args: &[&str]) -> Vec<String> {
        let own = ["socksd", "--rules", "rules", "--log", "log"];
        let path =
            |word: &&str| if word.starts_with('-') { (*word).into() } else { self.path(word) };
        own[..1]
            .iter()
            .map(path)
            .chain(args.iter().map(|arg| (*arg).into()))
            .chain(own[1..].iter().map(path))
            .collect()
    }

    /// An example with this test's paths, and with `args` added behind `--inetd`; returns its path.
    fn example(&self, name: &str, args: &str) -> String {
        self.example_with(name, args, &[])
    }

    /// The same with each first text replaced by its second, which has to be there.
    fn example_with(&self, name: &str, args: &str, changes: &[(&str, &str)]) -> String {
        let mut text = fs::read_to_string(root().join("man/examples").join(name)).unwrap();
        for (old, new) in changes {
            assert!(text.contains(old), "{name} has no {old}");
            text = text.replace(old, new);
        }
        // A log that goes to the service's logger is made to come here.
        let log = if text.contains("--log ") { "" } else { " --log /var/log/socksd.log" };
        let user = if is_real_root() { "nobody" } else { "root" };
        for (old, new) in [
            ("--inetd", format!("--inetd{log} {args}").as_str()),
            ("/usr/local/sbin/socksd", &self.path("socksd")),
            ("/etc/socksd/", &self.path("")),
            ("/var/log/socksd.log", &self.path("log")),
            ("/run/socksd/socket", &self.path("socket")),
            (" socksd /", &format!(" {user} /")),
            ("= socksd\n", &format!("= {user}\n")),
            ("s6-setuidgid socksd ", if user == "root" { "" } else { "s6-setuidgid nobody " }),
            (" -u 65534 -g 65534", if user == "root" { "" } else { " -u 65534 -g 65534" }),
        ] {
            text = text.replace(old, new);
        }
        self.write(name, &text, if name.ends_with(".run") { 0o755 } else { 0o644 })
    }

    /// The lines of the log that hold all of `needles`.
    fn log(&self, needles: &[&str]) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap();
        let holds = |line: &&str| needles.iter().all(|needle| line.contains(needle));
        log.lines().filter(holds).map(str::to_owned).collect()
    }

    /// Waits for the first such line.
    fn logged(&self, needles: &[&str]) -> String {
        eventually(&format!("the log has {needles:?}"), || !self.log(needles).is_empty());
        self.log(needles).remove(0)
    }

    /// The processes of the server.
    fn servers(&self) -> Vec<u32> {
        let exe = self.0.join("socksd");
        let pids = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|is| is == exe))
            .collect()
    }

    /// The one process of the server.
    fn server(&self) -> u32 {
        eventually("one server runs", || self.servers().len() == 1);
        self.servers()[0]
    }

    /// Starts a wrapper that listens at `at`, and waits until it does.
    fn start(&self, at: &str, words: &[&str]) -> Wrapper<'_> {
        let wrapper = self.launch(at, words);
        eventually("the wrapper listens", || is_listened_on(at));
        wrapper
    }

    fn launch(&self, at: &str, words: &[&str]) -> Wrapper<'_> {
        let program = if words[0].starts_with('/') { words[0].into() } else { demand(words[0]) };
        let output = File::options().append(true).create(true).open(self.path("stderr")).unwrap();
        // All processes of the namespace end with the first, whatever sessions they have made. The
        // wrapper is not that one, which would ignore most signals.
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "sh", "-c", r#""$@"; exec sleep 600"#]);
        command.args(["sh", &program]).args(&words[1..]).current_dir("/");
        command.env_clear().env("PATH", PATH);
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Wrapper { stage: self, at: at.into(), first: command.spawn().unwrap() }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if thread::panicking() {
            for name in ["log", "stderr"] {
                let text = fs::read_to_string(self.path(name)).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(40).collect();
                println!("the end of {name}:");
                tail.iter().rev().for_each(|line| println!("{line}"));
            }
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether somebody listens at an address of this network: `127.0.0.1:PORT`, `[::1]:PORT`, a path.
fn is_listened_on(at: &str) -> bool {
    let table = |name: &str| fs::read_to_string(format!("/proc/self/net/{name}")).unwrap();
    match at.rsplit_once(':') {
        Some((_, port)) => {
            let port = format!(":{:04X} ", port.parse::<u16>().unwrap());
            let listens = |line: &str| line.contains(" 0A ") && line.contains(&port);
            [table("tcp"), table("tcp6")].iter().any(|table| table.lines().any(listens))
        }
        // The flag of a socket that listens.
        None => table("unix").lines().any(|line| line.ends_with(at) && line.contains(" 00010000 ")),
    }
}

fn kill(signal: &str, pid: u32) {
    let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// A wrapper at work; it and all it has started is killed when it is dropped.
struct Wrapper<'a> {
    stage: &'a Stage,
    /// Where clients come to.
    at: String,
    first: Child,
}

impl Drop for Wrapper<'_> {
    fn drop(&mut self) {
        let _ = self.first.kill();
        let _ = self.first.wait();
    }
}

/// What the log calls a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// By the address that it has.
    Own,
    /// A client of a UNIX socket.
    Unix,
    /// By this address, of which the port is not known here.
    At(Ipv4Addr),
}

impl Wrapper<'_> {
    /// A new connection.
    fn connect(&self) -> TcpStream {
        let stream = if self.at.starts_with('/') {
            // For reading and writing, sockets are all the same.
            TcpStream::from(OwnedFd::from(UnixStream::connect(&self.at).unwrap()))
        } else {
            TcpStream::connect(&self.at).unwrap()
        };
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    fn curl(&self, url: &str) -> Output {
        let proxy = match self.at.strip_prefix('/') {
            Some(path) => format!("socks5h://localhost/{path}"),
            None => format!("socks5h://{}", self.at),
        };
        let mut curl = Command::new(demand("curl"));
        curl.args(["-q", "-sS", "--max-time", "10", "--noproxy", "", "-x", &proxy, url]);
        curl.env_clear().stdin(Stdio::null()).output().unwrap()
    }

    /// Sends a greeting, a request for `target` and `payload` in one go, says that this is all, and
    /// returns all octets that come until the end.
    fn exchange(&self, target: SocketAddr, payload: &[u8]) -> (Vec<u8>, Option<SocketAddr>) {
        let mut client = self.connect();
        let own = client.local_addr().ok();
        client.write_all(&[HELLO, &request5(1, target), payload].concat()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        (read_to_end(&mut client), own)
    }

    /// Has `target`, which echoes, connected to, and asserts that the client gets nothing but the
    /// protocol and what it has sent.
    fn assert_echoes(&self, target: SocketAddr, payload: &[u8]) -> Option<SocketAddr> {
        let (got, own) = self.exchange(target, payload);
        assert!(
            got.starts_with(&[5, 0, 5, 0, 0, 1, 127, 0, 0, 1]),
            "{:02x?}",
            &got[..got.len().min(64)]
        );
        assert!(got[12..] == *payload, "{} octets came back", got.len() - 12);
        own
    }

    /// Asserts that clients are served in every way, `count` of them in a row among them, and that
    /// the log calls each one by what it is.
    fn assert_serves(&self, client: Client, count: usize) {
        let (stage, echo) = (self.stage, Target::echo());
        let named = |own: Option<SocketAddr>| match client {
            Client::Own => format!(" client={} ", own.unwrap()),
            Client::Unix => " client=unix ".into(),
            Client::At(ip) => format!(" client={ip}:"),
        };

        // curl gets a page.
        let page = Target::on("127.0.0.1", |mut stream| {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut octet = [0];
                stream.read_exact(&mut octet).unwrap();
                request.push(octet[0]);
            }
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nthe page");
        });
        let output = self.curl(&format!("http://127.0.0.1:{}/", page.addr.port()));
        assert_eq!(output.stdout, b"the page", "{output:?}");
        let line = stage.logged(&["event=close ", &format!(" dst={} ", page.addr)]);
        assert!(field(&line, "up") != "0" && field(&line, "down") != "0", "{line}");

        // Payload goes both ways, and its end.
        let payload: Vec<u8> = (0..75_000_u32).flat_map(u32::to_le_bytes).collect();
        let own = self.assert_echoes(echo.addr, &payload);
        let told = format!(" up={0} down={0} ", payload.len());
        let line = stage.logged(&["event=close ", &told]);
        assert!(line.contains(&named(own)), "{line}: not{}", named(own));

        // What is denied is told, and nothing is connected.
        static FORBIDDEN: LazyLock<Target> =
            LazyLock::new(|| Target::on_addr(SocketAddr::from(([127, 0, 0, 1], DENIED)), drop));
        let denied = FORBIDDEN.addr;
        let (got, own) = self.exchange(denied, b"");
        assert_eq!(got, [5, 0, 5, 2, 0, 1, 0, 0, 0, 0, 0, 0]);
        let line = stage.logged(&["event=refuse ", "reply=02 ", "reason=denied", &named(own)]);
        assert_eq!(field(&line, "dst"), denied.to_string());
        // The next one is served by the same server, or by one of its own.
        self.assert_echoes(Target::echo().addr, b"sentinel");
        stage.logged(&["event=close ", " up=8 down=8 "]);
        FORBIDDEN.assert_none_came();

        // A client that has closed its side gets what comes long after.
        let slow = Target::on("127.0.0.1", |mut stream| {
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            thread::sleep(Duration::from_millis(700));
            got.resize(200_000, b'.');
            let _ = stream.write_all(&got);
        });
        let (got, _) = self.exchange(slow.addr, b"hello");
        assert_eq!((got.len(), &got[12..18]), (12 + 200_000, &b"hello."[..]));

        // What is no SOCKS is answered with nothing at all.
        let mut client = self.connect();
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        assert_ends_silently(&mut client, SOON);
        stage.logged(&["event=refuse ", "reason=protocol"]);

        let began = Instant::now();
        for n in 0..count {
            self.assert_echoes(echo.addr, format!("session {n}").as_bytes());
        }
        println!("{count} sessions took {:?}", began.elapsed());
        echo.assert_accepted(1 + count);
        let dst = format!(" dst={} ", echo.addr);
        let ended = || {
            stage.log(&["event=close ", &dst, " reason=client"]).len()
                + stage.log(&["event=close ", &dst, " reason=target"]).len()
        };
        eventually("all sessions are logged", || ended() == 1 + count);
        assert_eq!(stage.log(&["event=panic"]), Vec::<String>::new());
    }
}

#[test]
fn xinetd_serves() {
    isolated(|| {
        let stage = Stage::new();
        let conf = stage.example("xinetd.conf", "");
        stage.start(TCP, &xinetd(&conf)).assert_serves(Client::Own, 200);
    });
}

fn xinetd(conf: &str) -> [&str; 6] {
    // It removes this file in the end, whatever it is: /dev/null would be gone.
    let pid_file = String::leak(format!("{conf}.pid"));
    ["xinetd/xinetd", "-dontfork", "-f", conf, "-pidfile", pid_file]
}

#[test]
fn xinetd_serves_with_wait() {
    isolated(|| {
        let stage = Stage::new();
        let wait = [("wait        = no", "wait = yes")];
        let conf = stage.example_with("xinetd.conf", "", &wait);
        stage.start(TCP, &xinetd(&conf)).assert_serves(Client::Own, 200);
        assert_eq!(stage.log(&["event=listening addr=127.0.0.1:1080"]).len(), 1);
    });
}

#[test]
fn openbsd_inetd_serves() {
    isolated(|| {
        let stage = Stage::new();
        let conf = stage.example("inetd.conf", "");
        stage.start(TCP, &openbsd_inetd(&conf)).assert_serves(Client::Own, 200);
    });
}

fn openbsd_inetd(conf: &str) -> [&str; 5] {
    // -R: as many in a minute as come.
    ["openbsd-inetd/inetd", "-i", "-R", "100000", conf]
}

#[test]
fn openbsd_inetd_serves_with_wait() {
    isolated(|| {
        let stage = Stage::new();
        let conf = stage.example_with("inetd.conf", "", &[("tcp nowait", "tcp wait")]);
        stage.start(TCP, &openbsd_inetd(&conf)).assert_serves(Client::Own, 200);
        assert_eq!(stage.log(&["event=listening addr=127.0.0.1:1080"]).len(), 1);
    });
}

#[test]
fn inetutils_inetd_serves() {
    isolated(|| {
        let stage = Stage::new();
        let conf = stage.example("inetd.conf", "");
        stage.start(TCP, &inetutils_inetd(&conf)).assert_serves(Client::Own, 200);
    });
}

fn inetutils_inetd(conf: &str) -> [&str; 6] {
    ["inetutils-inetd/inetutils-inetd", "--environment", "-d", "-R", "100000", conf]
}

#[test]
fn inetutils_inetd_serves_with_wait() {
    isolated(|| {
        let stage = Stage::new();
        let conf = stage.example_with("inetd.conf", "", &[("tcp nowait", "tcp wait")]);
        stage.start(TCP, &inetutils_inetd(&conf)).assert_serves(Client::Own, 200);
        assert_eq!(stage.log(&["event=listening addr=127.0.0.1:1080"]).len(), 1);
    });
}

#[test]
fn tcpserver_serves() {
    isolated(|| {
        demand("tcpserver");
        let stage = Stage::new();
        let run = stage.example("tcpserver.run", "");
        stage.start(TCP, &[&run]).assert_serves(Client::Own, 200);
    });
}

#[test]
fn tcpsvd_serves() {
    isolated(|| {
        let stage = Stage::new();
        let socksd = stage.socksd(&["--inetd"]);
        let words = ["tcpsvd", "-l", "0", "-c", "256", "127.0.0.1", "1080"];
        stage.start(TCP, &joined(&words, &socksd)).assert_serves(Client::Own, 200);
    });
}

fn joined<'a>(words: &[&'a str], more: &'a [String]) -> Vec<&'a str> {
    words.iter().copied().chain(more.iter().map(String::as_str)).collect()
}

/// Starts socat with the options `exec` for its EXEC.
fn socat<'a>(stage: &'a Stage, args: &[&str], exec: &str) -> Wrapper<'a> {
    socat_with(stage, &stage.socksd(args).join(" "), exec)
}

/// The same for a command to execute.
fn socat_with<'a>(stage: &'a Stage, command: &str, exec: &str) -> Wrapper<'a> {
    let exec = format!("EXEC:\"{command}\"{exec}");
    let listen = "TCP-LISTEN:1080,bind=127.0.0.1,reuseaddr,fork";
    stage.start(TCP, &["socat", "-t", "3600", listen, &exec])
}

#[test]
fn socat_serves_with_the_clients_connection() {
    isolated(|| {
        let stage = Stage::new();
        socat(&stage, &["--inetd"], ",nofork").assert_serves(Client::Own, 200);
    });
}

#[test]
fn socat_serves_with_a_socket_pair() {
    isolated(|| {
        let stage = Stage::new();
        socat(&stage, &["--inetd"], "").assert_serves(Client::Unix, 200);
    });
}

#[test]
fn socat_serves_with_the_address_in_the_environment() {
    isolated(|| {
        let stage = Stage::new();
        socat(&stage, &["--inetd", "--peer-env"], "").assert_serves(Client::Own, 20);
    });
}

#[test]
fn s6_serves_clients_of_a_unix_socket() {
    isolated(|| {
        for program in ["s6-ipcserver", "s6-setuidgid"] {
            demand(program);
        }
        let stage = Stage::new();
        let run = stage.example("s6.run", "");
        let socket = stage.path("socket");
        stage.start(&socket, &[&run]).assert_serves(Client::Unix, 200);
    });
}

#[test]
fn unixserver_serves_though_it_leaves_signals_ignored() {
    isolated(|| {
        let stage = Stage::new();
        let (socket, socksd) = (stage.path("socket"), stage.socksd(&["--inetd"]));
        let wrapper = stage.start(&socket, &joined(&["unixserver", &socket, "--"], &socksd));
        wrapper.assert_serves(Client::Unix, 200);
        // HUP is one of them: it has to be waited for all the same.
        let mut client = wrapper.connect();
        // Until its server has started, HUP is ignored; that of the last client may be there still.
        client.write_all(HELLO).unwrap();
        client.read_exact(&mut [0; 2]).unwrap();
        kill("HUP", stage.server());
        stage.logged(&["event=reload "]);
    });
}

/// Starts systemd-socket-activate with `options`, to start a server with `args`.
fn activate<'a>(stage: &'a Stage, options: &[&str], args: &[&str]) -> Wrapper<'a> {
    let socksd = stage.socksd(args);
    let words = [&["systemd-socket-activate", "-l", TCP][..], options].concat();
    stage.start(TCP, &joined(&words, &socksd))
}

#[test]
fn systemd_serves_with_its_listener() {
    isolated(|| {
        let stage = Stage::new();
        activate(&stage, &[], &[]).assert_serves(Client::Own, 200);
    });
}

#[test]
fn systemd_serves_with_its_listener_as_descriptor_0() {
    isolated(|| {
        let stage = Stage::new();
        activate(&stage, &["--inetd"], &["--inetd"]).assert_serves(Client::Own, 200);
    });
}

#[test]
fn systemd_serves_a_client_it_has_accepted() {
    isolated(|| {
        let stage = Stage::new();
        activate(&stage, &["-a"], &[]).assert_serves(Client::Own, 200);
    });
}

#[test]
fn systemd_serves_a_client_it_has_accepted_as_descriptor_0() {
    isolated(|| {
        let stage = Stage::new();
        activate(&stage, &["-a", "--inetd"], &["--inetd"]).assert_serves(Client::Own, 200);
    });
}

/// Makes a certificate for stunnel, and returns the words that start it by the example with one
/// more service: plain connections at 127.0.0.1:1080 are carried to it as TLS, from [`ELSEWHERE`].
fn stunnel(stage: &Stage, changes: &[(&str, &str)]) -> [String; 2] {
    let [key, cert] = ["key", "cert"].map(|name| stage.path(name));
    let mut openssl = Command::new(demand("openssl"));
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ]);
    openssl.args(["-keyout", &key, "-out", &cert, "-days", "2", "-subj", "/CN=localhost"]);
    assert!(openssl.output().unwrap().status.success());
    let pem = [fs::read_to_string(&key).unwrap(), fs::read_to_string(&cert).unwrap()].concat();
    stage.write("tls.pem", &pem, 0o600);
    let conf = stage.example_with("stunnel.conf", "", changes);
    let client = format!(
        "\n[client]\nclient = yes\naccept = {TCP}\nconnect = 127.0.0.1:1081\nlocal = {ELSEWHERE}\n\
         verifyChain = yes\nCAfile = {cert}\ncheckHost = localhost\n"
    );
    let text = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, text + &client).unwrap();
    ["stunnel4".into(), conf]
}

#[test]
fn stunnel_serves_with_the_address_in_the_environment() {
    isolated(|| {
        let stage = Stage::new();
        let words = stunnel(&stage, &[]);
        let wrapper = stage.start(TCP, &joined(&[], &words));
        wrapper.assert_serves(Client::At(ELSEWHERE), 200);
    });
}

#[test]
fn stunnel_serves_its_own_address_where_the_environment_does_not_count() {
    isolated(|| {
        let stage = Stage::new();
        let words = stunnel(&stage, &[(" --peer-env", "")]);
        let wrapper = stage.start(TCP, &joined(&[], &words));
        wrapper.assert_serves(Client::At(Ipv4Addr::LOCALHOST), 20);
    });
}

#[test]
fn the_environment_names_the_client_only_where_it_is_asked_for() {
    isolated(|| {
        let rules = "allow from 192.0.2.9 to any port 1-1023\ndeny from 192.0.2.9\nallow to all\n";
        // What tcpserver says is overwritten, to tell it from what the connection says.
        for (set, args, client, allowed) in [
            (
                "TCPREMOTEIP=192.0.2.9 TCPREMOTEPORT=99",
                &["--inetd", "--peer-env"][..],
                "192.0.2.9:99",
                false,
            ),
            ("TCPREMOTEIP=192.0.2.9 TCPREMOTEPORT=99", &["--inetd"], "127.0.0.7:", true),
            (
                "TCPREMOTEIP=192.0.2.9 TCPREMOTEPORT=x",
                &["--inetd", "--peer-env"],
                "192.0.2.9:0",
                false,
            ),
            (
                "-u TCPREMOTEIP REMOTE_HOST=192.0.2.9 REMOTE_PORT=8",
                &["--inetd", "--peer-env"],
                "192.0.2.9:8",
                false,
            ),
            (
                "-u TCPREMOTEIP REMOTE_ADDR=192.0.2.9 REMOTE_PORT=8",
                &["--inetd", "--peer-env"],
                "192.0.2.9:8",
                false,
            ),
            (
                "-u TCPREMOTEIP NCAT_REMOTE_ADDR=192.0.2.9 NCAT_REMOTE_PORT=7",
                &["--inetd", "--peer-env"],
                "192.0.2.9:7",
                false,
            ),
            (
                "-u TCPREMOTEIP SOCAT_PEERADDR=[::ffff:192.0.2.9] SOCAT_PEERPORT=7",
                &["--inetd", "--peer-env"],
                "192.0.2.9:7",
                false,
            ),
        ] {
            let (stage, echo) = (Stage::with_rules(rules), Target::echo());
            let socksd = stage.socksd(args);
            let words = ["tcpserver", "-R", "-H", "-l", "0", "127.0.0.1", "1080", "env"];
            let words: Vec<&str> = words.into_iter().chain(set.split(' ')).collect();
            let _wrapper = stage.start(TCP, &joined(&words, &socksd));
            let mut client_side = connect_from(ELSEWHERE, TCP.parse().unwrap());
            client_side.write_all(&[HELLO, &request5(1, echo.addr)].concat()).unwrap();
            assert_eq!(read(&mut client_side, 2), [5, 0], "{set}");
            let expected = if allowed { 0 } else { 2 };
            assert_eq!(reply5(&mut client_side).0, expected, "{set}");
            drop(client_side);
            stage.logged(&[&format!(" client={client}")]);
        }
    });
}

#[test]
fn a_rule_follows_the_address_that_stunnel_tells() {
    isolated(|| {
        for (rules, changes, allowed) in [
            ("allow from 127.0.0.7 to all\n", &[][..], true),
            ("allow from 127.0.0.1 to all\n", &[], false),
            ("allow from 127.0.0.7 to all\n", &[(" --peer-env", "")], false),
            ("allow from 127.0.0.1 to all\n", &[(" --peer-env", "")], true),
        ] {
            let (stage, echo) = (Stage::with_rules(rules), Target::echo());
            let words = stunnel(&stage, changes);
            let wrapper = stage.start(TCP, &joined(&[], &words));
            let (got, _) = wrapper.exchange(echo.addr, b"");
            assert_eq!(got, expected(allowed, &got), "{rules}{changes:?}");
        }
    });
}

#[test]
fn without_an_address_in_the_environment_peer_env_serves_nobody() {
    isolated(|| {
        for args in [&["-a", "--inetd"][..], &["--inetd"]] {
            let stage = Stage::new();
            let wrapper = activate(&stage, args, &["--inetd", "--peer-env"]);
            // systemd-socket-activate sets none; and a socket that listens has no one client.
            assert_ends_silently(&mut wrapper.connect(), SOON);
            let stderr = || fs::read_to_string(stage.path("stderr")).unwrap();
            eventually("it says why", || stderr().contains("socksd: --peer-env: "));
        }
    });
}

/// Whatever the server has to complain about, and where its log is not told: nothing comes to a
/// client of one whose standard error is the client.
#[test]
fn complaints_do_not_go_to_the_client_who_is_standard_error() {
    isolated(|| {
        for wait in [false, true] {
            for daemon in ["xinetd", "openbsd-inetd", "inetutils-inetd"] {
                for (old, new) in [
                    ("--inetd", "--inetd --no-such-option"),
                    ("--inetd", "--inetd --listen 1080"),
                    ("--inetd", "--inetd --users /nonexistent"),
                    ("--inetd", "--inetd --peer-env --users /nonexistent"),
                    ("rules --log", "rules --log /nonexistent"),
                    ("--rules", "--rule"),
                ] {
                    // With wait, one that cannot serve is started again and again.
                    if wait && (daemon != "xinetd" || new != "--inetd --no-such-option") {
                        continue;
                    }
                    let stage = Stage::new();
                    let mut changes = vec![(old, new)];
                    if wait {
                        changes.push(("wait        = no", "wait = yes"));
                    }
                    let name = if daemon == "xinetd" { "xinetd.conf" } else { "inetd.conf" };
                    let conf = stage.example_with(name, "", &changes);
                    let words = match daemon {
                        "xinetd" => &xinetd(&conf)[..],
                        "openbsd-inetd" => &openbsd_inetd(&conf),
                        _ => &inetutils_inetd(&conf),
                    };
                    let wrapper = stage.start(TCP, words);
                    let mut client = wrapper.connect();
                    if wait {
                        // Nobody accepts it; nothing must come meanwhile.
                        client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                        let error = client.read(&mut [0; 16]).unwrap_err();
                        assert_eq!(error.kind(), ErrorKind::WouldBlock);
                        continue;
                    }
                    let mut got = Vec::new();
                    let _ = client.read_to_end(&mut got);
                    assert_eq!(String::from_utf8_lossy(&got), "", "{daemon} {new}");
                }
            }
        }
    });
}

#[test]
fn a_log_to_standard_error_does_not_go_to_the_client_who_is_that() {
    isolated(|| {
        let (stage, echo) = (Stage::new(), Target::echo());
        let log = format!(" --log {}", stage.path("log"));
        let conf = stage.example("inetd.conf", "--verbose");
        let text = fs::read_to_string(&conf).unwrap().replace(&log, "");
        assert!(!text.lines().last().unwrap().contains("--log"));
        fs::write(&conf, text).unwrap();
        let wrapper = stage.start(TCP, &openbsd_inetd(&conf));
        wrapper.assert_echoes(echo.addr, b"nothing but this");
    });
}

/// Runs the server with these descriptors 0, 1 and 2, as a shell writes them.
fn with_descriptors(stage: &Stage, redirections: &str, args: &[&str]) -> Output {
    let socksd = stage.socksd(args);
    let script = format!("exec \"$@\" {redirections}");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).args(socksd).current_dir("/").stdin(Stdio::null());
    command.output().unwrap()
}

#[test]
fn descriptor_0_has_to_be_a_stream_socket() {
    let stage = Stage::new();
    for redirections in ["</dev/null", "</etc/passwd", "<&-"] {
        let output = with_descriptors(&stage, redirections, &["--inetd"]);
        assert_eq!(output.status.code(), Some(100), "{redirections}: {output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said, "socksd: descriptor 0: expected a stream socket, TCP or UNIX\n");
        assert_eq!(output.stdout, b"");
    }
}

#[test]
fn pipes_and_terminals_are_refused_without_a_word_to_the_client() {
    isolated(|| {
        for exec in [",pipes", ",pty,rawer"] {
            let stage = Stage::new();
            // socat may end before the server, whose status it does not know then.
            let socksd = stage.socksd(&["--inetd"]).join(" ");
            let script = format!("#!/bin/sh\n{socksd}\necho status $? >&2\n");
            let wrapper = socat_with(&stage, &stage.write("script", &script, 0o755), exec);
            let mut client = wrapper.connect();
            client.write_all(HELLO).unwrap();
            let mut got = Vec::new();
            let _ = client.read_to_end(&mut got);
            assert_eq!(got, b"", "{exec}");
            let stderr = || fs::read_to_string(stage.path("stderr")).unwrap();
            let expected = "socksd: descriptor 0: expected a stream socket, TCP or UNIX\n";
            eventually("it says why", || stderr().contains(expected));
            eventually("and with what status", || stderr().contains("status 100"));
        }
    });
}

#[test]
fn closed_descriptors_are_no_obstacle() {
    isolated(|| {
        for closed in ["1>&-", "2>&-", "1>&- 2>&-"] {
            let (stage, echo) = (Stage::new(), Target::echo());
            let script = format!("exec \"$@\" {closed}");
            let socksd = stage.socksd(&["--inetd"]);
            let words = [
                "tcpserver",
                "-R",
                "-H",
                "-l",
                "0",
                "127.0.0.1",
                "1080",
                "sh",
                "-c",
                &script,
                "sh",
            ];
            let wrapper = stage.start(TCP, &joined(&words, &socksd));
            wrapper.assert_echoes(echo.addr, b"nothing but this");
            stage.logged(&["event=close "]);
        }
        // With all three closed it listens by itself.
        let (stage, echo) = (Stage::new(), Target::echo());
        let socksd = stage.socksd(&["--listen", TCP]);
        let words = ["sh", "-c", "exec \"$@\" <&- >&- 2>&-", "sh"];
        let wrapper = stage.start(TCP, &joined(&words, &socksd));
        wrapper.assert_echoes(echo.addr, b"nothing but this");
    });
}

#[test]
fn sockets_of_systemd_count_only_for_the_process_they_are_meant_for() {
    isolated(|| {
        let (stage, echo) = (Stage::new(), Target::echo());
        // A shell in between has the number, and descriptor 3, but is not the server.
        let socksd = stage.socksd(&["--listen", "127.0.0.1:1081"]);
        let words = ["systemd-socket-activate", "-l", TCP, "sh", "-c", "\"$@\"; exit", "sh"];
        let mut wrapper = stage.start(TCP, &joined(&words, &socksd));
        let _client = wrapper.connect();
        stage.logged(&["event=listening addr=127.0.0.1:1081"]);
        wrapper.at = "127.0.0.1:1081".into();
        wrapper.assert_echoes(echo.addr, b"served here");
        assert_eq!(stage.log(&["event=listening "]).len(), 1);
    });
}

#[test]
fn several_inherited_listeners_are_served_at_once() {
    isolated(|| {
        let stage = Stage::with_rules("allow from unix,127.0.0.1,::1 to all\n");
        let (echo, socket, socksd) =
            (Target::echo(), stage.path("socket"), stage.socksd(&["--listen", "127.0.0.1:1083"]));
        let mut words = vec!["systemd-socket-activate", "--fdname=main:admin:six:unix"];
        let places = [TCP, "127.0.0.1:1081", "[::1]:1082", &socket, "127.0.0.1:1083"];
        words.extend(places[..4].iter().flat_map(|place| ["-l", place]));
        let mut wrapper = stage.start(&socket, &joined(&words, &socksd));
        for place in places {
            wrapper.at = place.into();
            let own = wrapper.assert_echoes(echo.addr, place.as_bytes());
            let client = own.map_or("unix".into(), |own| own.to_string());
            let told = format!(" up={0} down={0} ", place.len());
            let line = stage.logged(&["event=close ", &format!(" client={client} "), &told]);
            assert_eq!(field(&line, "reply"), "00");
        }
        let listening = stage.log(&["event=listening "]);
        assert_eq!(listening.len(), 5, "{listening:?}");
        assert!(listening.iter().any(|line| line.ends_with(&format!(" addr=unix:{socket}"))));
        // What somebody else has opened is left to them; what the server has opened is closed.
        kill("TERM", stage.server());
        eventually("the server has ended", || stage.servers().is_empty());
        assert!(Path::new(&socket).exists());
    });
}

/// Has a client come every 100 milliseconds for five seconds, with pauses longer than the second
/// after which the server leaves, and asserts that each one was served, by several servers.
fn assert_none_is_lost(wrapper: &Wrapper<'_>) {
    let echo = Target::echo();
    let dst = format!(" dst={} ", echo.addr);
    let before = wrapper.stage.log(&["event=listening "]).len();
    let began = Instant::now();
    let mut count = 0;
    thread::scope(|scope| {
        while began.elapsed() < Duration::from_secs(6) {
            for _ in 0..8 {
                scope.spawn(|| wrapper.assert_echoes(echo.addr, b"not lost"));
                count += 1;
                thread::sleep(Duration::from_millis(100));
            }
            // Around the time when the server leaves.
            thread::sleep(Duration::from_millis(900 + count * 5));
        }
    });
    let count = usize::try_from(count).unwrap();
    echo.assert_accepted(count);
    eventually("all are logged", || wrapper.stage.log(&["event=close ", &dst]).len() == count);
    let servers = wrapper.stage.log(&["event=listening "]).len() - before;
    println!("{count} sessions by {servers} servers");
    assert!(servers > 1, "the server has never left");
}

#[test]
fn no_client_is_lost_when_a_server_leaves_xinetd() {
    isolated(|| {
        let stage = Stage::new();
        let wait = [("wait        = no", "wait = yes")];
        let conf = stage.example_with("xinetd.conf", "--exit-when-idle 1", &wait);
        assert_none_is_lost(&stage.start(TCP, &xinetd(&conf)));
    });
}

#[test]
fn no_client_is_lost_when_a_server_leaves_inetd() {
    isolated(|| {
        let stage = Stage::new();
        let wait = [("tcp nowait", "tcp wait")];
        let conf = stage.example_with("inetd.conf", "--exit-when-idle 1", &wait);
        assert_none_is_lost(&stage.start(TCP, &openbsd_inetd(&conf)));
    });
}

#[test]
fn a_server_that_leaves_systemd_keeps_nobody_waiting_whom_it_has_accepted() {
    isolated(|| {
        let (stage, echo) = (Stage::new(), Target::echo());
        let wrapper = activate(&stage, &[], &["--exit-when-idle", "1"]);
        for _ in 0..20 {
            wrapper.assert_echoes(echo.addr, b"not lost");
            thread::sleep(Duration::from_millis(100));
        }
        // systemd-socket-activate becomes the server, and the socket ends with it.
        stage.logged(&["event=idle sessions=0"]);
        eventually("the server has left", || stage.servers().is_empty());
        assert_eq!(stage.log(&["event=close "]).len(), 20);
    });
}

#[test]
fn a_session_under_a_wrapper_ends_with_a_second_term() {
    isolated(|| {
        for (example, change) in [
            ("tcpserver.run", None),
            ("inetd.conf", None),
            ("inetd.conf", Some(("tcp nowait", "tcp wait"))),
        ] {
            let (stage, echo) = (Stage::new(), Target::echo());
            let path = stage.example_with(example, "", change.as_slice());
            let words = if change.is_some() || example == "inetd.conf" {
                openbsd_inetd(&path).to_vec()
            } else {
                vec![&*path]
            };
            let wrapper = stage.start(TCP, &words);
            let mut client = wrapper.connect();
            client.write_all(&[HELLO, &request5(1, echo.addr)].concat()).unwrap();
            assert_eq!(read(&mut client, 2), [5, 0]);
            assert_eq!(reply5(&mut client).0, 0);
            let server = stage.server();
            kill("TERM", server);
            stage.logged(&["event=stopping signal=TERM sessions=1"]);
            client.write_all(b"still there").unwrap();
            assert_eq!(read(&mut client, 11), b"still there");
            kill("TERM", server);
            assert_ends_silently(&mut client, SOON);
            stage.logged(&["event=close ", " up=11 down=11 ", "reason=stopped"]);
            eventually("the server has ended", || !stage.servers().contains(&server));
        }
    });
}

#[test]
fn a_unix_socket_is_opened_with_its_mode_and_removed_at_the_end() {
    isolated(|| {
        for (args, mode) in
            [(&[][..], 0o600), (&["--unix-mode", "666"], 0o666), (&["--unix-mode", "0660"], 0o660)]
        {
            let stage = Stage::new();
            let socket = stage.path("own");
            let place = format!("unix:{socket}");
            // One that nobody listens on any more is in its place.
            drop(UnixListener::bind(&socket).unwrap());
            let socksd = stage.socksd(&[&["--listen", &place], args].concat());
            let wrapper = stage.start(&socket, &joined(&[], &socksd));
            let found = fs::symlink_metadata(&socket).unwrap();
            assert!(found.file_type().is_socket());
            assert_eq!(found.permissions().mode() & 0o777, mode);
            wrapper.assert_serves(Client::Unix, 20);
            kill("TERM", stage.server());
            eventually("the server has ended", || stage.servers().is_empty());
            assert!(!Path::new(&socket).exists());
        }
    });
}

#[test]
fn socat_reaches_a_unix_socket() {
    isolated(|| {
        let (stage, echo) = (Stage::new(), Target::echo());
        let socket = stage.path("own");
        let socksd = stage.socksd(&["--listen", &format!("unix:{socket}")]);
        let _server = stage.start(&socket, &joined(&[], &socksd));
        let connect = format!("UNIX-CONNECT:{socket}");
        let wrapper = stage.start(
            TCP,
            &["socat", "-t", "10", "TCP-LISTEN:1080,bind=127.0.0.1,reuseaddr,fork", &connect],
        );
        wrapper.assert_echoes(echo.addr, b"nothing but this");
        stage.logged(&["event=close ", " client=unix "]);
    });
}

#[test]
fn a_path_that_is_in_use_is_left_alone() {
    let stage = Stage::new();
    let socket = stage.path("own");
    let listener = UnixListener::bind(&socket).unwrap();
    let refused = |path: &str, reason: &str| {
        let place = format!("unix:{path}");
        let output = with_descriptors(&stage, "", &["--listen", &place]);
        assert_eq!(output.status.code(), Some(111), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said, format!("socksd: cannot listen on {place}: {reason}\n"));
    };
    refused(&socket, "Address already in use (os error 98)");
    let file = stage.write("file", "precious", 0o600);
    refused(&file, "Address already in use (os error 98)");
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    UnixStream::connect(&socket).unwrap();
    listener.accept().unwrap();
}

#[test]
fn a_rule_knows_the_clients_of_a_unix_socket() {
    isolated(|| {
        for (rules, allowed) in [
            ("allow from unix to all\n", true),
            ("allow from any to all\n", false),
            ("allow from 0.0.0.0/0,::/0 to all\n", false),
            ("deny from unix\nallow to all\n", false),
            ("allow to all\n", true),
        ] {
            let (stage, echo) = (Stage::with_rules(rules), Target::echo());
            let socket = stage.path("own");
            let socksd = stage.socksd(&["--listen", &format!("unix:{socket}")]);
            let wrapper = stage.start(&socket, &joined(&[], &socksd));
            let (got, _) = wrapper.exchange(echo.addr, b"");
            assert_eq!(got, expected(allowed, &got), "{rules}");
        }
    });
}

/// How a stream begins that is allowed, or else how all of it is; the address in it is not looked
/// at.
fn expected(allowed: bool, got: &[u8]) -> Vec<u8> {
    match (allowed, got.len()) {
        (true, 12..) => [&[5, 0, 5, 0, 0, 1], &got[6..]].concat(),
        (true, _) => vec![5, 0, 5, 0],
        // Some rule may yet allow another request, or none may.
        (false, 12) => vec![5, 0, 5, 2, 0, 1, 0, 0, 0, 0, 0, 0],
        (false, _) => vec![5, 0xff],
    }
}

#[test]
fn a_static_server_serves_under_tcpserver_in_a_directory_with_nothing_else() {
    let place = Static::place();
    // In a network of its own the test finds it built.
    if !is_inside() {
        assert_eq!(Static::preferred().binary, place);
    }
    isolated(|| {
        let (stage, echo) = (Stage::new(), Target::echo());
        let bare = stage.path("bare");
        fs::create_dir(&bare).unwrap();
        copy_program(place, stage.path("bare/socksd"));
        let words = ["tcpserver", "-R", "-H", "-l", "0", "127.0.0.1", "1080", "chroot", &bare];
        let socksd = ["/socksd", "--inetd", "--rule", "deny port 9", "--rule", "allow to all"];
        let wrapper = stage.start(TCP, &[&words[..], &socksd].concat());
        for n in 0..200 {
            wrapper.assert_echoes(echo.addr, format!("session {n}").as_bytes());
        }
        let denied = SocketAddr::from(([127, 0, 0, 1], DENIED));
        assert_eq!(wrapper.exchange(denied, b"").0, expected(false, &[0; 12]));
        let log = || fs::read_to_string(stage.path("stderr")).unwrap();
        eventually("all are logged", || log().matches(" event=close ").count() == 200);
        assert_eq!(fs::read_dir(&bare).unwrap().count(), 1);
    });
}

/// Prepares systemd(1) to be the first process of namespaces of its own, which stay below one
/// control group that is removed in the end.
const SYSTEMD: &str = r#"set -e
mkdir -p "$1/cgroup" && mount -t cgroup2 cgroup2 "$1/cgroup"
mkdir "$1/cgroup/$2" && echo $$ >"$1/cgroup/$2/cgroup.procs"
exec unshare --pid --mount --uts --ipc --cgroup --fork --kill-child sh -c '
set -e
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
umount -R -l /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
export container=other SYSTEMD_UNIT_PATH="$1/units"
exec /lib/systemd/systemd --system --unit=test.target --log-target=console --show-status=no
' sh "$1""#;

#[test]
fn systemd_itself_runs_the_example_units_with_all_they_forbid() {
    isolated(|| {
        demand_root();
        // The service has a /tmp of its own, so the server must be elsewhere.
        let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/mnt"]).status();
        assert!(mounted.unwrap().success());
        let stage = Stage::at(Path::new("/mnt"), "deny port 9\nallow to all\n");
        fs::create_dir_all(stage.path("units/socksd.service.d")).unwrap();
        let leave = [("--exit-when-idle 600", "--exit-when-idle 1")];
        for (example, changes) in [("socksd.service", &leave[..]), ("socksd.socket", &[])] {
            let text = fs::read_to_string(stage.example_with(example, "", changes)).unwrap();
            stage.write(&format!("units/{example}"), &text, 0o644);
        }
        // There is no journal, and nothing else of a whole system. In the namespaces of a container
        // systemd cannot make a /dev of its own; DevicePolicy still keeps the server from devices.
        let log =
            format!("[Service]\nStandardError=append:{}\nPrivateDevices=no\n", stage.path("log"));
        stage.write("units/socksd.service.d/log.conf", &log, 0o644);
        let bare = "[Unit]\nDefaultDependencies=no\n";
        for target in ["basic", "network", "shutdown", "sockets", "sysinit"] {
            stage.write(&format!("units/{target}.target"), bare, 0o644);
        }
        let all = format!("{bare}Requires=socksd.socket\nAfter=socksd.socket\n");
        stage.write("units/test.target", &all, 0o644);

        let (own, group) = (stage.path(""), format!("socksd-test-{}", std::process::id()));
        let wrapper = stage.start(TCP, &["sh", "-c", SYSTEMD, "sh", &own, &group]);
        assert!(stage.servers().is_empty(), "it is started by the first client");
        wrapper.assert_serves(Client::Own, 200);
        let server = stage.server();
        let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
        for (key, value) in [
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("CapBnd", "0000000000000000"),
            ("CapEff", "0000000000000000"),
        ] {
            assert!(status.contains(&format!("\n{key}:\t{value}\n")), "{status}");
        }
        assert!(!status.contains("\nUid:\t0\t"), "{status}");
        kill("HUP", server);
        stage.logged(&["event=reload rules=2 "]);
        assert_eq!(stage.log(&["event=warning"]), Vec::<String>::new());
        assert_none_is_lost(&wrapper);
        drop(wrapper);
        let tidy = r#"find "$0" -depth -type d -exec rmdir {} + && umount "$1""#;
        let group = stage.path(&format!("cgroup/{group}"));
        eventually("the control group is gone", || {
            let _ = Command::new("sh").args(["-c", tidy, &group, &stage.path("cgroup")]).output();
            !Path::new(&group).exists()
        });
    });
}

#[test]
fn systemd_finds_no_fault_with_the_example_units() {
    let stage = Stage::new();
    let units = ["socksd.service", "socksd.socket"].map(|unit| stage.example(unit, ""));
    let analyze = |args: &[&str]| {
        let mut command = Command::new(demand("systemd-analyze"));
        let output = command.args(args).args(&units).env("LC_ALL", "C").output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{said}");
        said
    };
    // What it says of other units of this host is not about these.
    let said = analyze(&["verify", "--man=no"]);
    assert!(!said.contains("socksd"), "{said}");
    let mut command = Command::new(demand("systemd-analyze"));
    let output = command.args(["security", "--offline=true", "--threshold=20", &units[0]]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
