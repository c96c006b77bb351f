//! Listening sockets, TCP and UNIX: opens them, accepts one client, closes them. A client of either
//! is a [`Stream`]; only its address tells the two apart. The threads that accept are in
//! `server/accept.rs`.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use crate::log::Escaped;
use crate::net::{Stream, canonical};
use crate::relay;
use crate::sys;

/// Clients that the system queues for accept(2), at most net.core.somaxconn.
const BACKLOG: i32 = 4_096;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// IP address and port; the system chooses for port 0.
    Tcp(SocketAddr),
    /// The path of a UNIX socket.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", Escaped(path.as_os_str().as_encoded_bytes())),
        }
    }
}

/// A request for one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address.
    pub endpoint: Endpoint,
    /// Whether a host without this address or its family does without the listener.
    pub optional: bool,
}

impl Default for Listen {
    /// 127.0.0.1 port 1080.
    fn default() -> Self {
        Self { endpoint: Endpoint::Tcp((Ipv4Addr::LOCALHOST, 1080).into()), optional: false }
    }
}

/// How to open listeners.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// The mode of UNIX sockets, chmod(2).
    pub unix_mode: u32,
    /// Whether several processes may listen on one port, SO_REUSEPORT.
    pub reuse_port: bool,
}

/// A client that has just been accepted.
#[derive(Debug)]
pub struct Client {
    /// Its connection.
    pub stream: Stream,
    /// Its address; a client of a UNIX socket has none.
    pub addr: Option<SocketAddr>,
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// Its address.
    pub endpoint: Endpoint,
    /// Whether it was inherited: another process has it too and goes on using it.
    pub inherited: bool,
    /// The identity of a UNIX socket whose path is to be removed at the end.
    removable: Option<FileId>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Opens the listeners `wanted`, in order.
///
/// # Errors
/// A message for the first that cannot be opened.
pub fn open(wanted: &[Listen], manner: Manner) -> Result<Vec<Listener>, String> {
    let mut listeners = Vec::new();
    for Listen { endpoint, optional } in wanted {
        let socket = match endpoint {
            Endpoint::Tcp(addr) => open_tcp(*addr, wanted, manner.reuse_port).map(Socket::Tcp),
            Endpoint::Unix(path) => open_unix(path, manner.unix_mode).map(Socket::Unix),
        };
        match socket.and_then(|socket| Listener::new(socket, false)) {
            Ok(listener) => listeners.push(listener),
            Err(error) if *optional && sys::is_family_or_address_missing(&error) => {}
            Err(error) => return Err(format!("cannot listen on {endpoint}: {error}")),
        }
    }
    Ok(listeners)
}

fn open_tcp(addr: SocketAddr, all: &[Listen], reuse_port: bool) -> io::Result<TcpListener> {
    let fd = sys::tcp_socket(addr)?;
    sys::set_reuseaddr(&fd)?;
    if reuse_port {
        sys::set_reuseport(&fd)?;
    }
    if addr.is_ipv6() {
        // `::` takes IPv4 clients too, unless an IPv4 listener is to have the same port.
        let is_v4_on_port = |other: SocketAddr| other.is_ipv4() && other.port() == addr.port();
        let takes_v4 =
            |other: &Listen| matches!(other.endpoint, Endpoint::Tcp(other) if is_v4_on_port(other));
        sys::set_v6only(&fd, all.iter().any(takes_v4) && addr.port() != 0)?;
    }
    sys::bind_socket(&fd, addr)?;
    // Before the first client can connect, which inherits these settings.
    relay::prepare(&fd);
    sys::listen(&fd, BACKLOG)?;
    let listener = TcpListener::from(fd);
    listener.set_nonblocking(false)?;
    Ok(listener)
}

/// Replaces a socket on which no process listens any more; any other file is an error.
fn open_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    // A datagram socket fails at once even if a process listens, so this never waits.
    if is_socket && UnixDatagram::unbound()?.connect(path).is_err_and(refused) {
        fs::remove_file(path)?;
    }
    // A later chmod(2) would leave a moment in which other users can connect.
    let umask = sys::umask(0o777 & !mode);
    let bound = UnixListener::bind(path);
    sys::umask(umask);
    let listener = bound?;
    sys::listen(&listener, BACKLOG)?;
    Ok(listener)
}

impl Listener {
    fn new(socket: Socket, inherited: bool) -> io::Result<Self> {
        let endpoint = match &socket {
            Socket::Tcp(listener) => Endpoint::Tcp(listener.local_addr()?),
            Socket::Unix(listener) => {
                let addr = listener.local_addr()?;
                Endpoint::Unix(addr.as_pathname().unwrap_or(Path::new("")).to_owned())
            }
        };
        let removable = match &endpoint {
            Endpoint::Unix(path) if !inherited => identity(path),
            _ => None,
        };
        Ok(Self { socket, endpoint, inherited, removable })
    }

    /// Takes over a listening socket.
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn inherit(fd: OwnedFd) -> io::Result<Self> {
        let socket = if sys::is_unix(&fd)? {
            Socket::Unix(UnixListener::from(fd))
        } else {
            Socket::Tcp(TcpListener::from(fd))
        };
        let listener = Self::new(socket, true)?;
        // Another process may accept the client first.
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Its address, unless it is a UNIX socket.
    #[must_use]
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        match &self.endpoint {
            Endpoint::Tcp(addr) => Some(canonical(*addr)),
            Endpoint::Unix(_) => None,
        }
    }

    /// Accepts one client.
    ///
    /// # Errors
    /// As accept(2).
    pub fn accept(&self) -> io::Result<Client> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, addr) = listener.accept()?;
                // The options of an inherited listener belong to the other process.
                if self.inherited {
                    relay::prepare(&stream);
                }
                Ok(Client { stream, addr: Some(canonical(addr)) })
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                Ok(Client { stream: Stream::from(OwnedFd::from(stream)), addr: None })
            }
        }
    }

    /// Makes accepting fail instead of wait, or wait again.
    ///
    /// # Errors
    /// As fcntl(2).
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(listener) => listener.set_nonblocking(on),
            Socket::Unix(listener) => listener.set_nonblocking(on),
        }
    }

    /// The path of a UNIX socket that this process has made and will remove.
    #[must_use]
    pub fn own_path(&self) -> Option<&Path> {
        match &self.endpoint {
            Endpoint::Unix(path) if self.removable.is_some() => Some(path),
            _ => None,
        }
    }

    /// Removes that path, unless another process has replaced it.
    pub fn remove(&self) {
        if let Some(path) = self.own_path()
            && identity(path) == self.removable
        {
            // It may have been removed already.
            let _ = fs::remove_file(path);
        }
    }

    /// Keeps the path from being removed: below a new root directory it names another file.
    pub fn keep_path(&mut self) {
        self.removable = None;
    }
}

/// The identity of a file, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl From<Metadata> for FileId {
    fn from(found: Metadata) -> Self {
        Self { device: found.dev(), inode: found.ino() }
    }
}

fn identity(path: &Path) -> Option<FileId> {
    fs::symlink_metadata(path).ok().map(FileId::from)
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove();
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_fd(),
            Socket::Unix(listener) => listener.as_fd(),
        }
    }
}
