//! The users file, socksd.users(5): names, password hashes in crypt(3) form, expiry dates, groups.
//!
//! A check costs the same whether or not a user exists or has expired. An accepted password is
//! recognized by a keyed digest, so that a browser's fifty connections cost one slow hash.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::fs::File;
use std::hash::BuildHasher as _;
use std::hint::black_box;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use crate::auth::{Attempt, AuthError, Checker, Proof, User};
use crate::date::Date;
use crate::log::Escaped;
use crate::sync::lock;
use crate::sys;
use crate::wire::STRING_MAX;

/// A hash method of crypt(3).
struct HashMethod {
    /// The beginning of its hashes.
    prefix: &'static [u8],
    /// The number of digits after the last `$`: with fewer or more, no password would be right.
    digits: usize,
}

/// The accepted methods: yescrypt, bcrypt, SHA-512, SHA-256.
const METHODS: [HashMethod; 6] = [
    HashMethod { prefix: b"$y$", digits: 43 },
    HashMethod { prefix: b"$2b$", digits: 53 },
    HashMethod { prefix: b"$2a$", digits: 53 },
    HashMethod { prefix: b"$2y$", digits: 53 },
    HashMethod { prefix: b"$6$", digits: 86 },
    HashMethod { prefix: b"$5$", digits: 43 },
];

/// The form of a line.
const FORM: &str = "expected name:hash[:expiry[:group,group]]";

/// The hash that an unknown user is checked against if the file has none.
const NOBODY: &[u8] = b"$6$socksd.nobody$";

/// The field of the hash.
#[derive(Debug, PartialEq, Eq)]
enum HashField {
    /// The account is locked: no password is right.
    Locked,
    /// The hash of the password.
    Hash(Vec<u8>),
}

/// A line, without the name.
#[derive(Debug, PartialEq, Eq)]
struct UserAccount {
    hash: HashField,
    /// The last day on which the account is valid.
    expiry: Option<Date>,
    groups: Arc<[String]>,
}

impl UserAccount {
    /// The hash of the password, unless the account is locked.
    fn hash(&self) -> Option<&[u8]> {
        match &self.hash {
            HashField::Locked => None,
            HashField::Hash(hash) => Some(hash),
        }
    }

    fn groups(&self) -> Arc<[String]> {
        Arc::clone(&self.groups)
    }

    /// The user `name`, with the password of this `hash`.
    fn user(&self, name: &[u8], hash: &[u8]) -> User {
        User::proved(name, self.groups(), Proof::by_password(hash))
    }

    fn has_expired(&self, today: Date) -> bool {
        self.expiry.is_some_and(|last| last < today)
    }
}

fn today() -> Date {
    Date::of(SystemTime::now())
}

/// An error in a users file.
#[derive(Debug, PartialEq, Eq)]
pub struct LineError {
    /// The number of the line, from 1.
    pub line: usize,
    /// The message.
    pub what: String,
}

/// The users of one file.
pub struct Users {
    accounts: HashMap<Vec<u8>, UserAccount>,
    /// The hash to check unknown users against: the first of the file, for its method and cost.
    stand_in: Vec<u8>,
    /// The random keys of the digests.
    keys: [RandomState; 2],
    /// The digest of each user's last accepted password.
    accepted: Mutex<HashMap<Vec<u8>, [u64; 2]>>,
}

