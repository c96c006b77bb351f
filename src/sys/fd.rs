//! Descriptors of any kind, and pipes: inheriting, replacing and splicing them, their limit and
//! errors, and the umask. Not here: sockets (`sock`), terminals (`tty`), waiting (`poll`).

use std::collections::BTreeSet;
use std::ffi::{c_int, c_uint, c_ulong};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError};

use crate::sys::cvt;

/// asm-generic/fcntl.h: no call on the file waits.
pub const O_NONBLOCK: i32 = 0o4000;
/// asm-generic/fcntl.h: an opened terminal does not become the controlling one.
pub const O_NOCTTY: i32 = 0o400;
/// asm-generic/fcntl.h: the descriptor names a file, and can neither read nor write it.
pub const O_PATH: i32 = 0o10_000_000;

/// bits/resource.h `struct rlimit`; its members are 64 bits in musl, a long in glibc.
#[repr(C)]
struct Rlimit {
    cur: u64,
    max: u64,
}
const _: () = assert!(cfg!(target_env = "musl") || size_of::<c_ulong>() == 8);
const RLIMIT_NOFILE: c_int = 7;

unsafe extern "C" {
    // fcntl(2), dup2(2), splice(2)
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    safe fn dup2(old: c_int, new: c_int) -> c_int;
    #[link_name = "splice"]
    fn c_splice(
        from: c_int,
        from_offset: *mut i64,
        to: c_int,
        to_offset: *mut i64,
        len: usize,
        flags: c_uint,
    ) -> isize;
    // eventfd(2)
    #[link_name = "eventfd"]
    safe fn c_eventfd(count: c_uint, flags: c_int) -> c_int;
    // umask(2)
    #[link_name = "umask"]
    safe fn c_umask(mask: c_uint) -> c_uint;
    // getrlimit(2)
    fn getrlimit(resource: c_int, rlim: *mut Rlimit) -> c_int;
    fn setrlimit(resource: c_int, rlim: *const Rlimit) -> c_int;
}

/// Whether `error` says that the process (EMFILE) or the system (ENFILE) is out of descriptors.
#[must_use]
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

/// Whether `error` says that a call is missing in this kernel (ENOSYS) or forbidden to this process
/// (EPERM).
#[must_use]
pub fn is_missing_or_forbidden(error: &io::Error) -> bool {
    const EPERM: i32 = 1;
    const ENOSYS: i32 = 38;
    matches!(error.raw_os_error(), Some(EPERM | ENOSYS))
}

/// Whether `error` blames the descriptor itself (EBADF, EINVAL, ENOTSOCK, EFAULT): no repetition of
/// the call can succeed.
#[must_use]
pub fn is_bad_descriptor(error: &io::Error) -> bool {
    const EBADF: i32 = 9;
    const EFAULT: i32 = 14;
    const EINVAL: i32 = 22;
    const ENOTSOCK: i32 = 88;
    matches!(error.raw_os_error(), Some(EBADF | EFAULT | EINVAL | ENOTSOCK))
}

