//! Gives up root and the whole file system, which a server needs only at its start. The names of
//! users are looked up here; the order of the steps is in [`crate::start`].

use std::env;
use std::io::{self, ErrorKind};
use std::os::unix::fs::chroot;
use std::path::Path;

use crate::sys;

/// A user to run as, with its only group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixUser {
    uid: u32,
    gid: u32,
}

impl UnixUser {
    /// Looks up `NAME` or `NAME:GROUP`, either of which may be a number.
    ///
    /// # Errors
    /// An error of the system, or one without an errno for an unknown name or root.
    pub fn look_up(text: &str) -> io::Result<Self> {
        let wrong = |what: &str| io::Error::new(ErrorKind::InvalidInput, what);
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let (uid, primary) = match user.parse() {
            // Its primary group may be unknown, and is not needed.
            Ok(uid) if group.is_some() => (uid, None),
            Ok(uid) => (uid, sys::getpwuid(uid)?),
            Err(_) => {
                let found = sys::getpwnam(user)?;
                found.map(|(uid, gid)| (uid, Some(gid))).ok_or_else(|| wrong("no such user"))?
            }
        };
        let gid = match group.map(str::parse) {
            None => primary.ok_or_else(|| wrong("no primary group is known: use NAME:GROUP"))?,
            Some(Ok(gid)) => gid,
            Some(Err(_)) => {
                let found = sys::getgrnam(group.unwrap_or_default())?;
                found.ok_or_else(|| wrong("no such group"))?
            }
        };
        if uid == 0 || gid == 0 {
            return Err(wrong("expected a user and a group other than root"));
        }
        Ok(Self { uid, gid })
    }

    /// Becomes this user, in this group only, for ever. No other thread may be running.
    ///
    /// # Errors
    /// EPERM without privilege; an error without an errno if root could be regained: the process
    /// must not go on then.
    pub fn change_to(self) -> io::Result<()> {
        sys::setgroups(&[self.gid])?;
        sys::setgid(self.gid)?;
        sys::setuid(self.uid)?;
        if self.is_final()? {
            Ok(())
        } else {
            Err(io::Error::other("root privileges can be regained"))
        }
    }

    /// Whether all IDs of the process are these and it cannot become root again.
    fn is_final(self) -> io::Result<bool> {
        Ok(sys::getresuid()? == [self.uid; 3]
            && sys::getresgid()? == [self.gid; 3]
            && sys::setuid(0).is_err()
            && sys::setgid(0).is_err()
            && sys::setgroups(&[0]).is_err())
    }
}

/// Makes `directory` the root directory and the current one.
///
/// # Errors
/// As chroot(2).
pub fn change_root(directory: &Path) -> io::Result<()> {
    chroot(directory)?;
    env::set_current_dir("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_looked_up() {
        for (text, expected) in [
            ("nobody", Ok((65534, 65534))),
            ("65534", Ok((65534, 65534))),
            ("nobody:1", Ok((65534, 1))),
            ("4000000000:4000000001", Ok((4_000_000_000, 4_000_000_001))),
            ("4000000000", Err("no primary group is known: use NAME:GROUP")),
            ("no-such", Err("no such user")),
            ("nobody:no-such", Err("no such group")),
            ("root", Err("expected a user and a group other than root")),
            ("0", Err("expected a user and a group other than root")),
            ("nobody:root", Err("expected a user and a group other than root")),
        ] {
            let found = UnixUser::look_up(text).map_err(|error| error.to_string());
            let expected = expected.map(|(uid, gid)| UnixUser { uid, gid });
            assert_eq!(found, expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn only_the_current_user_who_is_not_root_passes_the_check() {
        let [[uid, ..], [gid, ..]] = [sys::getresuid().unwrap(), sys::getresgid().unwrap()];
        let passes = |uid, gid| UnixUser { uid, gid }.is_final().unwrap();
        assert_eq!(passes(uid, gid), uid != 0);
        assert!(!passes(uid + 1, gid));
        assert!(!passes(uid, gid + 1));
    }
}
