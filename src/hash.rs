//! `--hash`: turns a password from standard input into a hash for the users file, socksd.users(5).
//!
//! A terminal shows a prompt and no echo. Its state is always restored: signals that would end the
//! process are waited for instead of delivered.

use std::fs::File;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::sync::Arc;
use std::thread;

use crate::start::StartError;
use crate::sync::Queue;
use crate::sys::{self, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, Termios};
use crate::wire::STRING_MAX;
use crate::wire::userpass::Secret;

/// The digits of crypt(5) in order.
const DIGITS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// yescrypt with libxcrypt's default cost: 16 MiB and about 25 ms for each guess.
const YESCRYPT: &str = "$y$j9T$";

/// SHA-512, for systems without yescrypt. It uses little memory, so only time slows down guesses:
/// a hundred times the 5,000 rounds of crypt(5) take 0.3 to 0.5 seconds. A client with the right
/// password waits for that only once.
const SHA512: &str = "$6$rounds=500000$";

/// Digits of a salt: 144 bits in the whole groups of four digits that yescrypt requires, or 96
/// bits, the maximum of SHA-512.
const YESCRYPT_SALT: usize = 24;
const SHA512_SALT: usize = 16;

/// Reads a password and hashes it; returns the hash without a newline.
///
/// # Errors
/// `Config` for an invalid password, `System` if a system call fails or a signal interrupts.
pub fn run() -> Result<String, StartError> {
    let password = if io::stdin().is_terminal() { ask()? } else { take()? };
    check(password.expose())?;
    make(&password).map_err(|error| StartError::system("make a hash", &error))
}

/// Hashes a password with a new salt and the best method of this system's crypt(3).
fn make(password: &Secret) -> io::Result<String> {
    let mut random = [0; YESCRYPT_SALT];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let hash = |method: &str, digits: usize| {
        let setting = setting(method, random.iter().take(digits));
        sys::crypt(password.expose(), setting.as_bytes())
    };
    let hash = hash(YESCRYPT, YESCRYPT_SALT).or_else(|_| hash(SHA512, SHA512_SALT))?;
    String::from_utf8(hash).map_err(io::Error::other)
}

/// The method with its cost, then a salt of one digit for each byte. All digits are equally
/// likely, since 256 is a multiple of 64.
fn setting<'a>(method: &str, random: impl Iterator<Item = &'a u8>) -> String {
    let digits = random.filter_map(|octet| DIGITS.get(usize::from(octet % 64)));
    method.chars().chain(digits.map(|&digit| char::from(digit))).collect()
}

/// Checks that SOCKS 5 can carry the password and crypt(3) can take it.
fn check(password: &[u8]) -> Result<(), StartError> {
    if password.is_empty() || password.len() > STRING_MAX || password.contains(&0) {
        return Err(wrong("expected a password of 1 to 255 bytes without NUL"));
    }
    Ok(())
}

fn wrong(message: &str) -> StartError {
    StartError::Config(vec![message.into()])
}

fn unread(error: &io::Error) -> StartError {
    StartError::system("read the password", error)
}

/// Reads one line of standard input.
fn take() -> Result<Secret, StartError> {
    line(&mut io::stdin().lock()).map_err(|error| unread(&error))
}

/// Reads up to a newline, which is dropped, or the end of input, and stops as soon as the line is
/// known to be too long.
///
/// # Errors
/// As read(2).
pub fn line(input: &mut impl io::BufRead) -> io::Result<Secret> {
    let mut line = Vec::new();
    let longest = u64::try_from(STRING_MAX).unwrap_or(u64::MAX).saturating_add(1);
    input.take(longest).read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok(Secret::new(line))
}

/// Prompts twice at the terminal.
fn ask() -> Result<Secret, StartError> {
    // A stop is blocked as well: the shell would get a terminal without echo.
    sys::block_signals(&[SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP])
        .map_err(|error| StartError::system("block signals", &error))?;
    let _quiet =
        Quiet::begin().map_err(|error| StartError::system("silence the terminal", &error))?;
    let answers = answers().map_err(|error| StartError::system("start a thread", &error))?;
    let first = answer("Password: ", &answers)?;
    // No second prompt for an invalid password.
    check(first.expose())?;
    let second = answer("Password again: ", &answers)?;
    if first.expose() != second.expose() {
        return Err(wrong("the two passwords differ"));
    }
    Ok(first)
}

