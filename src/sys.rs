//! The system calls std lacks: the only `unsafe` code, one wrapper each, with the call's own name.
//!
//! A wrapper turns -1 into the `io::Error` of errno and decides nothing: no retries, no defaults.
//! Linux only; the numbers below are those of the generic kernel ABI (x86, Arm, RISC-V, POWER).

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_short, c_uint, c_ulong, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

#[cfg(not(target_os = "linux"))]
compile_error!("socksd calls Linux system calls by their Linux numbers");

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

/// bits/resource.h `struct rlimit`: of 64 bits in musl, of a long in glibc.
#[repr(C)]
struct Rlimit {
    cur: u64,
    max: u64,
}
const _: () = assert!(cfg!(target_env = "musl") || size_of::<c_ulong>() == 8);
const RLIMIT_NOFILE: c_int = 7;

/// bits/pthreadtypes.h: 36 to 64 octets in glibc and musl.
#[repr(C)]
struct PthreadAttr([u64; 16]);
const _: () = assert!(size_of::<PthreadAttr>() >= 64);

/// bits/types/__sigset_t.h: 1024 bits in glibc and musl alike.
#[repr(C)]
struct SigSet([u64; 16]);
const _: () = assert!(size_of::<SigSet>() == 128);

/// asm-generic/fcntl.h: calls on the open file never wait.
pub const O_NONBLOCK: i32 = 0o4000;
/// asm-generic/fcntl.h: a terminal that is opened does not become the controlling one.
pub const O_NOCTTY: i32 = 0o400;
/// asm-generic/fcntl.h: what is opened is only a place, neither read nor written.
pub const O_PATH: i32 = 0o10_000_000;

/// bits/signum-arch.h: a file grew past RLIMIT_FSIZE.
pub const SIGXFSZ: i32 = 25;
/// bits/signum-generic.h: terminate.
pub const SIGTERM: i32 = 15;
/// bits/signum-generic.h: interrupt from the terminal.
pub const SIGINT: i32 = 2;
/// A user-defined signal, signal(7).
pub const SIGUSR1: i32 = 10;
/// bits/signum-generic.h: the terminal is gone.
pub const SIGHUP: i32 = 1;
/// bits/signum-generic.h: quit from the terminal.
pub const SIGQUIT: i32 = 3;
/// asm-generic/signal.h: stop from the terminal.
pub const SIGTSTP: i32 = 20;
const SIG_BLOCK: c_int = 0;

/// time.h `struct timespec` as clock_gettime has it that is not redirected to one of 64 bits.
#[repr(C)]
struct Timespec {
    sec: c_long,
    nsec: c_long,
}
const _: () = assert!(size_of::<Timespec>() == 2 * size_of::<c_long>());
const CLOCK_MONOTONIC: c_int = 1;

/// pwd.h `struct passwd`.
#[repr(C)]
struct Passwd {
    name: *mut c_char,
    passwd: *mut c_char,
    uid: c_uint,
    gid: c_uint,
    gecos: *mut c_char,
    dir: *mut c_char,
    shell: *mut c_char,
}
const _: () = assert!(size_of::<Passwd>() == 5 * size_of::<usize>() + 8);

/// grp.h `struct group`.
#[repr(C)]
struct Group {
    name: *mut c_char,
    passwd: *mut c_char,
    gid: c_uint,
    mem: *mut *mut c_char,
}
const _: () = assert!(size_of::<Group>() == 4 * size_of::<usize>());

/// Octets for the texts of a user or a group, which has all its members: tens of thousands.
const ENTRY_OCTETS: usize = 1 << 20;

/// linux/landlock.h `struct landlock_ruleset_attr`, its first member: all of it in version 1.
#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
}
const _: () = assert!(size_of::<RulesetAttr>() == 8);

/// linux/landlock.h `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: c_int,
}
const _: () = assert!(size_of::<PathBeneathAttr>() == 12);

// asm-generic/unistd.h
const SYS_LANDLOCK_CREATE_RULESET: c_long = 444;
const SYS_LANDLOCK_ADD_RULE: c_long = 445;
const SYS_LANDLOCK_RESTRICT_SELF: c_long = 446;

/// linux/landlock.h: open a file to write.
pub const LANDLOCK_ACCESS_FS_WRITE_FILE: u64 = 1 << 1;
/// linux/landlock.h: open a file to read.
pub const LANDLOCK_ACCESS_FS_READ_FILE: u64 = 1 << 2;
/// linux/landlock.h: list a directory.
pub const LANDLOCK_ACCESS_FS_READ_DIR: u64 = 1 << 3;
/// linux/landlock.h: remove a file.
pub const LANDLOCK_ACCESS_FS_REMOVE_FILE: u64 = 1 << 5;
/// linux/landlock.h: make a regular file.
pub const LANDLOCK_ACCESS_FS_MAKE_REG: u64 = 1 << 8;

