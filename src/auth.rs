//! Who is this: the proof of a user.
//!
//! Authentication yields a [`User`], which the request step needs: a refusal cannot fall through.
//! The messages are in [`crate::wire`], the talking in [`crate::session`]; which method a client may
//! choose and what a user may do is for [`crate::policy`] to say. No GSS-API yet.

pub mod ident;
pub mod penalties;
pub mod users;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, LazyLock};

/// Somebody who passed authentication, or passed where none is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    name: Option<Vec<u8>>,
    groups: Arc<[String]>,
    /// Stands for the hash of the password that proved the name, if one did.
    password: Option<u64>,
}

impl User {
    /// A client that proves nothing: SOCKS 4, method 00.
    #[must_use]
    pub fn anonymous() -> Self {
        Self { name: None, groups: Arc::default(), password: None }
    }

    /// A client that has proved to be `name`, whom the users file has in `groups`.
    #[must_use]
    pub fn proved(name: &[u8], groups: Arc<[String]>) -> Self {
        Self { name: Some(name.to_vec()), groups, password: None }
    }

    /// The same, proved by the password that has `hash` in the users file.
    #[must_use]
    pub fn with_password(name: &[u8], groups: Arc<[String]>, hash: &[u8]) -> Self {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self { password: Some(KEY.hash_one(hash)), ..Self::proved(name, groups) }
    }

    /// Whether both were proved by the same password, which has not been hashed anew since.
    #[must_use]
    pub fn has_password_of(&self, other: &Self) -> bool {
        self.password.is_some() && self.password == other.password
    }

    /// The name that was proved, if any was.
    #[must_use]
    pub fn name(&self) -> Option<&[u8]> {
        self.name.as_deref()
    }

    /// Whether the users file has the user in `group`; nobody who proved no name is in any.
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }
}

/// Why nobody was authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// Unknown user, locked user or wrong password; the client is not told which.
    Wrong,
    /// The password is right and the account has expired; the client is told the same as for `Wrong`.
    Expired,
    /// The handshake's deadline passed while other passwords were being checked.
    TimedOut,
    /// The client is shut out; its password was not looked at.
    ShutOut,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_in_the_groups_of_the_users_file_and_in_no_others() {
        let groups = ["staff", "ops"].map(str::to_owned);
        let user = User::proved(b"alice", Arc::new(groups));
        assert!(user.is_in("staff") && user.is_in("ops"));
        for other in ["", "Staff", "staf", "staff,ops", "alice"] {
            assert!(!user.is_in(other), "{other}");
        }
        let nobody = User::anonymous();
        assert_eq!(nobody.name(), None);
        assert!(!nobody.is_in("") && !nobody.is_in("staff"));
    }
}
