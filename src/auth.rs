//! Authentication: users, and the proof of their names.
//!
//! Authentication yields a [`User`], which the next step needs: a refusal cannot fall through. The
//! messages are in [`crate::wire`], their exchange in [`crate::session`], and the rights of a user
//! in [`crate::policy`]. No GSS-API yet.

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

/// The proof of a user's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// No proof, and no name.
    Nothing,
    /// A password. The number is a keyed digest of its hash in the users file: it changes if the
    /// password is hashed again.
    Password(u64),
    /// The word of the client's host (RFC 1413).
    Ident,
}

impl Proof {
    /// The proof by the password with this `hash` in the users file.
    #[must_use]
    pub fn by_password(hash: &[u8]) -> Self {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self::Password(KEY.hash_one(hash))
    }
}

/// A client after authentication, with or without a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    name: Option<Vec<u8>>,
    groups: Arc<[String]>,
    proof: Proof,
}

impl User {
    /// A client without a proof: SOCKS 4, or method 00.
    #[must_use]
    pub fn anonymous() -> Self {
        Self { name: None, groups: Arc::default(), proof: Proof::Nothing }
    }

    /// The user `name`, in these groups of the users file.
    #[must_use]
    pub fn proved(name: &[u8], groups: Arc<[String]>, proof: Proof) -> Self {
        Self { name: Some(name.to_vec()), groups, proof }
    }

    /// The proof of the name.
    #[must_use]
    pub fn proof(&self) -> Proof {
        self.proof
    }

    /// The proved name, if there is one.
    #[must_use]
    pub fn name(&self) -> Option<&[u8]> {
        self.name.as_deref()
    }

    /// Whether the user is in this group of the users file; an anonymous client is in none.
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }
}

/// Why authentication failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// Unknown user, locked user or wrong password; the client does not learn which.
    Wrong,
    /// The password is right but the account has expired; the client learns the same as for
    /// `Wrong`.
    Expired,
    /// The handshake's deadline passed while other passwords were being checked.
    TimedOut,
    /// The client left meanwhile.
    ClientGone,
    /// The server ended meanwhile.
    Stopped,
    /// A system call failed with an error of this kind.
    Failed(io::ErrorKind),
    /// The client is shut out; its password was not checked.
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

/// An attempt to authenticate by a password, and the bounds of its check.
pub struct Attempt<'a> {
    /// The name and the password.
    pub claim: &'a Credentials,
    /// The turns, for a checker that computes hashes.
    pub turns: &'a Turns,
    /// The bounds of any wait for the client.
    pub wait: Wait<'a>,
    /// Whether the client has been shut out meanwhile.
    pub shut_out: &'a dyn Fn() -> bool,
}

/// Checks passwords, for instance by the users file.
pub trait Checker {
    /// Checks a password; returns the user.
    ///
    /// # Errors
    /// `Wrong` for an unknown or locked user or another password, `Expired` for the right password
    /// of an account that has expired, `TimedOut` if it takes too long, `ShutOut` if the client is
    /// shut out before the check begins: of many simultaneous guesses no more are checked than of
    /// as many in a row.
    fn check(&self, attempt: &Attempt<'_>) -> Result<User, AuthError>;

    /// The user that [`Checker::check`] would return now for the right password of `name`, or
    /// `None` if there is none.
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
