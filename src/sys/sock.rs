//! Sockets: creation, binding, connecting, options, state and errors. Not here: calls for any
//! descriptor (`fd`), and waiting (`poll`).

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use crate::sys::cvt;

// netinet/in.h, sys/socket.h, asm-generic/socket.h, netinet/tcp.h
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOCK_STREAM: c_int = 1;
const SOCK_NONBLOCK: c_int = 0o4000;
const SOCK_CLOEXEC: c_int = 0o2_000_000;
const IPPROTO_IP: c_int = 0;
const IPPROTO_TCP: c_int = 6;
const IPPROTO_IPV6: c_int = 41;
const SOL_SOCKET: c_int = 1;
const SO_REUSEADDR: c_int = 2;
const SO_KEEPALIVE: c_int = 9;
const SO_OOBINLINE: c_int = 10;
const SO_LINGER: c_int = 13;
const SO_REUSEPORT: c_int = 15;
const SO_ATTACH_FILTER: c_int = 26;
const SO_TYPE: c_int = 3;
const SO_ACCEPTCONN: c_int = 30;
const SO_DOMAIN: c_int = 39;
const TCP_NODELAY: c_int = 1;
const TCP_KEEPIDLE: c_int = 4;
const TCP_KEEPINTVL: c_int = 5;
const TCP_KEEPCNT: c_int = 6;
const TCP_INFO: c_int = 11;
const IP_BIND_ADDRESS_NO_PORT: c_int = 24;
const IPV6_V6ONLY: c_int = 26;

/// netinet/in.h `struct sockaddr_in`.
#[repr(C)]
struct SockAddrIn {
    family: u16,
    port: [u8; 2],
    addr: [u8; 4],
    zero: [u8; 8],
}
const SOCKADDR_IN_LEN: c_uint = 16;
const _: () = assert!(size_of::<SockAddrIn>() == 16);

/// netinet/in.h `struct sockaddr_in6`.
#[repr(C)]
struct SockAddrIn6 {
    family: u16,
    port: [u8; 2],
    flowinfo: u32,
    addr: [u8; 16],
    scope_id: u32,
}
const SOCKADDR_IN6_LEN: c_uint = 28;
const _: () = assert!(size_of::<SockAddrIn6>() == 28);

/// bits/socket.h `struct linger`.
#[repr(C)]
struct Linger {
    onoff: c_int,
    linger: c_int,
}
const LINGER_LEN: c_uint = 8;
const _: () = assert!(size_of::<Linger>() == 8);

const INT_LEN: c_uint = 4;
const _: () = assert!(size_of::<c_int>() == 4);

unsafe extern "C" {
    // socket(2), bind(2), connect(2), listen(2)
    safe fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn bind(fd: c_int, addr: *const c_void, len: c_uint) -> c_int;
    fn connect(fd: c_int, addr: *const c_void, len: c_uint) -> c_int;
    #[link_name = "listen"]
    safe fn c_listen(fd: c_int, backlog: c_int) -> c_int;
    // getsockopt(2)
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: c_uint)
    -> c_int;
    fn getsockopt(
        fd: c_int,
        level: c_int,
        name: c_int,
        value: *mut c_void,
        len: *mut c_uint,
    ) -> c_int;
    // send(2), shutdown(2)
    fn send(fd: c_int, octets: *const c_void, len: usize, flags: c_int) -> isize;
    #[link_name = "shutdown"]
    safe fn c_shutdown(fd: c_int, how: c_int) -> c_int;
}

/// Makes a TCP socket of the family of `addr`, non-blocking and close-on-exec. socket(2).
///
/// # Errors
/// EAFNOSUPPORT without that family, EMFILE and ENFILE without descriptors.
pub fn tcp_socket(addr: SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AF_INET } else { AF_INET6 };
    let kind = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
    let fd = cvt(socket(c_int::from(family), kind, IPPROTO_TCP))?;
    // SAFETY: `fd` was just returned by socket(2), so it is open and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Calls bind(2) or connect(2) with `addr` as a sockaddr.
fn with_sockaddr(
    fd: BorrowedFd<'_>,
    addr: SocketAddr,
    call: unsafe extern "C" fn(c_int, *const c_void, c_uint) -> c_int,
) -> io::Result<()> {
    let port = addr.port().to_be_bytes();
    let result = match addr {
        SocketAddr::V4(v4) => {
            let raw = SockAddrIn { family: AF_INET, port, addr: v4.ip().octets(), zero: [0; 8] };
            // SAFETY: `fd` is borrowed, so open; `raw` is a sockaddr_in of the length given, which
            // bind(2) and connect(2) only read.
            unsafe { call(fd.as_raw_fd(), (&raw const raw).cast(), SOCKADDR_IN_LEN) }
        }
        SocketAddr::V6(v6) => {
            let raw = SockAddrIn6 {
                family: AF_INET6,
                port,
                flowinfo: v6.flowinfo(),
                addr: v6.ip().octets(),
                scope_id: v6.scope_id(),
            };
            // SAFETY: as above, with a sockaddr_in6.
            unsafe { call(fd.as_raw_fd(), (&raw const raw).cast(), SOCKADDR_IN6_LEN) }
        }
    };
    cvt(result).map(drop)
}

