//! Who is this: the choice of a method and the proof of a user.
//!
//! Authentication yields a [`User`], which the request step needs: a refusal cannot fall through.

pub mod users;

use std::time::Instant;

use crate::auth::users::Users;
use crate::wire::socks5::Method;
use crate::wire::userpass::Credentials;

/// Somebody who passed authentication, or passed where none is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    name: Option<Vec<u8>>,
}

impl User {
    /// The name that was proved, if any was.
    #[must_use]
    pub fn name(&self) -> Option<&[u8]> {
        self.name.as_deref()
    }
}

/// Why nobody was authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// Unknown user, locked user or wrong password; the client is not told which.
    Wrong,
    /// The handshake's deadline passed while other passwords were being checked.
    TimedOut,
}

/// How clients have to prove who they are.
pub struct Auth {
    users: Option<Users>,
}

impl Auth {
    /// With `users` every client must give a password; without, nobody is asked.
    #[must_use]
    pub fn new(users: Option<Users>) -> Self {
        Self { users }
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
        self.users.is_none().then_some(User { name: None })
    }

    /// Checks a password until `deadline` (RFC 1929).
    ///
    /// # Errors
    /// `Wrong` also where there are no users at all.
    pub fn check(&self, claim: &Credentials, deadline: Instant) -> Result<User, AuthError> {
        let users = self.users.as_ref().ok_or(AuthError::Wrong)?;
        users.check(claim, deadline)?;
        Ok(User { name: Some(claim.uname.clone()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_users_only_method_00_is_chosen() {
        let auth = Auth::new(None);
        assert_eq!(auth.select(&[Method::NONE]), Some(Method::NONE));
        let all = [Method::GSSAPI, Method::USERPASS, Method::NONE];
        assert_eq!(auth.select(&all), Some(Method::NONE));
        for offered in [&[][..], &[Method::GSSAPI], &[Method::USERPASS], &[Method(0xff)]] {
            assert_eq!(auth.select(offered), None, "V5-04, V5-08, V5-40: {offered:?}");
        }
        assert_eq!(auth.anonymous(), Some(User { name: None }));
    }
}
