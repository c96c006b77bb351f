//! Who is this: the proof of a user.
//!
//! Authentication yields a [`User`], which the request step needs: a refusal cannot fall through.
//! The messages are in [`crate::wire`], the talking in [`crate::session`]; which method a client may
//! choose and what a user may do is for [`crate::policy`] to say. No GSS-API yet.

pub mod ident;
pub mod penalties;
pub mod turns;
pub mod users;

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::{Arc, LazyLock};

use crate::auth::turns::Turns;
use crate::wait::{Wait, WaitError};
use crate::wire::userpass::Credentials;

/// What proves the name of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Nothing: there is no name.
    Nothing,
    /// A password. The number is a keyed digest of its hash in the users file: it changes when the
    /// password is hashed anew.
    Password(u64),
    /// The client's host has said so (RFC 1413).
    Ident,
}

impl Proof {
    /// The proof by the password that has `hash` in the users file.
    #[must_use]
    pub fn by_password(hash: &[u8]) -> Self {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self::Password(KEY.hash_one(hash))
    }
}

/// Somebody who passed authentication, or passed where none is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    name: Option<Vec<u8>>,
    groups: Arc<[String]>,
    proof: Proof,
}

impl User {
    /// A client that proves nothing: SOCKS 4, method 00.
    #[must_use]
    pub fn anonymous() -> Self {
        Self { name: None, groups: Arc::default(), proof: Proof::Nothing }
    }

    /// A client that has proved by `proof` to be `name`, whom the users file has in `groups`.
    #[must_use]
    pub fn proved(name: &[u8], groups: Arc<[String]>, proof: Proof) -> Self {
        Self { name: Some(name.to_vec()), groups, proof }
    }

    /// What proved the name.
    #[must_use]
    pub fn proof(&self) -> Proof {
        self.proof
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
    /// The client left meanwhile.
    ClientGone,
    /// The server ended meanwhile.
    Stopped,
    /// A system call failed with an error of this kind.
    Failed(io::ErrorKind),
    /// The client is shut out; its password was not looked at.
    ShutOut,
}

impl From<WaitError> for AuthError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut => Self::TimedOut,
            WaitError::ClientGone => Self::ClientGone,
            WaitError::Stopped => Self::Stopped,
            WaitError::Failed(error) => Self::Failed(error.kind()),
        }
    }
}

/// A try to prove a name by a password, and how it may be waited for.
pub struct Attempt<'a> {
    /// The name and the password.
    pub claim: &'a Credentials,
    /// The turns for those that hash.
    pub turns: &'a Turns,
    /// The terms on which the client waits.
    pub wait: Wait<'a>,
    /// Whether the client is shut out by now.
    pub shut_out: &'a dyn Fn() -> bool,
}

/// Decides whether a password is right, as the users file does.
pub trait Checker {
    /// Checks a password; returns the user.
    ///
    /// # Errors
    /// `Wrong` for an unknown or locked user or another password, `Expired` for the right password
    /// of an account that has expired, `TimedOut` if it takes too long, `ShutOut` if the client is
    /// shut out before the check begins: of many guesses made at once no more are checked than of as
    /// many in a row.
    fn check(&self, attempt: &Attempt<'_>) -> Result<User, AuthError>;

    /// The user of this name as [`Checker::check`] would return it now, or `None` if no password is
    /// right for it.
    fn user(&self, name: &[u8]) -> Option<User>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_in_the_groups_of_the_users_file_and_in_no_others() {
        let groups = ["staff", "ops"].map(str::to_owned);
        let user = User::proved(b"alice", Arc::new(groups), Proof::Ident);
        assert!(user.is_in("staff") && user.is_in("ops"));
        for other in ["", "Staff", "staf", "staff,ops", "alice"] {
            assert!(!user.is_in(other), "{other}");
        }
        let nobody = User::anonymous();
        assert_eq!(nobody.name(), None);
        assert!(!nobody.is_in("") && !nobody.is_in("staff"));
    }
}