/// Binds a socket to `addr`. bind(2).
///
/// # Errors
/// EADDRINUSE, EADDRNOTAVAIL, EACCES, as bind(2).
pub fn bind_socket(fd: &impl AsFd, addr: SocketAddr) -> io::Result<()> {
    with_sockaddr(fd.as_fd(), addr, bind)
}

/// Starts to connect a socket to `addr`. connect(2).
///
/// # Errors
/// EINPROGRESS on a non-blocking socket that has to wait; else as connect(2).
pub fn connect_socket(fd: &impl AsFd, addr: SocketAddr) -> io::Result<()> {
    with_sockaddr(fd.as_fd(), addr, connect)
}

/// Whether `error` says that a non-blocking connect is under way (EINPROGRESS).
#[must_use]
pub fn is_in_progress(error: &io::Error) -> bool {
    const EINPROGRESS: i32 = 115;
    error.raw_os_error() == Some(EINPROGRESS)
}

/// Whether `error` says that the host lacks the address family (EAFNOSUPPORT).
#[must_use]
pub fn is_family_missing(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// Whether `error` says that the host lacks the address family (EAFNOSUPPORT) or that none of its
/// interfaces has the address (EADDRNOTAVAIL).
#[must_use]
pub fn is_family_or_address_missing(error: &io::Error) -> bool {
    const EADDRNOTAVAIL: i32 = 99;
    is_family_missing(error) || error.raw_os_error() == Some(EADDRNOTAVAIL)
}

/// Makes a bound socket listen, or changes the backlog of a listening one. listen(2).
///
/// # Errors
/// As listen(2).
pub fn listen(fd: &impl AsFd, backlog: i32) -> io::Result<()> {
    cvt(c_listen(fd.as_fd().as_raw_fd(), backlog)).map(drop)
}

fn set_int(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let value = (&raw const value).cast();
    // SAFETY: `fd` is borrowed, so open; `value` points to an int for the length of the call.
    cvt(unsafe { setsockopt(fd.as_raw_fd(), level, name, value, INT_LEN) }).map(drop)
}

/// SO_REUSEADDR, socket(7).
///
/// # Errors
/// As setsockopt(2).
pub fn set_reuseaddr(fd: &impl AsFd) -> io::Result<()> {
    set_int(fd.as_fd(), SOL_SOCKET, SO_REUSEADDR, 1)
}

/// SO_REUSEPORT, socket(7).
///
/// # Errors
/// As setsockopt(2).
pub fn set_reuseport(fd: &impl AsFd) -> io::Result<()> {
    set_int(fd.as_fd(), SOL_SOCKET, SO_REUSEPORT, 1)
}

/// Attaches a filter that drops the first segment of every new connection. Handshakes under way
/// complete; other clients try again a second later. SO_ATTACH_FILTER, socket(7).
///
/// # Errors
/// As setsockopt(2).
pub fn drop_new_connections(listener: &impl AsFd) -> io::Result<()> {
    /// linux/filter.h `struct sock_filter`: instruction, jump if true, jump if false, operand.
    #[repr(C)]
    struct SockFilter(u16, u8, u8, u32);
    /// linux/filter.h `struct sock_fprog`.
    #[repr(C)]
    struct SockFprog {
        len: u16,
        filter: *const SockFilter,
    }
    const LOAD_OCTET: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FLAGS_OF_TCP: u32 = 13;
    const SYN: u32 = 0x02;
    const SYN_ACK: u32 = 0x12;
    let program = [
        SockFilter(LOAD_OCTET, 0, 0, FLAGS_OF_TCP),
        SockFilter(AND, 0, 0, SYN_ACK),
        SockFilter(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter(RETURN, 0, 0, 0),
        SockFilter(RETURN, 0, 0, u32::MAX),
    ];
    let fprog = SockFprog { len: 5, filter: program.as_ptr() };
    let len = c_uint::try_from(size_of::<SockFprog>()).map_err(io::Error::other)?;
    let fd = listener.as_fd().as_raw_fd();
    // SAFETY: `fprog` is laid out as struct sock_fprog and `len` octets long, `filter` points to as
    // many instructions as it says, and the kernel has copied them on return.
    let done = unsafe {
        setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, std::ptr::from_ref(&fprog).cast(), len)
    };
    cvt(done).map(|_| ())
}

/// TCP_NODELAY, tcp(7).
///
/// # Errors
/// As setsockopt(2).
pub fn set_nodelay(fd: &impl AsFd) -> io::Result<()> {
    set_int(fd.as_fd(), IPPROTO_TCP, TCP_NODELAY, 1)
}

/// SO_OOBINLINE, socket(7): an urgent octet is read in its place among the others.
///
/// # Errors
/// As setsockopt(2).
pub fn set_oobinline(fd: &impl AsFd) -> io::Result<()> {
    set_int(fd.as_fd(), SOL_SOCKET, SO_OOBINLINE, 1)
}

/// IPV6_V6ONLY, ipv6(7).
///
/// # Errors
/// As setsockopt(2).
pub fn set_v6only(fd: &impl AsFd, on: bool) -> io::Result<()> {
    set_int(fd.as_fd(), IPPROTO_IPV6, IPV6_V6ONLY, c_int::from(on))
}

/// IP_BIND_ADDRESS_NO_PORT, ip(7): a socket bound to port 0 gets its port when it connects, so that
/// several destinations can share one. Works for IPv6 sockets as well.
///
/// # Errors
/// As setsockopt(2).
pub fn set_bind_address_no_port(fd: &impl AsFd) -> io::Result<()> {
    set_int(fd.as_fd(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
}

/// SO_KEEPALIVE with TCP_KEEPIDLE, TCP_KEEPINTVL (both in seconds) and TCP_KEEPCNT, tcp(7).
///
/// # Errors
/// As setsockopt(2).
pub fn set_keepalive(fd: &impl AsFd, idle: i32, interval: i32, count: i32) -> io::Result<()> {
    let fd = fd.as_fd();
    set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1)?;
    set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, idle)?;
    set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, interval)?;
    set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, count)
}