/// bits/termios-struct.h `struct termios`: the settings of a terminal.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Termios {
    iflag: c_uint,
    oflag: c_uint,
    cflag: c_uint,
    lflag: c_uint,
    /// c_line, c_cc, c_ispeed and c_ospeed, in whatever order.
    rest: [c_uint; 11],
}
const _: () = assert!(size_of::<Termios>() == 60);
const ECHO: c_uint = 0o10;
const TCSAFLUSH: c_int = 2;

/// crypt.h `struct crypt_data`: 32,768 octets in libxcrypt, 260 in musl; crypt_r gets the largest.
/// The alignment is that of any scalar or vector libcrypt may place in it.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct CryptChunk([u8; 64]);
const CRYPT_DATA_CHUNKS: usize = 512;
const _: () = assert!(CRYPT_DATA_CHUNKS * size_of::<CryptChunk>() == 32_768);

#[cfg_attr(target_env = "gnu", link(name = "crypt"))]
unsafe extern "C" {
    // crypt(3)
    fn crypt_r(phrase: *const c_char, setting: *const c_char, data: *mut c_void) -> *mut c_char;
}

unsafe extern "C" {
    // socket(2), bind(2), connect(2), listen(2)
    safe fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    #[link_name = "shutdown"]
    safe fn c_shutdown(fd: c_int, how: c_int) -> c_int;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    // send(2), splice(2)
    fn send(fd: c_int, octets: *const c_void, len: usize, flags: c_int) -> isize;
    #[link_name = "splice"]
    fn c_splice(
        from: c_int,
        from_offset: *mut i64,
        to: c_int,
        to_offset: *mut i64,
        len: usize,
        flags: c_uint,
    ) -> isize;
    safe fn dup2(old: c_int, new: c_int) -> c_int;
    #[link_name = "umask"]
    safe fn c_umask(mask: c_uint) -> c_uint;
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
    // clock_gettime(3)
    fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
    // poll(2)
    #[link_name = "poll"]
    fn c_poll(fds: *mut PollFd<'_>, nfds: c_ulong, timeout: c_int) -> c_int;
    // getrlimit(2)
    fn getrlimit(resource: c_int, rlim: *mut Rlimit) -> c_int;
    fn setrlimit(resource: c_int, rlim: *const Rlimit) -> c_int;
    // getpwnam(3), getgrnam(3)
    fn getpwnam_r(
        name: *const c_char,
        entry: *mut Passwd,
        texts: *mut c_char,
        len: usize,
        result: *mut *mut Passwd,
    ) -> c_int;
    fn getpwuid_r(
        uid: c_uint,
        entry: *mut Passwd,
        texts: *mut c_char,
        len: usize,
        result: *mut *mut Passwd,
    ) -> c_int;
    fn getgrnam_r(
        name: *const c_char,
        entry: *mut Group,
        texts: *mut c_char,
        len: usize,
        result: *mut *mut Group,
    ) -> c_int;
    // setgroups(2), setgid(2), setuid(2), getresuid(2)
    #[link_name = "setgroups"]
    fn c_setgroups(len: usize, gids: *const c_uint) -> c_int;
    #[link_name = "setgid"]
    safe fn c_setgid(gid: c_uint) -> c_int;
    #[link_name = "setuid"]
    safe fn c_setuid(uid: c_uint) -> c_int;
    #[link_name = "getresuid"]
    fn c_getresuid(real: *mut c_uint, effective: *mut c_uint, saved: *mut c_uint) -> c_int;
    #[link_name = "getresgid"]
    fn c_getresgid(real: *mut c_uint, effective: *mut c_uint, saved: *mut c_uint) -> c_int;
    // prctl(2), syscall(2)
    fn prctl(option: c_int, ...) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    // termios(3)
    #[link_name = "tcgetattr"]
    fn c_tcgetattr(fd: c_int, termios: *mut Termios) -> c_int;
    #[link_name = "tcsetattr"]
    fn c_tcsetattr(fd: c_int, actions: c_int, termios: *const Termios) -> c_int;
    // madvise(2)
    fn madvise(begin: *mut c_void, octets: usize, advice: c_int) -> c_int;
    // malloc_trim(3)
    #[cfg(target_env = "gnu")]
    #[link_name = "malloc_trim"]
    safe fn c_malloc_trim(pad: usize) -> c_int;
    // pthread_create(3)
    fn pthread_attr_init(attr: *mut PthreadAttr) -> c_int;
    fn pthread_attr_setstacksize(attr: *mut PthreadAttr, octets: usize) -> c_int;
    fn pthread_attr_setdetachstate(attr: *mut PthreadAttr, state: c_int) -> c_int;
    #[link_name = "pthread_create"]
    fn c_pthread_create(
        thread: *mut c_ulong,
        attr: *const PthreadAttr,
        start: extern "C" fn(*mut c_void) -> *mut c_void,
        arg: *mut c_void,
    ) -> c_int;
    // sigsetops(3), pthread_sigmask(3), sigwait(3)
    fn sigemptyset(set: *mut SigSet) -> c_int;
    fn sigaddset(set: *mut SigSet, signum: c_int) -> c_int;
    fn pthread_sigmask(how: c_int, set: *const SigSet, old: *mut SigSet) -> c_int;
    #[link_name = "sigwait"]
    fn c_sigwait(set: *const SigSet, signum: *mut c_int) -> c_int;
}

fn cvt(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// One descriptor for [`poll`]: what to wait for, and what came.
#[repr(C)]
#[derive(Debug)]
pub struct PollFd<'fd> {
    fd: BorrowedFd<'fd>,
    events: c_short,
    revents: c_short,
}
const _: () = assert!(size_of::<PollFd<'_>>() == 8);

/// There is something to read, or the end of it.
pub const POLLIN: i16 = 0x001;
/// There is room to write.
pub const POLLOUT: i16 = 0x004;
/// An error is pending; always reported.
pub const POLLERR: i16 = 0x008;
/// The peer has closed its sending side (or everything).
pub const POLLRDHUP: i16 = 0x2000;

impl<'fd> PollFd<'fd> {
    /// Waits for `events` on `fd`.
    pub fn new(fd: &'fd impl AsFd, events: i16) -> Self {
        Self { fd: fd.as_fd(), events, revents: 0 }
    }

    /// Whether any of `events` came at the last [`poll`].
    #[must_use]
    pub fn has(&self, events: i16) -> bool {
        self.revents & events != 0
    }
}

/// Waits until one of `fds` is ready or `timeout` is over (`None`: for ever; rounded up to a
/// millisecond); returns how many are ready. poll(2).
///
/// # Errors
/// As poll(2); EINTR can come after the process was stopped and continued.
pub fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let millis = match timeout {
        None => -1,
        Some(timeout) => {
            c_int::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX)
        }
    };
    let nfds = c_ulong::try_from(fds.len()).map_err(io::Error::other)?;
    // SAFETY: `fds` points to `nfds` structures laid out as struct pollfd (BorrowedFd is
    // transparent over an int), borrowed mutably for the length of the call.
    let ready = cvt(unsafe { c_poll(fds.as_mut_ptr(), nfds, millis) })?;
    usize::try_from(ready).map_err(io::Error::other)
}

