//! What an administrator or a wrapper gives: the command line, the users file with its dates, the
//! password for `--hash`, the client's address in the environment.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, SystemTime};

use socksd::auth::users::{LineError, Users};
use socksd::auth::{Checker as _, Proof};
use socksd::cli::{self as options, Action};
use socksd::date::Date;
use socksd::server::inherit;
use socksd::wire::STRING_MAX;
use socksd::{hash, sys};

use super::assert_plain;

/// Command lines, one argument a line.
pub fn cli(octets: &[u8]) {
    let lines = octets.strip_suffix(b"\n").unwrap_or(octets);
    let lines = Some(lines).filter(|lines| !lines.is_empty());
    let args = lines.into_iter().flat_map(|lines| lines.split(|&octet| octet == b'\n'));
    let args: Vec<&OsStr> = args.map(OsStr::from_bytes).collect();
    let parsed = options::parse(&args);
    assert_eq!(format!("{parsed:?}"), format!("{:?}", options::parse(&args)));
    match parsed {
        Ok(Action::Run(config) | Action::Check(config)) => {
            assert!(config.ready_fd.is_none_or(|fd| fd > 2));
            assert!(config.manner.unix_mode <= 0o777);
            assert!((1..=1_000_000).contains(&config.slots.sessions));
        }
        Ok(Action::Print(text)) => text.lines().for_each(assert_plain),
        Ok(Action::Explain(..) | Action::Hash) => {}
        Err(error) => {
            let error = error.to_string();
            assert_plain(&error);
            // It might be a password.
            let hashes = args.first().is_some_and(|arg| *arg == "--hash");
            assert!(!hashes || !error.contains("operand"), "{error}");
        }
    }
}

/// Users files whose hashes cost little. Of those that are taken crypt(3) makes others like them.
pub fn users(octets: &[u8]) {
    let lines: Vec<&[u8]> = octets.split(|&octet| octet == b'\n').collect();
    let field = |line: &'_ [u8], index| -> Vec<u8> {
        line.split(|&octet| octet == b':').nth(index).unwrap_or_default().to_vec()
    };
    if !lines.iter().all(|line| is_cheap(&field(line, 1))) {
        return;
    }
    let users = match Users::parse(octets) {
        Ok(users) => users,
        Err(errors) => {
            assert!(!errors.is_empty() && errors.len() <= lines.len());
            for LineError { line: number, what: error } in errors {
                assert_plain(&error);
                assert!(error.len() <= 2_000, "{error}");
                let line = lines[number - 1];
                let (name, hash) = (field(line, 0), field(line, 1));
                // No word of a message itself is like this.
                let digit = |octet: &u8| octet.is_ascii_alphanumeric() || b"./$".contains(octet);
                if hash.len() >= 20 && hash.iter().all(digit) && !has(&name, &hash) {
                    assert!(!has(error.as_bytes(), &hash), "{error}");
                }
            }
            return;
        }
    };
    let lines = lines.iter().filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    let lines: Vec<&[u8]> = lines.copied().collect();
    assert_eq!((users.len(), users.is_empty()), (lines.len(), lines.is_empty()));
    assert!(users.user(b"").is_none());
    for line in lines {
        let (name, hash, expiry) = (field(line, 0), field(line, 1), field(line, 2));
        assert!((1..=STRING_MAX).contains(&name.len()));
        assert!(expiry.is_empty() || Date::parse(&expiry).is_some());
        let locked = hash.is_empty() || hash.starts_with(b"!") || hash.starts_with(b"*");
        let expired = users.proved(&name, Proof::Ident).is_none();
        assert!(!expired || !expiry.is_empty());
        assert_eq!(users.user(&name).is_none(), locked || expired);
        if !locked {
            // A hash that differs from those of all passwords locks its user out without a word.
            let made = sys::crypt(b"", &hash).expect("crypt(3) can compute what is taken");
            let digest = if hash.starts_with(b"$2") { 31 } else { hash.len() - last(&hash) };
            assert_eq!(made.len(), hash.len(), "{}", hash.escape_ascii());
            assert_eq!(made[..made.len() - digest], hash[..hash.len() - digest]);
        }
    }
}

fn has(octets: &[u8], part: &[u8]) -> bool {
    octets.windows(part.len()).any(|octets| octets == part)
}

/// Where the last field of a hash begins.
fn last(hash: &[u8]) -> usize {
    hash.iter().rposition(|&octet| octet == b'$').map_or(0, |at| at + 1)
}

/// Whether crypt(3) would take no more than milliseconds, if it can be asked at all.
fn is_cheap(hash: &[u8]) -> bool {
    let methods: [&[u8]; 6] = [b"$y$", b"$2b$", b"$2a$", b"$2y$", b"$6$", b"$5$"];
    let cheap: [&[u8]; 6] = [b"j75$", b"04$", b"04$", b"04$", b"rounds=1000$", b"rounds=1000$"];
    let found = methods.iter().zip(cheap).find(|(method, _)| hash.starts_with(method));
    found.is_none_or(|(method, cheap)| {
        let rest = &hash[method.len()..];
        let is_default = cheap.starts_with(b"rounds") && !rest.starts_with(b"rounds");
        is_default || rest.starts_with(cheap)
    })
}

/// Dates in files, and those of a time: eight octets of seconds since 1970.
pub fn date(octets: &[u8]) {
    if let Some(date) = Date::parse(octets) {
        assert_eq!(date.to_string().as_bytes(), octets);
        assert!((1..=12).contains(&date.month) && (1..=31).contains(&date.day));
    }
    let Some((seconds, _)) = octets.split_first_chunk() else { return };
    let time = Duration::from_secs(u64::from_le_bytes(*seconds));
    let Some(time) = SystemTime::UNIX_EPOCH.checked_add(time) else { return };
    let date = Date::of(time);
    let text = date.to_string();
    assert_eq!(Date::parse(text.as_bytes()), Some(date).filter(|date| date.year <= 9_999));
    let later = time.checked_add(Duration::from_secs(86_400));
    assert!(later.is_none_or(|later| date < Date::of(later)), "{text}");
}

/// Passwords for `--hash`: one line.
pub fn password(octets: &[u8]) {
    let mut input = octets;
    let password = hash::line(&mut input).expect("memory can be read");
    let line = octets.split(|&octet| octet == b'\n').next().unwrap_or_default();
    assert_eq!(password.expose(), &line[..line.len().min(STRING_MAX + 1)]);
}

/// Addresses as wrappers put them into the environment.
pub fn peer_env(octets: &[u8]) {
    let Some(ip) = str::from_utf8(octets).ok().and_then(inherit::parse_ip) else { return };
    assert_eq!(ip, ip.to_canonical());
    for text in [ip.to_string(), format!("[{ip}]")] {
        assert_eq!(inherit::parse_ip(&text), Some(ip));
    }
}
