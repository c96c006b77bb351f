//! Sockets that another program has opened: descriptor 0 under inetd and similar wrappers,
//! descriptors from 3 under systemd. The system is asked for their kinds, which are never guessed
//! from addresses. The addresses that wrappers put into the environment are used only on request.

use std::env;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process;

use crate::net::{Stream, canonical};
use crate::relay;
use crate::server::listeners::{Client, FileId, Listener};
use crate::sys;

/// The first descriptor that systemd passes, sd_listen_fds(3).
const FIRST: i32 = 3;

/// Maximum descriptors taken: more are a mistake.
const MOST: i32 = 256;

/// The environment variables for the address and the port of a client, of tcpserver, tcpsvd and
/// inetutils; xinetd and stunnel; systemd; socat; ncat.
const PEERS: [(&str, &str); 5] = [
    ("TCPREMOTEIP", "TCPREMOTEPORT"),
    ("REMOTE_HOST", "REMOTE_PORT"),
    ("REMOTE_ADDR", "REMOTE_PORT"),
    ("SOCAT_PEERADDR", "SOCAT_PEERPORT"),
    ("NCAT_REMOTE_ADDR", "NCAT_REMOTE_PORT"),
];

/// The inherited sockets.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Listening sockets.
    pub listeners: Vec<Listener>,
    /// Clients that another program has accepted.
    pub clients: Vec<Client>,
    /// Whether there was any socket, even that of a client that has left already.
    pub any: bool,
}

impl Inherited {
    /// Takes the descriptors that LISTEN_FDS and LISTEN_PID assign to this process. The variables
    /// stay in the environment: this process starts no program that could misread them.
    ///
    /// # Errors
    /// A message about a descriptor that cannot be used.
    pub fn from_systemd() -> Result<Self, String> {
        let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
        let (pid, count) = (number("LISTEN_PID"), number("LISTEN_FDS"));
        let mut inherited = Self::default();
        let count = count.and_then(|count| i32::try_from(count).ok()).unwrap_or_default();
        if pid == Some(process::id()) {
            for number in FIRST..FIRST.saturating_add(count.min(MOST)) {
                let wrong = |error| format!("descriptor {number} of LISTEN_FDS: {error}");
                let fd = sys::take_fd(number).map_err(|error| wrong(error.to_string()))?;
                inherited.take(fd).map_err(wrong)?;
            }
        }
        Ok(inherited)
    }

    /// Takes descriptor 0 as inetd and similar wrappers pass it.
    ///
    /// # Errors
    /// A message if it is no stream socket or a system call fails.
    pub fn from_inetd() -> Result<Self, String> {
        let mut inherited = Self::default();
        let wrong = |error: String| format!("descriptor 0: {error}");
        let own = io::stdin().as_fd().try_clone_to_owned();
        let own = own.map_err(|error| wrong(error.to_string()))?;
        inherited.take(own).map_err(wrong)?;
        // A connection ends only when its last descriptor is closed.
        let replaced = null().and_then(|null| {
            sys::replace_fd(&null, 0)?;
            sys::replace_fd(&null, 1)
        });
        replaced.map_err(|error| wrong(error.to_string()))?;
        Ok(inherited)
    }

    fn take(&mut self, fd: OwnedFd) -> Result<(), String> {
        let failed = |error: io::Error| error.to_string();
        self.any = true;
        if !sys::is_stream_socket(&fd).unwrap_or(false) {
            return Err("expected a stream socket, TCP or UNIX".into());
        }
        if sys::is_listening(&fd).map_err(failed)? {
            self.listeners.push(Listener::inherit(fd).map_err(failed)?);
            return Ok(());
        }
        let unix = sys::is_unix(&fd).map_err(failed)?;
        let stream = Stream::from(fd);
        stream.set_nonblocking(false).map_err(failed)?;
        let addr = match stream.peer_addr() {
            _ if unix => None,
            Ok(addr) => Some(canonical(addr)),
            // The client left before this program started.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        relay::prepare(&stream);
        self.clients.push(Client { stream, addr });
        Ok(())
    }

    /// Gives the one client the address from the environment, for a wrapper that knows it better
    /// than the socket.
    ///
    /// # Errors
    /// A message unless there are exactly one client and an address.
    pub fn believe_environment(&mut self) -> Result<(), String> {
        let [client] = self.clients.as_mut_slice() else {
            return Err("--peer-env: expected exactly one accepted client".into());
        };
        let peer = PEERS.iter().find_map(|(ip, port)| {
            let ip = parse_ip(&env::var(ip).ok()?)?;
            let port = env::var(port).ok().and_then(|port| port.parse().ok()).unwrap_or_default();
            Some(SocketAddr::new(ip, port))
        });
        client.addr = Some(peer.ok_or("--peer-env: no client address in the environment")?);
        Ok(())
    }
}

/// Sends standard error to /dev/null if it is an Internet socket or the same socket as descriptor
/// 0: inetd and systemd can pass the client as both, and it must get nothing but SOCKS. Returns
/// whether it did.
///
/// # Errors
/// As open(2), pipe(2) or dup2(2).
pub fn hide_stderr() -> io::Result<bool> {
    let (stdin, stderr) = (io::stdin(), io::stderr());
    let is_socket = sys::is_stream_socket(&stderr).is_ok();
    let of_internet = !sys::is_unix(&stderr).unwrap_or(true);
    let is_client = is_socket && (of_internet || same_file(stdin.as_fd(), stderr.as_fd()));
    if is_client {
        sys::replace_fd(&null()?, 2)?;
    }
    Ok(is_client)
}

/// Parses an address in the forms of the wrappers: IPv6 may have brackets or be IPv4-mapped.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

/// Opens /dev/null, or in a root directory without it the end of a closed pipe.
fn null() -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    file.or_else(|_| io::pipe().map(|(reader, _)| reader.into()))
}

fn same_file(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    let identity = |fd: BorrowedFd<'_>| {
        File::from(fd.try_clone_to_owned().ok()?).metadata().ok().map(FileId::from)
    };
    identity(a).is_some_and(|a| identity(b) == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_in_all_forms_of_the_wrappers() {
        for (text, ip) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("[0000:0000:0000:0000:0000:0000:0000:0001]", Some("::1")),
            ("::ffff:192.0.2.1", Some("192.0.2.1")),
            ("<no address>", None),
            ("client.example", None),
            ("", None),
            ("[::1", None),
        ] {
            assert_eq!(parse_ip(text), ip.map(|ip| ip.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_file_is_the_same_only_as_itself() {
        let (reader, writer) = io::pipe().unwrap();
        let twin = reader.try_clone().unwrap();
        assert!(same_file(reader.as_fd(), twin.as_fd()));
        let (other, _) = io::pipe().unwrap();
        assert!(!same_file(writer.as_fd(), other.as_fd()));
    }
}
