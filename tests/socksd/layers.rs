//! The house: which module may use which, where `unsafe` is allowed, what the program is built
//! from, and what lies at the top of the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::common::root;

/// All modules, bottom up, floor by floor: a module may use those before it and none behind it. One
/// with a folder stands where its own file stands among the files of the folder.
const HOUSE: [(&str, &[&str]); 8] = [
    (
        "wire: addresses; messages, from octets and to octets, without a socket",
        &[
            "net",
            "wire",
            "wire::ident",
            "wire::proxy",
            "wire::socks4",
            "wire::socks5",
            "wire::reply",
            "wire::udp",
            "wire::userpass",
        ],
    ),
    (
        "ground: counts, dates, what std lacks, threads, the log, waiting",
        &[
            "counts",
            "date",
            "stats",
            "sync",
            "sys",
            "sys::crypt",
            "sys::fd",
            "sys::ids",
            "sys::landlock",
            "sys::poll",
            "sys::signal",
            "sys::sock",
            "sys::thread",
            "sys::time",
            "sys::tty",
            "threads",
            "log::line",
            "log::syslog",
            "log::terminal",
            "log",
            "wait",
        ],
    ),
    (
        "decide: who is this, may they, where is that",
        &[
            "auth::turns",
            "auth",
            "auth::ident",
            "auth::penalties",
            "auth::users",
            "policy::nets",
            "policy::words",
            "policy::list",
            "policy::rules",
            "policy::parse",
            "policy::print",
            "policy",
            "policy::explain",
            "resolve",
        ],
    ),
    (
        "move: connections and octets",
        &[
            "dial",
            "relay::end",
            "relay::traffic",
            "relay::leg",
            "relay::rate",
            "relay::pool",
            "relay::state",
            "relay::linger",
            "relay::direction",
            "relay::first",
            "relay",
            "relay::udp::fragments",
            "relay::udp",
        ],
    ),
    (
        "do: CONNECT, BIND, UDP ASSOCIATE",
        &[
            "command::ports",
            "command::failure",
            "command::quotas",
            "command::resources",
            "command",
            "command::connect",
            "command::bind",
            "command::associate",
        ],
    ),
    (
        "client: one client, first octet to last",
        &[
            "session::record",
            "session::live",
            "session::service",
            "session::intake",
            "session::handshake",
            "session",
        ],
    ),
    (
        "server: listeners, slots, signals",
        &[
            "server::listeners",
            "server::inherit",
            "server::slots",
            "server::landlock",
            "server::notify",
            "server::pid_file",
            "server::privileges",
            "server::signals",
            "server::walls",
            "server::metrics::http",
            "server::metrics::page",
            "server::metrics::text",
            "server::metrics",
            "server::accept",
            "server",
        ],
    ),
    (
        "face: settings, the start, options and usage, hashes for the users file",
        &["config", "start", "cli::options", "cli", "hash"],
    ),
];

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All Rust files below `dir`, by their paths from the root of the repository.
fn files(dir: &str) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root().join(dir)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{dir}/{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            files.extend(self::files(&path));
        } else if path.ends_with(".rs") {
            files.push(path);
        }
    }
    files
}

/// The code of all modules by their paths in the crate, without comments and without test modules,
/// which come last.
fn modules() -> BTreeMap<String, String> {
    let mut modules = BTreeMap::new();
    for path in files("src") {
        let name = path.trim_start_matches("src/").trim_end_matches(".rs").replace('/', "::");
        if ["lib", "main"].contains(&name.as_str()) {
            continue;
        }
        let text = read(&path);
        let (code, tests) = text.split_once("#[cfg(test)]\n").unwrap_or((&text, "mod tests"));
        let last = tests.starts_with("mod ") || tests.starts_with("pub(crate) mod ");
        assert!(last, "{path}: only test modules may be #[cfg(test)], at the end");
        let line = |line: &str| line.split_once("//").map_or(line, |(code, _)| code).to_owned();
        modules.insert(name, code.lines().map(|code| line(code) + "\n").collect());
    }
    modules
}

fn is_part_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Adds to `found` the paths that follow a `crate::`, such as `a::b` or `a::{b, c::{d, e as f}}`;
/// returns the rest of the text.
fn paths<'a>(mut text: &'a str, prefix: &str, found: &mut Vec<String>) -> &'a str {
    if let Some(list) = text.strip_prefix('{') {
        text = list.trim_start();
        while !text.starts_with('}') {
            text = paths(text, prefix, found).trim_start().trim_start_matches(',').trim_start();
        }
        return &text[1..];
    }
    let end = text.find(|c| !is_part_of_name(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path = format!("{prefix}{name}");
    match rest.strip_prefix("::") {
        Some(more) if more.starts_with('{') || more.starts_with(is_part_of_name) => {
            paths(more, &format!("{path}::"), found)
        }
        // A glob takes its module; nothing else may be behind `::`.
        Some(more) => {
            found.push(path);
            more.trim_start_matches('*')
        }
        None => {
            found.push(path);
            // Of an item by another name.
            let renamed =
                rest.strip_prefix(" as ").map(|name| name.trim_start_matches(is_part_of_name));
            renamed.unwrap_or(rest)
        }
    }
}

/// The module that an item's path leads to: the last one in it, or the one below that from which
/// the item is passed on by name.
fn home<'a>(modules: &'a BTreeMap<String, String>, path: &str) -> &'a str {
    let mut parts: Vec<&str> = path.split("::").collect();
    let mut item = None;
    let module = loop {
        assert!(!parts.is_empty(), "{path} is in no module");
        if let Some((module, _)) = modules.get_key_value(&parts.join("::")) {
            break module;
        }
        item = parts.pop();
    };
    let Some(item) = item else { return module };
    let defines = |code: &str| {
        ["fn", "struct", "enum", "trait", "type", "const", "static", "union"].iter().any(|kind| {
            code.split(&format!(" {kind} {item}"))
                .skip(1)
                .any(|rest| !rest.starts_with(is_part_of_name))
        })
    };
    if defines(&format!("\n{}", modules[module])) {
        return module;
    }
    let member = |name: &str| {
        let name = name.strip_prefix(module.as_str()).and_then(|name| name.strip_prefix("::"));
        name.is_some_and(|name| !name.contains("::"))
    };
    let mut members = modules.iter().filter(|(name, code)| member(name) && defines(code));
    members.next().map_or(module, |(name, _)| name)
}