/// SO_LINGER with a time of 0, socket(7): closing sends a reset and discards unsent data.
///
/// # Errors
/// As setsockopt(2).
pub fn set_linger_zero(fd: &impl AsFd) -> io::Result<()> {
    let value = Linger { onoff: 1, linger: 0 };
    let value = (&raw const value).cast();
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: `fd` is borrowed, so open; `value` points to a struct linger for the length of the
    // call.
    cvt(unsafe { setsockopt(fd, SOL_SOCKET, SO_LINGER, value, LINGER_LEN) }).map(drop)
}

fn getsockopt_int(fd: BorrowedFd<'_>, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = INT_LEN;
    // SAFETY: `fd` is borrowed, so open; `value` has room for the int that `len` allows.
    let result = unsafe {
        getsockopt(fd.as_raw_fd(), SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len)
    };
    cvt(result).map(|_| value)
}

/// Whether a descriptor is a stream socket, SO_TYPE, socket(7).
///
/// # Errors
/// ENOTSOCK, or as getsockopt(2).
pub fn is_stream_socket(fd: &impl AsFd) -> io::Result<bool> {
    getsockopt_int(fd.as_fd(), SO_TYPE).map(|kind| kind == SOCK_STREAM)
}

/// Whether a socket listens, SO_ACCEPTCONN, socket(7).
///
/// # Errors
/// ENOTSOCK, or as getsockopt(2).
pub fn is_listening(fd: &impl AsFd) -> io::Result<bool> {
    getsockopt_int(fd.as_fd(), SO_ACCEPTCONN).map(|listens| listens != 0)
}

/// Whether a socket is of the UNIX domain, SO_DOMAIN, socket(7).
///
/// # Errors
/// ENOTSOCK, or as getsockopt(2).
pub fn is_unix(fd: &impl AsFd) -> io::Result<bool> {
    getsockopt_int(fd.as_fd(), SO_DOMAIN).map(|domain| domain == c_int::from(AF_UNIX))
}

/// Whether a TCP socket is in state CLOSE, by TCP_INFO, tcp(7).
///
/// # Errors
/// As getsockopt(2).
pub fn is_tcp_closed(fd: &impl AsFd) -> io::Result<bool> {
    const TCP_CLOSE: u8 = 7;
    // tcpi_state is the first octet of struct tcp_info; the kernel fills no more than `len`.
    let mut state = 0_u8;
    let mut len: c_uint = 1;
    let fd = fd.as_fd().as_raw_fd();
    let value = (&raw mut state).cast();
    // SAFETY: `fd` is borrowed, so open; `value` has room for the one octet that `len` allows.
    cvt(unsafe { getsockopt(fd, IPPROTO_TCP, TCP_INFO, value, &raw mut len) })?;
    Ok(state == TCP_CLOSE)
}

/// Shuts both directions of a socket down; accept(2) then fails on a listening one. shutdown(2).
///
/// # Errors
/// As shutdown(2).
pub fn shutdown(fd: &impl AsFd) -> io::Result<()> {
    const SHUT_RDWR: c_int = 2;
    cvt(c_shutdown(fd.as_fd().as_raw_fd(), SHUT_RDWR)).map(drop)
}

/// Sends as many of `octets` as a socket has room for, without waiting; returns their number.
/// send(2) with MSG_DONTWAIT and MSG_NOSIGNAL.
///
/// # Errors
/// EAGAIN where there is no room; else as send(2).
pub fn send_dontwait(socket: &impl AsFd, octets: &[u8]) -> io::Result<usize> {
    const MSG_DONTWAIT: c_int = 0x40;
    const MSG_NOSIGNAL: c_int = 0x4000;
    let (fd, flags) = (socket.as_fd().as_raw_fd(), MSG_DONTWAIT | MSG_NOSIGNAL);
    // SAFETY: the descriptor is borrowed, so open; `octets` has the length given and is only read.
    let sent = unsafe { send(fd, octets.as_ptr().cast(), octets.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_socket_is_closed() {
        let fd = tcp_socket("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(is_tcp_closed(&fd).unwrap());
    }
}
