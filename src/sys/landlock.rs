//! Landlock, landlock(7); the C library has no wrappers for it either. Not here: the files that the
//! server needs (`crate::server::landlock`).

use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use crate::sys::cvt;

/// linux/landlock.h `struct landlock_ruleset_attr`, its first member, the only one in version 1.
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

unsafe extern "C" {
    // syscall(2)
    fn syscall(number: c_long, ...) -> c_long;
}

/// [`cvt`] for syscall(2), which returns a long.
fn cvt_long(result: c_long) -> io::Result<c_int> {
    cvt(c_int::try_from(result).map_err(io::Error::other)?)
}

/// The Landlock version of the kernel, from 1. landlock_create_ruleset(2).
///
/// # Errors
/// ENOSYS or EOPNOTSUPP in a kernel without Landlock.
pub fn landlock_version() -> io::Result<i32> {
    const LANDLOCK_CREATE_RULESET_VERSION: c_ulong = 1;
    let (null, size): (*const c_void, c_ulong) = (std::ptr::null(), 0);
    // SAFETY: with this flag the call takes no memory.
    cvt_long(unsafe {
        syscall(SYS_LANDLOCK_CREATE_RULESET, null, size, LANDLOCK_CREATE_RULESET_VERSION)
    })
}

/// Makes a ruleset that forbids the file system accesses in `handled`, except where a rule allows
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
    // SAFETY: `fd` was just returned, so it is open and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds a rule that allows `allowed` on the file `place`, or on everything beneath it if it is a
/// directory. landlock_add_rule(2).
///
/// # Errors
/// EINVAL for an access that the ruleset does not handle, or that only directories have; EBADFD for
/// a file outside any file system, such as a pipe.
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

/// Enforces `ruleset` on this thread and on those it starts later; there is no way back.
/// landlock_restrict_self(2).
///
/// # Errors
/// EPERM where programs may still gain privileges, E2BIG for the 17th ruleset of a thread.
pub fn landlock_restrict_self(ruleset: &OwnedFd) -> io::Result<()> {
    let flags: c_ulong = 0;
    // SAFETY: the descriptor is borrowed, so open; the call takes no memory.
    cvt_long(unsafe { syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset.as_raw_fd(), flags) }).map(drop)
}