/// Prints a prompt and waits for a line or a signal.
fn answer(prompt: &str, answers: &Queue<io::Result<Secret>>) -> Result<Secret, StartError> {
    // Without a prompt the answer can still be typed.
    let _ = write!(io::stderr(), "{prompt}");
    let gone = || Err(io::ErrorKind::UnexpectedEof.into());
    let answer = answers.take(None).unwrap_or_else(gone);
    // The typed newline is not echoed either.
    let _ = writeln!(io::stderr());
    answer.map_err(|error| unread(&error))
}

/// Starts a thread that reads two lines, and another that waits for a signal and reports it as an
/// error. Nobody joins them: they end with the process.
fn answers() -> io::Result<Arc<Queue<io::Result<Secret>>>> {
    let answers = Arc::<Queue<_>>::default();
    let (lines, signals) = (Arc::clone(&answers), Arc::clone(&answers));
    thread::Builder::new().spawn(move || {
        for _ in 0..2 {
            lines.put(line(&mut io::stdin().lock()));
        }
    })?;
    thread::Builder::new().spawn(move || {
        let signal = sys::sigwait(&[SIGHUP, SIGINT, SIGQUIT, SIGTERM]);
        signals.put(Err(signal.err().unwrap_or(io::ErrorKind::Interrupted.into())));
    })?;
    Ok(answers)
}

/// Keeps the echo of the terminal off until it is dropped.
struct Quiet(Termios);

impl Quiet {
    fn begin() -> io::Result<Self> {
        let before = sys::tcgetattr(&io::stdin())?;
        sys::tcsetattr_flush(&io::stdin(), &before.without_echo())?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // If the terminal is gone there is nothing to restore.
        let _ = sys::tcsetattr_flush(&io::stdin(), &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_setting_is_a_method_and_digits_of_crypt() {
        let all: Vec<u8> = (0..=255).collect();
        let expected = [b"$x$", DIGITS.repeat(4).as_slice()].concat();
        assert_eq!(setting("$x$", all.iter()).into_bytes(), expected);
    }

    #[test]
    fn both_settings_are_computed_and_kept_whole_in_the_hash() {
        let octets: Vec<u8> = (0..=255).collect();
        for (method, salt, digest) in [(YESCRYPT, YESCRYPT_SALT, 43), (SHA512, SHA512_SALT, 86)] {
            if method == YESCRYPT && cfg!(target_env = "musl") {
                continue;
            }
            for octets in octets.chunks_exact(salt) {
                let setting = setting(method, octets.iter());
                let hash = sys::crypt(b"secret", setting.as_bytes()).unwrap();
                let (own, rest) = hash.split_at(setting.len());
                assert_eq!(own, setting.as_bytes());
                assert_eq!((rest.first(), rest.len()), (Some(&b'$'), 1 + digest));
                assert_eq!(sys::crypt(b"secret", &hash).unwrap(), hash);
                assert_ne!(sys::crypt(b"Secret", &hash).unwrap(), hash);
                if method == SHA512 {
                    // A third of a second each.
                    break;
                }
            }
        }
    }

    #[test]
    fn every_hash_has_a_salt_of_its_own_and_the_best_method() {
        let method = if cfg!(target_env = "musl") { SHA512 } else { YESCRYPT };
        let hashes: HashSet<String> =
            (0..4).map(|_| make(&Secret::new(b"secret".to_vec())).unwrap()).collect();
        assert_eq!(hashes.len(), 4);
        assert!(hashes.iter().all(|hash| hash.starts_with(method)), "{hashes:?}");
    }

    #[test]
    fn a_password_is_one_line_without_its_newline() {
        for (input, password) in [
            (&b""[..], &b""[..]),
            (b"\n", b""),
            (b"secret", b"secret"),
            (b"secret\n", b"secret"),
            (b"secret\nsecond\n", b"secret"),
            (b" a\r\n", b" a\r"),
            (&[b'x'; 300], &[b'x'; 256]),
        ] {
            assert_eq!(line(&mut &*input).unwrap().expose(), password);
        }
        let longest = [&[b'x'; 255][..], b"\n"].concat();
        assert_eq!(line(&mut &*longest).unwrap().expose(), [b'x'; 255]);
    }

    #[test]
    fn a_password_has_1_to_255_octets_none_of_them_nul() {
        for good in [&b"x"[..], &[b'x'; 255], b" ", b"\xff:"] {
            assert!(check(good).is_ok());
        }
        for bad in [&b""[..], &[b'x'; 256], b"a\0b", b"\0"] {
            assert!(check(bad).is_err());
        }
    }
}