impl Users {
    /// Loads the file at `path`, which has to be readable by its owner only.
    ///
    /// # Errors
    /// A message for each error, with the file and the line.
    pub fn load(path: &Path) -> Result<Self, Vec<String>> {
        let file = path.display();
        let unreadable = |error| vec![format!("cannot read {file}: {error}")];
        let mut opened = File::open(path).map_err(unreadable)?;
        let mode = opened.metadata().map_err(unreadable)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(vec![format!(
                "{file} is readable by others (mode {mode:04o}): chmod 600 {file}"
            )]);
        }
        let mut octets = Vec::new();
        opened.read_to_end(&mut octets).map_err(unreadable)?;
        Self::parse(&octets).map_err(|errors| {
            let message = |LineError { line, what }| format!("{file}:{line}: {what}");
            errors.into_iter().map(message).collect()
        })
    }

    /// Parses the octets of a file.
    ///
    /// # Errors
    /// All errors, in the order of the lines.
    pub fn parse(octets: &[u8]) -> Result<Self, Vec<LineError>> {
        let mut accounts = HashMap::new();
        let mut stand_in = None;
        let mut errors = Vec::new();
        let mut tried = Vec::new();
        for (text, line) in octets.split(|&octet| octet == b'\n').zip(1..) {
            if text.is_empty() || text.starts_with(b"#") {
                continue;
            }
            let parsed = parse_line(text).and_then(|(name, account)| {
                account.hash().map_or(Ok(()), |hash| try_method(hash, &mut tried))?;
                Ok((name, account))
            });
            let added = parsed.and_then(|(name, account)| match accounts.entry(name.to_vec()) {
                Entry::Occupied(_) => Err(format!("duplicate user {}", Escaped(name))),
                Entry::Vacant(vacant) => Ok(vacant.insert(account)),
            });
            match added {
                Ok(account) if stand_in.is_none() => {
                    stand_in = account.hash().map(<[u8]>::to_vec);
                }
                Ok(_) => {}
                Err(what) => errors.push(LineError { line, what }),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            accounts,
            stand_in: stand_in.unwrap_or_else(|| NOBODY.to_vec()),
            keys: [RandomState::new(), RandomState::new()],
            accepted: Mutex::new(HashMap::new()),
        })
    }

    /// The number of users, including locked and expired ones.
    #[must_use]
    pub fn len(&self) -> usize {
        self.accounts.len()
    }

    /// Whether there are no users.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// The user `name`, proved by something else than a password, in the groups of the account if
    /// there is one; `None` if the account has expired.
    #[must_use]
    pub fn proved(&self, name: &[u8], proof: Proof) -> Option<User> {
        let account = self.accounts.get(name);
        let expired = account.is_some_and(|account| account.has_expired(today()));
        let groups = account.map(UserAccount::groups).unwrap_or_default();
        (!expired).then(|| User::proved(name, groups, proof))
    }

    fn check_on(&self, today: Date, attempt: &Attempt<'_>) -> Result<User, AuthError> {
        let Attempt { claim, turns, ref wait, shut_out } = *attempt;
        if shut_out() {
            return Err(AuthError::ShutOut);
        }
        let account = self.accounts.get(&claim.uname);
        let expired = account.is_some_and(|account| account.has_expired(today));
        let digest = self.keys.each_ref().map(|key| key.hash_one(claim.passwd.expose()));
        let hash = account.and_then(UserAccount::hash);
        // The password of an expired account is not recognized: its refusal takes the same work as
        // that of a wrong one.
        if let (Some(account), Some(hash)) = (account, hash)
            && !expired
            && lock(&self.accepted).get(&claim.uname) == Some(&digest)
        {
            return Ok(account.user(&claim.uname, hash));
        }
        let setting = hash.unwrap_or(&self.stand_in);
        let _turn = turns.take(wait)?;
        if shut_out() {
            return Err(AuthError::ShutOut);
        }
        let Ok(result) = sys::crypt(claim.passwd.expose(), setting) else {
            // A password with a NUL has no hash, but costs the same as any other wrong one.
            let _ = sys::crypt(b"", &self.stand_in);
            return Err(AuthError::Wrong);
        };
        match (account, hash) {
            (Some(account), Some(hash)) if same(hash, &result) => {
                if expired {
                    return Err(AuthError::Expired);
                }
                lock(&self.accepted).insert(claim.uname.clone(), digest);
                Ok(account.user(&claim.uname, hash))
            }
            _ => Err(AuthError::Wrong),
        }
    }
}

impl Checker for Users {
    fn check(&self, attempt: &Attempt<'_>) -> Result<User, AuthError> {
        self.check_on(today(), attempt)
    }

    fn user(&self, name: &[u8]) -> Option<User> {
        let account = self.accounts.get(name).filter(|account| !account.has_expired(today()))?;
        account.hash().map(|hash| account.user(name, hash))
    }
}

