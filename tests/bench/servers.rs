//! The servers that are compared: how each is started, and that it ends.

use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::proc;
use crate::targets::SOON;

/// Nets in the list of a server with rules.
const NETS: u32 = 100_000;

/// What is compared.
pub struct Server {
    pub name: String,
    pub kind: Kind,
}

/// How a server is started.
pub enum Kind {
    /// There is none: the client connects to the target.
    Direct,
    /// A binary of socksd that allows all and logs next to nothing.
    Socksd(PathBuf),
    /// The same with a long list of rules, and a line in a log for each session.
    SocksdWithRules(PathBuf),
    Microsocks(PathBuf),
    Dante(PathBuf),
    ThreeProxy(PathBuf),
    /// Somebody has started it already.
    Running(SocketAddr, u32),
}

/// A server that listens. It is killed when this is dropped, with all its children, unless somebody
/// else has started it.
pub struct Running {
    /// Where it listens; `None`: there is no server.
    pub addr: Option<SocketAddr>,
    pid: Option<u32>,
    child: Option<Child>,
}

impl Server {
    /// Starts it, with its files in `dir`, and waits until it listens.
    pub fn start(&self, dir: &Path) -> io::Result<Running> {
        let port = free_port();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut command = match &self.kind {
            Kind::Direct => return Ok(Running { addr: None, pid: None, child: None }),
            Kind::Running(addr, pid) => {
                return Ok(Running { addr: Some(*addr), pid: Some(*pid), child: None });
            }
            Kind::Socksd(path) => {
                let mut command = socksd(path, addr);
                command.args(["--rule", "allow to all", "--quiet"]);
                command
            }
            Kind::SocksdWithRules(path) => {
                let (rules, log) = (dir.join("rules"), dir.join("log"));
                write_rules(dir, &rules)?;
                // Each run has a new log.
                let _ = fs::remove_file(&log);
                let mut command = socksd(path, addr);
                command.arg("--rules").arg(rules).arg("--log").arg(log);
                command
            }
            Kind::Microsocks(path) => {
                let mut command = Command::new(path);
                command.args(["-i", "127.0.0.1", "-p", &port.to_string()]);
                command
            }
            Kind::Dante(path) => {
                let config = dir.join("danted.conf");
                fs::write(&config, dante_config(port))?;
                let mut command = Command::new(path);
                command.arg("-f").arg(config);
                command
            }
            Kind::ThreeProxy(path) => {
                let config = dir.join("3proxy.cfg");
                let text = format!("maxconn 20000\nauth none\nsocks -i127.0.0.1 -p{port}\n");
                fs::write(&config, text)?;
                let mut command = Command::new(path);
                command.arg(config);
                command
            }
        };
        // What it says goes nowhere: microsocks has a line for each client.
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = quiet.spawn()?;
        let mut running = Running { addr: Some(addr), pid: Some(child.id()), child: Some(child) };
        running.wait_until_it_listens(addr)?;
        Ok(running)
    }
}

impl Running {
    fn wait_until_it_listens(&mut self, addr: SocketAddr) -> io::Result<()> {
        let until = Instant::now() + 2 * SOON;
        while TcpStream::connect_timeout(&addr, SOON).is_err() {
            if let Some(status) = self.child.as_mut().unwrap().try_wait()? {
                return Err(io::Error::other(format!("it ends at once, {status}")));
            }
            if Instant::now() >= until {
                return Err(io::Error::other(format!("it does not listen on {addr}")));
            }
            thread::sleep(Duration::from_millis(5));
        }
        // It takes the connection away, and its start is over.
        thread::sleep(Duration::from_millis(100));
        match self.child.as_mut().unwrap().try_wait()? {
            None => Ok(()),
            Some(_) => Err(io::Error::other(format!("somebody else listens on {addr}"))),
        }
    }

    /// Whether it was started here. Another one keeps memory of what was before.
    pub fn is_ours(&self) -> bool {
        self.child.is_some()
    }

    /// The CPU time it has used so far, with its children.
    pub fn cpu(&self) -> Option<Duration> {
        self.pid.map(proc::cpu)
    }

    /// What it holds, with its children.
    pub fn held(&self) -> Option<proc::Held> {
        self.pid.map(proc::held)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        // All of these descend from the child, which is not waited for yet.
        let children = proc::tree(child.id()).split_off(1);
        let _ = child.kill();
        if !children.is_empty() {
            let pids = children.iter().map(u32::to_string);
            let _ = Command::new("kill").args(["-s", "KILL"]).args(pids).status();
        }
        let _ = child.wait();
    }
}

/// A command that starts a binary of socksd, without a limit that could be met here.
fn socksd(path: &Path, addr: SocketAddr) -> Command {
    let mut command = Command::new(path);
    command.arg("--listen").arg(addr.to_string());
    for limit in ["--max-sessions", "--max-per-client", "--max-half-open"] {
        // A quarter of the half open ones are for one client.
        command.args([limit, "8000"]);
    }
    command
}

/// A deny rule with many nets, none of them loopback and no two adjacent, and a rule that allows.
fn write_rules(dir: &Path, rules: &Path) -> io::Result<()> {
    let mut list = io::BufWriter::new(fs::File::create(dir.join("nets"))?);
    for net in 0..NETS {
        let [_, a, b, c] = net.to_be_bytes();
        writeln!(list, "{}.{b}.{c}.0/25", 20 + a)?;
    }
    list.flush()?;
    fs::write(rules, "list nets nets\ndeny to list:nets\nallow to all\n")
}

fn dante_config(port: u16) -> String {
    format!(
        "errorlog: /dev/null\n\
         logoutput: /dev/null\n\
         internal: 127.0.0.1 port = {port}\n\
         external: 127.0.0.1\n\
         clientmethod: none\n\
         socksmethod: none\n\
         user.privileged: root\n\
         user.notprivileged: nobody\n\
         client pass {{\n    from: 0.0.0.0/0 to: 0.0.0.0/0\n}}\n\
         socks pass {{\n    from: 0.0.0.0/0 to: 0.0.0.0/0\n}}\n"
    )
}

/// A port of 127.0.0.1 that nobody has, below those that connections get of themselves. Two
/// benchmarks at once look in different places.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 100).unwrap() * 100;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// A program on PATH, or where Debian puts daemons.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}
