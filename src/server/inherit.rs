//! Sockets that another program has opened: descriptor 0 under inetd and its like, descriptors from
//! 3 under systemd. What they are is asked of the sockets, never guessed from addresses; the
//! addresses that wrappers put into the environment are believed only where that is asked for.

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

/// Most descriptors taken: more are a mistake.
const MOST: i32 = 256;

/// What the environment calls the address and the port of a client: tcpserver, tcpsvd and inetutils;
/// xinetd and stunnel; systemd; socat; ncat.
const PEERS: [(&str, &str); 5] = [
    ("TCPREMOTEIP", "TCPREMOTEPORT"),
    ("REMOTE_HOST", "REMOTE_PORT"),
    ("REMOTE_ADDR", "REMOTE_PORT"),
    ("SOCAT_PEERADDR", "SOCAT_PEERPORT"),
    ("NCAT_REMOTE_ADDR", "NCAT_REMOTE_PORT"),
];

/// What was inherited.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Sockets to accept clients from.
    pub listeners: Vec<Listener>,
    /// Clients that somebody has accepted.
    pub clients: Vec<Client>,
    /// Whether there was anything, be it a client who is gone already.
    pub any: bool,
}

impl Inherited {
    /// Takes the descriptors that the environment says are for this process, by LISTEN_FDS and
    /// LISTEN_PID. These may stay there: no program is started that could believe them.
    ///
    /// # Errors
    /// What is wrong with a descriptor that was passed.
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

    /// Takes descriptor 0 of a program that inetd or its like has started.
    ///
    /// # Errors
    /// That it is no stream socket, or a system call failed.
    pub fn from_inetd() -> Result<Self, String> {
        let mut inherited = Self::default();
        let wrong = |error: String| format!("descriptor 0: {error}");
        let own = io::stdin().as_fd().try_clone_to_owned();
        let own = own.map_err(|error| wrong(error.to_string()))?;
        inherited.take(own).map_err(wrong)?;
        // A connection ends when its last descriptor is closed.
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
            // Gone again before this program was started.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        relay::prepare(&stream);
        self.clients.push(Client { stream, addr });
        Ok(())
    }

    /// Has the one client come from where the environment says, as the wrapper knows better.
    ///
    /// # Errors
    /// Where there is not one client, or nothing in the environment.
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

/// Has standard error lead nowhere if it is a socket of the Internet, or the very one that descriptor
/// 0 is: inetd and systemd can give the client for both, and nothing but SOCKS may come to it. Tells
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

/// An address as wrappers write it: IPv6 perhaps in brackets or with an IPv4 address mapped.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

/// A descriptor that gives nothing and takes anything; without /dev/null, the end of a pipe.
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
    fn addresses_are_taken_as_wrappers_write_them() {
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
    fn one_file_is_itself_and_no_other() {
        let (reader, writer) = io::pipe().unwrap();
        let twin = reader.try_clone().unwrap();
        assert!(same_file(reader.as_fd(), twin.as_fd()));
        let (other, _) = io::pipe().unwrap();
        assert!(!same_file(writer.as_fd(), other.as_fd()));
    }
}