/// Splits a line into the name and the account.
fn parse_line(line: &[u8]) -> Result<(&[u8], UserAccount), String> {
    let mut fields = line.split(|&octet| octet == b':');
    let name = fields.next().unwrap_or_default();
    let hash = fields.next().ok_or(FORM)?;
    let expiry = fields.next().unwrap_or_default();
    let groups = fields.next().unwrap_or_default();
    if fields.next().is_some() {
        return Err(FORM.into());
    }
    if name.is_empty() {
        return Err("the name before ':' is empty".into());
    }
    if name.starts_with(b"$") {
        // A hash without a name: it must not be shown.
        return Err(FORM.into());
    }
    if name.len() > STRING_MAX {
        return Err(format!("a name of {} octets: at most {STRING_MAX}", name.len()));
    }
    // No message shows the wrong field: it could be a misplaced hash.
    let wrong = |what: &str| format!("user {}: {what}", Escaped(name));
    let hash = parse_hash(hash).ok_or_else(|| {
        wrong(
            "expected a whole hash that begins with $y$, $2b$, $6$ or $5$ (as socksd --hash prints), \
             or '!' for a locked account",
        )
    })?;
    let expiry = match expiry {
        b"" => None,
        date => Some(Date::parse(date).ok_or_else(|| {
            wrong("expected an expiry date YYYY-MM-DD that is in the calendar, or none")
        })?),
    };
    let groups = parse_groups(groups).ok_or_else(|| {
        wrong(
            "expected groups, named by ASCII letters, digits, '-', '_' and '.', with commas \
             between them",
        )
    })?;
    Ok((name, UserAccount { hash, expiry, groups }))
}

/// Parses the field of the hash; `None` is an error, such as a hash that no password has.
fn parse_hash(hash: &[u8]) -> Option<HashField> {
    if hash.is_empty() || hash.starts_with(b"!") || hash.starts_with(b"*") {
        return Some(HashField::Locked);
    }
    let method = METHODS.iter().find(|method| hash.starts_with(method.prefix))?;
    let rest = hash.strip_prefix(method.prefix)?;
    let fields: Vec<&[u8]> = rest.split(|&octet| octet == b'$').collect();
    let (salt_is_whole, last) = match (method.prefix, fields.as_slice()) {
        (b"$y$", [_cost, salt, last]) => (is_yescrypt_salt(salt), last),
        (b"$6$" | b"$5$", [salt, last]) => (is_sha_salt(salt), last),
        (b"$6$" | b"$5$", [rounds, salt, last]) if rounds.starts_with(b"rounds=") => {
            (is_sha_salt(salt), last)
        }
        // Salt and digest in one field: of the last digit of the salt two bits count.
        (b"$2b$" | b"$2a$" | b"$2y$", [_cost, last]) => {
            (last.get(21).is_some_and(|digit| b".Oeu".contains(digit)), last)
        }
        _ => return None,
    };
    let whole = salt_is_whole && last.len() == method.digits && last.iter().all(is_digit);
    let graphic = hash.iter().all(u8::is_ascii_graphic);
    (whole && graphic).then(|| HashField::Hash(hash.to_vec()))
}

/// Whether this is a digit of crypt(5).
fn is_digit(octet: &u8) -> bool {
    octet.is_ascii_alphanumeric() || b"./".contains(octet)
}

/// Whether the SHA methods use all of this salt. libxcrypt accepts none of these marks in a
/// setting.
fn is_sha_salt(salt: &[u8]) -> bool {
    let is_rounds = salt.starts_with(b"rounds=");
    salt.len() <= 16 && !is_rounds && !salt.iter().any(|octet| b"!*;\\".contains(octet))
}

/// Whether these digits encode whole octets, at most 64: the last digit has no bit left over.
fn is_yescrypt_salt(salt: &[u8]) -> bool {
    let last = salt.last().copied().unwrap_or(b'.');
    let ends_well = match salt.len() % 4 {
        2 => matches!(last, b'.'..=b'1'),
        3 => matches!(last, b'.'..=b'9' | b'A'..=b'D'),
        over => over == 0,
    };
    ends_well && salt.len() <= 86 && salt.iter().all(is_digit)
}

