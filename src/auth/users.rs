//! The users file: names and password hashes in crypt(3) form.
//!
//! Checking costs the same whether or not a user exists. Only a few checks run at once, so that a
//! flood of logins cannot take every core from the relays; a password that was accepted is known
//! again by a keyed digest, so that a browser's fifty connections cost one slow hash.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::fs::File;
use std::hash::BuildHasher as _;
use std::hint::black_box;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::auth::AuthError;
use crate::log::Escaped;
use crate::sys;
use crate::threads::lock;
use crate::wire::STRING_MAX;
use crate::wire::userpass::Credentials;

/// The prefixes of the hash methods taken: yescrypt, bcrypt, SHA-512, SHA-256.
const METHODS: [&[u8]; 6] = [b"$y$", b"$2b$", b"$2a$", b"$2y$", b"$6$", b"$5$"];

/// What an unknown user is checked against where the file holds no hash of its own.
const NOBODY: &[u8] = b"$6$socksd.nobody$";

/// All users of one file.
pub struct Users {
    /// Name to hash; `None` is a locked account.
    hashes: HashMap<Vec<u8>, Option<Vec<u8>>>,
    /// The hash that stands in for a missing one: the first of the file, for its method and cost.
    stand_in: Vec<u8>,
    /// How many checks may begin now.
    turns: Mutex<usize>,
    turn_over: Condvar,
    /// Keys of the digests, random for each load.
    keys: [RandomState; 2],
    /// Name to digest of the password last accepted.
    accepted: Mutex<HashMap<Vec<u8>, [u64; 2]>>,
}

impl Users {
    /// Loads the file at `path`, which only its owner may be able to read.
    ///
    /// # Errors
    /// One message for each thing wrong, with the file and the line.
    pub fn load(path: &Path) -> Result<Self, Vec<String>> {
        let file = path.display();
        let unreadable = |error| vec![format!("cannot read {file}: {error}")];
        let mut opened = File::open(path).map_err(unreadable)?;
        let mode = opened.metadata().map_err(unreadable)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(vec![format!(
                "{file}: mode {mode:04o} lets others than its owner at the hashes: chmod 600 {file}"
            )]);
        }
        let mut octets = Vec::new();
        opened.read_to_end(&mut octets).map_err(unreadable)?;
        Self::parse(&octets).map_err(|errors| {
            errors.into_iter().map(|(line, error)| format!("{file}:{line}: {error}")).collect()
        })
    }

    /// Parses the octets of a file; errors come with their line numbers, from 1.
    fn parse(octets: &[u8]) -> Result<Self, Vec<(usize, String)>> {
        let mut hashes = HashMap::new();
        let mut stand_in = None;
        let mut errors = Vec::new();
        let mut tried = Vec::new();
        for (line, number) in octets.split(|&octet| octet == b'\n').zip(1..) {
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            match parse_line(line).and_then(|(name, hash)| {
                if let Some(hash) = hash {
                    try_method(hash, &mut tried)?;
                }
                Ok((name, hash))
            }) {
                Ok((name, hash)) => match hashes.entry(name.to_vec()) {
                    Entry::Occupied(_) => {
                        errors.push((number, format!("user {} stands here twice", Escaped(name))));
                    }
                    Entry::Vacant(vacant) => {
                        if stand_in.is_none() {
                            stand_in = hash.map(<[u8]>::to_vec);
                        }
                        vacant.insert(hash.map(<[u8]>::to_vec));
                    }
                },
                Err(error) => errors.push((number, error)),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            hashes,
            stand_in: stand_in.unwrap_or_else(|| NOBODY.to_vec()),
            turns: Mutex::new((cores / 2).max(1)),
            turn_over: Condvar::new(),
            keys: [RandomState::new(), RandomState::new()],
            accepted: Mutex::new(HashMap::new()),
        })
    }

    /// How many users there are, locked ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Checks a password, waiting for a turn until `deadline`.
    ///
    /// # Errors
    /// `Wrong` for an unknown or locked user or another password, `TimedOut` without a turn.
    pub fn check(&self, claim: &Credentials, deadline: Instant) -> Result<(), AuthError> {
        let digest = self.keys.each_ref().map(|key| key.hash_one(claim.passwd.expose()));
        if lock(&self.accepted).get(&claim.uname) == Some(&digest) {
            return Ok(());
        }
        let hash = self.hashes.get(&claim.uname).and_then(Option::as_ref);
        let setting = hash.unwrap_or(&self.stand_in);
        let _turn = self.turn(deadline)?;
        let result = sys::crypt(claim.passwd.expose(), setting);
        match (hash, result) {
            (Some(hash), Ok(result)) if same(hash, &result) => {
                lock(&self.accepted).insert(claim.uname.clone(), digest);
                Ok(())
            }
            _ => Err(AuthError::Wrong),
        }
    }

    fn turn(&self, deadline: Instant) -> Result<Turn<'_>, AuthError> {
        let mut turns = lock(&self.turns);
        while *turns == 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AuthError::TimedOut);
            }
            (turns, _) =
                self.turn_over.wait_timeout(turns, left).unwrap_or_else(PoisonError::into_inner);
        }
        *turns -= 1;
        Ok(Turn(self))
    }
}

/// The right to run one check now.
struct Turn<'a>(&'a Users);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.turns) += 1;
        self.0.turn_over.notify_one();
    }
}