/// The modules that a module uses: those behind `crate::`, and its own that it names by themselves.
/// A re-export is no use.
fn used<'a>(modules: &'a BTreeMap<String, String>, name: &str) -> BTreeSet<&'a str> {
    let code: String = modules[name]
        .split_inclusive(';')
        .filter(|statement| {
            !["pub use ", "pub(crate) use "]
                .iter()
                .any(|word| statement.trim_start().starts_with(word))
        })
        .collect();
    assert!(!code.contains("super::"), "{name}: say crate::");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        paths(&code[at + "crate::".len()..], "", &mut found);
    }
    let mut used: BTreeSet<&str> = found.iter().map(|path| home(modules, path)).collect();
    for member in modules.keys() {
        let Some(own) = member.strip_prefix(name).and_then(|own| own.strip_prefix("::")) else {
            continue;
        };
        let named = code
            .match_indices(&format!("{own}::"))
            .any(|(at, _)| !code[..at].ends_with(|c| is_part_of_name(c) || c == ':'));
        if named {
            used.insert(member);
        }
    }
    used.remove(name);
    used
}

#[test]
fn a_module_uses_only_modules_below_it() {
    let modules = modules();
    let house: Vec<&str> = HOUSE.iter().flat_map(|(_, floor)| *floor).copied().collect();
    let listed: BTreeSet<&str> = house.iter().copied().collect();
    assert_eq!(listed.len(), house.len(), "a module stands here twice");
    assert_eq!(listed, modules.keys().map(String::as_str).collect(), "HOUSE is not what src is");
    let place = |name: &str| house.iter().position(|other| *other == name).unwrap();
    let mut seen = 0;
    for name in &house {
        for used in used(&modules, name) {
            seen += 1;
            assert!(place(used) < place(name), "{name} uses {used}, which stands above it");
        }
    }
    assert!(seen > 250, "only {seen} arrows found: this test has gone blind");
}

#[test]
fn paths_are_found_however_they_are_written() {
    let mut found = Vec::new();
    let rest = paths("a::{b, c::{self, D as E},\n f::*, G}; more", "", &mut found);
    assert_eq!(found, ["a::b", "a::c::self", "a::c::D", "a::f", "a::G"]);
    assert_eq!(rest, "; more");
    let modules: BTreeMap<String, String> = [
        ("a", "pub use b::Deep;\npub struct Own;\nfn f() { c::g(); }\n"),
        ("a::b", "use crate::a::{Own, Other};\npub struct Deep;\n"),
        ("a::c", "use crate::a::Deep;\npub fn g() {}\n"),
    ]
    .map(|(name, code)| (name.to_owned(), code.to_owned()))
    .into();
    assert_eq!(used(&modules, "a"), ["a::c"].into());
    assert_eq!(used(&modules, "a::b"), ["a"].into());
    assert_eq!(used(&modules, "a::c"), ["a::b"].into());
}

#[test]
fn unsafe_code_is_allowed_in_sys_and_in_the_test_that_counts_allocations() {
    // All else the compiler denies.
    assert_eq!(read("Cargo.toml").matches("\nunsafe_code = \"deny\"\n").count(), 1);
    let allowed = ["allow", "expect", "warn"].map(|level| format!("{level}(unsafe_code"));
    let allows = |path: &String| allowed.iter().any(|word| read(path).contains(word));
    let mut files = [files("src"), files("tests")].concat();
    files.retain(allows);
    files.sort();
    assert_eq!(files, ["src/lib.rs", "tests/allocations.rs"]);
}

#[test]
fn the_tree_of_crates_is_socksd_and_getopts() {
    let lock = read("Cargo.lock");
    let names: Vec<&str> = lock.lines().filter_map(|line| line.strip_prefix("name = ")).collect();
    assert_eq!(names, ["\"getopts\"", "\"socksd\""]);
}

#[test]
fn the_top_of_the_repository_holds_nothing_else() {
    let known = [
        "CHANGELOG.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "Makefile",
        "README.md",
        "man",
        "src",
        "tests",
    ];
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        // target/ is no part of the repository.
        let good = known.contains(&name.as_str()) || name.starts_with('.') || name == "target";
        assert!(good, "{name} has no place at the top");
    }
}

#[test]
fn the_changelog_opens_with_the_version_that_is_built() {
    let changelog = read("CHANGELOG.md");
    let (_, sections) = changelog.split_once("\n## ").expect("no section");
    let first = sections.split("\n## ").next().unwrap_or_default();
    assert!(first.contains(env!("CARGO_PKG_VERSION")), "{first}");
}
