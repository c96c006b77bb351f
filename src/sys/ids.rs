//! Users and groups: their databases, the ids of the process, and PR_SET_NO_NEW_PRIVS. Not here:
//! the order in which privileges are dropped (`crate::server`).

use std::ffi::{CString, c_char, c_int, c_uint, c_ulong};
use std::io;
use std::mem::MaybeUninit;

use crate::sys::cvt;

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

/// Room for the texts of an entry: a group lists its members, perhaps tens of thousands.
const ENTRY_OCTETS: usize = 1 << 20;

unsafe extern "C" {
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
    // prctl(2)
    fn prctl(option: c_int, ...) -> c_int;
}

/// The entry that `call` finds in the database of users or groups. Its pointers dangle.
fn entry<T>(
    call: impl FnOnce(*mut T, *mut c_char, usize, *mut *mut T) -> c_int,
) -> io::Result<Option<T>> {
    // Some C libraries return one of these for an entry that does not exist.
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

/// The uid and the primary gid of the user `name`, if it exists. getpwnam_r(3).
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

/// The primary gid of the user `uid`, if it exists. getpwuid_r(3).
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

/// The gid of the group `name`, if it exists. getgrnam_r(3).
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

/// Sets the supplementary groups of the process. setgroups(2).
///
/// # Errors
/// EPERM without privilege, or in a user namespace that forbids it.
pub fn setgroups(gids: &[u32]) -> io::Result<()> {
    // SAFETY: `gids` has the length given, and the call only reads it.
    cvt(unsafe { c_setgroups(gids.len(), gids.as_ptr()) }).map(drop)
}

/// Sets the gid of the process: with privilege the real, the effective and the saved one.
/// setgid(2).
///
/// # Errors
/// EPERM without privilege, EINVAL for a number that this user namespace lacks.
pub fn setgid(gid: u32) -> io::Result<()> {
    cvt(c_setgid(gid)).map(drop)
}

/// Sets the uid of the process: with privilege the real, the effective and the saved one.
/// setuid(2).
///
/// # Errors
/// EPERM without privilege, EINVAL for a number that this user namespace lacks.
pub fn setuid(uid: u32) -> io::Result<()> {
    cvt(c_setuid(uid)).map(drop)
}

/// The real, the effective and the saved uid of the process. getresuid(2).
///
/// # Errors
/// getresuid(2) documents none that can occur here.
pub fn getresuid() -> io::Result<[u32; 3]> {
    let [mut real, mut effective, mut saved] = [0; 3];
    // SAFETY: the call may fill the three numbers.
    cvt(unsafe { c_getresuid(&raw mut real, &raw mut effective, &raw mut saved) })?;
    Ok([real, effective, saved])
}

/// The real, the effective and the saved gid of the process. getresgid(2).
///
/// # Errors
/// getresgid(2) documents none that can occur here.
pub fn getresgid() -> io::Result<[u32; 3]> {
    let [mut real, mut effective, mut saved] = [0; 3];
    // SAFETY: the call may fill the three numbers.
    cvt(unsafe { c_getresgid(&raw mut real, &raw mut effective, &raw mut saved) })?;
    Ok([real, effective, saved])
}

/// Keeps programs executed by this thread, or by those it starts later, from gaining privileges.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name() {
        assert_eq!(getpwnam("root").unwrap(), Some((0, 0)));
        assert_eq!(getpwuid(0).unwrap(), Some(0));
        assert_eq!(getgrnam("root").unwrap(), Some(0));
        assert_eq!(getpwnam("no such user").unwrap(), None);
        assert_eq!(getgrnam("no such group").unwrap(), None);
        assert!(getpwnam("a\0b").is_err());
    }
}