/// Parses a list of groups, which may be empty; `None` is an error.
fn parse_groups(groups: &[u8]) -> Option<Arc<[String]>> {
    if groups.is_empty() {
        return Some(Arc::default());
    }
    let part_of_name = |octet: &u8| octet.is_ascii_alphanumeric() || b"-_.".contains(octet);
    groups
        .split(|&octet| octet == b',')
        .map(|name| {
            let good = !name.is_empty() && name.iter().all(part_of_name);
            String::from_utf8(name.to_vec()).ok().filter(|_| good)
        })
        .collect()
}

/// Tries the method and cost of `hash`, unless they were tried before: with a hash that this
/// libcrypt cannot compute, no password would be right.
fn try_method(hash: &[u8], tried: &mut Vec<Vec<u8>>) -> Result<(), String> {
    // Method and cost are followed by salt and digest: one field for bcrypt, else two.
    let last = if hash.starts_with(b"$2") { 1 } else { 2 };
    let mut fields: Vec<&[u8]> = hash.split(|&octet| octet == b'$').collect();
    fields.truncate(fields.len().saturating_sub(last));
    let method = fields.join(&b'$');
    if !tried.contains(&method) {
        sys::crypt(b"", hash).map_err(|_| {
            format!("this system's crypt(3) cannot compute this {}$ hash", Escaped(&method))
        })?;
        tried.push(method);
    }
    Ok(())
}