/// Makes a TCP socket of the family of `addr`, non-blocking and close-on-exec. socket(2).
///
/// # Errors
/// EAFNOSUPPORT without that family, EMFILE and ENFILE without descriptors.
pub fn tcp_socket(addr: SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AF_INET } else { AF_INET6 };
    let kind = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
    let fd = cvt(socket(c_int::from(family), kind, IPPROTO_TCP))?;
    // SAFETY: `fd` was just returned by socket(2), so it is open and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

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
/// EINPROGRESS where a non-blocking socket has to wait; else as connect(2).
pub fn connect_socket(fd: &impl AsFd, addr: SocketAddr) -> io::Result<()> {
    with_sockaddr(fd.as_fd(), addr, connect)
}

/// Whether `error` says that a non-blocking connect is under way (EINPROGRESS).
#[must_use]
pub fn is_in_progress(error: &io::Error) -> bool {
    const EINPROGRESS: i32 = 115;
    error.raw_os_error() == Some(EINPROGRESS)
}

/// Whether `error` says that the process (EMFILE) or the system (ENFILE) is out of descriptors.
#[must_use]
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

/// Whether `error` condemns the descriptor itself (EBADF, EINVAL, ENOTSOCK, EFAULT):
/// the same call can never succeed again.
#[must_use]
pub fn is_bad_descriptor(error: &io::Error) -> bool {
    const EBADF: i32 = 9;
    const EFAULT: i32 = 14;
    const EINVAL: i32 = 22;
    const ENOTSOCK: i32 = 88;
    matches!(error.raw_os_error(), Some(EBADF | EFAULT | EINVAL | ENOTSOCK))
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

/// Turns a bound socket into a listening one, or sets the backlog of one that listens. listen(2).
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

/// SO_ATTACH_FILTER, socket(7), with a filter that drops the first segment of every new connection.
/// Those that are on their way already come through; the others try again a second later.
///
/// # Errors
/// As setsockopt(2).
pub fn drop_new_connections(listener: &impl AsFd) -> io::Result<()> {
    /// linux/filter.h `struct sock_filter`: what to do, how far to jump if true and if false, and
    /// the operand.
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

/// SO_OOBINLINE, socket(7): an urgent octet is read with the others, in its place.
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

/// IP_BIND_ADDRESS_NO_PORT, ip(7): a bind to port 0 takes its port only when connecting, so that
/// ports can be shared between destinations. Serves IPv6 sockets as well.
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

/// SO_LINGER with a time of 0, socket(7): closing sends a reset and drops what is unsent.
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

/// Ends both directions of a socket; on Linux a listening one then fails to accept. shutdown(2).
///
/// # Errors
/// As shutdown(2).
pub fn shutdown(fd: &impl AsFd) -> io::Result<()> {
    const SHUT_RDWR: c_int = 2;
    cvt(c_shutdown(fd.as_fd().as_raw_fd(), SHUT_RDWR)).map(drop)
}

/// Takes a descriptor by its number that this process was started with, and keeps it from programs
/// started by this one: FD_CLOEXEC, fcntl(2).
///
/// # Errors
/// EBADF where it is not open, was not left open for this process, as is so the second time, or is
/// 0, 1 or 2, which nobody owns.
pub fn take_fd(number: i32) -> io::Result<OwnedFd> {
    const EBADF: i32 = 9;
    const F_GETFD: c_int = 1;
    const F_SETFD: c_int = 2;
    const FD_CLOEXEC: c_int = 1;
    // SAFETY: fcntl(2) with F_GETFD takes nothing more and touches no memory.
    let flags = cvt(unsafe { fcntl(number, F_GETFD) })?;
    if number <= 2 || flags & FD_CLOEXEC != 0 {
        return Err(io::Error::from_raw_os_error(EBADF));
    }
    // SAFETY: fcntl(2) with F_SETFD takes an int and touches no memory.
    cvt(unsafe { fcntl(number, F_SETFD, FD_CLOEXEC) })?;
    // SAFETY: the descriptor is open, as fcntl(2) has just told. Nobody else owns it: std, this
    // module and the libraries open all others than 0, 1 and 2 with FD_CLOEXEC, and it was without.
    // Nobody can take it a second time, since it is with it from now on.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Has a pipe hold `octets`, rounded up to pages. F_SETPIPE_SZ, fcntl(2).
///
/// # Errors
/// EPERM above the limit of the system, or where the user has too many pipes.
pub fn set_pipe_size(pipe: &impl AsFd, octets: usize) -> io::Result<()> {
    const F_SETPIPE_SZ: c_int = 1_031;
    let octets = c_int::try_from(octets).map_err(io::Error::other)?;
    // SAFETY: the descriptor is borrowed, so open; the call takes an int and touches no memory.
    cvt(unsafe { fcntl(pipe.as_fd().as_raw_fd(), F_SETPIPE_SZ, octets) }).map(|_| ())
}

/// How many octets a pipe holds. F_GETPIPE_SZ, fcntl(2).
///
/// # Errors
/// EBADF for what is no pipe.
pub fn pipe_size(pipe: &impl AsFd) -> io::Result<usize> {
    const F_GETPIPE_SZ: c_int = 1_032;
    // SAFETY: the descriptor is borrowed, so open; the call takes no argument.
    let size = cvt(unsafe { fcntl(pipe.as_fd().as_raw_fd(), F_GETPIPE_SZ) })?;
    usize::try_from(size).map_err(io::Error::other)
}

/// Moves up to `octets` from one descriptor to another, at least one of which is a pipe, without
/// copying them; returns how many. 0 is the end of input, or an urgent octet comes next. splice(2).
///
/// # Errors
/// EINVAL where neither is a pipe, or one cannot be spliced; else as read(2) and write(2).
pub fn splice(from: &impl AsFd, to: &impl AsFd, octets: usize) -> io::Result<usize> {
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    let (null, flags) = (std::ptr::null_mut(), 0);
    // SAFETY: both descriptors are borrowed, so open; without offsets the call touches no memory of
    // this process.
    let moved = unsafe { c_splice(from, null, to, null, octets, flags) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// Writes to a socket what it takes at once; returns how many octets that were. send(2) with
/// MSG_DONTWAIT, and with MSG_NOSIGNAL.
///
/// # Errors
/// EAGAIN where it takes nothing now; else as send(2).
pub fn send_dontwait(socket: &impl AsFd, octets: &[u8]) -> io::Result<usize> {
    const MSG_DONTWAIT: c_int = 0x40;
    const MSG_NOSIGNAL: c_int = 0x4000;
    let (fd, flags) = (socket.as_fd().as_raw_fd(), MSG_DONTWAIT | MSG_NOSIGNAL);
    // SAFETY: the descriptor is borrowed, so open; `octets` are as many as told, and only read.
    let sent = unsafe { send(fd, octets.as_ptr().cast(), octets.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Has `number`, one of 0, 1 and 2, stand for what `fd` is. dup2(2).
///
/// # Errors
/// As dup2(2); EINVAL for another number.
pub fn replace_fd(fd: &impl AsFd, number: i32) -> io::Result<()> {
    if !(0..=2).contains(&number) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Nobody owns the standard descriptors, so that none is pulled away from under anybody.
    cvt(dup2(fd.as_fd().as_raw_fd(), number)).map(drop)
}

/// Sets the mode bits that new files do not get; returns those before. umask(2).
pub fn umask(mask: u32) -> u32 {
    c_umask(mask)
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
    // tcpi_state is the first octet of struct tcp_info; the kernel fills as many as are asked for.
    let mut state = 0_u8;
    let mut len: c_uint = 1;
    let fd = fd.as_fd().as_raw_fd();
    let value = (&raw mut state).cast();
    // SAFETY: `fd` is borrowed, so open; `value` has room for the one octet that `len` allows.
    cvt(unsafe { getsockopt(fd, IPPROTO_TCP, TCP_INFO, value, &raw mut len) })?;
    Ok(state == TCP_CLOSE)
}

/// The soft and the hard limit on open descriptors. getrlimit(2).
///
/// # Errors
/// As getrlimit(2).
pub fn getrlimit_nofile() -> io::Result<(u64, u64)> {
    let mut limit = Rlimit { cur: 0, max: 0 };
    // SAFETY: `limit` is a struct rlimit the call may fill.
    cvt(unsafe { getrlimit(RLIMIT_NOFILE, &raw mut limit) })?;
    Ok((limit.cur, limit.max))
}

/// Sets the soft and the hard limit on open descriptors. setrlimit(2).
///
/// # Errors
/// EPERM for raising the hard limit without privilege.
pub fn setrlimit_nofile(soft: u64, hard: u64) -> io::Result<()> {
    let limit = Rlimit { cur: soft, max: hard };
    // SAFETY: `limit` is a struct rlimit, which the call only reads.
    cvt(unsafe { setrlimit(RLIMIT_NOFILE, &raw const limit) }).map(drop)
}

/// What CLOCK_MONOTONIC tells. clock_gettime(3).
///
/// # Errors
/// As clock_gettime(3).
pub fn clock_gettime_monotonic() -> io::Result<Duration> {
    let mut time = Timespec { sec: 0, nsec: 0 };
    // SAFETY: `time` is a struct timespec the call may fill.
    cvt(unsafe { clock_gettime(CLOCK_MONOTONIC, &raw mut time) })?;
    let sec = u64::try_from(time.sec).map_err(io::Error::other)?;
    let nsec = u32::try_from(time.nsec).map_err(io::Error::other)?;
    Ok(Duration::new(sec, nsec))
}

/// An entry that `call` finds in the database of users or groups. Its texts are gone.
fn entry<T>(
    call: impl FnOnce(*mut T, *mut c_char, usize, *mut *mut T) -> c_int,
) -> io::Result<Option<T>> {
    // What some C libraries say instead of finding nothing.
    const ENOENT: c_int = 2;
    const ESRCH: c_int = 3;
    let mut entry = MaybeUninit::uninit();
    let mut texts = vec![0; ENTRY_OCTETS];
    let mut result = std::ptr::null_mut();
    match call(entry.as_mut_ptr(), texts.as_mut_ptr(), texts.len(), &raw mut result) {
        0 | ENOENT | ESRCH if result.is_null() => Ok(None),
        // SAFETY: a result that is not null points to the entry, which the call has then filled.
        0 => Ok(Some(unsafe { entry.assume_init() })),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The number of the user `name` and that of its primary group, if there is one. getpwnam_r(3).
///
/// # Errors
/// As getpwnam_r(3); EINVAL for a name with a NUL.
pub fn getpwnam(name: &str) -> io::Result<Option<(u32, u32)>> {
    let name = CString::new(name)?;
    let found = entry(|entry, texts, len, result| {
        // SAFETY: `name` ends in NUL; the call fills `entry`, `len` octets of `texts` and `result`,
        // all of which outlive it.
        unsafe { getpwnam_r(name.as_ptr(), entry, texts, len, result) }
    })?;
    Ok(found.map(|Passwd { uid, gid, .. }| (uid, gid)))
}

/// The number of the primary group of user `uid`, if there is one. getpwuid_r(3).
///
/// # Errors
/// As getpwuid_r(3).
pub fn getpwuid(uid: u32) -> io::Result<Option<u32>> {
    let found = entry(|entry, texts, len, result| {
        // SAFETY: the call fills `entry`, `len` octets of `texts` and `result`, which outlive it.
        unsafe { getpwuid_r(uid, entry, texts, len, result) }
    })?;
    Ok(found.map(|Passwd { gid, .. }| gid))
}

/// The number of the group `name`, if there is one. getgrnam_r(3).
///
/// # Errors
/// As getgrnam_r(3); EINVAL for a name with a NUL.
pub fn getgrnam(name: &str) -> io::Result<Option<u32>> {
    let name = CString::new(name)?;
    let found = entry(|entry, texts, len, result| {
        // SAFETY: `name` ends in NUL; the call fills `entry`, `len` octets of `texts` and `result`,
        // all of which outlive it.
        unsafe { getgrnam_r(name.as_ptr(), entry, texts, len, result) }
    })?;
    Ok(found.map(|Group { gid, .. }| gid))
}

/// Has the process be in the groups `gids` besides its own. setgroups(2).
///
/// # Errors
/// EPERM without privilege, or in a user namespace that forbids it.
pub fn setgroups(gids: &[u32]) -> io::Result<()> {
    // SAFETY: `gids` are as many numbers as told, which the call only reads.
    cvt(unsafe { c_setgroups(gids.len(), gids.as_ptr()) }).map(drop)
}

/// Sets the group of the process; with privilege the real, the effective and the saved one.
/// setgid(2).
///
/// # Errors
/// EPERM without privilege, EINVAL for a number this user namespace lacks.
pub fn setgid(gid: u32) -> io::Result<()> {
    cvt(c_setgid(gid)).map(drop)
}

/// Sets the user of the process; with privilege the real, the effective and the saved one.
/// setuid(2).
///
/// # Errors
/// EPERM without privilege, EINVAL for a number this user namespace lacks.
pub fn setuid(uid: u32) -> io::Result<()> {
    cvt(c_setuid(uid)).map(drop)
}

/// The real, the effective and the saved user of the process. getresuid(2).
///
/// # Errors
/// None that getresuid(2) knows of.
pub fn getresuid() -> io::Result<[u32; 3]> {
    let [mut real, mut effective, mut saved] = [0; 3];
    // SAFETY: the call may fill the three numbers.
    cvt(unsafe { c_getresuid(&raw mut real, &raw mut effective, &raw mut saved) })?;
    Ok([real, effective, saved])
}

/// The real, the effective and the saved group of the process. getresgid(2).
///
/// # Errors
/// None that getresgid(2) knows of.
pub fn getresgid() -> io::Result<[u32; 3]> {
    let [mut real, mut effective, mut saved] = [0; 3];
    // SAFETY: the call may fill the three numbers.
    cvt(unsafe { c_getresgid(&raw mut real, &raw mut effective, &raw mut saved) })?;
    Ok([real, effective, saved])
}

/// Has no program that this thread, or one it starts, executes gain privileges.
/// PR_SET_NO_NEW_PRIVS, prctl(2).
///
/// # Errors
/// As prctl(2).
pub fn prctl_set_no_new_privs() -> io::Result<()> {
    const PR_SET_NO_NEW_PRIVS: c_int = 38;
    let (on, unused): (c_ulong, c_ulong) = (1, 0);
    // SAFETY: with this option prctl(2) takes numbers only.
    cvt(unsafe { prctl(PR_SET_NO_NEW_PRIVS, on, unused, unused, unused) }).map(drop)
}

fn cvt_long(result: c_long) -> io::Result<c_int> {
    cvt(c_int::try_from(result).map_err(io::Error::other)?)
}

/// The version of Landlock that the kernel has, from 1. landlock_create_ruleset(2).
///
/// # Errors
/// ENOSYS or EOPNOTSUPP where it has none.
pub fn landlock_version() -> io::Result<i32> {
    const LANDLOCK_CREATE_RULESET_VERSION: c_ulong = 1;
    let (null, size): (*const c_void, c_ulong) = (std::ptr::null(), 0);
    // SAFETY: with this flag the call takes no memory.
    cvt_long(unsafe {
        syscall(SYS_LANDLOCK_CREATE_RULESET, null, size, LANDLOCK_CREATE_RULESET_VERSION)
    })
}

/// A set of rules that forbids the accesses to the file system in `handled` unless a rule allows
/// them. landlock_create_ruleset(2).
///
/// # Errors
/// EINVAL for an access the kernel does not know.
pub fn landlock_create_ruleset(handled: u64) -> io::Result<OwnedFd> {
    let attr = RulesetAttr { handled_access_fs: handled };
    let (size, flags): (usize, c_ulong) = (size_of::<RulesetAttr>(), 0);
    // SAFETY: `attr` is a struct of the size given, which the call only reads.
    let result = unsafe { syscall(SYS_LANDLOCK_CREATE_RULESET, &raw const attr, size, flags) };
    let fd = cvt_long(result)?;
    // SAFETY: `fd` was just returned, so it is open and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds a rule that allows `allowed` for the file `place`, or for all beneath it if it is a
/// directory. landlock_add_rule(2).
///
/// # Errors
/// EINVAL for an access that was not handled, or that only a directory can have; EBADFD for what is
/// in no file system, such as a pipe.
pub fn landlock_add_path(ruleset: &OwnedFd, allowed: u64, place: &impl AsFd) -> io::Result<()> {
    const LANDLOCK_RULE_PATH_BENEATH: c_ulong = 1;
    let parent_fd = place.as_fd().as_raw_fd();
    let attr = PathBeneathAttr { allowed_access: allowed, parent_fd };
    let (attr, flags): (_, c_ulong) = (&raw const attr, 0);
    let (number, kind) = (SYS_LANDLOCK_ADD_RULE, LANDLOCK_RULE_PATH_BENEATH);
    // SAFETY: both descriptors are borrowed, so open; `attr` is the struct of this kind of rule,
    // which the call only reads.
    cvt_long(unsafe { syscall(number, ruleset.as_raw_fd(), kind, attr, flags) }).map(drop)
}

/// Holds this thread, and those it starts from now on, to `ruleset` for ever.
/// landlock_restrict_self(2).
///
/// # Errors
/// EPERM where programs may still gain privileges, E2BIG where it is held to 16 sets already.
pub fn landlock_restrict_self(ruleset: &OwnedFd) -> io::Result<()> {
    let flags: c_ulong = 0;
    // SAFETY: the descriptor is borrowed, so open; the call takes no memory.
    cvt_long(unsafe { syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset.as_raw_fd(), flags) }).map(drop)
}

impl Termios {
    /// The same, but what is typed is not shown.
    #[must_use]
    pub fn without_echo(mut self) -> Self {
        self.lflag &= !ECHO;
        self
    }
}

/// Reads the settings of a terminal. tcgetattr(3).
///
/// # Errors
/// ENOTTY where `fd` is no terminal.
pub fn tcgetattr(fd: &impl AsFd) -> io::Result<Termios> {
    let mut termios = Termios { iflag: 0, oflag: 0, cflag: 0, lflag: 0, rest: [0; 11] };
    // SAFETY: `fd` is borrowed, so open; `termios` is a struct termios the call may fill.
    cvt(unsafe { c_tcgetattr(fd.as_fd().as_raw_fd(), &raw mut termios) })?;
    Ok(termios)
}

/// Sets a terminal as tcsetattr(3) does with TCSAFLUSH: once its output is out, and dropping input
/// that nobody has read.
///
/// # Errors
/// ENOTTY where `fd` is no terminal, EIO where it is that of others.
pub fn tcsetattr_flush(fd: &impl AsFd, termios: &Termios) -> io::Result<()> {
    // SAFETY: `fd` is borrowed, so open; `termios` is a struct termios, which the call only reads.
    cvt(unsafe { c_tcsetattr(fd.as_fd().as_raw_fd(), TCSAFLUSH, termios) }).map(drop)
}

/// Hashes `phrase` with the method, cost and salt of `setting`, which may be a whole hash; returns
/// the hash. crypt_r(3).
///
/// # Errors
/// EINVAL where `setting` is of no method this libcrypt has, or either text holds a NUL.
pub fn crypt(phrase: &[u8], setting: &[u8]) -> io::Result<Vec<u8>> {
    let phrase = CString::new(phrase)?;
    let setting = CString::new(setting)?;
    let mut data = vec![CryptChunk([0; 64]); CRYPT_DATA_CHUNKS];
    // SAFETY: both texts end in NUL and outlive the call; `data` is zeroed, aligned, and as large
    // as the largest struct crypt_data.
    let hash = unsafe { crypt_r(phrase.as_ptr(), setting.as_ptr(), data.as_mut_ptr().cast()) };
    if hash.is_null() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: crypt_r returned a NUL-terminated text, in `data` or static, both still alive.
    let hash = unsafe { CStr::from_ptr(hash) }.to_bytes();
    // "*0" and "*1" are how libcrypt reports failure in band. musl takes a method it does not have,
    // such as $y$, for the salt of a DES hash, which does not begin as the setting does.
    let setting = setting.as_bytes();
    let method = setting.iter().skip(1).position(|&octet| octet == b'$').map_or(0, |at| at + 2);
    if hash.starts_with(b"*") || hash.get(..method) != setting.get(..method) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(hash.to_vec())
}

fn sigset(signums: &[i32]) -> io::Result<SigSet> {
    let mut set = SigSet([0; 16]);
    // SAFETY: `set` is a sigset_t the call may fill.
    cvt(unsafe { sigemptyset(&raw mut set) })?;
    for &signum in signums {
        // SAFETY: `set` was initialised by sigemptyset.
        cvt(unsafe { sigaddset(&raw mut set, signum) })?;
    }
    Ok(set)
}

/// Starts a thread with `stack` octets of stack and a guard page, detached. Unlike a thread of std it
/// has no second stack for signal handlers, which would take two more mappings and never be used.
/// pthread_create(3).
///
/// `body` must not panic: that would end the process.
///
/// # Errors
/// EAGAIN where the system gives no more threads, EINVAL for too small a stack.
pub fn pthread_create(stack: usize, body: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    struct Arg {
        stack: usize,
        body: Box<dyn FnOnce() + Send>,
    }
    extern "C" fn start(arg: *mut c_void) -> *mut c_void {
        // SAFETY: `arg` is what pthread_create was called with below, and this the only call.
        let arg = unsafe { Box::from_raw(arg.cast::<Arg>()) };
        let here = 0_u8;
        // The C library has a few KiB above this first frame.
        STACK_FLOOR.set((&raw const here).addr().saturating_sub(arg.stack / 2));
        // The box is freed at the end: a thread that frees something has a cache for that.
        (arg.body)();
        std::ptr::null_mut()
    }
    const PTHREAD_CREATE_DETACHED: c_int = 1;
    let done = |errno: c_int| match errno {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    };
    let mut attr = PthreadAttr([0; 16]);
    let attr = &raw mut attr;
    // SAFETY: `attr` has room for a pthread_attr_t, which the call fills.
    done(unsafe { pthread_attr_init(attr) })?;
    // SAFETY: `attr` has been filled by pthread_attr_init.
    done(unsafe { pthread_attr_setstacksize(attr, stack) })?;
    // SAFETY: as above.
    done(unsafe { pthread_attr_setdetachstate(attr, PTHREAD_CREATE_DETACHED) })?;
    let arg = Box::into_raw(Box::new(Arg { stack, body }));
    let mut thread: c_ulong = 0;
    // SAFETY: `thread` has room for a pthread_t, `attr` is as above, and `start` takes `arg`, which
    // is nobody else's from now on.
    let started = done(unsafe { c_pthread_create(&raw mut thread, attr, start, arg.cast()) });
    if started.is_err() {
        // SAFETY: there is no thread that could have taken it.
        drop(unsafe { Box::from_raw(arg) });
    }
    started
}

/// Gives back what the allocator keeps and nobody uses. malloc_trim(3); musl does so by itself.
pub fn malloc_trim() {
    #[cfg(target_env = "gnu")]
    c_malloc_trim(0);
}

thread_local! {
    /// An address in the stack of a thread that [`pthread_create`] has started, half of its size
    /// below its first frame; 0 in others.
    static STACK_FLOOR: Cell<usize> = const { Cell::new(0) };
}

/// Gives back the memory of this thread's stack below the frames in use, down to half of its size.
/// Does nothing on a thread that [`pthread_create`] has not started. madvise(2) with MADV_DONTNEED.
#[inline(never)]
pub fn madvise_unused_stack() {
    const MADV_DONTNEED: c_int = 4;
    // Where pages are larger, the kernel refuses what is not whole pages.
    const PAGE: usize = 4_096;
    // More than this frame, and that of the call, have below this variable.
    const MARGIN: usize = 512;
    let here = 0_u8;
    let end = (&raw const here).addr().saturating_sub(MARGIN) / PAGE * PAGE;
    let begin = match STACK_FLOOR.get().next_multiple_of(PAGE) {
        begin if (1..end).contains(&begin) => begin,
        _ => return,
    };
    let octets = end - begin;
    // SAFETY: the range is within this thread's stack, which reaches further down than the floor, and
    // below all its frames. A handler of a signal that ran on this stack would be over by now: none
    // of its frames is in the range.
    let _ = unsafe { madvise(std::ptr::without_provenance_mut(begin), octets, MADV_DONTNEED) };
}

/// Blocks `signums` in this thread and in those it starts afterwards. pthread_sigmask(3).
///
/// # Errors
/// EINVAL for a number that is no signal.
pub fn block_signals(signums: &[i32]) -> io::Result<()> {
    let set = sigset(signums)?;
    // SAFETY: `set` is initialised; the old mask is not asked for.
    let errno = unsafe { pthread_sigmask(SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}

/// Waits for one of the blocked `signums` and returns it. sigwait(3).
///
/// # Errors
/// EINVAL for a number that is no signal.
pub fn sigwait(signums: &[i32]) -> io::Result<i32> {
    let set = sigset(signums)?;
    let mut signum = 0;
    // SAFETY: `set` is initialised and `signum` an int the call may fill.
    let errno = unsafe { c_sigwait(&raw const set, &raw mut signum) };
    if errno == 0 { Ok(signum) } else { Err(io::Error::from_raw_os_error(errno)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crypt_agrees_with_openssl_passwd() {
        // openssl passwd -6 -salt saltsalt secret
        let sha512 = b"$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiO\
                       QSpT0Y77vwPZN.Pq.H91p5hVO1";
        assert_eq!(crypt(b"secret", sha512).unwrap(), sha512);
        assert_ne!(crypt(b"Secret", sha512).unwrap(), sha512);
    }

    #[test]
    fn crypt_refuses_nonsense() {
        assert!(crypt(b"secret", b"$nonsense$").is_err());
        let yescrypt = crypt(b"secret", b"$y$j9T$saltsalt$");
        assert_eq!(yescrypt.is_err(), cfg!(target_env = "musl"), "musl has no yescrypt");
        assert!(crypt(b"sec\0ret", b"$6$saltsalt$").is_err());
    }

    #[test]
    fn a_fresh_socket_is_closed_and_an_unused_descriptor_limit_is_known() {
        let fd = tcp_socket("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(is_tcp_closed(&fd).unwrap());
        let (soft, hard) = getrlimit_nofile().unwrap();
        assert!(soft <= hard);
    }

    #[test]
    fn users_and_groups_are_found_by_name() {
        assert_eq!(getpwnam("root").unwrap(), Some((0, 0)));
        assert_eq!(getpwuid(0).unwrap(), Some(0));
        assert_eq!(getgrnam("root").unwrap(), Some(0));
        assert_eq!(getpwnam("no such user").unwrap(), None);
        assert_eq!(getgrnam("no such group").unwrap(), None);
        assert!(getpwnam("a\0b").is_err());
    }

    #[test]
    fn what_is_no_terminal_has_no_settings() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(tcgetattr(&reader).is_err());
    }

    #[test]
    fn what_was_not_inherited_is_not_taken() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(take_fd(reader.as_raw_fd()).is_err());
        assert!(take_fd(i32::MAX).is_err());
        assert!(take_fd(2).is_err());
    }

    #[test]
    fn the_monotonic_clock_goes_on() {
        let earlier = clock_gettime_monotonic().unwrap();
        std::thread::sleep(Duration::from_millis(1));
        assert!(earlier + Duration::from_millis(1) <= clock_gettime_monotonic().unwrap());
    }

    #[test]
    fn poll_tells_that_time_is_over() {
        let (reader, _writer) = io::pipe().unwrap();
        let mut fds = [PollFd::new(&reader, POLLIN)];
        assert_eq!(poll(&mut fds, Some(Duration::from_millis(1))).unwrap(), 0);
    }
}
