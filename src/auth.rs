//! Who is this: the choice of a method and the proof of a user.
//!
//! Authentication yields a [`User`], which the request step needs: a refusal cannot fall through.
//! The messages are in [`crate::wire`], the talking in [`crate::session`]; what a user may do is
//! for [`crate::policy`] to say. [`ident`] asks the client's host, and nobody uses that
//! yet. No GSS-API yet.

pub mod ident;
pub mod penalties;
pub mod users;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::auth::penalties::Penalties;
use crate::auth::users::Users;
use crate::wire::socks5::Method;
use crate::wire::userpass::Credentials;

/// Somebody who passed authentication, or passed where none is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    name: Option<Vec<u8>>,
    groups: Arc<[String]>,
}

impl User {
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

/// How clients have to prove who they are.
pub struct Auth {
    users: Option<Users>,
    /// Who has failed of late.
    pub penalties: Penalties,
}

impl Auth {
    /// With `users` every client must give a password; without, nobody is asked. `penalty` is as in
    /// [`Penalties::new`].
    #[must_use]
    pub fn new(users: Option<Users>, penalty: Duration) -> Self {
        Self { users, penalties: Penalties::new(penalty) }
    }

    /// Chooses among the methods a client offers (RFC 1928 section 3), or `None` where none is
    /// acceptable. GSS-API is never chosen: choosing it means being able to do it.
    #[must_use]
    pub fn select(&self, offered: &[Method]) -> Option<Method> {
        let acceptable = if self.users.is_some() { Method::USERPASS } else { Method::NONE };
        offered.contains(&acceptable).then_some(acceptable)
    }

    /// The user of a client that proves nothing (SOCKS 4, method 00), or `None` where a proof is
    /// demanded.
    #[must_use]
    pub fn anonymous(&self) -> Option<User> {
        self.users.is_none().then(|| User { name: None, groups: Arc::default() })
    }

    /// Checks a password of `client`, as [`Penalties`] knows it, until `deadline` (RFC 1929). It is
    /// for the caller to have a wrong one penalized.
    ///
    /// # Errors
    /// As [`Users::check`]; `Wrong` also where there are no users at all.
    pub fn check(
        &self,
        claim: &Credentials,
        client: IpAddr,
        deadline: Instant,
    ) -> Result<User, AuthError> {
        let users = self.users.as_ref().ok_or(AuthError::Wrong)?;
        let shut_out = || self.penalties.shut_out(client, Instant::now());
        let groups = users.check(claim, deadline, shut_out)?;
        Ok(User { name: Some(claim.uname.clone()), groups })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_users_only_method_00_is_chosen() {
        let auth = Auth::new(None, Duration::ZERO);
        assert_eq!(auth.select(&[Method::NONE]), Some(Method::NONE));
        let all = [Method::GSSAPI, Method::USERPASS, Method::NONE];
        assert_eq!(auth.select(&all), Some(Method::NONE));
        for offered in [&[][..], &[Method::GSSAPI], &[Method::USERPASS], &[Method(0xff)]] {
            assert_eq!(auth.select(offered), None, "V5-04, V5-08, V5-40: {offered:?}");
        }
        let user = auth.anonymous().unwrap();
        assert_eq!(user.name(), None);
        assert!(!user.is_in("") && !user.is_in("staff"));
    }

    #[test]
    fn a_user_is_in_the_groups_of_the_users_file_and_in_no_others() {
        let groups = ["staff", "ops"].map(str::to_owned);
        let user = User { name: Some(b"alice".to_vec()), groups: Arc::new(groups) };
        assert!(user.is_in("staff") && user.is_in("ops"));
        for other in ["", "Staff", "staf", "staff,ops", "alice"] {
            assert!(!user.is_in(other), "{other}");
        }
    }
}