/// Compares in a time that depends only on the lengths.
fn same(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |sum, (a, b)| black_box(sum | (a ^ b)));
    a.len() == b.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::turns::Turns;
    use crate::wait::testing::Scene;
    use crate::wire::userpass::{Credentials, Secret};

    const SHA256: &str = "$5$saltsalt$0123456789012345678901234567890123456789012";

    fn hash(password: &[u8], setting: &[u8]) -> String {
        String::from_utf8(sys::crypt(password, setting).unwrap()).unwrap()
    }

    fn users(text: &str) -> Users {
        Users::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{errors:?}"))
    }

    fn errors(text: &[u8]) -> Vec<(usize, String)> {
        let errors = Users::parse(text).err().unwrap_or_default();
        errors.into_iter().map(|LineError { line, what }| (line, what)).collect()
    }

    fn claim(name: &str, password: &[u8]) -> Credentials {
        Credentials { uname: name.as_bytes().to_vec(), passwd: Secret::new(password.to_vec()) }
    }

    fn attempt<'a>(scene: &'a Scene, claim: &'a Credentials, turns: &'a Turns) -> Attempt<'a> {
        Attempt { claim, turns, wait: scene.wait(10_000), shut_out: &|| false }
    }

    fn check(users: &Users, name: &str, password: &[u8]) -> Result<(), AuthError> {
        users.check(&attempt(&Scene::new(), &claim(name, password), &Turns::new(1))).map(drop)
    }

    fn check_on(users: &Users, today: &str, password: &[u8]) -> Result<(), AuthError> {
        let today = Date::parse(today.as_bytes()).unwrap();
        users
            .check_on(today, &attempt(&Scene::new(), &claim("alice", password), &Turns::new(1)))
            .map(drop)
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
    fn every_malformed_line_is_reported_with_its_number() {
        let text = format!("# comment\n\nalice\n:{SHA256}\nbob:plain\nok:!\nok:!\neve:$6$salt\r\n");
        let lines: Vec<usize> = errors(text.as_bytes()).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [3, 4, 5, 7, 8]);
        let long = [&[b'n'; 256][..], b":!"].concat();
        assert_eq!(errors(&long).len(), 1);
    }

    #[test]
    fn a_hash_that_is_cut_short_or_too_long_is_an_error() {
        for setting in ["$6$saltsalt$", "$5$saltsalt$", "$2b$04$abcdefghijklmnopqrstuu"] {
            let whole = hash(b"secret", setting.as_bytes());
            assert_eq!(errors(format!("a:{whole}").as_bytes()), []);
            let cut = &whole[..whole.len() - 1];
            for wrong in [cut, &format!("{whole}x"), &format!("{cut}="), setting] {
                assert_eq!(errors(format!("a:{wrong}").as_bytes()).len(), 1, "{wrong}");
            }
        }
    }

    #[test]
    fn a_hash_that_no_password_has_is_an_error() {
        let (digits, many) = ("0".repeat(43), "0".repeat(86));
        for wrong in [
            // Without its salt, or with another field.
            format!("$5${digits}"),
            format!("$6$rounds=5000${many}"),
            format!("$y$j9T${digits}"),
            format!("$5$$salt${digits}"),
            format!("$y$j9T$salt$salt${digits}"),
            format!("$2b$04$$abcdefghijklmnopqrstuu{}", "0".repeat(31)),
            // With a salt that crypt(3) cuts, changes or rejects.
            format!("$6$0123456789abcdefX${many}"),
            format!("$5$salt!${digits}"),
            format!("$2b$04$abcdefghijklmnopqrstuv{}", "0".repeat(31)),
            format!("$y$j9T$salty${digits}"),
            format!("$y$j9T$saltyz${digits}"),
            format!("$y$j9T$salt!!!!${digits}"),
        ] {
            // Method and cost are known to be good when the third line is parsed.
            let text = format!("a:$y$j9T$saltsalt${digits}\nb:{SHA256}\nc:{wrong}\n");
            let found = errors(text.as_bytes());
            assert!(matches!(found.as_slice(), [.., (3, _)]), "{wrong}: {found:?}");
        }
        for good in [format!("$5$${digits}"), format!("$5$0123456789abcdef${digits}")] {
            assert_eq!(errors(format!("a:{good}\n").as_bytes()), [], "{good}");
        }
    }

    #[test]
    fn an_error_never_shows_the_hash() {
        assert_eq!(errors(b"$6$abc$SECRET:alice\n"), [(1, FORM.to_owned())]);
        assert_eq!(errors(b"$6$abc$SECRET:\n"), [(1, FORM.to_owned())]);
        for fields in ["SECRET", "!:SECRET", "!::SECRET/", "!:::SECRET", ":SECRET:", "a:b:c:SECRET"]
        {
            let (_, error) = errors(format!("bob:{fields}\n").as_bytes()).remove(0);
            assert!(!error.contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn an_account_is_good_through_its_expiry_date_and_no_longer() {
        let hash = hash(b"secret", b"$6$saltsalt$");
        let users = users(&format!("alice:{hash}:2028-02-29\n"));
        for today in ["1970-01-01", "2027-12-31", "2028-02-28", "2028-02-29"] {
            assert_eq!(check_on(&users, today, b"secret"), Ok(()), "{today}");
            assert_eq!(check_on(&users, today, b"wrong"), Err(AuthError::Wrong), "{today}");
        }
        // The same after the password has been accepted.
        for today in ["2028-03-01", "2029-01-01", "9999-12-31"] {
            assert_eq!(check_on(&users, today, b"secret"), Err(AuthError::Expired), "{today}");
            assert_eq!(check_on(&users, today, b"wrong"), Err(AuthError::Wrong), "{today}");
        }
    }

    #[test]
    fn refusing_an_expired_user_takes_a_turn_like_a_wrong_password() {
        let hash = hash(b"secret", b"$6$saltsalt$");
        let users = users(&format!("alice:{hash}:2028-02-29\n"));
        assert_eq!(check_on(&users, "2028-02-29", b"secret"), Ok(()));
        let none = Turns::new(0);
        let today = Date::parse(b"2028-02-29").unwrap();
        let right = claim("alice", b"secret");
        assert!(
            users.check_on(today, &attempt(&Scene::new(), &right, &none)).is_ok(),
            "recognized"
        );
        let today = Date::parse(b"2028-03-01").unwrap();
        let scene = Scene::new();
        for claim in [right, claim("alice", b"wrong")] {
            let refused = users.check_on(
                today,
                &Attempt { wait: scene.wait(20), ..attempt(&scene, &claim, &none) },
            );
            assert_eq!(refused, Err(AuthError::TimedOut));
        }
    }

    #[test]
    fn a_line_has_the_hash_expiry_and_groups_of_a_name() {
        type Row<'a> = (&'a str, Option<&'a str>, Option<&'a str>, &'a [&'a str]);
        let table: [Row<'_>; 9] = [
            ("HASH", Some(SHA256), None, &[]),
            ("HASH:", Some(SHA256), None, &[]),
            ("HASH::", Some(SHA256), None, &[]),
            ("HASH:2028-02-29", Some(SHA256), Some("2028-02-29"), &[]),
            ("HASH:2028-02-29:", Some(SHA256), Some("2028-02-29"), &[]),
            ("HASH:2028-02-29:staff", Some(SHA256), Some("2028-02-29"), &["staff"]),
            ("HASH::b,a", Some(SHA256), None, &["b", "a"]),
            ("::staff", None, None, &["staff"]),
            ("!HASH:1999-12-31:A-1,_.z", None, Some("1999-12-31"), &["A-1", "_.z"]),
        ];
        for (rest, hash, expiry, groups) in table {
            let line = format!("n:{}", rest.replace("HASH", SHA256));
            let account = UserAccount {
                hash: hash.map_or(HashField::Locked, |hash| HashField::Hash(hash.into())),
                expiry: expiry.map(|date| Date::parse(date.as_bytes()).unwrap()),
                groups: groups.iter().map(|&group| group.to_owned()).collect(),
            };
            assert_eq!(parse_line(line.as_bytes()), Ok((&b"n"[..], account)), "{line}");
        }
    }

    #[test]
    fn every_wrong_expiry_group_or_further_field_is_reported_with_its_number() {
        for rest in [
            ":2025-02-29",
            ":2025-13-01",
            ":2025-1-1",
            ":never",
            ": ",
            ":2028-02-29\r",
            "::,",
            "::a,",
            "::,a",
            "::a,,b",
            "::a, b",
            "::a b",
            "::@a",
            "::b\u{fc}ro",
            "::a\r",
            "::a:",
            ":2028-02-29:a:b",
            ":::",
        ] {
            for hash in [SHA256, "!"] {
                let found = errors(format!("\nok:!\nn:{hash}{rest}\n").as_bytes());
                assert!(matches!(found.as_slice(), [(3, _)]), "{hash}{rest:?}: {found:?}");
            }
        }
    }

    #[test]
    fn the_groups_of_a_user_come_with_each_check() {
        let hash = hash(b"secret", b"$6$saltsalt$");
        let users = users(&format!("alice:{hash}::staff,ops\n"));
        for _ in 0..2 {
            let claim = claim("alice", b"secret");
            let user = users.check(&attempt(&Scene::new(), &claim, &Turns::new(1))).unwrap();
            assert_eq!(user.name(), Some(&b"alice"[..]));
            assert!(user.is_in("staff") && user.is_in("ops") && !user.is_in("other"));
        }
    }

    #[test]
    fn no_password_of_a_client_that_is_shut_out_before_or_during_the_wait_is_checked() {
        let users = users(&format!("alice:{}\n", hash(b"secret", b"$5$saltsalt$")));
        let (claim, turns) = (claim("alice", b"secret"), Turns::new(1));
        let scene = Scene::new();
        let attempt = attempt(&scene, &claim, &turns);
        for limit in [0, 1] {
            let asked = std::cell::Cell::new(0);
            let shut_out = &|| asked.replace(asked.get() + 1) == limit;
            let refused = users.check(&Attempt { shut_out, ..attempt });
            assert_eq!(refused, Err(AuthError::ShutOut));
            assert!(lock(&users.accepted).is_empty());
        }
        assert!(users.check(&attempt).is_ok());
        // The same for a recognized password.
        let refused = users.check(&Attempt { shut_out: &|| true, ..attempt });
        assert_eq!(refused, Err(AuthError::ShutOut));
    }

    #[test]
    fn reloaded_users_wait_for_the_same_turns() {
        let text = format!("alice:{}\n", hash(b"secret", b"$5$saltsalt$"));
        let (turns, claim) = (Turns::new(1), claim("alice", b"secret"));
        let scene = Scene::new();
        let taken = turns.take(&scene.wait(20));
        for users in [users(&text), users(&text)] {
            let wait = scene.wait(20);
            let refused = users.check(&Attempt { wait, ..attempt(&scene, &claim, &turns) });
            assert_eq!(refused, Err(AuthError::TimedOut));
        }
        drop(taken);
        assert!(users(&text).check(&attempt(&Scene::new(), &claim, &turns)).is_ok());
    }
}