/// The numbers that [`take_fd`] has taken. The lock keeps two threads from taking the same one.
static TAKEN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Takes ownership of an inherited descriptor by its number, and sets FD_CLOEXEC on it. Each number
/// can be taken once. fcntl(2).
///
/// # Errors
/// EBADF where the number is not open, was not inherited (it has FD_CLOEXEC), was taken before, or
/// is 0, 1 or 2, which have no owner.
pub fn take_fd(number: i32) -> io::Result<OwnedFd> {
    const EBADF: i32 = 9;
    const F_GETFD: c_int = 1;
    const F_SETFD: c_int = 2;
    const FD_CLOEXEC: c_int = 1;
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: fcntl(2) with F_GETFD takes nothing more and touches no memory.
    let flags = cvt(unsafe { fcntl(number, F_GETFD) })?;
    if number <= 2 || flags & FD_CLOEXEC != 0 || taken.contains(&number) {
        return Err(io::Error::from_raw_os_error(EBADF));
    }
    // SAFETY: fcntl(2) with F_SETFD takes an int and touches no memory.
    cvt(unsafe { fcntl(number, F_SETFD, FD_CLOEXEC) })?;
    taken.insert(number);
    // SAFETY: fcntl(2) has just found the descriptor open, and it has no owner. It was inherited:
    // all descriptors that std, this module and the C library open have FD_CLOEXEC, except 0, 1 and
    // 2. No call before this one has returned it: `taken` lists those, and has been locked since
    // before the flag was read.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes `number`, one of 0, 1 and 2, a duplicate of `fd`. dup2(2).
///
/// # Errors
/// As dup2(2); EINVAL for another number.
pub fn replace_fd(fd: &impl AsFd, number: i32) -> io::Result<()> {
    if !(0..=2).contains(&number) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // The standard descriptors have no owner that could lose its own.
    cvt(dup2(fd.as_fd().as_raw_fd(), number)).map(drop)
}

/// Sets the capacity of a pipe to `octets`, rounded up to pages. F_SETPIPE_SZ, fcntl(2).
///
/// # Errors
/// EPERM above the limit of the system, or where the pipes of the user hold too much.
pub fn set_pipe_size(pipe: &impl AsFd, octets: usize) -> io::Result<()> {
    const F_SETPIPE_SZ: c_int = 1_031;
    let octets = c_int::try_from(octets).map_err(io::Error::other)?;
    // SAFETY: the descriptor is borrowed, so open; the call takes an int and touches no memory.
    cvt(unsafe { fcntl(pipe.as_fd().as_raw_fd(), F_SETPIPE_SZ, octets) }).map(|_| ())
}

/// The capacity of a pipe in octets. F_GETPIPE_SZ, fcntl(2).
///
/// # Errors
/// EBADF where `pipe` is not a pipe.
pub fn pipe_size(pipe: &impl AsFd) -> io::Result<usize> {
    const F_GETPIPE_SZ: c_int = 1_032;
    // SAFETY: the descriptor is borrowed, so open; the call takes no argument.
    let size = cvt(unsafe { fcntl(pipe.as_fd().as_raw_fd(), F_GETPIPE_SZ) })?;
    usize::try_from(size).map_err(io::Error::other)
}

/// Moves up to `octets` from one descriptor to another, at least one of them a pipe, without
/// copying; returns the number moved. 0 means the end of input, or that an urgent octet comes next.
/// splice(2).
///
/// # Errors
/// EINVAL where neither is a pipe, or one does not support it; else as read(2) and write(2).
pub fn splice(from: &impl AsFd, to: &impl AsFd, octets: usize) -> io::Result<usize> {
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    let (null, flags) = (std::ptr::null_mut(), 0);
    // SAFETY: both descriptors are borrowed, so open; without offsets the call touches no memory of
    // this process.
    let moved = unsafe { c_splice(from, null, to, null, octets, flags) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// A counter of 0 as a descriptor, which can be read once something was written to it. eventfd(2).
///
/// # Errors
/// As eventfd(2).
pub fn eventfd() -> io::Result<OwnedFd> {
    const EFD_CLOEXEC: c_int = 0o2_000_000;
    const EFD_NONBLOCK: c_int = 0o4000;
    let fd = cvt(c_eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))?;
    // SAFETY: the call has just made the descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the mode bits that new files of the process, in all its threads, do not get; returns the
/// old ones. umask(2).
pub fn umask(mask: u32) -> u32 {
    c_umask(mask)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::thread;

    #[test]
    fn a_descriptor_that_was_not_inherited_cannot_be_taken() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(take_fd(reader.as_raw_fd()).is_err());
        assert!(take_fd(i32::MAX).is_err());
        assert!(take_fd(2).is_err());
    }

    #[test]
    fn the_limit_on_descriptors_is_known() {
        let (soft, hard) = getrlimit_nofile().unwrap();
        assert!(soft <= hard);
    }

    /// An inherited descriptor: open, without FD_CLOEXEC and without an owner.
    fn leave_open(least: i32) -> i32 {
        const F_DUPFD: c_int = 0;
        let (reader, _writer) = io::pipe().unwrap();
        // SAFETY: fcntl(2) with F_DUPFD takes an int and touches no memory.
        cvt(unsafe { fcntl(reader.as_raw_fd(), F_DUPFD, least) }).unwrap()
    }

    #[test]
    fn one_of_two_threads_takes_a_descriptor() {
        let numbers: Vec<i32> = (0..200).map(|_| leave_open(300)).collect();
        let start = Barrier::new(2);
        let take_all = || -> Vec<OwnedFd> {
            start.wait();
            numbers.iter().filter_map(|&number| take_fd(number).ok()).collect()
        };
        let (one, other) = thread::scope(|scope| {
            let other = scope.spawn(take_all);
            (take_all(), other.join().unwrap())
        });
        assert_eq!(one.len() + other.len(), numbers.len());
    }

    #[test]
    fn a_number_is_taken_once_even_if_it_is_opened_again() {
        let number = leave_open(600);
        drop(take_fd(number).unwrap());
        assert_eq!(leave_open(number), number);
        assert!(take_fd(number).is_err());
    }
}