/// Splits a line into a name and a hash; `None` for a locked account.
fn parse_line(line: &[u8]) -> Result<(&[u8], Option<&[u8]>), String> {
    let colon = line.iter().position(|&octet| octet == b':');
    let (name, hash) = colon
        .and_then(|at| Some((line.get(..at)?, line.get(at + 1..)?)))
        .ok_or("expected name:hash")?;
    if name.is_empty() {
        return Err("the name before ':' is empty".into());
    }
    if name.len() > STRING_MAX {
        return Err(format!("a name of {} octets: at most {STRING_MAX}", name.len()));
    }
    if hash.is_empty() || hash.starts_with(b"!") || hash.starts_with(b"*") {
        return Ok((name, None));
    }
    let known = METHODS.iter().any(|method| hash.starts_with(method));
    let shaped = hash.iter().all(|octet| octet.is_ascii_graphic() && *octet != b':');
    if known && shaped {
        return Ok((name, Some(hash)));
    }
    Err(format!(
        "user {}: expected a hash that begins with $y$, $2b$, $6$ or $5$ (as mkpasswd(1) writes), \
         or '!' for a locked account",
        Escaped(name)
    ))
}

/// Hashes something with the setting of `hash` unless one of its method was tried before: a hash
/// that this libcrypt cannot compute would lock its user out without a word.
fn try_method(hash: &[u8], tried: &mut Vec<&'static [u8]>) -> Result<(), String> {
    let Some(method) = METHODS.into_iter().find(|method| hash.starts_with(method)) else {
        return Ok(());
    };
    if !tried.contains(&method) {
        sys::crypt(b"", hash).map_err(|_| {
            format!("this system's crypt(3) cannot compute this {} hash", Escaped(method))
        })?;
        tried.push(method);
    }
    Ok(())
}

/// Compares in a time that depends on the lengths only.
fn same(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |sum, (a, b)| black_box(sum | (a ^ b)));
    a.len() == b.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::userpass::Secret;
    use std::time::Duration;

    const SHA256: &str = "$5$saltsalt$anything";

    fn hash(password: &[u8], setting: &[u8]) -> String {
        String::from_utf8(sys::crypt(password, setting).unwrap()).unwrap()
    }

    fn users(text: &str) -> Users {
        Users::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{errors:?}"))
    }

    fn errors(text: &[u8]) -> Vec<(usize, String)> {
        Users::parse(text).err().unwrap_or_default()
    }

    fn check(users: &Users, name: &str, password: &[u8]) -> Result<(), AuthError> {
        let claim =
            Credentials { uname: name.as_bytes().to_vec(), passwd: Secret::new(password.to_vec()) };
        users.check(&claim, Instant::now() + Duration::from_secs(10))
    }

    #[test]
    fn auth_08_only_the_exact_password_is_right() {
        let users = users(&format!("alice:{}\n", hash(b"secret", b"$6$saltsalt$")));
        for _ in 0..2 {
            assert_eq!(check(&users, "alice", b"secret"), Ok(()));
            for wrong in [&b"secre"[..], b"secretx", b"secret\0", b"Secret", b""] {
                assert_eq!(check(&users, "alice", wrong), Err(AuthError::Wrong), "{wrong:?}");
            }
            assert_eq!(check(&users, "Alice", b"secret"), Err(AuthError::Wrong));
            assert_eq!(check(&users, "", b""), Err(AuthError::Wrong));
        }
    }

    #[test]
    fn every_method_the_manual_names_is_checked() {
        let methods = ["$5$saltsalt$", "$2b$04$abcdefghijklmnopqrstuu", "$y$j9T$saltsalt$"];
        for setting in methods {
            if setting.starts_with("$y$") && cfg!(target_env = "musl") {
                assert_eq!(errors(b"alice:$y$j9T$saltsalt$hash\n").len(), 1);
                continue;
            }
            let users = users(&format!("alice:{}\n", hash(b"secret", setting.as_bytes())));
            assert_eq!(check(&users, "alice", b"secret"), Ok(()), "{setting}");
            assert_eq!(check(&users, "alice", b"wrong"), Err(AuthError::Wrong), "{setting}");
        }
    }

    #[test]
    fn an_empty_hash_or_a_mark_is_a_locked_account() {
        let users = users(&format!("a:\nb:!\nc:*\nd:!{SHA256}\n"));
        for name in ["a", "b", "c", "d"] {
            for password in [&b""[..], b"!", b"*", b"secret"] {
                assert_eq!(check(&users, name, password), Err(AuthError::Wrong));
            }
        }
    }

    #[test]
    fn every_malformed_line_is_named_with_its_number() {
        let text = format!("# comment\n\nalice\n:{SHA256}\nbob:plain\nok:!\nok:!\neve:$6$salt\r\n");
        let lines: Vec<usize> = errors(text.as_bytes()).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [3, 4, 5, 7, 8]);
        let long = [&[b'n'; 256][..], b":!"].concat();
        assert_eq!(errors(&long).len(), 1);
    }

    #[test]
    fn an_error_never_shows_the_hash() {
        let text = "bob:plain-text-password\n";
        let (_, error) = errors(text.as_bytes()).remove(0);
        assert!(!error.contains("plain-text"), "{error}");
    }

    #[test]
    fn no_turn_until_the_deadline_is_a_time_out() {
        let users = users(&format!("alice:{}\n", hash(b"secret", b"$5$saltsalt$")));
        *lock(&users.turns) = 0;
        let claim =
            Credentials { uname: b"alice".to_vec(), passwd: Secret::new(b"secret".to_vec()) };
        let deadline = Instant::now() + Duration::from_millis(20);
        assert_eq!(users.check(&claim, deadline), Err(AuthError::TimedOut));
    }
}
